"""The exit of a signal handler in a simulated process, as of a handler of SIGTERM that calls `sys.exit()`.

Python runs a handler between any two instructions of the main thread, so its exception may appear in user code, in a
hook, in a call of the store, in a driver or in a program.
"""

from __future__ import annotations

import inspect
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import FrameType
from typing import Any

from .._kernel import stopping
from .._kernel.effects import Call, Outcome, Program, Stop
from .._kernel.run import abort
from .._kernel.run_state import RunState
from ..exits import deferred, take_deferred
from ..run import Run
from .acts import Act, Exit
from .world import World

__all__ = ["ExitingProcess", "raise_exit"]


def raise_exit() -> None:
    """Raise SystemExit as a signal handler does that interrupts this function."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handler(signal.SIGTERM, inspect.currentframe())


class ExitingProcess(ABC):
    """The part of a `Process` that a signal handler may end. The exit strikes once, at the moment that its caller's
    `Exit` names."""

    world: World
    act: Act
    run: RunState
    _main: Program[Run]
    _main_parked: bool

    def __init__(self, exits: Exit | None) -> None:
        self._exits = exits
        self._moments = 0
        self._drives = False
        """whether a program is advanced, in which its clock may strike"""
        self._aborts = False

    @abstractmethod
    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        """Perform `act` after so many seconds of virtual time."""

    @abstractmethod
    def over(self, result: Run | None, refusal: BaseException | None) -> None:
        """End the process with the run that it got, or with the error that refused it."""

    @abstractmethod
    def _resume_main(self) -> None:
        """Resume the main program if it waits."""

    @abstractmethod
    def _stop(self, stop: Stop) -> None:
        """Cut the sleeps of the run short and, with `cancel`, interrupt its calls."""

    def _struck(self, at: str) -> BaseException | None:
        """Count a moment of this kind. Returns the exit if it strikes now."""
        exits = self._exits
        if exits is None or exits.at != at:
            return None
        self._moments += 1
        if self._moments != exits.number:
            return None
        try:
            raise_exit()
        except SystemExit as error:
            self.act.exited = self.world.now
            self.act.stopped = self.act.stopped or self.act.exited
            return error
        return None

    def _clock(self) -> float:
        """The clock of the run, which may be interrupted whenever a program reads it."""
        error = self._struck("clock") if self._drives else None
        if error is not None:
            raise error
        return self.world.now

    def _hook(self, event: object) -> None:
        """A hook that may be interrupted."""
        error = self._struck("hook") if self._drives else None
        if error is not None:
            raise error

    def _interrupted_ask(self, outcome: Outcome) -> Outcome:
        """The outcome of a call of the store that may be interrupted. A store in memory is called again at once."""
        error = self._struck("store")
        if error is None:
            return outcome
        self._handler_raised(error)
        return (None, stopping.store_interrupted(error)) if self.run.settings.durable else outcome

    def _interrupted_call(self, call: Call) -> Outcome | None:
        """The outcome of a call of user code that is interrupted now, before or after its effect. Returns None if it is
        not interrupted."""
        error = self._struck("call")
        if error is None or not call.shielded:
            return None if error is None else (None, error)
        self._handler_raised(error)
        return None, error if self.run.relinquished else stopping.undo_interrupted(error)

    def _act_on_deferred(self) -> None:
        """Act on an exit that has interrupted a hook, as a driver does between two effects."""
        error = take_deferred() if deferred else None
        if error is not None:
            self._handler_raised(error)

    def _handler_raised(self, error: BaseException) -> None:
        """Park or cancel the run because a signal handler has raised `error` outside of its programs."""
        if stopping.interrupt(self.run, error):
            self._stop(Stop(cancel=True))

    def _aborted(self, program: Program[Any], error: BaseException) -> Program[Run] | None:
        """Return the program that ends the run, if `error` has ended its main program. Returns None if `error` has ended
        a worker, whose place is freed after the grace, or that program, and so the run."""
        if program is not self._main:
            self._handler_raised(error)
            if self.run.running <= 0:
                self._resume_main()
            else:
                self._after(self.run.settings.grace, self._free_places)
            return None
        if self._aborts:
            self.over(None, error)
            return None
        self._aborts, self._main_parked = True, False
        self._main = abort(self.run, error)
        return self._main

    def _free_places(self) -> None:
        if self.act.ended is None and stopping.free_places(self.run):
            self._resume_main()
