"""Undoing: what a failed run had done, in reverse; and what comes back after it had been given up."""

from __future__ import annotations

from types import CoroutineType
from typing import Any, Final, cast

from .._durable import checkpoints
from ..context import AttemptContext
from ..errors import UndoInterrupted, shown
from ..plan import Node
from ..status import Status
from . import emit
from .effects import HELP, SHIELD, WAIT, Call, Landing, Outcome, Program
from .run_state import Execution
from .steps import End, attempts, safely

__all__ = ["collect_landed", "late", "undo_all", "undo_rest", "wait_for_abandoned", "work_undo"]


_UNDONE: Final = End(Status.SUCCESS, None, None, 1)


def undo_all(x: Execution) -> Program[None]:
    """Undo every step whose effect stands or may stand.

    A failed undo does not keep the others from running. Calls that were given up are waited for first, at most the
    engine's grace in all, so that a refund never comes before its charge.
    """
    if not x.to_undo:
        return
    yield SHIELD
    if x.changes is not None and not (yield from checkpoints.flush(x)):  # from here on it is only undone
        return
    yield from wait_for_abandoned(x)
    if x.workflow.parallel_undo:
        x.begin_parallel_undo()
        yield from work_undo(x, x.take())
        if not x.idle(waits=True):
            yield WAIT
        x.undoing = None
    yield from undo_rest(x)


def undo_rest(x: Execution) -> Program[None]:
    """Undo what is left, one by one; what has landed meanwhile, after its own undo had begun, is undone again."""
    collect_landed(x)
    while x.undoes and x.to_undo:
        yield from undo_one(x, x.to_undo.pop())
        collect_landed(x)


def work_undo(x: Execution, node: Node | None) -> Program[None]:
    """One worker's part of a parallel undo: undo `node`, then whatever may be undone after it."""
    while node is not None:
        if x.ready and x.wants_help():
            yield HELP
        if x.undoes:
            yield from undo_one(x, node)
        node = x.undo_ended(node)


def wait_for_abandoned(x: Execution) -> Program[None]:
    """Wait for calls that were given up, at most the grace in all."""
    until = x.settings.clock() + x.settings.grace if x.abandoned else 0.0
    for call in x.abandoned:
        if call.landed is None:
            yield Landing(call, max(0.0, until - x.settings.clock()))
    collect_landed(x)


def collect_landed(x: Execution) -> None:
    """Record what came of the calls that were given up and have landed."""
    for call in x.abandoned:
        if call.landed is not None:
            x.forget(call)
            if _record(x, call, call.landed) and call.after_undo:
                x.to_undo.append(call.node)


def _record(x: Execution, call: Call, outcome: Outcome) -> bool:
    """Record a call that landed late; answers whether it had an effect that is to be undone."""
    if call.asks:
        return False
    value, error = outcome
    effect = error is None and not call.shielded
    if effect:
        x.results.setdefault(call.node.name, value)  # its undo may want to know what it undoes
    status = Status.SUCCESS if error is None else Status.FAILURE
    x.report(call.node).landed_late = status
    emit.landed_late(x, call, status, error if isinstance(error, BaseException) else None)
    return effect and call.node.compensation is not None and x.undoes


def undo_one(x: Execution, node: Node) -> Program[None]:
    """Undo one step, with the undo's own retries and timeout."""
    undo = node.compensation
    assert undo is not None  # noqa: S101 - only nodes with an undo get here
    if x.changes is not None and x.finished is None and not (yield from checkpoints.still_ours(x)):
        return
    order, trigger = x.begin_undo(node), x.failed_step or "cancelled"
    allowed = undo.retry.attempts if undo.retry else 1
    told = emit.undo_started(x, node, order, trigger, allowed) if x.observed else None
    if x.undo_stopped:
        end = End(Status.CANCELLED, None, UndoInterrupted(f"the undo of step {shown(node.name)} was not started."), 0)
    elif told is None and undo.timeout is None and (undo.retry is None or undo.retry.max_elapsed is None):
        # Nobody watches and no clock is needed: its first attempt, as a plain step's, is a call and no more.
        ctx = AttemptContext(x, node, 1, None, undo=True)
        value: Any
        value, failure = yield Call(node, undo.fn, ctx, x.context.copy(), None, node.undo_is_async, shielded=True)
        end = _UNDONE
        if failure is not None or type(value) is CoroutineType:
            begun = (ctx, cast("object", value), failure)
            end = yield from safely(attempts(x, node, undo.fn, undo.retry, None, None, undo=True, begun=begun))
    else:
        end = yield from safely(attempts(x, node, undo.fn, undo.retry, undo.timeout, told, undo=True))
    error = end.error
    if error is not None and not isinstance(error, Exception):
        # Ctrl-C in an undo is the second one, or nobody shielded the first: the person means it.
        x.undo_stopped = x.undo_stopped or isinstance(error, KeyboardInterrupt)
        interrupted = UndoInterrupted(f"the undo of step {shown(node.name)} was stopped by {type(error).__name__}.")
        interrupted.__cause__ = error
        error = interrupted
    status = Status.FAILURE if end.status is Status.CANCELLED else end.status
    if told is not None:
        emit.undo_finished(x, node, told, order, trigger, status, end.attempts, error)
    if error is not None and x.left_to_others and x.finished is None:  # whoever has the run now undoes this step
        return
    report = x.report(node)
    again = report.undo is not None  # it landed after its first undo
    if report.status is Status.PENDING:  # so far it had only a result to tell
        report.status, report.attempts = Status.SUCCESS, 1
    report.undo, report.undo_error = status, error
    if again:
        x.undone = [name for name in x.undone if name != node.name]
        x.undo_errors.pop(node.name, None)
    if error is None:
        x.undone.append(node.name)
    else:
        x.undo_errors[node.name] = error
    if x.undo_over(node):
        yield from checkpoints.flush(x)


def late(x: Execution, call: Call) -> Program[None]:
    """A call that had been given up has landed after the end of its run."""
    x.forget(call)
    if call.landed is not None and _record(x, call, call.landed):
        # Its undo, if it had one, came before its effect.
        yield from undo_one(x, call.node)
