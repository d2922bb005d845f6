"""Events of steps, attempts, undos and waits for the hooks, which are built and emitted as those of runs in `emit`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import StepCancelled, safe_repr
from ..events import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    WaitFinished,
    WaitStarted,
)
from ..functions import function_name
from ..plan import Node
from ..retry import Pause
from ..run import Sent
from ..status import Status
from .effects import Call
from .emit import fields_of
from .outcome import StepEnd
from .run_state import RunState
from .scopes import EventScope, StepScope

__all__ = [
    "attempt_cancelled",
    "attempt_finished",
    "attempt_started",
    "backoff_started",
    "completed_late",
    "first_ready",
    "step_finished",
    "step_skipped",
    "step_started",
    "steps_ready",
    "undo_finished",
    "undo_started",
    "wait_finished",
    "wait_started",
]


def first_ready(run: RunState) -> None:
    ready = [*run.ready]  # a hook, or another thread, may cancel the run meanwhile, which empties its queue
    run.ready_at.update(dict.fromkeys(ready, run.settings.clock()))
    steps_ready(run, ready)


def steps_ready(run: RunState, nodes: Iterable[int]) -> None:
    """Emit that `nodes` are ready, by index. A wait takes no worker."""
    if StepReady in run.wanted:
        for node in (run.plan.nodes[index] for index in nodes):
            if node.wait is None:
                event = StepReady(*fields_of(run, run.ready_at[node.index]), node.name)
                run.hooks.emit(event, run.context.copy())


def wait_started(run: RunState, node: Node) -> None:
    if WaitStarted in run.wanted and node.wait is not None:
        at, wait = run.settings.clock(), node.wait
        event = WaitStarted(*fields_of(run, at), node.name, wait.timeout, wait.sleeps)
        run.hooks.emit(event, run.context.copy())


def wait_finished(run: RunState, node: Node, end: StepEnd, waited: float, sent: Sent | None) -> None:
    if WaitFinished in run.wanted:
        at = run.settings.clock()
        sender: Mapping[str, str] = {} if sent is None else sent.carrier
        event = WaitFinished(
            *(*fields_of(run, at), node.name), end.status, waited, end.error, sender, node.dependencies
        )
        run.hooks.emit(event, run.context.copy())


def step_skipped(run: RunState, node: Node) -> None:
    if StepSkipped in run.wanted:
        run.hooks.emit(
            StepSkipped(*fields_of(run, run.settings.clock()), node.name, node.dependencies), run.context.copy()
        )


def step_started(run: RunState, node: Node) -> StepScope:
    at, before = run.settings.clock(), run.tried.get(node.name)
    ready = run.ready_at.get(node.index, at)
    if before is not None and before.retry_at is not None and run.ledger is not None:
        ready = max(ready, before.retry_at - run.ledger.epoch)
    scope = StepScope(at, run.context.copy(), max(0.0, at - ready))
    if StepStarted in run.wanted:
        event = StepStarted(
            *fields_of(run, at),
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
            *fields_of(run, at),
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
    event = AttemptStarted(*fields_of(run, scope.at), node.name, number, allowed, undo)
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
        event = AttemptFinished(
            *fields_of(run, at), node.name, number, allowed, undo, end.status, at - scope.at, end.error
        )
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
        event = BackoffStarted(
            *fields_of(run, at), node.name, number, allowed, undo, pause.delay, pause.reason, end.error
        )
        run.hooks.emit(event, step.context)
    return at


def undo_started(run: RunState, node: Node, order: int, trigger: str, allowed: int) -> StepScope:
    scope = StepScope(run.settings.clock(), run.context.copy())
    if CompensationStarted in run.wanted and node.compensation is not None:
        event = CompensationStarted(
            *fields_of(run, scope.at), node.name, order, trigger, allowed, function_name(node.compensation.fn)
        )
        scope.enter(run.hooks, event)
    return scope


def undo_finished(run: RunState, node: Node, scope: StepScope, order: int, trigger: str, end: StepEnd) -> None:
    at = scope.ended or run.settings.clock()
    if CompensationFinished in run.wanted:
        event = CompensationFinished(
            *fields_of(run, at),
            node.name,
            order,
            trigger,
            end.status,
            at - scope.at,
            end.attempts,
            scope.backoff,
            end.error,
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
        event = StepCompletedLate(*fields_of(run, at), name, attempt, call.shielded, outcome, raised, late)
        run.hooks.emit(event, run.context.copy())
