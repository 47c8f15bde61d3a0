"""``make crash``: rounds of faults on real processes; ends with one line ``crash: {json}``.

Each lane works in a directory and a mount namespace of its own, so that whatever becomes of it,
nothing stays mounted and no process stays behind. A round that fails is printed with its seed, and
its directory is kept. It mounts, traces, and sets clocks; what this machine does not allow is said
at the begin, and counted at the end as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tests.crash.broken import BREAKS
from tests.crash.faults import NEEDS, Fault
from tests.crash.lane import run_lane
from tests.crash.means import OWN_NAMESPACE, Means, missing
from tests.crash.round import VIOLATIONS

LANES: Final = 2
PROGRESS_ROUNDS: Final = 10
END_SECONDS_MAX: Final = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when nothing was violated."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--from", type=int, default=1, dest="seed", help="the first seed")
    parser.add_argument("--lanes", type=int, default=LANES)
    parser.add_argument("--only", type=int, metavar="SEED", help="this one round, as it was")
    parser.add_argument("--walk", default="", metavar="BANK=BYTE,...", help="where the cuts stand")
    parser.add_argument("--fault", action="append", choices=list(Fault), help="only these")
    parser.add_argument(
        "--without", action="append", type=Means, help="tmpfs, strace, libfaketime: do not use it"
    )
    parser.add_argument("--stop", action="store_true", help="at the first round that fails")
    parser.add_argument("--broken", default="", choices=list(BREAKS), help=argparse.SUPPRESS)
    parser.add_argument("--lane", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.only is not None:
        given.rounds, given.seed, given.lanes = 1, given.only, 1
    given.lanes = max(1, min(given.lanes, given.rounds))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        if given.lane is not None:
            given.without = given.without or []
            run_lane(given)
            return 0
        return campaign(given, words)
    except KeyboardInterrupt:
        return 130


def _interrupt(_number: int, _frame: object) -> None:
    """Begin the end; it must come to its own end, however often it is asked for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def campaign(given: argparse.Namespace, words: list[str]) -> int:
    """Run the lanes, show progress and failures, print the closing line; returns the status."""
    began = time.monotonic()
    total: Counter[str] = Counter()
    failed: list[int] = []
    closing: dict[str, Any] = {"faults": Counter(), "not_run": Counter()}
    closing |= {"injected": Counter(), "points": Counter(), "cut_bytes": {}}
    without = dict.fromkeys(given.without or (), "not wanted")
    for means, reason in (missing() | without).items():
        what = ", ".join(fault for fault, needed in NEEDS.items() if needed is means)
        print(f"no {means} here ({reason}), so not run: {what}", flush=True)
        without[means] = reason
    with _lanes(given, words, without) as lanes:
        for record in _records(lanes):
            if record["what"] == "lane":
                _close(total, closing, record)
                continue
            total["rounds"] += 1
            total["tasks"] += record["tasks"]
            total["kills"] += record["kills"]
            closing["faults"].update(record["faults"])
            closing["not_run"].update(record["not_run"])
            for kind, number in record["violations"].items():
                total[kind] += number
            if record["violations"]:
                failed.append(record["seed"])
                _show(given, record)
                if given.stop:
                    break
            if total["rounds"] % PROGRESS_ROUNDS == 0 or total["rounds"] == given.rounds:
                seconds = time.monotonic() - began
                bad = sum(total[kind] for kind in VIOLATIONS)
                print(
                    f"{total['rounds']}/{given.rounds} rounds, {seconds:.0f} s: "
                    f"{total['kills']} kills, {total['tasks']} tasks, {bad} violations",
                    flush=True,
                )
        whole = [lane.wait() == 0 for lane in lanes if not (given.stop and failed)]
    seconds = time.monotonic() - began
    figures: dict[str, Any] = {
        name: total.pop(name, 0) for name in ("rounds", "kills", *VIOLATIONS)
    }
    figures |= {"failed": sorted(failed), "rounds_missing": given.rounds - figures["rounds"]}
    figures |= {"seconds": round(seconds, 1), **total, **closing}
    print(f"crash: {json.dumps(figures)}", flush=True)
    done = all(whole) and figures["rounds"] == given.rounds
    return int(not done or any(figures[kind] for kind in VIOLATIONS))


def _close(total: Counter[str], closing: dict[str, Any], record: dict[str, Any]) -> None:
    """Take a lane's own figures into the closing ones."""
    for name, number in record["counts"].items():
        if name.startswith("injected "):
            closing["injected"][name.removeprefix("injected ")] += number
        elif name.startswith("at "):
            closing["points"][name.removeprefix("at ")] += number
        elif not name.startswith("kills"):
            total[name] += number
    for bank, cuts in record["cuts"].items():
        known = closing["cut_bytes"].setdefault(bank, {"request": 0, "answer": 0, "of": 0})
        known["request"] += cuts["request"]
        known["answer"] += cuts["answer"]
        known["of"] = max(known["of"], cuts["of"])


def _show(given: argparse.Namespace, record: dict[str, Any]) -> None:
    walk = ",".join(f"{bank}={place}" for bank, place in record["walk"].items())
    print(f"round {record['seed']} failed ({', '.join(record['faults'])}):", flush=True)
    for line in record["lines"]:
        print(f"  {line}", flush=True)
    chosen = "".join(f" --fault {one}" for one in given.fault or ())
    print(
        f"  again: python -m tests.crash --only {record['seed']} --walk {walk}{chosen}\n"
        f"  kept: {record['kept']}",
        flush=True,
    )


@contextmanager
def _lanes(
    given: argparse.Namespace, words: list[str], without: Collection[Means]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the lanes, and end them, whatever happens here."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(given.lanes):
            command = [sys.executable, "-m", "tests.crash", *words]
            command += [f"--without={means}" for means in without]
            if Means.TMPFS not in without:
                command = [*OWN_NAMESPACE, *command]
            # A lane ends in order with us; what it started ends with it.
            watched = ["setpriv", "--pdeathsig", "TERM", "--", *command]
            watched += [f"--lane={number}"]
            started.append(subprocess.Popen(watched, stdout=subprocess.PIPE))
        yield started
    finally:
        for lane in started:
            if lane.poll() is None:
                lane.terminate()
        for lane in started:
            try:
                lane.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                lane.kill()
                lane.wait()
            assert lane.stdout is not None
            lane.stdout.close()


def _records(lanes: list[subprocess.Popen[bytes]]) -> Iterator[dict[str, Any]]:
    """Yield what the lanes report, as it comes."""
    with selectors.DefaultSelector() as selector:
        rest = dict.fromkeys(range(len(lanes)), b"")
        for number, lane in enumerate(lanes):
            assert lane.stdout is not None
            selector.register(lane.stdout, selectors.EVENT_READ, number)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65_536)
                if not data:
                    selector.unregister(key.fileobj)
                    continue
                *lines, rest[key.data] = (rest[key.data] + data).split(b"\n")
                yield from map(json.loads, lines)


if __name__ == "__main__":
    sys.exit(main())
