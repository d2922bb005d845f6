"""Coroutines that plain functions return."""

from __future__ import annotations

import contextvars
from typing import Any

from ..context import Context
from ..errors import AsyncStepInSyncEngine, safe_repr
from ..plan import Node
from .effects import Abandoned, Call, Outcome, Program
from .run_state import RunState

__all__ = ["awaited"]


def awaited(
    run: RunState,
    node: Node,
    ctx: Context,
    coroutine: Any,
    context: contextvars.Context,
    timeout: float | None,
    *,
    undo: bool,
    asks: bool = False,
) -> Program[Outcome]:
    """Await a coroutine that a plain function returned, as `lambda ctx: fetch(ctx)` does. The outcome is an error if
    the engine cannot run async code."""
    if not run.settings.runs_async:
        coroutine.close()
        return None, AsyncStepInSyncEngine(
            f"step {safe_repr(node.name)} returned a coroutine, which Engine cannot await. Run it on AsyncEngine."
        )

    def same(_: Context) -> Any:
        return coroutine

    outcome: Outcome = yield Call(node, same, ctx, context, timeout, True, undo, asks)
    if isinstance(outcome[1], Abandoned) and outcome[1].over:
        coroutine.close()  # it may never have begun
        outcome[1].began = True  # the function that returned the coroutine has run
    return outcome
