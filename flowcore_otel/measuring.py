"""From events to measurements, once for all sinks. Every number comes from an event, so that the sinks agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowcore.events import (
    AttemptFinished,
    BackoffStarted,
    CompensationFinished,
    EngineStarted,
    Event,
    HookFailed,
    IdempotencyHit,
    LeaseLost,
    RunFinished,
    RunRecovered,
    RunStarted,
    RunSubmitted,
    StepFinished,
    StepLandedLate,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
    StoreSurveyed,
    WorkflowRegistered,
)

from . import names
from .exemplars import CALLER, TRACE, Exemplar, Traced, of_caller
from .names import Metric
from .series import Series, Write
from .text import error_type

__all__ = ["MeasuringHook"]

_SUCCESS = "success"


class _Run:
    """What is kept of one run until it ends."""

    __slots__ = ("at", "ready", "wall")

    def __init__(self, event: RunStarted) -> None:
        self.at = event.at
        self.wall = event.wall
        self.ready: set[str] = set()


class MeasuringHook:
    """Writes what events tell to the series of one destination."""

    wants: frozenset[type[Event]]

    def __init__(self, series: Series, *, exemplars: bool, max_series: int) -> None:
        self._series = series
        self._known = series.known
        self._exemplars = exemplars
        self._max_series = max_series
        self._waits = series.known[names.WAIT_DURATION]
        self._attempts = series.known[names.ATTEMPT_DURATION]
        self._steps = series.known[names.STEP_DURATION]
        self._ready = series.known[names.STEPS_READY]
        self.handlers: Mapping[type[Event], Callable[[Any], None]] = {
            EngineStarted: self._engine_started,
            WorkflowRegistered: self._workflow_registered,
            RunSubmitted: self._remember_caller,
            IdempotencyHit: self._idempotency_hit,
            RunStarted: self._run_started,
            RunRecovered: self._run_recovered,
            RunFinished: self._run_finished,
            StepReady: self._step_ready,
            StepSkipped: self._step_skipped,
            StepStarted: self._step_started,
            StepFinished: self._step_finished,
            StepLandedLate: self._step_landed_late,
            AttemptFinished: self._attempt_finished,
            BackoffStarted: self._backoff_started,
            CompensationFinished: self._compensation_finished,
            LeaseLost: self._lease_lost,
            StoreCalled: self._store_called,
            StoreSurveyed: self._store_surveyed,
            HookFailed: self._hook_failed,
        }
        self.wants = frozenset(self.handlers)
        self._to(names.BUILD_INFO, names.SCOPE_VERSION)(1)

    def __call__(self, event: Event, /) -> None:
        self.handlers[type(event)](event)

    def _to(self, metric: Metric, *labels: str) -> Write:
        write = self._known[metric].get(labels)
        return write or self._series.new(metric, labels, self._max_series, type(self).__name__)

    def _exemplar(
        self, event: Event, step: str | None = None, *, undo: bool = False, attempt: bool = False
    ) -> Exemplar | None:
        if not self._exemplars:
            return None
        run: Traced | None = event.state.get(TRACE)
        return event.state.get(CALLER) if run is None else run.exemplar(step, undo=undo, attempt=attempt)

    def _remember_caller(self, event: Event) -> None:
        if self._exemplars and CALLER not in event.state:
            event.state[CALLER] = of_caller()

    # -- engines and stores --------------------------------------------------------------------------------------------

    def _engine_started(self, event: EngineStarted) -> None:
        self._series.add_engine(event.workers)

    def _store_called(self, event: StoreCalled) -> None:
        self._to(names.STORE_DURATION, event.store, event.operation, event.outcome)(event.duration)

    def _store_surveyed(self, event: StoreSurveyed) -> None:
        totals: dict[Write, int] = {}  # past the limit, workflows share a series
        for (flow, status), count in event.counts.items():
            write = self._to(names.STORE_RUNS, flow, status)
            totals[write] = totals.get(write, 0) + count
        for write, total in totals.items():
            write(total)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _workflow_registered(self, event: WorkflowRegistered) -> None:
        # rate() and increase() miss the step from no sample to 1: the first failure would go unseen.
        flow = event.workflow
        self._to(names.WORKFLOW_INFO, flow, str(len(event.steps)))(1)
        self._to(names.OLDEST_START, flow)(self._series.oldest(flow))
        for metric in (names.RUNS_ACTIVE, names.STEPS_READY, names.LEASE_LOST):
            self._to(metric, flow)
        for metric, values in (
            (names.RUN_DURATION, names.RUN_OUTCOMES),
            (names.IDEMPOTENCY_HITS, names.IDEMPOTENCY_OUTCOMES),
            (names.RUN_RECOVERIES, names.RECOVERY_DECISIONS),
        ):
            for value in values:
                self._to(metric, flow, value)
        for step in event.steps:
            self._to(names.STEP_RETRIES, flow, step)
            self._to(names.LATE_LANDINGS, flow, step)
            for outcome in names.COMPENSATION_OUTCOMES:
                self._to(names.COMPENSATIONS, flow, step, outcome)
            for outcome in ("success", "failure"):  # all outcomes of all steps would be far too many buckets
                self._to(names.STEP_DURATION, flow, step, outcome)

    def _idempotency_hit(self, event: IdempotencyHit) -> None:
        self._remember_caller(event)
        self._to(names.IDEMPOTENCY_HITS, event.workflow, event.outcome)(1, self._exemplar(event))

    def _run_started(self, event: RunStarted) -> None:
        flow = event.workflow
        self._remember_caller(event)
        event.state[self] = _Run(event)
        self._to(names.RUNS_ACTIVE, flow)(1)
        self._series.started(flow, event.run_id, event.wall)
        self._to(names.OLDEST_START, flow)(self._series.oldest(flow))

    def _run_recovered(self, event: RunRecovered) -> None:
        self._to(names.RUN_RECOVERIES, event.workflow, event.decision)(1, self._exemplar(event))

    def _run_finished(self, event: RunFinished) -> None:
        flow = event.workflow
        run: _Run = event.state.pop(self)
        self._to(names.RUNS_ACTIVE, flow)(-1)
        self._series.finished(flow, event.run_id)
        self._to(names.OLDEST_START, flow)(self._series.oldest(flow))
        if run.ready:  # the run failed before they could start
            self._to(names.STEPS_READY, flow)(-len(run.ready))
        self._to(names.RUN_DURATION, flow, event.outcome)(event.duration, self._exemplar(event))
        if event.outcome == _SUCCESS:
            self._to(names.LAST_SUCCESS, flow)(run.wall + event.at - run.at)

    def _lease_lost(self, event: LeaseLost) -> None:
        self._to(names.LEASE_LOST, event.workflow)(1, self._exemplar(event))

    def _hook_failed(self, event: HookFailed) -> None:
        self._to(names.HOOK_ERRORS, event.hook)(1, self._exemplar(event))

    # -- steps ---------------------------------------------------------------------------------------------------------

    # What every step comes through looks its series up itself: a call less is a tenth of what it costs.

    def _step_ready(self, event: StepReady) -> None:
        flow, ready = event.workflow, event.state[self].ready
        ready.add(event.step)
        (self._ready.get((flow,)) or self._to(names.STEPS_READY, flow))(1)

    def _step_skipped(self, event: StepSkipped) -> None:
        ready: set[str] = event.state[self].ready
        if event.step in ready:
            ready.remove(event.step)
            self._to(names.STEPS_READY, event.workflow)(-1)

    def _step_started(self, event: StepStarted) -> None:
        flow, step = event.workflow, event.step
        ready: set[str] = event.state[self].ready
        if step in ready:
            ready.remove(step)
            (self._ready.get((flow,)) or self._to(names.STEPS_READY, flow))(-1)
        (self._waits.get((flow, step)) or self._to(names.WAIT_DURATION, flow, step))(event.waited)

    def _attempt_finished(self, event: AttemptFinished) -> None:
        if event.undo:
            return
        flow, step, outcome = event.workflow, event.step, event.outcome
        exemplar = self._exemplar(event, step, attempt=True) if self._exemplars else None
        write = self._attempts.get((flow, step, outcome)) or self._to(names.ATTEMPT_DURATION, flow, step, outcome)
        write(event.duration, exemplar)
        if outcome != _SUCCESS:
            self._to(names.STEP_ERRORS, flow, step, error_type(event.error, outcome))(1, exemplar)

    def _backoff_started(self, event: BackoffStarted) -> None:
        if not event.undo:
            exemplar = self._exemplar(event, event.step, attempt=True)
            self._to(names.STEP_RETRIES, event.workflow, event.step)(1, exemplar)

    def _step_finished(self, event: StepFinished) -> None:
        flow, step, outcome = event.workflow, event.step, event.outcome
        exemplar = self._exemplar(event, step) if self._exemplars else None
        write = self._steps.get((flow, step, outcome)) or self._to(names.STEP_DURATION, flow, step, outcome)
        write(event.duration, exemplar)

    def _step_landed_late(self, event: StepLandedLate) -> None:
        exemplar = self._exemplar(event, event.step, undo=event.undo)
        self._to(names.LATE_LANDINGS, event.workflow, event.step)(1, exemplar)

    def _compensation_finished(self, event: CompensationFinished) -> None:
        flow, step, outcome = event.workflow, event.step, event.outcome
        exemplar = self._exemplar(event, step, undo=True)
        self._to(names.COMPENSATIONS, flow, step, outcome)(1, exemplar)
        self._to(names.COMPENSATION_DURATION, flow, step, outcome)(event.duration, exemplar)
