"""The ``[traces]`` table: off unless it is there, secrets in files only."""

from __future__ import annotations

from pathlib import Path

import pytest

from fep.daemon import config
from fep.daemon.difference import difference
from fep.daemon.trace_section import HEADERS_MAX

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "config/fep.toml"


def read(directory: Path, table: str) -> Path:
    path = directory / "fep.toml"
    path.write_text(f"{EXAMPLE.read_text('utf-8')}\n{table}\n", "utf-8")
    return path


def test_without_its_table_there_are_no_traces(tmp_path: Path) -> None:
    assert config.load(read(tmp_path, "")).traces is None


def test_it_says_where_to_and_how_many(tmp_path: Path) -> None:
    text = """[traces]
endpoint = "https://collector.example/v1/traces"
service_name = "前置机一"
sample = 0.1
timeout_s = 3
ca = "tls/collector-ca.crt"
[[traces.header]]
name = "Authorization"
value = { file = "token" }
"""
    with_all = config.load(read(tmp_path, text))
    found = with_all.traces
    assert found is not None
    assert found.endpoint == "https://collector.example/v1/traces"
    assert (found.service_name, found.sample, found.timeout_s) == ("前置机一", 0.1, 3.0)
    [(name, reference)] = found.headers
    assert (name, reference.file) == ("authorization", tmp_path / "token")
    told = config.secret_faults(with_all)
    assert any("token" in one for one in told)
    assert any("collector-ca.crt" in one for one in told)
    plain = config.load(read(tmp_path, "[traces]"))
    assert plain.traces is not None
    assert (plain.traces.endpoint, plain.traces.sample) == ("http://127.0.0.1:4318/v1/traces", 1.0)
    assert difference(plain, plain, with_all, (), ()).restart == ("traces",)


def header(name: str, value: str = '{ file = "f" }') -> str:
    return f'[[traces.header]]\nname = "{name}"\nvalue = {value}\n'


@pytest.mark.parametrize(
    ("table", "key", "told"),
    [
        ('endpoint = "http://10.0.0.1:4318/v1/traces"', "traces.endpoint", "must begin with https"),
        ('endpoint = "127.0.0.1:4318"', "traces.endpoint", "must be a URL"),
        ('endpoint = "https://me:pw@host/"', "traces.endpoint", "not taken"),
        ("sample = 1.5", "traces.sample", "from 0 to 1"),
        ("timeout_s = 0", "traces.timeout_s", "from 0.1 to 60"),
        ('service_name = "a\\tb"', "traces.service_name", "printable"),
        ("header = 5", "traces.header", "array of tables"),
        ("password = 5", "traces.password", "unknown key"),
        (header("authorization", '"Bearer x"'), "traces.header.0.value", "is a secret"),
        (header("authorization", "{}"), "traces.header.0.value", ""),
        (header("Content-Length"), "traces.header.0.name", "said by fep itself"),
        (header("a b"), "traces.header.0.name", "HTTP header"),
        (header("x-a") + header("X-A"), "traces.header.1.name", "there twice"),
        ('[[traces.header]]\nname = "a"', "traces.header.0.value", "is missing"),
    ],
)
def test_its_faults_are_told_at_their_key(tmp_path: Path, table: str, key: str, told: str) -> None:
    faults = config.check(read(tmp_path, f"[traces]\n{table}"))
    assert [one.key for one in faults] == [key], faults
    assert told in faults[0].message


def test_headers_have_a_limit(tmp_path: Path) -> None:
    table = "".join(header(f"x-{number}") for number in range(HEADERS_MAX + 1))
    [fault] = config.check(read(tmp_path, f"[traces]\n{table}"))
    assert f"more than {HEADERS_MAX}" in fault.message
