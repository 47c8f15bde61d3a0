"""A session over every bank at once in one daemon, under every fault (the short form of 1,000).

``FEP_TEST_OPERATIONS`` sets how many; 1,000 take about two minutes.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from fep.adapters import registry
from fep.adapters.host import BookAccount, BookedState, BookPayment, own_faults
from fep.client import BlockingClient
from fep.domain.clock import SystemClock, business_date
from fep.domain.order import Kind
from fep.sandbox.book import SqliteBook
from fep.sandbox.scene import BankPlan, Scene
from fep.tasks.state import FINAL, State
from tests.system.plans import all_plans
from tests.system.work import every_task, transfer

OPERATIONS = int(os.environ.get("FEP_TEST_OPERATIONS", "1000"))
SECONDS_MAX = 300.0
FAULTS = (
    "silent_before_booking=0.02,silent_after_booking=0.02,close_before_booking=0.02,"
    "close_after_booking=0.02,unknown_after_booking=0.03,landed=0.01,returned=0.02,"
    "throttled=0.03,signed_off=0.01,signed_off_after_booking=0.02,delayed=0.02,split=0.1,"
    "twice=0.01,cut=0.01,noise=0.01,wrong_charset=0.02,stale_balance=0.02,line_missing=0.05,"
    "odd_currency=0.02"
)
BATCHES = 0.2
"""Share of the payments that are batches, where the bank takes them."""
ROWS = ("01", "02", "03")
"""Fen of a batch's rows: no payment has the same amount as another."""
OWN_CHANCE = 0.02
"""Of each fault that is one bank's own."""

SWEEP_CHANCE = 0.3
"""Of the payments at a bank with a pooling trade of its own."""

PARAMS = {
    Kind.BALANCE: ("account",),
    Kind.STATEMENT: ("account", "from", "to"),
    Kind.RETURNED_PAYMENTS: ("account", "from", "to"),
    Kind.BANK_CODE_LOOKUP: ("bank_class",),
}
"""Of each kind of query."""


def own(plan: BankPlan) -> str:
    # A refused password stops its bank until a person comes: not here.
    names = set(own_faults(registry.host(plan.adapter))) - {"sign_on_refused"}
    return ",".join(f"{name}={OWN_CHANCE}" for name in sorted(names))


def bodies(scene: Scene, rng: random.Random) -> list[tuple[str, str, dict[str, Any]]]:
    """Return id, bank and body of each operation, banks and kinds mixed."""
    found = []
    today = business_date(SystemClock().now()).isoformat()
    by_bank: dict[str, list[BookAccount]] = {}
    for account in scene.accounts:
        by_bank.setdefault(account.bank, []).append(account)
    for number in range(OPERATIONS):
        plan = scene.banks[number % len(scene.banks)]
        payer = rng.choice(by_bank[plan.name])
        kinds = [one for one in PARAMS if one in registry.adapter(plan.adapter).capabilities]
        kind = rng.choice((Kind.TRANSFER, rng.choice(kinds)))
        others = [one for one in scene.accounts if one.number != payer.number]
        capabilities = registry.adapter(plan.adapter).capabilities
        has_batches, sweeps = Kind.BATCH_TRANSFER in capabilities, Kind.POOL_SWEEP in capabilities
        if kind is Kind.TRANSFER and has_batches and rng.random() < BATCHES:
            body = batch(scene, payer, rng.choices(others, k=len(ROWS)), number)
        elif kind is Kind.TRANSFER and sweeps and rng.random() < SWEEP_CHANCE:
            parent, child = by_bank[plan.name]
            ways = {"parent": {"account": parent.number}, "child": {"account": child.number}}
            way = {"direction": rng.choice(("up", "down")), "currency": "CNY"}
            params = {**ways, **way, "amount": f"{number + 1}.00"}
            body = {"kind": Kind.POOL_SWEEP.value, "params": params}
        elif kind is Kind.TRANSFER:
            body = transfer(scene, payer, rng.choice(others), f"{number + 1}.00")
        else:
            known = {"account": payer.number, "from": today, "to": today, "bank_class": "308"}
            body = {"kind": kind.value, "params": {name: known[name] for name in PARAMS[kind]}}
        found.append((f"{plan.name}-{number}", plan.name, body))
    return found


def batch(
    scene: Scene, payer: BookAccount, payees: list[BookAccount], number: int
) -> dict[str, Any]:
    """Return the body of a batch; its rows' amounts are the task's number and their own fen."""
    singles = [
        transfer(scene, payer, payee, f"{number + 1}.{row}")["params"]
        for row, payee in zip(ROWS, payees, strict=True)
    ]
    rows = [{"payee": one["payee"], "amount": one["amount"]} for one in singles]
    params = {"payer": {"account": payer.number}, "rows": rows}
    return {"kind": Kind.BATCH_TRANSFER.value, "params": params}


def open_of(client: BlockingClient) -> Counter[str]:
    """Return how many tasks of each bank are not at their end."""
    return Counter(one["bank"] for one in every_task(client) if State(one["state"]) not in FINAL)


def test_each_payment_is_in_the_books_once_and_no_bank_holds_up_another(directory: Path) -> None:
    rng = random.Random(20261126)
    plans = all_plans()
    with Scene(directory, banks=plans, accounts_per_bank=2) as scene:
        scene.reply_timeout_s = 1.0
        scene.start_hosts(FAULTS, own={plan.name: own(plan) for plan in plans})
        scene.write_config()
        scene.start_daemon()
        down = plans[0].name
        with scene.operator() as operator:
            scene.wait_ready(operator)
            # One bank is not there while all the others work.
            scene.hosts[down].kill()
            for task_id, bank, body in bodies(scene, rng):
                operator.submit(task_id, bank, body["kind"], body)

            def others_done(client: BlockingClient) -> bool:
                left = open_of(client)
                return all(bank == down or n <= landed(scene, bank) for bank, n in left.items())

            scene.wait(operator, others_done, "every bank but one is done", SECONDS_MAX)
            assert open_of(operator)[down] > 0
            scene.hosts[down].start()
            scene.wait(
                operator,
                lambda client: all(n <= landed(scene, b) for b, n in open_of(client).items()),
                "the bank that was down is done",
                SECONDS_MAX,
            )
            tasks = {one["task_id"]: one for one in every_task(operator)}
        check_books(scene, tasks)
        check_secrets(scene)


def check_secrets(scene: Scene) -> None:
    """Check that what was written bears no bank's password or key."""
    files = [one for one in (scene.directory / "state").rglob("*") if one.is_file()]
    files.append(scene.directory / "fep.log")
    written = b"".join(one.read_bytes() for one in files)
    assert b"<PASSWORD>***" in written, "a request of a bank with a password is kept"
    for plan in scene.banks:
        for name, secret in plan.secrets.items():
            assert secret.encode() not in written, f"{name} of {plan.name} was written"


def landed(scene: Scene, bank: str) -> int:
    """Return how many payments wait for a person at a bank: they never end here."""
    book = scene.open_book()
    try:
        return sum(p.bank == bank and p.state is BookedState.LANDED for p in book.payments())
    finally:
        book.close()


def check_payment(
    book: SqliteBook, task: dict[str, Any], state: str, payment: BookPayment | None
) -> None:
    times = 0 if payment is None else book.times_booked(payment.client_ref)
    if state in {"succeeded", "returned"}:
        assert times == 1, (task, payment)
    elif state in {"rejected", "failed"}:
        assert times == 0, (task, payment)
    else:
        assert payment is not None, task
        assert payment.state is BookedState.LANDED, (task, payment)


def check_rows(book: SqliteBook, task: dict[str, Any], rows: list[BookPayment | None]) -> None:
    told = (task["result"] or {}).get("rows")
    if told is not None:
        for one, payment in zip(told, rows, strict=True):
            check_payment(book, task, one["state"], payment)
    elif State(task["state"]) in FINAL:
        for payment in rows:
            check_payment(book, task, task["state"], payment)
    else:
        # It waits for those that landed.
        assert BookedState.LANDED in {one.state for one in rows if one is not None}, task


def check_books(scene: Scene, tasks: dict[str, dict[str, Any]]) -> None:
    assert len(tasks) == OPERATIONS
    book = scene.open_book()
    try:
        assert book.check() == []
        # The amount is the task's number: no two payments have the same.
        payments = {(str(one.bank), str(one.amount)): one for one in book.payments()}
        assert len(payments) == len(book.payments())
        for task_id, task in tasks.items():
            bank, _, number = task_id.rpartition("-")
            if task["kind"] == "batch_transfer":
                mine = [payments.pop((bank, f"{int(number) + 1}.{row}"), None) for row in ROWS]
                check_rows(book, task, mine)
            elif task["kind"] in ("transfer", "pool_sweep"):
                payment = payments.pop((bank, f"{int(number) + 1}.00"), None)
                check_payment(book, task, task["state"], payment)
        assert payments == {}, "nobody asked for these"
    finally:
        book.close()
    states = Counter(one["state"] for one in tasks.values())
    assert states["succeeded"] > OPERATIONS // 2, states
    log = (scene.directory / "fep.log").read_text("utf-8")
    assert '"lane.crashed"' not in log
    assert "Traceback" not in log
