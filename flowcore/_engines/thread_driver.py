"""The driver that performs the programs' effects on threads."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from .._durable.checkpoints import parked
from .._kernel import stopping
from .._kernel.effects import (
    DIRECT,
    REQUEST_WORKER,
    RESUME,
    WAIT,
    Abandoned,
    Alarm,
    Ask,
    AwaitAbandoned,
    Call,
    Outcome,
    Program,
    Sleep,
    Stop,
    as_call,
)
from .._kernel.run import never_began, work_beside_main
from .._kernel.run_state import RunState
from .._kernel.undo import late
from ..context import Context
from ..errors import NoThread
from ..exits import deferred
from ..run import Run
from ..stores.base import Claim
from .base import NO_THREAD, call_title, patience
from .callers_thread import CallersThread, Parked
from .workers import Timer, Timers, Workers

__all__ = ["Driver"]

TAKEN_OVER: Final = object()  # the call was abandoned while this thread was in it: another one resumes the program


class Driver(CallersThread):
    """Drives the programs of one run on threads.

    One thread at a time advances a program: the caller's own (in `Engine.run`), or one of the pool's. A program that
    sleeps or waits holds no thread; it is posted to one when it can continue. A call with a timeout never runs on the
    caller's thread.
    """

    recorded: Claim | None = None
    """the claim by which the store recorded the run as queued"""
    is_withdrawn = False
    """whether the run was cancelled before it began"""
    _alarms: tuple[Timer, ...] = ()
    """timers, each of which starts a worker when a wait's time is over"""
    _stuck = 0
    """how many abandoned calls are not over"""

    def __init__(
        self,
        run: RunState,
        main: Program[Run],
        pool: Workers,
        timers: Timers,
        on_over: Callable[[Driver], None],
    ) -> None:
        super().__init__(run, main, timers)
        self.on_over = on_over
        self._pool = pool
        self._patience: Timer | None = None
        """(under the lock) the timer that ends the run's wait for a thread"""

    # -- from anywhere -------------------------------------------------------------------------------------------------

    def take_start(self) -> bool:
        """Take the right to begin or drop the run. Returns True for the first caller only."""
        try:
            self._starts.pop()
        except IndexError:
            return False
        return True

    def begin(self) -> None:
        """Begin the run on this thread of the pool, unless it was dropped or has begun."""
        if self.take_start():
            self.begin_now()

    def begin_now(self) -> None:
        """Begin the run on this thread, after `take_start` returned True."""
        self._advance(self._main, None)

    def begin_soon(self) -> None:
        """Have a thread begin the run, after `take_start` returned True: one of the pool, or one that waits for the
        run."""
        self._post(self._main, None, optional=True)

    def drop(self, error: BaseException) -> bool:
        """End a run that has not begun with `error`. Returns False, and ends nothing, if it has begun."""
        if not self.take_start():
            return False
        self._end(None, error)
        return True

    def cancel_start(self, error: BaseException) -> bool:
        """Cancel a run that has not begun. If it is recorded, its record is to be withdrawn. Returns False, and cancels
        nothing, if the run has begun."""
        if not self.take_start():
            return False
        self.is_withdrawn = True
        self._end(never_began(self.run, error), None)
        return True

    def work_for_run(self, until: float) -> None:
        """Work on the run, on a thread of the pool that waits for it until the moment `until` (monotonic). Returns at
        once if another thread works on it already."""
        self._serve(until)

    def look(self) -> None:
        """Have a thread check whether something that the run waits for has arrived."""
        if not self.over:
            self._post(work_beside_main(self.run), None, optional=True)

    # -- performing effects --------------------------------------------------------------------------------------------

    def _advance(self, program: Program[Any], answer: Any, *, here: bool = False, throws: bool = False) -> None:
        """Resume `program` with `answer` and perform its effects until it ends, waits, or another thread takes it over.
        `here`: whether this is the caller's thread. `throws`: whether `answer` is an error to raise in the program."""
        send, context, guarded = program.send, self.run.context, self._ctrl_c is not None
        resume: Callable[[Any], Any] = program.throw if throws else send
        while True:
            try:
                effect, resume = resume(answer), send
            except StopIteration as stop:
                if program is self._main:
                    self._end(stop.value, None)
                return
            except Exception as error:  # noqa: BLE001 - the caller gets it; it is, for example, a refused claim
                self._end(None, error)
                return
            except BaseException as error:  # noqa: BLE001 - the same, once the run has ended
                if program is not self._main:
                    self.worker_ended(error)
                    return
                aborted, answer = self.aborted(error), None
                if aborted is None:
                    self._end(None, error)
                    return
                program, resume = aborted, aborted.send
                send = resume
                continue
            if type(effect) is Context:
                if not here:
                    answer = self._call(program, as_call(effect, context.copy()))
                    if answer is TAKEN_OVER:
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
                    if deferred and self.exits_before(effect):
                        answer = None, Abandoned(effect, timed_out=False, over=True, began=False)
                        continue
                    answer = self.call_here(effect.fn, effect.ctx, effect.context, shielded=effect.shielded)
                else:
                    answer = self._elsewhere(program, effect) if here else self._call(program, effect)
                    if answer is TAKEN_OVER:
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
            elif effect is REQUEST_WORKER:
                self._post(work_beside_main(self.run), None, optional=True)
                answer = None
            elif effect is RESUME:
                self._resume_main()
                answer = None
            elif effect is DIRECT:
                answer = self if here else None
            elif type(effect) is Stop:
                self.stop(effect)
                answer = None
            else:
                try:
                    if not self._wait_for(program, effect):
                        return
                    answer = None
                except NoThread as error:
                    resume, answer = program.throw, error

    def _call(self, program: Program[Any], call: Call) -> Any:
        """Run user code on this thread of the pool. Returns TAKEN_OVER if the call was abandoned meanwhile."""
        self._parked[call] = program
        if self.run.interrupted and not call.shielded and self._parked.pop(call, None) is not None:
            return None, Abandoned(call, timed_out=False, over=True, began=False)
        timer = None
        try:
            if call.timeout is not None:
                timer = self._timers.after(call.timeout, partial(self._abandon, call, timed_out=True))
            outcome: Outcome = (call.context.run(call.fn, call.ctx), None)
        except BaseException as error:  # noqa: BLE001 - the program judges it
            outcome = (None, error)
        if timer is not None:
            timer.cancel()
        if self._parked.pop(call, None) is not None:
            return outcome
        self._complete_late(call, outcome)
        return TAKEN_OVER

    def _elsewhere(self, program: Program[Any], call: Call) -> Any:
        """Make a call with a timeout on a pool thread, because calls on the caller's thread cannot be abandoned. Returns
        TAKEN_OVER, or an outcome if there is no thread for the call."""
        # A pool thread that waits here for a nested run may be the last one. An undo must not wait for a thread.
        beyond = call.shielded or self._pool.owns_current_thread()
        self._queued_calls[call] = program
        if self._is_too_late(call) and self._queued_calls.pop(call, None) is not None:
            return None, Abandoned(call, timed_out=False, over=True, began=False)
        try:
            if not self._pool.put(partial(self._called_elsewhere, call), first=True, beyond=beyond):
                self._limit_the_wait()
        except NoThread as error:
            if self._queued_calls.pop(call, None) is not None:
                return None, error
        return TAKEN_OVER

    def _is_too_late(self, call: Call) -> bool:
        """Whether the run has stopped, so that `call` must not begin, and `stop` may not have seen it in the queue. A
        `verify=` is called in a run that is being undone, too."""
        run = self.run
        return not call.shielded and (run.interrupted or (run.stopped and not call.asks))

    def _called_elsewhere(self, call: Call) -> None:
        program = self._queued_calls.pop(call, None)
        with self._lock:
            self._end_the_wait()
        if program is None:
            return
        outcome = self._call(program, call)
        if outcome is not TAKEN_OVER:
            self._post(program, outcome)

    def _abandon(self, call: Call, *, timed_out: bool) -> None:
        """Abandon `call`, unless it is over."""
        program = self._parked.pop(call, None)
        if program is not None:
            call.abandon()
            self.run.abandon(call)
            self._stuck += 1
            self._pool.abandon(call_title(self.run, call))
            self._post(program, (None, Abandoned(call, timed_out=timed_out)))

    # -- waiting for a thread ------------------------------------------------------------------------------------------

    def _limit_the_wait(self) -> None:
        """Limit how long the run waits for a thread: until its deadline and, on a durable store, one lease at most."""
        seconds = patience(self.run)
        if seconds is not None:
            with self._lock:
                if self._patience is None or self._patience.callback is None:
                    with suppress(NoThread):
                        self._patience = self._timers.after(seconds, self._waited_long)

    def _end_the_wait(self) -> None:
        """Cancel the timer of the wait for a thread, if nothing of the run waits for one. Called under the lock."""
        if self._patience is not None and not self._resumptions and not self._queued_calls:
            self._patience.cancel()

    def _waited_long(self) -> None:
        """End the run's wait for a thread. At the deadline, the run fails. After a lease, it is parked so that another
        process can take it over, unless a call of the run is in flight."""
        run = self.run
        late = run.deadline is not None and run.settings.clock() >= run.deadline
        with self._lock:
            idle = self._wakeup is None or self._caller_idle
            waits = bool(self._resumptions or self._queued_calls) and not self.over
        if not waits:
            return
        if late or (idle and not any(type(waiting) is Call for waiting in list(self._parked))):
            if not late:
                stopping.release(run, parked(run, NO_THREAD))
            self._drop_queued_calls(timed_out=late)
            self._advance_all()
        else:
            self._limit_the_wait()

    def _advance_all(self) -> None:
        """Have threads beyond the pool's limit advance the programs that wait for a thread."""
        with self._lock:
            waiting = len(self._resumptions)
        for _ in range(waiting):
            with suppress(NoThread):  # they wait for a thread already
                self._pool.put(self._advance_there, beyond=True)

    def _drop_queued_calls(self, *, timed_out: bool) -> None:
        """Abandon the calls of steps that wait for a thread and have not begun."""
        for call in list(self._queued_calls):
            program = None if call.shielded else self._queued_calls.pop(call, None)
            if program is not None:
                self._post(program, (None, Abandoned(call, timed_out=timed_out, over=True, began=False)))

    # -- abandoned calls -----------------------------------------------------------------------------------------------

    def _complete_late(self, call: Call, outcome: Outcome) -> None:
        """Record the outcome of an abandoned call that completed late on this thread, and have it processed."""
        self._stuck -= 1
        self._pool.returned(call_title(self.run, call))
        over = self.run.complete_late(call, outcome)
        waiting = [other for other in list(self._parked) if type(other) is AwaitAbandoned and other.call is call]
        for awaited in waiting:
            self._wake(awaited, None)
        if over and not waiting:
            self._advance(late(self.run, call), None)

    def _await_abandoned(self, program: Program[Any], awaited: AwaitAbandoned) -> bool:
        """Suspend the program until the abandoned call is over. Returns True if it is over already."""
        self._parked[awaited] = program
        if awaited.call.late_outcome is not None and self._parked.pop(awaited, None) is not None:
            return True
        return self._woken_after(awaited.seconds, awaited)

    def _wait_for(self, program: Program[Any], effect: object) -> bool:
        """Perform an effect that needs a timer. Returns False if the program is suspended. Raises NoThread."""
        if type(effect) is Sleep:
            return self._sleep(program, effect)
        if type(effect) is AwaitAbandoned:
            return self._await_abandoned(program, effect)
        if type(effect) is Alarm:
            self._alarms = (*self._alarms, self._timers.after(effect.seconds, self.look))
        return True

    def _sleep(self, program: Program[Any], sleep: Sleep) -> bool:
        """Suspend the program until the time is over or the run stops. Returns True if the run has stopped already."""
        self._parked[sleep] = program
        if sleep.is_over_at_once(self.run) and self._parked.pop(sleep, None) is not None:
            return True
        return self._woken_after(sleep.seconds, sleep)

    def _woken_after(self, seconds: float, waiting: Sleep | AwaitAbandoned) -> bool:
        """Resume the program that is suspended on `waiting` after `seconds`. Returns False, or True if it does not wait
        any more. Raises NoThread, and then the program is not suspended."""
        try:
            self._timers.after(seconds, partial(self._wake, waiting, None))
        except NoThread:
            if self._parked.pop(waiting, None) is not None:
                raise
        return False

    def _wake(self, waiting: Parked, answer: Any) -> None:
        program = self._parked.pop(waiting, None)
        if program is not None:
            self._post(program, answer)

    def ask_here(
        self, verb: str, argument: object, context: contextvars.Context | None = None
    ) -> tuple[Any, BaseException | None]:
        """Call the store on this thread. Returns its reply and its error, one of which is None."""
        store = self.run.settings.store
        asked = getattr(store, verb)
        try:
            if not store.blocks:
                return asked(argument), None
            run = self.run
            return (context or (run.store_context or run.context).copy()).run(asked, argument), None
        except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
            return None, error
        except BaseException as error:  # noqa: BLE001 - it is raised once the run has ended
            self._handler_raised(error)
            if not store.blocks:  # the run retries calls of the other stores
                return self.ask_here(verb, argument)
            return None, stopping.store_interrupted(error)

    def stop(self, stop: Stop) -> None:
        self.raised_by_handler = stop.exit or self.raised_by_handler
        if self.run.waits is not None and self.run.resumes_main():  # it waits for a value or a time
            self._resume_main()
        self._advance_all()
        self._drop_queued_calls(timed_out=False)
        for waiting in list(self._parked):
            if type(waiting) is Sleep and waiting.is_cut_short(self.run):
                self._wake(waiting, None)
            elif stop.cancel and type(waiting) is Call and (not waiting.shielded or self.run.parked):
                abandon = partial(self._abandon, waiting, timed_out=False)
                try:
                    self._timers.after(self.run.settings.grace, abandon)
                except NoThread:
                    abandon()

    def _resume_main(self) -> None:
        with self._lock:
            parked, self._main_parked = self._main_parked, False
            self._main_due = not parked
        if parked:
            self._post(self._main, None)

    def _post(self, program: Program[Any], answer: Any, *, optional: bool = False) -> None:
        """Have a thread advance `program` with `answer`: the caller's thread if it is idle, or else a thread of the
        pool or the caller's, whichever is free first. The pool may be full of threads that wait for this run."""
        with self._lock:
            self._resumptions.append((program, answer))
            to_caller, self._caller_idle = self._caller_idle, False
        if to_caller and self._wakeup is not None:
            self._wakeup.put(None)
        else:
            # A worker may wait for a thread, and jobs that continue a run precede jobs that begin one. A run that is
            # stopping, or has threads stuck in abandoned calls, must not wait for a thread that may never become free.
            beyond = not optional and (self._stuck > 0 or self.run.stopped)
            if not self._put(first=not optional, beyond=beyond) and not optional:
                self._limit_the_wait()

    def _put(self, *, first: bool, beyond: bool) -> bool:
        """Have a thread of the pool advance what waits. Returns False if that has to wait for a thread: one of the pool
        or, if the pool has none and cannot start one, the caller's."""
        try:
            return self._pool.put(self._advance_there, first=first, beyond=beyond)
        except NoThread:
            return self._put(first=first, beyond=False) if beyond else False

    def _advance_there(self) -> None:
        """Advance the next program that waits for a thread, if there is one, on this thread of the pool."""
        with self._lock:
            resumption = self._resumptions.popleft() if self._resumptions else None
            self._end_the_wait()
        if resumption is not None:
            self._advance(*resumption)

    def _end(self, result: Run | None, error: BaseException | None) -> None:
        self.result, self.error = result, error if result is None else result.error
        with self._lock:
            self.over = True
            self._end_the_wait()
        for alarm in self._alarms:
            alarm.cancel()
        self.on_over(self)
        if self._wakeup is not None:
            self._wakeup.put(None)
