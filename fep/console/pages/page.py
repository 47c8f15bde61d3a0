"""What a page is to the application and to the navigation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response

from fep.console.desk import VIEWER
from fep.control.commands import Role

Route = tuple[str, Callable[[Request], Awaitable[Response]], tuple[str, ...]]
GET, POST = ("GET",), ("POST",)


@attrs.frozen
class Page:
    """One page with all that it answers."""

    routes: tuple[Route, ...]
    path: str = ""
    title: str = ""
    """English, as in the catalogue; empty: not in the navigation."""
    key: str = ""
    """With ``g`` before it, this key leads there."""
    roles: frozenset[Role] = VIEWER


def text_of(form: Any, name: str, chars_max: int = 4000) -> str:  # noqa: ANN401 - a form's fields
    """Return a field of a form, empty when it is not there."""
    value = form.get(name)
    return value[:chars_max].strip() if isinstance(value, str) else ""
