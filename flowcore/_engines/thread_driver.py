"""The driver that performs the programs' effects on threads."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from .._durable.checkpoints import parked
from .._kernel import stopping
from .._kernel.effects import (
    DIRECT,
    REQUEST_WORKER,
    RESUME,
    WAIT,
    Alarm,
    Ask,
    AwaitAbandoned,
    Call,
    GivenUp,
    Outcome,
    Program,
    Sleep,
    Stop,
    as_call,
)
from .._kernel.run import helper
from .._kernel.run_state import RunState
from .._kernel.undo import late
from ..context import Context
from ..errors import StoreUnavailable
from ..run import Run
from ..stores.base import Claim
from .base import NO_THREAD, call_title, patience
from .callers_thread import CallersThread
from .workers import Timer, Timers, Workers

__all__ = ["Driver"]

TAKEN_OVER: Final = object()  # the call was given up while this thread was in it: another one continues the program

Parked = Call | Sleep | AwaitAbandoned


class Driver(CallersThread):
    """Drives the programs of one run on threads.

    A program is advanced by whichever thread has it: the caller's own (in `Engine.run`), or one of the pool's. It parks
    on a sleep, a wait or a limit without holding a thread, and is posted to one when it can continue.
    """

    recorded: Claim | None = None
    """what the store was asked when it recorded the run as queued"""
    result: Run | None = None
    _main_parked = False
    """(lock) the main program waits to be resumed"""
    _main_due = False
    """(lock) it was resumed before it waited"""
    _alarms: tuple[Timer, ...] = ()
    """what wakes a run whose waits are over by themselves"""
    _stuck = 0
    """calls that were given up and are not over"""

    def __init__(
        self,
        run: RunState,
        main: Program[Run],
        pool: Workers,
        timers: Timers,
        on_over: Callable[[Driver], None],
    ) -> None:
        super().__init__(run, main)
        self.on_over = on_over
        self._pool = pool
        self._timers = timers
        # Programs that wait for something to end. The thread that pops one resumes it; dict.pop is atomic.
        self._parked: dict[Parked, Program[Any]] = {}
        self._queued_calls: dict[Call, Program[Any]] = {}  # calls that wait for a thread, in the same way
        self._patience: Timer | None = None
        """(lock) what ends the wait of a run that waits for a thread"""

    # -- from anywhere -------------------------------------------------------------------------------------------------

    def take_start(self) -> bool:
        """Whether the run may begin; true once, in one thread."""
        try:
            self._starts.pop()
        except IndexError:
            return False
        return True

    def begin(self) -> None:
        """Begin here, on one of the pool's threads, unless the run was dropped."""
        if self.take_start():
            self.begin_now()

    def begin_now(self) -> None:
        """Begin here, after `take_start`."""
        self._advance(self._main, None)

    def drop(self, error: BaseException) -> bool:
        """End a run that has not begun with `error`; False: it has begun."""
        if not self.take_start():
            return False
        self._end(None, error)
        return True

    def help_out(self) -> None:
        """In a thread of the pool that waits for the run: do for it what there is to do until it is over, unless another
        thread does."""
        self._serve()

    def look(self) -> None:
        """Something that the run waits for may be there: have a thread look."""
        if not self.over:
            self._post(helper(self.run), None, help=True)

    # -- performing effects --------------------------------------------------------------------------------------------

    def _advance(self, program: Program[Any], answer: Any, *, here: bool = False) -> None:
        """Resume `program` and perform what it asks until it ends, parks, or is taken away; `here`: in the caller's
        thread."""
        send, context, guarded = program.send, self.run.context, self._ctrl_c is not None
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
                    answer = self.call_here(effect.fn, effect.ctx, effect.context, shielded=effect.shielded)
                elif here:
                    self._elsewhere(program, effect)
                    return
                else:
                    answer = self._call(program, effect)
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
            elif type(effect) is Sleep:
                if not self._sleep(program, effect):
                    return
                answer = None
            elif type(effect) is AwaitAbandoned:
                if not self._await_landing(program, effect):
                    return
                answer = None
            else:
                answer = None
                if effect is REQUEST_WORKER:
                    self._post(helper(self.run), None, help=True)
                elif effect is RESUME:
                    self._resume_main()
                elif type(effect) is Alarm:
                    self._alarms = (*self._alarms, self._timers.after(effect.seconds, self.look))
                elif effect is DIRECT:
                    answer = self if here else None
                elif type(effect) is Stop:
                    self.stop(effect)

    def _call(self, program: Program[Any], call: Call) -> Any:
        """Run user code on this thread of the pool; returns TAKEN_OVER if it was given up meanwhile."""
        self._parked[call] = program
        if self.run.interrupted and not call.shielded and self._parked.pop(call, None) is not None:
            return None, GivenUp(call, timed_out=False, over=True, began=False)
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
        return TAKEN_OVER

    def _elsewhere(self, program: Program[Any], call: Call) -> None:
        """A call with a limit may have to be given up, which the caller's thread cannot: it runs on one of the pool's."""
        # A worker that waits here for a nested run may be the last one; an undo must not wait for a place.
        beyond = call.shielded or self._pool.owns_current_thread()
        self._queued_calls[call] = program
        if not self._pool.put(partial(self._called_elsewhere, call), first=True, beyond=beyond):
            self._limit_the_wait()

    def _called_elsewhere(self, call: Call) -> None:
        program = self._queued_calls.pop(call, None)
        with self._lock:
            self._end_the_wait()
        if program is None:
            return
        outcome = self._call(program, call)
        if outcome is not TAKEN_OVER:
            self._post(program, outcome)

    def _give_up(self, call: Call, *, timed_out: bool) -> None:
        """Give `call` up, unless it is over."""
        program = self._parked.pop(call, None)
        if program is not None:
            call.abandon()
            self._stuck += 1
            self._pool.abandon(call_title(self.run, call))
            self._post(program, (None, GivenUp(call, timed_out=timed_out)))

    # -- waiting for a thread ------------------------------------------------------------------------------------------

    def _limit_the_wait(self) -> None:
        """Something of the run waits for a thread: until the deadline at most, or, on a durable store, for a lease."""
        seconds = patience(self.run)
        if seconds is not None:
            with self._lock:
                if self._patience is None or self._patience.callback is None:
                    self._patience = self._timers.after(seconds, self._waited_long)

    def _end_the_wait(self) -> None:
        """(lock) A thread has come, so that nothing waits for one, or something has not waited long."""
        if self._patience is not None and not self._letters and not self._queued_calls:
            self._patience.cancel()

    def _waited_long(self) -> None:
        """End the wait for a thread: at the deadline the run fails; after a lease, where nothing of it is in flight, it
        is parked, so that another process can take it."""
        run = self.run
        late = run.deadline is not None and run.settings.clock() >= run.deadline
        with self._lock:
            idle = self._bell is None or self._caller_idle
            waits = bool(self._letters or self._queued_calls) and not self.over
        if not waits:
            return
        if late or (idle and not any(type(waiting) is Call for waiting in list(self._parked))):
            if not late:
                stopping.park(run, parked(run, NO_THREAD))
            self._drop_queued_calls(timed_out=late)
            with self._lock:
                waiting = len(self._letters)
            for _ in range(waiting):
                self._pool.put(self._advance_there, beyond=True)
        else:
            self._limit_the_wait()

    def _drop_queued_calls(self, *, timed_out: bool) -> None:
        """Give up the calls that wait for a thread and have not begun."""
        for call in list(self._queued_calls):
            program = None if call.shielded else self._queued_calls.pop(call, None)
            if program is not None:
                self._post(program, (None, GivenUp(call, timed_out=timed_out, over=True, began=False)))

    # -- calls that were given up --------------------------------------------------------------------------------------

    def _land(self, call: Call, outcome: Outcome) -> None:
        """A call that was given up is over, on this thread."""
        self._stuck -= 1
        self._pool.returned(call_title(self.run, call))
        over = self.run.landed(call, outcome)
        waiting = [other for other in list(self._parked) if type(other) is AwaitAbandoned and other.call is call]
        for landing in waiting:
            self._wake(landing, None)
        if over and not waiting:
            self._advance(late(self.run, call), None)

    def _await_landing(self, program: Program[Any], landing: AwaitAbandoned) -> bool:
        """Park until the call lands; True: it has, go on at once."""
        self._parked[landing] = program
        if landing.call.landed is not None and self._parked.pop(landing, None) is not None:
            return True
        self._timers.after(landing.seconds, partial(self._wake, landing, None))
        return False

    def _sleep(self, program: Program[Any], sleep: Sleep) -> bool:
        """Park until the time is up or the run stops; True: go on at once."""
        self._parked[sleep] = program
        if self.run.stopped and not sleep.shielded and self._parked.pop(sleep, None) is not None:
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
        store = self.run.settings.store
        asked = getattr(store, verb)
        try:
            if not store.blocks:
                return asked(argument), None
            run = self.run
            return (context or (run.store_context or run.context).copy()).run(asked, argument), None
        except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
            return None, error
        except BaseException as error:  # noqa: BLE001 - the run ends first
            self._is_struck(error)
            return None, StoreUnavailable(f"{type(error).__name__} was raised while the store was called.")

    def stop(self, stop: Stop) -> None:
        if self.run.waits is not None and self.run.resumes_main():  # it waits for a value, or for a time
            self._resume_main()
        self._drop_queued_calls(timed_out=False)
        for waiting in list(self._parked):
            if type(waiting) is Sleep and not waiting.shielded:
                self._wake(waiting, None)
            elif stop.cancel and type(waiting) is Call and (not waiting.shielded or self.run.parked):
                self._timers.after(self.run.settings.grace, partial(self._give_up, waiting, timed_out=False))

    def _resume_main(self) -> None:
        with self._lock:
            parked, self._main_parked = self._main_parked, False
            self._main_due = not parked
        if parked:
            self._post(self._main, None)

    def _post(self, program: Program[Any], answer: Any, *, help: bool = False) -> None:  # noqa: A002 - what it is
        """Have a thread advance `program`: the caller's if it has nothing to do, else one of the pool's, or the
        caller's once it has nothing else to do: the pool may be full of threads that wait for this very run."""
        with self._lock:
            self._letters.append((program, answer))
            to_caller, self._caller_idle = self._caller_idle, False
        if to_caller and self._bell is not None:
            self._bell.put(None)
        else:
            # Mere help may wait for a thread, and what continues a run goes before what begins one. A run that is
            # ending, or has threads stuck in calls that were given up, must not wait for a place that may never be free.
            beyond = not help and (self._stuck > 0 or self.run.stopped)
            if not self._pool.put(self._advance_there, first=not help, beyond=beyond) and not help:
                self._limit_the_wait()

    def _advance_there(self) -> None:
        """Advance what waits, if anything still does, on this thread of the pool."""
        with self._lock:
            letter = self._letters.popleft() if self._letters else None
            self._end_the_wait()
        if letter is not None:
            self._advance(*letter)

    def _end(self, result: Run | None, error: BaseException | None) -> None:
        self.result, self.error = result, error if result is None else result.error
        with self._lock:
            self.over = True
            self._end_the_wait()
        for alarm in self._alarms:
            alarm.cancel()
        self.on_over(self)
        if self._bell is not None:
            self._bell.put(None)
