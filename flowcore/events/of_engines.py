"""The records of the events that belong to no run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .base import Event

__all__ = [
    "EngineStarted",
    "HookFailed",
    "HooksMeasured",
    "MaintenanceFinished",
    "MaintenanceStarted",
    "ScheduleFired",
    "ScheduleMissed",
    "SchedulePlanned",
    "StoreSurveyed",
    "WorkflowRegistered",
]


def _always() -> bool:
    return True


@dataclass(slots=True, eq=False)
class WorkflowRegistered(Event):
    """An engine uses this workflow for the first time; `run_id` is empty."""

    steps: tuple[str, ...]
    max_attempts: tuple[int, ...] = ()
    """how many attempts the definition allows for each of the steps"""
    waits: tuple[str, ...] = ()
    """the steps without a function, which wait for a value or sleep"""
    timeouts: tuple[str, ...] = ()
    """the steps with a `timeout=`"""


@dataclass(slots=True, eq=False)
class MaintenanceStarted(Event):
    """The engine is about to do work that belongs to no run; `workflow` and `run_id` are empty."""

    kind: str
    """heartbeat, poll, recover, survey or schedule"""


@dataclass(slots=True, eq=False)
class MaintenanceFinished(Event):
    """The work that belongs to no run is done."""

    kind: str
    duration: float
    error: BaseException | None
    wall: float = 0.0
    """seconds since the epoch at the moment `at`"""
    is_open: Callable[[], bool] = _always
    """returns whether the engine exists and is not closed; each engine has one such function"""


@dataclass(slots=True, eq=False)
class StoreSurveyed(Event):
    """The engine has counted the unfinished runs that need an owner or an operator, or that wait. Belongs to no run."""

    counts: Mapping[tuple[str, str], int]
    """(workflow, status) -> the number of runs. The status is held, parked, incomplete, expired, waiting or overdue. All of
    the engine's workflows are in it with all six, and so is "_unknown", which stands for other workflows"""
    waiting: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """(workflow, step) -> the number of runs that wait for that step, extrapolated from the newest 1,000 if more runs
    of a workflow wait"""
    is_open: Callable[[], bool] = _always
    """as for MaintenanceFinished: once it returns False, the engine counts no more"""


@dataclass(slots=True, eq=False)
class SchedulePlanned(Event):
    """The fire of a schedule that an engine waits for has changed; `run_id` is empty."""

    schedule: str
    """the schedule's name"""
    due: float | None
    """when that fire is to begin, jitter included, in seconds since the epoch; None if there is none"""
    is_open: Callable[[], bool] = _always
    """as for MaintenanceFinished: once it returns False, the engine waits for no fire"""


@dataclass(slots=True, eq=False)
class ScheduleFired(Event):
    """An engine has begun the run of a fire; `run_id` is empty."""

    schedule: str
    """the schedule's name"""
    scheduled_at: float
    """the planned time, without jitter, in seconds since the epoch"""
    lateness: float
    """how many seconds after that time and its jitter the run began"""


@dataclass(slots=True, eq=False)
class ScheduleMissed(Event):
    """Fires of a schedule were skipped: no run begins for them. `run_id` is empty. Only one engine reports it."""

    schedule: str
    """the schedule's name"""
    count: int
    """how many fires"""
    reason: str
    """down (no engine began them in time), overlap (the previous run was in progress) or error (each try failed)"""
    last: float
    """the planned time of the latest of these fires, in seconds since the epoch"""


@dataclass(slots=True, eq=False)
class EngineStarted(Event):
    """An engine was made. Belongs to no run."""

    workers: Callable[[], tuple[int, int] | None]
    """returns how many of its threads are busy now, and how many of these are in abandoned calls, or None once the
    engine is gone, or is closed and none is busy; for gauges that are computed when they are read"""
    hooks: tuple[str, ...]
    """its hooks, as HookFailed names them"""
    max_workers: int = 0
    """how many of its threads can work at the same time"""


@dataclass(slots=True, eq=False)
class HookFailed(Event):
    """A hook raised an error on an event; the run continued. `workflow` and `run_id` are those of the event."""

    hook: str
    """the hook's class, or its function's name"""
    error: BaseException


@dataclass(slots=True, eq=False)
class HooksMeasured(Event):
    """A run has ended in which the time that hooks took was measured. Few of many runs are measured; each stands for
    all runs since the previous measured one."""

    seconds: Mapping[str, float]
    """the seconds of each hook, by name, scopes included, times the number of runs that this one stands for"""
