"""What a step costs on Temporal: `python tests/benchmarks/temporal_cost.py TEMPORAL_ADDRESS REDIS_URL`.

A chain of ten plain steps, run one after another and ten at a time, on Redis and on Temporal, alternating, and beside it the same
as a Temporal workflow by hand, with activities and with local ones; and the events of one run's history, by the number of its
steps.
"""

import asyncio
import statistics
import sys
import time
import uuid
from datetime import timedelta
from typing import Any

import redis.asyncio
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from flowcore import AsyncEngine, Workflow
from flowcore.stores import AsyncRedisStore
from flowcore.temporal import TemporalEngine, temporal_worker

STEPS = 10
ROUNDS = 4
AT_ONCE = 10


def chain(length: int) -> Workflow:
    """Plain steps, one after the other."""
    wf = Workflow(f"chain of {length}")
    before: list[Any] = []
    for n in range(length):
        before = [wf.add_step(f"s{n}", lambda ctx: 1, depends_on=before)]
    return wf


@activity.defn
async def step() -> int:
    return 1


@workflow.defn
class ByHand:
    """So many activities, one after the other."""

    @workflow.run
    async def run(self, steps: int, local: bool) -> None:
        execute: Any = workflow.execute_local_activity if local else workflow.execute_activity
        for _ in range(steps):
            await execute(step, start_to_close_timeout=timedelta(seconds=30))


class Hand:
    """Runs `ByHand` where an engine would run a chain."""

    def __init__(self, client: Client, queue: str, *, local: bool) -> None:
        self._client, self._queue, self._local = client, queue, local

    async def run(self, wf: Workflow, *, idempotency_key: str) -> None:
        arguments = [len(wf.steps), self._local]
        await self._client.execute_workflow(
            ByHand.run, args=arguments, id=f"hand-{idempotency_key}", task_queue=self._queue
        )


async def seconds_of(engine: Any, wf: Workflow, runs: int) -> float:
    """Seconds that so many runs at once take."""
    began = time.perf_counter()
    await asyncio.gather(*(engine.run(wf, idempotency_key=uuid.uuid4().hex) for _ in range(runs)))
    return time.perf_counter() - began


async def main(address: str, url: str) -> None:
    client, wf, long = await Client.connect(address), chain(STEPS), chain(100)
    queue = f"bench-{uuid.uuid4().hex[:8]}"
    of_redis = redis.asyncio.Redis.from_url(url)
    on_redis = AsyncEngine(store=AsyncRedisStore(of_redis, prefix=queue))
    on_temporal = TemporalEngine(client, task_queue=queue, prefix=queue)
    by_hand = Worker(
        client,
        task_queue=f"{queue}-hand",
        workflows=[ByHand],
        activities=[step],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    engines: dict[str, Any] = {
        "redis": on_redis,
        "temporal": on_temporal,
        "by hand": Hand(client, f"{queue}-hand", local=False),
        "by hand, local": Hand(client, f"{queue}-hand", local=True),
    }
    async with temporal_worker(client, task_queue=queue, workflows=[wf, long]), by_hand, on_redis:
        taken: dict[tuple[str, int], list[float]] = {}
        for number in range(ROUNDS + 1):
            for name, engine in engines.items():
                for runs in (1, AT_ONCE):
                    took = await seconds_of(engine, wf, runs)
                    if number:  # the first round warms up
                        taken.setdefault((name, runs), []).append(took)
        for (name, runs), times in taken.items():
            whole = statistics.median(times)
            print(
                f"{name:15} {runs:3} at once: {whole / STEPS * 1e3:7.2f} ms a step, {runs * STEPS / whole:8.0f} steps/s"
            )
        for one in (wf, long):
            key = uuid.uuid4().hex
            await on_temporal.run(one, idempotency_key=key)
            handle = client.get_workflow_handle(on_temporal.store.workflow_id(key))
            print(f"{one.name}: {(await handle.describe()).history_length} events")
    await of_redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
