"""Recording the runs that are submitted to an `AsyncEngine` as queued, while `submit` waits for it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from contextlib import suppress
from typing import Any, Final

from .._durable import checkpoints
from .._durable.queueing import enqueue
from .._kernel.run_state import RunState
from ..errors import NoThread
from ..forks import after_fork_in_child
from ..stores.base import Claim
from .aio_driver import AsyncDriver
from .base import this_process
from .workers import Workers, start_thread

__all__ = ["Recorder", "Recording"]

_BLOCKS: Final = 0.2
"""seconds for which a call of `submit` blocks its loop at most; a store that works replies in milliseconds"""
_LAST: Final = 5.0
"""seconds that the recordings in flight get once the recorder is closed"""


class Recording:
    """The recording of one submitted run as queued, on the recorder's loop. Thread-safe."""

    def __init__(self, run: RunState, pool: Workers, loop: asyncio.AbstractEventLoop) -> None:
        self._run = run
        self._pool = pool
        self._loop = loop
        self._withdrawn = False
        self.claim: concurrent.futures.Future[Claim | None] = asyncio.run_coroutine_threadsafe(self._record(), loop)
        """the claim, or None if the key is not free; raises what `enqueue` raises; cancelled with the recorder"""

    @property
    def is_granted(self) -> bool:
        """Whether the run is known to be recorded. Raises what `enqueue` has raised."""
        return self.claim.done() and not self.claim.cancelled() and self.claim.result() is not None

    async def granted(self) -> bool:
        """Wait until the store has replied, or the recorder was closed. Returns whether the run is known to be recorded.
        Raises what `enqueue` raises."""
        await _done(self.claim, asyncio.get_running_loop())
        return self.is_granted

    def withdraw(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Remove the record, because its run was cancelled. Returns a future on `loop` that is done once this was tried.
        Call it in that loop's thread only."""
        self._withdrawn = True
        withdrawing = self._withdraw()
        try:
            return _done(asyncio.run_coroutine_threadsafe(withdrawing, self._loop), loop)
        except RuntimeError:  # the recorder is closed: the record stays until its lease is over, if there is one
            withdrawing.close()
            return _done(self.claim, loop)

    async def _record(self) -> Claim | None:
        return await self._driver().perform(enqueue(self._run, this_process(), lambda: self._withdrawn))

    async def _withdraw(self) -> None:
        claim = await asyncio.wrap_future(self.claim)
        if claim is not None:
            await self._driver().perform(checkpoints.ask(self._run, "withdraw", claim))

    def _driver(self) -> AsyncDriver:
        return AsyncDriver(self._run, 0, self._pool, set())


class Recorder:
    """Records submitted runs on a separate event loop, in a thread that the first of them starts: the caller's loop
    cannot perform a call of the store while `submit` waits for it. Thread-safe."""

    def __init__(self, store: Any, pool: Workers) -> None:
        self._store = store
        self._pool = pool
        self._after_fork()
        after_fork_in_child(self, Recorder._after_fork)

    def _after_fork(self) -> None:
        """Start without a thread, also in a child process: its parent's recordings stay with the parent."""
        self._lock = threading.Lock()
        self._serving: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._overdue: Recording | None = None

    def record(self, run: RunState) -> Recording:
        """Record a run as queued, and wait a moment for the store's reply. If an earlier recording is overdue, return
        at once: an outage of the store must not block the loop with each call. Raises what `enqueue` raises, and
        NoThread."""
        recording = Recording(run, self._pool, self._loop())
        if self._overdue is not None and not self._overdue.claim.done():
            return recording
        self._overdue = None
        try:
            recording.claim.result(_BLOCKS)
        except TimeoutError:
            self._overdue = recording
        except BaseException:  # also an interrupt
            recording.withdraw(asyncio.get_running_loop())
            raise
        return recording

    def close(self) -> None:
        """End the thread, once the recordings in flight have ended."""
        with self._lock:
            serving, self._serving = self._serving, None
        if serving is not None:
            loop, closed = serving
            loop.call_soon_threadsafe(closed.set)

    def _loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._serving is None:
                loop, closed = asyncio.new_event_loop(), asyncio.Event()
                served = loop, closed, self._store
                thread = threading.Thread(target=_serve, args=served, name="flowcore-queue", daemon=True)
                try:
                    start_thread(thread)
                except NoThread:
                    loop.close()
                    raise
                self._serving = loop, closed
            return self._serving[0]


def _done(future: concurrent.futures.Future[Any], loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """Return a future on `loop` that is done once `future` is, however it ended. Unlike `asyncio.wrap_future`, a
    cancellation does not reach `future`, and `loop` may be closed before it is done."""
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    def wake_there(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(wake_there)
    return done


def _serve(loop: asyncio.AbstractEventLoop, closed: asyncio.Event, store: object) -> None:
    # The thread keeps the store alive until the loop has closed the store's connections on it.
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(_until(closed))


async def _until(closed: asyncio.Event) -> None:
    await closed.wait()
    late = asyncio.all_tasks() - {asyncio.current_task()}
    if late:
        await asyncio.wait(late, timeout=_LAST)
