"""How recovery behaves after a crash: 5,000 expired runs, four processes that recover them, and a live call meanwhile.

`python -m tests.benchmarks.durable_recovery STORE WHERE leave` leaves runs that expire; with `recover` instead it recovers them until it
is told to stop by a line on its standard input, and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from flowcore import Context, Engine, Workflow
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
    return report


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


if __name__ == "__main__":
    _, kind, address, what, number = sys.argv
    if what == "leave":
        _leave(_store(kind, address), int(number))
    else:
        _recover(_store(kind, address))
