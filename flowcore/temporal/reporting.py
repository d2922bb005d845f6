"""Reports the end of a run to the hooks of its worker, because the caller, whose hooks get RunFinished, may have died."""

from __future__ import annotations

import contextvars
import time
from typing import Any, Final, TypedDict

from ..events import Hook, Hooks, RunEnded, RunJoined
from ..status import Status

__all__ = ["REPORT_END", "End", "report_end"]

REPORT_END: Final = "flowcore_run_ended"
"""name of the local activity that reports the end of a run"""


class End(TypedDict):
    """The end of a run. `key`: None for a run without a key. `carrier`: the trace context of the run. `duration`:
    seconds."""

    workflow: str
    run_id: str
    key: str | None
    carrier: dict[str, str]
    status: str
    duration: float


def report_end(end: End, hooks: Hooks) -> list[str]:
    """Emit the end of a run. Returns the names of the hooks that have counted the run."""
    if RunEnded not in hooks.wanted:
        return []
    of: tuple[str, str, float, dict[Any, Any]] = (end["workflow"], end["run_id"], time.monotonic(), {})
    context, wall = contextvars.copy_context(), time.time()
    if RunJoined in hooks.wanted:
        leaving: list[Hook] = []
        hooks.emit(RunJoined(*of, wall, end["carrier"], {}), context, leaving)
        hooks = hooks.without(leaving)
    event = RunEnded(*of, end["key"], wall, Status(end["status"]), end["duration"])
    hooks.emit(event, context)
    return sorted(event.counted)
