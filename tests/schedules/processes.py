"""A process with a schedule, for test_processes.py to start several of. Its clock is wrong, and some of its runs kill it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowcore import AsyncEngine, Context, Engine, Workflow
from tests.durable.crash import Place

__all__ = ["lines", "schedule_until"]

DEADLY, FAILING = 4, 3
"""each fire whose second can be divided by it"""


def append(ledger: str, *words: object) -> None:
    with Path(ledger).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def lines(ledger: str) -> Iterator[list[str]]:
    with suppress(FileNotFoundError):
        for line in Path(ledger).read_text().splitlines():
            yield line.split()


def workflow_of(ledger: str) -> Workflow:
    wf = Workflow("every-second")

    @wf.step
    def work(ctx: Context) -> None:
        fire = ctx.scheduled_at
        assert fire is not None
        at = int(fire.timestamp())
        first = ["began", str(at)] not in [line[:2] for line in lines(ledger)]
        append(ledger, "began", at, os.getpid())
        time.sleep(0.05)
        if first and at % DEADLY == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        append(ledger, "failed" if at % FAILING == 0 else "done", at, os.getpid())
        if at % FAILING == 0:
            raise LookupError("this fire fails")

    return wf


def schedule_until(place: Place, asynchronous: bool, skew: float, ledger: str, end: float) -> None:
    """Have an engine with the schedule until the time `end`."""
    wf = workflow_of(ledger)
    options: dict[str, Any] = {"every": 1, "missed": "all", "overlap": "queue"}

    def wall() -> float:
        return time.time() + skew

    async def main() -> None:
        with place.store(asynchronous=True) as store:
            async with AsyncEngine(store=store, lease=1) as engine:
                engine._settings.wall = wall
                engine.schedule(wf, **options)
                await asyncio.sleep(max(0.0, end - time.time()))

    if asynchronous:
        asyncio.run(main())
        return
    with place.store() as store, Engine(store=store, lease=1) as engine:
        engine._settings.wall = wall
        engine.schedule(wf, **options)
        threading.Event().wait(max(0.0, end - time.time()))
