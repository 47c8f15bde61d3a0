"""The methods about the console's users: their parameters and handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from fep.domain.ids import NAME_CHARS_MAX
from fep.users.passwords import PASSWORD_CHARS_MAX

if TYPE_CHECKING:
    from fep.control.commands import Caller, Services

UserName = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
Password = Annotated[str, msgspec.Meta(max_length=PASSWORD_CHARS_MAX)]
Human = Literal["viewer", "operator", "admin"]
AUDIT_LIMIT_DEFAULT, AUDIT_LIMIT_MAX = 100, 500
CODE_CHARS_MAX, SECRET_CHARS_MAX = 16, 64
_CODE: Final = msgspec.Meta(max_length=CODE_CHARS_MAX)
_SECRET: Final = msgspec.Meta(max_length=SECRET_CHARS_MAX)


class UserParams(msgspec.Struct, forbid_unknown_fields=True):
    """Methods about one user."""

    name: UserName


class UserAddParams(msgspec.Struct, forbid_unknown_fields=True):
    """user.add."""

    name: UserName
    role: Human
    password: Password


class UserPasswordParams(msgspec.Struct, forbid_unknown_fields=True):
    """user.passwd."""

    name: UserName
    password: Password


class UserChangeParams(msgspec.Struct, forbid_unknown_fields=True):
    """user.change."""

    name: UserName
    role: Human | None = None
    disabled: bool | None = None
    drop_totp: bool = False


class OwnPasswordParams(msgspec.Struct, forbid_unknown_fields=True):
    """user.own_password."""

    old_password: Password
    new_password: Password


class OwnTotpParams(msgspec.Struct, forbid_unknown_fields=True):
    """user.own_totp."""

    password: Password
    totp_secret: Annotated[str, _SECRET] = ""
    totp_token: Annotated[str, _CODE] = ""


class AuditParams(msgspec.Struct, forbid_unknown_fields=True):
    """audit.list."""

    who: UserName = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=AUDIT_LIMIT_MAX)] = AUDIT_LIMIT_DEFAULT
    cursor: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,18}\\Z")] | None = None


async def user_list(services: Services, _caller: Caller, _params: Any) -> Any:  # noqa: ANN401
    """Answer user.list."""
    return {"users": await services.users.overview()}


async def user_add(services: Services, _caller: Caller, params: UserAddParams) -> Any:  # noqa: ANN401
    """Answer user.add."""
    await services.users.add(params.name, params.role, params.password)
    return {"name": params.name, "role": params.role}


async def user_passwd(services: Services, _caller: Caller, params: UserPasswordParams) -> Any:  # noqa: ANN401
    """Answer user.passwd."""
    await services.users.set_password(params.name, params.password)
    return {"name": params.name}


async def user_change(services: Services, _caller: Caller, params: UserChangeParams) -> Any:  # noqa: ANN401
    """Answer user.change."""
    await services.users.change(
        params.name, role=params.role, disabled=params.disabled, drop_totp=params.drop_totp
    )
    return {"name": params.name}


async def user_log_out(services: Services, _caller: Caller, params: UserParams) -> Any:  # noqa: ANN401
    """Answer user.log_out."""
    return {"name": params.name, "sessions": await services.users.end_sessions(params.name)}


async def user_own_password(services: Services, caller: Caller, params: OwnPasswordParams) -> Any:  # noqa: ANN401
    """Answer user.own_password."""
    await services.users.own_password(
        caller.name, params.old_password, params.new_password, keep=caller.session
    )
    return {"name": caller.name}


async def user_own_totp(services: Services, caller: Caller, params: OwnTotpParams) -> Any:  # noqa: ANN401
    """Answer user.own_totp."""
    await services.users.own_totp(
        caller.name, params.password, params.totp_secret, params.totp_token
    )
    return {"name": caller.name, "totp": bool(params.totp_secret)}


async def audit_list(services: Services, _caller: Caller, params: AuditParams) -> Any:  # noqa: ANN401
    """Answer audit.list."""
    acts, before = await services.audit.page(
        limit=params.limit,
        before=None if params.cursor is None else int(params.cursor),
        who=params.who,
    )
    return {"acts": acts} | ({} if before is None else {"cursor": str(before)})
