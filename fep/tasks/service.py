"""The task service: admits, hands bodies back by claim check, delivers results, answers questions.

Everything a client is told is on disk first. The lanes do the work at the banks; this owns the
tasks that are open, and the boxes of what the clients must still be asked and told.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Final, Self

import orjson
import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.account import Account
from fep.domain.clock import Clock, PatientClock, to_text
from fep.domain.errors import BodyError, FepError
from fep.domain.ids import (
    AccountNumber,
    BankName,
    ClientName,
    ClientRef,
    TaskId,
    client_ref,
    short_ref,
)
from fep.domain.ids import Sequence as Numbers
from fep.domain.money import ZERO, Cny
from fep.domain.order import (
    MOVES_MONEY,
    BalanceQuery,
    BatchOrder,
    Body,
    Kind,
    Order,
    PaymentOrder,
    ReturnedQuery,
    StatementQuery,
    parse_body,
)
from fep.links.mux import UnmatchedReply
from fep.machines.service import Machines, PlaceLostError
from fep.machines.state import bank_place
from fep.store.database import Store, StoreBusyError, StoreFullError, Work
from fep.tasks import store
from fep.tasks.admission import Admission, Arrival
from fep.tasks.changes import Changes, Done
from fep.tasks.config import TasksConfig
from fep.tasks.figures import Figures
from fep.tasks.lane import Lane, LaneParts
from fep.tasks.mailbox import ClientBox, Mailbox
from fep.tasks.register import Register
from fep.tasks.sharing import Sharing
from fep.tasks.state import BEFORE_SENDING, DONE, FINAL, OPEN_AT_BANK, Event, State, step
from fep.tasks.task import (
    Answer,
    Delivery,
    Message,
    OvertakenError,
    Refused,
    Submission,
    Task,
    digest,
)
from fep.tasks.tracing import NoTracing, Tracing

log = structlog.get_logger()

OPEN_AGAIN_SECONDS: Final = 5.0
"""After so long a client that has too many open tasks may try again."""
TIMER_SECONDS: Final = 0.5
HELD_LOOK_SECONDS: Final = 5.0
"""A payment that is too old and held after a restore is looked at again so long after."""
ABSENT_SECONDS: Final = 2.0
"""A client that is back by then is asked again for what it was asked for, and nothing lapses."""
TIMER_SECONDS_MIN: Final = 0.05
LOOK_SECONDS_MAX: Final = 30.0
"""The longest time between two looks at what may lapse or expire."""
EXPIRED_AT_ONCE_MAX: Final = 500
RECEIPTS_AT_ONCE_MAX: Final = 500
"""Of acknowledgements that the store refused, in one try."""
TOO_OLD: Final = "too old, and never fetched: nothing was sent"
PAGE_TASKS_MAX: Final = 500
NEARLY_FULL_SHARE, RELIEVED_SHARE = 0.9, 0.8
EVIDENCE_CHARS_MIN: Final = 10
REASON_CHARS_MAX: Final = 500
"""Of why a body was refused: it may echo what the client wrote, and is told in a result's line."""
FREE_SECONDS_MAX: Final = 5.0
"""How long a person's act waits for a task that is held."""
ANSWERED_NAMED_MAX: Final = 5
HELD_SHOWN_MAX: Final = 1000
"""Of payments held after a restore, so that they fit a line."""
CHAIN_FIRST_MAX, CHAIN_LAST_MAX = 500, 1000
"""Of a causal chain, so that it fits a line: months of inquiries leave out some in the middle."""


class TaskRefusedError(FepError):
    """An act on a task was refused; ``code`` is the protocol's."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.message)
        self.code = refused.code


class TaskService:
    """Owns all open tasks and their lanes.

    Call :meth:`load` once the store runs, then start :meth:`run` and each lane's ``run``.
    """

    tracing: Tracing = NoTracing()
    """Told what becomes of tasks; the daemon puts another in its place before :meth:`load`."""
    _accepting = True
    _was_full = False
    _receipts_due = math.inf
    """When the store is asked again for what it refused of acknowledgements (trio's time)."""

    def __init__(
        self,
        *,
        store: Store,
        alarms: Alarms,
        clock: Clock,
        sequence: Numbers,
        config: TasksConfig,
        enterprise: str,
        accounts: Mapping[AccountNumber, Account],
        configuration: str,
    ) -> None:
        self.store = store
        self.alarms = alarms
        self.clock = clock
        self.sequence = sequence
        self.config = config
        self.enterprise = enterprise
        self.accounts = accounts
        self.configuration = configuration
        """Digest of the configuration in force; every event bears it."""
        self.lanes: dict[BankName, Lane] = {}
        self._stopped: set[BankName] = set()
        """Banks that an operator stopped."""
        self._retired: dict[BankName, Lane] = {}
        """Of banks taken out of the configuration; a bank that comes back goes on where it was."""
        self.present: set[ClientName] = set()
        self._open = Register()
        self._boxes: dict[ClientName, ClientBox] = {}
        self._paid: dict[AccountNumber, Cny] = {}
        self.figures = Figures()
        self.sharing: Sharing | None = None
        """None: this machine is the only one."""
        self._admission = Admission(store, clock, config.age_max_s, self._admitted, self.note_full)
        self._changes = Changes(store)
        self._unanswered: set[object] = set()
        """One mark for each change that waits for the disk."""
        self._answered = trio.Event()
        self._admitting = 0
        """How many tasks may become open by what waits to be admitted."""
        self._admitting_of: dict[ClientName, int] = {}
        """The same of each client that has a limit of its own."""
        self._leaving: dict[ClientName, float] = {}
        """When the offers to a client that has gone lapse (trio's time)."""
        self._look = trio.Event()
        """Set when something may lapse or expire sooner than was known."""
        self._refused_receipts: dict[TaskId, tuple[str, str]] = {}
        """State and moment of results that clients have and the store did not take the word of.

        Never more than the store owes: while it takes nothing no task ends.
        """
        self._patient = PatientClock(clock, trio.current_time)
        self.held_since: dt.datetime | None = None
        """While set no payment is sent: the store is a copy of that moment that was put back."""

    # -- start and stop -----------------------------------------------------------------------

    def share(self, machines: Machines) -> Sharing:
        """Be one of several machines; before :meth:`load`."""
        sharing = self.sharing = Sharing(self, machines)
        self._admission.tell = sharing.tell_admitted
        return sharing

    def add_lane(self, parts: LaneParts) -> Lane:
        """Make the lane of a bank; the daemon starts its ``run`` under its supervisor."""
        lane = Lane(parts, self)
        earlier = self._retired.pop(parts.bank, None) or self.lanes.get(parts.bank)
        if earlier is not None:
            lane.take_over(earlier)
        self.lanes[parts.bank] = lane
        self.alarms.clear(AlarmKind.LANE_FAILED, parts.bank)
        return lane

    async def remove_lane(self, bank: BankName) -> None:
        """Take nothing more for a bank whose lane has ended.

        Its open tasks wait for its return, with an alarm; what may have left the machine can be
        closed by two persons meanwhile. What was cut off is finished by another call; a bank that
        has no lane here is none to remove.
        """
        lane = self.lanes.pop(bank, None) or self._retired.get(bank)
        if lane is None:
            return
        self._retired[bank] = lane
        await lane.let_go()
        # Also of a call that was cut off a change may still be with the store.
        await self.settled()
        await self._settle_orphans()
        await lane.use_all_late()

    async def keep_drained(self) -> None:
        """Hold the lanes that an operator stopped: that outlives the lane, and the process."""
        self._stopped = await self.store.read(store.drained)
        for bank in self._stopped & self.lanes.keys():
            self.lanes[bank].drain()

    async def load(self) -> None:
        """Read what was open when the last process ended.

        Of several machines each reads the tasks of a bank when it takes the bank over.
        """
        if self.sharing is not None:
            # What was overdue here may have ended elsewhere; who serves the bank raises it anew.
            self.alarms.clear_all(AlarmKind.UNKNOWN_OVERDUE)
            await self.keep_drained()
            await self._hold()
            return
        tasks, last_seq, owed = await self.store.read(
            lambda c: (store.open_tasks(c), store.last_seq(c), store.owed(c))
        )
        self._admission.begin_after(last_seq)
        await self.know(tasks)
        for client, task_id in owed:
            self._box(client).results[task_id] = None
        await self.keep_drained()
        await self._hold()
        await self._settle_orphans()
        log.info("tasks.loaded", open=len(tasks), owed=len(owed))

    # -- after a restore ----------------------------------------------------------------------

    async def _hold(self) -> None:
        """Send no payment when the store is a copy that was put back, until a person releases them.

        What was sent after the copy was made is not in it: a payment that waits here may have been
        done.
        """
        self.held_since = await self.store.read(store.held_since)
        if self.held_since is None:
            self.alarms.clear(AlarmKind.STORE_RESTORED, "store")
            return
        taken_at = to_text(self.held_since)
        log.error("payments.held", taken_at=taken_at, count=len(await self._held()))
        self.alarms.raise_alarm(
            AlarmKind.STORE_RESTORED, "store", f"what was sent since {taken_at} is not known here"
        )

    def is_held(self, task: Task) -> bool:
        """Say whether a payment must not be sent, since it may have been."""
        return self.held_since is not None and task.moves_money and task.state in BEFORE_SENDING

    async def _held(self) -> list[Task]:
        """Return the payments that are held, those of other machines' banks too."""
        found: Iterable[Task] = self._open
        if self.sharing is not None:
            stored: list[Task] = await self.store.read(store.open_tasks)
            found = [self._open.get(task.task_id) or task for task in stored]
        held = [task for task in found if self.is_held(task)]
        return sorted(held, key=lambda task: task.seq)

    async def restored(self) -> dict[str, Any]:
        """Return what waits for a person after a restore, in the order of admission.

        Where not all of it fits, what the bank has answered for is there.
        """
        held = await self._held()
        read = partial(store.held_answers, seqs=[task.seq for task in held])
        answers: dict[int, tuple[str, str]] = await self.store.read(read)
        shown = sorted(held, key=lambda task: task.seq not in answers)[:HELD_SHOWN_MAX]
        shown.sort(key=lambda task: task.seq)
        return {
            "held": self.held_since is not None,
            "taken_at": None if self.held_since is None else to_text(self.held_since),
            "count": len(held),
            "answered": len(answers),
            "payments": [self._held_view(task, answers.get(task.seq)) for task in shown],
        }

    def _held_view(self, task: Task, answer: tuple[str, str] | None) -> dict[str, Any]:
        view: dict[str, Any] = {
            "task_id": task.task_id,
            "client": task.client,
            "bank": task.bank,
            "state": task.state.value,
            "submitted_at": to_text(task.submitted_at),
            "client_ref": self.reference_of(task),
        }
        if isinstance(task.body, Order):
            view |= {"payer": task.body.payer, "amount": str(task.body.amount)}
            if isinstance(task.body, BatchOrder):
                view["rows"] = len(task.body.rows)
            else:
                view["payee"] = task.body.payee.account
        if answer is not None:
            view["answered_at"], view["answer"] = answer
        return view

    async def release(self, who: str, evidence: str) -> int:
        """Let payments be sent again after a restore; returns how many waited.

        Raises:
            TaskRefusedError: BAD_STATE, none are held, the evidence says too little, or the bank
                has answered for some that nobody has closed.
        """
        if self.held_since is None:
            raise TaskRefusedError(Refused("BAD_STATE", "no payments are held"))
        _check_evidence(evidence)
        now = self.clock.now()

        def write(connection: Any) -> list[TaskId]:  # noqa: ANN401
            # Here, so that no answer comes between: what the bank says it has would be sent again.
            if answered := store.answered_while_held(connection):
                return answered
            store.release(connection, who, evidence, now, self.configuration)
            if self.sharing is not None:
                self.sharing.tell_released(connection)
            return []

        def known(answered: list[TaskId]) -> None:
            if not answered:
                self.know_released()

        held = await self._held()
        if answered := await self.store.write(write, known):
            raise TaskRefusedError(Refused("BAD_STATE", _close_first(answered)))
        log.warning("payments.released", who=who, count=len(held))
        return len(held)

    def know_released(self) -> None:
        """Take what is stored: payments may be sent again."""
        self.held_since = None
        self.alarms.clear(AlarmKind.STORE_RESTORED, "store")
        for lane in [*self.lanes.values(), *self._retired.values()]:
            lane.put_back_held()

    async def _settle_orphans(self) -> None:
        """Tell of banks whose tasks are open and who are not configured any more.

        No lane will settle what was being sent to them, so that is done here.
        """
        orphans = {bank for bank, states in self._open.counts().items() if states}
        orphans -= self.lanes.keys()
        for bank in sorted(orphans):
            log.error("tasks.orphaned", bank=bank)
            self.alarms.raise_alarm(
                AlarmKind.LANE_FAILED, bank, "open tasks of a bank that is not configured any more"
            )
        for task in [task for bank in orphans for task in self._open.of_bank(bank)]:
            if task.state is State.SENDING:
                event = Event.OUTCOME_LOST if task.moves_money else Event.QUERY_LOST
                task.inquire_at = self.clock.now() if task.moves_money else None
                at = None if task.inquire_at is None else to_text(task.inquire_at)
                cause = "its bank was taken out of the configuration while it was being sent"
                await self.change(task, (event,), cause, columns={"inquire_at": at})

    def stop_accepting(self) -> None:
        """Refuse new tasks from now on (shutting down)."""
        self._accepting = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let offers lapse and old tasks expire, until cancelled.

        What acknowledgements the store refused and has not taken by then is told again.
        """
        task_status.started()
        while True:
            self._look = trio.Event()
            with trio.move_on_after(self._quiet_seconds()):
                await self._look.wait()
            self._watch_disk()
            self._note_refused_receipts()
            # A bank that another machine serves by now: its tasks are forgotten in a moment.
            with suppress(PlaceLostError):
                await self._lapse()
            await self._expire()

    def _quiet_seconds(self) -> float:
        """Return for how long nothing lapses or expires; the wall clock may be set meanwhile.

        A full disk is asked again and again whether it has room.
        """
        now = trio.current_time()
        quiet = min(
            self._open.next_expiry - self.clock.now().timestamp(),
            *(lane.next_lapse() - now for lane in self.lanes.values()),
            *(lapses - now for lapses in self._leaving.values()),
            self._receipts_due - now,
            TIMER_SECONDS if self._was_full else LOOK_SECONDS_MAX,
        )
        return max(quiet, TIMER_SECONDS_MIN)

    async def run_unmatched(
        self,
        replies: trio.MemoryReceiveChannel[UnmatchedReply],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep every answer that matched nothing, and use it where it proves something."""
        task_status.started()
        async for unmatched in replies:
            await self._take_unmatched(unmatched)

    # -- admission ----------------------------------------------------------------------------

    def submit(
        self,
        client: ClientName,
        submissions: Sequence[Submission],
        done: Callable[[list[Answer]], None],
        open_max: int = 0,
    ) -> None:
        """Admit what arrived together; ``done`` gets one answer each, in order, once on disk.

        An id that is stored is answered as known, whatever holds for new ones: a queue that is full
        by now must not look like a refusal of the task that is in it.

        Args:
            client: whose they are.
            submissions: what arrived.
            done: called with the answers.
            open_max: how many open tasks the client may have on this machine; 0: no such limit.
        """
        if not self._accepting:
            msg = "the daemon is stopping; submit again after restart"
            done([Refused("SHUTTING_DOWN", msg) for _ in submissions])
            return
        room = self.config.queue_max - len(self._open) - self._admitting - self._elsewhere()
        full: Callable[[], Refused] = self._queue_full
        under_way = 0
        if open_max:
            under_way = self._admitting_of.get(client, 0)
            own_room = open_max - self._open.of_client(client) - under_way
            if own_room < room:
                room, full = own_room, partial(_limited, open_max)
        # What is known takes no room, but only the disk knows all that is.
        refusals = list(map(self._unacceptable, submissions))
        room = max(room, 0)
        wanted = refusals.count(None)
        taken = min(wanted, room)
        self._admitting += taken
        if open_max:
            self._admitting_of[client] = under_way + taken

        def answered(answers: list[Answer]) -> None:
            self._admitting -= taken
            if open_max:
                self._admitting_of[client] -= taken
            done(answers)

        told = full() if wanted > room else None
        arrival = Arrival(client, submissions, refusals, answered, room, told)
        self._admission.submit(arrival, self.configuration)

    def _admitted(self, fresh: list[Task]) -> None:
        """Know the tasks that are on disk now, and let their lanes have them."""
        self.figures.admitted += len(fresh)
        expiry = self._open.next_expiry
        mine = fresh if self.sharing is None else self.sharing.mine(fresh)
        self._open.keep_all(mine)
        for bank, several in itertools.groupby(mine, _bank):
            if (lane := self.lane_of(bank)) is not None:
                lane.add_new(list(several))
        if self._open.next_expiry < expiry:
            self._look.set()
        self._watch_fill()

    def _unacceptable(self, one: Submission) -> Refused | None:
        can = self.capabilities(one.bank)
        if can is None:
            foreign = () if self.sharing is None else self.sharing.foreign
            banks = ", ".join(sorted([*self.lanes, *foreign]))
            return Refused("UNKNOWN_BANK", f"no bank {one.bank!r}; there are: {banks}")
        if one.kind not in can:
            kinds = ", ".join(sorted(can))
            return Refused("UNSUPPORTED_KIND", f"bank {one.bank} can't {one.kind}; it has: {kinds}")
        return None

    def is_here(self, bank: BankName) -> bool:
        """Say whether the tasks of a bank are this machine's."""
        return self.sharing is None or self.sharing.holds(bank)

    def capabilities(self, bank: BankName) -> frozenset[Kind] | None:
        """Return what can be asked of a bank, None when there is no such bank."""
        lane = self.lanes.get(bank)
        if lane is not None:
            return lane.parts.capabilities
        return None if self.sharing is None else self.sharing.foreign.get(bank)

    def _elsewhere(self) -> int:
        """Return how many tasks of other machines' banks are open, as they said last."""
        if self.sharing is None:
            return 0
        return sum(sum(states.values()) for states in self.sharing.open_elsewhere().values())

    def _queue_full(self) -> Refused:
        return Refused("QUEUE_FULL", f"{self.config.queue_max} tasks are open; try again later")

    def parse(self, bank: BankName, kind: Kind, params: object) -> Body:
        """Return a body that this enterprise may send to this bank.

        Raises:
            BodyError: not valid, or an account that is not approved for direct connection.
        """
        body = parse_body(kind, params)
        own = ""
        match body:
            case PaymentOrder() | BatchOrder():
                own = body.payer
            case BalanceQuery() | StatementQuery() | ReturnedQuery():
                own = body.account
            case _:
                return body
        account = self.accounts.get(AccountNumber(own))
        if account is None or account.bank != bank:
            msg = f"account {own} is not an approved account at bank {bank}"
            raise BodyError(msg)
        return body

    # -- hand-back ----------------------------------------------------------------------------

    def attach(self, client: ClientName, note: Callable[[], None] | None = None) -> Mailbox:
        """Open a connection of a client for its messages; close the mailbox when it ends.

        Args:
            client: whose.
            note: told that there may be something to draw; else :meth:`take` waits for it.
        """
        mailbox = Mailbox(self._box(client), note)
        self.present.add(client)
        self._leaving.pop(client, None)
        if self.sharing is not None:
            self.sharing.attached(client)
        self._wake_offers()
        return mailbox

    def detach(self, mailbox: Mailbox) -> None:
        """End a connection; what it did not answer goes to the client's next one."""
        mailbox.close()
        if mailbox.box.present:
            return
        client = mailbox.box.client
        if self.sharing is not None:
            self.sharing.detached(client)
            if self.sharing.is_away(client):
                return
        self._gone(client)

    def _gone(self, client: ClientName) -> None:
        self.present.discard(client)
        self._leaving[client] = trio.current_time() + ABSENT_SECONDS
        self._look.set()

    def see_clients(self, came: Collection[ClientName], went: Collection[ClientName]) -> None:
        """Take which clients other machines have by now, and have not any more."""
        for client in came:
            self.present.add(client)
            self._leaving.pop(client, None)
        for client in went:
            if not self._box(client).present:
                self._gone(client)
        if came:
            self._wake_offers()

    async def take(self, mailbox: Mailbox) -> list[Message]:
        """Wait for what this connection must ask and tell, and return it, never empty."""
        while True:
            messages, unread = mailbox.draw()
            if unread:
                messages.extend(await self.read_results(mailbox, unread))
            if messages:
                return messages
            await mailbox.wait()

    async def read_results(self, mailbox: Mailbox, unread: list[TaskId]) -> list[Delivery]:
        """Return of results that a draw named those that are this connection's to tell."""
        owed_only = self.sharing is not None
        read = partial(store.deliveries, ids=unread, owed_only=owed_only)
        found: list[Delivery] = await self.store.read(read)
        return mailbox.read(found)

    async def offer(self, lane: Lane, tasks: list[Task]) -> None:
        """Mark tasks as offered and ask their clients for the bodies."""
        now = self.clock.now()
        changes = [
            store.Change(
                task.seq,
                task.state,
                step(task.state, Event.OFFERED),
                (Event.OFFERED,),
                f"offer {task.offers + 1}: link and key are ready",
                now,
                {"offers": task.offers + 1},
            )
            for task in tasks
        ]

        def known() -> None:
            lapses = trio.current_time() + self.config.fetch_timeout_s
            if not lane.offered:
                # What is put behind others lapses after them.
                self._look.set()
            for task in tasks:
                self._open.turn(task, State.OFFERED)
                task.offers += 1
                lane.offered[task] = lapses
                if self._is_here(task.client):
                    self._box(task.client).ask(task.task_id, task.offers)
                log.debug("task.offered", task_id=task.task_id, attempt=task.offers)

        with _Claim(tasks, self._put_back) as claim:
            await self.patiently(partial(self._commit, changes, claim, known))

    async def fetched(self, client: ClientName, answers: Sequence[tuple[TaskId, Any]]) -> None:
        """Take bodies a client gave, and return when they are stored, or can't be."""
        finished = trio.Event()
        self.take_bodies(client, answers, finished.set)
        await finished.wait()

    def take_bodies(
        self,
        client: ClientName,
        answers: Sequence[tuple[TaskId, Any]],
        done: Callable[[], None],
    ) -> None:
        """Take bodies a client gave; each answer is the value it replied with to ``task.fetch``.

        A body that is not valid fails its task, but for one that is held after a restore, which is
        asked for again; a task that moved on meanwhile is left alone. Of
        two answers for one task (it was asked for twice) the first counts. ``done`` is called when
        they are stored, or can't be.
        """
        taken: dict[Task, Body] = {}
        refused: dict[Task, str] = {}
        foreign: list[tuple[TaskId, Any]] = []
        for task_id, answer in answers:
            self._box(client).forget_fetch(task_id)
            task = self._open.get(task_id)
            if task is None:
                foreign.append((task_id, answer))
            if (
                task is None
                or task.client != client
                or task.bank not in self.lanes
                or task.claimed
                or task.state not in (State.OFFERED, State.QUEUED)
                or task.body is not None
                or task in taken
                or task in refused
            ):
                continue
            try:
                taken[task] = self._parse_answer(task, answer)
            except BodyError as error:
                reason = str(error)[:REASON_CHARS_MAX]
                if self.is_held(task):
                    # It may have been paid before the restore, and "failed" would say: not.
                    log.warning("task.fetch_refused", task_id=task_id, reason=reason)
                    continue
                refused[task] = reason
        parts: list[Callable[[Callable[[], None]], None]] = []
        if taken or refused:
            parts.append(partial(self._note_bodies, client, taken, refused))
        if foreign and self.sharing is not None:
            parts.append(partial(self.sharing.hand_over, client, foreign))
        left = len(parts)

        def part_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done()

        for part in parts:
            part(part_done)
        if not parts:
            done()

    def _note_bodies(
        self,
        client: ClientName,
        taken: dict[Task, Body],
        refused: dict[Task, str],
        done: Callable[[], None],
    ) -> None:
        """Write in one commit what a client's answers make of its tasks."""
        now = self.clock.now()
        cause = f"task.fetch answered by {client}"
        changes = [
            _change(task, Event.BODY_TAKEN, cause, now, store.encoded(task.kind, body))
            for task, body in taken.items()
        ]
        ends = {task: _bad_body(reason) for task, reason in refused.items()}
        changes += [
            _change(task, Event.BODY_REFUSED, refused[task], now, values)
            for task, values in ends.items()
        ]

        def known() -> None:
            for task, body in taken.items():
                self._open.turn(task, State.FETCHED, body)
                self._forget_offer(task)
                self._put_back(task)
            for task, values in ends.items():
                self._open.turn(task, State.FAILED)
                self._end(task, values, now, refused[task])

        def stored(error: Exception | None) -> None:
            if error is not None:
                # They are offered still, and asked for again when the offer lapses.
                log.warning("tasks.bodies_not_stored", reason=str(error), count=len(changes))
            done()

        with _Claim([*taken, *refused], self._put_back) as claim:
            try:
                self._commit_soon(changes, claim, known, stored)
            except FepError as error:
                stored(error)

    def _parse_answer(self, task: Task, answer: Any) -> Body:  # noqa: ANN401
        if not isinstance(answer, dict) or answer.keys() != {"kind", "params"}:
            msg = "the answer to task.fetch must be {kind, params}"
            raise BodyError(msg)
        if answer["kind"] != task.kind.value:
            msg = f"kind must be {task.kind.value!r}, as the task was submitted"
            raise BodyError(msg)
        return self.parse(task.bank, task.kind, answer["params"])

    def fetch_refused(self, client: ClientName, task_id: TaskId, reason: str) -> None:
        """Note that the client can't give a body now: it is asked again when the offer lapses."""
        self._box(client).forget_fetch(task_id)
        task = self._open.get(task_id)
        is_foreign = self.sharing is not None and self.sharing.refused(client, task_id)
        if is_foreign or (task is not None and task.client == client):
            log.warning("task.fetch_refused", task_id=task_id, reason=reason)

    def acknowledge(self, client: ClientName, task_ids: Sequence[TaskId]) -> None:
        """Note that the client has these results; lost with a crash, they are told again."""
        got = self._box(client).acknowledged(task_ids)
        if got:
            self._note_receipts({one.task_id: (one.state.value, one.at) for one in got})

    def _note_receipts(
        self, receipts: dict[TaskId, tuple[str, str]], *, again: bool = False
    ) -> None:
        def stored(error: Exception | None) -> None:
            if error is None:
                if again:
                    self.alarms.clear(AlarmKind.STORE_FULL, "store")
                    self._note_receipts_in(0.0)
                return
            is_for_now = isinstance(error, (StoreFullError, StoreBusyError))
            if not (again and is_for_now):
                reason = str(error)
                log.warning("tasks.acknowledgement_not_stored", reason=reason, count=len(receipts))
            if is_for_now:
                # One that came meanwhile is of a later result of that task.
                self._refused_receipts = receipts | self._refused_receipts
                self.note_full("what clients acknowledged waits for room on the disk")
                self._note_receipts_in(TIMER_SECONDS)

        given = [(task_id, *receipt) for task_id, receipt in receipts.items()]
        try:
            self._changes.acknowledge(given, stored)
        except FepError as error:
            stored(error)

    def _note_receipts_in(self, seconds: float) -> None:
        if self._refused_receipts:
            self._receipts_due = min(self._receipts_due, trio.current_time() + seconds)
            self._look.set()

    def _note_refused_receipts(self) -> None:
        """Ask the store again for some of what it refused; when it takes them, for the next."""
        if trio.current_time() < self._receipts_due:
            return
        self._receipts_due = math.inf
        some = dict(itertools.islice(self._refused_receipts.items(), RECEIPTS_AT_ONCE_MAX))
        for task_id in some:
            del self._refused_receipts[task_id]
        self._note_receipts(some, again=True)

    # -- acts of clients and operators --------------------------------------------------------

    async def cancel(
        self,
        client: ClientName | None,
        task_id: TaskId,
        who: str,
        reads: AbstractAsyncContextManager[Any] | None = None,
    ) -> State:
        """Cancel a task of which no byte has left.

        Args:
            client: whose; None: anybody's.
            task_id: which.
            who: for its chain.
            reads: held while the store is read for who asks; None: nothing is.

        Raises:
            TaskRefusedError: NOT_FOUND or BAD_STATE; nothing was changed.
            StoreFullError, StoreBusyError: nor was anything then.
        """
        task = await self._learned(task_id)
        if task is None or (client is not None and task.client != client):
            async with reads or nullcontext():
                found = await self.get(client, task_id)
            msg = f"the task is {found['state']}: it can't be cancelled any more"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if task.state not in BEFORE_SENDING:
            msg = (
                f"the task is {task.state.value}, it may have left: it can't be cancelled any more"
            )
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if task.claimed:
            msg = f"the task is {task.state.value} and is worked on at this moment: try again"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        await self.change(
            task,
            (Event.CANCELLED,),
            f"cancelled by {who}",
            columns={"delivery": store.ACKNOWLEDGED} if client is not None else None,
            patient=False,
        )
        return State.CANCELLED

    async def get(self, client: ClientName | None, task_id: TaskId) -> dict[str, Any]:
        """Return one task; a finance client sees only its own.

        Raises:
            TaskRefusedError: NOT_FOUND.
        """
        found: dict[str, Any] | None = await self.store.read(lambda c: store.view(c, task_id))
        if found is None or (client is not None and found["client"] != client):
            raise TaskRefusedError(Refused("NOT_FOUND", f"there is no task {task_id}"))
        if "archived" in found:
            view = partial(store.view, task_id=task_id)
            return await self._read_archived(task_id, view) or found
        return found

    async def own(self, client: ClientName, task_ids: Sequence[str]) -> set[TaskId]:
        """Return which of these are a client's tasks, archived ones too."""
        if not task_ids:
            return set()
        found = await self.store.read(partial(store.known, ids=task_ids))
        return {task_id for task_id, one in found.items() if one.client == client}

    async def _read_archived(self, task_id: TaskId, work: Callable[[Any], Any]) -> Any:  # noqa: ANN401
        """Read in the archive that has a task, None when none has it or can be read."""
        year = await self.store.read(lambda c: store.archive_of(c, task_id))
        return None if year is None else await self.store.read_archive(year, work)

    async def stored(self, task_id: TaskId) -> Task | None:
        """Return a task with its body, at its end or not, archived or not."""
        read = partial(store.one, task_id=task_id)
        found: Task | None = await self._read_archived(task_id, read)
        return found or await self.store.read(read)

    async def result_told(self, task: Task) -> dict[str, Any] | None:
        """Return the result of a task at its end, archived or not; None: it can't be read."""
        year = await self.store.read(lambda c: store.archive_of(c, task.task_id))
        read = partial(store.result_of, task_id=task.task_id)
        found: dict[str, Any] | None = await (
            self.store.read(read) if year is None else self.store.read_archive(year, read)
        )
        return found

    async def page(
        self,
        client: ClientName | None,
        *,
        state: State | None,
        bank: str | None,
        limit: int,
        before: int | None,
        kind: Kind | None = None,
        find: str = "",
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Return tasks newest first, and where the next page begins (None at the end).

        What ``find`` looks for has no next page: it is the beginning of an id, or a reference.
        """
        result: tuple[list[dict[str, Any]], int | None] = await self.store.read(
            lambda c: store.page(
                c,
                client=client,
                state=None if state is None else state.value,
                bank=bank,
                limit=min(limit, PAGE_TASKS_MAX),
                before=before,
                kind=None if kind is None else kind.value,
                find=find,
            )
        )
        return result

    async def why(self, client: ClientName | None, task_id: TaskId) -> dict[str, Any]:
        """Return a task and its causal chain.

        Raises:
            TaskRefusedError: NOT_FOUND.
        """
        task = await self.get(client, task_id)
        read = partial(store.why, task_id=task_id)
        if "archived" in task:
            chain = await self._read_archived(task_id, read) or []
        else:
            chain = await self.store.read(read)
        waits_for = self._waits_for(task)
        told = {"task": task, "events": chain} | ({"waits_for": waits_for} if waits_for else {})
        omitted = len(chain) - CHAIN_FIRST_MAX - CHAIN_LAST_MAX
        if omitted <= 0:
            return told
        chain[CHAIN_FIRST_MAX:-CHAIN_LAST_MAX] = []
        return told | {"omitted": omitted}

    def _waits_for(self, view: Mapping[str, Any]) -> str:
        """Return what keeps a task from being sent at this moment, as far as that is known here."""
        if (state := State(view["state"])) not in BEFORE_SENDING:
            return ""
        bank = BankName(view["bank"])
        if self.held_since is not None and Kind(view["kind"]) in MOVES_MONEY:
            return "payments are held since a backup was restored"
        lane = self.lanes.get(bank)
        if self.sharing is not None and not self.sharing.holds(bank):
            server = self.sharing.served_by(bank)
            return (
                f"machine {server} serves bank {bank}" if server else "no machine serves its bank"
            )
        if lane is None:
            return f"bank {bank} is not configured any more"
        if lane.drained:
            return f"bank {bank} is drained"
        parts = lane.parts
        if not parts.slot.is_open:
            return f"slot {parts.slot.name} is {parts.slot.state.value}"
        if not parts.link.is_open:
            return f"link {bank} is {parts.link.snapshot().state.value}"
        client = ClientName(view["client"])
        if state is State.FETCHED or client in self.present:
            return ""
        task = self._open.get(TaskId(view["task_id"]))
        is_bare = task is not None and task.body is None
        return f"client {client}, who has its body, is not connected" if is_bare else ""

    def banks(self) -> list[BankName]:
        """Return the banks that tasks are taken for, in order."""
        foreign: Iterable[BankName] = () if self.sharing is None else self.sharing.foreign
        return sorted({*self.lanes, *foreign})

    async def resolve(self, who: str, task_id: TaskId, outcome: State, evidence: str) -> None:
        """Propose the end of an open payment; another person must confirm it.

        Raises:
            TaskRefusedError: NOT_FOUND, BAD_STATE.
        """
        task = await self._open_at_bank(task_id)
        if self.is_held(task) and outcome is not State.SUCCEEDED:
            msg = "it was not sent by this store: cancel it, or leave it to be sent at the release"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        _check_evidence(evidence)
        now = self.clock.now()
        proposal = store.Proposal(outcome, evidence, who)

        def propose(connection: Any) -> bool:  # noqa: ANN401
            # A release that is on disk and not known here yet holds nothing any more.
            held = self.is_held(task) and store.held_since(connection) is not None
            if not (held or store.is_open_at_bank(connection, task.seq)):
                return False
            store.propose(connection, task.seq, proposal, now)
            cause = f"{who} proposes {outcome.value}: {evidence}"
            store.note(connection, task.seq, task.state, "proposed", cause, now, self.configuration)
            return True

        if not await self.write_of(task, propose):
            msg = (
                "the task was closed at this very moment, or released: there is nothing to resolve"
            )
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        log.warning("task.resolution_proposed", task_id=task_id, who=who, outcome=outcome.value)

    async def confirm(self, who: str, task_id: TaskId, outcome: State | None = None) -> State:
        """Close an open payment as another person proposed.

        Args:
            who: the second person.
            task_id: of the payment.
            outcome: what that person saw proposed; None: whatever it is.

        Raises:
            TaskRefusedError: NOT_FOUND, BAD_STATE (nothing proposed, or something else),
                NOT_PERMITTED (same person).
            StoreFullError, StoreBusyError: nothing was changed.
        """
        task = await self._open_at_bank(task_id)
        await self._wait_free(task)
        await self._open_at_bank(task_id)
        if task.claimed:
            msg = "the bank is being asked about it at this moment; try again"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        with _Claim([task], self._put_back) as claim:
            await self._close_as_proposed(task, who, outcome, claim)
        return task.state

    async def _close_as_proposed(
        self, task: Task, who: str, seen: State | None, claim: _Claim
    ) -> None:
        proposal = await self.store.read(lambda c: store.proposal(c, task.seq))
        if proposal is None:
            msg = "nothing is proposed for this task; call task.resolve first"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if proposal.by == who:
            log.warning("task.confirmation_refused", task_id=task.task_id, who=who)
            msg = "a second person must confirm; you made the proposal"
            raise TaskRefusedError(Refused("NOT_PERMITTED", msg))
        if seen not in (None, proposal.outcome):
            msg = f"{proposal.by} proposes {proposal.outcome.value}; look at task.why again"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        event = Event.PROVED_DONE if proposal.outcome is State.SUCCEEDED else Event.PROVED_REFUSED
        cause = f"two persons: {proposal.by} proposed, {who} confirmed: {proposal.evidence}"
        columns: dict[str, Any] = {
            "bank_code": "RESOLVED",
            "bank_message": cause,
            "inquire_at": None,
        }
        sent = None
        if self.is_held(task):
            event = Event.FOUND_DONE
            sent, known = self._found_sent(task)
            columns |= known
        try:
            await self.change(
                task,
                (event,),
                cause,
                columns=columns,
                sent=sent,
                only_if=lambda c: store.proposal(c, task.seq) == proposal,
                patient=False,
                claim=claim,
            )
        except OvertakenError:
            msg = "another proposal was made at this moment; look at task.why again"
            raise TaskRefusedError(Refused("BAD_STATE", msg)) from None
        log.warning(
            "task.resolution_confirmed",
            task_id=task.task_id,
            who=who,
            outcome=proposal.outcome.value,
        )

    def _found_sent(self, task: Task) -> tuple[store.Sent | None, dict[str, Any]]:
        """Return what is known of a payment that was sent after the restored copy was made."""
        at = self.held_since
        assert at is not None
        reference = self.reference_of(task)
        columns = {"client_ref": reference, "sent_at": to_text(at)}
        if not isinstance(task.body, Order):
            return None, columns
        return store.sent_of(task.bank, task.body, at, reference), columns

    @staticmethod
    async def _wait_free(task: Task) -> None:
        """Wait a while for the end of an inquiry, which would otherwise refuse a person's act."""
        with trio.move_on_after(FREE_SECONDS_MAX):
            while task.claimed:
                await trio.sleep(TIMER_SECONDS_MIN)

    async def _learned(self, task_id: TaskId) -> Task | None:
        """Return an open task; one that another machine has just admitted is waited for."""
        if self.sharing is not None:
            await self.sharing.learned(task_id)
        return self._open.get(task_id)

    async def _open_at_bank(self, task_id: TaskId) -> Task:
        task = await self._learned(task_id)
        if task is None:
            found = await self.get(None, task_id)
            msg = f"the task is {found['state']}: there is nothing to resolve"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if task.state not in OPEN_AT_BANK and not self.is_held(task):
            msg = f"the task is {task.state.value}: only accepted and unknown ones are resolved"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        return task

    async def set_drained(self, bank: BankName, *, value: bool) -> None:
        """Stop or start sending to a bank, also over restarts.

        Raises:
            TaskRefusedError: UNKNOWN_BANK.
        """
        if self.capabilities(bank) is None:
            raise TaskRefusedError(Refused("UNKNOWN_BANK", f"no bank {bank!r}"))

        def write(connection: Any) -> None:  # noqa: ANN401
            store.set_drained(connection, bank, value=value)
            if self.sharing is not None:
                self.sharing.tell_drained(connection, bank, value=value)

        await self.store.write(write, lambda _: self.know_drained(bank, value=value))
        log.warning("lane.drained" if value else "lane.resumed", bank=bank)

    def know_drained(self, bank: BankName, *, value: bool) -> None:
        """Take what is stored of a bank: an operator stopped or started it."""
        (self._stopped.add if value else self._stopped.discard)(bank)
        if (lane := self.lanes.get(bank)) is not None:
            lane.drain() if value else lane.resume()

    def has_key(self, bank: BankName) -> bool:
        """Say whether a bank's key is in, here or at another machine."""
        if self.sharing is not None:
            return self.sharing.has_key(bank)
        lane = self.lanes.get(bank)
        return lane is not None and lane.parts.slot.is_open

    def under_way(self, but: ClientName | None = None) -> dict[AccountNumber, Cny]:
        """Return by payer what our payments that are not at their end will or may take.

        Args:
            but: leave this client's out.
        """
        return self._open.under_way(but)

    def paid(self, payer: AccountNumber) -> Cny:
        """Return what our payments took from an account since this process began; it only grows.

        What it grew by between a question for the balance and its answer may be in that balance.
        """
        return self._paid.get(payer, ZERO)

    async def spent(
        self, balances: Mapping[TaskId, AccountNumber], but: ClientName
    ) -> dict[AccountNumber, Cny]:
        """Return by payer what the answer to a balance query may not have lost yet.

        That are payments that are open, and those done since the query was given its body: of other
        machines too, and of processes before this one.

        Args:
            balances: the payer of each query.
            but: leave this client's open payments out.
        """
        read = partial(store.spent, balances=balances, but=but)
        found: dict[AccountNumber, Cny] = await self.store.read(read)
        return found

    def status(self) -> dict[str, Any]:
        """Return the queue's figures by bank."""
        counts = self._open.counts()
        banks: dict[BankName, Mapping[str, int]] = {
            bank: {state.value: number for state, number in counts.get(bank, {}).items()}
            for bank in [*self.lanes, *(counts.keys() - self.lanes.keys())]
            if bank in self.lanes or counts[bank]
        }
        if self.sharing is not None:
            banks |= {bank: {} for bank in self.sharing.foreign} | self.sharing.open_elsewhere()
        shown: dict[BankName, dict[str, Any]] = {
            bank: {
                "open": states,
                "drained": bank in self.lanes and self.lanes[bank].drained,
                "in_flight": self.lanes[bank].in_flight if bank in self.lanes else 0,
                "ended": self.figures.ended_of(bank),
                "waiting_since": self._waiting_since(bank),
            }
            for bank, states in banks.items()
        }
        if self.sharing is not None:
            for bank, one in shown.items():
                one["served_by"] = self.sharing.served_by(bank)
        return {
            "open": len(self._open) + self._elsewhere(),
            "queue_max": self.config.queue_max,
            "banks": shown,
        }

    def _waiting_since(self, bank: BankName) -> str | None:
        """Return since when the oldest task of a lane waits here, None when none does."""
        lane = self.lanes.get(bank)
        oldest = None if lane is None else lane.oldest_waiting()
        return None if oldest is None else to_text(oldest.submitted_at)

    # -- inside -------------------------------------------------------------------------------

    def tasks_of(self, bank: BankName) -> list[Task]:
        """Return the open tasks of a bank, in the order of admission."""
        return self._open.of_bank(bank)

    def open_counts(self) -> dict[BankName, dict[State, int]]:
        """Return how many open tasks here are in each state, by bank."""
        return self._open.counts()

    async def know(self, tasks: list[Task]) -> None:
        """Take in open tasks that were read from the store."""
        unknown = [task for task in tasks if task.state is State.UNKNOWN]
        if unknown:
            # What was just admitted has none: it is known before anything else happens.
            seqs = [task.seq for task in unknown]
            waited = await self.store.read(lambda c: store.waited(c, seqs))
            for task in unknown:
                task.wait_from(trio.current_time(), waited.get(task.seq, 0.0))
        self._open.keep_all(tasks)
        self._look.set()
        self._watch_fill()

    def put_all_back(self, tasks: Iterable[Task]) -> None:
        """Put tasks where they wait."""
        for task in tasks:
            self._put_back(task)

    def forget_bank(self, bank: BankName) -> None:
        """Let go of all tasks of a bank that another machine serves, whatever became of them."""
        for task in self._open.of_bank(bank):
            self._box(task.client).forget_fetch(task.task_id)
            self.alarms.clear(AlarmKind.UNKNOWN_OVERDUE, task.task_id)
            self._open.drop(task)
        if (lane := self.lanes.get(bank)) is not None:
            fresh = self.lanes[bank] = Lane(lane.parts, self)
            if bank in self._stopped:
                fresh.drain()

    def know_body(self, task: Task, body: Body) -> None:
        """Note a body that was read from the store."""
        self._open.turn(task, task.state, body)

    def refresh(self, task: Task, stored: Task) -> None:
        """Bring a task whose lane crashed to what the store says of it."""
        self._open.turn(task, stored.state, stored.body)
        for name in ("client_ref", "bank_ref", "sent_at", "sent_to", "inquiries", "inquire_at"):
            setattr(task, name, getattr(stored, name))
        if task.state is State.UNKNOWN and math.isinf(task.waited_from):
            task.wait_from(trio.current_time())

    async def change(  # noqa: PLR0913 - all that one commit says of a task
        self,
        task: Task,
        events: tuple[Event, ...],
        cause: str,
        *,
        columns: dict[str, Any] | None = None,
        wire: store.Bytes | None = None,
        sent: store.Sent | None = None,
        row_refs: Mapping[int, str] | None = None,
        only_if: Callable[[Any], bool] | None = None,
        patient: bool = True,
        at: dt.datetime | None = None,
        claim: _Claim | None = None,
    ) -> None:
        """Write a change of a task, wait for the disk, then know it and tell its client.

        Args:
            task: nobody else may hold it.
            events: what happened, in order.
            cause: why, for its chain.
            columns: what else is known of it now.
            wire: the bytes that prove it.
            sent: what a payment is searched by, where its first byte may leave now.
            row_refs: the bank's references of a batch's rows, where they were told now.
            only_if: asked in the same transaction; where it says no, nothing is changed.
            patient: wait while the disk is full; False for what is only wished, not a fact.
            at: when; None: now.
            claim: of the caller, who is cancelled while the commit may still come: it goes on to
                hold the task until then.

        Raises:
            IllegalTransitionError: nothing was changed.
            OvertakenError: ``only_if`` said no.
            StoreFullError, StoreBusyError: not ``patient``, and nothing was changed.
        """
        before = after = task.state
        for event in events:
            after = step(after, event)
        values = dict(columns or {})
        if after in FINAL:
            values.setdefault("delivery", store.OWED)
        now = at or self.clock.now()
        change = store.Change(
            task.seq,
            before,
            after,
            events,
            cause,
            now,
            values,
            wire,
            sent,
            self._is_watched(task, before, after),
            row_refs or {},
        )

        def known() -> None:
            self._open.turn(task, after)
            if after is State.UNKNOWN:
                task.wait_from(trio.current_time())
            if isinstance(task.body, Order) and not DONE.isdisjoint(events):
                # Also where it came back since: a batch of which one payment did took all others.
                payer = task.body.payer
                self._paid[payer] = self.paid(payer) + task.body.amount
            if after in FINAL:
                self._end(task, values, now, cause)
            if change.watched:
                self._watch(task)

        with claim or _Claim([task], self._put_back) as held:
            write = partial(self._commit, [change], held, known, only_if)
            await (self.patiently(write) if patient else write())

    def take_back_sending(self, task: Task, cause: str) -> None:
        """Write that nothing was sent, behind the ``SENDING`` whose writer was cancelled.

        The store keeps the order. If it refuses that one, this one finds nothing to take back.
        """
        now = self.clock.now()
        after = step(State.SENDING, Event.NOTHING_SENT)
        change = store.Change(task.seq, State.SENDING, after, (Event.NOTHING_SENT,), cause, now)

        def done(error: Exception | None) -> None:
            if error is None:
                self._open.turn(task, after)

        # A store that takes no more leaves it to the next process, for which it is unknown.
        with suppress(FepError):
            self._hand_over(self._putting([task], [change]), done)

    async def patiently(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write; while the disk is full wait, for a task in flight can't be refused."""
        while True:
            try:
                await write()
            except (StoreFullError, StoreBusyError):
                self.note_full("a task's change waits for room on the disk")
                await trio.sleep(TIMER_SECONDS)
            else:
                self.alarms.clear(AlarmKind.STORE_FULL, "store")
                return

    def note_full(self, cause: str = "new tasks are refused for want of room on the disk") -> None:
        """Raise the alarm of a disk that takes nothing; the next change that it takes clears it."""
        self.alarms.raise_alarm(AlarmKind.STORE_FULL, "store", cause)
        if self.store.full:  # and not only held by another program
            self._was_full = True
            self._look.set()

    def _watch_disk(self) -> None:
        """Find out whether a full disk has room again, also when nobody else writes."""
        if self.store.full:
            # The alarm itself found no room: to store it now is the question to the disk.
            self.alarms.try_again()
        elif self._was_full:
            self._was_full = False
            self.alarms.clear(AlarmKind.STORE_FULL, "store")

    async def settled(self) -> None:
        """Return when every change that was handed over before is answered, whatever became of it.

        Nothing less will do: a change whose group failed for another one is written once more.
        """
        before = set(self._unanswered)
        while before & self._unanswered:
            await self._answered.wait()

    def _hand_over(self, put: Callable[[Done], None], done: Done) -> None:
        mark = object()

        def answered(error: Exception | None) -> None:
            self._unanswered.discard(mark)
            self._answered.set()
            self._answered = trio.Event()
            done(error)

        put(answered)
        self._unanswered.add(mark)

    def certain_now(self) -> dt.datetime:
        """Return the latest moment that is certainly reached: what time proves is judged by it.

        A wall clock that is set forward would make "no record" proof before its time. So the
        clock's word counts only as far as this process has lived.
        """
        return self._patient.now()

    def reference_of(self, task: Task, attempt: int = 0) -> ClientRef:
        """Return a payment's reference as its bank takes it: the one that was sent, if any."""
        if task.client_ref is not None:
            return task.client_ref
        lane = self.lane_of(task.bank)
        if lane is None or not (dedupe := lane.parts.card.dedupe).digits:
            return client_ref(self.enterprise, task.task_id)
        return short_ref(self.enterprise, task.task_id, dedupe.length_max, attempt)

    def open_task(self, task_id: TaskId) -> Task | None:
        """Return an open task, None when there is none of this id."""
        return self._open.get(task_id)

    def _is_watched(self, task: Task, before: State, after: State) -> bool | None:
        """Say whether a change begins or ends the watch over a payment; None for neither."""
        if not task.moves_money or after not in FINAL:
            return None
        is_batch = task.kind is Kind.BATCH_TRANSFER
        if before in FINAL:
            # Of a batch other rows may come back yet.
            return None if is_batch else False
        lane = self.lane_of(task.bank)
        days = 0.0 if lane is None else lane.parts.card.returned.watch_days
        is_done = after is State.SUCCEEDED or (is_batch and after is State.RETURNED)
        return True if is_done and days > 0 else None

    def _watch(self, task: Task) -> None:
        lane = self.lane_of(task.bank)
        if lane is not None and isinstance(task.body, Order):
            lane.watch.begin(task.body.payer)

    def _put_back(self, task: Task) -> None:
        """Put a task where it waits: it may have come up and been skipped while it was held."""
        lane = self.lane_of(task.bank)
        if lane is None or self._open.get(task.task_id) is not task:
            return
        if task.state is State.OFFERED:
            lane.offered.setdefault(task, trio.current_time() + self.config.fetch_timeout_s)
        else:
            lane.put_back(task)

    def _forget_offer(self, task: Task) -> None:
        if (lane := self.lane_of(task.bank)) is not None:
            lane.offered.pop(task, None)
            lane.wake_offers()

    def lane_of(self, bank: BankName) -> Lane | None:
        """Return a bank's lane, also of one taken out in this process; None of one never in it."""
        return self.lanes.get(bank) or self._retired.get(bank)

    async def _commit(
        self,
        changes: Sequence[store.Change],
        claim: _Claim,
        known: Callable[[], None],
        only_if: Callable[[Any], bool] | None = None,
    ) -> None:
        """Write changes, let go of their tasks and know them in the moment of the commit.

        Not when the caller goes on: it may be cancelled while the disk works, as when its client
        hangs up, and the tasks would be known otherwise than they are stored.
        """
        finished = trio.Event()
        errors: list[Exception] = []

        def stored(error: Exception | None) -> None:
            if error is not None:
                errors.append(error)
            finished.set()

        self._commit_soon(changes, claim, known, stored, only_if)
        await finished.wait()
        if errors:
            raise errors[0]

    def _commit_soon(
        self,
        changes: Sequence[store.Change],
        claim: _Claim,
        known: Callable[[], None],
        stored: Done,
        only_if: Callable[[Any], bool] | None = None,
    ) -> None:
        """Do the same without waiting; ``stored`` is called at the end."""

        def done(error: Exception | None) -> None:
            if error is None:
                claim.committed()
                try:
                    known()
                finally:
                    stored(None)
            else:
                claim.failed()
                if isinstance(error, PlaceLostError) and self.sharing is not None:
                    self.sharing.lost(claim.tasks)
                stored(error)

        if only_if is None:
            put = self._putting(claim.tasks, changes)
        else:
            write = partial(self._write_if, only_if, changes)
            put = partial(self._submit_if, self._guarded(claim.tasks, changes, write))
        self._hand_over(put, done)
        claim.committing = True

    def _putting(
        self, tasks: Sequence[Task], changes: Sequence[store.Change]
    ) -> Callable[[Done], None]:
        """Return what puts changes of these tasks into the next group.

        Raises:
            PlaceLostError: another machine serves their bank.
        """
        also = None if self.sharing is None else self.sharing.guarded(tasks, changes)
        return partial(self._changes.submit, changes, self.configuration, also=also)

    def _guarded(self, tasks: Sequence[Task], changes: Sequence[store.Change], work: Work) -> Work:
        """Return the work, done only while this machine serves the tasks' banks.

        Raises:
            PlaceLostError: another machine serves them.
        """
        if self.sharing is None:
            return work
        also = self.sharing.guarded(tasks, changes)

        def guarded(connection: Any) -> Any:  # noqa: ANN401
            also(connection)
            return work(connection)

        return guarded

    async def write_of(self, task: Task, work: Work) -> Any:  # noqa: ANN401
        """Write something of a task that does not change its state; return the work's result.

        Raises:
            PlaceLostError: another machine serves its bank; nothing was written.
            StoreFullError, StoreBusyError: nor was anything then.
        """
        return await self.store.write(self._guarded([task], [], work))

    async def write_at(self, bank: BankName, work: Work) -> Any:  # noqa: ANN401
        """Write something of a bank that is no task's; return the work's result.

        Raises:
            PlaceLostError: another machine serves it; nothing was written.
            StoreFullError, StoreBusyError: nor was anything then.
        """
        if self.sharing is not None:
            work = self.sharing.machines.guarded([bank_place(bank)], work)
        return await self.store.write(work)

    def _is_here(self, client: ClientName) -> bool:
        """Say whether a client is asked and told from here."""
        return self.sharing is None or self.sharing.is_here(client)

    def _submit_if(self, write: Callable[[Any], None], done: Done) -> None:
        self.store.submit(write, lambda _result, error: done(error))

    def _write_if(
        self,
        holds: Callable[[Any], bool],
        changes: Sequence[store.Change],
        connection: Any,  # noqa: ANN401
    ) -> None:
        if not holds(connection):
            raise OvertakenError
        store.apply(connection, changes, self.configuration)

    def _end(self, task: Task, values: Mapping[str, Any], now: Any, cause: str) -> None:  # noqa: ANN401
        self._open.drop(task)
        self._box(task.client).forget_fetch(task.task_id)
        self._forget_offer(task)
        for kind in (AlarmKind.UNKNOWN_OVERDUE, AlarmKind.EVIDENCE_AMBIGUOUS):
            self.alarms.clear(kind, task.task_id)
        if task.state is State.RETURNED:
            self._tell_returned(task, cause)
        self._watch_fill()
        seconds = (now - task.submitted_at).total_seconds()
        self.figures.note_end(task.bank, task.kind, task.state, seconds)
        self.tracing.ended(task, values.get("bank_code", ""), now)
        log.info(
            "task.ended",
            task_id=task.task_id,
            client=task.client,
            bank=task.bank,
            kind=task.kind.value,
            state=task.state.value,
            bank_code=values.get("bank_code", ""),
            cause=cause,
            offers=task.offers,
            inquiries=task.inquiries,
            seconds=round(seconds, 3),
        )
        if values.get("delivery") == store.OWED and self._is_here(task.client):
            result = values.get("result")
            self._box(task.client).tell(
                Delivery(
                    task.task_id,
                    task.state,
                    None if result is None else orjson.loads(result),
                    values.get("bank_code", ""),
                    values.get("bank_message", ""),
                    store.text_of(now),
                )
            )

    def box(self, client: ClientName) -> ClientBox:
        """Return what a client must still be asked and told from here."""
        return self._box(client)

    def _tell_returned(self, task: Task, cause: str) -> None:
        match task.body:
            case PaymentOrder(amount=sent):
                amount = f"{sent} yuan"
            case BatchOrder(rows=rows):
                amount = f"of a batch of {len(rows)} payments"
            case _:
                amount = "a payment"
        log.error("task.returned", task_id=task.task_id, client=task.client, cause=cause)
        self.alarms.raise_alarm(AlarmKind.PAYMENT_RETURNED, task.task_id, f"{amount}: {cause}")

    def _box(self, client: ClientName) -> ClientBox:
        box = self._boxes.get(client)
        if box is None:
            box = self._boxes[client] = ClientBox(client, self.config.result_window)
        return box

    def _wake_offers(self) -> None:
        for lane in self.lanes.values():
            lane.wake_offers()

    def _watch_fill(self) -> None:
        share = len(self._open) / self.config.queue_max
        if share >= NEARLY_FULL_SHARE:
            self.alarms.raise_alarm(
                AlarmKind.QUEUE_NEARLY_FULL, "queue", f"{len(self._open)} tasks are open"
            )
        elif share < RELIEVED_SHARE:
            self.alarms.clear(AlarmKind.QUEUE_NEARLY_FULL, "queue")

    async def _lapse(self) -> None:
        """Put back what was offered and not fetched in time (DEC-a)."""
        now = trio.current_time()
        gone = {client for client, lapses in self._leaving.items() if lapses <= now}
        for client in gone:
            del self._leaving[client]
        for lane in list(self.lanes.values()):
            late = [
                task
                for task, lapses in lane.offered.items()
                if not task.claimed and (lapses <= now or task.client in gone)
            ]
            for task in late:
                # Its body may have come, or be coming, since the list was made.
                if task.claimed:
                    continue
                if task.state is not State.OFFERED:
                    lane.offered.pop(task, None)
                    continue
                self._box(task.client).forget_fetch(task.task_id)
                await self.change(task, (Event.OFFER_LAPSED,), "not fetched in time")
                lane.offered.pop(task, None)
                log.warning("task.offer_lapsed", task_id=task.task_id, attempt=task.offers)
                self._put_back(task)

    async def _expire(self) -> None:
        """End what is too old and was never fetched: nothing was sent (DEC-a)."""
        now = self.clock.now()
        expired = []
        for task in self._open.expired(now.timestamp()):
            if task.state not in (State.QUEUED, State.OFFERED):
                continue
            if self.is_held(task):
                # Nobody knows that nothing was sent: it may have been, after the copy was made.
                self._open.expire_at(task, now.timestamp() + HELD_LOOK_SECONDS)
            elif task.claimed:
                self._open.expire_at(task, now.timestamp() + TIMER_SECONDS)
            else:
                expired.append(task)
        of_banks: dict[BankName, list[Task]] = {}
        for task in expired:
            of_banks.setdefault(task.bank, []).append(task)
        for of_bank in of_banks.values():
            for at in range(0, len(of_bank), EXPIRED_AT_ONCE_MAX):
                # A bank that another machine serves by now: that one ends them, and here they are
                # forgotten in a moment. It must not keep the others' tasks.
                with suppress(PlaceLostError):
                    await self._expire_these(of_bank[at : at + EXPIRED_AT_ONCE_MAX], now)
        of_clients: dict[ClientName, list[Task]] = {}
        for task in expired:
            if task.state is State.EXPIRED:
                of_clients.setdefault(task.client, []).append(task)
        # Each client may see its own alarms only.
        for client, own in of_clients.items():
            cause = f"{len(own)} tasks expired unsent; the oldest is {own[0].task_id}"
            self.alarms.raise_alarm(AlarmKind.TASK_EXPIRED, client, cause)

    async def _expire_these(self, tasks: list[Task], now: dt.datetime) -> None:
        # While a part waits for the disk, another's tasks may be claimed or move on.
        late = [one for one in tasks if one.state in (State.QUEUED, State.OFFERED)]
        free = [one for one in late if not one.claimed]
        for task in late:
            if task.claimed:
                self._open.expire_at(task, now.timestamp() + TIMER_SECONDS)
        columns = {
            "bank_code": "EXPIRED",
            "bank_message": "expired, nothing was sent",
            "delivery": store.OWED,
        }
        changes = [
            store.Change(
                task.seq, task.state, State.EXPIRED, (Event.EXPIRED,), TOO_OLD, now, columns
            )
            for task in free
        ]

        def known() -> None:
            for task in free:
                self._open.turn(task, State.EXPIRED)
                self._end(task, columns, now, TOO_OLD)

        if free:
            with _Claim(free, self._put_back) as claim:
                await self.patiently(partial(self._commit, changes, claim, known))

    async def _take_unmatched(self, unmatched: UnmatchedReply) -> None:
        bank, reply = unmatched.bank, unmatched.reply
        lane = self.lane_of(bank)
        wire = store.received(reply)
        task: Task | None = None
        is_kept, defect = False, None
        try:
            if lane is not None:
                task, is_kept = await lane.take_late(reply)
        except Exception as error:  # noqa: BLE001 - the bytes are kept, then it goes on its way
            defect = error
        if not is_kept:
            seq, now = None if task is None else task.seq, self.clock.now()
            keep = partial(store.add_message, seq=seq, bank=bank, wire=wire, at=now)
            await self.patiently(partial(self.store.write, keep))
        if defect is not None:
            raise defect
        told_to = "" if task is None else task.task_id
        if unmatched.told:
            log.info("reply.told", bank=bank, digest=digest(reply.raw), task_id=told_to)
        else:
            log.warning(
                "reply.unmatched",
                bank=bank,
                trade=reply.trade,
                code=reply.code,
                digest=digest(reply.raw),
                task_id=told_to,
            )
        if task is None:
            self.alarms.raise_alarm(
                AlarmKind.UNMATCHED_REPLY, bank, "an answer matched no request; its bytes are kept"
            )


def _close_first(answered: Sequence[TaskId]) -> str:
    names = ", ".join(answered[:ANSWERED_NAMED_MAX])
    if more := len(answered) - ANSWERED_NAMED_MAX:
        names += f" and {more} more" if more > 0 else ""
    return (
        f"the bank has answered for {names}: close these first (fepctl resolve, then fepctl"
        " confirm), or cancel what was not paid"
    )


def _limited(open_max: int) -> Refused:
    msg = f"{open_max} tasks of this client are open; submit again when some have ended"
    return Refused("LIMITED", msg, OPEN_AGAIN_SECONDS)


def _check_evidence(evidence: str) -> None:
    if len(evidence.strip()) < EVIDENCE_CHARS_MIN:
        msg = f"evidence must say where it was seen, in {EVIDENCE_CHARS_MIN} characters or more"
        raise TaskRefusedError(Refused("BAD_STATE", msg))


class _Claim:
    """Holds tasks against all others' changes: for a block, and beyond it until their commit.

    A task that is let go unchanged is put back: the queue skips what is held.
    """

    def __init__(self, tasks: Sequence[Task], put_back: Callable[[Task], None]) -> None:
        self.tasks = tuple(tasks)
        self._held = [(task, task.claimed) for task in tasks]
        self._put_back = put_back
        self._left = False
        self.committing = False

    def __enter__(self) -> Self:
        for task, _ in self._held:
            task.claimed = True
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        if not self.committing:
            self._let_go(changed=False)

    def committed(self) -> None:
        """Let go, once: what was held by somebody else before stays so."""
        self.committing = False
        self._let_go(changed=True)

    def failed(self) -> None:
        """Hold on for another try, unless nobody is there to make it."""
        self.committing = False
        if self._left:
            self._let_go(changed=False)

    def _let_go(self, *, changed: bool) -> None:
        held, self._held = self._held, []
        for task, before in held:
            # A lane that settled what it held has let go of it already.
            task.claimed = task.claimed and before
            if not changed and not task.claimed:
                self._put_back(task)


def _bank(task: Task) -> BankName:
    return task.bank


def _change(
    task: Task, event: Event, cause: str, at: dt.datetime, columns: Mapping[str, Any]
) -> store.Change:
    after = step(task.state, event)
    return store.Change(task.seq, task.state, after, (event,), cause, at, columns)


def _bad_body(reason: str) -> dict[str, Any]:
    return {"bank_code": "BAD_BODY", "bank_message": reason, "delivery": store.OWED}
