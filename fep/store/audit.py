"""The record of what people did (审计), kept in the event log, so that the hash chain covers it.

An act has two rows: ``asked``, on disk before anything is done, and then ``done`` or ``refused``,
which names the first one's place. A first row alone is an act in which the daemon was stopped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Final

import attrs
import orjson
import sqlalchemy as sa

from fep.domain.clock import to_text
from fep.store import chain
from fep.store.schema import task_event

ACT: Final = "act"
"""The event's name; its ``task_seq`` is 0."""
ASKED, DONE, REFUSED = "asked", "done", "refused"
VALUE_CHARS_MAX: Final = 2000
ANSWERS_LOOKED_AT: Final = 64
"""Rows above a page that may hold the answers to acts asked on it."""


@attrs.frozen
class Doer:
    """Who does something, and from where."""

    name: str
    role: str
    origin: str
    """Such as ``console 127.0.0.1`` or ``unix uid 0``."""


@attrs.frozen
class Entry:
    """What is recorded of an act."""

    doer: Doer
    what: str
    """The method of the control protocol, or what the console itself does."""
    about: Mapping[str, Any]
    """Its parameters, without secrets."""


def ask(connection: sa.Connection, entry: Entry, at: dt.datetime, configuration: str) -> int:
    """Record that somebody asks for something; returns the row's place."""
    return _note(connection, entry, ASKED, at, configuration, {})


def answer(
    connection: sa.Connection,
    entry: Entry,
    at: dt.datetime,
    configuration: str,
    *,
    asked: int = 0,
    refusal: str = "",
) -> None:
    """Record how it ended.

    Args:
        connection: the writer's.
        entry: what was asked.
        at: now.
        configuration: the digest in force.
        asked: the place of the row that asked; 0: this row alone tells of the act.
        refusal: why it was not done; empty: it was.
    """
    more: dict[str, Any] = {"asked": asked} if asked else {}
    if refusal:
        more["refusal"] = refusal[:VALUE_CHARS_MAX]
    _note(connection, entry, REFUSED if refusal else DONE, at, configuration, more)


def _note(
    connection: sa.Connection,
    entry: Entry,
    state: str,
    at: dt.datetime,
    configuration: str,
    more: Mapping[str, Any],
) -> int:
    doer = entry.doer
    about = {name: _short(value) for name, value in entry.about.items()}
    told = " ".join(f"{name}={value}" for name, value in about.items())
    cause = f"{doer.name} ({doer.role}, {doer.origin}): {entry.what} {told}".rstrip()
    detail = {**attrs.asdict(doer), "what": entry.what, "about": about, **more}
    row = sa.insert(task_event).values(
        task_seq=0,
        at=to_text(at),
        event=ACT,
        state=state,
        cause=_clean(cause),
        configuration=configuration,
        digest="",
        detail=orjson.dumps(detail, default=str).decode(),
    )
    return int(connection.execute(row.returning(task_event.c.seq)).scalar_one())


def _short(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return _clean(value)[:VALUE_CHARS_MAX] if isinstance(value, str) else value


def _clean(text: str) -> str:
    """Return the text as both databases take it: no NUL, no half of a character."""
    return chain.kept_text(text).encode("utf-8", "replace").decode()


def page(
    connection: sa.Connection, *, limit: int, before: int | None = None, who: str = ""
) -> tuple[list[dict[str, Any]], int | None]:
    """Return what people did, newest first, and the ``before`` of the next page.

    What was asked is shown with its answer; by itself only where there is none.
    """
    of_people = sa.and_(task_event.c.task_seq == 0, task_event.c.event == ACT)
    query = sa.select(task_event).where(of_people).order_by(task_event.c.seq.desc())
    if who:
        mark = orjson.dumps(who).decode()
        query = query.where(task_event.c.detail.startswith(f'{{"name":{mark},', autoescape=True))
    answered: set[int] = set()
    if before is not None:
        above = (
            sa.select(task_event.c.detail)
            .where(of_people, task_event.c.seq >= before)
            .order_by(task_event.c.seq)
            .limit(ANSWERS_LOOKED_AT)
        )
        answered |= {_detail(text).get("asked", 0) for text in connection.scalars(above)}
        query = query.where(task_event.c.seq < before)
    shown: list[dict[str, Any]] = []
    last = 0
    for row in connection.execute(query.limit(2 * limit + 1)):
        if len(shown) == limit:
            return shown, last
        detail = _detail(row.detail)
        answered.add(detail.pop("asked", 0))
        last = row.seq
        if row.state == ASKED and row.seq in answered:
            continue
        shown.append({"seq": row.seq, "at": row.at, "outcome": row.state, **detail})
    return shown, None


def _detail(text: str) -> dict[str, Any]:
    found = orjson.loads(text)
    return found if isinstance(found, dict) else {}
