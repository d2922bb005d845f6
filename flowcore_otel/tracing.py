"""`TracingHook`: the spans of a run.

run {workflow}
├── step {step}
│   ├── attempt {step}       attempts, waits and backoffs only where the definition allows more than one attempt;
│   ├── await {step}         user code runs in the innermost of step and attempt
│   ├── backoff {step}
│   └── attempt {step}
└── compensate {step}        the undo, linked to its step, with attempts and backoffs like a step

`submit {workflow}` stands on the caller's side of `engine.submit`; a request that meets an earlier run with its key
turns from `run {workflow}` into `idempotency hit {workflow}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
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
    RunJoined,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    StepCompletedLate,
    StepFinished,
    StepSkipped,
    StepStarted,
    StoreCalled,
    ValueSent,
    WaitFinished,
    WaitStarted,
)

from . import names
from .context import TRACE
from .logs import LogEvents
from .spans import (
    UNTRACED,
    AttemptSpans,
    CriticalPath,
    DeferredSpan,
    StepSpans,
    Suppressed,
    Trace,
    current_span,
    links,
    make_current,
    store,
    stored,
    suppress_instrumentation,
)
from .text import error_type, fit, hashed, message, title

__all__ = ["TracingHook"]

_LISTED: Final = 64  # step names in one attribute
_NO_LINKS: Final[Sequence[Link]] = ()
_INTERNAL: Final = SpanKind.INTERNAL
_SAMPLED: Final = TraceFlags.SAMPLED
_DEPENDS_ON: Final = {names.LINK_TYPE: names.LINK_DEPENDS_ON}
_CALLERS_CONTEXT: Final = "flowcore_otel.context"
"""in a run's state: the caller's context, before any TracingHook made its span current"""
_OWNER: Final = {
    "host": names.INTERRUPTED_RUN_HOST,
    "pid": names.INTERRUPTED_RUN_PID,
    "since": names.INTERRUPTED_RUN_SINCE,
    "step": names.INTERRUPTED_RUN_STEP,
}
_SUCCESS: Final = Status.SUCCESS
_UNDONE_OR_NOTHING: Final = frozenset({Status.FAILURE, Status.COMPENSATED})
"""outcomes of a run after which nothing is left to do"""
_REFUSALS: Final = {
    "in_progress": "another run with this key is still in progress",
    "mismatch": "the key was already used with another workflow or other values",
    "held": "the run with this key is held until an operator decides",
}

Attributes = dict[str, AttributeValue]


class TracingHook:
    """Turns the events of runs into OpenTelemetry spans, and makes the innermost one current inside user code.

    `tracer_provider`, `logger_provider`: the global ones unless given. `max_step_spans`: past it only steps that fail,
    are retried or are undone get spans. `step_events`: emit each step's start as a log event too, as evidence should the
    process die. `key_hash`: what to show of an idempotency key; None, or its returning None, shows nothing. `store_spans`:
    one span `store {verb}` for each call of the store. Instrumented clients make no spans of their own within such a call,
    with it or without.

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
        store_spans: bool = False,
    ) -> None:
        self._tracer = trace.get_tracer(names.SCOPE, names.SCOPE_VERSION, tracer_provider, schema_url=names.SCHEMA_URL)
        self._logs = LogEvents(logger_provider)
        self._max_step_spans = max_step_spans
        self._step_events = step_events
        self._key_hash = key_hash
        self._store_spans = store_spans
        self.handlers: Mapping[type[Event], Callable[[Any], object]] = {
            RunSubmitted: self._run_submitted,
            RunRequested: self._run_requested,
            IdempotencyHit: self._idempotency_hit,
            RunRefused: self._run_refused,
            RunStarted: self._run_started,
            RunRecovered: self._run_recovered,
            RunJoined: self._run_joined,
            RunFinished: self._run_finished,
            StepSkipped: self._step_skipped,
            StepStarted: self._step_started,
            StepFinished: self._step_finished,
            WaitStarted: self._wait_started,
            WaitFinished: self._wait_finished,
            ValueSent: self._value_sent,
            StepCompletedLate: self._step_completed_late,
            AttemptStarted: self._attempt_started,
            AttemptFinished: self._attempt_finished,
            BackoffStarted: self._backoff_started,
            CompensationStarted: self._compensation_started,
            CompensationFinished: self._compensation_finished,
            MaintenanceStarted: self._maintenance_started,
            StoreCalled: self._store_called,
        }
        self.wants = frozenset(self.handlers)

    def __call__(self, event: Event, /) -> object:
        return self.handlers[type(event)](event)

    def around_store(self) -> None:
        """The store is called for a run: its client's spans would bury those of the steps."""
        suppress_instrumentation()

    def across_processes(self) -> Callable[[], object] | None:
        """The span that is current where a step with `executor=` is sent: it is the parent of the spans made there."""
        carrier: dict[str, str] = {}
        return partial(current_span, carrier) if store(trace.get_current_span().get_span_context(), carrier) else None

    # -- the run -------------------------------------------------------------------------------------------------------

    def _run_submitted(self, event: RunSubmitted) -> None:
        trace.get_current_span().set_attribute(names.RUN_ID, event.run_id)
        attributes: Attributes = {names.WORKFLOW_NAME: fit(event.workflow), names.RUN_ID: event.run_id}
        span = self._tracer.start_span(
            title(names.SUBMIT, event.workflow), kind=SpanKind.PRODUCER, attributes=attributes
        )
        span.end()
        event.state[self, RunSubmitted] = span, event.propagation

    def _run_requested(self, event: RunRequested) -> object | None:
        state, wall = event.state, int(event.wall * 1e9)
        context: otel.Context = state.setdefault(_CALLERS_CONTEXT, otel.get_current())
        kind, linked = _INTERNAL, _NO_LINKS
        caller: Span = trace.INVALID_SPAN
        if event.submitted:
            kind = SpanKind.CONSUMER
            submit, propagation = state.get((self, RunSubmitted), (None, "link"))
            if propagation == "child":
                context = trace.set_span_in_context(submit, context)
            else:  # a trace of its own, linked to the caller's
                context = trace.set_span_in_context(caller, context)
                linked = links(names.LINK_REQUEST, submit)
        elif event.recovering:  # no caller waits for it
            context = trace.set_span_in_context(caller, context)
        else:
            caller = trace.get_current_span(context)
        attributes: Attributes = {names.WORKFLOW_NAME: fit(event.workflow)}
        key_hash = self._key_hash(event.key) if event.key is not None and self._key_hash is not None else None
        if key_hash is not None:
            attributes[names.IDEMPOTENCY_KEY_HASH] = fit(key_hash)
        span = self._tracer.start_span(title(names.RUN, event.workflow), context, kind, attributes, linked, wall)
        context = trace.set_span_in_context(span, context)
        if store(span.get_span_context(), event.carrier):  # without an SDK, the caller's trace continues instead
            # Current from here on, for the claim too, in the run's own context, which ends with it. Of a run that is not
            # sampled as well, or user spans would be sampled as new roots.
            otel.attach(context)
        if event.key is None and not span.is_recording():  # it cannot be a replay
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
            names.RUN_ID: fit(event.original_run_id),
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
        run.ids = {names.WORKFLOW_NAME: fit(event.workflow), names.RUN_ID: event.run_id}
        run.span.set_attribute(names.RUN_ID, event.run_id)
        interrupted: Attributes = {}
        if event.interrupted_run_id is not None:
            before = stored(event.interrupted)
            interrupted[names.INTERRUPTED_RUN_ID] = fit(event.interrupted_run_id)
            interrupted[names.INTERRUPTED_RUN_SAMPLED] = before.get_span_context().trace_flags.sampled
            for key, value in event.interrupted_by.items():
                if key in _OWNER:
                    interrupted[_OWNER[key]] = fit(value) if isinstance(value, str) else value
            run.span.set_attributes(interrupted)
            run.interrupted = links(names.LINK_INTERRUPTED_RUN, before)
            for link in run.interrupted:
                run.span.add_link(link.context, link.attributes)
        if self._logs.enabled():
            body = f"run {event.run_id} of {fit(event.workflow)} started"
            self._logs.emit(names.RUN_STARTED, body, run.span, run.ns(event.at), {**run.ids, **interrupted})
        return None

    def _run_joined(self, event: RunJoined) -> object | None:
        """The span of the run is another process's: here it is only the parent of others."""
        span = stored(event.carrier)
        context = trace.set_span_in_context(span, otel.Context())
        otel.attach(context)
        if span.get_span_context().is_valid and not span.get_span_context().trace_flags.sampled:
            event.state.setdefault(TRACE, UNTRACED)
            return SKIP_RUN
        run = event.state[self] = Trace(span, context, trace.INVALID_SPAN, event.at, int(event.wall * 1e9))
        event.state.setdefault(TRACE, run)
        run.ids = {names.WORKFLOW_NAME: fit(event.workflow), names.RUN_ID: event.run_id}
        run.before = event.carriers
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
        attributes: Attributes = run.ids | {name: _listed(steps) for name, steps in found.items() if steps}
        run.before = event.carriers
        name = title(names.RECOVER, event.workflow)
        span = self._child(run.span, name, run.ns(run.started_at), attributes, run.interrupted)
        span.end(run.ns(event.at))

    def _run_finished(self, event: RunFinished) -> None:
        run: Trace = event.state[self]
        path = CriticalPath(run.ended)
        attributes: Attributes = {
            names.RUN_OUTCOME: str(event.outcome),
            names.RUN_CRITICAL_PATH: _listed(tuple(path.longest(_LISTED))),
            names.RUN_CRITICAL_PATH_LENGTH: len(path.steps),
            names.RUN_CRITICAL_PATH_SECONDS: path.seconds,
        }
        if event.duration > 0:
            attributes[names.RUN_PARALLELISM] = path.total / event.duration
        if event.skipped:
            attributes[names.RUN_SKIPPED] = _listed(event.skipped)
        if run.deferred:
            attributes[names.RUN_UNTRACED_STEPS] = len(run.deferred)
        if run.store_seconds:
            attributes[names.RUN_STORE_SECONDS] = run.store_seconds
        recorded = event.error is not None and (event.elsewhere or run.was_recorded(event.error))
        expected = event.expected or any(event.error is error for error in run.expected)
        expected = expected and event.outcome in _UNDONE_OR_NOTHING
        self._end(run, run.span, event, attributes, recorded=recorded, expected=expected)
        run.recorded.clear()  # their tracebacks lead back to here
        run.expected.clear()

    def _wait_started(self, event: WaitStarted) -> None:
        run: Trace = event.state[self]
        attributes: Attributes = {names.STEP_NAME: fit(event.step)}
        if event.timeout is not None:
            attributes[names.WAIT_TIMEOUT] = event.timeout
        run.span.add_event(names.WAIT_STARTED, attributes, run.ns(event.at))

    def _wait_finished(self, event: WaitFinished) -> None:
        run: Trace = event.state[self]
        attributes: Attributes = {
            names.STEP_NAME: fit(event.step),
            names.STEP_OUTCOME: str(event.outcome),
            names.WAIT_SECONDS: event.waited,
        }
        run.span.add_event(names.WAIT_FINISHED, attributes, run.ns(event.at))
        if event.sender:
            for link in links(names.LINK_SENDER, stored(event.sender)):
                run.span.add_link(link.context, link.attributes)

    def _value_sent(self, event: ValueSent) -> None:
        """The run that gets the value links to the span in which it was sent."""
        store(trace.get_current_span().get_span_context(), event.carrier)

    def _store_called(self, event: StoreCalled) -> None:
        run: Trace | None = event.state.get(self)
        if run is None:  # heartbeats and the like belong to no run
            return
        run.store_seconds += event.duration
        if self._store_spans:
            attributes: Attributes = {
                names.WORKFLOW_NAME: fit(event.workflow),
                names.RUN_ID: event.run_id,
                names.STORE_NAME: fit(event.store),
                names.STORE_OPERATION: fit(event.operation),
            }
            name = title(names.STORE, event.operation)
            span = self._child(run.span, name, run.ns(event.at - event.duration), attributes)
            self._end(run, span, event, {})

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step_skipped(self, event: StepSkipped) -> None:
        run: Trace = event.state[self]
        run.ended.append((event.step, None, event.depends_on))

    def _step_started(self, event: StepStarted) -> None:
        run: Trace = event.state[self]
        if len(run.steps.spans) >= self._max_step_spans:
            run.deferred[event.step] = DeferredSpan(event)
            return
        span = self._step_span(run, event)
        if event.carrier is not None:
            store(span.get_span_context(), event.carrier, state=False)
        if self._step_events and self._logs.enabled():
            attributes = {**run.ids, names.STEP_NAME: fit(event.step)}
            self._logs.emit(names.STEP_STARTED, f"step {fit(event.step)} started", span, run.ns(event.at), attributes)
        otel.attach(trace.set_span_in_context(span))  # `make_current`, less a call: most spans come through here

    def _step_span(self, run: Trace, event: StepStarted) -> Span:
        depends_on = event.depends_on
        name, about = _about(event.workflow, event.step, event.function, event.max_attempts, depends_on)
        attributes = about.copy()
        attributes[names.RUN_ID] = event.run_id
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
        deferred = run.deferred.pop(step, None)
        if deferred is not None:
            self._step_span(run, deferred.started)

    def _step_finished(self, event: StepFinished) -> None:
        run: Trace = event.state[self]
        span = run.steps.spans.get(event.step)
        run.ended.append((event.step, event.duration, event.depends_on))
        if (
            event.outcome is not _SUCCESS
            or event.attempts > 1
            or (event.max_attempts > 1 and run.timed_out(event.step))
        ):
            self._late_span(run, event.step)
            self._finish(run, run.steps, event, {names.STEP_OUTCOME: str(event.outcome)})
        elif span is None:
            run.deferred[event.step].finished = event
        else:  # what most steps come through
            span.set_attribute(names.STEP_OUTCOME, "success")
            span.end(run.epoch + int(event.at * 1e9))

    def _finish(
        self, run: Trace, family: StepSpans, event: StepFinished | CompensationFinished, attributes: Attributes
    ) -> None:
        self._end_pauses(run, family, event.step, event.at)
        if event.attempts > 1:
            attributes[names.STEP_ATTEMPT] = event.attempts
            attributes[names.STEP_BACKOFF] = event.backoff
        attempts = family.attempts.pop(event.step, None)  # an error's traceback leads back to here
        recorded = None if attempts is None else attempts.recorded
        if attempts is not None and attempts.timed_out and event.outcome is _SUCCESS:
            attributes[names.STEP_LATE] = event.at - attempts.ended
        expected = isinstance(event, StepFinished) and event.expected
        self._end(run, family.spans[event.step], event, attributes, recorded=event.error is recorded, expected=expected)
        if event.error is not None:
            run.recorded.append(event.error)
            if expected:
                run.expected.append(event.error)

    def _step_completed_late(self, event: StepCompletedLate) -> None:
        run: Trace = event.state[self]
        attributes: Attributes = run.ids | {
            names.STEP_NAME: fit(event.step),
            names.STEP_ATTEMPT: event.attempt,
            names.STEP_OUTCOME: str(event.outcome),
            names.STEP_LATE: event.late,
        }
        if event.error is not None:
            attributes[names.ERROR_TYPE] = error_type(event.error)
        span = run.of(undo=event.undo).spans.get(event.step, run.span)
        body = f"attempt {event.attempt} of step {fit(event.step)} ended {event.late:.3g} s after its timeout"
        self._logs.emit(names.STEP_COMPLETED_LATE, body, span, run.ns(event.at), attributes)

    # -- attempts, of steps and of undos -------------------------------------------------------------------------------

    def _attempt_started(self, event: AttemptStarted) -> None:
        run: Trace = event.state[self]
        family = run.of(undo=event.undo)
        self._end_pauses(run, family, event.step, event.at)
        attempts = family.attempts.setdefault(event.step, AttemptSpans())
        attempts.started = event.at
        span = family.spans.get(event.step)
        if span is not None:
            make_current(self._open_attempt(run, attempts, span, event))

    def _open_attempt(
        self, run: Trace, attempts: AttemptSpans, parent: Span, event: AttemptStarted | AttemptFinished
    ) -> Span:
        attributes: Attributes = run.ids | {
            names.STEP_NAME: fit(event.step),
            names.STEP_ATTEMPT: event.attempt,
            names.STEP_MAX_ATTEMPTS: event.max_attempts,
        }
        attempts.attempt = self._child(parent, title(names.ATTEMPT, event.step), run.ns(attempts.started), attributes)
        return attempts.attempt

    def _attempt_finished(self, event: AttemptFinished) -> None:
        run: Trace = event.state[self]
        family = run.of(undo=event.undo)
        attempts = family.attempts.setdefault(event.step, AttemptSpans())
        attempts.ended, attempts.timed_out = event.at, event.outcome is Status.TIMEOUT
        if event.step not in family.spans:
            if event.outcome is _SUCCESS:
                return
            self._late_span(run, event.step)
            self._open_attempt(run, attempts, family.spans[event.step], event)
        attempts.recorded = event.error
        outcome = names.COMPENSATION_OUTCOME if event.undo else names.STEP_OUTCOME
        span = attempts.attempt or trace.INVALID_SPAN
        self._end(run, span, event, {outcome: str(event.outcome)}, expected=event.expected)

    def _backoff_started(self, event: BackoffStarted) -> None:
        run: Trace = event.state[self]
        attempts = run.of(undo=event.undo).attempts.get(event.step)
        if attempts is not None:
            attempts.backoff = event

    def _end_pauses(self, run: Trace, family: StepSpans, step: str, at: float) -> None:
        """Make the spans of what lies between the latest attempt's end and `at`: the wait for a call that had timed out,
        and a backoff."""
        attempts, parent = family.attempts.get(step), family.spans.get(step)
        if attempts is None:
            return
        planned, attempts.backoff = attempts.backoff, None
        if parent is None:
            return
        attributes: Attributes = run.ids | {names.STEP_NAME: fit(step)}
        until = at if planned is None else planned.at
        if attempts.timed_out and until > attempts.ended:
            span = self._child(parent, title(names.AWAIT, step), run.ns(attempts.ended), attributes)
            span.end(run.ns(until))
        if planned is not None:
            attributes[names.STEP_ATTEMPT] = planned.attempt
            attributes[names.BACKOFF_DELAY] = planned.delay
            attributes[names.BACKOFF_REASON] = planned.reason
            span = self._child(parent, title(names.BACKOFF, step), run.ns(planned.at), attributes)
            span.end(run.ns(at))

    # -- undos ---------------------------------------------------------------------------------------------------------

    def _compensation_started(self, event: CompensationStarted) -> None:
        run: Trace = event.state[self]
        deferred = run.deferred.get(event.step)
        if deferred is not None and deferred.finished is not None:
            self._late_span(run, event.step)
            self._finish(run, run.steps, deferred.finished, {names.STEP_OUTCOME: str(deferred.finished.outcome)})
        attributes = _about(event.workflow, event.step, event.function, event.max_attempts)[1].copy()
        attributes[names.RUN_ID] = event.run_id
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
        event: RunRefused | RunFinished | StepFinished | AttemptFinished | CompensationFinished | StoreCalled,
        attributes: Attributes,
        *,
        recorded: bool = False,
        expected: bool = False,
    ) -> None:
        """End a span; where it failed, say so, and record the exception unless a span inside it did (`recorded`). An
        `expected` error is only named: it is no error of the service."""
        end, error = run.ns(event.at), event.error
        outcome = "failure" if isinstance(event, RunRefused) else event.outcome
        try:
            if outcome is not _SUCCESS and outcome is not Status.WAITING:
                attributes[names.ERROR_TYPE] = error_type(error, outcome)
                if not expected:
                    span.set_status(StatusCode.ERROR, outcome if error is None else message(error))
                if error is not None and not recorded and not expected:
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
