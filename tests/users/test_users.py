"""The users and their sessions over a real store, and the record that the chain covers."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pyotp
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fep.control.audit import Audit
from fep.daemon.verify import verify
from fep.domain.errors import FepError
from fep.store import audit
from fep.store.audit import Doer, Entry
from fep.store.database import Store
from fep.users import passwords
from fep.users.config import SessionLimits
from fep.users.service import UserRefusedError, Users, digest_of

GOOD = "correct-horse-battery"
BEGAN = dt.datetime(2026, 11, 27, 1, 0, tzinfo=dt.UTC)
DOER = Doer("wang", "operator", "console 127.0.0.1")


@attrs.define
class Wall:
    """A clock that a test sets."""

    at: dt.datetime = BEGAN

    def now(self) -> dt.datetime:
        return self.at

    def pass_(self, seconds: float) -> None:
        self.at += dt.timedelta(seconds=seconds)


@attrs.define
class Desk:
    path: Path
    store: Store
    wall: Wall
    users: Users
    audit: Audit

    async def refusal(self, act: Any) -> str:
        with pytest.raises(UserRefusedError) as refused:
            await act
        return refused.value.code

    async def acts(self, **wanted: Any) -> list[tuple[str, str, str]]:
        asked = {"limit": 100, "before": None, "who": "", **wanted}
        found, _ = await self.audit.page(**asked)
        return [(one["name"], one["what"], one["outcome"]) for one in found]


@pytest.fixture
async def desk(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Desk]:
    path, wall = tmp_path / "fep.sqlite", Wall()
    store = Store.at(path)
    await nursery.start(store.run)
    users = Users(store, wall, lambda: "c1", SessionLimits(100.0, 1000.0))
    yield Desk(path, store, wall, users, Audit(store, wall, lambda: "c1"))
    nursery.cancel_scope.cancel()


# -- passwords and codes ---------------------------------------------------------------------------


def test_a_hash_is_argon2id_and_says_what_it_cost() -> None:
    stored = passwords.hashed(GOOD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert passwords.matches(stored, GOOD)
    assert not passwords.matches(stored, GOOD + "x")
    assert not passwords.matches("nonsense", GOOD)
    assert not passwords.matches(passwords.decoy(), "")


@pytest.mark.parametrize("password", ["short", "x" * 201, "my-name-is-Wang", "aaaaaaaaaaab", ""])
def test_easy_passwords_are_refused(password: str) -> None:
    with pytest.raises(ValueError, match="password"):
        passwords.check_password("wang", password)


@given(st.integers(0, 10**9), st.integers(-40, 40))
def test_a_code_is_right_for_its_time_and_once(seconds: int, late: int) -> None:
    secret = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
    now = dt.datetime.fromtimestamp(1_700_000_000 + seconds, dt.UTC)
    code = pyotp.TOTP(secret).at(now)
    step = passwords.totp_step(secret, code, now + dt.timedelta(seconds=late))
    own = int(now.timestamp()) // 30
    if step:
        assert abs(int(now.timestamp() + late) // 30 - step) <= 1
        assert not passwords.totp_step(secret, code, now, used=max(step, own + 1))
    assert passwords.totp_step(secret, f"{code[:3]} {code[3:]}", now)
    assert not passwords.totp_step(secret, "", now)
    assert not passwords.totp_step(secret, "١٢٣٤٥٦", now)


@pytest.mark.parametrize("text", ["", "A" * 16, "A" * 33, "A" * 72, "a" * 32, "1" * 32])
def test_a_secret_that_is_none_is_seen(text: str) -> None:
    assert not passwords.is_totp_secret(text)
    assert passwords.is_totp_secret(passwords.new_totp_secret())


# -- users and sessions ----------------------------------------------------------------------------


async def test_a_user_logs_in_and_out(desk: Desk) -> None:
    await desk.users.add("wang", "operator", GOOD)
    assert await desk.refusal(desk.users.add("wang", "viewer", GOOD)) == "BAD_STATE"
    assert await desk.refusal(desk.users.add("fep:x", "viewer", GOOD)) == "BAD_STATE"
    assert await desk.refusal(desk.users.add("a b", "viewer", GOOD)) == "BAD_STATE"
    token = await desk.users.log_in("wang", GOOD, "", "console here")
    assert token is not None
    person = await desk.users.person(token)
    assert person is not None
    assert (person.name, person.role, person.session) == ("wang", "operator", digest_of(token))
    with closing(sqlite3.connect(desk.path)) as db:
        dump = "\n".join(db.iterdump())
    assert token not in dump
    assert GOOD not in dump
    await desk.users.log_out(person, "console here")
    assert await desk.users.person(token) is None
    assert await desk.users.log_in("wang", GOOD + "x", "", "console here") is None
    assert await desk.acts() == [
        ("wang", "console.log_in", "refused"),
        ("wang", "console.log_out", "done"),
        ("wang", "console.log_in", "done"),
    ]


async def test_a_session_ends_when_it_is_idle_or_old(desk: Desk) -> None:
    await desk.users.add("wang", "operator", GOOD)
    token = await desk.users.log_in("wang", GOOD, "", "here")
    assert token is not None
    for _ in range(9):
        desk.wall.pass_(99)
        assert await desk.users.person(token) is not None
    desk.wall.pass_(99)
    assert await desk.users.person(token, seen=False) is not None
    desk.wall.pass_(2)
    assert await desk.users.person(token) is None
    assert await desk.users.person("") is None


async def test_one_time_codes_are_asked_for_and_count_once(desk: Desk) -> None:
    await desk.users.add("wang", "operator", GOOD)
    secret = passwords.new_totp_secret()
    code = pyotp.TOTP(secret)
    wrong = desk.users.own_totp("wang", GOOD, secret, "000000")
    assert await desk.refusal(wrong) == "BAD_STATE"
    other = desk.users.own_totp("wang", GOOD + "x", secret, code.at(desk.wall.at))
    assert await desk.refusal(other) == "BAD_STATE"
    await desk.users.own_totp("wang", GOOD, secret, code.at(desk.wall.at))
    for given_code in ("", "000000", code.at(desk.wall.at)):
        assert await desk.users.log_in("wang", GOOD, given_code, "here") is None
    desk.wall.pass_(30)
    assert await desk.users.log_in("wang", GOOD, code.at(desk.wall.at), "here")
    assert await desk.users.log_in("wang", GOOD, code.at(desk.wall.at), "here") is None
    await desk.users.change("wang", drop_totp=True)
    assert await desk.users.log_in("wang", GOOD, "", "here")


async def test_the_same_code_twice_at_once_opens_one_session(desk: Desk) -> None:
    await desk.users.add("wang", "operator", GOOD)
    secret = passwords.new_totp_secret()
    await desk.users.own_totp("wang", GOOD, secret, pyotp.TOTP(secret).at(desk.wall.at))
    desk.wall.pass_(60)
    code, opened = pyotp.TOTP(secret).at(desk.wall.at), []

    async def log_in() -> None:
        opened.append(await desk.users.log_in("wang", GOOD, code, "here"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(log_in)
    assert len([one for one in opened if one]) == 1


async def test_what_changes_a_user_ends_its_sessions_but_ones_own(desk: Desk) -> None:
    await desk.users.add("wang", "operator", GOOD)
    first = await desk.users.log_in("wang", GOOD, "", "here")
    second = await desk.users.log_in("wang", GOOD, "", "there")
    assert first is not None
    assert second is not None
    assert (await desk.users.overview())[0]["sessions"] == 2
    await desk.users.own_password("wang", GOOD, GOOD + "2", keep=digest_of(first))
    assert await desk.users.person(first) is not None
    assert await desk.users.person(second) is None
    assert await desk.refusal(desk.users.own_password("wang", GOOD, GOOD)) == "BAD_STATE"
    assert await desk.refusal(desk.users.change("nobody", disabled=True)) == "NOT_FOUND"
    await desk.users.change("wang", disabled=True)
    assert await desk.users.person(first) is None
    assert await desk.users.log_in("wang", GOOD + "2", "", "here") is None


async def test_of_too_many_sessions_the_oldest_go(desk: Desk) -> None:
    from fep.users import store  # noqa: PLC0415

    await desk.users.add("wang", "operator", GOOD)
    for place in range(store.SESSIONS_OF_ONE_MAX + 3):
        desk.wall.pass_(1)
        await desk.store.write(
            partial(
                store.open_session, digest=f"d{place}", name="wang", origin="here", at=desk.wall.at
            )
        )
    with closing(sqlite3.connect(desk.path)) as db:
        left = {row[0] for row in db.execute("select digest from console_session")}
    assert left == {f"d{place}" for place in range(3, store.SESSIONS_OF_ONE_MAX + 3)}


# -- the record ------------------------------------------------------------------------------------


async def nothing() -> str:
    return "done"


async def refuse() -> None:
    raise UserRefusedError("BAD_STATE", "not now")


async def test_an_act_is_recorded_before_and_after(desk: Desk) -> None:
    about = {"bank": "pingan", "pin": "123456", "password": GOOD, "evidence": "第 7 行\0 \ud800"}
    assert await desk.audit.recorded(DOER, "link.drain", about, nothing) == "done"
    with pytest.raises(FepError):
        await desk.audit.recorded(DOER, "link.resume", {"bank": "x"}, refuse)
    found, _ = await desk.audit.page(limit=10, before=None, who="")
    assert [(one["what"], one["outcome"]) for one in found] == [
        ("link.resume", "refused"),
        ("link.drain", "done"),
    ]
    assert found[0]["refusal"] == "BAD_STATE: not now"
    assert found[1]["about"]["pin"] == found[1]["about"]["password"] == "***"
    with closing(sqlite3.connect(desk.path)) as db:
        dump = "\n".join(db.iterdump())
    assert "123456" not in dump
    assert GOOD not in dump


async def test_an_act_in_which_the_daemon_was_stopped_stays_asked(desk: Desk) -> None:
    entry = Entry(DOER, "link.drain", {"bank": "pingan"})
    await desk.store.write(lambda c: audit.ask(c, entry, BEGAN, "c1"))
    assert await desk.acts() == [("wang", "link.drain", "asked")]


async def test_what_can_not_be_recorded_is_not_done(desk: Desk) -> None:
    done: list[str] = []

    async def act() -> None:
        done.append("it")

    desk.store._closed = True
    with pytest.raises(FepError):
        await desk.audit.recorded(DOER, "link.drain", {}, act)
    assert done == []
    desk.store._closed = False


async def test_pages_of_the_record_fit_each_other(desk: Desk) -> None:
    for place in range(25):
        doer = Doer("wang" if place % 2 else "li", "operator", "here")
        await desk.audit.recorded(doer, "link.drain", {"bank": f"b{place}"}, nothing)
    seen: list[str] = []
    before = None
    while True:
        found, before = await desk.audit.page(limit=4, before=before, who="")
        assert all(one["outcome"] == "done" for one in found)
        seen += [one["about"]["bank"] for one in found]
        if before is None:
            break
    assert seen == [f"b{place}" for place in reversed(range(25))]
    assert len(await desk.acts(who="wang")) == 12
    assert await desk.acts(who="wan") == []


async def test_the_chain_proves_the_record(desk: Desk) -> None:
    for place in range(3):
        await desk.audit.recorded(DOER, "link.drain", {"bank": f"b {place}"}, nothing)
    report = verify(desk.path)
    assert report.sound, report.findings
    with closing(sqlite3.connect(desk.path)) as db, db:
        db.execute("update task_event set detail = replace(detail, 'b 1', 'b 2') where seq = 3")
    report = verify(desk.path)
    assert [one.check for one in report.findings] == ["chain"]
    with closing(sqlite3.connect(desk.path)) as db, db:
        db.execute("update task_event set detail = replace(detail, 'b 2', 'b 1') where seq = 3")
        db.execute("delete from task_event where seq = 6")
    assert not verify(desk.path).sound
