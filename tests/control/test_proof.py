"""Who opens with a key: every verdict, over any order of proofs; and on a real listener."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fep.client import BlockingClient, CallError, Key, open_client
from fep.control.proof import NONCES_MAX, WINDOW_MS, Gate, Verdict
from fep.domain.clock import SystemClock
from fep.domain.ids import ClientName
from fep.wire.proof import opening_mac, parse_keys
from tests.control.conftest import Start
from tests.control.rig import Config, Rig, Wire, code_of

KEYS = parse_keys(f"k1 erp-1 {'a' * 32}\nk2 erp-1 {'b' * 32}\nk3 desk {'c' * 32}")
STARTED = 1_000_000_000_000
NOW = STARTED + 3_600_000
DECOY = b"decoy" * 8
NONCE = "0" * 32


def proof_of(
    key: Key = KEYS["k1"],
    client: str = "erp-1",
    time_ms: int = NOW,
    nonce: str = NONCE,
    **changed: Any,
) -> dict[str, Any]:
    """Return a proof; what is changed is changed after its code was made."""
    mac = opening_mac(key.secret, key.id, client, time_ms, nonce)
    made = {"client": client, "key_id": key.id, "time_ms": time_ms, "nonce": nonce, "mac": mac}
    return made | changed


def judged(gate: Gate, given: dict[str, Any], now_ms: int = NOW) -> Verdict:
    return gate.judge(KEYS, now_ms=now_ms, **given)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        (proof_of(), Verdict.OK),
        (proof_of(KEYS["k2"]), Verdict.OK),
        (proof_of(KEYS["k3"], "desk"), Verdict.OK),
        (proof_of(time_ms=NOW - WINDOW_MS), Verdict.OK),
        (proof_of(time_ms=NOW + WINDOW_MS), Verdict.OK),
        (proof_of(time_ms=NOW - WINDOW_MS - 1), Verdict.STALE),
        (proof_of(time_ms=NOW + WINDOW_MS + 1), Verdict.STALE),
        (proof_of(client="desk"), Verdict.BAD_MAC),
        (proof_of(client="desk", time_ms=0), Verdict.BAD_MAC),
        (proof_of(mac="0" * 64), Verdict.BAD_MAC),
        (proof_of(mac=""), Verdict.BAD_MAC),
        (proof_of(key_id="k2"), Verdict.BAD_MAC),
        (proof_of(key_id="nobody"), Verdict.BAD_MAC),
        (proof_of(nonce="1" * 32, mac=proof_of()["mac"]), Verdict.BAD_MAC),
        (proof_of(time_ms=NOW + 1, mac=proof_of()["mac"]), Verdict.BAD_MAC),
        # Who knows what unknown keys are checked with has no key either.
        (proof_of(Key("none", ClientName("erp-1"), DECOY)), Verdict.BAD_MAC),
    ],
)
def test_verdict(given: dict[str, Any], verdict: Verdict) -> None:
    assert judged(Gate(STARTED, DECOY), given) is verdict


def test_a_proof_counts_once() -> None:
    gate = Gate(STARTED, DECOY)
    assert judged(gate, proof_of()) is Verdict.OK
    assert judged(gate, proof_of()) is Verdict.REPLAY
    assert judged(gate, proof_of(), NOW + WINDOW_MS + 1) is Verdict.STALE
    assert judged(gate, proof_of(nonce="1" * 32)) is Verdict.OK


def test_a_wrong_proof_uses_up_nothing() -> None:
    """Who can't make the code must not use up the numbers of who can."""
    gate = Gate(STARTED, DECOY)
    assert judged(gate, proof_of(mac="0" * 64)) is Verdict.BAD_MAC
    assert judged(gate, proof_of(), NOW + WINDOW_MS + 1) is Verdict.STALE
    assert judged(gate, proof_of()) is Verdict.OK


def test_what_was_made_before_the_start_counts_no_more() -> None:
    """It may have been used in an earlier life, of which nothing is remembered."""
    gate = Gate(STARTED, DECOY)
    assert judged(gate, proof_of(time_ms=STARTED - 1), STARTED) is Verdict.STALE
    assert judged(gate, proof_of(time_ms=STARTED), STARTED) is Verdict.OK


def test_what_was_used_is_used_although_the_clock_is_set_back() -> None:
    gate = Gate(STARTED, DECOY)
    assert judged(gate, proof_of()) is Verdict.OK
    for hour in range(1, 5):
        later = NOW + hour * 3_600_000
        assert judged(gate, proof_of(time_ms=later, nonce=f"{hour:032x}"), later) is Verdict.OK
    assert judged(gate, proof_of()) is Verdict.REPLAY


def test_memory_is_bounded_and_what_is_forgotten_is_stale() -> None:
    gate = Gate(STARTED, DECOY)
    first = proof_of(time_ms=NOW - 10)
    assert judged(gate, first) is Verdict.OK
    for number in range(1, NONCES_MAX + 1):
        given = proof_of(nonce=f"{number:032x}")
        assert judged(gate, given) is Verdict.OK
    assert judged(gate, first) is Verdict.STALE
    assert len(gate._seen) == len(gate._oldest) == NONCES_MAX
    assert judged(gate, proof_of(nonce="f" * 32)) is Verdict.OK


class Openings(RuleBasedStateMachine):
    """In any order, at any clock: no proof is OK twice, and none that is not right is once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(STARTED, DECOY)
        self.used: set[tuple[str, int, str]] = set()

    @rule(
        key=st.sampled_from(sorted(KEYS)),
        client=st.sampled_from(["erp-1", "desk"]),
        ago=st.integers(-40_000, 40_000),
        clock=st.sampled_from([STARTED, NOW, NOW + 20_000, NOW - 20_000]),
        nonce=st.sampled_from(["1" * 32, "2" * 32]),
        forged=st.booleans(),
    )
    def open(self, key: str, client: str, ago: int, clock: int, nonce: str, forged: bool) -> None:
        made = KEYS[key]
        changed = {"mac": "0" * 64} if forged else {}
        given = proof_of(made, client, clock - ago, nonce, **changed)
        verdict = judged(self.gate, given, clock)
        proof = (key, clock - ago, nonce)
        if forged or made.client != client:
            assert verdict is Verdict.BAD_MAC
        elif verdict is Verdict.OK:
            assert proof not in self.used
            assert abs(ago) <= WINDOW_MS
            assert clock - ago >= STARTED
            self.used.add(proof)


TestOpenings = Openings.TestCase
TestOpenings.settings = settings(max_examples=60, stateful_step_count=30)


# -- on a listener --------------------------------------------------------------------------------

SECRET = "0123456789abcdef" * 2
KEY = Key("k1", ClientName("erp-1"), SECRET.encode())


@pytest.fixture
def with_keys(directory: Path) -> Callable[[Config], None]:
    """Change a configuration to keys, of a finance system and an operator."""
    write_keys(directory, f"k1 erp-1 {SECRET}\nk2 desk {'x' * 32}\n")

    def change(config: Config) -> None:
        config["control"]["tcp"] = [{"listen": "127.0.0.1:0", "keys_file": "keys"}]
        config["control"]["clients"] = {"erp-1": {}, "desk": {"role": "operator"}}

    return change


def write_keys(directory: Path, text: str) -> None:
    path = directory / "keys"
    path.touch(0o600)
    path.write_text(text)


def now_ms() -> int:
    return int(SystemClock().now().timestamp() * 1000)


def opening(key: Key = KEY, client: str = "erp-1", **changed: Any) -> dict[str, Any]:
    """Return the parameters that open a session by a proof."""
    time_ms, nonce = now_ms(), secrets.token_hex(16)
    mac = opening_mac(key.secret, key.id, client, time_ms, nonce)
    proof = {"key_id": key.id, "time": time_ms, "nonce": nonce, "mac": mac}
    return {"client": client, "proof": proof | changed}


async def tried(rig: Rig, params: dict[str, Any], port: int = 0) -> str | int:
    """Return the code with which an opening was refused, or the role that it got."""
    wire = await rig.tcp(port)
    answer = await wire.ask("session.open", params)
    if "error" in answer:
        assert await wire.ended() == []
        return code_of(answer)
    role: str = answer["result"]["role"]
    return role


async def test_a_proof_opens_once_and_nothing_else_does(
    start: Start, with_keys: Callable[[Config], None]
) -> None:
    async with start(change=with_keys) as rig:
        right = opening()
        assert await tried(rig, right) == "finance"
        assert await tried(rig, right) == "REPLAY"
        assert await tried(rig, opening()) == "finance"
        desk = Key("k2", ClientName("desk"), b"x" * 32)
        assert await tried(rig, opening(desk, "desk")) == "operator"
        # A key opens as its own client only.
        assert await tried(rig, opening(desk)) == "NOT_PERMITTED"
        assert await tried(rig, opening(mac="0" * 64)) == "NOT_PERMITTED"
        assert await tried(rig, opening(key_id="nobody")) == "NOT_PERMITTED"
        old = now_ms() - WINDOW_MS - 60_000
        stale = opening(time=old, mac=opening_mac(KEY.secret, "k1", "erp-1", old, NONCE))
        stale["proof"]["nonce"] = NONCE
        assert await tried(rig, stale) == "STALE"
        for wrong in (
            {"time": f"{now_ms()}"},
            {"time": 1.5},
            {"time": -1},
            {"time": 10**16},
            {"time": True},
            {"nonce": "x" * 32},
            {"nonce": "0" * 31},
            {"nonce": "0" * 32 + "\n"},
            {"mac": "A" * 64},
            {"mac": ""},
            {"key_id": 1},
            {"more": 1},
        ):
            assert await tried(rig, opening(**wrong)) == -32602, wrong
        assert await tried(rig, {"client": "erp-1"}) == "NOT_PERMITTED"
        assert await tried(rig, {"client": "erp-1", "token": SECRET}) == "NOT_PERMITTED"
        reasons = " ".join(one["reason"] for one in rig.logs.named("session.refused"))
        for word in ("BAD_MAC", "used before", "differs from the daemon's", "takes a proof"):
            assert word in reasons
        assert SECRET not in str(rig.logs.records)


async def test_a_proof_opens_once_at_all_listeners_together(
    start: Start, with_keys: Callable[[Config], None]
) -> None:
    def change(config: Config) -> None:
        with_keys(config)
        config["control"]["tcp"] *= 2

    async with start(change=change) as rig:
        one, other = (int(address.rpartition(":")[2]) for address in rig.addresses[1:])
        right = opening()
        assert await tried(rig, right, one) == "finance"
        assert await tried(rig, right, other) == "REPLAY"
        assert await tried(rig, opening(), other) == "finance"


async def test_both_clients_prove_themselves_and_are_proved_to(
    start: Start, with_keys: Callable[[Config], None]
) -> None:
    async with start(change=with_keys) as rig:
        address = f"tcp:127.0.0.1:{rig.port}"
        async with open_client(address, "erp-1", key=KEY) as client:
            assert client.welcome["role"] == "finance"

        def block() -> str:
            with BlockingClient(address, "erp-1", key=KEY) as client:
                client.call("status")
                wrong = BlockingClient(address, "erp-1", key=Key("k1", KEY.client, b"y" * 32))
                with pytest.raises(CallError) as refused:
                    wrong.__enter__()
            return refused.value.code

        assert await trio.to_thread.run_sync(block) == "NOT_PERMITTED"


@pytest.mark.parametrize("proof", ["", "0" * 64, None])
async def test_a_client_does_not_speak_to_who_only_listens_where_the_daemon_should(
    proof: str | None,
) -> None:
    """Whoever takes the port while the daemon is down must not get the payments."""
    heard: list[bytes] = []

    async def impostor(stream: trio.SocketStream) -> None:
        wire = Wire(stream)
        first = await wire.receive()
        assert first is not None
        welcome = {"session": "0" * 32, "role": "finance", "heartbeat_s": 10.0}
        shown = {} if proof is None else {"proof": proof}
        await wire.send({"id": first["id"], "result": welcome | shown})
        heard.append(json.dumps(first).encode())
        heard.append(bytes(await stream.receive_some()))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, impostor, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(CallError) as refused:
            async with open_client(f"tcp:127.0.0.1:{port}", "erp-1", key=KEY):
                pass
        assert refused.value.code == "NOT_PROVED"
        while len(heard) < 2:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert SECRET.encode() not in heard[0]
    assert heard[1] == b"", "nothing was sent after the welcome"


async def test_a_key_is_changed_without_a_gap(
    start: Start, with_keys: Callable[[Config], None], directory: Path
) -> None:
    new = Key("k9", ClientName("erp-1"), b"n" * 32)
    async with start(change=with_keys) as rig:
        admin = await rig.admin()
        working = await rig.tcp()
        await working.result("session.open", opening())
        assert await tried(rig, opening(new)) == "NOT_PERMITTED"
        both = f"k1 erp-1 {SECRET}\nk9 erp-1 {'n' * 32}\n"
        write_keys(directory, both)
        await admin.result("config.apply")
        assert await tried(rig, opening(new)) == "finance"
        assert await tried(rig, opening()) == "finance"
        write_keys(directory, both.splitlines()[1])
        await admin.result("config.apply")
        assert await tried(rig, opening()) == "NOT_PERMITTED"
        assert await tried(rig, opening(new)) == "finance"
        # A file that can't be used changes nothing, and is told.
        write_keys(directory, "k9 erp-1 short")
        await admin.result("config.apply")
        assert await tried(rig, opening(new)) == "finance"
        (record,) = rig.logs.named("credential.faulty")
        assert "line 1" in record["reason"]
        kinds = {one["kind"] for one in (await admin.result("alarm.list"))["alarms"]}
        assert "CREDENTIAL_FAULT" in kinds
        await working.result("status")
