"""The store of the embedded default: a dict with a lock. Keeps live objects, forgets everything with its process."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from ..errors import CorruptRecord, DefinitionError, RunNotFound, StoreError, shown
from ..retry import Duration, seconds
from ..status import Status
from .base import (
    RELEASED,
    TO_GO_ON,
    Busy,
    Claim,
    ClaimAnswer,
    Claimed,
    Ending,
    Finished,
    Held,
    Mismatch,
    RunRecord,
)

__all__ = ["MemoryStore"]

_WEEK: Final = 7 * 24 * 3600.0
_RETRY_AFTER: Final = 0.05  # seconds; there is nothing to know how long a stranger's run takes


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
            raise DefinitionError(f"MemoryStore(max_runs=) must be a whole number from 1 up, not {shown(max_runs)}.")
        self.retention = seconds(retention, "MemoryStore(retention=)")
        self.max_runs = max_runs
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._records: dict[str, RunRecord] = {}
        self._watched: set[str] = set()  # runs in progress that somebody waits for
        self._started: dict[str, float] = {}  # key -> monotonic seconds
        self._ended: OrderedDict[str, float] = OrderedDict()  # keys of ended runs that may be forgotten, oldest first

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Take the key, or tell who has it."""
        with self._lock:
            self._forget_old()
            record = self._records.get(claim.key)
            if record is None:
                return self._begin(claim, generation=0, fence=1)
            age = self._clock() - self._started[claim.key]
            if claim.attached == record.run_id and claim.key in self._ended:
                return Finished(record, age)
            if record.status in RELEASED and not record.held:
                if claim.attached is not None:  # to a run that others have come after: theirs is the outcome by now
                    return Finished(record, age)
                return self._begin(claim, record.generation + 1, record.fence + 1)
            if claim.fingerprint is not None and record.fingerprint != claim.fingerprint:
                return Mismatch(record.run_id, record.carrier, age, record.workflow)
            if record.held:
                return (
                    Finished(record, age)
                    if claim.attached == record.run_id
                    else Held(record.run_id, record.carrier, age)
                )
            if record.status == Status.SUCCESS:
                return Finished(record, age)
            if record.status in TO_GO_ON:
                if record.graph != claim.graph:
                    raise StoreError(
                        f"run {record.run_id} of {shown(record.workflow)} began with another definition of its steps: "
                        f"run it with that one, or give the key up with store.release({shown(claim.key)})."
                    )
                owned = replace(record, status=Status.RUNNING, fence=record.fence + 1)
                self._records[claim.key] = owned
                return Claimed(owned.generation, owned.fence, record)
            if record.status != Status.RUNNING:
                raise CorruptRecord(
                    f"the record of key {shown(claim.key)} has the status {shown(record.status)}, which means nothing: "
                    f"look at it with store.list_runs(), or give the key up with store.release({shown(claim.key)})."
                )
            if claim.waits:
                self._watched.add(record.run_id)
            return Busy(record.run_id, record.carrier, age, _RETRY_AFTER)

    def _begin(self, claim: Claim, generation: int, fence: int) -> Claimed:
        self._ended.pop(claim.key, None)
        self._records[claim.key] = RunRecord(
            claim.key,
            claim.run_id,
            claim.workflow,
            claim.fingerprint,
            claim.graph,
            generation=generation,
            fence=fence,
            started=self._wall(),
            carrier=dict(claim.carrier),
        )
        self._started[claim.key] = self._clock()
        return Claimed(generation, fence)

    def finish(self, ending: Ending, /) -> None:
        """Write down how a run ended; ignored where another owner has taken it over since. Fence 0: the owner was
        interrupted before it heard that its claim succeeded."""
        record = ending.record
        with self._lock:
            known = self._records.get(record.key)
            if known is not None and (known.run_id != record.run_id or record.fence not in {known.fence, 0}):
                return
            record.started = known.started if known is not None else self._wall()
            record.finished = self._wall()
            if record.run_id not in self._watched:
                record.error = None  # it holds on to every frame it came through
            self._watched.discard(record.run_id)
            self._records[record.key] = record
            self._started.setdefault(record.key, self._clock())
            if not record.held and record.status not in TO_GO_ON:
                self._ended[record.key] = self._clock()
                self._ended.move_to_end(record.key)
            self._forget_old()

    def unfinished(self, workflows: Collection[str], /) -> list[RunRecord]:
        """The runs of these workflows to go on with that nobody goes on with."""
        with self._lock:
            return [
                record
                for record in self._records.values()
                if record.status in TO_GO_ON and not record.held and record.workflow in workflows
            ]

    def _forget_old(self) -> None:
        oldest = self._clock() - self.retention
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended > oldest and len(self._ended) <= self.max_runs:
                return
            del self._ended[key], self._records[key], self._started[key]

    # -- for operators -------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run; raises RunNotFound."""
        with self._lock:
            for record in self._records.values():
                if record.run_id == run_id:
                    return record
        raise RunNotFound(
            f"this store has no run {shown(run_id)}: it is unknown, or was forgotten after its retention."
        )

    def list_runs(
        self, *, status: str | None = None, workflow: str | None = None, older_than: Duration | None = None
    ) -> list[RunRecord]:
        """The records with this status ("held" counts as one), of this workflow, started so many seconds ago."""
        oldest = None if older_than is None else self._clock() - seconds(older_than, "list_runs(older_than=)")
        with self._lock:
            return [
                record
                for key, record in self._records.items()
                if (status is None or record.status == status or (status == "held" and record.held))
                and (workflow is None or record.workflow == workflow)
                and (oldest is None or self._started[key] <= oldest)
            ]

    def release(self, key: str, /) -> None:
        """Forget the run behind a key, so that the next call starts afresh: for keys that are held or to go on with.

        Raises RunNotFound for an unknown key, StoreError for a run in progress.
        """
        with self._lock:
            record = self._known(key)
            if record.status == Status.RUNNING:
                raise StoreError(f"key {shown(key)} belongs to run {record.run_id}, which is running: cancel it first.")
            record.held = False
            record.status = Status.FAILURE
            self._ended[key] = self._clock()
            self._ended.move_to_end(key)

    def hold(self, key: str, /) -> None:
        """Refuse the key from now on until it is released. Raises as `release` does."""
        with self._lock:
            record = self._known(key)
            if record.status == Status.RUNNING:
                raise StoreError(f"key {shown(key)} belongs to run {record.run_id}, which is running: cancel it first.")
            record.held = True
            self._ended.pop(key, None)

    def _known(self, key: str) -> RunRecord:
        record = self._records.get(key)
        if record is None:
            raise RunNotFound(f"this store knows no key {shown(key)}.")
        return record

    def gc(self) -> int:
        """Forget what is past its retention now; answers how many runs are left."""
        with self._lock:
            self._forget_old()
            return len(self._records)

    def doctor(self) -> dict[str, str]:
        """What an operator should know of this store."""
        return {"store": self.name, "durability": "none: runs are forgotten with their process"}

    def close(self) -> None:
        """Nothing to close: the records stay readable."""
