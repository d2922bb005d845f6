"""The metrics of schedules, in Prometheus and in OpenTelemetry, from events and from a real engine."""

import threading
from contextlib import closing
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from flowcore import Engine, Workflow
from flowcore.events import ScheduleFired, ScheduleMissed, SchedulePlanned, schedule_of
from flowcore.stores import SQLiteStore
from flowcore_otel import MetricsHook, PrometheusHook

OF = {"workflow": "settle", "schedule": "hourly"}


def test_what_is_planned_begun_and_missed(registry: CollectorRegistry) -> None:
    reader = InMemoryMetricReader()
    for hook in (PrometheusHook(registry), MetricsHook(MeterProvider([reader]))):
        hook(SchedulePlanned("settle", "", 1.0, {}, "hourly", 1000.0))
        if isinstance(hook, PrometheusHook):
            assert registry.get_sample_value("flowcore_schedule_missed_total", {**OF, "reason": "down"}) == 0
            assert registry.get_sample_value("flowcore_schedule_lateness_seconds_count", OF) == 0
        hook(ScheduleFired("settle", "", 1.0, {}, "hourly", 1000.0, 0.5))
        hook(ScheduleMissed("settle", "", 1.0, {}, "hourly", 3, "down", 900.0))
        hook(SchedulePlanned("settle", "", 1.0, {}, "hourly", 4600.0))
        hook(SchedulePlanned("settle", "", 1.0, {}, "hourly", None))
    assert registry.get_sample_value("flowcore_schedule_next_fire_timestamp_seconds", OF) == 4600.0
    assert registry.get_sample_value("flowcore_schedule_lateness_seconds_sum", OF) == 0.5
    assert registry.get_sample_value("flowcore_schedule_missed_total", {**OF, "reason": "down"}) == 3
    data = reader.get_metrics_data()
    assert data is not None
    found = {metric.name for metrics in data.resource_metrics[0].scope_metrics for metric in metrics.metrics}
    assert {f"flowcore.schedule.{name}" for name in ("next_fire.timestamp", "lateness", "missed")} <= found


def test_a_scheduled_run_that_succeeds_is_its_schedules_last_success(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    ran, wf = threading.Event(), Workflow("settle")
    wf.add_step("a", lambda ctx: ran.set())
    hook = PrometheusHook(registry)
    with closing(SQLiteStore(tmp_path / "runs.db")) as store, Engine(store=store, hooks=[hook]) as engine:
        engine.run(wf, idempotency_key="by hand")
        assert registry.get_sample_value("flowcore_schedule_last_success_timestamp_seconds", OF) is None
        ran.clear()
        engine.schedule(wf, every=1, name="hourly")
        assert ran.wait(20)
    last = registry.get_sample_value("flowcore_schedule_last_success_timestamp_seconds", OF)
    assert last is not None
    assert last == registry.get_sample_value("flowcore_run_last_success_timestamp_seconds", {"workflow": "settle"})
    assert (registry.get_sample_value("flowcore_schedule_lateness_seconds_count", OF) or 0) >= 1


def test_the_name_of_a_schedule_is_in_its_keys() -> None:
    assert schedule_of("schedule/hourly/2026-03-29T01:00:00Z") == "hourly"
    assert schedule_of("order-7") is None
