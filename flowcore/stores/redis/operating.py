"""The verbs of a Redis store that recovery and operators use."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...errors import CorruptRecord, StoreError, StoreUnavailable, hashed_key, safe_repr
from ...retry import Duration, flag, seconds
from ...run import Sent, names_of_sent
from ..arguments import check_listing, check_resumable, check_run_id
from ..base import Page, RunRecord
from ..decide import OPEN, decide_send, has_wait, is_over, unknown_key, unknown_run
from ..encoding import microseconds
from . import doctor, index_scripts, operator_scripts
from .calls import INDEX_KEYS, PAGE, Call, Calls, Exchange, as_bytes, digest_of, in_pages
from .listing import Entry, Listing, cursor_of, parsed_cursor
from .lua import DIGEST, LETTERS

if TYPE_CHECKING:
    from ...step import Step

__all__ = ["OperatorVerbs"]

_STATUSES: Final = {letter: status for status, letter in LETTERS.items()} | {"h": "held", "e": "expired"}
_LIVE: Final = frozenset({"running", "queued"})
_COUNTED: Final = 16  # the most shards that one script counts: Redis serves no other client meanwhile
_REMEMBERED: Final = 1000  # the most unreadable records that are remembered, so that each is logged once
_log = logging.getLogger("flowcore")


class OperatorVerbs(Calls):
    """The verbs for listings, for values that are sent, and for operators' decisions."""

    def _look(self) -> Exchange[None]:
        """Check the prefix once before a verb reads: with another number of shards it would find only some runs."""
        if not self._entered and not self._looked:
            self._looked = yield from self._enter(writes=False)

    # -- listings ------------------------------------------------------------------------------------------------------

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Exchange[Page]:
        """Return the heads of the resumable runs of these workflows that have no live owner and whose `not_before` is
        past, the longest due first. `after`: the cursor of the previous page. An unreadable record is logged once and
        left out."""
        check_resumable(workflows, limit)
        yield from self._look()
        page, cursor = Page(), parsed_cursor(after)
        shards = (yield from self._due_shards()) if workflows else []
        listing = Listing(index_scripts.DUE, (b"open", b"index"), cursor, list(map(as_bytes, workflows)), shards)
        yield from self._fill(page, listing, limit, self._is_due)
        return page

    def _due_shards(self) -> Exchange[list[int]]:
        """Return the shards in which a run is due. Mostly there is none, and recovery costs no more than this."""
        replies = yield from self._run_all(
            index_scripts.DUE_SHARDS, [(keys, ()) for _, keys in self._opens], reads=True
        )
        return [shards[place - 1] for (shards, _), reply in zip(self._opens, replies, strict=True) for place in reply]

    def _is_due(self, record: RunRecord, now: int) -> bool:
        if record.problem is not None:
            if len(self._unreadable) < _REMEMBERED and (known := hashed_key(record.run_id)) not in self._unreadable:
                self._unreadable.add(known)
                _log.warning("run %s cannot be recovered: %s", safe_repr(record.run_id), record.problem)
            return False
        due = record.not_before
        if due is None and record.status in _LIVE:
            due = record.expires
        return not record.held and not is_over(record.status) and (due or 0.0) <= now / 1e6 + 1e-6

    def list_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
        after: str | None = None,
        text: str | None = None,
    ) -> Exchange[Page]:
        """Return a page of runs, newest first, without values, results and steps (`get_run` returns these). `status`: a
        status of runs, "held", or "expired" for running ones whose lease has expired; `older_than`: the fewest seconds
        since they started; `text`: a part of their keys, for which all records are read until the page is full, a
        few at a time; `limit=None`: all. A record that cannot be read is listed with its `problem`.

        Raises DefinitionError for an unknown status.
        """
        check_listing(status, workflow, limit, text)
        age = 0 if older_than is None else microseconds(seconds(older_than, "list_runs(older_than=)"))
        letters = {None: "", "held": "", "expired": "r"}.get(status, LETTERS.get(status or "", ""))
        only = {"held": "h", "expired": "e"}.get(status or "", "")
        arguments = [age, letters, only, "" if workflow is None else "=" + workflow]
        yield from self._look()
        listing = Listing(
            index_scripts.LIST,
            (b"started", b"open", b"index", b"statuses"),
            parsed_cursor(after),
            arguments,
            range(self._shards),
            newest=True,
        )
        page = Page()

        def wanted(record: RunRecord, now: int) -> bool:
            if record.problem is not None:
                return True
            return (status is None or _counts_as(record, status, now)) and (text is None or text in record.key)

        yield from self._fill(page, listing, limit, wanted)
        return page

    def _fill(
        self, page: Page, listing: Listing, limit: int | None, wanted: Callable[[RunRecord, int], bool]
    ) -> Exchange[None]:
        """Read runs from a listing until the page is full. The page gets a cursor if there is a next one."""
        number, last = PAGE if limit is None else min(PAGE, limit + 1), ""
        while entries := (yield from self._next(listing, number)):
            for entry, now, record in (yield from self._heads(entries)):
                if wanted(record, now):
                    if len(page) == limit:
                        page.cursor = last
                        return
                    page.append(record)
                    last = cursor_of(entry)
            number = PAGE

    def _next(self, listing: Listing, number: int) -> Exchange[list[Entry]]:
        """Return the next `number` entries of a listing, merged from all shards, or fewer at its end."""
        taken: list[Entry] = []
        while True:
            taken += listing.take(number - len(taken))
            if len(taken) == number:
                return taken
            for cursor, shards in listing.wanting():
                for some in in_pages(shards, self._at_once):
                    keys = [self._prefixes[shard] + name for shard in some for name in listing.names]
                    listing.calls.append((some, (keys, listing.arguments_from(cursor, shards, number))))
            if not listing.calls:
                return taken
            replies = yield from self._run_all(listing.script, [call for _, call in listing.calls], reads=True)
            listing.add(replies)

    def counts(self) -> Exchange[dict[tuple[str, str], int]]:
        """Count the runs that are not over, by workflow and status: queued, running, waiting, expired, parked,
        incomplete or held. The cost grows with the number of workflows, not with that of runs."""
        yield from self._look()
        try:
            yield from self._complete((yield from self._incomplete()))
        except StoreError as error:  # e.g. a read-only user: then COUNT reads every run of those shards
            _log.debug("the index of an earlier release was not completed: %s", error)
        calls: list[Call] = []
        for some in in_pages(list(range(self._shards)), _COUNTED):
            calls += [(keys, []) for _, keys in self._over_shards(some, b"open", b"index", b"statuses")]
        numbers: dict[tuple[str, str], int] = {}
        for reply in (yield from self._run_all(index_scripts.COUNT, calls, reads=True)):
            for workflow, letter, number in zip(reply[::3], reply[1::3], reply[2::3], strict=True):
                name = workflow.decode(errors="replace"), _STATUSES[letter.decode()]
                numbers[name] = numbers.get(name, 0) + number
        return numbers

    def get_run(self, run_id: str, /) -> Exchange[RunRecord]:
        """Return the record of a run. Raises RunNotFound."""
        check_run_id(run_id)
        yield from self._look()
        groups = list(self._over_shards(range(self._shards), b"index"))
        calls: list[Call] = [(keys, [run_id]) for _, keys in groups]
        replies = yield from self._run_all(index_scripts.LOCATE, calls, reads=True)
        for (shards, _), reply in zip(groups, replies, strict=True):
            for shard, entry in zip(shards, reply, strict=True):
                if entry:
                    place = shard, entry[:DIGEST]
                    (found,) = yield from self._read([place], heads=False)
                    key = self._key_of(found, place)
                    record = self._record(key, found)
                    if record is not None and record.run_id == run_id:
                        return record
        raise unknown_run(run_id)

    def _heads(self, entries: Sequence[Entry]) -> Exchange[list[tuple[Entry, int, RunRecord]]]:
        """Return the heads of these runs in order, each with its entry and the server's time in microseconds (0 where
        the record cannot be read). Entries whose record is gone are removed from the index."""
        found: list[tuple[Entry, int, RunRecord]] = []
        gone: list[Entry] = []
        replies = yield from self._read([(entry.shard, entry.digest) for entry in entries], heads=True)
        for entry, reply in zip(entries, replies, strict=True):
            key = self._key_of(reply, (entry.shard, entry.digest))
            try:
                answer = self._answer(reply, key)
                record = None if answer.word == "missing" else self._encoding.decode(key, answer.fields)
            except CorruptRecord as error:
                found.append((entry, 0, _unreadable(key, entry, str(error))))
                continue
            if record is not None and as_bytes(record.run_id) == entry.run_id:
                found.append((entry, answer.now, record))
            else:
                gone.append(entry)
        try:
            yield from self._forget(gone)
        except StoreError as error:  # e.g. a read-only user
            _log.debug("entries of %d vanished runs stay in the index: %s", len(gone), error)
        return found

    def _key_of(self, reply: Sequence[bytes], place: tuple[int, bytes]) -> str:
        """Return the idempotency key that a record names, or its Redis key if it is not the record of that key."""
        try:
            key = self._field(reply, b"key")
        except ValueError:
            key = b""
        return (key if digest_of(key) == place[1] else self._run_key(*place)).decode(errors="replace")

    # -- the index -----------------------------------------------------------------------------------------------------

    def _forget(self, entries: Collection[Entry]) -> Exchange[int]:
        """Remove those of these entries that no longer have a record from the index. Returns how many it removed."""
        by_shard: dict[int, list[Entry]] = {}
        for entry in entries:
            by_shard.setdefault(entry.shard, []).append(entry)
        calls: list[Call] = []
        for shard, those in by_shard.items():
            for page in in_pages(those, PAGE):
                names = [self._prefixes[shard] + name for name in INDEX_KEYS]
                runs = [self._run_key(shard, entry.digest) for entry in page]
                calls.append(([*names, *runs], [entry.run_id for entry in page]))
        replies = yield from self._run_all(index_scripts.FORGET, calls)
        return sum(gone for (gone,) in replies)

    def _incomplete(self) -> Exchange[list[int]]:
        """Return the shards in which an earlier release has written runs that `statuses` lacks."""
        groups = list(self._over_shards(range(self._shards), b"open", b"index", b"statuses"))
        replies = yield from self._run_all(index_scripts.INCOMPLETE, [(keys, ()) for _, keys in groups], reads=True)
        return [shards[place] for (shards, _), reply in zip(groups, replies, strict=True) for place in reply]

    def _complete(self, shards: Collection[int]) -> Exchange[None]:
        """Correct `statuses` in these shards, a page at a time, so that owners can write in between."""
        for part in ("open", "statuses"):
            places = dict.fromkeys(shards, 0)
            while places:
                calls: list[Call] = []
                for shard, first in places.items():
                    names = (b"open", b"started", b"index", b"statuses")
                    calls.append(([self._prefixes[shard] + name for name in names], [part, first]))
                replies = yield from self._run_all(index_scripts.COMPLETE, calls)
                places = {shard: place for shard, place in zip(places, replies, strict=True) if place >= 0}

    def gc(self) -> Exchange[int]:
        """Remove runs whose records are gone from the index, and correct what an earlier release wrote into it. Returns
        how many runs are left. Redis itself deletes a record at the end of its retention."""
        yield from self._look()
        yield from self._complete(range(self._shards))
        left = 0
        places = dict.fromkeys(range(self._shards), -1)  # first the runs without a place in the order of runs
        while places:
            calls: list[Call] = []
            for shard, first in places.items():
                keys = [self._prefixes[shard] + name for name in INDEX_KEYS[:4]]
                calls.append((keys, [first]))
            replies = yield from self._run_all(index_scripts.MEMBERS, calls)
            places, asked = {}, places
            for (shard, first), (more, *texts) in zip(asked.items(), replies, strict=True):
                entries = [Entry(shard, one, text[:DIGEST], "0") for one, text in _pairs(texts)]
                gone = yield from self._forget(entries)
                left += len(entries) - gone
                if more:
                    places[shard] = 0 if first < 0 else first + PAGE - gone
        return left

    def doctor(self, *, deep: bool = False) -> Exchange[dict[str, str | int | float]]:
        """Return what an operator should know about this store, and how many runs are not over, by status. "unknown":
        the server does not report it, or an ACL forbids the question. `deep` has no effect: Redis cannot check its
        data."""
        known: dict[str, str | int | float] = {**(yield from doctor.examine())}
        known["shards"] = self._shards
        try:
            counts = yield from self.counts()
        except StoreUnavailable:  # e.g. a user who may not run scripts
            return {**known, **dict.fromkeys(OPEN, "unknown")}
        return {**known, **{word: sum(n for (_, status), n in counts.items() if status == word) for word in OPEN}}

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
    ) -> Exchange[bool]:
        """Send a value to the wait `name` of the run with this key. The run keeps the value until it reaches that wait.
        Returns whether the value counts: see Store.send."""
        name, id = names_of_sent(name, id, carrier)  # noqa: A001
        yield from self._look()
        digest = digest_of(as_bytes(self._lookup(key)))
        place = self._shard(digest), digest
        while True:
            (reply,) = yield from self._read([place], heads=True)
            record = self._record(key, reply)
            if record is None:
                raise unknown_key(key)
            now = self._answer(reply, key).now / 1e6
            sent = Sent(value, now, socket.gethostname(), os.getpid(), id, carrier or {})
            text = self._encoding.encode_sent(name, sent, record.run_id)
            if not has_wait(record.graph, name):
                decide_send(record, name, id, known=False, known_id=None, step=None)
            answer = yield from self._run(
                operator_scripts.SEND, key, self._keys(self._lookup(key)), record.run_id, name, text
            )
            if answer.word == "done":
                return True
            if answer.word == "known":
                known, step = ([answer.fields[name]] if answer.fields[name] else None for name in ("sent", "step"))
                counts = decide_send(record, name, id, **self._encoding.decode_wait(record, name, known, step))
                if counts is not None:
                    return counts

    # -- operators -----------------------------------------------------------------------------------------------------

    def release(self, key: str, /, *, force: bool = False) -> Exchange[None]:
        """Give up the run of a key, so that the next call starts afresh. Its record stays until its retention is over.

        Raises RunNotFound for an unknown key, StoreError for a run in progress, and CorruptRecord for a record that
        cannot be read. With `force`, such a run is given up too, and its owner is fenced off; such a record is deleted.
        """
        forced = flag(force, "release(force=)")
        way_out = "cancel it first, or release it with force=True"
        yield from self._decide(
            operator_scripts.RELEASE, "release", key, "1" if forced else "", self._retention, way_out
        )

    def erase(self, key: str, /, *, force: bool = False) -> Exchange[None]:
        """Erase at once what users put into the run of a key: see Store.erase. Redis's own files still contain it until
        Redis rewrites them (BGREWRITEAOF, BGSAVE).

        Raises RunNotFound for an unknown key, StoreError for a run that is not over or is held, and CorruptRecord for a
        record that cannot be read. With `force`, such a run is released first, and such a record is deleted.
        """
        forced = flag(force, "erase(force=)")
        way_out = "end it first, or erase it with force=True"
        yield from self._decide(operator_scripts.ERASE, "erase", key, "1" if forced else "", self._retention, way_out)

    def hold(self, key: str, /, reason: str | None = None) -> Exchange[None]:
        """Hold the key, so that calls with it are refused until `release`, `resume` or `undo`. `reason` is kept in the
        record. Raises RunNotFound for an unknown key, and StoreError for a run in progress."""
        yield from self._order("hold", key, reason)

    def resume(self, key: str, /, *, reason: str | None = None) -> Exchange[None]:
        """Let the next caller, or recovery, resume a run that is held, parked or incomplete, has no live owner, or
        failed with nothing undone. Raises RunNotFound for an unknown key, and StoreError for any other run."""
        yield from self._order("resume", key, reason)

    def undo(self, key: str, /, *, reason: str | None = None) -> Exchange[None]:
        """Let the next caller, or recovery, undo a run, past its pivot too. A running run is cancelled and undone by
        its owner. Raises RunNotFound for an unknown key, and StoreError for a run that is over and not held."""
        yield from self._order("undo", key, reason)

    def cancel(self, key: str, /, *, reason: str | None = None) -> Exchange[None]:
        """Cancel a run. Its owner learns of it from its next renewal or checkpoint; a run without a live owner is
        cancelled by its next one. A run past its pivot is left incomplete. Raises RunNotFound for an unknown key, and
        StoreError for a run that is over and not held."""
        yield from self._order("cancel", key, reason)

    def _order(self, verb: str, key: str, reason: str | None) -> Exchange[None]:
        way_out = "cancel it first"
        yield from self._look()
        reason = self._encoding.encode_reason(key, reason)
        yield from self._decide(operator_scripts.DECIDE, verb, key, verb, reason, way_out)

    def _decide(self, script: Any, verb: str, key: str, first: str, second: str | int, way_out: str) -> Exchange[None]:
        yield from self._look()
        answer = yield from self._run(script, key, self._keys(self._lookup(key)), first, second)
        if answer.word == "missing":
            raise unknown_key(key)
        if answer.word == "done":
            return
        record = self._encoding.decode(key, answer.fields)
        if answer.word == "busy":
            raise StoreError(
                f"key {hashed_key(key)} belongs to run {record.run_id}, which is {record.status}: {way_out}.", key=key
            )
        raise StoreError(
            f"key {hashed_key(key)} belongs to run {record.run_id}, which has ended with {record.status}: there is nothing left "
            f"to {verb}.",
            key=key,
        )


def _unreadable(key: str, entry: Entry, problem: str) -> RunRecord:
    return RunRecord(
        key,
        entry.run_id.decode(errors="replace"),
        entry.workflow.decode(errors="replace"),
        None,
        "",
        started=float(entry.score) / 1e6,
        problem=problem,
    )


def _counts_as(record: RunRecord, status: str, now: int) -> bool:
    """Whether a listing of this status includes the run."""
    if status == "held":
        return record.held
    if status == "expired":
        return record.status == "running" and (record.expires or 0.0) * 1e6 <= now
    return record.status == status


def _pairs(texts: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(texts[::2], texts[1::2], strict=True)
