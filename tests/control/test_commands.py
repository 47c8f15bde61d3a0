"""Who may call what, with which parameters, and what each method answers on a real daemon."""

from __future__ import annotations

import sqlite3
import tomllib
from contextlib import closing
from enum import StrEnum
from typing import Any

import attrs
import pytest
import tomli_w
import trio

from fep.alarms.state import MEANINGS, About, AlarmKind
from fep.control.commands import METHODS, PROTOCOL_VERSION, ProtocolRefusal, Role, plain
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, SlotName
from fep.domain.order import Kind
from fep.store.database import StoreBusyError
from fep.store.files import STORE_FILE
from tests.control.conftest import Start
from tests.control.rig import BANK, Config, Rig, Wire
from tests.tasks.bench import empty_disk, fill_disk

EVERYBODY = "finance viewer operator admin"
PEOPLE = "viewer operator admin"
ACTING = "operator admin"
SUBMITTING = "finance operator admin"

MAY_CALL = {
    "session.open": EVERYBODY,
    "session.heartbeat": EVERYBODY,
    "session.close": EVERYBODY,
    "task.submit": SUBMITTING,
    "task.get": EVERYBODY,
    "task.list": EVERYBODY,
    "task.cancel": SUBMITTING,
    "task.why": EVERYBODY,
    "task.resolve": ACTING,
    "task.confirm": ACTING,
    "status": EVERYBODY,
    "slot.list": EVERYBODY,
    "slot.unlock": ACTING,
    "link.list": EVERYBODY,
    "link.drain": ACTING,
    "link.resume": ACTING,
    "link.test": ACTING,
    "restore.show": PEOPLE,
    "restore.release": ACTING,
    "alarm.list": EVERYBODY,
    "alarm.acknowledge": ACTING,
    "alarm.channels": PEOPLE,
    "alarm.test": ACTING,
    "config.show": PEOPLE,
    "config.check": PEOPLE,
    "config.apply": "admin",
    "config.draft": "admin",
    "config.try": "admin",
    "config.save": "admin",
    "config.confirm": "admin",
    "config.rollback": "admin",
    "config.versions": "admin",
    "config.version": "admin",
    "config.adapters": "admin",
    "events.follow": PEOPLE,
    "events.unfollow": PEOPLE,
    "pool.list": PEOPLE,
    "pool.plan": PEOPLE,
    "pool.run": ACTING,
    "pool.round": PEOPLE,
    "user.list": "admin",
    "user.add": "admin",
    "user.passwd": "admin",
    "user.change": "admin",
    "user.log_out": "admin",
    "user.own_password": PEOPLE,
    "user.own_totp": PEOPLE,
    "audit.list": PEOPLE,
}
"""Written down a second time on purpose: a role that gets more must be meant."""

QUESTIONS: dict[str, dict[str, Any]] = {
    "session.open": {"client": "x"},
    "session.heartbeat": {"seq": 1, "time": "2026-03-02T09:00:00+08:00"},
    "session.close": {},
    "task.submit": {"task_id": "NEW", "bank": BANK.name, "kind": "balance"},
    "task.get": {"task_id": "T1"},
    "task.list": {},
    "task.cancel": {"task_id": "T1"},
    "task.why": {"task_id": "T1"},
    "task.resolve": {"task_id": "U1", "outcome": "rejected", "evidence": "seen on paper 17"},
    "task.confirm": {"task_id": "U1"},
    "status": {},
    "slot.list": {},
    "slot.unlock": {"slot": f"ukey-{BANK.name}", "pin": "123456"},
    "link.list": {},
    "link.drain": {"bank": BANK.name},
    "link.resume": {"bank": BANK.name},
    "link.test": {"bank": BANK.name},
    "restore.show": {},
    "restore.release": {"evidence": "statements of today"},
    "alarm.list": {},
    "alarm.acknowledge": {"alarm_id": "none"},
    "alarm.channels": {},
    "alarm.test": {"channel": "none"},
    "config.show": {},
    "config.check": {},
    "config.apply": {},
    "config.draft": {},
    "config.try": {"text": "", "bank": BANK.name},
    "config.save": {"text": "", "base": "0123456789ab"},
    "config.confirm": {"version": 1},
    "config.rollback": {"version": 1},
    "config.versions": {},
    "config.version": {"version": 1},
    "config.adapters": {},
    "events.follow": {},
    "events.unfollow": {},
    "pool.list": {},
    "pool.plan": {"pool": "none"},
    "pool.run": {"pool": "main"},
    "pool.round": {"round_id": "none"},
    "user.list": {},
    "user.add": {"name": "wang", "role": "viewer", "password": "a-good-password"},
    "user.passwd": {"name": "wang", "password": "a-good-password"},
    "user.change": {"name": "wang", "disabled": True},
    "user.log_out": {"name": "wang"},
    "user.own_password": {"old_password": "x", "new_password": "a-good-password"},
    "user.own_totp": {"password": "x"},
    "audit.list": {},
}


def one_of_each(config: Config) -> None:
    config["control"]["clients"] |= {f"c-{role}": {"role": role.value} for role in Role}
    config["control"]["clients"]["erp-2"] = {"role": "finance"}


async def unknown(rig: Rig, task_id: str = "U1") -> None:
    """Leave a payment behind whose end is not known, as a crash does."""
    finance = await rig.finance()
    task = {"task_id": task_id, "bank": BANK.name, "kind": "transfer", "body": rig.transfer()}
    await finance.result("task.submit", task)
    await finance.result("session.close")
    with rig.store() as connection:
        at = "2026-03-02T01:00:00.000+00:00"
        connection.execute(
            "UPDATE task SET state='unknown', client_ref='F0000000000000000001', sent_at=?,"
            " inquire_at='2099-01-01T00:00:00.000+00:00' WHERE task_id=?",
            (at, task_id),
        )


def everything(rig: Rig) -> tuple[Any, ...]:
    """Return all that a refused call must leave alone: the store, and what is known in memory."""
    daemon = rig.daemon
    path = daemon.config.state_dir / STORE_FILE
    with closing(sqlite3.connect(path)) as connection:
        dumped = list(connection.iterdump())
    # Alarms of the key and of the bank's connection come and go by themselves.
    stored = [line for line in dumped if not line.startswith('INSERT INTO "alarm"')]
    slots = [plain(slot.snapshot()) for slot in daemon.ring.slots.values()]
    return stored, daemon.tasks.status(), daemon.config.digest, daemon.tasks.configuration, slots


async def key_in(rig: Rig) -> None:
    """Wait until the key is ready: after that nothing changes by itself."""
    slot = rig.daemon.ring.slots[SlotName(f"ukey-{BANK.name}")]
    await rig.until(lambda: slot.is_open, "the key")


def test_every_method_is_looked_at() -> None:
    assert METHODS.keys() == MAY_CALL.keys() == QUESTIONS.keys()
    found = {name: set(row.roles) for name, row in METHODS.items()}
    assert found == {name: {Role(one) for one in roles.split()} for name, roles in MAY_CALL.items()}


def test_what_changes_something_outlives_its_client() -> None:
    asking = {"get", "list", "why", "show", "check", "plan", "round", "status"}
    asking |= {"draft", "try", "versions", "version", "adapters", "channels"}
    for name, row in METHODS.items():
        if row.handle is not None:
            assert row.acts == (name.rpartition(".")[2] not in asking), name


async def test_each_role_may_call_what_its_row_says_and_a_refusal_changes_nothing(
    start: Start,
) -> None:
    async with start(change=one_of_each) as rig:
        await unknown(rig)
    async with start(change=one_of_each) as rig:
        operator = await rig.finance("c-operator")
        body = rig.balance()
        task = {"task_id": "T1", "bank": BANK.name, "kind": "balance", "body": body}
        await operator.result("task.submit", task)
        await key_in(rig)
        # A file on disk that config.apply would take, with another digest.
        table = rig.scene.configuration()
        one_of_each(table)
        table["tasks"]["fetch_timeout_s"] = 6.0
        rig.scene.config.write_text(tomli_w.dumps(table), "utf-8")

        wires = {role: await rig.finance(f"c-{role}") for role in Role}
        before = everything(rig)
        for role, wire in wires.items():
            for name, params in QUESTIONS.items():
                if role in MAY_CALL[name].split():
                    continue
                # Wrong parameters do not change who may.
                nonsense: tuple[Any, ...] = ({"no": "sense"}, [])
                for given in (params, *nonsense):
                    answer = await wire.ask(name, given)
                    assert answer["error"]["data"] == {"code": "NOT_PERMITTED"}, (role, name)
                    assert role.value in answer["error"]["message"]
        assert everything(rig) == before

        for role, wire in wires.items():
            for name, params in sorted(
                QUESTIONS.items(), key=lambda one: one[0] == "session.close"
            ):
                if role in MAY_CALL[name].split():
                    answer = await wire.ask(name, params)
                    code = answer.get("error", {}).get("data", {}).get("code")
                    # Of two persons one is the same who proposed: refused for that alone.
                    if (name, code) != ("task.confirm", "NOT_PERMITTED"):
                        assert code != "NOT_PERMITTED", (role, name, answer)
        assert everything(rig) != before


async def test_a_finance_system_sees_its_own_tasks_only(start: Start) -> None:
    async with start(change=one_of_each) as rig:
        first, second = await rig.finance("erp-1"), await rig.finance("erp-2")
        viewer = await rig.finance("c-viewer")
        for wire, task_id in ((first, "A1"), (second, "B1"), (first, "A2")):
            task = {"task_id": task_id, "bank": BANK.name, "kind": "balance"}
            await wire.result("task.submit", task)
        assert await listed(first) == ["A2", "A1"]
        assert await listed(second) == ["B1"]
        assert await listed(viewer) == ["A2", "B1", "A1"]
        for method in ("task.get", "task.why", "task.cancel"):
            theirs = await second.ask(method, {"task_id": "A1"})
            nobodys = await second.ask(method, {"task_id": "A9"})
            assert theirs["error"]["data"] == {"code": "NOT_FOUND"}
            # Nothing tells a foreign id from one that does not exist.
            assert theirs["error"]["message"].replace("A1", "A9") == nobodys["error"]["message"]
        assert (await viewer.result("task.get", {"task_id": "A1"}))["client"] == "erp-1"
        assert await first.result("task.cancel", {"task_id": "A1"}) == {"state": "cancelled"}
        assert (await first.result("task.get", {"task_id": "A1"}))["state"] == "cancelled"


async def listed(wire: Wire, **params: Any) -> list[str]:
    """Return the ids of all pages."""
    found: list[str] = []
    while True:
        page = await wire.result("task.list", params)
        found += [one["task_id"] for one in page["tasks"]]
        if "cursor" not in page:
            return found
        params["cursor"] = page["cursor"]


async def test_tasks_are_listed_newest_first_page_by_page(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        for number in range(7):
            kind = "balance" if number % 2 else "transfer"
            task = {"task_id": f"T{number}", "bank": BANK.name, "kind": kind}
            await admin.result("task.submit", task)
        await admin.result("task.cancel", {"task_id": "T3"})
        all_of_them = [f"T{number}" for number in reversed(range(7))]
        for limit in (1, 2, 6, 7, 500):
            assert await listed(admin, limit=limit) == all_of_them
        assert await listed(admin, state="cancelled") == ["T3"]
        assert await listed(admin, state="queued", limit=2) == [
            one for one in all_of_them if one != "T3"
        ]
        answer = await admin.ask("task.list", {"bank": "other"})
        assert answer["error"]["data"]["code"] == "UNKNOWN_BANK"
        assert BANK.name in answer["error"]["message"]
        assert len(await listed(admin, bank=BANK.name, limit=3)) == 7


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("task.submit", {"priority": 10}, "priority"),
    ("task.submit", {"priority": -1}, "priority"),
    ("task.submit", {"priority": 1.5}, "priority"),
    ("task.submit", {"priority": "1"}, "priority"),
    ("task.submit", {"expires_s": 0}, "expires_s"),
    ("task.submit", {"expires_s": -1}, "expires_s"),
    ("task.submit", {"expires_s": 30 * 86_400 + 1}, "expires_s"),
    ("task.submit", {"kind": "gift"}, "kind"),
    ("task.submit", {"kind": None}, "kind"),
    ("task.submit", {"task_id": ""}, "task_id"),
    ("task.submit", {"task_id": "x" * 65}, "task_id"),
    ("task.submit", {"task_id": "a\nb"}, "task_id"),
    ("task.submit", {"task_id": 7}, "task_id"),
    ("task.submit", {"bank": 7}, "bank"),
    ("task.submit", {"body": []}, "body"),
    ("task.submit", {"body": {"kind": "balance"}}, "params"),
    ("task.submit", {"body": {"kind": "transfer", "params": {}}}, "kind"),
    ("task.submit", {"body": {"kind": "balance", "params": {}}}, "account"),
    ("task.submit", {"body": {"kind": "balance", "params": {"account": "1"}}}, "approved"),
    ("task.submit", {"body": {"kind": "balance", "params": {}, "x": 1}}, "x"),
    ("task.submit", {"amount": "1.00"}, "amount"),
    ("task.list", {"limit": 0}, "limit"),
    ("task.list", {"limit": 501}, "limit"),
    ("task.list", {"limit": None}, "limit"),
    ("task.list", {"cursor": ""}, "cursor"),
    ("task.list", {"cursor": "-1"}, "cursor"),
    ("task.list", {"cursor": "1" * 19}, "cursor"),
    ("task.list", {"cursor": "1\n"}, "cursor"),
    ("task.list", {"cursor": 5}, "cursor"),
    ("task.list", {"state": "lost"}, "state"),
    ("task.resolve", {"outcome": "returned"}, "outcome"),
    ("task.resolve", {"evidence": "x" * 2001}, "evidence"),
    ("task.confirm", {"outcome": "returned"}, "outcome"),
    ("slot.unlock", {"pin": "1" * 65}, "pin"),
    ("slot.unlock", {"pin": 123456}, "pin"),
    ("alarm.list", {"all": "yes"}, "all"),
    ("alarm.list", {"limit": 501}, "limit"),
    ("task.list", {"kind": "lost"}, "kind"),
    ("task.list", {"find": "x" * 65}, "find"),
    ("config.draft", {"edits": [{"edit": "slot"}]}, "edit"),
    ("config.draft", {"text": "x" * 400_001}, "text"),
    ("config.save", {"base": "x" * 13}, "base"),
    ("config.save", {"confirm_s": 1}, "confirm_s"),
    ("config.version", {"version": 0}, "version"),
    ("config.versions", {"limit": 501}, "limit"),
    ("user.add", {"role": "finance"}, "role"),
    ("user.add", {"name": "x" * 33}, "name"),
    ("user.add", {"password": "x" * 201}, "password"),
    ("user.own_totp", {"totp_token": "1" * 17}, "totp_token"),
    ("audit.list", {"cursor": "x"}, "cursor"),
    ("session.heartbeat", {"seq": "1"}, "seq"),
]


async def test_parameters_beyond_their_bounds_are_refused_by_name(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        await key_in(rig)
        before = everything(rig)
        for method, change, name in WRONG:
            answer = await admin.ask(method, QUESTIONS[method] | change)
            assert "error" in answer, (method, change)
            assert answer["error"]["code"] == -32602, (method, change, answer)
            assert name in answer["error"]["message"], answer
            if "pin" in change:
                assert str(change["pin"]) not in str(answer), "a PIN is never echoed"
        for method in METHODS:
            nonsense: tuple[Any, ...] = ([], "x", 7, {"more": 1}, QUESTIONS[method] | {"more": 1})
            for wrong in nonsense:
                assert await admin.refusal(method, wrong) == -32602, (method, wrong)
        assert everything(rig) == before


@pytest.mark.req("FEP-25")
async def test_what_does_not_exist_is_told_apart_from_what_can_not_be_done(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        for method, params, code in (
            ("task.get", {"task_id": "T9"}, "NOT_FOUND"),
            ("task.why", {"task_id": "T9"}, "NOT_FOUND"),
            ("task.get", {"task_id": "no id at all\n"}, "NOT_FOUND"),
            ("task.cancel", {"task_id": "T9"}, "NOT_FOUND"),
            ("task.resolve", QUESTIONS["task.resolve"] | {"task_id": "T9"}, "NOT_FOUND"),
            ("task.confirm", {"task_id": "T9"}, "NOT_FOUND"),
            ("task.submit", QUESTIONS["task.submit"] | {"bank": "icbc"}, "UNKNOWN_BANK"),
            (
                "task.submit",
                QUESTIONS["task.submit"] | {"kind": Kind.RECEIPT.value},
                "UNSUPPORTED_KIND",
            ),
            ("slot.unlock", {"slot": "ukey-9", "pin": "123456"}, "NOT_FOUND"),
            ("slot.unlock", QUESTIONS["slot.unlock"] | {"pin": "123"}, "KEY_UNAVAILABLE"),
            ("slot.unlock", QUESTIONS["slot.unlock"] | {"pin": "1" * 17}, "KEY_UNAVAILABLE"),
            ("slot.unlock", QUESTIONS["slot.unlock"] | {"pin": "12 4\x07"}, "KEY_UNAVAILABLE"),
            ("link.drain", {"bank": "icbc"}, "UNKNOWN_BANK"),
            ("link.resume", {"bank": "icbc"}, "UNKNOWN_BANK"),
            ("alarm.acknowledge", {"alarm_id": "x"}, "NOT_FOUND"),
            ("alarm.test", {"channel": "x"}, "NOT_FOUND"),
            ("pool.plan", {"pool": "none"}, "NOT_FOUND"),
            ("pool.run", {"pool": "none"}, "NOT_FOUND"),
            ("pool.round", {"round_id": "none"}, "NOT_FOUND"),
        ):
            assert await admin.refusal(method, params) == code, method
        # What is not there is said with what there is.
        answer = await admin.ask("slot.unlock", {"slot": "ukey-9", "pin": "123456"})
        assert f"ukey-{BANK.name}" in answer["error"]["message"]


async def test_two_persons_close_a_payment_whose_end_is_unknown(start: Start) -> None:
    async with start() as rig:
        await unknown(rig)
    async with start() as rig:
        ann, bob = await rig.admin("ann"), await rig.admin("bob")
        assert await bob.refusal("task.confirm", {"task_id": "U1"}) == "BAD_STATE"
        resolve = {"task_id": "U1", "outcome": "succeeded", "evidence": "statement 3, line 9"}
        thin = resolve | {"evidence": "  yes     "}
        assert await ann.refusal("task.resolve", thin) == "BAD_STATE"
        proposed = await ann.result("task.resolve", resolve)
        assert proposed == {"task_id": "U1", "proposed": "succeeded", "needs": "task.confirm"}
        assert (await ann.result("task.get", {"task_id": "U1"}))["state"] == "unknown"
        assert await ann.refusal("task.confirm", {"task_id": "U1"}) == "NOT_PERMITTED"
        confirmed = await bob.result("task.confirm", {"task_id": "U1"})
        assert confirmed == {"task_id": "U1", "state": "succeeded"}
        chain = (await ann.result("task.why", {"task_id": "U1"}))["events"]
        assert "ann proposed, bob confirmed: statement 3, line 9" in chain[-1]["cause"]
        assert await bob.refusal("task.confirm", {"task_id": "U1"}) == "BAD_STATE"


async def test_a_bank_is_drained_and_resumed_also_over_a_restart(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        drained = await admin.result("link.drain", {"bank": BANK.name})
        assert drained == {"bank": BANK.name, "drained": True}
        (link,) = (await admin.result("link.list"))["links"]
        assert (link["bank"], link["drained"], link["in_flight"]) == (BANK.name, True, 0)
    async with start() as rig:
        admin = await rig.admin()
        assert (await admin.result("link.list"))["links"][0]["drained"] is True
        resumed = await admin.result("link.resume", {"bank": BANK.name})
        assert resumed == {"bank": BANK.name, "drained": False}
        assert (await admin.result("link.list"))["links"][0]["drained"] is False


async def test_the_daemon_at_a_glance(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        await admin.result("task.submit", QUESTIONS["task.submit"])
        status = await admin.result("status")
        assert status["protocol"] == PROTOCOL_VERSION
        assert status["queue"]["open"] == 1
        assert status["configuration"] == rig.daemon.config.digest
        assert status["uptime_s"] >= 0
        assert list(status["slots"]) == [f"ukey-{BANK.name}"]
        assert list(status["links"]) == [BANK.name]
        assert status["store_full"] is False
        (slot,) = (await admin.result("slot.list"))["slots"]
        assert slot["name"] == f"ukey-{BANK.name}"
        assert isinstance(slot["state"], str)
        (pool,) = (await admin.result("pool.list"))["pools"]
        assert (pool["pool"], pool["members"], pool["last_round"]) == ("main", 1, None)


async def test_a_finance_system_sees_the_alarms_of_its_own_tasks_and_of_what_all_have(
    start: Start,
) -> None:
    def two(config: Config) -> None:
        config["control"]["clients"]["erp-2"] = {"role": "finance"}
        config["control"]["clients"]["desk"] = {"role": "viewer"}

    async with start(change=two) as rig:
        names = {"T1": "erp-1", "T2": "erp-2"}
        wires = {name: await rig.finance(name) for name in names.values()}
        for task_id, name in names.items():
            task = {"task_id": task_id, "bank": BANK.name, "kind": "balance"}
            await wires[name].result("task.submit", task)
        alarms = rig.daemon.alarms
        for alarm in alarms.active():
            alarms.clear(alarm.kind, alarm.subject)
        about = {About.TASK: ["T1", "T2"], About.CLIENT: ["erp-1", "erp-2"], About.DAEMON: ["x"]}
        for kind in AlarmKind:
            for subject in about[MEANINGS[kind].about]:
                alarms.raise_alarm(kind, subject, f"of {subject}")
        await rig.daemon._store.write(lambda _: None)  # what was handed over before is on disk
        ours = {"erp-1": {"T1", "erp-1", "x"}, "erp-2": {"T2", "erp-2", "x"}}
        everybody = {name for one in ours.values() for name in one}
        wires["desk"], wires["li"] = await rig.finance("desk"), await rig.admin("li")
        for params in ({}, {"all": True, "limit": 500}):
            for name, wire in wires.items():
                shown = (await wire.result("alarm.list", params))["alarms"]
                told = {(one["kind"], one["subject"]) for one in shown if one["cause"][:3] == "of "}
                assert told == {
                    (kind.value, subject)
                    for kind in AlarmKind
                    for subject in about[MEANINGS[kind].about]
                    if subject in ours.get(name, everybody)
                }
        # What others have takes no place of a page.
        for task_id in ("T2", "T1", "T2"):
            alarms.clear(AlarmKind.UNKNOWN_OVERDUE, task_id)
            alarms.raise_alarm(AlarmKind.UNKNOWN_OVERDUE, task_id, "once more")
        await rig.daemon._store.write(lambda _: None)
        shown = (await wires["erp-1"].result("alarm.list", {"all": True, "limit": 1}))["alarms"]
        assert [(one["subject"], one["cause"]) for one in shown] == [("T1", "once more")]


async def test_alarms_are_listed_acknowledged_and_kept(start: Start) -> None:
    async with start() as rig:
        admin, finance = await rig.admin("ann"), await rig.finance()
        await finance.aclose()

        async def lost(**params: Any) -> list[dict[str, Any]]:
            shown = (await admin.result("alarm.list", params))["alarms"]
            return [one for one in shown if one["kind"] == "CLIENT_LOST"]

        await rig.until(lambda: ("CLIENT_LOST", "erp-1") in rig.alarms(), "the alarm")
        (alarm,) = await lost()
        acknowledged = await admin.result("alarm.acknowledge", {"alarm_id": alarm["alarm_id"]})
        assert acknowledged["alarm_id"] == alarm["alarm_id"]
        assert (await lost())[0]["acknowledged_by"] == "ann"
        await rig.finance()
        await rig.until(lambda: ("CLIENT_LOST", "erp-1") not in rig.alarms(), "its end")
        assert await lost() == []
        (cleared,) = await lost(all=True)
        assert cleared["alarm_id"] == alarm["alarm_id"]
        code = await admin.refusal("alarm.acknowledge", {"alarm_id": alarm["alarm_id"]})
        assert code == "NOT_FOUND"
        shown = (await admin.result("alarm.list", {"all": True, "limit": 1}))["alarms"]
        assert len(shown) == 1


async def test_the_configuration_is_shown_checked_and_applied(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        shown = await admin.result("config.show")
        assert shown["digest"] == rig.daemon.config.digest
        assert rig.token not in str(shown)
        assert await admin.result("config.check") == {"faults": []}
        good = rig.scene.config.read_text("utf-8")
        rig.scene.config.write_text(good.replace('adapter = "pingan_b2bi"', 'adapter = "x"'))
        (fault,) = (await admin.result("config.check"))["faults"]
        assert "adapter" in fault
        answer = await admin.ask("config.apply")
        assert answer["error"]["data"] == {"code": "BAD_STATE"}
        assert "nothing was changed" in answer["error"]["message"]
        assert (await admin.result("config.show")) == shown
        rig.scene.config.write_text(good.replace("workers = 4", "workers = 2"))
        applied = await admin.result("config.apply")
        assert applied["changed"] == [BANK.name]
        assert applied["configuration"] != shown["digest"]
        assert (await admin.result("config.show"))["digest"] == applied["configuration"]


@pytest.mark.parametrize("cut", ["while answers come home", "while the disk is full"])
async def test_a_bank_whose_taking_out_was_cut_off_is_taken_out_by_the_next_apply(
    start: Start, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    async with start(bank=True, faults="silent_after_booking=1") as rig:
        await rig.ready()
        admin, finance = await rig.admin(), await rig.finance()
        link = rig.daemon.links[BankName(BANK.name)]
        paid = {"task_id": "SENT", "bank": BANK.name, "kind": "transfer", "body": rig.transfer()}
        await finance.result("task.submit", paid)
        state = "select state from task where task_id = 'SENT'"
        await rig.until(lambda: rig.stored(state) == [("sending",)], "the payment is sent")
        table = tomllib.loads(rig.scene.config.read_text("utf-8"))
        del table["bank"], table["account"], table["pool"]
        rig.scene.config.write_text(tomli_w.dumps(table), "utf-8")
        monkeypatch.setattr("fep.daemon.app.APPLY_SECONDS_MAX", 0.5)
        store = rig.daemon._store
        if cut == "while the disk is full":
            monkeypatch.setattr("fep.daemon.app.DRAIN_SECONDS_MAX", 0.01)
            await fill_disk(store)
        with pytest.raises(ProtocolRefusal, match="an apply tries it again: not done"):
            await rig.daemon.apply("SIGHUP")
        assert rig.stored(state) == [("sending",)]
        await empty_disk(store)
        assert (await admin.result("config.apply"))["removed"] == [BANK.name]
        assert rig.stored(state) == [("unknown",)]
        assert ("LANE_FAILED", BANK.name) in rig.alarms()
        assert not link.is_open
        evidence = {"task_id": "SENT", "outcome": "succeeded", "evidence": "line 4 of today"}
        await admin.result("task.resolve", evidence)


@pytest.mark.parametrize("error", [StoreBusyError("held"), KeyError("a defect")])
async def test_a_bank_that_was_ended_and_not_begun_is_begun_by_the_next_apply(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        admin = await rig.admin()
        keep_drained, refusals = rig.daemon.tasks.keep_drained, [error]

        async def refused_once() -> None:
            if refusals:
                raise refusals.pop()
            await keep_drained()

        monkeypatch.setattr(rig.daemon.tasks, "keep_drained", refused_once)
        before = rig.scene.config.read_text("utf-8")
        rig.scene.config.write_text(before.replace("workers = 4", "workers = 2"), "utf-8")
        answer = await admin.ask("config.apply")
        assert "not all of it is in force, an apply tries it again: " in answer["error"]["message"]
        # Also by the file as it was: what does not run is not unchanged.
        rig.scene.config.write_text(before, "utf-8")
        with trio.fail_after(10.0):
            assert (await admin.result("config.apply"))["changed"] == [BANK.name]
            await rig.ready()
        assert (await admin.result("config.apply"))["unchanged"] == [BANK.name]


def test_a_snapshot_is_plain_json() -> None:
    class Colour(StrEnum):
        RED = "red"

    @attrs.frozen
    class Inner:
        colour: Colour

    now = SystemClock().now()

    @attrs.frozen
    class Outer:
        name: str
        at: Any
        inner: Inner
        many: tuple[int, ...]

    value = plain(Outer("a", now, Inner(Colour.RED), (1, 2)))
    assert value["inner"] == {"colour": "red"}
    assert value["at"].startswith(f"{now:%Y-%m-%dT%H:%M:%S}")
    assert [*value["many"]] == [1, 2]
