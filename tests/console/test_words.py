"""Every word of the pages is in the catalogue, and nothing else; the glossary's words are its own."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from pathlib import Path

import pytest

from fep.alarms.outgoing import ChannelState
from fep.alarms.state import AlarmState, Severity
from fep.console import app, desk, words
from fep.console.pages import PAGES
from fep.control import probe
from fep.domain.order import Kind
from fep.keys.state import SlotState
from fep.links.state import LinkState
from fep.tasks.state import State

ROOT = Path(app.__file__).parent
GLOSSARY = Path(__file__).resolve().parent.parent.parent / "docs/glossary.md"
CALL = re.compile(r"""\bt\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
PROGRAM = {
    str(one)
    for kind in (State, Kind, SlotState, LinkState, AlarmState, Severity, ChannelState)
    for one in kind
}
PROGRAM |= {"viewer", "operator", "admin", "finance", "none", "asked", "done", "refused"}
PROGRAM |= {"pcsc", "pkcs11", "software", "active", "disabled", *desk.THEMES}
PROGRAM |= {"file", "archives", "chain", "tasks", "archive chain", "references", "payments"}
PROGRAM |= {"strays", "pools", "alarms"}
CODES = {"BAD_REQUEST", "BAD_STATE", "KEY_UNAVAILABLE", "NOT_FOUND", "NOT_PERMITTED"}
CODES |= {"CONFIG_CHANGED", "CONFIG_NOT_EDITABLE", "CONFIG_NOT_WRITABLE"}
CODES |= {"INTERNAL", "STORE_BUSY", "STORE_FULL", "UNKNOWN_BANK"}
HEADINGS = re.compile(r'\("([A-Z][^"]+)", task')


def in_templates() -> set[str]:
    found: set[str] = set()
    for path in sorted((ROOT / "templates").glob("*.html")):
        text = path.read_text("utf-8")
        found |= {ast.literal_eval(one) for one in CALL.findall(text)}
        found |= {*HEADINGS.findall(text), *re.findall(r'\("(Kind)", t', text)}
    return found


def in_pages() -> set[str]:
    """Return what the pages say: sentences given to ``t``, ``done`` or the form's fault."""
    found = {page.title for page in PAGES if page.title}
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "words.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and node.value in words.CATALOGUE:
                found.add(str(node.value))
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"visit.t", "visit.done"}:
                place = 1 if ast.unparse(node.func) == "visit.done" else 0
                text = node.args[place]
                if isinstance(text, ast.Constant):
                    found.add(str(text.value))
    return found


def told_by_the_probe() -> set[str]:
    tree = ast.parse(Path(probe.__file__).read_text("utf-8"))
    texts = {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return {one for one in texts if one in words.CATALOGUE}


def test_the_catalogue_has_every_word_and_no_other() -> None:
    used = in_templates() | in_pages() | told_by_the_probe() | PROGRAM | CODES
    assert sorted(used - words.CATALOGUE.keys()) == []
    assert sorted(words.CATALOGUE.keys() - used) == []
    assert len(in_templates()) > 120


def test_a_translation_takes_the_same_values() -> None:
    for english, chinese in words.CATALOGUE.items():
        fields = [sorted(re.findall(r"\{(\w+)\}", text)) for text in (english, chinese)]
        assert fields[0] == fields[1], english


def test_programs_words_are_the_glossarys() -> None:
    rows = re.findall(
        r"^\| `([a-z_0-9]+)` \| ([^|]+) \|", GLOSSARY.read_text("utf-8"), re.MULTILINE
    )
    glossary = {word: re.split(r"[、（]", chinese.strip())[0] for word, chinese in rows}
    differing = {
        word: (words.CATALOGUE[word], glossary[word])
        for word in PROGRAM & glossary.keys()
        if words.CATALOGUE[word] != glossary[word]
    }
    assert differing == {}


@pytest.mark.parametrize(
    ("kept", "accepted", "language"),
    [
        ("", "", "zh"),
        ("", "en-GB,en;q=0.9", "en"),
        ("", "fr,zh-TW;q=0.8,en;q=0.7", "zh"),
        ("", "fr,de", "zh"),
        ("", "en;q=0,zh;q=0.1", "zh"),
        ("", "en;q=nonsense", "zh"),
        ("en", "zh-CN", "en"),
        ("xx", "zh-CN", "zh"),
    ],
)
def test_the_language_is_the_one_kept_or_the_browsers(
    kept: str, accepted: str, language: str
) -> None:
    assert words.preferred(kept, accepted) == language


def test_what_others_made_is_as_the_list_says() -> None:
    listed = json.loads((ROOT / "static/vendored.json").read_text("utf-8"))
    ours = {"console.css", "console.js", "icon.svg", "vendored.json"}
    files = {path.name for path in (ROOT / "static").iterdir()}
    licences = {"LICENSE.htmx.txt", "LICENSE.uplot.txt"}
    assert files == {one["file"] for one in listed} | ours | licences
    for one in listed:
        data = (ROOT / "static" / one["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == one["sha256"], one["file"]
        assert set(one) == {"file", "package", "version", "license", "source", "sha256"}


def test_no_page_needs_what_the_policy_refuses() -> None:
    for path in sorted((ROOT / "templates").glob("*.html")):
        text = path.read_text("utf-8")
        for refused in (" style=", "<style", "<script>", "javascript:", "hx-on", "js:", "onclick"):
            assert refused not in text, (path.name, refused)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', text), path.name
