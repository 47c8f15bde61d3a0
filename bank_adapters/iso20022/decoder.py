"""What ``fep decode`` needs of this adapter: whole HTTP messages, or documents alone."""

from __future__ import annotations

from typing import Any, Final

from lxml import etree

from bank_adapters.iso20022.facts import account_of, references
from bank_adapters.iso20022.messages import ROOTS, Message, documents, read, text
from bank_adapters.iso20022.replies import REQUEST_ID
from fep.adapters.decode import BODY_BYTES_MAX, Decoder, Frame, Role, http_bounds, xml_bounds
from fep.wire.http import HttpRequest, HttpResponse, RequestReader, ResponseReader

WINDOW_BYTES: Final = 1024 * 1024
OVERLAP_BYTES: Final = 8 * 1024
ROWS_MAX: Final = 10_000
"""Elements of one document that are shown."""
_ROOT: Final = b"<Document"


class _Iso20022Decoder:
    def find(self, data: bytes, at: int) -> tuple[int, int] | None:
        while at < len(data):
            limit = min(at + WINDOW_BYTES, len(data))
            found = http_bounds(data, at, limit)
            begin = data.find(_ROOT, at, limit if found is None else found[0])
            if begin >= 0:
                window = data[: begin + BODY_BYTES_MAX]
                alone = xml_bounds(window, max(at, begin - 64), b"Document")
                # One that was cut in front of it ends in the message, not before.
                found = min((one for one in (found, alone) if one is not None), default=None)
            if found is not None:
                return found
            at += WINDOW_BYTES - OVERLAP_BYTES
        return None

    def describe(self, frame: bytes) -> Frame:
        if frame.startswith((b"POST ", b"GET ")):
            [request] = RequestReader(BODY_BYTES_MAX).receive_data(frame)
            more: dict[str, Any] = {"target": request.target}
            return _of_http(request, Role.REQUEST, "", more)
        if frame.startswith(b"HTTP/"):
            [answer] = ResponseReader(BODY_BYTES_MAX).receive_data(frame)
            return _of_http(answer, Role.ANSWER, str(answer.status), {"status": answer.status})
        message = read(frame)
        is_ours = message.kind == "pain.001"
        role = Role.REQUEST if is_ours else Role.ANSWER
        code, reference = _code(message), _reference(message)
        return Frame(role, message.kind, "" if is_ours else code, "", reference, _shown(message))


def _of_http(
    http: HttpRequest | HttpResponse, role: Role, code: str, more: dict[str, Any]
) -> Frame:
    trade, _, reference = http.header(REQUEST_ID).partition("-")
    body = http.body.lstrip()
    if not trade:
        trade = "http"
    found = [read(one) for one in documents(body)] if body.startswith(b"<") else []
    if body and not found:
        more = {**more, "bytes": len(body)}
    shown = {**more, "documents": [_shown(one) for one in found]}
    said = " ".join(_code(one) for one in found) if role is Role.ANSWER else ""
    return Frame(role, trade, code, said[:200], reference, shown)


def _code(message: Message) -> str:
    """Return the state that a message tells, or its kind."""
    states = ("TxSts", "PmtInfSts", "GrpSts")
    return next(
        (value for name in states if (value := text(message.body, f".//{name}"))), message.kind
    )


def _reference(message: Message) -> str:
    name = text(message.body, "OrgnlGrpInfAndSts/OrgnlMsgId", "GrpHdr/MsgId")
    if message.kind.startswith("camt"):
        report = next(iter(message.body.iterchildren("Rpt", "Stmt", "Ntfctn")), None)
        if report is not None:
            name = account_of(report) or name
    return name or next(iter(sorted(references(message.body))), "") or message.kind


def _shown(message: Message) -> dict[str, Any]:
    name = next(tag for tag, kind in ROOTS.items() if kind == message.kind)
    left = [ROWS_MAX]
    return {name: _value(message.body, left)}


def _value(element: etree._Element, left: list[int]) -> Any:  # noqa: ANN401 - JSON
    left[0] -= 1
    if not len(element):
        return (element.text or "").strip()
    found: dict[str, Any] = {}
    for child in element.iterchildren("*"):
        if left[0] <= 0:
            break
        value = _value(child, left)
        if child.tag not in found:
            found[child.tag] = value
        elif isinstance(found[child.tag], list):
            found[child.tag].append(value)
        else:
            found[child.tag] = [found[child.tag], value]
    return found


DECODER: Final[Decoder] = _Iso20022Decoder()
