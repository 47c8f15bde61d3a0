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
from fep.adapters.decode import BODY_BYTES_MAX, Decoder, Frame, Role, http_bounds, xml_bounds
from fep.wire.http import RequestReader, ResponseReader

WINDOW_BYTES: Final = 1024 * 1024
OVERLAP_BYTES: Final = 8 * 1024
_BODY_NAME: Final = re.compile(rb"(?:reqData|errorCode)=")
_BODY: Final = re.compile(rb"[A-Za-z0-9+/=%\s]*")


class _IcbcNcDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        while at < len(data):
            # Each is looked for only in front of the one before: a body stands in its message.
            limit = min(at + WINDOW_BYTES, len(data))
            found = None
            for look in (http_bounds, _body_bounds, _xml_bounds):
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
