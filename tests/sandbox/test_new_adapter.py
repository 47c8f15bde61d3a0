"""The folder of a new adapter is a package that conforms at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fep.adapters import registry
from fep.sandbox import new_adapter
from fep.sandbox.new_adapter import NewAdapterError, make

ROOT = Path(__file__).resolve().parents[2]


def test_a_new_adapter_is_installed_and_conforms(tmp_path: Path) -> None:
    made = make("abc_test", tmp_path)
    assert tmp_path / "abc_test/abc_test/card.toml" in made
    text = "".join(file.read_text("utf-8") for file in made)
    assert "template" not in text.replace("template's", "").replace("of the template", "")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(tmp_path / "abc_test")], check=True)
    environment = os.environ | {"PYTHONPATH": f"{site}:{ROOT}"}
    fep = [sys.executable, "-m", "fep.daemon.main"]
    done = subprocess.run(
        [*fep, "conformance", "abc_test", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(done.stdout)["failed"] == [], done.stdout
    assert done.returncode == 0
    told = subprocess.run(
        [*fep, "adapters", "abc_test"], env=environment, capture_output=True, text=True, check=True
    )
    assert "abc_test" in told.stdout
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", "--rootdir=."],
        cwd=tmp_path / "abc_test",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize(
    "name", ["", "Abc", "abc-ict", "1abc", "abc__x", "a" * 33, "../abc", "class", "async"]
)
def test_a_name_that_is_none_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(NewAdapterError, match="no name"):
        make(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NewAdapterError, match="installed already"):
        make(registry.names()[0], tmp_path)
    (tmp_path / "abc").mkdir()
    with pytest.raises(NewAdapterError, match="exists"):
        make("abc", tmp_path)
    assert list((tmp_path / "abc").iterdir()) == []
    assert new_adapter.main(["abc", "--into", str(tmp_path)]) == 1
    assert "exists" in capsys.readouterr().err
    assert new_adapter.main(["abc", "--into", str(tmp_path / "other")]) == 0
    assert "next: pip install -e" in capsys.readouterr().out
