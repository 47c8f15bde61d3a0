"""A process that books payments until it is done or killed: ``book_child FILE NAME COUNT``.

It pays COUNT payments that every such process tries (``SHARED-n``) and COUNT of its own
(``NAME-n``), and prints each reference when it is booked, after the commit.
"""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

from fep.adapters.host import BookAccount, DuplicateReferenceError, PaymentRequest
from fep.domain.ids import AccountNumber, BankName
from fep.domain.money import Cny
from fep.sandbox.book import SqliteBook

NOW = dt.datetime(2026, 1, 5, 1, tzinfo=dt.UTC)
NORTH, SOUTH = BankName("north"), BankName("south")
ACCOUNTS = (
    BookAccount(NORTH, AccountNumber("1001"), "江枫样例制造有限公司", Cny(1_000_000_00)),
    BookAccount(NORTH, AccountNumber("1002"), "云阶示例贸易有限公司", Cny(0)),
    BookAccount(SOUTH, AccountNumber("2001"), "松湖示例物流有限公司", Cny(500_00)),
)


def request(
    client_ref: str,
    payer: str = "1001",
    payee: str = "2001",
    fen: int = 100,
    *,
    name: str | None = None,
    landed: bool = False,
) -> PaymentRequest:
    """Return a payment to an account of the book or a stranger's."""
    names = {one.number: one.name for one in ACCOUNTS}
    payee_name = names.get(AccountNumber(payee), "外行示例") if name is None else name
    return PaymentRequest(
        client_ref,
        AccountNumber(payer),
        AccountNumber(payee),
        payee_name,
        "示例银行",
        Cny(fen),
        "货款",
        landed,
    )


def main(path: Path, name: str, count: int) -> None:
    """Open the book and its accounts, as several processes do at once, and pay."""
    book = SqliteBook(path)
    book.open_accounts(ACCOUNTS, NOW)
    for number in range(count):
        for reference in (f"SHARED-{number}", f"{name}-{number}"):
            try:
                book.pay(NORTH, request(reference), NOW)
            except DuplicateReferenceError:
                continue
            print(reference, flush=True)
    book.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
