"""Recovery: which runs without a live owner an engine resumes, in which order, and how many of them at once.

Both engines share this code. A round is a generator that yields calls of the store and is sent the replies, so that
`Engine` makes the calls and `AsyncEngine` awaits them. A round starts runs and returns; it never waits for them.

Each engine resumes runs in an order of its own, so that engines that read the same list rarely claim the same run. A
run whose owners crashed twice without progress is a suspect, until a step or an undo of it ends. An engine resumes one
suspect at a time, so that a run that kills its process does not repeatedly take other recovered runs down with it.
"""

from __future__ import annotations

import logging
import math
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from ..errors import LeaseLost, RunNotFound, StoreUnavailable, safe_repr, safe_str
from ..events import StoreSurveyed
from ..status import Status
from ..stores.base import Page, RunRecord
from ..workflow import Workflow
from .endings import has_progressed, retry_in
from .takeover import left_to_callers

__all__ = ["SURVEY_EVERY", "Recovery", "StoreCall", "Survey"]

SURVEY_EVERY: Final = 30.0
"""seconds between two surveys of the store"""
_WINDOW: Final = 1_000
"""how many runs a round chooses from: far more than engines start at once, so that two engines rarely choose the
same"""
_PAGE: Final = 100
"""how many runs a page of a listing has"""
_FRESH: Final = 1.0
"""seconds for which a list of runs is used, at least"""
_REUSE_FACTOR: Final = 10
"""a list of runs is used for at least this many times as long as listing took, so that a slow store spends little of
its time on lists"""
_REFUSED: Final = 0.1
"""a list is out of date once other engines have claimed more than this part of the runs that were started from it"""
_SUSPECT: Final = 2
"""takeovers without progress that make a run a suspect"""
_REMEMBERED: Final = 100_000
"""how many runs that could not be resumed an engine remembers"""
_LOGGED: Final = 1_000
"""how many subjects an engine logs; it stays silent about more, because it could not remember them all"""
_FULL: Final = 10
"""leases after which recovery logs that the runs which it has resumed leave no room for others"""
_GRAPHS: Final = 256
"""for how many recorded step graphs an engine remembers which definition fits"""
_SAMPLED: Final = 1_000
"""how many waiting runs of a workflow a survey reads"""
_WAITING: Final = ("held", "parked", "incomplete", "expired", "waiting", "overdue")
"""the states that a survey counts: runs that wait for an operator, a caller, recovery or a value; overdue ones wait for
recovery although a value or the time for which they waited has come, or they are queued and have lost their owner"""
_OVERDUE: Final = 300.0
"""seconds after which such runs count as overdue, or twice the interval between rounds of recovery if that is longer"""
_DUE: Final = frozenset({Status.WAITING, Status.QUEUED})
"""the statuses of runs that may be overdue"""
_UNKNOWN: Final = "_unknown"
"""the name under which a survey counts the runs of workflows that the engine does not have"""
_log = logging.getLogger("flowcore")

StoreCall = Callable[[], Any]
"""a call of the store: a verb with its arguments"""
_NO_FAULT: Final = (LeaseLost, RunNotFound, StoreUnavailable)
"""errors with which a healthy run may fail to be resumed here"""
_ROUND_TOLERANCE: Final = 0.9
"""the part of the interval between two rounds that is enough, for a thread that wakes up a little early"""


class Survey(NamedTuple):
    """The number of unfinished runs in a store, by workflow and state, and of waiting ones, by workflow and step."""

    counts: Mapping[tuple[str, str], int]
    waiting: Mapping[tuple[str, str], int]


class Recovery:
    """The recovery of one engine. Thread-safe.

    `workflows`: the definitions whose runs are resumed. Several may have one name: each record is resumed by one that
    contains its recorded steps. `live`: returns the engine's runs in flight. `at_once`: how many recovered runs may be
    in flight.
    """

    def __init__(
        self,
        settings: Settings,
        workflows: Iterable[Workflow[Any]],
        live: Callable[[], Iterable[RunState]],
        *,
        at_once: int,
    ) -> None:
        self._settings = settings
        self._definitions: dict[str, list[Workflow[Any]]] = {}
        for workflow in workflows:
            self.include(workflow)
        self._live = live
        self.at_once = at_once
        self.wake: Callable[[], None] | None = None
        """called when another round would start more runs, from the thread in which a run ended"""
        self._warned = set[str]()  # (lock) the subjects that were logged
        self.after_fork()

    def after_fork(self) -> None:
        """Reset the state, also in a child process, because the parent's runs in flight stay with the parent."""
        self._lock = threading.Lock()
        self._salt = self._settings.new_id().encode()
        self._in_flight: dict[RunState, RunRecord] = {}  # (lock) recovered runs in flight, with their records
        self._found: list[RunRecord] = []  # (lock) the list of runs to resume; the next one is last
        self._cursor: str | None = None  # (lock) where the store's list continues after the part in `_found`
        self._fresh_until = 0.0  # (lock) when the list is out of date (monotonic)
        self._empty_until = 0.0  # (lock) the same for a list without runs to resume
        self._full_since: float | None = None  # (lock) when there was first no room for another run (monotonic)
        self._started = self._refused = 0  # (lock) runs started from the list, and those that others claimed first
        self._complete = True  # (lock) whether the list ends with all runs that were due
        # (lock) By workflow and recorded step graph: the definition that fits, or None and the reason
        self._fits: dict[tuple[str, str], tuple[Workflow[Any] | None, str]] = {}
        # (lock) By id of a run that could not be resumed: when it may be tried again (monotonic), how often it failed
        self._put_off_until: dict[str, tuple[float, int]] = {}
        self._surveyed: float | None = None  # when the latest survey began (monotonic)
        self._due: dict[str, float] = {}  # when surveys first found a run to be due (monotonic), by run id
        self._seen: dict[tuple[str, str], None] = {}  # pairs of workflow and step that runs have waited for
        self._looked: float | None = None  # when the latest round began (monotonic)

    def include(self, workflow: Workflow[Any]) -> None:
        """Resume runs of this definition too."""
        self._definitions[workflow.name] = [*self._definitions.get(workflow.name, ()), workflow]
        self._fits = {}

    @property
    def has_more_to_start(self) -> bool:
        """Whether the next round should start at once, because more runs are due and there is room for them."""
        with self._lock:
            return (bool(self._found) or not self._complete) and len(self._in_flight) <= self.at_once // 2

    # -- a round -------------------------------------------------------------------------------------------------------

    def round_due(self, every: float) -> bool:
        """Whether the next round is due: `every` seconds after the last one, or at once if more runs can be started."""
        return (
            self._looked is None
            or self._settings.clock() - self._looked >= every * _ROUND_TOLERANCE
            or self.has_more_to_start
        )

    def round(
        self,
        request: Callable[[Workflow[Any], str, str], RunState],
        start: Callable[[RunState], None],
        skip: Collection[str | None] = (),
        *,
        fresh: bool = False,
    ) -> Generator[StoreCall, Any, None]:
        """Start runs that have no live owner, as many as there is room for, except those with an id in `skip`.

        `request`: creates the RunState for a definition, a key and a run id. `start`: starts it. `fresh`: list the runs
        anew, even if the present list is not out of date.
        """
        self._looked = self._settings.clock()
        if not self._definitions:
            return
        if self._room() <= 0:
            self._wait_for_room()
            return
        if fresh or self._out_of_date():
            yield from self._look(reads_on=not fresh and not self._found)
        while not self._started_some(request, start, skip) and self._room() > 0 and not self._complete:
            # None of these runs can be started now, perhaps because they all fail: they must not hide those after them.
            yield from self._look(reads_on=True)

    def _started_some(
        self,
        request: Callable[[Workflow[Any], str, str], RunState],
        start: Callable[[RunState], None],
        skip: Collection[str | None],
    ) -> bool:
        """Start runs from the list, as many as there is room for. Returns whether there were any."""
        started = False
        while self._room() > 0 and (record := self._next(skip)) is not None:
            workflow = self._definition(record)
            run = None if workflow is None else self._requested(request, workflow, record)
            if run is not None:
                with self._lock:
                    self._in_flight[run] = record
                    self._started += 1
                start(run)
                started = True
        return started

    def resume(
        self, request: Callable[[Workflow[Any], str, str], RunState], key: str
    ) -> Generator[StoreCall, Any, RunState | None]:
        """Return the run to start for a key whose run waits in the store and may be resumed. Returns None if there is
        no such run, or if this engine does not have its workflow, or no room for it."""
        head: RunRecord | None = yield partial(self._settings.store.head, key)
        waits = head is not None and head.status is Status.WAITING and head.not_before != math.inf
        if head is None or not waits or head.held or self._room() <= 0:
            return None
        workflow = self._definition(head)
        run = None if workflow is None else self._requested(request, workflow, head)
        if run is not None:
            with self._lock:
                self._in_flight[run] = head
                self._started += 1
        return run

    def _requested(
        self, request: Callable[[Workflow[Any], str, str], RunState], workflow: Workflow[Any], record: RunRecord
    ) -> RunState | None:
        try:
            run = request(workflow, record.key, record.run_id)
        except Exception as error:  # noqa: BLE001 - one record must not keep the others from being resumed
            self._cannot_resume(record, error)
            return None
        run.limit = min(run.limit, self._share())
        return run

    def _room(self) -> int:
        with self._lock:
            return self.at_once - len(self._in_flight)

    def _wait_for_room(self) -> None:
        """Note that other runs have to wait until a recovered run ends. Logs a line if none has ended for long: their
        steps may hang, and then this engine recovers nothing more."""
        now, lease = self._settings.clock(), self._settings.lease
        with self._lock:
            self._complete = False
            since = self._full_since = now if self._full_since is None else self._full_since
            names = sorted({record.workflow for record in self._in_flight.values()})
        if now - since > _FULL * lease:
            self._warn(
                f"full {since}",
                f"None of the recovered runs in flight has ended for {now - since:.0f} s, and there may be no more than "
                f"recover_at_once={self.at_once} of them, so this engine recovers no others. They are runs of "
                f"{', '.join(map(safe_repr, names))}; set a timeout on the operations that they wait for.",
            )

    def _share(self) -> int:
        """Return how many steps a recovered run may run at a time: half of what the others leave of `at_once`. So a run
        with many parallel steps does not keep other recovered runs, or live calls, from getting a thread."""
        with self._lock:
            used = sum(run.limit for run in self._in_flight)
        return max(1, (self.at_once - used) // 2)

    def _out_of_date(self) -> bool:
        with self._lock:
            now = self._settings.clock()
            if not self._found:
                return not self._complete or now >= self._empty_until
            return now > self._fresh_until or self._refused > self._started * _REFUSED

    def _look(self, *, reads_on: bool) -> Generator[StoreCall, Any, None]:
        """List the runs that are due, page after page, until there are enough to choose from, or no more. Runs that this
        engine cannot resume now do not count. `reads_on`: continue after the part that was listed last."""
        asked, listed = self._settings.clock(), self._settings.store.list_resumable
        found: list[RunRecord] = []
        cursor = self._cursor if reads_on else None
        pages = 0
        while True:
            page: Page = yield partial(listed, list(self._definitions), limit=_PAGE, after=cursor)
            found.extend(self._usable(page))
            cursor, pages = page.cursor, pages + 1
            if cursor is None or len(found) >= _WINDOW:
                break
        found.sort(key=lambda record: zlib.crc32(record.run_id.encode("utf-8", "replace"), zlib.crc32(self._salt)))
        with self._lock:
            self._found, self._cursor, self._complete = found, cursor, cursor is None
            reused_for = _REUSE_FACTOR * (self._settings.clock() - asked)
            self._fresh_until = asked + max(_FRESH, reused_for)
            self._empty_until = asked + reused_for if pages > 1 else asked
            self._started = self._refused = 0

    def _usable(self, page: Iterable[RunRecord]) -> list[RunRecord]:
        """Return the runs of a page that this engine may resume now. They are not its own live ones, nor those that it
        recently failed to resume, and one of its definitions fits them."""
        live = {run.known_id for run in self._live()}
        with self._lock:
            live.update(run.request.recovering for run in self._in_flight)
            now = self._settings.clock()
            free = [
                record
                for record in page
                if record.problem is None
                and record.run_id not in live
                and self._put_off_until.get(record.run_id, (0.0, 0))[0] <= now
            ]
        definitions = ((record, self._definition(record)) for record in free)
        return [one for one, workflow in definitions if workflow is not None and not left_to_callers(workflow, one)]

    def _next(self, skip: Collection[str | None]) -> RunRecord | None:
        """Take the next run to resume from the list; a suspect only if no other suspect is in flight."""
        with self._lock:
            busy = any(
                record.takeovers >= _SUSPECT and not has_progressed(run) for run, record in self._in_flight.items()
            )
            for index in range(len(self._found) - 1, -1, -1):
                record = self._found[index]
                if record.run_id not in skip and not (busy and record.takeovers >= _SUSPECT):
                    return self._found.pop(index)
            return None

    def _definition(self, record: RunRecord) -> Workflow[Any] | None:
        """Return the definition that can resume this run. If there is none, logs that once for all runs with the same
        step graph, and returns None."""
        fits = self._fits
        known = fits.get((record.workflow, record.graph))
        if known is None:
            known = self._fitting(record)
            if len(fits) >= _GRAPHS:
                fits.clear()
            fits[record.workflow, record.graph] = known
            if known[0] is None:
                what = f"run {record.run_id} of {safe_repr(record.workflow)} cannot be recovered: {known[1]}"
                self._warn(f"graph {record.workflow} {record.graph}", f"{what}. Other runs like it are not logged.")
        return known[0]

    def _fitting(self, record: RunRecord) -> tuple[Workflow[Any] | None, str]:
        """Return the definition that can resume this run, or None and the reason."""
        why = "its workflow is not among this engine's workflows="
        for workflow in self._definitions.get(record.workflow, ()):
            differs = workflow.freeze().contains(record.graph)
            if differs is None:
                return workflow, ""
            why = f"it was started with a different step graph ({differs})"
        return None, why

    # -- the ends of recovered runs ------------------------------------------------------------------------------------

    def ended(self, run: RunState, error: BaseException | None) -> None:
        """Process the end of a run that a round started. `error`: the error because of which it was not resumed, or
        which failed it."""
        with self._lock:
            record = self._in_flight.pop(run, None)  # None in a child process, for a run of its parent
            self._full_since = None
            if run.claimed:
                self._put_off_until.pop(run.request.recovering or "", None)
            elif isinstance(error, LeaseLost):  # another engine claimed it first
                self._refused += 1
        # Any other error stops this process or its loop, and is not caused by the run.
        if isinstance(error, Exception) and not isinstance(error, _NO_FAULT) and record is not None and not run.claimed:
            self._cannot_resume(record, error)
        if self.wake is not None and self.has_more_to_start:
            self.wake()

    def _cannot_resume(self, record: RunRecord, error: BaseException) -> None:
        self._put_off(record.run_id)
        what = f"run {record.run_id} of {safe_repr(record.workflow)} cannot be recovered"
        self._warn(record.run_id, f"{what}: {type(error).__name__}: {safe_str(error, 300)}")

    def _put_off(self, run_id: str) -> None:
        """Do not resume this run for some time, which grows with each call."""
        with self._lock:
            _, times = self._put_off_until.pop(run_id, (0.0, 0))
            until = self._settings.clock() + retry_in(self._settings.lease, times + 2)
            self._put_off_until[run_id] = until, times + 1
            while len(self._put_off_until) > _REMEMBERED:
                del self._put_off_until[next(iter(self._put_off_until))]

    def _warn(self, subject: str, line: str) -> None:
        """Log a line, but only once for each subject."""
        with self._lock:
            if subject in self._warned or len(self._warned) >= _LOGGED:
                return
            self._warned.add(subject)
            last = len(self._warned) == _LOGGED
        _log.warning("%s", line)
        if last:
            _log.warning("recovery has logged %d such lines, and logs no more of them", _LOGGED)

    # -- surveys -------------------------------------------------------------------------------------------------------

    def survey_due(self) -> bool:
        """Whether the next survey is due."""
        return self._surveyed is None or self._settings.clock() - self._surveyed >= SURVEY_EVERY

    def survey(self, known: Iterable[str], every: float | None) -> Generator[StoreCall, Any, Survey]:
        """Count the unfinished runs in the store, for the workflows `known` and those of this engine by name, and for
        all others as "_unknown". `every`: the seconds between two rounds of recovery."""
        self._surveyed = self._settings.clock()
        counted: Mapping[tuple[str, str], int] = yield self._settings.store.counts
        # Without a 0 for "_unknown", hooks would keep showing the last number after those runs have ended.
        counts = {(name, status): 0 for name in (*known, *self._definitions, _UNKNOWN) for status in _WAITING}
        unknown: dict[str, int] = {}
        for (name, status), number in counted.items():
            if (name, status) in counts:
                counts[name, status] += number
            elif status in _WAITING and number:
                counts[_UNKNOWN, status] += number
                unknown[name] = unknown.get(name, 0) + number
        for name, number in unknown.items() if self._definitions else ():
            self._warn(
                f"workflow {name}",
                f"The store has {number} unfinished run{'' if number == 1 else 's'} of workflow {safe_repr(name)}, "
                "which is not among this engine's workflows=. This engine does not recover such runs.",
            )
        if StoreSurveyed not in self._settings.hooks.wanted:
            return Survey(counts, {})
        for name in (yield from self._overdue(counted, max(_OVERDUE, 2 * (every or 0)))):
            counts[name if (name, "overdue") in counts else _UNKNOWN, "overdue"] += 1
        return Survey(counts, (yield from self._awaited(counts)))

    def _overdue(self, counted: Mapping[tuple[str, str], int], after: float) -> Generator[StoreCall, Any, list[str]]:
        """Return the workflows of the runs that have been due for `after` seconds, one for each run, of up to 1,000 runs.
        The time counts from the survey that first found a run to be due, because the store may have another clock."""
        names = {name for (name, status), number in counted.items() if status in _DUE and number}
        listed = partial(self._settings.store.list_resumable, sorted(names), limit=_SAMPLED)
        page: Iterable[RunRecord] = (yield listed) if names else ()
        now, live = self._settings.clock(), {run.known_id for run in self._live()}
        due = [record for record in page if record.status in _DUE and record.run_id not in live]
        self._due = {record.run_id: self._due.get(record.run_id, now) for record in due}
        return [record.workflow for record in due if now - self._due[record.run_id] >= after]

    def _awaited(self, counts: Mapping[tuple[str, str], int]) -> Generator[StoreCall, Any, dict[tuple[str, str], int]]:
        """Return how many runs wait, by workflow and step. The numbers are estimated from the newest runs if there are
        many."""
        found = dict.fromkeys(self._seen, 0)  # steps for which no run waits any more are counted as 0
        listed = partial(self._settings.store.list_runs, status="waiting", limit=_SAMPLED)
        for (workflow, status), number in counts.items():
            if status == "waiting" and number and workflow != _UNKNOWN:
                page: Page = yield partial(listed, workflow=workflow)
                steps = Counter(step for record in page for step in record.waiting_for)
                share = number / len(page) if number > _SAMPLED and page else 1.0
                found.update(((workflow, step), round(times * share)) for step, times in steps.items())
        self._seen.update(dict.fromkeys(found))
        return found
