"""Sends traces: hears of tasks in passing, reads their chains later, and never holds anybody up.

What the queue tells waits in a bounded queue. One task reads the chains of those at their end in a
reader of the store, makes the spans in a thread of its own, and posts them. A receiver that is away
or slow costs traces, which are counted and told, and nothing else.
"""

from __future__ import annotations

import datetime as dt
import math
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn

import attrs
import orjson
import structlog
import trio

from fep.domain.clock import Clock
from fep.domain.errors import FepError
from fep.domain.ids import BankName, TaskId
from fep.keys.credentials import read_text
from fep.store.database import Store
from fep.tasks import store as rows
from fep.tasks.figures import Exchange
from fep.tasks.task import Task
from fep.traces import spans
from fep.traces.config import TracesConfig
from fep.traces.spans import Asked, Ended, Note, Signed

if TYPE_CHECKING:
    import httpx2

log = structlog.get_logger()

NOTES_MAX: Final = 16_384
"""What waits to be sent; above it notes are dropped."""
BATCH_NOTES_MAX: Final = 256
GATHER_SECONDS: Final = 0.5
"""From the first note to its message, so that a message has many."""
RETRY_SECONDS: Final = (1.0, 4.0)
"""Pauses before the second and the third try; after that a message is dropped."""
PAUSE_SECONDS_MAX: Final = 30.0
"""The longest pause that a receiver may ask for."""
TELL_SECONDS: Final = 60.0
"""Between two lines of the log about what was dropped."""
CLOSE_SECONDS_MAX: Final = 2.0
"""At a stop, what waits has so long to get out."""
ANSWER_BYTES_MAX: Final = 64 * 1024
REASON_CHARS_MAX: Final = 300
RETRY_AFTER_DIGITS_MAX: Final = 6
QUEUE_FULL: Final = "more came than could be sent"
ENDED: Final = "the daemon ended before they were sent"
AGAIN: Final = frozenset({429, 502, 503, 504})
"""OTLP 1.x, "Failures": what may be sent once more. Everything else is dropped."""


@attrs.frozen
class _Sent:
    """The receiver took the message, but for so many spans."""

    refused: int = 0
    why: str = ""


@attrs.frozen
class _NotSent:
    reason: str
    again: bool = True
    after_s: float = 0.0


class Tracer:
    """Owns what waits to be sent; the queue tells it, :meth:`run` sends.

    Args:
        config: where to, and how many.
        enterprise: whose tasks: part of each trace's id.
        machine: this front-end machine's number.
        clock: the wall clock.
        store: where the chains of events are.
        slot_of: the slot that signs for a bank; empty where none is known.
    """

    def __init__(
        self,
        config: TracesConfig,
        enterprise: str,
        machine: str,
        clock: Clock,
        store: Store,
        slot_of: Callable[[BankName], str],
    ) -> None:
        self.config = config
        self.sent = 0
        self.dropped = 0
        self.retry_seconds: Sequence[float] = RETRY_SECONDS
        self._enterprise = enterprise
        self._clock = clock
        self._store = store
        self._slot_of = slot_of
        self._version = version("fep")
        self._resource = {
            "service.name": config.service_name,
            "service.version": self._version,
            "service.instance.id": machine,
        }
        self._threshold = spans.threshold_of(config.sample)
        self._notes: deque[Note] = deque()
        self._came = trio.Event()
        self._limiter = trio.CapacityLimiter(1)
        self._client: httpx2.AsyncClient | None = None
        self._untold = 0
        """Dropped since it was last told."""
        self._told_at = -math.inf
        self._failing = ""
        """Why the last message was not taken; empty: it was."""

    # -- what the queue tells -----------------------------------------------------------------

    def signed(self, task: Task, code: str, seconds: float) -> None:
        """Note that its bank's slot signed, just now; a code says why it did not."""
        if (trace := self._trace(task.task_id)) is not None:
            began, at = self._times(seconds)
            slot = self._slot_of(task.bank)
            self._put(Signed(trace, task.task_id, task.bank, slot, code, began, at))

    def asked(self, task: Task, asked: str, how: Exchange, seconds: float) -> None:
        """Note that a request to the bank ended, just now."""
        if (trace := self._trace(task.task_id)) is not None:
            began, at = self._times(seconds)
            self._put(Asked(trace, task.task_id, task.bank, asked, how, began, at))

    def ended(self, task: Task, bank_code: str, at: dt.datetime) -> None:
        """Note that a task is at its end, or came back after it."""
        if (trace := self._trace(task.task_id)) is None:
            return
        self._put(
            Ended(
                seq=task.seq,
                trace=trace,
                task_id=task.task_id,
                bank=task.bank,
                kind=task.kind,
                slot=self._slot_of(task.bank),
                state=task.state,
                bank_code=bank_code,
                offers=task.offers,
                inquiries=task.inquiries,
                began=task.submitted_at,
                at=at,
            )
        )

    def _trace(self, task_id: TaskId) -> bytes | None:
        trace = spans.trace_id(self._enterprise, task_id)
        return trace if spans.is_sampled(trace, self._threshold) else None

    def _times(self, seconds: float) -> tuple[dt.datetime, dt.datetime]:
        now = self._clock.now()
        return now - dt.timedelta(seconds=seconds), now

    def _put(self, note: Note) -> None:
        if len(self._notes) >= NOTES_MAX:
            self._drop(1)
            return
        self._notes.append(note)
        self._came.set()

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._untold += count

    # -- sending ------------------------------------------------------------------------------

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Send until cancelled; then what waits has ``CLOSE_SECONDS_MAX``. ``started()`` at once.

        Raises:
            StoreFailedError: the store has ended.
        """
        log.info("traces.begun", endpoint=self.config.endpoint, sample=self.config.sample)
        task_status.started()
        try:
            while True:
                await self._came.wait()
                await trio.sleep(GATHER_SECONDS)
                self._came = trio.Event()
                while batch := self._take():
                    await self._send(batch, self.retry_seconds)
                    self._tell(self._failing or QUEUE_FULL)
        finally:
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await self._close()
            self._drop(len(self._notes))
            self._notes.clear()
            self._tell(self._failing or ENDED, 0.0)

    def _take(self) -> list[Note]:
        batch = list(islice(self._notes, BATCH_NOTES_MAX))
        for _ in batch:
            self._notes.popleft()
        return batch

    async def _close(self) -> None:
        try:
            while batch := self._take():
                await self._send(batch, ())
        finally:
            if self._client is not None:
                await self._client.aclose()
                self._client = None

    async def _send(self, batch: Sequence[Note], pauses: Sequence[float]) -> None:
        """Send a batch, or drop it whole; also when it is cancelled meanwhile."""
        outcome: _Sent | _NotSent = _NotSent(ENDED)
        try:
            body = await self._body(batch)
            for pause in (*pauses, None):
                outcome = await self._post(body)
                if isinstance(outcome, _Sent) or not outcome.again or pause is None:
                    break
                self._fail(outcome.reason)
                await trio.sleep(max(pause, min(outcome.after_s, PAUSE_SECONDS_MAX)))
        finally:
            match outcome:
                case _Sent(refused=refused, why=why):
                    lost = min(refused, len(batch))
                    self.sent += len(batch) - lost
                    self._drop(lost)
                    if self._failing:
                        self._failing = ""
                        log.info("traces.sent_again", dropped=self.dropped)
                    if lost:
                        self._tell(f"the receiver refused {refused} spans: {why}")
                case _NotSent(reason=reason):
                    self._drop(len(batch))
                    self._fail(reason)

    def _fail(self, reason: str) -> None:
        reason = reason[:REASON_CHARS_MAX]
        if not self._failing:
            log.warning("traces.failing", reason=reason)
        self._failing = reason
        self._tell(reason)

    def _tell(self, reason: str, every_s: float = TELL_SECONDS) -> None:
        """Tell of what was dropped since it was last told, seldom."""
        now = trio.current_time()
        if self._untold and now >= self._told_at + every_s:
            log.warning("traces.dropped", reason=reason[:REASON_CHARS_MAX], count=self._untold)
            self._untold, self._told_at = 0, now

    async def _body(self, batch: Sequence[Note]) -> bytes:
        ended = [one.seq for one in batch if isinstance(one, Ended)]
        chains = await self._store.read(partial(rows.chains, places=ended)) if ended else {}
        resource, release = self._resource, self._version

        def make() -> bytes:
            made = [
                span
                for note in batch
                for span in spans.spans_of(
                    note, chains.get(note.seq, ()) if isinstance(note, Ended) else ()
                )
            ]
            return spans.message_of(made, resource, release)

        # A hundred traces are some thousand spans, which would hold the loop for milliseconds.
        return await trio.to_thread.run_sync(make, limiter=self._limiter)

    async def _post(self, body: bytes) -> _Sent | _NotSent:
        with trio.move_on_after(self.config.timeout_s):
            try:
                headers, client = await trio.to_thread.run_sync(
                    self._prepare, self._client, limiter=self._limiter
                )
            except (FepError, ValueError, OSError) as error:
                return _NotSent(f"{type(error).__name__}: {error}")
            self._client = client
            return await self._ask(client, headers, body)
        return _NotSent(f"no answer within {self.config.timeout_s:g} s")

    def _prepare(
        self, client: httpx2.AsyncClient | None
    ) -> tuple[dict[str, str], httpx2.AsyncClient]:
        """Read the headers' secrets, and make what sends (its own thread).

        Raises:
            FepError: a secret can't be read.
            OSError: the certificates can't be read.
            ValueError: a secret is no header's value.
        """
        headers = {"content-type": "application/json"}
        for name, reference in self.config.headers:
            value = read_text(reference)
            if not (value.isascii() and value.isprintable()):
                msg = f"{reference} is no value of a header"
                raise ValueError(msg)
            headers[name] = value
        if client is None:
            import httpx2  # noqa: PLC0415 - it takes a tenth of a second to load: not in the loop

            ca = None if self.config.ca is None else str(self.config.ca)
            client = httpx2.AsyncClient(
                verify=ssl.create_default_context(cafile=ca),
                trust_env=False,
                follow_redirects=False,
                timeout=self.config.timeout_s,
                headers={"accept-encoding": "identity", "user-agent": "fep"},
            )
        return headers, client

    async def _ask(
        self, client: httpx2.AsyncClient, headers: dict[str, str], body: bytes
    ) -> _Sent | _NotSent:
        import httpx2  # noqa: PLC0415

        told = bytearray()
        try:
            with trio.CancelScope() as scope:
                async with client.stream(
                    "POST", self.config.endpoint, content=body, headers=headers
                ) as answer:
                    async for chunk in answer.aiter_raw():
                        told += chunk
                        if len(told) > ANSWER_BYTES_MAX:
                            scope.cancel()
                status, asked = answer.status_code, answer.headers.get("retry-after", "")
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            return _NotSent(_reason(error))
        if scope.cancelled_caught:
            msg = f"the answer has more than {ANSWER_BYTES_MAX} bytes"
            return _NotSent(msg, again=False)
        if 200 <= status < 300:
            return _accepted(bytes(told))
        return _NotSent(f"HTTP {status}", status in AGAIN, _retry_after(asked))


def _accepted(body: bytes) -> _Sent:
    """Return what an ``ExportTraceServiceResponse`` says; one that can't be read says nothing."""
    try:
        partial_success = orjson.loads(body or b"{}").get("partialSuccess") or {}
        # 64 bits are text in JSON, but some write numbers.
        refused = int(partial_success.get("rejectedSpans", 0))
        return _Sent(max(refused, 0), str(partial_success.get("errorMessage", "")))
    except (ValueError, AttributeError, TypeError):
        return _Sent()


def _reason(error: Exception) -> str:
    told: BaseException = error
    while not str(told) and (under := told.__cause__ or told.__context__) is not None:
        told = under
    return f"{type(error).__name__}: {told}".rstrip(": ")


def _retry_after(text: str) -> float:
    """Return the seconds of a ``Retry-After``; a date counts as none."""
    digits = text.strip()
    if digits.isascii() and digits.isdigit() and len(digits) <= RETRY_AFTER_DIGITS_MAX:
        return float(digits)
    return 0.0
