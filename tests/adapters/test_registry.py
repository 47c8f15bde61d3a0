"""Adapters are found by what is installed; one that can't be used says so and harms nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fep.adapters import registry
from fep.adapters.registry import (
    ADAPTER_GROUP,
    HOST_GROUP,
    BrokenAdapterError,
    UnknownAdapterError,
)
from fep.daemon import main
from tests.adapters.conftest import Install

SHIPPED = Path(__file__).resolve().parents[2] / "bank_adapters"
NAMES = sorted(file.parent.name for file in SHIPPED.glob("*/quality.toml"))


def test_the_shipped_adapters_are_found_with_their_hosts() -> None:
    assert registry.names() == registry.names(HOST_GROUP) == NAMES
    for name in registry.names():
        assert registry.adapter(name).name == registry.host(name).name == name
        assert registry.adapter(name) is registry.adapter(name)


@pytest.mark.parametrize("find", [registry.adapter, registry.host])
@pytest.mark.parametrize("name", ["icbc", "", "PINGAN_B2BI", "pingan_b2bi ", "bank_adapters"])
def test_an_unknown_name_lists_those_there_are(find: Callable[[str], object], name: str) -> None:
    with pytest.raises(UnknownAdapterError, match=f"there are: {', '.join(NAMES)}"):
        find(name)


def test_one_more_bank_is_one_more_package(install: Install) -> None:
    install(
        "toybank",
        "class Toy:\n name = 'toy'\n def open(self, p): ...\nADAPTER = Toy()\n",
        toy="toybank:ADAPTER",
    )
    assert "toy" in registry.names()
    assert registry.adapter("toy").name == "toy"
    with pytest.raises(UnknownAdapterError):
        registry.host("toy")


BROKEN = {
    "no such module": ("", "no_such_module:ADAPTER", "No module named"),
    "no such name": ("", "{0}:ADAPTER", "has no attribute 'ADAPTER'"),
    "syntax": ("def :\n", "{0}:ADAPTER", "invalid syntax"),
    "a name in it": ("ADAPTER = Adapter()\n", "{0}:ADAPTER", "name 'Adapter' is not defined"),
    "a file it lacks": ("open('/nowhere/card.toml')\n", "{0}:ADAPTER", "No such file"),
    "its card is no TOML": ("import tomllib\ntomllib.loads('[')\n", "{0}:ADAPTER", "loaded"),
    "its card is wrong": (
        "from fep.adapters import card\nADAPTER = card.card_from_toml('[identity]\\nbank = 1')\n",
        "{0}:ADAPTER",
        "While structuring BehaviourCard",
    ),
    "no adapter": ("ADAPTER = 1\n", "{0}:ADAPTER", "is no adapter of this name"),
    "another's": (
        "from bank_adapters.cmb_xml import ADAPTER\n",
        "{0}:ADAPTER",
        "is no adapter of this name",
    ),
}


@pytest.mark.parametrize(
    ("code", "value", "reason"), BROKEN.values(), ids=[name.replace(" ", "-") for name in BROKEN]
)
@pytest.mark.parametrize("group", [ADAPTER_GROUP, HOST_GROUP])
def test_a_broken_package_is_told_with_the_reason(
    install: Install, request: pytest.FixtureRequest, group: str, code: str, value: str, reason: str
) -> None:
    # A module of its own for each case: Python remembers what it imported.
    package = f"broken{abs(hash(request.node.nodeid))}"
    install(package, code, group, broken=value.format(package))
    find = registry.adapter if group == ADAPTER_GROUP else registry.host
    with pytest.raises(BrokenAdapterError, match="adapter 'broken' is installed") as caught:
        find("broken")
    assert reason in str(caught.value)
    assert registry.adapter("cmb_xml").name == "cmb_xml"


def test_two_packages_of_one_name_are_refused(install: Install) -> None:
    """Which of them would speak to the bank must not hang on the order of installation."""
    install("evil", "ADAPTER = 1\n", cmb_xml="evil:ADAPTER")
    with pytest.raises(BrokenAdapterError, match="offered by several packages") as caught:
        registry.adapter("cmb_xml")
    assert "evil:ADAPTER" in str(caught.value)
    assert "bank_adapters.cmb_xml:ADAPTER" in str(caught.value)


def test_the_list_of_adapters_leaves_a_broken_one_out(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("brokenlist", "", broken="brokenlist:ADAPTER")
    assert main.main(["adapters", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [one["name"] for one in json.loads(out)["adapters"]] == NAMES
    assert "adapter 'broken' is installed but can't be loaded" in err
    assert main.main(["host", "broken"]) == 1
    assert f"there are: {', '.join(NAMES)}" in capsys.readouterr().err
