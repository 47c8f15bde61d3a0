"""What an adapter's codec costs: a balance pair, and a statement page of 500 lines.

``python -m bench.adapters [--rounds N] [--adapters NAME,...]``. The pages come from the adapters'
own simulated banks. Beside each stands lxml's bare parse of the same XML, in the same round and in
a shuffled order; the ratio is taken inside the round. The last line is one JSON object by adapter:
``balance_us`` (request made and sealed, answer read, one pair), ``statement_us`` (the page read to
lines), ``lxml_us`` (the bare parse of that page), ``to_lxml`` (the median of their ratios) and
``lines``.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from lxml import etree

from fep.adapters import registry
from fep.adapters.api import Accepted
from fep.domain.money import Cny
from fep.domain.order import BalanceQuery, Kind, Statement, StatementQuery
from fep.sandbox.conformance import DAY, ORDER, OURS, Bank, Rig

LINES: Final = 500
PAIRS: Final = 200
"""Balance pairs timed at once."""
PAGE_SIZES: Final = {
    "boc_b2e": ("ROWS_MAX",),
    "ccb_wlpt": ("ROWS_PER_PAGE",),
    "cib_fox": ("ROWS_PER_PAGE",),
    "cmb_cdc": ("ROWS_MAX",),
    "icbc_nc": ("ROWS_PER_PAGE",),
    "iso20022": ("ROWS_MAX",),
    "pingan_b2bi": ("TODAY_ROWS",),
}
"""What in the simulated banks keeps a page short; they are made long for this."""
CARD: Final = {"statement": {"rows_per_page": LINES}}


@attrs.frozen
class Subject:
    """One adapter with what is measured of it."""

    name: str
    pair: Callable[[], object]
    page: Callable[[], object] | None
    parse: Callable[[], object] | None
    """None where the page is no XML."""


def subject(name: str, directory: Path) -> tuple[Subject, Any]:
    """Return what is measured, and what keeps its simulated bank open."""
    for constant in PAGE_SIZES.get(name, ()):
        vars(importlib.import_module(f"bank_adapters.{name}.host"))[constant] = LINES
    adapter = registry.adapter(name)
    rig = Rig(directory, adapter, registry.host(name), registry.quality(name).example)
    rig.card = attrs.evolve(
        rig.card, statement=attrs.evolve(rig.card.statement, rows_per_page=LINES)
    )
    rig.codec = rig.open()
    context = rig.bank()
    bank = context.__enter__()
    bank.sign_on()
    query = BalanceQuery(OURS)
    _, answer = bank.answer(query)

    def pair() -> object:
        found = []
        for _ in range(PAIRS):
            draft = rig.draft(query)
            rig.codec.seal(draft, None)
            [reply] = rig.codec.framer().receive_data(answer)
            found.append(rig.codec.outcome(query, reply))
        assert all(isinstance(one, Accepted) for one in found)
        return found

    page = parse = None
    if Kind.STATEMENT in adapter.capabilities:
        page, parse = _page(rig, bank)
    return Subject(name, pair, page, parse), context


def _page(rig: Rig, bank: Bank) -> tuple[Callable[[], object], Callable[[], object] | None]:
    for number in range(LINES):
        bank.replies(attrs.evolve(ORDER, amount=Cny(100 + number)), number)
    query = StatementQuery(OURS, DAY, DAY)
    _, answer = bank.answer(query)
    xml = _xml_of(answer)

    def page() -> object:
        [reply] = rig.codec.framer().receive_data(answer)
        found = rig.codec.outcome(query, reply)
        assert isinstance(found, Accepted), found
        assert isinstance(found.result, Statement)
        assert len(found.result.entries) == LINES, len(found.result.entries)
        return found

    return page, None if xml is None else lambda: etree.fromstring(xml)


def _xml_of(answer: bytes) -> bytes | None:
    """Return the XML of an answer as the bank wrote it, None where it is none."""
    if b"reqData=" in answer:
        return base64.b64decode(answer.partition(b"reqData=")[2])
    begin = answer.find(b"<?xml")
    return None if begin < 0 else answer[begin : answer.rindex(b">") + 1]


def _timed(run: Callable[[], object]) -> float:
    """Return how many microseconds of processor time a call takes, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="make bench-adapters", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--adapters", default="", metavar="NAME,...", help="all by default")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    names = given.adapters.split(",") if given.adapters else registry.names()
    rng = random.Random(given.seed)
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory(prefix="fep-bench-") as place:
        subjects = []
        for name in names:
            directory = Path(place) / name
            directory.mkdir()
            subjects.append(subject(name, directory))
        for _ in range(given.rounds):
            for one, _context in rng.sample(subjects, len(subjects)):
                figures = seen[one.name]
                figures.setdefault("balance_us", []).append(_timed(one.pair) / PAIRS)
                if one.page is None:
                    continue
                if one.parse is None:
                    figures.setdefault("statement_us", []).append(_timed(one.page))
                    continue
                both = [("statement_us", one.page), ("lxml_us", one.parse)]
                told = {what: _timed(run) for what, run in rng.sample(both, 2)}
                for what, us in told.items():
                    figures.setdefault(what, []).append(us)
                ratio = told["statement_us"] / told["lxml_us"]
                figures.setdefault("to_lxml", []).append(ratio)
        for _one, context in subjects:
            context.__exit__(None, None, None)
    result = {
        name: {what: round(statistics.median(all_), 1) for what, all_ in figures.items()}
        | ({"lines": LINES} if "to_lxml" in figures else {})
        for name, figures in seen.items()
    }
    columns = ("balance_us", "statement_us", "lxml_us", "to_lxml")
    print(f"{'adapter':<14}" + "".join(f"{name:>14}" for name in columns))
    for name, row in result.items():
        print(f"{name:<14}" + "".join(f"{row.get(column, ''):>14}" for column in columns))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
