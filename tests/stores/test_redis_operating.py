"""What operators meet: the doctor, its warning, and the smallest set of rights."""

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import redis
import redis.asyncio

from flowcore import StoreError, StoreUnavailable
from flowcore.stores import AsyncRedisStore, RedisStore
from flowcore.stores.base import Busy, Claimed, Held, Renewal
from flowcore.stores.decide import OPEN
from tests.stores.proxies import Proxy
from tests.stores.redis_runs import a_checkpoint, a_claim, a_lease, an_ending, begin, everything, records
from tests.stores.redis_servers import RedisClusterServers, StartRedis, redis_cluster, start_redis, until

__all__ = ["redis_cluster", "start_redis"]  # fixtures


# -- the doctor --------------------------------------------------------------------------------------------------------


def test_the_doctor_of_a_safe_server_has_nothing_to_warn_of(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis(appendonly="always")
    with server.client() as client:
        store = RedisStore(client)
        begin(store)
        reported = store.doctor()
        assert re.fullmatch(r"\d+\.\d+\.\d+", str(reported.pop("version")))
        assert reported == {
            "store": "redis",
            "mode": "standalone",
            "role": "primary",
            "eviction": "noeviction",
            "persistence": "aof (always)",
            "scripts": "allowed",
            "time": "allowed",
            "shards": 256,
            **dict.fromkeys(OPEN, 0),
            "running": 1,
        }
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("settings", "persistence"),
    [
        ({"appendonly": "yes"}, "aof (everysec)"),
        ({"save": "60 1"}, "rdb"),
        ({"save": "60 1", "appendonly": "yes", "appendfsync": "no"}, "aof (no) and rdb"),
        ({}, "none"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_the_doctor_reports_what_is_kept_on_disk(
    start_redis: StartRedis, settings: dict[str, str], persistence: str, protocol: int
) -> None:
    with start_redis().client(protocol=protocol) as client:
        for name, value in settings.items():
            client.config_set(name, value)
        assert RedisStore(client).doctor()["persistence"] == persistence


@pytest.mark.parametrize("decode_responses", [False, True])
def test_what_can_lose_runs_is_warned_of_once_per_store(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture, decode_responses: bool
) -> None:
    server = start_redis(arguments=["--maxmemory-policy", "allkeys-lru"])
    with server.client(decode_responses=decode_responses) as client:
        store = RedisStore(client)
        for number in range(3):
            begin(store, f"key {number}")
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("flowcore", logging.WARNING)
        assert record.getMessage() == (
            "this Redis can lose the records of runs: it evicts keys when its memory is full (set maxmemory-policy "
            "noeviction, not allkeys-lru); persistence is off (set appendonly yes)."
        )
        begin(RedisStore(client), "another")
    assert len(caplog.records) == 2


def test_many_first_claims_at_once_warn_once(start_redis: StartRedis, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.Redis.from_url(server.url))
        await asyncio.gather(*(store.claim(a_claim(f"key {number}")) for number in range(10)))

    server = start_redis()
    asyncio.run(main())
    assert len(caplog.records) == 1


def test_the_doctor_of_a_cluster_looks_at_all_its_primaries(redis_cluster: RedisClusterServers) -> None:
    async def main() -> dict[str, str | int | float]:
        return await AsyncRedisStore(redis.asyncio.RedisCluster.from_url(redis_cluster.url)).doctor()

    with redis_cluster.client() as client, redis_cluster.nodes[1].client() as one:
        reported = RedisStore(client).doctor()
        assert (reported["mode"], reported["role"], reported["persistence"]) == ("cluster", "primary", "none")
        one.config_set("maxmemory-policy", "volatile-ttl")
        try:
            assert RedisStore(client).doctor()["eviction"] == "noeviction, volatile-ttl"
            assert asyncio.run(main()) == RedisStore(client).doctor()
        finally:
            one.config_set("maxmemory-policy", "noeviction")


def test_a_doctor_that_does_not_answer_keeps_no_run_from_running(start_redis: StartRedis) -> None:
    server = start_redis(port=0)
    with Proxy(server.port) as proxy, redis.Redis.from_url(proxy.url, retry=None) as client:
        store = RedisStore(client)
        proxy.lose_reply(b"$4\r\nINFO")
        begin(store)
        assert proxy.lost
        proxy.lose_reply(b"$4\r\nINFO")
        with pytest.raises(StoreUnavailable):
            store.doctor()


# -- rights ------------------------------------------------------------------------------------------------------------


def documented_rights() -> list[str]:
    """The ACL rules that RedisStore's docstring gives."""
    rules = re.search(r"needs no more than\n\n(.*?)\n\n", RedisStore.__doc__ or "", re.DOTALL)
    return rules[1].split()


@pytest.fixture
def limited(start_redis: StartRedis) -> Iterator[tuple[Any, Any]]:
    """An operator's client, and one of a user with the documented rights."""
    server = start_redis()
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(server.client())
        operator.execute_command("ACL", "SETUSER", "app", "on", ">secret", *documented_rights())
        yield operator, stack.enter_context(server.client(username="app", password="secret"))


def every_verb(store: RedisStore) -> None:
    claim, fence = begin(store)
    assert store.checkpoint(a_checkpoint(claim, fence)) is None
    assert store.renew([a_lease(claim, fence)], 0) == [Renewal.OURS]
    assert [record.key for record in store.list_resumable(["trip"])] == ["k"]
    taken = store.claim(a_claim())
    assert isinstance(taken, Claimed)
    assert store.finish(an_ending(claim, taken.fence, "parked")) is None
    store.hold("k")
    assert store.counts() == {("trip", "held"): 1}
    assert [record.key for record in store.list_runs(status="held")] == ["k"]
    assert isinstance(store.claim(a_claim()), Held)
    store.resume("k")
    store.undo("k")
    withdrawn = a_claim("other")
    store.claim(withdrawn)
    store.withdraw(withdrawn)
    store.release("k")
    assert isinstance(store.claim(a_claim()), Claimed)
    assert store.find("k").generation == 1
    assert len(store.list_runs()) == 2
    assert store.get_run(withdrawn.run_id).key == "other"
    assert store.gc() == 2
    store.release("k", force=True)
    claim, fence = begin(store, "ended")
    assert store.finish(an_ending(claim, fence)) is None


def test_a_user_with_the_documented_rights_can_use_every_verb(
    limited: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    _, client = limited
    every_verb(RedisStore(client))
    reported = RedisStore(client).doctor()
    assert reported == {
        **dict.fromkeys(["version", "mode", "role", "eviction", "persistence"], "unknown"),
        "store": "redis",
        "scripts": "allowed",
        "time": "allowed",
        "shards": 256,
        **dict.fromkeys(OPEN, 0),
    }
    assert caplog.text == ""


def test_with_the_doctors_rights_more_is_known(limited: tuple[Any, Any]) -> None:
    operator, client = limited
    operator.execute_command("ACL", "SETUSER", "app", "+info", "+config|get")
    assert "unknown" not in RedisStore(client).doctor().values()


def test_none_of_the_documented_rights_is_too_much(limited: tuple[Any, Any]) -> None:
    operator, client = limited
    for right in documented_rights():
        if right.startswith("+"):
            operator.execute_command("ACL", "SETUSER", "app", f"-{right[1:]}")
            operator.flushall()
            operator.script_flush()
            with pytest.raises(StoreUnavailable, match="Redis does not let this user do what the store needs"):
                every_verb(RedisStore(client))
            operator.execute_command("ACL", "SETUSER", "app", right)
    operator.flushall()
    every_verb(RedisStore(client))


def test_a_user_may_be_kept_to_one_prefix(limited: tuple[Any, Any]) -> None:
    operator, client = limited
    operator.execute_command("ACL", "SETUSER", "app", "resetkeys", "~{mine:*")
    begin(RedisStore(client, prefix="mine"))
    with pytest.raises(StoreError, match="does not let this user"):
        RedisStore(client, prefix="other").claim(a_claim())


PREFIXES = ["app", "app:eu", "app:eu:1", "ap", "app*", "ap?", "[a]pp", "app}", "app%3Aeu", "ünder", "a b", "a\\*"]


def test_prefixes_that_begin_alike_are_apart_for_users_of_each(start_redis: StartRedis) -> None:
    server = start_redis()
    with contextlib.ExitStack() as stack:
        operator = stack.enter_context(server.client())
        clients: dict[str, Any] = {}
        for number, prefix in enumerate(PREFIXES):
            rules = [
                right if right.startswith("+") else f"~{{{quote(prefix, safe='')}:*" for right in documented_rights()
            ]
            operator.execute_command("ACL", "SETUSER", f"user{number}", "on", ">secret", *rules)
            clients[prefix] = stack.enter_context(server.client(username=f"user{number}", password="secret"))
        for mine, client in clients.items():
            begin(RedisStore(client, prefix=mine))
        for mine, client in clients.items():
            for other in PREFIXES:
                if other == mine:
                    assert RedisStore(client, prefix=other).find("k").status == "running"
                else:
                    for verb in ("find", "head", "hold", "cancel"):
                        with pytest.raises(StoreUnavailable, match="does not let this user"):
                            getattr(RedisStore(client, prefix=other), verb)("k")
                    with pytest.raises(StoreUnavailable, match="does not let this user"):
                        RedisStore(client, prefix=other).claim(a_claim())
        assert sum(len(RedisStore(operator, prefix=prefix).list_runs()) for prefix in PREFIXES) == len(PREFIXES)


def reading_rights() -> list[str]:
    rules = re.search(r"needs Redis 7 and\n\n(.*)", RedisStore.__doc__ or "", re.DOTALL)
    return rules[1].split()


@pytest.mark.parametrize("more", [[], ["+info", "+config|get"], ["+evalsha", "+eval"]])
def test_a_user_who_may_only_read_can_look_at_everything(start_redis: StartRedis, more: list[str]) -> None:
    server = start_redis()
    with server.client() as operator:
        operator.execute_command("ACL", "SETUSER", "reader", "on", ">secret", *reading_rights(), *more)
        store = RedisStore(operator)
        claim, fence = begin(store, "ended")
        assert store.finish(an_ending(claim, fence)) is None
        begin(store, "vanished", lease=0)
        operator.delete(*records(operator))
        claim, fence = begin(store, "ended", run_id="1")
        assert store.finish(an_ending(claim, fence)) is None
        begin(store, "k", lease=0)
        with server.client(username="reader", password="secret") as client:
            reader = RedisStore(client)
            assert reader.find("k").key == reader.head("k").key == "k"
            assert [record.key for record in reader.list_runs()] == ["k", "ended"]
            assert [record.key for record in reader.list_resumable(["trip"])] == ["k"]
            assert reader.counts()["trip", "expired"] >= 1
            assert reader.get_run("1").key == "ended"
            assert reader.doctor()["expired"] == reader.counts()["trip", "expired"]
            before = everything(operator)
            for verb in (reader.hold, reader.resume, reader.undo, reader.release, reader.cancel):
                with pytest.raises(StoreUnavailable, match="does not let this user"):
                    verb("k")
            with pytest.raises(StoreUnavailable, match="does not let this user"):
                reader.gc()
            with pytest.raises(StoreUnavailable, match="does not let this user"):
                reader.claim(a_claim("new"))
            assert everything(operator) == before


def test_the_doctor_says_what_is_forbidden(limited: tuple[Any, Any]) -> None:
    operator, client = limited
    operator.execute_command("ACL", "SETUSER", "app", "-time")
    assert RedisStore(client).doctor()["time"] == "refused"
    operator.execute_command("ACL", "SETUSER", "app", "-eval", "-evalsha")
    reported = RedisStore(client).doctor()
    assert (reported["scripts"], reported["time"]) == ("refused", "unknown")


def test_in_a_cluster_a_user_needs_what_its_client_needs_too(redis_cluster: RedisClusterServers) -> None:
    more = re.findall(r"\+(?:cluster\|\w+|command)", RedisStore.__doc__ or "")
    for node in redis_cluster.nodes:
        with node.client() as operator:
            operator.execute_command("ACL", "SETUSER", "app", "on", ">secret", *documented_rights(), *more)
    with redis_cluster.client(username="app", password="secret") as client:
        every_verb(RedisStore(client, prefix="flowcore"))

    async def main() -> None:
        url = redis_cluster.url
        store = AsyncRedisStore(redis.asyncio.RedisCluster.from_url(url, username="app", password="secret"))
        assert isinstance(await store.claim(a_claim()), Busy | Claimed)
        assert len(await store.list_runs()) >= 2

    asyncio.run(main())


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_the_clock_of_the_client_does_not_matter(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    import time

    wall = time.time
    with start_redis().client() as client:
        monkeypatch.setattr(time, "time", lambda: wall() + skew)
        store = RedisStore(client)
        claim, fence = begin(store, lease=600)
        assert abs(fence / 1e6 - wall()) < 60
        assert abs(store.find("k").started - wall()) < 60
        assert isinstance(store.claim(a_claim()), Busy)
        assert store.list_resumable(["trip"]) == []
        assert store.finish(an_ending(claim, fence)) is None
        assert store.list_runs(older_than=60) == []
        until(lambda: store.list_runs(older_than=0.001), "a millisecond passing")
