"""The ``[console]`` table: off unless it is there, loopback unless there is TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from fep.daemon import config

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "config/fep.toml"
TLS = 'tls = { certificate = "c.crt", key = "c.key" }'


def read(directory: Path, table: str) -> Path:
    path = directory / "fep.toml"
    path.write_text(f"{EXAMPLE.read_text('utf-8')}\n{table}\n", "utf-8")
    return path


def test_without_its_table_there_is_no_console(tmp_path: Path) -> None:
    assert config.load(read(tmp_path, "")).console.listen is None


@pytest.mark.parametrize(
    ("table", "listen"),
    [
        ("[console]", ("127.0.0.1", 8200)),
        ('[console]\nlisten = "[::1]:9000"', ("::1", 9000)),
        (f'[console]\nlisten = "0.0.0.0:443"\n{TLS}', ("0.0.0.0", 443)),
    ],
)
def test_it_says_where_it_listens(tmp_path: Path, table: str, listen: tuple[str, int]) -> None:
    found = config.load(read(tmp_path, table))
    assert found.console.listen == listen
    secrets = config.secret_faults(found)
    assert any("c.key" in one for one in secrets) == (TLS in table)


@pytest.mark.parametrize(
    ("table", "key", "told"),
    [
        ('listen = "0.0.0.0:8200"', "console.listen", "plain HTTP is refused there"),
        ('listen = "10.0.0.1:8200"', "console.listen", "plain HTTP is refused there"),
        ('listen = "8200"', "console.listen", "HOST:PORT"),
        ('listen = "127.0.0.1:7071"', "console.listen", "listens there"),
        ("idle_s = 0", "console.idle_s", "from 1 to 86400"),
        ("session_s = 1e9", "console.session_s", "from 1 to 604800"),
        ('tls = { certificate = "c" }', "console.tls.key", "is missing"),
        ("port = 8200", "console.port", "unknown key"),
    ],
)
def test_its_faults_are_told_at_their_key(tmp_path: Path, table: str, key: str, told: str) -> None:
    faults = config.check(read(tmp_path, f"[console]\n{table}"))
    assert [one.key for one in faults] == [key]
    assert told in faults[0].message
