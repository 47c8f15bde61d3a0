"""The configuration file, read once into attrs classes; every fault is reported at once.

The file holds no secrets: it names systemd credentials or files of mode 0600. Nothing here opens
those; :func:`secret_faults` looks at them, since a file is often checked where its secrets are not.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import stat
import sys
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import attrs

from fep.alarms.config import AlarmsConfig, HttpTarget, MailTarget
from fep.console.config import ConsoleConfig, ConsoleTls
from fep.control.config import (
    SESSIONS_MAX,
    ClientConfig,
    ControlConfig,
    Limits,
    RoleName,
    TcpListener,
    TlsFiles,
    UserConfig,
)
from fep.crypto.sm2 import USER_ID
from fep.daemon.alarm_section import read_alarms
from fep.daemon.bank_section import BankConfig, read_banks, try_codecs
from fep.daemon.pool_section import read_pools
from fep.daemon.store_section import StoreConfig, read_store
from fep.daemon.tables import (
    ConfigFaultsError,
    Fault,
    KeyPath,
    Reader,
    Table,
    broken_line,
    hint,
    made_fault,
)
from fep.daemon.trace_section import read_traces
from fep.domain.account import Account
from fep.domain.ids import (
    AccountNumber,
    BankName,
    ClientName,
    SlotName,
    parse_account_number,
    parse_name,
)
from fep.domain.order import NAME_CHARS_MAX
from fep.keys.config import (
    SIGN_SECONDS_MAX,
    Backend,
    CardBinding,
    KeyReference,
    ObjectRef,
    SecretRef,
    SlotConfig,
    TokenBinding,
    ring_faults,
)
from fep.logs import is_secret
from fep.metrics.config import MetricsConfig
from fep.pooling.config import PoolConfig
from fep.tasks.config import TasksConfig
from fep.traces.config import TracesConfig
from fep.users.config import IDLE_SECONDS_DEFAULT, SESSION_SECONDS_DEFAULT, SessionLimits

__all__ = [
    "BankConfig",
    "Config",
    "ConfigFaultsError",
    "Enterprise",
    "Fault",
    "check",
    "check_toml",
    "digest_of",
    "load",
    "parse",
    "read_text",
    "redacted",
    "secret_faults",
]

DIGEST_CHARS: Final = 12
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
ENTERPRISE_CHARS_MAX: Final = 64
INTEGER_DIGITS_MAX: Final = sys.int_info.default_max_str_digits
INTEGER_MAX: Final = 2**63 - 1
KEY_PARTS_MAX: Final = 32
"""Of a dotted key: what reads TOML takes a time that grows with their square."""
SLOTS_MAX: Final = 256
PORT_MAX: Final = 65_535
CONSOLE_PORT: Final = 8200
METRICS_PORT: Final = 9187
UID_MAX: Final = 2**32 - 2
RATE_MAX: Final = 1e12
ROLES: Final = ("finance", "viewer", "operator", "admin")
_PART: Final = r"(?:[A-Za-z0-9_-]+|\"[^\"\n]*\"|'[^'\n]*')[ \t]*\.[ \t]*"
_MANY_PARTS: Final = re.compile(
    rf"(?:^[ \t]*\[{{0,2}}|[{{,])[ \t]*(?:{_PART}){{{KEY_PARTS_MAX}}}", re.MULTILINE
)
IN_WORDS: Final = "allow_software_keys_in_production"


@attrs.frozen
class Enterprise:
    """Who we are."""

    id: str
    """企业ID."""
    fep_number: str
    """企业端前置机编号."""


@attrs.frozen
class Config:
    """The whole file; one that exists is valid."""

    path: Path
    digest: str
    """First 12 hex digits of the file's SHA-256: every event of a task bears it."""
    mode: Literal["production", "demo"]
    state_dir: Path
    store: StoreConfig | None
    """None: the store is an SQLite file in ``state_dir``."""
    log_level: str
    enterprise: Enterprise
    control: ControlConfig
    console: ConsoleConfig
    metrics: MetricsConfig
    traces: TracesConfig | None
    """None: there are none."""
    tasks: TasksConfig
    slots: tuple[SlotConfig, ...]
    banks: tuple[BankConfig, ...]
    accounts: Mapping[AccountNumber, Account]
    pools: tuple[PoolConfig, ...]
    alarms: AlarmsConfig
    raw: Mapping[str, Any] = attrs.field(repr=False)
    text: str = attrs.field(repr=False, default="")
    """The file itself."""


def load(path: Path) -> Config:
    """Return the configuration of a file; relative paths in it begin at the file's directory.

    Raises:
        ConfigFaultsError: it can't be used; all faults at once, in the order of the file.
    """
    return parse(path, read_text(path))


def parse(path: Path, text: str) -> Config:
    """Return the configuration that a text would be at a path; nothing is read there.

    Raises:
        ConfigFaultsError: it can't be used; all faults at once, in the order of the text.
    """
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > FILE_BYTES_MAX:
        raise ConfigFaultsError([_whole(path, f"is larger than {FILE_BYTES_MAX} bytes")])
    reader = Reader(path, text)
    try:
        raw = _toml(path, text)
        config = _config(reader, raw, path, digest_of(data))
    except RecursionError as error:
        raise ConfigFaultsError([_whole(path, "is nested too deeply")]) from error
    if found := reader.faults:
        raise ConfigFaultsError(found)
    return attrs.evolve(config, text=text)


def digest_of(data: bytes) -> str:
    """Return what a file is known by."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARS]


def check(path: Path) -> list[Fault]:
    """Return all that is wrong in a file, in its order; empty when it can be used."""
    try:
        load(path)
    except ConfigFaultsError as error:
        return error.faults
    return []


def redacted(config: Config) -> dict[str, Any]:
    """Return the configuration in force as ``config.show`` tells it."""
    return {"path": str(config.path), "digest": config.digest, "config": _hidden("", config.raw)}


def secret_faults(config: Config, *, vital: bool = False) -> list[str]:
    """Return what is wrong with the files it names: not there, or open to others.

    Args:
        config: what names them.
        vital: only those without which banks and clients can't be served; the console, the page of
            metrics and channels of alarms tell by an alarm what they lack. Traces tell it in
            the log.
    """
    secrets = [
        reference.file
        for slot in config.slots
        for reference in (slot.pin, slot.key)
        if reference is not None and reference.file is not None
    ]
    secrets += [
        one.file for bank in config.banks for one in bank.secrets.values() if one.file is not None
    ]
    if config.store is not None and config.store.password is not None:
        secrets += [config.store.password.file] if config.store.password.file else []
    secrets += [
        file
        for one in config.control.tcp
        for file in (one.token_file, one.keys_file)
        if file is not None
    ]
    tls = [one.tls for one in config.control.tcp if one.tls is not None]
    public: list[Path] = []
    if not vital:
        tls += [] if config.metrics.tls is None else [config.metrics.tls]
        if config.console.tls is not None:
            secrets.append(config.console.tls.key)
            public.append(config.console.tls.certificate)
        for channel in config.alarms.channels:
            secrets += channel.secret_files
            target = channel.target
            if isinstance(target, HttpTarget | MailTarget) and target.ca is not None:
                public.append(target.ca)
        if config.traces is not None:
            secrets += [one.file for _, one in config.traces.headers if one.file is not None]
            public += [config.traces.ca] if config.traces.ca is not None else []
    secrets += [one.key for one in tls]
    public += [file for one in tls for file in (one.certificate, one.client_ca)]
    public += [one.client_crl for one in tls if one.client_crl is not None]
    modules = [slot.module for slot in config.slots if slot.module is not None]
    public += modules
    faults = [_file_fault(file, secret=True) for file in dict.fromkeys(secrets)]
    faults += [_file_fault(file, secret=False) for file in dict.fromkeys(public)]
    faults += [_module_fault(file) for file in dict.fromkeys(modules)]
    return [fault for fault in faults if fault]


def _file_fault(file: Path, *, secret: bool) -> str:
    try:
        mode = file.stat().st_mode
    except OSError as error:
        return f"{file}: {error.strerror}"
    if not stat.S_ISREG(mode):
        return f"{file}: is not a file"
    if secret and stat.S_IMODE(mode) & 0o077:
        return f"{file}: can be read by others; chmod 600 it"
    if not os.access(file, os.R_OK):
        return f"{file}: can't be read by uid {os.geteuid()}; chown it"
    return ""


def _module_fault(file: Path) -> str:
    """Return what is wrong with a library: whoever writes it does as he likes in the daemon."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return ""
    return f"{file}: can be written by others; chmod go-w it" if mode & 0o022 else ""


def _hidden(name: str, value: Any) -> Any:  # noqa: ANN401 - any TOML value
    """Return a value without secrets; ``pin = { file = … }`` is a place and stays."""
    if isinstance(value, Mapping):
        return {key: _hidden(key, one) for key, one in value.items()}
    if is_secret(name):
        return "***"
    if isinstance(value, list):
        return [_hidden("", one) for one in value]
    return value if isinstance(value, str | int | float) else str(value)


def check_toml(path: Path, text: str) -> None:
    """Read a text as TOML only.

    Raises:
        ConfigFaultsError: it is none.
    """
    _toml(path, text)


def read_text(path: Path) -> str:
    """Return what a file says.

    Raises:
        ConfigFaultsError: it can't be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigFaultsError([_whole(path, f"can't be read: {error.strerror}")]) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigFaultsError([_whole(path, f"is larger than {FILE_BYTES_MAX} bytes")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        before = data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")
        msg = "is not UTF-8 here; save the file as UTF-8 (not GBK)"
        raise ConfigFaultsError([_whole(path, msg, line, len(before) + 1)]) from error


def _toml(path: Path, text: str) -> dict[str, Any]:
    if text.startswith("\ufeff"):
        raise ConfigFaultsError([_whole(path, "begins with a byte order mark; save it without")])
    if deep := _MANY_PARTS.search(text):
        line = text.count("\n", 0, deep.end()) + 1
        raise ConfigFaultsError([_whole(path, f"a key has more than {KEY_PARTS_MAX} parts", line)])
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigFaultsError([_syntax(path, text, str(error))]) from error
    except ValueError as error:
        # Python refuses such an integer with an error that has no place.
        digits = re.search(rf"[0-9_]{{{INTEGER_DIGITS_MAX},}}", text)
        line = text.count("\n", 0, digits.start()) + 1 if digits else 1
        msg = f"a number has more than {INTEGER_DIGITS_MAX} digits"
        raise ConfigFaultsError([_whole(path, msg, line)]) from error


def _whole(path: Path, message: str, line: int = 1, column: int = 1) -> Fault:
    return Fault(str(path), line, column, "(file)", message, "")


def _syntax(path: Path, text: str, message: str) -> Fault:
    """Turn tomllib's "… (at line 3, column 7)" or "… (at end of document)" into a fault."""
    what, _, place = message.rpartition(" (at ")
    lines = text.split("\n")
    if found := re.fullmatch(r"line (\d+), column (\d+)\)", place):
        line, column = int(found[1]), int(found[2])
    else:
        line, column = len(lines), len(lines[-1]) + 1
    source = broken_line(text, line)
    return made_fault(str(path), (line, column), "(syntax)", what or message, source)


def _bounded(path: KeyPath, value: Any) -> Iterator[KeyPath]:  # noqa: ANN401
    """Yield where a whole number has more than 64 bits, and put one of 64 bits in its place.

    TOML promises no more, and Python itself refuses to print those of thousands of digits.
    """
    places: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        places = list(value.items())
    elif isinstance(value, list):
        places = list(enumerate(value))
    for key, one in places:
        if isinstance(one, dict | list):
            yield from _bounded((*path, key), one)
        elif isinstance(one, int) and not -INTEGER_MAX <= one <= INTEGER_MAX:
            yield (*path, key)
            value[key] = INTEGER_MAX if one > 0 else -INTEGER_MAX


def _config(reader: Reader, raw: dict[str, Any], path: Path, digest: str) -> Config:
    huge = list(_bounded((), raw))
    top = Table(reader, (), raw)
    mode = top.choice("mode", ("production", "demo"), "production")
    in_words = top.flag(IN_WORDS)
    # With a fault in the mode it is not known which slots it forbids.
    strict = mode == "production" and not in_words
    strict = strict and reader.is_clean(("mode",)) and reader.is_clean((IN_WORDS,))
    state_dir = top.path_of("state_dir")
    store = read_store(top, _secret, strict=mode == "production")
    log_level = top.choice("log_level", ("debug", "info", "warning", "error"), "info")
    enterprise = _enterprise(top)
    control = _control(top)
    console = _console(top, control)
    metrics = _metrics(top, control, console)
    traces = read_traces(top, _secret)
    tasks = _tasks(top)
    slots, slot_names = _slots(top, strict=strict)
    shared = "store" in raw
    banks, bank_names, bank_tables = read_banks(top, slot_names, _secret, shared=shared)
    accounts, all_read = _accounts(top, bank_names)
    pools = read_pools(top, accounts, all_read=all_read)
    alarms = read_alarms(top, _secret)
    try_codecs(banks, accounts, bank_tables)
    top.close()
    for one in huge:
        # Where a range is known it has been told already.
        if reader.is_clean(one):
            reader.fault(one, f"must be from -{INTEGER_MAX} to {INTEGER_MAX}")
    return Config(
        path=path,
        digest=digest,
        mode="demo" if mode == "demo" else "production",
        state_dir=state_dir,
        store=store,
        log_level=log_level,
        enterprise=enterprise,
        control=control,
        console=console,
        metrics=metrics,
        traces=traces,
        tasks=tasks,
        slots=slots,
        banks=banks,
        accounts=accounts,
        pools=pools,
        alarms=alarms,
        raw=raw,
    )


def _enterprise(top: Table) -> Enterprise:
    table = top.table("enterprise", required=True)
    if table is None:
        return Enterprise("", "")
    found = Enterprise(table.text("id"), table.text("fep_number"))
    for key in ("id", "fep_number"):
        _printable(table, key, ENTERPRISE_CHARS_MAX)
    table.close()
    return found


def _printable(table: Table, key: str, chars_max: int) -> None:
    value = table.value(key)
    if isinstance(value, str) and not (len(value) <= chars_max and value.isprintable()):
        table.fault(key, f"must be printable text of at most {chars_max} characters")


# -- [control] ------------------------------------------------------------------------------------


def _control(top: Table) -> ControlConfig:
    table = top.table("control", required=True)
    if table is None:
        return ControlConfig(socket=Path("unset"))
    mode = table.parsed("socket_mode", _socket_mode, 0o660)
    limits = Limits()
    if (of_all := table.table("limits")) is not None:
        limits = _limits(of_all, limits)
        of_all.close()
    clients = {ClientName(name): _client(row, name, limits) for name, row in table.named("clients")}
    found = ControlConfig(
        socket=table.path_of("socket"),
        socket_mode=0o660 if mode is None else mode,
        heartbeat_s=table.number("heartbeat_s", 10.0, 0.05, 3600.0),
        tcp=_listeners(table),
        clients=clients,
        users=_users(table, clients),
        limits=limits,
    )
    table.close()
    return found


def _limits(table: Table, default: Limits) -> Limits:
    """Return what a client may use up; 0 is no limit."""
    return Limits(
        lines_s=_rate(table, "lines_s", default.lines_s),
        bytes_s=_rate(table, "bytes_s", default.bytes_s),
        open_max=table.integer("open_max", default.open_max, 0, 100_000_000),
        sessions_max=table.integer("sessions_max", default.sessions_max, 1, SESSIONS_MAX),
    )


def _rate(table: Table, key: str, default: float) -> float:
    rate = table.number(key, default, 0.0, RATE_MAX)
    if 0 < rate < 1:
        table.fault(key, "must be at least 1, or 0 for no limit")
        return default
    return rate


def _socket_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("must be three octal digits in quotes, such as '0660'")
    return int(text, 8)


def _client(table: Table, name: str, default: Limits) -> ClientConfig:
    _name_is_good(table, name, "a client's name")
    role = table.choice("role", ROLES, "finance")
    limits = _limits(table, default)
    table.close()
    return ClientConfig(cast(RoleName, role), limits)


def _name_is_good(table: Table, name: str, what: str) -> None:
    try:
        parse_name(name, what)
    except ValueError as error:
        table.fault("", str(error))


def _users(control: Table, clients: Container[str]) -> dict[str, UserConfig]:
    found: dict[str, UserConfig] = {}
    by_uid: dict[int, str] = {}
    for name, table in control.named("users"):
        _name_is_good(table, name, "a user's name")
        if table.is_clean() and name in clients:
            msg = f"client {name!r} of [control.clients] has this name too, and what it is asked"
            table.fault("", f"{msg} and told goes by the name; choose another")
        uid = table.integer("uid", None, 0, UID_MAX)
        role = table.choice("role", ROLES)
        is_read = table.has("uid") and table.reader.is_clean((*table.path, "uid"))
        if is_read and (other := by_uid.setdefault(uid, name)) != name:
            table.fault("uid", f"user {other!r} has this uid already; one person, one name")
        table.close()
        found[name] = UserConfig(uid, cast(RoleName, role))
    return found


def _listeners(control: Table) -> tuple[TcpListener, ...]:
    found: list[TcpListener] = []
    taken: set[tuple[str, int]] = set()
    for table in control.tables("tcp"):
        listener = _listener(table)
        if listener is None:
            continue
        address = (listener.host, listener.port)
        if listener.port and address in taken:
            table.fault("listen", "another [[control.tcp]] listens there")
        taken.add(address)
        found.append(listener)
    return tuple(found)


def _listener(table: Table) -> TcpListener | None:
    where = table.parsed("listen", _host_port)
    tls = table.table("tls")
    files = None if tls is None else _tls_files(tls)
    token_file = table.path_of("token_file") if table.has("token_file") else None
    keys_file = table.path_of("keys_file") if table.has("keys_file") else None
    given = [key for key in ("tls", "token_file", "keys_file") if table.has(key)]
    if len(given) > 1:
        table.fault(given[1], "give one of tls, token_file and keys_file")
    elif where is None:
        pass
    elif files is None and not _is_loopback(where[0]):
        msg = "is not loopback: plain TCP is refused there; give it tls = { certificate, key, "
        table.fault("listen", msg + "client_ca }")
    elif not given and table.values.keys() <= {"listen"}:
        msg = "needs token_file or keys_file, or tls = { certificate, key, client_ca }"
        table.fault("listen", msg)
    table.close()
    return None if where is None else TcpListener(where[0], where[1], files, token_file, keys_file)


def _console(top: Table, control: ControlConfig) -> ConsoleConfig:
    table = top.table("console")
    if table is None:
        return ConsoleConfig()
    where = table.parsed("listen", _host_port, ("127.0.0.1", CONSOLE_PORT))
    tls = table.table("tls")
    files = None
    if tls is not None:
        files = ConsoleTls(tls.path_of("certificate"), tls.path_of("key"))
        tls.close()
    limits = SessionLimits(
        table.number("idle_s", IDLE_SECONDS_DEFAULT, 1.0, 86_400.0),
        table.number("session_s", SESSION_SECONDS_DEFAULT, 1.0, 7 * 86_400.0),
    )
    if where is not None and files is None and not _is_loopback(where[0]):
        msg = "is not loopback: plain HTTP is refused there; give it tls = { certificate, key }"
        table.fault("listen", msg)
    if where is not None and where[1] and where in [(one.host, one.port) for one in control.tcp]:
        table.fault("listen", "a [[control.tcp]] listens there")
    table.close()
    return ConsoleConfig(where, files, limits)


def _metrics(top: Table, control: ControlConfig, console: ConsoleConfig) -> MetricsConfig:
    table = top.table("metrics")
    if table is None:
        return MetricsConfig()
    where = table.parsed("listen", _host_port, ("127.0.0.1", METRICS_PORT))
    tls = table.table("tls")
    files = None if tls is None else _tls_files(tls)
    if where is not None and files is None and not _is_loopback(where[0]):
        msg = "is not loopback: plain HTTP is refused there; give it tls = { certificate, key, "
        table.fault("listen", msg + "client_ca }")
    if where is not None and where[1]:
        if where in [(one.host, one.port) for one in control.tcp]:
            table.fault("listen", "a [[control.tcp]] listens there")
        if where == console.listen:
            table.fault("listen", "the console listens there")
    table.close()
    return MetricsConfig(where, files)


def _tls_files(table: Table) -> TlsFiles:
    crl = table.path_of("client_crl") if table.has("client_crl") else None
    found = TlsFiles(
        table.path_of("certificate"), table.path_of("key"), table.path_of("client_ca"), crl
    )
    table.close()
    return found


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (
        not bare
        or ":" in host.replace(f"[{bare}]", "")  # an IPv6 address stands in brackets
        or not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= PORT_MAX)
    ):
        raise ValueError("must be HOST:PORT, such as '127.0.0.1:7071' or '[::1]:7071'")
    return bare, int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tasks(top: Table) -> TasksConfig:
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


# -- [[slot]] -------------------------------------------------------------------------------------


def _slots(top: Table, *, strict: bool) -> tuple[tuple[SlotConfig, ...], frozenset[str]]:
    """Return the slots that can be used, and the names of all."""
    found: list[SlotConfig] = []
    names: set[str] = set()
    for table in top.tables("slot", SLOTS_MAX):
        slot = _slot(table, strict=strict)
        # A slot without a name that can be read may be the one that a bank means.
        names.add(table.written("name"))
        if slot is None:
            continue
        if faults := ring_faults([*found, slot]):
            among = ("card", "token")
            where = next((one for one in among if f"same {one}" in faults[-1]), "name")
            table.fault(where, faults[-1])
        else:
            found.append(slot)
    return tuple(found), frozenset(names)


def _slot(table: Table, *, strict: bool) -> SlotConfig | None:
    name = table.parsed("name", lambda text: parse_name(text, "a slot's name")) or ""
    backend = table.choice("backend", ("pcsc", "pkcs11", "software"))
    binding = None
    if (row := table.table("card")) is not None:
        guid, certificate = row.text("guid"), row.text("certificate_sha256")
        row.close()
        row.check(CardBinding, {"guid": guid, "certificate_sha256": certificate})
        if row.is_clean():
            binding = CardBinding(guid, certificate)
    token, wanted = _token(table.table("token")), _object(table.table("object"))
    module = table.path_of("module") if table.has("module") else None
    pin, key = _secret(table.table("pin")), _secret(table.table("key"))
    reference = table.choice("key_reference", ("9A", "9C", "9D", "9E"), "9C")
    seconds = table.number("sign_deadline_s", 10.0, 0.1, SIGN_SECONDS_MAX)
    user_id = table.text("sm2_user_id", USER_ID.decode("ascii"))
    table.close()
    good = table.is_clean()
    if backend == "software" and strict:
        msg = f'software keys are for mode = "demo"; or say so in words: {IN_WORDS} = true'
        table.fault("backend", msg)
    if not good:
        return None
    return table.made(
        partial(
            SlotConfig,
            SlotName(name),
            cast(Backend, backend),
            binding,
            pin,
            key,
            cast(KeyReference, reference),
            seconds,
            module,
            token,
            wanted,
            user_id,
        )
    )


def _token(table: Table | None) -> TokenBinding | None:
    if table is None:
        return None
    certificate = table.text("certificate_sha256")
    serial, label = table.text("serial", ""), table.text("label", "")
    table.close()
    given = {"certificate_sha256": certificate, "serial": serial, "label": label}
    table.check(TokenBinding, given)
    if not table.is_clean():
        return None
    return table.made(partial(TokenBinding, certificate, serial, label))


def _object(table: Table | None) -> ObjectRef:
    if table is None:
        return ObjectRef()
    wanted, label = table.text("id", ""), table.text("label", "")
    table.close()
    found = table.made(partial(ObjectRef, wanted, label)) if table.is_clean() else None
    return found or ObjectRef()


def _secret(table: Table | None) -> SecretRef | None:
    if table is None:
        return None
    credential = table.text("credential") if table.has("credential") else None
    file = table.path_of("file") if table.has("file") else None
    if credential is not None and table.reader.is_clean((*table.path, "credential")):
        table.check(SecretRef, {"credential": credential})
    table.close()
    return table.made(lambda: SecretRef(credential, file)) if table.is_clean() else None


# -- [[account]] ----------------------------------------------------------------------------------


def _accounts(top: Table, banks: frozenset[str]) -> tuple[dict[AccountNumber, Account], bool]:
    """Return the approved accounts (FEP-21), and whether each has a number that can be read.

    One with a fault is among them, so that it is known.
    """
    found: dict[AccountNumber, Account] = {}
    all_read = True
    for table in top.tables("account"):
        number = table.parsed("number", parse_account_number)
        bank = table.text("bank")
        name = table.text("name")
        bank_code = table.text("bank_code", "")
        bank_title = table.text("bank_title", "")
        all_read = all_read and bool(table.written("number"))
        if bank and bank not in banks and "" not in banks:
            table.fault("bank", f"there is no [[bank]] named {bank!r}{hint(bank, banks)}")
        if bank_code and not re.fullmatch("[0-9]{12}", bank_code):
            table.fault("bank_code", "must be 12 digits (CNAPS 行号) or left out")
        for key in ("name", "bank_title"):
            _printable(table, key, NAME_CHARS_MAX)
        table.close()
        if number is None:
            continue
        if number in found:
            table.fault("number", f"account {number} is there twice")
        found[number] = Account(number, BankName(bank), name, bank_code, bank_title)
    return found, all_read
