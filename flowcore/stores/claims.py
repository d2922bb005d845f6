"""The claim of a key for a run, and what a store replies to it. The rules are in `decide.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .records import Owner, RunRecord, empty

__all__ = ["Busy", "Claim", "ClaimAnswer", "Claimed", "Finished", "Held", "Mismatch", "OtherGraph"]


@dataclass(slots=True)
class Claim:
    """The request to own the run of a key.

    `run_id` is drawn anew for each claim and identifies it: if the owner that the claim made sends it again, it is
    granted again. `fingerprint`: None when recovery resumes a run. `values`: the initial values. `lease`: seconds until
    other owners may take the run over, unless the lease is renewed. `begins`: the steps whose start is recorded if the
    claim begins a run. `graph`: the step graph of the definition, which is recorded. `resumes`: the recorded graph, if
    the engine has checked that its own graph contains it; a run is resumed only if its record has `graph` or `resumes`,
    and its record then has `graph`. `queued`: record the run as QUEUED; the same claim without it, with the same run
    id, begins the run. `once`: return the outcome of an earlier run even if that run failed; its key does not become
    free while its record is kept. `deadline`: seconds that the run may take, counted from its first claim.
    `own_deadline`: the caller gave the deadline, so that it holds for a run that is resumed too. A store whose runs are
    driven by their engines has no use for this. `attached`: the run id of a run for which this caller waits; if that
    run has ended in the meantime, the claim returns its outcome, whatever it is. `waits`: whether the caller will send
    the claim again with `attached`.
    """

    key: str
    run_id: str
    workflow: str
    fingerprint: str | None = field(repr=False)
    graph: str = field(repr=False)
    carrier: Mapping[str, str] = field(repr=False)
    values: Mapping[Any, Any] = field(default_factory=empty, repr=False)
    lease: float = float("inf")
    begins: tuple[str, ...] = ()
    attached: str | None = None
    waits: bool = False
    owner: Owner | None = None
    resumes: str | None = None
    queued: bool = False
    once: bool = False
    deadline: float | None = None
    own_deadline: bool = False
    types: Mapping[str, Any] = field(default_factory=empty)
    """annotations for the codec: "s:a" has that of the result of step `a`, "w:b" that of the context's key `b`"""


@dataclass(slots=True)
class Claimed:
    """The claim is granted. `record`: the run as it was recorded before this claim, or None if the claim begins the
    run. Its status, owner, expiry and decision are those from before the claim; its `takeovers` include this one.
    `age`: seconds since the run began. `now`: when the claim was granted, in seconds since the epoch by the store's
    clock; None if that is the clock of every process that uses the store."""

    generation: int
    fence: int
    record: RunRecord | None = None
    age: float = 0.0
    now: float | None = field(default=None, compare=False)


@dataclass(slots=True)
class Finished:
    """The run of the key has ended. `record` has its outcome."""

    record: RunRecord
    age: float
    """seconds since the run began"""


@dataclass(slots=True)
class Busy:
    """The run of the key is live, or it waits and is not due yet."""

    run_id: str
    carrier: Mapping[str, str]
    age: float
    lease_left: float
    """seconds until its owner's lease ends, or until a waiting run is due by itself; infinite without a limit"""
    waiting_for: tuple[str, ...] = ()
    """the steps for which a waiting run waits"""
    due: float | None = None
    """`not_before` of a waiting run"""


@dataclass(slots=True)
class OtherGraph:
    """The run was started with a step graph that is neither `graph` nor `resumes` of the claim. Nothing was changed."""

    run_id: str
    graph: str
    """the recorded graph"""


@dataclass(slots=True)
class Mismatch:
    """The key was used with another workflow or other initial values."""

    run_id: str
    carrier: Mapping[str, str]
    age: float
    workflow: str
    erased: bool = False
    """whether the recorded values have been erased, so that nothing can be compared with them"""


@dataclass(slots=True)
class Held:
    """The key is held until an operator decides."""

    run_id: str
    carrier: Mapping[str, str]
    age: float


ClaimAnswer = Claimed | Finished | Busy | Mismatch | Held | OtherGraph
