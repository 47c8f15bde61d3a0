"""``fepctl``: the operators' command, a thin table of commands over the control protocol.

Every command is one call, its answer as a table or, with ``--json``, as one JSON line. Exit status:
0 done, 1 refused or not done, 2 wrong usage, 3 done but nobody could be told, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import attrs
import msgspec

from fep.client import (
    Address,
    BlockingClient,
    CallError,
    DisconnectedError,
    Key,
    parse_address,
    parse_keys,
)
from fep.control import output, show
from fep.domain.errors import FepError
from fep.domain.order import PRIORITY_MAX, Kind
from fep.domain.words import counted
from fep.tasks.state import FINAL, State

ADDRESS_DEFAULT: Final = "unix:/run/fep-control.sock"
ANSWER_SECONDS: Final = 30.0
PLAN_SECONDS: Final = 150.0
"""A plan asks every balance; the daemon itself gives up after two minutes."""
CONNECT_SECONDS_MAX: Final = 10.0
POLL_FIRST_SECONDS, POLL_SECONDS_MAX = 0.1, 2.0
LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX = 50, 500
INTERRUPTED: Final = 130

Value = dict[str, Any]


class NotDoneError(FepError):
    """The daemon answered, and what was asked for is not at its end."""

    code = "NOT_DONE"


class LocalFileError(FepError):
    """A file that this command was given can't be used."""

    code = "BAD_FILE"


@attrs.frozen
class Desk:
    """One run of fepctl: what was given, and the connection."""

    given: argparse.Namespace
    client: BlockingClient
    told: SimpleQueue[Value | str]
    """Events that are followed; a text is the end of the connection."""
    until: float = 0.0
    """Of the monotonic clock: so long a command waits for what it wants."""

    def ask(self, method: str, params: Value, wait_s: float) -> Value:
        """Call a method that may take longer than others."""
        answer: Value = self.client.call(method, params, deadline_s=self.given.timeout or wait_s)
        return answer

    def call(self, method: str, /, **params: object) -> Value:
        """Call a method; parameters that are None stay out."""
        sent = {name: value for name, value in params.items() if value is not None}
        return self.ask(method, sent, ANSWER_SECONDS)

    def answer(self, value: Value, draw: Callable[[Value], None]) -> int:
        """Print a result for a person, or as a line for a program; returns the exit status."""
        if self.given.json:
            print(_json(value))
        else:
            draw(value)
        return 0

    def say(self, value: Value, words: str) -> int:
        """Print a result that one line of words tells."""
        return self.answer(value, lambda _value: show.line(words))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


# -- the daemon -------------------------------------------------------------------------------


def _status(desk: Desk) -> int:
    return desk.answer(desk.call("status"), show.status)


def _ready(desk: Desk) -> int:
    waiting = _lacking(desk)
    while waiting and time.monotonic() < desk.until:
        time.sleep(POLL_FIRST_SECONDS)
        waiting = _lacking(desk)
    words = f"not ready 未就绪: {'; '.join(waiting)}" if waiting else "ready 就绪"
    desk.say({"ready": not waiting, "not_ready": waiting}, words)
    return int(bool(waiting))


def _lacking(desk: Desk) -> list[str]:
    """Return why not everything that is asked for is ready; empty when it is."""
    value = desk.call("status")
    found = ["the disk is full"] if value["store_full"] else []
    if value["held_since"] is not None:
        found.append("a backup was restored, and payments are held")
    if desk.given.bank is not None:
        return found + _lacking_for(desk, desk.given.bank)
    here = value.get("machine")
    elsewhere = {
        bank
        for bank, row in value["queue"]["banks"].items()
        if row.get("served_by") not in (None, "", here)
    }
    banks = value["queue"]["banks"].items()
    found += [f"bank {bank} is drained" for bank, row in banks if row["drained"]]
    links = {bank: state for bank, state in value["links"].items() if bank not in elsewhere}
    found += [f"link {bank} is {state}" for bank, state in links.items() if state != "ready"]
    found += [
        f"slot {slot} is {state}"
        for slot, state in value["slots"].items()
        if state not in ("ready", "busy")
    ]
    return found


def _lacking_for(desk: Desk, bank: str) -> list[str]:
    """Return why a bank takes no requests from here."""
    links = {link["bank"]: link for link in desk.call("link.list")["links"]}
    if bank not in links:
        return [f"there is no bank {bank!r} here"]
    link = links[bank]
    if link["drained"]:
        return [f"bank {bank} is drained"]
    if not link["is_open"]:
        no_key = " and its key is not ready" if link["state"] == "ready" else ""
        return [f"link {bank} is {link['state']}{no_key}"]
    return []


def _top(desk: Desk) -> int:
    if desk.given.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        msg = "fepctl top is for a terminal; programs ask fepctl status --json, or Prometheus"
        raise NotDoneError(msg)
    from fep.control.top import Top  # noqa: PLC0415

    Top(desk.client).run()
    return 0


def _slots(desk: Desk) -> int:
    return desk.answer(desk.call("slot.list"), show.slots)


def _unlock(desk: Desk) -> int:
    slot = desk.given.slot
    pin = _secret(f"PIN of {slot}: ")
    value = desk.call("slot.unlock", slot=slot, pin=pin)
    return desk.answer(value, lambda one: show.slots({"slots": [one]}))


def _secret(prompt: str) -> str:
    """Return what is typed unseen, or the first line of standard input."""
    if sys.stdin.isatty():
        import getpass  # noqa: PLC0415

        return getpass.getpass(prompt)
    return sys.stdin.readline().rstrip("\r\n")


def _links(desk: Desk) -> int:
    return desk.answer(desk.call("link.list"), show.links)


def _drain(desk: Desk) -> int:
    bank = desk.given.bank
    return desk.say(desk.call("link.drain", bank=bank), f"{bank}: drained, sends nothing 已暂停")


def _resume(desk: Desk) -> int:
    bank = desk.given.bank
    return desk.say(desk.call("link.resume", bank=bank), f"{bank}: resumed 已恢复")


def _restored(desk: Desk) -> int:
    return desk.answer(desk.call("restore.show"), show.restored)


def _release(desk: Desk) -> int:
    value = desk.call("restore.release", evidence=desk.given.evidence)
    count = counted(value["released"], "held payment")
    return desk.say(value, f"released 已放行: {count}")


def _alarms(desk: Desk) -> int:
    value = desk.call("alarm.list", all=desk.given.all, limit=LIST_LIMIT_MAX)
    return desk.answer(value, show.alarms)


def _ack(desk: Desk) -> int:
    value = desk.call("alarm.acknowledge", alarm_id=desk.given.alarm_id)
    return desk.answer(value, lambda one: show.alarms({"alarms": [one]}))


def _channels(desk: Desk) -> int:
    return desk.answer(desk.call("alarm.channels"), show.channels)


def _channel_test(desk: Desk) -> int:
    value = desk.call("alarm.test", channel=desk.given.channel)
    how = "delivered 已送达" if value["delivered"] else f"not delivered 未送达: {value['told']}"
    desk.say(value, f"{value['channel']}: {how} ({value['seconds']} s)")
    return int(not value["delivered"])


def _user_list(desk: Desk) -> int:
    return desk.answer(desk.call("user.list"), show.users)


def _new_password(name: str) -> str:
    """Return a password; a person gives it twice.

    Raises:
        NotDoneError: the two are not the same.
    """
    password = _secret(f"new password of {name}: ")
    if sys.stdin.isatty() and _secret("the same again: ") != password:
        raise NotDoneError("the two passwords are not the same")
    return password


def _user_add(desk: Desk) -> int:
    name, role = desk.given.name, desk.given.role
    value = desk.call("user.add", name=name, role=role, password=_new_password(name))
    return desk.say(value, f"{name} can log in at the console as {role} 已新建用户")


def _user_passwd(desk: Desk) -> int:
    name = desk.given.name
    value = desk.call("user.passwd", name=name, password=_new_password(name))
    return desk.say(value, f"{name} has another password, and is logged out 已更改密码")


def _user_role(desk: Desk) -> int:
    name, role = desk.given.name, desk.given.role
    value = desk.call("user.change", name=name, role=role)
    return desk.say(value, f"{name} is {role}, and is logged out 已更改角色")


def _user_disable(desk: Desk) -> int:
    name = desk.given.name
    value = desk.call("user.change", name=name, disabled=True)
    return desk.say(value, f"{name} is disabled, and is logged out 已停用")


def _user_enable(desk: Desk) -> int:
    name = desk.given.name
    value = desk.call("user.change", name=name, disabled=False)
    return desk.say(value, f"{name} can log in again 已启用")


def _user_drop_totp(desk: Desk) -> int:
    name = desk.given.name
    value = desk.call("user.change", name=name, drop_totp=True)
    return desk.say(value, f"{name} is not asked for one-time codes any more 已取消动态口令")


def _user_log_out(desk: Desk) -> int:
    value = desk.call("user.log_out", name=desk.given.name)
    return desk.say(value, f"{value['name']}: {value['sessions']} sessions ended 已强制退出")


def _audit(desk: Desk) -> int:
    limit = desk.given.limit or LIST_LIMIT_DEFAULT
    who = desk.given.who
    value = desk.call("audit.list", who=who, limit=limit)
    return desk.answer(value, lambda one: show.acts(one, who))


def _config_show(desk: Desk) -> int:
    return desk.answer(desk.call("config.show"), show.configuration)


def _config_check(desk: Desk) -> int:
    value = desk.call("config.check")
    desk.say(value, "\n".join(value["faults"]) or "no faults 没有错误")
    return int(bool(value["faults"]))


def _config_apply(desk: Desk) -> int:
    return desk.answer(desk.call("config.apply"), show.changes)


def _config_versions(desk: Desk) -> int:
    limit = desk.given.limit or LIST_LIMIT_DEFAULT
    return desk.answer(desk.call("config.versions", limit=limit), show.versions)


def _config_version(desk: Desk) -> int:
    value = desk.call("config.version", version=desk.given.version)
    return desk.answer(value, lambda one: show.text(one["text"]))


def _config_diff(desk: Desk) -> int:
    value = desk.call("config.version", version=desk.given.version)
    return desk.answer(value, lambda one: show.text("\n".join([*one["difference"], ""]).lstrip()))


def _config_rollback(desk: Desk) -> int:
    given = desk.given
    value = desk.call("config.rollback", version=given.version, note=given.note)
    return desk.answer(value, show.changes)


def _config_confirm(desk: Desk) -> int:
    number = desk.given.version
    value = desk.call("config.confirm", version=number)
    return desk.say(value, f"version {number} stays in force 已确认保留")


def _call(desk: Desk) -> int:
    print(_json(desk.ask(desk.given.method, desk.given.params, PLAN_SECONDS)))
    return 0


def _events(desk: Desk) -> int:
    desk.call("events.follow", prefix=desk.given.prefix)
    try:
        while not isinstance(record := desk.told.get(), str):
            desk.answer(record, show.event)
            sys.stdout.flush()
            if output.is_lost():
                return 0
    except KeyboardInterrupt:
        return 0
    raise DisconnectedError(record)


# -- tasks ------------------------------------------------------------------------------------


def _tasks(desk: Desk) -> int:
    given = desk.given
    limit = given.limit or (LIST_LIMIT_MAX if given.all else LIST_LIMIT_DEFAULT)
    found: list[Value] = []
    cursor = None
    while True:
        page = desk.call(
            "task.list", state=given.state, bank=given.bank, limit=limit, cursor=cursor
        )
        found += page["tasks"]
        cursor = page.get("cursor")
        if cursor is None or not given.all:
            return desk.answer(page | {"tasks": found}, show.tasks)


def _task(desk: Desk) -> int:
    return desk.answer(desk.call("task.get", task_id=desk.given.task_id), show.task)


def _why(desk: Desk) -> int:
    return desk.answer(desk.call("task.why", task_id=desk.given.task_id), show.why)


def _submit(desk: Desk) -> int:
    given = desk.given
    value = desk.client.submit(
        given.task_id,
        given.bank,
        given.kind,
        {"kind": given.kind, "params": given.params},
        priority=given.priority,
        expires_s=given.expires,
        deadline_s=given.timeout or ANSWER_SECONDS,
    )
    if given.wait:
        if value["known"]:
            told = f"{given.task_id} was known before 已存在: nothing new is done, this is its end"
            print(show.clean(told), file=sys.stderr)
        return _await_end(desk)
    known = "was known before 已存在" if value["known"] else "is queued 已入队"
    return desk.say(value, f"{given.task_id} {known}: {value['state']}")


def _await_end(desk: Desk) -> int:
    value: Value = {}
    task_id = desk.given.task_id

    def waits_for() -> str:
        return str(desk.call("task.why", task_id=task_id).get("waits_for", ""))

    for _ in _polls(desk, f"task {task_id}", waits_for):
        value = desk.call("task.get", task_id=task_id)
        if value["state"] in FINAL:
            break
    desk.answer(value, show.task)
    return int(value["state"] != State.SUCCEEDED)


def _cancel(desk: Desk) -> int:
    task_id = desk.given.task_id
    value = desk.call("task.cancel", task_id=task_id)
    return desk.say(value, f"{task_id} is {value['state']}: nothing was sent 已取消")


def _resolve(desk: Desk) -> int:
    given = desk.given
    value = desk.call(
        "task.resolve", task_id=given.task_id, outcome=given.outcome, evidence=given.evidence
    )
    confirm = f"fepctl confirm {given.task_id} {given.outcome}"
    words = f"proposed 已提议 {given.outcome}; another person runs: {confirm}"
    return desk.say(value, words)


def _confirm(desk: Desk) -> int:
    seen = {} if desk.given.outcome is None else {"outcome": desk.given.outcome}
    value = desk.call("task.confirm", task_id=desk.given.task_id, **seen)
    return desk.say(value, f"{value['task_id']} is {value['state']} 已确认")


# -- pools ------------------------------------------------------------------------------------


def _pool_list(desk: Desk) -> int:
    return desk.answer(desk.call("pool.list"), show.pools)


def _pool_plan(desk: Desk) -> int:
    with show.progress("asking balances 查询余额"):
        value = desk.ask("pool.plan", {"pool": desk.given.pool}, PLAN_SECONDS)
    return _round_answer(desk, value)


def _pool_run(desk: Desk) -> int:
    value = desk.call("pool.run", pool=desk.given.pool)
    round_id = value["round_id"]
    if desk.given.no_wait:
        return desk.say(value, f"{show.round_line(value)}; see: fepctl pool round {round_id}")
    with show.progress(show.round_line(value)) as tell:
        for _ in _polls(desk, f"round {round_id}"):
            try:
                value = desk.call("pool.round", round_id=round_id)
            except DisconnectedError:
                # The round goes on over a restart of the daemon, and so does the client.
                value = desk.call("pool.round", round_id=round_id)
            tell(show.round_line(value))
            if value["state"] == "finished":
                break
    return _round_answer(desk, value)


def _pool_round(desk: Desk) -> int:
    return _round_answer(desk, desk.call("pool.round", round_id=desk.given.round_id))


def _round_answer(desk: Desk, value: Value) -> int:
    """Print a round; status 1 when it did not do for every account what the plan says."""
    desk.answer(value, show.round_)
    return int(bool(value["states"].keys() & {"failed", "returned"}))


def _polls(desk: Desk, what: str, waits_for: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Yield at growing intervals.

    Raises:
        NotDoneError: ``--timeout`` has passed.
    """
    started, pause = time.monotonic(), POLL_FIRST_SECONDS
    limit = desk.given.timeout
    while True:
        yield
        if limit is not None and time.monotonic() - started > limit:
            why = f" ({reason})" if (reason := waits_for()) else ""
            msg = f"{what} is not at its end after {limit:g} s{why}; it goes on in the daemon"
            raise NotDoneError(msg)
        time.sleep(pause)
        pause = min(pause * 1.5, POLL_SECONDS_MAX)


# -- arguments --------------------------------------------------------------------------------

Argument = tuple[tuple[str, ...], Mapping[str, Any]]


def _arg(*names: str, **options: Any) -> Argument:  # noqa: ANN401 - as add_argument takes them
    return names, options


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        msg = f"{text!r} is not a number of seconds above 0"
        raise argparse.ArgumentTypeError(msg)
    return value


def _priority(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= PRIORITY_MAX:
        msg = f"{text!r} is not a number from 0 to {PRIORITY_MAX}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _limit(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LIST_LIMIT_MAX:
        msg = f"{text!r} is not a number from 1 to {LIST_LIMIT_MAX}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _json_object(text: str) -> Value:
    data = sys.stdin.buffer.read() if text == "-" else text.encode()
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"not JSON: {error}"
        raise argparse.ArgumentTypeError(msg) from error
    if not isinstance(value, dict):
        msg = "not a JSON object {...}"
        raise argparse.ArgumentTypeError(msg)
    return value


_TASK: Final = _arg("task_id", metavar="ID", help="the task's id")
_POOL: Final = _arg("pool", metavar="POOL", help="the pool's name")
_BANK: Final = _arg("bank", metavar="BANK", help="the bank's name")
_USER: Final = _arg("name", metavar="NAME", help="the user's name")
_VERSION: Final = _arg("version", type=int, metavar="NUMBER", help="as config versions has it")
_ROLE: Final = _arg("role", choices=["viewer", "operator", "admin"], help="what the user may do")
_JSON_HELP: Final = "a JSON object, or - to read it from standard input"


@attrs.frozen
class Command:
    """One row: what runs it, one line of help, its arguments."""

    run: Callable[[Desk], int]
    help: str
    arguments: Sequence[Argument] = ()


COMMANDS: Final[dict[str, Command]] = {
    "status": Command(_status, "the daemon at a glance 概览"),
    "ready": Command(
        _ready,
        "exit 0 when all links and slots are ready, else 1 and why 就绪检查",
        [
            _arg("--bank", metavar="BANK", help="whether this bank takes requests, no other"),
            _arg(
                "--wait",
                dest="patience",
                type=_seconds,
                metavar="SECONDS",
                help="wait so long for it, also for a daemon that is just starting",
            ),
        ],
    ),
    "top": Command(_top, "banks, slots and alarms live, with keys to act 实时概览"),
    "slots": Command(_slots, "USB-Key slots 卡槽"),
    "unlock": Command(
        _unlock,
        "give a slot its PIN, asked for or from standard input 解锁",
        [_arg("slot", metavar="SLOT", help="the slot's name")],
    ),
    "links": Command(_links, "bank connections 银行连接"),
    "drain": Command(_drain, "send nothing more to a bank 暂停银行", [_BANK]),
    "resume": Command(_resume, "send to a bank again 恢复银行", [_BANK]),
    "restored": Command(_restored, "payments held since a backup was restored 恢复备份后待核对"),
    "release": Command(
        _release,
        "send payments again after a restore; only when each was looked for at its bank 放行",
        [_arg("--evidence", required=True, metavar="TEXT", help="which statements were read 依据")],
    ),
    "alarms": Command(
        _alarms,
        "active alarms 告警",
        [_arg("--all", action="store_true", help="cleared ones too")],
    ),
    "ack": Command(
        _ack,
        "say that you act on an alarm 确认告警",
        [_arg("alarm_id", metavar="ALARM_ID", help="the alarm's id")],
    ),
    "channels": Command(_channels, "where alarms are sent, and how that goes 告警通道"),
    "channel-test": Command(
        _channel_test,
        "send a test message by a channel; exit 0 when it was taken 测试告警通道",
        [_arg("channel", metavar="CHANNEL", help="the channel's name")],
    ),
    "tasks": Command(
        _tasks,
        "tasks, newest first 任务",
        [
            _arg("--state", choices=[state.value for state in State], metavar="STATE"),
            _arg("--bank", metavar="BANK"),
            _arg("--limit", type=_limit, metavar="NUMBER", help="of a page, at most 500"),
            _arg("--all", action="store_true", help="every page"),
        ],
    ),
    "task": Command(_task, "one task 单个任务", [_TASK]),
    "why": Command(_why, "a task and all that happened to it 因果链", [_TASK]),
    "submit": Command(
        _submit,
        "put a task into the queue; the same id again is the same task 提交任务",
        [
            _TASK,
            _BANK,
            _arg(
                "kind",
                metavar="KIND",
                choices=[kind.value for kind in Kind],
                help="one of: " + ", ".join(kind.value for kind in Kind),
            ),
            _arg("params", metavar="JSON", type=_json_object, help=f"its params: {_JSON_HELP}"),
            _arg("--priority", type=_priority, metavar="0..9", help="9 goes first; else 5"),
            _arg("--expires", type=_seconds, metavar="SECONDS", help="if not sent by then"),
            _arg("--wait", action="store_true", help="until its end; exit 1 unless succeeded"),
        ],
    ),
    "cancel": Command(_cancel, "cancel a task of which no byte has left 取消任务", [_TASK]),
    "resolve": Command(
        _resolve,
        "propose the end of an unknown or accepted payment 人工定案",
        [
            _TASK,
            _arg("outcome", choices=["succeeded", "rejected"], help="what the bank did"),
            _arg("--evidence", required=True, metavar="TEXT", help="where it was seen 依据"),
        ],
    ),
    "confirm": Command(
        _confirm,
        "confirm another person's proposal 复核定案",
        [
            _TASK,
            _arg(
                "outcome",
                nargs="?",
                choices=["succeeded", "rejected"],
                help="what you saw proposed; refused if it is another by now",
            ),
        ],
    ),
    "pool list": Command(_pool_list, "pools and their last rounds"),
    "pool plan": Command(_pool_plan, "what a round would do now; moves nothing 试算", [_POOL]),
    "pool run": Command(
        _pool_run,
        "start a round and wait for its end; exit 1 if an account failed 执行归集",
        [_POOL, _arg("--no-wait", action="store_true", help="return when it is started")],
    ),
    "pool round": Command(
        _pool_round,
        "one round and its accounts",
        [_arg("round_id", metavar="ROUND_ID", help="the round's id")],
    ),
    "user list": Command(_user_list, "who may use the console 用户"),
    "user add": Command(
        _user_add,
        "make a user of the console; the password is asked for, or read from standard input 新建",
        [_USER, _ROLE],
    ),
    "user passwd": Command(
        _user_passwd, "give a user a new password, asked for or from standard input", [_USER]
    ),
    "user role": Command(_user_role, "let a user do more or less", [_USER, _ROLE]),
    "user disable": Command(_user_disable, "let a user log in no more 停用", [_USER]),
    "user enable": Command(_user_enable, "let a user log in again 启用", [_USER]),
    "user drop-totp": Command(_user_drop_totp, "ask a user for no one-time codes", [_USER]),
    "user log-out": Command(_user_log_out, "end a user's sessions 强制退出", [_USER]),
    "audit": Command(
        _audit,
        "what people did, newest first 审计",
        [
            _arg("who", nargs="?", default="", metavar="NAME", help="only this one's acts"),
            _arg("--limit", type=_limit, metavar="NUMBER", help="at most 500"),
        ],
    ),
    "config show": Command(_config_show, "the configuration in force"),
    "config check": Command(_config_check, "faults of the file on disk; exit 1 if there are any"),
    "config apply": Command(_config_apply, "take the file on disk into force"),
    "config versions": Command(
        _config_versions,
        "every configuration that was in force, newest first 配置版本",
        [_arg("--limit", type=_limit, metavar="NUMBER", help="at most 500")],
    ),
    "config version": Command(_config_version, "the text of a version", [_VERSION]),
    "config diff": Command(_config_diff, "what a version would change in the file", [_VERSION]),
    "config rollback": Command(
        _config_rollback,
        "take an earlier version into force 回退",
        [_VERSION, _arg("--note", default="", metavar="TEXT", help="why")],
    ),
    "config confirm": Command(
        _config_confirm, "keep a version that is in force for a time 确认", [_VERSION]
    ),
    "events": Command(
        _events,
        "follow the log until Ctrl-C 跟踪事件",
        [_arg("prefix", nargs="?", default="", metavar="PREFIX", help="such as task. or link.")],
    ),
    "call": Command(
        _call,
        "call any method of the protocol; prints the result as one JSON line",
        [
            _arg("method", metavar="METHOD", help="such as task.get"),
            _arg(
                "params", nargs="?", default={}, metavar="JSON", type=_json_object, help=_JSON_HELP
            ),
        ],
    ),
}

GROUPS: Final = {
    "pool": "fund pooling 资金归集",
    "user": "the console's users 控制台用户",
    "config": "the configuration 配置",
}

GLOBALS: Final[dict[str, Argument]] = {
    "address": _arg(
        "--address",
        type=_address,
        help=f"unix:PATH, tcp:HOST:PORT or tls:HOST:PORT; else FEP_ADDRESS, else {ADDRESS_DEFAULT}",
    ),
    "client": _arg("--client", metavar="NAME", help="open the session as; else fepctl-USER"),
    "token_file": _arg("--token-file", type=Path, metavar="FILE", help="for tcp: on loopback"),
    "key_file": _arg(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="for tcp: on loopback: a line KEY_ID CLIENT SECRET, which never leaves this program",
    ),
    "tls_certificate": _arg("--tls-certificate", type=Path, metavar="FILE", help="ours, PEM"),
    "tls_key": _arg("--tls-key", type=Path, metavar="FILE", help="ours, PEM"),
    "tls_ca": _arg("--tls-ca", type=Path, metavar="FILE", help="who signed the daemon's, PEM"),
    "json": _arg("--json", action="store_true", help="one JSON line for programs"),
    "timeout": _arg(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"for an answer (else {ANSWER_SECONDS:g}), or for an end waited for (else no limit)",
    ),
}
"""Taken before and after the command."""


class _Version(argparse.Action):
    """Prints the release; only then is it looked up."""

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"fepctl {version('fep')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options = common.add_argument_group("connection and output")
    for names, settings in GLOBALS.values():
        options.add_argument(*names, **settings)
    parser = argparse.ArgumentParser(
        prog="fepctl",
        description="Operate a running fep, the enterprise bank front-end processor.",
        epilog="Exit status: 0 done, 1 refused or not done, 2 wrong usage, 3 done but what was to "
        "be said could not be written.",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the release")
    top = parser.add_subparsers(title="commands", metavar="COMMAND")
    groups = {
        name: top.add_parser(name, help=words, description=words).add_subparsers(
            title="commands", metavar="COMMAND", required=True
        )
        for name, words in GROUPS.items()
    }
    for name, command in COMMANDS.items():
        group, _, word = name.rpartition(" ")
        one = (groups[group] if group else top).add_parser(
            word, help=command.help, description=command.help, parents=[common], allow_abbrev=False
        )
        for names, settings in command.arguments:
            one.add_argument(*names, **settings)
        one.set_defaults(run=command.run)
    return parser


# -- one run ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 done, 1 not, 2 wrong usage, 3 done but nobody could be told, 130 interrupted, 141 whoever
    read along has read enough.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return output.run(
        lambda: _main(words),
        lambda told: _fail(told, "NOT_WRITTEN", as_json="--json" in words),
    )


def _main(words: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        # A terminal that can't show Chinese gets escapes, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        given = _parse(words)
    except SystemExit as end:
        return int(end.code or 0)
    if given is None:
        return 0
    try:
        return _run_patiently(given)
    except (CallError, DisconnectedError, NotDoneError, LocalFileError) as error:
        return _fail(_explained(error, given.address), error.code, as_json=given.json)
    except KeyboardInterrupt:
        told = "Ctrl-C; what the daemon has begun goes on"
        _fail(told, "INTERRUPTED", as_json=given.json)
        return INTERRUPTED


def _parse(words: Sequence[str]) -> argparse.Namespace | None:
    """Return what was given, None when that is nothing and the help was printed.

    Raises:
        SystemExit: wrong usage (2), or help was asked for (0).
    """
    parser = _parser()
    try:
        " ".join(words).encode()
    except UnicodeEncodeError:
        parser.error("the arguments are not UTF-8")
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    defaults = dict.fromkeys(GLOBALS) | {"json": False, "run": None, "patience": None}
    given = argparse.Namespace(**defaults | vars(parser.parse_args(words)))
    if given.run is None:
        parser.print_help()
        return None
    if given.address is None:
        try:
            given.address = _address(os.environ.get("FEP_ADDRESS") or ADDRESS_DEFAULT)
        except argparse.ArgumentTypeError as error:
            parser.error(f"FEP_ADDRESS: {error}")
    tls = [file is not None for file in (given.tls_certificate, given.tls_key, given.tls_ca)]
    if given.address.kind == "tls" and not all(tls):
        parser.error("a tls: address needs --tls-certificate, --tls-key and --tls-ca")
    if given.key_file is not None and (given.token_file is not None or given.address.kind != "tcp"):
        parser.error("--key-file is for an address tcp:HOST:PORT, and without --token-file")
    if given.address.kind != "tls" and any(tls):
        parser.error("--tls-… is for an address tls:HOST:PORT")
    return given


def _run_patiently(given: argparse.Namespace) -> int:
    """Run a command; one that may wait is tried again while no daemon answers."""
    until = time.monotonic() + (given.patience or 0.0)
    while True:
        try:
            return _run(given, until)
        except (CallError, DisconnectedError):
            if time.monotonic() >= until:
                raise
            time.sleep(POLL_FIRST_SECONDS)


def _run(given: argparse.Namespace, until: float) -> int:
    told: SimpleQueue[Value | str] = SimpleQueue()
    key = _key(given.key_file, given.client)
    client = BlockingClient(
        given.address,
        given.client or (_own_name() if key is None else key.client),
        token=_token(given.token_file),
        key=key,
        tls=_tls(given),
        # Results of tasks submitted here are read by id, so ours count as told. A name that was
        # given, or a key's, may be a finance system's, which must get its results itself.
        result=None if given.client or key is not None else lambda _result: None,
        alarm=told.put,
        event=told.put,
        retry=False,
        connect_s=min(given.timeout or CONNECT_SECONDS_MAX, CONNECT_SECONDS_MAX),
    )
    with client:
        run: Callable[[Desk], int] = given.run
        return run(Desk(given, client, told, until))


def _own_name() -> str:
    """Return who we are to the daemon: the person behind sudo counts, for the two-person rule."""
    import getpass  # noqa: PLC0415

    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        user = str(os.getuid())
    return "fepctl-" + re.sub(r"[^0-9A-Za-z._-]", "-", user)[:24]


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"--token-file {file}: {error}"
        raise LocalFileError(msg) from error


def _key(file: Path | None, client: str | None) -> Key | None:
    """Return the last key of a file, of one client if that is given."""
    if file is None:
        return None
    try:
        keys = parse_keys(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        msg = f"--key-file {file}: {error}"
        raise LocalFileError(msg) from error
    found = [one for one in keys.values() if client in (None, one.client)]
    if not found:
        msg = f"--key-file {file}: there is no key of {client}"
        raise LocalFileError(msg)
    return found[-1]


def _tls(given: argparse.Namespace) -> Any:  # noqa: ANN401 - an SSL context, which only clients name
    if given.address.kind != "tls":
        return None
    from fep.client.address import client_tls  # noqa: PLC0415

    try:
        return client_tls(given.tls_certificate, given.tls_key, given.tls_ca)
    except OSError as error:  # ssl.SSLError is one
        names = f"{given.tls_certificate}, {given.tls_key}, {given.tls_ca}"
        msg = f"one of the TLS files {names}: {error}"
        raise LocalFileError(msg) from error


def _explained(error: FepError, address: Address) -> str:
    """Return an error with what an operator does about it."""
    match error, error.__cause__:
        case DisconnectedError(), FileNotFoundError() | ConnectionRefusedError():
            return f"no daemon answers at {address}; is fep running? systemctl status fep"
        case DisconnectedError(), PermissionError() if address.kind == "unix":
            return (
                f"no permission to use {address.path}: only members of the socket's group "
                "(fep-ops) may; ask for: usermod -aG fep-ops USER"
            )
        case _:
            return str(error)


def _fail(message: str, code: str, *, as_json: bool) -> int:
    if as_json:
        print(_json({"code": code, "message": message}), file=sys.stderr)
    else:
        print(show.clean(f"fepctl: {code}: {message}"), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
