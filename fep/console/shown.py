"""How values look on a page. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, Final

from fep.domain.clock import from_text, to_shanghai

DIGEST_CHARS: Final = 12

TONES: Final[dict[str, str]] = {
    **dict.fromkeys(("ready", "succeeded", "swept", "finished", "cleared", "done"), "good"),
    **dict.fromkeys(("busy", "sending", "sweeping", "asking", "running", "planned"), "busy"),
    **dict.fromkeys(("queued", "offered", "fetched", "nothing", "cancelled", "minor"), "calm"),
    **dict.fromkeys(("rejected", "returned", "failed", "expired", "major", "fault"), "bad"),
    **dict.fromkeys(("no_service", "no_reader", "empty", "wrong_card", "stuck"), "bad"),
    **dict.fromkeys(("unknown", "critical", "raised", "pin_blocked", "backing_off"), "bad"),
    **dict.fromkeys(("refused", "failing"), "bad"),
    "idle": "calm",
}
"""The colours of states; what is not here is on its way or waits for somebody."""


def tone(state: object) -> str:
    """Return the colour of a state."""
    return TONES.get(str(state), "wait")


def amount(value: str | None) -> str:
    """Return an amount in groups of three digits: ``1234567.50`` is ``1,234,567.50``."""
    if value is None:
        return ""
    sign, digits = ("-", value[1:]) if value.startswith("-") else ("", value)
    whole, point, cents = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{cents}" if whole.isdigit() else value


def yuan(fen: int) -> str:
    """Return fen as yuan, in groups of three digits."""
    return f"{'-' if fen < 0 else ''}{abs(fen) // 100:,}.{abs(fen) % 100:02d}"


def moment(value: str | None) -> str:
    """Return a time on a Shanghai clock, to the second."""
    return f"{to_shanghai(from_text(value)):%Y-%m-%d %H:%M:%S}" if value else ""


def exact(value: str | None) -> str:
    """Return a time on a Shanghai clock, to the millisecond."""
    return f"{to_shanghai(from_text(value)):%Y-%m-%d %H:%M:%S.%f}"[:-3] if value else ""


def day(value: str | None) -> str:
    """Return the day of a time in Shanghai."""
    return f"{to_shanghai(from_text(value)):%Y-%m-%d}" if value else ""


def short(value: str | None) -> str:
    """Return the beginning of a digest, enough to find it."""
    return (value or "")[:DIGEST_CHARS]


def days_left(value: str | None, now: dt.datetime) -> int | None:
    """Return for how many whole days a certificate is still good."""
    return None if not value else (from_text(value) - now).days


def pairs(value: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - any JSON value
    """Return the members of an object as text, but for lists, which are tables of their own."""
    if not isinstance(value, Mapping):
        return []
    return [
        (str(name), exact(one) if name in MOMENTS else _plain(one))
        for name, one in value.items()
        if one not in (None, "") and not (isinstance(one, list) and all(map(_is_row, one)))
    ]


def _plain(value: Any) -> str:  # noqa: ANN401 - any JSON value
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _is_row(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, Mapping)


MOMENTS: Final = frozenset({"as_of", "booked_at"})
"""Members of results that are times."""


def listed(result: Any) -> tuple[list[str], list[dict[str, str]]]:  # noqa: ANN401 - any JSON value
    """Return the columns and rows of a result that is a list: a statement's lines, a batch's rows.

    What is inside of a row, as the other side's account and name, is told by its own name.
    """
    if not isinstance(result, Mapping):
        return [], []
    lists = (one for one in result.values() if isinstance(one, list) and all(map(_is_row, one)))
    found = next(lists, [])
    rows: list[dict[str, str]] = []
    for one in found:
        inner = {f"{name}.": part for name, part in one.items() if isinstance(part, Mapping)}
        flat = {name: part for name, part in one.items() if f"{name}." not in inner}
        for name, part in inner.items():
            flat |= {f"{name}{key}": value for key, value in part.items()}
        rows.append(dict(pairs(flat)))
    return list(dict.fromkeys(name for row in rows for name in row)), rows


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "tone": tone,
    "amount": amount,
    "yuan": yuan,
    "moment": moment,
    "exact": exact,
    "day": day,
    "short": short,
    "pairs": pairs,
}
