"""A durable chain of ten on SQLite against the same statements by hand, and against a codec that is the json module
alone, with both durabilities."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from flowcore.stores import SQLiteStore

from .durable_sqlite_by_hand import SQLiteByHand
from .durable_work import Durable, DurableAsync, Ready, work
from .harness import Options, Report, Row, Target, compare

__all__ = ["measure"]

TARGETS = (Target("Engine", 1.25, "SQLite by hand"),)
_json_text: Final = json.JSONEncoder(separators=(",", ":")).encode


class DurableJson(Durable):
    name = "Engine, json alone"


class JsonAlone:
    """A codec without tags and checks: a tuple comes back as a list."""

    plain = True

    def dumps(self, value: Any, _annotation: Any, /) -> str:
        return _json_text(value)

    def loads(self, text: str, _annotation: Any, /) -> Any:
        return json.loads(text)


def measure(options: Options) -> Report:
    report = Report("sqlite", "a durable chain of 10 on SQLite", "µs per run", "SQLite by hand")
    for durability in ("normal", "full"):
        report.rows += _measured(options, durability)
    return report


def _measured(options: Options, durability: Literal["full", "normal"]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:

        def store(name: str, **options: Any) -> Any:
            return SQLiteStore(Path(folder) / name, durability=durability, **options)

        engine, async_engine = Durable(store("ours")), DurableAsync(store("async"))
        alone = DurableJson(store("alone", codec=JsonAlone()))
        subjects = (engine, SQLiteByHand(str(Path(folder) / "by-hand"), durability), alone, async_engine)
        # SQLite moves its log into the file once in about 25 runs: a turn should have several of these.
        ready = replace(options, subjects=tuple(map(Ready, subjects)), batch=5 * options.batch)
        rows = compare("sqlite", durability, work, TARGETS, ready, relative=("SQLite by hand",)).rows
        engine.engine.close()
        alone.engine.close()
        for subject in (engine, alone, async_engine):
            subject.engine.store.close()
    for row in rows:
        row.subject += f", {durability}"
    return rows
