"""Packages that offer adapters, installed for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fep.adapters.registry import ADAPTER_GROUP

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package of one module whose entry points are given, for this test."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def make(package: str, code: str, group: str = ADAPTER_GROUP, **entries: str) -> None:
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
        (site / f"{package}.py").write_text(code)
        # The directory is listed once and remembered.
        monkeypatch.syspath_prepend(str(site))

    return make
