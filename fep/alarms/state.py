"""The life of an alarm, and what each kind means to an operator. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container
from enum import StrEnum
from typing import Any, Final, assert_never

import attrs

from fep.domain.clock import to_text
from fep.domain.errors import LocalProtocolError


class AlarmKind(StrEnum):
    """What can be wrong; the value is stable, programs match on it."""

    KEY_MISSING = "KEY_MISSING"
    KEY_WRONG = "KEY_WRONG"
    KEY_BLOCKED = "KEY_BLOCKED"
    KEY_PIN = "KEY_PIN"
    KEY_EXPIRING = "KEY_EXPIRING"
    KEY_FAULT = "KEY_FAULT"
    KEY_SERVICE_DOWN = "KEY_SERVICE_DOWN"
    LINK_DOWN = "LINK_DOWN"
    BANK_HEARTBEAT_LOST = "BANK_HEARTBEAT_LOST"
    SIGN_ON_REFUSED = "SIGN_ON_REFUSED"
    CLIENT_LOST = "CLIENT_LOST"
    UNKNOWN_OVERDUE = "UNKNOWN_OVERDUE"
    EVIDENCE_AMBIGUOUS = "EVIDENCE_AMBIGUOUS"
    EVIDENCE_CONFLICT = "EVIDENCE_CONFLICT"
    PAYMENT_RETURNED = "PAYMENT_RETURNED"
    TASK_EXPIRED = "TASK_EXPIRED"
    QUEUE_NEARLY_FULL = "QUEUE_NEARLY_FULL"
    STORE_FULL = "STORE_FULL"
    STORE_RESTORED = "STORE_RESTORED"
    LANE_FAILED = "LANE_FAILED"
    POOL_BLOCKED = "POOL_BLOCKED"
    UNMATCHED_REPLY = "UNMATCHED_REPLY"
    MACHINE_LOST = "MACHINE_LOST"
    STORE_DOWN = "STORE_DOWN"
    ALARM_UNDELIVERED = "ALARM_UNDELIVERED"
    CREDENTIAL_FAULT = "CREDENTIAL_FAULT"
    CONFIG_STUCK = "CONFIG_STUCK"
    WATCH_FAILED = "WATCH_FAILED"
    POOL_STALLED = "POOL_STALLED"


class About(StrEnum):
    """What the subjects of a kind are, as far as that says who may see them."""

    TASK = "task"
    CLIENT = "client"
    DAEMON = "daemon"
    """A part of it that all clients have in common: a bank, a slot, a pool, the store."""


class Severity(StrEnum):
    """How soon a person must act."""

    CRITICAL = "critical"
    MAJOR = "major"
    MINOR = "minor"


@attrs.frozen
class Meaning:
    """One kind as people read it."""

    title: str
    title_zh: str
    severity: Severity
    action: str
    """What an operator does."""
    action_zh: str
    about: About = About.DAEMON
    momentary: bool = False
    """True for what happened once and is over: no cause will go away, so acknowledging clears."""


MEANINGS: Final[dict[AlarmKind, Meaning]] = {
    AlarmKind.KEY_MISSING: Meaning(
        "USB-Key not inserted",
        "UKey 未插入",
        Severity.CRITICAL,
        "Insert the key of this slot; its bank's tasks wait and go on by themselves.",
        "插入该卡槽的 UKey；其银行的任务会等待，插入后自动继续。",
    ),
    AlarmKind.KEY_WRONG: Meaning(
        "Wrong USB-Key",
        "UKey 不匹配",
        Severity.CRITICAL,
        "Take the key out; insert the one the configuration names (GUID or serial, certificate).",
        "拔出该 UKey；插入配置中指定的那一把（GUID 或序列号、证书）。",
    ),
    AlarmKind.KEY_BLOCKED: Meaning(
        "USB-Key PIN blocked",
        "UKey PIN 已锁定",
        Severity.CRITICAL,
        "Unblock it with the PUK outside this machine, or ask the bank; then insert it again.",
        "在本机之外用 PUK 解锁，或联系银行；然后重新插入。",
    ),
    AlarmKind.KEY_PIN: Meaning(
        "USB-Key PIN needed",
        "UKey 需要 PIN",
        Severity.CRITICAL,
        "Correct the PIN credential, or run fepctl unlock SLOT, which asks for the PIN.",
        "更正 PIN 凭据，或运行 fepctl unlock SLOT 输入 PIN。",
    ),
    AlarmKind.KEY_EXPIRING: Meaning(
        "USB-Key certificate expires soon",
        "UKey 证书即将到期",
        Severity.MINOR,
        "Renew the certificate at the bank, then update the slot's certificate_sha256.",
        "到银行更新证书，然后更新卡槽的 certificate_sha256。",
    ),
    AlarmKind.KEY_FAULT: Meaning(
        "USB-Key does not answer rightly",
        "UKey 故障",
        Severity.MAJOR,
        "Take the key out and in again; if it comes back, try another port, then another key.",
        "拔出后重新插入；若再次出现，先换 USB 口，再换 UKey。",
    ),
    AlarmKind.KEY_SERVICE_DOWN: Meaning(
        "Smart-card service down",
        "智能卡服务中断",
        Severity.CRITICAL,
        "Restart pcscd, or see to the PKCS#11 library named; the slots come back by themselves.",
        "重启 pcscd，或检查所示的 PKCS#11 库；卡槽会自动恢复。",
    ),
    AlarmKind.LINK_DOWN: Meaning(
        "Bank connection down",
        "银行连接中断",
        Severity.CRITICAL,
        "Check the bank's front-end program and the network; the link reconnects by itself.",
        "检查银行前置程序和网络；连接会自动重建。",
    ),
    AlarmKind.BANK_HEARTBEAT_LOST: Meaning(
        "Bank does not answer heartbeats",
        "银行心跳丢失",
        Severity.MAJOR,
        "The connection was closed and is made anew; if it comes back, call the bank.",
        "连接已关闭并正在重建；若再次出现，请联系银行。",
    ),
    AlarmKind.SIGN_ON_REFUSED: Meaning(
        "Bank refused our user or password",
        "银行拒绝登录",
        Severity.CRITICAL,
        "Correct the password and restart the service; if the bank mended it: fepctl resume BANK.",
        "更正密码并重启服务；若是银行一方已修复：fepctl resume BANK。",
    ),
    AlarmKind.CLIENT_LOST: Meaning(
        "Finance system lost",
        "财务系统连接中断",
        Severity.MAJOR,
        "Check the finance system; its results are kept and told again when it returns.",
        "检查财务系统；其结果已保留，连接恢复后会重新告知。",
        about=About.CLIENT,
    ),
    AlarmKind.UNKNOWN_OVERDUE: Meaning(
        "Payment's end unknown for too long",
        "交易结果长时间未知",
        Severity.CRITICAL,
        "Do not pay again. Ask the bank; then two persons: fepctl resolve, fepctl confirm.",
        "切勿再次付款。询问银行；然后由两人办理：fepctl resolve 与 fepctl confirm。",
        about=About.TASK,
    ),
    AlarmKind.EVIDENCE_AMBIGUOUS: Meaning(
        "Statement does not tell payments apart",
        "明细无法唯一对应付款",
        Severity.MAJOR,
        "Compare the statement with fepctl why; then two persons: fepctl resolve, fepctl confirm.",
        "对照明细与 fepctl why；然后由两人办理：fepctl resolve 与 fepctl confirm。",
        about=About.TASK,
    ),
    AlarmKind.EVIDENCE_CONFLICT: Meaning(
        "Bank contradicts how a payment was closed",
        "银行应答与已定结果矛盾",
        Severity.CRITICAL,
        "Do not pay again. See fepctl why, ask the bank, and correct the books by hand.",
        "切勿再次付款。查看 fepctl why，询问银行，并手工更正账务。",
        about=About.TASK,
        momentary=True,
    ),
    AlarmKind.PAYMENT_RETURNED: Meaning(
        "Payment came back",
        "付款被退回（退票、冲账）",
        Severity.MAJOR,
        "See the bank's reason; if still wanted, the finance system submits a new task id.",
        "查看银行给出的原因；若仍需付款，由财务系统以新的任务ID提交。",
        about=About.TASK,
        momentary=True,
    ),
    AlarmKind.TASK_EXPIRED: Meaning(
        "Tasks expired unsent",
        "任务过期未发送",
        Severity.MAJOR,
        "Nothing was sent. If still wanted, the finance system submits a new task id.",
        "未发送任何内容。若仍需要，由财务系统以新的任务ID提交。",
        about=About.CLIENT,
        momentary=True,
    ),
    AlarmKind.QUEUE_NEARLY_FULL: Meaning(
        "Queue nearly full",
        "队列将满",
        Severity.MAJOR,
        "See which bank or client is behind (fepctl status); raise tasks.queue_max if need be.",
        "查看哪家银行或哪个客户端积压（fepctl status）；必要时调大 tasks.queue_max。",
    ),
    AlarmKind.STORE_FULL: Meaning(
        "Disk full",
        "磁盘已满",
        Severity.CRITICAL,
        "Free space on the state directory; nothing stored is lost, new tasks are refused.",
        "释放状态目录所在磁盘的空间；已存数据不会丢失，新任务会被拒绝。",
    ),
    AlarmKind.STORE_RESTORED: Meaning(
        "A backup was restored: no payment is sent",
        "已恢复备份，暂停付款",
        Severity.CRITICAL,
        "Compare fepctl restored with the banks' statements since the backup; then fepctl release.",
        "将 fepctl restored 与备份之后的银行明细逐笔核对；然后 fepctl release。",
    ),
    AlarmKind.LANE_FAILED: Meaning(
        "A part has failed for good",
        "处理通道失败",
        Severity.CRITICAL,
        "Read the log around lane.crashed and report it; restart the service to try again.",
        "查看 lane.crashed 前后的日志并上报；重启服务可再次尝试。",
    ),
    AlarmKind.POOL_BLOCKED: Meaning(
        "Pooling lacks a USB-Key",
        "归集缺少 UKey",
        Severity.MAJOR,
        "Insert the keys named; the accounts left out are in the next round.",
        "插入所示的 UKey；未归集的账户在下一轮处理。",
    ),
    AlarmKind.UNMATCHED_REPLY: Meaning(
        "A bank's answer matched no request",
        "收到无法匹配的银行应答",
        Severity.MINOR,
        "Its bytes are kept as evidence; look at it beside the payments that are unknown.",
        "其字节已留作证据；与结果未知的付款一并查看。",
        momentary=True,
    ),
    AlarmKind.MACHINE_LOST: Meaning(
        "Another front-end machine is silent",
        "另一台前置机失联",
        Severity.CRITICAL,
        "Start it again; whoever has the keys serves its banks meanwhile. Move keys if need be.",
        "重新启动它；其间由插有 UKey 的前置机服务其银行。必要时移动 UKey。",
    ),
    AlarmKind.STORE_DOWN: Meaning(
        "The shared database does not answer",
        "共享数据库无应答",
        Severity.CRITICAL,
        "See to the database. Until it answers nothing is taken and nothing is sent.",
        "检查数据库。在其应答之前不接收、也不发送任何任务。",
    ),
    AlarmKind.ALARM_UNDELIVERED: Meaning(
        "Alarms can't be sent out",
        "告警外发失败",
        Severity.MAJOR,
        "See fepctl channels for the reason; mend it, then fepctl channel-test NAME.",
        "用 fepctl channels 查看原因；修复后运行 fepctl channel-test NAME。",
    ),
    AlarmKind.CREDENTIAL_FAULT: Meaning(
        "A listener's certificate, token or key file is faulty or ends soon",
        "监听端口的证书、口令或密钥文件有误或即将到期",
        Severity.MAJOR,
        "Correct or renew the file named; until then new connections get the earlier one.",
        "更正或更新所指文件；在此之前新连接沿用原来的内容。",
    ),
    AlarmKind.CONFIG_STUCK: Meaning(
        "A configuration that nobody confirmed can't be taken back",
        "未确认的配置无法撤回",
        Severity.MAJOR,
        "See the cause: the file's folder, a secret that is gone; it is tried again every 10 s.",
        "查看原因：文件所在目录，或已不存在的密钥；每 10 秒重试一次。",
    ),
    AlarmKind.WATCH_FAILED: Meaning(
        "Returned payments may go unnoticed",
        "退票可能未被发现",
        Severity.MAJOR,
        "See the cause; look at the bank for payments of this account that came back.",
        "查看原因；在银行侧核对该账户是否有退票。",
        momentary=True,
    ),
    AlarmKind.POOL_STALLED: Meaning(
        "A pooling round does not end",
        "归集轮次迟迟未结束",
        Severity.MAJOR,
        "See what it waits for: fepctl pool round ROUND, fepctl why TASK. No other round begins.",
        "用 fepctl pool round 轮次、fepctl why 任务ID 查看在等什么；其间不会开始新的轮次。",
    ),
}


def kinds_about(about: About) -> list[AlarmKind]:
    """Return the kinds whose subjects are of a sort."""
    return [kind for kind in AlarmKind if MEANINGS[kind].about is about]


class AlarmState(StrEnum):
    """Where an alarm stands."""

    RAISED = "raised"
    ACKNOWLEDGED = "acknowledged"
    CLEARED = "cleared"


class AlarmEvent(StrEnum):
    """What can happen to it."""

    SEEN_AGAIN = "seen_again"
    ACKNOWLEDGE = "acknowledge"
    CLEAR = "clear"


TRANSITIONS: Final[dict[AlarmState, dict[AlarmEvent, AlarmState]]] = {
    AlarmState.RAISED: {
        AlarmEvent.SEEN_AGAIN: AlarmState.RAISED,
        AlarmEvent.ACKNOWLEDGE: AlarmState.ACKNOWLEDGED,
        AlarmEvent.CLEAR: AlarmState.CLEARED,
    },
    AlarmState.ACKNOWLEDGED: {
        AlarmEvent.SEEN_AGAIN: AlarmState.ACKNOWLEDGED,
        AlarmEvent.ACKNOWLEDGE: AlarmState.ACKNOWLEDGED,
        AlarmEvent.CLEAR: AlarmState.CLEARED,
    },
    AlarmState.CLEARED: {},
}


class IllegalTransitionError(LocalProtocolError):
    """An event came in a state without a row for it: a defect of ours."""

    code = "ILLEGAL_TRANSITION"


def step(state: AlarmState, event: AlarmEvent) -> AlarmState:
    """Return the state that follows.

    Raises:
        IllegalTransitionError: the table has no such row.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        msg = f"{event.value} can't happen to an alarm that is {state.value}"
        raise IllegalTransitionError(msg) from None


@attrs.define
class Alarm:
    """One cause at one subject, from when it was raised until it is cleared."""

    id: str
    kind: AlarmKind
    subject: str
    """Which slot, bank, client, task or pool."""
    cause: str
    raised_at: dt.datetime
    last_at: dt.datetime
    state: AlarmState = AlarmState.RAISED
    count: int = 1
    acknowledged_at: dt.datetime | None = None
    acknowledged_by: str = ""
    cleared_at: dt.datetime | None = None

    def seen_again(self, cause: str, now: dt.datetime) -> None:
        """Count the same cause once more."""
        self.state = step(self.state, AlarmEvent.SEEN_AGAIN)
        self.cause, self.last_at = cause, now
        self.count += 1

    def acknowledge(self, who: str, now: dt.datetime) -> None:
        """Note that a person acts."""
        self.state = step(self.state, AlarmEvent.ACKNOWLEDGE)
        self.acknowledged_at, self.acknowledged_by = now, who

    def clear(self, now: dt.datetime) -> None:
        """Note that it is over."""
        self.state = step(self.state, AlarmEvent.CLEAR)
        self.cleared_at = now

    def concerns(self, client: str, own: Container[str]) -> bool:
        """Say whether a client may see it: it is about its own tasks, or about what all have.

        Args:
            client: who asks.
            own: its tasks, at least those that alarms are about.
        """
        match MEANINGS[self.kind].about:
            case About.TASK:
                return self.subject in own
            case About.CLIENT:
                return self.subject == client
            case About.DAEMON:
                return True
            case about:
                assert_never(about)

    def value(self) -> dict[str, Any]:
        """Return it as the protocol shows it."""
        meaning = MEANINGS[self.kind]
        shown: dict[str, Any] = {
            "alarm_id": self.id,
            "kind": self.kind.value,
            "subject": self.subject,
            "state": self.state.value,
            "severity": meaning.severity.value,
            "title": meaning.title,
            "title_zh": meaning.title_zh,
            "cause": self.cause,
            "action": meaning.action,
            "action_zh": meaning.action_zh,
            "count": self.count,
            "raised_at": to_text(self.raised_at),
            "last_at": to_text(self.last_at),
        }
        if self.acknowledged_at is not None:
            shown["acknowledged_at"] = to_text(self.acknowledged_at)
            shown["acknowledged_by"] = self.acknowledged_by
        if self.cleared_at is not None:
            shown["cleared_at"] = to_text(self.cleared_at)
        return shown
