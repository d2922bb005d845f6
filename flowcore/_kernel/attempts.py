"""The attempts of a step or an undo: their limits, how each ended, retries, and the waits between them."""

from __future__ import annotations

import asyncio.exceptions
import contextvars
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..context import AttemptContext, Context
from ..errors import (
    NoThread,
    ResultLost,
    RunFailed,
    RunTimeout,
    StepCancelled,
    StepTimeout,
    error_message,
    safe_repr,
)
from ..exits import is_exit_of_handler
from ..functions import PLAIN, is_awaitable
from ..plan import Node
from ..retry import Pause, Retry, waits
from ..run import ATTEMPTS_KEPT, shortened
from ..status import Status
from . import emit_steps
from .awaiting import awaited
from .doubt import settle
from .effects import Abandoned, AwaitAbandoned, Call, Outcome, Program, Sleep, Stop, WholeStep
from .ledger import now_of
from .outcome import StepEnd
from .scopes import EventScope, StepScope
from .set_aside import end_left_to_next_owner, is_left, set_aside

if TYPE_CHECKING:
    from .inline import FirstAttempt
    from .run_state import RunState

__all__ = ["Attempts", "Limit", "failed_before", "judge", "wait_rest_of_backoff"]


class Limit(NamedTuple):
    """How long an attempt may take: `seconds` from its start, until `moment` (monotonic). `name`: the option that sets
    the limit: timeout, step_timeout or deadline."""

    moment: float
    name: str
    seconds: float


class Attempts:
    """The attempts of the step `node`, or of its `undo`: `fn` is called until an attempt succeeds, none is left, or the
    run stops.

    `scope`: the scope of the step or undo; None if the run is not observed.
    """

    __slots__ = (
        "allowed",
        "errors",
        "failed",
        "fn",
        "last",
        "limit",
        "node",
        "number",
        "retry",
        "run",
        "scope",
        "started",
        "timeout",
        "undo",
        "until",
    )

    def __init__(
        self,
        run: RunState,
        node: Node,
        fn: Callable[..., Any],
        retry: Retry | None,
        timeout: float | None,
        scope: StepScope | None,
        *,
        undo: bool = False,
    ) -> None:
        self.run = run
        self.node = node
        self.fn = fn
        self.retry = retry
        self.allowed = 1 if retry is None else retry.attempts
        self.timeout = timeout
        self.scope = scope
        self.undo = undo
        self.number = 0  # of the latest attempt, from 1
        self.errors: tuple[tuple[str, str], ...] = ()  # type and message of failed attempts: see StepEnd
        self.failed = 0  # how many attempts have failed
        self.last: StepEnd | None = None  # the end of the latest attempt that failed
        self.limit: Limit | None = None  # of the latest attempt
        self.started: float | None = None  # when the first attempt started (monotonic); None: no limit depends on it
        self.until: float | None = None  # when step_timeout is over (monotonic)

    def program(self, first: FirstAttempt | None = None) -> Program[StepEnd]:
        """Make the attempts. `first`: the first attempt, if it was made already.

        An error outside of `fn`, for example in another object that the user passed, fails the step: the run must
        neither hang nor end without undoing its effects.
        """
        if self.run.settings.whole_steps:
            end: StepEnd = yield WholeStep(self.node, undo=self.undo)
            return end
        try:
            return (yield from self._program(first))
        except NoThread as error:  # nothing can wake the step for another attempt
            if self.last is None or self.last.error is None:
                return StepEnd(Status.FAILURE, None, error, 1)
            self.last.error.add_note(f"flowcore made no further attempt: {error}")
            return self.last
        except GeneratorExit:
            raise
        except BaseException as error:
            if not isinstance(error, Exception):
                if is_exit_of_handler(error):
                    if self.undo:  # the undo is attempted again, here or by the next owner
                        raise
                    yield Stop(cancel=False, exit=error)
                return self._counted(StepEnd(Status.CANCELLED, None, error, max(1, self.number)))
            if self.last is None:
                return StepEnd(Status.FAILURE, None, error, 1)
            return self._counted(StepEnd(self.last.status, None, error, self.last.attempts))

    def _program(self, first: FirstAttempt | None) -> Program[StepEnd]:
        run, node, scope, settings = self.run, self.node, self.scope, self.run.settings
        timed = self._begin()
        is_async = node.undo_is_async if self.undo else node.is_async
        ctx: Context
        attempt: EventScope | None = None
        while True:
            self.number += 1
            limit = self.limit = self._next_limit() if timed else None
            if self.last is not None and limit is not None and limit.name == "deadline" and not limit.seconds:
                return self._never_began(late=True)
            if first is not None:
                ctx, attempt, outcome = first.ctx, first.attempt, first.outcome
                first = None
                context = (run.context if attempt is None else attempt.context).copy()
            else:
                moment, seconds = (None, None) if limit is None else (limit.moment, limit.seconds)
                ctx = AttemptContext(run, node, self.number, moment, undo=self.undo)
                if scope is None:
                    context = run.context.copy()
                else:
                    attempt = emit_steps.attempt_started(run, node, scope, self.number, self.allowed, undo=self.undo)
                    context = attempt.context.copy()
                outcome = yield Call(node, self.fn, ctx, context, seconds, is_async, self.undo)
            if outcome[1] is None and type(outcome[0]) not in PLAIN and is_awaitable(outcome[0]):
                left = None if limit is None else max(0.0, limit.moment - settings.clock())
                outcome = yield from awaited(run, node, ctx, outcome[0], context, left, undo=self.undo)
            abandoned = _abandoned(outcome)
            if abandoned is not None and not abandoned.began:
                end = self._never_began(late=abandoned.timed_out)
                if attempt is not None and scope is not None:
                    emit_steps.attempt_cancelled(
                        run, node, scope, attempt, self.number, self.allowed, end, undo=self.undo
                    )
                return end
            end = judge(run, node, outcome, self.number, limit, undo=self.undo)
            outcome = (None, None)  # an error's traceback refers to this frame, which must not refer back to the error
            if attempt is not None and scope is not None:
                emit_steps.attempt_finished(run, node, scope, attempt, self.number, self.allowed, end, undo=self.undo)
                if self.allowed > 1:
                    scope.attempts = shortened((*scope.attempts, (attempt.at, scope.ended)))
            if isinstance(end.error, ResultLost) and not self.undo:
                end, settled = yield from settle(run, node, end, end.error)
                if settled:
                    return self._counted(end)
            if end.status is Status.SUCCESS:
                return self._counted(end)
            if end.error is not None and end.status is not Status.CANCELLED:
                error = type(end.error).__name__, error_message(end.error, 200)
                self.failed += 1
                self.errors = (*self.errors, error)
                if self.failed > 2 * ATTEMPTS_KEPT:
                    self.errors = shortened(self.errors)
                end.errors, end.failed = self.errors, self.failed
            self.last = end
            outstanding = abandoned.call if abandoned is not None and not abandoned.over else None
            pause = self._next_pause(end, context)
            if pause is None:
                return end
            if outstanding is not None:
                late = yield from self._await_abandoned(outstanding)
                if late is not None:
                    return late
                if outstanding.late_outcome is None or self._too_late(pause):
                    return end
            over = yield from self._wait(pause, end)
            if over is not None:
                return over
            if abandoned is not None:
                run.forget(abandoned.call)

    def _counted(self, end: StepEnd) -> StepEnd:
        """Return the end of the step with the attempts that have failed."""
        end.errors, end.failed = self.errors, self.failed
        return end

    def _begin(self) -> bool:
        """Set the limits, and restore the state of attempts under earlier owners. Returns whether attempts have a time
        limit."""
        run, node, retry = self.run, self.node, self.retry
        step_timeout = None if self.undo else node.step_timeout
        timed = self.timeout is not None or step_timeout is not None or (run.deadline is not None and not self.undo)
        if timed or (retry is not None and retry.max_elapsed is not None):
            self.started = run.settings.clock()
            self.until = None if step_timeout is None else self.started + step_timeout
        before = None if self.undo else run.tried.get(node.name)
        if before is not None:  # earlier attempts failed: under an earlier owner, or before the step was set aside
            self.number, self.failed, self.errors = before.failed, before.failed, before.errors
            if self.scope is not None and self.scope.epoch is not None:
                epoch = self.scope.epoch
                self.scope.attempts = tuple((began - epoch, ended - epoch) for began, ended in before.attempt_times)
            if self.started is not None and before.started is not None:
                self.started -= max(0.0, now_of(run) - before.started)
        return timed

    def _next_limit(self) -> Limit:
        """Return the earliest limit of the next attempt."""
        run = self.run
        now = run.settings.clock()
        limits = [
            (now + self.timeout, "timeout") if self.timeout is not None else None,
            (self.until, "step_timeout") if self.until is not None else None,
            (run.deadline, "deadline") if run.deadline is not None and not self.undo else None,
        ]
        moment, name = min(limit for limit in limits if limit is not None)
        return Limit(moment, name, max(0.0, moment - now))

    def _never_began(self, *, late: bool) -> StepEnd:
        """Return the end of a step whose latest attempt never began: it waited for a thread until the deadline
        (`late`), or until the run stopped. That attempt had no effect."""
        run, name = self.run, safe_repr(self.node.name)
        if late:
            what = f"step {name} was still waiting for a thread at the deadline of run {run.run_id}."
            return self._counted(StepEnd(Status.FAILURE, None, RunTimeout(what), self.number - 1))
        if self.last is not None and not is_left(run):
            return self._counted(StepEnd(Status.FAILURE, None, self.last.error, self.number - 1))
        if run.ledger is not None:
            run.ledger.withdrawn(run, self.node, self.failed, self.errors)
        return StepEnd(Status.PENDING, attempts=self.number - 1)

    # -- between two attempts ------------------------------------------------------------------------------------------

    def _next_pause(self, end: StepEnd, context: contextvars.Context) -> Pause | None:
        """Return the pause before the next attempt, or None if there is no next attempt. `context`: of the attempt that
        has ended."""
        limit, run = self.limit, self.run
        if self.retry is None or end.error is None or end.status is Status.CANCELLED or (run.stopped and not self.undo):
            return None
        if end.status is Status.TIMEOUT and limit is not None and limit.name != "timeout":
            return None
        elapsed = 0.0 if self.started is None else run.settings.clock() - self.started
        return self.retry.after(self.number, end.error, elapsed, run.settings.random, context)

    def _await_abandoned(self, call: Call) -> Program[StepEnd | None]:
        """Wait for an abandoned attempt to end, because a second attempt beside it could do the work twice. If it ends
        with a result, that is the end of the step, which is returned."""
        run = self.run
        if call.late_outcome is None:
            yield AwaitAbandoned(call, max(0.0, min(run.settings.grace, self._seconds_left())))
        if self.scope is not None:
            self.scope.ended = run.settings.clock()
        if call.late_outcome is None:
            return None
        failed = call.late_outcome[1] is not None
        emit_steps.completed_late(run, call, Status.FAILURE if failed else Status.SUCCESS, call.late_outcome[1])
        if failed:
            return None
        run.forget(call)
        return StepEnd(Status.SUCCESS, call.late_outcome[0], None, self.number, self.errors[:-1], self.failed - 1)

    def _wait(self, pause: Pause, end: StepEnd) -> Program[StepEnd | None]:
        """Wait for the next attempt, after one that ended as `end`. Returns the step's end if there is no next attempt,
        or if the step is set aside until then, else None."""
        run, node, scope, undo = self.run, self.node, self.scope, self.undo
        if (run.stopped and not undo) or (self.started is not None and pause.delay >= self._seconds_left()):
            return end
        began = 0.0
        if scope is not None:
            began = emit_steps.backoff_started(run, node, scope, self.number, self.allowed, pause, end, undo=undo)
        waits_for = pause.delay if pause.delay and run.context.get(waits, True) else 0.0
        if run.ledger is not None and not undo:
            end.scope = scope
            yield from run.ledger.attempt_failed(run, node, end, waits_for)
            if waits_for > run.settings.park_after:
                aside = set_aside(run, node, end, waits_for)
                if aside is not None:
                    return aside
        if waits_for:
            yield Sleep(waits_for, undoes=undo)
        if run.ledger is not None and undo and run.finished is None and not (yield from run.ledger.may_continue(run)):
            return end
        if run.ledger is not None and not undo and not run.stopped:
            yield from run.ledger.began(run, node, self.number + 1, self.errors)
        if scope is not None:
            scope.ended = run.settings.clock()
            scope.backoff += scope.ended - began
        if run.stopped and not undo:
            return end_left_to_next_owner(end) if waits_for and is_left(run) else end
        return None

    def _too_late(self, pause: Pause) -> bool:
        """Whether max_elapsed leaves no time for the next attempt, now that time has passed since `pause` was
        decided."""
        if self.retry is None or self.retry.max_elapsed is None or self.started is None:
            return False
        return self.run.settings.clock() - self.started + pause.delay > self.retry.max_elapsed

    def _seconds_left(self) -> float:
        """Return the seconds until step_timeout or the run's deadline, whichever is first."""
        deadline = None if self.undo else self.run.deadline
        limits = [limit for limit in (self.until, deadline) if limit is not None]
        return min(limits) - self.run.settings.clock() if limits else math.inf


def _abandoned(outcome: Outcome) -> Abandoned | None:
    error = outcome[1]
    return error if isinstance(error, Abandoned) else None


def judge(
    run: RunState, node: Node, outcome: Outcome, number: int, limit: Limit | None, *, undo: bool, asks: bool = False
) -> StepEnd:
    """Return the StepEnd that follows from the outcome of an attempt or, if `asks` is set, of the step's `when=`."""
    # No local variable holds the error: its traceback refers to this frame, and the two would form a cycle.
    if outcome[1] is None:
        return StepEnd(Status.SUCCESS, outcome[0], None, number)
    if isinstance(outcome[1], Abandoned):
        return _judge_abandoned(run, node, outcome[1], number, limit, undo=undo, asks=asks)
    if isinstance(outcome[1], asyncio.exceptions.CancelledError):
        # The step was not cancelled: the driver returns Abandoned for a call that it cancels. The error is wrapped,
        # because a TaskGroup would swallow a bare CancelledError.
        cancelled = StepCancelled(f"{_what(node, undo=undo)} raised CancelledError, but the run was not cancelled.")
        cancelled.__cause__ = outcome[1]
        outcome = (None, cancelled)
    failed = undo or (isinstance(outcome[1], Exception) and (asks or not run.interrupted))
    # A step that raises in an interrupted run may have been cut short by the interrupt: its effect is unknown.
    return StepEnd(Status.FAILURE if failed else Status.CANCELLED, None, cast("BaseException", outcome[1]), number)


def _judge_abandoned(
    run: RunState, node: Node, abandoned: Abandoned, number: int, limit: Limit | None, *, undo: bool, asks: bool
) -> StepEnd:
    what = f"the when= of step {safe_repr(node.name)}" if asks else _what(node, undo=undo)
    if not abandoned.timed_out:
        return StepEnd(Status.CANCELLED, None, StepCancelled(f"{what} was cancelled while it ran."), number)
    late: StepTimeout | RunTimeout
    if limit is None:  # only a simulation abandons a call without a limit
        late = StepTimeout(f"{what} did not finish in time.")
    elif limit.name == "deadline":
        late = RunTimeout(f"{what} was still running at the deadline of run {run.run_id}.")
    else:
        own = node.compensation.timeout if undo and node.compensation is not None else node.timeout
        allowed = node.step_timeout if limit.name == "step_timeout" else own
        late = StepTimeout(f"{what} did not finish within its {limit.name} of {allowed or 0.0:g} s.")
    late.__cause__ = abandoned.error
    return StepEnd(Status.FAILURE if asks else Status.TIMEOUT, None, late, number)


def _what(node: Node, *, undo: bool) -> str:
    return f"{'the undo of ' if undo else ''}step {safe_repr(node.name)}"


def wait_rest_of_backoff(run: RunState, node: Node) -> Program[StepEnd | None]:
    """Wait for the rest of a backoff that began under an earlier owner, or set the step aside until it is over. Returns
    the WAITING end of a step that was set aside. If the run stops meanwhile, returns the end of the step: it has failed
    with the error of its latest attempt, or is pending if another owner resumes the run. Else returns None."""
    before = run.tried[node.name]
    began = before.attempt_times[-1][1] if before.attempt_times else before.started
    # If the clock was set back meanwhile, the backoff still lasts no longer than planned.
    rest = 0.0 if before.retry_at is None else before.retry_at - max(now_of(run), began or 0.0)
    if rest > 0 and run.context.get(waits, True) and not run.stopped:
        aside = set_aside(run, node, _of_earlier(run, node), rest) if rest > run.settings.park_after else None
        if aside is not None:
            return aside
        yield Sleep(rest)
    if not run.stopped:
        return None
    end = _of_earlier(run, node)
    return end_left_to_next_owner(end) if is_left(run) else end


def _of_earlier(run: RunState, node: Node) -> StepEnd:
    """Return the end of a step whose latest attempt failed under an earlier owner."""
    before = run.tried[node.name]
    return StepEnd(Status.FAILURE, None, failed_before(run, node), before.failed, before.errors, before.failed)


def failed_before(run: RunState, node: Node) -> RunFailed:
    """Return the error of a step whose latest attempt failed under an earlier owner."""
    errors = run.tried[node.name].errors
    kind, message = errors[-1] if errors else ("Exception", "")
    why = f"run {run.run_id} failed at step {safe_repr(node.name)}: {kind}: {message}"
    return RunFailed(why, run=run.run_id, step=node.name, error_type=kind, error_message=message)
