"""The simulated banks of one run: the adapters' own host halves behind a line that misbehaves.

What the behaviour card promises, the bank keeps: a request that arrived is booked, and found by a
status query, within ``no_record_after_s`` of its sending or never. Everything else may happen.
"""

from __future__ import annotations

import datetime as dt
import functools
import random
import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import trio

from fep.adapters import registry
from fep.adapters.host import (
    Answer,
    Book,
    BookPayment,
    DuplicateReferenceError,
    Faults,
    HostProfile,
)
from fep.domain.clock import BusinessDate, Clock
from fep.domain.ids import AccountNumber, BankName
from fep.sandbox.book import SqliteBook
from tests.simulation.machine import socket_pair

RECEIVE_BYTES: Final = 65_536
REQUEST_LAG_SECONDS_MAX: Final = 90.0
"""A request may lie this long in the bank's queue, also after its connection has gone."""
RECORD_LAG_SECONDS_MAX: Final = 120.0
"""A booked payment may stay invisible to status queries for this long."""
AGAIN: Final = "~"
"""Stands in the book between a reference and the mark of its repetition."""
PROMISED_SECONDS: Final = 300.0
"""``no_record_after_s`` of the cards; above the sum of both lags and every reply time-out."""


@attrs.frozen
class Mischief:
    """Chances of what the line does wrong, per connection or per answer."""

    refuse: float = 0.0
    request_lag: float = 0.0
    record_lag: float = 0.0
    drop: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    garble: float = 0.0
    cut: float = 0.0
    split: float = 0.0
    restart: float = 0.0
    forget: float = 0.0
    """A reference that is known is booked once more: this bank does not protect us."""
    faults: str = ""
    """The host half's own faults, as ``fep host --faults`` takes them."""

    @classmethod
    def drawn(cls, rng: random.Random) -> Mischief:
        """Return a line of a drawn temper: some runs are calm, some are foul."""
        temper = rng.choice((0.0, 0.05, 0.15, 0.4))

        def chance() -> float:
            return temper * rng.random() if rng.random() < 0.7 else 0.0

        names = (
            "silent_before_booking",
            "silent_after_booking",
            "close_before_booking",
            "close_after_booking",
            "unknown_after_booking",
            "returned",
            "throttled",
            "delayed",
        )
        faults = ",".join(f"{name}={chance():.3f}" for name in names)
        drawn = {
            field.name: chance()
            for field in attrs.fields(cls)
            if field.name not in ("faults", "forget")
        }
        return cls(**drawn, forget=float(rng.random() < 0.5), faults=faults)


FOULEST: Final = Mischief(
    request_lag=0.3,
    record_lag=0.8,
    drop=0.05,
    delay=0.05,
    duplicate=0.2,
    garble=0.05,
    cut=0.05,
    split=0.3,
    restart=0.1,
    forget=1.0,
    faults="silent_before_booking=0.1,silent_after_booking=0.3,close_after_booking=0.2,"
    "unknown_after_booking=0.1,returned=0.5,delayed=0.1",
)
"""Where a defect of ours costs money at once: payments are booked and not answered, what is booked
shows late, no reference is remembered, half of what was paid comes back; and queries come through.
"""


class LaggingBook:
    """The book as one bank's status query sees it: what was booked shows after a while."""

    def __init__(
        self,
        book: SqliteBook,
        rng: random.Random,
        mischief: Mischief,
        on_payment: Callable[[], None],
    ) -> None:
        self._book = book
        self._on_payment = on_payment
        self._rng = rng
        self._mischief = mischief
        self._shows_at: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._book, name)

    def pay(self, bank: BankName, request: Any, now: dt.datetime) -> BookPayment:
        """Book it; a status query may not find it at once."""
        self._on_payment()
        try:
            made = self._book.pay(bank, request, now)
        except DuplicateReferenceError:
            if self._rng.random() >= self._mischief.forget:
                raise
            again = f"{request.client_ref}{AGAIN}{self._rng.getrandbits(32):08x}"
            return self._book.pay(bank, attrs.evolve(request, client_ref=again), now)
        if self._rng.random() < self._mischief.record_lag:
            lag = self._rng.random() * RECORD_LAG_SECONDS_MAX
            self._shows_at[request.client_ref] = trio.current_time() + lag
        return made

    def pay_batch(
        self, bank: BankName, reference: str, requests: Sequence[Any], now: dt.datetime
    ) -> list[BookPayment]:
        """Book the rows of a batch; a status query may not find them at once."""
        self._on_payment()
        try:
            made = self._book.pay_batch(bank, reference, requests, now)
        except DuplicateReferenceError:
            if self._rng.random() >= self._mischief.forget:
                raise
            mark = f"{AGAIN}{self._rng.getrandbits(32):08x}"
            again = [attrs.evolve(one, client_ref=one.client_ref + mark) for one in requests]
            return self._book.pay_batch(bank, reference + mark, again, now)
        if self._rng.random() < self._mischief.record_lag:
            lag = self._rng.random() * RECORD_LAG_SECONDS_MAX
            self._shows_at[reference] = trio.current_time() + lag
            for one in made:
                self._shows_at[one.client_ref] = trio.current_time() + lag
        return made

    def batch(self, bank: BankName, reference: str) -> list[BookPayment]:
        """Return the rows of a batch once they show."""
        if self._shows_at.get(reference, 0.0) > trio.current_time():
            return []
        return self._book.batch(bank, reference)

    def payment(self, bank: BankName, client_ref: str) -> BookPayment | None:
        """Return the payment of a reference once it shows."""
        if self._shows_at.get(client_ref, 0.0) > trio.current_time():
            return None
        return self._book.payment(bank, client_ref)

    def entries(
        self, bank: BankName, number: AccountNumber, first: BusinessDate, last: BusinessDate
    ) -> Any:
        """Return the account's lines."""
        return self._book.entries(bank, number, first, last)


_host: Final = functools.cache(registry.host)
"""Looking through the installed packages takes long."""


class Bank:
    """One bank's front-end machine; the daemon's link connects to it through :meth:`connect`."""

    def __init__(
        self,
        name: BankName,
        adapter: str,
        book: SqliteBook,
        clock: Clock,
        rng: random.Random,
        certificates: tuple[Any, ...],
    ) -> None:
        self.name = name
        self.mischief = Mischief()
        self._host = _host(adapter)
        self._book = book
        self._clock = clock
        self._rng = rng
        self._certificates = certificates
        self.on_payment: Callable[[], None] = lambda: None
        """Called when a payment has come in, before it is booked."""
        self._profile = self._new_profile()
        self._nursery: trio.Nursery | None = None
        self._lines: set[trio.CancelScope] = set()
        self._up = trio.Event()
        self._up.set()

    def misbehave(self, mischief: Mischief) -> None:
        """Take another temper from now on."""
        self.mischief = mischief
        self._profile = self._new_profile()

    def _new_profile(self) -> HostProfile:
        book: Book = LaggingBook(self._book, self._rng, self.mischief, self._payment_came)
        faults = Faults.parse(self.mischief.faults, self._rng.randrange(1 << 30))
        return HostProfile(self.name, book, self._clock, faults, self._certificates)

    def _payment_came(self) -> None:
        self.on_payment()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the bank's lines, and let the bank go down now and then, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(self._rng.uniform(20, 60))
                if self._rng.random() < self.mischief.restart:
                    await self._restart()

    async def _restart(self) -> None:
        """Go down with all connections, and come back."""
        self._up = trio.Event()
        for scope in list(self._lines):
            scope.cancel()
        await trio.sleep(self._rng.uniform(1, 40))
        self._up.set()

    async def connect(self) -> socket.socket:
        """Return the daemon's end of a new line.

        Raises:
            ConnectionRefusedError: the bank is down, or does not want.
        """
        await trio.sleep(self._rng.random() * 0.2)
        if not self._up.is_set() or self._rng.random() < self.mischief.refuse:
            raise ConnectionRefusedError(111, "refused")
        ours, theirs = socket_pair()
        assert self._nursery is not None
        self._nursery.start_soon(self._serve, theirs)
        return ours

    async def _serve(self, sock: socket.socket) -> None:
        connection = self._host.open(self._profile)
        scope = trio.CancelScope()
        self._lines.add(scope)
        with sock, scope:
            # Requests wait in this queue in order, as in a bank's own input queue.
            async with trio.open_nursery() as nursery:
                free_at = trio.current_time()
                while True:
                    await trio.lowlevel.wait_readable(sock)
                    try:
                        data = sock.recv(RECEIVE_BYTES)
                    except OSError:
                        break
                    if not data:
                        break
                    if self._rng.random() < self.mischief.request_lag:
                        lag = self._rng.random() * REQUEST_LAG_SECONDS_MAX
                        free_at = max(free_at, trio.current_time() + lag)
                    nursery.start_soon(self._take, sock, connection, data, free_at, nursery)
        self._lines.discard(scope)

    async def _take(
        self,
        sock: socket.socket,
        connection: Any,
        data: bytes,
        at: float,
        nursery: trio.Nursery,
    ) -> None:
        """Give the bank the bytes when they have come through, and send what it answers."""
        if at > trio.current_time():
            await trio.sleep_until(at)
        for answer in connection.receive_data(data):
            if answer.data or answer.close:
                nursery.start_soon(self._answer, sock, answer, nursery)

    async def _answer(self, sock: socket.socket, answer: Answer, nursery: trio.Nursery) -> None:
        rng, mischief = self._rng, self.mischief
        await trio.sleep(answer.delay_s + rng.random() * 0.05)
        if rng.random() < mischief.delay:
            await trio.sleep(rng.random() * 60.0)
        data = answer.data
        if rng.random() < mischief.drop:
            data = b""
        if data and rng.random() < mischief.garble:
            # 0xFF stands in no text: what is garbled can be seen, it never says something else.
            at = rng.randrange(len(data))
            size = min(rng.randrange(1, 40), len(data) - at)
            data = data[:at] + b"\xff" * size + data[at + size :]
        if data and rng.random() < mischief.cut:
            await self._send(sock, data[: rng.randrange(len(data))])
            nursery.cancel_scope.cancel()
            return
        for _ in range(2 if rng.random() < mischief.duplicate else 1):
            await self._send(sock, data)
        if answer.close:
            nursery.cancel_scope.cancel()

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        pieces = [data]
        if len(data) > 1 and self._rng.random() < self.mischief.split:
            at = self._rng.randrange(1, len(data))
            pieces = [data[:at], data[at:]]
        for place, piece in enumerate(pieces):
            if place:
                # Only calm lines are split over time: another answer must not come between.
                await trio.lowlevel.checkpoint()
            try:
                sock.send(piece)
            except OSError:
                return
