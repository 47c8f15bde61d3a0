"""Starts virtual USB-Keys behind a pcscd of their own, for tests and the demo.

::

    with UkeyRig.start(directory, slots=4, common_names=["ERP pingan"]) as rig:
        subprocess.run(["fep", "run", ...], env=os.environ | rig.environment)
        rig.cards[0].pull()

The machine's own pcscd, readers and files are not touched: the private pcscd runs in a mount
namespace where it sees an empty folder instead of the USB drivers, and its own folder in place of
``/run``. Both processes of the rig end with it, however the caller ends: they watch a pipe that
the caller holds open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import attrs

from fep.domain.errors import FepError
from fep.sandbox.ukey.apdu import Ins
from fep.sandbox.ukey.build import COMPILER, build, default_directory
from fep.sandbox.ukey.cards import SLOTS_MAX, default_names

START_SECONDS_MAX: Final = 60.0
"""The first start makes RSA keys, two a card; later ones take well under a second."""
STOP_SECONDS_MAX: Final = 2.0
"""From SIGTERM to SIGKILL."""
COMMAND_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.002
_PROBE_SECONDS_MAX: Final = 10

_SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path has 108 with its final zero
_LONGEST_SUFFIX: Final = "/run/pcscd/pcscd.comm"
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_./-]+")
_ADMIN_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_PROGRAMS: Final = ("unshare", "mount", "pcscd", COMPILER, "pkg-config")

# $1 the rig's folder, $2 pcscd's USB driver folder, then pcscd and its options.
_START_PCSCD: Final = """
set -e
mount --bind "$1/run" /run
if [ -d "$2" ]; then mount --bind "$1/drivers" "$2"; fi
shift 2
exec "$@"
"""

# OpenSC shows four readers unless told otherwise, and may keep certificates of an earlier card.
_OPENSC_CONF: Final = """\
app default {
    framework pkcs15 { use_file_caching = no; }
}
app opensc-pkcs11 {
    pkcs11 { max_virtual_slots = 32; slots_per_card = 2; }
}
"""


class UkeyRigError(FepError):
    """The rig cannot start, or a card cannot do what was asked; the message says why."""

    code = "UKEY_RIG"


@attrs.frozen
class UkeyCard:
    """One virtual key of a rig. All calls take effect before they return."""

    _rig: UkeyRig
    number: int
    common_name: str

    @property
    def guid(self) -> str:
        """The GUID in the card's CHUID, 32 hexadecimal digits in lower case."""
        return str(self._state()["guid"])

    @property
    def slot(self) -> int | None:
        """The number of the slot it is in, None if it is out."""
        slot: int | None = self._state()["slot"]
        return slot

    @property
    def reader_name(self) -> str:
        """The PC/SC name of the reader it is in, or of its home slot while it is out.

        Raises:
            UkeyRigError: it is a spare card and not inserted.
        """
        state = self._state()
        slot = state["home"] if state["slot"] is None else state["slot"]
        if slot is None:
            msg = f"card {self.number} is a spare one and in no slot"
            raise UkeyRigError(msg)
        return reader_name(slot)

    @property
    def pin_tries_left(self) -> int:
        """How many wrong PINs the card would still take."""
        return int(self._state()["pin_tries_left"])

    def certificate_der(self, key: str = "9C") -> bytes:
        """Return the certificate stored on the card for a key (9A, 9C, 9D, 9E)."""
        return bytes.fromhex(self._command("certificate", key=key)["der"])

    def certificate_sha256(self, key: str = "9C") -> str:
        """Return the fingerprint of that certificate, 64 hexadecimal digits in lower case."""
        return hashlib.sha256(self.certificate_der(key)).hexdigest()

    def insert(self, slot: int | None = None) -> None:
        """Put the card into a slot, by default its home."""
        self._command("insert", slot=slot)

    def pull(self) -> None:
        """Pull the card out, also in the middle of a command."""
        self._command("pull")

    def swap(self, other: UkeyCard | None = None) -> None:
        """Pull this card and put ``other`` in its slot at once; without it, the same card again.

        If ``other`` is in a slot too, the two exchange their slots.
        """
        self._command("swap", other=self.number if other is None else other.number)

    @property
    def is_signing(self) -> bool:
        """Whether it works on a GENERAL AUTHENTICATE at this moment (see :meth:`slow`)."""
        return bool(self._state()["in_work"] == Ins.GENERAL_AUTHENTICATE)

    def slow(self, seconds: float) -> None:
        """Make each GENERAL AUTHENTICATE wait that long (a chained RSA signature has two)."""
        self._command("slow", seconds=seconds)

    def die_on_ins(self, ins: int | None) -> None:
        """Have the card pulled in place of its next answer to that instruction byte."""
        self._command("die_on_ins", ins=ins)

    def block_pin(self) -> None:
        """Use up the tries of the PIN."""
        self._command("block_pin")

    def mute(self, enabled: bool = True) -> None:  # noqa: FBT001, FBT002 - reads well in calls
        """Give no ATR from the next power-up on (insert it anew to make that happen)."""
        self._command("mute", enabled=enabled)

    def set_guid(self, guid: str) -> None:
        """Write another GUID to the card, as re-personalising it does."""
        self._command("set_guid", guid=guid)

    def trace(self) -> list[dict[str, Any]]:
        """Return the last exchanges: ``at`` (monotonic seconds), ``command``, ``response`` (hex).

        Commands that carry a PIN or key show their header only.
        """
        entries: list[dict[str, Any]] = self._command("trace")["trace"]
        return entries

    def _state(self) -> dict[str, Any]:
        return self._rig.list_cards()[self.number]

    def _command(self, command: str, **members: object) -> dict[str, Any]:
        return self._rig.command(command, card=self.number, **members)


def reader_name(slot: int) -> str:
    """Return the PC/SC name of a slot's reader, e.g. ``UKey 10 0A 00``."""
    return f"UKey {slot:02} {slot:02X} 00"


class UkeyRig:
    """A private pcscd, the reader driver and a process with the cards. Use :meth:`start`."""

    def __init__(self, directory: Path, slots: int, common_names: Sequence[str]) -> None:
        """Lay the folders out; nothing runs yet."""
        self.directory: Final = directory
        self.slots: Final = slots
        names = [*common_names, *default_names(slots)[len(common_names) :]]
        self.cards: Final = [UkeyCard(self, number, name) for number, name in enumerate(names)]
        directory.mkdir(parents=True, exist_ok=True)
        self._base = _socket_base(directory)
        self._driver: Path | None = None
        self._pcscd: subprocess.Popen[bytes] | None = None
        self._card_server: subprocess.Popen[bytes] | None = None
        self._lifeline, self._lifeline_end = os.pipe()

    @classmethod
    def available(cls) -> str | None:
        """Return why a rig cannot run on this machine, None if it can."""
        if missing := _missing_programs():
            return missing
        if _refusal("pkg-config", "--exists", "libpcsclite") is not None:
            return "the headers of pcsc-lite are not installed (libpcsclite-dev)"
        refusal = _refusal(*_namespace_command(), "true")
        return refusal and f"no mount namespace (be root, or allow user namespaces): {refusal}"

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        slots: int = 4,
        common_names: Sequence[str] = (),
        guids: Sequence[str] = (),
        inserted: bool = True,
        key_cache: Path | None = None,
        build_directory: Path | None = None,
    ) -> Self:
        """Return a running rig: pcscd answers and shows every inserted card to its clients.

        Args:
            directory: for logs and sockets; kept on close.
            slots: number of readers, 1 to ``SLOTS_MAX``.
            common_names: subject of each card's certificates. More names than slots make spare
                cards, which are in no slot; fewer are filled up with ``UKEY-NN``.
            guids: 32 hexadecimal digits each; a card without one gets that of its name.
            inserted: whether the cards start in their slots.
            key_cache: where private keys are kept between runs (0600); the build folder if None.
            build_directory: where the driver is compiled.

        Raises:
            UkeyRigError: something it needs is missing, or a process ended or did not get ready
                within ``START_SECONDS_MAX``.
            DriverBuildError: the driver does not compile.
        """
        if not 1 <= slots <= SLOTS_MAX:
            msg = f"a rig has 1 to {SLOTS_MAX} slots"
            raise UkeyRigError(msg)
        if missing := _missing_programs():
            raise UkeyRigError(missing)
        build_directory = build_directory or default_directory()
        rig = cls(directory, slots, common_names)
        with contextlib.ExitStack() as undo:
            undo.callback(rig.close)
            rig._driver = build(build_directory)
            rig._lay_out()
            rig._start_cards(guids, key_cache or build_directory / "keys", inserted=inserted)
            rig.start_pcscd()
            undo.pop_all()
        return rig

    def __enter__(self) -> Self:
        """Return the rig itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the rig."""
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the programs that shall see this rig's readers (libpcsclite, OpenSC)."""
        return {
            "PCSCLITE_CSOCK_NAME": str(self._base / "run/pcscd/pcscd.comm"),
            "OPENSC_CONF": str(self._base / "opensc.conf"),
        }

    def export_environment(self) -> None:
        """Set :attr:`environment` in this process; libpcsclite reads it at its first call only."""
        os.environ.update(self.environment)

    @property
    def reader_names(self) -> list[str]:
        """The PC/SC names of all slots, in order."""
        return [reader_name(slot) for slot in range(self.slots)]

    @property
    def control_path(self) -> Path:
        """The card server's control socket, for programs that pull cards themselves."""
        return self._base / "control.sock"

    @property
    def pcscd_pid(self) -> int | None:
        """The process id of the private pcscd, None while it is stopped."""
        return None if self._pcscd is None else self._pcscd.pid

    @property
    def card_server_pid(self) -> int | None:
        """The process id of the card server, None after :meth:`close`."""
        return None if self._card_server is None else self._card_server.pid

    def command(self, command: str, **members: object) -> dict[str, Any]:
        """Return the answer to one request of the control protocol (see ``cards``).

        Raises:
            UkeyRigError: the card server refused it, or is gone.
        """
        request = json.dumps({"command": command, **members}).encode() + b"\n"
        try:
            with _connect(self.control_path) as line, line.makefile("rb") as answers:
                line.sendall(request)
                answer: dict[str, Any] = json.loads(answers.readline())
        except (OSError, ValueError) as error:
            msg = f"the card server does not answer: {error!r}"
            raise UkeyRigError(msg) from error
        if not answer["ok"]:
            raise UkeyRigError(answer["error"])
        return answer

    def list_cards(self) -> list[dict[str, Any]]:
        """Return the state of all cards (see ``cards``, command ``list``)."""
        cards: list[dict[str, Any]] = self.command("list")["cards"]
        return cards

    def reset(self) -> None:
        """Bring all cards back to how they started, and wait until pcscd has seen them."""
        self.command("reset")
        if self._pcscd is not None:
            self._wait(self._are_cards_recognised, "pcscd to read the cards")

    def unplug_reader(self, slot: int) -> None:
        """Make a reader act as if its device were gone, until :meth:`plug_reader`."""
        self._gone_file(slot).touch()

    def plug_reader(self, slot: int) -> None:
        """Bring a reader's device back."""
        self._gone_file(slot).unlink(missing_ok=True)

    def kill_pcscd(self) -> None:
        """End pcscd as a crash would (SIGKILL); the cards stay plugged in."""
        self._end_pcscd(signal.SIGKILL)

    def stop_pcscd(self) -> None:
        """End pcscd as systemd would (SIGTERM); the cards stay plugged in."""
        self._end_pcscd(signal.SIGTERM)

    def start_pcscd(self) -> None:
        """Start pcscd, if it does not run, and wait until it has read all inserted cards.

        Raises:
            UkeyRigError: it ended, or was not ready in time.
        """
        if self._pcscd is not None:
            return
        # A killed pcscd leaves both, and the next one refuses to start beside them.
        for name in ("pcscd.comm", "pcscd.pid"):
            (self._base / "run/pcscd" / name).unlink(missing_ok=True)
        pcscd = _which("pcscd") or "pcscd"
        command = [
            *_namespace_command(),
            *("sh", "-c", _START_PCSCD, "sh", str(self._base), _usb_drivers()),
            *(pcscd, "--foreground", "--info", "--config", str(self._base / "conf")),
            *_polkit_option(pcscd),
        ]
        environment = {"FEP_VSLOT_LIFELINE_FD": str(self._lifeline)}
        self._pcscd = self._spawn(command, "pcscd.log", environment)
        self._wait(self._is_ready, "pcscd to read the cards")

    def close(self) -> None:
        """End both processes and remove the sockets; the logs stay. May be repeated."""
        for process in (self._pcscd, self._card_server):
            if process is not None:
                _end(process, signal.SIGTERM)
        self._pcscd = self._card_server = None
        if self._lifeline >= 0:
            os.close(self._lifeline_end)
            os.close(self._lifeline)
            self._lifeline = self._lifeline_end = -1
        is_own = self._base != self.directory.resolve()
        for leftover in [self._base] if is_own else [self._base / "run", self._base / "slots"]:
            shutil.rmtree(leftover, ignore_errors=True)

    def _end_pcscd(self, first: signal.Signals) -> None:
        if self._pcscd is None:
            return
        _end(self._pcscd, first)
        self._pcscd = None
        # Else the next start could take the old recognition for a new one.
        self._wait(lambda: not any(card["recognised"] for card in self.list_cards()), "the cards")

    def _gone_file(self, slot: int) -> Path:
        return self._base / "slots" / f"{slot:02}.gone"

    def _lay_out(self) -> None:
        assert self._driver is not None  # start() has built it
        for name in ("conf", "run/pcscd", "slots", "drivers"):
            (self._base / name).mkdir(parents=True, exist_ok=True)
        driver = self._base / "libifdvslot.so"
        shutil.copyfile(self._driver, driver)
        readers = [
            f'FRIENDLYNAME "UKey {slot:02}"\n'
            f"DEVICENAME {self._base}/slots:{slot:02}\n"
            f"LIBPATH {driver}\n"
            f"CHANNELID {slot}\n"
            for slot in range(self.slots)
        ]
        (self._base / "conf" / "reader.conf").write_text("\n".join(readers))
        (self._base / "opensc.conf").write_text(_OPENSC_CONF)

    def _start_cards(self, guids: Sequence[str], key_cache: Path, *, inserted: bool) -> None:
        command = [sys.executable, "-m", "fep.sandbox.ukey.cards"]
        command += ["--dir", str(self._base), "--slots", str(self.slots)]
        command += ["--key-cache", str(key_cache), "--lifeline", str(self._lifeline)]
        command += [f"--common-name={card.common_name}" for card in self.cards]
        command += [f"--guid={guid}" for guid in guids]
        command += [] if inserted else ["--empty"]
        self._card_server = self._spawn(command, "cards.log", {})

    def _spawn(
        self, command: list[str], log: str, environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a process of the rig; in a session of its own, so that Ctrl-C is the caller's."""
        with (self.directory / log).open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                pass_fds=(self._lifeline,),
                start_new_session=True,
            )

    def _is_ready(self) -> bool:
        """Say whether the card server answers, pcscd listens and has read every inserted card."""
        try:
            _connect(self._base / "run/pcscd/pcscd.comm").close()
            _connect(self.control_path).close()
        except OSError:
            return False
        return self._are_cards_recognised()

    def _are_cards_recognised(self) -> bool:
        return all(card["recognised"] for card in self.list_cards() if card["slot"] is not None)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not condition():
            for process in (self._pcscd, self._card_server):
                if process is not None and process.poll() is not None:
                    msg = f"{process.args!r} ended with {process.returncode}: {self._log_tail()}"
                    raise UkeyRigError(msg)
            if time.monotonic() > deadline:
                msg = f"waited {START_SECONDS_MAX:g} s for {what}: {self._log_tail()}"
                raise UkeyRigError(msg)
            time.sleep(_POLL_SECONDS)

    def _log_tail(self) -> str:
        tails: list[str] = []
        for name in ("pcscd.log", "cards.log"):
            with contextlib.suppress(FileNotFoundError):
                text = (self.directory / name).read_text(errors="replace")
                tails += text.splitlines()[-10:]
        return "\n".join(tails)


def _socket_base(directory: Path) -> Path:
    """Return the folder for sockets: the given one, or a short one if its path cannot serve.

    It cannot if it is too long for a Unix socket, has characters that reader.conf would cut, or
    lies below /run, which the private pcscd does not see.
    """
    path = directory.resolve()
    text = str(path)
    is_short = len(text) + len(_LONGEST_SUFFIX) <= _SOCKET_PATH_BYTES_MAX
    if is_short and _PLAIN_PATH.fullmatch(text) and not path.is_relative_to("/run"):
        return path
    return Path(tempfile.mkdtemp(prefix="fep-ukey-", dir="/tmp"))  # TMPDIR may be long


def _connect(path: Path) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(COMMAND_SECONDS_MAX)
        line.connect(str(path))
    except OSError:
        line.close()
        raise
    return line


def _end(process: subprocess.Popen[bytes], first: signal.Signals) -> None:
    """End and reap one process of ours: this signal, and SIGKILL if that is not enough."""
    process.send_signal(first)  # does nothing if it has been reaped
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _namespace_command() -> list[str]:
    """Return the prefix that gives a process its own mounts and network."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *as_root, "--mount", "--net", "--propagation", "private", "--"]


def _missing_programs() -> str | None:
    missing = [program for program in _PROGRAMS if _which(program) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_ADMIN_PATH}")


def _refusal(*command: str) -> str | None:
    """Return None if the command ends well, else what it said."""
    done = _probe(*command)
    return None if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def _probe(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PROBE_SECONDS_MAX,
    )


def _usb_drivers() -> str:
    return _probe("pkg-config", "--variable=usbdropdir", "libpcsclite").stdout.strip()


def _polkit_option(pcscd: str) -> list[str]:
    """Return what keeps pcscd 2.x from asking a polkit it cannot reach; 1.9 has no such option."""
    option = "--disable-polkit"
    return [option] if option in _probe(pcscd, "--help").stdout else []
