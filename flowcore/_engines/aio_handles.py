"""Handles of runs that were submitted to an `AsyncEngine`."""

from __future__ import annotations

import asyncio
from typing import Any

from .._kernel.run_state import RunState
from ..run import Run

__all__ = ["AsyncRunFuture"]


class AsyncRunFuture(asyncio.Future[Run]):
    """A run that was submitted to an `AsyncEngine`: an `asyncio.Future` of its Run, of one loop.

    Cancelling the future, or the task that awaits it, cancels the run; the future is done once what was done is undone.
    """

    def __init__(self, run: RunState, task: asyncio.Task[Run], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.run_id: str = run.run_id
        self.key: str | None = run.key
        """the idempotency key"""
        self._task = task
        self._dropped: BaseException | None = None
        task.add_done_callback(self._resolve)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the run; False: it has ended."""
        return self._task.cancel(msg)

    def cancel_run(self) -> bool:
        """Cancel the run, begun or not: running steps get `grace`, and what was done is undone. False: it has ended."""
        return self.cancel()

    def drop(self, error: BaseException | None) -> None:
        """End a run that has not begun with `error`, or as cancelled."""
        self._dropped = error
        self._task.cancel()

    def _resolve(self, task: asyncio.Task[Run]) -> None:
        if self.done():
            return
        if task.cancelled():
            if self._dropped is None:
                super().cancel()
            else:
                self.set_exception(self._dropped)
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())
