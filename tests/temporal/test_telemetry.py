"""Spans and counters of a run on Temporal are those of the same run on AsyncEngine."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from flowcore import AsyncEngine, Backoff, Retry, Workflow
from flowcore.stores import SQLiteStore
from flowcore_otel import LogContext, PrometheusHook, TracingHook
from tests.otel.conftest import Spans

from .conftest import Temporal


def checkout(*, declined: bool) -> Workflow:
    wf = Workflow("checkout")
    reserve = wf.add_step("reserve", lambda ctx: "r-1", retry=2)
    reserve.compensate(lambda ctx: None)

    @wf.step(depends_on=reserve, retry=Retry(3, Backoff.fixed(0)), timeout=30)
    async def charge(ctx: Any) -> str:
        if ctx.attempt == 1:
            raise ConnectionError("reset")
        return "c-1"

    charge.compensate(lambda ctx: None)
    wf.add_step("gift", lambda ctx: 1, depends_on=charge, when=lambda ctx: False)

    @wf.step(depends_on=["gift", reserve])
    def ship(ctx: Any) -> None:
        if declined:
            raise ValueError("no stock")

    return wf


def counts(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """All counters of runs, steps, attempts and undos that are not zero."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if family.type in {"counter", "histogram"}
        and sample.name.endswith(("_total", "_count"))
        and sample.value
        and not any(part in sample.name for part in ("store", "hook", "backoff_seconds"))
    }


@pytest.mark.parametrize("declined", [False, True], ids=["success", "undone"])
def test_spans_and_counters_are_those_of_asyncengine(temporal: Temporal, tmp_path: Path, declined: bool) -> None:
    found: list[tuple[str, dict[tuple[str, ...], float]]] = []

    async def here(wf: Workflow, hooks: Any) -> None:
        async with AsyncEngine(store=SQLiteStore(tmp_path / "runs.db"), hooks=hooks) as engine:
            await engine.run(wf, idempotency_key="k", check=False)
            await engine.run(wf, idempotency_key="k", check=False)

    async def there(wf: Workflow, hooks: Any) -> None:
        async with temporal.open(wf, hooks=hooks, worker_hooks=hooks) as engine:
            await engine.run(wf, idempotency_key="k", check=False)
            await engine.run(wf, idempotency_key="k", check=False)

    for drive in (here, there):
        spans, registry = Spans(), CollectorRegistry()
        hooks = [TracingHook(spans.provider), PrometheusHook(registry=registry), LogContext()]
        wf = checkout(declined=declined)
        if drive is here:
            asyncio.run(here(wf, hooks))
        else:
            temporal.run(lambda wf=wf, hooks=hooks: there(wf, hooks))  # type: ignore[misc]
        found.append((spans.tree(), counts(registry)))
    (tree, numbers), (on_temporal, numbers_there) = found
    assert on_temporal == tree
    assert "attempt charge" in tree
    assert ("compensate charge" in tree) is declined
    assert numbers_there == numbers
