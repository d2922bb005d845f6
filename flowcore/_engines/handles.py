"""Handles of submitted runs."""

from __future__ import annotations

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
