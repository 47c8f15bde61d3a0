"""One round: work and faults, then calm, then what must hold of every task and every fen."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import attrs

from fep.adapters.host import BookAccount, BookedState
from fep.client import BlockingClient, CallError
from fep.domain.ids import TaskId, client_ref
from tests.crash.bank import AGAIN, Manners
from tests.crash.faults import ASIDE, FAULTS, Fault
from tests.crash.machine import CALL_SECONDS_MAX, PROMISE_SECONDS, Machine
from tests.crash.proof import chain_faults
from tests.crash.proxy import Walk
from tests.system.work import ENTERPRISE, OPEN, every_task, transfer

SETTLE_SECONDS_MAX: Final = 90.0
SELDOM_SECONDS: Final = 3.0
LOOK_SECONDS: Final = 0.3
POOLING_CHANCE: Final = 0.3
FOUL_SECONDS_MIN, FOUL_SECONDS_MAX = 0.8, 1.8
PAYMENTS_MIN, PAYMENTS_MAX = 14, 26
WAITING: Final = ("queued", "offered", "fetched", "sending")
LINES_SHOWN_MAX: Final = 6
VIOLATIONS: Final = (
    "lost",
    "doubled",
    "stuck",
    "wrong",
    "stray",
    "unproved",
    "unsound",
    "untold",
    "fallen",
)


@attrs.define
class Report:
    """What a round was, and what was wrong with it."""

    seed: int
    faults: list[str] = attrs.Factory(list)
    not_run: list[str] = attrs.Factory(list)
    """Faults that were drawn, and that this machine does not allow."""
    walk: dict[str, int] = attrs.Factory(dict)
    """Where the cuts stood when it began."""
    tasks: int = 0
    violations: Counter[str] = attrs.Factory(Counter)
    """How many of each kind."""
    lines: list[str] = attrs.Factory(list)
    """What they are, in words."""
    seconds: float = 0.0

    def add(self, kind: str, line: str) -> None:
        """Note a violation."""
        self.violations[kind] += 1
        if len(self.lines) < LINES_SHOWN_MAX:
            self.lines.append(f"{kind}: {line}")


def drawn_faults(seed: int, rng: random.Random) -> list[Fault]:
    """Return a round's faults: each in turn, now and then with others beside it."""
    kinds = list(FAULTS)
    first = kinds[seed % len(kinds)]
    others = [one for one in ASIDE if one is not first]
    return [first, *rng.sample(others, rng.choice((0, 0, 1, 1, 2)))]


@attrs.frozen
class Choice:
    """Which faults a round may have."""

    only: Sequence[Fault] | None = None
    """These, instead of the drawn ones."""
    without: frozenset[Fault] = frozenset()
    """What this machine does not allow; where it is drawn, nothing comes in its place."""

    def wanted(self, seed: int, rng: random.Random | None = None) -> list[Fault]:
        """Return a round's faults, allowed or not, drawn as the first of all that is drawn."""
        drawn = drawn_faults(seed, rng or random.Random(seed))
        return drawn if self.only is None else list(self.only)

    def faults(self, seed: int) -> list[Fault]:
        """Return the faults that a round will have."""
        return [one for one in self.wanted(seed) if one not in self.without]


class Round:
    """One round on a machine.

    Args:
        machine: the daemon and all around it, running and idle.
        seed: all that is drawn, is drawn from it.
        walks: where the cuts go on, by bank.
        choice: of the faults.
    """

    def __init__(
        self,
        machine: Machine,
        seed: int,
        walks: dict[str, Walk],
        choice: Choice | None = None,
    ) -> None:
        self.machine = machine
        self.seed = seed
        self.walks = walks
        self.rng = random.Random(seed)
        choice = choice or Choice()
        wanted = choice.wanted(seed, self.rng)
        self.faults = [one for one in wanted if one not in choice.without]
        self.foul_s = self.rng.uniform(FOUL_SECONDS_MIN, FOUL_SECONDS_MAX)
        self.payments = self.rng.randint(PAYMENTS_MIN, PAYMENTS_MAX)
        self.manners = Manners(forgets=self.rng.random() < 0.6)
        self.promise_s = PROMISE_SECONDS
        self.host_faults = ""
        self.begin_anew = self.end_anew = False
        """Whether the daemon is started anew before, and after."""
        self.when_sent: Callable[[], None] | None = None
        """Done in the calm when nothing waits to be sent any more."""
        self.traces = 0
        self._work: list[dict[str, Any]] = []
        self._acts: list[tuple[float, Callable[[], None]]] = []
        self._calm: list[Callable[[], None]] = []
        self.report = Report(seed, [one.value for one in self.faults])
        self.report.not_run = [one.value for one in wanted if one in choice.without]
        self.report.walk = {name: walk.place for name, walk in walks.items()}

    # -- what faults use ----------------------------------------------------------------------

    def at(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something so long after the round's begin."""
        self._acts.append((seconds, act))
        self._acts.sort(key=lambda one: one[0])

    def calm(self, undo: Callable[[], None]) -> None:
        """Do something when the faults end; the last first."""
        self._calm.append(undo)

    # -- the round ----------------------------------------------------------------------------

    def run(self) -> Report:
        """Live through it, and return what was."""
        began = time.monotonic()
        machine = self.machine
        self.draw()
        try:
            self._begin()
            self._be_foul()
            self._be_calm()
            self._settle()
        except TimeoutError as error:
            self.report.add("stuck", str(error))
        machine.end_finance()
        machine.read_logs()
        for line in machine.faults:
            self.report.add("fallen", line)
        machine.faults.clear()
        try:
            self._check()
        except TimeoutError as error:
            self.report.add("stuck", str(error))
        self.report.seconds = time.monotonic() - began
        return self.report

    def draw(self) -> dict[str, Any]:
        """Draw all that is to happen, and do nothing yet; returns the plan as a person reads it."""
        machine = self.machine
        machine.rng = random.Random(self.rng.getrandbits(64))
        machine.rest_s = self.rng.choice((0.0, 0.1, 0.5))
        for place, proxy in enumerate(machine.proxies.values()):
            proxy.rng = random.Random(self.seed * 10 + place)
        for fault in self.faults:
            FAULTS[fault](self, self.rng)
        self._work = self._drawn_work()
        if self.rng.random() < POOLING_CHANCE:
            self.at(self.rng.uniform(0.0, self.foul_s / 2), self._run_pool)
        return {
            "faults": self.report.faults,
            "acts": [f"{at:.3f} {_named(act)}" for at, act in self._acts],
            "lines": [
                attrs.asdict(attrs.evolve(proxy.temper, walk=None))
                for proxy in machine.proxies.values()
            ],
            "banks": {"faults": self.host_faults, "promise_s": self.promise_s}
            | attrs.asdict(self.manners),
            "points": [attrs.asdict(point) for point in machine.points],
            "doom": [f"{after:.3f}" for after in machine.doom],
            "work": self._work,
        }

    def _begin(self) -> None:
        machine = self.machine
        machine.set_host_faults(self.host_faults)
        if self.promise_s != PROMISE_SECONDS:
            machine.apply_config(self.promise_s)
        if self.begin_anew:
            machine.again()
        self.manners.write(machine.directory)

    def _drawn_work(self) -> list[dict[str, Any]]:
        rng, scene = self.rng, self.machine.scene
        work: list[dict[str, Any]] = []

        def add(bank: str, body: dict[str, Any]) -> None:
            work.append(
                {
                    "task_id": f"R{self.seed}-{len(work)}",
                    "bank": bank,
                    "kind": body["kind"],
                    "body": body,
                    "inline": rng.random() < 0.5,
                    "after": rng.random() ** 1.5 * self.foul_s,
                }
            )

        for _ in range(self.payments):
            payer, payee = rng.sample(scene.accounts, 2)
            add(payer.bank, self._payment(payer, payee))
        for _ in range(rng.randint(1, 4)):
            account = rng.choice(scene.accounts)
            add(account.bank, {"kind": "balance", "params": {"account": account.number}})
        return work

    def _payment(self, payer: BookAccount, payee: BookAccount) -> dict[str, Any]:
        rng, scene = self.rng, self.machine.scene
        amount = f"{rng.randint(1, 99)}.{rng.randrange(100):02d}"
        if payer is scene.target and rng.random() < 0.5:
            # Back from where the rounds bring it, so that later ones have something to sweep.
            amount = f"{rng.randint(1000, 60_000)}.00"
        elif rng.random() < 0.04:
            amount = "99999999.00"
        body = transfer(scene, payer, payee, amount)
        if rng.random() < 0.04:
            body["params"]["payee"]["name"] = "查无此户有限公司"
        return body

    def _be_foul(self) -> None:
        machine = self.machine
        begin = time.monotonic()
        work = [one | {"at": begin + one["after"]} for one in self._work]
        machine.start_finance(work, f"R{self.seed}")
        while (now := time.monotonic() - begin) < self.foul_s or self._acts:
            while self._acts and self._acts[0][0] <= now:
                self._acts.pop(0)[1]()
            machine.tend()
            time.sleep(0.005)

    def _run_pool(self) -> None:
        self.machine.ask(
            lambda client: client.call("pool.run", {"pool": "main"}, deadline_s=CALL_SECONDS_MAX)
        )

    def _be_calm(self) -> None:
        machine = self.machine
        machine.doom.clear()
        for proxy in machine.proxies.values():
            proxy.be_calm()
        while self._calm:
            self._calm.pop()()
        machine.rest_s = 0.0
        machine.set_host_faults("")
        Manners().write(machine.directory)

    def _settle(self) -> None:
        """Wait until every task is at its end and told, and every pooling round over."""
        machine = self.machine
        try:
            if self.when_sent is not None:
                machine.until(self._is_all_sent, "all sent", SETTLE_SECONDS_MAX)
                self.when_sent()
            if self.promise_s != PROMISE_SECONDS:
                machine.apply_config(PROMISE_SECONDS)
            lost = _Seldom(self._has_lost)
            machine.until(lambda: machine.finance_done or lost(), "all told", SETTLE_SECONDS_MAX)
            machine.until(lambda: machine.ask(_is_over), "all closed", SETTLE_SECONDS_MAX)
        finally:
            if self.end_anew:
                machine.again()

    def _is_all_sent(self) -> bool:
        """Say whether nothing will leave any more, by two looks: a round goes on by itself."""
        known = len(self.machine.journal().acknowledged) == len(self._work)
        for _ in range(2):
            if not known or not self.machine.ask(_is_sent):
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _has_lost(self) -> bool:
        """Say whether the daemon knows nothing of a task that it acknowledged: don't wait for it."""
        journal = self.machine.journal()
        waiting = sorted(journal.acknowledged - journal.results.keys())

        def knows_all(client: BlockingClient) -> bool:
            return all(_knows(client, task_id) for task_id in waiting)

        return self.machine.ask(knows_all) is False

    # -- what must hold -----------------------------------------------------------------------

    def _check(self) -> None:
        report, machine = self.report, self.machine
        tasks: list[dict[str, Any]] = machine.insist(lambda client: every_task(client) or None)
        ours = {one["task_id"]: one for one in tasks if self._is_ours(one["task_id"])}
        report.tasks = len(ours)
        with contextlib.closing(machine.scene.open_book()) as book:
            for line in book.check():
                report.add("wrong", line)
            booked = Counter(
                payment.client_ref.partition(AGAIN)[0]
                for payment in book.payments()
                if payment.state is BookedState.DONE
            )
        for task in tasks:
            self._check_task(task, booked)
        for reference in booked:
            report.add("stray", f"payment {reference} has no task")
        self._check_told(ours)
        payments = [one["task_id"] for one in ours.values() if one["kind"] == "transfer"]
        for task_id, why in machine.whys(payments).items():
            for fault in chain_faults(why["task"]["state"], why["events"]):
                report.add("unproved", f"{task_id}: {fault}")
        for fault in machine.look_at_store():
            report.add("unsound", fault)

    def _is_ours(self, task_id: str) -> bool:
        return task_id.startswith(f"R{self.seed}-")

    def _check_task(self, task: dict[str, Any], booked: Counter[str]) -> None:
        task_id, state = task["task_id"], task["state"]
        if state in OPEN:
            self.report.add("stuck", f"{task_id} is {state}")
        if task["kind"] != "transfer":
            return
        times = booked.pop(client_ref(ENTERPRISE, TaskId(task_id)), 0)
        if times > 1:
            self.report.add("doubled", f"{task_id} is {state} and was booked {times} times")
        elif times != int(state == "succeeded") and state not in OPEN:
            self.report.add("wrong", f"{task_id} is {state} and was booked {times} times")

    def _check_told(self, ours: dict[str, dict[str, Any]]) -> None:
        journal = self.machine.journal()
        for task_id in journal.acknowledged - ours.keys():
            self.report.add("lost", f"{task_id} was acknowledged and is not there")
        for task_id, code in journal.refused.items():
            self.report.add("wrong", f"{task_id} was refused: {code}")
        for task_id, task in ours.items():
            told = set(journal.results.get(task_id, ()))
            if told and told != {task["state"]}:
                self.report.add("untold", f"{task_id} is {task['state']}, told as {sorted(told)}")
            elif not told and task_id in journal.acknowledged and task["state"] not in OPEN:
                self.report.add("untold", f"{task_id} is {task['state']} and was never told")


def _named(act: Callable[[], None]) -> str:
    """Return an act as a plan names it."""
    if isinstance(act, partial):
        given = ", ".join(repr(one) for one in act.args if isinstance(one, int | str))
        return f"{act.func.__name__}({given})"
    return act.__name__


class _Seldom:
    """Asks a question that costs something, and is rarely answered with yes, not too often."""

    def __init__(self, question: Callable[[], bool]) -> None:
        self._question = question
        self._at = time.monotonic() + SELDOM_SECONDS

    def __call__(self) -> bool:
        if time.monotonic() < self._at:
            return False
        self._at = time.monotonic() + SELDOM_SECONDS
        return self._question()


def _knows(client: BlockingClient, task_id: str) -> bool:
    try:
        client.call("task.get", {"task_id": task_id}, deadline_s=CALL_SECONDS_MAX)
    except CallError as error:
        if error.code == "NOT_FOUND":
            return False
        raise
    return True


def _is_sent(client: BlockingClient) -> bool:
    banks = client.call("status", deadline_s=CALL_SECONDS_MAX)["queue"]["banks"].values()
    return not any(bank["open"].get(state) for bank in banks for state in WAITING)


def _is_over(client: BlockingClient) -> bool:
    if client.call("status", deadline_s=CALL_SECONDS_MAX)["queue"]["open"]:
        return False
    pools = client.call("pool.list", deadline_s=CALL_SECONDS_MAX)["pools"]
    rounds = [pool["last_round"] for pool in pools]
    return all(one is None or one["state"] == "finished" for one in rounds)
