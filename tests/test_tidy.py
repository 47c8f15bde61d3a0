"""Checks of the code and of the repository's text that no linter we use makes."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("fep/**/*.py"), *ROOT.glob("bank_adapters/**/*.py")])
TEXT_BYTES_MAX = 4_000_000

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOGGERS = {"log", "_log"}

CATCH_ALL = {
    "fep/daemon/supervisor.py",
    "fep/daemon/replay.py",
    "fep/store/database.py",
    # It keeps the bytes that an adapter failed on, and lets the defect go on.
    "fep/tasks/service.py",
    # What another machine asks ends no more than that request, as in a session of its own.
    "fep/machines/service.py",
    # These hand it to the task of the connection in which it came.
    "fep/control/poller.py",
    "fep/control/session.py",
}
"""Where a defect may be caught whole; and in the sandbox, which stands for foreign systems."""

SHIELD_SET_LATER = {"fep/keys/blocking.py"}
"""Its shield ends when the parent lets go, and the parent waits under a deadline."""

# Written so that this file does not match itself.
TRACES = {
    "a home directory": re.compile(r"(?<![\w.])/(?:root|home/[a-z]\w*|Users/\w+)/[.\w]"),
    "a package index": re.compile(r"(?:https?|file)://[^\s\"'<>]*/(?:simple|pool/main)(?![\w-])"),
    "a package file's address": re.compile(r"(?:https?|file)://[^\s\"'<>]+\.(?:whl|tgz|tar\.gz)\b"),
    "an option that names an index": re.compile(
        r"--(?:extra-index|index|default-index|find-links|trusted-host)(?:-url)?[ =]+[\w/.]"
    ),
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _called(node: ast.Call) -> str:
    """Return the last name of what is called."""
    match node.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
        case _:
            return ""


def _shields_without_deadline(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and _called(node) == "CancelScope"
        and any(keyword.arg == "shield" for keyword in node.keywords)
        and not any(keyword.arg in {"deadline", "relative_deadline"} for keyword in node.keywords)
    ]


def _shields_set_later(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and any(isinstance(to, ast.Attribute) and to.attr == "shield" for to in node.targets)
    ]


def _parent_imports(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 1
    ]


def _catch_alls(tree: ast.AST) -> list[int]:
    """Return the lines of ``except Exception``, alone or within a tuple, and of ``except:``."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or any(
                isinstance(part, ast.Name) and part.id == "Exception"
                for part in ast.walk(node.type)
            )
        )
    ]


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_module(path: Path) -> None:
    tree = _tree(path)
    name = _name(path)
    assert _shields_without_deadline(tree) == []
    if name not in SHIELD_SET_LATER:
        assert _shields_set_later(tree) == []
    assert _parent_imports(tree) == []
    if name not in CATCH_ALL and not name.startswith("fep/sandbox/"):
        assert _catch_alls(tree) == []


def test_the_checks_see_what_they_look_for() -> None:
    assert _shields_without_deadline(ast.parse("trio.CancelScope(shield=True)")) == [1]
    assert not _shields_without_deadline(ast.parse("CancelScope(shield=True, deadline=1)"))
    assert _shields_set_later(ast.parse("scope.shield = True")) == [1]
    assert _parent_imports(ast.parse("from ..a import b")) == [1]
    assert not _parent_imports(ast.parse("from .a import b"))
    for header in ("except Exception:", "except (OSError, Exception) as error:", "except:"):
        assert _catch_alls(ast.parse(f"try:\n    a()\n{header}\n    b()")) == [3]
    assert not _catch_alls(ast.parse("try:\n    a()\nexcept OSError:\n    b()"))


def _is_writer(node: ast.AST) -> bool:
    """Return whether this is a logger's method, such as ``log.info`` or ``self._log.info``."""
    match node:
        case ast.Attribute(attr=level, value=ast.Name(id=logger) | ast.Attribute(attr=logger)):
            return level in LEVELS and logger in LOGGERS
        case _:
            return False


def _aliases(tree: ast.AST) -> set[str]:
    """Return the names given to writers, as in ``write = log.info if calm else log.error``."""
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for value in (
            [node.value.body, node.value.orelse]
            if isinstance(node.value, ast.IfExp)
            else [node.value]
        )
        if _is_writer(value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _events(tree: ast.AST) -> Iterator[tuple[int, str | None]]:
    """Yield the line and the event of each log call; None where the event is not a constant."""
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        func, event = node.func, node.args[0]
        if _is_writer(func) or (isinstance(func, ast.Name) and func.id in aliases):
            for one in [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]:
                match one:
                    case ast.Constant(value=str(text)):
                        yield node.lineno, text
                    case _:
                        yield node.lineno, None


def test_log_calls_are_seen_in_every_form() -> None:
    for call in ('log.info("a.b")', 'self._log.error("a.b")', 'log.info("a.b", c=1)'):
        assert list(_events(ast.parse(call))) == [(1, "a.b")]
    either = ast.parse('log.info("a.b" if c else "a.d")')
    assert list(_events(either)) == [(1, "a.b"), (1, "a.d")]
    alias = ast.parse('write = log.info if c else log.error\nwrite("a.b")')
    assert list(_events(alias)) == [(2, "a.b")]
    assert list(_events(ast.parse("log.info(name)"))) == [(1, None)]
    assert not list(_events(ast.parse('jsonrpc.error("a.b")')))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_log_events_are_constants_named_noun_past_verb(path: Path) -> None:
    wrong = [
        (line, event)
        for line, event in _events(_tree(path))
        if event is None or not re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", event)
    ]
    assert wrong == []


def test_every_log_event_is_in_the_catalogue() -> None:
    used = {event for path in FILES for _, event in _events(_tree(path)) if event is not None}
    listed = [
        line.split("`")[1]
        for line in (ROOT / "docs/log-events.md").read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    assert len(listed) == len(set(listed)), "an event has two rows"
    assert sorted(used - set(listed)) == [], "without a row in docs/log-events.md"
    assert sorted(set(listed) - used) == [], "rows of events that nothing logs"


def _repository() -> list[Path]:
    """Return what git keeps or would keep; without git, what is not hidden or made here."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode == 0:
        names = listing.stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    made = {".venv", ".build", ".hypothesis", "__pycache__"}
    return [
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not made.intersection(path.relative_to(ROOT).parts)
    ]


def _texts() -> Iterator[tuple[Path, str]]:
    for path in _repository():
        if path.stat().st_size > TEXT_BYTES_MAX:
            continue
        data = path.read_bytes()
        if b"\0" not in data:
            yield path, data.decode("utf-8", "replace")


def test_no_text_names_a_package_index_or_a_build_machine() -> None:
    here = re.compile(re.escape(str(ROOT)) + r"(?![\w.-])")
    traces = {**TRACES, "the place of this checkout": here}
    found = [
        f"{_name(path)}:{number}: {what}"
        for path, text in _texts()
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in traces.items()
        if pattern.search(line)
    ]
    assert found == []


def test_traces_of_a_build_machine_are_recognised() -> None:
    at = "https:/" + "/packages.example"
    assert TRACES["a package index"].search(f"-i {at}/simple/")
    assert TRACES["a package file's address"].search(f"a @ {at}/a-1.0-py3-none-any.whl")
    assert TRACES["a home directory"].search("/home" + "/builder/fep")
    assert TRACES["a home directory"].search("/ro" + "ot/.pyenv")
    assert TRACES["an option that names an index"].search("--extra-index" + "-url https")
    assert not any(pattern.search("ProtectHome=/home and /root") for pattern in TRACES.values())


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text("utf-8").splitlines()
    return dict(line.rstrip(" \\").split("==") for line in lines if re.match(r"[a-z0-9]", line))


@pytest.mark.parametrize("name", ["base.txt", "build.txt"])
def test_production_and_tests_run_the_same_versions(name: str) -> None:
    pins = _pins(name)
    assert pins
    assert pins.items() <= _pins("all.txt").items()
