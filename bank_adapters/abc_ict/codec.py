"""The adapter's two faces to the engine: a connection's framer and one bank's codec."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Final, assert_never

import attrs

from bank_adapters.abc_ict.messages import FrameReader, Message, block, decode, encode, pack, text
from fep.adapters.api import (
    Accepted,
    BankProfile,
    Context,
    Draft,
    Outcome,
    Reply,
    Unclear,
)
from fep.adapters.card import BehaviourCard, States
from fep.adapters.meaning import payment_refused, payment_state, refused
from fep.domain.clock import BusinessDate, from_bank, to_shanghai
from fep.domain.errors import BodyError, LocalProtocolError, RemoteProtocolError
from fep.domain.ids import AccountNumber, ClientRef
from fep.domain.money import Cny
from fep.domain.order import (
    Balance,
    BalanceQuery,
    Operation,
    PaymentOrder,
    PaymentReceipt,
    PaymentState,
    PaymentStatus,
    StatementQuery,
    StatusQuery,
)

BALANCE: Final = "CQRA06"
PAY_CORPORATE, PAY_PERSONAL = "CFRT02", "CFRT21"
PAYMENTS: Final = frozenset({PAY_CORPORATE, PAY_PERSONAL})
STATUS: Final = "CQRT04"
RENMINBI: Final = "01"
BANK_CLASS: Final = "103"
"""First three digits of the CNAPS code of every branch of this bank."""
LANDED: Final = "0001"
"""RespCode of a payment that waits for a person (落地); so does one with WaitFlag 1."""
STATE_PLACES: Final = (slice(18, 22), slice(22, 26))
"""In RespPrvData of CQRT04, counted in characters: all of them are ASCII there."""
ACCOUNT, BOOK, AVAILABLE = 1, 4, 5
"""Places in RespPrvData of CQRA06, between the bars."""
PURPOSE_DEFAULT: Final = "转账"
UNREADABLE: Final = "UNREADABLE"
"""Our code of a frame that can't be read; it matches no request and is stored."""


@attrs.frozen
class AbcIctOptions:
    """The ``options`` table of a bank of this adapter; a ValueError names what is wrong."""

    corp_no: str
    """The enterprise's number (企业编号, CorpNo)."""
    op_no: str
    """The operator's number (操作员编号, OpNo)."""
    auth_no: str = ""
    """AuthNo, where the bank gave one."""


class AbcIctFramer:
    """Cuts one connection's bytes into replies."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frames = FrameReader(frame_bytes_max)

    def receive_data(self, data: bytes) -> list[Reply]:
        """Return the replies completed by these bytes, in order.

        Raises:
            RemoteProtocolError: as of ``FrameReader.receive_data``.
        """
        return [_reply(body) for body in self._frames.receive_data(data)]

    def receive_eof(self) -> None:
        """Note the end of the stream.

        Raises:
            RemoteProtocolError: it ended inside a frame.
        """
        self._frames.receive_eof()


def _reply(xml: bytes) -> Reply:
    try:
        message = decode(xml)
    except RemoteProtocolError as error:
        return Reply("", "", UNREADABLE, str(error), xml)
    return Reply(
        correlation=text(message, "ReqSeqNo"),
        trade=text(message, "CCTransCode"),
        code=text(message, "RespCode"),
        message=text(message, "RespInfo") or text(message, "RxtInfo"),
        raw=xml,
        content=message,
    )


@attrs.frozen
class AbcIctCodec:
    """One configured bank's protocol; its profile and nothing else."""

    profile: BankProfile

    # -- what the link asks -----------------------------------------------------------------------

    def framer(self) -> AbcIctFramer:
        """Return the framer of a new connection."""
        return AbcIctFramer(self.profile.card.limits.frame_bytes_max)

    def logon(self, context: Context) -> Draft | None:  # noqa: ARG002 - the interface's
        """Return None: there is no session."""
        return None

    def probe(self, context: Context) -> Draft:
        """Return the heartbeat: a harmless request of the bank's own."""
        accounts = self.profile.accounts.items()
        ours = (number for number, one in accounts if one.bank == self.profile.bank)
        account = next(ours, AccountNumber("0"))
        return self._draft(BALANCE, context.sequence, context, {"Cmp": _debit(account)})

    def alive(self, reply: Reply) -> bool:
        """Say whether the heartbeat's answer shows a working bank; "too often" does."""
        codes = self.profile.card.codes
        return reply.trade == BALANCE and reply.code in codes.ok | codes.throttled

    # -- what the engine asks ---------------------------------------------------------------------

    def prepare(self, operation: Operation, context: Context) -> Draft:
        """Return the request for an operation.

        Raises:
            BodyError: this bank can't carry it; the message names the member.
            LocalProtocolError: a payment without its reference.
        """
        match operation:
            case BalanceQuery():
                fields: Message = {"Cmp": _debit(self._own(operation.account, "account"))}
                return self._draft(BALANCE, context.sequence, context, fields)
            case PaymentOrder():
                if context.client_ref is None:
                    msg = "a payment was to be written without its reference"
                    raise LocalProtocolError(msg)
                trade = PAY_PERSONAL if operation.payee.kind == "personal" else PAY_CORPORATE
                return self._draft(trade, context.client_ref, context, self._payment(operation))
            case StatusQuery():
                fields = {"Cme": {"OldReqSeqNo": operation.client_ref}}
                return self._draft(STATUS, context.sequence, context, fields)
            case StatementQuery():
                msg = "this adapter reads no statements"
                raise BodyError(msg)
            case _:
                assert_never(operation)

    def seal(self, draft: Draft, signature: bytes | None) -> bytes:
        """Return the exact bytes to send.

        Raises:
            LocalProtocolError: a signature is missing, or there is one where none belongs.
        """
        if (draft.to_sign is None) != (signature is None):
            msg = "the draft and its signature do not belong together"
            raise LocalProtocolError(msg)
        xml = draft.content
        assert isinstance(xml, bytes)
        if signature is not None:
            xml = xml.replace(NO_SIGN, b"<Sign>" + base64.b64encode(signature) + b"</Sign>", 1)
        return pack(xml)

    def outcome(self, operation: Operation, reply: Reply) -> Outcome:
        """Return what a reply means for the operation it answers; never raises on bad content."""
        if not isinstance(reply.content, Mapping) or reply.trade not in _TRADES[type(operation)]:
            return Unclear(reply.code, reply.message or "an answer to something else")
        try:
            return _outcome(self.profile.card, operation, reply, reply.content)
        except (ValueError, TypeError) as error:
            # One value that can't be read spoils the answer: a line left out would be a lie.
            return Unclear(UNREADABLE, str(error))

    def payment_ref(self, reply: Reply) -> str:
        """Return our reference of the payment that an answer to a payment bears, or empty."""
        return reply.correlation if reply.trade in PAYMENTS else ""

    def split(self, query: StatementQuery, today: BusinessDate) -> list[StatementQuery]:  # noqa: ARG002 - the interface's
        """Return the query: it is refused as it is."""
        return [query]

    # -- own --------------------------------------------------------------------------------------

    def _draft(self, trade: str, number: str, context: Context, fields: Message) -> Draft:
        options = self.profile.options
        assert isinstance(options, AbcIctOptions)
        at = to_shanghai(context.now)
        xml = encode(
            {
                "CCTransCode": trade,
                "ProductID": "ICC",
                "ChannelType": "ERP",
                "CorpNo": options.corp_no,
                "OpNo": options.op_no,
                "AuthNo": options.auth_no,
                "ReqSeqNo": number,
                "ReqDate": f"{at:%Y%m%d}",
                "ReqTime": f"{at:%H%M%S}",
                "Sign": "",
                "FileFlag": "0",
                **fields,
            }
        )
        return Draft(
            correlation=number,
            trade=trade,
            to_sign=xml if trade in PAYMENTS else None,
            algorithm=self.profile.card.signing.algorithm,
            content=xml,
        )

    def _payment(self, order: PaymentOrder) -> Message:
        payer, payee = self._own(order.payer, "payer.account"), order.payee
        own = self.profile.accounts.get(payee.account)
        code = payee.bank_code or (own.bank_code if own else "")
        same_bank = code.startswith(BANK_CLASS) or (
            not code and own is not None and own.bank == self.profile.bank
        )
        bank_name = payee.bank_name or (own.bank_title if own else "")
        if not same_bank and not bank_name.strip():
            msg = "payee.bank_name is missing: this bank demands it for a payee at another bank"
            raise BodyError(msg)
        credit = {"CrAccNo": payee.account, "CrProv": payee.account[:2], "CrCur": RENMINBI}
        corp = {
            "DbAccName": self.profile.accounts[payer].name,
            "CrAccName": payee.name,
            "OthBankFlag": "0" if same_bank else "1",
            "CrBankName": bank_name,
            "CrBankNo": code,
            "WhyUse": order.purpose.strip() or PURPOSE_DEFAULT,
        }
        for name, value in (credit | corp).items():
            if not value.isprintable():
                msg = f"{name} has a character that can't be printed"
                raise BodyError(msg)
        return {"Amt": str(order.amount), "Cmp": _debit(payer) | credit, "Corp": corp}

    def _own(self, number: AccountNumber, member: str) -> AccountNumber:
        account = self.profile.accounts.get(number)
        if account is None or account.bank != self.profile.bank:
            msg = f"{member} is no approved account of ours at bank {self.profile.bank!r}"
            raise BodyError(msg)
        return number


NO_SIGN: Final = b"<Sign></Sign>"
"""Where the signature goes; what is signed is the XML with this."""
_TRADES: Final[Mapping[type, frozenset[str]]] = {
    BalanceQuery: frozenset({BALANCE}),
    PaymentOrder: PAYMENTS,
    StatusQuery: frozenset({STATUS}),
    StatementQuery: frozenset(),
}


def _debit(account: AccountNumber) -> dict[str, str]:
    """Return the payer's account: its first two digits are the province (省市代码)."""
    return {"DbAccNo": account, "DbProv": account[:2], "DbCur": RENMINBI}


# -- what the answers mean ------------------------------------------------------------------------


def _outcome(card: BehaviourCard, operation: Operation, reply: Reply, message: Message) -> Outcome:
    match operation:
        case PaymentOrder():
            return _payment(card, operation, reply, message)
        case StatusQuery() if reply.code in card.codes.no_record:
            return Accepted(PaymentStatus(PaymentState.NO_RECORD), reply.code, reply.message)
    if reply.code not in card.codes.ok:
        return refused(card.codes, reply.code, reply.message)
    match operation:
        case BalanceQuery():
            return Accepted(_balance(operation, message), reply.code, reply.message)
        case StatusQuery():
            status = _status(card.states, operation, message)
            return Accepted(status, status.code, status.message)
        case StatementQuery():
            return Unclear(reply.code, "no statement was asked for")
        case _:
            assert_never(operation)


def _payment(card: BehaviourCard, order: PaymentOrder, reply: Reply, message: Message) -> Outcome:
    wait = text(message, "WaitFlag")
    bank_ref = text(block(message, "Cme"), "RespSeqNo")
    receipt = PaymentReceipt(ClientRef(reply.correlation), order.amount, bank_ref)
    if reply.code == LANDED or (reply.code in card.codes.ok and wait == "1"):
        return Accepted(receipt, reply.code, reply.message, final=False)
    if reply.code in card.codes.ok and wait == "0":
        return Accepted(receipt, reply.code, reply.message)
    return payment_refused(card.codes, reply.code, reply.message)


def _status(states: States, query: StatusQuery, message: Message) -> PaymentStatus:
    cme = block(message, "Cme")
    if text(cme, "OldReqSeqNo") not in {"", query.client_ref}:
        msg = "the answer tells of another payment"
        raise ValueError(msg)
    told = block(message, "Cmp").get("RespPrvData", "")
    codes = [told[place] for place in STATE_PLACES]
    found = {payment_state(states, code) for code in codes}
    if PaymentState.PROCESSING in found:
        found = {PaymentState.PROCESSING}
    # One leg done and the other not: a person must look.
    state = found.pop() if len(found) == 1 else PaymentState.UNKNOWN
    return PaymentStatus(state, " ".join(codes), text(message, "RespInfo"), text(cme, "RespSeqNo"))


def _balance(query: BalanceQuery, message: Message) -> Balance:
    parts = block(message, "Cmp").get("RespPrvData", "").split("|")
    if len(parts) <= AVAILABLE or not parts[ACCOUNT] or not query.account.endswith(parts[ACCOUNT]):
        msg = "the answer tells of another account"
        raise ValueError(msg)
    return Balance(
        account=query.account,
        available=Cny.parse_plain(parts[AVAILABLE].strip()),
        book=Cny.parse_plain(parts[BOOK].strip()),
        as_of=from_bank(text(message, "RespDate") + text(message, "RespTime")),
    )
