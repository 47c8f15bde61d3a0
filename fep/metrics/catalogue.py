"""Every metric of ours: its name, what it says, and where its samples come from. Pure.

``docs/metrics.md`` has one row a metric; a test compares the two. Labels have few values: banks,
slots, kinds and states, never an account, a client or a task.
"""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import attrs

from fep.alarms.state import MEANINGS
from fep.control.commands import Services
from fep.domain.clock import from_text
from fep.domain.histogram import Histogram
from fep.keys.slot import SlotSnapshot
from fep.keys.state import SlotState
from fep.links.service import LinkSnapshot
from fep.links.state import LinkState
from fep.tasks.state import FINAL, State

OPEN: Final = tuple(state for state in State if state not in FINAL)
"""What an open task may be."""


class Form(StrEnum):
    """What Prometheus takes a metric for."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@attrs.frozen
class Disk:
    """The store's file and its file system, in bytes."""

    store: int
    log: int
    """Of what is written ahead (WAL)."""
    free: int
    size: int


@attrs.define(slots=False)
class Look:
    """The daemon at the moment of one scrape."""

    services: Services
    lag: Histogram
    disk: Disk | None = None
    """None: the file system did not answer in time, or the store is no file."""
    tasks: Mapping[str, int] = attrs.Factory(dict)
    """Tasks of trio: how many live, and how many could run."""

    @cached_property
    def queue(self) -> dict[str, Any]:
        """The queue's figures."""
        return self.services.tasks.status()

    @cached_property
    def links(self) -> list[LinkSnapshot]:
        """All bank connections."""
        return [link.snapshot() for link in self.services.links.values()]

    @cached_property
    def slots(self) -> list[SlotSnapshot]:
        """All key slots."""
        return [slot.snapshot() for slot in self.services.ring.slots.values()]

    @cached_property
    def now(self) -> dt.datetime:
        """The wall clock, aware UTC."""
        return self.services.clock.now()


Sample = tuple[tuple[str, ...], float | Histogram]
"""Values of the labels, and the metric's."""
Source = Callable[[Look], Iterator[Sample]]


@attrs.frozen
class Metric:
    """One row: name, form, what it says (unit included in the name), labels, and its samples."""

    name: str
    form: Form
    help: str
    labels: tuple[str, ...]
    samples: Source


# -- the queue ------------------------------------------------------------------------------------


def _banks(look: Look, member: str) -> Iterator[Sample]:
    for bank, row in look.queue["banks"].items():
        yield (bank,), float(row[member])


def _waiting(look: Look) -> Iterator[Sample]:
    for bank, row in look.queue["banks"].items():
        since = row["waiting_since"]
        age = 0.0 if since is None else (look.now - from_text(since)).total_seconds()
        yield (bank,), max(age, 0.0)


def _open(look: Look) -> Iterator[Sample]:
    for bank, row in look.queue["banks"].items():
        for state in OPEN:
            yield (bank, state.value), row["open"].get(state.value, 0)


# Others work between two pieces of a page, so what may get new rows is listed first.


def _ended(look: Look) -> Iterator[Sample]:
    for (bank, kind, state), seconds in list(look.services.tasks.figures.ended.items()):
        yield (bank, kind.value, state.value), seconds


def _exchanges(look: Look) -> Iterator[Sample]:
    for (bank, kind, how), seconds in list(look.services.tasks.figures.exchanges.items()):
        yield (bank, kind, how.value), seconds


def _traced(look: Look) -> Iterator[Sample]:
    tracing = look.services.tasks.tracing
    yield ("sent",), tracing.sent
    yield ("dropped",), tracing.dropped


def _mailed(look: Look) -> Iterator[Sample]:
    yield (), len(look.services.tasks.present)


# -- bank connections -----------------------------------------------------------------------------


def _links(look: Look, member: str) -> Iterator[Sample]:
    for link in look.links:
        yield (link.bank,), float(getattr(link, member))


def _link_states(look: Look) -> Iterator[Sample]:
    for link in look.links:
        for state in LinkState:
            yield (link.bank, state.value), float(link.state is state)


def _silence(look: Look) -> Iterator[Sample]:
    for link in look.links:
        if link.last_reply_at is not None:
            yield (link.bank,), max((look.now - link.last_reply_at).total_seconds(), 0.0)


# -- key slots ------------------------------------------------------------------------------------


def _slot_states(look: Look) -> Iterator[Sample]:
    for slot in look.slots:
        for state in SlotState:
            yield (slot.name, state.value), float(slot.state is state)


def _slot_ready(look: Look) -> Iterator[Sample]:
    for name, slot in look.services.ring.slots.items():
        yield (name,), float(slot.is_open)


def _insertions(look: Look) -> Iterator[Sample]:
    for slot in look.slots:
        yield (slot.name,), slot.generation


def _expiry(look: Look) -> Iterator[Sample]:
    for slot in look.slots:
        if slot.not_after is not None:
            yield (slot.name,), (slot.not_after - look.now).total_seconds()


def _signatures(look: Look) -> Iterator[Sample]:
    for name, slot in look.services.ring.slots.items():
        yield (name,), slot.signatures


def _refused(look: Look) -> Iterator[Sample]:
    for name, slot in look.services.ring.slots.items():
        yield (name,), slot.refused


# -- alarms, store, sessions ----------------------------------------------------------------------


def _alarms(look: Look) -> Iterator[Sample]:
    counts = {(kind.value, state): 0 for kind in MEANINGS for state in ("raised", "acknowledged")}
    for alarm in look.services.alarms.active():
        counts[alarm.kind.value, alarm.state.value] += 1
    for kind, meaning in MEANINGS.items():
        for state in ("raised", "acknowledged"):
            yield (kind.value, meaning.severity.value, state), counts[kind.value, state]


def _raised(look: Look) -> Iterator[Sample]:
    for kind, count in look.services.alarms.raised.items():
        yield (kind.value, MEANINGS[kind].severity.value), count


def _disk(look: Look, member: str) -> Iterator[Sample]:
    if look.disk is not None:
        yield (), getattr(look.disk, member)


def _sessions(look: Look) -> Iterator[Sample]:
    for role, count in look.services.sessions.items():
        yield (role.value,), count


def _places(look: Look) -> Iterator[Sample]:
    machines = look.services.machines
    if machines is not None:
        for place in sorted(machines.look.places):
            holder = machines.holder(place)
            is_ours = holder is not None and holder.number == machines.me.number
            yield (place,), float(is_ours)


def _machines(look: Look) -> Iterator[Sample]:
    machines = look.services.machines
    if machines is not None:
        yield (), len(machines.look.alive())


# -- the process ----------------------------------------------------------------------------------


def _build(look: Look) -> Iterator[Sample]:
    yield (look.services.version, platform.python_version()), 1.0


def _configuration(look: Look) -> Iterator[Sample]:
    yield (look.services.tasks.configuration,), 1.0


def _loop(look: Look) -> Iterator[Sample]:
    for state, count in look.tasks.items():
        yield (state,), count


def _one(value: Callable[[Look], float | Histogram]) -> Source:
    """Return the source of a metric without labels."""

    def samples(look: Look) -> Iterator[Sample]:
        yield (), value(look)

    return samples


def _of(each: Callable[[Look, str], Iterator[Sample]], member: str) -> Source:
    return lambda look: each(look, member)


_G, _C, _H = Form.GAUGE, Form.COUNTER, Form.HISTOGRAM

METRICS: Final = (
    Metric(
        "fep_tasks_open", _G, "Open tasks by bank and state.",
        ("bank", "state"), _open,
    ),
    Metric(
        "fep_queue_limit_tasks", _G, "How many tasks may be open (tasks.queue_max).",
        (), _one(lambda look: look.queue["queue_max"]),
    ),
    Metric(
        "fep_tasks_admitted_total", _C, "Tasks that were taken into the queue, each once.",
        (), _one(lambda look: look.services.tasks.figures.admitted),
    ),
    Metric(
        "fep_trace_notes_total", _C,
        "What the queue told for traces (ends, signatures, requests), by what became of it.",
        ("result",), _traced,
    ),
    Metric(
        "fep_task_duration_seconds", _H, "Tasks at their end: seconds since the submission.",
        ("bank", "kind", "state"), _ended,
    ),
    Metric(
        "fep_oldest_waiting_seconds", _G,
        "For how long the oldest task has waited to be fetched or sent; 0: none waits.",
        ("bank",), _waiting,
    ),
    Metric(
        "fep_tasks_in_hands", _G, "Tasks that a bank's workers hold.",
        ("bank",), _of(_banks, "in_flight"),
    ),
    Metric(
        "fep_bank_drained", _G, "1: an operator stopped sending to the bank.",
        ("bank",), _of(_banks, "drained"),
    ),
    Metric(
        "fep_payments_held", _G, "1: a backup was restored, and no payment is sent.",
        (), _one(lambda look: float(look.services.tasks.held_since is not None)),
    ),
    Metric("fep_clients_present", _G, "Clients of the queue that are connected.", (), _mailed),
    Metric(
        "fep_bank_request_duration_seconds", _H,
        "Requests to a bank, by kind and end: answered, no_answer, lost or not_sent.",
        ("bank", "kind", "result"), _exchanges,
    ),
    Metric(
        "fep_link_up", _G, "1: the bank takes requests: logged on, and the key is there.",
        ("bank",), _of(_links, "is_open"),
    ),
    Metric(
        "fep_link_state", _G, "1 at the state that a bank's connection is in, else 0.",
        ("bank", "state"), _link_states,
    ),
    Metric(
        "fep_link_connections", _G, "How many connections a bank's link holds when all is well.",
        ("bank",), _of(_links, "connections"),
    ),
    Metric(
        "fep_link_connections_ready", _G, "How many of them are ready.",
        ("bank",), _of(_links, "connections_ready"),
    ),
    Metric(
        "fep_link_in_flight", _G, "Requests that wait for the bank's answer, probes too.",
        ("bank",), _of(_links, "in_flight"),
    ),
    Metric(
        "fep_link_requests_total", _C, "Requests handed to a bank's link, without its own probes.",
        ("bank",), _of(_links, "requests"),
    ),
    Metric(
        "fep_link_log_ons_total", _C, "How often the bank let us in; the first is no reconnection.",
        ("bank",), _of(_links, "log_ons"),
    ),
    Metric(
        "fep_link_losses_total", _C, "Attempts to connect and connections that failed.",
        ("bank",), _of(_links, "losses"),
    ),
    Metric(
        "fep_link_failures", _G, "Failures since the last log-on; from 3 on there is an alarm.",
        ("bank",), _of(_links, "failures"),
    ),
    Metric(
        "fep_link_unmatched_replies_total", _C, "Answers of a bank that nobody waited for.",
        ("bank",), _of(_links, "unmatched"),
    ),
    Metric(
        "fep_link_silence_seconds", _G, "Since the bank's last answer, of probes too.",
        ("bank",), _silence,
    ),
    Metric("fep_slot_ready", _G, "1: the slot's key can sign.", ("slot",), _slot_ready),
    Metric(
        "fep_slot_state", _G, "1 at the state that a key slot is in, else 0.",
        ("slot", "state"), _slot_states,
    ),
    Metric(
        "fep_slot_insertions_total", _C, "How often the slot's key was put in.",
        ("slot",), _insertions,
    ),
    Metric(
        "fep_slot_certificate_expiry_seconds", _G,
        "Until the certificate of the slot's key ends; below 0 it has ended.",
        ("slot",), _expiry,
    ),
    Metric(
        "fep_signature_duration_seconds", _H, "Signatures that were made, from the request on.",
        ("slot",), _signatures,
    ),
    Metric(
        "fep_signatures_refused_total", _C, "Signatures that were asked for and not made.",
        ("slot",), _refused,
    ),
    Metric(
        "fep_alarms_active", _G, "Alarms in force, by kind, severity, and whether a person acts.",
        ("kind", "severity", "state"), _alarms,
    ),
    Metric(
        "fep_alarms_raised_total", _C, "Alarms that were raised; one that comes again counts once.",
        ("kind", "severity"), _raised,
    ),
    Metric(
        "fep_store_commit_duration_seconds", _H, "Groups of changes: from the first to the sync.",
        (), _one(lambda look: look.services.tasks.store.commits),
    ),
    Metric(
        "fep_store_works_total", _C, "Pieces of work in those groups.",
        (), _one(lambda look: look.services.tasks.store.works),
    ),
    Metric(
        "fep_store_waiting", _G, "Pieces of work that wait for the disk.",
        (), _one(lambda look: look.services.tasks.store.waiting),
    ),
    Metric(
        "fep_store_full", _G, "1: the disk is full, new tasks are refused.",
        (), _one(lambda look: float(look.services.tasks.store.full)),
    ),
    Metric("fep_store_size_bytes", _G, "Of the store's file.", (), _of(_disk, "store")),
    Metric(
        "fep_store_log_size_bytes", _G, "Of the file that is written ahead of it (WAL).",
        (), _of(_disk, "log"),
    ),
    Metric(
        "fep_store_free_bytes", _G, "Free for us on the store's file system.",
        (), _of(_disk, "free"),
    ),
    Metric(
        "fep_store_filesystem_size_bytes", _G, "Of that file system.", (), _of(_disk, "size"),
    ),
    Metric("fep_sessions", _G, "Open sessions of the control protocol.", ("role",), _sessions),
    Metric(
        "fep_place_held", _G, "1: of several machines this one serves the bank, or pooling.",
        ("place",), _places,
    ),
    Metric(
        "fep_machines_alive", _G, "Front-end machines that live on this store.", (), _machines,
    ),
    Metric(
        "fep_loop_lag_seconds", _H, "By how much the event loop was late, four times a second.",
        (), _one(lambda look: look.lag),
    ),
    Metric("fep_loop_tasks", _G, "Tasks of the event loop: living, runnable.", ("state",), _loop),
    Metric(
        "fep_uptime_seconds", _G, "Since the daemon started.",
        (), _one(lambda look: (look.now - look.services.started_at).total_seconds()),
    ),
    Metric("fep_build_info", _G, "1: the release and its Python.", ("version", "python"), _build),
    Metric(
        "fep_configuration_info", _G, "1: the digest of the configuration in force.",
        ("digest",), _configuration,
    ),
)  # fmt: skip
