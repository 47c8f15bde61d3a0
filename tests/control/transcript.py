"""Transcripts of conversations with the daemon: read from ``tests/scripts/*.txt``, and compared.

A line of a transcript::

    # a comment
    -- daemon heartbeat_s=1 --     how the daemon is configured; first of all
    -- connect NAME --             a connection over TCP, or ``-- connect NAME over unix --``, or
                                   ``over keys``: to the listener that takes proofs
    -- NAME --                     go on with this earlier connection
    -- close --                    the client closes it
    -- closed --                   the daemon has closed it
    C: {...}                       the client sends this line
    S: {...}                       the daemon sends a line like this
    C-BYTES: 7b 7d 0a              the client sends these bytes
    C-FILL: 1048577                the client sends so many ``x``, and no line's end
    C-NEST: 100000                 the client sends a request whose params are nested so deep

A line that begins with white space continues the one before it. In what the daemon sends ``"…"``
stands for any value, ``"…":"…"`` for more members, and ``"<name>"`` for a value that differs from
run to run: the same one wherever the name comes again, but for ``<time>``. The client's lines may
use such a name too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

SCRIPTS: Final = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parent.parent / "scripts").glob("*.txt"))
}
"""The transcripts, by name."""
ANY: Final = "…"
PLACE: Final = re.compile(r"<([a-z_]+)>")
FORMS: Final = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00",
    "at": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00",
    "session": r"[0-9a-f]{32}",
    "alarm": r"[0-9a-f]{12}",
    "ref": r"F[0-9A-Z]{19}",
    "available": r"\d+\.\d\d",
    "book": r"\d+\.\d\d",
    "after": r"\d+\.\d\d",
    "configuration": r"[0-9a-f]{12}",
    "certificate": r"[0-9a-f]{64}",
    "digest_sent": r"[0-9a-f]{64}",
    "digest_received": r"[0-9a-f]{64}",
    "server": r"fep \S+",
}
"""What the values of these names look like."""


@attrs.frozen
class Step:
    """One line of a transcript, with its continuations."""

    number: int
    what: str
    """``C``, ``S``, ``C-BYTES``, ``C-FILL``, ``C-NEST`` or ``--``."""
    text: str


def steps(text: str) -> Iterator[Step]:
    """Yield what a transcript says, without its comments."""
    last: Step | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line[:1].isspace():
            assert last is not None, f"line {number} continues nothing"
            last = attrs.evolve(last, text=last.text + line.strip())
            continue
        if last is not None:
            yield last
            last = None
        if not line or line.startswith("#"):
            continue
        if found := re.fullmatch("-- (.*) --", line):
            yield Step(number, "--", found[1])
            continue
        found = re.fullmatch(r"(C|S|C-BYTES|C-FILL|C-NEST):(?: (.*))?", line)
        assert found is not None, f"line {number} is nothing a transcript has: {line}"
        last = Step(number, found[1], found[2] or "")
    if last is not None:
        yield last


def filled_in(text: str, names: dict[str, Any]) -> str:
    """Return a client's line with its names filled in."""
    return PLACE.sub(lambda found: str(names[found[1]]), text)


def differences(expected: Any, got: Any, names: dict[str, Any], where: str = "") -> Iterator[str]:
    """Yield how what came differs from what a transcript says; adds to the names."""
    place = PLACE.fullmatch(expected) if isinstance(expected, str) else None
    if expected == ANY:
        return
    if place is not None:
        name = place[1]
        if not re.fullmatch(FORMS.get(name, ".*"), str(got), re.DOTALL):
            yield f"{where} is {got!r}, which is no {name}"
        if name != "time" and names.setdefault(name, got) != got:
            yield f"{where} is {got!r}, but {name} was {names[name]!r}"
    elif isinstance(expected, dict) and isinstance(got, dict):
        for name in expected.keys() - {ANY} - got.keys():
            yield f"{where}.{name} is missing"
        for name in got.keys() - expected.keys():
            if ANY not in expected:
                yield f"{where}.{name} came too: {got[name]!r}"
        for name in expected.keys() & got.keys():
            yield from differences(expected[name], got[name], names, f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for place_, (one, other) in enumerate(zip(expected, got, strict=True)):
            yield from differences(one, other, names, f"{where}[{place_}]")
    elif type(expected) is not type(got) or expected != got:
        yield f"{where} is {got!r}, not {expected!r}"


def expected_line(text: str) -> Any:
    """Return the value of a line of the daemon, as it stands in a transcript."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        assert len(value) == len(pairs), f"a member twice: {pairs}"
        return value

    return json.loads(text, object_pairs_hook=once)
