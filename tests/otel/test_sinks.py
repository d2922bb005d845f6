"""Prometheus and OpenTelemetry show the same numbers."""

import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from flowcore import Context, Engine, LeaseLost, RetryAfter, StoreUnavailable, Workflow
from flowcore.events import (
    EngineStarted,
    Event,
    Hooks,
    RunRefused,
    StoreCalled,
    StoreSurveyed,
    WorkflowRegistered,
)
from flowcore.status import Status
from flowcore.stores import SQLiteStore
from flowcore_otel import MetricsHook, PrometheusHook, names
from flowcore_otel.series import MAX_WORKFLOWS
from tests.stores.redis_servers import until

from .conftest import MakeDriver, trip


def test_one_workload_through_both_gives_equal_values(make_driver: MakeDriver, registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()
    driver = make_driver(PrometheusHook(registry), MetricsHook(MeterProvider([reader])))
    wf = trip(fails=3, attempts=2).wf
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")

    calls_have_ended(registry)
    assert compared(reader, registry) > 30


def calls_have_ended(registry: CollectorRegistry) -> None:
    """Wait until no thread is busy: each counts as busy until shortly after the end of its call."""
    until(lambda: not registry.get_sample_value("flowcore_workers", {"state": "busy"}), "the end of all calls")


def compared(reader: InMemoryMetricReader, registry: CollectorRegistry) -> int:
    """How many series there are in OpenTelemetry; each has the same value in Prometheus."""
    number = 0
    for metric, point in points(reader):
        if metric in {names.CAPPED, names.CLOCK}:  # each sink counts what is past its own limits, and reads the clock
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
    counted = {(f"w{number}", "held"): 1 for number in range(MAX_WORKFLOWS + 3)}
    both.tell(StoreSurveyed, counted | {("_unknown", "held"): 2})
    assert both.value(names.STORE_RUNS, workflow="_other", status="held") == 3
    assert both.value(names.STORE_RUNS, workflow="_unknown", status="held") == 2
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


def test_submitted_runs_are_counted_while_they_are_queued_and_how_long_that_was(registry: CollectorRegistry) -> None:
    reader, goes_on, wf, ahead = InMemoryMetricReader(), threading.Event(), Workflow("trip"), Workflow("ahead")
    wf.add_step("book", lambda ctx: None)
    ahead.add_step("wait", lambda ctx: goes_on.wait(10))

    def queued() -> list[float]:
        (there,) = (
            point.value
            for metric, point in points(reader)
            if metric is names.RUNS_QUEUED and point.attributes["flowcore.workflow.name"] == "trip"
        )
        shown = registry.get_sample_value(names.RUNS_QUEUED.prometheus, {"workflow": "trip"})
        return [there, shown or 0]

    hooks = [PrometheusHook(registry), MetricsHook(MeterProvider([reader]))]
    with Engine(hooks=hooks, max_workers=1, workflows=[wf]) as engine:
        assert queued() == [0, 0]
        engine.submit(ahead)
        futures = [engine.submit(wf) for _ in range(3)]
        assert queued() == [3, 3]
        futures[0].cancel()
        assert queued() == [2, 2]
        goes_on.set()
        assert [future.result().status for future in futures[1:]] == ["success"] * 2
        assert queued() == [0, 0]
    assert compared(reader, registry) > 30
    labels = {"workflow": "trip"}
    assert registry.get_sample_value("flowcore_run_queue_duration_seconds_count", labels) == 2
    assert (registry.get_sample_value("flowcore_run_queue_duration_seconds_sum", labels) or 0) > 0


def test_runs_that_are_refused_are_counted_by_error(both: Both) -> None:
    both.tell(WorkflowRegistered, ())
    down = {"workflow": "", "error_type": "flowcore.errors.StoreUnavailable"}
    assert both.value(names.RUNS_REFUSED, **down) == 0
    both.tell(RunRefused, "k", StoreUnavailable("down"))
    both.tell(RunRefused, "k", TypeError())
    both.tell(RunRefused, "k", LeaseLost("x"), True)  # recovery, and another process was faster
    assert both.value(names.RUNS_REFUSED, **down) == 1
    assert both.value(names.RUNS_REFUSED, workflow="", error_type="TypeError") == 1
    assert both.value(names.RUNS_REFUSED, workflow="", error_type="flowcore.errors.LeaseLost") is None


def test_a_step_whose_retries_are_made_by_another_owner_has_waited_once(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    reader, wf = InMemoryMetricReader(), Workflow("trip")

    def pay(ctx: Context) -> None:
        if ctx.attempt < 3:
            raise RetryAfter(0.03)

    wf.add_step("pay", pay, retry=3)
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    hooks = [PrometheusHook(registry), MetricsHook(MeterProvider([reader]))]
    with Engine(store=store, hooks=hooks, park_after=0.02) as engine:
        engine.run(wf, idempotency_key="k")
    assert compared(reader, registry) > 30

    def value(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, {"workflow": "trip", "step": "pay", **labels}) or 0

    assert value("flowcore_step_wait_duration_seconds_count") == 1
    assert value("flowcore_step_duration_seconds_count", outcome="success") == 1
    backed_off, took = (
        value("flowcore_step_backoff_seconds_total"),
        value("flowcore_step_duration_seconds_sum", outcome="success"),
    )
    assert 0.06 <= backed_off <= took
    attempts = sum(value("flowcore_step_attempt_duration_seconds_sum", outcome=end) for end in ("success", "failure"))
    assert attempts + backed_off <= took + 1e-6


def test_an_engine_that_is_closed_adds_no_threads_to_the_limit(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    hook = PrometheusHook(registry)
    drivers = [make_driver(hook, max_workers=number) for number in (3, 5)]
    for driver in drivers:
        driver.run(trip().wf)
    assert registry.get_sample_value("flowcore_workers_limit") == 8
    drivers[0].close()
    assert registry.get_sample_value("flowcore_workers_limit") == 5


def test_measurements_past_the_limit_are_counted_and_look_ups_are_not(both: Both) -> None:
    capped = {"hook": "PrometheusHook"}
    hook = PrometheusHook(both.registry, max_series=1)
    wf = Workflow("trip")
    for name in ("a", "b", "c"):
        wf.add_step(name, lambda ctx: None)
    with Engine(hooks=[hook], workflows=[wf]) as engine:
        assert both.registry.get_sample_value("flowcore_telemetry_capped_total", capped) == 0
        for runs in (1, 2):
            engine.run(wf)  # of two of its steps: a wait, an attempt and a duration each
            assert both.registry.get_sample_value("flowcore_telemetry_capped_total", capped) == runs * 6
    hook(StoreSurveyed("", "", 1.0, {}, {}, {("trip", "b"): 1, ("trip", "c"): 2}))
    other = {"workflow": "trip", "step": "_other"}
    assert both.registry.get_sample_value("flowcore_store_runs_waiting", other) == 3


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
    calls_have_ended(registry)
    assert compared(reader, registry) > 30
