"""The page as bytes: pieces that are small, and states that may change between them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from fep.domain.histogram import LAG_SECONDS, Histogram
from fep.domain.ids import BankName, TaskId
from fep.domain.order import Kind
from fep.metrics.catalogue import METRICS, Look
from fep.metrics.page import PIECE_LINES, Process, Writing, pieces, writing
from fep.tasks.figures import Exchange, Figures
from fep.tasks.state import State
from tests.control.conftest import Start
from tests.control.rig import BANK

ROOT = Path(__file__).resolve().parent.parent.parent
HISTOGRAM_LINES = 16


def busy(figures: Figures, banks: int) -> None:
    """Count something of every kind and end, at so many banks."""
    for bank in (BankName(f"bank-{number}") for number in range(banks)):
        for kind in Kind:
            for how in Exchange:
                figures.note_exchange(bank, kind.value, how, 0.1, TaskId("T"))
            for state in (State.SUCCEEDED, State.REJECTED, State.EXPIRED):
                figures.note_end(bank, kind, state, 1.0)


async def test_a_page_comes_in_pieces_that_are_small(start: Start) -> None:
    async with start() as rig:
        busy(rig.daemon.tasks.figures, 9)
        look = Look(rig.daemon.services, Histogram(LAG_SECONDS))
        sizes = [len(one.splitlines()) for one in pieces(look, Process(), Writing.TEXT)]
        assert sum(sizes) > 8000
        assert max(sizes) <= PIECE_LINES + HISTOGRAM_LINES


async def test_work_goes_on_between_two_pieces(start: Start) -> None:
    async with start() as rig:
        figures = rig.daemon.tasks.figures
        busy(figures, 9)
        look = Look(rig.daemon.services, Histogram(LAG_SECONDS))
        parts = []
        for number, piece in enumerate(pieces(look, Process(), Writing.TEXT)):
            parts.append(piece)
            figures.note_end(BankName(f"new-{number}"), Kind.BALANCE, State.FAILED, 1.0)
            figures.note_exchange(BankName(f"new-{number}"), "x", Exchange.LOST, 1.0, None)
            rig.daemon.links.pop(BankName(BANK.name), None)
        text = b"".join(parts).decode()
        assert list(parser.text_string_to_metric_families(text))


@pytest.mark.parametrize("how", Writing)
async def test_no_name_can_break_the_page(start: Start, how: Writing) -> None:
    async with start() as rig:
        wild = 'a"b\\c\nd, 银行'
        figures = rig.daemon.tasks.figures
        figures.note_exchange(BankName(wild), "transfer", Exchange.ANSWERED, 0.1, TaskId("T-1"))
        look = Look(rig.daemon.services, Histogram(LAG_SECONDS))
        text = b"".join(pieces(look, Process(), how)).decode()
        read = openmetrics if how.is_open else parser
        found = {one.name: one for one in read.text_string_to_metric_families(text)}
        samples = found["fep_bank_request_duration_seconds"].samples
        assert {one.labels["bank"] for one in samples} == {wild}
        examples = [one.exemplar.labels for one in samples if one.exemplar]
        assert examples == ([{"task_id": "T-1"}] if how.is_open else [])


def test_a_scraper_gets_what_it_reads() -> None:
    # What Prometheus 2 and 3 send.
    two = (
        "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    )
    assert writing(two) is Writing.OPEN_METRICS
    for accept in ("", "*/*", "text/plain", "text/html,application/xhtml+xml"):
        assert writing(accept) is Writing.TEXT


def test_the_document_has_every_metric_as_the_code_has_it() -> None:
    text = (ROOT / "docs/metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `(fep_\w+)` \| (\w+) \| (.*?) \| (.+?) \|$", text, re.MULTILINE)
    listed = [
        (name, form, re.findall(r"`(\w+)`", labels), told) for name, form, labels, told in rows
    ]
    assert listed == [
        (one.name, one.form.value, list(one.labels), one.help.replace("|", "\\|"))
        for one in METRICS
    ]
