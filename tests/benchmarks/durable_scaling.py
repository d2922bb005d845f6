"""What a durable step costs as runs grow longer and as more of them go on at the same time, and what a run in flight weighs.

Each curve should be flat: a checkpoint tells what has changed, not what the run is. `relative` here is the curve's own
first point. SQLite waits for the disk only where it says "full". Memory is measured in processes of their own:
`python -m tests.benchmarks.durable_scaling STORE URL RUNS STEPS` prints the bytes by which such a process has grown while
so many runs wait in their last step.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from flowcore import AsyncEngine
from flowcore.stores import AsyncRedisStore, RedisStore, SQLiteStore

from .durable_work import VALUES, Durable, DurableAsync, a_redis, book_async, work
from .harness import Options, Report, Row, Target, interleaved, median_ratio
from .memory import ROOT, resident
from .subjects import workflow
from .work import ASYNC, SYNC, chain

__all__ = ["measure"]

STEPS: Final = (10, 100, 1_000, 10_000)
AT_ONCE: Final = (1, 10, 100, 1_000)
IN_FLIGHT: Final = (100, 1_000, 5_000)
FLAT: Final = Target("the last point", 1.25, "the first")

Turn = Callable[[], float]


def measure(options: Options) -> Report:
    report = Report(
        "durable scaling", "durable runs as things grow", "µs per step, KiB per run or step", "the first point"
    )
    rounds = 3 if options.quick else 5
    with ExitStack() as stack, asyncio.Runner() as runner:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = a_redis(report, stack, folder / "redis")
        places = {"sqlite": str(folder / "sqlite")} | ({"redis": url} if url else {})
        for name, where in places.items():
            engine = Durable(_store(name, where))
            longer = {size: _longer(engine, size) for size in STEPS[: 3 if options.quick else 4]}
            report.rows += _curve(f"Engine on {name}", "steps", longer, rounds)
            more = {runs: _at_once(engine, runs) for runs in AT_ONCE}
            report.rows += _curve(f"Engine on {name}, chains of 10", "runs at once", more, rounds)
            engine.engine.close()
        waits = Durable(SQLiteStore(folder / "waits"))
        more = {runs: _at_once(waits, runs) for runs in AT_ONCE}
        report.rows += _curve("Engine on sqlite, full, chains of 10", "runs at once", more, rounds)
        waits.engine.close()
        if url:
            asynchronous = DurableAsync(_async_store(url))
            more = {runs: _awaited(asynchronous, runs, runner) for runs in AT_ONCE}
            report.rows += _curve("AsyncEngine on redis, chains of 10", "runs at once", more, rounds)
        for name, where in places.items():
            report.rows += _weights(name, where, options)
    return report


def _store(name: str, where: str) -> Any:
    if name == "sqlite":
        return SQLiteStore(where, durability="normal")
    import redis

    return RedisStore(redis.Redis.from_url(where))


def _async_store(url: str) -> Any:
    import redis.asyncio

    return AsyncRedisStore(redis.asyncio.Redis.from_url(url), prefix="async")


# -- time --------------------------------------------------------------------------------------------------------------


def _curve(what: str, of: str, turns: Mapping[int, Turn], rounds: int) -> list[Row]:
    """Microseconds per step at each size, the sizes taking turns."""
    for turn in turns.values():
        turn()
    samples = interleaved({str(size): turn for size, turn in turns.items()}, rounds)
    first, last, rows = str(min(turns)), max(turns), list[Row]()
    for size in turns:
        figure = statistics.median(samples[str(size)]) * 1e6
        ratio = median_ratio(samples, str(size), first)
        target = FLAT if size == last else None
        rows.append(Row(f"{what}: {size:,} {of}", figure, None, ratio, target, ratio if target else None))
    return rows


def _longer(engine: Durable, size: int) -> Turn:
    """Seconds per step of a run of so many, alone."""
    run, number = engine.prepare(work(SYNC, size)), max(1, 3_000 // size)

    def turn() -> float:
        before = time.perf_counter()
        for _ in range(number):
            run()
        return (time.perf_counter() - before) / number / size

    return turn


def _at_once(engine: Durable, runs: int) -> Turn:
    """Seconds per step of so many chains of ten that are submitted together."""
    submit, wf, rounds = engine.engine.submit, workflow(work(SYNC)), max(1, 300 // runs)

    def turn() -> float:
        before = time.perf_counter()
        for _ in range(rounds):
            for future in [submit(wf, VALUES) for _ in range(runs)]:
                future.result()
        return (time.perf_counter() - before) / rounds / runs / 10

    return turn


def _awaited(engine: DurableAsync, runs: int, runner: asyncio.Runner) -> Turn:
    """The same on an event loop."""
    run, rounds = engine.prepare(work(ASYNC)), max(1, 300 // runs)

    async def turn() -> float:
        before = time.perf_counter()
        for _ in range(rounds):
            await asyncio.gather(*(run() for _ in range(runs)))
        return (time.perf_counter() - before) / rounds / runs / 10

    return lambda: runner.run(turn())


# -- memory ------------------------------------------------------------------------------------------------------------


def _weights(name: str, where: str, options: Options) -> list[Row]:
    """KiB of a run of ten steps in flight, as there are more of them, and of a step of one run, as it has more."""
    rows: list[Row] = []
    runs = {
        number: _growth(name, where, number, 10) / number / 1024 for number in IN_FLIGHT[: 2 if options.quick else 3]
    }
    steps = {size: _growth(name, where, 1, size) / size / 1024 for size in STEPS[2:]}
    for what, of, curve in (("KiB a run", "in flight", runs), ("KiB a step", "steps", steps)):
        first = next(iter(curve.values()))
        rows += [
            Row(f"AsyncEngine on {name}, {what}: {size:,} {of}", kib, None, kib / first) for size, kib in curve.items()
        ]
    return rows


def _growth(name: str, where: str, runs: int, steps: int) -> int:
    """Bytes of growth with so many runs in flight, measured in a new process."""
    command = [sys.executable, "-m", f"{__package__}.durable_scaling", name, where, str(runs), str(steps)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout)


async def _suspended(store: Any, runs: int, steps: int) -> int:
    """Runs that all wait in their last step, each in a task."""
    gate, arrived = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(ctx: Any) -> None:
        arrived.release()
        await gate.wait()

    engine = AsyncEngine(store=store, lease=600)
    wf = workflow(chain([*[book_async] * (steps - 1), wait], is_async=True))
    gate.set()
    for _ in range(10 if runs > 1 else 1):
        await engine.run(wf, VALUES)
        await arrived.acquire()
    gate.clear()
    gc.collect()
    before = resident()
    tasks = [asyncio.create_task(engine.run(wf, VALUES)) for _ in range(runs)]
    for _ in tasks:
        await arrived.acquire()
    gc.collect()
    grown = resident() - before
    gate.set()
    await asyncio.gather(*tasks)
    await engine.aclose()
    return grown


def main(name: str, where: str, runs: int, steps: int) -> int:
    store = _async_store(where) if name == "redis" else _store(name, where)
    return asyncio.run(_suspended(store, runs, steps))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
