"""Listings of an SQLiteStore. Each reads one index, or merges several parts of it, in the order of the page, and stops
at the end of the page.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

from . import tables

__all__ = ["Query", "count", "list_due", "list_ids"]

_STATUSES: Final = (
    *(
        "queued",
        "running",
        "waiting",
        "success",
        "failure",
        "compensated",
        "compensation_failed",
        "incomplete",
        "parked",
    ),
)
_MANY: Final = 500
"""the most workflows of one status that are read side by side; with more of them, all runs are scanned"""
_COUNT_RUNNING: Final = (
    "SELECT workflow, CASE WHEN coalesce(expires, 0) <= ? THEN 'expired' ELSE 'running' END AS word, count(*) "
    "FROM runs WHERE status = 'running' AND held = 0 GROUP BY workflow, word"
)
_DUE: Final = (
    "SELECT due, id FROM runs WHERE workflow = ? AND due <= ? AND (due, id) > (?, ?) AND held = 0 AND "
    "(expires IS NULL OR expires + delay <= ?) ORDER BY due, id"
)
# If a lease ends more than its own length and a second from now, the clock was set back, and it is unknown whether the
# owner is alive. A claim of the run then shortens the lease.
_SET_BACK: Final = (
    "SELECT due, id FROM runs WHERE workflow = ? AND due > ? AND (due, id) > (?, ?) AND held = 0 AND "
    "expires - lease - 1000000 > ? ORDER BY due, id"
)


@dataclass(slots=True)
class Query:
    """The filters of `list_runs`. `before`: the latest time at which the runs began, in microseconds since the epoch;
    `below`: the row of the last run on the previous page."""

    status: str | None
    workflow: str | None
    before: int | None
    text: str | None
    below: int


def list_ids(db: sqlite3.Cursor, query: Query, now: int) -> Iterator[int]:
    """Return the rows of the runs that match, newest first."""
    below = query.below if query.before is None else min(query.below, _first_after(db, query.before))
    filters, values = ["id < ?", tables.KEPT], [below, now]
    if query.before is not None:
        filters.append("started <= ?")
        values.append(query.before)
    more: list[Any] = list(values)
    if query.text is not None:
        filters.append("instr(key, ?) > 0")
        more.append(query.text)
    if query.status == "expired":
        filters.append("held = 0 AND coalesce(expires, 0) <= ?")
        more.append(now)
    where = " AND ".join(filters)

    def rows(condition: str = "1", *terms: Any) -> Iterator[int]:
        sql = f"SELECT id FROM runs WHERE {condition} AND {where} ORDER BY id DESC"  # noqa: S608 - all constants
        return (number for (number,) in db.connection.execute(sql, (*terms, *more)))

    status = "running" if query.status == "expired" else query.status
    if status == "held":
        return rows("held = 1") if query.workflow is None else rows("held = 1 AND workflow = ?", query.workflow)
    if query.workflow is not None:
        wanted = _STATUSES if status is None else (status,)
        parts = [rows("status = ? AND workflow = ?", each, query.workflow) for each in wanted]
    elif status is None:
        return rows()
    else:
        workflows = _workflows(db, status)
        if len(workflows) > _MANY:
            return rows("+status = ?", status)
        parts = [rows("status = ? AND workflow = ?", status, workflow) for workflow in workflows]
    return heapq.merge(*parts, reverse=True)


def _first_after(db: sqlite3.Cursor, before: int) -> int:
    """Return a row number above those of all runs that had begun by this time. Rows are numbered in the order in which
    runs begin, so it is found by bisection."""
    low, high = 0, db.execute("SELECT coalesce(max(id), 0) FROM runs").fetchone()[0]
    while low < high:
        middle = (low + high + 1) // 2
        row = db.execute("SELECT id, started FROM runs WHERE id <= ? ORDER BY id DESC LIMIT 1", (middle,)).fetchone()
        if row is None or not isinstance(row[1], int) or row[1] <= before:
            low = middle
        else:
            high = row[0] - 1
    return low + 1


def _workflows(db: sqlite3.Cursor, status: str) -> list[str]:
    """Return the workflows that have runs of this status, but at most _MANY + 1. Each takes one step in the index."""
    names: list[str] = []
    sql = "SELECT min(workflow) FROM runs WHERE status = ? AND workflow > ?"
    while len(names) <= _MANY:
        (name,) = db.execute(sql, (status, names[-1] if names else "")).fetchone()
        if not isinstance(name, str):
            break
        names.append(name)
    return names


def list_due(
    db: sqlite3.Cursor, workflows: Collection[str], now: int, past: tuple[int, int], *, set_back: bool
) -> Iterator[tuple[int, int]]:
    """Return (due, row) of the runs of these workflows that recovery may resume, the longest due first. `set_back`:
    include the runs whose lease ends too late, because the clock was set back after it was granted."""
    parts = [db.connection.execute(_DUE, (name, now, *past, now)) for name in workflows]
    if set_back:
        parts += [db.connection.execute(_SET_BACK, (name, now, *past, now)) for name in workflows]
    return heapq.merge(*parts)


def count(db: sqlite3.Cursor, now: int) -> dict[tuple[str, str], int]:
    """Return (workflow, status) -> the number of runs that are not over."""
    (has_counts,) = db.execute(tables.HAS_COUNTS).fetchone()
    kept = db.execute(tables.COUNTS if has_counts else tables.COUNT_ALL).fetchall()
    running = db.execute(_COUNT_RUNNING, (now,)).fetchall()
    return {(workflow, status): number for workflow, status, number in kept + running if isinstance(workflow, str)}
