"""A bank that takes files has folders in place of host and port, and no other bank has any."""

from __future__ import annotations

from pathlib import Path

import pytest

from fep.daemon.config import check
from tests.daemon.files import changed, loaded, marked, written

OPTIONS = 'options = { login_name = "FEP01", branch = "75" }'
OURS = 'options = { initiating_party = "江枫样例制造有限公司" }'
THEIR_CARD = 'card = { signing = { by = "slot" }, inquiry = { cool_down_s = 5 } }\n'
CARD = 'card = { transport = { protocol = "folder" } }\n'
FOLDER = 'folder = { out = "out", in = "in", archive = "/kept", poll_s = 3, kept_days = 5 }\n'


def text(tail: str) -> str:
    made = changed('adapter = "cmb_xml"', 'adapter = "iso20022"')
    made = changed(OPTIONS, OURS, made)
    made = changed(THEIR_CARD, "", made)
    return changed(_host_of(made), tail, made)


def _host_of(made: str) -> str:
    """Return the lines of the second bank's host and port."""
    begin = made.index("host = ", made.index('adapter = "iso20022"'))
    end = made.index("\n", made.index("port = ", begin)) + 1
    return made[begin:end]


def test_folders_begin_where_the_file_is(tmp_path: Path) -> None:
    bank = loaded(tmp_path, text(FOLDER + CARD)).banks[1]
    folders = bank.link.folders
    assert folders is not None
    assert (folders.out, folders.inbox) == (tmp_path / "out", tmp_path / "in")
    assert (folders.archive, folders.poll_s, folders.kept_days) == (Path("/kept"), 3.0, 5)
    assert bank.link.peer == str(tmp_path / "out")


def test_a_bank_that_takes_files_is_never_silent(tmp_path: Path) -> None:
    bank = loaded(tmp_path, text(FOLDER + CARD + "reply_timeout_s = 600\n")).banks[1]
    assert bank.link.reply_timeout_s == 600.0


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("‸" + FOLDER, "only of a bank whose card says"),
        ('‸folder = { out = "out", in = "in" }\n' + CARD, "is missing"),
        ('folder = { ‸out = 3, in = "in", archive = "a" }\n' + CARD, "text"),
        ('folder = { ‸ot = "out", out = "o", in = "in", archive = "a" }\n' + CARD, "unknown key"),
        ("‸tape = true\n" + FOLDER + CARD, "has no wire"),
        ('folder = { ‸out = "a", in = "a", archive = "b" }\n' + CARD, "side by side"),
        ('folder = { out = "a", in = "b", archive = "c", ‸poll_s = 0 }\n' + CARD, "must be"),
    ],
)
def test_what_is_wrong_with_folders_is_told_at_its_place(
    tmp_path: Path, tail: str, message: str
) -> None:
    faults = marked(tmp_path, text(tail))
    assert any(message in fault.message for fault in faults), faults


def test_a_bank_that_takes_files_must_have_folders(tmp_path: Path) -> None:
    made = text(CARD)
    made = changed('[[bank]]\nname = "cmb"', '‸[[bank]]\nname = "cmb"', made)
    [fault] = marked(tmp_path, made)
    assert fault.key.endswith("folder")
    assert fault.message == "is missing"


def test_a_bank_that_does_not_take_files_is_told(tmp_path: Path) -> None:
    made = changed('adapter = "cmb_xml"', 'adapter = "cmb_xml"\n' + FOLDER)
    made = changed(
        "card = { signing", "card = { transport = { protocol = 'folder' }, signing", made
    )
    faults = [one.message for one in check(written(tmp_path, made))]
    assert any("does not take files" in one for one in faults), faults
