"""Steps whose outcome is unknown: `verify=` reports whether they had their effect; if it does not know, `on_crash=`
decides."""

from __future__ import annotations

from typing import Any, Final

from ..context import Context
from ..errors import FlowcoreError, IdempotencyHeld, ResultLost, StepCancelled, StepTimeout, safe_repr, safe_str
from ..functions import is_awaitable
from ..plan import Node
from ..status import Status
from ..step import Landed, NotLanded
from . import stopping
from .awaiting import awaited
from .effects import Abandoned, Call, Program
from .outcome import StepEnd
from .run_state import RunState

__all__ = ["Answer", "ask_verify", "settle"]

Answer = Landed[Any] | NotLanded | type[NotLanded] | None
"""what `verify=` may return"""
_VERIFY_LIMIT: Final = 30.0
"""seconds for `verify=` of a step without a timeout"""


def settle(run: RunState, node: Node, end: StepEnd, lost: ResultLost) -> Program[tuple[StepEnd, bool]]:
    """Decide on a step whose executor has lost its result. Returns the end of the attempt, and whether that is also the
    end of the step; if not, `retry=` decides. A step that may have had its effect is undone with its run."""
    over = lost.done
    if node.step.verify is not None and not over:
        answer, unclear = yield from ask_verify(run, node)
        if isinstance(answer, Landed):
            return StepEnd(Status.SUCCESS, answer.result, None, end.attempts), True
        if answer is not None:
            return end, False
        if unclear is not None:  # a step with a verify= is never retried on a guess
            lost.add_note(safe_str(unclear, 300))
            over = True
    with run.lock:
        run.was_in_doubt |= {node.name}
    if node.step.on_crash == "hold" and not lost.done and run.settings.durable:
        run.reason = f"its executor lost the worker of step {safe_repr(node.name)}, which has on_crash='hold'"
        stopping.hold(
            run, IdempotencyHeld(f"Run {run.run_id} of {safe_repr(run.workflow.name)} is held: {run.reason}.")
        )
        cancelled = StepCancelled(safe_str(lost, 300))
        cancelled.__cause__ = lost
        return StepEnd(Status.CANCELLED, None, cancelled, end.attempts), True
    return end, over or node.step.on_crash != "retry"


def ask_verify(run: RunState, node: Node) -> Program[tuple[Answer, BaseException | None]]:
    """Call the step's `verify=`, with the step's timeout. Returns Landed, NotLanded or None, and an error if it could
    not decide: a run that is taken over is parked then, because a step with a `verify=` is never decided on by a
    guess."""
    fn = node.step.verify
    assert fn is not None  # noqa: S101 - the caller has checked it
    ctx = Context(run, node)
    limit = _VERIFY_LIMIT if node.timeout is None else node.timeout
    answer, error = yield Call(node, fn, ctx, run.context.copy(), limit, node.verify_is_async, asks=True)
    if error is None and is_awaitable(answer):
        answer, error = yield from awaited(run, node, ctx, answer, run.context.copy(), limit, undo=False, asks=True)
    what = f"verify= of step {safe_repr(node.name)}"
    if isinstance(error, Abandoned):
        if not error.timed_out:  # the run was cancelled in the meantime
            return None, None
        return None, StepTimeout(f"{what} did not return within {limit:g} s")
    if error is not None and not isinstance(error, Exception):  # it exits, so the next owner asks again
        stopping.interrupt(run, error)
        return None, None
    if error is not None:
        unclear = FlowcoreError(f"{what} raised {type(error).__name__}: {safe_str(error, 200)}")
        unclear.__cause__ = error
        return None, unclear
    if answer is None or answer is NotLanded or type(answer) in {Landed, NotLanded}:
        return answer, None
    return None, FlowcoreError(f"{what} returned {safe_repr(answer)} instead of Landed(result), NotLanded or None")
