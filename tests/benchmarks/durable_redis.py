"""A durable chain of ten on Redis: how many round trips it takes, and its time against the same scripts sent by hand.

The server is one of its own, on this machine. It writes what it is told to an append-only file each second, as a server
that keeps runs should. Both sides have clients of the same kind, with hiredis where that is installed.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from .durable_work import Durable, DurableAsync, Ready, work
from .harness import Options, Report, Row, Target, compare
from .work import SYNC

__all__ = ["measure"]

TITLE = "a durable chain of 10 on Redis"
ROUND_TRIPS = 11
TARGETS = (
    Target("Engine", 1.25, "Redis by hand"),
    Target("AsyncEngine", 1.25, "Redis by hand, async"),
)


def measure(options: Options) -> Report:
    try:
        import redis
        import redis.asyncio

        from ..stores.redis_servers import RedisServer, find_redis
    except ImportError as error:
        return Report("redis", TITLE, "µs per run", "", notes=[f"left out: {error}."])
    if find_redis() is None:
        return Report("redis", TITLE, "µs per run", "", notes=["left out: there is no redis-server."])
    from flowcore.stores import AsyncRedisStore, RedisStore

    from .durable_redis_by_hand import AsyncRedisByHand, RedisByHand

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(RedisServer(folder, port=0, appendonly="everysec"))

        def client() -> Any:
            return stack.enter_context(redis.Redis.from_url(server.url))

        engine = Durable(RedisStore(client(), prefix="ours"))
        subjects = (
            engine,
            RedisByHand(client(), "by-hand"),
            DurableAsync(AsyncRedisStore(redis.asyncio.Redis.from_url(server.url), prefix="ours-async")),
            AsyncRedisByHand(redis.asyncio.Redis.from_url(server.url), "by-hand-async"),
        )
        report = compare(
            "redis",
            TITLE,
            work,
            TARGETS,
            replace(options, subjects=tuple(map(Ready, subjects))),
            relative=("Redis by hand", "Redis by hand, async"),
        )
        if options.wants("Engine"):
            report.rows.append(round_trips(redis, server.url))
        engine.engine.close()
    return report


def round_trips(redis: Any, url: str) -> Row:
    """Of one run, from the second on: the first one introduces itself to the server, and shows it the scripts."""
    sent: list[Any] = []

    class Counted(redis.Connection):  # type: ignore[misc]
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            sent.append(command)
            super().send_packed_command(command, check_health)

    from flowcore.stores import RedisStore

    pool = redis.ConnectionPool.from_url(url, connection_class=Counted)
    with redis.Redis(connection_pool=pool) as client:
        subject = Durable(RedisStore(client, prefix="counted"))
        run = subject.prepare(work(SYNC))
        run()
        sent.clear()
        run()
        subject.engine.close()
        pool.disconnect()
    number = float(len(sent))
    return Row(
        "Engine: round trips of a run", number, target=Target("Engine", ROUND_TRIPS, "round trips"), against=number
    )
