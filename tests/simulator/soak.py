"""A million runs in one process: memory stays flat, and no threads or tasks are left.

`python -m tests.simulator.soak [runs]` is not part of the normal test run. The engines have no hooks, as most have
none. The runs have keys or none; they are chains and fans, successes, retries, and failures that are undone; half of
them are on threads and half on asyncio.
"""

import asyncio
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flowcore import AsyncEngine, Context, Engine, Retry, Workflow
from flowcore.stores import MemoryStore
from flowcore.testing import no_waiting

ROUND = 20_000
WARM = 5
"""rounds until caches, arenas and the store's bound are full"""


def rss() -> float:
    """Return the resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def workflows(kind: str) -> list[Workflow]:
    """Return a chain three times, a fan, a workflow that retries, and one that fails and is undone."""

    def fine(ctx: Context) -> str:
        return ctx.step

    async def fine_async(ctx: Context) -> str:
        return ctx.step

    def flaky(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise ValueError(ctx.step)
        return ctx.step

    def fails(ctx: Context) -> None:
        raise ValueError(ctx.step)

    do: Any = fine if kind == "threads" else fine_async
    chain, fan, retried, failing = (Workflow(f"{kind} {name}") for name in ("chain", "fan", "retried", "failing"))
    for index in range(3):
        chain.add_step(f"s{index}", do, depends_on=[f"s{index - 1}"] if index else [], compensate=fine)
    for index in range(3):
        fan.add_step(f"f{index}", do)
    fan.add_step("join", do, depends_on=[f"f{index}" for index in range(3)])
    retried.add_step("flaky", flaky, retry=Retry(2))
    failing.add_step("a", do, compensate=fine)
    failing.add_step("b", fails, depends_on="a")
    return [chain, chain, chain, fan, retried, failing]


def on_threads(engine: Engine, some: list[Workflow], first: int, count: int) -> None:
    for number in range(first, first + count):
        key = f"k{number}" if number % 2 else None
        engine.run(some[number % len(some)], {"n": number}, idempotency_key=key, check=False)


async def on_asyncio(engine: AsyncEngine, some: list[Workflow], first: int, count: int) -> None:
    for number in range(first, first + count):
        key = f"k{number}" if number % 2 else None
        await engine.run(some[number % len(some)], {"n": number}, idempotency_key=key, check=False)


def soak(runs: int) -> list[float]:
    """Make so many runs, and return the resident memory after each round, in MB."""
    threads_before = threading.active_count()
    memory: list[float] = []
    sync, loop = workflows("threads"), workflows("asyncio")
    with Engine(store=MemoryStore(max_runs=1000)) as engine, asyncio.Runner() as runner:
        aengine = AsyncEngine(store=MemoryStore(max_runs=1000))
        began = time.monotonic()
        for first in range(0, runs, ROUND):
            half = min(ROUND, runs - first) // 2
            on_threads(engine, sync, first, half)
            runner.run(on_asyncio(aengine, loop, first + half, half))
            tasks = len(asyncio.all_tasks(runner.get_loop()))
            gc.collect()
            memory.append(rss())
            print(
                f"{first + 2 * half:>9,} runs  {memory[-1]:7.1f} MB  {threading.active_count()} threads  {tasks} tasks"
                f"  {len(gc.get_objects()):,} objects  {time.monotonic() - began:6.1f} s",
                flush=True,
            )
            assert tasks == 0, "tasks are left"
        runner.run(aengine.aclose())
    assert threading.active_count() == threads_before, f"threads are left: {threading.enumerate()}"
    return memory


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with no_waiting():
        memory = soak(runs)
    settled = memory[min(WARM, len(memory) - 1) :]
    growth = max(settled) - settled[0]
    print(
        f"{runs:,} runs: {settled[0]:.1f} MB after {WARM} rounds, {settled[-1]:.1f} MB at the end, at most +{growth:.1f} MB"
    )
    assert growth < 0.05 * settled[0] + 1, "memory grows"


if __name__ == "__main__":
    main()
