"""Time series: made on first use, cached, and limited in number, whatever the destination; and what is in flight now.

What is in flight is read when a gauge is read: nothing is written while steps come and go, so that such gauges cost a run
next to nothing, and a forked child begins with none of its parent's.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
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
    "Engines",
    "InFlightRun",
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
"""look-ups by the labels as given: with detail="workflow" they could be more than there are series"""


Write = Callable[..., object]
"""writes an amount to one series: `(amount)`, or `(amount, exemplar)` for a counter or a histogram"""

Writes = tuple[Write, Write, Write]
"""a step that went well: writes the seconds it waited, its only attempt, and the seconds it took"""

Workers = Callable[[], tuple[int, int] | None]
"""one engine's threads: busy ones, and how many of these are stuck in calls that timed out; None: it is gone"""

OF_THREADS: Final[tuple[Metric, ...]] = (names.WORKERS, names.WORKERS_LIMIT)
POLLED: Final[tuple[Metric, ...]] = (names.RUNS_ACTIVE, names.STEPS_READY, names.OLDEST_START, *OF_THREADS)
"""the gauges whose values are looked up when they are read"""


class InFlightRun:
    """One run in flight, as one hook sees it."""

    __slots__ = ("at", "caller", "flow", "schedule", "steps", "traced", "waiting", "wall")

    def __init__(self, flow: WorkflowSeries, at: float, wall: float, waiting: Callable[[], int]) -> None:
        self.flow = flow
        self.steps = flow.steps  # asked for on every step
        self.at = at
        self.wall = wall
        """seconds since the epoch at the moment `at`"""
        self.waiting = waiting
        """answers how many steps are ready and have not started"""
        self.traced: Traced | None = None
        """its spans, if they are sampled"""
        self.caller: Exemplar | None = None
        """without any: who asked for it"""
        self.schedule: str | None = None
        """the schedule that it is a run of"""

    def exemplar(self, step: str | None = None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """Of the run, of a step or of its undo, or of the latest attempt of these."""
        return self.caller if self.traced is None else self.traced.exemplar(step, undo=undo, attempt=attempt)


class WorkflowSeries:
    """One workflow: its runs in flight, and those of its series that most steps come through, by step."""

    __slots__ = ("label", "runs", "steps")

    def __init__(self, label: str) -> None:
        self.label = label
        self.runs: dict[InFlightRun, None] = {}  # in order of starting; adding and removing one is atomic
        self.steps: dict[str, Writes] = {}

    def begin(self, at: float, wall: float, waiting: Callable[[], int]) -> InFlightRun:
        run = InFlightRun(self, at, wall, waiting)
        self.runs[run] = None
        return run

    def end(self, run: InFlightRun) -> None:
        """The run is over; it may be that of another process, which has forked."""
        self.runs.pop(run, None)

    def forget(self) -> None:
        """This is another process: its runs are elsewhere."""
        self.runs.clear()

    def active(self) -> int:
        return len(self.runs)

    def ready(self) -> int:
        return sum(run.waiting() for run in self.runs.copy())

    def oldest(self) -> float:
        """When the oldest run in flight started, in seconds since the epoch; +Inf when there is none."""
        return min((run.wall for run in self.runs.copy()), default=math.inf)


class Engines:
    """The threads of all engines that are not gone. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: list[tuple[Workers, int]] = []

    def add(self, workers: Workers, limit: int) -> None:
        """There is one more, with at most `limit` threads at work; those that are gone are forgotten."""
        with self._lock:
            self._engines = [*self._living(), (workers, limit)]

    def _living(self) -> list[tuple[Workers, int]]:
        return [engine for engine in self._engines if engine[0]() is not None]

    def limit(self) -> int:
        """How many threads may be at work."""
        return sum(limit for _, limit in self._living())

    def threads(self) -> dict[str, int]:
        """How many threads there are in which state."""
        counts = [count for workers, _ in self._engines if (count := workers()) is not None]
        abandoned = sum(stuck for _, stuck in counts)
        return {"busy": sum(busy for busy, _ in counts) - abandoned, "abandoned": abandoned}


class Series(ABC):
    """All time series of one destination; hooks with the same destination share it. Thread-safe."""

    by_step = True
    """whether each step has series of its own"""

    def __init__(self) -> None:
        self.known: dict[Metric, dict[tuple[str, ...], Write]] = {metric: {} for metric in names.METRICS}
        """the series so far, by the labels they were asked for with"""
        self._lock = threading.RLock()
        self._seen: dict[str, set[tuple[str, ...]]] = {
            label: set() for label in ("workflow", "step", "schedule", "error_type")
        }
        self._warned: set[str] = set()
        self._flows: dict[str, WorkflowSeries] = {}  # by label, and by the names they were asked for with
        self._engines = Engines()
        _watch_forks()
        _all.add(self)

    @abstractmethod
    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        """Make one series, at 0, and the function that writes to it."""

    def new(self, metric: Metric, labels: tuple[str, ...], max_pairs: int, hook: str) -> Write:
        """The series of these labels, or past a limit the one that stands in for it; `hook` asks for it."""
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
            if write is None:
                write = known[values] = self.make(metric, values)
            if not capped and len(known) < max(_CACHED, max_pairs):  # else each look-up comes here again
                known[labels] = write
        if capped:
            self.new(names.CAPPED, (hook,), max_pairs, hook)(1, None)
        return write

    def _cap(self, labels: dict[str, str], label: str, counted: tuple[str, ...], limit: int) -> bool:
        """Whether `label` is past its limit and has become `_other`."""
        if label not in labels or labels[label] == names.OTHER:
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
        """This is a child process now: runs in flight and threads are its parent's, one of which may have held the lock."""
        self._lock = threading.RLock()
        self._engines = Engines()
        for flow in self._flows.values():
            flow.forget()

    # -- what is going on ----------------------------------------------------------------------------------------------

    def flow(self, workflow: str) -> WorkflowSeries:
        """The workflow of that name, or past the limit what stands for all others."""
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
        """What keeps the runs in flight of one workflow."""
        return WorkflowSeries(label)

    def add_engine(self, workers: Workers, limit: int) -> None:
        """There is one more engine whose threads count, at most `limit` of them at work."""
        self._engines.add(workers, limit)

    def poll(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """The values of one of the POLLED, now, with their labels."""
        if metric is names.WORKERS_LIMIT:
            return [((), self._engines.limit())]
        if metric is names.WORKERS:
            return [((state,), number) for state, number in self._engines.threads().items()]
        with self._lock:
            flows = {flow.label: flow for flow in self._flows.values()}
        values = {
            names.RUNS_ACTIVE: WorkflowSeries.active,
            names.STEPS_READY: WorkflowSeries.ready,
            names.OLDEST_START: WorkflowSeries.oldest,
        }
        value: Callable[[WorkflowSeries], float] = values[metric]
        return [((label,), value(flow)) for label, flow in flows.items()]


D = TypeVar("D")
S = TypeVar("S", bound=Series)


def one_for_each(make: Callable[[D], S]) -> Callable[[D], S]:
    """`make`, which is called once for each destination: later calls return what it made."""
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


@functools.cache  # once is enough, and it cannot be undone
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for series in list(_all):
        series.forked()
