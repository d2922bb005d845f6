"""Running steps: the work of one worker, and the attempts of one step or undo."""

from __future__ import annotations

import asyncio.exceptions
import contextvars
import math
from collections.abc import Callable
from types import CoroutineType
from typing import Any, NamedTuple

from ..context import AttemptContext, Context
from ..errors import AsyncStepInSyncEngine, NotSerializable, RunTimeout, StepCancelled, StepTimeout, safe_repr
from ..functions import is_async
from ..plan import Node
from ..retry import Pause, Retry, waits
from ..run import StepReport
from ..status import Status
from . import emit
from .effects import REQUEST_WORKER, AwaitAbandoned, Call, Delegate, GivenUp, Outcome, Program, Sleep, Stop
from .emit import EventScope, StepScope
from .inline import FirstAttempt, InlineProgress
from .ledger import Ledger
from .run_state import RunState

__all__ = ["StepEnd", "attempts", "awaited", "safely", "stopped", "work"]


class StepEnd:
    """How a step or an undo ended, after so many `attempts`: with `value` if its status is success, else with `error`.
    `scope` knows its times; None if nobody observes the run."""

    __slots__ = ("attempts", "error", "scope", "status", "value")

    def __init__(
        self,
        status: Status,
        value: object = None,
        error: BaseException | None = None,
        attempts: int = 0,
        scope: StepScope | None = None,
    ) -> None:
        self.status = status
        self.value = value
        self.error = error
        self.attempts = attempts
        self.scope = scope

    def report_to(self, report: StepReport) -> None:
        """Write down how it ended."""
        report.status, report.attempts, report.error = self.status, self.attempts, self.error
        if self.scope is not None:
            report.waited, report.ran, report.backed_off = self.scope.waited, self.scope.ran, self.scope.backoff


def work(run: RunState, node: Node | None, *, main: bool, progress: InlineProgress | None = None) -> Program[None]:
    """Run `node`, then what is ready after it, until nothing is. `progress`: how far the inline path came with `node`."""
    hands_over = main and not run.settings.caller_shares
    observed, timeless, done = run.observed, run.deadline is None, run.done
    ledger = run.ledger
    unheard = timeless and ledger is not None and not run.wanted  # only the store learns of the steps
    first = None if progress is None else progress.first
    while node is not None:
        if hands_over and first is None and _needs_a_worker(run, node):
            yield Delegate(node)  # before a worker is requested for the next ones: ties start in definition order
            return
        if run.ready and not run.waking and run.wants_help():
            yield REQUEST_WORKER
        if first is not None:
            if first.suspended is not None:
                first.outcome = yield first.suspended
        elif timeless and node.plain and (ledger is None or ledger.may_begin(run, node)):
            if ledger is not None and unheard:
                made = yield from ledger.run_plain(run, node)
                if not isinstance(made, FirstAttempt):
                    node = made
                    continue
                node, first = made.ctx.node, made
            # What _step and attempts do, less three generators: most steps succeed at once.
            elif observed:
                ctx = Context(run, node)
                scope, attempt = emit.plain_step_started(run, node)
                outcome = yield Call(node, node.fn, ctx, attempt.context.copy(), None, node.is_async)
                first = FirstAttempt(ctx, outcome, scope, attempt)
            else:
                ctx = Context(run, node)
                outcome = yield ctx
                if outcome[1] is None and type(outcome[0]) is not CoroutineType:
                    node = done(node, outcome[0])
                    continue
                first = FirstAttempt(ctx, outcome, None, None)
        if first is None:
            end = yield from _step(run, node)
        else:
            end, first = (yield from _plain_step(run, node, first)), None
        if end.error is not None:
            yield from _failed(run, node, end)
            return
        if end.status is Status.PENDING:  # the run stopped before it began
            run.put_back()
            return
        node = _done(run, node, end) if ledger is None else (yield from _recorded(run, ledger, node, end))


def _plain_step(run: RunState, node: Node, first: FirstAttempt) -> Program[StepEnd]:
    """The rest of a plain step whose first attempt was made."""
    scope, attempt, outcome = first.scope, first.attempt, first.outcome
    if scope is not None and attempt is not None and outcome[1] is None and type(outcome[0]) is not CoroutineType:
        emit.plain_step_finished(run, node, scope, attempt)
        return StepEnd(Status.SUCCESS, outcome[0], None, 1, scope)
    return (yield from _attempted(run, node, attempts(run, node, node.fn, node.retry, None, scope, first=first), scope))


def _attempted(run: RunState, node: Node, program: Program[StepEnd], scope: StepScope | None) -> Program[StepEnd]:
    """The attempts of a step, and the end of it."""
    end = yield from safely(program)
    if scope is not None:
        emit.step_finished(run, node, scope, end.status, end.attempts, end.error)
        end.scope = scope
    return end


def _step(run: RunState, node: Node) -> Program[StepEnd]:
    """All of a step that somebody watches, or that has limits, or that may be skipped."""
    end = _overdue(run)
    if node.when is not None and node.name not in run.was_in_doubt and end is None:  # that one was wanted
        end = (yield from _asked(run, node)) or _overdue(run)
        if run.stopped and (end is None or end.error is None):
            return StepEnd(Status.PENDING)
    if end is not None:
        return end
    if run.ledger is not None:
        end = yield from _began(run, run.ledger, node)
        if end is not None:
            return end
    scope = emit.step_started(run, node) if run.observed else None
    return (yield from _attempted(run, node, attempts(run, node, node.fn, node.retry, node.timeout, scope), scope))


def _began(run: RunState, ledger: Ledger, node: Node) -> Program[StepEnd | None]:
    """Have the store know that the step starts; returns the StepEnd of one that must not."""
    try:
        begins = yield from ledger.began(run, node, 1)
    except NotSerializable as error:  # what its when= wrote
        return StepEnd(Status.FAILURE, None, error, 0)
    return None if begins else StepEnd(Status.PENDING)


def _overdue(run: RunState) -> StepEnd | None:
    """The StepEnd of a step that does not start any more because the run's deadline has passed."""
    if run.deadline is None or run.settings.clock() < run.deadline:
        return None
    late = RunTimeout(f"run {run.run_id} of {safe_repr(run.workflow.name)} did not finish before its deadline.")
    return StepEnd(Status.FAILURE, None, late, 0)


def safely(program: Program[StepEnd]) -> Program[StepEnd]:
    """Whatever goes wrong in our own part of a step, in an object that the user handed in for one, fails that step: a run
    must neither hang nor end with its effects standing."""
    try:
        return (yield from program)
    except Exception as error:  # noqa: BLE001 - see above
        return StepEnd(Status.FAILURE, None, error, 1)


def _needs_a_worker(run: RunState, node: Node) -> bool:
    """Whether the step could not be given up if the caller's own task ran it: it has company, or a limit."""
    if run.running > 1 or run.ready:
        return True
    return node.is_async and (node.timeout is not None or node.step_timeout is not None or run.deadline is not None)


def _done(run: RunState, node: Node, end: StepEnd) -> Node | None:
    """The step succeeded or was skipped: unblock its dependents; returns the next node."""
    freed: list[Node] | None = [] if run.observed else None
    if end.status is Status.SKIPPED:
        run.report(node).status = Status.SKIPPED
        emit.step_skipped(run, node)
        after = run.skipped(node, freed)
    else:
        if run.observed or end.attempts > 1:
            end.report_to(run.report(node))
        if node.step.pivot:
            run.past_pivot = True
        after = run.done(node, end.value, freed)
    emit.steps_ready(run, freed)
    return after


def _recorded(run: RunState, ledger: Ledger, node: Node, end: StepEnd) -> Program[Node | None]:
    """The step succeeded or was skipped: have the store know, then continue as `_done` does."""
    end.report_to(run.report(node))
    if end.status is Status.SKIPPED:
        emit.step_skipped(run, node)
    elif node.step.pivot:
        run.past_pivot = True
    return (yield from ledger.ended(run, node, end))


def _failed(run: RunState, node: Node, end: StepEnd) -> Program[None]:
    """The step failed for good, and its run with it."""
    end.report_to(run.report(node))
    error = end.error if end.error is not None else StepCancelled()
    if end.status is Status.CANCELLED and not isinstance(error, StepCancelled):
        # A BaseException out of the step: it cancels the run, and is raised again when everything is undone.
        run.interrupt(error, node.name)
    raised = end.status is Status.FAILURE and not node.undo_attempted and node.name not in run.was_in_doubt
    first = run.failed(node, error, effect=end.attempts > 0 and not raised)
    yield from stopped(run, first)


def stopped(run: RunState, first: bool) -> Program[None]:
    """A step has failed and leaves its place; `first`: with it, the run has failed."""
    if run.interrupted:
        yield Stop(cancel=True)
    elif first:
        cancel = run.workflow.on_failure == "cancel"
        run.interrupted = run.interrupted or cancel
        yield Stop(cancel=cancel)
    if (
        run.ledger is not None and run.running > 1
    ):  # those may take long; a next owner must know that the run has failed
        yield from run.ledger.flush(run)
    run.put_back()


def _asked(run: RunState, node: Node) -> Program[StepEnd | None]:
    """Ask the step's `when=`; answers None for go, or the StepEnd of a step that is skipped or whose predicate failed."""
    assert node.when is not None  # noqa: S101 - the caller has looked
    ctx, asynchronous = Context(run, node), is_async(node.when)
    answer, error = yield Call(node, node.when, ctx, run.context.copy(), None, asynchronous, asks=True)
    if error is None and isinstance(answer, CoroutineType):
        answer, error = yield from awaited(run, node, ctx, answer, run.context.copy(), None, undo=False, asks=True)
    if error is None:
        return None if answer else StepEnd(Status.SKIPPED)
    status, failure = _judged(run, node, error, None, undo=False, asks=True)
    return StepEnd(status, None, failure, 0)


def attempts(
    run: RunState,
    node: Node,
    fn: Callable[..., Any],
    retry: Retry | None,
    timeout: float | None,
    scope: StepScope | None,
    *,
    undo: bool = False,
    first: FirstAttempt | None = None,
) -> Program[StepEnd]:
    """Attempt a step or an undo until it succeeds, no attempt is left, or the run stops. `scope`: None if nobody observes
    it. `first`: its first attempt, if that was made already."""
    settings = run.settings
    allowed = 1 if retry is None else retry.attempts
    step_timeout = None if undo else node.step_timeout
    timed = timeout is not None or step_timeout is not None or (run.deadline is not None and not undo)
    started = settings.clock() if timed or (retry is not None and retry.max_elapsed is not None) else None
    until = None if step_timeout is None or started is None else started + step_timeout
    coroutine = node.undo_is_async if undo else node.is_async
    ctx: Context
    attempt: EventScope | None = None
    earlier: BaseException | None = None
    number = 0
    while True:
        number += 1
        limit = _limit(run, timeout, until, undo=undo) if timed else None
        if number > 1 and limit is not None and limit.name == "deadline" and not limit.seconds:
            return _never_began(run, node, number, earlier, late=True)
        if first is not None:
            ctx, attempt = first.ctx, first.attempt
            value, error = first.outcome
            first = None
            context = (run.context if attempt is None else attempt.context).copy()
        else:
            ctx = AttemptContext(run, node, number, None if limit is None else limit.moment, undo=undo)
            if scope is None:
                context = run.context.copy()
            else:
                attempt = emit.attempt_started(run, node, scope, number, allowed, undo=undo)
                context = attempt.context.copy()
            seconds = None if limit is None else limit.seconds
            value, error = yield Call(node, fn, ctx, context, seconds, coroutine, undo)
        if error is None and isinstance(value, CoroutineType):
            left = None if limit is None else max(0.0, limit.moment - settings.clock())
            value, error = yield from awaited(run, node, ctx, value, context, left, undo=undo)
        if error is None:
            if attempt is not None and scope is not None:
                emit.attempt_finished(run, node, scope, attempt, number, allowed, Status.SUCCESS, None, undo=undo)
            return StepEnd(Status.SUCCESS, value, None, number)

        if isinstance(error, GivenUp) and not error.began:
            end = _never_began(run, node, number, earlier, late=error.timed_out)
            if attempt is not None and scope is not None:
                ended = end.error or StepCancelled(f"step {safe_repr(node.name)} did not begin: the run stopped.")
                emit.attempt_finished(run, node, scope, attempt, number, allowed, Status.CANCELLED, ended, undo=undo)
            return end
        status, failure = _judged(run, node, error, limit, undo=undo)
        earlier = failure
        if attempt is not None and scope is not None:
            emit.attempt_finished(run, node, scope, attempt, number, allowed, status, failure, undo=undo)
        if isinstance(error, GivenUp) and not error.over:
            run.give_up(error.call)
        pause = None
        if retry is not None and status is not Status.CANCELLED and (undo or not run.stopped):
            elapsed = 0.0 if started is None else settings.clock() - started
            pause = retry.after(number, failure, elapsed, settings.random)
        if pause is None or (status is Status.TIMEOUT and limit is not None and limit.name != "timeout"):
            return StepEnd(status, None, failure, number)
        if isinstance(error, GivenUp) and not error.over:
            # A second attempt beside the first could do the work twice: wait for the first to land.
            if error.call.landed is None:
                yield AwaitAbandoned(error.call, _patience(run, until, undo=undo))
            landed = error.call.landed
            if scope is not None:
                scope.ended = settings.clock()
            if landed is not None and landed[1] is None:
                run.forget(error.call)
                return StepEnd(Status.SUCCESS, landed[0], None, number)
            if landed is None or _too_late(run, retry, pause, started):
                return StepEnd(status, None, failure, number)
        over = yield from _paused(run, node, scope, number, allowed, pause, failure, until, undo=undo)
        if over:
            return StepEnd(status, None, failure, number)
        if isinstance(error, GivenUp):
            run.forget(error.call)


def _never_began(run: RunState, node: Node, number: int, earlier: BaseException | None, *, late: bool) -> StepEnd:
    """The end of a step whose attempt `number` was never begun: it waited for a thread until the deadline (`late`), or
    until the run stopped. Nothing of that attempt is in doubt. `earlier`: what the attempt before it raised."""
    if late:
        what = f"step {safe_repr(node.name)} was still waiting for a thread at the deadline of run {run.run_id}."
        return StepEnd(Status.FAILURE, None, RunTimeout(what), number - 1)
    if earlier is not None:
        return StepEnd(Status.FAILURE, None, earlier, number - 1)
    if run.ledger is not None:
        run.ledger.withdrawn(run, node)
    return StepEnd(Status.PENDING)


class Limit(NamedTuple):
    """How long an attempt may take: `seconds` from now, until `moment` (monotonic), because of `name`: timeout,
    step_timeout or deadline."""

    moment: float
    name: str
    seconds: float


def _limit(run: RunState, timeout: float | None, until: float | None, *, undo: bool) -> Limit:
    """The first of the limits that an attempt has."""
    now = run.settings.clock()
    limits = [
        (now + timeout, "timeout") if timeout is not None else None,
        (until, "step_timeout") if until is not None else None,
        (run.deadline, "deadline") if run.deadline is not None and not undo else None,
    ]
    moment, name = min(limit for limit in limits if limit is not None)
    return Limit(moment, name, max(0.0, moment - now))


def _too_late(run: RunState, retry: Retry | None, pause: Pause, started: float | None) -> bool:
    """Whether the retries' time is up, now that some has passed since they were decided."""
    if retry is None or retry.max_elapsed is None or started is None:
        return False
    return run.settings.clock() - started + pause.delay > retry.max_elapsed


def _left(run: RunState, until: float | None, *, undo: bool) -> float:
    """Seconds until the step's or the run's limit."""
    limits = [limit for limit in (until, None if undo else run.deadline) if limit is not None]
    return min(limits) - run.settings.clock() if limits else math.inf


def _patience(run: RunState, until: float | None, *, undo: bool) -> float:
    """Seconds to wait for a call that was given up to land."""
    return max(0.0, min(run.settings.grace, _left(run, until, undo=undo)))


def _judged(
    run: RunState, node: Node, error: BaseException | GivenUp, limit: Limit | None, *, undo: bool, asks: bool = False
) -> tuple[Status, BaseException]:
    """What an attempt's end that was not a result means: a status, and the error to tell and to raise. `asks`: it was no
    attempt, but the step's `when=`."""
    what = f"the undo of step {safe_repr(node.name)}" if undo else f"step {safe_repr(node.name)}"
    if isinstance(error, GivenUp):
        if not error.timed_out:
            return Status.CANCELLED, StepCancelled(f"{what} was cancelled while it ran.")
        if limit is None:  # only a simulation gives up what has no limit
            late: StepTimeout | RunTimeout = StepTimeout(f"{what} did not finish in time.")
        elif limit.name == "deadline":
            late = RunTimeout(f"{what} was still running at the deadline of run {run.run_id}.")
        else:
            allowed = _allowed(node, limit, undo=undo)
            late = StepTimeout(f"{what} did not finish within its {limit.name} of {allowed:g} s.")
        late.__cause__ = error.error
        return Status.TIMEOUT, late
    if isinstance(error, asyncio.exceptions.CancelledError):
        # Nobody cancelled it (the driver says GivenUp then). Bare, it would vanish in a TaskGroup.
        cancelled = StepCancelled(f"{what} raised CancelledError though nobody cancelled it.")
        cancelled.__cause__ = error
        error = cancelled
    if undo or (isinstance(error, Exception) and (asks or not run.interrupted)):
        return Status.FAILURE, error
    return Status.CANCELLED, error  # also of one that was told to end early: nobody knows how far it came


def _allowed(node: Node, limit: Limit, *, undo: bool) -> float:
    if undo:
        return (node.compensation and node.compensation.timeout) or 0.0
    return (node.step_timeout if limit.name == "step_timeout" else node.timeout) or 0.0


def _paused(
    run: RunState,
    node: Node,
    scope: StepScope | None,
    number: int,
    allowed: int,
    pause: Pause,
    failure: BaseException,
    until: float | None,
    *,
    undo: bool,
) -> Program[bool]:
    """Wait between two attempts. Answers True where no further attempt is to be made."""
    if run.stopped and not undo:
        return True
    if pause.delay >= _left(run, until, undo=undo):
        return True
    began = 0.0
    if scope is not None:
        began = emit.backoff_started(run, node, scope, number, allowed, pause, failure, undo=undo)
    if pause.delay and run.context.get(waits, True):
        yield Sleep(pause.delay, shielded=undo)
    if run.ledger is not None and undo and run.finished is None and not (yield from run.ledger.may_continue(run)):
        return True
    if run.ledger is not None and not undo and not run.stopped:
        yield from run.ledger.began(run, node, number + 1)
    if scope is not None:
        scope.ended = run.settings.clock()
        scope.backoff += scope.ended - began
    return run.stopped and not undo


def awaited(
    run: RunState,
    node: Node,
    ctx: Context,
    coroutine: Any,
    context: contextvars.Context,
    timeout: float | None,
    *,
    undo: bool,
    asks: bool = False,
) -> Program[Outcome]:
    """A plain function answered with a coroutine, as `lambda ctx: fetch(ctx)` does: await it where that can be done."""
    if not run.settings.runs_async:
        coroutine.close()
        return None, AsyncStepInSyncEngine(
            f"step {safe_repr(node.name)} answered with a coroutine, which Engine cannot await: run it on AsyncEngine."
        )

    def same(_: Context) -> Any:
        return coroutine

    answer: Outcome = yield Call(node, same, ctx, context, timeout, True, undo, asks)
    if isinstance(answer[1], GivenUp) and answer[1].over:
        coroutine.close()  # it may never have begun
        answer[1].began = True  # the function that made it has
    return answer
