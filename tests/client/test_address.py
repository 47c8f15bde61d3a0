"""Where the daemon is, in one word; and whom a client trusts there."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st

from fep.client.address import Address, client_tls, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/fep.sock", Address("unix", path="/run/fep.sock")),
        ("unix:rel/fep.sock", Address("unix", path="rel/fep.sock")),
        ("/run/fep-control.sock", Address("unix", path="/run/fep-control.sock")),
        ("./fep.sock", Address("unix", path="./fep.sock")),
        ("../a:1", Address("unix", path="../a:1")),
        ("tcp:127.0.0.1:7071", Address("tcp", host="127.0.0.1", port=7071)),
        ("127.0.0.1:7071", Address("tcp", host="127.0.0.1", port=7071)),
        ("localhost:1", Address("tcp", host="localhost", port=1)),
        ("tls:fep.example:65535", Address("tls", host="fep.example", port=65_535)),
        ("tls:[::1]:7070", Address("tls", host="::1", port=7070)),
        ("[fe80::1%eth0]:7070", Address("tcp", host="fe80::1%eth0", port=7070)),
        ("tcp:tls:7070", Address("tcp", host="tls", port=7070)),
    ],
)
def test_an_address_is_one_of_three_forms(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:a\0b",
        "/run/\0",
        "tcp:",
        "tcp:host",
        "tcp::7071",
        "tls:host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:+1",
        "host:1_0",
        "host:²",
        "host:٣",
        "host: 1",
        "ho st:1",
        "a/b:1",
        "a..b:1",
        f"{'x' * 64}.example:1",
        "[::1:1",
        "http://127.0.0.1:7071",
        "host:" + "9" * 5000,
    ],
)
def test_what_is_none_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="is not unix:PATH, tcp:HOST:PORT or tls:HOST:PORT"):
        parse_address(text)


@given(st.text(max_size=40))
@example("tcp:[]:1")
@example("unix::")
@example("tcp:a:1\n")
def test_any_text_is_an_address_that_prints_itself_or_is_refused(text: str) -> None:
    with suppress(ValueError):
        address = parse_address(text)
        assert parse_address(str(address)) == address
        assert address.host or address.path


def test_a_client_trusts_one_ca_and_checks_the_name(tmp_path: Path) -> None:
    ours = trustme.CA()
    cert = ours.issue_cert("erp.example", common_name="erp-1")
    ours.cert_pem.write_to_path(tmp_path / "ca.crt")
    cert.cert_chain_pems[0].write_to_path(tmp_path / "erp.crt")
    cert.private_key_pem.write_to_path(tmp_path / "erp.key")
    context = client_tls(tmp_path / "erp.crt", tmp_path / "erp.key", tmp_path / "ca.crt")
    assert context.check_hostname
    assert (context.verify_mode, context.minimum_version) == (
        ssl.CERT_REQUIRED,
        ssl.TLSVersion.TLSv1_3,
    )
    assert len(context.get_ca_certs()) == 1
