"""The exceptions of the product, each with a stable upper-case code that the documents list."""

import os


class FepError(Exception):
    """Base of all errors raised on purpose; ``code`` never changes between releases."""

    code = "FEP_ERROR"


def reason_of(error: BaseException) -> str:
    """Return why a connection failed, in the system's words where there are some.

    Libraries tell only that all their attempts failed, and some of them nothing.
    """
    told, strerror = "", ""
    under: BaseException | None = error
    while under is not None:
        told = told or str(under)
        if isinstance(under, OSError) and under.strerror:
            # The system's own, and not what was put around it; names and TLS have other numbers.
            number = under.errno if type(under).__module__ == "builtins" else None
            strerror = os.strerror(number) if number else str(under.strerror)
        inner = under.exceptions[0] if isinstance(under, BaseExceptionGroup) else None
        under = inner or under.__cause__ or under.__context__
    return strerror or told


class RemoteProtocolError(FepError):
    """The other side broke its protocol: answer if possible, then close the connection."""

    code = "REMOTE_PROTOCOL"


class LocalProtocolError(FepError):
    """We were about to break a protocol: a defect of ours, nothing was sent."""

    code = "LOCAL_PROTOCOL"


class LinkLostError(FepError):
    """The connection ended after the first byte of a request left; its outcome is not known."""

    code = "LINK_LOST"


class NothingSentError(FepError):
    """The connection ended, or was never there, and no byte of the request left this machine."""

    code = "NOTHING_SENT"


class KeySlotError(FepError):
    """The key slot cannot sign now; ``code`` says why."""

    code = "KEY_UNAVAILABLE"


class BodyError(FepError):
    """An operation's parameters are not valid; the message names the member and what is right."""

    code = "BAD_BODY"


class ConfigError(FepError):
    """The configuration cannot be used; carries every fault found, not just the first."""

    code = "BAD_CONFIG"
