"""Scaling: what a step costs as workflows grow, as more runs go on at the same time, and what a run in flight weighs.

Each curve should be flat. `relative` here is the curve's own first point.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from . import memory
from .harness import Options, Report, Row
from .subjects import FlowcoreAsync, FlowcoreThreads, Subject, workflow
from .work import ASYNC, SYNC, Flavour, Work, chain, fan

STEPS = (10, 100, 1_000, 10_000, 100_000)
RUNS = (1, 10, 100, 1_000)
IN_FLIGHT = (1_000, 5_000, 20_000)

Curve = dict[int, float]
Timed = Callable[[], float]


def measure(options: Options) -> Report:
    report = Report("scaling", "cost as things grow", "µs per step, KiB per run", "the curve's first point")
    sizes = STEPS[:4] if options.quick else STEPS
    shapes: dict[str, Callable[[Flavour, int], Work]] = {
        "chain": lambda flavour, size: chain([flavour.noop] * size, is_async=flavour.is_async),
        "fan out and in": lambda flavour, size: fan(size - 2, flavour.noop, is_async=flavour.is_async),
    }
    for make in (FlowcoreThreads, FlowcoreAsync):
        if not options.wants(make.name):
            continue
        flavour = ASYNC if make.is_async else SYNC
        with asyncio.Runner() as runner:
            report.rows.extend(
                row
                for shape, work in shapes.items()
                for row in rows(
                    f"{make.name}, {shape}",
                    "steps",
                    {size: per_step(make(), work(flavour, size), size, options, runner) for size in sizes},
                )
            )
            concurrent = {runs: concurrently(make(), runs, options, runner) for runs in RUNS}
        report.rows.extend(rows(f"{make.name}, chains of 10", "runs at once", concurrent))
        weights = {
            runs: memory.growth(make.name, runs) / runs / 1024 for runs in IN_FLIGHT[: 2 if options.quick else 3]
        }
        report.rows.extend(rows(f"{make.name}, KiB a run", "in flight", weights))
    if options.wants("definition"):
        report.rows.extend(rows("definition, chain", "steps", {size: defining(size) for size in sizes}))
    return report


def rows(what: str, of: str, curve: Curve) -> Iterable[Row]:
    first = next(iter(curve.values()))
    return [Row(f"{what}: {size:,} {of}", figure, None, figure / first) for size, figure in curve.items()]


def per_step(subject: Subject, work: Work, size: int, options: Options, runner: asyncio.Runner) -> float:
    """µs per step of one run alone."""
    run = subject.prepare(work)
    number = max(1, 20_000 // size)

    async def several() -> None:
        for _ in range(number):
            await run()

    def once() -> None:
        if subject.is_async:
            runner.run(several())
        else:
            for _ in range(number):
                run()

    return timed(once, options.rounds) / number / size * 1e6


def concurrently(
    subject: FlowcoreThreads | FlowcoreAsync, runs: int, options: Options, runner: asyncio.Runner
) -> float:
    """µs per step of chains of ten that all go on at once; async steps give way once, so that the runs do mix."""
    number = max(1, 1_000 // runs)
    if isinstance(subject, FlowcoreThreads):
        engine, wf = subject.engine, workflow(chain([SYNC.noop] * 10, is_async=False))

        def on_threads() -> None:
            for _ in range(number):
                futures: list[Future[Any]] = [engine.submit(wf) for _ in range(runs)]
                for future in futures:
                    future.result()

        return timed(on_threads, options.rounds) / number / runs / 10 * 1e6

    run = subject.prepare(chain([ASYNC.pause(0)] * 10, is_async=True))

    async def on_the_loop() -> None:
        for _ in range(number):
            await asyncio.gather(*(run() for _ in range(runs)))

    return timed(lambda: runner.run(on_the_loop()), options.rounds) / number / runs / 10 * 1e6


def defining(size: int) -> float:
    """µs per step for defining a workflow and compiling its plan, once."""
    work = chain([SYNC.noop] * size, is_async=False)
    number = max(1, 10_000 // size)

    def define() -> None:
        for _ in range(number):
            workflow(work).layers()

    return timed(define, 3) / number / size * 1e6


def timed(once: Callable[[], object], rounds: int) -> float:
    """The median of the seconds that it takes, after a first time."""
    once()
    samples: list[float] = []
    for _ in range(rounds):
        gc.collect()
        before = time.perf_counter()
        once()
        samples.append(time.perf_counter() - before)
    return statistics.median(samples)
