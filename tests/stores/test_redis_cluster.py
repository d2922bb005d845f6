"""Redis Cluster: every verb keeps to one slot, wherever that slot is just now."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from flowcore import StoreError, StoreUnavailable
from flowcore.stores import AsyncRedisStore, RedisStore
from flowcore.stores.base import Claimed, Renewal
from flowcore.stores.redis.errors import refuse
from tests.stores.proxies import Proxy
from tests.stores.redis_runs import a_checkpoint, a_claim, a_lease, an_ending, begin
from tests.stores.redis_servers import RedisClusterServers, RedisServer, no_connections_left, redis_cluster

__all__ = ["no_connections_left", "redis_cluster"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_connections_left")


@pytest.fixture
def client(redis_cluster: RedisClusterServers) -> Iterator[Any]:
    with redis_cluster.client() as client:
        yield client


def elsewhere(cluster: RedisClusterServers, slot: int) -> RedisServer:
    owner = cluster.owner(slot)
    return next(node for node in cluster.nodes if node is not owner)


def test_runs_spread_over_all_nodes_and_each_is_found_again(client: Any) -> None:
    store = RedisStore(client, prefix=uuid4().hex)
    runs = {f"key {number}": begin(store, f"key {number}") for number in range(60)}
    for key, (claim, fence) in runs.items():
        assert store.checkpoint(a_checkpoint(claim, fence)) is None
        assert store.get_run(claim.run_id).key == key
    assert len(store.list_runs()) == 60
    assert store.renew([a_lease(*one) for one in runs.values()], 0) == [Renewal.OURS] * 60
    assert sorted(record.key for record in store.list_resumable(["trip"])) == sorted(runs)
    for claim, fence in runs.values():
        assert store.finish(an_ending(claim, fence)) is None
    assert store.gc() == 60
    per_node = [len(client.execute_command("KEYS", "*:run:*", target_nodes=node)) for node in client.get_primaries()]
    assert all(per_node), per_node


@pytest.mark.parametrize("prefix", ["{", "}", "{}", "}{", "a}b{c}", "{a}", "%7D", "é☃", " ", "a:b", "\n", "x" * 1000])
def test_no_prefix_takes_a_run_out_of_its_slot(client: Any, prefix: str) -> None:
    prefix = f"{prefix}{uuid4().hex}{prefix}"
    store = RedisStore(client, prefix=prefix, shards=3)
    for number in range(10):
        claim, fence = begin(store, f"key {number}")
        assert store.checkpoint(a_checkpoint(claim, fence)) is None
        assert store.finish(an_ending(claim, fence)) is None
    assert len(store.list_runs()) == 10


def test_prefixes_that_look_alike_are_not(client: Any) -> None:
    unique = uuid4().hex
    stores = [RedisStore(client, prefix=f"{part}{unique}") for part in ("", "{", "}", "%7B", "%7D", "%257B", "%")]
    for store in stores:
        begin(store)
    assert [len(store.list_runs()) for store in stores] == [1] * len(stores)


def test_runs_continue_while_a_slot_of_theirs_is_moved(redis_cluster: RedisClusterServers, client: Any) -> None:
    prefix = uuid4().hex
    store = RedisStore(client, prefix=prefix, shards=2)
    runs = [begin(store, f"key {number}") for number in range(20)]  # in both shards
    slot = client.keyslot(f"{{{prefix}:0}}")
    to = elsewhere(redis_cluster, slot)

    def all_verbs(seq: int) -> None:
        for claim, fence in runs:
            assert store.checkpoint(a_checkpoint(claim, fence, seq)) is None
            assert store.find(claim.key).seq == seq + 3
        assert store.renew([a_lease(*run) for run in runs], 600) == [Renewal.OURS] * 20

    redis_cluster.begin_move(slot, to)
    all_verbs(2)  # all keys are still here
    redis_cluster.move_keys(slot, to)
    all_verbs(6)  # all keys are there: ASK
    redis_cluster.finish_move(slot, to)
    all_verbs(10)  # MOVED
    assert len(store.list_runs()) == 20
    for claim, fence in runs:
        assert store.finish(an_ending(claim, fence)) is None
        assert store.get_run(claim.run_id).status == "success"


def test_what_a_moving_slot_cannot_answer_is_unavailable_until_it_has_moved(redis_cluster: RedisClusterServers) -> None:
    with redis_cluster.client(retry=Retry(NoBackoff(), 0)) as client:
        prefix = uuid4().hex
        store = RedisStore(client, prefix=prefix, shards=1)
        claim, fence = begin(store)
        slot = client.keyslot(f"{{{prefix}:0}}")
        to = elsewhere(redis_cluster, slot)
        redis_cluster.begin_move(slot, to)
        assert redis_cluster.move_keys(slot, to, most=1) == 1
        with pytest.raises(StoreUnavailable, match="retrying is safe"):
            store.finish(an_ending(claim, fence))
        redis_cluster.finish_move(slot, to)
        assert store.finish(an_ending(claim, fence)) is None


def test_a_client_of_one_node_is_reported_to_be_a_clusters(redis_cluster: RedisClusterServers) -> None:
    with redis_cluster.nodes[0].client() as client:
        store = RedisStore(client)
        with pytest.raises(StoreError, match="give the store a RedisCluster client") as error:
            [store.claim(a_claim(f"key {number}")) for number in range(20)]
    assert not isinstance(error.value, StoreUnavailable)


def test_all_leases_are_renewed_in_one_round_trip_a_node(redis_cluster: RedisClusterServers) -> None:
    with contextlib.ExitStack() as stack:
        proxies = {node.port: stack.enter_context(Proxy(node.port)) for node in redis_cluster.nodes}
        client = redis.RedisCluster(
            host="127.0.0.1",
            port=redis_cluster.nodes[0].port,
            address_remap=lambda address: (
                address[0],
                proxies[address[1]].port if address[1] in proxies else address[1],
            ),
        )
        stack.callback(client.close)
        stack.callback(client.disconnect_connection_pools)
        # The prefix decides which node has which key: with this one, each node has some, and none has too many for one packet.
        store = RedisStore(client, prefix="evenly")
        leases = [a_lease(*begin(store, f"key {number}")) for number in range(20)]  # few enough for one packet a node
        assert store.renew(leases, 600) == [Renewal.OURS] * 20
        for proxy in proxies.values():
            proxy.round_trips = 0
        assert store.renew(leases, 600) == [Renewal.OURS] * 20
        assert [proxy.round_trips for proxy in proxies.values()] == [1, 1, 1]


def test_an_async_store_follows_a_slot_that_moves(redis_cluster: RedisClusterServers) -> None:
    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.RedisCluster.from_url(redis_cluster.url), prefix=prefix, shards=1)
        claim = a_claim()
        answer = await store.claim(claim)
        assert isinstance(answer, Claimed)
        redis_cluster.begin_move(slot, to)
        redis_cluster.move_keys(slot, to)
        assert await store.checkpoint(a_checkpoint(claim, answer.fence)) is None
        redis_cluster.finish_move(slot, to)
        assert await store.renew([a_lease(claim, answer.fence)], 600) == [Renewal.OURS]
        assert await store.finish(an_ending(claim, answer.fence)) is None

    prefix = uuid4().hex
    with redis_cluster.client() as client:
        slot = client.keyslot(f"{{{prefix}:0}}")
    to = elsewhere(redis_cluster, slot)
    asyncio.run(main())


def refused_as_elsewhere(cluster: RedisClusterServers) -> int:
    """How many commands the nodes have refused, since another node has their slot."""
    refused = 0
    for node in cluster.nodes:
        with node.client(decode_responses=True) as client:
            refused += int(client.info("errorstats").get("errorstat_MOVED", {}).get("count", 0))
    return refused


def test_the_first_calls_of_an_asyncio_client_go_to_the_right_nodes(redis_cluster: RedisClusterServers) -> None:
    """redis-py sends them to any node, gets MOVED, and at the fifth closes connections that other calls wait on."""

    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.RedisCluster.from_url(redis_cluster.url), prefix=uuid4().hex)
        claims = [a_claim(f"key {number}") for number in range(50)]
        answers = await asyncio.gather(*(store.claim(claim) for claim in claims))
        assert all(isinstance(answer, Claimed) for answer in answers)
        await store.close()

    before = refused_as_elsewhere(redis_cluster)
    asyncio.run(main())
    assert refused_as_elsewhere(redis_cluster) == before


def test_a_connection_that_the_client_closed_under_a_call_is_an_unreachable_server() -> None:
    """What redis.asyncio's cluster does with idle connections to a node where one of them has failed; the call finds no writer."""

    async def main() -> None:
        connection: Any = redis.asyncio.Connection()
        with pytest.raises(AttributeError) as raised:
            await connection._send_packed_command([b"PING"])
        with pytest.raises(StoreUnavailable, match="Redis is unreachable"):
            refuse(raised.value)

    asyncio.run(main())


def test_a_connection_that_the_server_closed_under_a_write_is_an_unreachable_server() -> None:
    """The writelines of asyncio's transports after the connection was lost, as CPython 3.13.0 has it."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
            transport.abort()
            await asyncio.sleep(0)
            try:
                transport.writelines([b"PING"])
            except (AttributeError, TypeError) as error:
                with pytest.raises(StoreUnavailable, match="Redis is unreachable"):
                    refuse(error)

    asyncio.run(main())
    with pytest.raises(StoreUnavailable, match="Redis is unreachable"):
        refuse(TypeError("'NoneType' object is not callable"))
