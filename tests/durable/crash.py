"""Runs that are killed: what their processes do."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
import redis.asyncio

from flowcore import AsyncEngine, Engine, IdempotencyHeld, Workflow
from flowcore.stores import AsyncRedisStore, RedisStore, SQLiteStore
from tests.durable.ledger import Journal, Ledger
from tests.durable.sagas import World, saga
from tests.durable.watched import Bomb, Fuse, Watched

__all__ = ["Job", "Place", "run_jobs", "run_torn"]


@dataclass(frozen=True)
class Place:
    """Where runs are kept, and where their effects and the store's words are written. `kind`: sqlite or redis."""

    kind: str
    address: str
    """a path, or a URL"""
    prefix: str
    ledger: str
    journal: str

    @contextmanager
    def store(self, *, asynchronous: bool = False, **options: Any) -> Iterator[Any]:
        """A store of this process's own; `asynchronous`: of the kind that AsyncEngine likes best. `options`: of SQLiteStore,
        or of the client of Redis."""
        if self.kind == "sqlite":
            # The death of a process loses nothing that SQLite had accepted, whether or not it waits for the disk.
            store = SQLiteStore(self.address, durability="normal", **options)
            yield store
            store.close()
        elif asynchronous:
            yield AsyncRedisStore(redis.asyncio.Redis.from_url(self.address, **options), prefix=self.prefix)
        else:
            with redis.Redis.from_url(self.address, **options) as client:
                yield RedisStore(client, prefix=self.prefix)


@dataclass(frozen=True)
class Job:
    """A run of a saga, and where it is to be killed: the `occurrence`-th time that it comes to `label`, or to anything;
    0: never."""

    saga: str
    key: str
    label: str = ""
    occurrence: int = 0


def run_jobs(place: Place, jobs: Sequence[Job], lease: float, asynchronous: bool, outcomes: str) -> None:
    """Do all jobs at once. This process dies when all are where they are to die, or over, which `outcomes` is told of:
    the key, and the points that the run has come to."""
    bomb, reported = Bomb(len(jobs)), Ledger(outcomes)
    with place.store(asynchronous=asynchronous) as real:

        def run(job: Job) -> None:
            fuse = Fuse(job.label, job.occurrence, bomb.die)
            world = World(
                Ledger(place.ledger),
                fuse,
                beaten=lambda: fuse.seen["after renew"] > 0,
                broken=lambda: True,
                asynchronous=asynchronous,
            )
            store = Watched(real, Journal(place.journal), fuse)
            wf = saga(job.saga, world)
            if asynchronous:
                asyncio.run(_run_async(store, wf, job.key, lease))
            else:
                with Engine(store=store, lease=lease, park_after=0.01) as engine, suppress(IdempotencyHeld):
                    engine.run(wf, {"key": job.key}, idempotency_key=job.key, check=False)
            reported.write([job.key, fuse.seen])
            bomb.over()

        threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def run_torn(place: Place, job: Job, lease: float, outcomes: str) -> None:
    """Do the job, and die inside of a call of the store: before the `occurrence`-th statement that SQLite is given, before
    or after the round trip to Redis of that number; 0: never."""
    fuse = Fuse("", job.occurrence, partial(os.kill, os.getpid(), signal.SIGKILL))
    _tap(fuse)
    with place.store() as real, Engine(store=Watched(real, Journal(place.journal)), lease=lease) as engine:
        wf = saga(job.saga, World(Ledger(place.ledger)))
        engine.run(wf, {"key": job.key}, idempotency_key=job.key, check=False)
    Ledger(outcomes).write([job.key, fuse.seen])


def _tap(point: Callable[[str], None]) -> None:
    """Have the clients of both stores tell of all that they send."""
    connect, execute = sqlite3.connect, redis.Redis.execute_command

    def connect_tapped(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        connection.set_trace_callback(lambda statement: point("statement"))
        return connection

    def execute_tapped(self: Any, *args: Any, **options: Any) -> Any:
        point("round trip")
        answer = execute(self, *args, **options)
        point("round trip")
        return answer

    sqlite3.connect = connect_tapped
    redis.Redis.execute_command = execute_tapped  # type: ignore[method-assign] # in this process alone


async def _run_async(store: Any, wf: Workflow, key: str, lease: float) -> None:
    async with AsyncEngine(store=store, lease=lease, park_after=0.01) as engine:
        await engine.run(wf, {"key": key}, idempotency_key=key, check=False)
