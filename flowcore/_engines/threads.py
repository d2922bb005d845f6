"""`Engine`: runs workflows on threads."""

from __future__ import annotations

import builtins
import contextvars
import math
import os
import threading
import weakref
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from .._durable.queueing import enqueue
from .._durable.waiting import LocalRuns
from .._kernel.effects import Program, Stop
from .._kernel.inline import can_run_inline
from .._kernel.run import abort_inline, execute, run_without_driver
from .._kernel.run_state import RunState
from ..context import own_copy
from ..errors import FlowcoreError, RunTimeout, StepCancelled, safe_repr, safe_str
from ..events import Hook
from ..forks import after_fork_in_child
from ..retry import Duration, seconds
from ..run import Run, Sent
from ..status import Status
from ..stores.base import Page, RunRecord, Store
from ..workflow import Key, Workflow
from .base import (
    CLOSED,
    MARGIN,
    EngineBase,
    I,
    cancel_in_store,
    is_meant,
    left,
    log,
    outcome,
    perform,
    this_process,
)
from .batches import completed, key_of, whole_or
from .checks import runs_here
from .handles import RunFuture
from .interrupts import SigintGuard, guard, restore
from .live_runs import (
    Live,
    call_now,
    cancel_through_store,
    drop,
    hand_over,
    leave,
    lose_run,
    park,
    park_dormant,
    put_on_pool,
    wake,
)
from .recovering import LEASE_OVER, RecoveryThread, performed
from .sending import announce, counts_as, fetched, hand_on, made_here
from .thread_driver import Driver
from .workers import Timers, Workers

if TYPE_CHECKING:
    from ..schedule import ScheduleStatus
    from .schedules import ThreadSchedules

__all__ = ["Engine"]

T = TypeVar("T")


class Engine(EngineBase):
    """Runs workflows on threads. Silent and in memory unless its options say otherwise.

    Thread-safe; make one and keep it. Works with or without `with`. `store`: where runs are claimed and kept;
    `hooks`: callables that get events; `max_workers`: steps of one run at a time, and threads of the engine's own (default 32);
    `lease`: seconds that a durable store gives an engine between two signs of life; `grace`: seconds to wait for a step
    that was given up before continuing without it; `workflows`: what `recover` may resume; `recover_every`: seconds
    between two rounds of that; `store_patience`: seconds for which a run waits for a store that is unreachable;
    `max_queued`: submitted runs that may wait for a thread; `max_takeovers`: a run that crashed more of its owners
    in a row, without progress, is held; `recover_at_once`: recovered runs in flight (default: half of `max_workers`);
    `namespace`: what all step keys depend on (default: the store's, which is the prefix of a Redis store, and else empty).
    Two engines that share a service outside, such as a payment provider, but no store need different ones. `park_after`:
    seconds; a run on a durable store of which nothing but longer waits between attempts can go on is left to its store.
    """

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
        self._pool = Workers(self.max_workers, "flowcore")
        self._timers = Timers("flowcore-timers")
        self._tell_started(self._pool)
        self._live: Live = {}  # None: it runs inline
        self._queued: dict[Driver, RunFuture] = {}  # submitted runs that have not begun
        self._quiet = threading.Condition()  # notified of each run that is over while the engine is being closed
        self._closing = False
        self._leases = self._keep_leases(
            partial(lose_run, self._live),
            partial(cancel_through_store, self._live),
            partial(fetched, self._live, Driver.look),
        )
        self._claims.local = self._local = LocalRuns(partial(wake, self._live), self._settings.clock)
        self._recovery = self._recovery_of(self._live, recover_at_once)
        self._listen(self._received)
        self._looking: RecoveryThread | None = None
        self._schedules: ThreadSchedules | None = None
        self._looks_again = False
        self._begin_looking()
        # Idle threads hold the pool, and only runs in flight hold the engine: one that is forgotten ends its threads.
        after_fork_in_child(self, Engine._after_fork)
        weakref.finalize(self, leave, self._pool, self._timers, self._live, self._settings.grace)

    def _after_fork(self) -> None:
        """In a child: the runs in flight are the parent's."""
        super()._after_fork()
        self._quiet = threading.Condition()
        for run in self._live:
            run.in_child(os.getpid())
        self._live.clear()
        self._recovery.after_fork()
        if self._looking is not None:
            self._looking.start()
        if self._schedules is not None:
            self._schedules.after_fork()

    def _begin_looking(self) -> None:
        """Have a thread look at the store, where anything wants that, or look at once."""
        if self._looking is not None:
            self._looking.ring()
        elif (every := self._look_every()) is not None:
            self._looking = RecoveryThread(self._look, every)
            self._recovery.wake = self._looking.ring

    def _own_schedules(self) -> ThreadSchedules:
        from .schedules import ThreadSchedules

        with self._lock:
            self._schedules = self._schedules or ThreadSchedules(self)
            return self._schedules

    def schedules(self) -> builtins.list[ScheduleStatus]:
        """How each schedule of this engine stands: its next fires, and its last fire and its outcome, as the store has them.
        Raises StoreError."""
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
        seconds to wait for the outcome of another run that has the key. `deadline`: seconds the run may take. `once`: the
        outcome of an earlier run with the key is this run's too, even if it failed; without it, a failed or compensated run
        releases its key and this call begins a new one. `until`: with "waiting", a run of which nothing but waits can go on is
        returned as it is, its status `waiting`: a durable one goes on in an engine that recovers, one in memory in this engine.

        Raises the failed step's own exception, with a note that says which run and step, and what was undone;
        CompensationFailed where an undo failed too. With `check=False` a failed run is answered like any other. Refused
        claims (IdempotencyError), definition errors and BaseExceptions are raised all the same.
        """
        if until != "end" and not runs_here(until, durable=self.store.durable):
            future = self.submit(
                workflow, values, idempotency_key=idempotency_key, wait=wait, deadline=deadline, once=once, check=check
            )
            return future.first_pause()
        until_waiting = until == "waiting"
        run = self._requested(workflow, values, idempotency_key, wait, deadline, once=once, until_waiting=until_waiting)
        inline = can_run_inline(run)
        ctrl_c: SigintGuard | None = None
        try:
            self._live[run] = None
            if run.observed or not inline:  # no Ctrl-C may strike a hook
                ctrl_c = guard()
            if inline:
                finished = run_without_driver(run, is_async=False, interrupts=ctrl_c)
                if finished is not None:
                    self._forget(run)
                    if ctrl_c is not None:
                        restore(ctrl_c)
                        if ctrl_c.count:
                            raise KeyboardInterrupt  # noqa: TRY301 - whatever strikes from here on ends the same way
                    return finished
            ctrl_c = ctrl_c or guard()
            main = execute(run)
        except BaseException as error:
            if not inline or run.finished is not None:  # nothing has begun, or all is over
                self._forget(run)
                restore(ctrl_c)
                raise
            main, ctrl_c = abort_inline(run, error), ctrl_c or guard()
        driver = self._driver(run, main)
        while True:
            driver.run_here(ctrl_c)
            again = self._continued(driver)
            if again is None:
                return outcome(driver.result, driver.error, check=check)
            driver, ctrl_c = again, guard()

    def _continued(self, driver: Driver) -> Driver | None:
        """The driver of what follows a run that waits in its store; None if its caller gets what there is."""
        if driver.result is None or driver.result.status is not Status.WAITING:
            return None
        again = self._continuation(driver.run, self._local)
        if again is None and not driver.run.request.until_waiting:
            driver.result, driver.error = None, left(driver.run)
        if again is None:
            return None
        continued = self._driver(*again)
        if self._closed:  # meanwhile
            park_dormant(self._live)
        return continued

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
        """Like `run`, on the engine's own threads. The future raises what `run` raises.

        `propagation`: "link" gives the run a trace of its own, linked to the caller's; "child" makes it part of that one.
        On a durable store the run is recorded as queued before this returns: it survives the process, and any engine that
        recovers may run it. Raises QueueFull where `max_queued` runs have not begun, NotSerializable, and StoreError where
        the run could not be recorded. A step on a thread of the engine may wait for the
        future's result: its thread then works on that run.
        """
        run = self._requested(workflow, values, idempotency_key, wait, deadline, once=once, submitted=True)
        self._refuse_if_full(len(self._queued))
        self._tell_submitted(run, propagation)
        return self._queue(run, check=check)

    def _queue(self, run: RunState, *, check: bool, only_new: bool = False) -> RunFuture:
        """Have a thread of the pool begin a run. `only_new`: drop it where its key is not free, as its future then says."""
        driver = self._driver(run, execute(run))
        future = RunFuture(driver, self._pool, self._cancel)
        run.on_pause = future.pause
        driver.on_over = partial(self._resolve, future, check)
        self._queued[driver] = future
        if self._leases is not None:
            try:
                driver.recorded = perform(enqueue(run, this_process(), future.done), driver.ask_here)
            except BaseException:
                self._queued.pop(driver, None)
                self._forget(run)
                raise
            if future.done():  # cancelled while it was recorded
                return future
            if driver.recorded is not None:
                self._leases.join(run)
            elif only_new:
                future.cancel()
                return future
        if not self._pool.put(partial(self._begin, driver, future)) and run.request.deadline is not None:
            self._timers.after(run.request.deadline, partial(self._expire, driver))
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
    ) -> Generator[Run, None, None]:
        """A run for each item, as an iterator of their Runs, failed ones among them: as they end, or `ordered`.

        `values(item)` and `key(item)` make each run's initial values (default: the item itself) and idempotency key.
        Lazy: an item is taken once fewer than `concurrency` (default: `max_workers`) runs are in flight or not yet handed
        out, so that memory does not grow with the number of items. `check=True` raises the error of the first failed run.
        With keys on a durable store, a second start replays what has ended and resumes the rest; a run that another owner
        has in progress is waited for, until its outcome is known or the lease of a dead owner is over. Leaving the loop, or a
        Ctrl-C, takes no further item and drops the runs that have not begun. Usable inside a step.
        """

        def submit(item: T) -> RunFuture:
            made: Any = item if values is None else values(item)
            return self.submit(workflow, made, idempotency_key=key_of(key, item), wait=math.inf, check=check)

        most = whole_or(concurrency, self.max_workers)
        return completed(items, submit, most, ordered=ordered, works=self._pool.owns_current_thread)

    def _begin(self, driver: Driver, future: RunFuture) -> None:
        """Begin a submitted run on this thread of the pool, unless it was dropped or its future was cancelled."""
        if driver.take_start():
            self._queued.pop(driver, None)
            if future.set_running_or_notify_cancel():
                driver.begin_now()
            else:
                driver.on_over(driver)

    def _expire(self, driver: Driver) -> None:
        """A deadline counts from the claim, which will never come where calls hang on all threads: then it ends the run."""
        run = driver.run
        assert run.request.deadline is not None  # noqa: S101 - the caller has looked
        if self._pool.exhausted:
            name = safe_repr(run.workflow.name)
            driver.drop(
                RunTimeout(f"run {run.run_id} of {name} did not begin before its deadline: no thread was free.")
            )
        elif driver in self._queued:
            self._timers.after(run.request.deadline, partial(self._expire, driver))

    def _resolve(self, future: RunFuture, check: bool, driver: Driver) -> None:
        """A submitted run is over, waits in its store, or was dropped."""
        self._queued.pop(driver, None)
        self._over(driver)
        if driver.result is not None and driver.result.status is Status.WAITING:
            future.pause(driver.result)
        again = self._continued(driver)
        if again is not None:
            again.on_over = partial(self._resolve, future, check)
            future.continues(again)
            if again.take_start():
                self._pool.put(again.begin_now)
            return
        if future.cancelled():
            if driver.recorded is not None:
                driver.ask_here("withdraw", driver.recorded)
            return
        try:
            result = outcome(driver.result, driver.error, check=check)
        except BaseException as error:  # noqa: BLE001 - the future raises it
            future.set_exception(error)
        else:
            future.set_result(result)

    def _driver(self, run: RunState, main: Program[Run]) -> Driver:
        driver = Driver(run, main, self._pool, self._timers, self._over)
        self._live[run] = driver
        return driver

    def _over(self, driver: Driver) -> None:
        self._forget(driver.run)
        if driver.run.claimed:
            self._local.leave(driver.run)
        if self._leases is not None and (driver.run.claimed or driver.recorded is not None):
            self._leases.leave(driver.run)

    def _forget(self, run: RunState) -> None:
        """A run is over, or has not begun after all."""
        self._live.pop(run, None)
        if self._closing:
            with self._quiet:
                self._quiet.notify_all()

    def cancel(self, run_id: str | None = None, *, key: str | None = None) -> bool:
        """Cancel a run, by its id or its key: running steps get at most `grace`, what it did is undone, and its caller gets
        StepCancelled. On a durable store also a run of another process, which learns of it with its next checkpoint or
        renewal. False: there is no such run, or it was ending already."""
        for run in list(self._live):
            if is_meant(run, run_id, key):
                return self._cancel(run, f"run {run.run_id} was cancelled by engine.cancel().")
        return self.store.durable and performed(cancel_in_store(self.store, run_id, key), self._callers_context())

    def send(self, key: str, name: str, value: Any, *, id: str | None = None) -> bool:  # noqa: A002
        """Send a value to the wait `name` of the run with this key (or id, of a run without a key), in this process or any
        other of the store. It is kept until the run comes to that wait; the first value counts.

        Returns True if this one does, False if another one was sent before. `id`: a name for this value; the same again
        is True again. Raises RunNotFound for an unknown key; SendRefused for a run that is over or being undone, that has
        no such wait, or is past it; NotSerializable, and StoreError.
        """
        kept, carrier = own_copy(value), announce(self._settings, key, name)
        if self._knows_alone(self._live, key):
            sent = made_here(self._settings, kept, id, carrier)
            return counts_as(self._received(key, name, sent), sent)
        context = self._callers_context()
        counts = context.run(partial(self.store.send, key, name, kept, id=id, carrier=carrier))
        if counts and self.store.durable:
            sent = made_here(self._settings, kept, id, carrier)
            woken = self._local.wake_sleepers(key)
            if self._received(key, name, sent) is None and not woken and self.workflows:
                self._pool.put(partial(call_now, weakref.WeakMethod(self._resume), key, context))
        return counts

    def _resume(self, key: str, context: contextvars.Context) -> None:
        """Resume a run that waits in the store, and is due: a value was sent to it here."""
        try:
            run = performed(self._recovery.resume(self._resumed, key), context)
        except Exception as error:  # noqa: BLE001 - the next round may have more luck
            log.warning("a run could not be resumed at once: %s: %s", type(error).__name__, safe_str(error, 200))
            return
        if run is not None:
            driver = self._driver(run, execute(run))
            driver.on_over = self._recovered
            driver.begin()

    def _recovered(self, driver: Driver) -> None:
        self._over(driver)
        self._recovery.ended(driver.run, driver.error)

    def _received(self, key: str, name: str, sent: Sent) -> Sent | None:
        """A value was sent through this process's store. Returns what counts for a run of this engine."""
        return hand_on(self._live, key, name, sent, Driver.look)

    def find(self, key: str) -> RunRecord | None:
        """The record of the run that has a key, or None. Raises StoreError."""
        return self._callers_context().run(self.store.find, key)

    def get(self, run_id: str) -> RunRecord:
        """The record of a run. Raises RunNotFound, and StoreError."""
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
        """A page of the store's runs, newest first, filtered as `Store.list_runs` does: `after` is the `cursor` of the page
        before. Raises DefinitionError for a status that no run has, and StoreError."""
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

    def _cancel(self, run: RunState, why: str) -> bool:
        """Cancel a run, whether it runs inline or has a driver."""
        driver = self._live.get(run)
        if driver is not None and driver.drop(StepCancelled(why)):
            return True
        stopping = run.interrupt(StepCancelled(why))
        if not stopping and run.finished is Status.WAITING:
            return performed(cancel_in_store(self.store, None, run.stored_key), self._callers_context())
        if stopping and driver is not None:
            driver.stop(Stop(cancel=True))
        return stopping

    def recover(self) -> builtins.list[Run]:
        """Resume the runs of `workflows` that have no live owner and are due: crashed, parked, past their pivot, or
        released by an operator; at most `recover_at_once` at a time.

        Waits for the runs that it resumes and returns them, failed or not; raises nothing of theirs, but StoreError where
        the store cannot list them. The rounds of `recover_every=` wait for none. A run whose owner has just crashed keeps
        its lease for a while: once that would be over, the engine looks again by itself.
        """
        resumed: list[Driver] = []
        over: SimpleQueue[Driver] = SimpleQueue()
        in_flight, fresh = 0, True
        with self._round() as context:
            if self._surveys:
                self._survey(context)
        while True:
            skip = {driver.run.request.recovering for driver in resumed}
            with self._round() as context:
                started = self._start_recovered(context, skip, over.put, fresh=fresh)
            resumed += started
            in_flight, fresh = in_flight + len(started), False
            if not in_flight:
                self._look_again()
                return [driver.result for driver in resumed if driver.result is not None]
            over.get()
            in_flight -= 1

    def _look_again(self) -> None:
        """Look once more when the leases of this moment would be over, where no loop does."""
        if self.store.durable and self.recover_every is None and self.workflows and not self._looks_again:
            self._looks_again = True
            self._timers.after(
                self.lease * LEASE_OVER, partial(put_on_pool, self._pool, weakref.WeakMethod(self._late_look))
            )

    def _late_look(self) -> None:
        self._looks_again = False
        if self._closed:
            return
        try:
            with self._round() as context:
                self._start_recovered(context)
        except Exception as error:  # noqa: BLE001 - no caller waits for it
            log.warning("a recovery round failed: %s: %s", type(error).__name__, safe_str(error, 200))

    def _look(self) -> float | None:
        """Count what waits in the store, if that is due, and start what is to be resumed, without waiting for it. Returns
        the seconds until the next look."""
        if self._surveys and self._recovery.survey_due():
            with self._round("survey") as context:
                self._survey(context)
        if self.recover_every is not None and self._recovery.round_due(self.recover_every) and not self._closed:
            with self._round() as context:
                self._start_recovered(context)
        return self._look_every()

    def _survey(self, context: contextvars.Context) -> None:
        try:
            counts = performed(self._recovery.survey(self._known), context)
        except Exception as error:  # noqa: BLE001 - what cannot be counted may still be resumed
            log.warning("what waits in the store could not be counted: %s", safe_str(error, 200))
        else:
            self._emit_survey(counts, context)

    def _start_recovered(
        self,
        context: contextvars.Context,
        skip: Collection[str | None] = (),
        on_over: Callable[[Driver], None] | None = None,
        *,
        fresh: bool = False,
    ) -> builtins.list[Driver]:
        """Start the runs of one round of recovery."""
        started: list[Driver] = []

        def over(driver: Driver) -> None:
            self._recovered(driver)
            if on_over is not None:
                on_over(driver)

        def start(run: RunState) -> None:
            driver = self._driver(run, execute(run))
            driver.on_over = over
            started.append(driver)

        performed(self._recovery.round(self._resumed, start, skip, fresh=fresh), context)
        here = self._pool.owns_current_thread()  # a step of ours: the pool may be full of those who wait for it
        for driver in started:
            if here:
                driver.run_here(None)
            else:
                self._pool.put(driver.begin)
        return started

    def close(self, timeout: Duration | None = None) -> None:
        """Start no more runs, and wait for those that were accepted.

        With a `timeout` (seconds), runs that have not begun are left to other engines, or cancelled in memory. Runs on a
        durable store are parked: they begin no further step, and resume on another engine. Calls in flight have until the
        timeout to end, and then `grace`; runs in memory that have not ended by then are cancelled.

        Raises FlowcoreError when called by a step of the engine's own, which would wait for itself.
        """
        limit = None if timeout is None else seconds(timeout, "close(timeout=)")
        if self._pool.owns_current_thread():
            raise FlowcoreError("an engine cannot be closed by one of its own steps: it would wait for that step.")
        if self._schedules is not None:
            self._schedules.close()
        if self._looking is not None:
            self._looking.close()
        with self._quiet:
            self._closed = self._closing = True
        park_dormant(self._live)
        if limit is not None and limit != math.inf:
            self._drop_queued()
            park(self._live, CLOSED)
        self._wait_for_quiet(limit)
        hand_over(self._live, CLOSED)
        # One grace is for calls, one for those that were given up, and one for the compensations.
        self._wait_for_quiet(
            None if limit is None else self._settings.grace * (1 if self.store.durable else 3) + MARGIN
        )
        if self._live:
            log.warning("an engine was closed while %d of its runs had not ended", len(self._live))
        self._timers.close()
        if self._leases is not None:
            self._leases.close()
        hangs = self._pool.counts()[1] > 0 and limit is not None
        self._pool.close(0.0 if hangs or self._live else min(self._settings.grace, threading.TIMEOUT_MAX))

    def _wait_for_quiet(self, limit: float | None) -> None:
        with self._quiet:
            self._quiet.wait_for(lambda: not self._live, None if limit is None else min(limit, threading.TIMEOUT_MAX))

    def _drop_queued(self) -> None:
        """Leave what has not begun: recorded runs to other engines; what is in memory only is cancelled."""
        for future in [] if self.store.durable else list(self._queued.values()):
            future.cancel()
        drop(self._live, CLOSED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine. An exception drops what has not begun, and one that stops the process ends what runs too."""
        if kind is not None:
            self._drop_queued()
        self.close(0 if kind is not None and issubclass(kind, SystemExit | KeyboardInterrupt) else None)
