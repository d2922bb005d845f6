"""Translates redis-py's errors into flowcore's. It compares class names, so that redis-py need not be installed."""

from __future__ import annotations

import re
from typing import Final, NoReturn

from ...errors import CorruptRecord, StoreError, StoreUnavailable, hashed_key, safe_str

__all__ = ["is_forbidden", "is_reply", "is_unknown_command", "is_unknown_script", "refuse"]

_CODES: Final = {
    "AuthenticationError": "NOAUTH",
    "AuthenticationWrongNumberOfArgsError": "NOAUTH",
    "AuthorizationError": "NOAUTH",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
    "TryAgainError": "TRYAGAIN",
    "MovedError": "MOVED",
    "AskError": "ASK",
    # These come last, because other classes derive from them.
    "ClusterDownError": "CLUSTERDOWN",
    "ClusterError": "CLUSTERDOWN",
    "RedisClusterException": "CLUSTERDOWN",
    "ConnectionError": "UNREACHABLE",
    "TimeoutError": "UNREACHABLE",
}
"""redis-py's class -> the server's error code, which redis-py removes from the message"""

_UNAVAILABLE: Final = {
    "UNREACHABLE": "Redis is unreachable",
    "POOL": "all connections of the Redis client's pool are in use: give it a larger max_connections",
    "MAXCLIENTS": "Redis has as many clients as it allows: raise its maxclients",
    "LOADING": "Redis is still loading its data",
    "READONLY": "this Redis is a read-only replica, and the store needs the primary",
    "MASTERDOWN": "this Redis is a replica that has lost its primary",
    "CLUSTERDOWN": "the Redis cluster is down",
    "TRYAGAIN": "the Redis cluster is moving this key's slot",
    "ASK": "the Redis cluster is moving this key's slot",
    "OOM": "Redis is out of memory: raise its maxmemory or delete data",
    "MISCONF": "Redis cannot write to its disk, and refuses writes until it can",
    "NOREPLICAS": "Redis has fewer replicas than it requires, and refuses writes until it has enough",
    "BUSY": "Redis is busy with another script",
    # An operator must correct these. As soon as that is done, the runs in progress continue.
    "NOPERM": "Redis does not let this user do what the store needs: see the ACL rules in the documentation of RedisStore",
    "NOAUTH": "Redis refuses this user: give the client the right username and password",
    "WRONGPASS": "Redis refuses this user: give the client the right username and password",
}

_REFUSED: Final = {
    "MOVED": "this Redis belongs to a cluster {}: give the store a RedisCluster client.",
}

_LIMITS: Final = {
    "Too many connections": "POOL",
    "No connection available": "POOL",
    "max number of clients reached": "MAXCLIENTS",
}
"""text of the client or the server when a limit is reached -> code; redis-py raises ConnectionError for all of them"""

# Redis 6 puts the error of a script's command into a sentence of its own, so its code may not come first.
_WORD: Final = re.compile(r"(?:^|: -?)([A-Z]{2,})\b")
_FORBIDDEN: Final = ("can't run this command", "can't access", "ACL failure in script")
"""texts of Redis 6, 7 and 8 for a command of a script that is not permitted; no error code precedes them"""


def is_reply(error: BaseException) -> bool:
    """Whether the error is a reply of the server, which has been read to its end."""
    return any(cls.__name__ == "ResponseError" for cls in type(error).__mro__)


def is_unknown_script(reply: object) -> bool:
    """Whether the server does not know the script, so that its text must be sent."""
    return isinstance(reply, Exception) and _code(reply) == "NOSCRIPT"


def is_forbidden(reply: object) -> bool:
    """Whether the server refuses the command itself, to this user or to all users."""
    return isinstance(reply, Exception) and (_code(reply) == "NOPERM" or "unknown command" in safe_str(reply).lower())


def is_unknown_command(reply: object) -> bool:
    """Whether the server does not have the command, because it is too old."""
    return isinstance(reply, Exception) and "unknown command" in safe_str(reply).lower()


def refuse(error: Exception, key: str = "") -> NoReturn:
    """Raise the StoreError for a client's error in a call about `key`. Raise an error that is not of Redis as it is."""
    code = _code(error)
    if code is None:
        raise error
    what = f"({type(error).__name__}: {safe_str(error, 200)})"
    if code in _UNAVAILABLE:
        raise StoreUnavailable(f"{_UNAVAILABLE[code]} {what}; retrying is safe.") from error
    if code == "WRONGTYPE":
        raise CorruptRecord(
            f"a Redis key that belongs to the record of key {hashed_key(key)}, or to its index, is of another type {what}. The "
            "record was not modified; find out what else writes under the store's prefix.",
            key=key,
        ) from error
    raise StoreError(_REFUSED.get(code, "Redis refused a command of the store {}.").format(what)) from error


def _code(error: Exception) -> str | None:
    """Return Redis's code for an error, or None if the error is not of Redis."""
    if isinstance(error, OSError):  # of asyncio or the socket, where redis-py does not wrap it
        return "UNREACHABLE"
    if isinstance(error, AttributeError | TypeError) and "NoneType" in safe_str(error):
        # redis.asyncio's cluster closes connections that another task is about to use. Where the server closed one, the
        # writelines of asyncio's transports raises a TypeError in CPython 3.13.0.
        return "UNREACHABLE"
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.split(".")[0] == "redis"}
    if not names:
        return None
    text = safe_str(error)
    limit = next((code for words, code in _LIMITS.items() if words in text), None)
    if limit is not None:
        return limit
    known = next((code for name, code in _CODES.items() if name in names), None)
    if known is not None:
        return known
    if any(words in text for words in _FORBIDDEN):
        return "NOPERM"
    word = _WORD.search(text)
    return "ERR" if word is None else word[1]
