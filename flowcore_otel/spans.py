"""The state that TracingHook keeps of a run: its spans and its critical path; and helpers for links and carriers."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

from opentelemetry import context as otel, trace
from opentelemetry.trace import Link, Span, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from flowcore.events import BackoffStarted, StepFinished, StepStarted

from . import names
from .context import Exemplar, exemplar

__all__ = [
    "UNTRACED",
    "AttemptSpans",
    "DeferredSpan",
    "StepSpans",
    "Suppressed",
    "Trace",
    "current_span",
    "links",
    "make_current",
    "store",
    "stored",
]

Ended = tuple[str, float | None, Sequence[str]]
"""a step that has ended: its name, the seconds it took (None if it was skipped), and its dependencies"""


class CriticalPath:
    """The chain of dependent steps that took longest. A run gets faster only if this chain does.

    `ended`: the run's steps in an order in which dependencies come before their dependants.
    """

    __slots__ = ("_chains", "seconds", "steps", "total")

    def __init__(self, ended: Iterable[Ended]) -> None:
        chains: dict[str, tuple[float, float, str | None]] = {}  # step -> chain's seconds, own ones, predecessor
        through: dict[str, str] = {}  # skipped step -> the step before it on the longest chain
        last, most, total = None, -1.0, 0.0
        for step, seconds, depends_on in ended:
            before, longest = None, -1.0
            for dependency in depends_on:
                name = through.get(dependency, dependency) if through else dependency
                chain = chains.get(name)
                if chain is not None and chain[0] > longest:
                    before, longest = name, chain[0]
            if seconds is not None:
                whole = seconds if before is None else longest + seconds
                chains[step] = (whole, seconds, before)
                total += seconds
                if whole > most:
                    last, most = step, whole
            elif before is not None:  # dependants of a skipped step still come after its dependencies
                through[step] = before
        self._chains = chains
        self.seconds = max(most, 0.0)
        """seconds spent on the chain"""
        self.total = total
        """seconds spent in all steps"""
        self.steps: list[str] = []
        """the steps of the chain, in order"""
        while last is not None:
            self.steps.append(last)
            last = chains[last][2]
        self.steps.reverse()

    def longest(self, limit: int) -> list[str]:
        """The `limit` longest steps of the chain, in its order."""
        if len(self.steps) <= limit:
            return self.steps
        kept = set(sorted(self.steps, key=lambda step: -self._chains[step][1])[:limit])
        return [step for step in self.steps if step in kept]


_LINKED: Final = 16  # dependencies that a step links to at most


def suppress_instrumentation() -> Any:
    """Stop instrumented clients from making spans in this contextvars context. Returns the token for `otel.detach`."""
    quiet = otel.set_value(otel._SUPPRESS_INSTRUMENTATION_KEY, True)  # pyright: ignore[reportPrivateUsage]
    # Some contrib instrumentations read this plain name instead of the key.
    return otel.attach(otel.set_value("suppress_instrumentation", True, quiet))


class Suppressed:
    """A scope in which instrumented clients make no spans, for the engine's own work."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token = suppress_instrumentation()

    def __exit__(self, *_: object) -> None:
        otel.detach(self._token)


class AttemptSpans:
    """The latest attempt of a step, or of an undo, that may have several."""

    __slots__ = ("attempt", "backoff", "ended", "recorded", "started", "timed_out")

    def __init__(self) -> None:
        self.attempt: Span | None = None
        """the span of the latest attempt that has one"""
        self.started = self.ended = 0.0
        """when the latest attempt started and ended, in monotonic seconds"""
        self.backoff: BackoffStarted | None = None
        """the backoff that is in progress"""
        self.recorded: BaseException | None = None
        """the error that the latest attempt's span has recorded"""
        self.timed_out = False
        """whether the latest attempt timed out; its call may still run"""


class StepSpans:
    """The spans and attempts of a run's steps, or of their undos, by step."""

    __slots__ = ("attempts", "exemplars", "spans")

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.attempts: dict[str, AttemptSpans] = {}  # only of those that may have several
        self.exemplars: dict[str, Exemplar | None] = {}  # those that were computed so far


class DeferredSpan:
    """The events of a step past max_step_spans, to make its span if the step fails, is retried or is undone."""

    __slots__ = ("finished", "started")

    def __init__(self, started: StepStarted) -> None:
        self.started = started
        self.finished: StepFinished | None = None


class Trace:
    """The spans of one run in one process.

    Events of different steps may come from many threads at once; those of one step come one after another.
    """

    __slots__ = (
        *("before", "caller", "context", "deferred", "ended", "epoch", "expected", "ids", "interrupted", "recorded"),
        *("span", "started_at", "steps", "store_seconds", "undos"),
    )

    def __init__(self, span: Span, context: otel.Context, caller: Span, at: float, wall: int) -> None:
        self.span = span
        self.context = context  # in which `span` is current
        self.caller = caller
        self.epoch = wall - int(at * 1e9)  # wall-clock nanoseconds of the monotonic clock's zero
        self.started_at = at
        self.interrupted: Sequence[Link] = ()  # links to the run's span of the previous owner
        self.before: Mapping[str, Mapping[str, str]] = {}  # carriers of steps that ended elsewhere, by step
        self.steps = StepSpans()
        self.undos = StepSpans()
        self.deferred: dict[str, DeferredSpan] = {}
        self.recorded: list[BaseException] = []  # errors that spans of steps and undos have recorded
        self.expected: list[BaseException] = []  # errors that the definitions of steps expect
        self.ended: list[Ended] = []
        self.store_seconds = 0.0
        self.ids: dict[str, AttributeValue] = {}  # the attributes that all its spans have

    def ns(self, at: float) -> int:
        """Return the wall-clock nanoseconds of a monotonic time. Spans stay in order even if the wall clock jumps."""
        return self.epoch + int(at * 1e9)

    def of(self, *, undo: bool) -> StepSpans:
        return self.undos if undo else self.steps

    def timed_out(self, step: str) -> bool:
        """Whether the step's latest attempt timed out."""
        attempts = self.steps.attempts.get(step)
        return attempts is not None and attempts.timed_out

    def was_recorded(self, error: BaseException) -> bool:
        """Whether the span of a step or an undo has recorded `error` or, if it is a group, each error in it."""
        if any(error is other for other in self.recorded):
            return True
        if not isinstance(error, BaseExceptionGroup):
            return False
        return all(map(self.was_recorded, cast("BaseExceptionGroup[BaseException]", error).exceptions))

    def waited_for(self, depends_on: Sequence[str]) -> list[Link]:
        """Return links to the dependencies that ended last, at most 16."""
        # Skipped steps have no span.
        traced = [name for name in depends_on if name in self.steps.spans or name in self.before]
        if len(traced) > _LINKED:
            among = set(traced)
            latest = (name for name, *_ in reversed(self.ended) if name in among)
            # Steps that ended before a takeover follow those that ended here. Their order is unknown.
            traced = list(dict.fromkeys((*latest, *traced)))[:_LINKED]
        return [link for name in traced for link in self.links_to(names.LINK_DEPENDS_ON, name)]

    def links_to(self, kind: str, step: str) -> list[Link]:
        """Return a link to a step's span, made here or under a previous owner. The list is empty if there is none."""
        span = self.steps.spans.get(step)
        if span is None and step in self.before:
            span = stored(self.before[step])
        return links(kind, span)

    @property
    def sampled(self) -> bool:
        """See `context.Traced`."""
        return _sampled(self.span.get_span_context())

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """See `context.Traced`."""
        family = self.undos if undo else self.steps
        span = family.spans.get(step) if step is not None else None
        if step is None or span is None:
            return exemplar(self.span.get_span_context())
        if attempt and (attempts := family.attempts.get(step)) is not None and attempts.attempt is not None:
            return exemplar(attempts.attempt.get_span_context())
        if step not in family.exemplars:
            family.exemplars[step] = exemplar(span.get_span_context())
        return family.exemplars[step]


class _Untraced:
    """Stands in for the Trace of a run without spans."""

    sampled = False

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        return None


UNTRACED: Final = _Untraced()


def make_current(span: Span) -> None:
    """Make `span` the current one for user code and for later events. It need not be detached: each event is emitted in
    the contextvars context of its run, step or attempt, which ends with it."""
    otel.attach(trace.set_span_in_context(span))


def links(kind: str, *spans: Span | None) -> list[Link]:
    """Return links to those of `spans` that are sampled."""
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


_TRACESTATE: Final = 512
"""how many characters of a tracestate, which any caller may have sent, a carrier keeps; so many must be propagated:
https://www.w3.org/TR/trace-context/#tracestate-limits"""


def store(span: SpanContext, carrier: dict[str, str], *, state: bool = True) -> bool:
    """Write a span's context to a carrier, as TraceContextTextMapPropagator does, but without an intermediate context.

    `state`: also write the tracestate, which all spans of a run share; a long one is cut to its first entries. Returns
    False, and writes nothing, if the span is invalid, for instance without an SDK.
    """
    if not span.is_valid:
        return False
    ids = span.trace_id.to_bytes(16).hex(), span.span_id.to_bytes(8).hex()  # the fastest way to hex digits
    carrier["traceparent"] = f"00-{ids[0]}-{ids[1]}-{span.trace_flags:02x}"
    if state and span.trace_state:
        header = span.trace_state.to_header()
        while len(header) > _TRACESTATE:
            header = header.rpartition(",")[0]
        if header:
            carrier["tracestate"] = header
    return True


@contextmanager
def current_span(carrier: Mapping[str, str]) -> Generator[None]:
    """Make the span whose context is in `carrier` the current one, for a step that runs in another process."""
    token = otel.attach(trace.set_span_in_context(stored(carrier)))
    try:
        yield
    finally:
        otel.detach(token)


def stored(carrier: Mapping[str, str]) -> Span:
    """Return the span whose context is in `carrier`, or INVALID_SPAN if there is none or it is malformed."""
    try:
        return trace.get_current_span(_CARRIERS.extract(carrier, otel.Context()))
    except Exception:  # noqa: BLE001 - a foreign record may hold anything
        return trace.INVALID_SPAN
