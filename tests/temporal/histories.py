"""Histories of runs on Temporal: recorded from a server once for each release, replayed by the tests for ever.

`python tests/temporal/histories.py record ADDRESS FOLDER` writes them, `… replay FOLDER` replays them and prints their names.
A worker of a new version continues the runs of an old one only if it gives the same commands in the same order.
"""

import asyncio
import gzip
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from flowcore import Backoff, Retry, Workflow
from flowcore.temporal import TemporalEngine, temporal_worker
from flowcore.temporal.definitions import register
from flowcore.temporal.flow import FlowcoreWorkflow
from flowcore.temporal.wire import plain_encoding

QUEUE = "flowcore-histories"


def trip(name: str, *, fails: bool, **options: Any) -> Workflow:
    """A chain with retries, a `when=`, and an undo for each step."""
    wf = Workflow(name, **options)
    book = wf.add_step("book", lambda ctx: "seat 7")
    book.compensate(lambda ctx: None)

    @wf.step(depends_on=book, retry=Retry(3, Backoff.fixed(0)))
    async def pay(ctx: Any) -> float:
        ctx["paid"] = True
        if ctx.attempt == 1:
            raise ConnectionError("reset")
        return 9.5

    pay.compensate(lambda ctx: None)
    gift = wf.add_step("gift", lambda ctx: 1, depends_on=pay, when=lambda ctx: False)

    @wf.step(depends_on=gift)
    def mail(ctx: Any) -> Any:
        if fails:
            raise ValueError("no address")
        return ctx[book], ctx[pay]

    return wf


def generated(seed: int, **options: Any) -> Workflow:
    """A graph that a seed makes; some of its steps fail."""
    draw = random.Random(seed)
    wf = Workflow(f"generated {seed}", **options)
    for n in range(draw.randint(6, 12)):
        needs = [f"s{before}" for before in range(n) if draw.random() < 0.3]
        fails, skipped = draw.random() < 0.08, draw.random() < 0.15

        def step(ctx: Any, fails: bool = fails) -> str:
            if fails:
                raise ValueError(ctx.step)
            return str(ctx.step)

        made = wf.add_step(
            f"s{n}", lambda ctx, step=step: step(ctx), depends_on=needs, when=(lambda ctx: False) if skipped else None
        )
        if draw.random() < 0.6:
            made.compensate(lambda ctx: None)
    return wf


def held() -> Workflow:
    """An undo that fails, so that the run continues as a new execution, which waits."""
    wf = Workflow("held")
    wf.add_step("step", lambda ctx: 1).compensate(retry=1)(lambda ctx: 1 / 0)
    wf.add_step("fails", lambda ctx: 1 / 0, depends_on="step")
    return wf


def cancelled(started: threading.Event | None = None) -> Workflow:
    """A step that waits until its run is cancelled."""
    wf = Workflow("cancelled", on_failure="cancel")
    first = wf.add_step("first", lambda ctx: 1)
    first.compensate(lambda ctx: None)

    @wf.step(depends_on=first)
    async def hangs(ctx: Any) -> None:
        if started is not None:
            started.set()
        await asyncio.sleep(60)

    return wf


def waits() -> Workflow:
    """A sleep, a value that comes, and one that does not."""
    wf = Workflow("waits")
    wf.sleep("nap", 0.05)
    wf.wait("value", depends_on="nap")
    wf.wait("never", timeout=0.05, default="none", depends_on="nap")
    wf.add_step("after", lambda ctx: (ctx["value"], ctx["never"]), depends_on=["value", "never"])
    return wf


def backoff() -> Workflow:
    """A backoff that is long enough to be a timer of the workflow, beside another step."""
    wf = Workflow("backoff")
    wf.add_step("beside", lambda ctx: 1)

    @wf.step(retry=Retry(3, Backoff.fixed(0.2)))
    def step(ctx: Any) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("reset")
        return int(ctx.attempt)

    wf.add_step("after", lambda ctx: ctx["step"], depends_on="step")
    return wf


def workflows(started: threading.Event | None = None) -> list[Workflow]:
    return [
        trip("success", fails=False),
        trip("undone", fails=True, deadline=3600),
        trip("incomplete", fails=True, undo="never"),
        held(),
        cancelled(started),
        waits(),
        backoff(),
        generated(1),
        generated(2, parallel_undo=True),
        generated(3, max_parallel=2),
        generated(4, parallel_undo=True, max_parallel=3),
    ]


async def record(address: str, folder: Path) -> None:
    client = await Client.connect(address)
    started = threading.Event()
    definitions = workflows(started)
    engine = TemporalEngine(client, task_queue=QUEUE, prefix="histories:", lease=2, park_after=0.1)
    async with temporal_worker(client, task_queue=QUEUE, workflows=definitions):
        for wf in definitions:
            future = engine.submit(wf, {"n": 1}, idempotency_key=wf.name, check=False)
            if wf.name == "cancelled":
                await asyncio.to_thread(started.wait)
                await engine.cancel(key=wf.name)
            if wf.name == "waits":
                await future.waiting()
                await engine.send(wf.name, "value", 7)
            await future
            handle = client.get_workflow_handle(engine.store.workflow_id(wf.name), run_id=None)
            first = (await handle.describe()).raw_description.workflow_execution_info.first_run_id
            for part, run_id in {"": first, "-continued": (await handle.describe()).run_id}.items():
                if part and run_id == first:
                    continue
                history = await client.get_workflow_handle(handle.id, run_id=run_id).fetch_history()
                with gzip.open(folder / f"{wf.name.replace(' ', '-')}{part}.json.gz", "wt", encoding="utf-8") as file:
                    file.write(history.to_json())


async def replay(folder: Path, definitions: list[Workflow]) -> list[str]:
    """The names of the histories, which were replayed without a difference. Raises for one that was not."""
    register(QUEUE, definitions, plain_encoding(None))
    replayer = Replayer(workflows=[FlowcoreWorkflow], workflow_runner=UnsandboxedWorkflowRunner())
    names: list[str] = []
    for path in sorted(folder.glob("*.json.gz")):  # noqa: ASYNC240 - nothing else is on this loop
        with gzip.open(path, "rt", encoding="utf-8") as file:
            await replayer.replay_workflow(WorkflowHistory.from_json(path.name, file.read()))
        names.append(path.name.removesuffix(".json.gz"))
    return names


if __name__ == "__main__":
    if sys.argv[1] == "record":
        asyncio.run(record(sys.argv[2], Path(sys.argv[3])))
    else:
        print("\n".join(asyncio.run(replay(Path(sys.argv[2]), workflows()))), flush=True)
        # Threads of Temporal's core can abort an interpreter that ends in order while they let go of its lock.
        os._exit(0)
