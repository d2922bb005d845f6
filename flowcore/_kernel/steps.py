"""Running steps: the work of one worker, and the attempts of one step or undo."""

from __future__ import annotations

import asyncio.exceptions
import contextvars
import math
from collections.abc import Callable
from types import CoroutineType
from typing import Any, NamedTuple

from .._durable import checkpoints
from .._durable.fast_checkpoints import Made, stride
from ..context import AttemptContext, Context
from ..errors import AsyncStepInSyncEngine, NotSerializable, RunTimeout, StepCancelled, StepTimeout, safe_repr
from ..plan import Node, is_async
from ..retry import Pause, Retry, waits
from ..status import Status
from . import emit
from .effects import REQUEST_WORKER, AwaitAbandoned, Call, Delegate, GivenUp, Outcome, Program, Sleep, Stop
from .emit import Told
from .inline import InlineProgress
from .run_state import RunState

__all__ = ["End", "attempts", "awaited", "safely", "work"]


class End:
    """How the attempts of a step or an undo ended: `value` if status is success, else `error`."""

    __slots__ = ("attempts", "error", "status", "value")

    def __init__(self, status: Status, value: object, error: BaseException | None, attempts: int) -> None:
        self.status = status
        self.value = value
        self.error = error
        self.attempts = attempts


def work(run: RunState, node: Node | None, *, main: bool, begun: InlineProgress | None = None) -> Program[None]:
    """Run `node`, then whatever is ready after it, until nothing is. `begun`: how far a sprint has come with `node`."""
    hands_over = main and not run.settings.caller_shares
    plain = not run.observed and run.deadline is None
    watched = run.observed and run.deadline is None
    quiet = watched and run.changes is not None and not run.wanted
    done, clock = run.done, run.settings.clock
    while node is not None:
        if hands_over and _needs_a_helper(run, node) and (begun is None or begun.ctx is None):
            yield Delegate(node)  # before help for the next ones: ties go in definition order
            return
        if run.ready and not run.waking and run.wants_help():
            yield REQUEST_WORKER
        if begun is not None and begun.ctx is not None:
            node, begun = (yield from _go_on(run, node, begun)), None
            continue
        if plain and node.plain:
            ctx = Context(run, node)
            value, error = yield ctx
            if error is None and type(value) is not CoroutineType:
                node = done(node, value)
                continue
            end = yield from safely(attempts(run, node, node.fn, node.retry, None, None, begun=(ctx, value, error)))
        elif quiet and node.plain and checkpoints.begun_already(run, node):
            made = yield from stride(run, node)
            if not isinstance(made, Made):
                recorded, node, failure = made
                if failure is not None:
                    yield from _stopped(run, run.fail(failure, recorded.name))
                continue
            node, at, waited, ctx, value, error = made
            if error is None and type(value) is not CoroutineType:
                report = run.report(node)
                report.waited, report.ran, report.backed_off = waited, clock() - at, 0.0
                node = yield from _recorded(run, node, value)
                continue
            outer = Told(at, run.context)
            outer.waited = waited
            end = yield from safely(attempts(run, node, node.fn, node.retry, None, outer, begun=(ctx, value, error)))
            emit.step_finished(run, node, outer, end.status, end.attempts, end.error)
        elif watched and node.plain and (run.changes is None or checkpoints.begun_already(run, node)):
            # What _step and attempts do, less three generators: most watched steps go well at once.
            allowed, told = node.max_attempts, emit.step_started(run, node)
            first = emit.attempt_started(run, node, told, 1, allowed, undo=False)
            ctx = Context(run, node)
            value, error = yield Call(node, node.fn, ctx, first.context.copy(), None, node.is_async)
            if error is None and type(value) is not CoroutineType:
                emit.attempt_finished(run, node, told, first, 1, allowed, Status.SUCCESS, None, undo=False)
                emit.step_finished(run, node, told, Status.SUCCESS, 1, None)
                if run.changes is None:
                    node = _done(run, node, value, 1)
                else:
                    node = yield from _recorded(run, node, value)
                continue
            end = yield from safely(
                attempts(run, node, node.fn, node.retry, None, told, begun=(ctx, value, error), first=first)
            )
            emit.step_finished(run, node, told, end.status, end.attempts, end.error)
        else:
            end = yield from _step(run, node)
        if end.error is not None:
            yield from _failed(run, node, end)
            return
        if end.status is Status.PENDING:  # the run stopped before it began
            run.put_back()
            return
        if run.changes is not None:
            node = yield from _recorded(run, node, end.value, end.attempts, skipped=end.status is Status.SKIPPED)
        else:
            node = _skipped(run, node) if end.status is Status.SKIPPED else _done(run, node, end.value, end.attempts)


def _go_on(run: RunState, node: Node, begun: InlineProgress) -> Program[Node | None]:
    """Go on with a step whose first attempt a sprint has made, or begun; answers the next node."""
    assert begun.ctx is not None  # noqa: S101 - the caller has looked
    value, error = begun.value, begun.error
    if begun.suspended is not None:
        value, error = yield begun.suspended
    made, step = (begun.ctx, value, error), begun.outer
    end = yield from safely(attempts(run, node, node.fn, node.retry, None, step, begun=made, first=begun.told))
    if step is not None:
        emit.step_finished(run, node, step, end.status, end.attempts, end.error)
    if end.error is not None:
        yield from _failed(run, node, end)
        return None
    return _done(run, node, end.value, end.attempts)


def _step(run: RunState, node: Node) -> Program[End]:
    """All of a step that somebody watches, or that has limits, or that may be skipped."""
    end = _overdue(run)
    if node.when is not None and node.name not in run.was_in_doubt and end is None:  # that one was wanted
        end = (yield from _asked(run, node)) or _overdue(run)
        if run.stopped and (end is None or end.error is None):
            return End(Status.PENDING, None, None, 0)
    if end is not None:
        return end
    if run.changes is not None:
        end = yield from _begun(run, node)
        if end is not None:
            return end
    told = emit.step_started(run, node) if run.observed else None
    end = yield from safely(attempts(run, node, node.fn, node.retry, node.timeout, told))
    if told is not None:
        emit.step_finished(run, node, told, end.status, end.attempts, end.error)
    return end


def _begun(run: RunState, node: Node) -> Program[End | None]:
    """Have the store know that the step starts; answers the End of one that must not."""
    try:
        begins = yield from checkpoints.begin(run, node, 1)
    except NotSerializable as error:  # what its when= wrote
        return End(Status.FAILURE, None, error, 0)
    return None if begins else End(Status.PENDING, None, None, 0)


def _overdue(run: RunState) -> End | None:
    """The End of a step that does not start any more because the run's deadline has passed."""
    if run.deadline is None or run.settings.clock() < run.deadline:
        return None
    late = RunTimeout(f"run {run.run_id} of {safe_repr(run.workflow.name)} did not finish before its deadline.")
    return End(Status.FAILURE, None, late, 0)


def safely(program: Program[End]) -> Program[End]:
    """Whatever goes wrong in our own part of a step, in an object that the user handed in for one, fails that step: a run
    must neither hang nor end with its effects standing."""
    try:
        return (yield from program)
    except Exception as error:  # noqa: BLE001 - see above
        return End(Status.FAILURE, None, error, 1)


def _needs_a_helper(run: RunState, node: Node) -> bool:
    """Whether the step could not be given up if the caller's own task ran it: it has company, or a limit."""
    if run.running > 1 or run.ready:
        return True
    return node.is_async and (node.timeout is not None or node.step_timeout is not None or run.deadline is not None)


def _done(run: RunState, node: Node, value: object, attempts: int) -> Node | None:
    if run.observed or attempts > 1:
        report = run.report(node)
        report.status, report.attempts = Status.SUCCESS, attempts
    if node.step.pivot:
        run.past_pivot = True
    freed: list[Node] | None = [] if run.observed else None
    after = run.done(node, value, freed)
    emit.steps_ready(run, freed)
    return after


def _skipped(run: RunState, node: Node) -> Node | None:
    run.report(node).status = Status.SKIPPED
    emit.step_skipped(run, node)
    freed: list[Node] | None = [] if run.observed else None
    after = run.skipped(node, freed)
    emit.steps_ready(run, freed)
    return after


def _recorded(
    run: RunState, node: Node, value: object, attempts: int = 1, *, skipped: bool = False
) -> Program[Node | None]:
    """The step is done or was skipped: have the store know, then go on."""
    report = run.report(node)
    report.status, report.attempts = Status.SKIPPED if skipped else Status.SUCCESS, attempts
    if skipped:
        emit.step_skipped(run, node)
    elif node.step.pivot:
        run.past_pivot = True
    after, failure = yield from checkpoints.ended(run, node, value, skipped=skipped)
    if failure is not None:  # its result cannot be stored; what it did stands, and is undone with the rest
        yield from _stopped(run, run.fail(failure, node.name))
    return after


def _failed(run: RunState, node: Node, end: End) -> Program[None]:
    """The step failed for good, and its run with it."""
    report = run.report(node)
    report.status, report.attempts, report.error = end.status, end.attempts, end.error
    error = end.error if end.error is not None else StepCancelled()
    if end.status is Status.CANCELLED and not isinstance(error, StepCancelled):
        # A BaseException out of the step: it cancels the run, and is raised again when everything is undone.
        run.interrupt(error, node.name)
    raised = end.status is Status.FAILURE and not node.undo_attempted and node.name not in run.was_in_doubt
    first = run.failed(node, error, effect=end.attempts > 0 and not raised)
    yield from _stopped(run, first)


def _stopped(run: RunState, first: bool) -> Program[None]:
    """A step has failed and leaves its place; `first`: with it, the run has failed."""
    if run.interrupted:
        yield Stop(cancel=True)
    elif first:
        cancel = run.workflow.on_failure == "cancel"
        run.interrupted = run.interrupted or cancel
        yield Stop(cancel=cancel)
    if (
        run.changes is not None and run.running > 1
    ):  # what goes on may take its time; whoever takes over then must not go on
        yield from checkpoints.flush(run)
    run.put_back()


def _asked(run: RunState, node: Node) -> Program[End | None]:
    """Ask the step's `when=`; answers None for go, or the End of a step that is skipped or whose predicate failed."""
    assert node.when is not None  # noqa: S101 - the caller has looked
    ctx, asynchronous = Context(run, node), is_async(node.when)
    answer, error = yield Call(node, node.when, ctx, run.context.copy(), None, asynchronous, asks=True)
    if error is None and isinstance(answer, CoroutineType):
        answer, error = yield from awaited(run, node, ctx, answer, run.context.copy(), None, undo=False, asks=True)
    if error is None:
        return None if answer else End(Status.SKIPPED, None, None, 0)
    status, failure = _judged(run, node, error, None, undo=False, asks=True)
    return End(status, None, failure, 0)


def attempts(
    run: RunState,
    node: Node,
    fn: Callable[..., Any],
    retry: Retry | None,
    timeout: float | None,
    outer: Told | None,
    *,
    undo: bool = False,
    begun: tuple[Context, Any, BaseException | GivenUp | None] | None = None,
    first: Told | None = None,
) -> Program[End]:
    """Attempt until it goes well, or no attempt is left, or the run stops.

    `outer`: what was told of the step, None where nobody listens. `begun`: the first attempt, made already, and `first`:
    what was told of it.
    """
    settings = run.settings
    allowed = 1 if retry is None else retry.attempts
    step_timeout = None if undo else node.step_timeout
    timed = timeout is not None or step_timeout is not None or (run.deadline is not None and not undo)
    started = settings.clock() if timed or (retry is not None and retry.max_elapsed is not None) else None
    until = None if step_timeout is None or started is None else started + step_timeout
    coroutine = node.undo_is_async if undo else node.is_async
    ctx: Context
    told: Told | None = None
    number = 0
    while True:
        number += 1
        limit = _limit(run, timeout, until, undo=undo) if timed else None
        if begun is not None:
            ctx, value, error = begun
            begun, told = None, first
            context = (run.context if told is None else told.context).copy()
        else:
            ctx = AttemptContext(run, node, number, None if limit is None else limit.moment, undo=undo)
            if outer is None:
                context = run.context.copy()
            else:
                told = emit.attempt_started(run, node, outer, number, allowed, undo=undo)
                context = told.context.copy()
            seconds = None if limit is None else limit.seconds
            value, error = yield Call(node, fn, ctx, context, seconds, coroutine, undo)
        if error is None and isinstance(value, CoroutineType):
            left = None if limit is None else max(0.0, limit.moment - settings.clock())
            value, error = yield from awaited(run, node, ctx, value, context, left, undo=undo)
        if error is None:
            if told is not None and outer is not None:
                emit.attempt_finished(run, node, outer, told, number, allowed, Status.SUCCESS, None, undo=undo)
            return End(Status.SUCCESS, value, None, number)

        status, failure = _judged(run, node, error, limit, undo=undo)
        if told is not None and outer is not None:
            emit.attempt_finished(run, node, outer, told, number, allowed, status, failure, undo=undo)
        elif outer is not None:  # the first attempt of a step that only the store hears of
            outer.ended = settings.clock()
        if isinstance(error, GivenUp) and not error.over:
            run.give_up(error.call)
        pause = None
        if retry is not None and status is not Status.CANCELLED and (undo or not run.stopped):
            elapsed = 0.0 if started is None else settings.clock() - started
            pause = retry.after(number, failure, elapsed, settings.random)
        if pause is None or (status is Status.TIMEOUT and limit is not None and limit.name != "timeout"):
            return End(status, None, failure, number)
        if isinstance(error, GivenUp) and not error.over:
            # A second attempt beside the first could do the work twice: wait for the first to land.
            if error.call.landed is None:
                yield AwaitAbandoned(error.call, _patience(run, until, undo=undo))
            landed = error.call.landed
            if outer is not None:
                outer.ended = settings.clock()
            if landed is not None and landed[1] is None:
                run.forget(error.call)
                return End(Status.SUCCESS, landed[0], None, number)
            if landed is None or _too_late(run, retry, pause, started):
                return End(status, None, failure, number)
        over = yield from _paused(run, node, outer, number, allowed, pause, failure, until, undo=undo)
        if over:
            return End(status, None, failure, number)
        if isinstance(error, GivenUp):
            run.forget(error.call)


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
    outer: Told | None,
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
    if outer is not None:
        began = emit.backoff_started(run, node, outer, number, allowed, pause, failure, undo=undo)
    if pause.delay and run.context.get(waits, True):
        yield Sleep(pause.delay, shielded=undo)
    if run.changes is not None and undo and run.finished is None and not (yield from checkpoints.still_ours(run)):
        return True
    if run.changes is not None and not undo and not run.stopped:
        yield from checkpoints.begin(run, node, number + 1)
    if outer is not None:
        outer.ended = run.settings.clock()
        outer.backoff += outer.ended - began
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
    return answer
