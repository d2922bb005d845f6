"""The two tables of an SQLiteStore, and what it says to them.

A checkpoint must cost what it changes, however large its run is. So a row of `runs` has what SQL needs, and is small;
what is large, or many, has a row of its own in `fields`. `encoding.py` says what is in them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from ..encoding import microseconds

__all__ = [
    "CHECKPOINT",
    "CLEAR",
    "EXPIRE",
    "FIND",
    "FINISH",
    "FORGOTTEN",
    "HEAD",
    "KEPT",
    "OWNED",
    "PUT",
    "RAISE",
    "RELEASE",
    "RENEW",
    "RETIRE",
    "SCHEMA",
    "STOP",
    "TAKE_OVER",
    "UNFINISHED",
    "add",
    "forget",
    "found",
    "head",
    "put",
    "until",
    "whole",
]

_COLUMNS: Final = (
    *("schema", "key", "run_id", "owner", "workflow", "fingerprint", "graph", "status", "held", "undoing", "decision"),
    *("before_status", "before_expires", "generation", "fence", "started", "finished", "expires"),
)
_IN_RUNS: Final = frozenset(_COLUMNS)
_BEGUN: Final = ("schema", "key", "run_id", "owner", "workflow", "fingerprint", "graph", "status")  # of a fresh run
_NOTHING: Final = frozenset({"null", "[]"})  # the same as no row

SCHEMA: Final = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        schema INTEGER,
        key TEXT UNIQUE,            -- NULL: another run has it by now, or nobody
        run_id TEXT,
        owner TEXT,
        workflow TEXT,
        fingerprint TEXT,
        graph TEXT,
        status TEXT,
        held INTEGER DEFAULT 0,
        undoing INTEGER DEFAULT 0,
        decision TEXT,
        before_status TEXT,
        before_expires INTEGER,
        generation INTEGER,
        fence INTEGER,
        started INTEGER,            -- this and all other times: microseconds since the epoch
        finished INTEGER,
        expires INTEGER,
        lease INTEGER,              -- microseconds from when `expires` was set to then
        forget INTEGER              -- the end of its retention; NULL: there is more to come, or it is held
    )
    """,
    "CREATE INDEX runs_by_run_id ON runs (run_id)",
    "CREATE INDEX runs_by_end ON runs (forget, started)",
    "CREATE TABLE fields (run INTEGER, name TEXT, text TEXT, PRIMARY KEY (run, name)) WITHOUT ROWID",
)
HEAD: Final = f"SELECT id, lease, {', '.join(_COLUMNS)} FROM runs"  # noqa: S608 - the words above
KEPT: Final = "(forget IS NULL OR forget > ?)"
FIND: Final = f"{HEAD} WHERE key = ? AND {KEPT}"
OWNED: Final = "SELECT id FROM runs WHERE key = ? AND run_id = ? AND fence = ? AND status = 'running'"
# A lease that ends a second later than it is long: the clock was set back, and nobody knows how its owner is. A claim
# sees to it.
UNFINISHED: Final = (
    f"{HEAD} WHERE forget IS NULL AND held = 0 AND (status IN ('incomplete', 'parked') OR status = 'running' AND "
    "(coalesce(expires, 0) <= ? OR expires - lease - 1000000 > ?)) ORDER BY started, id"
)
RETIRE: Final = "UPDATE runs SET key = NULL, forget = 0 WHERE key = ?"
TAKE_OVER: Final = (
    "UPDATE runs SET before_status = status, before_expires = expires, status = 'running', owner = ?, fence = ?, "
    "expires = ?, lease = ?, finished = NULL WHERE id = ?"
)
RENEW: Final = (
    "UPDATE runs SET expires = ?, lease = ? WHERE key = ? AND run_id = ? AND fence = ? AND status = 'running'"
)
EXPIRE: Final = "UPDATE runs SET expires = ? WHERE id = ?"
CHECKPOINT: Final = "UPDATE runs SET expires = ?, lease = ?, undoing = max(undoing, ?), decision = NULL WHERE id = ?"
FINISH: Final = (
    "UPDATE runs SET status = ?, held = ?, undoing = max(undoing, ?), decision = NULL, finished = ?, expires = NULL, "
    "forget = ? WHERE id = ?"
)
RELEASE: Final = (
    "UPDATE runs SET status = 'failure', held = 0, decision = NULL, fence = fence + 1, finished = ?, expires = NULL, "
    "forget = ? WHERE id = ?"
)
STOP: Final = (
    "UPDATE runs SET fence = fence + (status = 'running'), status = ?, held = ?, decision = ?, expires = NULL, "
    "forget = NULL WHERE id = ?"
)
CLEAR: Final = "DELETE FROM fields WHERE run = ? AND name IN ('undone', 'failed_step', 'error')"
PUT: Final = "INSERT OR REPLACE INTO fields VALUES (?, ?, ?)"
# Of a step or a write the text with the higher number in front wins: CAST reads that number, and stops behind it.
RAISE: Final = (
    "INSERT INTO fields VALUES (?, ?, ?) ON CONFLICT (run, name) DO UPDATE SET text = excluded.text "
    "WHERE CAST(excluded.text AS INTEGER) > CAST(text AS INTEGER)"
)
FORGOTTEN: Final = "SELECT id FROM runs WHERE forget <= ? ORDER BY forget LIMIT 1"
_ADD: Final = (
    f"INSERT INTO runs ({', '.join(_BEGUN)}, generation, fence, started, expires, lease) "  # noqa: S608 - the words above
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FORGET: Final = "DELETE FROM fields WHERE run = ? AND name IN (SELECT name FROM fields WHERE run = ? LIMIT ?)"


def until(now: int, lease: float) -> tuple[int, int]:
    """When a lease of so many seconds ends, and its length; in microseconds."""
    length = microseconds(lease)
    return now + length, length


def found(db: sqlite3.Cursor, key: str, now: int) -> tuple[int, int, dict[str, Any]] | None:
    """The row number of a key, the length of its lease, and its head."""
    row = db.execute(FIND, (key, now)).fetchone()
    return None if row is None else (row[0], row[1] if isinstance(row[1], int) else 0, head(row))


def head(row: tuple[Any, ...]) -> dict[str, Any]:
    """The fields in what HEAD answers."""
    return {name: value for name, value in zip(_COLUMNS, row[2:], strict=True) if value is not None}


def whole(db: sqlite3.Cursor, number: int, head: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a run."""
    return {**dict(db.execute("SELECT name, text FROM fields WHERE run = ?", (number,))), **head}


def add(
    db: sqlite3.Cursor, texts: Mapping[str, str], generation: int, fence: int, started: int, expires: int, lease: int
) -> int:
    """A new run. Answers its row number; its other fields are still to be put."""
    number: Any = db.execute(_ADD, (*map(texts.get, _BEGUN), generation, fence, started, expires, lease)).lastrowid
    return int(number)


def put(db: sqlite3.Cursor, number: int, texts: Mapping[str, str]) -> int:
    """Write those fields of a run that have rows of their own. Answers how many these are."""
    raised: list[tuple[int, str, str]] = []
    rows = 0
    for name, text in texts.items():
        if name[1] == ":":  # a step's, or a write's
            raised.append((number, name, text))
        elif name not in _IN_RUNS and text not in _NOTHING:
            db.execute(PUT, (number, name, text))
            rows += 1
    db.executemany(RAISE, raised)
    return rows + len(raised)


def forget(db: sqlite3.Cursor, now: int, most: int) -> bool:
    """Forget runs that are past their retention, but at most so many rows; whether there may be more. Large ones go bit by
    bit: nobody finds what is left of them."""
    while most > 0:
        run = db.execute(FORGOTTEN, (now,)).fetchone()
        if run is None:
            return False
        most -= db.execute(_FORGET, (*run, *run, most)).rowcount
        if most > 0:
            db.execute("DELETE FROM runs WHERE id = ?", run)
            most -= 1
    return True
