"""`TracingHook`: the spans of a run.

run {workflow}
├── step {step}
│   ├── attempt {step}       attempts and backoffs only where the definition allows more than one attempt;
│   ├── backoff {step}       user code runs in the innermost of step and attempt
│   └── attempt {step}
└── compensate {step}        the undo, linked to its step, with attempts and backoffs like a step

`submit {workflow}` stands on the caller's side of `engine.submit`; a request that meets an earlier run with its key
turns from `run {workflow}` into `idempotency hit {workflow}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from opentelemetry import context as otel, trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from flowcore import Status
from flowcore.events import (
    SKIP_RUN,
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    Event,
    IdempotencyHit,
    MaintenanceStarted,
    RunFinished,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    StepCompletedLate,
    StepFinished,
    StepSkipped,
    StepStarted,
)

from . import names
from .exemplars import TRACE
from .logs import LogEvents
from .spans import (
    UNTRACED,
    AttemptSpans,
    DeferredSpan,
    StepSpans,
    Suppressed,
    Trace,
    links,
    make_current,
    store,
    stored,
)
from .text import error_type, fit, hashed, message, title
from .timing import CriticalPath

__all__ = ["TracingHook"]

_LISTED: Final = 64  # step names in one attribute
_NO_LINKS: Final[Sequence[Link]] = ()
_INTERNAL: Final = SpanKind.INTERNAL
_SAMPLED: Final = TraceFlags.SAMPLED
_DEPENDS_ON: Final = {names.LINK_TYPE: names.LINK_DEPENDS_ON}
_CALLERS_CONTEXT: Final = "flowcore_otel.context"
"""in a run's state: the context in which it was asked for, before any TracingHook made its span current"""
_SUCCESS: Final = Status.SUCCESS
_REFUSALS: Final = {
    "in_progress": "another run with this key is still going on",
    "mismatch": "the key was used before with another workflow or other values",
    "held": "the run with this key is held until an operator decides",
}

Attributes = dict[str, AttributeValue]


class TracingHook:
    """Turns the events of runs into OpenTelemetry spans, and makes the innermost one current inside user code.

    `tracer_provider`, `logger_provider`: the global ones unless given. `max_step_spans`: past it only steps that fail,
    are retried or are undone get spans. `step_events`: tell each step's start as a log event too, as evidence should the
    process die. `key_hash`: what to show of an idempotency key; None, or its answering None, shows nothing.

    Safe for any number of runs, engines and threads at once. Needs opentelemetry-api only.
    """

    wants: frozenset[type[Event]]
    lone_attempts = False

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        *,
        logger_provider: LoggerProvider | None = None,
        max_step_spans: int = 1000,
        step_events: bool = False,
        key_hash: Callable[[str], str | None] | None = hashed,
    ) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, names.SCOPE_VERSION, tracer_provider, schema_url=names.SCHEMA_URL)
        self._logs = LogEvents(logger_provider)
        self._max_step_spans = max_step_spans
        self._step_events = step_events
        self._key_hash = key_hash
        self.handlers: Mapping[type[Event], Callable[[Any], object]] = {
            RunSubmitted: self._run_submitted,
            RunRequested: self._run_requested,
            IdempotencyHit: self._idempotency_hit,
            RunRefused: self._run_refused,
            RunStarted: self._run_started,
            RunRecovered: self._run_recovered,
            RunFinished: self._run_finished,
            StepSkipped: self._step_skipped,
            StepStarted: self._step_started,
            StepFinished: self._step_finished,
            StepCompletedLate: self._step_completed_late,
            AttemptStarted: self._attempt_started,
            AttemptFinished: self._attempt_finished,
            BackoffStarted: self._backoff_started,
            CompensationStarted: self._compensation_started,
            CompensationFinished: self._compensation_finished,
            MaintenanceStarted: self._maintenance_started,
        }
        self.wants = frozenset(self.handlers)

    def __call__(self, event: Event, /) -> object:
        return self.handlers[type(event)](event)

    # -- the run -------------------------------------------------------------------------------------------------------

    def _run_submitted(self, event: RunSubmitted) -> None:
        trace.get_current_span().set_attribute(names.RUN_ID, event.run_id)
        attributes: Attributes = {names.WORKFLOW_NAME: fit(event.workflow), names.RUN_ID: event.run_id}
        span = self._tracer.start_span(
            title(names.SUBMIT, event.workflow), kind=SpanKind.PRODUCER, attributes=attributes
        )
        span.end()
        event.state[self, RunSubmitted] = span

    def _run_requested(self, event: RunRequested) -> object | None:
        state, wall = event.state, int(event.wall * 1e9)
        context: otel.Context = state.setdefault(_CALLERS_CONTEXT, otel.get_current())
        kind, linked = _INTERNAL, _NO_LINKS
        caller: Span = trace.INVALID_SPAN
        if event.submitted or event.recovering:  # nobody waits for it here: a trace of its own
            context = trace.set_span_in_context(caller, context)
            if event.submitted:  # linked to the one that asked for it
                kind, linked = SpanKind.CONSUMER, links(names.LINK_REQUEST, state.get((self, RunSubmitted)))
        else:
            caller = trace.get_current_span(context)
        attributes: Attributes = {names.WORKFLOW_NAME: fit(event.workflow)}
        key_hash = self._key_hash(event.key) if event.key is not None and self._key_hash is not None else None
        if key_hash is not None:
            attributes[names.IDEMPOTENCY_KEY_HASH] = fit(key_hash)
        span = self._tracer.start_span(title(names.RUN, event.workflow), context, kind, attributes, linked, wall)
        context = trace.set_span_in_context(span, context)
        if store(span.get_span_context(), event.carrier):  # without an SDK, the caller's trace goes on instead
            # Current from here on, for the claim too, in the run's own context, which ends with it. Of a run that is not
            # sampled as well, or user spans would be sampled as new roots.
            otel.attach(context)
        if event.key is None and not span.is_recording():  # it cannot be a replay: there is nothing more to tell
            caller.set_attribute(names.RUN_ID, event.run_id)
            state.setdefault(TRACE, UNTRACED)
            return SKIP_RUN
        run = state[self] = Trace(span, context, caller, event.at, wall)
        state.setdefault(TRACE, run)
        return None

    def _idempotency_hit(self, event: IdempotencyHit) -> None:
        run: Trace = event.state[self]
        span, original = run.span, stored(event.original)
        span.update_name(title(names.IDEMPOTENCY_HIT, event.workflow))
        attributes: Attributes = {
            names.IDEMPOTENCY_OUTCOME: event.outcome,
            names.ORIGINAL_RUN_ID: fit(event.original_run_id),
            names.ORIGINAL_RUN_SAMPLED: original.get_span_context().trace_flags.sampled,
        }
        if event.age is not None:
            attributes[names.IDEMPOTENCY_AGE] = event.age
        span.set_attributes(attributes)
        for link in links(names.LINK_ORIGINAL_RUN, original):
            span.add_link(link.context, link.attributes)
        if event.outcome in _REFUSALS:
            span.set_status(StatusCode.ERROR, _REFUSALS[event.outcome])
        else:
            run.caller.set_attribute(names.RUN_ID, fit(event.original_run_id))
        span.end(run.ns(event.at))

    def _run_refused(self, event: RunRefused) -> None:
        run: Trace = event.state[self]
        self._end(run, run.span, event, {})

    def _run_started(self, event: RunStarted) -> object | None:
        run: Trace = event.state[self]
        run.started_at = event.at
        run.caller.set_attribute(names.RUN_ID, event.run_id)
        if not run.span.is_recording():
            return SKIP_RUN
        interrupted: Attributes = {}
        if event.interrupted_run_id is not None:
            before = stored(event.interrupted)
            interrupted[names.INTERRUPTED_RUN_ID] = fit(event.interrupted_run_id)
            interrupted[names.INTERRUPTED_RUN_SAMPLED] = before.get_span_context().trace_flags.sampled
            run.span.set_attributes(interrupted)
            run.interrupted = links(names.LINK_INTERRUPTED_RUN, before)
            for link in run.interrupted:
                run.span.add_link(link.context, link.attributes)
        if self._logs.enabled():
            evidence = {names.WORKFLOW_NAME: fit(event.workflow), names.RUN_ID: event.run_id, **interrupted}
            self._logs.emit(names.RUN_STARTED, run.span, run.ns(event.at), evidence)
        return None

    def _run_recovered(self, event: RunRecovered) -> None:
        run: Trace = event.state[self]
        found = {
            names.RECOVERY_SKIPPED: event.skipped,
            names.RECOVERY_RETRIED: event.retried,
            names.RECOVERY_VERIFIED: event.verified,
            names.RECOVERY_UNDONE: event.undone,
            names.RECOVERY_HELD: event.held,
        }
        attributes: Attributes = {name: _listed(steps) for name, steps in found.items() if steps}
        run.before = event.carriers
        name = title(names.RECOVER, event.workflow)
        span = self._child(run.span, name, run.ns(run.started_at), attributes, run.interrupted)
        span.end(run.ns(event.at))

    def _run_finished(self, event: RunFinished) -> None:
        run: Trace = event.state[self]
        path = CriticalPath(run.ended)
        attributes: Attributes = {
            names.RUN_ID: event.run_id,
            names.RUN_OUTCOME: str(event.outcome),
            names.RUN_CRITICAL_PATH: _listed(tuple(path.longest(_LISTED))),
            names.RUN_CRITICAL_PATH_LENGTH: len(path.steps),
            names.RUN_CRITICAL_PATH_SECONDS: path.seconds,
        }
        if event.duration > 0:
            attributes[names.RUN_PARALLELISM] = path.total / event.duration
        if event.skipped:
            attributes[names.RUN_SKIPPED] = _listed(event.skipped)
        if run.untold:
            attributes[names.RUN_UNTRACED_STEPS] = len(run.untold)
        told = event.error is not None and run.was_told(event.error)
        self._end(run, run.span, event, attributes, told=told)
        run.told.clear()  # their tracebacks lead back to here

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step_skipped(self, event: StepSkipped) -> None:
        run: Trace = event.state[self]
        run.ended.append((event.step, None, event.depends_on))

    def _step_started(self, event: StepStarted) -> None:
        run: Trace = event.state[self]
        if len(run.steps.spans) >= self._max_step_spans:
            run.untold[event.step] = DeferredSpan(event)
            return
        span = self._step_span(run, event)
        if event.carrier is not None:
            store(span.get_span_context(), event.carrier)
        if self._step_events and self._logs.enabled():
            attributes = {names.WORKFLOW_NAME: fit(event.workflow), names.STEP_NAME: fit(event.step)}
            self._logs.emit(names.STEP_STARTED, span, run.ns(event.at), attributes)
        otel.attach(trace.set_span_in_context(span))  # `make_current`, less a call: most spans come through here

    def _step_span(self, run: Trace, event: StepStarted) -> Span:
        depends_on = event.depends_on
        name, about = _about(event.workflow, event.step, event.function, event.max_attempts, depends_on)
        attributes = about.copy()
        attributes[names.STEP_WAIT] = event.waited
        linked = _NO_LINKS
        if depends_on:
            before = run.steps.spans.get(depends_on[0])
            if len(depends_on) > 1 or before is None:
                linked = run.waited_for(depends_on)
            elif (context := before.get_span_context()).trace_flags & _SAMPLED:  # what most steps come through
                linked = (Link(context, _DEPENDS_ON),)
        span = run.steps.spans[event.step] = self._tracer.start_span(
            name, run.context, _INTERNAL, attributes, linked, run.epoch + int(event.at * 1e9)
        )
        return span

    def _late_span(self, run: Trace, step: str) -> None:
        """Give a step past max_step_spans its span after all."""
        untold = run.untold.pop(step, None)
        if untold is not None:
            self._step_span(run, untold.started)

    def _step_finished(self, event: StepFinished) -> None:
        run: Trace = event.state[self]
        span = run.steps.spans.get(event.step)
        run.ended.append((event.step, event.duration, event.depends_on))
        if event.outcome is not _SUCCESS or event.attempts > 1:
            self._late_span(run, event.step)
            self._finish(run, run.steps, event, {names.STEP_OUTCOME: str(event.outcome)})
        elif span is None:
            run.untold[event.step].finished = event
        else:  # what most steps come through
            span.set_attribute(names.STEP_OUTCOME, "success")
            span.end(run.epoch + int(event.at * 1e9))

    def _finish(
        self, run: Trace, works: StepSpans, event: StepFinished | CompensationFinished, attributes: Attributes
    ) -> None:
        self._end_backoff(run, works, event.step, event.at)
        if event.attempts > 1:
            attributes[names.STEP_ATTEMPT] = event.attempts
            attributes[names.STEP_BACKOFF] = event.backoff
        tries = works.tries.pop(event.step, None)  # an error's traceback leads back to here
        told = None if tries is None else tries.told
        self._end(run, works.spans[event.step], event, attributes, told=event.error is told)
        if event.error is not None:
            run.told.append(event.error)

    def _step_completed_late(self, event: StepCompletedLate) -> None:
        run: Trace = event.state[self]
        attributes: Attributes = {
            names.STEP_NAME: fit(event.step),
            names.STEP_ATTEMPT: event.attempt,
            names.STEP_OUTCOME: str(event.outcome),
            names.STEP_LATE: event.late,
        }
        if event.error is not None:
            attributes[names.ERROR_TYPE] = error_type(event.error)
        span = run.works(undo=event.undo).spans.get(event.step, run.span)
        self._logs.emit(names.STEP_LANDED_LATE, span, run.ns(event.at), attributes)

    # -- attempts, of steps and of undos -------------------------------------------------------------------------------

    def _attempt_started(self, event: AttemptStarted) -> None:
        run: Trace = event.state[self]
        works = run.works(undo=event.undo)
        self._end_backoff(run, works, event.step, event.at)
        tries = works.tries.setdefault(event.step, AttemptSpans())
        tries.started = event.at
        span = works.spans.get(event.step)
        if span is not None:
            make_current(self._open_attempt(run, tries, span, event))

    def _open_attempt(
        self, run: Trace, tries: AttemptSpans, parent: Span, event: AttemptStarted | AttemptFinished
    ) -> Span:
        attributes: Attributes = {
            names.STEP_NAME: fit(event.step),
            names.STEP_ATTEMPT: event.attempt,
            names.STEP_MAX_ATTEMPTS: event.max_attempts,
        }
        tries.attempt = self._child(parent, title(names.ATTEMPT, event.step), run.ns(tries.started), attributes)
        return tries.attempt

    def _attempt_finished(self, event: AttemptFinished) -> None:
        run: Trace = event.state[self]
        works = run.works(undo=event.undo)
        tries = works.tries.setdefault(event.step, AttemptSpans())
        tries.ended = event.at
        if event.step not in works.spans:
            if event.outcome is _SUCCESS:
                return
            self._late_span(run, event.step)
            self._open_attempt(run, tries, works.spans[event.step], event)
        tries.told = event.error
        outcome = names.COMPENSATION_OUTCOME if event.undo else names.STEP_OUTCOME
        self._end(run, tries.attempt or trace.INVALID_SPAN, event, {outcome: str(event.outcome)})

    def _backoff_started(self, event: BackoffStarted) -> None:
        run: Trace = event.state[self]
        tries = run.works(undo=event.undo).tries.get(event.step)
        if tries is not None:
            tries.backoff = event

    def _end_backoff(self, run: Trace, works: StepSpans, step: str, at: float) -> None:
        tries, parent = works.tries.get(step), works.spans.get(step)
        if tries is None or tries.backoff is None:
            return
        planned, tries.backoff = tries.backoff, None
        if parent is None:
            return
        attributes: Attributes = {
            names.STEP_NAME: fit(planned.step),
            names.STEP_ATTEMPT: planned.attempt,
            names.BACKOFF_DELAY: planned.delay,
            names.BACKOFF_REASON: planned.reason,
        }
        span = self._child(parent, title(names.BACKOFF, planned.step), run.ns(tries.ended), attributes)
        span.end(run.ns(at))

    # -- undos ---------------------------------------------------------------------------------------------------------

    def _compensation_started(self, event: CompensationStarted) -> None:
        run: Trace = event.state[self]
        untold = run.untold.get(event.step)
        if untold is not None and untold.finished is not None:
            self._late_span(run, event.step)
            self._finish(run, run.steps, untold.finished, {names.STEP_OUTCOME: str(untold.finished.outcome)})
        attributes = _about(event.workflow, event.step, event.function, event.max_attempts)[1].copy()
        attributes[names.COMPENSATION_ORDER] = event.order
        attributes[names.COMPENSATION_TRIGGER] = fit(event.trigger)
        linked = run.links_to(names.LINK_COMPENSATES, event.step)
        name = title(names.COMPENSATE, event.step)
        span = self._child(run.span, name, run.ns(event.at), attributes, linked)
        run.undos.spans[event.step] = span
        make_current(span)

    def _compensation_finished(self, event: CompensationFinished) -> None:
        run: Trace = event.state[self]
        self._finish(run, run.undos, event, {names.COMPENSATION_OUTCOME: str(event.outcome)})

    def _maintenance_started(self, _: MaintenanceStarted) -> object:
        return Suppressed()

    # -- spans ---------------------------------------------------------------------------------------------------------

    def _child(self, parent: Span, name: str, start: int, attributes: Attributes, linked: Sequence[Link] = ()) -> Span:
        context = trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context, _INTERNAL, attributes, linked, start)

    def _end(
        self,
        run: Trace,
        span: Span,
        event: RunRefused | RunFinished | StepFinished | AttemptFinished | CompensationFinished,
        attributes: Attributes,
        *,
        told: bool = False,
    ) -> None:
        """End a span; where it failed, say so, and record the exception unless a span inside it did (`told`)."""
        end, error = run.ns(event.at), event.error
        outcome = "failure" if isinstance(event, RunRefused) else event.outcome
        try:
            if outcome is not _SUCCESS:
                attributes[names.ERROR_TYPE] = error_type(error, outcome)
                span.set_status(StatusCode.ERROR, outcome if error is None else message(error))
                if error is not None and not told:
                    self._logs.exception(error, span, end)
            span.set_attributes(attributes)
        finally:
            span.end(end)


@lru_cache(maxsize=1024)  # the same for every run, and asked for on each step
def _about(
    workflow: str, step: str, function: str, max_attempts: int, depends_on: tuple[str, ...] = ()
) -> tuple[str, Attributes]:
    """The name of a step's span and those of its attributes that are known beforehand."""
    attributes: Attributes = {
        names.WORKFLOW_NAME: fit(workflow),
        names.STEP_NAME: fit(step),
        names.STEP_MAX_ATTEMPTS: max_attempts,
        names.CODE_FUNCTION: fit(function),
    }
    if depends_on:
        attributes[names.STEP_DEPENDS_ON] = _listed(depends_on)
        attributes[names.STEP_DEPENDS_ON_COUNT] = len(depends_on)
    return title(names.STEP, step), attributes


@lru_cache(maxsize=1024)  # the same
def _listed(steps: tuple[str, ...]) -> Sequence[str]:
    return tuple(fit(step) for step in steps[:_LISTED])
