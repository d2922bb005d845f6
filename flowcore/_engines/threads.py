"""`Engine`: runs workflows on threads."""

from __future__ import annotations

import builtins
import contextvars
import math
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from .._kernel.inline import can_run_inline
from .._kernel.run import abort, abort_inline, execute, run_without_driver
from .._kernel.run_state import RunState
from ..errors import NoThread
from ..events import Hook
from ..exits import deferred, raise_deferred
from ..forks import after_fork_in_child
from ..keys import Key
from ..retry import Duration, seconds
from ..run import Run
from ..stores.base import Page, RunRecord, Store
from ..workflow import Workflow
from .asking import cancel_in_store, make_calls
from .base import I, outcome
from .batches import check_batch, checked_concurrency, completed, key_of
from .checks import caller_drives, check_named
from .handles import RunFuture
from .interrupts import SigintGuard, guard, restore
from .local import LocalEngine
from .own_calls import refuse_own_close
from .recovering import LEASE_OVER, RecoveryThread
from .thread_driver import Driver
from .thread_runs import ThreadRuns
from .workers import Workers

if TYPE_CHECKING:
    from ..schedule import ScheduleStatus
    from ..step import Step
    from .schedules import ThreadSchedules

__all__ = ["Engine"]

T = TypeVar("T")


class Engine(LocalEngine):
    """Runs workflows on threads. By default, it keeps runs in memory and emits no events.

    Thread-safe; create one engine and keep it. Works with or without `with`. `store`: where runs are claimed and
    recorded; `hooks`: callables that get events; `max_workers`: the most steps of one run at a time, and the most
    threads of the engine (default 32); `lease`: seconds after which a run on a durable store can be taken over, unless
    its engine renews the lease; `grace`: seconds to wait for an abandoned step before continuing without it;
    `workflows`: those whose runs `recover` resumes; `recover_every`: seconds between two rounds of recovery;
    `store_patience`: seconds for which a run waits for an unreachable store; `max_queued`: how many submitted runs may
    wait for a thread; `max_takeovers`: a run that crashed more owners than this in a row, without progress, is held;
    `recover_at_once`: the most recovered runs in flight (default: half of `max_workers`); `namespace`: a part of all
    step keys (default: that of the store, which is the prefix of a Redis store and otherwise empty). Two engines that
    share an external service, such as a payment provider, but no store need different namespaces. `park_after`:
    seconds; a run on a durable store that has nothing to do but wait for backoffs longer than this is left to its
    store.
    """

    _looking: RecoveryThread | None = None
    _schedules: ThreadSchedules | None = None

    def __init__(
        self,
        *,
        store: Store | None = None,
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
            runs_async=False,
        )
        self._runs = ThreadRuns(self._settings, self.max_workers)
        self._pool = self._runs.pool
        self._emit_started(self._pool)
        self._runs.leases = self._keep_runs(self._runs.live, self._runs.local, recover_at_once)
        self._begin_looking()
        after_fork_in_child(self, Engine._after_fork)

    def _begin_looking(self) -> None:
        """Start the thread that looks at the store regularly, if anything needs it. An existing thread looks now."""
        if self._looking is not None:
            self._looking.wake()
        elif (every := self._look_every()) is not None:
            self._looking = RecoveryThread(self._look, every)
            self._recovery.wake = self._looking.wake

    def _own_schedules(self) -> ThreadSchedules:
        from .schedules import ThreadSchedules

        with self._lock:
            self._schedules = self._schedules or ThreadSchedules(self)
            return self._schedules

    def schedules(self) -> builtins.list[ScheduleStatus]:
        """The status of each schedule of this engine: its next fires, and its last fire with the outcome, as the store
        has recorded them. Raises StoreError."""
        return [] if self._schedules is None else self._schedules.statuses()

    def run(
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
        """Run a workflow to its end; the calling thread takes part.

        `values`: the initial values of its context. `idempotency_key`: two calls with the same key are one run. `wait`:
        seconds to wait for the outcome of another run that has the key. `deadline`: seconds the run may take. `once`:
        use the outcome of an earlier run with the key, even if it failed; without `once`, a failed or compensated run
        releases its key, and this call begins a new run. `until`: with "waiting", the call also returns when the run
        has nothing to do but wait. Its status is then `waiting`; a durable run resumes in an engine that recovers, a
        run in memory in this engine.

        Raises the failed step's own exception, with a note that names the run and the step and lists what was undone,
        or CompensationFailed if an undo failed, too. With `check=False`, a failed run is returned like any other.
        Refused claims (IdempotencyError), definition errors and BaseExceptions are still raised.
        """
        if until != "end" and not caller_drives(until, durable=self.store.durable):
            future = self.submit(
                workflow, values, idempotency_key=idempotency_key, wait=wait, deadline=deadline, once=once, check=check
            )
            return future.first_pause()
        until_waiting = until == "waiting"
        run = self._requested(
            workflow, values, idempotency_key, wait, deadline, once=once, check=check, until_waiting=until_waiting
        )
        inline = can_run_inline(run)
        ctrl_c: SigintGuard | None = None
        try:
            self._live[run] = None
            if run.observed or not inline:  # a Ctrl-C must not interrupt a hook
                ctrl_c = guard()
            if inline:
                finished = run_without_driver(run, is_async=False, interrupts=ctrl_c)
                if finished is not None:
                    self._runs.forget(run)
                    if ctrl_c is not None:
                        restore(ctrl_c)
                        if ctrl_c.count:
                            raise KeyboardInterrupt  # noqa: TRY301 - the handler below ends every interrupt alike
                    if deferred:
                        raise_deferred()
                    return finished
            ctrl_c = ctrl_c or guard()
            main = execute(run)
        except BaseException as error:
            if not inline or run.finished is not None:  # nothing has begun, or all is over
                self._runs.forget(run)
                restore(ctrl_c)
                raise
            main, ctrl_c = abort_inline(run, error), ctrl_c or guard()
        driver: Driver | None = None
        while True:
            try:
                driver = driver or self._runs.driver(run, main)
                driver.run_here(ctrl_c)
            except BaseException as error:
                if driver is not None and driver.over:
                    raise
                main, driver = abort(run, error), None  # a signal handler exits before the driver can handle that
                continue
            again = self._runs.continued(driver)
            if again is None:
                return outcome(driver.result, driver.error, check=check)
            run, driver, ctrl_c = again.run, again, guard()

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
    ) -> RunFuture:
        """Start a run on the engine's own threads, and return its future, which raises what `run` raises.

        `propagation`: "link" gives the run a trace of its own, linked to the caller's trace; "child" makes it a part of
        the caller's trace. On a durable store, the run is recorded as queued before this call returns: it survives the
        process, and any engine that recovers may run it. Raises QueueFull if `max_queued` runs have not begun, NoThread,
        NotSerializable, and StoreError if the run could not be recorded. A step on a thread of the engine may wait for
        the future's result: its thread then works on that run.
        """
        run = self._requested(workflow, values, idempotency_key, wait, deadline, once=once, check=check, submitted=True)
        self._refuse_if_full(len(self._runs.queued))
        self._emit_submitted(run, propagation)
        return self._runs.queue(run, check=check)

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
    ) -> Generator[Run, None, None]:
        """Run the workflow for each item. Returns an iterator of the Runs, including failed ones, in the order in which
        they end, or with `ordered` in the order of the items.

        `values(item)` and `key(item)` return each run's initial values (default: the item itself) and idempotency key.
        Items are taken lazily, while fewer than `concurrency` (default: `max_workers`) runs are in flight or not yet
        yielded, so memory does not grow with the number of items. `check=True` raises the error of the first failed
        run. With keys on a durable store, a repeated call replays the runs that have ended and resumes the others; for
        a run of another owner, it waits until the outcome is known or the lease of a dead owner has expired. Closing
        the iterator early, or a Ctrl-C, takes no further item and drops the runs that have not begun. Can be used
        inside a step. Raises DefinitionError for arguments with which it could run nothing.
        """

        def submit(item: T) -> RunFuture:
            made: Any = item if values is None else values(item)
            return self.submit(workflow, made, idempotency_key=key_of(key, item), wait=math.inf, check=check)

        check_batch(items, values, key, ordered=ordered, check=check)
        most = checked_concurrency(concurrency, self.max_workers)
        return completed(items, submit, most, ordered=ordered, works=self._pool.owns_current_thread)

    def cancel(self, run_id: str | None = None, *, key: str | None = None) -> bool:
        """Cancel a run, by its id or its key: running steps get at most `grace`, the run is undone, and its caller gets
        StepCancelled. On a durable store, it may be a run of another process, which learns of it with its next
        checkpoint or renewal. Returns False if there is no such run or it was ending already. Raises DefinitionError if
        neither is given, and StoreError."""
        check_named(run_id, key)
        run = self._live.find(run_id, key)
        if run is not None:
            return self._runs.cancel(run, f"run {run.run_id} was cancelled by engine.cancel().")
        return self.store.durable and make_calls(cancel_in_store(self.store, run_id, key), self._callers_context())

    def send(self, key: str, name: Step[Any] | str, value: Any, *, id: str | None = None) -> bool:  # noqa: A002
        """Send a value to the wait `name` of the run with this key (or this id, if the run has no key), in any process
        that uses the store. The value is kept until the run comes to that wait; only the first value counts.

        Returns True if this value counts, and False if another one was sent before. `name`: the wait, as its Step or
        its name. `id`: a name for this value; sending a value with the same id again returns True again. Raises
        DefinitionError for a name or an id that is not a string; RunNotFound for an unknown key; SendRefused for a run
        that is over or being undone, has no such wait, or is past it; NotSerializable; and StoreError.
        """
        context = self._callers_context()
        counts, due = make_calls(self._sent(key, name, value, id), context)
        if due:
            with suppress(NoThread):  # the value is in the store: recovery resumes the run
                self._pool.put(partial(_call_now, weakref.WeakMethod(self._resume), key, context))
        return counts

    def _resume(self, key: str, context: contextvars.Context) -> None:
        """Resume the run with this key if it waits in the store, after this engine has sent a value to it."""
        run = make_calls(self._due(key), context)
        if run is not None:
            self._recovered_driver(run).begin()

    def find(self, key: str) -> RunRecord | None:
        """The record of the run with this key, or None. Raises StoreError."""
        return self._callers_context().run(self.store.find, key)

    def get(self, run_id: str) -> RunRecord:
        """The record of the run with this id. Raises RunNotFound and StoreError."""
        return self._callers_context().run(self.store.get_run, run_id)

    def list(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """A page of the store's runs, newest first, filtered as by `Store.list_runs`. `after`: the `cursor` of the
        previous page. Raises DefinitionError for an unknown status, and StoreError."""
        ask = partial(
            self.store.list_runs,
            status=status,
            workflow=workflow,
            older_than=older_than,
            limit=limit,
            after=after,
            text=text,
        )
        return self._callers_context().run(ask)

    def recover(self) -> builtins.list[Run]:
        """Resume the runs of `workflows` that have no live owner and are due: crashed, parked, past their pivot, or
        released by an operator; at most `recover_at_once` at a time.

        Waits for the resumed runs and returns them, failed ones included. Their errors are not raised; StoreError is
        raised if the store cannot list the runs. (The rounds of `recover_every=` do not wait for their runs.) A run
        whose owner has just crashed keeps its lease for a while: the engine looks again by itself once that lease would
        have expired.
        """
        resumed: list[Driver] = []
        over: SimpleQueue[Driver] = SimpleQueue()
        begin = partial(self._begin_recovered, on_over=over.put)
        in_flight, fresh = 0, True
        make_calls(self._surveyed("recover"))
        while True:
            skip = {driver.run.request.recovering for driver in resumed}
            started = make_calls(self._recovered(begin, skip, fresh=fresh))
            resumed += started
            in_flight, fresh = in_flight + len(started), False
            if not in_flight:
                if self._looks_once_more():
                    later = partial(_put_on_pool, self._pool, weakref.WeakMethod(self._late_look))
                    with suppress(NoThread):  # the next call of recover() looks again
                        self._runs.timers.after(self.lease * LEASE_OVER, later)
                return [driver.result for driver in resumed if driver.result is not None]
            over.get()
            in_flight -= 1

    def _begin_recovered(
        self, runs: builtins.list[RunState], on_over: Callable[[Driver], None] | None = None
    ) -> builtins.list[Driver]:
        """Begin the runs of one round of recovery. A thread of the pool drives them itself, one after another. Raises
        NoThread, and then the next round finds them again."""
        try:
            self._pool.ensure_thread()
        except NoThread:
            for run in runs:
                self._recovery.ended(run, None)
            raise
        drivers = [self._recovered_driver(run, on_over) for run in runs]
        here = self._pool.owns_current_thread()  # a step of this engine: all threads of the pool may wait
        for driver in drivers:
            if here:
                driver.run_here(None)
            else:
                self._pool.put(driver.begin)
        return drivers

    def _recovered_driver(self, run: RunState, on_over: Callable[[Driver], None] | None = None) -> Driver:
        def over(driver: Driver) -> None:
            self._runs.over(driver)
            self._recovery.ended(driver.run, driver.error)
            if on_over is not None:
                on_over(driver)

        driver = self._runs.driver(run, execute(run))
        driver.on_over = over
        return driver

    def _late_look(self) -> None:
        make_calls(self._recovered_late(self._begin_recovered))

    def _look(self) -> float | None:
        return make_calls(self._looked(self._begin_recovered))

    def close(self, timeout: Duration | None = None) -> None:
        """Start no more runs, and wait for those that were accepted.

        With a `timeout` (seconds), runs that have not begun are left to other engines, or cancelled in memory. Runs on
        a durable store are parked: they begin no further step, and resume on another engine. Runs in memory that have
        not ended at the timeout are cancelled. Calls that are still in flight then have `grace` to end.

        Raises FlowcoreError if a step or a hook of this engine calls it, because it would wait for that run.
        """
        limit = None if timeout is None else seconds(timeout, "close(timeout=)")
        refuse_own_close(self._live, None if self._pool.owns_current_thread() else limit)
        if self._schedules is not None:
            self._schedules.close()
        if self._looking is not None:
            self._looking.close()
        self._closed = True
        self._runs.close(limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine.

        After an exception, runs that have not begun are left to other engines, or cancelled in memory. After one that
        stops the process, runs in flight are also parked, or cancelled in memory.
        """
        if kind is not None:
            self._runs.drop_queued(self._settings.grace)
        self.close(0 if kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt) else None)


def _put_on_pool(pool: Workers, method: weakref.WeakMethod[Callable[[], None]]) -> None:
    """Call a method of an engine on a thread of its pool, unless the engine has been garbage-collected."""
    call = method()
    if call is not None:
        with suppress(NoThread):
            pool.put(call)


def _call_now(
    method: weakref.WeakMethod[Callable[[str, contextvars.Context], None]], key: str, context: contextvars.Context
) -> None:
    """Call a method of an engine, unless the engine has been garbage-collected."""
    call = method()
    if call is not None:
        call(key, context)
