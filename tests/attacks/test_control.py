"""Attempts on the control protocol: who one is, what one may, what one sends."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import secrets
import ssl
import time
from typing import Any

import pytest
import trustme
from cryptography import x509

from fep.control.session import LINE_SECONDS_MAX, OPEN_SECONDS_MAX
from fep.domain.ids import ClientName
from fep.wire.jsonrpc import LINE_BYTES_MAX
from fep.wire.proof import Key, opening_mac
from tests.attacks.rig import (
    BANK,
    LI,
    SECRET,
    STRANGER,
    WAIT_SECONDS_MAX,
    WANG,
    Raw,
    Site,
    payment,
    reset,
)
from tests.attacks.slow import Slow

PERMISSION = "NOT_PERMITTED"
WORKED_MEANWHILE = 15
OF_PEOPLE: dict[str, dict[str, Any]] = {
    "config.apply": {},
    "config.show": {},
    "slot.unlock": {"slot": f"ukey-{BANK.name}", "pin": "123456"},
    "link.drain": {"bank": BANK.name},
    "user.add": {"name": "mallory", "role": "admin", "password": "a-long-password"},
    "user.passwd": {"name": "anna", "password": "a-long-password"},
    "audit.list": {},
    "events.follow": {},
    "pool.run": {"pool": "main"},
    "task.resolve": {"task_id": "WORK-0", "outcome": "succeeded", "evidence": "because I say so"},
    "task.confirm": {"task_id": "WORK-0"},
    "restore.release": {"evidence": "because I say so"},
}


# -- roles ----------------------------------------------------------------------------------------


def test_a_finance_system_calls_what_only_people_may(attacked: Site) -> None:
    with attacked.unharmed(), attacked.finance() as raw:
        for method, params in OF_PEOPLE.items():
            assert raw.code(method, params) == PERMISSION
        # Nor does it choose its role when it opens, or open once more as somebody else.
        assert raw.code("session.open", {"client": "erp-2", "role": "admin"}) == -32602
        assert (
            raw.code("session.open", {"client": "auditor", "token": attacked.token}) == "BAD_STATE"
        )
        assert raw.code("status") is None
    for method in OF_PEOPLE:
        assert attacked.logged("session.denied", method=method, client="erp-2")
    assert not attacked.audited("user.add", name="erp-2")


def test_a_viewer_acts_as_an_operator(attacked: Site) -> None:
    with attacked.unharmed(), attacked.person(WANG) as raw:
        for method in ("link.drain", "slot.unlock", "config.apply", "user.add", "task.confirm"):
            assert raw.code(method, OF_PEOPLE[method]) == PERMISSION
        submit = {"task_id": "VIEWER-1", "bank": BANK.name, "kind": "transfer"}
        assert raw.code("task.submit", submit) == PERMISSION
        assert raw.code("task.cancel", {"task_id": "WORK-0"}) == PERMISSION
    assert attacked.logged("session.denied", method="link.drain", client="wang")


def test_an_operator_acts_as_an_administrator(attacked: Site) -> None:
    with attacked.unharmed(), attacked.person(LI) as raw:
        for method in ("config.apply", "user.add", "user.passwd"):
            assert raw.code(method, OF_PEOPLE[method]) == PERMISSION
    assert attacked.logged("session.denied", method="user.passwd", client="li")


# -- who one is -----------------------------------------------------------------------------------


def test_a_person_claims_another_name_on_the_unix_socket(attacked: Site) -> None:
    with attacked.unharmed(), attacked.person(LI, claims="zhao") as raw:
        assert raw.code("link.test", {"bank": BANK.name}) is None
    # It is on record under the name that the kernel proved.
    acts = attacked.audited("link.test")
    assert {one["name"] for one in acts} == {"li"}
    assert acts[0]["origin"] == f"unix uid {LI}"


def test_a_stranger_comes_over_the_unix_socket(attacked: Site) -> None:
    with attacked.unharmed():
        for name in ("root", "li", "operator", "erp-1"):
            with attacked.unix_as(STRANGER) as raw:
                assert raw.code("session.open", {"client": name}) == PERMISSION
                assert raw.ended()
    assert attacked.logged("session.refused", origin=f"unix uid {STRANGER}")


def test_a_client_takes_the_mail_of_the_daemons_own_parts(attacked: Site) -> None:
    with attacked.unharmed(), attacked.tcp() as raw:
        params = {"client": "fep:pooling", "token": attacked.token}
        assert raw.code("session.open", params) == PERMISSION
    assert attacked.logged("session.refused")


def test_a_token_is_guessed(attacked: Site) -> None:
    right, answers = attacked.token, set()
    with attacked.unharmed():
        for guess in ("", "0" * 32, right[:-1], right.upper(), right + "\n", "\0", "令" * 16):
            for client in ("erp-1", "nobody"):
                with attacked.tcp() as raw:
                    error = raw.ask("session.open", {"client": client, "token": guess})["error"]
                    assert raw.ended()
                answers.add((error["data"]["code"], error["message"]))
    # One answer for all: neither a name nor a beginning of the token can be told from it.
    assert answers == {(PERMISSION, "wrong or missing token")}
    assert attacked.logged("session.refused", reason="wrong or missing token")


def opening(client: str = "erp-2", secret: str = SECRET, key_id: str = "k1") -> dict[str, Any]:
    key = Key(key_id, ClientName(client), secret.encode())
    time_ms, nonce = int(time.time() * 1000), secrets.token_hex(16)
    mac = opening_mac(key.secret, key.id, client, time_ms, nonce)
    proof = {"key_id": key.id, "time": time_ms, "nonce": nonce, "mac": mac}
    return {"client": client, "proof": proof}


def opened(site: Site, params: dict[str, Any]) -> str | int | None:
    with site.tcp("keys") as raw:
        return raw.code("session.open", params)


def test_a_proof_is_replayed(attacked: Site) -> None:
    """What was heard on the wire opens nothing: not again, not later, not changed."""
    with attacked.unharmed():
        heard = opening()
        assert opened(attacked, heard) is None
        assert opened(attacked, heard) == "REPLAY"
        later = heard | {"proof": heard["proof"] | {"time": heard["proof"]["time"] + 1}}
        assert opened(attacked, later) == PERMISSION
        assert opened(attacked, heard | {"client": "erp-1"}) == PERMISSION
        assert opened(attacked, {"client": "erp-2", "token": SECRET}) == PERMISSION
    assert attacked.logged(
        "session.refused", reason="this proof was used before; a new one is needed"
    )


def test_a_proof_is_forged(attacked: Site) -> None:
    with attacked.unharmed():
        assert opened(attacked, opening(secret="0" * 40)) == PERMISSION
        # With an id that nobody has, whatever the key; and a client beside the key's own.
        for secret in ("", "0" * 32, SECRET):
            assert opened(attacked, opening(secret=secret, key_id="nobody")) == PERMISSION
        assert opened(attacked, opening(client="erp-1")) == PERMISSION
        assert opened(attacked, opening(client="auditor")) == PERMISSION
    assert attacked.logged("session.refused", reason="the proof is not right: BAD_MAC")


def test_another_name_than_the_certificates_is_claimed(attacked: Site) -> None:
    auditor = attacked.ca.issue_cert("auditor.example", common_name="auditor")
    names_only = attacked.ca.issue_cert("erp-1")
    with attacked.unharmed():
        for certificate in (auditor, names_only):
            with attacked.tls(certificate) as raw:
                assert raw.code("session.open", {"client": "erp-1"}) == PERMISSION
        for name in ("erp-1\n", "erp-1\0", "ERP-1", "erp-1,auditor", "*"):
            forged = attacked.ca.issue_cert("x.example", common_name=name)
            with attacked.tls(forged) as raw:
                assert raw.code("session.open", {"client": "erp-1"}) == PERMISSION
        with attacked.tls(auditor) as raw:
            assert raw.code("session.open", {"client": "auditor"}) is None
            assert raw.code("task.cancel", {"task_id": "WORK-0"}) == PERMISSION
    assert attacked.logged("session.refused")


def is_shut_out(site: Site, certificate: trustme.LeafCert | None) -> bool:
    try:
        raw = site.tls(certificate)
    except (ssl.SSLError, ConnectionError):
        return True
    with raw:
        return raw.ask("session.open", {"client": "erp-1"}) == {}


def test_a_certificate_that_has_ended_is_shown(attacked: Site) -> None:
    ended = attacked.ca.issue_cert(
        "e.example", common_name="erp-1", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    )
    with attacked.unharmed():
        assert is_shut_out(attacked, ended)
    assert "certificate has expired" in str(attacked.logged("session.tls_refused"))


def test_a_certificate_of_a_foreign_ca_is_shown(attacked: Site) -> None:
    """Also one of a CA that has the name of ours."""
    ours = x509.load_pem_x509_certificate(attacked.ca.cert_pem.bytes())
    names = {one.oid.dotted_string: one.value for one in ours.subject}
    alike = trustme.CA(
        organization_name=str(names["2.5.4.10"]), organization_unit_name=str(names["2.5.4.11"])
    )
    with attacked.unharmed():
        for ca in (trustme.CA(), alike):
            assert is_shut_out(attacked, ca.issue_cert("f.example", common_name="erp-1"))
        assert is_shut_out(attacked, None)
    assert "CERTIFICATE_VERIFY_FAILED" in str(attacked.logged("session.tls_refused"))


# -- what is another's ----------------------------------------------------------------------------


def test_a_client_reads_and_changes_the_tasks_of_another(attacked: Site) -> None:
    with attacked.unharmed(), attacked.finance() as raw:
        for method in ("task.get", "task.why", "task.cancel"):
            assert raw.code(method, {"task_id": "WORK-0"}) == "NOT_FOUND"
        shown = raw.ask("task.list", {"find": "WORK", "limit": 500})["result"]["tasks"]
        assert shown == []
        again = {"task_id": "WORK-0", "bank": BANK.name, "kind": "balance"}
        answer = raw.ask("task.submit", again)["error"]
        assert answer["data"]["code"] == "TASK_CONFLICT"
        account = attacked.scene.accounts[0].number
        assert account not in str(answer)
        # An answer to what the daemon never asked gives no other's task a body.
        for id_ in range(1, 20):
            body = {"jsonrpc": "2.0", "id": id_, "result": payment(attacked)}
            raw.send(json.dumps(body).encode() + b"\n")
        assert raw.code("status") is None
    assert attacked.logged("session.unexpected_response", client="erp-2")


# -- what one sends -------------------------------------------------------------------------------


def test_a_line_is_longer_than_may_be(attacked: Site) -> None:
    with attacked.unharmed():
        for first in (b"", b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":{"client":"'):
            with attacked.tcp() as raw:
                raw.send(first + b"x" * (LINE_BYTES_MAX + 1))
                line = raw.line()
                assert line is not None
                assert line["error"]["code"] == -32700
                assert raw.ended()
        with attacked.finance() as raw:
            raw.send(b"y" * (LINE_BYTES_MAX + 1))
            line = raw.line()
            assert line is not None
            assert line["error"]["code"] == -32700
            assert raw.ended()
    reason = f"a line may have at most {LINE_BYTES_MAX} bytes; split the work into more lines"
    assert attacked.logged("session.closed", client="erp-2", reason=reason)


BOMBS = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "closed lists": b"[" * 400_000 + b"]" * 400_000,
    "digits": b"9" * 900_000,
    "exponent": b"1e" + b"9" * 100_000,
    "members": b'{"jsonrpc":"2.0",' + b'"a":1,' * 100_000 + b'"b":2}',
    "escapes": b'"' + b"\\ud83d" * 100_000 + b'"',
    "NaN": b'{"jsonrpc":"2.0","id":1,"method":"status","params":NaN}',
    "batch": b"[" + b'{"jsonrpc":"2.0","id":1,"method":"status"},' * 10_000 + b"1]",
    "no UTF-8": b'{"jsonrpc":"2.0","id":"\xff\xfe","method":"status"}',
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_line_is_a_bomb(attacked: Site, name: str) -> None:
    with attacked.unharmed(), attacked.finance() as raw:
        begun = time.monotonic()
        raw.send(BOMBS[name] + b"\n")
        line = raw.line()
        assert line is not None
        assert line["error"]["code"] in (-32700, -32600)
        assert line["id"] is None
        assert time.monotonic() - begun < 5


def test_a_member_is_there_twice(attacked: Site) -> None:
    """Whoever checks the first and whoever acts on the last must be one."""
    with attacked.unharmed(), attacked.finance() as raw:
        raw.send(
            b'{"jsonrpc":"2.0","id":1,"method":"task.submit","params":{"task_id":"WORK-1",'
            b'"task_id":"TWICE-1","bank":"%b","kind":"balance","kind":"balance"},'
            b'"method":"status","method":"task.get","params":{"task_id":"WORK-1"}}\n'
            % BANK.name.encode()
        )
        line = raw.line()
        assert line is not None
        assert line["error"]["data"]["code"] == "NOT_FOUND"
        assert raw.code("task.get", {"task_id": "TWICE-1"}) == "NOT_FOUND"


PATHS = ("../../etc/passwd", "..", "/etc/passwd", "a/../../b", "a\0b", "%2e%2e%2f", "~", "-rf", "")


def test_a_path_stands_in_the_place_of_a_name(attacked: Site) -> None:
    with attacked.unharmed(), attacked.finance() as raw, attacked.person(LI) as li:
        for path in PATHS:
            submit = {"task_id": path, "bank": BANK.name, "kind": "balance"}
            assert raw.code("task.submit", submit) == -32602
            submit = {"task_id": "PATH-1", "bank": path, "kind": "balance"}
            assert raw.code("task.submit", submit) == "UNKNOWN_BANK"
            assert li.code("slot.unlock", {"slot": path, "pin": "123456"}) == "NOT_FOUND"
            assert li.code("link.drain", {"bank": path}) == "UNKNOWN_BANK"
    assert attacked.audited("link.drain", outcome="refused", name="li")


EVIL = 'x\n{"event":"forged","level":"error"}\r\n\x1b[31m\x1b]0;title\x07\u2028\u202e\x9b'


def test_lines_and_terminal_codes_are_written_into_the_log(attacked: Site) -> None:
    with attacked.unharmed():
        for token in (attacked.token, EVIL):
            with attacked.tcp() as raw:
                assert raw.code("session.open", {"client": EVIL, "token": token}) is not None
        with attacked.finance() as raw:
            assert raw.code(EVIL) == -32601
            raw.send(json.dumps({"jsonrpc": "2.0", "method": EVIL}).encode() + b"\n")
            submit = {"task_id": EVIL, "bank": EVIL, "kind": "balance"}
            assert raw.code("task.submit", submit) == -32602
        (record,) = attacked.logged("session.unknown_notification")
        assert "forged" in record["method"]
    text = attacked.log_text()
    # Also for readers to whom more than a line feed ends a line.
    assert all(json.loads(one)["event"] != "forged" for one in text.splitlines())
    assert not set(EVIL) & set(text) - set(map(chr, range(32, 127))) - {"\n"}


# -- too much, too slowly -------------------------------------------------------------------------


def test_one_client_floods_while_another_works(attacked: Site) -> None:
    """Over as many connections as it may have, with lines that are right and with hang-ups."""
    submit = {"task_id": "FLOOD-1", "bank": BANK.name, "kind": "balance"}
    line = {"jsonrpc": "2.0", "id": 1, "method": "task.submit", "params": submit}
    lines = (json.dumps(line).encode() + b"\n") * 500
    with attacked.unharmed(), contextlib.ExitStack() as stack:
        wires = []
        for _ in range(20):
            raw = stack.enter_context(attacked.tcp())
            params = {"client": "flood", "token": attacked.token}
            assert raw.code("session.open", params) is None
            raw.sock.setblocking(False)
            wires.append(raw)
        with attacked.tcp() as raw:
            assert (
                raw.code("session.open", {"client": "flood", "token": attacked.token}) == "LIMITED"
            )
        before, limit = attacked.worker.done, time.monotonic() + WAIT_SECONDS_MAX
        while attacked.worker.done < before + WORKED_MEANWHILE and time.monotonic() < limit:
            for raw in wires:
                with contextlib.suppress(BlockingIOError, ConnectionError, ssl.SSLError):
                    raw.sock.send(lines)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    raw.sock.recv(1 << 20)
        # Counted, not timed: its payments go from their begin to their end in the flood.
        assert attacked.worker.done >= before + WORKED_MEANWHILE
        for raw in wires[::2]:
            reset(raw.sock)
    assert attacked.logged(
        "session.refused", reason="flood has as many sessions as it may have; close one"
    )


def test_connections_are_opened_and_say_nothing(attacked: Site) -> None:
    with attacked.unharmed(), contextlib.ExitStack() as stack:
        for port in ("token", "tls", "keys"):
            for _ in range(150):
                stack.enter_context(attacked.tcp(port))
        with attacked.finance() as raw:
            assert raw.code("status") is None
    assert attacked.logged("session.crowded_out")


def test_answers_are_asked_for_and_not_read(attacked: Site) -> None:
    with attacked.unharmed(), attacked.finance() as raw:
        line = {"jsonrpc": "2.0", "id": 1, "method": "task.list", "params": {"limit": 500}}
        raw.sock.settimeout(1.0)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(200):
                raw.sock.sendall((json.dumps(line).encode() + b"\n") * 100)


def test_a_first_line_and_a_handshake_come_byte_by_byte(attacked: Site, slow: Slow) -> None:
    with attacked.unharmed():
        ended(slow, "first line", OPEN_SECONDS_MAX)
        ended(slow, "TLS", OPEN_SECONDS_MAX)
    assert attacked.logged("session.not_opened")


def test_a_line_comes_byte_by_byte(attacked: Site, slow: Slow) -> None:
    with attacked.unharmed():
        ended(slow, "line", LINE_SECONDS_MAX)
    reason = f"a line did not end within {LINE_SECONDS_MAX:g} s"
    assert attacked.logged("session.closed", client="erp-2", reason=reason)


def ended(slow: Slow, name: str, seconds_max: float) -> None:
    """Wait until a slow connection was cut off, and see that it was in time."""
    limit = time.monotonic() + seconds_max + WAIT_SECONDS_MAX
    while name not in slow.ended:
        assert time.monotonic() < limit, f"{name} was not cut off"
        time.sleep(0.05)
    assert slow.ended[name] < seconds_max + 10


__all__ = ["Raw"]
