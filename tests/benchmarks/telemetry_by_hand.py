"""What people write to watch their steps without hooks: spans in the steps themselves, counters and histograms there.

The same engine runs the steps, with nobody listening, so that what is compared is one way of telling with the other.
The spans have what TracingHook gives them: parent, attributes, link, being current inside user code; the measurements are
those of PrometheusHook, into children that were looked up once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from opentelemetry import context as otel, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import Link
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from flowcore import AsyncEngine, Engine, Workflow

from .subjects import Run, Subject
from .work import Step, Work

__all__ = ["ByHand", "Spans", "SpansAsync", "Unsampled", "UnsampledAsync", "measured"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class ByHand(Subject):
    """A silent engine. `around` is entered and left around each run, and answers what `step` needs."""

    def __init__(self) -> None:
        self._engine: Any = AsyncEngine() if self.is_async else Engine()

    def step(self, step: Step) -> Callable[[Any], Any]:
        raise NotImplementedError

    def begin(self) -> Any:
        raise NotImplementedError

    def end(self, watch: Any) -> None:
        raise NotImplementedError

    def prepare(self, work: Work) -> Run:
        wf = Workflow("benchmark")
        for step in work.steps:
            wf.add_step(step.name, self.step(step), depends_on=step.after)
        engine, begin, end = self._engine, self.begin, self.end

        async def run_async() -> None:
            watch = begin()
            await engine.run(wf, {"watch": watch})
            end(watch)

        def run() -> None:
            watch = begin()
            engine.run(wf, {"watch": watch})
            end(watch)

        return run_async if self.is_async else run


class _Trace:
    """One run's spans."""

    __slots__ = ("context", "ready", "span", "spans", "token")

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span)
        self.token = otel.attach(self.context)
        self.spans: dict[str, trace.Span] = {}
        self.ready = time.monotonic()


class Spans(ByHand):
    """A span for the run and one for each step, current inside it and linked to the step before."""

    name = "spans by hand"
    is_async = False
    sampler: ClassVar[Any] = ALWAYS_ON

    def __init__(self) -> None:
        super().__init__()
        self.tracer = TracerProvider(sampler=self.sampler).get_tracer("by.hand")

    def begin(self) -> _Trace:
        return _Trace(self.tracer.start_span("run benchmark", attributes={"flowcore.workflow.name": "benchmark"}))

    def end(self, watch: _Trace) -> None:
        if watch.span.is_recording():
            watch.span.set_attributes(
                {
                    "flowcore.run.id": "0" * 32,
                    "flowcore.run.outcome": "success",
                    "flowcore.run.critical_path": list(watch.spans),
                    "flowcore.run.critical_path.length": len(watch.spans),
                    "flowcore.run.critical_path.seconds": 0.001,
                    "flowcore.run.parallelism": 1.0,
                }
            )
        otel.detach(watch.token)
        watch.span.end()

    def step(self, step: Step) -> Callable[[Any], Any]:
        tracer, fn, name, title = self.tracer, step.fn, step.name, f"step {step.name}"
        about = {
            "flowcore.workflow.name": "benchmark",
            "flowcore.step.name": name,
            "flowcore.step.max_attempts": 1,
            "code.function.name": f"{fn.__module__}.{fn.__qualname__}",
        }
        if step.after:
            about |= {"flowcore.step.depends_on": list(step.after), "flowcore.step.depends_on.count": len(step.after)}

        def open_(watch: _Trace) -> trace.Span:
            links = [
                Link(watch.spans[other].get_span_context(), {"flowcore.link.type": "depends_on"})
                for other in step.after
            ]
            attributes = {**about, "flowcore.step.wait": time.monotonic() - watch.ready}
            span = watch.spans[name] = tracer.start_span(title, watch.context, attributes=attributes, links=links)
            return span

        def close(watch: _Trace, span: trace.Span, token: Any) -> None:
            otel.detach(token)
            span.set_attribute("flowcore.step.outcome", "success")
            span.end()
            watch.ready = time.monotonic()

        async def traced_async(ctx: Any) -> Any:
            watch = ctx["watch"]
            span = open_(watch)
            token = otel.attach(trace.set_span_in_context(span))
            try:
                return await fn(ctx)
            finally:
                close(watch, span, token)

        def traced(ctx: Any) -> Any:
            watch = ctx["watch"]
            span = open_(watch)
            token = otel.attach(trace.set_span_in_context(span))
            try:
                return fn(ctx)
            finally:
                close(watch, span, token)

        return traced_async if self.is_async else traced


class SpansAsync(Spans):
    name = "spans by hand, async"
    is_async = True


class Unsampled(Spans):
    """The least there is to do where a run is not sampled: its span is current, nothing else is made."""

    name = "unsampled by hand"
    sampler = ALWAYS_OFF

    def step(self, step: Step) -> Callable[[Any], Any]:
        return step.fn


class UnsampledAsync(Unsampled):
    name = "unsampled by hand, async"
    is_async = True


class _Measures:
    """What PrometheusHook exposes of runs that go well, with the children looked up once."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        registry = CollectorRegistry()
        of_step, ended = ["workflow", "step"], ["workflow", "step", "outcome"]

        def histogram(name: str, labels: list[str]) -> Histogram:
            return Histogram(name, name, labels, registry=registry, buckets=BUCKETS)

        waits, attempts, whole = histogram("w", of_step), histogram("a", ended), histogram("s", ended)
        self.wait = {step.name: waits.labels("benchmark", step.name).observe for step in steps}
        self.attempt = {step.name: attempts.labels("benchmark", step.name, "success").observe for step in steps}
        self.step = {step.name: whole.labels("benchmark", step.name, "success").observe for step in steps}
        self.run = histogram("r", ["workflow", "outcome"]).labels("benchmark", "success").observe
        self.ready = Gauge("ready", "ready", ["workflow"], registry=registry).labels("benchmark").inc
        self.active = Gauge("active", "active", ["workflow"], registry=registry).labels("benchmark").inc
        self.last = Gauge("last", "last", ["workflow"], registry=registry).labels("benchmark").set
        self.oldest = Gauge("oldest", "oldest", ["workflow"], registry=registry).labels("benchmark").set
        Counter("errors", "errors", of_step, registry=registry)


class _Watch:
    __slots__ = ("exemplar", "ready", "started")

    def __init__(self, exemplar: dict[str, str] | None) -> None:
        self.exemplar = exemplar
        self.started = self.ready = time.monotonic()


def measured(*, is_async: bool, exemplars: bool) -> type[ByHand]:
    """The subject that measures its steps by hand."""

    class Measured(ByHand):
        name = f"metrics by hand{', exemplars' if exemplars else ''}{', async' if is_async else ''}"

        def prepare(self, work: Work) -> Run:
            self.measures = _Measures(work.steps)
            return super().prepare(work)

        def begin(self) -> _Watch:
            exemplar = None
            if exemplars:
                span = trace.get_current_span().get_span_context()
                exemplar = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
            self.measures.active(1)
            self.measures.oldest(time.time())
            self.measures.ready(1)
            return _Watch(exemplar)

        def end(self, watch: _Watch) -> None:
            ended = time.monotonic()
            self.measures.ready(-1)  # `leave` has told of one step too many
            self.measures.active(-1)
            self.measures.oldest(float("inf"))
            self.measures.run(ended - watch.started, watch.exemplar)
            self.measures.last(time.time())

        def step(self, step: Step) -> Callable[[Any], Any]:
            fn, ready = step.fn, self.measures.ready
            wait = self.measures.wait[step.name]
            attempt, whole = self.measures.attempt[step.name], self.measures.step[step.name]

            def leave(watch: _Watch, started: float) -> None:
                ended = watch.ready = time.monotonic()
                attempt(ended - started, watch.exemplar)
                whole(ended - started, watch.exemplar)
                ready(1)

            async def measured_async(ctx: Any) -> Any:
                watch, started = ctx["watch"], time.monotonic()
                ready(-1)
                wait(started - watch.ready)
                try:
                    return await fn(ctx)
                finally:
                    leave(watch, started)

            def measured(ctx: Any) -> Any:
                watch, started = ctx["watch"], time.monotonic()
                ready(-1)
                wait(started - watch.ready)
                try:
                    return fn(ctx)
                finally:
                    leave(watch, started)

            return measured_async if is_async else measured

    Measured.is_async = is_async
    return Measured
