"""Dropping the submitted runs that have not begun when an `AsyncEngine` is closed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from functools import partial

from .._durable.queueing import enqueue
from .._kernel.run_state import RunState
from ..errors import StoreError, safe_str
from ..stores.base import Lease
from .aio_driver import AsyncDriver
from .aio_handles import AsyncRunFuture
from .asking import call_on_loop
from .base import MARGIN, log, this_process
from .live_runs import CLOSED, NOT_RELEASED, RELEASED, unbegun_error

__all__ = ["leave"]


async def leave(
    futures: Mapping[RunState, AsyncRunFuture], driver: Callable[[RunState], AsyncDriver], limit: float
) -> None:
    """Keep these runs from beginning. On a durable store, they are recorded as queued (within `limit` seconds) and left
    to other engines; in memory, they are cancelled."""
    for future in futures.values():
        future.drop()
    recorded = await _recorded(futures, driver, limit)
    for run, future in futures.items():
        if run in recorded:
            future.claimed()
        future.end(unbegun_error(run, CLOSED, recorded=run in recorded) if run.settings.durable else None)


async def _recorded(
    futures: Mapping[RunState, AsyncRunFuture], driver: Callable[[RunState], AsyncDriver], limit: float
) -> set[RunState]:
    tasks = {
        asyncio.create_task(_record(run, future, driver(run))): run
        for run, future in futures.items()
        if run.settings.durable
    }
    if not tasks:
        return set()
    loop = asyncio.get_running_loop()
    until = loop.time() + limit
    done, late = await asyncio.wait(tasks, timeout=limit)
    for task in late:
        task.cancel()
        recording = futures[tasks[task]].recording
        if recording is not None:
            recording.withdraw(loop)
    recorded = {tasks[task] for task in done if task.result()}
    if recorded:
        await _release(recorded, max(MARGIN, until - loop.time()))
    return recorded


async def _release(recorded: set[RunState], limit: float) -> None:
    """Release runs that were recorded as queued. Waits for an unreachable store `limit` seconds at most."""
    leases = [Lease(run.stored_key, run.run_id, run.fence) for run in recorded]
    settings = next(iter(recorded)).settings
    context = settings.hooks.store_context(contextvars.copy_context())
    releasing = asyncio.ensure_future(call_on_loop(partial(settings.store.renew, leases, RELEASED), context))
    _, late = await asyncio.wait([releasing], timeout=limit)
    if late:
        releasing.cancel()
        log.warning(NOT_RELEASED, limit)
    elif isinstance(error := releasing.exception(), StoreError):
        log.warning("queued runs could not be released before their lease ends: %s", safe_str(error, 200))
    elif error is not None:
        raise error


async def _record(run: RunState, future: AsyncRunFuture, driver: AsyncDriver) -> bool:
    """Record a run as queued, unless it already is. Returns False if its key is in use."""
    try:
        if future.recording is not None:
            return await future.recording.granted()
        return await driver.perform(enqueue(run, this_process(), future.done)) is not None
    except Exception as error:  # noqa: BLE001 - the run's future says that it was not recorded
        log.warning("queued run %s could not be recorded: %s", run.run_id, safe_str(error, 200))
        return False
