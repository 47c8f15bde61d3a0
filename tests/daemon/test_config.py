"""The configuration file: what is right is taken whole, what is wrong is told all at once."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fep.adapters.card import Signer
from fep.control.config import Limits
from fep.daemon import bank_section, config, tables
from fep.daemon.config import ConfigFaultsError, check, load, redacted, secret_faults
from fep.domain.account import Account
from fep.domain.ids import AccountNumber, BankName, ClientName
from fep.domain.money import Cny
from fep.pooling.config import Excess, Range
from fep.pooling.schedule import parse_schedule
from tests.daemon.files import GOOD, GUID, GUID_2, SHA256, changed, loaded, marked, written

EXAMPLES = Path(__file__).parent.parent.parent / "config"


# -- what is right --------------------------------------------------------------------------------


@pytest.mark.req("FEP-11", "FEP-12", "FEP-13", "FEP-14", "FEP-15", "FEP-16", "FEP-17", "FEP-18")
@pytest.mark.req("FEP-19", "FEP-21", "POOL-01", "POOL-04", "POOL-07")
def test_every_part_of_a_good_file_is_taken(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert (found.mode, found.state_dir) == ("production", tmp_path / "state")
    assert found.path == tmp_path / "fep.toml"
    assert re.fullmatch("[0-9a-f]{12}", found.digest)
    assert (found.enterprise.id, found.enterprise.fep_number) == ("E0001", "FEP-01")
    control = found.control
    assert (control.socket, control.socket_mode) == (tmp_path / "control.sock", 0o660)
    tls, token = control.tcp
    assert (tls.host, tls.port, tls.token_file) == ("0.0.0.0", 7070, None)
    assert tls.tls is not None
    assert tls.tls.client_ca == tmp_path / "ca.crt"
    assert (token.host, token.port, token.tls) == ("127.0.0.1", 7071, None)
    assert token.token_file == tmp_path / "token"
    assert control.clients[ClientName("erp-1")].role == "finance"
    assert control.clients[ClientName("erp-1")].limits == control.limits == Limits()
    assert (control.users["li"].uid, control.users["li"].role) == (1001, "operator")
    assert (found.tasks.queue_max, found.tasks.fetch_timeout_s) == (1000, 30.0)
    first, second = found.slots
    assert first.card is not None
    assert first.pin is not None
    assert second.pin is not None
    assert (first.name, first.backend, first.card.guid) == ("ukey-1", "pcsc", GUID)
    assert (first.pin.credential, second.pin.file) == ("ukey-1-pin", tmp_path / "ukey-2.pin")
    pingan, cmb = found.banks
    assert (pingan.link.host, pingan.link.port, pingan.slot) == ("10.0.0.7", 7070, "ukey-1")
    assert (pingan.bank_class, pingan.version, pingan.workers) == ("307", "2.0", 4)
    assert pingan.direct_connect_number == "00102079900001234000"
    assert (pingan.options.today_trade, cmb.options.login_name) == ("4008", "FEP01")
    assert pingan.card == pingan.adapter.card
    assert (cmb.card.signing.by, cmb.card.inquiry.cool_down_s) == (Signer.SLOT, 5.0)
    assert cmb.card.inquiry.horizon_s == cmb.adapter.card.inquiry.horizon_s
    assert cmb.version == cmb.adapter.version
    number = AccountNumber("99000000000101")
    assert list(found.accounts) == ["99000000000101", "99000000000102", "999900000010101"]
    assert found.accounts[number] == Account(
        number, BankName("pingan"), "江枫样例制造有限公司", "307584007998", "平安银行"
    )
    (pool,) = found.pools
    assert (pool.name, pool.target) == ("main", number)
    assert parse_schedule(pool.schedule) == (dt.time(8, 30), dt.time(17, 30))
    one, two = pool.members
    assert (one.threshold, one.reserve, one.minimum) == (Cny(100_000_00), Cny(10_00), Cny(1_00))
    assert (one.maximum, one.unit, one.rule) == (Cny(50_000_00), Cny(100_00), Excess())
    assert (two.maximum, two.unit, two.minimum) == (None, Cny(1), Cny(1))
    assert two.rule == Range(Cny(1_00), Cny(2_00))


@pytest.mark.parametrize("name", ["fep.toml", "demo.toml"])
def test_the_shipped_files_can_be_used(name: str) -> None:
    found = load(EXAMPLES / name)
    assert len(found.banks) == len(found.slots) == 2
    assert found.pools
    assert found.mode == ("demo" if name == "demo.toml" else "production")


def test_the_annotated_example_names_every_key_there_is(tmp_path: Path) -> None:
    """The faults of a file with one unknown key in each table list the known ones."""
    text = (EXAMPLES / "fep.toml").read_text("utf-8")
    known: set[str] = set()
    for header in re.finditer(r"^\[+[^]]+\]+", text, re.MULTILINE):
        if header[0] == "[bank.card.signing]":
            continue  # the card's keys are explained in the adapters' own card.toml
        broken = f"{text[: header.end()]}\nqqqqqq = 1\n{text[header.end() :]}"
        (fault,) = check(written(tmp_path, broken))
        known.update(fault.message.split("known are: ")[1].split(", "))
    (fault,) = check(written(tmp_path, "qqqqqq = 1\n" + text))
    known.update(fault.message.split("known are: ")[1].split(", "))
    missing = {key for key in known if not re.search(rf"(?<![\w]){key}(?![\w])", text)}
    assert missing == set()


def test_the_least_file_has_the_documented_defaults(tmp_path: Path) -> None:
    text = """
        state_dir = "/var/lib/fep"
        [enterprise]
        id = "E"
        fep_number = "1"
        [control]
        socket = "/run/fep-control.sock"
    """
    found = loaded(tmp_path, text)
    assert (found.mode, found.log_level) == ("production", "info")
    assert found.state_dir == Path("/var/lib/fep")
    assert (found.control.heartbeat_s, found.control.socket_mode) == (10.0, 0o660)
    assert (found.slots, found.banks, found.pools, dict(found.accounts)) == ((), (), (), {})
    assert found.tasks.queue_max == 1_000_000


def test_the_digest_is_of_the_file_and_a_banks_own_of_its_part(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    after = loaded(tmp_path, changed("port = 7080", "port = 7081"))
    assert before.digest != after.digest
    assert before.banks[0].digest == after.banks[0].digest
    assert before.banks[1].digest != after.banks[1].digest


def test_another_address_customer_or_adapter_is_another_system(tmp_path: Path) -> None:
    def systems(text: str = GOOD) -> tuple[str, str]:
        """Return what the second bank's system is alone, and among several machines."""
        bank = loaded(tmp_path, text).banks[1]
        return bank.system(shared=False), bank.system(shared=True)

    alone, shared = systems()
    assert re.fullmatch("[0-9a-f]{16}", alone)
    assert systems(changed("cool_down_s = 5", "cool_down_s = 6")) == (alone, shared)
    assert systems(changed("port = 7080", "port = 7080\nworkers = 3")) == (alone, shared)
    elsewhere = systems(changed("port = 7080", "port = 7081"))
    assert elsewhere[0] != alone
    assert elsewhere[1] == shared
    for what in (('login_name = "FEP01"', 'login_name = "FEP02"'), ("308-0001", "308-0002")):
        other = systems(changed(*what))
        assert other[0] != alone
        assert other[1] != shared


def test_a_software_slot_needs_demo_or_words(tmp_path: Path) -> None:
    pcsc = GOOD[GOOD.index('backend = "pcsc"') : GOOD.index('\n[[slot]]\nname = "ukey-2"')]
    software = changed(pcsc, '‸backend = "software"\nkey = { file = "a.pem" }\n')
    (fault,) = marked(tmp_path, software)
    assert fault.message == (
        'software keys are for mode = "demo"; or say so in words: '
        "allow_software_keys_in_production = true"
    )
    software = software.replace("‸", "")
    for good in (
        changed('mode = "production"', 'mode = "demo"', software),
        f"allow_software_keys_in_production = true\n{software}",
    ):
        slot = loaded(tmp_path, good).slots[0]
        assert slot.key is not None
        assert (slot.backend, slot.key.file) == ("software", tmp_path / "a.pem")
    marked(tmp_path, changed('mode = "production"', '‸mode = "prodution"', software))


def test_a_slot_by_pkcs11_is_taken(tmp_path: Path) -> None:
    slot = loaded(tmp_path, pkcs11()).slots[0]
    assert slot.token is not None
    assert (slot.backend, slot.module) == ("pkcs11", tmp_path / "p11.so")
    assert (slot.token.serial, slot.token.label) == ("0123", "一号")
    assert slot.token.certificate_sha256 == SHA256
    assert (slot.object.id, slot.object.label) == ("0a", "sign")
    least = pkcs11().replace(', label = "一号"', "").replace(OBJECT, "")
    slot = loaded(tmp_path, least).slots[0]
    assert slot.token is not None
    assert (slot.token.label, slot.object.id, slot.object.label) == ("", "", "")


OBJECT = 'object = { id = "0A", label = "sign" }\n'


def pkcs11() -> str:
    """Return the good file with its first slot by PKCS#11."""
    pcsc = GOOD[GOOD.index('backend = "pcsc"') : GOOD.index("pin = { cred")]
    token = f'token = {{ serial = "0123", label = "一号", certificate_sha256 = "{SHA256}" }}\n'
    return changed(pcsc, f'backend = "pkcs11"\nmodule = "p11.so"\n{token}{OBJECT}')


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('module = "p11.so"\n', "", "a pkcs11 slot needs module"),
        ("token = {", "‸tokn = {", "unknown key; did you mean 'token'?"),
        ('serial = "0123", label = "一号"', 'label = ""', "give serial or label"),
        ('serial = "0123", label = "一号", ', "", "give serial or label"),
        (f', certificate_sha256 = "{SHA256}"', "", "is missing"),
        (f'"一号", certificate_sha256 = "{SHA256}"', '"x", certificate_sha256 = "x"', "64 hex"),
        ('id = "0A"', 'id = "0"', "id must be pairs"),
        (OBJECT, f'{OBJECT}‸key = {{ file = "k" }}\n', "leave card and key out"),
    ],
)
def test_a_wrong_slot_by_pkcs11_is_told(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = changed(old, new.replace("‸", ""), pkcs11())
    assert says in check(written(tmp_path, text))[0].message


def test_a_library_that_others_can_write_is_told(tmp_path: Path) -> None:
    found = loaded(tmp_path, pkcs11())
    module = tmp_path / "p11.so"
    assert f"{module}: No such file or directory" in secret_faults(found)
    module.touch()
    module.chmod(0o775)
    assert f"{module}: can be written by others; chmod go-w it" in secret_faults(found)
    module.chmod(0o755)
    assert not [one for one in secret_faults(found) if one.startswith(str(module))]


# -- what is wrong --------------------------------------------------------------------------------

WRONG = [
    # the top
    ('mode = "production"', '‸mode = "prodution"', "one of production, demo; did you mean 'prod"),
    ('mode = "production"', "‸mode = 1", "must be one of production, demo"),
    ('state_dir = "state"', "‸statedir = 'state'", "unknown key; did you mean 'state_dir'?"),
    ('mode = "production"\nstate_dir = "state"', '‸mode = "production"', "is missing"),
    ('state_dir = "state"', 'state_dir = "state"\n‸log_level = "loud"', "debug, info, warning"),
    ("[enterprise]", "‸[enterprize]", "unknown key; did you mean 'enterprise'?"),
    ("[enterprise]", "‸allow_software_keys_in_production = 1\n[enterprise]", "true or false"),
    # The enterprise tables.
    ('id = "E0001"', '‸id = ""', "must be text in quotes, not empty"),
    ('id = "E0001"', "‸id = 1", "must be text in quotes, not empty"),
    ('id = "E0001"', f'‸id = "{"E" * 65}"', "at most 64 characters"),
    ('[enterprise]\nid = "E0001"', "‸[enterprise]", "is missing"),
    # The control tables.
    ('socket_mode = "0660"', '‸socket_mode = "0680"', "three octal digits"),
    ('socket_mode = "0660"', '‸socket_mode = "-660"', "three octal digits"),
    ('socket_mode = "0660"', "‸socket_mode = 660", "text in quotes"),
    ("heartbeat_s = 10", "‸heartbeat_s = 0", "number from 0.05 to 3600"),
    ("heartbeat_s = 10", "‸heartbeat_s = nan", "number from 0.05 to 3600"),
    ("heartbeat_s = 10", "‸heartbeat_s = true", "number from 0.05 to 3600"),
    ("heartbeat_s = 10", '‸heartbeat_s = "10"', "number from 0.05 to 3600"),
    ('listen = "0.0.0.0:7070"', '‸listen = "7070"', "must be HOST:PORT"),
    ('listen = "0.0.0.0:7070"', '‸listen = "::1:7070"', "must be HOST:PORT"),
    ('listen = "0.0.0.0:7070"', '‸listen = "[]:7070"', "must be HOST:PORT"),
    ('listen = "0.0.0.0:7070"', '‸listen = "0.0.0.0:70700"', "must be HOST:PORT"),
    ('listen = "127.0.0.1:7071"', '‸listen = "0.0.0.0:7071"', "plain TCP is refused there"),
    ('listen = "127.0.0.1:7071"', '‸listen = "10.0.0.1:7071"', "plain TCP is refused there"),
    ('listen = "127.0.0.1:7071"', '‸listen = "[::]:7071"', "plain TCP is refused there"),
    ('listen = "127.0.0.1:7071"', '‸listen = "localhost.example:7071"', "plain TCP is refused"),
    ('7071"\ntoken_file', '7071"\n‸tokenfile', "unknown key; did you mean 'token_file'?"),
    ('token_file = "token"', "", "needs token_file or keys_file, or tls"),
    ("tls = {", 'token_file = "t"\ntls = {', "give one of tls, token_file and keys_file"),
    ('token_file = "token"', 'token_file = "t"\n‸keys_file = "k"', "give one of tls, token_file"),
    ('listen = "127.0.0.1:7071"\ntoken_file', '‸listen = "10.0.0.1:7071"\nkeys_file', "plain TCP"),
    (
        "[control.users.li]",
        "[control.limits]\n‸lines_s = 0.5\n[control.users.li]",
        "at least 1, or 0",
    ),
    ("[control.users.li]", "[control.limits]\n‸bytes_s = -1\n[control.users.li]", "from 0 to"),
    (
        "[control.users.li]",
        "[control.limits]\n‸sessions_max = 0\n[control.users.li]",
        "from 1 to 256",
    ),
    (
        "[control.users.li]",
        "[control.limits]\n‸line_s = 5\n[control.users.li]",
        "did you mean 'lines_s'",
    ),
    ("[control.clients.erp-1]", "[control.clients.erp-1]\n‸open_max = -1", "a whole number from 0"),
    ('client_ca = "ca.crt"', '‸client_cert = "ca.crt"', "unknown key"),
    (', client_ca = "ca.crt"', "", "is missing"),
    ('listen = "0.0.0.0:7070"', 'listen = "127.0.0.1:7071"', "another [[control.tcp]] listens"),
    ('role = "finance"', '‸role = "financ"', "did you mean 'finance'?"),
    ("[control.clients.erp-1]", '‸[control.clients."erp 1"]', "a client's name must be"),
    ("uid = 1001", "‸uid = -1", "whole number from 0"),
    ("uid = 1001\n", "", "is missing"),
    ("[control.users.li]", "‸[control.users.erp-1]", "'erp-1' of [control.clients] has"),
    ("[tasks]", '[control.users.wang]\n‸uid = 1001\nrole = "viewer"\n[tasks]', "'li' has this uid"),
    ("queue_max = 1000", "‸queue_max = 1.5", "must be a whole number"),
    ("queue_max = 1000", "‸queuemax = 1000", "did you mean 'queue_max'?"),
    # The slot tables.
    (GUID_2, GUID, "bound to the same card"),
    ('backend = "pcsc"', '‸backend = "pcscd"', "did you mean 'pcsc'?"),
    (f'guid = "{GUID}"', f'‸guid = "{GUID[1:]}"', "guid must be 32 hexadecimal digits"),
    (f'sha256 = "{SHA256}"', 'sha256 = "x"', "certificate_sha256 must be 64 hexadecimal digits"),
    (f'card = {{ guid = "{GUID}", certificate_sha256 = "{SHA256}" }}\n', "", "a pcsc slot needs"),
    ('pin = { credential = "ukey-1-pin" }', '‸pin = "123456"', "must be a table"),
    ('pin = { credential = "ukey-1-pin" }', "‸pin = {}", "either credential or file"),
    ('credential = "ukey-1-pin"', '‸credential = "../x"', "must be a plain name"),
    ('credential = "ukey-1-pin"', 'credential = "x", file = "y"', "either credential or file"),
    # The bank tables.
    ('adapter = "cmb_xml"', '‸adapter = "cmb_xm"', "did you mean 'cmb_xml'?"),
    ('class = "308"', "‸class = 308", "text in quotes"),
    ('version = "2.0"', '‸version = "3.0"', "adapter pingan_b2bi speaks version 2.0"),
    ('direct_connect_number = "308-0001"\n', "", "is missing"),
    (
        'direct_connect_number = "001',
        '‸direct_connect_number = "x 001',
        "1 to 20 letters or digits",
    ),
    ("port = 7080", "‸port = 70800", "whole number from 1 to 65535"),
    ("port = 7080", '‸port = "7080"', "whole number from 1 to 65535"),
    ("port = 7080\n", "", "is missing"),
    ('host = "10.0.0.8"', '‸hosst = "10.0.0.8"', "unknown key; did you mean 'host'?"),
    ('slot = "ukey-2"', '‸slot = "ukey-3"', "no [[slot]] named 'ukey-3'; did you mean 'ukey-"),
    ("workers = 4", "‸workers = 65", "whole number from 1 to 64"),
    ("workers = 4", "‸workers = 0", "whole number from 1 to 64"),
    ("workers = 4", "‸backoff_max_s = 0.1", "must not be below backoff_first_s"),
    ("heartbeat_s = 30", "‸heartbeat_s = 24", "must be more than reply_timeout_s, not 24 and 60"),
    ("port = 7080", "port = 7080\n‸reply_timeout_s = 75", "2.5 * heartbeat_s must be more than"),
    ('branch = "75"', '‸branch = "755"', "branch must be the 2 characters"),
    ('branch = "75"', "‸branch = 75", "must be text in quotes"),
    ('branch = "75"', 'branch = "75", ‸zzz = 3', "unknown key; known are: login_name"),
    (', branch = "75"', "", "is missing"),
    ('branch = "75"', 'branch = "75", ‸branches = "75"', "must be a table"),
    ('branch = "75"', 'branch = "75", branches = { ‸x = 75 }', "must be text in quotes"),
    ('branch = "75"', 'branch = "75", ‸buscod = "N1"', "N02031"),
    ('today_trade = "4008"', '‸today_trade = "4009"', "must be one of 4013, 4008"),
    ('options = { today_trade = "4008" }', "‸options = 3", "must be a table"),
    ('by = "slot"', '‸by = "slott"', "must be one of front_end, sign_port, slot"),
    ('by = "slot"', '‸by = "sign_port"', "sign port"),
    ("cool_down_s = 5", "‸cool_down = 5", "unknown key; did you mean 'cool_down_s'?"),
    ("cool_down_s = 5", "‸cool_down_s = -5", "at least 0"),
    ("cool_down_s = 5", "‸cool_down_s = nan", "at least 0"),
    ("cool_down_s = 5", '‸cool_down_s = "5"', "must be a number"),
    ("cool_down_s = 5", "‸backoff_factor = 0.5", "at least 1"),
    ("cool_down_s = 5", "‸no_record_after_s = 0", "proves nothing"),
    ("signing = {", '‸codes = "MA404", signing = {', "must be a table"),
    ("signing = {", 'codes = { ‸ok = "MA404" }, signing = {', "must be an array"),
    ("signing = {", 'codes = { ‸no_record = ["-9"] }, signing = {', "is in codes.unclear too"),
    ("signing = {", "limits = { ‸frame_bytes_max = 1 }, signing = {", "at least 1024"),
    ("signing = {", "limits = { ‸frame_bytes_max = 1000000000 }, signing = {", "at most"),
    # The account tables.
    ('bank = "cmb"\n', '‸bank = "cmbc"\n', "no [[bank]] named 'cmbc'; did you mean 'cmb'?"),
    ('"307584007998"', '"30758400799"', "12 digits"),
    ('name = "江枫样例制造有限公司"\nbank_code', '‸name = "江\\n枫"\nbank_code', "printable text"),
    # The pool tables.
    ('target = "99000000000101"', '‸target = "99000000000103"', "not among the approved"),
    ('account = "99000000000102"', '‸account = "99000000000103"', "[[account]]s"),
    ('account = "99000000000102"', '‸account = "99000000000101"', "is the pool's target"),
    ('account = "99000000000102"', 'account = "999900000010101"', ""),
    ('"17:30, 08:30"', '"17:30, 8:30"', "'8:30' is not a time HH:MM"),
    ('threshold = "100000.00"', '‸threshold = "100000"', "two decimals"),
    ('threshold = "100000.00"', "‸threshold = 100000.00", "text in quotes"),
    ('threshold = "100000.00"', '‸threshold = "-1.00"', "must be from 0.00 to"),
    ('threshold = "100000.00"\n', "", "is missing"),
    ('unit = "100.00"', '‸unit = "0.00"', "must be at least 0.01"),
    ('maximum = "50000.00"', '‸maximum = "0.50"', "maximum must not be below minimum"),
    ('unit = "100.00"', 'unit = "50000.01"', "maximum must not be below unit"),
    ('rule = { kind = "excess" }', '‸rule = "excess"', "must be a table"),
    ('kind = "excess"', "", "is missing; it is one of excess, zero"),
    ('kind = "excess"', '‸kind = "exces"', "did you mean 'excess'?"),
    ('kind = "excess"', 'kind = "excess", ‸amount = "1.00"', "unknown key"),
    ('kind = "excess"', 'kind = "fixed", ‸amount = "1.0"', "two decimals"),
    ('kind = "excess"', 'kind = "target", ‸amout = "1.00"', "did you mean 'amount'?"),
    ('kind = "excess"', 'kind = "percentage", ‸basis_points = 0', "from 1 to 10000"),
    ('kind = "excess"', 'kind = "percentage", ‸basis_points = 10001', "from 1 to 10000"),
    ('low = "1.00"', '‸low = "3.00"', "low must not be above high"),
]
# Where the mark is not in the new text: the line and column of the fault, in the whole file.
PLACES = {
    ('token_file = "token"', ""): 'listen = "127.0.0.1:7071"',
    ("tls = {", 'token_file = "t"\ntls = {'): 'token_file = "t"',
    (', client_ca = "ca.crt"', ""): "tls = {",
    ('listen = "0.0.0.0:7070"', 'listen = "127.0.0.1:7071"'): (
        'listen = "127.0.0.1:7071"\ntoken_file'
    ),
    ("uid = 1001\n", ""): "[control.users.li]",
    (GUID_2, GUID): f'card = {{ guid = "{GUID}", certificate_sha256 = "{SHA256}" }}\npin = {{ file',
    (f'sha256 = "{SHA256}"', 'sha256 = "x"'): 'certificate_sha256 = "x"',
    (f'card = {{ guid = "{GUID}", certificate_sha256 = "{SHA256}" }}\n', ""): "[[slot]]",
    ('credential = "ukey-1-pin"', 'credential = "x", file = "y"'): 'credential = "x"',
    ('direct_connect_number = "308-0001"\n', ""): '[[bank]]\nname = "cmb"',
    ("port = 7080\n", ""): '[[bank]]\nname = "cmb"',
    (', branch = "75"', ""): "options = { login_name",
    ('"307584007998"', '"30758400799"'): "bank_code =",
    ('account = "99000000000102"', 'account = "999900000010101"'): (
        'account = "999900000010101"\nthreshold = "0.00"'
    ),
    ('"17:30, 08:30"', '"17:30, 8:30"'): "schedule =",
    ('threshold = "100000.00"\n', ""): '[[pool.member]]\naccount = "99000000000102"',
    ('unit = "100.00"', 'unit = "50000.01"'): 'maximum = "50000.00"',
    ('kind = "excess"', ""): "rule = {  }",
}


def test_a_client_has_the_limits_of_all_but_for_its_own(tmp_path: Path) -> None:
    text = changed("[control.clients.erp-1]", "[control.clients.erp-1]\nlines_s = 5", GOOD)
    text = changed(
        "[control.users.li]",
        "[control.clients.erp-2]\n[control.limits]\nlines_s = 9\nbytes_s = 1e6\nopen_max = 7\n"
        "sessions_max = 3\n[control.users.li]",
        text,
    )
    control = load(written(tmp_path, text)).control
    assert control.limits == Limits(9.0, 1e6, 7, 3)
    assert control.clients[ClientName("erp-1")].limits == Limits(5.0, 1e6, 7, 3)
    assert control.clients[ClientName("erp-2")].limits == control.limits


def test_files_of_listeners_are_looked_at(tmp_path: Path) -> None:
    text = changed('token_file = "token"', 'keys_file = "keys"', GOOD)
    text = changed('client_ca = "ca.crt"', 'client_ca = "ca.crt", client_crl = "ca.crl"', text)
    found = load(written(tmp_path, text))
    assert found.control.tcp[0].tls is not None
    assert found.control.tcp[0].tls.client_crl == tmp_path / "ca.crl"
    (tmp_path / "keys").write_text("k")
    (tmp_path / "keys").chmod(0o640)
    faults = secret_faults(found)
    assert f"{tmp_path / 'keys'}: can be read by others; chmod 600 it" in faults
    assert f"{tmp_path / 'ca.crl'}: No such file or directory" in faults


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
@pytest.mark.req("POOL-15")
def test_each_fault_is_told_once_at_its_own_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = changed(old, new)
    if "‸" not in new:
        place = PLACES[old, new]
        text = changed(place, f"‸{place}", text)
    (fault,) = marked(tmp_path, text)
    assert message in fault.message
    shown = str(fault).split("\n")
    assert (
        shown[0] == f"{tmp_path}/fep.toml:{fault.line}:{fault.column}: {fault.key}: {fault.message}"
    )
    assert shown[1].startswith("    ")
    assert shown[2].strip() == "^"


def test_no_place_is_left_over() -> None:
    assert set(PLACES) == {(old, new) for old, new, _ in WRONG if "‸" not in new}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([('name = "ukey-1"', '‸name = "ukey 1"'), ('slot = "ukey-1"', '‸slot = "ukey-1"')], "32"),
        (
            [('name = "ukey-2"', '‸name = "ukey-1"'), ('slot = "ukey-2"', '‸slot = "ukey-2"')],
            "twice",
        ),
        ([('name = "cmb"', '‸name = "pingan"'), ('bank = "cmb"', '‸bank = "cmb"')], "twice"),
        ([('name = "cmb"', '‸name = "c m"'), ('bank = "cmb"', '‸bank = "cmb"')], "a bank's name"),
        ([('"main"', '"m n"'), ('name = "m n"', '‸name = "m n"')], "a pool's name must be"),
        (
            [
                ('number = "99000000000102"', '‸number = "99000000000101"'),
                ('account = "99000000000102"', '‸account = "99000000000102"'),
            ],
            "is there twice",
        ),
        (
            [
                ('number = "99000000000102"', '‸number = "9900 0"'),
                ('account = "99000000000102"', '‸account = "99000000000102"'),
            ],
            "an account number must be",
        ),
    ],
)
def test_a_wrong_name_is_told_and_who_used_the_right_one(
    tmp_path: Path, edits: list[tuple[str, str]], message: str
) -> None:
    text = GOOD
    for old, new in edits:
        text = changed(old, new, text)
    assert message in marked(tmp_path, text)[0].message


@pytest.mark.parametrize("name", ["slot", "bank", "account", "pool"])
def test_an_array_of_tables_is_asked_for_in_the_words_of_toml(tmp_path: Path, name: str) -> None:
    least = GOOD[: GOOD.index("[control.clients")]
    (fault,) = marked(tmp_path, f"‸{name} = {{ name = 'x' }}\n{least}")
    assert fault.message == f"must be an array of tables: [[{name}]]"


def test_not_more_faults_are_listed_than_anybody_reads(tmp_path: Path) -> None:
    rows = "[[account]]\nnumber = 1\n" * tables.FAULTS_MAX
    assert len(check(written(tmp_path, f"{GOOD}{rows}"))) == tables.FAULTS_MAX


def test_two_pools_of_one_name_are_told(tmp_path: Path) -> None:
    pool = GOOD[GOOD.index("[[pool]]") :].replace("name =", "‸name =")
    pool = pool.replace("account =", "‸account =")
    faults = marked(tmp_path, f"{GOOD}{pool}")
    assert faults[0].message == "pool 'main' is there twice"


EIGHT = """\
mode = "production"
state_dir = "/var/lib/fep"
[enterprise]
id = "E0001"
fep_number = ‸7
[control]
socket = "/run/fep-control.sock"
[[control.tcp]]
‸listen = "0.0.0.0:7071"
token_file = "token"
[[slot]]
name = "ukey-1"
‸backend = "software"
key = { file = "soft.pem" }
[[bank]]
name = "平安"  # the caret must stand right under wide characters too
adapter = "pingan_b2bi"
class = "307"
direct_connect_number = "00102079900001234000"
‸hosst = "10.0.0.7"
port = 7070
‸slot = "ukey-2"
options = { corp_code = "X1", ‸today = "4008" }
[[account]]
number = "99000000000101"
bank = "pingan"
name = "江枫样例制造有限公司"
[[pool]]
name = "main"
target = "99000000000101"
[[pool.member]]
‸account = "99000000000102"
‸threshold = "100000"
"""


def test_check_config_tells_eight_faults_of_one_file_at_once(tmp_path: Path) -> None:
    text = changed("fep_number = ‸7", "‸fep_number = 7", EIGHT)
    text = changed('name = "平安"', 'name = "pingan"', text)
    faults = marked(tmp_path, text)
    assert len(faults) == 8
    path = written(tmp_path, text.replace("‸", ""))
    told = subprocess.run(
        [sys.executable, "-m", "fep.daemon.main", "check-config", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert told.returncode == 1
    assert told.stdout == ""
    heads = [line for line in told.stderr.splitlines() if line.startswith(str(path))]
    assert [line.removeprefix(f"{path}:").split(": ", 2)[:2] for line in heads] == [
        ["5:1", "enterprise.fep_number"],
        ["9:1", "control.tcp.0.listen"],
        ["13:1", "slot.0.backend"],
        ["20:1", "bank.0.hosst"],
        ["22:1", "bank.0.slot"],
        ["23:31", "bank.0.options.today"],
        ["32:1", "pool.0.member.0.account"],
        ["33:1", "pool.0.member.0.threshold"],
    ]
    assert "did you mean 'host'?" in told.stderr
    assert "did you mean '99" not in told.stderr, "the nearest account may be the wrong one"
    assert "did you mean 'today_trade'?" in told.stderr
    assert "8 faults" in told.stderr


def test_check_config_of_a_good_file_is_one_line_and_status_0(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    told = subprocess.run(
        [sys.executable, "-m", "fep.daemon.main", "check-config", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert len(told.stdout.splitlines()) == 1
    assert "OK: 2 banks, 2 slots, 3 accounts, 1 pool (" in told.stdout


def test_one_fault_brings_no_others(tmp_path: Path) -> None:
    """A bank with a fault still is a bank to its accounts, a slot to its bank, an account to a pool."""
    text = changed("port = 7080", "‸port = 0")
    text = changed(f'guid = "{GUID}"', '‸guid = "x"', text)
    text = changed('"307584007998"', '"3"', text)
    text = changed("bank_code", "‸bank_code", text)
    assert len(marked(tmp_path, text)) == 3


def test_the_caret_stands_under_the_place_beside_wide_characters(tmp_path: Path) -> None:
    text = changed(
        'options = { login_name = "FEP01", branch = "75" }',
        'options = { login_name = "登录", ‸branch = "755" }',
    )
    (fault,) = marked(tmp_path, text)
    _, source, caret = str(fault).split("\n")
    # Each of the two wide characters takes two columns of a terminal.
    assert caret.index("^") == source.index("branch") + 2


def test_a_long_line_is_shown_around_the_place(tmp_path: Path) -> None:
    rows = ", ".join('{ from = "1.00", to = "2.00", basis_points = 1 }' for _ in range(50))
    text = changed('kind = "excess"', f'kind = "tiered", tiers = [{rows}]')
    faults = check(written(tmp_path, text))
    assert faults[0].message == "tier 2 overlaps the one before it"
    for line in str(faults[0]).split("\n")[1:]:
        assert len(line) < 200
    _, source, caret = str(faults[0]).split("\n")
    assert source[caret.index("^") :].startswith("{ from")


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ("‸tiers = []", "at least one"),
        ("‸tiers = 3", "at least one"),
        ("tiers = [‸3]", "must be a table"),
        ('tiers = [{ from = "1.00", ‸to = "1.00", basis_points = 1 }]', "must be above 'from'"),
        ('tiers = [‸{ to = "1.00", basis_points = 1 }]', "is missing"),
        (
            'tiers = [{ from = "1.00", basis_points = 1 }, ‸{ from = "2.00", basis_points = 1 }]',
            "only the last",
        ),
        (
            (
                'tiers = [{ from = "1.00", to = "3.00", basis_points = 1 }, '
                '‸{ from = "2.00", to = "4.00", basis_points = 1 }]'
            ),
            "overlaps",
        ),
    ],
)
def test_tiers_are_told_apart(tmp_path: Path, tiers: str, message: str) -> None:
    (fault,) = marked(tmp_path, changed('kind = "excess"', f'kind = "tiered", {tiers}'))
    assert message in fault.message


def test_an_account_is_swept_by_one_pool_only(tmp_path: Path) -> None:
    second = """
[[pool]]
name = "second"
target = "99000000000101"
[[pool.member]]
‸account = "99000000000102"
threshold = "1.00"
"""
    (fault,) = marked(tmp_path, GOOD + second)
    assert "is a member of pool 'main' already" in fault.message
    text = second.replace("‸", "").replace("[[pool]]", "‸[[pool]]").split("[[pool.member]]")[0]
    (fault,) = marked(tmp_path, GOOD + text)
    assert "at least one [[pool.member]]" in fault.message
    text = changed('account = "99000000000102"', 'account = "99000000000101"', second)
    chain = changed('target = "99000000000101"', 'target = "999900000010101"', text)
    assert len(loaded(tmp_path, GOOD + chain.replace("‸", "")).pools) == 2


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a = 1\nb =\n", 2, 4, "Invalid value"),
        ("a = 1\na = 2\n", 2, 6, "Cannot overwrite a value"),
        ('a = "', 1, 6, "Unterminated string"),
        ("", 1, 1, "is missing"),
        ("[a", 1, 3, "Expected"),
    ],
)
def test_what_is_not_toml_says_where(
    tmp_path: Path, text: str, line: int, column: int, message: str
) -> None:
    fault = check(written(tmp_path, text))[0]
    assert (fault.line, fault.column) == (line, column), str(fault)
    assert message in fault.message


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    (fault,) = check(tmp_path / "none.toml")
    assert fault.message == "can't be read: No such file or directory"
    (fault,) = check(tmp_path)
    assert "Is a directory" in fault.message
    path = tmp_path / "gbk.toml"
    path.write_bytes('a = 1\nb = "ab江枫"'.encode("gbk"))
    (fault,) = check(path)
    assert (fault.line, fault.column) == (2, 8)
    assert "save the file as UTF-8" in fault.message
    path.write_bytes(b"#" * (config.FILE_BYTES_MAX + 1))
    (fault,) = check(path)
    assert "is larger than" in fault.message


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a = 1\nb = " + "[" * 5000, 1, "is nested too deeply"),
        ("a = 1\nb = " + "{ a = " * 5000, 1, "is nested too deeply"),
        ("a = 1\nb = " + "1" * 5000, 2, "a number has more than 4300 digits"),
        ("a = 1\n" + "b." * 40 + "c = 1", 2, "a key has more than 32 parts"),
        ("a = 1\n[ " + "'b' . " * 40 + "c ]", 2, "a key has more than 32 parts"),
        ("\ufeffa = 1", 1, "begins with a byte order mark; save it without"),
    ],
)
def test_what_python_itself_would_not_take_is_a_fault_too(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    (fault,) = check(written(tmp_path, text))
    assert (fault.line, fault.message) == (line, message)


def test_a_path_without_meaning_is_told_before_anybody_opens_it(tmp_path: Path) -> None:
    (fault,) = marked(tmp_path, changed('file = "ukey-2.pin"', '‸file = "a\\u0000b"'))
    assert "NUL" in fault.message


def test_a_number_of_more_than_64_bits_is_told_whatever_it_is_for(tmp_path: Path) -> None:
    huge = "0x" + "f" * 5000
    text = changed("workers = 4", f"‸workers = {huge}")
    text = changed("cool_down_s = 5", f"cool_down_s = 5, ‸accepted_interval_s = {huge}", text)
    text = changed("signing = {", f"statement = {{ ‸rows_per_page = {huge} }}, signing = {{", text)
    faults = marked(tmp_path, text)
    assert faults[0].message == "must be a whole number from 1 to 64"
    assert {fault.message for fault in faults[1:]} == {
        f"must be from -{config.INTEGER_MAX} to {config.INTEGER_MAX}"
    }


def test_each_option_that_is_wrong_is_told(tmp_path: Path) -> None:
    text = changed(
        'login_name = "FEP01", branch = "75"', '‸login_name = "", ‸branch = "755", ‸x = 1'
    )
    marked(tmp_path, text.replace("‸x = 1", '‸buscod = "N1", ‸busmod = 1, ‸zz = 1'))


def test_folders_whose_links_go_round_are_no_crash(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("in")
    (tmp_path / "in").symlink_to("out")
    text = changed('adapter = "cmb_xml"', 'adapter = "iso20022"')
    text = changed('host = "10.0.0.8"\nport = 7080\n', "", text)
    text = changed('login_name = "FEP01", branch = "75"', 'initiating_party = "x"', text)
    text = changed("signing = {", 'transport = { protocol = "folder" }, signing = {', text)
    text = changed('by = "slot"', 'by = "front_end"', text)
    folder = '\n\nfolder = { out = "out", in = "in", archive = "archive" }\n'
    assert (
        check(written(tmp_path, changed('slot = "ukey-2"\n', f'slot = "ukey-2"{folder}', text)))
        == []
    )


def test_more_slots_and_banks_than_a_machine_has_are_told_once(tmp_path: Path) -> None:
    text = GOOD
    text += '[[slot]]\nname = "s"\nbackend = "pcsc"\n' * config.SLOTS_MAX
    text += '[[bank]]\nname = "b"\nadapter = "cmb_xml"\n' * bank_section.BANKS_MAX
    told = [one.message for one in check(written(tmp_path, text)) if "more than" in one.message]
    assert told == [
        f"there are more than {config.SLOTS_MAX} [[slot]]",
        f"there are more than {bank_section.BANKS_MAX} [[bank]]",
    ]


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('pin = { credential = "ukey-1-pin" }', 'pin = "PIN246810"'),
        ('pin = { credential = "ukey-1-pin" }', "pin='PIN246810'"),
        ('pin = { credential = "ukey-1-pin" }', "pin = { value = 'PIN246810' }"),
        ('pin = { credential = "ukey-1-pin" }', "[slot.pin]\nvalue = 'PIN246810'"),
        ('pin = { credential = "ukey-1-pin" }', 'pin = """PIN246810"""'),
        ('pin = { credential = "ukey-1-pin" }', 'pin = ["PIN246810"]'),
        ('options = { today_trade = "4008" }', 'options = { user_password = "PIN246810", x = 1 }'),
        ('id = "E0001"', 'id = "E0001"\ntoken = "PIN246810'),
        ('id = "E0001"', 'id = "E0001"\npin = PIN 246810'),
        ('id = "E0001"', 'id = "E0001"\npin = """\n PIN246810 \\q"""'),
        ('id = "E0001"', 'id = "E0001"\npin = ["a",\n "PIN246810", b]'),
        ('id = "E0001"', 'id = "E0001"\npin = { "PIN246810" }'),
        ('id = "E0001"', "id = 1\n\"p\\u0069n\" = 'PIN246810'"),
        ('id = "E0001"', 'id = "E0001"\npasswrd = "PIN246810"'),
        ('id = "E0001"', 'id = "E0001"\npin.value = "PIN246810"'),
    ],
)
def test_a_secret_that_somebody_wrote_into_the_file_is_not_shown(
    tmp_path: Path, old: str, new: str
) -> None:
    faults = check(written(tmp_path, changed(old, new)))
    assert faults
    assert "PIN246810" not in str(ConfigFaultsError(faults))


def test_what_is_shown_of_the_configuration_has_no_secrets(tmp_path: Path) -> None:
    text = changed('branch = "75"', 'branch = "75", branches = { token = "75", other = "76" }')
    shown = redacted(loaded(tmp_path, text))
    assert shown["path"] == str(tmp_path / "fep.toml")
    whole = shown["config"]
    assert whole["slot"][0]["pin"] == {"credential": "ukey-1-pin"}
    assert whole["bank"][1]["options"]["branches"] == {"token": "***", "other": "76"}
    assert whole["bank"][0]["port"] == 7070


def test_secret_files_must_be_there_and_be_private(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    names = ["ukey-2.pin", "token", "tls.key", "tls.crt", "ca.crt"]
    assert secret_faults(found) == [
        f"{tmp_path / name}: No such file or directory" for name in names
    ]
    for name in names:
        (tmp_path / name).touch(mode=0o644)
        (tmp_path / name).chmod(0o644)
    assert secret_faults(found) == [
        f"{tmp_path / name}: can be read by others; chmod 600 it" for name in names[:3]
    ]
    for name in names[:3]:
        (tmp_path / name).chmod(0o600)
    assert secret_faults(found) == []
    (tmp_path / "token").unlink()
    (tmp_path / "token").mkdir(mode=0o700)
    assert secret_faults(found) == [f"{tmp_path / 'token'}: is not a file"]


def test_the_place_of_a_secret_is_shown(tmp_path: Path) -> None:
    text = changed('pin = { credential = "ukey-1-pin" }', 'pin = { credential = "ukey 1" }')
    (fault,) = check(written(tmp_path, text))
    assert 'credential = "ukey 1"' in fault.source
    broken = changed('pin = { credential = "ukey-1-pin" }', 'pin = { credential = "ukey-1", x y }')
    (fault,) = check(written(tmp_path, broken))
    assert (fault.key, fault.source) == ("(syntax)", 'pin = **credential = "ukey-1"*******')


def test_what_a_terminal_would_obey_is_not_shown(tmp_path: Path) -> None:
    text = changed('id = "E0001"', 'id = 1\n"a\\u001b[31m\\nb\\"" = "\t江枫"')
    faults = check(written(tmp_path, text))
    assert faults[1].key == 'enterprise."a�[31m�b\\""'
    (fault,) = check(written(tmp_path, changed('id = "E0001"', 'id = "\u001b[31m"')))
    assert "\u001b" not in str(fault)
    assert "\u202e" not in str(check(written(tmp_path, changed("E0001", '\u202e" x')))[0])


# -- anything -------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(data=st.data())
def test_any_file_is_good_or_has_faults_inside_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Lines dropped, swapped, doubled, cut: never a crash, and every place is in the file."""
    lines = GOOD.split("\n")
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "swap", "double", "value", "cut", "noise"])):
            case "drop":
                del lines[at]
            case "swap":
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "value":
                value = data.draw(
                    st.sampled_from(
                        [
                            "1",
                            "-1",
                            "1.5",
                            "true",
                            '""',
                            '"x"',
                            "[]",
                            "{}",
                            "[[]]",
                            "inf",
                            "2026-01-01",
                            "[{}]",
                            "{ a = {} }",
                            "99999999999999999999",
                            '"1.00"',
                        ]
                    )
                )
                lines[at] = re.sub("=.*", f"= {value}", lines[at])
            case "cut":
                lines[at] = lines[at][: data.draw(st.integers(0, 20))]
            case _:
                lines[at] += data.draw(st.text(max_size=3))
        lines = lines or [""]
    text = "\n".join(lines)
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    faults = check(path)
    if not faults:
        load(path)
    for fault in faults:
        assert 1 <= fault.line <= text.count("\n") + 1
        assert fault.column >= 1
        assert "\n" not in fault.message
        assert str(fault)
    assert faults == sorted(faults, key=lambda fault: (fault.line, fault.column))


TOML_PIECES = st.sampled_from(
    [*"[]{}=.,#\"'\\\n\r\t 1a-", "[[", "]]", '"""', "'''", "mode", "slot", "inf", "\ufeff", "江"]
)


@settings(max_examples=300)
@given(data=st.binary(max_size=60) | st.lists(TOML_PIECES, max_size=25).map("".join))
def test_any_bytes_are_a_file_with_faults(
    tmp_path_factory: pytest.TempPathFactory, data: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    with pytest.raises(ConfigFaultsError) as caught:
        load(path)
    assert caught.value.faults
    assert str(caught.value)
