"""The Redis stores, sync and async."""

from .store import AsyncRedisStore, RedisStore

__all__ = ["AsyncRedisStore", "RedisStore"]
