"""The inline path: plain steps of a run, one after the other, without a program and without a driver.

In a chain of plain steps, generators and dispatch would cost more than the steps. `run_inline` makes the decisions of
`steps.work` for as long as exactly one step is ready, whether hooks observe the run or not; the main program continues
where it stops. Other threads may cancel or park the run meanwhile: they set `stopped`, which is read before each step,
and a step that starts at the same moment counts as started before.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import CoroutineType
from typing import Any, NamedTuple, cast

from ..context import Context
from ..plan import Node
from . import stopping
from .effects import Interrupts, Outcome, Suspended
from .emit import EventScope, StepScope
from .plain_steps import PlainSteps
from .run_state import RunState

__all__ = ["FirstAttempt", "InlineProgress", "can_run_inline", "run_inline"]


@dataclass(slots=True, eq=False)
class FirstAttempt:
    """The first attempt of a plain step: with its `outcome`, or else `suspended`. `scope` and `attempt`: what hooks entered
    for the step and for this attempt; None if the run is not observed."""

    ctx: Context
    outcome: Outcome
    scope: StepScope | None
    attempt: EventScope | None
    suspended: Suspended | None = None


class InlineProgress(NamedTuple):
    """Where the inline path stopped: at `node`, which is taken, and whose first attempt was made unless `first` is None."""

    node: Node
    first: FirstAttempt | None = None


def can_run_inline(run: RunState) -> bool:
    """Whether the run needs no answer of a store and has no deadline."""
    return run.key is None and run.request.deadline is None and not run.settings.durable


def run_inline(run: RunState, *, is_async: bool, interrupts: Interrupts | None = None) -> InlineProgress | None:
    """Run plain steps while exactly one is ready: async ones in a task, others on a thread. None: the run is over or has stopped, or several steps are ready."""
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
        run.at = node
        if events is not None:
            scope, attempt = events.started(node)
            context = attempt.context.copy()
        else:
            context = copy()
        ctx = new(Context)  # Context(run, node), less the call of its __init__
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
        if type(value) is CoroutineType:
            return InlineProgress(node, FirstAttempt(ctx, (cast("Any", value), None), scope, attempt))
        if events is not None and scope is not None and attempt is not None:
            events.finished(node, scope, attempt)
            results[node.name] = value  # before the times: see RunState.repair
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
            events.ready(following, scope.ended)
            for index in ready:
                events.ready(nodes[index], scope.ended)
        node = following
        if ready:
            break
    if node is not None and not run.stopped:
        return InlineProgress(node)
    run.running = 0
    if run.stopped:  # perhaps while the last step unblocked others
        ready.clear()
    return None
