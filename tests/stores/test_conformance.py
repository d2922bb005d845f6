"""Every store passes the suite that third parties prove theirs with."""

from typing import Any

from flowcore.stores import MemoryStore
from flowcore.testing.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    def make_store(self) -> MemoryStore:
        return MemoryStore()

    def make_forgetful_store(self, retention: float) -> Any:
        return MemoryStore(retention=retention)
