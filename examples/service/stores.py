"""The stores in which the service can keep its runs, by their names on the command line.

memory                    they end with the process
sqlite:PATH               in a file, for any number of processes on this machine
redis://HOST:PORT/NUMBER  in a Redis, for any number of machines (rediss:// for TLS, unix:// for a socket)
temporal://HOST:PORT      on a Temporal server; this process is also a worker of it
"""

from argparse import ArgumentTypeError
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio

from flowcore import AsyncEngine, Hook, Workflow
from flowcore.stores import AsyncRedisStore, MemoryStore, RedisStore, SQLiteStore

TEMPORAL = "temporal://"
REDIS = ("redis://", "rediss://", "unix://")
PATIENCE = 5.0  # seconds: a Redis that hangs must not hang its callers for ever


def known(where: str) -> str:
    """Return `where` if it names a store, and raise ArgumentTypeError if not. A type for argparse."""
    if (
        where == "memory"
        or where.startswith((*REDIS, TEMPORAL))
        or (where.startswith("sqlite:") and where != "sqlite:")
    ):
        return where
    raise ArgumentTypeError(
        f"{where!r} names no store: memory, sqlite:PATH, redis://HOST:PORT/NUMBER and temporal://HOST:PORT do"
    )


@asynccontextmanager
async def started(
    where: str, workflows: Sequence[Workflow[Any]], hooks: Sequence[Hook], lease: float
) -> AsyncIterator[Any]:
    """Yield the engine: an AsyncEngine on the store, which also resumes runs of dead processes, or a TemporalEngine
    with a worker."""
    if not where.startswith(TEMPORAL):
        async with (
            opened(where) as runs,
            AsyncEngine(store=runs, hooks=hooks, lease=lease, workflows=workflows, recover_every=lease / 4) as engine,
        ):
            yield engine
        return
    from temporalio.client import Client

    from flowcore.temporal import TemporalEngine, temporal_worker

    client = await Client.connect(where.removeprefix(TEMPORAL))
    async with (
        temporal_worker(client, task_queue="checkout", workflows=workflows, hooks=hooks, lease=lease),
        TemporalEngine(client, task_queue="checkout", hooks=hooks, lease=lease) as on_temporal,
    ):
        yield on_temporal


@asynccontextmanager
async def opened(where: str) -> AsyncIterator[MemoryStore | SQLiteStore | RedisStore | AsyncRedisStore]:
    """Open the store for an AsyncEngine. It calls SQLiteStore in a thread, so that the loop never waits for a disk."""
    if where == "memory":
        yield MemoryStore()
    elif where.startswith(REDIS):
        async with redis.asyncio.Redis.from_url(where, socket_timeout=PATIENCE) as client:
            yield AsyncRedisStore(client)
    else:
        with looked_into(where) as store:
            yield store


@contextmanager
def looked_into(where: str) -> Iterator[SQLiteStore | RedisStore]:
    """Open the same store for an operator, to read it or to decide on a held order. Not for `memory`."""
    if where.startswith(REDIS):
        with redis.Redis.from_url(where, socket_timeout=PATIENCE) as client:
            yield RedisStore(client)
    else:
        store = SQLiteStore(where.removeprefix("sqlite:"))
        try:
            yield store
        finally:
            store.close()


def spoken(where: str) -> str:
    """Return `where` for printing, without the password that a Redis address may have."""
    if not where.startswith(REDIS):
        return where
    parts = urlsplit(where)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
