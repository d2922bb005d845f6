"""The schedules of a `TemporalEngine`. flowcore computes the fire times, and each fire is a Temporal workflow with its
own id."""

# This part of the engine has a file of its own, which is imported with the first schedule. It uses the engine's
# private members.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextvars
from functools import partial
from typing import TYPE_CHECKING, Any

from .._engines.schedules import LoopSchedules, report
from ..errors import IdempotencyInProgress
from ..workflow import Workflow
from .definitions import check_supported

if TYPE_CHECKING:
    from .engine import TemporalEngine

__all__ = ["TemporalSchedules"]


class TemporalSchedules(LoopSchedules["TemporalEngine"]):
    """The schedules of one engine. Any number of engines may have the same schedule: Temporal begins one workflow for
    each fire."""

    def __init__(self, engine: TemporalEngine) -> None:
        super().__init__(engine)

    def _refuse_unsupported(self, workflow: Workflow[Any]) -> None:
        check_supported(workflow)

    async def begin(self, workflow: Workflow[Any], values: Any, key: str) -> bool:
        """Begin the run of a fire. Returns False if another engine has begun it."""
        engine: TemporalEngine = self._engine
        submit = partial(engine.submit, workflow, values, idempotency_key=key, once=True)
        future = contextvars.Context().run(submit)
        future.add_done_callback(report)
        try:
            return await future.begun()
        except IdempotencyInProgress:
            return False

    def cancel(self, key: str) -> bool:
        """Return False: this engine runs nothing itself, so the run is cancelled through Temporal."""
        return False
