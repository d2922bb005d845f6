"""`AsyncEngine`: runs workflows on asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from .._durable.checkpoints import cancelled, lose
from .._kernel.effects import Stop
from .._kernel.inline import can_run_inline
from .._kernel.run import run_without_driver
from .._kernel.run_state import RunState
from ..errors import FlowcoreError, StepCancelled, StoreError, safe_str
from ..events import Hook
from ..forks import after_fork_in_child
from ..retry import Duration, seconds
from ..run import Run
from ..workflow import Key, Workflow
from .aio_driver import AsyncDriver
from .aio_handles import AsyncRunFuture
from .base import CLOSED, MARGIN, EngineBase, I, log, outcome, stopped, unbegun
from .workers import Workers

__all__ = ["AsyncEngine"]


class AsyncEngine(EngineBase):
    """Runs workflows on asyncio, sync and async steps mixed; sync steps run on threads of the engine's own.

    The arguments are those of `Engine`. May be made outside of a loop and used on several; each run belongs to the loop
    it was started on. Any store will do: sync ones that may block are called on a thread. `recover_every` begins, on a
    loop, with `async with`, with the first run or with `recover()`.
    """

    def __init__(
        self,
        *,
        store: Any = None,
        hooks: Iterable[Hook] = (),
        max_workers: int | None = None,
        lease: Duration = 30.0,
        grace: Duration = 5.0,
        workflows: Iterable[Workflow[Any]] = (),
        recover_every: Duration | None = None,
        store_patience: Duration = 300.0,
        max_queued: int = 10_000,
    ) -> None:
        super().__init__(
            store,
            hooks,
            max_workers,
            lease,
            grace,
            workflows,
            recover_every,
            store_patience,
            max_queued,
            runs_async=True,
        )
        self._pool = Workers(self.max_workers, "flowcore-aio")
        self._live: dict[RunState, AsyncDriver | None] = {}  # None: it runs inline
        self._queued: dict[RunState, AsyncRunFuture] = {}  # submitted runs that have not begun
        self._tasks: set[asyncio.Future[Any]] = set()
        self._tell_started(self._pool)
        self._leases = self._keep_leases(partial(_lose, self._live), partial(_cancel_through_store, self._live))
        self._recovery: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        after_fork_in_child(self, AsyncEngine._after_fork)
        weakref.finalize(self, self._pool.close, self._settings.grace)

    def _after_fork(self) -> None:
        """In a child: the runs in flight are the parent's, and so are its loops."""
        super()._after_fork()
        for run in self._live:
            run.in_child(os.getpid())
        self._live.clear()
        self._queued.clear()
        self._tasks.clear()
        self._recovery.clear()

    async def run(
        self,
        workflow: Workflow[I],
        values: I | Mapping[str, Any] | None = None,
        *,
        idempotency_key: Key | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        check: bool = True,
    ) -> Run:
        """Run a workflow to its end. Arguments and errors are those of `Engine.run`.

        Cancelling the task that awaits this cancels the run: running steps get at most `grace`, what was done is undone,
        shielded from further cancellations, and CancelledError is raised again.
        """
        run = self._execution(workflow, values, idempotency_key, wait, deadline)
        cancels = _cancels()
        if can_run_inline(run):
            self._live[run] = None
            try:
                finished = run_without_driver(run, is_async=True)
            except BaseException:
                self._live.pop(run, None)
                raise
            if finished is not None:
                self._live.pop(run, None)
                return finished
        return await self._drive(run, cancels, check=check)

    def submit(
        self,
        workflow: Workflow[I],
        values: I | Mapping[str, Any] | None = None,
        *,
        idempotency_key: Key | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        check: bool = True,
        propagation: Literal["link", "child"] = "link",
    ) -> AsyncRunFuture:
        """Start a run in a task of its own, on the running loop; awaiting the future raises what `run` raises.

        `propagation`: "link" gives the run a trace of its own, linked to the caller's; "child" makes it part of that one.
        Raises QueueFull where `max_queued` submitted runs have not begun yet.
        """
        run = self._execution(workflow, values, idempotency_key, wait, deadline)
        self._refuse_if_full(len(self._queued))
        self._tell_submitted(run, propagation)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._begin(run, check))
        self._queued[run] = future = AsyncRunFuture(run, task, loop)
        task.add_done_callback(partial(self._forget_queued, run))
        return future

    async def _begin(self, run: RunState, check: bool) -> Run:
        self._queued.pop(run, None)
        return await self._drive(run, 0, check=check)

    def _forget_queued(self, run: RunState, task: asyncio.Task[Run]) -> None:
        self._queued.pop(run, None)

    async def _drive(self, run: RunState, cancels: int, *, check: bool) -> Run:
        self._recover_often()
        driver = await self._driven(run, cancels)
        if driver.cancelled is not None and driver.error is not driver.cancelled:
            raise driver.cancelled from driver.error
        return outcome(driver.result, driver.error, check=check)

    async def _driven(self, run: RunState, cancels: int) -> AsyncDriver:
        driver = self._live[run] = AsyncDriver(run, cancels, self._pool, self._tasks)
        try:
            await driver.run_here()
        finally:
            self._live.pop(run, None)
            if run.claimed and self._leases is not None:
                self._leases.leave(run)
        return driver

    def cancel(self, run_id: str) -> bool:
        """Cancel a run of this engine, from any thread: as `Engine.cancel`."""
        for run in list(self._live):
            if run.has_id(run_id):
                stopping = run.interrupt(StepCancelled(f"run {run_id} was cancelled by engine.cancel()."))
                driver = self._live.get(run)
                if stopping and driver is not None:
                    driver.loop.call_soon_threadsafe(driver.stop, Stop(cancel=True))
                return stopping
        return False

    async def recover(self) -> list[Run]:
        """Go on with the runs of `workflows` that nobody goes on with: as `Engine.recover`."""
        self._recover_often()
        with self._round() as context:
            names = [workflow.name for workflow in self.workflows]
            records = page = await self._asked(partial(self.store.list_resumable, names), context)
            while page.cursor is not None:
                page = await self._asked(partial(self.store.list_resumable, names, after=page.cursor), context)
                records += page
            if self._surveys:
                held = await self._asked(partial(self.store.list_runs, status="held", limit=None), context)
                self._tell_survey(records, held, context)
        drivers = await asyncio.gather(
            *(asyncio.create_task(self._recovered(run)) for run in self._recoverable(records))
        )
        for driver in drivers:
            if driver.result is None and isinstance(driver.error, StoreError):
                self._warn_unrecovered(driver.run.recovering, safe_str(driver.error))
        return [driver.result for driver in drivers if driver.result is not None]

    async def _recovered(self, run: RunState) -> AsyncDriver:
        return await self._driven(run, _cancels())

    async def _asked(self, verb: Callable[[], Any], context: contextvars.Context) -> Any:
        """Ask the store outside of any run."""
        if inspect.iscoroutinefunction(getattr(verb, "func", verb)):
            return await asyncio.get_running_loop().create_task(verb(), context=context)
        return await asyncio.to_thread(context.run, verb)

    def _recover_often(self) -> None:
        """See to it that somebody does so on this loop, where `recover_every` was given."""
        loop = asyncio.get_running_loop()
        if self.recover_every is not None and loop not in self._recovery:
            self._recovery[loop] = loop.create_task(_recover_often(weakref.ref(self), self.recover_every))
            self._recovery[loop].add_done_callback(lambda _: self._recovery.pop(loop, None))

    async def aclose(self, timeout: Duration | None = None) -> None:  # noqa: ASYNC109 - it parks or cancels runs
        """Start no more runs, and wait for those on this loop; with a `timeout`, do with them what `Engine.close` does."""
        limit = None if timeout is None else seconds(timeout, "aclose(timeout=)")
        limit = None if limit == math.inf else limit
        self._closed = True
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        if (recovery := self._recovery.get(loop)) is not None:
            recovery.cancel()
        if limit is None:
            await self._wait_for(list(self._queued.values()), None)
        else:
            self._drop_queued(loop)
        drivers = [d for d in self._live.values() if d is not None and d.loop is loop and d.caller is not me]
        if limit is not None and self.store.durable:
            for driver in drivers:
                driver.run.park(stopped(driver.run, CLOSED))
                driver.stop(Stop(cancel=False))
        running = await self._wait_for([driver.ended() for driver in drivers], limit)
        for driver in drivers:
            driver.hand_over(stopped(driver.run, CLOSED))
        grace = self._settings.grace
        # One grace is for calls, one for those that were given up, and one for the compensations.
        if await self._wait_for(running, None if limit is None else grace * (1 if self.store.durable else 3) + MARGIN):
            log.warning("an engine was closed while some of its runs had not ended")
        # What was given up has its grace to complete, and may then have to be undone.
        until = loop.time() + (0 if limit is not None and self._pool.counts()[1] else grace)
        while (late := [task for task in self._tasks if task.get_loop() is loop]) and loop.time() < until:
            await asyncio.wait(late, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        if self._leases is not None:
            self._leases.close()
        self._pool.close(0)

    async def _wait_for(self, futures: list[asyncio.Future[Any]], limit: float | None) -> list[asyncio.Future[Any]]:
        """Those of the futures that are not done after `limit` seconds."""
        if not futures:
            return []
        _, running = await asyncio.wait(futures, timeout=None if limit == math.inf else limit)
        return list(running)

    def _drop_queued(self, loop: asyncio.AbstractEventLoop) -> None:
        """Leave what has not begun: recorded runs to other engines; what is in memory only is cancelled."""
        for run, future in list(self._queued.items()):
            if future.get_loop() is loop:
                self._queued.pop(run, None)
                future.drop(unbegun(run, CLOSED) if self.store.durable else None)

    async def __aenter__(self) -> Self:
        self._recover_often()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine. An exception drops what has not begun; one that stops the task, or the process, ends what runs
        too."""
        if kind is not None:
            self._drop_queued(asyncio.get_running_loop())
        stops = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt | asyncio.CancelledError)
        await self.aclose(0 if stops else None)


def _cancels() -> int:
    """How often the current task has been cancelled and has not minded."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _lose(live: dict[RunState, AsyncDriver | None], run: RunState) -> None:
    """The store says that somebody else has the run: start and undo nothing more of it. On the heartbeat's thread."""
    lose(run)
    driver = live.get(run)
    if driver is not None:
        with suppress(RuntimeError):  # its loop is closed: nothing of it runs any more
            driver.loop.call_soon_threadsafe(driver.stop, Stop(cancel=True))


def _cancel_through_store(live: dict[RunState, AsyncDriver | None], run: RunState) -> None:
    """An operator wants the run cancelled, through the store. On the heartbeat's thread."""
    driver = live.get(run)
    if run.interrupt(cancelled(run)) and driver is not None:
        with suppress(RuntimeError):  # its loop is closed: nothing of it runs any more
            driver.loop.call_soon_threadsafe(driver.stop, Stop(cancel=True))


async def _recover_often(reference: weakref.ref[AsyncEngine], every: float) -> None:
    """Every so many seconds, go on with what nobody goes on with, until the engine is closed or forgotten."""
    while True:
        await asyncio.sleep(every)
        engine = reference()
        if engine is None:
            return
        try:
            await engine.recover()
        except FlowcoreError as error:
            log.warning("a recovery round failed: %s: %s", type(error).__name__, safe_str(error, 200))
        del engine
