"""Prometheus and OpenTelemetry show the same numbers."""

import time
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from flowcore import Context, Workflow
from flowcore.events import EngineStarted, Event, Hooks, StoreCalled, StoreSurveyed
from flowcore.status import Status
from flowcore_otel import MetricsHook, PrometheusHook, names
from flowcore_otel.series import MAX_WORKFLOWS

from .conftest import MakeDriver, trip


def test_one_workload_through_both_gives_equal_values(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()
    driver = make_driver(PrometheusHook(registry), MetricsHook(MeterProvider([reader])))
    wf = trip(fails=3, attempts=2).wf
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")

    assert compared(reader, registry) > 30


def compared(reader: InMemoryMetricReader, registry: CollectorRegistry) -> int:
    """How many series there are in OpenTelemetry; each has the same value in Prometheus."""
    number = 0
    for metric, point in points(reader):
        if metric is names.CAPPED:  # each sink tells of its own limits
            continue
        assert metric is not names.OLDEST_START  # +Inf in Prometheus, which the SDK refuses: no point while idle
        labels = {label: str(point.attributes[names.LABELS[label]]) for label in metric.labels}
        if metric.kind == "histogram":
            assert registry.get_sample_value(f"{metric.prometheus}_count", labels) == point.count
            assert registry.get_sample_value(f"{metric.prometheus}_sum", labels) == point.sum
            assert tuple(point.explicit_bounds) == metric.buckets
        else:
            assert registry.get_sample_value(metric.prometheus, labels) == point.value
        number += 1
    return number


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


class Both:
    """Hooks of both kinds, told by hand what the engine and its store would tell."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reader = InMemoryMetricReader()
        self.registry = registry
        self.hooks = Hooks([PrometheusHook(registry), MetricsHook(MeterProvider([self.reader]))])

    def tell(self, kind: type[Event], *fields: Any) -> None:
        self.hooks.emit(kind("", "", 1.0, {}, *fields), copy_context())

    def value(self, metric: names.Metric, suffix: str = "", **labels: str) -> float | None:
        """The value in Prometheus, once that of OpenTelemetry has been found to be the same."""
        compared(self.reader, self.registry)
        return self.registry.get_sample_value(metric.prometheus + suffix, labels)


@pytest.fixture
def both(registry: CollectorRegistry) -> Both:
    return Both(registry)


def test_what_a_store_takes_to_answer_is_reported_by_verb_and_outcome(both: Both) -> None:
    for seconds in (0.0002, 0.003, 20.0):
        both.tell(StoreCalled, "redis", "claim", Status.SUCCESS, seconds, None)
    both.tell(StoreCalled, "redis", "renew", Status.FAILURE, 0.5, OSError())
    claims = {"store": "redis", "operation": "claim", "outcome": "success"}
    assert both.value(names.STORE_DURATION, "_count", **claims) == 3
    assert both.value(names.STORE_DURATION, "_bucket", **claims, le="0.00025") == 1
    assert both.value(names.STORE_DURATION, "_bucket", **claims, le="10.0") == 2
    assert both.value(names.STORE_DURATION, "_sum", store="redis", operation="renew", outcome="failure") == 0.5


def test_runs_that_wait_for_an_operator_are_shown_as_last_counted(both: Both) -> None:
    both.tell(StoreSurveyed, {("trip", "held"): 2, ("trip", "expired"): 0})
    both.tell(StoreSurveyed, {("trip", "held"): 1, ("trip", "expired"): 3})
    assert both.value(names.STORE_RUNS, workflow="trip", status="held") == 1
    assert both.value(names.STORE_RUNS, workflow="trip", status="expired") == 3


def test_past_the_limit_the_counts_of_workflows_are_added_up(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    both.tell(StoreSurveyed, {(f"w{number}", "held"): 1 for number in range(MAX_WORKFLOWS + 3)})
    assert both.value(names.STORE_RUNS, workflow="_other", status="held") == 3
    assert "more than 200 values for the label workflow" in caplog.text


def test_threads_are_counted_when_asked_over_all_engines(both: Both) -> None:
    first: list[tuple[int, int] | None] = [(3, 1)]
    both.tell(EngineStarted, lambda: first[0], ())
    both.tell(EngineStarted, lambda: (2, 0), ())

    def threads() -> tuple[float | None, float | None]:
        return both.value(names.WORKERS, state="busy"), both.value(names.WORKERS, state="abandoned")

    assert threads() == (4, 1)
    first[0] = (8, 8)
    assert threads() == (2, 8)
    first[0] = None
    assert threads() == (2, 0)


def test_engines_that_are_gone_are_forgotten(both: Both) -> None:
    asked: list[str] = []

    def gone() -> None:
        asked.append("gone")

    both.tell(EngineStarted, gone, ())
    both.tell(EngineStarted, lambda: (0, 0), ())
    asked.clear()
    both.tell(EngineStarted, lambda: (0, 0), ())
    both.value(names.WORKERS, state="busy")
    assert not asked


def test_hooks_on_one_provider_share_its_metrics(make_driver: MakeDriver) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    for _ in range(2):
        make_driver(MetricsHook(provider)).run(trip().wf)
    hooks = [Hooks([MetricsHook(provider)]) for _ in range(2)]
    for each in hooks:
        each.emit(EngineStarted("", "", 1.0, {}, lambda: (1, 0), ()), copy_context())
    shown = {(metric, *point.attributes.values()): point for metric, point in points(reader)}
    assert shown[names.RUN_DURATION, "trip", "success"].count == 2
    assert shown[names.WORKERS, "busy"].value >= 2


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


def test_seconds_spent_in_hooks_are_counted_by_hook(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()

    def slow(event: Event) -> None:
        time.sleep(0.001)

    driver = make_driver(slow, PrometheusHook(registry), MetricsHook(MeterProvider([reader])))
    driver.run(trip().wf)
    spent = {
        str(point.attributes["flowcore.hook"]): point.value
        for metric, point in points(reader)
        if metric is names.HOOK_DURATION
    }
    assert {name.split(".")[-1] for name in spent} == {"slow", "PrometheusHook", "MetricsHook"}
    assert spent[slow.__qualname__] > 0.01
    assert spent["PrometheusHook"] > 0
    assert compared(reader, registry) > 30
