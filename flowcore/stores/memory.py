"""The store of the embedded default: a dict with a lock. Keeps live objects, forgets everything with its process."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from weakref import WeakMethod

from ..errors import DefinitionError, RunNotFound, hashed_key, safe_repr
from ..retry import Duration, seconds
from ..run import Sent
from ..status import Status
from .base import (
    RESUMABLE,
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
    Page,
    Renewal,
    RunRecord,
)
from .codec import Codec
from .decide import OPEN, Order, Verdict, check_listing, decide, decide_order, decide_send, is_over
from .memory_run import LiveRun
from .strict import Strict

__all__ = ["MemoryStore"]

_WEEK: Final = 7 * 24 * 3600.0


class MemoryStore:
    """Idempotency keys and finished runs in this process. Thread-safe; share one among engines as you like.

    Finished runs are kept for `retention` seconds, and at most `max_runs` of them, the latest; a key whose run was
    forgotten is new again. Runs in progress, held ones and those to resume are always kept. `clock` returns monotonic
    seconds, `wall` seconds since the epoch.

    `strict`: for unit tests. The store then works as a durable one: it keeps what went through `codec` (None: JsonCodec),
    refuses what that cannot keep with NotSerializable, and a step that changes another one's result in place fails.
    """

    name = "memory"
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
        self.retention = seconds(retention, "MemoryStore(retention=)")
        self.max_runs = max_runs
        self._clock = clock
        self._wall = wall
        self._strict = Strict(codec) if strict else None
        self.strict = strict
        self.durable = self.durable or strict
        self._lock = threading.Lock()
        self._methods: list[WeakMethod[Callable[[str, str, Sent], Sent | None]]] = []
        self._runs: dict[str, LiveRun] = {}
        self._numbers = itertools.count(1)
        self._watched: set[str] = set()  # runs in progress that a caller waits for
        self._ended: OrderedDict[str, float] = OrderedDict()  # keys of ended runs that may be forgotten, oldest first

    # -- for engines ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Take the key, or say whose it is."""
        if self._strict is not None:
            claim = self._strict.claim(claim)
        with self._lock:
            now = self._clock()
            if self._ended:
                self._forget_old(now)
            kept = self._runs.get(claim.key)
            if kept is None:
                return self._begin(claim, now, generation=0, fence=1)
            record, age = kept.record, now - kept.started
            left = (kept.due if record.status == Status.WAITING else kept.expires) - now
            match decide(record, kept.owner, left, claim):
                case Verdict.AGAIN:
                    self._renew(kept, now, claim.lease)
                    return Claimed(record.generation, record.fence, kept.as_found(), age)
                case Verdict.BEGIN_QUEUED:
                    kept.begin_queued(claim)
                    self._renew(kept, now, claim.lease)
                    return Claimed(record.generation, record.fence, None, age)
                case Verdict.BEGIN | Verdict.BEGIN_ANEW:
                    return self._begin(claim, now, record.generation + 1, record.fence + 1)
                case Verdict.RESUME:
                    return self._take_over(kept, claim, now, record.takeovers)
                case Verdict.TAKE_OVER:
                    return self._take_over(kept, claim, now, record.takeovers + 1)
                case Verdict.FINISHED:
                    return Finished(self._copied(kept.seen(), claim), age)
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
        self._runs.pop(claim.key, None)  # the newest run is the last
        self._runs[claim.key] = LiveRun.begun(next(self._numbers), claim, now, self._wall(), generation, fence)
        return Claimed(generation, fence)

    def _take_over(self, kept: LiveRun, claim: Claim, now: float, takeovers: int) -> Claimed:
        found = kept.take_over(claim, self._wall(), takeovers)
        self._renew(kept, now, claim.lease)
        return Claimed(found.generation, kept.record.fence, self._copied(found, claim), now - kept.started)

    def _copied(self, record: RunRecord, claim: Claim) -> RunRecord:
        """The record for a caller; of a strict store with values of its own, which it may change."""
        return record if self._strict is None else self._strict.record(record, claim.types)

    def _renew(self, kept: LiveRun, now: float, lease: float) -> None:
        kept.expires = now + lease
        kept.record.expires = self._wall() + lease

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        """Record what has changed in a run, and renew its lease."""
        if self._strict is not None:
            checkpoint = self._strict.checkpoint(checkpoint)
        with self._lock:
            kept = self._runs.get(checkpoint.key)
            if kept is None:
                return Lost(gone=True)
            record = kept.record
            if record.run_id != checkpoint.run_id or record.fence != checkpoint.fence:
                return Lost()
            if not kept.live:  # a late copy
                return None
            if record.seq < checkpoint.base and not checkpoint.heals:
                return Behind(record.seq)
            kept.note(checkpoint)
            self._renew(kept, self._clock(), checkpoint.lease)
            cancelled = record.decision == "cancel" and not checkpoint.undoing
            if not cancelled:
                record.decision = None
            return Renewal.CANCEL if cancelled else None

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        """Renew these leases for `lease` seconds from now; for each, whether the run is still its owner's."""
        with self._lock:
            return [self._renewed(one, lease) for one in leases]

    def _renewed(self, one: Lease, lease: float) -> Renewal:
        kept = self._runs.get(one.key)
        if kept is None or not kept.live or kept.record.run_id != one.run_id or kept.record.fence != one.fence:
            return Renewal.LOST
        self._renew(kept, self._clock(), lease)
        if kept.record.decision == "cancel":
            return Renewal.CANCEL
        return Renewal.SENT if kept.record.received > one.received else Renewal.OURS

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        """Record how a run ended. Fence 0: it was never claimed, or its owner was interrupted before it heard that its claim
        was granted."""
        if self._strict is not None:
            ending = self._strict.ending(ending)
        end = ending.record
        with self._lock:
            now = self._clock()
            kept = self._runs.get(end.key)
            if kept is None:
                if end.fence != 0:
                    return Lost(gone=True)
                known = replace(end, started=self._wall(), status=Status.RUNNING)
                kept = self._runs[end.key] = LiveRun(next(self._numbers), known, end.run_id, now, now)
            known = kept.record
            if known.run_id != end.run_id or (end.fence != known.fence and (end.fence != 0 or kept.before is not None)):
                return Lost()
            if not kept.live:  # a late copy
                return None
            changes = ending.changes
            if changes is not None and known.seq < changes.base and not changes.heals:
                return Behind(known.seq)
            arrived = known.received > ending.received or known.decision == "cancel"
            if end.status == Status.WAITING and arrived:
                return Arrived()
            wall = self._wall()
            kept.end(ending, wall, watched=end.run_id in self._watched)
            self._watched.discard(end.run_id)
            if end.status in RESUMABLE or end.status == Status.WAITING:
                kept.due = now + ending.retry_in
                known.not_before = wall + ending.retry_in if ending.retry_in > 0 else None
            elif not end.held:
                self._ended[end.key] = now
            if self._ended:
                self._forget_old(now)
            return None

    def withdraw(self, claim: Claim, /) -> None:
        """Take a claim back whose answer was lost, if it was granted."""
        with self._lock:
            kept = self._runs.get(claim.key)
            if kept is None or kept.owner != claim.run_id or not kept.live:
                return
            if kept.before is None:
                self._free(kept)
            else:
                if kept.before.status == Status.RUNNING:  # the takeover came to nothing
                    kept.record.takeovers = max(0, kept.record.takeovers - 1)
                kept.delay = 0.0
                self._renew(kept, self._clock(), 0.0)

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
        """Send a value to the wait `name` of the run with a key: see Store.send. Any engine of this store learns of it at once."""
        with self._lock:
            kept = self._known(key)
            record = kept.record
            if self._strict is not None:
                value = self._strict.sent(value, name, record.run_id)
            sent = Sent(value, self._wall(), socket.gethostname(), os.getpid(), id, dict(carrier or {}))
            known = record.sent.get(name)
            known_id, step = None if known is None else known.id, kept.step_status(name)
            counts = decide_send(record, name, id, known=known is not None, known_id=known_id, step=step)
            if counts is not None:
                return counts
            told = [first for one in self._listeners if (first := one(key, name, sent)) is not None]
            if told and told[0] is not sent:  # a run in memory knows more than its record
                return id is not None and told[0].id == id
            kept.receive(name, sent, self._clock(), self._wall())
            return True

    def listen(self, listener: Callable[[str, str, Sent], Sent | None]) -> None:
        """Call this, a method of an engine, with key, step and value whenever a value is sent. It returns the value that
        counts for its run, or None for a run that it does not have. A listener that nothing else keeps is forgotten."""
        with self._lock:
            self._methods = [method for method in self._methods if method() is not None]
            self._methods.append(WeakMethod(listener))

    @property
    def _listeners(self) -> list[Callable[[str, str, Sent], Sent | None]]:
        return [listener for method in self._methods if (listener := method()) is not None]

    def find(self, key: str, /) -> RunRecord | None:
        """The record under a key, or None."""
        with self._lock:
            kept = self._runs.get(key)
            return None if kept is None else kept.seen()

    def head(self, key: str, /) -> RunRecord | None:
        """The record under a key without values and without what is of single steps, or None."""
        with self._lock:
            kept = self._runs.get(key)
            return None if kept is None else kept.head()

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """Heads of the runs of these workflows that recovery may resume now: crashed, parked, incomplete, or queued and left
        by their owners; the oldest due first."""
        check_listing(None, limit, "list_resumable")
        past = _cursor(after, "list_resumable")
        with self._lock:
            now = self._clock()
            found = [
                ((due, kept.number), kept)
                for kept in self._runs.values()
                if kept.record.workflow in workflows
                and (due := kept.due_at()) is not None
                and due <= now
                and (past is None or (due, kept.number) > past)
            ]
            found.sort(key=lambda one: one[0])
            page = found[:limit]
            more = len(page) < len(found)
            return Page([kept.head() for _, kept in page], f"{page[-1][0][0]!r} {page[-1][0][1]}" if more else None)

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
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """Heads of the runs with this status, of this workflow, started so many seconds ago, with this text in their keys;
        the newest first, a page at a time (`limit=None`: all). "held" counts as a status, and "expired": running, with an
        owner whose lease is over. Raises DefinitionError for an unknown status.
        """
        age = 0.0 if older_than is None else seconds(older_than, "list_runs(older_than=)")
        check_listing(status, limit)
        past = _cursor(after, "list_runs")
        page, last = Page(), 0
        with self._lock:
            now = self._clock()
            for kept in reversed(self._runs.values()):
                if (
                    (past is None or kept.number < past[1])
                    and (status is None or kept.counts_as(status, now))
                    and (workflow is None or kept.record.workflow == workflow)
                    and (older_than is None or now - kept.started >= age)
                    and (text is None or text in kept.record.key)
                ):
                    if len(page) == limit:
                        page.cursor = f"0 {last}"
                        break
                    page.append(kept.head())
                    last = kept.number
        return page

    def counts(self) -> dict[tuple[str, str], int]:
        """(workflow, status) -> how many runs that are not over, each counted once: as held, else as expired, else by its
        status."""
        with self._lock:
            now = self._clock()
            counted = Counter(
                (
                    kept.record.workflow,
                    "held" if kept.record.held else "expired" if kept.expired(now) else str(kept.record.status),
                )
                for kept in self._runs.values()
                if kept.record.held or not kept.over
            )
        return dict(counted)

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Forget the run behind a key, so that the next call starts afresh.

        Raises RunNotFound for an unknown key, and StoreError for a live run, unless forced: then its owner hears with its
        next checkpoint or renewal that the run is lost.
        """
        with self._lock:
            kept = self._known(key)
            if not force:
                self._order(kept, "release")
            self._free(kept)

    def erase(self, key: str, /, *, force: bool = False) -> None:
        """Forget at once what users put into the run of a key: see Store.erase. Raises RunNotFound for an unknown key, and
        StoreError for a run that is not over or is held, unless forced."""
        with self._lock:
            kept = self._known(key)
            if not force:
                self._order(kept, "erase")
            elif kept.record.held or not kept.over:
                self._free(kept)
            kept.erase()

    def hold(self, key: str, /, reason: str | None = None) -> None:
        """Refuse the key from now on, until `release`, `resume` or `undo`. Raises RunNotFound for an unknown key, and
        StoreError for a live run."""
        with self._lock:
            kept = self._known(key)
            self._order(kept, "hold")
            self._stop(kept, held=True, reason=reason)

    def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Have the next call with the key, or recovery, resume its run: one that is held, parked, incomplete, whose lease has
        run out, or that failed with nothing undone. Raises RunNotFound for an unknown key, StoreError for any other run."""
        self._decide(key, "resume", reason)

    def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """As `resume`, but the run is undone; a live run is cancelled."""
        self._decide(key, "undo", reason)

    def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Have the owner of a live run cancel it, which it hears with its next checkpoint or renewal; undo any other run that
        is not over. Raises RunNotFound for an unknown key, StoreError for a run that is over."""
        self._decide(key, "cancel", reason)

    def _decide(self, key: str, decision: str, reason: str | None = None) -> None:
        with self._lock:
            kept = self._known(key)
            match self._order(kept, decision):
                case Order.CANCEL:
                    kept.record.decision, kept.record.reason = "cancel", reason
                case Order.STOP:
                    self._stop(kept, held=False, decision="undo" if decision == "cancel" else decision, reason=reason)
                    if is_over(kept.record.status):
                        kept.record.status = Status.PARKED
                case Order.NOTHING:
                    pass

    def _order(self, kept: LiveRun, verb: str) -> Order:
        return decide_order(kept.record, kept.live and kept.expires > self._clock(), verb)

    def _stop(self, kept: LiveRun, *, held: bool, decision: str | None = None, reason: str | None = None) -> None:
        """Put an operator's word in the place of an owner whose lease has run out, should there be one."""
        record, now = kept.record, self._clock()
        kept.record = replace(record, held=held, decision=decision, reason=reason, expires=None, not_before=None)
        kept.due, kept.delay = now, 0.0
        if kept.live:
            kept.record.fence, kept.expires = record.fence + 1, now
        if record.status == Status.RUNNING:
            kept.record.status = Status.PARKED
        self._ended.pop(record.key, None)

    def _free(self, kept: LiveRun) -> None:
        self._watched.discard(kept.record.run_id)
        kept.record = replace(
            kept.record,
            status=Status.FAILURE,
            held=False,
            decision=None,
            reason=None,
            not_before=None,
            fence=kept.record.fence + 1,
            finished=self._wall(),
            expires=None,
        )
        self._ended[kept.record.key] = self._clock()
        self._ended.move_to_end(kept.record.key)

    def _known(self, key: str) -> LiveRun:
        kept = self._runs.get(key)
        if kept is None:
            raise RunNotFound(f"No run with key {hashed_key(key)} in this store.", key=key)
        return kept

    def gc(self) -> int:
        """Forget what is past its retention now; answers how many runs are left."""
        with self._lock:
            self._forget_old(self._clock())
            return len(self._runs)

    def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """What an operator should know of this store."""
        counts = self.counts()
        with self._lock:
            runs = len(self._runs)
        return {
            "store": self.name,
            "durability": "none: runs are forgotten with their process",
            "runs": runs,
            **{word: sum(n for (_, status), n in counts.items() if status == word) for word in OPEN},
        }

    def close(self) -> None:
        """Nothing to close: the records stay readable."""


def _cursor(after: str | None, verb: str) -> tuple[float, int] | None:
    if after is None:
        return None
    try:
        first, number = after.split(" ")
        return float(first), int(number)
    except (AttributeError, ValueError):
        raise DefinitionError(
            f"{verb}(after=) must be the cursor of an earlier page, not {safe_repr(after)}."
        ) from None
