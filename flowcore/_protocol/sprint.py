"""The beginning of a run that needs nothing of a driver yet: plain steps, one at a time, that nobody watches.

A chain of plain steps would spend most of its time in generators and dispatch. `sprint` makes the same decisions as
`steps.work`, without a program, for as long as there is exactly one thing to do; the main program goes on from where it
stops. Other threads may cancel or park the run meanwhile: they set `stopped`, which is looked at before each step, and a
step that slips past them counts as begun before.
"""

from __future__ import annotations

from types import CoroutineType
from typing import Any, cast

from ..context import Context
from ..plan import Node
from .effects import Suspended
from .execution import Execution

__all__ = ["Begun", "may_sprint", "sprint"]


class Begun:
    """Where a sprint stopped: at `node`, taken. With a `ctx` its first attempt was made, or is `suspended`."""

    __slots__ = ("ctx", "error", "node", "suspended", "value")

    def __init__(
        self,
        node: Node,
        ctx: Context | None = None,
        value: Any = None,
        error: BaseException | None = None,
        suspended: Suspended | None = None,
    ) -> None:
        self.node = node
        self.ctx = ctx
        self.value = value
        self.error = error
        self.suspended = suspended


def may_sprint(x: Execution) -> bool:
    """Whether nobody watches this run, and no store has to be asked or told."""
    return x.key is None and not x.observed and x.allowed is None and not x.settings.durable


def sprint(x: Execution) -> Begun | None:
    """Run plain steps while there is exactly one to run. None: the run is over, or stopped, or more than one is ready."""
    ready = x.ready
    if len(ready) != 1 or x.stopped:
        return None
    nodes, counts, results, is_async = x.plan.nodes, x.counts, x.results, x.settings.runs_async
    copy, new = x.context.copy, object.__new__
    node: Node | None = nodes[ready.popleft()]
    x.running = 1
    while node is not None and node.sprints[is_async] and not x.stopped:
        x.at = node
        ctx = new(Context)  # Context(x, node), less the call of its __init__
        ctx._run = x  # pyright: ignore[reportPrivateUsage]
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
                    return Begun(node, ctx, suspended=Suspended(ctx, context, coroutine, waiting))
            else:
                value = context.run(node.fn, ctx)
        except BaseException as error:  # noqa: BLE001 - the main program judges it
            return Begun(node, ctx, None, error)
        if type(value) is CoroutineType:
            return Begun(node, ctx, cast("Any", value))
        results[node.name] = value
        if node.compensation is not None:
            x.to_undo.append(node)
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
    if node is not None and not x.stopped:
        return Begun(node)
    x.running = 0
    return None
