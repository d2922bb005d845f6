"""The inline path in a simulation: the kernel itself calls plain steps, one after another, in virtual time."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Collection, Generator
from typing import Any

from ..context import Context
from ..plan import Node, Plan

__all__ = ["instrumented"]

CallInline = Callable[[Node, Callable[..., Any], Context], Any]
"""performs the call of a step on the inline path and returns its result"""


def instrumented(
    plan: Plan, elsewhere: Collection[str], inline: Callable[[], bool], call: CallInline, suspends: Callable[[], bool]
) -> Plan:
    """Return a copy of `plan` whose steps are performed by `call` while `inline()` is true. Steps named in `elsewhere`
    never run inline. An async step for which `suspends()` is true is only begun inline, and left to the driver."""
    twin = copy.copy(plan)
    nodes = [copy.copy(node) for node in plan.nodes]
    for node in nodes:
        node.follows = None if node.follows is None else nodes[node.follows.index]
        node.inline = (False, False) if node.name in elsewhere else node.inline
        node.fn = _wrapped(node, node.fn, inline, call, suspends)
    twin.nodes, twin.by_name = tuple(nodes), {node.name: node for node in nodes}
    return twin


def _wrapped(
    node: Node, fn: Callable[..., Any], inline: Callable[[], bool], call: CallInline, suspends: Callable[[], bool]
) -> Callable[..., Any]:
    def step(ctx: Context) -> Any:
        return call(node, fn, ctx) if inline() else fn(ctx)

    async def async_step(ctx: Context) -> Any:
        if not inline():
            return await fn(ctx)
        if suspends():
            await _pause()
        return call(node, fn, ctx)

    if node.step.executor is not None:  # Only the driver runs such a step.
        return fn
    return async_step if node.is_async else step


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield
