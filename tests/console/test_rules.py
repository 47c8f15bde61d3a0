"""Who may do what over HTTP: roles, the forms' marks, sessions, limits. Against the real port."""

from __future__ import annotations

import contextlib
import gc
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from fep.alarms.state import AlarmKind
from fep.console import limits, live, throttle
from fep.console.pages import PAGES
from fep.domain.ids import BankName
from fep.users.service import digest_of
from tests.console.rig import PASSWORD, PEOPLE, STORE_FILE, Console, consoling
from tests.control.rig import BANK, Logs, running

pytestmark = pytest.mark.req("FEP-10")


@pytest.fixture
async def console(directory: Path, key: Path, logs: Logs) -> AsyncIterator[Console]:
    async with consoling(directory, key, logs) as found:
        yield found


def stored(console: Console, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(console.rig.daemon.config.state_dir / STORE_FILE)) as db:
        return db.execute(sql).fetchall()


# -- roles -----------------------------------------------------------------------------------------

READS = ["/", "/banks", "/slots", "/tasks", "/tasks.csv", "/alarms", "/accounts", "/audit", "/me"]
ACTS = [
    f"/banks/{BANK.name}/drain",
    f"/banks/{BANK.name}/resume",
    f"/banks/{BANK.name}/test",
    "/slots/none/unlock",
    "/tasks/T1/resolve",
    "/tasks/T1/confirm",
    "/tasks/T1/cancel",
    "/alarms/acknowledge",
    "/alarms/channels/none/test",
    "/audit/verify",
]
ADMINISTERS = [
    "/users",
    "/users/vera",
    "/config/bank",
    "/config/remove",
    "/config/enterprise",
    "/config/text",
    "/config/test",
    "/config/apply",
    "/config/confirm",
    "/config/take-back",
    "/config/versions/1",
]
CONFIGURES = ["/config", "/config/file", "/config/bank", "/config/text", "/config/versions/1"]


def test_every_route_is_named_here() -> None:
    named = {*READS, *ADMINISTERS, "/slots/none/unlock", "/tasks/T1", "/logout", "/login", "/keep"}
    named |= {*CONFIGURES, *ACTS, "/live", "/pictures", "/audit/check", "/me/password", "/me/totp"}
    known = {
        path.replace("{bank}", BANK.name)
        .replace("{slot}", "none")
        .replace("{channel}", "none")
        .replace("{task_id}", "T1")
        .replace("{name}", "vera")
        .replace("{number}", "1")
        for page in PAGES
        for path, _, _ in page.routes
    }
    assert named == known


async def test_nobody_sees_or_does_anything_without_a_login(console: Console) -> None:
    stranger = console.browser()
    await stranger.get("/login")
    for path in [
        *READS,
        *CONFIGURES,
        "/users",
        "/live",
        "/pictures",
        "/audit/check",
        "/no-such-page",
    ]:
        answer = await stranger.get(path)
        assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")
    for path in [*ACTS, *ADMINISTERS, "/logout", "/me/password", "/me/totp"]:
        answer = await stranger.post(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
    assert (await stranger.get("/static/console.css")).status_code == 200
    assert (await stranger.get("/static/../app.py")).status_code in {303, 404}


async def test_each_role_may_do_its_own(console: Console, logs: Logs) -> None:
    people = {role: await console.person(user) for user, role in PEOPLE.items() if user != "otto"}
    for role, person in people.items():
        for path in READS:
            assert (await person.get(path)).status_code == 200, (role, path)
        for path in ACTS:
            answer = await person.post(path)
            assert (answer.status_code == 403) == (role == "viewer"), (role, path)
        for path in ADMINISTERS:
            answer = await person.post(path)
            assert (answer.status_code == 403) == (role != "admin"), (role, path)
        assert ((await person.get("/users")).status_code == 200) == (role == "admin")
        for path in CONFIGURES:
            assert ((await person.get(path)).status_code == 403) == (role != "admin"), (role, path)
    assert len(logs.named("authz.denied")) == (len(ACTS) + 2 * len([*ADMINISTERS, *CONFIGURES]) + 2)
    drained = await people["operator"].post(f"/banks/{BANK.name}/drain")
    assert (drained.status_code, drained.headers["location"]) == (303, "/banks")
    assert console.rig.daemon.tasks.lanes[BankName(BANK.name)].drained
    assert "已暂停" in (await people["operator"].get("/banks")).text


# -- forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "mark"),
    [
        ({}, "none"),
        ({}, "wrong"),
        ({"origin": "http://evil.example"}, "right"),
        ({"origin": "null"}, "right"),
        ({"sec-fetch-site": "cross-site"}, "right"),
        ({"x-csrf": "0" * 64}, "right"),
    ],
)
async def test_a_form_that_is_not_ours_does_nothing(
    console: Console, headers: dict[str, str], mark: str
) -> None:
    person = await console.person("olaf")
    fields = {"none": {}, "wrong": {"csrf": "0" * 64}, "right": {"csrf": person.csrf}}[mark]
    answer = await person.http.post(f"/banks/{BANK.name}/drain", data=fields, headers=headers)
    assert answer.status_code == 403
    assert not console.rig.daemon.tasks.lanes[BankName(BANK.name)].drained
    htmx = {"x-csrf": person.csrf, "hx-request": "true", "origin": console.url}
    answer = await person.http.post(f"/banks/{BANK.name}/drain", headers=htmx)
    assert answer.status_code == 303


async def test_anothers_mark_is_worth_nothing(console: Console) -> None:
    olaf, otto = await console.person("olaf"), await console.person("otto")
    olaf.csrf = otto.csrf
    assert (await olaf.post(f"/banks/{BANK.name}/drain")).status_code == 403
    login = console.browser()
    await login.get("/login")
    login.csrf = otto.csrf
    assert (await login.post("/login", user="olaf", password=PASSWORD)).status_code == 403


# -- sessions --------------------------------------------------------------------------------------


async def test_a_login_has_a_new_cookie_and_the_old_one_opens_nothing(console: Console) -> None:
    person = console.browser()
    await person.get("/login")
    planted = person.http.cookies["fep"]
    assert (await person.log_in("vera")).status_code == 303
    assert person.http.cookies["fep"] != planted
    other = console.browser(cookies={"fep": planted})
    assert (await other.get("/")).status_code == 303
    text = stored(console, "select digest from console_session")
    assert text == [(digest_of(person.http.cookies["fep"]),)]


async def test_the_cookie_is_for_this_console_alone(console: Console) -> None:
    person = console.browser()
    answer = await person.log_in("vera")
    kept = answer.headers["set-cookie"]
    assert "HttpOnly" in kept
    assert "SameSite=strict" in kept
    assert "Max-Age" not in kept


async def test_a_logout_ends_the_session_for_good(console: Console) -> None:
    person = await console.person("vera")
    cookie = person.http.cookies["fep"]
    assert (await person.post("/logout")).headers["location"] == "/login"
    again = console.browser(cookies={"fep": cookie})
    assert (await again.get("/")).status_code == 303


@pytest.mark.parametrize("act", ["log_out", "disable", "role", "password"])
async def test_an_administrator_ends_a_session_at_once(console: Console, act: str) -> None:
    admin, person = await console.person("anna"), await console.person("otto")
    assert (await person.get("/")).status_code == 200
    fields = {"role": "viewer", "password": "another-password"}
    answer = await admin.post("/users/otto", act=act, **fields)
    assert answer.status_code == 303
    assert (await person.get("/")).status_code == 303
    assert (await person.post(f"/banks/{BANK.name}/drain")).headers["location"] == "/login"
    assert (await admin.get("/")).status_code == 200
    again = console.browser()
    answer = await again.log_in("otto")
    assert answer.status_code == {"disable": 401, "password": 401}.get(act, 303)


async def test_sessions_live_on_over_a_restart(directory: Path, key: Path, logs: Logs) -> None:
    async with consoling(directory, key, logs) as console:
        person = await console.person("vera")
        cookie = person.http.cookies["fep"]
    async with consoling(directory, key, logs, people=False) as console:
        person = console.browser(cookies={"fep": cookie})
        assert (await person.get("/")).status_code == 200


@pytest.mark.parametrize("limit", [{"idle_s": 1.0}, {"session_s": 1.0}])
async def test_a_session_ends_by_itself(
    directory: Path, key: Path, logs: Logs, limit: dict[str, Any]
) -> None:
    async with consoling(directory, key, logs, **limit) as console:
        person = await console.person("vera")

        async def over() -> bool:
            # htmx refreshes a page without its person doing anything.
            answer = await person.get("/banks?live", headers={"hx-request": "true"})
            return answer.status_code == 401

        with trio.fail_after(10):
            while not await over():
                await trio.sleep(0.05)


async def test_an_expired_login_is_told_to_htmx_and_not_swapped_in(console: Console) -> None:
    for headers in ({"hx-request": "true"}, {"accept": "text/event-stream"}):
        answer = await console.browser().get("/live", headers=headers)
        assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/login")


async def test_after_the_login_one_is_where_one_wanted_to_be(console: Console) -> None:
    person = console.browser()
    answer = await person.get("/tasks?state=unknown")
    assert answer.headers["location"] == "/login?next=/tasks%3Fstate%3Dunknown"
    answer = await person.log_in("vera", after="/tasks?state=unknown")
    assert answer.headers["location"] == "/tasks?state=unknown"
    for elsewhere in (
        "//evil.example/",
        "https://evil.example/",
        "/\\evil.example",
        "javascript:x",
    ):
        answer = await console.browser().log_in("vera", after=elsewhere)
        assert answer.headers["location"] == "/"


# -- log-in ----------------------------------------------------------------------------------------


async def test_a_wrong_name_and_a_wrong_password_are_the_same_to_a_stranger(
    console: Console,
) -> None:
    answers = []
    for user, password in [("vera", "wrong-password"), ("nobody", PASSWORD), ("'; --", "x")]:
        browser = console.browser()
        answer = await browser.log_in(user, password)
        answers.append((answer.status_code, answer.text.replace(browser.csrf, "")))
    assert {status for status, _ in answers} == {401}
    assert len({text for _, text in answers}) == 1
    refused = stored(
        console, "select state, detail from task_event where event = 'act' order by seq"
    )
    told = [json.loads(str(detail)) for _, detail in refused]
    assert [(one["name"], one["refusal"]) for one in told] == [
        ("vera", "password"),
        ("nobody", "no such user"),
        ("?", "no such user"),
    ]
    assert "wrong-password" not in str(told)


async def test_too_many_failures_of_one_user_are_not_looked_at(
    console: Console, logs: Logs
) -> None:
    browser = console.browser()
    for _ in range(throttle.USER_FAILURES_MAX):
        assert (await browser.log_in("vera", "wrong-password")).status_code == 401
    answer = await browser.log_in("vera")
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= throttle.PAUSE_SECONDS + 1
    assert (await console.browser().log_in("otto")).status_code == 303
    assert len(logs.named("login.refused")) == throttle.USER_FAILURES_MAX
    assert logs.named("login.throttled")


# -- limits ----------------------------------------------------------------------------------------


DRIP = (
    b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
    b"content-type: application/x-www-form-urlencoded\r\n\r\nuser="
)


async def raw(console: Console) -> trio.SocketStream:
    host, port = console.url.removeprefix("http://").split(":")
    return await trio.open_tcp_stream(host, int(port))


async def answer_to(stream: trio.SocketStream) -> bytes:
    data = b""
    with trio.fail_after(limits.BODY_SECONDS_MAX + 20):
        with contextlib.suppress(trio.BrokenResourceError):
            while chunk := await stream.receive_some(65_536):
                data += chunk
    return data


async def test_a_large_body_and_a_long_header_are_refused(console: Console) -> None:
    async with await raw(console) as stream:
        await stream.send_all(DRIP.replace(b"1000", b"20000000"))
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"x" * 20_000_000)
        assert b"413" in (await answer_to(stream)).split(b"\r\n")[0]
    async with await raw(console) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000 + b"\r\n\r\n")
        assert b"431" in (await answer_to(stream)).split(b"\r\n")[0]
    assert (await console.browser().get("/login")).status_code == 200


async def test_others_are_served_while_some_drip(console: Console) -> None:
    slow = [await raw(console) for _ in range(30)]
    for stream in slow[::2]:
        await stream.send_all(DRIP)
    for stream in slow[1::2]:
        await stream.send_all(b"GET / HT")
    browser = console.browser()
    with trio.fail_after(3):
        assert (await browser.get("/login")).status_code == 200
    # Their bodies do not come: each is told so and cut off, and nothing of it stays.
    assert b"408" in (await answer_to(slow[0])).split(b"\r\n")[0]
    for stream in slow:
        await stream.aclose()


async def test_a_browser_that_leaves_while_it_is_answered_crashes_nothing(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hypercorn's refusal of the half body is held until the page's own answer ends the stream."""
    closing_down, refused = trio.Event(), trio.Event()
    send_all, send_eof = trio.SocketStream.send_all, trio.SocketStream.send_eof

    async def held_send(stream: trio.SocketStream, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 400"):
            await closing_down.wait()
        try:
            await send_all(stream, data)
        except trio.BusyResourceError:
            refused.set()
            raise

    async def held_eof(stream: trio.SocketStream) -> None:
        with stream._send_conflict_detector:
            closing_down.set()
            await refused.wait()
        await send_eof(stream)

    async with await raw(console) as stream:
        await stream.send_all(DRIP)
        await send_eof(stream)
        monkeypatch.setattr(trio.SocketStream, "send_all", held_send)
        monkeypatch.setattr(trio.SocketStream, "send_eof", held_eof)
        await answer_to(stream)
        assert refused.is_set()
    monkeypatch.undo()
    assert (await console.browser().get("/login")).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 4096,
        b"GET\r\n\r\n",
    ],
)
async def test_what_is_no_http_harms_nobody(console: Console, data: bytes) -> None:
    async with await raw(console) as stream:
        await stream.send_all(data)
        await stream.send_eof()
        await answer_to(stream)
    assert (await console.browser().get("/login")).status_code == 200


async def test_odd_requests_are_answered(console: Console) -> None:
    person = await console.person("anna")
    for path, status in [
        ("/tasks?cursor=x", 422),
        ("/tasks?state=nonsense", 422),
        ("/tasks?find=" + "x" * 200, 422),
        ("/tasks/none", 404),
        ("/tasks/%00%ff", 404),
        ("/accounts?from=-1", 200),
        ("/accounts?from=99999999999999999999", 200),
        ("/audit?cursor=-1", 422),
        ("/slots/none/unlock", 404),
        ("/no-such-page", 404),
        ("/banks/none", 404),
    ]:
        answer = await person.get(path)
        assert answer.status_code == status, path
        assert "<html" in answer.text
    assert (await person.http.put("/banks")).status_code == 405
    assert (await person.post("/users/vera", act="nonsense")).status_code == 422
    assert (await person.post("/banks/none/drain")).status_code == 409
    answer = await person.http.post(
        "/banks/none/drain", headers={"x-csrf": person.csrf, "hx-request": "true"}
    )
    assert (answer.status_code, "<html" in answer.text) == (409, False)


async def test_every_answer_bears_the_policy(console: Console) -> None:
    person = await console.person("anna")
    for path in [*READS, *CONFIGURES, "/users", "/static/console.js", "/no-such-page", "/login"]:
        headers = (await person.get(path)).headers
        assert headers["content-security-policy"] == limits.POLICY
        assert headers["x-content-type-options"] == "nosniff"
        kept = "public" if path.startswith("/static") else "no-store"
        assert headers["cache-control"].startswith(kept)
    assert "unsafe" not in limits.POLICY


# -- live ------------------------------------------------------------------------------------------


async def test_a_live_page_begins_whole_and_leaves_nothing_behind(console: Console) -> None:
    person = await console.person("vera")
    cookie = person.http.cookies["fep"]
    request = f"GET /live HTTP/1.1\r\nhost: x\r\ncookie: fep={cookie}\r\n\r\n".encode()
    first, second = await raw(console), await raw(console)
    with trio.fail_after(10):
        for stream in (first, second):
            await stream.send_all(request)
            page = b""
            while b"</div>\n\n" not in page:
                page += await stream.receive_some()
    [desk_live] = [one for one in gc.get_objects() if isinstance(one, live.Live) and one.viewers]
    assert desk_live.viewers == 2
    head, _, page = page.partition(b"\r\n\r\n")
    assert b"text/event-stream" in head
    assert all(line.startswith(b"data: ") for line in page.splitlines() if b"<" in line)
    await first.aclose()
    await console.rig.until(lambda: desk_live.viewers == 1, "the first viewer's end")
    await second.aclose()
    await console.rig.until(lambda: desk_live.viewers == 0, "the second viewer's end")


async def test_a_session_that_ends_ends_its_live_page(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.0)
    person = await console.person("vera")
    cookie = person.http.cookies["fep"]
    async with await raw(console) as stream:
        await stream.send_all(
            f"GET /live HTTP/1.1\r\nhost: x\r\ncookie: fep={cookie}\r\n\r\n".encode()
        )
        await stream.receive_some()
        await console.rig.daemon.services.users.end_sessions("vera")
        # Something changes, and is not told any more.
        console.rig.daemon.alarms.raise_alarm(AlarmKind.LANE_FAILED, "x", "a test")
        data = b""
        with trio.fail_after(10):
            while b"event: ended" not in data:
                data += await stream.receive_some()
        assert b"a test" not in data


async def test_a_console_that_fails_is_started_again_and_the_daemon_lives(
    directory: Path, key: Path, logs: Logs
) -> None:
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]

    def taken(table: dict[str, object]) -> None:
        table["console"] = {"listen": f"127.0.0.1:{port}"}

    async with running(directory, key, logs, change=taken) as rig:
        assert rig.daemon.services.console == []
        wire = await rig.admin()
        assert (await wire.result("status"))["version"]
        await listener[0].aclose()
        await rig.until(lambda: rig.daemon.services.console, "the console")
    assert "in use" in str(logs.named("lane.crashed")[0]["exception"])
    logs.records.clear()
