"""The Redis stores, for runs that outlive their process. They work with any Redis that redis-py supports."""

# The functions that make the verbs of both stores are outside of these classes, and use their private attributes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar

from ...errors import DefinitionError
from ...retry import Duration
from ..arguments import without_password
from ..codec import Codec
from ..encoding import MIB
from .calls import Command, Exchange
from .clients import another, close
from .connection_cache import AsyncConnectionCache, ConnectionCache
from .doctor import Everywhere
from .verbs import Verbs

__all__ = ["AsyncRedisStore", "RedisStore"]

P = ParamSpec("P")
T = TypeVar("T")
_WEEK: Final = 7 * 24 * 3600.0
_SHARDS: Final = 256
_PATIENCE: Final = 5.0  # seconds that close() waits for other loops
_RAW: Final = {"NEVER_DECODE": True}
"""makes redis-py return bytes, whatever the client's decode_responses= and encoding= are"""


def _blocking(verb: Callable[Concatenate[Verbs, P], Exchange[T]]) -> Callable[Concatenate[RedisStore, P], T]:
    """Return a verb as a method that blocks until it has its replies."""

    @functools.wraps(verb)
    def call(self: RedisStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked = verb(self._verbs, *args, **kwargs)
        try:
            wanted = next(asked)
            while True:
                wanted = asked.send(self._replies(wanted))
        except StopIteration as done:
            answer: T = done.value
            return answer

    return call


def _awaiting(
    verb: Callable[Concatenate[Verbs, P], Exchange[T]],
) -> Callable[Concatenate[AsyncRedisStore, P], Coroutine[Any, Any, T]]:
    """Return a verb as a coroutine method."""

    @functools.wraps(verb)
    async def call(self: AsyncRedisStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked = verb(self._verbs, *args, **kwargs)
        try:
            wanted = next(asked)
            while True:
                wanted = asked.send(await self._replies(wanted))
        except StopIteration as done:
            answer: T = done.value
            return answer

    return call


class RedisStore:
    """A store that keeps runs in Redis, for all processes that can reach it. Thread-safe.

    `client`: your redis-py client, of any kind: a `redis.Redis` (also with TLS, with a password, or from a Sentinel's
    `master_for`), or a `redis.RedisCluster`. Give it a `socket_timeout`: without one, a Redis that hangs blocks its
    callers for ever. The store never closes the client.

    `prefix`: the first part of all the store's keys, percent-encoded and in braces ("{flowcore:3}:…",
    "{shop%3Aeu:3}:…"). Stores with different prefixes are independent. The prefix is also the store's `namespace`, on
    which step keys depend. `retention`: seconds for which finished runs are kept, and their keys stay used. `codec`
    (None: JsonCodec): dumps(value, type) -> str and loads(text, type) -> value, for other types, or to encrypt (see
    Codec). `max_value_bytes`: the largest size of one value. `traceback`: what is kept of an error's traceback:
    "keep" for all of it, "line" for the error's class and the line that raised it. `shards`: over how many slots of a
    cluster the runs are spread; this number must be the same for all stores with this prefix, and can never change.

    All times are the server's. Configure the server to keep its data (appendonly yes, maxmemory-policy noeviction):
    `doctor()` reports what can lose runs, and the logger "flowcore" warns of it once. In the rules below, write another
    prefix as `urllib.parse.quote(prefix, safe="")` returns it; the rules then cover only that prefix.

    An ACL user needs no more than

        ~{flowcore:* +eval +evalsha +time +type +exists +persist +pexpire +pttl +get +set +del
        +hget +hset +hmget +hgetall +hdel +zadd +zrem +zcard +zscore +zlexcount +zrange +zrangebyscore +zrevrangebyscore
        +zrangebylex +zrevrangebylex

    and for `doctor()` to report more, +info and +config|get. redis-py itself needs more rights: in a cluster,
    +cluster|slots +cluster|shards and +command. A user who only reads (find, head, get_run, the listings, counts,
    doctor) needs Redis 7 and

        %R~{flowcore:* +eval_ro +time +type +exists +get +hget +hmget +hgetall
        +zcard +zscore +zlexcount +zrange +zrangebyscore +zrevrangebyscore +zrangebylex +zrevrangebylex
    """

    name = "redis"
    durable = True
    blocks = True

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = "flowcore",
        retention: Duration = _WEEK,
        codec: Codec | None = None,
        max_value_bytes: int = MIB,
        traceback: Literal["keep", "line"] = "keep",
        shards: int = _SHARDS,
    ) -> None:
        _check(client, "RedisStore", asynchronous=False)
        self._client = client
        self._connections = ConnectionCache(client)
        self._verbs = Verbs(
            "RedisStore", prefix, retention, codec, max_value_bytes, traceback, shards, cluster=_is_cluster(client)
        )
        self._encoding = self._verbs._encoding
        self.namespace = prefix
        """what the step keys of this store's runs depend on"""

    claim = _blocking(Verbs.claim)
    checkpoint = _blocking(Verbs.checkpoint)
    renew = _blocking(Verbs.renew)
    finish = _blocking(Verbs.finish)
    withdraw = _blocking(Verbs.withdraw)
    find = _blocking(Verbs.find)
    head = _blocking(Verbs.head)
    list_resumable = _blocking(Verbs.list_resumable)
    send = _blocking(Verbs.send)
    get_run = _blocking(Verbs.get_run)
    list_runs = _blocking(Verbs.list_runs)
    counts = _blocking(Verbs.counts)
    release = _blocking(Verbs.release)
    erase = _blocking(Verbs.erase)
    hold = _blocking(Verbs.hold)
    resume = _blocking(Verbs.resume)
    undo = _blocking(Verbs.undo)
    cancel = _blocking(Verbs.cancel)
    gc = _blocking(Verbs.gc)
    doctor = _blocking(Verbs.doctor)

    def close(self) -> None:
        """Give the connections that the store keeps back to the client's pool. The client stays open."""
        self._connections.close()

    def _replies(self, wanted: list[Command] | Everywhere) -> list[Any]:
        """Send commands in one round trip per node. Returns their replies; a failed command's reply is its error."""
        client = self._client
        try:
            if isinstance(wanted, Everywhere):
                return [client.execute_command(*wanted.command, **node) for node in _primaries(client)]
            if len(wanted) == 1:
                return [self._connections.execute_command(*wanted[0], **_RAW)]
            with client.pipeline(transaction=False) as pipeline:
                for command in wanted:
                    pipeline.execute_command(*command, **_RAW, **_node(client, command))
                replies: list[Any] = pipeline.execute(raise_on_error=False)
                return replies
        except Exception as error:  # noqa: BLE001 - the verb handles it
            return _failed(wanted, error)


class AsyncRedisStore:
    """RedisStore for a client of redis.asyncio, with the same options and every verb as a coroutine.

    It may be used from several event loops. Each loop gets a copy of your client with its own connections; your client
    itself is never used. `close()` closes these copies, and so does the end of a loop that is shut down as
    `asyncio.run` does it.
    """

    name = "redis"
    durable = True
    blocks = True

    def __init__(
        self,
        client: Any,
        *,
        prefix: str = "flowcore",
        retention: Duration = _WEEK,
        codec: Codec | None = None,
        max_value_bytes: int = MIB,
        traceback: Literal["keep", "line"] = "keep",
        shards: int = _SHARDS,
    ) -> None:
        _check(client, "AsyncRedisStore", asynchronous=True)
        self._given = client
        self._verbs = Verbs(
            "AsyncRedisStore", prefix, retention, codec, max_value_bytes, traceback, shards, cluster=_is_cluster(client)
        )
        self._encoding = self._verbs._encoding
        self.namespace = prefix
        """what the step keys of this store's runs depend on"""
        self._connected: dict[
            asyncio.AbstractEventLoop, tuple[AsyncConnectionCache, AsyncGenerator[AsyncConnectionCache]]
        ] = {}

    claim = _awaiting(Verbs.claim)
    checkpoint = _awaiting(Verbs.checkpoint)
    renew = _awaiting(Verbs.renew)
    finish = _awaiting(Verbs.finish)
    withdraw = _awaiting(Verbs.withdraw)
    find = _awaiting(Verbs.find)
    head = _awaiting(Verbs.head)
    list_resumable = _awaiting(Verbs.list_resumable)
    send = _awaiting(Verbs.send)
    get_run = _awaiting(Verbs.get_run)
    list_runs = _awaiting(Verbs.list_runs)
    counts = _awaiting(Verbs.counts)
    release = _awaiting(Verbs.release)
    erase = _awaiting(Verbs.erase)
    hold = _awaiting(Verbs.hold)
    resume = _awaiting(Verbs.resume)
    undo = _awaiting(Verbs.undo)
    cancel = _awaiting(Verbs.cancel)
    gc = _awaiting(Verbs.gc)
    doctor = _awaiting(Verbs.doctor)

    async def close(self) -> None:
        """Close the connections of all loops. They are opened again when they are needed."""
        here, elsewhere = asyncio.get_running_loop(), list[asyncio.Future[None]]()
        for loop, (_, connection) in list(self._connected.items()):
            if loop is here:
                await connection.aclose()
            elif loop.is_running():
                elsewhere.append(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_closed(connection), loop)))
        if elsewhere:
            await asyncio.wait(elsewhere, timeout=_PATIENCE)

    async def _client(self) -> AsyncConnectionCache:
        """Return the client of the running loop, which is made at its first use."""
        loop = asyncio.get_running_loop()
        known = self._connected.get(loop)
        if known is not None:
            return known[0]
        for other in list(self._connected):
            if other.is_closed():  # such a loop did not close its client
                self._connected.pop(other, None)
        connection = self._connection(loop)
        client = await anext(connection)
        self._connected[loop] = client, connection
        return client

    async def _connection(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[AsyncConnectionCache]:
        """Yield a client and close it at the end. A loop that shuts down properly closes generators that are left."""
        connections = AsyncConnectionCache(another(self._given))
        try:
            yield connections
        finally:
            self._connected.pop(loop, None)
            await connections.close()
            await close(connections.client)

    async def _replies(self, wanted: list[Command] | Everywhere) -> list[Any]:
        """Send commands in one round trip per node. Returns their replies; a failed command's reply is its error."""
        connections = await self._client()
        client = connections.client
        try:
            if hasattr(client, "nodes_manager"):  # until the client knows its cluster, it sends commands to any node
                await client.initialize()
            if isinstance(wanted, Everywhere):
                async with connections.others:
                    return [await client.execute_command(*wanted.command, **node) for node in _primaries(client)]
            if len(wanted) == 1:
                return [await connections.execute_command(*wanted[0], **_RAW)]
            async with connections.others, client.pipeline(transaction=False) as pipeline:
                for command in wanted:
                    pipeline.execute_command(*command, **_RAW)
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
                return replies
        except Exception as error:  # noqa: BLE001 - the verb handles it
            return _failed(wanted, error)


def _check(client: Any, store: str, *, asynchronous: bool) -> None:
    """Raise DefinitionError unless this is a redis-py client of the right kind (sync or async)."""
    try:
        import redis as _  # noqa: F401
    except ImportError:
        raise ImportError(f"{store} needs redis-py: pip install 'flowcore[redis]'.") from None
    execute = getattr(client, "execute_command", None)
    if not callable(execute) or not _executes_at_once(client):
        given = without_password(client)
        raise DefinitionError(f"{store} needs a client of redis-py, such as redis.Redis(), not {given}.")
    if inspect.iscoroutinefunction(execute) is not asynchronous:
        ways = (
            "needs a client of redis.asyncio: with this one, use RedisStore"
            if asynchronous
            else "needs a client that blocks: with one of redis.asyncio, use AsyncRedisStore"
        )
        raise DefinitionError(f"{store} {ways}.")


def _executes_at_once(client: Any) -> bool:
    """Whether this is a client. The class of a client, and redis-py's pipelines, PubSub and Sentinel, have execute_command
    too."""
    of_redis = any(kind.__module__.split(".")[0] == "redis" for kind in type(client).__mro__)
    is_other = of_redis and (hasattr(client, "command_stack") or not hasattr(client, "pipeline"))
    return not (isinstance(client, type) or is_other)


async def _closed(connection: AsyncGenerator[Any]) -> None:
    await connection.aclose()


def _primaries(client: Any) -> list[dict[str, Any]]:
    """Return the options that send a command to each primary of a cluster, or one empty set of options without one."""
    if not hasattr(client, "get_primaries"):
        return [{}]
    return [{"target_nodes": node} for node in client.get_primaries()]


def _node(client: Any, command: Command) -> dict[str, Any]:
    """Return the option that names the node of a script's first key, or no option without a cluster. Without it, the
    pipeline of a cluster would ask a server for the node."""
    return {"target_nodes": client.get_node_from_key(command[3])} if hasattr(client, "get_node_from_key") else {}


def _is_cluster(client: Any) -> bool:
    return hasattr(client, "nodes_manager") or hasattr(client, "get_primaries")


def _failed(wanted: list[Command] | Everywhere, error: Exception) -> list[Any]:
    return [error] * (1 if isinstance(wanted, Everywhere) else len(wanted))
