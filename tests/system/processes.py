"""What the kernel knows of processes: their children, and where they listen (Linux, /proc)."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from pathlib import Path

import attrs

PROC = Path("/proc")
LISTENING = "0A"
TABLES = ("tcp", "tcp6", "udp", "udp6")


@attrs.frozen
class Listener:
    """One socket on which a process hears the network; a bound UDP socket is one too."""

    program: str
    protocol: str
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True when no other machine can reach it."""
        address = ipaddress.ip_address(self.address)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return address.ipv4_mapped.is_loopback
        return address.is_loopback


@attrs.frozen
class Process:
    """One process; the kernel gives a number again, but not with the same start."""

    pid: int
    started: int
    """In the kernel's ticks since boot."""

    @property
    def is_running(self) -> bool:
        """False when it has ended, also while it waits to be reaped."""
        fields = _stat(self.pid)
        return bool(fields) and int(fields[19]) == self.started and fields[0] not in ("Z", "X")


def descendants(pid: int) -> set[Process]:
    """Return a process and all that came from it, as far as they live."""
    children: dict[int, list[int]] = {}
    starts: dict[int, int] = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))):
            one = int(folder.name)
            children.setdefault(int(fields[1]), []).append(one)
            starts[one] = int(fields[19])
    found: set[Process] = set()
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        if one in starts:
            found.add(Process(one, starts[one]))
        waiting += children.get(one, [])
    return found


def listeners(pid: int) -> list[Listener]:
    """Return where a process listens, in its own network namespace."""
    folder = PROC / str(pid)
    inodes = set()
    try:
        links = list((folder / "fd").iterdir())
    except OSError:
        return []  # it has just ended
    for link in links:
        with suppress(OSError):  # it closed this one meanwhile
            target = str(link.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    program = _read(folder / "cmdline").replace("\0", " ").strip()
    return [
        Listener(program, protocol, address, port)
        for protocol in TABLES
        for inode, address, port in parse_table(_read(folder / "net" / protocol), protocol)
        if inode in inodes
    ]


def parse_table(text: str, protocol: str) -> list[tuple[str, str, int]]:
    """Return (inode, address, port) of the listening rows of a /proc/net table."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if protocol.startswith("tcp") and fields[3] != LISTENING:
            continue
        words, _, port = fields[1].partition(":")
        # Each 32-bit word stands in the machine's own order, which is little-endian here.
        raw = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
        found.append((fields[9], str(ipaddress.ip_address(raw)), int(port, 16)))
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state (the third) on; empty: no such process."""
    # The program's name, in brackets before them, may hold anything.
    return _read(PROC / str(pid) / "stat").rpartition(")")[2].split()


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
