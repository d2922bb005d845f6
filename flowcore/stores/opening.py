"""Open a store by its URL, as the command line and configuration files name it."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ..errors import DefinitionError, safe_repr, safe_str
from ..retry import CENTURY
from .arguments import without_password
from .base import Store

__all__ = ["open_store"]

_TEMPORAL: Final = "temporal://host:7233/namespace?task_queue=orders"
_REDIS_OPTIONS: Final = frozenset(
    {
        *("db", "username", "password", "protocol", "client_name", "decode_responses", "encoding", "legacy_responses"),
        *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "retry_on_timeout"),
        *("max_connections", "health_check_interval"),
    }
)
"""the options of redis-py that a URL can give, beside those of TLS"""
_FORMS: Final = f"sqlite:runs.db, redis://host:6379/0, rediss://host:6379/0, unix:///run/redis.sock or {_TEMPORAL}"


def open_store(url: str, *, prefix: str | None = None, codec: str | None = None) -> Store:
    """Open the durable store that `url` names: `sqlite:runs.db` (`sqlite:/var/lib/runs.db`), `redis://…`, `rediss://…`,
    `unix://…`, or `temporal://host:7233/namespace?task_queue=orders`, which has only the verbs for operators, so that
    no engine can use it.

    `prefix`: the prefix of a Redis store's keys, or of Temporal's workflow ids. `codec`: `module:attribute`, which
    names a codec or a function that returns one. An SQLite file that does not exist is not created, so that a typing
    error cannot make an empty store. Raises DefinitionError for a URL or a codec that cannot be used, and the errors of
    the store itself.
    """
    scheme = _parts_of(url).scheme
    options: dict[str, Any] = {} if codec is None else {"codec": _codec_of(codec)}
    if scheme == "sqlite":
        if prefix is not None:
            raise DefinitionError("an SQLite store has no prefix. Leave prefix= out.")
        path = url.partition(":")[2].removeprefix("//")
        if not os.path.exists(path):  # noqa: PTH110 - the path may hold what pathlib would normalise away
            raise DefinitionError(f"there is no SQLite file {safe_repr(path)}. Check the path of the store.")
        from .sqlite import SQLiteStore

        return SQLiteStore(path, **options)
    if scheme in {"redis", "rediss", "unix"}:
        try:
            import redis
        except ImportError:
            raise ImportError("Redis stores need redis-py: pip install 'flowcore[redis]'") from None
        from .redis import RedisStore

        if prefix is not None:
            options["prefix"] = prefix
        try:
            client: Any = cast("Any", redis.Redis).from_url(url)
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # connects to nothing, but refuses unknown options
            _check_redis(_parts_of(url), pool.connection_kwargs)
        except (AttributeError, TypeError, ValueError, redis.RedisError) as error:
            raise DefinitionError(f"this is not a Redis URL ({safe_str(error, 200)}). Use {_FORMS}.") from None
        return RedisStore(client, **options)
    if scheme == "temporal":
        return _temporal(url, options if prefix is None else {**options, "prefix": prefix})
    raise DefinitionError(f"{without_password(url)} names no store. Use {_FORMS}.")


def _parts_of(url: object) -> SplitResult:
    """Return the parts of a store's URL. Raises DefinitionError if it is not a URL. The message does not quote the URL,
    nor the error, because what cannot be parsed may contain a password anywhere: a port may be the part of it that
    comes before a slash."""
    if not isinstance(url, str):
        raise DefinitionError(f"the URL of a store must be a string, not {safe_repr(url)}. Use {_FORMS}.")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError for a port that is not a number
    except ValueError:
        raise DefinitionError(
            "this is not the URL of a store: its host or its port cannot be read. Percent-encode the special characters of "
            f"a password, and use {_FORMS}."
        ) from None
    return parts


def _check_redis(parts: SplitResult, options: Mapping[str, Any]) -> None:
    """Raise ValueError for what redis-py accepts in a URL but cannot use. For a path that is not a number, it would select
    database 0; a text for an option that needs an object would fail at the first command."""
    if parts.scheme != "unix" and re.fullmatch(r"/?[0-9]*/?", parts.path) is None:
        # The path may be a part of a password, so it is not quoted.
        raise ValueError("its path must be the number of a database")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if not (name in _REDIS_OPTIONS or name.startswith("ssl_")):
            raise ValueError(f"a URL cannot give the option {safe_repr(name)}")
    for name in ("socket_timeout", "socket_connect_timeout"):
        wait = options.get(name)
        if wait is not None and not 0 < wait <= CENTURY:
            raise ValueError(f"{name} must be a number of seconds above 0, not {wait!r}")


def _temporal(url: str, options: dict[str, Any]) -> Store:
    parts = urlsplit(url)
    asked = dict(parse_qsl(parts.query))
    queue, namespace = asked.pop("task_queue", ""), unquote(parts.path.strip("/")) or "default"
    if not queue or not parts.netloc or asked:
        raise DefinitionError(f"{without_password(url)} names no task queue of Temporal. Use {_TEMPORAL}.")
    try:
        from ..temporal.blocking import BlockingTemporalStore
    except ImportError:
        raise ImportError("Temporal needs its SDK: pip install 'flowcore[temporal]'") from None
    return cast("Store", BlockingTemporalStore(parts.netloc, namespace, queue, **options))


def _codec_of(name: str) -> Any:
    """Return the codec that `module:attribute` names. Raises DefinitionError if that is None, because a store would use
    its default codec then."""
    codec = load(name)
    if codec is None:
        raise DefinitionError(f"{safe_repr(name)} is None, not a codec. Name the codec, or a function that returns it.")
    return codec


def load(name: str) -> Any:
    """Import the object that `module:attribute` names. A class, and another object that can be called but has no methods
    of a codec, is called, and its result is returned. Raises DefinitionError if there is no such object, or if user code
    raises."""
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:  # a script may exit while it is imported
        why = safe_str(error, 200) if isinstance(error, ImportError | AttributeError) else _described(error)
        raise DefinitionError(f"{safe_repr(name)} cannot be imported ({why}). Name it as module:attribute.") from error
    if not callable(found) or (hasattr(found, "dumps") and not isinstance(found, type)):
        return found
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise DefinitionError(
            f"calling {safe_repr(name)} without arguments raised {_described(error)}. "
            "Name the object itself, or a function that returns it."
        ) from error


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {safe_str(error, 200)}"
