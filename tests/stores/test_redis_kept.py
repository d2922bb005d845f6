"""Connections that the Redis stores keep for a moment: fewer trips to the pool, and no harm to others who share it."""

import asyncio
from typing import Any
from uuid import uuid4

import hiredis
import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from flowcore import AsyncEngine, Context, Engine, Status, StoreUnavailable, Workflow
from flowcore.events import StoreCalled
from flowcore.stores import AsyncRedisStore, RedisStore
from flowcore.stores.base import Claimed
from flowcore.stores.redis import connection_cache
from tests.stores.redis_runs import a_checkpoint, a_claim, begin
from tests.stores.redis_servers import StartRedis, redis_url, start_redis

__all__ = ["redis_url", "start_redis"]  # fixtures

# The packer of commands is private.
# pyright: reportPrivateUsage=false


class Pool(redis.ConnectionPool):
    """Counts how often a connection is taken."""

    got = 0

    def get_connection(self, *args: Any, **options: Any) -> Any:
        self.got += 1
        return super().get_connection(*args, **options)


class AsyncPool(redis.asyncio.ConnectionPool):
    got = 0

    async def get_connection(self, *args: Any, **options: Any) -> Any:
        type(self).got += 1
        return await super().get_connection(*args, **options)


def chain(length: int = 10) -> Workflow:
    wf = Workflow("w")
    for number in range(length):
        wf.add_step(f"s{number}", lambda ctx: 1, depends_on=f"s{number - 1}" if number else ())
    return wf


def test_a_chain_of_quick_steps_gets_one_connection_and_gives_it_back_when_the_store_closes(redis_url: str) -> None:
    pool, wf = Pool.from_url(redis_url, max_connections=8), chain()
    with redis.Redis(connection_pool=pool) as client:
        store = RedisStore(client, prefix=uuid4().hex)
        with Engine(store=store) as engine:
            engine.run(wf)
            before = pool.got
            engine.run(wf)
            assert pool.got - before < 4  # a computer that is busy may take its time between two steps
            store.close()
        every = [pool.get_connection() for _ in range(8)]
        for one in every:
            pool.release(one)
    pool.disconnect()


def test_an_async_chain_of_quick_steps_gets_one_connection(redis_url: str) -> None:
    async def both() -> int:
        pool = AsyncPool.from_url(redis_url)
        store = AsyncRedisStore(redis.asyncio.Redis(connection_pool=pool), prefix=uuid4().hex)
        engine, wf = AsyncEngine(store=store), chain()
        await engine.run(wf)
        before = AsyncPool.got
        await engine.run(wf)
        after = AsyncPool.got
        await engine.aclose()
        await store.close()
        return after - before

    assert asyncio.run(both()) < 4


def test_a_command_is_packed_alike_with_hiredis_and_without() -> None:
    command = ("EVALSHA", b"\x00\xff", 3, "ünder", "", 2**52)
    assert connection_cache._packed(command) == hiredis.pack_command(command)


def test_an_async_store_reconnects_as_its_client_is_configured_to(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_cache, "_PAUSE", 600.0)
    monkeypatch.setattr(connection_cache, "_MOMENT", 600.0)

    async def main(retries: int) -> None:
        server = start_redis(port=0, appendonly="always")
        client = redis.asyncio.Redis(port=server.port, retry=Retry(NoBackoff(), retries))
        store = AsyncRedisStore(client)
        claim = a_claim()
        assert isinstance(await store.claim(claim), Claimed)
        assert await store.find("k") is not None
        server.restart()
        if retries:
            assert await store.find("k") is not None
        else:
            with pytest.raises(StoreUnavailable):
                await store.find("k")
        assert await store.find("k") is not None
        await store.close()
        await client.aclose()

    asyncio.run(main(0))
    asyncio.run(main(3))


@pytest.mark.parametrize("connections", [1, 4])
def test_more_runs_at_once_than_an_async_client_may_open_connections_wait_in_turn(
    redis_url: str, connections: int
) -> None:
    async def many() -> list[Any]:
        events = list[Any]()
        client = redis.asyncio.Redis.from_url(redis_url, max_connections=connections)
        store = AsyncRedisStore(client, prefix=uuid4().hex)
        engine, wf = AsyncEngine(store=store, hooks=[events.append]), chain(3)
        runs = await asyncio.gather(*(engine.run(wf) for _ in range(50)))
        assert all(run.status is Status.SUCCESS for run in runs)
        await engine.aclose()
        await store.close()
        return events

    events = asyncio.run(many())
    assert {event.outcome for event in events if isinstance(event, StoreCalled)} == {Status.SUCCESS}


@pytest.mark.parametrize("connections", [1, 7, 8])
def test_a_step_may_use_all_connections_of_the_client_that_its_store_has_no_need_of(
    redis_url: str, connections: int
) -> None:
    pool = redis.BlockingConnectionPool.from_url(redis_url, max_connections=connections, timeout=5)
    most = connections - connections // 8

    def all_of_them(ctx: Context) -> int:
        every = [pool.get_connection() for _ in range(most)]
        for one in every:
            pool.release(one)
        return len(every)

    wf = Workflow("w")
    wf.add_step("first", all_of_them)
    wf.add_step("second", all_of_them, depends_on="first")
    with redis.Redis(connection_pool=pool) as client, Engine(store=RedisStore(client, prefix=uuid4().hex)) as engine:
        assert engine.run(wf).results == {"first": most, "second": most}
        engine.store.close()
    pool.disconnect()


class Struck(redis.Redis):
    strikes = False

    def parse_response(self, *args: Any, **options: Any) -> Any:
        if Struck.strikes:
            Struck.strikes = False
            raise KeyboardInterrupt
        return super().parse_response(*args, **options)


class StruckAsync(redis.asyncio.Redis):
    strikes = False

    async def parse_response(self, *args: Any, **options: Any) -> Any:
        if StruckAsync.strikes:
            StruckAsync.strikes = False
            raise asyncio.CancelledError
        return await super().parse_response(*args, **options)


# As redis-py's own, of which alone a store keeps connections.
Struck.__module__ = StruckAsync.__module__ = redis.Redis.__module__


def pause(url: str) -> None:
    """What is sent from now on is answered a moment later."""
    with redis.Redis.from_url(url) as other:
        other.execute_command("CLIENT", "PAUSE", "200", "ALL")


def test_a_reply_that_was_not_read_is_never_taken_for_the_next_ones(redis_url: str) -> None:
    """An interrupt may come when a command has been sent, before its reply is read, or even there."""
    with Struck.from_url(redis_url) as client:
        store = RedisStore(client, prefix=uuid4().hex)
        claim, fence = begin(store)
        assert store.checkpoint(a_checkpoint(claim, fence)) is None
        Struck.strikes = True
        pause(redis_url)
        with pytest.raises(KeyboardInterrupt):
            store.checkpoint(a_checkpoint(claim, fence))
        record = store.find(claim.key)
        assert record is not None
        assert record.run_id == claim.run_id
        store.close()


def test_a_reply_that_no_task_read_is_never_taken_for_the_next_ones(redis_url: str) -> None:
    async def strike() -> None:
        store = AsyncRedisStore(StruckAsync.from_url(redis_url), prefix=uuid4().hex)
        claim = a_claim("k")
        assert isinstance(await store.claim(claim), Claimed)
        await store.withdraw(a_claim("another"))
        assert await store.find("another") is None  # the scripts are there
        StruckAsync.strikes = True
        pause(redis_url)
        with pytest.raises(asyncio.CancelledError):
            await store.withdraw(a_claim("another"))
        record = await store.find("k")
        assert record is not None
        assert record.run_id == claim.run_id
        await store.close()

    asyncio.run(strike())


def test_a_client_of_ones_own_making_is_asked_for_nothing_but_commands(redis_url: str) -> None:
    class Own:
        """Wraps one, as people do who count or log what is sent."""

        def __init__(self, client: redis.Redis) -> None:
            self.inner = client
            self.sent = list[Any]()

        def execute_command(self, *args: Any, **options: Any) -> Any:
            self.sent.append(args[0])
            return self.inner.execute_command(*args, **options)

    with redis.Redis.from_url(redis_url) as inner:
        own = Own(inner)
        with Engine(store=RedisStore(own, prefix=uuid4().hex)) as engine:
            engine.run(chain(2))
    assert own.sent.count("EVALSHA") >= 3
