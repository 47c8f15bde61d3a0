"""Attempts on the console: roles, forms, cookies, passwords, and what its pages show."""

from __future__ import annotations

import contextlib
import socket
import time
from urllib.parse import quote

import pytest

from fep.console.limits import BODY_SECONDS_MAX
from fep.console.service import IDLE_SECONDS_MAX
from fep.console.throttle import USER_FAILURES_MAX
from tests.attacks.rig import BANK, LI, PASSWORD, WAIT_SECONDS_MAX, Browser, Site
from tests.attacks.slow import Slow

DRAIN = f"/banks/{BANK.name}/drain"
HTML = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}'


def drained(site: Site) -> bool:
    with site.scene.operator() as operator:
        (link,) = operator.call("link.list")["links"]
    found: bool = link["drained"]
    return found


# -- roles ----------------------------------------------------------------------------------------


def test_a_viewer_posts_to_the_pages_of_others(attacked: Site) -> None:
    vera = attacked.logged_in("vera")
    with attacked.unharmed():
        for path in (DRAIN, f"/slots/ukey-{BANK.name}/unlock", "/tasks/WORK-0/cancel"):
            assert vera.post(path).status_code == 403
        for path in ("/users", "/users/vera"):
            answer = vera.post(path, act="role", role="admin", name="mallory", password=PASSWORD)
            assert answer.status_code == 403
        assert vera.get("/users").status_code == 403
        assert not drained(attacked)
    assert attacked.logged("authz.denied", user="vera", what="/users")
    assert not attacked.audited("user.add", name="vera")


def test_an_operator_makes_itself_an_administrator(attacked: Site) -> None:
    olaf = attacked.logged_in("olaf")
    with attacked.unharmed():
        answer = olaf.post("/users/olaf", act="role", role="admin")
        assert answer.status_code == 403
        # Nor by way of the configuration, where roles on the machine are written.
        for path in ("/config/text", "/config/apply", "/config/confirm", "/config/bank"):
            assert olaf.post(path, text="", act="apply").status_code == 403
        answer = olaf.post("/me/password", old=PASSWORD, new="another-password", role="admin")
        assert olaf.get("/users").status_code in {403, 303}
    assert attacked.logged("authz.denied", user="olaf", what="/users/olaf")


# -- forms ----------------------------------------------------------------------------------------


def forged(site: Site, browser: Browser, csrf: str | None, **headers: str) -> int:
    """Send a form as another site would have the browser send it; returns the status."""
    fields = {} if csrf is None else {"csrf": csrf}
    answer = browser.http.post(DRAIN, data=fields, headers=headers)
    assert not drained(site)
    return answer.status_code


def test_a_form_comes_without_our_mark(attacked: Site) -> None:
    otto = attacked.logged_in("otto")
    with attacked.unharmed():
        for mark in (None, "", "0" * 64, otto.csrf[:-1], otto.csrf.upper()):
            assert forged(attacked, otto, mark) == 403
        assert otto.http.get(f"{DRAIN}?csrf={otto.csrf}").status_code == 405
    assert attacked.logged("form.refused", what="token", path=DRAIN)


def test_a_form_bears_the_mark_of_another_person(attacked: Site) -> None:
    otto, vera = attacked.logged_in("otto"), attacked.logged_in("vera")
    with attacked.unharmed():
        assert vera.csrf != otto.csrf
        assert forged(attacked, otto, vera.csrf) == 403
    assert attacked.logged("form.refused", what="token")


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("origin", "http://evil.example", "origin"),
        ("origin", "null", "origin"),
        ("sec-fetch-site", "cross-site", "site"),
        ("sec-fetch-site", "same-site", "site"),
    ],
)
def test_a_form_comes_from_another_site(attacked: Site, name: str, value: str, what: str) -> None:
    otto = attacked.logged_in("otto")
    with attacked.unharmed():
        assert forged(attacked, otto, otto.csrf, **{name: value}) == 403
    assert attacked.logged("form.refused", what=what)


# -- cookies --------------------------------------------------------------------------------------


def is_in(site: Site, cookie: str) -> bool:
    thief = site.browser()
    thief.http.cookies.set("fep", cookie)
    return thief.get("/tasks").status_code == 200


def test_a_cookie_is_planted_before_the_login(attacked: Site) -> None:
    victim = attacked.browser()
    with attacked.unharmed():
        for planted in ("a" * 43, "", "x" * 4000, HTML):
            victim.http.cookies.clear()
            victim.http.cookies.set("fep", quote(planted))
            answer = victim.log_in("vera")
            assert answer.status_code == 303
            assert answer.cookies["fep"] != quote(planted)
            assert not is_in(attacked, quote(planted))
            assert is_in(attacked, answer.cookies["fep"])


def test_a_cookie_is_used_after_the_logout(attacked: Site) -> None:
    victim = attacked.browser()
    with attacked.unharmed():
        assert victim.log_in("vera").status_code == 303
        stolen = victim.http.cookies["fep"]
        assert is_in(attacked, stolen)
        assert victim.post("/logout").status_code == 303
        assert not is_in(attacked, stolen)
    assert attacked.audited("console.log_out", name="vera")


def test_a_cookie_is_used_after_an_administrator_ended_the_session(attacked: Site) -> None:
    victim = attacked.browser()
    with attacked.unharmed():
        assert victim.log_in("vera").status_code == 303
        stolen = victim.http.cookies["fep"]
        with attacked.scene.operator() as operator:
            assert operator.call("user.log_out", {"name": "vera"})["sessions"]
        attacked._people.pop("vera", None)
        assert not is_in(attacked, stolen)
    assert attacked.audited("user.log_out")


# -- passwords ------------------------------------------------------------------------------------


def test_a_password_is_guessed(attacked: Site) -> None:
    hunter = attacked.browser()
    with attacked.unharmed():
        for number in range(USER_FAILURES_MAX):
            assert hunter.log_in("anna", f"wrong-password-{number}").status_code == 401
        # The right one is not looked at either, wherever it comes from.
        assert hunter.log_in("anna").status_code == 429
        assert attacked.browser().log_in("anna").status_code == 429
        assert attacked.browser().log_in("otto").status_code == 303
    refused = attacked.audited("console.log_in", outcome="refused", name="anna")
    assert len(refused) == USER_FAILURES_MAX
    assert "wrong-password" not in str(refused)
    assert attacked.logged("login.throttled", user="anna")


def test_a_name_is_no_name(attacked: Site) -> None:
    with attacked.unharmed():
        for name in ("' OR 1=1 --", 'anna"; DROP TABLE console_user; --', HTML, "\0", "otto\0"):
            answer = attacked.browser().log_in(name)
            assert answer.status_code == 401
            assert "<script>alert" not in answer.text
        with attacked.scene.operator() as operator:
            assert len(operator.call("user.list")["users"]) == 4
    assert attacked.audited("console.log_in", outcome="refused", name="?")


# -- HTTP -----------------------------------------------------------------------------------------


def answer_to(site: Site, *parts: bytes) -> bytes:
    """Return what comes of these bytes, until the end of the connection."""
    got = b""
    with socket.create_connection(("127.0.0.1", site.ports["console"])) as sock:
        sock.settimeout(WAIT_SECONDS_MAX)
        with contextlib.suppress(ConnectionError):
            for part in parts:
                sock.sendall(part)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while data := sock.recv(65_536):
                got += data
    return got


def test_a_body_and_a_header_are_larger_than_may_be(attacked: Site) -> None:
    post = b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n"
    with attacked.unharmed():
        body = [b"content-length: 50000000\r\n\r\n", *[b"x" * 1_000_000] * 20]
        assert b" 413" in answer_to(attacked, post, *body).split(b"\r\n")[0]
        chunks = [
            b"transfer-encoding: chunked\r\n\r\n",
            *[b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n"] * 5,
        ]
        assert b" 413" in answer_to(attacked, post, *chunks).split(b"\r\n")[0]
        header = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000
        assert b" 431" in answer_to(attacked, header).split(b"\r\n")[0]
        fields = "&".join(f"f{number}=x" for number in range(5000))
        answer = attacked.browser().http.post("/login", content=fields)
        assert answer.status_code < 500


def test_two_requests_are_hidden_in_one(attacked: Site) -> None:
    smuggled = b"0\r\n\r\nGET /users HTTP/1.1\r\nhost: x\r\n\r\n"
    with attacked.unharmed():
        # Often: each hangs up at another moment of the answer.
        for headers in 20 * (
            b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
            b"content-length: 4\r\ncontent-length: 40\r\n",
            b"transfer-encoding: chunked, identity\r\n",
            b"content-length: +4\r\n",
            b"content-length : 4\r\n",
        ):
            got = answer_to(
                attacked, b"POST /login HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n" + smuggled
            )
            assert got.count(b"HTTP/1.1 ") <= 1
            assert not got or got.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))


def test_a_request_comes_byte_by_byte(attacked: Site, slow: Slow) -> None:
    with attacked.unharmed():
        for name, seconds_max in (("header", IDLE_SECONDS_MAX), ("body", BODY_SECONDS_MAX)):
            limit = time.monotonic() + seconds_max + WAIT_SECONDS_MAX
            while name not in slow.ended:
                assert time.monotonic() < limit, f"{name} was not cut off"
                time.sleep(0.05)
            assert slow.ended[name] < seconds_max + 10
        assert b"408" in slow.said["body"].split(b"\r\n")[0]


PATHS = (
    "/static/../desk.py",
    "/static/..%2fdesk.py",
    "/static/%2e%2e/%2e%2e/daemon/app.py",
    "/static/....//desk.py",
    "/static/..\\desk.py",
    "/static//etc/passwd",
    "/static/%00",
    "/static/console.css%00.py",
    "/tasks/..%2f..%2fusers",
    "/tasks/../../etc/passwd",
)


def test_a_path_leads_out_of_its_folder(attacked: Site) -> None:
    cookie = attacked.logged_in("otto").http.cookies["fep"]
    with attacked.unharmed():
        for path in PATHS:
            request = f"GET {path} HTTP/1.1\r\nhost: x\r\ncookie: fep={cookie}\r\n\r\n"
            got = answer_to(attacked, request.encode())
            assert got.split(b" ")[1] in (b"404", b"303", b"400"), path
            for inside in (b"import ", b"root:", b"def "):
                assert inside not in got


def test_the_login_leads_elsewhere_or_writes_headers(attacked: Site) -> None:
    with attacked.unharmed():
        browser = attacked.browser()
        for after in (
            "//evil.example/",
            "https://evil.example/",
            "/\\evil.example",
            "\\\\evil.example",
            "javascript:alert(1)",
            "/\t/evil.example",
            "/x\r\nset-cookie: fep=planted",
            "/x\nlocation: https://evil.example/",
            "/%0d%0aset-cookie:fep=planted",
            "///evil.example",
        ):
            answer = browser.log_in("otto", after=after)
            assert answer.status_code == 303
            where = answer.headers["location"]
            assert where.startswith("/")
            assert not where.startswith(("//", "/\\"))
            assert "planted" not in answer.headers.get("set-cookie", "")
            shown = browser.http.get(f"/login?next={quote(after)}", follow_redirects=False)
            assert "evil.example" not in shown.headers.get("location", "")
            browser.post("/logout")
            browser.http.cookies.clear()


# -- what pages show ------------------------------------------------------------------------------


def test_what_is_searched_for_is_no_sql_and_no_html(attacked: Site) -> None:
    otto = attacked.logged_in("otto")
    with attacked.unharmed(), attacked.person(LI) as li:
        for words in (
            "' OR 1=1 --",
            "%",
            "_",
            "\\",
            "x' UNION SELECT password FROM console_user --",
        ):
            shown = otto.get("/tasks", params={"find": words}).text
            assert "WORK-0" not in shown
            found = li.ask("task.list", {"find": words})["result"]["tasks"]
            assert found == []
        for path in ("/tasks?find=", "/audit?who=", "/tasks?bank=", "/accounts?x="):
            answer = otto.get(path + quote(HTML[:60]))
            assert "<script>alert" not in answer.text
            assert "onerror=alert(2)>" not in answer.text or "&lt;img" in answer.text
            assert "49" not in answer.text or "{{7*7}}" not in HTML[:60]
            assert "unsafe" not in answer.headers["content-security-policy"]


def test_what_others_wrote_is_shown_and_not_run(attacked: Site) -> None:
    """Evidence, and a reason, that a person or a finance system wrote comes on other people's pages."""
    with attacked.unharmed(), attacked.person(LI) as li, attacked.finance() as raw:
        resolve = {"task_id": "WORK-0", "outcome": "succeeded", "evidence": HTML}
        assert li.code("task.resolve", resolve) is not None
        body = {"kind": "balance", "params": {"account": HTML}}
        submit = {"task_id": "HTML-1", "bank": BANK.name, "kind": "balance", "body": body}
        assert raw.code("task.submit", submit) == -32602
        otto = attacked.logged_in("otto")
        for path in ("/audit", "/tasks/WORK-0", "/"):
            page = otto.get(path)
            assert page.status_code == 200
            assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert(1)" in otto.get("/audit").text
        # In a table for spreadsheets nothing is a formula.
        lines = otto.get("/tasks.csv").text.splitlines()
        assert not [one for one in lines if one.startswith(("=", "+", "@", "\t"))]
    acts = attacked.audited("task.resolve", name="li")
    assert acts[-1]["outcome"] == "refused"
