"""``fepctl top``: the daemon live in a terminal, over the control socket.

It asks once a second in a thread, so that the keys work while a daemon does not answer; the client
reconnects by itself when the daemon comes back.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, ClassVar, Final

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.coordinate import Coordinate
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Sparkline, Static
from textual.worker import get_current_worker

from fep.client import BlockingClient
from fep.control.board import Bank, Board, Order, Reading, per_minute, seconds
from fep.control.show import STYLES, clean, moment
from fep.domain.errors import FepError

ASK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
ALARMS_MAX: Final = 100

BANKS: Final = (
    "bank 银行", "link 连接", "", "open 未完成", "in hands 在办", "rate 速率",
    "waiting 最久等待", "silent 静默", "states 状态", "last failure 最近故障",
)  # fmt: skip
SLOTS: Final = ("slot 卡槽", "state 状态", "expires 到期", "detail 说明")
ALARMS: Final = ("severity 级别", "state 状态", "subject 对象", "alarm 告警", "since 开始时间")

HELP: Final = """\
[b]fepctl top[/b]  the daemon live 实时概览

[b]q[/b]  quit 退出
[b]s[/b]  sort the banks by another column 排序
[b]p[/b]  pause, and go on 暂停刷新
[b]a[/b]  acknowledge the alarm that is marked 确认告警
[b]r[/b]  ask at once 立即刷新
[b]Tab[/b]  go to the next table 切换表格
[b]?[/b]  this help 帮助; any of Esc, q, ? ends it

[b]link 连接[/b]  the state of the bank's connection
[b]rate 速率[/b]  tasks that came to their end, over the last ten seconds
[b]waiting 最久等待[/b]  how long the oldest task has waited to be fetched or sent
[b]silent 静默[/b]  since the bank's last answer, of probes too
"""

Row = tuple[Text | str, ...]


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark", "dismiss", "close 关闭")]
    CSS: ClassVar[str] = """
    Help { align: center middle; }
    Help Static { width: auto; max-width: 90%; height: auto; padding: 1 3; border: round $accent; }
    """

    def compose(self) -> ComposeResult:
        """Yield the text."""
        yield Static(HELP)


class Top(App[None]):
    """The screen. It owns no connection: the client is its caller's.

    Args:
        client: connected; its role says what may be done.
        ask_seconds: between two questions.
    """

    TITLE: str | None = "fepctl top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "quit 退出"),
        ("s", "sort", "sort 排序"),
        ("p", "pause", "pause 暂停"),
        ("a", "acknowledge", "ack 确认告警"),
        ("r", "ask", "refresh 刷新"),
        ("question_mark", "help", "help 帮助"),
    ]
    CSS: ClassVar[str] = """
    #head { height: 2; padding: 0 1; background: $primary-background; }
    #rates { height: 2; margin: 0 1; }
    DataTable { height: 1fr; border: round $secondary; }
    DataTable:focus { border: round $accent; }
    #banks { height: 2fr; }
    #slots { width: 2fr; }
    #right { width: 3fr; }
    #told { height: 4; padding: 0 1; }
    """

    def __init__(self, client: BlockingClient, ask_seconds: float = ASK_SECONDS) -> None:
        super().__init__()
        self._client = client
        self._ask_seconds = ask_seconds
        self.board = Board()
        self.order = Order.NAME
        self.is_paused = False
        self.trouble = ""
        """Why the daemon does not answer; empty while it does."""
        self._asking = False

    def compose(self) -> ComposeResult:
        """Yield the panels."""
        yield Static("…", id="head", markup=False)
        yield Sparkline([], id="rates")
        yield _table("banks", "banks 银行")
        with Horizontal():
            yield _table("slots", "slots 卡槽")
            with Vertical(id="right"):
                yield _table("alarms", "alarms 告警")
                yield Static("", id="told", markup=False)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask."""
        for name, columns in (("banks", BANKS), ("slots", SLOTS), ("alarms", ALARMS)):
            self._rows(name).add_columns(*columns)
        self._rows("banks").focus()
        self.action_ask()
        self.set_interval(self._ask_seconds, self._ask_again)

    # -- asking -------------------------------------------------------------------------------

    def _ask_again(self) -> None:
        if not self.is_paused:
            self.action_ask()

    def action_ask(self) -> None:
        """Ask the daemon, unless an answer is awaited still."""
        if not self._asking:
            self._asking = True
            self._ask()

    @work(thread=True)
    def _ask(self) -> None:
        try:
            ask = partial(self._client.call, deadline_s=ANSWER_SECONDS)
            found: Reading | FepError = Reading(
                at=time.monotonic(),
                status=ask("status", {}),
                slots=ask("slot.list", {})["slots"],
                links=ask("link.list", {})["links"],
                alarms=ask("alarm.list", {"limit": ALARMS_MAX})["alarms"],
            )
        except FepError as error:
            found = error
        if not get_current_worker().is_cancelled:
            self.call_from_thread(self._take, found)

    def _take(self, found: Reading | FepError) -> None:
        self._asking = False
        if isinstance(found, Reading):
            self.trouble = ""
            self.board.take(found)
        else:
            self.trouble = clean(f"{found.code}: {found}")
        self.draw()

    # -- drawing ------------------------------------------------------------------------------

    def draw(self) -> None:
        """Show what is known."""
        if not self.query("#head"):
            return  # an answer that came while the screen is being closed
        head = Text(self.board.headline())
        head.append(f"\nsorted by 排序 {self.order}", "dim")
        if self.is_paused:
            head.append("  PAUSED 已暂停刷新", "bold yellow")
        if self.trouble:
            head.append(f"  NO ANSWER, reconnecting 无应答，重连中: {self.trouble}", "bold red")
        self.query_one("#head", Static).update(head)
        last = self.board.last
        if last is None:
            return
        bars = self.board.bars()
        # It draws from the least value on: with a zero in front, what does nothing is empty.
        self.query_one("#rates", Sparkline).data = [0.0, *bars] if any(bars) else []
        self._fill("banks", {one.name: _bank(one) for one in self.board.banks(self.order)})
        self._fill("slots", {one["name"]: _slot(one) for one in last.slots})
        alarms = {one["alarm_id"]: _alarm(one) for one in last.alarms}
        self._fill("alarms", alarms)
        self._rows("alarms").border_title = f"alarms 告警 {len(alarms)}"
        self._tell()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Tell of the alarm that is marked now."""
        if event.data_table.id == "alarms":
            self._tell()

    def _tell(self) -> None:
        """Say what the marked alarm is about and what to do."""
        marked = self._marked("alarms")
        last = self.board.last
        alarms = [] if last is None else last.alarms
        told = [f"{one['cause']}\n{one['action']}" for one in alarms if one["alarm_id"] == marked]
        self.query_one("#told", Static).update(clean("".join(told)))

    def _rows(self, name: str) -> DataTable[Text | str]:
        found: DataTable[Text | str] = self.query_one(f"#{name}", DataTable)
        return found

    def _fill(self, name: str, rows: dict[str, Row]) -> None:
        """Show rows by key; the mark stays on its row, also where the order is another."""
        table = self._rows(name)
        if [key.value for key in table.rows] == list(rows):
            for at, row in enumerate(rows.values()):
                for column, cell in enumerate(row):
                    table.update_cell_at(Coordinate(at, column), cell, update_width=True)
            return
        marked = self._marked(name)
        top = table.scroll_y
        table.clear()
        for key, row in rows.items():
            table.add_row(*row, key=key)
        if marked in rows:
            table.move_cursor(row=list(rows).index(marked), scroll=False)
        table.scroll_to(y=top, animate=False)

    def _marked(self, name: str) -> str:
        table = self._rows(name)
        if not table.row_count:
            return ""
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value or ""

    # -- keys ---------------------------------------------------------------------------------

    def action_sort(self) -> None:
        """Sort the banks by the next column."""
        self.order = self.order.next()
        self.draw()

    def action_pause(self) -> None:
        """Stop asking, or go on."""
        self.is_paused = not self.is_paused
        self.draw()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_acknowledge(self) -> None:
        """Say that somebody acts on the alarm that is marked."""
        if alarm_id := self._marked("alarms"):
            self._acknowledge(alarm_id)
        else:
            self.notify("there is no alarm 没有告警")

    @work(thread=True)
    def _acknowledge(self, alarm_id: str) -> None:
        try:
            params = {"alarm_id": alarm_id}
            alarm = self._client.call("alarm.acknowledge", params, deadline_s=ANSWER_SECONDS)
        except FepError as error:
            told = clean(f"{error.code}: {error}")
            self.call_from_thread(self.notify, told, severity="error", markup=False)
            return
        told = clean(f"acknowledged 已确认: {alarm['title_zh']} {alarm['subject']}")
        self.call_from_thread(self.notify, told, markup=False)
        self.call_from_thread(self.action_ask)


def _table(name: str, title: str) -> DataTable[Text | str]:
    table: DataTable[Text | str] = DataTable(id=name, cursor_type="row", zebra_stripes=True)
    table.border_title = title
    return table


def _coloured(word: str) -> Text:
    return Text(clean(word), STYLES.get(word, "yellow"))


def _right(value: object) -> Text:
    return Text(str(value), justify="right")


def _bank(bank: Bank) -> Row:
    return (
        Text(bank.name, "bold"),
        _coloured(bank.link),
        Text(bank.note, "yellow"),
        _right(bank.open),
        _right(bank.in_hands),
        _right(per_minute(bank.rate)),
        _right(seconds(bank.waiting_s) if bank.waiting_s else ""),
        _right(seconds(bank.silent_s)),
        Text(bank.states),
        Text(bank.failure, "red"),
    )


def _slot(slot: dict[str, Any]) -> Row:
    expires = moment(slot["not_after"])[: len("2026-01-01")]
    return clean(slot["name"]), _coloured(slot["state"]), expires, Text(clean(slot["detail"]))


def _alarm(alarm: dict[str, Any]) -> Row:
    return (
        _coloured(alarm["severity"]),
        _coloured(alarm["state"]),
        Text(clean(alarm["subject"])),
        Text(clean(f"{alarm['title_zh']} {alarm['title']}")),
        moment(alarm["raised_at"]),
    )
