"""The simulation in its short form; the long one is ``make simulate SEEDS=10000``."""

from __future__ import annotations

import os

from tests.simulation.__main__ import campaign
from tests.simulation.run import simulate

SEEDS = int(os.environ.get("FEP_TEST_SEEDS", "40"))
PROCESSES = 2


def test_a_seed_is_the_same_run_every_time() -> None:
    first, lines = simulate(11)
    second, again = simulate(11)
    assert lines == again
    assert first == second
    assert first.digest != simulate(12)[0].digest


def test_no_payment_is_lost_doubled_or_told_wrongly() -> None:
    figures = campaign(0, SEEDS, PROCESSES)
    assert figures["seeds"] == SEEDS
    assert figures["violations"] == 0, figures["failed"]
    # The runs were worth something: the daemon died, also inside commits, and answers were lost.
    for name in ("tasks", "crashes", "torn", "unknowns"):
        assert int(str(figures[name])) > SEEDS // 20, (name, figures)
