"""The Temporal workflow that executes a run of flowcore. Its type in Temporal is the name of the flowcore workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError

from ..errors import SendRefused, safe_repr, safe_str
from ..fires import LOG
from ..run import Sent
from ..status import Status
from ..stores.base import RESUMABLE, RunRecord
from .definitions import definition_of
from .driver import WorkflowDriver
from .reporting import REPORT_END, End
from .wire import TEXTS, Outcome, Request, SentValue, decode_outcome, encode_outcome

__all__ = ["FlowcoreWorkflow"]

_KEEPS_PIVOT = "cancel-keeps-pivot"
"""the patch since which a cancelled run that is past its pivot is left incomplete"""
_HELD_STAYS_HELD = "held-stays-held"
"""the patch since which a call with the key does not resume a run that an operator held after the call had read it"""

_REPORTS_END = "report-end"
"""the patch since which workers report the ends of runs"""
_REPORTED = timedelta(seconds=10)
"""how long the hooks of a worker may take for the end of a run"""


@workflow.defn(dynamic=True)
class FlowcoreWorkflow:
    """One run. A run that is held, parked or incomplete continues as a new execution. That execution stays open until
    an operator or the next call with the key decides, so that Temporal's retention does not delete the run."""

    def __init__(self) -> None:
        self._driver: WorkflowDriver | None = None
        self._record: RunRecord | None = None
        self._errors: dict[str, dict[str, Any]] = {}
        self._raised: dict[str, Any] | None = None
        self._decision: str | None = None
        self._reason: str | None = None
        self._deadline: float | None = None
        self._counted: list[str] = []

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> Outcome:
        request = cast("Request", workflow.payload_converter().from_payload(args[0].payload, dict))
        record = self._record = decode_outcome(request["fields"], request["errors"], TEXTS)
        self._errors, self._raised = request["errors"], request["raised"]
        self._counted = request.get("counted", [])
        info = workflow.info()
        if info.workflow_type == LOG:  # an entry in the log of a schedule
            record.status = Status.SUCCESS
            return encode_outcome(record)
        began = info.start_time.timestamp()
        if request["resumed"]:
            record.decision = await self._decided(request["retry_in"])
            if record.decision == "cancel" and not workflow.patched(_KEEPS_PIVOT):
                record.decision = "undo"  # as an earlier release did
            record.held, record.reason, began = False, self._reason or record.reason, workflow.time()
            workflow.upsert_memo({"state": str(Status.RUNNING)})
        definition = definition_of(info.task_queue, info.workflow_type)
        plan = definition.workflow.freeze()
        other = plan.contains(record.graph)
        if other is None and not request["resumed"] and plan.graph != record.graph:
            other = "a run in flight cannot change its steps on Temporal"  # Temporal replays what the run has done
        if other is not None:
            raise RuntimeError(
                f"run {record.run_id} of {safe_repr(record.workflow)} was started with a different step graph ({other}). It "
                "waits for a worker that has that version of the workflow."
            )
        record.graph = plan.graph
        driver = self._driver = WorkflowDriver(definition, request, record, self._deadline)
        await driver.drive()
        record, outcome = driver.record, encode_outcome(driver.record, driver.raised)
        outcome["counted"] = await _reported(record, workflow.time() - began)
        self._record, self._errors = record, outcome["errors"]
        if record.held or record.status in RESUMABLE:
            left: Request = {
                **request,
                "fields": outcome["fields"],
                "errors": outcome["errors"],
                "raised": outcome["raised"],
                "fence": driver.run.fence + 1,
                "sent": driver.sent,
                "resumed": True,
                "retry_in": driver.retry_in,
                "counted": outcome["counted"],
            }
            workflow.continue_as_new(left)
        if record.status is Status.SUCCESS:
            return outcome
        error = driver.raised or Exception(record.status)
        raise ApplicationError(safe_str(error), outcome, type=type(error).__name__, non_retryable=True)

    async def _decided(self, retry_in: float | None) -> str | None:
        """Wait for the decision on a run that is held, parked or incomplete. Returns the decision, or None if the run
        is to be resumed as the next call with its key would resume it."""
        assert self._record is not None  # noqa: S101 - `run` has set it
        state = "held" if self._record.held else str(self._record.status)
        workflow.upsert_memo({"state": state, "reason": self._record.reason or ""})
        limit = None if retry_in is None else timedelta(seconds=max(retry_in, 0.001))
        while True:
            try:
                await workflow.wait_condition(lambda: self._decision is not None, timeout=limit)
            except TimeoutError:
                return None
            except asyncio.CancelledError:
                if workflow.cancellation_reason() is None:  # Temporal evicts the run from this worker's memory
                    raise
                self._reason = workflow.cancellation_reason() or self._reason
                return "cancel"
            decision, self._decision = self._decision, None
            if decision == "again" and self._record.held and workflow.patched(_HELD_STAYS_HELD):
                self._deadline = None
                continue
            if decision != "hold":
                return None if decision == "again" else decision
            self._record.held, self._record.reason, limit = True, self._reason, None
            workflow.upsert_memo({"state": "held", "reason": self._reason or ""})

    @workflow.signal
    def decide(self, decision: str, reason: str | None = None, deadline: float | None = None) -> None:
        """Decide on a run that waits for a decision. `decision`: "resume", "undo", "cancel", "hold", or "again", which
        the next call with the key sends. `reason`: an operator's reason, for the record. `deadline`: the call's own
        deadline for what it resumes, in seconds from the first claim."""
        if decision == "again" and self._decision is not None and workflow.patched(_HELD_STAYS_HELD):
            return  # an operator has decided already
        self._decision, self._reason, self._deadline = decision, reason or self._reason, deadline

    @workflow.update
    async def send(self, name: str, value: SentValue) -> bool:
        """Send a value to a wait. Returns whether it counts. Fails with an error of type SendRefused, with the message
        of the SendRefused that the run raised."""
        if self._driver is None and self._record is not None and self._record.status in RESUMABLE:
            raise _refused(f"Run {self._record.run_id} waits for a decision and accepts no values until then.")
        await workflow.wait_condition(lambda: self._driver is not None)
        assert self._driver is not None  # noqa: S101 - see above
        try:
            return self._driver.receive(name, Sent(**value))
        except SendRefused as error:
            raise _refused(str(error)) from None

    @workflow.query
    def stopping(self) -> str:
        """How a step in flight whose activity is cancelled must end: see WorkflowDriver.stopping."""
        return "" if self._driver is None else self._driver.stopping

    @workflow.query
    def results(self, names: list[str]) -> dict[str, str]:
        """The texts of results that were not sent with the activity of a step in flight."""
        known = {} if self._driver is None else self._driver.run.results
        return {name: known[name] for name in names if name in known}

    @workflow.query
    def values(self) -> dict[str, str]:
        """The texts of the run's values, for an activity whose input had no room for them."""
        return {} if self._driver is None else self._driver.run.values

    @workflow.query
    def outcome(self) -> Outcome:
        """The run's record as it is now, or as an earlier execution left it."""
        assert self._record is not None  # noqa: S101 - `run` has set it
        if self._driver is None:
            left = {"errors": self._errors, "raised": self._raised, "counted": self._counted}
            return cast("Outcome", encode_outcome(self._record) | left)
        return encode_outcome(self._driver.snapshot(), self._driver.raised)


async def _reported(record: RunRecord, duration: float) -> list[str]:
    """Have the hooks of this worker count the end of a run, because its caller may have died. Returns the classes of the
    hooks that did. An error or a cancellation changes nothing about the run: its caller counts it then."""
    if not workflow.patched(_REPORTS_END):
        return []
    end: End = {
        "workflow": record.workflow,
        "run_id": record.run_id,
        "key": None if record.key == record.run_id else record.key,
        "carrier": dict(record.carrier),
        "status": str(record.status),
        "duration": duration,
    }
    # A local activity costs no round trip to the server, and a replay does not repeat it.
    handle: workflow.ActivityHandle[list[str]] = workflow.start_local_activity(
        REPORT_END, end, start_to_close_timeout=_REPORTED, retry_policy=RetryPolicy(maximum_attempts=1)
    )
    try:
        return await handle
    except ActivityError:
        return []
    except asyncio.CancelledError:
        if not handle.cancelled():  # Temporal evicts the run from this worker's memory
            raise
        return []


def _refused(why: str) -> ApplicationError:
    return ApplicationError(why, type=SendRefused.__name__, non_retryable=True)
