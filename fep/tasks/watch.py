"""Looks at accounts: finds payments whose end is open, and successes that came back (退票, 冲账).

One statement of a payer answers for all its payments. What a statement does not tell apart, and
all where a bank has none, the status query of each payment tells. A look is made one request at a
time by the lane's workers, when nothing more urgent waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, assert_never

import attrs
import orjson
import structlog
import trio

from fep.adapters.api import Accepted, Outcome, Refusal, Rejected, Unclear
from fep.alarms.state import AlarmKind
from fep.domain.account import mask
from fep.domain.clock import BusinessDate, business_date
from fep.domain.errors import BodyError
from fep.domain.ids import AccountNumber, TaskId
from fep.domain.order import (
    BatchOrder,
    BatchStatus,
    Kind,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    Statement,
    StatementQuery,
    result_value,
)
from fep.store.database import StoreBusyError, StoreFullError
from fep.tasks import evidence, look, store
from fep.tasks.look import Look
from fep.tasks.matching import (
    Absent,
    Ambiguous,
    Found,
    Payment,
    Watched,
    find_payment,
)
from fep.tasks.result import with_returned
from fep.tasks.state import OPEN_AT_BANK, Event, State
from fep.tasks.task import OvertakenError, QueryLostError, Task, payment_of

if TYPE_CHECKING:
    from fep.tasks.lane import Lane
    from fep.tasks.service import TaskService

log = structlog.get_logger()

ASKED_AT_ONCE_MAX: Final = 100
"""Successes read from the store at a time, where each is asked after."""
SUSPECTS_MAX: Final = 50
"""Successes of one look whose status is asked because a line could be their return."""
JUDGED_AT_ONCE_MAX: Final = 200
"""Successes of one look that are judged before others have their turn."""
FAILED_LOOKS_MAX: Final = 3
"""Looks at an account in a row that did not learn all, then a person must know."""
LOST_RETRY_SECONDS: Final = 1.0
FAILED_RETRY_SECONDS_MAX: Final = 600.0
SECONDS_PER_DAY: Final = 86_400.0


class Watch:
    """When each account of one bank is looked at, and what a look proves; the lane does the asking.

    Whom to watch is in the store; here is only when to look, so it costs nothing when nothing is
    watched.
    """

    def __init__(self, lane: Lane, service: TaskService) -> None:
        self._lane = lane
        self._service = service
        self._due: dict[AccountNumber, float] = {}
        """When an account is looked at next (trio's time), infinite while it is being done."""
        self._looked: dict[AccountNumber, float] = {}
        """When the last look began that was done."""
        self._open: dict[AccountNumber, set[Task]] = {}
        """Payments whose end a statement may tell."""
        self._noted: dict[Task, str] = {}
        """What was said last of these payments, so that their chains do not say it again."""
        self._bad: dict[AccountNumber, frozenset[int]] = {}
        """Successes of which the bank told nothing at the last looks, by their places."""
        self._suspected: dict[AccountNumber, frozenset[int]] = {}
        """Places of successes that had their turn, where more may have come back than are asked."""
        self._contradicted: dict[TaskId, str] = {}
        """What was told last of payments whose status contradicts their end."""
        self._failures: dict[AccountNumber, int] = {}
        """Looks in a row that did not learn all."""
        self._ready: deque[Look] = deque()
        self._reopening = trio.Lock()
        """Held while a success is read and written as returned: two may find that at once."""

    @property
    def is_due(self) -> bool:
        """True while a look has a request to make."""
        return bool(self._ready)

    async def load(self) -> None:
        """Begin anew with what the store says is watched."""
        self._due.clear()
        self._ready.clear()
        self._open.clear()
        self._bad.clear()
        self._failures.clear()
        bank = self._lane.bank
        for payer in await self._service.store.read(partial(store.watched_payers, bank=bank)):
            self._want(payer, 0.0)

    def begin(self, payer: AccountNumber) -> None:
        """Note that a success of this account is watched from now on."""
        self._want(payer, self._lane.parts.card.returned.first_look_s)

    def search(self, task: Task) -> None:
        """Let the statement of a payment's payer be read for it, where the bank has statements."""
        assert isinstance(task.body, PaymentOrder)
        if Kind.STATEMENT not in self._lane.parts.capabilities:
            return
        payer = task.body.payer
        self._open.setdefault(payer, set()).add(task)
        looked = self._looked.get(payer, -math.inf)
        gap = self._lane.parts.card.inquiry.interval_max_s
        self._want(payer, max(looked + gap - trio.current_time(), 0.0))

    def take(self) -> Look:
        """Return the look that has waited longest; give it to :meth:`step`."""
        return self._ready.popleft()

    # -- when ---------------------------------------------------------------------------------

    def _want(self, payer: AccountNumber, in_s: float) -> None:
        at = trio.current_time() + in_s
        if payer in self._due and not self._due[payer] > at:
            return
        if self._due.get(payer) == math.inf:
            return  # When it is done it is seen what is wanted then.
        self._due[payer] = at
        self._lane.later(in_s, partial(self._come, payer, at))

    def _come(self, payer: AccountNumber, at: float) -> None:
        if self._due.get(payer) != at:
            return  # An earlier one was wanted meanwhile.
        self._due[payer] = math.inf
        self._put(Look(payer))

    def _put(self, one: Look) -> None:
        self._ready.append(one)
        self._lane.wake()

    def _again(self, one: Look, in_s: float) -> None:
        self._due.pop(one.payer, None)
        self._want(one.payer, in_s)

    # -- one request of a look ----------------------------------------------------------------

    async def step(self, one: Look) -> None:
        """Go on with a look: at most one request; it comes up again until it is done."""
        if (quiet_s := self._lane.quiet_s()) > 0.0:
            self._lane.later(quiet_s, partial(self._put, one))
            return
        try:
            is_done = await self._do_next(one)
        except QueryLostError as lost:
            if lost.sent:
                one.lose(str(lost))
            if one.is_lost:
                self._fail(one, str(lost))
            else:
                self._lane.later(LOST_RETRY_SECONDS, partial(self._put, one))
            return
        except (StoreBusyError, StoreFullError) as error:
            # Payments go on: a look is begun anew later.
            self._fail(one, str(error))
            return
        except BodyError as error:
            # Midnight passed between two pages, or an account is not approved any more.
            if not one.is_asking:
                self._fail(one, str(error))
                return
            one.pass_over(str(error))
            is_done = False
        if not is_done:
            self._put(one)

    async def _do_next(self, one: Look) -> bool:
        """Do the next thing of a look; say whether that was its end."""
        if not one.is_begun:
            await self._begin(one)
        elif one.parts:
            await self._read_page(one)
        elif not one.is_judged:
            await self._judge(one)
        elif one.asks:
            await self._ask_status(one)
        elif one.asks_all_after is not None:
            await self._read_watched(one)
        elif one.last:
            one.ask_last()
        else:
            await self._end(one)
            return True
        return False

    def _fail(self, one: Look, reason: str) -> None:
        log.warning("watch.look_failed", account=mask(one.payer), reason=reason)
        self._bad[one.payer] = one.known_bad | one.bad
        # Whose turn it was may not have been asked.
        self._suspected.pop(one.payer, None)
        self._count_failure(one.payer, reason)
        card = self._lane.parts.card
        self._again(one, min(card.returned.interval_s, FAILED_RETRY_SECONDS_MAX))

    def _count_failure(self, payer: AccountNumber, reason: str) -> None:
        """Count a look that did not learn all, and tell of so many in a row; "" is one that did."""
        alarms, bank = self._service.alarms, self._lane.bank
        if reason:
            times = self._failures[payer] = self._failures.get(payer, 0) + 1
            failing = sum(n >= FAILED_LOOKS_MAX for n in self._failures.values())
            if times >= FAILED_LOOKS_MAX:
                cause = f"{times} looks in a row at {mask(payer)} did not learn all: {reason}"
                cause += f"; so it is with {failing} accounts" if failing > 1 else ""
                alarms.raise_alarm(AlarmKind.WATCH_FAILED, bank, cause)
            return
        self._forget_failures(payer)

    def _forget_failures(self, payer: AccountNumber) -> None:
        self._failures.pop(payer, None)
        if max(self._failures.values(), default=0) < FAILED_LOOKS_MAX:
            self._service.alarms.clear(AlarmKind.WATCH_FAILED, self._lane.bank)

    def _tell_ended(self, one: Look, count: int) -> None:
        """Tell a person of successes whose watch ends, and which were not learned of.

        As an alarm of its own, which no later look clears: nobody looks at these any more.
        """
        if count:
            bank, account = self._lane.bank, mask(one.payer)
            cause = f"{account} has payments that are watched no more and were not learned of"
            cause = f"{cause}, {count} of them: {one.missed}"
            self._service.alarms.raise_alarm(AlarmKind.WATCH_FAILED, f"{bank} {account}", cause)

    async def _begin(self, one: Look) -> None:
        lane = self._lane
        one.began, one.is_begun = trio.current_time(), True
        one.known_bad = self._bad.get(one.payer, frozenset())
        one.asks_until = await self._service.store.read(store.last_seq)
        since = await self._service.store.read(
            partial(store.watched_since, bank=lane.bank, payer=one.payer)
        )
        moments = [task.sent_at for task in self._open.get(one.payer, ()) if task.sent_at]
        moments += [since] if since is not None else []
        if not moments:
            one.is_judged = True
        elif Kind.STATEMENT in lane.parts.capabilities:
            # The wall clock does: lines that are missing prove nothing, when it is set right that
            # counts at once, and while it is ahead the bank says no.
            now = self._service.clock.now()
            first, last = look.days(min(moments), now)
            query = StatementQuery(one.payer, first, last)
            one.ask_statement(lane.parts.codec.split(query, business_date(now)))
        else:
            self._ask_all(one)

    @staticmethod
    def _ask_all(one: Look) -> None:
        """Let each success be asked after, for want of a statement."""
        one.parts.clear()
        one.is_judged = True
        one.asks_all_after = 0

    async def _read_page(self, one: Look) -> None:
        outcome, reply = await self._lane.ask(one.parts[0])
        match outcome:
            case Accepted(result=Statement() as page):
                one.losses = 0
                one.take_page(page, reply)
            case Rejected(why=Refusal.PERMISSION, code=code):
                log.warning("watch.statement_refused", account=mask(one.payer), code=code)
                one.losses = 0
                # No statement tells of these; what is asked after again wants one again.
                self._open.pop(one.payer, None)
                self._ask_all(one)
            case _:
                msg = f"the bank refused the statement: {outcome.code} {outcome.message}"
                raise BodyError(msg)

    async def _read_watched(self, one: Look) -> None:
        lane = self._lane
        assert one.asks_all_after is not None
        found = await self._service.store.read(
            partial(
                store.watched_after,
                bank=lane.bank,
                payer=one.payer,
                seq=one.asks_all_after,
                limit=ASKED_AT_ONCE_MAX,
            )
        )
        found = [watched for watched in found if watched.seq <= one.asks_until]
        one.ask_after(found)
        one.asks_all_after = found[-1].seq if found else None

    async def _ask_status(self, one: Look) -> None:
        lane = self._lane
        watched = one.asks[0]
        task = await self._service.store.read(partial(store.one, task_id=watched.task_id))
        assert task is not None
        if task.state is State.SUCCEEDED or _may_return_more(task):
            outcome, wire = await lane.ask_after(task, task)
            if isinstance(outcome, Unclear):
                raise QueryLostError(outcome.code, outcome.message, sent=True)
            await self.take_status(task, outcome, wire)
            if (untold := evidence.untold(outcome)) is not None:
                one.losses = 0
                one.pass_over(untold)
                return
        # Also where its end changed while the statement was judged: whether it came back is known.
        self._service.alarms.clear(AlarmKind.EVIDENCE_AMBIGUOUS, task.task_id)
        one.take_told()

    async def _end(self, one: Look) -> None:
        lane = self._lane
        returned = lane.parts.card.returned
        passed_s = one.began - self._looked.get(one.payer, one.began)
        span_s = returned.watch_days * SECONDS_PER_DAY
        facts = lane.bank, one.payer, passed_s, span_s, one.unlearned
        if one.unlearned != frozenset():
            # Told first: the process may end behind the note.
            untold: int = await self._service.store.read(lambda c: store.ends_untold(c, *facts))
            self._tell_ended(one, untold)
        left = 0

        async def write() -> None:
            nonlocal left
            left = await self._service.write_at(lane.bank, lambda c: store.note_look(c, *facts))

        await self._service.patiently(write)
        self._looked[one.payer] = one.began
        self._bad[one.payer] = frozenset(one.bad)
        if one.missed:
            log.warning("watch.look_incomplete", account=mask(one.payer), reason=one.missed)
        self._count_failure(one.payer, one.missed)
        log.debug("watch.looked", account=mask(one.payer), watched=left)
        self._due.pop(one.payer, None)
        if left:
            # Soon again, but not for ever: a bank may never tell of what it has forgotten.
            is_soon = 0 < self._failures.get(one.payer, 0) <= FAILED_LOOKS_MAX
            soon = min(returned.interval_s, FAILED_RETRY_SECONDS_MAX)
            self._want(one.payer, soon if is_soon else returned.interval_s)
        if self._open.get(one.payer):
            self._want(one.payer, lane.parts.card.inquiry.interval_max_s)
        elif not left:
            self._looked.pop(one.payer, None)
            self._forget_failures(one.payer)
            for known in (self._bad, self._suspected):
                known.pop(one.payer, None)

    # -- what it proves -----------------------------------------------------------------------

    async def _judge(self, one: Look) -> None:
        one.is_judged = True
        searched = self._open.get(one.payer, set())
        for task in sorted(searched, key=lambda task: task.seq):
            # Each may walk all lines, and wait for nothing.
            await trio.lowlevel.checkpoint()
            if task.state not in OPEN_AT_BANK:
                searched.discard(task)
                self._noted.pop(task, None)
            elif not task.claimed:
                await self._judge_open(task, one)
        if not (amounts := one.returns.amounts):
            return
        lane = self._lane
        suspects: dict[int, Watched] = {}
        found: list[Watched] = await self._service.store.read(
            lambda c: store.watched_alike(c, lane.bank, one.payer, amounts)
        )
        for number, watched in enumerate(found, 1):
            if number % JUDGED_AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()
            match one.returns.find(watched.payment):
                case Found(entry=entry, by=by):
                    cause = f"the payer's statement says: returned (退票), found by {by}"
                    day = business_date(entry.booked_at)
                    page, cursor = one.page_of(entry)
                    what = evidence.takes_back(watched.row)
                    wire = store.received(page, evidence.line_told(what, cursor))
                    await self._reopen(watched, cause, day, "", "", wire)
                case Ambiguous(why=why):
                    self._alarm(watched.task_id, f"whether it came back: {why}")
                    suspects[watched.seq] = watched
                case Absent():
                    if one.returns.may_hold(watched.payment):
                        suspects[watched.seq] = watched
        self._suspect(one, [suspects[seq] for seq in sorted(suspects)])

    def _suspect(self, one: Look, suspects: Sequence[Watched]) -> None:
        """Let successes be asked after that may have come back; where they are many, in turn."""
        asked = self._suspected.pop(one.payer, frozenset())
        turn = [watched for watched in suspects if watched.seq not in asked]
        one.ask_after(turn[:SUSPECTS_MAX])
        if left := turn[SUSPECTS_MAX:]:
            self._suspected[one.payer] = asked | {watched.seq for watched in turn[:SUSPECTS_MAX]}
            one.waiting = frozenset(watched.seq for watched in left)
            one.missed = f"{len(left)} successes more than are asked may have come back"

    async def _judge_open(self, task: Task, one: Look) -> None:
        """Close an open payment that the statement proves."""
        lane = self._lane
        payment = payment_of(task)
        by_reference_only = not one.is_complete or lane.parts.card.statement.shows_reference
        if not by_reference_only:
            # What a restored copy does not know may be what a line without a reference is.
            read = partial(store.is_blind, about=payment.sent_at)
            by_reference_only = await self._service.store.read(read)
        others: Sequence[Payment] = ()
        if not by_reference_only or payment.bank_ref:
            others = await self._service.store.read(partial(store.rivals, one=payment))
        if task.claimed or task.state not in OPEN_AT_BANK:
            return  # Somebody took it meanwhile: the next look sees to it.
        self._open.get(one.payer, set()).discard(task)
        lane.hold(task)
        match find_payment(payment, one.entries, others, by_reference_only=by_reference_only):
            case Found(entry=entry, by=by):
                self._noted.pop(task, None)
                events: tuple[Event, ...] = (Event.PROVED_DONE,)
                cause = f"a line of the payer's statement says: done, found by {by}"
                finding = evidence.of_line(entry)
                known = attrs.evolve(payment, bank_ref=entry.bank_ref or payment.bank_ref)
                match one.returns.find(known):
                    case Found(entry=back):
                        events = (*events, Event.PROVED_RETURNED)
                        cause += "; another line says: returned (退票)"
                        finding = evidence.of_line(entry, business_date(back.booked_at))
                    case _:
                        pass
                page, cursor = one.page_of(entry)
                wire = store.received(page, evidence.line_told(f"found by {by}", cursor))
                await lane.finish(task, events, cause, finding, wire)
            case Ambiguous(why=why):
                self._alarm(task.task_id, f"whether it was done: {why}")
                await self._note(task, f"the payer's statement proves nothing: {why}")
            case Absent():
                await self._note(task, "no line of the payer's statement is it: proves nothing")
            case match:
                assert_never(match)
        await lane.release(task)

    async def _note(self, task: Task, cause: str) -> None:
        """Write into a payment's chain what a statement said of it, once."""
        if self._noted.get(task) == cause:
            return
        self._noted[task] = cause
        service = self._service
        now = service.clock.now()

        def write(connection: Any) -> None:  # noqa: ANN401
            store.note(
                connection, task.seq, task.state, "searched", cause, now, service.configuration
            )

        await service.patiently(partial(service.write_of, task, write))
        log.info("task.searched", task_id=task.task_id, cause=cause)

    async def take_status(self, task: Task, outcome: Outcome, wire: store.Bytes) -> bool:
        """Reopen a success that the bank's status says came back; say whether that was done."""
        if not self._lane.is_elsewhere(task):
            await self._compare(task, outcome, wire)
        if task.state is not State.SUCCEEDED and not _may_return_more(task):
            return False
        match outcome:
            case Accepted(result=BatchStatus(rows=rows)):
                back = {at: row for at, row in rows.items() if row.state is PaymentState.RETURNED}
                if not back:
                    return False
                cause = "the bank's status query says: rows returned (退票)"
                return await self._reopen_rows(task.task_id, back, cause, wire)
            case Accepted(result=PaymentStatus(state=PaymentState.RETURNED) as status):
                cause = "the bank's status query says: returned (退票)"
                watched = Watched(task.seq, task.task_id, payment_of(task))
                return await self._reopen(
                    watched, cause, status.returned_on, status.code, status.message, wire
                )
            case _:
                return False

    async def _compare(self, task: Task, outcome: Outcome, wire: store.Bytes) -> None:
        """Tell of a status that says otherwise than the end its payment was brought to."""
        # It may have been sent, or sent again, while the bank was asked.
        known = self._service.open_task(task.task_id) or task
        is_open = any(
            one.state is State.SENDING or one.state in OPEN_AT_BANK for one in (task, known)
        )
        if is_open or not isinstance(outcome, Accepted):
            return
        about = ""
        if isinstance(outcome.result, BatchStatus):
            told = await self._service.result_told(task)
            rows = evidence.contradicted_rows(task.state, told, outcome.result)
            if not rows:
                return
            about = f" of row {', '.join(map(str, rows))}"
        elif not evidence.contradicts(task.state, outcome):
            return
        said = evidence.told(outcome)
        cause = f"it is {task.state.value}, and the bank's status query says{about}: {said}"
        if self._contradicted.get(task.task_id) == cause:
            return
        self._contradicted[task.task_id] = cause
        log.error("task.contradicted", task_id=task.task_id, cause=cause)
        self._service.alarms.raise_alarm(AlarmKind.EVIDENCE_CONFLICT, task.task_id, cause)
        at = self._service.clock.now()
        keep = partial(store.add_message, seq=task.seq, bank=task.bank, wire=wire, at=at)

        def write(connection: Any) -> None:  # noqa: ANN401
            # What is archived stays as it is.
            if store.archive_of(connection, task.task_id) is None:
                keep(connection)

        await self._service.patiently(partial(self._service.write_at, task.bank, write))

    async def _reopen(
        self,
        watched: Watched,
        cause: str,
        returned_on: BusinessDate | None,
        code: str,
        message: str,
        wire: store.Bytes,
    ) -> bool:
        """Make a success ``returned`` and owe its client that; say whether it was one."""
        service = self._service
        if watched.row is not None:
            status = PaymentStatus(
                PaymentState.RETURNED, code, message, watched.payment.bank_ref,
                returned_on=returned_on,
            )  # fmt: skip
            return await self._reopen_rows(watched.task_id, {watched.row: status}, cause, wire)
        async with self._reopening:
            task = await service.store.read(partial(store.one, task_id=watched.task_id))
            assert task is not None
            if task.state is not State.SUCCEEDED:
                return False
            payment = watched.payment
            receipt = PaymentReceipt(
                payment.client_ref, payment.amount, payment.bank_ref, returned_on=returned_on
            )
            told = await service.store.read(partial(store.result_of, task_id=task.task_id))
            columns = {
                "result": orjson.dumps(told | result_value(receipt)),
                "bank_code": code,
                "bank_message": message or cause,
            }
            return await self._change_back(task, cause, columns, wire)

    async def _reopen_rows(
        self,
        task_id: TaskId,
        back: Mapping[int, PaymentStatus],
        cause: str,
        wire: store.Bytes,
    ) -> bool:
        """Note that rows of a batch came back, and owe its client that; each row once."""
        service = self._service
        async with self._reopening:
            task = await service.store.read(partial(store.one, task_id=task_id))
            assert task is not None
            if task.body is None:
                self._tell_archived(task, cause)
                return False
            if task.state is not State.SUCCEEDED and not _may_return_more(task):
                return False
            told = await service.store.read(partial(store.result_of, task_id=task.task_id))
            result, rows = with_returned(task, told, back)
            if not rows:
                return False
            cause = f"{cause}: row {', '.join(map(str, rows))}"
            first = back[rows[0]]
            columns = {
                "result": orjson.dumps(result),
                "bank_code": first.code,
                "bank_message": first.message or cause,
            }
            return await self._change_back(task, cause, columns, wire)

    async def _change_back(
        self, task: Task, cause: str, columns: dict[str, Any], wire: store.Bytes
    ) -> bool:
        """Write that a success came back, unless it is archived; say whether that was done."""
        try:
            await self._service.change(
                task,
                (Event.PROVED_RETURNED,),
                cause,
                columns=columns,
                wire=wire,
                only_if=lambda c: store.archive_of(c, task.task_id) is None,
            )
        except OvertakenError:
            self._tell_archived(task, cause)
            return False
        return True

    def _tell_archived(self, task: Task, cause: str) -> None:
        """Tell of a success that came back after it was archived: what is archived stays.

        Its row here is only what it is known by.
        """
        told = f"it is archived as {task.state.value}, and {cause}"
        log.error("task.contradicted", task_id=task.task_id, cause=told)
        self._service.alarms.raise_alarm(AlarmKind.EVIDENCE_CONFLICT, task.task_id, told)

    def _alarm(self, subject: str, cause: str) -> None:
        self._service.alarms.raise_alarm(AlarmKind.EVIDENCE_AMBIGUOUS, subject, cause)


def _may_return_more(task: Task) -> bool:
    """Say whether more of a task may come back, though some did: rows of a batch."""
    return task.state is State.RETURNED and isinstance(task.body, BatchOrder)
