"""The users of the console, for administrators."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from fep.console.desk import ADMIN, Visit, need
from fep.console.pages.page import GET, POST, Page, text_of


@need(roles=ADMIN)
async def show(visit: Visit) -> Response:
    """Show all users."""
    return visit.page("users.html", users=(await visit.ask("user.list"))["users"])


@need(roles=ADMIN)
async def add(visit: Visit) -> Response:
    """Make a user."""
    form = await visit.form()
    password = form.get("password")
    name = text_of(form, "name")
    await visit.ask("user.add", name=name, role=text_of(form, "role"), password=password)
    return visit.done("/users", "{name} can log in now", name=name)


@need(roles=ADMIN)
async def change(visit: Visit) -> Response:
    """Change a user as one of the buttons says."""
    form, name = await visit.form(), visit.request.path_params["name"]
    match text_of(form, "act"):
        case "role":
            await visit.ask("user.change", name=name, role=text_of(form, "role"))
        case "disable":
            await visit.ask("user.change", name=name, disabled=True)
        case "enable":
            await visit.ask("user.change", name=name, disabled=False)
        case "drop_totp":
            await visit.ask("user.change", name=name, drop_totp=True)
        case "log_out":
            await visit.ask("user.log_out", name=name)
        case "password":
            await visit.ask("user.passwd", name=name, password=form.get("password"))
        case other:
            return visit.failed(422, "BAD_REQUEST", f"act={other}")
    return visit.done("/users", "{name}: done", name=name)


PAGE: Final = Page(
    routes=(("/users", show, GET), ("/users", add, POST), ("/users/{name}", change, POST)),
    path="/users",
    title="Users",
    key="p",
    roles=ADMIN,
)
