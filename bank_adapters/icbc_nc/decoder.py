"""What ``fep decode`` needs of this adapter: whole HTTP messages, bodies or XML alone."""

from __future__ import annotations

import re
from typing import Any, Final

from bank_adapters.icbc_nc.messages import (
    Message,
    decode,
    take_answer,
    take_form,
    take_sign_value,
    take_signed,
)
from fep.adapters.decode import Decoder, Frame, Role, xml_bounds
from fep.wire.http import RequestReader, ResponseReader

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024
WINDOW_BYTES: Final = 1024 * 1024
OVERLAP_BYTES: Final = 8 * 1024
_HTTP: Final = re.compile(
    rb"(?:POST|GET) [\x21-\x7e]{1,4096} HTTP/1\.[01]\r\n|HTTP/1\.[01] [0-9]{3}[^\r\n]{0,200}\r\n"
)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_HEAD_END: Final = b"\r\n\r\n"
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_BODY_NAME: Final = re.compile(rb"(?:reqData|errorCode)=")
_BODY: Final = re.compile(rb"[A-Za-z0-9+/=%\s]*")


class _IcbcNcDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        while at < len(data):
            # Each is looked for only in front of the one before: a body stands in its message.
            limit = min(at + WINDOW_BYTES, len(data))
            found = None
            for look in (_http_bounds, _body_bounds, _xml_bounds):
                if (bounds := look(data, at, limit)) is not None:
                    found, limit = bounds, bounds[0]
            if found is not None:
                return found
            at += WINDOW_BYTES - OVERLAP_BYTES
        return None

    def describe(self, frame: bytes) -> Frame:
        if frame.startswith((b"POST ", b"GET ")):
            [request] = RequestReader(BODY_BYTES_MAX).receive_data(frame)
            return _request(request.target, request.body)
        if frame.startswith(b"HTTP/"):
            [answer] = ResponseReader(BODY_BYTES_MAX).receive_data(frame)
            if b"<sign>" in answer.body or b"<result>" in answer.body:
                value = take_sign_value(answer.body)
                return Frame(Role.ANSWER, "sign", "0", fields={"sign": value.decode("ascii")})
            return _answer(answer.body, str(answer.status))
        if frame.startswith(b"<"):
            message = decode(frame)
            return _frame(message, {})
        if frame.startswith(b"reqData=%3C"):
            return _request("", frame)
        return _answer(frame, "")


def _http_bounds(data: bytes, at: int, limit: int) -> tuple[int, int] | None:
    for begun in _HTTP.finditer(data, at, limit):
        head = data.find(_HEAD_END, begun.end() - 2, begun.end() + HEAD_BYTES_MAX)
        if head < 0:
            continue
        body = head + len(_HEAD_END)
        length = _LENGTH.search(data, begun.start(), head + 2)
        if length is not None:
            end = body + int(length[1])
        elif (last := data.find(_LAST_CHUNK, head, head + BODY_BYTES_MAX)) >= 0:
            end = last + len(_LAST_CHUNK)
        else:
            end = body
        if end <= len(data):
            return begun.start(), end
    return None


def _body_bounds(data: bytes, at: int, limit: int) -> tuple[int, int] | None:
    begun = _BODY_NAME.search(data, at, limit)
    if begun is None:
        return None
    rest = _BODY.match(data, begun.end())
    assert rest is not None
    return begun.start(), rest.end()


def _xml_bounds(data: bytes, at: int, limit: int) -> tuple[int, int] | None:
    begin = data.find(b"<CMS>", at, limit)
    if begin < 0:
        return None
    return xml_bounds(data[: begin + BODY_BYTES_MAX], max(at, begin - 64), b"CMS")


def _request(target: str, body: bytes) -> Frame:
    if body.lstrip().startswith(b"<"):
        # At the sign port.
        return _frame(decode(body), {})
    form = take_form(body)
    xml, _ = take_signed(form.pop("reqData", ""))
    return _frame(decode(xml), {"target": target, "form": form})


def _answer(body: bytes, status: str) -> Frame:
    xml, error = take_answer(body)
    if error:
        return Frame(Role.ANSWER, "", "ERROR", error, fields={"status": status})
    return _frame(decode(xml), {"status": status} if status else {})


def _frame(message: Message, more: dict[str, Any]) -> Frame:
    pub = dict(message.pub)
    code, text = pub.pop("RetCode", ""), pub.pop("RetMsg", "")
    fields = {**more, "pub": pub, "fields": dict(message.fields)}
    if message.rows:
        fields["rows"] = [dict(row) for row in message.rows]
    role = Role.ANSWER if code else Role.REQUEST
    return Frame(role, message.trade, code, text, message.number, fields)


DECODER: Final[Decoder] = _IcbcNcDecoder()
