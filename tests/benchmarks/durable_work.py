"""What the durable benchmarks run: ten steps in a chain that each return a small value, each run under a key of its own; and the
Redis that they run it on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flowcore import AsyncEngine, Engine

from .harness import Report
from .subjects import Run, Subject, workflow
from .work import Flavour, Work, chain

__all__ = ["STEPS", "VALUES", "Durable", "DurableAsync", "Ready", "a_redis", "keys", "work"]

STEPS: Final = 10
VALUES: Final = {"order": 17, "customer": "C-9"}


def book(ctx: Any) -> dict[str, Any]:
    return {"id": 17, "seat": "12A"}


async def book_async(ctx: Any) -> dict[str, Any]:
    return {"id": 17, "seat": "12A"}


def work(flavour: Flavour, size: int = STEPS) -> Work:
    return chain([book_async if flavour.is_async else book] * size, is_async=flavour.is_async)


def keys() -> Callable[[], str]:
    """Idempotency keys, another one each time."""
    numbers = itertools.count()
    return lambda: f"order-{next(numbers)}"


def a_redis(report: Report, stack: ExitStack, folder: Path) -> str | None:
    """The URL of a server for this; None where there can be none."""
    try:
        from ..stores.redis_servers import RedisServer, find_redis
    except ImportError as error:
        report.notes.append(f"Redis is left out: {error}.")
        return None
    if find_redis() is None:
        report.notes.append("Redis is left out: there is no redis-server.")
        return None
    return stack.enter_context(RedisServer(folder, port=0, appendonly="everysec")).url


class Durable(Subject):
    """`Engine` on a durable store."""

    name = "Engine"
    is_async = False

    def __init__(self, store: Any) -> None:
        self.engine = Engine(store=store)
        self._key = keys()

    def prepare(self, work: Work) -> Run:
        run, wf, key = self.engine.run, workflow(work), self._key
        return lambda: run(wf, VALUES, idempotency_key=key())


class DurableAsync(Subject):
    """`AsyncEngine` on a durable store."""

    name = "AsyncEngine"
    is_async = True

    def __init__(self, store: Any) -> None:
        self.engine = AsyncEngine(store=store)
        self._key = keys()

    def prepare(self, work: Work) -> Run:
        run, wf, key = self.engine.run, workflow(work), self._key
        return lambda: run(wf, VALUES, idempotency_key=key())


@dataclass(frozen=True)
class Ready:
    """A subject that is made already, for where the harness would make one."""

    subject: Subject

    @property
    def name(self) -> str:
        return self.subject.name

    def __call__(self) -> Subject:
        return self.subject
