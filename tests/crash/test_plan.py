"""A round's plan comes from its seed alone, and every fault has its turn."""

from __future__ import annotations

import itertools

import pytest

from tests.crash.faults import FAULTS, Fault
from tests.crash.lane import lane_seeds
from tests.crash.machine import Machine
from tests.crash.proxy import Walk
from tests.crash.round import Choice, Round


def planned(machine: Machine, seed: int, choice: Choice | None = None) -> Round:
    """Return a round; nothing is started."""
    machine.doom.clear()
    machine.points.clear()
    for proxy in machine.proxies.values():
        proxy.be_calm()
    return Round(machine, seed, {name: Walk() for name in machine.proxies}, choice)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Machine]:
    """Two machines that never run."""
    one, other = (Machine(tmp_path_factory.mktemp("crash")) for _ in range(2))
    return one, other


def test_a_seed_gives_the_same_plan(machines: tuple[Machine, Machine]) -> None:
    plans = [
        [planned(machine, seed).draw() for seed in range(3 * len(FAULTS))] for machine in machines
    ]
    assert plans[0] == plans[1]
    assert len({repr(plan) for plan in plans[0]}) == len(plans[0])


def test_every_fault_has_its_turn(machines: tuple[Machine, Machine]) -> None:
    rounds = [planned(machines[0], seed) for seed in range(len(FAULTS))]
    assert {one.faults[0] for one in rounds} == set(Fault) == set(FAULTS)


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
def test_each_lane_comes_to_each_fault_and_each_seed_to_one_lane(lanes: int) -> None:
    shares = [lane_seeds(5, 2 * lanes * len(FAULTS), lane, lanes) for lane in range(lanes)]
    assert sorted(itertools.chain(*shares)) == list(range(5, 5 + 2 * lanes * len(FAULTS)))
    for share in shares:
        assert {seed % len(FAULTS) for seed in share} == set(range(len(FAULTS)))


def test_what_a_machine_does_not_allow_is_left_out_and_told(
    machines: tuple[Machine, Machine],
) -> None:
    choice = Choice(only=[Fault.DISK_FULL, Fault.CUT], without=frozenset({Fault.DISK_FULL}))
    one = planned(machines[0], 1, choice)
    assert one.faults == [Fault.CUT]
    assert one.report.not_run == ["disk-full"]
    assert one.draw()["acts"] == planned(machines[0], 1, Choice(only=[Fault.CUT])).draw()["acts"]


def test_other_faults_of_a_seed_do_not_hang_on_what_is_left_out(
    machines: tuple[Machine, Machine],
) -> None:
    for seed in range(2 * len(FAULTS)):
        drawn = planned(machines[0], seed).faults
        left = planned(machines[0], seed, Choice(without=frozenset({drawn[0]}))).faults
        assert left == drawn[1:]


def test_a_plan_names_what_will_be_done(machines: tuple[Machine, Machine]) -> None:
    plan = planned(machines[0], 1, Choice(only=[Fault.KILL_DAEMON])).draw()
    assert any(act.endswith(" kill_daemon") for act in plan["acts"])
