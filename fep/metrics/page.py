"""The page as bytes, piece by piece: text for Prometheus, or OpenMetrics with examples. Pure.

Our own metrics are written here: Prometheus's client library takes twenty times as long for a
sample, and the loop stands still meanwhile. What it collects of the process it also writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from fep.domain.histogram import Histogram
from fep.metrics.catalogue import METRICS, Form, Look, Metric

OPEN_METRICS: Final = "application/openmetrics-text"
END: Final = "# EOF\n"
"""The last line of OpenMetrics."""
PIECE_LINES: Final = 500
"""After so many lines others get their turn of the loop; they take a millisecond or less."""
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Writing(Enum):
    """How a page is written, with its content type."""

    TEXT = CONTENT_TYPE_PLAIN_0_0_4
    OPEN_METRICS = openmetrics.CONTENT_TYPE_LATEST

    @property
    def is_open(self) -> bool:
        """Whether it is OpenMetrics, which has examples and an end."""
        return self is Writing.OPEN_METRICS


def writing(accept: str) -> Writing:
    """Return how a page is written for a scraper whose request says this; else as plain text."""
    return Writing.OPEN_METRICS if OPEN_METRICS in accept else Writing.TEXT


class Process:
    """What Python and the kernel tell of this process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self, how: Writing) -> str:
        """Return what Prometheus's client library collects of every process."""
        given = _Given(self._registry.collect())
        if how.is_open:
            whole: bytes = openmetrics.generate_latest(given)  # type: ignore[no-untyped-call]
            return whole.decode().removesuffix(END)
        return generate_latest(given).decode()


class _Given(Collector):
    """Families, for an encoder that asks a collector."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Family]:
        return self._families


def pieces(look: Look, process: Process, how: Writing) -> Iterator[bytes]:
    """Yield the page in pieces; each is made when it is asked for."""
    for metric in METRICS:
        lines: list[str] = []
        for some in _lines(metric, look, how):
            lines += some
            if len(lines) >= PIECE_LINES:
                yield "".join(lines).encode()
                lines = []
        yield "".join(lines).encode()
    yield process.text(how).encode()
    yield END.encode() if how.is_open else b""


def _lines(metric: Metric, look: Look, how: Writing) -> Iterator[list[str]]:
    """Yield the lines of a metric: its head, then those of one sample at a time."""
    of = metric.name.removesuffix("_total") if how.is_open else metric.name
    yield [f"# HELP {of} {metric.help}\n", f"# TYPE {of} {metric.form.value}\n"]
    for values, value in metric.samples(look):
        pairs = zip(metric.labels, values, strict=True)
        labels = ",".join(f'{label}="{_escaped(text)}"' for label, text in pairs)
        if isinstance(value, Histogram):
            assert metric.form is Form.HISTOGRAM
            yield _histogram(metric.name, labels, value, how)
        else:
            assert metric.form is not Form.HISTOGRAM
            yield [f"{metric.name}{_braced(labels)} {float(value)!r}\n"]


def _histogram(name: str, labels: str, histogram: Histogram, how: Writing) -> list[str]:
    found = []
    first = f"{name}_bucket{{{labels}{',' if labels else ''}le="
    below = 0
    for bound, below, example in histogram.buckets():
        le = "+Inf" if math.isinf(bound) else repr(bound)
        told = ""
        if how.is_open and example is not None:
            told = f' # {{task_id="{_escaped(example[0])}"}} {example[1]!r}'
        found.append(f'{first}"{le}"}} {below}{told}\n')
    found.append(f"{name}_count{_braced(labels)} {below}\n")
    found.append(f"{name}_sum{_braced(labels)} {histogram.total!r}\n")
    return found


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)
