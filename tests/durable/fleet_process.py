"""What a process of the fleet does, until it is killed or stopped: it runs orders, each under a key of its own, and resumes
what others left."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.cluster import ClusterNode

from flowcore import AsyncEngine, Engine, FlowcoreError, Status, Workflow
from flowcore.stores import AsyncRedisStore, RedisStore
from tests.durable.ledger import CALLED, Journal, Ledger
from tests.durable.sagas import World
from tests.durable.watched import Watched

__all__ = ["ENDS", "GRACE", "LEASE", "Post", "order", "serve", "store_of"]

LEASE: Final = 4.0
"""seconds; longer than a failover of the cluster takes, so that a run under way outlives one with its owner"""
GRACE: Final = 1.0
ENDS: Final = frozenset({Status.SUCCESS, Status.COMPENSATED})
"""how orders end"""
_PATIENCE: Final = 0.05
"""seconds after which a caller whose call was refused, because the store is away, calls again"""
_TIMEOUTS: Final = {"socket_timeout": 2.0, "socket_connect_timeout": 1.0}


@dataclass(frozen=True)
class Post:
    """Where and how a process works. `ports`: of the cluster's nodes. `calls`: the path of what its callers saw. `rate`:
    orders a second that arrive, whether or not earlier ones are done; 0: each caller sends the next when one is done.
    `pause`: seconds that each step waits for its provider."""

    ports: tuple[int, ...]
    ledger: str
    journal: str
    calls: str
    asynchronous: bool = False
    callers: int = 16
    rate: float = 0.0
    pause: float = 0.0


def order(world: World, pause: float = 0.0) -> Workflow:
    """Reserve, charge, ship; every tenth order is declined when it is shipped, and undone."""
    wf = Workflow("order")
    undo = world.as_step(world.undo)
    wf.add_step("reserve", _provided(world, pause), compensate=undo)
    wf.add_step("charge", _provided(world, pause), depends_on="reserve", compensate=undo)
    wf.add_step("ship", _provided(world, pause, declines=True), depends_on="charge", compensate=undo)
    return wf


def _provided(world: World, pause: float, *, declines: bool = False) -> Any:
    """A step whose provider takes a while, half of it before the effect and half of it after."""

    def act(ctx: Any) -> str:
        if declines and ctx["declined"]:
            world.fail(ctx)
        return world.do(ctx)

    def step(ctx: Any) -> str:
        CALLED.set(time.monotonic())
        time.sleep(pause / 2)
        result = act(ctx)
        time.sleep(pause / 2)
        return result

    async def step_async(ctx: Any) -> str:
        CALLED.set(time.monotonic())
        await asyncio.sleep(pause / 2)
        result = act(ctx)
        await asyncio.sleep(pause / 2)
        return result

    return step_async if world.asynchronous else step


@contextmanager
def store_of(post: Post) -> Iterator[Any]:
    """The store, of the kind that the process's engine likes best."""
    if post.asynchronous:
        nodes = [AsyncClusterNode("127.0.0.1", port) for port in post.ports]
        yield AsyncRedisStore(redis.asyncio.RedisCluster(startup_nodes=nodes, **_TIMEOUTS), prefix="fleet")
        return
    client = redis.RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", port) for port in post.ports], **_TIMEOUTS)
    try:
        yield RedisStore(client, prefix="fleet")
    finally:
        client.disconnect_connection_pools()
        client.close()


def serve(post: Post) -> None:
    """Run orders until SIGTERM."""
    logging.getLogger("flowcore").setLevel(logging.ERROR)  # warnings of a failover are many
    wf = order(World(Ledger(post.ledger), asynchronous=post.asynchronous), post.pause)
    with store_of(post) as real:
        store = Watched(real, Journal(post.journal))
        if post.asynchronous:
            asyncio.run(_serve_async(post, wf, store))
        else:
            _serve(post, wf, store)


class _Arrivals:
    """When the orders of this process arrive, and what became of them."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._calls = Ledger(post.calls)
        self._next = itertools.count()
        self._began = time.monotonic()

    def next(self) -> tuple[str, dict[str, Any], float]:
        """The key and the values of the next order, and when it arrives."""
        number = next(self._next)
        key = f"{os.getpid()}-{number}"
        due = self._began + number / self._post.rate if self._post.rate else time.monotonic()
        return key, {"key": key, "declined": number % 10 == 9}, due

    def ended(self, key: str, due: float, status: Status) -> bool:
        """Note an outcome; False: it is none yet, and the caller calls again."""
        now = time.monotonic()
        if status not in ENDS:
            return False
        self._calls.write((key, now, now - due, str(status)))
        return True


def _serve(post: Post, wf: Workflow, store: Any) -> None:
    arrivals, stop, lock = _Arrivals(post), threading.Event(), threading.Lock()
    told: SimpleQueue[None] = SimpleQueue()
    # A handler must not set an event that its own thread may be waiting for: it would wait for the event's lock.
    signal.signal(signal.SIGTERM, lambda *_: told.put(None))

    def call() -> None:
        while not stop.is_set():
            with lock:
                key, values, due = arrivals.next()
            stop.wait(max(0.0, due - time.monotonic()))
            while not stop.is_set():
                try:
                    run = engine.run(wf, values, idempotency_key=key, wait=2 * LEASE, once=True, check=False)
                except FlowcoreError:
                    stop.wait(_PATIENCE)
                else:
                    if arrivals.ended(key, due, run.status):
                        break

    with Engine(
        store=store, lease=LEASE, workflows=[wf], recover_every=LEASE / 4, max_workers=post.callers + 8
    ) as engine:
        callers = [threading.Thread(target=call) for _ in range(post.callers)]
        for caller in callers:
            caller.start()
        while told.empty():
            time.sleep(0.05)  # A signal that the system gives to another thread does not end a wait of this one.
        stop.set()
        engine.close(timeout=GRACE)
        for caller in callers:
            caller.join()


async def _serve_async(post: Post, wf: Workflow, store: Any) -> None:
    arrivals, stop = _Arrivals(post), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def call() -> None:
        while not stop.is_set():
            key, values, due = arrivals.next()
            await asyncio.sleep(due - time.monotonic())
            while not stop.is_set():
                try:
                    run = await engine.run(wf, values, idempotency_key=key, wait=2 * LEASE, once=True, check=False)
                except FlowcoreError:
                    await asyncio.sleep(_PATIENCE)
                else:
                    if arrivals.ended(key, due, run.status):
                        break

    async with AsyncEngine(store=store, lease=LEASE, workflows=[wf], recover_every=LEASE / 4) as engine:
        callers = [asyncio.create_task(call()) for _ in range(post.callers)]
        await stop.wait()
        await engine.aclose(timeout=GRACE)
        await asyncio.gather(*callers)
