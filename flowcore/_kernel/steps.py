"""The program of one worker of a run, which runs step after step."""

from __future__ import annotations

from typing import Final

from ..context import Context
from ..errors import NotSerializable, RunTimeout, StepCancelled, safe_repr
from ..exits import is_exit_of_handler
from ..functions import PLAIN, is_async, is_awaitable
from ..plan import Node
from ..status import Status
from . import emit_steps, stopping
from .attempts import Attempts, Limit, judge, wait_rest_of_backoff
from .awaiting import awaited
from .effects import REQUEST_WORKER, Call, Delegate, Outcome, Program, Stop
from .inline import FirstAttempt, InlineProgress
from .ledger import Ledger
from .outcome import StepEnd
from .plain_steps import PlainSteps
from .run_state import RunState
from .set_aside import backed_off, end_left_to_next_owner, end_retries, has_effect, is_left, take_retry
from .undo import wait_for_abandoned
from .wait_steps import begin_or_end, request_alarm

__all__ = ["ask_when", "run_whole_step", "stopped", "work"]

# Looking a member up in the enumeration takes eight times as long, and each step needs several.
_PENDING: Final = Status.PENDING
_SKIPPED: Final = Status.SKIPPED
_SUCCESS: Final = Status.SUCCESS
_WAITING: Final = Status.WAITING


def work(run: RunState, node: Node | None, *, main: bool, progress: InlineProgress | None = None) -> Program[None]:
    """Run `node`, then the steps that are ready after it, until none is ready or the run stops. `main`: whether this is
    the main program, which takes the first node if `node` is None. `progress`: where the inline path stopped."""
    hands_over = main and not run.settings.caller_shares
    timeless, done = run.deadline is None and not run.settings.whole_steps, run.done
    ledger = run.ledger
    # No hook wants events, so only the store gets them.
    only_store_listens = timeless and ledger is not None and not run.wanted
    first = None if progress is None else progress.first
    events = PlainSteps(run) if run.observed else None
    try:
        if main and node is None:
            node = run.take() if progress is None else progress.node
        while node is not None:
            if hands_over and first is None and _needs_a_worker(run, node):
                yield Delegate(node)  # before a worker is requested for the next steps: ties start in definition order
                return
            if run.ready and not run.worker_requested and run.needs_worker():
                yield REQUEST_WORKER
            if first is not None:
                if first.suspended is not None:
                    first.outcome = yield first.suspended
            elif timeless and node.plain and not run.tried and (ledger is None or ledger.may_begin(run, node)):
                if ledger is not None and only_store_listens:
                    made: FirstAttempt | Node | None = yield from ledger.run_plain(run, node)
                    if not isinstance(made, FirstAttempt):
                        node = made
                        continue
                    node, first = made.ctx.node, made
                # The same as _step and Attempts, but without their three generators, because most steps succeed at once.
                elif events is not None:
                    ctx = Context(run, node)
                    scope, attempt = events.started(node)
                    outcome = yield Call(node, node.fn, ctx, attempt.context.copy(), None, node.is_async)
                    first = FirstAttempt(ctx, outcome, scope, attempt)
                else:
                    ctx = Context(run, node)
                    outcome = yield ctx
                    if outcome[1] is None and (type(outcome[0]) in PLAIN or not is_awaitable(outcome[0])):
                        node = done(node, outcome[0])
                        continue
                    first = FirstAttempt(ctx, outcome, None, None)
            if first is None:
                end = yield from _step(run, node)
            else:
                end, first = (yield from _plain_step(run, node, first, events)), None
            if end.error is not None:
                yield from _failed(run, node, end)
                return
            if end.status is _WAITING:  # its place is free already
                if run.running or run.ready:
                    yield from request_alarm(run)
                node = run.take()
                continue
            if end.status is _PENDING:  # the run stopped before it began
                run.put_back()
                return
            node = _done(run, node, end) if ledger is None else (yield from _recorded(run, ledger, node, end))
    except BaseException as error:
        if isinstance(error, Exception | GeneratorExit):
            raise
        yield from _cut_short(run, node, error)


def _plain_step(run: RunState, node: Node, first: FirstAttempt, events: PlainSteps | None) -> Program[StepEnd]:
    """Run the rest of a plain step whose first attempt was made."""
    scope, attempt, outcome = first.scope, first.attempt, first.outcome
    if events is None or scope is None or attempt is None:
        return (yield from _attempted(run, node, Attempts(run, node, node.fn, node.retry, None, scope), first))
    if outcome[1] is None and (type(outcome[0]) in PLAIN or not is_awaitable(outcome[0])):
        events.finished(node, scope, attempt)
        end = StepEnd(_SUCCESS, outcome[0], None, 1)
        end.scope = scope
        return end
    return (yield from _attempted(run, node, Attempts(run, node, node.fn, node.retry, None, scope), first))


def _attempted(run: RunState, node: Node, attempts: Attempts, first: FirstAttempt | None = None) -> Program[StepEnd]:
    """Make the attempts of a step, and emit its end."""
    end = yield from attempts.program(first)
    if attempts.scope is not None and end.status is not _WAITING:
        emit_steps.step_finished(run, node, attempts.scope, end)
        end.scope = attempts.scope
    return end


def _step(run: RunState, node: Node) -> Program[StepEnd]:
    """Run a step that is not plain, or whose start must be saved first. It may have limits, a `when=`, or be a wait."""
    end = _overdue(run)
    if run.waits is not None:
        aside = take_retry(run, run.waits, node)
        if aside is not None:
            return (yield from _retried(run, node, aside, end))
        if node.name in run.waits.until:  # the wait has begun, so its when= was evaluated before
            return (yield from begin_or_end(run, node, end))
    asked = node.name in run.was_in_doubt or node.name in run.tried
    if node.when is not None and not asked and end is None:
        end = (yield from ask_when(run, node)) or _overdue(run)
        if run.stopped and (end is None or end.error is None):
            return StepEnd(_PENDING)
    if end is not None:
        return end
    if node.wait is not None:
        return (yield from begin_or_end(run, node))
    if node.name in run.tried:
        end = (yield from wait_rest_of_backoff(run, node)) or _overdue(run)
        if end is not None:
            return end
    if run.ledger is not None:
        end = yield from _began(run, run.ledger, node)
        if end is not None:
            return end
    scope = emit_steps.step_started(run, node) if run.observed else None
    return (yield from _attempted(run, node, Attempts(run, node, node.fn, node.retry, node.timeout, scope)))


def _retried(run: RunState, node: Node, before: StepEnd, overdue: StepEnd | None) -> Program[StepEnd]:
    """Run the rest of a step that was set aside, and whose next attempt is due. `before`: its end if that attempt is
    not made. `overdue`: its end if the run's deadline has passed."""
    scope, end = before.scope, None
    if overdue is not None:
        end = StepEnd(Status.FAILURE, None, overdue.error, before.attempts, before.errors, before.failed)
    elif run.ledger is not None:
        end = yield from _began(run, run.ledger, node)
        if end is not None and end.status is _PENDING:  # the run has stopped
            end = end_left_to_next_owner(before) if is_left(run) else before
    if scope is not None:
        backed_off(run, scope)
    if end is not None:
        if scope is not None:
            emit_steps.step_finished(run, node, scope, end)
        return end
    if scope is None and run.observed:
        scope = emit_steps.step_started(run, node)
    return (yield from _attempted(run, node, Attempts(run, node, node.fn, node.retry, node.timeout, scope)))


def run_whole_step(run: RunState, node: Node) -> Program[StepEnd]:
    """Make all attempts of a step whose run is driven elsewhere, and emit its events. If the next attempt is left to that
    driver, because it is far off, the end is that of the latest attempt, and the step's report has `retry_at`."""
    end = (yield from wait_rest_of_backoff(run, node)) if node.name in run.tried else None
    if end is None and node.name not in run.tried:
        end = _overdue(run)  # it waited until now for a process that runs it
    if end is None:
        scope = emit_steps.step_started(run, node) if run.observed else None
        end = yield from _attempted(run, node, Attempts(run, node, node.fn, node.retry, node.timeout, scope))
        if end.status is not _WAITING:
            yield from wait_for_abandoned(run)
    if end.status is _WAITING and run.waits is not None:
        end = run.waits.retries[node.name]
        end_retries(run, run.waits, failed=False)
    return end


def _began(run: RunState, ledger: Ledger, node: Node) -> Program[StepEnd | None]:
    """Save that the step starts. Returns its end if it must not start, else None."""
    try:
        before = run.tried.get(node.name)
        begins = yield from ledger.began(
            run, node, *((1, ()) if before is None else (before.failed + 1, before.errors))
        )
    except NotSerializable as error:  # a value that its when= wrote
        return StepEnd(Status.FAILURE, None, error, 0)
    return None if begins else StepEnd(_PENDING)


def _overdue(run: RunState) -> StepEnd | None:
    """Return the end of a step that does not start because the run's deadline has passed, or None if it has not."""
    if run.deadline is None or run.settings.clock() < run.deadline:
        return None
    late = RunTimeout(f"run {run.run_id} of {safe_repr(run.workflow.name)} did not finish before its deadline.")
    return StepEnd(Status.FAILURE, None, late, 0)


def _needs_a_worker(run: RunState, node: Node) -> bool:
    """Whether the caller's own task must not run the step: other steps run or are ready, or the step has a time limit,
    at which the task could not abandon it."""
    if run.running > 1 or run.ready:
        return True
    return node.is_async and (node.timeout is not None or node.step_timeout is not None or run.deadline is not None)


def _done(run: RunState, node: Node, end: StepEnd) -> Node | None:
    """Process the end of a step that succeeded or was skipped: unblock its dependents. Returns the next node."""
    announced: list[int] | None = [] if run.observed else None
    if end.status is _SKIPPED:
        run.report(node).status = _SKIPPED
        emit_steps.step_skipped(run, node)
        after = run.skipped(node, announced)
    else:
        if run.observed or end.attempts > 1 or end.scope is not None or node.wait is not None:
            end.report_to(run.report(node))
        if node.step.pivot and not run.undo_ordered:
            run.past_pivot = True
        after = run.done(node, end.value, announced)
    if announced:  # hooks hear that a step is ready before another worker can start it
        emit_steps.steps_ready(run, announced)
        return run.join_queue(announced)
    return after


def _recorded(run: RunState, ledger: Ledger, node: Node, end: StepEnd) -> Program[Node | None]:
    """Save the end of a step that succeeded or was skipped, then continue as `_done` does."""
    end.report_to(run.report(node))
    if end.status is _SKIPPED:
        emit_steps.step_skipped(run, node)
    elif node.step.pivot and not run.undo_ordered:
        run.past_pivot = True
    return (yield from ledger.ended(run, node, end))


def _failed(run: RunState, node: Node, end: StepEnd) -> Program[None]:
    """Process the end of a step that failed for good, which stops its run."""
    end.report_to(run.report(node))
    if end.status is Status.CANCELLED and end.error is not None and not isinstance(end.error, StepCancelled):
        # The step raised a BaseException. It cancels the run, and is raised again when everything is undone.
        stopping.interrupt(run, end.error, node.name)
    first = stopping.fail_step(run, node, end, effect=has_effect(run, node, end))
    yield from stopped(run, first)


def _cut_short(run: RunState, node: Node | None, error: BaseException) -> Program[None]:
    """Stop the run because `error` was raised in flowcore's own code, as by a signal handler that exits, while a worker
    ran `node`. Unless the node has ended, its outcome is unknown. Its place is freed."""
    known = node is None or node.name in run.results or run.report(node).status is not _PENDING
    stopping.interrupt(run, error, None if known or node is None else node.name)
    if run.ledger is not None:
        run.ledger.save_again(run)
    if node is not None and not run.relinquished:
        report = run.report(node)
        if not known:
            StepEnd(Status.CANCELLED, None, error, 1).report_to(report)
        end = StepEnd(_SUCCESS if node.name in run.results else report.status, attempts=1)
        effect = end.status is not _SKIPPED and has_effect(run, node, end) and node.compensation is not None
        with run.lock:
            if effect and node not in run.to_undo:
                run.to_undo.append(node)
            if run.ledger is not None and not known:
                run.ledger.failed(run, node, effect=effect)
    yield Stop(cancel=True, exit=error if is_exit_of_handler(error) else None)
    with run.lock:
        run.running = max(0, run.running - 1)  # it may be free already


def stopped(run: RunState, first: bool) -> Program[None]:
    """Stop the run after a step has failed, and free the step's place. `first`: whether this is the failure that
    stopped the run."""
    if run.interrupted:
        yield Stop(cancel=True)
    elif first:
        cancel = run.workflow.on_failure == "cancel"
        run.interrupted = run.interrupted or cancel
        yield Stop(cancel=cancel)
    if run.ledger is not None and run.running > 1:
        # The other steps may take long, and the next owner must know that the run has failed.
        yield from run.ledger.flush(run)
    run.put_back()


def ask_when(run: RunState, node: Node) -> Program[StepEnd | None]:
    """Evaluate the step's `when=`, for as long as the run's deadline allows. Returns None if the step is to run, or its
    end if it is skipped or the predicate failed."""
    assert node.when is not None  # noqa: S101 - the caller has checked it
    ctx, asynchronous = Context(run, node), is_async(node.when)
    limit, clock = None, run.settings.clock
    if run.deadline is not None:
        limit = Limit(run.deadline, "deadline", max(0.0, run.deadline - clock()))
    seconds = None if limit is None else limit.seconds
    answer, error = yield Call(node, node.when, ctx, run.context.copy(), seconds, asynchronous, asks=True)
    if error is None and is_awaitable(answer):
        seconds = None if limit is None else max(0.0, limit.moment - clock())
        answer, error = yield from awaited(run, node, ctx, answer, run.context.copy(), seconds, undo=False, asks=True)
    if error is None:
        runs, error = _truth(answer)
        if error is None:
            return None if runs else StepEnd(_SKIPPED)
    return judge(run, node, (None, error), 0, limit, undo=False, asks=True)


def _truth(answer: object) -> Outcome:
    """Return whether `answer` counts as true, or the error that its own `__bool__` raised."""
    try:
        return bool(answer), None
    except Exception as error:  # noqa: BLE001 - the step fails with it
        return None, error
