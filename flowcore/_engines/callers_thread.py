"""The caller's thread of `Engine.run`: it performs steps of its run, waits for others, and receives Ctrl-C."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from .._kernel import stopping
from .._kernel.effects import Outcome, Program, Stop
from .._kernel.run import work_beside_main
from .._kernel.run_state import RunState
from ..context import Context
from ..run import Run
from .interrupts import SigintGuard, raised_by_signal, restore

__all__ = ["CallersThread"]

_LOOK: Final = 0.5
"""seconds between two checks for a Ctrl-C while the main thread waits"""
Resumption = tuple[Program[Any], Any]
"""a program, and the answer with which it is resumed"""


class CallersThread(ABC):
    """The part of a `Driver` that runs in the caller's thread, or in the thread of a step that waits for the run."""

    over = False
    error: BaseException | None = None
    raised_by_handler: BaseException | None = None
    """the exception that a signal handler of the user has raised in the caller's thread"""
    _wakeup: SimpleQueue[None] | None = None
    """the queue on which the caller's thread waits while it is idle; a signal handler may put to it"""
    _ctrl_c: SigintGuard | None = None
    _caller_idle = False
    """(under the lock) whether the caller's thread waits on `_bell`"""

    def __init__(self, run: RunState, main: Program[Run]) -> None:
        self.run = run
        self._main = main
        self._starts = [True]  # emptied when the run begins or is dropped; list.pop is atomic
        self._lock = threading.Lock()
        self._resumptions: deque[Resumption] = deque()  # (under the lock) programs to resume

    @abstractmethod
    def _advance(self, program: Program[Any], answer: Any, *, here: bool = False) -> None:
        """Resume a program with an answer. `here`: whether this is the caller's thread."""

    @abstractmethod
    def stop(self, stop: Stop) -> None:
        """End the run's waits and, with `cancel`, its calls. May be called from any thread."""

    def run_here(self, ctrl_c: SigintGuard | None, until: float = math.inf) -> None:
        """Drive the run to its end; the calling thread takes part. `ctrl_c` handles SIGINT meanwhile. `until`: see
        `_serve`."""
        self._starts.clear()
        self._ctrl_c = ctrl_c
        if ctrl_c is not None:
            ctrl_c.wake = self._wake_up
        try:
            self._advance(self._main, None, here=True)
            if not self.over:
                self._serve(until)
        except BaseException as error:
            self.cancel(error)  # a signal handler has raised this between two instructions of the driver
            raise
        finally:
            self._ctrl_c = None  # it refers to this driver: the cycle would keep the run in memory
            restore(ctrl_c)
        if ctrl_c is not None and ctrl_c.count and not isinstance(self.error, KeyboardInterrupt):
            raise KeyboardInterrupt from self.error
        if self.raised_by_handler is not None and self.error is not self.raised_by_handler:
            raise self.raised_by_handler from self.error

    def _serve(self, until: float = math.inf) -> None:
        """Work on the run until it is over, or until the moment `until` (monotonic) has passed and there is nothing to
        do here. Returns at once if another thread works on it already."""
        with self._lock:
            if self.over or self._wakeup is not None:  # another thread works on it
                return
            wakeup = self._wakeup = SimpleQueue()
        while not self.over:
            if self._ctrl_c is not None and self._ctrl_c.unseen:
                self._interrupted()
            with self._lock:
                resumption = self._resumptions.popleft() if self._resumptions else None
                self._caller_idle = resumption is None
            if resumption is not None:
                self._advance(*resumption, here=True)
            elif self.run.working and self.run.ready and (node := self.run.take()) is not None:
                # A worker was requested, but no thread of the pool has come yet.
                self._caller_idle = False
                self._advance(work_beside_main(self.run, node), None, here=True)
            else:
                self._wait(wakeup, until)
                with self._lock:
                    if self._caller_idle and time.monotonic() >= until:  # from now on, the pool resumes all programs
                        self._caller_idle, self._wakeup = False, None
                        return
                    self._caller_idle = False

    def _wait(self, wakeup: SimpleQueue[None], until: float) -> None:
        """Wait in the caller's thread for something to do, until the moment `until` (monotonic) at most."""
        try:
            # A signal that comes just before the wait does not end it: Python would handle it only after the wait.
            with suppress(Empty):
                left = None if self._ctrl_c is None else _LOOK
                if until < math.inf:
                    left = max(0.0, until - time.monotonic())
                wakeup.get(timeout=left)
        except BaseException as error:  # noqa: BLE001 - it is raised once the run has ended
            self._handler_raised(error)

    def _handler_raised(self, error: BaseException) -> None:
        """Cancel the run because a user's signal handler, such as one that calls sys.exit(), has raised `error`."""
        self.raised_by_handler = error
        self.cancel(error)

    def _wake_up(self) -> None:
        """Wake the caller's thread after a Ctrl-C outside of user code. Called in the signal handler."""
        if self._wakeup is not None:
            self._wakeup.put(None)

    def _interrupted(self) -> None:
        """Act on a Ctrl-C that came while the main thread was not in user code."""
        assert self._ctrl_c is not None  # noqa: S101 - the callers have checked it
        failed_already = self.run.stopped
        if self.cancel(KeyboardInterrupt()) and not failed_already:
            self._ctrl_c.raised = self._ctrl_c.count
        elif self._ctrl_c.count > 1:
            self.run.undo_stopped = True

    def call_here(
        self, fn: Callable[..., Any], ctx: Context, context: contextvars.Context, *, shielded: bool = False
    ) -> Outcome:
        """Run user code on the caller's thread. Such a call cannot be abandoned, but Ctrl-C can interrupt it."""
        ctrl_c = self._ctrl_c
        try:
            if ctrl_c is None:
                return context.run(fn, ctx), None
            if ctrl_c.unseen:
                self._interrupted()
            try:
                ctrl_c.in_step, ctrl_c.in_undo = not shielded, shielded
                return context.run(fn, ctx), None
            finally:
                ctrl_c.in_step = ctrl_c.in_undo = False
        except BaseException as error:  # noqa: BLE001 - the program judges it
            if shielded and raised_by_signal(error):  # the second Ctrl-C
                self.run.undo_stopped = True
            return None, error

    def cancel(self, error: BaseException) -> bool:
        """Cancel the run because of `error`. Returns False if it was stopping already or is over."""
        if not stopping.interrupt(self.run, error):
            return False
        self.stop(Stop(cancel=True))
        return True
