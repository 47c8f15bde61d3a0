"""Attempts by a bank, or by whoever sits on its line: what its XML names is never fetched."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fep.client import BlockingClient
from fep.domain.ids import TaskId, client_ref
from tests.attacks.rig import BANK, WAIT_SECONDS_MAX, Site, payment, until

MARK = "the-content-of-a-file-of-ours"


def hostile(path: Path) -> dict[str, bytes]:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return {
        "external entity": f'<?xml version="1.0" encoding="GBK"?><!DOCTYPE x [<!ENTITY e SYSTEM "file://{path}">]>'
        "<CMBSDKPGK><INFO><FUNNAM>&e;</FUNNAM><ERRMSG>&e;</ERRMSG></INFO></CMBSDKPGK>".encode(),
        "external document type": f'<!DOCTYPE CMBSDKPGK SYSTEM "file://{path}"><CMBSDKPGK/>'.encode(),
        "entity bomb": f'<!DOCTYPE x [<!ENTITY l0 "lol">{entities}]><CMBSDKPGK>&l9;</CMBSDKPGK>'.encode(),
        "nested elements": b"<a>" * 200_000,
        "attributes": b"<CMBSDKPGK " + b"".join(b'a%d="x" ' % n for n in range(100_000)) + b"/>",
        "UTF-16 document type": '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE x [<!ENTITY e "y">]><x>&e;</x>'.encode("utf-16"),
        "included file": f'<CMBSDKPGK xmlns:xi="http://www.w3.org/2001/XInclude"><xi:include href="file://{path}" parse="text"/></CMBSDKPGK>'.encode(),
        "style sheet": f'<?xml-stylesheet href="file://{path}"?><CMBSDKPGK/>'.encode(),
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile(Path("/x")))
def test_a_bank_answers_with_hostile_xml(attacked: Site, name: str) -> None:
    """A payment that is answered so is unknown, never paid again, and closed by the bank's truth."""
    secret = attacked.scene.directory / "file-of-ours"
    secret.write_text(MARK)
    task_id = f"XML-{name.replace(' ', '-')}"
    with attacked.unharmed():
        client = BlockingClient(
            f"tcp:127.0.0.1:{attacked.ports['token']}", "erp-2", token=attacked.token
        )
        with attacked.line.saying(hostile(secret)[name]), client:
            begun = time.monotonic()
            client.submit(task_id, BANK.name, "transfer", payment(attacked))

            def is_unknown() -> bool:
                found: str = client.call("task.get", {"task_id": task_id})["state"]
                return found == "unknown"

            until(is_unknown, "the payment's end is not known")
            assert time.monotonic() - begun < WAIT_SECONDS_MAX
            told = str(client.call("task.get", {"task_id": task_id}))
            assert MARK not in told + str(client.call("task.why", {"task_id": task_id}))
    book = attacked.scene.open_book()
    assert book.times_booked(client_ref("E0001", TaskId(task_id))) == 1
    book.close()
    assert MARK not in attacked.log_text()
    reasons = str(attacked.logged("reply.unmatched")) + attacked.log_text()
    assert "document type" in reasons or "not well-formed" in reasons or task_id in reasons
