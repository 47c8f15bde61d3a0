"""An answer that is made while it is sent; its maker is ended with the connection, at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class Stream(Response):
    """Sends what a generator yields, and closes the generator when the browser has gone.

    Starlette's own leaves the generator to the garbage collector, and with it what it holds.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(None, 200, headers, media_type)
        self._chunks = chunks
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send until the end of either side."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, receive, nursery.cancel_scope)
            async with aclosing(self._chunks):
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                async for chunk in self._chunks:
                    body = {"type": "http.response.body", "body": chunk, "more_body": True}
                    await send(body)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()


async def _watch(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
