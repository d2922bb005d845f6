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
    """rises with every change of anything in the run; also the order in which steps ended"""
    report: StepReport
    has_result: bool = False
    result: Any = field(default=None, repr=False)
    effect: bool = False
    """it did something, or may have: to be undone if the run fails"""
    carrier: Mapping[str, str] = field(default_factory=empty, repr=False)
    """trace context of the step, or whatever else hooks stored with it"""


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
    """when it claimed the run, in seconds since the epoch by the store's clock; set by the store"""


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
    """the run has failed for good: from here on it is only undone"""
    decision: str | None = None
    """what an operator has decided, "resume", "undo" or "cancel": carried out by the next owner, the latter two also by the
    present one"""
    reason: str | None = None
    """why it is parked or held, in one sentence"""
    owner: Owner | None = None
    takeovers: int = 0
    """how often a crashed owner was replaced since the last step that ended"""
    retries: int = 0
    """how often it ended parked or incomplete since the last step that ended"""
    not_before: float | None = None
    """when recovery may resume it, in seconds since the epoch by the store's clock; None: at once; infinite: never by itself"""
    deadline: float | None = None
    """seconds that the run may take, counted from `started`; None: no limit"""
    problem: str | None = None
    """in a listing: why the record cannot be read; its other fields are then empty"""
    generation: int = 0
    """rises each time a failed run releases the key"""
    fence: int = 0
    """rises with each owner"""
    seq: int = 0
    """the highest of its fields"""
    started: float = 0.0
    """seconds since the epoch, by the store's clock"""
    finished: float | None = None
    expires: float | None = None
    """when its owner's lease ends, in seconds since the epoch by the store's clock; None: it has no owner"""
    results: Mapping[str, Any] = field(default_factory=empty, repr=False)
    """of the steps that are done, in order of completion"""
    values: Mapping[Any, Any] = field(default_factory=empty, repr=False)
    """the context's values"""
    steps: Mapping[str, StepReport] = field(default_factory=empty)
    """of the steps that have more than a result; on durable stores of all that have begun"""
    effects: tuple[str, ...] = ()
    """the steps to undo if it fails, in order of completion; those in flight come last"""
    carriers: Mapping[str, Mapping[str, str]] = field(default_factory=empty, repr=False)
    """by step"""
    undone: tuple[str, ...] = ()
    failed_step: str | None = None
    error: BaseException | None = None
    """what failed it: the exception itself where this process still has it, else a RunFailed with its type and message"""
    carrier: Mapping[str, str] = field(default_factory=empty, repr=False)
    sent: Mapping[str, Sent] = field(default_factory=empty, repr=False)
    """what was sent to its waits, by step"""
    received: int = 0
    """how many values that is; in a head too"""
    waiting_for: tuple[str, ...] = ()
    """while its status is WAITING: the steps that wait; `not_before` says when it is resumed even if nothing is sent"""

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
