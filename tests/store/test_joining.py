"""Each thing is in one group from when it is put, and a closed group takes no more."""

from __future__ import annotations

import pytest

from fep.store.joining import Joining

pytestmark = pytest.mark.req("FEP-23")


def test_what_is_put_until_the_turn_is_one_group() -> None:
    joining = Joining[str]()
    first = joining.join("a")
    assert first == ["a"]
    assert joining.join("b") is None
    joining.close(first)
    second = joining.join("c")
    assert second == ["c"]
    joining.close(first)
    assert joining.join("d") is None, "what is closed twice closes no other"
    assert (first, second) == (["a", "b"], ["c", "d"])


class Guarded(Joining[str]):
    """Whose open group is looked at and set under the lock alone."""

    def __init__(self) -> None:
        self.looks = 0
        self.group: list[str] | None = None
        super().__init__()

    @property
    def _open(self) -> list[str] | None:
        assert self._lock.locked(), "the other thread may come between"
        self.looks += 1
        return self.group

    @_open.setter
    def _open(self, group: list[str] | None) -> None:
        assert self._lock.locked() or group is None is self.group
        self.group = group


def test_neither_thread_comes_between_the_look_and_the_step_of_the_other_one() -> None:
    joining = Guarded()
    first = joining.join("a")
    assert first is not None
    joining.join("b")
    joining.close(first)
    assert joining.looks == 5, "each step looks"
