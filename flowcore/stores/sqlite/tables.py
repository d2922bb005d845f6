"""The tables of an SQLiteStore, and the SQL statements that use them.

The cost of a checkpoint must depend on what it changes, not on the size of its run. So a row of `runs` is small, and
has what SQL needs. Fields that are large or many have a row each in `fields`. `encoding.py` describes all fields.

Every listing reads an index in its own order, and no more of it than its page needs. So its cost does not grow with the
table. Nor does that of counting: triggers keep the numbers in `counts`, whichever statement changes a run, and only
running runs are read. In a file of an earlier flowcore, which has no `counts`, the runs that wait are read too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Final

from ..encoding import microseconds
from ..sealing import Sealing
from .opening import Schema

__all__ = [
    "BEGIN_QUEUED",
    "CHECKPOINT",
    "CLEAR",
    "COUNTS",
    "COUNT_ALL",
    "DUE",
    "ERASE",
    "ERASE_FIELDS",
    "EXPIRE",
    "FIELD",
    "FIND",
    "FINISH",
    "FORGOTTEN",
    "HAS_COUNTS",
    "HEAD",
    "KEPT",
    "OWNED",
    "PROGRESS",
    "PUT",
    "PUT_SEAL",
    "RAISE",
    "RECEIVED",
    "RELEASE",
    "RENEW",
    "RETIRE",
    "SCHEMA",
    "SET_DECISION",
    "STOP",
    "TAKE_OVER",
    "WAKE",
    "WITHDRAW",
    "add",
    "forget",
    "found",
    "head",
    "open_seal",
    "put",
    "small",
    "until",
    "whole",
]

_COLUMNS: Final = (
    *("schema", "key", "run_id", "owner", "workflow", "fingerprint", "status", "held", "undoing", "decision", "reason"),
    *("by", "since", "before_status", "before_expires", "before_by", "before_since", "takeovers", "retries", "delay"),
    *("not_before", "deadline", "generation", "fence", "seq", "started", "finished", "expires"),
    "received",
)
_IN_RUNS: Final = frozenset(_COLUMNS)
_BEGUN: Final = (  # columns of a new run
    *("schema", "key", "run_id", "owner", "workflow", "fingerprint", "status", "by", "deadline", "seq"),
)
_COUNTED: Final = "{0}.held = 1 OR {0}.status IN ('queued', 'waiting', 'incomplete', 'parked')"
_COUNTED_AS: Final = "CASE {0}.held WHEN 1 THEN 'held' ELSE {0}.status END"
_COUNT: Final = (
    f"INSERT INTO counts SELECT new.workflow, {_COUNTED_AS.format('new')}, 1 "
    f"WHERE ({_COUNTED.format('new')}) AND new.workflow IS NOT NULL ON CONFLICT DO UPDATE SET number = number + 1"
)
_OLD_COUNT: Final = f"workflow = old.workflow AND status = {_COUNTED_AS.format('old')}"
_NOTHING: Final = frozenset({"null", "[]"})  # texts that mean the same as no row

_STATEMENTS: Final = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,     -- rises with each run that begins
        schema INTEGER,
        key TEXT UNIQUE,            -- NULL: another run has it by now, or none
        run_id TEXT,
        owner TEXT,
        workflow TEXT,
        fingerprint TEXT,
        status TEXT,
        held INTEGER DEFAULT 0,
        undoing INTEGER DEFAULT 0,
        decision TEXT,
        reason TEXT,
        by TEXT,
        since INTEGER,              -- this and all other times: microseconds since the epoch
        before_status TEXT,
        before_expires INTEGER,
        before_by TEXT,
        before_since INTEGER,
        takeovers INTEGER DEFAULT 0,
        retries INTEGER DEFAULT 0,
        delay INTEGER DEFAULT 0,
        not_before INTEGER,
        deadline INTEGER,
        generation INTEGER,
        fence INTEGER,
        seq INTEGER DEFAULT 0,
        received INTEGER DEFAULT 0,
        started INTEGER,
        finished INTEGER,
        expires INTEGER,
        lease INTEGER,              -- microseconds from when `expires` was set to then
        due INTEGER,                -- recovery may resume it then, or later while its owner lives; NULL: never
        forget INTEGER              -- the end of its retention; NULL: there is more to come, or it is held
    )
    """,
    "CREATE INDEX runs_by_run_id ON runs (run_id)",
    "CREATE INDEX runs_by_status ON runs (status, workflow)",
    "CREATE INDEX runs_by_due ON runs (workflow, due) WHERE due IS NOT NULL",
    "CREATE INDEX runs_by_end ON runs (forget) WHERE forget IS NOT NULL",
    "CREATE INDEX runs_held ON runs (held) WHERE held = 1",
    "CREATE INDEX runs_held_by_workflow ON runs (held, workflow) WHERE held = 1",
    "CREATE TABLE fields (run INTEGER, name TEXT, text TEXT, PRIMARY KEY (run, name)) WITHOUT ROWID",
    """
    CREATE TABLE counts (           -- of the runs that are neither running nor over
        workflow TEXT,
        status TEXT,                -- 'held' for a held run
        number INTEGER,
        PRIMARY KEY (workflow, status)
    ) WITHOUT ROWID
    """,
    f"CREATE TRIGGER count_begun AFTER INSERT ON runs WHEN {_COUNTED.format('new')} BEGIN {_COUNT}; END",
    f"""
    CREATE TRIGGER count_changed AFTER UPDATE OF status, held ON runs
    WHEN (old.status IS NOT new.status OR old.held IS NOT new.held)
        AND ({_COUNTED.format("old")} OR {_COUNTED.format("new")})
    BEGIN
        UPDATE counts SET number = number - 1 WHERE {_OLD_COUNT};
        DELETE FROM counts WHERE {_OLD_COUNT} AND number = 0;
        {_COUNT};
    END
    """,  # noqa: S608 - all parts are constants
)
SCHEMA: Final = Schema(_STATEMENTS, frozenset({"counts", "count_begun", "count_changed", "runs_held_by_workflow"}))
HAS_COUNTS: Final = "SELECT count(*) FROM sqlite_master WHERE name = 'counts'"
COUNTS: Final = "SELECT workflow, status, number FROM counts"
COUNT_ALL: Final = (
    f"SELECT workflow, {_COUNTED_AS.format('runs')} AS state, count(*) FROM runs "  # noqa: S608 - see above
    f"WHERE {_COUNTED.format('runs')} GROUP BY workflow, state"
)
HEAD: Final = f"SELECT id, lease, {', '.join(_COLUMNS)} FROM runs"  # noqa: S608 - all parts are constants
KEPT: Final = "(forget IS NULL OR forget > ?)"
FIND: Final = f"{HEAD} WHERE key = ? AND {KEPT}"
OWNED: Final = (
    "SELECT id, decision, CAST(seq AS INTEGER), takeovers + retries + delay, CAST(delay AS INTEGER), CAST(due AS INTEGER), "
    "CAST(received AS INTEGER) FROM runs "
    "WHERE key = ? AND run_id = ? AND fence = ? AND status IN ('running', 'queued')"
)
RETIRE: Final = "UPDATE runs SET key = NULL, status = 'failure', held = 0, due = NULL, forget = 0 WHERE key = ?"
TAKE_OVER: Final = (
    "UPDATE runs SET before_status = status, before_expires = expires, before_by = by, before_since = since, "
    "status = 'running', owner = ?, by = ?, since = ?, fence = ?, takeovers = ?, delay = ?, expires = ?, lease = ?, "
    "due = ?, finished = NULL WHERE id = ?"
)
BEGIN_QUEUED: Final = "UPDATE runs SET status = 'running', seq = ?, expires = ?, lease = ?, due = ? WHERE id = ?"
RENEW: Final = "UPDATE runs SET expires = ?, lease = ?, due = ? WHERE id = ?"
EXPIRE: Final = "UPDATE runs SET expires = ?, due = ? + delay WHERE id = ?"
# For max(), each text is greater than each number, so a number that comes as text must be cast.
# `due` stays unchanged, so that its index is not written. It may then be early, so recovery looks at `expires` too.
CHECKPOINT: Final = "UPDATE runs SET expires = ?, lease = ?, undoing = max(undoing, ?), decision = ?, seq = max(seq, CAST(? AS INTEGER)) WHERE id = ?"
PROGRESS: Final = "UPDATE runs SET takeovers = 0, retries = 0, delay = 0, due = ? WHERE id = ?"
DUE: Final = "UPDATE runs SET due = ? WHERE id = ?"
FINISH: Final = (
    "UPDATE runs SET status = ?, held = ?, undoing = max(undoing, ?) AND NOT ?, decision = NULL, reason = ?, retries = ?, "
    "takeovers = takeovers * ?, delay = 0, seq = max(seq, CAST(? AS INTEGER)), finished = ?, expires = NULL, not_before = ?, due = ?, "
    "forget = ? WHERE id = ?"
)
WITHDRAW: Final = (
    "UPDATE runs SET status = before_status, expires = CASE WHEN before_status IN ('running', 'queued') THEN ? END, "
    "finished = CASE WHEN before_status IN ('parked', 'incomplete') THEN ? END, not_before = NULL, due = ?, delay = 0, "
    "takeovers = max(0, takeovers - (before_status = 'running')) WHERE id = ?"
)
RELEASE: Final = (
    "UPDATE runs SET status = 'failure', held = 0, decision = NULL, reason = NULL, fence = fence + 1, finished = ?, "
    "expires = NULL, not_before = NULL, due = NULL, forget = ? WHERE id = ?"
)
ERASE: Final = (
    "UPDATE runs SET fingerprint = NULL, decision = NULL, reason = NULL, by = NULL, before_status = NULL, "
    "before_expires = NULL, before_by = NULL, before_since = NULL, takeovers = 0, retries = 0, undoing = 0, deadline = NULL "
    "WHERE id = ?"
)
ERASE_FIELDS: Final = "DELETE FROM fields WHERE run = ? AND name NOT IN ('graph', 'key_text')"
# Row 0 belongs to no run, because rows are numbered from 1.
_SEAL: Final = "SELECT text FROM fields WHERE run = 0 AND name = 'secret'"
PUT_SEAL: Final = "INSERT OR REPLACE INTO fields VALUES (0, 'secret', ?)"
STOP: Final = (
    "UPDATE runs SET fence = fence + (status IN ('running', 'queued')), status = ?, held = ?, decision = ?, reason = ?, "
    "expires = NULL, not_before = NULL, delay = 0, due = ?, forget = NULL WHERE id = ?"
)
SET_DECISION: Final = "UPDATE runs SET decision = ?, reason = ? WHERE id = ?"
CLEAR: Final = "DELETE FROM fields WHERE run = ? AND name IN ('undone', 'failed_step', 'error', 'waiting_for')"
RECEIVED: Final = "UPDATE runs SET received = received + 1 WHERE id = ?"
WAKE: Final = "UPDATE runs SET not_before = ?, due = CASE held WHEN 1 THEN NULL ELSE ? END WHERE id = ?"
FIELD: Final = "SELECT text FROM fields WHERE run = ? AND name = ?"
PUT: Final = "INSERT OR REPLACE INTO fields VALUES (?, ?, ?)"
# Of two texts of a step or a write, the one that begins with the higher number wins. CAST reads only that number.
RAISE: Final = (
    "INSERT INTO fields VALUES (?, ?, ?) ON CONFLICT (run, name) DO UPDATE SET text = excluded.text "
    "WHERE CAST(excluded.text AS INTEGER) > CAST(text AS INTEGER)"
)
FORGOTTEN: Final = "SELECT id FROM runs WHERE forget <= ? ORDER BY forget LIMIT 1"
_ADD: Final = (
    f"INSERT INTO runs ({', '.join(_BEGUN)}, generation, fence, started, since, expires, lease, due) "  # noqa: S608
    f"VALUES ({', '.join('?' * (len(_BEGUN) + 7))})"
)
_FORGET: Final = "DELETE FROM fields WHERE run = ? AND name IN (SELECT name FROM fields WHERE run = ? LIMIT ?)"
_SMALL: Final = (
    "SELECT name, text FROM fields WHERE run = ? AND name IN "
    "('graph', 'carrier', 'undone', 'failed_step', 'error', 'key_text', 'waiting_for')"
)


def until(now: int, lease: float) -> tuple[int, int]:
    """Return the end of a lease of so many seconds that begins at `now`, and its length, both in microseconds."""
    length = microseconds(lease)
    return now + length, length


def found(db: sqlite3.Cursor, key: str, now: int) -> tuple[int, int, dict[str, Any]] | None:
    """Return the row number of a key, the length of its lease, and its head; None if there is no run with this key."""
    row = db.execute(FIND, (key, now)).fetchone()
    return None if row is None else (row[0], row[1] if isinstance(row[1], int) else 0, small(db, row))


def head(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields in a row of HEAD."""
    return {name: value for name, value in zip(_COLUMNS, row[2:], strict=True) if value is not None}


def small(db: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    """Return all fields of a run's head: those in a row of HEAD, and those in `fields`."""
    return {**dict(db.execute(_SMALL, (row[0],))), **head(row)}


def whole(db: sqlite3.Cursor, number: int, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of a run: those in its head, and those in `fields`."""
    return {**dict(db.execute("SELECT name, text FROM fields WHERE run = ?", (number,))), **head}


def add(db: sqlite3.Cursor, texts: Mapping[str, str], generation: int, fence: int, now: int, lease: float) -> int:
    """Insert a new run, and return its row number. Its other fields are still to be written by `put`."""
    expires, length = until(now, lease)
    values = (*map(texts.get, _BEGUN[:-1]), texts.get("seq", 0), generation, fence, now, now, expires, length, expires)
    number: Any = db.execute(_ADD, values).lastrowid
    return int(number)


def put(db: sqlite3.Cursor, number: int, texts: Mapping[str, str]) -> int:
    """Write those fields of a run that have rows of their own. Returns how many rows it wrote."""
    raised: list[tuple[int, str, str]] = []
    rows = 0
    for name, text in texts.items():
        if name[1] == ":":  # a field of a step or a write
            raised.append((number, name, text))
        elif name not in _IN_RUNS and text not in _NOTHING:
            db.execute(PUT, (number, name, text))
            rows += 1
    db.executemany(RAISE, raised)
    return rows + len(raised)


def forget(db: sqlite3.Cursor, now: int, most: int) -> bool:
    """Delete runs that are past their retention, but at most `most` rows. Returns whether there may be more. Large runs
    are deleted in parts; no verb finds what is left of them."""
    while most > 0:
        run = db.execute(FORGOTTEN, (now,)).fetchone()
        if run is None:
            return False
        most -= db.execute(_FORGET, (*run, *run, most)).rowcount
        if most > 0:
            db.execute("DELETE FROM runs WHERE id = ?", run)
            most -= 1
    return True


def open_seal(connection: sqlite3.Connection, *, sealing: Sealing, where: str) -> None:
    """Load the secret under which keys are looked up, or make it. Raises StoreError if the file was set up with another
    codec. This uses no cursor of its own, because instrumentation of sqlite3 would make spans of that."""
    try:
        kept = connection.execute(_SEAL).fetchone()
    except sqlite3.DatabaseError as error:
        if sealing.hides or isinstance(error, sqlite3.OperationalError):
            raise
        return  # every verb will report that the file is damaged
    if not sealing.hides or kept is not None:
        sealing.use(None if kept is None else str(kept[0]), used=True, where=where)
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        kept = connection.execute(_SEAL).fetchone()  # another process may have been quicker
        used = connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is not None
        if not sealing.use(None if kept is None else str(kept[0]), used=used, where=where):
            connection.execute(PUT_SEAL, (sealing.secret_text(),))
    finally:
        connection.execute("COMMIT")
