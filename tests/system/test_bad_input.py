"""Bad input from outside: a clear error, nothing changed, and everybody else works on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient
from fep.sandbox.scene import FINANCE_CLIENT, Scene
from fep.wire.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, LINE_BYTES_MAX, PARSE_ERROR, REFUSED
from tests.system.wire import Wire, wire
from tests.system.work import every_task, open_tasks, transfer, violations

ANSWER_SECONDS_MAX = 30.0
ROOT = Path(__file__).resolve().parent.parent.parent
WAITING = "WAITS-FOR-ITS-BODY"


@pytest.fixture(scope="module")
def busy(running: Scene) -> Scene:
    """The running scene with one payment that stays open, so that a change would show."""
    payer, payee = running.accounts[4:6]
    with running.operator() as operator:
        operator.call("link.drain", {"bank": payer.bank})
    with wire(running) as client:
        body = transfer(running, payer, payee, "1.00")
        params: dict[str, Any] = {
            "task_id": WAITING,
            "bank": payer.bank,
            "kind": "transfer",
            "body": body,
        }
        assert client.ask("task.submit", **params)["result"]["state"] == "queued"
    return running


@contextmanager
def unchanged(scene: Scene) -> Iterator[None]:
    """Check that nothing changes inside the block, and that another session works all the time."""
    with scene.operator() as operator:
        before = every_task(operator)
        assert open_tasks(operator) == 1
        yield
        assert open_tasks(operator) == 1
        assert every_task(operator) == before
        # It does what it is asked, too, not only answers.
        payer, payee = scene.accounts[0:2]
        task_id = f"WORKS-{len(before)}"
        operator.submit(task_id, payer.bank, "transfer", transfer(scene, payer, payee, "1.00"))

        def done(client: BlockingClient) -> bool:
            return bool(client.call("task.get", {"task_id": task_id})["state"] == "succeeded")

        scene.wait(operator, done, "another session's payment")
        tasks = every_task(operator)
    assert violations(scene, [one for one in tasks if one["task_id"] != WAITING]) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            b'{"jsonrpc":"2.0","id":8,"method":"' + b"x" * LINE_BYTES_MAX + b'"}\n',
            "at most 1048576",
        ),
        (b"x" * (LINE_BYTES_MAX + 1), "at most 1048576"),
        ('{"jsonrpc":"2.0","id":8,"method":"平安"}\n'.encode("gbk"), "not UTF-8 (byte"),
        (b"transfer everything\n", "not JSON"),
        (b'{"jsonrpc":"2.0","id":8,"method":"status"\n', "not JSON"),
        (b"\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", "not UTF-8"),
    ],
    ids=["long", "endless", "gbk", "words", "cut", "empty", "deep", "tls"],
)
def test_a_line_that_can_not_be_read_ends_its_connection_alone(
    busy: Scene, line: bytes, message: str
) -> None:
    with unchanged(busy), wire(busy) as connection:
        connection.send(line)
        answer = connection.answer()
        assert answer is not None
        assert (answer["id"], answer["error"]["code"]) == (None, PARSE_ERROR)
        assert message in answer["error"]["message"]
        assert connection.at_end()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[]", "not a JSON-RPC 2.0 object"),
        (b'[{"jsonrpc":"2.0","id":8,"method":"status"}]', "not a JSON-RPC 2.0 object"),
        (b'{"id":8,"method":"status"}', '"jsonrpc": "2.0"'),
        (b'{"jsonrpc":"2.0","id":8,"method":"status","extra":1}', "unknown field `extra`"),
        (b'{"jsonrpc":"2.0","id":8}', "must have a method"),
    ],
    ids=["list", "batch", "version", "member", "nothing"],
)
def test_a_line_that_is_no_message_is_answered_and_the_session_goes_on(
    busy: Scene, line: bytes, message: str
) -> None:
    with unchanged(busy), wire(busy) as connection:
        connection.send(line + b"\n")
        answer = connection.answer()
        assert answer is not None
        assert answer["error"]["code"] == INVALID_REQUEST
        assert message in answer["error"]["message"]
        assert connection.ask("task.get", task_id=WAITING)["result"]["state"] == "queued"


def submission(scene: Scene, **changes: Any) -> dict[str, Any]:
    """Return a submission that is right but for the changes."""
    payer, payee = scene.accounts[0], scene.accounts[1]
    body = transfer(scene, payer, payee, "1.00")
    body["params"] |= changes.pop("params", {})
    return {"task_id": "BAD", "bank": "pingan", "kind": "transfer", "body": body} | changes


@pytest.mark.parametrize(
    ("method", "params", "code", "message"),
    [
        ("task.submit", {"urgent": True}, INVALID_PARAMS, "unknown field `urgent`"),
        ("task.submit", {"params": {"fee": "1.00"}}, INVALID_PARAMS, "fee"),
        ("task.submit", {"bank": "icbc"}, "UNKNOWN_BANK", "no bank 'icbc'; there are: cmb, pingan"),
        ("task.submit", {"kind": "receipt"}, "UNSUPPORTED_KIND", "bank pingan can't receipt"),
        ("task.submit", {"kind": "balance"}, INVALID_PARAMS, "body.kind is 'transfer'"),
        ("task.submit", {"kind": "loan"}, INVALID_PARAMS, "Invalid enum value 'loan'"),
        ("task.submit", {"task_id": "a b"}, INVALID_PARAMS, "task_id must be"),
        ("task.submit", {"priority": 10_000}, INVALID_PARAMS, "priority"),
        ("task.submit", {"params": {"amount": "1.005"}}, INVALID_PARAMS, "amount"),
        ("task.submit", {"params": {"amount": "-1.00"}}, INVALID_PARAMS, "amount"),
        ("task.submit", {"params": {"amount": "0.00"}}, INVALID_PARAMS, "amount"),
        ("task.submit", {"params": {"amount": 1.0}}, INVALID_PARAMS, "amount"),
        ("task.submit", {"params": {"currency": "USD"}}, INVALID_PARAMS, "currency"),
        (
            "task.submit",
            {"params": {"payer": {"account": "6222000000000000000"}}},
            INVALID_PARAMS,
            "is not an approved account",
        ),
        ("task.get", {"task_id": "NEVER-SEEN"}, "NOT_FOUND", "NEVER-SEEN"),
        ("task.get", {}, INVALID_PARAMS, "task_id"),
        ("task.cancel", {"task_id": "NEVER-SEEN"}, "NOT_FOUND", "NEVER-SEEN"),
        ("task.everything", {}, -32601, "no method 'task.everything'"),
        ("link.drain", {"bank": "pingan"}, "NOT_PERMITTED", "this session is finance"),
        ("config.apply", {}, "NOT_PERMITTED", "this session is finance"),
        ("pool.run", {"pool": "main"}, "NOT_PERMITTED", "this session is finance"),
        ("slot.unlock", {"slot": "ukey-pingan", "pin": "123456"}, "NOT_PERMITTED", "finance"),
        ("task.resolve", {"task_id": WAITING}, "NOT_PERMITTED", "this session is finance"),
    ],
)
def test_a_request_that_is_wrong_is_refused_in_words(
    busy: Scene, method: str, params: dict[str, Any], code: int | str, message: str
) -> None:
    if method == "task.submit":
        params = submission(busy, **params)
    with unchanged(busy), wire(busy) as connection:
        error = connection.ask(method, **params)["error"]
        found = error["data"]["code"] if error["code"] == REFUSED else error["code"]
        assert (found, message in error["message"]) == (code, True), error
        assert connection.ask("task.get", task_id=WAITING)["result"]["state"] == "queued"


@pytest.mark.parametrize(
    ("opening", "code"),
    [
        ({"client": FINANCE_CLIENT}, "NOT_PERMITTED"),
        ({"client": FINANCE_CLIENT, "token": "0" * 32}, "NOT_PERMITTED"),
        ({"client": "operator", "token": None}, "NOT_PERMITTED"),
        ({"token": None}, INVALID_PARAMS),
    ],
    ids=["no token", "wrong token", "unknown client", "no client"],
)
def test_who_does_not_prove_itself_gets_no_session(
    busy: Scene, opening: dict[str, Any], code: int | str
) -> None:
    if "token" in opening and opening["token"] is None:
        opening = opening | {"token": busy.token.read_text("utf-8").strip()}
    with unchanged(busy), closing(Wire(busy.port)) as connection:
        error = connection.ask("session.open", **opening)["error"]
        assert (error["data"]["code"] if error["code"] == REFUSED else error["code"]) == code
        assert connection.at_end()


def test_the_first_line_must_open_the_session(busy: Scene) -> None:
    with unchanged(busy), closing(Wire(busy.port)) as connection:
        error = connection.ask("task.submit", **submission(busy))["error"]
        assert error["code"] == INVALID_REQUEST
        assert "session.open" in error["message"]
        assert connection.at_end()


# -- fep check-config -----------------------------------------------------------------------------

FAULTS = (
    # (what stands in the shipped file, what stands there instead, key and words of the fault)
    ('mode = "production"', 'mode = "produktion"', "mode: ", "did you mean 'production'?"),
    ("# heartbeat_s = 10 ", "heartbeat_s = -1 ", "control.heartbeat_s: ", "number from"),
    ('role = "finance"', 'role = "financial"', "role: ", "did you mean 'finance'?"),
    ('backend = "pcsc"', 'backend = "pccs"', "backend: ", "did you mean 'pcsc'?"),
    ('adapter = "pingan_b2bi"', 'adapter = "pingan"', "adapter: ", "did you mean 'pingan_b2bi'?"),
    ("port = 7080", "port = 70800", "port: ", "65535"),
    ('slot = "ukey-2"', 'slot = "ukey-9"', "slot: ", "ukey-9"),
    ('threshold = "100000.00"', 'threshold = "100000.001"', "threshold: ", "two decimals"),
)


def check_config(path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``fep check-config`` on a file."""
    return subprocess.run(
        [sys.executable, "-m", "fep.daemon.main", "check-config", str(path)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=ANSWER_SECONDS_MAX,
    )


def test_check_config_reports_all_faults_of_a_file_at_once_and_where(directory: Path) -> None:
    text = (ROOT / "config/fep.toml").read_text("utf-8")
    for right, wrong, _, _ in FAULTS:
        assert right in text, right
        text = text.replace(right, wrong, 1)
    path = directory / "fep.toml"
    path.write_text(text, "utf-8")
    done = check_config(path)
    assert (done.returncode, done.stdout) == (1, "")
    places = re.findall(rf"^{re.escape(str(path))}:(\d+):(\d+): (.*)$", done.stderr, re.MULTILINE)
    assert len(places) == len(FAULTS), done.stderr
    lines = text.splitlines()
    for (line, column, told), (_, wrong, key, words) in zip(places, FAULTS, strict=True):
        # Where it says is where the wrong thing begins.
        assert lines[int(line) - 1][int(column) - 1 :].startswith(wrong.split(" = ")[0])
        assert wrong.strip() in lines[int(line) - 1]
        assert key in told
        assert words in told
    assert [(int(line), int(column)) for line, column, _ in places] == sorted(
        (int(line), int(column)) for line, column, _ in places
    )
    assert done.stderr.splitlines()[-1] == f"{len(FAULTS)} faults in {path}"
    assert "Traceback" not in done.stderr


def test_check_config_accepts_the_shipped_example() -> None:
    done = check_config(ROOT / "config/fep.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert "OK: 2 banks, 2 slots" in done.stdout


@pytest.mark.parametrize("what", ["nothing there", "a folder", "not TOML", "not text"])
def test_check_config_on_what_is_no_configuration(directory: Path, what: str) -> None:
    path = directory / "fep.toml"
    match what:
        case "a folder":
            path.mkdir()
        case "not TOML":
            path.write_text("mode = production\n")
        case "not text":
            path.write_bytes(b"\xff\xfe\x00")
        case _:
            pass
    done = check_config(path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}:1:")
    assert "Traceback" not in done.stderr
