"""The task service: admits, hands bodies back by claim check, delivers results, answers questions.

Everything a client is told is on disk first. The lanes do the work at the banks; this owns the
tasks that are open, and the boxes of what the clients must still be asked and told.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final, Self

import orjson
import structlog
import trio

from fep.adapters.api import Reply
from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.account import Account
from fep.domain.clock import Clock, to_text
from fep.domain.errors import BodyError, FepError
from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.ids import Sequence as Numbers
from fep.domain.money import ZERO, Cny
from fep.domain.order import (
    BalanceQuery,
    Body,
    Kind,
    PaymentOrder,
    StatementQuery,
    parse_body,
)
from fep.links.mux import UnmatchedReply
from fep.store.database import Store, StoreBusyError, StoreFullError
from fep.tasks import store
from fep.tasks.config import TasksConfig
from fep.tasks.lane import Lane, LaneParts
from fep.tasks.mailbox import ClientBox, Mailbox
from fep.tasks.state import BEFORE_SENDING, FINAL, OPEN_AT_BANK, Event, State, step
from fep.tasks.task import (
    Admitted,
    Delivery,
    Message,
    Refused,
    Submission,
    Task,
    body_bytes,
    digest,
)

log = structlog.get_logger()

Answer = Admitted | Refused
TIMER_SECONDS: Final = 0.5
PAGE_TASKS_MAX: Final = 500
NEARLY_FULL_SHARE, RELIEVED_SHARE = 0.9, 0.8
EVIDENCE_CHARS_MIN: Final = 10
REASON_CHARS_MAX: Final = 500
"""Of why a body was refused: it may echo what the client wrote, and is told in a result's line."""
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
        self._retired: dict[BankName, Lane] = {}
        """Of banks taken out of the configuration; a bank that comes back goes on where it was."""
        self.present: set[ClientName] = set()
        self._open: dict[TaskId, Task] = {}
        self._boxes: dict[ClientName, ClientBox] = {}
        self._paid: dict[AccountNumber, Cny] = {}
        self._seq = 0
        self._ages: list[tuple[float, int, Task]] = []
        self._accepting = True

    # -- start and stop -----------------------------------------------------------------------

    def add_lane(self, parts: LaneParts) -> Lane:
        """Make the lane of a bank; the daemon starts its ``run`` under its supervisor."""
        lane = Lane(parts, self)
        earlier = self._retired.pop(parts.bank, None) or self.lanes.get(parts.bank)
        if earlier is not None:
            lane.take_over(earlier)
        self.lanes[parts.bank] = lane
        self.alarms.clear(AlarmKind.LANE_FAILED, parts.bank)
        return lane

    def remove_lane(self, bank: BankName) -> None:
        """Take nothing more for a bank; its open tasks wait for its return, with an alarm."""
        self._retired[bank] = self.lanes.pop(bank)
        self._tell_orphans()

    async def keep_drained(self) -> None:
        """Hold the lanes that an operator stopped: that outlives the lane, and the process."""
        drained = await self.store.read(store.drained)
        for bank in drained & self.lanes.keys():
            self.lanes[bank].drain()

    async def load(self) -> None:
        """Read what was open when the last process ended."""
        tasks, self._seq, owed = await self.store.read(
            lambda c: (store.open_tasks(c), store.last_seq(c), store.owed(c))
        )
        for task in tasks:
            self._keep(task)
        for client, task_id in owed:
            self._box(client).results[task_id] = None
        await self.keep_drained()
        self._tell_orphans()
        log.info("tasks.loaded", open=len(tasks), owed=len(owed))

    def _lane(self, bank: BankName) -> Lane:
        """Return a bank's lane, also of one taken out since its task was taken."""
        return self.lanes.get(bank) or self._retired[bank]

    def _tell_orphans(self) -> None:
        orphans = {task.bank for task in self._open.values()} - self.lanes.keys()
        for bank in sorted(orphans):
            log.error("tasks.orphaned", bank=bank)
            self.alarms.raise_alarm(
                AlarmKind.LANE_FAILED, bank, "open tasks of a bank that is not configured any more"
            )

    def stop_accepting(self) -> None:
        """Refuse new tasks from now on (shutting down)."""
        self._accepting = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Let offers lapse and old tasks expire, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(TIMER_SECONDS)
            await self._lapse()
            await self._expire()

    async def run_unmatched(
        self,
        replies: trio.MemoryReceiveChannel[UnmatchedReply],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep every answer that matched nothing, and use it where it proves something."""
        task_status.started()
        async for unmatched in replies:
            await self._take_unmatched(unmatched.bank, unmatched.reply)

    # -- admission ----------------------------------------------------------------------------

    def submit(
        self,
        client: ClientName,
        submissions: Sequence[Submission],
        done: Callable[[list[Answer]], None],
    ) -> None:
        """Admit what arrived together; ``done`` gets one answer each, in order, once on disk.

        An id that is stored is answered as known, whatever holds for new ones: a queue that is full
        by now must not look like a refusal of the task that is in it.
        """
        if not self._accepting:
            msg = "the daemon is stopping; submit again after restart"
            done([Refused("SHUTTING_DOWN", msg) for _ in submissions])
            return
        refusals = [self._unacceptable(one) for one in submissions]
        now = self.clock.now()
        fresh: list[store.NewTask] = []

        def admit(connection: Any) -> list[Answer]:  # noqa: ANN401
            fresh.clear()
            stored = store.known(connection, [one.task_id for one in submissions])
            found: list[Answer] = []
            for one, refused in zip(submissions, refusals, strict=True):
                if (earlier := stored.get(one.task_id)) is not None:
                    found.append(_repeated(client, one, earlier))
                    continue
                if refused is not None:
                    found.append(refused)
                    continue
                new = self._new(client, one, now)
                fresh.append(new)
                stored[one.task_id] = store.Known(
                    client,
                    one.bank,
                    one.kind,
                    State.QUEUED,
                    None if new.body is None else digest(new.body),
                )
                found.append(Admitted(one.task_id, State.QUEUED, known=False))
            store.insert(connection, fresh, self.configuration)
            return found

        def committed(found: list[Answer] | None, error: Exception | None) -> None:
            if error is not None:
                found = [_not_stored(error) for _ in submissions]
            else:
                for new in fresh:
                    self._keep(new.task)
                    self._lane(new.task.bank).add(new.task)
                self._watch_fill()
            assert found is not None
            done(found)

        try:
            self.store.submit(admit, committed)
        except FepError as error:
            committed(None, error)

    def _unacceptable(self, one: Submission) -> Refused | None:
        lane = self.lanes.get(one.bank)
        if lane is None:
            banks = ", ".join(sorted(self.lanes))
            return Refused("UNKNOWN_BANK", f"no bank {one.bank!r}; there are: {banks}")
        if one.kind not in lane.parts.capabilities:
            kinds = ", ".join(sorted(lane.parts.capabilities))
            return Refused("UNSUPPORTED_KIND", f"bank {one.bank} can't {one.kind}; it has: {kinds}")
        if len(self._open) >= self.config.queue_max:
            return Refused("QUEUE_FULL", f"{self.config.queue_max} tasks are open; try again later")
        return None

    def _new(self, client: ClientName, one: Submission, now: Any) -> store.NewTask:  # noqa: ANN401
        self._seq += 1
        age = self.config.age_max_s if one.expires_s is None else one.expires_s
        task = Task(
            seq=self._seq,
            task_id=one.task_id,
            client=client,
            bank=one.bank,
            kind=one.kind,
            priority=one.priority,
            state=State.QUEUED,
            submitted_at=now,
            expires_at=now + timedelta(seconds=age),
            body=one.body,
        )
        return store.NewTask(task, None if one.body is None else body_bytes(one.kind, one.body))

    def parse(self, bank: BankName, kind: Kind, params: object) -> Body:
        """Return a body that this enterprise may send to this bank.

        Raises:
            BodyError: not valid, or an account that is not approved for direct connection.
        """
        body = parse_body(kind, params)
        own = ""
        match body:
            case PaymentOrder():
                own = body.payer
            case BalanceQuery() | StatementQuery():
                own = body.account
            case _:
                return body
        account = self.accounts.get(AccountNumber(own))
        if account is None or account.bank != bank:
            msg = f"account {own} is not an approved account at bank {bank}"
            raise BodyError(msg)
        return body

    # -- hand-back ----------------------------------------------------------------------------

    def attach(self, client: ClientName) -> Mailbox:
        """Open a connection of a client for its messages; close the mailbox when it ends."""
        mailbox = Mailbox(self._box(client))
        self.present.add(client)
        self._wake_offers()
        return mailbox

    def detach(self, mailbox: Mailbox) -> None:
        """End a connection; what it did not answer goes to the client's next one."""
        mailbox.close()
        if not mailbox.box.present:
            self.present.discard(mailbox.box.client)

    async def take(self, mailbox: Mailbox) -> list[Message]:
        """Wait for what this connection must ask and tell, and return it, never empty."""
        while True:
            messages, unread = mailbox.draw()
            if unread:
                found: list[Delivery] = await self.store.read(partial(store.deliveries, ids=unread))
                messages.extend(mailbox.read(found))
            if messages:
                return messages
            await mailbox.wait()

    async def offer(self, lane: Lane, tasks: list[Task]) -> None:
        """Mark tasks as offered and ask their clients for the bodies."""
        now = self.clock.now()
        changes = [
            store.Change(
                task.seq,
                task.state,
                State.OFFERED,
                (Event.OFFERED,),
                f"offer {task.offers + 1}: link and key are ready",
                now,
                {"offers": task.offers + 1},
            )
            for task in tasks
        ]

        def known() -> None:
            lapses = trio.current_time() + self.config.fetch_timeout_s
            for task in tasks:
                task.state = State.OFFERED
                task.offers += 1
                lane.offered[task] = lapses
                self._box(task.client).ask(task.task_id, task.offers)
                log.debug("task.offered", task_id=task.task_id, attempt=task.offers)

        with _Claim(tasks) as claim:
            await self.patiently(partial(self._commit, changes, claim, known))

    async def fetched(self, client: ClientName, answers: Sequence[tuple[TaskId, Any]]) -> None:
        """Take bodies a client gave; each answer is the value it replied with to ``task.fetch``.

        A body that is not valid fails its task; a task that moved on meanwhile is left alone. Of
        two answers for one task (it was asked for twice) the first counts.
        """
        changes: list[store.Change] = []
        taken: dict[Task, Body] = {}
        refused: dict[Task, str] = {}
        now = self.clock.now()
        for task_id, answer in answers:
            self._box(client).forget_fetch(task_id)
            task = self._open.get(task_id)
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
                body = self._parse_answer(task, answer)
            except BodyError as error:
                refused[task] = str(error)[:REASON_CHARS_MAX]
                continue
            taken[task] = body
            changes.append(
                store.Change(
                    task.seq,
                    task.state,
                    State.FETCHED,
                    (Event.BODY_TAKEN,),
                    f"task.fetch answered by {client}",
                    now,
                    store.encoded(task.kind, body),
                )
            )

        def known() -> None:
            for task, body in taken.items():
                task.body, task.state = body, State.FETCHED
                lane = self._lane(task.bank)
                lane.offered.pop(task, None)
                lane.add(task)
                lane.wake_offers()

        if taken:
            try:
                with _Claim(list(taken)) as claim:
                    await self._commit(changes, claim, known)
            except (StoreFullError, StoreBusyError) as error:
                # They are offered still, and asked for again when the offer lapses.
                log.warning("tasks.bodies_not_stored", reason=str(error), count=len(taken))
        for task, reason in refused.items():
            self._lane(task.bank).offered.pop(task, None)
            await self.change(
                task,
                (Event.BODY_REFUSED,),
                reason,
                columns={"bank_code": "BAD_BODY", "bank_message": reason},
            )

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
        if task is not None and task.client == client:
            log.warning("task.fetch_refused", task_id=task_id, reason=reason)

    def acknowledge(self, client: ClientName, task_ids: Sequence[TaskId]) -> None:
        """Note that the client has these results; lost with a crash, they are told again."""
        got = self._box(client).acknowledged(task_ids)
        if not got:
            return
        pairs = [(one.task_id, one.state.value) for one in got]

        def stored(_result: Any, error: Exception | None) -> None:  # noqa: ANN401
            if error is not None:
                log.warning("tasks.acknowledgement_not_stored", reason=str(error), count=len(pairs))

        try:
            self.store.submit(lambda c: store.acknowledge(c, pairs), stored)
        except FepError as error:
            stored(None, error)

    # -- acts of clients and operators --------------------------------------------------------

    async def cancel(self, client: ClientName | None, task_id: TaskId, who: str) -> State:
        """Cancel a task of which no byte has left; ``client`` None may cancel anybody's.

        Raises:
            TaskRefusedError: NOT_FOUND or BAD_STATE; nothing was changed.
        """
        task = self._open.get(task_id)
        if task is None or (client is not None and task.client != client):
            found = await self.get(client, task_id)
            msg = f"the task is {found['state']}: it can't be cancelled any more"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if task.claimed or task.state not in BEFORE_SENDING:
            msg = (
                f"the task is {task.state.value} and may have left: it can't be cancelled any more"
            )
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        await self.change(
            task,
            (Event.CANCELLED,),
            f"cancelled by {who}",
            columns={"delivery": store.ACKNOWLEDGED} if client is not None else None,
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
        return found

    async def page(
        self,
        client: ClientName | None,
        *,
        state: State | None,
        bank: str | None,
        limit: int,
        before: int | None,
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Return tasks newest first, and where the next page begins (None at the end)."""
        result: tuple[list[dict[str, Any]], int | None] = await self.store.read(
            lambda c: store.page(
                c,
                client=client,
                state=None if state is None else state.value,
                bank=bank,
                limit=min(limit, PAGE_TASKS_MAX),
                before=before,
            )
        )
        return result

    async def why(self, client: ClientName | None, task_id: TaskId) -> dict[str, Any]:
        """Return a task and its causal chain.

        Raises:
            TaskRefusedError: NOT_FOUND.
        """
        task = await self.get(client, task_id)
        chain = await self.store.read(lambda c: store.why(c, task_id))
        omitted = len(chain) - CHAIN_FIRST_MAX - CHAIN_LAST_MAX
        if omitted <= 0:
            return {"task": task, "events": chain}
        chain[CHAIN_FIRST_MAX:-CHAIN_LAST_MAX] = []
        return {"task": task, "events": chain, "omitted": omitted}

    async def resolve(self, who: str, task_id: TaskId, outcome: State, evidence: str) -> None:
        """Propose the end of an open payment; another person must confirm it.

        Raises:
            TaskRefusedError: NOT_FOUND, BAD_STATE.
        """
        task = await self._open_at_bank(task_id)
        if len(evidence.strip()) < EVIDENCE_CHARS_MIN:
            msg = f"evidence must say where it was seen, in {EVIDENCE_CHARS_MIN} characters or more"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        now = self.clock.now()
        proposal = store.Proposal(outcome, evidence, who)

        def propose(connection: Any) -> None:  # noqa: ANN401
            store.propose(connection, task.seq, proposal, now)
            cause = f"{who} proposes {outcome.value}: {evidence}"
            store.note(connection, task.seq, task.state, "proposed", cause, now, self.configuration)

        await self.store.write(propose)
        log.warning("task.resolution_proposed", task_id=task_id, who=who, outcome=outcome.value)

    async def confirm(self, who: str, task_id: TaskId) -> State:
        """Close an open payment as another person proposed.

        Raises:
            TaskRefusedError: NOT_FOUND, BAD_STATE (nothing proposed), NOT_PERMITTED (same person).
        """
        task = await self._open_at_bank(task_id)
        proposal = await self.store.read(lambda c: store.proposal(c, task.seq))
        if proposal is None:
            msg = "nothing is proposed for this task; call task.resolve first"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if proposal.by == who:
            msg = "a second person must confirm; you made the proposal"
            raise TaskRefusedError(Refused("NOT_PERMITTED", msg))
        if task.claimed or task.state not in OPEN_AT_BANK:
            msg = "the bank is being asked about it at this moment; try again"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        event = Event.PROVED_DONE if proposal.outcome is State.SUCCEEDED else Event.PROVED_REFUSED
        cause = f"two persons: {proposal.by} proposed, {who} confirmed: {proposal.evidence}"
        await self.change(
            task, (event,), cause, columns={"bank_code": "RESOLVED", "bank_message": cause}
        )
        return task.state

    async def _open_at_bank(self, task_id: TaskId) -> Task:
        task = self._open.get(task_id)
        if task is None:
            found = await self.get(None, task_id)
            msg = f"the task is {found['state']}: there is nothing to resolve"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        if task.state not in OPEN_AT_BANK:
            msg = f"the task is {task.state.value}: only accepted and unknown ones are resolved"
            raise TaskRefusedError(Refused("BAD_STATE", msg))
        return task

    async def set_drained(self, bank: BankName, *, value: bool) -> None:
        """Stop or start sending to a bank, also over restarts.

        Raises:
            TaskRefusedError: UNKNOWN_BANK.
        """
        lane = self.lanes.get(bank)
        if lane is None:
            raise TaskRefusedError(Refused("UNKNOWN_BANK", f"no bank {bank!r}"))
        await self.store.write(lambda c: store.set_drained(c, bank, value=value))
        lane.drain() if value else lane.resume()
        log.warning("lane.drained" if value else "lane.resumed", bank=bank)

    def under_way(self, but: ClientName | None = None) -> dict[AccountNumber, Cny]:
        """Return by payer what our payments that are not at their end will or may take.

        Args:
            but: leave this client's out.
        """
        sums: dict[AccountNumber, Cny] = {}
        for task in self._open.values():
            if isinstance(task.body, PaymentOrder) and task.client != but:
                payer = task.body.payer
                sums[payer] = sums.get(payer, ZERO) + task.body.amount
        return sums

    def paid(self, payer: AccountNumber) -> Cny:
        """Return what our payments took from an account since this process began; it only grows.

        What it grew by between a question for the balance and its answer may be in that balance.
        """
        return self._paid.get(payer, ZERO)

    def status(self) -> dict[str, Any]:
        """Return the queue's figures by bank."""
        banks: dict[BankName, dict[str, int]] = {bank: {} for bank in self.lanes}
        for task in self._open.values():
            states = banks.setdefault(task.bank, {})
            states[task.state.value] = states.get(task.state.value, 0) + 1
        return {
            "open": len(self._open),
            "queue_max": self.config.queue_max,
            "banks": {
                bank: {
                    "open": states,
                    "drained": bank in self.lanes and self.lanes[bank].drained,
                    "in_flight": self.lanes[bank].in_flight if bank in self.lanes else 0,
                }
                for bank, states in banks.items()
            },
        }

    # -- inside -------------------------------------------------------------------------------

    def tasks_of(self, bank: BankName) -> list[Task]:
        """Return the open tasks of a bank, in the order of admission."""
        return sorted(
            (task for task in self._open.values() if task.bank == bank), key=lambda task: task.seq
        )

    async def change(
        self,
        task: Task,
        events: tuple[Event, ...],
        cause: str,
        *,
        columns: dict[str, Any] | None = None,
        wire: store.Bytes | None = None,
    ) -> None:
        """Write a change of a task, wait for the disk, then know it and tell its client."""
        before = after = task.state
        for event in events:
            after = step(after, event)
        values = dict(columns or {})
        if after in FINAL:
            values.setdefault("delivery", store.OWED)
        now = self.clock.now()
        change = store.Change(task.seq, before, after, events, cause, now, values, wire=wire)

        def known() -> None:
            task.state = after
            if after in FINAL:
                self._end(task, values, now, cause)

        with _Claim([task]) as claim:
            await self.patiently(partial(self._commit, [change], claim, known))

    async def patiently(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write; while the disk is full wait, for a task in flight can't be refused."""
        while True:
            try:
                await write()
            except (StoreFullError, StoreBusyError):
                self.alarms.raise_alarm(
                    AlarmKind.STORE_FULL, "store", "a task's change waits for room on the disk"
                )
                await trio.sleep(TIMER_SECONDS)
            else:
                self.alarms.clear(AlarmKind.STORE_FULL, "store")
                return

    async def _commit(
        self, changes: Sequence[store.Change], claim: _Claim, known: Callable[[], None]
    ) -> None:
        """Write changes, let go of their tasks and know them in the moment of the commit.

        Not when the caller goes on: it may be cancelled while the disk works, as when its client
        hangs up, and the tasks would be known otherwise than they are stored.
        """
        finished = trio.Event()
        errors: list[Exception] = []

        def done(_result: Any, error: Exception | None) -> None:  # noqa: ANN401
            if error is None:
                claim.committed()
                known()
            else:
                claim.failed()
                errors.append(error)
            finished.set()

        self.store.submit(lambda c: store.apply(c, changes, self.configuration), done)
        claim.committing = True
        await finished.wait()
        if errors:
            raise errors[0]

    def _end(self, task: Task, values: Mapping[str, Any], now: Any, cause: str) -> None:  # noqa: ANN401
        self._open.pop(task.task_id, None)
        if isinstance(task.body, PaymentOrder) and task.state is State.SUCCEEDED:
            self._paid[task.body.payer] = self.paid(task.body.payer) + task.body.amount
        self._box(task.client).forget_fetch(task.task_id)
        self.alarms.clear(AlarmKind.UNKNOWN_OVERDUE, task.task_id)
        self._watch_fill()
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
            seconds=round((now - task.submitted_at).total_seconds(), 3),
        )
        if values.get("delivery") == store.OWED:
            result = values.get("result")
            self._box(task.client).tell(
                Delivery(
                    task.task_id,
                    task.state,
                    None if result is None else orjson.loads(result),
                    values.get("bank_code", ""),
                    values.get("bank_message", ""),
                    to_text(now),
                )
            )

    def _keep(self, task: Task) -> None:
        self._open[task.task_id] = task
        heapq.heappush(self._ages, (task.expires_at.timestamp(), task.seq, task))

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
        for lane in list(self.lanes.values()):
            late = [
                task
                for task, lapses in lane.offered.items()
                if not task.claimed and (lapses <= now or task.client not in self.present)
            ]
            for task in late:
                lane.offered.pop(task, None)
                if task.state is not State.OFFERED:
                    continue
                self._box(task.client).forget_fetch(task.task_id)
                await self.change(task, (Event.OFFER_LAPSED,), "not fetched in time")
                log.warning("task.offer_lapsed", task_id=task.task_id, attempt=task.offers)
                lane.add(task)

    async def _expire(self) -> None:
        """End what is too old and was never fetched: nothing was sent (DEC-a)."""
        now = self.clock.now()
        expired = []
        while self._ages and self._ages[0][0] <= now.timestamp():
            task = heapq.heappop(self._ages)[2]
            if task.state not in (State.QUEUED, State.OFFERED):
                continue
            if task.claimed:
                again = now.timestamp() + TIMER_SECONDS
                heapq.heappush(self._ages, (again, task.seq, task))
                break
            expired.append(task)
        for task in expired:
            if lane := self.lanes.get(task.bank):
                lane.offered.pop(task, None)
            await self.change(
                task,
                (Event.EXPIRED,),
                "too old, and never fetched: nothing was sent",
                columns={"bank_code": "EXPIRED", "bank_message": "expired, nothing was sent"},
            )
        if expired:
            self.alarms.raise_alarm(
                AlarmKind.TASK_EXPIRED,
                expired[0].client,
                f"{len(expired)} tasks expired unsent; the oldest is {expired[0].task_id}",
            )

    async def _take_unmatched(self, bank: BankName, reply: Reply) -> None:
        lane = self.lanes.get(bank)
        task = None if lane is None else await lane.take_late(reply)
        wire = store.Bytes(sent=False, correlation=reply.correlation, data=reply.raw)
        now = self.clock.now()
        seq = None if task is None else task.seq
        await self.store.write(lambda c: store.add_message(c, seq, bank, wire, now))
        log.warning(
            "reply.unmatched",
            bank=bank,
            trade=reply.trade,
            code=reply.code,
            digest=digest(reply.raw),
            task_id="" if task is None else task.task_id,
        )
        if task is None:
            self.alarms.raise_alarm(
                AlarmKind.UNMATCHED_REPLY, bank, "an answer matched no request; its bytes are kept"
            )


class _Claim:
    """Holds tasks against all others' changes: for a block, and beyond it until their commit."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._held = [(task, task.claimed) for task in tasks]
        self._left = False
        self.committing = False

    def __enter__(self) -> Self:
        for task, _ in self._held:
            task.claimed = True
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        if not self.committing:
            self.committed()

    def committed(self) -> None:
        """Let go, once: what was held by somebody else before stays so."""
        self.committing = False
        held, self._held = self._held, []
        for task, before in held:
            # A lane that settled what it held has let go of it already.
            task.claimed = task.claimed and before

    def failed(self) -> None:
        """Hold on for another try, unless nobody is there to make it."""
        self.committing = False
        if self._left:
            self.committed()


def _repeated(client: ClientName, one: Submission, earlier: store.Known) -> Answer:
    """Return the answer to an id that is stored already: the same task, or a conflict."""
    if earlier.client != client:
        return Refused("TASK_CONFLICT", "this task_id belongs to another client; choose another")
    if (earlier.bank, earlier.kind) != (one.bank, one.kind):
        msg = f"this task_id was submitted as {earlier.kind.value} for {earlier.bank} before"
        return Refused("TASK_CONFLICT", msg)
    if (
        one.body is not None
        and earlier.body_digest is not None
        and digest(body_bytes(one.kind, one.body)) != earlier.body_digest
    ):
        return Refused("TASK_CONFLICT", "another body is recorded for this task_id; take a new id")
    return Admitted(one.task_id, earlier.state, known=True)


def _not_stored(error: Exception) -> Refused:
    if isinstance(error, StoreFullError):
        return Refused("STORE_FULL", str(error))
    if isinstance(error, StoreBusyError):
        return Refused("QUEUE_FULL", str(error))
    if isinstance(error, FepError):
        return Refused("SHUTTING_DOWN", str(error))
    raise error
