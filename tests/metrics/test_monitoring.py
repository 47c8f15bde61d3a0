"""What we ship for monitoring: each metric that it names exists, and lnav reads our log."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import parser

from fep.alarms.state import AlarmKind, Severity
from fep.control.ctl import COMMANDS
from fep.domain.histogram import LAG_SECONDS, Histogram
from fep.links.state import LinkState
from fep.metrics.catalogue import METRICS, Form, Look
from fep.metrics.page import Process, Writing, pieces
from fep.tasks.figures import Exchange
from fep.tasks.state import State
from tests.control.conftest import Start

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = ROOT / "config/monitoring"
RULES = SHIPPED / "fep.rules.yml"
DASHBOARD = SHIPPED / "fep.dashboard.json"
LNAV_SECONDS_MAX = 30

METRIC_NAME = re.compile(r"\b(fep_[a-z_]+|process_[a-z_]+|python_[a-z_]+)\b")
SELECTOR = re.compile(r"\b(fep_[a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
PROMETHEUS_LABELS = {"instance", "job", "le"}
VALUES: dict[str, dict[str, type[StrEnum]]] = {
    "fep_tasks_open": {"state": State},
    "fep_link_state": {"state": LinkState},
    "fep_bank_request_duration_seconds": {"result": Exchange},
    "fep_alarms_active": {"kind": AlarmKind, "severity": Severity},
}
"""Labels whose values are words of ours."""


def series() -> dict[str, set[str]]:
    """Return the name of every series there is, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = set(metric.labels)
        if metric.form is Form.HISTOGRAM:
            for suffix in ("_bucket", "_count", "_sum"):
                found[metric.name + suffix] = labels
        else:
            found[metric.name] = labels
    for family in parser.text_string_to_metric_families(Process().text(Writing.TEXT)):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def faults(expression: str) -> list[str]:
    """Return what an expression of PromQL names that is not there."""
    known = series()
    found = [f"no metric {name}" for name in METRIC_NAME.findall(expression) if name not in known]
    used = [name for name in METRIC_NAME.findall(expression) if name in known]
    labels = set().union(*(known[name] for name in used)) | PROMETHEUS_LABELS
    for group in GROUPING.findall(expression):
        found += [f"no label {one}" for one in re.findall(r"\w+", group) if one not in labels]
    for name, matchers in SELECTOR.findall(expression):
        for label, wanted in MATCHER.findall(matchers):
            if label not in known.get(name, set()) | PROMETHEUS_LABELS:
                found.append(f"{name} has no label {label}")
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            if (words := VALUES.get(base, {}).get(label)) is not None:
                extra = {"raised", "acknowledged"} if base == "fep_alarms_active" else set()
                allowed = {one.value for one in words} | extra
                found += [f"{label}={one}" for one in wanted.split("|") if one not in allowed]
    for pair in "()", "{}", "[]":
        if expression.count(pair[0]) != expression.count(pair[1]):
            found.append(f"{pair} are not in pairs")
    if not used:
        found.append("it names no metric")
    return found


def test_faults_of_an_expression_are_seen() -> None:
    assert faults('sum by (bank) (fep_tasks_open{state="unknown"})') == []
    assert faults("fep_nothing") == ["no metric fep_nothing", "it names no metric"]
    assert faults("sum by (colour) (fep_link_up)") == ["no label colour"]
    assert faults('fep_link_up{slot="a"}') == ["fep_link_up has no label slot"]
    assert faults('fep_tasks_open{state="unknwon"}') == ["state=unknwon"]
    assert faults('rate(fep_bank_request_duration_seconds_count{result=~"lost|gone"}[5m])') == [
        "result=gone"
    ]
    assert faults("sum(fep_link_up") == ["() are not in pairs"]
    assert faults("fep_loop_lag_seconds") != [], "a histogram has no series of its own name"


# -- alert rules ------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_rule_names_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    # up is Prometheus's own.
    assert faults(rule["expr"].replace('up{job="fep"} == 0', "")) == []
    assert re.fullmatch(r"Fep([A-Z][a-z]+)+", rule["alert"])
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "action"}
    assert re.search(r"[\u4e00-\u9fff]", rule["annotations"]["summary"])
    for command in re.findall(r"\bfepctl (\w+)", rule["annotations"]["action"]):
        assert command in COMMANDS


def test_rules_have_names_of_their_own_and_a_test_each_names_one() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 12
    tested = yaml.safe_load((ROOT / "tests/metrics/rules_test.yml").read_text("utf-8"))
    [group] = tested["tests"]
    assert {one["alertname"] for one in group["alert_rule_test"]} <= set(names)


# -- the dashboard ----------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    board = json.loads(DASHBOARD.read_text("utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for one in board["annotations"]["list"]:
        yield one["name"], one["expr"]


def test_the_dashboard_names_metrics_and_labels_that_there_are() -> None:
    found = list(expressions())
    assert len(found) > 30
    assert [(title, wrong) for title, one in found if (wrong := faults(one))] == []


def test_the_dashboard_shows_every_metric_that_changes() -> None:
    shown = {name for _, one in expressions() for name in METRIC_NAME.findall(one)}
    shown |= {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    missing = {metric.name for metric in METRICS} - shown
    # The rest is told by what is shown beside it, or stands in the variables.
    assert missing <= {
        "fep_queue_limit_tasks", "fep_clients_present", "fep_link_state", "fep_link_connections",
        "fep_link_connections_ready", "fep_link_in_flight", "fep_link_failures",
        "fep_link_unmatched_replies_total", "fep_slot_state", "fep_slot_insertions_total",
        "fep_store_waiting", "fep_store_full", "fep_loop_tasks", "fep_build_info",
        "fep_configuration_info",
    }  # fmt: skip


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    places: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places, panel["title"]
        places |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


# -- lnav -------------------------------------------------------------------------------------


def lnav(directory: Path, *arguments: str) -> str:
    """Run lnav without a screen, with our format alone, and return what it prints."""
    formats = directory / "lnav/formats/fep"
    formats.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SHIPPED / "fep.lnav.json", formats / "format.json")
    ran = subprocess.run(
        ["lnav", "-n", "-I", str(directory / "lnav"), *arguments],
        env={"HOME": str(directory), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LNAV_SECONDS_MAX,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return ran.stdout


def queried(directory: Path, sql: str, file: Path) -> list[dict[str, str]]:
    text = lnav(directory, "-c", f";{sql}", "-c", ":write-csv-to -", str(file))
    return list(csv.DictReader(io.StringIO(text)))


LOG = """\
import sys, structlog
from fep import logs
logs.configure(level="debug")
log = structlog.get_logger()
log.info("daemon.started", version="0", banks=2)
with structlog.contextvars.bound_contextvars(bank="pingan", task_id="PAY-001"):
    log.info("task.ended", state="succeeded", seconds=0.41, account="6222000011112222")
    log.warning("task.left_open", state="unknown", cause="付款结果未知")
log.warning("link.lost", link="cmb", reason="connect: refused", failures=1, retry_seconds=0.5)
log.debug("task.offered", task_id="PAY-002", attempt=1)
try:
    raise ValueError("broken")
except ValueError:
    log.exception("lane.crashed", lane="bank:pingan")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Our own log, as the daemon writes it."""
    path = tmp_path / "fep.log"
    ran = subprocess.run(
        [sys.executable, "-c", LOG],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=LNAV_SECONDS_MAX,
    )
    path.write_bytes(ran.stdout)
    assert len(ran.stdout.splitlines()) == 6
    return path


def test_lnav_knows_the_fields_of_our_log(tmp_path: Path, file: Path) -> None:
    rows = queried(
        tmp_path,
        "select log_body, log_level, log_opid, bank, link, seconds, failures, cause from fep_log",
        file,
    )
    assert [(row["log_body"], row["log_level"]) for row in rows] == [
        ("daemon.started", "info"),
        ("task.ended", "info"),
        ("task.left_open", "warning"),
        ("link.lost", "warning"),
        ("task.offered", "debug"),
        ("lane.crashed", "error"),
    ]
    assert [row["log_opid"] for row in rows[1:3]] == ["PAY-001", "PAY-001"]
    assert [row["bank"] for row in rows[1:3]] == ["pingan", "pingan"]
    assert (rows[1]["seconds"], rows[3]["failures"], rows[3]["link"]) == ("0.41", "1", "cmb")
    assert rows[2]["cause"] == "付款结果未知"


def test_lnav_shows_a_line_as_people_read_it(tmp_path: Path, file: Path) -> None:
    lines = lnav(tmp_path, str(file)).splitlines()
    line = next(one for one in lines if "task.left_open" in one)
    for word in ("warning", "pingan", "PAY-001", "unknown", "付款结果未知"):
        assert word in line
    assert any("ValueError: broken" in one for one in lines), "a trace can be read"


async def test_what_a_daemon_serves_is_what_was_checked(start: Start) -> None:
    """The names that the checks above believe in are on a real page."""
    async with start() as rig:
        look = Look(rig.daemon.services, Histogram(LAG_SECONDS))
        text = b"".join(pieces(look, Process(), Writing.TEXT)).decode()
    heads = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in series()} <= heads
