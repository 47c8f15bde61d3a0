"""What a round does wrong: each fault is a function that puts its acts into the round."""

from __future__ import annotations

import contextlib
import os
import random
import resource
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from tests.crash.means import Means
from tests.crash.points import Point
from tests.crash.processes import attach, detach, injection
from tests.crash.proxy import End, Stage
from tests.crash.store import Death

if TYPE_CHECKING:
    from fep.client import BlockingClient
    from tests.crash.machine import Machine
    from tests.crash.round import Round

LONG_PROMISE_SECONDS: Final = 3600.0
"""While the banks show late, "no record" proves nothing for longer than any round lasts."""
PAGE_BYTES: Final = 4096
LOST_ANSWERS: Final = "close_after_booking=0.3,silent_after_booking=0.1"


class Fault(StrEnum):
    """Names of the faults."""

    KILL_DAEMON = "kill-daemon"
    KILL_AT_PAYMENT = "kill-at-payment"
    KILL_AT_POINT = "kill-at-point"
    KILL_STARTING = "kill-starting"
    KILL_AT_SYSCALL = "kill-at-syscall"
    STOP_DAEMON = "stop-daemon"
    KILL_HOST = "kill-host"
    KILL_FINANCE = "kill-finance"
    KILL_POSTGRES = "kill-postgres"
    BANKS_MISBEHAVE = "banks-misbehave"
    STORE_ERROR = "store-error"
    STORE_ERROR_STARTING = "store-error-starting"
    SHORT_WRITE = "short-write"
    DISK_FULL = "disk-full"
    CLOCK = "clock"
    CUT = "cut"
    HALF_OPEN = "half-open"
    DROP = "drop"
    NOISE = "noise"


def kill_daemon(round_: Round, rng: random.Random) -> None:
    """Kill it at random moments."""
    for _ in range(rng.choice((1, 2, 3))):
        round_.at(rng.uniform(0.0, round_.foul_s), round_.machine.kill_daemon)


def kill_at_payment(round_: Round, rng: random.Random) -> None:
    """Kill it just when a payment is at a chosen place on its way."""
    machine = round_.machine
    moments = [
        (rng.choice(list(machine.proxies.values())), rng.choice(list(Stage)), rng.randint(1, 4))
        for _ in range(rng.randint(1, 5))
    ]

    def wait_for_next() -> None:
        if moments:
            proxy, stage, number = moments.pop()
            proxy.trigger(stage, number, kill)

    def kill() -> None:
        machine.kill_daemon()
        wait_for_next()

    round_.at(0.0, wait_for_next)
    round_.calm(moments.clear)


def kill_at_point(round_: Round, rng: random.Random) -> None:
    """Let it die between two chosen steps of a payment, life after life."""
    machine = round_.machine
    machine.points = [Point.drawn(rng) for _ in range(rng.randint(2, 4))]
    # The one that lives has no point.
    round_.at(0.0, machine.kill_daemon)

    def finish() -> None:
        machine.points.clear()
        if machine.life is not None and machine.life.point is not None:
            machine.kill_daemon()

    round_.calm(finish)


def kill_starting(round_: Round, rng: random.Random) -> None:
    """Kill it, and again while it starts and puts in order what the last one left."""
    round_.at(rng.uniform(0.1, round_.foul_s / 2), round_.machine.kill_daemon)
    round_.machine.doom = [rng.random() ** 2 * 0.8 for _ in range(rng.randint(1, 4))]


def stop_daemon(round_: Round, rng: random.Random) -> None:
    """End it in order, in the middle of the work."""
    round_.at(rng.uniform(0.0, round_.foul_s), round_.machine.stop_daemon)


def kill_host(round_: Round, rng: random.Random) -> None:
    """Kill a bank's process at random, or when a payment is there."""
    names = list(round_.machine.proxies)
    for number in range(rng.randint(2, 4)):
        bank = rng.choice(names)
        act = partial(round_.machine.kill_host, bank)
        if rng.random() < 0.5:
            round_.at(rng.uniform(0.0, round_.foul_s), act)
            continue
        stage = rng.choice((Stage.ARRIVED, Stage.FORWARDED, Stage.ANSWERED))
        trigger = partial(round_.machine.proxies[bank].trigger, stage, rng.randint(1, 4), act)
        round_.at(number * round_.foul_s / 4, trigger)


def kill_finance(round_: Round, rng: random.Random) -> None:
    """Let the finance system vanish and come back."""
    for _ in range(rng.choice((1, 2, 3))):
        round_.at(rng.uniform(0.0, round_.foul_s), round_.machine.kill_finance)


def kill_postgres(round_: Round, rng: random.Random) -> None:
    """Kill the server of the store, or a part of it, at random or when a payment is there."""
    machine = round_.machine
    for number in range(rng.randint(1, 3)):
        act = partial(machine.kill_store, rng.choice(list(Death)), rng.random())
        if rng.random() < 0.5:
            round_.at(rng.uniform(0.0, round_.foul_s), act)
            continue
        proxy = rng.choice(list(machine.proxies.values()))
        trigger = partial(proxy.trigger, rng.choice(list(Stage)), rng.randint(1, 4), act)
        round_.at(number * round_.foul_s / 3, trigger)


def banks_misbehave(round_: Round, rng: random.Random) -> None:
    """Let the hosts lose payments and answers, die, and be late, each by chance."""
    names = (
        "silent_before_booking",
        "silent_after_booking",
        "close_before_booking",
        "close_after_booking",
        "exit_before_booking",
        "exit_after_booking",
        "unknown_after_booking",
        "throttled",
        "delayed",
    )
    chosen = rng.sample(names, rng.randint(1, 4))
    round_.host_faults = ",".join(f"{name}={rng.uniform(0.02, 0.3):.2f}" for name in chosen)


# -- the disk --------------------------------------------------------------------------------------

INJECTIONS: Final = (
    "fdatasync:error=EIO",
    "fdatasync:error=EIO",
    "fdatasync:error=ENOSPC",
    "pwrite64:error=EIO",
    "pwrite64:error=ENOSPC",
    # A write of nothing, which the caller must notice. What strace says of a longer one that it did
    # not do would be a lie of the disk; a real short one is SHORT_WRITE.
    "pwrite64:retval=0",
    "pread64:error=EIO",
)
FATAL_CALLS: Final = ("fdatasync", "pwrite64", "sendto", "pread64")
DETACH_SECONDS_MAX: Final = 20.0
WITHOUT_END: Final = 0.4
"""Share of the injections that go on from their first hit."""


def store_error(round_: Round, rng: random.Random) -> None:
    """Let the store's system calls fail in the running daemon."""
    inject = rng.choice(INJECTIONS)
    when = f"{rng.randint(1, 20)}{'+' if rng.random() < WITHOUT_END else ''}"
    at = rng.uniform(0.0, round_.foul_s / 2)
    round_.at(at, partial(_attach, round_, f"{inject}:when={when}"))


def kill_at_syscall(round_: Round, rng: random.Random) -> None:
    """Kill it as it enters a system call, such as the n-th sync."""
    call, number = rng.choice(FATAL_CALLS), rng.randint(1, 30)
    inject = f"{call}:signal=KILL:when={number}"
    round_.at(rng.uniform(0.0, round_.foul_s / 3), partial(_attach, round_, inject))


def _attach(round_: Round, inject: str) -> None:
    machine = round_.machine
    life = machine.life
    if life is None or life.killed or life.process.poll() is not None:
        return
    life.hurt = True
    trace = _trace_of(round_)
    # A socket is no file of the store, and neither is a library that Python loads meanwhile.
    files = [] if inject.startswith("sendto:") else machine.store_files
    process = attach(life.process.pid, trace, inject, files)

    def finish() -> None:
        detach(life.process.pid)
        process.wait(DETACH_SECONDS_MAX)
        _count(machine, trace, inject)

    round_.calm(finish)


def _trace_of(round_: Round) -> Path:
    round_.traces += 1
    return round_.machine.directory / f"strace-{round_.seed}-{round_.traces}"


def _count(machine: Machine, trace: Path, inject: str) -> None:
    """Count the calls that were tampered with: an injection that hits nothing is no fault."""
    text = trace.read_text("utf-8", "replace") if trace.exists() else ""
    deadly = "signal=KILL" in inject
    found = text.count("+++ killed by SIGKILL") > 0 if deadly else text.count("(INJECTED)")
    machine.counts["injections"] += found
    machine.counts[f"injected {inject.rpartition(':')[0]}"] += bool(found)
    machine.counts["injections_missed"] += not found
    trace.unlink(missing_ok=True)


def _is_hit(trace: Path) -> bool:
    return trace.exists() and "(INJECTED)" in trace.read_text("utf-8", "replace")


def _is_up(client: BlockingClient) -> bool:
    return bool(client.call("status"))


def store_error_starting(round_: Round, rng: random.Random) -> None:
    """Let the store's system calls fail while the daemon starts."""
    inject = f"{rng.choice(INJECTIONS)}:when={rng.randint(1, 12)}"
    machine = round_.machine
    trace = _trace_of(round_)

    def begin() -> None:
        # As a grandchild, strace leaves the pid to the daemon.
        strace, *options = injection(trace, inject, machine.store_files)
        machine.hurt_start = machine.wrapped([strace, "-D", *options])
        machine.kill_daemon()

    def finish() -> None:
        machine.hurt_start = None
        life = machine.life
        if life is not None:
            # Calm may come before it has done much; it is to be hit while it starts.
            with contextlib.suppress(TimeoutError):
                machine.until(
                    lambda: machine.life is not life or _is_hit(trace) or machine.ask(_is_up),
                    "a start",
                    DETACH_SECONDS_MAX,
                )
            detach(life.process.pid)
        _count(machine, trace, inject)

    round_.at(rng.uniform(0.0, round_.foul_s / 3), begin)
    round_.calm(finish)


def short_write(round_: Round, rng: random.Random) -> None:
    """Let files end at a drawn size: the write that passes it is short, the next one fails."""
    machine = round_.machine
    begin_at = rng.uniform(0.0, round_.foul_s / 2)
    room = rng.randrange(64_000)

    def limit() -> None:
        life = machine.life
        if life is None or life.killed or life.process.poll() is not None:
            return
        _, wal = machine.store_files
        size = wal.stat().st_size if wal.exists() else 0
        if size + room < life.log.stat().st_size + 65_536:
            # Its log would end there before its store.
            size = life.log.stat().st_size + 65_536
        life.hurt = True
        with contextlib.suppress(ProcessLookupError):
            soft = resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(life.process.pid, resource.RLIMIT_FSIZE, (size + room, soft[1]))
        round_.calm(partial(_lift, life.process.pid))

    round_.at(begin_at, limit)


def _lift(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def disk_full(round_: Round, rng: random.Random) -> None:
    """Fill the file system of the store to the last pages, and free it again."""
    machine = round_.machine
    ballast = machine.state / "ballast"

    def fill(pages: int) -> None:
        found = os.statvfs(machine.state)
        size = (found.f_bavail - pages) * found.f_bsize
        fd = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # The daemon may have taken some of it meanwhile.
            with contextlib.suppress(OSError):
                os.posix_fallocate(fd, 0, max(size, 1))
        finally:
            os.close(fd)

    def free() -> None:
        ballast.unlink(missing_ok=True)

    at = rng.uniform(0.0, round_.foul_s / 2)
    for _ in range(rng.choice((1, 1, 2))):
        round_.at(at, partial(fill, rng.randrange(40)))
        at += rng.uniform(0.1, 0.8)
        round_.at(at, free)
        at += 0.1
    round_.calm(free)


# -- the clock -------------------------------------------------------------------------------------

DAY_SECONDS: Final = 86_400
STEPS_SECONDS: Final = (
    3 * DAY_SECONDS,
    DAY_SECONDS,
    5 * 3600,
    900,
    -900,
    -5 * 3600,
    -2 * DAY_SECONDS,
)


def clock(round_: Round, rng: random.Random) -> None:
    """Set the daemon's wall clock forward and back by days, beside banks that show late."""
    machine = round_.machine
    file = machine.directory / "clock"
    highest = 0

    def set_to(seconds: int) -> None:
        nonlocal highest
        highest = max(highest, seconds)
        new = file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n", "ascii")
        new.replace(file)

    set_to(0)
    machine.launch = machine.with_clock(file)
    round_.begin_anew = True
    # Long enough for payments to be sent, lost and asked after between two steps.
    round_.foul_s += 1.0
    steps = rng.sample(STEPS_SECONDS, rng.randint(2, 4))
    if steps == sorted(steps, reverse=True):
        # It is a step forward that makes a daemon believe too much.
        steps.reverse()
    at = 0.0
    for step in steps:
        round_.at(at, partial(set_to, step))
        at += rng.uniform(0.2, round_.foul_s / 2)
    round_.host_faults = LOST_ANSWERS
    show_late(round_)

    def finish() -> None:
        # Later than any payment says that it was sent; and banks that find by date are asked for
        # several days only then.
        set_to(highest + DAY_SECONDS)
        machine.again()
        machine.launch = None
        round_.end_anew = True

    round_.when_sent = finish


def show_late(round_: Round) -> None:
    """Let the banks book and not show it, and promise to show it much later than a round lasts."""
    round_.promise_s = LONG_PROMISE_SECONDS
    round_.manners = attrs.evolve(round_.manners, shows_late=True)


# -- the line --------------------------------------------------------------------------------------


def cut(round_: Round, rng: random.Random) -> None:
    """Cut the line in every payment, or in its answer, one byte further each time."""
    ends: tuple[End, ...] = (End.CLOSE, End.CLOSE, End.RESET)
    if rng.random() < 0.1:
        ends = (*ends, End.SILENCE)
    for name, proxy in round_.machine.proxies.items():
        proxy.temper = attrs.evolve(proxy.temper, walk=round_.walks[name], ends=ends)
    round_.payments += 14


def half_open(round_: Round, rng: random.Random) -> None:
    """Let lines fall silent without an end."""
    for _ in range(rng.choice((1, 2))):
        proxy = rng.choice(list(round_.machine.proxies.values()))
        round_.at(rng.uniform(0.0, round_.foul_s), proxy.silence)


def drop(round_: Round, rng: random.Random) -> None:
    """Lose frames of a line that lives on: requests, answers, and those that ask for life."""
    for proxy in round_.machine.proxies.values():
        proxy.temper = attrs.evolve(
            proxy.temper,
            drop_requests=rng.choice((0.0, 0.1, 0.3)),
            drop_answers=rng.choice((0.0, 0.1, 0.3)),
        )


def noise(round_: Round, rng: random.Random) -> None:
    """Let frames come late, in pieces, and twice."""
    for proxy in round_.machine.proxies.values():
        proxy.temper = attrs.evolve(
            proxy.temper,
            delay_s=rng.choice((0.0, 0.02, 0.2)),
            slice_bytes=rng.choice((0, 1, 7, 100, 1000)),
            repeat_answers=rng.choice((0.0, 0.3)),
            repeat_requests=rng.choice((0.0, 0.3)),
        )
        if proxy.temper.repeat_requests:
            # A line that repeats before a bank that forgets would pay twice by itself.
            round_.manners = attrs.evolve(round_.manners, forgets=False)


FAULTS: Final[dict[Fault, Callable[[Round, random.Random], None]]] = {
    Fault.KILL_DAEMON: kill_daemon,
    Fault.KILL_AT_PAYMENT: kill_at_payment,
    Fault.CUT: cut,
    Fault.KILL_AT_POINT: kill_at_point,
    Fault.KILL_STARTING: kill_starting,
    Fault.STORE_ERROR: store_error,
    Fault.KILL_HOST: kill_host,
    Fault.DISK_FULL: disk_full,
    Fault.NOISE: noise,
    Fault.DROP: drop,
    Fault.KILL_AT_SYSCALL: kill_at_syscall,
    Fault.KILL_FINANCE: kill_finance,
    Fault.SHORT_WRITE: short_write,
    Fault.KILL_POSTGRES: kill_postgres,
    Fault.BANKS_MISBEHAVE: banks_misbehave,
    Fault.CLOCK: clock,
    Fault.STOP_DAEMON: stop_daemon,
    Fault.STORE_ERROR_STARTING: store_error_starting,
    Fault.HALF_OPEN: half_open,
}
"""In the order in which the rounds go through them."""

NEEDS: Final = {
    Fault.KILL_AT_SYSCALL: Means.STRACE,
    Fault.STORE_ERROR: Means.STRACE,
    Fault.STORE_ERROR_STARTING: Means.STRACE,
    Fault.DISK_FULL: Means.TMPFS,
    Fault.CLOCK: Means.FAKETIME,
    Fault.KILL_POSTGRES: Means.POSTGRES,
}
"""What this machine must allow."""

ON_SERVER: Final = frozenset({Fault.KILL_POSTGRES})
"""Those that need a store on a PostgreSQL."""

ASIDE: Final = (
    Fault.KILL_DAEMON,
    Fault.KILL_AT_PAYMENT,
    Fault.KILL_HOST,
    Fault.KILL_FINANCE,
    Fault.CUT,
    Fault.DROP,
    Fault.NOISE,
    Fault.HALF_OPEN,
)
"""Those that may come beside any other."""
