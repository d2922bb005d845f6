"""How much resident memory runs in flight take, each measurement in a process of its own.

`python -m tests.benchmarks.memory SUBJECT RUNS` prints the bytes by which the process has grown while that many runs
were suspended in their first step.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .subjects import OURS, FlowcoreThreads, Subject, workflow
from .work import ASYNC, SYNC, Step, Work, chain

__all__ = ["growth"]

ROOT = Path(__file__).parents[2]


def growth(subject: str, runs: int) -> int:
    """Bytes of growth with `runs` runs in flight, measured in a new process."""
    command = [sys.executable, "-m", f"{__package__}.memory", subject, str(runs)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout)


def resident() -> int:
    """Bytes of this process that are in memory; its peak, where the system does not tell the present."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


async def suspended(subject: Subject, runs: int) -> int:
    """Runs that all wait in their first step of five, each in a task."""
    gate = asyncio.Event()

    async def wait(ctx: Any) -> None:
        await gate.wait()

    async def one() -> None:
        await run()

    run = subject.prepare(chain([wait, *[ASYNC.noop] * 4], is_async=True))
    gate.set()
    for _ in range(10):
        await run()
    gate.clear()
    gc.collect()
    before = resident()
    tasks = [asyncio.create_task(one()) for _ in range(runs)]
    for _ in range(3):
        await asyncio.sleep(0)
    grown = resident() - before
    gate.set()
    await asyncio.gather(*tasks)
    return grown


def backing_off(subject: FlowcoreThreads, runs: int) -> int:
    """Runs on threads that all wait for their second attempt, which takes no thread."""
    from flowcore import Backoff, Retry, Workflow

    again: set[str] = set()

    def flaky(ctx: Any) -> None:
        if ctx.attempt == 1:
            again.add(ctx.run_id)
            raise ConnectionError

    engine, waits = subject.engine, Workflow("waits")
    waits.add_step("flaky", flaky, retry=Retry(2, Backoff.fixed(3.0 + runs / 5000)))
    wf = workflow(Work((Step("noop", SYNC.noop),), 1, is_async=False))
    for future in [engine.submit(wf) for _ in range(1000)]:
        future.result()
    gc.collect()
    before = resident()
    futures = [engine.submit(waits) for _ in range(runs)]
    while len(again) < runs:
        time.sleep(0.01)
    grown = resident() - before
    if any(future.done() for future in futures):
        raise AssertionError("some runs were over before all had begun")
    return grown


def main(name: str, runs: int) -> int:
    subject = next(make() for make in OURS if make.name == name)
    if isinstance(subject, FlowcoreThreads):
        return backing_off(subject, runs)
    return asyncio.run(suspended(subject, runs))


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
