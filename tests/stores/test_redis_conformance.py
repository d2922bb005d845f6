"""Both Redis stores keep the store contract, with every kind of client."""

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar
from uuid import uuid4

import pytest
import redis
import redis.asyncio
from redis._parsers import _AsyncRESP3Parser, _RESP3Parser

from flowcore.stores import AsyncRedisStore, RedisStore
from flowcore.testing.conformance import StoreConformance
from tests.stores.redis_runs import check_statuses
from tests.stores.redis_servers import RedisClusterServers, collect_connections, redis_cluster, redis_url

__all__ = ["redis_cluster", "redis_url"]  # fixtures


class Conformance(StoreConformance):
    """The suite for Redis stores. Each test has its own prefix, and removes its keys at the end."""

    examples = 15
    options: ClassVar[dict[str, Any]] = {}
    asynchronous = False

    @pytest.fixture(autouse=True)
    def _clients(self, redis_url: str) -> Iterator[None]:
        self.prefix = f"conformance-{uuid4().hex}"
        with contextlib.ExitStack() as self.stack:
            self.connect(redis_url)
            yield
            del self.client  # pytest keeps this object until it exits, but need not keep the client.
            with redis.Redis.from_url(redis_url) as client:
                check_statuses(client, self.prefix)
                for key in client.scan_iter(f"{{{self.prefix}:*", count=1000):
                    client.delete(key)

    def connect(self, url: str) -> None:
        """Make the client of this test."""
        if self.asynchronous:
            self.client: Any = redis.asyncio.Redis.from_url(url, **self.options)
        else:
            self.client = self.stack.enter_context(redis.Redis.from_url(url, **self.options))

    def make_store(self, **options: Any) -> Any:
        kind = AsyncRedisStore if self.asynchronous else RedisStore
        return kind(self.client, prefix=self.prefix, **options)

    def open_again(self, store: Any) -> Any:
        return self.make_store()

    def make_forgetful_store(self, retention: float) -> Any:
        return self.make_store(retention=retention)


class TestRedisStore(Conformance): ...


class TestAsyncRedisStore(Conformance):
    asynchronous = True


@pytest.mark.share
class TestOtherAnswers(Conformance):
    """A client without hiredis that decodes replies in its own way, on which the store must not depend."""

    options: ClassVar[dict[str, Any]] = {
        "protocol": 3,
        "decode_responses": True,
        "encoding": "latin-1",
        "parser_class": _RESP3Parser,
    }
    examples = 5


@pytest.mark.full  # Both kinds of store read replies with the same functions, which TestOtherAnswers has tested.
class TestAsyncOtherAnswers(TestOtherAnswers):
    asynchronous = True
    options: ClassVar[dict[str, Any]] = {**TestOtherAnswers.options, "parser_class": _AsyncRESP3Parser}


@pytest.fixture(scope="module")
def looking(redis_cluster: RedisClusterServers) -> Iterator[redis.RedisCluster]:
    """A client that looks at what the tests leave. Connecting to a cluster takes longer than most of them."""
    with redis_cluster.client() as client:
        yield client
    collect_connections()


class OnCluster(Conformance):
    examples = 5

    @pytest.fixture(autouse=True)
    def _clients(self, redis_cluster: RedisClusterServers, looking: redis.RedisCluster) -> Iterator[None]:
        self.prefix = f"conformance-{uuid4().hex}"
        with contextlib.ExitStack() as self.stack:
            self.client: Any = (
                redis.asyncio.RedisCluster.from_url(redis_cluster.url)
                if self.asynchronous
                else self.stack.enter_context(redis_cluster.client())
            )
            yield
            del self.client
            check_statuses(looking, self.prefix)


@pytest.mark.full  # Both kinds of store send the same commands to the same slots, so TestAsyncRedisCluster tests both.
class TestRedisCluster(OnCluster): ...


@pytest.mark.share
class TestAsyncRedisCluster(OnCluster):
    asynchronous = True
