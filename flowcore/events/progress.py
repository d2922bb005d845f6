"""`ProgressHook` shows the progress of runs, on a terminal or as plain lines."""

from __future__ import annotations

import atexit
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TextIO

from ..errors import safe_repr
from ..forks import after_fork_in_child
from ..retry import Duration, seconds
from ..status import Status
from .base import Event
from .of_engines import (
    WorkflowRegistered,
)
from .records import (
    IdempotencyHit,
    RunFinished,
    RunRefused,
    RunStarted,
    StepFinished,
    StepSkipped,
    StepStarted,
)

__all__ = ["ProgressHook"]

_TICK: Final = 0.1
"""seconds between two updates of the display"""
_IDLE: Final = 1.0
"""seconds without a run in flight after which the display is closed"""
_WORDS: Final[Mapping[str, str]] = {
    Status.FAILURE: "failed",
    Status.COMPENSATION_FAILED: "not undone",
    "replayed": "replayed",
    "adopted": "replayed",
}
"""the words for outcomes whose own name does not fit after a number"""


class Tally:
    """The counts of the runs of one workflow. They are changed under the hook's lock."""

    __slots__ = ("began", "changed", "ended", "outcomes", "running", "started", "steps", "steps_done", "total")

    def __init__(self, steps: int, total: int | None) -> None:
        self.steps = steps
        self.total = total
        """the total number of runs, if it is known"""
        self.began = time.monotonic()
        self.started = self.ended = self.steps_done = 0
        self.outcomes: Counter[str] = Counter()
        self.running: dict[str, None] = {}
        """the names of the steps in progress, while there has been only one run"""
        self.changed = True

    @property
    def in_flight(self) -> int:
        """The number of runs that have started and not ended."""
        return max(0, self.started - self.ended)

    @property
    def alone(self) -> bool:
        """Whether there has been only one run, so that its steps are shown."""
        return self.started <= 1 and self.total is None and self.ended <= 1 and not self.outcomes["replayed"]

    def end(self, outcome: str) -> None:
        """Count a run that has ended, or that never began."""
        self.ended += 1
        self.outcomes[outcome] += 1
        self.running.clear()
        self.changed = True

    def detail(self) -> str:
        """Describe in words what happens now and what went wrong."""
        if self.alone and self.ended:
            (outcome,) = self.outcomes or ("",)
            return outcome
        if self.alone:
            return ", ".join(self.running)
        parts = [
            f"{n:,} {_WORDS.get(word, word)}" for word, n in sorted(self.outcomes.items()) if word != Status.SUCCESS
        ]
        if self.in_flight:
            parts.append(f"{self.in_flight:,} in flight")
        spent = time.monotonic() - self.began
        if spent >= 1:
            parts.append(f"{self.ended / spent:,.0f}/s")
        return ", ".join(parts)

    def count(self) -> tuple[int, int | None, str]:
        """Return how many are done, the total (None if unknown), and what is counted: steps or runs."""
        if self.alone:
            return self.steps_done, self.steps or None, "steps"
        return self.ended, self.total, "runs"


class ProgressHook:
    """Shows the progress of runs: a bar for each workflow on a terminal, or else plain lines.

    The bars need rich, from the extra `cli`. Plain lines come every few seconds and at the end. Of a single run the
    steps are shown; several runs are counted.

        with ProgressHook(total=len(rows)) as progress, Engine(hooks=[progress]) as engine:
            for run in engine.map(wf, rows): ...

    `total`: the number of runs to come, of the first workflow that runs. `file`: where to write (default: stderr).
    `every`: seconds between two plain lines. The hook only counts events; a separate thread draws, so that neither a
    slow terminal nor a full pipe slows a run. The display is closed by `close`, at the end of `with`, or, outside of
    `with`, when no run has been in flight for a second. Thread-safe.
    """

    def __init__(self, total: int | None = None, *, file: TextIO | None = None, every: Duration = 5.0) -> None:
        self._total = total
        self._file = file
        self._every = seconds(every, "every=")
        self._tallies: dict[str, Tally] = {}
        self._steps: dict[str, int] = {}
        self.handlers: Mapping[type[Event], Callable[[Any], object]] = {
            WorkflowRegistered: self._registered,
            RunStarted: self._run_started,
            RunFinished: self._run_finished,
            RunRefused: self._run_refused,
            IdempotencyHit: self._hit,
            StepStarted: self._step_started,
            StepFinished: self._step_finished,
            StepSkipped: self._step_skipped,
        }
        self.wants = frozenset(self.handlers)
        self._in_with_block = False
        self._reset()
        after_fork_in_child(self, ProgressHook._reset)
        atexit.register(_close, weakref.ref(self))

    def _reset(self) -> None:
        """Start without thread and counts. A forked child does so too, because its parent draws the earlier runs."""
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._tallies.clear()

    def __call__(self, event: Event, /) -> None:
        handler = self.handlers.get(type(event))
        if handler is not None:
            handler(event)

    # -- counting, where the runs are ----------------------------------------------------------------------------------

    def _registered(self, event: WorkflowRegistered) -> None:
        self._steps[event.workflow] = len(event.steps)

    def _tally(self, workflow: str) -> Tally:
        """Return the counts of a workflow, and start the drawing thread if needed. The caller holds the lock."""
        tally = self._tallies.get(workflow)
        if tally is None:
            total = self._total if not self._tallies else None
            tally = self._tallies[workflow] = Tally(self._steps.get(workflow, 0), total)
        if self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._draw, name="flowcore-progress", daemon=True)
            self._thread.start()
        return tally

    def _run_started(self, event: RunStarted) -> None:
        with self._lock:
            tally = self._tally(event.workflow)
            tally.started += 1
            tally.changed = True

    def _run_finished(self, event: RunFinished) -> None:
        with self._lock:
            self._tally(event.workflow).end(event.outcome)

    def _run_refused(self, event: RunRefused) -> None:
        if not event.overtaken:
            self._never_began(event.workflow, "refused")

    def _hit(self, event: IdempotencyHit) -> None:
        replayed = event.outcome in {"replayed", "adopted"}
        self._never_began(event.workflow, "replayed" if replayed else "refused")

    def _never_began(self, workflow: str, outcome: str) -> None:
        with self._lock:
            tally = self._tally(workflow)
            tally.started += 1
            tally.end(outcome)

    def _step_started(self, event: StepStarted) -> None:
        tally = self._tallies.get(event.workflow)
        if tally is not None and tally.alone:
            with self._lock:
                tally.running[event.step] = None
                tally.changed = True

    def _step_finished(self, event: StepFinished) -> None:
        tally = self._tallies.get(event.workflow)
        if tally is not None and tally.alone:
            with self._lock:
                tally.running.pop(event.step, None)
                tally.steps_done += event.outcome == Status.SUCCESS
                tally.changed = True

    def _step_skipped(self, event: StepSkipped) -> None:
        tally = self._tallies.get(event.workflow)
        if tally is not None and tally.alone:
            with self._lock:
                tally.steps_done += 1
                tally.changed = True

    # -- drawing, on a thread of its own -------------------------------------------------------------------------------

    def close(self) -> None:
        """Draw the final counts and close the display. The next run opens it again."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._over.set()
            thread.join(_IDLE * 2)

    def __enter__(self) -> Self:
        self._in_with_block = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_with_block = False
        self.close()

    def _draw(self) -> None:
        display, idle = Display(), 0.0
        try:
            display = self._display()
            while not self._over.wait(_TICK):
                idle = 0.0 if any(tally.in_flight for tally in list(self._tallies.values())) else idle + _TICK
                if idle >= _IDLE and not self._in_with_block:
                    break
                display.show(dict(self._tallies))
            display.end(self._ended())
        except Exception:  # noqa: BLE001 - a terminal that is gone, or a closed file, must not disturb a run
            display.give_up()
            self._ended()

    def _ended(self) -> dict[str, Tally]:
        """Return the final counts. Later runs are counted from zero, unless runs are still in flight."""
        with self._lock:
            self._thread, tallies = None, dict(self._tallies)
            if not any(tally.in_flight for tally in tallies.values()):
                self._tallies.clear()
            return tallies

    def _display(self) -> Display:
        file = sys.stderr if self._file is None else self._file
        if file.isatty():
            try:
                from .progress_bars import Bars
            except ImportError:  # without the extra `cli`
                return Lines(file, self._every)
            return Bars(file)
        return Lines(file, self._every)


class Display:
    """The base class of displays. It shows nothing."""

    def show(self, tallies: Mapping[str, Tally]) -> None:
        """Show the current counts."""

    def end(self, tallies: Mapping[str, Tally]) -> None:
        """Show the counts for the last time."""

    def give_up(self) -> None:
        """Restore the terminal without showing anything more."""


class Lines(Display):
    """Plain lines: every few seconds, one for each workflow whose counts have changed."""

    def __init__(self, file: TextIO, every: float) -> None:
        self._file = file
        self._every = every
        self._due = time.monotonic() + every

    def show(self, tallies: Mapping[str, Tally]) -> None:
        if time.monotonic() >= self._due:
            self.end(tallies)
            self._due = time.monotonic() + self._every

    def end(self, tallies: Mapping[str, Tally]) -> None:
        for name, tally in tallies.items():
            if tally.changed:
                tally.changed = False
                done, total, what = tally.count()
                of = "" if total is None else f" of {total:,}"
                detail = tally.detail()
                end = f", {detail}" if detail else ""
                self._file.write(f"{safe_repr(name)[1:-1]}: {done:,}{of} {what}{end}\n")
        self._file.flush()


def _close(reference: weakref.ref[ProgressHook]) -> None:
    """Close a display at the end of the process, so that the runs of the last second are shown too."""
    hook = reference()
    if hook is not None:
        hook.close()
