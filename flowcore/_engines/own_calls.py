"""Whether a call of an engine comes from one of its own runs. Waiting for that run would never end."""

from __future__ import annotations

import math
import sys
from collections.abc import Container
from types import FrameType
from typing import Any

from .._kernel.run_state import RunState
from ..errors import FlowcoreError

__all__ = ["is_called_in", "refuse_own_close", "refuse_own_run"]


def is_called_in(runs: Container[RunState]) -> bool:
    """Whether this thread is calling a step, an undo, a predicate or a hook of one of these runs.

    The thread's stack frames show this: those that call user code of a run have it as `run` or `self.run`. Only calls that
    would otherwise wait look at them, so that runs pay nothing for it.
    """
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("flowcore._"):
            names = frame.f_locals
            run: Any = names.get("run") or getattr(names.get("self"), "run", None)
            if isinstance(run, RunState) and run in runs:
                return True
        frame = frame.f_back
    return False


def refuse_own_run(awaited: RunState) -> None:
    """Raise FlowcoreError if this thread is calling a step of this run, which would wait for its own end."""
    resumed = awaited
    while resumed.continued is not None:
        resumed = resumed.continued
    if is_called_in((awaited, resumed)):
        raise FlowcoreError(f"this step cannot wait for run {awaited.run_id}, because that run waits for this step.")


def refuse_own_close(live: Container[RunState], limit: float | None) -> None:
    """Raise FlowcoreError if this thread is calling a step of one of these runs, and wants to close their engine without
    a limit in seconds."""
    if (limit is None or limit == math.inf) and is_called_in(live):
        raise FlowcoreError("an engine cannot be closed by one of its own steps: it would wait for that step.")
