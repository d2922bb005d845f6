"""The verbs for operators of runs on Temporal: find runs, send values, and decide on runs that wait for a decision."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Never, cast

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeTaskQueueRequest
from temporalio.client import WorkflowExecutionStatus, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from ..errors import DefinitionError, RunNotFound, SendRefused, StoreError, error_message, hashed_key, safe_repr
from ..retry import Duration, seconds
from ..run import names_of_sent
from ..status import Status
from ..stores.arguments import check_listing, check_reason
from ..stores.base import Page, RunRecord
from ..stores.decide import Order, decide_order, unknown_key
from ..stores.encoding import STEP
from .flow import FlowcoreWorkflow
from .server import RELEASE, TemporalServer, head_of, is_running
from .wire import SentValue

if TYPE_CHECKING:
    from ..step import Step

__all__ = ["Operators"]

_OPEN = frozenset({"running", "waiting", "held", "parked", "incomplete", "compensation_failed"})
"""statuses that a run may have while its workflow is open"""
_NEVER = frozenset({"queued", "expired", "lost"})
"""statuses that no run has on Temporal"""


_PAGE: Final = 1000
"""the most runs that a Temporal server lists at a time"""


class Operators(TemporalServer):
    """The verbs of a store for operators. Each raises StoreUnavailable if the server is unreachable. Those that change
    a run raise RunNotFound for a key that has no run."""

    # -- looking -------------------------------------------------------------------------------------------------------

    async def find(self, key: str, /) -> RunRecord | None:
        """The record of the run with this key, or None."""
        handle = self._handle(key)
        found = await self._described(handle)
        if found is None:
            return None
        return await (self._live(handle, found) if is_running(found) else self._closed(handle, found, {}))

    async def head(self, key: str, /) -> RunRecord | None:
        """The head of the record of the run with this key, or None. It is cheap, for callers that poll."""
        found = await self._described(self._handle(key))
        return None if found is None else await head_of(found, self._lease)

    async def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run without a key, by the run's id. Raises RunNotFound for any other id, even for that of a
        run with a key."""
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
        """Heads of runs, newest first. `status`: a status of runs, or "held"; `after`: the cursor of the page before;
        `text`: a part of the key or run id. Temporal's listing may lag behind by a second. Raises DefinitionError for
        an unknown status, and for an `after` that is not a cursor."""
        check_listing(status, workflow, limit, text)
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
        token = _token(after)
        page = Page()
        if status in _NEVER:
            return page
        most = min(limit or _PAGE, _PAGE)
        while True:
            listed = self._client.list_workflows(" AND ".join(wanted), page_size=most, next_page_token=token)
            await self._reached(listed.fetch_next_page())
            found: list[tuple[int, RunRecord]] = []
            for place, execution in enumerate(listed.current_page or (), 1):
                if execution.status is WorkflowExecutionStatus.CONTINUED_AS_NEW:
                    continue
                head = await head_of(execution, self._lease)
                is_wanted = status is None or (head.held if status == "held" else str(head.status) == status)
                if is_wanted and head.started <= before and (text is None or text in head.key or text in head.run_id):
                    found.append((place, head))
            if limit is not None and len(page) + len(found) > limit:
                # Temporal has cursors only for the ends of its pages, so this one is read again up to the last run that
                # the caller gets.
                most = found[limit - len(page) - 1][0]
                continue
            page += [head for _, head in found]
            token, most = listed.next_page_token, min(limit or _PAGE, _PAGE)
            if not token or len(page) == limit:
                page.cursor = token.hex() if token else None
                return page

    async def counts(self) -> dict[tuple[str, str], int]:
        """The number of runs that are not over, by (workflow, status). Each run is counted once: as held, or else by
        its status. This lists all of these runs."""
        found: Counter[tuple[str, str]] = Counter()
        wanted = f"TaskQueue = {_quoted(self._task_queue)} AND ExecutionStatus = 'Running'"
        listed = self._client.list_workflows(wanted, page_size=_PAGE)
        while True:
            await self._reached(listed.fetch_next_page())
            for execution in listed.current_page or ():
                head = await head_of(execution, self._lease)
                found[head.workflow, "held" if head.held else str(head.status)] += 1
            if not listed.next_page_token:
                return dict(found)

    async def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """A report on this task queue for operators: how many workers poll it, for how many seconds the namespace keeps
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
            report["risk"] = "no worker has polled this task queue in the last five minutes: runs make no progress"
        counted: Counter[str] = Counter()
        for (_, status), number in (await self.counts()).items():
            counted[status] += number
        return report | dict(counted)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def send(
        self,
        key: str,
        name: Step[Any] | str,
        value: Any,
        /,
        *,
        id: str | None = None,  # noqa: A002 - the word for it
        carrier: Mapping[str, str] | None = None,
    ) -> bool:
        """Send a value to the wait `name` of the run with this key: see `Store.send`. The call waits for a worker,
        which decides whether the value counts."""
        name, id = names_of_sent(name, id, carrier)  # noqa: A001
        handle = self._handle(key)
        found = await self._described(handle)
        if found is None:
            raise unknown_key(key)
        run_id = (await found.memo())["run_id"]
        text = self._encoding.dumped(value, Any, "the value for wait", name, run_id, STEP + name)
        host, pid = socket.gethostname(), os.getpid()
        sent: SentValue = {
            "value": text,
            "at": time.time(),
            "host": host,
            "pid": pid,
            "id": id,
            "carrier": dict(carrier or {}),
        }
        try:
            counts: bool = await self._reached(cast("Any", handle).execute_update("send", args=[name, sent]))
        except RunNotFound:
            raise SendRefused(f"The run of key {hashed_key(key)} has ended and accepts no values.", key=key) from None
        except WorkflowUpdateFailedError as error:
            cause = error.cause  # the text of an ApplicationError begins with its type
            why = cause.message if isinstance(cause, ApplicationError) else error_message(cause)
            raise SendRefused(why, key=key) from error
        return counts

    # -- deciding ------------------------------------------------------------------------------------------------------

    async def hold(self, key: str, /, reason: str | None = None) -> None:
        """Hold a run that waits for a decision: only an operator can decide on it, and its key is refused until then.
        Raises StoreError for a run that is running, waiting for a value, or over."""
        await self._decide(key, "hold", reason)

    async def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Resume a held, parked or incomplete run where it stopped. Raises StoreError for any other run."""
        await self._decide(key, "resume", reason)

    async def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Undo a run that is held, parked or incomplete. A run that is running or waits for a value is cancelled
        instead. This undoes it too, unless it is past its pivot: then it is left incomplete, and another call undoes
        it."""
        await self._decide(key, "undo", reason)

    async def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run: its steps are undone, or, if it is past its pivot, it is left incomplete. Raises StoreError for
        a run that is over."""
        await self._decide(key, "cancel", reason)

    async def release(self, key: str, /, *, force: bool = False) -> None:
        """Give up a run that waits for a decision, so that the next call with its key starts afresh. `force`: also give
        up a run that is running or waits for a value; none of its steps are undone. Raises StoreError for a run that is
        over."""
        await self._ordered(key, "release", force=force)
        await self._reached(self._handle(key).terminate(reason=RELEASE))

    async def erase(self, key: str, /, *, force: bool = False) -> Never:
        """Not supported: raises StoreError. The users' data of a run is in its history, which Temporal can only delete
        as a whole."""
        raise StoreError(
            "Temporal can erase the data of a run only together with the run: delete its workflow there, or encrypt "
            "with a payload codec.",
            key=key,
        )

    async def gc(self) -> Never:
        """Not supported: raises StoreError. Temporal itself deletes runs that are over."""
        raise StoreError(
            "Temporal itself forgets runs that are over, once the retention of their namespace has passed. Change that with "
            "`temporal operator namespace update --retention`, or delete a run with `temporal workflow delete`."
        )

    async def _decide(self, key: str, decision: str, reason: str | None) -> None:
        check_reason(reason)
        order, handle = await self._ordered(key, decision), self._handle(key)
        if order is Order.NOTIFY_OWNER:
            await self._reached(handle.cancel(reason=reason or ""))
        else:
            await self._reached(handle.signal(FlowcoreWorkflow.decide, args=[decision, reason]))

    async def _ordered(self, key: str, verb: str, *, force: bool = False) -> Order:
        """Decide what a verb does to the run of a key. Raises RunNotFound, and StoreError if the verb is refused."""
        found = await self._described(self._handle(key))
        if found is None:
            raise unknown_key(key)
        head = await head_of(found, self._lease)
        if force and is_running(found):
            return Order.STOP
        order = decide_order(head, is_running(found) and head.status in {Status.RUNNING, Status.WAITING}, verb)
        if not is_running(found):
            raise StoreError(
                f"The run of key {hashed_key(key)} has ended with {head.status}, and Temporal cannot change an ended "
                "run. Call with another key.",
                key=key,
            )
        return order


def _token(cursor: str | None) -> bytes | None:
    try:
        return None if cursor is None else bytes.fromhex(cursor)
    except (TypeError, ValueError):
        raise DefinitionError(
            f"list_runs(after=) must be the cursor of an earlier page, not {safe_repr(cursor)}."
        ) from None


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
