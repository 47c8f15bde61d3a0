"""Captured bytes become lines that people can read; whatever they are, nothing raises or hangs."""

from __future__ import annotations

import io
import json
import os
import random
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.adapters import decode, registry
from fep.adapters.decode import BLANK, lines, masked
from fep.daemon import main
from tests.adapters.captures import SECRET, decoder, exchanges

NAMES = registry.names()
MUTATIONS = int(os.environ.get("FEP_TEST_MUTATIONS", "150"))
"""Of each adapter's frames; the long form is 10,000."""
MEMBERS = ("protocol", "role", "trade", "code", "message", "reference", "fields")
RUBBISH = bytes(range(256))
SECONDS_MAX = 60.0
"""Of the processor's time, traced: what else the machine does is not counted."""


def decoded(name: str, data: bytes) -> list[dict[str, Any]]:
    found = list(lines(name, decoder(name), data))
    json.dumps(found)
    return found


def capture(name: str) -> bytes:
    return b"".join(part for _, *parts in exchanges(name) for part in parts)


def covers(found: list[dict[str, Any]], data: bytes) -> bool:
    """Say whether the lines tell of every byte once, but for blanks between them."""
    at = 0
    for line in found:
        place = line.get("garbage", line)
        if place["offset"] < at or data[at : place["offset"]].strip(BLANK) or place["length"] < 1:
            return False
        at = place["offset"] + place["length"]
    return not data[at:].strip(BLANK)


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_is_a_line(name: str) -> None:
    data = capture(name)
    found = decoded(name, data)
    assert [line["role"] for line in found] == ["request", "answer"] * len(exchanges(name))
    for asked, told in zip(found[::2], found[1::2], strict=True):
        assert set(MEMBERS) <= asked.keys() & told.keys()
        assert asked["protocol"] == told["protocol"] == name
        assert asked["trade"] == told["trade"] != ""
        assert asked["reference"] == told["reference"] != ""
        assert asked["code"] == ""
        assert told["code"] != ""
    assert "99990000000101" in json.dumps(found)
    assert "云阶示例贸易有限公司" in json.dumps(found, ensure_ascii=False)
    assert SECRET not in json.dumps(found)
    assert covers(found, data)


@pytest.mark.parametrize("name", NAMES)
def test_rubbish_and_cut_frames_are_told_and_the_rest_is_read(name: str) -> None:
    (_, one, _), (_, two, three), *_ = exchanges(name)
    data = RUBBISH + one[: len(one) // 2] + two + RUBBISH + three + three[:-7]
    found = decoded(name, data)
    assert [line.get("role", "garbage") for line in found] == [
        "garbage",
        "request",
        "garbage",
        "answer",
        "garbage",
    ]
    first = found[0]["garbage"]
    assert (first["offset"], first["length"]) == (0, 256 + len(one) // 2)
    assert covers(found, data)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_frames_neither_raise_nor_hang(name: str) -> None:
    rng = random.Random(20261126)
    parts = [part for _, *pair in exchanges(name) for part in pair]
    began = time.process_time()
    for _ in range(MUTATIONS):
        data = bytearray(rng.choice(parts) + rng.choice(parts))
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 40)]
                case 2:
                    data[at:at] = rng.randbytes(rng.randrange(1, 40))
                case 3:
                    data[at:at] = data[: rng.randrange(1, 200)]
                case _:
                    data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))])
        mutated = bytes(data)
        assert covers(decoded(name, mutated), mutated)
    assert time.process_time() - began < SECONDS_MAX * max(MUTATIONS / 150, 1)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=2000))
def test_any_bytes_are_told(name: str, data: bytes) -> None:
    assert covers(decoded(name, data), data)


@pytest.mark.parametrize("name", NAMES)
def test_what_begins_over_and_over_and_never_ends_is_read_in_time(name: str) -> None:
    _, one, answer = exchanges(name)[0]
    began = time.process_time()
    for piece in (one[:40], one[:240], one[:-1], answer[:-1], answer[-30:]):
        data = piece * (2_000_000 // len(piece))
        assert covers(decoded(name, data), data)
    many = answer * 500
    assert len(decoded(name, many)) == 500
    assert time.process_time() - began < SECONDS_MAX


def test_pingan_as_banks_send_it() -> None:
    """An error that is a header alone and keeps the request's type; three ways to pad a number."""
    _, request, answer = exchanges("pingan_b2bi")[2]
    refused = bytearray(request[:222])
    text = "账户不存在".encode("gbk") * 11
    refused[87:93], refused[93:193] = b"MA0103", (b":" + text)[:100]
    for number in (b"0000000000", b"0         ", b"         0", b"          "):
        refused[30:40] = number
        (line,) = decoded("pingan_b2bi", bytes(refused))
        assert (line["role"], line["code"]) == ("answer", "MA0103")
        assert line["fields"]["header"]["serv_type"] == "01"
        assert line["message"].startswith("账户不存在")
        assert not line["message"].endswith("\ufffd")
    assert decoded("pingan_b2bi", answer)[0]["fields"]["body"]


def test_icbc_bodies_alone_and_with_line_breaks_are_read() -> None:
    _, request, answer = exchanges("icbc_nc")[2]
    body = answer.partition(b"\r\n\r\n")[2]
    assert b"\n" in body
    (alone,) = decoded("icbc_nc", body)
    (whole,) = decoded("icbc_nc", answer)
    assert alone["fields"]["pub"] == whole["fields"]["pub"]
    assert decoded("icbc_nc", request)[0]["fields"]["form"]["GroupCIS"] == "999900000000001"


def test_secrets_are_masked_by_name_however_deep() -> None:
    shown = masked({"PASSWORD": "x", "a": [{"user_pin": "1", "b": 2}], "token": ""})
    assert shown == {"PASSWORD": "***", "a": [{"user_pin": "***", "b": 2}], "token": ""}


def test_the_command_reads_a_file_or_standard_input(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = capture("cmb_xml")
    file = tmp_path / "capture"
    file.write_bytes(data)
    assert main.main(["decode", "cmb_xml", str(file)]) == 0
    told = capsys.readouterr().out
    assert [json.loads(line)["role"] for line in told.splitlines()] == ["request", "answer"] * 4
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert main.main(["decode", "cmb_xml", "-"]) == 0
    assert capsys.readouterr().out == told
    assert main.main(["decode", "nobody", str(file)]) == 1
    assert "there are:" in capsys.readouterr().err
    assert main.main(["decode", "cmb_xml", str(tmp_path / "no")]) == 1
    assert "No such file" in capsys.readouterr().err
    monkeypatch.setattr(decode, "INPUT_BYTES_MAX", 100)
    assert main.main(["decode", "cmb_xml", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "only the first 100 bytes" in err
    assert json.loads(out)["garbage"]["length"] == 100
