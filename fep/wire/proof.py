"""How a client and the daemon prove to each other that they hold one key, and show it to nobody.

A message authentication code (HMAC-SHA256) over what opens a session: who, with which key, when,
and a random number that is never used again. Who reads it learns no key and can't open with it once
more. Pure; times and random numbers come in. Source: RFC 2104; ``docs/protocol.md``.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import attrs

from fep.domain.ids import ClientName, parse_name

KEY_CHARS_MIN, KEY_CHARS_MAX = 32, 256
"""Of a secret as it stands in the file."""
KEYS_MAX: Final = 256
"""Of one file."""
NONCE_BYTES: Final = 16
NONCE_CHARS: Final = 2 * NONCE_BYTES
MAC_CHARS: Final = 64
TIME_MS_MAX: Final = 10**15


@attrs.frozen
class Key:
    """One line of a key file: whose it is, and what only both ends know."""

    id: str
    client: ClientName
    secret: bytes = attrs.field(repr=False)


def parse_keys(text: str) -> dict[str, Key]:
    """Return the keys of a file by their ids; a line is ``KEY_ID CLIENT SECRET``.

    A client may have several: the next one is made known here before the client uses it.

    Raises:
        ValueError: a line is none; the message says which, and never what is in it.
    """
    found: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key = _key(words)
        except ValueError as error:
            msg = f"line {number}: {error}"
            raise ValueError(msg) from error
        if key.id in found or len(found) == KEYS_MAX:
            msg = f"line {number}: a key id is there twice, or there are more than {KEYS_MAX} keys"
            raise ValueError(msg)
        found[key.id] = key
    if not found:
        raise ValueError("there is no key: a line is KEY_ID CLIENT SECRET")
    return found


def _key(words: list[str]) -> Key:
    try:
        key_id, client, secret = words
        parse_name(key_id)
        parse_name(client)
    except ValueError as error:
        raise ValueError("must be KEY_ID CLIENT SECRET") from error
    if not (secret.isascii() and KEY_CHARS_MIN <= len(secret) <= KEY_CHARS_MAX):
        msg = f"a secret has {KEY_CHARS_MIN} to {KEY_CHARS_MAX} ASCII characters"
        raise ValueError(msg)
    return Key(key_id, ClientName(client), secret.encode())


def opening_mac(secret: bytes, key_id: str, client: str, time_ms: int, nonce: str) -> str:
    """Return what proves an opening; nothing in its parts can hold the LF between them."""
    return _mac(secret, "fep-open-1", key_id, client, str(time_ms), nonce)


def welcome_mac(secret: bytes, opening: str, session: str) -> str:
    """Return what proves that the answer to an opening comes from who holds the key too."""
    return _mac(secret, "fep-welcome-1", opening, session)


def _mac(secret: bytes, *parts: str) -> str:
    text = "\n".join(parts).encode("utf-8", "surrogatepass")
    return hmac.new(secret, text, hashlib.sha256).hexdigest()


def is_same(given: str, right: str) -> bool:
    """Say whether two codes are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())
