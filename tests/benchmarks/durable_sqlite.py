"""A durable chain of ten on SQLite against the same statements by hand, with both durabilities."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flowcore.stores import SQLiteStore

from .durable_sqlite_by_hand import SQLiteByHand
from .durable_work import Durable, DurableAsync, Ready, work
from .harness import Options, Report, Row, Target, compare

__all__ = ["measure"]

TARGETS = (Target("Engine", 1.25, "SQLite by hand"),)


def measure(options: Options) -> Report:
    report = Report("sqlite", "a durable chain of 10 on SQLite", "µs per run", "SQLite by hand")
    for durability in ("normal", "full"):
        report.rows += _measured(options, durability)
    return report


def _measured(options: Options, durability: Literal["full", "normal"]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:

        def store(name: str) -> Any:
            return SQLiteStore(Path(folder) / name, durability=durability)

        engine, async_engine = Durable(store("ours")), DurableAsync(store("async"))
        subjects = (engine, SQLiteByHand(str(Path(folder) / "by-hand"), durability), async_engine)
        # SQLite moves its log into the file once in about 25 runs: a turn should have several of these.
        ready = replace(options, subjects=tuple(map(Ready, subjects)), batch=5 * options.batch)
        rows = compare("sqlite", durability, work, TARGETS, ready, relative=("SQLite by hand",)).rows
        engine.engine.close()
        for subject in (engine, async_engine):
            subject.engine.store.close()
    for row in rows:
        row.subject += f", {durability}"
    return rows
