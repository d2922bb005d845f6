"""Prometheus and OpenTelemetry show the same numbers."""

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from flowcore import Context, Workflow
from flowcore_otel import MetricsHook, PrometheusHook, names

from .conftest import MakeDriver, trip


def test_one_workload_through_both_gives_equal_values(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()
    driver = make_driver(PrometheusHook(registry), MetricsHook(MeterProvider([reader])))
    wf = trip(fails=3, attempts=2).wf
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")

    compared = 0
    for metric, point in points(reader):
        assert metric is not names.OLDEST_START  # +Inf in Prometheus, which the SDK refuses: no point while idle
        labels = {label: str(point.attributes[names.LABELS[label]]) for label in metric.labels}
        if metric.kind == "histogram":
            assert registry.get_sample_value(f"{metric.prometheus}_count", labels) == point.count
            assert registry.get_sample_value(f"{metric.prometheus}_sum", labels) == point.sum
            assert tuple(point.explicit_bounds) == names.BUCKETS
        else:
            assert registry.get_sample_value(metric.prometheus, labels) == point.value
        compared += 1
    assert compared > 30


def points(reader: InMemoryMetricReader) -> list[tuple[names.Metric, Any]]:
    catalogue = {metric.name: metric for metric in names.METRICS}
    data = reader.get_metrics_data()
    assert data is not None
    found: list[tuple[names.Metric, Any]] = []
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            assert (scope.scope.name, scope.scope.schema_url) == ("flowcore", names.SCHEMA_URL)
            for metric in scope.metrics:
                assert metric.unit == catalogue[metric.name].unit
                assert metric.description == catalogue[metric.name].help
                found += [(catalogue[metric.name], point) for point in metric.data.data_points]
    return found


def test_the_oldest_start_is_shown_while_runs_are_in_flight(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    reader = InMemoryMetricReader()
    seen: list[tuple[float, float | None]] = []
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None:
        shown = registry.get_sample_value(names.OLDEST_START.prometheus, {"workflow": "trip"})
        seen.extend((point.value, shown) for metric, point in points(reader) if metric is names.OLDEST_START)

    make_driver(PrometheusHook(registry), MetricsHook(MeterProvider([reader]))).run(wf)
    ((one, other),) = seen
    assert one == other
