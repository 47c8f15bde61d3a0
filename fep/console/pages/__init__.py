"""The pages in the order of the navigation; each module has the routes of one."""

from __future__ import annotations

from typing import Final

from fep.console.pages import (
    accounts,
    alarms,
    audit,
    banks,
    config,
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
    config.PAGE,
    users.PAGE,
    me.PAGE,
    login.PAGE,
)
"""A page with a ``key`` stands in the navigation for those who may come to it; one more page is one
more row here."""
