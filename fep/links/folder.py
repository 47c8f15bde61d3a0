"""The link of a bank that takes and gives files: nothing is connected, and nobody answers.

A request with a file is done when the file stands where the bank fetches it; that says nothing of
the bank, so the payment is open until a file of the bank's tells of it. A question is answered from
what came so far. What came is read as it comes, and handed on unasked as evidence.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog
import trio

from fep.adapters.api import BankCodec, Reply
from fep.adapters.files import (
    FOUND,
    NONE,
    TOLD,
    WRITTEN,
    FileCodec,
    Parcel,
    parcel_bytes,
    read_parcel,
)
from fep.alarms.state import AlarmKind
from fep.domain.clock import Clock, to_text
from fep.domain.errors import (
    LinkLostError,
    LocalProtocolError,
    NothingSentError,
    RemoteProtocolError,
)
from fep.domain.ids import Sequence
from fep.links.config import LinkConfig
from fep.links.drop import Arrived, Drop, NotPutError, UnsureError
from fep.links.mux import UnmatchedReply
from fep.links.service import AlarmBell, Connect, Link, connect_tcp
from fep.links.state import LinkEvent

log = structlog.get_logger()

PUTTING_MAX: Final = 4
"""Files written side by side."""
FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of one that came."""
FAILED: Final = "FAILED"
"""Code of an answer that could not be made; it is on no card."""
T = TypeVar("T")


class FolderLink(Link):
    """A bank's folders as the rest of the daemon sees them; ``run_link`` moves it.

    READY means that the folders can be used. Arguments as of ``Link``; ``connect`` has no meaning.
    """

    def __init__(
        self,
        config: LinkConfig,
        codec: BankCodec,
        sequence: Sequence,
        clock: Clock,
        alarms: AlarmBell,
        unmatched: trio.MemorySendChannel[UnmatchedReply],
        rng: random.Random,
        connect: Connect = connect_tcp,
    ) -> None:
        super().__init__(config, codec, sequence, clock, alarms, unmatched, rng, connect)
        assert config.folders is not None, "a bank that takes files has folders"
        assert isinstance(codec, FileCodec), "its codec reads files"
        self._folders = config.folders
        self._drop = Drop(config.folders, codec.contents, clock, FILE_BYTES_MAX)
        self._putting = trio.CapacityLimiter(PUTTING_MAX)
        # The folders' memory is one; whoever works on it works alone.
        self._reading = trio.CapacityLimiter(1)
        self._busy = 0
        self._is_waiting_long = False

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._busy

    async def exchange(
        self, frame: bytes, correlation: str, may_begin: Callable[[], bool] | None = None
    ) -> Reply:
        """Put a file there, or answer a question; see ``Link.exchange``.

        The first byte is the rename that lets the bank see the file: what fails before it was not
        sent. ``may_begin`` is asked just before it.
        """
        if not self.is_open:
            msg = f"the link to {self.config.bank} takes no requests: {self.state}"
            raise NothingSentError(msg)
        try:
            parcel = read_parcel(frame)
        except RemoteProtocolError as error:
            msg = f"a frame that is no parcel was to be sent: {error}"
            raise LocalProtocolError(msg) from error
        if parcel.correlation != correlation or len(parcel.documents) > 1:
            msg = "a parcel for the folder has its request's number and one file at most"
            raise LocalProtocolError(msg)
        self._traffic.requests += 1
        self._busy += 1
        try:
            if parcel.documents:
                return self._read(await self._put(parcel, may_begin))
            return await self._look_up(parcel)
        finally:
            self._busy -= 1
            self._pulse()

    # -- out ----------------------------------------------------------------------------------

    async def _put(self, parcel: Parcel, may_begin: Callable[[], bool] | None) -> Parcel:
        [name], [document] = parcel.names, parcel.documents
        deadline = trio.current_effective_deadline()
        if deadline <= trio.current_time():
            msg = "the deadline passed before the file was written"
            raise NothingSentError(msg)
        began: list[bool] = []
        # Shielded, so that who is cancelled before the rename learns that nothing was sent.
        with trio.CancelScope(shield=True, deadline=deadline):
            try:
                staged = await trio.to_thread.run_sync(
                    self._drop.stage,
                    name,
                    document,
                    abandon_on_cancel=True,
                    limiter=self._putting,
                )
                # Not abandoned: what may be seen later than it is told would be worse.
                await trio.to_thread.run_sync(
                    partial(self._publish, staged, may_begin, began), limiter=self._putting
                )
            except NotPutError as error:
                raise NothingSentError(str(error)) from error
            except UnsureError as error:
                raise LinkLostError(str(error)) from error
        if not began:
            msg = "the deadline passed before the file was there"
            raise NothingSentError(msg)
        log.debug("link.file_put", file=name, size=len(document))
        return Parcel(parcel.trade, parcel.correlation, parcel.reference, WRITTEN, at=parcel.at)

    def _publish(
        self, staged: Path, may_begin: Callable[[], bool] | None, began: list[bool]
    ) -> None:
        """Ask whether it may begin, and then at once do it; in a thread."""
        if not trio.from_thread.run_sync(self._may_publish, may_begin):
            msg = "it was not permitted any more to begin"
            raise NotPutError(msg)
        began.append(True)
        self._drop.publish(staged)

    def _may_publish(self, may_begin: Callable[[], bool] | None) -> bool:
        return self.is_open and (may_begin is None or may_begin())

    # -- questions ----------------------------------------------------------------------------

    async def _look_up(self, parcel: Parcel) -> Reply:
        try:
            return self._read(await self._found(parcel))
        except (OSError, RemoteProtocolError) as error:
            said = f"what came can't be looked through: {error}"
            number, reference = parcel.correlation, parcel.reference
            return self._read(Parcel(parcel.trade, number, reference, FAILED, said[:200]))

    async def _found(self, parcel: Parcel) -> Parcel:
        limit = FILE_BYTES_MAX
        found = await trio.to_thread.run_sync(
            self._drop.find,
            parcel.marks,
            parcel.newest,
            limit,
            abandon_on_cancel=True,
            limiter=self._reading,
        )
        return Parcel(
            trade=parcel.trade,
            correlation=parcel.correlation,
            reference=parcel.reference,
            code=FOUND if found else NONE,
            at=parcel.at,
            names=tuple(name for name, _ in found),
            documents=tuple(document for _, document in found),
        )

    def _read(self, parcel: Parcel) -> Reply:
        """Return the codec's reading of an answer that is made here."""
        [reply] = self._codec.framer().receive_data(parcel_bytes(parcel))
        return reply

    # -- in -----------------------------------------------------------------------------------

    async def _hold_connection(self) -> bool:
        """Open the folders and look into the inbox until that fails; it never rests."""
        try:
            await self._in_thread(self._drop.open)
        except OSError as error:
            self.last_failure = f"folder: {error}"
            return False
        self._step(LinkEvent.CONNECTED)
        self.failures = 0
        self._backoff.reset()
        self._step(LinkEvent.LOGGED_ON)
        self._traffic.log_ons += 1
        log.info("link.logged_on")
        self._alarms.clear(AlarmKind.LINK_DOWN, self.config.bank)
        try:
            while True:
                await self._look()
                await trio.sleep(self._folders.poll_s)
        except OSError as error:
            self.last_failure = f"folder: {error}"
        log.info("link.disconnected", reason=self.last_failure, unknown=0, unsent=0)
        return False

    async def _look(self) -> None:
        """Take in what came, hand on what it says, and see whether ours is fetched."""
        while arrived := await self._in_thread(partial(self._drop.scan, trio.current_time())):
            for one in arrived:
                await self._take_in(one)
        waited_s = await self._in_thread(partial(self._drop.oldest_wait_s, trio.current_time()))
        is_long = waited_s > self._folders.fetched_within_s
        if is_long and not self._is_waiting_long:
            cause = f"a file waits in the out folder for {waited_s:.0f} s: nobody fetches it"
            log.warning("link.heartbeat_lost", reason=cause, in_flight=self._busy)
            self._alarms.raise_alarm(AlarmKind.BANK_HEARTBEAT_LOST, self.config.bank, cause)
        elif not is_long:
            self._alarms.clear(AlarmKind.BANK_HEARTBEAT_LOST, self.config.bank)
        self._is_waiting_long = is_long

    async def _take_in(self, one: Arrived) -> None:
        if one.reason:
            log.warning("link.file_left", file=one.name, reason=one.reason)
            kept = "" if one.kept is None else f"; it is kept as {one.kept.name}"
            cause = f"the bank's file {one.name[:60]}: {one.reason}{kept}"
            self._alarms.raise_alarm(AlarmKind.UNMATCHED_REPLY, self.config.bank, cause)
        if one.again:
            log.info("link.file_again", file=one.name)
        if one.again or not one.contents.marks:
            return
        self._traffic.note_reply()
        log.info("link.file_taken", file=one.name, payments=len(one.contents.told))
        for mark, reference in one.contents.told.items():
            if self._traffic.is_full:
                await self._traffic.wait_room()
            await self._tell(mark, reference)

    async def _tell(self, mark: str, reference: str) -> None:
        """Hand on all that came of a payment."""
        asked = Parcel(TOLD, "", reference, at=to_text(self._clock.now()), marks=(mark,))
        try:
            self._traffic.put_told(self._read(await self._found(asked)))
        except RemoteProtocolError as error:
            # Its inquiry will say the same; the file is in the archive.
            log.warning("link.file_left", file=mark, reason=str(error))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._reading)

    # -- ending -------------------------------------------------------------------------------

    def _begin_drain(self, reason: str) -> None:
        self._step(LinkEvent.DRAIN_BEGAN)
        log.info("link.draining", reason=reason, in_flight=self._busy)

    async def _wait_drained(self) -> None:
        with trio.move_on_after(self.config.reply_timeout_s):
            await self._until(lambda: not self._busy)
