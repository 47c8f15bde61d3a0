"""Certificates, CAs, CRLs and tokens change while the listeners serve; sessions live on."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from fep.alarms.state import AlarmKind
from fep.control.renewal import CHECK_SECONDS, ENDS_SOON_DAYS, Loaded, Renewals, Renewed
from fep.domain.clock import SystemClock
from fep.domain.errors import ConfigError
from tests.control.conftest import Start
from tests.control.rig import Config, Logs, Rig, Wire, until

SUBJECT = "control.tcp 127.0.0.1:0"


class Site:
    """A CA, what the server shows, and files that change."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = trustme.CA()

    def server(self, ca: trustme.CA | None = None, *, days: int = 365) -> trustme.LeafCert:
        """Write another certificate and key; returns it."""
        end = SystemClock().now() + dt.timedelta(days=days)
        made = (ca or self.ca).issue_cert("127.0.0.1", not_after=end)
        made.private_key_pem.write_to_path(self.directory / "tls.key")
        made.cert_chain_pems[0].write_to_path(self.directory / "tls.crt")
        (self.directory / "tls.key").chmod(0o600)
        return made

    def trust(self, *cas: trustme.CA) -> None:
        """Write whose clients are let in."""
        text = b"".join(one.cert_pem.bytes() for one in cas)
        (self.directory / "ca.crt").write_bytes(text)

    def revoke(self, *revoked: trustme.LeafCert, days: int = 365) -> None:
        """Write the list of what the CA has taken back."""
        now = SystemClock().now()
        key = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(now - dt.timedelta(days=1))
            .next_update(now + dt.timedelta(days=days))
        )
        for one in revoked:
            serial = x509.load_pem_x509_certificate(one.cert_chain_pems[0].bytes()).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        made = builder.sign(key, hashes.SHA256())  # type: ignore[arg-type]
        (self.directory / "ca.crl").write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def client(self, *, ca: trustme.CA | None = None, server: trustme.CA | None = None) -> Any:
        """Return a client's context, and its certificate."""
        made = (ca or self.ca).issue_cert("erp-1.example", common_name="erp-1")
        context = ssl.create_default_context()
        (server or self.ca).configure_trust(context)
        made.configure_cert(context)
        return context, made


@pytest.fixture
def site(directory: Path) -> Site:
    found = Site(directory)
    found.server()
    found.trust(found.ca)
    return found


@pytest.fixture
def with_tls(site: Site) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        files = {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt"}
        if (site.directory / "ca.crl").exists():
            files["client_crl"] = "ca.crl"
        config["control"]["tcp"] = [{"listen": "127.0.0.1:0", "tls": files}]

    return change


def serial_of(wire: Wire) -> int:
    """Return which certificate the daemon shows."""
    assert isinstance(wire.stream, trio.SSLStream)
    der = wire.stream.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


def serial(made: trustme.LeafCert) -> int:
    return x509.load_pem_x509_certificate(made.cert_chain_pems[0].bytes()).serial_number


async def is_let_in(rig: Rig, context: ssl.SSLContext) -> bool:
    wire = await rig.tls(context)
    with suppress(trio.BrokenResourceError, AssertionError):
        return bool((await wire.open("erp-1"))["role"] == "finance")
    return False


async def test_a_new_certificate_is_shown_to_new_connections_and_old_sessions_live_on(
    start: Start, site: Site, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        context, _ = site.client()
        old = await rig.tls(context)
        await old.open("erp-1")
        new = site.server()
        shown = serial_of(old)
        # No reload is asked for: who connects finds it.
        with trio.fail_after(20 * CHECK_SECONDS):
            while shown != serial(new):
                wire = await rig.tls(context)
                await wire.open("erp-1")
                shown = serial_of(wire)
                await wire.aclose()
        await old.result("status")
        (record,) = rig.logs.named("credential.renewed")
        assert record["subject"] == SUBJECT


async def test_another_client_ca_is_taken_at_a_reload_and_the_old_one_opens_no_more(
    start: Start, site: Site, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        admin, others = await rig.admin(), trustme.CA()
        ours, _ = site.client()
        theirs, _ = site.client(ca=others)
        old = await rig.tls(ours)
        await old.open("erp-1")
        assert not await is_let_in(rig, theirs)
        site.trust(site.ca, others)
        await admin.result("config.apply")
        assert await is_let_in(rig, theirs)
        assert await is_let_in(rig, ours)
        site.trust(others)
        await admin.result("config.apply")
        # Nor does a ticket of an earlier session help.
        assert not await is_let_in(rig, ours)
        await old.result("status")


async def test_a_faulty_file_changes_nothing_and_is_told_until_it_is_mended(
    start: Start, site: Site, with_tls: Callable[[Config], None]
) -> None:
    async with start(change=with_tls) as rig:
        admin = await rig.admin()
        context, _ = site.client()
        good = (site.directory / "tls.key").read_bytes()
        for bad in (b"", b"no PEM", trustme.CA().private_key_pem.bytes()):
            (site.directory / "tls.key").write_bytes(bad)
            await admin.result("config.apply")
            assert await is_let_in(rig, context)
            assert ("CREDENTIAL_FAULT", SUBJECT) in rig.alarms()
        assert len(rig.logs.named("credential.faulty")) == 3
        assert not rig.logs.named("credential.renewed")
        (site.directory / "tls.key").write_bytes(good)
        await admin.result("config.apply")
        assert ("CREDENTIAL_FAULT", SUBJECT) not in rig.alarms()
        assert await is_let_in(rig, context)
        (site.directory / "tls.crt").unlink()
        await admin.result("config.apply")
        assert ("CREDENTIAL_FAULT", SUBJECT) in rig.alarms()
        assert await is_let_in(rig, context)


async def test_a_certificate_that_was_taken_back_opens_no_more(
    start: Start, site: Site, with_tls: Callable[[Config], None]
) -> None:
    site.revoke()
    async with start(change=with_tls) as rig:
        admin = await rig.admin()
        context, made = site.client()
        other, _ = site.client()
        assert await is_let_in(rig, context)
        site.revoke(made)
        await admin.result("config.apply")
        assert not await is_let_in(rig, context)
        assert await is_let_in(rig, other)
        assert "revoked" in rig.logs.named("session.tls_refused")[-1]["reason"]


@pytest.mark.parametrize("what", ["certificate", "list"])
async def test_what_ends_soon_is_told_at_the_start(
    start: Start, site: Site, with_tls: Callable[[Config], None], what: str
) -> None:
    site.server(days=3 if what == "certificate" else 365)
    # A list is made anew each week: it ends soon only just before it does.
    site.revoke(days=2 if what == "list" else 20)
    async with start(change=with_tls) as rig:
        (record,) = rig.logs.named("credential.ends_soon")
        assert record["days"] == (2 if what == "certificate" else 1)
        assert record["file"].endswith("tls.crt" if what == "certificate" else "ca.crl")
        assert ("CREDENTIAL_FAULT", SUBJECT) in rig.alarms()
        site.server()
        site.revoke()
        await (await rig.admin()).result("config.apply")
        assert ("CREDENTIAL_FAULT", SUBJECT) not in rig.alarms()


async def test_a_new_token_opens_and_the_old_one_does_not(start: Start) -> None:
    async with start() as rig:
        admin, old = await rig.admin(), await rig.finance()
        rig.scene.token.write_text("another-token-of-ours\n")
        await admin.result("config.apply")
        wire = await rig.tcp()
        assert (await wire.ask("session.open", {"client": "erp-1", "token": rig.token}))["error"]
        await (await rig.tcp()).open("erp-1", "another-token-of-ours")
        rig.scene.token.write_text("short\n")
        await admin.result("config.apply")
        await (await rig.tcp()).open("erp-1", "another-token-of-ours")
        await old.result("status")


# -- the watcher alone ----------------------------------------------------------------------------


class Alarms:
    """Counts what is raised and cleared."""

    def __init__(self) -> None:
        self.active: dict[str, str] = {}
        self.raised = 0

    def raise_alarm(self, kind: AlarmKind, subject: str, cause: str) -> None:
        assert kind is AlarmKind.CREDENTIAL_FAULT
        self.active[subject] = cause
        self.raised += 1

    def clear(self, _kind: AlarmKind, subject: str) -> None:
        self.active.pop(subject, None)


class Clock:
    def __init__(self) -> None:
        self.time = dt.datetime(2026, 3, 2, tzinfo=dt.UTC)

    def now(self) -> dt.datetime:
        return self.time


def renewed(file: Path, alarms: Alarms, clock: Clock, days: int = 365) -> Renewed[str]:
    end = clock.now() + dt.timedelta(days=days)

    def load() -> Loaded[str]:
        text = file.read_text()
        if "bad" in text:
            msg = f"{file.name} is bad"
            raise ConfigError(msg)
        return Loaded(text, {file: end})

    file.write_text("one")
    return Renewals(alarms, clock).begin("s", [file, None], load)  # type: ignore[arg-type]


async def test_a_file_that_is_being_written_is_not_told_as_faulty(
    tmp_path: Path, logs: Logs
) -> None:
    alarms = Alarms()
    one = renewed(tmp_path / "f", alarms, Clock())
    (tmp_path / "f").write_text("bad: the first half of it")
    await one.look()
    (tmp_path / "f").write_text("the whole of it")
    await one.look()
    assert (one.value, alarms.raised) == ("the whole of it", 0)
    # What is bad at two looks is bad.
    (tmp_path / "f").write_text("bad")
    await one.look()
    assert alarms.active == {}
    await one.look()
    assert alarms.active == {"s": "f is bad; the earlier one stays in force"}
    for _ in range(5):
        await one.look()
    assert alarms.raised == 1
    assert one.value == "the whole of it"
    assert len(logs.named("credential.faulty")) == 1


async def test_files_are_looked_at_once_a_second_however_many_connect(
    tmp_path: Path, logs: Logs, mock_clock: trio.testing.MockClock
) -> None:
    one = renewed(tmp_path / "f", Alarms(), Clock())
    assert await one.fresh() == "one"
    (tmp_path / "f").write_text("two")
    for _ in range(100):
        assert await one.fresh() == "one"
    mock_clock.jump(CHECK_SECONDS)
    assert await one.fresh() == "two"


async def test_they_are_looked_at_although_nobody_connects(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.control.renewal.LOOK_SECONDS", 0.02)
    alarms, clock = Alarms(), Clock()
    file = tmp_path / "f"
    file.write_text("one")
    renewals = Renewals(alarms, clock)  # type: ignore[arg-type]
    one = renewals.begin("s", [file], lambda: Loaded(file.read_text()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewals.run)
        file.write_text("two")
        await until(lambda: one.value == "two", "the look")
        nursery.cancel_scope.cancel()
    renewals.end(one)
    file.write_text("three")
    await renewals.look()
    assert one.value == "two"


async def test_what_ends_soon_is_told_once_a_day_and_no_more_when_it_was_renewed(
    tmp_path: Path, logs: Logs
) -> None:
    alarms, clock = Alarms(), Clock()
    one = renewed(tmp_path / "f", alarms, clock, days=ENDS_SOON_DAYS + 1)
    for _ in range(10):
        clock.time += dt.timedelta(hours=12)
        await one.look()
    told = logs.named("credential.ends_soon")
    assert [record["days"] for record in told] == [29, 28, 27, 26][: len(told)]
    assert len(told) in (3, 4)
    assert alarms.active == {"s": "f ends on 2026-04-02"}


async def test_a_disk_that_hangs_keeps_nobody_waiting_for_ever(
    tmp_path: Path, logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fep.control.renewal.LOOK_SECONDS_MAX", 0.05)
    begun, end = trio.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def load() -> Loaded[str]:
        if len(loads) > 0:
            trio.from_thread.run_sync(begun.set, trio_token=token)
            trio.from_thread.run(end.wait, trio_token=token)
        loads.append(1)
        return Loaded("x")

    loads: list[int] = []
    file = tmp_path / "f"
    file.write_text("one")
    one = Renewals(None, SystemClock()).begin("s", [file], load)
    file.write_text("three")
    assert await one.fresh() == "x"
    await begun.wait()
    assert await one.fresh() == "x"
    end.set()
