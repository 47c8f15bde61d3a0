"""The envelope ``CMS/eb`` and what carries it: form bodies one way, base64 the other.

Requests are written strictly in GBK. Answers are read leniently: GB18030, any order, line breaks
anywhere, fields missing, empty or unknown.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote_to_bytes

import attrs
from lxml import etree

from fep.adapters import xml
from fep.domain.clock import SHANGHAI
from fep.domain.errors import BodyError, RemoteProtocolError

SEND_PATH: Final = "/servlet/ICBCCMPAPIReqServlet"
FORM: Final = "application/x-www-form-urlencoded"
SIGN_TYPE: Final = "INFOSEC_SIGN/1.0"
SIGN_ANSWER_TYPE: Final = "INFOSEC_SIGN_RESULT/1.0"
VERSION: Final = "0.0.0.1"
SIGNED_MARK: Final = b"FEPSIGN1"
"""Begins what our own key signed, in place of the bank's PKCS#7: 4 digits of length follow, then
the signature, then the XML."""

_HEAD: Final = '<?xml version="1.0" encoding="GBK"?>'
_SIGN_RESULT: Final = re.compile(rb"<result>\s*([^<]*?)\s*</result>")
_SIGN_VALUE: Final = re.compile(rb"<sign>([^<]*)</sign>")

Row = Mapping[str, str]


@attrs.frozen
class Message:
    """One message: the fields of ``pub``, those of ``in`` or ``out``, and its rows ``rd``."""

    pub: Mapping[str, str]
    fields: Mapping[str, str] = attrs.field(repr=False, factory=dict)
    rows: tuple[Row, ...] = attrs.field(repr=False, default=())

    @property
    def trade(self) -> str:
        """The trade's name, TransCode."""
        return self.pub.get("TransCode", "")

    @property
    def number(self) -> str:
        """The package's number, fSeqno."""
        return self.pub.get("fSeqno", "")


def encode(message: Message, part: str = "in", errors: str = "strict") -> bytes:
    """Return the XML's bytes in GBK (GB18030 where ``errors`` is not strict).

    Raises:
        BodyError: a character is not in GBK.
    """
    inner = xml.elements(message.fields) + "".join(
        f"<rd>{xml.elements(row)}</rd>" for row in message.rows
    )
    pub = xml.elements(message.pub)
    text = f"{_HEAD}<CMS><eb><pub>{pub}</pub><{part}>{inner}</{part}></eb></CMS>"
    try:
        return text.encode("gbk" if errors == "strict" else "gb18030", errors)
    except UnicodeEncodeError as error:
        msg = f"character {text[error.start]!r} is not in GBK, which this bank speaks"
        raise BodyError(msg) from error


def decode(data: bytes) -> Message:
    """Return the message in these bytes; blanks around every value are cut off.

    Raises:
        RemoteProtocolError: not well-formed, another root, no ``pub``, or a DOCTYPE.
    """
    document = xml.read(xml.text_of(data, xml.GBK), "rd")
    root = document.root
    pub = root.find("eb/pub") if root.tag == "CMS" else None
    if pub is None:
        msg = "the message is no CMS with a pub"
        raise RemoteProtocolError(msg)
    body = root.find("eb/out")
    body = root.find("eb/in") if body is None else body
    if body is None:
        return Message(_fields(pub))
    # On "no record" one row comes whose fields are all empty.
    rows = (document.row(row) or _fields(row) for row in body.iterchildren("rd"))
    return Message(_fields(pub), _fields(body), tuple(row for row in rows if any(row.values())))


def _fields(element: etree._Element) -> dict[str, str]:
    return {child.tag: (child.text or "").strip() for child in element if child.tag != "rd"}


def target(user_id: str, number: str, at: dt.datetime) -> str:
    """Return path and query of the send port; ``at`` in Shanghai time."""
    return f"{SEND_PATH}?userID={quote(user_id, safe='')}&PackageID={number}&SendTime={moment(at)}"


def moment(at: dt.datetime) -> str:
    """Return yyyyMMddHHmmssSSS."""
    local = at.astimezone(SHANGHAI)
    return f"{local:%Y%m%d%H%M%S}{local.microsecond // 1000:03d}"


def form(message: Message, cis: str, data: str) -> bytes:
    """Return the form body; ``data`` is the sign value, or the quoted XML."""
    fields = {
        "Version": VERSION,
        "TransCode": message.trade,
        "BankCode": message.pub["BankCode"],
        "GroupCIS": cis,
        "ID": message.pub["ID"],
        "PackageID": message.number,
        "Cert": "",
        "reqData": data,
    }
    return "&".join(f"{name}={value}" for name, value in fields.items()).encode("ascii")


def quoted(data: bytes) -> str:
    """Return the XML as a query's reqData."""
    return quote(data, safe="")


def signed(data: bytes, signature: bytes) -> str:
    """Return the reqData of what our own key signed."""
    parts = SIGNED_MARK, b"%04d" % len(signature), signature, data
    return base64.b64encode(b"".join(parts)).decode("ascii")


def take_signed(data: str) -> tuple[bytes, bytes | None]:
    """Return XML and signature of a reqData; no signature in a query's.

    Raises:
        ValueError: neither form.
    """
    if data.startswith("%3C"):
        return unquote_to_bytes(data), None
    raw = base64.b64decode(data, validate=True)
    at = len(SIGNED_MARK) + 4
    if not raw.startswith(SIGNED_MARK) or not raw[at - 4 : at].isdigit():
        msg = "not signed"
        raise ValueError(msg)
    end = at + int(raw[at - 4 : at])
    return raw[end:], raw[at:end]


def take_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form body as they stand; never raises."""
    pairs = (part.partition("=") for part in body.decode("ascii", "replace").split("&"))
    return {name: value for name, _, value in pairs}


def take_answer(body: bytes) -> tuple[bytes, str]:
    """Return the XML of an answer, or the text of its error.

    Raises:
        RemoteProtocolError: neither form, or no base64.
    """
    name, _, value = body.partition(b"=")
    # Never unquoted: "+" is a digit of base64 here.
    value = b"".join(value.split())
    if name.strip() == b"errorCode":
        return b"", _error_text(value)
    if name.strip() != b"reqData":
        msg = "the answer is neither reqData= nor errorCode="
        raise RemoteProtocolError(msg)
    try:
        return base64.b64decode(value, validate=True), ""
    except binascii.Error as error:
        msg = f"the answer's reqData is no base64: {error}"
        raise RemoteProtocolError(msg) from error


def _error_text(value: bytes) -> str:
    try:
        text = base64.b64decode(value, validate=True)
    except binascii.Error:
        text = value
    return text.decode("gb18030", "replace") or "errorCode without a text"


def take_sign_value(body: bytes) -> bytes:
    """Return the sign value of the sign port's answer, base64 without line breaks.

    Raises:
        RemoteProtocolError: it did not sign; the message says what it said.
    """
    result, value = _SIGN_RESULT.search(body), _SIGN_VALUE.search(body)
    if result is None or result[1] != b"0" or value is None:
        said = result[1].decode("gb18030", "replace")[:40] if result else "no result"
        msg = f"the sign port did not sign: {said}"
        raise RemoteProtocolError(msg)
    sign = re.sub(rb"\s+", b"", value[1])
    if not re.fullmatch(rb"[A-Za-z0-9+/=]+", sign):
        msg = "the sign port's value is no base64"
        raise RemoteProtocolError(msg)
    return sign
