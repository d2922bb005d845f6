"""What a store is asked and what it answers. Protocols and records only: no store derives from anything here.

One record per run, found by its key; a run without a key uses its run id as key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..run import StepReport
from ..status import Status

__all__ = ["Busy", "Claim", "ClaimAnswer", "Claimed", "Finished", "Held", "Mismatch", "RunRecord", "Store"]


@dataclass(slots=True)
class RunRecord:
    """What a store knows of a run."""

    key: str
    run_id: str
    workflow: str
    fingerprint: str | None
    graph: str
    status: Status = Status.RUNNING
    held: bool = False
    generation: int = 0
    """rises each time a failed run releases the key"""
    fence: int = 0
    """rises with each owner"""
    started: float = 0.0
    """seconds since the epoch, by the store's clock"""
    finished: float | None = None
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """of the steps that are done, in order of completion"""
    values: Mapping[Any, Any] = field(default_factory=dict[Any, Any])
    """the context's values"""
    steps: Mapping[str, StepReport] = field(default_factory=dict[str, StepReport])
    undone: tuple[str, ...] = ()
    failed_step: str | None = None
    error: BaseException | None = None
    """what failed it, where this process still has it"""
    error_type: str | None = None
    error_message: str = ""
    carrier: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class Claim:
    """Please let me run this. `fingerprint`: None where nobody called, but a run is gone on with. `attached`: the run id of a run this caller waits for; if that one has ended meanwhile its
    outcome is the answer, whatever it is. `waits`: whether the caller will come back so."""

    key: str
    run_id: str
    workflow: str
    fingerprint: str | None
    graph: str
    carrier: Mapping[str, str]
    attached: str | None = None
    waits: bool = False


@dataclass(slots=True)
class Claimed:
    """The run is yours. `record` is given where it goes on with what an earlier owner had done."""

    generation: int
    fence: int
    record: RunRecord | None = None


@dataclass(slots=True)
class Finished:
    """The run has ended: this is its outcome."""

    record: RunRecord
    age: float
    """seconds since it started"""


@dataclass(slots=True)
class Busy:
    """Somebody is running it. Ask again after `retry_after` seconds."""

    run_id: str
    carrier: Mapping[str, str]
    age: float
    retry_after: float


@dataclass(slots=True)
class Mismatch:
    """The key was used with another workflow or other values."""

    run_id: str
    carrier: Mapping[str, str]
    age: float
    workflow: str


@dataclass(slots=True)
class Held:
    """The key is held until an operator decides."""

    run_id: str
    carrier: Mapping[str, str]
    age: float


ClaimAnswer = Claimed | Finished | Busy | Mismatch | Held


class Store(Protocol):
    """What an engine needs of a store; thread-safe. Every verb may raise a StoreError.

    `name`: one word for labels. `durable`: whether runs survive their process, so that every transition is worth
    writing down; `blocks`: whether a verb may wait for a disk or a network. Where `durable` is False, runs without a key are never told to the store unless something is left to decide.
    """

    name: str
    durable: bool
    blocks: bool

    def claim(self, claim: Claim, /) -> ClaimAnswer: ...
    def finish(self, record: RunRecord, /) -> None: ...
    def release(self, key: str, /) -> None: ...
    def unfinished(self) -> list[RunRecord]: ...
    def close(self) -> None: ...
