"""fepctl against a real daemon: every command, its JSON, its exit status, and what goes wrong."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme
from rich.cells import cell_len

from fep.client.blocking import BlockingClient
from fep.control import show
from fep.control.ctl import COMMANDS, main
from fep.domain.clock import SHANGHAI
from fep.domain.ids import ClientName
from fep.domain.money import Cny
from fep.sandbox.scene import BANKS, FINANCE_CLIENT, Scene, free_port, write_secret
from fep.wire.proof import Key
from tests.system.work import transfer

SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
NO_SUCH_ACCOUNT = "99000000000199"
"""Configured and approved, and unknown to its bank."""
INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from fep.control.ctl import main; sys.exit(main(sys.argv[1:]))"
)
"""A background job of a shell would be started with SIGINT ignored."""
NOBODY = 65_534


@attrs.frozen
class Ran:
    """How one command ended."""

    status: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The one JSON line of a command that was done."""
        assert self.err == ""
        (line,) = self.out.splitlines()
        return json.loads(line)


Ctl = Callable[..., Ran]


# -- the scene --------------------------------------------------------------------------------


def configuration(scene: Scene, tls_port: int, keys_port: int) -> dict[str, Any]:
    """Four pools that end in four ways, and a TLS listener for the client ``ops-1``."""
    config = scene.configuration()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(scene.directory / "ca.pem")
    for name, certificate in (
        ("server", authority.issue_cert("127.0.0.1")),
        ("ops-1", authority.issue_cert("ops-1@example.com", common_name="ops-1")),
        ("stranger", trustme.CA().issue_cert("ops-1@example.com", common_name="ops-1")),
    ):
        key = scene.directory / f"{name}.key"
        key.touch(0o600)
        certificate.private_key_pem.write_to_path(key)
        certificate.cert_chain_pems[0].write_to_path(scene.directory / f"{name}.crt")
    tls = {"certificate": "server.crt", "key": "server.key", "client_ca": "ca.pem"}
    config["control"]["tcp"].append({"listen": f"127.0.0.1:{tls_port}", "tls": tls})
    config["control"]["clients"]["ops-1"] = {"role": "operator"}
    config["alarms"] = {
        # One says yes to all, the other to nothing; of what really happens they tell nothing.
        "channel": [
            {"name": name, "kind": kind, "kinds": ["MACHINE_LOST"], key: where}
            for name, kind, key, where in (
                ("siem", "syslog", "address", f"unix:{scene.directory}/log"),
                ("hook", "webhook", "url", f"http://127.0.0.1:{free_port()}/"),
            )
        ]
    }
    lines = f"k1 {FINANCE_CLIENT} {'x' * 32}\nk2 ops-1 {'y' * 32}\n"
    write_secret(scene.directory / "keys", lines)
    keys = {"listen": f"127.0.0.1:{keys_port}", "keys_file": "keys"}
    config["control"]["tcp"].append(keys)
    pingan, cmb = scene.accounts[:4], scene.accounts[4:]
    config["account"].append(config["account"][1] | {"number": NO_SUCH_ACCOUNT})
    config["pool"] = [
        {
            "name": name,
            "target": scene.target.number,
            "member": [{"account": number, "threshold": limit} for number, limit in members],
        }
        for name, members in (
            ("main", [(pingan[1].number, "1000.00"), (pingan[2].number, "900000000.00")]),
            ("slow", [(cmb[0].number, "0.00")]),
            ("broken", [(NO_SUCH_ACCOUNT, "0.00")]),
        )
    ]
    return config


@pytest.fixture(scope="module")
def tls_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def keys_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def scene(tls_port: int, keys_port: int) -> Iterator[Scene]:
    """Two banks with software keys and the daemon; payments from cmb land and stay accepted."""
    path = Path(tempfile.mkdtemp(prefix="fep-t-"))
    with Scene(path, banks=BANKS[:2], accounts_per_bank=4) as scene:
        scene.start_hosts()
        landing = scene.hosts["cmb"]
        landing.stop()
        landing.faults = "landed=1.0"
        landing.start()
        scene.write_config(configuration(scene, tls_port, keys_port))
        scene.start_daemon()
        with scene.operator() as operator:
            scene.wait_ready(operator)
        yield scene
    shutil.rmtree(path)


@pytest.fixture
def ctl(scene: Scene, capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Run fepctl in this process against the scene's daemon."""

    def run(*words: str, address: str = f"unix:{scene.socket}") -> Ran:
        status = main(["--address", address, *words])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Ctl:
    """Run fepctl in this process with these words alone."""

    def run(*words: str) -> Ran:
        return Ran(main(list(words)), *capsys.readouterr())

    return run


@contextlib.contextmanager
def started(scene: Scene, *words: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run fepctl as a process; it is killed if the block leaves it running."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "--address", f"unix:{scene.socket}", *words]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **{**streams, **options}) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(look: Callable[[], Any], what: str) -> Any:
    """Poll until ``look()`` is something true, and return that."""
    limit = time.monotonic() + SECONDS_MAX
    while time.monotonic() < limit:
        if found := look():
            return found
        time.sleep(POLL_SECONDS)
    msg = f"{what}: not within {SECONDS_MAX:g} s"
    raise TimeoutError(msg)


def on_terminal(scene: Scene, *words: str, typed: str = "") -> tuple[int, str]:
    """Run fepctl on a terminal of its own, type when it asks; returns its status and screen."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 100))
    environment = os.environ | {"TERM": "xterm-256color"}
    environment.pop("COLUMNS", None)
    ends = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    shown = b""
    with started(scene, *words, start_new_session=True, env=environment, **ends) as process:
        os.close(terminal)
        limit = time.monotonic() + SECONDS_MAX
        while time.monotonic() < limit:
            if not select.select([screen], [], [], POLL_SECONDS)[0]:
                continue
            try:
                shown += os.read(screen, 65_536)
            except OSError:  # the other end is closed: it has ended
                break
            if typed and b": " in shown:
                os.write(screen, f"{typed}\n".encode())
                typed = ""
        status = process.wait(SECONDS_MAX)
    os.close(screen)
    return status, shown.decode()


def balance(scene: Scene) -> str:
    return json.dumps({"account": scene.accounts[1].number})


def landing(scene: Scene, amount: str) -> str:
    """The params of a payment from cmb, which its bank puts aside for a person."""
    payer, payee = scene.accounts[5], scene.accounts[6]
    return json.dumps(
        {
            "payer": {"account": payer.number},
            "payee": {
                "account": payee.number,
                "name": payee.name,
                "bank_code": BANKS[1].bank_code,
                "bank_name": BANKS[1].title,
            },
            "amount": amount,
            "currency": "CNY",
        }
    )


# -- help and usage ---------------------------------------------------------------------------


def test_alone_it_prints_help_with_every_command(bare: Ctl):
    ran = bare()
    assert ran.status == 0
    assert ran.out.startswith("usage: fepctl")
    for name in COMMANDS:
        assert re.search(rf"^    {name.split()[0]}\b", ran.out, re.MULTILINE), name
    assert bare("--help").status == bare("pool", "--help").status == 0
    for name, command in COMMANDS.items():
        helped = bare(*name.split(), "--help")
        assert helped.status == 0
        assert command.help.split()[0] in helped.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "invalid choice"),
        (["pool"], "required: COMMAND"),
        (["pool", "run"], "required: POOL"),
        (["status", "--timeout", "-1"], "not a number of seconds above 0"),
        (["status", "--timeout", "inf"], "not a number of seconds above 0"),
        (["status", "--timeout", "soon"], "not a number of seconds above 0"),
        (["status", "--address", "unix"], "is not unix:PATH, tcp:HOST:PORT or tls:HOST:PORT"),
        (["status", "--add", "/x"], "unrecognized arguments"),
        (["tasks", "--limit", "0"], "not a number from 1 to 500"),
        (["tasks", "--state", "paid"], "invalid choice: 'paid'"),
        (["resolve", "T1", "maybe", "--evidence", "x"], "invalid choice: 'maybe'"),
        (["resolve", "T1", "rejected"], "required: --evidence"),
        (["unlock", "ukey-cmb", "123456"], "unrecognized arguments"),
        (["submit", "T1", "pingan", "balance"], "required: JSON"),
        (["submit", "T1", "pingan", "blance", "{}"], "invalid choice: 'blance' (choose from"),
        (["submit", "T1", "pingan", "balance", "{}", "--priority", "12"], "from 0 to 9"),
        (["submit", "T1", "pingan", "balance", "[]"], "not a JSON object"),
        (["call", "status", "{"], "not JSON: Input data was truncated"),
        (["call", "status", "[]"], "not a JSON object"),
        (["call", "status", '{"a": 1e999}'], "not JSON"),
        (["call", "status", '{"a": ' + "[" * 5000], "not JSON"),
        (["call", "status", '{"a": "\\ud800"}'], "not JSON"),
        (["call", "status", "\udcff"], "the arguments are not UTF-8"),
        (["--address", "tls:127.0.0.1:1", "status"], "needs --tls-certificate, --tls-key and"),
        (["--tls-ca", "ca.pem", "--address", "/x", "status"], "is for an address tls:HOST:PORT"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_right(bare: Ctl, words: list[str], said: str):
    ran = bare(*words)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err


def test_help_and_the_release_are_found_as_people_look_for_them(bare: Ctl):
    assert bare("help") == bare("--help")
    assert "--evidence" in bare("help", "resolve").out
    ran = bare("--version")
    assert (ran.status, ran.err) == (0, "")
    assert re.fullmatch(r"fepctl \d+\.\d+\.\d+\S*\n", ran.out)


def test_the_environment_names_the_address(
    scene: Scene, bare: Ctl, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FEP_ADDRESS", f"unix:{scene.socket}")
    assert bare("status").status == 0
    monkeypatch.setenv("FEP_ADDRESS", "unix:")
    wrong = bare("status")
    assert wrong.status == 2
    assert "FEP_ADDRESS" in wrong.err
    monkeypatch.delenv("FEP_ADDRESS")
    default = bare("status", "--address", "/nowhere/fep.sock")
    assert "unix:/nowhere/fep.sock" in default.err


# -- the daemon -------------------------------------------------------------------------------


def test_status_for_people_and_programs(ctl: Ctl):
    ran = ctl("status")
    assert (ran.status, ran.err) == (0, "")
    assert re.search(r"^fep \S+, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, up 运行 \d+", ran.out)
    assert re.search(r"^pingan +ready", ran.out, re.MULTILINE)
    assert re.search(r"^ukey-cmb +ready$", ran.out, re.MULTILINE)
    value = ctl("status", "--json").value
    assert {"version", "queue", "slots", "links", "alarms", "store_full"} <= value.keys()
    # The options of the connection are taken before and after the command.
    assert ctl("--json", "status").value["version"] == value["version"]


def test_status_of_machines_that_share_a_store(ctl: Ctl, capsys: pytest.CaptureFixture[str]):
    value = ctl("status", "--json").value
    value["machine"] = "FEP-01"
    value["machines"] = {"FEP-01": ["bank:pingan", "pooling"], "FEP-02": []}
    value["queue"]["banks"]["far"] = {"open": {"queued": 2}, "drained": False, "in_flight": 0}
    show.status(value)
    shown = capsys.readouterr().out
    assert "machine 前置机 FEP-01 (this one 本机) serves 负责: pingan, pooling" in shown
    assert "machine 前置机 FEP-02 serves 负责: nothing 无" in shown
    assert re.search(r"^far ", shown, re.MULTILINE)


def test_slots_and_links(ctl: Ctl):
    ran = ctl("slots")
    assert ran.status == 0
    assert re.search(r"^slot +state +backend", ran.out)
    assert re.search(r"^卡槽 +状态", ran.out, re.MULTILINE)
    assert re.search(r"^ukey-pingan +ready +software .* [0-9a-f]{12} +20", ran.out, re.MULTILINE)
    assert [slot["name"] for slot in ctl("slots", "--json").value["slots"]] == [
        "ukey-pingan",
        "ukey-cmb",
    ]
    ran = ctl("links")
    assert re.search(r"^cmb +ready +127\.0\.0\.1:\d+", ran.out, re.MULTILINE)
    (pingan, _) = ctl("links", "--json").value["links"]
    assert pingan["bank"] == "pingan"
    assert pingan["drained"] is False


def test_tables_fit_their_terminal_and_are_whole_in_a_pipe(
    ctl: Ctl, monkeypatch: pytest.MonkeyPatch
):
    piped = ctl("links").out
    assert "\x1b" not in piped
    assert all(line == line.rstrip() for line in piped.splitlines())
    assert max(cell_len(line) for line in piped.splitlines()) > 100
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("links", "slots", "tasks", "alarms"):
        narrow = ctl(command).out
        assert max(cell_len(line) for line in narrow.splitlines()) <= 80, narrow


@pytest.mark.parametrize("columns", [1, 20, 40, 60, 79])
def test_a_narrow_terminal_loses_no_column(ctl: Ctl, monkeypatch: pytest.MonkeyPatch, columns: int):
    params = json.dumps({"account": NO_SUCH_ACCOUNT})
    task_id = f"narrow-{columns}-of-a-house-with-long-names"
    ctl("submit", task_id, "pingan", "balance", params, "--wait")
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = ctl("tasks", "--limit", "1")
    words = ("task", "bank", "kind", "state", "submitted", "code", "message")
    for word in (*words, "rejected", "pingan", "balance"):
        assert re.search(rf"\b{word}\b", ran.out), word
    lines = [line for line in ran.out.splitlines() if not line.startswith("…")]
    at = next(at for at, line in enumerate(lines) if "rejected" in line)
    assert lines[at].startswith(task_id[: show.NAME_COLUMNS_MIN])
    # What is folded goes on in the same place of the next lines.
    parts = [line[: lines[at].index(" ")].strip() for line in lines[at:]]
    assert "".join(parts) == task_id
    for command in ("links", "slots", "status", "alarms"):
        assert ctl(command).status == 0


@pytest.mark.parametrize(
    ("room", "widths"),
    [(100, [20, 8, 30]), (58, [20, 8, 30]), (50, [20, 8, 22]), (40, [16, 8, 16]), (23, [8, 8, 7])],
)
def test_the_widest_column_gives_room_first(room: int, widths: list[int]):
    assert show.fitted([20, 8, 30], [8, 8, 6], room) == widths


def test_columns_of_which_not_the_least_fits_stay_whole():
    assert show.fitted([20, 8, 30], [8, 8, 6], 21) == [20, 8, 30]
    assert show.fitted([2000, 8], [12, 8], 19) == [show.PIPE_COLUMNS - 8, 8]
    assert show.fitted([2000], [2000], 40) == [2000]
    assert show.fitted([], [], 40) == []


def test_ready_says_what_is_not(scene: Scene, ctl: Ctl):
    assert ctl("ready") == Ran(0, "ready 就绪\n", "")
    assert ctl("ready", "--json").value == {"ready": True, "not_ready": []}
    scene.hosts["cmb"].stop()
    try:
        ran = until(lambda: (ran := ctl("ready")).status and ran, "not ready")
        assert ran.status == 1
        assert re.fullmatch(r"not ready 未就绪: link cmb is \w+\n", ran.out)
        value = json.loads(ctl("ready", "--json").out)
        assert value["ready"] is False
        assert value["not_ready"][0].startswith("link cmb is ")
    finally:
        scene.hosts["cmb"].start()
    assert ctl("ready", "--wait", "60") == Ran(0, "ready 就绪\n", "")


def test_ready_looks_at_one_bank(scene: Scene, ctl: Ctl):
    assert ctl("ready", "--bank", "pingan").status == 0
    assert ctl("ready", "--bank", "none") == Ran(
        1, "not ready 未就绪: there is no bank 'none' here\n", ""
    )
    scene.hosts["cmb"].stop()
    try:
        until(lambda: ctl("ready").status == 1, "not ready")
        assert ctl("ready", "--bank", "pingan").status == 0
        ran = ctl("ready", "--bank", "cmb")
        assert ran.status == 1
        assert re.fullmatch(r"not ready 未就绪: link cmb is \w+\n", ran.out)
        ctl("drain", "pingan")
        assert "bank pingan is drained" in ctl("ready", "--bank", "pingan").out
        assert "bank pingan is drained" in ctl("ready").out
        words = ["submit", "waits-1", "pingan", "balance", balance(scene)]
        late = ctl(*words, "--wait", "--timeout", "0.5")
        assert "is not at its end after 0.5 s (bank pingan is drained); it goes on" in late.err
        assert ctl("why", "waits-1").out.endswith("\nwaits 等待: bank pingan is drained\n")
    finally:
        ctl("resume", "pingan")
        scene.hosts["cmb"].start()
    assert ctl("ready", "--wait", "60").status == 0


def test_ready_waits_no_longer_than_it_is_told(bare: Ctl, tmp_path: Path):
    began = time.monotonic()
    ran = bare("--address", f"unix:{tmp_path}/none.sock", "ready", "--wait", "0.5")
    assert 0.5 <= time.monotonic() - began < 10
    assert ran.status == 1
    assert "no daemon answers" in ran.err


def test_ready_waits_for_a_daemon_that_is_starting(scene: Scene, ctl: Ctl):
    scene.stop_daemon()
    address = ["--address", f"unix:{scene.socket}"]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "fep.control.ctl", *address, "ready", "--wait", "60"],
        stdout=subprocess.PIPE,
    )
    try:
        assert ctl("ready").status == 1
        assert waiting.poll() is None
    finally:
        scene.start_daemon()
    out, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, out.decode()) == (0, "ready 就绪\n")


def test_drain_holds_tasks_back_and_cancel_ends_them(scene: Scene, ctl: Ctl):
    assert ctl("drain", "pingan").out == "pingan: drained, sends nothing 已暂停\n"
    try:
        assert "yes 是" in ctl("links").out
        held = ctl("submit", "held-1", "pingan", "balance", balance(scene))
        assert held.status == 0
        assert "held-1 is queued 已入队" in held.out
        assert ctl("cancel", "held-1").out == "held-1 is cancelled: nothing was sent 已取消\n"
        again = ctl("cancel", "held-1")
        assert again.status == 1
        assert again.err.startswith("fepctl: BAD_STATE: the task is cancelled")
        ctl("submit", "held-2", "pingan", "balance", balance(scene))
        assert ctl("cancel", "held-2", "--json").value == {"state": "cancelled"}
    finally:
        resumed = ctl("resume", "pingan", "--json")
    assert resumed.value == {"bank": "pingan", "drained": False}
    unknown = ctl("drain", "nowhere")
    assert (unknown.status, unknown.out) == (1, "")
    assert unknown.err == "fepctl: UNKNOWN_BANK: no bank 'nowhere'\n"


def test_alarms_and_their_acknowledgement(scene: Scene, ctl: Ctl):
    until(lambda: ctl("alarms").out == "no alarms 没有告警\n", "earlier alarms over")
    # A finance system whose connection goes without a word is an alarm.
    token = scene.token.read_text("utf-8").strip()
    with socket.create_connection(("127.0.0.1", scene.port)) as finance:
        params = {"client": FINANCE_CLIENT, "token": token}
        line = {"jsonrpc": "2.0", "id": 1, "method": "session.open", "params": params}
        finance.sendall(json.dumps(line).encode() + b"\n")
        assert b"heartbeat_s" in finance.recv(4096)
    (alarm,) = until(lambda: ctl("alarms", "--json").value["alarms"], "an alarm")
    assert alarm["kind"] == "CLIENT_LOST"
    listed = ctl("alarms").out
    for part in (alarm["alarm_id"], "raised", FINANCE_CLIENT, alarm["title_zh"], alarm["action"]):
        assert part in listed
    taken = ctl("ack", alarm["alarm_id"], "--client", "zhang")
    assert taken.status == 0
    assert "acknowledged" in taken.out
    again = ctl("ack", alarm["alarm_id"], "--client", "zhang", "--json").value
    assert again["acknowledged_by"] == "zhang"
    missing = ctl("ack", "nothing")
    assert missing.status == 1
    assert missing.err == "fepctl: NOT_FOUND: no active alarm 'nothing'\n"
    # It comes back: the alarm is over, and is still among all of them.
    where = ["--address", f"tcp:127.0.0.1:{scene.port}", "--token-file", str(scene.token)]
    back = ctl(*where, "--client", FINANCE_CLIENT, "call", "session.heartbeat",
               '{"seq": 1, "time": "2026-01-05T09:00:00+08:00"}')  # fmt: skip
    assert back.status == 0
    assert alarm["alarm_id"] in ctl("alarms", "--all").out


def test_alarm_channels_are_shown_and_tried(scene: Scene, ctl: Ctl):
    names = [one["channel"] for one in ctl("channels", "--json").value["channels"]]
    assert names == ["siem", "hook"]
    listed = ctl("channels").out
    for part in ("siem", "syslog", "hook", "webhook", "idle"):
        assert part in listed
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as siem:
        siem.settimeout(10.0)
        siem.bind(str(scene.directory / "log"))
        good = ctl("channel-test", "siem")
        assert b" TEST - " in siem.recv(4096)
    assert (good.status, good.err) == (0, "")
    assert good.out.startswith("siem: delivered 已送达 (")
    bad = ctl("channel-test", "hook")
    assert bad.status == 1
    assert bad.out.startswith("hook: not delivered 未送达: ConnectError")
    assert "ConnectError" in ctl("channels").out
    missing = ctl("channel-test", "none")
    assert (missing.status, missing.err) == (1, "fepctl: NOT_FOUND: no alarm channel 'none'\n")


def test_unlock_reads_the_pin_and_never_takes_it_as_an_argument(
    scene: Scene, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "stdin", io.StringIO("123456\n"))
    ran = ctl("unlock", "ukey-cmb")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        "fepctl: KEY_UNAVAILABLE: slot ukey-cmb is ready, it waits for no PIN\n"
    )  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert ctl("unlock", "ukey-cmb").err == (
        "fepctl: KEY_UNAVAILABLE: a PIN of a software slot is 6 to 8 printable ASCII characters;"
        " nothing was sent to the key\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("123456"))
    assert ctl("unlock", "nothing").err.startswith("fepctl: NOT_FOUND: no slot 'nothing'")
    status, screen = on_terminal(scene, "unlock", "ukey-cmb", typed="86420975")
    assert status == 1
    assert "PIN of ukey-cmb: " in screen
    assert "it waits for no PIN" in screen
    assert "86420975" not in screen


def test_of_whom_there_are_no_acts_is_said(ctl: Ctl):
    ctl("drain", "cmb")
    ctl("resume", "cmb")
    assert "link.resume" in ctl("audit").out
    ran = ctl("audit", "nosuch name")
    assert (ran.status, ran.out) == (0, "no acts of nosuch name 没有该用户的操作记录\n")


def test_config_show_is_the_file_without_its_secrets(scene: Scene, ctl: Ctl):
    ran = ctl("config", "show")
    assert ran.status == 0
    assert ran.out.startswith(f"# in force 生效配置: {scene.config}")
    shown = tomllib.loads(ran.out)
    assert shown["enterprise"] == {"id": "E0001", "fep_number": "FEP-01"}
    assert [pool["name"] for pool in shown["pool"]] == ["main", "slow", "broken"]
    value = ctl("config", "show", "--json").value
    assert value["path"] == str(scene.config)
    assert value["config"]["mode"] == "demo"


def test_config_versions_and_the_way_back(scene: Scene, ctl: Ctl):
    good = scene.config.read_text("utf-8")
    first = ctl("config", "versions", "--json").value["versions"][0]["version"]
    scene.config.write_text(good.replace("workers = 4", "workers = 3", 1), "utf-8")
    try:
        assert ctl("config", "apply").status == 0
        shown = ctl("config", "versions")
        assert shown.out.split()[:3] == ["version", "time", "who"]
        assert f"{first + 1} " in shown.out
        assert ctl("config", "version", str(first)).out == good
        assert "+workers = 4" in ctl("config", "diff", str(first)).out.splitlines()
        number = str(first + 1)
        refused = ctl("config", "confirm", number)
        assert (refused.status, "waits for no confirmation" in refused.err) == (1, True)
    finally:
        back = ctl("config", "rollback", str(first), "--note", "as it was")
    assert back.status == 0
    assert scene.config.read_text("utf-8") == good
    assert ctl("config", "versions", "--json").value["versions"][0]["note"] == "as it was"
    missing = ctl("config", "version", "999")
    assert (missing.status, "no version 999" in missing.err) == (1, True)


def test_config_check_and_apply(scene: Scene, ctl: Ctl):
    good = scene.config.read_text("utf-8")
    assert ctl("config", "check") == Ran(0, "no faults 没有错误\n", "")
    scene.config.write_text(good.replace('mode = "demo"', 'mode = "test"'), "utf-8")
    try:
        ran = ctl("config", "check")
        assert (ran.status, ran.err) == (1, "")
        assert re.match(r".*fep\.toml:1:\d+: mode: ", ran.out)
        assert len(json.loads(ctl("config", "check", "--json").out)["faults"]) == 1
        refused = ctl("config", "apply")
        assert (refused.status, refused.out) == (1, "")
        assert refused.err.startswith("fepctl: BAD_STATE: 1 fault, nothing was changed:\n")
        assert "fep.toml:1" in refused.err
        scene.config.write_text(good.replace("workers = 4", "workers = 5", 1), "utf-8")
        changed = ctl("config", "apply")
        assert changed.status == 0
        assert "is in force 已生效\nchanged 已变更: pingan\nunchanged 未变: cmb\n" in changed.out
    finally:
        scene.config.write_text(good, "utf-8")
    assert ctl("config", "apply", "--json").value["changed"] == ["pingan"]
    until(lambda: ctl("ready").status == 0, "ready again")


# -- tasks ------------------------------------------------------------------------------------


def test_submit_waits_for_the_end_and_the_same_id_is_the_same_task(scene: Scene, ctl: Ctl):
    words = ["submit", "one-1", "pingan", "balance", balance(scene)]
    ran = ctl(*words, "--wait", "--priority", "7", "--expires", "600")
    assert (ran.status, ran.err) == (0, "")
    assert re.search(r"^task 任务 +one-1$", ran.out, re.MULTILINE)
    assert re.search(r"^state 状态 +succeeded$", ran.out, re.MULTILINE)
    assert re.search(r"^result 结果: available +\d+\.\d\d$", ran.out, re.MULTILINE)
    assert re.search(r"^priority 优先级 +7$", ran.out, re.MULTILINE)
    again = ctl(*words)
    assert again.out == "one-1 was known before 已存在: succeeded\n"
    assert ctl(*words, "--json").value == {
        "task_id": "one-1",
        "state": "succeeded",
        "known": True,
    }
    waited = ctl(*words, "--wait")
    assert (waited.status, waited.err) == (
        0, "one-1 was known before 已存在: nothing new is done, this is its end\n"
    )  # fmt: skip
    other = ctl(*words[:-1], json.dumps({"account": scene.accounts[2].number}))
    assert (other.status, other.out) == (1, "")
    assert other.err.startswith("fepctl: TASK_CONFLICT: ")
    wrong = ctl("submit", "one-2", "pingan", "balance", '{"acount": "1"}')
    assert wrong.status == 1
    assert wrong.err.startswith("fepctl: -32602: ")
    one = ctl("task", "one-1")
    assert one.status == 0
    assert "one-1" in one.out
    assert ctl("task", "one-1", "--json").value["state"] == "succeeded"
    assert ctl("task", "one-2").err == "fepctl: NOT_FOUND: there is no task one-2\n"


def test_a_statement_is_a_table_in_shanghai_time(scene: Scene, ctl: Ctl):
    payer, payee = scene.accounts[3], scene.accounts[0]
    paid = transfer(scene, payer, payee, "3.21")["params"]
    assert ctl("submit", "line-1", "pingan", "transfer", json.dumps(paid), "--wait").status == 0
    today = f"{dt.datetime.now(SHANGHAI):%Y-%m-%d}"
    asked = json.dumps({"account": payer.number, "from": today, "to": today})
    ran = ctl("submit", "lines-1", "pingan", "statement", asked, "--wait")
    assert ran.status == 0
    line = next(one for one in ran.out.splitlines() if " 3.21 " in one)
    assert re.match(rf"{today} \d\d:\d\d:\d\d +debit +3\.21 ", line)
    assert payee.number in line
    assert "{" not in ran.out


def test_a_body_comes_from_standard_input(scene: Scene, ctl: Ctl, monkeypatch: pytest.MonkeyPatch):
    def type_in(text: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    type_in(balance(scene).encode())
    ran = ctl("submit", "stdin-1", "pingan", "balance", "-", "--wait", "--json")
    assert ran.value["state"] == "succeeded"
    type_in(b'{"task_id": "stdin-1"}\n')
    assert ctl("call", "task.get", "-").value["kind"] == "balance"
    for wrong in (b"", b'{"task_id": "\xff"}', b"{}{}"):
        type_in(wrong)
        assert ctl("call", "task.get", "-").status == 2


def test_results_count_as_told_unless_another_name_is_given(
    scene: Scene, ctl: Ctl, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SUDO_USER", "zhang san")
    ctl("submit", "told-1", "pingan", "balance", balance(scene), "--wait")
    told = until(
        lambda: (task := ctl("task", "told-1", "--json").value)["acknowledged"] and task, "told"
    )
    assert told["client"] == "fepctl-zhang-san"
    # A name that is given may be a finance system's: its results wait for it.
    name = ["--client", "erp-9"]
    ctl("submit", "told-2", "pingan", "balance", balance(scene), "--wait", *name)
    for _ in range(3):
        assert ctl("task", "told-2", "--json", *name).value["acknowledged"] is False


def test_tasks_are_filtered_and_walked(scene: Scene, ctl: Ctl):
    for number in range(5):
        ctl("submit", f"walk-{number}", "pingan", "balance", balance(scene), "--wait")
    page = ctl("tasks", "--limit", "2", "--json").value
    assert [task["task_id"] for task in page["tasks"]] == ["walk-4", "walk-3"]
    assert page["cursor"]
    ran = ctl("tasks", "--limit", "2")
    assert "walk-4" in ran.out
    assert ran.out.endswith("… older ones: --limit NUMBER, or --all 更早的任务\n")
    whole = ctl("tasks", "--limit", "2", "--all", "--json").value
    assert "cursor" not in whole
    ids = [task["task_id"] for task in whole["tasks"]]
    assert ids[:5] == [f"walk-{number}" for number in (4, 3, 2, 1, 0)]
    assert len(ids) == len(set(ids)) > 5
    assert "older ones" not in ctl("tasks", "--all").out
    found = ctl("tasks", "--state", "succeeded", "--bank", "cmb", "--json").value["tasks"]
    assert all((task["bank"], task["state"]) == ("cmb", "succeeded") for task in found)
    assert ctl("tasks", "--state", "expired").out == "no tasks 没有任务\n"
    typo = ctl("tasks", "--bank", "pinggan")
    assert (typo.status, typo.out) == (1, "")
    assert "no bank 'pinggan', and no tasks of it; there are: cmb, pingan" in typo.err


def test_two_persons_close_a_payment_and_why_tells_it(scene: Scene, ctl: Ctl):
    ctl("submit", "land-1", "cmb", "transfer", landing(scene, "12.34"))
    until(lambda: ctl("task", "land-1", "--json").value["state"] == "accepted", "accepted")
    resolve = ["resolve", "land-1", "succeeded", "--client", "zhang", "--evidence"]
    short = ctl(*resolve, "x")
    assert short.status == 1
    assert short.err.startswith("fepctl: BAD_STATE: evidence must say where it was seen")
    evidence = "statement page 3, line 7"
    early = ctl("confirm", "land-1", "--client", "li")
    assert early.err == (
        "fepctl: BAD_STATE: nothing is proposed for this task; call task.resolve first\n"
    )
    proposed = ctl(*resolve, evidence)
    assert proposed.status == 0
    assert proposed.out == (
        "proposed 已提议 succeeded; another person runs: fepctl confirm land-1 succeeded\n"
    )
    assert ctl(*resolve, evidence, "--json").value["proposed"] == "succeeded"
    same = ctl("confirm", "land-1", "--client", "zhang")
    assert same.status == 1
    assert same.err.startswith("fepctl: NOT_PERMITTED: a second person must confirm")
    # The bank may be being asked at this moment.
    done = until(
        lambda: (ran := ctl("confirm", "land-1", "--client", "li")).status == 0 and ran, "confirmed"
    )
    assert done.out == "land-1 is succeeded 已确认\n"
    story = ctl("why", "land-1")
    assert (story.status, story.err) == (0, "")
    task, chain = story.out.split("\n\n", 1)
    assert re.search(r"^state 状态 +succeeded$", task, re.MULTILINE)
    lines = chain.splitlines()
    assert re.match(r"time +event +state +cause +digest", lines[0])
    assert re.match(r"20\S+ \S+  submitted +queued +task.submit of client", lines[3])
    sent = next(line for line in lines if " send_begun " in line)
    assert re.search(r" sending +sent as DCPAYMNT under \w{20} +[0-9a-f]{12}\b", sent)
    assert "zhang proposed, li confirmed: statement page 3, line 7" in lines[-1]
    value = ctl("why", "land-1", "--json").value
    assert value["task"]["state"] == "succeeded"
    states = [event["state"] for event in value["events"]]
    assert list(dict.fromkeys(states)) == ["queued", "sending", "accepted", "succeeded"]
    assert ctl("why", "nothing").err == "fepctl: NOT_FOUND: there is no task nothing\n"


def test_what_the_bank_told_of_held_payments_is_shown_beside_them(
    capsys: pytest.CaptureFixture[str],
):
    taken_at = "2026-01-05T01:00:00.000+00:00"
    held = {"task_id": "T1", "client": "erp", "bank": "pingan", "state": "queued",
            "submitted_at": taken_at, "client_ref": "F0"}  # fmt: skip
    value = {"held": True, "taken_at": taken_at, "count": 2, "answered": 0, "payments": [held]}
    show.restored(value)
    assert "answer" not in capsys.readouterr().out
    told = held | {"task_id": "T2", "answered_at": taken_at, "answer": "the bank has it: done 0"}
    show.restored(value | {"answered": 1, "payments": [held, told]})
    out = capsys.readouterr().out
    assert "the bank answered for 1 of these" in out
    [line] = [line for line in out.splitlines() if "the bank has it" in line]
    assert line.startswith("T2 ")


def test_why_leaves_out_the_middle_of_what_repeats(capsys: pytest.CaptureFixture[str]):
    event = {"state": "unknown", "cause": "no record yet", "configuration": "c" * 64}
    moments = [f"2026-01-05T01:00:{second:02d}.000+00:00" for second in range(30)]
    inquiries = [event | {"at": at, "event": "inquired"} for at in moments]
    last = event | {"at": "2026-01-06T01:00:00.000+00:00", "event": "proved_done"}
    show.why({"task": {"task_id": "T1", "state": "unknown", "result": None},
              "events": [*inquiries, last]})  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("inquired") == 3
    assert "… 28 more of these (--json has them all)" in out
    assert "09:00:00.000" in out
    assert "09:00:29.000" in out
    assert "09:00:01.000" not in out


# -- pools ------------------------------------------------------------------------------------


def test_the_rows_of_a_batch_are_a_table_of_their_own(capsys: pytest.CaptureFixture[str]):
    row = {"row": 0, "state": "returned", "amount": "1234.50", "client_ref": "B0", "bank_ref": "77"}
    result = {"client_ref": "F0", "rows": [row, row | {"row": 1, "state": "rejected"}]}
    task = {"task_id": "T1", "state": "returned", "result": result}
    show.task(task)
    shown = capsys.readouterr().out
    assert "result 结果: client_ref" in shown
    lines = [line.split() for line in shown.splitlines() if "B0" in line]
    assert lines == [
        ["0", "returned", "1,234.50", "B0", "77"],
        ["1", "rejected", "1,234.50", "B0", "77"],
    ]
    show.why({"task": task, "events": []})
    assert shown.splitlines()[-1] in capsys.readouterr().out


def test_pool_plan_then_run_then_round(scene: Scene, ctl: Ctl):
    plan = ctl("pool", "plan", "main")
    assert (plan.status, plan.err) == (0, "")
    rich, poor = scene.accounts[1], scene.accounts[2]
    above = rich.balance - Cny.parse("1000.00")
    assert rich.number in plan.out
    assert f"planned 计划 {show.amount(str(above))}, swept 已归集 0.00" in plan.out
    assert re.search(rf"^{poor.number} .* nothing ", plan.out, re.MULTILINE)

    ran = ctl("pool", "run", "main")
    assert (ran.status, ran.err) == (0, "")
    assert re.search(rf"^{rich.number} .* swept ", ran.out, re.MULTILINE)
    assert re.search(r"^round 归集 main-\d+ finished: 1 nothing, 1 swept in \d+\.\d s$", ran.out,
                     re.MULTILINE)  # fmt: skip
    assert ran.out.endswith(f"swept 已归集 {show.amount(str(above))}\n")
    # Amounts end in the same column, in groups of three digits.
    ends = {
        tuple(cell_len(line[: found.end()]) for found in re.finditer(r"[\d,]+\.\d\d", line))
        for line in ran.out.splitlines()
        if line.startswith((rich.number, poor.number))
    }
    assert len(ends) == 1
    assert "900,000,000.00" in ran.out

    pools = ctl("pool", "list")
    assert re.search(rf"^main +{scene.target.number} +2 .* finished ", pools.out, re.MULTILINE)
    (first, *_) = ctl("pool", "list", "--json").value["pools"]
    round_id = first["last_round"]["round_id"]
    assert round_id in ran.out
    assert ctl("pool", "round", round_id).out == ran.out
    value = ctl("pool", "round", round_id, "--json").value
    assert value["swept"] == str(above)
    assert {item["state"] for item in value["items"]} == {"swept", "nothing"}
    assert ctl("pool", "run", "main", "--json").value["states"] == {"nothing": 2}
    assert ctl("pool", "plan", "main", "--json").value["plan_only"] is True


def test_a_round_that_goes_on_is_left_to_the_daemon(ctl: Ctl):
    ran = ctl("pool", "run", "slow", "--timeout", "2")
    assert (ran.status, ran.out) == (1, "")
    assert re.match(r"fepctl: NOT_DONE: round slow-\d+ is not at its end after 2 s", ran.err)
    second = ctl("pool", "run", "slow")
    assert second.status == 1
    assert re.match(r"fepctl: BAD_STATE: round slow-\d+ .* is still running", second.err)


def test_a_round_with_a_failed_account_exits_1(ctl: Ctl):
    ran = ctl("pool", "run", "broken")
    assert (ran.status, ran.err) == (1, "")
    assert re.search(rf"^{NO_SUCH_ACCOUNT} .* failed ", ran.out, re.MULTILINE)
    started = ctl("pool", "run", "broken", "--no-wait")
    assert started.status == 0
    assert re.search(r"see: fepctl pool round broken-\d+$", started.out)
    assert ctl("pool", "plan", "nowhere").err.startswith("fepctl: NOT_FOUND: no pool 'nowhere'")
    assert ctl("pool", "round", "nowhere").err.startswith("fepctl: NOT_FOUND: ")


def test_a_round_is_waited_for_over_a_restart_of_the_daemon(scene: Scene, ctl: Ctl):
    ctl("drain", "pingan")
    with started(scene, "pool", "run", "main", "--json") as process:
        until(
            lambda: (
                (ctl("pool", "list", "--json").value["pools"][0]["last_round"] or {}).get("state")
                == "running"
            ),
            "the round runs",
        )
        scene.stop_daemon()
        scene.start_daemon()
        until(lambda: ctl("resume", "pingan").status == 0, "resumed")
        out, err = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["state"] == "finished"


def test_on_a_terminal_a_round_is_followed_in_colour(scene: Scene):
    status, screen = on_terminal(scene, "pool", "run", "main")
    assert status == 0
    assert re.search(r"\x1b\[32m.\x1b\[0m round 归集 main-\d+ (running|finished)", screen)
    assert "\x1b[2K" in screen  # the line is taken away in the end
    assert "finished: 2 nothing" in screen
    assert "excess" not in screen  # a column for wider terminals than this one


# -- events -----------------------------------------------------------------------------------


def read_line(process: subprocess.Popen[bytes], has: str) -> str:
    assert process.stdout is not None
    while line := process.stdout.readline().decode():
        if has in line:
            return line
    msg = f"no line has {has}"
    raise AssertionError(msg)


def test_events_are_followed_until_ctrl_c(scene: Scene, ctl: Ctl):
    with (
        started(scene, "events", "task.ended") as people,
        # Of nothing else: a session's events would not say that a task's end will come.
        started(scene, "events", "task.ended", "--json") as programs,
    ):
        followed = 0

        def submit_more() -> bool:
            # Until both follow, what happens is not told to them.
            nonlocal followed
            ctl("submit", f"event-{followed}", "pingan", "balance", balance(scene), "--wait")
            followed += 1
            streams = [process.stdout for process in (people, programs) if process.stdout]
            return len(select.select(streams, [], [], POLL_SECONDS)[0]) == 2

        until(submit_more, "both follow")
        line = read_line(people, "task.ended")
        assert re.match(
            r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} info +task\.ended .*state=succeeded", line
        )
        record = json.loads(read_line(programs, '"task.ended"'))
        assert record["task_id"].startswith("event-")
        for process in (people, programs):
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS_MAX)
            assert (process.returncode, err) == (0, b"")


def test_a_reader_that_goes_away_ends_it_quietly(scene: Scene, ctl: Ctl):
    with started(scene, "events") as process:
        assert process.stdout is not None
        process.stdout.close()

        def ended() -> bool:
            ctl("submit", "event-0", "pingan", "balance", balance(scene))
            return process.poll() is not None

        until(ended, "events ended")
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (141, b"")


LOST = b"what was to be said could not be written: No space left on device\n"


def test_a_task_that_was_taken_is_not_called_refused_where_nobody_can_be_told(
    scene: Scene, ctl: Ctl
):
    def told_nobody(
        number: int, *more: str, shell: str = ">/dev/full", bank: str = "pingan"
    ) -> tuple[int, bytes]:
        words = ["submit", f"untold-{number}", bank, "balance", balance(scene), *more]
        command = [sys.executable, "-m", "fep.control.ctl", "--address", f"unix:{scene.socket}"]
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {shell}', "-", *command, *words],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=SECONDS_MAX,
            check=False,
        )
        return done.returncode, done.stderr

    assert told_nobody(0) == (3, b"fepctl: NOT_WRITTEN: done, but " + LOST)
    assert told_nobody(1, "--wait") == (3, b"fepctl: NOT_WRITTEN: done, but " + LOST)
    status, err = told_nobody(2, "--json")
    assert (status, json.loads(err)["code"]) == (3, "NOT_WRITTEN")
    assert told_nobody(3, shell=">/dev/full 2>&1") == (3, b"")
    assert told_nobody(3, "--wait", shell=">/dev/full 2>&1") == (3, b"")
    assert told_nobody(4, shell=">&-") == (0, b"")
    assert told_nobody(5, shell=">&- 2>&-") == (0, b"")
    for number in range(6):
        assert ctl("task", f"untold-{number}").status == 0
    status, err = told_nobody(6, bank="nowhere")
    assert (status, b"written" in err) == (1, False)
    assert told_nobody(6, bank="nowhere", shell=">/dev/full 2>&1") == (1, b"")
    assert ctl("task", "untold-6").status == 1


def test_an_end_that_was_not_wished_stays_status_1_where_nobody_can_be_told(scene: Scene, ctl: Ctl):
    gone = json.dumps({"account": NO_SUCH_ACCOUNT})
    words = ["submit", "untold-bad", "pingan", "balance", gone, "--wait"]
    with Path("/dev/full").open("wb") as full, started(scene, *words, stdout=full) as process:
        assert process.stderr is not None
        assert (process.wait(SECONDS_MAX), process.stderr.read()) == (
            1,
            b"fepctl: NOT_WRITTEN: " + LOST,
        )
    assert json.loads(ctl("task", "untold-bad", "--json").out)["state"] == "rejected"


def test_events_end_where_nobody_can_be_told(scene: Scene, ctl: Ctl):
    with Path("/dev/full").open("wb") as full, started(scene, "events", stdout=full) as process:

        def ended() -> bool:
            ctl("submit", "event-0", "pingan", "balance", balance(scene))
            return process.poll() is not None

        until(ended, "events ended")
        assert process.returncode == 3


def test_ctrl_c_while_waiting_exits_130(scene: Scene, ctl: Ctl):
    words = ["submit", "land-2", "cmb", "transfer", landing(scene, "56.78"), "--wait"]
    with started(scene, *words) as process:
        until(
            lambda: (
                (ran := ctl("task", "land-2", "--json")).status == 0
                and ran.value["state"] == "accepted"
            ),
            "accepted",
        )
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS_MAX)
    assert (process.returncode, out) == (130, b"")
    assert err == b"fepctl: INTERRUPTED: Ctrl-C; what the daemon has begun goes on\n"


# -- call -------------------------------------------------------------------------------------


def test_call_reaches_any_method(scene: Scene, ctl: Ctl):
    assert ctl("call", "status").value["protocol"] == 1
    assert ctl("call", "pool.list", "{}").value["pools"][0]["pool"] == "main"
    params = {"task_id": "call-1", "bank": "pingan", "kind": "balance",
              "body": {"kind": "balance", "params": json.loads(balance(scene))}}  # fmt: skip
    admitted = ctl("call", "task.submit", json.dumps(params)).value
    assert admitted["task_id"] == "call-1"
    # A member that is null is sent as it is, not left out.
    null = ctl("call", "task.get", '{"task_id": null}')
    assert null.status == 1
    assert null.err.startswith("fepctl: -32602: ")


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("nothing", "{}", "-32601"),
        ("status", '{"a": 1}', "-32602"),
        ("task.get", '{"task_id": "nothing"}', "NOT_FOUND"),
        ("session.open", '{"client": "again"}', "BAD_STATE"),
    ],
)
def test_call_tells_refusals_with_their_code(ctl: Ctl, method: str, params: str, code: str):
    ran = ctl("call", method, params)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"fepctl: {code}: ")
    machine = ctl("call", method, params, "--json")
    assert (machine.status, machine.out) == (1, "")
    told = json.loads(machine.err)
    assert told["code"] == code
    assert ran.err == f"fepctl: {code}: {told['message']}\n"


def test_a_finance_system_over_tcp_is_refused_what_is_not_its_own(scene: Scene, ctl: Ctl):
    where = ["--address", f"tcp:127.0.0.1:{scene.port}", "--client", FINANCE_CLIENT]
    token = ["--token-file", str(scene.token)]
    assert ctl(*where, *token, "status").status == 0
    refused = ctl(*where, *token, "call", "config.show")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("fepctl: NOT_PERMITTED: config.show needs one of the roles ")
    assert "this session is finance" in refused.err
    for wrong in (where, [*where[:-1], "stranger", *token]):
        ran = ctl(*wrong, "status")
        assert (ran.status, ran.out) == (1, "")
        assert ran.err.startswith("fepctl: NOT_PERMITTED: ")


# -- connections that fail --------------------------------------------------------------------


def test_tls_proves_who_asks(scene: Scene, ctl: Ctl, tls_port: int):
    def tls(name: str, client: str = "ops-1") -> Ran:
        files = [str(scene.directory / file) for file in (f"{name}.crt", f"{name}.key", "ca.pem")]
        options = ["--tls-certificate", files[0], "--tls-key", files[1], "--tls-ca", files[2]]
        where = f"tls:127.0.0.1:{tls_port}"
        return ctl(*options, "--client", client, "status", "--json", address=where)

    assert tls("ops-1").value["protocol"] == 1
    other_name = tls("ops-1", client="ops-2")
    assert other_name.status == 1
    assert json.loads(other_name.err)["code"] == "NOT_PERMITTED"
    stranger = tls("stranger")
    assert stranger.status == 1
    told = json.loads(stranger.err)
    assert told["code"] == "DISCONNECTED"
    assert "no session" not in told["message"]  # told at once, not after ten seconds of trying
    missing = tls("missing")
    assert missing.status == 1
    assert json.loads(missing.err)["code"] == "BAD_FILE"


def test_no_daemon(bare: Ctl, scene: Scene):
    nothing = scene.directory / "nothing.sock"
    dead = scene.directory / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    for address in (f"unix:{nothing}", f"unix:{dead}", f"tcp:127.0.0.1:{free_port()}"):
        for command in ("status", "ready"):
            ran = bare("--address", address, command)
            assert (ran.status, ran.out) == (1, "")
            assert ran.err == (
                f"fepctl: DISCONNECTED: no daemon answers at {address}; "
                "is fep running? systemctl status fep\n"
            )
    too_long = bare("--address", f"unix:/{'x' * 200}", "status")
    assert too_long.status == 1
    assert "path too long" in too_long.err


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Be somebody for whom a file's mode counts."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_socket_that_is_not_ours_to_use(bare: Ctl, scene: Scene):
    path = scene.directory / "closed.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0)
        with without_root():
            ran = bare("--address", f"unix:{path}", "status")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        f"fepctl: DISCONNECTED: no permission to use {path}: only members of the socket's group "
        "(fep-ops) may; ask for: usermod -aG fep-ops USER\n"
    )


def test_a_token_file_that_cannot_be_read(bare: Ctl, scene: Scene, tmp_path: Path):
    where = ["--address", f"tcp:127.0.0.1:{scene.port}", "--token-file"]
    missing = bare(*where, "/nowhere/token", "status")
    assert (missing.status, missing.out) == (1, "")
    assert missing.err.startswith("fepctl: BAD_FILE: --token-file /nowhere/token: ")
    closed = tmp_path / "token"
    closed.touch(0)
    with without_root():
        ran = bare(*where, str(closed), "status")
    assert ran.status == 1
    assert ran.err.startswith(f"fepctl: BAD_FILE: --token-file {closed}: [Errno 13]")


def test_a_key_file_opens_and_is_told_where_it_can_not_be_used(
    scene: Scene, bare: Ctl, tmp_path: Path, keys_port: int
):
    where = ["--address", f"tcp:127.0.0.1:{keys_port}"]
    keys = scene.directory / "keys"
    given = [*where, "--key-file", str(keys)]
    # The name is that of the last key, or the one that is given.
    for name, who in (([], "ops-1"), (["--client", FINANCE_CLIENT], FINANCE_CLIENT)):
        ran = bare(*given, *name, "call", "session.heartbeat", '{"seq": 1, "time": ""}')
        assert (ran.status, ran.err) == (0, ""), who
    stranger = bare(*given, "--client", "stranger", "status")
    assert stranger.err == f"fepctl: BAD_FILE: --key-file {keys}: there is no key of stranger\n"
    wrong = tmp_path / "keys"
    wrong.write_text("k1 ops-1 short\n")
    ran = bare(*where, "--key-file", str(wrong), "status")
    assert ran.err.startswith(f"fepctl: BAD_FILE: --key-file {wrong}: line 1: a secret has 32")
    wrong.write_text(f"k2 ops-1 {'z' * 40}\n")
    ran = bare(*where, "--key-file", str(wrong), "status")
    assert ran.err.startswith("fepctl: NOT_PERMITTED: the proof is not right")
    for usage in (["--address", f"unix:{scene.socket}"], [*where, "--token-file", str(keys)]):
        ran = bare(*usage, "--key-file", str(keys), "status")
        assert ran.status == 2


@pytest.mark.parametrize("name", [[], ["--client", FINANCE_CLIENT]])
def test_a_key_file_leaves_what_is_owed_to_the_finance_system(
    scene: Scene, bare: Ctl, tmp_path: Path, keys_port: int, name: list[str]
):
    """Whoever holds its key opens under its name, and is told its results: they are not had yet."""
    secret = "x" * 32
    (keys := tmp_path / "keys").write_text(f"k1 {FINANCE_CLIENT} {secret}\n")
    address = f"tcp:127.0.0.1:{keys_port}"
    key = Key("k1", ClientName(FINANCE_CLIENT), secret.encode())
    owed, later = f"owed-{len(name)}", f"later-{len(name)}"
    body = {"kind": "balance", "params": json.loads(balance(scene))}
    with scene.operator() as operator:

        def task(task_id: str) -> Any:
            return operator.call("task.get", {"task_id": task_id})

        with BlockingClient(address, FINANCE_CLIENT, key=key) as finance:
            finance.submit(owed, "pingan", "balance", body=body)
            until(lambda: task(owed)["state"] == "succeeded", "the end")
        words = ["submit", later, "pingan", "balance", balance(scene), "--wait"]
        ran = bare("--address", address, "--key-file", str(keys), *name, *words)
        assert (ran.status, ran.err) == (0, "")
        assert not task(owed)["acknowledged"]
        assert not task(later)["acknowledged"]
        told: list[str] = []
        with BlockingClient(
            address, FINANCE_CLIENT, key=key, result=lambda one: told.append(one.task_id)
        ):
            until(lambda: {owed, later} <= set(told), "the results")
            until(lambda: task(owed)["acknowledged"], "the acknowledgement")


@contextlib.contextmanager
def peer(scene: Scene, *answers: bytes) -> Iterator[str]:
    """Something that takes connections and gives these answers, one a read, then closes."""
    path = scene.directory / "peer.sock"
    script = (
        "import socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX); sock.bind(sys.argv[1]); sock.listen()\n"
        "print(flush=True)\n"
        "stream, _ = sock.accept()\n"
        "for answer in sys.argv[2:]:\n"
        "    stream.recv(65536); stream.sendall(answer.encode() + b'\\n')\n"
        "if len(sys.argv) == 2: sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", script, str(path), *(answer.decode() for answer in answers)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield f"unix:{path}"
        finally:
            process.kill()
            path.unlink()


def test_a_daemon_that_hangs_is_waited_for_as_long_as_was_said(bare: Ctl, scene: Scene):
    with peer(scene) as address:
        ran = bare("--address", address, "--timeout", "0.3", "ready")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"fepctl: DISCONNECTED: no session with {address} within 0.3 s")


WELCOME = b'{"jsonrpc": "2.0", "id": 1, "result": {"heartbeat_s": 10}}'


def test_a_call_without_an_answer_ends_at_its_deadline(bare: Ctl, scene: Scene):
    with peer(scene, WELCOME, b'{"jsonrpc": "2.0", "id": 9, "result": {}}', b"", b"") as address:
        ran = bare("--address", address, "--timeout", "2", "status")
    assert ran.status == 1
    assert ran.err.startswith("fepctl: DISCONNECTED: no answer to status within ")


def test_events_end_when_the_daemon_goes(bare: Ctl, scene: Scene):
    with peer(scene, WELCOME, b'{"jsonrpc": "2.0", "id": 2, "result": {}}') as address:
        ran = bare("--address", address, "events")
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith("fepctl: DISCONNECTED: ")
    assert f"{address} closed the connection" in ran.err


def test_a_peer_that_is_no_daemon(bare: Ctl, scene: Scene):
    with peer(scene, b"HTTP/1.1 400 Bad Request") as address:
        ran = bare("--address", address, "status")
    assert ran.status == 1
    assert ran.err.startswith("fepctl: DISCONNECTED: ")
    assert "Traceback" not in ran.err


# -- what is printed --------------------------------------------------------------------------


def test_foreign_text_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]):
    evil = "ok\x1b]0;owned\x07\x9b2J\r"
    task = {"task_id": "T1", "state": "succeeded", "result": {evil: evil}, "bank_message": evil}
    show.task(task)
    show.why({"task": task, "events": [{"event": evil, "state": evil, "cause": evil}]})
    show.tasks({"tasks": [task | {"bank_code": "[bold]"}]})
    show.event({"event": "task.ended", "reason": f"{evil}\nforged line"})
    show.line(evil)
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert "forged line" in out
    assert "\nforged line" not in out
    assert "[bold]" in out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90_061, "1 d 1 h")],
)
def test_spans(seconds: float, said: str):
    assert show.span(seconds) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [("0.00", "0.00"), ("-0.50", "-0.50"), ("1234567.80", "1,234,567.80"), (None, "")],
)
def test_amounts(text: str | None, said: str):
    assert show.amount(text) == said


def test_times_are_shown_on_a_shanghai_clock():
    assert show.moment("2026-01-05T23:30:00.250+00:00") == "2026-01-06 07:30:00"
    assert show.exact_moment("2026-01-05T23:30:00.250+00:00") == "2026-01-06 07:30:00.250"
    assert show.moment(None) == show.exact_moment(None) == ""


def test_a_terminal_without_chinese_gets_escapes(scene: Scene):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for words in (["status"], ["status", "--json"]):
        with started(scene, *words, env=environment) as process:
            out, err = process.communicate(timeout=SECONDS_MAX)
        assert (process.returncode, err) == (0, b"")
        assert out.isascii()


def test_it_loads_only_what_it_needs(scene: Scene):
    script = (
        "import sys; from fep.control.ctl import main; status = main(sys.argv[1:]); "
        "print([name for name in ('trio', 'rich', 'sqlalchemy', 'structlog', 'cryptography') "
        "if name in sys.modules]); sys.exit(status)"
    )
    words = ["--address", f"unix:{scene.socket}", "status"]
    for more, loaded in (([], "['rich']"), (["--json"], "[]")):
        ran = subprocess.run(
            [sys.executable, "-c", script, *words, *more], capture_output=True, check=True
        )
        assert ran.stdout.decode().splitlines()[-1] == loaded
