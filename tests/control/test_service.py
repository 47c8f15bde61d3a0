"""Who may open a session, over real sockets: uid, token, certificate; and what a flood can't do."""

from __future__ import annotations

import ast
import datetime as dt
import errno
import inspect
import resource
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

from fep.control import session
from fep.control.config import ControlConfig, TcpListener, TlsFiles
from fep.control.renewal import Renewals
from fep.control.service import (
    CONNECTIONS_MAX,
    HANDSHAKE_SECONDS_MAX,
    UNOPENED_MAX,
    read_token,
    run_control,
    tls_context,
)
from fep.control.session import OPEN_SECONDS_MAX
from fep.daemon import config as configuration
from fep.daemon.supervisor import guarded
from fep.domain.clock import SystemClock
from fep.domain.errors import ConfigError
from tests.control.conftest import Start
from tests.control.rig import (
    POLL_SECONDS,
    RESET,
    WAIT_SECONDS_MAX,
    Config,
    Logs,
    Rig,
    Wire,
    open_fds,
    until,
)
from tests.daemon.files import GOOD, changed, written

LI, WANG, STRANGER = 41_001, 41_002, 41_003
HIGH = 4_000_000_000
"""A uid is unsigned: this one has its highest bit set."""


def people(config: Config) -> None:
    config["control"]["socket_mode"] = "0666"
    config["control"]["users"] = {
        "li": {"uid": LI, "role": "operator"},
        "wang": {"uid": WANG, "role": "viewer"},
        "far": {"uid": HIGH, "role": "viewer"},
    }


async def refused(wire: Wire, client: str = "erp-1", token: str | None = None) -> str:
    """Try to open; return why not, once the daemon has closed the connection."""
    params = {"client": client} | ({} if token is None else {"token": token})
    answer = await wire.ask("session.open", params)
    assert answer["error"]["data"] == {"code": "NOT_PERMITTED"}
    assert await wire.ended() == []
    reason: str = answer["error"]["message"]
    return reason


# -- Unix socket ----------------------------------------------------------------------------------


async def test_a_user_has_its_role_and_its_proven_name(start: Start) -> None:
    users = [(LI, "operator", "li"), (WANG, "viewer", "wang"), (HIGH, "viewer", "far")]
    async with start(change=people) as rig:
        for uid, role, _ in users:
            wire = await rig.unix_as(uid)
            assert (await wire.open("root"))["role"] == role
        await rig.until(lambda: len(rig.logs.named("session.opened")) == len(users), "the log")
        opened = [(one["client"], one["origin"]) for one in rig.logs.named("session.opened")]
        assert opened == [(name, f"unix uid {uid}") for uid, _, name in users]


async def test_what_a_user_does_bears_its_proven_name(start: Start) -> None:
    async with start(change=people) as rig:
        wire = await rig.unix_as(LI)
        await wire.open("erp-1")
        await wire.result("task.submit", {"task_id": "T1", "bank": "pingan", "kind": "balance"})
        assert (await wire.result("task.get", {"task_id": "T1"}))["client"] == "li"


async def test_root_and_the_daemons_own_user_are_administrators(start: Start) -> None:
    async with start(change=people) as rig:
        wire = await rig.unix()
        assert (await wire.open("anybody"))["role"] == "admin"


async def test_root_with_a_row_of_its_own_has_that_role(start: Start) -> None:
    def change(config: Config) -> None:
        config["control"]["users"] = {"boss": {"uid": 0, "role": "viewer"}}

    async with start(change=change) as rig:
        wire = await rig.unix()
        assert (await wire.open("anybody"))["role"] == "viewer"
        (opened,) = await rig.until(lambda: rig.logs.named("session.opened"), "the log")
        assert opened["client"] == "boss"


async def test_any_other_user_is_refused_and_told_where_to_look(start: Start) -> None:
    async with start(change=people) as rig:
        for name in ("li", "root", "erp-1"):
            reason = await refused(await rig.unix_as(STRANGER), name, rig.token)
            assert "[control.users]" in reason
        assert len(rig.logs.named("session.refused")) == 3
        assert (await (await rig.unix_as(LI)).open())["role"] == "operator"


async def test_the_names_of_our_own_services_are_nobodys(start: Start) -> None:
    """Pooling is a client of the queue: who opened under its name would get its messages."""
    async with start() as rig:
        assert "fep:" in await refused(await rig.unix(), "fep:pooling")


# -- TCP with a token -----------------------------------------------------------------------------


async def test_the_token_and_a_configured_name_open(start: Start) -> None:
    async with start() as rig:
        wire = await rig.tcp()
        assert (await wire.open("erp-1", rig.token))["role"] == "finance"


async def test_a_wrong_or_missing_token_is_refused(start: Start) -> None:
    async with start() as rig:
        almost = (rig.token[:-1], rig.token + "0", rig.token.upper() + " ")
        for token in (None, "", "x", "0" * 32, "令牌", "\x00", *almost):
            for client in ("erp-1", "nobody"):
                # The same words for a known and an unknown name: no name can be guessed.
                reason = await refused(await rig.tcp(), client, token)
                assert reason == "wrong or missing token"
        await rig.finance()


async def test_the_token_does_not_help_an_unknown_name(start: Start) -> None:
    async with start() as rig:
        for client in ("nobody", "ERP-1", "root", "", "a b", "x" * 33):
            await refused(await rig.tcp(), client, rig.token)
        await rig.finance()


def test_tokens_are_compared_in_constant_time() -> None:
    """A token is compared by ``hmac.compare_digest`` and by no operator."""
    tree = ast.parse(inspect.getsource(session))
    compared = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and "token" in ast.unparse(node)
    ]
    assert compared == ["peer.token is not None"]
    same = inspect.getsource(session._same)
    assert "hmac.compare_digest(" in same
    assert "==" not in same
    assert session._same("abc", "abc")
    assert not session._same("abc", "abd")
    assert not session._same("", "abc")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "[::]", "[fe80::1]", "fep.example"])
def test_plain_tcp_is_refused_where_the_network_is(tmp_path: Path, host: str) -> None:
    path = written(tmp_path, changed("127.0.0.1:7071", f"{host}:7071", GOOD))
    (fault,) = configuration.check(path)
    assert "is not loopback: plain TCP is refused there" in str(fault)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost"])
def test_plain_tcp_is_allowed_on_loopback(tmp_path: Path, host: str) -> None:
    assert not configuration.check(
        written(tmp_path, changed("127.0.0.1:7071", f"{host}:7071", GOOD))
    )


def test_a_token_file_is_read_only_when_it_is_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(ConfigError, match="No such file"):
        read_token(path)
    path.write_bytes(b"0123456789abcdef\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == "0123456789abcdef"
    path.write_bytes(b"0123456789abcde\n")
    with pytest.raises(ConfigError, match="at least 16"):
        read_token(path)
    path.write_bytes(b"\xff" * 32)
    with pytest.raises(ConfigError, match="UTF-8"):
        read_token(path)
    with pytest.raises(ConfigError, match="directory"):
        read_token(tmp_path)


# -- mutual TLS -----------------------------------------------------------------------------------

OURS = trustme.CA()
OTHERS = trustme.CA()
SERVER = OURS.issue_cert("127.0.0.1", "localhost")
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def client_context(
    cert: trustme.LeafCert | None, *, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.maximum_version = most
    OURS.configure_trust(context)
    if cert is not None:
        cert.configure_cert(context)
    return context


def named(common_name: str, ca: trustme.CA = OURS) -> trustme.LeafCert:
    return ca.issue_cert(f"{common_name}.example", common_name=common_name)


def tls_files(directory: Path) -> dict[str, str]:
    """Write the server's files and return their names."""
    SERVER.cert_chain_pems[0].write_to_path(directory / "tls.crt")
    SERVER.private_key_pem.write_to_path(directory / "tls.key")
    OURS.cert_pem.write_to_path(directory / "ca.crt")
    (directory / "tls.key").chmod(0o600)
    return {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt"}


@pytest.fixture
def with_tls(directory: Path) -> Callable[[Config], None]:
    """Change a configuration to TLS, with a finance system and an operator."""

    def change(config: Config) -> None:
        config["control"]["tcp"] = [{"listen": "127.0.0.1:0", "tls": tls_files(directory)}]
        config["control"]["clients"] = {
            "erp-1": {"role": "finance"},
            "desk": {"role": "operator"},
        }

    return change


async def test_the_certificates_common_name_is_the_name_and_gives_the_role(
    start: Start, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        for name, role in (("erp-1", "finance"), ("desk", "operator")):
            wire = await rig.tls(client_context(named(name)))
            assert (await wire.open(name))["role"] == role
            assert isinstance(wire.stream, trio.SSLStream)
            assert wire.stream.version() == "TLSv1.3"


async def test_a_certificate_opens_under_its_own_name_only(
    start: Start, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        for name in ("erp-1", "nobody", ""):
            await refused(await rig.tls(client_context(named("desk"))), name)
        # A configured token does not help: there is none on this listener.
        await refused(await rig.tls(client_context(named("nobody"))), "nobody", rig.token)
        await refused(await rig.tls(client_context(OURS.issue_cert("erp-1.example"))), "erp-1")
        await (await rig.tls(client_context(named("erp-1")))).open("erp-1")


EXPIRED = OURS.issue_cert("e.example", common_name="erp-1", not_after=LONG_AGO)
BAD_CLIENTS = {
    "another CA": client_context(named("erp-1", OTHERS)),
    "expired": client_context(EXPIRED),
    "no certificate": client_context(None),
    "TLS 1.2": client_context(named("erp-1"), most=ssl.TLSVersion.TLSv1_2),
}
BAD_REASONS = {
    "another CA": "CERTIFICATE_VERIFY_FAILED",
    "expired": "certificate has expired",
    "no certificate": "PEER_DID_NOT_RETURN_A_CERTIFICATE",
    "TLS 1.2": "UNSUPPORTED_PROTOCOL",
}


async def test_a_bad_handshake_is_refused_and_the_listener_lives_on(
    start: Start, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        for what, context in BAD_CLIENTS.items():
            wire = await rig.tls(context)
            # With TLS 1.3 the client learns of a bad certificate of its own at its first read.
            with suppress(trio.BrokenResourceError):
                await wire.send(wire.request("session.open", {"client": "erp-1"}))
                assert await wire.receive() is None
            (record,) = await until(lambda: rig.logs.named("session.tls_refused"), "the log")
            assert BAD_REASONS[what] in record["reason"]
            rig.logs.records.clear()
        assert not rig.logs.named("session.opened")
        await (await rig.tls(client_context(named("erp-1")))).open("erp-1")


async def test_what_is_not_tls_is_refused_and_the_listener_lives_on(
    start: Start, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"\x16\x03\x01\xff", b""):
            wire = await rig.tcp()
            await wire.send_bytes(data)
            assert isinstance(wire.stream, trio.SocketStream)
            await wire.stream.send_eof()
            with trio.fail_after(WAIT_SECONDS_MAX), suppress(trio.BrokenResourceError):
                while await wire.stream.receive_some():
                    pass
            await until(lambda: rig.logs.named("session.tls_refused"), "the log")
            rig.logs.records.clear()
        await (await rig.tls(client_context(named("erp-1")))).open("erp-1")


async def test_a_handshake_that_does_not_end_is_cut(
    start: Start, with_tls: Callable[[Config], None], mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1.0
    async with start(change=with_tls) as rig:
        wire = await rig.tcp()
        await wire.send_bytes(b"\x16\x03\x01")
        await settle()
        mock_clock.jump(HANDSHAKE_SECONDS_MAX)
        with suppress(trio.BrokenResourceError):
            assert await wire.stream.receive_some() == b""
        assert "TooSlow" in rig.logs.named("session.tls_refused")[0]["reason"]


def test_files_that_do_not_fit_are_a_fault_of_the_configuration(tmp_path: Path) -> None:
    files = TlsFiles(**{name: tmp_path / file for name, file in tls_files(tmp_path).items()})
    context = tls_context(files, "a listener")
    assert (context.verify_mode, context.minimum_version) == (
        ssl.CERT_REQUIRED,
        ssl.TLSVersion.TLSv1_3,
    )
    assert [one["subject"] for one in context.get_ca_certs()] == [
        one["subject"] for one in trusted(OURS)
    ], "nobody else's CA is trusted"
    (tmp_path / "ca.crt").write_bytes(b"no PEM")
    with pytest.raises(ConfigError, match="TLS files"):
        tls_context(files, "a listener")
    OTHERS.issue_cert("x.example").private_key_pem.write_to_path(tmp_path / "tls.key")
    with pytest.raises(ConfigError, match="TLS files"):
        tls_context(files, "a listener")
    (tmp_path / "tls.key").unlink()
    with pytest.raises(ConfigError, match="TLS files"):
        tls_context(files, "a listener")


def trusted(ca: trustme.CA) -> list[dict[str, Any]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    found: list[dict[str, Any]] = context.get_ca_certs()
    return found


# -- floods ---------------------------------------------------------------------------------------


async def settle() -> None:
    """Let what is under way on the sockets happen."""
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked(0.01)


def crowd(config: Config) -> None:
    config["control"]["limits"] = {"sessions_max": CONNECTIONS_MAX}


async def test_two_hundred_connections_work_at_once(start: Start) -> None:
    async with start(change=crowd) as rig:
        answers: list[Any] = []

        async def one() -> None:
            wire = await rig.finance()
            answers.append(await wire.result("status"))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)
        assert len(answers) == 200
        assert not rig.logs.named("session.no_room")


async def test_connections_that_never_open_do_not_keep_others_out(start: Start) -> None:
    """The oldest unopened one makes room for the next: a flood keeps nobody out."""
    async with start() as rig:
        working, flood = await rig.finance(), []
        for _ in range(3):
            flood += [await rig.tcp() for _ in range(UNOPENED_MAX)]
            await working.result("status")
            await (await rig.finance()).result("status")
            await (await rig.admin()).result("status")
        assert await flood[0].receive() is None
        # It made room; it was not its own time to open that ended.
        assert not rig.logs.named("session.not_opened")
        assert rig.logs.named("session.crowded_out")
        # Once the flood ends, its places are free again.
        for wire in flood:
            await wire.aclose()
        for _ in range(UNOPENED_MAX):
            await (await rig.finance()).aclose()


async def opened_at_last(rig: Rig) -> None:
    """Open a session, with as many tries as it takes."""
    with trio.fail_after(WAIT_SECONDS_MAX):
        while True:
            wire = await rig.tcp()
            with suppress(trio.BrokenResourceError, AssertionError):
                await wire.open("erp-1", rig.token)
                return
            await trio.sleep(POLL_SECONDS)


async def test_sessions_beyond_the_limit_are_refused_on_their_listener_only(start: Start) -> None:
    async with start(change=crowd) as rig:
        wires = [await rig.finance() for _ in range(CONNECTIONS_MAX)]
        extra = await rig.tcp()
        with suppress(trio.BrokenResourceError):
            await extra.send(extra.request("session.open", {"client": "erp-1"}))
        (answer, *_) = [*await extra.ended(), {}]
        assert answer.get("error", {}).get("code") in (None, -32000)
        (record,) = rig.logs.named("session.no_room")
        assert record["connections"] == CONNECTIONS_MAX
        await wires[0].result("status")
        await (await rig.admin()).result("status")
        # One that goes makes room for one that comes.
        await wires[1].aclose()
        await opened_at_last(rig)


def no_more_files() -> bool:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno == errno.EMFILE
    return False


async def test_a_full_table_of_files_does_not_end_the_listeners(start: Start) -> None:
    async with start() as rig:
        working = await rig.finance()
        socks = [socket.socket() for _ in range(40)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_fds() + 8, hard))
        try:
            for sock in socks:
                sock.connect(("127.0.0.1", rig.port))
            await until(no_more_files, "a full table")
            await working.result("status")
            for sock in socks:
                sock.close()
            await until(lambda: open_fds() < soft, "files free again")
            wire = await rig.finance()
            await wire.result("status")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for sock in socks:
                sock.close()


async def test_a_connection_reset_at_once_is_no_defect(
    start: Start, with_tls: Callable[[Config], None]
) -> None:
    def both(config: Config) -> None:
        plain = config["control"]["tcp"]
        with_tls(config)
        config["control"]["tcp"] += plain

    async with start(change=both) as rig:
        for address in rig.addresses[1:] * 30:
            with socket.socket() as sock:
                sock.connect(("127.0.0.1", int(address.rpartition(":")[2])))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for _ in range(30):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(rig.scene.socket))
        await (await rig.admin()).result("status")
        await settle()
        # The fixture of the logs asserts that no handler crashed.


async def test_one_byte_a_second_is_cut_when_the_time_to_open_is_over(
    start: Start, mock_clock: trio.testing.MockClock
) -> None:
    mock_clock.rate = 1.0
    async with start() as rig:
        for connect in (rig.tcp, rig.unix):
            wire = await connect()
            begun = trio.current_time()
            line = b'{"jsonrpc":"2.0","id":1,"method":"session.open","params":{"client":"a"}}\n'
            with suppress(trio.BrokenResourceError):
                for place in range(len(line)):
                    await wire.send_bytes(line[place : place + 1])
                    await settle()
                    mock_clock.jump(1.0)
            assert await wire.receive() is None
            assert OPEN_SECONDS_MAX <= trio.current_time() - begun <= OPEN_SECONDS_MAX + 5
        assert len(rig.logs.named("session.not_opened")) == 2


# -- listeners ------------------------------------------------------------------------------------


@attrs.frozen
class Alone:
    """The listeners without a daemon; nobody opens a session here."""

    nursery: trio.Nursery

    async def listen(self, config: ControlConfig, inherited: tuple[socket.socket, ...] = ()) -> Any:
        return await self.nursery.start(run_control, config, services(), guarded, inherited)


async def test_the_socket_of_a_dead_daemon_is_replaced(directory: Path, logs: Logs) -> None:
    path = directory / "c.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    async with trio.open_nursery() as nursery:
        await Alone(nursery).listen(ControlConfig(path, socket_mode=0o620))
        assert stat.S_IMODE(path.stat().st_mode) == 0o620
        await trio.aclose_forcefully(await trio.open_unix_socket(str(path)))
        nursery.cancel_scope.cancel()


async def test_the_socket_of_a_living_daemon_is_left_alone(directory: Path, logs: Logs) -> None:
    path = directory / "c.sock"
    with closing(socket.socket(socket.AF_UNIX)) as living:
        living.bind(str(path))
        living.listen(0)
        # Also when it is so busy that nobody more can even wait for it.
        waiting = []
        for _ in range(4):
            sock = socket.socket(socket.AF_UNIX)
            waiting.append(sock)
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(str(path))
        with pytest.raises(ConfigError, match="another daemon"):
            await run_control(ControlConfig(path), services(), guarded)
        for sock in waiting:
            sock.close()
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(5)
            with suppress(BlockingIOError):
                client.connect(str(path))
        assert path.is_socket()


def services() -> Any:
    """Return what listeners need while nobody opens a session."""
    clock = SystemClock()
    return SimpleNamespace(renewals=Renewals(None, clock), clock=clock)


async def test_what_can_not_be_listened_on_is_told_plainly(directory: Path, logs: Logs) -> None:
    file = directory / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="in use"):
        await run_control(ControlConfig(file), services(), guarded)
    assert file.read_text() == "mine"
    long = directory / ("x" * 120)
    with pytest.raises(ConfigError, match="too long"):
        await run_control(ControlConfig(long), services(), guarded)
    token = directory / "token"
    token.write_text("0" * 32)
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listeners = (
            TcpListener("127.0.0.1", 0, None, token),
            TcpListener("127.0.0.1", port, None, token),
        )
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*in use"):
            await run_control(
                ControlConfig(directory / "c.sock", tcp=listeners), services(), guarded
            )
    missing = (TcpListener("127.0.0.1", 0, None, directory / "none"),)
    with pytest.raises(ConfigError, match="No such file"):
        await run_control(ControlConfig(directory / "c.sock", tcp=missing), services(), guarded)


async def test_an_inherited_socket_is_served_in_place_of_our_own(
    directory: Path, logs: Logs
) -> None:
    path, own = directory / "inherited.sock", directory / "own.sock"
    given = socket.socket(socket.AF_UNIX)
    given.bind(str(path))
    given.listen()
    async with trio.open_nursery() as nursery:
        await Alone(nursery).listen(ControlConfig(own), (given,))
        assert not own.exists()
        wire = Wire(await trio.open_unix_socket(str(path)))
        await wire.send_bytes(b"no JSON\n")
        assert code(await wire.receive()) == -32700
        assert await wire.receive() is None
        await wire.aclose()
        nursery.cancel_scope.cancel()


def code(message: dict[str, Any] | None) -> int:
    assert message is not None
    found: int = message["error"]["code"]
    return found
