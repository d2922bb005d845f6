"""What operators do with runs on Temporal: look, send, and decide what becomes of those that are left."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Never, cast

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError

from ..errors import RunNotFound, SendRefused, StoreError, error_message, hashed_key, safe_repr
from ..retry import Duration, seconds
from ..status import Status
from ..stores.base import Page, RunRecord
from ..stores.decide import Order, check_listing, decide_order
from .flow import FlowcoreWorkflow
from .server import TemporalServer, head_of, is_running
from .wire import SentValue

__all__ = ["Operators"]

_OPEN = frozenset({"running", "waiting", "held", "parked", "incomplete", "compensation_failed"})
"""what a run may be while its workflow is open"""
_NEVER = frozenset({"queued", "expired", "lost"})
"""what no run is here"""


class Operators(TemporalServer):
    """The verbs of a store that people use. Each raises StoreUnavailable where the server is unreachable, and RunNotFound for
    a key that has no run."""

    # -- looking -------------------------------------------------------------------------------------------------------

    async def find(self, key: str, /) -> RunRecord | None:
        """The record of the run that has a key, or None."""
        handle = self._handle(key)
        found = await self._described(handle)
        if found is None:
            return None
        return await (self._live(handle, found) if is_running(found) else self._closed(handle, {}))

    async def head(self, key: str, /) -> RunRecord | None:
        """The head of the record of the run that has a key, or None: cheap, for callers that poll."""
        found = await self._described(self._handle(key))
        return None if found is None else await head_of(found, self._lease)

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
        """Heads of runs, newest first. `status`: of the run, or "held"; `after`: a page's cursor; `text`: in key or run id. What
        Temporal lists may lag behind by a second."""
        check_listing(status, limit)
        wanted = [f"TaskQueue = {_quoted(self._task_queue)}"]
        if workflow is not None:
            wanted.append(f"WorkflowType = {_quoted(workflow)}")
        if status in _OPEN:
            wanted.append("ExecutionStatus = 'Running'")
        elif status == "success":
            wanted.append("ExecutionStatus = 'Completed'")
        elif status is not None:
            wanted.append("ExecutionStatus = 'Failed'")
        before = math.inf if older_than is None else time.time() - seconds(older_than, "older_than=")
        token = None if after is None else bytes.fromhex(after)
        page = Page()
        if status in _NEVER:
            return page
        found = self._client.list_workflows(" AND ".join(wanted), page_size=limit or 1000, next_page_token=token)
        while limit is None or len(page) < limit:
            await self._reached(found.fetch_next_page())
            for execution in found.current_page or ():
                if execution.status is WorkflowExecutionStatus.CONTINUED_AS_NEW:
                    continue
                head = await head_of(execution, self._lease)
                is_wanted = status is None or (head.held if status == "held" else str(head.status) == status)
                if is_wanted and head.started <= before and (text is None or text in head.key or text in head.run_id):
                    page.append(head)
            if not found.next_page_token:
                break
        page.cursor = found.next_page_token.hex() if found.next_page_token else None
        return page

    async def counts(self) -> dict[tuple[str, str], int]:
        """(workflow, status) -> how many runs that are not over, each counted once: as held, or else by its status. It lists
        all of them."""
        found: Counter[tuple[str, str]] = Counter()
        wanted = f"TaskQueue = {_quoted(self._task_queue)} AND ExecutionStatus = 'Running'"
        listed = self._client.list_workflows(wanted, page_size=1000)
        while True:
            await self._reached(listed.fetch_next_page())
            for execution in listed.current_page or ():
                head = await head_of(execution, self._lease)
                found[head.workflow, "held" if head.held else str(head.status)] += 1
            if not listed.next_page_token:
                return dict(found)

    async def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """What of this task queue an operator should know: whether workers poll it, for how many seconds the namespace keeps
        runs that are over, and how many runs are not over, by status. `deep` adds nothing."""
        service, namespace = self._client.workflow_service, self._client.namespace
        asked = DescribeNamespaceRequest(namespace=namespace)
        kept = (await self._reached(service.describe_namespace(asked))).config.workflow_execution_retention_ttl
        queue = DescribeTaskQueueRequest(
            namespace=namespace,
            task_queue=TaskQueue(name=self._task_queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        polled = await self._reached(service.describe_task_queue(queue))
        report: dict[str, str | int | float] = {
            "store": "temporal",
            "namespace": namespace,
            "task queue": self._task_queue,
            "retention": kept.ToTimedelta().total_seconds(),
            "pollers": len(polled.pollers),
        }
        if not polled.pollers:
            report["risk"] = "no worker has polled this task queue in the last five minutes: nothing goes on"
        counted: Counter[str] = Counter()
        for (_, status), number in (await self.counts()).items():
            counted[status] += number
        return report | dict(counted)

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

    async def hold(self, key: str, /, reason: str | None = None) -> None:
        """Have a run that waits for a decision wait for one by an operator, and refuse its key meanwhile. Raises StoreError
        for a run that is at work or over."""
        await self._decide(key, "hold", reason)

    async def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Resume a run that is held, parked or incomplete, where it stopped. Raises StoreError for any other run."""
        await self._decide(key, "resume", reason)

    async def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Undo a run that is held, parked or incomplete; cancel one that is at work or waits, which undoes it too, unless it is
        past its pivot: then it is incomplete, and may be undone."""
        await self._decide(key, "undo", reason)

    async def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run: what it did is undone, or, past its pivot, left incomplete. Raises StoreError for one that is over."""
        await self._decide(key, "cancel", reason)

    async def release(self, key: str, /, *, force: bool = False) -> None:
        """Give a run up that waits for a decision, so that the next call with its key starts afresh. `force`: also one that is
        at work, whose steps in flight are not undone. Raises StoreError for a run that is over."""
        await self._ordered(key, "release", force=force)
        await self._reached(self._handle(key).terminate(reason="released by flowcore"))

    async def erase(self, key: str, /, *, force: bool = False) -> Never:
        """Refused: raises StoreError. What users put into a run is in its history, which Temporal forgets as a whole."""
        raise StoreError(
            "Temporal forgets what users put into a run only with the whole run: delete its workflow there, or encrypt with a "
            "payload codec.",
            key=key,
        )

    async def gc(self) -> Never:
        """Refused: raises StoreError. Temporal forgets runs that are over by itself."""
        raise StoreError(
            "Temporal itself forgets runs that are over, once the retention of their namespace has passed. Change that with "
            "`temporal operator namespace update --retention`, or delete a run with `temporal workflow delete`."
        )

    async def _decide(self, key: str, decision: str, reason: str | None) -> None:
        order, handle = await self._ordered(key, decision), self._handle(key)
        if order is Order.TELL:
            await self._reached(handle.cancel(reason=reason or ""))
        else:
            await self._reached(handle.signal(FlowcoreWorkflow.decide, args=[decision, reason]))

    async def _ordered(self, key: str, verb: str, *, force: bool = False) -> Order:
        """What the verb comes to for the run of a key. Raises RunNotFound, and StoreError where it is refused."""
        found = await self._described(self._handle(key))
        if found is None:
            raise RunNotFound(f"No run with key {hashed_key(key)} here.", key=key)
        head = await head_of(found, self._lease)
        if force and is_running(found):
            return Order.STOP
        order = decide_order(head, is_running(found) and head.status in {Status.RUNNING, Status.WAITING}, verb)
        if not is_running(found):
            raise StoreError(
                f"The run of key {hashed_key(key)} has ended with {head.status}, and Temporal changes no run that is over. Call "
                "with another key.",
                key=key,
            )
        return order


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
