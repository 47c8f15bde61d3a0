"""The accounts that the banks approved, with what the banks last said of them."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, Final

import trio
from starlette.responses import Response

from fep.console import store
from fep.console.desk import Visit, need
from fep.console.pages.page import GET, Page

PAGE_ACCOUNTS: Final = 100
BALANCES_SECONDS: Final = 15.0
"""What was read from the store is so old at most."""


@need()
async def show(visit: Visit) -> Response:
    """Show a page of accounts, all of them searched."""
    query = visit.request.query_params
    find, bank = query.get("find", "").strip(), query.get("bank", "")
    tasks, desk = visit.desk.services.tasks, visit.desk
    accounts = sorted(tasks.accounts.values(), key=lambda one: (one.bank, one.number))
    banks = sorted({account.bank for account in accounts})
    kept = desk.balances
    if kept is None or trio.current_time() - kept[0] > BALANCES_SECONDS:
        said = await tasks.store.read(partial(store.balances, banks=banks))
        desk.balances = kept = (trio.current_time(), said)
    chosen = [
        account
        for account in accounts
        if (not bank or account.bank == bank) and (find in account.number or find in account.name)
    ]
    at = int(query.get("from", "0")) if query.get("from", "0").isdecimal() else 0
    values: dict[str, Any] = {
        "rows": [(one, kept[1].get(one.number)) for one in chosen[at : at + PAGE_ACCOUNTS]],
        "count": len(chosen),
        "total": _total(kept[1][one.number] for one in chosen if one.number in kept[1]),
        "at": at,
        "page_size": PAGE_ACCOUNTS,
        "find": find,
        "bank": bank,
        "banks": banks,
    }
    if "rows" in query:
        return visit.piece("accounts_table.html", **values)
    return visit.page("accounts.html", **values)


def _total(balances: Iterable[store.Balance]) -> str:
    total = Decimal(0)
    for one in balances:
        try:
            total += Decimal(one.available)
        except InvalidOperation:
            continue
    return f"{total:.2f}"


PAGE: Final = Page(routes=(("/accounts", show, GET),), path="/accounts", title="Accounts", key="c")
