"""What operators see: the daemon's answers as tables and lines, Chinese terms beside the English.

Rich is loaded by the first table, so that ``--json`` and refusals start without it. Everything a
bank or a client wrote loses its control characters here: a terminal obeys them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import attrs

from fep.domain.clock import from_text, to_shanghai

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Value = dict[str, Any]

PIPE_COLUMNS: Final = 1000
"""Width where no terminal is: a table takes what it needs, and a row stays a line for grep."""
GAP_COLUMNS: Final = 2
"""Between two columns of a table: a cell's padding, and the line of the box that is not drawn."""
WIDE_COLUMNS: Final = 120
"""From here on there is room for all columns."""
NAME_COLUMNS_MIN: Final = 12
"""So much of a name stays on one line; the rest is folded under it."""
TEXT_COLUMNS_MIN, NUMBER_COLUMNS_MIN = 6, 4
DIGEST_CHARS: Final = 12
ALIKE_MAX: Final = 3
"""More events in a row that say the same are shown as the first and the last."""

STYLES: Final[dict[str, str]] = {
    **dict.fromkeys(("ready", "succeeded", "swept", "finished", "cleared"), "green"),
    **dict.fromkeys(("busy", "sending", "sweeping", "asking", "running", "planned"), "cyan"),
    **dict.fromkeys(("queued", "offered", "fetched", "nothing", "cancelled", "minor"), ""),
    **dict.fromkeys(("rejected", "returned", "failed", "expired", "major", "fault"), "red"),
    **dict.fromkeys(("no_service", "no_reader", "empty", "wrong_card", "stuck"), "red"),
    **dict.fromkeys(("unknown", "critical", "raised", "pin_blocked", "backing_off"), "bold red"),
}
"""Colours of states; what is not here is on its way or waits for somebody: yellow."""

_UNSAFE: Final = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")


# -- words ------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return the text without what a terminal would obey; a line's end stays."""
    return "\n".join(line.translate(_UNSAFE) for line in text.split("\n"))


def plain(value: object) -> str:
    """Return any member as a cell: nothing for None and False."""
    if value is None or value is False:
        return ""
    return "yes 是" if value is True else clean(str(value))


def amount(value: str | None) -> str:
    """Return an amount in groups of three digits: ``1234567.50`` is ``1,234,567.50``."""
    if value is None:
        return ""
    sign, digits = ("-", value[1:]) if value.startswith("-") else ("", value)
    whole, point, cents = digits.partition(".")
    return f"{sign}{int(whole):,}{point}{cents}"


def moment(value: str | None) -> str:
    """Return a time on a Shanghai clock, to the second."""
    return f"{to_shanghai(from_text(value)):%Y-%m-%d %H:%M:%S}" if value else ""


def exact_moment(value: str | None) -> str:
    """Return a time on a Shanghai clock, to the millisecond."""
    return f"{to_shanghai(from_text(value)):%Y-%m-%d %H:%M:%S.%f}"[:-3] if value else ""


def short_moment(value: str | None) -> str:
    """Return the same without the year."""
    return exact_moment(value)[len("2026-") :]


def span(seconds: float) -> str:
    """Return a duration in its two largest units: ``3 h 12 min``."""
    left = int(seconds)
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def counts(states: Mapping[str, int]) -> str:
    """Return how many stand where: ``3 queued, 1 sending``."""
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def short(value: str | None) -> str:
    """Return the beginning of a digest, enough to find it."""
    return (value or "")[:DIGEST_CHARS]


# -- tables -----------------------------------------------------------------------------------


@attrs.frozen
class Column:
    """One column: its heading (English, Chinese), the member it shows, and how."""

    heading: str
    member: str
    form: Callable[[Any], str] = plain
    right: bool = False
    coloured: bool = False
    whole: bool = False
    """Never broken over lines."""
    names: bool = False
    """Says which one the row is of."""
    wide: bool | None = None
    """Only where there is room (True), or only where there is none (False)."""

    def least(self, heading: int, cells: int) -> int:
        """Return the width below which it tells nothing, of what its heading and cells take."""
        if self.whole:
            return max(heading, cells)
        if self.right:
            # A number that is cut is another number.
            return max(cells, min(heading, NUMBER_COLUMNS_MIN))
        return min(max(heading, cells), NAME_COLUMNS_MIN if self.names else TEXT_COLUMNS_MIN)


def _name(heading: str, member: str, *, wide: bool | None = None) -> Column:
    return Column(heading, member, names=True, wide=wide)


def _state(heading: str, member: str) -> Column:
    return Column(heading, member, coloured=True, whole=True)


def _time(heading: str, member: str, *, wide: bool | None = None) -> Column:
    return Column(heading, member, moment, whole=True, wide=wide)


def _money(heading: str, member: str) -> Column:
    return Column(heading, member, amount, right=True, whole=True)


def _number(heading: str, member: str, *, wide: bool | None = None) -> Column:
    return Column(heading, member, right=True, wide=wide)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415

    unbounded = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(
        file=sys.stdout,
        width=PIPE_COLUMNS if unbounded else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _table(console: Console, columns: Sequence[Column], rows: Sequence[Value]) -> Table:
    from rich import box  # noqa: PLC0415
    from rich.cells import cell_len  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    def taken(texts: Iterable[str]) -> int:
        return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)

    wide = console.width >= WIDE_COLUMNS
    columns = [column for column in columns if column.wide in (None, wide)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    headings = [column.heading.replace(", ", "\n") for column in columns]
    cells = [[column.form(row.get(column.member)) for column in columns] for row in rows]
    sizes = [
        (taken([heading]), taken(row[number] for row in cells))
        for number, heading in enumerate(headings)
    ]
    widths = fitted(
        [max(size) for size in sizes],
        [column.least(*size) for column, size in zip(columns, sizes, strict=True)],
        console.width - GAP_COLUMNS * (len(columns) - 1),
    )
    for column, heading, width in zip(columns, headings, widths, strict=True):
        table.add_column(
            heading,
            justify="right" if column.right else "left",
            no_wrap=column.whole,
            overflow="fold",
            width=width,
        )
    for row, texts in zip(rows, cells, strict=True):
        styles = [
            STYLES.get(str(row.get(column.member)), "yellow") if column.coloured else ""
            for column in columns
        ]
        table.add_row(*map(Text, texts, styles))
    return table


def fitted(full: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return the widths of a table's columns: the widest are the first to give room.

    Where not even the least of each fits, none gives any: a terminal that folds whole lines is
    harder to read than a table, and still shows all of it.

    Args:
        full: what each column takes unbroken.
        least: what it needs to tell anything.
        room: what there is for all of them.
    """
    if sum(least) > room:
        room = max(PIPE_COLUMNS, sum(least))
    highest = min(max(full, default=0), room)
    while True:
        widths = [max(low, min(high, highest)) for low, high in zip(least, full, strict=True)]
        if sum(widths) <= room:
            return widths
        highest -= 1


def _print(console: Console, *parts: Table | str) -> None:
    terminal = console.width
    with console.capture() as capture:
        for part in parts:
            if isinstance(part, str):
                console.print(part, soft_wrap=True)
                continue
            taken = sum((column.width or 0) + GAP_COLUMNS for column in part.columns)
            console.width = max(terminal, taken)
            console.print(part)
            console.width = terminal
    # Rich fills each line to the table's width, which nobody wants in a file.
    lines = [line.rstrip() for line in capture.get().splitlines()]
    sys.stdout.write("\n".join(lines) + "\n")


def _list(columns: Sequence[Column], rows: Sequence[Value], none: str) -> None:
    if rows:
        console = _console()
        _print(console, _table(console, columns, rows))
    else:
        line(none)


def line(text: str) -> None:
    """Print one line of words."""
    sys.stdout.write(clean(text) + "\n")


# -- the daemon -------------------------------------------------------------------------------

BANKS: Final = (
    _name("bank, 银行", "bank"),
    _state("link, 连接", "link"),
    Column("drained, 暂停", "drained"),
    _number("in flight, 在途", "in_flight"),
    Column("open tasks, 未完成任务", "open", counts),
)
KEYS: Final = (_name("slot, 卡槽", "slot"), _state("state, 状态", "state"))


def status(value: Value) -> None:
    """Print the daemon at a glance."""
    queue = value["queue"]
    banks = [
        {"bank": name, "link": value["links"].get(name)} | bank
        for name, bank in queue["banks"].items()
    ]
    up, digest = span(value["uptime_s"]), short(value["configuration"])
    words = [
        f"fep {value['version']}, {moment(value['time'])}, up 运行 {up}, config 配置 {digest}",
        f"queue 队列 {queue['open']} of {queue['queue_max']}, alarms 告警 {value['alarms']}",
    ]
    if value["store_full"]:
        words.append("the disk is full: new tasks are refused 磁盘已满")
    if value["held_since"] is not None:
        words.append("a backup was restored: no payment is sent; see fepctl restored 暂停付款")
    for number, places in value.get("machines", {}).items():
        here = " (this one 本机)" if number == value["machine"] else ""
        served = ", ".join(one.removeprefix("bank:") for one in places) or "nothing 无"
        words.append(f"machine 前置机 {number}{here} serves 负责: {served}")
    slots = [{"slot": name, "state": state} for name, state in value["slots"].items()]
    console = _console()
    tables = _table(console, BANKS, banks), _table(console, KEYS, slots)
    _print(console, *map(clean, words), "", tables[0], "", tables[1])


SLOTS: Final = (
    _name("slot, 卡槽", "name"),
    _state("state, 状态", "state"),
    Column("backend, 方式", "backend"),
    Column("reader, 读卡器", "reader"),
    Column("certificate, 证书", "certificate_sha256", short),
    _time("expires, 到期", "not_after"),
    Column("detail, 说明", "detail"),
)


def slots(value: Value) -> None:
    """Print the key slots."""
    _list(SLOTS, value["slots"], "no slots are configured 没有卡槽")


LINKS: Final = (
    _name("bank, 银行", "bank"),
    _state("state, 状态", "state"),
    Column("drained, 暂停", "drained"),
    Column("peer, 银行前置机", "peer"),
    _time("since, 开始时间", "since"),
    _time("last reply, 最近应答", "last_reply_at", wide=True),
    _number("in flight, 在途", "in_flight"),
    _number("connections, 连接数", "connections_ready", wide=True),
    _number("requests, 请求", "requests", wide=True),
    _number("unmatched, 未匹配", "unmatched", wide=True),
    _number("failures, 失败", "failures"),
    Column("last failure, 最近故障", "last_failure"),
)


def links(value: Value) -> None:
    """Print the bank connections."""
    _list(LINKS, value["links"], "no banks are configured 没有银行")


ALARMS: Final = (
    _name("id, 编号", "alarm_id"),
    _state("severity, 级别", "severity"),
    _state("state, 状态", "state"),
    _name("subject, 对象", "subject"),
    _time("since, 开始时间", "raised_at", wide=True),
    _number("count, 次数", "count", wide=True),
    Column("alarm, 告警", "name", wide=True),
    Column("cause, 原因", "cause", wide=True),
    Column("what to do, 处理", "action", wide=True),
    Column("alarm; cause; what to do, 告警; 原因; 处理", "told", wide=False),
)


def alarms(value: Value) -> None:
    """Print alarms and what an operator does."""
    rows = []
    for one in value["alarms"]:
        name = f"{one['title_zh']} {one['title']}"
        rows.append(one | {"name": name, "told": f"{name}\n{one['cause']}\n{one['action']}"})
    _list(ALARMS, rows, "no alarms 没有告警")


CHANNELS: Final = (
    _name("channel, 通道", "channel"),
    Column("kind, 类型", "kind"),
    _state("state, 状态", "state"),
    _number("waiting, 待发", "waiting"),
    _number("told, 已发", "told"),
    _number("given up, 放弃", "given_up", wide=True),
    _time("last success, 最近成功", "last_success_at"),
    _time("last failure, 最近失败", "last_failure_at", wide=True),
    Column("last error, 最近错误", "last_error"),
)


def channels(value: Value) -> None:
    """Print the channels by which alarms are sent."""
    _list(CHANNELS, value["channels"], "no alarm channels are configured 没有告警通道")


USERS: Final = (
    _name("user, 用户", "name"),
    _state("role, 角色", "role"),
    Column("disabled, 停用", "disabled"),
    Column("one-time codes, 动态口令", "totp"),
    _number("sessions, 会话", "sessions"),
    _time("made, 创建时间", "created_at"),
)


def users(value: Value) -> None:
    """Print the console's users."""
    _list(USERS, value["users"], "no users 没有用户")


ACTS: Final = (
    Column("time, 时间", "at", moment, whole=True),
    _name("who, 用户", "name"),
    Column("role, 角色", "role", wide=True),
    Column("from, 来源", "origin", wide=True),
    Column("what, 操作", "what", whole=True),
    Column("about, 内容", "told"),
    _state("outcome, 结果", "outcome"),
    Column("why not, 原因", "refusal"),
)


def acts(value: Value, who: str) -> None:
    """Print what people did, or one of them where a name is given."""
    rows = [
        one | {"told": " ".join(f"{name}={told}" for name, told in one["about"].items())}
        for one in value["acts"]
    ]
    none = (
        f"no acts of {who} 没有该用户的操作记录" if who else "nobody did anything yet 没有操作记录"
    )
    _list(ACTS, rows, none)


# -- tasks ------------------------------------------------------------------------------------

TASKS: Final = (
    _name("task, 任务", "task_id"),
    _name("client, 财务系统", "client", wide=True),
    _name("bank, 银行", "bank"),
    _name("kind, 交易", "kind"),
    _state("state, 状态", "state"),
    _time("submitted, 提交", "submitted_at"),
    _time("changed, 变更", "updated_at", wide=True),
    Column("code, 银行代码", "bank_code"),
    Column("message, 银行信息", "bank_message"),
)


def tasks(value: Value) -> None:
    """Print tasks, and how to see the older ones."""
    _list(TASKS, value["tasks"], "no tasks 没有任务")
    if "cursor" in value:
        line("… older ones: --limit NUMBER, or --all 更早的任务")


TASK: Final[dict[str, str]] = {
    "task_id": "task 任务",
    "state": "state 状态",
    "bank": "bank 银行",
    "kind": "kind 交易",
    "client": "client 财务系统",
    "bank_code": "bank's code 银行代码",
    "bank_message": "bank's message 银行信息",
    "client_ref": "our reference 我方流水号",
    "bank_ref": "bank's reference 银行流水号",
    "submitted_at": "submitted 提交",
    "sent_at": "sent 发送",
    "updated_at": "changed 变更",
    "inquire_at": "next inquiry 下次查询",
    "expires_at": "expires 过期",
    "priority": "priority 优先级",
    "offers": "offers 领取次数",
    "acknowledged": "acknowledged 已确认",
}


def _task_table(value: Value) -> Table:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    grid = Table.grid(padding=(0, 2))
    for name, heading in TASK.items():
        if (found := value.get(name)) not in (None, ""):
            told = exact_moment(found) if name.endswith("_at") else plain(found) or "no 否"
            style = STYLES.get(told, "yellow") if name == "state" else ""
            grid.add_row(heading, Text(told, style))
    result = value["result"]
    for name, found in result.items() if isinstance(result, dict) else ():
        if name not in ("rows", "entries"):
            told = exact_moment(found) if name == "as_of" else plain(found)
            grid.add_row(f"result 结果: {clean(name)}", Text(told))
    return grid


ROWS: Final = (
    _number("row, 明细", "row"),
    _state("state, 状态", "state"),
    _money("amount, 金额", "amount"),
    Column("our reference, 我方流水号", "client_ref", whole=True),
    _name("bank's reference, 银行流水号", "bank_ref"),
    Column("bank's code, 银行代码", "bank_code"),
    Column("bank's message, 银行信息", "bank_message", wide=True),
)


ENTRIES: Final = (
    _time("booked, 记账", "booked_at"),
    Column("in or out, 借贷", "direction"),
    _money("amount, 金额", "amount"),
    _money("balance, 余额", "balance_after"),
    _name("account, 对方账号", "account"),
    Column("name, 对方户名", "name"),
    _name("bank's reference, 银行流水号", "bank_ref"),
    Column("our reference, 我方流水号", "client_ref", wide=True),
    Column("purpose, 用途", "purpose", wide=True),
    Column("fee, 手续费", "fee", wide=True),
    Column("reversal, 冲账", "reversal", wide=True),
)
RETURNED: Final = (
    Column("our reference, 我方流水号", "client_ref", whole=True),
    _name("bank's reference, 银行流水号", "bank_ref"),
    _money("amount, 金额", "amount"),
    Column("submitted, 提交", "submitted_on"),
    Column("returned, 退回", "returned_on"),
    _name("account, 收款账号", "account"),
    Column("name, 收款户名", "name"),
    Column("reason, 原因", "reason"),
)
CODES: Final = (_name("code, 行号", "code"), Column("name, 行名", "name"))
LISTED: Final[dict[str, tuple[str, Sequence[Column]]]] = {
    "statement": ("counterparty", ENTRIES),
    "returned_payments": ("payee", RETURNED),
    "bank_code_lookup": ("", CODES),
}
"""Of each kind whose result is a list: the member with the other side, and the columns."""


def _task_parts(console: Console, value: Value) -> list[Table | str]:
    """Return what is shown of a task: its own members, and the rows or entries of its result."""
    parts: list[Table | str] = [_task_table(value)]
    result = value["result"]
    if not isinstance(result, dict):
        return parts
    if rows := result.get("rows"):
        parts += ["", _table(console, ROWS, rows)]
    if "entries" in result and value["kind"] in LISTED:
        other, columns = LISTED[value["kind"]]
        entries = [one | (one.get(other) or {}) for one in result["entries"]]
        parts += ["", _table(console, columns, entries) if entries else "no lines 没有明细"]
    return parts


def task(value: Value) -> None:
    """Print one task whole."""
    console = _console()
    _print(console, *_task_parts(console, value))


EVENTS: Final = (
    Column("time, 时间", "at", exact_moment, whole=True, wide=True),
    Column("time, 时间", "at", short_moment, whole=True, wide=False),
    Column("event, 事件", "event", whole=True),
    _state("state, 状态", "state"),
    Column("cause, 原因", "cause"),
    Column("digest, 摘要", "digest", short, whole=True),
    Column("configuration, 配置", "configuration", short, wide=True),
)


def _thinned(events: Sequence[Value]) -> Iterator[Value]:
    """Yield the events without the middle of long runs that say the same."""
    for _, run in groupby(events, lambda one: (one["event"], one["state"], one["cause"])):
        alike = list(run)
        if len(alike) <= ALIKE_MAX:
            yield from alike
        else:
            middle = f"… {len(alike) - 2} more of these (--json has them all)"
            yield from (alike[0], alike[0] | {"at": None, "cause": middle, "digest": ""}, alike[-1])


def why(value: Value) -> None:
    """Print a task and what happened to it, oldest first."""
    console = _console()
    chain = _table(console, EVENTS, list(_thinned(value["events"])))
    parts = [*_task_parts(console, value["task"]), "", chain]
    if waits_for := value.get("waits_for"):
        parts += ["", f"waits 等待: {clean(waits_for)}"]
    _print(console, *parts)


HELD: Final = (
    _name("task, 任务", "task_id"),
    _name("client, 财务系统", "client"),
    _name("bank, 银行", "bank"),
    _state("state, 状态", "state"),
    Column("our reference, 我方流水号", "client_ref", whole=True),
    _name("payer, 付款账号", "payer"),
    _name("payee, 收款账号", "payee"),
    _money("amount, 金额", "amount"),
    _time("submitted, 提交", "submitted_at"),
)


HELD_ANSWERED: Final = (*HELD, Column("bank's answer, 银行应答", "answer"))


def restored(value: Value) -> None:
    """Print the payments that are held after a restore."""
    if not value["held"]:
        line("no backup waits for a look 没有待核对的恢复")
        return
    line(f"restored from a copy of 备份时间: {exact_moment(value['taken_at'])}")
    line(f"payments held 暂停付款: {value['count']}")
    answered = value.get("answered", 0)
    if answered:
        line(f"the bank answered for {answered} of these: it may have them 银行已有应答，可能已付")
    columns = HELD_ANSWERED if answered else HELD
    _list(columns, value["payments"], "no payment waits 没有待付款")


# -- pools ------------------------------------------------------------------------------------

POOLS: Final = (
    _name("pool, 归集", "pool"),
    _name("target, 归集账户", "target"),
    _number("members, 成员", "members"),
    Column("schedule, 计划", "schedule"),
    _time("next, 下次", "next_at"),
    _name("last round, 最近一轮", "round_id"),
    _state("state, 状态", "state"),
    _money("swept, 已归集", "swept"),
)


def pools(value: Value) -> None:
    """Print the pools with their last rounds."""
    rows = [(one["last_round"] or {"state": ""}) | one for one in value["pools"]]
    _list(POOLS, rows, "no pools are configured 没有归集")


ITEMS: Final = (
    Column("account, 账号", "account", whole=True),
    _name("bank, 银行", "bank"),
    _money("balance, 余额", "balance"),
    _money("threshold, 阈值", "threshold"),
    _money("amount, 归集金额", "amount"),
    _state("state, 状态", "state"),
    Column("rule, 规则", "rule", wide=True),
    Column("reason, 原因", "reason"),
)


def round_line(value: Value) -> str:
    """Return one line of where a round stands."""
    name = "plan 试算" if value["plan_only"] else "round 归集"
    return clean(f"{name} {value['round_id']} {value['state']}: {counts(value['states'])}")


def round_(value: Value) -> None:
    """Print a round with its accounts and totals."""
    took = ""
    if value["finished_at"]:
        started, finished = from_text(value["started_at"]), from_text(value["finished_at"])
        took = f" in {(finished - started).total_seconds():.1f} s"
    console = _console()
    _print(
        console,
        _table(console, ITEMS, value["items"]),
        "",
        f"{round_line(value)}{took}",
        f"{value['accounts']} accounts 账户, planned 计划 {amount(value['planned'])}, "
        f"swept 已归集 {amount(value['swept'])}",
    )


def progress(first: str) -> AbstractContextManager[Callable[[str], None]]:
    """Return a context that shows one changing line, where a terminal is to show it on."""
    if not sys.stderr.isatty():
        return nullcontext(lambda _line: None)
    return _Progress(first)


class _Progress(AbstractContextManager[Callable[[str], None]]):
    def __init__(self, first: str) -> None:
        from rich.console import Console  # noqa: PLC0415

        self._status = Console(stderr=True, markup=False, highlight=False).status(first)

    def __enter__(self) -> Callable[[str], None]:
        self._status.start()
        return self._status.update

    def __exit__(self, *_: object) -> None:
        self._status.stop()


# -- configuration and events -----------------------------------------------------------------


def configuration(value: Value) -> None:
    """Print the configuration in force as TOML, secrets hidden."""
    import tomli_w  # noqa: PLC0415

    line(f"# in force 生效配置: {value['path']}, configuration {value['digest']}")
    sys.stdout.write(tomli_w.dumps(value["config"], multiline_strings=False))


def changes(value: Value) -> None:
    """Print what a new configuration changed."""
    line(f"configuration 配置 {value['configuration']} is in force 已生效")
    for name, heading in (
        ("changed", "changed 已变更"),
        ("removed", "removed 已移除"),
        ("unchanged", "unchanged 未变"),
        ("restart_needed", "in force only after a restart 重启后生效"),
    ):
        if value[name]:
            line(f"{heading}: {', '.join(value[name])}")


VERSIONS: Final = (
    _number("version, 版本", "version"),
    _time("time, 时间", "at"),
    Column("who, 操作人", "who"),
    Column("from, 来源", "how"),
    _state("state, 状态", "state"),
    Column("digest, 摘要", "digest"),
    Column("note, 备注", "told"),
)


def versions(value: Value) -> None:
    """Print the versions of the configuration, and which one waits to be confirmed."""
    rows = [
        one | {"told": one["note"] + (f"\n{one['reason']}" if "reason" in one else "")}
        for one in value["versions"]
    ]
    _list(VERSIONS, rows, "no versions 没有版本")
    if pending := value.get("pending"):
        number, left = pending["version"], span(pending["left_s"])
        line(f"version {number} goes back in {left}: fepctl config confirm {number} 待确认")


def text(value: str) -> None:
    """Print a text as it is."""
    sys.stdout.write(value)


def event(record: Value) -> None:
    """Print one record of the log as a line: time, level, event, then its members."""
    rest = {name: value for name, value in record.items() if name not in ("ts", "level", "event")}
    words = [
        exact_moment(record.get("ts")),
        f"{record.get('level', ''):7}",
        str(record.get("event")),
        *(f"{name}={value}" for name, value in rest.items()),
    ]
    line(" ".join(words).replace("\n", " | ").lstrip())
