"""The beginning of a run that needs nothing of a driver yet: plain steps, one at a time, that nobody watches.

A chain of plain steps would spend most of its time in generators and dispatch. `sprint` makes the same decisions as
`steps.work`, without a program, for as long as there is exactly one thing to do; the main program goes on from where it
stops. Other threads may cancel or park the run meanwhile: they set `stopped`, which is looked at before each step, and a
step that slips past them counts as begun before.
"""

from __future__ import annotations

from types import CoroutineType
from typing import TYPE_CHECKING, Any, cast

from ..context import Context
from ..plan import Node
from .effects import Interrupts, Suspended
from .run_state import RunState

if TYPE_CHECKING:
    from .emit import Told

__all__ = ["InlineProgress", "can_run_inline", "run_inline"]


class InlineProgress:
    """Where a sprint stopped: at `node`, taken. With a `ctx` its first attempt was made, or is `suspended`."""

    __slots__ = ("ctx", "error", "node", "outer", "suspended", "told", "value")

    def __init__(
        self,
        node: Node,
        ctx: Context | None = None,
        value: Any = None,
        error: BaseException | None = None,
        suspended: Suspended | None = None,
        outer: Told | None = None,
        told: Told | None = None,
    ) -> None:
        self.node = node
        self.ctx = ctx
        self.value = value
        self.error = error
        self.suspended = suspended
        self.outer = outer  # what was told of the step
        self.told = told  # and of its first attempt


def can_run_inline(run: RunState) -> bool:
    """Whether no store has to be asked or told of this run, and no limit kept."""
    return run.key is None and run.allowed is None and not run.settings.durable


def run_inline(run: RunState, interrupts: Interrupts | None = None) -> InlineProgress | None:
    """Run plain steps while there is exactly one to run. None: the run is over, or stopped, or more than one is ready."""
    ready = run.ready
    if len(ready) != 1 or run.stopped:
        return None
    nodes, counts, results, is_async = run.plan.nodes, run.counts, run.results, run.settings.runs_async
    copy, new = run.context.copy, object.__new__
    node: Node | None = nodes[ready.popleft()]
    run.running = 1
    while node is not None and node.sprints[is_async] and not run.stopped:
        if interrupts is not None and interrupts.count > interrupts.raised:
            interrupts.raised = interrupts.count
            run.interrupt(KeyboardInterrupt())
            break
        run.at = node
        ctx = new(Context)  # Context(x, node), less the call of its __init__
        ctx._run = run  # pyright: ignore[reportPrivateUsage]
        ctx.node = node
        context = copy()
        try:
            if is_async:
                coroutine = context.run(node.fn, ctx)
                try:
                    waiting = context.run(coroutine.send, None)
                except StopIteration as stop:
                    value = stop.value
                else:
                    return InlineProgress(node, ctx, suspended=Suspended(ctx, context, coroutine, waiting))
            elif interrupts is None:
                value = context.run(node.fn, ctx)
            else:
                try:
                    interrupts.in_step = True
                    value = context.run(node.fn, ctx)
                finally:
                    interrupts.in_step = False
        except BaseException as error:  # noqa: BLE001 - the main program judges it
            return InlineProgress(node, ctx, None, error)
        if type(value) is CoroutineType:
            return InlineProgress(node, ctx, cast("Any", value))
        results[node.name] = value
        if node.compensation is not None:
            run.to_undo.append(node)
        if node.follows is not None:
            node = node.follows
            continue
        following = None
        for index in node.successors:
            counts[index] -= 1
            if not counts[index]:
                if following is None:
                    following = nodes[index]
                else:
                    ready.append(index)
        node = following
        if node is not None and ready:
            break
    if node is not None and not run.stopped:
        return InlineProgress(node)
    run.running = 0
    return None
