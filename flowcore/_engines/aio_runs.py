"""The runs of an `AsyncEngine`: queued, in flight, continued after a wait, and closed."""

from __future__ import annotations

import asyncio
import math
import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from .._durable.dormant import continuation
from .._durable.leases import Leases
from .._kernel import emit, stopping
from .._kernel.effects import Program, Stop
from .._kernel.run import never_began
from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from ..errors import StepCancelled
from ..exits import is_exit_of_handler, take_deferred
from ..forks import after_fork_in_child
from ..run import Run
from ..status import Status
from .aio_closing import leave
from .aio_driver import AsyncDriver
from .aio_handles import AsyncRunFuture, SubmittedRuns
from .aio_queueing import Recorder, Recording
from .base import MARGIN, log, outcome
from .in_context import is_process_stopping
from .live_runs import CLOSED, LiveRuns, left_error, stopped_error
from .own_calls import is_called_in
from .workers import Workers

__all__ = ["AsyncRuns", "LiveAsyncRuns", "pending_cancellations"]

_of_this_process: Final[list[weakref.ref[AsyncRuns]]] = []
"""those of all engines; a list, because it can be copied while another thread adds to it"""


class LiveAsyncRuns(LiveRuns[AsyncDriver]):
    """The runs in flight of an `AsyncEngine`."""

    def stop(self, run: RunState, *, cancel: bool) -> None:
        """Have the driver of a run end the run's waits and, with `cancel`, its calls. May be called from any thread."""
        driver = self.get(run)
        if driver is not None:
            with suppress(RuntimeError):  # its loop is closed: the run is no longer driven
                driver.loop.call_soon_threadsafe(driver.stop, Stop(cancel=cancel))

    def look(self, run: RunState) -> None:
        """Have the driver of a run check whether something that the run waits for has arrived. May be called from any
        thread."""
        driver = self.get(run)
        if driver is not None:
            with suppress(RuntimeError):  # its loop is closed: the run is no longer driven
                driver.loop.call_soon_threadsafe(driver.look)


class AsyncRuns:
    """The runs of one `AsyncEngine`, and the threads of their sync steps. Runs in flight keep this object alive; it
    does not keep the engine alive."""

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self.pool = Workers(workers, "flowcore-aio")
        self.live = LiveAsyncRuns()
        self.local = SubmittedRuns(self.live.wake, settings.clock)
        self.leases: Leases | None = None
        self._recorder = Recorder(settings.store, self.pool)
        self.queued: dict[RunState, AsyncRunFuture] = {}
        """submitted runs that have not begun"""
        self.tasks: set[asyncio.Future[Any]] = set()
        """tasks that may outlive their run, and futures of abandoned calls; a loop holds tasks only weakly"""
        self.closing = False
        _of_this_process.append(weakref.ref(self, _of_this_process.remove))
        after_fork_in_child(self, AsyncRuns._after_fork)
        weakref.finalize(self, self.pool.close, settings.grace)
        weakref.finalize(self, self._recorder.close)

    def _after_fork(self) -> None:
        """In a forked child, forget the runs in flight and their tasks: they belong to the parent."""
        for run in self.live:
            stopping.leave_to_parent(run, os.getpid())
        self.live.clear()
        self.queued.clear()
        self.local.futures.clear()
        self.tasks.clear()

    # -- one run -------------------------------------------------------------------------------------------------------

    async def drive(self, run: RunState, cancelled: int, *, check: bool, future: AsyncRunFuture | None = None) -> Run:
        """Drive a run to its end in this task. `cancelled`: how often the task had been cancelled before. `future`: of a
        submitted run, whose task is the engine's."""
        return await self._outcome(await self.driven(run, cancelled, future), cancelled, check=check, future=future)

    async def _outcome(self, driver: AsyncDriver, cancelled: int, *, check: bool, future: AsyncRunFuture | None) -> Run:
        """Return or raise the outcome of a run that its driver has driven, once its waits in its store are over."""
        run = driver.run
        while driver.result is not None and driver.result.status is Status.WAITING:
            waited = driver.run
            try:
                if run.on_pause is not None:
                    run.on_pause(driver.result)
                again = None if self.closing else continuation(waited, self.local)
                if again is None and not run.request.until_waiting:
                    driver.result, driver.error = None, left_error(waited)
                if again is None:
                    break
                following = self.driver(again[0], cancelled, again[1], future)
            finally:
                self.live.follow(waited)
            driver = await self._driven(following)
        raised = take_deferred() or driver.raised_by_handler or driver.cancelled
        if driver.cancelled is not None and is_process_stopping():
            raised = driver.cancelled  # an exit would keep the loop from ending the other tasks
        ends = raised or driver.error
        if ends is not None and is_exit_of_handler(ends):
            await _hand_over_others()
        if raised is not None and driver.error is not raised:
            raise raised from driver.error
        return outcome(driver.result, driver.error, check=check)

    def driver(
        self,
        run: RunState,
        cancelled: int,
        main: Program[Run] | None = None,
        future: AsyncRunFuture | None = None,
    ) -> AsyncDriver:
        """Create the driver of a run. The run is in flight from now on."""
        driver = self.live[run] = AsyncDriver(run, cancelled, self.pool, self.tasks, main)
        if future is not None:
            driver.leave_caller = partial(self._leave_task, future)
        return driver

    def _leave_task(self, future: AsyncRunFuture, driver: AsyncDriver, answer: object) -> None:
        """Have another task drive a submitted run to its end, because a step that ignores its cancellation keeps the
        task that has driven it until now."""
        if driver.caller is not None:
            self.tasks.add(driver.caller)
            driver.caller.add_done_callback(self.tasks.discard)
        task = driver.caller = future.get_loop().create_task(self._resumed(future, driver, answer))
        future.follow(task)

    async def _resumed(self, future: AsyncRunFuture, driver: AsyncDriver, answer: object) -> Run:
        return await self._outcome(await self._driven(driver, answer), 0, check=future.check, future=future)

    async def driven(self, run: RunState, cancelled: int, future: AsyncRunFuture | None = None) -> AsyncDriver:
        """Drive a run until it ends or waits in its store. Returns its driver."""
        try:
            return await self._driven(self.driver(run, cancelled, future=future))
        except BaseException:
            driver = self.live.get(run)
            if driver is None or driver.caller in {None, asyncio.current_task()}:
                self.live.pop(run, None)  # a signal handler may exit before `_driven` can do so
            raise

    async def _driven(self, driver: AsyncDriver, answer: object = None) -> AsyncDriver:
        run, stays = driver.run, True
        try:
            stays = await driver.run_here(answer)
        finally:
            if stays:
                self.live.note_left(run)
                self.live.pop(run, None)
                if run.claimed:
                    self.local.leave(run)
                    if self.leases is not None:
                        self.leases.leave(run)
        if not stays:
            raise asyncio.CancelledError  # this task has no outcome: see `_leave_task`
        return driver

    def interrupt(self, run: RunState) -> None:
        """Cancel a run that has begun because its future was cancelled. Call it in the loop's thread only."""
        driver = self.live.get(run.continued or run)
        if driver is not None:
            driver.cancelled_from_outside(asyncio.CancelledError())

    def cancel(self, run: RunState) -> bool:
        """Cancel a run, whether or not it has begun. Returns False if it was ending already. May be called from any
        thread."""
        queued = self.queued.get(run)
        if queued is not None:
            queued.get_loop().call_soon_threadsafe(self._cancel_queued, run)
            return True
        interrupted = stopping.interrupt(run, _cancelled(run))
        if interrupted:
            self.live.stop(run.continued or run, cancel=True)
        return interrupted

    def _cancel_queued(self, run: RunState) -> None:
        """Cancel a submitted run, on the loop on which it has begun or is about to."""
        future = self.queued.get(run)
        if future is None:
            self.cancel(run)
        else:
            error = _cancelled(run)
            future.cancel_start(error if future.check else never_began(run, error))

    # -- submitted runs ------------------------------------------------------------------------------------------------

    def queue(self, run: RunState, *, check: bool, records: bool = False) -> AsyncRunFuture:
        """Begin a submitted run in a separate task. Returns its future. `records`: record the run as queued first, on
        a durable store, and wait a moment for that. Raises what `Recorder.record` raises."""
        recording: Recording | None = None
        if records and self._settings.durable:
            try:
                recording = self._recorder.record(run)
            except BaseException as error:
                emit.dequeued(run, error=error)
                raise
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._begin(run, check, recording))
        future = AsyncRunFuture(run, task, loop, recording, check=check, interrupt=self.interrupt)
        self.queued[run] = self.local.futures[run] = future
        run.on_pause = future.pause
        if recording is not None and recording.is_granted:
            self._note_recorded(run, future)
        task.add_done_callback(partial(self._forget_queued, run))
        return future

    def _note_recorded(self, run: RunState, future: AsyncRunFuture) -> None:
        """Renew the lease of a run that is recorded as queued from now on."""
        future.claimed()
        if self.leases is not None:
            self.leases.join(run)

    async def _begin(self, run: RunState, check: bool, recording: Recording | None) -> Run:
        future = self.queued[run]
        if recording is not None and not recording.claim.done() and await recording.granted():
            self._note_recorded(run, future)
        self.queued.pop(run)
        future.recording = None
        if run.key is None and not self._settings.durable:
            future.claimed()
        return await self.drive(run, 0, check=check, future=future)

    def _forget_queued(self, run: RunState, task: asyncio.Task[Run]) -> None:
        self.local.futures.pop(run, None)
        self.queued.pop(run, None)
        if run.submitted_at is not None:  # it has not begun
            emit.dequeued(run, error=None if task.cancelled() else task.exception())
        if self.leases is not None and run not in self.live:  # another task may drive it
            self.leases.leave(run)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def leave_queued(self, limit: float) -> None:
        """Drop the runs of this loop that have not begun. On a durable store, they are recorded as queued and left to
        other engines; in memory, they are cancelled."""
        loop = asyncio.get_running_loop()
        mine = {run: future for run, future in self.queued.items() if future.get_loop() is loop}
        for run in mine:
            self.queued.pop(run)
            if self.leases is not None:
                self.leases.leave(run)
        await leave(mine, partial(AsyncDriver, cancels=0, pool=self.pool, tasks=self.tasks), max(limit, MARGIN))

    async def close(self, limit: float | None, looking: Sequence[asyncio.Task[Any]]) -> None:
        """Wait for the runs on this loop, and for the tasks that look at the store (`looking`). A `limit` means the
        same as the timeout of `Engine.close`."""
        settings, loop = self._settings, asyncio.get_running_loop()
        self.closing = True
        if limit is None:
            await _done(list(self.queued.values()), None)
        else:
            await self.leave_queued(limit)
        drivers = self.of_this_loop()
        if limit is not None and settings.durable:
            for driver in drivers:
                stopping.release(driver.run, stopped_error(driver.run, CLOSED))
                driver.stop(Stop(cancel=False))
        await _done([driver.ended() for driver in drivers], limit)
        for driver in drivers:
            driver.hand_over(stopped_error(driver.run, CLOSED))
        if limit is not None and await _ended(drivers):
            log.warning("an engine was closed while some of its runs had not ended")
        # Abandoned calls have one grace to complete, and may then have to be undone.
        until = loop.time() + (0 if limit is not None and self.pool.counts()[1] else settings.grace)
        while (late := [task for task in self.tasks if task.get_loop() is loop]) and loop.time() < until:
            await asyncio.wait(late, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        await _done([task for task in looking if task is not asyncio.current_task()], MARGIN)
        if self.leases is not None:
            self.leases.close()
        self._recorder.close()
        self.pool.close(0)

    def of_this_loop(self) -> list[AsyncDriver]:
        """Return the drivers of the other runs on this loop, after those of runs that wait in their store have stopped."""
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        everywhere = list(self.live.values())  # a copy, because engines of other threads begin runs meanwhile
        drivers = [d for d in everywhere if d is not None and d.loop is loop and d.caller is not me]
        for driver in drivers:
            if driver.run.dormant:  # other engines find it in its store
                stopping.release(driver.run, left_error(driver.run))
                driver.stop(Stop(cancel=False))
        return drivers


async def _hand_over_others() -> None:
    """Park the other durable runs on this loop, and cancel those in memory, because this task is about to raise the exit
    of a signal handler. That ends the loop. asyncio then cancels the other tasks, but does not wait for them if the task
    that awaits this one raises the exit again. A run whose step makes the present call gets the exit itself."""
    engines = [runs for reference in _of_this_process.copy() if (runs := reference()) is not None]
    drivers = [driver for runs in engines for driver in runs.of_this_loop()]
    others = [driver for driver in drivers if not is_called_in((driver.run,))]
    for driver in others:
        driver.hand_over(stopped_error(driver.run, "its process stops"))
    # A caller that awaits one of the others may end first, and asyncio then cancels this task. The exit is not lost.
    for _ in range(2):
        with suppress(asyncio.CancelledError):
            await _ended(others)
            return


async def _ended(drivers: Sequence[AsyncDriver]) -> Sequence[asyncio.Future[Any]]:
    """Wait until runs that were handed over have ended. Returns the futures of those that take too long."""
    # One grace is for calls in flight, one for abandoned calls, and one for the undos.
    limits = [driver.run.settings.grace * (1 if driver.run.settings.durable else 3) for driver in drivers]
    return await _done([driver.ended() for driver in drivers], max(limits, default=0) + MARGIN)


def _cancelled(run: RunState) -> StepCancelled:
    return StepCancelled(f"run {run.run_id} was cancelled by engine.cancel().")


async def _done(futures: Sequence[asyncio.Future[Any]], limit: float | None) -> Sequence[asyncio.Future[Any]]:
    """Wait for the futures. Returns those that are not done after `limit` seconds."""
    if not futures:
        return []
    _, running = await asyncio.wait(futures, timeout=None if limit == math.inf else limit)
    return list(running)


def pending_cancellations() -> int:
    """How many requests to cancel the current task are pending (see `asyncio.Task.cancelling`)."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
