"""The records of runs, their steps and their writes. A store has one record for each run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import hashed_key
from ..run import Sent, StepReport
from ..status import Status

__all__ = ["Owner", "RunRecord", "StepRecord", "Write", "empty"]


def empty() -> dict[Any, Any]:
    """Return an empty dict, as the default of a field that is a mapping."""
    return {}  # dict[str, str]() would take several times as long


@dataclass(slots=True)
class StepRecord:
    """What a store knows about one step. `report.status` is RUNNING from the start of an attempt to the step's end."""

    seq: int
    """rises with every change in the run, so that it also orders steps by their end"""
    report: StepReport
    has_result: bool = False
    result: Any = field(default=None, repr=False)
    effect: bool = False
    """whether the step had an effect, or may have had one, and must be undone if the run fails"""
    carrier: Mapping[str, str] = field(default_factory=empty, repr=False)
    """trace context of the step, or other data that hooks stored with it"""


@dataclass(slots=True)
class Write:
    """The latest write to a key of the context."""

    seq: int
    value: Any = field(default=None, repr=False)
    deleted: bool = False


@dataclass(slots=True)
class Owner:
    """The process that owns a run, or owned it last."""

    host: str
    pid: int
    since: float = 0.0
    """when this process claimed the run, in seconds since the epoch by the store's clock; set by the store"""


@dataclass(slots=True)
class RunRecord:
    """What a store knows about a run."""

    key: str
    run_id: str
    workflow: str
    fingerprint: str | None = field(repr=False)
    graph: str = field(repr=False)
    status: Status = Status.RUNNING
    held: bool = False
    undoing: bool = False
    """whether the run has failed for good, so that from now on it is only undone"""
    decision: str | None = None
    """an operator's decision: "resume", "undo" or "cancel"; the next owner carries it out, or, if it is not "resume",
    the present owner"""
    reason: str | None = None
    """why the run is parked or held, in one sentence"""
    owner: Owner | None = None
    previous_owner: Owner | None = None
    """the owner before the present one, dead or not; None if the present one began the run, and on Temporal"""
    takeovers: int = 0
    """how often the run was taken over from a crashed owner since its last progress: see decide.makes_progress"""
    retries: int = 0
    """how often the run ended parked or incomplete since its last progress: see decide.makes_progress"""
    not_before: float | None = None
    """when recovery may resume the run, in seconds since the epoch by the store's clock; None: at once; infinite: never
    by itself"""
    deadline: float | None = None
    """seconds that the run may take, counted from `started`; None: no limit"""
    problem: str | None = None
    """in a listing: why the record cannot be read; its other fields are then empty"""
    generation: int = 0
    """rises each time a failed run releases the key"""
    fence: int = 0
    """rises with each owner"""
    seq: int = 0
    """the highest `seq` of its fields"""
    started: float = 0.0
    """seconds since the epoch, by the store's clock"""
    finished: float | None = None
    expires: float | None = None
    """when its owner's lease ends, in seconds since the epoch by the store's clock; None: the run has no owner"""
    results: Mapping[str, Any] = field(default_factory=empty, repr=False)
    """results of the steps that are done, in order of completion"""
    values: Mapping[Any, Any] = field(default_factory=empty, repr=False)
    """the context's values"""
    steps: Mapping[str, StepReport] = field(default_factory=empty)
    """reports of the steps that have more than a result; on durable stores, of all steps that have begun"""
    effects: tuple[str, ...] = ()
    """the steps to undo if the run fails, in order of completion; those in flight come last"""
    carriers: Mapping[str, Mapping[str, str]] = field(default_factory=empty, repr=False)
    """carriers by step"""
    undone: tuple[str, ...] = ()
    failed_step: str | None = None
    error: BaseException | None = None
    """the error that failed the run: the exception itself if this process still has it, or a RunFailed with its type
    and message"""
    carrier: Mapping[str, str] = field(default_factory=empty, repr=False)
    sent: Mapping[str, Sent] = field(default_factory=empty, repr=False)
    """the values that were sent to its waits, by step"""
    received: int = 0
    """how many values were sent to it; a head has this number too"""
    waiting_for: tuple[str, ...] = ()
    """if the status is WAITING: the steps that wait; at `not_before` the run is resumed even if nothing was sent"""

    def explain(self) -> str:
        """The story of the run in plain words: its status and the reason, its owner, and a line for each step."""
        from .story import story

        return story(self)

    def html(self, *, trace_url: str | None = None, usual: float | None = None) -> str:
        """The run as one self-contained HTML page. `trace_url`: the address of its trace, with `{trace_id}` in place of
        the trace's id; `usual`: how many seconds a run of its workflow usually takes."""
        from ..picture import Timeline, page

        return page(
            Timeline.of_record(self), self.explain(), key_hash=hashed_key(self.key), trace_url=trace_url, usual=usual
        )
