"""`Engine`: runs workflows on threads, and the driver that performs the programs' effects there."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

from ._protocol.durable import lose
from ._protocol.effects import (
    DIRECT,
    HELP,
    RESUME,
    WAIT,
    Ask,
    Call,
    GivenUp,
    Landing,
    Outcome,
    Program,
    Sleep,
    Stop,
    as_call,
)
from ._protocol.execution import Execution
from ._protocol.run import at_once, helper, rescue, run
from ._protocol.sprint import may_sprint, sprint
from ._protocol.undo import late
from .context import Context
from .engine import EngineBase, log, outcome
from .errors import FlowcoreError, StepCancelled, StoreError, said
from .events import Hook
from .forks import in_children
from .interrupts import CtrlC, guard, restore
from .retry import Duration, seconds
from .run import Run
from .status import Status
from .stores.base import Store
from .workers import Timers, Workers
from .workflow import Workflow

__all__ = ["Engine"]

_GONE: Final = object()  # the call was given up while this thread was in it: somebody else goes on with the program
_LOOK: Final = 0.5  # seconds between two looks for a Ctrl-C, while the main thread waits

Letter = tuple[Program[Any], Any]
Parked = Call | Sleep | Landing


class Driver:
    """Drives the programs of one run on threads.

    A program is advanced by whichever thread has it: the caller's own (in `Engine.run`), or one of the pool's. It parks
    on a sleep, a wait or a limit without holding a thread, and is posted to one when there is something to go on with.
    """

    over = False
    result: Run | None = None
    error: BaseException | None = None
    _bell: SimpleQueue[None] | None = None
    """what the caller's thread waits at while it has nothing to do; may be rung in a signal handler"""
    _ctrl_c: CtrlC | None = None
    _caller_idle = False
    """(lock) the caller's thread waits at the bell"""
    _main_parked = False
    """(lock) the main program waits to be resumed"""
    _main_due = False
    """(lock) it was resumed before it waited"""
    _stuck = 0
    """calls that were given up and are not over"""

    def __init__(
        self,
        x: Execution,
        main: Program[Run],
        pool: Workers,
        timers: Timers,
        on_over: Callable[[Driver], None],
    ) -> None:
        self.x = x
        self.on_over = on_over
        self._pool = pool
        self._timers = timers
        self._main = main
        self._lock = threading.Lock()
        self._letters: deque[Letter] = deque()  # (lock) programs to go on with, and their answers
        # Programs that wait for something to end. Whoever pops one goes on with it; dict.pop is atomic.
        self._parked: dict[Parked, Program[Any]] = {}

    # -- in the caller's thread ----------------------------------------------------------------------------------------

    def run_here(self, ctrl_c: CtrlC | None) -> None:
        """Drive the run to its end, the calling thread taking part; `ctrl_c` guards it, and is restored at the end."""
        self._ctrl_c = ctrl_c
        if ctrl_c is not None:
            ctrl_c.ring = self._ring
        try:
            self._advance(self._main, None, here=True)
            if not self.over:
                self._serve()
        finally:
            self._ctrl_c = None  # it knows this driver: the run would have to wait for the garbage collector
            restore(ctrl_c)
        if ctrl_c is not None and ctrl_c.count and not isinstance(self.error, KeyboardInterrupt):
            raise KeyboardInterrupt from self.error

    def _serve(self) -> None:
        """Do for the run what there is to do until it is over."""
        with self._lock:
            bell = self._bell = SimpleQueue()
        while not self.over:
            if self._ctrl_c is not None and self._ctrl_c.unseen:
                self._interrupted()
            with self._lock:
                letter = self._letters.popleft() if self._letters else None
                self._caller_idle = letter is None
            if letter is not None:
                self._advance(*letter, here=True)
            elif self.x.working and self.x.ready and (node := self.x.take()) is not None:
                # Help was asked for, but no thread of the pool has come yet.
                self._caller_idle = False
                self._advance(helper(self.x, node), None, here=True)
            else:
                # A signal that comes just before the wait does not end it, and Python looks for it only after.
                with suppress(Empty):
                    bell.get(timeout=None if self._ctrl_c is None else _LOOK)
                self._caller_idle = False

    def _ring(self) -> None:
        """Ctrl-C outside of user code, in the signal handler."""
        if self._bell is not None:
            self._bell.put(None)

    def _interrupted(self) -> None:
        """Act on a Ctrl-C that came while the main thread was not in user code."""
        assert self._ctrl_c is not None  # noqa: S101 - the callers have looked
        failed_already = self.x.stopped
        if self.cancel(KeyboardInterrupt()) and not failed_already:
            self._ctrl_c.raised = self._ctrl_c.count
        elif self._ctrl_c.count > 1:
            self.x.undo_stopped = True

    # -- from anywhere -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin here, on one of the pool's threads."""
        self._advance(self._main, None)

    def cancel(self, error: BaseException) -> bool:
        """Stop the run because of `error`; False if it was stopping already, or is over."""
        if not self.x.interrupt(error):
            return False
        self.stop(Stop(cancel=True))
        return True

    # -- performing effects --------------------------------------------------------------------------------------------

    def _advance(self, program: Program[Any], answer: Any, *, here: bool = False) -> None:
        """Resume `program` and perform what it asks until it ends, parks, or is taken away; `here`: in the caller's
        thread."""
        send, context, guarded = program.send, self.x.context, self._ctrl_c is not None
        while True:
            try:
                effect = send(answer)
            except StopIteration as stop:
                if program is self._main:
                    self._end(stop.value, None)
                return
            except BaseException as error:  # noqa: BLE001 - a refused claim, for example: the caller's to see
                self._end(None, error)
                return
            if type(effect) is Context:
                if not here:
                    answer = self._call(program, as_call(effect, context.copy()))
                    if answer is _GONE:
                        return
                elif guarded:
                    answer = self.call_here(effect.node.fn, effect, context.copy())
                else:
                    try:
                        answer = (context.copy().run(effect.node.fn, effect), None)
                    except BaseException as error:  # noqa: BLE001 - the program judges it
                        answer = (None, error)
            elif type(effect) is Call:
                if here and effect.timeout is None:
                    answer = self.call_here(effect.fn, effect.ctx, effect.context, shielded=effect.shielded)
                elif here:
                    self._elsewhere(program, effect)
                    return
                else:
                    answer = self._call(program, effect)
                    if answer is _GONE:
                        return
            elif type(effect) is Ask:
                answer = self.ask_here(effect.verb, effect.argument, effect.context)
            elif effect is WAIT:
                with self._lock:
                    if not self._main_due:
                        self._main_parked = True
                        return
                    self._main_due = False
                answer = None
            elif type(effect) is Sleep:
                if not self._sleep(program, effect):
                    return
                answer = None
            elif type(effect) is Landing:
                if not self._await_landing(program, effect):
                    return
                answer = None
            else:
                answer = None
                if effect is HELP:
                    self._post(helper(self.x), None, help=True)
                elif effect is RESUME:
                    self._resume_main()
                elif effect is DIRECT:
                    answer = self if here else None
                elif type(effect) is Stop:
                    self.stop(effect)

    def call_here(
        self, fn: Callable[..., Any], ctx: Context, context: contextvars.Context, *, shielded: bool = False
    ) -> Outcome:
        """Run user code on the caller's thread, which nobody can give up, but Ctrl-C can interrupt."""
        ctrl_c = self._ctrl_c
        try:
            if ctrl_c is None:
                return context.run(fn, ctx), None
            if ctrl_c.unseen:
                self._interrupted()
            try:
                ctrl_c.in_step, ctrl_c.in_undo = not shielded, shielded
                return context.run(fn, ctx), None
            finally:
                ctrl_c.in_step = ctrl_c.in_undo = False
        except BaseException as error:  # noqa: BLE001 - the program judges it
            return None, error

    def _call(self, program: Program[Any], call: Call) -> Any:
        """Run user code on this thread of the pool; answers _GONE if it was given up meanwhile."""
        self._parked[call] = program
        if self.x.interrupted and not call.shielded and self._parked.pop(call, None) is not None:
            return None, GivenUp(call, timed_out=False, over=True)  # it waited for a thread and never began
        timer = None
        if call.timeout is not None:
            timer = self._timers.after(call.timeout, partial(self._give_up, call, timed_out=True))
        try:
            outcome: Outcome = (call.context.run(call.fn, call.ctx), None)
        except BaseException as error:  # noqa: BLE001 - the program judges it
            outcome = (None, error)
        if timer is not None:
            timer.cancel()
        if self._parked.pop(call, None) is not None:
            return outcome
        self._land(call, outcome)
        return _GONE

    def _elsewhere(self, program: Program[Any], call: Call) -> None:
        """A call with a limit may have to be given up, which the caller's thread cannot: it runs on one of the pool's."""
        # A worker that waits here for a nested run may be the last one; an undo must not wait for a place.
        beyond = call.shielded or self._pool.owns_current_thread()
        self._pool.put(partial(self._called_elsewhere, program, call), first=True, beyond=beyond)

    def _called_elsewhere(self, program: Program[Any], call: Call) -> None:
        outcome = self._call(program, call)
        if outcome is not _GONE:
            self._post(program, outcome)

    def _give_up(self, call: Call, *, timed_out: bool) -> None:
        """Go on without `call`, unless it is over."""
        program = self._parked.pop(call, None)
        if program is not None:
            call.abandon()
            self._stuck += 1
            self._pool.given_up()
            self._post(program, (None, GivenUp(call, timed_out=timed_out)))

    def _land(self, call: Call, outcome: Outcome) -> None:
        """A call that was given up is over, on this thread."""
        self._stuck -= 1
        self._pool.given_up(-1)
        over = self.x.landed(call, outcome)
        waiting = [other for other in list(self._parked) if type(other) is Landing and other.call is call]
        for landing in waiting:
            self._wake(landing, None)
        if over and not waiting:
            self._advance(late(self.x, call), None)

    def _await_landing(self, program: Program[Any], landing: Landing) -> bool:
        """Park until the call lands; True: it has, go on at once."""
        self._parked[landing] = program
        if landing.call.landed is not None and self._parked.pop(landing, None) is not None:
            return True
        self._timers.after(landing.seconds, partial(self._wake, landing, None))
        return False

    def _sleep(self, program: Program[Any], sleep: Sleep) -> bool:
        """Park until the time is up or the run stops; True: go on at once."""
        self._parked[sleep] = program
        if self.x.stopped and not sleep.shielded and self._parked.pop(sleep, None) is not None:
            return True
        self._timers.after(sleep.seconds, partial(self._wake, sleep, None))
        return False

    def _wake(self, waiting: Parked, answer: Any) -> None:
        program = self._parked.pop(waiting, None)
        if program is not None:
            self._post(program, answer)

    def ask_here(
        self, verb: str, argument: object, context: contextvars.Context | None = None
    ) -> tuple[Any, BaseException | None]:
        """Ask the store on this thread."""
        store = self.x.settings.store
        asked = getattr(store, verb)
        try:
            if not store.blocks:
                return asked(argument), None
            return (context or self.x.context.copy()).run(asked, argument), None
        except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
            return None, error

    def stop(self, stop: Stop) -> None:
        for waiting in list(self._parked):
            if type(waiting) is Sleep and not waiting.shielded:
                self._wake(waiting, None)
            elif stop.cancel and type(waiting) is Call and not waiting.shielded:
                self._timers.after(self.x.settings.grace, partial(self._give_up, waiting, timed_out=False))

    def _resume_main(self) -> None:
        with self._lock:
            parked, self._main_parked = self._main_parked, False
            self._main_due = not parked
        if parked:
            self._post(self._main, None)

    def _post(self, program: Program[Any], answer: Any, *, help: bool = False) -> None:  # noqa: A002 - what it is
        """Let somebody advance `program`: the caller's thread if it has nothing to do, else one of the pool's, or the
        caller's once it has nothing else to do: the pool may be full of threads that wait for this very run."""
        with self._lock:
            self._letters.append((program, answer))
            to_caller, self._caller_idle = self._caller_idle, False
        if to_caller and self._bell is not None:
            self._bell.put(None)
        else:
            # Mere help may wait for a thread, and what goes on with a run goes before what begins one. A run that is
            # ending, or has threads stuck in calls that were given up, must not wait for a place that may never be free.
            beyond = not help and (self._stuck > 0 or self.x.stopped)
            self._pool.put(self._advance_there, first=not help, beyond=beyond)

    def _advance_there(self) -> None:
        """Advance what waits, if anything still does, on this thread of the pool."""
        with self._lock:
            letter = self._letters.popleft() if self._letters else None
        if letter is not None:
            self._advance(*letter)

    def _end(self, result: Run | None, error: BaseException | None) -> None:
        self.result, self.error = result, error if result is None else result.error
        with self._lock:
            self.over = True
        self.on_over(self)
        if self._bell is not None:
            self._bell.put(None)


class Engine(EngineBase):
    """Runs workflows on threads. Silent and in memory unless told otherwise.

    Thread-safe; make one and keep it. Works with or without `with`. `store`: where runs are claimed and kept;
    `hooks`: told what happens; `max_workers`: steps of one run at a time, and threads of the engine's own (default 32);
    `lease`: seconds that a durable store gives an engine between two signs of life; `grace`: seconds to wait for a step
    that was given up before going on without it; `workflows`: what `recover` may go on with; `recover_every`: seconds
    between two rounds of that.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        hooks: Iterable[Hook] = (),
        max_workers: int | None = None,
        lease: Duration = 30.0,
        grace: Duration = 5.0,
        workflows: Iterable[Workflow] = (),
        recover_every: Duration | None = None,
    ) -> None:
        super().__init__(store, hooks, max_workers, lease, grace, workflows, recover_every, runs_async=False)
        self._pool = Workers(self.max_workers, "flowcore")
        self._timers = Timers("flowcore-timers")
        self._tell_started(self._pool)
        self._live: dict[Execution, Driver | None] = {}  # None: it sprints
        self._quiet = threading.Condition()  # told of each run that is over while somebody closes the engine
        self._closing = False
        self._leases = self._keep_leases(partial(_lose, self._live))
        self._recovery: threading.Event | None = None
        if self.recover_every is not None:
            self._recovery = threading.Event()
            threading.Thread(
                target=_recover_often,
                args=(weakref.ref(self), self._recovery, self.recover_every),
                name="flowcore-recovery",
                daemon=True,
            ).start()
        # Idle threads hold the pool, and only runs in flight hold the engine: one that is forgotten ends its threads.
        in_children(self, Engine._after_fork)
        weakref.finalize(self, _leave, self._pool, self._timers, self._live, self._settings.grace)

    def _after_fork(self) -> None:
        """In a child: the runs in flight are the parent's."""
        super()._after_fork()
        self._quiet = threading.Condition()
        for x in self._live:
            x.in_child(os.getpid())
        self._live.clear()

    def run(
        self,
        workflow: Workflow,
        values: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        check: bool = True,
    ) -> Run:
        """Run a workflow to its end; the calling thread takes part.

        `values`: the initial values of its context. `idempotency_key`: two calls with the same key are one run. `wait`:
        seconds to wait for the outcome of another run that has the key. `deadline`: seconds the run may take.

        Raises the failed step's own exception, with a note that says which run and step, and what was undone;
        CompensationFailed where an undo failed too. With `check=False` a failed run is answered like any other. Refused
        claims (IdempotencyError), definition errors and BaseExceptions are raised all the same.
        """
        x = self._execution(workflow, values, idempotency_key, wait, deadline)
        sprints, begun = may_sprint(x), None
        ctrl_c: CtrlC | None = None
        try:
            self._live[x] = None
            if sprints and not x.observed:
                begun = sprint(x)
                if begun is None and not x.ready and x.succeed():
                    self._forget(x)
                    return x.as_run(Status.SUCCESS)
            ctrl_c = guard()
            if sprints and x.observed:
                finished, begun = at_once(x, ctrl_c)
                if finished is not None:
                    self._forget(x)
                    restore(ctrl_c)
                    if ctrl_c is not None and ctrl_c.count:
                        raise KeyboardInterrupt  # noqa: TRY301 - whatever strikes from here on ends the same way
                    return finished
            main = run(x, begun)
        except BaseException as error:
            if not sprints or x.finished is not None:  # nothing has begun, or all is over
                self._forget(x)
                restore(ctrl_c)
                raise
            main, ctrl_c = rescue(x, error), ctrl_c or guard()
        driver = self._driver(x, main)
        driver.run_here(ctrl_c)
        return outcome(driver.result, driver.error, check=check)

    def submit(
        self,
        workflow: Workflow,
        values: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        check: bool = True,
    ) -> Future[Run]:
        """Like `run`, on the engine's own threads. The future raises what `run` raises.

        `Future.cancel()` works until a thread begins with the run; after that use `cancel`.
        """
        x = self._execution(workflow, values, idempotency_key, wait, deadline)
        self._tell_submitted(x)
        driver = self._driver(x, run(x))
        future: Future[Run] = Future()

        def over(_: Driver) -> None:
            self._over(driver)
            try:
                result = outcome(driver.result, driver.error, check=check)
            except BaseException as error:  # noqa: BLE001 - the future raises it
                future.set_exception(error)
            else:
                future.set_result(result)

        def begin() -> None:
            if future.set_running_or_notify_cancel():
                driver.begin()
            else:
                self._over(driver)

        driver.on_over = over
        self._pool.put(begin)
        return future

    def _driver(self, x: Execution, main: Program[Run]) -> Driver:
        driver = Driver(x, main, self._pool, self._timers, self._over)
        self._live[x] = driver
        return driver

    def _over(self, driver: Driver) -> None:
        self._forget(driver.x)
        if driver.x.claimed and self._leases is not None:
            self._leases.leave(driver.x)

    def _forget(self, x: Execution) -> None:
        """A run is over, or has not begun after all."""
        self._live.pop(x, None)
        if self._closing:
            with self._quiet:
                self._quiet.notify_all()

    def cancel(self, run_id: str) -> bool:
        """Cancel a run of this engine: its running steps get at most `grace`, what it did is undone, and its caller gets
        StepCancelled. False: this engine runs no such run, or it was ending already."""
        for x in list(self._live):
            if x.has_id(run_id):
                return self._cancel(x, f"run {run_id} was cancelled by engine.cancel().")
        return False

    def _cancel(self, x: Execution, why: str) -> bool:
        """Cancel a run, whether it sprints or has a driver."""
        stopping = x.interrupt(StepCancelled(why))
        driver = self._live.get(x)
        if stopping and driver is not None:
            driver.stop(Stop(cancel=True))
        return stopping

    def recover(self) -> list[Run]:
        """Go on with the runs of `workflows` that nobody goes on with: crashed, parked, past their pivot, or released by
        an operator. Answers those that it went on with, failed or not; raises nothing of theirs, but StoreError where the
        store cannot tell which there are.
        """
        with self._round() as context:
            records = context.run(self.store.unfinished, [workflow.name for workflow in self.workflows])
            if self._surveys:
                self._tell_survey(records, context.run(partial(self.store.list_runs, status="held")), context)
        drivers = [self._driver(x, run(x)) for x in self._recoverable(records)]
        if self._pool.owns_current_thread():  # a step of ours: the pool may be full of those who wait for it
            for driver in drivers:
                driver.run_here(None)
        else:
            over = threading.Semaphore(0)
            for driver in drivers:
                driver.on_over = partial(self._recovered, over)
                self._pool.put(driver.begin)
            for _ in drivers:
                over.acquire()
        for driver in drivers:
            if driver.result is None and isinstance(driver.error, StoreError):
                self._warn_unrecovered(driver.x.recovering, said(driver.error))
        return [driver.result for driver in drivers if driver.result is not None]

    def _recovered(self, over: threading.Semaphore, driver: Driver) -> None:
        self._over(driver)
        over.release()

    def close(self, timeout: Duration | None = None) -> None:
        """Start no more runs and wait for those in flight; after `timeout` seconds, cancel them (None: never).

        Raises FlowcoreError when called by a step of the engine's own, which would wait for itself.
        """
        limit = None if timeout is None else seconds(timeout, "close(timeout=)")
        if self._pool.owns_current_thread():
            raise FlowcoreError("an engine cannot be closed by one of its own steps: it would wait for that step.")
        if self._recovery is not None:
            self._recovery.set()
        with self._quiet:
            self._closed = self._closing = True
            self._quiet.wait_for(lambda: not self._live, limit)
        for x in list(self._live):
            self._cancel(x, f"run {x.run_id} was cancelled: its engine was closed.")
        with self._quiet:
            self._quiet.wait_for(lambda: not self._live)
        self._timers.close()
        if self._leases is not None:
            self._leases.close()
        self._pool.close(self._settings.grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lose(live: dict[Execution, Driver | None], x: Execution) -> None:
    """The store says that somebody else has the run: start and undo nothing more of it."""
    lose(x)
    driver = live.get(x)
    if driver is not None:
        driver.stop(Stop(cancel=True))


def _recover_often(reference: weakref.ref[Engine], closed: threading.Event, every: float) -> None:
    """Every so many seconds, go on with what nobody goes on with, until the engine is closed or forgotten."""
    while not closed.wait(every):
        engine = reference()
        if engine is None:
            return
        try:
            engine.recover()
        except FlowcoreError as error:
            log.warning("a recovery round failed: %s: %s", type(error).__name__, said(error, 200))
        del engine


def _leave(pool: Workers, timers: Timers, live: dict[Execution, Driver | None], grace: float) -> None:
    """The engine was forgotten, or the interpreter exits: current steps finish, runs park, threads end."""
    for x, driver in list(live.items()):
        x.park()
        if driver is not None:
            driver.stop(Stop(cancel=False))
    # A forgotten engine has no runs, and the garbage collector that ends it must not wait.
    pool.close(0.0 if threading.main_thread().is_alive() else grace)
    timers.close()
