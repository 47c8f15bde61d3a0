"""What an integrator imports: ``Client`` (trio) and ``BlockingClient`` (plain sockets)."""

from fep.client.address import Address, parse_address
from fep.client.blocking import BlockingClient
from fep.client.conversation import CallError, DisconnectedError, TaskResult
from fep.client.trio_client import Client, open_client

__all__ = [
    "Address",
    "BlockingClient",
    "CallError",
    "Client",
    "DisconnectedError",
    "TaskResult",
    "open_client",
    "parse_address",
]
