"""Time series for any destination, made at first use, cached and limited in number; and the runs in flight.

Most gauges are computed when they are read: from the runs in flight, and from what open engines reported last. Nothing
is written while steps start and end, so that gauges cost a run next to nothing; a forked child starts without the runs
of its parent, and the values of a closed engine are not shown.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Final, TypeVar

from . import names
from .context import Exemplar, Traced
from .names import Metric
from .text import fit

__all__ = [
    "MAX_ERROR_TYPES",
    "MAX_WORKFLOWS",
    "OF_THREADS",
    "POLLED",
    "REPORTED",
    "Engines",
    "InFlightRun",
    "IsOpen",
    "Reports",
    "Series",
    "Workers",
    "WorkflowSeries",
    "Write",
    "Writes",
    "one_for_each",
]

_log = logging.getLogger("flowcore")

MAX_WORKFLOWS: Final = 200
MAX_ERROR_TYPES: Final = 50
_CACHED: Final = 10_000
"""how many look-ups by the labels as given are cached; with detail="workflow" many lead to the same series"""

_NEVER_CAPPED: Final = {names.OTHER, names.UNKNOWN, *names.REFUSALS}
"""values of labels that have series whatever the number of others"""

Write = Callable[..., object]
"""a function that writes to one series: `(amount)`, or `(amount, exemplar)` for a counter or a histogram"""

Writes = tuple[Write, Write, Write]
"""the functions that record a successful step: the seconds it waited, its only attempt, and the seconds it took"""

Workers = Callable[[], tuple[int, int] | None]
"""returns an engine's busy threads, and how many of these are in calls that timed out; None if the engine is gone"""

IsOpen = Callable[[], bool]
"""returns whether an engine is open; each engine has one, so that it also identifies the engine"""

REPORTED: Final[tuple[Metric, ...]] = (
    *(names.STORE_RUNS, names.STORE_WAITING),
    *(names.SCHEDULE_NEXT, names.LAST_RECOVERY),
)
"""the gauges that engines report from time to time; their functions take the value and the engine's IsOpen"""
OF_THREADS: Final[tuple[Metric, ...]] = (names.STEPS_HELD_BACK, names.WORKERS, names.WORKERS_LIMIT)
"""the gauges that do not exist in prometheus_client's multiprocess mode"""
POLLED: Final[tuple[Metric, ...]] = (
    *(names.RUNS_ACTIVE, names.RUNS_QUEUED, names.STEPS_READY, names.OLDEST_START, names.CLOCK),
    *OF_THREADS,
    *REPORTED,
)
"""the gauges whose values are computed when they are read"""


class InFlightRun:
    """One run in flight, as one hook sees it."""

    __slots__ = ("at", "caller", "flow", "held_back", "schedule", "steps", "traced", "waiting", "wall")

    def __init__(self, flow: WorkflowSeries, at: float, wall: float, waiting: Callable[[], int]) -> None:
        self.flow = flow
        self.steps = flow.steps  # read for every step
        self.at = at
        self.wall = wall
        """seconds since the epoch at the moment `at`"""
        self.waiting = waiting
        """returns how many steps are ready and have not started"""
        self.held_back: Callable[[], int] = int
        """returns how many of these start only when another step of the run has ended"""
        self.traced: Traced | None = None
        """the run's spans, if they are sampled"""
        self.caller: Exemplar | None = None
        """the exemplar of the caller's span; used if `traced` is None"""
        self.schedule: str | None = None
        """the name of the schedule that started the run"""

    def exemplar(self, step: str | None = None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """Return the exemplar of the run, of a step, of its undo, or of the latest attempt of either.

        Without sampled spans it is that of the caller, or None.
        """
        return self.caller if self.traced is None else self.traced.exemplar(step, undo=undo, attempt=attempt)


class WorkflowSeries:
    """The runs of one workflow that are in flight, the ids of those that are queued, and the series that it often writes
    to: for each outcome of a run, and for the success of each step."""

    __slots__ = ("ends", "label", "queued", "runs", "steps")

    def __init__(self, label: str) -> None:
        self.label = label
        self.runs: dict[InFlightRun, None] = {}  # in the order of their starts; adding or removing one is atomic
        self.queued: dict[str, None] = {}
        self.steps: dict[str, Writes] = {}
        self.ends: dict[str, tuple[Write, ...]] = {}

    def enqueue(self, run_id: str) -> None:
        self.queued[run_id] = None

    def dequeue(self, run_id: str) -> None:
        """Remove a run from the queued ones. Does nothing for a run of the process that this one was forked from."""
        self.queued.pop(run_id, None)

    def begin(self, at: float, wall: float, waiting: Callable[[], int]) -> InFlightRun:
        run = InFlightRun(self, at, wall, waiting)
        self.runs[run] = None
        return run

    def end(self, run: InFlightRun) -> None:
        """Remove a run that has ended. Does nothing for a run of the process that this one was forked from."""
        self.runs.pop(run, None)
        run.held_back = int  # breaks a reference cycle through the state of the run

    def forget(self) -> None:
        """Drop all runs after a fork: they belong to the parent process."""
        self.runs.clear()
        self.queued.clear()

    def active(self) -> int:
        return len(self.runs)

    def waiting(self) -> int:
        return len(self.queued)

    def ready(self) -> int:
        return sum(run.waiting() for run in self.runs.copy())

    def held_back(self) -> int:
        return sum(run.held_back() for run in self.runs.copy())

    def oldest(self) -> float:
        """When the oldest run in flight started, in seconds since the epoch; +Inf when there is none."""
        return min((run.wall for run in self.runs.copy()), default=math.inf)


class Engines:
    """The threads of all engines that still exist. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[tuple[Workers, int]] = []

    def add(self, workers: Workers, limit: int) -> None:
        """Add an engine with at most `limit` busy threads, and drop engines that no longer exist."""
        with self._lock:
            self._engines = [*self._living(), (workers, limit)]

    def _living(self) -> list[tuple[Workers, int]]:
        return [engine for engine in self._engines if engine[0]() is not None]

    def limit(self) -> int:
        """The number of threads that may be busy at the same time."""
        return sum(limit for _, limit in self._living())

    def threads(self) -> dict[str, int]:
        """The number of threads in each state: busy or abandoned."""
        counts = [count for workers, _ in self._engines if (count := workers()) is not None]
        abandoned = sum(stuck for _, stuck in counts)
        return {"busy": sum(busy for busy, _ in counts) - abandoned, "abandoned": abandoned}


class Reports:
    """What the open engines reported last about one metric, by labels. Thread-safe."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop all reports after a fork: they are about the engines of the parent process."""
        self._lock = threading.Lock()
        self._values: dict[IsOpen, dict[tuple[str, ...], float]] = {}

    def put(self, labels: tuple[str, ...], value: float, engine: IsOpen) -> None:
        with self._lock:
            if engine not in self._values:
                self._values = {one: values for one, values in self._values.items() if one()}
            self._values.setdefault(engine, {})[labels] = value

    def read(self) -> list[tuple[tuple[str, ...], float]]:
        """Return the value for each of the labels: the largest one, if several engines have reported it."""
        with self._lock:
            found: dict[tuple[str, ...], float] = {}
            for engine, values in self._values.items():
                for labels, value in values.items() if engine() else ():
                    found[labels] = max(value, found.get(labels, value))
            return list(found.items())


class Series(ABC):
    """All time series of one destination, shared by the hooks that write to it. Thread-safe."""

    by_step = True
    """whether each step has series of its own"""
    reported: Collection[Metric] = REPORTED
    """those of the REPORTED gauges that are computed when they are read"""

    def __init__(self) -> None:
        self.known: dict[Metric, dict[tuple[str, ...], Write]] = {metric: {} for metric in names.METRICS}
        """the series so far, by the labels as given"""
        self._lock = threading.RLock()
        self._seen: dict[str, set[tuple[str, ...]]] = {
            label: set() for label in ("workflow", "step", "schedule", "error_type")
        }
        self._warned: set[str] = set()
        self._counting: dict[tuple[Write, str], Write] = {}  # the functions for series `_other`, by hook
        self._flows: dict[str, WorkflowSeries] = {}  # by label, and by the workflow's name as given
        self._engines = Engines()
        self._reports = {metric: Reports() for metric in REPORTED}
        _watch_forks()
        _all.add(self)

    @abstractmethod
    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        """Make one series, which starts at 0, and return the function that writes to it."""

    def new(self, metric: Metric, labels: tuple[str, ...], max_pairs: int, hook: str) -> Write:
        """Return the function that writes to the series of these labels or, past a limit, to the series `_other`.

        `max_pairs`: how many pairs of a workflow and a step, or a schedule, have series. `hook`: the name of the hook,
        by which measurements that are written past a limit are counted.
        """
        with self._lock:
            fitting = dict(zip(metric.labels, map(fit, labels), strict=True))
            capped = self._cap(fitting, "workflow", ("workflow",), MAX_WORKFLOWS)
            if self.by_step or "step" not in fitting:
                capped |= self._cap(fitting, "step", ("workflow", "step"), max_pairs)
            else:
                fitting["step"] = names.ALL_STEPS
            capped |= self._cap(fitting, "schedule", ("workflow", "schedule"), max_pairs)
            capped |= self._cap(fitting, "error_type", ("error_type",), MAX_ERROR_TYPES)
            values = tuple(fitting.values())
            known = self.known[metric]
            write = known.get(values)
            if write is None and metric in self.reported:
                write = known[values] = functools.partial(self._reports[metric].put, values)
            elif write is None:
                write = known[values] = self.make(metric, values)
            if not capped and len(known) < max(_CACHED, max_pairs):  # otherwise each look-up calls this method again
                known[labels] = write
            if capped:
                known_as = write, hook
                if known_as not in self._counting:
                    self._counting[known_as] = _counted(write, self.new(names.CAPPED, (hook,), max_pairs, hook))
                write = self._counting[known_as]
            return write

    def _cap(self, labels: dict[str, str], label: str, counted: tuple[str, ...], limit: int) -> bool:
        """Replace the value of `label` by `_other` if it is new and the labels `counted` already have `limit` values.

        Returns whether it was replaced.
        """
        if label not in labels or labels[label] in _NEVER_CAPPED:
            return False
        value, seen = tuple(labels[name] for name in counted), self._seen[label]
        if value in seen:
            return False
        if len(seen) < limit:
            seen.add(value)
            return False
        labels[label] = names.OTHER
        if label not in self._warned:
            self._warned.add(label)
            _log.warning("metrics: more than %d values for the label %s, the rest become %s", limit, label, names.OTHER)
        return True

    def forked(self) -> None:
        """Drop what is the parent's after a fork: runs in flight, engines, reports, and a lock that its threads may
        hold."""
        self._lock = threading.RLock()
        self._engines = Engines()
        for flow in self._flows.values():
            flow.forget()
        for reports in self._reports.values():
            reports.forget()

    # -- what is in flight ---------------------------------------------------------------------------------------------

    def flow(self, workflow: str) -> WorkflowSeries:
        """Return the series of a workflow or, past the limit, those that all other workflows share."""
        return self._flows.get(workflow) or self._new_flow(workflow)

    def _new_flow(self, workflow: str) -> WorkflowSeries:
        with self._lock:
            labels = {"workflow": fit(workflow)}
            capped = self._cap(labels, "workflow", ("workflow",), MAX_WORKFLOWS)
            label = labels["workflow"]
            flow = self._flows.get(label)
            if flow is None:
                flow = self._flows[label] = self.make_flow(label)
            if not capped:
                self._flows[workflow] = flow
            return flow

    def make_flow(self, label: str) -> WorkflowSeries:
        """Make the object that keeps the runs in flight of one workflow."""
        return WorkflowSeries(label)

    def add_engine(self, workers: Workers, limit: int) -> None:
        """Add an engine, of whose threads at most `limit` are busy at the same time, to the gauges of threads."""
        self._engines.add(workers, limit)

    def poll(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """Return the current values of one of the POLLED gauges, each with its labels."""
        if metric is names.CLOCK:
            return [((), time.time())]
        if metric is names.WORKERS_LIMIT:
            return [((), self._engines.limit())]
        if metric is names.WORKERS:
            return [((state,), number) for state, number in self._engines.threads().items()]
        if metric in self._reports:
            return self._reports[metric].read()
        with self._lock:
            flows = {flow.label: flow for flow in self._flows.values()}
        values = {
            names.RUNS_ACTIVE: WorkflowSeries.active,
            names.RUNS_QUEUED: WorkflowSeries.waiting,
            names.STEPS_READY: WorkflowSeries.ready,
            names.STEPS_HELD_BACK: WorkflowSeries.held_back,
            names.OLDEST_START: WorkflowSeries.oldest,
        }
        value: Callable[[WorkflowSeries], float] = values[metric]
        return [((label,), value(flow)) for label, flow in flows.items()]


def _counted(write: Write, count: Write) -> Write:
    """Return a function that writes as `write` does, and counts that."""

    def counted(*measured: object) -> object:
        count(1)
        return write(*measured)

    return counted


D = TypeVar("D")
S = TypeVar("S", bound=Series)


def one_for_each(make: Callable[[D], S]) -> Callable[[D], S]:
    """Return a function that calls `make` once for each destination, and returns the same object for it afterwards."""
    made: weakref.WeakKeyDictionary[D, S] = weakref.WeakKeyDictionary()
    lock = threading.Lock()

    def find(destination: D) -> S:
        with lock:
            series = made.get(destination)
            if series is None:
                series = made[destination] = make(destination)
            return series

    return find


_all: Final[weakref.WeakSet[Series]] = weakref.WeakSet()


@functools.cache  # a fork handler cannot be removed, so it is registered once
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for series in list(_all):
        series.forked()
