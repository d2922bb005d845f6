"""`MetricsHook`: the metrics of runs, through the OpenTelemetry metrics API."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final

from opentelemetry import metrics
from opentelemetry.util.types import Attributes

from . import names
from .measuring import MeasuringHook
from .names import Metric
from .series import POLLED, Series, Write, one_for_each

__all__ = ["MetricsHook"]


class _MeterSeries(Series):
    """The series of one meter provider."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        super().__init__()
        meter = metrics.get_meter(names.SCOPE, names.SCOPE_VERSION, provider, names.SCHEMA_URL)
        for metric in POLLED:
            updown = metric.kind == "updown"
            create = meter.create_observable_up_down_counter if updown else meter.create_observable_gauge
            create(metric.name, [partial(self._observe, metric)], metric.unit, metric.help)
        self._records = {metric: _record_of(metric, meter) for metric in names.METRICS if metric not in POLLED}

    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        record, attributes = self._records[metric], _attributes(metric, labels)
        if metric.kind == "counter":
            record(0, attributes)
        return partial(_write, record, attributes)

    def _observe(self, metric: Metric, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        # An idle workflow has no data point: the SDK refuses +Inf, which Prometheus shows for it.
        polled = [(labels, value) for labels, value in self.poll(metric) if math.isfinite(value)]
        return [metrics.Observation(value, _attributes(metric, labels)) for labels, value in polled]


_Record = Callable[[float, Attributes], None]


def _attributes(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return {names.LABELS[label]: value for label, value in zip(metric.labels, labels, strict=True)}


def _write(record: _Record, attributes: Attributes, amount: float, _exemplar: object = None) -> None:
    record(amount, attributes)  # the SDK takes exemplars from the current span by itself


def _record_of(metric: Metric, meter: metrics.Meter) -> _Record:
    match metric.kind:
        case "counter":
            return meter.create_counter(metric.name, metric.unit, metric.help).add
        case "histogram":
            return meter.create_histogram(
                metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=metric.buckets
            ).record
        case _:
            return meter.create_gauge(metric.name, metric.unit, metric.help).set


_of: Final = one_for_each(_MeterSeries)


class MetricsHook(MeasuringHook):
    """Turns the events of runs into the metrics of the catalogue (`flowcore_otel.names`), through `meter_provider`.

    `meter_provider`: by default the global one; hooks on the same provider share its metrics. `max_series`: how many
    steps get series of their own, as for PrometheusHook. `version`: the service's version, for `flowcore.app.info`; by
    default `service.version` of OTEL_RESOURCE_ATTRIBUTES. To change buckets, use views of the SDK. PrometheusHook
    reports the same numbers: use one of the two, or both to compare.

    Safe for any number of runs, engines and threads at once. Needs opentelemetry-api only.
    """

    def __init__(
        self,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        max_series: int = 2000,
        version: str | None = None,
    ) -> None:
        series = _of(meter_provider or metrics.get_meter_provider())
        super().__init__(series, exemplars=False, max_series=max_series, version=version)
