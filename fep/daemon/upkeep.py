"""The commands that look after the store: verify-store, backup, restore, archive, replay.

Each works on the files, beside a running daemon or without one (``restore`` only without). Nothing
of the daemon is asked, so they also work when it is down.
"""

from __future__ import annotations

import argparse
import datetime as dt
import errno
import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa

from fep.adapters import tape as tapes
from fep.control import show
from fep.daemon.config import Config, ConfigFaultsError, load
from fep.daemon.replay import Difference, NoReplayError, Replay
from fep.daemon.replay import Report as ReplayReport
from fep.daemon.replay import opened as opened_replay
from fep.daemon.store_section import StoreConfig, database_of
from fep.daemon.verify import Report, UnreadableStoreError, reaching, verify, verify_shared
from fep.domain.clock import SHANGHAI, SystemClock, from_text, to_shanghai
from fep.domain.errors import FepError
from fep.domain.order import MOVES_MONEY
from fep.machines.store import put_all_out
from fep.store import archive, backup, files, schema
from fep.tasks.state import FINAL, State
from fep.tasks.store import ACKNOWLEDGED

ARCHIVE_LOCK_FILE: Final = "archive.lock"
WATCH_DAYS_MIN: Final = 30
"""A payment that was done stays in the store for so long at least: it may still come back."""
LINE_SECONDS: Final = 10.0
"""Where no terminal shows progress, a line says how far it is so often."""
FINDINGS_SHOWN_MAX: Final = 200


class NotSoundError(FepError):
    """A copy of the store is not sound; it was thrown away."""

    code = "NOT_SOUND"


class SharedStoreError(FepError):
    """The store is a database that several machines share: the command is not for it."""

    code = "STORE_SHARED"


class StateHeldError(FepError):
    """Another process holds what this command needs for itself."""

    code = "STATE_HELD"


def verify_store(given: argparse.Namespace) -> int:
    """``fep verify-store``: 0 when the store is sound."""
    return _run(given, _verify_store)


def back_up(given: argparse.Namespace) -> int:
    """``fep backup``: 0 when the copy is there and sound."""
    return _run(given, _back_up)


def restore(given: argparse.Namespace) -> int:
    """``fep restore``: 0 when the copy is in the place of the store."""
    return _run(given, _restore)


def archive_tasks(given: argparse.Namespace) -> int:
    """``fep archive``: 0 when all that is over and old enough is in the archives."""
    return _run(given, _archive)


def replay(given: argparse.Namespace) -> int:
    """``fep replay``: 0 when nothing differs, 1 when something does, 2 when it can't be said."""
    if given.tape is not None and not given.all and not given.since:
        return _run(given, _replay_tape, failed=2)
    if given.tape or (given.task_id is None) != given.all or (given.since and not given.all):
        words = "give either ID, or --all [--since YYYY-MM-DD], or --tape FILE [ID]"
        print(f"fep replay: {words}", file=sys.stderr)
        return 2
    return _run(given, _replay_all if given.all else _replay_one, failed=2)


def _run(
    given: argparse.Namespace, command: Callable[[argparse.Namespace], int], failed: int = 1
) -> int:
    os.umask(0o077)
    try:
        return command(given)
    except ConfigFaultsError as error:
        told = str(error)
    except FepError as error:
        told = f"fep: {error.code}: {error}"
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        told = f"fep: {_told(error)}"
    except BrokenPipeError:
        # Of who reads what is printed, which is no matter of the store.
        raise
    except OSError as error:
        full = "; free space and run it again" if error.errno == errno.ENOSPC else ""
        told = f"fep: {error.strerror}: {error.filename or ''}{full}"
    print(show.clean(told), file=sys.stderr)
    return failed


def _told(error: Exception) -> str:
    origin = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    code = getattr(origin, "sqlite_errorcode", 0)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        # There was no room for SQLite's own file beside the store.
        code = sqlite3.SQLITE_FULL
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "the disk is full; free space and run it again, nothing that was stored is lost"
        case sqlite3.SQLITE_BUSY:
            return (
                "the daemon leaves no room for this now; run it again when less is going on,"
                " what is done stays done"
            )
        case _:
            name = getattr(origin, "sqlite_errorname", type(origin).__name__)
            return f"{origin} ({name}); check the disk, and run fep verify-store"


# -- verify-store -----------------------------------------------------------------------------


def _verify_store(given: argparse.Namespace) -> int:
    config = load(given.config) if given.path is None else None
    with _progress("verify-store") as tell:
        report = _looked_at(given, config, tell)
    _answer(given, report.value(), partial(_show, report))
    return int(not report.sound)


def _looked_at(given: argparse.Namespace, config: Config | None, tell: Tell) -> Report:
    if config is None:
        return verify(given.path, full=given.full, head=given.head, progress=tell)
    enterprise = config.enterprise.id
    if config.store is not None:
        database = database_of(config.store, config.enterprise.fep_number)
        return verify_shared(database, enterprise=enterprise, head=given.head, progress=tell)
    path = config.state_dir / files.STORE_FILE
    return verify(path, full=given.full, enterprise=enterprise, head=given.head, progress=tell)


def _show(report: Report) -> None:
    for note in report.notes:
        print(show.clean(note))
    for finding in report.findings[:FINDINGS_SHOWN_MAX]:
        print(show.clean(str(finding)))
    print(f"{'checked 检查':<18} {'looked at 数量':>12} {'wrong 问题':>10}")
    for check in report.checks.values():
        print(f"{check.name:<20} {check.looked_at:>14} {check.wrong:>12}")
    print(f"head of the chain 链头: {report.head}")
    word = "sound 完好" if report.sound else "NOT SOUND 有问题"
    print(f"{report.path}: {word} ({report.seconds:.1f} s)")


# -- backup and restore -----------------------------------------------------------------------


def _back_up(given: argparse.Namespace) -> int:
    config = load(given.config)
    now = SystemClock().now()
    target: Path = given.target
    if config.store is not None:
        address = database_of(config.store, config.enterprise.fep_number).address
        msg = (
            "this store is a PostgreSQL database; back it up with its own tools:"
            f" pg_dump --format=custom --file={target} '{address}'"
        )
        raise SharedStoreError(msg)
    if target.is_dir():
        target /= f"fep-{now.astimezone(SHANGHAI):%Y%m%d-%H%M%S}.sqlite"
    seen: list[Report] = []
    with _progress("backup") as tell:
        backup.back_up(
            config.state_dir / files.STORE_FILE,
            target,
            now,
            lambda path: seen.append(_checked(path, config, tell)),
            partial(tell, "copying, pages"),
            replace=given.force,
        )
    size, head = target.stat().st_size, str(seen[0].head)
    value = {"backup": str(target), "bytes": size, "head": head, "notes": seen[0].notes}
    words = f"{target}: {size} bytes, sound 完好; head of the chain 链头: {head}"
    _answer(given, value, lambda: print(show.clean("\n".join([*seen[0].notes, words]))))
    return 0


def _checked(path: Path, config: Config, tell: Tell) -> Report:
    """Look at a copy before it is put in its place.

    Raises:
        NotSoundError: something in it is wrong, and so it is in what it was made of.
    """
    report = verify(
        path,
        archives=config.state_dir,
        are_whole=False,
        enterprise=config.enterprise.id,
        progress=tell,
    )
    if not report.sound:
        told = "\n".join(str(one) for one in report.findings[:FINDINGS_SHOWN_MAX])
        msg = f"the copy was made, and it is not sound; it was thrown away:\n{told}"
        raise NotSoundError(msg)
    return report


RESTORED: Final = """\
{place}: restored 已恢复; the store that was there is kept as {former}
This file does not know what was sent after {taken_at}.
Start the daemon: it asks and answers, and sends no payment. Then:
  fepctl restored             what waits, with our references
  fepctl release --evidence …  when it was compared with the banks' statements"""


def _restore(given: argparse.Namespace) -> int:
    config = load(given.config)
    if config.store is not None:
        return _restore_shared(given, config, config.store)
    if given.backup is None:
        raise UnreadableStoreError("say which file that fep backup made is to be restored")
    with (
        _held(config.state_dir / files.LOCK_FILE, "the daemon runs; stop it first"),
        _held(config.state_dir / ARCHIVE_LOCK_FILE, "fep archive runs; wait for its end"),
    ):
        with _progress("restore") as tell:
            former = backup.restore(
                given.backup,
                config.state_dir,
                SystemClock().now(),
                lambda path: _checked(path, config, tell),
                partial(tell, "copying, pages"),
            )
        place = config.state_dir / files.STORE_FILE
        with files.reading(place) as connection:
            taken_at = connection.execute(_TAKEN_AT).scalar_one()
    value = {"store": str(place), "former": str(former), "taken_at": taken_at}
    _answer(
        given,
        value,
        lambda: print(_told_of(RESTORED, place=place, former=former, taken_at=taken_at)),
    )
    return 0


MARKED: Final = """\
{store}: marked as restored 已标记为恢复
This database does not know what was sent after {taken_at}.
Start the daemons: they ask and answer, and send no payment. Then, on one of them:
  fepctl restored             what waits, with our references
  fepctl release --evidence …  when it was compared with the banks' statements"""


def _restore_shared(given: argparse.Namespace, config: Config, store: StoreConfig) -> int:
    """Mark a database that its own tools have put back: no payment leaves until a person looked."""
    database = database_of(store, config.enterprise.fep_number)
    if given.backup is not None:
        msg = (
            "this store is a PostgreSQL database. Stop fep on all machines; put it back with its"
            " own tools, such as: pg_restore --clean --if-exists --single-transaction"
            f" --dbname='{database.address}' {given.backup} ; then run fep restore without a file"
        )
        raise SharedStoreError(msg)
    with reaching(database) as connection:
        driver: Any = connection.connection.dbapi_connection
        database.execute(driver, database.begin)
        if alive := schema.alive(connection):
            msg = f"machines run on this store: {', '.join(alive)}; stop fep on all of them first"
            raise StateHeldError(msg)
        backup.mark_restored(connection, SystemClock().now())
        put_all_out(connection)
        taken_at = connection.execute(_TAKEN_AT).scalar_one()
        database.commit(driver)
    value = {"store": database.address, "former": None, "taken_at": taken_at}
    _answer(
        given, value, lambda: print(_told_of(MARKED, store=database.address, taken_at=taken_at))
    )
    return 0


def _told_of(words: str, *, taken_at: str, **told: object) -> str:
    """Say it to a person, with the bank's time as on all other screens."""
    return words.format(taken_at=f"{to_shanghai(from_text(taken_at)):%Y-%m-%d %H:%M:%S}", **told)


_TAKEN_AT: Final = sa.select(sa.func.min(schema.restored.c.taken_at)).where(
    schema.restored.c.released_at.is_(None)
)


# -- archive ----------------------------------------------------------------------------------


def _archive(given: argparse.Namespace) -> int:
    config, now = load(given.config), SystemClock().now()
    if config.store is not None:
        msg = (
            "archives are files beside a store that is a file; a PostgreSQL database keeps all"
            " tasks: give it room, or partitions of its own"
        )
        raise SharedStoreError(msg)
    before = dt.datetime.combine(given.before, dt.time(), SHANGHAI)
    if before > now:
        msg = f"--before {given.before} is not over yet"
        raise StateHeldError(msg)
    # Days are counted whole, by banks in Shanghai and by us in UTC.
    watch = max(WATCH_DAYS_MIN, *(bank.card.returned.watch_days + 1 for bank in config.banks))
    over = archive.Over(
        states=sorted(state.value for state in FINAL),
        acknowledged=ACKNOWLEDGED,
        before=before,
        watched_state=State.SUCCEEDED.value,
        watched_kinds=sorted(kind.value for kind in MOVES_MONEY),
        watched_before=now - dt.timedelta(days=watch),
    )
    place = config.state_dir / files.STORE_FILE
    with (
        _held(config.state_dir / ARCHIVE_LOCK_FILE, "another fep archive runs"),
        _progress("archive") as tell,
        files.writing(_there(place)) as store,
    ):
        if (version := schema.version_of(store)) != schema.VERSION:
            msg = f"{place} has version {version}; start this release's daemon once"
            raise UnreadableStoreError(msg)
        moved = archive.move(
            store,
            config.state_dir,
            over,
            now,
            f"fep archive --before {given.before}",
            lambda year, count: tell(f"moved to {files.archive_name(year)}", count, 0),
        )
    value = {"archived": {files.archive_name(year): count for year, count in moved.items()}}
    _answer(given, value, lambda: print(_archived_words(value["archived"])))
    return 0


def _archived_words(moved: dict[str, int]) -> str:
    lines = [f"{name}: {count} tasks moved 已归档" for name, count in moved.items()]
    return "\n".join(lines) or "nothing to archive 没有可归档的任务"


# -- replay -----------------------------------------------------------------------------------


def _replay_one(given: argparse.Namespace) -> int:
    with _replayed(given) as made:
        task, readings = made.one(given.task_id)
        differs = any(one.differs for one in readings)
        value = {
            "task_id": task.task_id,
            "bank": task.bank,
            "adapter": made.report.adapters[task.bank],
            "state": task.state.value,
            "messages": [one.value() for one in readings],
            "differs": differs,
        }
    _answer(given, value, lambda: _show_readings(value))
    return int(differs)


def _show_readings(value: dict[str, Any]) -> None:
    task_id, adapter = value["task_id"], value["adapter"]
    print(show.clean(f"{task_id}: {value['state']}, bank {value['bank']} ({adapter})"))
    for one in value["messages"]:
        steps = ", ".join(one["events"]) or "no step"
        print(show.clean(f"{one['at']}  {one['kind']:<12} {one['bytes']} bytes  {steps}"))
        print(show.clean(f"    then 当时: {one['then']}\n    now  现在: {one['now']}"))
        for change in one["changes"]:
            print(show.clean(f"    {change}"))
    print(f"{len(value['messages'])} messages: {_verdict(differs=value['differs'])}")


def _replay_all(given: argparse.Namespace) -> int:
    with _replayed(given) as made:

        def found(one: Difference) -> None:
            if not given.json:
                show.line(str(one))

        with _progress("replay") as tell:
            made.all(given.since, found, tell)
        report = made.report
    _answer(given, report.value(), partial(_show_replay, report))
    return int(report.different > 0)


def _replay_tape(given: argparse.Namespace) -> int:
    data = given.tape.read_bytes()
    if not tapes.is_tape(data):
        msg = f"{given.tape} is no wire tape"
        raise NoReplayError(msg)
    tape = tapes.read(data)
    with _replayed(given) as made:

        def found(one: Difference) -> None:
            if not given.json:
                show.line(str(one))

        readings = made.tape(tape, given.task_id or "", found)
        report = made.report
        if tape.left_out:
            report.notes.append(f"{tape.left_out} lines of the tape can't be read")
    messages = [{"task_id": whose, **one.value()} for whose, one in readings]
    value = report.value() | {"tape": str(given.tape), "bank": tape.bank, "messages_read": messages}
    _answer(given, value, partial(_show_tape, report, messages))
    return int(report.different > 0)


def _show_tape(report: ReplayReport, messages: list[dict[str, Any]]) -> None:
    for note in report.notes:
        print(show.clean(note))
    for why, count in report.skipped.items():
        print(show.clean(f"left out 未回放: {count}, {why}"))
    for one in messages:
        print(show.clean(f"{one['at']}  {one['task_id']}  {one['kind']}  {one['bytes']} bytes"))
        print(show.clean(f"    then 当时: {one['then']}\n    now  现在: {one['now']}"))
    print(f"{len(messages)} answers: {_verdict(differs=report.different > 0)}")


def _show_replay(report: ReplayReport) -> None:
    for note in report.notes:
        print(show.clean(note))
    for why, count in report.skipped.items():
        print(show.clean(f"left out 未回放: {count}, {why}"))
    for bank, adapter in report.adapters.items():
        print(show.clean(f"bank {bank}: {adapter}"))
    for kind, count in report.counts.items():
        print(f"{kind:<20} {count:>12}")
    print(
        f"{report.path}: {report.tasks} tasks, {report.different} differences;"
        f" {_verdict(differs=report.different > 0)} ({report.seconds:.1f} s)"
    )


def _verdict(*, differs: bool) -> str:
    return "READ OTHERWISE 有差异" if differs else "nothing differs 无差异"


@contextmanager
def _replayed(given: argparse.Namespace) -> Iterator[Replay]:
    config = load(given.config)
    if config.store is not None and given.store is None:
        # A file in the state directory is of the time before, and says nothing of the database.
        msg = (
            "this store is a PostgreSQL database, and fep replay reads files; say --store FILE to"
            " replay one"
        )
        raise SharedStoreError(msg)
    path: Path = given.store or config.state_dir / files.STORE_FILE
    with ExitStack() as stack:
        yield opened_replay(stack, config, _there(path))


# -- inside -----------------------------------------------------------------------------------

Tell = Callable[[str, int, int], None]


def _there(place: Path) -> Path:
    if place.is_dir():
        raise UnreadableStoreError(files.told_of_folder(place))
    if not place.is_file():
        msg = f"there is no store {place}"
        raise UnreadableStoreError(msg)
    return place


def _answer(given: argparse.Namespace, value: dict[str, Any], draw: Callable[[], None]) -> None:
    if given.json:
        print(orjson.dumps(value).decode())
    else:
        draw()


@contextmanager
def _held(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock file for the block.

    Raises:
        StateHeldError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{path.parent}: {otherwise}"
            raise StateHeldError(msg) from error
        files.give_to_owner(path, path.parent)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _progress(name: str) -> Iterator[Tell]:
    """Show how far a command is: a changing line on a terminal, else a line now and then."""
    said_at = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal said_at
        line = f"{name}: {what} {done}" + (f" of {total}" if total else "")
        update(line)
        if not sys.stderr.isatty() and time.monotonic() - said_at >= LINE_SECONDS:
            said_at = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    with show.progress(name) as update:
        yield tell
