"""A worker in a process of its own: `worker.py ADDRESS TASK_QUEUE MODULE.py`, for the workflows that the module lists."""

import asyncio
import importlib.util
import sys
from typing import Any

from temporalio.client import Client

from flowcore.temporal import temporal_worker


async def main(address: str, task_queue: str, path: str) -> None:
    spec = importlib.util.spec_from_file_location("workflows_of_the_worker", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = await Client.connect(address)
    worker = temporal_worker(client, task_queue=task_queue, workflows=module.workflows(), lease=2)
    async with worker:
        print("polls", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
