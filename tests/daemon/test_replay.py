"""``fep replay`` on stores that the real service wrote against the simulated banks."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import tomli_w
import trio

from bank_adapters.cmb_xml import replies as cmb_replies
from bank_adapters.pingan_b2bi import messages as pingan_messages
from bank_adapters.pingan_b2bi import replies as pingan_replies
from bank_adapters.pingan_b2bi.messages import HISTORY_ROWS_MIN
from fep.adapters.host import Answer, Fault
from fep.daemon.main import main
from fep.domain.clock import SystemClock, business_date
from fep.domain.ids import BankName
from fep.domain.order import PaymentState
from fep.links.mux import UnmatchedReply
from fep.store import files
from fep.tasks.replay import NOTHING_NOTED, SAME_BYTES
from fep.tasks.state import State
from tests.tasks.bench import (
    ACCOUNTS,
    CARD,
    CMB,
    CMB_PAYER,
    ENTERPRISE,
    OPTIONS,
    PAYER,
    PINGAN,
    STRANGER,
    Fep,
    World,
    balance,
    money,
    open_world,
    transfer,
    until,
)
from tests.tasks.codecs import changed, mute
from tests.tasks.test_archived import NO_WATCH, move

pytestmark = pytest.mark.req("FEP-23", "FEP-25")

BANKS = [PINGAN, CMB]
SEARCH_SOON: dict[str, Any] = {"inquiry": {"statement_after": 1, "no_record": "never"}}
WATCH = {"returned": {"watch_days": 2, "first_look_s": 0.05, "interval_s": 0.2}}
TOO_MUCH = "9999999.00"
TRANSFER = {PINGAN: b"4004", CMB: b"DCPAYMNT"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


def configured(world: World, banks: list[BankName] = BANKS) -> Path:
    """Write the configuration of the daemon that the bench makes."""
    value = {
        "mode": "demo",
        "state_dir": str(world.path),
        "enterprise": {"id": ENTERPRISE, "fep_number": "FEP-01"},
        "control": {"socket": "control.sock"},
        "slot": [{"name": "ukey-1", "backend": "software", "key": {"file": "key.pem"}}],
        "bank": [
            {
                "name": bank,
                "adapter": OPTIONS[bank][0],
                "class": "307",
                "direct_connect_number": "4012",
                "host": "127.0.0.1",
                "port": 1,
                "slot": "ukey-1",
                "options": OPTIONS[bank][1],
                "card": CARD,
            }
            for bank in banks
        ],
        "account": [
            {
                "number": one.number,
                "bank": one.bank,
                "name": one.name,
                "bank_code": one.bank_code,
                "bank_title": one.bank_title,
            }
            for one in ACCOUNTS.values()
            if one.bank in banks
        ],
    }
    path = world.path / "fep.toml"
    path.write_text(tomli_w.dumps(value), "utf-8")
    return path


class Desk:
    """Runs ``fep replay`` as it is typed."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = world
        self.config = configured(world)
        self._capsys = capsys

    def run(self, *words: str, status: int = 0) -> str:
        self._capsys.readouterr()
        try:
            got = main(["replay", "--config", str(self.config), *words])
        except SystemExit as end:
            got = int(str(end.code))
        told = self._capsys.readouterr()
        assert got == status, told
        return told.out if status < 2 else told.err

    def json(self, *words: str, status: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("--json", *words, status=status))
        return found

    def kinds(self, task_id: str) -> list[tuple[str, str]]:
        """Return what was kept of a task, and what it was taken for; nothing may differ."""
        messages = self.json(task_id)["messages"]
        return [(one["kind"], one["then"]) for one in messages]


@pytest.fixture
def desk(world: World, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(world, capsys)


async def pay(fep: Fep, bank: BankName, task_id: str, body: dict[str, Any], *ends: State) -> None:
    await fep.submit(task_id, bank=bank, body=body)
    await fep.becomes(task_id, *ends)


async def many_ends(fep: Fep, bank: BankName) -> None:
    """Send payments that end in most of the ways there are."""
    await fep.ready(bank)
    faults = fep.world.banks[bank].faults
    await pay(fep, bank, "DONE", money(bank), State.SUCCEEDED)
    await pay(fep, bank, "REFUSED", money(bank, TOO_MUCH), State.REJECTED)
    payer = PAYER if bank == PINGAN else CMB_PAYER
    await pay(fep, bank, "ABROAD", transfer("3.00", payer, STRANGER), State.SUCCEEDED)
    faults[Fault.SILENT_AFTER_BOOKING] = 1.0
    await pay(fep, bank, "SILENT", money(bank, "4.00"), State.UNKNOWN)
    await fep.becomes("SILENT", State.SUCCEEDED)
    faults.clear()
    faults[Fault.UNKNOWN_AFTER_BOOKING] = 1.0
    await pay(fep, bank, "UNCLEAR", money(bank, "5.00"), State.SUCCEEDED)
    faults.clear()
    faults[Fault.SILENT_BEFORE_BOOKING] = 1.0
    await pay(fep, bank, "LOST", money(bank, "6.00"), State.UNKNOWN)
    await fep.becomes("LOST", State.REJECTED)
    faults.clear()


def state_of(path: Path) -> str:
    """Return a digest of the store's files."""
    found = hashlib.sha256()
    for name in ("fep.sqlite", "fep.sqlite-wal"):
        with suppress(FileNotFoundError):
            found.update((path / name).read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize("bank", BANKS)
async def test_what_was_kept_reads_as_it_did_beside_the_daemon_that_kept_it(
    world: World, desk: Desk, bank: BankName
) -> None:
    async with world.fep(banks=[bank], card=NO_WATCH, reply_timeout_s=0.3) as fep:
        await many_ends(fep, bank)
        heard: list[bytes] = []
        world.banks[bank].host.on_data = heard.append
        before = state_of(world.path)
        value = await trio.to_thread.run_sync(desk.json, "--all")
        assert (value["tasks"], value["different"], value["differences"]) == (6, 0, [])
        assert value["messages"]["request"] == 6
        assert value["messages"]["answer"] >= 4
        assert value["messages"]["status"] >= 4
        assert value["skipped"] == {}
        kinds = await trio.to_thread.run_sync(desk.kinds, "DONE")
        # One bank tells the end at once, the other takes the payment over and tells it later.
        ends = {PINGAN: ["done "], CMB: ["taken over ", "status succeeded "]}[bank]
        [request, *told] = kinds
        assert request == ("request", SAME_BYTES)
        assert all(then.startswith(end) for (_, then), end in zip(told, ends, strict=True))
        [_, (kind, then)] = await trio.to_thread.run_sync(desk.kinds, "REFUSED")
        assert (kind, then.startswith("refused (business) ")) == ("answer", True)
        [_, (first, then), *_, (last, end)] = await trio.to_thread.run_sync(desk.kinds, "UNCLEAR")
        assert (first, then.startswith("unclear ")) == ("answer", True)
        assert (last, end.startswith("status succeeded")) == ("status", True)
        assert (await trio.to_thread.run_sync(desk.kinds, "LOST"))[-1][1].startswith(
            "status no_record"
        )
        out = await trio.to_thread.run_sync(desk.run, "DONE")
        assert "nothing differs 无差异" in out
        assert OPTIONS[bank][0] in out
        out = await trio.to_thread.run_sync(desk.run, "--all")
        assert "6 tasks, 0 differences; nothing differs 无差异" in out
        # Nothing was written, nothing was sent.
        assert state_of(world.path) == before
        assert not any(TRANSFER[bank] in data for data in heard)


CHANGES: dict[str, tuple[BankName, Any, str, Any]] = {
    "pingan says unclear to what was done": (
        PINGAN,
        pingan_replies,
        "meaning",
        lambda _codes, code: pingan_replies.Meaning("unclear" if code == "000000" else "refused"),
    ),
    "cmb takes what is finished for in progress": (
        CMB,
        cmb_replies,
        "payment_state",
        lambda *_: PaymentState.PROCESSING,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_an_adapter_that_reads_otherwise_is_noticed(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bank, module, member, other = CHANGES[name]
    async with world.fep(banks=[bank], card=NO_WATCH) as fep:
        await fep.ready(bank)
        await pay(fep, bank, "DONE", money(bank), State.SUCCEEDED)
    monkeypatch.setattr(module, member, other)
    value = desk.json("DONE", status=1)
    assert value["differs"]
    *others, answer = value["messages"]
    assert not any(one["differs"] for one in others)
    assert answer["differs"]
    then, now = {
        PINGAN: ("done 000000", "unclear 000000"),
        CMB: ("status succeeded FIN+S FIN+S", "status processing FIN+S FIN+S"),
    }[bank]
    assert (answer["then"], answer["now"]) == (then, now)
    value = desk.json("--all", status=1)
    [one] = value["differences"]
    assert (one["task_id"], one["state"]) == ("DONE", "succeeded")
    assert one["events"] == [{PINGAN: "bank_done", CMB: "proved_done"}[bank]]
    out = desk.run("--all", status=1)
    assert "DONE (" in out
    assert f"then {then}; now {now}" in out
    assert "1 tasks, 1 differences; READ OTHERWISE 有差异" in out
    assert "READ OTHERWISE 有差异" in desk.run("DONE", status=1)


async def test_a_member_of_the_result_that_is_read_otherwise_is_noticed(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome is the same word; the client would have been told another reference."""
    async with world.fep(card=NO_WATCH) as fep:
        await fep.ready()
        await pay(fep, PINGAN, "DONE", money(PINGAN), State.SUCCEEDED)
        reference = (await fep.get("DONE"))["bank_ref"]
    monkeypatch.setattr(pingan_replies, "_bank_ref", lambda _fields: "X")
    [_, answer] = desk.json("DONE", status=1)["messages"]
    assert answer["then"] == answer["now"]
    assert answer["changes"] == [
        f"result.bank_ref: {reference!r}, now 'X'",
        f"bank_ref: {reference!r}, now 'X'",
    ]
    assert answer["changes"][0] in desk.run("--all", status=1)


async def test_a_request_that_would_be_written_otherwise_is_noticed(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        await fep.ready()
        await pay(fep, PINGAN, "DONE", money(PINGAN), State.SUCCEEDED)
    write = pingan_messages.transfer

    def other(*given: Any) -> bytes:
        return write(*given).replace(b"<TranAmount>12.50<", b"<TranAmount>12.51<")

    monkeypatch.setattr(pingan_messages, "transfer", other)
    [request, _] = desk.json("DONE", status=1)["messages"]
    assert request["now"].startswith("from byte ")
    assert "b'1<" in request["now"]


def fails(*_: Any) -> Any:
    raise KeyError("Stt")


async def test_an_adapter_that_fails_is_a_finding(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        await fep.ready()
        await pay(fep, PINGAN, "DONE", money(PINGAN), State.SUCCEEDED)
    monkeypatch.setattr(pingan_replies, "outcome", fails)
    [one] = desk.json("--all", status=1)["differences"]
    assert one["now"] == "the adapter failed: KeyError: 'Stt'"


@pytest.mark.parametrize("bank", BANKS)
async def test_a_statement_line_is_found_in_its_page_again(
    world: World, desk: Desk, bank: BankName, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"banks": [bank], "reply_timeout_s": 0.3, "codec": changed(mute)}
    async with world.fep(card=SEARCH_SOON, **options) as fep:
        await fep.ready(bank)
        world.banks[bank].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await pay(fep, bank, "T1", money(bank), State.SUCCEEDED)
    kinds = desk.kinds("T1")
    assert kinds[-1][0] == "page"
    assert kinds[-1][1].startswith("line found by ")
    assert desk.json("--all")["different"] == 0
    module = pingan_replies if bank == PINGAN else cmb_replies
    name = "_is_debit" if bank == PINGAN else "_entry"
    made: Callable[..., Any] = getattr(module, name)

    def other(*given: Any) -> Any:
        found = made(*given)
        return False if bank == PINGAN else attrs.evolve(found, client_ref="OTHER", bank_ref="")

    monkeypatch.setattr(module, name, other)
    page = desk.json("T1", status=1)["messages"][-1]
    assert (page["now"], page["differs"]) == ("no line is it", True)


async def test_a_later_page_is_read_as_what_it_was_asked_as(world: World, desk: Desk) -> None:
    """Its number and the cursor it was asked by belong together."""
    card = SEARCH_SOON | {"statement": {"rows_per_page": HISTORY_ROWS_MIN}}
    async with world.fep(card=card, reply_timeout_s=0.3, codec=changed(mute)) as fep:
        await fep.ready()
        before = [f"B{number}" for number in range(1, HISTORY_ROWS_MIN + 1)]
        for number, task_id in enumerate(before, 1):
            await fep.submit(task_id, body=money(PINGAN, f"{number}.00"))
        for task_id in before:
            await fep.becomes(task_id, State.SUCCEEDED)
        world.banks[PINGAN].faults[Fault.SILENT_AFTER_BOOKING] = 1.0
        await pay(fep, PINGAN, "T1", money(PINGAN), State.SUCCEEDED)
    kind, then = desk.kinds("T1")[-1]
    assert kind == "page"
    assert re.fullmatch(r"line found by .* \(page 4013.*\)", then)


@pytest.mark.parametrize("bank", BANKS)
async def test_a_return_is_found_again(world: World, desk: Desk, bank: BankName) -> None:
    async with world.fep(banks=[bank], card=WATCH) as fep:
        await fep.ready(bank)
        world.banks[bank].faults[Fault.RETURNED] = 1.0
        await pay(fep, bank, "T1", money(bank), State.SUCCEEDED)
        world.book.take_back(bank, SystemClock().now() + dt.timedelta(minutes=2))
        await fep.becomes("T1", State.RETURNED)
    assert desk.kinds("T1")[-1] == ("page", "line that takes it back")


async def test_late_and_unmatched_answers_are_read_too(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(answers: list[Answer]) -> list[Answer]:
        return [one for one in answers for _ in range(2)]

    async with world.fep(card=NO_WATCH) as fep:
        await fep.ready()
        world.banks[PINGAN].host.changes = twice
        await pay(fep, PINGAN, "DONE", money(PINGAN), State.SUCCEEDED)
        await pay(fep, PINGAN, "ASK", balance(), State.SUCCEEDED)
        await until(
            lambda: world.on_disk("select count(*) from message where bank != ''")[0][0] >= 2
        )
    [request, answer, late] = desk.json("DONE")["messages"]
    assert (late["kind"], late["then"], late["now"]) == (
        "late answer",
        NOTHING_NOTED,
        answer["now"],
    )
    value = desk.json("--all")
    assert value["messages"]["late answer"] == 1
    assert value["messages"]["unmatched"] >= 1
    # Today's adapter finds whose it is.
    reference = world.on_disk("select client_ref from task where task_id = 'DONE'")[0][0]
    monkeypatch.setattr(pingan_replies, "payment_ref", lambda _reply: reference)
    one = desk.json("--all", status=1)["differences"][-1]
    assert (one["task_id"], one["kind"], one["now"]) == ("", "unmatched", "answers DONE")
    assert request["then"] == SAME_BYTES


async def test_archived_tasks_are_read_in_their_archive(
    world: World, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = fep.client()
        await fep.ready()
        await pay(fep, PINGAN, "OLD", money(PINGAN), State.SUCCEEDED)
        await erp.result("OLD")
        await until(lambda: world.on_disk("select delivery from task") == [(2,)])
        [year] = await trio.to_thread.run_sync(move, world)
        await pay(fep, PINGAN, "NEW", money(PINGAN), State.SUCCEEDED)
    assert [kind for kind, _ in desk.kinds("OLD")] == ["request", "answer"]
    assert desk.json("--all")["tasks"] == 2
    tomorrow = business_date(SystemClock().now()) + dt.timedelta(days=1)
    assert desk.json("--all", "--since", f"{tomorrow}")["tasks"] == 0
    assert desk.json("--all", "--since", "2026-01-01")["tasks"] == 2
    with monkeypatch.context() as patch:
        patch.setattr(pingan_replies, "_bank_ref", lambda _fields: "X")
        found = desk.json("--all", status=1)["differences"]
        assert [one["task_id"] for one in found] == ["NEW", "OLD"]
    (world.path / files.archive_name(year)).unlink()
    assert f"{files.archive_name(year)} is not here" in desk.run("OLD", status=2)
    assert desk.json("--all")["tasks"] == 1


async def test_an_answer_to_what_is_archived_is_read_with_its_order(
    world: World, desk: Desk
) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        erp = fep.client()
        await fep.ready()
        await pay(fep, PINGAN, "OLD", money(PINGAN), State.SUCCEEDED)
        await erp.result("OLD")
        await until(lambda: world.on_disk("select delivery from task") == [(2,)])
        [(data,)] = world.on_disk("select bytes from message where direction = 'received'")
        [year] = await trio.to_thread.run_sync(move, world)
        # The bank says it once more.
        [reply] = fep.units[PINGAN].parts.codec.framer().receive_data(data)
        await fep.unmatched.send(UnmatchedReply(PINGAN, reply))
        await until(lambda: world.on_disk("select count(*) from message") == [(1,)])
    assert desk.json("--all")["differences"] == []
    (world.path / files.archive_name(year)).unlink()
    assert f"{files.archive_name(year)} is not here" in desk.json("--all")["skipped"]


async def test_a_backup_is_replayed_in_the_place_of_the_store(world: World, desk: Desk) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        await fep.ready()
        await pay(fep, PINGAN, "DONE", money(PINGAN), State.SUCCEEDED)
    copy = world.path / "copy" / "fep.sqlite"
    copy.parent.mkdir()
    assert main(["backup", "--config", str(desk.config), str(copy)]) == 0
    world.store_file.unlink()
    assert desk.json("--all", "--store", str(copy))["tasks"] == 1
    assert "there is no store" in desk.run("--all", status=2)


async def test_a_bank_that_is_not_configured_is_left_out_and_said(world: World, desk: Desk) -> None:
    async with world.fep(card=NO_WATCH) as fep:
        await fep.ready()
        await pay(fep, PINGAN, "DONE", money(PINGAN), State.SUCCEEDED)
    configured(world, [CMB])
    value = desk.json("--all")
    assert (value["tasks"], value["skipped"]) == (0, {"bank pingan is not configured": 1})
    assert "left out 未回放: 1, bank pingan is not configured" in desk.run("--all")
    assert "which is not configured" in desk.run("DONE", status=2)


@pytest.mark.parametrize(
    "words",
    [[], ["T1", "--all"], ["T1", "--since", "2026-01-01"], ["--since", "2026-01-01"]],
)
async def test_wrong_usage_is_told_with_status_2(desk: Desk, words: list[str]) -> None:
    assert "fep replay: " in desk.run(*words, status=2)


async def test_what_can_not_be_said_has_status_2(world: World, desk: Desk) -> None:
    assert "there is no store" in desk.run("T1", status=2)
    world.store_file.write_text("no database" * 1000)
    assert "can't be read as a store" in desk.run("T1", status=2)
    world.store_file.unlink()
    async with world.fep() as fep:
        await fep.submit("ASK", body=balance())
        await fep.becomes("ASK", State.SUCCEEDED)
    assert "fep: NO_REPLAY: there is no task T1" in desk.run("T1", status=2)
    assert desk.json("ASK")["messages"] == []
    desk.config.write_text("mode = 1\n")
    assert "fep.toml:1:" in desk.run("T1", status=2)
