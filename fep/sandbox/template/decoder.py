"""What ``fep decode`` needs of this adapter."""

from __future__ import annotations

import re
from typing import Final

from fep.adapters.decode import Decoder, Frame, Role
from fep.sandbox.template.messages import LENGTH_BYTES, decode, text

_BEGIN: Final = re.compile(rb"[0-9]{6}\{")
_TOLD: Final = frozenset({"trade", "number", "code", "said"})


class _TemplateDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        for begun in _BEGIN.finditer(data, at):
            end = begun.start() + LENGTH_BYTES + int(begun[0][:LENGTH_BYTES])
            if begun.start() < end <= len(data):
                return begun.start(), end
        return None

    def describe(self, frame: bytes) -> Frame:
        message = decode(frame[LENGTH_BYTES:])
        code = text(message, "code")
        return Frame(
            Role.ANSWER if code else Role.REQUEST,
            text(message, "trade"),
            code,
            text(message, "said"),
            text(message, "number"),
            {name: value for name, value in message.items() if name not in _TOLD},
        )


DECODER: Final[Decoder] = _TemplateDecoder()
