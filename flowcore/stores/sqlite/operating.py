"""The verbs of an SQLiteStore that recovery and operators use. Reading delays no run."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final

from ...errors import CorruptRecord, DefinitionError, hashed_key, safe_repr, safe_str
from ...retry import Duration, flag, seconds
from ...run import Sent, names_of_sent
from ...status import Status
from ..arguments import check_listing, check_resumable, check_run_id
from ..base import LIVE, Page, RunRecord
from ..decide import OPEN, Order, decide_order, decide_send, is_over, unknown_key, unknown_run
from ..encoding import SENT, STEP, Encoding, microseconds
from . import listing, tables
from .database import Database

if TYPE_CHECKING:
    from ...step import Step

__all__ = ["FORGET_BATCH", "Operating"]

FORGET_BATCH: Final = 256
"""the most rows of runs past their retention that are deleted at a time"""
_CHUNK: Final = 1000  # records of a listing that are read in one transaction
_REMEMBERED: Final = 1000  # the most unreadable records that are remembered, so that each is logged once
_SECOND: Final = 1_000_000
_log = logging.getLogger("flowcore")


class Operating:
    """The part of SQLiteStore that recovery and operators use. Thread-safe."""

    def __init__(
        self, database: Database, encoding: Encoding, retention: float, durability: str, wall: Callable[[], float]
    ) -> None:
        self.path = database.path
        self.retention = retention
        self.durability = durability
        self._database = database
        self._encoding = encoding
        self._lookup = encoding.sealing.lookup
        self._hides = encoding.sealing.hides
        self._secret_is_fresh = not self._hides
        self._wall = wall
        self._written = 0  # fields, since runs past their retention were last deleted
        self._latest: int | None = None  # the latest time at which recovery has listed its runs
        self._warned: set[str] = set()  # hashes of keys whose records could not be read

    def _renew_secret(self, db: sqlite3.Cursor) -> None:
        """Encode the secret anew, once, so that it is never the last text that needs an old key of the codec."""
        if not self._secret_is_fresh:
            self._secret_is_fresh = True
            db.execute(tables.PUT_SEAL, (self._encoding.sealing.secret_text(),))

    # -- finding -------------------------------------------------------------------------------------------------------

    def find(self, key: str, /) -> RunRecord | None:
        """Return the record under a key, or None."""
        return self._stored(tables.FIND, self._lookup(key), self._now())

    def head(self, key: str, /) -> RunRecord | None:
        """Return the record under a key, without values and the records of single steps, or None."""
        found = self._database.read(lambda db: tables.found(db, self._lookup(key), self._now()))
        return None if found is None else self._encoding.decode(key, found[2])

    def get_run(self, run_id: str, /) -> RunRecord:
        """Return the record of a run. Raises RunNotFound."""
        check_run_id(run_id)
        record = self._stored(f"{tables.HEAD} WHERE run_id = ? AND {tables.KEPT}", run_id, self._now())
        if record is None:
            raise unknown_run(run_id)
        return record

    def _stored(self, sql: str, *values: Any) -> RunRecord | None:
        def read(db: sqlite3.Cursor) -> dict[str, Any] | None:
            row = db.execute(sql, values).fetchone()
            return None if row is None else tables.whole(db, row[0], tables.head(row))

        fields = self._database.read(read)
        return None if fields is None else self._encoding.decode(fields.get("key", ""), fields)

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """Return the heads of the runs of these workflows that recovery may resume now, the longest due first: crashed,
        parked and incomplete ones, waiting ones that are due, and queued ones that lost their owners. `after`: the
        cursor of the previous page. An unreadable record is logged once and left out."""
        check_resumable(workflows, limit)
        past = (-1, -1) if after is None else _numbers(after, 2, "list_resumable")

        def read(db: sqlite3.Cursor) -> tuple[list[tuple[int, int]], list[dict[str, Any] | None]]:
            # The time is read in the transaction, which may have had to wait while an owner renewed its lease.
            now = self._now()
            set_back = self._latest is None or now < self._latest - _SECOND
            due = listing.list_due(db, set(workflows), now, (past[0], past[1]), set_back=set_back)
            found = list(itertools.islice(due, None if limit is None else min(limit, sys.maxsize - 1) + 1))
            if not set_back or limit is None or len(found) <= limit:
                self._latest = now if self._latest is None else max(self._latest, now)
            return found, [_head(db, number) for _, number in found[:limit]]

        found, heads = self._database.read(read)
        page = Page(record for head in heads if head is not None and (record := self._readable(head)) is not None)
        if limit is not None and len(found) > limit:
            page.cursor = "{} {}".format(*found[limit - 1])
        return page

    def _readable(self, head: dict[str, Any]) -> RunRecord | None:
        """Return the record. If it cannot be read, log that and return None, so that others are still recovered."""
        key = head.get("key", "")
        try:
            return self._encoding.decode(key, head)
        except CorruptRecord as error:
            if len(self._warned) < _REMEMBERED and (known := hashed_key(key)) not in self._warned:
                self._warned.add(known)
                _log.warning("%s cannot be recovered: %s", self.path, error)
            return None

    def list_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Page:
        """Return a page of heads of runs, newest first. `status`: a status of runs, "held", or "expired" for running
        ones whose lease has expired; `older_than`: the fewest seconds since they started; `text`: a part of their keys,
        for which all keys are scanned; `limit=None`: all. A record that cannot be read is listed with its `problem`.

        Raises DefinitionError for an unknown status.
        """
        check_listing(status, workflow, limit, text)
        age = None if older_than is None else microseconds(seconds(older_than, "list_runs(older_than=)"))
        below = sys.maxsize if after is None else _numbers(after, 1, "list_runs")[0]
        page = Page()
        while True:
            most = _CHUNK if limit is None else min(_CHUNK, limit - len(page))

            def read(
                db: sqlite3.Cursor, most: int = most, below: int = below
            ) -> list[tuple[int, dict[str, Any] | None]]:
                now = self._now()
                in_keys = None if self._hides else text
                query = listing.Query(status, workflow, None if age is None else now - age, in_keys, below)
                numbers = list(itertools.islice(listing.list_ids(db, query, now), most + 1))
                return [(number, _head(db, number)) for number in numbers]

            found = self._database.read(read)
            records = [self._listed(head) for _, head in found[:most] if head is not None]
            page += [one for one in records if text is None or not self._hides or text in one.key]
            if len(found) <= most:
                return page
            below = found[most - 1][0]
            if limit is not None and len(page) >= limit:
                page.cursor = str(below)
                return page

    def _listed(self, head: dict[str, Any]) -> RunRecord:
        key = head.get("key", "")
        try:
            return self._encoding.decode(key, head)
        except CorruptRecord as error:
            known = [
                value if isinstance(value := head.get(name), str) else "" for name in ("key", "run_id", "workflow")
            ]
            return RunRecord(known[0], known[1], known[2], None, "", problem=safe_str(error, 500))

    def counts(self) -> dict[tuple[str, str], int]:
        """Return (workflow, status) -> the number of runs that are not over. Each is counted once: as held, else as
        expired, else by its status."""
        return self._database.read(lambda db: listing.count(db, self._now()))

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(
        self,
        key: str,
        name: Step[Any] | str,
        value: Any,
        /,
        *,
        id: str | None = None,  # noqa: A002 - the word for it
        carrier: Mapping[str, str] | None = None,
    ) -> bool:
        """Send a value to the wait `name` of the run with this key. The run keeps the value until it reaches that wait.
        Returns whether the value counts: see Store.send."""
        name, id = names_of_sent(name, id, carrier)  # noqa: A001
        record = self.head(key)
        if record is None:
            raise unknown_key(key)
        sent = Sent(value, self._wall(), socket.gethostname(), os.getpid(), id, carrier or {})
        text = self._encoding.encode_sent(name, sent, record.run_id)

        def write(db: sqlite3.Cursor) -> bool:
            now = self._now()
            number, record, _ = self._known(db, key, now)
            known, step = (db.execute(tables.FIELD, (number, kind + name)).fetchone() for kind in (SENT, STEP))
            counts = decide_send(record, name, id, **self._encoding.decode_wait(record, name, known, step))
            if counts is None:
                db.execute(tables.PUT, (number, SENT + name, text))
                db.execute(tables.RECEIVED, (number,))
                if name in record.waiting_for:
                    db.execute(tables.WAKE, (now, now, number))
            return counts is not False

        return self._database.write(write, look=True)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Give up the run of a key, so that the next call starts afresh. Its record stays until its retention is over.

        Raises RunNotFound for an unknown key, StoreError for a live run, and CorruptRecord for a record that cannot be
        read. With `force`, a live run is given up too, and its owner learns from its next checkpoint or renewal that
        the run is lost; an unreadable record is deleted.
        """
        flag(force, "release(force=)")

        def write(db: sqlite3.Cursor) -> None:
            now = self._now()
            number, record, live = self._known(db, key, now)
            if not force:
                decide_order(record, live, "release")
            db.execute(tables.RELEASE, (now, self._forget_at(now), number))

        try:
            self._database.write(write, look=True)
        except CorruptRecord:
            if not force:
                raise
            self._database.write(lambda db: db.execute(tables.RETIRE, (self._lookup(key),)), look=True)

    def erase(self, key: str, /, *, force: bool = False) -> None:
        """Erase at once what users put into the run of a key, and into the key's earlier runs: see Store.erase. It is
        overwritten in the file, and the log is emptied.

        Raises RunNotFound for an unknown key, StoreError for a run that is not over or is held, and CorruptRecord for a
        record that cannot be read. With `force`, such a run is released first, and such a record is deleted. Raises
        StoreUnavailable if other processes read for so long that the log could not be emptied; then erase the key
        again.
        """
        flag(force, "erase(force=)")

        def write(db: sqlite3.Cursor) -> None:
            now = self._now()
            number, record, live = self._known(db, key, now)
            if not force:
                decide_order(record, live, "erase")
            elif record.held or not is_over(record.status):
                db.execute(tables.RELEASE, (now, self._forget_at(now), number))
            db.execute(tables.ERASE, (number,))
            db.execute(tables.ERASE_FIELDS, (number,))

        try:
            self._database.write(write, look=True)
        except CorruptRecord:
            if not force:
                raise
            self._database.write(lambda db: db.execute(tables.RETIRE, (self._lookup(key),)), look=True)
        self.gc()  # deletes the earlier runs, which no longer have a key
        self._database.empty_log()

    def hold(self, key: str, /, reason: str | None = None) -> None:
        """Hold the key, so that calls with it are refused until `release`, `resume` or `undo`. `reason` is kept in the
        record. Raises RunNotFound for an unknown key, and StoreError for a live run."""

        def write(db: sqlite3.Cursor) -> None:
            number, record, live = self._known(db, key, self._now())
            decide_order(record, live, "hold")
            status = Status.PARKED if record.status == Status.RUNNING else record.status
            db.execute(tables.STOP, (str(status), 1, None, self._encoding.encode_reason(key, reason), None, number))

        self._database.write(write, look=True)

    def resume(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next caller, or recovery, resume a run that is held, parked or incomplete, has no live owner, or
        failed with nothing undone. Raises RunNotFound for an unknown key, and StoreError for any other run."""
        self._decide(key, "resume", reason)

    def undo(self, key: str, /, *, reason: str | None = None) -> None:
        """Let the next caller, or recovery, undo a run, past its pivot too. A live run is cancelled and undone by its
        owner. Raises RunNotFound for an unknown key, and StoreError for a run that is over and not held."""
        self._decide(key, "undo", reason)

    def cancel(self, key: str, /, *, reason: str | None = None) -> None:
        """Cancel a run. The owner of a live run learns of it from its next checkpoint or renewal; any other run is
        cancelled by the next call with the key, or by recovery. A run past its pivot is left incomplete. Raises
        RunNotFound for an unknown key, and StoreError for a run that is over and not held."""
        self._decide(key, "cancel", reason)

    def _decide(self, key: str, decision: str, reason: str | None = None) -> None:
        def write(db: sqlite3.Cursor) -> None:
            now = self._now()
            number, record, live = self._known(db, key, now)
            match decide_order(record, live, decision):
                case Order.NOTIFY_OWNER:
                    db.execute(tables.SET_DECISION, (decision, self._encoding.encode_reason(key, reason), number))
                case Order.STOP:
                    over = is_over(record.status) or record.status == Status.RUNNING
                    status = Status.PARKED if over else record.status
                    db.execute(
                        tables.STOP, (str(status), 0, decision, self._encoding.encode_reason(key, reason), now, number)
                    )
                case Order.NOTHING:
                    pass

        self._database.write(write, look=True)

    def _known(self, db: sqlite3.Cursor, key: str, now: int) -> tuple[int, RunRecord, bool]:
        """Return the row number and the head of a key's run, and whether it is live. Raises RunNotFound."""
        found = tables.found(db, self._lookup(key), now)
        if found is None:
            raise unknown_key(key)
        number, _, head = found
        record = self._encoding.decode(key, head)
        return number, record, record.status in LIVE and head.get("expires", now) > now

    # -- keeping house -------------------------------------------------------------------------------------------------

    def gc(self) -> int:
        """Delete the runs that are past their retention. Returns how many runs are left."""
        while self._database.write(lambda db: self._forget_some(db, self._now())):
            pass
        return self._database.read(lambda db: self._retained(db, self._now()))

    def doctor(self, *, deep: bool = False) -> dict[str, str | int | float]:
        """Return what an operator should know about this store, by name. Sizes are in bytes, times in seconds. `deep`:
        also check the integrity of the whole file, which takes long but delays no run."""
        facts = self._database.facts(deep=deep)
        waits = "the end of a step is on the disk before any step that depends on it starts"
        durability = waits if self.durability == "full" else "a power cut may lose the last writes"

        def read(db: sqlite3.Cursor) -> tuple[int, int, dict[tuple[str, str], int]]:
            now = self._now()
            return self._retained(db, now), _past(db, now), listing.count(db, now)

        runs, past, counts = self._database.read(read)
        return {
            "store": "sqlite",
            "durability": f"{self.durability}: {durability}",
            **facts,
            "retention": self.retention,
            "runs": runs,
            **{word: sum(n for (_, status), n in counts.items() if status == word) for word in OPEN},
            "to forget": past,
        }

    def close(self) -> None:
        """Close the file; the runs stay in it. Later calls raise StoreError."""
        self._database.close()

    def _now(self) -> int:
        return max(0, int(self._wall() * 1e6))

    def _forget_at(self, now: int) -> int:
        return now + microseconds(self.retention)

    def _forget_some(self, db: sqlite3.Cursor, now: int) -> bool:
        self._written = 0
        return tables.forget(db, now, FORGET_BATCH)

    def _retained(self, db: sqlite3.Cursor, now: int) -> int:
        (runs,) = db.execute("SELECT count(*) FROM runs").fetchone()
        return int(runs) - _past(db, now)


def _past(db: sqlite3.Cursor, now: int) -> int:
    (past,) = db.execute("SELECT count(*) FROM runs WHERE forget <= ?", (now,)).fetchone()
    return int(past)


def _head(db: sqlite3.Cursor, number: int) -> dict[str, Any] | None:
    row = db.execute(f"{tables.HEAD} WHERE id = ?", (number,)).fetchone()
    return None if row is None else tables.small(db, row)


def _numbers(after: str, count: int, verb: str) -> list[int]:
    try:
        numbers = [int(part) for part in after.split(" ")]
    except (AttributeError, TypeError, ValueError):
        numbers = []
    if len(numbers) != count or max(map(abs, numbers)) > sys.maxsize:
        raise DefinitionError(f"{verb}(after=) must be the cursor of an earlier page, not {safe_repr(after)}.")
    return numbers
