"""Reads a table of a TOML file into attrs classes without bending anything into shape.

cattrs by itself makes ``"3"`` of ``3``, ``3`` of ``3.7`` and five codes of the text ``"MA404"``.
In a file that says which answers of a bank are final, each of these is a wrong payment to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn

_BITS_MAX: Final = 64
"""Of a whole number where one is wanted that need not be whole."""
_WORDS: Final = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def converter() -> cattrs.Converter:
    """Return a converter that takes only values of the declared kind and only known keys."""
    strict = cattrs.Converter(forbid_extra_keys=True)
    for kind in (str, int, float, bool):
        strict.register_structure_hook(kind, _exact)
    strict.register_structure_hook_func(_is_enum, _member)
    strict.register_structure_hook_func(_is_literal, _literal)

    def table(cls: Any) -> Any:  # noqa: ANN401 - cattrs' hooks are untyped
        structure = make_dict_structure_fn(cls, strict, _cattrs_forbid_extra_keys=True)

        def read(value: Any, _: Any) -> Any:  # noqa: ANN401
            if not isinstance(value, Mapping):
                raise ValueError("must be a table")  # noqa: TRY004 - a value, not a call, is wrong
            return structure(value, cls)

        return read

    def array(kind: Any) -> Any:  # noqa: ANN401
        structure = plain.get_structure_hook(kind)

        def read(value: Any, _: Any) -> Any:  # noqa: ANN401
            if not isinstance(value, list | tuple | set | frozenset):
                raise ValueError("must be an array")  # noqa: TRY004
            return structure(value, kind)

        return read

    def mapping(kind: Any) -> Any:  # noqa: ANN401
        structure = plain.get_structure_hook(kind)

        def read(value: Any, _: Any) -> Any:  # noqa: ANN401
            if not isinstance(value, Mapping):
                raise ValueError("must be a table")  # noqa: TRY004
            return structure(value, kind)

        return read

    # The same strictness inside, but with cattrs' own reading of arrays and tables.
    plain = strict.copy()
    strict.register_structure_hook_factory(attrs.has, table)
    plain.register_structure_hook_factory(attrs.has, table)
    strict.register_structure_hook_factory(_is_array, array)
    strict.register_structure_hook_factory(_is_mapping, mapping)
    return strict


def _is_enum(kind: Any) -> bool:  # noqa: ANN401
    return isinstance(kind, type) and issubclass(kind, Enum)


def _is_literal(kind: Any) -> bool:  # noqa: ANN401
    return get_origin(kind) is Literal


def _is_array(kind: Any) -> bool:  # noqa: ANN401
    return get_origin(kind) in {list, tuple, set, frozenset}


def _is_mapping(kind: Any) -> bool:  # noqa: ANN401
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _exact(value: Any, kind: Any) -> Any:  # noqa: ANN401
    if kind not in _WORDS:  # cattrs takes the hook of a class for its subclasses too: a StrEnum
        return _member(value, kind)
    if type(value) is kind:
        return value
    if kind is float and type(value) is int and value.bit_length() < _BITS_MAX:
        return float(value)
    msg = f"must be {_WORDS[kind]}"
    raise ValueError(msg)


def _member(value: Any, kind: Any) -> Any:  # noqa: ANN401
    if isinstance(value, kind):
        return value
    for member in kind:
        if member.value == value:
            return member
    msg = f"must be one of {', '.join(str(member.value) for member in kind)}"
    raise ValueError(msg)


def _literal(value: Any, kind: Any) -> Any:  # noqa: ANN401
    if value in get_args(kind):
        return value
    msg = f"must be one of {', '.join(str(one) for one in get_args(kind))}"
    raise ValueError(msg)


@attrs.frozen
class TableFault:
    """One thing wrong in a table."""

    path: tuple[str | int, ...]
    """Keys and indexes below the table."""
    message: str
    unknown: str = ""
    """The key that nobody knows, where that is what is wrong."""
    known: tuple[str, ...] = ()


def structured(cls: Any, given: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Return those values of a table that are of the declared kind."""
    kinds = get_type_hints(cls)
    read = converter()
    found: dict[str, Any] = {}
    for field in attrs.fields(cls):
        if field.name in given:
            try:
                found[field.name] = read.structure(given[field.name], kinds[field.name])
            except (cattrs.BaseValidationError, ValueError):
                continue
    return found


def value_faults(cls: Any, values: Mapping[str, Any]) -> Iterator[TableFault]:  # noqa: ANN401
    """Yield what a class's fields have against values of the declared kind, one by one.

    The class itself, made of them, ends at the first.
    """
    for field in attrs.fields(cls):
        if field.name not in values or field.validator is None:
            continue
        value = values[field.name]
        try:
            field.validator(
                None, field, value if field.converter is None else field.converter(value)
            )
        except ValueError as error:
            # attrs' own validators put more than the message into their exceptions.
            yield TableFault((field.name,), str(error.args[0]) if error.args else "is not valid")


def faults(error: BaseException) -> list[TableFault]:
    """Return all that is wrong, out of what the converter raised."""
    return list(_walk(error, ()))


def _walk(error: BaseException, path: tuple[str | int, ...]) -> Iterator[TableFault]:
    if isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            yield from _walk(inner, path + _step(inner))
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = tuple(field.name for field in attrs.fields(error.cl))
        for extra in sorted(error.extra_fields):
            yield TableFault((*path, extra), "unknown key", extra, known)
    elif isinstance(error, KeyError):
        yield TableFault(path, "is missing")
    else:
        # attrs' own validators put more than the message into their exceptions.
        message = str(error.args[0]) if error.args else type(error).__name__
        yield TableFault(path, message)


def _step(error: BaseException) -> tuple[str | int, ...]:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, cattrs.AttributeValidationNote):
            return (note.name,)
        if isinstance(note, cattrs.IterableValidationNote):
            return (note.index,)
    return ()
