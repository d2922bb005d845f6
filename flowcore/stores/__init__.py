"""The stores: where runs are claimed, and where their outcomes are kept."""

from __future__ import annotations

from .base import RunRecord, Store
from .memory import MemoryStore
from .redis import AsyncRedisStore, RedisStore

__all__ = ["AsyncRedisStore", "MemoryStore", "RedisStore", "RunRecord", "Store"]
