"""Each page in a real browser: what it shows, keys alone, and nothing that the policy refuses."""

from __future__ import annotations

import re
import tomllib

import pytest
from playwright.sync_api import Page, expect

from tests.browser.rig import DEAF, PEOPLE, QUIET, UNKNOWN, Site

pytestmark = pytest.mark.req("FEP-10", "FEP-27", "FEP-28", "FEP-31")


def go(page: Page, key: str, where: str) -> None:
    """Go to a page as a person without a mouse does."""
    page.locator("body").press("g")
    page.keyboard.press(key)
    page.wait_for_url(re.compile(f"{where}$"))


def test_login_by_keys_and_in_both_languages(console: Site) -> None:
    page = console.page()
    page.goto(console.url)
    expect(page.locator("h1")).to_have_text("企业端前置机")
    expect(page.locator("[name=user]")).to_be_focused()
    console.shot(page, "login")
    page.keyboard.type("wang")
    page.keyboard.press("Tab")
    page.keyboard.type("wrong-password")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_contain_text("不正确")
    console.errors[:] = [one for one in console.errors if "401" not in one]
    english = console.page(language="en-GB")
    english.goto(console.url)
    expect(english.locator("h1")).to_have_text("Bank front-end processor")
    english.get_by_role("button", name="中文").press("Enter")
    expect(english.locator("h1")).to_have_text("企业端前置机")


def test_overview_is_live_and_has_its_pictures(console: Site) -> None:
    page = console.page("wang")
    expect(page.locator("h1")).to_have_text("概览")
    expect(page.locator(".tile").first).to_contain_text("1")
    expect(page.locator("#depth canvas")).to_be_visible()
    expect(page.locator("svg.flows .ribbon").first).to_be_attached()
    expect(page.locator("svg .median").first).to_be_attached()
    console.shot(page, "overview")
    row = page.locator("#live tr", has_text=DEAF.name).first
    expect(row).not_to_contain_text("已暂停")
    with console.scene.operator() as operator:
        operator.call("link.drain", {"bank": DEAF.name})
        expect(row).to_contain_text("已暂停")
        operator.call("link.resume", {"bank": DEAF.name})
        expect(row).not_to_contain_text("已暂停")


def test_banks_are_tried_paused_and_resumed(console: Site) -> None:
    page = console.page("li")
    go(page, "b", "/banks")
    row = page.locator("tbody tr", has_text=QUIET.name).first
    row.get_by_role("button", name="测试连接").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("可达")
    console.shot(page, "banks")
    page.on("dialog", lambda dialog: dialog.accept())
    row.get_by_role("button", name="暂停").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("已暂停发送")
    expect(row).to_contain_text("已暂停")
    row.get_by_role("button", name="恢复").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("已恢复发送")


def test_a_question_that_is_answered_with_no_does_nothing(console: Site) -> None:
    page = console.page("li")
    go(page, "b", "/banks")
    page.on("dialog", lambda dialog: dialog.dismiss())
    row = page.locator("tbody tr", has_text=QUIET.name).first
    row.get_by_role("button", name="暂停").press("Enter")
    page.reload()
    expect(page.locator("tbody tr", has_text=QUIET.name).first).not_to_contain_text("已暂停")


def test_slots_show_their_certificates(console: Site) -> None:
    page = console.page("li")
    go(page, "s", "/slots")
    expect(page.locator("tbody tr")).to_have_count(2)
    expect(page.locator("tbody tr").first).to_contain_text("就绪")
    expect(page.locator("tbody tr").first).to_contain_text("天")
    console.shot(page, "slots")
    page.goto(f"{console.url}/slots/ukey-{QUIET.name}/unlock")
    expect(page.locator("[name=pin]")).to_be_focused()
    console.shot(page, "unlock")


def test_tasks_are_found_by_keys_alone(console: Site) -> None:
    page = console.page("chen")
    go(page, "t", "/tasks")
    expect(page.locator("tbody tr")).to_have_count(50)
    console.shot(page, "tasks")
    page.get_by_role("link", name="更早").press("Enter")
    page.wait_for_url(re.compile("cursor="))
    expect(page.locator("tbody tr")).to_have_count(23)
    page.keyboard.press("/")
    expect(page.locator("#find")).to_be_focused()
    page.keyboard.type("BAL-")
    expect(page.locator("tbody tr")).to_have_count(12)
    page.locator("select[name=state]").select_option("unknown")
    expect(page.locator("tbody")).to_contain_text("没有符合的任务")
    page.locator("select[name=state]").select_option("")
    expect(page.locator("tbody tr")).to_have_count(12)
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("BAL-0010")
    expect(page.locator(".chain li").last).to_contain_text("bank_done")


def test_tasks_are_exported(console: Site) -> None:
    page = console.page("chen")
    page.goto(f"{console.url}/tasks?kind=transfer")
    with page.expect_download() as download:
        page.get_by_role("link", name="导出 CSV").press("Enter")
    lines = download.value.path().read_text("utf-8-sig").splitlines()
    assert len(lines) == 62
    assert lines[0].startswith("task_id,client,bank")
    assert UNKNOWN in lines[1]
    assert "88000.50" in lines[1]


def test_two_persons_close_a_payment(console: Site) -> None:
    first, second = console.page("li"), console.page("zhao")
    first.on("dialog", lambda dialog: dialog.accept())
    second.on("dialog", lambda dialog: dialog.accept())
    first.goto(f"{console.url}/tasks/{UNKNOWN}")
    expect(first.locator("h1")).to_contain_text("结果未知")
    first.get_by_label("成功").press("Space")
    first.locator("[name=evidence]").fill("网银对账单 11 月 26 日第 7 行")
    console.shot(first, "resolve")
    first.get_by_role("button", name="提议").press("Enter")
    expect(first.get_by_role("status")).to_contain_text("须由另一人复核")
    expect(first.locator("main")).not_to_contain_text("复核：")
    second.goto(f"{console.url}/tasks/{UNKNOWN}")
    console.shot(second, "confirm")
    second.get_by_role("button", name="复核").press("Enter")
    expect(second.locator("h1")).to_contain_text("成功")
    console.shot(second, "task")


def test_alarms_are_acknowledged(console: Site) -> None:
    with console.scene.operator() as operator:
        operator.submit("TOO-OLD", QUIET.name, "balance", expires_s=0.2)
        page = console.page("li")
        go(page, "a", "/alarms")
        row = page.locator("tbody tr", has_text="operator")
        expect(row).to_be_visible(timeout=20_000)
        console.shot(page, "alarms")
        row.get_by_role("button", name="确认").press("Enter")
        expect(page.get_by_role("status")).to_contain_text("已确认")
        page.get_by_role("link", name="全部").press("Enter")
        expect(page.locator("tbody").first).to_contain_text("li")
        console.shot(page, "alarms-all")


def test_accounts_have_their_balances(console: Site) -> None:
    page = console.page("chen")
    go(page, "c", "/accounts")
    expect(page.locator("tbody tr")).to_have_count(24)
    console.shot(page, "accounts")
    page.locator("#find").fill("0105")
    expect(page.locator("tbody tr")).to_have_count(1)


def test_audit_shows_and_proves_what_people_did(console: Site) -> None:
    page = console.page("wang")
    go(page, "u", "/audit")
    expect(page.locator("tbody")).to_contain_text("console.log_in")
    page.get_by_role("button", name="校验整个存储").press("Enter")
    expect(page.locator("#check")).to_contain_text("完好", timeout=30_000)
    page.reload()
    expect(page.locator("tbody").last).to_contain_text("store.verify")
    console.shot(page, "audit")


def test_users_are_made_and_disabled(console: Site) -> None:
    page = console.page("wang")
    page.on("dialog", lambda dialog: dialog.accept())
    go(page, "p", "/users")
    page.fill("[name=name]", "sun")
    page.locator("section.narrow [name=password]").fill("a-good-password")
    page.get_by_role("button", name="新建用户").press("Enter")
    expect(page.get_by_role("status")).to_contain_text("sun 可以登录")
    row = page.locator("tbody tr", has_text="sun")
    console.shot(page, "users")
    row.get_by_role("button", name="停用").press("Enter")
    expect(row).to_contain_text("已停用")


def test_ones_own_page_has_a_picture_for_the_authenticator(console: Site) -> None:
    page = console.page("chen")
    page.goto(f"{console.url}/me")
    expect(page.locator(".qr svg")).to_be_visible()
    console.shot(page, "me")


@pytest.mark.parametrize("scheme", ["dark", "print", "narrow"])
def test_other_looks(console: Site, scheme: str) -> None:
    page = console.page("wang", language="en-GB")
    if scheme == "dark":
        page.emulate_media(color_scheme="dark")
    elif scheme == "narrow":
        page.set_viewport_size({"width": 420, "height": 800})
    else:
        page.emulate_media(media="print")
    for path in ("/", f"/tasks/{UNKNOWN}"):
        page.goto(f"{console.url}{path}")
        page.wait_for_timeout(300)
        wide = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        assert not wide, path
        console.shot(page, f"{scheme}{path.replace('/', '-').rstrip('-')}")
    if scheme == "print":
        expect(page.locator(".side")).to_be_hidden()


def test_keys_are_told_and_the_content_is_one_key_away(console: Site) -> None:
    page = console.page("chen", language="en-GB")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    expect(page.locator("#keys")).not_to_contain_text("Users")
    page.keyboard.press("Escape")
    page.locator("body").press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.getElementById('main').contains(document.activeElement)")


def test_a_session_that_ends_leads_to_the_login(console: Site) -> None:
    page = console.page("chen")
    page.goto(f"{console.url}/banks")
    with console.scene.operator() as operator:
        operator.call("user.log_out", {"name": "chen"})
    page.wait_for_url(re.compile("/login"), timeout=15_000)
    console.forget("chen")
    console.errors[:] = [one for one in console.errors if "401" not in one]
    assert set(PEOPLE) >= {"chen"}


@pytest.mark.req("FEP-11", "FEP-13", "FEP-14", "FEP-15", "FEP-16", "FEP-17", "FEP-19", "FEP-20")
def test_an_administrator_adds_a_bank_by_keys_alone_and_rolls_back(console: Site) -> None:
    page = console.page("wang")
    before = console.scene.config.read_text("utf-8")
    table = tomllib.loads(before)["bank"][0]
    go(page, "f", "/config")
    expect(page.locator("h1")).to_have_text("配置")
    console.shot(page, "config")

    press = page.keyboard.press

    def until_focused(name: str) -> None:
        """Go on with Tab until a field has the focus, as a person does."""
        wanted = page.locator(f"[name='{name}']").first
        for _ in range(40):
            if wanted.evaluate("one => one === document.activeElement"):
                return
            press("Tab")
        raise AssertionError(name)

    def at_button(text: str) -> None:
        for _ in range(60):
            found = page.evaluate("() => document.activeElement.textContent.trim()")
            if found == text:
                return
            press("Tab")
        raise AssertionError(text)

    until_focused("adapter")
    while page.locator("[name=adapter]").input_value() != "pingan_b2bi":
        press("ArrowDown")
    at_button("新增银行")
    press("Enter")
    page.wait_for_url(re.compile("/config/bank"))
    fields = {
        "name": "pingan-3",
        "class": table["class"],
        "direct_connect_number": table["direct_connect_number"],
        "host": table["host"],
        "port": str(table["port"]),
    }
    for name, value in fields.items():
        until_focused(name)
        page.keyboard.type(value)
    until_focused("slot")
    page.keyboard.type(table["slot"])
    until_focused("o.corp_code")
    page.keyboard.type(table["options"]["corp_code"])
    until_focused("accounts")
    page.keyboard.type("88000000000001, 云阶示例贸易有限公司")
    console.shot(page, "config-bank")
    at_button("核对变更")
    press("Enter")
    expect(page.locator("h1")).to_have_text("核对变更")
    expect(page.locator(".diff .more").first).to_be_visible()
    expect(page.locator("dd").nth(2)).to_contain_text(QUIET.name)
    at_button("测试 pingan-3 的连接")
    press("Enter")
    expect(page.get_by_role("status")).to_contain_text("可达")
    console.shot(page, "config-review")
    at_button("应用")
    press("Enter")
    page.wait_for_url(re.compile("/config$"))
    expect(page.locator("#pending")).to_contain_text("暂时生效")
    expect(page.locator("#pending")).to_contain_text("pingan-3: 就绪")
    console.shot(page, "config-pending")
    at_button("确认保留此版本")
    press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("已确认保留")
    go(page, "b", "/banks")
    expect(page.locator("tbody tr", has_text="pingan-3").first).to_contain_text("就绪")
    # And back to what was before, by the list of versions.
    go(page, "f", "/config")
    page.get_by_role("link", name="1", exact=True).press("Enter")
    expect(page.locator("h1")).to_have_text("版本 1")
    console.shot(page, "config-version")
    at_button("恢复此版本")
    press("Enter")
    expect(page.locator("h1")).to_have_text("核对变更")
    expect(page.locator(".pill.bad")).to_have_text("pingan-3")
    at_button("应用")
    press("Enter")
    page.wait_for_url(re.compile("/config$"))
    assert console.scene.config.read_text("utf-8") == before
    at_button("确认保留此版本")
    press("Enter")
    expect(page.locator("#pending")).to_have_text("")
    go(page, "b", "/banks")
    expect(page.locator("tbody tr", has_text=QUIET.name).first).to_be_visible()
    expect(page.locator("tbody tr", has_text="pingan-3")).to_have_count(0)
