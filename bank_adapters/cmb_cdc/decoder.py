"""What ``fep decode`` needs of this adapter: HTTP messages, or texts that were revealed already.

The form's data and an answer's body are hidden with SM4. Without a bank's key a capture shows what
was asked when, and no more; with it, all. Texts in clear, as a log of the JSON has them, are shown
whole.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from bank_adapters.cmb_cdc.messages import (
    GATEWAY,
    RESPONSE,
    SAID_CHARS_MAX,
    decode,
    is_gateway_error,
    take_form,
    uncover,
)
from fep.adapters.decode import BODY_BYTES_MAX, Decoder, Frame, Role, http_bounds
from fep.wire.http import RequestReader, ResponseReader

WINDOW_BYTES: Final = 1024 * 1024
OVERLAP_BYTES: Final = 8 * 1024
_TEXT: Final = re.compile(rb'\{\s*"(?:request|response)"\s*:')
_STEP: Final = re.compile(rb'["{}]')
_STRING_REST: Final = re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL)


@attrs.frozen
class CmbCdcDecoder:
    """Reads captured bytes; with a bank's key also what they hide."""

    key: bytes = attrs.field(default=b"", repr=False)
    """SM4, 16 bytes; empty: what is hidden is not shown."""
    user_id: str = ""

    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        while at < len(data):
            limit = min(at + WINDOW_BYTES, len(data))
            found = http_bounds(data, at, limit)
            text = _text_bounds(data, at, limit if found is None else found[0])
            found = text if text is not None else found
            if found is not None:
                return found
            at += WINDOW_BYTES - OVERLAP_BYTES
        return None

    def describe(self, frame: bytes) -> Frame:
        if frame.startswith((b"POST ", b"GET ")):
            [request] = RequestReader(BODY_BYTES_MAX).receive_data(frame)
            form = take_form(request.body)
            data = form.pop("DATA")
            more: dict[str, Any] = {"target": request.target, "form": form}
            if self.key:
                return _text(uncover(data.encode(), self.key, self.user_id), more)
            more["hidden"] = f"{len(data)} characters"
            return Frame(Role.REQUEST, form["FUNCODE"], fields=more)
        if frame.startswith(b"HTTP/"):
            [answer] = ResponseReader(BODY_BYTES_MAX).receive_data(frame)
            body, more = answer.body.strip(), {"status": answer.status}
            if is_gateway_error(body):
                said = body.decode("utf-8", "replace")[:SAID_CHARS_MAX]
                return Frame(Role.ANSWER, "", GATEWAY, said, fields=more)
            if self.key:
                return _text(uncover(body, self.key, self.user_id), more)
            more["hidden"] = f"{len(body)} bytes"
            return Frame(Role.ANSWER, "", fields=more)
        return _text(frame, {})


def _text(text: bytes, more: dict[str, Any]) -> Frame:
    part, message = decode(text)
    head = dict(message.head)
    code, said = head.pop("resultcode", ""), head.pop("resultmsg", "")
    tables: dict[str, Any] = {name: list(rows) for name, rows in message.tables.items()}
    fields = {**more, "head": head, "sigtim": message.signed_at, **tables}
    role = Role.ANSWER if part == RESPONSE else Role.REQUEST
    return Frame(role, message.function, code, said, message.number, fields)


def _text_bounds(data: bytes, at: int, limit: int) -> tuple[int, int] | None:
    """Return the bounds of the next JSON object that begins in front of a limit."""
    for begun in _TEXT.finditer(data, at, limit):
        if (end := _object_end(data, begun.start())) is not None:
            return begun.start(), end
    return None


def _object_end(data: bytes, begin: int) -> int | None:
    """Return where the object that begins here ends; None where it does not, in the bound."""
    depth, at = 0, begin
    end = min(len(data), begin + WINDOW_BYTES)
    while (step := _STEP.search(data, at, end)) is not None:
        at = step.end()
        if step[0] == b'"':
            if (rest := _STRING_REST.match(data, at, end)) is None:
                return None
            at = rest.end()
        else:
            depth += 1 if step[0] == b"{" else -1
            if depth == 0:
                return at
    return None


DECODER: Final[Decoder] = CmbCdcDecoder()
