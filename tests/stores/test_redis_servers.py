"""The redis servers that tests start: what the other tests rely on."""

import pytest
import redis

from tests.stores.redis_servers import (
    RedisClusterServers,
    StartRedis,
    redis_binary,
    redis_cluster,
    redis_url,
    start_redis,
)

__all__ = ["redis_cluster", "redis_url", "start_redis"]  # fixtures


def test_the_session_has_a_server(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()


@pytest.mark.parametrize("port", [None, 0])
def test_a_killed_server_finds_again_what_it_had_acknowledged(start_redis: StartRedis, port: int | None) -> None:
    server = start_redis(port=port, appendonly="always")
    with server.client() as client:
        client.set("k", "v")
        server.restart()
        assert client.get("k") == b"v"


def test_a_paused_server_answers_once_it_is_resumed(start_redis: StartRedis) -> None:
    server = start_redis()
    with server.client(socket_timeout=0.1) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()


def test_a_server_that_cannot_start_says_what_it_logged(start_redis: StartRedis) -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        start_redis(arguments=["--nonsense", "1"])


def test_a_stopped_server_can_be_started_again(start_redis: StartRedis) -> None:
    server = start_redis(port=0)
    server.stop()
    assert not server.alive
    server.start()
    with server.client() as client:
        assert client.ping()


def test_a_missing_server_fails_in_ci_and_is_skipped_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stores.redis_servers.find_redis", lambda: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception):
        redis_binary()
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception):
        redis_binary()


def test_the_cluster_serves_every_slot_and_moves_them(redis_cluster: RedisClusterServers) -> None:
    with redis_cluster.client() as client:
        client.set("{moves}k", "v")
        slot = client.keyslot("{moves}")
        first = redis_cluster.owner(slot)
        to = next(node for node in redis_cluster.nodes if node is not first)
        redis_cluster.begin_move(slot, to)
        assert redis_cluster.move_keys(slot, to) == 1
        assert client.get("{moves}k") == b"v"
        redis_cluster.finish_move(slot, to)
        assert redis_cluster.owner(slot) is to
        assert client.get("{moves}k") == b"v"
