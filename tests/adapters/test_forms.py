"""An adapter's options as fields of a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs
import pytest

from fep.adapters import registry, strict
from fep.adapters.forms import Field, FieldKind, fields_of

pytestmark = pytest.mark.req("FEP-18")


@attrs.frozen
class Options:
    """Of no bank."""

    name: str
    """Who we are (客户号),
    as the bank knows us."""
    port: int = 449
    rate: float = 1.5
    quiet: bool = False
    trade: Literal["4013", "4008"] = "4013"
    """Which trade."""
    areas: Mapping[str, str] = attrs.Factory(dict)
    unknown: tuple[int, ...] = ()


FIELDS = {one.name: one for one in fields_of(Options)}


def test_each_option_is_a_field() -> None:
    assert list(FIELDS.values()) == [
        Field("name", FieldKind.TEXT, "Who we are (客户号), as the bank knows us.", required=True),
        Field("port", FieldKind.WHOLE, "", required=False, default=449),
        Field("rate", FieldKind.NUMBER, "", required=False, default=1.5),
        Field("quiet", FieldKind.FLAG, "", required=False, default=False),
        Field("trade", FieldKind.CHOICE, "Which trade.", False, "4013", ("4013", "4008")),
        Field("areas", FieldKind.PAIRS, "", required=False, default={}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "c1", "c1"),
        ("name", " ", None),
        ("port", "", None),
        ("port", "449", None),
        ("port", "80", 80),
        ("port", "eighty", "eighty"),
        ("rate", "2", 2.0),
        ("rate", "1.5", None),
        ("quiet", "true", True),
        ("quiet", "", None),
        ("trade", "4013", None),
        ("trade", "4008", "4008"),
        ("areas", "75 = 深圳\n\n10=北京", {"75": "深圳", "10": "北京"}),
        ("areas", "75", "75"),
        ("areas", "", None),
    ],
)
def test_a_forms_text_is_read(name: str, text: str, value: Any) -> None:
    assert FIELDS[name].value_of(text) == value


def test_a_value_is_shown_as_it_is_read() -> None:
    for name, value in [("port", 80), ("quiet", True), ("areas", {"75": "a b"}), ("name", "x")]:
        assert FIELDS[name].value_of(FIELDS[name].text_of(value)) == value
    assert FIELDS["name"].text_of(None) == ""


@pytest.mark.parametrize("name", registry.names())
def test_every_option_of_every_adapter_has_a_field_with_words(name: str) -> None:
    options = registry.adapter(name).options_class
    found = fields_of(options)
    assert [one.name for one in found] == [one.name for one in attrs.fields(options)]
    assert [one.name for one in found if not one.words] == []
    # What the form leaves out is what the adapter takes by itself.
    given = {one.name: one.value_of(one.text_of(one.default)) for one in found if not one.required}
    assert set(given.values()) <= {None}


def test_a_wrong_text_is_told_by_the_reader_of_the_configuration() -> None:
    given = {"name": "x", "port": FIELDS["port"].value_of("eighty")}
    with pytest.raises(Exception) as caught:  # noqa: PT011 - cattrs' own, of several kinds
        strict.converter().structure(given, Options)
    assert [(one.path, one.message) for one in strict.faults(caught.value)] == [
        (("port",), "must be a whole number")
    ]
