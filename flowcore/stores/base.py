"""The interface of a store: its verbs, and the records that they take and return. No store inherits from these classes.

A store has one record for each run, under the run's key; a run without a key has its run id as key. The verbs for
engines, in the order in which a run uses them, are atomic:

| verb | when | returns |
|---|---|---|
| claim(Claim) | before anything else | Claimed, or a refusal: Finished, Busy, Mismatch, Held or OtherGraph |
| checkpoint(Checkpoint) | on a durable store, after each step and each undo | None, Renewal.CANCEL or UNDO, Behind or Lost |
| renew(leases, seconds) | on a durable store, every third of a lease, for all runs of an engine at once | a Renewal for each |
| finish(Ending) | at the end of the run, and when the run only waits | None, Behind, Lost, or Arrived |
| withdraw(Claim) | when the reply to a claim was lost | None |
| send(key, name, value) | at any time until the run is over, from any process | whether this value counts |
| find(key), head(key) | after Lost, and while a caller waits for another owner's run | the record, or None |
| list_resumable(workflows) | during recovery | heads of the runs that recovery may resume now |

Any of these calls may arrive twice, or late: a client that lost the reply repeats its call, and a network may deliver
the first copy after the second. Therefore a claim that its owner repeats is granted again, and the owner's other verbs
carry its fence. Each field that they write carries a number (`seq`), which only rises within the run; the highest
number wins.

A run is live while its status is QUEUED or RUNNING and its lease has not run out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from ..errors import StoreError
from ..status import Status
from .claims import Busy, Claim, ClaimAnswer, Claimed, Finished, Held, Mismatch, OtherGraph
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


CheckpointAnswer: TypeAlias = "Renewal | Behind | Lost | None"
"""None: recorded. CANCEL or UNDO: recorded, and an operator wants the run cancelled, or cancelled and undone."""


@dataclass(slots=True)
class Checkpoint:
    """The changes that an owner records of its run. Recording them also renews the lease, if `renews`."""

    key: str
    run_id: str
    fence: int
    lease: float
    steps: Mapping[str, StepRecord] = field(default_factory=empty)
    writes: Mapping[str, Write] = field(default_factory=empty)
    undoing: bool = False
    failed_step: str | None = None
    error: BaseException | None = None
    """with `undoing`: the error that failed the run"""
    base: int = 0
    """the highest `seq` that the store has acknowledged to this owner; a record with a lower one has lost writes"""
    heals: bool = False
    """the checkpoint has all that the owner knows of the run, and restores a record that has lost writes"""
    types: Mapping[str, Any] = field(default_factory=empty)
    """see Claim.types"""
    renews: bool = True
    """False: the lease was renewed a short while ago, and a store may leave it as it is, if that costs less"""


@dataclass(slots=True)
class Ending:
    """How an owner leaves its run: ended, or parked, incomplete or waiting.

    A durable store has most of `record` from earlier checkpoints. From the ending it takes `changes` and the fields of
    the run as a whole: status, held, undoing, undone, failed_step, error, reason, retries and waiting_for. A run that ends
    with the status FAILURE has nothing undone, and is not undoing any more, whatever `record` says. Fence 0 in
    `record` means that the owner has no reply to a claim for the run. `retry_in`: seconds until recovery may resume a
    parked, incomplete or waiting run.
    """

    record: RunRecord
    changes: Checkpoint | None = None
    retry_in: float = 0.0
    received: int = 0
    """if the run is WAITING from now on: how many of the values that were sent to it its owner has received"""


@dataclass(slots=True)
class Lease:
    """The lease of a run that its owner continues."""

    key: str
    run_id: str
    fence: int
    received: int = 0
    """how many of the values that were sent to the run its owner has received"""


@dataclass(slots=True)
class Arrived:
    """The run cannot be left waiting, because values were sent to it that its owner has not received, or because an
    operator has decided to cancel or undo it. Nothing was written."""


@dataclass(slots=True)
class Lost:
    """The run no longer belongs to this owner, because another owner has claimed it since, or an operator has taken it
    away. Nothing was written. `gone`: the store no longer has a record of the run."""

    gone: bool = False


@dataclass(slots=True)
class Behind:
    """The record is older than the last write that the store acknowledged to this owner, for example because a backup
    was restored, or a replica without that write was promoted. Nothing was written now."""

    seq: int
    """the highest `seq` in the record"""


class Renewal(Enum):
    """The result of renewing a lease."""

    OURS = "ours"
    LOST = "lost"
    CANCEL = "cancel"
    """renewed, and an operator wants the run cancelled"""
    UNDO = "undo"
    """renewed, and an operator wants the run cancelled and undone, even past its pivot"""
    SENT = "sent"
    """renewed, and values were sent to the run that its owner has not received"""


STOPS: Final[Mapping[str | None, Renewal]] = {"cancel": Renewal.CANCEL, "undo": Renewal.UNDO}
"""how an operator's decision is reported to the owner of the run"""


class Page(list[RunRecord]):
    """One page of a listing, in the order of the listing. `cursor`: the value of `after=` that returns the next page,
    or None on the last page."""

    __slots__ = ("cursor",)

    def __init__(self, records: Iterable[RunRecord] = (), cursor: str | None = None) -> None:
        super().__init__(records)
        self.cursor = cursor


class DefinitionChanged(StoreError):
    """The run began with another definition of its steps, so this definition cannot resume it. Nothing was changed."""


class Store(Protocol):
    """The verbs of a store, for engines and operators. Thread-safe. Every verb may raise a StoreError; StoreUnavailable
    means that the same call may succeed later. An async store has the same verbs as coroutines, and may be called from
    several loops.

    `name`: one word for labels. `namespace`: a text on which the step keys of its runs depend, unless the engine has a
    namespace of its own; a store without this attribute has an empty namespace. `durable`: whether runs survive their
    process, so that every transition is recorded. `blocks`: whether a verb may wait for a disk or a network. If
    `durable` is False, an engine does not send a run without a key to the store, unless the run ends with something
    left to decide.

    A head is a record without values and without the fields of single steps (steps, results, effects, carriers, sent).
    """

    name: str
    durable: bool
    blocks: bool

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Claim a key for a run, or return the reason for a refusal. The rules are the same for every store: see
        `decide.py`. The same claim sent again returns the same."""
        ...

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        """Record changes to a run, and renew its lease if `renews`. Returns `Lost` if the run no longer belongs to this
        owner, and `Behind` if its record lacks earlier writes. The same checkpoint sent again changes nothing."""
        ...

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        """Renew leases for `lease` seconds from now. Returns a Renewal for each of them, in the same order."""
        ...

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        """Record how a run ended, or that it only waits, and free, keep or hold its key accordingly. Returns None if
        this was recorded."""
        ...

    def withdraw(self, claim: Claim, /) -> None:
        """Take back a claim whose run has not begun: its key is free again, or the earlier run that it resumed has its
        status from before, and the next claim may resume it at once."""
        ...

    def find(self, key: str, /) -> RunRecord | None:
        """The whole record under a key, or None. Raises CorruptRecord for a record that flowcore did not write."""
        ...

    def head(self, key: str, /) -> RunRecord | None:
        """The head of the record under a key, or None. It is cheap, for callers that poll."""
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
        """Send a value to the wait `name` of the run with this key. The value is kept until the run reaches that wait.
        Returns True if this value counts, and False if an earlier value counts instead. `id`: a name for this value;
        sending it again under the same name returns True again. `carrier`: trace context of the sender.

        Raises RunNotFound for an unknown key; SendRefused for a run that is over or being undone, that has no such
        wait, or is past it; NotSerializable for a value that cannot be stored.
        """
        ...

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """Heads of the runs of these workflows that recovery may resume now, the earliest due first."""
        ...

    def get_run(self, run_id: str, /) -> RunRecord:
        """The whole record of a run. Raises RunNotFound, also for a run whose key a later run has."""
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
        """Heads of runs, newest first. An unreadable record is listed with its `problem`. `text`: a part of the keys of
        the runs; the store has no index for it, so it reads the keys of all runs that match otherwise, until the page
        is full."""
        ...

    def counts(self) -> dict[tuple[str, str], int]:
        """The number of runs that are held or not over, by (workflow, status). Each run is counted once: as held, else
        as expired, else by its status."""
        ...

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Give up a run, so that the next call with its key starts afresh. Its record is kept, with the users' data,
        until its retention is over, or until `erase`."""
        ...

    def erase(self, key: str, /, *, force: bool = False) -> None:
        """Delete at once the users' data in the run of a key, and in earlier runs with that key: values, results,
        errors, carriers, reasons and the fingerprint. Key, run id, workflow, graph, status and times stay until the
        retention is over.

        Erasing frees no key: another call with the key of a successful run is a Mismatch until `release`. Raises
        RunNotFound for an unknown key, and StoreError for a run that is held or not over. With `force`, such a run is
        first given up, as by `release`.
        """
        ...

    def hold(self, key: str, /, reason: str | None = None) -> None:
        """Refuse calls with a key until `resume`, `undo` or `release`. This verb and the next three raise RunNotFound
        for an unknown key, and StoreError for a run to which they do not apply. `reason` is kept in the record."""
        ...

    def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next caller, or recovery, continue a run that is held, parked, incomplete or expired, or that failed
        with nothing undone."""
        ...

    def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next caller, or recovery, undo a run, even past its pivot. If the run has a live owner, that owner
        cancels and undoes it."""
        ...

    def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run in any process. A live owner learns of it with its next renewal or checkpoint, and a run that ends
        before is not cancelled; a run without a live owner is cancelled by the next caller or by recovery. A run past its
        pivot is left incomplete."""
        ...

    def gc(self) -> int:
        """Delete the ended runs whose retention is over, and return how many runs are left."""
        ...

    def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """A report for operators, by name: what can make this store lose runs, and how many runs are not over. Counts
        and sizes are numbers. `deep`: check all that is stored, which may take as long as reading it."""
        ...

    def close(self) -> None:
        """Close the connections and files that the store has opened."""
        ...


RELEASED: Final = frozenset({Status.FAILURE, Status.COMPENSATED})
"""statuses after which the key is free again: everything was undone, so the next call starts afresh"""
RESUMABLE: Final = frozenset({Status.INCOMPLETE, Status.PARKED})
"""statuses after which the next call resumes the same run"""
LIVE: Final = frozenset({Status.QUEUED, Status.RUNNING})
"""statuses in which a run has an owner, dead or alive"""
