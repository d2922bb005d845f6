"""What TracingHook keeps of a run between its events, and the scopes that make spans current."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from opentelemetry import context as otel, trace
from opentelemetry.trace import Link, Span

from flowcore.events import BackoffStarted, StepFinished, StepStarted

from . import names
from .exemplars import Exemplar, exemplar
from .timing import CriticalPath

__all__ = ["Scope", "Suppressed", "Trace", "Work", "links"]

_LINKED: Final = 16  # dependencies that a step links to
_EMPTY: Final = otel.Context()


class Scope:
    """Makes a span current for as long as it is entered."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> None:
        self._token = otel.attach(trace.set_span_in_context(self._span))

    def __exit__(self, *_: object) -> None:
        otel.detach(self._token)


class Suppressed:
    """Keeps instrumented clients from making spans of the engine's own work."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        quiet = otel.set_value(otel._SUPPRESS_INSTRUMENTATION_KEY, True)  # pyright: ignore[reportPrivateUsage]
        # Some contrib instrumentations look for the plain name.
        self._token = otel.attach(otel.set_value("suppress_instrumentation", True, quiet))

    def __exit__(self, *_: object) -> None:
        otel.detach(self._token)


class Work:
    """A step, or an undo, while it runs and after.

    Without a span it is a step past max_step_spans of which nothing has gone wrong so far; it keeps the events that a
    span would need.
    """

    finished: StepFinished | None = None
    ended = 0.0
    attempt: Span | None = None
    """the latest one, of those that have spans"""
    attempt_at = 0.0
    attempt_ended = 0.0
    backoff: BackoffStarted | None = None
    told: BaseException | None = None
    """recorded by the latest attempt's span"""

    def __init__(self, span: Span | None = None, started: StepStarted | None = None) -> None:
        self.span = span
        self.started = started


class Trace:
    """One run in one process. Steps may come from many threads at once; one step's events come one after another."""

    __slots__ = ("at", "caller", "context", "path", "request", "span", "started_at", "steps", "told", "undos", "wall")

    def __init__(self) -> None:
        self.request: Span | None = None
        self.caller: Span = trace.INVALID_SPAN
        self.span: Span = trace.INVALID_SPAN
        self.context: otel.Context = _EMPTY  # with `span` in it
        self.at = self.started_at = 0.0
        self.wall = 0
        self.steps: dict[str, Work] = {}
        self.undos: dict[str, Work] = {}
        self.told: list[BaseException] = []  # recorded by the spans of steps and undos
        self.path = CriticalPath()

    def ns(self, at: float) -> int:
        """Wall-clock nanoseconds of a monotonic moment: spans stay in order even when the wall clock jumps."""
        return self.wall + int((at - self.at) * 1e9)

    def of(self, step: str, *, undo: bool) -> Work:
        return (self.undos if undo else self.steps)[step]

    def was_told(self, error: BaseException | None) -> bool:
        """Whether the span of a step or an undo has recorded `error`, or each error of the group that it is."""
        if any(error is other for other in self.told):
            return True
        if not isinstance(error, BaseExceptionGroup):
            return False
        return all(map(self.was_told, cast("BaseExceptionGroup[BaseException]", error).exceptions))

    def waited_for(self, depends_on: Sequence[str]) -> list[Link]:
        """Links to the dependencies that ended last."""
        if len(depends_on) == 1:
            only = self.steps.get(depends_on[0])
            return links(names.LINK_DEPENDS_ON, only.span) if only is not None else []
        works = [self.steps[name] for name in depends_on if name in self.steps]
        if len(works) > 1:
            works.sort(key=lambda work: work.ended)
        return links(names.LINK_DEPENDS_ON, *[work.span for work in works if work.span is not None][-_LINKED:])

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """See `exemplars.Traced`."""
        work = (self.undos if undo else self.steps).get(step) if step is not None else None
        span = (work.attempt if attempt else None) or work.span if work is not None else None
        return exemplar((span or self.span).get_span_context())


def links(kind: str, *spans: Span | None) -> list[Link]:
    """Links to those of `spans` that have a trace to look at."""
    made: list[Link] = []
    for span in spans:
        if span is not None:
            context = span.get_span_context()
            if context.trace_flags.sampled and context.is_valid:
                made.append(Link(context, {names.LINK_TYPE: kind}))
    return made
