"""What the configuration says of sending alarms out (告警外发); one that exists is valid."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import attrs

from fep.alarms.state import AlarmKind, Severity

REPEAT_SECONDS_DEFAULT: Final = 3600.0
GROUP_SECONDS_DEFAULT: Final = 5.0
AGE_SECONDS_DEFAULT: Final = 86_400.0

Language = Literal["zh", "en"]
ReadSecret = Callable[[], str]
"""Reads a secret's file; blocking, raises ``FepError``."""
Security = Literal["starttls", "tls", "none"]
Way = Literal["unix", "udp", "tcp"]


class ChannelKind(StrEnum):
    """How a channel speaks."""

    WEBHOOK = "webhook"
    DINGTALK = "dingtalk"
    """钉钉自定义机器人."""
    WECOM = "wecom"
    """企业微信群机器人."""
    FEISHU = "feishu"
    """飞书自定义机器人."""
    MAIL = "mail"
    SYSLOG = "syslog"


PER_MINUTE_DEFAULT: Final[dict[ChannelKind, int]] = {
    ChannelKind.WEBHOOK: 60,
    ChannelKind.DINGTALK: 15,
    ChannelKind.WECOM: 15,
    ChannelKind.FEISHU: 60,
    ChannelKind.MAIL: 10,
    ChannelKind.SYSLOG: 600,
}
"""Messages a minute. DingTalk and WeCom take 20 from a robot (DingTalk is then deaf for ten
minutes), Feishu 100; we stay below, since our minute is not theirs."""
PER_MINUTE_MOST: Final[dict[ChannelKind, int]] = {
    ChannelKind.WEBHOOK: 6000,
    ChannelKind.DINGTALK: 20,
    ChannelKind.WECOM: 20,
    ChannelKind.FEISHU: 100,
    ChannelKind.MAIL: 600,
    ChannelKind.SYSLOG: 60_000,
}


@attrs.frozen
class HttpTarget:
    """A URL that takes messages by POST."""

    url: ReadSecret = attrs.field(eq=False, repr=False)
    """A robot's URL is its password, so that it is read like one."""
    secret: ReadSecret | None = attrs.field(eq=False, repr=False)
    """What signs; None: not signed."""
    ca: Path | None = None
    """PEM of the authorities that may have signed the server's certificate; None: the system's."""
    proxy: str | None = None


@attrs.frozen
class MailTarget:
    """A mail server and who is written to."""

    host: str
    port: int
    security: Security
    sender: str
    recipients: tuple[str, ...]
    user: str | None = None
    password: ReadSecret | None = attrs.field(default=None, eq=False, repr=False)
    ca: Path | None = None


@attrs.frozen
class SyslogTarget:
    """A syslog receiver."""

    way: Way
    path: str = ""
    host: str = ""
    port: int = 0
    facility: int = 3
    """RFC 5424, 6.2.1: 3 is daemon, 16 to 23 are local0 to local7."""


Target = HttpTarget | MailTarget | SyslogTarget


@attrs.frozen
class ChannelConfig:
    """``[[alarms.channel]]``."""

    name: str
    kind: ChannelKind
    target: Target
    language: Language = "zh"
    severities: frozenset[Severity] = frozenset(Severity)
    kinds: frozenset[AlarmKind] = frozenset(AlarmKind)
    per_minute: int = 15
    digest: str = ""
    """Of its table in the file: another one is another channel of the same name."""
    secret_files: tuple[Path, ...] = ()
    """Those it names, for who looks whether they can be used."""


@attrs.frozen
class AlarmsConfig:
    """``[alarms]``."""

    channels: tuple[ChannelConfig, ...] = ()
    repeat_s: float = REPEAT_SECONDS_DEFAULT
    """Told again after so long while nobody acknowledges it; 0: never."""
    group_s: float = GROUP_SECONDS_DEFAULT
    """What comes within this time is one message."""
    age_max_s: float = AGE_SECONDS_DEFAULT
    """What could not be told for so long is given up."""
    tells_cleared: bool = True
