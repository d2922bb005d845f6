"""What people write by hand where they want no library: graphlib with a TaskGroup, graphlib with a thread pool.

Ordering and parallelism only: no retries, no undoing, no idempotency.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from graphlib import TopologicalSorter
from queue import SimpleQueue
from typing import Any

from .work import Work

__all__ = ["run_in_task_group", "run_on_threads"]


async def run_in_task_group(work: Work, ctx: dict[str, Any]) -> dict[str, Any]:
    fns = {step.name: step.fn for step in work.steps}
    sorter = TopologicalSorter({step.name: step.after for step in work.steps})
    sorter.prepare()
    results: dict[str, Any] = {}

    async def run(name: str) -> None:
        results[name] = await fns[name](ctx)
        sorter.done(name)
        start()

    def start() -> None:
        for name in sorter.get_ready():
            group.create_task(run(name))

    async with asyncio.TaskGroup() as group:
        start()
    return results


def run_on_threads(pool: ThreadPoolExecutor, work: Work, ctx: dict[str, Any]) -> dict[str, Any]:
    fns = {step.name: step.fn for step in work.steps}
    sorter = TopologicalSorter({step.name: step.after for step in work.steps})
    sorter.prepare()
    results: dict[str, Any] = {}
    names: dict[Future[Any], str] = {}
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    while sorter.is_active():
        for name in sorter.get_ready():
            future = pool.submit(fns[name], ctx)
            names[future] = name
            future.add_done_callback(ended.put)
        future = ended.get()
        name = names.pop(future)
        results[name] = future.result()
        sorter.done(name)
    return results
