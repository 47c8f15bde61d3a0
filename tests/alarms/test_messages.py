"""The words of a message: whole, in both languages, within what a receiver takes."""

from __future__ import annotations

import datetime as dt
import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fep.alarms.config import ChannelKind, Language
from fep.alarms.messages import (
    TEXT_BYTES_MAX,
    headline,
    mail_of,
    message_of,
    one_line,
    post_of,
    refusal,
    syslog_lines,
    text_of,
    trial_message,
)
from fep.alarms.outgoing import Notice, What
from fep.alarms.state import MEANINGS, AlarmKind

NOW = dt.datetime(2026, 3, 2, 1, 0, tzinfo=dt.UTC)
LONG = "\U00020000"
"""A character of four bytes."""

NOTICES = st.lists(
    st.builds(
        Notice,
        id=st.text("0123456789abcdef", min_size=12, max_size=12),
        channel=st.just("duty"),
        alarm_id=st.integers(1, 60).map(str),
        what=st.sampled_from(What),
        kind=st.sampled_from(AlarmKind),
        subject=st.text(max_size=40) | st.just(LONG * 200),
        cause=st.text(max_size=80) | st.just(LONG * 400),
        count=st.integers(1, 10**9),
        raised_at=st.just(NOW),
        noted_at=st.just(NOW),
        noted_s=st.floats(0, 1e6),
    ),
    min_size=1,
    max_size=80,
)


@given(NOTICES, st.sampled_from(["zh", "en"]), st.sampled_from(ChannelKind))
def test_any_notices_make_a_message_that_the_receiver_takes(
    notices: list[Notice], language: Language, kind: ChannelKind
) -> None:
    message = message_of(notices, "FEP-01", "duty", language, NOW)
    most = TEXT_BYTES_MAX[kind]
    text = text_of(message, most)
    assert len(text.encode()) <= most
    assert text.startswith(headline(message))
    assert sorted(one for entry in message.entries for one in entry.ids) == sorted(
        one.id for one in notices
    )
    told = text.count("\n●") + text.count("\n✔")
    assert told == len(message.entries) or str(len(message.entries) - told) in text
    if kind in {ChannelKind.DINGTALK, ChannelKind.FEISHU, ChannelKind.WECOM, ChannelKind.WEBHOOK}:
        post = post_of(message, kind, "https://a.example/x", "secret")
        assert json.loads(post.body)
        if kind is not ChannelKind.WEBHOOK:
            assert len(post.body) < 20_000
    lines = syslog_lines(message, 3, 1)
    assert len(lines) == len(message.entries)
    for line in lines:
        assert len(line) <= TEXT_BYTES_MAX[ChannelKind.SYSLOG]
        assert b"\n" not in line
        line.decode()
    mail_of(message, "a@b.c", ["d@e.f"]).as_bytes()


@pytest.mark.parametrize("language", ["zh", "en"])
def test_even_the_longest_alarm_is_told_whole_by_the_tightest_robot(language: Language) -> None:
    long = max(
        MEANINGS, key=lambda kind: len(MEANINGS[kind].action_zh) + len(MEANINGS[kind].action)
    )
    one = Notice("n1", "duty", "a1", What.RAISED, long, "名" * 100, "因" * 300, 10**6, NOW, NOW)
    message = message_of(
        [one, attrs.evolve(one, id="n2", alarm_id="a2")], "机" * 64, "d", language, NOW
    )
    text = text_of(message, TEXT_BYTES_MAX[ChannelKind.WECOM])
    assert text.count("●") == 1
    assert "因" * 300 in text


def test_of_one_alarm_the_newest_is_told() -> None:
    one = Notice("n1", "duty", "a1", What.RAISED, AlarmKind.LINK_DOWN, "p", "c", 1, NOW, NOW)
    over = attrs.evolve(one, id="n2", what=What.CLEARED)
    (entry,) = message_of([one, over], "F", "duty", "zh", NOW).entries
    assert (entry.notice.what, entry.ids) == (What.CLEARED, ("n1", "n2"))
    again = message_of([one, over], "F", "duty", "zh", NOW).id
    assert again == message_of([one, over], "F", "duty", "en", NOW).id
    assert again != message_of([one], "F", "duty", "zh", NOW).id


def test_a_test_is_no_alarm() -> None:
    message = trial_message("FEP-01", "duty", "zh", NOW, "t1")
    assert "测试" in text_of(message, 2048)
    (line,) = syslog_lines(message, 3, 7)
    assert line.startswith(b"<30>1 ")
    assert b" FEP-01 fep 7 TEST - " in line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\r\nb\tc\x00d\u202e", "a b c d"),
        ("账号6222000000001234被拒", "账号6222****1234被拒"),
        ("\ud800", ""),
    ],
)
def test_text_is_one_line_without_account_numbers(text: str, line: str) -> None:
    assert one_line(text, 100) == line


@given(st.sampled_from(ChannelKind), st.integers(100, 599), st.binary(max_size=200))
def test_any_answer_is_a_yes_or_a_no(kind: ChannelKind, status: int, body: bytes) -> None:
    why = refusal(kind, status, body)
    if not 200 <= status < 300:
        assert why.startswith("HTTP")
    elif kind is ChannelKind.WEBHOOK:
        assert why == ""


@pytest.mark.parametrize(
    ("kind", "body", "taken"),
    [
        (ChannelKind.DINGTALK, b'{"errcode":0,"errmsg":"ok"}', True),
        (ChannelKind.WECOM, b'{"errcode":45009,"errmsg":"api freq out of limit"}', False),
        (ChannelKind.FEISHU, b'{"code":0,"data":{},"msg":"success"}', True),
        (ChannelKind.FEISHU, b'{"StatusCode":0,"StatusMessage":"success","code":0}', True),
        (ChannelKind.FEISHU, b'{"StatusCode":0}', True),
        (ChannelKind.FEISHU, b'{"StatusCode":0,"code":19024,"msg":"Key Words Not Found"}', False),
        (ChannelKind.FEISHU, b'{"errcode":0}', False),
        (ChannelKind.DINGTALK, b'{"errcode":"0"}', False),
        (ChannelKind.DINGTALK, b"null", False),
    ],
)
def test_a_robot_s_yes_is_its_own_code(kind: ChannelKind, body: bytes, taken: bool) -> None:
    assert (refusal(kind, 200, body) == "") == taken
