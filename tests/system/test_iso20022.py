"""ISO 20022 through the real daemon, against a bank that nobody here wrote, over folder and HTTP."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from fep.adapters.host import BookAccount
from fep.client import BlockingClient
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.sandbox.scene import BankPlan, HostProcess, Scene
from tests.system.mock_bank import MockBank, iban

OPTIONS = {"initiating_party": "江枫样例制造有限公司"}
FOLDER = BankPlan("folder", "iso20022", "999", "", "样例银行", "", OPTIONS)
WEB = BankPlan(
    "web",
    "iso20022",
    "999",
    "",
    "样例银行",
    "",
    OPTIONS
    | {
        "submit_path": "/payments",
        "status_path": "/_mock/mailbox?leave&raw",
        "balance_path": "/_mock/mailbox?leave&raw&type=camt.05",
        "statement_path": "/_mock/mailbox?leave&raw&type=camt.053",
        "probe_path": "/_mock/health",
        # Its clock stands where the test put it, and HTTP's is the machine's.
        "balance_age_max_s": 10_000_000,
    },
)
FOLDER_PAYERS = {
    "accept": "accept",
    "short": "insufficient-funds",
    "refuser": "reject-file",
    "mute": "silent",
    "boomerang": "return-later",
    "gap": "statement-gap",
    "later": "silent",
    "twice": "duplicate-file",
}
PAYEES = {"closed": "closed-account", "nobank": "bad-bank-id", "good": "accept"}
FINAL = {"succeeded", "rejected", "returned", "failed", "expired", "cancelled"}


@attrs.define
class World:
    """The bank, the daemon, and the accounts by name."""

    bank: MockBank
    scene: Scene
    operator: BlockingClient
    numbers: dict[str, str]
    count: int = 0

    def pay(self, payer: str, payee: str, amount: str = "10.00", bank: str = "folder") -> str:
        """Submit a payment and return its task."""
        self.count += 1
        task = f"{payer}-{self.count}"
        params = {
            "payer": {"account": self.numbers[payer]},
            "payee": {"account": self.numbers[payee], "name": "云阶示例贸易有限公司"},
            "amount": amount,
            "currency": "CNY",
            "purpose": "货款 <A&B>",
        }
        self.operator.submit(task, bank, "transfer", {"kind": "transfer", "params": params})
        return task

    def task(self, task: str) -> dict[str, Any]:
        found: dict[str, Any] = self.operator.call("task.get", {"task_id": task})
        return found

    def reach(self, task: str, *states: str) -> dict[str, Any]:
        """Wait until a task is in one of these states."""

        def there(_: BlockingClient) -> dict[str, Any] | None:
            found = self.task(task)
            return found if found["state"] in states else None

        try:
            found: dict[str, Any] = self.scene.wait(self.operator, there, f"{task}: {states}", 40.0)
        except TimeoutError:
            raise AssertionError((self.task(task), states)) from None
        return found

    def taken(self, task: str) -> str:
        """Wait until the bank has decided on a payment, and return its reference."""
        self.reach(task, "unknown", "accepted", "succeeded")
        reference: str = self.task(task)["client_ref"]

        def there(_: BlockingClient) -> bool:
            return any(one["end_to_end_id"] == reference for one in self.bank.payments())

        self.scene.wait(self.operator, there, f"{task}: at the bank")
        return reference

    def settle(self, task: str, *states: str) -> dict[str, Any]:
        """Move the bank's time until a payment is booked, and wait for that to be known."""
        self.taken(task)
        self.bank.advance(3)
        return self.reach(task, *(states or ("succeeded",)))

    def ask(self, kind: str, params: dict[str, Any], bank: str = "folder") -> dict[str, Any]:
        """Ask a query and return its task at its end."""
        self.count += 1
        task = f"{kind}-{self.count}"
        self.operator.submit(task, bank, kind, {"kind": kind, "params": params})
        return self.reach(task, *FINAL)

    def alarms(self) -> set[str]:
        return {one["kind"] for one in self.operator.call("alarm.list")["alarms"]}


def _accounts(names: list[str], bank: str, first: int) -> list[BookAccount]:
    return [
        BookAccount(BankName(bank), AccountNumber(iban(first + at)), f"样例{name}", Cny(0))
        for at, name in enumerate(names)
    ]


def _configuration(scene: Scene, bank: MockBank) -> dict[str, Any]:
    made = scene.configuration()
    folder, web = made["bank"]
    for one in (folder, web):
        changes = one["card"]
        one["card"] = changes | {
            "signing": {"by": "front_end"},
            # "No record" proves nothing before a file came.
            "inquiry": changes["inquiry"] | {"no_record": "never", "horizon_s": 600.0},
            "returned": {"watch_days": 7.0, "first_look_s": 600.0, "interval_s": 600.0},
        }
    del folder["host"], folder["port"]
    folder["card"]["transport"] = {"protocol": "folder"}
    folder["folder"] = {
        "out": str(bank.drop),
        "in": str(bank.pickup),
        "archive": str(bank.archive),
        "poll_s": 0.05,
        "settle_s": 0.1,
        "unreadable_s": 0.5,
    }
    folder["options"]["balance_age_max_s"] = 10_000_000
    web["port"] = bank.port
    return made


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The simulator with every behaviour, and a daemon that reaches it in both ways."""
    directory = Path(tempfile.mkdtemp(prefix="fep-i-"))
    payers = _accounts(list(FOLDER_PAYERS), "folder", 1)
    web = _accounts(["web-accept", "web-refuser"], "web", 101)
    payees = dict(zip(PAYEES, (iban(201 + at) for at in range(len(PAYEES))), strict=True))
    numbers = {one.name.removeprefix("样例"): str(one.number) for one in (*payers, *web)} | payees
    try:
        with (
            MockBank(directory) as bank,
            Scene(directory / "scene", banks=(FOLDER, WEB), accounts_per_bank=1) as scene,
        ):
            behaviours = FOLDER_PAYERS | PAYEES
            behaviours |= {"web-accept": "accept", "web-refuser": "reject-file"}
            for name, behaviour in behaviours.items():
                more: dict[str, Any] = {"balance": 5_00} if name == "short" else {}
                more |= {"parameters": {"days": 1}} if name == "boomerang" else {}
                bank.open_account(name, numbers[name], behaviour, **more)
            scene.accounts = [*payers, *web]
            scene.target = payers[0]
            scene.thresholds = {one.number: Cny(0) for one in scene.accounts}
            for place, plan in enumerate(scene.banks):
                scene._certificate(place)
                scene.hosts[plan.name] = HostProcess(plan, directory)
            scene.write_config(_configuration(scene, bank))
            scene.start_daemon()
            with scene.operator() as operator:
                scene.wait_ready(operator)
                yield World(bank, scene, operator, numbers)
    finally:
        shutil.rmtree(directory)


def test_accepted_payments_are_done_when_they_are_booked(world: World) -> None:
    found = world.settle(world.pay("accept", "good"))
    told = world.bank.payment(found["client_ref"])
    assert (told["amount"], told["booked_at"] is not None) == (1000, True)


def test_refusals_are_told_with_the_banks_reason(world: World) -> None:
    for payer, payee, amount, code in (
        ("accept", "closed", "10.00", "AC04"),
        ("accept", "nobank", "10.00", "RC01"),
        ("short", "good", "10.00", "AM04"),
        ("refuser", "good", "10.00", "FF01"),
    ):
        found = world.reach(world.pay(payer, payee, amount), "rejected")
        assert found["bank_code"] == code, found
    # What the account has is paid, whatever was refused before.
    world.settle(world.pay("short", "good", "5.00"))


def test_a_file_that_comes_again_is_no_refusal_and_no_second_payment(world: World) -> None:
    """The bank says DUPL of the same message: of the first payment that says nothing."""
    task = world.pay("twice", "good", "7.00")
    reference = world.taken(task)
    name = f"pain001-{reference}.xml"
    kept = world.bank.drop / "processed" / name
    again = world.bank.drop / f"again-{name}"
    shutil.copy(kept, again.with_suffix(".tmp"))
    again.with_suffix(".tmp").rename(again)
    failed = world.bank.drop / "failed" / again.name
    world.scene.wait(world.operator, lambda _: failed.exists(), "the bank has refused the copy")
    assert "DUPL" in failed.with_name(f"{failed.name}.findings.txt").read_text("utf-8")
    world.settle(task)
    mine = [one for one in world.bank.payments() if one["end_to_end_id"] == reference]
    assert len(mine) == 1
    assert "EVIDENCE_CONFLICT" not in world.alarms()


def test_a_silent_bank_proves_nothing_until_it_books(world: World) -> None:
    task = world.pay("mute", "good", "3.00")
    reference = world.taken(task)
    assert world.task(task)["state"] in {"unknown", "succeeded"}
    world.settle(task)
    assert world.bank.payment(reference)["booked_at"]


def test_what_was_booked_while_the_daemon_was_dead_is_found(world: World) -> None:
    task = world.pay("later", "good", "4.00")
    world.taken(task)
    world.scene.kill_daemon()
    world.bank.advance(3)
    with (world.bank.pickup / "half.xml").open("wb") as half:
        half.write(b"<?xml version='1.0'?><Document><CstmrPmtStsRpt>")
    world.scene.start_daemon()
    world.reach(task, "succeeded")
    unreadable = world.bank.archive / "unreadable"
    # What is still being written there has a name that begins with a dot.
    world.scene.wait(world.operator, lambda _: [*unreadable.glob("[0-9]*")], "the half file aside")
    assert [one.name[30:] for one in unreadable.glob("[0-9]*")] == ["half.xml"]
    assert not list(world.bank.pickup.glob("*.xml"))


def test_a_payment_that_comes_back_is_returned(world: World) -> None:
    task = world.pay("boomerang", "good", "8.00")
    world.settle(task, "succeeded", "returned")
    world.bank.advance(5)
    found = world.reach(task, "returned")
    assert found["bank_code"] == "AC04"


def test_a_statement_with_a_hole_is_not_told(world: World) -> None:
    tasks = [world.pay("gap", "good", f"{number}.00") for number in (1, 2, 3)]
    reference = [world.taken(task) for task in tasks][-1]
    for task in tasks:
        world.settle(task)
    day = world.bank.payment(reference)["settlement_date"]
    world.bank.advance(4)
    params = {"account": world.numbers["gap"], "from": day, "to": day}
    found = world.ask("statement", params)
    assert (found["state"], found["bank_code"]) == ("failed", "STATEMENT_GAP")


def test_a_statement_that_adds_up_is_told(world: World) -> None:
    paid = world.settle(world.pay("accept", "good", "2.00"))["client_ref"]
    day = world.bank.payment(paid)["settlement_date"]
    world.bank.advance(4)
    params = {"account": world.numbers["accept"], "from": day, "to": day}
    world.scene.wait(
        world.operator,
        lambda _: world.ask("statement", params)["state"] == "succeeded",
        "the statement came",
    )
    entries = world.ask("statement", params)["result"]["entries"]
    assert [(one["amount"], one["direction"]) for one in entries if one["client_ref"] == paid] == [
        ("2.00", "debit")
    ]


def test_a_balance_is_told_when_a_report_came(world: World) -> None:
    number = world.numbers["refuser"]
    found = world.ask("balance", {"account": world.numbers["twice"]})
    assert found["state"] in {"failed", "succeeded"}
    world.bank.call("POST", "/_mock/accounts/refuser/report")
    world.scene.wait(
        world.operator,
        lambda _: world.ask("balance", {"account": number})["state"] == "succeeded",
        "the report came",
    )
    result = world.ask("balance", {"account": number})["result"]
    assert (result["book"], result["available"]) == ("1000000.00", "1000000.00")


def test_the_same_bank_over_http(world: World) -> None:
    done = world.pay("web-accept", "good", "6.00", "web")
    refused = world.pay("web-refuser", "good", "6.00", "web")
    assert world.reach(refused, "rejected")["bank_code"] == "FF01"
    found = world.settle(done)
    assert world.bank.payment(found["client_ref"])["amount"] == 600
    world.bank.call("POST", "/_mock/accounts/web-accept/report")
    result = world.ask("balance", {"account": world.numbers["web-accept"]}, "web")["result"]
    assert result["book"] == "999994.00"
    number = world.numbers["web-accept"]
    [paid] = [one for one in world.bank.payments() if one["debtor_iban"] == number]
    day = paid["settlement_date"]
    told = world.ask("statement", {"account": number, "from": day, "to": day}, "web")
    assert [one["amount"] for one in told["result"]["entries"]] == ["6.00"]
    assert told["state"] == "succeeded"


def test_each_payment_was_decided_once(world: World) -> None:
    references = [one["end_to_end_id"] for one in world.bank.payments()]
    assert len(references) == len(set(references)) > 10
    log = (world.scene.directory / "fep.log").read_text("utf-8")
    assert '"lane.crashed"' not in log
    assert "Traceback" not in log
    assert not list((world.bank.drop / ".fep").iterdir())


def test_what_was_kept_reads_today_as_it_did_then(world: World) -> None:
    world.scene.stop_daemon()
    for command in (["replay", "--all", "--json"], ["verify-store", "--full"]):
        done = subprocess.run(
            [sys.executable, "-m", "fep.daemon.main", *command, "--config", world.scene.config],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-2000:])
