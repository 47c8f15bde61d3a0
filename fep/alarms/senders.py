"""How a message gets to its receiver: HTTP, mail, syslog. What goes wrong is an outcome.

Secrets are read for each message, so that a new one needs no restart. No reason that is told bears
one: a robot's URL is its password.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, assert_never
from urllib.parse import urlsplit

import attrs
import trio

from fep.alarms.config import ChannelConfig, HttpTarget, MailTarget, SyslogTarget
from fep.alarms.messages import Message, Post, mail_of, one_line, post_of, refusal, syslog_lines
from fep.domain.errors import FepError, reason_of

if TYPE_CHECKING:
    import smtplib

    import httpx2

SEND_SECONDS_MAX: Final = 20.0
"""Of one message, whatever the receiver does."""
STEP_SECONDS_MAX: Final = 10.0
"""Of a connection, of one answer of a mail server."""
ANSWER_BYTES_MAX: Final = 64 * 1024
RETRY_AFTER_DIGITS_MAX: Final = 6
REASON_CHARS_MAX: Final = 300
SECRET_CHARS_MIN: Final = 6
"""A shorter piece of a secret is no secret, and would make the reason unreadable."""
_WRONG_TYPE: Final = errno.EPROTOTYPE
"""A Unix socket of streams was found where one of datagrams was looked for."""
UDP_REFUSAL_SECONDS: Final = 0.2
SYSLOG_CLOSE_SECONDS: Final = 2.0
"""A receiver of syslog over TCP says nothing; that it closes after us says that it read all."""


@attrs.frozen
class Sent:
    """The receiver has it."""


@attrs.frozen
class NotSent:
    """It has it not, or did not say so."""

    reason: str
    retry_after_s: float = 0.0
    """It asks for such a pause, in seconds."""


Outcome = Sent | NotSent
Send = Callable[[Message], Awaitable[Outcome]]


def sender_of(config: ChannelConfig) -> Send:
    """Return what sends a channel's messages; it raises nothing but defects."""
    match config.target:
        case HttpTarget():
            send: Send = _HttpSender(config, config.target).send
        case MailTarget():
            send = _MailSender(config.target).send
        case SyslogTarget():
            send = partial(_send_syslog, config.target)
        case _:
            assert_never(config.target)
    return partial(_within_deadline, send)


async def _within_deadline(send: Send, message: Message) -> Outcome:
    with trio.move_on_after(SEND_SECONDS_MAX):
        return await send(message)
    return NotSent(f"no answer within {SEND_SECONDS_MAX:g} s")


def _reason(error: Exception, *secrets: str | None) -> str:
    """Return what an exception says, without secrets."""
    text = f"{type(error).__name__}: {reason_of(error)}".rstrip(": ")
    return one_line(without_pieces(text, *secrets), REASON_CHARS_MAX)


def without_pieces(text: str, *secrets: str | None) -> str:
    """Return text in which no part of a secret or of a secret URL stands."""
    for secret in secrets:
        if not secret:
            continue
        parts = urlsplit(secret)
        values = [one.rpartition("=")[2] for one in parts.query.split("&")]
        for piece in (secret, parts.query, parts.path, *parts.path.split("/"), *values):
            if len(piece) >= SECRET_CHARS_MIN:
                text = text.replace(piece, "***")
    return text


# -- HTTP ------------------------------------------------------------------------------------------


@attrs.define
class _HttpSender:
    config: ChannelConfig
    target: HttpTarget
    limiter: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))

    async def send(self, message: Message) -> Outcome:
        try:
            # Files are read, and httpx2 takes a tenth of a second to load: not in the loop.
            prepared = await trio.to_thread.run_sync(
                self._prepare, message, limiter=self.limiter, abandon_on_cancel=True
            )
        except (FepError, ValueError, OSError) as error:
            return NotSent(_reason(error))
        post, client, secrets = prepared
        async with client:
            outcome = await self._post(client, post)
        if isinstance(outcome, NotSent):
            told = without_pieces(outcome.reason, *secrets)
            return attrs.evolve(outcome, reason=told[:REASON_CHARS_MAX])
        return outcome

    def _prepare(self, message: Message) -> tuple[Post, httpx2.AsyncClient, tuple[str | None, ...]]:
        """Return the request and what sends it.

        Raises:
            FepError: a secret can't be read.
            ValueError: the URL or the secret is none.
            OSError: the certificates can't be read.
        """
        import httpx2  # noqa: PLC0415 - see above; most daemons have no such channel

        url = self.target.url().strip()
        check_url(url)
        secret = None if self.target.secret is None else self.target.secret().strip()
        post = post_of(message, self.config.kind, url, secret)
        ca = None if self.target.ca is None else str(self.target.ca)
        client = httpx2.AsyncClient(
            verify=ssl.create_default_context(cafile=ca),
            proxy=self.target.proxy,
            trust_env=False,
            follow_redirects=False,
            timeout=STEP_SECONDS_MAX,
            headers={"accept-encoding": "identity", "user-agent": "fep"},
        )
        return post, client, (post.url, url, secret)

    async def _post(self, client: httpx2.AsyncClient, post: Post) -> Outcome:
        import httpx2  # noqa: PLC0415

        body = bytearray()
        try:
            with trio.CancelScope() as scope:
                async with client.stream(
                    "POST", post.url, content=post.body, headers=post.headers
                ) as answer:
                    # As it comes: what is packed can't grow in our memory.
                    async for chunk in answer.aiter_raw():
                        body += chunk
                        if len(body) > ANSWER_BYTES_MAX:
                            # The generators below end in order only when they are cancelled.
                            scope.cancel()
                status, asked = answer.status_code, answer.headers.get("retry-after", "")
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            return NotSent(_reason(error))
        if scope.cancelled_caught:
            return NotSent(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
        why = refusal(self.config.kind, status, bytes(body))
        if not why:
            return Sent()
        return NotSent(why, _retry_after(asked))


def _retry_after(text: str) -> float:
    """Return the seconds of a ``Retry-After``; a date, which few send, counts as none."""
    digits = text.strip()
    if digits.isascii() and digits.isdigit() and len(digits) <= RETRY_AFTER_DIGITS_MAX:
        return float(digits)
    return 0.0


def check_url(text: str) -> None:
    """Say whether messages may be posted there.

    Raises:
        ValueError: it is no URL, or one that would be read on the way; the text is not repeated.
    """
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    if not host or parts.scheme not in {"https", "http"} or not text.isprintable():
        raise ValueError("must be a URL such as https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user and a password in a URL are not taken")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError("must begin with https://, since its host is not this machine")


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# -- mail ------------------------------------------------------------------------------------------


@attrs.define
class _MailSender:
    target: MailTarget
    limiter: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))

    async def send(self, message: Message) -> Outcome:
        # A server that trickles holds this thread, and this channel, and nothing else.
        return await trio.to_thread.run_sync(
            self._send, message, limiter=self.limiter, abandon_on_cancel=True
        )

    def _send(self, message: Message) -> Outcome:
        import smtplib  # noqa: PLC0415 - most daemons write no mail

        password = None
        try:
            if self.target.password is not None:
                password = self.target.password()
            mail = mail_of(message, self.target.sender, self.target.recipients)
            server = _connected(self.target)
            try:
                if self.target.user is not None:
                    server.login(self.target.user, password or "")
                # It raises when nobody gets it. Where some do it is told: said again to all, it
                # would come to those without end.
                server.send_message(mail)
                with suppress(smtplib.SMTPException, OSError):
                    server.quit()
            finally:
                server.close()
        except (FepError, smtplib.SMTPException, OSError, ValueError) as error:
            return NotSent(_reason(error, password))
        return Sent()


def _connected(target: MailTarget) -> smtplib.SMTP:
    """Return a connection that is as secret as the configuration says.

    Raises:
        smtplib.SMTPException, OSError: it is not to be had.
    """
    import smtplib  # noqa: PLC0415

    context = ssl.create_default_context(cafile=None if target.ca is None else str(target.ca))
    if target.security == "tls":
        return smtplib.SMTP_SSL(target.host, target.port, timeout=STEP_SECONDS_MAX, context=context)
    server = smtplib.SMTP(target.host, target.port, timeout=STEP_SECONDS_MAX)
    if target.security == "starttls":
        try:
            server.starttls(context=context)
        except BaseException:
            server.close()
            raise
    return server


# -- syslog ----------------------------------------------------------------------------------------


async def _send_syslog(target: SyslogTarget, message: Message) -> Outcome:
    lines = syslog_lines(message, target.facility, os.getpid())
    try:
        match target.way:
            case "udp":
                await _by_udp(target, lines)
            case "tcp":
                stream = await trio.open_tcp_stream(target.host, target.port)
                # RFC 6587, 3.4.1: the length stands before each message.
                await _by_stream(stream, b"".join(b"%d %s" % (len(one), one) for one in lines))
            case "unix":
                await _by_unix(target, lines)
            case _:
                assert_never(target.way)
    except (OSError, trio.BrokenResourceError) as error:
        return NotSent(_reason(error.__cause__ if isinstance(error.__cause__, OSError) else error))
    return Sent()


async def _by_udp(target: SyslogTarget, lines: list[bytes]) -> None:
    found = await trio.socket.getaddrinfo(target.host, target.port, type=trio.socket.SOCK_DGRAM)
    family, kind, protocol, _, address = found[0]
    with trio.socket.socket(family, kind, protocol) as sock:
        await sock.connect(address)
        for line in lines:
            await sock.send(line)
        # Nothing says that it arrived; that nobody listens there may be said.
        await trio.sleep(UDP_REFUSAL_SECONDS)
        if number := sock.getsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_ERROR):
            raise OSError(number, os.strerror(number))


async def _by_unix(target: SyslogTarget, lines: list[bytes]) -> None:
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
        try:
            await sock.connect(target.path)
        except OSError as error:
            if error.errno != _WRONG_TYPE:
                raise
        else:
            for line in lines:
                await sock.send(line)
            return
    stream = await trio.open_unix_socket(target.path)
    await _by_stream(stream, b"".join(line + b"\n" for line in lines))


async def _by_stream(stream: trio.SocketStream, data: bytes) -> None:
    async with stream:
        await stream.send_all(data)
        await stream.send_eof()
        with trio.move_on_after(SYSLOG_CLOSE_SECONDS):
            while await stream.receive_some(ANSWER_BYTES_MAX):
                pass
