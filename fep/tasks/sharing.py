"""The queue over several front-end machines: which banks' tasks are here, and where each client is.

A bank's open tasks are in the memory of the one machine that serves it, and only that one changes
them: it alone decides, as if there were no other. The others take submissions for it straight into
the store and tell it so; ask and tell the clients that are connected to them; and hand bodies over
by letter. So what holds on one machine holds on several, and a client may connect to any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import attrs
import sqlalchemy as sa
import structlog
import trio

from fep.domain.errors import FepError
from fep.domain.ids import BankName, ClientName, TaskId
from fep.domain.order import Kind
from fep.machines.service import Machines, PlaceLostError, until_taken
from fep.machines.state import Machine, Said, bank_place, newest_at
from fep.tasks import store
from fep.tasks.state import FINAL, State
from fep.tasks.task import Task

if TYPE_CHECKING:
    from fep.tasks.service import TaskService

log = structlog.get_logger()

NOTICE_SECONDS_MAX: Final = 2.0
"""How long what is stored already is waited for to be known here too."""
NOTICE_POLL_SECONDS: Final = 0.005
ASKED_FOR: Final = frozenset({State.QUEUED, State.OFFERED})

Work = Callable[[sa.Connection], Any]
Job = Callable[[], Awaitable[None]]


@attrs.define(eq=False)
class _Bank:
    """A bank whose tasks are here."""

    place: str
    read_to: int | None = None
    """The highest place in the queue when its tasks were read; None while they are."""
    was_read: trio.Event = attrs.Factory(trio.Event)
    early: list[Task] = attrs.Factory(list)
    """Admitted here while the tasks were read: in what was read, or behind it."""


@attrs.define(eq=False)
class _Client:
    """A client connected to this machine."""

    since: float
    """Seconds since 1970."""
    is_newest: bool = True
    """Its newest connection is here, and not to another machine."""
    asked: dict[TaskId, tuple[BankName, float]] = attrs.Factory(dict)
    """What other machines asked it for: the bank, and when the offer lapses (trio's time)."""


class Sharing:
    """What this machine's task service has to do with the others; start :meth:`run`.

    Args:
        service: the task service.
        machines: the machines.
    """

    def __init__(self, service: TaskService, machines: Machines) -> None:
        self.machines = machines
        self._service = service
        self._foreign: dict[BankName, frozenset[Kind]] = {}
        self._mine: dict[BankName, _Bank] = {}
        self._clients: dict[ClientName, _Client] = {}
        self._away: frozenset[ClientName] = frozenset()
        """Clients that are connected to other machines."""
        self._jobs: deque[Job] = deque()
        self._work = trio.Event()
        machines.say(self._said)
        machines.after_look(self._looked)
        machines.hear("admitted", self._hear_admitted)
        machines.hear("offered", self._hear_offered)
        machines.hear("ended", self._hear_ended)
        machines.hear("drained", self._hear_drained)
        machines.hear("released", self._hear_released)
        machines.hear("body", self._hear_body)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do in order what was heard, until cancelled."""
        task_status.started()
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._jobs:
                # Each one reads first: where that is refused, nothing of it is done.
                await until_taken(self._jobs.popleft())

    def _do(self, job: Job) -> None:
        self._jobs.append(job)
        self._work.set()

    # -- banks ----------------------------------------------------------------------------------

    def know_foreign(self, bank: BankName, kinds: frozenset[Kind]) -> None:
        """Take tasks for a bank that has no key slot here: another machine serves it."""
        self._foreign[bank] = kinds

    def forget_foreign(self, bank: BankName) -> None:
        """Take no more for a bank that was known so."""
        self._foreign.pop(bank, None)

    @property
    def foreign(self) -> Mapping[BankName, frozenset[Kind]]:
        """Banks without a key slot here, and what they can do."""
        return self._foreign

    def holds(self, bank: BankName) -> bool:
        """Say whether a bank's open tasks are here."""
        return bank in self._mine

    async def take_bank(self, bank: BankName) -> None:
        """Read a bank's open tasks; this machine has just won its place."""
        # Known first, read then: what is admitted meanwhile is in one of the two, or in both.
        mine = self._mine[bank] = _Bank(bank_place(bank))
        tasks, last_seq = await until_taken(
            partial(
                self._service.store.read,
                lambda c: (store.open_tasks(c, bank), store.last_seq(c)),
            )
        )
        mine.read_to = last_seq
        await until_taken(partial(self._service.know, tasks))
        await self._service.know([task for task in mine.early if task.seq > last_seq])
        mine.early.clear()
        mine.was_read.set()
        await until_taken(self._service.keep_drained)
        log.info("tasks.taken_over", bank=bank, open=len(tasks))

    def drop_bank(self, bank: BankName) -> None:
        """Forget a bank's tasks: another machine serves it by now, or will."""
        mine = self._mine.pop(bank, None)
        if mine is not None:
            mine.was_read.set()
            self._service.forget_bank(bank)

    def mine(self, fresh: Sequence[Task]) -> list[Task]:
        """Return which of the tasks that were just admitted here are to be known here."""
        found = []
        for task in fresh:
            mine = self._mine.get(task.bank)
            if mine is None:
                continue
            if mine.read_to is None:
                mine.early.append(task)
            elif task.seq > mine.read_to:
                found.append(task)
        return found

    def tell_admitted(self, connection: sa.Connection, fresh: Sequence[Task]) -> None:
        """Tell the other machines, in the same commit, of tasks that were admitted here."""
        first, last = fresh[0].seq, fresh[-1].seq
        banks = sorted({task.bank for task in fresh})
        self.machines.tell_all(connection, "admitted", [[bank, first, last] for bank in banks])

    def _hear_admitted(self, value: Sequence[tuple[BankName, int, int]]) -> None:
        for bank, first, last in value:
            if bank in self._mine:
                self._do(partial(self._read_admitted, bank, first, last))

    async def _read_admitted(self, bank: BankName, first: int, last: int) -> None:
        mine = self._mine.get(bank)
        if mine is None:
            return
        await mine.was_read.wait()
        if mine.read_to is None or last <= mine.read_to:
            return
        read = partial(store.open_tasks, bank=bank, between=(first, last))
        tasks: list[Task] = await self._service.store.read(read)
        # They are told of once, and were admitted behind what was read: none is known yet.
        if self._mine.get(bank) is mine:
            await self._service.know(tasks)
            self._service.put_all_back(tasks)

    async def learned(self, task_id: TaskId) -> None:
        """Wait for an open task of a bank served here whose notice is on its way still."""
        if self._service.open_task(task_id) is not None:
            return
        found: Task | None = await self._service.store.read(partial(store.one, task_id=task_id))
        if found is None or found.state in FINAL:
            return
        with trio.move_on_after(NOTICE_SECONDS_MAX):
            while self.holds(found.bank) and self._service.open_task(task_id) is None:
                await trio.sleep(NOTICE_POLL_SECONDS)

    def guarded(self, tasks: Iterable[Task], changes: Sequence[store.Change]) -> Work:
        """Return what must be done with changes of tasks in the same work.

        It makes sure that this machine serves their banks, and tells the others what is theirs.

        Raises:
            PlaceLostError: it does not; so does what is returned, if it comes to that.
        """
        by_seq = {task.seq: task for task in tasks}
        places = {bank_place(task.bank) for task in by_seq.values()}
        ended = [
            [by_seq[one.seq].client, by_seq[one.seq].task_id]
            for one in changes
            if one.columns.get("delivery") == store.OWED
        ]
        offered = [
            [to.instance, task.client, task.task_id, task.offers + 1, task.bank]
            for one in changes
            if one.after is State.OFFERED
            for task in (by_seq[one.seq],)
            if (to := self._where(task.client)) is not None
        ]

        def also(connection: sa.Connection) -> None:
            self.machines.tell_all(connection, "ended", ended)
            self.machines.tell_all(connection, "offered", offered)

        return self.machines.guarded(places, also)

    def lost(self, tasks: Iterable[Task]) -> None:
        """Note that the database refused a change: this machine does not serve a bank any more."""
        self.machines.lost({bank_place(task.bank) for task in tasks})

    # -- clients --------------------------------------------------------------------------------

    def attached(self, client: ClientName) -> None:
        """Note a client's connection to this machine."""
        now = self._service.clock.now().timestamp()
        if (known := self._clients.get(client)) is not None:
            known.since = now
        else:
            self._clients[client] = _Client(now)
        self._look_for(client)
        self._do(partial(self._read_owed, client))
        self.machines.changed()

    def detached(self, client: ClientName) -> None:
        """Note that a client's last connection to this machine has ended."""
        gone = self._clients.pop(client)
        box = self._service.box(client)
        for task_id in gone.asked:
            # Who asked for it asks again when its offer lapses, wherever the client is by then.
            box.forget_fetch(task_id)
        # Told from the store, to whatever machine it connects next.
        box.forget_results()
        self.machines.changed()

    def is_here(self, client: ClientName) -> bool:
        """Say whether a client's newest connection is to this machine."""
        one = self._clients.get(client)
        return one is not None and one.is_newest

    def is_away(self, client: ClientName) -> bool:
        """Say whether a client is connected to another machine."""
        return client in self._away

    def _where(self, client: ClientName) -> Machine | None:
        """Return the other machine that must ask a client, None when it is this one, or none."""
        here = self._clients.get(client)
        since = None if here is None else here.since
        return newest_at(client, since, self.machines.others())

    def _look_for(self, client: ClientName) -> None:
        """Find out anew whether a client's newest connection is here."""
        one = self._clients[client]
        was, one.is_newest = one.is_newest, self._where(client) is None
        if one.is_newest and not was:
            self._do(partial(self._read_owed, client))

    def _looked(self) -> None:
        now = trio.current_time()
        away = {ClientName(one) for other in self.machines.others() for one in other.said.clients}
        came, went = away - self._away, self._away - away
        self._away = frozenset(away)
        for client, here in self._clients.items():
            self._look_for(client)
            for task_id in [one for one, (_, lapses) in here.asked.items() if lapses <= now]:
                del here.asked[task_id]
                self._service.box(client).forget_fetch(task_id)
        self._service.see_clients(came, went)

    def _said(self) -> Said:
        counts = self._service.open_counts()
        return Said(
            clients={name: one.since for name, one in self._clients.items()},
            open={
                bank: {state.value: number for state, number in states.items()}
                for bank, states in counts.items()
                if bank in self._mine
            },
        )

    async def _read_owed(self, client: ClientName) -> None:
        """Let a client that is here be told what it is owed, whoever brought it to its end."""
        if not self.is_here(client):
            return
        owed = await self._service.store.read(partial(store.owed, client=client))
        if self.is_here(client):
            self._service.box(client).owe(task_id for _, task_id in owed)

    def _hear_ended(self, value: Sequence[tuple[ClientName, TaskId]]) -> None:
        for client, task_id in value:
            if self.is_here(client):
                self._service.box(client).owe([task_id])

    def _hear_offered(self, value: Sequence[tuple[str, ClientName, TaskId, int, BankName]]) -> None:
        lapses = trio.current_time() + self._service.config.fetch_timeout_s
        for instance, client, task_id, attempt, bank in value:
            here = self._clients.get(client)
            if instance != self.machines.me.instance or here is None:
                continue
            here.asked[task_id] = (bank, lapses)
            box = self._service.box(client)
            box.forget_fetch(task_id)
            box.ask(task_id, attempt)

    def hand_over(
        self,
        client: ClientName,
        answers: Sequence[tuple[TaskId, Any]],
        done: Callable[[], None],
    ) -> None:
        """Send bodies that a client gave here to the machines that asked for them."""
        here = self._clients.get(client)
        letters: list[tuple[Machine, dict[str, Any]]] = []
        for task_id, answer in answers:
            asked = None if here is None else here.asked.pop(task_id, None)
            to = None if asked is None else self.machines.holder(bank_place(asked[0]))
            if to is not None and to.number != self.machines.me.number:
                body = {"client": client, "task_id": task_id, "answer": answer}
                letters.append((to, body))
        if not letters:
            done()
            return

        def post(connection: sa.Connection) -> None:
            for to, body in letters:
                self.machines.post(connection, to, "body", body)

        def posted(_result: Any, error: Exception | None) -> None:  # noqa: ANN401
            if error is not None:
                # The machine that asked asks again when its offer lapses.
                log.warning("tasks.bodies_not_stored", reason=str(error), count=len(letters))
            done()

        try:
            self._service.store.submit(post, posted)
        except FepError as error:
            posted(None, error)

    def refused(self, client: ClientName, task_id: TaskId) -> bool:
        """Note that a client can't give a body now; False when no other machine asked for it."""
        here = self._clients.get(client)
        return here is not None and here.asked.pop(task_id, None) is not None

    def _hear_body(self, value: Mapping[str, Any]) -> None:
        self._do(partial(self._take_body, value["client"], value["task_id"], value["answer"]))

    async def _take_body(self, client: ClientName, task_id: TaskId, answer: Any) -> None:  # noqa: ANN401
        task = self._service.open_task(task_id)
        if task is not None and task.state in ASKED_FOR:
            # The client hears of an offer when it is stored, and may be quicker than our own word.
            with trio.move_on_after(NOTICE_SECONDS_MAX):
                while task.claimed and task.state in ASKED_FOR:
                    await trio.sleep(NOTICE_POLL_SECONDS)
        try:
            await self._service.fetched(client, [(task_id, answer)])
        except PlaceLostError:
            return  # who serves the bank now asks for it again

    # -- operators ------------------------------------------------------------------------------

    def tell_drained(self, connection: sa.Connection, bank: BankName, *, value: bool) -> None:
        """Tell the others, in the same commit, that an operator stopped or started a bank."""
        self.machines.tell(connection, "drained", [bank, value])

    def _hear_drained(self, value: tuple[BankName, bool]) -> None:
        bank, drained = value
        self._service.know_drained(bank, value=drained)

    def tell_released(self, connection: sa.Connection) -> None:
        """Tell the others, in the same commit, that payments may be sent again after a restore."""
        self.machines.tell(connection, "released", None)

    def _hear_released(self, _value: None) -> None:
        self._service.know_released()

    def served_by(self, bank: BankName) -> str | None:
        """Return the number of the machine that serves a bank, None when none does now."""
        holder = self.machines.holder(bank_place(bank))
        return None if holder is None else holder.number

    def open_elsewhere(self) -> dict[BankName, Mapping[str, int]]:
        """Return the open tasks of the banks that others serve, by state, as they said last."""
        return {
            BankName(bank): states
            for other in self.machines.others()
            for bank, states in other.said.open.items()
            if bank not in self._mine
        }

    def has_key(self, bank: BankName) -> bool:
        """Say whether some machine has a bank's key at this moment."""
        return self.machines.is_fit_anywhere(bank_place(bank))
