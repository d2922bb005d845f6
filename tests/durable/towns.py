"""A store as several processes see it, and engines on it: for tests of runs that leave their process."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import redis
import redis.asyncio

from flowcore import AsyncEngine, Engine, MemoryStore, Run, Workflow
from flowcore.stores import AsyncRedisStore, RedisStore, SQLiteStore
from tests.core.conftest import PATIENCE

LEASE: Final = 30.0


class Town:
    """One store, as many processes see it, and engines of one kind on it."""

    def __init__(self, kind: str, driver: str, tmp_path: Path, redis_url: str) -> None:
        self.kind, self.driver = kind, driver
        self._path, self._url, self._prefix = tmp_path / "runs.db", redis_url, f"waits-{uuid4().hex}"
        self._memory = MemoryStore(strict=True)
        self._engines: list[Any] = []
        self._clients: list[redis.Redis] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.store: Any = self._open(sync=True)

    def _open(self, *, sync: bool = False) -> Any:
        if self.kind == "memory":
            return self._memory
        if self.kind == "sqlite":
            return SQLiteStore(self._path, durability="normal")
        if sync or self.driver == "threads":
            self._clients.append(redis.Redis.from_url(self._url))
            return RedisStore(self._clients[-1], prefix=self._prefix)
        return AsyncRedisStore(redis.asyncio.Redis.from_url(self._url), prefix=self._prefix)

    def engine(self, **options: Any) -> Any:
        """An engine as another process has it."""
        options = {"store": self._open(), "lease": LEASE, **options}

        async def make() -> Any:
            engine = AsyncEngine(**options)
            engine._ensure_looking()
            return engine

        engine = Engine(**options) if self.driver == "threads" else self.call(make())
        self._engines.append(engine)
        return engine

    def call(self, awaitable: Any) -> Any:
        """What a verb of an engine returns, waited for."""
        if not asyncio.iscoroutine(awaitable):
            return awaitable
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(PATIENCE)

    def start(self, engine: Any, wf: Workflow, **request: Any) -> Future[Run]:
        """`engine.run`, beside the calling thread."""
        if self.driver == "threads":
            future: Future[Run] = engine.submit(wf, **request)
            return future
        return asyncio.run_coroutine_threadsafe(engine.run(wf, **request), self._loop)

    def pause(self, engine: Any, wf: Workflow, key: str = "k", **request: Any) -> Run:
        """Run until it waits, and no longer."""
        run: Run = self.call(engine.run(wf, idempotency_key=key, until="waiting", **request))
        assert run.status == "waiting"
        return run

    def close(self, engine: Any, timeout: float | None = None) -> None:
        if engine in self._engines:
            self._engines.remove(engine)
            self.call(engine.close(timeout) if self.driver == "threads" else engine.aclose(timeout))

    def leave(self) -> None:
        for engine in list(self._engines):
            self.close(engine, 0)
        self.call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for client in self._clients:
            client.close()
        if self.kind == "redis":
            with redis.Redis.from_url(self._url) as client:
                for key in client.scan_iter(f"{{{self._prefix}*", count=1000):
                    client.delete(key)

    def status(self, key: str = "k") -> str:
        record = self.store.head(key)
        return "" if record is None else str(record.status)
