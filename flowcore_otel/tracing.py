"""`TracingHook`: the spans of a run.

run {workflow}
├── step {step}
│   ├── attempt {step}       attempt, await and backoff exist only where the definition allows several attempts;
│   ├── await {step}         user code runs in the span of its attempt, or else of its step
│   ├── backoff {step}
│   └── attempt {step}
└── compensate {step}        the undo, linked to its step, with attempts and backoffs like a step

`submit {workflow}` is the caller's side of `engine.submit`. If a request meets an earlier run with its key, its span
is renamed from `run {workflow}` to `idempotency hit {workflow}`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Final

from opentelemetry import context as otel, trace
from opentelemetry._logs import LoggerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode

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
    CriticalPath,
    Suppressed,
    Trace,
    current_span,
    links,
    store,
    stored,
    suppress_instrumentation,
)
from .step_tracing import LISTED, NO_LINKS, Attributes, StepTracing, listed
from .text import fit, hashed, title

__all__ = ["TracingHook"]

_INTERNAL: Final = SpanKind.INTERNAL
_CALLERS_CONTEXT: Final = "flowcore_otel.context"
"""key in a run's state: the caller's context, before any TracingHook made its own span current"""
_OWNER: Final = {
    "host": names.INTERRUPTED_RUN_HOST,
    "pid": names.INTERRUPTED_RUN_PID,
    "since": names.INTERRUPTED_RUN_SINCE,
    "step": names.INTERRUPTED_RUN_STEP,
}
_SUCCESS: Final = Status.SUCCESS
_UNDONE_OR_NOTHING: Final = frozenset({Status.FAILURE, Status.COMPENSATED})
"""outcomes of a failed run after which nothing is left to undo or to resume"""
_REFUSALS: Final = {
    "in_progress": "another run with this key is still in progress",
    "mismatch": "the key was already used with another workflow or other values",
    "held": "the run with this key is held until an operator decides",
}


class TracingHook(StepTracing):
    """Turns the events of runs into OpenTelemetry spans, and makes the innermost one current inside user code.

    `tracer_provider`, `logger_provider`: by default the global ones. `max_step_spans`: when a run has so many spans of
    steps, only steps that fail, are retried or are undone get one. `step_events`: also emit the start of each step as a
    log event, which remains if the process dies. `key_hash`: a function that returns what spans show of an idempotency
    key; if it is None, or returns None, they show nothing. `store_spans`: make one span `store {verb}` for each call of
    the store. Whether or not it is set, instrumented clients make no spans during such a call.

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
        """Suppress the spans of the store's client, which would bury those of the steps."""
        suppress_instrumentation()

    def across_processes(self) -> Callable[[], object] | None:
        """Return a function that makes the current span the parent of the spans of a step with `executor=`.

        Returns None if the current span is invalid, for instance without an SDK.
        """
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
        kind, linked = _INTERNAL, NO_LINKS
        caller: Span = trace.INVALID_SPAN
        if event.submitted:
            kind = SpanKind.CONSUMER
            submit, propagation = state.get((self, RunSubmitted), (None, "link"))
            if propagation == "child":
                context = trace.set_span_in_context(submit, context)
            else:  # the run gets its own trace, linked to the caller's
                context = trace.set_span_in_context(caller, context)
                linked = links(names.LINK_REQUEST, submit)
        elif event.recovering:  # no caller waits for the run
            context = trace.set_span_in_context(caller, context)
        else:
            caller = trace.get_current_span(context)
        name, workflow = _named(event.workflow)
        attributes: Attributes = {names.WORKFLOW_NAME: workflow, names.RUN_ID: fit(event.run_id)}
        key_hash = self._key_hash(event.key) if event.key is not None and self._key_hash is not None else None
        if key_hash is not None:
            attributes[names.IDEMPOTENCY_KEY_HASH] = fit(key_hash)
        span = self._tracer.start_span(name, context, kind, attributes, linked, wall)
        context = trace.set_span_in_context(span, context)
        if store(span.get_span_context(), event.carrier):  # without an SDK, the caller's trace continues instead
            # The span is current from here on, during the claim too, in the run's own context, which ends with the run.
            # It is made current even if it is not sampled: otherwise spans of user code would be sampled as new roots.
            otel.attach(context)
        if event.key is None and not span.is_recording():  # without a key it cannot be a replay
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
        run: Trace | None = event.state.get(self)
        if run is not None:  # a submitted run that could not be recorded has no span
            self._end(run, run.span, event, {}, expected=event.overtaken)

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
        """Make the run's span, which another process records, the parent of the spans made here."""
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
        attributes: Attributes = run.ids | {name: listed(steps) for name, steps in found.items() if steps}
        run.before = event.carriers
        name = title(names.RECOVER, event.workflow)
        span = self._child(run.span, name, run.ns(run.started_at), attributes, run.interrupted)
        span.end(run.ns(event.at))

    def _run_finished(self, event: RunFinished) -> None:
        run: Trace = event.state[self]
        path = CriticalPath(run.ended)
        attributes: Attributes = {
            names.RUN_OUTCOME: str(event.outcome),
            names.RUN_CRITICAL_PATH: listed(tuple(path.longest(LISTED))),
            names.RUN_CRITICAL_PATH_LENGTH: len(path.steps),
            names.RUN_CRITICAL_PATH_SECONDS: path.seconds,
        }
        seconds = event.at - run.started_at  # the span's own: an earlier owner had the steps before
        if seconds > 0:
            attributes[names.RUN_PARALLELISM] = path.total / seconds
        if event.skipped:
            attributes[names.RUN_SKIPPED] = listed(event.skipped)
        if run.deferred:
            attributes[names.RUN_UNTRACED_STEPS] = len(run.deferred)
        if run.store_seconds:
            attributes[names.RUN_STORE_SECONDS] = run.store_seconds
        recorded = event.error is not None and (event.elsewhere or run.was_recorded(event.error))
        expected = event.expected or any(event.error is error for error in run.expected)
        expected = expected and event.outcome in _UNDONE_OR_NOTHING
        self._end(run, run.span, event, attributes, recorded=recorded, expected=expected)
        run.recorded.clear()  # breaks reference cycles: the errors' tracebacks lead back to this run
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
        """Store the current span's context with the value, so that the run that receives the value can link to it."""
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

    def _maintenance_started(self, _: MaintenanceStarted) -> object:
        return Suppressed()


@lru_cache(maxsize=1024)  # called for each run
def _named(workflow: str) -> tuple[str, str]:
    """Return the name of the span of a run, and the name of its workflow as an attribute."""
    return title(names.RUN, workflow), fit(workflow)
