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
from ..errors import AsyncStepInSyncEngine, NotSerializable, RunTimeout, StepCancelled, StepTimeout, shown
from ..plan import Node, is_async
from ..retry import Pause, Retry, waits
from ..status import Status
from . import emit
from .effects import HELP, Call, GivenUp, Hand, Landing, Outcome, Program, Sleep, Stop
from .emit import Told
from .inline import Begun
from .run_state import Execution

__all__ = ["End", "attempts", "awaited", "safely", "work"]


class End:
    """How the attempts of a step or an undo ended: `value` if status is success, else `error`."""

    __slots__ = ("attempts", "error", "status", "value")

    def __init__(self, status: Status, value: object, error: BaseException | None, attempts: int) -> None:
        self.status = status
        self.value = value
        self.error = error
        self.attempts = attempts


def work(x: Execution, node: Node | None, *, main: bool, begun: Begun | None = None) -> Program[None]:
    """Run `node`, then whatever is ready after it, until nothing is. `begun`: how far a sprint has come with `node`."""
    hands_over = main and not x.settings.caller_shares
    plain = not x.observed and x.deadline is None
    watched = x.observed and x.deadline is None
    quiet = watched and x.changes is not None and not x.wanted
    done, clock = x.done, x.settings.clock
    while node is not None:
        if hands_over and _needs_a_helper(x, node) and (begun is None or begun.ctx is None):
            yield Hand(node)  # before help for the next ones: ties go in definition order
            return
        if x.ready and not x.waking and x.wants_help():
            yield HELP
        if begun is not None and begun.ctx is not None:
            node, begun = (yield from _go_on(x, node, begun)), None
            continue
        if plain and node.plain:
            ctx = Context(x, node)
            value, error = yield ctx
            if error is None and type(value) is not CoroutineType:
                node = done(node, value)
                continue
            end = yield from safely(attempts(x, node, node.fn, node.retry, None, None, begun=(ctx, value, error)))
        elif quiet and node.plain and checkpoints.begun_already(x, node):
            made = yield from stride(x, node)
            if not isinstance(made, Made):
                recorded, node, failure = made
                if failure is not None:
                    yield from _stopped(x, x.fail(failure, recorded.name))
                continue
            node, at, waited, ctx, value, error = made
            if error is None and type(value) is not CoroutineType:
                report = x.report(node)
                report.waited, report.ran, report.backed_off = waited, clock() - at, 0.0
                node = yield from _recorded(x, node, value)
                continue
            outer = Told(at, x.context)
            outer.waited = waited
            end = yield from safely(attempts(x, node, node.fn, node.retry, None, outer, begun=(ctx, value, error)))
            emit.step_finished(x, node, outer, end.status, end.attempts, end.error)
        elif watched and node.plain and (x.changes is None or checkpoints.begun_already(x, node)):
            # What _step and attempts do, less three generators: most watched steps go well at once.
            allowed, told = node.max_attempts, emit.step_started(x, node)
            first = emit.attempt_started(x, node, told, 1, allowed, undo=False)
            ctx = Context(x, node)
            value, error = yield Call(node, node.fn, ctx, first.context.copy(), None, node.is_async)
            if error is None and type(value) is not CoroutineType:
                emit.attempt_finished(x, node, told, first, 1, allowed, Status.SUCCESS, None, undo=False)
                emit.step_finished(x, node, told, Status.SUCCESS, 1, None)
                if x.changes is None:
                    node = _done(x, node, value, 1)
                else:
                    node = yield from _recorded(x, node, value)
                continue
            end = yield from safely(
                attempts(x, node, node.fn, node.retry, None, told, begun=(ctx, value, error), first=first)
            )
            emit.step_finished(x, node, told, end.status, end.attempts, end.error)
        else:
            end = yield from _step(x, node)
        if end.error is not None:
            yield from _failed(x, node, end)
            return
        if end.status is Status.PENDING:  # the run stopped before it began
            x.put_back()
            return
        if x.changes is not None:
            node = yield from _recorded(x, node, end.value, end.attempts, skipped=end.status is Status.SKIPPED)
        else:
            node = _skipped(x, node) if end.status is Status.SKIPPED else _done(x, node, end.value, end.attempts)


def _go_on(x: Execution, node: Node, begun: Begun) -> Program[Node | None]:
    """Go on with a step whose first attempt a sprint has made, or begun; answers the next node."""
    assert begun.ctx is not None  # noqa: S101 - the caller has looked
    value, error = begun.value, begun.error
    if begun.suspended is not None:
        value, error = yield begun.suspended
    made, step = (begun.ctx, value, error), begun.outer
    end = yield from safely(attempts(x, node, node.fn, node.retry, None, step, begun=made, first=begun.told))
    if step is not None:
        emit.step_finished(x, node, step, end.status, end.attempts, end.error)
    if end.error is not None:
        yield from _failed(x, node, end)
        return None
    return _done(x, node, end.value, end.attempts)


def _step(x: Execution, node: Node) -> Program[End]:
    """All of a step that somebody watches, or that has limits, or that may be skipped."""
    end = _overdue(x)
    if node.when is not None and node.name not in x.was_in_doubt and end is None:  # that one was wanted
        end = (yield from _asked(x, node)) or _overdue(x)
        if x.stopped and (end is None or end.error is None):
            return End(Status.PENDING, None, None, 0)
    if end is not None:
        return end
    if x.changes is not None:
        end = yield from _begun(x, node)
        if end is not None:
            return end
    told = emit.step_started(x, node) if x.observed else None
    end = yield from safely(attempts(x, node, node.fn, node.retry, node.timeout, told))
    if told is not None:
        emit.step_finished(x, node, told, end.status, end.attempts, end.error)
    return end


def _begun(x: Execution, node: Node) -> Program[End | None]:
    """Have the store know that the step starts; answers the End of one that must not."""
    try:
        begins = yield from checkpoints.begin(x, node, 1)
    except NotSerializable as error:  # what its when= wrote
        return End(Status.FAILURE, None, error, 0)
    return None if begins else End(Status.PENDING, None, None, 0)


def _overdue(x: Execution) -> End | None:
    """The End of a step that does not start any more because the run's deadline has passed."""
    if x.deadline is None or x.settings.clock() < x.deadline:
        return None
    late = RunTimeout(f"run {x.run_id} of {shown(x.workflow.name)} did not finish before its deadline.")
    return End(Status.FAILURE, None, late, 0)


def safely(program: Program[End]) -> Program[End]:
    """Whatever goes wrong in our own part of a step, in an object that the user handed in for one, fails that step: a run
    must neither hang nor end with its effects standing."""
    try:
        return (yield from program)
    except Exception as error:  # noqa: BLE001 - see above
        return End(Status.FAILURE, None, error, 1)


def _needs_a_helper(x: Execution, node: Node) -> bool:
    """Whether the step could not be given up if the caller's own task ran it: it has company, or a limit."""
    if x.running > 1 or x.ready:
        return True
    return node.is_async and (node.timeout is not None or node.step_timeout is not None or x.deadline is not None)


def _done(x: Execution, node: Node, value: object, attempts: int) -> Node | None:
    if x.observed or attempts > 1:
        report = x.report(node)
        report.status, report.attempts = Status.SUCCESS, attempts
    if node.step.pivot:
        x.past_pivot = True
    freed: list[Node] | None = [] if x.observed else None
    after = x.done(node, value, freed)
    emit.steps_ready(x, freed)
    return after


def _skipped(x: Execution, node: Node) -> Node | None:
    x.report(node).status = Status.SKIPPED
    emit.step_skipped(x, node)
    freed: list[Node] | None = [] if x.observed else None
    after = x.skipped(node, freed)
    emit.steps_ready(x, freed)
    return after


def _recorded(
    x: Execution, node: Node, value: object, attempts: int = 1, *, skipped: bool = False
) -> Program[Node | None]:
    """The step is done or was skipped: have the store know, then go on."""
    report = x.report(node)
    report.status, report.attempts = Status.SKIPPED if skipped else Status.SUCCESS, attempts
    if skipped:
        emit.step_skipped(x, node)
    elif node.step.pivot:
        x.past_pivot = True
    after, failure = yield from checkpoints.ended(x, node, value, skipped=skipped)
    if failure is not None:  # its result cannot be stored; what it did stands, and is undone with the rest
        yield from _stopped(x, x.fail(failure, node.name))
    return after


def _failed(x: Execution, node: Node, end: End) -> Program[None]:
    """The step failed for good, and its run with it."""
    report = x.report(node)
    report.status, report.attempts, report.error = end.status, end.attempts, end.error
    error = end.error if end.error is not None else StepCancelled()
    if end.status is Status.CANCELLED and not isinstance(error, StepCancelled):
        # A BaseException out of the step: it cancels the run, and is raised again when everything is undone.
        x.interrupt(error, node.name)
    raised = end.status is Status.FAILURE and not node.undo_attempted and node.name not in x.was_in_doubt
    first = x.failed(node, error, effect=end.attempts > 0 and not raised)
    yield from _stopped(x, first)


def _stopped(x: Execution, first: bool) -> Program[None]:
    """A step has failed and leaves its place; `first`: with it, the run has failed."""
    if x.interrupted:
        yield Stop(cancel=True)
    elif first:
        cancel = x.workflow.on_failure == "cancel"
        x.interrupted = x.interrupted or cancel
        yield Stop(cancel=cancel)
    if (
        x.changes is not None and x.running > 1
    ):  # what goes on may take its time; whoever takes over then must not go on
        yield from checkpoints.flush(x)
    x.put_back()


def _asked(x: Execution, node: Node) -> Program[End | None]:
    """Ask the step's `when=`; answers None for go, or the End of a step that is skipped or whose predicate failed."""
    assert node.when is not None  # noqa: S101 - the caller has looked
    ctx, asynchronous = Context(x, node), is_async(node.when)
    answer, error = yield Call(node, node.when, ctx, x.context.copy(), None, asynchronous, asks=True)
    if error is None and isinstance(answer, CoroutineType):
        answer, error = yield from awaited(x, node, ctx, answer, x.context.copy(), None, undo=False, asks=True)
    if error is None:
        return None if answer else End(Status.SKIPPED, None, None, 0)
    status, failure = _judged(x, node, error, None, undo=False, asks=True)
    return End(status, None, failure, 0)


def attempts(
    x: Execution,
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
    settings = x.settings
    allowed = 1 if retry is None else retry.attempts
    step_timeout = None if undo else node.step_timeout
    timed = timeout is not None or step_timeout is not None or (x.deadline is not None and not undo)
    started = settings.clock() if timed or (retry is not None and retry.max_elapsed is not None) else None
    until = None if step_timeout is None or started is None else started + step_timeout
    coroutine = node.undo_is_async if undo else node.is_async
    ctx: Context
    told: Told | None = None
    number = 0
    while True:
        number += 1
        limit = _limit(x, timeout, until, undo=undo) if timed else None
        if begun is not None:
            ctx, value, error = begun
            begun, told = None, first
            context = (x.context if told is None else told.context).copy()
        else:
            ctx = AttemptContext(x, node, number, None if limit is None else limit.moment, undo=undo)
            if outer is None:
                context = x.context.copy()
            else:
                told = emit.attempt_started(x, node, outer, number, allowed, undo=undo)
                context = told.context.copy()
            seconds = None if limit is None else limit.seconds
            value, error = yield Call(node, fn, ctx, context, seconds, coroutine, undo)
        if error is None and isinstance(value, CoroutineType):
            left = None if limit is None else max(0.0, limit.moment - settings.clock())
            value, error = yield from awaited(x, node, ctx, value, context, left, undo=undo)
        if error is None:
            if told is not None and outer is not None:
                emit.attempt_finished(x, node, outer, told, number, allowed, Status.SUCCESS, None, undo=undo)
            return End(Status.SUCCESS, value, None, number)

        status, failure = _judged(x, node, error, limit, undo=undo)
        if told is not None and outer is not None:
            emit.attempt_finished(x, node, outer, told, number, allowed, status, failure, undo=undo)
        elif outer is not None:  # the first attempt of a step that only the store hears of
            outer.ended = settings.clock()
        if isinstance(error, GivenUp) and not error.over:
            x.give_up(error.call)
        pause = None
        if retry is not None and status is not Status.CANCELLED and (undo or not x.stopped):
            elapsed = 0.0 if started is None else settings.clock() - started
            pause = retry.after(number, failure, elapsed, settings.random)
        if pause is None or (status is Status.TIMEOUT and limit is not None and limit.name != "timeout"):
            return End(status, None, failure, number)
        if isinstance(error, GivenUp) and not error.over:
            # A second attempt beside the first could do the work twice: wait for the first to land.
            if error.call.landed is None:
                yield Landing(error.call, _patience(x, until, undo=undo))
            landed = error.call.landed
            if outer is not None:
                outer.ended = settings.clock()
            if landed is not None and landed[1] is None:
                x.forget(error.call)
                return End(Status.SUCCESS, landed[0], None, number)
            if landed is None or _too_late(x, retry, pause, started):
                return End(status, None, failure, number)
        over = yield from _paused(x, node, outer, number, allowed, pause, failure, until, undo=undo)
        if over:
            return End(status, None, failure, number)
        if isinstance(error, GivenUp):
            x.forget(error.call)


class Limit(NamedTuple):
    """How long an attempt may take: `seconds` from now, until `moment` (monotonic), because of `name`: timeout,
    step_timeout or deadline."""

    moment: float
    name: str
    seconds: float


def _limit(x: Execution, timeout: float | None, until: float | None, *, undo: bool) -> Limit:
    """The first of the limits that an attempt has."""
    now = x.settings.clock()
    limits = [
        (now + timeout, "timeout") if timeout is not None else None,
        (until, "step_timeout") if until is not None else None,
        (x.deadline, "deadline") if x.deadline is not None and not undo else None,
    ]
    moment, name = min(limit for limit in limits if limit is not None)
    return Limit(moment, name, max(0.0, moment - now))


def _too_late(x: Execution, retry: Retry | None, pause: Pause, started: float | None) -> bool:
    """Whether the retries' time is up, now that some has passed since they were decided."""
    if retry is None or retry.max_elapsed is None or started is None:
        return False
    return x.settings.clock() - started + pause.delay > retry.max_elapsed


def _left(x: Execution, until: float | None, *, undo: bool) -> float:
    """Seconds until the step's or the run's limit."""
    limits = [limit for limit in (until, None if undo else x.deadline) if limit is not None]
    return min(limits) - x.settings.clock() if limits else math.inf


def _patience(x: Execution, until: float | None, *, undo: bool) -> float:
    """Seconds to wait for a call that was given up to land."""
    return max(0.0, min(x.settings.grace, _left(x, until, undo=undo)))


def _judged(
    x: Execution, node: Node, error: BaseException | GivenUp, limit: Limit | None, *, undo: bool, asks: bool = False
) -> tuple[Status, BaseException]:
    """What an attempt's end that was not a result means: a status, and the error to tell and to raise. `asks`: it was no
    attempt, but the step's `when=`."""
    what = f"the undo of step {shown(node.name)}" if undo else f"step {shown(node.name)}"
    if isinstance(error, GivenUp):
        if not error.timed_out:
            return Status.CANCELLED, StepCancelled(f"{what} was cancelled while it ran.")
        if limit is None:  # only a simulation gives up what has no limit
            late: StepTimeout | RunTimeout = StepTimeout(f"{what} did not finish in time.")
        elif limit.name == "deadline":
            late = RunTimeout(f"{what} was still running at the deadline of run {x.run_id}.")
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
    if undo or (isinstance(error, Exception) and (asks or not x.interrupted)):
        return Status.FAILURE, error
    return Status.CANCELLED, error  # also of one that was told to end early: nobody knows how far it came


def _allowed(node: Node, limit: Limit, *, undo: bool) -> float:
    if undo:
        return (node.compensation and node.compensation.timeout) or 0.0
    return (node.step_timeout if limit.name == "step_timeout" else node.timeout) or 0.0


def _paused(
    x: Execution,
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
    if x.stopped and not undo:
        return True
    if pause.delay >= _left(x, until, undo=undo):
        return True
    began = 0.0
    if outer is not None:
        began = emit.backoff_started(x, node, outer, number, allowed, pause, failure, undo=undo)
    if pause.delay and x.context.get(waits, True):
        yield Sleep(pause.delay, shielded=undo)
    if x.changes is not None and undo and x.finished is None and not (yield from checkpoints.still_ours(x)):
        return True
    if x.changes is not None and not undo and not x.stopped:
        yield from checkpoints.begin(x, node, number + 1)
    if outer is not None:
        outer.ended = x.settings.clock()
        outer.backoff += outer.ended - began
    return x.stopped and not undo


def awaited(
    x: Execution,
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
    if not x.settings.runs_async:
        coroutine.close()
        return None, AsyncStepInSyncEngine(
            f"step {shown(node.name)} answered with a coroutine, which Engine cannot await: run it on AsyncEngine."
        )

    def same(_: Context) -> Any:
        return coroutine

    answer: Outcome = yield Call(node, same, ctx, context, timeout, True, undo, asks)
    if isinstance(answer[1], GivenUp) and answer[1].over:
        coroutine.close()  # it may never have begun
    return answer
