"""`temporal_worker` makes a worker that runs workflows on Temporal, and their steps."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from temporalio import activity
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from .._engines.base import registration
from .._engines.checks import checked_hooks, period, positive_int
from .._engines.workers import Workers
from ..errors import DefinitionError
from ..events import Hook, Hooks, WorkflowRegistered
from ..events.process import with_process_hooks
from ..retry import Duration
from ..stores.codec import Codec
from ..workflow import Workflow
from .activity import Steps
from .definitions import register
from .flow import FlowcoreWorkflow
from .reporting import REPORT_END, End, report_end
from .wire import StepOutput, plain_encoding

__all__ = ["temporal_worker"]

_STICKY: Final = 10.0
"""seconds for which the server waits for the worker that has a run in its memory; less if leases are short"""


def temporal_worker(
    client: Client,
    *,
    task_queue: str,
    workflows: Iterable[Workflow[Any]],
    hooks: Iterable[Hook] = (),
    lease: Duration = 30.0,
    max_workers: int = 100,
    codec: Codec | None = None,
    **options: Any,
) -> Worker:
    """A `temporalio.worker.Worker` that runs `workflows` for every `TemporalEngine` of the same task queue.

    Run it with `await worker.run()`, or as `async with worker:`. Its task queue must be for such workers only. `hooks`
    get the events of the steps and undos that the worker runs, and RunEnded for the runs. `lease`: that of the engines;
    a shorter lease here only lets the worker stop sooner. `max_workers`: how many steps run at a time, including those
    that wait at most `park_after` seconds for their next attempt. `codec`: as of a store, the same as that of the
    engines. `options`: further arguments of the Worker. Its workflow code is flowcore's own and is not sandboxed.

    Raises DefinitionError if `workflows` is empty, has two workflows of one name, or has anything that is not a
    workflow.
    """
    most = positive_int(max_workers, "max_workers=")
    seconds = period(lease, "lease=")
    definitions = tuple(workflows)
    if not definitions:
        raise DefinitionError("workflows= is empty: a worker runs the workflows that it is given.")
    encoding = plain_encoding(codec)
    register(task_queue, definitions, encoding)
    own_hooks = Hooks(with_process_hooks(checked_hooks(hooks)))
    if WorkflowRegistered in own_hooks.wanted:
        for workflow in definitions:
            own_hooks.emit(registration(workflow, time.monotonic()), contextvars.copy_context())
    steps = Steps(client, own_hooks, encoding, Workers(most, "flowcore-temporal"))

    @activity.defn(dynamic=True)
    async def flowcore_step(args: Sequence[RawValue]) -> StepOutput:
        return await steps.perform(args)

    @activity.defn(name=REPORT_END)
    async def flowcore_run_ended(end: End) -> list[str]:
        return report_end(end, own_hooks)

    settings: dict[str, Any] = {
        "max_concurrent_activities": most,
        "max_heartbeat_throttle_interval": timedelta(seconds=seconds / 3),
        "default_heartbeat_throttle_interval": timedelta(seconds=seconds / 3),
        "sticky_queue_schedule_to_start_timeout": timedelta(seconds=min(_STICKY, seconds / 4)),
        "workflow_runner": UnsandboxedWorkflowRunner(),
    }
    worker = steps.pulse.worker = Worker(
        client,
        task_queue=task_queue,
        workflows=[FlowcoreWorkflow],
        activities=[flowcore_step, flowcore_run_ended],
        **(settings | options),
    )
    return worker
