"""Tasks on the console: many of them in pages, searched, exported, closed by two persons."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
import trustme

from fep.console.pages import tasks as page
from tests.console.rig import PASSWORD, Console, consoling
from tests.control.rig import BANK, Logs
from tests.control.test_commands import unknown

pytestmark = pytest.mark.req("FEP-10")

MANY = 1203
ROW = re.compile(r'<a href="/tasks/([^"?]+)"><code>')


def fill(console: Console) -> None:
    """Put tasks of three states into the store; each eleventh has words that are no formula."""
    with console.rig.store() as connection:
        connection.executemany(
            "INSERT INTO task (seq, task_id, client, bank, kind, priority, state, submitted_at,"
            " expires_at, body, client_ref, bank_message, updated_at, delivery)"
            " VALUES (?, ?, 'erp-1', ?, ?, 5, ?, ?, ?, ?, ?, ?, ?, 2)",
            [
                (
                    seq,
                    f"M-{seq:05d}",
                    f"bank-{seq % 2}",
                    "balance" if seq % 3 else "transfer",
                    "unknown" if seq == 7 else "rejected" if seq % 100 == 0 else "succeeded",
                    "2026-11-01T01:00:00.000+00:00",
                    "2026-11-02T01:00:00.000+00:00",
                    b'{"kind":"x","params":{"amount":"12.50","payer":{"account":"99"}}}',
                    f"F{seq:019d}",
                    "=cmd|' /C calc'!A0" if seq % 11 == 0 else "",
                    "2026-11-01T01:00:00.000+00:00",
                )
                for seq in range(1, MANY + 1)
            ],
        )


async def test_many_tasks_come_page_by_page_and_as_a_whole(
    directory: Path, key: Path, logs: Logs
) -> None:
    async with consoling(directory, key, logs) as console:
        fill(console)
        person = await console.person("vera")
        seen: list[str] = []
        path: str | None = "/tasks"
        while path is not None:
            text = (await person.get(path)).text
            rows = ROW.findall(text)
            assert len(rows) <= page.PAGE_TASKS
            seen += rows
            following = re.search(r'rel="next" href="([^"]+)"', text)
            path = None if following is None else following[1].replace("&amp;", "&")
        assert seen == [f"M-{seq:05d}" for seq in range(MANY, 0, -1)]
        for query, expected in [
            ("state=unknown", [7]),
            ("state=rejected", range(1200, 0, -100)),
            ("bank=bank-1&state=rejected", []),
            ("find=M-0110", range(1109, 1099, -1)),
            ("find=M-0110&kind=transfer", range(1107, 1099, -3)),
            ("find=F0000000000000000042", [42]),
            ("find=_-00001", []),
            ("find=%25", []),
        ]:
            rows = ROW.findall((await person.get(f"/tasks?{query}")).text)
            assert rows == [f"M-{seq:05d}" for seq in expected], query
        pieces = await person.get("/tasks?rows&find=M-00007", headers={"hx-request": "true"})
        assert "<html" not in pieces.text
        answer = await person.get("/tasks.csv")
        assert "attachment" in answer.headers["content-disposition"]
        read = list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"))))
        assert [one["task_id"] for one in read] == seen
        assert read[0]["amount"] == "12.50"
        assert not any(cell[:1] in "=+-@" for one in read for cell in one.values() if cell)
        rare = (await person.get("/tasks.csv?state=unknown")).text
        assert len(rare.splitlines()) == 2
        record = (await person.get("/audit")).text
        assert "tasks.export" in record


async def test_two_persons_close_what_is_unknown_and_one_can_not(
    directory: Path, key: Path, logs: Logs
) -> None:
    async with consoling(directory, key, logs) as console:
        await unknown(console.rig)
    async with consoling(directory, key, logs, people=False) as console:
        olaf, otto = await console.person("olaf"), await console.person("otto")
        short = await olaf.post("/tasks/U1/resolve", outcome="succeeded", evidence="seen")
        assert short.status_code == 409
        early = await otto.post("/tasks/U1/confirm", outcome="succeeded")
        assert early.status_code == 409
        told = {"outcome": "succeeded", "evidence": "statement of 2 March, line 9"}
        assert (await olaf.post("/tasks/U1/resolve", **told)).status_code == 303
        assert "statement of 2 March" in (await otto.get("/tasks/U1")).text
        alone = await olaf.post("/tasks/U1/confirm", outcome="succeeded")
        assert alone.status_code == 403
        other = await otto.post("/tasks/U1/confirm", outcome="rejected")
        assert other.status_code == 409
        assert (await otto.post("/tasks/U1/confirm", outcome="succeeded")).status_code == 303
        assert console.rig.stored("select state from task where task_id = 'U1'") == [("succeeded",)]
        record = (await olaf.get("/audit")).text
        for word in ("task.resolve", "task.confirm", "statement of 2 March, line 9", "被拒"):
            assert word in record
        assert PASSWORD not in record
        # The other way in has the same record.
        wire = await console.rig.admin("root")
        await wire.result("link.drain", {"bank": BANK.name})
        [first, *_] = (await wire.result("audit.list"))["acts"]
        assert (first["name"], first["what"], first["outcome"]) == ("root", "link.drain", "done")
        assert first["origin"].startswith("unix uid")


async def test_a_page_says_what_a_task_waits_for(directory: Path, key: Path, logs: Logs) -> None:
    async with consoling(directory, key, logs) as console:
        admin = await console.rig.admin()
        # What its link does changes by the moment.
        await admin.result("link.drain", {"bank": BANK.name})
        await admin.result("task.submit", {"task_id": "W1", "bank": BANK.name, "kind": "balance"})
        person = await console.person("vera")
        text = (await person.get("/tasks/W1")).text
        found = re.search(r"<dt>等待原因</dt><dd>([^<]+)</dd>", text)
        assert found is not None
        assert found[1] == (await admin.result("task.why", {"task_id": "W1"}))["waits_for"]


async def test_over_tls_the_cookie_is_for_tls_alone(directory: Path, key: Path, logs: Logs) -> None:
    authority = trustme.CA()
    ours = authority.issue_cert("127.0.0.1")
    (directory / "console.crt").write_bytes(b"".join(one.bytes() for one in ours.cert_chain_pems))
    (directory / "console.key").write_bytes(ours.private_key_pem.bytes())
    (directory / "console.key").chmod(0o600)
    files = {"certificate": "console.crt", "key": "console.key"}
    async with consoling(directory, key, logs, tls=files) as console:
        assert console.url.startswith("https://")
        import ssl  # noqa: PLC0415

        trusted = ssl.create_default_context()
        authority.configure_trust(trusted)
        person = console.browser(verify=trusted)
        answer = await person.log_in("vera")
        assert answer.status_code == 303
        kept = answer.headers["set-cookie"]
        assert kept.startswith("__Host-fep=")
        assert "Secure" in kept
        assert "strict-transport-security" in answer.headers
        assert (await person.get("/banks")).status_code == 200
