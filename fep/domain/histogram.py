"""A distribution that is cheap to add to: counts by bucket, their sum, and an example in each.

Its reader (the page for Prometheus) adds the buckets up; who observes pays one search and three
additions.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Of one exchange with a bank, or one signature."""
TASK_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0, 86_400.0)
"""From a task's submission to its end."""
COMMIT_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)
LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    """Counts of observed values by upper bound; a value on a bound belongs below it.

    Args:
        bounds: the upper bounds, ascending, without infinity.
    """

    __slots__ = ("_bounds", "_counts", "_examples", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._examples: list[tuple[str, float] | None] = [None] * (len(bounds) + 1)
        self.total = 0.0
        """The sum of all values."""

    def observe(self, value: float, example: str = "") -> None:
        """Count a value.

        Args:
            value: in the unit of the bounds.
            example: names what took so long, such as a task's id; the newest of a bucket is kept.
        """
        place = bisect_left(self._bounds, value)
        self._counts[place] += 1
        self.total += value
        if example:
            self._examples[place] = (example, value)

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self._counts)

    def buckets(self) -> Iterator[tuple[float, int, tuple[str, float] | None]]:
        """Yield each bound, infinity last, how many values are not above it, and an example.

        The example is one of the values above the bound before, with its name.
        """
        below = 0
        bounds = (*self._bounds, math.inf)
        for bound, count, example in zip(bounds, self._counts, self._examples, strict=True):
            below += count
            yield bound, below, example
