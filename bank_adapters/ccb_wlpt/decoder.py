"""What ``fep decode`` needs of this adapter."""

from __future__ import annotations

from typing import Any, Final

from bank_adapters.ccb_wlpt.messages import decode
from fep.adapters.decode import Decoder, Frame, Role, xml_bounds


class _CcbWlptDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        return xml_bounds(data, at, b"TX")

    def describe(self, frame: bytes) -> Frame:
        message = decode(frame)
        head = dict(message.head)
        code, text = head.pop("RETURN_CODE", ""), head.pop("RETURN_MSG", "")
        fields: dict[str, Any] = {**head, "TX_INFO": dict(message.fields)}
        if message.rows:
            fields["rows"] = [dict(row) for row in message.rows]
        role = Role.ANSWER if code else Role.REQUEST
        return Frame(role, message.trade, code, text, message.number, fields)


DECODER: Final[Decoder] = _CcbWlptDecoder()
