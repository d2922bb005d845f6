"""The runs of an `Engine`: queued, in flight, continued after a wait, and closed."""

from __future__ import annotations

import contextvars
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from .._durable.dormant import continuation
from .._durable.leases import Leases
from .._durable.queueing import enqueue
from .._durable.waiting import LocalRuns
from .._kernel import emit, stopping
from .._kernel.effects import Ask, Program, Sleep, Stop
from .._kernel.run import execute
from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from ..errors import NoThread, RunTimeout, StepCancelled, StoreError, safe_repr, safe_str
from ..forks import after_fork_in_child
from ..run import Run
from ..status import Status
from ..stores.base import Lease
from .asking import cancel_in_store, make_calls
from .base import MARGIN, NO_THREAD, log, outcome, this_process
from .driving import drive
from .handles import RunFuture
from .live_runs import CLOSED, NOT_RELEASED, RELEASED, LiveRuns, left_error, unbegun_error
from .own_calls import is_called_in
from .thread_driver import Driver
from .workers import Timers, Workers, start_thread

__all__ = ["LiveThreadRuns", "ThreadRuns", "leave"]

_LOOK: Final = 0.01
"""seconds between two checks whether the runs have ended while the interpreter exits"""


class LiveThreadRuns(LiveRuns[Driver]):
    """The runs in flight of an `Engine`."""

    def stop(self, run: RunState, *, cancel: bool) -> None:
        """Have the driver of a run end the run's waits and, with `cancel`, its calls."""
        driver = self.get(run)
        if driver is not None:
            driver.stop(Stop(cancel=cancel))

    def look(self, run: RunState) -> None:
        """Have the driver of a run check whether something that the run waits for has arrived."""
        driver = self.get(run)
        if driver is not None:
            driver.look()

    def drop(self, why: str, limit: float) -> None:
        """End the runs that have not begun. Recorded ones are released, so that other engines can begin them; this waits
        for an unreachable store `limit` seconds at most."""
        dropped = [
            driver
            for run, driver in list(self.items())
            if driver is not None and driver.drop(unbegun_error(run, why, recorded=driver.recorded is not None))
        ]
        recorded = [driver.run for driver in dropped if driver.recorded is not None]
        if recorded:
            _release(recorded, limit)


def _release(runs: list[RunState], limit: float) -> None:
    """Release runs that were recorded as queued. Waits for the store `limit` seconds at most; the call may end later."""
    leases = [Lease(run.stored_key, run.run_id, run.fence) for run in runs]

    def release() -> None:
        try:
            runs[0].settings.store.renew(leases, RELEASED)
        except StoreError as error:
            log.warning("queued runs could not be released before their lease ends: %s", safe_str(error, 200))

    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(release,), name="flowcore-queue", daemon=True
    )
    try:
        start_thread(thread)
    except NoThread:  # from Python 3.12 on, an interpreter that exits starts none
        release()
        return
    thread.join(min(limit, threading.TIMEOUT_MAX))
    if thread.is_alive():
        log.warning(NOT_RELEASED, limit)


class ThreadRuns:
    """The runs of one `Engine`, and their threads. Thread-safe.

    Runs in flight keep this object alive; it does not keep the engine alive. Its threads end once the engine is
    garbage-collected and no run is in flight.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self._settings = settings
        self.pool = Workers(workers, "flowcore")
        self.timers = Timers("flowcore-timers")
        self.live = LiveThreadRuns()
        self.local = LocalRuns(self.live.wake, settings.clock, is_called_in)
        self.leases: Leases | None = None
        self.queued: dict[Driver, RunFuture] = {}
        """submitted runs that have not begun"""
        self._watches_queue = False  # a look at the queue is planned
        self._exhausted_since: float | None = None  # when a look at the queue found that all threads are stuck
        self.closing = False
        self._closed = False
        self._quiet = threading.Condition()  # notified whenever a run is over while the engine closes
        after_fork_in_child(self, ThreadRuns._after_fork)
        weakref.finalize(self, leave, self.pool, self.timers, self.live, settings.grace)

    def _after_fork(self) -> None:
        """In a forked child, forget the runs in flight: they belong to the parent."""
        self._quiet = threading.Condition()
        self._watches_queue = False
        self.queued.clear()
        for run in self.live:
            stopping.leave_to_parent(run, os.getpid())
        self.live.clear()

    # -- one run -------------------------------------------------------------------------------------------------------

    def driver(self, run: RunState, main: Program[Run]) -> Driver:
        """Create the driver of a run. The run is in flight from now on."""
        driver = Driver(run, main, self.pool, self.timers, self.over)
        self.live[run] = driver
        return driver

    def over(self, driver: Driver) -> None:
        """Remove a run that is over, was left to its store, or was dropped, and stop renewing its lease."""
        self.live.note_left(driver.run)
        self.forget(driver.run)
        if driver.run.claimed:
            self.local.leave(driver.run)
        if self.leases is not None and (driver.run.claimed or driver.recorded is not None):
            self.leases.leave(driver.run)

    def forget(self, run: RunState) -> None:
        """Remove a run that is over, or that could not begin, from the runs in flight."""
        self.live.pop(run, None)
        if self.closing:
            with self._quiet:
                self._quiet.notify_all()
        if self._closed and not self.live:
            self.timers.close()

    def continued(self, driver: Driver) -> Driver | None:
        """Return a driver that continues a run that waits in its store, or None if the run ends here for its caller."""
        if driver.result is None or driver.result.status is not Status.WAITING:
            return None
        try:
            again = None if self.closing else continuation(driver.run, self.local)
            if again is None and not driver.run.request.until_waiting:
                driver.result, driver.error = None, left_error(driver.run)
            if again is None:
                return None
            continued = self.driver(*again)
        finally:
            self.live.follow(driver.run)
        if self.closing:  # the engine was closed meanwhile
            self.live.park_dormant()
        return continued

    def cancel(self, run: RunState, why: str) -> bool:
        """Cancel a run, whether it runs inline or has a driver. Returns False if it was ending already."""
        driver = self.live.get(run)
        if driver is not None and driver.cancel_start(StepCancelled(why)):
            return True
        interrupted = stopping.interrupt(run, StepCancelled(why))
        if not interrupted and run.finished is Status.WAITING:
            context = self._settings.hooks.store_context(contextvars.copy_context())
            return make_calls(cancel_in_store(self._settings.store, None, run.stored_key), context)
        if interrupted:
            self.live.stop(run.continued or run, cancel=True)
        return interrupted

    # -- submitted runs ------------------------------------------------------------------------------------------------

    def queue(self, run: RunState, *, check: bool, only_new: bool = False) -> RunFuture:
        """Have a thread of the pool begin a run, which is recorded as queued first on a durable store. `only_new`:
        cancel it (and its future) if its key is not free. Raises NoThread, and then the run is not recorded."""
        self.pool.ensure_thread()
        driver = Driver(run, execute(run), self.pool, self.timers, self.over)
        future = RunFuture(driver, self.pool, self.cancel)
        run.on_pause = future.pause
        driver.on_over = partial(self._resolve, future, check)
        self.queued[driver] = future
        self.live[run] = driver  # from here on, other threads may cancel or drop it, which resolves the future
        if self.closing and driver.drop(unbegun_error(run, CLOSED, recorded=False)):
            return future
        if self.leases is not None:
            try:
                driver.recorded = drive(enqueue(run, this_process(), future.done), partial(_perform, driver))
            except BaseException as error:
                self.queued.pop(driver, None)
                self.forget(run)
                emit.dequeued(run, error=error)
                raise
            if future.done():  # cancelled while it was recorded
                return future
            if driver.recorded is not None:
                self.leases.join(run)
            elif only_new:
                future.cancel()
                return future
        if not self.pool.put(partial(self._begin, driver, future)):
            with suppress(NoThread):  # the run is accepted, and waits for a thread without these limits
                if run.request.deadline is not None:
                    self.timers.after(run.request.deadline, partial(self._expire, driver, run.request.deadline))
                self._watch_queue()
        return future

    def _begin(self, driver: Driver, future: RunFuture) -> None:
        """Begin a submitted run on this thread of the pool, unless it was dropped or its future was cancelled."""
        if driver.take_start():
            self.queued.pop(driver, None)
            if future.set_running_or_notify_cancel():
                driver.begin_now()
            else:
                driver.on_over(driver)

    def _expire(self, driver: Driver, deadline: float) -> None:
        """End a queued run at its deadline if abandoned calls occupy all threads. (A deadline counts from the run's
        claim, but without a thread the run is never claimed.)"""
        if self.pool.exhausted:
            run_id, name = driver.run.run_id, safe_repr(driver.run.workflow.name)
            driver.drop(RunTimeout(f"run {run_id} of {name} did not begin before its deadline: no thread was free."))
        elif driver in self.queued:
            self.timers.after(deadline, partial(self._expire, driver, deadline))

    def _watch_queue(self) -> None:
        """Look at the queue of a durable engine after a lease, unless that is planned already. Raises NoThread."""
        if self._settings.durable and not self._watches_queue:
            self.timers.after(self._settings.lease, partial(_look, weakref.WeakMethod(self._look_at_queue)))
            self._watches_queue = True

    def _look_at_queue(self) -> None:
        """Leave the runs that have not begun to other engines, if abandoned calls have occupied all threads for a whole
        lease."""
        self._watches_queue = False
        since, self._exhausted_since = self._exhausted_since, None
        if not self.queued:
            return
        self._watch_queue()  # first, so that the looks continue whatever happens below
        if not self.pool.exhausted:
            return
        now, lease = self._settings.clock(), self._settings.lease
        if since is None or now - since < lease:
            self._exhausted_since = now if since is None else since
        else:
            start_thread(
                threading.Thread(target=self.live.drop, args=(NO_THREAD, lease), name="flowcore-queue", daemon=True)
            )

    def _resolve(self, future: RunFuture, check: bool, driver: Driver) -> None:
        """Continue a submitted run that waits in its store, or resolve the future of one that ended or was dropped."""
        self.queued.pop(driver, None)
        emit.dequeued(driver.run)  # unless it has begun
        self.over(driver)
        if driver.result is not None and driver.result.status is Status.WAITING:
            future.pause(driver.result)
        again = self.continued(driver)
        if again is not None:
            again.on_over = partial(self._resolve, future, check)
            future.continues(again)
            if again.take_start():
                again.begin_soon()
            return
        if driver.recorded is not None and (driver.is_withdrawn or future.cancelled()):
            driver.ask_here("withdraw", driver.recorded)
        if future.cancelled():
            return
        try:
            result = outcome(driver.result, driver.error, check=check)
        except BaseException as error:  # noqa: BLE001 - the future raises it
            future.set_exception(error)
        else:
            future.set_result(result)

    # -- the end -------------------------------------------------------------------------------------------------------

    def drop_queued(self, limit: float) -> None:
        """Drop the runs that have not begun: recorded runs are left to other engines, others are cancelled. Waits for an
        unreachable store `limit` seconds at most."""
        for future in [] if self._settings.durable else list(self.queued.values()):
            future.cancel()
        self.live.drop(CLOSED, limit)

    def close(self, limit: float | None) -> None:
        """Wait for the accepted runs, and end the threads. `limit` (seconds): see the timeout of `Engine.close`."""
        settings = self._settings
        with self._quiet:
            self.closing = True
        self.live.park_dormant()
        if limit is not None and limit != math.inf:
            began = time.monotonic()
            self.drop_queued(limit + MARGIN)
            self.live.release(CLOSED)
            limit = max(0.0, limit - (time.monotonic() - began))
        self._wait_until_quiet(limit)
        self.live.hand_over(CLOSED)
        # One grace is for calls in flight, one for abandoned calls, and one for the undos.
        self._wait_until_quiet(None if limit is None else settings.grace * (1 if settings.durable else 3) + MARGIN)
        self._closed = True
        if self.live:  # the timers are closed once these runs are over: their callers still wait for them
            log.warning("an engine was closed while %d of its runs had not ended", len(self.live))
        else:
            self.timers.close()
        if self.leases is not None:
            self.leases.close()
        hangs = self.pool.counts()[1] > 0 and limit is not None
        self.pool.close(0.0 if hangs or self.live else min(settings.grace, threading.TIMEOUT_MAX))

    def _wait_until_quiet(self, limit: float | None) -> None:
        with self._quiet:
            self._quiet.wait_for(lambda: not self.live, None if limit is None else min(limit, threading.TIMEOUT_MAX))


def _look(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method of a ThreadRuns, unless that has been garbage-collected."""
    call = method()
    if call is not None:
        with suppress(NoThread):  # the next run that waits for a thread plans another look
            call()


def _perform(driver: Driver, effect: object) -> Any:
    """Call the store, or sleep, in this thread, for a run that has not begun."""
    if isinstance(effect, Ask):
        return driver.ask_here(effect.verb, effect.argument)
    if isinstance(effect, Sleep):
        time.sleep(effect.seconds)
    return None


def leave(pool: Workers, timers: Timers, live: LiveThreadRuns, grace: float) -> None:
    """Hand the runs over and end the threads, because the engine was garbage-collected or the interpreter exits."""
    live.drop("its process ended", grace)
    live.hand_over("its process ended")
    until = time.monotonic() + grace
    # A garbage-collected engine has no runs, and a garbage collection must not wait.
    while live and not threading.main_thread().is_alive() and time.monotonic() < until:
        time.sleep(_LOOK)
    pool.close(0.0 if live or threading.main_thread().is_alive() else grace)
    timers.close()
