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
    StepFinished,
    StepLandedLate,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
)
from ..events.hooks import Entered, Hook
from ..plan import Node, function_name
from ..retry import Pause
from ..status import Status
from ..stores.base import Redefined
from .effects import Call
from .run_state import Execution

__all__ = ["Told"]

_REFUSALS: Final = (NotSerializable, Redefined)
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


def requested(x: Execution) -> None:
    if RunRequested in x.wanted:
        carrier: dict[str, str] = {}
        leaving: list[Hook] = []
        at, wall = x.settings.clock(), x.settings.wall()
        event = RunRequested(
            x.workflow.name,
            x.run_id,
            at,
            x.state,
            x.key,
            wall,
            carrier,
            x.submitted,
            x.recovering is not None,
        )
        x.hooks.emit(event, x.context, leaving)
        x.carrier = carrier
        if leaving:
            _skip(x, leaving)


def _skip(x: Execution, leaving: list[Hook]) -> None:
    """These hooks want to hear nothing more of the run."""
    x.hooks = x.hooks.without(leaving)
    x.wanted = x.hooks.wanted
    x.observed = bool(x.wanted) or x.changes is not None


def hit(x: Execution, outcome: str, run_id: str, carrier: Mapping[str, str], age: float | None) -> None:
    if IdempotencyHit in x.wanted:
        x.hooks.emit(
            IdempotencyHit(
                x.workflow.name, x.run_id, x.settings.clock(), x.state, x.key or "", outcome, run_id, carrier, age
            ),
            x.context,
        )
    _measured(x)


def refused(x: Execution, error: BaseException) -> None:
    if RunRefused in x.wanted:
        x.hooks.emit(RunRefused(x.workflow.name, x.run_id, x.settings.clock(), x.state, x.key, error), x.context)
    _measured(x)


def _measured(x: Execution) -> None:
    """After the last event: how long the hooks took, of some runs."""
    spent = x.hooks.spent
    if spent is not None and HooksMeasured in x.wanted:
        event = HooksMeasured(x.workflow.name, x.run_id, x.settings.clock(), x.state, spent)
        x.hooks.emit(event, x.context)


def run_started(x: Execution) -> Told:
    told = Told(x.settings.clock(), x.context)
    if RunStarted in x.wanted:
        leaving: list[Hook] = []
        event = RunStarted(
            x.workflow.name,
            x.run_id,
            told.at,
            x.state,
            x.key,
            x.settings.wall(),
            x.carrier,
            x.fence,
            None if x.interrupted_carrier is None else x.run_id,
            x.interrupted_carrier or {},
            x.ready.__len__,
        )
        told.enter(x.hooks, event, leaving)
        if leaving:
            _skip(x, leaving)
    return told


def first_ready(x: Execution) -> None:
    x.ready_at.update(dict.fromkeys(x.ready, x.settings.clock()))
    if StepReady in x.wanted:
        steps_ready(x, [x.plan.nodes[index] for index in x.ready])


def recovered(x: Execution, event: RunRecovered) -> None:
    if RunRecovered in x.wanted:
        x.hooks.emit(event, x.context)


def lease_lost(x: Execution) -> None:
    if LeaseLost in x.wanted:
        event = LeaseLost(x.workflow.name, x.run_id, x.settings.clock(), x.state)
        x.hooks.emit(event, x.context.copy())


def store_called(x: Execution, verb: str, began: float, error: BaseException | None) -> None:
    if StoreCalled in x.wanted:
        at, name = x.settings.clock(), x.settings.store.name
        outcome = Status.SUCCESS if error is None or isinstance(error, _REFUSALS) else Status.FAILURE
        event = StoreCalled(x.workflow.name, x.run_id, at, x.state, name, verb, outcome, at - began, error)
        x.hooks.emit(event, x.context.copy())


def maintenance_started(x: Execution, kind: str) -> Told:
    told = Told(x.settings.clock(), x.context.copy())
    if MaintenanceStarted in x.wanted:
        told.enter(x.hooks, MaintenanceStarted("", "", told.at, x.state, kind))
    return told


def maintenance_finished(x: Execution, told: Told, kind: str, error: BaseException | None) -> None:
    if MaintenanceFinished in x.wanted:
        at = x.settings.clock()
        x.hooks.emit(MaintenanceFinished("", "", at, x.state, kind, at - told.at, error), told.context)
    told.exit(x.hooks, error)


def run_finished(x: Execution, told: Told, outcome: Status, error: BaseException | None) -> None:
    at = x.settings.clock()
    if RunFinished in x.wanted:
        skipped: tuple[str, ...] = ()
        if x.plan.conditional or x.changes is not None:  # in the record, by an earlier definition
            skipped = tuple(name for name, report in x.reports.items() if report.status is Status.SKIPPED)
        event = RunFinished(
            x.workflow.name,
            x.run_id,
            at,
            x.state,
            outcome,
            at - told.at,
            error,
            skipped,
            tuple(x.undone) if x.stopped else (),
        )
        x.hooks.emit(event, x.context)
    told.exit(x.hooks, error)
    _measured(x)


def steps_ready(x: Execution, nodes: list[Node] | None) -> None:
    if StepReady in x.wanted:
        for node in nodes or ():
            at = x.ready_at[node.index]
            x.hooks.emit(StepReady(x.workflow.name, x.run_id, at, x.state, node.name), x.context.copy())


def step_skipped(x: Execution, node: Node) -> None:
    if StepSkipped in x.wanted:
        x.hooks.emit(
            StepSkipped(x.workflow.name, x.run_id, x.settings.clock(), x.state, node.name, node.dependencies),
            x.context.copy(),
        )


def step_started(x: Execution, node: Node) -> Told:
    at, ready_at = x.settings.clock(), x.ready_at.get(node.index)
    told = Told(at, x.context.copy())
    if ready_at is not None and ready_at < at:
        told.waited = at - ready_at
    if StepStarted in x.wanted:
        event = StepStarted(
            x.workflow.name,
            x.run_id,
            at,
            x.state,
            node.name,
            told.waited,
            node.dependencies,
            node.max_attempts,
            node.function,
            None if x.changes is None else {},
        )
        told.scopes, told.event = x.hooks.enter(event, told.context), event
        if x.changes is not None and event.carrier:
            x.changes.carriers[node.name] = event.carrier
    return told


def step_finished(
    x: Execution, node: Node, told: Told, outcome: Status, attempts: int, error: BaseException | None
) -> None:
    at = told.ended or x.settings.clock()
    duration = at - told.at
    report = x.report(node)
    report.waited, report.ran, report.backed_off = told.waited, duration - told.backoff, told.backoff
    if StepFinished in x.wanted:
        event = StepFinished(
            x.workflow.name,
            x.run_id,
            at,
            x.state,
            node.name,
            outcome,
            duration,
            attempts,
            told.waited,
            told.backoff,
            error,
            node.dependencies,
            node.max_attempts,
        )
        x.hooks.emit(event, told.context)
    if told.scopes is not None:
        told.exit(x.hooks, error)


def attempt_started(x: Execution, node: Node, outer: Told, number: int, allowed: int, *, undo: bool) -> Told:
    hooks = x.hooks if allowed > 1 else x.hooks.lone
    if AttemptStarted not in hooks.wanted:  # nothing will be entered: the outer context is its own
        return outer if number == 1 else Told(x.settings.clock(), outer.context)
    told = Told(x.settings.clock() if number > 1 else outer.at, outer.context.copy())
    event = AttemptStarted(x.workflow.name, x.run_id, told.at, x.state, node.name, number, allowed, undo)
    told.scopes, told.event = hooks.enter(event, told.context), event
    return told


def attempt_finished(
    x: Execution,
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
    at = outer.ended = x.settings.clock()
    hooks = x.hooks if allowed > 1 else x.hooks.lone
    if AttemptFinished in hooks.wanted:
        event = AttemptFinished(
            x.workflow.name, x.run_id, at, x.state, node.name, number, allowed, undo, outcome, at - told.at, error
        )
        hooks.emit(event, told.context)
    if told.scopes is not None and told is not outer:
        told.exit(x.hooks, error)


def backoff_started(
    x: Execution, node: Node, outer: Told, number: int, allowed: int, pause: Pause, error: BaseException, *, undo: bool
) -> float:
    at = outer.ended
    if BackoffStarted in x.wanted:
        event = BackoffStarted(
            x.workflow.name, x.run_id, at, x.state, node.name, number, allowed, undo, pause.delay, pause.reason, error
        )
        x.hooks.emit(event, outer.context)
    return at


def undo_started(x: Execution, node: Node, order: int, trigger: str, allowed: int) -> Told:
    told = Told(x.settings.clock(), x.context.copy())
    if CompensationStarted in x.wanted and node.compensation is not None:
        event = CompensationStarted(
            x.workflow.name,
            x.run_id,
            told.at,
            x.state,
            node.name,
            order,
            trigger,
            allowed,
            function_name(node.compensation.fn),
        )
        told.enter(x.hooks, event)
    return told


def undo_finished(
    x: Execution,
    node: Node,
    told: Told,
    order: int,
    trigger: str,
    outcome: Status,
    attempts: int,
    error: BaseException | None,
) -> None:
    at = told.ended or x.settings.clock()
    if CompensationFinished in x.wanted:
        event = CompensationFinished(
            x.workflow.name,
            x.run_id,
            at,
            x.state,
            node.name,
            order,
            trigger,
            outcome,
            at - told.at,
            attempts,
            told.backoff,
            error,
        )
        x.hooks.emit(event, told.context)
    told.exit(x.hooks, error)


def landed_late(x: Execution, call: Call, outcome: Status, error: BaseException | None) -> None:
    if StepLandedLate in x.wanted:
        at = x.settings.clock()
        name, attempt, late = call.node.name, call.ctx.attempt, max(0.0, call.landed_at - call.given_up)
        event = StepLandedLate(
            x.workflow.name, x.run_id, at, x.state, name, attempt, call.shielded, outcome, error, late
        )
        x.hooks.emit(event, x.context.copy())
