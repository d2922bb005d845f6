"""A back office where things go wrong, as a process of its own with a /metrics to scrape; `load.py` starts some of them.

    python tests/dashboards/troubles.py ROLE FOLDER [REDIS_URL]

ROLE: `office` does what it is told on stdin, a trouble a line, and answers each with a line of JSON: how often its
callers were told what. `victim` begins runs that hang, says so, and waits to be killed. `sleeper` does the same, to be
stopped for longer than its lease. All share one SQLite store, so that the office takes over what the others leave.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, start_http_server
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from flowcore import (
    Backoff,
    Context,
    Engine,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    Retry,
    Run,
    RunParked,
    StoreError,
    Workflow,
)
from flowcore.events import Event, RunFinished, ScheduleMissed, StoreSurveyed
from flowcore.stores import RedisStore, SQLiteStore
from flowcore_otel import PrometheusHook, TracingHook

LEASE = 1.0
RECOVER_EVERY = 0.5
MAX_SERIES = 33  # of which the workflows below take all but a few
LONG = 6.0  # seconds of what takes too long

ROLE = sys.argv[1] if len(sys.argv) > 1 else "office"
HANGS = ROLE in {"victim", "sleeper"}
awake = threading.Event()
"""set when hanging steps may go on"""
hanging = threading.Semaphore(0)
"""released by each step that hangs"""


# -- workflows ---------------------------------------------------------------------------------------------------------


def returns() -> Workflow:
    """Goods come back. The refund fails if the values say so, and so does the undo of the collection."""
    wf = Workflow("returns")

    def collect(_: Context) -> str:
        time.sleep(0.01)
        return "parcel"

    def send_back(ctx: Context) -> None:
        if ctx["stuck"]:
            raise ConnectionError("the carrier's computer is down")

    def refund(ctx: Context) -> None:
        time.sleep(0.01)
        if ctx["refused"]:
            raise PermissionError("the card is closed")

    collected = wf.add_step("collect", collect, compensate=send_back)
    wf.add_step("refund", refund, depends_on=collected)
    return wf


def newsletter() -> Workflow:
    """Always fails, with nothing to undo."""
    wf = Workflow("newsletter")

    def render(_: Context) -> None:
        raise LookupError("no template")

    wf.add_step("render", render)
    return wf


def stock_feed() -> Workflow:
    """Succeeds at the third attempt."""
    wf = Workflow("stock-feed")

    def fetch(ctx: Context) -> None:
        if ctx.attempt < 3:
            raise TimeoutError("the feed is busy")

    wf.add_step("fetch", fetch, retry=Retry(3, Backoff.fixed(0.02)))
    return wf


def scan() -> Workflow:
    """Its step is given up, and its thread stays in the call."""
    wf = Workflow("scan")

    def read(_: Context) -> None:
        time.sleep(3 * LONG)  # on a busy machine, several scrapes in a row may be missed

    wf.add_step("read", read, timeout=0.1)
    return wf


def report() -> Workflow:
    """More steps at once than there are workers."""
    wf = Workflow("report")

    def page(_: Context) -> None:
        time.sleep(0.05)

    for number in range(8):
        wf.add_step(f"page-{number}", page)
    return wf


def queue() -> Workflow:
    """Two long steps for one worker: one waits, and none starts. The run outlasts the load."""
    wf = Workflow("queue")

    def work(_: Context) -> None:
        time.sleep(10 * LONG)

    for name in ("first", "second"):
        wf.add_step(name, work)
    return wf


def move() -> Workflow:
    """Fails past its pivot at the first try; the process that resumes it succeeds."""
    wf = Workflow("move")
    tried = Counter[str]()

    def confirm(ctx: Context) -> None:
        tried[ctx.run_id] += 1
        if tried[ctx.run_id] == 1:
            raise ConnectionError("no confirmation")

    announced = wf.add_step("announce", lambda _: None, pivot=True)
    wf.add_step("confirm", confirm, depends_on=announced)
    return wf


def transfer(name: str, **of_credit: Any) -> Workflow:
    """Its second step hangs in some processes."""
    wf = Workflow(name)

    def credit(_: Context) -> None:
        if HANGS:
            hanging.release()
            awake.wait(60)

    debited = wf.add_step("debit", lambda _: "10", compensate=lambda _: None)
    wf.add_step("credit", credit, depends_on=debited, **of_credit)
    return wf


def outdated() -> Workflow:
    """Has one more step in the process that is killed: no other process can take it over."""
    wf = transfer("outdated")
    if HANGS:
        wf.add_step("a step of yesterday", lambda _: None, depends_on="credit")
    return wf


def bulk() -> Workflow:
    """Has more steps than the hook has series for."""
    wf = Workflow("bulk")
    for number in range(12):
        wf.add_step(f"part-{number}", lambda _: None)
    return wf


RETURNS, NEWSLETTER, STOCK_FEED, SCAN, REPORT, QUEUE, MOVE = (
    make() for make in (returns, newsletter, stock_feed, scan, report, queue, move)
)
TRANSFER = transfer("transfer")
TRANSFER_UNDONE = transfer("transfer-undone", on_crash="undo")
TRANSFER_HELD = transfer("transfer-held", on_crash="hold")
OUTDATED = outdated()
TAKEN_OVER = (TRANSFER, TRANSFER_UNDONE, TRANSFER_HELD, OUTDATED)
BULK = bulk()
APPROVAL = Workflow("approval")
APPROVAL.wait("approved")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def grumpy(event: Event) -> None:
    """A hook that raises."""
    if isinstance(event, RunFinished) and event.workflow == "newsletter":
        raise RuntimeError("I do not like newsletters")


class Office:
    """Does what it is told."""

    def __init__(self, folder: Path, redis_url: str | None) -> None:
        self.registry = CollectorRegistry()
        hooks: list[Any] = [TracingHook(TracerProvider()), PrometheusHook(self.registry, max_series=MAX_SERIES), grumpy]
        store = SQLiteStore(folder / "runs.db", durability="normal")
        known = [RETURNS, NEWSLETTER, STOCK_FEED, SCAN, REPORT, MOVE, *TAKEN_OVER]
        self.engine = Engine(
            store=store,
            hooks=hooks,
            lease=LEASE,
            workflows=known,
            max_workers=16,
            recover_every=None if HANGS else RECOVER_EVERY,
        )
        self.small = Engine(hooks=hooks, max_workers=1, workflows=[QUEUE])
        self.remote: Engine | None = None
        if redis_url is not None:
            client = redis.Redis.from_url(redis_url, retry=RedisRetry(NoBackoff(), 0), socket_timeout=5)
            self.remote = Engine(store=RedisStore(client), hooks=hooks, lease=LEASE, workflows=[BULK], max_workers=8)
        self.pool = ThreadPoolExecutor(32)
        self.later: list[Future[Any]] = []
        self.number = 0
        self.troubles: dict[str, Callable[[], Counter[str]]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }

    def key(self) -> str:
        self.number += 1
        return f"{ROLE}-{self.number}"

    def run(self, wf: Workflow, values: dict[str, Any] | None = None, key: str | None = None, **options: Any) -> str:
        """How a caller is told that a run ended."""
        try:
            done: Run = self.engine.run(wf, values or {}, idempotency_key=key or self.key(), check=False, **options)
        except (IdempotencyHeld, IdempotencyInProgress, IdempotencyMismatch) as refusal:
            return {
                "IdempotencyHeld": "held",
                "IdempotencyInProgress": "in_progress",
                "IdempotencyMismatch": "mismatch",
            }[type(refusal).__name__]
        return "replayed" if done.replayed else str(done.status)

    def many(self, count: int, wf: Workflow, values: dict[str, Any] | None = None) -> Counter[str]:
        return Counter(self.pool.map(lambda _: self.run(wf, values), range(count)))

    def do_returns(self) -> Counter[str]:
        """Good ones, cleanly undone ones, and one that cannot be undone, whose key is then refused."""
        fine = self.many(2, RETURNS, {"refused": False, "stuck": False})
        undone = self.many(12, RETURNS, {"refused": True, "stuck": False})
        key, stuck = self.key(), {"refused": True, "stuck": True}
        return fine + undone + Counter([self.run(RETURNS, stuck, key), self.run(RETURNS, stuck, key)])

    def do_good(self) -> Counter[str]:
        return self.many(30, RETURNS, {"refused": False, "stuck": False})

    def do_failures(self) -> Counter[str]:
        return self.many(30, NEWSLETTER)

    def do_retries(self) -> Counter[str]:
        return self.many(12, STOCK_FEED)

    def do_fan_out(self) -> Counter[str]:
        return self.many(6, REPORT)

    def do_pivot(self) -> Counter[str]:
        return self.many(2, MOVE)

    def do_schedules(self) -> Counter[str]:
        """One that fires each second, and one whose fires cannot be begun, of which it gives one up."""
        given_up, reported = threading.Event(), Counter[str]()
        stocktake = Workflow("stocktake")
        stocktake.add_step("count", lambda _: reported.update(["success"]))

        def missed(event: Event) -> None:
            if isinstance(event, ScheduleMissed):
                given_up.set()

        def broken(planned: datetime) -> dict[str, Any]:
            raise LookupError("no shelves")

        hooks = [PrometheusHook(self.registry, max_series=MAX_SERIES), missed]
        with Engine(hooks=hooks, max_workers=1) as engine:
            engine.schedule(stocktake, every=1)
            engine.schedule(stocktake, every=1, values=broken, name="broken")
            given_up.wait(20)
            while not reported:
                time.sleep(0.01)
        # What a closed engine has planned is not shown, so another one waits for a fire until this process ends.
        self.small.schedule(stocktake, every=timedelta(days=36_500), name=f"inventory {self.key()}")
        return reported

    def do_waits(self) -> Counter[str]:
        """One that gets the approval it waits for, and one that waits on, as the store is counted."""
        counted = threading.Event()

        def surveyed(event: Event) -> None:
            if isinstance(event, StoreSurveyed) and event.waiting.get(("approval", "approved")):
                counted.set()

        future, key = self.engine.submit(APPROVAL, idempotency_key=self.key()), self.key()
        future.waiting(20)
        self.engine.run(APPROVAL, idempotency_key=key, until="waiting")
        hooks = [PrometheusHook(self.registry, max_series=MAX_SERIES), surveyed]
        with Engine(store=self.engine.store, hooks=hooks, workflows=[APPROVAL], recover_every=60, max_workers=1):
            counted.wait(20)
        self.engine.send(future.key or "", "approved", "yes")
        return Counter([str(future.result(20).status)])

    def do_duplicates(self) -> Counter[str]:
        """One that waits for the result, one that does not, one with other values, and one that comes later."""
        key = self.key()
        first = self.pool.submit(self.run, REPORT, {"month": 1}, key)
        while not self.engine.store.list_runs(workflow="report", status="running"):
            time.sleep(0.001)
        reported = Counter([self.run(REPORT, {"month": 1}, key), self.run(REPORT, {"month": 2}, key)])
        adopted = self.run(REPORT, {"month": 1}, key, wait=10)
        reported[first.result()] += 1
        reported["adopted" if adopted == "replayed" else adopted] += 1
        reported[self.run(REPORT, {"month": 1}, key)] += 1
        return reported

    def do_time_outs(self) -> Counter[str]:
        """More than half of the 25 workers of the three engines."""
        return self.many(14, SCAN)

    def do_queue(self) -> Counter[str]:
        """Ends later than the others; no caller waits for it."""
        self.small.submit(QUEUE)
        return Counter()

    def do_bulk(self) -> Counter[str]:
        """On redis."""
        assert self.remote is not None
        return Counter([str(self.remote.run(BULK, idempotency_key=self.key()).status)])

    def do_claims(self) -> Counter[str]:
        """On a redis that is not there, or that hangs."""
        remote = self.remote
        assert remote is not None

        def claim(_: int) -> str:
            try:
                return str(remote.run(BULK, idempotency_key=self.key(), check=False).status)
            except StoreError:
                return "refused"

        return Counter(self.pool.map(claim, range(8)))

    def do_parked(self) -> Counter[str]:
        """Begins a run on redis that is still going on when redis goes away; `load.py` sees to that."""
        assert self.remote is not None
        slow, begun = Workflow("slow"), threading.Event()

        def work(_: Context) -> None:
            begun.set()
            time.sleep(0.5)

        slow.add_step("work", work)
        slow.add_step("more", lambda _: None, depends_on="work")
        self.later.append(self.remote.submit(slow, idempotency_key=self.key()))
        begun.wait(10)
        return Counter()

    def do_taken_over(self) -> Counter[str]:
        """Nothing: waits until the runs of the others have been taken over and have ended."""
        while self.engine.store.list_runs(workflow="transfer", status="running"):
            time.sleep(0.02)
        return Counter()

    def do_the_rest(self) -> Counter[str]:
        """Waits for what was begun and not waited for."""
        reported = Counter[str]()
        while self.later:
            try:
                reported[str(self.later.pop().result().status)] += 1
            except RunParked:
                reported["parked"] += 1
        return reported

    def hang(self, counts: dict[Workflow, int]) -> None:
        """Begin runs that hang, and return once all are in their second step."""
        for wf, count in counts.items():
            for _ in range(count):
                self.later.append(self.engine.submit(wf, idempotency_key=self.key()))
        for _ in range(sum(counts.values())):
            hanging.acquire()


VICTIMS = {TRANSFER: 12, TRANSFER_UNDONE: 1, TRANSFER_HELD: 1, OUTDATED: 1}
SLEEPERS = {TRANSFER: 4}


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    office = Office(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
    server, thread = start_http_server(0, "127.0.0.1", office.registry)
    say({"port": server.server_port})
    for line in sys.stdin:
        order = line.strip()
        if order == "hang":
            office.hang(VICTIMS if ROLE == "victim" else SLEEPERS)
            say({})
        elif order == "wake":
            awake.set()
            for future in office.later:
                with contextlib.suppress(Exception):
                    future.result()
            say({})
        else:
            say(office.troubles[order]())
    server.shutdown()
    thread.join()


if __name__ == "__main__":
    main()
