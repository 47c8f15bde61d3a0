"""What every request must keep to, and what every answer carries: ASGI, around the pages."""

from __future__ import annotations

from typing import Final

import trio
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES_MAX: Final = 512 * 1024
BODY_SECONDS_MAX: Final = 5.0

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
HSTS: Final = "max-age=31536000"


class BodyLimit:
    """Ends a request whose body is too large, does not come, or has two lengths."""

    def __init__(
        self,
        app: ASGIApp,
        bytes_max: int = BODY_BYTES_MAX,
        seconds_max: float = BODY_SECONDS_MAX,
    ) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        left = self._bytes_max
        deadline = trio.current_time() + self._seconds_max
        complete = scope["type"] != "http"

        async def limited() -> Message:
            nonlocal left, complete
            if complete:
                # After the body only the end of the connection comes; a live page waits for that.
                return await receive()
            with trio.move_on_at(deadline):
                message = await receive()
                left -= len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if left < 0:
                    raise HTTPException(413)
                return message
            raise HTTPException(408)

        if not complete and _is_framed_twice(scope):
            # A proxy before us may read another body than we do, and take the rest for a request.
            answer = PlainTextResponse("400", 400, {"connection": "close"})
            await answer(scope, receive, send)
            return
        await self._app(scope, limited, send)


def _is_framed_twice(scope: Scope) -> bool:
    names = [name for name, _ in scope["headers"]]
    return b"transfer-encoding" in names and b"content-length" in names


class Headers:
    """Puts the policy on every answer; what is not said to be kept is kept nowhere."""

    def __init__(self, app: ASGIApp, *, secure: bool) -> None:
        self._app = app
        self._headers = HEADERS | ({"strict-transport-security": HSTS} if secure else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        gone = False

        async def with_headers(message: Message) -> None:
            nonlocal gone
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            if gone:
                return
            try:
                await send(message)
            except trio.BusyResourceError:
                # Its client hung up at this very moment: the server is ending the connection.
                gone = True

        await self._app(scope, receive, with_headers)
