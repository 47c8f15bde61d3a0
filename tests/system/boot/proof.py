"""Runs inside the booted machine, as root: makes things happen to the service and notes what it saw.

It judges nothing: ``test_boot.py`` reads the notes. Each step is noted by its name, one that could
not be done with its trace, and those behind it are tried all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from fep.client import BlockingClient, CallError
from fep.domain.ids import TaskId, client_ref
from fep.sandbox.book import SqliteBook

SHARE = Path("/share")
NOTES = SHARE / "notes.json"
CONFIG = Path("/etc/fep/fep.toml")
SOCKET = "unix:/run/fep-control.sock"
COMMAND = "/opt/fep/bin/fep"
BOOK = Path("/var/lib/bank/book.sqlite")
STUCK = Path("/run/stuck-pid")
"""A daemon whose number stands here stops in the middle of its loop (``stuck_bank.py``)."""
PLAN: dict[str, Any] = json.loads((Path(__file__).parent / "plan.json").read_text("utf-8"))
CARD_SLOT = f"""
[[slot]]
name = "card-1"
backend = "pcsc"
card = {{ guid = "{"ab" * 16}", certificate_sha256 = "{"cd" * 32}" }}
"""
STEP_SECONDS_MAX = 40.0
POLL_SECONDS = 0.1
AT_ONCE = 12
FAILED_STARTS = 6
"""More than systemd's own limit would allow, which is five."""

Notes = dict[str, Any]


def run(*command: str, user: str | None = None, said: str | None = None) -> Notes:
    """Run a command to its end, as somebody else if told so; returns how it ended and what it said."""
    who: dict[str, Any] = {}
    if user is not None:
        entry = pwd.getpwnam(user)
        groups = os.getgrouplist(user, entry.pw_gid)
        who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}
    done = subprocess.run(
        command,
        input=said,
        capture_output=True,
        text=True,
        check=False,
        timeout=STEP_SECONDS_MAX,
        **who,
    )
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def shown(unit: str = "fep.service") -> dict[str, str]:
    """Return what systemd knows of a unit."""
    out = run("systemctl", "show", unit)["out"]
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def pid() -> int:
    """Return the daemon's process id; 0 while there is none."""
    return int(shown()["MainPID"])


def wait(what: str, look: Callable[[], Any], seconds: float = STEP_SECONDS_MAX) -> Any:
    """Look until something true is seen, and return it."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with contextlib.suppress(OSError, CallError):
            if found := look():
                return found
        time.sleep(POLL_SECONDS)
    msg = f"{what}: not within {seconds:g} s"
    raise TimeoutError(msg)


def operator() -> BlockingClient:
    """Return a client on the socket that systemd holds; a connect that is refused is an error."""
    return BlockingClient(SOCKET, "operator", retry=False, connect_s=STEP_SECONDS_MAX)


def finance() -> BlockingClient:
    """Return a finance system on loopback TCP, with the token that the unit has as a credential."""
    return BlockingClient(PLAN["finance"], "erp-1", token=PLAN["token"])


def status() -> Notes:
    """Return the daemon's own status."""
    with operator() as client:
        found: Notes = client.call("status", deadline_s=STEP_SECONDS_MAX)
    return found


def all_ready() -> bool:
    """Say whether every key and every bank is ready."""
    found = status()
    return {*found["links"].values(), *found["slots"].values()} <= {"ready", "busy"}


def pay(names: dict[str, str]) -> None:
    """Submit a payment for each name, at the bank it is given."""
    with finance() as client:
        for name, bank in names.items():
            client.submit(name, bank, "transfer", PLAN["payments"][bank])


def states(names: dict[str, str]) -> dict[str, str]:
    """Return the state of each of these tasks."""
    with operator() as client:
        return {name: client.call("task.get", {"task_id": name})["state"] for name in names}


def booked(names: dict[str, str]) -> dict[str, int]:
    """Return how many times each of these payments is in the banks' book."""
    with contextlib.closing(SqliteBook(BOOK)) as book:
        return {
            name: book.times_booked(client_ref(PLAN["enterprise"], TaskId(name))) for name in names
        }


def wait_all(names: dict[str, str], state: str) -> dict[str, str]:
    """Wait until all of these tasks are in a state."""
    found: dict[str, str] = wait(
        f"{sorted(names)} {state}",
        lambda: now if set((now := states(names)).values()) == {state} else {},
    )
    return found


@contextlib.contextmanager
def configured(text: str) -> Iterator[None]:
    """Have another configuration on the disk until the end of the block."""
    good = CONFIG.read_text("utf-8")
    CONFIG.write_text(text, "utf-8")
    try:
        yield
    finally:
        CONFIG.write_text(good, "utf-8")


@contextlib.contextmanager
def frozen(bank: str) -> Iterator[None]:
    """Have a bank take requests and answer none until the end of the block."""
    run("systemctl", "kill", "--signal=STOP", f"bank-{bank}.service")
    try:
        yield
    finally:
        run("systemctl", "kill", "--signal=CONT", f"bank-{bank}.service")


def journal() -> str:
    """Return all that the service and its commands have said."""
    return str(run("journalctl", "-u", "fep.service", "-o", "cat", "--no-pager")["out"])


# -- steps ----------------------------------------------------------------------------------------


def started() -> Notes:
    """It came up with the machine: nobody started it."""
    first = wait("active", lambda: found if (found := shown())["ActiveState"] == "active" else None)
    wait("keys and banks ready", all_ready)
    main = int(first["MainPID"])
    owner = Path(f"/proc/{main}").stat().st_uid
    return {
        "unit": {name: first[name] for name in ("ActiveState", "SubState", "NRestarts", "Type")},
        "uid": owner,
        "known": [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == owner],
        "process_status": Path(f"/proc/{main}/status").read_text("utf-8"),
        "ready": run("fepctl", "ready"),
        "config": CONFIG.read_text("utf-8") == PLAN["config"],
    }


def status_line() -> Notes:
    """What ``systemctl status`` shows."""
    # It is refreshed as often as the watchdog is fed.
    line = wait(
        "a line without complaints",
        lambda: text if (text := shown()["StatusText"]).endswith("0 alarms") else "",
    )
    return {"line": line, "page": run("systemctl", "status", "--no-pager", "fep.service")["out"]}


def credentials() -> Notes:
    """Keys and the token came in as credentials, and nobody else reads them."""
    folder = Path("/run/credentials/fep.service")
    found = status()
    return {
        "names": sorted(one.name for one in folder.iterdir()),
        "slots": found["slots"],
        "plain": {
            one.name: (folder / one.stem).read_bytes() in one.read_bytes()
            for one in CONFIG.parent.glob("*.cred")
        },
        "stranger": run("cat", str(folder / "finance-token"), user="stranger"),
    }


def socket_rights() -> Notes:
    """Who may speak on the control socket."""
    return {
        "member": run("fepctl", "--json", "status", user="treasury"),
        "stranger": run("fepctl", "status", user="stranger"),
        "owner": {"group": Path("/run/fep-control.sock").group(), "mode": oct(
            Path("/run/fep-control.sock").stat().st_mode & 0o777
        )},
        "viewer_pays": run("fepctl", "drain", "pingan", user="treasury"),
    }  # fmt: skip


def console() -> Notes:
    """A person logs in at the console, and has the store looked at."""
    made = run("fepctl", "user", "add", "anna", "admin", said=PLAN["password"] + "\n")
    mark = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
    with httpx2.Client(base_url=PLAN["console"], timeout=STEP_SECONDS_MAX, trust_env=False) as http:
        page = http.get("/login")
        (csrf,) = mark.findall(page.text)[:1]
        fields = {"csrf": csrf, "user": "anna", "code": "", "next": "/"}
        wrong = http.post("/login", data=fields | {"password": "not-the-right-one"})
        right = http.post("/login", data=fields | {"password": PLAN["password"]})
        overview = http.get("/")
        settings = http.get("/config")
        style = http.get("/static/console.css")
        (csrf,) = mark.findall(http.get("/me").text)[:1]
        asked = http.post("/audit/verify", data={"csrf": csrf})
        check = wait(
            "the store looked at",
            lambda: text if "</table>" in (text := http.get("/audit/check").text) else "",
        )
    return {
        "made": made,
        "login": page.status_code,
        "wrong": wrong.status_code,
        "right": right.status_code,
        "overview": (overview.status_code, "pingan" in overview.text),
        "settings": (settings.status_code, 'class="fault"' in settings.text),
        "static": (style.status_code, style.headers["content-type"]),
        "asked": asked.status_code,
        "check": check,
    }


def payments() -> Notes:
    """A payment at each bank, inside the sandbox."""
    names = {"PLAIN-1": "pingan", "PLAIN-2": "cmb"}
    pay(names)
    return {"states": wait_all(names, "succeeded"), "booked": booked(names)}


def reloads() -> Notes:
    """A good file is taken into force, a faulty one changes nothing."""
    before = status(), pid()
    good = CONFIG.read_text("utf-8")
    with configured(good.replace("workers = 4", "workers = 3")):
        applied = run("systemctl", "reload", "fep.service")
        after = wait(
            "the new file in force",
            lambda: (
                found if (found := status())["configuration"] != before[0]["configuration"] else {}
            ),
        )
    with operator() as client:
        was = client.call("config.show")
    with configured(good.replace("workers = 4", "workers = 0")):
        refused = run("systemctl", "reload", "fep.service")
        with operator() as client:
            now = client.call("config.show")
        faulty = status()
        state = shown()["ActiveState"]
        told = journal()
    return {
        "applied": applied,
        "changed": after["configuration"] != before[0]["configuration"],
        "refused": refused,
        "unchanged": faulty["configuration"] == after["configuration"] and was == now,
        "told": [line for line in told.splitlines() if "workers" in line and "fep.toml:" in line],
        "state": state,
        "same_process": pid() == before[1],
        "back": run("systemctl", "reload", "fep.service"),
        "digest": wait(
            "the first file in force",
            lambda: status()["configuration"] == before[0]["configuration"],
        ),
    }


def saved() -> Notes:
    """An administrator saves the configuration through the daemon, before and after a restart."""
    own = CONFIG.read_text("utf-8")
    other = own.replace("workers = 4", "workers = 2")
    answers = [_save(other)]
    written = CONFIG.read_text("utf-8") == other
    status = CONFIG.stat()
    again = run("systemctl", "restart", "fep.service")
    answers.append(_save(own))
    return {
        "answers": answers,
        "written": [written, CONFIG.read_text("utf-8") == own],
        "mode": oct(status.st_mode & 0o777),
        "owner": status.st_uid,
        "group": CONFIG.parent.group(),
        "restart": again,
        "stranger": run("touch", str(CONFIG.parent / "new"), user="stranger"),
        "told": [line for line in journal().splitlines() if "ConfigurationDirectory" in line],
    }


def _save(text: str) -> Notes:
    with operator() as client:
        base = client.call("status")["configuration"]
        found: Notes = client.call("config.save", {"text": text, "base": base, "note": "a test"})
    return found


def killed() -> Notes:
    """kill -9 with payments at a bank that does not answer, and clients that connect meanwhile."""
    wait("ready", all_ready)
    names = {f"KILLED-{number}": "pingan" for number in range(3)}
    old, restarts = pid(), int(shown()["NRestarts"])
    with frozen("pingan"):
        pay(names)
        wait_all(names, "sending")
        began = time.monotonic()
        os.kill(old, signal.SIGKILL)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(_asked) for _ in range(AT_ONCE)]
            answers = [one.result() for one in asked]
        seconds = time.monotonic() - began
    unit = shown()
    return {
        "answers": answers,
        "seconds": seconds,
        "old": old,
        "new": int(unit["MainPID"]),
        "restarts": int(unit["NRestarts"]) - restarts,
        "states": wait_all(names, "succeeded"),
        "booked": booked(names),
    }


def _asked() -> Notes:
    try:
        return {"uptime_s": status()["uptime_s"]}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is noted
        return {"refused": repr(error)}


def stuck() -> Notes:
    """A defect in an adapter never returns: the loop stands still, and nothing crashes."""
    wait("ready", all_ready)
    names = {"STUCK-1": "pingan"}
    old, restarts = pid(), int(shown()["NRestarts"])
    STUCK.write_text(str(old), "utf-8")
    began = time.monotonic()
    pay(names)
    wait("another process", lambda: pid() not in (0, old))
    found = {"seconds": time.monotonic() - began, "restarts": int(shown()["NRestarts"]) - restarts}
    STUCK.unlink()
    return found | {
        "states": wait_all(names, "succeeded"),
        "booked": booked(names),
        "journal": journal(),
    }


def stopped() -> Notes:
    """A stop with payments on their way: one bank answers in time, the other one only much later."""
    wait("ready", all_ready)
    quick, slow = {"STOP-QUICK": "cmb"}, {"STOP-SLOW-1": "pingan", "STOP-SLOW-2": "pingan"}
    old = pid()
    with frozen("pingan"):
        with frozen("cmb"):
            pay(quick | slow)
            wait_all(quick | slow, "sending")
            run("systemctl", "stop", "--no-block", "fep.service")
            wait("stopping", lambda: shown()["ActiveState"] == "deactivating")
        began = time.monotonic()
        wait("stopped", lambda: shown()["ActiveState"] == "inactive")
        seconds = time.monotonic() - began
        ended, before = shown(), booked(quick | slow)
    wait("the slow bank's bookings", lambda: set(booked(slow).values()) == {1})
    # Nobody starts it: the next connect does.
    socket_unit = shown("fep.socket")["ActiveState"]
    woken = _asked()
    # It answers a moment before it says that all of it is up.
    now = wait("active", lambda: unit if (unit := shown())["ActiveState"] == "active" else None)
    return {
        "seconds": seconds,
        "result": ended["Result"],
        "exit": ended["ExecMainStatus"],
        "booked_at_stop": before,
        "socket": socket_unit,
        "woken": woken,
        "new": int(now["MainPID"]) not in (0, old),
        "active": now["ActiveState"],
        "states": wait_all(quick | slow, "succeeded"),
        "booked": booked(quick | slow),
        "why": _causes(quick | slow),
    }


def _causes(names: dict[str, str]) -> dict[str, list[str]]:
    with operator() as client:
        return {
            name: [one["event"] for one in client.call("task.why", {"task_id": name})["events"]]
            for name in names
        }


def not_ready() -> Notes:
    """``fepctl ready`` when a bank is down."""
    wait("ready", all_ready)
    run("systemctl", "stop", "bank-cmb.service")
    found: Notes = wait(
        "not ready",
        lambda: now if (now := run("fepctl", "ready"))["status"] else {},
    )
    return found


def never_given_up() -> Notes:
    """It can't start, over and over; then what was wrong is put right, and nobody starts it."""
    own = CONFIG.read_text("utf-8")
    with (
        ThreadPoolExecutor(1) as pool,
        configured(own + CARD_SLOT),
        socket.socket(socket.AF_UNIX) as early,
    ):
        with configured(own + "\n[nonsense]\n"):
            asked = run("systemctl", "restart", "fep.service")
            first = int(shown()["NRestarts"])
            # Somebody waits at the socket all the while, and somebody else comes late.
            early.connect("/run/fep-control.sock")
            wait("failed starts", lambda: int(shown()["NRestarts"]) >= first + FAILED_STARTS)
            between = shown()["ActiveState"], shown("fep.socket")["ActiveState"]
            waiting = pool.submit(_asked)
        answer = waiting.result()
        # The right file has one slot more: a card in a reader that this machine has not.
        card = wait(
            "readers", lambda: one if (one := status()["slots"]["card-1"]) == "no_reader" else ""
        )
    return {
        "asked": asked,
        "between": between,
        "answer": answer,
        "after": wait("active", lambda: shown()["ActiveState"] == "active"),
        "card": card,
        "pcscd": shown("pcscd.service")["ActiveState"],
    }


def gone() -> Notes:
    """The service and its socket stopped, and the service removed: what stays."""
    stop = run("systemctl", "stop", "fep.socket", "fep.service")
    connected = True
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("/run/fep-control.sock")
    except OSError:
        connected = False
    removed = run("fep", "install-service", "--uninstall")
    return {
        "stop": stop,
        "connected": connected,
        "removed": removed,
        "load": shown()["LoadState"],
        "config": CONFIG.exists(),
        "store": Path("/var/lib/private/fep/fep.sqlite").exists(),
        "sound": run(COMMAND, "verify-store", "--json"),
    }


def installed_again() -> Notes:
    """Installed on the machine itself: first with no configuration, then with the site's own."""
    own = CONFIG.read_text("utf-8")
    try:
        CONFIG.unlink()
        example = run(COMMAND, "install-service", "--enable")
        idle = shown()["ActiveState"]
        CONFIG.write_text(own + "\n[nonsense]\n", "utf-8")
        faulty = run(COMMAND, "install-service", "--enable")
    finally:
        CONFIG.write_text(own, "utf-8")
    right = run(COMMAND, "install-service", "--enable")
    main = pid()
    again = run("fep", "install-service", "--enable")
    return {
        "example": example,
        "idle": idle,
        "faulty": faulty,
        "right": right,
        "active": shown()["ActiveState"],
        "enabled": run("systemctl", "is-enabled", "fep.service", "fep.socket")["out"].split(),
        "again": again,
        "same_process": pid() == main,
        "states": wait_all({"PLAIN-1": "", "STOP-SLOW-1": ""}, "succeeded"),
        "stranger": run("fep", "install-service", user="stranger"),
    }


STEPS = (
    started, status_line, credentials, socket_rights, console, payments, reloads, saved, killed, stuck,
    stopped, not_ready, never_given_up, gone, installed_again,
)  # fmt: skip


def main() -> int:
    """Do all steps; returns 0."""
    notes: Notes = {}
    for step in STEPS:
        began = time.monotonic()
        try:
            notes[step.__name__] = step()
        except Exception:  # noqa: BLE001 - it is noted, and its test fails
            notes[step.__name__] = {"failed": traceback.format_exc()}
        notes[step.__name__]["took_s"] = round(time.monotonic() - began, 2)
        NOTES.write_text(json.dumps(notes), "utf-8")
    (SHARE / "journal.log").write_text(journal(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
