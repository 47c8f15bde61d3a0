"""The ``[alarms]`` table: who is told, how, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from fep.alarms.config import AlarmsConfig, ChannelKind, HttpTarget, MailTarget, SyslogTarget
from fep.alarms.state import AlarmKind, Severity
from fep.daemon import config
from fep.daemon.tables import without_secrets

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "config/fep.toml"

GOOD = """
[alarms]
repeat_s = 1800
severity = "major"
cleared = false

[[alarms.channel]]
name = "duty"
kind = "dingtalk"
url = { file = "duty.url" }
secret = { credential = "duty-secret" }
severities = ["critical"]
kinds = ["LINK_DOWN"]

[[alarms.channel]]
name = "hook"
kind = "webhook"
url = "https://alarms.example.com/fep"
ca = "ca.crt"
proxy = "http://10.0.0.9:3128"
language = "en"

[[alarms.channel]]
name = "mail"
kind = "mail"
host = "smtp.example.com"
tls = "tls"
user = "fep"
password = { file = "mail.password" }
from = "fep@example.com"
to = ["duty@example.com", "li@example.com"]

[[alarms.channel]]
name = "siem"
kind = "syslog"
address = "udp:[fe80::1]"
facility = "local3"
"""


def read(directory: Path, text: str) -> Path:
    path = directory / "fep.toml"
    example = EXAMPLE.read_text("utf-8").replace("\n[alarms]\n", "\n")
    path.write_text(f"{example}\n{text}\n", "utf-8")
    return path


def test_without_its_table_nobody_is_told(tmp_path: Path) -> None:
    assert config.load(read(tmp_path, "")).alarms == AlarmsConfig()


def test_every_kind_is_read(tmp_path: Path) -> None:
    found = config.load(read(tmp_path, GOOD))
    alarms = found.alarms
    assert (alarms.repeat_s, alarms.tells_cleared, alarms.group_s) == (1800.0, False, 5.0)
    duty, hook, mail, siem = alarms.channels
    assert (duty.kind, duty.language, duty.per_minute) == (ChannelKind.DINGTALK, "zh", 15)
    assert duty.severities == {Severity.CRITICAL}
    assert duty.kinds == {AlarmKind.LINK_DOWN}
    assert hook.severities == {Severity.CRITICAL, Severity.MAJOR}
    assert hook.language == "en"
    assert hook.kinds == set(AlarmKind)
    assert isinstance(hook.target, HttpTarget)
    assert hook.target.url() == "https://alarms.example.com/fep"
    assert (hook.target.ca, hook.target.proxy) == (tmp_path / "ca.crt", "http://10.0.0.9:3128")
    assert isinstance(mail.target, MailTarget)
    assert (mail.target.port, mail.target.security) == (465, "tls")
    assert mail.target.recipients == ("duty@example.com", "li@example.com")
    assert siem.target == SyslogTarget("udp", host="fe80::1", port=514, facility=19)
    faults = "\n".join(config.secret_faults(found))
    for file in ("duty.url", "mail.password", "ca.crt"):
        assert file in faults, "files that are not there are told beforehand"


def test_a_secret_is_read_when_it_is_used(tmp_path: Path) -> None:
    (duty, *_) = config.load(read(tmp_path, GOOD)).alarms.channels
    assert isinstance(duty.target, HttpTarget)
    for url in ("https://one.example/", "https://two.example/"):
        (tmp_path / "duty.url").write_text(f"{url}\n")
        (tmp_path / "duty.url").chmod(0o600)
        assert duty.target.url() == url


def test_another_table_is_another_channel(tmp_path: Path) -> None:
    before = config.load(read(tmp_path, GOOD)).alarms.channels
    same = config.load(read(tmp_path, GOOD + "# a comment\n")).alarms.channels
    after = config.load(read(tmp_path, GOOD.replace("duty.url", "other.url"))).alarms.channels
    assert [one.digest for one in before] == [one.digest for one in same]
    assert [a.digest == b.digest for a, b in zip(before, after, strict=True)] == [
        False,
        True,
        True,
        True,
    ]


HTTP = '[[alarms.channel]]\nname = "a"\nkind = "webhook"\nurl = "https://a.example/"\n'
ROBOT = '[[alarms.channel]]\nname = "a"\nkind = "wecom"\nurl = { file = "u" }\n'
MAIL = '[[alarms.channel]]\nname = "a"\nkind = "mail"\nhost = "h"\nfrom = "a@b.c"\nto = ["a@b.c"]\n'
SYSLOG = '[[alarms.channel]]\nname = "a"\nkind = "syslog"\n'


@pytest.mark.parametrize(
    ("text", "key", "told"),
    [
        ("[alarms]\nrepeat_s = 5", "alarms.repeat_s", "must be 0 (never) or at least 60"),
        ("[alarms]\ngroup_s = -1", "alarms.group_s", "from 0 to 600"),
        ("[alarms]\nage_max_s = 1", "alarms.age_max_s", "from 60 to"),
        ('[alarms]\nseverity = "loud"', "alarms.severity", "must be one of critical"),
        ('[alarms]\ncleared = "no"', "alarms.cleared", "must be true or false"),
        ("[alarms]\nmore = 1", "alarms.more", "unknown key"),
        (HTTP + HTTP, "alarms.channel.1.name", "is there twice"),
        (HTTP + "language = 'fr'", "alarms.channel.0.language", "must be one of zh, en"),
        (HTTP + "kinds = ['LINK_DWN']", "alarms.channel.0.kinds", "did you mean 'LINK_DOWN'"),
        (HTTP + "severities = []", "alarms.channel.0.severities", "not empty"),
        (HTTP + "per_minute = 0", "alarms.channel.0.per_minute", "from 1 to 6000"),
        (HTTP + "host = 'x'", "alarms.channel.0.host", "unknown key"),
        (HTTP + "proxy = 'http://u:p@h:1'", "alarms.channel.0.proxy", "without a user"),
        (HTTP.replace("https://a", "http://a"), "alarms.channel.0.url", "begin with https://"),
        (HTTP.replace("https://a", "https://u:p@a"), "alarms.channel.0.url", "are not taken"),
        (
            ROBOT.replace('{ file = "u" }', '"https://a/"'),
            "alarms.channel.0.url",
            "can speak as it",
        ),
        (ROBOT + "secret = { file = 's' }", "alarms.channel.0.secret", "unknown key"),
        (ROBOT + "per_minute = 21", "alarms.channel.0.per_minute", "from 1 to 20"),
        (MAIL + "tls = 'none'", "alarms.channel.0.tls", "would show the mail on the way"),
        (MAIL + "user = 'a'", "alarms.channel.0.user", "needs password"),
        (MAIL + "password = { file = 'a' }", "alarms.channel.0.password", "needs user"),
        (MAIL.replace('["a@b.c"]', "[]"), "alarms.channel.0.to", "a list of 1 to 50"),
        (MAIL.replace('["a@b.c"]', '["a b@c"]'), "alarms.channel.0.to", "must be an address"),
        (MAIL.replace('from = "a', 'from = "a\\r\\nb'), "alarms.channel.0.from", "an address"),
        (SYSLOG + "address = 'http:h:1'", "alarms.channel.0.address", "must be unix:"),
        (SYSLOG + "address = 'udp:h:0'", "alarms.channel.0.address", "must be unix:"),
        (SYSLOG + "address = 'unix:log'", "alarms.channel.0.address", "must be unix:"),
        (SYSLOG + f"address = 'unix:/{'x' * 108}'", "alarms.channel.0.address", "107 bytes"),
        (SYSLOG, "alarms.channel.0.address", "is missing"),
    ],
)
def test_its_faults_are_told_at_their_key(tmp_path: Path, text: str, key: str, told: str) -> None:
    faults = config.check(read(tmp_path, text))
    assert [one.key for one in faults] == [key]
    assert told in faults[0].message


def test_there_are_not_more_channels_than_anybody_needs(tmp_path: Path) -> None:
    many = "\n".join(HTTP.replace('"a"', f'"a{number}"') for number in range(17))
    (fault,) = config.check(read(tmp_path, many))
    assert (fault.key, fault.message) == ("alarms.channel.16", "is one of more than 16")


def test_a_robots_url_is_not_shown() -> None:
    for line in (
        'url = "https://oapi.example/robot/send?access_token=abcdef123"',
        'url = "https://qyapi.example/send?a=1&key=abcdef123"',
        'url = "https://open.example/bot/v2/hook/abcdef123"',
    ):
        assert "abcdef123" not in without_secrets(line)
        assert len(without_secrets(line)) == len(line)
