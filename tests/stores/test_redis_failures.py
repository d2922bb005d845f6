"""What goes wrong with a Redis: the store says so in one sentence, and whatever was acknowledged still holds afterwards."""

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from flowcore import CorruptRecord, StoreUnavailable
from flowcore.stores import RedisStore
from flowcore.stores.base import Busy, Claimed, Lost, Renewal
from flowcore.stores.redis import index_scripts, operator_scripts, scripts
from flowcore.stores.redis.errors import refuse
from flowcore.stores.redis.lua import Script
from tests.stores.proxies import Proxy
from tests.stores.redis_runs import a_checkpoint, a_claim, a_lease, an_ending, begin, everything, records
from tests.stores.redis_servers import RedisServer, StartRedis, start_redis, until

__all__ = ["start_redis"]  # a fixture

ONCE = Retry(NoBackoff(), 0)
SCRIPTS = [
    value
    for value in {**vars(scripts), **vars(operator_scripts), **vars(index_scripts)}.values()
    if isinstance(value, Script)
]


def client_of(server: RedisServer, **options: Any) -> Any:
    """A client that does not ask again by itself."""
    return server.client(retry=ONCE, **options)


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    """The message of an error, which must be one line that ends well."""
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# -- it does not answer ------------------------------------------------------------------------------------------------


def test_a_claim_fails_closed_where_no_server_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with redis.Redis(port=port, retry=ONCE) as client, pytest.raises(StoreUnavailable) as error:
        RedisStore(client).claim(a_claim())
    assert sentence(error).startswith("Redis is unreachable (ConnectionError: ")


def test_a_server_that_hangs_is_unavailable_after_the_clients_own_timeout(start_redis: StartRedis) -> None:
    server = start_redis()
    with client_of(server, socket_timeout=0.2) as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        server.pause()
        with pytest.raises(StoreUnavailable) as error:
            store.checkpoint(a_checkpoint(claim, fence))
        assert "TimeoutError" in sentence(error)
        server.resume()
        assert store.checkpoint(a_checkpoint(claim, fence)) is None


def test_what_was_acknowledged_survives_kill_9(start_redis: StartRedis) -> None:
    server = start_redis(port=0, appendonly="always")
    with server.client() as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        store.checkpoint(a_checkpoint(claim, fence))
        before = store.find("k")
        server.restart()
        assert store.find("k") == before
        assert isinstance(store.claim(a_claim()), Busy)
        assert store.renew([a_lease(claim, fence)], 600) == [Renewal.OURS]
        assert store.finish(an_ending(claim, fence)) is None
        server.restart()
        assert store.find("k").status == "success"


def test_a_store_that_is_made_before_its_server_works_once_that_is_there(start_redis: StartRedis) -> None:
    server = start_redis(port=0)
    server.stop()
    with client_of(server) as client:
        store = RedisStore(client)
        with pytest.raises(StoreUnavailable):
            store.claim(a_claim())
        server.start()
        assert isinstance(store.claim(a_claim()), Claimed)


# -- it refuses --------------------------------------------------------------------------------------------------------


def test_a_replica_is_refused(start_redis: StartRedis) -> None:
    primary = start_redis(port=0, arguments=["--repl-diskless-sync-delay", "0"])
    replica = start_redis(port=0, arguments=["--replicaof", "127.0.0.1", str(primary.port)])
    with client_of(replica, decode_responses=True) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up", "replication")
        with pytest.raises(StoreUnavailable, match="read-only replica, and the store needs the primary") as error:
            RedisStore(client).claim(a_claim())
        sentence(error)
        assert RedisStore(client).doctor()["role"] == "replica"


def test_a_replica_without_its_primary_is_unavailable(start_redis: StartRedis) -> None:
    primary = start_redis(port=0, arguments=["--repl-diskless-sync-delay", "0"])
    options = ["--replicaof", "127.0.0.1", str(primary.port), "--replica-serve-stale-data", "no"]
    replica = start_redis(port=0, arguments=options)
    with client_of(replica, decode_responses=True) as client:
        until(lambda: client.info("replication")["master_link_status"] == "up", "replication")
        primary.kill()
        until(lambda: client.info("replication")["master_link_status"] == "down", "the link going down")
        with pytest.raises(StoreUnavailable, match="replica that has lost its primary"):
            RedisStore(client).claim(a_claim())


def test_a_node_without_slots_is_unavailable(start_redis: StartRedis) -> None:
    server = start_redis(port=0, arguments=["--cluster-enabled", "yes"])
    with client_of(server) as client, pytest.raises(StoreUnavailable, match="the Redis cluster is down"):
        RedisStore(client).claim(a_claim())


def test_a_server_that_cannot_write_its_snapshot_is_unavailable(start_redis: StartRedis) -> None:
    server = start_redis(arguments=["--dbfilename", "taken.rdb"])
    (server.directory / "taken.rdb").mkdir()
    with client_of(server) as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        client.config_set("save", "3600 1")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the snapshot failing")
        with pytest.raises(StoreUnavailable, match="cannot write to its disk"):
            store.checkpoint(a_checkpoint(claim, fence))


def test_a_server_that_misses_its_replicas_is_unavailable(start_redis: StartRedis) -> None:
    server = start_redis(arguments=["--min-replicas-to-write", "1"])
    with client_of(server) as client, pytest.raises(StoreUnavailable, match="fewer replicas than it requires"):
        RedisStore(client).claim(a_claim())


def test_a_busy_server_is_unavailable(start_redis: StartRedis) -> None:
    server = start_redis(port=0, arguments=["--lua-time-limit", "1"])
    with client_of(server) as client, client_of(server, socket_timeout=0.05) as busy:
        with pytest.raises(redis.TimeoutError):
            busy.eval("while true do end", 0)
        with pytest.raises(StoreUnavailable, match="busy with another script"):
            RedisStore(client).claim(a_claim())
        client.script_kill()


def test_who_may_not_enter_is_asked_for_a_password(start_redis: StartRedis) -> None:
    server = start_redis(arguments=["--requirepass", "secret"])
    for options in ({}, {"password": "wrong"}):
        with (
            client_of(server, **options) as client,
            pytest.raises(StoreUnavailable, match="the right username") as error,
        ):
            RedisStore(client).claim(a_claim())
        sentence(error)


def rights(client: Any) -> Callable[[], Any]:
    client.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")
    return lambda: client.execute_command("ACL", "SETUSER", "default", "+@all")


def memory(client: Any) -> Callable[[], Any]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def a_replica(client: Any) -> Callable[[], Any]:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    return lambda: client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    ("breaks", "says"),
    [(rights, "does not let this user"), (memory, "out of memory"), (a_replica, "read-only replica")],
)
def test_what_a_person_must_put_right_is_unavailable_until_then(
    start_redis: StartRedis, breaks: Callable[[Any], Callable[[], Any]], says: str
) -> None:
    server = start_redis(arguments=["--repl-timeout", "1"])
    with client_of(server) as client, server.client() as operator:
        store = RedisStore(client)
        claim, fence = begin(store)
        mend = breaks(operator)
        for verb in (
            lambda: store.claim(a_claim("another")),
            lambda: store.checkpoint(a_checkpoint(claim, fence)),
            lambda: store.finish(an_ending(claim, fence)),
        ):
            with pytest.raises(StoreUnavailable, match=says) as error:
                verb()
            sentence(error)
        mend()
        assert store.checkpoint(a_checkpoint(claim, fence)) is None
        assert store.finish(an_ending(claim, fence)) is None


@pytest.mark.parametrize("waits", [False, True])
def test_a_pool_without_a_free_connection_is_unavailable_in_words_of_its_own(
    start_redis: StartRedis, waits: bool
) -> None:
    server = start_redis()
    kind: Any = redis.BlockingConnectionPool if waits else redis.ConnectionPool
    options: dict[str, Any] = {"timeout": 0.01} if waits else {}
    with redis.Redis(connection_pool=kind.from_url(server.url, max_connections=2, retry=ONCE, **options)) as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        taken = [client.connection_pool.get_connection() for _ in range(2)]
        with pytest.raises(StoreUnavailable, match="connections of the Redis client's pool are in use") as error:
            store.checkpoint(a_checkpoint(claim, fence))
        sentence(error)
        for connection in taken:
            client.connection_pool.release(connection)
        assert store.checkpoint(a_checkpoint(claim, fence)) is None


def test_a_server_that_takes_no_more_clients_is_unavailable_in_words_of_its_own() -> None:
    # A server that refuses a connection closes it at once, and most often its client never reads why.
    with pytest.raises(StoreUnavailable, match="Redis has as many clients as it allows") as error:
        refuse(redis.ConnectionError("max number of clients reached"))
    sentence(error)


# -- it is full, or forgets --------------------------------------------------------------------------------------------


def test_a_full_redis_takes_no_claim_and_loses_no_lease(start_redis: StartRedis) -> None:
    server = start_redis()
    with client_of(server) as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        client.config_set("maxmemory", 1)
        before = everything(client)
        with pytest.raises(StoreUnavailable, match="Redis is out of memory: raise its maxmemory") as error:
            store.claim(a_claim("another"))
        sentence(error)
        with pytest.raises(StoreUnavailable):
            store.checkpoint(a_checkpoint(claim, fence))
        for last in (None, a_checkpoint(claim, fence, base=1)):  # the usual case is the one that ends with a step
            with pytest.raises(StoreUnavailable):
                store.finish(an_ending(claim, fence, changes=last))
        assert everything(client) == before
        assert store.renew([a_lease(claim, fence)], 700) == [Renewal.OURS]
        assert store.find("k").expires > RedisStore(client).find("k").started + 650
        client.config_set("maxmemory", 0)
        assert store.checkpoint(a_checkpoint(claim, fence)) is None
        assert store.finish(an_ending(claim, fence)) is None


@pytest.mark.parametrize("verb", ["checkpoint", "finish"])
@pytest.mark.parametrize("how", ["flushall", "eviction"])
def test_a_run_whose_record_is_gone_is_lost_and_the_fence_still_rises(
    start_redis: StartRedis, verb: str, how: str
) -> None:
    server = start_redis()
    with client_of(server) as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        if how == "flushall":
            client.flushall()
        else:
            evict(client)
        last = a_checkpoint(claim, fence) if verb == "checkpoint" else an_ending(claim, fence)
        assert getattr(store, verb)(last) == Lost(gone=True)
        assert store.renew([a_lease(claim, fence)], 600) == [Renewal.LOST]
        assert store.find("k") is None
        again = store.claim(a_claim())
        assert isinstance(again, Claimed)
        assert again.record is None
        assert again.fence > fence
        assert getattr(store, verb)(last) == Lost()


def evict(client: Any) -> None:
    """Have a server throw away all it has, as one that is full does."""
    (record,) = records(client)
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)
    for number in range(10_000):
        if not client.exists(record):
            break
        client.set(f"junk{number}", "x" * 10_000)
    assert not client.exists(record)
    client.config_set("maxmemory", 0)


def test_scripts_that_the_server_forgets_are_shown_to_it_again(start_redis: StartRedis) -> None:
    server = start_redis()
    with client_of(server) as client:
        store = RedisStore(client)
        claim, fence = begin(store)
        verbs: list[Callable[[], Any]] = [
            lambda: store.checkpoint(a_checkpoint(claim, fence)),
            lambda: store.renew([a_lease(claim, fence)] * 3, 600),
            lambda: store.find("k"),
            store.list_runs,
            lambda: store.list_resumable(["trip"]),
            lambda: store.get_run(claim.run_id),
            lambda: store.finish(an_ending(claim, fence)),
            lambda: store.hold("k"),
            lambda: store.resume("k"),
            lambda: store.release("k"),
            lambda: store.withdraw(claim),
            store.gc,
            lambda: store.claim(a_claim()),
        ]
        for verb in verbs:
            client.script_flush()
            verb()


# -- replies that never come -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 3])
def test_a_verb_whose_reply_was_lost_is_answered_the_same_when_it_is_asked_again(
    start_redis: StartRedis, retries: int
) -> None:
    server = start_redis(port=0)
    with Proxy(server.port) as proxy, redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), retries)) as client:
        store = RedisStore(client)
        for script in SCRIPTS:
            client.script_load(script.text)

        def lost(verb: Callable[[], Any]) -> Any:
            proxy.lose_reply(b"EVALSHA")
            if not retries:
                with pytest.raises(StoreUnavailable):
                    verb()
                assert proxy.lost
            answer = verb()
            assert proxy.lost
            return answer

        begin(store, "another")
        claim = a_claim()
        answer = lost(lambda: store.claim(claim))
        assert (answer.generation, answer.record) == (0, None)
        fence = answer.fence
        assert lost(lambda: store.checkpoint(a_checkpoint(claim, fence))) is None
        assert lost(lambda: store.renew([a_lease(claim, fence)], 0.001)) == [Renewal.OURS]
        again = a_claim()
        until(lambda: store.list_runs(status="expired"), "the lease running out")
        taken = lost(lambda: store.claim(again))
        assert (taken.record.run_id, taken.record.status) == (claim.run_id, "running")
        assert taken.fence > fence
        lost(lambda: store.withdraw(again))
        assert [run.run_id for run in lost(lambda: store.list_resumable(["trip"]))] == [claim.run_id]
        taken = store.claim(a_claim())
        assert lost(lambda: store.finish(an_ending(claim, taken.fence, "parked"))) is None
        for verb in (store.hold, store.resume, store.undo, store.release):
            lost(partial(verb, "k"))
        assert lost(lambda: store.get_run(claim.run_id)).status == "failure"
        assert len(lost(store.list_runs)) == 2
        assert lost(store.gc) == 2
        fresh = lost(lambda: store.claim(a_claim()))
        assert (fresh.generation, fresh.record) == (1, None)


# -- foreign hands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["open", "ended", "index"])
def test_an_index_of_another_type_is_reported_and_no_record_is_changed(start_redis: StartRedis, index: str) -> None:
    server = start_redis()
    with client_of(server) as client:
        store = RedisStore(client, shards=1)
        claim, fence = begin(store)
        client.delete(f"{{flowcore:0}}:{index}")
        client.set(f"{{flowcore:0}}:{index}", "mine")
        (record,) = records(client)
        before = client.hgetall(record)
        with pytest.raises(CorruptRecord, match="of another type") as error:
            store.finish(an_ending(claim, fence))
        sentence(error)
        with pytest.raises(CorruptRecord):
            store.claim(a_claim("another"))
        assert client.hgetall(record) == before
        assert records(client) == [record]
