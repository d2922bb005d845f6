"""`PrometheusHook`: the metrics of runs, for prometheus_client to expose."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from . import names
from .measuring import MeasuringHook
from .names import Metric
from .series import Series, Write

__all__ = ["PrometheusHook"]


class _PrometheusSeries(Series):
    """The series of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._children = {metric: _registered(metric, registry) for metric in names.METRICS}

    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        return self._children[metric](*labels)

    def forked(self) -> None:
        super().forked()
        # Counters go on: in multiprocess mode prometheus_client starts a child's at 0, else each process has its own.
        for metric in names.METRICS:
            if metric.kind == "updown":
                for add in self.known[metric].values():
                    gauge: Gauge = getattr(add, "__self__")  # noqa: B009 - `add` is the bound method of a Gauge
                    gauge.set(0)
        for set_ in self.known[names.OLDEST_START].values():
            set_(math.inf)


def _registered(metric: Metric, registry: CollectorRegistry) -> Callable[..., Write]:
    """A metric of prometheus_client: from labels to the function that writes to that series."""
    about: dict[str, Any] = {
        "name": metric.prometheus,
        "documentation": metric.help,
        "labelnames": metric.labels,
        "unit": "seconds" if metric.unit == "s" else "",
        "registry": registry,
    }
    match metric.kind:
        case "counter":
            counter = Counter(**about)
            return lambda *labels: counter.labels(*labels).inc
        case "histogram":
            histogram = Histogram(**about, buckets=names.BUCKETS)
            return lambda *labels: histogram.labels(*labels).observe
        case "updown":
            updown = Gauge(**about, multiprocess_mode=metric.multiprocess)
            return lambda *labels: updown.labels(*labels).inc
        case _:
            gauge = Gauge(**about, multiprocess_mode=metric.multiprocess)
            return lambda *labels: gauge.labels(*labels).set


_by_registry: weakref.WeakKeyDictionary[CollectorRegistry, _PrometheusSeries] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _of(registry: CollectorRegistry) -> _PrometheusSeries:
    with _lock:
        series = _by_registry.get(registry)
        if series is None:
            series = _by_registry[registry] = _PrometheusSeries(registry)
        return series


class PrometheusHook(MeasuringHook):
    """Turns the events of runs into the metrics of the catalogue (`flowcore_otel.names`), in `registry`.

    Expose them with what prometheus_client has for it: `start_http_server`, `make_asgi_app`, `make_wsgi_app`. Hooks on
    the same registry share its metrics. `exemplars`: where a span is sampled, give its ids with run, step and attempt
    durations and with counters; only scrapes in the OpenMetrics format show them, and prometheus_client drops them in
    multiprocess mode. `max_series`: how many steps get series of their own, over all workflows; the rest share one,
    `step="_other"`, and `flowcore_telemetry_capped_total` counts what went there.

    Safe for any number of runs, engines and threads at once. Needs prometheus-client only.
    """

    def __init__(
        self, registry: CollectorRegistry = REGISTRY, *, exemplars: bool = True, max_series: int = 2000
    ) -> None:
        super().__init__(_of(registry), exemplars=exemplars, max_series=max_series)
