"""The verbs of MemoryStore for operators and for recovery."""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace

from ..errors import DefinitionError, safe_repr
from ..forks import after_fork_in_child, hold_across_forks
from ..retry import Duration, flag, seconds
from ..status import Status
from .arguments import check_key, check_listing, check_reason, check_resumable, check_run_id
from .base import Page, RunRecord
from .decide import OPEN, Order, decide_order, is_over, unknown_key, unknown_run
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
        hold_across_forks(self._lock)
        after_fork_in_child(self, Operating._after_fork)

    def _after_fork(self) -> None:
        """In a forked child, forget the runs in progress: they belong to the parent, and their end is recorded there."""
        for key, run in list(self._runs.items()):
            if run.in_progress:
                del self._runs[key]
        self._watched.clear()

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """Heads of the runs of these workflows that recovery may resume now, the earliest due first: runs that crashed,
        are parked or incomplete, have waited long enough, or were queued and left by their owners."""
        check_resumable(workflows, limit)
        past = _cursor(after, "list_resumable")
        with self._lock:
            now = self._clock()
            found = [
                ((due, run.number), run)
                for run in self._runs.values()
                if run.record.workflow in workflows
                and (due := run.due_at()) is not None
                and due <= now
                and (past is None or (due, run.number) > past)
            ]
            found.sort(key=lambda one: one[0])
            page = found[:limit]
            more = len(page) < len(found)
            return Page([run.head() for _, run in page], f"{page[-1][0][0]!r} {page[-1][0][1]}" if more else None)

    def _forget_old(self, now: float) -> None:
        oldest = now - self.retention
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended > oldest and len(self._ended) <= self.max_runs:
                return
            del self._ended[key], self._runs[key]

    def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run. Raises RunNotFound."""
        check_run_id(run_id)
        with self._lock:
            for run in self._runs.values():
                if run.record.run_id == run_id:
                    return run.seen()
        raise unknown_run(run_id)

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
        check_listing(status, workflow, limit, text)
        past = _cursor(after, "list_runs")
        page, last = Page(), 0
        with self._lock:
            now = self._clock()
            for run in reversed(self._runs.values()):
                if (
                    (past is None or run.number < past[1])
                    and (status is None or run.counts_as(status, now))
                    and (workflow is None or run.record.workflow == workflow)
                    and (older_than is None or now - run.started >= age)
                    and (text is None or text in run.record.key)
                ):
                    if len(page) == limit:
                        page.cursor = f"0 {last}"
                        break
                    page.append(run.head())
                    last = run.number
        return page

    def counts(self) -> dict[tuple[str, str], int]:
        """The number of runs that are held or not over, by (workflow, status). Each run is counted once: as held, else
        as expired, else by its status."""
        with self._lock:
            now = self._clock()
            counted = Counter(
                (
                    run.record.workflow,
                    "held" if run.record.held else "expired" if run.expired(now) else str(run.record.status),
                )
                for run in self._runs.values()
                if run.record.held or not run.over
            )
        return dict(counted)

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Give up the run of a key, so that the next call starts afresh.

        Raises RunNotFound for an unknown key, and StoreError for a live run. With `force`, a live run is given up too:
        its owner learns with its next checkpoint or renewal that the run is lost.
        """
        with self._lock:
            run = self._known(key)
            if not flag(force, "release(force=)"):
                self._order(run, "release")
            self._free(run)

    def erase(self, key: str, /, *, force: bool = False) -> None:
        """Delete at once the users' data in the run of a key: see Store.erase. Raises RunNotFound for an unknown key,
        and StoreError for a run that is held or not over, unless forced."""
        with self._lock:
            run = self._known(key)
            if not flag(force, "erase(force=)"):
                self._order(run, "erase")
            elif run.record.held or not run.over:
                self._free(run)
            run.erase()

    def hold(self, key: str, /, reason: str | None = None) -> None:
        """Refuse calls with the key until `release`, `resume` or `undo`. Raises RunNotFound for an unknown key, and
        StoreError for a live run."""
        check_reason(reason)
        with self._lock:
            run = self._known(key)
            self._order(run, "hold")
            self._stop(run, held=True, reason=reason)

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
        check_reason(reason)
        with self._lock:
            run = self._known(key)
            match self._order(run, decision):
                case Order.NOTIFY_OWNER:
                    run.record.decision, run.record.reason = decision, reason
                case Order.STOP:
                    self._stop(run, held=False, decision=decision, reason=reason)
                    if is_over(run.record.status):
                        run.record.status = Status.PARKED
                case Order.NOTHING:
                    pass

    def _order(self, run: LiveRun, verb: str) -> Order:
        return decide_order(run.record, run.live and run.expires > self._clock(), verb)

    def _stop(self, run: LiveRun, *, held: bool, decision: str | None = None, reason: str | None = None) -> None:
        """Record an operator's decision. If the run still has an owner, whose lease has ended, that owner loses the
        run."""
        record, now = run.record, self._clock()
        run.record = replace(record, held=held, decision=decision, reason=reason, expires=None, not_before=None)
        run.due, run.delay = now, 0.0
        if run.live:
            run.record.fence, run.expires = record.fence + 1, now
        if record.status == Status.RUNNING:
            run.record.status = Status.PARKED
        self._ended.pop(record.key, None)

    def _free(self, run: LiveRun) -> None:
        self._watched.discard(run.record.run_id)
        run.record = replace(
            run.record,
            status=Status.FAILURE,
            held=False,
            decision=None,
            reason=None,
            not_before=None,
            fence=run.record.fence + 1,
            finished=self._wall(),
            expires=None,
        )
        self._ended[run.record.key] = self._clock()
        self._ended.move_to_end(run.record.key)

    def _known(self, key: str) -> LiveRun:
        check_key(key)
        run = self._runs.get(key)
        if run is None:
            raise unknown_key(key)
        return run

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
    except (AttributeError, TypeError, ValueError):
        raise DefinitionError(
            f"{verb}(after=) must be the cursor of an earlier page, not {safe_repr(after)}."
        ) from None
