"""Reads what an answer means: the header's code by the card, then the body of each trade.

The card alone says what a code or state means; one that it does not list is unclear. A status
answer's header speaks of the query, its ``Stt`` of the payment. Nothing here raises outwards.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from typing import Final, assert_never

import attrs

from bank_adapters.pingan_b2bi import bodies, messages
from bank_adapters.pingan_b2bi.bodies import Fields, UnreadableError
from bank_adapters.pingan_b2bi.frames import Packet
from bank_adapters.pingan_b2bi.messages import Cursor
from fep.adapters.api import Accepted, BankProfile, Outcome, Refusal, Rejected, Reply, Unclear
from fep.adapters.card import BehaviourCard, Codes
from fep.domain.clock import SHANGHAI, BusinessDate, from_bank
from fep.domain.errors import BodyError
from fep.domain.ids import ClientRef, row_ref
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    BankCode,
    BankCodeQuery,
    BankCodes,
    BatchOrder,
    BatchQuery,
    BatchStatus,
    Direction,
    Lookup,
    Operation,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    ReturnedPayment,
    ReturnedPayments,
    ReturnedQuery,
    Statement,
    StatementEntry,
    StatementQuery,
    StatusQuery,
    total,
)

BAD_REPLY: Final = "BAD_REPLY"
"""Code of our own: the answer's body can't be understood, or lacks what must be there."""
REPLY_MISMATCH: Final = "REPLY_MISMATCH"
"""Code of our own: the answer speaks of something else than was asked."""
REPLY_CONTINUES: Final = "REPLY_CONTINUES"
"""Code of our own: an answer in several packets whose last one never came."""
MORE_FOLLOWS: Final = "1"
"""``cont_flag``: another packet of the answer follows. One such was seen, a whole XML document with
ten rows; so is what follows taken to be."""
_ROWS_TOLD: Final = "PageRecCount"

BANK_REF_CHARS_MAX: Final = 32
"""FrontLogNo is declared with 14 characters and has 22 in real packets."""


YEARS: Final = range(2000, 2100)
"""Years a time may lie in; anything else is a field filled with something else."""


class Meaning(StrEnum):
    """What a return code says, by the card's list it stands in."""

    OK = "ok"
    REFUSED = "refused"
    PERMISSION = "permission"
    THROTTLED = "throttled"
    DUPLICATE = "duplicate"
    NO_RECORD = "no_record"
    UNCLEAR = "unclear"


_REFUSALS: Final = {
    Meaning.REFUSED: Refusal.BUSINESS,
    Meaning.PERMISSION: Refusal.PERMISSION,
    Meaning.THROTTLED: Refusal.THROTTLED,
}


class _MismatchError(UnreadableError):
    """The answer is not about what was asked."""


@attrs.frozen
class Answer:
    """A decoded answer: what ``Reply.content`` holds where the body could be read."""

    fields: Fields
    stamp: str
    """Date and time of the header, yyyyMMddHHmmss, on a Shanghai clock."""
    continued: bool


def reply_of(packets: Sequence[Packet]) -> Reply:
    """Return the packets of one answer as a reply; one whose bodies are not XML has no content.

    It is recognised by ``seq`` alone: answers made by the local front end keep ``serv_type`` 01.
    The last packet says how it ended.
    """
    header = packets[-1].header
    try:
        content = Answer(
            _joined(packets),
            header.text("date") + header.text("time"),
            header.text("cont_flag") == MORE_FOLLOWS,
        )
    except UnreadableError:
        content = None
    return Reply(
        correlation=header.text("seq"),
        trade=header.text("trade_code"),
        code=header.text("ret_code"),
        message=header.message,
        raw=b"".join(packet.raw for packet in packets),
        content=content,
    )


def _joined(packets: Sequence[Packet]) -> Fields:
    """Return what the packets of one answer say: the last word on each leaf, and all rows.

    Raises:
        UnreadableError: a body is not XML, or they answer two trades.
    """
    read = [bodies.read(bodies.decode(one.body, one.header.text("charset"))) for one in packets]
    if len(read) == 1:
        return read[0]
    if len({(one.header.text("trade_code"), one.header.text("ret_code")) for one in packets}) > 1:
        msg = "the packets of one answer bear two trades or two codes"
        raise UnreadableError(msg)
    values = {name: text for fields in read for name, text in fields.values.items()}
    rows = tuple(row for fields in read for row in fields.rows)
    if all(fields.values.get(_ROWS_TOLD) == str(len(fields.rows)) for fields in read):
        # Each packet counts its own.
        values[_ROWS_TOLD] = str(len(rows))
    return Fields(values, rows, frozenset().union(*(fields.contradictory for fields in read)))


def _read(reply: Reply, meant: Callable[[Answer], Outcome]) -> Outcome:
    """Return what a reply means; without XML, or without its end, it proves nothing.

    Args:
        reply: the bank's.
        meant: reads a whole answer; raises where it can't.
    """
    answer = reply.content
    if not isinstance(answer, Answer):
        return Unclear(reply.code or BAD_REPLY, reply.message or "the answer's body is not XML")
    if answer.continued:
        return Unclear(REPLY_CONTINUES, "another packet was to follow and did not come")
    try:
        return meant(answer)
    except _MismatchError as error:
        return Unclear(REPLY_MISMATCH, str(error))
    except (UnreadableError, BodyError) as error:
        return Unclear(BAD_REPLY, str(error))


def meaning(codes: Codes, code: str) -> Meaning:
    """Return what a code says; in no list, or in two of different meaning, it is unclear."""
    found = [one for one in Meaning if code in getattr(codes, one.value)]
    return found[0] if len(found) == 1 else Meaning.UNCLEAR


def outcome(profile: BankProfile, operation: Operation, reply: Reply) -> Outcome:
    """Return what the reply means for the operation; never raises on bad content."""
    return _read(reply, partial(_outcome, profile, operation, reply))


def payment_ref(reply: Reply) -> str:
    """Return our reference of the payment that an answer to 4004, 4018 or 4052 bears, or empty."""
    answer = reply.content
    if reply.trade not in messages.PAYMENTS or not isinstance(answer, Answer):
        return ""
    return answer.fields.get("ThirdVoucher")


def _outcome(profile: BankProfile, operation: Operation, reply: Reply, answer: Answer) -> Outcome:
    said = meaning(profile.card.codes, reply.code)
    match operation:
        case PaymentOrder(sweep=None):
            return _transfer(profile, operation, reply, answer, said)
        case PaymentOrder():
            return _swept(operation, reply, answer, said)
        case StatusQuery():
            return _status(profile.card, operation, reply, answer, said)
        case BalanceQuery():
            return _balance(operation, reply, answer, said)
        case StatementQuery():
            return _statement(profile.card, operation, reply, answer, said)
        case _:
            assert_never(operation)


def looked_up(codes: Codes, lookup: Lookup, reply: Reply) -> Outcome:
    """Return what the reply means for the look-up; never raises on bad content."""
    return _read(reply, partial(_looked_up, codes, lookup, reply))


def _looked_up(codes: Codes, lookup: Lookup, reply: Reply, answer: Answer) -> Outcome:
    said = meaning(codes, reply.code)
    if said is Meaning.NO_RECORD:
        empty = BankCodes(()) if isinstance(lookup, BankCodeQuery) else ReturnedPayments(())
        return Accepted(empty, reply.code, reply.message)
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=False)
    match lookup:
        case BankCodeQuery():
            _expect_trade(reply, messages.BANK_CODES)
            found: BankCodes | ReturnedPayments = _bank_codes(answer)
        case ReturnedQuery():
            _expect_trade(reply, messages.RETURNED)
            found = _returned(lookup, answer)
        case _:
            assert_never(lookup)
    return Accepted(found, reply.code, reply.message)


def batch_taken(codes: Codes, order: BatchOrder, reference: ClientRef, reply: Reply) -> Outcome:
    """Return what the answer to a 4018 means: taken over at most, never done."""
    return _read(reply, partial(_batch_taken, codes, order, reference, reply))


def _batch_taken(
    codes: Codes, order: BatchOrder, reference: ClientRef, reply: Reply, answer: Answer
) -> Outcome:
    said = meaning(codes, reply.code)
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=True)
    _expect_trade(reply, messages.BATCH)
    if answer.fields.get("ThirdVoucher") != reference:
        msg = "the answer does not bear the batch's ThirdVoucher"
        raise _MismatchError(msg)
    receipt = PaymentReceipt(reference, order.amount)
    return Accepted(receipt, reply.code, reply.message, final=False)


def batch_status(card: BehaviourCard, query: BatchQuery, reply: Reply) -> Outcome:
    """Return what a page of 4015 says of the batch's rows; never raises on bad content."""
    return _read(reply, partial(_batch_status, card, query, reply))


def _batch_status(card: BehaviourCard, query: BatchQuery, reply: Reply, answer: Answer) -> Outcome:
    said = meaning(card.codes, reply.code)
    if said is Meaning.NO_RECORD and not query.cursor:
        none = PaymentStatus(PaymentState.NO_RECORD, reply.code, reply.message)
        found = BatchStatus(dict.fromkeys(range(len(query.order.rows)), none))
        return Accepted(found, reply.code, reply.message)
    if said is Meaning.NO_RECORD:
        return Unclear(reply.code, "there is no further page, and one was to come")
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=False)
    _expect_trade(reply, messages.BATCH_STATUS)
    return Accepted(_batch_page(card, query, answer.fields), reply.code, reply.message)


def _batch_page(card: BehaviourCard, query: BatchQuery, fields: Fields) -> BatchStatus:
    """Return the page, which speaks of rows of this batch alone and of each once."""
    page, order = messages.batch_page(query.cursor), query.order
    _expect_text(fields, "OrigThirdVoucher", query.client_ref)
    _expect_number(fields, "PageNo", page)
    places = {row_ref(query.client_ref, at): at for at in range(len(order.rows))}
    found: dict[int, PaymentStatus] = {}
    for row in fields.rows:
        place = places.get(ClientRef(row.get("SThirdVoucher")))
        if place is None or place in found:
            msg = "a row is not of this batch, or stands there twice"
            raise _MismatchError(msg)
        _expect(row, "TranAmount", order.rows[place].amount)
        _expect_text(row, "OutAcctNo", order.payer)
        _expect_text(row, "InAcctNo", order.rows[place].payee.account)
        found[place] = _payment_status(card, row)
    end, states = fields.get("IsEnd"), card.states
    # Where the flag is left out the page is the last one when it is whole.
    is_end = end in ("Y", "1") or (end == "" and len(found) == len(order.rows))
    if not is_end and not (found and end in ("", "N", "0")):
        msg = f"the end of the pages can't be told: flag {end[:4]!r}"
        raise UnreadableError(msg)
    # A batch that is worked on still may show rows as if they were decided.
    is_over = fields.get("batchSTT") in {"", *states.final_ok, *states.final_bad}
    return BatchStatus(found, "" if is_end else str(page + 1), is_over)


def _bank_codes(answer: Answer) -> BankCodes:
    rows = answer.fields.rows
    return BankCodes(tuple(BankCode(row.get("NodeCode"), row.get("NodeName")) for row in rows))


def _returned(query: ReturnedQuery, answer: Answer) -> ReturnedPayments:
    fields = answer.fields
    rows = fields.rows
    page = int(query.cursor or "1")
    _expect_number(fields, "PageNo", page)
    entries = tuple(
        ReturnedPayment(
            client_ref=row.get("SThirdVoucher") or row.get("ThirdVoucher"),
            bank_ref=row.get("FrontLogNo"),
            amount=_cny(row, "Amount"),
            submitted_on=_day_or_none(row.get("TransDate")),
            returned_on=_day_or_none(row.get("RejectDate")),
            payee_account=row.get("OppAccNo"),
            payee_name=row.get("OppAccName"),
            payee_bank_name=row.get("OppBankName"),
            reason=row.get("RejectRemark"),
        )
        for row in rows
        if row.get("PayAccNo") in ("", query.account)
    )
    # IsEnd Y or 1 is the end; anything else goes on, but never past a page without rows.
    is_end = fields.get("IsEnd") in ("Y", "1") or not rows
    return ReturnedPayments(entries, "" if is_end else str(page + 1))


def _not_done(reply: Reply, said: Meaning, *, moves_money: bool) -> Rejected | Unclear:
    """Return what any code but OK means.

    "Too often" is no proof that a payment was not executed: no packet shows it on 4004, so there
    it is unclear. "No record" and "known already" in answer to a payment prove nothing either.
    """
    if said is Meaning.THROTTLED and moves_money:
        return Unclear(reply.code, reply.message)
    if said in _REFUSALS:
        return Rejected(reply.code, reply.message, _REFUSALS[said])
    if said is Meaning.NO_RECORD and not moves_money:
        return Rejected(reply.code, reply.message)
    return Unclear(reply.code or BAD_REPLY, reply.message)


def _transfer(
    profile: BankProfile, order: PaymentOrder, reply: Reply, answer: Answer, said: Meaning
) -> Outcome:
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=True)
    fields = answer.fields
    _expect_trade(reply, messages.TRANSFER)
    _expect(fields, "TranAmount", order.amount)
    voucher = _voucher(fields)
    # Interbank 000000 is "accepted" only and its hostFlowNo is empty. A payment inside the bank
    # that landed is not booked either, so the host's number is asked for there too.
    done = (
        messages.is_same_bank(profile, order)
        and fields.get("UnionFlag") != "0"
        and fields.get("hostFlowNo") != ""
    )
    receipt = PaymentReceipt(
        client_ref=ClientRef(voucher),
        amount=order.amount,
        bank_ref=_bank_ref(fields),
        booked_on=_day_or_none(fields.get("hostTxDate")) if done else None,
        fee=_fee(fields, "Fee1", "Fee2"),
    )
    return Accepted(receipt, reply.code, reply.message, final=done)


def _swept(order: PaymentOrder, reply: Reply, answer: Answer, said: Meaning) -> Outcome:
    """Return what an answer to 4052 means: taken over at best, since no packet shows one."""
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=True)
    fields = answer.fields
    _expect_trade(reply, messages.SWEEP)
    _expect(fields, "Amount", order.amount)
    voucher = _voucher(fields)
    receipt = PaymentReceipt(ClientRef(voucher), order.amount, _bank_ref(fields))
    return Accepted(receipt, reply.code, reply.message, final=False)


def _voucher(fields: Fields) -> str:
    voucher = fields.get("ThirdVoucher")
    if not 0 < len(voucher) <= messages.CHARS_MAX["ThirdVoucher"]:
        msg = "the answer bears no ThirdVoucher of ours"
        raise _MismatchError(msg)
    return voucher


def _status(
    card: BehaviourCard, query: StatusQuery, reply: Reply, answer: Answer, said: Meaning
) -> Outcome:
    if said is Meaning.NO_RECORD:
        none = PaymentStatus(PaymentState.NO_RECORD, reply.code, reply.message)
        return Accepted(none, reply.code, reply.message)
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=False)
    fields = answer.fields
    _expect_trade(reply, messages.STATUS)
    _expect_text(fields, "OrigThirdVoucher", query.client_ref)
    _expect(fields, "TranAmount", query.order.amount)
    return Accepted(_payment_status(card, fields), reply.code, reply.message)


def _payment_status(card: BehaviourCard, fields: Fields) -> PaymentStatus:
    """Return what 4005, or a row of 4015, says of a payment."""
    texts = dict.fromkeys((fields.get("Yhcljg"), fields.get("BackRem")))
    return PaymentStatus(
        state=_state(card, fields),
        code=fields.get("Stt"),
        message="; ".join(filter(None, texts)),
        bank_ref=_bank_ref(fields),
        booked_on=_day_or_none(fields.get("AccountDate")),
        fee=_fee(fields, "Fee"),
    )


def _state(card: BehaviourCard, fields: Fields) -> PaymentState:
    """Return the payment's state by Stt and the card's returned sign, never by Yhcljg's text."""
    stt, states = fields.get("Stt"), card.states
    sign, _, returned = card.returned.sign.partition("=")
    if (sign and fields.get(sign) == returned) or stt in states.returned:
        return PaymentState.RETURNED
    by_list = (
        (PaymentState.UNKNOWN, states.unknown),
        (PaymentState.PROCESSING, states.intermediate),
        (PaymentState.REJECTED, states.final_bad),
        (PaymentState.SUCCEEDED, states.final_ok),
    )
    found = [state for state, names in by_list if stt in names]
    return found[0] if len(found) == 1 else PaymentState.UNKNOWN


def _balance(query: BalanceQuery, reply: Reply, answer: Answer, said: Meaning) -> Outcome:
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=False)
    fields = answer.fields
    _expect_trade(reply, messages.BALANCE)
    _expect_text(fields, "Account", query.account)
    _expect_text(fields, "CcyCode", messages.CURRENCY)
    found = Balance(
        account=query.account,
        available=_cny(fields, "Balance"),
        book=_cny(fields, "TotalAmount"),
        as_of=_moment(answer.stamp),
        held=_cny(fields, "HoldBalance") if fields.get("HoldBalance") else None,
        status=fields.get("AccountStatus"),
    )
    return Accepted(found, reply.code, reply.message)


def _statement(
    card: BehaviourCard, query: StatementQuery, reply: Reply, answer: Answer, said: Meaning
) -> Outcome:
    if said is Meaning.NO_RECORD:
        return Accepted(Statement(()), reply.code, reply.message)
    if said is not Meaning.OK:
        return _not_done(reply, said, moves_money=False)
    fields = answer.fields
    cursor = _cursor(query, reply, answer)
    _expect_text(fields, "AcctNo", query.account)
    _expect_number(fields, "PageNo", cursor.page)
    _expect_number(fields, _ROWS_TOLD, len(fields.rows))
    day = fields.get("TranDate")
    mark = card.statement.fee_mark
    entries = tuple(
        _entry_4008(row, day, mark) if cursor.trade == messages.TODAY else _entry_4013(row, mark)
        for row in fields.rows
    )
    following = "" if _is_end(fields, cursor) else str(_following(fields, cursor))
    return Accepted(Statement(entries, following), reply.code, reply.message)


def _cursor(query: StatementQuery, reply: Reply, answer: Answer) -> Cursor:
    """Return where the answered page starts, as ``prepare`` computed it for its request."""
    if reply.trade not in (messages.TODAY, messages.HISTORY):
        msg = f"trade {reply.trade!r} answers no statement"
        raise _MismatchError(msg)
    if query.cursor:
        cursor = Cursor.parse(query.cursor)
        _expect_trade(reply, cursor.trade)
        return cursor
    asked_on = answer.stamp[:8]
    if reply.trade == messages.TODAY:
        return Cursor(messages.TODAY, asked_on, 0)
    size = answer.fields.get("PageSize") or str(messages.HISTORY_ROWS_MIN)
    return Cursor(messages.HISTORY, asked_on, 1, int(_digits(size, "PageSize", 4)))


def _is_end(fields: Fields, cursor: Cursor) -> bool:
    flag = fields.get("EndFlag") or fields.get("IsEnded")
    if flag == "Y":
        return True
    if flag != "N" or not fields.rows or cursor.page >= messages.PAGES_MAX:
        msg = f"the end of the pages can't be told: flag {flag!r} on page {cursor.page}"
        raise UnreadableError(msg)
    return False


def _following(fields: Fields, cursor: Cursor) -> Cursor:
    journal, log_count = fields.get("JournalNo") or "0", fields.get("LogCount") or "0"
    following = cursor.following(journal, log_count)
    if not messages.CURSOR.fullmatch(str(following)):
        msg = "the header's date, JournalNo or LogCount can't be gone on with"
        raise UnreadableError(msg)
    return following


def _entry_4013(row: Fields, fee_mark: str) -> StatementEntry:
    _expect_text(row, "CcyCode", messages.CURRENCY)
    debit = _is_debit(row, "DcFlag")
    side = "In" if debit else "Out"
    amount = _cny(row, "TranAmount")
    return StatementEntry(
        bank_ref=(row.get("BussSeqNo") or row.get("HostTrace"))[:BANK_REF_CHARS_MAX],
        booked_at=_moment(row.get("AcctDate") + (row.get("TxTime") or "000000")),
        direction=_way(amount, debit=debit),
        amount=Cny(abs(amount.fen)),
        counterparty_account=row.get(f"{side}AcctNo"),
        counterparty_name=row.get(f"{side}AcctName"),
        # AcctBalance was 0.00 in every real row: it is not read.
        purpose=row.get("Purpose"),
        fee=row.get("AbstractStr") == fee_mark,
        reversal=amount.fen < 0,
    )


def _entry_4008(row: Fields, day: str, fee_mark: str) -> StatementEntry:
    debit = _is_debit(row, "TxType")
    # The side that is not ours: Send is the payer's, Acct the payee's.
    account, name = ("AcctAccount", "AcctName") if debit else ("SendAccount", "SendName")
    amount = _cny(row, "TxAmount")
    time = row.get("TranTime1")
    return StatementEntry(
        bank_ref=(row.get("BussSeqNo") or row.get("HostSeqNo"))[:BANK_REF_CHARS_MAX],
        # Its form is not known: HHmmss and yyyyMMddHHmmss are both read.
        booked_at=_moment(time if len(time) > 6 else day + (time or "000000")),
        direction=_way(amount, debit=debit),
        amount=Cny(abs(amount.fen)),
        counterparty_account=row.get(account),
        counterparty_name=row.get(name),
        balance_after=_cny(row, "Balance") if row.get("Balance") else None,
        purpose=row.get("Notes"),
        fee=row.get("AbstractStr") == fee_mark,
        reversal=amount.fen < 0,
    )


def _way(amount: Cny, *, debit: bool) -> Direction:
    """A debit of less than nothing puts money in: it takes an earlier debit back (冲账)."""
    direction = Direction.DEBIT if debit else Direction.CREDIT
    return direction.opposite if amount.fen < 0 else direction


def _is_debit(row: Fields, name: str) -> bool:
    flag = row.get(name)
    if flag not in ("D", "C"):
        msg = f"{name} is {flag[:4]!r}, not D or C"
        raise UnreadableError(msg)
    return flag == "D"


def _expect_trade(reply: Reply, trade: str) -> None:
    if reply.trade != trade:
        msg = f"trade {reply.trade!r} answers a {trade}"
        raise _MismatchError(msg)


def _expect_text(fields: Fields, name: str, wanted: str) -> None:
    """Check an echo; answers leave elements out or empty, and that contradicts nothing."""
    given = fields.get(name)
    if given and given != wanted:
        msg = f"{name} is not that of the request"
        raise _MismatchError(msg)


def _expect_number(fields: Fields, name: str, wanted: int) -> None:
    given = fields.get(name)
    if given and int(_digits(given, name, 9)) != wanted:
        msg = f"{name} is {given}, not {wanted}"
        raise _MismatchError(msg)


def _expect(fields: Fields, name: str, wanted: Cny) -> None:
    if fields.get(name) and _cny(fields, name) != wanted:
        msg = f"{name} is not that of the order"
        raise _MismatchError(msg)


def _digits(text: str, name: str, size_max: int) -> str:
    if not (text.isascii() and text.isdigit() and len(text) <= size_max):
        msg = f"{name} is {text[:20]!r}, not a number"
        raise UnreadableError(msg)
    return text


def _cny(fields: Fields, name: str) -> Cny:
    try:
        return Cny.parse_loose(fields.get(name))
    except ValueError as error:
        msg = f"{name}: {error}"
        raise UnreadableError(msg) from error


def _fee(fields: Fields, *names: str) -> Cny | None:
    """Return the sum of the fees given, None where the bank names none that can be read.

    A fee is shown only: it decides nothing, so a strange one must not make a payment unclear.
    """
    try:
        given = [_cny(fields, name) for name in names if fields.get(name)]
    except UnreadableError:
        return None
    return total(given) if given else None


def _bank_ref(fields: Fields) -> str:
    return (fields.get("FrontLogNo") or fields.get("hostFlowNo"))[:BANK_REF_CHARS_MAX]


def _moment(stamp: str) -> dt.datetime:
    """Return the UTC moment of a yyyyMMddHHmmss on a Shanghai clock."""
    digits = _digits(stamp, "a time", 14)
    try:
        found = from_bank(digits)
    except ValueError as error:
        msg = f"{digits} is not a time"
        raise UnreadableError(msg) from error
    if int(digits[:4]) not in YEARS:
        msg = f"{digits} is not a time of this century"
        raise UnreadableError(msg)
    return found


def _day_or_none(text: str) -> BusinessDate | None:
    """Return a yyyyMMdd; the booking day is shown only, so one that can't be read is left out."""
    try:
        return BusinessDate(_moment(text + "000000").astimezone(SHANGHAI).date())
    except UnreadableError:
        return None
