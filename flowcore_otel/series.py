"""Time series: made on first use, cached, and limited in number, whatever the destination."""

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
from .names import Metric
from .text import fit

__all__ = ["MAX_ERROR_TYPES", "MAX_WORKFLOWS", "Series", "Workers", "Write", "one_for_each"]

_log = logging.getLogger("flowcore")

MAX_WORKFLOWS: Final = 200
MAX_ERROR_TYPES: Final = 50

Workers = Callable[[], tuple[int, int] | None]
"""one engine's threads: busy ones, and how many of these are stuck in calls that were given up; None: it is gone"""

Write = Callable[..., object]
"""writes an amount to one series: `(amount)`, or `(amount, exemplar)` for a counter or a histogram"""


class Series(ABC):
    """All time series of one destination; hooks with the same destination share it. Thread-safe."""

    def __init__(self) -> None:
        self.known: dict[Metric, dict[tuple[str, ...], Write]] = {metric: {} for metric in names.METRICS}
        """the series so far, by the labels they were asked for with"""
        self._lock = threading.RLock()
        self._seen: dict[str, set[tuple[str, ...]]] = {"workflow": set(), "step": set(), "error_type": set()}
        self._warned: set[str] = set()
        self._in_flight: dict[str, dict[str, float]] = {}  # workflow -> run id -> start, in order of starting
        self._engines: list[Workers] = []
        _watch_forks()
        _all.add(self)

    @abstractmethod
    def make(self, metric: Metric, labels: tuple[str, ...]) -> Write:
        """Make one series, at 0, and the function that writes to it."""

    def new(self, metric: Metric, labels: tuple[str, ...], max_pairs: int, hook: str) -> Write:
        """The series of these labels, or past a limit the one that stands in for it; `hook` asks for it."""
        with self._lock:
            fitting = dict(zip(metric.labels, map(fit, labels), strict=True))
            capped = (
                self._cap(fitting, "workflow", ("workflow",), MAX_WORKFLOWS)
                | self._cap(fitting, "step", ("workflow", "step"), max_pairs)
                | self._cap(fitting, "error_type", ("error_type",), MAX_ERROR_TYPES)
            )
            values = tuple(fitting.values())
            known = self.known[metric]
            write = known.get(values)
            if write is None:
                write = known[values] = self.make(metric, values)
            if not capped:  # else each look-up comes here again: the cache keeps nothing without limit
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
        self._in_flight.clear()
        self._engines.clear()

    # -- runs in flight ------------------------------------------------------------------------------------------------

    def started(self, workflow: str, run_id: str, wall: float) -> None:
        with self._lock:
            self._in_flight.setdefault(workflow, {})[run_id] = wall

    def finished(self, workflow: str, run_id: str) -> None:
        with self._lock:
            runs = self._in_flight.get(workflow, {})
            runs.pop(run_id, None)
            if not runs:
                self._in_flight.pop(workflow, None)

    def oldest(self, workflow: str) -> float:
        """When the oldest run in flight started, in seconds since the epoch; +Inf when there is none."""
        with self._lock:
            return next(iter(self._in_flight.get(workflow, {}).values()), math.inf)

    def oldest_starts(self) -> list[tuple[str, float]]:
        """The same of every workflow with runs in flight."""
        with self._lock:
            return [(fit(workflow), next(iter(runs.values()))) for workflow, runs in self._in_flight.items()]

    # -- engines -------------------------------------------------------------------------------------------------------

    def add_engine(self, workers: Workers) -> None:
        """There is one more engine whose threads count; those that are gone are forgotten."""
        with self._lock:
            self._engines = [engine for engine in self._engines if engine() is not None] + [workers]

    def workers(self) -> dict[str, int]:
        """How many threads of all engines are in which state."""
        with self._lock:
            engines = list(self._engines)
        told = [numbers for engine in engines if (numbers := engine()) is not None]
        abandoned = sum(stuck for _, stuck in told)
        return {"busy": sum(busy for busy, _ in told) - abandoned, "abandoned": abandoned}


D = TypeVar("D")
S = TypeVar("S", bound=Series)


def one_for_each(make: Callable[[D], S]) -> Callable[[D], S]:
    """`make`, which is called once for each destination: whoever comes later shares what it made."""
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
