"""The documents say what is so: names, keys, tables and pictures are compared with the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fep.adapters import registry
from fep.adapters.card import Signer
from fep.adapters.host import own_faults
from fep.alarms.outgoing import TRANSITIONS as CHANNEL
from fep.alarms.outgoing import ChannelState
from fep.alarms.state import MEANINGS, AlarmState, Severity
from fep.alarms.state import TRANSITIONS as ALARM
from fep.control.commands import Role
from fep.daemon import config, pool_section
from fep.domain.order import Kind
from fep.keys.state import TRANSITIONS as SLOT
from fep.keys.state import SlotState
from fep.links.state import TRANSITIONS as LINK
from fep.links.state import LinkState
from fep.pooling.plan import ItemState, RoundState
from fep.pooling.rules import RAW_AMOUNTS, Reason
from fep.tasks.state import TRANSITIONS as TASK
from fep.tasks.state import State

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
DOCS = [*READMES, *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("changes/*.md"))]
SCRIPT = ROOT / "docs/diagrams.py"
CODE = sorted([*ROOT.glob("fep/**/*.py"), *ROOT.glob("bank_adapters/**/*.py")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK_TARGET = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = r"(?:fep|bank_adapters|config|docs|tests|systemd|bench|changes|requirements|\.ci)"
PATH_IN_CODE = re.compile(rf"(?<![\w./-]){FOLDERS}/[\w./-]*\w/?(?![\w<*…])")
JUNK = "zzzzzzzzzz"


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _text(path: Path) -> str:
    return path.read_text("utf-8")


def _prose(text: str) -> str:
    return FENCE.sub("", text)


def _code(text: str) -> list[str]:
    """Return what stands in code spans and in fenced blocks."""
    return [*SPAN.findall(_prose(text)), *(block for _, block in FENCE.findall(text))]


def _slug(heading: str) -> str:
    """Return a heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of every row of every table, without heads and rules."""
    lines = _prose(text).splitlines()
    for number, line in enumerate(lines):
        head = number + 1 < len(lines) and re.fullmatch(r"\|(---\|)+", lines[number + 1])
        if line.startswith("|") and not line.startswith("|---") and not head:
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# -- what is named ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_what_a_document_names_is_there(path: Path) -> None:
    text = _text(path)
    named = {one for code in _code(text) for one in PATH_IN_CODE.findall(code)}
    assert sorted(one for one in named if not (ROOT / one).exists()) == []
    targets = {
        target
        for code in _code(text)
        for target in re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", code)
    }
    makefile = set(re.findall(r"^([a-z][a-z-]*):", _text(ROOT / "Makefile"), re.MULTILINE))
    assert sorted(targets - makefile) == []


def test_names_are_seen() -> None:
    shown = "run `make demo` with `config/fep.toml`\n```sh\ncp systemd/fep.socket /etc/fep/x\n```\n"
    code = _code(shown)
    assert code == ["make demo", "config/fep.toml", "cp systemd/fep.socket /etc/fep/x\n"]
    found = [one for part in code for one in PATH_IN_CODE.findall(part)]
    assert found == ["config/fep.toml", "systemd/fep.socket"]


@pytest.mark.parametrize("path", DOCS, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    dead = []
    for target in LINK_TARGET.findall(_prose(_text(path))):
        if "://" in target:
            continue
        where, _, anchor = target.partition("#")
        file = (path.parent / where).resolve() if where else path
        if not file.exists():
            dead.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", _prose(_text(file)), re.MULTILINE)
            if anchor not in map(_slug, headings):
                dead.append(target)
    assert dead == []


def test_members_that_documents_name_exist() -> None:
    known: dict[str, set[str]] = {}
    for path in CODE:
        for node in ast.walk(ast.parse(_text(path))):
            if isinstance(node, ast.ClassDef):
                members = known.setdefault(node.name, set())
                members |= {
                    part.name
                    for part in node.body
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
                }
                members |= {
                    part.target.id
                    for part in node.body
                    if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
                }
    wrong = [
        f"{_name(path)}: {span}"
        for path in DOCS
        for span in SPAN.findall(_prose(_text(path)))
        if (found := re.fullmatch(r"([A-Z]\w+)\.(\w+)(?:\(.*\))?", span))
        and not (found[1].isupper() or found[2] in known.get(found[1], ()))
    ]
    assert wrong == []


# -- pictures and made tables ----------------------------------------------------------------------


def test_the_made_blocks_are_as_the_code_is_now() -> None:
    told = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def _diagrams() -> Any:
    spec = importlib.util.spec_from_file_location("diagrams", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_stale_block_is_seen() -> None:
    diagrams = _diagrams()
    architecture = _text(ROOT / "docs/architecture.md")
    assert diagrams.remade(architecture) == architecture
    stale = architecture.replace("fetched --> sending", "queued --> sending")
    assert stale != architecture
    assert diagrams.remade(stale) == architecture


@pytest.mark.parametrize(
    ("name", "table"),
    [("task", TASK), ("link", LINK), ("slot", SLOT), ("alarm", ALARM), ("channel", CHANNEL)],
)
def test_a_picture_and_its_words_hold_the_whole_table(
    name: str, table: Mapping[StrEnum, Mapping[StrEnum, StrEnum]]
) -> None:
    """Read the picture back, without the script that made it."""
    text = _text(ROOT / "docs/architecture.md")
    block = text.partition(f"<!-- made by docs/diagrams.py: {name} -->")[2]
    block = block.partition(f"<!-- end {name} -->")[0]
    shown = [
        (before, event, after)
        for before, after, events in re.findall(r"^    (\w+) --> (\w+): (.+)$", block, re.MULTILINE)
        for event in events.split(" / ")
    ]
    told = r"^- `(\w+)` leads to `(\w+)` also from (.+)\.$"
    shown += [
        (before, event, after)
        for event, after, states in re.findall(told, block, re.MULTILINE)
        for before in re.findall(r"`(\w+)`", states)
    ]
    real = [(before, event, after) for before, row in table.items() for event, after in row.items()]
    assert sorted(shown) == sorted((str(a), str(b), str(c)) for a, b, c in real)


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fep.toml", "demo.toml"])
def test_the_configurations_we_ship_can_be_used(name: str) -> None:
    assert [str(fault) for fault in config.check(ROOT / "config" / name)] == []


def _with_junk(value: Any, name: str = "") -> Any:
    """Return the tables with a key in each that nobody knows; adapters' own tables stay."""
    if isinstance(value, list):
        return [_with_junk(one) for one in value]
    if not isinstance(value, dict) or name == "options":
        return value
    return {key: _with_junk(one, key) for key, one in value.items()} | {JUNK: 1}


def _known_keys(raw: dict[str, Any], directory: Path) -> set[tuple[str, str]]:
    """Return (section, key) of every key that the readers ask for in these tables.

    The readers say it themselves: an unknown key is answered with the known ones.
    """
    for bank in raw["bank"]:
        bank.pop("card", None)
    path = directory / "fep.toml"
    path.write_text(tomli_w.dumps(_with_junk(raw)), "utf-8")
    found: set[tuple[str, str]] = set()
    for fault in config.check(path):
        where = [part for part in fault.key.split(".") if not part.isdigit()]
        if where[-1] != JUNK:
            continue
        section = ".".join(where[:-1])
        section = re.sub(r"^control\.(clients|users)\..*", r"control.\1", section)
        _, told, known = fault.message.partition("known are: ")
        found |= {(section, key) for key in known.split(", ") if told}
    return found


_EVERY_RULE: dict[str, dict[str, Any]] = {
    "excess": {},
    "zero": {},
    "target": {"amount": "1.00"},
    "fixed": {"amount": "1.00"},
    "percentage": {"basis_points": 1},
    "range": {"low": "1.00", "high": "2.00"},
    "tiered": {"tiers": [{"from": "1.00", "to": "2.00", "basis_points": 1}]},
}


_EVERY_CHANNEL: list[dict[str, Any]] = [
    {"name": "http", "kind": "dingtalk", "url": {"file": "u"}, "secret": {"file": "s"}},
    {
        "name": "mail",
        "kind": "mail",
        "host": "localhost",
        "from": "a@b.c",
        "to": ["a@b.c"],
        "user": "a",
        "password": {"file": "p"},
    },
    {"name": "syslog", "kind": "syslog", "address": "unix:/dev/log"},
]


def _read_keys(directory: Path) -> set[tuple[str, str]]:
    assert set(_EVERY_RULE) == set(pool_section.RULES)
    text = _text(ROOT / "config/fep.toml")
    found: set[tuple[str, str]] = set()
    for kind, members in _EVERY_RULE.items():
        raw = tomllib.loads(text)
        raw["pool"][0]["member"][0]["rule"] = {"kind": kind, **members}
        found |= _known_keys(raw, directory)
    shared = tomllib.loads(text)
    shared["store"] = {
        "url": "postgresql+psycopg://fep@127.0.0.1/fep",
        "password": {"file": "password"},
    }
    shared["console"] = {"tls": {"certificate": "c", "key": "k"}}
    shared["metrics"] = {"tls": {"certificate": "c", "key": "k", "client_ca": "a"}}
    shared["traces"] = {"header": [{"name": "n", "value": {"file": "f"}}]}
    found |= _known_keys(shared, directory)
    told = tomllib.loads(text)
    told["alarms"]["channel"] = _EVERY_CHANNEL
    found |= _known_keys(told, directory)
    files = tomllib.loads(text)
    files["bank"][0]["folder"] = {"out": "out", "in": "in", "archive": "archive"}
    found |= _known_keys(files, directory)
    soft = tomllib.loads(text)
    soft["slot"].append({"name": "soft", "backend": "software", "key": {"file": "soft.pem"}})
    token = {"serial": "1", "certificate_sha256": "0" * 64}
    slot = {"name": "token", "backend": "pkcs11", "module": "p.so", "token": token, "object": {}}
    soft["slot"].append(slot)
    return found | _known_keys(soft, directory)


def _inside(section: str, line: str) -> Iterator[tuple[str, str]]:
    """Yield (section, key) of a line's keys, those of ``{ … }`` with the table they are in."""
    above, last = [section], ""
    for token, key in re.findall(r"([{}]|([a-z_0-9]+) = )", re.sub(r'"[^"]*"', '""', line)):
        if key:
            yield above[-1], key
            last = key
        elif token == "{":
            above.append(f"{above[-1]}.{last}".lstrip("."))
        elif len(above) > 1:
            # A second table of a list stands beside the first.
            last = above.pop().rpartition(".")[2]


def _shown_keys(text: str) -> set[tuple[str, str]]:
    """Return (section, key) of every key in a TOML text, also where it is commented out."""
    found: set[tuple[str, str]] = set()
    section = ""
    for line in text.splitlines():
        if header := re.fullmatch(r"(?:# )?\[{1,2}([a-z_.0-9-]+)\]{1,2}\s*(?:#.*)?", line):
            parts = header[1].split(".")
            named = parts[:2] in (["control", "clients"], ["control", "users"])
            parts = parts[:2] if named else parts
            found |= {(".".join(parts[:at]), part) for at, part in enumerate(parts)}
            section = ".".join(parts)
        elif re.match(r"(?:# )?[a-z_0-9]+ = ", line):
            found |= set(_inside(section, line))
    return found


def test_keys_are_seen_where_they_stand() -> None:
    shown = """\
[[pool.member]]
# rule = { kind = "tiered", tiers = [{ from = "1.00" }, { to = "a = b" }], more = 1 }
[control.users.anna]
uid = 1  # or { file = "…" }
"""
    rule = "pool.member.rule"
    assert _shown_keys(shown) == {
        ("", "pool"),
        ("pool", "member"),
        ("pool.member", "rule"),
        (rule, "kind"),
        (rule, "tiers"),
        (f"{rule}.tiers", "from"),
        (f"{rule}.tiers", "to"),
        (rule, "more"),
        ("", "control"),
        ("control", "users"),
        ("control.users", "uid"),
        ("control.users.uid", "file"),
    }


def test_every_key_that_is_read_is_in_the_annotated_example(tmp_path: Path) -> None:
    read = _read_keys(tmp_path)
    assert len(read) > 60, "the readers' own lists of keys were not found"
    assert sorted(read - _shown_keys(_text(ROOT / "config/fep.toml"))) == []


def test_every_key_of_the_annotated_example_is_read(tmp_path: Path) -> None:
    shown = _shown_keys(_text(ROOT / "config/fep.toml"))
    # An adapter's own tables are checked by the adapter, and by loading the file.
    ours = {
        one for one in shown if not one[0].startswith(("bank.options", "bank.card", "bank.secrets"))
    }
    assert sorted(ours - _read_keys(tmp_path)) == []


# -- the READMEs -----------------------------------------------------------------------------------


def _shape(text: str) -> dict[str, Any]:
    blocks = FENCE.findall(text)
    commands = [
        re.sub(r"\s+#.*", "", block) for language, block in blocks if language in {"sh", "text"}
    ]
    return {
        "headings": [len(marks) for marks in re.findall(r"^(#+) ", _prose(text), re.MULTILINE)],
        "links": [one for one in LINK_TARGET.findall(text) if not one.startswith("README")],
        "blocks": [language for language, _ in blocks],
        "commands": commands,
        "rows": len(list(_rows(text))),
        "lists": len(re.findall(r"^(?:\d\.|-) ", _prose(text), re.MULTILINE)),
        "spans of code": sorted(set(SPAN.findall(_prose(text)))),
    }


@pytest.mark.parametrize("name", registry.names())
def test_a_bank_s_page_names_its_faults_and_all_kinds_if_any(name: str) -> None:
    page = (ROOT / "docs" / "banks" / f"{name}.md").read_text("utf-8")
    for fault in own_faults(registry.host(name)):
        assert f"`{fault}`" in page
    listed = {one.value for one in Kind} & set(
        re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    )
    assert listed in (set(), {one.value for one in registry.adapter(name).capabilities})


def test_both_readmes_say_the_same() -> None:
    english, chinese = (_shape(_text(path)) for path in READMES)
    assert english == chinese
    assert "(README.zh-CN.md)" in _text(READMES[0])
    assert "(README.md)" in _text(READMES[1])


def test_what_the_readme_shows_is_what_the_demo_prints() -> None:
    tree = ast.parse(_text(ROOT / "fep/sandbox/demo.py"))
    phrases = [
        re.escape(node.value.strip())
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if len(node.value.strip()) >= 10 and "\n" not in node.value
    ]
    printed = re.compile("|".join(phrases))
    blocks = [block for language, block in FENCE.findall(_text(READMES[0])) if language == "text"]
    lines = [line for block in blocks for line in block.splitlines() if re.match(r" +\d", line)]
    assert len(lines) >= 8
    assert [line for line in lines if not printed.search(line)] == []


# -- the catalogue of log events -------------------------------------------------------------------

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def _writers(tree: ast.AST) -> dict[str, set[str]]:
    """Return the levels of names such as ``write = log.info if calm else log.error``."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp):
            levels = {
                one.attr
                for one in (node.value.body, node.value.orelse)
                if isinstance(one, ast.Attribute) and one.attr in LEVELS
            }
            for target in node.targets:
                if levels and isinstance(target, ast.Name):
                    found[target.id] = levels
    return found


def _logged() -> dict[str, tuple[set[str], set[str]]]:
    """Return the levels and the fields of every event in the code."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in CODE:
        tree = ast.parse(_text(path))
        writers = _writers(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            match node.func:
                case ast.Attribute(
                    attr=level, value=ast.Name(id="log") | ast.Attribute(attr="_log")
                ) if level in LEVELS:
                    levels = {level}
                case ast.Name(id=name) if name in writers:
                    levels = writers[name]
                case _:
                    continue
            event = node.args[0]
            for one in [event.body, event.orelse] if isinstance(event, ast.IfExp) else [event]:
                assert isinstance(one, ast.Constant)
                known = found.setdefault(str(one.value), (set(), set()))
                known[0].update("error" if one == "exception" else one for one in levels)
                known[1].update(keyword.arg for keyword in node.keywords if keyword.arg)
    return found


def test_the_catalogue_tells_level_and_fields_of_every_event() -> None:
    listed = {
        cells[0].strip("`"): (set(cells[1].split(", ")), set(SPAN.findall(cells[2])))
        for cells in _rows(_text(ROOT / "docs/log-events.md"))
        if re.fullmatch(r"`[a-z]+\.[a-z_]+`", cells[0])
    }
    assert listed == _logged()


def test_every_event_and_alarm_says_what_an_operator_does() -> None:
    rows = list(_rows(_text(ROOT / "docs/log-events.md")))
    assert [cells for cells in rows if len(cells) != 5 or not cells[4] or not cells[3]] == []
    assert {f"`{kind}`" for kind in MEANINGS} <= {cells[2] for cells in rows}
    # error: a person must act, so the page says how.
    assert [cells[0] for cells in rows if cells[1] == "error" and cells[4] == "Nothing."] == []


# -- words -----------------------------------------------------------------------------------------


def test_the_glossary_has_every_word_that_programs_and_screens_use() -> None:
    text = _text(ROOT / "docs/glossary.md")
    vocabularies: list[type[StrEnum]] = [
        State, Kind, SlotState, LinkState, AlarmState, Severity, ItemState, RoundState, Reason,
        Role, Signer, ChannelState,
    ]  # fmt: skip
    wanted = {str(one) for words in vocabularies for one in words} | set(RAW_AMOUNTS)
    assert sorted(wanted - set(SPAN.findall(text))) == []


def test_the_glossary_gives_each_word_one_row_in_both_languages() -> None:
    rows = list(_rows(_text(ROOT / "docs/glossary.md")))
    assert len(rows) > 150
    assert [row for row in rows if len(row) != 3 or not all(row)] == []
    words = [row[0] for row in rows]
    assert sorted({word for word in words if words.count(word) > 1}) == []
    chinese = re.compile(r"[\u4e00-\u9fff]|PIN|UKey|PIV")
    assert [row for row in rows if not chinese.search(row[1])] == []


# -- decisions and changes -------------------------------------------------------------------------


def test_decisions_are_numbered_and_have_their_three_parts() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [int(path.name[:4]) for path in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for path in pages:
        text = _text(path)
        assert text.startswith(f"# {path.name[:4]}: "), path.name
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], path.name


def test_a_change_is_one_line_for_operators() -> None:
    pages = sorted((ROOT / "changes").iterdir())
    assert pages
    for path in pages:
        assert re.fullmatch(r"[a-z0-9-]+\.(feature|fix|break)\.md", path.name)
        assert re.fullmatch(r"\S[^\n]+[.]\n", _text(path)), path.name
