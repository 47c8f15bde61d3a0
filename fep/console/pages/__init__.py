"""The pages in the order of the navigation; each module has the routes of one."""

from __future__ import annotations

from typing import Final

from fep.console.pages import (
    accounts,
    alarms,
    audit,
    banks,
    login,
    me,
    overview,
    slots,
    tasks,
    users,
)
from fep.console.pages.page import Page

PAGES: Final[tuple[Page, ...]] = (
    overview.PAGE,
    banks.PAGE,
    slots.PAGE,
    tasks.PAGE,
    alarms.PAGE,
    accounts.PAGE,
    audit.PAGE,
    users.PAGE,
    me.PAGE,
    login.PAGE,
)
"""A page with a ``key`` stands in the navigation for those who may come to it; one more page (the
administrator's, for the configuration) is one more row here."""
