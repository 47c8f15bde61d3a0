"""``fep demo``: the main job on one machine, with everything real but the banks themselves.

Virtual UKeys behind a real pcscd, simulated banks of two kinds on loopback, the daemon, an outside
finance system over TCP, one pooling round with a key pulled in its middle. It shows what happens as
it happens, ends with the accounts before and after, and checks that no fen was made or lost.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fep.adapters.host import BookAccount, BookedState
from fep.client import BlockingClient
from fep.domain.ids import TaskId, client_ref
from fep.domain.money import Cny
from fep.sandbox.scene import BANKS, FINANCE_CLIENT, Scene, end, free_port
from fep.sandbox.ukey.rig import UkeyRig

ACCOUNTS_PER_BANK: Final = 20
ACCOUNTS_MIN, ACCOUNTS_MAX = 2, 99
USER: Final = "demo"
"""Of the console, where the demo stays up."""
PAYMENTS: Final = 8
FINANCE_SECONDS_MAX: Final = 120.0
ROUND_SECONDS_MAX: Final = 90.0
ALARM_SECONDS_MAX: Final = 2.0
INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit status that shells know for it."""


class DemoError(Exception):
    """The demo did not show what it must."""


@attrs.define
class Tally:
    """What the demo counts for its last line."""

    slots: int = 0
    banks: int = 0
    accounts: int = 0
    tasks: int = 0
    swept: int = 0
    swept_amount: str = "0.00"
    keys: str = ""
    seconds: float = 0.0


class Demo:
    """One run in one directory."""

    def __init__(
        self,
        directory: Path,
        console: Console,
        *,
        software: bool,
        per_bank: int,
        stay: bool = False,
    ) -> None:
        self._directory = directory
        self._console = console
        self._software = software
        self._per_bank = per_bank
        self._stay = stay
        self._began = time.monotonic()
        self.tally = Tally()

    def run(self) -> None:
        """Show the main job.

        Raises:
            DemoError: something was not as it must be.
        """
        with self._rig() as rig, self._scene(rig) as scene:
            self._say("Starting 4 simulated banks of 2 kinds on loopback …")
            scene.start_hosts()
            for host in scene.hosts.values():
                self._say(f"  {host.plan.name:<10} {host.plan.title} {host.plan.adapter}", dim=True)
            book = scene.open_book()
            before, held = book.accounts(), book.held()
            book.close()
            config = scene.configuration()
            if self._stay:
                config["console"] = {"listen": f"127.0.0.1:{free_port()}"}
            scene.write_config(config)
            self._say("Starting the daemon: one nursery a key slot, one a bank's connection …")
            scene.start_daemon()
            with scene.operator() as operator:
                scene.wait_ready(operator)
                self._show_ready(operator)
                self._finance(scene)
                self._round(scene, operator)
            self._close(scene, before, held)
            if self._stay:
                self._stay_up(scene, config["console"]["listen"])

    # -- steps --------------------------------------------------------------------------------

    @contextmanager
    def _rig(self) -> Iterator[UkeyRig | None]:
        reason = "software keys were asked for" if self._software else UkeyRig.available()
        if reason is not None:
            self._say(f"Key slots: SOFTWARE keys, since {reason}.", style="yellow")
            self.tally.keys = "software"
            yield None
            return
        self._say("Starting a private pcscd with 4 virtual UKeys (PIV cards, RSA-2048) …")
        names = [f"UKey {plan.name}" for plan in BANKS]
        with UkeyRig.start(self._directory / "ukeys", slots=len(BANKS), common_names=names) as rig:
            for card in rig.cards:
                self._say(f"  reader {card.reader_name}: card {card.guid}", dim=True)
            self.tally.keys = "pcsc"
            yield rig

    @contextmanager
    def _scene(self, rig: UkeyRig | None) -> Iterator[Scene]:
        with Scene(self._directory, accounts_per_bank=self._per_bank, rig=rig) as scene:
            self.tally.slots = self.tally.banks = len(scene.banks)
            self.tally.accounts = len(scene.accounts)
            yield scene

    def _show_ready(self, operator: BlockingClient) -> None:
        slots = operator.call("slot.list")["slots"]
        links = operator.call("link.list")["links"]
        table = Table(title="Keys and connections", title_justify="left")
        for heading in ("slot", "key", "bank", "connection"):
            table.add_column(heading)
        for slot, link in zip(slots, links, strict=True):
            table.add_row(slot["name"], slot["state"], link["bank"], link["state"])
        self._console.print(table)

    def _finance(self, scene: Scene) -> None:
        """Let the outside finance system query all balances and make some payments."""
        work = self._work(scene)
        path = self._directory / "work.json"
        path.write_text(json.dumps(work, ensure_ascii=False), "utf-8")
        self._say(
            f"The finance system connects over TCP and hands over {len(work)} task ids: "
            f"{scene_size(scene)} balances at 4 banks at once, {PAYMENTS} payments …"
        )
        command = [sys.executable, "-m", "fep.sandbox.finance"]
        command += ["--address", f"tcp:127.0.0.1:{scene.port}", "--client", FINANCE_CLIENT]
        command += ["--token-file", str(scene.token), "--work", str(path)]
        # In a session of its own: Ctrl-C is the demo's, which says what there is to say.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            self._watch(process, len(work))
            status = process.wait(FINANCE_SECONDS_MAX)
        finally:
            end(process, signal.SIGTERM)
        if status:
            msg = "the finance system did not get every result as succeeded"
            raise DemoError(msg)
        self.tally.tasks += len(work)

    def _work(self, scene: Scene) -> list[dict[str, Any]]:
        work: list[dict[str, Any]] = [
            {
                "task_id": f"BAL-{one.number}",
                "bank": one.bank,
                "kind": "balance",
                "body": {"kind": "balance", "params": {"account": one.number}},
            }
            for one in scene.accounts
        ]
        count = len(scene.accounts)
        plans = {plan.name: plan for plan in scene.banks}
        for number in range(PAYMENTS):
            payer = scene.accounts[(number * self._per_bank + 1 + number) % count]
            payee = scene.accounts[((number + 1) * self._per_bank + 2 + number) % count]
            plan = plans[payee.bank]
            work.append(
                {
                    "task_id": f"PAY-{number + 1:03d}",
                    "bank": payer.bank,
                    "kind": "transfer",
                    "body": {
                        "kind": "transfer",
                        "params": {
                            "payer": {"account": payer.number},
                            "payee": {
                                "account": payee.number,
                                "name": payee.name,
                                "bank_code": plan.bank_code,
                                "bank_name": plan.title,
                            },
                            "amount": f"{1000 + number}.{number:02d}",
                            "currency": "CNY",
                            "purpose": "货款",
                        },
                    },
                }
            )
        return work

    def _watch(self, process: subprocess.Popen[str], total: int) -> None:
        assert process.stdout is not None
        with self._progress() as progress:
            fetched = progress.add_task("bodies fetched by id", total=total)
            results = progress.add_task("results delivered", total=total)
            for line in process.stdout:
                record = json.loads(line)
                match record["event"]:
                    case "fetch" if record["attempt"] == 1:
                        progress.advance(fetched)
                    case "result":
                        progress.advance(results)
                        if record["state"] != "succeeded":
                            progress.console.print(f"  {record}", style="red")
                    case "alarm":
                        progress.console.print(f"  alarm: {record['reason']}", style="red")
                    case _:
                        pass

    def _round(self, scene: Scene, operator: BlockingClient) -> None:
        """Run one pooling round; with real slots, pull a key in its middle."""
        self._say(
            "Pooling (资金归集): query, judge by each account's threshold, sweep the excess …"
        )
        started = operator.call("pool.run", {"pool": "main"})
        round_id = started["round_id"]
        if scene.rig is not None:
            self._pull(scene, operator, round_id)
        total = started["accounts"]
        with self._progress() as progress:
            bar = progress.add_task("accounts done", total=total)

            def finished(client: BlockingClient) -> Any:  # noqa: ANN401
                found = client.call("pool.round", {"round_id": round_id})
                progress.update(bar, completed=_done(found))
                return found if found["state"] == "finished" else None

            found = scene.wait(operator, finished, "pooling round", ROUND_SECONDS_MAX)
        failed = [item for item in found["items"] if item["state"] not in ("swept", "nothing")]
        if failed:
            msg = f"{len(failed)} accounts of the round failed, the first: {failed[0]}"
            raise DemoError(msg)
        self.tally.swept = found["states"].get("swept", 0)
        self.tally.swept_amount = found["swept"]
        self.tally.tasks += total + self.tally.swept
        self._say(
            f"Round {round_id}: {self.tally.swept} accounts swept, "
            f"{found['states'].get('nothing', 0)} at or below their threshold, "
            f"{found['swept']} CNY moved."
        )

    def _pull(self, scene: Scene, operator: BlockingClient, round_id: str) -> None:
        """Pull the last bank's key, see the alarm, let the others finish, put it back."""
        assert scene.rig is not None
        plan, card = scene.banks[-1], scene.rig.cards[len(scene.banks) - 1]
        card.pull()
        pulled = time.monotonic()
        self._say(f"The UKey of {plan.name} is pulled in mid-round:", style="yellow")

        def alarm(client: BlockingClient) -> Any:  # noqa: ANN401
            for one in client.call("alarm.list")["alarms"]:
                if one["kind"] == "KEY_MISSING" and one["subject"] == f"ukey-{plan.name}":
                    return one
            return None

        found = scene.wait(operator, alarm, "alarm for the pulled key", ALARM_SECONDS_MAX)
        seconds = time.monotonic() - pulled
        self._say(f"  alarm after {seconds:.2f} s: {found['title_zh']} {found['cause']}")

        def others(client: BlockingClient) -> bool:
            items = client.call("pool.round", {"round_id": round_id})["items"]
            return all(
                item["state"] in ("swept", "nothing") for item in items if item["bank"] != plan.name
            )

        scene.wait(operator, others, "the other banks' accounts", ROUND_SECONDS_MAX)
        found = operator.call("pool.round", {"round_id": round_id})
        waiting = found["accounts"] - _done(found)
        self._say(
            f"  the other banks went on; {waiting} accounts of {plan.name} wait. Put it back."
        )
        card.insert()

    def _close(self, scene: Scene, before: list[BookAccount], held: Cny) -> None:
        """Show the accounts before and after, and check the book."""
        book = scene.open_book()
        after = book.accounts()
        self._console.print(_accounts_table(before, after))
        faults = book.check()
        if book.held() != held:
            faults.append(f"the sum over all books was {held} and is {book.held()}")
        for payment in book.payments():
            times = book.times_booked(payment.client_ref)
            if payment.state is not BookedState.DONE or times != 1:
                faults.append(
                    f"{payment.client_ref} is {payment.state} and was booked {times} times"
                )
        for number in range(1, PAYMENTS + 1):
            reference = client_ref("E0001", TaskId(f"PAY-{number:03d}"))
            if (times := book.times_booked(reference)) != 1:
                faults.append(f"PAY-{number:03d} was booked {times} times")
        count = len(book.payments())
        book.close()
        if faults:
            raise DemoError("; ".join(faults))
        self._say(
            f"The sum over all books is unchanged: {held} CNY; "
            f"each of {count} payments was booked exactly once.",
            style="green",
        )
        self.tally.seconds = round(time.monotonic() - self._began, 1)

    def _stay_up(self, scene: Scene, console: str) -> None:
        """Say how to try what runs, and leave it running until Ctrl-C."""
        password = secrets.token_urlsafe(12)
        with scene.operator() as operator:
            operator.call("user.add", {"name": USER, "role": "admin", "password": password})
        payer = scene.accounts[0]
        asked = json.dumps({"account": payer.number})
        self._say("All of it stays up until Ctrl-C. 保持运行，按 Ctrl-C 结束。", style="green")
        for what, how in (
            ("console 控制台", f"http://{console}  user {USER}, password {password}"),
            ("operators 运维", f"export FEP_ADDRESS=unix:{scene.socket}"),
            ("", "fepctl status; fepctl tasks; fepctl why PAY-001"),
            ("", f"fepctl submit TRY-1 {payer.bank} balance '{asked}' --wait"),
            (
                "finance 财务系统",
                f"tcp:127.0.0.1:{scene.port}, client {FINANCE_CLIENT}, token file {scene.token}",
            ),
            ("files 文件", f"{scene.config}, {self._directory / 'fep.log'}"),
        ):
            self._console.print(f"  {what:<16} {how}", highlight=False, markup=False)
        with suppress(KeyboardInterrupt):
            while True:
                signal.pause()

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("  {task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )

    def _say(self, text: str, *, style: str = "", dim: bool = False) -> None:
        seconds = time.monotonic() - self._began
        self._console.print(
            f"[dim]{seconds:6.2f}s[/dim] {text}", style="dim" if dim else style, highlight=False
        )


def scene_size(scene: Scene) -> int:
    """Return how many accounts take part."""
    return len(scene.accounts)


def _done(found: dict[str, Any]) -> int:
    return sum(item["state"] in ("swept", "nothing", "failed") for item in found["items"])


def _accounts_table(before: list[BookAccount], after: list[BookAccount]) -> Table:
    table = Table(title="Accounts before and after", title_justify="left")
    for heading in ("bank", "account"):
        table.add_column(heading)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for old, new in zip(before, after, strict=True):
        change = new.balance - old.balance
        style = "green" if change.fen > 0 else ("" if change.fen else "dim")
        row = (old.bank, old.number, str(old.balance), str(new.balance), str(change))
        table.add_row(*row, style=style)
    return table


def _accounts(text: str) -> int:
    if not text.isdecimal() or not ACCOUNTS_MIN <= int(text) <= ACCOUNTS_MAX:
        msg = f"{text!r} is not a number from {ACCOUNTS_MIN} to {ACCOUNTS_MAX}"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _made(directory: Path) -> str:
    """Make the demo's folder; returns why it can't be used, empty if it can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        return "is no folder; choose another"
    except OSError as error:
        return f"can't be made: {error.strerror}"
    try:
        return "is not empty; choose another" if any(directory.iterdir()) else ""
    except OSError as error:
        return f"can't be read: {error.strerror}"


def main(arguments: Sequence[str]) -> int:
    """Run ``fep demo``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fep demo",
        description="Show the main job on this machine: keys, banks, tasks, one pooling round.",
    )
    parser.add_argument(
        "--directory", type=Path, help="keep everything here (default: a temporary directory)"
    )
    parser.add_argument(
        "--accounts",
        type=_accounts,
        default=ACCOUNTS_PER_BANK,
        metavar="NUMBER",
        help=f"at each bank: {ACCOUNTS_MIN} to {ACCOUNTS_MAX} (default %(default)s)",
    )
    parser.add_argument("--software", action="store_true", help="software keys even as root")
    parser.add_argument(
        "--stay",
        action="store_true",
        help="leave the daemon and the banks running for you to try, until Ctrl-C",
    )
    given = parser.parse_args(arguments)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 110)
    directory = given.directory or Path(tempfile.mkdtemp(prefix="fep-demo-"))
    if refusal := _made(directory):
        console.print(f"fep demo: {directory} {refusal}", style="red")
        return 2
    demo = Demo(
        directory.absolute(),
        console,
        software=given.software,
        per_bank=given.accounts,
        stay=given.stay,
    )
    # `kill` is to the demo what Ctrl-C is: it ends what it started before it ends.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demo.run()
    except KeyboardInterrupt:
        kept = f"logs and data are kept in {directory}"
        print(f"demo: interrupted; all that was started has ended, {kept}", flush=True)
        return INTERRUPTED
    except (DemoError, TimeoutError, RuntimeError, OSError) as error:
        console.print(f"{error}", style="red")
        console.print(f"Logs and data are kept in {directory}")
        print(f"demo: failed {json.dumps({'reason': str(error)}, ensure_ascii=False)}")
        return 1
    if given.directory is None:
        shutil.rmtree(directory)
    else:
        console.print(f"Logs and data are in {directory}: fep.log, book.sqlite, fep.toml")
    print(f"demo: ok {json.dumps(attrs.asdict(demo.tally))}", flush=True)
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
