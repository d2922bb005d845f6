"""A Redis Cluster of three nodes moves the slot of a run from one to another while the run is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

import pytest
import redis.asyncio

from flowcore.stores import AsyncRedisStore, RedisStore
from tests.durable.audit import audit
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, run
from tests.durable.ledger import Journal, Ledger, effects_of, words_of
from tests.durable.sagas import World, saga
from tests.durable.watched import Fuse, Watched
from tests.stores.redis_servers import RedisClusterServers, no_connections_left, redis_cluster, until

__all__ = ["no_connections_left", "redis_cluster"]  # fixtures

pytestmark = pytest.mark.usefixtures("no_connections_left")

LEASE: Final = 0.9


@contextmanager
def clustered(cluster: RedisClusterServers, driver: str, prefix: str) -> Iterator[Any]:
    if driver == "asyncio":
        yield AsyncRedisStore(redis.asyncio.RedisCluster.from_url(cluster.url), prefix=prefix, shards=1)
    else:
        with cluster.client() as client:
            yield RedisStore(client, prefix=prefix, shards=1)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", ["success", "compensated"])
def test_a_saga_ends_right_while_its_slot_is_moved(
    redis_cluster: RedisClusterServers, place: Callable[[str], Place], driver: str, name: str
) -> None:
    here, prefix, fuse = place("redis"), uuid4().hex, Fuse("", 0, lambda: None)
    with redis_cluster.client() as client:
        slot = client.keyslot(f"{{{prefix}:0}}")
    owner = redis_cluster.owner(slot)
    to = next(node for node in redis_cluster.nodes if node is not owner)

    back = threading.Timer(0.2, redis_cluster.finish_move, (slot, owner))

    def heartbeat() -> None:
        before = fuse.seen["after renew"]
        until(lambda: fuse.seen["after renew"] > before, "a heartbeat")

    def point(label: str) -> None:
        if label == "after do a":
            redis_cluster.begin_move(slot, to)
            redis_cluster.move_keys(slot, to)  # from now on the old node says ASK
            heartbeat()
        elif label == "after do b":
            redis_cluster.finish_move(slot, to)  # and from now on MOVED
            heartbeat()
        elif label == "after do c":
            redis_cluster.begin_move(slot, owner)  # and back again, in the middle of what comes next
            redis_cluster.move_keys(slot, owner, most=1)
            back.start()

    wf = saga(name, World(Ledger(here.ledger), point))
    with clustered(redis_cluster, driver, prefix) as store:
        ended = run(driver, Watched(store, Journal(here.journal), fuse), wf, "k", LEASE)
        back.join()
        assert (ended.status, ended.replayed) == (name, False)
    effects = effects_of(here.ledger)["k"]
    undone = ["undo c", "undo b", "undo a"] if name == "compensated" else []
    assert [f"{effect.what} {effect.step}" for effect in effects] == ["do a", "do b", "do c", *undone]
    with clustered(redis_cluster, "threads", prefix) as store:
        assert not audit(effects, words_of(here.journal)["k"], store.find("k"), wf)
        assert redis_cluster.owner(slot) is owner
