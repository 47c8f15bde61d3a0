"""Configuration files with every key there is, written in many forms, with faults at known places."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

import attrs

from fep.adapters import registry
from tests.daemon.files import GUID, GUID_2, SHA256

Path = tuple[str | int, ...]
Tree = dict[str, Any]
"""Of a table by key: text is a literal of TOML, a dict a table, a list an array of tables."""

ADAPTERS: Final = {name: registry.adapter(name) for name in registry.names()}
EXAMPLES: Final = {name: registry.quality(name).example for name in ADAPTERS}
MORE: Final[dict[str, dict[str, Any]]] = {
    "cmb_xml": {"buscod": "N02031", "branches": {"999900000010101": "10"}},
    "cmb_cdc": {"blanks": True, "busmod": "00001"},
    "icbc_nc": {"sign_port": 449, "sign_host": "10.0.0.9"},
    "iso20022": {"bic": "TESTCNBJ", "balance_age_max_s": 900, "statements_on_weekends": True},
    "pingan_b2bi": {"today_trade": "4008"},
}
"""Options beside those of the adapters' own examples."""
SECRET: Final = "PIN246810"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literals(value: Any) -> Any:
    match value:
        case dict():
            return {key: _literals(one) for key, one in value.items()}
        case bool():
            return str(value).lower()
        case str():
            return _quoted(value)
        case _:
            return str(value)


def whole(rng: random.Random) -> Tree:
    """Return a configuration that can be used, of nearly all keys that there are."""
    tree: Tree = {
        "mode": '"production"',
        "allow_software_keys_in_production": "true",
        "state_dir": '"state"',
        "log_level": rng.choice(['"debug"', '"info"', '"warning"', '"error"']),
    }
    if rng.random() < 0.5:
        tree["store"] = {
            "url": '"postgresql+psycopg://fep@10.0.0.20:5432/fep?sslmode=verify-full"',
            "password": {"credential": '"db-password"'},
            "lease_s": "15",
        }
    tree["enterprise"] = {"id": '"E0001"', "fep_number": '"FEP-01"'}
    tree["control"] = {
        "socket": '"control.sock"',
        "socket_mode": '"0660"',
        "heartbeat_s": "10",
        "tcp": [
            {
                "listen": '"0.0.0.0:7070"',
                "tls": {
                    "certificate": '"tls.crt"',
                    "key": '"tls.key"',
                    "client_ca": '"ca.crt"',
                },
            },
            {"listen": '"127.0.0.1:7071"', "token_file": '"token"'},
        ],
        "clients": {"erp-1": {"role": '"finance"'}, "erp-2": {"role": '"viewer"'}},
        "users": {
            "li": {"uid": "1001", "role": '"operator"'},
            "wang": {"uid": "1002", "role": '"admin"'},
        },
    }
    tree["console"] = {
        "listen": '"[::1]:8200"',
        "tls": {"certificate": '"console.crt"', "key": '"console.key"'},
        "idle_s": "1800",
        "session_s": "43200",
    }
    tree["tasks"] = {
        "queue_max": "1000",
        "fetch_timeout_s": "30.5",
        "age_max_s": "86400",
        "result_window": "256",
    }
    tree["slot"] = _slots()
    tree["bank"] = [_bank(number, name) for number, name in enumerate(ADAPTERS)]
    tree["account"] = [
        {
            "number": f'"9900000000{number:04d}"',
            "bank": _quoted(_bank_name(number % len(ADAPTERS))),
            "name": '"江枫样例制造有限公司"',
            "bank_code": '"307584007998"',
            "bank_title": '"示例银行"',
        }
        for number in range(10)
    ]
    tree["pool"] = _pools()
    return tree


def _bank_name(number: int) -> str:
    return f"bank-{number}"


def _slots() -> list[Tree]:
    return [
        {
            "name": '"ukey-1"',
            "backend": '"pcsc"',
            "card": {"guid": _quoted(GUID), "certificate_sha256": _quoted(SHA256)},
            "pin": {"credential": '"ukey-1-pin"'},
            "key_reference": '"9C"',
            "sign_deadline_s": "10",
        },
        {
            "name": '"ukey-2"',
            "backend": '"pcsc"',
            "card": {"guid": _quoted(GUID_2), "certificate_sha256": _quoted(SHA256)},
            "pin": {"file": '"ukey-2.pin"'},
        },
        {
            "name": '"ukey-3"',
            "backend": '"pkcs11"',
            "module": '"p11.so"',
            "token": {
                "serial": '"0123"',
                "label": '"一号"',
                "certificate_sha256": _quoted(SHA256),
            },
            "object": {"id": '"0A"', "label": '"sign"'},
            "pin": {"credential": '"ukey-3-pin"'},
        },
        {
            "name": '"soft-1"',
            "backend": '"software"',
            "key": {"file": '"soft.pem"'},
            "sm2_user_id": '"1234567812345678"',
        },
    ]


def _bank(number: int, name: str) -> Tree:
    adapter = ADAPTERS[name]
    bank: Tree = {
        "name": _quoted(_bank_name(number)),
        "adapter": _quoted(name),
        "class": '"307"',
        "version": _quoted(adapter.version),
        "direct_connect_number": '"00102079900001234000"',
        "host": '"10.0.0.7"',
        "port": "7070",
        "slot": _quoted(("ukey-1", "ukey-2", "ukey-3", "soft-1")[number % 4]),
        "workers": "4",
        "heartbeat_s": "30",
        "reply_timeout_s": "60",
        "connect_timeout_s": "10",
        "logon_timeout_s": "10",
        "backoff_first_s": "0.5",
        "backoff_max_s": "60",
        "tape": "false",
        "options": _literals({**EXAMPLES[name].options, **MORE.get(name, {})}),
        "card": {
            "inquiry": {"cool_down_s": "5", "interval_max_s": "600.0", "horizon_s": "86400"},
            "limits": {"frame_bytes_max": "1048576"},
            "throttle": {"submit_gap_s": "0.5", "query_gap_s": "0"},
        },
    }
    if adapter.secret_names:
        bank["secrets"] = {
            one: {"file": _quoted(f"{one}.txt")} for one in sorted(adapter.secret_names)
        }
    if name == "iso20022":
        bank["folder"] = {
            "out": '"out"',
            "in": '"in"',
            "archive": '"archive"',
            "poll_s": "2",
            "settle_s": "1",
            "unreadable_s": "60",
            "fetched_within_s": "900",
            "kept_days": "14",
        }
        bank["card"]["transport"] = {"protocol": '"folder"'}
        del bank["host"], bank["port"]
    elif adapter.card.transport.protocol == "http":
        bank["connections"] = "3"
    return bank


def _pools() -> list[Tree]:
    rules: list[Tree] = [
        {"kind": '"excess"'},
        {"kind": '"zero"'},
        {"kind": '"target"', "amount": '"1.00"'},
        {"kind": '"fixed"', "amount": '"2.00"'},
        {"kind": '"percentage"', "basis_points": "5000"},
        {"kind": '"range"', "low": '"1.00"', "high": '"2.00"'},
        {
            "kind": '"tiered"',
            "tiers": [
                {"from": '"1.00"', "to": '"2.00"', "basis_points": "1"},
                {"from": '"2.00"', "to": '"3.00"', "basis_points": "2"},
                {"from": '"3.00"', "basis_points": "10000"},
            ],
        },
    ]
    return [
        {
            "name": '"main"',
            "target": '"99000000000000"',
            "schedule": '"17:30, 08:30"',
            "member": [
                {
                    "account": f'"9900000000{number:04d}"',
                    "threshold": '"100000.00"',
                    "reserve": '"10.00"',
                    "minimum": '"1.00"',
                    "maximum": '"50000.00"',
                    "unit": '"100.00"',
                    "rule": rule,
                }
                for number, rule in enumerate(rules, 1)
            ],
        },
        {
            "name": '"second"',
            "target": '"99000000000008"',
            "member": [{"account": '"99000000000009"', "threshold": '"0.00"'}],
        },
    ]


# -- written ---------------------------------------------------------------------------------------


@attrs.define
class Written:
    """A tree as text, and where each of its keys stands."""

    rng: random.Random
    text: str = ""
    places: dict[Path, tuple[int, int]] = attrs.Factory(dict)

    def place(self, path: Path) -> tuple[int, int]:
        """Return line and column of a key, or of the table around it when it is not there."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))

    def _add(self, text: str) -> None:
        self.text += text

    def _note(self, path: Path) -> None:
        line = self.text.count("\n") + 1
        column = len(self.text) - (self.text.rfind("\n") + 1) + 1
        self.places.setdefault(path, (line, column))

    def key(self, path: Path) -> None:
        """Write a key in one of its forms."""
        self._note(path)
        name = str(path[-1])
        self._add(self.rng.choice((name, name, name, f'"{name}"', f"'{name}'")))

    def value(self, path: Path, value: Any) -> None:
        """Write a value on one line."""
        match value:
            case dict():
                self._add("{ ")
                for number, (key, one) in enumerate(value.items()):
                    self._add(", " if number else "")
                    self.key((*path, key))
                    self._add(" = ")
                    self.value((*path, key), one)
                self._add(" }" if value else "}")
            case list():
                self._add("[")
                for number, one in enumerate(value):
                    self._add(", " if number else "")
                    self._note((*path, number))
                    self.value((*path, number), one)
                self._add("]")
            case _:
                self._add(value)

    def table(self, path: Path, header: str, tree: Tree) -> None:
        """Write a table: what stands on lines of its own first, then those with a header."""
        later = []
        for key, one in tree.items():
            is_list = isinstance(one, list)
            if (isinstance(one, dict) and one and self.rng.random() < 0.6) or (
                is_list and key != "tiers"
            ):
                later.append((key, one))
                continue
            self._add(self.rng.choice(("", "", "  ", "\t")))
            self.key((*path, key))
            self._add(self.rng.choice((" = ", "=", "   =\t")))
            self.value((*path, key), one)
            self._add(self.rng.choice(("\n", "\n", "  # 说明 = '\n", "\n\n")))
        for key, one in later:
            name = f"{header}.{key}" if header else key
            for number, each in enumerate(one) if isinstance(one, list) else ():
                self._note((*path, key))
                self._note((*path, key, number))
                self._add(f"[[{name}]]\n")
                self.table((*path, key, number), name, each)
            if isinstance(one, dict):
                self._note((*path, key))
                self._add(f"[{name}]\n")
                self.table((*path, key), name, one)


def write(tree: Tree, rng: random.Random) -> Written:
    """Return a tree as text."""
    written = Written(rng)
    written.table((), "", tree)
    return written


# -- faults at known places ------------------------------------------------------------------------

HUGE: Final = "0x" + "f" * 5000
NO_TEXT: Final = ("1", '""', '" "', "true", "[]", "1979-05-27", '[["x"]]', "inf", HUGE)
NO_INTEGER: Final = (
    '"1"',
    "1.5",
    "true",
    "-1",
    "999999999999",
    "nan",
    "[]",
    "0xffffffffffff",
    HUGE,
)
NO_NUMBER: Final = ('"1"', "true", "-1", "nan", "inf", "1e300", "[]", "9" * 30, "1979-05-27", HUGE)
NO_FLAG: Final = ("1", '"true"', "[]", "0.0")
NO_CHOICE: Final = ('"zzz"', "1", "[]", '""', '"\\u001b[31m"')
NO_AMOUNT: Final = (
    *('"1"', "1.00", '"-1.00"', '"1e5"', '"１.00"', "true", '"99999999999999999999.00"', '""'),
    '"1.00 "',
)
NO_PLACE: Final = ('"7070"', "7070", '":1"', '"127.0.0.1:70700"', f'"127.0.0.1:{"1" * 5000}"')
NO_TABLE: Final = ("1", '"x"', "[]", "true")
WRONG: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("id", "fep_number", "state_dir", "socket", "class", "host"), NO_TEXT),
    **dict.fromkeys(("certificate", "client_ca", "out", "in", "archive"), NO_TEXT),
    **dict.fromkeys(("guid", "certificate_sha256"), (*NO_TEXT, '"zz"')),
    **dict.fromkeys(("queue_max", "result_window", "uid", "workers", "port"), NO_INTEGER),
    **dict.fromkeys(("kept_days", "basis_points", "frame_bytes_max", "connections"), NO_INTEGER),
    **dict.fromkeys(("heartbeat_s", "fetch_timeout_s", "age_max_s", "lease_s"), NO_NUMBER),
    **dict.fromkeys(("idle_s", "session_s", "sign_deadline_s", "poll_s"), NO_NUMBER),
    **dict.fromkeys(("settle_s", "unreadable_s", "fetched_within_s", "backoff_max_s"), NO_NUMBER),
    **dict.fromkeys(("reply_timeout_s", "connect_timeout_s", "logon_timeout_s"), NO_NUMBER),
    **dict.fromkeys(("cool_down_s", "submit_gap_s", "query_gap_s"), ('"1"', "true", "-1", "nan")),
    **dict.fromkeys(("interval_max_s", "horizon_s"), ('"1"', "[]", "0", "inf", HUGE)),
    **dict.fromkeys(("tape", "allow_software_keys_in_production", "blanks"), NO_FLAG),
    **dict.fromkeys(("mode", "log_level", "role", "backend", "key_reference"), NO_CHOICE),
    **dict.fromkeys(("kind", "protocol"), NO_CHOICE),
    **dict.fromkeys(("threshold", "reserve", "minimum", "maximum", "unit"), NO_AMOUNT),
    **dict.fromkeys(("amount", "low", "high", "from", "to"), NO_AMOUNT),
    **dict.fromkeys(("tls", "card", "options", "rule", "pin"), NO_TABLE),
    "listen": NO_PLACE,
    "socket_mode": ("660", '"0680"', '"-660"', "true"),
    "schedule": ('"8:30"', "830", "08:30:00"),
    "bank_code": ('"3"', "307584007998", '"３０７５８４００７９９８"'),
    "credential": ('"../x"', "1", '""', '"a b"'),
    "branch": ('"755"', "75", "[]"),
    "serial": ("1", '"01234567890123456"'),
    "sign_port": ("0", '"449"', "70000", HUGE),
    "customer_id": ('"a b"', "1"),
    "terminal_id": ('"a b"', "1"),
    "operator_id": ('"a b"', "true"),
    "bank_public_key": ('"04"', "4"),
    "corp_no": ("1", "[]"),
    "login_name": ('"登录登录登录登录登录登录登录登录登录"', "1", '"\\t"'),
    "today_trade": ('"4009"', "4008"),
    "bic": ('"x"', "1"),
    "initiating_party": ('""', "1"),
    "adapter": ('"nobody"', "1", '""'),
    "version": ('"none"', "1"),
    "url": ("1", '"sqlite:///x"', '"postgresql+psycopg://a@b"', '"\\u0000"', '"://"'),
}
REQUIRED: Final = {
    *("id", "fep_number", "state_dir", "socket", "class", "direct_connect_number", "host", "port"),
    *("certificate", "client_ca", "guid", "certificate_sha256", "uid", "threshold", "out", "in"),
    *("basis_points", "amount", "low", "high", "corp_no", "login_name", "branch", "user_id"),
}
UNKNOWN: Final = "zzzz"
NAMED: Final = {"clients", "users", "branches"}
REFERENCES: Final = {"slot": "slot", "bank": "bank", "target": "account", "account": "account"}


@attrs.frozen
class Seed:
    """A fault: a key's value is another one (None: it is taken out), told at a place of its own."""

    path: Path
    value: str | None

    def sown(self, tree: Tree) -> None:
        """Make a tree wrong."""
        found: Any = tree
        for part in self.path[:-1]:
            found = found[part]
        if self.value is None:
            del found[self.path[-1]]
        else:
            found[self.path[-1]] = self.value

    def touches(self, other: Seed) -> bool:
        """Say whether one of the two can hide the other, or brings it along."""
        one, two = sorted((self.path, other.path), key=len)
        if two[: len(one)] == one:
            return True
        return any(_hides(a.path, b.path) for a, b in ((self, other), (other, self)))


def _hides(one: Path, other: Path) -> bool:
    if one[-1] == "adapter" and one[:2] == other[:2]:
        return True
    if one[-1] == "kind":
        return one[:-1] == other[: len(one) - 1]
    if one[0] in {"slot", "bank", "account"} and one[2:] in {("name",), ("number",)}:
        # Nobody can say what a reference means when a name can't be read.
        return REFERENCES.get(str(other[-1])) == one[0]
    return False


def _below(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in items:
        yield (*path, key), one
        if isinstance(one, dict | list):
            yield from _below(one, (*path, key))


def seeds(tree: Tree) -> list[Seed]:
    """Return the faults that can be made in a tree."""
    found = [Seed((UNKNOWN,), "1")]
    for path, value in _below(tree):
        name = str(path[-1])
        in_options = "options" in path[:-1]
        if isinstance(value, dict) and name not in NAMED and path[-2:-1] != ("bank",):
            found.append(Seed((*path, UNKNOWN), "1"))
        if isinstance(value, list) or (name == "tls" and path[0] == "control"):
            continue
        if name == "secrets" or (isinstance(value, dict) and name not in WRONG):
            continue
        if name == "card" and path[0] == "slot":
            found += [Seed(path, one) for one in NO_TABLE]
        elif name == "protocol":
            continue  # another carrier makes other keys right
        elif path[0] in {"slot", "bank"} and path[2:] == ("name",):
            found += [Seed(path, one) for one in ("1", "[]")]
        elif path[0] == "account" and name in {"number", "name"}:
            found += [Seed(path, one) for one in ("1", "[]", "1979-05-27")]
        elif name in REFERENCES and path[0] in {"bank", "account", "pool"}:
            found += [Seed(path, one) for one in ('"nobody-9"', "1", "[]")]
        elif name == "key" and "tls" in path:
            found += [Seed(path, one) for one in NO_TEXT]
        elif in_options and name not in WRONG:
            found += [Seed(path, one) for one in ("1979-05-27", "[1]")]
        elif name == "host" or (name in WRONG and not (name == "id" and "object" in path)):
            found += [Seed(path, one) for one in WRONG[name]]
        if name in REQUIRED and "object" not in path:
            found.append(Seed(path, None))
    return found


def faulty(rng: random.Random, count: int) -> tuple[Written, list[Seed]]:
    """Return a file with so many faults, none of which has to do with another."""
    tree = whole(rng)
    several: list[Seed] = []
    possible = seeds(tree)
    while len(several) < count:
        one = rng.choice(possible)
        if not any(one.touches(other) for other in several):
            several.append(one)
    for one in several:
        one.sown(tree)
    return write(tree, rng), several
