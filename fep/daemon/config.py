"""The configuration file, read once into attrs classes; every fault is reported at once.

Each fault says ``file:line:column: key: what is wrong and what would be right``, with the line and
a caret. Secrets are never in the file: it names credentials or files of mode 0600.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import attrs
import cattrs

from fep.adapters import card as cards
from fep.adapters import registry
from fep.adapters.api import BankAdapter
from fep.adapters.card import BehaviourCard
from fep.control.config import (
    ClientConfig,
    ControlConfig,
    RoleName,
    TcpListener,
    TlsFiles,
    UserConfig,
)
from fep.daemon.positions import Positions
from fep.domain.account import Account
from fep.domain.errors import ConfigError
from fep.domain.ids import (
    AccountNumber,
    BankName,
    ClientName,
    SlotName,
    parse_account_number,
    parse_name,
)
from fep.domain.money import Cny
from fep.keys.config import (
    Backend,
    CardBinding,
    KeyReference,
    SecretRef,
    SlotConfig,
    ring_faults,
)
from fep.links.config import LinkConfig
from fep.pooling import config as pooling
from fep.tasks.config import TasksConfig

FILE_BYTES_MAX: Final = 4 * 1024 * 1024
WORKERS_MAX: Final = 64
ROLES: Final = ("finance", "viewer", "operator", "admin")

Path_ = tuple[str | int, ...]
T = TypeVar("T")


@attrs.frozen
class Fault:
    """One thing that is wrong in the file."""

    file: str
    line: int
    column: int
    key: str
    message: str
    source: str

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}:{self.column}: {self.key}: {self.message}"
        if not self.source.strip():
            return text
        return f"{text}\n    {self.source}\n    {' ' * (self.column - 1)}^"


class ConfigFaultsError(ConfigError):
    """The file can't be used; ``faults`` has all that is wrong, in the order of the file."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


@attrs.frozen
class Enterprise:
    """Who we are."""

    id: str
    """企业ID."""
    fep_number: str
    """企业端前置机编号."""


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
    slot: SlotName
    workers: int
    """线程数: requests worked on at once."""
    digest: str
    """Of this bank's own part of the file: what decides whether a reload touches it."""


@attrs.frozen
class Config:
    """The whole file."""

    path: Path
    digest: str
    """First 12 hex digits of the file's SHA-256: every event of a task bears it."""
    mode: Literal["production", "demo"]
    state_dir: Path
    log_level: str
    enterprise: Enterprise
    control: ControlConfig
    tasks: TasksConfig
    slots: tuple[SlotConfig, ...]
    banks: tuple[BankConfig, ...]
    accounts: Mapping[AccountNumber, Account]
    pools: tuple[pooling.PoolConfig, ...]
    raw: Mapping[str, Any] = attrs.field(repr=False)


class _Reader:
    """Collects the faults of one file."""

    def __init__(self, path: Path, text: str) -> None:
        self.file = str(path)
        self.base = path.parent
        self.positions = Positions(text)
        self.faults: list[Fault] = []

    def fault(self, path: Path_, message: str) -> None:
        place = self.positions.of(path)
        source = self.positions.source(place.line)
        key = ".".join(str(part) for part in path) or "(file)"
        self.faults.append(Fault(self.file, place.line, place.column, key, message, source))


class _Table:
    """One table being read; ``close`` reports the keys that nobody asked for."""

    def __init__(self, reader: _Reader, path: Path_, value: object) -> None:
        self.reader = reader
        self.path = path
        self.values: dict[str, Any] = value if isinstance(value, dict) else {}
        self._asked: list[str] = []
        if not isinstance(value, dict):
            reader.fault(path, "must be a table")

    def fault(self, name: str, message: str) -> None:
        self.reader.fault((*self.path, name) if name else self.path, message)

    def has(self, name: str) -> bool:
        return name in self.values

    def _get(self, name: str, *, required: bool) -> Any:  # noqa: ANN401
        self._asked.append(name)
        if name not in self.values and required:
            self.fault("", f"the key {name!r} is missing")
        return self.values.get(name)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, required=default is None)
        if value is None:
            return default or ""
        if not isinstance(value, str) or (default is None and not value.strip()):
            self.fault(name, "must be text in quotes, not empty")
            return default or ""
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self._get(name, required=False)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            self.fault(name, f"must be a number from {low:g} to {high:g}")
            return default
        return float(value)

    def integer(self, name: str, default: int | None, low: int, high: int) -> int:
        value = self._get(name, required=default is None)
        if value is None:
            return default if default is not None else low
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(name, f"must be a whole number from {low} to {high}")
            return default if default is not None else low
        return value

    def flag(self, name: str) -> bool:
        value = self._get(name, required=False)
        if value is not None and not isinstance(value, bool):
            self.fault(name, "must be true or false")
        return value is True

    def choice(self, name: str, among: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(name, default)
        if value not in among and (value or default is not None):
            near = difflib.get_close_matches(value, among, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.fault(name, f"must be one of {', '.join(among)}{hint}")
            return default or among[0]
        return value or among[0]

    def parsed(self, name: str, parse: Callable[[str], T], default: T | None = None) -> T | None:
        """Return text parsed by a function that raises ValueError, None after a fault."""
        value = self._get(name, required=default is None)
        if value is None:
            return default
        try:
            if not isinstance(value, str):
                raise ValueError("must be text in quotes")  # noqa: TRY004, TRY301
            return parse(value)
        except ValueError as error:
            self.fault(name, str(error))
            return None

    def path_of(self, name: str, default: str | None = None) -> Path:
        return self.reader.base / self.text(name, default)

    def table(self, name: str, *, required: bool = False) -> _Table | None:
        value = self._get(name, required=required)
        return None if value is None else _Table(self.reader, (*self.path, name), value)

    def tables(self, name: str) -> Iterator[_Table]:
        value = self._get(name, required=False)
        if value is None:
            return
        if not isinstance(value, list):
            self.fault(name, f"must be an array of tables: [[{name}]]")
            return
        for index, one in enumerate(value):
            yield _Table(self.reader, (*self.path, name, index), one)

    def named(self, name: str) -> Iterator[tuple[str, _Table]]:
        """Yield the tables below a table whose keys are names."""
        outer = self.table(name)
        if outer is not None:
            for key, value in outer.values.items():
                yield key, _Table(self.reader, (*outer.path, key), value)

    def free(self, name: str) -> dict[str, Any]:
        """Return a table whose keys somebody else knows."""
        value = self._get(name, required=False)
        if value is not None and not isinstance(value, dict):
            self.fault(name, "must be a table")
            return {}
        return value or {}

    def made(self, make: Callable[[], T], name: str = "") -> T | None:
        """Return what ``make`` returns, or report its ValueError at a key."""
        try:
            return make()
        except ValueError as error:
            self.fault(name, str(error))
            return None

    def close(self) -> None:
        for name in self.values:
            if name not in self._asked:
                near = difflib.get_close_matches(name, self._asked, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are: {self._known()}"
                self.fault(name, f"unknown key; {hint}")

    def _known(self) -> str:
        return ", ".join(sorted(self._asked)) or "none"


def load(path: Path) -> Config:
    """Return the configuration of a file.

    Raises:
        ConfigFaultsError: it can't be used; all faults at once.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigFaultsError([_whole(path, f"can't be read: {error.strerror}")]) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigFaultsError([_whole(path, f"is larger than {FILE_BYTES_MAX} bytes")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigFaultsError([_whole(path, "is not UTF-8 here", line)]) from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigFaultsError([_syntax(path, text, str(error))]) from error
    reader = _Reader(path, text)
    config = _config(reader, raw, path, hashlib.sha256(data).hexdigest()[:12])
    if reader.faults:
        raise ConfigFaultsError(sorted(reader.faults, key=lambda fault: (fault.line, fault.column)))
    return config


def check(path: Path) -> list[Fault]:
    """Return all that is wrong in a file, in its order; empty when it can be used."""
    try:
        load(path)
    except ConfigFaultsError as error:
        return error.faults
    return []


def _whole(path: Path, message: str, line: int = 1) -> Fault:
    return Fault(str(path), line, 1, "(file)", message, "")


def _syntax(path: Path, text: str, message: str) -> Fault:
    """Turn tomllib's "... (at line 3, column 7)" into a fault."""
    what, _, place = message.rpartition(" (at ")
    words = place.rstrip(")").replace(",", "").split()
    if len(words) == 4 and words[0] == "line":
        line, column = int(words[1]), int(words[3])
    else:
        line, column = text.count("\n") + 1, 1
    source = Positions("").source(1) if not text else text.split("\n")[line - 1].rstrip("\r")
    return Fault(str(path), line, column, "(syntax)", what or message, source)


def _config(reader: _Reader, raw: dict[str, Any], path: Path, digest: str) -> Config:
    top = _Table(reader, (), raw)
    mode = top.choice("mode", ("production", "demo"), "production")
    in_words = top.flag("allow_software_keys_in_production")
    state_dir = top.path_of("state_dir")
    log_level = top.choice("log_level", ("debug", "info", "warning", "error"), "info")
    enterprise = _enterprise(top)
    control = _control(top)
    tasks = _tasks(top)
    slots = _slots(top, production=mode == "production" and not in_words)
    banks = _banks(top, {slot.name for slot in slots})
    accounts = _accounts(top, {bank.name for bank in banks})
    pools = _pools(top, accounts)
    top.close()
    return Config(
        path=path,
        digest=digest,
        mode="demo" if mode == "demo" else "production",
        state_dir=state_dir,
        log_level=log_level,
        enterprise=enterprise,
        control=control,
        tasks=tasks,
        slots=slots,
        banks=banks,
        accounts=accounts,
        pools=pools,
        raw=raw,
    )


def _enterprise(top: _Table) -> Enterprise:
    table = top.table("enterprise", required=True)
    if table is None:
        return Enterprise("", "")
    found = Enterprise(table.text("id"), table.text("fep_number"))
    table.close()
    return found


def _name(table: _Table, what: str) -> str:
    return table.parsed("name", lambda text: parse_name(text, what)) or ""


def _control(top: _Table) -> ControlConfig:
    table = top.table("control", required=True)
    if table is None:
        return ControlConfig(socket=Path("unset"))
    mode = table.parsed("socket_mode", lambda text: int(text, 8), 0o660)
    found = ControlConfig(
        socket=table.path_of("socket"),
        socket_mode=0o660 if mode is None else mode,
        heartbeat_s=table.number("heartbeat_s", 10.0, 0.05, 3600.0),
        tcp=tuple(one for row in table.tables("tcp") if (one := _listener(row)) is not None),
        clients={
            ClientName(name): ClientConfig(role=_role(row, name))
            for name, row in table.named("clients")
        },
        users={name: _user(row, name) for name, row in table.named("users")},
    )
    table.close()
    return found


def _role(table: _Table, name: str) -> RoleName:
    table.made(lambda: parse_name(name, "client"))
    role = table.choice("role", ROLES, "finance")
    table.close()
    return cast(RoleName, role)


def _user(table: _Table, name: str) -> UserConfig:
    table.made(lambda: parse_name(name, "user"))
    found = UserConfig(
        uid=table.integer("uid", None, 0, 2**32 - 2),
        role=cast(RoleName, table.choice("role", ROLES)),
    )
    table.close()
    return found


def _listener(table: _Table) -> TcpListener | None:
    where = table.parsed("listen", _host_port)
    tls = table.table("tls")
    files = None
    if tls is not None:
        files = TlsFiles(tls.path_of("certificate"), tls.path_of("key"), tls.path_of("client_ca"))
        tls.close()
    token_file = table.path_of("token_file") if table.has("token_file") else None
    table.close()
    if where is None:
        return None
    if files is not None and token_file is not None:
        table.fault("token_file", "give either tls or token_file")
    elif files is None and token_file is None:
        table.fault("listen", "needs tls = { certificate, key, client_ca }, or token_file")
    elif files is None and not _is_loopback(where[0]):
        msg = "plain TCP is for loopback only; other addresses need tls (client certificates)"
        table.fault("listen", msg)
    return TcpListener(where[0], where[1], files, token_file)


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        msg = "must be HOST:PORT, such as '127.0.0.1:7071'"
        raise ValueError(msg)
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tasks(top: _Table) -> TasksConfig:
    table = top.table("tasks")
    if table is None:
        return TasksConfig()
    found = TasksConfig(
        queue_max=table.integer("queue_max", 1_000_000, 1, 100_000_000),
        fetch_timeout_s=table.number("fetch_timeout_s", 30.0, 0.1, 86_400.0),
        age_max_s=table.number("age_max_s", 86_400.0, 0.1, 30 * 86_400.0),
        result_window=table.integer("result_window", 256, 1, 65_536),
    )
    table.close()
    return found


def _secret(table: _Table | None) -> SecretRef | None:
    if table is None:
        return None
    credential = table.text("credential", "") or None
    file = table.path_of("file") if table.has("file") else None
    table.text("file", "")
    found = table.made(lambda: SecretRef(credential, file))
    table.close()
    return found


def _slots(top: _Table, *, production: bool) -> tuple[SlotConfig, ...]:
    found: list[SlotConfig] = []
    for table in top.tables("slot"):
        name = SlotName(_name(table, "slot"))
        backend = table.choice("backend", ("pcsc", "pkcs11", "software"))
        binding = None
        if (row := table.table("card")) is not None:
            guid, certificate = row.text("guid"), row.text("certificate_sha256")
            row.close()
            binding = row.made(partial(CardBinding, guid, certificate))
        pin, key = _secret(table.table("pin")), _secret(table.table("key"))
        reference = table.choice("key_reference", ("9A", "9C", "9D", "9E"), "9C")
        seconds = table.number("sign_deadline_s", 10.0, 0.1, 600.0)
        table.close()
        if backend == "software" and production:
            msg = (
                'a software key is for mode = "demo"; in production say so in words: '
                "allow_software_keys_in_production = true"
            )
            table.fault("backend", msg)
        slot = table.made(
            partial(
                SlotConfig,
                name,
                cast(Backend, backend),
                binding,
                pin,
                key,
                cast(KeyReference, reference),
                seconds,
            )
        )
        if slot is not None:
            found.append(slot)
            if faults := ring_faults(found):
                table.fault("name", faults[-1])
                found.pop()
    return tuple(found)


def _banks(top: _Table, slots: set[SlotName]) -> tuple[BankConfig, ...]:
    found: dict[BankName, BankConfig] = {}
    for table in top.tables("bank"):
        bank = _bank(table, slots)
        table.close()
        if bank is None:
            continue
        if bank.name in found:
            table.fault("name", f"bank {bank.name} is there twice")
        found[bank.name] = bank
    return tuple(found.values())


def _bank(table: _Table, slots: set[SlotName]) -> BankConfig | None:
    name = BankName(_name(table, "bank"))
    adapter = table.parsed("adapter", _adapter)
    bank_class = table.text("class", "")
    version = table.text("version", "")
    number = table.text("direct_connect_number", "")
    host = table.text("host")
    port = table.integer("port", None, 1, 65_535)
    slot = SlotName(table.text("slot"))
    if slot and slot not in slots:
        near = difflib.get_close_matches(slot, slots, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        table.fault("slot", f"there is no [[slot]] named {slot!r}{hint}")
    workers = table.integer("workers", 4, 1, WORKERS_MAX)
    heartbeat = table.number("heartbeat_s", 30.0, 0.05, 3600.0)
    reply = table.number("reply_timeout_s", 60.0, 0.05, 3600.0)
    connect = table.number("connect_timeout_s", 10.0, 0.05, 600.0)
    logon = table.number("logon_timeout_s", 10.0, 0.05, 600.0)
    first = table.number("backoff_first_s", 0.5, 0.01, 600.0)
    longest = table.number("backoff_max_s", 60.0, 0.01, 3600.0)
    options, changes = table.free("options"), table.free("card")
    if adapter is None:
        return None
    card = _card(table, adapter, changes)
    made = _options(table, adapter, options)
    if card is None or made is None or not host:
        return None
    return BankConfig(
        name=name,
        adapter=adapter,
        card=card,
        options=made,
        bank_class=bank_class,
        version=version or adapter.version,
        direct_connect_number=number,
        link=LinkConfig(
            bank=name,
            host=host,
            port=port,
            heartbeat_s=heartbeat,
            reply_timeout_s=reply,
            connect_timeout_s=connect,
            logon_timeout_s=logon,
            backoff_first_s=first,
            backoff_max_s=longest,
        ),
        slot=slot,
        workers=workers,
        digest=hashlib.sha256(repr(sorted(table.values.items(), key=str)).encode()).hexdigest(),
    )


def _adapter(name: str) -> BankAdapter:
    try:
        return registry.adapter(name)
    except registry.UnknownAdapterError as error:
        near = difflib.get_close_matches(name, registry.names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(str(error) + hint) from error


def _card(table: _Table, adapter: BankAdapter, changes: dict[str, Any]) -> BehaviourCard | None:
    try:
        return cards.override(adapter.card, changes)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        for path, message in _leaves(error, ()):
            table.reader.fault((*table.path, "card", *path), message)
        return None


def _options(table: _Table, adapter: BankAdapter, given: dict[str, Any]) -> Any:  # noqa: ANN401
    converter = cattrs.Converter(forbid_extra_keys=True)
    try:
        return converter.structure(given, adapter.options_class)
    except (cattrs.BaseValidationError, ValueError, TypeError) as error:
        for path, message in _leaves(error, ()):
            table.reader.fault((*table.path, "options", *path), message)
        return None


def _leaves(error: BaseException, path: Path_) -> Iterator[tuple[Path_, str]]:
    """Yield where and what of a cattrs error tree."""
    if isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            note = next(
                (
                    one.name
                    for one in getattr(inner, "__notes__", ())
                    if isinstance(one, cattrs.AttributeValidationNote)
                ),
                None,
            )
            yield from _leaves(inner, path if note is None else (*path, note))
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for extra in sorted(error.extra_fields):
            near = difflib.get_close_matches(extra, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
            yield (*path, extra), f"unknown key; {hint}"
    elif isinstance(error, KeyError):
        yield path, f"the key {error} is missing"
    else:
        yield path, str(error)


def _accounts(top: _Table, banks: set[BankName]) -> dict[AccountNumber, Account]:
    found: dict[AccountNumber, Account] = {}
    for table in top.tables("account"):
        number = table.parsed("number", parse_account_number)
        bank = BankName(table.text("bank"))
        account = Account(
            number=number or AccountNumber(""),
            bank=bank,
            name=table.text("name"),
            bank_code=table.text("bank_code", ""),
            bank_title=table.text("bank_title", ""),
        )
        table.close()
        if bank and bank not in banks:
            near = difflib.get_close_matches(bank, banks, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            table.fault("bank", f"there is no [[bank]] named {bank!r}{hint}")
        if account.bank_code and not (len(account.bank_code) == 12 and account.bank_code.isdigit()):
            table.fault("bank_code", "must be 12 digits (CNAPS 行号) or left out")
        if number is not None:
            if number in found:
                table.fault("number", f"account {number} is there twice")
            found[number] = account
    return found


def _pools(
    top: _Table, accounts: Mapping[AccountNumber, Account]
) -> tuple[pooling.PoolConfig, ...]:
    found: dict[str, pooling.PoolConfig] = {}
    for table in top.tables("pool"):
        name = _name(table, "pool")
        target = table.parsed("target", parse_account_number)
        _approved(table, "target", target, accounts)
        members = [_member(row, accounts) for row in table.tables("member")]
        schedule = table.text("schedule", "")
        table.close()
        kept = tuple(member for member in members if member is not None)
        if target is None or len(kept) != len(members):
            continue
        pool = table.made(partial(pooling.PoolConfig, name, target, kept, schedule))
        if pool is not None:
            if pool.name in found:
                table.fault("name", f"pool {pool.name} is there twice")
            found[pool.name] = pool
    return tuple(found.values())


def _approved(
    table: _Table,
    key: str,
    number: AccountNumber | None,
    accounts: Mapping[AccountNumber, Account],
) -> None:
    """Pooling moves money between approved accounts only (POOL-15)."""
    if number is not None and number not in accounts:
        near = difflib.get_close_matches(number, accounts, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        table.fault(key, f"account {number} is not among the approved [[account]]s{hint}")


def _amount(text: str) -> Cny:
    amount = Cny.parse(text)
    if amount.fen < 0:
        msg = "must not be negative"
        raise ValueError(msg)
    return amount


def _member(
    table: _Table, accounts: Mapping[AccountNumber, Account]
) -> pooling.MemberConfig | None:
    account = table.parsed("account", parse_account_number)
    _approved(table, "account", account, accounts)
    threshold = table.parsed("threshold", _amount)
    reserve = table.parsed("reserve", _amount, Cny(0))
    minimum = table.parsed("minimum", _amount, Cny(1))
    maximum = table.parsed("maximum", _amount) if table.has("maximum") else None
    unit = table.parsed("unit", _amount, Cny(1))
    row = table.table("rule")
    rule: pooling.RuleConfig | None = pooling.Excess() if row is None else _rule(row)
    bad_maximum = table.has("maximum") and maximum is None
    table.close()
    if (
        account is None
        or threshold is None
        or reserve is None
        or minimum is None
        or unit is None
        or rule is None
        or bad_maximum
    ):
        return None
    return table.made(
        lambda: pooling.MemberConfig(account, threshold, reserve, minimum, maximum, unit, rule)
    )


def _rule(table: _Table) -> pooling.RuleConfig | None:
    kinds = ("excess", "zero", "target", "fixed", "percentage", "range", "tiered")
    kind = table.choice("kind", kinds)
    before = len(table.reader.faults)
    made: pooling.RuleConfig | None
    match kind:
        case "zero":
            made = pooling.Zero()
        case "target" | "fixed":
            amount = table.parsed("amount", _amount)
            cls = pooling.Target if kind == "target" else pooling.Fixed
            made = None if amount is None else cls(amount)
        case "percentage":
            share = table.integer("basis_points", None, 1, pooling.BASIS_POINTS_MAX)
            made = table.made(lambda: pooling.Percentage(share))
        case "range":
            low, high = table.parsed("low", _amount), table.parsed("high", _amount)
            made = None
            if low is not None and high is not None:
                made = table.made(lambda: pooling.Range(low, high))
        case "tiered":
            tiers = tuple(one for row in table.tables("tiers") if (one := _tier(row)) is not None)
            made = table.made(lambda: pooling.Tiered(tiers))
        case _:
            made = pooling.Excess()
    table.close()
    return made if len(table.reader.faults) == before else None


def _tier(table: _Table) -> pooling.Tier | None:
    low = table.parsed("from", _amount)
    high = table.parsed("to", _amount) if table.has("to") else None
    share = table.integer("basis_points", None, 1, pooling.BASIS_POINTS_MAX)
    table.close()
    return None if low is None else table.made(lambda: pooling.Tier(low, high, share))


def secret_faults(config: Config) -> list[str]:
    """Return what is wrong with the secret files: missing, or readable by others.

    Apart from :func:`load`, since a configuration is often checked where its secrets are not.
    """
    faults = []
    files = [
        reference.file
        for slot in config.slots
        for reference in (slot.pin, slot.key)
        if reference is not None and reference.file is not None
    ]
    files += [one.token_file for one in config.control.tcp if one.token_file is not None]
    files += [one.tls.key for one in config.control.tcp if one.tls is not None]
    for file in files:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            faults.append(f"{file}: {error.strerror}")
            continue
        if stat.S_IMODE(mode) & 0o077:
            faults.append(f"{file}: can be read by others; chmod 600 it")
    return faults


def redacted(config: Config) -> dict[str, Any]:
    """Return the configuration in force as ``config.show`` tells it; it holds no secrets."""
    return {"path": str(config.path), "digest": config.digest, "config": dict(config.raw)}
