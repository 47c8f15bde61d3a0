"""The methods of the control protocol: one row each, with its parameters, roles and handler.

``docs/protocol.md`` has one section a row; a test compares the two.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from enum import StrEnum
from functools import partial
from typing import Annotated, Any, Final, Literal

import attrs
import msgspec

from fep.alarms.delivery import Delivery
from fep.alarms.service import Alarms
from fep.alarms.state import MEANINGS, About
from fep.control import config_commands as settings
from fep.control import probe
from fep.control import user_commands as people
from fep.control.audit import Audit
from fep.control.renewal import Renewals
from fep.domain.clock import Clock, to_text
from fep.domain.errors import FepError
from fep.domain.ids import TASK_ID_CHARS_MAX, BankName, ClientName, SlotName, TaskId
from fep.domain.order import PRIORITY_DEFAULT, PRIORITY_MAX, PRIORITY_MIN, Kind
from fep.keys.pin import TOKEN_PIN_CHARS_MAX
from fep.keys.service import KeyRing
from fep.links.service import BankLink
from fep.logs import Followers
from fep.machines.service import Machines
from fep.machines.state import POOLING, Machine, bank_place
from fep.pooling.service import PoolService
from fep.store.audit import Doer
from fep.tasks.service import TaskService
from fep.tasks.state import FINAL, State
from fep.users.service import Users
from fep.wire.proof import MAC_CHARS, NONCE_CHARS, TIME_MS_MAX

PROTOCOL_VERSION: Final = 1
EXPIRES_SECONDS_MAX: Final = 30 * 86_400.0
LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX = 100, 500
EVIDENCE_CHARS_MAX: Final = 2000


class Role(StrEnum):
    """What a session may do."""

    FINANCE = "finance"
    """财务系统: its own tasks."""
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


ALL: Final = frozenset(Role)
PEOPLE: Final = frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN})
ACTING: Final = frozenset({Role.OPERATOR, Role.ADMIN})
SUBMITTING: Final = frozenset({Role.FINANCE, Role.OPERATOR, Role.ADMIN})
ADMINS: Final = frozenset({Role.ADMIN})


class ProtocolRefusal(FepError):  # noqa: N818 - a refusal is an answer, not a defect
    """A request that is refused with one of the protocol's own codes; nothing was changed."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@attrs.frozen
class Caller:
    """Who asks: the session's client name and role."""

    name: ClientName
    role: Role
    session: str
    origin: str = ""
    """From where, for the record."""
    reads: AbstractAsyncContextManager[Any] = attrs.field(factory=nullcontext, eq=False, repr=False)
    """Held while something is read from the store for this client, over all its sessions: the store
    has few readers, and one client must not have them all."""

    @property
    def owner(self) -> ClientName | None:
        """The client whose tasks it may see; None = everybody's."""
        return self.name if self.role is Role.FINANCE else None


@attrs.define
class Services:
    """What the methods act on; the daemon puts it together and changes it on reload."""

    tasks: TaskService
    ring: KeyRing
    links: Mapping[BankName, BankLink]
    alarms: Alarms
    delivery: Delivery
    pools: PoolService
    users: Users
    audit: Audit
    followers: Followers
    clock: Clock
    started_at: dt.datetime
    version: str
    show_config: Callable[[], dict[str, Any]]
    check_config: Callable[[], Awaitable[list[str]]]
    apply_config: Callable[[str], Awaitable[dict[str, Any]]]
    """Takes who applies it; returns what changed."""
    settings: settings.Settings
    closed: Callable[[], str] | None = None
    """Says why no session opens at this moment; None: they open."""
    machines: Machines | None = None
    """None: this machine shares its store with no other."""
    machine_name: str = "fep"
    """This front-end machine's number, for people."""
    console: list[str] = attrs.Factory(list)
    """Where the console listens."""
    metrics: list[str] = attrs.Factory(list)
    """Where the page of metrics is."""
    sessions: dict[Role, int] = attrs.Factory(lambda: dict.fromkeys(Role, 0))
    """How many are open."""
    renewals: Renewals = attrs.field(kw_only=True)
    """The files that listeners read anew while they serve."""


class NoParams(msgspec.Struct, forbid_unknown_fields=True):
    """No members."""


class ProofParams(msgspec.Struct, forbid_unknown_fields=True):
    """What proves that the client holds a key; see ``fep.wire.proof``."""

    key_id: str
    time: Annotated[int, msgspec.Meta(ge=0, le=TIME_MS_MAX)]
    """Milliseconds since 1970, UTC."""
    nonce: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{NONCE_CHARS}}}\\Z")]
    mac: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{MAC_CHARS}}}\\Z")]


class OpenParams(msgspec.Struct, forbid_unknown_fields=True):
    """session.open."""

    client: str
    token: str | None = None
    proof: ProofParams | None = None


class HeartbeatParams(msgspec.Struct, forbid_unknown_fields=True):
    """session.heartbeat."""

    seq: int
    time: str


class SubmitParams(msgspec.Struct, forbid_unknown_fields=True):
    """task.submit."""

    task_id: str
    bank: str
    kind: Kind
    priority: Annotated[int, msgspec.Meta(ge=PRIORITY_MIN, le=PRIORITY_MAX)] = PRIORITY_DEFAULT
    expires_s: Annotated[float, msgspec.Meta(gt=0, le=EXPIRES_SECONDS_MAX)] | None = None
    body: BodyParams | None = None


class BodyParams(msgspec.Struct, forbid_unknown_fields=True):
    """A task's body, as task.fetch asks for it."""

    kind: str
    params: msgspec.Raw


class TaskParams(msgspec.Struct, forbid_unknown_fields=True):
    """Methods about one task."""

    task_id: TaskId


class ListParams(msgspec.Struct, forbid_unknown_fields=True):
    """task.list."""

    state: State | None = None
    bank: str | None = None
    kind: Kind | None = None
    find: Annotated[str, msgspec.Meta(max_length=TASK_ID_CHARS_MAX)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=LIST_LIMIT_MAX)] = LIST_LIMIT_DEFAULT
    cursor: Annotated[str, msgspec.Meta(pattern="^[0-9]{1,18}\\Z")] | None = None


class ResolveParams(msgspec.Struct, forbid_unknown_fields=True):
    """task.resolve."""

    task_id: TaskId
    outcome: Literal["succeeded", "rejected"]
    evidence: Annotated[str, msgspec.Meta(max_length=EVIDENCE_CHARS_MAX)]


class ConfirmParams(msgspec.Struct, forbid_unknown_fields=True):
    """task.confirm."""

    task_id: TaskId
    outcome: Literal["succeeded", "rejected"] | None = None


class SlotUnlockParams(msgspec.Struct, forbid_unknown_fields=True):
    """slot.unlock."""

    slot: str
    pin: Annotated[str, msgspec.Meta(max_length=TOKEN_PIN_CHARS_MAX)]
    """What form a PIN has depends on the slot, which looks at it."""


class ReleaseParams(msgspec.Struct, forbid_unknown_fields=True):
    """restore.release."""

    evidence: Annotated[str, msgspec.Meta(max_length=EVIDENCE_CHARS_MAX)]


class BankParams(msgspec.Struct, forbid_unknown_fields=True):
    """link.drain and link.resume."""

    bank: str


class AlarmListParams(msgspec.Struct, forbid_unknown_fields=True):
    """alarm.list."""

    all: bool = False
    limit: Annotated[int, msgspec.Meta(ge=1, le=LIST_LIMIT_MAX)] = LIST_LIMIT_DEFAULT


class AlarmParams(msgspec.Struct, forbid_unknown_fields=True):
    """alarm.acknowledge."""

    alarm_id: str


class ChannelParams(msgspec.Struct, forbid_unknown_fields=True):
    """alarm.test."""

    channel: str


class FollowParams(msgspec.Struct, forbid_unknown_fields=True):
    """events.follow."""

    prefix: str = ""
    """Only events whose name begins so, such as ``task.``."""


class PoolParams(msgspec.Struct, forbid_unknown_fields=True):
    """pool.plan and pool.run."""

    pool: str


class RoundParams(msgspec.Struct, forbid_unknown_fields=True):
    """pool.round."""

    round_id: str


Handler = Callable[[Services, Caller, Any], Awaitable[Any]]
Where = Callable[[Services, Machines, Caller, Any], Awaitable[Machine | None]]
"""Returns the other machine that must do it, None when this one does."""


@attrs.frozen
class Method:
    """One row: who may call it, with what, and what answers."""

    params: type[msgspec.Struct]
    roles: frozenset[Role]
    summary: str
    handle: Handler | None = None
    """None: the session itself answers."""
    reads: bool = False
    """It reads the store: a client's next one waits for it."""
    acts: bool = False
    """It changes something: once begun it is done, also when its client hangs up."""
    where: Where | None = None
    """Of several machines, which one does it; None: any."""


async def _at_task(
    services: Services, machines: Machines, caller: Caller, params: TaskParams | ResolveParams
) -> Machine | None:
    """Return the machine that serves the bank of a task: it alone changes the task."""
    async with caller.reads:
        found = await services.tasks.get(caller.owner, params.task_id)
    bank = BankName(found["bank"])
    if State(found["state"]) in FINAL or services.tasks.is_here(bank):
        return None
    to = _holder(machines, bank_place(bank), f"bank {bank}")
    if to is None:
        msg = f"this machine is just taking over bank {bank}; try again"
        raise ProtocolRefusal("BAD_STATE", msg)
    return to


async def _at_pooling(
    _services: Services,
    machines: Machines,
    _caller: Caller,
    _params: Any,  # noqa: ANN401
) -> Machine | None:
    return _holder(machines, POOLING, "pooling")


async def _at_alarm(
    _services: Services, machines: Machines, _caller: Caller, params: AlarmParams
) -> Machine | None:
    """Return the machine that raised an alarm: its id begins with the machine's number."""
    number = params.alarm_id.rpartition("/")[0]
    return next((one for one in machines.others() if one.number == number), None)


def _holder(machines: Machines, place: str, what: str) -> Machine | None:
    holder = machines.holder(place)
    if holder is None:
        msg = f"no machine serves {what} at this moment; try again"
        raise ProtocolRefusal("BAD_STATE", msg)
    return None if holder.number == machines.me.number else holder


async def perform(services: Services, caller: Caller, method: str, params: msgspec.Struct) -> Any:  # noqa: ANN401
    """Do what is asked, or have the machine do it that must; return its value.

    What a person changes is recorded: that it was asked for, before it is done, and how it ended.

    Raises:
        FepError: it was refused.
    """
    row = METHODS[method]
    if row.reads:
        async with caller.reads:
            return await _do(services, caller, method, params)
    if not row.acts or caller.role not in PEOPLE:
        return await _do(services, caller, method, params)
    about = msgspec.to_builtins(params)
    about.pop("text", None)  # of a configuration: its versions have it
    doer = Doer(caller.name, caller.role.value, caller.origin)
    act = partial(_do, services, caller, method, params)
    return await services.audit.recorded(doer, method, about, act)


async def _do(services: Services, caller: Caller, method: str, params: msgspec.Struct) -> Any:  # noqa: ANN401
    row = METHODS[method]
    assert row.handle is not None
    if services.machines is not None and row.where is not None:
        to = await row.where(services, services.machines, caller, params)
        if to is not None:
            ask = {"method": method, "params": msgspec.to_builtins(params)}
            return await services.machines.ask(to, ask | {"name": caller.name, "role": caller.role})
    return await row.handle(services, caller, params)


async def answer(services: Services, ask: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Do what another machine asks for a caller of its own; its session checked the role.

    Raises:
        FepError: it was refused.
    """
    row = METHODS[ask["method"]]
    assert row.handle is not None
    caller = Caller(ClientName(ask["name"]), Role(ask["role"]), "")
    return await row.handle(services, caller, msgspec.convert(ask["params"], row.params))


async def _task_get(services: Services, caller: Caller, params: TaskParams) -> Any:  # noqa: ANN401
    return await services.tasks.get(caller.owner, params.task_id)


async def _task_list(services: Services, caller: Caller, params: ListParams) -> Any:  # noqa: ANN401
    tasks, before = await services.tasks.page(
        caller.owner,
        state=params.state,
        bank=params.bank,
        kind=params.kind,
        find=params.find,
        limit=params.limit,
        before=None if params.cursor is None else int(params.cursor),
    )
    if not tasks and params.bank is not None and params.bank not in services.tasks.banks():
        # One that has left the configuration is found by its tasks.
        names = ", ".join(services.tasks.banks())
        msg = f"no bank {params.bank!r}, and no tasks of it; there are: {names}"
        raise ProtocolRefusal("UNKNOWN_BANK", msg)
    return {"tasks": tasks} | ({} if before is None else {"cursor": str(before)})


async def _task_cancel(services: Services, caller: Caller, params: TaskParams) -> Any:  # noqa: ANN401
    state = await services.tasks.cancel(
        caller.owner,
        params.task_id,
        f"{caller.role} {caller.name}",
        caller.reads,
    )
    return {"state": state.value}


async def _task_why(services: Services, caller: Caller, params: TaskParams) -> Any:  # noqa: ANN401
    return await services.tasks.why(caller.owner, params.task_id)


async def _task_resolve(services: Services, caller: Caller, params: ResolveParams) -> Any:  # noqa: ANN401
    await services.tasks.resolve(
        caller.name, params.task_id, State(params.outcome), params.evidence
    )
    return {"task_id": params.task_id, "proposed": params.outcome, "needs": "task.confirm"}


async def _task_confirm(services: Services, caller: Caller, params: ConfirmParams) -> Any:  # noqa: ANN401
    seen = None if params.outcome is None else State(params.outcome)
    state = await services.tasks.confirm(caller.name, params.task_id, seen)
    return {"task_id": params.task_id, "state": state.value}


async def _status(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    slots = [slot.snapshot() for slot in services.ring.slots.values()]
    links = [link.snapshot() for link in services.links.values()]
    now, held_since = services.clock.now(), services.tasks.held_since
    shared = {} if services.machines is None else _machines(services.machines)
    return {
        **shared,
        "version": services.version,
        "protocol": PROTOCOL_VERSION,
        "time": to_text(now),
        "uptime_s": round((now - services.started_at).total_seconds(), 1),
        "configuration": services.tasks.configuration,
        "queue": services.tasks.status(),
        "slots": {one.name: one.state.value for one in slots},
        "links": {one.bank: one.state.value for one in links},
        "alarms": len(services.alarms.active()),
        "store_full": services.tasks.store.full,
        "held_since": None if held_since is None else to_text(held_since),
    }


def _machines(machines: Machines) -> dict[str, Any]:
    """Return this machine's number, and what the machines that share the store serve."""
    look = machines.look
    served: dict[str, list[str]] = {one.number: [] for one in look.alive()}
    for what in sorted(look.places):
        holder = look.holder(what)
        if holder is not None:
            served[holder.number].append(what)
    return {"machine": machines.me.number, "machines": served}


async def _slot_list(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return {"slots": [plain(slot.snapshot()) for slot in services.ring.slots.values()]}


async def _slot_unlock(services: Services, _caller: Caller, params: SlotUnlockParams) -> Any:  # noqa: ANN401
    slot = services.ring.slots.get(SlotName(params.slot))
    if slot is None:
        names = ", ".join(sorted(services.ring.slots))
        raise ProtocolRefusal("NOT_FOUND", f"no slot {params.slot!r}; there are: {names}")
    try:
        await slot.unlock(params.pin)
    except ValueError as error:
        msg = f"{error}; nothing was sent to the key"
        raise ProtocolRefusal("KEY_UNAVAILABLE", msg) from error
    return plain(slot.snapshot())


async def _link_list(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    lanes = services.tasks.status()["banks"]
    return {
        "links": [
            plain(link.snapshot())
            | {"drained": lanes[bank]["drained"], "in_flight": lanes[bank]["in_flight"]}
            for bank, link in services.links.items()
        ]
    }


async def _link_drain(services: Services, _caller: Caller, params: BankParams) -> Any:  # noqa: ANN401
    await services.tasks.set_drained(BankName(params.bank), value=True)
    return {"bank": params.bank, "drained": True}


async def _link_test(services: Services, _caller: Caller, params: BankParams) -> Any:  # noqa: ANN401
    link = services.links.get(BankName(params.bank))
    if link is None:
        names = ", ".join(sorted(services.links))
        raise ProtocolRefusal("UNKNOWN_BANK", f"no link to {params.bank!r}; there are: {names}")
    return await probe.tried(link)


async def _link_resume(services: Services, _caller: Caller, params: BankParams) -> Any:  # noqa: ANN401
    await services.tasks.set_drained(BankName(params.bank), value=False)
    return {"bank": params.bank, "drained": False}


async def _restore_show(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return await services.tasks.restored()


async def _restore_release(services: Services, caller: Caller, params: ReleaseParams) -> Any:  # noqa: ANN401
    return {"released": await services.tasks.release(caller.name, params.evidence)}


async def _alarm_list(services: Services, caller: Caller, params: AlarmListParams) -> Any:  # noqa: ANN401
    owner = caller.owner
    if params.all:
        shown = await services.alarms.recent(params.limit, owner)
    else:
        shown = services.alarms.active()
        if owner is not None:
            asked = [one.subject for one in shown if MEANINGS[one.kind].about is About.TASK]
            own = await services.tasks.own(owner, asked)
            shown = [one for one in shown if one.concerns(owner, own)]
    return {"alarms": [alarm.value() for alarm in shown[: params.limit]]}


async def _alarm_acknowledge(services: Services, caller: Caller, params: AlarmParams) -> Any:  # noqa: ANN401
    try:
        alarm = await services.alarms.acknowledge(params.alarm_id, caller.name)
    except LookupError as error:
        raise ProtocolRefusal("NOT_FOUND", f"no active alarm {params.alarm_id!r}") from error
    return alarm.value()


async def _alarm_channels(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return {"channels": services.delivery.status()}


async def _alarm_test(services: Services, _caller: Caller, params: ChannelParams) -> Any:  # noqa: ANN401
    try:
        return await services.delivery.test(params.channel)
    except LookupError as error:
        raise ProtocolRefusal("NOT_FOUND", f"no alarm channel {params.channel!r}") from error


async def _config_show(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return services.show_config()


async def _config_check(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return {"faults": await services.check_config()}


async def _config_apply(services: Services, caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return await services.apply_config(caller.name)


async def _pool_list(services: Services, _caller: Caller, _params: NoParams) -> Any:  # noqa: ANN401
    return {"pools": await services.pools.overview()}


async def _pool_plan(services: Services, _caller: Caller, params: PoolParams) -> Any:  # noqa: ANN401
    return await services.pools.plan(params.pool)


async def _pool_run(services: Services, caller: Caller, params: PoolParams) -> Any:  # noqa: ANN401
    return await services.pools.start_round(params.pool, f"{caller.role} {caller.name}")


async def _pool_round(services: Services, _caller: Caller, params: RoundParams) -> Any:  # noqa: ANN401
    return await services.pools.round(params.round_id)


METHODS: Final[dict[str, Method]] = {
    "session.open": Method(OpenParams, ALL, "begin; must be the first line"),
    "session.heartbeat": Method(HeartbeatParams, ALL, "notification: this side lives"),
    "session.close": Method(NoParams, ALL, "end in order"),
    "task.submit": Method(SubmitParams, SUBMITTING, "put a task into the queue"),
    "task.get": Method(TaskParams, ALL, "one task", _task_get, reads=True),
    "task.list": Method(ListParams, ALL, "tasks, newest first", _task_list, reads=True),
    "task.cancel": Method(
        TaskParams,
        SUBMITTING,
        "cancel before the first byte",
        _task_cancel,
        acts=True,
        where=_at_task,
    ),
    "task.why": Method(TaskParams, ALL, "the causal chain of a task", _task_why, reads=True),
    "task.resolve": Method(
        ResolveParams,
        ACTING,
        "propose an unknown's end",
        _task_resolve,
        acts=True,
        where=_at_task,
    ),
    "task.confirm": Method(
        ConfirmParams,
        ACTING,
        "confirm another's proposal",
        _task_confirm,
        acts=True,
        where=_at_task,
    ),
    "status": Method(NoParams, ALL, "the daemon at a glance", _status),
    "slot.list": Method(NoParams, ALL, "key slots and their states", _slot_list),
    "slot.unlock": Method(
        SlotUnlockParams, ACTING, "give a slot its PIN, once", _slot_unlock, acts=True
    ),
    "link.list": Method(NoParams, ALL, "bank connections and their states", _link_list),
    "link.drain": Method(BankParams, ACTING, "send nothing more to a bank", _link_drain, acts=True),
    "link.resume": Method(BankParams, ACTING, "send to a bank again", _link_resume, acts=True),
    "link.test": Method(
        BankParams, ACTING, "try whether a bank can be reached", _link_test, acts=True
    ),
    "restore.show": Method(
        NoParams, PEOPLE, "payments that are held after a restore", _restore_show, reads=True
    ),
    "restore.release": Method(
        ReleaseParams, ACTING, "send payments again after a restore", _restore_release, acts=True
    ),
    "alarm.list": Method(AlarmListParams, ALL, "alarms", _alarm_list, reads=True),
    "alarm.acknowledge": Method(
        AlarmParams, ACTING, "say that you act", _alarm_acknowledge, acts=True, where=_at_alarm
    ),
    "alarm.channels": Method(
        NoParams, PEOPLE, "where alarms are sent, and how that goes", _alarm_channels
    ),
    "alarm.test": Method(
        ChannelParams, ACTING, "send a test message by a channel", _alarm_test, acts=True
    ),
    "config.show": Method(NoParams, PEOPLE, "the configuration in force", _config_show),
    "config.check": Method(NoParams, PEOPLE, "faults of the file on disk", _config_check),
    "config.apply": Method(
        NoParams, ADMINS, "take the file on disk into force", _config_apply, acts=True
    ),
    "config.draft": Method(
        settings.DraftParams, ADMINS, "what a changed file would mean", settings.config_draft
    ),
    "config.try": Method(
        settings.TryParams, ADMINS, "reach a bank of a draft", settings.config_try
    ),
    "config.save": Method(
        settings.SaveParams,
        ADMINS,
        "write the file and take it into force",
        settings.config_save,
        acts=True,
    ),
    "config.confirm": Method(
        settings.ConfirmConfigParams,
        ADMINS,
        "keep a version that is in force for a time",
        settings.config_confirm,
        acts=True,
    ),
    "config.rollback": Method(
        settings.RollbackParams,
        ADMINS,
        "take an earlier version into force",
        settings.config_rollback,
        acts=True,
    ),
    "config.versions": Method(
        settings.VersionsParams,
        ADMINS,
        "every version, newest first",
        settings.config_versions,
        reads=True,
    ),
    "config.version": Method(
        settings.VersionParams,
        ADMINS,
        "one version with its text",
        settings.config_version,
        reads=True,
    ),
    "config.adapters": Method(
        NoParams, ADMINS, "what each adapter wants to be told", settings.config_adapters
    ),
    "events.follow": Method(FollowParams, PEOPLE, "then `event` notifications"),
    "events.unfollow": Method(NoParams, PEOPLE, "no more `event` notifications"),
    "pool.list": Method(NoParams, PEOPLE, "pools and their last rounds", _pool_list, reads=True),
    "pool.plan": Method(
        PoolParams, PEOPLE, "what a round would do now", _pool_plan, where=_at_pooling
    ),
    "pool.run": Method(
        PoolParams, ACTING, "start a round now", _pool_run, acts=True, where=_at_pooling
    ),
    "pool.round": Method(
        RoundParams,
        PEOPLE,
        "one round and its accounts",
        _pool_round,
        reads=True,
        where=_at_pooling,
    ),
    "user.list": Method(NoParams, ADMINS, "who may use the console", people.user_list, reads=True),
    "user.add": Method(
        people.UserAddParams, ADMINS, "make a user of the console", people.user_add, acts=True
    ),
    "user.passwd": Method(
        people.UserPasswordParams, ADMINS, "give a user a password", people.user_passwd, acts=True
    ),
    "user.change": Method(
        people.UserChangeParams, ADMINS, "change what a user may do", people.user_change, acts=True
    ),
    "user.log_out": Method(
        people.UserParams, ADMINS, "end a user's sessions", people.user_log_out, acts=True
    ),
    "user.own_password": Method(
        people.OwnPasswordParams,
        PEOPLE,
        "change one's own password",
        people.user_own_password,
        acts=True,
    ),
    "user.own_totp": Method(
        people.OwnTotpParams,
        PEOPLE,
        "begin or end one's own one-time codes",
        people.user_own_totp,
        acts=True,
    ),
    "audit.list": Method(
        people.AuditParams, PEOPLE, "what people did, newest first", people.audit_list, reads=True
    ),
}


def not_permitted(role: Role, method: str) -> str:
    """Return why a role may not call a method."""
    needed = ", ".join(sorted(METHODS[method].roles))
    return f"{method} needs one of the roles {needed}; this session is {role.value}"


def plain(snapshot: Any) -> dict[str, Any]:  # noqa: ANN401 - any attrs class
    """Return an attrs snapshot as a JSON object: enums by value, times as text."""

    def one(_instance: Any, _attribute: Any, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, StrEnum):
            return value.value
        if isinstance(value, dt.datetime):
            return to_text(value)
        return value

    return attrs.asdict(snapshot, value_serializer=one)
