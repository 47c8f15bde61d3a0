"""Each kind of channel to a real receiver of its kind: what it takes, and what it does wrong."""

from __future__ import annotations

import base64
import datetime as dt
import email
import email.policy
import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
import trustme

from fep.alarms import senders
from fep.alarms.config import (
    ChannelConfig,
    ChannelKind,
    HttpTarget,
    Language,
    MailTarget,
    SyslogTarget,
    Target,
)
from fep.alarms.messages import Message, message_of, trial_message
from fep.alarms.outgoing import Notice, What
from fep.alarms.senders import NotSent, Outcome, Sent, check_url, sender_of, without_pieces
from fep.alarms.state import AlarmKind
from fep.daemon.alarm_section import _syslog_address
from fep.domain.errors import FepError
from tests.alarms import receivers
from tests.alarms.receivers import HttpReceiver, MailReceiver

NOW = dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)
SECRET = "SEC0123456789abcdef"


def notice(number: int = 1, what: What = What.RAISED, **change: Any) -> Notice:
    one = Notice(
        id=f"n{number}",
        channel="duty",
        alarm_id=f"a{number}",
        what=what,
        kind=AlarmKind.LINK_DOWN,
        subject="pingan",
        cause="connection refused",
        count=3,
        raised_at=NOW,
        noted_at=NOW,
    )
    return attrs.evolve(one, **change)


def message(*notices: Notice, language: Language = "zh") -> Message:
    return message_of(notices or (notice(),), "FEP-01", "duty", language, NOW)


def http_channel(
    receiver: HttpReceiver,
    kind: ChannelKind = ChannelKind.WEBHOOK,
    secret: str | None = None,
    **more: Any,
) -> ChannelConfig:
    key = None if secret is None else lambda: secret
    url = more.pop("url", receiver.url())
    return ChannelConfig("duty", kind, HttpTarget(lambda: url, key, **more))


async def sent(config: ChannelConfig, what: Message | None = None) -> Outcome:
    return await sender_of(config)(what or message())


# -- HTTP ------------------------------------------------------------------------------------------


async def test_a_dingtalk_robot_takes_what_is_signed() -> None:
    async with receivers.http() as robot:
        robot.judge = receivers.dingtalk(SECRET)
        assert await sent(http_channel(robot, ChannelKind.DINGTALK, SECRET)) == Sent()
        (request,) = robot.requests
        assert request.query["access_token"] == "very-secret-token"
        text = request.value["text"]["content"]
        for part in (
            "FEP-01",
            "告警",
            "银行连接中断",
            "pingan",
            "connection refused",
            "03-02 09:00:00",
        ):
            assert part in text
        outcome = await sent(http_channel(robot, ChannelKind.DINGTALK, "SECwrong"))
        assert isinstance(outcome, NotSent)
        assert "310000" in outcome.reason, "that HTTP says 200 is no success"


async def test_a_feishu_robot_takes_what_is_signed() -> None:
    async with receivers.http() as robot:
        robot.judge = receivers.feishu(SECRET)
        assert await sent(http_channel(robot, ChannelKind.FEISHU, SECRET)) == Sent()
        assert "告警" in robot.requests[0].value["content"]["text"]
        outcome = await sent(http_channel(robot, ChannelKind.FEISHU, "wrong"))
        assert isinstance(outcome, NotSent)
        assert "19021" in outcome.reason


async def test_a_wecom_robot_takes_text_of_at_most_2048_bytes() -> None:
    async with receivers.http() as robot:
        many = [notice(n, cause="很长的原因" * 60) for n in range(40)]
        assert await sent(http_channel(robot, ChannelKind.WECOM), message(*many)) == Sent()
        content = robot.requests[0].value["text"]["content"]
        assert len(content.encode()) <= 2048
        assert "40 条" in content
        told = content.count("●")
        assert told >= 1
        assert f"另有 {40 - told} 条（严重 {40 - told}）" in content


@pytest.mark.parametrize(
    "secret", ["a plain secret", "whsec_" + base64.b64encode(b"k" * 24).decode()]
)
async def test_a_webhook_is_signed_and_bears_ids(secret: str) -> None:
    async with receivers.http() as receiver:
        key = b"k" * 24 if secret.startswith("whsec_") else secret.encode()
        receiver.judge = receivers.webhook(key)
        raised, over = notice(1), notice(2, What.CLEARED, alarm_id="a1", noted_s=5.0)
        assert await sent(http_channel(receiver, secret=secret), message(raised, over)) == Sent()
        value = receiver.requests[0].value
        assert value["type"] == "fep.alarms"
        assert value["message_id"] == receiver.requests[0].headers["webhook-id"]
        (alarm,) = value["alarms"]
        assert (alarm["ids"], alarm["what"], alarm["kind"]) == (
            ["n1", "n2"],
            "cleared",
            "LINK_DOWN",
        )
        assert isinstance(await sent(http_channel(receiver, secret="other")), NotSent)
        assert await sent(http_channel(receiver)) == NotSent("HTTP 401: wrong signature")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((500, b"no"), "HTTP 500: no"),
        ((302, b"", {"location": "http://127.0.0.1:1/"}), "HTTP 302"),
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, b"[]"), "the answer has no errcode"),
        ((200, b'{"errcode":130101,"errmsg":"send too fast"}'), "130101"),
        ((200, b'{"errcode":false}'), "refused"),
        ("close", "RemoteProtocolError"),
        ("garbage", "RemoteProtocolError"),
        ("endless", "the answer has more than"),
    ],
)
async def test_what_is_no_yes_is_a_no(answer: receivers.Answer, told: str) -> None:
    async with receivers.http() as robot:
        robot.answer = answer
        outcome = await sent(http_channel(robot, ChannelKind.DINGTALK))
        assert isinstance(outcome, NotSent)
        assert told in outcome.reason
        assert "very-secret-token" not in outcome.reason


async def test_a_receiver_that_hangs_is_given_up(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 20.0
    async with receivers.http() as robot:
        robot.answer = "hang"
        outcome = await sent(http_channel(robot, ChannelKind.DINGTALK))
        assert isinstance(outcome, NotSent)


async def test_a_pause_that_is_asked_for_is_read() -> None:
    async with receivers.http() as robot:
        robot.answer = (429, b"", {"retry-after": "120"})
        assert await sent(http_channel(robot)) == NotSent("HTTP 429", 120.0)
        robot.answer = (503, b"", {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})
        assert await sent(http_channel(robot)) == NotSent("HTTP 503", 0.0)


async def test_the_environment_s_proxy_is_not_used_and_the_configured_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with receivers.http() as robot, receivers.http() as proxy:
        assert await sent(http_channel(robot, ChannelKind.DINGTALK)) == Sent()
        assert len(robot.requests) == 1
        through = http_channel(robot, ChannelKind.DINGTALK, proxy=f"http://127.0.0.1:{proxy.port}")
        assert await sent(through) == Sent()
        assert (len(robot.requests), len(proxy.requests)) == (1, 1)
        assert proxy.requests[0].target == robot.url()


async def test_a_server_must_prove_who_it_is(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    async with receivers.http(context) as robot:
        assert await sent(http_channel(robot, ca=tmp_path / "ca.pem")) == Sent()
        for ca in (tmp_path / "stranger.pem", None):
            outcome = await sent(http_channel(robot, ca=ca))
            assert isinstance(outcome, NotSent)
            assert "certificate verify failed" in outcome.reason
        outcome = await sent(http_channel(robot, ca=tmp_path / "none.pem"))
        assert isinstance(outcome, NotSent)
        assert "FileNotFoundError" in outcome.reason


async def test_nobody_there_is_told_without_the_url() -> None:
    async with receivers.http() as robot:
        url = robot.url("/hook/very-secret-token")
    outcome = await sent(http_channel(robot, ChannelKind.FEISHU, url=url))
    assert isinstance(outcome, NotSent)
    assert "ConnectError" in outcome.reason
    assert "very-secret-token" not in outcome.reason


async def test_a_secret_that_can_t_be_read_is_told() -> None:
    def missing() -> str:
        raise FepError("the file duty-url can't be opened")

    config = ChannelConfig("duty", ChannelKind.WECOM, HttpTarget(missing, None))
    outcome = await sent(config)
    assert outcome == NotSent("FepError: the file duty-url can't be opened")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://a/",
        "http://example.com/x",
        "https://user:pw@example.com/",
        "https://",
        "https://[",
        "https://a:b/",
    ],
)
async def test_a_url_that_is_read_from_a_secret_is_looked_at(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|not taken"):
        check_url(url)
    config = ChannelConfig("duty", ChannelKind.WEBHOOK, HttpTarget(lambda: url, None))
    assert isinstance(await sent(config), NotSent)


def test_no_piece_of_a_secret_url_is_left() -> None:
    url = "https://host.example/open/hook/abcdef-123456?key=zyxwvu987"
    for text in (url, "at /open/hook/abcdef-123456", "key zyxwvu987!", "hook abcdef-123456"):
        told = without_pieces(text, url, None, "")
        assert "abcdef-123456" not in told
        assert "zyxwvu987" not in told


# -- mail ------------------------------------------------------------------------------------------


def mail_channel(receiver: MailReceiver, **change: Any) -> ChannelConfig:
    target = MailTarget(
        "127.0.0.1",
        receiver.port,
        "none",
        "fep@example.com",
        ("duty@example.com", "li@example.com"),
    )
    return ChannelConfig("mail", ChannelKind.MAIL, attrs.evolve(target, **change))


def read(receiver: MailReceiver) -> email.message.EmailMessage:
    (envelope,) = receiver.envelopes
    assert isinstance(envelope.content, bytes)
    return email.message_from_bytes(envelope.content, policy=email.policy.default)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


async def test_a_mail_says_all_and_bears_ids() -> None:
    with receivers.mail() as server:
        what = message(notice(1, subject="p\r\nBcc: x@y.z"), notice(2, What.AGAIN))
        assert await sent(mail_channel(server), what) == Sent()
        mail = read(server)
        assert server.envelopes[0].rcpt_tos == ["duty@example.com", "li@example.com"]
        assert mail["from"] == "fep@example.com"
        assert mail["bcc"] is None
        assert mail["message-id"] == f"<fep-{what.id}@example.com>"
        assert mail["auto-submitted"] == "auto-generated"
        assert "银行连接中断" in str(mail["subject"])
        body = mail.get_content()
        assert "connection refused" in body
        assert "a1: n1" in body


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # it does not know of its implicit TLS
@pytest.mark.parametrize("way", ["starttls", "tls"])
async def test_mail_is_secret_on_the_way_and_logs_in(
    way: Any, server_context: ssl.SSLContext, ca: Path
) -> None:
    with receivers.mail(server_context, way=way, log_in=True) as server:
        config = mail_channel(
            server, security=way, ca=ca, user="fep", password=lambda: "mail-password"
        )
        assert await sent(config, trial_message("FEP-01", "mail", "en", NOW, "t")) == Sent()
        assert server.log_ins == [b"fep"]
        assert "nothing is to be done" in read(server).get_content()
        target = config.target
        assert isinstance(target, MailTarget)
        for change in ({"password": lambda: "wrong-password"}, {"ca": None}):
            outcome = await sent(attrs.evolve(config, target=attrs.evolve(target, **change)))
            assert isinstance(outcome, NotSent)
            assert "wrong-password" not in outcome.reason
        assert len(server.envelopes) == 1


async def test_a_server_without_starttls_gets_no_mail() -> None:
    with receivers.mail() as server:
        outcome = await sent(mail_channel(server, security="starttls"))
        assert isinstance(outcome, NotSent)
        assert server.envelopes == []


async def test_a_mail_that_one_of_two_gets_is_told_and_one_that_nobody_gets_is_not() -> None:
    with receivers.mail() as server:
        server.refuses = frozenset({"li@example.com"})
        assert await sent(mail_channel(server)) == Sent()
        server.refuses = frozenset({"li@example.com", "duty@example.com"})
        outcome = await sent(mail_channel(server))
        assert isinstance(outcome, NotSent)
        assert "550" in outcome.reason
        server.refuses, server.down = frozenset(), "451 try again later"
        outcome = await sent(mail_channel(server))
        assert isinstance(outcome, NotSent)
        assert "451" in outcome.reason


async def test_a_mail_server_that_is_not_there_or_says_nothing(
    mock_clock: trio.testing.MockClock,
) -> None:
    mock_clock.rate = 20.0
    with receivers.mail() as server:
        gone = mail_channel(server)
    assert isinstance(await sent(gone), NotSent)
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with silent:
        port = silent.socket.getsockname()[1]
        outcome = await sent(mail_channel(MailReceiver(port=port)))
        assert outcome == NotSent(f"no answer within {senders.SEND_SECONDS_MAX:g} s")


# -- syslog ----------------------------------------------------------------------------------------


def syslog_channel(address: str) -> ChannelConfig:
    target: Target = _syslog_address(16, address)
    return ChannelConfig("siem", ChannelKind.SYSLOG, target, "en")


@pytest.mark.parametrize("way", ["udp", "tcp", "unix", "unix-stream"])
async def test_syslog_gets_a_line_for_each_alarm(way: str, tmp_path: Path) -> None:
    async with receivers.syslog(way, tmp_path) as receiver:
        what = message(notice(1), notice(2, What.CLEARED), language="en")
        assert await sent(syslog_channel(receiver.address), what) == Sent()
        wanted = 2 if way in {"udp", "unix"} else 1
        with trio.fail_after(receivers.WAIT_SECONDS_MAX):
            while len(receiver.data) < wanted:
                await trio.sleep(0.01)
        if way == "tcp":
            data, lines = receiver.data[0], []
            while data:
                size, _, rest = data.partition(b" ")
                lines.append(rest[: int(size)])
                data = rest[int(size) :]
        elif way == "unix-stream":
            lines = receiver.data[0].splitlines()
        else:
            lines = receiver.data
        first, second = lines
        head, _, text = first.partition(b"\xef\xbb\xbf")
        assert head.startswith(b"<130>1 2026-03-02T01:00:00.000+00:00 FEP-01 fep ")
        assert head.endswith(b" LINK_DOWN - ")
        assert "Bank connection down: pingan" in text.decode()
        assert "alarm_id=a1 id=n1" in text.decode()
        assert second.startswith(b"<133>1 ")


@pytest.mark.parametrize(
    "address", ["tcp:127.0.0.1:{port}", "udp:127.0.0.1:{port}", "unix:{path}/none"]
)
async def test_syslog_that_is_not_there_is_told(address: str, tmp_path: Path) -> None:
    (gone,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = gone.socket.getsockname()[1]
    await gone.aclose()
    outcome = await sent(syslog_channel(address.format(port=port, path=tmp_path)))
    assert isinstance(outcome, NotSent)


def test_a_target_of_each_kind_is_known() -> None:
    assert isinstance(_syslog_address(3, "udp:[::1]:5514"), SyslogTarget)
