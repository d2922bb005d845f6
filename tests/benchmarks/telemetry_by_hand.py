"""What people write to watch their steps without hooks: spans in the steps themselves, counters and histograms there.

The same engine runs the steps, without hooks, so that only the two ways of making telemetry are compared.

By hand too, the spans have all that TracingHook gives to a run that goes well: parents, the same attributes with true
values (waits, the run's id, its critical path and parallelism), the links, and being current inside user code; and a step
that fails would say so. As with the hook, whether sampled or not, the caller's span is told the run's id, and the trace's
context is recorded for the processes that resume the run. Not done by hand: retries, undos, limits, and hooks for others.
The measurements are those that PrometheusHook makes of a run that goes well, or of a step that fails, into
children that were looked up once; by hand its three gauges are written as runs and steps come and go.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
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

__all__ = ["ByHand", "Plain", "PlainAsync", "Spans", "SpansAsync", "Unsampled", "UnsampledAsync", "measured"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class ByHand(Subject):
    """A silent engine. `begin` and `end` stand around each run; what the first answers comes to the steps as "watch"."""

    def __init__(self) -> None:
        self._engine: Any = AsyncEngine() if self.is_async else Engine()

    @abstractmethod
    def step(self, step: Step) -> Callable[[Any], Any]:
        """The step's function, and what watches it."""

    @abstractmethod
    def begin(self) -> Any:
        """A run starts: answers what its steps need to know."""

    @abstractmethod
    def end(self, watch: Any) -> None:
        """The run has ended."""

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

    __slots__ = ("carrier", "context", "ready", "run_id", "span", "spans", "started", "token", "took")

    def __init__(self, span: trace.Span) -> None:
        self.span = span
        self.run_id = os.urandom(16).hex()
        trace.get_current_span().set_attribute("flowcore.run.id", self.run_id)
        self.carrier: dict[str, str] = {}
        where = span.get_span_context()
        if where.is_valid:
            self.carrier["traceparent"] = f"00-{where.trace_id:032x}-{where.span_id:016x}-{where.trace_flags:02x}"
            if where.trace_state:
                self.carrier["tracestate"] = where.trace_state.to_header()
        self.context = trace.set_span_in_context(span)
        self.token = otel.attach(self.context)
        self.spans: dict[str, trace.Span] = {}
        self.took: list[tuple[str, float, tuple[str, ...]]] = []
        self.started = self.ready = time.monotonic()

    def longest(self) -> tuple[list[str], float, float]:
        """The chain of steps that took longest, its seconds, and those of all steps."""
        chains: dict[str, tuple[float, str | None]] = {}
        total, last = 0.0, None
        for name, seconds, after in self.took:
            before = max(after, key=lambda other: chains[other][0]) if after else None
            chains[name] = (seconds + (chains[before][0] if before is not None else 0.0), before)
            total += seconds
            if last is None or chains[name][0] > chains[last][0]:
                last = name
        whole, path = chains[last][0] if last is not None else 0.0, list[str]()
        while last is not None:
            path.append(last)
            last = chains[last][1]
        return path[::-1], whole, total


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
            path, seconds, total = watch.longest()
            watch.span.set_attributes(
                {
                    "flowcore.run.id": watch.run_id,
                    "flowcore.run.outcome": "success",
                    "flowcore.run.critical_path": path,
                    "flowcore.run.critical_path.length": len(path),
                    "flowcore.run.critical_path.seconds": seconds,
                    "flowcore.run.parallelism": total / (time.monotonic() - watch.started),
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

        def open_(watch: _Trace) -> tuple[trace.Span, float, Any]:
            links = [
                Link(watch.spans[other].get_span_context(), {"flowcore.link.type": "depends_on"})
                for other in step.after
            ]
            started = time.monotonic()
            attributes = {**about, "flowcore.run.id": watch.run_id, "flowcore.step.wait": started - watch.ready}
            span = watch.spans[name] = tracer.start_span(title, watch.context, attributes=attributes, links=links)
            return span, started, otel.attach(trace.set_span_in_context(span))

        def close(watch: _Trace, span: trace.Span, started: float, token: Any, outcome: str = "success") -> None:
            otel.detach(token)
            span.set_attribute("flowcore.step.outcome", outcome)
            span.end()
            watch.ready = time.monotonic()
            watch.took.append((name, watch.ready - started, step.after))

        def fail(watch: _Trace, span: trace.Span, started: float, token: Any, error: Exception) -> None:
            span.record_exception(error)
            span.set_status(trace.StatusCode.ERROR, str(error))
            span.set_attribute("error.type", type(error).__qualname__)
            close(watch, span, started, token, "failure")

        async def traced_async(ctx: Any) -> Any:
            watch = ctx["watch"]
            span, started, token = open_(watch)
            try:
                value = await fn(ctx)
            except Exception as error:
                fail(watch, span, started, token, error)
                raise
            close(watch, span, started, token)
            return value

        def traced(ctx: Any) -> Any:
            watch = ctx["watch"]
            span, started, token = open_(watch)
            try:
                value = fn(ctx)
            except Exception as error:
                fail(watch, span, started, token, error)
                raise
            close(watch, span, started, token)
            return value

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


class Plain(ByHand):
    """What most people write first: `start_as_current_span` around each step, and no attribute, link or wait."""

    name = "plain spans"
    is_async = False

    def __init__(self) -> None:
        super().__init__()
        self.tracer = TracerProvider().get_tracer("plain")

    def begin(self) -> tuple[trace.Span, Any]:
        span = self.tracer.start_span("run benchmark")
        return span, otel.attach(trace.set_span_in_context(span))

    def end(self, watch: tuple[trace.Span, Any]) -> None:
        span, token = watch
        otel.detach(token)
        span.end()

    def step(self, step: Step) -> Callable[[Any], Any]:
        start, fn, title = self.tracer.start_as_current_span, step.fn, f"step {step.name}"

        async def traced_async(ctx: Any) -> Any:
            with start(title):
                return await fn(ctx)

        def traced(ctx: Any) -> Any:
            with start(title):
                return fn(ctx)

        return traced_async if self.is_async else traced


class PlainAsync(Plain):
    name = "plain spans, async"
    is_async = True


class _Measures:
    """What PrometheusHook exposes of runs that go well, with the children looked up once."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        registry = CollectorRegistry()
        of_step, ended = ["workflow", "step"], ["workflow", "step", "outcome"]

        def histogram(name: str, labels: list[str]) -> Histogram:
            return Histogram(name, name, labels, registry=registry, buckets=BUCKETS)

        waits, whole = histogram("w", of_step), histogram("s", ended)
        attempts = Counter("a", "a", ended, registry=registry)
        outcomes = [(step.name, outcome) for step in steps for outcome in ("success", "failure")]
        self.wait = {step.name: waits.labels("benchmark", step.name).observe for step in steps}
        self.attempt = {pair: attempts.labels("benchmark", *pair).inc for pair in outcomes}
        self.step = {pair: whole.labels("benchmark", *pair).observe for pair in outcomes}
        runs = Counter("runs", "runs", ["workflow", "outcome"], registry=registry)
        self.runs = runs.labels("benchmark", "success").inc
        self.run = histogram("r", ["workflow", "outcome"]).labels("benchmark", "success").observe
        self.ready = Gauge("ready", "ready", ["workflow"], registry=registry).labels("benchmark").inc
        self.active = Gauge("active", "active", ["workflow"], registry=registry).labels("benchmark").inc
        self.last = Gauge("last", "last", ["workflow"], registry=registry).labels("benchmark").set
        last_end = Gauge("last_end", "last end", ["workflow", "outcome"], registry=registry)
        self.last_end = last_end.labels("benchmark", "success").set
        self.oldest = Gauge("oldest", "oldest", ["workflow"], registry=registry).labels("benchmark").set
        self.errors = Counter("errors", "errors", [*of_step, "error_type"], registry=registry)


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
            self.measures.runs(1, watch.exemplar)
            self.measures.run(ended - watch.started, watch.exemplar)
            now = time.time()
            self.measures.last(now)
            self.measures.last_end(now)

        def step(self, step: Step) -> Callable[[Any], Any]:
            fn, ready = step.fn, self.measures.ready
            wait = self.measures.wait[step.name]
            attempt, whole = (of[step.name, "success"] for of in (self.measures.attempt, self.measures.step))

            def leave(watch: _Watch, started: float) -> None:
                ended = watch.ready = time.monotonic()
                attempt(1, watch.exemplar)
                whole(ended - started, watch.exemplar)
                ready(1)

            def fail(watch: _Watch, started: float, error: Exception) -> None:
                took, measures = time.monotonic() - started, self.measures
                measures.attempt[step.name, "failure"](1, watch.exemplar)
                measures.step[step.name, "failure"](took, watch.exemplar)
                measures.errors.labels("benchmark", step.name, type(error).__qualname__).inc(1, watch.exemplar)

            async def measured_async(ctx: Any) -> Any:
                watch, started = ctx["watch"], time.monotonic()
                ready(-1)
                wait(started - watch.ready)
                try:
                    value = await fn(ctx)
                except Exception as error:
                    fail(watch, started, error)
                    raise
                leave(watch, started)
                return value

            def measured(ctx: Any) -> Any:
                watch, started = ctx["watch"], time.monotonic()
                ready(-1)
                wait(started - watch.ready)
                try:
                    value = fn(ctx)
                except Exception as error:
                    fail(watch, started, error)
                    raise
                leave(watch, started)
                return value

            return measured_async if is_async else measured

    Measured.is_async = is_async
    return Measured
