"""`AsyncEngine`: runs workflows on asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
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
from .base import EngineBase, I, log, outcome
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
    ) -> asyncio.Task[Run]:
        """Start a run in a task of its own, on the running loop; awaiting the task raises what `run` raises.

        `propagation`: "link" gives the run a trace of its own, linked to the caller's; "child" makes it part of that one.
        """
        run = self._execution(workflow, values, idempotency_key, wait, deadline)
        self._tell_submitted(run, propagation)
        return asyncio.get_running_loop().create_task(self._drive(run, 0, check=check))

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

    async def aclose(self, timeout: Duration | None = None) -> None:  # noqa: ASYNC109 - after it, runs are cancelled
        """Start no more runs and wait for those on this loop; after `timeout` seconds, cancel them (None: never)."""
        self._closed = True
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        if (recovery := self._recovery.get(loop)) is not None:
            recovery.cancel()
        drivers = [driver for driver in self._live.values() if driver is not None and driver.loop is loop]
        callers = {driver.caller for driver in drivers if driver.caller is not None and driver.caller is not me}
        if callers:
            limit = None if timeout is None else seconds(timeout, "aclose(timeout=)")
            _, running = await asyncio.wait(callers, timeout=limit)
            for driver in drivers:
                if driver.caller in running:
                    driver.cancel(StepCancelled(f"run {driver.run.run_id} was cancelled: its engine was closed."))
            if running:
                await asyncio.wait(running)
        # What was given up has its grace to land, and may then have to be undone.
        until = loop.time() + self._settings.grace
        while (late := [task for task in self._tasks if task.get_loop() is loop]) and loop.time() < until:
            await asyncio.wait(late, timeout=until - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        if self._leases is not None:
            self._leases.close()
        self._pool.close(0)

    async def __aenter__(self) -> Self:
        self._recover_often()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


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
