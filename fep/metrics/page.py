"""The page as bytes, metric by metric: text for Prometheus, or OpenMetrics with examples. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from fep.domain.histogram import Histogram
from fep.metrics.catalogue import METRICS, Form, Look, Metric

OPEN_METRICS: Final = "application/openmetrics-text"
END: Final = b"# EOF\n"
"""The last line of OpenMetrics."""


class _Given(Collector):
    """One family, for an encoder that asks a collector."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)


class Process:
    """What Python and the kernel tell of this process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def families(self) -> Iterator[Family]:
        """Yield what Prometheus's client library collects of every process."""
        yield from self._registry.collect()


def family(metric: Metric, look: Look) -> Family:
    """Return a metric with its samples at this moment."""
    if metric.form is Form.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in metric.samples(look):
            assert isinstance(value, Histogram)
            histogram.add_metric(labels, _buckets(value), value.total)
        return histogram
    make = CounterMetricFamily if metric.form is Form.COUNTER else GaugeMetricFamily
    found = make(metric.name, metric.help, labels=metric.labels)
    for labels, value in metric.samples(look):
        assert not isinstance(value, Histogram)
        found.add_metric(labels, value)
    return found


def _buckets(histogram: Histogram) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    found: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for bound, count, example in histogram.buckets():
        name = "+Inf" if math.isinf(bound) else repr(bound)
        if example is None:
            found.append((name, count))
        else:
            found.append((name, count, Exemplar({"task_id": example[0]}, example[1])))
    return found


def families(look: Look, process: Process) -> Iterator[Family]:
    """Yield all there is, the daemon's first; each is made when it is asked for."""
    for metric in METRICS:
        yield family(metric, look)
    yield from process.families()


class Writing(Enum):
    """How a page is written, with its content type."""

    TEXT = CONTENT_TYPE_PLAIN_0_0_4
    OPEN_METRICS = openmetrics.CONTENT_TYPE_LATEST

    def write(self, family: Family) -> bytes:
        """Return one family as a part of the page."""
        if self is Writing.OPEN_METRICS:
            whole: bytes = openmetrics.generate_latest(_Given(family))  # type: ignore[no-untyped-call]
            return whole.removesuffix(END)
        return generate_latest(_Given(family))

    @property
    def end(self) -> bytes:
        """What ends the page."""
        return END if self is Writing.OPEN_METRICS else b""


def writing(accept: str) -> Writing:
    """Return how a page is written for a scraper whose request says this; else as plain text."""
    return Writing.OPEN_METRICS if OPEN_METRICS in accept else Writing.TEXT
