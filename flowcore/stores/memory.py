"""The store of the embedded default: a dict with a lock. It keeps live objects, and loses everything with its
process."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakMethod

from ..errors import DefinitionError, safe_repr
from ..retry import Duration, flag, seconds
from ..run import Sent, names_of_sent
from ..status import Status
from .arguments import check_clock, check_key
from .base import (
    RESUMABLE,
    STOPS,
    Arrived,
    Behind,
    Busy,
    Checkpoint,
    CheckpointAnswer,
    Claim,
    ClaimAnswer,
    Claimed,
    Ending,
    Finished,
    Held,
    Lease,
    Lost,
    Mismatch,
    OtherGraph,
    Renewal,
    RunRecord,
)
from .codec import Codec
from .decide import Verdict, decide, decide_send
from .memory_operating import Operating
from .memory_run import LiveRun
from .strict import Strict

if TYPE_CHECKING:
    from ..step import Step

__all__ = ["MemoryStore"]

_WEEK: Final = 7 * 24 * 3600.0


class MemoryStore(Operating):
    """Keeps idempotency keys and finished runs in this process. Thread-safe; several engines may share one.

    Finished runs are kept for `retention` seconds, and only the latest `max_runs` of them; the key of a forgotten run
    is new again. Runs in progress, held runs and runs that can be resumed are always kept. `clock` returns monotonic
    seconds, `wall` seconds since the epoch. A forked child has a copy without its parent's runs in progress.

    `strict` is for unit tests. The store then behaves like a durable one: each value passes through `codec` (None:
    JsonCodec), a value that the codec cannot store raises NotSerializable, and a step that changes the result of
    another step in place fails.
    """

    namespace = ""
    durable: bool = False
    blocks = False

    def __init__(
        self,
        *,
        retention: Duration = _WEEK,
        max_runs: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        strict: bool = False,
        codec: Codec | None = None,
    ) -> None:
        if isinstance(max_runs, bool) or not isinstance(max_runs, int) or max_runs < 1:
            raise DefinitionError(
                f"MemoryStore(max_runs=) must be a whole number from 1 up, not {safe_repr(max_runs)}."
            )
        check_clock(clock, "MemoryStore(clock=)")
        check_clock(wall, "MemoryStore(wall=)")
        super().__init__(seconds(retention, "MemoryStore(retention=)"), max_runs, clock, wall)
        checked = Strict(codec)  # refuses what is not a codec, also where the store does not use it
        self._strict = checked if flag(strict, "MemoryStore(strict=)") else None
        self._encoding = None if self._strict is None else self._strict.encoding
        self.strict = strict
        self.durable = self.durable or strict
        self._methods: list[WeakMethod[Callable[[str, str, Sent], Sent | None]]] = []

    # -- for engines ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Claim the key, or return the reason for a refusal: see Store.claim."""
        if self._strict is not None:
            claim = self._strict.claim(claim)
        with self._lock:
            now = self._clock()
            if self._ended:
                self._forget_old(now)
            run = self._runs.get(claim.key)
            if run is None:
                return self._begin(claim, now, generation=0, fence=1)
            record, age = run.record, now - run.started
            left = (run.due if record.status == Status.WAITING else run.expires) - now
            match decide(record, run.owner, left, claim):
                case Verdict.AGAIN:
                    self._renew(run, now, claim.lease)
                    return Claimed(record.generation, record.fence, run.as_found(), age, self._wall())
                case Verdict.BEGIN_QUEUED:
                    run.begin_queued(claim)
                    self._renew(run, now, claim.lease)
                    return Claimed(record.generation, record.fence, None, age, self._wall())
                case Verdict.BEGIN | Verdict.BEGIN_ANEW:
                    return self._begin(claim, now, record.generation + 1, record.fence + 1)
                case Verdict.RESUME:
                    return self._take_over(run, claim, now, record.takeovers)
                case Verdict.TAKE_OVER:
                    return self._take_over(run, claim, now, record.takeovers + 1)
                case Verdict.FINISHED:
                    return Finished(self._copied(run.seen(), claim), age)
                case Verdict.MISMATCH:
                    return Mismatch(record.run_id, record.carrier, age, record.workflow, record.fingerprint is None)
                case Verdict.HELD:
                    return Held(record.run_id, record.carrier, age)
                case Verdict.OTHER_GRAPH:
                    return OtherGraph(record.run_id, record.graph)
                case Verdict.BUSY:
                    if claim.waits:
                        self._watched.add(record.run_id)
                    return Busy(record.run_id, record.carrier, age, left, record.waiting_for, record.not_before)

    def _begin(self, claim: Claim, now: float, generation: int, fence: int) -> Claimed:
        self._ended.pop(claim.key, None)
        self._runs.pop(claim.key, None)  # so that the newest run comes last
        self._runs[claim.key] = LiveRun.begun(next(self._numbers), claim, now, self._wall(), generation, fence)
        return Claimed(generation, fence, now=self._wall())

    def _take_over(self, run: LiveRun, claim: Claim, now: float, takeovers: int) -> Claimed:
        wall = self._wall()
        found = run.take_over(claim, wall, takeovers)
        self._renew(run, now, claim.lease)
        return Claimed(found.generation, run.record.fence, self._copied(found, claim), now - run.started, wall)

    def _copied(self, record: RunRecord, claim: Claim) -> RunRecord:
        """The record for a caller. A strict store copies its values, so that the caller may change them."""
        return record if self._strict is None else self._strict.record(record, claim.types)

    def _renew(self, run: LiveRun, now: float, lease: float) -> None:
        run.expires = now + lease
        run.record.expires = self._wall() + lease

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        """Record changes to a run, and renew its lease if it must: see Store.checkpoint."""
        if self._strict is not None:
            checkpoint = self._strict.checkpoint(checkpoint)
        with self._lock:
            run = self._runs.get(checkpoint.key)
            if run is None:
                return Lost(gone=True)
            record = run.record
            if record.run_id != checkpoint.run_id or record.fence != checkpoint.fence:
                return Lost()
            if not run.live:  # a late copy of a checkpoint changes nothing
                return None
            if record.seq < checkpoint.base and not checkpoint.heals:
                return Behind(record.seq)
            run.note(checkpoint)
            if checkpoint.renews:
                self._renew(run, self._clock(), checkpoint.lease)
            order = None if checkpoint.undoing else STOPS.get(record.decision)
            if order is None:
                record.decision = None
            return order

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        """Renew these leases for `lease` seconds from now. Returns for each whether the run still belongs to its
        owner."""
        with self._lock:
            return [self._renewed(one, lease) for one in leases]

    def _renewed(self, one: Lease, lease: float) -> Renewal:
        run = self._runs.get(one.key)
        if run is None or not run.live or run.record.run_id != one.run_id or run.record.fence != one.fence:
            return Renewal.LOST
        self._renew(run, self._clock(), lease)
        order = STOPS.get(run.record.decision)
        return order or (Renewal.SENT if run.record.received > one.received else Renewal.OURS)

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        """Record how a run ended, or that it only waits: see Store.finish. Fence 0: the run was never claimed, or its
        owner was interrupted before the reply to its claim arrived."""
        if self._strict is not None:
            ending = self._strict.ending(ending)
        end = ending.record
        with self._lock:
            now = self._clock()
            run = self._runs.get(end.key)
            if run is None:
                if end.fence != 0:
                    return Lost(gone=True)
                known = replace(end, started=self._wall(), status=Status.RUNNING)
                run = self._runs[end.key] = LiveRun(next(self._numbers), known, end.run_id, now, now)
            known = run.record
            if known.run_id != end.run_id or (end.fence != known.fence and (end.fence != 0 or run.before is not None)):
                return Lost()
            if not run.live:  # a late copy of an ending changes nothing
                return None
            changes = ending.changes
            if changes is not None and known.seq < changes.base and not changes.heals:
                return Behind(known.seq)
            arrived = known.received > ending.received or known.decision in STOPS
            if end.status == Status.WAITING and arrived:
                return Arrived()
            wall = self._wall()
            run.end(ending, wall, watched=end.run_id in self._watched)
            self._watched.discard(end.run_id)
            if end.status in RESUMABLE or end.status == Status.WAITING:
                run.due = now + ending.retry_in
                known.not_before = wall + ending.retry_in if ending.retry_in > 0 else None
            elif not end.held:
                self._ended[end.key] = now
            if self._ended:
                self._forget_old(now)
            return None

    def withdraw(self, claim: Claim, /) -> None:
        """Take back a claim whose reply was lost, if it was granted."""
        with self._lock:
            run = self._runs.get(claim.key)
            if run is None or run.owner != claim.run_id or not run.live:
                return
            if run.before is None:
                self._free(run)
            else:
                self._renew(run, self._clock(), 0.0)
                run.give_back(self._clock(), self._wall())

    def send(
        self,
        key: str,
        name: Step[Any] | str,
        value: Any,
        /,
        *,
        id: str | None = None,  # noqa: A002 - the word for it
        carrier: Mapping[str, str] | None = None,
    ) -> bool:
        """Send a value to the wait `name` of the run with this key: see Store.send. Every engine of this store is
        notified at once."""
        name, id = names_of_sent(name, id, carrier)  # noqa: A001
        with self._lock:
            run = self._known(key)
            record = run.record
            if self._strict is not None:
                value = self._strict.sent(value, name, record.run_id)
            sent = Sent(value, self._wall(), socket.gethostname(), os.getpid(), id, dict(carrier or {}))
            known = record.sent.get(name)
            known_id, step = None if known is None else known.id, run.step_status(name)
            counts = decide_send(record, name, id, known=known is not None, known_id=known_id, step=step)
            if counts is not None:
                return counts
            replies = [first for one in self._listeners if (first := one(key, name, sent)) is not None]
            if replies and replies[0] is not sent:  # a run in memory may know of a value that its record lacks
                return id is not None and replies[0].id == id
            run.receive(name, sent, self._clock(), self._wall())
            return True

    def listen(self, listener: Callable[[str, str, Sent], Sent | None]) -> None:
        """Call `listener`, a method of an engine, with key, step and value whenever a value is sent. It returns the
        value that counts for the run, or None if its engine does not have the run. The store keeps only a weak
        reference to the engine."""
        with self._lock:
            self._methods = [method for method in self._methods if method() is not None]
            self._methods.append(WeakMethod(listener))

    @property
    def _listeners(self) -> list[Callable[[str, str, Sent], Sent | None]]:
        return [listener for method in self._methods if (listener := method()) is not None]

    def find(self, key: str, /) -> RunRecord | None:
        """The record under a key, or None."""
        check_key(key)
        with self._lock:
            run = self._runs.get(key)
            return None if run is None else run.seen()

    def head(self, key: str, /) -> RunRecord | None:
        """The head of the record under a key, or None: it has no values and no fields of single steps."""
        check_key(key)
        with self._lock:
            run = self._runs.get(key)
            return None if run is None else run.head()
