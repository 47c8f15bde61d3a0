"""What an adapter's ``options`` class declares, as the fields of a form.

The words beside a field are the docstring below it in the adapter's source.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Literal, get_args, get_origin

import attrs


class FieldKind(StrEnum):
    """What a field takes."""

    TEXT = "text"
    WHOLE = "whole"
    NUMBER = "number"
    FLAG = "flag"
    CHOICE = "choice"
    PAIRS = "pairs"
    """One ``key = value`` a line."""


_KINDS: Final[Mapping[Any, FieldKind]] = {
    str: FieldKind.TEXT,
    int: FieldKind.WHOLE,
    float: FieldKind.NUMBER,
    bool: FieldKind.FLAG,
}


@attrs.frozen
class Field:
    """One option of an adapter."""

    name: str
    kind: FieldKind
    words: str
    """What it is, for people; empty where the adapter says nothing."""
    required: bool
    default: Any = None
    """None where it is required."""
    choices: tuple[str, ...] = ()

    def text_of(self, value: Any) -> str:  # noqa: ANN401 - a value of TOML
        """Return a value as the form shows it."""
        if value is None:
            return ""
        if self.kind is FieldKind.PAIRS and isinstance(value, Mapping):
            return "\n".join(f"{key} = {one}" for key, one in value.items())
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    def value_of(self, text: str) -> Any:  # noqa: ANN401 - a value of TOML
        """Return what a form's text means; None: the option is left out.

        What can't be read comes back as the text itself, so that the reader of the configuration
        says what is wrong with it.
        """
        if self.kind is FieldKind.FLAG:
            given = text == "true"
            return None if given == self.default else given
        if not text.strip() or (not self.required and text == self.text_of(self.default)):
            return None
        try:
            match self.kind:
                case FieldKind.WHOLE:
                    return int(text)
                case FieldKind.NUMBER:
                    return float(text)
                case FieldKind.PAIRS:
                    return _pairs(text)
                case _:
                    return text
        except ValueError:
            pass
        return text


def fields_of(options: type[Any]) -> tuple[Field, ...]:
    """Return the fields of an options class, in its order.

    An option of a kind unknown here has no field; the file can give it.
    """
    words, hints = _docstrings(options), typing.get_type_hints(options)
    found = []
    for one in attrs.fields(options):
        kind, choices = _kind_of(hints[one.name])
        if kind is None:
            continue
        required = one.default is attrs.NOTHING
        default = None if required else _default(one.default)
        told = words.get(one.name, "").replace("``", "")
        found.append(Field(one.name, kind, told, required, default, choices))
    return tuple(found)


def _kind_of(hint: Any) -> tuple[FieldKind | None, tuple[str, ...]]:  # noqa: ANN401 - a type
    if get_origin(hint) is Literal and all(isinstance(one, str) for one in get_args(hint)):
        return FieldKind.CHOICE, get_args(hint)
    origin = get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping) and get_args(hint) == (str, str):
        return FieldKind.PAIRS, ()
    return _KINDS.get(hint), ()


def _default(given: Any) -> Any:  # noqa: ANN401
    return given.factory() if isinstance(given, attrs.Factory) else given  # type: ignore[arg-type]


def _docstrings(cls: type[Any]) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}  # an adapter without its source
    [body] = [one.body for one in tree.body if isinstance(one, ast.ClassDef)]
    found: dict[str, str] = {}
    for one, after in itertools.pairwise(body):
        if not (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)):
            continue
        match after:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                found[one.target.id] = " ".join(text.split())
            case _:
                pass
    return found


def _pairs(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        key, equals, value = line.partition("=")
        if not equals:
            raise ValueError(line)
        found[key.strip()] = value.strip()
    return found
