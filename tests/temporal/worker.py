"""A worker in a process of its own: `worker.py ADDRESS TASK_QUEUE MODULE.py [BUILD]`, for the workflows that the module lists;
with BUILD as that version of the deployment that has the task queue's name."""

import asyncio
import importlib.util
import sys
from typing import Any

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from flowcore.temporal import temporal_worker


def version_of(task_queue: str, build: str) -> WorkerDeploymentConfig:
    """Runs stay with the version that began them."""
    version = WorkerDeploymentVersion(deployment_name=task_queue, build_id=build)
    return WorkerDeploymentConfig(version, True, VersioningBehavior.PINNED)


async def main(address: str, task_queue: str, path: str, build: str | None = None) -> None:
    spec = importlib.util.spec_from_file_location("workflows_of_the_worker", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = await Client.connect(address)
    options: dict[str, Any] = {} if build is None else {"deployment_config": version_of(task_queue, build)}
    workflows = module.workflows() if build is None else module.workflows(build)
    worker = temporal_worker(client, task_queue=task_queue, workflows=workflows, lease=2, **options)
    async with worker:
        print("polls", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
