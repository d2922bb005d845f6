"""The spans of steps, of their attempts and backoffs, and of undos."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from opentelemetry import context as otel, trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from flowcore import Status
from flowcore.events import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    RunFinished,
    RunRefused,
    StepCompletedLate,
    StepFinished,
    StepSkipped,
    StepStarted,
    StoreCalled,
)

from . import names
from .logs import LogEvents
from .spans import (
    AttemptSpans,
    DeferredSpan,
    StepSpans,
    Trace,
    make_current,
    store,
)
from .text import error_type, fit, message, title

__all__ = ["LISTED", "NO_LINKS", "Attributes", "StepTracing", "listed"]

LISTED: Final = 64  # step names in one attribute at most
NO_LINKS: Final[Sequence[Link]] = ()
_INTERNAL: Final = SpanKind.INTERNAL
_SAMPLED: Final = TraceFlags.SAMPLED
_DEPENDS_ON: Final = {names.LINK_TYPE: names.LINK_DEPENDS_ON}
_SUCCESS: Final = Status.SUCCESS
Attributes = dict[str, AttributeValue]


class StepTracing:
    """The part of `TracingHook` that handles steps and undos, and the helpers that start and end spans of a run."""

    _tracer: trace.Tracer
    _logs: LogEvents
    _max_step_spans: int
    _step_events: bool

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
        otel.attach(trace.set_span_in_context(span))  # inlines `make_current`: most spans are made here

    def _step_span(self, run: Trace, event: StepStarted) -> Span:
        depends_on = event.depends_on
        name, about = _about(event.workflow, event.step, event.function, event.max_attempts, depends_on)
        attributes = about.copy()
        attributes[names.RUN_ID] = event.run_id
        attributes[names.STEP_WAIT] = event.waited
        linked = NO_LINKS
        if depends_on:
            before = run.steps.spans.get(depends_on[0])
            if len(depends_on) > 1 or before is None:
                linked = run.waited_for(depends_on)
            elif (context := before.get_span_context()).trace_flags & _SAMPLED:  # most steps take this path
                linked = (Link(context, _DEPENDS_ON),)
        span = run.steps.spans[event.step] = self._tracer.start_span(
            name, run.context, _INTERNAL, attributes, linked, run.epoch + int(event.at * 1e9)
        )
        return span

    def _late_span(self, run: Trace, step: str) -> None:
        """Make the span of a step past max_step_spans after all. Does nothing if the step's span was not deferred."""
        deferred = run.deferred.pop(step, None)
        if deferred is not None:
            self._step_span(run, deferred.started)

    def _step_finished(self, event: StepFinished) -> None:
        run: Trace = event.state[self]
        span = run.steps.spans.get(event.step)
        run.ended.append((event.step, event.duration - event.earlier, event.depends_on))
        if (
            event.outcome is not _SUCCESS
            or event.attempts > 1
            or (event.max_attempts > 1 and run.timed_out(event.step))
        ):
            self._late_span(run, event.step)
            self._finish(run, run.steps, event, {names.STEP_OUTCOME: str(event.outcome)})
        elif span is None:
            run.deferred[event.step].finished = event
        else:  # most steps take this path
            span.set_attribute(names.STEP_OUTCOME, "success")
            span.end(run.epoch + int(event.at * 1e9))

    def _finish(
        self, run: Trace, family: StepSpans, event: StepFinished | CompensationFinished, attributes: Attributes
    ) -> None:
        self._end_pauses(run, family, event.step, event.at)
        if event.attempts > 1 or event.backoff:  # a backoff may be cut short, without another attempt
            attributes[names.STEP_ATTEMPT] = event.attempts
            attributes[names.STEP_BACKOFF] = event.backoff
        attempts = family.attempts.pop(event.step, None)  # breaks a reference cycle through an error's traceback
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
        """Make the spans of the pauses from the latest attempt's end to `at`: the wait for a call that had timed out
        and still ran, and the backoff."""
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
        """End a span. A failed one gets the status ERROR and records the exception, unless a span inside it has done so
        (`recorded`). An `expected` error only sets `error.type`, because it is not a failure of the service."""
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


@lru_cache(maxsize=1024)  # called for each step, and the result is the same in every run
def _about(
    workflow: str, step: str, function: str, max_attempts: int, depends_on: tuple[str, ...] = ()
) -> tuple[str, Attributes]:
    """Return the name of a step's span, and those of its attributes that are the same in every run."""
    attributes: Attributes = {
        names.WORKFLOW_NAME: fit(workflow),
        names.STEP_NAME: fit(step),
        names.STEP_MAX_ATTEMPTS: max_attempts,
        names.CODE_FUNCTION: fit(function),
    }
    if depends_on:
        attributes[names.STEP_DEPENDS_ON] = listed(depends_on)
        attributes[names.STEP_DEPENDS_ON_COUNT] = len(depends_on)
    return title(names.STEP, step), attributes


@lru_cache(maxsize=1024)  # called with the same steps in every run
def listed(steps: tuple[str, ...]) -> Sequence[str]:
    """Return the first LISTED of `steps` as the value of an attribute, short enough that no back end cuts it."""
    return tuple(fit(step) for step in steps[:LISTED])
