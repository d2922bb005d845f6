"""Undoing the steps of a failed run, in reverse order, and processing calls that complete late."""

from __future__ import annotations

from typing import Final

from ..context import AttemptContext
from ..errors import UndoInterrupted, safe_repr
from ..exits import is_exit_of_handler
from ..functions import PLAIN, is_awaitable
from ..plan import Node
from ..status import Status
from . import emit_steps, stopping
from .attempts import Attempts
from .effects import REQUEST_WORKER, SHIELD, WAIT, AwaitAbandoned, Call, Outcome, Program, Stop, WholeStep
from .inline import FirstAttempt
from .outcome import StepEnd
from .run_state import RunState

__all__ = ["collect_late", "late", "run_whole_undo", "undo_all", "undo_rest", "wait_for_abandoned", "work_undo"]


_UNDONE: Final = StepEnd(Status.SUCCESS, None, None, 1)


def undo_all(run: RunState) -> Program[None]:
    """Undo every step whose effect stands or may stand.

    A failed undo does not keep the others from running. First the program waits for abandoned calls, for the engine's
    grace in all at most, so that a refund never comes before its charge.
    """
    if not run.to_undo:
        return
    yield SHIELD
    if run.ledger is not None and not (yield from run.ledger.flush(run)):  # the record must show that undoing begins
        return
    yield from wait_for_abandoned(run)
    if run.workflow.parallel_undo:
        due = run.to_undo[:]
        run.begin_parallel_undo()
        yield from work_undo(run, run.take())
        if not run.idle(waits=True):
            yield WAIT
        run.undoing = None
        # The exit of a signal handler may have ended a worker before it made the undo that it had taken.
        run.to_undo.extend(node for node in due if run.report(node).undo is None and node not in run.to_undo)
    yield from undo_rest(run)


def undo_rest(run: RunState) -> Program[None]:
    """Undo the remaining steps, one by one. A step that completed late, after its own undo had begun, is undone
    again."""
    collect_late(run)
    while run.is_undone_here and run.to_undo:
        yield from undo_one(run, run.to_undo.pop())
        if run.abandoned:
            collect_late(run)


def work_undo(run: RunState, node: Node | None) -> Program[None]:
    """Run one worker of a parallel undo: undo `node`, then the steps that may be undone after it."""
    while node is not None:
        try:
            if run.ready and run.needs_worker():
                yield REQUEST_WORKER
            if run.is_undone_here:
                yield from undo_one(run, node)
        except BaseException as error:
            if not is_exit_of_handler(error):
                raise
            stopping.interrupt(run, error)
            if run.ledger is not None:
                run.ledger.save_again(run)
            yield Stop(cancel=True, exit=error)
            if run.report(node).undo is None:  # in memory, it is made again; else, the next owner makes it
                continue
        node = run.undo_ended(node)


def wait_for_abandoned(run: RunState) -> Program[None]:
    """Wait for abandoned calls, for the engine's grace in all at most, and process those that have completed."""
    until = run.settings.clock() + run.settings.grace if run.abandoned else 0.0
    for call in run.abandoned:
        if call.late_outcome is None:
            yield AwaitAbandoned(call, max(0.0, until - run.settings.clock()))
    collect_late(run)


def collect_late(run: RunState, node: Node | None = None) -> None:
    """Process the abandoned calls that have completed late, or only those of `node`."""
    for call in run.abandoned:
        if call.late_outcome is not None and (node is None or call.node is node):
            run.forget(call)
            if _record(run, call, call.late_outcome) and call.after_undo:
                _reopen(run, call.node)
                run.to_undo.append(call.node)


def _record(run: RunState, call: Call, outcome: Outcome) -> bool:
    """Note the outcome of a call that completed late, and emit it. Returns whether it had an effect that must be
    undone."""
    if call.asks:
        return False
    value, error = outcome
    effect = error is None and not call.shielded
    if effect:
        run.results.setdefault(call.node.name, value)  # the undo may read it
    status = Status.SUCCESS if error is None else Status.FAILURE
    report = run.report(call.node)
    report.completed_late = status
    if run.ledger is not None and not call.shielded:
        report.completed_late_at = call.completed_late_at + run.ledger.epoch
    emit_steps.completed_late(run, call, status, error if isinstance(error, BaseException) else None)
    return effect and call.node.compensation is not None and run.is_undone_here


def undo_one(run: RunState, node: Node) -> Program[None]:
    """Undo one step, with the undo's own retries and timeout."""
    undo = node.compensation
    assert undo is not None  # noqa: S101 - only nodes with an undo get here
    if run.ledger is not None and run.finished is None:
        completed_late = node.name in run.undo_begun
        begins = yield from (run.ledger.flush(run) if completed_late else run.ledger.may_continue(run))
        if not begins:
            return
    order, trigger = run.begin_undo(node), run.failed_step or "cancelled"
    allowed = undo.retry.attempts if undo.retry else 1
    scope = emit_steps.undo_started(run, node, order, trigger, allowed) if run.observed else None
    began = ended = None  # seconds since the epoch; not set in memory, where nothing reads them
    if run.ledger is not None:
        began = run.settings.clock() + run.ledger.epoch
    if run.undo_stopped:
        why = f"the undo of step {safe_repr(node.name)} was not started."
        end = StepEnd(Status.FAILURE, None, UndoInterrupted(why))
    elif run.settings.whole_steps:
        end = yield WholeStep(node, undo=True)
    elif scope is None and undo.timeout is None and (undo.retry is None or undo.retry.max_elapsed is None):
        # No hook observes it and no clock is needed, so its first attempt is a bare call, like that of a plain step.
        ctx = AttemptContext(run, node, 1, None, undo=True)
        outcome = yield Call(node, undo.fn, ctx, run.context.copy(), None, node.undo_is_async, shielded=True)
        end = _UNDONE
        if outcome[1] is not None or (type(outcome[0]) not in PLAIN and is_awaitable(outcome[0])):
            first, outcome = FirstAttempt(ctx, outcome, None, None), (None, None)
            end = yield from Attempts(run, node, undo.fn, undo.retry, None, None, undo=True).program(first)
    else:
        end = yield from Attempts(run, node, undo.fn, undo.retry, undo.timeout, scope, undo=True).program()
    if end.error is not None:
        _as_failure(node, end)
    if run.ledger is not None:
        ended = run.settings.clock() + run.ledger.epoch
    elif end.scope is not None and end.scope.epoch is not None:  # the undo was run elsewhere
        began, ended = end.scope.at + end.scope.epoch, end.scope.ended + end.scope.epoch
    if scope is not None:
        emit_steps.undo_finished(run, node, scope, order, trigger, end)
    if end.error is not None and run.relinquished and run.finished is None:  # the next owner undoes this step
        return
    _note_undo(run, node, end, began, ended)
    if run.ledger is not None:
        if run.finished is None:
            collect_late(run, node)
        yield from run.ledger.undone(run, node)


def run_whole_undo(run: RunState, node: Node, order: int, trigger: str) -> Program[StepEnd]:
    """Make all attempts of an undo whose run is driven elsewhere, and emit its events. `order`: its number in that run,
    from 1. `trigger`: the step that failed the run."""
    how = node.compensation
    assert how is not None  # noqa: S101 - only nodes with an undo get here
    allowed = how.retry.attempts if how.retry else 1
    scope = emit_steps.undo_started(run, node, order, trigger, allowed)
    end = yield from Attempts(run, node, how.fn, how.retry, how.timeout, scope, undo=True).program()
    if end.error is not None:
        _as_failure(node, end)
    emit_steps.undo_finished(run, node, scope, order, trigger, end)
    end.scope = scope
    return end


def _as_failure(node: Node, end: StepEnd) -> None:
    """Turn the end of an undo that did not succeed into a failure with an Exception, even if its code raised a
    BaseException."""
    end.status = Status.FAILURE if end.status is Status.CANCELLED else end.status
    if not isinstance(end.error, Exception):
        why = f"the undo of step {safe_repr(node.name)} was stopped by {type(end.error).__name__}."
        interrupted = UndoInterrupted(why)
        interrupted.__cause__, end.error = end.error, interrupted


def _reopen(run: RunState, node: Node) -> None:
    """Discard the undo of a step that completed after that undo had begun, so that this or the next owner undoes it
    again."""
    report = run.report(node)
    report.undo = report.undo_error = report.undo_started = report.undo_finished = None
    if node.name in run.undone:
        run.undone.remove(node.name)
    run.undo_errors.pop(node.name, None)
    if run.ledger is not None and run.finished is None:
        with run.lock:
            run.ledger.failed(run, node, effect=True)


def _note_undo(run: RunState, node: Node, end: StepEnd, began: float | None, ended: float | None) -> None:
    report = run.report(node)
    if report.status is Status.PENDING:  # a step with only a result has a report with defaults
        report.status, report.attempts = Status.SUCCESS, 1
    report.undo, report.undo_error = end.status, end.error
    report.undo_started, report.undo_finished = began, ended
    if isinstance(end.error, Exception):
        run.undo_errors[node.name] = end.error
    else:
        run.undone.append(node.name)


def late(run: RunState, call: Call) -> Program[None]:
    """Process an abandoned call that completed late, after the end of its run: if the run was undone, so is the
    step."""
    run.forget(call)
    if call.late_outcome is not None and _record(run, call, call.late_outcome):
        if call.node.name in run.undo_begun:  # that undo came before the effect
            _reopen(run, call.node)
        yield from undo_one(run, call.node)
