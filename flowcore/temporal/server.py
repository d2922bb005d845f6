"""Calls to a Temporal server: its errors become flowcore's errors, and its replies become records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final

from temporalio.client import (
    Client,
    WorkflowContinuedAsNewError,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
)
from temporalio.exceptions import ApplicationError, TerminatedError
from temporalio.service import RPCError, RPCStatusCode

from ..errors import DefinitionError, LeaseLost, RunFailed, RunNotFound, StoreError, StoreUnavailable, hashed_key
from ..status import Status
from ..stores.base import RunRecord
from ..stores.codec import Codec
from .flow import FlowcoreWorkflow
from .wire import Outcome, decode_outcome, plain_encoding

__all__ = ["CLOSED", "RELEASE", "Handle", "TemporalServer", "head_of", "is_running"]

_LONGEST: Final = 900
"""bytes of a workflow id; Temporal allows 1,000"""
_UNREACHABLE: Final = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
    }
)
RELEASE: Final = "released by flowcore"
"""the reason with which Temporal ends a run that an operator releases"""
CLOSED: Final[Mapping[WorkflowExecutionStatus | None, Status]] = {
    WorkflowExecutionStatus.COMPLETED: Status.SUCCESS,
    WorkflowExecutionStatus.FAILED: Status.FAILURE,
    WorkflowExecutionStatus.TERMINATED: Status.FAILURE,
    WorkflowExecutionStatus.CANCELED: Status.FAILURE,
    WorkflowExecutionStatus.TIMED_OUT: Status.FAILURE,
}
"""the status of a run whose execution has ended like this"""

Handle = WorkflowHandle[Any, Any]


class TemporalServer:
    """A task queue of a Temporal namespace. `prefix`: the beginning of the ids of its workflows."""

    def __init__(self, client: Client, task_queue: str, prefix: str, codec: Codec | None, lease: float) -> None:
        self._client = client
        self._task_queue = task_queue
        self._prefix = prefix
        self._encoding = plain_encoding(codec)
        self._lease = lease

    def workflow_id(self, key: str) -> str:
        """The id of the Temporal workflow for a key. If the key is too long or not printable, the id has its hash
        instead."""
        name = self._prefix + key
        data = name.encode("utf-8", "surrogatepass")
        if len(data) <= _LONGEST and key.isprintable():
            return name
        return f"{self._prefix}sha256:{hashlib.sha256(data).hexdigest()}"

    def _handle(self, key: str) -> Handle:
        return self._client.get_workflow_handle(self.workflow_id(key))

    async def _reached(self, asked: Any) -> Any:
        try:
            return await asked
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise RunNotFound(f"Temporal no longer has this run ({error.message}).") from error
            if error.status in _UNREACHABLE:
                raise StoreUnavailable(f"Temporal is unreachable ({error.message}). Retry the call.") from error
            raise StoreError(f"Temporal refused the call: {error.message.rstrip('.')}.") from error

    async def _described(self, handle: Handle) -> WorkflowExecutionDescription | None:
        try:
            found: WorkflowExecutionDescription = await self._reached(handle.describe())
        except RunNotFound:
            return None
        if "run_id" not in await found.memo():
            key = handle.id.removeprefix(self._prefix)
            raise DefinitionError(
                f"The Temporal workflow for key {hashed_key(key)} is not flowcore's. Use another prefix=.", key=key
            )
        return found

    async def _ended(self, handle: Handle) -> Outcome:
        """Wait until a run has ended or waits for a decision, and return its outcome. Raises LeaseLost if an operator
        released it, and RunFailed if it was ended from outside of flowcore."""
        try:
            outcome: Outcome = await self._reached(handle.result(follow_runs=False))
        except WorkflowContinuedAsNewError as error:
            left = self._client.get_workflow_handle(handle.id, run_id=error.new_execution_run_id)
            outcome = await self._asked(left)
        except WorkflowFailureError as error:
            cause = error.cause
            if isinstance(cause, TerminatedError) and str(cause) == RELEASE:
                what = "The run was released before it ended. Call again to begin another run."
                raise LeaseLost(what) from error
            if not isinstance(cause, ApplicationError) or not cause.details:
                name = type(cause).__name__
                what = f"The run was ended from outside of flowcore ({name}: {cause}). Nothing was undone."
                raise RunFailed(what, error_type=name, error_message=str(cause)) from error
            outcome = cause.details[0]
        return outcome

    async def _asked(self, handle: Handle) -> Outcome:
        """Ask a run that is not over for its outcome so far. Raises StoreUnavailable if there is no worker that could
        reply."""
        try:
            outcome: Outcome = await self._reached(handle.query(FlowcoreWorkflow.outcome))
        except WorkflowQueryFailedError as error:
            raise StoreUnavailable(f"No worker replied to the query ({error.message}). Retry the call.") from error
        return outcome

    async def _closed(self, handle: Handle, found: WorkflowExecutionDescription, types: Mapping[str, Any]) -> RunRecord:
        """Return the record of a run that is over. One that an operator has released has failed without an error. For a
        run that was ended outside of flowcore, nothing more is known."""
        try:
            outcome = await self._ended(handle)
        except (LeaseLost, RunFailed) as error:
            record = await head_of(found, self._lease)
            record.error = error if isinstance(error, RunFailed) else None
            return record
        return decode_outcome(outcome["fields"], outcome["errors"], self._encoding, types)

    async def _left(self, handle: Handle, types: Mapping[str, Any]) -> RunRecord:
        outcome = await self._asked(handle)
        return decode_outcome(outcome["fields"], outcome["errors"], self._encoding, types)

    async def _live(self, handle: Handle, found: WorkflowExecutionDescription) -> RunRecord:
        try:
            return await self._left(handle, {})
        except StoreUnavailable:  # no worker polls the queue, so the head is all that is known
            return await head_of(found, self._lease)


async def head_of(found: WorkflowExecution, lease: float) -> RunRecord:
    """The head of a run's record, made from Temporal's description of its workflow."""
    memo = await found.memo()
    record = RunRecord(
        memo.get("key", found.id), memo.get("run_id", ""), found.workflow_type, memo.get("fingerprint"), ""
    )
    record.carrier, record.started = memo.get("carrier", {}), found.start_time.timestamp()
    if found.status is WorkflowExecutionStatus.RUNNING:
        state = memo.get("state", str(Status.RUNNING))
        record.held = state == "held"
        record.status = Status.PARKED if record.held else Status(state)
        record.reason = memo.get("reason") or None
        record.waiting_for = tuple(memo.get("waiting_for", ())) if record.status is Status.WAITING else ()
        record.expires = time.time() + lease if record.status is Status.RUNNING else None
        record.finished = None if record.status in {Status.RUNNING, Status.WAITING} else record.started
    else:
        record.status = CLOSED[found.status]
        record.finished = None if found.close_time is None else found.close_time.timestamp()
    return record


def is_running(found: WorkflowExecution) -> bool:
    """Whether the run is not over: it is running, waits for a value, or waits for a decision."""
    return found.status is WorkflowExecutionStatus.RUNNING
