"""The handles of runs that were submitted to an `Engine`."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .._kernel.run_state import RunState
from ..errors import NoThread
from ..retry import Duration, seconds
from ..run import Run
from .own_calls import refuse_own_run

if TYPE_CHECKING:
    from .thread_driver import Driver
    from .workers import Workers

__all__ = ["RunFuture"]

_LOOK: Final = 0.05
"""seconds for which a thread of the pool works on a run before it looks again whether the run only waits"""


class RunFuture(Future[Run]):
    """A run that was submitted to an `Engine`: a `concurrent.futures.Future` of its Run. Thread-safe.

    `cancel()` works until a thread begins the run; `cancel_run()` works until the run ends.
    """

    def __init__(self, driver: Driver, pool: Workers, cancel: Callable[[RunState, str], bool]) -> None:
        super().__init__()
        self.run_id: str = driver.run.run_id
        self.key: str | None = driver.run.key
        """the idempotency key"""
        self._driver = driver
        self._pool = pool
        self._cancel = cancel
        self._paused = threading.Condition()
        self._pause: Run | None = None
        self._waiters = _Waiters(self)
        self.add_done_callback(lambda _: self.pause(self._pause))

    def cancel(self) -> bool:
        """Cancel the run, unless a thread has begun it. Returns whether it is cancelled."""
        if not super().cancel():
            return False
        if self._driver.take_start():
            self.set_running_or_notify_cancel()
            self._driver.on_over(self._driver)
        return True

    def cancel_run(self) -> bool:
        """Cancel the run, whether or not it has begun: running steps get at most `grace`, and the run is undone.
        Returns False if it has ended already."""
        return self.cancel() or self._cancel(self._driver.run, f"run {self.run_id} was cancelled by cancel_run().")

    def result(self, timeout: Duration | None = None) -> Run:
        """The Run, once it has ended. Raises what `Engine.run` raises, TimeoutError after `timeout` (seconds or a
        timedelta; one below 0 is over), and DefinitionError for another `timeout`.

        In a step on a thread of the same engine, this call works on the run while it waits; a step of the run that it
        performs may outlast `timeout`. Raises FlowcoreError in a step that the run itself waits for, such as its own.
        """
        return super().result(self._work_for_run(_finite(timeout)))

    def exception(self, timeout: Duration | None = None) -> BaseException | None:
        """Wait as `result` does. Returns the exception that `result` would raise, or None."""
        return super().exception(self._work_for_run(_finite(timeout)))

    def waiting(self, timeout: Duration | None = None) -> Run:
        """Wait until the run has nothing to do but wait, and return its Run with the status `waiting`, or until it has
        ended, and return or raise what `result` does. Raises TimeoutError after `timeout` seconds."""
        if not self.done():
            refuse_own_run(self._driver.run)
        left = limit = _finite(timeout)
        works = self._pool.owns_current_thread()
        until = math.inf if left is None else time.monotonic() + left
        while works and not self._is_quiet() and (now := time.monotonic()) < until:
            self._work_for_run(min(_LOOK, until - now))
            left = None if left is None else _left(until)
            with self._paused:  # another thread may work on it
                self._paused.wait_for(self._is_quiet, _LOOK)
        with self._paused:
            if not self._paused.wait_for(self._is_quiet, left):
                raise TimeoutError(f"Run {self.run_id} neither ended nor began to wait within {limit:g} s.")
            if self._pause is not None and not self.done():
                return self._pause
        return self.result()

    def _is_quiet(self) -> bool:
        """Whether the run has ended, or has nothing to do but wait."""
        return self._pause is not None or self.done()

    def first_pause(self) -> Run:
        """Wait as `waiting` does, for a caller that does not have this future: an interruption cancels the run."""
        try:
            return self.waiting()
        except BaseException:
            self.cancel_run()
            raise

    def pause(self, run: Run | None) -> None:
        """For engines: note that the run has nothing to do but wait (`run` is its Run), or has resumed (None)."""
        with self._paused:
            self._pause = run
            self._paused.notify_all()

    def continues(self, driver: Driver) -> None:
        """For engines: note that another driver continues the run after a wait."""
        with self._paused:
            self._driver = driver
            self._paused.notify_all()

    def stand_in(self, waiter: object) -> None:
        """Have another thread do what `result` does for a thread of the pool, because this thread waits for the run in
        `concurrent.futures.wait` or `as_completed`, which cannot work on it. One thread does so for all futures that one
        `waiter` waits for. Raises FlowcoreError in a step that the run itself waits for."""
        refuse_own_run(self._driver.run)
        if not self._pool.owns_current_thread():
            return
        if getattr(_of_thread, "waiter", _nothing)() is waiter:
            _of_thread.awaited.append(self)
            return
        waiting, awaited = weakref.ref(waiter), deque[RunFuture]([self])
        with suppress(NoThread):  # without another thread, the run waits for one of the pool
            self._pool.put(partial(_work_for_runs, awaited, waiting), beyond=True)
            _of_thread.waiter, _of_thread.awaited = waiting, awaited

    def _work_for_run(self, timeout: float | None) -> float | None:
        """Work on the run while its future is waited for, on a thread of the same engine. Returns how many of the
        `timeout` seconds are left."""
        if self.done():
            return timeout
        refuse_own_run(self._driver.run)
        if not self._pool.owns_current_thread():
            return timeout
        until = math.inf if timeout is None else time.monotonic() + timeout
        while not self.done():
            driver = self._driver
            if not driver.take_start():
                driver.work_for_run(until)
            elif self.set_running_or_notify_cancel():
                driver.run_here(None, until)
            else:
                driver.on_over(driver)
            if not driver.over:  # it is too late, or another thread works on the run
                break
            with self._paused:  # a run that waited in its store has another driver afterwards
                self._paused.wait_for(partial(self._has_left, driver), None if timeout is None else _left(until))
            if self._driver is driver:
                break
        return None if timeout is None else _left(until)

    def _has_left(self, driver: Driver) -> bool:
        """Whether the run has ended, or another driver continues it."""
        return self.done() or self._driver is not driver


class _Waiters(list[Any]):
    """The waiters of a future: `concurrent.futures.wait` and `as_completed` append theirs in the thread that waits."""

    def __init__(self, future: RunFuture) -> None:
        super().__init__()
        self._future = weakref.ref(future)

    def append(self, waiter: Any, /) -> None:
        future = self._future()
        if future is not None:
            future.stand_in(waiter)
        super().append(waiter)


_of_thread = threading.local()
"""the waiter that this thread has appended last, and the futures that another thread works on meanwhile"""


def _nothing() -> None:
    """A reference to no waiter."""


def _work_for_runs(awaited: deque[RunFuture], waiter: weakref.ref[object]) -> None:
    """Work on runs, on a thread of the pool, until their futures are done or their waiter is gone."""
    while awaited and waiter() is not None:
        with suppress(CancelledError):
            awaited.popleft().exception()


def _left(until: float) -> float:
    """Return the seconds until a moment (monotonic), or 0 if it has passed."""
    return max(0.0, until - time.monotonic())


def _finite(timeout: Duration | None) -> float | None:
    """Return the timeout in seconds, as one that a lock can wait for. A timeout below 0 is over, as it is for Python's own
    futures. Raises DefinitionError."""
    given: Any = timeout
    number = given.total_seconds() if hasattr(given, "total_seconds") else given
    if number is None:
        return None
    if isinstance(number, int | float) and number < 0:
        return 0.0
    return min(seconds(number, "the timeout of a RunFuture"), threading.TIMEOUT_MAX)
