"""One bank's lane: offers, workers, inquiries. Owns every task of its bank while it is open.

A lane has as many workers as the bank is configured threads (线程数). Each takes the next thing to
do only while the bank's link is READY and its key slot holds the right key. The lane is started by
the daemon's supervisor; when it ends by a defect it is started again and first settles what it held
in its hands: what may have left the machine becomes ``unknown``, the rest waits again.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, assert_never

import attrs
import orjson
import sqlalchemy as sa
import structlog
import trio

from fep.adapters.api import (
    Accepted,
    BankCodec,
    Context,
    Draft,
    Outcome,
    Refusal,
    Rejected,
    Reply,
    SecretiveCodec,
    Unclear,
)
from fep.adapters.card import BehaviourCard, Signer
from fep.alarms.state import AlarmKind
from fep.domain.clock import business_date, to_text
from fep.domain.errors import (
    BodyError,
    KeySlotError,
    LinkLostError,
    NothingSentError,
    RemoteProtocolError,
)
from fep.domain.ids import (
    BATCH_ROWS_MAX,
    SHORT_REF_ATTEMPTS,
    BankName,
    ClientRef,
    TaskId,
    is_ref_of,
)
from fep.domain.order import (
    BalanceQuery,
    BankCodeQuery,
    BankCodes,
    BatchOrder,
    BatchQuery,
    BatchStatus,
    Body,
    Kind,
    Lookup,
    Operation,
    Order,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Query,
    ReturnedPayments,
    ReturnedQuery,
    Statement,
    StatementEntry,
    StatementQuery,
    TransferStatusRequest,
    result_value,
)
from fep.keys.service import Slot
from fep.keys.sign_port import sign_at_port
from fep.links.service import BankLink
from fep.machines.service import PlaceLostError
from fep.store.database import StoreBusyError, StoreFullError
from fep.tasks import evidence, store
from fep.tasks.asking import prepared, understood
from fep.tasks.figures import Exchange, asked_by
from fep.tasks.look import Look
from fep.tasks.queue import LaneQueue
from fep.tasks.replay import only_reply
from fep.tasks.result import bank_ref_of, end_columns
from fep.tasks.state import FINAL, OPEN_AT_BANK, Event, State, step
from fep.tasks.task import (
    OvertakenError,
    QueryLostError,
    Task,
    batch_query,
    digest,
    status_query,
)
from fep.tasks.watch import Watch

if TYPE_CHECKING:
    from fep.tasks.service import TaskService

log = structlog.get_logger()

OFFERS_OUTSTANDING_MAX: Final = 256
QUERY_ATTEMPTS_MAX: Final = 5
QUERY_RETRY_SECONDS: Final = 1.0
NOT_SENT_RETRY_SECONDS: Final = 0.5
"""After a request that did not leave: no key, no link, no room on the disk."""
HORIZON_LOOK_SECONDS: Final = 60.0
"""Between two looks at how long a payment is open: its bank may not be asked for hours."""
STATEMENT_PAGES_MAX: Final = 200
STATEMENT_ENTRIES_MAX, STATEMENT_BYTES_MAX = 2000, 900_000
"""A result must fit one protocol line of 1 MiB; a longer statement says ``complete: false``."""
LATE_ANSWERS_MAX: Final = 10_000
HELD_COMPARED_AT_ONCE: Final = 500
"""Of payments held after a restore, with an answer's reference, before others have their turn."""
TOO_LATE: Final = "TOO_LATE"
"""Of a payment that its client does not want to be sent any more, as ``bank_code``."""
CLAIM_LOOK_SECONDS: Final = 0.05
"""Between two looks at a task that somebody else writes, for which an answer came late."""
QUIET_KINDS: Final = frozenset({Kind.STATEMENT, Kind.TRANSFER_STATUS})
"""What a client asks that waits while the bank wants to be left alone."""
LOOK_EVERY_TURNS: Final = 8
"""Of so many turns one is a look's at least, however much waits to be sent."""
WAITING: Final = OPEN_AT_BANK | {State.QUEUED, State.FETCHED}


def _note_nothing(_task: TaskId, _frame: bytes) -> None:
    """Keep no tape."""


@attrs.frozen
class LaneParts:
    """What a lane is made of; the daemon puts it together."""

    bank: BankName
    codec: BankCodec
    card: BehaviourCard
    capabilities: frozenset[Kind]
    link: BankLink
    slot: Slot
    workers: int
    reply_timeout_s: float
    may_begin: Callable[[], bool] | None = None
    """Whether a first byte may leave at this very moment; None: always, there is one machine."""
    system: str = ""
    """Which of the bank's systems this is (``BankConfig.system``)."""
    note_frame: Callable[[TaskId, bytes], None] = _note_nothing
    """Told whose a frame is before it is sent: the bank's tape."""


class Lane:
    """The waiting and running work of one bank."""

    def __init__(self, parts: LaneParts, service: TaskService) -> None:
        self.parts = parts
        self.bank = parts.bank
        self.drained = False
        self.queue = LaneQueue()
        self.offered: dict[Task, float] = {}
        """Asked-for tasks and the monotonic time at which the offer lapses."""
        self._service = service
        self.watch = Watch(self, service)
        self._in_hands: set[Task] = set()
        self._looking: set[Look] = set()
        self._held: set[Task] = set()
        """Payments that are not sent until a person releases them: a backup was restored."""
        self._turn = 0
        self._inquiries: deque[Task] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._timer_changed = trio.Event()
        self._idle = trio.lowlevel.ParkingLot()
        self._offer_wanted = trio.Event()
        self._resumed = trio.Event()
        self._next_submit_at = 0.0
        self._next_query_at = 0.0
        self._idle_now = trio.Event()
        self._idle_now.set()
        self._sent_as: dict[str, Task] = {}
        """Correlation of what was sent without an answer, for answers that come late."""
        self._late: dict[Task, list[Reply]] = {}
        """Answers that came while their payment was in hands, for whoever lets go of it."""

        self._told_held: set[tuple[TaskId, str]] = set()
        """Answers to payments held after a restore that were told of: some banks tell all again."""
        self._horizon_looks: set[Task] = set()
        """Open payments at whose age a timer looks."""
        self._recalled: set[int] = set()
        """Kept answers that were taken up in this process, by their places in the store."""

    # -- what the service tells the lane ------------------------------------------------------

    def add(self, task: Task) -> None:
        """Put a task where it waits, by its state."""
        match task.state:
            case State.QUEUED if task.body is None:
                self.queue.add_to_fetch(task)
                self.wake_offers()
            case State.QUEUED | State.FETCHED:
                self.queue.add_to_send(task)
                self._idle.unpark()
            case State.ACCEPTED | State.UNKNOWN:
                self._schedule_inquiry(task)
            case _:
                msg = f"a task that is {task.state.value} does not wait in a lane"
                raise AssertionError(msg)

    def add_new(self, tasks: list[Task]) -> None:
        """Put tasks that were just admitted."""
        bare = [task for task in tasks if task.body is None]
        if bare:
            self.queue.add_all_to_fetch(bare)
            self.wake_offers()
        if len(bare) < len(tasks):
            for task in tasks:
                if task.body is not None:
                    self.add(task)

    def put_back(self, task: Task) -> None:
        """Put a task again where it waits; one that moved on, or is held, is left alone."""
        if task.state in WAITING and not task.claimed:
            self.add(task)

    def put_back_held(self) -> None:
        """Let payments wait to be sent that were held after a restore."""
        held, self._held = self._held, set()
        for task in sorted(held, key=lambda task: task.seq):
            self.put_back(task)

    def wake_offers(self) -> None:
        """Look again for tasks to offer: a client came, an offer was answered or lapsed."""
        self._offer_wanted.set()

    def drain(self) -> None:
        """Send nothing more to this bank; what is in flight ends as it ends."""
        if not self.drained:
            self.drained = True
            self._resumed = trio.Event()

    def resume(self) -> None:
        """Send again."""
        self.drained = False
        # It may have stopped by itself, at a refused password.
        self.parts.link.resume()
        self._resumed.set()
        self._idle.unpark_all()
        self.wake_offers()

    def oldest_waiting(self) -> Task | None:
        """Return the task that has waited longest to be fetched or sent, None when none waits."""
        found = self.queue.oldest()
        offered = next(iter(self.offered), None)
        if found is None or (offered is not None and offered.seq < found.seq):
            return offered
        return found

    def next_lapse(self) -> float:
        """Return when the oldest offer lapses (trio's time), infinite when there is none."""
        # All have the same time, so the first that was put is the first that lapses.
        return next(iter(self.offered.values()), float("inf"))

    @property
    def in_flight(self) -> int:
        """How many tasks the workers hold."""
        return len(self._in_hands)

    def wake(self) -> None:
        """Let a worker see that there is something to do."""
        self._idle.unpark()

    def hold(self, task: Task) -> None:
        """Take a task into hands; after a defect its state is read from the disk again."""
        task.claimed = True
        self._in_hands.add(task)
        self._note_busy()

    async def release(self, task: Task) -> None:
        """Use what came late for a task in hands, and let go of it."""
        await self._use_late(task)
        self._in_hands.discard(task)
        task.claimed = False
        self._note_busy()

    def _note_busy(self) -> None:
        is_busy = bool(self._in_hands or self._looking)
        if is_busy and self._idle_now.is_set():
            self._idle_now = trio.Event()
        elif not is_busy:
            self._idle_now.set()

    async def wait_idle(self) -> None:
        """Wait until the workers hold nothing; meant for a drained lane."""
        await self._idle_now.wait()

    def take_over(self, earlier: Lane) -> None:
        """Take over what an earlier lane of this bank left, before the first run."""
        self.offered = earlier.offered
        self._in_hands = earlier._in_hands
        self._sent_as = earlier._sent_as
        self._late = earlier._late
        self._recalled = earlier._recalled

    # -- running ------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; ``started()`` when what an earlier run left is settled."""
        with structlog.contextvars.bound_contextvars(bank=self.bank):
            await self._settle()
            task_status.started()
            # Before anything is asked or sent, and also while the disk is full.
            await self._recall()
            await self.use_all_late()
            async with trio.open_nursery() as nursery:
                for _ in range(self.parts.workers):
                    nursery.start_soon(self._work)
                nursery.start_soon(self._offer)
                nursery.start_soon(self._run_timers)

    async def let_go(self) -> None:
        """Know again of what the workers held what is on disk, and let go of it; not while it runs.

        A worker that was cancelled may have left a change with the store: that is waited for.
        """
        if self._in_hands:
            await self._service.settled()
        for task in list(self._in_hands):
            fresh = await self._service.store.read(partial(store.one, task_id=task.task_id))
            assert fresh is not None
            self._service.refresh(task, fresh)
            task.claimed = False
            # At once: where this is cut off and done again, somebody else may have claimed it.
            self._in_hands.discard(task)
        self._looking.clear()
        self._held.clear()
        self._idle_now.set()

    async def leave(self) -> None:
        """Let persons act on all that it held: it has ended, and nobody starts it again.

        What an adapter failed on is not tried twice, so this may be called again after a defect.
        """
        await self.let_go()
        for task in self._service.tasks_of(self.bank):
            if task.state is State.SENDING and not task.claimed:
                await self._settle_sending(task)
        await self.use_all_late()

    async def use_all_late(self) -> None:
        """Use what came late for what was in hands when the lane ended; not while it runs."""
        for task in list(self._late):
            await self._until_free(task)
            self.hold(task)
            await self.release(task)

    async def _recall(self) -> None:
        """Take up answers to open payments that were kept and not used.

        The process may have ended while such a payment was in hands; its answer is on disk. Each is
        taken up once in this process: one that an adapter fails on ends the lane no second time.
        """
        by_seq = {
            task.seq: task
            for task in self._service.tasks_of(self.bank)
            if task.moves_money and task.state in OPEN_AT_BANK
        }
        read = partial(store.unused_answers, seqs=list(by_seq))
        for one in await self._service.store.read(read) if by_seq else ():
            if one.seq in self._recalled:
                continue
            self._recalled.add(one.seq)
            try:
                reply = only_reply(self.parts.codec, one.wire.data)
            except RemoteProtocolError:
                # Another release's adapter read it; for a person it is there still.
                continue
            assert one.task_seq is not None
            self._late.setdefault(by_seq[one.task_seq], []).append(reply)

    async def _settle(self) -> None:
        """Bring what an earlier run, or an earlier process, left behind to a safe state."""
        await self.let_go()
        self.queue = LaneQueue()
        self._inquiries.clear()
        self._timers.clear()
        self._horizon_looks.clear()
        for task in self._service.tasks_of(self.bank):
            if task.claimed:
                # A client's act or its body is being written; whoever does that puts it back.
                continue
            if task.state is State.QUEUED and task.body is None:
                # Nearly all, when a million wait.
                self.queue.add_to_fetch(task)
            elif task.state is State.SENDING:
                await self._settle_sending(task)
            elif task.state is State.OFFERED and task not in self.offered:
                await self._change(task, (Event.OFFER_LAPSED,), "the process ended")
                self.add(task)
            else:
                self.put_back(task)
        await self.watch.load()
        self.wake_offers()

    async def _settle_sending(self, task: Task) -> None:
        """Bring what was being sent when the lane ended to a state that somebody can act on."""
        if task.moves_money:
            cause = "the process ended while it was being sent"
            await self._open_at_bank(task, Event.OUTCOME_LOST, cause)
        else:
            await self._change(task, (Event.QUERY_LOST,), "the process ended")
            self.add(task)

    async def _open_gates(self) -> None:
        """Wait until the bank may be talked to: not drained, the right key in, the link READY."""
        while True:
            if self.drained:
                await self._resumed.wait()
            elif not self.parts.slot.is_open:
                await self.parts.slot.wait_open()
            elif not self.parts.link.is_open:
                await self.parts.link.wait_open()
            else:
                return

    def _take(self) -> Task | Look | None:
        """Return what a worker does next: inquiries and what is to be sent take turns.

        Hundreds of payments that stay open must not keep new ones, or looks, waiting for ever.
        """
        self._turn += 1
        if self.watch.is_due and self._turn % LOOK_EVERY_TURNS == 0:
            return self.watch.take()
        if self._turn % 2:
            found = self._take_inquiry() or self._take_to_send()
        else:
            found = self._take_to_send() or self._take_inquiry()
        if found is None and self.watch.is_due:
            return self.watch.take()
        return found

    def _take_inquiry(self) -> Task | None:
        while self._inquiries:
            task = self._inquiries.popleft()
            if task.state in OPEN_AT_BANK:
                if not task.claimed:
                    return task
                self.plan_inquiry(task, NOT_SENT_RETRY_SECONDS)
        return None

    def _take_to_send(self) -> Task | None:
        bodies = self.queue.fetched
        found = self.queue.take_to_send()
        if self.queue.fetched < bodies:
            # Fewer bodies wait here, so there may be room to ask for another.
            self.wake_offers()
        return found

    async def _work(self) -> None:
        while True:
            await self._open_gates()
            work = self._take()
            match work:
                case None:
                    await self._idle.park()
                case Look():
                    self._looking.add(work)
                    self._note_busy()
                    await self.watch.step(work)
                    self._looking.discard(work)
                    self._note_busy()
                case Task():
                    # In hands until settled: an exception leaves it there for the next _settle.
                    self.hold(work)
                    # This worker's own context; a defect that ends it takes the name along.
                    structlog.contextvars.bind_contextvars(task_id=work.task_id)
                    await self._do(work)
                    await self.release(work)
                    structlog.contextvars.unbind_contextvars("task_id")
                case _:
                    assert_never(work)

    def quiet_s(self) -> float:
        """Return for how long no statement and no payment's end may be asked; 0 = they may."""
        return evidence.quiet_s(self.parts.card, self._service.clock.now())

    async def _do(self, task: Task) -> None:
        asks = task.state in OPEN_AT_BANK or task.kind in QUIET_KINDS
        if asks and (wait_s := self.quiet_s()) > 0.0:
            self._put_back_later(task, wait_s)
            return
        if task.state in OPEN_AT_BANK:
            await self._inquire(task)
            return
        if task.body is None:
            read = await self._service.store.read(lambda c: _body_of(c, task.task_id))
            self._service.know_body(task, read)
        body = task.body
        assert body is not None
        if self._service.is_held(task):
            self._held.add(task)
            return
        # Whatever its kind: what changes something at the bank is sent once, the rest is asked.
        if isinstance(body, Order):
            assert task.moves_money
            await self._pay(task, body)
        else:
            assert not task.moves_money
            await self._query(task, body)

    # -- payments -----------------------------------------------------------------------------

    async def _pay(self, task: Task, order: Order) -> None:
        """Send one payment at most once; see the design's "path of one payment"."""
        parts = self.parts
        await self._pace(parts.card.throttle.submit_gap_s, submit=True)
        now = self._service.clock.now()
        reference = await self._reference(task)
        if reference is None:
            await self._refuse_body(
                task, "task_id: the numbers it gives are taken by other payments"
            )
            return
        context = Context(now, self._service.sequence.next(now), reference)
        try:
            draft = prepared(parts.codec, order, context)
        except BodyError as error:
            await self._refuse_body(task, str(error))
            return
        try:
            frame = parts.codec.seal(draft, await self._sign(draft, task))
        except KeySlotError as error:
            # Nothing left this machine: the task waits for the key like any other.
            log.warning("task.not_signed", code=error.code, reason=str(error))
            self._put_back_later(task)
            return
        if (vet := self._service.box(task.client).vet) is not None:
            try:
                reason = await vet(task)
            except (StoreFullError, StoreBusyError):
                self._put_back_later(task)
                return
            if reason:
                refused = Rejected(TOO_LATE, reason)
                await self.finish(task, (Event.CANCELLED,), reason, refused, None)
                return
        if parts.may_begin is not None and not parts.may_begin():
            # This machine's lease of the bank is about to run out, or has.
            self._put_back_later(task)
            return
        if self.drained:
            # An operator stopped the bank while this waited for its turn or for the key.
            self._put_back_later(task, 0.0)
            return
        try:
            await self._begin_sending(task, order, draft, frame, context)
        except (StoreFullError, StoreBusyError):
            # To wait here would send it later than it says, and evidence goes by that time.
            self._service.note_full("a payment waits for room on the disk before it leaves")
            self._put_back_later(task)
            return
        self._remember_sent(draft.correlation, task)
        await self._send(task, frame, draft.correlation)

    async def _reference(self, task: Task) -> ClientRef | None:
        """Return a reference that no other payment of this bank has; None: all are taken.

        Long ones don't meet. Another's short one is on disk since it began to be sent, or it is in
        hands as this one is.
        """
        if not self.parts.card.dedupe.digits:
            return self._service.reference_of(task)
        for attempt in range(SHORT_REF_ATTEMPTS):
            reference = self._service.reference_of(task, attempt)
            read = partial(store.of_reference, bank=self.bank, reference=reference)
            other: Task | None = await self._service.store.read(read)
            if (other is None or other.task_id == task.task_id) and not any(
                reference == self._service.reference_of(one, turn)
                for one in self._in_hands
                for turn in range(SHORT_REF_ATTEMPTS)
                if one is not task and one.moves_money
            ):
                return reference
        return None

    async def _begin_sending(
        self, task: Task, order: Order, draft: Draft, frame: bytes, context: Context
    ) -> None:
        """Write that it is being sent, with its exact bytes but for a password in them.

        Raises:
            StoreFullError, StoreBusyError: nothing was written.
        """
        begun: tuple[Event, ...] = (Event.SEND_BEGUN,)
        if task.state is State.QUEUED:
            begun = (Event.BODY_TAKEN, Event.SEND_BEGUN)
        at, reference, codec = self._service.clock.now(), context.client_ref, self.parts.codec
        assert reference is not None
        wire = store.Bytes(
            sent=True,
            correlation=draft.correlation,
            data=codec.kept(frame) if isinstance(codec, SecretiveCodec) else frame,
            taken_for=evidence.prepared_told(context),
        )
        try:
            await self._service.change(
                task,
                begun,
                f"sent as {draft.trade} under {reference}",
                columns={
                    "client_ref": reference,
                    "sent_at": to_text(at),
                    "sent_to": self.parts.system,
                },
                wire=wire,
                sent=store.sent_of(self.bank, order, at, reference),
                patient=False,
                at=at,
            )
        except trio.Cancelled:
            # Else the payment would be unknown, and at some banks for a day.
            self._service.take_back_sending(task, "the lane ended before the first byte left")
            raise
        task.client_ref, task.sent_at, task.sent_to = reference, at, self.parts.system

    async def _send(self, task: Task, frame: bytes, correlation: str) -> None:
        """Send what is on disk as being sent, and act on what becomes of it."""
        parts = self.parts
        parts.note_frame(task.task_id, frame)
        try:
            with trio.fail_after(parts.reply_timeout_s):
                reply = await self._exchange(frame, correlation, task.kind.value, task)
        except NothingSentError as error:
            self._sent_as.pop(correlation, None)
            await self._change(task, (Event.NOTHING_SENT,), f"no byte left: {error}")
            task.claimed = False
            self.add(task)
            return
        except LinkLostError as error:
            await self._open_at_bank(task, Event.OUTCOME_LOST, f"the connection was lost: {error}")
            return
        except trio.TooSlowError:
            await self._open_at_bank(
                task, Event.OUTCOME_LOST, f"no answer within {parts.reply_timeout_s:g} s"
            )
            return
        self._sent_as.pop(correlation, None)
        await self._take_answer(task, reply)

    async def _exchange(
        self, frame: bytes, correlation: str, asked: str, task: Task | None
    ) -> Reply:
        """Hand a frame to the link and return its answer; note how long that took.

        Raises:
            NothingSentError, LinkLostError: as the link does.
        """
        how, began = Exchange.NO_ANSWER, trio.current_time()
        try:
            reply = await self.parts.link.exchange(frame, correlation, self.parts.may_begin)
            how = Exchange.ANSWERED
        except NothingSentError:
            how = Exchange.NOT_SENT
            raise
        except LinkLostError:
            how = Exchange.LOST
            raise
        finally:
            seconds = trio.current_time() - began
            task_id = None if task is None else task.task_id
            self._service.figures.note_exchange(self.bank, asked, how, seconds, task_id)
            if task is not None:
                self._service.tracing.asked(task, asked, how, seconds)
        return reply

    def _outcome(self, task: Task, reply: Reply) -> Outcome:
        """Return what an answer means for a payment; one that names another proves nothing."""
        assert isinstance(task.body, Order)
        return evidence.of_answer(self.parts.codec, task.body, task.client_ref, reply)

    async def _take_answer(self, task: Task, reply: Reply) -> None:
        outcome = self._outcome(task, reply)
        wire = store.received(reply, evidence.told(outcome))
        match outcome:
            case Accepted(result=result, final=True):
                await self.finish(task, (Event.BANK_DONE,), "the bank's answer", outcome, wire)
            case Accepted(result=result):
                task.bank_ref = bank_ref_of(result)
                await self._open_at_bank(
                    task, Event.BANK_ACCEPTED, "the bank took it over", outcome, wire
                )
            case Rejected():
                await self.finish(task, (Event.BANK_REFUSED,), "the bank's answer", outcome, wire)
            case Unclear():
                await self._open_at_bank(
                    task, Event.OUTCOME_LOST, "the bank's answer proves nothing", outcome, wire
                )
            case _:
                assert_never(outcome)

    async def _sign(self, draft: Draft, task: Task | None) -> bytes | None:
        if draft.to_sign is None:
            return None
        began = trio.current_time()
        try:
            signature = await self._signature(draft, draft.to_sign)
        except KeySlotError as error:
            if task is not None:
                seconds = trio.current_time() - began
                self._service.tracing.signed(task, error.code, seconds)
            raise
        if task is not None:
            self._service.tracing.signed(task, "", trio.current_time() - began)
        return signature

    async def _signature(self, draft: Draft, to_sign: bytes) -> bytes:
        try:
            with trio.fail_after(self.parts.slot.config.sign_deadline_s):
                if self.parts.card.signing.by is Signer.SIGN_PORT:
                    return await sign_at_port(self.parts.codec, to_sign)
                return await self.parts.slot.sign(draft.algorithm, to_sign)
        except trio.TooSlowError as error:
            msg = "the key did not sign in time"
            raise KeySlotError(msg) from error

    async def _refuse_body(self, task: Task, reason: str) -> None:
        await self.finish(task, (Event.BODY_REFUSED,), reason, Rejected("BAD_BODY", reason), None)

    # -- queries ------------------------------------------------------------------------------

    async def _query(self, task: Task, body: Query) -> None:
        """Ask; a query changes nothing at the bank, so a lost one is asked again."""
        begun: tuple[Event, ...] = (Event.SEND_BEGUN,)
        if task.state is State.QUEUED:
            begun = (Event.BODY_TAKEN, Event.SEND_BEGUN)
        try:
            outcome = await self._ask_body(task, body)
        except BodyError as error:
            await self._refuse_body(task, str(error))
            return
        except QueryLostError as lost:
            task.attempts += lost.sent
            if task.attempts < QUERY_ATTEMPTS_MAX:
                log.info("task.query_lost", attempts=task.attempts, reason=str(lost))
                self._put_back_later(task, QUERY_RETRY_SECONDS if lost.sent else None)
                return
            given_up = Unclear(lost.code, str(lost))
            await self.finish(
                task, (*begun, Event.QUERY_GIVEN_UP), "no clear answer", given_up, None
            )
            return
        event = Event.BANK_DONE if isinstance(outcome, Accepted) else Event.BANK_REFUSED
        await self.finish(task, (*begun, event), "the bank's answer", outcome, None)

    async def _ask_body(self, task: Task, body: Query) -> Outcome:
        match body:
            case BalanceQuery():
                return (await self.ask(body, task))[0]
            case StatementQuery():
                return await self._ask_statement(task, body)
            case TransferStatusRequest():
                return await self._ask_status_of(task, body)
            case ReturnedQuery() | BankCodeQuery():
                return await self._ask_lookup(task, body)
            case _:
                assert_never(body)

    async def _ask_status_of(self, task: Task, body: TransferStatusRequest) -> Outcome:
        target = await self._service.stored(body.task_id)
        if (
            target is None
            or target.client != task.client
            or target.bank != self.bank
            or not target.moves_money
        ):
            msg = f"no transfer task {body.task_id} of this client at this bank"
            raise BodyError(msg)
        if not isinstance(target.body, Order) and target.state in FINAL and target.sent_at:
            msg = (
                f"task {body.task_id} is {target.state.value}, and its order is in an archive that"
                " can't be read: bring it back, or run fep archive after an update"
            )
            raise BodyError(msg)
        if self._service.is_held(target):
            msg = f"whether task {body.task_id} was sent is not known since a backup was restored"
            raise BodyError(msg)
        if target.client_ref is None or target.sent_at is None:
            msg = f"task {body.task_id} was never sent to the bank; its state is {target.state}"
            raise BodyError(msg)
        outcome, wire = await self.ask_after(target, task)
        # The client learns it here; the task itself must not stay a success.
        await self.watch.take_status(target, outcome, wire)
        if isinstance(outcome, Unclear):
            raise QueryLostError(outcome.code, outcome.message, sent=True)
        if isinstance(outcome, Accepted) and self.is_elsewhere(target):
            assert isinstance(outcome.result, PaymentStatus | BatchStatus)
            told = attrs.evolve(outcome.result, is_elsewhere=True)
            return attrs.evolve(outcome, result=told)
        return outcome

    def is_elsewhere(self, task: Task) -> bool:
        """Whether a payment was sent to another system than the one that this lane asks."""
        return task.sent_to not in (None, self.parts.system)

    async def _ask_statement(self, task: Task, body: StatementQuery) -> Outcome:
        entries: list[StatementEntry] = []
        pages = 0
        today = business_date(self._service.clock.now())
        parts = self.parts.codec.split(body, today)
        if not parts:
            msg = f"'from' and 'to': today is {today}, and of days to come a bank tells nothing"
            raise BodyError(msg)
        for part in parts:
            query = part
            while True:
                outcome, _ = await self.ask(query, task)
                if not isinstance(outcome, Accepted):
                    return outcome
                page = outcome.result
                assert isinstance(page, Statement)
                entries.extend(page.entries)
                pages += 1
                if pages >= STATEMENT_PAGES_MAX or len(entries) >= STATEMENT_ENTRIES_MAX:
                    return Accepted(_fitting(Statement, entries, more=True), outcome.code)
                if not page.cursor:
                    break
                query = attrs.evolve(part, cursor=page.cursor)
        return Accepted(_fitting(Statement, entries, more=False))

    async def _ask_lookup(self, task: Task, body: Lookup) -> Outcome:
        entries: list[Any] = []
        query, pages = body, 0
        while True:
            outcome, _ = await self.ask(query, task)
            if not isinstance(outcome, Accepted):
                return outcome
            page = outcome.result
            assert isinstance(page, ReturnedPayments | BankCodes)
            entries.extend(page.entries)
            pages += 1
            full = pages >= STATEMENT_PAGES_MAX or len(entries) >= STATEMENT_ENTRIES_MAX
            if full or not page.cursor:
                more = bool(page.cursor)
                found = (
                    _fitting(BankCodes, entries, more=more)
                    if isinstance(page, BankCodes)
                    else _fitting(ReturnedPayments, entries, more=more)
                )
                return Accepted(found, outcome.code, outcome.message)
            query = attrs.evolve(query, cursor=page.cursor)

    async def ask(
        self, operation: Operation | Lookup | BatchQuery, task: Task | None = None
    ) -> tuple[Outcome, Reply]:
        """Make one query exchange, for a task where it is for one.

        Raises:
            BodyError: the bank can't carry it.
            QueryLostError: no answer, or one that proves nothing.
        """
        parts = self.parts
        await self._pace(parts.card.throttle.query_gap_s, submit=False)
        now = self._service.clock.now()
        context = Context(now, self._service.sequence.next(now))
        draft = prepared(parts.codec, operation, context)
        reply: Reply | None = None
        try:
            frame = parts.codec.seal(draft, await self._sign(draft, task))
            if task is not None:
                parts.note_frame(task.task_id, frame)
            with trio.move_on_after(parts.reply_timeout_s):
                asked = asked_by(operation)
                reply = await self._exchange(frame, draft.correlation, asked, task)
        except KeySlotError as error:
            raise QueryLostError(error.code, str(error), sent=False) from error
        except NothingSentError as error:
            raise QueryLostError(error.code, str(error), sent=False) from error
        except LinkLostError as error:
            raise QueryLostError(error.code, str(error), sent=True) from error
        if reply is None:
            msg = f"no answer within {parts.reply_timeout_s:g} s"
            raise QueryLostError("NO_REPLY", msg, sent=True)
        outcome = understood(parts.codec, operation, reply)
        match outcome:
            case Unclear(code=code, message=message):
                raise QueryLostError(code, message or "the answer proves nothing", sent=True)
            case Rejected(code=code, message=message, why=Refusal.THROTTLED):
                raise QueryLostError(code, message or "asked too often", sent=True)
            case _:
                return outcome, reply

    async def ask_after(
        self, target: Task, task: Task, keep: Callable[[store.Bytes], Awaitable[None]] | None = None
    ) -> tuple[Outcome, store.Bytes]:
        """Ask the bank what became of a payment; of a batch, row by row.

        Of a batch that is open until one row is, of one at its end every row.

        Args:
            target: what was sent.
            task: for which it is asked.
            keep: called with each page of a batch but the last.

        Returns:
            what all pages say together, and the last one as it is kept.

        Raises:
            BodyError: the bank can't carry it.
            QueryLostError: no answer, or one that proves nothing.
        """
        if not isinstance(target.body, BatchOrder):
            outcome, reply = await self.ask(status_query(target), task)
            return outcome, store.received(reply, evidence.told(outcome))
        query, pages = batch_query(target), list[BatchStatus]()
        while True:
            outcome, reply = await self.ask(query, task)
            wire = store.received(reply, evidence.page_told(outcome, query.cursor))
            if not isinstance(outcome, Accepted):
                return outcome, wire
            page = outcome.result
            assert isinstance(page, BatchStatus)
            pages.append(page)
            is_told = target.state not in FINAL and evidence.is_undecided(page)
            if not page.cursor or is_told or len(pages) >= BATCH_ROWS_MAX:
                break
            if keep is not None:
                await keep(wire)
            query = attrs.evolve(query, cursor=page.cursor)
        whole = evidence.joined(target.body, pages)
        if isinstance(whole, Unclear):
            return whole, wire
        return attrs.evolve(outcome, result=whole), wire

    # -- evidence -----------------------------------------------------------------------------

    async def _inquire(self, task: Task) -> None:
        """Ask the bank what became of a payment, and act on what that proves."""
        wire: store.Bytes | None = None
        finding: Outcome
        try:
            finding, wire = await self.ask_after(task, task, partial(self._keep_page, task))
        except BodyError as error:
            finding = Unclear("BAD_BODY", str(error))
        except QueryLostError as lost:
            if not lost.sent:
                self._put_back_later(task)
                return
            finding = Unclear(lost.code, str(lost))
        while not await self._use_late(task):
            try:
                await self._judge_inquiry(task, finding, wire)
            except OvertakenError:
                continue
            return

    async def _judge_inquiry(self, task: Task, finding: Outcome, wire: store.Bytes | None) -> None:
        """Act on what an inquiry found.

        Raises:
            OvertakenError: an answer to the payment itself came before that was written, and
                nothing was: "no record" must not outrun it.
        """
        now, certain = self._service.clock.now(), self._service.certain_now()
        waited = dt.timedelta(seconds=task.waited(trio.current_time()))
        decision = evidence.decide(
            self.card_of(task),
            task.state,
            certain - waited,
            task.inquiries,
            finding,
            now,
            certain,
            is_elsewhere=self.is_elsewhere(task),
        )
        match decision:
            case evidence.Close(events=events, cause=cause):
                await self.finish(
                    task, events, cause, finding, wire, only_if=lambda _: task not in self._late
                )
            case evidence.AskAgain():
                await self._note_inquiry(task, decision, finding, wire)
            case _:
                assert_never(decision)

    async def _note_inquiry(
        self,
        task: Task,
        decision: evidence.AskAgain,
        finding: Outcome,
        wire: store.Bytes | None,
    ) -> None:
        """Write what a fruitless inquiry found, and see to it that more is done."""
        task.inquiries += 1
        task.inquire_at = decision.at
        columns = {"inquiries": task.inquiries, "inquire_at": to_text(decision.at)}
        if decision.events:
            task.bank_ref = task.bank_ref or _bank_ref_of(finding)
            columns["bank_ref"] = task.bank_ref
            await self._change(
                task,
                decision.events,
                decision.cause,
                columns=columns,
                wire=wire,
            )
        else:
            await self._note(task, decision.cause, columns, wire)
        log.info(
            "task.inquired",
            state=task.state.value,
            cause=decision.cause,
            again_at=to_text(decision.at),
        )
        self._watch_horizon(task)
        single = not isinstance(task.body, BatchOrder)
        if single and evidence.statement_due(self.parts.card, task.inquiries):
            self.watch.search(task)
        task.claimed = False
        self._schedule_inquiry(task)

    async def _keep_page(self, task: Task, wire: store.Bytes) -> None:
        """Keep a page of a batch's rows, which proves something only with those behind it."""
        now, service = self._service.clock.now(), self._service
        state, configuration = task.state, service.configuration

        def note(connection: sa.Connection) -> None:
            cause = "a page of the batch's rows"
            store.note(connection, task.seq, state, "paged", cause, now, configuration, wire=wire)

        await service.patiently(partial(service.write_of, task, note))

    def card_of(self, task: Task) -> BehaviourCard:
        """Return the card by which a payment is asked after."""
        assert isinstance(task.body, Order)
        return evidence.card_of(self.parts.card, task.body)

    async def _note(
        self,
        task: Task,
        cause: str,
        columns: dict[str, Any],
        wire: store.Bytes | None,
    ) -> None:
        """Write an inquiry that changed nothing, and for how long the payment is unknown."""
        order, sent_at, state = task.body, task.sent_at, task.state
        assert isinstance(order, Order)
        assert sent_at is not None
        assert task.client_ref is not None
        sent = store.sent_of(self.bank, order, sent_at, task.client_ref)
        waited_s = task.waited(trio.current_time())
        now, configuration = self._service.clock.now(), self._service.configuration

        def note(connection: sa.Connection) -> None:
            store.note(
                connection,
                task.seq,
                state,
                "inquired",
                cause,
                now,
                configuration,
                wire=wire,
                columns=columns,
            )
            if state is State.UNKNOWN:
                store.keep_waited(connection, task.seq, sent, waited_s)

        await self._service.patiently(partial(self._service.write_of, task, note))

    def _watch_horizon(self, task: Task) -> None:
        """Tell of a payment that is open for too long; while it is not, look again by and by."""
        if task.state not in OPEN_AT_BANK or task.sent_at is None:
            return
        horizon_s = self.parts.card.inquiry.horizon_s
        if evidence.overdue(self.parts.card, task.sent_at, self._service.clock.now()):
            cause = f"{task.state.value} for longer than {horizon_s:g} s"
            self._service.alarms.raise_alarm(AlarmKind.UNKNOWN_OVERDUE, task.task_id, cause)
        elif task not in self._horizon_looks:
            self._horizon_looks.add(task)
            self.later(min(horizon_s, HORIZON_LOOK_SECONDS), partial(self._look_again, task))

    def _look_again(self, task: Task) -> None:
        self._horizon_looks.discard(task)
        self._watch_horizon(task)

    async def take_late(self, reply: Reply) -> tuple[Task | None, bool]:
        """Use an answer that came when nobody waited for it.

        Returns:
            the task it belongs to, and whether its bytes are kept with that task already.
        """
        task = await self._answered(reply)
        if task is None or self._service.is_held(task):
            return await self._take_for_held(task, reply)
        # What a person does with it, or an end that is being written, comes first.
        await self._until_free(task)
        if task in self._in_hands or task.state is State.SENDING:
            # It is being asked after at this moment, or sent, or what became of that is about to be
            # written; whoever does that looks here.
            self._late.setdefault(task, []).append(reply)
            return task, False
        try:
            return task, await self._judge_late(task, reply)
        except PlaceLostError:
            # Who serves the bank by now asks it; the bytes are kept for whoever looks.
            return task, False

    async def _answered(self, reply: Reply) -> Task | None:
        """Return the payment that an answer is to: by our reference, or by its correlation.

        By the reference those of earlier processes are found, too.
        """
        reference = self.parts.codec.payment_ref(reply)
        sent = self._sent_as.pop(reply.correlation, None)
        if not reference or (sent is not None and sent.client_ref == reference):
            return sent
        read = partial(store.of_reference, bank=self.bank, reference=reference)
        found: Task | None = await self._service.store.read(read)
        if found is None:
            return None
        if task := self._service.open_task(found.task_id):
            return task
        if found.state not in FINAL:
            # It ended while it was being read: what was read is older than what is known.
            found = await self._service.store.read(read)
        if found is not None and found.body is None:
            found = await self._service.stored(found.task_id)
        return found

    async def _take_for_held(self, known: Task | None, reply: Reply) -> tuple[Task | None, bool]:
        """Keep an answer to a payment that is held after a restore, and tell a person of it.

        Nothing here knows of a sending after the copy was made, so the payment stays as it is: who
        compares it before the release sees what the bank says.

        Args:
            known: whose it is by the reference that the copy has; None: nobody's.
            reply: what came.
        """
        reference = self.parts.codec.payment_ref(reply)
        held = [known] if known is not None else await self._held_under(reference)
        try:
            for task in held:
                await self._keep_for_held(task, reference, reply, is_sure=known is not None)
        except PlaceLostError:
            # Kept as nobody's: as a late answer to its task it would be taken for one to the next
            # sending.
            return None, False
        return (held[0], True) if held else (None, False)

    async def _held_under(self, reference: str) -> list[Task]:
        """Return the held payments that may have been sent under a reference."""
        found: list[Task] = []
        if self._service.held_since is None or not reference:
            return found
        turns = SHORT_REF_ATTEMPTS if self.parts.card.dedupe.digits else 1
        for place, task in enumerate(self._service.tasks_of(self.bank)):
            if place % HELD_COMPARED_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            if self._service.is_held(task) and any(
                is_ref_of(reference, self._service.reference_of(task, turn))
                for turn in range(turns)
            ):
                found.append(task)
        return found

    async def _keep_for_held(
        self, task: Task, reference: str, reply: Reply, *, is_sure: bool
    ) -> None:
        """Raise the alarm, and keep what came as a step of a held payment that changes nothing."""
        service, now = self._service, self._service.clock.now()
        mark = (task.task_id, digest(reply.raw))
        if mark in self._told_held:
            return
        self._told_held.add(mark)
        body = task.body or await service.store.read(partial(_body_of, task_id=task.task_id))
        is_short, told = self.parts.card.dedupe.digits, "an answer bears its reference"
        if isinstance(body, Order):
            own = ClientRef(reference) if is_short else service.reference_of(task)
            told = evidence.told(evidence.of_answer(self.parts.codec, body, own, reply))
        # Other tasks, which the copy may not know, can have the same short one.
        has = "may have it (short references can meet)" if is_short and not is_sure else "has it"
        cause = f"the bank {has}: {told}"
        alarm = f"it is held since a backup was restored, and {cause}"
        log.error("task.contradicted", task_id=task.task_id, cause=alarm)
        service.alarms.raise_alarm(AlarmKind.EVIDENCE_CONFLICT, task.task_id, alarm)
        keep = partial(
            store.note_held_answer,
            seq=task.seq,
            cause=cause,
            wire=store.received(reply),
            at=now,
            configuration=service.configuration,
        )
        await service.patiently(partial(service.write_of, task, keep))

    async def _use_late(self, task: Task) -> bool:
        """Use what came late for a task in hands; say whether that changed it."""
        is_changed = False
        while replies := self._late.pop(task, []):
            if replies[1:]:
                # Before the first is judged: a defect that ends the lane must not take them along.
                self._late[task] = replies[1:]
            if task.state in OPEN_AT_BANK:
                # It may wait for its inquiry already.
                task.claimed = True
            try:
                is_changed |= await self._judge_late(task, replies[0])
            except trio.Cancelled:
                # The lane ends while the disk is full: the next one uses it.
                self._late[task] = [replies[0], *self._late.pop(task, [])]
                raise
        return is_changed

    async def _until_free(self, task: Task) -> None:
        while task.claimed and task not in self._in_hands:
            await trio.sleep(CLAIM_LOOK_SECONDS)

    async def _judge_late(self, task: Task, reply: Reply) -> bool:
        """Act on what a late answer says; say whether it was written, with its bytes."""
        if task.state in OPEN_AT_BANK:
            return await self._take_late_answer(task, reply)
        self._compare(task, reply)
        return await self._take_return(task, reply)

    async def _take_late_answer(self, task: Task, reply: Reply) -> bool:
        """Act on what a late answer to an open payment proves; False when that is nothing."""
        outcome = self._outcome(task, reply)
        events, cause = evidence.of_late(outcome)
        wire = store.received(reply, evidence.told(outcome))
        if events == (Event.PROVED_ACCEPTED,):
            if task.state is not State.UNKNOWN:
                return False
            task.bank_ref = task.bank_ref or _bank_ref_of(outcome)
            await self._open_at_bank(task, Event.PROVED_ACCEPTED, cause, outcome, wire)
        elif events:
            await self.finish(task, events, cause, outcome, wire)
            await self._take_return(task, reply)
        return bool(events)

    async def _take_return(self, task: Task, reply: Reply) -> bool:
        """Reopen a success of which the bank says unasked that it came back; say whether it did."""
        if task.state is not State.SUCCEEDED or not isinstance(task.body, PaymentOrder):
            return False
        outcome = self.parts.codec.outcome(status_query(task), reply)
        wire = store.received(reply, evidence.told(outcome))
        return await self.watch.take_status(task, outcome, wire)

    def _compare(self, task: Task, reply: Reply) -> None:
        """Raise the alarm when an answer says otherwise than the end its payment was brought to."""
        if not isinstance(task.body, Order):
            return
        outcome = self._outcome(task, reply)
        if evidence.contradicts(task.state, outcome):
            cause = f"it is {task.state.value}, and a late answer says: {evidence.told(outcome)}"
            log.error("task.contradicted", task_id=task.task_id, cause=cause)
            self._service.alarms.raise_alarm(AlarmKind.EVIDENCE_CONFLICT, task.task_id, cause)

    # -- state changes ------------------------------------------------------------------------

    async def _change(
        self,
        task: Task,
        events: tuple[Event, ...],
        cause: str,
        *,
        columns: dict[str, Any] | None = None,
        wire: store.Bytes | None = None,
    ) -> None:
        """Write the change, wait for the disk, then know it."""
        await self._service.change(task, events, cause, columns=columns, wire=wire)

    async def _open_at_bank(
        self,
        task: Task,
        event: Event,
        cause: str,
        outcome: Outcome | None = None,
        wire: store.Bytes | None = None,
    ) -> None:
        """Leave the payment to evidence: ask the bank after the card's cool-down."""
        state = step(task.state, event)
        at = evidence.first_inquiry(self.card_of(task), state, self._service.clock.now())
        columns: dict[str, Any] = {"inquire_at": to_text(at), "bank_ref": task.bank_ref}
        if outcome is not None:
            columns |= {"bank_code": outcome.code, "bank_message": outcome.message}
        is_mine = task in self._in_hands
        await self._change(task, (event,), cause, columns=columns, wire=wire)
        task.inquire_at = at
        log.warning("task.left_open", state=state.value, cause=cause, inquire_at=to_text(at))
        if is_mine:
            task.claimed = False
        self._schedule_inquiry(task)

    async def finish(
        self,
        task: Task,
        events: tuple[Event, ...],
        cause: str,
        outcome: Outcome,
        wire: store.Bytes | None,
        only_if: Callable[[sa.Connection], bool] | None = None,
    ) -> None:
        """Bring a task to its end and owe its client the result.

        Raises:
            OvertakenError: ``only_if``, asked at each try to write it, said no.
        """
        columns = end_columns(task, events, outcome) | {"inquire_at": None}
        task.bank_ref = columns.get("bank_ref", task.bank_ref)
        rows: dict[int, str] = {}
        if isinstance(outcome, Accepted) and isinstance(outcome.result, BatchStatus):
            rows = {at: row.bank_ref for at, row in outcome.result.rows.items() if row.bank_ref}
        await self._service.change(
            task, events, cause, columns=columns, wire=wire, row_refs=rows, only_if=only_if
        )

    # -- timers, offers, pace -----------------------------------------------------------------

    def _remember_sent(self, correlation: str, task: Task) -> None:
        self._sent_as[correlation] = task
        while len(self._sent_as) > LATE_ANSWERS_MAX:
            del self._sent_as[next(iter(self._sent_as))]

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds, unless the lane ends before."""
        self._timer_count += 1
        due = trio.current_time() + max(seconds, 0.0)
        heapq.heappush(self._timers, (due, self._timer_count, action))
        self._timer_changed.set()

    def _put_back_later(self, task: Task, seconds: float | None = None) -> None:
        """Let go of a task that did not get on; it waits again after a pause, if it still does."""
        task.claimed = False
        pause = NOT_SENT_RETRY_SECONDS if seconds is None else seconds

        def again() -> None:
            if task.claimed and task.state in OPEN_AT_BANK:
                # A statement is being judged for it: that plans no inquiry.
                self.later(NOT_SENT_RETRY_SECONDS, again)
            else:
                self.put_back(task)

        self.later(pause, again)

    def _schedule_inquiry(self, task: Task) -> None:
        now, at = self._service.clock.now(), task.inquire_at
        wait = 0.0 if at is None else (at - now).total_seconds()
        # A late answer may have been written while the bank was taken out of force and in again.
        lane = self._service.lane_of(self.bank) or self
        # More than the card ever waits means that the wall clock was set back since.
        lane.plan_inquiry(task, min(wait, evidence.inquiry_wait_max_s(lane.card_of(task))))

    def plan_inquiry(self, task: Task, seconds: float) -> None:
        """Let an inquiry come up, unless another is planned before; one that is held, once free."""
        at = task.inquire_at

        def due() -> None:
            if task.inquire_at is at and task.state in OPEN_AT_BANK:
                self._inquiries.append(task)
                self.wake()
                self._watch_horizon(task)

        self.later(seconds, due)

    async def _run_timers(self) -> None:
        while True:
            self._timer_changed = trio.Event()
            until = self._timers[0][0] if self._timers else float("inf")
            with trio.move_on_at(until):
                await self._timer_changed.wait()
            while self._timers and self._timers[0][0] <= trio.current_time():
                heapq.heappop(self._timers)[2]()

    async def _pace(self, gap_s: float, *, submit: bool) -> None:
        """Keep the bank's minimum gap between two requests of a kind; each waiter its turn."""
        if gap_s <= 0.0:
            return
        now = trio.current_time()
        if submit:
            at = max(now, self._next_submit_at)
            self._next_submit_at = at + gap_s
        else:
            at = max(now, self._next_query_at)
            self._next_query_at = at + gap_s
        await trio.sleep_until(at)

    async def _offer(self) -> None:
        """Ask connected clients for the bodies of what waits, a window at a time."""
        while True:
            self._offer_wanted = trio.Event()
            await self._open_gates()
            room = OFFERS_OUTSTANDING_MAX - len(self.offered) - self.queue.fetched
            tasks = self.queue.take_to_fetch(room, self._service.present) if room > 0 else []
            if tasks:
                await self._service.offer(self, tasks)
            else:
                await self._offer_wanted.wait()


_Pages = TypeVar("_Pages", Statement, ReturnedPayments, BankCodes)


def _fitting(kind: type[_Pages], entries: list[Any], *, more: bool) -> _Pages:
    """Return the result of these entries, as many as fit."""
    kept, size = 0, 0
    for entry in entries[:STATEMENT_ENTRIES_MAX]:
        size += len(orjson.dumps(result_value(kind((entry,)))))
        if size > STATEMENT_BYTES_MAX:
            break
        kept += 1
    return kind(tuple(entries[:kept]), cursor="more" if more or kept < len(entries) else "")


def _bank_ref_of(outcome: Outcome) -> str:
    """Return the bank's reference of a payment that the bank says it has, or empty."""
    match outcome:
        case Accepted(result=PaymentReceipt(bank_ref=reference)):
            return reference
        case Accepted(result=PaymentStatus(state=PaymentState.PROCESSING, bank_ref=reference)):
            return reference
        case _:
            return ""


def _body_of(connection: sa.Connection, task_id: str) -> Body | None:
    found = store.one(connection, task_id)
    return None if found is None else found.body
