"""Correlation, and the certainty of what has left."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fep.domain.errors import LocalProtocolError
from fep.links.mux import BUFFERS_MAX, IN_FLIGHT_MAX, LATE_MAX, Match, Mux, Request


def _sent(mux: Mux[str], correlation: str, frame: bytes = b"frame") -> Request[str]:
    request = mux.register(correlation, frame, correlation)
    mux.wrote(len(frame))
    return request


def test_an_answer_ends_its_request_once() -> None:
    mux: Mux[str] = Mux()
    request = _sent(mux, "a")
    assert mux.answer("a") == (Match.ANSWER, request)
    assert mux.answer("a") == (Match.STRAY, None)
    assert mux.in_flight == 0


def test_a_correlation_in_flight_is_refused_and_the_first_unharmed() -> None:
    mux: Mux[str] = Mux()
    first = _sent(mux, "a")
    with pytest.raises(LocalProtocolError, match="already in use"):
        mux.register("a", b"other", "second")
    assert mux.buffers() == []
    assert mux.answer("a") == (Match.ANSWER, first)


def test_a_correlation_whose_late_answer_may_come_is_refused() -> None:
    mux: Mux[str] = Mux()
    mux.abandon(_sent(mux, "a"))
    with pytest.raises(LocalProtocolError, match="already in use"):
        mux.register("a", b"other", "second")
    assert mux.answer("a") == (Match.LATE, None)
    _sent(mux, "a")


@pytest.mark.parametrize(("correlation", "frame"), [("", b"x"), ("a", b"")])
def test_an_empty_request_is_refused(correlation: str, frame: bytes) -> None:
    mux: Mux[str] = Mux()
    with pytest.raises(LocalProtocolError, match="at least one byte"):
        mux.register(correlation, frame, "")
    assert (mux.in_flight, mux.unwritten) == (0, 0)


def test_the_number_in_flight_is_bounded() -> None:
    mux: Mux[str] = Mux()
    for number in range(IN_FLIGHT_MAX):
        _sent(mux, str(number))
    with pytest.raises(LocalProtocolError, match="in flight"):
        mux.register("more", b"x", "")


def test_the_oldest_abandoned_are_forgotten_and_are_strays_then() -> None:
    mux: Mux[str] = Mux()
    for number in range(LATE_MAX + 1):
        mux.abandon(_sent(mux, str(number)))
    assert mux.answer("0") == (Match.STRAY, None)
    assert mux.answer("1") == (Match.LATE, None)


def test_a_late_answer_to_a_probe_is_told_apart() -> None:
    mux: Mux[str] = Mux()
    probe = mux.register("p", b"x", "", probe=True)
    assert (mux.in_flight, mux.callers) == (1, 0)
    mux.wrote(1)
    mux.abandon(probe)
    assert mux.answer("p") == (Match.LATE_PROBE, None)


def test_an_answer_before_the_last_byte_left_is_early_and_ends_nothing() -> None:
    mux: Mux[str] = Mux()
    mux.register("a", b"frame", "")
    for _ in range(4):
        assert mux.answer("a") == (Match.EARLY, None)
        mux.wrote(1)
    assert mux.in_flight == 1


def test_one_write_joins_a_bounded_number_of_frames() -> None:
    mux: Mux[str] = Mux()
    for number in range(BUFFERS_MAX + 5):
        mux.register(str(number), b"x", "")
    assert len(mux.buffers()) == BUFFERS_MAX


def test_withdraw_takes_only_what_has_not_begun() -> None:
    mux: Mux[str] = Mux()
    begun = mux.register("a", b"frame", "")
    mux.wrote(2)
    unsent = mux.register("b", b"frame", "")
    assert mux.withdraw() == [unsent]
    assert [bytes(buffer) for buffer in mux.buffers()] == [b"ame"]
    assert mux.close() == [begun]


def test_what_may_not_begin_any_more_is_withdrawn_and_what_has_begun_goes_on() -> None:
    may = True
    mux: Mux[str] = Mux()
    begun = mux.register("a", b"frame", "", may_begin=lambda: may)
    mux.wrote(2)
    late = mux.register("b", b"frame", "", may_begin=lambda: may)
    free = mux.register("c", b"more", "")
    assert mux.withdraw_late() == []
    may = False
    assert mux.withdraw_late() == [late]
    assert [bytes(buffer) for buffer in mux.buffers()] == [b"ame", b"more"]
    assert mux.close() == [begun, free]


class MuxMachine(RuleBasedStateMachine):
    """Any interleaving, against a list of what the socket took."""

    def __init__(self) -> None:
        super().__init__()
        self.mux: Mux[int] = Mux()
        self.requests: dict[str, Request[int]] = {}
        self.ended: dict[str, str] = {}
        self.wire = bytearray()
        self.length_at_end: dict[str, int] = {}
        self.is_torn = False

    def live(self) -> list[str]:
        return [name for name in self.requests if name not in self.ended]

    def end(self, name: str, how: str) -> None:
        assert name not in self.ended, "a request ended twice"
        self.ended[name] = how
        self.length_at_end[name] = self.taken(name)

    def taken(self, name: str) -> int:
        return self.wire.count(self.requests[name].frame[:1])

    @precondition(lambda self: not self.is_torn and len(self.requests) < 100)
    @rule(size=st.integers(1, 9), probe=st.booleans())
    def register(self, size: int, probe: bool) -> None:
        number = len(self.requests)
        # A frame of one byte value of its own, so that the wire tells whose bytes it took.
        frame = bytes([number]) * size
        self.requests[str(number)] = self.mux.register(str(number), frame, number, probe=probe)

    @precondition(lambda self: not self.is_torn)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        joined = b"".join(self.mux.buffers())
        count = data.draw(st.integers(0, len(joined)))
        self.wire += joined[:count]
        self.mux.wrote(count)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        match, request = self.mux.answer(name)
        if match is Match.ANSWER:
            assert request is self.requests[name]
            assert self.taken(name) == len(request.frame)
            self.end(name, "answered")
        elif match is Match.EARLY:
            assert name not in self.ended
            assert self.taken(name) < len(self.requests[name].frame)
        elif match is Match.STRAY:
            assert self.ended[name] != "abandoned" or name in self.answered_late
        else:
            assert self.ended[name] == "abandoned"
            assert (match is Match.LATE_PROBE) == self.requests[name].probe
            self.answered_late.add(name)

    @property
    def answered_late(self) -> set[str]:
        return self.__dict__.setdefault("_answered_late", set())  # type: ignore[no-any-return]

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.live()))
        request = self.requests[name]
        self.mux.abandon(request)
        assert request.began == (self.taken(name) > 0)
        self.end(name, "abandoned" if request.began else "withdrawn")
        # The shell closes a connection whose frame was cut.
        self.is_torn = self.is_torn or (request.began and not request.complete)

    @rule()
    def withdraw(self) -> None:
        for request in self.mux.withdraw():
            assert self.taken(request.correlation) == 0
            self.end(request.correlation, "withdrawn")

    @rule()
    def stray(self) -> None:
        assert self.mux.answer("nobody") == (Match.STRAY, None)

    @invariant()
    def no_byte_leaves_after_the_end(self) -> None:
        for name, length in self.length_at_end.items():
            assert self.taken(name) == length

    @invariant()
    def frames_leave_whole_and_in_order(self) -> None:
        if self.is_torn:
            return
        numbers = list(self.wire)
        assert numbers == sorted(numbers)
        unfinished = [
            name for name in self.requests if 0 < self.taken(name) < len(self.requests[name].frame)
        ]
        assert len(unfinished) <= 1

    @invariant()
    def the_count_is_right(self) -> None:
        assert self.mux.in_flight == len(self.live())

    def teardown(self) -> None:
        for request in self.mux.close():
            assert request.began == (self.taken(request.correlation) > 0)
            self.end(request.correlation, "closed")
        assert set(self.ended) == set(self.requests), "a request never ended"
        assert (self.mux.in_flight, self.mux.unwritten) == (0, 0)


TestMux = MuxMachine.TestCase
TestMux.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
