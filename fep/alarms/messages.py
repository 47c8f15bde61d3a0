"""The notices of one message in the words and forms of each kind of channel. Pure.

What leaves names no account: numbers are masked as in the logs. Where a robot takes little text the
most severe alarms are told whole and the others counted.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, assert_never
from urllib.parse import quote_plus

import attrs
import msgspec

from fep.alarms.config import ChannelKind, Language
from fep.alarms.outgoing import Notice, What
from fep.alarms.state import MEANINGS, Severity
from fep.domain.clock import to_shanghai, to_text
from fep.logs import masked

if TYPE_CHECKING:
    from email.message import EmailMessage

TEXT_BYTES_MAX: Final[dict[ChannelKind, int]] = {
    ChannelKind.WEBHOOK: 64_000,
    ChannelKind.DINGTALK: 12_000,
    ChannelKind.WECOM: 2048,
    ChannelKind.FEISHU: 12_000,
    ChannelKind.MAIL: 200_000,
    ChannelKind.SYSLOG: 2048,
}
"""Of a message's text. WeCom takes 2048 bytes of text (developer.work.weixin.qq.com, path/91770),
DingTalk and Feishu 20 kB of the whole request (open.dingtalk.com, custom-robot-access;
open.feishu.cn, bot-v3/add-custom-bot); RFC 5426, 3.2, asks for no more than 2048 in a datagram."""
NOTICES_MAX: Final[dict[ChannelKind, int]] = {
    ChannelKind.WEBHOOK: 100,
    ChannelKind.DINGTALK: 1000,
    ChannelKind.WECOM: 1000,
    ChannelKind.FEISHU: 1000,
    ChannelKind.MAIL: 200,
    ChannelKind.SYSLOG: 100,
}
"""Notices of one message. A robot's message tells what it has no room for as a number, so that a
storm is one message; who reads by program gets every one, in as many messages as it takes."""
COUNT_BYTES: Final = 160
"""Kept for the line that counts the others."""
CAUSE_CHARS_MAX: Final = 300
SUBJECT_CHARS_MAX: Final = 100
ERROR_CHARS_MAX: Final = 200
ID_BYTES: Final = 12
SYSLOG_VERSION: Final = 1
SYSLOG_SEVERITIES: Final = {Severity.CRITICAL: 2, Severity.MAJOR: 3, Severity.MINOR: 4}
SYSLOG_CLEARED: Final = 5
"""Notice; RFC 5424, 6.2.1."""

_WORDS: Final[dict[Language, dict[str, str]]] = {
    "zh": {
        "critical": "严重",
        "major": "重要",
        "minor": "一般",
        "raised": "告警",
        "again": "告警未确认",
        "cleared": "已解除",
        "head": "【银企前置机 {machine}】告警 {count} 条",
        "test_head": "【银企前置机 {machine}】告警通道测试",
        "test_text": "这是一条测试消息，无需处理。通道：{channel}",
        "cause": "原因：{cause}",
        "action": "处理：{action}",
        "since": "发生于 {since}，共 {count} 次",
        "until": "{since} 发生，{until} 解除",
        "others": "另有 {count} 条（{severities}），请在控制台或用 fepctl alarms 查看",
        "note": "北京时间。编号相同的为重复发送。",
    },
    "en": {
        "critical": "critical",
        "major": "major",
        "minor": "minor",
        "raised": "ALARM",
        "again": "ALARM, not acknowledged",
        "cleared": "cleared",
        "head": "[fep {machine}] {count} alarm(s)",
        "test_head": "[fep {machine}] test of an alarm channel",
        "test_text": "This is a test; nothing is to be done. Channel: {channel}",
        "cause": "cause: {cause}",
        "action": "what to do: {action}",
        "since": "since {since}, {count} time(s)",
        "until": "from {since} until {until}",
        "others": "and {count} more ({severities}): see the console or fepctl alarms",
        "note": "Times are China's. The same id is the same notice, sent twice.",
    },
}


@attrs.frozen
class Entry:
    """One alarm of a message: its newest notice, and the ids of all that the message has of it."""

    notice: Notice
    ids: tuple[str, ...]


@attrs.frozen
class Message:
    """What goes to one channel at once."""

    id: str
    entries: tuple[Entry, ...]
    """None of a test."""
    machine: str
    channel: str
    language: Language
    moment: dt.datetime


def message_of(
    notices: Sequence[Notice], machine: str, channel: str, language: Language, moment: dt.datetime
) -> Message:
    """Return the message of these notices; of one alarm's the newest is told.

    The same notices give the same id.
    """
    by_alarm: dict[str, list[Notice]] = {}
    for one in notices:
        by_alarm.setdefault(one.alarm_id, []).append(one)
    entries = tuple(
        Entry(max(some, key=lambda one: (one.noted_s, one.what is What.CLEARED)), _ids(some))
        for some in by_alarm.values()
    )
    return Message(
        _digest([one.id for one in notices]), entries, machine, channel, language, moment
    )


def trial_message(
    machine: str, channel: str, language: Language, moment: dt.datetime, test_id: str
) -> Message:
    """Return a message that says that it is a test."""
    return Message(_digest([test_id]), (), machine, channel, language, moment)


def _ids(notices: Sequence[Notice]) -> tuple[str, ...]:
    return tuple(one.id for one in notices)


def _digest(ids: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(ids).encode(), digest_size=ID_BYTES).hexdigest()


# -- words -----------------------------------------------------------------------------------------


def one_line(text: str, chars_max: int) -> str:
    """Return text without account numbers, line breaks and other control characters."""
    plain = "".join(one if one.isprintable() else " " for one in text)
    return masked(" ".join(plain.split()))[:chars_max]


def headline(message: Message) -> str:
    """Return the first line: from whom it is, and how much."""
    words = _WORDS[message.language]
    if not message.entries:
        return words["test_head"].format(machine=message.machine)
    return words["head"].format(machine=message.machine, count=len(message.entries))


def text_of(message: Message, bytes_max: int) -> str:
    """Return the message as lines of text of at most so many bytes of UTF-8."""
    words = _WORDS[message.language]
    if not message.entries:
        told = words["test_text"].format(channel=message.channel)
        return f"{headline(message)}\n{told}"
    parts = [headline(message)]
    size = len(parts[0].encode())
    for place, entry in enumerate(message.entries):
        part = "\n".join(_lines(entry, message.language))
        needed = len(part.encode()) + 2
        is_last = place == len(message.entries) - 1
        if size + needed + (0 if is_last else COUNT_BYTES) > bytes_max:
            parts.append(_others(message.entries[place:], message.language))
            break
        parts.append(part)
        size += needed
    return "\n\n".join(parts)


def _lines(entry: Entry, language: Language) -> list[str]:
    notice, words = entry.notice, _WORDS[language]
    meaning = MEANINGS[notice.kind]
    title = meaning.title_zh if language == "zh" else meaning.title
    action = meaning.action_zh if language == "zh" else meaning.action
    subject = one_line(notice.subject, SUBJECT_CHARS_MAX)
    what, severity = words[notice.what.value], words[notice.severity.value]
    mark = "✔" if notice.what is What.CLEARED else "●"
    first = f"{mark} {what} [{severity}] {title}: {subject}"
    since = _time(notice.raised_at)
    if notice.what is What.CLEARED:
        return [first, words["until"].format(since=since, until=_time(notice.noted_at))]
    return [
        first,
        words["cause"].format(cause=one_line(notice.cause, CAUSE_CHARS_MAX)),
        words["action"].format(action=action),
        words["since"].format(since=since, count=notice.count),
    ]


def _time(moment: dt.datetime) -> str:
    return to_shanghai(moment).strftime("%m-%d %H:%M:%S")


def _others(entries: Sequence[Entry], language: Language) -> str:
    words = _WORDS[language]
    counted = Counter(entry.notice.severity for entry in entries)
    severities = ", ".join(f"{words[one.value]} {counted[one]}" for one in Severity if counted[one])
    return words["others"].format(count=len(entries), severities=severities)


# -- robots and webhooks ---------------------------------------------------------------------------


@attrs.frozen
class Post:
    """An HTTP request; the URL may hold a secret."""

    url: str = attrs.field(repr=False)
    body: bytes
    headers: dict[str, str] = attrs.field(repr=False)


def post_of(message: Message, kind: ChannelKind, url: str, secret: str | None) -> Post:
    """Return the request that brings a message to a robot or a webhook.

    DingTalk: open.dingtalk.com/document/robots/custom-robot-access and …/customize-robot-security-
    settings. WeCom: developer.work.weixin.qq.com/document/path/91770. Feishu:
    open.feishu.cn/document/client-docs/bot-v3/add-custom-bot.
    """
    text = text_of(message, TEXT_BYTES_MAX[kind])
    seconds = int(message.moment.timestamp())
    match kind:
        case ChannelKind.DINGTALK:
            if secret is not None:
                url = dingtalk_signed(url, secret, int(message.moment.timestamp() * 1000))
            return _json_post(url, {"msgtype": "text", "text": {"content": text}})
        case ChannelKind.WECOM:
            return _json_post(url, {"msgtype": "text", "text": {"content": text}})
        case ChannelKind.FEISHU:
            signed: dict[str, Any] = {}
            if secret is not None:
                signed = {"timestamp": str(seconds), "sign": feishu_sign(secret, seconds)}
            return _json_post(url, signed | {"msg_type": "text", "content": {"text": text}})
        case ChannelKind.WEBHOOK:
            post = _json_post(url, webhook_value(message))
            headers = {"webhook-id": message.id, "webhook-timestamp": str(seconds)}
            if secret is not None:
                headers["webhook-signature"] = webhook_sign(secret, message.id, seconds, post.body)
            return attrs.evolve(post, headers=post.headers | headers)
        case ChannelKind.MAIL | ChannelKind.SYSLOG:
            msg = f"{kind.value} is not posted"
            raise AssertionError(msg)
        case _:
            assert_never(kind)


def _json_post(url: str, value: Any) -> Post:  # noqa: ANN401 - any JSON value
    headers = {"content-type": "application/json; charset=utf-8"}
    return Post(url, msgspec.json.encode(value), headers)


def dingtalk_signed(url: str, secret: str, milliseconds: int) -> str:
    """Return a DingTalk robot's URL with the time and its signature (加签)."""
    text = f"{milliseconds}\n{secret}".encode()
    sign = base64.b64encode(hmac.digest(secret.encode(), text, "sha256")).decode()
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}timestamp={milliseconds}&sign={quote_plus(sign)}"


def feishu_sign(secret: str, seconds: int) -> str:
    """Return the signature of a Feishu robot's message (签名校验): the text is the key."""
    key = f"{seconds}\n{secret}".encode()
    return base64.b64encode(hmac.digest(key, b"", "sha256")).decode()


def webhook_sign(secret: str, message_id: str, seconds: int, body: bytes) -> str:
    """Return the signature of a webhook's message.

    As Standard Webhooks has it (www.standardwebhooks.com), which receivers have libraries for: a
    secret that begins with ``whsec_`` is the key in base64, any other is the key as it stands.

    Raises:
        ValueError: what follows ``whsec_`` is not base64.
    """
    if secret.startswith("whsec_"):
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    else:
        key = secret.encode()
    signed = b".".join((message_id.encode(), str(seconds).encode(), body))
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def webhook_value(message: Message) -> dict[str, Any]:
    """Return what a webhook is given: an object for programs."""
    return {
        "type": "fep.alarms" if message.entries else "fep.test",
        "message_id": message.id,
        "machine": message.machine,
        "timestamp": to_text(message.moment),
        "text": text_of(message, TEXT_BYTES_MAX[ChannelKind.WEBHOOK]),
        "alarms": [_value(entry) for entry in message.entries],
    }


def _value(entry: Entry) -> dict[str, Any]:
    notice = entry.notice
    meaning = MEANINGS[notice.kind]
    return {
        "ids": list(entry.ids),
        "what": notice.what.value,
        "alarm_id": notice.alarm_id,
        "kind": notice.kind.value,
        "subject": one_line(notice.subject, SUBJECT_CHARS_MAX),
        "severity": notice.severity.value,
        "title": meaning.title,
        "title_zh": meaning.title_zh,
        "cause": one_line(notice.cause, CAUSE_CHARS_MAX),
        "action": meaning.action,
        "action_zh": meaning.action_zh,
        "count": notice.count,
        "raised_at": to_text(notice.raised_at),
        "noted_at": to_text(notice.noted_at),
    }


def refusal(kind: ChannelKind, status: int, body: bytes) -> str:
    """Return why an answer is none that takes the message; empty when it is.

    Robots answer 200 with a code of their own: ``errcode`` of DingTalk and WeCom, ``code`` of
    Feishu (``StatusCode`` of its older answers). What is none of that is a refusal.
    """
    told = one_line(body.decode("utf-8", "replace"), ERROR_CHARS_MAX)
    if not 200 <= status < 300:
        return f"HTTP {status}: {told}".rstrip(": ")
    if kind is ChannelKind.WEBHOOK:
        return ""
    try:
        value = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return f"the answer is not JSON: {told}"
    names = ("code", "StatusCode") if kind is ChannelKind.FEISHU else ("errcode",)
    codes = [value[name] for name in names if name in value] if isinstance(value, dict) else []
    if not codes:
        return f"the answer has no {names[0]}: {told}"
    if all(code == 0 and code is not False for code in codes):
        return ""
    return f"refused: {told}"


# -- mail ------------------------------------------------------------------------------------------


def mail_of(message: Message, sender: str, recipients: Sequence[str]) -> EmailMessage:
    """Return the message as a mail."""
    # They take long to load, and most daemons write no mail.
    from email.headerregistry import Address  # noqa: PLC0415
    from email.message import EmailMessage  # noqa: PLC0415
    from email.policy import SMTP  # noqa: PLC0415
    from email.utils import format_datetime  # noqa: PLC0415

    mail = EmailMessage(policy=SMTP)
    mail["Subject"] = _subject(message)
    mail["From"] = Address(addr_spec=sender)
    mail["To"] = [Address(addr_spec=one) for one in recipients]
    mail["Date"] = format_datetime(message.moment)
    mail["Message-ID"] = f"<fep-{message.id}@{sender.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    text = text_of(message, TEXT_BYTES_MAX[ChannelKind.MAIL])
    ids = "\n".join(f"{entry.notice.alarm_id}: {' '.join(entry.ids)}" for entry in message.entries)
    note = _WORDS[message.language]["note"]
    mail.set_content(f"{text}\n\n-- \n{note}\n{ids}\n")
    return mail


def _subject(message: Message) -> str:
    head = headline(message)
    if not message.entries:
        return head
    first = _lines(message.entries[0], message.language)[0]
    return f"{head} {first}"


# -- syslog ----------------------------------------------------------------------------------------


def syslog_lines(message: Message, facility: int, process: int) -> list[bytes]:
    """Return one line of RFC 5424 for each alarm; the name of its kind is MSGID."""
    words = _WORDS[message.language]
    host = _name(message.machine, 255)
    if not message.entries:
        told = words["test_text"].format(channel=message.channel)
        return [_syslog(facility * 8 + 6, message.moment, host, process, "TEST", told)]
    lines = []
    for entry in message.entries:
        notice = entry.notice
        is_over = notice.what is What.CLEARED
        severity = SYSLOG_CLEARED if is_over else SYSLOG_SEVERITIES[notice.severity]
        told = " | ".join(
            [*_lines(entry, message.language), f"alarm_id={notice.alarm_id} id={entry.ids[-1]}"]
        )
        at = notice.noted_at
        priority = facility * 8 + severity
        lines.append(_syslog(priority, at, host, process, notice.kind.value, told))
    return lines


def _name(text: str, chars_max: int) -> str:
    """Return a name of printable ASCII without spaces; RFC 5424 has ``-`` for none."""
    return "".join(one for one in text if "!" <= one <= "~")[:chars_max] or "-"


def _syslog(
    priority: int, moment: dt.datetime, host: str, process: int, kind: str, told: str
) -> bytes:
    head = f"<{priority}>{SYSLOG_VERSION} {to_text(moment)} {host} fep {process} {kind[:32]} - "
    # The mark says that the text is UTF-8 (6.4).
    line = head.encode("ascii") + b"\xef\xbb\xbf" + told.encode()
    cut = line[: TEXT_BYTES_MAX[ChannelKind.SYSLOG]]
    return cut.decode("utf-8", "ignore").encode()
