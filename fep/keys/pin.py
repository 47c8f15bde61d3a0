"""Whether a PIN may be sent to a card: one wrong try too many costs the enterprise its key.

The counter is read first, which spends nothing. A PIN that was never accepted is sent only after
the attempt is on disk, so that a crash in between can't make a second attempt of it.
"""

from __future__ import annotations

from typing import Final

import attrs

from fep.keys.config import SlotConfig
from fep.keys.piv import PIN_CHARS_MAX, PIN_CHARS_MIN, PIN_TRIES_LEFT_MIN, PinCounter

TOKEN_PIN_CHARS_MIN: Final = 4
TOKEN_PIN_CHARS_MAX: Final = 64


@attrs.frozen
class Pin:
    """A PIN and where it came from."""

    text: str = attrs.field(repr=False)
    source: str
    """Identity of the credential file, empty for an operator's."""


@attrs.frozen
class Bar:
    """What the store remembers of a slot's PIN."""

    source: str
    tries_before: int | None
    """Tries left before an attempt whose answer is not recorded; None: the PIN was refused."""


@attrs.frozen
class Send:
    """Send this PIN once; ``record`` it on disk first."""

    pin: Pin
    record: bool


@attrs.frozen
class Blocked:
    """The counter is at zero."""


@attrs.frozen
class Withhold:
    """Send nothing; a person must act."""

    reason: str
    refused: bool = False
    """The recorded attempt turned out to have been refused: record that."""


Decision = Send | Blocked | Withhold


def parse_pin(text: str, config: SlotConfig) -> str:
    """Return the PIN of a credential file's text, without the line's end.

    Raises:
        ValueError: not the form of a PIN of this backend; the text is never in the message.
    """
    low, high = PIN_CHARS_MIN, PIN_CHARS_MAX
    if config.backend == "pkcs11":
        low, high = TOKEN_PIN_CHARS_MIN, TOKEN_PIN_CHARS_MAX
    pin = text.strip("\r\n")
    if not low <= len(pin) <= high or not pin.isascii() or not pin.isprintable():
        msg = f"a PIN of a {config.backend} slot is {low} to {high} printable ASCII characters"
        raise ValueError(msg)
    return pin


def decide(
    counter: PinCounter, accepted: Pin | None, offered: Pin | str, bar: Bar | None
) -> Decision:
    """Return what to do with a card that waits for its PIN.

    Args:
        counter: what the card says.
        accepted: a PIN that this card accepted earlier in this process, if any.
        offered: the configured PIN, or the reason why there is none.
        bar: what the store remembers.
    """
    if counter.tries == 0:
        return Blocked()
    low = counter.tries is not None and counter.tries < PIN_TRIES_LEFT_MIN
    too_low = Withhold(f"{counter.tries} try left on the card; no PIN is sent by itself")
    if accepted is not None:
        return too_low if low else Send(accepted, record=False)
    if isinstance(offered, str):
        return Withhold(offered)
    if bar is not None and bar.source == offered.source:
        barred = _barred(bar, counter)
        if barred is not None:
            return barred
    if not counter.exact and counter.tries is not None and not low:
        return Withhold(
            "wrong PINs were sent to the token, and it does not say how many tries are left; "
            "unlock by hand"
        )
    return too_low if low else Send(offered, record=True)


def _barred(bar: Bar, counter: PinCounter) -> Withhold | None:
    reason = "the card refused this PIN before; put the right one into its file, or unlock by hand"
    if bar.tries_before is None:
        return Withhold(reason)
    if not counter.exact:
        # A token may not show that a try was spent, so that nothing proves the PIN unrefused.
        return Withhold(
            "the answer to this PIN was lost (key.pin_unanswered in the log says how), and the "
            "token can't tell whether it was refused; unlock by hand, or write the file anew"
        )
    if counter.tries is None or counter.tries >= bar.tries_before:
        # No try was spent: the attempt never reached the card, or the PIN was accepted.
        return None
    return Withhold(reason, refused=True)
