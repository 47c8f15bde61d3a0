"""What the adapter ships (its card) and what a bank's ``options`` table may say."""

from __future__ import annotations

import string
from importlib import resources
from typing import Any, Final

import attrs
from attrs import validators

from fep.adapters.card import BehaviourCard, card_from_toml

NAME: Final = "iso20022"
NAME_CHARS_MAX: Final = 140
"""Max140Text."""

CARD: Final[BehaviourCard] = card_from_toml(
    resources.files(__package__).joinpath("card.toml").read_text("utf-8")
)
"""The behaviour card as shipped."""

_TARGET: Final = validators.matches_re(r"/[!-~]{0,300}")
_PLACES: Final[dict[str, frozenset[str]]] = {
    "submit_path": frozenset(),
    "status_path": frozenset({"reference"}),
    "balance_path": frozenset({"account"}),
    "statement_path": frozenset({"account", "first", "last", "page"}),
}


def _takes_only_known_places(
    options: Iso20022Options,  # noqa: ARG001 - attrs calls it so
    attribute: attrs.Attribute[Any],
    value: str,
) -> None:
    known = _PLACES[attribute.name]
    try:
        parts = list(string.Formatter().parse(value))
        places = {name for _, name, *_ in parts if name is not None}
        is_plain = all(not spec and not conversion for *_, spec, conversion in parts)
    except ValueError as error:
        msg = f"{attribute.name}: {error}"
        raise ValueError(msg) from error
    if not is_plain or not places <= known:
        names = ", ".join(sorted(f"{{{name}}}" for name in known)) or "nothing"
        msg = f"{attribute.name} may have in braces: {names}"
        raise ValueError(msg)


_PATH: Final = (_TARGET, _takes_only_known_places)


@attrs.frozen
class Iso20022Options:
    """The ``options`` table of a bank of this adapter.

    The paths are those of HTTP, and are cut after the model of the Berlin Group's NextGenPSD2
    (pain.001 posted, pain.002 and camt got); a bank that keeps all it has to say in one mailbox
    has the same path for several.

    Raises:
        ValueError: a value can't go into the bank's field; the message names the option.
    """

    initiating_party: str = attrs.field(
        validator=(validators.min_len(1), validators.max_len(NAME_CHARS_MAX))
    )
    """The enterprise's name as who initiates (InitgPty/Nm)."""
    customer_id: str = attrs.field(default="", validator=validators.matches_re(r"[!-~]{0,35}"))
    """The enterprise's number at this bank (InitgPty/Id/OrgId/Othr/Id), or empty."""
    bic: str = attrs.field(
        default="",
        validator=validators.matches_re(r"([A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?)?"),
    )
    """This bank's BIC (DbtrAgt); else the payer's CNAPS code names it, or nothing does."""
    purpose_default: str = attrs.field(default="转账", validator=validators.min_len(1))
    """Purpose (用途, RmtInf/Ustrd) of payments that come without one."""
    submit_path: str = attrs.field(default="/payments", validator=_PATH)
    """Where payments (pain.001) are posted."""
    status_path: str = attrs.field(default="/payments/{reference}/status", validator=_PATH)
    """Where a payment's status (pain.002) is got, by our reference."""
    balance_path: str = attrs.field(default="/accounts/{account}/balance", validator=_PATH)
    """Where a balance report (camt.052) is got."""
    statement_path: str = attrs.field(
        default="/accounts/{account}/statement?from={first}&to={last}&page={page}",
        validator=_PATH,
    )
    """Where statements (camt.053) are got, by days and page."""
    probe_path: str = attrs.field(default="", validator=validators.matches_re(r"(/[!-~]{0,300})?"))
    """What is got as heartbeat; empty: the balance of the first account of ours."""
    balance_age_max_s: int = attrs.field(default=900, validator=validators.ge(1))
    """Of a report that came by the folder: an older balance is not told."""
    statements_on_weekends: bool = False
    """Whether the bank puts statements into the folder for Saturdays and Sundays too."""
