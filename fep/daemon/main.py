"""The ``fep`` command: run, check-config, install-service, host, demo, and what keeps the store."""

from __future__ import annotations

import argparse
import datetime as dt
import faulthandler
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from fep.control import output

if TYPE_CHECKING:
    from fep.daemon.app import Daemon

CONFIG_DEFAULT: Final = Path("/etc/fep/fep.toml")
INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit status that shells know for it."""

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 well, 1 not, 2 wrong usage, 3 well but nobody could be told, 130 interrupted, 141 whoever
    read along, such as head, has read enough.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"]:
        # Its standard output is the log, which counts by itself what it could not write.
        output.open_closed()
        status = _interruptible(words)
        output.close_log()
        return status
    return output.run(
        lambda: _interruptible(words), lambda told: print(f"fep: {told}", file=sys.stderr)
    )


def _interruptible(words: Sequence[str]) -> int:
    try:
        return _command(words)
    except KeyboardInterrupt:
        print("fep: interrupted", file=sys.stderr)
        return INTERRUPTED


def _command(words: Sequence[str]) -> int:
    # These have parsers of their own, and load much that the daemon never needs.
    if words[:1] == ["host"]:
        from fep.sandbox import host  # noqa: PLC0415

        return host.main(words[1:])
    if words[:1] == ["demo"]:
        from fep.sandbox import demo  # noqa: PLC0415

        return demo.main(words[1:])
    if words[:1] == ["conformance"]:
        from fep.sandbox import conformance  # noqa: PLC0415

        return conformance.main(words[1:])
    if words[:1] == ["new-adapter"]:
        from fep.sandbox import new_adapter  # noqa: PLC0415

        return new_adapter.main(words[1:])
    given = _parser().parse_args(words)
    command: Callable[[argparse.Namespace], int] = given.command
    return command(given)


class _Version(argparse.Action):
    """Prints the release; only then is it looked up."""

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415

        print(f"fep {version('fep')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fep",
        description="Enterprise bank front-end processor (企业端前置机, 银企直联).",
        epilog="Exit status: 0 well, 1 not, 2 wrong usage, 3 well but what was to be said could "
        "not be written. Operators' commands to a running daemon: fepctl --help",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the release")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run the daemon in the foreground (systemd does this)")
    run.add_argument("--config", type=Path, default=CONFIG_DEFAULT, help="default: %(default)s")
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    run.add_argument("--log-format", choices=("json", "console"), default="json")
    run.set_defaults(command=_run)

    check = commands.add_parser(
        "check-config", aliases=["check"], help="say all that is wrong in a configuration"
    )
    check.add_argument("file", type=Path, nargs="?", default=CONFIG_DEFAULT)
    check.add_argument(
        "--secrets", action="store_true", help="also look at the files of keys, PINs and tokens"
    )
    check.set_defaults(command=_check)

    install = commands.add_parser(
        "install-service", help="make a systemd service of this fep, or take it away again"
    )
    install.add_argument(
        "--prefix", type=Path, metavar="DIR", help="the environment whose bin/fep it runs: this one"
    )
    install.add_argument("--root", type=Path, metavar="DIR", help="into an image of a machine")
    install.add_argument("--dry-run", action="store_true", help="change nothing, show what would")
    either = install.add_mutually_exclusive_group()
    either.add_argument("--enable", action="store_true", help="start it now and with the machine")
    either.add_argument(
        "--uninstall", action="store_true", help="remove it; configuration and state are kept"
    )
    install.set_defaults(command=_install)

    adapters = commands.add_parser("adapters", help="list the installed bank adapters")
    adapters.add_argument("name", nargs="?", help="show what this one keeps of the quality rules")
    adapters.add_argument("--json", action="store_true", help="one JSON line for programs")
    adapters.set_defaults(command=_adapters)
    decode = commands.add_parser(
        "decode", help="show captured bytes of a bank's line as JSON lines, one a frame"
    )
    decode.add_argument("adapter", help="whose protocol it is")
    decode.add_argument("file", help="a capture or a wire tape; - for standard input")
    decode.add_argument(
        "--bank", help="a configured bank: with its secrets, where the protocol hides what it says"
    )
    decode.add_argument("--config", type=Path, default=CONFIG_DEFAULT, help="default: %(default)s")
    decode.add_argument(
        "--masked", action="store_true", help="mask account numbers too, for what leaves the house"
    )
    decode.set_defaults(command=_decode)

    _add_upkeep(commands)
    commands.add_parser(
        "host", help="run a simulated bank on loopback (fep host --help)", add_help=False
    )
    commands.add_parser(
        "conformance", help="try on an adapter what every adapter must do", add_help=False
    )
    commands.add_parser(
        "new-adapter", help="make a folder with an adapter to begin with", add_help=False
    )
    commands.add_parser(
        "demo", help="show the main job on this machine (fep demo --help)", add_help=False
    )
    return parser


def _add_upkeep(commands: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Add the commands that keep the store; ``fep/daemon/upkeep.py`` has them."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, default=CONFIG_DEFAULT, help="default: %(default)s")
    common.add_argument("--json", action="store_true", help="one JSON line for programs")

    def add(name: str, run: str, words: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = commands.add_parser(
            name, help=words, description=words, parents=[common]
        )
        one.set_defaults(command=partial(_upkeep, run))
        return one

    one = add("verify-store", "verify_store", "look whether the store is sound; exit 1 if not")
    one.add_argument("path", type=Path, nargs="?", help="a store's file; else the one in use")
    one.add_argument("--full", action="store_true", help="every index too; takes much longer")
    one.add_argument(
        "--head", type=_head, metavar="NUMBER:DIGEST", help="a head of the chain noted earlier"
    )
    one = add("backup", "back_up", "copy the store while the daemon runs, and look at the copy")
    one.add_argument("target", type=_target, metavar="DEST", help="a new file, or a folder for one")
    one.add_argument("--force", action="store_true", help="in the place of a file that is there")
    one = add("restore", "restore", "put a copy in the place of the store; the daemon is stopped")
    one.add_argument(
        "backup",
        type=Path,
        nargs="?",
        metavar="BACKUP",
        help="a file that fep backup made; none for a shared store that pg_restore has put back",
    )
    one = add("archive", "archive_tasks", "move tasks that are over to yearly files")
    one.add_argument(
        "--before", type=_day, required=True, metavar="YYYY-MM-DD", help="that ended before it"
    )
    one = add("replay", "replay", "read recorded bank messages anew; exit 1 if one differs now")
    one.add_argument("task_id", metavar="ID", nargs="?", help="one task")
    one.add_argument("--all", action="store_true", help="every task, archived ones too")
    one.add_argument("--since", type=_day, metavar="YYYY-MM-DD", help="what was kept from then on")
    one.add_argument("--store", type=Path, metavar="FILE", help="a backup; else the store in use")
    one.add_argument(
        "--tape", type=Path, metavar="FILE", help="the answers on a bank's wire tape, queries' too"
    )


def _head(text: str) -> str:
    """Return a head of the chain as it is printed; a part of one would look like another store."""
    if re.fullmatch("[0-9]{1,18}:[0-9A-Fa-f]{64}", text) is None:
        msg = f"{text!r} is no head: its number, a colon, and all 64 hex digits of its digest"
        raise argparse.ArgumentTypeError(msg)
    return text.lower()


def _target(text: str) -> Path:
    """Return where a copy goes; a name that ends like a folder's must be one."""
    if not text:
        # The path of no name is the present folder, and nobody asked for a copy there.
        raise argparse.ArgumentTypeError("give a new file, or a folder for one")
    path = Path(text)
    if text.endswith("/") and not path.is_dir():
        msg = f"there is no folder {text}"
        raise argparse.ArgumentTypeError(msg)
    return path


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is no day YYYY-MM-DD"
        raise argparse.ArgumentTypeError(msg) from error


def _upkeep(name: str, given: argparse.Namespace) -> int:
    from fep.daemon import upkeep  # noqa: PLC0415

    status: int = getattr(upkeep, name)(given)
    return status


def _check(given: argparse.Namespace) -> int:
    from fep.daemon import config  # noqa: PLC0415
    from fep.domain.words import counted  # noqa: PLC0415

    faults = config.check(given.file)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print(f"{counted(len(faults), 'fault')} in {given.file}", file=sys.stderr)
        return 1
    found = config.load(given.file)
    secrets = config.secret_faults(found) if given.secrets else []
    for line in secrets:
        print(line, file=sys.stderr)
    if secrets:
        return 1
    print(
        f"{given.file}: OK: {len(found.banks)} banks, {len(found.slots)} slots, "
        f"{counted(len(found.accounts), 'account')}, {counted(len(found.pools), 'pool')}"
        f" (configuration {found.digest})"
    )
    return 0


def _install(given: argparse.Namespace) -> int:
    from fep.daemon.install import install_service  # noqa: PLC0415

    return install_service(given)


def _adapters(given: argparse.Namespace) -> int:
    import orjson  # noqa: PLC0415

    from fep.adapters import registry  # noqa: PLC0415

    rows = []
    broken = 0
    for name in registry.names() if given.name is None else [given.name]:
        try:
            one, quality = registry.adapter(name), registry.quality(name)
        except (registry.UnknownAdapterError, registry.BrokenAdapterError) as error:
            print(error.args[0], file=sys.stderr)
            broken = 1
            continue
        rows.append(
            {
                "name": one.name,
                "title": one.title,
                "version": one.version,
                "capabilities": sorted(one.capabilities),
                "signed_by": one.card.signing.by.value,
                "grade": quality.grade.value,
                "rules": [
                    {"name": rule.name, "grade": rule.grade.value, "status": rule.status.value}
                    | ({"comment": rule.comment} if rule.comment else {})
                    for rule in quality.rules
                ],
            }
        )
        if not given.json:
            print(f"{one.name:<14} {one.version:<8} {quality.grade:<9} {one.title}")
            print(f"{'':<14} {', '.join(sorted(one.capabilities))}")
        if given.name is not None and not given.json:
            for rule in quality.rules:
                why = f" ({rule.comment})" if rule.comment else ""
                print(f"  {rule.grade:<9} {rule.status:<7} {rule.name}: {rule.asks}{why}")
    if given.json:
        print(orjson.dumps({"adapters": rows}).decode())
    return broken


def _decode(given: argparse.Namespace) -> int:
    import orjson  # noqa: PLC0415

    from fep.adapters import registry, tape  # noqa: PLC0415
    from fep.adapters.decode import lines, without_accounts  # noqa: PLC0415
    from fep.domain.errors import FepError  # noqa: PLC0415

    try:
        adapter = registry.adapter(given.adapter)
        decoder = adapter.decoder if given.bank is None else _decoder_of(given)
        data = _captured(given.file)
    except (registry.UnknownAdapterError, registry.BrokenAdapterError, FepError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{given.file}: {error.strerror}", file=sys.stderr)
        return 1
    found: Iterator[dict[str, Any]]
    if tape.is_tape(data):
        read = tape.read(data)
        if read.left_out:
            print(f"{read.left_out} lines of the tape can't be read", file=sys.stderr)
        found = iter([one.value for one in tape.shown(read, adapter.name, decoder)])
    else:
        found = lines(adapter.name, decoder, data)
    for value in without_accounts(list(found)) if given.masked else found:
        sys.stdout.write(orjson.dumps(value).decode() + "\n")
    return 0


def _captured(name: str) -> bytes:
    """Return a file's bytes, or those of the standard input, as many as are looked at."""
    from fep.adapters.decode import INPUT_BYTES_MAX  # noqa: PLC0415

    if name == "-":
        data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(INPUT_BYTES_MAX + 1)
    if len(data) > INPUT_BYTES_MAX:
        print(f"only the first {INPUT_BYTES_MAX} bytes are read", file=sys.stderr)
    return data[:INPUT_BYTES_MAX]


def _decoder_of(given: argparse.Namespace) -> Any:  # noqa: ANN401 - a Decoder, imported late
    """Return the decoder with a configured bank's secrets.

    Raises:
        FepError: no such bank, or its secrets can't be read.
    """
    from fep.adapters.api import decoder_of  # noqa: PLC0415
    from fep.daemon.config import load  # noqa: PLC0415
    from fep.domain.errors import ConfigError  # noqa: PLC0415

    config = load(given.config)
    for bank in config.banks:
        if bank.name == given.bank:
            if bank.adapter.name != given.adapter:
                msg = f"bank {given.bank} has adapter {bank.adapter.name}, not {given.adapter}"
                raise ConfigError(msg)
            return decoder_of(bank.adapter, bank.profile(config.accounts, bank.read_secrets()))
    msg = f"{given.config} has no bank {given.bank}"
    raise ConfigError(msg)


def _run(given: argparse.Namespace) -> int:
    import gc  # noqa: PLC0415

    import trio  # noqa: PLC0415

    from fep import logs  # noqa: PLC0415
    from fep.daemon import config as configuration  # noqa: PLC0415
    from fep.daemon.app import Daemon  # noqa: PLC0415
    from fep.domain.clock import SystemClock  # noqa: PLC0415
    from fep.domain.errors import FepError  # noqa: PLC0415

    try:
        config = configuration.load(given.config)
    except configuration.ConfigFaultsError as error:
        print(error, file=sys.stderr)
        return 1
    vital = configuration.secret_faults(config, vital=True)
    for fault in vital or configuration.secret_faults(config):
        print(fault, file=sys.stderr)
    if vital:
        return 1
    os.umask(0o077)
    followers = logs.Followers()
    logs.configure(sys.stdout, given.log_level or config.log_level, followers, given.log_format)
    # Long-lived objects are made at start: collecting them over and over only costs time.
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    daemon = Daemon(config, SystemClock(), followers)
    # Whoever ends us for standing still (the watchdog, by SIGABRT) is told where we stand.
    faulthandler.enable(sys.__stderr__ or sys.stderr)
    failed = False
    try:
        trio.run(_serve, daemon)
    except* FepError as group:
        failed = True
        for one in _leaves(group):
            log.error("daemon.failed", reason=str(one))
            print(f"fep: {one}", file=sys.stderr)
    return int(failed)


async def _serve(daemon: Daemon) -> None:
    """Run the daemon under the signals: TERM and INT stop it, HUP reloads."""
    import trio  # noqa: PLC0415

    from fep.daemon import notify  # noqa: PLC0415
    from fep.domain.errors import FepError  # noqa: PLC0415

    async def obey() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number != signal.SIGHUP:
                    daemon.stop()
                    continue
                # A stop that comes meanwhile is not kept waiting.
                nursery.start_soon(reload)

    async def reload() -> None:
        async with one_at_a_time:
            notify.reloading()
            try:
                await daemon.apply("SIGHUP")
            except FepError as error:
                print(error, file=sys.stderr)
            finally:
                notify.notify("READY=1")

    one_at_a_time = trio.Lock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey)
        async with trio.open_nursery() as work:
            await work.start(daemon.run)
            notify.notify("READY=1", f"STATUS={daemon.status_line()}")
        nursery.cancel_scope.cancel()


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[object]:
    found: list[object] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


if __name__ == "__main__":
    sys.exit(main())
