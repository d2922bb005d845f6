"""A Temporal namespace as flowcore sees it: keys are workflow ids, records are what the runs' workflows know and leave."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, NamedTuple, cast

from temporalio.client import (
    Client,
    WorkflowContinuedAsNewError,
    WorkflowExecution,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from .._wire import unpack_error
from ..errors import (
    DefinitionError,
    RunFailed,
    RunNotFound,
    SendRefused,
    StoreError,
    StoreUnavailable,
    error_message,
    hashed_key,
    safe_repr,
)
from ..retry import Duration, seconds
from ..status import Status
from ..stores.base import Busy, Claim, ClaimAnswer, Claimed, Ending, Finished, Held, Mismatch, Page, RunRecord
from ..stores.codec import Codec
from .flow import FlowcoreWorkflow
from .wire import Outcome, Request, SentValue, decode_outcome, plain_encoding, times_of

__all__ = ["Awaited", "TemporalStore"]

_LONGEST: Final = 900
"""bytes of a workflow id; Temporal allows 1,000"""
_TRIES: Final = 5
"""how often a claim is sent while its key changes hands"""
_TASK: Final = (1.0, 10.0)
"""seconds for a workflow task, at least and at most: Temporal's own limit is the last one"""
_WAIT: Final = 0.2
"""seconds between two questions to a server that is away"""
_UNREACHABLE: Final = frozenset(
    {
        RPCStatusCode.UNAVAILABLE,
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.RESOURCE_EXHAUSTED,
    }
)
_CLOSED: Final[Mapping[WorkflowExecutionStatus | None, Status]] = {
    WorkflowExecutionStatus.COMPLETED: Status.SUCCESS,
    WorkflowExecutionStatus.FAILED: Status.FAILURE,
    WorkflowExecutionStatus.TERMINATED: Status.FAILURE,
    WorkflowExecutionStatus.CANCELED: Status.FAILURE,
    WorkflowExecutionStatus.TIMED_OUT: Status.FAILURE,
}

Handle = WorkflowHandle[Any, Any]


class Awaited(NamedTuple):
    """A run that its caller waits for. `patience`: seconds for which a server that is away is asked again."""

    key: str
    types: Mapping[str, Any]
    patience: float


class TemporalStore:
    """What operators do with runs on Temporal: `engine.store`. Every verb is a coroutine, and raises StoreUnavailable where
    the server is, RunNotFound for a key that has no run."""

    name = "temporal"
    durable = True
    blocks = True

    def __init__(
        self,
        client: Client,
        task_queue: str,
        *,
        prefix: str = "flowcore:",
        codec: Codec | None = None,
        lease: float = 30.0,
        grace: float = 5.0,
        parallel: int = 1000,
        max_takeovers: int = 5,
    ) -> None:
        self._client = client
        self._task_queue = task_queue
        self._prefix = prefix
        self.namespace = prefix
        self._encoding = plain_encoding(codec)
        self._lease, self._grace = lease, grace
        self._parallel, self._max_takeovers = parallel, max_takeovers

    def workflow_id(self, key: str) -> str:
        """The id of the Temporal workflow of a key; of one that is too long, or no UTF-8, with its hash."""
        name = self._prefix + key
        data = name.encode("utf-8", "surrogatepass")
        if len(data) <= _LONGEST and key.isprintable():
            return name
        return f"{self._prefix}sha256:{hashlib.sha256(data).hexdigest()}"

    def _handle(self, key: str) -> Handle:
        return self._client.get_workflow_handle(self.workflow_id(key))

    # -- an engine's verbs ---------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Start the run of a key, or say whose it is."""
        wall = time.time()
        request: Request = {
            "fields": self._encoding.encode_claim(claim) | times_of(wall),
            "lease": self._lease,
            "grace": self._grace,
            "wall": wall,
            "parallel": self._parallel,
            "namespace": self.namespace,
            "max_takeovers": self._max_takeovers,
            "fence": 1,
            "errors": {},
            "raised": None,
            "sent": {},
            "resumed": False,
            "retry_in": None,
        }
        memo = {
            "key": claim.key,
            "run_id": claim.run_id,
            "fingerprint": claim.fingerprint,
            "carrier": dict(claim.carrier),
            "state": str(Status.RUNNING),
        }
        policy = (
            WorkflowIDReusePolicy.REJECT_DUPLICATE if claim.once else WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY
        )
        for _ in range(_TRIES):
            if claim.attached is not None and (known := await self._known(claim)) is not None:
                return known
            try:
                await self._reached(
                    self._client.start_workflow(
                        claim.workflow,
                        request,
                        id=self.workflow_id(claim.key),
                        task_queue=self._task_queue,
                        memo=memo,
                        id_reuse_policy=policy,
                        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                        task_timeout=timedelta(seconds=min(max(self._lease / 2, _TASK[0]), _TASK[1])),
                    )
                )
            except WorkflowAlreadyStartedError:
                known = await self._known(claim)
                if known is not None:
                    return known
            else:
                return Claimed(0, 1)
        raise StoreUnavailable(f"Key {hashed_key(claim.key)} changed hands too often. Retry the call.", key=claim.key)

    async def _known(self, claim: Claim) -> ClaimAnswer | None:
        """What the run that has the key means to a claim; None: the key is free."""
        handle = self._handle(claim.key)
        found = await self._described(handle)
        if found is None:
            return None
        memo = await found.memo()
        run_id, state, running = memo["run_id"], memo["state"], found.status is WorkflowExecutionStatus.RUNNING
        age = max(0.0, time.time() - found.start_time.timestamp())
        if run_id == claim.run_id:  # our own, whose reply was lost
            return Claimed(0, 1)
        adopts = claim.attached == run_id and (not running or state == "held")
        if not adopts and not running and _CLOSED[found.status] is Status.FAILURE:
            return Finished(await self._closed(handle, claim.types), age) if claim.once else None
        if not adopts and claim.fingerprint is not None and memo["fingerprint"] != claim.fingerprint:
            return Mismatch(run_id, memo["carrier"], age, found.workflow_type)
        if adopts and running:
            return Held(run_id, memo["carrier"], age)
        if not running:
            return Finished(await self._closed(handle, claim.types), age)
        if state == "held":
            return Held(run_id, memo["carrier"], age)
        if state in {Status.INCOMPLETE, Status.PARKED}:
            record = await self._left(handle, claim.types)
            await self._reached(handle.signal(FlowcoreWorkflow.decide, "again"))
            return Claimed(0, record.fence + 1, record, age)
        return Busy(run_id, memo["carrier"], age, self._lease)

    async def outcome(self, awaited: Awaited, /) -> tuple[RunRecord, BaseException | None]:
        """Wait until the run of a key has ended, or is left to be decided on: its record, and what its caller gets to see.
        A server that is away is asked again for `patience` seconds."""
        until = time.monotonic() + awaited.patience
        handle = self._handle(awaited.key)
        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = await self._ended(handle)
            except StoreUnavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_WAIT)
        record = decode_outcome(outcome["fields"], outcome["errors"], self._encoding, awaited.types)
        raised = outcome["raised"]
        return record, None if raised is None else unpack_error(raised, record.run_id, record.failed_step)

    async def finish(self, ending: Ending, /) -> None:
        """The run's own workflow knows how it ended."""

    async def withdraw(self, claim: Claim, /) -> None:
        """A claim whose reply was lost is given up: its run is cancelled, if it began."""
        found = await self._described(self._handle(claim.key))
        if found is not None and (await found.memo())["run_id"] == claim.run_id:
            await self._reached(self._handle(claim.key).cancel())

    # -- looking -------------------------------------------------------------------------------------------------------

    async def find(self, key: str, /) -> RunRecord | None:
        """The record of the run that has a key, or None."""
        handle = self._handle(key)
        found = await self._described(handle)
        if found is None:
            return None
        if found.status is WorkflowExecutionStatus.RUNNING:
            return await self._live(handle, found)
        return await self._closed(handle, {})

    async def head(self, key: str, /) -> RunRecord | None:
        """The head of the record of the run that has a key, or None: cheap, for callers that poll."""
        found = await self._described(self._handle(key))
        return None if found is None else await _head_of(found, self._lease)

    async def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run, by its id. Raises RunNotFound."""
        record = await self.find(run_id)
        if record is None or record.run_id != run_id:
            raise RunNotFound(
                f"No run without a key has the id {safe_repr(run_id)} here. Find a run with a key by its key."
            )
        return record

    async def list_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """Heads of runs, newest first. `status`: of the run, or "held"; `after`: a page's cursor; `text`: in key or run id."""
        wanted = [f"TaskQueue = {_quoted(self._task_queue)}"]
        if workflow is not None:
            wanted.append(f"WorkflowType = {_quoted(workflow)}")
        if status in {"running", "held", "parked", "incomplete", "compensation_failed"}:
            wanted.append("ExecutionStatus = 'Running'")
        elif status == "success":
            wanted.append("ExecutionStatus = 'Completed'")
        elif status is not None:
            wanted.append("ExecutionStatus = 'Failed'")
        before = math.inf if older_than is None else time.time() - seconds(older_than, "older_than=")
        token = None if after is None else bytes.fromhex(after)
        page = Page()
        found = self._client.list_workflows(" AND ".join(wanted), page_size=limit or 1000, next_page_token=token)
        while limit is None or len(page) < limit:
            await self._reached(found.fetch_next_page())
            for execution in found.current_page or ():
                if execution.status is WorkflowExecutionStatus.CONTINUED_AS_NEW:
                    continue
                head = await _head_of(execution, self._lease)
                is_wanted = status is None or (head.held if status == "held" else str(head.status) == status)
                if is_wanted and head.started <= before and (text is None or text in head.key or text in head.run_id):
                    page.append(head)
            if not found.next_page_token:
                break
        page.cursor = found.next_page_token.hex() if found.next_page_token else None
        return page

    # -- sending -------------------------------------------------------------------------------------------------------

    async def send(
        self,
        key: str,
        name: str,
        value: Any,
        /,
        *,
        id: str | None = None,  # noqa: A002 - the word for it
        carrier: Mapping[str, str] | None = None,
    ) -> bool:
        """Send a value to the wait `name` of the run with a key: as `Store.send`. It waits for a worker, which decides."""
        text = self._encoding.dumped(value, Any, "the value for wait", name, key, f"s:{name}")
        host, pid = socket.gethostname(), os.getpid()
        sent: SentValue = {
            "value": text,
            "at": time.time(),
            "host": host,
            "pid": pid,
            "id": id,
            "carrier": dict(carrier or {}),
        }
        handle = self._handle(key)
        if await self._described(handle) is None:
            raise RunNotFound(f"No run with key {hashed_key(key)} here.", key=key)
        try:
            counts: bool = await self._reached(cast("Any", handle).execute_update("send", args=[name, sent]))
        except RunNotFound:
            raise SendRefused(f"the run of key {hashed_key(key)} is over, and waits for nothing.", key=key) from None
        except WorkflowUpdateFailedError as error:
            raise SendRefused(error_message(error.cause)) from error
        return counts

    # -- deciding ------------------------------------------------------------------------------------------------------

    async def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Resume a run that is held, parked or incomplete, where it stopped."""
        await self._decide(key, "resume")

    async def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Undo a run that is held, parked or incomplete; cancel a running one, which undoes it too."""
        handle = self._handle(key)
        if (await self._running(key)).get("state") == str(Status.RUNNING):
            await self._reached(handle.cancel())
        else:
            await self._decide(key, "undo")

    async def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run: what it did is undone."""
        await self._running(key)
        await self._reached(self._handle(key).cancel())

    async def release(self, key: str, /, *, force: bool = False) -> None:
        """Give a run up that waits for a decision, so that the next call with its key starts afresh. `force`: also a running
        one, whose steps in flight are not undone."""
        state = (await self._running(key)).get("state")
        if state == str(Status.RUNNING) and not force:
            raise StoreError(
                f"The run of key {hashed_key(key)} is still in progress. Cancel it, or pass force=True.", key=key
            )
        await self._reached(self._handle(key).terminate("released by flowcore"))

    async def _decide(self, key: str, decision: str) -> None:
        if (await self._running(key)).get("state") == str(Status.RUNNING):
            raise StoreError(
                f"The run of key {hashed_key(key)} is still in progress: there is nothing to decide.", key=key
            )
        await self._reached(self._handle(key).signal(FlowcoreWorkflow.decide, decision))

    async def _running(self, key: str) -> Mapping[str, Any]:
        """The memo of the run of a key. Raises RunNotFound where it has none that is not over."""
        found = await self._described(self._handle(key))
        if found is None or found.status is not WorkflowExecutionStatus.RUNNING:
            raise RunNotFound(
                f"No run with key {hashed_key(key)} is in progress or waits for a decision here.", key=key
            )
        return await found.memo()

    # -- asking the server ---------------------------------------------------------------------------------------------

    async def _reached(self, asked: Any) -> Any:
        try:
            return await asked
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise RunNotFound("Temporal has no such run any more.") from error
            if error.status in _UNREACHABLE:
                raise StoreUnavailable(f"Temporal is unreachable ({error.message}). Retry the call.") from error
            raise StoreError(f"Temporal refused the call: {error.message}.") from error

    async def _described(self, handle: Handle) -> WorkflowExecutionDescription | None:
        try:
            found: WorkflowExecutionDescription = await self._reached(handle.describe())
        except RunNotFound:
            return None
        if "run_id" not in await found.memo():
            raise DefinitionError(f"Temporal's workflow {safe_repr(handle.id)} is not flowcore's. Use another prefix=.")
        return found

    async def _ended(self, handle: Handle) -> Outcome:
        """How a run ended, or was left, once it has."""
        try:
            outcome: Outcome = await self._reached(handle.result(follow_runs=False))
        except WorkflowContinuedAsNewError as error:
            left = self._client.get_workflow_handle(handle.id, run_id=error.new_execution_run_id)
            outcome = await self._asked(left)
        except WorkflowFailureError as error:
            cause = error.cause
            if not isinstance(cause, ApplicationError) or not cause.details:
                name = type(cause).__name__
                what = f"The run was ended from outside of flowcore ({name}: {cause}). Nothing was undone."
                raise RunFailed(what, error_type=name, error_message=str(cause)) from error
            outcome = cause.details[0]
        return outcome

    async def _asked(self, handle: Handle) -> Outcome:
        """What a live run says of itself; it needs a worker."""
        try:
            outcome: Outcome = await self._reached(handle.query(FlowcoreWorkflow.outcome))
        except WorkflowQueryFailedError as error:
            raise StoreUnavailable(
                f"No worker can tell how the run stands ({error.message}). Retry the call."
            ) from error
        return outcome

    async def _closed(self, handle: Handle, types: Mapping[str, Any]) -> RunRecord:
        outcome = await self._ended(handle)
        return decode_outcome(outcome["fields"], outcome["errors"], self._encoding, types)

    async def _left(self, handle: Handle, types: Mapping[str, Any]) -> RunRecord:
        outcome = await self._asked(handle)
        return decode_outcome(outcome["fields"], outcome["errors"], self._encoding, types)

    async def _live(self, handle: Handle, found: WorkflowExecutionDescription) -> RunRecord:
        try:
            return await self._left(handle, {})
        except StoreUnavailable:  # no worker polls the queue: this much Temporal knows itself
            return await _head_of(found, self._lease)


async def _head_of(found: WorkflowExecution, lease: float) -> RunRecord:
    """The head of a run's record, from what Temporal shows of its workflow."""
    memo = await found.memo()
    record = RunRecord(
        memo.get("key", found.id), memo.get("run_id", ""), found.workflow_type, memo.get("fingerprint"), ""
    )
    record.carrier, record.started = memo.get("carrier", {}), found.start_time.timestamp()
    if found.status is WorkflowExecutionStatus.RUNNING:
        state = memo.get("state", str(Status.RUNNING))
        record.held = state == "held"
        record.status = Status.PARKED if record.held else Status(state)
        record.expires = time.time() + lease if record.status is Status.RUNNING else None
        record.finished = None if record.status is Status.RUNNING else record.started
    else:
        record.status = _CLOSED[found.status]
        record.finished = None if found.close_time is None else found.close_time.timestamp()
    return record


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
