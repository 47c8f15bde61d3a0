"""The envelope: a JSON text that is signed with SM2, hidden with SM4, and posted as a form.

Source: public integrations. The signature is over the text itself, with a mark where it will stand;
so a text is read as it came, and never written anew to be verified.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Final, Self

import attrs
import orjson

from fep.crypto import sm2, sm4
from fep.crypto.sm2 import Sm2Error, Sm2PrivateKey, Sm2PublicKey
from fep.domain.clock import to_shanghai
from fep.domain.errors import RemoteProtocolError

FORM: Final = "application/x-www-form-urlencoded"
ALGORITHM: Final = "SM"
"""ALG of the form: SM2 with SM3, SM4 in CBC."""
PLACEHOLDER: Final = "__signature_sigdat__"
"""Stands in the text while it is signed, where the signature will be."""
GATEWAY: Final = "GATEWAY"
"""Our code of an answer in plain text, which the bank's gateway gives when it failed."""
SAID_CHARS_MAX: Final = 200
_GATEWAY_MARKS: Final = (b"ErrMsg", b"CDCServer")
REQUEST, RESPONSE = "request", "response"
NUMBER_CHARS_MIN: Final = 18
NUMBER_CHARS_MAX: Final = 51
TIME_DIGITS: Final = 17
"""yyyyMMddHHmmssSSS in front of what makes a number unique."""
_SIGNATURE: Final = re.compile(rb'"sigdat"\s*:\s*"([A-Za-z0-9+/=\\]{0,200})"')
_MOMENT: Final = re.compile(r"[0-9]{14}")

Row = Mapping[str, str]


@attrs.frozen
class Message:
    """One request or answer, without its signature."""

    function: str
    number: str
    """reqid: an answer bears its request's."""
    tables: Mapping[str, tuple[Row, ...]] = attrs.field(repr=False)
    """Of the body: rows by name."""
    head: Row = attrs.field(factory=dict)
    """What else stands in the head, such as userid and resultcode."""
    signed_at: str = ""
    """sigtim: yyyyMMddHHmmss of the signer's clock."""
    fault: str = ""
    """What of the body can't be taken as it is, and is left out: such an answer proves nothing."""

    def rows(self, name: str) -> tuple[Row, ...]:
        """Return a table's rows, none where it is missing."""
        return self.tables.get(name, ())


@attrs.frozen
class Secrets:
    """What a side signs, verifies and hides with."""

    own: Sm2PrivateKey
    other: tuple[Sm2PublicKey, ...]
    """Whose signature is taken: one of these."""
    hidden_by: bytes = attrs.field(repr=False)
    """The SM4 key, 16 bytes."""

    @classmethod
    def parse(cls, own: str, other: str, hidden_by: str) -> Self:
        """Return the secrets of texts as they are configured.

        Raises:
            ValueError: one of them is none; the message does not show it.
        """
        try:
            key = Sm2PrivateKey.parse(own.encode())
        except Sm2Error as error:
            msg = f"sign_key: {error}"
            raise ValueError(msg) from error
        return cls(key, (Sm2PublicKey.from_point(bytes.fromhex(other)),), sm4_key(hidden_by))


def sm4_key(text: str) -> bytes:
    """Return the SM4 key as it is configured.

    Raises:
        ValueError: it is none; the message does not show it.
    """
    if re.fullmatch("[0-9A-Fa-f]{32}", text):
        return bytes.fromhex(text)
    key = text.encode()
    if len(key) != sm4.BLOCK_BYTES:
        msg = "sm4_key: must be 16 characters, or 32 hexadecimal digits"
        raise ValueError(msg)
    return key


def user_mark(user_id: str) -> bytes:
    """Return the SM2 user id and SM4 vector: the login user, filled up with ``0`` to 16 bytes."""
    return (user_id + "0" * sm4.BLOCK_BYTES)[: sm4.BLOCK_BYTES].encode("ascii")


def number_of(now: dt.datetime, unique: str) -> str:
    """Return a request's number: the time, and what makes it unique."""
    at = to_shanghai(now)
    return f"{at:%Y%m%d%H%M%S}{at.microsecond // 1000:03d}{unique}"


def text_to_sign(message: Message, part: str, at: dt.datetime) -> bytes:
    """Return the text as it is signed: keys in order, no blanks, UTF-8.

    Args:
        message: what is said.
        part: ``request`` or ``response``.
        at: when it is signed.
    """
    head = {**message.head, "funcode": message.function, "reqid": message.number}
    body = {name: list(rows) for name, rows in message.tables.items()}
    text = {
        part: {"body": body, "head": head},
        "signature": {"sigdat": PLACEHOLDER, "sigtim": f"{to_shanghai(at):%Y%m%d%H%M%S}"},
    }
    return orjson.dumps(text, option=orjson.OPT_SORT_KEYS)


def hide(text: bytes, secrets: Secrets, user_id: str) -> bytes:
    """Return the text signed and hidden, in base64: DATA of the form, or an answer's whole body."""
    mark = user_mark(user_id)
    signature = base64.b64encode(sm2.to_raw(secrets.own.sign(text, mark)))
    whole = text.replace(PLACEHOLDER.encode(), signature, 1)
    return base64.b64encode(sm4.encrypt(secrets.hidden_by, mark, whole))


def uncover(data: bytes, key: bytes, user_id: str) -> bytes:
    """Return the text that was hidden, whoever signed it.

    Raises:
        RemoteProtocolError: no base64, or another key.
    """
    try:
        return sm4.decrypt(key, user_mark(user_id), base64.b64decode(data, validate=True))
    except (ValueError, binascii.Error) as error:
        msg = "the message is not hidden with our SM4 key"
        raise RemoteProtocolError(msg) from error


def reveal(data: bytes, secrets: Secrets, user_id: str) -> bytes:
    """Return the text that was hidden, its signature verified.

    Raises:
        RemoteProtocolError: no base64, another key, or not signed by the other side.
    """
    text = uncover(data, secrets.hidden_by, user_id)
    if not _is_signed(text, secrets, user_mark(user_id)):
        msg = "the message is not signed by the other side"
        raise RemoteProtocolError(msg)
    return text


def _is_signed(text: bytes, secrets: Secrets, mark: bytes) -> bool:
    found = _signature(text)
    if found is None:
        return False
    try:
        raw = base64.b64decode(found[1].replace(b"\\/", b"/"), validate=True)
        signature = sm2.from_raw(raw)
    except ValueError:
        return False
    signed = without_signature(text)
    return any(key.verifies(signature, signed, mark) for key in secrets.other)


def _signature(text: bytes) -> re.Match[bytes] | None:
    found = list(_SIGNATURE.finditer(text))
    return found[-1] if found else None


def without_signature(text: bytes) -> bytes:
    """Return a text as it was signed: with the mark in the place of the signature."""
    found = _signature(text)
    if found is None:
        return text
    return text[: found.start(1)] + PLACEHOLDER.encode() + text[found.end(1) :]


def decode(text: bytes) -> tuple[str, Message]:
    """Return which part a text is, and what it says; values lose their trailing blanks.

    Raises:
        RemoteProtocolError: it is no JSON of this form.
    """
    try:
        whole = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        msg = f"the message is no JSON: {error}"
        raise RemoteProtocolError(msg) from error
    for part in (REQUEST, RESPONSE):
        inside = whole.get(part) if isinstance(whole, dict) else None
        if isinstance(inside, dict) and isinstance(inside.get("head"), dict):
            signature = whole.get("signature")
            at = _row(signature).get("sigtim", "") if isinstance(signature, dict) else ""
            head = _row(inside["head"])
            body = inside.get("body")
            tables, fault = _tables(body) if isinstance(body, dict) else ({}, "")
            message = Message(
                head.pop("funcode", ""),
                head.pop("reqid", ""),
                tables,
                head,
                at if _MOMENT.fullmatch(at) else "",
                fault,
            )
            return part, message
    msg = "the message has no head"
    raise RemoteProtocolError(msg)


def _tables(body: Mapping[str, Any]) -> tuple[dict[str, tuple[Row, ...]], str]:
    """Return the tables with their rows, and what is wrong with them, empty for nothing.

    A table that is null is as good as missing. An amount as a JSON number may have lost its cents.
    """
    tables: dict[str, tuple[Row, ...]] = {}
    fault = ""
    for name, rows in body.items():
        if rows is None:
            continue
        many = rows if isinstance(rows, list) else [rows]
        if not all(isinstance(row, dict) for row in many):
            fault = fault or f"table {name[:40]!r} has rows that are no objects"
            continue
        tables[name] = tuple(map(_row, many))
        odd = (key for row in many for key, value in row.items() if not _is_plain(value))
        if (first := next(odd, None)) is not None:
            fault = fault or f"{first[:40]!r} of table {name[:40]!r} is no text and no whole number"
    return tables, fault


def _is_plain(value: Any) -> bool:  # noqa: ANN401 - any JSON
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _row(values: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value.rstrip() if isinstance(value, str) else str(value)
        for name, value in values.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    }


def is_gateway_error(body: bytes) -> bool:
    """Say whether an answer's body is the gateway's, in plain text."""
    return any(mark in body for mark in _GATEWAY_MARKS)


def form(function: str, user_id: str, data: bytes) -> bytes:
    """Return the form that is posted."""
    fields = {"UID": user_id, "FUNCODE": function, "ALG": ALGORITHM, "DATA": data.decode("ascii")}
    return urllib.parse.urlencode(fields).encode("ascii")


def take_form(body: bytes) -> dict[str, str]:
    """Return a form's fields.

    Raises:
        RemoteProtocolError: it is none, or one of them is missing.
    """
    try:
        fields = urllib.parse.parse_qs(
            body.decode("ascii"), strict_parsing=True, max_num_fields=16, errors="strict"
        )
    except ValueError as error:
        msg = f"the body is no form: {str(error)[:100]}"
        raise RemoteProtocolError(msg) from error
    if missing := [name for name in ("UID", "FUNCODE", "ALG", "DATA") if name not in fields]:
        msg = f"the form lacks {', '.join(missing)}"
        raise RemoteProtocolError(msg)
    return {name: values[0] for name, values in fields.items()}
