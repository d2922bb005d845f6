"""The handles that `AsyncEngine` returns for submitted runs and for cancellations."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from .._durable.waiting import LocalRuns
from .._kernel.run_state import RunState
from ..run import Run
from .aio_queueing import Recording
from .own_calls import is_called_in, refuse_own_run

__all__ = ["AsyncRunFuture", "Cancellation", "SubmittedRuns"]

_SOON = 1.0
"""seconds in which a store usually replies to the claim of a free key"""


class AsyncRunFuture(asyncio.Future[Run]):
    """A run that was submitted to an `AsyncEngine`: an `asyncio.Future` of its Run, bound to one loop.

    Cancelling the future, or the task that awaits it, cancels the run; the future is done once the run has been undone.
    Awaiting it raises FlowcoreError in a step that the run itself waits for, such as its own.
    """

    def __init__(
        self,
        run: RunState,
        task: asyncio.Task[Run],
        loop: asyncio.AbstractEventLoop,
        recording: Recording | None = None,
        *,
        check: bool = True,
        interrupt: Callable[[RunState], None] | None = None,
    ) -> None:
        super().__init__(loop=loop)
        self.run_id: str = run.run_id
        self.key: str | None = run.key
        """the idempotency key"""
        self.recording = recording
        """the recording of the run as queued, if its engine makes one, until the run begins"""
        self.check = check
        """whether the future raises the error of a failed run"""
        self._is_cancelled = False  # a caller wants the run cancelled
        self._instead: Run | BaseException | None = None
        self._task = task
        self._interrupt = interrupt  # cancels a run that has begun, whatever its steps do with a cancellation
        self._run = weakref.ref(run)  # the run refers to this future
        self._pause: Run | None = None
        self._pauses: asyncio.Future[None] | None = None
        self.add_done_callback(lambda _: self._wake())
        self._dropped = False
        self._claimed = False
        self._decided = asyncio.Event()  # set once the run is claimed, refused or over
        task.add_done_callback(self._resolve)

    def __await__(self) -> Generator[Any, None, Run]:
        self._refuse_own_run()
        return super().__await__()

    def _refuse_own_run(self) -> None:
        awaited = None if self.done() else self._run()
        if awaited is not None:
            refuse_own_run(awaited)

    async def recorded(self) -> None:
        """Wait until the store has recorded the run: from then on it survives this process, and any engine that
        recovers may run it. Await this before you confirm to a client that its request was accepted.

        Raises the error that refused the run, as awaiting the future does: IdempotencyError, NotSerializable or
        StoreError. Returns at once if the run replays the earlier outcome of its key, and for a run without a key in
        memory.
        """
        await self._decided.wait()
        if not self._claimed:
            self.result()

    async def decided(self) -> None:
        """Wait, for at most one second, until the run is claimed, refused or over. Its claim may take longer: if
        another process has just claimed the key, it may wait until that process's run has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SOON):
                await self._decided.wait()

    @property
    def is_decided(self) -> bool:
        """Whether the run is claimed, refused or over."""
        return self._decided.is_set()

    async def begun(self) -> bool:
        """Wait as `recorded` does. Returns whether this engine has claimed the run (and not replayed another)."""
        await self.recorded()
        return self._claimed

    def claimed(self) -> None:
        """Note that this engine has claimed the run, which is recorded if its store is durable. Call it in the loop's
        thread only."""
        self._claimed = True
        self._decided.set()

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the run. Returns False if it has ended already."""
        self._is_cancelled = True
        run = self._run()
        if run is not None and self._interrupt is not None:
            self._interrupt(run)
        return self._task.cancel(msg)

    def follow(self, task: asyncio.Task[Run]) -> None:
        """For engines: note that another task drives the run to its end."""
        self._task = task
        task.add_done_callback(self._resolve)

    def cancel_run(self) -> bool:
        """Cancel the run, whether or not it has begun: running steps get at most `grace`, and the run is undone.
        Returns False if it has ended already."""
        return self.cancel()

    def cancel_start(self, end: Run | BaseException) -> None:
        """For engines: cancel a run that has not begun, and end the future with this Run or error. Call it in the
        loop's thread only."""
        self._instead = end
        self.cancel()

    @property
    def is_watched(self) -> bool:
        """Whether a caller waits in `waiting`."""
        return self._pauses is not None

    async def waiting(self) -> Run:
        """Wait until the run has ended, or has nothing to do but wait, and return its Run. In the second case, its
        status is `waiting`. Cancelling this call does not cancel the run."""
        self._refuse_own_run()
        while self._pause is None and not self.done():
            paused = self._pauses or asyncio.get_running_loop().create_future()
            self._pauses = paused
            await asyncio.shield(paused)
        return self._pause if self._pause is not None and not self.done() else await asyncio.shield(self)

    async def first_pause(self) -> Run:
        """Wait as `waiting` does, for a caller that does not have this future: cancelling this call cancels the run."""
        try:
            return await self.waiting()
        except asyncio.CancelledError:
            self.cancel()
            with suppress(BaseException):
                await asyncio.shield(self)
            raise

    def pause(self, run: Run | None) -> None:
        """For engines: note that the run has nothing to do but wait (`run` is its Run), or that it has resumed (None).
        Call it in the loop's thread only."""
        self._pause = run
        if run is not None:
            self._wake()

    def _wake(self) -> None:
        paused, self._pauses = self._pauses, None
        if paused is not None and not paused.done():
            paused.set_result(None)

    def drop(self) -> None:
        """Keep a run that has not begun from beginning. The future is not done until `end` is called."""
        self._dropped = True
        self._task.cancel()

    def end(self, error: BaseException | None) -> None:
        """End the future of a dropped run with `error`, or as cancelled if that is None."""
        self._decided.set()
        if self.done():
            return
        if error is None:
            super().cancel()
        else:
            self.set_exception(error)

    def _resolve(self, task: asyncio.Task[Run]) -> None:
        if self.done() or self._dropped or task is not self._task:
            return
        self._decided.set()
        if task.cancelled() and self.recording is not None and self._is_cancelled:
            self.recording.withdraw(self.get_loop()).add_done_callback(lambda _: self._end_cancelled())
        elif task.cancelled():
            self._end_cancelled()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def _end_cancelled(self) -> None:
        if self.done():
            return
        if self._instead is None:
            super().cancel()
        elif isinstance(self._instead, Run):
            self.set_result(self._instead)
        else:
            self.set_exception(self._instead)


class SubmittedRuns(LocalRuns):
    """`LocalRuns` that report claims to the futures of submitted runs."""

    def __init__(self, wake: Callable[[RunState], None], clock: Callable[[], float]) -> None:
        super().__init__(wake, clock, is_called_in)
        self.futures: dict[RunState, AsyncRunFuture] = {}
        """the future of each submitted run, until the run is claimed or over"""

    def join(self, run: RunState) -> None:
        super().join(run)
        future = self.futures.pop(run, None)
        if future is not None:
            future.claimed()


class Cancellation:
    """The result of `AsyncEngine.cancel`. It is true if a run of this engine is being cancelled; awaiting it returns
    whether a run of any process is being cancelled. The request is sent to the store whether or not it is awaited."""

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
        if self._here:
            return "<Cancellation of a run>"
        return f"<Cancellation {'of no run' if self._asked is None else 'sent to the store'}>"
