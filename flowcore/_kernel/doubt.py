"""Steps whose outcome is unknown: `verify=` is asked whether they had their effect, and else `on_crash=` decides."""

from __future__ import annotations

from types import CoroutineType
from typing import Any, Final

from ..context import Context
from ..errors import FlowcoreError, IdempotencyHeld, ResultLost, StepCancelled, StepTimeout, safe_repr, safe_str
from ..plan import Node
from ..status import Status
from ..step import Landed, NotLanded
from . import stopping
from .awaiting import awaited
from .effects import Call, GivenUp, Program
from .outcome import StepEnd
from .run_state import RunState

__all__ = ["Answer", "ask_verify", "settle"]

Answer = Landed[Any] | NotLanded | type[NotLanded] | None
"""what `verify=` may answer"""
_VERIFY_LIMIT: Final = 30.0
"""seconds for `verify=` of a step without a timeout"""


def settle(run: RunState, node: Node, end: StepEnd, lost: ResultLost) -> Program[tuple[StepEnd, bool]]:
    """What becomes of a step whose executor has lost its result: how the attempt ended after all, and whether that is the
    end of the step; else `retry=` decides. If it may have had its effect, it is undone with its run."""
    over = lost.done
    if node.step.verify is not None and not over:
        answer, unclear = yield from ask_verify(run, node)
        if isinstance(answer, Landed):
            return StepEnd(Status.SUCCESS, answer.result, None, end.attempts), True
        if answer is not None:
            return end, False
        if unclear is not None:  # guessing is what verify= is there to prevent
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
    """What the step's `verify=` returns within the step's timeout: Landed, NotLanded, or None; or why it could not say.
    Then the run is parked: guessing is what it is there to prevent."""
    fn = node.step.verify
    assert fn is not None  # noqa: S101 - the caller has looked
    ctx = Context(run, node)
    limit = _VERIFY_LIMIT if node.timeout is None else node.timeout
    answer, error = yield Call(node, fn, ctx, run.context.copy(), limit, node.verify_is_async, asks=True)
    if error is None and isinstance(answer, CoroutineType):
        answer, error = yield from awaited(run, node, ctx, answer, run.context.copy(), limit, undo=False, asks=True)
    what = f"verify= of step {safe_repr(node.name)}"
    if isinstance(error, GivenUp):
        if not error.timed_out:  # the run was cancelled meanwhile
            return None, None
        return None, StepTimeout(f"{what} did not return within {limit:g} s")
    if error is not None:
        unclear = FlowcoreError(f"{what} raised {type(error).__name__}: {safe_str(error, 200)}")
        unclear.__cause__ = error
        return None, unclear
    if answer is None or answer is NotLanded or type(answer) in {Landed, NotLanded}:
        return answer, None
    return None, FlowcoreError(f"{what} returned {safe_repr(answer)} instead of Landed(result), NotLanded or None")
