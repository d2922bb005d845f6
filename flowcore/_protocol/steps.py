"""Running steps: the work of one worker, and the attempts of one step or undo."""

from __future__ import annotations

import asyncio.exceptions
from collections.abc import Callable
from types import CoroutineType
from typing import Any, Final

from ..context import Context
from ..errors import AsyncStepInSyncEngine, RunTimeout, StepCancelled, StepTimeout, shown
from ..plan import Node, is_async
from ..retry import Pause, Retry
from ..status import Status
from . import tell
from .effects import HELP, TIMED_OUT, Call, Hand, Landing, Program, Signal, Sleep, Stop
from .execution import Execution
from .tell import Told

__all__ = ["End", "attempts", "work"]

_NO_TOLD: Final[Any] = None


class End:
    """How the attempts of a step or an undo ended: `value` if status is success, else `error`."""

    __slots__ = ("attempts", "error", "status", "value")

    def __init__(self, status: Status, value: object, error: BaseException | None, attempts: int) -> None:
        self.status = status
        self.value = value
        self.error = error
        self.attempts = attempts


def work(x: Execution, node: Node | None, *, main: bool) -> Program[None]:
    """Run `node`, then whatever is ready after it, until nothing is."""
    while node is not None:
        if x.ready and x.wants_help():
            yield HELP
        if main and not x.settings.caller_shares and _needs_a_helper(x, node):
            yield Hand(node)
            return
        if x.deadline is not None and x.settings.clock() >= x.deadline:
            node = yield from _failed(x, node, End(Status.FAILURE, None, _overdue(x), 0))
            continue
        if node.when is not None:
            goes = yield from _asked(x, node)
            if goes is not True:
                node = (yield from _failed(x, node, goes)) if isinstance(goes, End) else _skipped(x, node)
                continue
        told = tell.step_started(x, node) if x.observed else _NO_TOLD
        end = yield from attempts(x, node, node.fn, node.retry, node.timeout, told, undo=False)
        if told is not None:
            tell.step_finished(x, node, told, end.status, end.attempts, end.error)
        if end.attempts > 1:
            x.report(node).attempts = end.attempts
        if end.error is None:
            node = _done(x, node, end.value)
        else:
            node = yield from _failed(x, node, end)


def _needs_a_helper(x: Execution, node: Node) -> bool:
    """Whether the step could not be given up if the caller's own task ran it: it has company, or a limit."""
    if x.running > 1 or x.ready:
        return True
    return node.is_async and (node.timeout is not None or node.step_timeout is not None or x.deadline is not None)


def _overdue(x: Execution) -> RunTimeout:
    return RunTimeout(f"run {x.run_id} of {shown(x.workflow.name)} did not finish before its deadline.")


def _done(x: Execution, node: Node, value: object) -> Node | None:
    report = x.reports.get(node.name)
    if report is not None:
        report.status, report.attempts = Status.SUCCESS, report.attempts or 1
    if node.step.pivot:
        x.past_pivot = True
    if not x.observed:
        return x.done(node, value, None)
    freed: list[Node] = []
    after = x.done(node, value, freed)
    tell.steps_ready(x, freed)
    return after


def _skipped(x: Execution, node: Node) -> Node | None:
    x.report(node).status = Status.SKIPPED
    tell.step_skipped(x, node)
    freed: list[Node] = []
    after = x.skipped(node, freed)
    tell.steps_ready(x, freed)
    return after


def _failed(x: Execution, node: Node, end: End) -> Program[None]:
    """The step failed for good, and its run with it: no node follows."""
    report = x.report(node)
    report.status, report.attempts, report.error = end.status, end.attempts, end.error
    unknown = end.status is not Status.FAILURE
    error = end.error if end.error is not None else StepCancelled()
    if end.status is Status.CANCELLED and not isinstance(error, StepCancelled):
        # A BaseException out of the step: it cancels the run, and is raised again when everything is undone.
        x.interrupt(error, node.name)
    first = x.failed(node, error, effect=unknown or (node.undo_attempted and end.attempts > 0))
    if x.interrupted:
        yield Stop(cancel=True)
    elif first:
        cancel = x.workflow.on_failure == "cancel"
        x.interrupted = cancel
        yield Stop(cancel=cancel)


def _asked(x: Execution, node: Node) -> Program[bool | End]:
    """Ask the step's `when=`; answers its decision, or the End of a step whose predicate failed."""
    assert node.when is not None  # noqa: S101 - the caller has looked
    ctx = Context(x, node.name, 1, x.deadline)
    call = Call(node, node.when, ctx, x.context.copy(), None, is_async(node.when))
    answer, error = yield from _finished(x, call)
    if error is None:
        return bool(answer)
    if isinstance(error, Signal) or not isinstance(error, Exception):
        cancelled = StepCancelled(f"the when= of step {shown(node.name)} was cancelled.")
        return End(Status.CANCELLED, None, cancelled if isinstance(error, Signal) else error, 0)
    return End(Status.FAILURE, None, error, 0)


def attempts(
    x: Execution,
    node: Node,
    fn: Callable[..., Any],
    retry: Retry | None,
    timeout: float | None,
    outer: Told | None,
    *,
    undo: bool,
) -> Program[End]:
    """Attempt until it goes well, or no attempt is left, or the run stops."""
    settings = x.settings
    allowed = 1 if retry is None else retry.attempts
    step_timeout = None if undo else node.step_timeout
    timed = timeout is not None or step_timeout is not None or (x.deadline is not None and not undo)
    began = settings.clock() if timed or (retry is not None and retry.max_elapsed is not None) else None
    until = None if step_timeout is None or began is None else began + step_timeout
    coroutine = node.is_async if fn is node.fn else is_async(fn)
    number = 0
    while True:
        number += 1
        limit, deadline, over = _limit(x, node, timeout, until, undo=undo) if timed else (None, None, None)
        ctx = Context(x, node.name, number, deadline, undo=undo)
        if outer is None:
            told, context = _NO_TOLD, x.context.copy()
        else:
            told = tell.attempt_started(x, node, outer, number, allowed, undo=undo)
            context = told.context.copy()
        call = Call(node, fn, ctx, context, limit, coroutine, undo)
        value, error = yield call
        if error is None and type(value) is CoroutineType:
            value, error = yield from _awaited(x, call, value)
        if error is None:
            if told is not None:
                tell.attempt_finished(x, node, told, number, allowed, Status.SUCCESS, None, undo=undo)
            return End(Status.SUCCESS, value, None, number)

        status, failure = _judged(x, node, error, over, undo=undo)
        if told is not None:
            tell.attempt_finished(x, node, told, number, allowed, status, failure, undo=undo)
        if isinstance(error, Signal) and call.landed is None:
            call.given_up = settings.clock()
            x.abandoned.append(call)
        pause = None
        if retry is not None and status is not Status.CANCELLED and (undo or not x.stopped):
            elapsed = 0.0 if began is None else settings.clock() - began
            pause = retry.after(number, failure, elapsed, settings.random)
        if pause is None or (over is not None and status is Status.TIMEOUT and over != "timeout"):
            return End(status, None, failure, number)
        if error is TIMED_OUT:
            # A second attempt beside the first could do the work twice: wait for it to land.
            landed = call.landed or (yield Landing(call, settings.grace))
            if landed is None:
                return End(status, None, failure, number)
            if landed[1] is None:
                return End(Status.SUCCESS, landed[0], None, number)
        cut = yield from _waited(x, node, outer, number, allowed, pause, failure, until, undo=undo)
        if cut:
            return End(status, None, failure, number)


def _limit(
    x: Execution, node: Node, timeout: float | None, until: float | None, *, undo: bool
) -> tuple[float | None, float | None, str | None]:
    """Seconds this attempt may take, when that is, and which limit it is: timeout, step_timeout or deadline."""
    now = x.settings.clock()
    limits = [
        (now + timeout, "timeout") if timeout is not None else None,
        (until, "step_timeout") if until is not None else None,
        (x.deadline, "deadline") if x.deadline is not None and not undo else None,
    ]
    moment, name = min((limit for limit in limits if limit is not None), default=(None, None))
    return (None if moment is None else max(0.0, moment - now)), moment, name


def _judged(
    x: Execution, node: Node, error: BaseException | Signal, over: str | None, *, undo: bool
) -> tuple[Status, BaseException]:
    """What an attempt's end that was not a result means: a status, and the error to tell and to raise."""
    what = f"the undo of step {shown(node.name)}" if undo else f"step {shown(node.name)}"
    if error is TIMED_OUT:
        if over == "deadline":
            return Status.TIMEOUT, RunTimeout(f"{what} was still running at the deadline of its run.")
        limit = node.step_timeout if over == "step_timeout" else (node.compensation.timeout if undo and node.compensation else node.timeout)
        return Status.TIMEOUT, StepTimeout(f"{what} did not finish within its {over} of {limit:g} s.")
    if isinstance(error, Signal):
        return Status.CANCELLED, StepCancelled(f"{what} was cancelled while it ran.")
    if isinstance(error, asyncio.exceptions.CancelledError):
        # Nobody cancelled it (the driver says INTERRUPTED then). Bare, it would vanish in a TaskGroup.
        cancelled = StepCancelled(f"{what} raised CancelledError though nobody cancelled it.")
        cancelled.__cause__ = error
        return Status.FAILURE, cancelled
    if isinstance(error, Exception) or undo:
        return Status.FAILURE, error
    return Status.CANCELLED, error


def _waited(
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
    if until is not None and x.settings.clock() + pause.delay >= until:
        return True
    began = 0.0
    if outer is not None:
        began = tell.backoff_started(x, node, outer, number, allowed, pause, failure, undo=undo)
    if pause.delay:
        yield Sleep(pause.delay, shielded=undo)
    if outer is not None:
        outer.backoff += x.settings.clock() - began
    return x.stopped and not undo


def _finished(x: Execution, call: Call) -> Program[tuple[Any, BaseException | Signal | None]]:
    value, error = yield call
    if error is None and type(value) is CoroutineType:
        value, error = yield from _awaited(x, call, value)
    return value, error


def _awaited(
    x: Execution, call: Call, coroutine: CoroutineType[Any, Any, Any]
) -> Program[tuple[Any, BaseException | Signal | None]]:
    """A plain function answered with a coroutine, as `lambda ctx: fetch(ctx)` does: await it where that can be done."""
    if not x.settings.runs_async:
        coroutine.close()
        return None, AsyncStepInSyncEngine(
            f"step {shown(call.node.name)} answered with a coroutine, which Engine cannot await: use AsyncEngine."
        )
    return (yield Call(call.node, lambda _: coroutine, call.ctx, call.context.copy(), call.timeout, True, call.shielded))
