"""The Redis stores: for runs that outlive their process, on any Redis that redis-py can talk to."""

# The verbs of both stores are made outside of their classes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar

from ...errors import DefinitionError, safe_repr
from ...retry import Duration
from ..codec import Codec
from ..encoding import MIB
from .calls import Asked, Command
from .clients import another, close
from .connection_cache import AsyncKept, Kept
from .doctor import Everywhere
from .verbs import Verbs

__all__ = ["AsyncRedisStore", "RedisStore"]

P = ParamSpec("P")
T = TypeVar("T")
_WEEK: Final = 7 * 24 * 3600.0
_SHARDS: Final = 256
_PATIENCE: Final = 5.0  # seconds that close() waits for other loops
_RAW: Final = {"NEVER_DECODE": True}
"""makes redis-py answer with bytes, whatever decode_responses= and encoding= of the client say"""


def _blocking(verb: Callable[Concatenate[Verbs, P], Asked[T]]) -> Callable[Concatenate[RedisStore, P], T]:
    """A verb as a function that waits for its replies."""

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
    verb: Callable[Concatenate[Verbs, P], Asked[T]],
) -> Callable[Concatenate[AsyncRedisStore, P], Coroutine[Any, Any, T]]:
    """A verb as a coroutine."""

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
    """Runs in a Redis, which every process that reaches it may share. Thread-safe.

    `client` is yours, a redis-py client of whichever kind: `redis.Redis`, with TLS, a password, or from a Sentinel's
    `master_for`, or a `redis.RedisCluster`. Give it a `socket_timeout`, or a Redis that hangs hangs its callers too. The
    store never closes it.

    `prefix` comes first in all its keys, percent-encoded and in braces ("{flowcore:3}:…", "{shop%3Aeu:3}:…"); stores with
    different ones know nothing of each other. It is also the store's `namespace`, on which step keys depend.
    `retention`: seconds for which finished runs are kept, and their keys used up. `codec` (None: JsonCodec):
    dumps(value, type) -> str and loads(text, type) -> value, for other types, or to encrypt (see Codec). `max_value_bytes`: the
    most that one value may take. `traceback`: what to keep of an error's, all of it or its class and "line" only. `shards`: over how many slots of a cluster the runs are spread; the same for all stores with this prefix, for ever.

    All times are the server's. Have it keep its data (appendonly yes, maxmemory-policy noeviction): `doctor()` reports what
    can lose runs, and so does one warning of the logger "flowcore". In a rule another prefix stands as
    `urllib.parse.quote(prefix, safe="")` writes it, and the rule then covers no other prefix. An ACL user needs no more than

        ~{flowcore:* +eval +evalsha +time +type +exists +persist +pexpire +pttl +get +set +del
        +hget +hset +hmget +hgetall +hdel +zadd +zrem +zcard +zscore +zlexcount +zrange +zrangebyscore +zrevrangebyscore
        +zrangebylex +zrevrangebylex

    and for `doctor()` to know more, +info and +config|get. redis-py's own needs come on top, in a cluster +cluster|slots
    +cluster|shards and +command. A user who only reads (find, head, get_run, the listings, counts, doctor) needs Redis 7 and

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
        self._kept = Kept(client)
        self._verbs = Verbs(
            "RedisStore", prefix, retention, codec, max_value_bytes, traceback, shards, cluster=_is_cluster(client)
        )
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
        """Give back what connections it has just now; the client is yours."""
        self._kept.close()

    def _replies(self, wanted: list[Command] | Everywhere) -> list[Any]:
        """Send commands in one round trip a node; answers with their replies, or with what they failed with."""
        client = self._client
        try:
            if isinstance(wanted, Everywhere):
                return [client.execute_command(*wanted.command, **node) for node in _primaries(client)]
            if len(wanted) == 1:
                return [self._kept.execute_command(*wanted[0], **_RAW)]
            with client.pipeline(transaction=False) as pipeline:
                for command in wanted:
                    pipeline.execute_command(*command, **_RAW, **_node(client, command))
                replies: list[Any] = pipeline.execute(raise_on_error=False)
                return replies
        except Exception as error:  # noqa: BLE001 - the verb looks at it
            return _failed(wanted, error)


class AsyncRedisStore:
    """RedisStore for a client of redis.asyncio, with the same options and every verb as a coroutine.

    May be used from several event loops, each of which gets a client like yours, with connections of its own; yours is
    never used. They are closed by `close()`, and with their loop where that is done as `asyncio.run` does it.
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
        self.namespace = prefix
        """what the step keys of this store's runs depend on"""
        self._connected: dict[asyncio.AbstractEventLoop, tuple[AsyncKept, AsyncGenerator[AsyncKept]]] = {}

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
        """Close the connections of all loops; they are made again when they are needed."""
        here, elsewhere = asyncio.get_running_loop(), list[asyncio.Future[None]]()
        for loop, (_, connection) in list(self._connected.items()):
            if loop is here:
                await connection.aclose()
            elif loop.is_running():
                elsewhere.append(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_closed(connection), loop)))
        if elsewhere:
            await asyncio.wait(elsewhere, timeout=_PATIENCE)

    async def _client(self) -> AsyncKept:
        """The client of this loop."""
        loop = asyncio.get_running_loop()
        known = self._connected.get(loop)
        if known is not None:
            return known[0]
        for other in list(self._connected):
            if other.is_closed():  # without a chance to close what it had open
                self._connected.pop(other, None)
        connection = self._connection(loop)
        client = await anext(connection)
        self._connected[loop] = client, connection
        return client

    async def _connection(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[AsyncKept]:
        """A client, closed after use. A loop that ends well ends what is left of its generators while it still runs."""
        kept = AsyncKept(another(self._given))
        try:
            yield kept
        finally:
            self._connected.pop(loop, None)
            await kept.close()
            await close(kept.client)

    async def _replies(self, wanted: list[Command] | Everywhere) -> list[Any]:
        """Send commands in one round trip a node; answers with their replies, or with what they failed with."""
        kept = await self._client()
        client = kept.client
        try:
            if hasattr(client, "nodes_manager"):  # until it knows the cluster, it sends commands to any node
                await client.initialize()
            if isinstance(wanted, Everywhere):
                return [await client.execute_command(*wanted.command, **node) for node in _primaries(client)]
            if len(wanted) == 1:
                return [await kept.execute_command(*wanted[0], **_RAW)]
            async with client.pipeline(transaction=False) as pipeline:
                for command in wanted:
                    pipeline.execute_command(*command, **_RAW)
                replies: list[Any] = await pipeline.execute(raise_on_error=False)
                return replies
        except Exception as error:  # noqa: BLE001 - the verb looks at it
            return _failed(wanted, error)


def _check(client: Any, store: str, *, asynchronous: bool) -> None:
    """Refuse what is no client of redis-py, or one of the other kind."""
    try:
        import redis as _  # noqa: F401
    except ImportError:
        raise ImportError(f"{store} needs redis-py: pip install 'flowcore[redis]'.") from None
    execute = getattr(client, "execute_command", None)
    if not callable(execute):
        raise DefinitionError(f"{store} needs a client of redis-py, such as redis.Redis(), not {safe_repr(client)}.")
    if inspect.iscoroutinefunction(execute) is not asynchronous:
        ways = (
            "needs a client of redis.asyncio: with this one, use RedisStore"
            if asynchronous
            else "needs a client that blocks: with one of redis.asyncio, use AsyncRedisStore"
        )
        raise DefinitionError(f"{store} {ways}.")


async def _closed(connection: AsyncGenerator[Any]) -> None:
    await connection.aclose()


def _primaries(client: Any) -> list[dict[str, Any]]:
    """Of a cluster, the options that send a command to each primary."""
    if not hasattr(client, "get_primaries"):
        return [{}]
    return [{"target_nodes": node} for node in client.get_primaries()]


def _node(client: Any, command: Command) -> dict[str, Any]:
    """Of a cluster, the option that names the node of a script's first key: the pipeline would ask a server for it."""
    return {"target_nodes": client.get_node_from_key(command[3])} if hasattr(client, "get_node_from_key") else {}


def _is_cluster(client: Any) -> bool:
    return hasattr(client, "nodes_manager") or hasattr(client, "get_primaries")


def _failed(wanted: list[Command] | Everywhere, error: Exception) -> list[Any]:
    return [error] * (1 if isinstance(wanted, Everywhere) else len(wanted))
