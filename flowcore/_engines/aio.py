"""`AsyncEngine`: runs workflows on asyncio."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import inspect
import math
import os
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from .._durable.checkpoints import cancelled, lose
from .._kernel.effects import Program, Stop
from .._kernel.inline import can_run_inline
from .._kernel.run import run_without_driver
from .._kernel.run_state import RunState
from ..context import own_copy
from ..errors import StepCancelled, safe_str
from ..events import Hook
from ..forks import after_fork_in_child
from ..retry import Duration, seconds
from ..run import Run, Sent
from ..status import Status
from ..stores.base import Page, RunRecord
from ..workflow import Key, Workflow
from .aio_closing import leave
from .aio_driver import AsyncDriver
from .aio_handles import AsyncRunFuture, Cancellation, SubmittedRuns
from .base import CLOSED, MARGIN, EngineBase, I, cancel_in_store, is_meant, left, log, outcome, stopped
from .batches import completed_on_loop, key_of, whole_or
from .checks import runs_here
from .recovering import LEASE_OVER, RecoveryTasks, asked_on_loop, performed, performed_on_loop
from .sending import announce, counts_as, fetched, hand_on, made_here
from .workers import Workers

if TYPE_CHECKING:
    from ..schedule import ScheduleStatus
    from .schedules import AsyncSchedules

__all__ = ["AsyncEngine"]

T = TypeVar("T")


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
        max_takeovers: int = 5,
        recover_at_once: int | None = None,
        namespace: str | None = None,
        park_after: Duration = 60.0,
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
            max_takeovers,
            namespace,
            park_after,
            runs_async=True,
        )
        self._store_is_async = inspect.iscoroutinefunction(self.store.claim)
        self._pool = Workers(self.max_workers, "flowcore-aio")
        self._live: dict[RunState, AsyncDriver | None] = {}  # None: it runs inline
        self._queued: dict[RunState, AsyncRunFuture] = {}  # submitted runs that have not begun
        self._tasks: set[asyncio.Future[Any]] = set()
        self._recovering: set[asyncio.Task[Any]] = set()  # the loop itself keeps no task alive
        self._tell_started(self._pool)
        self._leases = self._keep_leases(
            partial(_lose, self._live), partial(_cancel_through_store, self._live), partial(fetched, self._live, _look)
        )
        self._claims.local = self._local = SubmittedRuns(partial(_wake, self._live), self._settings.clock)
        self._recovery = self._recovery_of(self._live, recover_at_once)
        self._listen(self._received)
        self._looking: RecoveryTasks | None = None
        self._schedules: AsyncSchedules | None = None
        self._looks_again = False
        self._begin_looking()
        after_fork_in_child(self, AsyncEngine._after_fork)
        weakref.finalize(self, self._pool.close, self._settings.grace)

    def _after_fork(self) -> None:
        """In a child: the runs in flight are the parent's, and so are its loops."""
        super()._after_fork()
        for run in self._live:
            run.in_child(os.getpid())
        self._live.clear()
        self._queued.clear()
        self._local.futures.clear()
        self._tasks.clear()
        self._recovery.after_fork()
        if self._looking is not None:
            self._looking.after_fork()
        if self._schedules is not None:
            self._schedules.after_fork()

    def _begin_looking(self) -> None:
        """Have a task look at the store, where anything wants that, or look at once."""
        if self._looking is not None:
            self._looking.ring()
        elif (every := self._look_every()) is not None:
            self._looking = RecoveryTasks(self._look, every)
            self._recovery.wake = self._looking.ring
            with suppress(RuntimeError):  # outside a loop it begins with `async with`, or with the first run
                self._looking.ensure()

    def _own_schedules(self) -> AsyncSchedules:
        from .schedules import AsyncSchedules

        with self._lock:
            self._schedules = self._schedules or AsyncSchedules(self)
            return self._schedules

    async def schedules(self) -> builtins.list[ScheduleStatus]:
        """How each schedule of this engine stands, as `Engine.schedules`; the loop goes on meanwhile."""
        return [] if self._schedules is None else await self._schedules.statuses()

    async def run(
        self,
        workflow: Workflow[I],
        values: I | Mapping[str, Any] | None = None,
        *,
        idempotency_key: Key | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        once: bool = False,
        check: bool = True,
        until: Literal["end", "waiting"] = "end",
    ) -> Run:
        """Run a workflow to its end. Arguments and errors are those of `Engine.run`.

        Cancelling the task that awaits this cancels the run: running steps get at most `grace`, what was done is undone,
        shielded from further cancellations, and CancelledError is raised again.
        """
        if until != "end" and not runs_here(until, durable=self.store.durable):
            future = self.submit(
                workflow, values, idempotency_key=idempotency_key, wait=wait, deadline=deadline, once=once, check=check
            )
            return await future.first_pause()
        until_waiting = until == "waiting"
        run = self._requested(workflow, values, idempotency_key, wait, deadline, once=once, until_waiting=until_waiting)
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
        once: bool = False,
        check: bool = True,
        propagation: Literal["link", "child"] = "link",
    ) -> AsyncRunFuture:
        """Start a run in a task of its own, on the running loop; awaiting the future raises what `run` raises.

        This returns before the store has been called, for it must not block the loop: `await future.recorded()` waits
        until the run is recorded and survives this process. `propagation`: "link" gives the run a trace of its own, linked
        to the caller's; "child" makes it part of that one. Raises QueueFull where `max_queued` submitted runs have not
        begun yet.
        """
        run = self._requested(workflow, values, idempotency_key, wait, deadline, once=once, submitted=True)
        self._refuse_if_full(len(self._queued))
        self._tell_submitted(run, propagation)
        return self._queue(run, check=check)

    def _queue(self, run: RunState, *, check: bool) -> AsyncRunFuture:
        """Begin a run in a task of its own."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._begin(run, check))
        self._queued[run] = self._local.futures[run] = future = AsyncRunFuture(run, task, loop)
        run.on_pause = future.pause
        task.add_done_callback(partial(self._forget_queued, run))
        return future

    def map(
        self,
        workflow: Workflow[I],
        items: Iterable[T],
        *,
        values: Callable[[T], I | Mapping[str, Any]] | None = None,
        key: Callable[[T], Key | None] | None = None,
        concurrency: int | None = None,
        ordered: bool = False,
        check: bool = False,
    ) -> AsyncGenerator[Run, None]:
        """A run for each item, as an iterator of their Runs, failed ones among them: as they end, or `ordered`.

        `values(item)` and `key(item)` make each run's initial values (default: the item itself) and idempotency key.
        Lazy: an item is taken once fewer than `concurrency` (default: `max_workers`) runs are in flight or not yet handed
        out, so that memory does not grow with the number of items. `check=True` raises the error of the first failed run.
        With keys on a durable store, a second start replays what has ended and resumes the rest; a run that another owner
        has in progress is waited for, until its outcome is known or the lease of a dead owner is over. Leaving the loop takes no
        further item and cancels the runs in flight.
        """

        def submit(item: T) -> AsyncRunFuture:
            made: Any = item if values is None else values(item)
            return self.submit(workflow, made, idempotency_key=key_of(key, item), wait=math.inf, check=check)

        return completed_on_loop(items, submit, whole_or(concurrency, self.max_workers), ordered=ordered)

    async def _begin(self, run: RunState, check: bool) -> Run:
        future = self._queued.pop(run)
        if run.key is None and not self.store.durable:
            future.claimed()
        return await self._drive(run, 0, check=check)

    def _forget_queued(self, run: RunState, task: asyncio.Task[Run]) -> None:
        self._queued.pop(run, None)
        self._local.futures.pop(run, None)

    async def _drive(self, run: RunState, cancels: int, *, check: bool) -> Run:
        self._ensure_looking()
        driver = await self._driven(run, cancels)
        while driver.result is not None and driver.result.status is Status.WAITING:
            if run.on_pause is not None:
                run.on_pause(driver.result)
            again = self._continuation(driver.run, self._local)
            if again is None and not run.request.until_waiting:
                driver.result, driver.error = None, left(driver.run)
            if again is None:
                break
            driver = await self._driven(again[0], cancels, again[1])
        if driver.cancelled is not None and driver.error is not driver.cancelled:
            raise driver.cancelled from driver.error
        return outcome(driver.result, driver.error, check=check)

    async def _driven(self, run: RunState, cancels: int, main: Program[Run] | None = None) -> AsyncDriver:
        driver = self._live[run] = AsyncDriver(run, cancels, self._pool, self._tasks, main)
        try:
            await driver.run_here()
        finally:
            self._live.pop(run, None)
            if run.claimed:
                self._local.leave(run)
                if self._leases is not None:
                    self._leases.leave(run)
        return driver

    def cancel(self, run_id: str | None = None, *, key: str | None = None) -> Cancellation:
        """Cancel a run, by its id or its key, from any thread: as `Engine.cancel`. A run of this engine is cancelled at once,
        awaited or not. `await engine.cancel(...)` returns whether any run is cancelled: on a durable store also one of
        another process, which learns of it with its next checkpoint or renewal. A thread without a loop waits for the store
        itself. Raises StoreError when it is awaited.
        """
        for run in [*self._live, *self._queued]:
            if is_meant(run, run_id, key):
                return Cancellation(self._cancel_here(run))
        if not self.store.durable:
            return Cancellation(here=False)
        asking, context = cancel_in_store(self.store, run_id, key), self._callers_context()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._store_is_async:
                return Cancellation(asyncio.run(performed_on_loop(asking, context)))
            return Cancellation(performed(asking, context))
        task = loop.create_task(performed_on_loop(asking, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Cancellation(here=False, asked=task)

    def _cancel_here(self, run: RunState) -> bool:
        queued = self._queued.get(run)
        if queued is not None:
            queued.get_loop().call_soon_threadsafe(queued.cancel)
            return True
        stopping = run.interrupt(StepCancelled(f"run {run.run_id} was cancelled by engine.cancel()."))
        driver = self._live.get(run)
        if stopping and driver is not None:
            driver.loop.call_soon_threadsafe(driver.stop, Stop(cancel=True))
        return stopping

    async def send(self, key: str, name: str, value: Any, *, id: str | None = None) -> bool:  # noqa: A002
        """Send a value to the wait `name` of the run with this key: as `Engine.send`; the loop goes on meanwhile."""
        kept, carrier = own_copy(value), announce(self._settings, key, name)
        if self._knows_alone(self._live, key):
            sent = made_here(self._settings, kept, id, carrier)
            return counts_as(self._received(key, name, sent), sent)
        send = partial(self.store.send, key, name, kept, id=id, carrier=carrier)
        context = self._callers_context()
        counts: bool = await asked_on_loop(send, context)
        if counts and self.store.durable:
            sent = made_here(self._settings, kept, id, carrier)
            woken = self._local.wake_sleepers(key)
            if self._received(key, name, sent) is None and not woken and self.workflows:
                await self._resume(key, context)
        return counts

    async def _resume(self, key: str, context: contextvars.Context) -> None:
        """Resume a run that waits in the store, and is due: a value was sent to it here."""
        try:
            run = await performed_on_loop(self._recovery.resume(self._resumed, key), context)
        except Exception as error:  # noqa: BLE001 - the next round may have more luck
            log.warning("a run could not be resumed at once: %s: %s", type(error).__name__, safe_str(error, 200))
            return
        if run is not None:
            self._start(run)

    def _start(self, run: RunState) -> asyncio.Task[AsyncDriver]:
        """Start a recovered run in a task of its own."""
        self._live[run] = None
        task = asyncio.create_task(self._recovered(run))
        task.add_done_callback(self._recovering.discard)
        self._recovering.add(task)
        return task

    def _received(self, key: str, name: str, sent: Sent) -> Sent | None:
        """A value was sent through this process's store. Returns what counts for a run of this engine. From any thread."""
        return hand_on(self._live, key, name, sent, _look)

    async def find(self, key: str) -> RunRecord | None:
        """The record of the run that has a key, or None; the loop goes on meanwhile. Raises StoreError."""
        found: RunRecord | None = await asked_on_loop(partial(self.store.find, key), self._callers_context())
        return found

    async def get(self, run_id: str) -> RunRecord:
        """The record of a run; the loop goes on meanwhile. Raises RunNotFound, and StoreError."""
        found: RunRecord = await asked_on_loop(partial(self.store.get_run, run_id), self._callers_context())
        return found

    async def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """A page of the store's runs, as `Engine.list`; the loop goes on meanwhile."""
        ask = partial(
            self.store.list_runs,
            status=status,
            workflow=workflow,
            older_than=older_than,
            limit=limit,
            after=after,
            text=text,
        )
        page: Page = await asked_on_loop(ask, self._callers_context())
        return page

    async def recover(self) -> builtins.list[Run]:
        """Resume the runs of `workflows` that have no live owner and are due: as `Engine.recover`."""
        self._ensure_looking()
        resumed: list[asyncio.Task[AsyncDriver]] = []
        skip: set[str | None] = set()
        fresh = True
        with self._round() as context:
            if self._surveys:
                await self._survey(context)
        while True:
            with self._round() as context:
                started = await self._start_recovered(context, skip, fresh=fresh)
            skip.update(run.request.recovering for run in started)
            resumed += started.values()
            fresh = False
            running = [task for task in resumed if not task.done()]
            if not running:
                self._look_again()
                drivers = [task.result() for task in resumed if not task.cancelled()]
                return [driver.result for driver in drivers if driver.result is not None]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _look_again(self) -> None:
        """Look once more when the leases of this moment would be over, where no task does."""
        loop = asyncio.get_running_loop()
        if self.store.durable and self.recover_every is None and self.workflows and not self._looks_again:
            self._looks_again = True
            loop.call_later(self.lease * LEASE_OVER, _begin_late_look, weakref.WeakMethod(self._late_look))

    def _late_look(self) -> None:
        self._looks_again = False
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._late_round())
            task.add_done_callback(self._recovering.discard)
            self._recovering.add(task)

    async def _late_round(self) -> None:
        try:
            with self._round() as context:
                await self._start_recovered(context)
        except Exception as error:  # noqa: BLE001 - no caller waits for it
            log.warning("a recovery round failed: %s: %s", type(error).__name__, safe_str(error, 200))

    async def _look(self) -> float | None:
        """Count what waits in the store, if that is due, and start what is to be resumed, without waiting for it. Returns
        the seconds until the next look."""
        if self._surveys and self._recovery.survey_due():
            with self._round("survey") as context:
                await self._survey(context)
        if self.recover_every is not None and self._recovery.round_due(self.recover_every) and not self._closed:
            with self._round() as context:
                await self._start_recovered(context)
        return self._look_every()

    async def _survey(self, context: contextvars.Context) -> None:
        try:
            counts = await performed_on_loop(self._recovery.survey(self._known), context)
        except Exception as error:  # noqa: BLE001 - what cannot be counted may still be resumed
            log.warning("what waits in the store could not be counted: %s", safe_str(error, 200))
        else:
            self._emit_survey(counts, context)

    async def _start_recovered(
        self, context: contextvars.Context, skip: Collection[str | None] = (), *, fresh: bool = False
    ) -> dict[RunState, asyncio.Task[AsyncDriver]]:
        """Start the runs of one round of recovery, each in a task of its own."""
        started: dict[RunState, asyncio.Task[AsyncDriver]] = {}

        def start(run: RunState) -> None:
            started[run] = self._start(run)

        await performed_on_loop(self._recovery.round(self._resumed, start, skip, fresh=fresh), context)
        return started

    async def _recovered(self, run: RunState) -> AsyncDriver:
        error: BaseException | None = None
        try:
            driver = await self._driven(run, _cancels())
            error = driver.error
        finally:
            self._live.pop(run, None)
            self._recovery.ended(run, error)
        return driver

    def _ensure_looking(self) -> None:
        """Ensure that one task recovers on this loop, where `recover_every` was given, and one looks at schedules."""
        if self._looking is not None:
            self._looking.ensure()
        if self._schedules is not None:
            self._schedules.ensure()

    async def aclose(self, timeout: Duration | None = None) -> None:  # noqa: ASYNC109 - it parks or cancels runs
        """Start no more runs, and wait for those on this loop; with a `timeout`, do with them what `Engine.close` does."""
        limit = None if timeout is None else seconds(timeout, "aclose(timeout=)")
        limit = None if limit == math.inf else limit
        self._closed = True
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        looking = [] if self._looking is None else self._looking.close(loop)
        if self._schedules is not None:
            looking += self._schedules.tasks.close(loop)
        if limit is None:
            await self._wait_for(list(self._queued.values()), None)
        else:
            await self._leave_queued(loop, limit)
        drivers = [d for d in self._live.values() if d is not None and d.loop is loop and d.caller is not me]
        for driver in drivers:
            if driver.run.dormant:  # it is in its store, for other engines
                driver.run.park(left(driver.run))
                driver.stop(Stop(cancel=False))
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
        await self._wait_for([task for task in looking if task is not me], MARGIN)
        if self._leases is not None:
            self._leases.close()
        self._pool.close(0)

    async def _wait_for(
        self, futures: Sequence[asyncio.Future[Any]], limit: float | None
    ) -> Sequence[asyncio.Future[Any]]:
        """Those of the futures that are not done after `limit` seconds."""
        if not futures:
            return []
        _, running = await asyncio.wait(futures, timeout=None if limit == math.inf else limit)
        return list(running)

    async def _leave_queued(self, loop: asyncio.AbstractEventLoop, limit: float) -> None:
        """Leave what has not begun: recorded as queued, to other engines; what is in memory only is cancelled."""
        mine = {run: future for run, future in self._queued.items() if future.get_loop() is loop}
        for run in mine:
            self._queued.pop(run)
        await leave(mine, partial(AsyncDriver, cancels=0, pool=self._pool, tasks=self._tasks), max(limit, MARGIN))

    async def __aenter__(self) -> Self:
        self._ensure_looking()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine. An exception drops what has not begun; one that stops the task, or the process, ends what runs
        too."""
        if kind is not None:
            await self._leave_queued(asyncio.get_running_loop(), self._settings.grace)
        stops = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt | asyncio.CancelledError)
        await self.aclose(0 if stops else None)


def _cancels() -> int:
    """How often the current task has been cancelled and has not minded."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _lose(live: dict[RunState, AsyncDriver | None], run: RunState) -> None:
    """The store says that another process owns the run: start and undo nothing more of it. On the heartbeat's thread."""
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


def _begin_late_look(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method of an engine that is not forgotten, on its loop."""
    call = method()
    if call is not None:
        call()


def _look(driver: AsyncDriver) -> None:
    """Have the driver look for what its run waits for. From any thread."""
    with suppress(RuntimeError):  # its loop is closed: nothing of it runs any more
        driver.loop.call_soon_threadsafe(driver.look)


def _wake(live: dict[RunState, AsyncDriver | None], run: RunState) -> None:
    """The run that `run` waits for is over. From any thread."""
    driver = live.get(run)
    if driver is not None:
        with suppress(RuntimeError):  # its loop is closed: nothing of it runs any more
            driver.loop.call_soon_threadsafe(driver.stop, Stop(cancel=False))
