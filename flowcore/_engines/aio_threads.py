"""Sync user code in runs on an event loop: it waits for a thread, runs on it, and may be abandoned."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from .._durable.checkpoints import parked
from .._kernel import stopping
from .._kernel.effects import Abandoned, Call, Outcome, Program, Stop
from .._kernel.run_state import RunState
from ..errors import NoThread
from .base import NO_THREAD, call_title, patience
from .workers import Workers

__all__ = ["PendingReply", "ThreadCalls"]

_NO_REPLY: Final = object()


class PendingReply:
    """A value for which a program's task waits. A cancellation of the task is reported to the driver and does not end
    the wait. `task`: the task that sets the value, if there is one. If it has ended without doing so, because a signal
    handler has raised an exit in it or in its callback, the value is None."""

    __slots__ = ("_answer", "_driver", "_future", "task")

    def __init__(self, driver: ThreadCalls) -> None:
        self._driver = driver
        self._answer: Any = _NO_REPLY
        self._future: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None

    def set(self, answer: Any) -> None:
        """Resume the waiting program with `answer`. Only the first call has an effect."""
        if self._answer is _NO_REPLY:
            self._answer = answer
            if self._future is not None and not self._future.done():
                self._future.set_result(None)

    async def wait(self) -> Any:
        while self._answer is _NO_REPLY and (self.task is None or not self.task.done() or self.task.cancelled()):
            self._future = self._driver.loop.create_future()
            try:
                await self._future
            except asyncio.CancelledError as error:
                self._driver.cancelled_from_outside(error)
        return None if self._answer is _NO_REPLY else self._answer


class ThreadCalls(ABC):
    """The part of an `AsyncDriver` that runs sync user code on threads. All methods but `_call_in_loop` are called in the
    loop's thread."""

    def __init__(self, run: RunState, pool: Workers, tasks: set[asyncio.Future[Any]]) -> None:
        self.run = run
        self.loop = asyncio.get_running_loop()
        self._pool = pool
        self._tasks = tasks  # the engine's set, because a late call outlives its run
        self._inline: dict[Call, tuple[Program[Any], asyncio.Task[Any]]] = {}  # async calls that are suspended
        self._threaded: dict[Call, PendingReply] = {}  # sync calls on a thread
        self._queued_calls: dict[Call, list[bool]] = {}  # sync calls that wait for a thread
        self._abandoned: dict[Call, asyncio.Future[None]] = {}  # abandoned sync calls that are not over

    @abstractmethod
    def _complete_late(self, call: Call, result: Outcome) -> None:
        """Process the outcome of an abandoned call that completed late."""

    @abstractmethod
    def stop(self, stop: Stop) -> None:
        """End the run's waits and, with `cancel`, its calls."""

    @abstractmethod
    def cancelled_from_outside(self, error: asyncio.CancelledError) -> None:
        """Stop the run because one of its tasks was cancelled."""

    async def _on_a_thread(self, call: Call) -> Outcome:
        pending = self._threaded[call] = PendingReply(self)
        begins = [True]  # emptied when the call begins or its wait for a thread ends; list.pop is atomic

        def job() -> None:
            try:
                begins.pop()
            except IndexError:  # the wait has ended
                return
            self._call_in_loop(arm)
            try:
                result: Outcome = (call.context.run(call.fn, call.ctx), None)
            except BaseException as error:  # noqa: BLE001 - the program judges it
                result = (None, error)
            self._call_in_loop(partial(self._thread_done, call, result))

        def arm() -> None:
            if timer is not None:
                timer.cancel()
            self._queued_calls.pop(call, None)
            if call.timeout is not None and call in self._threaded:
                self.loop.call_later(call.timeout, self._leave_thread, call, True)

        timer: asyncio.TimerHandle | None = None
        # A loop on a thread of the pool is that of a sync step, which keeps this thread until the run of the call ends.
        beyond = call.shielded or self._pool.owns_current_thread()
        try:
            begun = self._pool.put(job, first=True, beyond=beyond)
        except NoThread as error:
            del self._threaded[call]
            return None, error
        if not begun:
            self._queued_calls[call] = begins
            timer = self._limit_the_wait(call)
        result: Outcome = await pending.wait()
        if timer is not None:
            timer.cancel()
        return result

    def _limit_the_wait(self, call: Call) -> asyncio.TimerHandle | None:
        """Limit how long a call waits for a thread: until the deadline and, on a durable store, for one lease."""
        seconds = patience(self.run)
        return None if seconds is None else self.loop.call_later(seconds, self._waited_long, call)

    def _waited_long(self, call: Call) -> None:
        """End a call's wait for a thread. At the deadline, the step fails. After a lease, the run is parked so that
        another process can take it over, unless a call of the run is in flight."""
        run = self.run
        if run.deadline is not None and run.settings.clock() >= run.deadline:
            self._drop_queued_call(call, timed_out=True)
        elif call in self._queued_calls and not self._inline and len(self._threaded) == len(self._queued_calls):
            stopping.release(run, parked(run, NO_THREAD))
            self.stop(Stop(cancel=False))
        elif call in self._queued_calls:
            self._limit_the_wait(call)

    def _drop_queued_call(self, call: Call, *, timed_out: bool) -> None:
        """Abandon a call that waits for a thread, unless it has begun."""
        begins = self._queued_calls.pop(call, None)
        if begins is None:
            return
        try:
            begins.pop()
        except IndexError:  # it has just begun, and its thread reports that in a moment
            return
        pending = self._threaded.pop(call)
        pending.set((None, Abandoned(call, timed_out=timed_out, over=True, began=False)))

    def _call_in_loop(self, callback: Callable[[], None]) -> None:
        """Schedule `callback` in the loop, from another thread. Does nothing if the loop is closed."""
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self.loop.is_closed():
                raise

    def _thread_done(self, call: Call, result: Outcome) -> None:
        pending = self._threaded.pop(call, None)
        if pending is not None:
            pending.set(result)
        else:
            self._complete_late(call, result)

    def _leave_thread(self, call: Call, late: bool) -> None:
        pending = self._threaded.pop(call, None)
        if pending is not None:
            call.abandon()
            self.run.abandon(call)
            self._pool.abandon(call_title(self.run, call))
            self._abandoned[call] = abandoned = self.loop.create_future()
            self._tasks.add(abandoned)
            abandoned.add_done_callback(self._tasks.discard)
            pending.set((None, Abandoned(call, timed_out=late)))

    def _thread_returned(self, call: Call) -> None:
        """Note that an abandoned call is over. Does nothing if the call was not on a thread."""
        abandoned = self._abandoned.pop(call, None)
        if abandoned is not None:
            self._pool.returned(call_title(self.run, call))
            abandoned.set_result(None)
