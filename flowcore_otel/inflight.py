"""What is going on right now: runs in flight and engines' threads, for gauges that ask whenever somebody reads them.

Nothing is written while steps come and go, so that such gauges cost a run next to nothing, and a forked child begins
with none of its parent's.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

from . import names
from .exemplars import Exemplar, Traced
from .names import Metric

__all__ = ["ASKED", "Engines", "InFlightRun", "Workers", "WorkflowSeries", "Write", "Writes"]

Write = Callable[..., object]
"""writes an amount to one series: `(amount)`, or `(amount, exemplar)` for a counter or a histogram"""

Writes = tuple[Write, Write, Write]
"""a step that went well: writes what it waited, what its only attempt took, and what all of it took"""

Workers = Callable[[], tuple[int, int] | None]
"""one engine's threads: busy ones, and how many of these are stuck in calls that were given up; None: it is gone"""

ASKED: Final[tuple[Metric, ...]] = (names.RUNS_ACTIVE, names.STEPS_READY, names.OLDEST_START, names.WORKERS)
"""the gauges that ask"""


class InFlightRun:
    """One run in flight, as one hook sees it."""

    __slots__ = ("at", "caller", "flow", "steps", "traced", "waiting", "wall")

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
        self._engines: list[Workers] = []

    def add(self, workers: Workers) -> None:
        """There is one more; those that are gone are forgotten."""
        with self._lock:
            self._engines = [engine for engine in self._engines if engine() is not None] + [workers]

    def threads(self) -> dict[str, int]:
        """How many threads there are in which state."""
        told = [numbers for engine in self._engines if (numbers := engine()) is not None]
        abandoned = sum(stuck for _, stuck in told)
        return {"busy": sum(busy for busy, _ in told) - abandoned, "abandoned": abandoned}
