"""How recovery behaves: after a crash with 5,000 expired runs, which four processes recover while live calls come in; and after
a SIGTERM in the middle of a run, which another process resumes.

`python -m tests.benchmarks.durable_recovery STORE WHERE PART N` is one of these processes. The parts: `leave` leaves N runs that
expire; `recover` recovers them until it reads a line, and prints what it saw as JSON; `threads` and `asyncio` take part in a run
of many steps, which the one with N = 1 begins, and print the time of the first step that they run.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from flowcore import AsyncEngine, Context, Engine, Workflow
from flowcore.stores import RedisStore, SQLiteStore
from flowcore.stores.base import Claimed

from .durable_work import a_redis
from .harness import Options, Report, Row, Target
from .memory import ROOT

__all__ = ["measure"]

RUNS: Final = 5_000
PROCESSES: Final = 4
LEASE: Final = 2.0
REFUSED: Final = Target("of all claims", 20, "percent")
LIVE: Final = Target("a live call", 1_000, "ms")
NEXT: Final = Target("the next process's step", 500, "ms")


def measure(options: Options) -> Report:
    report = Report("durable recovery", "four processes recover what a crash has left", "see each line", "its limit")
    runs = 500 if options.quick else RUNS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        places = {"sqlite": str(folder / "runs.db")}
        if (url := a_redis(report, stack, folder / "redis")) is not None:
            places["redis"] = url
        for name, where in places.items():
            report.rows += _after_a_crash(name, where, runs)
            report.rows += [_after_sigterm(name, where, engine) for engine in ("threads", "asyncio")]
    return report


def _after_sigterm(name: str, where: str, engine: str) -> Row:
    first, second = (
        subprocess.Popen(_command(name, where, engine, begins), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for begins in (1, 0)
    )
    assert first.stdout is not None
    assert second.stdout is not None
    first.stdout.readline()
    second.stdout.readline()  # it is ready
    time.sleep(0.5)
    sent = time.time()
    first.send_signal(signal.SIGTERM)
    took = (float(second.stdout.readline()) - sent) * 1_000
    for process in (first, second):
        process.kill()
        process.communicate()
    return Row(
        f"{name}, {engine}: from SIGTERM to the next process's step, ms", took, None, took / NEXT.limit, NEXT, took
    )


def _after_a_crash(name: str, where: str, runs: int) -> list[Row]:
    subprocess.run(_command(name, where, "leave", runs), cwd=ROOT, check=False)
    time.sleep(LEASE)
    began = time.monotonic()
    workers = [
        subprocess.Popen(
            _command(name, where, "recover", runs), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    store = _store(name, where)
    while store.counts():
        time.sleep(0.2)
    took = time.monotonic() - began
    seen = [json.loads(worker.communicate("stop\n", 60)[0]) for worker in workers]
    claims, refused = sum(one["claims"] for one in seen), sum(one["refused"] for one in seen)
    share, live = 100 * refused / claims, max(one["live"] for one in seen) * 1_000
    return [
        Row(f"{name}: {runs:,} runs recovered, ms a run", took / runs * 1_000),
        Row(f"{name}: claims refused, percent of {claims:,}", share, None, share / REFUSED.limit, REFUSED, share),
        Row(f"{name}: a live call begins after, ms", live, None, live / LIVE.limit, LIVE, live),
    ]


def _command(name: str, where: str, what: str, runs: int) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.durable_recovery", name, where, what, str(runs)]


def _store(name: str, where: str) -> Any:
    if name == "sqlite":
        return SQLiteStore(where, durability="normal")
    import redis

    return RedisStore(redis.Redis.from_url(where))


class _Counted:
    """A store that counts the claims that are sent through it, and those that it refuses."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.claims = self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(self, claim: Any) -> Any:
        answer = self._store.claim(claim)
        self.claims += 1
        self.refused += not isinstance(answer, Claimed)
        return answer


def _trip() -> Workflow:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: time.sleep(0.005))
    wf.add_step("pay", lambda ctx: "paid", depends_on="book")
    return wf


def _leave(store: Any, runs: int) -> None:
    """Record runs, begin none of them, and die."""
    wf, held = _trip(), threading.Event()

    def hold(ctx: Context) -> None:
        held.wait()

    blocking = Workflow("blocking")
    blocking.add_step("hold", hold)
    engine = Engine(store=store, lease=LEASE, max_workers=1)
    engine.submit(blocking)
    for number in range(runs):
        engine.submit(wf, {"number": number}, idempotency_key=f"trip {number}")
    os._exit(9)


def _recover(store: Any) -> None:
    counted, wf = _Counted(store), _trip()
    begun = list[float]()
    live = Workflow("live")
    live.add_step("begin", lambda ctx: begun.append(time.monotonic()))
    blocking = Workflow("blocking")
    blocking.add_step("hold", lambda ctx: None)
    with Engine(store=counted, workflows=[wf, blocking], recover_every=0.2, lease=LEASE) as engine:
        time.sleep(0.5)
        called = time.monotonic()
        engine.submit(live).result()
        sys.stdin.readline()
    print(json.dumps({"claims": counted.claims, "refused": counted.refused, "live": begun[0] - called}))


def _long(engine: str) -> Workflow:
    """A run of many short steps, the first of which that this process runs prints when."""
    wf = Workflow(engine)
    printed = list[float]()

    def step(ctx: Context) -> None:
        if not printed:
            printed.append(time.time())
            print(printed[0], flush=True)
        time.sleep(0.01)

    for number in range(1_000):
        wf.add_step(f"step {number}", step, depends_on=f"step {number - 1}" if number else ())
    return wf


def _take_part(store: Any, engine: str, *, begins: bool) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    wf = _long(engine)
    options: dict[str, Any] = {"store": store, "workflows": [wf], "recover_every": 0.2, "lease": 30}
    if not begins:
        print("ready", flush=True)

    async def main() -> None:
        async with AsyncEngine(**options) as one:
            await (one.run(wf, idempotency_key=engine) if begins else asyncio.Event().wait())

    if engine == "asyncio":
        asyncio.run(main())
        return
    with Engine(**options) as one:
        if begins:
            one.run(wf, idempotency_key=engine)
        else:
            signal.pause()


if __name__ == "__main__":
    _, kind, address, what, number = sys.argv
    if what == "leave":
        _leave(_store(kind, address), int(number))
    elif what == "recover":
        _recover(_store(kind, address))
    else:
        _take_part(_store(kind, address), what, begins=number == "1")
