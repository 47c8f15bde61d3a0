"""The pooling service (资金归集): runs rounds as a client of the task queue like any other.

It hands over two task ids an account: the first asks the balance, the second moves the excess. It
gives the bodies only when the queue asks for them by id (claim check), from what its own store
planned, and acknowledges a result only when its consequence is on disk. A round therefore
continues after a restart at any moment, and after a key was out for hours.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog
import trio

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.account import Account, mask
from fep.domain.clock import Clock, to_text
from fep.domain.errors import FepError
from fep.domain.ids import AccountNumber, BankName, ClientName, TaskId
from fep.domain.money import ZERO, Cny
from fep.domain.order import Kind
from fep.pooling import plan, store
from fep.pooling.config import MemberConfig, PoolConfig
from fep.pooling.plan import Item, ItemState, Round, RoundState
from fep.pooling.rules import Reason
from fep.pooling.schedule import last_due, next_due, parse_schedule
from fep.store.database import Store
from fep.tasks.service import TaskService
from fep.tasks.state import State
from fep.tasks.task import Admitted, Delivery, Fetch, Submission

log = structlog.get_logger()

CLIENT: Final = ClientName("fep:pooling")
PLAN_SECONDS_MAX: Final = 120.0
MISSED_SECONDS_MAX: Final = 900.0
"""A round that fell into a stop of the daemon is caught up when it is at most this late."""
SUBMIT_RETRY_SECONDS: Final = 2.0
SCHEDULE_LOOK_SECONDS: Final = 20.0


class PoolRefusedError(FepError):
    """A round was not started or not found; nothing was changed."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
    ) -> None:
        self._tasks = tasks
        self._alarms = alarms
        self._clock = clock
        self._rounds: dict[str, Round] = {}
        self._by_task: dict[TaskId, tuple[Round, Item]] = {}
        self._over: dict[str, trio.Event] = {}
        self.configure(pools, accounts)

    def configure(
        self, pools: Sequence[PoolConfig], accounts: Mapping[AccountNumber, Account]
    ) -> None:
        """Take other pools into force; rounds under way keep the amounts they planned."""
        self._pools = {pool.name: pool for pool in pools}
        self._accounts = dict(accounts)

    @property
    def _store(self) -> Store:
        return self._tasks.store

    # -- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Continue what runs, answer the queue, start rounds when they are due."""
        for one in await self._store.read(store.running):
            self._keep(one)
            log.info("pool.round_continued", round_id=one.round_id, pool=one.pool)
        mailbox = self._tasks.attach(CLIENT)
        try:
            async with trio.open_nursery() as nursery:
                for one in list(self._rounds.values()):
                    nursery.start_soon(self._push, one, one.items)
                nursery.start_soon(self._keep_schedule)
                task_status.started()
                while True:
                    await self._handle(await self._tasks.take(mailbox))
        finally:
            self._tasks.detach(mailbox)

    async def _keep_schedule(self) -> None:
        """Start each pool's rounds at its times; a key of the planned time makes each run once."""
        looked_until = self._clock.now() - dt.timedelta(seconds=MISSED_SECONDS_MAX)
        while True:
            now = self._clock.now()
            for pool in list(self._pools.values()):
                due = last_due(parse_schedule(pool.schedule), now)
                if due is not None and due > looked_until:
                    await self._start_due(pool, due)
            looked_until = now
            await trio.sleep(SCHEDULE_LOOK_SECONDS)

    async def _start_due(self, pool: PoolConfig, due: dt.datetime) -> None:
        try:
            await self._start(pool, f"{pool.name}@{due.isoformat()}", f"schedule {due:%H:%M}")
        except PoolRefusedError as error:
            log.warning("pool.round_not_started", pool=pool.name, reason=str(error))

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
            PoolRefusedError: NOT_FOUND.
        """
        pool = self._pool(pool_name)
        now = self._clock.now()
        one = await self._start(pool, f"{pool.name}!plan@{to_text(now)}", "plan", plan_only=True)
        if (over := self._over.get(one.round_id)) is not None:
            with trio.move_on_after(PLAN_SECONDS_MAX):
                await over.wait()
        return one.value()

    async def start_round(self, pool_name: str, who: str) -> dict[str, Any]:
        """Start a round now and return it; ask :meth:`round` how it goes.

        Raises:
            PoolRefusedError: NOT_FOUND; BAD_STATE when a round of this pool runs already;
                KEY_UNAVAILABLE when no bank of the pool has its key.
        """
        pool = self._pool(pool_name)
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

    async def _start(
        self, pool: PoolConfig, key: str, note: str, *, plan_only: bool = False
    ) -> Round:
        if not plan_only:
            for other in self._rounds.values():
                if other.pool == pool.name and not other.plan_only:
                    msg = f"round {other.round_id} of pool {pool.name} is still running"
                    raise PoolRefusedError("BAD_STATE", msg)
        banks = {member.account: self._accounts[member.account].bank for member in pool.members}
        keyless = self._check_keys(pool, frozenset(banks.values()))
        one = plan.new_round(
            pool, banks, keyless, key, self._clock.now(), plan_only=plan_only, note=note
        )
        # Known in memory before the first await, so that no second round slips in beside it.
        self._keep(one)
        if not await self._store.write(lambda c: store.insert(c, one)):
            self._drop(one)
            raise PoolRefusedError("BAD_STATE", f"the round {key} has run already")
        log.info(
            "pool.round_started",
            pool=pool.name,
            round_id=one.round_id,
            accounts=len(one.items),
            plan_only=plan_only,
            note=note,
        )
        await self._push(one, one.items)
        return one

    def _check_keys(self, pool: PoolConfig, banks: frozenset[BankName]) -> frozenset[BankName]:
        """Return the banks whose UKey is not in, and raise or clear the alarm (FEP-27, FEP-28)."""
        keyless = frozenset(
            bank
            for bank in banks
            if bank not in self._tasks.lanes or not self._tasks.lanes[bank].parts.slot.is_open
        )
        if keyless:
            missing = ", ".join(sorted(keyless))
            self._alarms.raise_alarm(
                AlarmKind.POOL_BLOCKED, pool.name, f"no ready UKey for: {missing}"
            )
            log.error("pool.key_missing", pool=pool.name, banks=sorted(keyless))
        else:
            self._alarms.clear(AlarmKind.POOL_BLOCKED, pool.name)
        return keyless

    async def _push(self, one: Round, items: Sequence[Item]) -> None:
        """Hand the queue every id of these items that is due; the same id is the same task."""
        wanted = [
            Submission(item.balance_task, item.bank, Kind.BALANCE)
            for item in items
            if item.state is ItemState.ASKING
        ]
        wanted += [
            Submission(item.sweep_task, item.bank, Kind.TRANSFER)
            for item in items
            if self._to_sweep(one, item)
        ]
        while wanted and not await self._submit(wanted):
            await trio.sleep(SUBMIT_RETRY_SECONDS)
        await self._end_if_over(one)

    @staticmethod
    def _to_sweep(one: Round, item: Item) -> bool:
        return not one.plan_only and item.state in (ItemState.PLANNED, ItemState.SWEEPING)

    async def _submit(self, wanted: list[Submission]) -> bool:
        """Submit ids and wait for the disk; say whether all were taken."""
        finished = trio.Event()
        answers: list[Any] = []

        def done(given: list[Any]) -> None:
            answers.extend(given)
            finished.set()

        self._tasks.submit(CLIENT, wanted, done)
        await finished.wait()
        refused = [one for one in answers if not isinstance(one, Admitted)]
        if refused:
            log.warning("pool.submit_refused", count=len(refused), reason=refused[0].message)
        return not refused

    async def _handle(self, messages: Sequence[Fetch | Delivery]) -> None:
        bodies: list[tuple[TaskId, Any]] = []
        told: list[TaskId] = []
        changed: dict[str, tuple[Round, list[Item]]] = {}
        under_way: dict[AccountNumber, Cny] | None = None
        for message in messages:
            found = self._by_task.get(message.task_id) or await self._reload(message.task_id)
            if found is None:
                log.error("pool.foreign_task", task_id=message.task_id)
                told.append(message.task_id)
                continue
            one, item = found
            if isinstance(message, Fetch):
                bodies.append((message.task_id, self._body(one, item, message.task_id)))
                continue
            if under_way is None:
                under_way = self._tasks.under_way()
            self._take_result(one, item, message, under_way.get(item.account, ZERO))
            changed.setdefault(one.round_id, (one, []))[1].append(item)
            told.append(message.task_id)
        if bodies:
            await self._tasks.fetched(CLIENT, bodies)
        for one, items in changed.values():
            await self._store.write(partial(store.update, round_id=one.round_id, items=items))
            await self._push(one, items)
        if told:
            self._tasks.acknowledge(CLIENT, told)

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

    def _body(self, one: Round, item: Item, task_id: TaskId) -> dict[str, Any]:
        if task_id == item.balance_task:
            return plan.balance_body(item)
        pool = self._pools.get(one.pool)
        if pool is None or item.amount is None:
            # An answer that is not {kind, params} fails the task: nothing is sent.
            return {"refused": "the pool is not configured any more"}
        return plan.sweep_body(item, self._accounts[pool.target])

    def _take_result(self, one: Round, item: Item, delivery: Delivery, under_way: Cny) -> None:
        if delivery.task_id == item.balance_task:
            if item.state is ItemState.ASKING:
                self._take_balance(one, item, delivery, under_way)
            return
        item.state = {
            State.SUCCEEDED: ItemState.SWEPT,
            State.RETURNED: ItemState.RETURNED,
        }.get(delivery.state, ItemState.FAILED)
        if item.state is not ItemState.SWEPT:
            item.reason = f"{delivery.bank_code} {delivery.bank_message}".strip()
        log.info(
            "pool.account_swept" if item.state is ItemState.SWEPT else "pool.account_not_swept",
            round_id=one.round_id,
            account=mask(item.account),
            amount=str(item.amount),
            reason=item.reason,
        )

    def _take_balance(self, one: Round, item: Item, delivery: Delivery, under_way: Cny) -> None:
        member = self._member(one.pool, item.account)
        if delivery.state is not State.SUCCEEDED or member is None:
            item.state, item.reason = ItemState.FAILED, Reason.BALANCE_UNAVAILABLE.value
            item.working = f"{delivery.bank_code} {delivery.bank_message}".strip()
            return
        working = plan.judge(item, member, Cny.parse(delivery.result["available"]), under_way)
        log.info(
            "pool.account_judged",
            round_id=one.round_id,
            account=mask(item.account),
            amount=str(working.amount),
            reason=item.reason,
        )

    def _member(self, pool_name: str, account: AccountNumber) -> MemberConfig | None:
        pool = self._pools.get(pool_name)
        if pool is None:
            return None
        return next((member for member in pool.members if member.account == account), None)

    async def _end_if_over(self, one: Round) -> None:
        if not one.over or one.state is RoundState.FINISHED:
            return
        one.state, one.finished_at = RoundState.FINISHED, self._clock.now()
        await self._store.write(lambda c: store.finish(c, one))
        self._drop(one)
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
        self._over[one.round_id] = trio.Event()
        for item in one.items:
            self._by_task[item.balance_task] = self._by_task[item.sweep_task] = (one, item)

    def _drop(self, one: Round) -> None:
        self._rounds.pop(one.round_id, None)
        for item in one.items:
            self._by_task.pop(item.balance_task, None)
            self._by_task.pop(item.sweep_task, None)
        if (over := self._over.pop(one.round_id, None)) is not None:
            over.set()
