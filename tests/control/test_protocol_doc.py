"""``docs/protocol.md`` says what the code does: methods, parameters, roles, errors, limits.

Blocks between ``<!-- made by tests/control/test_protocol_doc.py: NAME -->`` and ``<!-- end NAME -->``
are made here. To write them anew: ``FEP_WRITE_DOCS=1 make test PYTEST=tests/control/test_protocol_doc.py``
"""

from __future__ import annotations

import ast
import datetime as dt
import importlib
import inspect
import json
import os
import pkgutil
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import attrs
import msgspec
import pytest

import fep
from fep.alarms.config import AlarmsConfig, ChannelConfig, ChannelKind, SyslogTarget
from fep.alarms.outgoing import ChannelState, Outbox, shown
from fep.alarms.state import Alarm, AlarmKind, AlarmState, Severity
from fep.control import asked, commands, service, session, share
from fep.control import proof as control_proof
from fep.control.commands import METHODS, Method, Role, Services
from fep.control.config import ControlConfig, Limits
from fep.control.user_commands import AUDIT_LIMIT_MAX
from fep.domain import ids, order
from fep.domain.clock import BusinessDate
from fep.domain.errors import BodyError, FepError, KeySlotError
from fep.domain.ids import AccountNumber, BankName, ClientRef, SlotName, TaskId
from fep.domain.money import FEN_MAX, Cny
from fep.domain.order import Kind, parse_body, result_value
from fep.keys.slot import SlotSnapshot
from fep.links.service import LinkSnapshot
from fep.logs import FOLLOWERS_MAX
from fep.pooling.plan import Item, ItemState, Round, RoundState
from fep.pooling.service import PLAN_SECONDS_MAX
from fep.tasks import lane, store
from fep.tasks.config import TasksConfig
from fep.tasks.service import CHAIN_FIRST_MAX, CHAIN_LAST_MAX, EVIDENCE_CHARS_MIN
from fep.tasks.state import FINAL, TRANSITIONS, Event, State
from fep.tasks.task import Refused
from fep.users.passwords import PASSWORD_CHARS_MAX
from fep.wire import jsonrpc
from tests.control.transcript import SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs/protocol.md"
TEXT = DOC.read_text("utf-8")
PROSE = re.sub(r"^```\w*\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)

BLOCK = re.compile(
    r"(<!-- made by tests/control/test_protocol_doc\.py: (?P<name>[\w -]+) -->\n)"
    r".*?(<!-- end (?P=name) -->)",
    re.DOTALL,
)
Row = list[str]


# -- reading the document --------------------------------------------------------------------------


def sections(level: str) -> dict[str, str]:
    """Return the text under each heading of a level, without deeper headings cut off."""
    parts = re.split(rf"^{level} (.+)$", PROSE, flags=re.MULTILINE)
    above = rf"^#{{1,{len(level) - 1}}} "
    return {
        name.strip("`"): re.split(above, text, maxsplit=1, flags=re.MULTILINE)[0]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def tables(text: str) -> dict[str, list[Row]]:
    """Return the rows of each table, by the first cell of its head."""
    found: dict[str, list[Row]] = {}
    rows: list[Row] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line[1:-1].split("|")])
        elif rows:
            head, _rule, *body = rows
            assert {len(row) for row in rows} == {len(head)}, head
            found.setdefault(head[0].strip("`"), []).extend(body)
            rows = []
    return found


def names(rows: list[Row]) -> list[str]:
    return [row[0].strip("`") for row in rows]


PARTS = sections("##")
SUBS = sections("###")
CLIENT_METHODS = {
    name: text
    for name, text in sections("###").items()
    if f"### `{name}`" in PARTS["What the client asks"]
}


def test_tables_and_sections_are_seen() -> None:
    shown = "x\n| a | b |\n|---|---|\n| `c` | 1 |\n\n| error | when |\n|---|---|\n| `D` | e |\n"
    assert tables(shown) == {"a": [["`c`", "1"]], "error": [["`D`", "e"]]}
    assert len(CLIENT_METHODS) > 20
    assert len(PARTS) > 8


# -- blocks that are made here ---------------------------------------------------------------------


def states_block() -> str:
    lines = ["| state | event | next state |", "|---|---|---|"]
    for state, row in TRANSITIONS.items():
        lines += [f"| `{state}` | `{event}` | `{after}` |" for event, after in row.items()]
        if not row:
            lines.append(f"| `{state}` | | (nothing follows) |")
    return "\n".join(lines)


def made(name: str) -> str:
    """Return what stands in a block."""
    if name == "states":
        return states_block()
    kind, _, script = name.partition(" ")
    assert kind == "script"
    return f"```text\n{SCRIPTS[script]}```"


def remade(text: str) -> str:
    return BLOCK.sub(lambda found: f"{found[1]}\n{made(found['name'])}\n\n{found[3]}", text)


def test_the_made_blocks_are_as_the_code_and_the_transcripts_are() -> None:
    new = remade(TEXT)
    if os.environ.get("FEP_WRITE_DOCS"):
        DOC.write_text(new, "utf-8")
    assert len(BLOCK.findall(TEXT)) >= 6
    assert new == DOC.read_text("utf-8")


def test_a_stale_block_is_seen() -> None:
    stale = TEXT.replace("| `fetched` | `send_begun` | `sending` |", "", 1)
    assert stale != TEXT
    assert remade(stale) == remade(TEXT)
    assert stale != remade(stale)


def test_every_transcript_is_listed_and_every_listed_one_is_there() -> None:
    rows = tables(PARTS["Transcripts"])["transcript"]
    shown = [re.fullmatch(r"\[([a-z-]+)\]\(\.\./tests/scripts/\1\.txt\)", row[0]) for row in rows]
    assert sorted(one[1] for one in shown if one) == sorted(SCRIPTS)


# -- states ----------------------------------------------------------------------------------------


def test_every_state_and_event_has_its_meaning() -> None:
    found = tables(SUBS["States"])
    rows = [row for row in found["state"] if len(row) == 4]
    assert names(rows) == [state.value for state in State]
    assert names(found["event"]) == [event.value for event in Event]
    told = {row[0].strip("`") for row in rows if row[3]}
    assert told == {state.value for state in FINAL}
    # Where money may have moved is from the first byte on, but for a certain "no".
    perhaps = {row[0].strip("`") for row in rows if row[2] != "no"}
    assert perhaps == {"sending", "accepted", "unknown", "succeeded", "returned"}


# -- methods ---------------------------------------------------------------------------------------


def test_every_method_has_a_section_and_every_section_a_method() -> None:
    assert list(CLIENT_METHODS) == list(METHODS)
    other = {name for name in SUBS if f"### `{name}`" in PARTS["What the daemon asks and tells"]}
    assert other == _sent_by_the_daemon() - {"session.heartbeat"}
    assert "Sent by: both" in CLIENT_METHODS["session.heartbeat"]


def _sent_by_the_daemon() -> set[str]:
    """Return the methods of the requests and notifications that the session sends."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(session))):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="request"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                found.add(name)
            case ast.Call(
                func=ast.Attribute(attr="notification"), args=[ast.Constant(value=str(name)), *_]
            ):
                found.add(name)
            case _:
                pass
    return found


@pytest.mark.parametrize(("name", "row"), METHODS.items())
def test_roles_are_as_in_the_code(name: str, row: Method) -> None:
    line = re.search(r"^Sent by: (client|both) · Roles: (.+)$", CLIENT_METHODS[name], re.MULTILINE)
    assert line is not None
    roles = [role.value for role in Role if role in row.roles]
    assert line[2] == ("all" if len(roles) == len(Role) else ", ".join(f"`{r}`" for r in roles))


def test_every_role_is_explained() -> None:
    assert names(tables(SUBS["Roles"])["role"]) == [role.value for role in Role]


TYPES = {
    msgspec.inspect.StrType: "string",
    msgspec.inspect.IntType: "integer",
    msgspec.inspect.FloatType: "number",
    msgspec.inspect.BoolType: "boolean",
    msgspec.inspect.EnumType: "string",
    msgspec.inspect.LiteralType: "string",
    msgspec.inspect.StructType: "object",
    msgspec.inspect.RawType: "object",
    msgspec.inspect.ListType: "list of objects",
}


def _kind_of(field: msgspec.inspect.Field) -> tuple[str, list[str]]:
    """Return the type's word, and the numbers and words its bounds consist of."""
    kind = field.type
    if isinstance(kind, msgspec.inspect.UnionType):
        (kind,) = (one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
    bounds = []
    for bound in ("gt", "ge", "lt", "le", "min_length", "max_length"):
        if (value := getattr(kind, bound, None)) is not None:
            bounds.append(f"{value:g}" if abs(value) < 1e6 else str(int(value)))
    if pattern := getattr(kind, "pattern", None):
        bounds += re.search(r"\{(\d+),(\d+)\}", pattern).groups()  # type: ignore[union-attr]
    if isinstance(kind, msgspec.inspect.LiteralType):
        bounds += [str(value) for value in kind.values]
    return TYPES[type(kind)], bounds


@pytest.mark.parametrize(("name", "row"), METHODS.items())
def test_parameters_are_as_in_the_code(name: str, row: Method) -> None:
    info = msgspec.inspect.type_info(row.params)
    assert isinstance(info, msgspec.inspect.StructType)
    assert info.forbid_unknown_fields
    shown = tables(CLIENT_METHODS[name]).get("parameter", [])
    assert ("No parameters." in CLIENT_METHODS[name]) == (shown == [])
    assert names(shown) == [field.name for field in info.fields]
    for field, (_name, kind, default, meaning) in zip(info.fields, shown, strict=True):
        type_, bounds = _kind_of(field)
        assert kind == type_
        if field.required:
            assert default == "required"
        elif field.default is None:
            assert default == "none"
        elif field.default is msgspec.NODEFAULT:
            assert json.loads(default.strip("`")) == field.default_factory()
        else:
            assert json.loads(default.strip("`")) == field.default
        for bound in bounds:
            assert re.search(rf"(?<![\w.]){re.escape(str(bound))}(?![\w.])", meaning), bound


@pytest.mark.parametrize(
    ("name", "method"), [(one, "request") for one in ("task.fetch", "task.result")]
)
def test_what_the_daemon_sends_has_the_members_that_are_shown(name: str, method: str) -> None:
    shown = set(names(tables(SUBS[name])["parameter"]))
    assert (
        shown
        == {
            "task.fetch": {"task_id", "attempt"},
            "task.result": set(_deliveries()),
        }[name]
    )
    source = inspect.getsource(session)
    assert f'jsonrpc.{method}(id_, "task.fetch", params)' in source


def _deliveries() -> dict[str, Any]:
    from fep.tasks.task import Delivery  # noqa: PLC0415

    line = session._result_line(1, Delivery(TaskId("T"), State.FAILED, None, "c", "m", "at"))
    found: dict[str, Any] = json.loads(line)["params"]
    return found


# -- errors ----------------------------------------------------------------------------------------

JSON_RPC = {
    str(code)
    for code in (
        jsonrpc.PARSE_ERROR,
        jsonrpc.INVALID_REQUEST,
        jsonrpc.METHOD_NOT_FOUND,
        jsonrpc.INVALID_PARAMS,
        jsonrpc.INTERNAL_ERROR,
    )
}
COMMON = {"NOT_PERMITTED", "STORE_FULL", "STORE_BUSY", "STORE_FAILED", "INTERNAL"}
RESERVED = {"LINK_UNAVAILABLE"}
"""In the contract, and not answered yet."""
INSIDE = {
    "FEP_ERROR": "the base class",
    "REMOTE_PROTOCOL": "a bank's fault; its link takes it",
    "LOCAL_PROTOCOL": "the base class of defects of ours",
    "ILLEGAL_TRANSITION": "a defect of ours",
    "LINK_LOST": "between link and lane",
    "NOTHING_SENT": "between link and lane",
    "BAD_BODY": "answered as -32602, or told as bank_code of a task's end",
    "BAD_CONFIG": "at the start only; a reload answers BAD_STATE with the faults",
    "KEY_FAULT": "never leaves fep.keys",
    "STORE_NEWER": "at the start only",
    "CANNOT_INSTALL": "of fep install-service",
    "STORE_SHARED": "of fep backup, restore and archive",
    "STORE_UNREADABLE": "of fep verify-store, backup, archive and replay",
    "NOT_SOUND": "of fep backup and restore",
    "STATE_HELD": "of fep restore and archive",
    "BACKUP_REFUSED": "of fep backup and restore",
    "ARCHIVE_CONFLICT": "of fep archive",
    "ARCHIVE_HELD": "of fep archive",
    "NO_REPLAY": "of fep replay",
    "NOT_VERIFIED": "on the console's page alone",
    "STORE_NOT_YET": "at the start only, and tried again",
}
"""Codes of errors that no session is answered with, and why not."""
OTHERS = ("fep.client", "fep.sandbox", "fep.control.ctl", "fep.control.show")
"""Not of the daemon: their errors are never sent."""


def _modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(fep.__path__, "fep."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def _classes(base: type[FepError]) -> Iterator[type[FepError]]:
    yield base
    for one in base.__subclasses__():
        yield from _classes(one)


def _named_codes(tree: ast.AST) -> Iterator[str]:
    """Yield the codes that are written where something is refused."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")[2]
        place = {"ProtocolRefusal": 0, "PoolRefusedError": 0, "Refused": 0, "refusal": 1}.get(
            called
        )
        if place is not None and len(node.args) > place:
            code = node.args[place]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                yield code.value


@cache
def every_code() -> set[str]:
    """Return every code of ours that a session can be answered with."""
    found = set(get_args(get_type_hints(Refused)["code"]))
    for module in _modules():
        if not module.__name__.startswith(OTHERS):
            found |= set(_named_codes(ast.parse(inspect.getsource(module))))
    for error in _classes(FepError):
        ours = error.__module__.startswith("fep.") and not error.__module__.startswith(OTHERS)
        if ours and not issubclass(error, KeySlotError):
            found.add(error.code)
    return (found | {KeySlotError.code}) - INSIDE.keys()


def test_codes_are_seen_where_they_are_written() -> None:
    shown = (
        'raise ProtocolRefusal("A", m)\njsonrpc.refusal(id_, "B", m)\nx = Refused("C", m)\nf("D")'
    )
    assert sorted(_named_codes(ast.parse(shown))) == ["A", "B", "C"]


def test_every_code_is_in_the_table_and_nothing_else() -> None:
    listed = names(tables(PARTS["Error codes"])["code"])
    assert len(listed) == len(set(listed))
    assert set(listed) - RESERVED == every_code()
    assert set(listed) >= RESERVED


def errors_of(text: str) -> list[str]:
    return names(tables(text).get("error", []))


def test_every_code_is_under_some_method_and_every_method_has_codes_that_are() -> None:
    common = errors_of(PARTS["Errors that every method can answer"])
    assert set(common) == JSON_RPC | COMMON
    used = set(common)
    for name, text in CLIENT_METHODS.items():
        found = errors_of(text)
        assert len(found) == len(set(found)), name
        assert set(found) <= every_code(), name
        used |= set(found)
    assert used - JSON_RPC == every_code()


def _raised_by(name: str, row: Method) -> set[str]:
    """Return the codes that a method's handler raises, and those that what it calls says of itself.

    A docstring's "Raises" names the codes of the refusals; the parts of ``Services`` say which
    class each call is of.
    """
    assert row.handle is not None
    source = inspect.getsource(row.handle)
    codes = set(_named_codes(ast.parse(source)))
    parts = get_type_hints(Services)
    for part, function in re.findall(r"services\.(\w+)\.(\w+)\(", source):
        codes |= _said(getattr(parts[part], function, None))
    if name == "config.apply":
        from fep.daemon.app import Daemon  # noqa: PLC0415

        codes |= _said(Daemon.apply)
    if "slot.unlock(" in source:
        codes.add(KeySlotError.code)
    return codes - COMMON.difference({"NOT_PERMITTED"})


def _said(function: Any) -> set[str]:
    _, _, raises = (inspect.getdoc(function) or "").partition("Raises:")
    return set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", raises))


@pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, row in METHODS.items() if row.handle is not None]
)
def test_the_errors_of_a_method_are_those_that_its_code_raises(name: str, row: Method) -> None:
    assert set(errors_of(CLIENT_METHODS[name])) == _raised_by(name, row)


def test_the_errors_of_task_submit_are_those_of_admission() -> None:
    functions = {
        node.name: node
        for name in ("service", "admission")
        for node in ast.walk(ast.parse((ROOT / f"fep/tasks/{name}.py").read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and not (name == "admission" and node.name == "submit")
    }
    codes: set[str] = set()
    for name in ("submit", "_limited", "_unacceptable", "_repeated", "_not_stored"):
        codes |= set(_named_codes(functions[name]))
    assert set(errors_of(CLIENT_METHODS["task.submit"])) == codes


def test_methods_that_the_session_answers_itself_have_its_errors() -> None:
    themselves = {name for name, row in METHODS.items() if row.handle is None}
    errors = {name: set(errors_of(CLIENT_METHODS[name])) for name in themselves - {"task.submit"}}
    with_errors = {name: codes for name, codes in errors.items() if codes}
    of_opening = {"NOT_PERMITTED", "STALE", "REPLAY", "LIMITED", "BAD_STATE", "STORE_AWAY"}
    assert with_errors == {"session.open": of_opening}
    written = set(_named_codes(ast.parse(inspect.getsource(session))))
    assert written == of_opening | {"KEY_UNAVAILABLE"}


# -- bodies and results ----------------------------------------------------------------------------

FULL: dict[Kind, dict[str, Any]] = {
    Kind.BALANCE: {"account": "6001"},
    Kind.POOL_SWEEP: {
        "parent": {"account": "6001"},
        "child": {"account": "6002"},
        "direction": "up",
        "amount": "0.01",
        "currency": "CNY",
    },
    Kind.TRANSFER: {
        "payer": {"account": "6001"},
        "payee": {
            "account": "6002",
            "name": "江枫样例制造有限公司",
            "bank_code": "307584007998",
            "bank_name": "平安银行",
            "kind": "personal",
        },
        "amount": "0.01",
        "currency": "CNY",
        "purpose": "货款",
        "urgency": "urgent",
    },
    Kind.BATCH_TRANSFER: {
        "payer": {"account": "6001"},
        "rows": [{"payee": {"account": "6002", "name": "云阶"}, "amount": "0.01"}],
        "currency": "CNY",
    },
    Kind.TRANSFER_STATUS: {"task_id": "T-1"},
    Kind.STATEMENT: {"account": "6001", "from": "2026-01-01", "to": "2026-04-10"},
    Kind.RETURNED_PAYMENTS: {"account": "6001", "from": "2026-01-01", "to": "2026-01-30"},
    Kind.BANK_CODE_LOOKUP: {"bank_class": "308", "keyword": "深圳"},
}
CANONICAL = set(order._PARSERS)


def flat(value: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, one in value.items():
        if isinstance(one, dict) and name != "counterparty":
            yield from flat(one, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def without(value: dict[str, Any], path: str) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    if rest:
        return value | {name: without(value[name], rest)}
    return {key: one for key, one in value.items() if key != name}


def with_member(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    name, _, rest = path.partition(".")
    return value | {name: with_member(value.get(name, {}), rest, new) if rest else new}


def test_every_kind_is_named_and_the_canonical_ones_have_a_section() -> None:
    shown = {name.removeprefix("Kind `") for name in SUBS if name.startswith("Kind `")}
    assert shown == {kind.value for kind in CANONICAL} == {kind.value for kind in FULL}
    assert all(f"`{kind}`" in PARTS["Bodies and results"] for kind in Kind)


@pytest.mark.parametrize("kind", FULL)
def test_bodies_have_the_members_that_are_shown(kind: Kind) -> None:
    rows = tables(SUBS[f"Kind `{kind.value}"])["body"]
    full = FULL[kind]
    parse_body(kind, full)
    assert sorted(names(rows)) == sorted(flat(full))
    for path, need in [(row[0].strip("`"), row[2]) for row in rows]:
        assert need in ("required", "optional")
        if need == "optional":
            parse_body(kind, without(full, path))
        else:
            with pytest.raises(BodyError, match="missing"):
                parse_body(kind, without(full, path))
        with pytest.raises(BodyError, match="not a known member"):
            parse_body(kind, with_member(full, f"{path.rpartition('.')[0]}.more".lstrip("."), 1))


@pytest.mark.parametrize(
    ("path", "greatest", "too_great"),
    [
        ("payee.name", "江" * 60, "江" * 61),
        ("payee.bank_name", "江" * 60, "江" * 61),
        ("purpose", "江" * 30, "江" * 31),
        ("payee.account", "9" * 35, "9" * 36),
        ("amount", "9999999999999.99", "10000000000000.00"),
        ("amount", "0.01", "0.00"),
    ],
)
def test_the_bounds_of_a_transfer_are_those_that_are_shown(
    path: str, greatest: str, too_great: str
) -> None:
    parse_body(Kind.TRANSFER, with_member(FULL[Kind.TRANSFER], path, greatest))
    with pytest.raises(BodyError):
        parse_body(Kind.TRANSFER, with_member(FULL[Kind.TRANSFER], path, too_great))
    assert f'`"0.01"` to `"{Cny(FEN_MAX - 1)}"`' in SUBS["Kind `transfer"]


def test_a_statement_covers_as_many_days_as_are_shown() -> None:
    full = FULL[Kind.STATEMENT]
    with pytest.raises(BodyError, match="100 days"):
        parse_body(Kind.STATEMENT, full | {"to": "2026-04-11"})
    assert "100 days" in SUBS["Kind `statement"]


NOW = dt.datetime(2026, 1, 5, 9, tzinfo=dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
REF = ClientRef("F" + "0" * 19)
A, T, ONE = AccountNumber("6001"), TaskId("T"), Cny(1)
RETURNED = order.PaymentState.RETURNED
BATCH = parse_body(Kind.BATCH_TRANSFER, FULL[Kind.BATCH_TRANSFER])
assert isinstance(BATCH, order.BatchOrder)
BATCH_END = order.BatchReceipt(REF, BATCH, {0: order.PaymentStatus(RETURNED)})
LEAST: dict[str, Any] = {
    "balance": order.Balance(A, ONE, ONE, NOW),
    "transfer": order.PaymentReceipt(REF, ONE),
    "batch_transfer": BATCH_END,
    "transfer_status": order.PaymentStatus(order.PaymentState.UNKNOWN),
    "statement": order.Statement(()),
    "returned_payments": order.ReturnedPayments(()),
    "bank_code_lookup": order.BankCodes(()),
}
MOST: dict[str, Any] = {
    "balance": order.Balance(A, ONE, ONE, NOW, held=ONE, status="normal"),
    "transfer": order.PaymentReceipt(REF, ONE, "R", "CNY", DAY, ONE, DAY),
    "batch_transfer": BATCH_END,
    "transfer_status": order.PaymentStatus(RETURNED, bank_ref="R", is_elsewhere=True),
    "statement": order.Statement(()),
    "returned_payments": order.ReturnedPayments(()),
    "bank_code_lookup": order.BankCodes(()),
}
ENTRY = order.StatementEntry("R", NOW, order.Direction.DEBIT, ONE)
FULL_ENTRY = attrs.evolve(ENTRY, client_ref=REF, balance_after=ONE, fee=True, reversal=True)


def check_object(text: str, table: str, least: dict[str, Any], most: dict[str, Any]) -> None:
    """Compare a table of members with the least and the most that the code makes."""
    rows = tables(text)[table]
    assert sorted(names(rows)) == sorted(most)
    assert {row[2] for row in rows} <= {"always", "optional"}
    assert {row[0].strip("`") for row in rows if row[2] == "always"} == least.keys()
    for name, kind, *_ in rows:
        value = most[name.strip("`")]
        assert _fits(kind, value), (name, kind, value)


def _fits(kind: str, value: Any) -> bool:
    """Say whether a value may be of the type that a table shows."""
    match kind:
        case "integer":
            return type(value) is int
        case "boolean":
            return type(value) is bool
        case "object":
            return value is None or isinstance(value, dict)
        case "list of objects":
            return isinstance(value, list)
        case "amount":
            return value is None or bool(re.fullmatch(r"-?\d+\.\d\d", value))
        case "time":
            return value is None or dt.datetime.fromisoformat(value).tzinfo is not None
        case "day":
            return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", value))
        case "string" | "account number" | "task id":
            return isinstance(value, str)
        case _:
            return False


@pytest.mark.parametrize("kind", LEAST)
def test_results_have_the_members_that_are_shown(kind: str) -> None:
    text = SUBS[f"Kind `{kind}"]
    check_object(text, "result", result_value(LEAST[kind]), result_value(MOST[kind]))


def test_the_entries_of_a_statement_have_the_members_that_are_shown() -> None:
    values = [
        result_value(order.Statement((entry,)))["entries"][0]  # type: ignore[index]
        for entry in (ENTRY, FULL_ENTRY)
    ]
    check_object(SUBS["Kind `statement"], "entry", *values)
    assert values[0]["counterparty"].keys() == {"account", "name"}


def test_the_rows_of_a_batch_have_the_members_that_are_shown() -> None:
    text = SUBS["Kind `batch_transfer"]
    full = {"payee": {}, "amount": "1.00", "purpose": "", "urgency": "normal"}
    rows = tables(text)["row"]
    assert sorted(names(rows)) == sorted(full)
    for name, need in [(row[0].strip("`"), row[2]) for row in rows]:
        member = FULL[Kind.TRANSFER][name]
        params = FULL[Kind.BATCH_TRANSFER]
        with_it = [params["rows"][0] | {name: member}]
        parse_body(Kind.BATCH_TRANSFER, params | {"rows": with_it})
        if need == "required":
            left = params | {"rows": [without(with_it[0], name)]}
            with pytest.raises(BodyError, match=rf"^rows\[0\]\.{name} is missing"):
                parse_body(Kind.BATCH_TRANSFER, left)
    most = order.PaymentStatus(RETURNED, "20", "done", "R", DAY, ONE, DAY)
    ends = [
        result_value(attrs.evolve(BATCH_END, rows={0: one}))["rows"][0]  # type: ignore[index]
        for one in (order.PaymentStatus(RETURNED), most)
    ]
    check_object(text, "row's end", *ends)
    assert f'"{Cny(FEN_MAX)}"' in text
    asked = result_value(order.BatchStatus({0: most}))
    assert asked.keys() == {"state", "rows"}
    elsewhere = result_value(order.BatchStatus({0: most}, is_elsewhere=True))
    assert elsewhere == asked | {"other_system": True}
    assert asked["rows"][0].keys() == ends[1].keys() - {"client_ref", "amount"}  # type: ignore[index]


def test_the_entries_of_look_ups_have_the_members_that_are_shown() -> None:
    least = order.ReturnedPayment("", "", ONE, None, None)
    most = order.ReturnedPayment(REF, "R", ONE, DAY, DAY, A, "N", "B", "why")
    values = [result_value(order.ReturnedPayments((one,))) for one in (least, most)]
    shown = [value["entries"][0] for value in values]  # type: ignore[index]
    check_object(SUBS["Kind `returned_payments"], "entry", *shown)
    assert shown[0]["payee"].keys() == {"account", "name", "bank_name"}
    code = result_value(order.BankCodes((order.BankCode("1", "N"),)))["entries"][0]  # type: ignore[index]
    check_object(SUBS["Kind `bank_code_lookup"], "entry", code, code)
    full = FULL[Kind.RETURNED_PAYMENTS]
    with pytest.raises(BodyError, match="30 days"):
        parse_body(Kind.RETURNED_PAYMENTS, full | {"to": "2026-01-31"})
    assert "30 days" in SUBS["Kind `returned_payments"]


def test_the_states_of_a_payment_are_those_that_are_shown() -> None:
    (row,) = (row for row in tables(SUBS["Kind `transfer_status"])["result"] if row[0] == "`state`")
    shown = re.findall(r'`"(\w+)"`', row[3])
    assert set(shown) == {state.value for state in order.PaymentState}


# -- objects ---------------------------------------------------------------------------------------


def _row(**more: Any) -> Any:
    nothing = dict.fromkeys(("result", "client_ref", "sent_at", "inquire_at", "archived"))
    texts = ("task_id", "client", "bank", "kind", "state", "bank_code", "bank_message", "bank_ref")
    times = dict.fromkeys(("submitted_at", "expires_at", "updated_at"), "2026-01-05T09:00:00+00:00")
    numbers = dict.fromkeys(("priority", "offers", "delivery"), 0)
    columns = {**nothing, **dict.fromkeys(texts, ""), **times, **numbers}
    return SimpleNamespace(**{**columns, **more})


def test_a_task_has_the_members_that_are_shown() -> None:
    at = "2026-01-05T09:00:00.000+00:00"
    sent = {"client_ref": REF, "sent_at": at, "bank_ref": "R", "result": b"{}", "archived": "2025"}
    full = _row(state="unknown", inquire_at=at, **sent)
    check_object(SUBS["A task"], "task", store._view(_row()), store._view(full))


def _snapshot(kind: type[Any], **values: Any) -> dict[str, Any]:
    found = commands.plain(kind(**values))
    assert found.keys() == {one.name for one in attrs.fields(kind)}
    return found


def test_slots_and_links_have_the_members_that_are_shown() -> None:
    from fep.keys.state import SlotState  # noqa: PLC0415
    from fep.links.state import LinkState  # noqa: PLC0415

    slot = _snapshot(
        SlotSnapshot,
        name=SlotName("s"),
        backend="pcsc",
        state=SlotState.READY,
        reader="",
        generation=1,
        guid="",
        certificate_sha256="",
        not_after=NOW,
        detail="",
    )
    check_object(SUBS["A key slot"], "slot", slot, slot)
    link = _snapshot(
        LinkSnapshot,
        bank=BankName("b"),
        peer="h:1",
        state=LinkState.READY,
        since=NOW,
        is_open=True,
        failures=0,
        last_failure="",
        last_reply_at=None,
        requests=0,
        unmatched=0,
        in_flight=0,
        connections=1,
        connections_ready=1,
    ) | {"drained": False}
    check_object(SUBS["A link"], "link", link, link)
    source = inspect.getsource(METHODS["link.list"].handle)  # type: ignore[arg-type]
    assert set(re.findall(r'\{"(\w+)": lanes|, "(\w+)": lanes', source)) == {
        ("drained", ""),
        ("", "in_flight"),
    }


def test_an_alarm_has_the_members_that_are_shown() -> None:
    alarm = Alarm("0" * 12, AlarmKind.KEY_MISSING, "s", "c", NOW, NOW)
    least = alarm.value()
    alarm.acknowledge("li.na", NOW)
    alarm.clear(NOW)
    check_object(SUBS["An alarm"], "alarm", least, alarm.value())
    rows = {row[0].strip("`"): row[3] for row in tables(SUBS["An alarm"])["alarm"]}
    assert re.findall(r"`(\w+)`", rows["state"]) == [state.value for state in AlarmState]
    assert re.findall(r"`(\w+)`", rows["severity"]) == [one.value for one in Severity]


def test_a_channel_has_the_members_that_are_shown() -> None:
    target = SyslogTarget("udp")
    config = ChannelConfig("a", ChannelKind.SYSLOG, target)
    box = Outbox(config, AlarmsConfig(), random.Random(1), str)
    least = shown(box.status())
    box.note_success(NOW)
    box.note_refusal(NOW, "x")
    check_object(SUBS["A channel"], "channel", least, shown(box.status()))
    rows = {row[0].strip("`"): row[3] for row in tables(SUBS["A channel"])["channel"]}
    assert {one.value for one in ChannelKind} == set(re.findall(r"`(\w+)`", rows["kind"]))
    assert {one.value for one in ChannelState} == set(re.findall(r"`(\w+)`", rows["state"]))


def test_a_round_has_the_members_that_are_shown() -> None:
    item = Item(A, BankName("b"), T, T, ONE)
    one = Round("r", "p", "k", NOW, plan_only=False, note="", items=[item])
    check_object(SUBS["A round of a pool"], "round", one.value(), one.value())
    check_object(SUBS["A round of a pool"], "item", item.value(), item.value())
    text = SUBS["A round of a pool"]
    assert all(f"`{state}`" in text for state in [*ItemState, *RoundState])


def test_an_event_of_a_task_has_the_members_that_are_shown() -> None:
    tree = ast.parse(inspect.getsource(store.why))
    keys = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    }
    rows = tables(SUBS["An event of a task"])["event"]
    assert set(names(rows)) == keys
    assert {row[0].strip("`") for row in rows if row[2] == "optional"} == {"digest", "detail"}


# -- limits ----------------------------------------------------------------------------------------

LIMITED = (jsonrpc, commands, session, asked, service, share, control_proof, ids, order, lane)
ELSEWHERE = {
    "FOLLOWERS_MAX": FOLLOWERS_MAX,
    "AUDIT_LIMIT_MAX": AUDIT_LIMIT_MAX,
    "PASSWORD_CHARS_MAX": PASSWORD_CHARS_MAX,
}
NOT_SHOWN = {
    "CLIENT_REF_CHARS",
    "PROBE_SECONDS_MAX",
    "NONCES_MAX",
    "PRIORITY_MAX",
    "PIN_CHARS_MAX",
    "PAGE_BYTES_MAX",
    # How a lane works at its bank: nothing that a client can meet.
    "OFFERS_OUTSTANDING_MAX",
    "QUERY_ATTEMPTS_MAX",
    "STATEMENT_PAGES_MAX",
    "LATE_ANSWERS_MAX",
}
"""Limits told elsewhere in the document, or of no interest on the wire."""


def limits() -> dict[str, float]:
    """Return the named limits of what a client meets; names of two modules: the later one."""
    found: dict[str, float] = dict(ELSEWHERE)
    for module in LIMITED:
        own = {
            target.id
            for node in ast.parse(inspect.getsource(module)).body
            if isinstance(node, ast.AnnAssign | ast.Assign)
            for assigned in (node.targets if isinstance(node, ast.Assign) else [node.target])
            for target in (assigned.elts if isinstance(assigned, ast.Tuple) else [assigned])
            if isinstance(target, ast.Name)
        }
        found |= {
            name: getattr(module, name)
            for name in own
            if isinstance(getattr(module, name), int | float)
        }
    return found


def test_limits_are_as_in_the_code() -> None:
    shown = {row[0].strip("`"): float(row[1]) for row in tables(PARTS["Limits"])["name"]}
    real = limits()
    assert {name: real.get(name) for name in shown} == shown
    missing = {name for name in real if name.endswith("_MAX")} - shown.keys() - NOT_SHOWN
    assert sorted(missing) == []


def test_configured_limits_are_as_in_the_code() -> None:
    defaults = {
        f"{section}.{field.name}": field.default
        for section, config in (
            ("tasks", TasksConfig),
            ("control", ControlConfig),
            ("control.limits", Limits),
        )
        for field in attrs.fields(config)
    }
    shown = {row[0].strip("`"): float(row[1]) for row in tables(PARTS["Limits"])["key"]}
    assert {name: defaults[name] for name in shown} == shown
    assert {name for name in defaults if name.startswith("tasks.")} <= shown.keys()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("Lines", f"{jsonrpc.LINE_BYTES_MAX} bytes"),
        ("The session", f"within {session.OPEN_SECONDS_MAX:g} seconds"),
        ("Connections", f"{service.CONNECTIONS_MAX} sessions, and for {service.UNOPENED_MAX}"),
        ("The session", f"must end within {session.LINE_SECONDS_MAX:g} seconds"),
        ("The session", f"more than {control_proof.WINDOW_MS // 1000} seconds from the daemon's"),
        ("Connections", f"{share.UNCOMMITTED_TASKS_MAX} submissions of one client wait"),
        ("The session", f"{session.OUTBOX_BYTES_MAX // 2**20} MiB wait for it"),
        ("The session", f"{session.WRITE_BYTES // 2**10} KiB in {session.WRITE_SECONDS_MAX:g} seconds"),
        ("The life of a task", f"told again after {session.RESULT_AGAIN_SECONDS:g} seconds"),
        ("The life of a task", f"`tasks.fetch_timeout_s`, {TasksConfig().fetch_timeout_s:g} seconds"),
        ("The life of a task", f"At most {TasksConfig().result_window} bodies"),
        ("What the client asks", f"at least {EVIDENCE_CHARS_MIN} and at most"),
        ("What the client asks", f"after the first {CHAIN_FIRST_MAX}, before the last {CHAIN_LAST_MAX}"),
        ("What the client asks", f"after {PLAN_SECONDS_MAX:g} seconds"),
        ("What the client asks", f"that begin with `{session.OWN_PREFIX}`"),
        ("What the daemon asks and tells", f"At most {FOLLOWERS_MAX} sessions follow"),
        ("Bodies and results", f"{lane.STATEMENT_ENTRIES_MAX} entries, {lane.STATEMENT_BYTES_MAX} bytes"),
    ],
)  # fmt: skip
def test_numbers_in_the_text_are_as_in_the_code(section: str, words: str) -> None:
    assert words in re.sub(r"\s+", " ", PARTS[section])


def test_the_text_says_how_often_a_query_is_asked() -> None:
    assert lane.QUERY_ATTEMPTS_MAX == 5
    assert "up to five times" in PARTS["The life of a task"]
    assert session.SILENCE_HEARTBEATS == 3
    assert "Silence for three times" in PARTS["The session"]


def test_what_the_session_tells_at_its_opening_is_shown() -> None:
    tree = ast.parse(inspect.getsource(session))
    (welcome,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "_welcome"
    )
    keys = [
        key.value
        for node in ast.walk(welcome)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    assert names(tables(CLIENT_METHODS["session.open"])["result"]) == keys
