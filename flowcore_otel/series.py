"""Time series: made on first use, cached, and limited in number, whatever the destination."""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, TypeVar

from . import names
from .inflight import Engines, Workers, WorkflowSeries, Write
from .names import Metric
from .text import fit

__all__ = ["MAX_ERROR_TYPES", "MAX_WORKFLOWS", "Series", "one_for_each"]

_log = logging.getLogger("flowcore")

MAX_WORKFLOWS: Final = 200
MAX_ERROR_TYPES: Final = 50


class Series(ABC):
    """All time series of one destination; hooks with the same destination share it. Thread-safe."""

    def __init__(self) -> None:
        self.known: dict[Metric, dict[tuple[str, ...], Write]] = {metric: {} for metric in names.METRICS}
        """the series so far, by the labels they were asked for with"""
        self._lock = threading.RLock()
        self._seen: dict[str, set[tuple[str, ...]]] = {"workflow": set(), "step": set(), "error_type": set()}
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

    def add_engine(self, workers: Workers) -> None:
        """There is one more engine whose threads count."""
        self._engines.add(workers)

    def ask(self, metric: Metric) -> list[tuple[tuple[str, ...], float]]:
        """The values of one of the ASKED, now, with their labels."""
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
