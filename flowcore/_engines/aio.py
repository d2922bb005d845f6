"""`AsyncEngine`: runs workflows on asyncio."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import math
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from .._kernel.inline import can_run_inline
from .._kernel.run import run_without_driver
from .._kernel.run_state import RunState
from ..errors import RunNotFound
from ..events import Hook
from ..exits import deferred, raise_deferred
from ..forks import after_fork_in_child
from ..keys import Key
from ..retry import Duration, seconds
from ..run import Run
from ..status import Status
from ..workflow import Workflow
from .aio_driver import AsyncDriver
from .aio_handles import AsyncRunFuture, Cancellation
from .aio_runs import AsyncRuns, pending_cancellations
from .asking import cancel_in_store, make_calls, make_calls_on_loop
from .base import I
from .calls import LoopCalls
from .checks import caller_drives, check_named
from .live_runs import is_meant
from .local import LocalEngine
from .own_calls import refuse_own_close
from .recovering import LEASE_OVER, RecoveryTasks

if TYPE_CHECKING:
    from ..schedule import ScheduleStatus
    from ..step import Step
    from .schedules import AsyncSchedules

__all__ = ["AsyncEngine"]

T = TypeVar("T")


class AsyncEngine(LoopCalls, LocalEngine):
    """Runs workflows on asyncio. Steps may be sync or async; sync steps run on the engine's own threads.

    The arguments are those of `Engine`. An AsyncEngine may be created outside of a loop and used on several loops; each
    run belongs to the loop on which it was started. Any store can be used: a sync store that may block is called on a
    thread. On each loop, the rounds of `recover_every` start with `async with`, with the first run or with `recover()`.
    """

    _looking: RecoveryTasks | None = None
    _schedules: AsyncSchedules | None = None

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
        self._runs = AsyncRuns(self._settings, self.max_workers)
        self._recovering: set[asyncio.Task[Any]] = set()  # a loop holds tasks only weakly
        self._pool = self._runs.pool
        self._emit_started(self._pool)
        self._runs.leases = self._keep_runs(self._runs.live, self._runs.local, recover_at_once)
        self._begin_looking()
        after_fork_in_child(self, AsyncEngine._after_fork)

    def _begin_looking(self) -> None:
        """Start the task that looks at the store regularly, if anything needs it. An existing task looks now."""
        if self._looking is not None:
            self._looking.wake()
        elif (every := self._look_every()) is not None:
            self._looking = RecoveryTasks(self._look, every)
            self._recovery.wake = self._looking.wake
            with suppress(RuntimeError):  # outside a loop, it starts with `async with` or with the first run
                self._looking.ensure()

    def _own_schedules(self) -> AsyncSchedules:
        from .schedules import AsyncSchedules

        with self._lock:
            self._schedules = self._schedules or AsyncSchedules(self)
            return self._schedules

    async def schedules(self) -> builtins.list[ScheduleStatus]:
        """The status of each schedule of this engine, as `Engine.schedules` returns it, without blocking the loop."""
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

        Cancelling the task that awaits this call cancels the run: running steps get at most `grace`, the run is undone
        (shielded from further cancellations), and CancelledError is raised again.
        """
        if until != "end" and not caller_drives(until, durable=self.store.durable):
            future = self._submitted(
                self._requested(
                    workflow, values, idempotency_key, wait, deadline, once=once, check=check, submitted=True
                ),
                check=check,
            )
            return await future.first_pause()  # no local `run` here: see own_calls.is_called_in
        until_waiting = until == "waiting"
        run = self._requested(
            workflow, values, idempotency_key, wait, deadline, once=once, check=check, until_waiting=until_waiting
        )
        cancelled = pending_cancellations()
        if can_run_inline(run):
            self._live[run] = None
            try:
                finished = run_without_driver(run, is_async=True)
            except BaseException:
                self._live.pop(run, None)
                raise
            if finished is not None:
                self._live.pop(run, None)
                if deferred:
                    raise_deferred()
                return finished
        self._ensure_looking()
        return await self._runs.drive(run, cancelled, check=check)

    def _unclaimed(self) -> Iterable[AsyncRunFuture]:
        return self._runs.local.futures.values()

    def _unbegun(self) -> int:
        return len(self._runs.queued)

    def _begin(self, run: RunState, *, check: bool, records: bool) -> AsyncRunFuture:
        future = self._runs.queue(run, check=check, records=records)
        self._ensure_looking()
        return future

    def cancel(self, run_id: str | None = None, *, key: str | None = None) -> Cancellation:
        """Cancel a run, by its id or its key, as `Engine.cancel` does. May be called from any thread.

        A run of this engine is cancelled at once, whether or not the result is awaited. `await engine.cancel(...)`
        returns whether a run is being cancelled. On a durable store, this may be a run of another process, which learns
        of it with its next checkpoint or renewal. In a thread without a running loop, this call itself waits for the
        store.

        Raises DefinitionError at once if neither is given, and StoreError when it is awaited, or at once in a thread
        without a running loop.
        """
        check_named(run_id, key)
        queued = next((run for run in list(self._runs.queued) if is_meant(run, run_id, key)), None)
        run = self._live.find(run_id, key)
        if run is None or not run.claimed:
            run = queued or run
        cancelled = run is not None and self._runs.cancel(run)
        # A run that waits in its store is cancelled there.
        if cancelled or (run is not None and run.finished is not Status.WAITING):
            return Cancellation(cancelled)
        if not self.store.durable:
            return Cancellation(here=False)
        asking, context = cancel_in_store(self.store, run_id, key), self._callers_context()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            if self._store_is_async:
                return Cancellation(asyncio.run(make_calls_on_loop(asking, context)))
            return Cancellation(make_calls(asking, context))
        task = loop.create_task(make_calls_on_loop(asking, context))
        self._runs.tasks.add(task)
        task.add_done_callback(self._runs.tasks.discard)
        return Cancellation(here=False, asked=task)

    async def send(self, key: str, name: Step[Any] | str, value: Any, *, id: str | None = None) -> bool:  # noqa: A002
        """Send a value to the wait `name` of the run with this key, like `Engine.send`, without blocking the loop."""
        context, claim = self._callers_context(), self._claim_of(key)
        try:
            counts, due = await make_calls_on_loop(self._sent(key, name, value, id), context)
        except RunNotFound:
            if claim is None:
                raise
            await claim.decided()
            counts, due = await make_calls_on_loop(self._sent(key, name, value, id), context)
        if due:
            run = await make_calls_on_loop(self._due(key), context)
            if run is not None:
                self._begin_recovered([run])
        return counts

    async def recover(self) -> builtins.list[Run]:
        """Resume the runs of `workflows` that have no live owner and are due, as `Engine.recover` does."""
        self._ensure_looking()
        resumed: list[asyncio.Task[AsyncDriver]] = []
        skip: set[str | None] = set()
        fresh = True
        await make_calls_on_loop(self._surveyed("recover"))
        while True:
            started = await make_calls_on_loop(self._recovered(self._begin_recovered, skip, fresh=fresh))
            skip.update(run.request.recovering for run in started)
            resumed += started.values()
            fresh = False
            running = [task for task in resumed if not task.done()]
            if not running:
                if self._looks_once_more():
                    loop, look = asyncio.get_running_loop(), weakref.WeakMethod(self._late_look)
                    loop.call_later(self.lease * LEASE_OVER, _begin_late_look, look)
                drivers = [task.result() for task in resumed if not task.cancelled()]
                return [driver.result for driver in drivers if driver.result is not None]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    def _begin_recovered(self, runs: Iterable[RunState]) -> dict[RunState, asyncio.Task[AsyncDriver]]:
        """Begin the runs of one round of recovery, each in a task of its own."""
        self._live.update(dict.fromkeys(runs))
        started = {run: self._recovery_task(self._drive_recovered(run)) for run in runs}
        for run, task in started.items():
            task.add_done_callback(partial(self._recovered_ended, run))
        return started

    async def _drive_recovered(self, run: RunState) -> AsyncDriver:
        return await self._runs.driven(run, pending_cancellations())

    def _recovered_ended(self, run: RunState, task: asyncio.Task[AsyncDriver]) -> None:
        # A loop that shuts down may cancel the task before it begins.
        driver = None if task.cancelled() or task.exception() is not None else task.result()
        self._live.pop(run, None)
        self._recovery.ended(run, None if driver is None else driver.error)

    def _recovery_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._recovering.discard)
        self._recovering.add(task)
        return task

    def _late_look(self) -> None:
        self._recovery_task(make_calls_on_loop(self._recovered_late(self._begin_recovered)))

    async def _look(self) -> float | None:
        return await make_calls_on_loop(self._looked(self._begin_recovered))

    def _ensure_looking(self) -> None:
        """Ensure that this loop has one task for recovery and surveys, if they are needed, and one for schedules."""
        if self._looking is not None:
            self._looking.ensure()
        if self._schedules is not None:
            self._schedules.ensure()

    async def aclose(self, timeout: Duration | None = None) -> None:  # noqa: ASYNC109 - it parks or cancels runs
        """Start no more runs, and wait for those on this loop. `timeout` (seconds): see `Engine.close`. Raises
        FlowcoreError if a step of this engine calls it without a timeout, because it would wait for that step."""
        limit = None if timeout is None else seconds(timeout, "aclose(timeout=)")
        refuse_own_close(self._live, limit)
        self._closed = True
        loop = asyncio.get_running_loop()
        looking = [] if self._looking is None else self._looking.close(loop)
        if self._schedules is not None:
            looking += self._schedules.tasks.close(loop)
        await self._runs.close(None if limit == math.inf else limit, looking)

    async def __aenter__(self) -> Self:
        self._ensure_looking()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine.

        After an exception, runs that have not begun are left to other engines, or cancelled in memory. After one that
        stops the task or the process, runs in flight are also parked, or cancelled in memory.
        """
        if kind is not None:
            await self._runs.leave_queued(self._settings.grace)
        stops = kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt | asyncio.CancelledError)
        await self.aclose(0 if stops else None)


def _begin_late_look(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method of an engine on its loop, unless the engine has been garbage-collected."""
    call = method()
    if call is not None:
        call()
