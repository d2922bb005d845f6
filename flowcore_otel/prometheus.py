"""`PrometheusHook`: the metrics of runs, for prometheus_client to expose."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.values import MutexValue, ValueClass

from flowcore.events import Event, StepReady, StepSkipped, StepStarted

from . import names
from .inflight import ASKED, InFlightRun, WorkflowSeries, Write
from .measuring import MeasuringHook
from .names import Metric
from .series import Series, one_for_each

__all__ = ["PrometheusHook"]

_WRITES: Final = {"counter": "inc", "histogram": "observe", "gauge": "set"}
"""the method that writes to a series"""
_MULTIPROCESS: Final = ValueClass is not MutexValue
"""whether prometheus_client keeps its values in files, for whichever process is scraped to sum up"""


class _PrometheusSeries(Series):
    """The series of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        asked = (names.WORKERS,) if _MULTIPROCESS else ASKED
        registry.register(_Asked(self, asked))
        self._metrics = {metric: _registered(metric, registry) for metric in names.METRICS if metric not in asked}

    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        child: Write = getattr(self._metrics[metric].labels(*labels), _WRITES[metric.kind])
        return child

    def make_flow(self, label: str) -> WorkflowSeries:
        return _Told(label, self._metrics) if _MULTIPROCESS else super().make_flow(label)

    def forked(self) -> None:
        super().forked()
        # Counters go on: each process has its own. In multiprocess mode prometheus_client starts all of a child's at 0.
        if not _MULTIPROCESS:  # where nobody may have counted for this process
            self.known[names.STORE_RUNS].clear()
            self._metrics[names.STORE_RUNS].clear()


class _Asked(Collector):
    """The gauges that ask what is going on, whenever somebody scrapes."""

    def __init__(self, series: Series, metrics: Iterable[Metric]) -> None:
        self._series = series
        self._asked = tuple(metrics)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for metric in self._asked:
            family = GaugeMetricFamily(metric.prometheus, metric.help, labels=metric.labels, unit=_unit(metric))
            for labels, value in self._series.ask(metric):
                family.add_metric(labels, value)
            yield family

    describe = collect


class _Told(WorkflowSeries):
    """In multiprocess mode nobody can ask what is going on in another process: it is written down as it changes."""

    __slots__ = ("_active", "_counted", "_lock", "_oldest", "_ready")

    def __init__(self, label: str, metrics: Mapping[Metric, Any]) -> None:
        super().__init__(label)
        self._active: Gauge = metrics[names.RUNS_ACTIVE].labels(label)
        self._ready: Gauge = metrics[names.STEPS_READY].labels(label)
        self._oldest: Gauge = metrics[names.OLDEST_START].labels(label)
        self._oldest.set(math.inf)
        self._lock = threading.Lock()
        self._counted: dict[InFlightRun, int] = {}  # (lock) ready steps that the gauge knows of

    def begin(self, at: float, wall: float, waiting: Callable[[], int]) -> InFlightRun:
        run = super().begin(at, wall, waiting)
        self._active.inc()
        self._oldest.set(self.oldest())
        return run

    def count(self, run: InFlightRun) -> None:
        """Steps of the run have become ready, or are so no longer."""
        with self._lock:
            now = run.waiting() if run in self.runs else 0
            self._ready.inc(now - self._counted.pop(run, 0))
            if now:
                self._counted[run] = now

    def end(self, run: InFlightRun) -> None:
        ours = run in self.runs  # and not that of the process that this one was forked from
        super().end(run)
        self.count(run)
        if ours:
            self._active.dec()
        self._oldest.set(self.oldest())

    def forget(self) -> None:
        super().forget()
        self._lock = threading.Lock()
        self._counted.clear()
        self._oldest.set(math.inf)


def _unit(metric: Metric) -> str:
    return "seconds" if metric.unit == "s" else ""


def _registered(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    """The metric of prometheus_client."""
    about: dict[str, Any] = {
        "name": metric.prometheus,
        "documentation": metric.help,
        "labelnames": metric.labels,
        "unit": _unit(metric),
        "registry": registry,
    }
    match metric.kind:
        case "counter":
            return Counter(**about)
        case "histogram":
            return Histogram(**about, buckets=metric.buckets)
        case _:
            return Gauge(**about, multiprocess_mode=metric.multiprocess)


_of: Final = one_for_each(_PrometheusSeries)


class PrometheusHook(MeasuringHook):
    """Turns the events of runs into the metrics of the catalogue (`flowcore_otel.names`), in `registry`.

    Expose them with what prometheus_client has for it: `start_http_server`, `make_asgi_app`, `make_wsgi_app`. Hooks on
    the same registry share its metrics. `exemplars`: where a span is sampled, give its ids with run, step and attempt
    durations and with counters; only scrapes in the OpenMetrics format show them. `max_series`: how many steps get
    series of their own, over all workflows; the rest share one, `step="_other"`, and `flowcore_telemetry_capped_total`
    counts what went there. In multiprocess mode prometheus_client drops exemplars, and what is only known when it is
    asked for: `flowcore_workers`.

    Safe for any number of runs, engines and threads at once. Needs prometheus-client only.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, exemplars: bool = True, max_series: int = 2000
    ) -> None:
        super().__init__(_of(registry), exemplars=exemplars, max_series=max_series)
        if _MULTIPROCESS:
            self.handlers = {**self.handlers, **dict.fromkeys((StepReady, StepSkipped, StepStarted), self._count)}
            self.wants = frozenset(self.handlers)

    def _count(self, event: Event) -> None:
        run: InFlightRun = event.state[self]
        cast("_Told", run.flow).count(run)
