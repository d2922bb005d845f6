"""Telling the hooks: every event of a run is built here, and only when somebody wants it.

Each function for a start event enters the scopes that hooks answer with, in a copy of the enclosing contextvars
context, and answers a `Told`; the function for its finish event leaves them again.
"""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Final

from ..errors import NotSerializable
from ..events import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    Event,
    Hooks,
    HooksMeasured,
    IdempotencyHit,
    LeaseLost,
    MaintenanceFinished,
    MaintenanceStarted,
    RunFinished,
    RunRecovered,
    RunRefused,
    RunRequested,
    RunStarted,
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
)
from ..events.hooks import Entered, Hook
from ..plan import Node, function_name
from ..retry import Pause
from ..status import Status
from ..stores.base import DefinitionChanged
from .effects import Call
from .run_state import RunState

__all__ = ["Told"]

_REFUSALS: Final = (NotSerializable, DefinitionChanged)
"""what a store in good health refuses"""


class Told:
    """A start that was told: when, with which scopes, and the context that these are entered in."""

    waited = 0.0
    backoff = 0.0
    ended = 0.0
    """when the latest of its attempts ended; hooks that take their time are not part of the step"""
    event: Event | None = None
    scopes: list[Entered] | None = None

    def __init__(self, at: float, context: contextvars.Context) -> None:
        self.at = at
        self.context = context

    def enter(self, hooks: Hooks, event: Event, leaving: list[Hook] | None = None) -> None:
        self.event = event
        self.scopes = hooks.enter(event, self.context, leaving)

    def exit(self, hooks: Hooks, error: BaseException | None) -> None:
        if self.scopes is not None and self.event is not None:
            hooks.exit(self.scopes, self.context, self.event, error)


def requested(run: RunState) -> None:
    if RunRequested in run.wanted:
        carrier: dict[str, str] = {}
        leaving: list[Hook] = []
        at, wall = run.settings.clock(), run.settings.wall()
        event = RunRequested(
            run.workflow.name,
            run.run_id,
            at,
            run.state,
            run.key,
            wall,
            carrier,
            run.submitted,
            run.recovering is not None,
        )
        run.hooks.emit(event, run.context, leaving)
        run.carrier = carrier
        if leaving:
            _skip(run, leaving)
    if run.hooks.around_store and run.settings.store.blocks:
        run.store_context = run.hooks.store_context(run.context)


def _skip(run: RunState, leaving: list[Hook]) -> None:
    """These hooks want to hear nothing more of the run."""
    run.hooks = run.hooks.without(leaving)
    run.wanted = run.hooks.wanted
    run.observed = bool(run.wanted) or run.changes is not None


def hit(run: RunState, outcome: str, run_id: str, carrier: Mapping[str, str], age: float | None) -> None:
    if IdempotencyHit in run.wanted:
        run.hooks.emit(
            IdempotencyHit(
                run.workflow.name,
                run.run_id,
                run.settings.clock(),
                run.state,
                run.key or "",
                outcome,
                run_id,
                carrier,
                age,
            ),
            run.context,
        )
    _measured(run)


def refused(run: RunState, error: BaseException) -> None:
    if RunRefused in run.wanted:
        run.hooks.emit(
            RunRefused(run.workflow.name, run.run_id, run.settings.clock(), run.state, run.key, error), run.context
        )
    _measured(run)


def _measured(run: RunState) -> None:
    """After the last event: how long the hooks took, of some runs."""
    spent = run.hooks.spent
    if spent is not None and HooksMeasured in run.wanted:
        event = HooksMeasured(run.workflow.name, run.run_id, run.settings.clock(), run.state, spent)
        run.hooks.emit(event, run.context)


def run_started(run: RunState) -> Told:
    told = Told(run.settings.clock(), run.context)
    if RunStarted in run.wanted:
        leaving: list[Hook] = []
        event = RunStarted(
            run.workflow.name,
            run.run_id,
            told.at,
            run.state,
            run.key,
            run.settings.wall(),
            run.carrier,
            run.fence,
            None if run.interrupted_carrier is None else run.run_id,
            run.interrupted_carrier or {},
            run.ready.__len__,
        )
        told.enter(run.hooks, event, leaving)
        if leaving:
            _skip(run, leaving)
    return told


def first_ready(run: RunState) -> None:
    run.ready_at.update(dict.fromkeys(run.ready, run.settings.clock()))
    if StepReady in run.wanted:
        steps_ready(run, [run.plan.nodes[index] for index in run.ready])


def recovered(run: RunState, event: RunRecovered) -> None:
    if RunRecovered in run.wanted:
        run.hooks.emit(event, run.context)


def lease_lost(run: RunState) -> None:
    if LeaseLost in run.wanted:
        event = LeaseLost(run.workflow.name, run.run_id, run.settings.clock(), run.state)
        run.hooks.emit(event, run.context.copy())


def store_called(run: RunState, verb: str, began: float, error: BaseException | None) -> None:
    if StoreCalled in run.wanted:
        at, name = run.settings.clock(), run.settings.store.name
        outcome = Status.SUCCESS if error is None or isinstance(error, _REFUSALS) else Status.FAILURE
        event = StoreCalled(run.workflow.name, run.run_id, at, run.state, name, verb, outcome, at - began, error)
        run.hooks.emit(event, run.context.copy())


def maintenance_started(run: RunState, kind: str) -> Told:
    told = Told(run.settings.clock(), run.context.copy())
    if MaintenanceStarted in run.wanted:
        told.enter(run.hooks, MaintenanceStarted("", "", told.at, run.state, kind))
    return told


def maintenance_finished(run: RunState, told: Told, kind: str, error: BaseException | None) -> None:
    if MaintenanceFinished in run.wanted:
        at = run.settings.clock()
        run.hooks.emit(
            MaintenanceFinished("", "", at, run.state, kind, at - told.at, error, run.settings.wall()), told.context
        )
    told.exit(run.hooks, error)


def run_finished(run: RunState, told: Told, outcome: Status, error: BaseException | None) -> None:
    at = run.settings.clock()
    if RunFinished in run.wanted:
        skipped: tuple[str, ...] = ()
        if run.plan.conditional or run.changes is not None:  # in the record, by an earlier definition
            skipped = tuple(name for name, report in run.reports.items() if report.status is Status.SKIPPED)
        event = RunFinished(
            run.workflow.name,
            run.run_id,
            at,
            run.state,
            outcome,
            at - told.at,
            error,
            skipped,
            tuple(run.undone) if run.stopped else (),
        )
        run.hooks.emit(event, run.context)
    told.exit(run.hooks, error)
    _measured(run)


def steps_ready(run: RunState, nodes: list[Node] | None) -> None:
    if StepReady in run.wanted:
        for node in nodes or ():
            at = run.ready_at[node.index]
            run.hooks.emit(StepReady(run.workflow.name, run.run_id, at, run.state, node.name), run.context.copy())


def step_skipped(run: RunState, node: Node) -> None:
    if StepSkipped in run.wanted:
        run.hooks.emit(
            StepSkipped(run.workflow.name, run.run_id, run.settings.clock(), run.state, node.name, node.dependencies),
            run.context.copy(),
        )


def step_started(run: RunState, node: Node) -> Told:
    at, ready_at = run.settings.clock(), run.ready_at.get(node.index)
    told = Told(at, run.context.copy())
    if ready_at is not None and ready_at < at:
        told.waited = at - ready_at
    if StepStarted in run.wanted:
        event = StepStarted(
            run.workflow.name,
            run.run_id,
            at,
            run.state,
            node.name,
            told.waited,
            node.dependencies,
            node.max_attempts,
            node.function,
            None if run.changes is None else {},
        )
        told.scopes, told.event = run.hooks.enter(event, told.context), event
        if run.changes is not None and event.carrier:
            run.changes.carriers[node.name] = event.carrier
    return told


def step_finished(
    run: RunState, node: Node, told: Told, outcome: Status, attempts: int, error: BaseException | None
) -> None:
    at = told.ended or run.settings.clock()
    duration = at - told.at
    report = run.report(node)
    report.waited, report.ran, report.backed_off = told.waited, duration - told.backoff, told.backoff
    if StepFinished in run.wanted:
        event = StepFinished(
            run.workflow.name,
            run.run_id,
            at,
            run.state,
            node.name,
            outcome,
            duration,
            attempts,
            told.waited,
            told.backoff,
            error,
            node.dependencies,
            node.max_attempts,
            error is not None and isinstance(error, node.expected),
        )
        run.hooks.emit(event, told.context)
    if told.scopes is not None:
        told.exit(run.hooks, error)


def attempt_started(run: RunState, node: Node, outer: Told, number: int, allowed: int, *, undo: bool) -> Told:
    hooks = run.hooks if allowed > 1 else run.hooks.lone
    if AttemptStarted not in hooks.wanted:  # nothing will be entered: the outer context is its own
        return outer if number == 1 else Told(run.settings.clock(), outer.context)
    told = Told(run.settings.clock() if number > 1 else outer.at, outer.context.copy())
    event = AttemptStarted(run.workflow.name, run.run_id, told.at, run.state, node.name, number, allowed, undo)
    told.scopes, told.event = hooks.enter(event, told.context), event
    return told


def attempt_finished(
    run: RunState,
    node: Node,
    outer: Told,
    told: Told,
    number: int,
    allowed: int,
    outcome: Status,
    error: BaseException | None,
    *,
    undo: bool,
) -> None:
    at = outer.ended = run.settings.clock()
    hooks = run.hooks if allowed > 1 else run.hooks.lone
    if AttemptFinished in hooks.wanted:
        event = AttemptFinished(
            run.workflow.name, run.run_id, at, run.state, node.name, number, allowed, undo, outcome, at - told.at, error
        )
        event.expected = not undo and isinstance(error, node.expected)
        hooks.emit(event, told.context)
    if told.scopes is not None and told is not outer:
        told.exit(run.hooks, error)


def backoff_started(
    run: RunState, node: Node, outer: Told, number: int, allowed: int, pause: Pause, error: BaseException, *, undo: bool
) -> float:
    at = outer.ended
    if BackoffStarted in run.wanted:
        event = BackoffStarted(
            run.workflow.name,
            run.run_id,
            at,
            run.state,
            node.name,
            number,
            allowed,
            undo,
            pause.delay,
            pause.reason,
            error,
        )
        run.hooks.emit(event, outer.context)
    return at


def undo_started(run: RunState, node: Node, order: int, trigger: str, allowed: int) -> Told:
    told = Told(run.settings.clock(), run.context.copy())
    if CompensationStarted in run.wanted and node.compensation is not None:
        event = CompensationStarted(
            run.workflow.name,
            run.run_id,
            told.at,
            run.state,
            node.name,
            order,
            trigger,
            allowed,
            function_name(node.compensation.fn),
        )
        told.enter(run.hooks, event)
    return told


def undo_finished(
    run: RunState,
    node: Node,
    told: Told,
    order: int,
    trigger: str,
    outcome: Status,
    attempts: int,
    error: BaseException | None,
) -> None:
    at = told.ended or run.settings.clock()
    if CompensationFinished in run.wanted:
        event = CompensationFinished(
            run.workflow.name,
            run.run_id,
            at,
            run.state,
            node.name,
            order,
            trigger,
            outcome,
            at - told.at,
            attempts,
            told.backoff,
            error,
        )
        run.hooks.emit(event, told.context)
    told.exit(run.hooks, error)


def completed_late(run: RunState, call: Call, outcome: Status, error: BaseException | None) -> None:
    if StepCompletedLate in run.wanted:
        at = run.settings.clock()
        name, attempt, late = call.node.name, call.ctx.attempt, max(0.0, call.landed_at - call.given_up)
        event = StepCompletedLate(
            run.workflow.name, run.run_id, at, run.state, name, attempt, call.shielded, outcome, error, late
        )
        run.hooks.emit(event, run.context.copy())
