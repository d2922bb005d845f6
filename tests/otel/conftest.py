"""Real engines, a real SDK that keeps its spans in memory, and registries of their own."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import Span
from prometheus_client import CollectorRegistry

from flowcore import AsyncEngine, Backoff, Engine, Retry, Run, Workflow
from flowcore_otel import TracingHook
from flowcore_otel.testing import span_tree


class Spans:
    """A tracer provider and what it has exported so far."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("the.application")

    def span(self, name: str) -> AbstractContextManager[Span]:
        """A span of the caller's own."""
        return self.tracer.start_as_current_span(name)

    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def clear(self) -> None:
        self.exporter.clear()

    def tree(self) -> str:
        return span_tree(self.all())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if span.name == name]

    def __getitem__(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


class Driver:
    """An engine of either kind, to be used from plain test functions."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.kind = kind
        self.engine: Any = Engine(**options) if kind == "threads" else AsyncEngine(**options)

    def run(self, workflow: Workflow, values: Any = None, **options: Any) -> Run:
        going = self.engine.run(workflow, values, **options)
        done: Run = going if self.kind == "threads" else asyncio.run(going)
        return done

    def submit(self, workflow: Workflow, values: Any = None, **options: Any) -> Run:
        """Submit, and wait for what comes of it."""

        async def wait() -> Run:
            done: Run = await self.engine.submit(workflow, values, **options)
            return done

        if self.kind == "asyncio":
            return asyncio.run(wait())
        done: Run = self.engine.submit(workflow, values, **options).result()
        return done

    def close(self) -> None:
        if self.kind == "threads":
            self.engine.close()
        else:
            asyncio.run(self.engine.aclose())


MakeDriver = Callable[..., Driver]


@pytest.fixture(params=["threads", "asyncio"])
def make_driver(request: pytest.FixtureRequest) -> Iterator[MakeDriver]:
    made: list[Driver] = []

    def make(*hooks: Any, **options: Any) -> Driver:
        made.append(Driver(request.param, hooks=hooks, **options))
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def driver(make_driver: MakeDriver, spans: Spans) -> Driver:
    """An engine with a TracingHook."""
    return make_driver(TracingHook(spans.provider))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def trip(*, fails: int = 0, attempts: int = 1, **of_pay: Any) -> Any:
    """A workflow `trip` of `book` (with an undo) and `pay`, which fails that many times before it succeeds."""
    wf = Workflow("trip")
    left = fails

    def book(ctx: Any) -> str:
        return "seat 7"

    def cancel(ctx: Any) -> None:
        assert ctx["book"] == "seat 7"

    def pay(ctx: Any) -> str:
        nonlocal left
        if left:
            left -= 1
            raise ValueError("declined")
        return "paid"

    booked = wf.add_step("book", book, compensate=cancel)
    retry = Retry(attempts, Backoff.fixed(0.002))
    wf.add_step("pay", pay, depends_on=booked, retry=retry, **of_pay)
    return SimpleNamespace(wf=wf, book=book, pay=pay)
