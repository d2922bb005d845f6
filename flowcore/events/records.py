"""The event records. The table in `flowcore.events` says when each one is emitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..status import Status


@dataclass(slots=True, eq=False)
class Event:
    """What every event of a run has."""

    workflow: str
    run_id: str
    at: float
    """monotonic seconds, by the engine's clock"""
    state: dict[Any, Any] = field(repr=False)
    """for hooks, shared by all events of this run in this process; never stored"""


@dataclass(slots=True, eq=False)
class StepEvent(Event):
    """What every event of a step has."""

    step: str


@dataclass(slots=True, eq=False)
class WorkflowRegistered(Event):
    """An engine has met this workflow for the first time; `run_id` is empty."""

    steps: tuple[str, ...]
    max_attempts: tuple[int, ...] = ()
    """how many attempts the definition allows each of them"""
    waits: tuple[str, ...] = ()
    """those of the steps that have no function, and wait for a value or a time"""


@dataclass(slots=True, eq=False)
class RunSubmitted(Event):
    """`engine.submit` was called. Emitted on the caller's thread, before RunRequested on the engine's."""

    key: str | None
    propagation: str = "link"
    """how the run's trace is connected with the caller's: "link" (a trace of its own) or "child" (the same trace)"""


@dataclass(slots=True, eq=False)
class RunRequested(Event):
    """A run was requested. Followed by RunStarted, IdempotencyHit or RunRefused."""

    key: str | None
    wall: float
    """seconds since the epoch at the moment `at`"""
    carrier: dict[str, str]
    """empty: a hook may put trace context in; it is stored with the run's record"""
    submitted: bool
    """whether it came through `submit`, so that this is another thread or task than the caller's"""
    recovering: bool = False
    """whether recovery requested it, and no caller: the engine resumes a run that another process has left"""


@dataclass(slots=True, eq=False)
class IdempotencyHit(Event):
    """The key was known: no new run."""

    key: str
    outcome: str
    """replayed, adopted, in_progress, mismatch or held"""
    original_run_id: str
    original: Mapping[str, str]
    """the carrier of the run that owns the key"""
    age: float | None
    """seconds since that run started, by the wall clock; None where unknown"""


@dataclass(slots=True, eq=False)
class RunRefused(Event):
    """The claim failed: no run."""

    key: str | None
    error: BaseException


@dataclass(slots=True, eq=False)
class RunStarted(Event):
    """The run begins, or is resumed after a takeover."""

    key: str | None
    wall: float
    """seconds since the epoch at the moment `at`"""
    carrier: Mapping[str, str]
    fence: int
    interrupted_run_id: str | None
    """after a takeover: the run (in the dead process) that this one continues"""
    interrupted: Mapping[str, str]
    """its carrier"""
    waiting: Callable[[], int]
    """returns how many of its steps are ready now and have not started; for gauges that are computed when they are read"""
    interrupted_by: Mapping[str, str | int | float] = field(default_factory=dict[str, "str | int | float"])
    """after a takeover, what is known of the owner before: `host`, `pid`, `since` (seconds since the epoch), and the `step`
    that was in flight"""
    after_wait: bool = False
    """whether it had waited in its store, which is no takeover: `interrupted_run_id` and `interrupted` are of that run"""


@dataclass(slots=True, eq=False)
class RunRecovered(Event):
    """A takeover: what will happen to the steps that were found in the record, by name."""

    decision: str
    """forward, undo or hold"""
    skipped: tuple[str, ...]
    retried: tuple[str, ...]
    verified: tuple[str, ...]
    undone: tuple[str, ...]
    held: tuple[str, ...]
    carriers: Mapping[str, Mapping[str, str]]
    """what was stored with the steps that had ended, by name"""


@dataclass(slots=True, eq=False)
class RunJoined(Event):
    """A part of a run that another process drives comes to this one: a step or an undo, whose events follow."""

    wall: float
    """seconds since the epoch at the moment `at`"""
    carrier: Mapping[str, str]
    """what hooks gave for the run where it was requested"""
    carriers: Mapping[str, Mapping[str, str]]
    """what was given for the steps that this part depends on, by name"""


@dataclass(slots=True, eq=False)
class RunFinished(Event):
    """The run has ended here."""

    outcome: Status
    """how; `waiting`: it waits in its store from now on, and RunStarted comes again when it is resumed"""
    duration: float
    error: BaseException | None
    skipped: tuple[str, ...]
    undone: tuple[str, ...]
    """steps whose undo succeeded, in the order of undoing"""
    elsewhere: bool = False
    """its steps ran in other processes, whose hooks have got its error"""
    expected: bool = False
    """then: whether the failed step's definition lists the error as one that is to be expected"""


@dataclass(slots=True, eq=False)
class StepReady(StepEvent):
    """All dependencies are done: the step waits for a worker."""


@dataclass(slots=True, eq=False)
class StepSkipped(StepEvent):
    """`when=` was false."""

    depends_on: tuple[str, ...]


@dataclass(slots=True, eq=False)
class StepStarted(StepEvent):
    """The first attempt is about to start."""

    waited: float
    """seconds since the step became ready"""
    depends_on: tuple[str, ...]
    max_attempts: int
    function: str
    """qualified name of the step's function"""
    carrier: dict[str, str] | None
    """empty: a hook may put trace context in, which the durable store keeps with the step; None where there is no such
    store"""


@dataclass(slots=True, eq=False)
class AttemptStarted(StepEvent):
    """An attempt of a step, or of its undo, is about to start."""

    attempt: int
    max_attempts: int
    undo: bool


@dataclass(slots=True, eq=False)
class AttemptFinished(StepEvent):
    """An attempt has ended."""

    attempt: int
    max_attempts: int
    undo: bool
    outcome: Status
    """success, failure, timeout or cancelled"""
    duration: float
    error: BaseException | None
    expected: bool = False
    """whether the step's definition lists the error as one that is to be expected"""


@dataclass(slots=True, eq=False)
class BackoffStarted(StepEvent):
    """The attempt failed and another one follows after `delay` seconds."""

    attempt: int
    """the attempt that failed"""
    max_attempts: int
    undo: bool
    delay: float
    reason: str
    """policy, retry_after or predicate"""
    error: BaseException


@dataclass(slots=True, eq=False)
class StepFinished(StepEvent):
    """The step has ended: its last attempt is over, or, where it is `waiting`, the last one that this process makes."""

    outcome: Status
    """success, failure, timeout or cancelled; `waiting`: its run leaves this process, and the next owner makes the next
    attempt"""
    duration: float
    """from the first attempt's start to the last one's end: attempts plus backoffs"""
    attempts: int
    waited: float
    backoff: float
    """seconds of `duration` spent waiting between attempts"""
    error: BaseException | None
    depends_on: tuple[str, ...]
    max_attempts: int
    expected: bool = False
    """whether the step's definition lists the error as one that is to be expected"""


@dataclass(slots=True, eq=False)
class WaitStarted(StepEvent):
    """A step without a function waits from now on."""

    timeout: float | None
    """seconds until it is over by itself; None: no limit"""
    sleeps: bool
    """whether it waits for its time only, and for no value"""


@dataclass(slots=True, eq=False)
class WaitFinished(StepEvent):
    """A wait has ended."""

    outcome: Status
    """success, timeout or failure"""
    waited: float
    """seconds since it began, under all owners"""
    error: BaseException | None
    sender: Mapping[str, str]
    """trace context of who sent the value; empty where no value was sent"""
    depends_on: tuple[str, ...]


@dataclass(slots=True, eq=False)
class ValueSent(StepEvent):
    """A value is about to be sent to the wait `step`; `workflow` and `run_id` are empty: only its store knows them."""

    key: str
    carrier: dict[str, str]
    """empty: a hook may put trace context in, which the run's store keeps with the value"""


@dataclass(slots=True, eq=False)
class StepCompletedLate(StepEvent):
    """An abandoned attempt has completed."""

    attempt: int
    undo: bool
    outcome: Status
    error: BaseException | None
    late: float
    """seconds after it was abandoned"""


@dataclass(slots=True, eq=False)
class CompensationStarted(StepEvent):
    """The undo of a step is about to start."""

    order: int
    """1 for the first undo of the run"""
    trigger: str
    """the step that failed the run, or what else made it fail: cancelled, deadline, operator"""
    max_attempts: int
    function: str


@dataclass(slots=True, eq=False)
class CompensationFinished(StepEvent):
    """The undo of a step has ended."""

    order: int
    trigger: str
    outcome: Status
    """success, failure or timeout"""
    duration: float
    attempts: int
    backoff: float
    error: BaseException | None


@dataclass(slots=True, eq=False)
class LeaseLost(Event):
    """Another owner has taken the run over; this process starts and undoes nothing more of it."""


@dataclass(slots=True, eq=False)
class MaintenanceStarted(Event):
    """The engine is about to do work of its own; `workflow` and `run_id` are empty."""

    kind: str
    """heartbeat, poll or recover"""


@dataclass(slots=True, eq=False)
class MaintenanceFinished(Event):
    """The engine's own work is done."""

    kind: str
    duration: float
    error: BaseException | None
    wall: float = 0.0
    """seconds since the epoch at the moment `at`"""


@dataclass(slots=True, eq=False)
class StoreCalled(Event):
    """A verb of the store has returned or failed. Heartbeats and recovery rounds have no run: `workflow` and `run_id` are empty."""

    store: str
    """the store's name: memory, sqlite, redis, or a third party's"""
    operation: str
    """the verb: claim, checkpoint, renew, finish, withdraw, find, head, list_resumable, list_runs or counts"""
    outcome: Status
    """success or failure; a store that refuses a value it cannot keep, or a changed definition, works as it should"""
    duration: float
    error: BaseException | None


@dataclass(slots=True, eq=False)
class StoreSurveyed(Event):
    """The runs that are not over were counted; belongs to no run."""

    counts: Mapping[tuple[str, str], int]
    """(workflow, status) -> how many; status is held, parked, incomplete, expired or waiting. All of the engine's workflows
    and all five are in it."""
    waiting: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """(workflow, step) -> how many waiting runs wait for that step; where more than 1,000 runs of a workflow wait, as many
    as the newest 1,000 of them suggest"""


@dataclass(slots=True, eq=False)
class SchedulePlanned(Event):
    """An engine waits for another fire of a schedule than before; `run_id` is empty."""

    schedule: str
    """the schedule's name"""
    due: float | None
    """when that fire is to begin, jitter included, in seconds since the epoch; None: there is none"""


@dataclass(slots=True, eq=False)
class ScheduleFired(Event):
    """An engine has begun the run of a fire; `run_id` is empty."""

    schedule: str
    """the schedule's name"""
    scheduled_at: float
    """the planned time, without jitter, in seconds since the epoch"""
    lateness: float
    """seconds after that time and its jitter"""


@dataclass(slots=True, eq=False)
class ScheduleMissed(Event):
    """Fires of a schedule will not be begun; `run_id` is empty. Of all engines, one reports it."""

    schedule: str
    """the schedule's name"""
    count: int
    """how many fires"""
    reason: str
    """down: no engine began them in time; overlap: the run before was still in progress; error: they could not be begun"""
    last: float
    """the planned time of the latest of them, in seconds since the epoch"""


@dataclass(slots=True, eq=False)
class EngineStarted(Event):
    """An engine was made; belongs to no run."""

    workers: Callable[[], tuple[int, int] | None]
    """returns how many of its threads are busy now, and how many of them are stuck in calls that were given up; None once
    the engine is gone. For gauges that are computed when they are read."""
    hooks: tuple[str, ...]
    """its hooks, as HookFailed names them"""
    max_workers: int = 0
    """how many of its threads can work at the same time"""


@dataclass(slots=True, eq=False)
class HookFailed(Event):
    """A hook raised on an event; the run continued. `workflow` and `run_id` are the run's."""

    hook: str
    """the hook's class, or its function's name"""
    error: BaseException


@dataclass(slots=True, eq=False)
class HooksMeasured(Event):
    """A run has ended of which it was measured how long its hooks took. Of many runs few are measured: each stands for
    those that were not since the one before."""

    seconds: Mapping[str, float]
    """by hook, as HookFailed names them: what they took, scopes included, times the number of runs it stands for"""


EVENTS: Final[frozenset[type[Event]]] = frozenset(
    cls
    for cls in globals().values()
    if isinstance(cls, type) and issubclass(cls, Event) and cls not in {Event, StepEvent}
)
