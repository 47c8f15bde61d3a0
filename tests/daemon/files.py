"""A configuration that is right, to make wrong in one place."""

from __future__ import annotations

from pathlib import Path

from fep.daemon.config import Config, Fault, check, load

GUID = "0123456789abcdef0123456789abcdef"
GUID_2 = "fedcba9876543210fedcba9876543210"
SHA256 = GUID * 2

GOOD = f"""\
mode = "production"
state_dir = "state"

[enterprise]
id = "E0001"
fep_number = "FEP-01"

[control]
socket = "control.sock"
socket_mode = "0660"
heartbeat_s = 10

[[control.tcp]]
listen = "0.0.0.0:7070"
tls = {{ certificate = "tls.crt", key = "tls.key", client_ca = "ca.crt" }}

[[control.tcp]]
listen = "127.0.0.1:7071"
token_file = "token"

[control.clients.erp-1]
role = "finance"

[control.users.li]
uid = 1001
role = "operator"

[tasks]
queue_max = 1000

[[slot]]
name = "ukey-1"
backend = "pcsc"
card = {{ guid = "{GUID}", certificate_sha256 = "{SHA256}" }}
pin = {{ credential = "ukey-1-pin" }}

[[slot]]
name = "ukey-2"
backend = "pcsc"
card = {{ guid = "{GUID_2}", certificate_sha256 = "{SHA256}" }}
pin = {{ file = "ukey-2.pin" }}

[[bank]]
name = "pingan"
adapter = "pingan_b2bi"
class = "307"
version = "2.0"
direct_connect_number = "00102079900001234000"
host = "10.0.0.7"
port = 7070
slot = "ukey-1"
workers = 4
heartbeat_s = 30
reply_timeout_s = 60
options = {{ today_trade = "4008" }}

[[bank]]
name = "cmb"
adapter = "cmb_xml"
class = "308"
direct_connect_number = "308-0001"
host = "10.0.0.8"
port = 7080
slot = "ukey-2"
options = {{ login_name = "FEP01", branch = "75" }}
card = {{ signing = {{ by = "slot" }}, inquiry = {{ cool_down_s = 5 }} }}

[[account]]
number = "99000000000101"
bank = "pingan"
name = "江枫样例制造有限公司"
bank_code = "307584007998"
bank_title = "平安银行"

[[account]]
number = "99000000000102"
bank = "pingan"
name = "江枫样例制造有限公司"

[[account]]
number = "999900000010101"
bank = "cmb"
name = "江枫样例制造有限公司"

[[pool]]
name = "main"
target = "99000000000101"
schedule = "17:30, 08:30"

[[pool.member]]
account = "99000000000102"
threshold = "100000.00"
reserve = "10.00"
minimum = "1.00"
maximum = "50000.00"
unit = "100.00"
rule = {{ kind = "excess" }}

[[pool.member]]
account = "999900000010101"
threshold = "0.00"
rule = {{ kind = "range", low = "1.00", high = "2.00" }}
"""

MARK = "‸"


def written(directory: Path, text: str) -> Path:
    path = directory / "fep.toml"
    path.write_bytes(text.encode("utf-8"))
    return path


def loaded(directory: Path, text: str = GOOD) -> Config:
    return load(written(directory, text))


def changed(old: str, new: str, text: str = GOOD) -> str:
    assert text.count(old) >= 1, f"{old!r} is not in the text"
    return text.replace(old, new, 1)


def marked(directory: Path, text: str) -> list[Fault]:
    """Return the faults of a text in which ``‸`` stands before each place that has one.

    The marks are taken out first; that the faults are at these places and no others is asserted.
    """
    places = []
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.split(MARK)
        places += [
            (number, sum(map(len, parts[: place + 1])) + 1) for place in range(len(parts) - 1)
        ]
    faults = check(written(directory, text.replace(MARK, "")))
    found = [(fault.line, fault.column) for fault in faults]
    assert found == places, "\n".join(map(str, faults))
    return faults
