"""``fep new-adapter NAME``: a folder with an adapter that conforms, to be changed into a bank's.

It is the adapter of ``fep/sandbox/template`` under another name, with what makes it a package of
its own: once it is installed, ``fep`` finds it by its entry points.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from fep.adapters import registry

NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
NAME_CHARS_MAX: Final = 32
TEMPLATE: Final = "fep.sandbox.template"

_PROJECT: Final = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{project}"
version = "0.1.0"
description = "A bank adapter of fep"
requires-python = ">=3.11"
dependencies = ["fep"]

[project.entry-points."fep.bank_adapters"]
{name} = "{name}:ADAPTER"

[project.entry-points."fep.bank_hosts"]
{name} = "{name}.host:HOST"

[tool.hatch.build.targets.wheel]
packages = ["{name}"]
"""

_README: Final = """\
# {name}

A bank adapter of fep. What stands here is the template's protocol, of no bank: make it the bank's,
step by step as fep's `docs/adapters.md` says, and keep it conforming.

```sh
pip install -e .
fep conformance {name}
fep adapters {name}
```

Say here which document of the bank, and which page, each fact comes from; and which facts are your
choice.
"""

_TEST: Final = """\
\"\"\"The adapter does what every adapter must do.\"\"\"

from __future__ import annotations

from fep.sandbox.conformance import conform


def test_the_adapter_conforms() -> None:
    results = list(conform("{name}"))
    assert [one for one in results if not one.passed] == []
"""


class NewAdapterError(Exception):
    """Nothing was made; says why."""


def make(name: str, into: Path) -> list[Path]:
    """Make the folder of a new adapter.

    Args:
        name: of the adapter and its package.
        into: the directory in which its folder, of that name, is made.

    Returns:
        The files made.

    Raises:
        NewAdapterError: the name is none, or taken; or the folder is there.
    """
    if not NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
        msg = f"{name!r} is no name: small letters, digits and _, such as abc_ict"
        raise NewAdapterError(msg)
    if keyword.iskeyword(name):
        msg = f"{name!r} is no name: it is a word of Python, which could not import the package"
        raise NewAdapterError(msg)
    if name in registry.names():
        msg = f"an adapter named {name!r} is installed already"
        raise NewAdapterError(msg)
    folder = into / name
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        msg = f"{folder}: {error.strerror}"
        raise NewAdapterError(msg) from error
    words = {"name": name, "project": f"fep-{name.replace('_', '-')}"}
    files = {
        "pyproject.toml": _PROJECT.format(**words),
        "README.md": _README.format(**words),
        f"tests/test_{name}.py": _TEST.format(**words),
        f"{name}/py.typed": "",
        **{f"{name}/{path}": text for path, text in _package(name).items()},
    }
    made = []
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        made.append(file)
    return made


def _package(name: str) -> dict[str, str]:
    """Return the template's files under another name."""
    title = "".join(part.capitalize() for part in name.split("_"))
    found = {}
    for file in sorted(resources.files(TEMPLATE).iterdir(), key=lambda one: one.name):
        if not file.name.endswith((".py", ".toml")):
            continue
        text = file.read_text("utf-8").replace(TEMPLATE, name)
        text = text.replace("Template", title).replace('"template"', f'"{name}"')
        found[file.name] = text.replace("fep adapters template", f"fep adapters {name}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 when the folder is made."""
    parser = argparse.ArgumentParser(
        prog="fep new-adapter",
        description="Make a folder with a bank adapter that conforms, to begin with.",
    )
    parser.add_argument("name", help="such as abc_ict: the bank and its interface")
    parser.add_argument("--into", type=Path, default=Path(), metavar="DIR", help="where")
    given = parser.parse_args(arguments)
    try:
        made = make(given.name, given.into)
    except NewAdapterError as error:
        print(error, file=sys.stderr)
        return 1
    for file in made:
        print(file)
    folder = given.into / given.name
    print(f"\nnext: pip install -e {folder} && fep conformance {given.name}")
    return 0
