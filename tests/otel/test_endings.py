"""Runs that end in other ways than well or badly: interrupted, refused, adopted, cut short."""

import asyncio
import threading
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from flowcore import AsyncEngine, Backoff, Context, Engine, Retry, StepCancelled, StoreUnavailable, Workflow
from flowcore.events import Event, StepCompletedLate
from flowcore.stores import MemoryStore
from flowcore_otel import PrometheusHook, TracingHook

from .conftest import Driver, MakeDriver, Spans, trip
from .test_trees import golden


def test_a_step_that_is_interrupted_by_its_user(spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None: ...

    @book.compensate
    def cancel(ctx: Context) -> None: ...

    @wf.step(depends_on=book)
    def pay(ctx: Context) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(hooks=[TracingHook(spans.provider)]).run(wf)
    assert spans.tree() == golden("""
        run trip ERROR KeyboardInterrupt
        ├── step book
        ├── step pay ERROR cancelled ! KeyboardInterrupt → depends_on step book
        └── compensate book → compensates step book
            └── attempt book
    """)


def test_a_cancelled_task(spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    async def book(ctx: Context) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(AsyncEngine(hooks=[TracingHook(spans.provider)]).run(wf))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [(span.name, (span.attributes or {})["error.type"]) for span in spans.all()] == [
        ("step book", "cancelled"),
        ("run trip", "cancelled"),
    ]


def test_a_run_that_is_cancelled_by_its_engine(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None:
        driver.engine.cancel(ctx.run_id)
        while not ctx.cancelled:
            time.sleep(0.001)

    with pytest.raises(StepCancelled):
        driver.run(wf)
    assert spans.tree() == golden("""
        run trip ERROR cancelled ! cancelled
        └── step book
    """)


def test_a_backoff_that_is_cut_short_by_a_siblings_failure_ends_with_its_step(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    waiting = threading.Event()

    @wf.step(retry=Retry(2, Backoff.fixed(30)))
    def flaky(ctx: Context) -> None:
        waiting.set()
        raise OSError("busy")

    @wf.step
    def fails(ctx: Context) -> None:
        assert waiting.wait(10)
        time.sleep(0.02)
        raise ValueError("declined")

    started = time.monotonic()
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf)
    assert time.monotonic() - started < 10
    backoff, step = spans["backoff flaky"], spans["step flaky"]
    assert backoff.attributes["flowcore.backoff.delay"] == 30
    assert backoff.end_time == step.end_time
    assert step.attributes["error.type"] == "OSError"


def test_an_adopted_outcome_leads_to_the_run_that_was_waited_for(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    started, go_on = threading.Event(), threading.Event()

    @wf.step
    def book(ctx: Context) -> str:
        started.set()
        assert go_on.wait(10)
        return "seat 7"

    first = threading.Thread(target=driver.run, args=(wf,), kwargs={"idempotency_key": "T-1"})
    first.start()
    assert started.wait(10)
    threading.Timer(0.05, go_on.set).start()
    assert driver.run(wf, idempotency_key="T-1", wait=10)["book"] == "seat 7"
    first.join(10)
    assert spans.tree() == golden("""
        run trip
        └── step book
        idempotency hit trip → original_run run trip
    """)
    assert spans["idempotency hit trip"].attributes["flowcore.idempotency.outcome"] == "adopted"


class Down(MemoryStore):
    def claim(self, claim: Any) -> Any:
        raise StoreUnavailable


def test_a_store_that_is_down_fails_the_request(make_driver: MakeDriver, spans: Spans) -> None:
    registry = CollectorRegistry()
    driver = make_driver(TracingHook(spans.provider), PrometheusHook(registry), store=Down())
    with pytest.raises(StoreUnavailable):
        driver.run(trip().wf, idempotency_key="T-1")
    assert spans.tree() == ("run trip ERROR flowcore.errors.StoreUnavailable ! flowcore.errors.StoreUnavailable")
    assert "flowcore.run.id" not in (spans["run trip"].attributes or {})
    assert registry.get_sample_value("flowcore_runs_active", {"workflow": "trip"}) == 0


def test_a_late_completion_in_an_async_engine_is_counted(registry: CollectorRegistry, spans: Spans) -> None:
    wf = Workflow("trip")
    go_on, reported = threading.Event(), threading.Event()
    wf.add_step("book", lambda ctx: go_on.wait(10), timeout=0.02)

    def tell(event: Event) -> None:
        if isinstance(event, StepCompletedLate):
            reported.set()

    async def main() -> None:
        engine = AsyncEngine(hooks=[TracingHook(spans.provider), PrometheusHook(registry), tell])
        with pytest.raises(TimeoutError):
            await engine.run(wf)
        go_on.set()
        assert await asyncio.to_thread(reported.wait, 10)

    asyncio.run(main())
    labels = {"workflow": "trip", "step": "book"}
    assert registry.get_sample_value("flowcore_step_late_completions_total", labels) == 1
