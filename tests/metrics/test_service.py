"""The page of metrics over real sockets: what it says, and that nobody can hurt the daemon by it."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.lowlevel
import trustme
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.samples import Sample

from fep.alarms.state import AlarmKind
from fep.daemon import config as configuration
from fep.domain.errors import ConfigError
from fep.metrics import service
from fep.metrics.catalogue import METRICS, Form
from fep.metrics.config import MetricsConfig
from tests.control.conftest import Start
from tests.control.rig import BANK, POLL_SECONDS, Config, Rig, open_fds, until

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
OPEN = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n"


def with_metrics(change: Callable[[Config], None] | None = None, **more: Any) -> Any:
    def both(table: Config) -> None:
        table["metrics"] = {"listen": "127.0.0.1:0", **more}
        if change is not None:
            change(table)

    return both


def port_of(rig: Rig) -> int:
    [address] = rig.daemon.services.metrics
    return int(re.search(r":(\d+)/metrics$", address)[1])  # type: ignore[index]


async def whole(stream: trio.abc.Stream) -> bytes:
    """Return all that comes until the other side ends."""
    got = b""
    with trio.fail_after(20):
        while data := await stream.receive_some(65_536):
            got += data
    return got


async def asked(rig: Rig, request: bytes = GET) -> tuple[int, dict[str, str], str]:
    """Send a request and return status, headers and body."""
    async with await trio.open_tcp_stream("127.0.0.1", port_of(rig)) as stream:
        await stream.send_all(request)
        return read(await whole(stream))


def read(answer: bytes) -> tuple[int, dict[str, str], str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in lines)}
    assert int(headers["content-length"]) == len(body)
    return int(first.split()[1]), headers, body.decode()


async def scraped(rig: Rig) -> dict[str, list[Sample]]:
    """Return the page's samples by name, as Prometheus's own parser reads them."""
    await trio.lowlevel.checkpoint()
    status, _, text = await asked(rig)
    assert status == 200
    found: dict[str, list[Sample]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def uptime(page: str) -> str:
    found = re.search(r"^fep_uptime_seconds (.+)$", page, re.MULTILINE)
    assert found is not None
    return found[1]


def value(samples: dict[str, list[Sample]], name: str, **labels: str) -> float:
    """Return the one sample of this name with these labels."""
    [found] = [one for one in samples[name] if labels.items() <= one.labels.items()]
    return found.value


@asynccontextmanager
async def paid(start: Start) -> AsyncIterator[Rig]:
    """Run a daemon with a bank, which has done one payment and one query."""
    async with start(bank=True, change=with_metrics()) as rig:
        await rig.ready()
        wire = await rig.finance()
        for task_id, body in (("P-1", rig.transfer()), ("B-1", rig.balance())):
            params = {"task_id": task_id, "bank": BANK.name, "kind": body["kind"], "body": body}
            await wire.result("task.submit", params)
        for _ in range(2):
            await wire.answer(await wire.take("task.result"), {})
        yield rig


async def test_the_page_tells_what_was_done_and_how_things_are(start: Start) -> None:
    async with paid(start) as rig:
        rig.daemon.alarms.raise_alarm(AlarmKind.CLIENT_LOST, "erp", "gone")
        got = await scraped(rig)
        bank = BANK.name
        assert value(got, "fep_tasks_admitted_total") == 2
        for kind in ("transfer", "balance"):
            done = {"bank": bank, "kind": kind}
            assert value(got, "fep_task_duration_seconds_count", state="succeeded", **done) == 1
            asked_of = {"result": "answered", **done}
            assert value(got, "fep_bank_request_duration_seconds_count", **asked_of) == 1
            assert 0 < value(got, "fep_bank_request_duration_seconds_sum", **asked_of) < 60
        assert value(got, "fep_link_up", bank=bank) == 1
        assert value(got, "fep_link_state", bank=bank, state="ready") == 1
        assert value(got, "fep_link_state", bank=bank, state="backing_off") == 0
        assert value(got, "fep_link_log_ons_total", bank=bank) == 1
        assert value(got, "fep_link_requests_total", bank=bank) == 2
        assert 0 <= value(got, "fep_link_silence_seconds", bank=bank) < 60
        slot = f"ukey-{bank}"
        assert value(got, "fep_slot_ready", slot=slot) == 1
        assert value(got, "fep_slot_state", slot=slot, state="ready") == 1
        assert value(got, "fep_slot_certificate_expiry_seconds", slot=slot) > 3600
        assert value(got, "fep_oldest_waiting_seconds", bank=bank) == 0
        lost = {"kind": "CLIENT_LOST", "severity": "major"}
        assert value(got, "fep_alarms_active", state="raised", **lost) == 1
        assert value(got, "fep_alarms_raised_total", **lost) == 1
        assert value(got, "fep_sessions", role="finance") == 1
        assert value(got, "fep_store_commit_duration_seconds_count") > 3
        assert value(got, "fep_store_works_total") > 3
        assert value(got, "fep_store_size_bytes") >= 4096
        assert value(got, "fep_store_free_bytes") > 0
        assert value(got, "fep_loop_tasks", state="living") > 5
        digest = rig.daemon.config.digest
        assert value(got, "fep_configuration_info", digest=digest) == 1
        assert value(got, "process_resident_memory_bytes") > 1e6
        assert value(got, "process_open_fds") > 5


async def test_what_waits_has_an_age_and_what_is_open_a_state(start: Start) -> None:
    async with start(change=with_metrics()) as rig:
        wire = await rig.finance()
        for task_id in ("W-1", "W-2"):
            await wire.result(
                "task.submit", {"task_id": task_id, "bank": BANK.name, "kind": "balance"}
            )
        got = await scraped(rig)
        assert value(got, "fep_tasks_open", bank=BANK.name, state="queued") == 2
        assert value(got, "fep_link_up", bank=BANK.name) == 0
        await rig.until(lambda: rig.logs.named("link.lost"), "a failed attempt")
        with trio.fail_after(10 * service.PAGE_SECONDS_MIN):
            for name in ("fep_link_losses_total", "fep_oldest_waiting_seconds"):
                while not value(await scraped(rig), name, bank=BANK.name) > 0:
                    await trio.sleep(POLL_SECONDS)
        await wire.aclose()
        gone = await rig.until(lambda: rig.logs.named("session.closed"), "the end of the session")
        assert gone
        assert rig.daemon.services.sessions["finance"] == 0  # type: ignore[index]


async def test_every_metric_of_the_table_is_on_the_page_in_both_forms(start: Start) -> None:
    """All but those that need other machines have samples once a bank was worked with."""
    async with paid(start) as rig:
        _, headers, text = await asked(rig)
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        plain = {one.name: one for one in parser.text_string_to_metric_families(text)}
        _, headers, text = await asked(rig, OPEN)
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        fancy = {one.name: one for one in openmetrics.text_string_to_metric_families(text)}
        for metric in METRICS:
            name = metric.name.removesuffix("_total")
            for page in (plain, fancy):
                assert page[name].type == metric.form.value, metric.name
                assert page[name].documentation == metric.help
                if metric.name not in {"fep_place_held", "fep_machines_alive"}:
                    assert page[name].samples, metric.name
                for sample in page[name].samples:
                    assert sample.labels.keys() - {"le"} == set(metric.labels)
        [example] = [
            one.exemplar
            for one in fancy["fep_bank_request_duration_seconds"].samples
            if one.labels["kind"] == "transfer" and one.exemplar is not None
        ]
        assert example.labels == {"task_id": "P-1"}, "a slow request leads to its task"


async def test_the_page_is_made_once_a_second_however_many_ask(start: Start) -> None:
    async with start(change=with_metrics()) as rig:
        pages = []

        async def ask() -> None:
            pages.append(await asked(rig))

        async with trio.open_nursery() as nursery:
            for _ in range(service.CONNECTIONS_MAX // 2):
                nursery.start_soon(ask)
        assert len(pages) == service.CONNECTIONS_MAX // 2
        uptimes = {uptime(page[2]) for page in pages}
        assert len(uptimes) <= 2, "many asked, and the loop made one page, or one more"
        with trio.fail_after(10 * service.PAGE_SECONDS_MIN):
            while uptime((await asked(rig))[2]) in uptimes:
                await trio.sleep(POLL_SECONDS)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metricsx HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /metrics?name=up HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99_999,
            400,
        ),
        (b"GET /metrics HTTP/1.1\r\n" + b"".join(b"A%d: x\r\n" % n for n in range(9999)), 400),
    ],
)
async def test_other_requests_are_refused(start: Start, request_: bytes, status: int) -> None:
    async with start(change=with_metrics()) as rig:
        assert (await asked(rig, request_))[0] == status
        assert (await asked(rig))[0] == 200


async def test_who_sends_nothing_is_let_go_and_a_flood_keeps_nobody_out(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(change=with_metrics()) as rig:
        idle = [
            await trio.open_tcp_stream("127.0.0.1", port_of(rig))
            for _ in range(3 * service.CONNECTIONS_MAX)
        ]
        assert (await asked(rig))[0] == 200, "the oldest made room"
        ended = trio.current_time()
        for one in idle:
            assert await whole(one) == b""
            await one.aclose()
        assert trio.current_time() - ended < 2 * service.REQUEST_SECONDS_MAX


async def test_a_scraper_that_does_not_read_is_cut_off(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ANSWER_SECONDS_MAX", 0.2)
    serve, ended = service._Handler._serve, trio.Event()

    async def watched(handler: Any, stream: trio.SocketStream) -> None:
        await serve(handler, stream)
        ended.set()

    monkeypatch.setattr(service._Handler, "_serve", watched)
    async with start(change=with_metrics()) as rig:
        before = open_fds()
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        await raw.connect(("127.0.0.1", port_of(rig)))
        async with trio.SocketStream(raw) as slow:
            await slow.send_all(GET)
            # It neither reads nor ends; the daemon does. (Both sides are in this process.)
            with trio.fail_after(10):
                await ended.wait()
            await until(lambda: open_fds() <= before + 1, "the end of the daemon's side")
        assert (await asked(rig))[0] == 200


TLS_FILES = {"certificate": "m.crt", "key": "m.key", "client_ca": "ca.crt"}


def lay(directory: Path, ca: trustme.CA) -> None:
    """Put the listener's files in their place, of a CA."""
    server = ca.issue_cert("127.0.0.1")
    (directory / "m.key").touch(0o600)
    server.private_key_pem.write_to_path(directory / "m.key")
    server.cert_chain_pems[0].write_to_path(directory / "m.crt")
    ca.cert_pem.write_to_path(directory / "ca.crt")


async def ask_securely(rig: Rig, server: trustme.CA, client: trustme.CA) -> bytes:
    """Ask for the page with a certificate of a CA; empty when the daemon refuses it."""
    context = ssl.create_default_context()
    server.configure_trust(context)
    client.issue_cert("prometheus.example").configure_cert(context)
    stream = await trio.open_ssl_over_tcp_stream(
        "127.0.0.1", port_of(rig), ssl_context=context, https_compatible=False
    )
    try:
        await stream.send_all(GET)
        # The daemon says that it is the end; it does not wait for a scraper that waits for that.
        with trio.fail_after(service.ANSWER_SECONDS_MAX / 2):
            return await whole(stream)
    except trio.BrokenResourceError:
        return b""
    finally:
        await trio.aclose_forcefully(stream)


async def test_beyond_loopback_it_wants_a_certificate_of_our_ca(
    start: Start, directory: Path
) -> None:
    ours, others = trustme.CA(), trustme.CA()
    lay(directory, ours)
    async with start(change=with_metrics(tls=TLS_FILES)) as rig:
        assert rig.daemon.services.metrics[0].startswith("https://")
        assert read(await ask_securely(rig, ours, ours))[0] == 200
        assert await ask_securely(rig, ours, others) == b""
        answer = b""
        with suppress(trio.BrokenResourceError):
            async with await trio.open_tcp_stream("127.0.0.1", port_of(rig)) as stream:
                await stream.send_all(GET)
                answer = await whole(stream)
        assert b"HTTP" not in answer, "and it speaks no plain HTTP"


async def test_a_certificate_that_was_renewed_is_shown_without_a_restart(
    start: Start, directory: Path
) -> None:
    earlier, later = trustme.CA(), trustme.CA()
    lay(directory, earlier)
    async with start(change=with_metrics(tls=TLS_FILES)) as rig:
        assert read(await ask_securely(rig, earlier, earlier))[0] == 200
        lay(directory, later)
        await rig.daemon.services.renewals.look()
        (record,) = rig.logs.named("credential.renewed")
        assert record["subject"].startswith("metrics 127.0.0.1:")
        assert await ask_securely(rig, later, earlier) == b"", "of the CA that is none any more"
        assert read(await ask_securely(rig, later, later))[0] == 200


async def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        host, port = taken.getsockname()
        with pytest.raises(ConfigError, match=f"metrics {host}:{port}: .*EADDRINUSE"):
            await service.run_metrics(
                MetricsConfig((host, port)), cast("Any", None), lambda handler: handler
            )


async def test_a_file_system_that_is_gone_leaves_its_figures_out(tmp_path: Path) -> None:
    assert service._disk_of(tmp_path / "no" / "store") is None
    (tmp_path / "store").write_bytes(b"x" * 100)
    found = service._disk_of(tmp_path / "store")
    assert found is not None
    assert (found.store, found.log) == (100, 0)
    (tmp_path / "store-wal").write_bytes(b"x" * 7)
    assert service._disk_of(tmp_path / "store").log == 7  # type: ignore[union-attr]


EXAMPLE = Path(__file__).resolve().parent.parent.parent / "config/fep.toml"
TLS = 'tls = { certificate = "m.crt", key = "m.key", client_ca = "ca.crt" }'


def config_with(directory: Path, table: str) -> Path:
    path = directory / "fep.toml"
    path.write_text(f"{EXAMPLE.read_text('utf-8')}\n{table}\n", "utf-8")
    return path


@pytest.mark.parametrize(
    ("table", "listen"),
    [
        ("", None),
        ("[metrics]", ("127.0.0.1", 9187)),
        ('[metrics]\nlisten = "[::1]:9000"', ("::1", 9000)),
        (f'[metrics]\nlisten = "0.0.0.0:9187"\n{TLS}', ("0.0.0.0", 9187)),
    ],
)
def test_the_configuration_says_where_it_listens(
    tmp_path: Path, table: str, listen: tuple[str, int] | None
) -> None:
    found = configuration.load(config_with(tmp_path, table))
    assert found.metrics.listen == listen
    secrets = configuration.secret_faults(found)
    assert any("m.key" in one for one in secrets) == (TLS in table)


@pytest.mark.parametrize(
    ("table", "key", "told"),
    [
        ('listen = "0.0.0.0:9187"', "metrics.listen", "plain HTTP is refused there"),
        ('listen = "9187"', "metrics.listen", "HOST:PORT"),
        ('listen = "127.0.0.1:7071"', "metrics.listen", "listens there"),
        ('tls = { certificate = "c", key = "k" }', "metrics.tls.client_ca", "is missing"),
        ("port = 9187", "metrics.port", "unknown key"),
    ],
)
def test_its_faults_are_told_at_their_key(tmp_path: Path, table: str, key: str, told: str) -> None:
    faults = configuration.check(config_with(tmp_path, f"[metrics]\n{table}"))
    assert [one.key for one in faults] == [key]
    assert told in faults[0].message


def test_the_console_and_the_page_don_t_share_a_port(tmp_path: Path) -> None:
    table = '[console]\nlisten = "127.0.0.1:9187"\n[metrics]'
    [fault] = configuration.check(config_with(tmp_path, table))
    assert "the console listens there" in fault.message


def test_names_keep_to_prometheus_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"fep_[a-z]+(_[a-z]+)*", metric.name)
        assert (metric.form is Form.COUNTER) == metric.name.endswith("_total"), metric.name
        if metric.form is Form.HISTOGRAM:
            assert metric.name.endswith("_seconds")
        assert metric.help.endswith(".")
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
