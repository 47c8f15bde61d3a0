"""Changes values of a TOML text and leaves every other byte as it stands, comments too. Pure.

What comes out is read again and must be exactly what was asked for; else nothing comes out.
"""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import tomli_w

from fep.daemon.positions import Block, Path, Positions
from fep.domain.errors import FepError

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_COMMENT: Final = re.compile(r"[ \t]*#")
_BLANK_LINE: Final = re.compile(r"[ \t]*\r?\n")
_DEEP_MAX: Final = 32

Value = Any
"""A value of TOML: text, a number, a list, a table and so on. None: the key is taken out."""


class CannotEditError(FepError):
    """The text is written in a way that can't be changed here without losing something."""

    code = "CONFIG_NOT_EDITABLE"


class Edit:
    """One round of changes to one text; :meth:`done` returns the text with all of them.

    Args:
        text: valid TOML.

    Raises:
        tomllib.TOMLDecodeError: it is not.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.data: Final[Mapping[str, Any]] = tomllib.loads(text)
        """What the text says, before any change."""
        self._wanted: dict[str, Any] = copy.deepcopy(dict(self.data))
        self._rows = {key: list(one) for key, one in self._wanted.items() if isinstance(one, list)}
        """The elements of arrays of tables by the index they had at first."""
        self._removed: set[Path] = set()
        self._positions = Positions(text)
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._changes: list[tuple[int, int, str]] = []

    def merge(self, path: Path, values: Mapping[str, Value]) -> None:
        """Give keys of the table at a path these values; those not named stay.

        A value that is a table takes the place of the one that is there, key by key.

        Args:
            path: of a table with a header; an index counts the elements before any change.
            values: by key; None takes the key out.

        Raises:
            CannotEditError: there is no such table, or it is not written with a header.
        """
        block = self._block(path)
        table = self._wanted_at(path)
        for key, value in values.items():
            self._set(block, (*path, key), table.get(key), value, 0)
            if value is None:
                table.pop(key, None)
            else:
                table[key] = copy.deepcopy(value)

    def append(self, array: str, values: Mapping[str, Value], like: int | None = None) -> None:
        """Add a table ``[[array]]``: behind the element of this index, else behind the last one.

        What is removed from the same array is removed before.

        Raises:
            CannotEditError: the array is not written with headers.
        """
        present = self._rows.get(array, [])
        left = [one for one in range(len(present)) if (array, one) not in self._removed]
        behind = like if like in left else (left[-1] if left else None)
        at = len(self._text)
        if behind is not None:
            blocks = [one for one in self._positions.blocks if one.path[:2] == (array, behind)]
            if not blocks:
                raise CannotEditError(_in_one_line(array))
            at = self._line_end(max(one.end for one in blocks))
        kept = {key: value for key, value in values.items() if value is not None}
        lines = [f"[[{_key(array)}]]", *(f"{_key(key)} = {literal(kept[key])}" for key in kept)]
        begin = "" if not self._text else self._newline
        if at == len(self._text) and not self._text.endswith("\n"):
            begin *= 2
        self._changes.append((at, at, begin + self._newline.join([*lines, ""])))
        rows = self._wanted.setdefault(array, [])
        place = 0
        if behind is not None:
            mark = present[behind]
            place = 1 + next(number for number, one in enumerate(rows) if one is mark)
            # Of those put behind the same one the first comes first.
            known = {id(one) for one in present}
            while place < len(rows) and id(rows[place]) not in known:
                place += 1
        else:
            place = len(rows)
        rows.insert(place, copy.deepcopy(kept))

    def remove(self, array: str, index: int) -> None:
        """Take a table out of an array, with its inner ones and the comments right above it.

        Raises:
            CannotEditError: the array is not written with headers.
        """
        mine = [one for one in self._positions.blocks if one.path[:2] == (array, index)]
        if not mine:
            raise CannotEditError(_in_one_line(array))
        for block in mine:
            start = self._above(self._text.rfind("\n", 0, block.start) + 1)
            end = self._line_end(block.end)
            blank = _BLANK_LINE.match(self._text, end)
            self._changes.append((start, blank.end() if blank else end, ""))
        self._removed.add((array, index))
        taken, rows = self._rows[array][index], self._wanted[array]
        rows[:] = [one for one in rows if one is not taken]
        if not rows:
            del self._wanted[array]

    def done(self) -> str:
        """Return the changed text.

        Raises:
            CannotEditError: it would not say what was asked for.
        """
        text = self._text
        order = sorted(enumerate(self._changes), key=lambda one: (one[1][0], one[0]), reverse=True)
        for _, (start, end, new) in order:
            text = text[:start] + new + text[end:]
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            msg = f"the file is written in a way that can't be changed here ({error}); edit it"
            raise CannotEditError(msg) from error
        if not _same(found, self._wanted):
            msg = "the file is written in a way that can't be changed here; edit it as text"
            raise CannotEditError(msg)
        return text

    def _wanted_at(self, path: Path) -> dict[str, Any]:
        first, rest = path[:2], path[2:]
        if len(first) == 2 and first[0] in self._rows:
            found = self._rows[str(first[0])][int(first[1])]
        else:
            found, rest = self._wanted, path
        for part in rest:
            found = found[part]
        assert isinstance(found, dict)
        return found

    # -- one key ------------------------------------------------------------------------------

    def _set(self, block: Block, path: Path, now: Value, value: Value, depth: int) -> None:
        if _same(now, value):
            return
        span = self._positions.values.get(path)
        inner = self._find(path)
        if isinstance(now, dict) and span is None and isinstance(value, Mapping):
            # Written with a header of its own, or with dotted keys.
            if depth == _DEEP_MAX:
                raise CannotEditError("tables are nested too deeply to be changed here")
            home = inner or block
            for key in {**now, **value}:
                self._set(home, (*path, key), now.get(key), value.get(key), depth + 1)
        elif value is None:
            self._unset(block, path, inner)
        elif span is not None:
            self._changes.append((*span, literal(value)))
        elif now is None:
            self._insert(block, path, value)
        else:
            msg = f"{_dotted(path)} is written with a header and can't become a plain value here"
            raise CannotEditError(msg)

    def _insert(self, block: Block, path: Path, value: Value) -> None:
        below = path[len(block.path) :]
        key = ".".join(_key(str(part)) for part in below)
        at = self._line_end(block.end)
        line = f"{key} = {literal(value)}{self._newline}"
        if at == len(self._text) and self._text and not self._text.endswith("\n"):
            line = self._newline + line.removesuffix(self._newline)
        self._changes.append((at, at, line))

    def _unset(self, block: Block, path: Path, inner: Block | None) -> None:
        if inner is not None:
            self._cut(inner.start, inner.end)
            return
        mine = [pair for pair in block.pairs if pair[0][: len(path)] == path]
        if not mine:
            msg = f"{_dotted(path)} can't be taken out here; edit the file as text"
            raise CannotEditError(msg)
        for _, start, end in mine:
            self._cut(start, end)

    def _cut(self, start: int, end: int) -> None:
        """Take out whole lines."""
        self._changes.append((self._text.rfind("\n", 0, start) + 1, self._line_end(end), ""))

    # -- places -------------------------------------------------------------------------------

    def _find(self, path: Path) -> Block | None:
        return next((one for one in self._positions.blocks if path and one.path == path), None)

    def _block(self, path: Path) -> Block:
        if not path:
            return self._positions.blocks[0]
        found = self._find(path)
        if found is None:
            raise CannotEditError(_in_one_line(_dotted(path)))
        return found

    def _line_end(self, at: int) -> int:
        """Return the place behind the end of a line."""
        end = self._text.find("\n", at)
        return len(self._text) if end < 0 else end + 1

    def _above(self, start: int) -> int:
        """Return where the comments begin that stand right above a line."""
        while start:
            before = self._text.rfind("\n", 0, start - 1) + 1
            if not _COMMENT.match(self._text, before):
                break
            start = before
        return start


def literal(value: Value) -> str:
    """Return a value as TOML writes it in one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {literal(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(literal, value))}]"
    return tomli_w.dumps({"k": value}).removeprefix("k = ").rstrip("\n")


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else literal(name)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _in_one_line(name: str) -> str:
    return f"{name} is not written with a header of its own; edit the file as text"


def _same(one: Value, other: Value) -> bool:
    """Say whether two values are written alike: 1, 1.0 and true are three."""
    if isinstance(one, dict) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, Sequence) and not isinstance(other, str):
        return len(one) == len(other) and all(map(_same, one, other))
    # As written: nan is nan, and 0.0 is not -0.0.
    # As they are written: nan is nan, and 0.0 is not -0.0.
    return type(one) is type(other) and repr(one) == repr(other)
