"""The verbs of a Redis store that engines use, for sync and async clients alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from ...errors import StoreUnavailable, hashed_key
from ..base import (
    RESUMABLE,
    STOPS,
    Arrived,
    Behind,
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
    Renewal,
    RunRecord,
)
from ..decide import makes_progress
from ..encoding import microseconds
from . import scripts
from .calls import PAGE, Answer, Call, Command, Exchange, as_bytes, digest_of, in_pages
from .operating import OperatorVerbs

__all__ = ["Verbs"]

_FOREVER: Final = 50 * 365 * 24 * 3600.0  # seconds; a lease that ends later than this has no limit
# Indexed by the number that the script returns.
_RENEWALS: Final = (
    Renewal.LOST,
    Renewal.OURS,
    Renewal.CANCEL,
    Renewal.SENT,
    Renewal.UNDO,
)
_BY_SCRIPT: Final = frozenset({"run_id", "owner", "workflow", "graph", "status"})
"""fields of a fresh record that the script knows"""
_EMPTY: Final = {"held": "0", "retries": "0", "reason": "", "undone": "[]", "failed_step": "null", "error": "null"}
"""fields that the end of a run leaves out if they have these texts"""
_BEFORE: Final = {"before_status": "status", "before_expires": "expires", "before_by": "by", "before_since": "since"}


class Verbs(OperatorVerbs):
    """All verbs of a Redis store, as generators."""

    def claim(self, claim: Claim, /) -> Exchange[ClaimAnswer]:
        """Claim the key for a run, or return why it cannot be claimed: see Store.claim."""
        if self._hides and not self._entered:
            yield from self._enter(writes=True)
        texts = self._encoding.encode_claim(claim)
        fields = [text for name, text in texts.items() if name not in _BY_SCRIPT for text in (name, text)]
        fingerprint = f"={texts['fingerprint']}" if "fingerprint" in texts else ""
        attached = "" if claim.attached is None else f"={claim.attached}"
        resumes = "" if claim.resumes is None else f"={claim.resumes}"
        head = (claim.run_id, fingerprint, claim.graph, resumes, attached, microseconds(claim.lease))
        flags = ("q" if claim.queued else "") + ("o" if claim.once else "")
        if not self._entered:
            yield from self._enter(writes=True)
        keys, seen = self._keys(texts["key"]), ""
        while True:
            answer = yield from self._run(scripts.CLAIM, claim.key, keys, *head, seen, flags, claim.workflow, *fields)
            if answer.word != "look":
                return self._claimed(claim, answer)
            # The script changes a record only after this decoding has shown that the record can be read.
            self._encoding.decode(claim.key, answer.fields, claim.types)
            seen = answer.fields["fence"]

    def _claimed(self, claim: Claim, answer: Answer) -> ClaimAnswer:
        fields = answer.fields
        if answer.word == "begun":
            return Claimed(int(fields["generation"]), int(fields["fence"]), None, answer.age, answer.now / 1e6)
        if answer.word in {"taken", "again"}:
            fence = int(fields.pop("granted"))
            if answer.word == "again":  # return the record as its owner found it
                for before, name in _BEFORE.items():
                    fields.pop(name, None)
                    if before in fields:
                        fields[name] = fields.pop(before)
            record = self._encoding.decode(claim.key, fields, claim.types)
            return Claimed(record.generation, fence, record, answer.age, answer.now / 1e6)
        record = self._encoding.decode(claim.key, fields, claim.types)
        match answer.word:
            case "finished":
                return Finished(record, answer.age)
            case "mismatch":
                return Mismatch(record.run_id, record.carrier, answer.age, record.workflow, record.fingerprint is None)
            case "held":
                return Held(record.run_id, record.carrier, answer.age)
            case "busy":
                if record.status == "waiting":
                    due = record.not_before or 0.0
                    left = due - answer.now / 1e6
                    return Busy(record.run_id, record.carrier, answer.age, left, record.waiting_for, due)
                left = (record.expires or 0.0) - answer.now / 1e6
                return Busy(record.run_id, record.carrier, answer.age, math.inf if left > _FOREVER else left)
            case _:  # "graph"
                return OtherGraph(record.run_id, record.graph)

    def checkpoint(self, checkpoint: Checkpoint, /) -> Exchange[Lost | Behind | Renewal | None]:
        """Record what has changed in a run, and renew its lease unless enough of it is left."""
        if self._hides:
            yield from self._look()
        texts = [text.encode() for field in self._encoding.encode_checkpoint(checkpoint).items() for text in field]
        keys = self._keys(self._lookup(checkpoint.key))
        reply = yield from self._saved(checkpoint, keys, texts, renews=checkpoint.renews)
        if reply == [b"index"]:
            reply = yield from self._saved(checkpoint, keys, texts, renews=True)
        if reply == 1:
            return None
        if reply[0] in {b"cancel", b"undo"}:
            return STOPS[reply[0].decode()]
        if reply[0] == b"behind":
            return Behind(int(reply[1]))
        return (yield from self._refused(checkpoint))

    def _saved(
        self, checkpoint: Checkpoint, keys: Sequence[bytes], texts: list[bytes], *, renews: bool
    ) -> Exchange[Any]:
        """Send a checkpoint, with the keys of the index if it `renews` the lease. Returns the server's reply."""
        run, opened, _, _, index, statuses = keys
        base, late = _numbers(checkpoint)
        flags = (
            ("p" if makes_progress(checkpoint) else "") + ("u" if checkpoint.undoing else "") + ("l" if late else "")
        )
        head = (
            *((4, run, opened, index, statuses) if renews else (1, run)),
            *(as_bytes(checkpoint.run_id), checkpoint.fence, base),
            *(microseconds(checkpoint.lease) if renews else b"", flags),
        )
        return (yield from self._reply(scripts.CHECKPOINT, checkpoint.key, (*head, *texts)))

    def _refused(self, checkpoint: Checkpoint) -> Exchange[Lost | None]:
        """Return why a checkpoint cannot be written. Raises StoreUnavailable if a retry may succeed."""
        record = yield from self._found(checkpoint.key, heads=False)
        if record is None:
            return Lost(gone=True)
        if record.run_id != checkpoint.run_id or record.fence != checkpoint.fence:
            return Lost()
        if record.status not in {"running", "queued"}:
            return None  # a late copy of a checkpoint: the run has ended since
        raise StoreUnavailable(
            f"the record of key {hashed_key(checkpoint.key)} changed while a checkpoint was written; retrying is safe.",
            key=checkpoint.key,
        )

    def renew(self, leases: Sequence[Lease], lease: float, /) -> Exchange[list[Renewal]]:
        """Renew these leases for `lease` seconds from now, all in one round trip per node."""
        if self._hides:
            yield from self._look()
        renewed: list[Renewal] = [Renewal.LOST] * len(leases)
        by_shard: dict[tuple[bytes, ...], list[int]] = {}
        keys = [self._keys(self._lookup(one.key)) for one in leases]
        for position, (_, opened, _, started, index, statuses) in enumerate(keys):
            by_shard.setdefault((opened, started, index, statuses), []).append(position)
        calls: list[Call] = []
        asked: list[list[int]] = []
        for shard, positions in by_shard.items():
            for page in in_pages(positions, PAGE):
                owners = [
                    part
                    for position in page
                    for part in (leases[position].run_id, leases[position].fence, leases[position].received)
                ]
                calls.append(([*shard, *(keys[position][0] for position in page)], [microseconds(lease), *owners]))
                asked.append(page)
        replies = yield from self._run_all(scripts.RENEW, calls)
        for page, reply in zip(asked, replies, strict=True):
            for position, answer in zip(page, reply, strict=True):
                renewed[position] = _RENEWALS[answer]
        return renewed

    def finish(self, ending: Ending, /) -> Exchange[Lost | Behind | Arrived | None]:
        """Record how a run ended, or that it only waits from now on."""
        if self._hides:
            yield from self._look()
        record, changes = ending.record, ending.changes
        fields = self._encoding.encode_ending(ending)
        del fields["status"]
        waiting = record.status == "waiting"
        kept = record.held or record.status in RESUMABLE or waiting
        later = ending.retry_in if record.status in RESUMABLE or waiting else 0.0
        base, late = (b"", False) if changes is None else _numbers(changes)
        flags = ("p" if makes_progress(changes) else "") + ("l" if late else "")
        head: Command = (as_bytes(record.run_id), record.fence, base, flags, str(record.status))
        if kept:
            due = "never" if later == math.inf else microseconds(max(later, 0.0))
            head = (*head, b"", int(record.held), due, ending.received if waiting else b"")
        else:
            head = (*head, self._retention)
            fields = {name: text for name, text in fields.items() if _EMPTY.get(name) != text}
        texts = [text.encode() for field in fields.items() for text in field]
        keys = self._keys(self._lookup(record.key))
        reply = yield from self._reply(scripts.FINISH, record.key, (len(keys), *keys, *head, *texts))
        if reply == 1:
            return None
        if reply[0] == b"behind":
            return Behind(int(reply[3]))
        if reply[0] == b"arrived":
            return Arrived()
        return Lost(gone=self._answer(reply, record.key).word == "missing")

    def withdraw(self, claim: Claim, /) -> Exchange[None]:
        """Withdraw a claim whose reply was lost, if it was granted."""
        if self._hides:
            yield from self._look()
        yield from self._run(
            scripts.WITHDRAW, claim.key, self._keys(self._lookup(claim.key)), claim.run_id, self._retention
        )

    def find(self, key: str, /) -> Exchange[RunRecord | None]:
        """Return the record under a key, or None."""
        return (yield from self._found(key, heads=False))

    def head(self, key: str, /) -> Exchange[RunRecord | None]:
        """Return the record under a key, without values, results and steps, or None."""
        return (yield from self._found(key, heads=True))

    def _found(self, key: str, *, heads: bool) -> Exchange[RunRecord | None]:
        yield from self._look()
        digest = digest_of(as_bytes(self._lookup(key)))
        (reply,) = yield from self._read([(self._shard(digest), digest)], heads=heads)
        return self._record(key, reply)


def _numbers(checkpoint: Checkpoint) -> tuple[Any, bool]:
    """Return the sequence number that the record must have reached, or b"" for none, and whether the checkpoint has a
    number that is not above it."""
    base = b"" if checkpoint.heals or not checkpoint.base else checkpoint.base
    known = [step.seq for step in checkpoint.steps.values()] + [write.seq for write in checkpoint.writes.values()]
    return base, any(seq <= checkpoint.base for seq in known)
