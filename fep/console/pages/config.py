"""The administrator's page (管理员界面): the configuration, its drafts and its versions.

Every change goes the same way: a form makes a draft, the draft is shown with its faults, its
difference and the banks it touches, can be tried, and is then taken into force for a time, in
which somebody confirms it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import trio
from starlette.responses import Response

from fep.adapters import registry
from fep.adapters.api import BankAdapter
from fep.adapters.forms import Field, fields_of
from fep.console.desk import ADMIN, Visit, need
from fep.console.drafts import Draft
from fep.console.pages.page import GET, POST, Page, text_of
from fep.control.commands import ProtocolRefusal
from fep.control.config_commands import ACCOUNTS_MAX, NOTE_CHARS_MAX, TEXT_CHARS_MAX
from fep.domain.clock import to_shanghai
from fep.store.audit import Doer

VERSIONS_SHOWN: Final = 30
CONFIRM_SECONDS: Final = (300, 60, 900, 3600, 0)
"""How long a version may be in force unconfirmed; 0: it stays. The first is offered."""
NEW: Final = ""
TEXTS_KEPT: Final = 4

_KEYS: Final[Mapping[str, type]] = {
    "name": str,
    "adapter": str,
    "class": str,
    "version": str,
    "direct_connect_number": str,
    "host": str,
    "port": int,
    "slot": str,
    "workers": int,
    "heartbeat_s": float,
    "reply_timeout_s": float,
}
"""The fields every bank has (FEP-13 to FEP-19), and of which kind each is."""
_PLACES: Final = {"file", "credential"}


# -- the page ------------------------------------------------------------------------------------


async def _values(visit: Visit) -> dict[str, Any]:
    shown = await visit.ask("config.draft")
    versions = await visit.ask("config.versions", limit=VERSIONS_SHOWN)
    table = _table(shown["text"])
    accounts = [one.get("bank") for one in _rows(table, "account")]
    banks = [
        {**{key: one.get(key, "") for key in _KEYS}, "accounts": accounts.count(one.get("name"))}
        for one in _rows(table, "bank")
    ]
    return {
        "shown": shown,
        "enterprise": table.get("enterprise", {}),
        "banks": banks,
        "versions": versions["versions"],
        "pending": versions.get("pending"),
        "in_force": versions["in_force"],
    }


async def _pending(visit: Visit) -> dict[str, Any]:
    versions = await visit.ask("config.versions", limit=1)
    links = (await visit.ask("link.list"))["links"]
    return {"pending": versions.get("pending"), "links": links}


@need(roles=ADMIN)
async def show(visit: Visit) -> Response:
    """Show the configuration; for htmx how the version to be confirmed does."""
    if "live" in visit.request.query_params:
        return visit.piece("config_pending.html", **await _pending(visit))
    adapters = (await visit.ask("config.adapters"))["adapters"]
    links = (await visit.ask("link.list"))["links"]
    return visit.page("config.html", **await _values(visit), adapters=adapters, links=links)


@need(roles=ADMIN)
async def download(visit: Visit) -> Response:
    """Return the file, or one of its versions, for keeping elsewhere."""
    number = visit.request.query_params.get("version", "")
    caller = visit.caller
    if number:
        found = await visit.ask("config.version", version=_number(number))
        name = f"fep-version-{found['version']}.toml"
    else:
        found = await visit.ask("config.draft")
        name = f"fep-{to_shanghai(visit.desk.services.clock.now()):%Y%m%d-%H%M%S}.toml"
    doer = Doer(caller.name, caller.role.value, caller.origin)
    about = {"digest": found["digest"]}
    await visit.desk.services.audit.recorded(doer, "config.export", about, trio.lowlevel.checkpoint)
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(found["text"], media_type="application/toml", headers=headers)


# -- one bank ------------------------------------------------------------------------------------


@need(roles=ADMIN)
async def bank(visit: Visit) -> Response:
    """Show the form of a bank, or of a new one of an adapter."""
    query = visit.request.query_params
    table = _table((await visit.ask("config.draft"))["text"])
    name = query.get("name", NEW)
    if name == NEW:
        adapter = await _adapter(query.get("adapter", ""))
        given: dict[str, Any] = {
            "adapter": adapter.name,
            "version": adapter.version,
            "workers": 4,
            "host": "",
        }
        return await _form(visit, table, NEW, _texts(given, fields_of(adapter.options_class)))
    found = next((one for one in _rows(table, "bank") if one.get("name") == name), None)
    if found is None:
        raise ProtocolRefusal("NOT_FOUND", name)
    adapter = await _adapter(str(found.get("adapter")))
    texts = _texts(found, fields_of(adapter.options_class))
    texts["accounts"] = "\n".join(
        ", ".join(
            str(one.get(key, "")) for key in ("number", "name", "bank_code", "bank_title")
        ).rstrip(", ")
        for one in _rows(table, "account")
        if one.get("bank") == name
    )
    return await _form(visit, table, name, texts)


@need(roles=ADMIN)
async def put_bank(visit: Visit) -> Response:
    """Make a draft of a bank's form; with faults the form comes again."""
    form = await visit.form()
    texts = {key: value for key, value in form.items() if isinstance(value, str) and key != "csrf"}
    was = texts.get("was", NEW)
    adapter = await _adapter(texts.get("adapter", ""))
    fields = fields_of(adapter.options_class)
    table = _table((await visit.ask("config.draft"))["text"])
    present = next((one for one in _rows(table, "bank") if one.get("name") == was), {})
    edit = {
        "edit": "bank",
        "was": was or None,
        "values": _bank_of(texts, fields, adapter.secret_names, present),
        "accounts": _accounts_of(texts.get("accounts", "")),
    }
    shown = await visit.ask("config.draft", edits=[edit])
    name = texts.get("name", "").strip()
    if shown["faults"]:
        return await _form(visit, table, was, texts, shown)
    why = f"{name}: {visit.t('a new bank')}" if was == NEW else name
    return _review(visit, shown, why)


async def _form(
    visit: Visit,
    table: Mapping[str, Any],
    was: str,
    texts: Mapping[str, str],
    shown: Mapping[str, Any] | None = None,
) -> Response:
    adapter = await _adapter(texts["adapter"])
    wrong, others = ({}, []) if shown is None else _faults(shown, texts.get("name", ""))
    wrong = {key: [_worded(visit, one) for one in told] for key, told in wrong.items()}
    return visit.page(
        "config_bank.html",
        200 if shown is None else 422,
        was=was,
        texts=texts,
        title=adapter.title,
        protocol=adapter.card.transport.protocol.value,
        fields=fields_of(adapter.options_class),
        secrets=sorted(adapter.secret_names),
        slots=[str(one.get("name", "")) for one in _rows(table, "slot")],
        needs_slot="store" not in table,
        wrong=wrong,
        others=others,
    )


@need(roles=ADMIN)
async def remove_bank(visit: Visit) -> Response:
    """Make a draft without a bank."""
    form = await visit.form()
    name = text_of(form, "name")
    shown = await visit.ask("config.draft", edits=[{"edit": "remove_bank", "bank": name}])
    return _review(visit, shown, f"{name}: {visit.t('removed')}")


@need(roles=ADMIN)
async def put_enterprise(visit: Visit) -> Response:
    """Make a draft with another enterprise id or front-end number."""
    form = await visit.form()
    edit = {
        "edit": "enterprise",
        "id": text_of(form, "id"),
        "fep_number": text_of(form, "fep_number"),
    }
    shown = await visit.ask("config.draft", edits=[edit])
    return _review(visit, shown, visit.t("Enterprise"))


# -- the whole text ------------------------------------------------------------------------------


@need(roles=ADMIN)
async def text(visit: Visit) -> Response:
    """Show the file, or an earlier version, as text that can be changed."""
    number = visit.request.query_params.get("version", "")
    if number:
        found = await visit.ask("config.version", version=_number(number))
    else:
        found = await visit.ask("config.draft")
    return visit.page("config_text.html", text=found["text"], shown=None)


@need(roles=ADMIN)
async def put_text(visit: Visit) -> Response:
    """Make a draft of a whole text; with faults the text comes again."""
    form = await visit.form()
    given = form.get("text")
    whole = given.replace("\r\n", "\n") if isinstance(given, str) else ""
    shown = await visit.ask("config.draft", text=whole[: TEXT_CHARS_MAX + 1])
    if shown["faults"]:
        return visit.page("config_text.html", 422, text=whole, shown=shown)
    return _review(visit, shown, text_of(form, "why", NOTE_CHARS_MAX))


# -- a draft, and taking it into force -----------------------------------------------------------


def _review(
    visit: Visit, shown: dict[str, Any], why: str, tried: dict[str, Any] | None = None
) -> Response:
    assert visit.person is not None
    draft = visit.desk.drafts.keep(visit.person.session, shown, why)
    return _reviewed(visit, draft, tried)


def _orphaned(draft: Draft) -> int:
    """Return how many open tasks the banks have that are taken out."""
    if draft.shown["faults"]:
        return 0
    changes = draft.shown["changes"]
    return sum(sum(changes["open"].get(bank, {}).values()) for bank in changes["removed"])


def _reviewed(
    visit: Visit, draft: Draft, tried: dict[str, Any] | None = None, *, is_unsure: bool = False
) -> Response:
    return visit.page(
        "config_review.html",
        422 if draft.shown["faults"] or is_unsure else 200,
        draft=draft,
        shown=draft.shown,
        tried=tried,
        confirm=CONFIRM_SECONDS,
        orphaned=_orphaned(draft),
    )


async def _draft_of(visit: Visit) -> tuple[Any, Draft]:
    form = await visit.form()
    assert visit.person is not None
    found = visit.desk.drafts.find(visit.person.session, text_of(form, "draft"))
    if found is None:
        raise ProtocolRefusal("NOT_FOUND", visit.t("The draft is gone; begin it anew"))
    return form, found


@need(roles=ADMIN)
async def test(visit: Visit) -> Response:
    """Try whether a bank of a draft can be reached."""
    form, draft = await _draft_of(visit)
    tried = await visit.ask("config.try", text=draft.shown["text"], bank=text_of(form, "bank"))
    return _reviewed(visit, draft, tried)


@need(roles=ADMIN)
async def apply(visit: Visit) -> Response:
    """Take a draft into force."""
    form, draft = await _draft_of(visit)
    if _orphaned(draft) and text_of(form, "sure") != "yes":
        return _reviewed(visit, draft, is_unsure=True)
    seconds = text_of(form, "confirm_s")
    done = await visit.ask(
        "config.save",
        text=draft.shown["text"],
        base=draft.shown["base"],
        note=text_of(form, "note", NOTE_CHARS_MAX),
        confirm_s=float(seconds) if seconds.isdigit() and int(seconds) else None,
    )
    visit.desk.drafts.drop(draft)
    return visit.done("/config", "Version {version} is in force", version=str(done["version"]))


@need(roles=ADMIN)
async def confirm(visit: Visit) -> Response:
    """Keep the version that is in force for a time."""
    number = _number(text_of(await visit.form(), "version"))
    await visit.ask("config.confirm", version=number)
    return visit.done("/config", "Version {version} stays in force", version=str(number))


@need(roles=ADMIN)
async def take_back(visit: Visit) -> Response:
    """Bring back the version before the one that waits to be confirmed."""
    number = _number(text_of(await visit.form(), "version"))
    await visit.ask("config.rollback", version=number)
    return visit.done("/config", "Version {version} is in force again", version=str(number))


@need(roles=ADMIN)
async def version(visit: Visit) -> Response:
    """Show one version, and how it differs from the file."""
    number = _number(visit.request.path_params["number"])
    return visit.page("config_version.html", one=await visit.ask("config.version", version=number))


@need(roles=ADMIN)
async def bring_back(visit: Visit) -> Response:
    """Make a draft of an earlier version."""
    number = _number(visit.request.path_params["number"])
    found = await visit.ask("config.version", version=number)
    shown = await visit.ask("config.draft", text=found["text"])
    return _review(visit, shown, visit.t("back to version {version}", version=number))


# -- forms and tables ----------------------------------------------------------------------------


@lru_cache(TEXTS_KEPT)
def _table(text: str) -> Mapping[str, Any]:
    """Return what a text says; with a thousand accounts reading it takes 30 ms."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        return {}  # its faults are shown; the text can be changed


def _rows(table: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = table.get(name, [])
    return [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []


async def _adapter(name: str) -> BankAdapter:
    try:
        # The first time its package is loaded.
        return await trio.to_thread.run_sync(registry.adapter, name)
    except (registry.UnknownAdapterError, registry.BrokenAdapterError) as error:
        raise ProtocolRefusal("NOT_FOUND", str(error.args[0])) from error


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or not int(text):
        raise ProtocolRefusal("NOT_FOUND", text[:40])
    return int(text)


def _texts(given: Mapping[str, Any], fields: tuple[Field, ...]) -> dict[str, str]:
    """Return a bank's table as a form shows it."""
    texts = {key: "" if given.get(key) is None else str(given[key]) for key in _KEYS}
    options, secrets = given.get("options", {}), given.get("secrets", {})
    for one in fields:
        value = options.get(one.name, one.default) if isinstance(options, dict) else one.default
        texts[f"o.{one.name}"] = one.text_of(value)
    for name, place in secrets.items() if isinstance(secrets, dict) else ():
        for how in _PLACES:
            if isinstance(place, dict) and how in place:
                texts[f"s.{name}.how"], texts[f"s.{name}"] = how, str(place[how])
    return texts


def _bank_of(
    texts: Mapping[str, str],
    fields: tuple[Field, ...],
    secret_names: frozenset[str],
    present: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a form says of a bank's table; what the form does not know stays."""
    values: dict[str, Any] = {key: _value(texts.get(key, ""), kind) for key, kind in _KEYS.items()}
    kept = present.get("options", {})
    names = {one.name for one in fields}
    options = {key: one for key, one in dict(kept).items() if key not in names}
    for one in fields:
        value = one.value_of(texts.get(f"o.{one.name}", "").replace("\r\n", "\n").strip())
        written = one.name in kept and kept[one.name] == one.default
        if value is not None or written:
            # What the file says by itself stays, also where it is what would be taken anyway.
            options[one.name] = one.default if value is None else value
    secrets = {}
    for name in sorted(secret_names):
        how = texts.get(f"s.{name}.how", "")
        if where := texts.get(f"s.{name}", "").strip():
            secrets[name] = {how if how in _PLACES else "file": where}
    inner = {"options": options, "secrets": secrets}
    # A table that is empty in the file already may stay.
    return values | {key: one if one or key in present else None for key, one in inner.items()}


def _value(text: str, kind: type) -> Any:  # noqa: ANN401 - a value of TOML
    """Return a form's text as TOML has it; what is no number stays text, and is told as a fault."""
    text = text.strip()
    if not text:
        return None
    if kind is str:
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() and (kind is int or "." not in text) else number


def _accounts_of(text: str) -> list[dict[str, str]]:
    """Return the accounts of a list with one a line: number, name, CNAPS code, bank's name."""
    rows = []
    for line in text.splitlines()[: ACCOUNTS_MAX + 1]:
        if not line.strip():
            continue
        parts = [one.strip() for one in re.split(r"\t" if "\t" in line else r"[,，]", line)]
        names = ("number", "name", "bank_code", "bank_title")
        rows.append(dict(zip(names, [*parts, "", "", ""][:4], strict=True)))
    return rows


def _worded(visit: Visit, told: str) -> str:
    """Return a fault of the file in the words of a form; what is rare stays as it is."""
    before, _, said = told.rpartition(": ")
    if said == "is missing" or said.endswith("must be text in quotes, not empty"):
        said = visit.t("must not be empty")
    elif said.endswith(" is there twice"):
        said = visit.t("is there twice")
    return f"{before}: {said}" if before else said


def _faults(
    shown: Mapping[str, Any], name: str
) -> tuple[dict[str, list[str]], list[Mapping[str, Any]]]:
    """Return the faults of a bank's fields by the form's names, and the others."""
    table = _table(shown["text"])
    places = [place for place, one in enumerate(_rows(table, "bank")) if one.get("name") == name]
    rows = _rows(table, "account")
    mine = [str(place) for place, one in enumerate(rows) if one.get("bank") == name]
    wrong: dict[str, list[str]] = {}
    others = []
    for fault in shown["faults"]:
        match fault["key"].split("."):
            case ["bank", index, key] if key in _KEYS and index in map(str, places):
                wrong.setdefault(key, []).append(fault["message"])
            case ["bank", index, "options", key, *_] if index in map(str, places):
                wrong.setdefault(f"o.{key}", []).append(fault["message"])
            case ["bank", index, "secrets", *_] if index in map(str, places):
                wrong.setdefault("secrets", []).append(fault["message"])
            case ["account", index, *_] if index in mine:
                # In the file they may stand in another order than in the form.
                number = rows[int(index)].get("number", "")
                wrong.setdefault("accounts", []).append(f"{number}: {fault['message']}")
            case _:
                others.append(fault)
    return wrong, others


PAGE: Final = Page(
    routes=(
        ("/config", show, GET),
        ("/config/file", download, GET),
        ("/config/bank", bank, GET),
        ("/config/bank", put_bank, POST),
        ("/config/remove", remove_bank, POST),
        ("/config/enterprise", put_enterprise, POST),
        ("/config/text", text, GET),
        ("/config/text", put_text, POST),
        ("/config/test", test, POST),
        ("/config/apply", apply, POST),
        ("/config/confirm", confirm, POST),
        ("/config/take-back", take_back, POST),
        ("/config/versions/{number}", version, GET),
        ("/config/versions/{number}", bring_back, POST),
    ),
    path="/config",
    title="Configuration",
    key="f",
    roles=ADMIN,
)
