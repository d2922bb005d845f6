"""Handles of runs that were submitted to an `AsyncEngine`, or cancelled by it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from .._durable.waiting import LocalRuns
from .._kernel.run_state import RunState
from ..run import Run

__all__ = ["AsyncRunFuture", "Cancellation", "SubmittedRuns"]

_SOON = 1.0
"""seconds in which the claim of a free key is answered"""


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
        self._pause: Run | None = None
        self._pauses: asyncio.Future[None] | None = None
        self.add_done_callback(lambda _: self._wake())
        self._dropped = False
        self._claimed = False
        self._decided = asyncio.Event()  # the run is claimed, or over
        task.add_done_callback(self._resolve)

    async def recorded(self) -> None:
        """Wait until the store has recorded the run: from then on it survives this process, and any engine that recovers
        may run it. Await this before you answer a client that its request was accepted.

        Raises what refused the run, as awaiting the future does: IdempotencyError, NotSerializable or StoreError. Returns
        at once where the key's earlier outcome is this run's too, and for a run without a key in memory.
        """
        await self._decided.wait()
        if not self._claimed:
            self.result()

    async def decided(self) -> None:
        """Wait until the run is claimed, refused or over, for a second at most: where another process has taken the key in
        this moment, the claim may wait as long as that run takes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SOON):
                await self._decided.wait()

    @property
    def is_decided(self) -> bool:
        """Whether the run is claimed, refused or over."""
        return self._decided.is_set()

    async def begun(self) -> bool:
        """`recorded`; returns whether the run is this call's own, and no earlier one with its key."""
        await self.recorded()
        return self._claimed

    def claimed(self) -> None:
        """The run is this engine's, and recorded where its store is durable. On the loop's thread."""
        self._claimed = True
        self._decided.set()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the run; False: it has ended."""
        return self._task.cancel(msg)

    def cancel_run(self) -> bool:
        """Cancel the run, begun or not: running steps get `grace`, and what was done is undone. False: it has ended."""
        return self.cancel()

    async def waiting(self) -> Run:
        """The Run once nothing of it but waits can go on, its status `waiting`, or once it has ended. Cancelling this does not
        cancel the run."""
        while self._pause is None and not self.done():
            paused = self._pauses or asyncio.get_running_loop().create_future()
            self._pauses = paused
            await asyncio.shield(paused)
        return self._pause if self._pause is not None and not self.done() else await asyncio.shield(self)

    async def first_pause(self) -> Run:
        """`waiting`, for a caller who cannot cancel the run any more once it is interrupted: that cancels the run."""
        try:
            return await self.waiting()
        except asyncio.CancelledError:
            self.cancel()
            with suppress(BaseException):
                await asyncio.shield(self)
            raise

    def pause(self, run: Run | None) -> None:
        """For engines: nothing but waits can go on; or, with None, it goes on. In the loop's thread only."""
        self._pause = run
        if run is not None:
            self._wake()

    def _wake(self) -> None:
        paused, self._pauses = self._pauses, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    def drop(self) -> None:
        """Keep the run, which has not begun, from beginning; `end` says how the future ends."""
        self._dropped = True
        self._task.cancel()

    def end(self, error: BaseException | None) -> None:
        """End a dropped run with `error`, or as cancelled."""
        self._decided.set()
        if self.done():
            return
        if error is None:
            super().cancel()
        else:
            self.set_exception(error)

    def _resolve(self, task: asyncio.Task[Run]) -> None:
        if self.done() or self._dropped:
            return
        self._decided.set()
        if task.cancelled():
            super().cancel()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


class SubmittedRuns(LocalRuns):
    """`LocalRuns` that report claims to the futures of submitted runs."""

    def __init__(self, wake: Callable[[RunState], None], clock: Callable[[], float]) -> None:
        super().__init__(wake, clock)
        self.futures: dict[RunState, AsyncRunFuture] = {}
        """by run, until it is claimed or over"""

    def join(self, run: RunState) -> None:
        super().join(run)
        future = self.futures.pop(run, None)
        if future is not None:
            future.claimed()


class Cancellation:
    """What `AsyncEngine.cancel` returns. It is true if a run of this engine is being cancelled; awaiting it returns
    whether any run is, in whichever process. The request is sent to the store whether or not it is awaited."""

    def __init__(self, here: bool, asked: asyncio.Task[bool] | None = None) -> None:
        self._here = here
        self._asked = asked

    def __bool__(self) -> bool:
        return self._here

    def __await__(self) -> Generator[Any, None, bool]:
        if self._asked is not None:
            return (yield from asyncio.shield(self._asked))
        return self._here

    def __repr__(self) -> str:
        return f"<Cancellation {'of a run of this engine' if self._here else 'asked of the store'}>"
