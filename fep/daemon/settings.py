"""The configuration file as the administrator's page changes it, and every version it ever had.

A save writes the version down, then the file, then takes it into force; what fails on the way puts
the file back. A version saved for a time comes back by itself unless somebody confirms it: who has
cut off the page with a change needs only wait.
"""

from __future__ import annotations

import datetime as dt
import difflib
import os
import stat
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio
from sqlalchemy.exc import SQLAlchemyError

from fep.adapters import registry
from fep.adapters.forms import fields_of
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.control import probe
from fep.control.commands import ProtocolRefusal
from fep.control.config_commands import (
    BankEdit,
    BankRemoval,
    ConfigEdit,
    EnterpriseEdit,
)
from fep.daemon import config as configuration
from fep.daemon import versions
from fep.daemon.config import Config, ConfigFaultsError, Fault
from fep.daemon.edit import Edit
from fep.daemon.versions import Version, VersionEvent, VersionState
from fep.domain.clock import Clock, to_text
from fep.domain.errors import FepError
from fep.domain.ids import SlotName
from fep.domain.words import counted
from fep.links.service import BankLink
from fep.store.database import Store

log = structlog.get_logger()

AGAIN_SECONDS: Final = 10.0
"""What could not be taken back is tried again after this time."""
DIFF_LINES_MAX: Final = 2000
TEXTS_KEPT: Final = 4
"""Texts whose reading is remembered: with a thousand accounts one takes 60 ms."""
ITSELF: Final = "fep"
"""Who takes back what nobody confirmed."""
_STANDING: Final = (VersionState.BEGUN, VersionState.UNCONFIRMED, VersionState.KEPT)


class ConfigWriteError(FepError):
    """The configuration file can't be written; nothing was changed."""

    code = "CONFIG_NOT_WRITABLE"


class ConfigChangedError(FepError):
    """The file is not the one that the draft began with; nothing was changed."""

    code = "CONFIG_CHANGED"


@attrs.define
class _Pending:
    """The version in force that is to be confirmed."""

    version: Version
    until: float
    """By the loop's clock."""
    over: trio.Event = attrs.Factory(trio.Event)


@attrs.frozen
class Site:
    """What the settings need of the daemon."""

    path: Path
    machine: str
    in_force: Callable[[], Config]
    slots: Callable[[], Collection[SlotName]]
    links: Callable[[], Collection[BankLink]]
    difference: Callable[[Config], dict[str, Any]]
    """What a configuration would change."""
    apply: Callable[[str], Awaitable[dict[str, Any]]]
    """Takes the file into force; raises a refusal when it does not."""
    undo: Callable[[str], Awaitable[dict[str, Any]]]
    """Takes what is in force so again, after a refusal that came in the middle."""
    alarms: Alarms


class Settings:
    """Owns the file and its versions."""

    def __init__(self, site: Site, database: Store, clock: Clock) -> None:
        self._site = site
        self._store = database
        self._clock = clock
        self._saving = trio.Lock()
        self._judged = lru_cache(TEXTS_KEPT)(partial(_judged, site.path))
        self._pending: _Pending | None = None
        self._came = trio.Event()
        self._behind = trio.Event()
        """Set while the file in force is not written down, since the store takes nothing."""

    # -- life ---------------------------------------------------------------------------------

    async def load(self) -> None:
        """Write down what this process began with, and take up what the last one left.

        A store that takes nothing at this moment keeps no daemon from its work: it is done later.
        """
        with self._done_later():
            await self._load()

    async def _load(self) -> None:
        config = self._site.in_force()
        last = await self._newest(*_STANDING)
        if last is not None and last.state is not VersionState.KEPT:
            last = await self._after_a_restore(last)
        if last is not None and last.state is VersionState.BEGUN:
            last = await self._after_a_stop(last, config)
        if last is not None and last.state is VersionState.UNCONFIRMED and self._pending is None:
            assert last.confirm_until is not None
            left = (last.confirm_until - self._clock.now()).total_seconds()
            self._wait_for(last, max(0.0, left))
        await self._note_if_new(config, ITSELF, "start", last)

    @contextmanager
    def _done_later(self) -> Iterator[None]:
        try:
            yield
        except (FepError, SQLAlchemyError, ValueError, LookupError) as error:
            # What was before is worth no daemon.
            log.error("config.not_noted", reason=repr(error))
            self._behind.set()

    async def _after_a_restore(self, last: Version) -> Version:
        """End the wait of a version if the store was put back since: it may have been confirmed."""
        if not await self._store.read(partial(versions.put_back_since, version=last)):
            return last
        reason = "a backup was restored: whether it was confirmed since then is not known"
        state = await self._end(last, VersionEvent.RESTORED, ITSELF, reason)
        log.warning("config.left_after_restore", version=last.number)
        return attrs.evolve(last, state=state)

    async def _after_a_stop(self, last: Version, config: Config) -> Version | None:
        """Decide on a version in whose saving the last process ended."""
        if last.digest != config.digest:
            await self._end(last, VersionEvent.REFUSED, ITSELF, "stopped before it was written")
            return await self._newest(*_STANDING)
        for_a_time = last.confirm_until is not None
        event = VersionEvent.APPLIED_FOR_A_TIME if for_a_time else VersionEvent.APPLIED
        state = await self._end(last, event)
        return attrs.evolve(last, state=state)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take back what nobody confirms in its time, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._catch_up)
            task_status.started()
            while True:
                while (pending := self._pending) is None:
                    self._came = trio.Event()
                    await self._came.wait()
                with trio.move_on_at(pending.until):
                    await pending.over.wait()
                if not pending.over.is_set():
                    await self._take_back_in_time(pending)

    async def _catch_up(self) -> None:
        """Write down what the store did not take, when it takes something again."""
        while True:
            await self._behind.wait()
            await trio.sleep(AGAIN_SECONDS)
            self._behind = trio.Event()
            async with self._saving:
                with self._done_later():
                    await self._load()

    async def _take_back_in_time(self, pending: _Pending) -> None:
        number = pending.version.number
        try:
            async with self._saving:
                if self._pending is pending:
                    await self._take_back(pending, ITSELF, "nobody confirmed it in its time")
        except FepError as error:
            log.error("config.not_taken_back", version=number, reason=str(error))
            self._site.alarms.raise_alarm(AlarmKind.CONFIG_STUCK, f"version {number}", str(error))
            with trio.move_on_after(AGAIN_SECONDS):
                await pending.over.wait()

    async def noted(self, config: Config, who: str) -> None:
        """Write down a file that was taken into force and not saved here."""
        async with self._saving:
            with self._done_later():
                await self._note_if_new(config, who, "file", await self._newest(*_STANDING))

    async def _note_if_new(self, config: Config, who: str, how: str, last: Version | None) -> None:
        if last is not None and last.digest == config.digest:
            return
        await self._let_go(VersionEvent.REPLACED, who, "the file was changed")
        await self._note(config, who, how)

    # -- drafts -------------------------------------------------------------------------------

    async def draft(self, text: str | None, edits: list[ConfigEdit]) -> dict[str, Any]:
        """Return what a text would mean; nothing is changed.

        Raises:
            CannotEditError: an edit can't be made in this text.
            ProtocolRefusal: NOT_FOUND, an edit is about a bank that is not there; BAD_STATE, the
                file on disk can't be read, or what is to be edited is no TOML.
        """
        disk = await self._on_disk()
        begun = disk if text is None else text
        with _told_as_state():
            return await trio.to_thread.run_sync(self._drafted, disk, begun, edits)

    def _drafted(self, disk: str, begun: str, edits: Sequence[ConfigEdit]) -> dict[str, Any]:
        path, in_force = self._site.path, self._site.in_force()
        text = begun
        for one in edits:
            text = edited(text, one, path)
        found: dict[str, Any] = {
            "path": str(path),
            "base": _digest(disk),
            "in_force": in_force.digest,
            "writable": os.access(path.resolve().parent, os.W_OK | os.X_OK),
            "text": text,
            "digest": _digest(text),
            "difference": _diff(disk, text),
            "faults": [],
            "warnings": [],
        }
        config = self._judged(text)
        if isinstance(config, tuple):
            found["faults"] = [
                {"line": one.line, "column": one.column, "key": one.key, "message": one.message}
                for one in config
            ]
            return found
        found["warnings"] = configuration.secret_faults(config)
        found["changes"] = self._site.difference(config)
        return found

    async def tried(self, text: str, bank: str) -> dict[str, Any]:
        """Return whether a bank of a draft can be reached.

        Raises:
            ProtocolRefusal: BAD_STATE, the draft has faults; UNKNOWN_BANK, it has no such bank.
        """
        config = await self._parsed(text)
        one = next((one for one in config.banks if one.name == bank), None)
        if one is None:
            names = ", ".join(sorted(each.name for each in config.banks)) or "none"
            raise ProtocolRefusal("UNKNOWN_BANK", f"no bank {bank!r}; there are: {names}")
        running = [
            link
            for link in self._site.links()
            if link.is_open
            and (link.config.host, link.config.port) == (one.link.host, one.link.port)
        ]
        if running and one.link.folders is None:
            reach = probe.Reach("the link is ready", reached=True)
        else:
            reach = await probe.reach(one.link)
        lacking = []
        if one.slot is not None and one.slot not in self._site.slots():
            lacking.append(f"slot {one.slot} is opened at the next start only")
        try:
            one.adapter.open(one.profile(config.accounts, one.read_secrets()))
        except (FepError, ValueError) as error:
            lacking.append(str(error))
        return {
            "bank": bank,
            "peer": one.link.peer,
            "reached": reach.reached,
            "told": reach.told,
            "seconds": reach.seconds,
            "lacking": lacking,
        }

    # -- saving -------------------------------------------------------------------------------

    async def save(
        self, who: str, text: str, base: str, note: str, confirm_s: float | None
    ) -> dict[str, Any]:
        """Take a text into force as the file's next version.

        Raises:
            ProtocolRefusal: BAD_STATE, it has faults, or a version waits to be confirmed.
            ConfigChangedError, ConfigWriteError: the file is another one, or can't be written.
        """
        async with self._saving:
            return await self._save(who, text, base, note, confirm_s, "page")

    async def roll_back(self, who: str, number: int, note: str) -> dict[str, Any]:
        """Take an earlier version into force; of the one to be confirmed: the one before it.

        Raises:
            ProtocolRefusal: NOT_FOUND, there is no such version; BAD_STATE as for ``save``.
            ConfigWriteError: the file can't be written.
        """
        async with self._saving:
            found = await self._read(number)
            if found is None:
                raise ProtocolRefusal("NOT_FOUND", f"there is no version {number}")
            pending = self._pending
            if pending is not None and number == pending.version.before:
                return await self._take_back(pending, who, note or "taken back")
            base = _digest(await self._on_disk())
            told = note or f"back to version {number}"
            return await self._save(who, found[1], base, told, None, "rollback")

    async def confirm(self, who: str, number: int) -> dict[str, Any]:
        """Keep the version that is in force for a time.

        Raises:
            ProtocolRefusal: BAD_STATE, this version does not wait for it.
        """
        async with self._saving:
            pending = self._pending
            if pending is None or pending.version.number != number:
                raise ProtocolRefusal("BAD_STATE", f"version {number} waits for no confirmation")
            if _digest(await self._on_disk()) != pending.version.digest:
                msg = f"the file is not version {number} any more; take it back, or apply the file"
                raise ProtocolRefusal("BAD_STATE", msg)
            await self._let_go(VersionEvent.CONFIRMED, who)
            log.warning("config.confirmed", version=number, who=who)
            return {"version": number, "state": VersionState.KEPT.value}

    async def _save(
        self, who: str, text: str, base: str, note: str, confirm_s: float | None, how: str
    ) -> dict[str, Any]:
        if self._pending is not None:
            number = self._pending.version.number
            msg = f"version {number} waits to be confirmed; confirm it or take it back first"
            raise ProtocolRefusal("BAD_STATE", msg)
        before = await self._on_disk()
        if _digest(before) != base:
            msg = "the file was changed since this draft was begun; nothing was changed: begin anew"
            raise ConfigChangedError(msg)
        config = await self._parsed(text)
        in_force = self._site.in_force()
        if text == before and config.digest == in_force.digest:
            raise ProtocolRefusal("BAD_STATE", "nothing would change")
        if lacking := await trio.to_thread.run_sync(_new_secret_faults, in_force, config):
            msg = f"nothing was changed: the next start would be refused: {'; '.join(lacking)}"
            raise ProtocolRefusal("BAD_STATE", msg)
        last = await self._in_force_noted()
        now = self._clock.now()
        until = None if confirm_s is None else now + dt.timedelta(seconds=confirm_s)
        version = Version(
            0, config.digest, now, who, how, note, VersionState.BEGUN,
            last.number, until, "", "",
        )  # fmt: skip
        number = await self._store.write(
            partial(versions.add, machine=self._site.machine, version=version, text=text)
        )
        version = attrs.evolve(version, number=number)
        applied, refused = await self._tried(text, who)
        if refused is not None:
            await self._put_back(before, who)
            with self._done_later():
                await self._end(version, VersionEvent.REFUSED, who, str(refused))
            raise refused
        event = VersionEvent.APPLIED
        if confirm_s is not None:
            # Before anything else: it goes back in its time, also when the store takes no word.
            self._wait_for(version, confirm_s)
            event = VersionEvent.APPLIED_FOR_A_TIME
        with self._done_later():
            await self._end(version, event)
        log.warning("config.saved", version=number, who=who, how=how, confirm_s=confirm_s)
        told = {} if until is None else {"confirm_until": to_text(until)}
        return {"version": number, **told, **applied}

    async def _take_back(self, pending: _Pending, who: str, reason: str) -> dict[str, Any]:
        """Bring back the version before the one to be confirmed."""
        version = pending.version
        found = None if version.before is None else await self._read(version.before)
        if found is None:
            raise ProtocolRefusal("NOT_FOUND", f"there is no version before {version.number}")
        on_disk = await self._on_disk()
        await self._keep_hand_edit(on_disk, version)
        applied, refused = await self._tried(found[1], who)
        if refused is not None:
            # What is in force and what a start would find stay the same.
            await trio.to_thread.run_sync(replace_file, self._site.path, on_disk)
            raise refused
        with self._done_later():
            await self._end(version, VersionEvent.TAKEN_BACK, who, reason)
        self._forget(pending)
        with self._done_later():
            note = f"version {version.number}: {reason}"
            await self._note(self._site.in_force(), who, "rollback", note)
        log.warning("config.taken_back", version=version.number, who=who, reason=reason)
        return {"version": version.number, "state": VersionState.TAKEN_BACK.value, **applied}

    async def _keep_hand_edit(self, on_disk: str, version: Version) -> None:
        """Write down what somebody wrote into the file and nobody took into force."""
        digest = _digest(on_disk)
        if digest in {version.digest, self._site.in_force().digest}:
            return
        kept = Version(
            0, digest, self._clock.now(), ITSELF, "file", "", VersionState.FAILED,
            version.number, None, "", "it stood in the file and was never taken into force",
        )  # fmt: skip
        await self._store.write(
            partial(versions.add, machine=self._site.machine, version=kept, text=on_disk)
        )
        log.warning("config.hand_edit_kept", digest=digest)

    async def _put(self, text: str, who: str) -> dict[str, Any]:
        """Write the file and take it into force."""
        await trio.to_thread.run_sync(replace_file, self._site.path, text)
        return await self._site.apply(who)

    async def _tried(self, text: str, who: str) -> tuple[dict[str, Any], FepError | None]:
        """Write the file and take it into force; returns what changed, or why nothing did."""
        try:
            return await self._put(text, who), None
        except FepError as error:
            return {}, error

    async def _put_back(self, text: str, who: str) -> None:
        """Undo a save that failed, as far as it came."""
        try:
            await trio.to_thread.run_sync(replace_file, self._site.path, text)
            # The file may hold what somebody wrote by hand and nobody took into force. Nearly
            # always there is nothing to do: a bank that did not come up is begun again.
            await self._site.undo(who)
        except FepError as error:
            log.error("config.not_put_back", reason=str(error))

    # -- versions -----------------------------------------------------------------------------

    async def versions(self, limit: int, before: int | None) -> dict[str, Any]:
        """Return the versions, newest first, and which is in force."""
        found = await self._store.read(
            partial(versions.page, machine=self._site.machine, limit=limit, before=before)
        )
        pending = self._pending
        shown: dict[str, Any] = {
            "in_force": self._site.in_force().digest,
            "versions": [one.value() for one in found],
        }
        if pending is not None:
            left = max(0.0, pending.until - trio.current_time())
            before_it = pending.version.before
            shown["pending"] = {
                "version": pending.version.number,
                "left_s": round(left, 1),
                **({} if before_it is None else {"before": before_it}),
            }
        return shown

    async def version(self, number: int) -> dict[str, Any]:
        """Return one version with its text, and how it differs from the file.

        Raises:
            ProtocolRefusal: NOT_FOUND, there is none of this number.
        """
        found = await self._read(number)
        if found is None:
            raise ProtocolRefusal("NOT_FOUND", f"there is no version {number}")
        version, text = found
        disk = await self._on_disk()
        diff = await trio.to_thread.run_sync(_diff, disk, text)
        return {**version.value(), "text": text, "difference": diff}

    async def adapters(self) -> list[dict[str, Any]]:
        """Return what each installed adapter wants to be told."""
        return await trio.to_thread.run_sync(lambda: self._adapters)

    @cached_property
    def _adapters(self) -> list[dict[str, Any]]:
        # What is installed does not change while we run, and looking takes a tenth of a second.
        shown = []
        for name in registry.names():
            try:
                one = registry.adapter(name)
                fields = fields_of(one.options_class)
            except (registry.BrokenAdapterError, registry.UnknownAdapterError):
                continue  # fep adapters tells of it
            shown.append(
                {
                    "name": name,
                    "title": one.title,
                    "version": one.version,
                    "protocol": one.card.transport.protocol.value,
                    "secrets": sorted(one.secret_names),
                    "options": [attrs.asdict(field, value_serializer=_plain) for field in fields],
                }
            )
        return shown

    # -- inner --------------------------------------------------------------------------------

    async def _on_disk(self) -> str:
        with _told_as_state():
            return await trio.to_thread.run_sync(configuration.read_text, self._site.path)

    async def _parsed(self, text: str) -> Config:
        found = await trio.to_thread.run_sync(self._judged, text)
        if isinstance(found, Config):
            return found
        with _told_as_state():
            raise ConfigFaultsError(list(found))

    async def _in_force_noted(self) -> Version:
        """Return the version that is in force; one that is not known yet is written down."""
        config = self._site.in_force()
        last = await self._newest(VersionState.KEPT)
        if last is None or last.digest != config.digest:
            await self._note(config, ITSELF, "file")
            last = await self._newest(VersionState.KEPT)
        assert last is not None
        return last

    async def _newest(self, *states: VersionState) -> Version | None:
        read = partial(_newest, self._site.machine, states)
        found: Version | None = await self._store.read(read)
        return found

    async def _read(self, number: int) -> tuple[Version, str] | None:
        found: tuple[Version, str] | None = await self._store.read(
            partial(versions.read, machine=self._site.machine, number=number)
        )
        return found

    async def _note(self, config: Config, who: str, how: str, note: str = "") -> None:
        last = await self._newest(VersionState.KEPT)
        version = Version(
            0, config.digest, self._clock.now(), who, how, note, VersionState.KEPT,
            None if last is None else last.number, None, "", "",
        )  # fmt: skip
        await self._store.write(
            partial(versions.add, machine=self._site.machine, version=version, text=config.text)
        )

    async def _end(
        self, version: Version, event: VersionEvent, by: str = "", reason: str = ""
    ) -> VersionState:
        state: VersionState = await self._store.write(
            partial(
                versions.end,
                machine=self._site.machine,
                number=version.number,
                event=event,
                by=by,
                reason=reason,
            )
        )
        return state

    async def _let_go(self, event: VersionEvent, who: str, reason: str = "") -> None:
        """End the wait for a confirmation, if there is one."""
        if (pending := self._pending) is not None:
            await self._end(pending.version, event, who, reason)
            self._forget(pending)

    def _wait_for(self, version: Version, seconds: float) -> None:
        self._pending = _Pending(version, trio.current_time() + seconds)
        self._came.set()

    def _forget(self, pending: _Pending) -> None:
        self._site.alarms.clear(AlarmKind.CONFIG_STUCK, f"version {pending.version.number}")
        self._pending = None
        pending.over.set()


def _judged(path: Path, text: str) -> Config | tuple[Fault, ...]:
    """Return the configuration that a text is, or what is wrong with it."""
    try:
        return configuration.parse(path, text)
    except ConfigFaultsError as error:
        return tuple(error.faults)


def _new_secret_faults(in_force: Config, config: Config) -> list[str]:
    """Return what a start with a configuration would refuse, and one with that in force not."""
    known = configuration.secret_faults(in_force)
    return [one for one in configuration.secret_faults(config) if one not in known]


def edited(text: str, edit: ConfigEdit, path: Path) -> str:
    """Return the text with one change.

    Raises:
        ConfigFaultsError: it is no TOML.
        CannotEditError: it is written in a way that can't be changed by parts.
        ProtocolRefusal: NOT_FOUND, the bank is not there.
    """
    configuration.check_toml(path, text)
    work = Edit(text)
    match edit:
        case EnterpriseEdit():
            work.merge(("enterprise",), {"id": edit.id, "fep_number": edit.fep_number})
        case BankRemoval():
            index = _bank_index(work, edit.bank)
            for place, _ in _accounts_of(work, edit.bank):
                work.remove("account", place)
            work.remove("bank", index)
        case BankEdit():
            _put_bank(work, edit)
    return work.done()


def _put_bank(work: Edit, edit: BankEdit) -> None:
    was, name = edit.was, edit.values.get("name", edit.was)
    if was is None:
        work.append("bank", edit.values)
    else:
        work.merge(("bank", _bank_index(work, was)), edit.values)
    present = [] if was is None else _accounts_of(work, was)
    if edit.accounts is None:
        if name != was:
            for place, _ in present:
                work.merge(("account", place), {"bank": name})
        return
    wanted = [
        {
            "number": one.number,
            "bank": name,
            "name": one.name,
            "bank_code": one.bank_code or None,
            "bank_title": one.bank_title or None,
        }
        for one in edit.accounts
    ]
    left = {}
    numbers = {one["number"] for one in wanted}
    for place, number in present:
        if number in numbers and number not in left:
            left[number] = place
        else:
            work.remove("account", place)
    like = max(left.values(), default=None)
    told = set()
    for row in wanted:
        if row["number"] in left and row["number"] not in told:
            work.merge(("account", left[row["number"]]), row)
        else:
            work.append("account", row, like)
        told.add(row["number"])


def _bank_index(work: Edit, bank: str) -> int:
    tables = work.data.get("bank", [])
    names = [one.get("name") for one in tables] if isinstance(tables, list) else []
    if bank not in names:
        raise ProtocolRefusal("NOT_FOUND", f"the file has no bank {bank!r}")
    return names.index(bank)


def _accounts_of(work: Edit, bank: str) -> list[tuple[int, Any]]:
    tables = work.data.get("account", [])
    rows = tables if isinstance(tables, list) else []
    return [(place, one.get("number")) for place, one in enumerate(rows) if one.get("bank") == bank]


def replace_file(path: Path, text: str) -> None:
    """Put a text in the place of a file, whole or not at all; its mode stays.

    Raises:
        ConfigWriteError: it can't be written.
    """
    path = path.resolve()  # a link stays one
    fresh = path.with_name(f".{path.name}.new")
    try:
        before = path.stat()
        with fresh.open("wb") as file:
            os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
            with suppress(PermissionError):  # only root may give files away
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        msg = f"{path} can't be written: {error.strerror}; the daemon's user needs its folder"
        raise ConfigWriteError(msg) from error


@contextmanager
def _told_as_state() -> Iterator[None]:
    try:
        yield
    except ConfigFaultsError as error:
        msg = f"{counted(len(error.faults), 'fault')}, nothing was changed:\n{error}"
        raise ProtocolRefusal("BAD_STATE", msg) from error


def _newest(machine: str, states: Collection[VersionState], connection: Any) -> Version | None:  # noqa: ANN401
    return versions.newest(connection, machine, *states)


def _digest(text: str) -> str:
    return configuration.digest_of(text.encode("utf-8", "surrogatepass"))


def _diff(before: str, after: str) -> list[str]:
    """Return the lines that differ, each with ``+``, ``-``, ``@@`` or a blank before it."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=3)
    found = [line for place, line in enumerate(lines) if place > 1]  # without the files' names
    if len(found) > DIFF_LINES_MAX:
        found = [*found[:DIFF_LINES_MAX], f"@@ and {len(found) - DIFF_LINES_MAX} lines more @@"]
    return found


def _plain(_instance: Any, _attribute: Any, value: Any) -> Any:  # noqa: ANN401 - attrs' hook
    return value.value if hasattr(value, "value") else value
