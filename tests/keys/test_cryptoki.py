"""The binding itself: sizes, limits, and libraries that answer as none should."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fep.keys import cryptoki
from fep.keys.cryptoki import (
    ATTRIBUTE_BYTES_MAX,
    CKA_CLASS,
    LISTED_MAX,
    OBJECTS_MAX,
    Library,
    library_at,
)
from fep.keys.errors import BackendUnavailableError, CardDataError, CryptokiError
from tests.keys.softhsm import LIBRARY, Hsm

BUFFER_TOO_SMALL = 0x150
GENERAL_ERROR = 0x05


def library(**functions: Callable[..., int]) -> Library:
    """Return one with these functions in place of a maker's."""
    made = Library("made up")
    made._functions.update(functions)
    return made


def listing(*sizes: int) -> Callable[..., int]:
    """Return a list of slots that has another size each time it is asked for it."""
    left = list(sizes)

    def answer(_present: int, place: Any, count: Any) -> int:
        size = left[0] if len(left) == 1 else left.pop(0)
        asked, count._obj.value = count._obj.value, size
        if place is None:
            return 0
        if size > asked:
            return BUFFER_TOO_SMALL
        for number in range(size):
            place[number] = number
        return 0

    return answer


def test_the_structures_have_the_sizes_of_the_header(tmp_path: Path) -> None:
    # Written out here a second time, in C, from section 3 of the specification.
    source = tmp_path / "sizes.c"
    source.write_text(
        """
        #include <stdio.h>
        typedef unsigned long ulong; typedef unsigned char uchar;
        typedef struct { uchar major, minor; } version;
        struct slot { uchar d[64], m[32]; ulong flags; version h, f; };
        struct token { uchar l[32], m[32], model[16], serial[16]; ulong flags,
            a, b, c, d, e, f, g, h, i, j; version hw, fw; uchar time[16]; };
        struct args { void *a, *b, *c, *d; ulong flags; void *r; };
        struct attribute { ulong type; void *value; ulong size; };
        struct mechanism { ulong m; void *p; ulong n; };
        struct info { ulong a, b, c; };
        int main(void) { printf("%zu %zu %zu %zu %zu %zu", sizeof(struct slot),
            sizeof(struct token), sizeof(struct args), sizeof(struct attribute),
            sizeof(struct mechanism), sizeof(struct info)); return 0; }
        """
    )
    program = tmp_path / "sizes"
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True)
    told = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    structures = (
        cryptoki._SlotInfo,
        cryptoki._TokenInfo,
        cryptoki._InitializeArgs,
        cryptoki._Attribute,
        cryptoki._Mechanism,
        cryptoki._MechanismInfo,
    )
    assert [int(size) for size in told.split()] == [ctypes.sizeof(one) for one in structures]


def test_a_list_that_grows_or_shrinks_in_between_is_read_again() -> None:
    assert library(GetSlotList=listing(3)).slot_ids() == [0, 1, 2]
    assert library(GetSlotList=listing(0)).slot_ids() == []
    assert library(GetSlotList=listing(1, 3, 3, 3)).slot_ids() == [0, 1, 2]
    assert library(GetSlotList=listing(3, 1, 1)).slot_ids() == [0]


def test_a_list_without_end_is_refused() -> None:
    for sizes in ([LISTED_MAX + 1], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]):
        with pytest.raises(CardDataError, match="GetSlotList"):
            library(GetSlotList=listing(*sizes)).slot_ids()
    broken = library(GetSlotList=lambda *_: GENERAL_ERROR)
    with pytest.raises(CryptokiError, match="CKR_GENERAL_ERROR"):
        broken.slot_ids()


@pytest.mark.parametrize("grown", [0, 3, 10, 2**63])
def test_of_an_attribute_no_more_is_read_than_was_asked_for(grown: int) -> None:
    def answer(_session: int, _object: int, place: Any, _count: int) -> int:
        asked = place._obj
        if asked.value is None:
            asked.size = 3
        else:
            ctypes.memmove(asked.value, b"abc", 3)
            asked.size = grown
        return 0

    assert library(GetAttributeValue=answer).attribute(1, 2, 3) == b"abc"[:grown]


def test_an_attribute_may_be_absent_empty_or_too_long() -> None:
    def answering(size: int, result: int) -> Library:
        def answer(_session: int, _object: int, place: Any, _count: int) -> int:
            place._obj.size = size
            return result

        return library(GetAttributeValue=answer)

    assert answering(0, 0).attribute(1, 2, 3) == b""
    for result in (0x11, 0x12):
        assert answering(cryptoki._UNAVAILABLE, result).attribute(1, 2, 3) is None
    assert answering(cryptoki._UNAVAILABLE, 0).attribute(1, 2, 3) is None
    with pytest.raises(CardDataError, match="more than"):
        answering(ATTRIBUTE_BYTES_MAX + 1, 0).attribute(1, 2, 3)
    with pytest.raises(CryptokiError):
        answering(1, GENERAL_ERROR).attribute(1, 2, 3)


def test_a_search_ends() -> None:
    ended: list[int] = []

    def end(session: int) -> int:
        ended.append(session)
        return 0

    def find(_session: int, place: Any, room: int, count: Any) -> int:
        place[0] = 7
        count._obj.value = room + 5
        return 0

    endless = library(
        FindObjectsInit=lambda *_: 0,
        FindObjects=find,
        FindObjectsFinal=end,
    )
    assert len(endless.find(9, {CKA_CLASS: 1})) == OBJECTS_MAX
    assert ended == [9]
    endless._functions["FindObjects"] = lambda *_: GENERAL_ERROR
    with pytest.raises(CryptokiError):
        endless.find(9, {CKA_CLASS: 1})
    assert ended == [9, 9]


def test_a_library_ends_with_its_last_user(hsm: Hsm) -> None:
    loaded = library_at(LIBRARY)
    assert library_at(LIBRARY) is loaded
    loaded.acquire()
    loaded.acquire()
    loaded.release()
    slots = loaded.slot_ids()
    hsm.make_empty("later")
    # SoftHSM looks for tokens at its start only.
    assert loaded.slot_ids() == slots
    loaded.release()
    with pytest.raises(CryptokiError, match="CKR_CRYPTOKI_NOT_INITIALIZED"):
        loaded.slot_ids()
    loaded.acquire()
    assert len(loaded.slot_ids()) == 2
    loaded.release()


def test_a_library_that_somebody_else_started_is_left_running(hsm: Hsm) -> None:
    own, other = Library(str(LIBRARY)), library_at(LIBRARY)
    other.acquire()
    own.acquire()
    own.release()
    assert other.slot_ids()
    other.release()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("unsigned long C_GetFunctionList(void **l) { *l = 0; return 0; }", "no list"),
        ("unsigned long C_GetFunctionList(void **l) { (void)l; return 5; }", "CKR_GENERAL_ERROR"),
        (
            "static void *f[70]; unsigned long C_GetFunctionList(void **l) { *l = f; return 0; }",
            "has no C_Initialize",
        ),
        ("int x;", "C_GetFunctionList"),
    ],
)
def test_a_file_that_is_no_library_of_ours_is_told(tmp_path: Path, code: str, says: str) -> None:
    source, made = tmp_path / "no.c", tmp_path / "no.so"
    source.write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    with pytest.raises((BackendUnavailableError, CryptokiError), match=says):
        library_at(made).acquire()
    # The next try fails likewise, and not for another reason.
    with pytest.raises((BackendUnavailableError, CryptokiError), match=says):
        library_at(made).acquire()
