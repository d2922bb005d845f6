"""Waits in telemetry: events of the run's span, a link to who sent the value, and runs that wait are no failures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from flowcore import AsyncEngine, Engine, Workflow
from flowcore.stores import SQLiteStore
from flowcore_otel import PrometheusHook, TracingHook

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
