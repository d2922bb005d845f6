"""The handles of runs that were submitted to an `Engine`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from .._kernel.run_state import RunState
from ..run import Run
from .own_calls import refuse_own_run

if TYPE_CHECKING:
    from .thread_driver import Driver
    from .workers import Workers

__all__ = ["RunFuture"]


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

    def result(self, timeout: float | None = None) -> Run:
        """The Run, once it has ended. Raises what `Engine.run` raises, and TimeoutError after `timeout` seconds.

        In a step on a thread of the same engine, this call works on the run while it waits; a step of the run that it
        performs may outlast `timeout`. Raises FlowcoreError in a step that the run itself waits for, such as its own.
        """
        return super().result(self._work_for_run(_finite(timeout)))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does. Returns the exception that `result` would raise, or None."""
        return super().exception(self._work_for_run(_finite(timeout)))

    def waiting(self, timeout: float | None = None) -> Run:
        """Wait until the run has nothing to do but wait, and return its Run with the status `waiting`, or until it has
        ended, and return or raise what `result` does. Raises TimeoutError after `timeout` seconds."""
        if not self.done():
            refuse_own_run(self._driver.run)
        with self._paused:
            if not self._paused.wait_for(lambda: self._pause is not None or self.done(), _finite(timeout)):
                raise TimeoutError(f"Run {self.run_id} neither ended nor began to wait within {timeout:g} s.")
            if self._pause is not None and not self.done():
                return self._pause
        return self.result()

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
        self._driver = driver

    def _work_for_run(self, timeout: float | None) -> float | None:
        """Work on the run while its future is waited for, on a thread of the same engine. Returns how many of the
        `timeout` seconds are left."""
        if self.done():
            return timeout
        driver = self._driver
        refuse_own_run(driver.run)
        if not self._pool.owns_current_thread():
            return timeout
        until = math.inf if timeout is None else time.monotonic() + timeout
        if not driver.take_start():
            driver.work_for_run(until)
        elif self.set_running_or_notify_cancel():
            driver.run_here(None, until)
        else:
            driver.on_over(driver)
        return None if timeout is None else max(0.0, until - time.monotonic())


def _finite(timeout: float | None) -> float | None:
    """Return the timeout as one that a lock can wait for."""
    return None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
