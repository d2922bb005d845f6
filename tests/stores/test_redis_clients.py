"""Bring your own client: every kind of redis-py's works, and what is none is refused."""

import asyncio
import contextlib
import inspect
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio
from redis._parsers import _RESP2Parser
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from flowcore import CorruptRecord, DefinitionError, StoreError, StoreUnavailable
from flowcore.stores import AsyncRedisStore, RedisStore
from flowcore.stores.base import Busy, Claimed, Renewal
from flowcore.stores.redis.clients import another, close
from tests.stores.proxies import Proxy
from tests.stores.redis_runs import a_checkpoint, a_claim, a_lease, an_ending, begin
from tests.stores.redis_servers import StartRedis, redis_url, start_redis, until

__all__ = ["redis_url", "start_redis"]  # fixtures


def whole_run(store: RedisStore) -> None:
    """A run from its beginning to its end."""
    claim, fence = begin(store)
    assert store.checkpoint(a_checkpoint(claim, fence)) is None
    assert store.renew([a_lease(claim, fence)] * 2, 600) == [Renewal.OURS] * 2
    assert store.finish(an_ending(claim, fence)) is None
    assert store.get_run(claim.run_id).status == "success"


async def whole_async_run(store: AsyncRedisStore, key: str = "k") -> None:
    claim = a_claim(key)
    answer = await store.claim(claim)
    assert isinstance(answer, Claimed)
    assert await store.checkpoint(a_checkpoint(claim, answer.fence)) is None
    assert await store.renew([a_lease(claim, answer.fence)] * 2, 600) == [Renewal.OURS] * 2
    assert await store.finish(an_ending(claim, answer.fence)) is None
    assert (await store.get_run(claim.run_id)).status == "success"


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "client", "why"),
    [
        (RedisStore, None, "RedisStore needs a client of redis-py, such as redis.Redis(), not None."),
        (RedisStore, lambda: redis.Redis, "RedisStore needs a client of redis-py, such as redis.Redis(), not <class "),
        (AsyncRedisStore, lambda: redis.asyncio.Redis, "AsyncRedisStore needs a client of redis-py, such as "),
        (
            RedisStore,
            lambda: redis.Sentinel([("localhost", 26379)]),
            "such as redis.Redis(), not <redis.sentinel.Sentinel",
        ),
        (RedisStore, lambda: redis.Redis().pipeline(), "such as redis.Redis(), not <redis.client.Pipeline"),
        (RedisStore, lambda: redis.Redis().pubsub(), "such as redis.Redis(), not <redis.client.PubSub"),
        (AsyncRedisStore, lambda: redis.asyncio.Redis().pipeline(), "not <redis.asyncio.client.Pipeline"),
        (RedisStore, "redis://localhost", "not 'redis://localhost'."),
        (RedisStore, "redis://user:" + "hidden" + "@localhost/0", "not 'redis://localhost/0'."),
        (AsyncRedisStore, "redis://localhost?password=" + "hidden", "not 'redis://localhost?password=…'."),
        (
            AsyncRedisStore,
            redis.Redis,
            "AsyncRedisStore needs a client of redis.asyncio: with this one, use RedisStore.",
        ),
        (
            RedisStore,
            redis.asyncio.Redis,
            "RedisStore needs a client that blocks: with one of redis.asyncio, use AsyncRed",
        ),
    ],
)
def test_what_is_no_client_of_the_right_kind_is_refused(kind: Any, client: Any, why: str) -> None:
    with pytest.raises(DefinitionError) as error:
        kind(client() if callable(client) else client)
    assert why in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("kind", [RedisStore, AsyncRedisStore])
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"prefix": ""}, "(prefix=) must be a string that is not empty, not ''."),
        ({"prefix": 7}, "(prefix=) must be a string"),
        ({"prefix": "\ud800"}, "(prefix=) must be a string"),
        ({"shards": 0}, "(shards=) must be a whole number from 1 to 16,384, not 0."),
        ({"shards": True}, "(shards=)"),
        ({"shards": 16385}, "(shards=)"),
        ({"retention": -1}, "(retention=) must be seconds"),
        ({"max_value_bytes": 0}, "max_value_bytes="),
        ({"codec": object()}, "codec="),
    ],
)
def test_options_that_make_no_sense_are_refused(kind: Any, options: dict[str, Any], why: str) -> None:
    client = redis.Redis() if kind is RedisStore else redis.asyncio.Redis()
    with pytest.raises(DefinitionError) as error:
        kind(client, **options)
    assert why in str(error.value)


def test_another_number_of_shards_is_refused_before_it_begins_anything(redis_url: str) -> None:
    prefix = uuid4().hex
    with redis.Redis.from_url(redis_url) as client:
        begin(RedisStore(client, prefix=prefix, shards=3))
        with pytest.raises(StoreError, match=r"set up with '3' shards, and this store has 4, .* with the same number"):
            RedisStore(client, prefix=prefix, shards=4).claim(a_claim())
        assert isinstance(RedisStore(client, prefix=prefix, shards=3).claim(a_claim()), Busy)


def test_both_stores_have_the_same_verbs_and_say_what_they_do() -> None:
    for name, verb in vars(RedisStore).items():
        if name.startswith("_") or not callable(verb):
            continue
        twin = getattr(AsyncRedisStore, name)
        assert inspect.iscoroutinefunction(twin), name
        assert not inspect.iscoroutinefunction(verb), name
        assert verb.__doc__
        assert list(inspect.signature(verb).parameters) == list(inspect.signature(twin).parameters)


# -- sync clients ------------------------------------------------------------------------------------------------------


def test_one_store_serves_many_threads(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(client, prefix=uuid4().hex)
        granted: list[int] = []

        def work() -> None:
            answers = [store.claim(a_claim(f"key {number}")) for number in range(20)]
            granted.extend(number for number, answer in enumerate(answers) if isinstance(answer, Claimed))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(granted) == list(range(20))


@pytest.mark.parametrize(
    "make",
    [
        lambda url: redis.Redis.from_url(url, single_connection_client=True),
        lambda url: redis.Redis(connection_pool=redis.BlockingConnectionPool.from_url(url, max_connections=1)),
        lambda url: redis.Redis.from_url(url, encoding="latin-1", decode_responses=True, parser_class=_RESP2Parser),
        lambda url: redis.Redis.from_url(url, db=3),
        lambda url: redis.Redis.from_url(url, protocol=3, health_check_interval=1, retry=Retry(ConstantBackoff(0), 2)),
    ],
    ids=["one connection", "blocking pool", "latin-1, without hiredis", "database 3", "resp3"],
)
def test_clients_of_many_kinds(redis_url: str, make: Callable[[str], Any]) -> None:
    with contextlib.closing(make(redis_url)) as client:
        whole_run(RedisStore(client, prefix=uuid4().hex))
        client.connection_pool.disconnect()


@pytest.mark.parametrize("decode_responses", [False, True])
def test_what_is_not_utf_8_is_corrupt_whatever_the_client_decodes(redis_url: str, decode_responses: bool) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=decode_responses) as client:
        prefix = uuid4().hex
        store = RedisStore(client, prefix=prefix)
        claim, _ = begin(store)
        (run,) = client.scan_iter(f"{{{prefix}:*:run:*", count=1000)
        client.hset(run, "graph", b"\xff\xfe")
        for verb in (lambda: store.find("k"), lambda: store.get_run(claim.run_id), lambda: store.claim(a_claim())):
            with pytest.raises(CorruptRecord, match="it contains bytes that are not UTF-8"):
                verb()
        assert store.release("k", force=True) is None


def test_a_store_can_be_used_after_a_fork(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(client, prefix=uuid4().hex)
        begin(store)
        child = os.fork()
        if not child:
            os._exit(0 if isinstance(store.claim(a_claim()), Busy) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert isinstance(store.claim(a_claim()), Busy)


def test_closing_the_store_leaves_the_client_open(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        store = RedisStore(client, prefix=uuid4().hex)
        store.close()
        whole_run(store)


# -- round trips -------------------------------------------------------------------------------------------------------


def test_a_run_of_ten_steps_takes_eleven_round_trips(start_redis: StartRedis) -> None:
    server = start_redis(port=0)
    with Proxy(server.port) as proxy, redis.Redis.from_url(proxy.url) as client:
        store = RedisStore(client)
        whole_run(store)  # connects, and shows the server the scripts
        proxy.round_trips = 0
        claim, fence = begin(store, "another")
        for number in range(9):
            assert store.checkpoint(a_checkpoint(claim, fence, 2 + number * 4)) is None
        assert store.finish(an_ending(claim, fence, changes=a_checkpoint(claim, fence, 50))) is None
        assert proxy.round_trips == 11


def test_leases_are_renewed_in_one_round_trip(start_redis: StartRedis) -> None:
    server = start_redis(port=0)
    with Proxy(server.port) as proxy, redis.Redis.from_url(proxy.url) as client:
        store = RedisStore(client)
        leases = [a_lease(*begin(store, f"key {number}")) for number in range(15)]  # few enough for one packet
        assert store.renew(leases, 600) == [Renewal.OURS] * 15
        proxy.round_trips = 0
        assert store.renew(leases, 600) == [Renewal.OURS] * 15
        assert proxy.round_trips == 1


# -- asyncio -----------------------------------------------------------------------------------------------------------


def connected(client: Any) -> int:
    return int(client.info("clients")["connected_clients"])


def test_each_loop_has_connections_of_its_own_that_end_with_it(start_redis: StartRedis) -> None:
    server = start_redis()
    given = redis.asyncio.Redis.from_url(server.url)
    store = AsyncRedisStore(given)
    with server.client() as client:
        until(lambda: connected(client) == 1, "its own start being over")
        before = 1

        async def main(name: str) -> None:
            await asyncio.gather(*(whole_async_run(store, f"{name} {number}") for number in range(20)))

        threads = [threading.Thread(target=lambda n=n: asyncio.run(main(f"key {n}"), debug=True)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: connected(client) <= before, "all connections ending")
        assert len(RedisStore(client).list_runs(status="success")) == 60
        assert not given.connection_pool._available_connections  # the user's own was never used


def test_closing_an_async_store_ends_the_connections_of_all_loops(start_redis: StartRedis) -> None:
    server = start_redis()
    store = AsyncRedisStore(redis.asyncio.Redis.from_url(server.url))
    there, leave = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await whole_async_run(store, "elsewhere")
        there.set()
        await asyncio.to_thread(leave.wait)
        await whole_async_run(store, "elsewhere, again")

    async def here() -> None:
        await whole_async_run(store, "here")
        assert connected(client) >= before + 2
        await store.close()
        until(lambda: connected(client) <= before, "all connections ending")
        await whole_async_run(store, "here, again")

    with server.client() as client:
        until(lambda: connected(client) == 1, "its own start being over")
        before = 1
        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        thread.start()
        there.wait()
        asyncio.run(here())
        leave.set()
        thread.join()
        assert len(RedisStore(client).list_runs(status="success")) == 4


def test_a_loop_that_was_closed_without_notice_is_forgotten(redis_url: str) -> None:
    store = AsyncRedisStore(redis.asyncio.Redis.from_url(redis_url), prefix=uuid4().hex)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(whole_async_run(store, "one"))
    kept, connection = store._connected[loop]
    loop.run_until_complete(connection.aclose())  # closes its sockets, which avoids warnings about them
    store._connected[loop] = kept, connection
    loop.close()
    asyncio.run(whole_async_run(store, "two"))
    assert not store._connected


def test_a_verb_that_is_cancelled_leaves_the_store_usable(start_redis: StartRedis) -> None:
    server = start_redis()

    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.Redis.from_url(server.url))
        await whole_async_run(store)
        server.pause()
        asking = asyncio.create_task(store.find("k"))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.resume()
        assert (await store.find("k")).key == "k"

    asyncio.run(main())


def test_an_async_store_is_unavailable_where_no_server_listens(start_redis: StartRedis) -> None:
    server = start_redis(port=0)
    server.kill()

    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.Redis.from_url(server.url))
        with pytest.raises(StoreUnavailable):
            await store.claim(a_claim())
        with pytest.raises(StoreUnavailable):
            await store.doctor()
        server.start()
        await whole_async_run(store)

    asyncio.run(main())


def test_another_client_has_the_same_options(redis_url: str) -> None:
    pool = redis.asyncio.BlockingConnectionPool.from_url(redis_url, max_connections=7, timeout=3, client_name="me")
    for given in (
        redis.asyncio.Redis(
            host="example.org", port=7000, db=2, username="u", password="p", ssl=True, ssl_ca_certs="/ca", protocol=3
        ),
        redis.asyncio.Redis(connection_pool=pool, single_connection_client=True),
        redis.asyncio.Redis.from_url("unix:///tmp/socket?db=4", decode_responses=True, socket_timeout=9),
    ):
        twin = another(given)
        old, new = given.connection_pool, twin.connection_pool
        assert type(twin) is type(given)
        assert type(new) is type(old)
        assert new is not old
        assert new.connection_class is old.connection_class
        assert new.max_connections == old.max_connections
        assert getattr(new, "timeout", None) == getattr(old, "timeout", None)
        own = {"himport_registry", "maint_notifications_pool_handler"}
        assert {k: v for k, v in new.connection_kwargs.items() if k not in own} == {
            k: v for k, v in old.connection_kwargs.items() if k not in own
        }


def test_another_clients_of_a_cluster_has_the_same_options() -> None:
    def remap(address: tuple[str, int]) -> tuple[str, int]:
        return address

    given = redis.asyncio.RedisCluster(
        startup_nodes=[redis.asyncio.cluster.ClusterNode("a.example.org", port) for port in (7000, 7001)],
        username="u",
        password="p",
        ssl=True,
        ssl_ca_certs="/ca",
        require_full_coverage=False,
        reinitialize_steps=9,
        socket_timeout=4,
        max_connections=8,
        decode_responses=True,
        address_remap=remap,
    )
    twin = another(given)
    assert set(twin.nodes_manager.startup_nodes) == set(given.nodes_manager.startup_nodes)
    assert twin.nodes_manager is not given.nodes_manager
    assert twin.nodes_manager.address_remap is remap
    assert twin.nodes_manager.require_full_coverage is False
    assert twin.reinitialize_steps == 9
    own = {"himport_registry", "response_callbacks", "oss_cluster_maint_notifications_handler"}
    assert {k: v for k, v in twin.connection_kwargs.items() if k not in own} == {
        k: v for k, v in given.connection_kwargs.items() if k not in own
    }


# -- sentinel ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sentinel(start_redis: StartRedis, tmp_path: Path) -> tuple[str, int]:
    """The address of a sentinel that watches over a primary called `mine`."""
    primary = start_redis(port=0)
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor mine 127.0.0.1 {primary.port} 1\n")
    watcher = start_redis(port=0, config=config, arguments=["--sentinel"])
    return "127.0.0.1", watcher.port or 0


def test_a_client_of_a_sentinel(sentinel: tuple[str, int]) -> None:
    watchers = redis.sentinel.Sentinel([sentinel], socket_timeout=5)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(watchers.master_for("mine"))
        for watcher in watchers.sentinels:
            stack.callback(watcher.close)
        whole_run(RedisStore(client))


def test_an_async_client_of_a_sentinel_on_several_loops(sentinel: tuple[str, int]) -> None:
    watchers = redis.asyncio.sentinel.Sentinel([sentinel], socket_timeout=5)
    store = AsyncRedisStore(watchers.master_for("mine"))
    asyncio.run(whole_async_run(store, "one"))
    asyncio.run(whole_async_run(store, "two"))


def test_close_ends_what_another_made(sentinel: tuple[str, int]) -> None:
    async def main() -> None:
        twin = another(redis.asyncio.sentinel.Sentinel([sentinel]).master_for("mine"))
        await twin.ping()
        await close(twin)

    asyncio.run(main())
