"""The schedules of a `TemporalEngine`: flowcore's own fire times, each of which is the id of a workflow."""

# It is a part of the engine in a file of its own, which is imported with the first schedule, and knows its privates.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextvars
from functools import partial
from typing import TYPE_CHECKING, Any

from .._engines.schedules import LoopSchedules, report
from ..errors import IdempotencyInProgress
from ..workflow import Workflow

if TYPE_CHECKING:
    from .engine import TemporalEngine

__all__ = ["TemporalSchedules"]


class TemporalSchedules(LoopSchedules["TemporalEngine"]):
    """Any number of engines look at the same schedule: Temporal begins one workflow for each fire."""

    def __init__(self, engine: TemporalEngine) -> None:
        super().__init__(engine)

    async def begin(self, workflow: Workflow[Any], values: Any, key: str) -> bool:
        """Begin the run of a fire. False: another engine has."""
        engine: TemporalEngine = self._engine
        submit = partial(engine.submit, workflow, values, idempotency_key=key, once=True)
        future = contextvars.Context().run(submit)
        future.add_done_callback(report)
        try:
            return await future.begun()
        except IdempotencyInProgress:
            return False

    def cancel(self, key: str) -> bool:
        """False: Temporal is asked."""
        return False
