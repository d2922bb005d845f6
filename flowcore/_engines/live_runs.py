"""What happens to the runs in flight of an `Engine` from outside of them: lost, woken, dropped, parked, handed over."""

from __future__ import annotations

import contextvars
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, TypeAlias

from .._durable.checkpoints import cancelled, lose, parked
from .._kernel.effects import Stop
from .._kernel.run_state import RunState
from ..errors import StoreError, safe_str
from ..stores.base import Lease
from .base import RELEASED, left, log, stopped, unbegun
from .thread_driver import Driver
from .workers import Timers, Workers

__all__ = [
    "Live",
    "call_now",
    "cancel_through_store",
    "drop",
    "hand_over",
    "leave",
    "lose_run",
    "park",
    "park_dormant",
    "put_on_pool",
    "wake",
]

Live: TypeAlias = dict[RunState, Driver | None]
"""the runs in flight, and what drives them; None: the run is inline"""
_LOOK: Final = 0.01
"""seconds between two looks at runs that end while the interpreter exits"""


def lose_run(live: Live, run: RunState) -> None:
    """The store says that another process owns the run: start and undo nothing more of it."""
    lose(run)
    driver = live.get(run)
    if driver is not None:
        driver.stop(Stop(cancel=True))


def cancel_through_store(live: Live, run: RunState) -> None:
    """An operator wants the run cancelled, through the store."""
    driver = live.get(run)
    if run.interrupt(cancelled(run)) and driver is not None:
        driver.stop(Stop(cancel=True))


def put_on_pool(pool: Workers, method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method of an engine that is not forgotten, on a thread of its pool."""
    call = method()
    if call is not None:
        pool.put(call)


def call_now(
    method: weakref.WeakMethod[Callable[[str, contextvars.Context], None]], key: str, context: contextvars.Context
) -> None:
    """Call a method of an engine that is not forgotten."""
    call = method()
    if call is not None:
        call(key, context)


def wake(live: Live, run: RunState) -> None:
    """The run that `run` waits for is over."""
    driver = live.get(run)
    if driver is not None:
        driver.stop(Stop(cancel=False))


def drop(live: Live, why: str) -> None:
    """End those of these runs that have not begun, and release what is recorded of them to other engines."""
    dropped = [
        driver
        for run, driver in list(live.items())
        if driver is not None and driver.drop(unbegun(run, why, recorded=driver.recorded is not None))
    ]
    recorded = [driver for driver in dropped if driver.recorded is not None]
    if recorded:
        leases = [Lease(driver.run.stored_key, driver.run.run_id, driver.run.fence) for driver in recorded]
        try:
            recorded[0].run.settings.store.renew(leases, RELEASED)
        except StoreError as error:
            log.warning("queued runs could not be released before their lease ends: %s", safe_str(error, 200))


def park(live: Live, why: str) -> None:
    """Park the durable ones of these runs; their calls may end."""
    for run, driver in list(live.items()):
        if run.settings.durable:
            run.park(parked(run, why))
            if driver is not None:
                driver.stop(Stop(cancel=False))


def park_dormant(live: Live) -> None:
    """Leave the runs that wait in their store to other engines."""
    for run, driver in list(live.items()):
        if run.dormant:
            run.park(left(run))
            if driver is not None:
                driver.stop(Stop(cancel=False))


def hand_over(live: Live, why: str) -> None:
    """Park these runs, or cancel those that are in memory only, because this process stops."""
    for run, driver in list(live.items()):
        if run.hand_over(stopped(run, why)) and driver is not None:
            driver.stop(Stop(cancel=True))


def leave(pool: Workers, timers: Timers, live: Live, grace: float) -> None:
    """The engine was forgotten, or the interpreter exits: runs are handed over, and threads end."""
    drop(live, "its process ended")
    hand_over(live, "its process ended")
    until = time.monotonic() + grace
    # A forgotten engine has no runs, and the garbage collector that ends it must not wait.
    while live and not threading.main_thread().is_alive() and time.monotonic() < until:
        time.sleep(_LOOK)
    pool.close(0.0 if live or threading.main_thread().is_alive() else grace)
    timers.close()
