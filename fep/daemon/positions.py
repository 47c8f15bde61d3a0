"""Where each key of a TOML text stands; tomllib gives values only. Pure.

The text was read by ``tomllib`` before, so it is valid TOML 1.0 and the scan need not check.
"""

from __future__ import annotations

import bisect
import contextlib
import tomllib
from collections.abc import Iterator
from typing import Final

import attrs

Path = tuple[str | int, ...]


@attrs.frozen
class Position:
    """A place in the text, both from 1."""

    line: int
    column: int


@attrs.define
class Block:
    """A header with the pairs below it, up to the next header; the first one has no header."""

    path: Path
    """Of the table: ``("bank", 0, "options")``."""
    start: int
    """Where the header begins."""
    end: int
    """Where the header, or the last pair, ends: before a comment behind it."""
    pairs: list[tuple[Path, int, int]] = attrs.Factory(list)
    """Each pair's path, where its key begins and its value ends."""


_SPACE: Final = " \t"
_BLANK: Final = " \t\r\n"
_BARE_END: Final = " \t\r\n=.]#,}{[\"'"


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: dict[Path, int] = {}
        self.values: dict[Path, tuple[int, int]] = {}
        self.blocks = [Block((), 0, 0)]
        self._lengths: dict[Path, int] = {}

    def scan(self) -> None:
        table: Path = ()
        while True:
            self._skip(_BLANK)
            if self.at >= len(self.text):
                return
            start, block = self.at, self.blocks[-1]
            if self.text[self.at] == "[":
                table = self._header()
                self.blocks.append(Block(table, start, self.at))
            else:
                path = self._pair(table)
                block.end = self.at
                block.pairs.append((path, start, self.at))

    def _header(self) -> Path:
        start = self.at
        is_array = self.text.startswith("[[", self.at)
        self.at += 2 if is_array else 1
        names = self._key()
        self._skip(_SPACE)
        self.at += 2 if is_array else 1
        path: Path = ()
        for place, (name, _) in enumerate(names):
            if path:
                self.found.setdefault(path, start)  # a table that only its tables' headers name
            path = (*path, name)
            last = place == len(names) - 1
            if last and is_array:
                index = self._lengths.get(path, 0)
                self._lengths[path] = index + 1
                self.found.setdefault(path, start)
                path = (*path, index)
            elif path in self._lengths:
                # A header below an array of tables means its newest element.
                path = (*path, self._lengths[path] - 1)
        self.found.setdefault(path, start)
        return path

    def _pair(self, table: Path) -> Path:
        path = table
        for name, at in self._key():
            path = (*path, name)
            self.found.setdefault(path, at)
        self._skip(_SPACE)
        self.at += 1  # the equals sign
        self._value(path)
        return path

    def _key(self) -> list[tuple[str, int]]:
        names = []
        while True:
            self._skip(_SPACE)
            start = self.at
            if self.text[self.at] in "\"'":
                name = self._string()
                if "\\" in name and self.text[start] == '"':
                    name = tomllib.loads(f'name = "{name}"')["name"]
                names.append((name, start))
            else:
                while self.text[self.at] not in _BARE_END:
                    self.at += 1
                names.append((self.text[start : self.at], start))
            self._skip(_SPACE)
            if self.text[self.at] != ".":
                return names
            self.at += 1

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        start, first = self.at, self.text[self.at]
        self.values[path] = (start, len(self.text))  # until its end is found
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\r\n":
                self.at += 1
            self.at = start + len(self.text[start : self.at].rstrip(_SPACE))
        self.values[path] = (start, self.at)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == "]":
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self.found.setdefault((*path, index), self.at)
            before = self.at
            self._value((*path, index))
            if self.at == before:
                raise IndexError  # no value at all: the text is none of TOML
            index += 1

    def _inline(self, path: Path) -> None:
        self.at += 1
        while True:
            self._skip(_BLANK)
            if self.text[self.at] == "}":
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
                continue
            self._pair(path)

    def _string(self) -> str:
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            end = self.at + 3
            while not self.text.startswith(quote * 3, end):
                if end >= len(self.text):
                    raise IndexError  # it does not end: the text is none of TOML
                end += 2 if quote == '"' and self.text[end] == "\\" else 1
            end += 3
            while self.text.startswith(quote, end):
                end += 1  # up to two quotes may stand before the closing three
            content = self.text[self.at + 3 : end - 3]
        else:
            end = self.at + 1
            while self.text[end] != quote:
                end += 2 if quote == '"' and self.text[end] == "\\" else 1
            content = self.text[self.at + 1 : end]
            end += 1
        self.at = end
        return content

    def _skip(self, characters: str) -> None:
        while self.at < len(self.text):
            if self.text[self.at] in characters:
                self.at += 1
            elif self.text[self.at] == "#" and "\n" in characters:
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return


def values_until(text: str) -> Iterator[tuple[Path, int, int]]:
    """Yield path, begin and end of each value in a text that is TOML up to some place.

    What was begun there ends with the text.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(IndexError, tomllib.TOMLDecodeError, RecursionError):
        scanner.scan()
    for path, (start, end) in scanner.values.items():
        yield path, start, end


class Positions:
    """Finds where a path of keys and indexes stands in the text."""

    def __init__(self, text: str) -> None:
        scanner = _Scanner(text)
        scanner.scan()
        self._found = scanner.found
        self.values = scanner.values
        """Where the value of each key begins and ends, inner ones too."""
        self.blocks = scanner.blocks
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def of(self, path: Path) -> Position:
        """Return the place of a key, or of the nearest table around it."""
        while path and path not in self._found:
            path = path[:-1]
        at = self._found.get(path, 0)
        line = bisect.bisect_right(self._starts, at)
        return Position(line, at - self._starts[line - 1] + 1)

    def source(self, line: int) -> str:
        """Return the text of a line without its end."""
        return self._lines[line - 1].rstrip("\r") if 0 < line <= len(self._lines) else ""
