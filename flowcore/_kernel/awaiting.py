"""Coroutines and other awaitables that plain functions return."""

from __future__ import annotations

import contextvars
from types import CoroutineType
from typing import Any, cast

from ..context import Context
from ..errors import AsyncStepInSyncEngine, safe_repr
from ..functions import result_of
from ..plan import Node
from .effects import Abandoned, Call, Outcome, Program
from .run_state import RunState

__all__ = ["awaited"]


def awaited(
    run: RunState,
    node: Node,
    ctx: Context,
    awaitable: Any,
    context: contextvars.Context,
    timeout: float | None,
    *,
    undo: bool,
    asks: bool = False,
) -> Program[Outcome]:
    """Await what a plain function returned, such as the coroutine of `lambda ctx: fetch(ctx)`. The outcome is an error
    if the engine cannot run async code."""
    kind = type(cast("object", awaitable))
    if not run.settings.runs_async:
        what = f"an awaitable {kind.__qualname__}"
        if kind is CoroutineType:
            awaitable.close()
            what = "a coroutine"
        return None, AsyncStepInSyncEngine(
            f"step {safe_repr(node.name)} returned {what}, which Engine cannot await. Run it on AsyncEngine."
        )
    coroutine: Any = awaitable if kind is CoroutineType else result_of(awaitable)

    def same(_: Context) -> Any:
        return coroutine

    outcome: Outcome = yield Call(node, same, ctx, context, timeout, True, undo, asks)
    if isinstance(outcome[1], Abandoned) and outcome[1].over:
        coroutine.close()  # it may never have begun
        outcome[1].began = True  # the function that returned the coroutine has run
    return outcome
