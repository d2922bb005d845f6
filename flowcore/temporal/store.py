"""A Temporal namespace as a store: keys are workflow ids, and the workflows of the runs keep the records."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, NamedTuple

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from .._wire import unpack_error
from ..errors import RunNotFound, StoreUnavailable, hashed_key
from ..retry import Backoff
from ..status import Status
from ..stores.base import RESUMABLE, Busy, Claim, ClaimAnswer, Claimed, Ending, Finished, Held, Mismatch, RunRecord
from ..stores.codec import Codec
from .flow import FlowcoreWorkflow
from .operating import Operators
from .server import CLOSED, Handle, is_running
from .sizes import check_claim
from .wire import Outcome, Request, decode_outcome, times_of

__all__ = ["Awaited", "TemporalStore"]

_TRIES: Final = 5
"""how often a claim is sent while its key changes hands"""
_TASK: Final = (1.0, 10.0)
"""seconds for a workflow task, at least and at most; the second is Temporal's default"""
_LOOK: Final = Backoff.exponential(0.05, max_delay=1.0, jitter=False)
"""intervals at which a caller looks whether the run only waits"""
_LOOKS: Final = 12
"""how often a caller looks whether the run that it resumes has been held instead"""
_WAIT: Final = 0.2
"""seconds between two calls to an unreachable server"""


class Awaited(NamedTuple):
    """A run for which its caller waits. `run_id`: the run's id. `patience`: for how many seconds an unreachable server
    is called again. `until`: WAITING, or RUNNING again; this status ends the wait too, if `is_watched` returns true."""

    key: str
    run_id: str
    types: Mapping[str, Any]
    patience: float
    until: Status | None
    is_watched: Callable[[], bool]


class TemporalStore(Operators):
    """The verbs for operators of runs on Temporal: `engine.store`. Every verb is a coroutine, and raises
    StoreUnavailable if the server is unreachable. Those that change a run raise RunNotFound for a key that has no
    run."""

    name = "temporal"
    durable = True
    blocks = True
    retention = 86_400.0
    """seconds for which every namespace keeps ended runs at least"""

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
        park_after: float = 60.0,
    ) -> None:
        super().__init__(client, task_queue, prefix, codec, lease)
        self.namespace = prefix
        self._grace = grace
        self._parallel, self._max_takeovers = parallel, max_takeovers
        self._park_after = None if park_after == math.inf else park_after
        self._executions: dict[str, str] = {}

    # -- an engine's verbs ---------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Start the run of a key, or return the reason for a refusal."""
        request = self._request_of(claim)
        check_claim(claim.run_id, request["fields"])
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
                handle: Handle = await self._reached(
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
                self._executions[claim.run_id] = handle.result_run_id or ""
                return Claimed(0, 1)
        raise StoreUnavailable(
            f"Key {hashed_key(claim.key)} was claimed by other runs at each try. Retry the call.", key=claim.key
        )

    def _request_of(self, claim: Claim) -> Request:
        """Return the input of the Temporal workflow that drives the run."""
        wall = time.time()
        return {
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
            "park_after": self._park_after,
        }

    async def _known(self, claim: Claim) -> ClaimAnswer | None:
        """The reply to a claim whose key has a run already, or None if the key is free."""
        handle = self._handle(claim.key)
        found = await self._described(handle)
        if found is None:
            return None
        memo = await found.memo()
        run_id, state, running = memo["run_id"], memo["state"], found.status is WorkflowExecutionStatus.RUNNING
        age = max(0.0, time.time() - found.start_time.timestamp())
        if run_id == claim.run_id:  # the run is the claim's own: the reply to it was lost
            self._executions[run_id] = found.raw_description.workflow_execution_info.first_run_id
            return Claimed(0, 1)
        adopts = claim.attached == run_id and (not running or state == "held")
        if not adopts and not running and CLOSED[found.status] is Status.FAILURE:
            return Finished(await self._closed(handle, found, claim.types), age) if claim.once else None
        if not adopts and claim.fingerprint is not None and memo["fingerprint"] != claim.fingerprint:
            return Mismatch(run_id, memo["carrier"], age, found.workflow_type)
        if adopts and running:
            return Held(run_id, memo["carrier"], age)
        if not running:
            return Finished(await self._closed(handle, found, claim.types), age)
        if state == "held":
            return Held(run_id, memo["carrier"], age)
        if state in RESUMABLE:
            record = await self._left(handle, claim.types)
            again: list[Any] = ["again", None, claim.deadline] if claim.own_deadline else ["again"]
            await self._reached(handle.signal(FlowcoreWorkflow.decide, args=again))
            if await self._is_held_instead(handle, found.run_id):
                return Held(run_id, memo["carrier"], age)
            self._executions[run_id] = found.run_id
            return Claimed(0, record.fence + 1, record, age)
        waiting_for = tuple(memo.get("waiting_for", ())) if state == Status.WAITING else ()
        return Busy(run_id, memo["carrier"], age, math.inf if waiting_for else self._lease, waiting_for=waiting_for)

    async def _is_held_instead(self, handle: Handle, execution: str) -> bool:
        """Wait until the incomplete run that this execution left has received the signal to resume it. Returns whether
        an operator held the run first."""
        for attempt in range(1, _LOOKS + 1):
            await asyncio.sleep(_LOOK.delay(attempt))
            found = await self._described(handle)
            if found is None or found.run_id != execution or not is_running(found):
                break
            state = (await found.memo())["state"]
            if state not in RESUMABLE:
                return bool(state == "held")
        return False

    async def outcome(self, awaited: Awaited, /) -> tuple[RunRecord, BaseException | None, Sequence[str]]:
        """Wait until the run of a key has ended, waits for a decision, or has the status `until`. Returns its record,
        the error that its caller gets, and the classes of the hooks that have counted its end. An unreachable server is
        called again for `patience` seconds."""
        until = time.monotonic() + awaited.patience
        # Only the execution that this process began or resumed has the outcome for this caller. If the run was left
        # incomplete a moment ago, the next execution may have begun, which waits for another call.
        execution = self._executions.get(awaited.run_id)
        handle = self._client.get_workflow_handle(self.workflow_id(awaited.key), run_id=execution or None)
        outcome: Outcome | None = None
        while outcome is None:
            try:
                outcome = await (
                    self._ended(handle)
                    if awaited.until is None
                    else self._ended_or_status(handle, awaited.until, awaited.is_watched)
                )
            except StoreUnavailable:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_WAIT)
        record = decode_outcome(outcome["fields"], outcome["errors"], self._encoding, awaited.types)
        raised = outcome["raised"]
        error = None if raised is None else unpack_error(raised, record.run_id, record.failed_step)
        return record, error, outcome.get("counted", ())

    def forget(self, run_id: str) -> None:
        """Forget a run that this process began or resumed, because its caller no longer waits for it."""
        self._executions.pop(run_id, None)

    async def _ended_or_status(self, handle: Handle, status: Status, is_watched: Callable[[], bool]) -> Outcome:
        """Wait until the run has ended or, if it is watched, has this status, and return its outcome."""
        ended = asyncio.ensure_future(self._ended(handle))
        try:
            for attempt in itertools.count(1):
                await asyncio.wait([ended], timeout=_LOOK.delay(attempt))
                if ended.done():
                    break
                found = await self._described(handle) if is_watched() else None
                if found is not None and is_running(found) and (await found.memo())["state"] == status:
                    return await self._asked(handle)
            return await ended
        finally:
            ended.cancel()

    async def finish(self, ending: Ending, /) -> None:
        """Do nothing: the run's own workflow keeps how it ended."""

    async def withdraw(self, claim: Claim, /) -> None:
        """Take back a claim whose reply was lost: if its run began, cancel the run."""
        await self.cancel_run(claim.key, claim.run_id)

    async def cancel_run(self, key: str, run_id: str) -> None:
        """Cancel the run of this id if it has the key, and is not over."""
        found = await self._described(self._handle(key))
        if found is None or not is_running(found) or (await found.memo())["run_id"] != run_id:
            return
        first = found.raw_description.workflow_execution_info.first_run_id
        handle = self._client.get_workflow_handle(found.id, first_execution_run_id=first)
        with suppress(RunNotFound):  # it has just ended
            await self._reached(handle.cancel())
