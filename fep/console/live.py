"""What changes by itself: samples of the queue, and the overview that is pushed to open browsers.

The page is made once for all who look at it, and nothing is made while nobody does. Each browser
has a small channel; one that does not keep up misses a page, since the next one says all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import attrs
import orjson
import trio

from fep.control.commands import METHODS, Caller, NoParams, Role, Services
from fep.domain.ids import ClientName

TICK_SECONDS: Final = 2.0
SAMPLE_SECONDS: Final = 10.0
SAMPLES_MAX: Final = 720
"""Two hours."""
PUSHES_WAITING_MAX: Final = 4
VIEWERS_MAX: Final = 128
CHECK_SECONDS: Final = 10.0
"""So often a live page's log-in is looked at."""
SILENT_SECONDS_MAX: Final = 20.0
"""A page on which nothing changes is sent a comment, which finds out that nobody is there."""
COMMENT: Final = b": \n\n"
_SELF: Final = Caller(ClientName("fep:console"), Role.VIEWER, "")

Fragment = Callable[[str, str, dict[str, Any]], str]


@attrs.frozen
class Sample:
    """The queue at one moment."""

    at: int
    """Seconds since 1970."""
    open: int
    in_flight: int
    requests: int
    """At the banks, since the daemon began."""


@attrs.define(eq=False)
class _Viewer:
    language: str
    send: trio.MemorySendChannel[bytes]


class Live:
    """Owns the samples and the browsers that look on."""

    def __init__(self, services: Services, fragment: Fragment) -> None:
        self._services = services
        self._fragment = fragment
        self._viewers: dict[_Viewer, None] = {}
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._made: dict[str, tuple[float, bytes]] = {}
        """By language the last page, and when it was made."""

    @property
    def viewers(self) -> int:
        """How many browsers look on."""
        return len(self._viewers)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample and push until cancelled."""
        self._sample()
        task_status.started()
        sample_at = trio.current_time() + SAMPLE_SECONDS
        while True:
            await trio.sleep(TICK_SECONDS)
            if trio.current_time() >= sample_at:
                sample_at += SAMPLE_SECONDS
                self._push_sample(self._sample())
            if self._viewers:
                await self._push_page()

    def samples(self) -> list[list[int]]:
        """Return the columns of a chart: moments, open tasks, those at the banks, requests."""
        rows = [(one.at, one.open, one.in_flight, one.requests) for one in self._samples]
        return [list(column) for column in zip(*rows, strict=True)]

    async def values(self) -> dict[str, Any]:
        """Return what the overview shows."""
        services = self._services
        found: dict[str, Any] = {}
        for method in ("status", "slot.list", "link.list"):
            handle = METHODS[method].handle
            assert handle is not None
            found[method.partition(".")[0]] = await handle(services, _SELF, NoParams())
        alarms = [alarm.value() for alarm in services.alarms.active()]
        return {
            "status": found["status"],
            "slots": found["slot"]["slots"],
            "links": found["link"]["links"],
            "alarms": alarms,
        }

    async def stream(
        self, language: str, still_in: Callable[[], Any]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the overview whenever it changes, the whole of it first.

        Args:
            language: of the page.
            still_in: awaited now and then; false ends the stream.
        """
        send, receive = trio.open_memory_channel[bytes](PUSHES_WAITING_MAX)
        viewer = _Viewer(language, send)
        self._viewers[viewer] = None
        try:
            yield await self._whole(language)
            check_at = trio.current_time() + CHECK_SECONDS
            while True:
                data = COMMENT
                with trio.move_on_after(SILENT_SECONDS_MAX):
                    data = await receive.receive()
                if trio.current_time() >= check_at:
                    check_at = trio.current_time() + CHECK_SECONDS
                    if not await still_in():
                        yield b"event: ended\ndata: \n\n"
                        return
                yield data
        finally:
            self._viewers.pop(viewer, None)
            send.close()
            receive.close()

    async def _whole(self, language: str) -> bytes:
        """Return the page, made anew unless there is one from this tick: many may come at once."""
        made = self._made.get(language)
        now = trio.current_time()
        if made is None or now - made[0] > TICK_SECONDS:
            data = _message(self._fragment("live.html", language, await self.values()))
            self._made[language] = made = now, data
        return made[1]

    async def _push_page(self) -> None:
        values = await self.values()
        for language in {viewer.language for viewer in self._viewers}:
            data = _message(self._fragment("live.html", language, values))
            before = self._made.get(language)
            self._made[language] = trio.current_time(), data
            if before is None or before[1] != data:
                self._push(data, language)
            # Two languages are two pieces of work, and others may go between them.
            await trio.lowlevel.checkpoint()

    def _push_sample(self, sample: Sample) -> None:
        row = [sample.at, sample.open, sample.in_flight, sample.requests]
        self._push(b"event: sample\ndata: " + orjson.dumps(row) + b"\n\n", None)

    def _push(self, data: bytes, language: str | None) -> None:
        for viewer in self._viewers:
            if language in (None, viewer.language):
                try:
                    viewer.send.send_nowait(data)
                except trio.WouldBlock:
                    # It gets a later page, which says all.
                    continue

    def _sample(self) -> Sample:
        status = self._services.tasks.status()
        links = self._services.links.values()
        sample = Sample(
            int(self._services.clock.now().timestamp()),
            status["open"],
            sum(one["in_flight"] for one in status["banks"].values()),
            sum(link.requests for link in links),
        )
        self._samples.append(sample)
        return sample


def _message(html: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in html.splitlines())
    return f"{lines}\n".encode()
