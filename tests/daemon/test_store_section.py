"""The ``[store]`` table: which database, its password's place, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fep.daemon.config import ConfigFaultsError, check, secret_faults
from tests.daemon.files import changed, loaded, marked, written

HERE = "postgresql+psycopg://fep@127.0.0.1:5432/fep"
FAR = "postgresql+psycopg://fep@10.0.0.20/fep"


def shared(store: str) -> str:
    """Return the good file with lines of a ``[store]`` table."""
    return changed("[enterprise]", f"[store]\n{store}\n[enterprise]")


def test_without_the_table_the_store_is_a_file(tmp_path: Path) -> None:
    assert loaded(tmp_path).store is None


def test_every_part_is_taken(tmp_path: Path) -> None:
    lines = f'url = "{FAR}?sslmode=verify-full"\npassword = {{ file = "pw" }}\nlease_s = 30'
    found = loaded(tmp_path, shared(lines)).store
    assert found is not None
    assert found.url == f"{FAR}?sslmode=verify-full"
    assert found.password is not None
    assert (found.password.file, found.lease_s) == (tmp_path / "pw", 30.0)
    plain = loaded(tmp_path, shared(f'url = "{HERE}"')).store
    assert plain is not None
    assert (plain.url, plain.password, plain.lease_s) == (HERE, None, 15.0)


@pytest.mark.parametrize(
    "url",
    [
        HERE,
        "postgresql+psycopg://fep@localhost/fep",
        "postgresql+psycopg://fep@[::1]:5433/fep",
        "postgresql+psycopg://fep@/fep",
        "postgresql+psycopg://fep@/fep?host=/run/postgresql",
        f"{FAR}?sslmode=verify-ca&sslrootcert=/etc/fep/ca.crt",
        "postgresql+psycopg://fep@/fep?host=127.0.0.1:5432&host=localhost",
    ],
)
def test_who_the_server_is_must_be_known(tmp_path: Path, url: str) -> None:
    assert [str(fault) for fault in check(written(tmp_path, shared(f'url = "{url}"')))] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('‸url = "sqlite:///fep.sqlite"', "for SQLite, which is the default, leave [store] out"),
        ('‸url = "postgresql://fep@127.0.0.1/fep"', "must be 'postgresql+psycopg://"),
        ('‸url = "postgresql+psycopg2://fep@127.0.0.1/fep"', "must be 'postgresql+psycopg://"),
        ('‸url = "fep"', "must be 'postgresql+psycopg://USER@HOST:PORT/DATABASE'"),
        ('‸url = "postgresql+psycopg://fep@127.0.0.1:x/fep"', "must be 'postgresql+psycopg://"),
        ('‸url = "postgresql+psycopg://fep@127.0.0.1"', "names no database"),
        ("‸url = 1", "must be text in quotes"),
        (f'‸url = "{FAR}"', "is on another machine: add ?sslmode=verify-full"),
        (f'‸url = "{FAR}?sslmode=require"', "is on another machine"),
        (f'‸url = "{HERE}?host=127.0.0.1&host=10.0.0.1"', "is on another machine"),
        (f'‸url = "{HERE}?options=-c%20fsync"', "must not set options"),
        (f'‸url = "{HERE}?password=x"', "must hold no password"),
        (f'‸url = "{HERE}?passfile=x"', "must hold no password"),
        (f'url = "{HERE}"\n‸password = "x"', "must be a table"),
        (f'url = "{HERE}"\n‸password = {{}}', "either credential or file"),
        (f'url = "{HERE}"\n‸lease_s = 1', "number from 2 to 300"),
        (f'url = "{HERE}"\n‸lease = 1', "did you mean 'lease_s'?"),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(tmp_path: Path, line: str, message: str) -> None:
    (fault,) = marked(tmp_path, shared(line))
    assert message in fault.message


def test_a_url_is_needed(tmp_path: Path) -> None:
    text = changed("[enterprise]", "‸[store]\n[enterprise]")
    (fault,) = marked(tmp_path, text)
    assert (fault.key, fault.message) == ("store.url", "is missing")


def test_a_demo_may_trust_its_network(tmp_path: Path) -> None:
    text = changed('mode = "production"', 'mode = "demo"', shared(f'url = "{FAR}"'))
    assert check(written(tmp_path, text)) == []


def test_a_password_that_somebody_wrote_into_the_url_is_not_shown(tmp_path: Path) -> None:
    url = HERE.replace("fep@", "fep:PIN246810@")
    faults = check(written(tmp_path, shared(f'url = "{url}"')))
    assert faults
    told = str(ConfigFaultsError(faults))
    assert "must hold no password" in told
    assert "PIN246810" not in told
    assert "fep:*********@127.0.0.1" in told


def test_the_passwords_file_must_be_private(tmp_path: Path) -> None:
    found = loaded(tmp_path, shared(f'url = "{HERE}"\npassword = {{ file = "pw" }}'))
    assert f"{tmp_path / 'pw'}: No such file or directory" in secret_faults(found)
    (tmp_path / "pw").touch(mode=0o644)
    (tmp_path / "pw").chmod(0o644)
    assert f"{tmp_path / 'pw'}: can be read by others; chmod 600 it" in secret_faults(found)
    (tmp_path / "pw").chmod(0o600)
    assert not any("pw" in fault for fault in secret_faults(found))
