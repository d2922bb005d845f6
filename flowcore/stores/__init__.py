"""The stores, which grant claims on runs and keep the outcomes of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .base import RunRecord, Store
from .memory import MemoryStore

if TYPE_CHECKING:
    from .opening import open_store
    from .pydantic_codec import PydanticCodec
    from .redis import AsyncRedisStore, RedisStore
    from .sqlite import SQLiteStore

    open = open_store  # noqa: A001 - the name is public: `flowcore.stores.open`

__all__ = ["AsyncRedisStore", "MemoryStore", "PydanticCodec", "RedisStore", "RunRecord", "SQLiteStore", "Store"]


def __getattr__(name: str) -> Any:
    # The durable stores need modules that are slow to import, and few processes use more than one of these stores.
    if name == "SQLiteStore":
        from .sqlite import SQLiteStore

        return SQLiteStore
    if name == "PydanticCodec":
        from .pydantic_codec import PydanticCodec

        return PydanticCodec
    if name in {"AsyncRedisStore", "RedisStore"}:
        from . import redis

        return getattr(redis, name)
    if name == "open":
        from .opening import open_store

        return open_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
