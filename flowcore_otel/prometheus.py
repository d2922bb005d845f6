"""`PrometheusHook`: the metrics of runs, for prometheus_client to expose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.values import MutexValue, ValueClass

from . import names
from .measuring import MeasuringHook
from .names import Metric
from .series import Series, Write, one_for_each

__all__ = ["PrometheusHook"]


_WRITES: Final = {"counter": "inc", "updown": "inc", "histogram": "observe", "gauge": "set"}
"""the method that writes to a series"""
_MULTIPROCESS: Final = ValueClass is not MutexValue
"""whether prometheus_client keeps its values in files, for other processes to sum up"""


class _PrometheusSeries(Series):
    """The series of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        written = [metric for metric in names.METRICS if metric is not names.WORKERS]
        self._metrics = {metric: _registered(metric, registry) for metric in written}
        registry.register(_Workers(self))

    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        child: Write = getattr(self._metrics[metric].labels(*labels), _WRITES[metric.kind])
        return child

    def forked(self) -> None:
        super().forked()
        # Counters go on: each process has its own. In multiprocess mode prometheus_client starts all of a child's at 0.
        for metric in names.METRICS:
            if metric.kind == "updown":
                for add in self.known[metric].values():
                    gauge: Gauge = getattr(add, "__self__")  # noqa: B009 - `add` is the bound method of a Gauge
                    gauge.set(0)
        for set_ in self.known[names.OLDEST_START].values():
            set_(math.inf)
        if not _MULTIPROCESS:  # where nobody may have counted for this process
            self.known[names.STORE_RUNS].clear()
            self._metrics[names.STORE_RUNS].clear()


class _Workers(Collector):
    """Asks the engines how many of their threads are busy, whenever somebody scrapes."""

    def __init__(self, series: Series) -> None:
        self._series = series

    def collect(self) -> Iterable[GaugeMetricFamily]:
        metric = names.WORKERS
        family = GaugeMetricFamily(metric.prometheus, metric.help, labels=metric.labels)
        for state, number in self._series.workers().items():
            family.add_metric([state], number)
        return [family]

    describe = collect


def _registered(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    """The metric of prometheus_client."""
    about: dict[str, Any] = {
        "name": metric.prometheus,
        "documentation": metric.help,
        "labelnames": metric.labels,
        "unit": "seconds" if metric.unit == "s" else "",
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
