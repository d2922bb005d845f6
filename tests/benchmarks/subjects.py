"""Who runs the work: a plain call, the floor, what people write by hand, flowcore; its peers are in `peers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from flowcore import AsyncEngine, Engine, Retry, Workflow
from flowcore.events import Hook

from .by_hand import run_in_task_group, run_on_threads
from .floor import AsyncFloor, Floor
from .work import Work

__all__ = ["OURS", "DirectAwait", "DirectCall", "FlowcoreAsync", "FlowcoreThreads", "Subject", "workflow"]

Run = Callable[[], Any]
"""one run of some work, to its end; of an async subject: its awaitable"""


class Subject(ABC):
    """Something that runs work."""

    name: ClassVar[str]
    is_async: ClassVar[bool]
    cannot: ClassVar[frozenset[str]] = frozenset()
    """of what work may need ("joins", "parallel", "retry", "undo"), what this has not"""

    @abstractmethod
    def prepare(self, work: Work) -> Run:
        """Do what is done once per definition; what is answered is timed."""


class DirectCall(Subject):
    """The step functions called in a loop, in an order that is known: no graph, no results, nothing."""

    name = "direct call"
    is_async = False
    cannot = frozenset({"parallel", "retry", "undo"})

    def prepare(self, work: Work) -> Run:
        fns = [step.fn for step in work.steps]

        def run() -> None:
            ctx: dict[str, Any] = {}
            for fn in fns:
                fn(ctx)

        return run


class DirectAwait(Subject):
    """The same with await."""

    name = "direct await"
    is_async = True
    cannot = frozenset({"parallel", "retry", "undo"})

    def prepare(self, work: Work) -> Run:
        fns = [step.fn for step in work.steps]

        async def run() -> None:
            ctx: dict[str, Any] = {}
            for fn in fns:
                await fn(ctx)

        return run


class SyncFloor(Subject):
    name = "floor"
    is_async = False
    cannot = frozenset({"parallel"})

    def prepare(self, work: Work) -> Run:
        floor = Floor(work)
        return lambda: floor.run({})


class AsyncioFloor(Subject):
    name = "floor, async"
    is_async = True

    def prepare(self, work: Work) -> Run:
        floor = AsyncFloor(work)
        return lambda: floor.run({})


class TaskGroupByHand(Subject):
    name = "TaskGroup by hand"
    is_async = True
    cannot = frozenset({"retry", "undo"})

    def prepare(self, work: Work) -> Run:
        return lambda: run_in_task_group(work, {})


class ThreadPoolByHand(Subject):
    name = "thread pool by hand"
    is_async = False
    cannot = frozenset({"retry", "undo"})

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(32)  # as many threads as Engine has by default

    def prepare(self, work: Work) -> Run:
        return lambda: run_on_threads(self._pool, work, {})


def workflow(work: Work) -> Workflow:
    """The work as flowcore knows it."""
    wf = Workflow("benchmark")
    for step in work.steps:
        retry = Retry(step.attempts) if step.attempts > 1 else None
        wf.add_step(step.name, step.fn, depends_on=step.after, retry=retry, compensate=step.undo)
    return wf


class FlowcoreThreads(Subject):
    name = "Engine"
    is_async = False

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self.engine = Engine(hooks=hooks)

    def prepare(self, work: Work) -> Run:
        engine, wf = self.engine, workflow(work)
        return lambda: engine.run(wf)


class FlowcoreAsync(Subject):
    name = "AsyncEngine"
    is_async = True

    def __init__(self, hooks: Iterable[Hook] = ()) -> None:
        self.engine = AsyncEngine(hooks=hooks)

    def prepare(self, work: Work) -> Run:
        engine, wf = self.engine, workflow(work)
        return lambda: engine.run(wf)


OURS: tuple[type[Subject], ...] = (
    DirectCall,
    SyncFloor,
    FlowcoreThreads,
    ThreadPoolByHand,
    DirectAwait,
    AsyncioFloor,
    FlowcoreAsync,
    TaskGroupByHand,
)
