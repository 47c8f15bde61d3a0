"""The heartbeats of two hundred banks over a day, in seconds: every one leaves at its time."""

from __future__ import annotations

import random
import select
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from fep.alarms.service import Alarms
from fep.alarms.state import AlarmKind
from fep.domain.clock import SystemClock
from fep.domain.ids import BankName, Sequence
from fep.links.config import LinkConfig
from fep.links.mux import UnmatchedReply
from fep.links.service import Link, run_link
from fep.links.state import LinkState
from fep.store.database import Store
from tests.links.conftest import KeyGate, ToyCodec, ToyFramer, toy_frame

BANKS = 200
RECEIVE_BYTES = 4096


class Hosts:
    """The other ends of all links: one task that answers whatever it is sent."""

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.probes: dict[BankName, int] = {}
        self.connections: dict[BankName, int] = {}
        self.silent: set[BankName] = set()
        self._ends: dict[int, tuple[BankName, socket.socket, ToyFramer]] = {}

    async def connect(self, config: LinkConfig) -> socket.socket:
        """Return the link's end of a new connection."""
        await trio.lowlevel.checkpoint()
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
        self._ends[theirs.fileno()] = (config.bank, theirs, ToyFramer())
        self.connections[config.bank] = self.connections.get(config.bank, 0) + 1
        self.epoll.register(theirs, select.EPOLLIN)
        return ours

    async def run(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.epoll.fileno())
            for fd, _ in self.epoll.poll(0):
                bank, sock, framer = self._ends[fd]
                data = sock.recv(RECEIVE_BYTES)
                if not data:
                    self.epoll.unregister(fd)
                    del self._ends[fd]
                    sock.close()
                    continue
                for request in framer.receive_data(data):
                    self.probes[bank] = self.probes.get(bank, 0) + (request.trade == "PROBE")
                    if bank not in self.silent:
                        sock.send(toy_frame(request.correlation, trade=request.trade))

    def close(self) -> None:
        self.epoll.close()
        for _, sock, _ in self._ends.values():
            sock.close()


@pytest.mark.slow
@pytest.mark.req("FEP-08")
@pytest.mark.parametrize(("heartbeat_s", "span_s"), [(30.0, 1800), (600.0, 24 * 3600)])
async def test_two_hundred_banks_keep_their_heartbeats_and_the_silent_one_is_found(
    heartbeat_s: float, span_s: int, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Half an hour of the default interval, and a day of a longer one."""
    hosts, clock = Hosts(), SystemClock()
    store = Store.at(tmp_path / "fep.db")
    send, unmatched = trio.open_memory_channel[UnmatchedReply](1)
    names = [BankName(f"bank-{place}") for place in range(BANKS)]
    silent = names[7]
    async with unmatched, send, trio.open_nursery() as nursery:
        await nursery.start(store.run)
        alarms = Alarms(store, clock)
        await alarms.load()
        links = {
            name: Link(
                LinkConfig(name, "127.0.0.1", 1, heartbeat_s=heartbeat_s),
                ToyCodec(),
                Sequence(),
                clock,
                alarms,
                send,
                random.Random(place),
                hosts.connect,
            )
            for place, name in enumerate(names)
        }
        async with trio.open_nursery() as running:
            running.start_soon(hosts.run)
            for link in links.values():
                await running.start(run_link, link, KeyGate())
                await link.wait_open()
            began = trio.current_time()
            await trio.sleep_until(began + span_s / 2 + 1)
            assert alarms.active() == []
            hosts.silent.add(silent)
            # Two probes have no answer by then, and half a heartbeat later it is over.
            await trio.sleep(2.5 * heartbeat_s)
            assert {alarm.subject for alarm in alarms.active()} == {silent}
            assert AlarmKind.BANK_HEARTBEAT_LOST in {alarm.kind for alarm in alarms.active()}
            hosts.silent.clear()
            await links[silent].wait_open()
            await trio.sleep_until(began + span_s - 1)
            assert {link.state for link in links.values()} == {LinkState.READY}
            assert alarms.active() == []
            running.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    hosts.close()
    assert hosts.connections.pop(silent) > 1
    del hosts.probes[silent]
    assert hosts.connections == dict.fromkeys(names[:7] + names[8:], 1)
    assert hosts.probes == dict.fromkeys(names[:7] + names[8:], span_s / heartbeat_s - 1)
