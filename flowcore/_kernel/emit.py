"""Events for the hooks: those of runs are built and emitted here, those of steps in `emit_steps`, and only if a hook
wants their type.

The function for a start event enters the context managers that hooks return, in a copy of the enclosing contextvars
context, and returns an `EventScope`; the function for the finish event leaves them.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from ..errors import LeaseLost as LeaseLostError, RunNotFound, RunTimeout
from ..events import (
    HooksMeasured,
    IdempotencyHit,
    LeaseLost,
    MaintenanceFinished,
    MaintenanceStarted,
    RunDequeued,
    RunFinished,
    RunJoined,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    RunSubmitted,
    StoreCalled,
)
from ..events.hooks import Hook
from ..run import Run
from ..status import Status
from .run_state import RunState
from .scopes import EventScope

__all__ = [
    "dequeued",
    "fields_of",
    "hit",
    "joined",
    "lease_lost",
    "maintenance_finished",
    "maintenance_started",
    "prepare_store_context",
    "recovered",
    "refused",
    "requested",
    "run_finished",
    "run_started",
    "store_called",
    "submitted",
]


_OVERTAKEN: Final = (LeaseLostError, RunNotFound)
"""errors with which a recovery ends if another owner, or an operator, was faster"""


def fields_of(run: RunState, at: float) -> tuple[str, str, float, dict[Any, Any]]:
    """Return the fields that every event of a run begins with."""
    return run.workflow.name, run.run_id, at, run.state


def _of_request(run: RunState, at: float) -> tuple[str, str, float, dict[Any, Any]]:
    """Return those fields for an event before the claim. Until that is granted, a run to be resumed has another id."""
    return run.workflow.name, run.request.recovering or run.run_id, at, run.state


def submitted(run: RunState, propagation: str) -> None:
    """Emit that a run was submitted, in a copy of the caller's contextvars context."""
    at = run.submitted_at = run.settings.clock()
    if RunSubmitted in run.wanted:
        run.hooks.emit(RunSubmitted(*fields_of(run, at), run.key, propagation), contextvars.copy_context())


def dequeued(run: RunState, *, begins: bool = False, error: BaseException | None = None) -> None:
    """Emit that a submitted run has left the queue, and whether it begins, or was refused because of `error`. Does
    nothing if it had left the queue before."""
    since, run.submitted_at = run.submitted_at, None
    if since is None:
        return
    if RunDequeued in run.wanted:
        at = run.settings.clock()
        run.hooks.emit(RunDequeued(*fields_of(run, at), at - since, begins), run.context.copy())
    if isinstance(error, Exception):
        refused(run, error)


def requested(run: RunState) -> None:
    if run.submitted_at is not None:
        dequeued(run, begins=True)
    if RunRequested in run.wanted:
        carrier: dict[str, str] = {}
        leaving: list[Hook] = []
        at, wall = run.settings.clock(), run.settings.wall()
        event = RunRequested(
            *_of_request(run, at), run.key, wall, carrier, run.request.submitted, run.request.recovering is not None
        )
        run.hooks.emit(event, run.context, leaving)
        run.carrier = carrier
        if leaving:
            _skip(run, leaving)
    prepare_store_context(run)


def prepare_store_context(run: RunState) -> None:
    """Have the hooks prepare the context in which the store is called for the run, from the run's context as it is
    now."""
    if run.hooks.around_store and run.settings.store.blocks:
        run.store_context = run.hooks.store_context(run.context)


def _skip(run: RunState, leaving: list[Hook]) -> None:
    """Emit no more events of the run to these hooks."""
    run.hooks = run.hooks.without(leaving)
    run.wanted = run.hooks.wanted
    run.observed = bool(run.wanted) or run.ledger is not None


def hit(run: RunState, outcome: str, run_id: str, carrier: Mapping[str, str], age: float | None) -> None:
    if IdempotencyHit in run.wanted:
        event = IdempotencyHit(*fields_of(run, run.settings.clock()), run.key or "", outcome, run_id, carrier, age)
        run.hooks.emit(event, run.context)
    _measured(run)


def refused(run: RunState, error: BaseException) -> None:
    if RunRefused in run.wanted:
        request, at = run.request, run.settings.clock()
        overtaken = request.recovering is not None and request.wait is None and isinstance(error, _OVERTAKEN)
        stopped = (error is run.error and not isinstance(error, RunTimeout)) or not isinstance(error, Exception)
        run.hooks.emit(RunRefused(*_of_request(run, at), run.key, error, overtaken, stopped), run.context)
    _measured(run)


def _measured(run: RunState) -> None:
    """Emit, after the last event, how long the hooks of the run took, if that was measured, as it is for some runs."""
    if HooksMeasured in run.wanted and (hook_seconds := run.hooks.hook_seconds) is not None:
        run.hooks.emit(HooksMeasured(*fields_of(run, run.settings.clock()), hook_seconds), run.context)


def _held_back(run: RunState) -> Callable[[], int]:
    """Return a function that counts the ready steps that wait for another step of the run to end, not for a thread."""
    ready, limit = run.ready, run.limit
    if limit == run.settings.parallel and not run.settings.runs_async:
        return int
    return lambda: max(0, len(ready) - max(0, limit - run.running))


def run_started(run: RunState) -> EventScope:
    scope = EventScope(run.settings.clock(), run.context)
    if RunStarted in run.wanted:
        leaving: list[Hook] = []
        earlier = run.earlier
        event = RunStarted(
            *fields_of(run, scope.at),
            run.key,
            run.settings.wall(),
            run.carrier,
            run.fence,
            None if earlier is None else run.run_id,
            {} if earlier is None else earlier.carrier,
            run.ready.__len__,
            {} if earlier is None else earlier.owner,
            earlier is not None and earlier.waited,
            _held_back(run),
        )
        scope.enter(run.hooks, event, leaving)
        if leaving:
            _skip(run, leaving)
    return scope


def joined(run: RunState, carriers: Mapping[str, Mapping[str, str]]) -> None:
    """Emit that a part of a run which another process drives has come to this one. `carriers`: the trace contexts of
    the steps that this part depends on, by name."""
    if RunJoined in run.wanted:
        leaving: list[Hook] = []
        at, wall = run.settings.clock(), run.settings.wall()
        event = RunJoined(*fields_of(run, at), wall, run.carrier, carriers)
        run.hooks.emit(event, run.context, leaving)
        if leaving:
            _skip(run, leaving)


def recovered(run: RunState, event: RunRecovered) -> None:
    if RunRecovered in run.wanted:
        run.hooks.emit(event, run.context)


def lease_lost(run: RunState) -> None:
    if LeaseLost in run.wanted:
        event = LeaseLost(*fields_of(run, run.settings.clock()))
        run.hooks.emit(event, run.context.copy())


def store_called(run: RunState, verb: str, began: float, error: BaseException | None, *, healthy: bool) -> None:
    """Emit that a verb of the store was called at the moment `began` (monotonic). `healthy`: whether the store works,
    even if it refused the call."""
    if StoreCalled in run.wanted:
        at, name = run.settings.clock(), run.settings.store.name
        outcome = Status.SUCCESS if healthy else Status.FAILURE
        event = StoreCalled(*fields_of(run, at), name, verb, outcome, at - began, error)
        run.hooks.emit(event, run.context.copy())


def maintenance_started(run: RunState, kind: str) -> EventScope:
    scope = EventScope(run.settings.clock(), run.context.copy())
    if MaintenanceStarted in run.wanted:
        scope.enter(run.hooks, MaintenanceStarted("", "", scope.at, run.state, kind))
    return scope


def maintenance_finished(run: RunState, scope: EventScope, kind: str, error: BaseException | None) -> None:
    if MaintenanceFinished in run.wanted:
        at = run.settings.clock()
        event = MaintenanceFinished("", "", at, run.state, kind, at - scope.at, error, run.settings.wall())
        run.hooks.emit(event, scope.context)
    scope.exit(run.hooks, error)


def run_finished(
    run: RunState, scope: EventScope, finished: Run, *, elsewhere: bool = False, counted: Collection[str] = ()
) -> None:
    """Emit the end of the run, and leave its scope. `elsewhere`: its steps ran in other processes. `counted`: classes of
    the hooks that have counted it there."""
    at = run.settings.clock()
    if RunFinished in run.wanted:
        skipped: tuple[str, ...] = ()
        if run.plan.conditional or run.ledger is not None:  # a record may have steps that an earlier definition skipped
            skipped = tuple(name for name, report in run.reports.items() if report.status is Status.SKIPPED)
        event = RunFinished(
            *fields_of(run, at),
            finished.status,
            at - (scope.at if run.began is None else min(run.began, scope.at)),
            finished.error,
            skipped,
            tuple(run.undone) if run.stopped else (),
        )
        event.counted, event.left = counted, run.released
        if elsewhere and finished.failed_step is not None:
            event.elsewhere = True
            event.expected = isinstance(finished.error, run.plan.by_name[finished.failed_step].expected)
        run.hooks.emit(event, run.context)
    if scope.scopes is not None:
        scope.exit(run.hooks, finished.error)
    _measured(run)
