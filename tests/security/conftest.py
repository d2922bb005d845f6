"""Fixtures of the tests about keys, secrets, and what others prepared."""

from tests.stores.redis_servers import redis_url, start_redis

__all__ = ["redis_url", "start_redis"]
