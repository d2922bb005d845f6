"""The faults, halts and callers of a simulation, and the records of what its processes did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..events import Event
from ..run import Run

__all__ = ["CRASHES", "Act", "Caller", "Exit", "Fault", "Halt", "Injected", "Sending", "SimulatedCall"]


class Fault(StrEnum):
    """A fault of a step. It strikes every attempt of the step, but a crash strikes only once."""

    FAIL_BEFORE = "fails before its effect"
    FAIL_AFTER = "fails after its effect"
    TIMEOUT = "times out"
    """its effect happens, but after the attempt has timed out; an attempt without a timeout times out at once"""
    STUCK = "times out and never comes back"
    NO_THREAD = "finds no thread"
    """no thread is free before the run's deadline; only in runs with a deadline, at steps without step_timeout"""
    CANCEL = "run cancelled in it"
    UNDO_FAILS = "undo fails"
    CRASH_BEFORE = "crashes before its effect"
    CRASH_AFTER = "crashes after its effect"
    """in both crashes the process dies, and another one takes the run over once the lease has expired"""


CRASHES: Final = frozenset({Fault.CRASH_BEFORE, Fault.CRASH_AFTER})


class Injected(Exception):
    """The failure that a fault injected."""


@dataclass(frozen=True, slots=True)
class Halt:
    """The point at which a process stops in the middle of its work. Nothing of it continues, not even its heartbeat."""

    at: str
    """where it stops: in a request to the store ("store") or in a call of user code ("call")"""
    number: int
    """in which of its requests or calls, counted from 1"""
    done: bool
    """whether the store has applied the request, or the user code had its effect, before the process stops"""
    seconds: float = math.inf
    """until the process resumes where it stopped, as a zombie; infinite: it has crashed"""


@dataclass(frozen=True, slots=True)
class Exit:
    """The moment at which a signal handler of a process raises SystemExit."""

    at: str
    """what it interrupts: the driver, between two effects of a program ("driver"), a program that reads its clock
    ("clock"), a call of user code ("call"), a hook ("hook") or a call of the store ("store")"""
    number: int
    """at which moment of this kind, counted from 1"""


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller of the run, in its own process."""

    after: float = 0.0
    """seconds from the end, or the halt, of the previous caller until this one starts"""
    beside: bool = False
    """whether `after` counts from the start of the previous caller instead, so that both may run at the same time"""
    recovers: bool = False
    """whether it calls no particular run, but looks for one without a live owner, as recovery does"""
    wait: float | None = None
    """the `wait=` of its call, as in an engine's `run`"""
    decides: str | None = None
    """for an operator, who runs nothing: the verb of the store to call for the key (resume, undo, hold or release)"""
    halt: Halt | None = None
    exits: Exit | None = None
    stops: float | None = None
    """seconds after which its process must stop, as in a deploy; None if it need not"""
    beats: bool = True
    """whether it has a heartbeat; without one, the lease expires in the middle of long work"""


@dataclass(frozen=True, slots=True)
class Sending:
    """A value that is sent to a wait of the run, from outside its processes."""

    step: str
    value: object
    at: float
    """when it is sent, in seconds since the simulation began"""
    id: str | None = None


@dataclass(slots=True)
class SimulatedCall:
    """One call of user code as the driver made it, whatever the events say. Times are on the clock of their `at`."""

    step: str
    what: str
    """do, undo, when, verify, or await (of the coroutine that a plain function returned)"""
    attempt: int
    began: float
    events_before: int
    """how many events its process had emitted before the call began"""
    ended: float | None = None
    """when the call ended; None if it never did"""
    given_up: float | None = None
    """when its caller gave it up; None if the caller waited for its end"""
    failed: bool = False
    """whether it ended with an error"""
    process: int = 0
    """the number of its process, counted from 0"""
    fence: int = 0
    """the fence of the owner that made the call"""
    requests_before: int = 0
    """how many requests to the store were logged before the call began"""
    performed: float | None = None
    """when the function was really called; None if it was not, as after the death of its process"""


@dataclass(slots=True)
class Act:
    """The record of what one process did for the run."""

    caller: Caller
    began: float
    events: list[Event] = field(default_factory=list[Event], repr=False)
    run: Run | None = None
    """the run as the process got it; None if its call was refused, it has died, or it found nothing to recover"""
    refusal: BaseException | None = None
    ended: float | None = None
    """when its call ended; None if the process has died"""
    halted: float | None = None
    """when it stopped in the middle of its work; None if it did not"""
    cancelled: float | None = None
    """when it cancelled the run; None if it did not"""
    exited: float | None = None
    """when a signal handler exited; None if none did"""
    stopped: float | None = None
    """when it parked the run because its process had to stop; None if it did not"""
