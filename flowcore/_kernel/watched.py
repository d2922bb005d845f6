"""The beginning of a run that somebody watches: what `sprint` does for one that nobody does, and telling the hooks of it.

It says what `tell` says, in the same order and contexts. That it needs no program, and no Told for each step, is what
makes being watched cheap.
"""

from __future__ import annotations

import contextvars
from types import CoroutineType
from typing import Any, cast

from ..context import Context
from ..events import AttemptFinished, AttemptStarted, Event, StepFinished, StepReady, StepStarted
from ..events.hooks import Entered, entered
from ..status import Status
from . import emit
from .effects import Interrupts, Suspended
from .emit import Told
from .inline import InlineProgress
from .run_state import RunState

__all__ = ["run_inline_observed"]


def run_inline_observed(run: RunState, interrupts: Interrupts | None = None) -> InlineProgress | None:
    """Run plain steps while there is exactly one to run. Answers as `sprint` does."""
    ready = run.ready
    if len(ready) != 1 or run.stopped:
        return None
    nodes, counts, results, is_async = run.plan.nodes, run.counts, run.results, run.settings.runs_async
    hooks, clock, copy, new = run.hooks, run.settings.clock, run.context.copy, object.__new__
    workflow, run_id, state, success = run.workflow.name, run.run_id, run.state, Status.SUCCESS
    times: dict[str, tuple[float, float]] = {}
    run.times = times
    starts, ends, tells_ready = (
        hooks.listeners.get(StepStarted),
        hooks.listeners.get(StepFinished),
        StepReady in run.wanted,
    )
    one, several = ((who, AttemptStarted in who.wanted, AttemptFinished in who.wanted) for who in (hooks.lone, hooks))
    node = nodes[ready.popleft()]
    ready_at = run.ready_at[node.index]
    run.running = 1
    while node.sprints[is_async] and not run.stopped:
        if interrupts is not None and interrupts.count > interrupts.raised:
            interrupts.raised = interrupts.count
            run.interrupt(KeyboardInterrupt())
            break
        run.at = node
        name, depends_on, allowed, at = node.name, node.dependencies, node.max_attempts, clock()
        waited = at - ready_at
        attempts, tells_first, tells_last = one if allowed == 1 else several
        outer = inner = copy()
        start = first = outer_scopes = inner_scopes = None
        if starts is not None:
            start = StepStarted(workflow, run_id, at, state, name, waited, depends_on, allowed, node.function, None)
            for hook, call in starts:  # hooks.enter, less a call
                try:
                    answer = outer.run(call, start)
                    if answer is not None:
                        outer_scopes = entered(hook, answer, outer, outer_scopes)
                except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                    hooks.blame(hook, error, start, outer)
        if tells_first:
            inner = outer.copy()
            first = AttemptStarted(workflow, run_id, at, state, name, 1, allowed, False)
            inner_scopes = attempts.enter(first, inner)
        ctx = new(Context)  # Context(x, node), less the call of its __init__
        ctx._run = run  # pyright: ignore[reportPrivateUsage]
        ctx.node = node
        context = inner.copy()
        try:
            if is_async:
                coroutine = context.run(node.fn, ctx)
                try:
                    waiting = context.run(coroutine.send, None)
                except StopIteration as stop:
                    value = stop.value
                else:
                    begun = InlineProgress(node, ctx, suspended=Suspended(ctx, context, coroutine, waiting))
                    return _with_told(begun, at, waited, (outer, start, outer_scopes), (inner, first, inner_scopes))
            elif interrupts is None:
                value = context.run(node.fn, ctx)
            else:
                try:
                    interrupts.in_step = True
                    value = context.run(node.fn, ctx)
                finally:
                    interrupts.in_step = False
        except BaseException as error:  # noqa: BLE001 - the main program judges it
            # No local variable may hold the error, whose traceback holds this frame.
            return _with_told(
                InlineProgress(node, ctx, None, error),
                at,
                waited,
                (outer, start, outer_scopes),
                (inner, first, inner_scopes),
            )
        if type(value) is CoroutineType:
            begun = InlineProgress(node, ctx, cast("Any", value))
            return _with_told(begun, at, waited, (outer, start, outer_scopes), (inner, first, inner_scopes))
        end = clock()
        duration = end - at
        if tells_last:
            attempts.emit(
                AttemptFinished(workflow, run_id, end, state, name, 1, allowed, False, success, duration, None), inner
            )
        if inner_scopes is not None and first is not None:
            hooks.exit(inner_scopes, inner, first, None)
        if ends is not None:
            finish = StepFinished(
                workflow, run_id, end, state, name, success, duration, 1, waited, 0.0, None, depends_on, allowed
            )
            for hook, call in ends:  # hooks.emit, less a call
                try:
                    outer.run(call, finish)
                except BaseException as error:  # noqa: BLE001 - a hook can break nothing
                    hooks.blame(hook, error, finish, outer)
        if outer_scopes is not None and start is not None:
            hooks.exit(outer_scopes, outer, start, None)
        results[name] = value  # only then the times: a step that has some is taken for recorded, see Execution.repair
        times[name] = waited, duration
        if node.compensation is not None:
            run.to_undo.append(node)
        if run.stopped:
            break
        following = node.follows
        if following is None:
            for index in node.successors:
                counts[index] -= 1
                if not counts[index]:
                    if following is None:
                        following = nodes[index]
                    else:
                        ready.append(index)
        if following is None:
            run.running = 0
            return None
        node = following
        ready_at = end
        if tells_ready:
            hooks.emit(StepReady(workflow, run_id, end, state, node.name), copy())
        if ready:
            run.ready_at.update(dict.fromkeys(ready, end))
            emit.steps_ready(run, [nodes[index] for index in ready])
            break
    if not run.stopped:
        run.ready_at[node.index] = ready_at
        return InlineProgress(node)
    run.running = 0
    return None


_Start = tuple[contextvars.Context, Event | None, list[Entered] | None]
"""where it was told, what, and the scopes that came back"""


def _with_told(begun: InlineProgress, at: float, waited: float, step: _Start, attempt: _Start) -> InlineProgress:
    """Where a sprint stopped, with what was told of that step and of its first attempt at `at`."""
    context, event, scopes = step
    begun.outer = begun.told = told = Told(at, context)
    told.waited, told.event, told.scopes = waited, event, scopes
    context, event, scopes = attempt
    if event is not None:
        begun.told = told = Told(at, context)
        told.event, told.scopes = event, scopes
    return begun
