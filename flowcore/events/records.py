"""The records of the events that belong to a run. The table in `flowcore.events` says when each event is emitted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..status import Status
from . import of_engines
from .base import Event, StepEvent

__all__ = [
    "EVENTS",
    "AttemptFinished",
    "AttemptStarted",
    "BackoffStarted",
    "CompensationFinished",
    "CompensationStarted",
    "IdempotencyHit",
    "LeaseLost",
    "RunDequeued",
    "RunEnded",
    "RunFinished",
    "RunJoined",
    "RunRecovered",
    "RunRefused",
    "RunRequested",
    "RunStarted",
    "RunSubmitted",
    "StepCompletedLate",
    "StepFinished",
    "StepReady",
    "StepSkipped",
    "StepStarted",
    "StoreCalled",
    "ValueSent",
    "WaitFinished",
    "WaitStarted",
]


@dataclass(slots=True, eq=False)
class RunSubmitted(Event):
    """`engine.submit` was called. Emitted on the caller's thread, before the engine emits RunRequested."""

    key: str | None
    propagation: str = "link"
    """how the run's trace is connected with the caller's: "link" (a trace of its own) or "child" (the same trace)"""


@dataclass(slots=True, eq=False)
class RunDequeued(Event):
    """A submitted run has left the queue of its engine: RunRequested follows, unless it does not begin here."""

    waited: float
    """seconds since RunSubmitted"""
    begins: bool
    """False if the run was cancelled, is left to other engines, or could not be recorded"""


@dataclass(slots=True, eq=False)
class RunRequested(Event):
    """A run was requested. Followed by RunStarted, IdempotencyHit or RunRefused."""

    key: str | None
    wall: float
    """seconds since the epoch at the moment `at`"""
    carrier: dict[str, str]
    """an empty dict to which hooks may add trace context; it is stored with the run's record"""
    submitted: bool
    """whether the run was submitted, so that this thread or task is not the caller's"""
    recovering: bool = False
    """whether recovery requested the run, not a caller: the engine resumes a run that another process has left"""


@dataclass(slots=True, eq=False)
class IdempotencyHit(Event):
    """The key belongs to an earlier run, so no new run begins."""

    key: str
    outcome: str
    """replayed, adopted, in_progress, mismatch or held"""
    original_run_id: str
    original: Mapping[str, str]
    """the carrier of the run that owns the key"""
    age: float | None
    """seconds since that run started, by the wall clock; None if unknown"""


@dataclass(slots=True, eq=False)
class RunRefused(Event):
    """The claim failed, or a submitted run could not be recorded, so no run begins."""

    key: str | None
    error: BaseException
    overtaken: bool = False
    """whether recovery requested the run, and it was resumed, ended or deleted elsewhere before: nothing is wrong"""
    stopped: bool = False
    """whether the caller was cancelled, or this process stops, before the claim was granted: the store has not failed"""


@dataclass(slots=True, eq=False)
class RunStarted(Event):
    """The run begins, or is resumed after a takeover or a wait."""

    key: str | None
    wall: float
    """seconds since the epoch at the moment `at`"""
    carrier: Mapping[str, str]
    fence: int
    interrupted_run_id: str | None
    """after a takeover or a wait: the id of the run that is resumed, the same as `run_id`; None for a new run"""
    interrupted: Mapping[str, str]
    """the carrier of the resumed run, as the previous owner stored it"""
    waiting: Callable[[], int]
    """returns how many of its steps are ready now but not started; for gauges that are computed when they are read"""
    interrupted_by: Mapping[str, str | int | float] = field(default_factory=dict[str, "str | int | float"])
    """after a takeover, what is known of the previous owner: `host`, `pid`, `since` (seconds since the epoch), and the
    `step` that was in flight"""
    after_wait: bool = False
    """whether the run is resumed after it had waited in its store, which is not a takeover"""
    held_back: Callable[[], int] = int
    """returns how many of the `waiting` steps start only when another step of the run has ended, because of `max_parallel=` or,
    in an AsyncEngine, `max_workers=`; for gauges"""


@dataclass(slots=True, eq=False)
class RunRecovered(Event):
    """The engine has taken a run over, and has decided what follows for the steps in its record.

    `skipped`: steps that had ended. `retried`: steps that were in flight, and will be attempted again. `verified`:
    steps that were in flight, and are done according to their `verify=`. `undone`: steps that will be undone, in this
    order. `held`: steps that were in flight, because of which the run is held.
    """

    decision: str
    """forward, undo or hold"""
    skipped: tuple[str, ...]
    retried: tuple[str, ...]
    verified: tuple[str, ...]
    undone: tuple[str, ...]
    held: tuple[str, ...]
    carriers: Mapping[str, Mapping[str, str]]
    """the carrier of each step that had ended, by step name"""
    left: bool = False
    """whether the previous owner had left the run, parked or incomplete, and so had not died"""


@dataclass(slots=True, eq=False)
class RunJoined(Event):
    """This process gets a step, an undo or the end of a run whose caller is another process. Its events follow."""

    wall: float
    """seconds since the epoch at the moment `at`"""
    carrier: Mapping[str, str]
    """the carrier that hooks filled for the run where it was requested"""
    carriers: Mapping[str, Mapping[str, str]]
    """the carrier of each step that this one depends on, by step name"""


@dataclass(slots=True, eq=False)
class RunFinished(Event):
    """The run has ended in this process, or waits in its store from now on."""

    outcome: Status
    """the status of the run; after `waiting`, another RunStarted follows when the run is resumed"""
    duration: float
    """seconds since the run began, under any owner, without the time for which it was queued"""
    error: BaseException | None
    skipped: tuple[str, ...]
    undone: tuple[str, ...]
    """steps whose undo succeeded, in the order of undoing"""
    elsewhere: bool = False
    """whether the steps ran in other processes, whose hooks have got the error"""
    expected: bool = False
    """whether the failed step lists the error in `expected=`; only set if `elsewhere`"""
    counted: Collection[str] = ()
    """classes of the hooks that have counted the run at its RunEnded in another process"""
    left: bool = False
    """whether the run is parked because this process or its engine stops: its next owner resumes it at once"""


@dataclass(slots=True, eq=False)
class RunEnded(Event):
    """The run has ended in the process that drove it. Its caller, in another process, gets RunFinished if it lives."""

    key: str | None
    wall: float
    """seconds since the epoch at the moment `at`"""
    outcome: Status
    duration: float
    counted: set[str] = field(default_factory=set[str])
    """a hook that counts runs adds the name of its class, so that hooks of this class do not count the RunFinished"""


@dataclass(slots=True, eq=False)
class StepReady(StepEvent):
    """All dependencies of the step are done, and it waits for a worker."""


@dataclass(slots=True, eq=False)
class StepSkipped(StepEvent):
    """The `when=` of the step returned False."""

    depends_on: tuple[str, ...]


@dataclass(slots=True, eq=False)
class StepStarted(StepEvent):
    """The first attempt of the step is about to start."""

    waited: float
    """seconds since the step became ready"""
    depends_on: tuple[str, ...]
    max_attempts: int
    function: str
    """qualified name of the step's function"""
    carrier: dict[str, str] | None
    """an empty dict to which hooks may add trace context, which is stored with the step; None in memory"""
    resumed: bool = False
    """whether earlier attempts of the step have failed under another owner, which has emitted its start before"""


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
    """whether the step lists the error in `expected=`"""


@dataclass(slots=True, eq=False)
class BackoffStarted(StepEvent):
    """An attempt has failed, and another one follows after `delay` seconds."""

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
    """The last attempt of the step has ended, or the last one that this process makes if the outcome is `waiting`."""

    outcome: Status
    """success, failure, timeout or cancelled; `waiting` if the run leaves this process, so that its next owner makes
    the next attempt"""
    duration: float
    """seconds from the start of the first attempt, under any owner, to the end of the last one, backoff included"""
    attempts: int
    waited: float
    backoff: float
    """the seconds of backoff in `duration`"""
    error: BaseException | None
    depends_on: tuple[str, ...]
    max_attempts: int
    expected: bool = False
    """whether the step lists the error in `expected=`"""
    earlier: float = 0.0
    """the seconds of `duration` before this owner's StepStarted"""


@dataclass(slots=True, eq=False)
class WaitStarted(StepEvent):
    """A step without a function begins to wait."""

    timeout: float | None
    """seconds after which the wait times out, or the sleep ends; None means no limit"""
    sleeps: bool
    """whether it is a sleep, which waits for no value"""


@dataclass(slots=True, eq=False)
class WaitFinished(StepEvent):
    """The wait of a step without a function has ended."""

    outcome: Status
    """success, timeout or failure"""
    waited: float
    """seconds since the wait began, under all owners"""
    error: BaseException | None
    sender: Mapping[str, str]
    """trace context of the sender of the value; empty if none was sent"""
    depends_on: tuple[str, ...]


@dataclass(slots=True, eq=False)
class ValueSent(StepEvent):
    """A value is about to be sent to the wait `step`. `workflow` and `run_id` are empty: only the store knows them."""

    key: str
    carrier: dict[str, str]
    """an empty dict to which hooks may add trace context, which the run's store keeps with the value"""


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
    """the step that failed the run, or "cancelled" if no step did"""
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
class StoreCalled(Event):
    """A verb of the store has returned or failed. `workflow` and `run_id` are empty if it belongs to no run."""

    store: str
    """the store's name: memory, sqlite, redis, or a third party's"""
    operation: str
    """the verb: claim, checkpoint, renew, finish, withdraw, find, head, cancel, resume, list_resumable, counts or
    list_runs"""
    outcome: Status
    """success or failure; a refusal of a value that cannot be stored, or of a changed definition, is a success"""
    duration: float
    error: BaseException | None


EVENTS: Final[frozenset[type[Event]]] = frozenset(
    kind
    for kind in (*vars(of_engines).values(), *globals().values())
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in {Event, StepEvent}
)
"""all types of events"""
