"""Processes to be killed, and places where their runs are kept."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from tests.durable.crash import Place
from tests.durable.nursery import Nursery
from tests.durable.towns import Town
from tests.stores.redis_servers import redis_url

__all__ = ["redis_url"]  # a fixture


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as one:
        yield one


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Callable[[str], Place]]:
    """Makes a place of its own for each call: `place("sqlite")`, `place("redis")`."""
    prefix = f"durable-{uuid4().hex}"

    def make(kind: str) -> Place:
        folder = tmp_path_factory.mktemp("place")
        address = str(folder / "runs.db") if kind == "sqlite" else redis_url
        return Place(kind, address, f"{prefix}-{folder.name}", str(folder / "ledger"), str(folder / "journal"))

    yield make
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(f"{{{prefix}*", count=1000):
            client.delete(key)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["threads", "asyncio"])
def town(request: pytest.FixtureRequest, kind: str, tmp_path: Path, redis_url: str) -> Iterator[Town]:
    made = Town(kind, request.param, tmp_path, redis_url)
    yield made
    made.leave()
