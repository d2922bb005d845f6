"""Turns events into measurements, in one place for all destinations, so that their numbers agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

from flowcore import Status
from flowcore.events import (
    AttemptFinished,
    BackoffStarted,
    CompensationFinished,
    EngineStarted,
    Event,
    HookFailed,
    HooksMeasured,
    IdempotencyHit,
    LeaseLost,
    MaintenanceFinished,
    RunDequeued,
    RunEnded,
    RunFinished,
    RunJoined,
    RunRecovered,
    RunRefused,
    RunStarted,
    RunSubmitted,
    ScheduleFired,
    ScheduleMissed,
    SchedulePlanned,
    StepCompletedLate,
    StepFinished,
    StoreCalled,
    StoreSurveyed,
    WaitFinished,
    WorkflowRegistered,
    schedule_of,
)

from . import names
from .context import CALLER, TRACE, Exemplar, Traced, exemplar_of_caller
from .names import Metric
from .series import InFlightRun, Series, Write, Writes
from .text import error_type

__all__ = ["MeasuringHook"]

_SUCCESS: Final = Status.SUCCESS
_WAITING: Final = Status.WAITING


class MeasuringHook:
    """Writes the numbers of events to the series of one destination."""

    wants: frozenset[type[Event]]
    lone_attempts = False  # a lone attempt takes as long as its step

    def __init__(self, series: Series, *, exemplars: bool, max_series: int, version: str | None) -> None:
        self._series = series
        self._known = series.known
        self._exemplars = exemplars
        self._max_series = max_series
        self.handlers: Mapping[type[Event], Callable[[Any], None]] = {
            EngineStarted: self._engine_started,
            WorkflowRegistered: self._workflow_registered,
            RunSubmitted: self._run_submitted,
            RunDequeued: self._run_dequeued,
            RunRefused: self._run_refused,
            IdempotencyHit: self._idempotency_hit,
            RunStarted: self._run_started,
            RunRecovered: self._run_recovered,
            RunJoined: self._run_joined,
            RunFinished: self._run_finished,
            RunEnded: self._run_ended,
            StepFinished: self._step_finished,
            StepCompletedLate: self._step_completed_late,
            WaitFinished: self._wait_finished,
            AttemptFinished: self._attempt_finished,
            BackoffStarted: self._backoff_started,
            CompensationFinished: self._compensation_finished,
            LeaseLost: self._lease_lost,
            StoreCalled: self._store_called,
            StoreSurveyed: self._store_surveyed,
            SchedulePlanned: self._schedule_planned,
            ScheduleFired: self._schedule_fired,
            ScheduleMissed: self._schedule_missed,
            HookFailed: self._hook_failed,
            HooksMeasured: self._hooks_measured,
            MaintenanceFinished: self._maintenance_finished,
        }
        self.wants = frozenset(self.handlers)
        self._to(names.BUILD_INFO, names.SCOPE_VERSION)(1)
        self._to(names.CAPPED, type(self).__name__)
        version = version or _service_version()
        if version is not None:
            self._to(names.APP_INFO, version)(1)

    def __call__(self, event: Event, /) -> None:
        self.handlers[type(event)](event)

    def _to(self, metric: Metric, *labels: str) -> Write:
        write = self._known[metric].get(labels)
        return write or self._series.new(metric, labels, self._max_series, type(self).__name__)

    def _exemplar(self, event: Event) -> Exemplar | None:
        """Return the exemplar of a run that may not have started here: that of its span, or else of its caller's."""
        if not self._exemplars:
            return None
        run: Traced | None = event.state.get(TRACE)
        return event.state.get(CALLER) if run is None else run.exemplar(None)

    def _remember_caller(self, event: Event) -> None:
        if self._exemplars and CALLER not in event.state:
            event.state[CALLER] = exemplar_of_caller()

    # -- engines and stores --------------------------------------------------------------------------------------------

    def _engine_started(self, event: EngineStarted) -> None:
        self._series.add_engine(event.workers, event.max_workers)
        for hook in event.hooks:  # see _workflow_registered
            self._to(names.HOOK_ERRORS, hook)
            self._to(names.HOOK_DURATION, hook)

    def _store_called(self, event: StoreCalled) -> None:
        self._to(names.STORE_DURATION, event.store, event.operation, event.outcome)(event.duration)

    def _store_surveyed(self, event: StoreSurveyed) -> None:
        for metric, counts in ((names.STORE_RUNS, event.counts), (names.STORE_WAITING, event.waiting)):
            totals: dict[Write, int] = {}  # past the limit, workflows and steps share a series
            for labels, count in counts.items():
                write = self._to(metric, *labels)
                totals[write] = totals.get(write, 0) + count
            for write, total in totals.items():
                write(total, event.is_open)

    def _schedule_planned(self, event: SchedulePlanned) -> None:
        of = event.workflow, event.schedule
        self._to(names.SCHEDULE_LATENESS, *of)
        for reason in names.MISSED_REASONS:  # see _workflow_registered
            self._to(names.SCHEDULE_MISSED, *of, reason)
        if event.due is not None:
            self._to(names.SCHEDULE_NEXT, *of)(event.due, event.is_open)

    def _schedule_fired(self, event: ScheduleFired) -> None:
        self._to(names.SCHEDULE_LATENESS, event.workflow, event.schedule)(event.lateness)

    def _schedule_missed(self, event: ScheduleMissed) -> None:
        self._to(names.SCHEDULE_MISSED, event.workflow, event.schedule, event.reason)(event.count)

    def _maintenance_finished(self, event: MaintenanceFinished) -> None:
        if event.kind == "recover" and event.error is None:
            self._to(names.LAST_RECOVERY)(event.wall, event.is_open)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _workflow_registered(self, event: WorkflowRegistered) -> None:
        # rate() and increase() do not see a series appear with the value 1, and would miss the first failure. Therefore
        # all series that alerts and panels count, divide or subtract start at 0.
        flow = event.workflow
        self._to(names.WORKFLOW_INFO, flow, str(len(event.steps)))(1)
        self._series.flow(flow)
        self._to(names.LEASE_LOST, flow)
        self._to(names.QUEUE_DURATION, flow)
        for metric, values in (
            (names.RUNS, names.RUN_OUTCOMES),
            (names.RUN_DURATION, names.RUN_OUTCOMES),
            (names.RUNS_REFUSED, names.REFUSALS),
            (names.IDEMPOTENCY_HITS, names.IDEMPOTENCY_OUTCOMES),
            (names.RUN_RECOVERIES, names.RECOVERY_DECISIONS),
        ):
            for value in values:
                self._to(metric, flow, value)
        for step in event.waits:
            for outcome in names.WAIT_OUTCOMES:
                self._to(names.WAITED, flow, step, outcome)
        several = {step for step, allowed in zip(event.steps, event.max_attempts, strict=False) if allowed > 1}
        for step in event.steps:
            for metric in (names.STEP_RETRIES, names.BACKOFF_SECONDS, names.LATE_COMPLETIONS, names.WAIT_DURATION):
                self._to(metric, flow, step)
            for outcome in names.ATTEMPT_OUTCOMES:
                self._to(names.STEP_ATTEMPTS, flow, step, outcome)
            for outcome in names.COMPENSATION_OUTCOMES:
                self._to(names.COMPENSATIONS, flow, step, outcome)
            # All outcomes of all steps would have far too many buckets.
            for outcome in ("success", "failure", *(["timeout"] if step in event.timeouts else [])):
                self._to(names.STEP_DURATION, flow, step, outcome)
                if step in several:
                    self._to(names.ATTEMPT_DURATION, flow, step, outcome)

    def _run_submitted(self, event: RunSubmitted) -> None:
        self._remember_caller(event)
        self._series.flow(event.workflow).enqueue(event.run_id)

    def _run_dequeued(self, event: RunDequeued) -> None:
        self._series.flow(event.workflow).dequeue(event.run_id)
        if event.begins:
            self._to(names.QUEUE_DURATION, event.workflow)(event.waited, self._exemplar(event))

    def _run_refused(self, event: RunRefused) -> None:
        if not event.overtaken and not event.stopped:
            self._to(names.RUNS_REFUSED, event.workflow, error_type(event.error))(1, self._exemplar(event))

    def _idempotency_hit(self, event: IdempotencyHit) -> None:
        self._remember_caller(event)
        self._to(names.IDEMPOTENCY_HITS, event.workflow, event.outcome)(1, self._exemplar(event))

    def _run_started(self, event: RunStarted) -> None:
        run = event.state[self] = self._series.flow(event.workflow).begin(event.at, event.wall, event.waiting)
        run.held_back = event.held_back
        if event.key is not None:
            run.schedule = schedule_of(event.key)
        if self._exemplars:
            traced: Traced | None = event.state.get(TRACE)
            if traced is None:
                self._remember_caller(event)
                run.caller = event.state[CALLER]
            elif traced.sampled:
                run.traced = traced

    def _run_joined(self, event: RunJoined) -> None:
        """Measure a part of a run that another process drives. That process counts the run as in flight."""
        run = event.state[self] = InFlightRun(self._series.flow(event.workflow), event.at, event.wall, _none_waits)
        traced: Traced | None = event.state.get(TRACE) if self._exemplars else None
        if traced is not None and traced.sampled:
            run.traced = traced

    def _run_recovered(self, event: RunRecovered) -> None:
        if not event.left:
            self._to(names.RUN_RECOVERIES, event.workflow, event.decision)(1, self._exemplar(event))

    def _run_finished(self, event: RunFinished) -> None:
        run: InFlightRun = event.state[self]
        run.flow.end(run)
        # A run that waits in its store, or is handed over to another process, is counted when it ends, and a run on
        # Temporal by the worker that ended it.
        counted = event.counted and type(self).__name__ in event.counted
        if event.outcome is not _WAITING and not event.left and not counted:
            self._count_end(run, event)

    def _run_ended(self, event: RunEnded) -> None:
        run: InFlightRun = event.state[self]
        if event.key is not None:
            run.schedule = schedule_of(event.key)
        self._count_end(run, event)
        event.counted.add(type(self).__name__)

    def _count_end(self, run: InFlightRun, event: RunFinished | RunEnded) -> None:
        flow, outcome, exemplar, at = event.workflow, event.outcome, run.exemplar(), run.wall + event.at - run.at
        runs, duration, *last = run.flow.ends.get(outcome) or self._end_writes(run, flow, outcome)
        runs(1, exemplar)
        duration(event.duration, exemplar)
        for write in last:
            write(at)
        if outcome is _SUCCESS and run.schedule is not None:
            self._to(names.SCHEDULE_LAST_SUCCESS, flow, run.schedule)(at)

    def _end_writes(self, run: InFlightRun, flow: str, outcome: str) -> tuple[Write, ...]:
        """Return the series of runs that end with `outcome`. They are cached, unless they are the shared series
        `_other`."""
        writes = (
            self._to(names.RUNS, flow, outcome),
            self._to(names.RUN_DURATION, flow, outcome),
            self._to(names.LAST_END, flow, outcome),
            *((self._to(names.LAST_SUCCESS, flow),) if outcome is _SUCCESS else ()),
        )
        if (flow, outcome) in self._known[names.RUNS]:
            run.flow.ends[outcome] = writes
        return writes

    def _lease_lost(self, event: LeaseLost) -> None:
        self._to(names.LEASE_LOST, event.workflow)(1, self._exemplar(event))

    def _hook_failed(self, event: HookFailed) -> None:
        self._to(names.HOOK_ERRORS, event.hook)(1, self._exemplar(event))

    def _hooks_measured(self, event: HooksMeasured) -> None:
        for hook, seconds in event.seconds.items():
            self._to(names.HOOK_DURATION, hook)(seconds)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _attempt_finished(self, event: AttemptFinished) -> None:
        if event.undo:
            return
        run: InFlightRun = event.state[self]
        exemplar = run.exemplar(event.step, attempt=True)
        self._to(names.ATTEMPT_DURATION, event.workflow, event.step, event.outcome)(event.duration, exemplar)
        self._attempted(event, exemplar)

    def _attempted(self, event: AttemptFinished | StepFinished, exemplar: Exemplar | None) -> None:
        flow, step, outcome = event.workflow, event.step, event.outcome
        self._to(names.STEP_ATTEMPTS, flow, step, outcome)(1, exemplar)
        if outcome is not _SUCCESS:
            self._to(names.STEP_ERRORS, flow, step, error_type(event.error, outcome))(1, exemplar)

    def _backoff_started(self, event: BackoffStarted) -> None:
        if not event.undo:
            run: InFlightRun = event.state[self]
            exemplar = run.exemplar(event.step, attempt=True)
            self._to(names.STEP_RETRIES, event.workflow, event.step)(1, exemplar)

    def _step_finished(self, event: StepFinished) -> None:
        # The wait is recorded here too, because another event for each step would cost more than all its measurements.
        run: InFlightRun = event.state[self]
        step, duration, outcome = event.step, event.duration, event.outcome
        exemplar = run.caller if run.traced is None else run.traced.exemplar(step)
        if outcome is _SUCCESS:
            wait, attempt, whole = run.steps.get(step) or self._writes(run, event.workflow, step)
            wait(event.waited)
            if event.max_attempts == 1:
                attempt(1, exemplar)
            whole(duration, exemplar)
        elif outcome is not _WAITING:  # a step that waits for its next attempt is counted when it ends
            self._to(names.WAIT_DURATION, event.workflow, step)(event.waited)
            if event.max_attempts == 1:
                self._attempted(event, exemplar)
            self._to(names.STEP_DURATION, event.workflow, step, outcome)(duration, exemplar)
        if event.backoff and outcome is not _WAITING:
            self._to(names.BACKOFF_SECONDS, event.workflow, step)(event.backoff, exemplar)

    def _writes(self, run: InFlightRun, flow: str, step: str) -> Writes:
        """Return the series of a successful step. They are cached, unless they are the shared series `_other`."""
        of_outcome = (flow, step, _SUCCESS)
        writes = (
            self._to(names.WAIT_DURATION, flow, step),
            self._to(names.STEP_ATTEMPTS, *of_outcome),
            self._to(names.STEP_DURATION, *of_outcome),
        )
        if of_outcome in self._known[names.STEP_DURATION]:
            run.steps[step] = writes
        return writes

    def _wait_finished(self, event: WaitFinished) -> None:
        run: InFlightRun = event.state[self]
        self._to(names.WAITED, event.workflow, event.step, event.outcome)(event.waited, run.exemplar())

    def _step_completed_late(self, event: StepCompletedLate) -> None:
        run: InFlightRun = event.state[self]
        exemplar = run.exemplar(event.step, undo=event.undo)
        self._to(names.LATE_COMPLETIONS, event.workflow, event.step)(1, exemplar)

    def _compensation_finished(self, event: CompensationFinished) -> None:
        run: InFlightRun = event.state[self]
        flow, step, outcome = event.workflow, event.step, event.outcome
        exemplar = run.exemplar(step, undo=True)
        self._to(names.COMPENSATIONS, flow, step, outcome)(1, exemplar)
        self._to(names.COMPENSATION_DURATION, flow, step, outcome)(event.duration, exemplar)


def _none_waits() -> int:
    return 0


def _service_version() -> str | None:
    """Return `service.version` of OTEL_RESOURCE_ATTRIBUTES, parsed as by the SDK, or None."""
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, _, value = pair.partition("=")
        if name.strip() == "service.version" and value.strip():
            return unquote(value.strip())
    return None
