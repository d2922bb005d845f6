"""Handles of submitted runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from .._kernel.run_state import RunState
from ..run import Run

if TYPE_CHECKING:
    from .thread_driver import Driver
    from .workers import Workers

__all__ = ["RunFuture"]


class RunFuture(Future[Run]):
    """A run that was submitted to an `Engine`: a `concurrent.futures.Future` of its Run. Thread-safe.

    `cancel()` works until a thread begins with the run; `cancel_run()` works until the run ends.
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
        """Cancel the run, unless a thread has begun with it."""
        if not super().cancel():
            return False
        if self._driver.take_start():
            self.set_running_or_notify_cancel()
            self._driver.on_over(self._driver)
        return True

    def cancel_run(self) -> bool:
        """Cancel the run, begun or not: running steps get `grace`, and what was done is undone. False: it has ended."""
        return self.cancel() or self._cancel(self._driver.run, f"run {self.run_id} was cancelled by cancel_run().")

    def result(self, timeout: float | None = None) -> Run:
        """The Run, once it has ended. Raises what `Engine.run` raises, and TimeoutError after `timeout` seconds.

        A step on a thread of the same engine works on the run while it waits, and `timeout` counts after that.
        """
        self._help_out()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None; waits as `result` does."""
        self._help_out()
        return super().exception(timeout)

    def waiting(self, timeout: float | None = None) -> Run:
        """The Run once nothing of it but waits can go on, its status `waiting`, or once it has ended, as `result` gives it.
        Raises TimeoutError after `timeout` seconds."""
        with self._paused:
            if not self._paused.wait_for(lambda: self._pause is not None or self.done(), timeout):
                raise TimeoutError(f"Run {self.run_id} has neither ended nor begun to wait in {timeout:g} s.")
            if self._pause is not None and not self.done():
                return self._pause
        return self.result()

    def first_pause(self) -> Run:
        """`waiting`, for a caller who cannot cancel the run any more once it is interrupted: that cancels the run."""
        try:
            return self.waiting()
        except BaseException:
            self.cancel_run()
            raise

    def pause(self, run: Run | None) -> None:
        """For engines: nothing but waits can go on; or, with None, it goes on."""
        with self._paused:
            self._pause = run
            self._paused.notify_all()

    def continues(self, driver: Driver) -> None:
        """For engines: another driver continues the run, which has waited."""
        self._driver = driver

    def _help_out(self) -> None:
        if self.done() or not self._pool.owns_current_thread():
            return
        driver = self._driver
        if not driver.take_start():
            driver.help_out()
        elif self.set_running_or_notify_cancel():
            driver.run_here(None)
        else:
            driver.on_over(driver)
