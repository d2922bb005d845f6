"""The step's span is current inside user code, wherever that code runs: libraries that make spans need no help."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest
from opentelemetry import trace

from flowcore import AsyncEngine, Context, Engine, Workflow
from flowcore_otel import TracingHook

from .conftest import Driver, Spans


class Instrumented(sqlite3.Connection):
    """What instrumentation makes of a database client: it knows its own tracer and nothing of workflows."""

    tracer: trace.Tracer

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        with self.tracer.start_as_current_span(sql.split(maxsplit=1)[0], kind=trace.SpanKind.CLIENT):
            return super().execute(sql, *args)


@pytest.fixture
def query(spans: Spans) -> Callable[[], None]:
    tracer = spans.provider.get_tracer("a.database.client")

    def run() -> None:
        connection = sqlite3.connect(":memory:", factory=Instrumented)
        connection.tracer = tracer
        connection.execute("SELECT 1")
        connection.close()

    return run


def expect_nested(spans: Spans, *, under: str = "step book") -> None:
    client, parent = spans["SELECT"], spans[under]
    assert client.parent is not None
    assert parent.context is not None
    assert client.parent.span_id == parent.context.span_id
    assert client.context.trace_id == spans["run trip"].context.trace_id


async def run_async(spans: Spans, wf: Workflow) -> None:
    async with AsyncEngine(hooks=[TracingHook(spans.provider)]) as engine:
        await engine.run(wf)


def test_in_an_async_step(spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")

    @wf.step
    async def book(ctx: Context) -> None:
        await asyncio.sleep(0)
        query()

    asyncio.run(run_async(spans, wf))
    expect_nested(spans)


def test_in_a_task_that_an_async_step_starts(spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")

    @wf.step
    async def book(ctx: Context) -> None:
        async def later() -> None:
            query()

        await asyncio.create_task(later())

    asyncio.run(run_async(spans, wf))
    expect_nested(spans)


def test_in_a_sync_step(spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: query())
    with Engine(hooks=[TracingHook(spans.provider)]) as engine:
        engine.run(wf)
    expect_nested(spans)


def test_in_a_sync_step_of_an_async_engine(spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: query())
    asyncio.run(run_async(spans, wf))
    expect_nested(spans)


def test_in_a_step_with_a_timeout(driver: Driver, spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: query(), timeout=5)
    driver.run(wf)
    expect_nested(spans)


def test_in_an_attempt(driver: Driver, spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: query(), retry=2, timeout=5)
    driver.run(wf)
    expect_nested(spans, under="attempt book")


def test_in_a_parallel_step_on_another_thread(driver: Driver, spans: Spans, query: Callable[[], None]) -> None:
    wf = Workflow("trip")
    for number in range(8):
        wf.add_step(f"s{number}", lambda ctx: query())
    driver.run(wf)
    steps = {span.context.span_id for span in spans.all() if span.name.startswith("step ")}
    assert {span.parent.span_id for span in spans.named("SELECT") if span.parent} == steps
    assert len(steps) == 8


def test_the_callers_context_is_as_it_was(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: None)
    with spans.span("caller") as caller:
        before = dict(copy_context().items())
        driver.run(wf)
        assert trace.get_current_span() is caller
        assert dict(copy_context().items()) == before
