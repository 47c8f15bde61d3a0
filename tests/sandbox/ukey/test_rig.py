"""The rig through a real pcscd: insertion, exchange, loss, misbehaving cards, pcscd's death."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from fep.sandbox.ukey import rig as rig_module
from fep.sandbox.ukey import tlv
from fep.sandbox.ukey.apdu import Ins
from fep.sandbox.ukey.build import DriverBuildError, build
from fep.sandbox.ukey.cards import SLOTS_MAX
from fep.sandbox.ukey.piv import ATR
from fep.sandbox.ukey.rig import UkeyRig, UkeyRigError, reader_name
from tests.rig import COMMON_NAMES, SLOTS, SPARE
from tests.sandbox.ukey.pcsc import (
    NO_SERVICE,
    NO_SMARTCARD,
    NOT_TRANSACTED,
    READER_UNAVAILABLE,
    REMOVED_CARD,
    STATE_EMPTY,
    STATE_MUTE,
    STATE_PRESENT,
    SUCCESS,
    UNPOWERED_CARD,
    PcscClient,
)

EVENT_SECONDS_MAX = 0.1
FAST_SWAPS = 300
ORPHAN_SECONDS_MAX = 5.0

SELECT = "00A404000BA000000308000010000100"
VERIFY = "0020008008313233343536FFFF"
VERIFY_WRONG = "0020008008393939393939FFFF"
PIN_QUERY = "00200080"
SHA256_PREFIX = bytes.fromhex("3031300d060960864801650304020105000420")
READER = reader_name(0)


def signature_commands(digest: bytes, key: str) -> tuple[str, str]:
    """Return the two chained commands of an RSA-2048 signature."""
    info = SHA256_PREFIX + digest
    block = b"\x00\x01" + b"\xff" * (253 - len(info)) + b"\x00" + info
    body = tlv.encode(0x7C, tlv.encode(0x82, b"") + tlv.encode(0x81, block))
    rest = body[255:]
    return f"108707{key}FF{body[:255].hex()}", f"008707{key}{len(rest):02X}{rest.hex()}"


# Insertion and removal.


def test_every_slot_has_its_reader_and_card(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    assert pcsc.readers() == fresh_ukeys.reader_names == [reader_name(n) for n in range(SLOTS)]
    for card in fresh_ukeys.cards[:SLOTS]:
        assert pcsc.state(card.reader_name)[0] & STATE_PRESENT
    assert fresh_ukeys.cards[SPARE].slot is None


def test_insertion_and_removal_are_seen_within_100_ms(
    fresh_ukeys: UkeyRig, pcsc: PcscClient
) -> None:
    card = fresh_ukeys.cards[0]
    delays: dict[int, list[float]] = {STATE_PRESENT: [], STATE_EMPTY: []}
    for _ in range(20):
        for act, expected in ((card.pull, STATE_EMPTY), (card.insert, STATE_PRESENT)):
            pcsc.watch(READER)
            begin = time.monotonic()
            act()
            code, flags, seen = pcsc.receive()
            assert (code, flags & expected) == (SUCCESS, expected)
            delays[expected].append(seen - begin)
    assert statistics.median(delays[STATE_PRESENT]) < EVENT_SECONDS_MAX
    assert statistics.median(delays[STATE_EMPTY]) < EVENT_SECONDS_MAX


@pytest.mark.parametrize("used", [False, True])
def test_no_fast_swap_is_lost(fresh_ukeys: UkeyRig, pcsc: PcscClient, *, used: bool) -> None:
    inside, outside = fresh_ukeys.cards[0], fresh_ukeys.cards[SPARE]
    _, counter = pcsc.state(READER)
    for number in range(FAST_SWAPS):
        if used:
            assert pcsc.connect(READER) == SUCCESS
            pcsc.disconnect()
        inside.swap(outside)
        inside, outside = outside, inside
        counter += 2
        code, flags = pcsc.wait_for_counter(READER, counter)
        assert (code, flags & STATE_PRESENT) == (SUCCESS, STATE_PRESENT), f"swap {number}"


def test_swaps_faster_than_pcscd_looks_are_counted(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    _, counter = pcsc.state(READER)
    for _ in range(5):
        fresh_ukeys.cards[0].swap()
    assert pcsc.wait_for_counter(READER, counter + 10)[0] == SUCCESS


def test_a_card_pulled_at_once_is_not_shown_for_ever(
    fresh_ukeys: UkeyRig, pcsc: PcscClient
) -> None:
    card = fresh_ukeys.cards[0]
    _, counter = pcsc.state(READER)
    card.pull()
    counter += 1
    for number in range(100):
        card.insert()
        card.pull()
        counter += 2
        code, flags = pcsc.wait_for_counter(READER, counter)
        assert (code, flags & STATE_EMPTY) == (SUCCESS, STATE_EMPTY), f"insertion {number}"


def test_two_cards_exchange_their_slots(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    first, second = fresh_ukeys.cards[:2]
    counters = [pcsc.state(reader_name(slot))[1] for slot in (0, 1)]
    first.swap(second)
    for slot, counter in enumerate(counters):
        assert pcsc.wait_for_counter(reader_name(slot), counter + 2)[0] == SUCCESS
    assert (first.slot, second.slot) == (1, 0)
    assert first.reader_name == reader_name(1)
    read_chuid = "00CB3FFF055C035FC10200"
    assert pcsc.connect(reader_name(0)) == SUCCESS
    assert second.guid in pcsc.exchange(SELECT, read_chuid)


def test_the_same_card_again_needs_select_and_pin_again(
    fresh_ukeys: UkeyRig, pcsc: PcscClient
) -> None:
    _, counter = pcsc.state(READER)
    pcsc.connect(READER)
    pcsc.exchange(SELECT, VERIFY)
    fresh_ukeys.cards[0].swap()
    pcsc.wait_for_counter(READER, counter + 2)
    assert pcsc.transmit(PIN_QUERY)[0] == REMOVED_CARD
    pcsc.disconnect()
    assert pcsc.connect(READER) == SUCCESS
    assert pcsc.exchange(PIN_QUERY) == "6d00"
    assert pcsc.exchange(SELECT, PIN_QUERY) == "63c3"


def test_an_empty_slot_cannot_be_connected(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    _, counter = pcsc.state(READER)
    fresh_ukeys.cards[0].pull()
    pcsc.wait_for_counter(READER, counter + 1)
    assert pcsc.connect(READER) == NO_SMARTCARD


# Misbehaving cards.


def test_a_mute_card_is_shown_as_mute(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    card = fresh_ukeys.cards[0]
    _, counter = pcsc.state(READER)
    card.mute()
    card.swap()
    code, flags = pcsc.wait_for_counter(READER, counter + 2)
    assert (code, flags & 0xFFF0) == (SUCCESS, STATE_MUTE | STATE_PRESENT)
    assert pcsc.connect(READER) == UNPOWERED_CARD
    card.mute(enabled=False)
    card.swap()
    assert pcsc.wait_for_counter(READER, counter + 4)[0] == SUCCESS
    assert pcsc.connect(READER) == SUCCESS


def test_a_card_pulled_inside_a_command(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    card = fresh_ukeys.cards[0]
    _, counter = pcsc.state(READER)
    pcsc.connect(READER)
    pcsc.exchange(SELECT, VERIFY)
    card.die_on_ins(Ins.GENERAL_AUTHENTICATE)
    first, _ = signature_commands(bytes(32), "9A")
    assert pcsc.transmit(first)[0] == NOT_TRANSACTED
    # Before pcscd's event thread has noticed, a further command is not transacted either.
    pcsc.wait_for_counter(READER, counter + 1)
    assert pcsc.transmit(PIN_QUERY)[0] == REMOVED_CARD
    assert card.slot is None
    pcsc.disconnect()
    card.insert()
    pcsc.wait_for_counter(READER, counter + 2)
    assert pcsc.connect(READER) == SUCCESS
    assert pcsc.exchange(SELECT, VERIFY, first) == "9000"  # it dies once only


def test_a_slow_card_is_slow_alone_and_can_be_pulled(
    fresh_ukeys: UkeyRig, pcsc: PcscClient
) -> None:
    card = fresh_ukeys.cards[0]
    pcsc.connect(READER)
    pcsc.exchange(SELECT, VERIFY)
    card.slow(60.0)
    pcsc.send("transmit", signature_commands(bytes(32), "9A")[0])
    with PcscClient.start(fresh_ukeys.environment) as other:
        assert other.connect(reader_name(1)) == SUCCESS
        assert other.exchange(SELECT, PIN_QUERY) == "63c3"
    card.pull()
    assert pcsc.receive()[0] == NOT_TRANSACTED


def test_slow_delays_each_piece_of_a_signature(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    fresh_ukeys.cards[0].slow(0.1)
    pcsc.connect(READER)
    pcsc.exchange(SELECT, VERIFY)
    begin = time.monotonic()
    pcsc.exchange(*signature_commands(bytes(32), "9A"))
    assert time.monotonic() - begin >= 0.2


def test_three_wrong_pins_block_the_card(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    pcsc.connect(READER)
    pcsc.exchange(SELECT)
    tries = [pcsc.exchange(VERIFY_WRONG) for _ in range(3)]
    assert tries == ["63c2", "63c1", "6983"]
    assert pcsc.exchange(VERIFY) == "6983"
    assert fresh_ukeys.cards[0].pin_tries_left == 0


def test_block_pin(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    fresh_ukeys.cards[0].block_pin()
    pcsc.connect(READER)
    assert pcsc.exchange(SELECT, VERIFY) == "6983"


def test_a_card_that_never_gives_its_atr_holds_no_reader(
    fresh_ukeys: UkeyRig, pcsc: PcscClient
) -> None:
    card = fresh_ukeys.cards[0]
    _, counter = pcsc.state(READER)
    card.pull()
    pcsc.wait_for_counter(READER, counter + 1)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.connect(str(fresh_ukeys.control_path.parent / "slots" / "00.sock"))
        code, flags = pcsc.wait_for_counter(READER, counter + 2)
        assert (code, flags & STATE_MUTE) == (SUCCESS, STATE_MUTE)
    assert pcsc.wait_for_counter(READER, counter + 3)[0] == SUCCESS


def test_a_reader_whose_device_is_gone(tmp_path: Path) -> None:
    with (
        UkeyRig.start(tmp_path, slots=1) as rig,
        PcscClient.start(rig.environment) as client,
    ):
        client.connect(READER)
        client.exchange(SELECT)
        rig.unplug_reader(0)
        assert client.transmit(PIN_QUERY)[0] == READER_UNAVAILABLE
        client.disconnect()
        rig.plug_reader(0)
        rig.kill_pcscd()
        rig.start_pcscd()


# Signatures and identity.


@pytest.mark.parametrize("key", ["9A", "9C"])
def test_a_raw_signature_verifies_against_the_certificate(
    fresh_ukeys: UkeyRig, pcsc: PcscClient, key: str
) -> None:
    digest = hashlib.sha256(b"transfer").digest()
    pcsc.connect(READER)
    pcsc.exchange(SELECT, VERIFY)
    response = bytes.fromhex(pcsc.exchange(*signature_commands(digest, key)))
    signature = tlv.decode(tlv.decode(response[:-2])[0x7C])[0x82]
    card = fresh_ukeys.cards[0]
    certificate = x509.load_der_x509_certificate(card.certificate_der(key))
    assert certificate.subject.rfc4514_string() == f"CN={COMMON_NAMES[0]}"
    assert certificate.fingerprint(hashes.SHA256()).hex() == card.certificate_sha256(key)
    public = certificate.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    public.verify(signature, digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))


def test_set_guid_changes_the_card_and_reset_brings_it_back(fresh_ukeys: UkeyRig) -> None:
    card = fresh_ukeys.cards[0]
    before = (card.guid, card.certificate_sha256())
    card.set_guid("aa" * 16)
    assert (card.guid, card.certificate_sha256()) == ("aa" * 16, before[1])
    fresh_ukeys.reset()
    assert (card.guid, card.certificate_sha256()) == before


def test_the_trace_shows_commands_but_no_pin(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    pcsc.connect(READER)
    pcsc.exchange(SELECT, VERIFY)
    trace = fresh_ukeys.cards[0].trace()
    assert [(entry["command"], entry["response"]) for entry in trace[-1:]] == [("00200080", "9000")]
    assert trace[-2]["command"] == SELECT.lower()


@pytest.mark.parametrize(
    ("request_line", "words"),
    [
        (b"{", "Expecting"),
        (b"[]", "object"),
        (b"{}", "command is one of"),
        (b'{"command": "pull", "card": 99}', "card is a number"),
        (b'{"command": "pull", "card": 4}', "insert it first"),
        (b'{"command": "insert", "card": 0}', "pull it first"),
        (b'{"command": "insert", "card": 4}', "slot is a number"),
        (b'{"command": "insert", "card": 4, "slot": 0}', "pull it first"),
        (b'{"command": "slow", "card": 0, "seconds": -1}', "seconds is a number"),
        (b'{"command": "die_on_ins", "card": 0, "ins": 256}', "ins is a number"),
        (b'{"command": "set_guid", "card": 0, "guid": "aa"}', "32 hexadecimal digits"),
        (b'{"command": "certificate", "card": 0, "key": "9B"}', "9A, 9C, 9D or 9E"),
    ],
)
def test_bad_control_requests_are_answered(
    fresh_ukeys: UkeyRig, request_line: bytes, words: str
) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(fresh_ukeys.control_path))
        line.sendall(request_line + b"\n")
        answer = line.makefile().readline()
    assert '"ok": false' in answer
    assert words in answer


def test_a_refused_command_raises(fresh_ukeys: UkeyRig) -> None:
    with pytest.raises(UkeyRigError, match="pull it first"):
        fresh_ukeys.cards[0].insert()


# The rig itself.


def test_pcscd_killed_and_started_again(fresh_ukeys: UkeyRig, pcsc: PcscClient) -> None:
    pcsc.connect(READER)
    pid = fresh_ukeys.pcscd_pid
    fresh_ukeys.kill_pcscd()
    assert pcsc.transmit(PIN_QUERY)[0] == NO_SERVICE
    assert fresh_ukeys.pcscd_pid is None
    fresh_ukeys.start_pcscd()
    assert fresh_ukeys.pcscd_pid != pid
    with PcscClient.start(fresh_ukeys.environment) as later:
        assert later.connect(READER) == SUCCESS
        assert later.exchange(SELECT, PIN_QUERY) == "63c3"


def test_a_rig_of_sixteen_slots_in_a_folder_with_a_long_name(tmp_path: Path) -> None:
    directory = tmp_path / ("long name " * 12)
    with UkeyRig.start(directory, slots=SLOTS_MAX, common_names=["first"]) as rig:
        base = rig.control_path.parent
        assert base != directory
        with PcscClient.start(rig.environment) as client:
            assert client.readers() == rig.reader_names
            assert all(client.state(name)[0] & STATE_PRESENT for name in rig.reader_names)
        assert len({card.guid for card in rig.cards}) == SLOTS_MAX
    assert not base.exists()
    assert sorted(path.name for path in directory.iterdir()) == ["cards.log", "pcscd.log"]


def test_cards_can_start_outside_and_have_a_given_guid(tmp_path: Path) -> None:
    with UkeyRig.start(tmp_path, slots=1, guids=["bb" * 16], inserted=False) as rig:
        card = rig.cards[0]
        assert (card.slot, card.guid, card.reader_name) == (None, "bb" * 16, READER)
        card.insert()
        assert card.slot == 0


def test_close_ends_both_processes_and_may_be_repeated(tmp_path: Path) -> None:
    rig = UkeyRig.start(tmp_path, slots=1)
    pids = [rig.pcscd_pid, rig.card_server_pid]
    rig.close()
    rig.close()
    for pid in pids:
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_nothing_outlives_a_killed_owner(tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys; from fep.sandbox.ukey.rig import UkeyRig\n"
        "rig = UkeyRig.start(pathlib.Path(sys.argv[1]), slots=1)\n"
        "print(rig.pcscd_pid, rig.card_server_pid, flush=True)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split()]
        descriptors = [os.pidfd_open(pid) for pid in pids]
        owner.send_signal(signal.SIGKILL)
    for descriptor in descriptors:
        ended, _, _ = select.select([descriptor], [], [], ORPHAN_SECONDS_MAX)
        os.close(descriptor)
        assert ended


def test_a_rig_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UkeyRigError, match="1 to 16"):
        UkeyRig.start(tmp_path, slots=SLOTS_MAX + 1)
    with pytest.raises(UkeyRigError, match=r"GUID has 16 bytes"):
        UkeyRig.start(tmp_path, slots=1, guids=["aa"])


# The driver's build.


def test_the_driver_is_compiled_once(tmp_path: Path) -> None:
    first = build(tmp_path)
    stamp = first.stat().st_mtime_ns
    assert build(tmp_path) == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.glob("*.so")] == [first.name]


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DriverBuildError, match="pkg-config is not installed"):
        build(tmp_path)


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig_module, "_PROGRAMS", ("sh", "no-such-program"))
    assert UkeyRig.available() == "not installed: no-such-program"
    with pytest.raises(UkeyRigError, match="no-such-program"):
        UkeyRig.start(tmp_path)


def test_the_atr_reaches_the_client(fresh_ukeys: UkeyRig) -> None:
    log = (fresh_ukeys.directory / "pcscd.log").read_text()
    assert f"Card ATR: {ATR.hex(' ').upper()}" in log
