"""A deploy with other steps: runs in flight stay with the workers of their version, new ones go to the new version."""

import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import LEASE, PATIENCE, Temporal, connect, until

MODULE = Path(__file__).parent / "versions.py"


@pytest.fixture(scope="module")
def versions() -> Iterator[Any]:
    sys.path.insert(0, str(MODULE.parent))
    yield importlib.import_module("versions")
    sys.path.pop(0)


async def make_current(client: Any, deployment: str, build: str) -> None:
    """What `temporal worker deployment set-current-version` does."""
    from temporalio.api.workflowservice.v1 import SetWorkerDeploymentCurrentVersionRequest
    from temporalio.service import RPCError

    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace, deployment_name=deployment, build_id=build
    )
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await client.workflow_service.set_worker_deployment_current_version(request)
            except RPCError:  # the server has not heard of the workers yet
                await asyncio.sleep(0.2)
            else:
                return


def test_a_deploy_with_other_steps_leaves_runs_in_flight_to_their_version(temporal: Temporal, versions: Any) -> None:
    (old,), (new,) = versions.workflows("1"), versions.workflows("2")

    async def main() -> None:
        engine, later = await temporal.engine(), await temporal.engine()
        client = engine.store._client
        await asyncio.to_thread(temporal.worker_process, MODULE, "1")
        await make_current(client, temporal.queue, "1")
        before = engine.submit(old, idempotency_key="before")
        await before.waiting()
        await asyncio.to_thread(temporal.worker_process, MODULE, "2")
        await make_current(client, temporal.queue, "2")
        after = later.submit(new, idempotency_key="after")
        await after.waiting()
        for key in ("before", "after"):
            assert await engine.send(key, "paid", True)
        assert (await before)["ship"] == "shipped by 1"
        assert (await after)["ship"] == "shipped by 2"
        assert (await after)["check"] == "checked"

    temporal.run(main)


def test_a_worker_without_a_step_gives_it_back_and_the_step_is_not_in_doubt(temporal: Temporal, versions: Any) -> None:
    """In a deploy without worker versioning, workers of both versions poll for the same steps."""
    from flowcore.temporal import temporal_worker

    (new,) = versions.workflows("2")

    async def offers(engine: Any) -> int:
        """How often Temporal has offered the step that is in flight to a worker."""
        handle = engine.store._client.get_workflow_handle(f"{temporal.queue}:k")
        return max((step.attempt for step in (await handle.describe()).raw_description.pending_activities), default=0)

    async def main() -> None:
        engine = await temporal.engine(max_takeovers=1)
        about = {"task_queue": temporal.queue, "workflows": [new], "lease": LEASE}
        async with temporal_worker(engine.store._client, **about, no_remote_activities=True):
            future = engine.submit(new, idempotency_key="k")
            await future.waiting()
            await asyncio.to_thread(temporal.worker_process, MODULE)  # it polls for steps, and has no step "check"
            assert await engine.send("k", "paid", True)
            await until(lambda: _more_than(3, offers(engine)))
            temporal.kill_workers()
            async with temporal_worker(await connect(temporal.server.address), **about):
                run = await future
        assert (run["check"], run["ship"]) == ("checked", "shipped by 2")
        assert run.steps["check"].attempts == 1

    temporal.run(main)


async def _more_than(least: int, number: Any) -> bool:
    return bool(await number > least)
