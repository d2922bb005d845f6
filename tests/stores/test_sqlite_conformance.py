"""SQLiteStore keeps the store contract with each `durability=`, also with a second store object on the same file."""

from pathlib import Path
from typing import Any

import pytest

from flowcore.stores import SQLiteStore
from flowcore.testing.conformance import StoreConformance


class TestSQLiteStore(StoreConformance):
    durability = "normal"

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path, self.now = tmp_path / "runs.db", 1_700_000_000.0

    def make_store(self, **options: Any) -> SQLiteStore:
        return SQLiteStore(self.path, durability=self.durability, wall=lambda: self.now, **options)

    def open_again(self, store: SQLiteStore) -> SQLiteStore:
        return self.make_store()

    def make_forgetful_store(self, retention: float) -> SQLiteStore:
        return self.make_store(retention=retention)

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.share
class TestFullyDurableSQLiteStore(TestSQLiteStore):
    """The store uses the clock of the machine, and every commit waits for the disk."""

    durability = "full"
    examples = 5

    def make_store(self, **options: Any) -> SQLiteStore:
        return SQLiteStore(self.path, durability=self.durability, **options)

    def advance(self, seconds: float) -> None:
        StoreConformance.advance(self, seconds)
