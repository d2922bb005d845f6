"""The floor: the least that running a graph of steps can cost in Python. Kept as a reference to read.

The plan (integer in-degrees, successor lists) is compiled once, steps run inline. There is nothing else: no threads, no
lock, no contextvars, no ids, no cancellation, no timeouts, no hooks, no report of what happened.
"""

from __future__ import annotations

import asyncio
import types
from collections import deque
from collections.abc import Coroutine, Generator
from typing import Any

from .work import Fn, Work

__all__ = ["AsyncFloor", "Floor"]


class Floor:
    """Runs sync steps one by one, whatever could be parallel."""

    def __init__(self, work: Work) -> None:
        self.steps = work.steps
        order = {step.name: index for index, step in enumerate(work.steps)}
        self.indegrees = [len(step.after) for step in work.steps]
        self.successors: list[list[int]] = [[] for _ in work.steps]
        for index, step in enumerate(work.steps):
            for name in step.after:
                self.successors[order[name]].append(index)
        self.first = [index for index, count in enumerate(self.indegrees) if not count]

    def run(self, ctx: dict[str, Any]) -> dict[str, Any]:
        steps, successors, counts = self.steps, self.successors, self.indegrees.copy()
        ready, results = deque(self.first), dict[str, Any]()
        undos: list[Fn] = []
        while ready:
            index = ready.popleft()
            name, fn, _, undo, attempts = steps[index]
            while True:
                try:
                    results[name] = fn(ctx)
                    break
                except Exception:
                    attempts -= 1
                    if not attempts:
                        for back in reversed(undos):
                            back(ctx)
                        raise
            if undo is not None:
                undos.append(undo)
            for after in successors[index]:
                counts[after] -= 1
                if not counts[after]:
                    ready.append(after)
        return results


class AsyncFloor(Floor):
    """Runs async steps inline; one that suspends and has company gets a task for what is left of it.

    No design to copy: on Python 3.11 `asyncio.timeout` in such a step is bound to the task it began in.
    """

    async def run(self, ctx: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override] # the same, awaited
        steps, successors, counts = self.steps, self.successors, self.indegrees.copy()
        ready, results = deque(self.first), dict[str, Any]()
        undos: list[Fn] = []
        tasks: dict[asyncio.Task[Any], int] = {}
        ended = None

        try:
            while True:
                if ready:
                    index = ready.popleft()
                    _, fn, _, _, attempts = steps[index]
                    coroutine = fn(ctx) if attempts == 1 else _attempts(fn, attempts, ctx)
                    try:
                        waiting = coroutine.send(None)
                    except StopIteration as stop:
                        value = stop.value
                    else:
                        if ready or tasks:
                            ended = ended or asyncio.Queue[asyncio.Task[Any]]()
                            task = asyncio.create_task(_rest(coroutine, waiting))
                            tasks[task] = index
                            task.add_done_callback(ended.put_nowait)
                            continue
                        value = await _rest(coroutine, waiting)
                elif tasks and ended:
                    task = await ended.get()
                    index, value = tasks.pop(task), task.result()
                else:
                    return results
                name, _, _, undo, _ = steps[index]
                results[name] = value
                if undo is not None:
                    undos.append(undo)
                for after in successors[index]:
                    counts[after] -= 1
                    if not counts[after]:
                        ready.append(after)
        except Exception:
            for back in reversed(undos):
                await back(ctx)
            raise


async def _attempts(fn: Fn, attempts: int, ctx: dict[str, Any]) -> Any:
    while True:
        try:
            return await fn(ctx)
        except Exception:
            attempts -= 1
            if not attempts:
                raise


async def _rest(coroutine: Coroutine[Any, Any, Any], waiting: Any) -> Any:
    return await _resumed(coroutine, waiting)


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, Any], waiting: Any) -> Generator[Any, Any, Any]:
    """What is left of a coroutine that has suspended on `waiting`."""
    while True:
        try:
            waiting = coroutine.send((yield waiting))
        except StopIteration as stop:
            return stop.value
