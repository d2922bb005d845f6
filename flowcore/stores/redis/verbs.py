"""What the Redis stores do, whichever way their client does its I/O.

Each verb is a generator: it yields commands for the server, is sent their replies, and returns the verb's answer. A reply
is what the client answered, or the exception that it raised. No I/O here: it is all in redis.py.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from ...errors import CorruptRecord, DefinitionError, RunNotFound, StoreError, safe_repr
from ...retry import Duration, seconds
from ...status import Status
from ..base import (
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
from ..encoding import Encoding, microseconds
from . import doctor, scripts
from .errors import is_unknown_script, refuse
from .scripts import Script

__all__ = ["Asked", "Command", "Verbs"]

T = TypeVar("T")
Part: TypeAlias = "str | bytes | int"
Command: TypeAlias = "tuple[Part, ...]"
Asked: TypeAlias = Generator[list[Command], list[Any], T]
"""Yields commands to be sent together, and is sent their replies."""
Call: TypeAlias = "tuple[Sequence[bytes], Sequence[Part]]"
"""a script's KEYS and ARGV"""

_FOREVER: Final = 50 * 365 * 24 * 3600.0  # seconds; a lease that ends later was given without an end
_AT_ONCE: Final = 1000  # runs that `unfinished` answers with
_PAGE: Final = 200  # runs that one script looks at: Redis does nothing else meanwhile
_OPEN_ONLY: Final = frozenset({"running", "incomplete", "parked", "held", "expired"})
_log = logging.getLogger("flowcore")


@dataclass(slots=True)
class _Answer:
    """What a script told of a record."""

    word: str
    now: int
    fields: dict[str, str]

    @property
    def age(self) -> float:
        """Seconds since the run began."""
        return max(0, self.now - int(self.fields["started"])) / 1e6


@dataclass(slots=True)
class _Entry:
    """A member of an index: of its shard, the text itself, and the Redis key that it stands for."""

    shard: int
    member: bytes
    run: bytes

    def is_of(self, record: RunRecord) -> bool:
        """Whether it stands for this run: another may have come to its key."""
        run_id = _bytes(record.run_id)
        return self.member[64:] == b"%d:%b%b" % (len(run_id), run_id, _bytes(record.workflow))


class Verbs:
    """The verbs of a Redis store as generators. What it remembers of its server is that it has looked at it once."""

    def __init__(
        self,
        store: str,
        prefix: str,
        retention: Duration,
        codec: Codec | None,
        max_value_bytes: int,
        shards: int,
    ) -> None:
        if not isinstance(prefix, str) or not prefix or not _is_text(prefix):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"{store}(prefix=) must be a string that is not empty, not {safe_repr(prefix)}.")
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= 16384:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"{store}(shards=) must be a whole number from 1 to 16,384, not {safe_repr(shards)}.")
        self._encoding = Encoding(codec, max_value_bytes)
        self._retention = max(1, microseconds(seconds(retention, f"{store}(retention=)")) // 1000)
        self._shards = shards
        # The first "}" of a key ends what decides on its slot: a prefix must bring none.
        safe = prefix.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        self._prefixes = [f"{{{safe}:{shard}}}:".encode() for shard in range(shards)]
        self._entered = self._examined = False
        self._keys = functools.lru_cache(_AT_ONCE)(self._keys_of)

    # -- for engines ---------------------------------------------------------------------------------------------------

    def claim(self, claim: Claim, /) -> Asked[ClaimAnswer]:
        """Take the key, or tell who has it."""
        fields = self._encoding.encode_claim(claim)
        fingerprint = "" if claim.fingerprint is None else f"={claim.fingerprint}"
        attached = "" if claim.attached is None else f"={claim.attached}"
        head = (claim.run_id, fingerprint, claim.graph, attached, microseconds(claim.lease))
        if not self._entered:
            yield from self._enter()
        keys, seen = self._keys(claim.key), ""
        while True:
            answer = yield from self._run(scripts.CLAIM, claim.key, keys, *head, seen, *_flat(fields))
            if answer.word != "look":
                return self._claimed(claim, answer)
            # Nothing is changed in a record before it is sure that it can be read.
            self._encoding.decode(claim.key, answer.fields, claim.types)
            seen = answer.fields["fence"]

    def _claimed(self, claim: Claim, answer: _Answer) -> ClaimAnswer:
        fields = answer.fields
        if answer.word == "begun":
            return Claimed(int(fields["generation"]), int(fields["fence"]), None, answer.age)
        if answer.word in {"taken", "again"}:
            fence = int(fields.pop("granted"))
            if answer.word == "again":  # it is told as it was before
                fields["status"] = fields["before_status"]
                fields.pop("expires", None)
                if "before_expires" in fields:
                    fields["expires"] = fields["before_expires"]
            record = self._encoding.decode(claim.key, fields, claim.types)
            return Claimed(record.generation, fence, record, answer.age)
        record = self._encoding.decode(claim.key, fields, claim.types)
        match answer.word:
            case "finished":
                return Finished(record, answer.age)
            case "mismatch":
                return Mismatch(record.run_id, record.carrier, answer.age, record.workflow)
            case "held":
                return Held(record.run_id, record.carrier, answer.age)
            case "busy":
                left = (record.expires or 0.0) - answer.now / 1e6
                return Busy(record.run_id, record.carrier, answer.age, math.inf if left > _FOREVER else left)
            case _:  # "graph"
                return OtherGraph(record.run_id, record.graph)

    def checkpoint(self, checkpoint: Checkpoint, /) -> Asked[Lost | None]:
        """Note what has changed in a run, and renew its lease."""
        fields = self._encoding.encode_checkpoint(checkpoint)
        head = (_bytes(checkpoint.run_id), checkpoint.fence, microseconds(checkpoint.lease))
        keys = self._keys(checkpoint.key)[:2]
        return (yield from self._write(scripts.CHECKPOINT, checkpoint.key, keys, head, fields))

    def renew(self, leases: Sequence[Lease], lease: float, /) -> Asked[list[Renewal]]:
        """Renew these leases for `lease` seconds from now, all in one round trip a node; tells for each whether the run is
        still its owner's."""
        if not leases:
            return []
        ours = [Renewal.LOST] * len(leases)
        by_shard: dict[int, list[int]] = {}
        runs = [self._run_key(one.key) for one in leases]
        for index, (shard, _) in enumerate(runs):
            by_shard.setdefault(shard, []).append(index)
        calls: list[Call] = []
        asked: list[list[int]] = []
        for shard, indices in by_shard.items():
            for page in _pages(indices):
                keys = [self._prefixes[shard] + b"open", *(runs[index][1] for index in page)]
                owners = [part for index in page for part in (_bytes(leases[index].run_id), leases[index].fence)]
                calls.append((keys, [microseconds(lease), *owners]))
                asked.append(page)
        replies = yield from self._run_all(scripts.RENEW, calls)
        for page, reply in zip(asked, replies, strict=True):
            for index, answer in zip(page, reply, strict=True):
                ours[index] = Renewal.OURS if answer else Renewal.LOST
        return ours

    def finish(self, ending: Ending, /) -> Asked[Lost | None]:
        """Write down how a run ended."""
        record = ending.record
        fields = self._encoding.encode_ending(ending)
        kept = record.held or record.status in RESUMABLE
        head = (_bytes(record.run_id), record.fence, b"" if kept else self._retention, int(record.held))
        keys = self._keys(record.key)
        return (yield from self._write(scripts.FINISH, record.key, keys, head, fields))

    def withdraw(self, claim: Claim, /) -> Asked[None]:
        """Undo a claim whose answer never came, should it have been granted."""
        keys = self._keys(claim.key)
        yield from self._run(scripts.WITHDRAW, claim.key, keys, claim.run_id, self._retention)

    def find(self, key: str, /) -> Asked[RunRecord | None]:
        """The record under a key, or None."""
        _, run = self._run_key(key)
        (reply,) = (yield from self._run_all(scripts.READ, [([run], [""])], key))[0]
        answer = self._told(reply, key)
        return None if answer.word == "missing" else self._encoding.decode(key, answer.fields)

    def list_resumable(
        self, workflows: Collection[str], /, *, limit: int | None = 100, after: str | None = None
    ) -> Asked[Page]:
        """The runs of these workflows to go on with that nobody goes on with; the oldest first, at most 1,000. Their heads
        only: without steps and values."""
        wanted = [_bytes(workflow) for workflow in workflows]
        ranks: dict[int, bytes] = dict.fromkeys(range(self._shards), b"0")
        found: list[RunRecord] = []
        while ranks:
            calls: list[Call] = [
                ([self._prefixes[shard] + b"open"], [rank, _AT_ONCE, *wanted]) for shard, rank in ranks.items()
            ]
            replies = yield from self._run_all(scripts.DUE, calls)
            due: list[_Entry] = []
            left: dict[int, bytes] = {}
            for shard, (rank, *members) in zip(ranks, replies, strict=True):
                due += (self._entry(shard, member) for member in members)
                if rank:
                    left[shard] = rank
            for answer, record in (yield from self._heads(due, skip=True)):
                if not record.held and (record.status in RESUMABLE or _expired(record, answer.now)):
                    found.append(record)
            ranks = left if len(found) < _AT_ONCE else {}
        found.sort(key=lambda record: record.started)
        return Page(found[:_AT_ONCE])

    # -- for operators -------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str, /) -> Asked[RunRecord]:
        """The record of a run; raises RunNotFound."""
        calls: list[Call] = [([prefix + b"ids"], [_bytes(run_id)]) for prefix in self._prefixes]
        replies = yield from self._run_all(scripts.LOCATE, calls)
        for prefix, reply in zip(self._prefixes, replies, strict=True):
            for sha in reply:
                run = prefix + b"run:" + sha
                (found,) = (yield from self._run_all(scripts.READ, [([run], [""])]))[0]
                key = _key_of(found, run)
                answer = self._told(found, key)
                if answer.fields.get("run_id") == run_id:
                    return self._encoding.decode(key, answer.fields)
        raise RunNotFound(
            f"this store has no run {safe_repr(run_id)}: it is unknown, or was forgotten after its retention."
        )

    def list_runs(
        self,
        *,
        status: str | None = None,
        workflow: str | None = None,
        older_than: Duration | None = None,
        limit: int | None = 100,
    ) -> Asked[Page]:
        """The records with this status, of this workflow, started so many seconds ago; the oldest first. "held" counts as
        a status, and "expired": running, with an owner whose lease is over. Their heads only: `get_run` has their steps
        and values too."""
        age = 0.0 if older_than is None else seconds(older_than, "list_runs(older_than=)")
        found: dict[str, RunRecord] = {}
        pages = self._index(b"open") if status in _OPEN_ONLY else self._index(b"open", b"ended")
        for entries in (yield from pages):
            for answer, record in (yield from self._heads(entries)):
                if (
                    (status is None or _counts_as(record, status, answer.now))
                    and (workflow is None or record.workflow == workflow)
                    and (older_than is None or answer.age >= age)
                ):
                    found[record.run_id] = record
        return Page(sorted(found.values(), key=lambda record: record.started, reverse=True)[:limit])

    def release(self, key: str, /, *, force: bool = False) -> Asked[None]:
        """Forget the run behind a key, so that the next call starts afresh.

        Raises RunNotFound for an unknown key, and StoreError for a run in progress, unless forced: then its owner is
        told at its next word to the store that the run is not its own any more. A record that flowcore did not write is
        given up by force too.
        """
        way_out = "or release it with force=True"
        yield from self._decide(scripts.RELEASE, key, "1" if force else "", self._retention, way_out=way_out)

    def hold(self, key: str, /) -> Asked[None]:
        """Refuse the key from now on, until `release`, `resume` or `undo`. Raises RunNotFound for an unknown key, and
        StoreError for a run in progress."""
        yield from self._decide(scripts.DECIDE, key, "hold")

    def resume(self, key: str, /) -> Asked[None]:
        """Have whoever next calls with the key, or recovers, go on with its run: for one that is held, parked,
        incomplete or whose lease has run out. Raises RunNotFound for an unknown key, StoreError for any other run."""
        yield from self._decide(scripts.DECIDE, key, "resume")

    def undo(self, key: str, /) -> Asked[None]:
        """As `resume`, but the run is undone."""
        yield from self._decide(scripts.DECIDE, key, "undo")

    def _decide(self, script: Script, key: str, *arguments: Part, way_out: str = "") -> Asked[None]:
        answer = yield from self._run(script, key, self._keys(key), *arguments)
        if answer.word == "missing":
            raise RunNotFound(f"this store knows no key {safe_repr(key)}.")
        if answer.word == "done":
            return
        record = self._encoding.decode(key, answer.fields)
        if answer.word == "busy":
            ways = f"cancel it first, {way_out}" if way_out else "cancel it first"
            raise StoreError(f"key {safe_repr(key)} belongs to run {record.run_id}, which is running: {ways}.")
        raise StoreError(
            f"key {safe_repr(key)} belongs to run {record.run_id}, which has ended with {record.status}: "
            f"there is nothing left to {arguments[0]!s}."
        )

    def gc(self) -> Asked[int]:
        """Redis itself forgets what is past its retention: take it out of the index now, and whatever else has vanished;
        answers how many runs are left."""
        left = 0
        for entries in (yield from self._index(b"open", b"ended")):
            left += len(entries) - (yield from self._forget(entries))
        return left

    def doctor(self) -> Asked[dict[str, str]]:
        """What an operator should know of this store: `unknown` where the server does not say, or an ACL forbids to ask."""
        return (yield from doctor.examine())

    # -- the index -----------------------------------------------------------------------------------------------------

    def _index(self, *names: bytes) -> Asked[Iterable[list[_Entry]]]:
        """All entries of these parts of the index, in pages."""
        pages: list[list[_Entry]] = []
        for name in names:
            first, shards = 0, list(range(self._shards))
            while shards:
                calls: list[Call] = [
                    ([self._prefixes[shard] + name], [first, first + _AT_ONCE - 1]) for shard in shards
                ]
                replies = yield from self._run_all(scripts.LIST, calls)
                for shard, members in zip(shards, replies, strict=True):
                    pages.append([self._entry(shard, member) for member in members])
                shards = [shard for shard, members in zip(shards, replies, strict=True) if len(members) == _AT_ONCE]
                first += _AT_ONCE
        return pages

    def _entry(self, shard: int, member: bytes) -> _Entry:
        return _Entry(shard, member, self._prefixes[shard] + b"run:" + member[:64])

    def _heads(self, entries: Collection[_Entry], *, skip: bool = False) -> Asked[list[tuple[_Answer, RunRecord]]]:
        """What the records of these entries say of themselves. Entries that have lost theirs are forgotten. `skip`: a
        corrupt one is logged only."""
        found: list[tuple[_Answer, RunRecord]] = []
        gone: list[_Entry] = []
        pages = list(_by_shard(entries))
        calls: list[Call] = [([entry.run for entry in page], ["1"]) for page in pages]
        replies = yield from self._run_all(scripts.READ, calls)
        for page, reply in zip(pages, replies, strict=True):
            for entry, one in zip(page, reply, strict=True):
                key = _key_of(one, entry.run)
                try:
                    answer = self._told(one, key)
                    record = None if answer.word == "missing" else self._encoding.decode(key, answer.fields)
                    if record is not None and entry.is_of(record):
                        found.append((answer, record))
                    else:
                        gone.append(entry)
                except CorruptRecord as error:
                    if not skip:
                        raise
                    _log.warning("%s", error)
        yield from self._forget(gone)
        return found

    def _forget(self, entries: Collection[_Entry]) -> Asked[int]:
        """Take those entries out of the index that have no record any more; answers how many these were."""
        calls: list[Call] = []
        for page in _by_shard(entries):
            prefix = self._prefixes[page[0].shard]
            keys = [prefix + b"open", prefix + b"ended", prefix + b"ids", *(entry.run for entry in page)]
            calls.append((keys, [entry.member for entry in page]))
        replies = yield from self._run_all(scripts.FORGET, calls)
        return sum(gone for (gone,) in replies)

    # -- scripts -------------------------------------------------------------------------------------------------------

    def _enter(self) -> Asked[None]:
        """Before the first claim: another number of shards would look for every key in another place."""
        ((known,),) = yield from self._run_all(scripts.ENTER, [([self._prefixes[0] + b"shards"], [self._shards])])
        if known != str(self._shards).encode():
            raise StoreError(
                f"this store was used with {safe_repr(known.decode(errors='replace'))} shards before, and now with {self._shards}: "
                "it would not find its own runs, so keep to one number, or choose another prefix=."
            )
        self._entered = True
        if not self._examined:
            self._examined = True  # by now: other claims may be on their way
            with contextlib.suppress(StoreError):  # whatever it is, it must not keep runs from running
                told = yield from self.doctor()
                if risks := doctor.risks(told):
                    _log.warning("this Redis can lose what runs have done: %s.", "; ".join(risks))

    def _run_key(self, key: str) -> tuple[int, bytes]:
        """The shard of a key, and the Redis key of its record."""
        sha = _sha(_bytes(key))
        shard = int(sha[:8], 16) % self._shards
        return shard, self._prefixes[shard] + b"run:" + sha

    def _keys_of(self, key: str) -> tuple[bytes, bytes, bytes, bytes]:
        shard, run = self._run_key(key)
        prefix = self._prefixes[shard]
        return run, prefix + b"open", prefix + b"ended", prefix + b"ids"

    def _run(self, script: Script, key: str, keys: Sequence[bytes], *arguments: Part) -> Asked[_Answer]:
        """Run a script on the record of `key`."""
        reply = yield from self._reply(script, key, (len(keys), *keys, *map(_bytes, arguments)))
        return self._told(reply, key)

    def _write(
        self, script: Script, key: str, keys: Sequence[bytes], head: Sequence[bytes | int], fields: dict[str, str]
    ) -> Asked[Lost | None]:
        """Run the script of an owner's verb."""
        texts = [text.encode() for field in fields.items() for text in field]
        reply = yield from self._reply(script, key, (len(keys), *keys, *head, *texts))
        return None if reply[0] == b"done" else Lost(gone=self._told(reply, key).word == "missing")

    def _reply(self, script: Script, key: str, tail: Command) -> Asked[list[bytes]]:
        """What a script answers; the script itself is sent where the server does not know it yet."""
        (reply,) = yield [("EVALSHA", script.sha, *tail)]
        if is_unknown_script(reply):
            (reply,) = yield [("EVAL", script.text, *tail)]
        if isinstance(reply, Exception):
            refuse(reply, key)
        told: list[bytes] = reply
        return told

    def _run_all(self, script: Script, calls: Sequence[Call], key: str = "") -> Asked[list[Any]]:
        """Run a script several times, in one round trip a node; another one where the server does not know it yet."""
        if not calls:
            return []
        tails: list[Command] = [(len(keys), *keys, *map(_bytes, arguments)) for keys, arguments in calls]
        replies = yield [("EVALSHA", script.sha, *tail) for tail in tails]
        unknown = [index for index, reply in enumerate(replies) if is_unknown_script(reply)]
        if unknown:
            again = yield [("EVAL", script.text, *tails[index]) for index in unknown]
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                refuse(reply, key)
        return replies

    def _told(self, reply: list[bytes], key: str) -> _Answer:
        """Read the answer of a script that looked at the record of `key`."""
        try:
            word, now, *texts = [part.decode() for part in reply]
        except UnicodeDecodeError as error:
            raise _corrupt(key, "something in it is not UTF-8") from error
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        if word == "corrupt":
            if "kind" in fields:
                raise _corrupt(key, f"it is a Redis {fields['kind']}, not a hash")
            self._encoding.decode(key, fields)  # which says what is wrong
            raise _corrupt(
                key, f"it has the status {safe_repr(fields['status'])}, but is not held, or a number at its limit"
            )
        return _Answer(word, int(now), fields)


def _key_of(reply: list[bytes], run: bytes) -> str:
    """The key that a record says it is of, if it is: else the Redis key of the record."""
    key = dict(zip(reply[2::2], reply[3::2], strict=True)).get(b"key", b"")
    return (key if _sha(key) == run[-64:] else run).decode(errors="replace")


def _sha(key: bytes) -> bytes:
    return hashlib.sha256(key).hexdigest().encode()


def _corrupt(key: str, why: str) -> CorruptRecord:
    return CorruptRecord(
        f"the record of key {safe_repr(key)} is not as flowcore wrote it: {why}. It was left as it is: put it right by hand, "
        f"or give the key up with store.release({safe_repr(key)}, force=True)."
    )


def _expired(record: RunRecord, now: int) -> bool:
    return record.status is Status.RUNNING and (record.expires or 0.0) * 1e6 <= now


def _counts_as(record: RunRecord, status: str, now: int) -> bool:
    """Whether an operator who asks for this status means this run too."""
    if status == "held":
        return record.held
    return _expired(record, now) if status == "expired" else record.status == status


def _bytes(part: Part) -> bytes:
    """What is sent, whatever encoding the client has; what has no UTF-8 is only ever looked for."""
    return part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _flat(fields: dict[str, str]) -> Iterator[str]:
    for pair in fields.items():
        yield from pair


def _pages(items: list[T]) -> Iterator[list[T]]:
    for first in range(0, len(items), _PAGE):
        yield items[first : first + _PAGE]


def _by_shard(entries: Iterable[_Entry]) -> Iterator[list[_Entry]]:
    """In pages of one shard each."""
    shards: dict[int, list[_Entry]] = {}
    for entry in entries:
        shards.setdefault(entry.shard, []).append(entry)
    for shard in shards.values():
        yield from _pages(shard)
