"""A durable chain on SQLite by hand: the statements of an SQLiteStore, in its transactions, and nothing around them.

No errors are handled, no run of another process is ever taken over, no lease is renewed while a step runs, and only one
thread may call.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from typing import Any, Final

from flowcore.stores import SQLiteStore
from flowcore.stores.sqlite import tables

from .durable_work import VALUES, keys
from .subjects import Run, Subject
from .work import Work

__all__ = ["SQLiteByHand"]

LEASE: Final = 30_000_000  # microseconds, as are all times here
WEEK: Final = 7 * 24 * 3600 * 1_000_000
dumps = json.JSONEncoder(separators=(",", ":")).encode


class SQLiteByHand(Subject):
    name = "SQLite by hand"
    is_async = False

    def __init__(self, path: str, durability: str) -> None:
        SQLiteStore(path).close()  # makes the tables
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute(f"PRAGMA synchronous = {durability}")
        self._key = keys()

    def prepare(self, work: Work) -> Run:
        steps = [(step.name, step.fn) for step in work.steps]
        graph = hashlib.sha256(dumps([name for name, _ in steps]).encode()).hexdigest()
        return lambda: self._run(self._key(), steps, graph)

    def _run(self, key: str, steps: list[tuple[str, Any]], graph: str) -> dict[str, Any]:
        run_id = os.urandom(16).hex()
        fence = self._claim(key, run_id, graph, steps[0][0])
        results: dict[str, Any] = {}
        seq = 1
        for number, (name, fn) in enumerate(steps, 1):
            began = time.monotonic()
            results[name] = fn(results)
            ended = {"status": "success", "attempts": 1, "result": dumps(results[name])}
            ended |= {"waited": 0.0, "ran": time.monotonic() - began, "backed_off": 0.0}
            texts = {f"s:{name}": f"{seq + 1} {dumps(ended)}"}
            if number < len(steps):
                texts[f"s:{steps[number][0]}"] = f'{seq + 2} {{"status":"running","attempts":1}}'
                self._checkpoint(key, run_id, fence, texts)
            else:
                self._finish(key, run_id, fence, texts)
            seq += 2
        return results

    def _claim(self, key: str, run_id: str, graph: str, first: str) -> int:
        fingerprint = hashlib.sha256(f"benchmark\0{json.dumps(VALUES, sort_keys=True)}".encode()).hexdigest()
        values = dumps({name: dumps(value) for name, value in VALUES.items()})
        ask = self._db.execute
        ask("BEGIN IMMEDIATE")
        now = int(time.time() * 1e6)
        ask(tables.FORGOTTEN, (now,)).fetchone()
        if ask(tables.FIND, (key, now)).fetchone() is not None:
            raise AssertionError(f"{key} is in use")
        ask(tables.RETIRE, (key,))
        row = ask(
            "INSERT INTO runs (schema, key, run_id, owner, workflow, status, fingerprint, seq, generation, fence, started, "
            "since, expires, lease, due) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *("2", key, run_id, run_id, "benchmark", "running", fingerprint, 1, 0, now, now, now),
                *(now + LEASE, LEASE, now + LEASE),
            ),
        ).lastrowid
        assert row is not None
        ask(tables.PUT, (row, "graph", graph))
        ask(tables.PUT, (row, "values", values))
        ask(tables.RAISE, (row, f"s:{first}", '1 {"status":"running","attempts":1}'))
        ask("COMMIT")
        return now

    def _checkpoint(self, key: str, run_id: str, fence: int, texts: dict[str, str]) -> None:
        ask = self._db.execute
        ask("BEGIN IMMEDIATE")
        row = self._owned(key, run_id, fence)
        self._db.executemany(tables.RAISE, [(row, name, text) for name, text in texts.items()])
        ask(tables.CHECKPOINT, (int(time.time() * 1e6) + LEASE, LEASE, False, None, 0, row))
        ask("COMMIT")

    def _owned(self, key: str, run_id: str, fence: int) -> int:
        row = self._db.execute(tables.OWNED, (key, run_id, fence)).fetchone()
        if row is None:
            raise AssertionError(f"{key} belongs to another process")
        number: int = row[0]
        return number

    def _finish(self, key: str, run_id: str, fence: int, texts: dict[str, str]) -> None:
        ask = self._db.execute
        ask("BEGIN IMMEDIATE")
        row = self._owned(key, run_id, fence)
        now = int(time.time() * 1e6)
        ask(tables.CLEAR, (row,))
        self._db.executemany(tables.RAISE, [(row, name, text) for name, text in texts.items()])
        ask(tables.FINISH, ("success", False, False, False, "", 0, 1, 0, now, None, None, now + WEEK, row))
        ask("COMMIT")
