"""`PrometheusHook`: the metrics of runs, for prometheus_client to expose."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.values import MutexValue, ValueClass

from flowcore.events import Event, StepReady, StepSkipped, StepStarted

from . import names
from .measuring import MeasuringHook
from .names import Metric
from .series import OF_THREADS, POLLED, REPORTED, InFlightRun, IsOpen, Series, WorkflowSeries, Write, one_for_each

__all__ = ["PrometheusHook"]

_WRITES: Final = {"counter": "inc", "histogram": "observe", "gauge": "set"}
"""kind of metric -> the method that writes to a series"""
_MULTIPROCESS: Final = ValueClass is not MutexValue
"""whether prometheus_client keeps its values in files, which the scraped process sums up (multiprocess mode)"""


class _Settings(NamedTuple):
    """The settings that all hooks on one registry must share."""

    buckets: tuple[float, ...]
    by_step: bool


class _PrometheusSeries(Series):
    """The series of one registry."""

    reported = () if _MULTIPROCESS else REPORTED

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = weakref.ref(registry)  # weak, because the registry keeps these series
        self.settings: _Settings | None = None
        self._metrics: dict[Metric, Any] = {}

    def configure(self, registry: CollectorRegistry, settings: _Settings) -> None:
        """Register the metrics, unless an earlier hook did so. Raises ValueError if that hook has other settings."""
        with self._lock:
            if self.settings is not None and settings != self.settings:
                raise ValueError(
                    "This registry has flowcore's metrics with other buckets= or detail=. "
                    "Give all its hooks the same, or a registry each."
                )
            if self.settings is None:
                polled = OF_THREADS if _MULTIPROCESS else POLLED
                registry.register(_PolledGauges(self, polled))
                for metric in names.METRICS:
                    if metric not in polled and metric.labels:  # a metric without labels shows 0 at once
                        self._metrics[metric] = _registered(metric, registry, settings.buckets)
                self.settings, self.by_step = settings, settings.by_step

    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        if metric.labels:
            child = self._metrics[metric].labels(*labels)
        else:
            registry = self._registry()
            child = _registered(metric, registry, ())
        write: Write = getattr(child, _WRITES[metric.kind])
        return partial(_set, write) if metric in REPORTED else write

    def make_flow(self, label: str) -> WorkflowSeries:
        return _WrittenGauges(label, self._metrics) if _MULTIPROCESS else super().make_flow(label)


class _PolledGauges(Collector):
    """The gauges whose values are computed at each scrape."""

    def __init__(self, series: Series, metrics: Iterable[Metric]) -> None:
        self._series = series
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for metric in self._metrics:
            family = GaugeMetricFamily(metric.prometheus, metric.help, labels=metric.labels, unit=_unit(metric))
            for labels, value in self._series.poll(metric):
                family.add_metric(labels, value)
            yield family

    describe = collect


class _WrittenGauges(WorkflowSeries):
    """The runs in flight of one workflow in multiprocess mode. Their gauges are written at each change, because another
    process may serve the scrape."""

    __slots__ = ("_active", "_counted", "_lock", "_oldest", "_queued", "_ready")

    def __init__(self, label: str, metrics: Mapping[Metric, Any]) -> None:
        super().__init__(label)
        self._active: Gauge = metrics[names.RUNS_ACTIVE].labels(label)
        self._queued: Gauge = metrics[names.RUNS_QUEUED].labels(label)
        self._ready: Gauge = metrics[names.STEPS_READY].labels(label)
        self._oldest: Gauge = metrics[names.OLDEST_START].labels(label)
        self._oldest.set(math.inf)
        self._lock = threading.Lock()
        self._counted: dict[InFlightRun, int] = {}  # (lock) run -> its ready steps in the gauge

    def enqueue(self, run_id: str) -> None:
        if run_id not in self.queued:  # another hook on the registry may have counted it
            super().enqueue(run_id)
            self._queued.inc()

    def dequeue(self, run_id: str) -> None:
        ours = run_id in self.queued
        super().dequeue(run_id)
        if ours:
            self._queued.dec()

    def begin(self, at: float, wall: float, waiting: Callable[[], int]) -> InFlightRun:
        run = super().begin(at, wall, waiting)
        self._active.inc()
        self._oldest.set(self.oldest())
        return run

    def count(self, run: InFlightRun) -> None:
        """Update the gauge of ready steps after the number of the run's ready steps has changed."""
        with self._lock:
            now = run.waiting() if run in self.runs else 0
            self._ready.inc(now - self._counted.pop(run, 0))
            if now:
                self._counted[run] = now

    def end(self, run: InFlightRun) -> None:
        ours = run in self.runs  # False for a run of the process that this one was forked from
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


def _set(write: Write, value: float, _engine: IsOpen) -> None:
    write(value)  # in multiprocess mode, until the process ends


def _unit(metric: Metric) -> str:
    return "seconds" if metric.unit == "s" else ""


def _registered(
    metric: Metric, registry: CollectorRegistry | None, buckets: tuple[float, ...]
) -> Counter | Gauge | Histogram:
    """Make the metric in prometheus_client, and register it with `registry` unless that is None."""
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
            return Histogram(**about, buckets=buckets if metric.buckets == names.BUCKETS else metric.buckets)
        case _:
            return Gauge(**about, multiprocess_mode=metric.multiprocess)


_of: Final = one_for_each(_PrometheusSeries)


class PrometheusHook(MeasuringHook):
    """Turns the events of runs into the metrics of the catalogue (`flowcore_otel.names`), in `registry`.

    Expose them with `start_http_server`, `make_asgi_app` or `make_wsgi_app` of prometheus_client. Hooks on the same
    registry share its metrics. `exemplars`: attach the ids of sampled spans to counters and to the durations of runs,
    steps and attempts; only scrapes in the OpenMetrics format show them. `max_series`: how many steps get their own
    series, over all workflows; the other steps share the series `step="_other"`, whose measurements are counted by
    `flowcore_telemetry_capped_total`. `buckets`: upper bounds in seconds for the durations of runs and steps. `detail`:
    "step" for one series per step, or "workflow" for one per workflow, `step="_all"`. `version`: the version of the
    service, for `flowcore_app_info`; by default `service.version` of OTEL_RESOURCE_ATTRIBUTES. In multiprocess mode
    prometheus_client drops exemplars and the gauges that are computed at each scrape: `flowcore_workers`,
    `flowcore_workers_limit`, `flowcore_steps_held_back` and `flowcore_clock_timestamp_seconds`.

    Safe for any number of runs, engines and threads at once. Needs prometheus-client only. Raises ValueError if buckets
    do not rise, for an unknown detail, and if an earlier hook on the registry has other buckets or detail.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        *,
        exemplars: bool = True,
        max_series: int = 2000,
        buckets: Iterable[float] = names.BUCKETS,
        detail: Literal["step", "workflow"] = "step",
        version: str | None = None,
    ) -> None:
        series, bounds = _of(registry), tuple(map(float, buckets))
        if not bounds or list(bounds) != sorted(set(bounds)) or not all(0 < bound < math.inf for bound in bounds):
            raise ValueError(f"buckets= must be rising numbers of seconds above 0, not {bounds}.")
        if detail not in {"step", "workflow"}:
            raise ValueError(f"detail= must be 'step' or 'workflow', not {detail!r}.")
        series.configure(registry, _Settings(bounds, detail == "step"))
        super().__init__(series, exemplars=exemplars, max_series=max_series, version=version)
        if _MULTIPROCESS:
            self.handlers = {**self.handlers, **dict.fromkeys((StepReady, StepSkipped, StepStarted), self._count)}
            self.wants = frozenset(self.handlers)

    def _count(self, event: Event) -> None:
        run: InFlightRun = event.state[self]
        cast("_WrittenGauges", run.flow).count(run)
