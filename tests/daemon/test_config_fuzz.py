"""Configuration files with anything wrong in them: all is told, at its place, and nothing else happens.

``FEP_TEST_MUTATIONS`` sets how many files; the long form is 5,000. What fails prints its seed:
``FEP_TEST_MUTATION=SEED`` makes that file alone.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from fep.daemon import config, tables
from fep.daemon.config import Config, ConfigFaultsError, check, load
from tests.control.conftest import Start, directory, key, logs, start  # noqa: F401 - fixtures
from tests.daemon.config_files import SECRET, faulty, whole, write
from tests.daemon.files import GOOD, changed, loaded, written

MUTATIONS: Final = int(os.environ.get("FEP_TEST_MUTATIONS", "200"))
FIRST: Final = int(os.environ.get("FEP_TEST_MUTATION", "0"))
SEEDS: Final = range(FIRST, FIRST + (1 if FIRST else MUTATIONS))
ROOT: Final = Path(__file__).parent.parent.parent
SECONDS_MAX: Final = 5.0
"""Of the processor's time for one file, traced."""
LARGE_SECONDS_MAX: Final = 60.0
"""The same for one that is as large as one may be."""
PROCESSES: Final = max(3, MUTATIONS // 250)

Rng = random.Random


# -- files that are right --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_files_that_are_made_wrong_are_right_at_first(tmp_path: Path, seed: int) -> None:
    found = loaded(tmp_path, write(whole(Rng(seed)), Rng(seed)).text)
    assert len(found.banks) == 9
    assert [len(pool.members) for pool in found.pools] == [7, 1]


# -- every fault is told, and no other -------------------------------------------------------------


@pytest.mark.parametrize("first", range(10))
def test_all_of_several_faults_are_told_each_at_its_place(tmp_path: Path, first: int) -> None:
    for seed in SEEDS[first :: 10 if MUTATIONS >= 1000 else 40]:
        rng = Rng(seed)
        file, seeds = faulty(rng, rng.choice((1, 2, 3, 5, 8, 13)))
        wanted = sorted((*file.place(one.path), ".".join(map(str, one.path))) for one in seeds)
        faults = check(written(tmp_path, file.text))
        found = [(fault.line, fault.column, fault.key) for fault in faults]
        assert sorted(found) == wanted, (
            f"seed {seed}: {seeds}\n{ConfigFaultsError(faults)}\n{file.text}"
        )


# -- anything --------------------------------------------------------------------------------------

SECRETS: Final = (
    f'pin = "{SECRET}"',
    f"pin = '{SECRET}'",
    f'"p\\u0069n" = "{SECRET}"',
    f'pin = """\n{SECRET}"""',
    f"pin = '''\n  {SECRET}\n'''",
    f'pin = [\n  "{SECRET}",\n  "{SECRET}"\n]',
    f'pin = {{ value = "{SECRET}" }}',
    f'pin.value = "{SECRET}"',
    f'[slot.pin]\nvalue = "{SECRET}"',
    f'[slot.pin]\nvalue = """\n{SECRET}"""',
    f'passwd = "{SECRET}"',
    f'user_pasword = "{SECRET}"',
    f'secrets = {{ any = "{SECRET}" }}',
    f'[bank.secrets]\nany = "{SECRET}"',
    f'options = {{ api_token = "{SECRET}", other = 1 }}',
    f'[store]\nurl = "postgresql+psycopg://fep:{SECRET}@10.0.0.1/fep"',
    f'[store]\nurl = "postgresql+psycopg://fep:a/b {SECRET}@10.0.0.1/fep"',
    f'[store]\nurl = "postgresql+psycopg://fep@10.0.0.1/fep?password={SECRET}"',
)
VALUES: Final = (
    *("1", "-1", "0", "1.5", "-0.0", "1e308", "1e999", "nan", "inf", "-inf", "true", "false"),
    *('""', '"x"', "''", '"\\u0000"', '"\\u001b]0;x\\u0007"', '"\\u202e"', '"江枫"', '"a\\nb"'),
    *("[]", "{}", "[[]]", "[{}]", "{ a = {} }", "[1, 'x', [2.0]]", "{ a.b.c = [{ d = 1 }] }"),
    *("1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "2026-02-30", "25:00:00"),
    *("0x" + "f" * 5000, "9" * 5000, "9" * 30, "0b1", "0o7", "1_000", "1__0", "+1"),
    *('"1.00"', '"-1.00"', '"' + "x" * 70_000 + '"', "'" + "9" * 5000 + "'", '"../../x"'),
    *("[" * 50 + "]" * 50, "[" * 3000 + "]" * 3000, "{ a = " * 40 + "1" + " }" * 40),
    *('"""a\nb"""', "'''\na\n'''", '"127.0.0.1:7071"', '"ukey-1"', '"pingan_b2bi"', "x", ""),
)
HEADERS: Final = (
    *("[bank]", "[[bank]]", "[[slot]]", "[slot]", "[control]", "[[control]]", "[a.b.c]", "[]"),
    *("[enterprise]", "[bank.card.inquiry]", "[[bank.card]]", "[[pool.member]]", "[pool.member]"),
    *('["control"]', "[control.clients.'a b']", '[control.users."\\u001b[31m"]', "[[account]]"),
    *("[" + ".".join("a" * 40) + "]", "[" + "a." * 5000 + "a]", "[options]", "[[tasks]]"),
)


def _spot(rng: Rng, size: int) -> int:
    return rng.randrange(size + 1)


def _bytes(rng: Rng, text: str) -> bytes:
    data = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, other = _spot(rng, len(data)), _spot(rng, len(data))
        low, high = min(at, other), min(max(at, other), min(at, other) + 400)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[low:high]
            case 2:
                data[at:at] = data[low:high]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                data[at:at] = rng.choice(
                    (b"\0", b"\r", b"\x1b", b"\xff", b"\xef\xbb\xbf", b'"', b"'", b"[", b"{", b"=")
                )
            case _:
                data[at:at] = rng.choice((b'"""', b"'''", b"#", b"\n", b"\\", b"\xc2\x85", b","))
    return bytes(data)


def _encoded(rng: Rng, text: str) -> bytes:
    match rng.randrange(6):
        case 0:
            return text.encode("gb18030")
        case 1:
            return text.encode("utf-16")
        case 2:
            return text.encode("utf-8-sig")
        case 3:
            return text.replace("\n", "\r\n").encode()
        case 4:
            return text.replace("\n", "\r").encode()
        case _:
            return text.encode()[: _spot(rng, len(text))]


def _lines(rng: Rng, text: str) -> bytes:
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        name, equals, value = lines[at].partition("=")
        match rng.randrange(11):
            case 0:
                lines[at] = f"{name}{equals or '='} {rng.choice(VALUES)}"
            case 1:
                lines[at] = f"{name}{equals}{lines[other].partition('=')[2]}"
            case 2 if len(lines) > 2:
                del lines[at]
            case 3:
                lines.insert(other, lines[at])
            case 4:
                lines[at], lines[other] = lines[other], lines[at]
            case 5:
                lines.insert(at, rng.choice(HEADERS))
            case 6:
                lines[at] = name[: len(name) // 2] + name[len(name) // 2 + 1 :] + equals + value
            case 7:
                lines[at] = f"x.{name.strip()}.y{equals}{value}"
            case 8:
                lines[at] = f'"{name.strip()}"{equals}{value}'
            case 9:
                lines[at] = f"{name.strip()} = {{{lines[at]}}}"
            case _:
                lines.insert(at, f"{rng.choice(('k' * 5000, 'ключ', 'zzz', 'Port'))} = 1")
    return "\n".join(lines).encode()


def _tables(rng: Rng, text: str) -> bytes:
    """Return a file whose tables are moved, doubled, left out or called by another's name."""
    parts = re.split(r"(?m)^(?=\[)", text)
    for _ in range(rng.choice((1, 2, 4))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(4):
            case 0:
                parts[at], parts[other] = parts[other], parts[at]
            case 1:
                parts.insert(other, parts[at])
            case 2 if len(parts) > 2:
                del parts[at]
            case _:
                parts[at] = re.sub(r"^\[.*", lambda _: rng.choice(HEADERS), parts[at], count=1)
    return "".join(parts).encode()


KINDS: Final[tuple[Callable[[Rng, str], bytes], ...]] = (
    *(_bytes, _lines, _lines, _tables, _encoded),
    lambda rng, text: _bytes(rng, _lines(rng, text).decode()),
    lambda rng, text: _tables(rng, _lines(rng, text).decode()),
)


@attrs.frozen
class Mutant:
    data: bytes
    has_secret: bool


def mutant(seed: int) -> Mutant:
    """Return the file of a seed."""
    rng = Rng(seed)
    match rng.randrange(5):
        case 0:
            text = (ROOT / "config" / "fep.toml").read_text("utf-8")
        case 1:
            text = (ROOT / "config" / "demo.toml").read_text("utf-8")
        case 2:
            text = GOOD
        case _:
            text = write(whole(rng), rng).text
    if rng.random() < 0.3:
        # The secret's own lines stay whole, or nobody could say which word is one.
        lines = text.split("\n")
        rows = [number for number, line in enumerate(lines) if re.match(r"backend|\[", line)]
        at = rng.choice(rows) + 1
        before, after = "\n".join(lines[:at]), "\n".join(lines[at:])
        secret = f"\n{rng.choice(SECRETS)}\n".encode()
        kind = rng.choice((_lines, _lines, _tables))
        sides = [before.encode(), after.encode()]
        side = rng.randrange(3)
        if side < 2:
            sides[side] = kind(rng, (before, after)[side])
        return Mutant(sides[0] + secret + sides[1], has_secret=True)
    return Mutant(rng.choice(KINDS)(rng, text), has_secret=False)


def told(path: Path) -> tuple[Config | None, list[config.Fault]]:
    try:
        return load(path), []
    except ConfigFaultsError as error:
        return None, error.faults


def examined(path: Path, one: Mutant) -> list[config.Fault]:
    """Assert what holds of any file, and return its faults."""
    path.write_bytes(one.data)
    began = time.process_time()
    found, faults = told(path)
    text = str(ConfigFaultsError(faults))
    assert time.process_time() - began < SECONDS_MAX
    assert (found is None) == bool(faults)
    assert len(faults) <= tables.FAULTS_MAX
    assert faults == sorted(faults, key=lambda fault: (fault.line, fault.column))
    lines = one.data.decode("utf-8", "replace").split("\n")
    for fault in faults:
        assert 1 <= fault.line <= len(lines), fault
        assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1, fault
        assert fault.key, fault
        assert fault.message.strip(), fault
        assert len(fault.message) <= tables.MESSAGE_CHARS_MAX + 1, fault
        head, *shown = str(fault).split("\n")
        assert head == f"{path}:{fault.line}:{fault.column}: {fault.key}: {fault.message}"
        assert len(shown) in {0, 2}
        assert all(len(line) < 500 for line in shown)
        assert not shown or shown[1].strip() == "^"
    assert all(line.isprintable() for line in text.split("\n")), text
    if one.has_secret:
        assert SECRET not in text, text
    return faults


@pytest.mark.parametrize("first", range(10))
def test_any_file_is_taken_or_its_faults_are_told(tmp_path: Path, first: int) -> None:
    path = tmp_path / "fep.toml"
    for seed in SEEDS[first::10]:
        one = mutant(seed)
        try:
            examined(path, one)
        except Exception as error:
            kept = tmp_path / f"seed-{seed}.toml"
            kept.write_bytes(one.data)
            msg = f"FEP_TEST_MUTATION={seed}, the file is kept as {kept}"
            raise AssertionError(msg) from error


def test_the_process_tells_them_too(tmp_path: Path) -> None:
    path = tmp_path / "fep.toml"
    done = 0
    for seed in range(1000, 1000 + 100 * PROCESSES):
        one = mutant(seed)
        faults = examined(path, one)
        if not faults:
            continue
        said = subprocess.run(
            [sys.executable, "-m", "fep.daemon.main", "check-config", str(path)],
            capture_output=True,
            check=False,
            timeout=60,
            cwd=ROOT,
        )
        output = (said.stdout + said.stderr).decode()
        assert said.returncode == 1, f"seed {seed}: {output}"
        assert "Traceback" not in output, f"seed {seed}: {output}"
        assert f"{path}:{faults[0].line}:{faults[0].column}: " in output, f"seed {seed}: {output}"
        assert SECRET not in output, f"seed {seed}"
        done += 1
        if done == PROCESSES:
            break
    assert done == PROCESSES


async def test_the_daemon_takes_none_of_them(start: Start) -> None:  # noqa: F811 - the fixture
    async with start() as rig:
        admin = await rig.admin()
        good = rig.scene.config.read_bytes()
        shown = await admin.result("config.show")
        before = rig.daemon.config
        done = 0
        for seed in range(1000):
            one = mutant(seed)
            if not examined(rig.scene.config, one):
                continue
            answer = await admin.ask("config.apply")
            assert answer["error"]["data"] == {"code": "BAD_STATE"}, f"seed {seed}"
            assert "nothing was changed" in answer["error"]["message"]
            assert SECRET not in str(answer)
            assert await admin.result("config.show") == shown
            done += 1
            if done == 8:
                break
        assert done == 8
        assert rig.daemon.config is before
        rig.scene.config.write_bytes(good)
        assert (await admin.result("config.apply"))["changed"] == []


# -- as large as a file may be ---------------------------------------------------------------------

BYTES: Final = config.FILE_BYTES_MAX - 20_000 if MUTATIONS >= 1000 else 200_000
"""In the short form a twentieth, in which what takes the square of the time shows too."""
SLOT: Final = (
    '[[slot]]\nname = "s{}"\nbackend = "pkcs11"\nmodule = "m"\n[slot.token]\nlabel = "{}"\n'
)


def _many(piece: str) -> str:
    """Return as many pieces as there is room for, each with its number."""
    return "".join(piece.replace("{}", f"{one:07d}") for one in range(BYTES // (len(piece) + 12)))


LARGE: Final[dict[str, Callable[[], str]]] = {
    "keys nobody knows": lambda: _many("k{} = 1\n") + GOOD,
    "long keys nobody knows": lambda: _many("k{}" + "x" * 5000 + " = 1\n") + GOOD,
    "one long line": lambda: f"x = [{_many('{ a = 1{} },')}]\n{GOOD}",
    "accounts of no bank": lambda: GOOD + _many('[[account]]\nnumber = "9{}"\nbank = "b{}"\n'),
    "accounts": lambda: (
        GOOD + _many('[[account]]\nnumber = "1234567{}"\nbank = "cmb"\nname = "江枫"\n')
    ),
    "slots": lambda: GOOD + _many(SLOT),
    "banks": lambda: GOOD + _many('[[bank]]\nname = "b{}"\nadapter = "cmb_xml"\noptions.x = 1\n'),
    "listeners": lambda: (
        _many('[[control.tcp]]\nlisten = "127.0.0.1:0"\ntoken_file = "t"\n') + GOOD
    ),
    "users": lambda: GOOD + _many('[control.users.u{}]\nuid = 1{}\nrole = "admin"\n'),
    "pools": lambda: GOOD + _many('[[pool]]\nname = "p{}"\ntarget = "99000000000101"\n'),
    "members": lambda: GOOD + _many('[[pool.member]]\naccount = "9{}"\nthreshold = "1.00"\n'),
    "options": lambda: GOOD.replace('branch = "75"', f'branch = "75", {_many("o{} = 1,")} z = 1'),
    "parts of a key": lambda: "a." * (BYTES // 2) + "a = 1\n",
    "parts of a header": lambda: "[" + "a." * (BYTES // 2) + "a]\n",
    "quoted parts": lambda: "x = { " + '"a" . ' * (BYTES // 6) + "a = 1 }\n",
    "brackets": lambda: "x = " + "[" * BYTES,
    "a long word": lambda: changed('mode = "production"', f'mode = "{"p" * BYTES}"'),
    "a long reference": lambda: changed('slot = "ukey-2"', f'slot = "{"u_" * (BYTES // 2)}"'),
    "a long line of no TOML": lambda: "pin_" * (BYTES // 4),
    "marks of strings": lambda: "x = '" + ",'\"" * (BYTES // 3),
    "urls": lambda: f"x = ['{'://a:' * (BYTES // 5)}']\n{GOOD}",
    "secrets": lambda: _many("pin{} = '''x'''\n") + GOOD,
    "blanks": lambda: "pin" + " " * BYTES + "\n",
}


@pytest.mark.parametrize("name", LARGE)
def test_the_largest_file_is_read_in_time(tmp_path: Path, name: str) -> None:
    text = LARGE[name]()
    assert len(text.encode()) <= config.FILE_BYTES_MAX
    path = written(tmp_path, text)
    began = time.process_time()
    faults: list[Any] = check(path)
    said = str(ConfigFaultsError(faults))
    assert time.process_time() - began < max(LARGE_SECONDS_MAX * BYTES / config.FILE_BYTES_MAX, 5.0)
    assert len(said) < 2_000_000
    assert bool(faults) == (name not in {"accounts", "users"})
