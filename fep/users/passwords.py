"""Passwords as argon2id hashes, and one-time codes (TOTP, RFC 6238). Pure, and slow on purpose."""

from __future__ import annotations

import datetime as dt
import hmac
from functools import cache
from typing import Final

import argon2
import pyotp

PASSWORD_CHARS_MIN, PASSWORD_CHARS_MAX = 10, 200
TOTP_SECONDS: Final = 30
TOTP_STEPS_EITHER_WAY: Final = 1
"""A telephone's clock may be so many steps off."""
TOTP_SECRET_CHARS_MIN, TOTP_SECRET_CHARS_MAX = 32, 64
ISSUER: Final = "fep"

# One lane: a log-in must not take both cores from the banks. 64 MiB, as RFC 9106 has it for a
# machine with little memory to spare.
_HASHER: Final = argon2.PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=1)


def check_password(name: str, password: str) -> None:
    """Refuse a password that is too easy to guess.

    Raises:
        ValueError: it says what a password must be.
    """
    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        msg = f"a password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters"
        raise ValueError(msg)
    if name.lower() in password.lower() or len(set(password)) < PASSWORD_CHARS_MIN // 2:
        raise ValueError("a password holds neither the user's name nor a few characters only")


def hashed(password: str) -> str:
    """Return the argon2id hash of a password; takes a moment and 64 MiB."""
    return _HASHER.hash(password)


@cache
def decoy() -> str:
    """Return a hash that no password has: an unknown name costs as much as a wrong password."""
    return _HASHER.hash(pyotp.random_base32())


def matches(stored: str, password: str) -> bool:
    """Say whether a password is the one that was hashed."""
    try:
        return _HASHER.verify(stored, password)
    except (argon2.exceptions.VerifyMismatchError, argon2.exceptions.InvalidHashError):
        return False


def new_totp_secret() -> str:
    """Return a fresh secret for one-time codes."""
    return pyotp.random_base32()


def totp_step(secret: str, code: str, now: dt.datetime, used: int = 0) -> int:
    """Return the time step of a one-time code, 0 when it is not right.

    A code counts once: neither it nor an older one is right after it was used.
    """
    given = code.replace(" ", "")
    present = int(now.timestamp()) // TOTP_SECONDS
    totp = pyotp.TOTP(secret)
    for step in range(present - TOTP_STEPS_EITHER_WAY, present + TOTP_STEPS_EITHER_WAY + 1):
        right = totp.generate_otp(step)
        if hmac.compare_digest(right.encode(), given.encode("utf-8", "replace")) and step > used:
            return step
    return 0


def totp_address(secret: str, name: str, machine: str) -> str:
    """Return the address that an authenticator reads from a picture."""
    return pyotp.TOTP(secret).provisioning_uri(name=f"{name}@{machine}", issuer_name=ISSUER)


def is_totp_secret(text: str) -> bool:
    """Say whether a text can be such a secret."""
    long_enough = len(text) in range(TOTP_SECRET_CHARS_MIN, TOTP_SECRET_CHARS_MAX + 1, 8)
    return long_enough and set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")
