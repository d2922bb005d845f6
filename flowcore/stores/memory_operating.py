"""The verbs of MemoryStore for operators and for recovery."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace

from ..errors import DefinitionError, RunNotFound, hashed_key, safe_repr
from ..retry import Duration, seconds
from ..status import Status
from .base import Page, RunRecord
from .decide import OPEN, Order, check_listing, decide_order, is_over
from .memory_run import LiveRun

__all__ = ["Operating"]


class Operating:
    """The part of MemoryStore for operators and for recovery. Thread-safe."""

    name = "memory"

    def __init__(self, retention: float, max_runs: int, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.retention = retention
        self.max_runs = max_runs
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._runs: dict[str, LiveRun] = {}
        self._numbers = itertools.count(1)
        self._watched: set[str] = set()  # runs in progress that a caller waits for
        self._ended: OrderedDict[str, float] = OrderedDict()  # keys of ended runs that may be forgotten, oldest first

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """Heads of the runs of these workflows that recovery may resume now, the earliest due first: runs that crashed,
        are parked or incomplete, have waited long enough, or were queued and left by their owners."""
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

    def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run. Raises RunNotFound."""
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
        """Heads of the runs that match all arguments, newest first, one page at a time (`limit=None`: all of them).

        `older_than`: the run began at least so many seconds ago. `text`: a part of its key. `status` may also be
        "held", or "expired": the run is running, but the lease of its owner has ended. Raises DefinitionError for an
        unknown status.
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
        """The number of runs that are held or not over, by (workflow, status). Each run is counted once: as held, else
        as expired, else by its status."""
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
        """Give up the run of a key, so that the next call starts afresh.

        Raises RunNotFound for an unknown key, and StoreError for a live run. With `force`, a live run is given up too:
        its owner learns with its next checkpoint or renewal that the run is lost.
        """
        with self._lock:
            kept = self._known(key)
            if not force:
                self._order(kept, "release")
            self._free(kept)

    def erase(self, key: str, /, *, force: bool = False) -> None:
        """Delete at once the users' data in the run of a key: see Store.erase. Raises RunNotFound for an unknown key,
        and StoreError for a run that is held or not over, unless forced."""
        with self._lock:
            kept = self._known(key)
            if not force:
                self._order(kept, "erase")
            elif kept.record.held or not kept.over:
                self._free(kept)
            kept.erase()

    def hold(self, key: str, /, reason: str | None = None) -> None:
        """Refuse calls with the key until `release`, `resume` or `undo`. Raises RunNotFound for an unknown key, and
        StoreError for a live run."""
        with self._lock:
            kept = self._known(key)
            self._order(kept, "hold")
            self._stop(kept, held=True, reason=reason)

    def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next call with the key, or recovery, resume a run that is held, parked or incomplete, whose lease has
        ended, or that failed with nothing undone. Raises RunNotFound for an unknown key, and StoreError for any other
        run."""
        self._decide(key, "resume", reason)

    def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next call with the key, or recovery, undo the run, even past its pivot. The owner of a live run
        cancels and undoes it. Raises RunNotFound for an unknown key, and StoreError for a run that is over and not
        held."""
        self._decide(key, "undo", reason)

    def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run. The owner of a live run learns of it with its next checkpoint or renewal; any other run that is
        not over is cancelled by the next call with the key, or by recovery. A run past its pivot is left incomplete.
        Raises RunNotFound for an unknown key, and StoreError for a run that is over and not held."""
        self._decide(key, "cancel", reason)

    def _decide(self, key: str, decision: str, reason: str | None = None) -> None:
        with self._lock:
            kept = self._known(key)
            match self._order(kept, decision):
                case Order.TELL:
                    kept.record.decision, kept.record.reason = decision, reason
                case Order.STOP:
                    self._stop(kept, held=False, decision=decision, reason=reason)
                    if is_over(kept.record.status):
                        kept.record.status = Status.PARKED
                case Order.NOTHING:
                    pass

    def _order(self, kept: LiveRun, verb: str) -> Order:
        return decide_order(kept.record, kept.live and kept.expires > self._clock(), verb)

    def _stop(self, kept: LiveRun, *, held: bool, decision: str | None = None, reason: str | None = None) -> None:
        """Record an operator's decision. If the run still has an owner, whose lease has ended, that owner loses the
        run."""
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
        """Forget the runs whose retention is over. Returns how many runs are left."""
        with self._lock:
            self._forget_old(self._clock())
            return len(self._runs)

    def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """A report for operators: that this store is not durable, and how many runs it has, by status."""
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
        """Do nothing: there is nothing to close, and the records stay readable."""


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
