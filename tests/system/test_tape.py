"""The wire tape of the real daemon: every byte, whose it was, shown, masked, and read anew."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from fep.adapters import registry, tape
from fep.daemon import main
from fep.sandbox.scene import Scene
from tests.system.plans import plan_of
from tests.system.work import open_tasks, transfer

ADAPTERS = ("pingan_b2bi", "icbc_nc", "cmb_cdc")
"""Numbers on the wire; answers by their order; all of it hidden."""


@pytest.fixture(scope="module")
def taped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a daemon that has worked and ended, its tapes written."""
    directory = tmp_path_factory.mktemp("tape")
    plans = tuple(plan_of(name, place) for place, name in enumerate(ADAPTERS, 1))
    with Scene(directory, banks=plans, accounts_per_bank=2) as scene:
        scene.tape = True
        scene.start_hosts("unknown_after_booking=0.5")
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
            for plan in plans:
                payer, payee = [one for one in scene.accounts if one.bank == plan.name]
                for number in range(3):
                    body = transfer(scene, payer, payee, f"{number + 1}.00")
                    operator.submit(f"{plan.name}-{number}", plan.name, "transfer", body)
                body = {"kind": "balance", "params": {"account": payer.number}}
                operator.submit(f"{plan.name}-balance", plan.name, "balance", body)
            scene.wait(operator, lambda c: open_tasks(c) == 0, "every task closed")
        scene.stop_daemon()
    return directory


def decoded(
    directory: Path, adapter: str, capsys: pytest.CaptureFixture[str], *more: str
) -> list[dict[str, Any]]:
    name = adapter.replace("_", "-")
    file = directory / "state/tape" / f"{name}.tape"
    config = ["--config", str(directory / "fep.toml"), "--bank", name]
    assert main.main(["decode", adapter, str(file), *config, *more]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return [json.loads(line) for line in shown.out.splitlines()]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_task_s_requests_and_answers_are_on_the_tape(
    taped: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = adapter.replace("_", "-")
    found = decoded(taped, adapter, capsys)
    assert not [one for one in found if "garbage" in one]
    frames = [one for one in found if "role" in one]
    for number in range(3):
        mine = [one for one in frames if one["task"] == f"{name}-{number}"]
        assert [one["role"] for one in mine][:2] == ["request", "answer"]
        assert (
            sum(one["trade"] == mine[0]["trade"] for one in mine if one["role"] == "request") == 1
        )
    asked, told = [one for one in frames if one["task"] == f"{name}-balance"]
    assert (asked["direction"], told["direction"]) == ("sent", "received")
    assert asked["trade"] == told["trade"]
    assert any(one["task"] == "" for one in frames), "the heartbeats are nobody's"
    assert [one["at"] for one in found] == sorted(one["at"] for one in found)
    assert {"opened", "closed"} <= {one.get("what") for one in found}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_leaves_the_house_has_no_account_in_it(
    taped: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ADAPTERS.index(adapter) + 1
    numbers = [f"99990000{place:04d}{one:02d}" for one in (1, 2)]
    plain = json.dumps(decoded(taped, adapter, capsys))
    masked = json.dumps(decoded(taped, adapter, capsys, "--masked"))
    for number in numbers:
        assert number in plain
        assert number not in masked
        assert f"{number[:4]}****{number[-4:]}" in masked
    for secret in registry.quality(adapter).example.secrets.values():
        assert secret not in plain


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_tape_is_read_anew_without_a_difference(
    taped: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = adapter.replace("_", "-")
    file = taped / "state/tape" / f"{name}.tape"
    command = ["replay", "--config", str(taped / "fep.toml"), "--tape", str(file), "--json"]
    assert main.main(command) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["different"] == 0
    by_task: dict[str, list[dict[str, Any]]] = {}
    for one in value["messages_read"]:
        by_task.setdefault(one["task_id"], []).append(one)
    assert set(by_task) == {f"{name}-{one}" for one in (0, 1, 2, "balance")}
    [balance] = by_task[f"{name}-balance"]
    assert balance["kind"] == "query's answer"
    assert balance["now"].startswith("answered "), balance
    assert any(
        one["then"] not in {"nothing noted", ""} and one["then"] == one["now"]
        for one in by_task[f"{name}-0"]
    )
    assert main.main(["replay", "--config", str(taped / "fep.toml"), "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["different"] == 0


def test_another_bank_s_tape_and_a_wrong_use_are_told(
    taped: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = ["--config", str(taped / "fep.toml")]
    stranger = tmp_path / "x.tape"
    stranger.write_bytes(tape.head_line("nobody", "cmb_xml"))
    assert main.main(["replay", *config, "--tape", str(stranger)]) == 2
    assert "is not configured" in capsys.readouterr().err
    assert main.main(["replay", *config, "--tape", str(stranger), "--all"]) == 2
    assert "--tape FILE" in capsys.readouterr().err
    assert main.main(["decode", "cmb_xml", str(stranger), *config, "--bank", "icbc-nc"]) == 1
    assert "has adapter icbc_nc" in capsys.readouterr().err


def test_what_is_not_on_a_tape_is_no_answer_that_reads_as_it_did(
    taped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = taped / "state/tape" / "cmb-cdc.tape"
    command = ["replay", "--config", str(taped / "fep.toml"), "--tape"]
    assert main.main([*command, str(file), "cmb-cdc-0"]) == 0
    assert "nothing differs" in capsys.readouterr().out
    # Of another bank's tape, and of none.
    for task_id in ("icbc-nc-0", "NOBODY"):
        assert main.main([*command, str(file), task_id]) == 2
        told = capsys.readouterr()
        assert told.err == f"fep: NO_REPLAY: no answer of task {task_id} is on this tape\n"
        assert told.out == ""


@pytest.mark.parametrize("data", [b"", b"<bare>capture</bare>", b'{"what": "frame"}\n'])
def test_a_file_that_is_no_tape_is_told(
    taped: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, data: bytes
) -> None:
    file = tmp_path / "capture"
    file.write_bytes(data)
    config = ["--config", str(taped / "fep.toml")]
    assert main.main(["replay", *config, "--tape", str(file)]) == 2
    assert capsys.readouterr().err == f"fep: NO_REPLAY: {file} is no wire tape\n"


def test_only_its_owner_can_read_a_tape(taped: Path) -> None:
    for file in (taped / "state/tape").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((taped / "state/tape").stat().st_mode) == 0o700
