"""The simulated Ping An (模拟银行): answers B2Bi from the book, with named faults; sans-I/O.

It answers as B2BiC and the bank behind it would: errors are header-only, those of the local front
end keep ``serv_type`` 01, an interbank 4004 is accepted and never done at once, and what lands
stays in Stt 11. Every payment is free of charge; a fault shows rows of fees all the same.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from bank_adapters.pingan_b2bi import ADAPTER, bodies, messages
from bank_adapters.pingan_b2bi.bodies import Fields, Members, UnreadableError
from bank_adapters.pingan_b2bi.codec import SIGN_ALGORITHMS
from bank_adapters.pingan_b2bi.frames import (
    FIELDS,
    PLACES,
    Attachment,
    Cutter,
    Packet,
    encode,
)
from fep.adapters.host import (
    DELAY_SECONDS,
    ODD,
    Answer,
    BookAccount,
    BookedState,
    BookEntry,
    BookPayment,
    DuplicateReferenceError,
    Fault,
    HostProfile,
    PaymentRequest,
    verify,
)
from fep.domain.clock import SHANGHAI, BusinessDate, business_date, to_shanghai
from fep.domain.errors import RemoteProtocolError
from fep.domain.ids import AccountNumber, parse_account_number
from fep.domain.money import Cny

OK: Final = ("000000", "交易受理成功")
GW3002: Final = ("GW3002", "通讯故障")
THROTTLED: Final = ("YQ9971", "交易请求频率过高,请稍后再试")
DUPLICATE: Final = ("MA4045", "重复的第三方流水号或凭证号")
NO_ACCOUNT: Final = ("2778", "账号不存在")
NO_PAYMENT: Final = ("MA0103", "无此记录")
NO_DETAIL: Final = ("ES0200", "无明细记录")
BAD_PARAMETER: Final = ("YQ9993", "参数错误")
BAD_TOTALS: Final = ("YQ9966", "批量总笔数或总金额不符")
TOO_MANY_ROWS: Final = ("YQ9969", "批量笔数超过上限")
BATCH_REPEATED: Final = ("YQ9962", "批量流水号重复")
BAD_XML: Final = ("YQ9977", "报文格式错误")
BAD_SIGNATURE: Final = ("YQ9985", "证书验证失败")
NOT_PASSED_ON: Final = ("AFE003", "通讯异常-发送报文至后台服务")
UNKNOWN_TRADE: Final = ("YQ0000", "未知的交易码")

LANDS_ABOVE: Final = Cny(1_000_000_000)
"""A payment above 10,000,000 yuan lands, as does an interbank one without a bank code."""
TODAY_ROWS: Final = 10
SHORT_ROWS: Final = 2
_MESSAGE_BYTES_MAX: Final = 100
_SEQ_BYTES: Final = 20
_STATES: Final = {
    BookedState.DONE: "20",
    BookedState.LANDED: "11",
    BookedState.REFUSED: "30",
    BookedState.RETURNED: "20",
}
_NOTES: Final = {
    BookedState.DONE: ("000000:转账交易成功", "交易成功"),
    BookedState.LANDED: ("000000:交易受理成功正在处理中", ""),
    BookedState.REFUSED: ("MA9112:转账失败", ""),
    BookedState.RETURNED: ("000000:转账交易成功", "RJ01:账号不存在"),
}
FAULTS: Final[Mapping[str, str]] = {
    "local_error": "the front end answers AFE003 by itself, header only, with serv_type 01",
    "odd_sign_len": "the header's signature length is in one of the other forms",
    "cut_message": "ret_msg is cut at its end, inside a character",
    "other_seq": "the answer bears the number of another request",
    "more_follows": "cont_flag is 1, and nothing follows",
    "continued": "a page of a statement comes in several packets, cont_flag 1 in all but the last",
    "attachment": "a file that nobody asked for comes with the answer",
    "no_record_at_first": "4005 and 4015 answer MA0103 to what is there, soon after it was booked",
    "odd_state": "4005 answers Stt 11, 40 or 99",
    "short_pages": "4015 gives two rows a page, whatever was asked",
    "strange_row": "4015 names a row that is of no batch of ours",
    "fee_row": "each debit's line has a fee's line with the payment's numbers beside it",
}
NODES: Final = (
    ("102100099996", "中国工商银行总行清算中心"),
    ("105100000017", "中国建设银行总行"),
    ("307584007998", "平安银行深圳总行"),
    ("308584000013", "招商银行深圳总行"),
    ("309391000011", "兴业银行福州总行"),
)
"""Head offices; their codes are public."""
ODD_STATES: Final = ("11", "40", "99")
SIGN_LENGTHS: Final = (b"         0", b"0         ", b"0000000000", b"          ")
_LONG_MESSAGE: Final = (":" + "交易处理中" * 20).encode("gb18030")
FEE: Final = Cny(400)
PACKETS: Final = 3
"""Of a page that comes in several."""
FILE: Final = Attachment("回单样例.txt", b"\x00\xffA001 is no packet here")
STRANGE_VOUCHER: Final = "B0000000000000000999"
_BATCH_COUNTS: Final = {
    "success": (BookedState.DONE, BookedState.RETURNED),
    # That is how the bank spells it.
    "faild": (BookedState.REFUSED,),
    "process": (BookedState.LANDED,),
}
NO_ANSWER: Final = Answer()
_BEFORE_BOOKING: Final = (
    (Fault.SILENT_BEFORE_BOOKING, NO_ANSWER),
    (Fault.CLOSE_BEFORE_BOOKING, Answer(close=True)),
    (Fault.EXIT_BEFORE_BOOKING, Answer(exit=True)),
)
_AFTER_BOOKING: Final = (
    (Fault.SILENT_AFTER_BOOKING, NO_ANSWER),
    (Fault.CLOSE_AFTER_BOOKING, Answer(close=True)),
    (Fault.EXIT_AFTER_BOOKING, Answer(exit=True)),
)
_ALGORITHMS: Final = {name: algorithm for algorithm, name in SIGN_ALGORITHMS.items()}


@attrs.frozen
class _Request:
    packet: Packet
    fields: Fields

    @property
    def trade(self) -> str:
        return self.packet.header.text("trade_code")


@attrs.frozen
class _Order:
    """A payment that was read whole, so that nothing can go wrong between booking and answer."""

    request: PaymentRequest
    same_bank: bool
    inner_number: str = ""
    sweep: str = ""
    """guiJiType of a 4052."""


class _RefusalError(Exception):
    """How a handler ends with a code; ``local`` ones are made by the front end."""

    def __init__(self, said: tuple[str, str], *, local: bool = False) -> None:
        super().__init__(*said)
        self.said = said
        self.local = local


def _answer(
    packet: Packet,
    body: str,
    said: tuple[str, str],
    *,
    local: bool = False,
    more: bool = False,
    files: Sequence[Attachment] = (),
) -> bytes:
    """Return the answer's bytes: the request's header cells with the bank's own laid over them."""
    code, message = said
    header = packet.header
    cells: dict[str, str | bytes] = {name: header.cell(name) for name, _ in FIELDS}
    text = f":{message}".encode("gb18030")[:_MESSAGE_BYTES_MAX]
    cells |= {"charset": "01", "ret_code": code, "ret_msg": text, "cont_flag": str(int(more))}
    cells |= {"sign_flag": "0", "sign_pkt": "1", "sign_alg": "", "attach": "0"}
    if local:
        cells |= {"serv_type": "01", "sign_len": f"{0:010d}"}
    else:
        cells |= {"serv_type": "02", "sign_len": f"{0:<10}"}
    # GB18030, because the book may hold names that GBK lacks; banks cut and mix these too.
    return encode(cells, body.encode("gb18030"), b"", files)


def _good(packet: Packet, members: Members, rows: Sequence[Members] = ()) -> bytes:
    return _answer(packet, bodies.write(bodies.ANSWER_DECLARATION, members, rows), OK)


class PinganHostConnection:
    """One connection to the simulated bank; what it knows is all in the book."""

    def __init__(self, profile: HostProfile) -> None:
        self._profile = profile
        self._started_at = profile.clock.now()
        self._cutter = Cutter(ADAPTER.card.limits.frame_bytes_max)
        self._closed = False
        self._handlers: dict[str, Callable[[_Request], bytes]] = {
            messages.PROBE: self._probe,
            messages.BALANCE: self._balance,
            messages.STATUS: self._status,
            messages.TODAY: self._today,
            messages.HISTORY: self._history,
            messages.BANK_CODES: self._bank_codes,
            messages.RETURNED: self._returned,
            messages.BATCH_STATUS: self._batch_status,
        }

    def receive_data(self, data: bytes) -> list[Answer]:
        """Return what to do about these bytes; bytes that are no B2Bi stream close it."""
        answers: list[Answer] = []
        if self._closed:
            return answers
        try:
            packets = self._cutter.receive_data(data)
            for packet in packets:
                answer = self._receive(packet)
                if answer != NO_ANSWER:
                    answers.append(answer)
                if answer.close or answer.exit:
                    self._closed = True
                    return answers
            self._cutter.receive_data(b"")
        except RemoteProtocolError:
            self._closed = True
            answers.append(Answer(close=True))
        return answers

    def _receive(self, packet: Packet) -> Answer:
        self._profile.book.take_back(self._profile.bank, self._profile.clock.now())
        try:
            answer = self._reply(packet)
        except _RefusalError as refusal:
            answer = Answer(_answer(packet, "", refusal.said, local=refusal.local))
        if answer.data and self._profile.faults.draw(Fault.DELAYED):
            answer = attrs.evolve(answer, delay_s=DELAY_SECONDS)
        return attrs.evolve(answer, data=self._odd(answer.data)) if answer.data else answer

    def _odd(self, data: bytes) -> bytes:
        """Return an answer with what this bank's headers are known to have now and then."""
        faults, changed = self._profile.faults, bytearray(data)
        if faults.draw("odd_sign_len"):
            changed[PLACES["sign_len"]] = faults.rng.choice(SIGN_LENGTHS)
        if faults.draw("cut_message"):
            changed[PLACES["ret_msg"]] = _LONG_MESSAGE[:_MESSAGE_BYTES_MAX]
        if faults.draw("other_seq"):
            changed[PLACES["seq"]] = b"9" * _SEQ_BYTES
        if faults.draw("more_follows"):
            changed[PLACES["cont_flag"]] = b"1"
        return bytes(changed)

    def _reply(self, packet: Packet) -> Answer:
        text = bodies.decode(packet.body, packet.header.text("charset"))
        if self._profile.faults.draw("local_error"):
            raise _RefusalError(NOT_PASSED_ON, local=True)
        try:
            request = _Request(packet, bodies.read(text))
        except UnreadableError as error:
            raise _RefusalError(BAD_XML) from error
        if request.trade in (messages.TRANSFER, messages.SWEEP):
            return self._transfer(request)
        if request.trade == messages.BATCH:
            return self._batch(request)
        handler = self._handlers.get(request.trade)
        if handler is None:
            raise _RefusalError(UNKNOWN_TRADE, local=True)
        is_query = request.trade != messages.PROBE
        if is_query and self._profile.faults.draw(Fault.THROTTLED):
            raise _RefusalError(THROTTLED)
        try:
            return Answer(handler(request))
        except (UnreadableError, ValueError) as error:
            raise _RefusalError(BAD_PARAMETER) from error

    def _probe(self, request: _Request) -> bytes:
        now, started_at = to_shanghai(self._profile.clock.now()), to_shanghai(self._started_at)
        text = (
            f"hostNo[7],port[49999]autoTaskServerFlag[C],currentServerTime:{now:%Y-%m-%d %H:%M:%S};"
            f"sysStartTime:{started_at:%Y-%m-%d %H:%M:%S}"
        )
        return _good(request.packet, [("Desc", text)])

    def _own(self, number: str) -> BookAccount:
        account = self._profile.book.account(self._profile.bank, parse_account_number(number))
        if account is None:
            raise _RefusalError(NO_ACCOUNT)
        return account

    def _balance(self, request: _Request) -> bytes:
        _expect_currency(request.fields)
        account = self._own(request.fields.get("Account"))
        balance = str(account.balance)
        members = [
            ("Account", account.number),
            ("CcyCode", messages.CURRENCY),
            ("CcyType", ""),
            ("AccountName", account.name),
            ("Balance", balance),
            ("TotalAmount", balance),
            ("AccountType", ""),
            ("AccountStatus", "A"),
            ("BankName", ""),
            ("LastBalance", balance),
            ("HoldBalance", "0.00"),
        ]
        return _good(request.packet, members)

    def _transfer(self, request: _Request) -> Answer:
        before = self._mishap(_BEFORE_BOOKING)
        if before is not None:
            return before
        self._check_signature(request.packet)
        try:
            read = self._sweep if request.trade == messages.SWEEP else self._order
            order = read(request.fields)
        except (UnreadableError, ValueError) as error:
            raise _RefusalError(BAD_PARAMETER) from error
        profile = self._profile
        try:
            payment = profile.book.pay(profile.bank, order.request, profile.clock.now())
        except DuplicateReferenceError as error:
            raise _RefusalError(DUPLICATE) from error
        after = self._mishap(_AFTER_BOOKING)
        if after is not None:
            return after
        if profile.faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            raise _RefusalError(GW3002)
        return Answer(self._taken(request.packet, order, payment))

    def _batch(self, request: _Request) -> Answer:
        """Book a 4018 whole: each row by itself, so that some may be refused."""
        before = self._mishap(_BEFORE_BOOKING)
        if before is not None:
            return before
        self._check_signature(request.packet)
        try:
            reference, rows = self._batch_order(request.fields)
        except (UnreadableError, ValueError) as error:
            raise _RefusalError(BAD_PARAMETER) from error
        profile = self._profile
        try:
            profile.book.pay_batch(profile.bank, reference, rows, profile.clock.now())
        except DuplicateReferenceError as error:
            raise _RefusalError(BATCH_REPEATED) from error
        after = self._mishap(_AFTER_BOOKING)
        if after is not None:
            return after
        if profile.faults.draw(Fault.UNKNOWN_AFTER_BOOKING):
            raise _RefusalError(GW3002)
        return Answer(_good(request.packet, [("ThirdVoucher", reference)]))

    def _batch_order(self, fields: Fields) -> tuple[str, list[PaymentRequest]]:
        """Return reference and rows, or refuse the batch by what the bank checks before it books.

        Of "one sum" nothing is known but the flag, so it is refused.
        """
        reference, rows = _text(fields, "ThirdVoucher"), fields.rows
        if len(rows) > ADAPTER.card.batch.rows_max:
            raise _RefusalError(TOO_MANY_ROWS)
        common = {name: fields.get(name) for name in ("CcyCode", "OutAcctNo")}
        requests = [
            self._order(Fields({**row.values, **common, "ThirdVoucher": row.get("SThirdVoucher")}))
            for row in rows
        ]
        amount = Cny(sum(one.request.amount.fen for one in requests))
        told = _whole(fields, "totalCts", 1, ADAPTER.card.batch.rows_max)
        if (told, Cny.parse_loose(fields.get("totalAmt"))) != (len(rows), amount):
            raise _RefusalError(BAD_TOTALS)
        references = {one.request.client_ref for one in requests}
        if fields.get("PayType") != "0" or len(references) != len(rows):
            raise _RefusalError(BAD_PARAMETER)
        return reference, [one.request for one in requests]

    def _mishap(self, cases: Sequence[tuple[Fault, Answer]]) -> Answer | None:
        drawn = (answer for fault, answer in cases if self._profile.faults.draw(fault))
        return next(drawn, None)

    def _check_signature(self, packet: Packet) -> None:
        """Refuse a payment that no key of the enterprise signed; the book never hears of it."""
        certificates = self._profile.certificates
        if not certificates:
            return
        header = packet.header
        algorithm = _ALGORITHMS.get(header.text("sign_alg"))
        if header.text("sign_flag") != "1" or algorithm is None:
            raise _RefusalError(BAD_SIGNATURE)
        if not verify(certificates, algorithm, packet.signature, packet.body):
            raise _RefusalError(BAD_SIGNATURE)

    def _order(self, fields: Fields) -> _Order:
        """Return the order, or refuse it by what the bank checks before it books."""
        _expect_currency(fields)
        amount = Cny.parse_loose(fields.get("TranAmount"))
        payer = self._own(fields.get("OutAcctNo"))
        payee = parse_account_number(fields.get("InAcctNo"))
        union = fields.get("UnionFlag")
        if amount.fen <= 0 or amount > messages.AMOUNT_MAX or union not in ("0", "1"):
            raise _RefusalError(BAD_PARAMETER)
        same_bank = union == "1"
        # One bank may stand in the book under several names, one for each direct connection.
        if same_bank and self._profile.book.bank_of(payee) is None:
            raise _RefusalError(NO_ACCOUNT)
        lands = (
            amount > LANDS_ABOVE
            or fields.get("RealFlag") == "1"
            or (not same_bank and not fields.get("InAcctBankNode"))
        )
        request = PaymentRequest(
            client_ref=_text(fields, "ThirdVoucher"),
            payer=payer.number,
            payee=payee,
            payee_name=_text(fields, "InAcctName"),
            payee_bank_name=_text(fields, "InAcctBankName"),
            amount=amount,
            purpose=_text(fields, "UseEx", least=0),
            landed=lands or self._profile.faults.draw(Fault.LANDED),
            returns_at=self._profile.faults.draw_return(self._profile.clock.now()),
        )
        return _Order(request, same_bank, fields.get("CstInnerFlowNo"))

    def _sweep(self, fields: Fields) -> _Order:
        """Return the order of a 4052: between two accounts of the enterprise."""
        parent, child = self._own(fields.get("AcctNo")), self._own(fields.get("subAccountNo"))
        way, amount = fields.get("guiJiType"), Cny.parse_loose(fields.get("Amount"))
        if (
            fields.get("guiJiAreaOption") != messages.ONE_CHILD
            or way not in (messages.SWEEP_UP, messages.SWEEP_DOWN)
            or not 0 < amount.fen <= messages.AMOUNT_MAX.fen
            or parent.number == child.number
        ):
            raise _RefusalError(BAD_PARAMETER)
        payer, payee = (child, parent) if way == messages.SWEEP_UP else (parent, child)
        faults = self._profile.faults
        request = PaymentRequest(
            client_ref=_text(fields, "ThirdVoucher"),
            payer=payer.number,
            payee=payee.number,
            payee_name=payee.name,
            payee_bank_name="",
            amount=amount,
            purpose="",
            landed=faults.draw(Fault.LANDED),
            returns_at=faults.draw_return(self._profile.clock.now()),
        )
        return _Order(request, same_bank=True, sweep=way)

    def _taken(self, packet: Packet, order: _Order, payment: BookPayment) -> bytes:
        """Return the answer to a booked 4004; only inside the bank it bears the host's number."""
        at_once = order.same_bank or not self._is_funded(payment)
        if payment.state is BookedState.REFUSED and at_once:
            raise _RefusalError((BAD_PARAMETER[0], payment.reason))
        if order.sweep:
            members = [
                ("ThirdVoucher", payment.client_ref),
                ("FrontLogNo", payment.bank_ref),
                ("guiJiType", order.sweep),
                ("Amount", str(payment.amount)),
            ]
            return _good(packet, members)
        done = order.same_bank and payment.state is BookedState.DONE
        members = [
            ("ThirdVoucher", payment.client_ref),
            ("FrontLogNo", payment.bank_ref),
            ("CcyCode", messages.CURRENCY),
            ("OutAcctName", payment.payer_name),
            ("OutAcctNo", payment.payer),
            ("InAcctBankName", payment.payee_bank_name),
            ("InAcctNo", payment.payee),
            ("InAcctName", payment.payee_name),
            ("TranAmount", str(payment.amount)),
            ("UnionFlag", "1" if order.same_bank else "0"),
            ("Fee1", "0.00"),
            ("Fee2", "0.00"),
            ("SOA_VOUCHER", ""),
            ("hostFlowNo", _host_number(payment.bank_ref) if done else ""),
            ("hostTxDate", f"{to_shanghai(payment.at):%Y%m%d}"),
            ("Mobile", ""),
            ("CstInnerFlowNo", order.inner_number),
        ]
        return _good(packet, members)

    def _is_funded(self, payment: BookPayment) -> bool:
        """Say whether a refused payment had its money, so that only the other bank refused it."""
        payer = self._profile.book.account(self._profile.bank, payment.payer)
        return payer is not None and payer.balance >= payment.amount

    def _status(self, request: _Request) -> bytes:
        reference = _text(request.fields, "OrigThirdVoucher")
        payment = self._profile.book.payment(self._profile.bank, reference)
        if payment is None or self._hides(payment):
            raise _RefusalError(NO_PAYMENT)
        members = [("OrigThirdVoucher", payment.client_ref), *self._told(payment)]
        return _good(request.packet, members)

    def _batch_status(self, request: _Request) -> bytes:
        fields, faults = request.fields, self._profile.faults
        reference = _text(fields, "OrigThirdVoucher")
        rows = self._profile.book.batch(self._profile.bank, reference)
        if not rows or self._hides(rows[0]):
            raise _RefusalError(NO_PAYMENT)
        page = _whole(fields, "PageNo", 1, messages.PAGES_MAX)
        size = _whole(fields, "PageCts", 1, ADAPTER.card.batch.rows_max)
        size = SHORT_ROWS if faults.draw("short_pages") else size
        shown = rows[(page - 1) * size : page * size]
        if fields.get("QueryType") != "0" or not shown:
            raise _RefusalError(NO_DETAIL)
        lists = [[("SThirdVoucher", row.client_ref), *self._told(row)] for row in shown]
        if faults.draw("strange_row"):
            lists[-1][0] = ("SThirdVoucher", STRANGE_VOUCHER)
        sums: list[tuple[str, str]] = []
        for name, states in _BATCH_COUNTS.items():
            mine = [row for row in rows if row.state in states]
            amount = Cny(sum(row.amount.fen for row in mine))
            sums += [(f"{name}Cts", str(len(mine))), (f"{name}Amt", str(amount))]
        is_over = all(row.state is not BookedState.LANDED for row in rows)
        members = [
            ("OrigThirdVoucher", reference),
            ("batchSTT", "20" if is_over else "B1"),
            *sums,
            ("TotalCts", str(len(rows))),
            ("CTotalCts", str(len(shown))),
            ("PTotalCts", ""),
            ("IsEnd", "Y" if page * size >= len(rows) else "N"),
            ("subBatchSTT", ""),
            ("CorBatchNo", ""),
            ("PageNo", str(page)),
        ]
        return _good(request.packet, members, lists)

    def _hides(self, payment: BookPayment) -> bool:
        now = self._profile.clock.now()
        return self._profile.faults.hides("no_record_at_first", payment.at, now)

    def _told(self, payment: BookPayment) -> list[tuple[str, str]]:
        """Return what 4005, and a row of 4015, say of a payment."""
        state, faults = _STATES[payment.state], self._profile.faults
        if faults.draw("odd_state"):
            state = faults.rng.choice(ODD_STATES)
        local = to_shanghai(payment.at)
        note, remark = _NOTES[payment.state]
        returned = payment.state is BookedState.RETURNED
        done = payment.state is BookedState.DONE or returned
        return [
            ("FrontLogNo", payment.bank_ref),
            ("CcyCode", messages.CURRENCY),
            ("OutAcctBankName", ""),
            ("OutAcctNo", payment.payer),
            ("InAcctBankName", payment.payee_bank_name),
            ("InAcctNo", payment.payee),
            ("InAcctName", payment.payee_name),
            ("TranAmount", str(payment.amount)),
            ("UnionFlag", "1" if payment.same_bank else "0"),
            ("Yhcljg", note),
            ("Fee", "0.00"),
            ("CstInnerFlowNo", ""),
            ("Stt", state),
            ("IsBack", "1" if returned else "0"),
            ("BackRem", remark or payment.reason),
            ("SysFlag", "N"),
            ("TransBsn", messages.TRANSFER),
            ("submitTime", f"{local:%Y%m%d%H%M%S}"),
            ("AccountDate", f"{local:%Y%m%d}" if done else ""),
            ("InAcctBankNode", ""),
            ("hostFlowNo", _host_number(payment.bank_ref) if done else ""),
            ("hostErrorCode", "000000" if done else ""),
            ("kType", "0"),
            ("dType", "0"),
            ("subBatchNo", ""),
            ("ProxyPayName", ""),
            ("ProxyPayAcc", ""),
            ("ProxyPayBankName", ""),
        ]

    def _today(self, request: _Request) -> bytes:
        fields = request.fields
        _expect_currency(fields)
        account = self._own(fields.get("AcctNo"))
        page = _whole(fields, "PageNo", 0, messages.PAGES_MAX)
        today = business_date(self._profile.clock.now())
        entries = self._entries(account.number, today, today)
        start = page * TODAY_ROWS
        rows = self._rows(_row_4008, account, entries[start : start + TODAY_ROWS])
        members = [
            ("AcctNo", account.number),
            ("CcyCode", messages.CURRENCY),
            ("PageNo", str(page)),
            ("PageSize", str(TODAY_ROWS)),
            ("TranDate", f"{today:%Y%m%d}"),
            ("EndFlag", "Y" if start + TODAY_ROWS >= len(entries) else "N"),
            ("PageRecCount", str(len(rows))),
            ("JournalNo", str(start + len(rows))),
            ("LogCount", str(len(entries))),
        ]
        return self._page(request.packet, members, rows)

    def _history(self, request: _Request) -> bytes:
        fields = request.fields
        _expect_currency(fields)
        account = self._own(fields.get("AcctNo"))
        first, last = _day(fields.get("BeginDate")), _day(fields.get("EndDate"))
        page = _whole(fields, "PageNo", 1, messages.PAGES_MAX)
        size = _whole(fields, "PageSize", messages.HISTORY_ROWS_MIN, messages.HISTORY_ROWS_MAX)
        today = business_date(self._profile.clock.now())
        # Both dates today, or both in the past.
        if not first <= last <= today or first < last == today:
            raise _RefusalError(BAD_PARAMETER)
        entries = self._entries(account.number, first, last)
        start = (page - 1) * size
        rows = self._rows(_row_4013, account, entries[start : start + size])
        members = [
            ("AcctNo", account.number),
            ("CcyCode", messages.CURRENCY),
            ("EndFlag", "Y" if start + size >= len(entries) else "N"),
            ("Reserve", ""),
            ("PageRecCount", str(len(rows))),
            ("PageNo", str(page)),
            ("PageSize", str(size)),
        ]
        return self._page(request.packet, members, rows)

    def _page(self, packet: Packet, members: Members, rows: Sequence[Members]) -> bytes:
        """Return a page's answer, maybe in several packets, each of which is a whole document."""
        faults = self._profile.faults
        files = [FILE] if faults.draw("attachment") else []
        parts = [rows]
        if len(rows) > 1 and faults.draw("continued"):
            step = -(-len(rows) // PACKETS)
            parts = [rows[at : at + step] for at in range(0, len(rows), step)]
        packets = []
        for number, part in enumerate(parts, 1):
            body = bodies.write(bodies.ANSWER_DECLARATION, members, part)
            is_last = number == len(parts)
            packets.append(
                _answer(packet, body, OK, more=not is_last, files=files if is_last else ())
            )
        return b"".join(packets)

    def _bank_codes(self, request: _Request) -> bytes:
        bank_class, keyword = request.fields.get("BankNo"), request.fields.get("KeyWord")
        found = [
            (code, name) for code, name in NODES if code.startswith(bank_class) and keyword in name
        ]
        if not found:
            raise _RefusalError(NO_DETAIL)
        members = [("BankNo", bank_class), ("BankName", ""), ("size", str(len(found)))]
        rows = [[("NodeCode", code), ("NodeName", name)] for code, name in found]
        return _good(request.packet, members, rows)

    def _returned(self, request: _Request) -> bytes:
        fields = request.fields
        account = self._own(fields.get("AccNo"))
        first, last = _day(fields.get("StartDate")), _day(fields.get("EndDate"))
        page = _whole(fields, "PageNo", 1, messages.PAGES_MAX)
        size = _whole(fields, "PageCts", 1, messages.RETURNED_ROWS)
        if not 0 <= (last - first).days < messages.RETURNED_DAYS_MAX:
            raise _RefusalError(BAD_PARAMETER)
        entries = [
            one for one in self._entries(account.number, first, last) if one.back and not one.debit
        ]
        if not entries:
            raise _RefusalError(NO_DETAIL)
        start = (page - 1) * size
        rows = [self._returned_row(account, one) for one in entries[start : start + size]]
        members = [
            ("TotalCts", str(len(entries))),
            ("IsEnd", "Y" if start + size >= len(entries) else "N"),
            ("PageNo", str(page)),
            ("PageCts", str(size)),
        ]
        return _good(request.packet, members, rows)

    def _returned_row(self, account: BookAccount, entry: BookEntry) -> Members:
        payment = self._profile.book.payment(self._profile.bank, entry.client_ref)
        at = entry.at if payment is None else payment.at
        return [
            ("ThirdVoucher", ""),
            ("SThirdVoucher", entry.client_ref),
            ("CstInnerFlowNo", ""),
            ("TransDate", f"{to_shanghai(at):%Y%m%d}"),
            ("PayAccNo", account.number),
            ("OppAccNo", entry.counterparty),
            ("OppAccName", entry.counterparty_name),
            ("OppBankName", entry.counterparty_bank_name),
            ("Amount", str(entry.amount)),
            ("CcyCode", messages.CURRENCY),
            ("RejectDate", f"{to_shanghai(entry.at):%Y%m%d}"),
            ("RejectRemark", "RJ01:账号不存在"),
            ("FrontLogNo", entry.payment_ref),
            ("submitTime", f"{to_shanghai(at):%Y%m%d%H%M%S}"),
        ]

    def _rows(
        self,
        row: Callable[[BookAccount, BookEntry], Members],
        account: BookAccount,
        entries: Sequence[BookEntry],
    ) -> list[Members]:
        """Return a page's rows, maybe with fees and an odd currency."""
        faults = self._profile.faults
        with_fees = faults.draw("fee_row")
        rows = []
        for entry in entries:
            rows.append(row(account, entry))
            if with_fees and entry.debit and not entry.back:
                rows.append(_fee(row(account, attrs.evolve(entry, amount=FEE))))
        if rows and faults.draw(Fault.ODD_CURRENCY):
            rows[-1] = [(name, ODD if name == "CcyCode" else one) for name, one in rows[-1]]
        return rows

    def _entries(
        self, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> list[BookEntry]:
        entries = self._profile.book.entries(self._profile.bank, number, first, last)
        if not entries:
            raise _RefusalError(NO_DETAIL)
        return entries


def _row_4008(account: BookAccount, entry: BookEntry) -> Members:
    own, other = _sides(account, entry)
    send, accept = (own, other) if _side(entry) == "D" else (other, own)
    return [
        ("TranTime1", f"{to_shanghai(entry.at):%H%M%S}"),
        ("HostSeqNo", _host_number(entry.payment_ref)),
        ("BussSeqNo", entry.payment_ref),
        ("SummonNo", ""),
        ("SendBank", send[2]),
        ("SendBankNode", ""),
        ("SendAccount", send[0]),
        ("SendName", send[1]),
        ("TxAmount", _amount(entry)),
        ("AcctBank", accept[2]),
        ("AcctBankNode", ""),
        ("AcctAccount", accept[0]),
        ("AcctName", accept[1]),
        ("TxType", _side(entry)),
        ("AbstractStr", _abstract(entry)),
        ("Notes", entry.purpose),
        ("Fee1", "0.00"),
        ("Fee2", "0.00"),
        ("AbstractStr_Desc", _abstract(entry)),
        ("CVoucherNo", ""),
        ("CstInnerFlowNo", ""),
        ("Balance", str(entry.balance_after)),
    ]


def _row_4013(account: BookAccount, entry: BookEntry) -> Members:
    own, other = _sides(account, entry)
    out, into = (own, other) if _side(entry) == "D" else (other, own)
    local = to_shanghai(entry.at)
    return [
        ("AcctDate", f"{local:%Y%m%d}"),
        ("TxTime", f"{local:%H%M%S}"),
        ("HostTrace", _host_number(entry.payment_ref)),
        ("BussSeqNo", entry.payment_ref),
        ("OutNode", ""),
        ("OutBankNo", ""),
        ("OutBankName", out[2]),
        ("OutAcctNo", out[0]),
        ("OutAcctName", out[1]),
        ("CcyCode", messages.CURRENCY),
        ("TranAmount", _amount(entry)),
        ("InNode", ""),
        ("InBankNo", ""),
        ("InBankName", into[2]),
        ("InAcctNo", into[0]),
        ("InAcctName", into[1]),
        ("DcFlag", _side(entry)),
        ("AbstractStr", _abstract(entry)),
        ("VoucherNo", ""),
        ("TranFee", ""),
        ("PostFee", ""),
        # The test environment of 2016 answered 0.00 in every row.
        ("AcctBalance", "0.00"),
        ("Purpose", entry.purpose),
        ("AbstractStr_Desc", _abstract(entry)),
        ("CVoucherNo", ""),
        ("ProxyPayAcc", ""),
        ("ProxyPayName", ""),
        ("ProxyPayBankName", ""),
    ]


def _fee(row: Members) -> Members:
    """Return a payment's row as its fee's: the same numbers, and nobody on the other side."""
    changes = dict.fromkeys(("InAcctNo", "InAcctName", "AcctAccount", "AcctName", "Purpose"), "")
    changes |= {"AbstractStr": "FEE", "AbstractStr_Desc": "FEE"}
    return [(name, changes.get(name, value)) for name, value in row]


def _side(entry: BookEntry) -> str:
    """Return D or C: what is taken from a payee again is a credit below zero (冲账)."""
    return "D" if entry.debit and not entry.back else "C"


def _amount(entry: BookEntry) -> str:
    return f"{'-' if entry.debit and entry.back else ''}{entry.amount}"


def _abstract(entry: BookEntry) -> str:
    return "TP" if entry.back else "WEB"


_Side = tuple[str, str, str]


def _sides(account: BookAccount, entry: BookEntry) -> tuple[_Side, _Side]:
    """Return number, name and bank of the account's own side and of the other."""
    own = (account.number, account.name, "")
    return own, (entry.counterparty, entry.counterparty_name, entry.counterparty_bank_name)


def _host_number(bank_ref: str) -> str:
    """Return the host's own number of a payment: 22 digits, always the same for the same one."""
    digest = hashlib.blake2b(bank_ref.encode("utf-8", "replace"), digest_size=8).digest()
    return f"{int.from_bytes(digest, 'big'):022d}"


def _expect_currency(fields: Fields) -> None:
    if fields.get("CcyCode") not in ("", messages.CURRENCY):
        raise _RefusalError(BAD_PARAMETER)


def _text(fields: Fields, name: str, *, least: int = 1) -> str:
    text = fields.get(name)
    if not least <= len(text) <= messages.CHARS_MAX[name]:
        raise _RefusalError(BAD_PARAMETER)
    return text


def _whole(fields: Fields, name: str, least: int, most: int) -> int:
    text = fields.get(name)
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and least <= int(text) <= most):
        raise _RefusalError(BAD_PARAMETER)
    return int(text)


def _day(text: str) -> BusinessDate:
    if not (text.isascii() and text.isdigit()):
        raise _RefusalError(BAD_PARAMETER)
    return BusinessDate(dt.datetime.strptime(text, "%Y%m%d").replace(tzinfo=SHANGHAI).date())


@attrs.frozen
class PinganHost:
    """What the entry point names."""

    name: str = ADAPTER.name
    faults: Mapping[str, str] = FAULTS

    def open(self, profile: HostProfile) -> PinganHostConnection:
        """Return the host's half of a new connection."""
        return PinganHostConnection(profile)


HOST: Final = PinganHost()
