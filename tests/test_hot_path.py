"""What the hot paths cost, counted instead of timed: a slower machine changes nothing, a heavier engine does.

Per run of a workload: calls that flowcore's code makes or is made by (`sys.setprofile`; asyncio's own are not counted),
the most memory that the run holds at one time, the objects that it leaves to the garbage collector, and the times that it
reads a clock. Figures are for CPython 3.11; the margin covers the newer ones. When a change makes a path lighter, the
test asks for the new figure, so that the next change cannot eat what was gained.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import flowcore
from flowcore import AsyncEngine, Engine, Logger
from flowcore.events import Hook

from .benchmarks import w1_chain_of_10, w3_fan_out, w5_saga, w6_retries
from .benchmarks.subjects import workflow
from .benchmarks.work import ASYNC, SYNC

FLOWCORE = str(Path(flowcore.__file__).parent)
RUNS = 20
MARGIN = 1.1
SWAYS = {"garbage": 2, "peak": 1000}
"""The garbage of a run on threads depends on who comes when; and whether the block of a deque comes from CPython's
free list, and counts for nothing, on what ran before."""
SLACK = 0.8
"""A path that costs less than this part of its figure needs a new figure."""


class Cost(NamedTuple):
    """Of one run."""

    calls: float
    peak: float
    """bytes"""
    garbage: float
    """objects that only the garbage collector can free: cycles"""
    clock_reads: float = 0.0


FIGURES = {
    ("W1", "Engine"): Cost(45, 2600, 0),
    ("W1", "AsyncEngine"): Cost(55, 4944, 0),
    ("W3", "Engine"): Cost(1585, 11488, 12),
    ("W3", "AsyncEngine"): Cost(1305, 17996, 0),
    ("W5", "Engine"): Cost(404, 12115, 42),
    ("W5", "AsyncEngine"): Cost(425, 16308, 33),
    ("W6", "Engine"): Cost(126, 9800, 0),
    ("W6", "AsyncEngine"): Cost(120, 12700, 0),
}
"""`python -m tests.test_hot_path` prints them anew"""

WORKS = {"W1": w1_chain_of_10.work, "W3": w3_fan_out.work, "W5": w5_saga.work, "W6": w6_retries.work}
ENGINES: tuple[type[Engine | AsyncEngine], ...] = (Engine, AsyncEngine)

Runs = Callable[[int], None]
"""makes that many runs"""


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Spares the collector what earlier tests have left: it is called a thousand times here."""
    gc.collect()
    gc.freeze()


@contextmanager
def runs_of(
    engine_type: type[Engine | AsyncEngine], workload: str, hooks: tuple[Hook, ...] = ()
) -> Iterator[tuple[Runs, Engine | AsyncEngine]]:
    """A function that makes runs of a workload, warmed up, and the engine that it makes them on."""
    engine = engine_type(hooks=hooks)
    if isinstance(engine, Engine):
        sync_workflow = workflow(WORKS[workload](SYNC))

        def on_threads(number: int) -> None:
            for _ in range(number):
                engine.run(sync_workflow, check=False)

        on_threads(RUNS)
        yield on_threads, engine
        engine.close()
        return

    async_workflow = workflow(WORKS[workload](ASYNC))

    async def several(number: int) -> None:
        for _ in range(number):
            await engine.run(async_workflow, check=False)

    with asyncio.Runner() as runner:

        def on_the_loop(number: int) -> None:
            runner.run(several(number))

        on_the_loop(RUNS)
        yield on_the_loop, engine
        runner.run(engine.aclose())


def cost(engine_type: type[Engine | AsyncEngine], workload: str, hooks: tuple[Hook, ...] = ()) -> Cost:
    counting = Calls()
    threading.setprofile(counting)  # for the engine's threads, which start while it warms up
    try:
        with runs_of(engine_type, workload, hooks) as (runs, engine):
            calls = statistics.median(counting.of(runs, RUNS) for _ in range(3))
            reads = clock_reads(engine, runs)
            threading.setprofile(None)
    finally:
        threading.setprofile(None)
    with untraced(), runs_of(engine_type, workload, hooks) as (runs, _):
        return Cost(calls, peak(runs), garbage(runs), reads)


@contextmanager
def untraced() -> Iterator[None]:
    """Without the frames that measuring coverage keeps in memory."""
    trace, thread_trace = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(thread_trace)
        sys.settrace(trace)


class Calls:
    """A profile function that counts the calls of flowcore's functions and those that they make to C."""

    def __init__(self) -> None:
        self._number = 0
        self._counting = False
        self._ours: dict[str, bool] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if self._counting and event in {"call", "c_call"}:
            file = frame.f_code.co_filename
            ours = self._ours.get(file)
            if ours is None:
                ours = self._ours[file] = file.startswith(FLOWCORE)
            self._number += ours

    def of(self, runs: Runs, number: int) -> float:
        """Per run. Only this thread's and those that were started under this profile function."""
        before = sys.getprofile()
        self._number, self._counting = 0, True
        sys.setprofile(self)
        try:
            runs(number)
        finally:
            sys.setprofile(before)
            self._counting = False
        return self._number / number


def peak(runs: Runs) -> float:
    """Bytes that one run holds at its peak; the least of a few, for the engine's threads come and go."""
    tracemalloc.start()
    try:
        peaks: list[int] = []
        for _ in range(RUNS):
            gc.collect()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            runs(1)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return min(peaks)


def garbage(runs: Runs) -> float:
    gc.collect()
    gc.disable()
    try:
        runs(1)
        outside = gc.collect()
        runs(RUNS + 1)
        return (gc.collect() - outside) / RUNS
    finally:
        gc.enable()


def clock_reads(engine: Engine | AsyncEngine, runs: Runs) -> float:
    settings, number = engine._settings, 0
    clock, wall = settings.clock, settings.wall

    def counted(read: Callable[[], float]) -> Callable[[], float]:
        def reading() -> float:
            nonlocal number
            number += 1
            return read()

        return reading

    settings.clock, settings.wall = counted(clock), counted(wall)
    try:
        runs(RUNS)
    finally:
        settings.clock, settings.wall = clock, wall
    return number / RUNS


def judge(cost: Cost, figure: Cost, *, ratchet: bool = True) -> None:
    for name, now, then in zip(Cost._fields, cost, figure, strict=True):
        assert now <= then * MARGIN + SWAYS.get(name, 0), f"{name} per run: {now:g}, was {then:g}"
    if ratchet:
        assert cost.calls >= figure.calls * SLACK, f"lighter than its figure: commit {cost.calls:g} calls"
        assert cost.peak >= figure.peak * SLACK, f"lighter than its figure: commit {cost.peak:g} bytes"


class Listening(Logger):
    """Hears one event of each step."""

    def step_started(self, event: Any) -> None:
        pass


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("workload", WORKS)
def test_a_run_costs_no_more_than_its_figure(engine, workload):
    steady = (workload, engine) != ("W3", Engine)  # on threads, a fan holds as much as who comes when
    judge(
        cost(engine, workload), FIGURES[workload, engine.__name__], ratchet=steady and sys.version_info[:2] == (3, 11)
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("workload", ["W1", "W5", "W6"])  # on threads, the fan of W3 depends on who comes when
def test_a_logger_that_overrides_nothing_costs_nothing(engine, workload):
    silent, logged, again = (cost(engine, workload, hooks) for hooks in ((), (Logger(),), ()))
    assert logged.calls == silent.calls
    assert logged.clock_reads == silent.clock_reads == 0
    assert logged.garbage == silent.garbage
    assert logged.peak <= max(silent.peak, again.peak) + SWAYS["peak"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_guard_sees_a_single_listener(engine):
    heavier = cost(engine, "W1", (Listening(),))
    silent = FIGURES["W1", engine.__name__]
    assert heavier.calls > silent.calls * MARGIN
    assert heavier.peak > silent.peak * MARGIN
    assert heavier.clock_reads >= 10
    with pytest.raises(AssertionError, match="calls per run"):
        judge(heavier, silent)


@pytest.mark.parametrize("field", Cost._fields)
def test_the_guard_fails_for_each_kind_of_cost(field):
    figure = Cost(100, 10_000, 20)
    judge(figure, figure)
    with pytest.raises(AssertionError, match=f"{field} per run"):
        judge(figure._replace(**{field: getattr(figure, field) * 1.2 + 1}), figure)


def test_the_guard_asks_for_a_new_figure_when_a_path_has_become_lighter():
    with pytest.raises(AssertionError, match="commit 79 calls"):
        judge(Cost(79, 1000, 0), Cost(100, 1000, 0), ratchet=True)


if __name__ == "__main__":
    for name in WORKS:
        for kind in ENGINES:
            calls, bytes_, objects, _ = cost(kind, name)
            print(f'    ("{name}", "{kind.__name__}"): Cost({calls:.0f}, {bytes_:.0f}, {objects:.0f}),')
