"""What TracingHook keeps of a run between its events, and what makes spans current."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from opentelemetry import context as otel, trace
from opentelemetry.trace import Link, Span, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flowcore.events import BackoffStarted, StepFinished, StepStarted

from . import names
from .exemplars import Exemplar, exemplar
from .timing import Ended

__all__ = [
    "UNTRACED",
    "AttemptSpans",
    "DeferredSpan",
    "StepSpans",
    "Suppressed",
    "Trace",
    "links",
    "make_current",
    "store",
    "stored",
]

_LINKED: Final = 16  # dependencies that a step links to


class Suppressed:
    """Keeps instrumented clients from making spans of the engine's own work."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        quiet = otel.set_value(otel._SUPPRESS_INSTRUMENTATION_KEY, True)  # pyright: ignore[reportPrivateUsage]
        # Some contrib instrumentations look for the plain name.
        self._token = otel.attach(otel.set_value("suppress_instrumentation", True, quiet))

    def __exit__(self, *_: object) -> None:
        otel.detach(self._token)


class AttemptSpans:
    """The attempts of a step, or an undo, that may have several."""

    __slots__ = ("attempt", "backoff", "ended", "started", "told")

    def __init__(self) -> None:
        self.attempt: Span | None = None
        """the latest one, of those that have spans"""
        self.started = self.ended = 0.0
        """when the latest one was"""
        self.backoff: BackoffStarted | None = None
        """that goes on"""
        self.told: BaseException | None = None
        """recorded by the latest attempt's span"""


class StepSpans:
    """The steps of a run, or their undos, while they run and after, by step."""

    __slots__ = ("exemplars", "spans", "tries")

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.tries: dict[str, AttemptSpans] = {}  # of those that may be attempted more than once
        self.exemplars: dict[str, Exemplar | None] = {}  # of the spans for which one was asked


class DeferredSpan:
    """A step past max_step_spans of which nothing has gone wrong so far: the events that its span would need."""

    __slots__ = ("finished", "started")

    def __init__(self, started: StepStarted) -> None:
        self.started = started
        self.finished: StepFinished | None = None


class Trace:
    """One run in one process. Steps may come from many threads at once; one step's events come one after another."""

    __slots__ = (
        *("before", "caller", "context", "ended", "epoch", "interrupted", "span", "started_at", "steps"),
        *("told", "undos", "untold"),
    )

    def __init__(self, span: Span, context: otel.Context, caller: Span, at: float, wall: int) -> None:
        self.span = span
        self.context = context  # with `span` in it
        self.caller = caller
        self.epoch = wall - int(at * 1e9)  # wall-clock nanoseconds of the monotonic clock's zero
        self.started_at = at
        self.interrupted: Sequence[Link] = ()  # to the run that this one goes on with
        self.before: Mapping[str, Mapping[str, str]] = {}  # carriers of the steps that had ended in that one
        self.steps = StepSpans()
        self.undos = StepSpans()
        self.untold: dict[str, DeferredSpan] = {}
        self.told: list[BaseException] = []  # recorded by the spans of steps and undos
        self.ended: list[Ended] = []

    def ns(self, at: float) -> int:
        """Wall-clock nanoseconds of a monotonic moment: spans stay in order even when the wall clock jumps."""
        return self.epoch + int(at * 1e9)

    def works(self, *, undo: bool) -> StepSpans:
        return self.undos if undo else self.steps

    def was_told(self, error: BaseException) -> bool:
        """Whether the span of a step or an undo has recorded `error`, or each error of the group that it is."""
        if any(error is other for other in self.told):
            return True
        if not isinstance(error, BaseExceptionGroup):
            return False
        return all(map(self.was_told, cast("BaseExceptionGroup[BaseException]", error).exceptions))

    def waited_for(self, depends_on: Sequence[str]) -> list[Link]:
        """Links to the dependencies that ended last."""
        # Skipped ones have no span.
        traced = [name for name in depends_on if name in self.steps.spans or name in self.before]
        if len(traced) > _LINKED:
            among = set(traced)
            latest = (name for name, *_ in reversed(self.ended) if name in among)
            # Those that ended before a takeover come after all that ended here, in whatever order.
            traced = list(dict.fromkeys((*latest, *traced)))[:_LINKED]
        return [link for name in traced for link in self.links_to(names.LINK_DEPENDS_ON, name)]

    def links_to(self, kind: str, step: str) -> list[Link]:
        """A link to a step's span, here or in the run that this one goes on with, if it has one."""
        span = self.steps.spans.get(step)
        if span is None and step in self.before:
            span = stored(self.before[step])
        return links(kind, span)

    @property
    def sampled(self) -> bool:
        """See `exemplars.Traced`."""
        return _sampled(self.span.get_span_context())

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """See `exemplars.Traced`."""
        works = self.undos if undo else self.steps
        span = works.spans.get(step) if step is not None else None
        if step is None or span is None:
            return exemplar(self.span.get_span_context())
        if attempt and (tries := works.tries.get(step)) is not None and tries.attempt is not None:
            return exemplar(tries.attempt.get_span_context())
        if step not in works.exemplars:
            works.exemplars[step] = exemplar(span.get_span_context())
        return works.exemplars[step]


class _Untraced:
    """What stands for the spans of a run that has none."""

    sampled = False

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        return None


UNTRACED: Final = _Untraced()


def make_current(span: Span) -> None:
    """For user code, and for the rest of what is told of it: the contextvars context that an event is told in is the
    run's, the step's or the attempt's own, and ends with it."""
    otel.attach(trace.set_span_in_context(span))


def links(kind: str, *spans: Span | None) -> list[Link]:
    """Links to those of `spans` that have a trace to look at."""
    made: list[Link] = []
    for span in spans:
        if span is not None:
            context = span.get_span_context()
            if _sampled(context):
                made.append(Link(context, {names.LINK_TYPE: kind}))
    return made


def _sampled(span: SpanContext) -> bool:
    return span.is_valid and span.trace_flags.sampled


_CARRIERS: Final = TraceContextTextMapPropagator()


def store(span: SpanContext, carrier: dict[str, str]) -> bool:
    """Put a span's context in a carrier: what TraceContextTextMapPropagator does, without a detour over a context.

    Answers whether there is one: not without an SDK.
    """
    if not span.is_valid:
        return False
    ids = span.trace_id.to_bytes(16).hex(), span.span_id.to_bytes(8).hex()  # the fastest way to hex digits
    carrier["traceparent"] = f"00-{ids[0]}-{ids[1]}-{span.trace_flags:02x}"
    if span.trace_state:
        carrier["tracestate"] = span.trace_state.to_header()
    return True


def stored(carrier: Mapping[str, str]) -> Span:
    """The span whose context a carrier has; invalid where there is none or it makes no sense."""
    try:
        return trace.get_current_span(_CARRIERS.extract(carrier, otel.Context()))
    except Exception:  # noqa: BLE001 - a foreign record may hold anything
        return trace.INVALID_SPAN
