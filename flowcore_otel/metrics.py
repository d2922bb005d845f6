"""`MetricsHook`: the metrics of runs, through the OpenTelemetry metrics API."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from opentelemetry import metrics
from opentelemetry.util.types import Attributes

from . import names
from .measuring import MeasuringHook
from .names import Metric
from .series import Series, Write

__all__ = ["MetricsHook"]


class _MeterSeries(Series):
    """The series of one meter provider."""

    def __init__(self, provider: metrics.MeterProvider | None) -> None:
        super().__init__()
        meter = metrics.get_meter(names.SCOPE, names.SCOPE_VERSION, provider, names.SCHEMA_URL)
        oldest = names.OLDEST_START
        meter.create_observable_gauge(oldest.name, [self._oldest_starts], oldest.unit, oldest.help)
        self._records = {metric: _record_of(metric, meter) for metric in names.METRICS if metric is not oldest}

    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        record = self._records.get(metric)
        if record is None:
            return _observed
        attributes = {names.LABELS[label]: value for label, value in zip(metric.labels, labels, strict=True)}
        if metric.kind in {"counter", "updown"}:
            record(0, attributes)
        return partial(_write, record, attributes)

    def _oldest_starts(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        # The SDK refuses the +Inf that Prometheus shows of an idle workflow; here it has no point at all.
        return [metrics.Observation(start, {names.WORKFLOW_NAME: flow}) for flow, start in self.oldest_starts()]


_Record = Callable[[float, Attributes], None]


def _observed(_amount: float) -> None:
    """Written nowhere: it is read when somebody asks for it."""


def _write(record: _Record, attributes: Attributes, amount: float, _exemplar: object = None) -> None:
    record(amount, attributes)  # the SDK takes exemplars from the current span by itself


def _record_of(metric: Metric, meter: metrics.Meter) -> _Record:
    match metric.kind:
        case "counter":
            return meter.create_counter(metric.name, metric.unit, metric.help).add
        case "histogram":
            return meter.create_histogram(
                metric.name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=names.BUCKETS
            ).record
        case "updown":
            return meter.create_up_down_counter(metric.name, metric.unit, metric.help).add
        case _:
            return meter.create_gauge(metric.name, metric.unit, metric.help).set


class MetricsHook(MeasuringHook):
    """Turns the events of runs into the metrics of the catalogue (`flowcore_otel.names`), through `meter_provider`.

    The global provider unless given. The same numbers as PrometheusHook's: use one of the two, or both to compare.
    Safe for any number of runs, engines and threads at once. Needs opentelemetry-api only.
    """

    def __init__(self, meter_provider: metrics.MeterProvider | None = None, *, max_series: int = 2000) -> None:
        super().__init__(_MeterSeries(meter_provider), exemplars=False, max_series=max_series)
