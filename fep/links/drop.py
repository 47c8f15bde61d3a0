"""The folders of a bank that takes and gives files: blocking file work, no trio.

Four things must not go wrong whatever happens in between: a file of ours is seen by the bank whole
or not at all; of one that could not be put there it is certain that it is not there; what came is
in the archive for good before it leaves the inbox; and what came twice counts once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import hashlib
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from fep.adapters.files import DOCUMENTS_MAX, Contents
from fep.domain.clock import SHANGHAI, Clock, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.links.config import Folders

STAGING: Final = ".fep"
"""A folder in ``out``, so that a rename from it is one step, and hidden, so that nobody fetches."""
UNREADABLE: Final = "unreadable"
UNFINISHED: Final = (".tmp", ".part", ".partial", ".filepart", ".writing", ".processing", ".swp")
"""How files are named that somebody still writes; those that begin with a dot are, too."""
FILES_AT_ONCE: Final = 100
"""Taken in at one look, so that what they say is handed on in time."""
RECENT_MAX: Final = 8
"""Files of the archive whose contents are remembered."""
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_KEPT: Final = re.compile(r"([0-9]{12})-([0-9a-f]{16})-[0-9A-Za-z._-]{1,60}")
_NOT_PLAIN: Final = re.compile(r"[^0-9A-Za-z._-]")

Signature = tuple[int, int, int]


class NotPutError(Exception):
    """A file of ours is not where the bank fetches it, and will not be."""


class UnsureError(Exception):
    """A file of ours may be, or may have been, where the bank fetches it."""


@attrs.frozen
class Arrived:
    """One file that was taken out of the inbox."""

    name: str
    kept: Path | None
    """Where it is now; None: it is in the inbox still, and will not be read again."""
    contents: Contents = attrs.Factory(Contents)
    reason: str = ""
    """Why it could not be read, or not be moved; empty for a good one."""
    again: bool = False
    """True: the same bytes came before."""


@attrs.define
class _Seen:
    """A file in the inbox as it was at the last look."""

    signature: Signature
    since: float
    is_tried: bool = False
    """It was read like this, and could not be understood or moved."""


class Drop:
    """One bank's folders.

    Args:
        folders: where they are.
        read: says what is in a file; raises ``RemoteProtocolError`` for one that can't be read.
        clock: gives the archive's days.
        file_bytes_max: of a larger one nothing is read.
    """

    def __init__(
        self,
        folders: Folders,
        read: Callable[[bytes], Contents],
        clock: Clock,
        file_bytes_max: int,
    ) -> None:
        self.folders = folders
        self._read = read
        self._clock = clock
        self._bytes_max = file_bytes_max
        self._seen: dict[str, _Seen] = {}
        self._marks: dict[str, list[Path]] = {}
        self._by_day: dict[str, list[tuple[str, Path]]] = {}
        self._digests: dict[str, str] = {}
        """Of what came in the days that are kept, with the day."""
        self._recent: OrderedDict[Path, Contents] = OrderedDict()
        self._last = dt.datetime.min.replace(tzinfo=SHANGHAI)
        """The moment that the newest file of the archive bears."""
        self._waits: dict[str, float] = {}
        """Files of ours that nobody fetched yet, and when they were seen first."""

    # -- opening ------------------------------------------------------------------------------

    def open(self) -> None:
        """Look whether the folders can be used, and learn what the archive has.

        Raises:
            OSError: one can't be listed or written to.
        """
        folders = self.folders
        staging = folders.out / STAGING
        staging.mkdir(mode=0o770, exist_ok=True)
        for left in staging.iterdir():
            # Of a process that died before it could put it there.
            left.unlink()
        for place in (staging, folders.archive):
            probe = place / ".probe"
            probe.write_bytes(b"fep")
            probe.unlink()
        _names(folders.inbox)
        self._seen.clear()
        self._waits.clear()
        self._load()

    def _load(self) -> None:
        self._marks.clear()
        self._by_day.clear()
        self._digests.clear()
        self._recent.clear()
        oldest = self._oldest_day()
        for day in sorted(_names(self.folders.archive)):
            if not _DAY.fullmatch(day) or day < oldest:
                continue
            for name in sorted(_names(self.folders.archive / day)):
                if found := _KEPT.fullmatch(name):
                    self._digests[found[2]] = day
                    self._last = max(self._last, _moment(day, found[1]))
                    path = self.folders.archive / day / name
                    # What this code can't read an earlier one may have read.
                    with contextlib.suppress(RemoteProtocolError, OSError):
                        self._note(day, path, self._read(path.read_bytes()))

    def _oldest_day(self) -> str:
        today = to_shanghai(self._clock.now()).date()
        return (today - dt.timedelta(days=self.folders.kept_days)).isoformat()

    def _note(self, day: str, path: Path, contents: Contents) -> None:
        for mark in contents.marks:
            self._marks.setdefault(mark, []).append(path)
            self._by_day.setdefault(day, []).append((mark, path))

    def _forget_old(self) -> None:
        oldest = self._oldest_day()
        for day in [one for one in self._by_day if one < oldest]:
            for mark, path in self._by_day.pop(day):
                paths = self._marks[mark]
                paths.remove(path)
                if not paths:
                    del self._marks[mark]
        for digest in [one for one, day in self._digests.items() if day < oldest]:
            del self._digests[digest]

    # -- out ----------------------------------------------------------------------------------

    def stage(self, name: str, document: bytes) -> Path:
        """Write a file where nobody fetches, and return when it is on disk.

        Raises:
            NotPutError: it is not.
        """
        staged = self.folders.out / STAGING / name
        try:
            with contextlib.suppress(FileNotFoundError):
                staged.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(staged, flags, 0o660), "wb") as file:  # noqa: PTH123 - of a descriptor
                file.write(document)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                staged.unlink()
            raise NotPutError(_said("the file can't be written", error)) from error
        return staged

    def publish(self, staged: Path) -> None:
        """Put a staged file where the bank fetches it, in one step.

        Raises:
            NotPutError: it is not there, for certain.
            UnsureError: it may be, or one of its name was there already.
        """
        target = self.folders.out / staged.name
        if os.path.lexists(target):
            # We give no name twice: it is this very payment's, put there before.
            msg = f"{target.name} is there already"
            raise UnsureError(msg)
        try:
            staged.rename(target)
        except OSError as error:
            # Over a network the answer may be lost, and not the request.
            if _is_there(staged) and not _is_there(target):
                raise NotPutError(_said("the file can't be put there", error)) from error
            raise UnsureError(_said("whether the file is there is not known", error)) from error
        try:
            _sync_folder(self.folders.out)
        except OSError as error:
            raise UnsureError(_said("the folder can't be synced", error)) from error

    def oldest_wait_s(self, now: float) -> float:
        """Return for how long the oldest of our files waits to be fetched; 0 for none.

        Raises:
            OSError: the folder can't be listed.
        """
        names = [one for one in _names(self.folders.out) if one != STAGING]
        there = {
            name: self._waits.get(name, now)
            for name in names
            if _signature(self.folders.out / name) is not None
        }
        self._waits = there
        return now - min(there.values(), default=now)

    # -- in -----------------------------------------------------------------------------------

    def scan(self, now: float) -> list[Arrived]:
        """Take what is whole out of the inbox, oldest first; the rest is left alone.

        Args:
            now: monotonic seconds.

        Raises:
            OSError: the inbox can't be listed, or the archive not be written to.
        """
        self._forget_old()
        arrived: list[Arrived] = []
        for name, seen in self._ripe(now):
            if len(arrived) >= FILES_AT_ONCE:
                break
            one = self._take(name, seen, now)
            if one is not None:
                arrived.append(one)
        return arrived

    def _ripe(self, now: float) -> list[tuple[str, _Seen]]:
        """Return the files that did not change for long enough, by age and name."""
        there: dict[str, _Seen] = {}
        for name in _names(self.folders.inbox):
            if name.startswith(".") or name.lower().endswith(UNFINISHED):
                continue
            signature = _signature(self.folders.inbox / name)
            if signature is None:
                continue
            known = self._seen.get(name)
            same = known is not None and known.signature == signature
            there[name] = known if known is not None and same else _Seen(signature, now)
        self._seen = there
        ripe = [
            (name, seen)
            for name, seen in there.items()
            if now - seen.since >= self.folders.settle_s
        ]
        return sorted(ripe, key=lambda one: (one[1].signature[2], one[0]))

    def _take(self, name: str, seen: _Seen, now: float) -> Arrived | None:
        expired = now - seen.since >= max(self.folders.unreadable_s, self.folders.settle_s)
        if seen.is_tried and not expired:
            return None
        path = self.folders.inbox / name
        try:
            data = self._bytes_of(path, seen)
        except OSError as error:
            is_first, seen.is_tried = not seen.is_tried, True
            seen.since = now
            return (
                Arrived(name, None, reason=_said("it can't be read", error)) if is_first else None
            )
        if data is None:
            return None
        reason, contents = "", Contents()
        try:
            if len(data) > self._bytes_max:
                reason = f"it has more than {self._bytes_max} bytes"
            else:
                contents = self._read(data)
        except RemoteProtocolError as error:
            if not expired:
                # Somebody may be slow in writing it.
                seen.is_tried = True
                return None
            reason = str(error)[:200]
        return self._keep(path, seen, data, contents, reason)

    def _bytes_of(self, path: Path, seen: _Seen) -> bytes | None:
        """Return a file's bytes, None when it changed meanwhile or is none."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with open(handle, "rb") as file:  # noqa: PTH123 - of a descriptor
            if _of(os.fstat(file.fileno())) != seen.signature:
                return None
            data = file.read(self._bytes_max + 1)
            return data if _of(os.fstat(file.fileno())) == seen.signature else None

    def _keep(
        self, path: Path, seen: _Seen, data: bytes, contents: Contents, reason: str
    ) -> Arrived:
        digest = hashlib.sha256(data).hexdigest()[:16]
        again = not reason and digest in self._digests
        kept: Path | None = None
        if not again:
            day = self._next_moment()
            folder = UNREADABLE if reason else f"{day:%Y-%m-%d}"
            name = _NOT_PLAIN.sub("_", path.name)[:60]
            kept = self.folders.archive / folder / f"{day:%H%M%S%f}-{digest}-{name}"
            if len(data) > self._bytes_max:
                # Too large to be held: moved as it is, if the archive is on the same disk.
                kept.parent.mkdir(exist_ok=True)
                path.rename(kept)
                return Arrived(path.name, kept, reason=reason)
            self._write(kept, data)
            if not reason:
                self._digests[digest] = f"{day:%Y-%m-%d}"
                self._note(f"{day:%Y-%m-%d}", kept, contents)
        moved = self._remove(path, seen)
        if moved:
            reason = reason or moved
            seen.is_tried, seen.since = True, float("inf")
        return Arrived(path.name, kept, contents, reason, again)

    def _next_moment(self) -> dt.datetime:
        """Return the moment of arrival, later than that of all before: names sort by it."""
        now = to_shanghai(self._clock.now())
        # A clock that was a day ahead once must not stamp all that comes after.
        if now <= self._last < now + dt.timedelta(days=1):
            now = self._last + dt.timedelta(microseconds=1)
        self._last = now
        return now

    @staticmethod
    def _write(kept: Path, data: bytes) -> None:
        """Write a file into the archive so that it is there for good, or not at all."""
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_name(f".{kept.name}")
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.rename(kept)
        _sync_folder(kept.parent)
        _sync_folder(kept.parent.parent)

    @staticmethod
    def _remove(path: Path, seen: _Seen) -> str:
        """Remove a file that is kept, if it is that one still; return why it could not be."""
        if _signature(path) != seen.signature:
            return ""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            return _said("it was read and can't be removed", error)
        return ""

    # -- questions ----------------------------------------------------------------------------

    def find(self, marks: tuple[str, ...], newest: int, bytes_max: int) -> list[tuple[str, bytes]]:
        """Return what came under any of these marks, with the files' names, oldest first.

        Raises:
            OSError: a file of the archive can't be read.
            RemoteProtocolError: it is too much, or can't be understood any more.
        """
        wanted: dict[Path, list[str]] = {}
        for mark in marks:
            paths = self._marks.get(mark, [])
            for path in paths[-newest:] if newest else paths:
                wanted.setdefault(path, []).append(mark)
        found: list[tuple[str, bytes]] = []
        size = 0
        for path in sorted(wanted, key=lambda one: (one.parent.name, one.name)):
            for part in self._parts(path, wanted[path]):
                size += len(part)
                found.append((path.name, part))
                if size > bytes_max or len(found) > DOCUMENTS_MAX:
                    msg = "more came than one answer holds"
                    raise RemoteProtocolError(msg)
        return found

    def _parts(self, path: Path, marks: list[str]) -> Iterator[bytes]:
        contents = self._recent.get(path)
        if contents is None:
            contents = self._read(path.read_bytes())
            self._recent[path] = contents
            while len(self._recent) > RECENT_MAX:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(path)
        seen: set[bytes] = set()
        for mark in marks:
            # Of a statement of several days the same part stands under each.
            if mark in contents.marks and (part := contents.part(mark)) not in seen:
                seen.add(part)
                yield part


def _moment(day: str, digits: str) -> dt.datetime:
    """Return the moment that a name in the archive bears; the earliest of one that is none."""
    try:
        return dt.datetime.strptime(f"{day}{digits}+0800", "%Y-%m-%d%H%M%S%f%z")
    except ValueError:
        return dt.datetime.min.replace(tzinfo=SHANGHAI)


def _names(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir()]


def _signature(path: Path) -> Signature | None:
    """Return what changes when a file does; None of what is no plain file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return _of(found) if stat.S_ISREG(found.st_mode) else None


def _of(found: os.stat_result) -> Signature:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_there(path: Path) -> bool:
    """Say whether something is there; a folder that can't be asked may hide it."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems have no such thing, and write names at once.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def _said(what: str, error: OSError) -> str:
    return f"{what}: {error.strerror or error}"
