"""A bank of the adapter, documents as banks write them, and the schemas to hold ours against."""

from __future__ import annotations

import datetime as dt
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from lxml import etree
from mockbank import schema as dictionary

from bank_adapters.iso20022 import ADAPTER
from bank_adapters.iso20022.codec import Iso20022Codec
from bank_adapters.iso20022.config import CARD, Iso20022Options
from bank_adapters.iso20022.messages import read
from bank_adapters.iso20022.replies import Content
from fep.adapters.api import BankProfile, Context, Reply
from fep.adapters.card import BehaviourCard, override
from fep.domain.account import Account
from fep.domain.clock import SHANGHAI, BusinessDate
from fep.domain.ids import AccountNumber, BankName, TaskId, client_ref
from fep.domain.money import Cny
from fep.domain.order import Payee, PaymentOrder, StatusQuery

BANK = BankName("iso")
OURS, PAYEE = AccountNumber("99990000000000000101"), AccountNumber("99990000000000000202")
NAMES = {OURS: "江枫样例制造有限公司", PAYEE: "云阶示例贸易有限公司"}
NOW = dt.datetime(2026, 1, 5, 9, 1, 0, tzinfo=SHANGHAI).astimezone(dt.UTC)
DAY = BusinessDate(dt.date(2026, 1, 5))
REF = client_ref("E0001", TaskId("T1"))
ORDER = PaymentOrder(OURS, Payee(PAYEE, NAMES[PAYEE]), Cny(100_050), purpose="货款")
STATUS = StatusQuery(REF, ORDER, DAY)
FOLDER: dict[str, Any] = {"transport": {"protocol": "folder"}}


def codec(changes: dict[str, Any] | None = None, **options: Any) -> Iso20022Codec:
    """Return the codec of a bank, its card changed."""
    card: BehaviourCard = override(CARD, changes or {})
    accounts = {one: Account(one, BANK, name, "104100000004") for one, name in NAMES.items()}
    made = ADAPTER.open(
        BankProfile(
            BANK,
            card,
            Iso20022Options(**({"initiating_party": "江枫样例制造有限公司"} | options)),
            "1",
            accounts,
            "127.0.0.1:1",
        )
    )
    assert isinstance(made, Iso20022Codec)
    return made


def payment(order: PaymentOrder = ORDER, **options: Any) -> bytes:
    """Return the document of a payment."""
    one = codec(**options)
    draft = one.prepare(order, Context(NOW, "20260105090100000001", REF))
    request = one.seal(draft, None)
    return request.partition(b"\r\n\r\n")[2]


@cache
def _schema() -> etree.XMLSchema:
    found = importlib.util.find_spec("sepaxml")
    assert found is not None
    assert found.submodule_search_locations is not None
    place = Path(found.submodule_search_locations[0]) / "schemas" / "pain.001.001.09.xsd"
    return etree.XMLSchema(etree.parse(place))


def faults_of_ours(document: bytes) -> list[str]:
    """Return what the official schema says of a pain.001."""
    schema = _schema()
    schema.validate(etree.fromstring(document))
    return str(schema.error_log).splitlines()


def faults_of_the_banks(document: bytes) -> list[str]:
    """Return what mock-bank's dictionary of the standard says of a message."""
    root = ET.fromstring(document)
    message = dictionary.identify(root)
    assert message is not None, root.tag
    return [f"{one.path} {one.text}" for one in dictionary.check(message, root)]


def reply(*documents: str, trade: str = "", code: str = "200", reference: str = "") -> Reply:
    """Return an answer with these documents."""
    content = Content(tuple(read(one.encode()) for one in documents), reference)
    return Reply("", trade, code, "", b"", content)


def document(body: str, version: str = "") -> str:
    """Return a document, in a version's namespace or in none."""
    space = f' xmlns="urn:iso:std:iso:20022:tech:xsd:{version}"' if version else ""
    return f"<Document{space}>{body}</Document>"


def status(
    code: str,
    *,
    group: str = "",
    batch: str = "",
    reason: str = "",
    amount: str = "",
    at: str = "2026-01-05T09:01:00+08:00",
    ref: str = REF,
    more: str = "",
    group_more: str = "",
    batch_more: str = "",
    version: str = "pain.002.001.10",
) -> str:
    """Return a pain.002 of one payment; a level without a code is left out."""
    told = f"<StsRsnInf><Rsn><Cd>{reason}</Cd></Rsn></StsRsnInf>" if reason else ""
    worth = f'<Amt><InstdAmt Ccy="CNY">{amount}</InstdAmt></Amt>' if amount else ""
    facts = f"<OrgnlTxRef>{worth}{more}</OrgnlTxRef>" if worth or more else ""
    row = (
        f"<TxInfAndSts><OrgnlEndToEndId>{ref}</OrgnlEndToEndId><TxSts>{code}</TxSts>"
        f"{told}{facts}</TxInfAndSts>"
    )
    whole = f"<PmtInfSts>{batch}</PmtInfSts>{batch_more}" if batch else ""
    rows = (
        f"<OrgnlPmtInfAndSts><OrgnlPmtInfId>{ref}</OrgnlPmtInfId>{whole}{row if code else ''}"
        "</OrgnlPmtInfAndSts>"
        if code or batch
        else ""
    )
    of_group = f"<GrpSts>{group}</GrpSts>" if group else ""
    of_group += (told if not rows else "") + group_more
    return document(
        f"<CstmrPmtStsRpt><GrpHdr><MsgId>M1</MsgId><CreDtTm>{at}</CreDtTm></GrpHdr>"
        f"<OrgnlGrpInfAndSts><OrgnlMsgId>{ref}</OrgnlMsgId>{of_group}</OrgnlGrpInfAndSts>"
        f"{rows}</CstmrPmtStsRpt>",
        version,
    )


def entry(
    amount: str = "1000.50",
    side: str = "DBIT",
    *,
    ref: str = REF,
    state: str = "<Sts><Cd>BOOK</Cd></Sts>",
    day: str = "<Dt>2026-01-05</Dt>",
    inside: str = "",
    outside: str = "",
    currency: str = "CNY",
) -> str:
    """Return an Ntry."""
    return (
        f'<Ntry><Amt Ccy="{currency}">{amount}</Amt><CdtDbtInd>{side}</CdtDbtInd>{state}'
        f"<BookgDt>{day}</BookgDt>{outside}<NtryDtls><TxDtls><Refs><EndToEndId>{ref}</EndToEndId>"
        f"</Refs>{inside}</TxDtls></NtryDtls></Ntry>"
    )


RETURNED = "<RtrInf><Rsn><Cd>AC04</Cd></Rsn><AddtlInf>账户已销户</AddtlInf></RtrInf>"


def camt(
    kind: str,
    *entries: str,
    account: str = OURS,
    balances: str = "",
    at: str = "2026-01-05T18:00:00+08:00",
    day: str = "",
    paging: str = "",
    ident: str = "S1",
) -> str:
    """Return a camt.052, camt.053 or camt.054."""
    outer, inner = {
        "camt.052": ("BkToCstmrAcctRpt", "Rpt"),
        "camt.053": ("BkToCstmrStmt", "Stmt"),
        "camt.054": ("BkToCstmrDbtCdtNtfctn", "Ntfctn"),
    }[kind]
    span = (
        f"<FrToDt><FrDtTm>{day}T00:00:00</FrDtTm><ToDtTm>{day}T23:59:59</ToDtTm></FrToDt>"
        if day
        else ""
    )
    return document(
        f"<{outer}><GrpHdr><MsgId>M</MsgId><CreDtTm>{at}</CreDtTm></GrpHdr><{inner}>"
        f"<Id>{ident}</Id>{paging}{span}<Acct><Id><Othr><Id>{account}</Id></Othr></Id></Acct>"
        f"{balances}{''.join(entries)}</{inner}></{outer}>",
        f"{kind}.001.08",
    )


def bal(code: str, amount: str, day: str = "2026-01-05", side: str = "CRDT") -> str:
    """Return a Bal."""
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry></Tp>"
        f'<Amt Ccy="CNY">{amount}</Amt><CdtDbtInd>{side}</CdtDbtInd><Dt><Dt>{day}</Dt></Dt></Bal>'
    )
