"""Tables of a TOML file read key by key; what is wrong is collected, nothing is raised.

Each fault says ``file:line:column: key: what is wrong and what would be right``, with the line and
a caret. A reader that goes on after a fault must not report what only follows from it: a value
that was faulty comes back as None, and a table knows whether it ``is_clean`` still.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from fep.adapters import strict
from fep.daemon.positions import Positions, values_until
from fep.domain.errors import ConfigError
from fep.logs import SECRET_NAMES, is_secret

SOURCE_CHARS_MAX: Final = 160
SOURCE_CHARS_BEFORE: Final = 100
FAULTS_MAX: Final = 1000
"""More are not listed: a file with a thousand faults is another file."""
HINTS_AMONG_MAX: Final = 500
"""Among more words the nearest is not looked for: it takes 20 us a word."""
WORD_CHARS_MAX: Final = 100
"""To a longer word nothing is near, and no more of a key is shown."""
MESSAGE_CHARS_MAX: Final = 1000

KeyPath = tuple[str | int, ...]
T = TypeVar("T")

_SECRET: Final = re.compile(
    r"(?<![\w-])(?:[\w-]*_)?(?:" + "|".join(sorted(SECRET_NAMES)) + r")[\"']?\s*=\s*"
    r"(\"\"\".*|'''.*|\[.*|\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|[^\s{\[,}\"']+)",
    re.IGNORECASE,
)


_IN_URL: Final = re.compile(r"://[^\s/@:\"']*:([^@\"'\n]{1,200}+)(?=@)")
_OPENED: Final = re.compile(
    r"(?<![\w-])(?:[\w-]*_)?(?:" + "|".join(sorted(SECRET_NAMES)) + r")[\"']?\s*=\s*"
    r"(\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)|\[[^]]*)",
    re.IGNORECASE | re.DOTALL,
)
"""A secret's value that may go over several lines, in a text that is not TOML."""
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLACES: Final = frozenset({"file", "credential", "serial", "label", "certificate_sha256"})
"""What may be shown below a key such as ``pin`` or ``token``: where the secret is, and whose."""
_PLACE: Final = re.compile(r"(?:file|credential)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_ROBOT: Final = re.compile(
    r"(?:[?&](?:access_token|key|token|secret|sign)=|/hook/)([^\s&?\"'#]+)", re.IGNORECASE
)
"""What of a robot's URL lets anybody speak as it."""


def without_secrets(source: str) -> str:
    """Return the line with each secret written as stars, as long as it was."""

    def stars(found: re.Match[str]) -> str:
        return found[0][: -len(found[1])] + "*" * len(found[1])

    return _ROBOT.sub(stars, _IN_URL.sub(stars, _SECRET.sub(stars, source)))


def _is_hidden(path: KeyPath) -> bool:
    """Say whether the value at a path may be a secret, however it is written."""
    names = [part for part in path if isinstance(part, str)]
    if not names or names[-1] in _PLACES:
        return False
    return any(is_secret(name) or name == "secrets" for name in names)


def _may_be_secret(name: str) -> bool:
    """Say whether an unknown key may be the slip of a finger for a secret's."""
    lower = name.lower()
    if len(name) > WORD_CHARS_MAX or any(one in lower for one in SECRET_NAMES):
        return True
    return bool(difflib.get_close_matches(lower, SECRET_NAMES, 1, 0.7))


def _starred(text: str) -> str:
    return re.sub(r"[^\r\n]", "*", text)


def broken_line(text: str, number: int) -> str:
    """Return the line of a text at which it ceases to be TOML, without what may be a secret."""
    lines = text.split("\n")
    begin = sum(len(line) + 1 for line in lines[: number - 1])
    line = lines[number - 1]
    until = text[: begin + len(line)]
    spans = [(start, end) for path, start, end in values_until(until) if _is_hidden(path)]
    spans += [found.span(1) for found in _OPENED.finditer(until)]
    first = min((start for start, end in spans if end > begin), default=len(until))
    at = max(first - begin, 0)
    # Behind it nobody knows what belongs to the secret and what does not.
    shown, rest = without_secrets(line[:at]), line[at:]
    if rest.startswith("{"):
        kept = 0
        for found in _PLACE.finditer(rest):
            shown += _starred(rest[kept : found.start()]) + found[0]
            kept = found.end()
        rest = rest[kept:]
    return printable((shown + _starred(rest)).rstrip("\r"))


def printable(text: str) -> str:
    """Return a line without what a terminal would obey, as long as it was."""
    text = text.replace("\t", " ")
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def _told(part: str | int) -> str:
    """Return a part of a key as it may be shown; one that is not plain stands in quotes."""
    if isinstance(part, int) or (len(part) <= WORD_CHARS_MAX and _BARE.fullmatch(part)):
        return str(part)
    short = part if len(part) <= WORD_CHARS_MAX else f"{part[:WORD_CHARS_MAX]}…"
    escaped = short.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _cut(message: str) -> str:
    if len(message) > MESSAGE_CHARS_MAX:
        message = f"{message[:MESSAGE_CHARS_MAX]}…"
    return printable(message)


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


@attrs.frozen
class Fault:
    """One thing that is wrong in the file."""

    file: str
    line: int
    """From 1, as is the column, which counts characters."""
    column: int
    key: str
    message: str
    source: str
    """The line as it stands there, but for secrets."""

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {self.key}: {self.message}"
        if not self.source.strip():
            return text
        first = max(0, self.column - 1 - SOURCE_CHARS_BEFORE)
        shown = self.source[first : first + SOURCE_CHARS_MAX].replace("\t", " ")
        return f"{text}\n    {shown}\n    {' ' * _width(shown[: self.column - 1 - first])}^"


def made_fault(file: str, place: tuple[int, int], key: str, message: str, source: str) -> Fault:
    """Return a fault whose message is in bounds and on one line."""
    return Fault(file, *place, key, _cut(message), source)


class ConfigFaultsError(ConfigError):
    """The file can't be used; ``faults`` has all that is wrong, in the order of the file."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def hint(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'host'?`` when one of the known is near, else nothing."""
    among = list(known)
    if len(among) > HINTS_AMONG_MAX or len(word) > WORD_CHARS_MAX:
        return ""
    near = difflib.get_close_matches(word, among, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class Reader:
    """Collects the faults of one file."""

    def __init__(self, path: Path, text: str) -> None:
        self.file = str(path)
        self.base = path.parent
        self._text = text
        self._found: dict[tuple[KeyPath, str], None] = {}
        self._unknown: set[KeyPath] = set()

    @cached_property
    def _positions(self) -> Positions:
        return Positions(self._text)  # half the time of reading a file, and most have no fault

    @property
    def faults(self) -> list[Fault]:
        """What was found, in the order of the file."""
        lines: dict[int, str] = {}
        shown = self._shown().split("\n") if self._found else []
        found = []
        for path, message in self._found:
            place = self._positions.of(path)
            if place.line not in lines:
                line = shown[place.line - 1].rstrip("\r")
                lines[place.line] = printable(without_secrets(line))
            key = ".".join(map(_told, path)) or "(file)"
            at = (place.line, place.column)
            found.append(made_fault(self.file, at, key, message, lines[place.line]))
        return sorted(found, key=lambda fault: (fault.line, fault.column))

    @property
    def is_full(self) -> bool:
        """Whether no more faults are noted."""
        return len(self._found) == FAULTS_MAX

    def fault(self, path: KeyPath, message: str) -> None:
        """Note a fault at a key, or at the table around it when the key is not there."""
        if not self.is_full:
            self._found[path, message] = None

    def unknown(self, path: KeyPath, known: Iterable[str], near: str) -> None:
        """Note that nobody knows a key."""
        last = str(path[-1])
        if _may_be_secret(last):
            self._unknown.add(path)
        said = near or f"; known are: {', '.join(known) or 'none'}"
        self.fault(path, f"unknown key{said}")

    def _shown(self) -> str:
        """Return the text without the values that may be secrets."""
        spans = [
            span
            for path, span in self._positions.values.items()
            if (_is_hidden(path) and self._text[span[0]] != "{")
            or any(path[:parts] in self._unknown for parts in range(1, len(path) + 1))
        ]
        pieces, at = [], 0
        for start, end in sorted(spans):
            if end > at:
                start = max(start, at)  # noqa: PLW2901 - the part that is not starred yet
                pieces += [self._text[at:start], _starred(self._text[start:end])]
                at = end
        return "".join([*pieces, self._text[at:]])

    def is_clean(self, path: KeyPath) -> bool:
        """Say whether nothing is wrong at or below a path."""
        return all(found[: len(path)] != path for found, _ in self._found)


class Table:
    """One table being read; ``close`` reports what is missing and what nobody asked for."""

    def __init__(self, reader: Reader, path: KeyPath, value: object) -> None:
        self.reader = reader
        self.path = path
        self.values: dict[str, Any] = value if isinstance(value, dict) else {}
        self._asked: dict[str, None] = {}
        self._missing: dict[str, None] = {}
        self._is_table = isinstance(value, dict)
        if not self._is_table:
            reader.fault(path, "must be a table: { key = value }")

    def fault(self, name: str, message: str) -> None:
        """Note a fault at a key of this table; at the table itself for no name."""
        self.reader.fault((*self.path, name) if name else self.path, message)

    def is_clean(self) -> bool:
        """Return True while nothing at or below this table is wrong."""
        return not self._missing and self.reader.is_clean(self.path)

    def has(self, name: str) -> bool:
        """Say whether the key is there, and count it as asked for."""
        self._asked[name] = None
        return name in self.values

    def value(self, name: str, *, required: bool = False) -> Any:  # noqa: ANN401
        """Return what stands at a key, None where nothing does."""
        if not self.has(name) and required:
            self._missing[name] = None
        return self.values.get(name)

    def written(self, name: str) -> str:
        """Return the text at a key as it stands there; empty where it is none."""
        value = self.values.get(name)
        return value if isinstance(value, str) else ""

    def is_table(self, name: str) -> bool:
        """Say whether the value at a key can be a table: it is one, or there is none."""
        return isinstance(self.values.get(name, {}), dict)

    def text(self, name: str, default: str | None = None) -> str:
        """Return text; without a default the key must be there and not be empty."""
        value = self.value(name, required=default is None)
        if value is None:
            return default or ""
        if not isinstance(value, str) or (default is None and not value.strip()):
            self.fault(name, "must be text in quotes" + (", not empty" if default is None else ""))
            return default or ""
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number of a range."""
        value = self.value(name)
        if value is None:
            return default
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            self.fault(name, f"must be a number from {low:.15g} to {high:.15g}")
            return default
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int:
        """Return a whole number of a range."""
        value = self.value(name, required=default is None)
        if value is None:
            return low if default is None else default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(name, f"must be a whole number from {low} to {high}")
            return low if default is None else default
        return value

    def flag(self, name: str) -> bool:
        """Return true or false; false when it is not there."""
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            self.fault(name, "must be true or false")
        return value is True

    def choice(self, name: str, among: tuple[str, ...], default: str | None = None) -> str:
        """Return one of several words."""
        value = self.value(name, required=default is None)
        if value is None:
            return default or among[0]
        if not isinstance(value, str) or value not in among:
            near = hint(value, among) if isinstance(value, str) else ""
            self.fault(name, f"must be one of {', '.join(among)}{near}")
            return default or among[0]
        return value

    def parsed(self, name: str, parse: Callable[[str], T], default: T | None = None) -> T | None:
        """Return text parsed by a function that raises ValueError; None after a fault."""
        value = self.value(name, required=default is None)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fault(name, "must be text in quotes")
            return None
        return self.made(lambda: parse(value), name)

    def path_of(self, name: str, default: str | None = None) -> Path:
        """Return the path of a file; a relative one begins where the configuration file is."""
        text = self.text(name, default)
        if "\0" in text:
            self.fault(name, "must be the path of a file: no path contains the character NUL")
            return self.reader.base
        return self.reader.base / text

    def table(self, name: str, *, required: bool = False) -> Table | None:
        """Return a table below this one."""
        value = self.value(name, required=required)
        return None if value is None else Table(self.reader, (*self.path, name), value)

    def tables(self, name: str, many_max: int | None = None) -> Iterator[Table]:
        """Yield the tables of an array of tables, no more than so many."""
        value = self.value(name)
        if value is None:
            return
        if not isinstance(value, list):
            where = ".".join(str(part) for part in (*self.path, name) if isinstance(part, str))
            self.fault(name, f"must be an array of tables: [[{where}]]")
            return
        if many_max is not None and len(value) > many_max:
            msg = f"there are more than {many_max} [[{name}]]"
            self.reader.fault((*self.path, name, many_max), msg)
        for index, one in enumerate(value[:many_max]):
            yield Table(self.reader, (*self.path, name, index), one)

    def named(self, name: str) -> Iterator[tuple[str, Table]]:
        """Yield the tables below a table whose keys are names."""
        outer = self.table(name)
        if outer is not None:
            for key, value in outer.values.items():
                yield key, Table(self.reader, (*outer.path, key), value)

    def free(self, name: str) -> dict[str, Any]:
        """Return a table whose keys somebody else knows."""
        value = self.value(name)
        if value is not None and not isinstance(value, dict):
            self.fault(name, "must be a table: { key = value }")
            return {}
        return value or {}

    def made(self, make: Callable[[], T], name: str = "") -> T | None:
        """Return what ``make`` returns; None after a ValueError, which is noted.

        It is noted at the key given, else at the first key of this table that the message names.
        """
        try:
            return make()
        except ValueError as error:
            message = str(error.args[0]) if error.args else "is not valid"
            self.blame(message, name)
            return None

    def blame(self, message: str, name: str = "") -> None:
        """Note a fault at the key given, else at the first key of this table it names.

        ``options.branch: is wrong`` names a key of a table below.
        """
        if name:
            self.fault(name, message)
            return
        first, colon, rest = message.partition(": ")
        if colon and first.split(".")[0] in self.values and " " not in first:
            self.reader.fault((*self.path, *first.split(".")), rest)
            return
        words = re.findall(r"[A-Za-z0-9_-]+", message[:MESSAGE_CHARS_MAX])
        self.fault(next((word for word in words if word in self.values), ""), message)

    def check(self, cls: type[Any], values: Mapping[str, Any]) -> bool:
        """Note what the fields of an attrs class say of values; return whether all is well.

        A value that is faulty already, or not there, is left out: its fault is told.
        """
        clean = {
            key: one
            for key, one in values.items()
            if key not in self._missing and self.reader.is_clean((*self.path, key))
        }
        found = list(strict.value_faults(cls, clean))
        for one in found:
            self.reader.fault((*self.path, *one.path), one.message)
        return not found

    def close(self) -> None:
        """Report the keys that nobody asked for, and those that are not there."""
        missing = dict(self._missing)
        for name in self.values:
            if name in self._asked:
                continue
            if self.reader.is_full:
                return
            free = [key for key in self._asked if key not in self.values]
            near = hint(name, free) or hint(name, self._asked)
            # One slip of a finger is one fault: the key that is missing is here, misspelt.
            if len(name) <= WORD_CHARS_MAX:
                for key in difflib.get_close_matches(name, missing, 1):
                    del missing[key]
            self.reader.unknown((*self.path, name), sorted(self._asked), near)
        if self._is_table:
            for name in missing:
                self.fault(name, "is missing")
