"""The store of the embedded default: a dict with a lock. Keeps live objects, forgets everything with its process."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

from ..errors import CorruptRecord, DefinitionError, RunNotFound, StoreError, safe_repr
from ..retry import Duration, seconds
from ..run import StepReport
from ..status import Status
from .base import (
    RELEASED,
    RESUMABLE,
    Busy,
    Checkpoint,
    Claim,
    ClaimAnswer,
    Claimed,
    DefinitionChanged,
    Ending,
    Finished,
    Held,
    Lease,
    Lost,
    Mismatch,
    RunRecord,
)
from .memory_run import LiveRun

__all__ = ["MemoryStore"]

_WEEK: Final = 7 * 24 * 3600.0
_RETRY_AFTER: Final = 0.05  # seconds; there is nothing to know how long a run without a limit takes
_FOREVER: Final = float("inf")
_AT_ONCE: Final = 1000  # runs that `unfinished` answers with


class MemoryStore:
    """Idempotency keys and finished runs in this process. Thread-safe; share one among engines as you like.

    Finished runs are kept for `retention` seconds, and at most `max_runs` of them, the latest; a key whose run was
    forgotten is new again. Runs in progress, held ones and those to go on with are always kept. `clock` answers
    monotonic seconds, `wall` seconds since the epoch.
    """

    name = "memory"
    durable = False
    blocks = False

    def __init__(
        self,
        *,
        retention: Duration = _WEEK,
        max_runs: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(max_runs, bool) or not isinstance(max_runs, int) or max_runs < 1:
            raise DefinitionError(
                f"MemoryStore(max_runs=) must be a whole number from 1 up, not {safe_repr(max_runs)}."
            )
        self.retention = seconds(retention, "MemoryStore(retention=)")
        self.max_runs = max_runs
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._runs: dict[str, LiveRun] = {}
        self._watched: set[str] = set()  # runs in progress that somebody waits for
        self._ended: OrderedDict[str, float] = OrderedDict()  # keys of ended runs that may be forgotten, oldest first

    # -- for engines ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Take the key, or tell who has it."""
        with self._lock:
            now = self._clock()
            if self._ended:
                self._forget_old(now)
            kept = self._runs.get(claim.key)
            if kept is None:
                return self._begin(claim, now, generation=0, fence=1)
            record, age = kept.record, now - kept.started
            status = record.status
            if kept.owner == claim.run_id:
                if status != Status.RUNNING:  # a late copy of a claim whose run is over begins nothing
                    return Finished(kept.seen(), age)
                self._renew(kept, now, claim.lease)
                return Claimed(record.generation, record.fence, kept.as_found(), age)
            if claim.attached == record.run_id and (record.held or kept.over):
                return Finished(kept.seen(), age)
            if status in RELEASED and not record.held:
                # Attached to a run that others have come after: theirs is the outcome by now. Or it is its own run, which
                # others have taken over and ended while its first answer was lost.
                if claim.attached is not None or claim.run_id == record.run_id:
                    return Finished(kept.seen(), age)
                return self._begin(claim, now, record.generation + 1, record.fence + 1)
            if claim.fingerprint is not None and record.fingerprint != claim.fingerprint:
                return Mismatch(record.run_id, record.carrier, age, record.workflow)
            if record.held:
                return Held(record.run_id, record.carrier, age)
            if status == Status.SUCCESS:
                return Finished(kept.seen(), age)
            if status in RESUMABLE or (status == Status.RUNNING and kept.expires <= now):
                return self._take_over(kept, claim, now)
            if status != Status.RUNNING:
                raise CorruptRecord(
                    f"the record of key {safe_repr(claim.key)} has the status {safe_repr(status)}, which means nothing: "
                    f"look at it with store.list_runs(), or give the key up with store.release({safe_repr(claim.key)})."
                )
            if claim.waits:
                self._watched.add(record.run_id)
            left = _RETRY_AFTER if kept.expires == _FOREVER else max(_RETRY_AFTER, kept.expires - now)
            return Busy(record.run_id, record.carrier, age, left)

    def _begin(self, claim: Claim, now: float, generation: int, fence: int) -> Claimed:
        self._ended.pop(claim.key, None)
        wall = self._wall()
        record = RunRecord(
            claim.key,
            claim.run_id,
            claim.workflow,
            claim.fingerprint,
            claim.graph,
            generation=generation,
            fence=fence,
            started=wall,
            expires=wall + claim.lease,
            values=dict(claim.values),
            carrier=dict(claim.carrier),
        )
        if claim.begins:
            record.seq = len(claim.begins)
            record.steps = {name: StepReport(Status.RUNNING, 1) for name in claim.begins}
            record.effects = claim.begins
        self._runs[claim.key] = LiveRun(record, claim.run_id, now, now + claim.lease)
        return Claimed(generation, fence)

    def _take_over(self, kept: LiveRun, claim: Claim, now: float) -> Claimed:
        record = kept.record
        if record.graph != claim.graph:
            raise DefinitionChanged.of(record, claim.key)
        kept.owner, kept.before = claim.run_id, kept.seen()
        # The decision stays until its new owner shows by a checkpoint or an ending that it has heard of it.
        kept.record = replace(record, status=Status.RUNNING, fence=record.fence + 1, finished=None)
        self._renew(kept, now, claim.lease)
        return Claimed(record.generation, kept.record.fence, kept.before, now - kept.started)

    def _renew(self, kept: LiveRun, now: float, lease: float) -> None:
        kept.expires = now + lease
        kept.record.expires = self._wall() + lease

    def checkpoint(self, checkpoint: Checkpoint, /) -> Lost | None:
        """Note what has changed in a run, and renew its lease."""
        with self._lock:
            kept = self._runs.get(checkpoint.key)
            if kept is None:
                return Lost(gone=True)
            record = kept.record
            if record.run_id != checkpoint.run_id or record.fence != checkpoint.fence:
                return Lost()
            if record.status == Status.RUNNING:
                kept.note(checkpoint)
                record.decision = None
                self._renew(kept, self._clock(), checkpoint.lease)
            return None

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[bool]:
        """Renew these leases for `lease` seconds from now; tells for each whether the run is still its owner's."""
        with self._lock:
            return [self._renewed(one, lease) for one in leases]

    def _renewed(self, one: Lease, lease: float) -> bool:
        kept = self._runs.get(one.key)
        if kept is None:
            return False
        record = kept.record
        if record.run_id != one.run_id or record.fence != one.fence or record.status != Status.RUNNING:
            return False
        self._renew(kept, self._clock(), lease)
        return True

    def finish(self, ending: Ending, /) -> Lost | None:
        """Write down how a run ended. Fence 0: nobody claimed it, or its owner was interrupted before it heard that its
        claim succeeded."""
        end = ending.record
        with self._lock:
            now = self._clock()
            kept = self._runs.get(end.key)
            if kept is None:
                if end.fence != 0:
                    return Lost(gone=True)
                known = replace(end, started=self._wall(), status=Status.RUNNING)
                kept = self._runs[end.key] = LiveRun(known, end.run_id, now, now)
            known = kept.record
            if known.run_id != end.run_id or (end.fence != known.fence and (end.fence != 0 or kept.before is not None)):
                return Lost()
            if known.status != Status.RUNNING:  # a late copy
                return None
            kept.end(ending, self._wall(), watched=end.run_id in self._watched)
            self._watched.discard(end.run_id)
            if not end.held and end.status not in RESUMABLE:
                self._ended[end.key] = now
            if self._ended:
                self._forget_old(now)
            return None

    def withdraw(self, claim: Claim, /) -> None:
        """Undo a claim whose answer never came, should it have been granted."""
        with self._lock:
            kept = self._runs.get(claim.key)
            if kept is None or kept.owner != claim.run_id or kept.record.status != Status.RUNNING:
                return
            if kept.before is None:
                self._free(kept)
            else:
                self._renew(kept, self._clock(), 0.0)

    def find(self, key: str, /) -> RunRecord | None:
        """The record under a key, or None."""
        with self._lock:
            kept = self._runs.get(key)
            return None if kept is None else kept.seen()

    def unfinished(self, workflows: Collection[str], /) -> list[RunRecord]:
        """The runs of these workflows to go on with that nobody goes on with; the oldest first, at most 1,000."""
        with self._lock:
            now = self._clock()
            found = [
                kept
                for kept in self._runs.values()
                if kept.record.workflow in workflows
                and not kept.record.held
                and (kept.record.status in RESUMABLE or kept.expired(now))
            ]
            found.sort(key=lambda kept: kept.started)
            return [kept.seen() for kept in found[:_AT_ONCE]]

    def _forget_old(self, now: float) -> None:
        oldest = now - self.retention
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended > oldest and len(self._ended) <= self.max_runs:
                return
            del self._ended[key], self._runs[key]

    # -- for operators -------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run; raises RunNotFound."""
        with self._lock:
            for kept in self._runs.values():
                if kept.record.run_id == run_id:
                    return kept.seen()
        raise RunNotFound(
            f"this store has no run {safe_repr(run_id)}: it is unknown, or was forgotten after its retention."
        )

    def list_runs(
        self, *, status: str | None = None, workflow: str | None = None, older_than: Duration | None = None
    ) -> list[RunRecord]:
        """The records with this status, of this workflow, started so many seconds ago. "held" counts as a status, and
        "expired": running, with an owner whose lease is over."""
        age = 0.0 if older_than is None else seconds(older_than, "list_runs(older_than=)")
        with self._lock:
            now = self._clock()
            return [
                kept.seen()
                for kept in self._runs.values()
                if (status is None or kept.counts_as(status, now))
                and (workflow is None or kept.record.workflow == workflow)
                and (older_than is None or now - kept.started >= age)
            ]

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Forget the run behind a key, so that the next call starts afresh.

        Raises RunNotFound for an unknown key, and StoreError for a run in progress, unless forced: then its owner is
        told at its next word to the store that the run is not its own any more.
        """
        with self._lock:
            self._free(self._known(key) if force else self._idle(key, "or release it with force=True"))

    def hold(self, key: str, /) -> None:
        """Refuse the key from now on, until `release`, `resume` or `undo`. Raises RunNotFound for an unknown key, and
        StoreError for a run in progress."""
        with self._lock:
            kept = self._idle(key)
            self._stop(kept, held=True)
            self._ended.pop(key, None)

    def resume(self, key: str, /) -> None:
        """Have whoever next calls with the key, or recovers, go on with its run: for one that is held, parked,
        incomplete or whose lease has run out. Raises RunNotFound for an unknown key, StoreError for any other run."""
        with self._lock:
            self._decide(key, "resume")

    def undo(self, key: str, /) -> None:
        """As `resume`, but the run is undone."""
        with self._lock:
            self._decide(key, "undo")

    def _decide(self, key: str, decision: str) -> None:
        kept = self._idle(key)
        record = kept.record
        if kept.over and not record.held:
            raise StoreError(
                f"key {safe_repr(key)} belongs to run {record.run_id}, which has ended with {record.status}: "
                f"there is nothing left to {decision}."
            )
        self._stop(kept, held=False, decision=decision)
        if kept.record.status not in RESUMABLE:
            kept.record.status = Status.PARKED
        self._ended.pop(key, None)

    def _stop(self, kept: LiveRun, *, held: bool, decision: str | None = None) -> None:
        """Put an operator's word in the place of an owner whose lease has run out, should there be one."""
        record = kept.record
        kept.record = replace(record, held=held, decision=decision, expires=None)
        if record.status == Status.RUNNING:
            kept.record.status, kept.record.fence = Status.PARKED, record.fence + 1

    def _free(self, kept: LiveRun) -> None:
        self._watched.discard(kept.record.run_id)
        kept.record = replace(
            kept.record,
            status=Status.FAILURE,
            held=False,
            decision=None,
            fence=kept.record.fence + 1,
            finished=self._wall(),
            expires=None,
        )
        self._ended[kept.record.key] = self._clock()
        self._ended.move_to_end(kept.record.key)

    def _known(self, key: str) -> LiveRun:
        kept = self._runs.get(key)
        if kept is None:
            raise RunNotFound(f"this store knows no key {safe_repr(key)}.")
        return kept

    def _idle(self, key: str, way_out: str = "") -> LiveRun:
        kept = self._known(key)
        if kept.record.status == Status.RUNNING and kept.expires > self._clock():
            ways = f"cancel it first, {way_out}" if way_out else "cancel it first"
            raise StoreError(f"key {safe_repr(key)} belongs to run {kept.record.run_id}, which is running: {ways}.")
        return kept

    def gc(self) -> int:
        """Forget what is past its retention now; answers how many runs are left."""
        with self._lock:
            self._forget_old(self._clock())
            return len(self._runs)

    def doctor(self) -> dict[str, str]:
        """What an operator should know of this store."""
        return {"store": self.name, "durability": "none: runs are forgotten with their process"}

    def close(self) -> None:
        """Nothing to close: the records stay readable."""
