"""The thread (of an `Engine`) or tasks (of an `AsyncEngine`) that regularly call recovery or schedules."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from ..errors import safe_str

__all__ = ["LEASE_OVER", "RecoveryTasks", "RecoveryThread"]

T = TypeVar("T")

LEASE_OVER: Final = 1.1
"""how many leases to wait until the lease of an owner that has just crashed has expired"""
_FIRST: Final = 1.0
"""the most seconds until the first look, so that the runs in the store are counted soon after a start"""
_log = logging.getLogger("flowcore")


class RecoveryThread:
    """Calls the method `look` regularly on a thread, until this is closed or the method's object is garbage-collected.

    Each wait takes as many seconds as `look` returned, or `every` seconds if it returned None; `wake` ends it. An
    exception of `look` is logged and does not end the thread. `what`: the purpose, for the thread's name and the log.
    Thread-safe.
    """

    def __init__(self, look: Callable[[], float | None], every: float, what: str = "recovery") -> None:
        self._look = weakref.WeakMethod(look)
        self._every = every
        self._what = what
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Start the thread, also in a forked child: the thread of the parent is not there."""
        self._wakeup = threading.Event()
        if not self._closed:
            target, arguments = _look_often, (self._look, self._wakeup, self._every, self._what, lambda: self._closed)
            threading.Thread(target=target, args=arguments, name=f"flowcore-{self._what}", daemon=True).start()

    def wake(self) -> None:
        """Look again now."""
        self._wakeup.set()

    def close(self) -> None:
        """End the thread once its present look is over."""
        self._closed = True
        self._wakeup.set()


def _look_often(
    method: weakref.WeakMethod[Callable[[], float | None]],
    wakeup: threading.Event,
    every: float,
    what: str,
    closed: Callable[[], bool],
) -> None:
    wait = min(every, _FIRST)
    while True:
        wakeup.wait(wait)
        wakeup.clear()
        look = method()
        if look is None or closed():
            return
        following: float | None = None
        try:
            following = look()
        except BaseException as error:  # noqa: BLE001 - the next look tries again, and a hook may raise anything
            _warn(what, error)
        del look
        wait = every if following is None else following


class RecoveryTasks:
    """Like RecoveryThread, but with a task on each loop on which `ensure` is called. Thread-safe, except that `ensure`
    and `close` must be called in the loop's own thread."""

    def __init__(self, look: Callable[[], Awaitable[float | None]], every: float, what: str = "recovery") -> None:
        self._look = weakref.WeakMethod(look)
        self._every = every
        self._what = what
        self._tasks: dict[asyncio.AbstractEventLoop, tuple[asyncio.Task[None], asyncio.Event]] = {}

    def after_fork(self) -> None:
        """In a forked child, forget the loops and their tasks: they belong to the parent."""
        self._tasks.clear()

    def ensure(self) -> None:
        """Ensure that one task looks on the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._tasks:
            wakeup = asyncio.Event()
            looking = _look_often_on_loop(self._look, wakeup, self._every, self._what)
            task = loop.create_task(looking, name=f"flowcore-{self._what}")
            self._tasks[loop] = task, wakeup
            task.add_done_callback(lambda _: self._tasks.pop(loop, None))

    def wake(self) -> None:
        """Look again now, on every loop."""
        for loop, (_, wakeup) in list(self._tasks.items()):
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(wakeup.set)

    def close(self, loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[None]]:
        """Cancel the task on `loop`, if there is one. Returns it in a list, so that the caller can wait for its end."""
        if loop not in self._tasks:
            return []
        task, _ = self._tasks[loop]
        task.cancel()
        return [task]


async def _look_often_on_loop(
    method: weakref.WeakMethod[Callable[[], Awaitable[float | None]]], wakeup: asyncio.Event, every: float, what: str
) -> None:
    wait, task = min(every, _FIRST), asyncio.current_task()
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(wakeup.wait(), wait)
        wakeup.clear()
        look = method()
        if look is None:
            return
        following: float | None = None
        try:
            following = await look()
        except (SystemExit, KeyboardInterrupt, GeneratorExit):  # the loop ends
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
                raise
            _warn(what, error)  # a client of the store, or user code, has raised it; the next look tries again
        del look
        wait = every if following is None else following


def _warn(what: str, error: BaseException) -> None:
    _log.warning("a %s round failed: %s: %s", what, type(error).__name__, safe_str(error, 200))
