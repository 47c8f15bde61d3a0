"""The ``[alarms]`` table and its ``[[alarms.channel]]``: who is told of alarms, and how."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from fep.alarms.config import (
    AGE_SECONDS_DEFAULT,
    GROUP_SECONDS_DEFAULT,
    PER_MINUTE_DEFAULT,
    PER_MINUTE_MOST,
    REPEAT_SECONDS_DEFAULT,
    AlarmsConfig,
    ChannelConfig,
    ChannelKind,
    HttpTarget,
    Language,
    MailTarget,
    ReadSecret,
    Security,
    SyslogTarget,
    Target,
)
from fep.alarms.senders import check_url, is_loopback
from fep.alarms.state import AlarmKind, Severity
from fep.daemon.tables import Table, hint
from fep.domain.ids import parse_name
from fep.keys.config import SecretRef
from fep.keys.credentials import read_text

CHANNELS_MAX: Final = 16
RECIPIENTS_MAX: Final = 50
ADDRESS_CHARS_MAX: Final = 254
"""RFC 5321, 4.5.3.1.3, without the two brackets."""
SOCKET_BYTES_MAX: Final = 107
"""Of a Unix socket's path on Linux."""
PORT_MAX: Final = 65_535
REPEAT_SECONDS_MIN: Final = 60.0
WEEK_SECONDS: Final = 7 * 86_400.0
SYSLOG_PORT: Final = 514
MAIL_PORTS: Final[dict[str, int]] = {"starttls": 587, "tls": 465, "none": 25}
FACILITIES: Final = {"daemon": 3, "user": 1} | {f"local{one}": 16 + one for one in range(8)}
ROBOTS: Final = frozenset({ChannelKind.DINGTALK, ChannelKind.WECOM, ChannelKind.FEISHU})

_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}")

Secret = Callable[[Table | None], SecretRef | None]


def read_alarms(top: Table, secret: Secret) -> AlarmsConfig:
    """Return who is told of alarms; nobody without the table.

    Args:
        top: the whole file.
        secret: reads where a secret is.
    """
    table = top.table("alarms")
    if table is None:
        return AlarmsConfig()
    repeat_s = table.number("repeat_s", REPEAT_SECONDS_DEFAULT, 0.0, WEEK_SECONDS)
    if 0 < repeat_s < REPEAT_SECONDS_MIN:
        table.fault("repeat_s", f"must be 0 (never) or at least {REPEAT_SECONDS_MIN:g}")
    least = table.choice("severity", tuple(one.value for one in Severity), Severity.MINOR.value)
    silent = table.has("cleared") and not table.flag("cleared")
    found = AlarmsConfig(
        channels=_channels(table, secret, Severity(least)),
        repeat_s=repeat_s,
        group_s=table.number("group_s", GROUP_SECONDS_DEFAULT, 0.0, 600.0),
        age_max_s=table.number("age_max_s", AGE_SECONDS_DEFAULT, 60.0, WEEK_SECONDS),
        tells_cleared=not silent,
    )
    table.close()
    return found


def _channels(table: Table, secret: Secret, least: Severity) -> tuple[ChannelConfig, ...]:
    found: dict[str, ChannelConfig] = {}
    for number, one in enumerate(table.tables("channel")):
        channel = _channel(one, secret, least)
        if number == CHANNELS_MAX:
            one.fault("", f"is one of more than {CHANNELS_MAX}")
        if channel is None:
            continue
        if channel.name in found:
            one.fault("name", f"channel {channel.name!r} is there twice")
        found[channel.name] = channel
    return tuple(found.values())


def _channel(table: Table, secret: Secret, least: Severity) -> ChannelConfig | None:
    name = table.parsed("name", lambda text: parse_name(text, "a channel's name")) or ""
    kind = ChannelKind(table.choice("kind", tuple(one.value for one in ChannelKind)))
    language = cast(Language, table.choice("language", ("zh", "en"), "zh"))
    severities = _words(table, "severities", [one.value for one in Severity])
    kinds = _words(table, "kinds", [one.value for one in AlarmKind])
    default, most = PER_MINUTE_DEFAULT[kind], PER_MINUTE_MOST[kind]
    per_minute = table.integer("per_minute", default, 1, most)
    files: list[Path] = []
    target: Target | None
    match kind:
        case ChannelKind.MAIL:
            target = _mail(table, secret, files)
        case ChannelKind.SYSLOG:
            target = _syslog(table)
        case _:
            target = _http(table, kind, secret, files)
    table.close()
    if target is None or not table.is_clean():
        return None
    ranked = list(Severity)
    allowed = frozenset(ranked[: ranked.index(least) + 1])
    return ChannelConfig(
        name=name,
        kind=kind,
        target=target,
        language=language,
        severities=allowed & frozenset(Severity(one) for one in severities or Severity),
        kinds=frozenset(AlarmKind(one) for one in kinds or AlarmKind),
        per_minute=per_minute,
        # Paths are told from where the file is; it stays there while it is read again.
        digest=hashlib.sha256(repr(sorted(table.values.items())).encode()).hexdigest(),
        secret_files=tuple(files),
    )


def _words(table: Table, key: str, known: list[str]) -> list[str]:
    """Return a list of known words; empty where there is none."""
    value = table.value(key)
    if value is None:
        return []
    if not isinstance(value, list) or not value:
        table.fault(key, "must be a list of words, not empty; leave it out for all")
        return []
    found: list[str] = []
    for one in value:
        if isinstance(one, str) and one in known:
            found.append(one)
        else:
            near = hint(one, known) if isinstance(one, str) else ""
            table.fault(key, f"{one!r} is none of {', '.join(known)}{near}")
    return found


def _read(reference: SecretRef, files: list[Path]) -> ReadSecret:
    if reference.file is not None:
        files.append(reference.file)
    return partial(read_text, reference)


def _http(table: Table, kind: ChannelKind, secret: Secret, files: list[Path]) -> HttpTarget | None:
    url = _url(table, kind, secret, files)
    key = None
    # WeCom's robots have nothing but their URL.
    if kind is not ChannelKind.WECOM:
        reference = secret(table.table("secret"))
        key = None if reference is None else _read(reference, files)
    ca = table.path_of("ca") if table.has("ca") else None
    proxy = table.parsed("proxy", _proxy) if table.has("proxy") else None
    return None if url is None else HttpTarget(url, key, ca, proxy)


def _url(table: Table, kind: ChannelKind, secret: Secret, files: list[Path]) -> ReadSecret | None:
    value = table.value("url", required=True)
    if isinstance(value, dict):
        reference = secret(table.table("url"))
        return None if reference is None else _read(reference, files)
    if value is None:
        return None
    if kind in ROBOTS:
        msg = (
            "whoever knows a robot's URL can speak as it: url = { credential = … } or { file = … }"
        )
        table.fault("url", msg)
        return None
    text = table.parsed("url", _plain_url)
    return None if text is None else lambda: text


def _plain_url(text: str) -> str:
    check_url(text)
    return text


def _proxy(text: str) -> str:
    found = re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})/?", text)
    if found is None or int(found[2]) > PORT_MAX:
        raise ValueError("must be http://HOST:PORT, without a user")
    return text


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ValueError("must be the name or the address of a host")
    return text


def _address(text: str) -> str:
    if len(text) > ADDRESS_CHARS_MAX or not _ADDRESS.fullmatch(text):
        raise ValueError("must be an address such as duty@example.com")
    return text


def _mail(table: Table, secret: Secret, files: list[Path]) -> MailTarget | None:
    host = table.parsed("host", _host) or ""
    security = cast(Security, table.choice("tls", ("starttls", "tls", "none"), "starttls"))
    port = table.integer("port", MAIL_PORTS[security], 1, PORT_MAX)
    sender = table.parsed("from", _address) or ""
    recipients = _recipients(table)
    user = table.text("user", "") or None
    reference = secret(table.table("password"))
    ca = table.path_of("ca") if table.has("ca") else None
    if user is not None and not (user.isascii() and user.isprintable()):
        table.fault("user", "must be printable ASCII")
    if (user is None) != (reference is None) and not table.has("password"):
        table.fault("user", "needs password = { credential = … } or { file = … }")
    elif user is None and reference is not None:
        table.fault("password", "needs user")
    if security == "none" and host and not is_loopback(host):
        table.fault("tls", 'none would show the mail on the way: "starttls" or "tls"')
    password = None if reference is None else _read(reference, files)
    return MailTarget(host, port, security, sender, recipients, user, password, ca)


def _recipients(table: Table) -> tuple[str, ...]:
    value: Any = table.value("to", required=True)
    if value is None:
        return ()
    if not isinstance(value, list) or not 0 < len(value) <= RECIPIENTS_MAX:
        table.fault("to", f"must be a list of 1 to {RECIPIENTS_MAX} addresses")
        return ()
    found = []
    for one in value:
        made = table.made(partial(_address, one if isinstance(one, str) else ""), "to")
        found += [] if made is None else [made]
    return tuple(found)


def _syslog(table: Table) -> SyslogTarget | None:
    facility = FACILITIES[table.choice("facility", tuple(FACILITIES), "daemon")]
    return table.parsed("address", partial(_syslog_address, facility))


def _syslog_address(facility: int, text: str) -> SyslogTarget:
    way, _, rest = text.partition(":")
    if way == "unix" and rest.startswith("/") and "\0" not in rest:
        if len(rest.encode()) <= SOCKET_BYTES_MAX:
            return SyslogTarget("unix", path=rest, facility=facility)
        msg = f"the path of a socket has at most {SOCKET_BYTES_MAX} bytes"
        raise ValueError(msg)
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?", rest)
    if found is None or not 0 < (port := int(found[3] or SYSLOG_PORT)) <= PORT_MAX:
        raise ValueError("must be unix:/dev/log, udp:HOST:PORT or tcp:HOST:PORT")
    host = found[1] or found[2]
    match way:
        case "udp" | "tcp":
            return SyslogTarget(cast(Any, way), host=host, port=port, facility=facility)
        case _:
            raise ValueError("must be unix:/dev/log, udp:HOST:PORT or tcp:HOST:PORT")
