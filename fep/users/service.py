"""The users: made and changed by administrators, logged in by what they know, logged out at once.

A password is hashed and compared in a thread of its own, one at a time: it takes 64 MiB and a
fifth of a second. A session is known by the digest of the browser's cookie. What was looked up is
believed for a moment only, since another machine may have ended it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs
import structlog
import trio

from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import parse_name
from fep.store import audit
from fep.store.audit import Doer, Entry
from fep.store.database import Store
from fep.users import passwords, store
from fep.users.config import SessionLimits

log = structlog.get_logger()

BELIEVED_SECONDS: Final = 2.0
"""A session that was looked up is not looked up again for so long."""
BELIEVED_MAX: Final = 1024
SEEN_EVERY_SECONDS: Final = 30.0
HASHES_WAITING_MAX: Final = 8
"""Log-ins that wait for the hashing thread; more are told to come again."""
OWN_PREFIX: Final = "fep:"
LOGGED_IN, LOGGED_OUT = "console.log_in", "console.log_out"


class UserRefusedError(FepError):
    """An act on a user was refused; ``code`` is the protocol's."""

    code = "BAD_STATE"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@attrs.frozen
class Person:
    """Who is logged in, as every page asks."""

    name: str
    role: str
    has_totp: bool
    session: str
    """The digest of the cookie."""
    since: dt.datetime


@attrs.define
class _Believed:
    person: Person | None
    seen_at: dt.datetime
    until: float
    """By trio's clock."""


class Users:
    """Owns the users and their sessions; all of it is in the store.

    Args:
        database: of the daemon.
        clock: the wall clock.
        configuration: returns the digest in force, for the record.
        limits: how long a session lasts.
    """

    def __init__(
        self,
        database: Store,
        clock: Clock,
        configuration: Callable[[], str],
        limits: SessionLimits,
    ) -> None:
        self._store = database
        self._clock = clock
        self._configuration = configuration
        self._limits = limits
        self._hashing = trio.CapacityLimiter(1)
        self._believed: dict[str, _Believed] = {}

    # -- administration -----------------------------------------------------------------------

    async def overview(self) -> list[dict[str, Any]]:
        """Return all users as they are shown."""
        found: list[dict[str, Any]] = await self._store.read(store.users)
        return found

    async def add(self, name: str, role: str, password: str) -> None:
        """Add a user.

        Raises:
            UserRefusedError: BAD_STATE, the name is taken, or it or the password is not usable.
        """
        if name.startswith(OWN_PREFIX):
            msg = f"names that begin with {OWN_PREFIX} are the daemon's own; choose another"
            raise UserRefusedError("BAD_STATE", msg)
        stored = await self._new_hash(name, password)
        now = self._clock.now()
        add = partial(store.add, name=name, role=role, password=stored, at=now)
        if why := await self._store.write(add):
            raise UserRefusedError("BAD_STATE", why)
        log.info("user.added", user=name, role=role)

    async def set_password(self, name: str, password: str, *, keep: str = "") -> None:
        """Give a user another password; the sessions end, but the one that is kept.

        Raises:
            UserRefusedError: NOT_FOUND; BAD_STATE, the password is not usable.
        """
        stored = await self._new_hash(name, password)
        await self._change(name, {"password": stored}, keep=keep)

    async def change(
        self,
        name: str,
        *,
        role: str | None = None,
        disabled: bool | None = None,
        drop_totp: bool = False,
    ) -> None:
        """Change what a user may do; the sessions end.

        Raises:
            UserRefusedError: NOT_FOUND.
        """
        values: dict[str, Any] = {} if role is None else {"role": role}
        if disabled is not None:
            values["disabled"] = int(disabled)
        if drop_totp:
            values |= {"totp": "", "totp_step": 0}
        await self._change(name, values)

    async def end_sessions(self, name: str) -> int:
        """Log a user out everywhere; returns how many sessions there were."""
        count: int = await self._store.write(partial(store.end_sessions, name=name))
        self._forget(name)
        log.info("user.sessions_ended", user=name, count=count)
        return count

    # -- one's own ----------------------------------------------------------------------------

    async def own_password(self, name: str, old: str, new: str, *, keep: str = "") -> None:
        """Change one's own password.

        Raises:
            UserRefusedError: NOT_FOUND; BAD_STATE, the old one is wrong, or the new one is not
                usable.
        """
        await self._prove(name, old)
        await self.set_password(name, new, keep=keep)

    async def own_totp(self, name: str, password: str, secret: str, code: str) -> None:
        """Ask for one-time codes at one's log-in from now on; not any more for an empty secret.

        Raises:
            UserRefusedError: NOT_FOUND; BAD_STATE, the password or the code is wrong.
        """
        user = await self._prove(name, password)
        step = 0
        if secret:
            now = self._clock.now()
            if passwords.is_totp_secret(secret):
                step = passwords.totp_step(secret, code, now)
            if not step:
                raise UserRefusedError("BAD_STATE", "the one-time code is not right")
        values = {"totp": secret, "totp_step": step}
        if not await self._store.write(
            partial(store.change, name=user.name, values=values, at=self._clock.now())
        ):
            raise _no_user(name)
        self._forget(name)
        log.info("user.changed", user=name, what=["totp"])

    async def _prove(self, name: str, password: str) -> store.User:
        user: store.User | None = await self._store.read(partial(store.user, name=name))
        right = await self._matches(user, password)
        if user is None or not right:
            raise UserRefusedError("BAD_STATE", "the present password is not right")
        return user

    # -- sessions -----------------------------------------------------------------------------

    async def log_in(self, name: str, password: str, code: str, origin: str) -> str | None:
        """Open a session; returns what the browser is to keep, None when it was refused.

        Every attempt is recorded, and a wrong name takes as long as a wrong password.

        Raises:
            UserRefusedError: BAD_STATE, too many log-ins wait at this moment.
        """
        user: store.User | None = None
        with_name = _printable(name)
        if with_name == name:
            user = await self._store.read(partial(store.user, name=name))
        reason = await self._why_not(user, password)
        step = 0
        if user is not None and not reason and user.totp:
            step = passwords.totp_step(user.totp, code, self._clock.now(), user.totp_step)
            reason = "" if step else "one-time code"
        token = secrets.token_urlsafe(32)
        role = "" if user is None else user.role
        entry = Entry(Doer(with_name, role or "none", origin), LOGGED_IN, {})
        now = self._clock.now()
        if reason or user is None:
            refuse = partial(self._record, entry, reason)
            await self._store.write(refuse)
            log.warning("login.refused", user=with_name, origin=origin, reason=reason)
            return None
        if not await self._store.write(
            partial(self._open, user=user, step=step, digest=digest_of(token), entry=entry, at=now)
        ):
            log.warning("login.refused", user=with_name, origin=origin, reason="one-time code")
            return None
        log.info("login.accepted", user=user.name, role=user.role, origin=origin)
        return token

    async def _why_not(self, user: store.User | None, password: str) -> str:
        right = await self._matches(user, password)
        if user is None:
            return "no such user"
        if not right:
            return "password"
        return "disabled" if user.disabled else ""

    def _open(
        self,
        connection: Any,  # noqa: ANN401
        *,
        user: store.User,
        step: int,
        digest: str,
        entry: Entry,
        at: dt.datetime,
    ) -> bool:
        if step and not store.use_step(connection, user.name, step):
            self._record(entry, "one-time code", connection)
            return False
        span = dt.timedelta
        limits = self._limits
        began, seen = at - span(seconds=limits.session_s), at - span(seconds=limits.idle_s)
        store.end_old_sessions(connection, began, seen)
        store.open_session(connection, digest, user.name, entry.doer.origin, at)
        self._record(entry, "", connection)
        return True

    async def person(self, token: str, *, seen: bool = True) -> Person | None:
        """Return who has this cookie, None when the session is over.

        Args:
            token: the cookie.
            seen: the person does something now; False: it is only a page that refreshes itself.
        """
        digest = digest_of(token)
        found = self._believed.get(digest)
        if found is None or found.until <= trio.current_time():
            found = self._believe(
                digest, await self._store.read(partial(store.session, digest=digest))
            )
        person, now = found.person, self._clock.now()
        if person is None:
            return None
        idle, age = now - found.seen_at, now - person.since
        if (
            idle.total_seconds() >= self._limits.idle_s
            or age.total_seconds() >= self._limits.session_s
        ):
            return None
        if seen and idle.total_seconds() >= min(SEEN_EVERY_SECONDS, self._limits.idle_s / 4):
            found.seen_at = now
            await self._store.write(partial(store.see, digest=digest, at=now))
        return person

    def _believe(self, digest: str, row: store.SessionRow | None) -> _Believed:
        now = trio.current_time()
        if len(self._believed) >= BELIEVED_MAX:
            for old in [key for key, one in self._believed.items() if one.until <= now]:
                del self._believed[old]
        if row is None:
            return _Believed(None, self._clock.now(), 0.0)
        person = Person(row.name, row.role, row.has_totp, digest, row.created_at)
        found = _Believed(person, row.seen_at, now + BELIEVED_SECONDS)
        if len(self._believed) < BELIEVED_MAX:
            self._believed[digest] = found
        return found

    async def log_out(self, person: Person, origin: str) -> None:
        """End a session."""
        entry = Entry(Doer(person.name, person.role, origin), LOGGED_OUT, {})

        def end(connection: Any) -> None:  # noqa: ANN401
            store.end_session(connection, person.session)
            self._record(entry, "", connection)

        await self._store.write(end)
        self._forget(person.name)
        log.info("login.ended", user=person.name, origin=origin)

    # -- inside -------------------------------------------------------------------------------

    async def _change(self, name: str, values: dict[str, Any], keep: str = "") -> None:
        now = self._clock.now()

        def write(connection: Any) -> bool:  # noqa: ANN401
            store.end_sessions(connection, name, but=keep)
            return store.change(connection, name, values, now)

        if not await self._store.write(write):
            raise _no_user(name)
        self._forget(name)
        log.info("user.changed", user=name, what=sorted(values.keys() - {"totp_step"}))

    async def _new_hash(self, name: str, password: str) -> str:
        try:
            parse_name(name, "a user's name")
            passwords.check_password(name, password)
        except ValueError as error:
            raise UserRefusedError("BAD_STATE", str(error)) from error
        stored: str = await self._slowly(partial(passwords.hashed, password))
        return stored

    async def _matches(self, user: store.User | None, password: str) -> bool:
        def compare() -> bool:
            given = password[: passwords.PASSWORD_CHARS_MAX + 1]
            return passwords.matches(passwords.decoy() if user is None else user.password, given)

        right: bool = await self._slowly(compare)
        return right

    async def _slowly(self, work: Callable[[], Any]) -> Any:  # noqa: ANN401
        if self._hashing.statistics().tasks_waiting >= HASHES_WAITING_MAX:
            raise UserRefusedError("BAD_STATE", "too many log in at this moment; try again")
        return await trio.to_thread.run_sync(work, limiter=self._hashing)

    def _record(self, entry: Entry, refusal: str, connection: Any) -> None:  # noqa: ANN401
        now, configuration = self._clock.now(), self._configuration()
        audit.answer(connection, entry, now, configuration, refusal=refusal)

    def _forget(self, name: str) -> None:
        """Look up the sessions of a user anew."""
        believed = self._believed
        for digest in [
            key
            for key, one in believed.items()
            if one.person is not None and one.person.name == name
        ]:
            del believed[digest]


def digest_of(token: str) -> str:
    """Return what the store knows of a cookie."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _printable(name: str) -> str:
    """Return a name as it may be recorded, whatever was typed."""
    try:
        return parse_name(name)
    except ValueError:
        return "?"


def _no_user(name: str) -> UserRefusedError:
    return UserRefusedError("NOT_FOUND", f"no user {name!r}")
