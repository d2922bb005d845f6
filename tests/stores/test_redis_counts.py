"""Counting what is not over in a Redis store costs the same however much is stored, and whichever release has written it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
import redis.asyncio

from flowcore import Engine, Workflow
from flowcore.stores import AsyncRedisStore, RedisStore
from tests.stores.redis_runs import LONG, a_claim, an_ending, begin, check_statuses, everything
from tests.stores.redis_servers import RedisServer, StartRedis, start_redis
from tests.stores.test_redis_operating import reading_rights

__all__ = ["start_redis"]  # a fixture

WAY = ("queued", "running", "waiting", "expired", "parked", "incomplete", "held")


@pytest.fixture
def server(start_redis: StartRedis) -> RedisServer:
    return start_redis()


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with server.client() as client:
        yield client


def leave(store: RedisStore, status: str, number: int, workflow: str = "trip") -> None:
    """So many more runs that stand like this."""
    for one in range(number):
        key = f"{workflow} {status} {one} {a_claim().run_id}"
        claim, fence = begin(
            store, key, workflow=workflow, lease=0 if status == "expired" else LONG, queued=status == "queued"
        )
        if status in {"waiting", "parked", "incomplete"}:
            ending = replace(an_ending(claim, fence, status), retry_in=float("inf"), received=0)
            ending.record.waiting_for = ("approved",) if status == "waiting" else ()
            assert store.finish(ending) is None
        elif status == "held":
            assert store.finish(an_ending(claim, fence, "compensation_failed", held=True)) is None


def cost(client: Any, verb: Any) -> tuple[dict[str, int], int]:
    """What a verb has the server do: commands, those of scripts too, and bytes of its replies."""
    client.config_resetstat()
    verb()
    size = client.info("stats")["total_net_output_bytes"]
    done = client.info("commandstats")
    return {
        name: stat["calls"] for name, stat in done.items() if name not in {"cmdstat_config|resetstat", "cmdstat_info"}
    }, size


def test_what_counts_and_the_survey_cost_does_not_grow_with_the_runs(client: Any) -> None:
    store = RedisStore(client, shards=4)
    costs: list[Any] = []
    for number in (100, 2900):
        for status in WAY:
            leave(store, status, number if status in {"waiting", "expired"} else 12)
        store.counts()
        waiting_for(store)
        costs.append([cost(client, verb) for verb in (store.counts, lambda: waiting_for(store))])
    assert store.counts() == {("trip", status): 3000 if status in {"waiting", "expired"} else 24 for status in WAY}
    few, many = costs
    assert sum(many[0][0].values()) <= 1.2 * sum(few[0][0].values())  # a shard may have had no run of one status
    assert many[0][1] < 1.2 * few[0][1] + 200  # longer numbers
    assert sum(many[1][0].values()) <= 1.1 * sum(few[1][0].values())
    assert many[1][1] < 1.1 * few[1][1]
    assert sum(few[0][0].values()) < 4 * 60


def waiting_for(store: RedisStore) -> None:
    """As a survey asks which steps runs wait for."""
    assert len(store.list_runs(status="waiting", workflow="trip", limit=50)) == 50


def test_what_a_run_of_ten_steps_has_the_server_do(client: Any) -> None:
    """Commands of scripts count too: each costs about a microsecond of the server's processor, and more in cold caches."""
    wf, before = Workflow("chain"), list[Any]()
    for number in range(10):
        before = [wf.step(name=f"step {number}", depends_on=before)(lambda ctx: "done")]
    with Engine(store=RedisStore(client, shards=1)) as engine:
        for key in "ab":  # the first run shows the server the scripts, and sets the expiry of the index
            engine.run(wf, idempotency_key=key)
        commands, _ = cost(client, lambda: engine.run(wf, idempotency_key="c"))
    assert commands.pop("cmdstat_evalsha") == 11
    expected = {"hmget": 10, "hset": 12, "time": 2, "zadd": 4, "zrem": 2, "pttl": 2, "exists": 1, "zrangebyscore": 1}
    assert commands == {f"cmdstat_{name}": number for name, number in {**expected, "hgetall": 1, "set": 1}.items()}


@pytest.mark.parametrize("status", ["queued", "running", "waiting", "expired", "parked", "incomplete", "held"])
def test_a_page_of_runs_that_are_not_over_costs_as_much_however_many_there_are(client: Any, status: str) -> None:
    store = RedisStore(client, shards=2)
    leave(store, status, 60)
    few, _ = cost(client, lambda: store.list_runs(status=status, limit=20))
    leave(store, status, 300)
    many, _ = cost(client, lambda: store.list_runs(status=status, limit=20))
    assert sum(many.values()) <= 1.2 * sum(few.values())
    newest, cursor = list[str](), None
    while True:
        page = store.list_runs(status=status, limit=50, after=cursor)
        newest += [record.run_id for record in page]
        cursor = page.cursor
        if cursor is None:
            break
    assert newest == sorted(newest, reverse=True)
    assert len(newest) == 360


def test_workflows_are_apart_whatever_their_names_are(client: Any) -> None:
    store = RedisStore(client, shards=1)
    names = ["a", "a:b", "1:a", "a0", "a\x00", "\xff", "\u20ac", "h-", "l", "x" * 200, "a 0000000000000001"]
    for number, name in enumerate(names, 1):
        leave(store, "waiting", number, name)
        leave(store, "expired", 1, name)
    assert store.counts() == {
        **{(name, "waiting"): number for number, name in enumerate(names, 1)},
        **{(name, "expired"): 1 for name in names},
    }
    for number, name in enumerate(names, 1):
        assert len(store.list_runs(status="waiting", workflow=name)) == number
    check_statuses(client, "flowcore")


# -- records of an earlier release -------------------------------------------------------------------------------------


def forget_statuses(client: Any) -> None:
    """As an earlier release, which knows nothing of it, has left the index."""
    client.delete(*client.scan_iter("*:statuses"))


def every_way(store: RedisStore) -> dict[tuple[str, str], int]:
    for number, status in enumerate(WAY, 1):
        leave(store, status, 60 * number)
    return {("trip", status): 60 * number for number, status in enumerate(WAY, 1)}


def test_an_index_of_an_earlier_release_is_completed_a_page_at_a_time(client: Any) -> None:
    store = RedisStore(client, shards=2)
    expected = every_way(store)
    forget_statuses(client)
    assert len(store.list_runs(status="waiting", limit=None)) == expected["trip", "waiting"]
    commands, _ = cost(client, store.counts)
    assert commands["cmdstat_evalsha"] + commands.get("cmdstat_eval", 0) > 1680 // 200
    assert store.counts() == expected
    check_statuses(client, "flowcore")
    assert "cmdstat_zadd" not in cost(client, store.counts)[0]


def test_an_async_store_completes_it_too(server: RedisServer, client: Any) -> None:
    expected = every_way(RedisStore(client, shards=2))
    forget_statuses(client)

    async def counted() -> dict[tuple[str, str], int]:
        async with redis.asyncio.Redis.from_url(server.url) as connection:
            store = AsyncRedisStore(connection, shards=2)
            found = await store.counts()
            await store.close()
            return found

    assert asyncio.run(counted()) == expected
    check_statuses(client, "flowcore")


def test_a_user_who_may_only_read_gets_the_numbers_of_an_earlier_release_too(server: RedisServer, client: Any) -> None:
    expected = every_way(RedisStore(client, shards=2))
    forget_statuses(client)
    client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", *reading_rights())
    before = everything(client)
    with server.client(**dict.fromkeys(("username", "password"), "reader")) as reading:
        store = RedisStore(reading, shards=2)
        assert store.counts() == expected
        assert len(store.list_runs(status="parked", limit=None)) == expected["trip", "parked"]
    assert everything(client) == before


def test_what_an_earlier_release_writes_later_on_is_counted_too(client: Any) -> None:
    store = RedisStore(client, shards=1)
    leave(store, "running", 3)
    before = client.dump("{flowcore:0}:statuses")
    leave(store, "running", 1)
    leave(store, "expired", 1)
    client.restore("{flowcore:0}:statuses", 0, before, replace=True)
    assert store.counts() == {("trip", "running"): 4, ("trip", "expired"): 1}
    check_statuses(client, "flowcore")
    before = client.dump("{flowcore:0}:statuses")
    (expired,) = store.list_runs(status="expired")
    store.release(expired.key)
    client.restore("{flowcore:0}:statuses", 0, before, replace=True)
    assert store.counts() == {("trip", "running"): 4}
    check_statuses(client, "flowcore")


@pytest.mark.parametrize("status", ["parked", "held"])
def test_a_run_that_an_earlier_release_has_left_is_counted_as_that_once_its_lease_is_over(
    client: Any, status: str
) -> None:
    store = RedisStore(client, shards=1)
    leave(store, "expired", 1)
    claim, fence = begin(store, lease=0)
    before = client.dump("{flowcore:0}:statuses")
    assert store.finish(an_ending(claim, fence, "parked", held=status == "held")) is None
    client.restore("{flowcore:0}:statuses", 0, before, replace=True)
    assert store.counts() == {("trip", "expired"): 1, ("trip", status): 1}
    assert len(store.list_runs(status=status)) == 1
    check_statuses(client, "flowcore")


def test_gc_puts_right_what_an_earlier_release_did_to_runs_meanwhile(client: Any) -> None:
    store = RedisStore(client, shards=1)
    claim, fence = begin(store)
    before = client.dump("{flowcore:0}:statuses")
    assert store.finish(an_ending(claim, fence, "parked")) is None
    client.restore("{flowcore:0}:statuses", 0, before, replace=True)
    assert store.gc() == 1
    assert store.counts() == {("trip", "parked"): 1}
    check_statuses(client, "flowcore")


def test_an_entry_that_the_index_has_lost_is_counted_nowhere_and_looked_for_once(client: Any) -> None:
    store = RedisStore(client, shards=1)
    leave(store, "parked", 3)
    (lost, *_) = store.list_runs(status="parked")
    client.hdel("{flowcore:0}:index", lost.run_id)
    store.gc()
    assert store.counts() == {("trip", "parked"): 2}
    assert "cmdstat_zadd" not in cost(client, store.counts)[0]
