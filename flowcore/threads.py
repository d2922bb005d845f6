"""`Engine`: runs workflows on threads, and the driver that performs the programs' effects there."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final, Self

from ._protocol.effects import (
    HELP,
    INTERRUPTED,
    RESUME,
    TIMED_OUT,
    WAIT,
    Ask,
    Call,
    Hand,
    Landing,
    Outcome,
    Program,
    Signal,
    Sleep,
    Stop,
)
from ._protocol.execution import Execution
from ._protocol.run import helper, run
from ._protocol.undo import late
from .engine import EngineBase
from .errors import AsyncStepInSyncEngine, FlowcoreError, StepCancelled, shown
from .events import Hook
from .interrupts import CtrlC, guard
from .retry import Duration, seconds
from .run import Run
from .stores.base import Store
from .workers import Timers, Workers
from .workflow import Workflow

__all__ = ["Engine"]

_GONE: Final = object()  # the call was given up while this thread was in it: somebody else goes on with the program


class Driver:
    """Drives the programs of one run on threads.

    A program is advanced by whichever thread has it: the caller's own (in `Engine.run`), or one of the pool's. It parks
    on a sleep, a wait or a limit without holding a thread, and is posted to one when there is something to go on with.
    """

    __slots__ = (
        "_caller_idle",
        "_ctrl_c",
        "_landings",
        "_lock",
        "_mailbox",
        "_main",
        "_main_due",
        "_main_parked",
        "_pool",
        "_running",
        "_sleeping",
        "_stuck",
        "_timers",
        "error",
        "on_over",
        "over",
        "result",
        "x",
    )

    def __init__(
        self, x: Execution, pool: Workers, timers: Timers, on_over: Callable[[Driver], None], *, has_caller: bool
    ) -> None:
        self.x = x
        self.over = False
        self.result: Run | None = None
        self.error: BaseException | None = None
        self.on_over = on_over
        self._pool = pool
        self._timers = timers
        self._main = run(x)
        self._lock = threading.Lock()
        self._mailbox: SimpleQueue[tuple[Program[Any], Any] | Signal | None] | None = SimpleQueue() if has_caller else None
        self._caller_idle = False
        self._main_parked = False
        self._main_due = False
        self._ctrl_c: CtrlC | None = None
        # Whoever pops an entry of these owns the program in it; dict.pop is atomic.
        self._running: dict[Call, Program[Any]] = {}
        self._sleeping: dict[Sleep, Program[Any]] = {}
        self._landings: dict[Call, Program[Any]] = {}
        self._stuck = 0  # calls that were given up and are not over

    # -- in the caller's thread ----------------------------------------------------------------------------------------

    def run_here(self) -> None:
        """Drive the run to its end, the calling thread taking part."""
        assert self._mailbox is not None  # noqa: S101 - has_caller
        self._ctrl_c = guard(partial(self._mailbox.put, INTERRUPTED))
        try:
            self._advance(self._main, None, here=True)
            while not self.over:
                with self._lock:
                    self._caller_idle = True
                letter = self._mailbox.get()
                with self._lock:
                    self._caller_idle = False
                if letter is INTERRUPTED:
                    self._interrupted()
                elif isinstance(letter, tuple):
                    self._advance(*letter, here=True)
        finally:
            if self._ctrl_c is not None:
                self._ctrl_c.restore()
        if self._ctrl_c is not None and self._ctrl_c.unseen:
            raise KeyboardInterrupt from self.error

    def _interrupted(self) -> None:
        """Ctrl-C while the main thread was not in user code."""
        assert self._ctrl_c is not None  # noqa: S101 - only its handler rings
        self._ctrl_c.raised += 1
        if not self.cancel(KeyboardInterrupt()):
            if self._ctrl_c.count > 1:
                self.x.undo_stopped = True
            else:
                self._ctrl_c.raised -= 1  # the run is being undone already: raise it when that is done

    # -- from anywhere -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin here, on one of the pool's threads."""
        self._advance(self._main, None)

    def park(self) -> None:
        """Start no further step, and end once the running ones are over."""
        self.x.park()
        self._stop(Stop(cancel=False))

    def cancel(self, error: BaseException) -> bool:
        """Stop the run because of `error`; False if it was stopping already, or is over."""
        if not self.x.interrupt(error):
            return False
        self._stop(Stop(cancel=True))
        return True

    # -- performing effects --------------------------------------------------------------------------------------------

    def _advance(self, program: Program[Any], answer: Any, *, here: bool = False) -> None:
        """Resume `program` and perform what it asks until it ends, parks, or is taken away; `here`: in the caller's
        thread."""
        send = program.send
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
            kind = type(effect)
            if kind is Call:
                if here:
                    if effect.timeout is not None:
                        self._elsewhere(program, effect)
                        return
                    if self._ctrl_c is not None and self._ctrl_c.unseen:
                        self._interrupted()
                answer = self._call(program, effect, here=here)
                if answer is _GONE:
                    return
            elif kind is Ask:
                answer = self._ask(effect)
            elif effect is HELP:
                answer = None
                self._post(helper(self.x), None, help=True)
            elif effect is RESUME:
                answer = None
                self._resume_main()
            elif kind is Stop:
                answer = None
                self._stop(effect)
            elif effect is WAIT:
                with self._lock:
                    if not self._main_due:
                        self._main_parked = True
                        return
                    self._main_due = False
                answer = None
            elif kind is Sleep:
                if not self._sleep(program, effect):
                    return
                answer = None
            elif kind is Landing:
                if self._await_landing(program, effect):
                    return
                answer = effect.call.landed
            elif kind is Hand:
                answer = None
                self._post(helper(self.x, effect.node), None)

    def _call(self, program: Program[Any], call: Call, *, here: bool) -> Any:
        """Run user code on this thread; answers _GONE if it was given up meanwhile."""
        if here:
            return self._call_here(call)
        self._running[call] = program
        if self.x.interrupted and not call.shielded and self._running.pop(call, None) is not None:
            call.landed = (None, INTERRUPTED)  # it waited for a thread and never began
            return call.landed
        timer = None
        if call.timeout is not None:
            timer = self._timers.after(call.timeout, partial(self._give_up, call, TIMED_OUT))
        try:
            outcome: Outcome = (call.context.run(call.fn, call.ctx), None)
        except BaseException as error:  # noqa: BLE001 - the program judges it
            outcome = (None, error)
        if timer is not None:
            timer.cancel()
        if self._running.pop(call, None) is not None:
            return outcome
        self._land(call, outcome)
        return _GONE

    def _call_here(self, call: Call) -> Outcome:
        """Run user code on the caller's thread, which nobody can give up, but Ctrl-C can interrupt."""
        ctrl_c = self._ctrl_c
        try:
            if ctrl_c is None:
                return call.context.run(call.fn, call.ctx), None
            try:
                ctrl_c.enter(undo=call.shielded)
                return call.context.run(call.fn, call.ctx), None
            finally:
                ctrl_c.leave()
        except BaseException as error:  # noqa: BLE001 - the program judges it
            return None, error

    def _elsewhere(self, program: Program[Any], call: Call) -> None:
        """A call with a limit may have to be given up, which the caller's thread cannot: it runs on one of the pool's."""
        # A worker that waits here for a nested run may be the last one; an undo must not wait for a place.
        beyond = call.shielded or self._pool.owns_current_thread()
        self._pool.put(partial(self._called_elsewhere, program, call), first=True, beyond=beyond)

    def _called_elsewhere(self, program: Program[Any], call: Call) -> None:
        outcome = self._call(program, call, here=False)
        if outcome is not _GONE:
            self._post(program, outcome)

    def _give_up(self, call: Call, why: Signal) -> None:
        """Go on without `call`, unless it is over."""
        program = self._running.pop(call, None)
        if program is not None:
            call.ctx.abandon()
            self._stuck += 1
            self._post(program, (None, why))

    def _land(self, call: Call, outcome: Outcome) -> None:
        """A call that was given up is over, on this thread."""
        self._stuck -= 1
        missed = self.x.landed(call, outcome)
        program = self._landings.pop(call, None)
        if program is not None:
            self._post(program, outcome)
        elif missed:
            self._advance(late(self.x, call, outcome), None)

    def _await_landing(self, program: Program[Any], landing: Landing) -> bool:
        """Park until the call lands; False if it has already."""
        call = landing.call
        self._landings[call] = program
        if call.landed is not None and self._landings.pop(call, None) is not None:
            return False
        self._timers.after(landing.seconds, partial(self._landing_missed, call))
        return True

    def _landing_missed(self, call: Call) -> None:
        program = self._landings.pop(call, None)
        if program is not None:
            self._post(program, None)

    def _ask(self, ask: Ask) -> Outcome:
        try:
            return getattr(self.x.settings.store, ask.verb)(ask.argument), None
        except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
            return None, error

    def _sleep(self, program: Program[Any], sleep: Sleep) -> bool:
        """Park until the time is up or the run stops; True: go on at once."""
        self._sleeping[sleep] = program
        if self.x.stopped and not sleep.shielded and self._sleeping.pop(sleep, None) is not None:
            return True
        self._timers.after(sleep.seconds, partial(self._wake, sleep, cut=False))
        return False

    def _wake(self, sleep: Sleep, *, cut: bool) -> None:
        program = self._sleeping.pop(sleep, None)
        if program is not None:
            self._post(program, cut)

    def _stop(self, stop: Stop) -> None:
        for sleep in list(self._sleeping):
            if not sleep.shielded:
                self._wake(sleep, cut=True)
        if stop.cancel:
            for call in list(self._running):
                if not call.shielded:
                    self._timers.after(self.x.settings.grace, partial(self._give_up, call, INTERRUPTED))

    def _resume_main(self) -> None:
        with self._lock:
            parked, self._main_parked = self._main_parked, False
            self._main_due = not parked
        if parked:
            self._post(self._main, None)

    def _post(self, program: Program[Any], answer: Any, *, help: bool = False) -> None:  # noqa: A002 - what it is
        """Let somebody advance `program`: the caller's thread if it has nothing to do, else one of the pool's."""
        with self._lock:
            to_caller, self._caller_idle = self._caller_idle, False
        if to_caller and self._mailbox is not None:
            self._mailbox.put((program, answer))
        else:
            # Mere help may wait for a thread, and what goes on with a run goes before what begins one. A run that is
            # ending, or has threads stuck in calls that were given up, must not wait for a place that may never be free.
            beyond = not help and (self._stuck > 0 or self.x.stopped)
            self._pool.put(partial(self._advance, program, answer), first=not help, beyond=beyond)

    def _end(self, result: Run | None, error: BaseException | None) -> None:
        self.result, self.error = result, error if result is None else result.error
        self.over = True
        self.on_over(self)
        if self._mailbox is not None:
            self._mailbox.put(None)


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
        self._live: set[Driver] = set()
        self._quiet = threading.Condition()  # told of each run that is over while somebody closes the engine
        self._closing = False
        # Idle threads hold the pool, and only runs in flight hold the engine: one that is forgotten ends its threads.
        weakref.finalize(self, _leave, self._pool, self._timers, self._live, self._settings.grace)

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
        driver = self._driver(workflow, values, idempotency_key, wait, deadline, None)
        driver.run_here()
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
        driver = self._driver(workflow, values, idempotency_key, wait, deadline, {})
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
        self._tell_submitted(driver.x)
        self._pool.put(begin)
        return future

    def _driver(
        self,
        workflow: Workflow,
        values: Mapping[str, Any] | None,
        key: str | None,
        wait: Duration | None,
        deadline: Duration | None,
        state: dict[Any, Any] | None,
    ) -> Driver:
        x = self._execution(workflow, values, key, wait, deadline, state)
        if x.plan.has_async is not None:
            raise AsyncStepInSyncEngine(
                f"step {shown(x.plan.has_async)} of workflow {shown(workflow.name)} is async: run it on AsyncEngine."
            )
        driver = Driver(x, self._pool, self._timers, self._over, has_caller=state is None)
        self._live.add(driver)
        return driver

    def _over(self, driver: Driver) -> None:
        self._live.discard(driver)
        if self._closing:
            with self._quiet:
                self._quiet.notify_all()

    def cancel(self, run_id: str) -> bool:
        """Cancel a run of this engine: its running steps get at most `grace`, what it did is undone, and its caller gets
        StepCancelled. False: this engine runs no such run, or it was ending already."""
        for driver in list(self._live):
            if driver.x.has_id(run_id):
                return driver.cancel(StepCancelled(f"run {run_id} was cancelled by engine.cancel()."))
        return False

    def recover(self) -> list[Run]:
        """Go on with the runs of `workflows` that nobody goes on with; answers them, failed or not."""
        runs: list[Run] = []
        for x in self._recoverable():
            driver = Driver(x, self._pool, self._timers, self._over, has_caller=True)
            self._live.add(driver)
            driver.run_here()
            if driver.result is not None:
                runs.append(driver.result)
        return runs

    def close(self, timeout: Duration | None = None) -> None:
        """Start no more runs and wait for those in flight; after `timeout` seconds, cancel them (None: never).

        Raises FlowcoreError when called by a step of the engine's own, which would wait for itself.
        """
        limit = None if timeout is None else seconds(timeout, "close(timeout=)")
        if self._pool.owns_current_thread():
            raise FlowcoreError("an engine cannot be closed by one of its own steps: it would wait for that step.")
        with self._quiet:
            self._closed = self._closing = True
            self._quiet.wait_for(lambda: not self._live, limit)
        for driver in list(self._live):
            driver.cancel(StepCancelled(f"run {driver.x.run_id} was cancelled: its engine was closed."))
        with self._quiet:
            self._quiet.wait_for(lambda: not self._live)
        self._timers.close()
        self._pool.close(self._settings.grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def outcome(result: Run | None, error: BaseException | None, *, check: bool) -> Run:
    """Answer a run, or raise what failed it."""
    if error is not None and (check or result is None or not isinstance(error, Exception)):
        raise error
    assert result is not None  # noqa: S101 - a driver ends with one of the two
    return result


def _leave(pool: Workers, timers: Timers, live: set[Driver], grace: float) -> None:
    """The engine was forgotten, or the interpreter exits: current steps finish, runs park, threads end."""
    for driver in list(live):
        driver.park()
    pool.close(grace)
    timers.close()
