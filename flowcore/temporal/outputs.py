"""The outputs of activities: those of activities that failed or never began, and the end of a step that an output
describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import exceptions
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TimeoutType

from .._kernel.outcome import StepEnd
from .._kernel.scopes import StepScope
from .._wire import pack_error, unpack_error
from ..errors import FlowcoreError, NotSerializable, RunTimeout, StepCancelled, safe_repr
from ..plan import Node
from ..run import StepReport
from ..status import Status
from .wire import StepOutput

if TYPE_CHECKING:
    from .._kernel.run_state import RunState

__all__ = ["end_of", "never_began", "output_of", "refused"]


def output_of(error: ActivityError, run: RunState, node: Node) -> StepOutput:
    """The output of an activity that failed: the one that is attached to its error, or else one made from Temporal's
    error."""
    cause = error.cause
    if isinstance(cause, exceptions.TimeoutError) and cause.type is TimeoutType.SCHEDULE_TO_START:
        return _overdue(cause, run, node)
    if isinstance(cause, ApplicationError) and cause.details:
        output: StepOutput = cause.details[0]
        return output
    if isinstance(cause, CancelledError):
        return never_began(node)
    what = f"the activity of step {safe_repr(node.name)} failed ({type(cause).__name__}: {cause})."
    return {"status": str(Status.FAILURE), "attempts": 1, "error": pack_error(FlowcoreError(what)), "in_doubt": True}


def _overdue(error: exceptions.TimeoutError, run: RunState, node: Node) -> StepOutput:
    """The output of a step that no worker could begin before the deadline of its run. A worker that has died may have
    begun it."""
    late = RunTimeout(f"run {run.run_id} of {safe_repr(run.workflow.name)} did not finish before its deadline.")
    before = run.tried.get(node.name, StepReport())
    output: StepOutput = {"status": str(Status.FAILURE), "attempts": before.failed, "error": pack_error(late)}
    output["errors"] = list(before.errors)
    left = error.last_heartbeat_details
    if left and "unbegun" not in left[0]:
        output["attempts"], output["in_doubt"] = before.failed + 1, True
        if node.step.verify is not None or node.step.on_crash != "retry":
            output["decision"] = "undo" if node.step.on_crash == "undo" and node.step.verify is None else "hold"
            output["reason"] = (
                f"its worker crashed in step {safe_repr(node.name)}, and no other one came before the deadline"
            )
    return output


def never_began(node: Node) -> StepOutput:
    """The output of a step that was cancelled before its activity began."""
    cancelled = StepCancelled(f"step {safe_repr(node.name)} was cancelled before it began.")
    return {"status": str(Status.CANCELLED), "attempts": 0, "error": pack_error(cancelled)}


def refused(output: StepOutput, why: NotSerializable) -> StepOutput:
    """The output of a step whose result, or what it wrote, cannot be kept. The step had its effect, which is to be
    undone."""
    left: StepOutput = {**output, "writes": {}}
    left.pop("value", None)
    left["status"], left["error"], left["in_doubt"] = str(Status.FAILURE), pack_error(why), True
    return left


def end_of(output: StepOutput, run: RunState, node: Node) -> StepEnd:
    """The end of a step or undo, with its times if they were measured."""
    error = output.get("error")
    failure = None if error is None else unpack_error(error, run.run_id, node.name)
    end = StepEnd(Status(output["status"]), output.get("value"), failure, output["attempts"])
    end.errors = tuple((kind, message) for kind, message in output.get("errors", ()))
    end.failed = output.get("failed", len(end.errors))
    if "times" in output:
        at, waited, ran, backoff = output["times"]
        scope = end.scope = StepScope(at, run.context, waited)
        scope.ended, scope.backoff, scope.epoch = at + ran + backoff, backoff, 0.0
        scope.attempts = tuple((began, ended) for began, ended in output.get("attempt_times", ()))
    return end
