"""The pooling service (资金归集): runs rounds as a client of the task queue like any other.

It hands over two task ids an account: the first asks the balance, the second moves the excess. It
gives the bodies only when the queue asks for them by id (claim check), from what its own store
planned, and acknowledges a result only when its consequence is on disk. A round therefore
continues after a restart at any moment. It waits for a payment as long as that is open, and for
nothing else: what a key that is out, or a bank that is drained, keeps for long is left to the next.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import attrs
import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.account import Account, mask
from fep.domain.clock import Clock, from_text, to_text
from fep.domain.errors import FepError
from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.money import ZERO, Cny
from fep.domain.order import Kind, PaymentOrder
from fep.machines.service import GuardedStore, PlaceLostError
from fep.pooling import plan, store
from fep.pooling.config import MemberConfig, PoolConfig
from fep.pooling.plan import ENDED, TO_SWEEP, Item, ItemState, Round, RoundState
from fep.pooling.rules import Reason, sweep
from fep.pooling.schedule import last_due, next_due, parse_schedule
from fep.store.database import StoreBusyError, StoreFullError
from fep.tasks.lane import TOO_LATE
from fep.tasks.service import TaskRefusedError, TaskService
from fep.tasks.state import State
from fep.tasks.task import Admitted, Delivery, Fetch, Refused, Submission, Task

log = structlog.get_logger()

CLIENT: Final = ClientName("fep/pooling")
"""No session can be opened under this name: a configured one has no slash (``parse_name``)."""
TOLD_TOO_OLD: Final = "pooling: its balance is too old"
TOLD_PAID: Final = "pooling: its account has paid meanwhile"
REFUSED: Final[dict[str, Any]] = {"refused": "the sweep is not to be sent"}
"""An answer that is not {kind, params} fails the task: nothing is sent."""
SWEEP_AGE_SECONDS_MAX: Final = 3600.0
"""A sweep that waits for longer, for a key or a link, is not sent: the balance may be another by
then, and the next round asks anew."""
SWEEP_EXPIRES_SECONDS: Final = SWEEP_AGE_SECONDS_MAX + 60.0
"""Then the queue ends it unsent: so long its bank is drained, and nobody asked for its body."""
BALANCE_AGE_SECONDS_MAX: Final = 300.0
"""A balance that the bank told longer ago is not judged: this process was down meanwhile."""
BALANCE_SECONDS: Final = 600.0
"""A balance that has not come by then leaves its account out of the round: the others' round ends,
and the pool may have its next one."""
BALANCE_SECONDS_EACH: Final = 5.0
"""So much more for each account of the round, or twice its bank's least time between queries: the
last ones of a big pool must not be left out each time."""
PLAN_SECONDS_MAX: Final = 120.0
MISSED_SECONDS_MAX: Final = 900.0
"""A round that fell into a stop of the daemon is caught up when it is at most this late."""
EARLY_SECONDS_MAX: Final = 7200.0
"""A round that began this long before its time, by a clock that was ahead, stands for it all the
same; one that began earlier does not, and the round of that time runs too."""
NEVER: Final = dt.datetime.max.replace(tzinfo=dt.UTC)
KEYS_SECONDS_MAX: Final = 15.0
"""At the start the schedule waits so long for the keys of all banks to be read."""
SUBMIT_RETRY_SECONDS: Final = 2.0
PASSING: Final = frozenset({"QUEUE_FULL", "STORE_FULL", "SHUTTING_DOWN"})
"""Refusals that end by themselves; any other says that the task can't be."""
SCHEDULE_LOOK_SECONDS: Final = 20.0
POOL_ALARMS: Final = frozenset({AlarmKind.POOL_BLOCKED, AlarmKind.POOL_STALLED})
"""Their subject is a pool."""


class PoolRefusedError(FepError):
    """A round was not started or not found; nothing was changed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@attrs.frozen
class _Judged:
    """A balance that a sweep was planned by."""

    at: dt.datetime
    taken: Cny
    """What our payments had taken from the account by then, or were to."""
    since: float = attrs.field(factory=trio.current_time)

    @property
    def lived(self) -> float:
        """Seconds that have really passed since."""
        return trio.current_time() - self.since


class PoolService:
    """Owns the running rounds of all pools.

    Start :meth:`run` after the task service is loaded; it ends only when cancelled.
    """

    def __init__(
        self,
        pools: Sequence[PoolConfig],
        accounts: Mapping[AccountNumber, Account],
        tasks: TaskService,
        alarms: Alarms,
        clock: Clock,
        database: GuardedStore | None = None,
    ) -> None:
        self._tasks = tasks
        tasks.box(CLIENT).vet = self._vet
        self._store = tasks.store if database is None else database
        self._alarms = alarms
        self._clock = clock
        self._rounds: dict[str, Round] = {}
        self._by_task: dict[TaskId, tuple[Round, Item]] = {}
        self._over: dict[str, trio.Event] = {}
        self._asked_until: dict[str, float] = {}
        """By round: how long (trio's time) its balances are waited for."""
        self._unstored: set[str] = set()
        """Rounds whose insertion the disk has not answered yet."""
        self._due: list[tuple[Round, list[Item]]] = []
        """What the pusher looks at next; the ids of these items may be due."""
        self._due_added = trio.Event()
        self._spent: dict[TaskId, tuple[Cny, Cny]] = {}
        """By balance task, of the messages in hand: what the store says was spent since it was
        asked for, and what this process knew as taken just before that was read."""
        self._paid_before: dict[TaskId, Cny] = {}
        """By balance task: what our payments had taken from the account when it was asked for."""
        self._judged: dict[TaskId, _Judged] = {}
        """By sweep, of those whose balance this process judged."""
        self._refused: dict[TaskId, str] = {}
        """Why a sweep was given no body, until its end is told."""
        self.configure(pools, accounts)

    def configure(
        self, pools: Sequence[PoolConfig], accounts: Mapping[AccountNumber, Account]
    ) -> None:
        """Take other pools into force; rounds under way keep the amounts they planned."""
        self._pools = {pool.name: pool for pool in pools}
        self._accounts = dict(accounts)
        self._clear_alarms()

    # -- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Continue what runs, answer the queue, start rounds when they are due."""
        await self._load()
        mailbox = self._tasks.attach(CLIENT)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._push)
                nursery.start_soon(self._leave_out)
                nursery.start_soon(self._keep_schedule)
                task_status.started()
                while True:
                    await self._handle(await self._tasks.take(mailbox))
        finally:
            self._tasks.detach(mailbox)

    async def _load(self) -> None:
        """Take the running rounds from the disk: after a defect, memory may be ahead of it."""
        # A round whose insertion is being committed is known by that alone, and stays.
        known = self._rounds.keys() - self._unstored
        self._due.clear()
        running = {one.round_id: one for one in await self._store.read(store.running)}
        for round_id in known - running.keys():
            self._drop(self._rounds[round_id])
        for round_id, one in running.items():
            if round_id in self._rounds and round_id not in known:
                continue
            self._keep(one)
            self._push_later(one, one.items)
            log.info("pool.round_continued", round_id=round_id, pool=one.pool)
        self._clear_alarms()
        # The process may have ended between the end of a round and that of its alarm.
        for name in self._pools:
            if self._running(name) is None:
                self._alarms.clear(AlarmKind.POOL_STALLED, name)

    def _clear_alarms(self) -> None:
        """End the alarms of pools that are not configured any more."""
        for alarm in self._alarms.active():
            if alarm.kind in POOL_ALARMS and alarm.subject not in self._pools:
                self._alarms.clear(alarm.kind, alarm.subject)

    async def _keep_schedule(self) -> None:
        """Start each pool's rounds at its times; a key of the planned time makes each run once."""
        missed = dt.timedelta(seconds=MISSED_SECONDS_MAX)
        looked_until, latest = self._clock.now() - missed, NEVER
        # A round caught up at the start must not find the keys still being read, and go without.
        with trio.move_on_after(KEYS_SECONDS_MAX):
            for bank in {
                bank for pool in self._pools.values() for bank in self._banks(pool).values()
            }:
                if (lane := self._tasks.lanes.get(bank)) is not None:
                    await lane.parts.slot.wait_open()
        while True:
            now = self._clock.now()
            ahead = now + dt.timedelta(seconds=EARLY_SECONDS_MAX)
            if latest > ahead:
                # The clock was set back, now or before the start: what ran by the wrong one is not
                # what is due.
                await self._free_keys(ahead)
            if latest > now:
                # Nothing of what is due by this one was looked at.
                looked_until = min(looked_until, now - missed)
            latest = now
            # The clock may have been set, or the machine have slept, over many due moments.
            since = max(looked_until, now - missed)
            stored = True
            for pool in list(self._pools.values()):
                due = last_due(parse_schedule(pool.schedule), now)
                if due is not None and due > since:
                    stored &= await self._start_due(pool, due)
            if stored:
                looked_until = now
            await trio.sleep(SCHEDULE_LOOK_SECONDS)

    async def _free_keys(self, moment: dt.datetime) -> None:
        """Let no round that a clock ahead began be taken for the one that is still to come."""
        ahead = await self._store.read(lambda c: store.begun_after(c, moment))
        if not ahead:
            return
        await self._write(lambda c: store.free_keys(c, moment))
        for round_id in ahead:
            if (one := self._rounds.get(round_id)) is not None:
                one.key = round_id
        log.warning("pool.clock_set_back", rounds=len(ahead), newest=max(ahead))

    async def _start_due(self, pool: PoolConfig, due: dt.datetime) -> bool:
        """Start a round; False when the disk did not take it and it is to be tried again."""
        key = f"{pool.name}@{due.isoformat()}"
        last = self._running(pool.name)
        # One that was begun by hand a moment ago is no cause for concern.
        if last is not None and last.key != key and not self._is_young(last):
            waits = sum(item.state not in ENDED for item in last.items)
            self._alarms.raise_alarm(
                AlarmKind.POOL_STALLED,
                pool.name,
                f"round {last.round_id} waits for {waits} of {len(last.items)} accounts;"
                f" the round of {due:%Y-%m-%d %H:%M} did not begin",
            )
        try:
            await self._start(pool, key, f"schedule {due:%H:%M}")
        except (PoolRefusedError, StoreFullError, StoreBusyError) as error:
            log.warning("pool.round_not_started", pool=pool.name, reason=str(error))
            return isinstance(error, PoolRefusedError)
        return True

    # -- acts ---------------------------------------------------------------------------------

    async def overview(self) -> list[dict[str, Any]]:
        """Return the pools with their latest round, without its items."""
        shown = []
        for pool in self._pools.values():
            latest = await self._store.read(partial(store.latest, pool=pool.name))
            due = next_due(parse_schedule(pool.schedule), self._clock.now())
            value = None if latest is None else latest.value()
            if value is not None:
                value.pop("items")
            shown.append(
                {
                    "pool": pool.name,
                    "target": pool.target,
                    "members": len(pool.members),
                    "schedule": pool.schedule,
                    "next_at": None if due is None else to_text(due),
                    "last_round": value,
                }
            )
        return shown

    async def plan(self, pool_name: str) -> dict[str, Any]:
        """Ask all balances and return what a round would do now; nothing is moved.

        Raises:
            PoolRefusedError: NOT_FOUND; BAD_STATE when another began in the same millisecond.
        """
        pool = self._pool(pool_name)
        now = self._clock.now()
        one = await self._start(pool, f"{pool.name}!plan@{to_text(now)}", "plan", plan_only=True)
        if (over := self._over.get(one.round_id)) is not None:
            with trio.move_on_after(PLAN_SECONDS_MAX):
                await over.wait()
        return await self.round(one.round_id)

    async def start_round(self, pool_name: str, who: str) -> dict[str, Any]:
        """Start a round now and return it; ask :meth:`round` how it goes.

        Raises:
            PoolRefusedError: NOT_FOUND; BAD_STATE when a round of this pool runs already;
                KEY_UNAVAILABLE when no bank of the pool has its key.
        """
        pool = self._pool(pool_name)
        self._check_idle(pool)
        banks = frozenset(self._banks(pool).values())
        if banks and self._check_keys(pool, banks) == banks:
            msg = f"no bank of pool {pool.name} has its key; insert the keys, then start the round"
            raise PoolRefusedError("KEY_UNAVAILABLE", msg)
        now = self._clock.now()
        one = await self._start(pool, f"{pool.name}@{to_text(now)}", f"by hand: {who}")
        return one.value()

    async def round(self, round_id: str) -> dict[str, Any]:
        """Return a round with its accounts.

        Raises:
            PoolRefusedError: NOT_FOUND.
        """
        one = self._rounds.get(round_id)
        if one is None:
            one = await self._store.read(lambda c: store.one(c, round_id))
        if one is None:
            raise PoolRefusedError("NOT_FOUND", f"there is no round {round_id!r}")
        return one.value()

    def _pool(self, name: str) -> PoolConfig:
        try:
            return self._pools[name]
        except KeyError:
            names = ", ".join(sorted(self._pools)) or "none"
            raise PoolRefusedError("NOT_FOUND", f"no pool {name!r}; there are: {names}") from None

    # -- one round ----------------------------------------------------------------------------

    def _running(self, pool_name: str) -> Round | None:
        """Return the round of a pool that moves money and is not finished."""
        for one in self._rounds.values():
            if one.pool == pool_name and not one.plan_only:
                return one
        return None

    def _check_idle(self, pool: PoolConfig) -> None:
        if (other := self._running(pool.name)) is not None:
            msg = f"round {other.round_id} of pool {pool.name} is still running"
            raise PoolRefusedError("BAD_STATE", msg)

    def _banks(self, pool: PoolConfig) -> dict[AccountNumber, BankName]:
        return {member.account: self._accounts[member.account].bank for member in pool.members}

    async def _start(
        self, pool: PoolConfig, key: str, note: str, *, plan_only: bool = False
    ) -> Round:
        """Store a new round and hand over its first ids.

        Raises:
            PoolRefusedError: BAD_STATE; nothing was changed.
            StoreFullError, StoreBusyError: nothing was changed.
        """
        if not plan_only:
            self._check_idle(pool)
        banks = self._banks(pool)
        keyless = self._check_keys(pool, frozenset(banks.values()))
        one = plan.new_round(
            pool, banks, keyless, key, self._clock.now(), plan_only=plan_only, note=note
        )
        if one.round_id in self._rounds:
            msg = f"round {one.round_id} began at this very moment; try again"
            raise PoolRefusedError("BAD_STATE", msg)
        # Known in memory before the first await, so that no second round slips in beside it.
        self._keep(one)
        self._unstored.add(one.round_id)
        finished = trio.Event()
        ends: list[tuple[Any, Exception | None]] = []

        def committed(fresh: Any, error: Exception | None) -> None:  # noqa: ANN401
            # Here, not after the wait: who ordered it may hang up, and the round is on disk still.
            self._unstored.discard(one.round_id)
            if fresh and error is None:
                self._begun(one)
            else:
                self._drop(one)
            ends.append((fresh, error))
            finished.set()

        try:
            self._store.submit(lambda c: store.insert(c, one), committed)
        except FepError as error:
            committed(None, error)
        await finished.wait()
        fresh, failed = ends[0]
        if failed is not None:
            raise failed
        if not fresh:
            raise PoolRefusedError("BAD_STATE", f"the round {key} has run already")
        return one

    def _begun(self, one: Round) -> None:
        log.info(
            "pool.round_started",
            pool=one.pool,
            round_id=one.round_id,
            accounts=len(one.items),
            plan_only=one.plan_only,
            note=one.note,
        )
        self._push_later(one, one.items)

    def _check_keys(self, pool: PoolConfig, banks: frozenset[BankName]) -> frozenset[BankName]:
        """Return the banks whose UKey is not in, and raise or clear the alarm (FEP-27, FEP-28)."""
        keyless = frozenset(bank for bank in banks if not self._tasks.has_key(bank))
        if keyless:
            missing = ", ".join(sorted(keyless))
            self._alarms.raise_alarm(
                AlarmKind.POOL_BLOCKED, pool.name, f"no ready UKey for: {missing}"
            )
            log.error("pool.key_missing", pool=pool.name, banks=sorted(keyless))
        else:
            self._alarms.clear(AlarmKind.POOL_BLOCKED, pool.name)
        return keyless

    def _push_later(self, one: Round, items: Sequence[Item]) -> None:
        """Let the ids of these items that are due be handed over, and the round end if it is over.

        Not by who noticed: a queue that is full of our own ids takes new ones only when its
        questions for their bodies are answered.
        """
        self._due.append((one, list(items)))
        self._due_added.set()

    async def _push(self) -> None:
        while True:
            await self._due_added.wait()
            self._due_added = trio.Event()
            due, self._due = self._due, []
            if again := await self._hand_over(due):
                await trio.sleep(SUBMIT_RETRY_SECONDS)
                for one, item in again:
                    self._push_later(one, [item])

    async def _hand_over(self, due: list[tuple[Round, list[Item]]]) -> list[tuple[Round, Item]]:
        """Hand the queue every id that is due; return the items whose id it can't take now.

        The same id is the same task, so it does no harm to hand one over again.
        """
        wanted = [
            (one, item, submission)
            for one, items in due
            for item in items
            if (submission := self._submission(one, item)) is not None
        ]
        answers = await self._submit([submission for _, _, submission in wanted])
        again: list[tuple[Round, Item]] = []
        for (one, item, _), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Admitted):
                continue
            if answer.code in PASSING:
                again.append((one, item))
                continue
            # There is no such task and never will be: a bank that is gone, or can't transfer.
            item.state, item.reason = ItemState.FAILED, f"{answer.code} {answer.message}"
            await self._write(partial(store.update, round_id=one.round_id, items=[item]))
            _log_not_swept(one, item)
        for one, _ in due:
            await self._end_if_over(one)
        return again

    async def _submit(self, wanted: list[Submission]) -> list[Admitted | Refused]:
        """Submit ids and wait for the disk; return the answers in order."""
        finished = trio.Event()
        answers: list[Admitted | Refused] = []

        def done(given: list[Admitted | Refused]) -> None:
            answers.extend(given)
            finished.set()

        if wanted:
            self._tasks.submit(CLIENT, wanted, done)
            await finished.wait()
        refused = [one for one in answers if isinstance(one, Refused)]
        if refused:
            log.warning("pool.submit_refused", count=len(refused), reason=refused[0].message)
        return answers

    async def _write(self, work: Callable[[Any], Any]) -> None:
        """Write; while the disk is full wait: a round goes on from here and nowhere else."""
        while True:
            try:
                await self._store.write(work)
            except (StoreFullError, StoreBusyError):
                await trio.sleep(SUBMIT_RETRY_SECONDS)
            else:
                return

    async def _leave_out(self) -> None:
        """Let no round wait for ever for balances that don't come: a bank drained, a key away.

        The queue ends what it never asked for; what it has the body of, and what waits for a bank
        that no machine serves, does not expire there.
        """
        while True:
            await trio.sleep(SCHEDULE_LOOK_SECONDS)
            self._look_for_keys()
            for one in list(self._rounds.values()):
                await self._take_back_stale(one)
                # Rounds may end while another's accounts are written.
                until = self._asked_until.get(one.round_id, math.inf)
                late = [item for item in one.items if item.state is ItemState.ASKING]
                if not late or trio.current_time() < until:
                    continue
                for item in late:
                    _leave(one, item, Reason.BALANCE_UNAVAILABLE, "it did not come in time")
                await self._write(partial(store.update, round_id=one.round_id, items=late))
                self._push_later(one, late)

    def _look_for_keys(self) -> None:
        """End the alarms of pools that wait for no key any more."""
        for alarm in self._alarms.active():
            pool = self._pools.get(alarm.subject)
            if alarm.kind is AlarmKind.POOL_BLOCKED and pool is not None:
                banks = set(self._banks(pool).values())
                if all(self._tasks.has_key(bank) for bank in banks):
                    self._alarms.clear(alarm.kind, alarm.subject)

    async def _take_back_stale(self, one: Round) -> None:
        """Cancel sweeps that the queue has and could not send for too long.

        Not after a restore: what is held then may have been sent.
        """
        for item in list(one.items):
            waits = item.state in TO_SWEEP and not one.plan_only
            if not waits or not self._is_old(item, one) or self._tasks.held_since:
                continue
            self._refused[item.sweep_task] = Reason.BALANCE_TOO_OLD
            try:
                await self._tasks.cancel(None, item.sweep_task, TOLD_TOO_OLD)
            except (TaskRefusedError, StoreFullError, StoreBusyError, PlaceLostError):
                # It may have left by now, and has its end from the bank.
                self._refused.pop(item.sweep_task, None)

    async def _handle(self, messages: Sequence[Fetch | Delivery]) -> None:
        await self._read_spent(messages)
        bodies: list[tuple[TaskId, Any]] = []
        told: list[TaskId] = []
        changed: dict[str, tuple[Round, list[Item]]] = {}
        for message in messages:
            found = self._by_task.get(message.task_id) or await self._reload(message.task_id)
            if isinstance(message, Fetch):
                bodies.append((message.task_id, self._body(message.task_id, found)))
            else:
                told.append(message.task_id)
            if found is None:
                log.error("pool.foreign_task", task_id=message.task_id)
                continue
            one, item = found
            if isinstance(message, Delivery):
                self._take_result(one, item, message)
            if isinstance(message, Delivery) or item.state is ItemState.SWEEPING:
                changed.setdefault(one.round_id, (one, []))[1].append(item)
        for one, items in changed.values():
            await self._write(partial(store.update, round_id=one.round_id, items=items))
            self._push_later(one, items)
        if bodies:
            await self._tasks.fetched(CLIENT, bodies)
        if told:
            self._tasks.acknowledge(CLIENT, told)

    async def _read_spent(self, messages: Sequence[Fetch | Delivery]) -> None:
        """Learn what memory does not know was spent: by other machines, or before a restart."""
        balances: dict[TaskId, AccountNumber] = {}
        for message in messages:
            found = self._by_task.get(message.task_id)
            if found is not None and self._must_read(message, found[1]):
                balances[found[1].balance_task] = found[1].account
        self._spent = {}
        if balances:
            # What is taken while the store is read counts too.
            before = {account: self._taken(account) for account in balances.values()}
            spent = await self._tasks.spent(balances, CLIENT)
            self._spent = {
                task_id: (spent.get(account, ZERO), before[account])
                for task_id, account in balances.items()
            }

    def _must_read(self, message: Fetch | Delivery, item: Item) -> bool:
        if isinstance(message, Delivery):
            told = message.task_id == item.balance_task and item.state is ItemState.ASKING
            known = item.balance_task in self._paid_before
        else:
            told = message.task_id == item.sweep_task and item.state in TO_SWEEP
            known = item.sweep_task in self._judged
        return told and not (known and self._tasks.sharing is None)

    async def _reload(self, task_id: TaskId) -> tuple[Round, Item] | None:
        """Find the round of a task that came back after its round was finished (退票)."""
        round_id = await self._store.read(lambda c: store.of_task(c, task_id))
        if round_id is None:
            return None
        one = await self._store.read(lambda c: store.one(c, round_id))
        for item in one.items:
            if task_id in (item.balance_task, item.sweep_task):
                return one, item
        return None

    def _body(self, task_id: TaskId, found: tuple[Round, Item] | None) -> dict[str, Any]:
        if found is None:
            return REFUSED
        one, item = found
        if task_id == item.balance_task:
            if item.state is not ItemState.ASKING:
                return REFUSED
            # The earliest counts: an answer that comes late is to a question asked long ago.
            self._paid_before.setdefault(task_id, self._tasks.paid(item.account))
            return plan.balance_body(item)
        pool = self._pools.get(one.pool)
        member = self._member(one.pool, item.account)
        may_move = item.state in TO_SWEEP and not one.plan_only
        if pool is None or not may_move or member is None:
            return REFUSED
        if (reason := self._overtaken(one, item, member)) is not None:
            self._refused[task_id] = reason
            return REFUSED
        item.state = ItemState.SWEEPING
        return plan.sweep_body(item, self._accounts[pool.target])

    def _overtaken(self, one: Round, item: Item, member: MemberConfig) -> Reason | None:
        """Return why a sweep does not follow any more from the balance it was planned by."""
        if self._is_old(item, one):
            return Reason.BALANCE_TOO_OLD
        judged = self._judged.get(item.sweep_task)
        if judged is not None and self._taken(item.account) > judged.taken:
            return Reason.PAID_MEANWHILE
        if (known := self._spent.get(item.balance_task)) is not None:
            return self._overtaken_by(item, member, known)
        return None

    def _overtaken_by(
        self, item: Item, member: MemberConfig, known: tuple[Cny, Cny]
    ) -> Reason | None:
        """Return why a sweep does not follow any more, by what the store says was spent."""
        assert item.balance is not None
        assert item.amount is not None
        spent = self._spent_by(item, known)
        # By the rule, for what was taken off when it was judged is taken off again here.
        if spent > ZERO and sweep(item.balance - spent, member).amount < item.amount:
            return Reason.PAID_MEANWHILE
        return None

    def _is_old(self, item: Item, one: Round) -> bool:
        """Say whether a balance is too old to sweep by, by the clock or by the time lived since."""
        judged = self._judged.get(item.sweep_task)
        judged_at = one.started_at if judged is None else judged.at
        age_s = _apart(self._clock.now(), judged_at)
        return max(age_s, 0.0 if judged is None else judged.lived) > SWEEP_AGE_SECONDS_MAX

    async def _vet(self, task: Task) -> str:
        """Return why a sweep is not to be sent, just before its first byte.

        On whichever machine that is, however long it was down, and whoever judged the balance.

        Raises:
            StoreBusyError, StoreFullError: of the shared store; ask again.
        """
        if task.kind is not Kind.TRANSFER:
            return ""
        judged = self._judged.get(task.task_id)
        age_s = _apart(self._tasks.clock.now(), task.submitted_at)
        if max(age_s, 0.0 if judged is None else judged.lived) > SWEEP_AGE_SECONDS_MAX:
            return TOLD_TOO_OLD
        if judged is not None and self._tasks.sharing is None:
            assert isinstance(task.body, PaymentOrder)
            return TOLD_PAID if self._taken(task.body.payer) > judged.taken else ""
        found = self._by_task.get(task.task_id) or await self._reload(task.task_id)
        if found is None:
            return ""
        one, item = found
        if (member := self._member(one.pool, item.account)) is None:
            return ""
        before = self._taken(item.account)
        spent = await self._tasks.spent({item.balance_task: item.account}, CLIENT)
        known = (spent.get(item.account, ZERO), before)
        return TOLD_PAID if self._overtaken_by(item, member, known) else ""

    def _take_result(self, one: Round, item: Item, delivery: Delivery) -> None:
        if delivery.task_id == item.balance_task:
            if item.state is ItemState.ASKING:
                self._take_balance(one, item, delivery)
            return
        item.state = {
            State.SUCCEEDED: ItemState.SWEPT,
            State.RETURNED: ItemState.RETURNED,
        }.get(delivery.state, ItemState.FAILED)
        if item.state is not ItemState.SWEPT:
            told = f"{delivery.bank_code} {delivery.bank_message}".strip()
            if (delivery.bank_code, delivery.bank_message) == (TOO_LATE, TOLD_PAID):
                told = Reason.PAID_MEANWHILE.value
            elif delivery.state is State.EXPIRED or delivery.bank_code == TOO_LATE:
                told = Reason.BALANCE_TOO_OLD.value
            item.reason = self._refused.pop(delivery.task_id, told)
            _log_not_swept(one, item)
            return
        log.info(
            "pool.account_swept",
            round_id=one.round_id,
            account=mask(item.account),
            amount=str(item.amount),
            reason=item.reason,
        )

    def _take_balance(self, one: Round, item: Item, delivery: Delivery) -> None:
        member = self._member(one.pool, item.account)
        if member is None:
            item.state, item.reason = ItemState.FAILED, Reason.NOT_CONFIGURED.value
            return
        if delivery.state is not State.SUCCEEDED:
            told = f"{delivery.bank_code} {delivery.bank_message}".strip()
            _leave(one, item, Reason.BALANCE_UNAVAILABLE, told)
            return
        # By the queue's clock, which wrote when the query ended; one that was set back is no proof.
        if _apart(self._tasks.clock.now(), from_text(delivery.at)) > BALANCE_AGE_SECONDS_MAX:
            _leave(one, item, Reason.BALANCE_TOO_OLD, f"the balance is of {delivery.at}")
            return
        available = Cny.parse(delivery.result["available"])
        working = plan.judge(item, member, available, self._under_way(item))
        self._judged[item.sweep_task] = _Judged(self._clock.now(), self._taken(item.account))
        log.info(
            "pool.account_judged",
            round_id=one.round_id,
            account=mask(item.account),
            amount=str(working.amount),
            reason=item.reason,
        )

    def _under_way(self, item: Item) -> Cny:
        """Return what the balance of an item may not show yet, or not have lost yet.

        Payments that are open; those that ended since the bank was asked, for its answer may be
        older; and what another round plans for the account, also where the queue has only the id.
        """
        account = item.account
        paid_before = self._paid_before.pop(item.balance_task, ZERO)
        if (known := self._spent.get(item.balance_task)) is not None:
            return self._spent_by(item, known)
        fen = self._tasks.under_way(but=CLIENT).get(account, ZERO).fen
        fen += (self._tasks.paid(account) - paid_before).fen
        return Cny(fen + self._planned_else(item).fen)

    def _spent_by(self, item: Item, known: tuple[Cny, Cny]) -> Cny:
        """Return the same by what the store said, and what this machine knew just before that."""
        spent, before = known
        since = max(self._taken(item.account).fen - before.fen, 0)
        return Cny(spent.fen + since + self._planned_else(item).fen)

    def _planned_else(self, item: Item) -> Cny:
        """Return what other items take from the account of this one."""
        fen = 0
        for one in self._rounds.values():
            for other in one.items:
                planned = other.state in TO_SWEEP and not one.plan_only
                if planned and other.account == item.account and other is not item:
                    assert other.amount is not None
                    fen += other.amount.fen
        return Cny(fen)

    def _taken(self, account: AccountNumber) -> Cny:
        """Return what payments that this machine knows have taken from an account, or are to."""
        open_ = self._tasks.under_way(but=CLIENT).get(account, ZERO)
        return Cny(open_.fen + self._tasks.paid(account).fen)

    def _member(self, pool_name: str, account: AccountNumber) -> MemberConfig | None:
        pool = self._pools.get(pool_name)
        if pool is None:
            return None
        return next((member for member in pool.members if member.account == account), None)

    async def _end_if_over(self, one: Round) -> None:
        if not one.over or one.state is RoundState.FINISHED:
            return
        # Finished for all at once: who sees it so may start the next round.
        done = attrs.evolve(one, state=RoundState.FINISHED, finished_at=self._clock.now())
        await self._write(lambda c: store.finish(c, done))
        one.state, one.finished_at = done.state, done.finished_at
        self._drop(one)
        if not one.plan_only:
            self._alarms.clear(AlarmKind.POOL_STALLED, one.pool)
        value = one.value()
        log.info(
            "pool.round_finished",
            pool=one.pool,
            round_id=one.round_id,
            states=value["states"],
            planned=value["planned"],
            swept=value["swept"],
        )

    def _keep(self, one: Round) -> None:
        self._rounds[one.round_id] = one
        # Who waits for the end of a round waits on when it was loaded anew.
        self._over.setdefault(one.round_id, trio.Event())
        self._asked_until.setdefault(one.round_id, trio.current_time() + self._balance_seconds(one))
        for item in one.items:
            self._by_task[item.balance_task] = self._by_task[item.sweep_task] = (one, item)

    def _submission(self, one: Round, item: Item) -> Submission | None:
        """Return the id of an item that is due, None when none is."""
        if item.state is ItemState.ASKING:
            age = self._balance_seconds(one)
            return Submission(item.balance_task, item.bank, Kind.BALANCE, expires_s=age)
        if item.state in TO_SWEEP and not one.plan_only:
            age = SWEEP_EXPIRES_SECONDS
            return Submission(item.sweep_task, item.bank, Kind.TRANSFER, expires_s=age)
        return None

    def _balance_seconds(self, one: Round) -> float:
        """Return how long the balances of a round are waited for."""
        gaps = {bank: self._query_gap(bank) for bank in {item.bank for item in one.items}}
        each = (max(BALANCE_SECONDS_EACH, 2 * gaps[item.bank]) for item in one.items)
        return BALANCE_SECONDS + sum(each)

    def _is_young(self, one: Round) -> bool:
        age_s = (self._clock.now() - one.started_at).total_seconds()
        return 0.0 <= age_s <= self._balance_seconds(one)

    def _query_gap(self, bank: BankName) -> float:
        lane = self._tasks.lane_of(bank)
        return 0.0 if lane is None else lane.parts.card.throttle.query_gap_s

    def _drop(self, one: Round) -> None:
        self._rounds.pop(one.round_id, None)
        self._asked_until.pop(one.round_id, None)
        for item in one.items:
            self._by_task.pop(item.balance_task, None)
            self._by_task.pop(item.sweep_task, None)
            self._paid_before.pop(item.balance_task, None)
            self._judged.pop(item.sweep_task, None)
            self._refused.pop(item.sweep_task, None)
        # An event can't be tested for truth.
        if (over := self._over.pop(one.round_id, None)) is not None:
            over.set()


def _apart(one: dt.datetime, other: dt.datetime) -> float:
    """Return the seconds between two moments, of which a clock set back makes the later earlier."""
    return abs((one - other).total_seconds())


def _leave(one: Round, item: Item, reason: Reason, working: str) -> None:
    """Leave an account out of a round: its balance is not known, so nothing moves."""
    item.state, item.reason, item.working = ItemState.FAILED, reason.value, working
    log.warning(
        "pool.account_left_out",
        round_id=one.round_id,
        account=mask(item.account),
        reason=item.reason,
        working=item.working,
    )


def _log_not_swept(one: Round, item: Item) -> None:
    log.info(
        "pool.account_not_swept",
        round_id=one.round_id,
        account=mask(item.account),
        amount=str(item.amount),
        reason=item.reason,
    )
