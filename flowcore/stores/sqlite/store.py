"""The durable store of one machine: an SQLite file, for any number of threads and processes, with no service to run."""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, Literal, NamedTuple

from ...errors import CorruptRecord, DefinitionError, RunNotFound, StoreError, safe_repr
from ...retry import Duration, seconds
from ...status import Status
from ..base import (
    RELEASED,
    RESUMABLE,
    Busy,
    Checkpoint,
    Claim,
    ClaimAnswer,
    Claimed,
    Ending,
    Finished,
    Held,
    Lease,
    Lost,
    Mismatch,
    OtherGraph,
    Page,
    Renewal,
    RunRecord,
)
from ..codec import Codec
from ..encoding import MIB, Encoding, microseconds
from . import tables
from .database import Database

__all__ = ["SQLiteStore"]

_WEEK: Final = 7 * 24 * 3600.0
_BITE: Final = 256  # fields that are forgotten at a time
_AT_ONCE: Final = 1000  # runs that `unfinished` answers with
_log = logging.getLogger("flowcore")


class SQLiteStore:
    """Runs in the SQLite file `path`, which is made, for its owner only, where there is none. Thread-safe; any number of
    processes of one machine may have a store of the same file, and a process may fork. One at a time writes: others wait
    up to five seconds for it, then StoreUnavailable is raised, which engines take for a reason to ask again.

    `durability`: with "full" a step's end is on the disk before anything that follows from it begins, and survives a power
    cut. With "normal" the disk is not waited for: the death of any process costs nothing, a power cut the last moments.
    `retention`: how long ended runs, and their keys, are kept. `codec` (None: JsonCodec)
    turns results and values of the context into texts, of at most `max_value_bytes` each. `wall` answers seconds
    since the epoch: the clock that all processes of the machine share.

    Raises DefinitionError for what cannot be meant, and StoreError where there can be no such file.
    """

    name = "sqlite"
    durable = True
    blocks = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["full", "normal"] = "full",
        retention: Duration = _WEEK,
        codec: Codec | None = None,
        max_value_bytes: int = MIB,
        wall: Callable[[], float] = time.time,
    ) -> None:
        given = os.fsdecode(path)
        if given in {"", ":memory:"} or given.startswith("file:"):
            raise DefinitionError(
                f"SQLiteStore({safe_repr(given)}) names no file, so its runs would end with this process: name one, or use "
                "MemoryStore()."
            )
        if durability not in {"full", "normal"}:
            raise DefinitionError(f'SQLiteStore(durability=) must be "full" or "normal", not {safe_repr(durability)}.')
        self.path = os.path.abspath(given)  # noqa: PTH100 - not resolved: a link stays the user's
        self.durability = durability
        self.retention = seconds(retention, "SQLiteStore(retention=)")
        self._encoding = Encoding(codec, max_value_bytes)
        self._wall = wall
        self._database = Database(self.path, tables.SCHEMA, full=durability == "full")
        self._written = 0  # fields, since the last bite was taken
        self._warned: set[Any] = set()  # keys whose records could not be read

    # -- for engines ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Take the key, or tell who has it."""
        texts = self._encoding.encode_claim(claim)
        answer = self._database.write(lambda db: self._claim(db, claim, texts))
        if isinstance(answer, _Over):
            return Finished(self._encoding.decode(claim.key, answer.fields, claim.types), answer.age)
        return answer

    def _claim(self, db: sqlite3.Cursor, claim: Claim, texts: dict[str, str]) -> ClaimAnswer | _Over:
        now = self._now()
        self._forget_some(db, now)
        found = tables.found(db, claim.key, now)
        if found is None:
            return self._begin(db, claim, texts, now, generation=0, fence=now)
        number, lease, head = found
        head.update(db.execute("SELECT name, text FROM fields WHERE run = ? AND name = 'carrier'", (number,)))
        record = self._encoding.decode(claim.key, head)
        status, age = record.status, max(0.0, now / 1e6 - record.started)
        if head["owner"] == claim.run_id:
            if status != Status.RUNNING:  # a late copy of a claim whose run is over begins nothing
                return _Over(tables.whole(db, number, head), age)
            as_found = None
            if record.run_id != claim.run_id:
                fields = tables.whole(db, number, head)
                fields |= {name: fields.get(f"before_{name}") for name in ("status", "expires")}
                known = {name: value for name, value in fields.items() if value is not None}
                as_found = self._encoding.decode(claim.key, known, claim.types)
            db.execute(tables.RENEW, (*tables.until(now, claim.lease), claim.key, record.run_id, record.fence))
            return Claimed(record.generation, record.fence, as_found, age)
        over = status != Status.RUNNING and status not in RESUMABLE
        if claim.attached == record.run_id and (record.held or over):
            return _Over(tables.whole(db, number, head), age)
        if status in RELEASED and not record.held:
            # Attached to a run that others have come after: theirs is the outcome by now. Or it is its own run, which
            # others have taken over and ended while its first answer was lost.
            if claim.attached is not None or claim.run_id == record.run_id:
                return _Over(tables.whole(db, number, head), age)
            fence = max(record.fence + 1, now)
            return self._begin(db, claim, texts, now, generation=record.generation + 1, fence=fence)
        if claim.fingerprint is not None and record.fingerprint != claim.fingerprint:
            return Mismatch(record.run_id, record.carrier, age, record.workflow)
        if record.held:
            return Held(record.run_id, record.carrier, age)
        if status == Status.SUCCESS:
            return _Over(tables.whole(db, number, head), age)
        left = head.get("expires", now) - now
        if status in RESUMABLE or (status == Status.RUNNING and left <= 0):
            return self._take_over(db, claim, now, found, age)
        if status != Status.RUNNING:
            raise CorruptRecord(
                f"the record of key {safe_repr(claim.key)} has the status {safe_repr(str(status))}, but is not held: look at it with "
                f"store.find({safe_repr(claim.key)}), or give the key up with store.release({safe_repr(claim.key)})."
            )
        if left > lease:  # the clock was set back: from now on its owner has as long as it asked for
            left = lease
            db.execute(tables.EXPIRE, (now + lease, number))
        return Busy(record.run_id, record.carrier, age, left / 1e6)

    def _begin(
        self, db: sqlite3.Cursor, claim: Claim, texts: dict[str, str], now: int, *, generation: int, fence: int
    ) -> Claimed:
        db.execute(tables.RETIRE, (claim.key,))
        expires, lease = tables.until(now, claim.lease)
        number = tables.add(db, texts, generation, fence, now, expires, lease)
        self._written += tables.put(db, number, texts)
        return Claimed(generation, fence)

    def _take_over(
        self, db: sqlite3.Cursor, claim: Claim, now: int, found: tuple[int, int, dict[str, Any]], age: float
    ) -> ClaimAnswer:
        number, _, head = found
        # All of it is read before any of it is changed: what cannot be read stays as it is.
        record = self._encoding.decode(claim.key, tables.whole(db, number, head), claim.types)
        if record.graph not in {claim.graph, claim.resumes}:
            return OtherGraph(record.run_id, record.graph)
        fence = max(record.fence + 1, now)
        db.execute(tables.TAKE_OVER, (claim.run_id, fence, *tables.until(now, claim.lease), number))
        return Claimed(record.generation, fence, record, age)

    def checkpoint(self, checkpoint: Checkpoint, /) -> Lost | None:
        """Write down what has changed in a run of ours, and renew its lease."""
        texts, lease = self._encoding.encode_checkpoint(checkpoint), microseconds(checkpoint.lease)
        owner = checkpoint.key, checkpoint.run_id, checkpoint.fence

        def write(db: sqlite3.Cursor) -> Lost | None:
            row = db.execute(tables.OWNED, owner).fetchone()
            if row is None:
                return self._refused(db, *owner)
            now = self._now()
            self._written += tables.put(db, row[0], texts)
            db.execute(tables.CHECKPOINT, (now + lease, lease, checkpoint.undoing, row[0]))
            if self._written >= _BITE:
                self._forget_some(db, now)
            return None

        return self._database.write(write)

    def finish(self, ending: Ending, /) -> Lost | None:
        """Write down how a run of ours ended."""
        record, texts = ending.record, self._encoding.encode_ending(ending)
        owner = record.key, record.run_id, record.fence
        kept = record.held or record.status in RESUMABLE

        def write(db: sqlite3.Cursor) -> Lost | None:
            row = db.execute(tables.OWNED, owner).fetchone()
            if row is None:
                return self._refused(db, *owner)
            now = self._now()
            db.execute(tables.CLEAR, row)
            self._written += tables.put(db, row[0], texts)
            forget = None if kept else self._forget_at(now)
            db.execute(tables.FINISH, (texts["status"], record.held, "undoing" in texts, now, forget, row[0]))
            return None

        return self._database.write(write)

    def _refused(self, db: sqlite3.Cursor, key: str, run_id: str, fence: int) -> Lost | None:
        """Of a run that is not ours, or does not go on: Lost, unless it is ours but over, and this is a late copy."""
        found = tables.found(db, key, 0)
        if found is None:
            return Lost(gone=True)
        # Whoever wrote what flowcore does not write is not taken for an owner.
        record = self._encoding.decode(key, found[2])
        return None if (record.run_id, record.fence) == (run_id, fence) else Lost()

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        """Extend these leases from now on; for each, whether it is still ours."""

        def write(db: sqlite3.Cursor) -> list[Renewal]:
            until = tables.until(self._now(), lease)
            return [
                Renewal.OURS
                if db.execute(tables.RENEW, (*until, one.key, one.run_id, one.fence)).rowcount == 1
                else Renewal.LOST
                for one in leases
            ]

        return self._database.write(write)

    def withdraw(self, claim: Claim, /) -> None:
        """Take a claim back whose answer was never heard, if it was granted."""

        def write(db: sqlite3.Cursor) -> None:
            now = self._now()
            found = tables.found(db, claim.key, now)
            if found is None or found[2].get("owner") != claim.run_id:
                return
            number, _, head = found
            record = self._encoding.decode(claim.key, head)
            if record.status != Status.RUNNING:
                return
            if record.run_id == claim.run_id:
                db.execute(tables.RELEASE, (now, self._forget_at(now), number))
            else:
                db.execute(tables.EXPIRE, (now, number))

        self._database.write(write)

    def find(self, key: str, /) -> RunRecord | None:
        """The record of a key, or None."""
        return self._stored(tables.FIND, key, self._now())

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Page:
        """The heads of at most 1,000 runs of these workflows that nobody goes on with, the oldest first."""

        def read(db: sqlite3.Cursor) -> list[dict[str, Any]]:
            now = self._now()  # not before: it may have waited, and an owner may have renewed its lease meanwhile
            heads = map(tables.head, db.execute(tables.UNFINISHED, (now, now)))
            return list(itertools.islice((head for head in heads if head.get("workflow") in workflows), _AT_ONCE))

        heads = self._database.read(read)
        return Page(record for head in heads if (record := self._readable(head)) is not None)

    def _readable(self, head: dict[str, Any]) -> RunRecord | None:
        """None, and a warning, for a record that flowcore has not written: it must not keep others from recovering."""
        key = head.get("key", "")
        try:
            return self._encoding.decode(key, head)
        except CorruptRecord as error:
            if key not in self._warned:
                self._warned.add(key)
                _log.warning("%s cannot be recovered: %s", self.path, error)
            return None

    def _stored(self, sql: str, *values: Any) -> RunRecord | None:
        def read(db: sqlite3.Cursor) -> dict[str, Any] | None:
            row = db.execute(sql, values).fetchone()
            return None if row is None else tables.whole(db, row[0], tables.head(row))

        fields = self._database.read(read)
        return None if fields is None else self._encoding.decode(fields.get("key", ""), fields)

    # -- for operators -------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str, /) -> RunRecord:
        """The record of a run; raises RunNotFound."""
        record = self._stored(f"{tables.HEAD} WHERE run_id = ? AND {tables.KEPT}", run_id, self._now())
        if record is None:
            raise RunNotFound(
                f"this store has no run {safe_repr(run_id)}: it is unknown, or was forgotten after its retention."
            )
        return record

    def list_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
    ) -> Page:
        """The records with this status, of this workflow, started so many seconds ago; the oldest first. "held" counts as a
        status, and "expired": running, with an owner whose lease is over."""
        now, where, values = self._now(), [tables.KEPT], list[Any]()
        values.append(now)
        if status == "held":
            where.append("held = 1")
        elif status == "expired":
            where.append("status = 'running' AND coalesce(expires, 0) <= ?")
            values.append(now)
        elif status is not None:
            where.append("status = ?")
            values.append(str(status))
        if workflow is not None:
            where.append("workflow = ?")
            values.append(workflow)
        if older_than is not None:
            where.append("started <= ?")
            values.append(now - microseconds(seconds(older_than, "list_runs(older_than=)")))
        sql = f"SELECT id FROM runs WHERE {' AND '.join(where)} ORDER BY started DESC, id DESC"  # noqa: S608 - words of ours
        numbers = self._database.read(lambda db: db.execute(sql, values).fetchall())
        # One by one, so that engines get a word in between; what is gone meanwhile is left out.
        records = (self._stored(f"{tables.HEAD} WHERE id = ? AND {tables.KEPT}", number, now) for (number,) in numbers)
        return Page(itertools.islice((record for record in records if record is not None), limit))

    def release(self, key: str, /, *, force: bool = False) -> None:
        """Forget the run behind a key, so that the next call starts afresh.

        Raises RunNotFound for an unknown key. Raises StoreError for a run in progress, and CorruptRecord for one that
        cannot be read, unless forced: then its owner, if any, is told at its next word to the store that the run is not
        its own any more.
        """

        def write(db: sqlite3.Cursor) -> None:
            now = self._now()
            number, _ = self._known(db, key, now, "cancel it first, or release it with force=True", running=force)
            db.execute(tables.RELEASE, (now, self._forget_at(now), number))

        try:
            self._database.write(write)
        except CorruptRecord:
            if not force:
                raise
            self._database.write(lambda db: db.execute(tables.RETIRE, (key,)))

    def hold(self, key: str, /) -> None:
        """Refuse the key from now on, until `release`, `resume` or `undo`. Raises RunNotFound for an unknown key, and
        StoreError for a run in progress."""

        def write(db: sqlite3.Cursor) -> None:
            number, record = self._known(db, key, self._now())
            status = Status.PARKED if record.status == Status.RUNNING else record.status
            db.execute(tables.STOP, (str(status), 1, None, number))

        self._database.write(write)

    def resume(self, key: str, /) -> None:
        """Have whoever next calls with the key, or recovers, go on with its run: for one that is held, parked,
        incomplete or whose lease has run out. Raises RunNotFound for an unknown key, StoreError for any other run."""
        self._decide(key, "resume")

    def undo(self, key: str, /) -> None:
        """As `resume`, but the run is undone."""
        self._decide(key, "undo")

    def _decide(self, key: str, decision: str) -> None:
        def write(db: sqlite3.Cursor) -> None:
            number, record = self._known(db, key, self._now())
            goes_on = record.status in RESUMABLE
            if not (goes_on or record.held or record.status == Status.RUNNING):
                raise StoreError(
                    f"key {safe_repr(key)} belongs to run {record.run_id}, which has ended with {record.status}: "
                    f"there is nothing left to {decision}."
                )
            db.execute(tables.STOP, (str(record.status if goes_on else Status.PARKED), 0, decision, number))

        self._database.write(write)

    def _known(
        self, db: sqlite3.Cursor, key: str, now: int, way_out: str = "cancel it first", *, running: bool = False
    ) -> tuple[int, RunRecord]:
        """The row and the head of a key that nobody works on just now, or may be worked on (`running`)."""
        found = tables.found(db, key, now)
        if found is None:
            raise RunNotFound(f"this store knows no key {safe_repr(key)}.")
        number, _, head = found
        record = self._encoding.decode(key, head)
        if record.status == Status.RUNNING and head.get("expires", now) > now and not running:
            raise StoreError(f"key {safe_repr(key)} belongs to run {record.run_id}, which is running: {way_out}.")
        return number, record

    def gc(self) -> int:
        """Forget what is past its retention now; answers how many runs are left."""
        while self._database.write(lambda db: self._forget_some(db, self._now())):
            pass
        return self._count(tables.KEPT, self._now())

    def doctor(self) -> dict[str, str]:
        """What an operator should know of this store. Reads the whole file, and engines of this process wait meanwhile."""
        now, facts = self._now(), self._database.facts()
        waits = "a step's end is on the disk before anything follows from it"
        durability = waits if self.durability == "full" else "a power cut may cost the last moments"
        return {
            "store": self.name,
            "durability": f"{self.durability}: {durability}",
            **facts,
            "retention": f"{self.retention:g} s",
            "runs": str(self._count(tables.KEPT, now)),
            "running": str(self._count("status = 'running' AND expires > ?", now)),
            "expired": str(self._count("status = 'running' AND coalesce(expires, 0) <= ?", now)),
            "to go on with": str(
                self._count(f"status IN ('parked', 'incomplete') AND held = 0 AND {tables.KEPT}", now)
            ),
            "held": str(self._count(f"held = 1 AND {tables.KEPT}", now)),
            "to forget": str(self._count("forget <= ?", now)),
        }

    def close(self) -> None:
        """Close the file; the runs stay in it. Verbs raise StoreError from then on."""
        self._database.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return max(0, int(self._wall() * 1e6))

    def _forget_at(self, now: int) -> int:
        return now + microseconds(self.retention)

    def _forget_some(self, db: sqlite3.Cursor, now: int) -> bool:
        self._written = 0
        return tables.forget(db, now, _BITE)

    def _count(self, where: str, now: int) -> int:
        sql = f"SELECT count(*) FROM runs WHERE {where}"  # noqa: S608 - words of ours
        count: int = self._database.read(lambda db: db.execute(sql, (now,)).fetchone()[0])
        return count


class _Over(NamedTuple):
    """Finished, with the record still to be read, when no other writer waits for that."""

    fields: dict[str, Any]
    age: float
