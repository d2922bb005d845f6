"""MemoryStore keeps the contract, with the real clock and with one that the tests advance. So does an async store.

The durable stores are tested in their own files.
"""

import inspect
from typing import Any

import pytest

from flowcore.stores import MemoryStore
from flowcore.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    examples = 100

    def make_store(self) -> MemoryStore:
        return MemoryStore()

    def make_forgetful_store(self, retention: float) -> MemoryStore:
        return MemoryStore(retention=retention)


@pytest.mark.share
class TestMemoryStoreByAClockOfItsOwn(StoreConformance):
    """The tests advance the clock, and do not wait."""

    @pytest.fixture(autouse=True)
    def _time(self) -> None:
        self.now = 1_700_000_000.0

    def make_store(self, **options: Any) -> MemoryStore:
        return MemoryStore(clock=lambda: self.now, wall=lambda: self.now, **options)

    def make_forgetful_store(self, retention: float) -> MemoryStore:
        return self.make_store(retention=retention)

    def advance(self, seconds: float) -> None:
        self.now += seconds


def _as_coroutine(name: str) -> Any:
    async def verb(self: Any, *args: Any, **options: Any) -> Any:
        return getattr(self.store, name)(*args, **options)

    return verb


class AsyncMemoryStore:
    """A MemoryStore whose verbs are all coroutine functions."""

    name, durable, blocks = "memory", False, False

    def __init__(self, **options: Any) -> None:
        self.store = MemoryStore(**options)


for verb, function in inspect.getmembers(MemoryStore, inspect.isfunction):
    if not verb.startswith("_"):
        setattr(AsyncMemoryStore, verb, _as_coroutine(function.__name__))


@pytest.mark.share
class TestAnAsyncStore(StoreConformance):
    examples = 5

    def make_store(self) -> AsyncMemoryStore:
        return AsyncMemoryStore()

    def make_forgetful_store(self, retention: float) -> AsyncMemoryStore:
        return AsyncMemoryStore(retention=retention)
