"""Events for the hooks: every event of a run is built and emitted here, and only if a hook wants its type.

The function for a start event enters the context managers that hooks return, in a copy of the enclosing contextvars
context, and returns an `EventScope`; the function for the finish event leaves them.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from ..errors import LeaseLost as LeaseLostError, RunNotFound, RunTimeout, StepCancelled, safe_repr
from ..events import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
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
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
    WaitFinished,
    WaitStarted,
)
from ..events.hooks import Hook
from ..functions import function_name
from ..plan import Node
from ..retry import Pause
from ..run import Run, Sent
from ..status import Status
from .effects import Call
from .outcome import StepEnd
from .run_state import RunState
from .scopes import EventScope, StepScope
from .stopping import is_handed_over

__all__ = [
    "attempt_cancelled",
    "attempt_finished",
    "attempt_started",
    "backoff_started",
    "completed_late",
    "dequeued",
    "first_ready",
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
    "step_finished",
    "step_skipped",
    "step_started",
    "steps_ready",
    "store_called",
    "submitted",
    "undo_finished",
    "undo_started",
    "wait_finished",
    "wait_started",
]


_OVERTAKEN: Final = (LeaseLostError, RunNotFound)
"""errors with which a recovery ends if another owner, or an operator, was faster"""


def _of(run: RunState, at: float) -> tuple[str, str, float, dict[Any, Any]]:
    """Return the fields that every event of a run begins with."""
    return run.workflow.name, run.run_id, at, run.state


def _of_request(run: RunState, at: float) -> tuple[str, str, float, dict[Any, Any]]:
    """Return those fields for an event before the claim. Until that is granted, a run to be resumed has another id."""
    return run.workflow.name, run.request.recovering or run.run_id, at, run.state


def submitted(run: RunState, propagation: str) -> None:
    """Emit that a run was submitted, in a copy of the caller's contextvars context."""
    at = run.submitted_at = run.settings.clock()
    if RunSubmitted in run.wanted:
        run.hooks.emit(RunSubmitted(*_of(run, at), run.key, propagation), contextvars.copy_context())


def dequeued(run: RunState, *, begins: bool = False, error: BaseException | None = None) -> None:
    """Emit that a submitted run has left the queue, and whether it begins, or was refused because of `error`. Does
    nothing if it had left the queue before."""
    since, run.submitted_at = run.submitted_at, None
    if since is None:
        return
    if RunDequeued in run.wanted:
        at = run.settings.clock()
        run.hooks.emit(RunDequeued(*_of(run, at), at - since, begins), run.context.copy())
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
        event = IdempotencyHit(*_of(run, run.settings.clock()), run.key or "", outcome, run_id, carrier, age)
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
    hook_seconds = run.hooks.hook_seconds
    if hook_seconds is not None and HooksMeasured in run.wanted:
        run.hooks.emit(HooksMeasured(*_of(run, run.settings.clock()), hook_seconds), run.context)


def run_started(run: RunState) -> EventScope:
    scope = EventScope(run.settings.clock(), run.context)
    if RunStarted in run.wanted:
        leaving: list[Hook] = []
        earlier = run.earlier
        event = RunStarted(
            *_of(run, scope.at),
            run.key,
            run.settings.wall(),
            run.carrier,
            run.fence,
            None if earlier is None else run.run_id,
            {} if earlier is None else earlier.carrier,
            run.ready.__len__,
            {} if earlier is None else earlier.owner,
            earlier is not None and earlier.waited,
        )
        scope.enter(run.hooks, event, leaving)
        if leaving:
            _skip(run, leaving)
    return scope


def first_ready(run: RunState) -> None:
    run.ready_at.update(dict.fromkeys(run.ready, run.settings.clock()))
    steps_ready(run, run.ready)


def joined(run: RunState, carriers: Mapping[str, Mapping[str, str]]) -> None:
    """Emit that a part of a run which another process drives has come to this one. `carriers`: the trace contexts of
    the steps that this part depends on, by name."""
    if RunJoined in run.wanted:
        leaving: list[Hook] = []
        at, wall = run.settings.clock(), run.settings.wall()
        event = RunJoined(*_of(run, at), wall, run.carrier, carriers)
        run.hooks.emit(event, run.context, leaving)
        if leaving:
            _skip(run, leaving)


def recovered(run: RunState, event: RunRecovered) -> None:
    if RunRecovered in run.wanted:
        run.hooks.emit(event, run.context)


def lease_lost(run: RunState) -> None:
    if LeaseLost in run.wanted:
        event = LeaseLost(*_of(run, run.settings.clock()))
        run.hooks.emit(event, run.context.copy())


def store_called(run: RunState, verb: str, began: float, error: BaseException | None, *, healthy: bool) -> None:
    """Emit that a verb of the store was called at the moment `began` (monotonic). `healthy`: whether the store works,
    even if it refused the call."""
    if StoreCalled in run.wanted:
        at, name = run.settings.clock(), run.settings.store.name
        outcome = Status.SUCCESS if healthy else Status.FAILURE
        event = StoreCalled(*_of(run, at), name, verb, outcome, at - began, error)
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
            *_of(run, at),
            finished.status,
            at - (scope.at if run.began is None else min(run.began, scope.at)),
            finished.error,
            skipped,
            tuple(run.undone) if run.stopped else (),
        )
        event.counted, event.left = counted, is_handed_over(run)
        if elsewhere and finished.failed_step is not None:
            event.elsewhere = True
            event.expected = isinstance(finished.error, run.plan.by_name[finished.failed_step].expected)
        run.hooks.emit(event, run.context)
    if scope.scopes is not None:
        scope.exit(run.hooks, finished.error)
    _measured(run)


def steps_ready(run: RunState, nodes: Iterable[int]) -> None:
    """Emit that `nodes` are ready, by index. A wait takes no worker."""
    if StepReady in run.wanted:
        for node in (run.plan.nodes[index] for index in nodes):
            if node.wait is None:
                event = StepReady(*_of(run, run.ready_at[node.index]), node.name)
                run.hooks.emit(event, run.context.copy())


def wait_started(run: RunState, node: Node) -> None:
    if WaitStarted in run.wanted and node.wait is not None:
        at, wait = run.settings.clock(), node.wait
        event = WaitStarted(*_of(run, at), node.name, wait.timeout, wait.sleeps)
        run.hooks.emit(event, run.context.copy())


def wait_finished(run: RunState, node: Node, end: StepEnd, waited: float, sent: Sent | None) -> None:
    if WaitFinished in run.wanted:
        at = run.settings.clock()
        sender: Mapping[str, str] = {} if sent is None else sent.carrier
        event = WaitFinished(*(*_of(run, at), node.name), end.status, waited, end.error, sender, node.dependencies)
        run.hooks.emit(event, run.context.copy())


def step_skipped(run: RunState, node: Node) -> None:
    if StepSkipped in run.wanted:
        run.hooks.emit(StepSkipped(*_of(run, run.settings.clock()), node.name, node.dependencies), run.context.copy())


def step_started(run: RunState, node: Node) -> StepScope:
    at, before = run.settings.clock(), run.tried.get(node.name)
    ready = run.ready_at.get(node.index, at)
    if before is not None and before.retry_at is not None and run.ledger is not None:
        ready = max(ready, before.retry_at - run.ledger.epoch)
    scope = StepScope(at, run.context.copy(), max(0.0, at - ready))
    if StepStarted in run.wanted:
        event = StepStarted(
            *_of(run, at),
            node.name,
            scope.waited,
            node.dependencies,
            node.max_attempts,
            node.function,
            None if run.ledger is None else {},
            before is not None,
        )
        scope.scopes, scope.event = run.hooks.enter(event, scope.context), event
        if run.ledger is not None and event.carrier:
            run.ledger.carry(node.name, event.carrier)
    if run.ledger is not None:
        scope.epoch = run.ledger.epoch
        if before is not None:
            scope.resume(before, scope.epoch, run.began)
    return scope


def step_finished(run: RunState, node: Node, scope: StepScope, end: StepEnd) -> None:
    if end.status is Status.PENDING:
        end = StepEnd(Status.WAITING, attempts=end.attempts) if end.attempts else _never_began(node)
    at = scope.ended = scope.ended or run.settings.clock()
    if StepFinished in run.wanted:
        event = StepFinished(
            *_of(run, at),
            node.name,
            end.status,
            at - scope.at,
            end.attempts,
            scope.waited,
            scope.backoff,
            end.error,
            node.dependencies,
            node.max_attempts,
            end.error is not None and isinstance(end.error, node.expected),
            scope.earlier,
        )
        run.hooks.emit(event, scope.context)
    if scope.scopes is not None:
        scope.exit(run.hooks, end.error)


def _never_began(node: Node) -> StepEnd:
    """Return the end that is emitted for a step that still waited for a thread when the run stopped."""
    why = f"step {safe_repr(node.name)} did not begin: the run stopped."
    return StepEnd(Status.CANCELLED, None, StepCancelled(why))


def attempt_started(run: RunState, node: Node, step: StepScope, number: int, allowed: int, *, undo: bool) -> EventScope:
    hooks = run.hooks if allowed > 1 else run.hooks.lone
    if AttemptStarted not in hooks.wanted:  # no hook enters anything, so the step's context is enough
        return step if number == 1 else EventScope(run.settings.clock(), step.context)
    scope = EventScope(run.settings.clock() if number > 1 else step.at, step.context.copy())
    event = AttemptStarted(*_of(run, scope.at), node.name, number, allowed, undo)
    scope.scopes, scope.event = hooks.enter(event, scope.context), event
    return scope


def attempt_finished(
    run: RunState,
    node: Node,
    step: StepScope,
    scope: EventScope,
    number: int,
    allowed: int,
    end: StepEnd,
    *,
    undo: bool,
) -> None:
    at = step.ended = run.settings.clock()
    hooks = run.hooks if allowed > 1 else run.hooks.lone
    if AttemptFinished in hooks.wanted:
        event = AttemptFinished(*_of(run, at), node.name, number, allowed, undo, end.status, at - scope.at, end.error)
        event.expected = not undo and isinstance(end.error, node.expected)
        hooks.emit(event, scope.context)
    if scope.scopes is not None and scope is not step:
        scope.exit(run.hooks, end.error)


def attempt_cancelled(
    run: RunState,
    node: Node,
    step: StepScope,
    scope: EventScope,
    number: int,
    allowed: int,
    end: StepEnd,
    *,
    undo: bool,
) -> None:
    """Emit the end of an attempt that never got a thread. `end`: the end of its step."""
    cancelled = StepEnd(Status.CANCELLED, None, end.error or _never_began(node).error)
    attempt_finished(run, node, step, scope, number, allowed, cancelled, undo=undo)


def backoff_started(
    run: RunState, node: Node, step: StepScope, number: int, allowed: int, pause: Pause, end: StepEnd, *, undo: bool
) -> float:
    at = step.ended
    if BackoffStarted in run.wanted and end.error is not None:
        event = BackoffStarted(*_of(run, at), node.name, number, allowed, undo, pause.delay, pause.reason, end.error)
        run.hooks.emit(event, step.context)
    return at


def undo_started(run: RunState, node: Node, order: int, trigger: str, allowed: int) -> StepScope:
    scope = StepScope(run.settings.clock(), run.context.copy())
    if CompensationStarted in run.wanted and node.compensation is not None:
        event = CompensationStarted(
            *_of(run, scope.at), node.name, order, trigger, allowed, function_name(node.compensation.fn)
        )
        scope.enter(run.hooks, event)
    return scope


def undo_finished(run: RunState, node: Node, scope: StepScope, order: int, trigger: str, end: StepEnd) -> None:
    at = scope.ended or run.settings.clock()
    if CompensationFinished in run.wanted:
        event = CompensationFinished(
            *_of(run, at), node.name, order, trigger, end.status, at - scope.at, end.attempts, scope.backoff, end.error
        )
        run.hooks.emit(event, scope.context)
    scope.exit(run.hooks, end.error)


def completed_late(run: RunState, call: Call, outcome: Status, error: object) -> None:
    """Emit that an abandoned call has completed, unless this was emitted before."""
    reported, call.reported_late = call.reported_late, True
    if StepCompletedLate in run.wanted and not reported:
        at = run.settings.clock()
        name, attempt, late = call.node.name, call.ctx.attempt, max(0.0, call.completed_late_at - call.abandoned_at)
        raised = error if isinstance(error, BaseException) else None
        event = StepCompletedLate(*_of(run, at), name, attempt, call.shielded, outcome, raised, late)
        run.hooks.emit(event, run.context.copy())
