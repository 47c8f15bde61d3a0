"""The methods of the administrator's page: drafts, versions, and the way back.

A draft is a whole text of the file; nothing is kept of it until it is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

import msgspec

from fep.domain.ids import NAME_CHARS_MAX

if TYPE_CHECKING:
    from fep.control.commands import Caller, Services

TEXT_CHARS_MAX: Final = 400_000
"""Of a configuration in one line of this protocol; a longer file is edited on the machine."""
NOTE_CHARS_MAX: Final = 500
EDITS_MAX: Final = 64
ACCOUNTS_MAX: Final = 10_000
VERSIONS_DEFAULT, VERSIONS_MAX = 50, 500
CONFIRM_SECONDS_MIN, CONFIRM_SECONDS_MAX = 10.0, 86_400.0

Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARS_MAX)]
Note = Annotated[str, msgspec.Meta(max_length=NOTE_CHARS_MAX)]
Digest = Annotated[str, msgspec.Meta(min_length=12, max_length=12)]
VERSION_MAX: Final = 999_999_999
Number = Annotated[int, msgspec.Meta(ge=1, le=VERSION_MAX)]


class EnterpriseEdit(
    msgspec.Struct, forbid_unknown_fields=True, tag_field="edit", tag="enterprise"
):
    """Who we are."""

    id: str
    fep_number: str


class AccountRow(msgspec.Struct, forbid_unknown_fields=True):
    """One approved account of a bank."""

    number: str
    name: str
    bank_code: str = ""
    bank_title: str = ""


class BankEdit(msgspec.Struct, forbid_unknown_fields=True, tag_field="edit", tag="bank"):
    """A bank, new or changed; keys that are not named stay as they are."""

    values: dict[str, Any]
    """Of the ``[[bank]]`` table; null takes a key out."""
    was: Name | None = None
    """The name it had; null: it is new."""
    accounts: Annotated[list[AccountRow], msgspec.Meta(max_length=ACCOUNTS_MAX)] | None = None
    """All of the bank's accounts; null: they stay."""


class BankRemoval(msgspec.Struct, forbid_unknown_fields=True, tag_field="edit", tag="remove_bank"):
    """A bank goes, with its accounts."""

    bank: Name


ConfigEdit = EnterpriseEdit | BankEdit | BankRemoval


class DraftParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.draft."""

    text: Text | None = None
    """Null: the file as it stands on disk."""
    edits: Annotated[list[ConfigEdit], msgspec.Meta(max_length=EDITS_MAX)] = []


class TryParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.try."""

    text: Text
    bank: Name


class SaveParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.save."""

    text: Text
    base: Digest
    """Of the file that the draft began with."""
    note: Note = ""
    confirm_s: (
        Annotated[float, msgspec.Meta(ge=CONFIRM_SECONDS_MIN, le=CONFIRM_SECONDS_MAX)] | None
    ) = None
    """Unless it is confirmed in this time, the version before comes back; null: it stays."""


class ConfirmConfigParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.confirm."""

    version: Number


class RollbackParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.rollback."""

    version: Number
    note: Note = ""


class VersionsParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.versions."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=VERSIONS_MAX)] = VERSIONS_DEFAULT
    before: Number | None = None


class VersionParams(msgspec.Struct, forbid_unknown_fields=True):
    """config.version."""

    version: Number


class Settings(Protocol):
    """What the daemon does with its configuration file."""

    async def draft(self, text: str | None, edits: list[ConfigEdit]) -> dict[str, Any]:
        """Return what a text would mean; nothing is changed.

        Raises:
            ProtocolRefusal: BAD_STATE, it is no TOML; NOT_FOUND, CONFIG_NOT_EDITABLE.
        """
        ...

    async def tried(self, text: str, bank: str) -> dict[str, Any]:
        """Return whether a bank of a draft can be reached.

        Raises:
            ProtocolRefusal: BAD_STATE, the draft has faults; UNKNOWN_BANK.
        """
        ...

    async def save(
        self, who: str, text: str, base: str, note: str, confirm_s: float | None
    ) -> dict[str, Any]:
        """Take a text into force as the file's next version.

        Raises:
            FepError: BAD_STATE, CONFIG_CHANGED, CONFIG_NOT_WRITABLE; nothing was changed.
        """
        ...

    async def confirm(self, who: str, number: int) -> dict[str, Any]:
        """Keep the version that is in force for a time.

        Raises:
            ProtocolRefusal: BAD_STATE, this version does not wait for it.
        """
        ...

    async def roll_back(self, who: str, number: int, note: str) -> dict[str, Any]:
        """Take an earlier version into force.

        Raises:
            FepError: NOT_FOUND, and as for ``save``: BAD_STATE, CONFIG_CHANGED,
                CONFIG_NOT_WRITABLE.
        """
        ...

    async def versions(self, limit: int, before: int | None) -> dict[str, Any]:
        """Return the versions, newest first."""
        ...

    async def version(self, number: int) -> dict[str, Any]:
        """Return one version with its text.

        Raises:
            ProtocolRefusal: NOT_FOUND; BAD_STATE, the file on disk can't be read.
        """
        ...

    async def adapters(self) -> list[dict[str, Any]]:
        """Return what each installed adapter wants to be told."""
        ...


async def config_draft(services: Services, _caller: Caller, params: DraftParams) -> Any:  # noqa: ANN401
    """Answer config.draft."""
    return await services.settings.draft(params.text, params.edits)


async def config_try(services: Services, _caller: Caller, params: TryParams) -> Any:  # noqa: ANN401
    """Answer config.try."""
    return await services.settings.tried(params.text, params.bank)


async def config_save(services: Services, caller: Caller, params: SaveParams) -> Any:  # noqa: ANN401
    """Answer config.save."""
    return await services.settings.save(
        caller.name, params.text, params.base, params.note, params.confirm_s
    )


async def config_confirm(services: Services, caller: Caller, params: ConfirmConfigParams) -> Any:  # noqa: ANN401
    """Answer config.confirm."""
    return await services.settings.confirm(caller.name, params.version)


async def config_rollback(services: Services, caller: Caller, params: RollbackParams) -> Any:  # noqa: ANN401
    """Answer config.rollback."""
    return await services.settings.roll_back(caller.name, params.version, params.note)


async def config_versions(services: Services, _caller: Caller, params: VersionsParams) -> Any:  # noqa: ANN401
    """Answer config.versions."""
    return await services.settings.versions(params.limit, params.before)


async def config_version(services: Services, _caller: Caller, params: VersionParams) -> Any:  # noqa: ANN401
    """Answer config.version."""
    return await services.settings.version(params.version)


async def config_adapters(services: Services, _caller: Caller, _params: Any) -> Any:  # noqa: ANN401
    """Answer config.adapters."""
    return {"adapters": await services.settings.adapters()}
