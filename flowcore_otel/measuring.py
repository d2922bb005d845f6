"""From events to measurements, once for all sinks. Every number comes from an event, so that the sinks agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

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
from .inflight import Going, Write
from .names import Metric
from .series import Series
from .text import error_type

__all__ = ["MeasuringHook"]

_SUCCESS: Final = Status.SUCCESS


class MeasuringHook:
    """Writes what events tell to the series of one destination."""

    wants: frozenset[type[Event]]

    def __init__(self, series: Series, *, exemplars: bool, max_series: int) -> None:
        self._series = series
        self._known = series.known
        self._exemplars = exemplars
        self._max_series = max_series
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
            HooksMeasured: self._hooks_measured,
        }
        self.wants = frozenset(self.handlers)
        self._to(names.BUILD_INFO, names.SCOPE_VERSION)(1)

    def __call__(self, event: Event, /) -> None:
        self.handlers[type(event)](event)

    def _to(self, metric: Metric, *labels: str) -> Write:
        write = self._known[metric].get(labels)
        return write or self._series.new(metric, labels, self._max_series, type(self).__name__)

    def _of_step(
        self, cache: dict[str, Write], metric: Metric, workflow: str, step: str, outcome: str | None = None
    ) -> Write:
        """A series of one step, and from now on in `cache`, unless it is past a limit and stands in for others too."""
        labels = (workflow, step) if outcome is None else (workflow, step, outcome)
        write = self._to(metric, *labels)
        if labels in self._known[metric]:
            cache[step] = write
        return write

    def _exemplar(self, event: Event) -> Exemplar | None:
        """Of a run that may not have started here."""
        if not self._exemplars:
            return None
        run: Traced | None = event.state.get(TRACE)
        return event.state.get(CALLER) if run is None else run.exemplar(None)

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
        self._series.flow(flow)
        self._to(names.LEASE_LOST, flow)
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
        run = event.state[self] = self._series.flow(event.workflow).begin(event.at, event.wall)
        if self._exemplars:
            traced: Traced | None = event.state.get(TRACE)
            if traced is None:
                self._remember_caller(event)
                run.caller = event.state[CALLER]
            elif traced.sampled:
                run.traced = traced

    def _run_recovered(self, event: RunRecovered) -> None:
        self._to(names.RUN_RECOVERIES, event.workflow, event.decision)(1, self._exemplar(event))

    def _run_finished(self, event: RunFinished) -> None:
        flow = event.workflow
        run: Going = event.state[self]
        run.flow.end(run)
        self._to(names.RUN_DURATION, flow, event.outcome)(event.duration, run.exemplar())
        if event.outcome is _SUCCESS:
            self._to(names.LAST_SUCCESS, flow)(run.wall + event.at - run.at)

    def _lease_lost(self, event: LeaseLost) -> None:
        self._to(names.LEASE_LOST, event.workflow)(1, self._exemplar(event))

    def _hook_failed(self, event: HookFailed) -> None:
        self._to(names.HOOK_ERRORS, event.hook)(1, self._exemplar(event))

    def _hooks_measured(self, event: HooksMeasured) -> None:
        for hook, seconds in event.seconds.items():
            self._to(names.HOOK_DURATION, hook)(seconds)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _step_ready(self, event: StepReady) -> None:
        run: Going = event.state[self]
        run.ready.add(event.step)

    def _step_skipped(self, event: StepSkipped) -> None:
        run: Going = event.state[self]
        run.ready.discard(event.step)

    def _step_started(self, event: StepStarted) -> None:
        run: Going = event.state[self]
        step = event.step
        run.ready.discard(step)
        write = run.waits.get(step) or self._of_step(run.waits, names.WAIT_DURATION, event.workflow, step)
        write(event.waited)

    def _attempt_finished(self, event: AttemptFinished) -> None:
        if event.undo:
            return
        run: Going = event.state[self]
        step, metric = event.step, names.ATTEMPT_DURATION
        exemplar = run.caller if run.traced is None else run.traced.exemplar(step, attempt=True)
        if event.outcome is _SUCCESS:
            write = run.attempts.get(step) or self._of_step(run.attempts, metric, event.workflow, step, _SUCCESS)
            write(event.duration, exemplar)
        else:
            flow, outcome = event.workflow, event.outcome
            self._to(metric, flow, step, outcome)(event.duration, exemplar)
            self._to(names.STEP_ERRORS, flow, step, error_type(event.error, outcome))(1, exemplar)

    def _backoff_started(self, event: BackoffStarted) -> None:
        if not event.undo:
            run: Going = event.state[self]
            exemplar = run.exemplar(event.step, attempt=True)
            self._to(names.STEP_RETRIES, event.workflow, event.step)(1, exemplar)

    def _step_finished(self, event: StepFinished) -> None:
        run: Going = event.state[self]
        step, metric = event.step, names.STEP_DURATION
        exemplar = run.caller if run.traced is None else run.traced.exemplar(step)
        if event.outcome is _SUCCESS:
            write = run.steps.get(step) or self._of_step(run.steps, metric, event.workflow, step, _SUCCESS)
        else:
            write = self._to(metric, event.workflow, step, event.outcome)
        write(event.duration, exemplar)

    def _step_landed_late(self, event: StepLandedLate) -> None:
        run: Going = event.state[self]
        exemplar = run.exemplar(event.step, undo=event.undo)
        self._to(names.LATE_LANDINGS, event.workflow, event.step)(1, exemplar)

    def _compensation_finished(self, event: CompensationFinished) -> None:
        run: Going = event.state[self]
        flow, step, outcome = event.workflow, event.step, event.outcome
        exemplar = run.exemplar(step, undo=True)
        self._to(names.COMPENSATIONS, flow, step, outcome)(1, exemplar)
        self._to(names.COMPENSATION_DURATION, flow, step, outcome)(event.duration, exemplar)
