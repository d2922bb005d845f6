"""What a store is asked and what it returns. Protocols and records only: no store derives from anything here.

One record per run, found by its key; a run without a key uses its run id as key. An engine's verbs, in the order of a
run, each one atomic:

| verb | when | returns |
|---|---|---|
| claim(Claim) | before anything else | Claimed, or why not: Finished, Busy, Mismatch, Held, OtherGraph |
| checkpoint(Checkpoint) | on a durable store, after each step and each undo | None, Renewal.CANCEL or UNDO, Behind or Lost |
| renew(leases, seconds) | on a durable store, every third of a lease, for all runs of an engine at once | a Renewal for each |
| finish(Ending) | at the end, and where the run only waits | None, Behind, Lost, or Arrived |
| withdraw(Claim) | where the reply to a claim was lost | None |
| send(key, name, value) | by anyone, while the run is not over | whether this value counts |
| find(key), head(key) | after Lost, and by callers that wait for another owner's run | the record, or None |
| list_resumable(workflows) | to recover | heads of the runs that recovery may resume now |

All of them may be sent twice, and late: a client whose reply was lost sends the same again, and a network may deliver
the first copy after the second. So a claim that its owner repeats is granted again, all other verbs carry the owner's
fence, and each field that they write has a number that only rises within the run (`seq`): the highest wins.

A run is live while its status is QUEUED or RUNNING and its lease has not run out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from ..errors import StoreError, safe_repr
from ..status import Status
from .records import Owner, RunRecord, StepRecord, Write, empty

if TYPE_CHECKING:
    from ..retry import Duration

__all__ = [
    "LIVE",
    "RELEASED",
    "RESUMABLE",
    "STOPS",
    "Arrived",
    "Behind",
    "Busy",
    "Checkpoint",
    "CheckpointAnswer",
    "Claim",
    "ClaimAnswer",
    "Claimed",
    "DefinitionChanged",
    "Ending",
    "Finished",
    "Held",
    "Lease",
    "Lost",
    "Mismatch",
    "OtherGraph",
    "Owner",
    "Page",
    "Renewal",
    "RunRecord",
    "StepRecord",
    "Store",
    "Write",
]


@dataclass(slots=True)
class Claim:
    """The request to own the run of a key.

    `run_id` is drawn anew for each claim and names it: the same claim again, from the owner that it made, is granted
    again. `fingerprint`: None where recovery resumes a run. `values`: the initial ones. `lease`: seconds until others
    may take the run over, unless it is renewed. `begins`: steps whose start is recorded when the claim begins a run.
    `graph`: the definition's graph, recorded. `resumes`: the recorded graph, where the engine has checked
    that its own contains it; a run is resumed only if its record has `graph` or `resumes`, and then has `graph`.
    `queued`: record the run as QUEUED; the same claim without it, from the same run id, begins the run. `once`: an
    earlier run that failed is the answer too; the key is never free again while its record is kept. `deadline`: seconds
    that the run may take, counted from its first claim. `attached`: the run id of a run this caller waits for; if that
    one has ended meanwhile the claim returns its outcome, whatever it is. `waits`: whether the caller will send the claim
    again with `attached`.
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
    types: Mapping[str, Any] = field(default_factory=empty)
    """annotations for the codec: under "s:a" of the result of step `a`, under "w:b" of the context's key `b`"""


@dataclass(slots=True)
class Claimed:
    """The claim is granted. `record` is given where the run was recorded before: its status, owner, expiry and decision are
    those from before this claim, its `takeovers` counts this one too. `age`: seconds since the run began."""

    generation: int
    fence: int
    record: RunRecord | None = None
    age: float = 0.0


@dataclass(slots=True)
class Finished:
    """The run has ended: this is its outcome."""

    record: RunRecord
    age: float
    """seconds since it started"""


@dataclass(slots=True)
class Busy:
    """The run is live."""

    run_id: str
    carrier: Mapping[str, str]
    age: float
    lease_left: float
    """seconds until its owner's lease ends, or until a waiting run is due by itself; infinite without a limit"""
    waiting_for: tuple[str, ...] = ()
    """of a waiting run: the steps that wait"""
    due: float | None = None
    """of a waiting run: its `not_before`"""


@dataclass(slots=True)
class OtherGraph:
    """The run was started with another graph than `graph` and `resumes` of the claim. Nothing was changed."""

    run_id: str
    graph: str
    """the recorded one"""


@dataclass(slots=True)
class Mismatch:
    """The key was used with another workflow or other values."""

    run_id: str
    carrier: Mapping[str, str]
    age: float
    workflow: str
    erased: bool = False
    """what it was used with has been erased"""


@dataclass(slots=True)
class Held:
    """The key is held until an operator decides."""

    run_id: str
    carrier: Mapping[str, str]
    age: float


ClaimAnswer = Claimed | Finished | Busy | Mismatch | Held | OtherGraph


CheckpointAnswer: TypeAlias = "Renewal | Behind | Lost | None"
"""None: written. Renewal.CANCEL: written, and an operator wants the run cancelled; Renewal.UNDO: and undone."""


@dataclass(slots=True)
class Checkpoint:
    """What has changed in a run of ours. It renews the lease as well."""

    key: str
    run_id: str
    fence: int
    lease: float
    steps: Mapping[str, StepRecord] = field(default_factory=empty)
    writes: Mapping[str, Write] = field(default_factory=empty)
    undoing: bool = False
    failed_step: str | None = None
    error: BaseException | None = None
    """with `undoing`: what failed the run"""
    base: int = 0
    """the highest `seq` that the store has acknowledged to this owner: a record that is behind it has gone back in time"""
    heals: bool = False
    """it holds all that the owner knows of the run, and brings a record that went back up to date"""
    types: Mapping[str, Any] = field(default_factory=empty)
    """as in Claim"""


@dataclass(slots=True)
class Ending:
    """How a run of ours ended. A durable store has most of `record` from its checkpoints: of it, it takes what is not
    of single steps (status, held, undone, failed_step, error, reason, retries), and `changes`. Fence 0 in `record`: its
    store was never asked for a claim. `retry_in`: seconds until recovery may resume a parked, incomplete or waiting run."""

    record: RunRecord
    changes: Checkpoint | None = None
    retry_in: float = 0.0
    received: int = 0
    """of a run that is WAITING from now on: how many of the values that were sent to it its owner knows"""


@dataclass(slots=True)
class Lease:
    """A run of ours that goes on."""

    key: str
    run_id: str
    fence: int
    received: int = 0
    """how many of the values that were sent to it its owner knows"""


@dataclass(slots=True)
class Arrived:
    """The run cannot wait: values were sent to it that its owner does not know, or it is to be cancelled. Nothing was
    written."""


@dataclass(slots=True)
class Lost:
    """The run is not ours any more, and nothing was written: another owner has it, or has had it. `gone`: the store has
    lost the record."""

    gone: bool = False


@dataclass(slots=True)
class Behind:
    """The record has gone back in time: it lacks what this owner knows to have been written. Nothing was written now."""

    seq: int
    """the highest number that the record has"""


class Renewal(Enum):
    """What renewing a lease comes to."""

    OURS = "ours"
    LOST = "lost"
    CANCEL = "cancel"
    """renewed, and an operator wants the run cancelled"""
    UNDO = "undo"
    """renewed, and an operator wants the run cancelled and undone, past its pivot too"""
    SENT = "sent"
    """renewed, and values were sent to the run that its owner does not know"""


STOPS: Final[Mapping[str | None, Renewal]] = {"cancel": Renewal.CANCEL, "undo": Renewal.UNDO}
"""what the owner of a run hears of an operator's decision"""


class Page(list[RunRecord]):
    """Some records of a listing, in its order. `cursor`: what `after=` takes for the next page; None at the end."""

    __slots__ = ("cursor",)

    def __init__(self, records: Iterable[RunRecord] = (), cursor: str | None = None) -> None:
        super().__init__(records)
        self.cursor = cursor


class DefinitionChanged(StoreError):
    """A run cannot be resumed by this definition of its steps: it began with another. Nothing was changed."""

    @classmethod
    def of(cls, record: RunRecord, key: str) -> DefinitionChanged:
        return cls(
            f"run {record.run_id} of {safe_repr(record.workflow)} began with another definition of its steps: "
            f"run it with that one, or give its key up with store.release(error.key).",
            key=key,
        )


class Store(Protocol):
    """What an engine and an operator need of a store; thread-safe. Every verb may raise a StoreError; StoreUnavailable means
    that the same call may succeed later. An async store has the same verbs as coroutines, and may be called from several
    loops.

    `name`: one word for labels. `namespace`: what the step keys of its runs depend on, unless the engine has one of its own
    (an engine takes a store without it for one with the empty one). `durable`: whether runs survive their process, so that
    every transition is worth writing down; `blocks`: whether a verb may wait for a disk or a network. Where `durable` is
    False, runs without a key are never sent to the store unless something is left to decide.

    A head is a record without what is of single steps (steps, results, effects, carriers) and without values.
    """

    name: str
    durable: bool
    blocks: bool

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Take a key for a run, or return who has it. What is returned when is decided in `decide.py`, for every store. Sent
        again for the same run, it returns the same."""
        ...

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        """Record what has changed in a run of ours, and renew its lease; `Lost` where it is not ours any more, `Behind` where
        the record has gone back in time. Sent again, it changes nothing."""
        ...

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        """Renew leases for `lease` seconds from now, and return of each whether its run is still ours."""
        ...

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        """Record how a run of ours ended, or that it only waits, and free, keep or hold its key accordingly; None: recorded."""
        ...

    def withdraw(self, claim: Claim, /) -> None:
        """Forget a claim whose run has not begun, so that its key is as it was before."""
        ...

    def find(self, key: str, /) -> RunRecord | None:
        """The whole record under a key, or None. Raises CorruptRecord for one that flowcore cannot have written."""
        ...

    def head(self, key: str, /) -> RunRecord | None:
        """The head under a key, or None: cheap, for callers that poll."""
        ...

    def send(
        self,
        key: str,
        name: str,
        value: Any,
        /,
        *,
        id: str | None = None,  # noqa: A002 - the word for it
        carrier: Mapping[str, str] | None = None,
    ) -> bool:
        """Send a value to the wait `name` of the run with a key, which keeps it until it comes to that wait. True: it counts.
        False: another value was sent before, and counts. `id`: a name for this value; the same again is True again.
        `carrier`: trace context of the sender.

        Raises RunNotFound for an unknown key; SendRefused for a run that is over or being undone, that has no such wait, or
        is past it; NotSerializable for a value that cannot be stored.
        """
        ...

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """Heads of the runs of these workflows that recovery may resume now, the oldest due first."""
        ...

    def get_run(self, run_id: str, /) -> RunRecord:
        """The whole record of a run, also where its key has another one by now; raises RunNotFound."""
        ...

    def list_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """Heads of runs, newest first. An unreadable record is listed with its `problem`."""
        ...

    def counts(self) -> dict[tuple[str, str], int]:
        """(workflow, status) -> how many runs that are not over, each counted once: as held, else as expired, else by its
        status."""
        ...

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Give a run up, so that the next call with its key starts afresh. Its record, with values, results and texts, stays
        until its retention is over, or until `erase`."""
        ...

    def erase(self, key: str, /, *, force: bool = False) -> None:
        """Forget at once what users put into the run of a key, and into the runs before it: values, results, errors, carriers,
        reasons and the fingerprint. What stays until its retention is over: key, run id, workflow, graph, status and times.

        A key that is used up stays used up: another call with it is a Mismatch until `release`. Raises RunNotFound for an
        unknown key; StoreError for a run that is not over or is held, unless forced: then it is given up first, as by
        `release`.
        """
        ...

    def hold(self, key: str, /, reason: str | None = None) -> None:
        """Refuse a key until `resume`, `undo` or `release`. This and the next three raise RunNotFound for an unknown key, and
        StoreError for a run that they cannot be meant for; `reason` is kept in the record."""
        ...

    def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next caller, or recovery, continue a run that is held, parked, incomplete, expired, or failed with nothing
        undone."""
        ...

    def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next caller, or recovery, undo a run, past its pivot too; the owner of a running one cancels it first, and undoes
        it."""
        ...

    def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run, whichever process it is in: its owner notices with its next renewal or checkpoint, or else the next caller
        or recovery. Past its pivot it is left incomplete."""
        ...

    def gc(self) -> int:
        """Forget the ended runs that are past their retention now, and return how many are left."""
        ...

    def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """What of this store can lose runs, and how many runs wait, by name; numbers are numbers. `deep`: check all that is
        stored, which may take as long as reading it."""
        ...

    def close(self) -> None:
        """Close the connections and files that the store has opened."""
        ...


RELEASED: Final = frozenset({Status.FAILURE, Status.COMPENSATED})
"""outcomes after which the key is free again: everything was undone, so the next call starts afresh"""
RESUMABLE: Final = frozenset({Status.INCOMPLETE, Status.PARKED})
"""outcomes after which the next call resumes the same run"""
LIVE: Final = frozenset({Status.QUEUED, Status.RUNNING})
"""while it has one of these, a run has an owner, dead or alive"""
