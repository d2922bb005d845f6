"""The durable store of one machine: an SQLite file, for any number of threads and processes, with no service to run."""

from __future__ import annotations

import functools
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple, cast

from ...errors import DefinitionError, StoreError, safe_repr
from ...retry import Duration, flag, seconds
from ...status import Status
from ..arguments import check_clock
from ..base import (
    LIVE,
    RESUMABLE,
    STOPS,
    Arrived,
    Behind,
    Busy,
    Checkpoint,
    CheckpointAnswer,
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
    Renewal,
    RunRecord,
)
from ..codec import Codec
from ..decide import Verdict, decide, makes_progress, takeover_delay
from ..encoding import MIB, NEVER, Encoding, due, microseconds
from . import tables
from .database import Database
from .operating import FORGET_BATCH, Operating

__all__ = ["SQLiteStore"]

_WEEK: Final = 7 * 24 * 3600.0
_DURABILITIES: Final = ("full", "normal")
_URL: Final = re.compile(r"sqlite:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""how a URL begins; as a path, it would be a new file beside the one that is meant"""


class SQLiteStore(Operating):
    """A store that keeps runs in the SQLite file `path`. If there is no file, it is created for its owner only.
    Thread-safe.

    Any number of processes of one machine may have stores of the same file, and a process may fork. One process writes
    at a time. Others wait for it up to five seconds; then StoreUnavailable is raised, and engines retry. Readers and
    writers do not wait for each other.

    `durability`: with "full", the end of a step is on the disk before anything that follows from it begins, so it
    survives a power cut. With "normal", writes do not wait for the disk: the death of a process loses nothing, but a
    power cut may lose the last moments. `retention`: seconds for which ended runs, and their keys, are kept. `codec`
    (None: JsonCodec): turns what users put into a run into texts (see Codec). `max_value_bytes`: the largest size of
    one value. `traceback`: what is kept of an error's traceback: "keep" for all of it, "line" for the error's class and
    the line that raised it. `shared`: accept a file that other users may write or have made; all of them can forge
    outcomes. `wall`: returns seconds since the epoch, by the clock that all processes of the machine share.

    Raises DefinitionError for an invalid argument, and StoreError if there cannot be such a file.
    """

    name = "sqlite"
    namespace = ""
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
        traceback: Literal["keep", "line"] = "keep",
        shared: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        given = _file_name(path)
        if given in {"", ":memory:"} or given.startswith("file:"):
            raise DefinitionError(
                f"SQLiteStore({safe_repr(given)}) names no file, so its runs would end with this process: name one, or use "
                "MemoryStore()."
            )
        if _URL.match(given):
            raise DefinitionError(
                "SQLiteStore(path) must be a path, not a URL. Open a URL with flowcore.stores.open(url)."
            )
        if durability not in _DURABILITIES:
            raise DefinitionError(f'SQLiteStore(durability=) must be "full" or "normal", not {safe_repr(durability)}.')
        check_clock(wall, "SQLiteStore(wall=)")
        kept = seconds(retention, "SQLiteStore(retention=)")
        encoding = Encoding(codec, max_value_bytes, traceback)
        place = _absolute(given)
        database = Database(
            place,
            tables.SCHEMA,
            full=durability == "full",
            shared=flag(shared, "SQLiteStore(shared=)"),
            prepare=functools.partial(tables.open_seal, sealing=encoding.sealing, where=place),
        )
        super().__init__(database, encoding, kept, durability, wall)

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        """Claim the key for a run, or return why it cannot be claimed: see Store.claim."""
        texts = self._encoding.encode_claim(claim)
        if self._hides:
            claim = replace(claim, key=texts["key"], fingerprint=texts.get("fingerprint"))
        answer = self._database.write(lambda db: self._claim(db, claim, texts), look=True)
        if isinstance(answer, _Over):
            return Finished(self._encoding.decode(claim.key, answer.fields, claim.types), answer.age)
        return answer

    def _claim(self, db: sqlite3.Cursor, claim: Claim, texts: dict[str, str]) -> ClaimAnswer | _Over:
        now = self._now()
        self._forget_some(db, now)
        self._renew_secret(db)
        found = tables.found(db, claim.key, now)
        if found is None:
            return self._begin(db, claim, texts, now, generation=0, fence=now)
        number, lease, head = found
        record = self._encoding.decode(claim.key, head)
        age, left = max(0.0, now / 1e6 - record.started), head.get("expires", now) - now
        if record.status == Status.WAITING:
            left = head.get("not_before", now) - now
        match decide(record, head["owner"], left, claim):
            case Verdict.BEGIN | Verdict.BEGIN_ANEW:
                fence = max(record.fence + 1, now)
                return self._begin(db, claim, texts, now, generation=record.generation + 1, fence=fence)
            case Verdict.BEGIN_QUEUED:
                expires, length = tables.until(now, claim.lease)
                db.execute(tables.BEGIN_QUEUED, (texts.get("seq", 0), expires, length, expires, number))
                begun = {n: t for n, t in texts.items() if n[1] == ":" or n in {"graph", "carrier"}}
                self._written += tables.put(db, number, begun)
                return Claimed(record.generation, record.fence, None, age, now / 1e6)
            case Verdict.AGAIN:
                as_found = None if record.run_id == claim.run_id else self._as_found(db, claim, number, head)
                self._renew(db, (number, head.get("delay", 0)), now, claim.lease)
                return Claimed(record.generation, record.fence, as_found, age, now / 1e6)
            case Verdict.RESUME:
                return self._take_over(db, claim, texts, now, found, record.takeovers)
            case Verdict.TAKE_OVER:
                return self._take_over(db, claim, texts, now, found, record.takeovers + 1)
            case Verdict.FINISHED:
                return _Over(tables.whole(db, number, head), age)
            case Verdict.MISMATCH:
                return Mismatch(record.run_id, record.carrier, age, record.workflow, record.fingerprint is None)
            case Verdict.HELD:
                return Held(record.run_id, record.carrier, age)
            case Verdict.OTHER_GRAPH:
                return OtherGraph(record.run_id, record.graph)
            case Verdict.BUSY if record.status == Status.WAITING:
                due_in = math.inf if record.not_before == math.inf else left / 1e6
                return Busy(record.run_id, record.carrier, age, due_in, record.waiting_for, record.not_before)
            case Verdict.BUSY:
                if left > lease:  # the clock was set back, so the lease begins again
                    left = lease
                    db.execute(tables.EXPIRE, (now + lease, now + lease, number))
                return Busy(record.run_id, record.carrier, age, left / 1e6)

    def _begin(
        self, db: sqlite3.Cursor, claim: Claim, texts: dict[str, str], now: int, *, generation: int, fence: int
    ) -> Claimed:
        db.execute(tables.RETIRE, (claim.key,))
        number = tables.add(db, texts, generation, fence, now, claim.lease)
        self._written += tables.put(db, number, texts)
        return Claimed(generation, fence, now=now / 1e6)

    def _take_over(
        self,
        db: sqlite3.Cursor,
        claim: Claim,
        texts: dict[str, str],
        now: int,
        found: tuple[int, int, dict[str, Any]],
        takeovers: int,
    ) -> Claimed:
        number, _, head = found
        # The whole record is read before it is changed, so that a record that cannot be read stays as it is.
        fields = tables.whole(db, number, head) | {"graph": claim.graph, "takeovers": takeovers}
        record = self._encoding.decode(claim.key, fields, claim.types)
        fence, delay = max(record.fence + 1, now), microseconds(takeover_delay(takeovers, claim.lease))
        expires, length = tables.until(now, claim.lease)
        owner = claim.run_id, texts.get("by"), now
        db.execute(tables.TAKE_OVER, (*owner, fence, takeovers, delay, expires, length, expires + delay, number))
        db.execute(tables.PUT, (number, "graph", claim.graph))
        return Claimed(record.generation, fence, record, max(0.0, now / 1e6 - record.started), now / 1e6)

    def _as_found(self, db: sqlite3.Cursor, claim: Claim, number: int, head: dict[str, Any]) -> RunRecord:
        """Return the record as its present owner found it, with everything that was recorded since."""
        fields = tables.whole(db, number, head)
        fields |= {name: fields.pop(f"before_{name}", None) for name in ("status", "expires", "by", "since")}
        known = {name: value for name, value in fields.items() if value is not None}
        return self._encoding.decode(claim.key, known, claim.types)

    def _renew(self, db: sqlite3.Cursor, row: tuple[int, int], now: int, lease: float) -> None:
        number, delay = row
        expires, length = tables.until(now, lease)
        db.execute(tables.RENEW, (expires, length, expires + delay, number))

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        """Record what has changed in a run, and renew its lease."""
        texts, lease = self._encoding.encode_checkpoint(checkpoint), microseconds(checkpoint.lease)
        owner = self._lookup(checkpoint.key), checkpoint.run_id, checkpoint.fence

        def write(db: sqlite3.Cursor) -> CheckpointAnswer:
            row = db.execute(tables.OWNED, owner).fetchone()
            if row is None:
                return self._refused(db, *owner)
            number, decision, seq, troubled, delay, due_at, _ = row
            if seq < checkpoint.base and not checkpoint.heals:
                return Behind(seq)
            now = self._now()
            expires = now + lease
            self._written += tables.put(db, number, texts)
            order = None if checkpoint.undoing else STOPS.get(decision)
            row = (expires, lease, checkpoint.undoing, None if order is None else decision, texts.get("seq", 0), number)
            db.execute(tables.CHECKPOINT, row)
            if troubled and makes_progress(checkpoint):
                db.execute(tables.PROGRESS, (expires, number))
            elif due_at is None or expires + delay < due_at:
                db.execute(tables.DUE, (expires + delay, number))
            if self._written >= FORGET_BATCH:
                self._forget_some(db, now)
            return order

        return self._database.write(write)

    def finish(self, ending: Ending, /) -> Behind | Lost | Arrived | None:
        """Record how a run ended, or that it only waits from now on."""
        record, changes, texts = ending.record, ending.changes, self._encoding.encode_ending(ending)
        owner = self._lookup(record.key), record.run_id, record.fence
        waiting = record.status == Status.WAITING
        resumable = record.status in RESUMABLE or waiting

        def write(db: sqlite3.Cursor) -> Behind | Lost | Arrived | None:
            row = db.execute(tables.OWNED, owner).fetchone()
            if row is None:
                return self._refused(db, *owner)
            number, decision, seq, _, _, _, received = row
            if changes is not None and seq < changes.base and not changes.heals:
                return Behind(seq)
            if waiting and (received > ending.received or decision in STOPS):
                return Arrived()
            now = self._now()
            db.execute(tables.CLEAR, (number,))
            self._written += tables.put(db, number, texts)
            not_before = due(now, ending.retry_in) if resumable else None
            waits = resumable and not record.held and not_before != NEVER
            failed = record.status == Status.FAILURE
            end = (
                *(texts["status"], record.held, texts.get("undoing") == "1", failed, texts["reason"], record.retries),
                *(not makes_progress(changes), texts.get("seq", 0), None if waiting else now, not_before),
                *((now if not_before is None else not_before) if waits else None,),
                None if record.held or resumable else self._forget_at(now),
            )
            db.execute(tables.FINISH, (*end, number))
            return None

        return self._database.write(write)

    def _refused(self, db: sqlite3.Cursor, key: str, run_id: str, fence: int) -> Lost | None:
        """Return why a write was refused: Lost, or None if the run has ended and this is a late copy of a write."""
        found = tables.found(db, key, 0)
        if found is None:
            return Lost(gone=True)
        # A record with an unexpected format is never treated as owned: decoding it raises CorruptRecord.
        record = self._encoding.decode(key, found[2])
        return None if (record.run_id, record.fence) == (run_id, fence) else Lost()

    def renew(self, leases: Sequence[Lease], lease: float, /) -> list[Renewal]:
        """Renew these leases for `lease` seconds from now. Returns for each whether its owner still has the run."""

        def write(db: sqlite3.Cursor) -> list[Renewal]:
            now = self._now()
            return [self._renewed(db, one, now, lease) for one in leases]

        return self._database.write(write, look=True)

    def _renewed(self, db: sqlite3.Cursor, one: Lease, now: int, lease: float) -> Renewal:
        row = db.execute(tables.OWNED, (self._lookup(one.key), one.run_id, one.fence)).fetchone()
        if row is None:
            return Renewal.LOST
        number, decision, _, _, delay, _, received = row
        self._renew(db, (number, delay), now, lease)
        return STOPS.get(decision) or (Renewal.SENT if received > one.received else Renewal.OURS)

    def withdraw(self, claim: Claim, /) -> None:
        """Withdraw a claim whose reply was lost, if it was granted."""

        def write(db: sqlite3.Cursor) -> None:
            now = self._now()
            found = tables.found(db, self._lookup(claim.key), now)
            if found is None or found[2].get("owner") != claim.run_id:
                return
            number, _, head = found
            record = self._encoding.decode(claim.key, head)
            if record.status not in LIVE:
                return
            if record.run_id == claim.run_id:
                db.execute(tables.RELEASE, (now, self._forget_at(now), number))
            else:
                db.execute(tables.WITHDRAW, (now, now, now, number))

        self._database.write(write)


def _file_name(path: object) -> str:
    """Return the path as a str. Raises DefinitionError if no file can have it."""
    try:
        name = os.fsdecode(cast("str", path))
        if b"\0" not in os.fsencode(name):
            return name
    except (TypeError, ValueError):
        pass
    raise DefinitionError(f"SQLiteStore(path) must be the path of a file, not {safe_repr(path)}.")


def _absolute(name: str) -> str:
    """Return the absolute path. Symbolic links are not resolved, because the user may change them. Raises StoreError."""
    try:
        return os.path.abspath(name)  # noqa: PTH100 - see above
    except FileNotFoundError:
        raise StoreError(
            f"SQLiteStore cannot find {safe_repr(name)}, because the current folder of this process was removed: give an "
            "absolute path."
        ) from None


class _Over(NamedTuple):
    """A Finished whose record is decoded after the transaction, so that no other writer waits for that."""

    fields: dict[str, Any]
    age: float
