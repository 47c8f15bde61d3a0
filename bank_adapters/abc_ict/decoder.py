"""What ``fep decode`` needs of this adapter."""

from __future__ import annotations

import re
from typing import Any, Final

from bank_adapters.abc_ict.messages import HEADER_BYTES, decode, text
from fep.adapters.decode import Decoder, Frame, Role

_BEGIN: Final = re.compile(rb"0[0-9]{1,6} {0,5}(?=<)")
_TOLD: Final = frozenset({"CCTransCode", "ReqSeqNo", "RespCode", "RespInfo"})


class _AbcIctDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        for begun in _BEGIN.finditer(data, at):
            # Digits of what stands in front may look like a part of the header.
            begin = begun.end() - HEADER_BYTES
            digits = data[begin + 1 : begun.end()].rstrip(b" ")
            if begin < at or data[begin : begin + 1] != b"0" or not digits.isdigit():
                continue
            end = begun.end() + int(digits)
            if begun.end() < end <= len(data):
                return begin, end
        return None

    def describe(self, frame: bytes) -> Frame:
        message = decode(frame[HEADER_BYTES:])
        code = text(message, "RespCode")
        fields: dict[str, Any] = {
            name: value if isinstance(value, str) else dict(value)
            for name, value in message.items()
            if name not in _TOLD
        }
        return Frame(
            Role.ANSWER if code else Role.REQUEST,
            text(message, "CCTransCode"),
            code,
            text(message, "RespInfo"),
            text(message, "ReqSeqNo"),
            fields,
        )


DECODER: Final[Decoder] = _AbcIctDecoder()
