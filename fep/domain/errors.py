"""The exceptions of the product, each with a stable upper-case code that the documents list."""


class FepError(Exception):
    """Base of all errors raised on purpose; ``code`` never changes between releases."""

    code = "FEP_ERROR"


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
