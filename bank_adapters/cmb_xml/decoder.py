"""What ``fep decode`` needs of this adapter."""

from __future__ import annotations

import re
from typing import Final

from bank_adapters.cmb_xml.frames import LENGTH_BYTES
from bank_adapters.cmb_xml.messages import CORRELATION, ROOT, decode
from fep.adapters.decode import Decoder, Frame, Role, xml_bounds

_LENGTH: Final = re.compile(rb"[0-9]{1,8} {0,7}")


class _CmbXmlDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        found = xml_bounds(data, at, ROOT.encode("ascii"))
        if found is None:
            return None
        begin, end = found
        # The length is the frame's, but what it says is not needed: it may be wrong.
        header = data[max(at, begin - LENGTH_BYTES) : begin]
        if len(header) == LENGTH_BYTES and _LENGTH.fullmatch(header):
            begin -= LENGTH_BYTES
        return begin, end

    def describe(self, frame: bytes) -> Frame:
        length = _LENGTH.match(frame)
        message = decode(frame[length.end() :] if length else frame)
        info = dict(message.info)
        code, text = info.pop("RETCOD", ""), info.pop("ERRMSG", "")
        blocks: dict[str, list[dict[str, str]]] = {}
        for block in message.blocks:
            blocks.setdefault(block.name, []).append(dict(block.fields))
        role = Role.ANSWER if code else Role.REQUEST
        reference = info.get(CORRELATION, "")
        return Frame(role, message.function, code, text, reference, {"INFO": info, **blocks})


DECODER: Final[Decoder] = _CmbXmlDecoder()
