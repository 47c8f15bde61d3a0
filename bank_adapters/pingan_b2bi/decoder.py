"""What ``fep decode`` needs of this adapter."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from bank_adapters.pingan_b2bi.bodies import Fields, UnreadableError, decode, read
from bank_adapters.pingan_b2bi.frames import FIELDS, HEADER_BYTES, MAGIC, Cutter, Packet
from fep.adapters.decode import Decoder, Frame, Role
from fep.domain.errors import RemoteProtocolError

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
_TOLD: Final = frozenset({"trade_code", "ret_code", "ret_msg", "seq"})
"""Header fields that stand in a frame's own members."""
_ANSWERS: Final = "02"


class _PinganDecoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        while (begin := data.find(MAGIC, at)) >= 0:
            packet = _packet(data, begin)
            if packet is not None:
                return begin, begin + len(packet.raw)
            at = begin + 1
        return None

    def describe(self, frame: bytes) -> Frame:
        packet = _packet(frame, 0)
        if packet is None:
            msg = "no packet"
            raise ValueError(msg)
        header = packet.header
        try:
            body = read(decode(packet.body, header.text("charset")))
        except UnreadableError as error:
            raise ValueError(str(error)) from error
        code = header.text("ret_code")
        # An answer of a header alone keeps the request's service type.
        is_answer = bool(code) or header.text("serv_type") == _ANSWERS
        cells = {name: header.text(name) for name, _ in FIELDS if name not in _TOLD}
        fields: dict[str, Any] = {"header": cells, "body": _values(body)}
        if packet.signature:
            fields["signature"] = packet.signature.hex()
        if packet.attachments:
            fields["attachments"] = [
                {
                    "name": one.name,
                    "bytes": len(one.content),
                    "sha256": hashlib.sha256(one.content).hexdigest(),
                }
                for one in packet.attachments
            ]
        return Frame(
            Role.ANSWER if is_answer else Role.REQUEST,
            header.text("trade_code"),
            code,
            header.message,
            header.text("seq"),
            fields,
        )


def _packet(data: bytes, begin: int) -> Packet | None:
    """Return the whole packet that begins there, None where there is none."""
    cutter = Cutter(FRAME_BYTES_MAX)
    fed, need = begin, begin + HEADER_BYTES
    try:
        while need <= len(data):
            packets = cutter.receive_data(data[fed:need])
            if packets:
                return packets[0]
            fed, need = need, begin + cutter.needs
            if need <= fed:
                return None
    except RemoteProtocolError:
        pass
    return None


def _values(fields: Fields) -> dict[str, Any]:
    values: dict[str, Any] = dict(fields.values)
    if fields.rows:
        values["list"] = [_values(row) for row in fields.rows]
    return values


DECODER: Final[Decoder] = _PinganDecoder()
