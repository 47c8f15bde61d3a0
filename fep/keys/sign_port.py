"""Has the bank's signing service sign (签名端口): one HTTP exchange before anything is sent."""

from __future__ import annotations

from typing import Final

import trio

from fep.adapters.api import BankCodec, SignPortCodec
from fep.domain.errors import KeySlotError, RemoteProtocolError
from fep.wire.http import HttpResponse, ResponseReader

ANSWER_BYTES_MAX: Final = 4 * 1024 * 1024
RECEIVE_BYTES: Final = 65_536


class SignPortError(KeySlotError):
    """The bank's signing service did not sign; the request did not leave."""

    code = "SIGN_PORT"


async def sign_at_port(codec: BankCodec, data: bytes) -> bytes:
    """Return the sign value of the codec's signing service; the caller sets the deadline.

    Raises:
        SignPortError: no connection, no answer that can be read, or it refused.
    """
    if not isinstance(codec, SignPortCodec):
        msg = "this adapter has no sign port"
        raise SignPortError(msg)
    host, port = codec.sign_peer
    reader = ResponseReader(ANSWER_BYTES_MAX)
    try:
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(codec.sign_request(data))
            found: list[HttpResponse] = []
            while not found:
                received = await stream.receive_some(RECEIVE_BYTES)
                found = reader.receive_data(bytes(received)) if received else reader.finish()
                if not received and not found:
                    msg = "the sign port closed the connection instead of an answer"
                    raise SignPortError(msg)
        return codec.sign_value(found[0])
    except (OSError, trio.BrokenResourceError, RemoteProtocolError) as error:
        msg = f"the sign port {host}:{port}: {error}"
        raise SignPortError(msg) from error
