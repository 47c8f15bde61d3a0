"""The administrator's page: who may, forms and their faults, drafts, versions; without a screen."""

from __future__ import annotations

import html
import re
import tomllib
from typing import Any

import pytest
import tomli_w
import trio

from fep.console.drafts import DRAFTS_MAX, Drafts
from fep.console.pages import config as page
from fep.sandbox.scene import free_port
from tests.console.rig import Console, Person
from tests.console.test_rules import console  # noqa: F401
from tests.control.rig import BANK

pytestmark = pytest.mark.req(
    "FEP-10", "FEP-11", "FEP-12", "FEP-13", "FEP-14", "FEP-15", "FEP-16", "FEP-17", "FEP-18",
    "FEP-19", "FEP-20", "FEP-21",
)  # fmt: skip

DRAFT = re.compile(r'name="draft" value="([\w-]+)"')


def on_disk(console: Console) -> dict[str, Any]:  # noqa: F811
    return tomllib.loads(console.rig.scene.config.read_text("utf-8"))


def fields_of(text: str) -> dict[str, str]:
    """Return what the form of a page would send."""
    found = {}
    for tag in re.findall(r"<input [^>]*>", text):
        name = re.search(r'name="([^"]+)"', tag)
        given = re.search(r'value="([^"]*)"', tag)
        if name is not None and not ("checkbox" in tag and "checked" not in tag):
            found[name[1]] = html.unescape(given[1]) if given else ""
    for field, inner in re.findall(r'<select name="([^"]+)"[^>]*>(.*?)</select>', text, re.DOTALL):
        chosen = re.search(r"<option([^>]*) selected[^>]*>([^<]*)", inner)
        first = re.search(r"<option([^>]*)>([^<]*)", inner)
        one = chosen or first
        assert one is not None
        said = re.search(r'value="([^"]*)"', one[1])
        found[field] = html.unescape(said[1] if said else one[2])
    for field, inner in re.findall(
        r'<textarea [^>]*name="([^"]+)"[^>]*>(.*?)</textarea>', text, re.DOTALL
    ):
        found[field] = html.unescape(inner)
    for own in ("csrf", "lang", "theme", "next"):
        found.pop(own, None)
    return found


async def form_of(person: Person, name: str = BANK.name) -> dict[str, str]:
    answer = await person.get(f"/config/bank?name={name}")
    assert answer.status_code == 200, answer.text
    return fields_of(answer.text)


async def applied(person: Person, answer: Any, **more: str) -> Any:
    """Take the draft of a page into force."""
    assert answer.status_code == 200, answer.text
    found = DRAFT.search(answer.text)
    assert found is not None
    return await person.post("/config/apply", draft=found[1], confirm_s="0", note="", **more)


@pytest.mark.parametrize("user", ["olaf", "vera"])
async def test_only_administrators_come_to_it(console: Console, user: str) -> None:  # noqa: F811
    person = await console.person(user)
    before = console.rig.scene.config.read_bytes()
    for path, methods in {(one[0], one[2]) for one in page.PAGE.routes}:
        for method in methods:
            act = person.get if method == "GET" else person.post
            assert (await act(path.replace("{number}", "1"))).status_code == 403, path
    assert "/config" not in (await person.get("/")).text
    assert console.rig.scene.config.read_bytes() == before


async def test_the_form_has_the_fields_of_every_bank_and_the_adapters_own(
    console: Console,  # noqa: F811
) -> None:
    person = await console.person("anna")
    bank = on_disk(console)["bank"][0]
    found = await form_of(person)
    assert found["was"] == found["name"] == BANK.name
    for key in ("class", "direct_connect_number", "host", "slot"):
        assert found[key] == bank[key]
    assert (found["port"], found["workers"]) == (str(bank["port"]), str(bank["workers"]))
    assert {"version", "o.corp_code", "o.today_trade", "o.bank_class"} <= found.keys()
    assert len(found["accounts"].splitlines()) == len(on_disk(console)["account"])
    everything = (await person.get("/config")).text
    for text in ("E0001", bank["direct_connect_number"], bank["host"], BANK.name):
        assert text in everything


async def test_a_form_sent_as_it_came_changes_nothing(console: Console) -> None:  # noqa: F811
    person = await console.person("anna")
    answer = await person.post("/config/bank", **await form_of(person))
    assert answer.status_code == 200
    assert "没有差异" in answer.text
    assert 'formaction="/config/apply"' not in answer.text
    assert "/config/apply" not in answer.text


async def test_a_change_goes_by_a_draft_into_force(console: Console) -> None:  # noqa: F811
    person = await console.person("anna")
    scene = console.rig.scene
    scene.config.write_text("# ours\n" + scene.config.read_text("utf-8"), "utf-8")
    fields = await form_of(person) | {"workers": "9", "o.today_trade": "4008"}
    answer = await person.post("/config/bank", **fields)
    assert on_disk(console)["bank"][0]["workers"] == 4
    assert "+workers = 9" in html.unescape(answer.text)
    done = await applied(person, answer)
    assert (done.status_code, done.headers["location"]) == (303, "/config")
    bank = on_disk(console)["bank"][0]
    assert (bank["workers"], bank["options"]["today_trade"]) == (9, "4008")
    assert scene.config.read_text("utf-8").startswith("# ours\n")
    assert console.rig.daemon.config.banks[0].workers == 9
    # The draft is used up.
    assert (await applied(person, answer)).status_code == 404


async def test_faults_are_shown_at_their_fields_and_nothing_changes(
    console: Console,  # noqa: F811
) -> None:
    person = await console.person("anna")
    before = console.rig.scene.config.read_bytes()
    fields = await form_of(person)
    wrong = {"port": "70000", "workers": "many", "class": "", "o.today_trade": "1", "slot": "x"}
    answer = await person.post("/config/bank", **fields | wrong)
    assert answer.status_code == 422
    text = html.unescape(answer.text)
    for name in ("port", "workers", "class", "o.today_trade", "slot"):
        assert re.search(rf'name="{re.escape(name)}"', text)
    assert "must be a whole number from 1 to 65535" in text
    assert "must be a whole number from 1 to 64" in text
    assert text.count('class="wrong"') == 5
    # What was typed is there still.
    assert fields_of(answer.text)["workers"] == "many"
    assert "must be text in quotes" not in text, "nobody is to type quotes into a form"
    assert "不能为空" in text
    number = fields["accounts"].split(",")[0]
    bad = fields["accounts"].replace(number, "9?1", 1)
    answer = await person.post("/config/bank", **fields | {"accounts": bad})
    assert "9?1: an account number must be" in html.unescape(answer.text)
    assert console.rig.scene.config.read_bytes() == before


async def test_a_bank_is_added_and_removed(console: Console) -> None:  # noqa: F811
    person = await console.person("anna")
    fields = fields_of((await person.get("/config/bank?adapter=boc_b2e")).text)
    assert fields["version"] == "120"
    secret = console.rig.scene.config.parent / "boc.password"
    secret.write_text("a-password", "utf-8")
    secret.chmod(0o600)
    fields |= {
        "name": "boc",
        "class": "104",
        "direct_connect_number": "C-1",
        "host": "127.0.0.1",
        "port": str(free_port()),
        "slot": on_disk(console)["slot"][0]["name"],
        "o.terminal_id": "E100000001",
        "o.customer_id": "100000001",
        "o.operator_id": "100000002",
        "s.password.how": "file",
        "s.password": "boc.password",
        "accounts": "88000001\t云阶示例贸易有限公司\t104100000004\t示例银行\n88000002，二号",
    }
    answer = await person.post("/config/bank", **fields)
    assert "a-password" not in answer.text
    found = DRAFT.search(answer.text)
    assert found is not None
    tried = await person.post("/config/test", draft=found[1], bank="boc")
    assert "不通" in tried.text
    assert (await applied(person, answer)).status_code == 303
    [bank] = [one for one in on_disk(console)["bank"] if one["name"] == "boc"]
    assert bank["secrets"] == {"password": {"file": "boc.password"}}
    assert bank["options"] == {
        "terminal_id": "E100000001",
        "customer_id": "100000001",
        "operator_id": "100000002",
    }
    rows = [one for one in on_disk(console)["account"] if one["bank"] == "boc"]
    assert [(one["number"], one["name"], one.get("bank_code")) for one in rows] == [
        ("88000001", "云阶示例贸易有限公司", "104100000004"),
        ("88000002", "二号", None),
    ]
    assert "boc" in (await person.get("/banks")).text
    assert (
        await applied(person, await person.post("/config/remove", name="boc"))
    ).status_code == 303
    assert [one["name"] for one in on_disk(console)["bank"]] == [BANK.name]


async def test_the_enterprise_and_the_text_are_changed(console: Console) -> None:  # noqa: F811
    person = await console.person("anna")
    answer = await person.post("/config/enterprise", id="E0002", fep_number="FEP-01")
    assert "enterprise" in answer.text
    await applied(person, answer)
    assert on_disk(console)["enterprise"]["id"] == "E0002"
    text = fields_of((await person.get("/config/text")).text)["text"]
    assert text == console.rig.scene.config.read_text("utf-8")
    answer = await person.post("/config/text", text=text.replace("workers = 4", "workers = none"))
    assert answer.status_code == 422
    assert "(syntax)" in answer.text
    answer = await person.post("/config/text", text=text.replace("\n", "\r\n") + "# more\r\n")
    await applied(person, answer)
    assert console.rig.scene.config.read_text("utf-8") == text + "# more\n"


async def test_what_is_under_way_at_a_bank_is_told_before_it_goes(
    console: Console,  # noqa: F811
) -> None:
    admin = await console.rig.admin()
    task = {"task_id": "T1", "bank": BANK.name, "kind": "balance"}
    await admin.result("task.submit", task)
    person = await console.person("anna")
    # What pools need is a fault of the draft.
    answer = await person.post("/config/remove", name=BANK.name)
    assert "pool.0.target" in answer.text
    table = on_disk(console)
    del table["pool"]
    console.rig.scene.config.write_text(tomli_w.dumps(table), "utf-8")
    answer = await person.post("/config/remove", name=BANK.name)
    assert f"{BANK.name} 还有 1 个任务：排队" in answer.text
    unsure = await applied(person, answer)
    assert unsure.status_code == 422
    assert f"{BANK.name} 还有 1 个任务：排队" in unsure.text
    assert len(on_disk(console)["bank"]) == 1, "nothing happens until somebody says that he knows"
    assert (await applied(person, answer, sure="yes")).status_code == 303
    assert "bank" not in on_disk(console)


async def test_another_persons_draft_is_not_there(console: Console) -> None:  # noqa: F811
    first, second = await console.person("anna"), await console.person("anna")
    answer = await first.post("/config/bank", **await form_of(first) | {"workers": "9"})
    assert (await applied(second, answer)).status_code == 404
    assert (await applied(first, answer)).status_code == 303


async def test_two_who_change_at_once_do_not_overwrite_each_other(
    console: Console,  # noqa: F811
) -> None:
    first, second = await console.person("anna"), await console.person("anna")
    one = await first.post("/config/bank", **await form_of(first) | {"workers": "8"})
    other = await second.post("/config/bank", **await form_of(second) | {"workers": "9"})
    assert (await applied(first, one)).status_code == 303
    late = await applied(second, other)
    assert late.status_code == 409
    assert "配置文件已被他人修改" in late.text
    assert on_disk(console)["bank"][0]["workers"] == 8


async def test_versions_are_shown_downloaded_and_brought_back(
    console: Console,  # noqa: F811
) -> None:
    person = await console.person("anna")
    first = console.rig.scene.config.read_text("utf-8")
    answer = await person.post("/config/bank", **await form_of(person) | {"workers": "9"})
    found = DRAFT.search(answer.text)
    assert found is not None
    await person.post("/config/apply", draft=found[1], confirm_s="300", note="<b>more</b>")
    shown = (await person.get("/config")).text
    assert "版本 2 暂时生效" in shown
    assert "&lt;b&gt;more" in shown
    piece = await person.get("/config?live", headers={"hx-request": "true"})
    assert "秒后自动恢复前一版本" in piece.text
    assert (await person.post("/config/confirm", version="2")).status_code == 303
    assert "暂时生效" not in (await person.get("/config")).text
    assert "-workers = 9" in html.unescape((await person.get("/config/versions/1")).text)
    kept = await person.get("/config/file?version=1")
    assert kept.text == first
    assert "fep-version-1.toml" in kept.headers["content-disposition"]
    assert (await person.get("/config/file")).text == console.rig.scene.config.read_text("utf-8")
    assert (await applied(person, await person.post("/config/versions/1"))).status_code == 303
    assert console.rig.scene.config.read_text("utf-8") == first
    audit = (await person.get("/audit")).text
    for act in ("config.save", "config.confirm", "config.export"):
        assert act in audit
    for path in ("/config/versions/99", "/config/versions/x", "/config/file?version=0"):
        assert (await person.get(path)).status_code == 404


async def test_what_is_not_confirmed_can_be_taken_back_at_once(
    console: Console,  # noqa: F811
) -> None:
    person = await console.person("anna")
    answer = await person.post("/config/bank", **await form_of(person) | {"workers": "9"})
    found = DRAFT.search(answer.text)
    assert found is not None
    await person.post("/config/apply", draft=found[1], confirm_s="60", note="")
    assert (await person.post("/config/take-back", version="1")).status_code == 303
    assert on_disk(console)["bank"][0]["workers"] == 4
    assert (await person.post("/config/confirm", version="2")).status_code == 409


async def test_a_file_that_became_faulty_is_shown_and_can_be_mended(
    console: Console,  # noqa: F811
) -> None:
    person = await console.person("anna")
    good = console.rig.scene.config.read_text("utf-8")
    console.rig.scene.config.write_text(good + "\n[[bank]\n", "utf-8")
    shown = await person.get("/config")
    assert shown.status_code == 200
    assert "磁盘上的文件有错误" in shown.text
    assert (await person.get("/config/text")).status_code == 200
    answer = await person.post("/config/text", text=good + "# mended\n")
    assert (await applied(person, answer)).status_code == 303
    assert console.rig.scene.config.read_text("utf-8") == good + "# mended\n"


async def test_what_is_not_there_is_said(console: Console) -> None:  # noqa: F811
    person = await console.person("anna")
    for path in ("/config/bank?name=none", "/config/bank?adapter=none", "/config/bank"):
        assert (await person.get(path)).status_code == 404, path
    assert (await person.post("/config/bank", adapter="none")).status_code == 404
    assert (await person.post("/config/apply", draft="none")).status_code == 404
    assert (await person.post("/config/remove", name="none")).status_code == 404


def test_the_newest_drafts_are_kept() -> None:
    drafts = Drafts()
    made = [drafts.keep("s", {}, "") for _ in range(DRAFTS_MAX + 1)]
    assert drafts.find("s", made[0].id) is None
    assert drafts.find("s", made[1].id) is made[1]
    assert drafts.find("other", made[1].id) is None


async def test_a_browser_that_is_gone_has_its_change_done_to_the_end(
    console: Console,  # noqa: F811
) -> None:
    person = await console.person("anna")
    answer = await person.post("/config/bank", **await form_of(person) | {"workers": "9"})
    found = DRAFT.search(answer.text)
    assert found is not None
    request = person.http.build_request(
        "POST",
        "/config/apply",
        data={"csrf": person.csrf, "draft": found[1], "confirm_s": "0", "note": ""},
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    address = console.url.removeprefix("http://").split(":")
    stream = await trio.open_tcp_stream(address[0], int(address[1]))
    await stream.send_all(f"POST /config/apply HTTP/1.1\r\n{head}\r\n".encode() + request.read())
    await stream.aclose()
    await console.rig.until(lambda: console.rig.logs.named("config.saved"), "the save")
    assert console.rig.daemon.config.banks[0].workers == 9
    assert [one.name for one in console.rig.daemon.config.banks] == [*console.rig.daemon.links]
