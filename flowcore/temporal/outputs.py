"""The outputs of activities that failed or never began."""

from __future__ import annotations

from temporalio.exceptions import ActivityError, ApplicationError, CancelledError

from .._wire import pack_error
from ..errors import FlowcoreError, StepCancelled, safe_repr
from ..plan import Node
from ..status import Status
from .wire import StepOutput

__all__ = ["never_began", "output_of"]


def output_of(error: ActivityError, node: Node) -> StepOutput:
    """The output of an activity that failed: the one that is attached to its error, or else one made from Temporal's
    error."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.details:
        output: StepOutput = cause.details[0]
        return output
    if isinstance(cause, CancelledError):
        return never_began(node)
    what = f"the activity of step {safe_repr(node.name)} failed ({type(cause).__name__}: {cause})."
    return {"status": str(Status.FAILURE), "attempts": 1, "error": pack_error(FlowcoreError(what)), "in_doubt": True}


def never_began(node: Node) -> StepOutput:
    """The output of a step that was cancelled before its activity began."""
    cancelled = StepCancelled(f"step {safe_repr(node.name)} was cancelled before it began.")
    return {"status": str(Status.CANCELLED), "attempts": 0, "error": pack_error(cancelled)}
