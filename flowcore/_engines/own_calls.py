"""Whether a call of an engine comes from one of its own runs. Waiting for that run would never end."""

from __future__ import annotations

import sys
from collections.abc import Container
from types import FrameType
from typing import Any

from .._kernel.run_state import RunState

__all__ = ["is_called_in"]


def is_called_in(runs: Container[RunState]) -> bool:
    """Whether this thread is calling a step, an undo, a predicate or a hook of one of these runs.

    The thread's stack frames show this. Only calls that would otherwise wait look at them, so that runs pay nothing for
    it.
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
