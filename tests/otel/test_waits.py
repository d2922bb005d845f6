"""Waits in telemetry: events of the run's span, a link to who sent the value, and runs that wait are no failures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from flowcore import AsyncEngine, Context, Engine, RetryAfter, Workflow
from flowcore._durable import recovery
from flowcore.stores import SQLiteStore
from flowcore_otel import MetricsHook, PrometheusHook, TracingHook, names

from .conftest import Spans


def approval() -> Workflow:
    wf = Workflow("order")
    wf.add_step("quote", lambda ctx: 1, effect=False)
    wf.wait("approved", depends_on="quote", timeout=60)
    wf.add_step("ship", lambda ctx: ctx["approved"], depends_on="approved")
    return wf


def events(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_a_wait_is_an_event_of_its_runs_span_linked_to_the_sender(driver: str, spans: Spans) -> None:
    hook = TracingHook(spans.provider)

    async def main() -> None:
        async with AsyncEngine(hooks=[hook]) as engine:
            future = engine.submit(approval(), idempotency_key="k")
            await future.waiting()
            with spans.span("the click"):
                await engine.send("k", "approved", 1)
            await future

    if driver == "asyncio":
        asyncio.run(main())
    else:
        with Engine(hooks=[hook]) as engine:
            future = engine.submit(approval(), idempotency_key="k")
            future.waiting(20)
            with spans.span("the click"):
                engine.send("k", "approved", 1)
            future.result(20)
    run = spans["run order"]
    (began, first), (ended, last) = events(run)
    assert (began, first) == ("flowcore.wait.started", {"flowcore.step.name": "approved", "flowcore.wait.timeout": 60})
    assert ended == "flowcore.wait.finished"
    assert last["flowcore.step.outcome"] == "success"
    assert last["flowcore.wait.seconds"] >= 0
    (link,) = [one for one in run.links if (one.attributes or {})["flowcore.link.type"] == "sender"]
    assert link.context.span_id == spans["the click"].context.span_id
    assert not spans.named("step approved")


def test_a_run_that_waits_in_its_store_has_a_span_for_each_of_its_parts_and_is_counted_once(
    spans: Spans, registry: CollectorRegistry, tmp_path: Path
) -> None:
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    hooks = [TracingHook(spans.provider), PrometheusHook(registry)]
    with Engine(store=store, hooks=hooks) as engine:
        engine.run(approval(), idempotency_key="k", until="waiting")
        first = spans["run order"]
        assert (first.attributes or {})["flowcore.run.outcome"] == "waiting"
        assert first.status.status_code is StatusCode.UNSET
        assert "error.type" not in (first.attributes or {})
        assert registry.get_sample_value("flowcore_runs_active", {"workflow": "order"}) == 0
        with spans.span("the click"):
            assert engine.send("k", "approved", 1)
        spans.clear()
        engine.run(approval(), idempotency_key="k")
    second = spans["run order"]
    kinds = {(link.attributes or {})["flowcore.link.type"]: link.context.span_id for link in second.links}
    assert kinds["interrupted_run"] == first.context.span_id
    assert "sender" in kinds
    counted = {
        sample.labels["outcome"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "flowcore_runs_total" and sample.value
    }
    assert counted == {"success": 1}
    assert not [
        sample for metric in registry.collect() for sample in metric.samples if "waiting" in sample.labels.values()
    ]


def samples(registry: CollectorRegistry, reader: InMemoryMetricReader, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric of waits by workflow and step, which both sinks have."""
    metric = next(one for one in names.METRICS if one.name == name)
    suffix = "_count" if metric.kind == "histogram" else ""
    found = {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == metric.prometheus + suffix
    }
    data = reader.get_metrics_data()
    points = [
        point
        for resource in (data.resource_metrics if data is not None else [])
        for scope in resource.scope_metrics
        for one in scope.metrics
        if one.name == name
        for point in one.data.data_points
    ]
    others = {
        tuple(str((point.attributes or {})[names.LABELS[label]]) for label in metric.labels): getattr(
            point, "count", getattr(point, "value", 0)
        )
        for point in points
    }
    assert others == {labels: value for labels, value in found.items() if value or labels in others}
    return found


def test_waiting_runs_are_counted_by_step_and_what_they_waited_is_measured(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    reader = InMemoryMetricReader()
    wf = approval()
    late = Workflow("late")
    late.wait("paid", timeout=0.01)
    later = Workflow("later")

    def call(ctx: Context) -> None:
        raise RetryAfter(86_400)

    later.add_step("call", call, retry=3)
    hooks = [PrometheusHook(registry), MetricsHook(MeterProvider([reader]))]
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store, hooks=hooks, workflows=[wf, late, later]) as engine:
        for key in ("a", "b", "c"):
            engine.run(wf, idempotency_key=key, until="waiting")
        engine.run(later, idempotency_key="d", until="waiting")
        engine.run(late, check=False)
        engine.recover()
        assert samples(registry, reader, "flowcore.store.runs.waiting") == {
            ("order", "approved"): 3,
            ("later", "call"): 1,
        }
        for key in ("a", "b", "c"):
            engine.send(key, "approved", 1)
            engine.run(wf, idempotency_key=key, wait=20)
        engine.recover()
        assert samples(registry, reader, "flowcore.store.runs.waiting") == {
            ("order", "approved"): 0,
            ("later", "call"): 1,
        }
        waited = samples(registry, reader, "flowcore.wait.duration")
        assert waited["order", "approved", "success"] == 3
        assert waited["late", "paid", "timeout"] == 1
        assert waited["late", "paid", "success"] == 0


def test_past_a_thousand_waiting_runs_the_steps_are_estimated_from_the_newest(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(recovery, "_SAMPLED", 4)
    wf = approval()
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store, hooks=[PrometheusHook(registry)], workflows=[wf]) as engine:
        for number in range(10):
            engine.run(wf, idempotency_key=str(number), until="waiting")
        engine.recover()
        labels = {"workflow": "order", "step": "approved"}
        assert registry.get_sample_value("flowcore_store_runs_waiting", labels) == 10
