"""What can befall the processes of a simulation, and what they did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..events import Event
from ..run import Run

__all__ = ["CRASHES", "Act", "Caller", "Fault", "Halt", "Injected", "Sending", "SimulatedCall"]


class Fault(StrEnum):
    """What goes wrong with every attempt of a step; a crash comes once."""

    FAIL_BEFORE = "fails before its effect"
    FAIL_AFTER = "fails after its effect"
    TIMEOUT = "times out"
    """its effect happens, but too late: right after its limit, or after any limit its run may have"""
    STUCK = "times out and never comes back"
    NO_THREAD = "finds no thread"
    """no thread is free for it before the run's deadline; only where the run has one and the step has no step_timeout"""
    CANCEL = "run cancelled in it"
    UNDO_FAILS = "undo fails"
    CRASH_BEFORE = "crashes before its effect"
    CRASH_AFTER = "crashes after its effect"
    """the process dies, and another one takes the run over once the lease is over"""


CRASHES: Final = frozenset({Fault.CRASH_BEFORE, Fault.CRASH_AFTER})


class Injected(Exception):
    """The failure that a fault injected."""


@dataclass(frozen=True, slots=True)
class Halt:
    """Where a process stops, in the middle of what it is doing: nothing of it goes on, its heartbeat neither."""

    at: str
    """store: in the number-th request to the store; call: in the number-th call of user code"""
    number: int
    """counted from 1"""
    done: bool
    """whether the store has done, or the user code had its effect, by then"""
    seconds: float = math.inf
    """until it goes on where it stopped, a zombie; for ever: a crash"""


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller of the run, in a process of its own."""

    after: float = 0.0
    """seconds after the one before was over, or stopped"""
    beside: bool = False
    """it comes so many seconds after the one before came, whether that one is over or not"""
    recovers: bool = False
    """no caller: it looks for a run without a live owner"""
    wait: float | None = None
    """as the argument of an engine's `run`"""
    decides: str | None = None
    """an operator, who wants nothing run: which verb of the store to call for the key, resume, undo, hold or release"""
    halt: Halt | None = None
    beats: bool = True
    """whether it has a heartbeat; without one, the lease runs out in the middle of long work"""


@dataclass(frozen=True, slots=True)
class Sending:
    """A value that is sent to the run, beside its processes."""

    step: str
    value: object
    at: float
    """seconds since the simulation began"""
    id: str | None = None


@dataclass(slots=True)
class SimulatedCall:
    """One call of user code, as the driver made it, whatever was reported of it. Moments are those of the events' `at`."""

    step: str
    what: str
    """do, undo, when, verify, or await: the rest of a plain function that answered with a coroutine"""
    attempt: int
    began: float
    told_before: int
    """events that its process had emitted before it began"""
    ended: float | None = None
    """when it came back; None: never"""
    given_up: float | None = None
    """when its caller stopped waiting for it; None: it was waited for"""
    failed: bool = False
    """whether it came back with an error"""
    process: int = 0
    """its process, counted from 0"""
    fence: int = 0
    """of the run's owner that made it"""
    stored_before: int = 0
    """requests that had arrived at the store before it began"""
    performed: float | None = None
    """when the function really was called; None: the process had died"""


@dataclass(slots=True)
class Act:
    """What one process did for the run."""

    caller: Caller
    began: float
    events: list[Event] = field(default_factory=list[Event], repr=False)
    run: Run | None = None
    """how the run ended for it; None: it was refused, or has died, or nothing was to be recovered"""
    refusal: BaseException | None = None
    ended: float | None = None
    """when it was over; None: it has died"""
    halted: float | None = None
    """when it stopped in the middle of something"""
    cancelled: float | None = None
    """when the run was cancelled, if it was"""
