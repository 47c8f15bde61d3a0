"""One front-end machine among those that share the store: its life sign, its places, its post.

What is told in a commit (:func:`fep.store.database.tell`) reaches every machine that lives: who
lost the connection it hears by ends, and reads everything anew at its next start. So nothing told
is missed, and letters carry only what is too long to be told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, Final, TypeVar

import attrs
import msgspec
import orjson
import sqlalchemy as sa
import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import steady_seconds
from fep.domain.errors import ConfigError, FepError
from fep.domain.ids import new_session_id
from fep.machines import store
from fep.machines.state import (
    BEATS_PER_LEASE,
    MARGIN_SHARE,
    Lease,
    Look,
    Machine,
    Said,
    Standing,
    may_claim,
    should_leave,
)
from fep.store.database import (
    NOTE_BYTES_MAX,
    Done,
    Store,
    StoreBusyError,
    StoreFailedError,
    StoreFullError,
    Work,
    tell,
)

log = structlog.get_logger()

T = TypeVar("T")

WATCH_SECONDS: Final = 0.1
"""Between two looks at what changes without being told: keys, links, leases."""
RETRY_SECONDS: Final = 0.2
CALL_SECONDS_MAX: Final = 150.0
"""How long a machine waits for another's answer; a plan of a pool takes the longest."""
WORDS_SPARE: Final = 200
"""Of a note, for what stands around its items."""


class PlaceLostError(FepError):
    """Another machine serves the bank by now, or may soon: nothing was changed."""

    code = "BAD_STATE"


class NoAnswerError(FepError):
    """Another machine did not answer: what became of the request is not known here."""

    code = "BAD_STATE"


class RefusedElsewhereError(FepError):
    """Another machine refused a request, in its own words and with its own code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DefectElsewhereError(FepError):
    """A machine met a defect of its own in what another asked; what it did of it is not known."""

    code = "INTERNAL"


@attrs.define(eq=False)
class _Want:
    """A place that somebody in this process would fill."""

    what: str
    has_key: Callable[[], bool]
    link_is_up: Callable[[], bool]
    standing: Standing = attrs.Factory(Standing)
    won: trio.Event = attrs.Factory(trio.Event)


@attrs.define(eq=False)
class Tenure:
    """One grant of a place to this machine; over when it is lost or should be left."""

    lease: Lease
    over: trio.Event = attrs.Factory(trio.Event)
    is_lost: bool = False
    """Another machine may hold the place: nothing may be written or sent for it any more."""

    @property
    def what(self) -> str:
        """The place."""
        return self.lease.what

    def lose(self) -> None:
        """Note that it is lost."""
        self.is_lost = True
        self.over.set()


Hear = Callable[[Any], None]
Answer = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Does what another machine asks; raises FepError to refuse."""


class Machines:
    """The machines that share the store, as one of them sees them.

    Start :meth:`run` when the store runs; ``started()`` when this machine is known to the others
    and hears them. It ends when cancelled, and leaves in order; raises ``StoreFailedError`` when
    it does not hear the others any more, and ``ConfigError`` where it may not be one of them.

    Args:
        database: the shared store.
        alarms: where MACHINE_LOST goes.
        me: this machine; its instance is new at each start.
        before: the instance of its last process, certainly dead; empty where that is not known.
        steady: a clock that is never set.
    """

    def __init__(
        self,
        database: Store,
        alarms: Alarms,
        me: store.Me,
        before: str = "",
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        self.me = me
        self.look = Look()
        self._store = database
        self._alarms = alarms
        self._before = before
        self._steady = steady
        self._beat_s = me.lease_s / BEATS_PER_LEASE
        self._wake = trio.Event()
        self._wants: dict[str, _Want] = {}
        self._held: dict[str, Tenure] = {}
        self._says: Callable[[], Said] = Said
        self._told = Said()
        self._hears: dict[str, Hear] = {}
        self._looked: list[Callable[[], None]] = []
        self._calls = count(1)
        self._answers: dict[str, tuple[trio.Event, list[Mapping[str, Any]]]] = {}
        self._answer: Answer | None = None
        self._post = trio.Event()
        self._was_stalled = False

    # -- what others in this process give and ask -----------------------------------------------

    def say(self, says: Callable[[], Said]) -> None:
        """Let this function tell what this machine says of itself, but for its fitness."""
        self._says = says

    def hear(self, name: str, hear: Hear) -> None:
        """Give a function what other machines tell under a name."""
        self._hears[name] = hear

    def after_look(self, call: Callable[[], None]) -> None:
        """Call a function whenever the machines were looked at."""
        self._looked.append(call)

    def answer(self, answer: Answer) -> None:
        """Let a function do what other machines ask."""
        self._answer = answer

    def changed(self) -> None:
        """Tell the others soon: what this machine says of itself is another thing now."""
        self._wake.set()

    def others(self) -> list[Machine]:
        """Return the other machines that live."""
        return [one for one in self.look.alive() if one.number != self.me.number]

    def holder(self, what: str) -> Machine | None:
        """Return the machine that serves something by the last look, None when none does."""
        return self.look.holder(what)

    def is_fit_anywhere(self, what: str) -> bool:
        """Say whether a machine that lives could fill a place at this moment."""
        want = self._wants.get(what)
        here = want is not None and want.standing.is_fit(self._steady())
        return here or any(what in one.said.fit for one in self.others())

    # -- places ---------------------------------------------------------------------------------

    async def win(
        self,
        what: str,
        has_key: Callable[[], bool],
        link_is_up: Callable[[], bool] = lambda: True,
    ) -> Tenure:
        """Wait until this machine holds a place, and return the grant.

        Args:
            what: the place; one that was not known yet is made.
            has_key: whether this machine could fill it now.
            link_is_up: whether it does well, once it holds the place.
        """
        want = _Want(what, has_key, link_is_up)
        self._wants[what] = want
        self._watch()
        self._wake.set()
        try:
            await want.won.wait()
        except trio.Cancelled:
            self._wants.pop(what, None)
            # Won in the same moment: it is not moved on any more, and runs out.
            self._held.pop(what, None)
            raise
        return self._held[what]

    async def give_up(self, tenure: Tenure) -> None:
        """End a grant; where it was not lost, another machine may take the place at once."""
        self._wants.pop(tenure.what, None)
        if self._held.get(tenure.what) is tenure:
            del self._held[tenure.what]
        if tenure.is_lost:
            return
        tenure.lose()

        def leave(connection: sa.Connection) -> None:
            store.release(connection, self.me, tenure.what)
            tell(connection, self._note("machine", None))

        await self._patiently(leave)
        log.info("place.left", place=tenure.what, fence=tenure.lease.fence)

    def tenure(self, what: str) -> Tenure | None:
        """Return this machine's present grant of a place."""
        return self._held.get(what)

    def may_begin(self, what: str) -> bool:
        """Say whether the first byte of a payment may leave at this very moment."""
        tenure = self._held.get(what)
        return tenure is not None and not tenure.is_lost and tenure.lease.is_valid(self._steady())

    def guarded(
        self, whats: Iterable[str], work: Callable[[sa.Connection], Any]
    ) -> Callable[[sa.Connection], Any]:
        """Return the work, done only while this machine holds these places by its present grants.

        Raises:
            PlaceLostError: it does not hold one of them now; so does the work, if it comes to that.
        """
        fences: dict[str, int] = {}
        for what in whats:
            tenure = self._held.get(what)
            if tenure is None or tenure.is_lost:
                msg = f"another machine serves {what} by now; try again"
                raise PlaceLostError(msg)
            fences[what] = tenure.lease.fence

        def checked(connection: sa.Connection) -> Any:  # noqa: ANN401
            if not store.holds(connection, self.me, fences):
                raise PlaceLostError("the lease has run out: another machine may serve it by now")
            return work(connection)

        return checked

    def lost(self, whats: Iterable[str]) -> None:
        """Note that the database says that these places are not held any more."""
        for what in whats:
            if (tenure := self._held.get(what)) is not None:
                self._lose(tenure, "the database says so")

    def _lose(self, tenure: Tenure, reason: str) -> None:
        if tenure.is_lost:
            return
        tenure.lose()
        log.error("place.lost", place=tenure.what, fence=tenure.lease.fence, reason=reason)

    # -- telling --------------------------------------------------------------------------------

    def tell(self, connection: sa.Connection, name: str, value: Any) -> None:  # noqa: ANN401
        """Have the other machines told something when this work is stored."""
        tell(connection, self._note(name, value))

    def tell_all(self, connection: sa.Connection, name: str, items: Sequence[Any]) -> None:
        """Have them told a list, in as many notes as it needs; each item is a small one."""
        part: list[Any] = []
        size = 0
        for item in items:
            length = len(orjson.dumps(item)) + 1
            if part and size + length > NOTE_BYTES_MAX - WORDS_SPARE:
                self.tell(connection, name, part)
                part, size = [], 0
            part.append(item)
            size += length
        if part:
            self.tell(connection, name, part)

    def _note(self, name: str, value: Any) -> str:  # noqa: ANN401
        return orjson.dumps({"from": self.me.instance, "name": name, "value": value}).decode()

    def _take_note(self, text: str) -> None:
        note = orjson.loads(text)
        if note["from"] == self.me.instance:
            return
        match note["name"]:
            case "machine":
                self._wake.set()
            case "post":
                if note["value"] == self.me.instance:
                    self._post.set()
            case name:
                # A newer release may tell what this one does not know.
                if (hear := self._hears.get(name)) is not None:
                    hear(note["value"])

    # -- letters --------------------------------------------------------------------------------

    def post(
        self,
        connection: sa.Connection,
        to: Machine,
        kind: str,
        body: Any,  # noqa: ANN401
    ) -> None:
        """Write a letter to another machine, in this work."""
        self._post_to(connection, to.instance, kind, body)

    def _post_to(
        self,
        connection: sa.Connection,
        instance: str,
        kind: str,
        body: Any,  # noqa: ANN401
    ) -> None:
        store.post(connection, instance, self.me.instance, kind, msgspec.json.encode(body))
        self.tell(connection, "post", instance)

    async def ask(self, to: Machine, body: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Have another machine do something, and return its answer.

        Raises:
            RefusedElsewhereError: it refused.
            NoAnswerError: it did not answer; whether it did it is not known.
            StoreFullError, StoreBusyError: it was not asked.
        """
        number = f"{self.me.instance}:{next(self._calls)}"
        answered, box = self._answers[number] = (trio.Event(), [])
        try:
            await self._store.write(
                lambda c: self.post(c, to, "ask", {"id": number, "ask": dict(body)})
            )
            with trio.move_on_after(CALL_SECONDS_MAX):
                while not answered.is_set() and self._is_alive(to):
                    with trio.move_on_after(self._beat_s):
                        await answered.wait()
        finally:
            del self._answers[number]
        if not box:
            msg = f"machine {to.number} gave no answer; see what became of it"
            raise NoAnswerError(msg)
        if "error" in box[0]:
            raise RefusedElsewhereError(box[0]["error"]["code"], box[0]["error"]["message"])
        return box[0]["value"]

    def _is_alive(self, one: Machine) -> bool:
        return any(other.instance == one.instance for other in self.others())

    async def _read_post(self, nursery: trio.Nursery) -> None:
        """Read letters in the order in which they were written, each once."""
        last = 0
        while True:
            await self._post.wait()
            self._post = trio.Event()
            unread = partial(store.unread, addressee=self.me.instance)
            while letters := await until_taken(
                partial(self._store.read, partial(unread, after=last))
            ):
                last = letters[-1].seq
                for letter in letters:
                    await self._take_letter(letter, nursery)
                seqs = [letter.seq for letter in letters]
                await self._patiently(partial(store.forget, seqs=seqs))

    async def _take_letter(self, letter: store.Letter, nursery: trio.Nursery) -> None:
        body = msgspec.json.decode(letter.body)
        match letter.kind:
            case "ask":
                nursery.start_soon(self._do, letter.sender, body)
            case "answer":
                if (waiting := self._answers.get(body["id"])) is not None:
                    waiting[1].append(body)
                    waiting[0].set()
            case kind:
                if (hear := self._hears.get(kind)) is not None:
                    hear(body)

    async def _do(self, asker: str, body: Mapping[str, Any]) -> None:
        """Do what another machine asks, and answer.

        Raises:
            StoreFailedError: the store has ended, and so does this machine.
        """
        assert self._answer is not None
        answer: dict[str, Any] = {"id": body["id"]}
        try:
            answer["value"] = await self._answer(body["ask"])
        except (StoreFailedError, ExceptionGroup):
            raise
        except FepError as error:
            answer["error"] = _told(error)
        except Exception:  # as in a connection: it ends this request alone
            log.exception("machine.answer_crashed", asker=asker)
            answer["error"] = _told(
                DefectElsewhereError(
                    f"machine {self.me.number} failed in it by a defect of its own, which is in its"
                    " log; see what became of it"
                )
            )
        await self._patiently(lambda c: self._post_to(c, asker, "answer", answer))

    # -- life -----------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live among the others until cancelled."""
        async with trio.open_nursery() as nursery:
            # First hear, then be known, then look: nothing that is told falls in between.
            await nursery.start(self._store.listen, self._take_note)
            await self._register()
            nursery.start_soon(self._keep_watch)
            nursery.start_soon(self._read_post, nursery)
            try:
                await self._beat()
                task_status.started()
                while True:
                    with trio.move_on_after(self._beat_s):
                        await self._wake.wait()
                    self._wake = trio.Event()
                    await self._beat()
            finally:
                with trio.CancelScope(shield=True, relative_deadline=self._beat_s):
                    await self._leave()

    async def _register(self) -> None:
        def enter(connection: sa.Connection) -> str | None:
            other = store.register(connection, self.me)
            tell(connection, self._note("machine", None))
            return other

        other = await self._store.write(enter)
        if other is not None:
            msg = f"this store belongs to enterprise {other!r}, and this is {self.me.enterprise!r}"
            raise ConfigError(msg)

    async def _leave(self) -> None:
        def leave(connection: sa.Connection) -> None:
            store.leave(connection, self.me)
            tell(connection, self._note("machine", None))

        try:
            await self._store.write(leave)
        except FepError as error:
            # The others see it by its silence.
            log.warning("machine.leave_not_stored", reason=str(error))

    async def _beat(self) -> None:
        """Say that this machine lives, see what the others say, and take what is free."""
        now = self._steady()
        fit = frozenset(want.what for want in self._wants.values() if want.standing.is_fit(now))
        said = attrs.evolve(self._says(), fit=fit)
        held = {what: one for what, one in self._held.items() if not one.is_lost}
        wanted = list(self._wants)
        is_news = (said.fit, said.clients) != (self._told.fit, self._told.clients)

        def work(connection: sa.Connection) -> Look | None:
            found = store.beat(connection, self.me, said, list(held))
            if found is not None and (new := [one for one in wanted if one not in found.places]):
                for what in new:
                    store.add_place(connection, what)
                found = store.look(connection)
            if is_news:
                tell(connection, self._note("machine", None))
            return found

        try:
            found: Look | None = await self._store.write(work)
        except (StoreFullError, StoreBusyError) as error:
            log.warning("machine.beat_not_stored", reason=str(error))
            await trio.sleep(RETRY_SECONDS)
            self._wake.set()
            return
        if found is None:
            msg = f"another process has become machine {self.me.number}; this one ends"
            raise ConfigError(msg)
        self._told = said
        for what, tenure in held.items():
            place = found.places[what]
            if place.instance == self.me.instance and place.fence == tenure.lease.fence:
                tenure.lease.until = now + self.me.lease_s
            else:
                self._lose(tenure, f"machine {place.holder} holds it")
        self._see(found)
        await self._claim_free()

    def _see(self, found: Look) -> None:
        before = {one.number: one for one in self.look.machines}
        self.look = found
        for one in found.machines:
            if one.number == self.me.number:
                continue
            was = before.get(one.number)
            if one.is_alive and (was is None or not was.is_alive or was.instance != one.instance):
                log.info("machine.joined", number=one.number, release=one.release)
            elif not one.is_alive and was is not None and was.is_alive:
                if one.left:
                    log.info("machine.left", number=one.number)
                else:
                    log.error("machine.silent", number=one.number)
            if one.is_alive or one.left:
                self._alarms.clear(AlarmKind.MACHINE_LOST, one.number)
            elif was is None or was.is_alive or was.left:
                self._alarms.raise_alarm(
                    AlarmKind.MACHINE_LOST, one.number, "its lease has run out without a word"
                )
        for gone in before.keys() - {one.number for one in found.machines}:
            # Taken off the list by hand: it will not come back.
            self._alarms.clear(AlarmKind.MACHINE_LOST, gone)
        for call in self._looked:
            call()

    async def _claim_free(self) -> None:
        others = self.others()
        for want in list(self._wants.values()):
            place = self.look.places.get(want.what)
            if want.what in self._held or place is None:
                continue
            fit = want.standing.is_fit(self._steady())
            if may_claim(place, others, fit=fit, before=self._before):
                await self._claim(want)

    async def _claim(self, want: _Want) -> None:
        now = self._steady()

        def take(connection: sa.Connection) -> int | None:
            fence = store.claim(connection, self.me, want.what, self._before)
            if fence is not None:
                tell(connection, self._note("machine", None))
            return fence

        try:
            fence = await self._store.write(take)
        except (StoreFullError, StoreBusyError):
            return
        if fence is None or self._wants.get(want.what) is not want:
            # Who wanted it has gone: it is not moved on, and runs out.
            return
        margin_s = self.me.lease_s * MARGIN_SHARE
        lease = Lease(want.what, fence, now + self.me.lease_s, margin_s)
        self._held[want.what] = Tenure(lease)
        log.info("place.taken", place=want.what, fence=fence)
        want.won.set()
        self._wake.set()

    async def _keep_watch(self) -> None:
        """See what nobody tells: a key that comes or goes, a link that is down, a lease's end."""
        while True:
            await trio.sleep(WATCH_SECONDS)
            self._watch()

    def _watch(self) -> None:
        if self._store.stalled != self._was_stalled:
            self._was_stalled = self._store.stalled
            if self._was_stalled:
                cause = "it was asked and does not answer"
                self._alarms.raise_alarm(AlarmKind.STORE_DOWN, "store", cause)
            else:
                self._alarms.clear(AlarmKind.STORE_DOWN, "store")
        now = self._steady()
        others = self.others()
        for want in self._wants.values():
            tenure = self._held.get(want.what)
            was_fit = want.standing.is_fit(now)
            want.standing.note(
                now,
                has_key=want.has_key(),
                holds=tenure is not None,
                link_is_up=want.link_is_up(),
            )
            if want.standing.is_fit(now) != was_fit:
                self._wake.set()
            if tenure is None or tenure.over.is_set():
                continue
            if should_leave(want.what, others, want.standing, now):
                log.warning("place.yielded", place=want.what, fence=tenure.lease.fence)
                tenure.over.set()
        for tenure in list(self._held.values()):
            if tenure.lease.has_run_out(now):
                self._lose(tenure, "the database did not answer within the lease")

    async def _patiently(self, work: Callable[[sa.Connection], Any]) -> None:
        await until_taken(partial(self._store.write, work))


def _told(error: FepError) -> dict[str, str]:
    return {"code": error.code, "message": str(error)}


async def until_taken(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask the store, again and again while it refuses for the moment, and return its answer.

    What nobody would ask again must not be lost: a notice, a letter, the tasks of a bank.

    Args:
        ask: has changed nothing where it is refused.
    """
    while True:
        try:
            return await ask()
        except (StoreFullError, StoreBusyError):
            await trio.sleep(RETRY_SECONDS)


@attrs.frozen
class GuardedStore:
    """The store, for one who may write only while this machine holds a place."""

    store: Store
    machines: Machines
    place: str

    def submit(self, work: Work, done: Done) -> None:
        """As the store's own.

        Raises:
            PlaceLostError: this machine does not hold the place.
            StoreBusyError, StoreFailedError: as the store's own.
        """
        self.store.submit(self.machines.guarded([self.place], work), done)

    async def write(self, work: Work) -> Any:  # noqa: ANN401
        """As the store's own.

        Raises:
            PlaceLostError: this machine does not hold the place; nothing was written.
            StoreFullError, StoreFailedError, StoreBusyError: nor was anything then.
        """
        return await self.store.write(self.machines.guarded([self.place], work))

    async def read(self, work: Work) -> Any:  # noqa: ANN401
        """As the store's own: anybody may read."""
        return await self.store.read(work)


def new_me(number: str, enterprise: str, release: str, lease_s: float) -> store.Me:
    """Return this machine for a new process."""
    return store.Me(number, new_session_id(), enterprise, release, lease_s)
