"""The events of plain steps that succeed at their first attempt, as most steps do.

They are the events that `emit` emits for any step, in the same order and contexts. The values that all steps of a run
share are looked up once, so that an observed step costs hardly more than its events and the calls of its hooks.
"""

from __future__ import annotations

from typing import Final

from ..events import AttemptFinished, AttemptStarted, StepFinished, StepReady, StepStarted
from ..events.hooks import entered
from ..plan import Node
from ..status import Status
from .run_state import RunState
from .scopes import EventScope, StepScope

__all__ = ["PlainSteps"]

_SUCCESS: Final = Status.SUCCESS  # its lookup in the enumeration, for each step, would take eight times as long


class PlainSteps:
    """Emits the start and the successful end of a run's plain steps. One thread or task at a time may use it."""

    __slots__ = (
        *("_clock", "_copy", "_hooks", "_ledger", "_lone", "_run_id", "_state", "_workflow"),
        *("_ends", "_starts", "readies", "ready_at"),
    )

    def __init__(self, run: RunState) -> None:
        hooks = self._hooks = run.hooks
        self._lone = hooks.lone
        self._clock = run.settings.clock
        self._copy = run.context.copy
        self._ledger = run.ledger
        self._workflow, self._run_id, self._state = run.workflow.name, run.run_id, run.state
        self.ready_at = run.ready_at
        listeners = hooks.listeners
        self._starts = listeners.get(StepStarted)
        self._ends = listeners.get(StepFinished)
        self.readies = listeners.get(StepReady)
        """the hooks that want StepReady, or None"""

    def started(self, node: Node) -> tuple[StepScope, EventScope]:
        """Emit the start of a step and of its first attempt, and return their scopes. `finished` emits their end if the
        attempt succeeds; the functions of `emit` do so otherwise."""
        at = self._clock()
        waited = at - self.ready_at.get(node.index, at)
        context = self._copy()
        scope = StepScope(at, context, waited if waited > 0.0 else 0.0)  # noqa: FURB136 - a call of max would cost more
        ledger = self._ledger
        if ledger is not None:
            scope.epoch = ledger.epoch
        if self._starts is not None:
            carrier: dict[str, str] | None = None if ledger is None else {}
            event = scope.event = StepStarted(
                self._workflow,
                self._run_id,
                at,
                self._state,
                node.name,
                scope.waited,
                node.dependencies,
                node.max_attempts,
                node.function,
                carrier,
            )
            for hook, call in self._starts:  # inlined Hooks.enter, to save a call
                try:
                    returned = context.run(call, event)
                    if returned is not None:
                        scope.scopes = entered(hook, returned, context, scope.scopes)
                except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                    self._hooks.report_failure(hook, error, event, context)
            if ledger is not None and carrier:
                ledger.carry(node.name, carrier)
        allowed = node.max_attempts
        hooks = self._lone if allowed == 1 else self._hooks
        if not hooks.want_attempt_starts:  # no hook enters anything, so the step's context is enough
            return scope, scope
        attempt = EventScope(at, context.copy())
        attempt.event = AttemptStarted(self._workflow, self._run_id, at, self._state, node.name, 1, allowed, False)
        attempt.scopes = hooks.enter(attempt.event, attempt.context)
        return scope, attempt

    def finished(self, node: Node, scope: StepScope, attempt: EventScope) -> None:
        """Emit and note the end of a step whose first attempt succeeded, and emit the end of that attempt."""
        at = scope.ended = self._clock()
        duration = at - scope.at
        allowed = node.max_attempts
        hooks = self._lone if allowed == 1 else self._hooks
        if hooks.want_attempt_ends:
            hooks.emit(
                AttemptFinished(
                    self._workflow,
                    self._run_id,
                    at,
                    self._state,
                    node.name,
                    1,
                    allowed,
                    False,
                    _SUCCESS,
                    duration,
                    None,
                ),
                attempt.context,
            )
        if attempt is not scope and attempt.scopes is not None:
            attempt.exit(self._hooks, None)
        if self._ends is not None:
            event = StepFinished(
                self._workflow,
                self._run_id,
                at,
                self._state,
                node.name,
                _SUCCESS,
                duration,
                1,
                scope.waited,
                0.0,
                None,
                node.dependencies,
                allowed,
            )
            context = scope.context
            for hook, call in self._ends:  # inlined Hooks.emit, to save a call
                try:
                    context.run(call, event)
                except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                    self._hooks.report_failure(hook, error, event, context)
        if scope.scopes is not None:
            scope.exit(self._hooks, None)

    def ready(self, node: Node, at: float) -> None:
        """Note and emit that `node` is ready to start since the moment `at` (monotonic)."""
        self.ready_at[node.index] = at
        if self.readies is not None and node.wait is None:
            event = StepReady(self._workflow, self._run_id, at, self._state, node.name)
            context = self._copy()
            for hook, call in self.readies:  # inlined Hooks.emit, to save a call
                try:
                    context.run(call, event)
                except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                    self._hooks.report_failure(hook, error, event, context)
