"""The simulation is worth its time: a defect put in on purpose costs money in it, and is seen."""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.simulation.run import simulate
from tests.simulation.variants import VARIANTS

SEEDS_MAX: Final = 30
"""A seed's run is another one whenever the engine draws or waits otherwise than before: the first
that shows the defect is looked for, and it is most often the first of all."""

DOUBLED: Final = r" was booked 2 times$"
SHOWN: Final = {
    "resends_on_time_out": (0, DOUBLED),
    "resends_a_batch_on_time_out": (0, DOUBLED),
    "sends_before_the_disk_has_it": (0, rf"{DOUBLED}| is expired and was booked 1 times$"),
    "takes_no_record_for_no": (1, r" is rejected and was booked 1 times$"),
    "counts_by_the_wall_clock": (5, r" is rejected and was booked 1 times$"),
    "begins_anew_by_the_wall_clock": (5, r" is rejected and was booked 1 times$"),
    "looks_at_no_account": (5, r" is succeeded and came back$"),
}
"""Of each variant the seed to begin with, and what it must be caught by: one of the ways in which
this defect costs money, not just any fault."""


@pytest.mark.parametrize("name", VARIANTS)
def test_a_defect_is_seen_and_the_same_run_without_it_is_well(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, wanted = SHOWN[name]
    for seed in range(first, first + SEEDS_MAX):
        with monkeypatch.context() as patch:
            VARIANTS[name](patch)
            report, _ = simulate(seed, foulest=True)
        if any(re.search(wanted, line) for line in report.violations):
            break
    else:
        pytest.fail(f"{SEEDS_MAX} seeds from {first} on do not show {name}")
    sound, _ = simulate(seed, foulest=True)
    assert sound.violations == []
    # It was no quiet run, either.
    assert sound.crashes > 0
    assert sound.unknowns > 0
