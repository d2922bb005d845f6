"""Connections that a Redis store keeps for a moment, instead of getting one from its client's pool for each command.

Getting a connection from redis-py's pool and giving it back takes a third of the time of a command. But the pool also
checks that the connection still works. So a connection is kept only while commands follow each other closely, and for a
second at most. It is not kept after any error, because an interrupt may have left a reply unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from ...forks import after_fork_in_child
from .errors import is_reply

__all__ = ["AsyncConnectionCache", "ConnectionCache"]

_PAUSE: Final = 0.005  # seconds without a command, after which the pool checks again; no server restarts as quickly
_MOMENT: Final = 1.0  # seconds for which a connection is kept at most
_SHARE: Final = 8  # one of so many connections that the pool may open can be kept
_MOST: Final = 32  # connections that are kept
_SHORT: Final = 1 << 16  # bytes; a longer command may have to wait for room in the socket's buffer


def _packer() -> Callable[[tuple[Any, ...]], bytes]:
    """Return the function that encodes a command for sending: hiredis's, if it is installed, else `_packed`."""
    try:
        import hiredis
    except ImportError:
        return _packed
    pack: Callable[[tuple[Any, ...]], bytes] = cast("Any", hiredis).pack_command
    return pack


def _packed(command: tuple[Any, ...]) -> bytes:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    texts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"*%d\r\n%b" % (len(parts), b"".join(texts))


_PACK: Final = _packer()


class _CachedConnection:
    """A client that holds one connection, or none at the moment. `since`: when it got it; `until`: when the pool must
    check it again; both monotonic."""

    __slots__ = ("client", "since", "until")

    def __init__(self, client: Any) -> None:
        self.client = client
        self.since = self.until = 0.0

    def used(self) -> None:
        """Note that a command succeeded, so that the connection may be used for another moment."""
        self.until = min(time.monotonic() + _PAUSE, self.since + _MOMENT)


class ConnectionCache:
    """Sends commands as `client` does, over connections that it keeps. Thread-safe.

    It keeps at most an eighth of the connections that the pool may open, so that other users of the client always find
    one. It keeps none of a Sentinel or a cluster, nor where a credential provider changes passwords: there redis-py
    itself must look after each connection.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self._spare = threading.Semaphore(_number(client))  # how many more connections may be kept
        self._idle: deque[_CachedConnection] = deque()
        after_fork_in_child(self, ConnectionCache._after_fork)

    def _after_fork(self) -> None:
        """Drop the kept connections in a child process, because they are its parent's."""
        self._spare = threading.Semaphore(_number(self.client))
        self._idle = deque()

    def execute_command(self, *command: Any, **options: Any) -> Any:
        """Send a command and return its reply."""
        idle = self._idle
        try:
            cached = idle.pop()
        except IndexError:
            if not self._spare.acquire(blocking=False):
                return self.client.execute_command(*command, **options)
            cached = _CachedConnection(self.client.client())
        client = cached.client
        try:
            now = time.monotonic()
            if cached.until < now:
                client.close()
            if client.connection is None:
                client.connection, cached.since = client.connection_pool.get_connection(), now
            reply = client.execute_command(*command, **options)
            cached.used()
        except BaseException as error:
            # The connection may have an unread reply. The pool would find it only if it has arrived by then.
            if client.connection is not None and not is_reply(error):
                client.connection.disconnect()
            client.close()
            raise
        finally:
            idle.append(cached)
        return reply

    def close(self) -> None:
        """Give the connections that are not in use back to the pool."""
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().client.close()
                self._spare.release()


class AsyncConnectionCache:
    """As ConnectionCache, for a client of redis.asyncio, in its event loop only. The client and its connections are the
    store's own, so half of them can be kept, and all commands wait in turn for one of these."""

    def __init__(self, client: Any) -> None:
        self.client = client
        number = _number(client, 2)
        self._free = asyncio.Semaphore(number) if number else None
        self._idle: list[_CachedConnection] = []
        most = getattr(getattr(client, "connection_pool", None), "max_connections", None)
        self.others: contextlib.AbstractAsyncContextManager[object] = (
            contextlib.nullcontext() if most is None else asyncio.Semaphore(max(1, int(most) - number))
        )
        """what needs a connection that is not kept, as a pipeline does, waits here for its turn"""

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        """Send a command and return its reply."""
        if self._free is None:
            async with self.others:
                return await self.client.execute_command(*command, **options)
        async with self._free:
            cached = self._idle.pop() if self._idle else _CachedConnection(self.client.client())
            client = cached.client
            try:
                now = time.monotonic()
                if cached.until < now:
                    await client.aclose()
                if client.connection is None:  # the client gets a new one
                    cached.since = now
                    reply = await client.execute_command(*command, **options)
                else:
                    reply = await _execute(client, command, options)
                cached.used()
            except BaseException as error:
                if client.connection is not None and not is_reply(error):  # as in ConnectionCache.execute_command
                    await client.connection.disconnect(nowait=True)
                await client.aclose()
                raise
            finally:
                self._idle.append(cached)
        return reply

    async def close(self) -> None:
        """Give the connections that are not in use back to the pool."""
        while self._idle:
            await self._idle.pop().client.aclose()


async def _execute(client: Any, command: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Execute a command on the connection that the client holds, which was in use a moment ago.

    The client itself packs a command argument by argument and, on Python 3.11, starts a task to send it, which takes
    twice as long as the rest. It still gets the commands that are long or that fail, and retries these as it is
    configured to.
    """
    connection = client.connection
    writer = getattr(connection, "_writer", None)
    packed = _PACK(command)
    if writer is None or len(packed) > _SHORT or not connection.is_connected:
        return await client.execute_command(*command, **options)
    try:
        writer.write(packed)
        return await client.parse_response(connection, command[0], **options)
    except Exception as error:
        retries = getattr(connection.retry, "get_retries", None)
        if is_reply(error) or retries is None or not retries():
            raise
    await connection.disconnect(nowait=True)
    return await client.execute_command(*command, **options)


def _number(client: Any, share: int = _SHARE) -> int:
    """Return how many connections may be kept: one of each `share` that the pool may open, or none: see
    ConnectionCache."""
    pool = getattr(client, "connection_pool", None)
    if pool is None or hasattr(pool, "sentinel_manager") or type(client).__module__.split(".")[0] != "redis":
        return 0
    if pool.connection_kwargs.get("credential_provider") is not None:
        return 0
    return min(int(pool.max_connections) // share, _MOST)
