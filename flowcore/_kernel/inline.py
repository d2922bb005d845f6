"""The inline path: plain steps of a run, one after the other, without a program and without a driver.

In a chain of plain steps, generators and dispatch would cost more than the steps. `run_inline` makes the same decisions
as `steps.work`, for as long as exactly one step is ready, whether hooks observe the run or not. The main program
continues where the inline path stops. Other threads may cancel or park the run meanwhile: they set `stopped`, which is
read before each step. A step that starts at the same moment counts as started before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..context import Context
from ..exits import deferred, take_deferred
from ..functions import PLAIN, is_awaitable
from ..plan import Node
from . import stopping
from .effects import Interrupts, Outcome, Suspended
from .plain_steps import PlainSteps
from .run_state import RunState
from .scopes import EventScope, StepScope

__all__ = ["FirstAttempt", "InlineProgress", "can_run_inline", "run_inline"]


@dataclass(slots=True, eq=False)
class FirstAttempt:
    """The first attempt of a plain step. `outcome`: how it ended, unless it is `suspended`, and the rest must be
    awaited. `scope` and `attempt`: the scopes of the step and of this attempt; None if the run is not observed."""

    ctx: Context
    outcome: Outcome
    scope: StepScope | None
    attempt: EventScope | None
    suspended: Suspended | None = None


class InlineProgress(NamedTuple):
    """The point at which the inline path stopped. `node`: the next node, which has been taken. `first`: its first
    attempt, or None if it was not made."""

    node: Node
    first: FirstAttempt | None = None


def can_run_inline(run: RunState) -> bool:
    """Whether the run may begin on the inline path: it needs no store, and has no deadline."""
    return run.key is None and run.request.deadline is None and not run.settings.durable


def run_inline(run: RunState, *, is_async: bool, interrupts: Interrupts | None = None) -> InlineProgress | None:
    """Run plain steps while exactly one is ready. `is_async`: whether the caller is a task, which runs only async
    steps, or a thread, which runs only the others. Stops before or at a step that it cannot finish, and returns its
    progress. Returns None if the run is over or has stopped, or if several steps are ready."""
    ready = run.ready
    if len(ready) != 1 or run.stopped:
        return None
    nodes, counts, results = run.plan.nodes, run.counts, run.results
    events = PlainSteps(run) if run.observed else None
    copy, new = run.context.copy, object.__new__
    scope = attempt = None
    node: Node | None = nodes[ready.popleft()]
    run.running = 1
    while node is not None and node.inline[is_async] and not run.stopped:
        if interrupts is not None and interrupts.count > interrupts.raised:
            interrupts.raised = interrupts.count
            stopping.interrupt(run, KeyboardInterrupt())
            break
        if deferred and events is not None and (exits := take_deferred()) is not None:
            stopping.interrupt(run, exits)
            break
        run.at = node
        if events is not None:
            scope, attempt = events.started(node)
            context = attempt.context.copy()
        else:
            context = copy()
        ctx = new(Context)  # the same as Context(run, node), without the cost of calling __init__
        ctx._run = run  # pyright: ignore[reportPrivateUsage]
        ctx.node = node
        try:
            if is_async:
                coroutine = context.run(node.fn, ctx)
                try:
                    waiting = context.run(coroutine.send, None)
                except StopIteration as stop:
                    value = stop.value
                else:
                    suspended = Suspended(ctx, context, coroutine, waiting)
                    return InlineProgress(node, FirstAttempt(ctx, (None, None), scope, attempt, suspended))
            elif interrupts is None:
                value = context.run(node.fn, ctx)
            else:
                try:
                    interrupts.in_step = True
                    value = context.run(node.fn, ctx)
                finally:
                    interrupts.in_step = False
        except BaseException as error:  # noqa: BLE001 - the main program judges it
            return InlineProgress(node, FirstAttempt(ctx, (None, error), scope, attempt))
        if type(value) not in PLAIN and is_awaitable(value):
            return InlineProgress(node, FirstAttempt(ctx, (value, None), scope, attempt))
        if events is not None and scope is not None and attempt is not None:
            events.finished(node, scope, attempt)
            results[node.name] = value  # before the times: after an interrupt, the results show which steps have ended
            run.times[node.name] = scope.waited, scope.ended - scope.at
        else:
            results[node.name] = value
        if node.compensation is not None:
            run.to_undo.append(node)
        if node.follows is not None:
            following = node.follows
        else:
            following = None
            for index in node.successors:
                counts[index] -= 1
                if not counts[index]:
                    if following is None:
                        following = nodes[index]
                    else:
                        ready.append(index)
        if events is not None and scope is not None and following is not None and not run.stopped:
            if events.readies is None and not ready:  # saves a call, as most steps unblock one other
                events.ready_at[following.index] = scope.ended
            else:
                events.ready(following, scope.ended)
                for index in ready:
                    events.ready(nodes[index], scope.ended)
        node = following
        if ready:
            break
    if node is not None and not run.stopped:
        return InlineProgress(node)
    run.running = 0
    if run.stopped:  # it may have stopped while the last step unblocked others
        ready.clear()
    return None
