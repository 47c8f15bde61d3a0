"""The configuration file through the protocol: drafts, saving, versions, the way back."""

from __future__ import annotations

import sqlite3
import stat
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fep.daemon import versions
from fep.daemon.settings import ConfigWriteError, replace_file
from fep.daemon.versions import TRANSITIONS, IllegalVersionError, VersionEvent, VersionState, step
from fep.domain.clock import SystemClock
from fep.sandbox.scene import BANKS, free_port
from fep.store import backup
from fep.store.database import StoreFullError
from fep.store.files import STORE_FILE
from tests.control.conftest import Start
from tests.control.rig import BANK, Rig, Wire

pytestmark = pytest.mark.req("FEP-20", "FEP-10")

OTHER = next(one for one in BANKS if one.adapter != BANK.adapter)


def on_disk(rig: Rig) -> dict[str, Any]:
    return tomllib.loads(rig.scene.config.read_text("utf-8"))


def bank_edit(**values: Any) -> dict[str, Any]:
    return {"edit": "bank", "was": BANK.name, "values": values}


async def drafted(wire: Wire, *edits: dict[str, Any], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = await wire.result("config.draft", {"edits": list(edits), **more})
    return found


async def save(wire: Wire, draft: dict[str, Any], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = await wire.result(
        "config.save", {"text": draft["text"], "base": draft["base"], **more}
    )
    return found


async def states(wire: Wire) -> list[tuple[int, str, str]]:
    """Return number, how and state of all versions, oldest first."""
    shown = await wire.result("config.versions")
    return [(one["version"], one["how"], one["state"]) for one in reversed(shown["versions"])]


async def test_a_draft_says_what_it_would_mean_and_changes_nothing(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        rig.scene.config.write_text("# by hand\n" + rig.scene.config.read_text("utf-8"), "utf-8")
        before = rig.scene.config.read_bytes()
        found = await drafted(admin, bank_edit(workers=9))
        assert found["text"].startswith("# by hand\n")
        assert found["changes"]["changed"] == [BANK.name]
        assert (found["faults"], found["writable"]) == ([], True)
        assert "-workers = 4" in found["difference"]
        assert "+workers = 9" in found["difference"]
        found = await drafted(admin, bank_edit(workers=0, port="x"))
        assert [(one["key"], one["line"] > 1) for one in found["faults"]] == [
            ("bank.0.port", True),
            ("bank.0.workers", True),
        ]
        assert "changes" not in found
        found = await drafted(admin, {"edit": "enterprise", "id": "E2", "fep_number": "F2"})
        assert found["changes"]["restart_needed"] == ["enterprise"]
        assert rig.scene.config.read_bytes() == before
        [fault] = (await admin.result("config.draft", {"text": "x = "}))["faults"]
        assert (fault["key"], fault["line"]) == ("(syntax)", 1)
        broken = {"text": "x = ", "edits": [bank_edit(workers=1)]}
        assert await admin.refusal("config.draft", broken) == "BAD_STATE"
        gone = {"edits": [{"edit": "remove_bank", "bank": "none"}]}
        assert await admin.refusal("config.draft", gone) == "NOT_FOUND"
        odd = {"text": 'bank = [{ name = "a" }]', "edits": [{"edit": "remove_bank", "bank": "a"}]}
        assert await admin.refusal("config.draft", odd) == "CONFIG_NOT_EDITABLE"


async def test_a_save_takes_one_bank_into_force_and_is_a_version(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        admin = await rig.admin()
        draft = await drafted(admin, bank_edit(workers=2))
        done = await save(admin, draft, note="fewer threads")
        assert (done["version"], done["changed"], done["restart_needed"]) == (2, [BANK.name], [])
        assert done["configuration"] == draft["digest"] == rig.daemon.config.digest
        assert on_disk(rig)["bank"][0]["workers"] == 2
        await rig.ready()
        assert await states(admin) == [(1, "start", "kept"), (2, "page", "kept")]
        shown = await admin.result("config.version", {"version": 1})
        assert "+workers = 4" in shown["difference"]
        [act] = (await admin.result("audit.list", {"limit": 1}))["acts"]
        assert (act["what"], act["name"], act["outcome"]) == ("config.save", "root", "done")
        assert "text" not in act["about"]
        assert act["about"]["note"] == "fewer threads"


async def test_a_bank_with_its_accounts_comes_and_goes(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        table = on_disk(rig)["bank"][0]
        [first, *_] = [one for one in rig.accounts if one.bank == BANK.name]
        new = {**table, "name": "second", "port": free_port()}
        rows = [{"number": "88000001", "name": "云阶示例贸易有限公司"}]
        draft = await drafted(admin, {"edit": "bank", "values": new, "accounts": rows})
        done = await save(admin, draft)
        assert done["changed"] == ["second"]
        assert done["unchanged"] == [BANK.name]
        assert {one["bank"] for one in (await admin.result("link.list"))["links"]} == {
            BANK.name,
            "second",
        }
        balance = {"kind": "balance", "params": {"account": "88000001"}}
        task = {"task_id": "B1", "bank": "second", "kind": "balance", "body": balance}
        await admin.result("task.submit", task)
        # Another name for the bank, one account changed, one new; the others' stay as they are.
        rows = [{**rows[0], "bank_title": "示例银行"}, {"number": "88000002", "name": "二号"}]
        edit = {"edit": "bank", "was": "second", "values": {"name": "third"}, "accounts": rows}
        await save(admin, await drafted(admin, edit))
        mine = [one for one in on_disk(rig)["account"] if one["bank"] == "third"]
        assert mine == [{"bank": "third", **row} for row in rows]
        assert any(one["number"] == first.number for one in on_disk(rig)["account"])
        await save(admin, await drafted(admin, {"edit": "remove_bank", "bank": "third"}))
        assert [one["name"] for one in on_disk(rig)["bank"]] == [BANK.name]
        assert {one["bank"] for one in on_disk(rig)["account"]} == {BANK.name}
        shown = (await admin.result("link.list"))["links"]
        assert [one["bank"] for one in shown] == [BANK.name]


async def test_what_would_not_run_is_refused_and_nothing_changes(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        before = rig.scene.config.read_bytes()
        draft = await drafted(admin, bank_edit(workers=2))
        faulty = {
            "text": draft["text"].replace("workers = 2", "workers = 0"),
            "base": draft["base"],
        }
        answer = await admin.ask("config.save", faulty)
        assert answer["error"]["data"]["code"] == "BAD_STATE"
        assert "bank.0.workers" in answer["error"]["message"]
        stale = {"text": draft["text"], "base": "0" * 12}
        assert await admin.refusal("config.save", stale) == "CONFIG_CHANGED"
        same = await drafted(admin)
        assert await admin.refusal("config.save", {k: same[k] for k in ("text", "base")}) == (
            "BAD_STATE"
        )
        assert rig.scene.config.read_bytes() == before
        assert await states(admin) == [(1, "start", "kept")]


async def test_a_secret_that_is_not_there_leaves_the_bank_as_it_runs(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        admin = await rig.admin()
        before = rig.scene.config.read_bytes()
        new = {
            "name": "boc",
            "adapter": "boc_b2e",
            "class": "104",
            "direct_connect_number": "C1",
            "host": "127.0.0.1",
            "port": free_port(),
            "slot": on_disk(rig)["slot"][0]["name"],
            "options": {"terminal_id": "E1", "customer_id": "1", "operator_id": "1"},
            "secrets": {"password": {"file": "none"}},
        }
        draft = await drafted(admin, {"edit": "bank", "values": new}, bank_edit(workers=2))
        assert len(draft["warnings"]) == 1
        tried = await admin.result("config.try", {"text": draft["text"], "bank": "boc"})
        assert not tried["reached"]
        assert len(tried["lacking"]) == 1
        wanted = {"text": draft["text"], "base": draft["base"]}
        answer = await admin.ask("config.save", wanted)
        assert answer["error"]["data"]["code"] == "BAD_STATE"
        assert "the next start would be refused" in answer["error"]["message"]
        assert await states(admin) == [(1, "start", "kept")]
        # A credential is known only when it is read.
        wanted["text"] = wanted["text"].replace('file = "none"', 'credential = "none"')
        answer = await admin.ask("config.save", wanted)
        assert "bank boc" in answer["error"]["message"]
        assert rig.scene.config.read_bytes() == before
        assert await states(admin) == [(1, "start", "kept"), (2, "page", "failed")]
        link = rig.daemon.links[BANK.name]  # type: ignore[index]
        assert link.is_open
        assert rig.daemon.config.banks[0].workers == 4


async def test_a_draft_is_tried_before_it_is_saved(start: Start) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        admin = await rig.admin()
        draft = await drafted(admin)
        tried = await admin.result("config.try", {"text": draft["text"], "bank": BANK.name})
        assert (tried["reached"], tried["told"], tried["lacking"]) == (
            True,
            "the link is ready",
            [],
        )
        draft = await drafted(admin, bank_edit(port=free_port()))
        tried = await admin.result("config.try", {"text": draft["text"], "bank": BANK.name})
        assert not tried["reached"]
        answer = await admin.refusal("config.try", {"text": draft["text"], "bank": "none"})
        assert answer == "UNKNOWN_BANK"
        assert await admin.refusal("config.try", {"text": "mode = 1", "bank": "x"}) == "BAD_STATE"


async def test_a_version_that_is_confirmed_stays(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        draft = await drafted(admin, bank_edit(workers=2))
        done = await save(admin, draft, confirm_s=600)
        assert "confirm_until" in done
        shown = await admin.result("config.versions")
        assert shown["pending"] | {"left_s": 0} == {"version": 2, "left_s": 0, "before": 1}
        assert 590 < shown["pending"]["left_s"] <= 600
        # One thing at a time: what comes next would hide what is to be confirmed.
        again = await drafted(admin, bank_edit(workers=3))
        code = await admin.refusal("config.save", {k: again[k] for k in ("text", "base")})
        assert code == "BAD_STATE"
        assert await admin.refusal("config.confirm", {"version": 1}) == "BAD_STATE"
        await admin.result("config.confirm", {"version": 2})
        assert "pending" not in await admin.result("config.versions")
        assert await states(admin) == [(1, "start", "kept"), (2, "page", "kept")]
        assert await admin.refusal("config.confirm", {"version": 2}) == "BAD_STATE"


async def test_what_nobody_confirms_is_taken_back(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        before = rig.scene.config.read_bytes()
        draft = await drafted(admin, bank_edit(workers=2))
        await rig.daemon.settings.save("root", draft["text"], draft["base"], "", 0.2)
        await rig.until(lambda: rig.logs.named("config.taken_back"), "the way back")
        assert rig.scene.config.read_bytes() == before
        assert rig.daemon.config.banks[0].workers == 4
        assert await states(admin) == [
            (1, "start", "kept"),
            (2, "page", "taken_back"),
            (3, "rollback", "kept"),
        ]


async def test_what_can_not_be_taken_back_is_tried_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.daemon.settings.AGAIN_SECONDS", 0.05)
    async with start() as rig:
        admin = await rig.admin()
        before = rig.scene.config.read_bytes()
        draft = await drafted(admin, bank_edit(workers=2))
        # Something stands where the new file is to be written first.
        await rig.daemon.settings.save("root", draft["text"], draft["base"], "", 0.3)
        stone = rig.scene.config.with_name(f".{rig.scene.config.name}.new")
        stone.mkdir()
        await rig.until(lambda: rig.logs.named("config.not_taken_back"), "the first try")
        stone.rmdir()
        await rig.until(lambda: rig.logs.named("config.taken_back"), "the way back")
        assert rig.scene.config.read_bytes() == before
        assert (2, "page", "taken_back") in await states(admin)


async def test_any_version_comes_back(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        first = rig.scene.config.read_bytes()
        await save(admin, await drafted(admin, bank_edit(workers=2)))
        await save(admin, await drafted(admin, bank_edit(workers=3)), confirm_s=600)
        # The one to be confirmed goes at once; an older one then comes as the next version.
        done = await admin.result("config.rollback", {"version": 2})
        assert done["state"] == "taken_back"
        assert on_disk(rig)["bank"][0]["workers"] == 2
        await admin.result("config.rollback", {"version": 1, "note": "as it was"})
        assert rig.scene.config.read_bytes() == first
        assert await states(admin) == [
            (1, "start", "kept"),
            (2, "page", "kept"),
            (3, "page", "taken_back"),
            (4, "rollback", "kept"),
            (5, "rollback", "kept"),
        ]
        assert await admin.refusal("config.rollback", {"version": 99}) == "NOT_FOUND"
        assert await admin.refusal("config.version", {"version": 99}) == "NOT_FOUND"
        page = await admin.result("config.versions", {"limit": 2, "before": 4})
        assert [one["version"] for one in page["versions"]] == [3, 2]


async def test_a_file_changed_by_hand_is_a_version_too(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        await save(admin, await drafted(admin, bank_edit(workers=2)), confirm_s=600)
        text = rig.scene.config.read_text("utf-8")
        rig.scene.config.write_text(text.replace("workers = 2", "workers = 5"), "utf-8")
        await admin.result("config.apply")
        await admin.result("config.apply")
        assert await states(admin) == [
            (1, "start", "kept"),
            (2, "page", "kept"),
            (3, "file", "kept"),
        ]
        assert "pending" not in await admin.result("config.versions")
    text = rig.scene.config.read_text("utf-8")
    rig.scene.config.write_text(text.replace("workers = 5", "workers = 6"), "utf-8")


async def test_a_restart_knows_what_it_began_with(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        before = rig.scene.config.read_bytes()
        draft = await drafted(admin, bank_edit(workers=2))
        await save(admin, draft, confirm_s=600)
    with rig.store() as connection:
        past = "2026-01-01T00:00:00.000+00:00"
        connection.execute("UPDATE configuration SET confirm_until=? WHERE number=2", (past,))
    async with start(change=lambda table: table["bank"][0].update(workers=2)) as rig:
        assert rig.daemon.config.text == draft["text"]
        await rig.until(lambda: rig.logs.named("config.taken_back"), "the way back")
        assert rig.scene.config.read_bytes() == before
        assert await states(await rig.admin()) == [
            (1, "start", "kept"),
            (2, "page", "taken_back"),
            (3, "rollback", "kept"),
        ]


LONG_PAST = "2026-01-01T00:00:00.000+00:00"


@pytest.mark.parametrize("state", ["unconfirmed", "begun"])
@pytest.mark.parametrize("released", [False, True])
async def test_what_waited_when_a_backup_was_made_is_left_after_its_restore(
    start: Start, tmp_path: Path, state: str, released: bool
) -> None:
    copy = tmp_path / "copy.sqlite"
    async with start() as rig:
        admin = await rig.admin()
        done = await save(admin, await drafted(admin, bank_edit(workers=2)), confirm_s=600)
        store = rig.daemon.config.state_dir / STORE_FILE
        backup.back_up(store, copy, SystemClock().now(), print, print)
        await admin.result("config.confirm", {"version": done["version"]})
        confirmed = rig.scene.config.read_bytes()
    with closing(sqlite3.connect(copy)) as of, rig.store() as connection:
        of.execute(
            "UPDATE configuration SET confirm_until=?, state=? WHERE number=2", (LONG_PAST, state)
        )
        if released:
            of.execute("UPDATE restored SET released_at=taken_at")
        of.commit()
        of.backup(connection)
    async with start(change=lambda table: table["bank"][0].update(workers=2)) as rig:
        admin = await rig.admin()
        assert rig.scene.config.read_bytes() == confirmed
        assert await states(admin) == [(1, "start", "kept"), (2, "page", "kept")]
        shown = await admin.result("config.versions")
        assert "a backup was restored" in shown["versions"][0]["reason"]
        assert "pending" not in shown
        assert rig.logs.named("config.left_after_restore")
        # One that is saved after the restore waits like any, also over a restart.
        await save(admin, await drafted(admin, bank_edit(workers=3)), confirm_s=600)
    async with start(change=lambda table: table["bank"][0].update(workers=3)) as rig:
        shown = await (await rig.admin()).result("config.versions")
        assert shown["pending"]["version"] == 3


async def test_a_file_changed_while_nothing_ran_is_a_version(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        await save(admin, await drafted(admin, bank_edit(workers=2)), confirm_s=600)
    async with start(change=lambda table: table["bank"][0].update(workers=7)) as rig:
        admin = await rig.admin()
        assert await states(admin) == [
            (1, "start", "kept"),
            (2, "page", "kept"),
            (3, "start", "kept"),
        ]
        assert "pending" not in await admin.result("config.versions")


@pytest.mark.parametrize("written", [True, False])
async def test_a_stop_in_the_middle_of_a_save_leaves_a_known_version(
    start: Start, written: bool
) -> None:
    async with start() as rig:
        text = rig.scene.config.read_text("utf-8")
    with rig.store() as connection:
        digest = rig.daemon.config.digest if written else "0" * 12
        connection.execute(
            "INSERT INTO configuration (machine, number, digest, at, who, how, note, state,"
            " before, confirm_until, text) VALUES (?, 2, ?, ?, 'li', 'page', '', 'begun', 1, ?, ?)",
            (
                "",
                digest,
                "2026-01-01T00:00:00.000+00:00",
                "2099-01-01T00:00:00.000+00:00" if written else None,
                text.encode(),
            ),
        )
    async with start() as rig:
        admin = await rig.admin()
        state = "unconfirmed" if written else "failed"
        assert await states(admin) == [(1, "start", "kept"), (2, "page", state)]
        shown = await admin.result("config.versions")
        assert ("pending" in shown) == written


async def test_a_store_that_takes_no_second_word_leaves_the_way_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.daemon.settings.AGAIN_SECONDS", 0.05)
    async with start() as rig:
        admin = await rig.admin()
        before = rig.scene.config.read_bytes()
        draft = await drafted(admin, bank_edit(workers=2))
        end = versions.end
        refused: list[VersionEvent] = []

        def refuse(*given: Any, **more: Any) -> Any:
            if not refused:
                refused.append(more["event"])
                raise StoreFullError("no room")
            return end(*given, **more)

        monkeypatch.setattr(versions, "end", refuse)
        await rig.daemon.settings.save("root", draft["text"], draft["base"], "", 0.5)
        assert refused == [VersionEvent.APPLIED_FOR_A_TIME]
        await rig.until(lambda: rig.logs.named("config.taken_back"), "the way back")
        assert rig.scene.config.read_bytes() == before
        assert await states(admin) == [
            (1, "start", "kept"),
            (2, "page", "taken_back"),
            (3, "rollback", "kept"),
        ]


async def test_a_way_back_that_is_barred_changes_nothing_and_raises_an_alarm(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.daemon.settings.AGAIN_SECONDS", 0.05)
    async with start() as rig:
        admin = await rig.admin()
        secret = rig.scene.config.parent / "boc.password"
        secret.write_text("a-password", "utf-8")
        secret.chmod(0o600)
        new = {
            "name": "boc",
            "adapter": "boc_b2e",
            "class": "104",
            "direct_connect_number": "C1",
            "host": "127.0.0.1",
            "port": free_port(),
            "slot": on_disk(rig)["slot"][0]["name"],
            "options": {"terminal_id": "E1", "customer_id": "1", "operator_id": "1"},
            "secrets": {"password": {"file": "boc.password"}},
        }
        await save(admin, await drafted(admin, {"edit": "bank", "values": new}))
        gone = await drafted(admin, {"edit": "remove_bank", "bank": "boc"})
        secret.unlink()
        await rig.daemon.settings.save("root", gone["text"], gone["base"], "", 0.2)
        await rig.until(lambda: ("CONFIG_STUCK", "version 3") in rig.alarms(), "the alarm")
        # A start would find what is in force.
        assert rig.scene.config.read_text("utf-8") == gone["text"]
        secret.write_text("a-password", "utf-8")
        secret.chmod(0o600)
        await rig.until(lambda: rig.logs.named("config.taken_back"), "the way back")
        assert ("CONFIG_STUCK", "version 3") not in rig.alarms()
        assert [one["name"] for one in on_disk(rig)["bank"]] == [BANK.name, "boc"]


async def test_what_somebody_wrote_by_hand_is_kept_when_a_version_goes_back(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        before = rig.scene.config.read_text("utf-8")
        await save(admin, await drafted(admin, bank_edit(workers=2)), confirm_s=600)
        by_hand = rig.scene.config.read_text("utf-8") + "# by hand\n"
        rig.scene.config.write_text(by_hand, "utf-8")
        assert await admin.refusal("config.confirm", {"version": 2}) == "BAD_STATE"
        await admin.result("config.rollback", {"version": 1})
        assert rig.scene.config.read_text("utf-8") == before
        assert (await admin.result("config.version", {"version": 3}))["text"] == by_hand
        assert await states(admin) == [
            (1, "start", "kept"),
            (2, "page", "taken_back"),
            (3, "file", "failed"),
            (4, "rollback", "kept"),
        ]


def break_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the next bank that is made fail; return a list into which its name goes."""
    make, broken = rig.daemon._make, list[str]()

    def breaks(bank: Any) -> None:
        if not broken:
            broken.append(bank.name)
            raise KeyError("a defect of an adapter")
        make(bank)

    monkeypatch.setattr(rig.daemon, "_make", breaks)
    return broken


async def test_a_bank_that_did_not_come_up_is_begun_by_the_next_apply(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        admin = await rig.admin()
        broken = break_once(rig, monkeypatch)
        draft = await drafted(admin, bank_edit(workers=2))
        wanted = {"text": draft["text"], "base": draft["base"]}
        answer = await admin.ask("config.save", wanted)
        assert "not all of it is in force" in answer["error"]["message"]
        assert broken == [BANK.name]
        # The file was put back, and the bank begun again by that.
        await rig.ready()
        assert on_disk(rig)["bank"][0]["workers"] == 4


@pytest.mark.parametrize("by_hand", ["", "# by hand\n"])
async def test_a_save_that_fails_in_the_middle_is_undone_whatever_the_file_held(
    start: Start, monkeypatch: pytest.MonkeyPatch, by_hand: str
) -> None:
    async with start(bank=True) as rig:
        await rig.ready()
        admin = await rig.admin()
        before = by_hand + rig.scene.config.read_text("utf-8")
        rig.scene.config.write_text(before, "utf-8")
        broken = break_once(rig, monkeypatch)
        in_force, accounts = rig.daemon.config, dict(rig.daemon._accounts)
        draft = await drafted(admin, bank_edit(workers=2))
        text = draft["text"].replace(on_disk(rig)["account"][0]["name"], "REFUSED")
        answer = await admin.ask("config.save", {"text": text, "base": draft["base"]})
        assert "not all of it is in force" in answer["error"]["message"]
        assert broken == [BANK.name]
        assert rig.scene.config.read_text("utf-8") == before
        assert rig.daemon.config == in_force
        assert rig.daemon._accounts == accounts
        await rig.ready()
        assert await states(admin) == [(1, "start", "kept"), (2, "page", "failed")]


async def test_what_a_start_alone_takes_is_named_until_there_is_one(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        edit = {"edit": "enterprise", "id": "E2", "fep_number": "FEP-01"}
        done = await save(admin, await drafted(admin, edit))
        assert done["restart_needed"] == ["enterprise"]
        found = await drafted(admin, bank_edit(workers=2))
        assert found["changes"]["restart_needed"] == ["enterprise"]


async def test_adapters_say_what_they_want_to_be_told(start: Start) -> None:
    async with start() as rig:
        admin = await rig.admin()
        found = {one["name"]: one for one in (await admin.result("config.adapters"))["adapters"]}
        boc = found["boc_b2e"]
        assert (boc["protocol"], boc["secrets"]) == ("http", ["password"])
        options = {one["name"]: one for one in boc["options"]}
        assert options["terminal_id"]["required"]
        assert options["path"]["default"] == "/B2EP/XmlServlet"
        assert all(one["words"] for one in options.values())


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "fep.toml"
    path.write_text("old", "utf-8")
    path.chmod(0o640)
    replace_file(path, "新")
    assert path.read_text("utf-8") == "新"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["fep.toml"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there/real.toml", tmp_path / "fep.toml"
    real.write_text("old", "utf-8")
    link.symlink_to(real)
    replace_file(link, "new")
    assert (link.is_symlink(), real.read_text("utf-8")) == (True, "new")


def test_a_file_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fep.toml"
    with pytest.raises(ConfigWriteError, match=r"fep\.toml"):
        replace_file(path, "x")
    path.write_text("old", "utf-8")
    (tmp_path / ".fep.toml.new").mkdir()
    with pytest.raises(ConfigWriteError, match="can't be written"):
        replace_file(path, "x")
    assert path.read_text("utf-8") == "old"


def test_each_state_has_its_row_and_no_other_step() -> None:
    assert TRANSITIONS.keys() == set(VersionState)
    for state in VersionState:
        for event in VersionEvent:
            if event in TRANSITIONS[state]:
                assert step(state, event) is TRANSITIONS[state][event]
            else:
                with pytest.raises(IllegalVersionError):
                    step(state, event)
