"""The names of the Redis stores, and the sentences for those who cannot have them."""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import StoreError

__all__ = ["AsyncRedisStore", "RedisStore"]


def _refuse(name: str) -> NoReturn:
    try:
        import redis as _  # noqa: F401
    except ImportError:
        raise ImportError(f"{name} needs redis-py: pip install 'flowcore[redis]'.") from None
    raise StoreError(f"this version of flowcore has no {name} yet: MemoryStore is the store it has.")


class RedisStore:
    """Not there yet: making one says so, or which extra is missing."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        _refuse("RedisStore")


class AsyncRedisStore:
    """Not there yet: making one says so, or which extra is missing."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        _refuse("AsyncRedisStore")
