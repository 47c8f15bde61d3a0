"""What an integrator imports: ``Client`` (trio) and ``BlockingClient`` (plain sockets)."""

from typing import TYPE_CHECKING, Any

from fep.client.address import Address, parse_address
from fep.client.blocking import BlockingClient
from fep.client.conversation import CallError, DisconnectedError, TaskResult
from fep.wire.proof import Key, parse_keys

if TYPE_CHECKING:
    from fep.client.trio_client import Client, open_client

__all__ = [
    "Address",
    "BlockingClient",
    "CallError",
    "Client",
    "DisconnectedError",
    "Key",
    "TaskResult",
    "open_client",
    "parse_address",
    "parse_keys",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as a module's attributes are
    """Return what needs trio, loaded when first asked for: blocking programs start without it."""
    if name in ("Client", "open_client"):
        from fep.client import trio_client  # noqa: PLC0415

        return getattr(trio_client, name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
