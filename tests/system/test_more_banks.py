"""Banks beyond the demonstration's, each through the real daemon and its simulated bank."""

from __future__ import annotations

from pathlib import Path

from fep.adapters.host import BookedState
from fep.client import BlockingClient
from fep.sandbox.scene import BankPlan, Scene
from tests.system.work import open_tasks, transfer

CCB = BankPlan(
    "ccb",
    "ccb_wlpt",
    "105",
    "105100000017",
    "建设银行",
    "999900000000000001",
    {"customer_id": "105999900000001", "user_id": "FEP001"},
    {"password": "demo-only"},
)
ICBC = BankPlan(
    "icbc",
    "icbc_nc",
    "102",
    "102100099996",
    "工商银行",
    "99990000000000001",
    {"user_id": "fep01.y.9999", "cis": "999900000000001"},
)
BOC = BankPlan(
    "boc",
    "boc_b2e",
    "104",
    "104100000004",
    "中国银行",
    "999900000000000003",
    {"terminal_id": "E999999", "customer_id": "104999900", "operator_id": "FEP001"},
    {"password": "demo-only"},
)
ISO = BankPlan(
    "iso",
    "iso20022",
    "999",
    "",
    "样例银行",
    "999900000000000004",
    {"initiating_party": "江枫样例制造有限公司"},
)
CIB = BankPlan(
    "cib",
    "cib_fox",
    "309",
    "309391000011",
    "兴业银行",
    "9999000000000004",
    {"customer_id": "9999000001", "user_id": "fepuser"},
    {"password": "demo-only"},
)
PAYMENTS = 6
FAULTS = (
    "silent_after_booking=0.2,close_after_booking=0.2,unknown_after_booking=0.2,"
    "signed_off=0.02,signed_off_after_booking=0.2"
)


def test_each_payment_is_booked_once_and_every_query_is_answered(directory: Path) -> None:
    with Scene(directory, banks=(CCB, ICBC, BOC, CIB, ISO), accounts_per_bank=2) as scene:
        scene.reply_timeout_s = 1.0
        scene.start_hosts(FAULTS, own={"cib": "odd_state=0.2"})
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
            for plan in scene.banks:
                payer, payee = [one for one in scene.accounts if one.bank == plan.name]
                for number in range(PAYMENTS):
                    body = transfer(scene, payer, payee, f"{number + 1}.00")
                    operator.submit(f"{plan.name}-{number}", plan.name, "transfer", body)
            scene.wait(operator, lambda c: open_tasks(c) == 0, "every payment closed")
            references = {}
            for plan in scene.banks:
                payer = next(one for one in scene.accounts if one.bank == plan.name)
                done = 0
                for number in range(PAYMENTS):
                    task = operator.call("task.get", {"task_id": f"{plan.name}-{number}"})
                    # One that was refused for want of a session is proved not to be there.
                    assert task["state"] in {"succeeded", "rejected"}, task
                    if task["state"] == "succeeded":
                        references[task["client_ref"]] = f"{number + 1}.00"
                        done += 1
                assert done >= PAYMENTS // 2
                for kind, params in (
                    ("balance", {"account": payer.number}),
                    ("transfer_status", {"task_id": f"{plan.name}-0"}),
                ):
                    body = {"kind": kind, "params": params}
                    operator.submit(f"{plan.name}-{kind}", plan.name, kind, body)
            scene.wait(operator, lambda c: open_tasks(c) == 0, "every query answered")
            states = {
                plan.name: operator.call("task.get", {"task_id": f"{plan.name}-{kind}"})["state"]
                for plan in scene.banks
                for kind in ("balance", "transfer_status")
            }
            assert set(states.values()) == {"succeeded"}
        book = scene.open_book()
        assert book.check() == []
        booked = {one.client_ref: str(one.amount) for one in book.payments()}
        assert booked == references
        assert len(book.payments()) == len(references)
        assert {one.state for one in book.payments()} == {BookedState.DONE}
        book.close()
        log = (scene.directory / "fep.log").read_text("utf-8")
        assert "demo-only" not in log
        kept = b"".join(
            one.read_bytes() for one in scene.directory.glob("state/*") if one.is_file()
        )
        assert b"<USERPASS>*********</USERPASS>" in kept
        assert b"<USERPASS>demo-only" not in kept


def test_a_refused_password_stops_one_bank_until_a_person_resumes_it(directory: Path) -> None:
    with Scene(directory, banks=(CIB, BOC), accounts_per_bank=2) as scene:
        scene.start_hosts()
        host = scene.hosts["cib"]
        host.stop()
        host.faults = "sign_on_refused"
        host.start()
        scene.write_config()
        scene.start_daemon()
        with scene.operator() as operator:

            def refused(client: BlockingClient) -> bool:
                alarms = client.call("alarm.list")["alarms"]
                return [(one["kind"], one["subject"]) for one in alarms] == [
                    ("SIGN_ON_REFUSED", "cib")
                ]

            scene.wait(operator, refused, "the alarm")
            payer, payee = [one for one in scene.accounts if one.bank == "cib"]
            operator.submit("P", "cib", "transfer", transfer(scene, payer, payee, "1.00"))
            other, another = [one for one in scene.accounts if one.bank == "boc"]
            operator.submit("O", "boc", "transfer", transfer(scene, other, another, "2.00"))
            scene.wait(
                operator,
                lambda c: c.call("task.get", {"task_id": "O"})["state"] == "succeeded",
                "the other bank goes on",
            )
            assert operator.call("task.get", {"task_id": "P"})["state"] == "queued"
            assert refused(operator)
            log = (scene.directory / "fep.log").read_text("utf-8")
            assert log.count('"link.locked_out"') == 1, "the password was shown once"
            host.stop()
            host.faults = ""
            host.start()
            operator.call("link.resume", {"bank": "cib"})
            scene.wait(operator, lambda c: open_tasks(c) == 0, "the payment goes")
            assert operator.call("task.get", {"task_id": "P"})["state"] == "succeeded"
            assert not refused(operator)
