"""What ``fep decode`` needs of this adapter: whole HTTP messages, or the XML alone."""

from __future__ import annotations

from typing import Any, Final

from bank_adapters.cib_fox.messages import SIGN_ON, decode
from bank_adapters.cib_fox.replies import codes
from fep.adapters.decode import BODY_BYTES_MAX, Decoder, Frame, Role, http_bounds, xml_bounds
from fep.wire.http import RequestReader, ResponseReader

WINDOW_BYTES: Final = 1024 * 1024
OVERLAP_BYTES: Final = 8 * 1024
_ROOT: Final = b"FOX"


class _CibFoxDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        while at < len(data):
            limit = min(at + WINDOW_BYTES, len(data))
            found = http_bounds(data, at, limit)
            begin = data.find(b"<" + _ROOT, at, limit if found is None else found[0])
            if begin >= 0:
                alone = xml_bounds(data[: begin + BODY_BYTES_MAX], max(at, begin - 64), _ROOT)
                # One that was cut in front of it ends in the message, not before.
                found = min((one for one in (found, alone) if one is not None), default=None)
            if found is not None:
                return found
            at += WINDOW_BYTES - OVERLAP_BYTES
        return None

    def describe(self, frame: bytes) -> Frame:
        more: dict[str, Any] = {}
        xml = frame
        if frame.startswith((b"POST ", b"GET ")):
            [request] = RequestReader(BODY_BYTES_MAX).receive_data(frame)
            xml, more = request.body, {"target": request.target}
        elif frame.startswith(b"HTTP/"):
            [answer] = ResponseReader(BODY_BYTES_MAX).receive_data(frame)
            xml, more = answer.body, {"status": answer.status}
        message = decode(xml)
        fields = {**more, "sign_on": message.sign_on}
        if message.trade != SIGN_ON:
            fields["trade"] = {k: v for k, v in message.body.items() if k != "TRNUID"}
        code, said = codes(message) if message.is_answer else ("", "")
        role = Role.ANSWER if message.is_answer else Role.REQUEST
        return Frame(role, message.trade, code, said, message.number, fields)


DECODER: Final[Decoder] = _CibFoxDecoder()
