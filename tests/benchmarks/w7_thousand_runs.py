"""W7: a thousand runs at the same time, of five 10 ms steps each, on one event loop; and the memory that they take.

No subject can be faster than 50 ms. Sync subjects get a thread for each run.
"""

from __future__ import annotations

import asyncio
import statistics
from concurrent.futures import ThreadPoolExecutor

from . import memory
from .harness import Options, Report, Row, Target, compare
from .subjects import Run, Subject
from .work import Flavour, Work, chain

RUNS = 1000
MEBIBYTE = 1024 * 1024

TARGETS = (
    Target("AsyncEngine", 1 / 0.75, "TaskGroup by hand"),  # three quarters of its runs per second
)
GROWTH = 10.0  # MiB
BY_HAND = 1.6


def work(flavour: Flavour) -> Work:
    return chain([flavour.pause(0.01)] * 5, is_async=flavour.is_async)


def at_once(subject: Subject, run: Run) -> Run:
    """A thousand of this run at the same time, as one."""
    if subject.is_async:

        async def gather() -> None:
            await asyncio.gather(*(run() for _ in range(RUNS)))

        return gather

    pool = ThreadPoolExecutor(RUNS)

    def wait() -> None:
        for future in [pool.submit(run) for _ in range(RUNS)]:
            future.result()

    return wait


def measure(options: Options) -> Report:
    title = "1,000 concurrent runs of five 10 ms steps"
    report = compare("W7", title, work, TARGETS, options, whole=at_once, without=("floor", "thread pool by hand"))
    for row in report.rows:
        row.note = f"{RUNS / row.figure * 1e6:,.0f} runs/s"
    report.unit = "µs for all"
    ours = next((row.ratio for row in report.rows if row.subject == "AsyncEngine"), None)
    if ours is not None:  # beside the least that can be written by hand, without any check
        target = Target("AsyncEngine", BY_HAND, "direct await")
        report.rows.append(Row("AsyncEngine, × direct await", ours, target=target, against=ours))
    report.rows.extend(growth(name, options) for name in ("direct await", "AsyncEngine") if options.wants(name))
    return report


def growth(name: str, options: Options) -> Row:
    """How much the resident memory of a process grows while it has all these runs in flight."""
    samples = [memory.growth(name, RUNS) / MEBIBYTE for _ in range(1 if options.quick else 3)]
    target = Target("AsyncEngine", GROWTH, "MiB") if name == "AsyncEngine" else None
    figure = statistics.median(samples)
    return Row(f"{name}: memory growth, MiB", figure, min(samples), None, target, figure if target else None)
