"""The process that holds the virtual cards: ``python -m fep.sandbox.ukey.cards --dir D --slots N``.

Each slot of the reader driver listens on ``D/slots/NN.sock``; connecting there is putting a card
in, closing the line is pulling it out. A card whose line is lost because pcscd died stays plugged
in: it connects again as soon as the driver listens again.

``D/control.sock`` takes JSON, one object a line, and answers each with ``{"ok": true, ...}`` or
``{"ok": false, "error": "..."}``. Cards are numbered from 0, as slots are:

=============================================== ================================================
request                                         effect
=============================================== ================================================
``{"command": "insert", "card": 0, "slot": 0}`` puts it in (``slot`` defaults to its home)
``pull`` card                                   pulls it out, also in the middle of an APDU
``swap`` card, other                            exchanges them at once; or re-inserts the same
``slow`` card, seconds                          waits that long before GENERAL AUTHENTICATE
``die_on_ins`` card, ins (or null)              pulls itself instead of answering that, once
``mute`` card, enabled                          gives no ATR from its next power-up on
``block_pin`` card                              uses up the tries of the PIN
``set_guid`` card, guid (hex)                   re-writes the CHUID, as re-personalising does
``reset``                                       all cards as at the start
``list``                                        state of all cards
``certificate`` card, key (``"9C"``)            the stored certificate, DER in hex
``trace`` card                                  its last APDUs; secrets are left out
=============================================== ================================================

The process owns nothing outside D. It ends on SIGTERM, or when the lifeline (a pipe given by
number) closes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import attrs
import trio

from fep.domain.clock import SystemClock
from fep.domain.errors import FepError, RemoteProtocolError
from fep.sandbox.ukey.apdu import CHAINING, HEADER_BYTES, INS_WITH_SECRETS, Ins
from fep.sandbox.ukey.build import default_directory, prepare_directory
from fep.sandbox.ukey.personalise import Personality, guid_of, load_keys, personalise
from fep.sandbox.ukey.piv import ATR, KeyReference, PivCard

SLOTS_MAX: Final = 16
"""As many readers as pcscd before 2.5.0 takes."""
CARDS_MAX: Final = 64
CONTROL_LINE_BYTES_MAX: Final = 4096
TRACE_ENTRIES_MAX: Final = 256
RECONNECT_SECONDS: Final = 0.005
"""How often a card tries a slot whose driver is not listening (pcscd stopped or starting)."""
SLOW_SECONDS_MAX: Final = 3600.0

_RECEIVE_BYTES: Final = 65_536
_CONTROL_BACKLOG: Final = 16

# One-byte messages of the driver (see ifd_vslot.c); anything longer is an APDU.
_POWER_OFF: Final = b"\x00"
_POWER_ON: Final = b"\x01"
_RESET: Final = b"\x02"
_GET_ATR: Final = b"\x04"
_PUBLISHED: Final = b"\x05"

_LENGTH_BYTES: Final = 2
_INS_MAX: Final = 0xFF


class CardCommandError(FepError):
    """A control request cannot be done; the message says what would be right."""

    code = "UKEY_CARD_COMMAND"


@attrs.frozen
class TraceEntry:
    """One exchange on the line, hexadecimal; ``at`` is seconds of the monotonic clock."""

    at: float
    command: str
    response: str


def trace_entry(at: float, command: bytes, response: bytes) -> TraceEntry:
    """Return the exchange as kept: of a command that carries a secret, the header only."""
    is_secret = len(command) > 1 and command[1] in INS_WITH_SECRETS
    shown = command[:HEADER_BYTES] if is_secret else command
    return TraceEntry(at, shown.hex(), response.hex())


@attrs.define
class FrameBuffer:
    """Cuts the driver's byte stream into frames: 16-bit big-endian length, then that many bytes."""

    _data: bytearray = attrs.field(factory=bytearray)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that ``data`` completes."""
        self._data += data
        frames: list[bytes] = []
        while len(self._data) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._data[:_LENGTH_BYTES], "big")
            if len(self._data) < end:
                break
            frames.append(bytes(self._data[_LENGTH_BYTES:end]))
            del self._data[:end]
        return frames


def frame(payload: bytes) -> bytes:
    """Return the payload with its length in front."""
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


@attrs.define(eq=False)
class Ukey:
    """A key as a thing one can hold: the chip, the slot it sticks in, and how it misbehaves."""

    number: int
    home: int | None
    personality: Personality
    chip: PivCard
    slot: Slot | None = None
    slow_seconds: float = 0.0
    die_on_ins: int | None = None
    muted: bool = False
    recognised: bool = False
    """pcscd has read its ATR, or failed to, and shown its clients that it is there."""
    in_work: int | None = None
    """The instruction byte of the command that it is working on."""
    trace: deque[TraceEntry] = attrs.field(factory=lambda: deque(maxlen=TRACE_ENTRIES_MAX))

    def renew(self) -> None:
        """Become as at the start: new chip, same personality, no misbehaviour."""
        self.chip = self.personality.make_card()
        self.slow_seconds, self.die_on_ins, self.muted = 0.0, None, False
        self.trace.clear()

    def describe(self) -> dict[str, Any]:
        """Return the state for the ``list`` command."""
        return {
            "card": self.number,
            "common_name": self.personality.common_name,
            "guid": self.chip.guid.hex(),
            "home": self.home,
            "slot": None if self.slot is None else self.slot.number,
            "recognised": self.recognised,
            "muted": self.muted,
            "slow_seconds": self.slow_seconds,
            "pin_tries_left": self.chip.pin_tries_left,
            "in_work": self.in_work,
        }

    async def answer(self, message: bytes) -> bytes | None:
        """Return what to send for one message of the driver, None for nothing."""
        if message in (_POWER_OFF, _POWER_ON, _RESET):
            self.chip.power_off()
            return None
        if message == _PUBLISHED:
            self.recognised = True
            return None
        if message == _GET_ATR:
            return b"" if self.muted else ATR
        return await self._answer_apdu(message)

    async def _answer_apdu(self, apdu: bytes) -> bytes | None:
        ins = apdu[1] if len(apdu) > 1 else None
        if ins is not None and ins == self.die_on_ins and self.slot is not None:
            self.die_on_ins = None
            self.slot.take()
            return None
        self.in_work = ins
        try:
            return await self._work(ins, apdu)
        finally:
            self.in_work = None

    async def _work(self, ins: int | None, apdu: bytes) -> bytes:
        if ins == Ins.GENERAL_AUTHENTICATE and self.slow_seconds:
            await trio.sleep(self.slow_seconds)
        if ins in (Ins.GENERAL_AUTHENTICATE, Ins.GENERATE) and not apdu[0] & CHAINING:
            # The arithmetic runs beside the other cards: OpenSSL lets go of the GIL.
            response = await trio.to_thread.run_sync(self.chip.process, apdu)
        else:
            response = self.chip.process(apdu)
        self.trace.append(trace_entry(time.monotonic(), apdu, response))
        return response


@attrs.define(eq=False)
class Slot:
    """The card's side of one reader: who sticks in it, and the line to the driver."""

    number: int
    socket_path: Path
    ukey: Ukey | None = None
    _line: trio.SocketStream | None = None
    _session: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _filled: trio.Event = attrs.field(factory=trio.Event)

    def put(self, ukey: Ukey) -> None:
        """Put a card in. The line is open on return, unless no driver is listening yet."""
        self.ukey = ukey
        ukey.slot = self
        ukey.recognised = False
        self._line = self._try_connect()
        self._filled.set()

    def take(self) -> Ukey | None:
        """Pull the card out, whatever it is doing, and return it."""
        ukey, self.ukey = self.ukey, None
        if ukey is not None:
            ukey.slot = None
            ukey.recognised = False
        line, self._line = self._line, None
        if line is not None:
            _cut(line)
        self._session.cancel()
        return ukey

    async def run(self) -> None:
        """Serve whatever card is in; never returns."""
        while True:
            if self.ukey is None:
                self._filled = trio.Event()
                await self._filled.wait()
                continue
            with trio.CancelScope() as self._session:
                await self._serve(self.ukey)

    async def _serve(self, ukey: Ukey) -> None:
        """Answer the driver until the line ends; then the card is out, or pcscd is gone."""
        while self._line is None:
            await trio.sleep(RECONNECT_SECONDS)
            self._line = self._try_connect()
        line = self._line
        ukey.chip.power_off()
        frames = FrameBuffer()
        try:
            while data := await line.receive_some(_RECEIVE_BYTES):
                for message in frames.feed(data):
                    response = await ukey.answer(message)
                    if response is not None:
                        await line.send_all(frame(response))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # pulled out, or pcscd ended while we wrote
        finally:
            _cut(line)
            if self._line is line:
                self._line = None
                ukey.recognised = False

    def _try_connect(self) -> trio.SocketStream | None:
        """Return a line to the driver, None if it does not listen or its queue is full.

        Not trio's ``connect``: for a Unix socket it would take a full queue for a connection.
        """
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        line.settimeout(0)  # do not block
        try:
            line.connect(str(self.socket_path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            line.close()
            return None
        return trio.SocketStream(trio.socket.from_stdlib_socket(line))


def _cut(line: trio.SocketStream) -> None:
    """Close the line at once; a task waiting on it gets ``ClosedResourceError``."""
    with contextlib.suppress(OSError):  # already shut by the other side
        line.socket.shutdown(socket.SHUT_RDWR)
    line.socket.close()


class CardRack:
    """All slots and cards, and the commands that move them."""

    def __init__(self, slots: Iterable[Slot], ukeys: Iterable[Ukey], *, inserted: bool) -> None:
        self.slots: Final = list(slots)
        self.ukeys: Final = list(ukeys)
        self._inserted: Final = inserted
        self._commands: Final[Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
            "insert": self._insert,
            "pull": self._pull,
            "swap": self._swap,
            "slow": self._slow,
            "die_on_ins": self._die_on_ins,
            "mute": self._mute,
            "block_pin": self._block_pin,
            "set_guid": self._set_guid,
            "reset": lambda _: self.reset(),
            "list": lambda _: {"cards": [ukey.describe() for ukey in self.ukeys]},
            "certificate": self._certificate,
            "trace": self._trace,
        }

    def execute(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one control request and return the members of its answer.

        Raises:
            CardCommandError: it cannot be done, or a member is missing or wrong.
        """
        command = self._commands.get(str(request.get("command")))
        if command is None:
            msg = f"command is one of {', '.join(self._commands)}"
            raise CardCommandError(msg)
        return command(request)

    def reset(self) -> dict[str, Any]:
        """Renew all cards and bring each back to where it was at the start."""
        for slot in self.slots:
            slot.take()
        for ukey in self.ukeys:
            ukey.renew()
            if self._inserted and ukey.home is not None:
                self.slots[ukey.home].put(ukey)
        return {}

    def _insert(self, request: Mapping[str, Any]) -> dict[str, Any]:
        ukey = self._ukey(request)
        number = ukey.home if request.get("slot") is None else request["slot"]
        if not isinstance(number, int) or not 0 <= number < len(self.slots):
            msg = f"slot is a number from 0 to {len(self.slots) - 1}"
            raise CardCommandError(msg)
        slot = self.slots[number]
        if ukey.slot is not None:
            msg = f"card {ukey.number} is in slot {ukey.slot.number}; pull it first"
            raise CardCommandError(msg)
        if slot.ukey is not None:
            msg = f"card {slot.ukey.number} is in slot {number}; pull it first"
            raise CardCommandError(msg)
        slot.put(ukey)
        return {}

    def _pull(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._slot_with(request).take()
        return {}

    def _swap(self, request: Mapping[str, Any]) -> dict[str, Any]:
        slot = self._slot_with(request)
        other = self._ukey(request, "other")
        other_slot = other.slot
        ukey = slot.take()
        if other_slot is not None and other_slot is not slot:
            other_slot.take()
            assert ukey is not None  # _slot_with found it there
            other_slot.put(ukey)
        slot.put(other)
        return {}

    def _slow(self, request: Mapping[str, Any]) -> dict[str, Any]:
        seconds = request.get("seconds")
        if not isinstance(seconds, int | float) or not 0 <= seconds <= SLOW_SECONDS_MAX:
            msg = f"seconds is a number from 0 to {SLOW_SECONDS_MAX:g}"
            raise CardCommandError(msg)
        self._ukey(request).slow_seconds = float(seconds)
        return {}

    def _die_on_ins(self, request: Mapping[str, Any]) -> dict[str, Any]:
        ins = request.get("ins")
        if ins is not None and not (isinstance(ins, int) and 0 <= ins <= _INS_MAX):
            msg = "ins is a number from 0 to 255, or null"
            raise CardCommandError(msg)
        self._ukey(request).die_on_ins = ins
        return {}

    def _mute(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._ukey(request).muted = request.get("enabled") is not False
        return {}

    def _block_pin(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._ukey(request).chip.block_pin()
        return {}

    def _set_guid(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            self._ukey(request).chip.set_guid(bytes.fromhex(str(request.get("guid"))))
        except ValueError as error:
            msg = f"guid is 32 hexadecimal digits: {error}"
            raise CardCommandError(msg) from error
        return {}

    def _certificate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reference = KeyReference(int(str(request.get("key")), 16))
        except ValueError as error:
            msg = "key is 9A, 9C, 9D or 9E"
            raise CardCommandError(msg) from error
        return {"der": self._ukey(request).chip.certificate(reference).hex()}

    def _trace(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"trace": [attrs.asdict(entry) for entry in self._ukey(request).trace]}

    def _ukey(self, request: Mapping[str, Any], member: str = "card") -> Ukey:
        number = request.get(member)
        if not isinstance(number, int) or not 0 <= number < len(self.ukeys):
            msg = f"{member} is a number from 0 to {len(self.ukeys) - 1}"
            raise CardCommandError(msg)
        return self.ukeys[number]

    def _slot_with(self, request: Mapping[str, Any]) -> Slot:
        ukey = self._ukey(request)
        if ukey.slot is None:
            msg = f"card {ukey.number} is in no slot; insert it first"
            raise CardCommandError(msg)
        return ukey.slot


async def serve_control(rack: CardRack, stream: trio.SocketStream) -> None:
    """Answer one control connection until it ends; its faults are never the server's."""
    async with stream:
        try:
            async for line in _lines(stream):
                await stream.send_all(json.dumps(respond(rack, line)).encode() + b"\n")
        except (trio.BrokenResourceError, RemoteProtocolError):
            return  # it left, or sent what is not lines


def respond(rack: CardRack, line: bytes) -> dict[str, Any]:
    """Return the answer to one line of the control protocol."""
    try:
        request: object = json.loads(line)
        if not isinstance(request, dict):
            return {"ok": False, "error": "a request is a JSON object"}
        return {"ok": True, **rack.execute(cast("dict[str, Any]", request))}
    except (ValueError, CardCommandError) as error:
        return {"ok": False, "error": str(error)}


async def _lines(stream: trio.SocketStream) -> AsyncIterator[bytes]:
    buffer = bytearray()
    while data := await stream.receive_some(CONTROL_LINE_BYTES_MAX):
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            yield line
        if len(buffer) > CONTROL_LINE_BYTES_MAX:
            msg = f"a control line has at most {CONTROL_LINE_BYTES_MAX} bytes"
            raise RemoteProtocolError(msg)


@attrs.frozen
class Options:
    """What the command line says."""

    directory: Path
    slots: int
    common_names: list[str]
    guids: list[bytes]
    key_cache: Path
    inserted: bool
    lifeline: int | None


def parse_options(arguments: list[str]) -> Options:
    """Return the options; ends the process with a usage message if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m fep.sandbox.ukey.cards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dir", required=True, type=Path, help="where slots/ and control.sock are")
    add("--slots", required=True, type=int, help=f"number of readers, 1 to {SLOTS_MAX}")
    add("--common-name", action="append", default=[], help="of each card; extra ones are spares")
    add("--guid", action="append", default=[], type=bytes.fromhex, help="of each card in turn")
    add("--key-cache", type=Path, default=default_directory() / "keys", help="kept key files")
    add("--empty", action="store_true", help="leave all cards out of their slots")
    add("--lifeline", type=int, help="number of a pipe; the process ends when it closes")
    given = parser.parse_args(arguments)
    if not 1 <= given.slots <= SLOTS_MAX:
        parser.error(f"--slots is from 1 to {SLOTS_MAX}")
    if len(given.common_name) > CARDS_MAX:
        parser.error(f"at most {CARDS_MAX} cards")
    names = [*given.common_name, *default_names(given.slots)[len(given.common_name) :]]
    return Options(
        given.dir,
        given.slots,
        names,
        given.guid,
        given.key_cache,
        not given.empty,
        given.lifeline,
    )


def default_names(count: int) -> list[str]:
    """Return the common names of cards that were given none."""
    return [f"UKEY-{number:02}" for number in range(count)]


async def make_rack(options: Options) -> CardRack:
    """Return the slots, and the cards, personalised side by side."""
    prepare_directory(options.key_cache)
    personalities: dict[int, Personality] = {}

    def make(number: int) -> None:
        name = options.common_names[number]
        guid = options.guids[number] if number < len(options.guids) else guid_of(name)
        keys = load_keys(options.key_cache, f"card-{number:02}")
        personalities[number] = personalise(name, guid, keys, SystemClock().now())

    limiter = trio.CapacityLimiter(os.cpu_count() or 1)
    numbers = range(len(options.common_names))
    async with trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(lambda n: trio.to_thread.run_sync(make, n, limiter=limiter), number)
    slots = [
        Slot(number, options.directory / "slots" / f"{number:02}.sock")
        for number in range(options.slots)
    ]
    ukeys = [
        Ukey(
            number,
            number if number < options.slots else None,
            personalities[number],
            personalities[number].make_card(),
        )
        for number in numbers
    ]
    return CardRack(slots, ukeys, inserted=options.inserted)


async def run_cards(
    options: Options, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Hold the cards until SIGTERM or the end of the lifeline.

    Started when the cards are personalised; from then on the control socket answers.
    """
    rack = await make_rack(options)
    rack.reset()
    control = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = options.directory / "control.sock"
    path.unlink(missing_ok=True)
    await control.bind(str(path))
    control.listen(_CONTROL_BACKLOG)
    async with trio.open_nursery() as nursery:
        for slot in rack.slots:
            nursery.start_soon(slot.run)
        nursery.start_soon(
            trio.serve_listeners,
            partial(serve_control, rack),
            [trio.SocketListener(control)],
        )
        if options.lifeline is not None:
            nursery.start_soon(_watch_lifeline, options.lifeline, nursery.cancel_scope)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            await anext(signals)
            nursery.cancel_scope.cancel()
    path.unlink(missing_ok=True)


async def _watch_lifeline(pipe: int, scope: trio.CancelScope) -> None:
    await trio.lowlevel.wait_readable(pipe)  # nobody writes to it: readable means closed
    scope.cancel()


if __name__ == "__main__":
    trio.run(run_cards, parse_options(sys.argv[1:]))
