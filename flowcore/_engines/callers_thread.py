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
from .._kernel.effects import AwaitAbandoned, Call, Outcome, Program, Sleep, Stop
from .._kernel.run import abort, work_beside_main
from .._kernel.run_state import RunState
from ..context import Context
from ..errors import NoThread
from ..exits import deferred, is_exit_of_handler, take_deferred
from ..run import Run
from .interrupts import SigintGuard, raised_by_signal, restore
from .workers import Timers

__all__ = ["CallersThread", "Parked"]

_LOOK: Final = 0.5
"""seconds between two checks for a Ctrl-C while the main thread waits"""
Parked = Call | Sleep | AwaitAbandoned
"""what a program may wait for"""
Resumption = tuple[Program[Any], Any]
"""a program, and the answer with which it is resumed"""


class CallersThread(ABC):
    """The part of a `Driver` that runs in the caller's thread, or in the thread of a step that waits for the run."""

    over = False
    result: Run | None = None
    error: BaseException | None = None
    raised_by_handler: BaseException | None = None
    """the exception that a signal handler of the user has raised in the caller's thread"""
    _aborts = False
    """whether `aborted` was called"""
    _wakeup: SimpleQueue[None] | None = None
    """the queue on which the caller's thread waits while it is idle; a signal handler may put to it"""
    _ctrl_c: SigintGuard | None = None
    _caller_idle = False
    """(under the lock) whether the caller's thread waits on `_wakeup`"""
    _main_parked = False
    """(under the lock) whether the main program waits to be resumed"""
    _main_due = False
    """(under the lock) whether the main program was resumed before it waited"""

    def __init__(self, run: RunState, main: Program[Run], timers: Timers) -> None:
        self.run = run
        self._timers = timers
        self._main = main
        self._starts = [True]  # emptied when the run begins or is dropped; list.pop is atomic
        self._lock = threading.Lock()
        self._resumptions: deque[Resumption] = deque()  # (under the lock) programs to resume
        # Programs that wait for something to end. The thread that pops one resumes it; dict.pop is atomic.
        self._parked: dict[Parked, Program[Any]] = {}
        self._queued_calls: dict[Call, Program[Any]] = {}  # calls that wait for a thread, in the same way

    @abstractmethod
    def _advance(self, program: Program[Any], answer: Any, *, here: bool = False, throws: bool = False) -> None:
        """Resume a program with an answer. `here`: whether this is the caller's thread. `throws`: whether the answer is
        an error to raise in the program."""

    @abstractmethod
    def _end(self, result: Run | None, error: BaseException | None) -> None:
        """Note that the run is over. Another call with the same arguments changes nothing."""

    @abstractmethod
    def _resume_main(self) -> None:
        """Resume the main program, which waits, or will wait next."""

    @abstractmethod
    def stop(self, stop: Stop) -> None:
        """End the run's waits and, with `cancel`, its calls. May be called from any thread."""

    def run_here(self, ctrl_c: SigintGuard | None, until: float = math.inf) -> None:
        """Drive the run to its end; the calling thread takes part. `ctrl_c` handles SIGINT meanwhile. `until`: see
        `_serve`."""
        main: Program[Run] | None = self._main
        try:
            while True:
                try:
                    if main is not None:
                        self._starts.clear()
                        self._ctrl_c = ctrl_c
                        if ctrl_c is not None:
                            ctrl_c.wake = self._wake_up
                        self._advance(main, None, here=True)
                        main = None
                    if not self.over:
                        self._serve(until)
                    break
                except BaseException as error:  # noqa: BLE001 - it is raised once the run has ended
                    interrupted, main = main, None
                    with self._lock:
                        self._wakeup = None
                    self._exit_in_driver(error, interrupted)
        finally:
            self._ctrl_c = None  # it refers to this driver: the cycle would keep the run in memory
            restore(ctrl_c)
        if deferred:
            self.raised_by_handler = take_deferred() or self.raised_by_handler
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
            program: Program[Any] | None = None
            try:
                if self._ctrl_c is not None and self._ctrl_c.unseen:
                    self._interrupted()
                if deferred:
                    self._take_deferred()
                answer: Any = None
                with self._lock:
                    if self._resumptions:
                        # Not popped: if a signal handler raised as the call returned, its result would be lost.
                        program, answer = self._resumptions[0]
                        del self._resumptions[0]
                    self._caller_idle = program is None
                if program is not None:
                    self._advance(program, answer, here=True)
                elif self.run.working and self.run.ready and (node := self.run.take()) is not None:
                    # A worker was requested, but no thread of the pool has come yet.
                    self._caller_idle = False
                    program = work_beside_main(self.run, node)
                    self._advance(program, None, here=True)
                else:
                    self._wait(wakeup, until)
                    with self._lock:
                        if self._caller_idle and time.monotonic() >= until:
                            # From now on, the pool resumes all programs.
                            self._caller_idle, self._wakeup = False, None
                            return
                        self._caller_idle = False
            except BaseException as error:  # noqa: BLE001 - it is raised once the run has ended
                self._exit_in_driver(error, program)

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

    def _exit_in_driver(self, error: BaseException, program: Program[Any] | None) -> None:
        """Continue to drive the run after a signal handler has raised `error` in the driver's own code, while this
        thread advanced `program`. The error is raised in the program, because its answer may be lost."""
        self._handler_raised(error)
        if self.result is not None or self.error is not None:
            self._end(self.result, self.error)
        elif program is not None and self._take_back(program):
            self._advance(program, error, here=True, throws=True)

    def aborted(self, error: BaseException) -> Program[Run] | None:
        """Return the program that ends the run after `error`, such as the exit of a signal handler, has ended its main
        program. Returns None if that program itself has raised `error`."""
        if is_exit_of_handler(error):
            self.raised_by_handler = error
        if self._aborts:
            return None
        self._aborts = True
        with self._lock:
            self._main_parked = self._main_due = False
            self._main = abort(self.run, error)
        return self._main

    def worker_ended(self, error: BaseException) -> None:
        """Cancel the run because `error`, such as the exit of a signal handler, has ended a worker. A step that it may
        have been running is given up after the grace, like the others."""
        if is_exit_of_handler(error):
            self.raised_by_handler = error
        self.cancel(error)
        if self.run.running <= 0:
            self._resume_main()
            return
        try:
            self._timers.after(self.run.settings.grace, self._free_places)
        except NoThread:
            self._free_places()

    def _free_places(self) -> None:
        if not self.over and stopping.free_places(self.run):
            self._resume_main()

    def _take_back(self, program: Program[Any]) -> bool:
        """Keep other threads from resuming a program that waits. Returns False if one of them has it."""
        for waiting, parked in list(self._parked.items()):
            if parked is program and (type(waiting) is Call or self._parked.pop(waiting, None) is None):
                return False
        with self._lock:
            if program is self._main:
                self._main_parked = False
            for resumption in [one for one in self._resumptions if one[0] is program]:
                self._resumptions.remove(resumption)
        return program not in self._queued_calls.values()

    def _take_deferred(self) -> None:
        """Act on the exit of a signal handler that has interrupted a hook."""
        error = take_deferred()
        if error is not None:
            self._handler_raised(error)

    def exits_before(self, call: Call) -> bool:
        """Act on the exit of a signal handler that has interrupted a hook before `call` begins. Returns whether the call
        must not begin."""
        self._take_deferred()
        return self.run.interrupted and not call.shielded

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
        if ctrl_c is not None and ctrl_c.unseen:
            self._interrupted()
        try:
            if ctrl_c is None:
                return context.run(fn, ctx), None
            try:
                ctrl_c.in_step, ctrl_c.in_undo = not shielded, shielded
                return context.run(fn, ctx), None
            finally:
                ctrl_c.in_step = ctrl_c.in_undo = False
        except Exception as error:  # noqa: BLE001 - the program judges it
            return None, error
        except BaseException as error:  # noqa: BLE001 - the same
            if shielded and raised_by_signal(error):  # the second Ctrl-C
                self.run.undo_stopped = True
            elif is_exit_of_handler(error):
                return None, self._exit_in_call(error, shielded=shielded)
            return None, error

    def _exit_in_call(self, error: BaseException, *, shielded: bool) -> BaseException:
        """Note that a signal handler has raised `error` in user code. Returns the error of the call. In memory, the undo
        that it cut short is attempted again, if its `retry=` allows that; on a durable store, by the next owner."""
        if not shielded:
            self.raised_by_handler = error  # the program cancels the run
            return error
        self._handler_raised(error)
        return error if self.run.relinquished else stopping.undo_interrupted(error)

    def cancel(self, error: BaseException) -> bool:
        """Cancel the run because of `error`. Returns False if it was stopping already or is over."""
        if not stopping.interrupt(self.run, error):
            return False
        self.stop(Stop(cancel=True))
        return True
