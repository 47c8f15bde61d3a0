"""What ``fepctl top`` shows, from what the daemon answers: rows, their order, and rates. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

import attrs

from fep.control.show import clean, counts, moment, span
from fep.domain.clock import from_text

Value = dict[str, Any]

RATE_SECONDS: Final = 10.0
"""Rates are over the last readings of so long."""
READINGS_MAX: Final = 120
BARS_MAX: Final = 60


class Order(StrEnum):
    """By what the banks are sorted; each but the name has the largest first."""

    NAME = "bank 银行"
    OPEN = "open 未完成"
    RATE = "rate 速率"
    WAITING = "waiting 最久等待"

    def next(self) -> Order:
        """Return the order that comes after this one."""
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


@attrs.frozen
class Reading:
    """What the daemon answered at one moment."""

    at: float
    """Seconds of a clock that is never set."""
    status: Value
    slots: list[Value]
    links: list[Value]
    alarms: list[Value]


@attrs.frozen
class Bank:
    """One bank's row."""

    name: str
    link: str
    """The state of its connection; empty where another machine has it."""
    note: str
    """Drained, or which machine serves it."""
    open: int
    states: str
    in_hands: int
    rate: float | None
    """Tasks that came to their end, a minute; None: not known yet."""
    waiting_s: float
    silent_s: float | None
    """Since the bank's last answer."""
    failure: str


class Board:
    """The last readings; a daemon that was restarted begins anew."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque(maxlen=READINGS_MAX)

    @property
    def last(self) -> Reading | None:
        """The newest reading, None before the first."""
        return self._readings[-1] if self._readings else None

    def take(self, reading: Reading) -> None:
        """Keep a reading; counts of an earlier process say nothing beside it."""
        last = self.last
        if last is not None and reading.status["uptime_s"] < last.status["uptime_s"]:
            self._readings.clear()
        self._readings.append(reading)

    def banks(self, order: Order) -> list[Bank]:
        """Return the banks' rows."""
        reading = self.last
        if reading is None:
            return []
        links = {link["bank"]: link for link in reading.links}
        rows = [
            self._bank(name, row, links.get(name, {}))
            for name, row in reading.status["queue"]["banks"].items()
        ]
        key: Mapping[Order, Callable[[Bank], float]] = {
            Order.OPEN: lambda bank: -bank.open,
            Order.RATE: lambda bank: -(bank.rate or 0.0),
            Order.WAITING: lambda bank: -bank.waiting_s,
        }
        rows.sort(key=lambda bank: bank.name)
        if order in key:
            rows.sort(key=key[order])
        return rows

    def _bank(self, name: str, row: Value, link: Value) -> Bank:
        assert self.last is not None
        status = self.last.status
        notes = ["drained 已暂停"] if row["drained"] else []
        served_by = row.get("served_by")
        if served_by and served_by != status.get("machine"):
            notes.append(f"by 由 {served_by}")
        return Bank(
            name=clean(name),
            link=link.get("state", ""),
            note=", ".join(notes),
            open=sum(row["open"].values()),
            states=counts(row["open"]),
            in_hands=row["in_flight"],
            rate=self._per_minute(lambda one: _ended(one, name)),
            waiting_s=_since(row["waiting_since"], status["time"]) or 0.0,
            silent_s=_since(link.get("last_reply_at"), status["time"]),
            failure=clean(link.get("last_failure", "")) if link.get("failures") else "",
        )

    @property
    def rate(self) -> float | None:
        """Tasks of all banks that came to their end, a minute."""
        return self._per_minute(_all_ended)

    def bars(self) -> list[float]:
        """Return the ends between every two readings, a second, oldest first."""
        last = list(self._readings)[-BARS_MAX - 1 :]
        return [
            max(_all_ended(after) - _all_ended(before), 0) / max(after.at - before.at, 0.001)
            for before, after in pairwise(last)
        ]

    def _per_minute(self, count: Callable[[Reading], int]) -> float | None:
        last = self.last
        assert last is not None
        first = next(one for one in self._readings if last.at - one.at <= RATE_SECONDS)
        if first is last:
            return None
        # A bank that was taken out of the configuration takes its count along.
        return 60.0 * max(count(last) - count(first), 0) / (last.at - first.at)

    def headline(self) -> str:
        """Return the daemon in a line or two."""
        reading = self.last
        if reading is None:
            return ""
        status, queue = reading.status, reading.status["queue"]
        words = [
            f"fep {status['version']}",
            f"{moment(status['time'])}",
            f"up 运行 {span(status['uptime_s'])}",
            f"queue 队列 {queue['open']} of {queue['queue_max']}",
            f"rate 速率 {per_minute(self.rate)}",
        ]
        if "machine" in status:
            words.append(f"machine 前置机 {status['machine']}")
        if status["store_full"]:
            words.append("THE DISK IS FULL 磁盘已满")
        if status["held_since"] is not None:
            words.append("PAYMENTS ARE HELD 暂停付款")
        return clean("  ".join(words))


def per_minute(rate: float | None) -> str:
    """Return a rate as people read it."""
    return "–" if rate is None else f"{rate:.0f}/min"


def seconds(value: float | None) -> str:
    """Return an age: nothing for none, tenths below ten seconds."""
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 10 else span(value)


def _since(past: str | None, now: str) -> float | None:
    if not past:
        return None
    return max((from_text(now) - from_text(past)).total_seconds(), 0.0)


def _ended(reading: Reading, bank: str) -> int:
    found: int = reading.status["queue"]["banks"].get(bank, {}).get("ended", 0)
    return found


def _all_ended(reading: Reading) -> int:
    return sum(_ended(reading, bank) for bank in reading.status["queue"]["banks"])
