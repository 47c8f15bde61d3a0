"""The ``[[bank]]`` tables: the adapter, its card with the bank's changes, its options, the link."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import cattrs

from fep.adapters import card as cards
from fep.adapters import registry, strict
from fep.adapters.api import BankAdapter, BankProfile
from fep.adapters.card import (
    BehaviourCard,
    Codes,
    Dedupe,
    Identity,
    Inquiry,
    NoRecord,
    Protocol,
    States,
    Transport,
)
from fep.adapters.files import FileCodec
from fep.daemon.tables import Table, hint
from fep.domain.account import Account
from fep.domain.errors import ConfigError
from fep.domain.ids import AccountNumber, BankName, SlotName, parse_name
from fep.keys.config import SecretRef
from fep.keys.credentials import read_text
from fep.links.config import CONNECTIONS_MAX, Folders, LinkConfig
from fep.links.liveness import DEAD_FACTOR

BANKS_MAX: Final = 256
WORKERS_MAX: Final = 64
SPAN_SECONDS_MAX: Final = 3600.0
SYSTEM_DIGITS: Final = 16
WATCH_DAYS_MAX: Final = 90
"""A look asks the statement back to the day of the payment, and a statement covers 100 days."""
KEPT_DAYS_MAX: Final = 366
FRAME_BYTES_MIN: Final = 1024
FRAME_BYTES_MAX: Final = 256 * 1024 * 1024
_TIME_OF_DAY: Final = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")
BLANK: Final = BehaviourCard(Identity("", ""), Dedupe("", 0))
"""Stands for the card of a bank whose own is faulty, so that the rest is checked all the same."""


@attrs.frozen
class BankConfig:
    """One ``[[bank]]``: the bank's front-end machine and how we speak to it."""

    name: BankName
    adapter: BankAdapter
    card: BehaviourCard
    """The adapter's card with the bank's own ``card`` table laid over it."""
    options: Any
    """An instance of the adapter's options class."""
    bank_class: str
    """银行大类."""
    version: str
    """银行端前置机的版本号."""
    direct_connect_number: str
    """银企直联编号."""
    link: LinkConfig
    slot: SlotName | None
    """None: another of the machines that share the store has the bank's key."""
    workers: int
    """线程数: requests worked on at once."""
    digest: str
    """Of this bank's own part of the file: what decides whether a reload touches it."""
    secrets: Mapping[str, SecretRef] = attrs.Factory(dict)
    """Where the adapter's secrets are, by their names."""
    written_options: Mapping[str, Any] = attrs.Factory(dict)
    """As they are in the file: a new release's defaults make no other system of it."""
    tape: bool = False
    """All bytes to and from the bank are written to a file."""

    def system(self, *, shared: bool) -> str:
        """Return which system this is: a digest of the adapter, its options and the address.

        What was sent to another one is not unsent because this one has no record of it.

        Args:
            shared: several machines share the store, and each may reach the bank by an address of
                its own, which does not count then.
        """
        where = "" if shared else self.link.peer
        written = sorted(self.written_options.items())
        told = repr((self.adapter.name, self.direct_connect_number, written, where))
        return hashlib.sha256(told.encode()).hexdigest()[:SYSTEM_DIGITS]

    def profile(
        self, accounts: Mapping[AccountNumber, Account], secrets: Mapping[str, str] | None = None
    ) -> BankProfile:
        """Return what the adapter makes its codec from; without secrets it can't send."""
        return BankProfile(
            bank=self.name,
            card=self.card,
            options=self.options,
            direct_connect_number=self.direct_connect_number,
            accounts=accounts,
            peer=self.link.peer,
            secrets=secrets or {},
        )

    def read_secrets(self) -> dict[str, str]:
        """Return the adapter's secrets.

        Raises:
            KeyFileError, ConfigError: one can't be read.
        """
        return {name: read_text(reference) for name, reference in self.secrets.items()}


Secrets = Callable[[Table | None], SecretRef | None]


def read_banks(
    top: Table, slots: frozenset[str], secret: Secrets, *, shared: bool
) -> tuple[tuple[BankConfig, ...], frozenset[str], dict[BankName, Table]]:
    """Return the banks that can be used, the names of all, and each one's table.

    Args:
        top: the whole file.
        slots: the names of all slots, faulty ones too.
        secret: reads a table that says where a secret is.
        shared: other machines share the store; only then a bank may have no slot here.
    """
    found: dict[BankName, BankConfig] = {}
    names: dict[str, Table] = {}
    find = functools.cache(_adapter)  # each look through what is installed takes 10 ms
    for table in top.tables("bank", BANKS_MAX):
        name = table.parsed("name", lambda text: parse_name(text, "a bank's name")) or ""
        if name and name in names:
            table.fault("name", f"bank {name!r} is there twice")
        # A wrong name is one all the same, and a bank without one may be the one that is meant.
        names[name or table.written("name")] = table
        bank = _bank(table, BankName(name), slots, secret, find, shared=shared)
        if bank is not None:
            found.setdefault(bank.name, bank)
    tables = {BankName(name): table for name, table in names.items()}
    return tuple(found.values()), frozenset(names), tables


def _bank(
    table: Table,
    name: BankName,
    slots: frozenset[str],
    secret: Secrets,
    find: Callable[[str], BankAdapter],
    *,
    shared: bool,
) -> BankConfig | None:
    adapter = table.parsed("adapter", find)
    bank_class = table.text("class")
    version = table.text("version", "")
    number = table.text("direct_connect_number")
    slot = table.text("slot", "" if shared else None)
    if slot and slot not in slots and "" not in slots:
        table.fault("slot", f"there is no [[slot]] named {slot!r}{hint(slot, slots)}")
    workers = table.integer("workers", 4, 1, WORKERS_MAX)
    tape = table.flag("tape")
    options, changes = table.free("options"), table.free("card")
    secrets = _secrets(table, adapter, secret)
    card, wire, made = BLANK, None, None
    if adapter is not None:
        if version and version != adapter.version:
            table.fault("version", f"adapter {adapter.name} speaks version {adapter.version}")
        card = _card(table, adapter, changes)
        if table.reader.is_clean((*table.path, "card", "transport")):
            wire = card.transport.protocol if table.is_table("card") else None
        made = _options(table, adapter, options) if table.is_table("options") else None
    link = _link(table, name, card, wire)
    if tape and link is not None and link.folders is not None:
        table.fault("tape", "a bank that takes files has no wire; its archive keeps what came")
    table.close()
    if adapter is None or link is None or not table.is_clean():
        return None
    return BankConfig(
        name=name,
        adapter=adapter,
        card=card,
        options=made,
        bank_class=bank_class,
        version=adapter.version,
        direct_connect_number=number,
        link=link,
        slot=SlotName(slot) if slot else None,
        workers=workers,
        digest=hashlib.sha256(repr(sorted(table.values.items())).encode()).hexdigest(),
        secrets={key: one for key, one in secrets.items() if one is not None},
        written_options=options,
        tape=tape,
    )


def _secrets(
    table: Table, adapter: BankAdapter | None, secret: Secrets
) -> dict[str, SecretRef | None]:
    if adapter is None:
        return {key: secret(one) for key, one in table.named("secrets")}
    wanted = adapter.secret_names
    given = table.free("secrets")
    if not table.is_table("secrets"):
        return {}
    for key in sorted(given.keys() - wanted):
        path = (*table.path, "secrets", key)
        near = hint(key, wanted)
        table.reader.fault(path, f"adapter {adapter.name} has no secret {key!r}{near}")
    # A name that is wrong is most likely the one that is missing.
    for key in sorted(wanted - given.keys()) if given.keys() <= wanted else ():
        msg = f'secrets.{key} is missing: {{ file = "…" }} or {{ credential = "…" }}'
        table.fault("secrets", msg)
    return {
        key: secret(Table(table.reader, (*table.path, "secrets", key), one))
        for key, one in given.items()
        if key in wanted
    }


def _link(
    table: Table, name: BankName, card: BehaviourCard, wire: Protocol | None
) -> LinkConfig | None:
    # Of a bank that takes files there is no host; one whose card can't be read may be such.
    folders, is_given = _folders(table, wire)
    host = table.text("host", "" if is_given else None)
    port = table.integer("port", 0 if is_given else None, 0 if is_given else 1, 65_535)
    spans = {
        key: table.number(key, default, 0.01, SPAN_SECONDS_MAX)
        for key, default in (
            ("heartbeat_s", card.limits.heartbeat_s),
            ("reply_timeout_s", card.limits.reply_timeout_s),
            ("connect_timeout_s", 10.0),
            ("logon_timeout_s", 10.0),
            ("backoff_first_s", 0.5),
            ("backoff_max_s", 60.0),
        )
    }
    if spans["backoff_max_s"] < spans["backoff_first_s"]:
        table.fault("backoff_max_s", "must not be below backoff_first_s")
    if folders is None and DEAD_FACTOR * spans["heartbeat_s"] <= spans["reply_timeout_s"]:
        said = f"{DEAD_FACTOR} * heartbeat_s must be more than reply_timeout_s"
        told = f"{spans['heartbeat_s']:g} and {spans['reply_timeout_s']:g}"
        table.blame(f"{said}, not {told}: a bank that is busy would be cut off")
    connections = _connections(table, card.transport, wire)
    if not table.is_clean():
        return None
    return table.made(
        lambda: LinkConfig(name, host, port, connections=connections, folders=folders, **spans)
    )


def _folders(table: Table, wire: Protocol | None) -> tuple[Folders | None, bool]:
    """Return a bank's folders, and whether the file has, or must have, a table of them."""
    is_wanted = wire is Protocol.FOLDER
    inner = table.table("folder", required=is_wanted)
    if inner is None:
        return None, is_wanted
    if not is_wanted and wire is not None:
        table.fault("folder", "only of a bank whose card says transport.protocol = 'folder'")
    places = [inner.text(name) and inner.path_of(name) for name in ("out", "in", "archive")]
    spans = {
        key: inner.number(key, default, low, SPAN_SECONDS_MAX)
        for key, default, low in (
            ("poll_s", 2.0, 0.01),
            ("settle_s", 1.0, 0.0),
            ("unreadable_s", 60.0, 0.0),
            ("fetched_within_s", 900.0, 0.01),
        )
    }
    kept_days = inner.integer("kept_days", 14, 1, KEPT_DAYS_MAX)
    inner.close()
    if not inner.is_clean():
        return None, True
    # Path.resolve raises where links go round in a circle.
    out, inbox, archive = (Path(os.path.realpath(one)) for one in places)
    return inner.made(lambda: Folders(out, inbox, archive, kept_days=kept_days, **spans)), True


def _connections(table: Table, transport: Transport, wire: Protocol | None) -> int:
    if wire not in {None, Protocol.HTTP}:
        # One connection carries all requests at once there; a folder has none.
        if table.integer("connections", 1, 1, CONNECTIONS_MAX) != 1:
            table.fault("connections", "only of a bank that speaks HTTP; this one has one")
        return 1
    return table.integer("connections", transport.connections, 1, CONNECTIONS_MAX)


def _adapter(name: str) -> BankAdapter:
    try:
        return registry.adapter(name)
    except registry.UnknownAdapterError as error:
        msg = f"{error.args[0]}{hint(name, registry.names())}"
        raise ValueError(msg) from error
    except registry.BrokenAdapterError as error:
        raise ValueError(str(error)) from error


def _card(table: Table, adapter: BankAdapter, changes: dict[str, Any]) -> BehaviourCard:
    """Return the card with the changes that can be made, so that the rest is checked by it."""
    try:
        card = cards.override(adapter.card, changes)
    except (cattrs.BaseValidationError, ValueError) as error:
        _report(table, "card", error)
        changes = _without(changes, [fault.path for fault in strict.faults(error)])
        try:
            card = cards.override(adapter.card, changes)
        except (cattrs.BaseValidationError, ValueError):
            return adapter.card
    wrong = list(card_faults(card))
    # A contradiction is between two keys; the one that stands in this file is to blame.
    ours = [fault for fault in wrong if fault[0][1] in changes.get(fault[0][0], {})]
    for path, message in ours or wrong:
        table.reader.fault((*table.path, "card", *path), message)
    return card


def _without(changes: Mapping[str, Any], paths: list[tuple[str | int, ...]]) -> dict[str, Any]:
    """Return the changes without the keys at, or around, these paths."""
    whole = {path[0] for path in paths if len(path) == 1}
    keys = {path[:2] for path in paths}
    return {
        section: {key: one for key, one in inner.items() if (section, key) not in keys}
        for section, inner in changes.items()
        if section not in whole and isinstance(inner, Mapping)
    }


def _options(table: Table, adapter: BankAdapter, given: dict[str, Any]) -> Any:  # noqa: ANN401
    cls = adapter.options_class
    try:
        return strict.converter().structure(given, cls)
    except (cattrs.BaseValidationError, ValueError) as error:
        # Made of all of them, the class tells only the first that it does not take.
        single = list(strict.value_faults(cls, strict.structured(cls, given)))
        _report(table, "options", error, single)
        return None


def _report(
    table: Table, name: str, error: BaseException, single: Sequence[strict.TableFault] = ()
) -> None:
    below = Table(table.reader, (*table.path, name), table.values.get(name, {}))
    for fault in (*strict.faults(error), *single):
        path = (*below.path, *fault.path)
        if fault.unknown:
            table.reader.unknown(path, fault.known, hint(fault.unknown, fault.known))
        elif fault.path:
            table.reader.fault(path, fault.message)
        elif fault.message not in {one.message for one in single}:
            below.blame(fault.message)


def card_faults(card: BehaviourCard) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield what is well formed in a card and still wrong: section and key, and message.

    A card decides when a payment counts as not executed, so a contradiction in it pays twice.
    """
    yield from _overlaps("codes", card.codes, Codes)
    yield from _overlaps("states", card.states, States)
    inquiry = card.inquiry
    if inquiry.no_record is NoRecord.AFTER and inquiry.no_record_after_s <= 0:
        msg = "must be above 0: 'no record' at once after the sending proves nothing"
        yield ("inquiry", "no_record_after_s"), msg
    for section, key, low in (
        ("inquiry", "cool_down_s", 0.0),
        ("inquiry", "accepted_interval_s", 0.01),
        ("inquiry", "backoff_factor", 1.0),
        ("inquiry", "interval_max_s", 0.01),
        ("inquiry", "horizon_s", 1.0),
        ("inquiry", "no_record_after_s", 0.0),
        ("inquiry", "statement_after", 0),
        ("throttle", "submit_gap_s", 0.0),
        ("throttle", "query_gap_s", 0.0),
        ("throttle", "concurrent_max", 0),
        ("statement", "rows_per_page", 0),
        ("statement", "span_days_max", 1),
        ("returned", "watch_days", 0.0),
        ("returned", "first_look_s", 0.01),
        ("returned", "interval_s", 0.01),
        ("transport", "connections", 1),
        ("limits", "reply_timeout_s", 0.01),
        ("limits", "heartbeat_s", 0.01),
        ("limits", "frame_bytes_max", FRAME_BYTES_MIN),
    ):
        value = getattr(getattr(card, section), key)
        if not value >= low or value == float("inf"):
            yield (section, key), f"must be a number of at least {low:g}"
    yield from _quiet_faults(inquiry)
    if card.returned.watch_days > WATCH_DAYS_MAX:
        yield ("returned", "watch_days"), f"must be at most {WATCH_DAYS_MAX}"
    if card.transport.connections > CONNECTIONS_MAX:
        yield ("transport", "connections"), f"must be at most {CONNECTIONS_MAX}"
    if card.limits.frame_bytes_max > FRAME_BYTES_MAX:
        yield ("limits", "frame_bytes_max"), f"must be at most {FRAME_BYTES_MAX}"


def _quiet_faults(inquiry: Inquiry) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield what is wrong with the time of day in which the bank wants to be left alone."""
    given = {"quiet_from": inquiry.quiet_from, "quiet_to": inquiry.quiet_to}
    for key, value in given.items():
        if value and not _TIME_OF_DAY.fullmatch(value):
            yield ("inquiry", key), "must be a time of day written HH:MM, or empty"
    if bool(inquiry.quiet_from) != bool(inquiry.quiet_to):
        missing = "quiet_to" if inquiry.quiet_from else "quiet_from"
        yield ("inquiry", missing), "is missing: quiet_from and quiet_to go together"
    elif inquiry.quiet_from and inquiry.quiet_from == inquiry.quiet_to:
        yield ("inquiry", "quiet_to"), "must differ from quiet_from: nothing could ever be asked"


def _overlaps(section: str, lists: Any, cls: type[Any]) -> Iterator[tuple[tuple[str, str], str]]:  # noqa: ANN401
    """Yield each code that is in two lists, at both: it can't mean two things."""
    names = [field.name for field in attrs.fields(cls)]
    for one, other in itertools.permutations(names, 2):
        for code in sorted(getattr(lists, one) & getattr(lists, other)):
            yield (section, one), f"{code!r} is in {section}.{other} too: it can't mean both"


def try_codecs(
    banks: tuple[BankConfig, ...],
    accounts: Mapping[AccountNumber, Account],
    tables: Mapping[BankName, Table],
) -> None:
    """Open each bank's codec once, so that what its adapter refuses is told now, not at the start.

    An adapter is sans-I/O: opening it costs nothing and leaves nothing open.
    """
    for bank in banks:
        try:
            codec = bank.adapter.open(bank.profile(accounts))
        except (ConfigError, ValueError) as error:
            tables[bank.name].blame(str(error).removeprefix(f"bank {bank.name}: "))
            continue
        is_folder = bank.card.transport.protocol is Protocol.FOLDER
        if is_folder and not isinstance(codec, FileCodec):
            said = "card.transport.protocol: this adapter's bank does not take files"
            tables[bank.name].blame(said)
