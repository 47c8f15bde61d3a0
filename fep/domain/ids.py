"""Names of things: each is a ``NewType`` made by exactly one parse function."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import uuid
from typing import Final, NewType

from fep.domain.clock import SHANGHAI

TaskId = NewType("TaskId", str)
"""任务ID: made by the finance system; the same id again is the same task, never a second."""
ClientName = NewType("ClientName", str)
BankName = NewType("BankName", str)
SlotName = NewType("SlotName", str)
AccountNumber = NewType("AccountNumber", str)
ClientRef = NewType("ClientRef", str)
"""Our reference of one payment at the bank, its dedupe key: at most 20 of [0-9A-Z]."""

TASK_ID_CHARS_MAX: Final = 64
NAME_CHARS_MAX: Final = 32
CLIENT_REF_CHARS: Final = 20
SHORT_REF_DIGITS_MIN: Final = 12
SHORT_REF_ATTEMPTS: Final = 4
"""Of one task; that so many are taken by others will not happen."""
BATCH_ROWS_MAX: Final = 500
"""Rows of one batch: as Ping An's 4018, the most of the banks; three digits number them."""

_TASK_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}")
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,31}")
_ACCOUNT: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,34}")
_LONG_REF: Final = "F"
_ROW_REF: Final = "B"
"""First letters of a payment's reference and of a batch's row's: neither is ever the other's."""
_ROW_DIGITS: Final = 3
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def parse_task_id(text: str) -> TaskId:
    """Return the id, or raise ``ValueError`` that says what an id looks like."""
    if not _TASK_ID.fullmatch(text):
        msg = f"task_id must be 1 to {TASK_ID_CHARS_MAX} letters, digits or . _ : -"
        raise ValueError(msg)
    return TaskId(text)


def parse_name(text: str, what: str = "name") -> str:
    """Return a configured name (bank, slot, client, pool), or raise ``ValueError``."""
    if not _NAME.fullmatch(text):
        msg = f"{what} must be 1 to {NAME_CHARS_MAX} letters, digits or . _ : -"
        raise ValueError(msg)
    return text


def parse_account_number(text: str) -> AccountNumber:
    """Return the account number, or raise ``ValueError``."""
    if not _ACCOUNT.fullmatch(text):
        msg = "an account number must be 1 to 35 letters, digits or -"
        raise ValueError(msg)
    return AccountNumber(text)


def client_ref(enterprise: str, task_id: TaskId) -> ClientRef:
    """Return the payment reference of a task: always the same for the same task.

    It is a function of the task alone, so no counter can restart and no crash can make a second
    one. 95 bits of BLAKE2b behind the letter F: two of a billion tasks meet with odds below 1e-10.
    """
    digest = hashlib.blake2b(f"{enterprise}\0{task_id}".encode(), digest_size=16).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(CLIENT_REF_CHARS - 1):
        number, index = divmod(number, 32)
        letters.append(_ALPHABET[index])
    return ClientRef(_LONG_REF + "".join(letters))


def row_ref(batch: ClientRef, row: int) -> ClientRef:
    """Return the reference of one row of a batch: a function of the batch's own and the row.

    ``B``, the first 16 letters of the batch's behind its ``F``, and the row's three digits: so two
    rows of a batch never meet, and no row meets a payment or a short reference of digits. Two
    batches meet in 80 bits: of a billion batches with odds of 4e-7. Who reads it at the bank finds
    the batch by it.

    Args:
        batch: made by :func:`client_ref`.
        row: its place in the batch, from 0.
    """
    assert batch.startswith(_LONG_REF), "a bank of short references has no batches"
    assert 0 <= row < BATCH_ROWS_MAX
    return ClientRef(f"{_ROW_REF}{batch[1:-_ROW_DIGITS]}{row:0{_ROW_DIGITS}d}")


def batch_refs(row: str) -> tuple[str, str] | None:
    """Return the least and greatest reference that the batch of a row's may have, None of others.

    Whoever finds several batches between them knows nothing.
    """
    if len(row) != CLIENT_REF_CHARS or not row.startswith(_ROW_REF):
        return None
    known = _LONG_REF + row[1:-_ROW_DIGITS]
    return known + _ALPHABET[0] * _ROW_DIGITS, known + _ALPHABET[-1] * _ROW_DIGITS


def is_ref_of(found: str, reference: ClientRef) -> bool:
    """Say whether a reference is a task's own, or that of a row of its batch."""
    refs = batch_refs(found)
    return found == reference or (refs is not None and refs[0] <= reference <= refs[1])


def short_ref(enterprise: str, task_id: TaskId, digits: int, attempt: int = 0) -> ClientRef:
    """Return a reference of so many digits, for a bank that has no room for ``client_ref``.

    It is a function of the task, too, but two tasks may meet: of a million at one bank with odds of
    one to 16,000 where it has 16 digits. Whoever sends it looks whether another task has it, and
    then takes the next attempt. It never begins with 0 or 1, so it is no month and day.

    Args:
        enterprise: of the configuration.
        task_id: the task's.
        digits: from 12 to 20.
        attempt: counted from 0.
    """
    text = f"{enterprise}\0{task_id}\0{attempt}"
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")
    power = 10 ** (digits - 1)
    return ClientRef(str(2 * power + number % (8 * power)))


def new_session_id() -> str:
    """Return a fresh random session id."""
    return uuid.uuid4().hex


class Sequence:
    """Makes request numbers: 20 digits, never twice in a process, growing with time.

    14 digits of Shanghai time and a 6-digit count, the form banks show in their own logs.
    """

    def __init__(self, start: int = 0) -> None:
        self._count = start % 1_000_000
        self._second: dt.datetime | None = None
        self._prefix = ""

    def next(self, now: dt.datetime) -> str:
        """Return the next number."""
        self._count = (self._count + 1) % 1_000_000
        second = now.replace(microsecond=0)
        if second != self._second:
            self._second, self._prefix = second, f"{now.astimezone(SHANGHAI):%Y%m%d%H%M%S}"
        return f"{self._prefix}{self._count:06d}"
