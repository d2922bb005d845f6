"""The driver that performs the programs' effects on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

from .._kernel import stopping
from .._kernel.effects import (
    REQUEST_WORKER,
    RESUME,
    SHIELD,
    WAIT,
    Abandoned,
    Alarm,
    Ask,
    AwaitAbandoned,
    Call,
    Delegate,
    Outcome,
    Program,
    Sleep,
    Stop,
    Suspended,
    as_call,
)
from .._kernel.run import abort, execute, work_beside_main
from .._kernel.run_state import RunState
from .._kernel.undo import late
from ..context import Context
from ..exits import is_exit_of_handler
from ..run import Run
from .aio_store_calls import StoreCalls
from .aio_threads import PendingReply
from .driving import resumed
from .in_context import InContext, is_process_stopping
from .interrupts import raised_by_signal
from .workers import Workers

__all__ = ["AsyncDriver"]

TAKEN_OVER: Final = object()  # the call was abandoned while this task was in it: another task resumes the program
CANCEL_GRACE: Final = 0.05  # seconds for a cancelled coroutine to unwind before it is abandoned


class AsyncDriver(StoreCalls):
    """Drives the programs of one run on one event loop.

    The caller's task advances the main program, and each worker program has a task of its own. When a program waits,
    its task waits with it. Async user code runs inline in the task that advances its program, sync user code on a
    thread.
    """

    result: Run | None = None
    error: BaseException | None = None
    raised_by_handler: BaseException | None = None
    """the exception that a signal handler of the user has raised while the run was driven"""
    _aborted_main: Program[Any] | None = None
    cancelled: asyncio.CancelledError | None = None
    """the first cancellation of one of the run's tasks from outside"""
    leave_caller: Callable[[AsyncDriver, Any], None] | None = None
    """has another task call `run_here` with this answer; None: the caller's task is not the engine's, and stays"""

    def __init__(
        self,
        run: RunState,
        cancels: int,
        pool: Workers,
        tasks: set[asyncio.Future[Any]],
        program: Program[Any] | None = None,
    ) -> None:
        super().__init__(run, pool, tasks)
        self._cancels = cancels  # how often the caller's task was cancelled before this run
        self._main: Program[Any] = execute(run) if program is None else program
        self.caller: asyncio.Task[Any] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._main_reply: PendingReply | None = None
        self._sleeping: dict[Sleep, PendingReply] = {}
        self._awaited_late: dict[Call, PendingReply] = {}
        self._alarms: list[asyncio.TimerHandle] = []  # each starts a worker when a wait's time is over
        self._cancelled_calls: dict[Call, bool] = {}  # calls that were cancelled; True: for a timeout

    async def run_here(self, answer: Any = None) -> bool:
        """Drive the run to its end in the calling task. Its main program begins, or is resumed with `answer`. Returns
        False if another task drives the run by now: see `leave_caller`."""
        task = self.caller = asyncio.current_task()
        program: Program[Any] | None = self._main
        throws = False
        try:
            while program is not None:
                try:
                    await self._advance(program, answer, throws=throws)
                except (SystemExit, KeyboardInterrupt) as error:
                    program, answer, throws = self._exit_in_driver(error, program), error, True
                else:
                    program = None
        finally:
            if self.caller is task:
                for alarm in self._alarms:
                    alarm.cancel()
                if self._ended is not None and not self._ended.done():
                    self._ended.set_result(None)
        return self.caller is task

    # -- from outside of the programs ----------------------------------------------------------------------------------

    def cancel(self, error: BaseException) -> bool:
        """Cancel the run because of `error`. Returns False if it was stopping already or is over. Call it in the loop's
        thread only."""
        if not stopping.interrupt(self.run, error):
            return False
        self.stop(Stop(cancel=True))
        return True

    def cancelled_from_outside(self, error: asyncio.CancelledError) -> None:
        """Stop the run because one of its tasks was cancelled: the caller's own, or any if the process stops."""
        self.cancelled = self.cancelled or error
        interrupted = (
            stopping.hand_over(self.run, error) if is_process_stopping() else stopping.interrupt(self.run, error)
        )
        if interrupted:
            self.stop(Stop(cancel=True))

    def look(self) -> None:
        """Have a task check whether something that the run waits for has arrived. Call it in the loop's thread only."""
        if self.result is None and self.error is None:
            self._spawn(work_beside_main(self.run), None)

    def hand_over(self, error: BaseException) -> None:
        """Park the run, or cancel it if it is in memory only, because its process or engine stops; `error` says why."""
        if stopping.hand_over(self.run, error):
            self.stop(Stop(cancel=True))

    def ended(self) -> asyncio.Future[None]:
        """A future that is done once the run is over."""
        if self._ended is None:
            self._ended = self.loop.create_future()
        return self._ended

    # -- performing effects --------------------------------------------------------------------------------------------

    async def _advance(self, program: Program[Any], answer: Any, *, throws: bool = False) -> None:
        """Resume `program` with `answer` and perform its effects until it ends or another task takes it over. `throws`:
        whether `answer` is an error to raise in the program."""
        send, context = program.send, self.run.context
        resume: Callable[[Any], Any] = program.throw if throws else send
        while True:
            try:
                effect, resume = resume(answer), send
            except StopIteration as stop:
                if program is self._main and stop.value is not None:
                    self.result = stop.value
                    self.error = stop.value.error
                return
            except Exception as error:  # noqa: BLE001 - the caller gets it; it is, for example, a refused claim
                self.error = self.error or error
                self._resume_main()
                return
            except BaseException as error:  # noqa: BLE001 - the same, once the run has ended
                aborted, answer = self._aborted(program, error), None
                if aborted is None:
                    return
                program, send = aborted, aborted.send
                resume = send
                continue
            if type(effect) is Context and effect.node.is_async:
                # The hot path: a coroutine that never suspends costs no more than its first step.
                inner = context.copy()
                try:
                    coroutine = inner.run(effect.node.fn, effect)
                    waiting = inner.run(coroutine.send, None)
                except StopIteration as stop:
                    answer = (stop.value, None)
                    continue
                except BaseException as error:  # noqa: BLE001 - the program judges it
                    answer = (None, error)
                    continue
                call = as_call(effect, inner)
                answer = await self._suspended(program, call, coroutine, waiting)
                if answer is TAKEN_OVER:
                    return
            elif type(effect) is Context or type(effect) is Call:
                any_call = as_call(effect, context.copy()) if type(effect) is Context else effect
                answer = await self._call(program, cast("Call", any_call))
                if answer is TAKEN_OVER:
                    return
            elif type(effect) is Suspended:
                call = as_call(effect.ctx, effect.context)
                answer = await self._suspended(program, call, effect.coroutine, effect.waiting)
                if answer is TAKEN_OVER:
                    return
            elif type(effect) is Ask:
                answer = await self._ask(effect)
            elif type(effect) is Sleep:
                answer = None
                await self._sleep(effect)
            elif type(effect) is AwaitAbandoned:
                answer = await self._await_abandoned(effect)
            elif effect is WAIT:
                answer = None
                self._main_reply = self._main_reply or PendingReply(self)
                await self._main_reply.wait()
                self._main_reply = None
                if self.error is not None:
                    return
            elif effect is SHIELD and asyncio.current_task() is self.caller:
                # Undo in a task of its own, which a cancellation of the caller does not reach.
                pending = PendingReply(self)
                self._spawn(program, None, pending)
                await pending.wait()
                return
            else:
                answer = None
                if effect is REQUEST_WORKER:
                    self._spawn(work_beside_main(self.run), None)
                elif type(effect) is Delegate:
                    self._spawn(work_beside_main(self.run, effect.node), None)
                elif effect is RESUME:
                    self._resume_main()
                elif type(effect) is Alarm:
                    self._alarms.append(self.loop.call_later(effect.seconds, self.look))
                elif type(effect) is Stop:
                    self.stop(effect)

    async def _drive(self, program: Program[Any], answer: Any) -> None:
        """Do in a separate task what `run_here` does with the main program."""
        driven: Program[Any] | None = program
        throws = False
        while driven is not None:
            try:
                await self._advance(driven, answer, throws=throws)
            except (SystemExit, KeyboardInterrupt) as error:
                driven, answer, throws = self._exit_in_driver(error, driven), error, True
            else:
                driven = None

    def _exit_in_driver(self, error: BaseException, program: Program[Any]) -> Program[Any] | None:
        """Park or cancel the run because a signal handler has raised `error` in the driver's own code, while a task
        advanced `program`. Returns the program in which that task raises the error, because its answer may be lost."""
        self._handler_raised(error)
        for call in [call for call, entry in self._inline.items() if entry[0] is program]:
            del self._inline[call]
        if program not in {self._main, self._aborted_main}:
            return program
        return None if self.result is not None else self._main

    def _handler_raised(self, error: BaseException) -> None:
        """Park or cancel the run because a signal handler has raised `error`, which the caller gets at the end."""
        self.raised_by_handler = error
        self.cancel(error)

    def _aborted(self, program: Program[Any], error: BaseException) -> Program[Run] | None:
        """Return the program that ends the run after `error` has ended its main program, as the exit of a signal handler
        does. Returns None if `error` has ended another program, or if the run cannot continue."""
        if is_exit_of_handler(error):
            self.raised_by_handler = error
        if program is not self._main:
            self.cancel(error)
            if self.run.running > 0:  # it may have been running a step, which is given up after the grace, like others
                self.loop.call_later(self.run.settings.grace, self._free_places)
            else:
                self._resume_main()
            return None
        if self._aborted_main is not None:
            self.error = self.error or error
            return None
        self._aborted_main, self._main = program, abort(self.run, error)
        return self._main

    def _free_places(self) -> None:
        if stopping.free_places(self.run):
            self._resume_main()

    def _spawn(self, program: Program[Any], answer: Any, over: PendingReply | None = None) -> None:
        """Advance `program` in a separate task. `over` is set once that task has ended."""
        task = self.loop.create_task(self._drive(program, answer))
        self._tasks.add(task)  # the loop holds tasks only weakly
        if over is not None:
            over.task = task

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            # A loop that shuts down may cancel it before its first step, and a signal handler may exit there. The run
            # still has to be ended.
            if task.cancelled() or task.exception() is not None:
                self._spawn(program, answer, over)
            elif over is not None:
                over.set(None)

        task.add_done_callback(ended)

    def _resume_main(self) -> None:
        self._main_reply = self._main_reply or PendingReply(self)
        self._main_reply.set(None)

    # -- user code -----------------------------------------------------------------------------------------------------

    async def _call(self, program: Program[Any], call: Call) -> Any:
        """Run user code. Returns TAKEN_OVER if the call was abandoned and another task resumes the program."""
        if self.run.interrupted and not call.shielded:
            return None, Abandoned(call, timed_out=False, over=True, began=False)
        if not call.is_async:
            return await self._on_a_thread(call)
        try:
            coroutine = call.context.run(call.fn, call.ctx)
            waiting = call.context.run(coroutine.send, None)
        except StopIteration as stop:
            return stop.value, None
        except Exception as error:  # noqa: BLE001 - the program judges it
            return None, error
        except BaseException as error:  # noqa: BLE001 - the same
            return None, self._exit_in_call(error, call)
        return await self._suspended(program, call, coroutine, waiting)

    def _exit_in_call(self, error: BaseException, call: Call) -> BaseException:
        """Note that async user code has raised `error`, if a signal handler has raised it there. Returns the error of the
        call: see `CallersThread.call_here`."""
        if not call.shielded or not is_exit_of_handler(error):
            return error
        if raised_by_signal(error):  # the second Ctrl-C
            self.run.undo_stopped = True
            return error
        self._handler_raised(error)
        return error if self.run.relinquished else stopping.undo_interrupted(error)

    async def _suspended(
        self, program: Program[Any], call: Call, coroutine: Coroutine[Any, Any, Any], waiting: Any
    ) -> Any:
        """Await async user code that has begun in this task. Returns what `_call` returns."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine run by asyncio
        self._inline[call] = (program, task)
        if self.run.interrupted and not call.shielded:  # by the call itself, or by another thread since it began
            self._cancel_call(call, False)
        timer = None
        if call.timeout is not None:
            timer = self.loop.call_later(call.timeout, self._cancel_call, call, True)
        awaitable = InContext(coroutine, call.context, waiting)
        result: Outcome = await awaitable
        if timer is not None:
            timer.cancel()
        timed_out = self._cancelled_calls.pop(call, None)
        if timed_out is not None:
            task.uncancel()
        if self._inline.pop(call, None) is None:
            self._complete_late(call, result)
            return TAKEN_OVER
        error = result[1]
        if call.shielded and error is not None and not isinstance(error, Exception | Abandoned):
            error = self._exit_in_call(error, call)
            result = None, error
        before = self._cancels if task is self.caller else 0
        for _ in range(min(awaitable.leaked, task.cancelling() - before)):
            task.uncancel()
        cancelled = task.cancelling() > before
        if cancelled and (is_process_stopping() or (task is self.caller and not call.shielded)):
            self.cancelled_from_outside(
                error if isinstance(error, asyncio.CancelledError) else asyncio.CancelledError()
            )
            timed_out = bool(timed_out)
        elif timed_out is None and isinstance(error, asyncio.CancelledError) and self.run.interrupted:
            timed_out = False
        if timed_out is not None and isinstance(error, asyncio.CancelledError):
            return None, Abandoned(call, timed_out=timed_out, over=True)
        if timed_out and isinstance(error, Exception):  # the step replaced its cancellation
            return None, Abandoned(call, timed_out=True, over=True, error=error)
        return result

    def _cancel_call(self, call: Call, late: bool) -> None:
        """Cancel async user code because its timeout is over (`late`) or its run stops."""
        if call not in self._inline or call in self._cancelled_calls:
            return
        task = self._inline[call][1]
        self._cancelled_calls[call] = late
        call.abandon()
        task.cancel()
        if task is not self.caller or self.leave_caller is not None:
            self.loop.call_later(CANCEL_GRACE if late else self.run.settings.grace, self._abandon, call)

    def _abandon(self, call: Call) -> None:
        """Abandon async user code that ignores its cancellation, and resume the program in another task."""
        if (entry := self._inline.pop(call, None)) is None:
            return
        self.run.abandon(call)
        answer = None, Abandoned(call, timed_out=self._cancelled_calls.get(call, False))
        if entry[1] is self.caller and self.leave_caller is not None:
            self.leave_caller(self, answer)
        else:
            self._spawn(entry[0], answer)

    def _complete_late(self, call: Call, result: Outcome) -> None:
        """Record the outcome of an abandoned call that completed late, and have a program process it."""
        over = self.run.complete_late(call, result)
        self._thread_returned(call)
        pending = self._awaited_late.pop(call, None)
        if pending is not None:
            pending.set(result)
        elif over:
            # Start a task only if something must be undone: the loop may be about to close.
            program = late(self.run, call)
            try:
                effect = next(program)
            except StopIteration:
                return
            self._spawn(resumed(program, effect), None)

    # -- the other effects ---------------------------------------------------------------------------------------------

    async def _sleep(self, sleep: Sleep) -> None:
        if sleep.is_over_at_once(self.run):
            return
        pending = self._sleeping[sleep] = PendingReply(self)
        timer = self.loop.call_later(sleep.seconds, pending.set, None)
        await pending.wait()
        timer.cancel()
        self._sleeping.pop(sleep, None)

    async def _await_abandoned(self, awaited: AwaitAbandoned) -> Outcome | None:
        call = awaited.call
        if call.late_outcome is not None:
            return call.late_outcome
        pending = self._awaited_late[call] = PendingReply(self)
        timer = self.loop.call_later(awaited.seconds, pending.set, None)
        outcome: Outcome | None = await pending.wait()
        timer.cancel()
        self._awaited_late.pop(call, None)
        return outcome

    def stop(self, stop: Stop) -> None:
        self.raised_by_handler = stop.exit or self.raised_by_handler
        if self.run.waits is not None and self.run.resumes_main():  # it waits for a value or a time
            self._resume_main()
        for sleep, pending in list(self._sleeping.items()):
            if sleep.is_cut_short(self.run):
                pending.set(None)
        for call in list(self._queued_calls):
            self._drop_queued_call(call, timed_out=False)
        if not stop.cancel:
            return
        # The next owner performs the undos of a parked run.
        grace, parked = self.run.settings.grace, self.run.parked
        for call in list(self._inline):
            if not call.shielded:
                self._cancel_call(call, False)
            elif parked:
                self.loop.call_later(grace, self._cancel_call, call, False)
        for call in list(self._threaded):
            if not call.shielded or parked:
                self.loop.call_later(grace, self._leave_thread, call, False)
