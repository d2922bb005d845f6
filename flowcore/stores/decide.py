"""The rules of all stores: how a claim is decided, and what an operator may do.

They are pure functions of a record, used by MemoryStore, SQLiteStore and the conformance model. The Lua scripts of the
Redis stores cite them line by line.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Final

from ..errors import CorruptRecord, RunNotFound, SendRefused, StoreError, hashed_key, safe_repr
from ..status import Status
from .base import LIVE, RELEASED, RESUMABLE, Checkpoint, Claim, RunRecord

__all__ = [
    "OPEN",
    "Order",
    "Verdict",
    "decide",
    "decide_order",
    "decide_send",
    "has_outcome",
    "has_wait",
    "is_over",
    "makes_progress",
    "takeover_delay",
    "unknown_key",
    "unknown_run",
]

_MOST_LEASES: Final = 64
_NOT_ENDED: Final = frozenset({Status.PENDING, Status.RUNNING, Status.WAITING})
OPEN: Final = ("queued", "running", "waiting", "expired", "parked", "incomplete", "held")
"""statuses under which `counts` counts runs that are not over"""


class Verdict(Enum):
    """The decision on a claim: what the store returns, and what it does to the record."""

    BEGIN = "begin"
    """the key is new, and the run has generation 0"""
    BEGIN_ANEW = "begin anew"
    """the key was released, and the run has the next generation"""
    BEGIN_QUEUED = "begin queued"
    """its owner begins the run that it had recorded as queued"""
    AGAIN = "again"
    """its owner repeats the claim, and gets the same reply"""
    RESUME = "resume"
    """the run was parked, incomplete, waiting and due, or queued and left by its owner"""
    TAKE_OVER = "take over"
    """the run is running, but the lease of its owner has ended"""
    FINISHED = "finished"
    MISMATCH = "mismatch"
    HELD = "held"
    OTHER_GRAPH = "other graph"
    BUSY = "busy"


def decide(record: RunRecord | None, owner: str, lease_left: float, claim: Claim) -> Verdict:
    """Decide on `claim`, given the record of its key. Only the record's head is needed. `owner`: the run id of the
    claim that made the present owner. `lease_left`: seconds until the lease ends, 0 or less once it has ended; for a
    waiting run, seconds until it may be resumed.

    Raises CorruptRecord for an ended run that must be held, but is not.
    """
    if record is None:
        return Verdict.BEGIN
    status = record.status
    if owner == claim.run_id:
        if status not in LIVE:  # a late copy of a claim whose run is no longer live begins nothing
            return Verdict.FINISHED
        return Verdict.BEGIN_QUEUED if status == Status.QUEUED and not claim.queued else Verdict.AGAIN
    if claim.attached == record.run_id and (record.held or is_over(status)):
        return Verdict.FINISHED
    if status in RELEASED and not record.held:
        # Either the caller waits for a run that later runs have replaced, and the latest one has the outcome. Or it is
        # the claim's own run: the reply to the claim was lost, and another owner has taken the run over and ended it.
        if claim.attached is not None or claim.run_id == record.run_id:
            return Verdict.FINISHED
        if not (claim.once and has_outcome(record)):
            return Verdict.BEGIN_ANEW
        if record.fingerprint is None:  # it was erased
            return Verdict.FINISHED
    if claim.fingerprint is not None and record.fingerprint != claim.fingerprint:
        return Verdict.MISMATCH
    if record.held:
        return Verdict.HELD
    if status == Status.SUCCESS or status in RELEASED:
        return Verdict.FINISHED
    if (status in LIVE or status == Status.WAITING) and lease_left > 0:
        return Verdict.BUSY
    if status == Status.QUEUED:  # no step has begun: any definition of its workflow may run it
        return Verdict.RESUME
    if is_over(status):
        raise CorruptRecord(
            f"the record of key {hashed_key(claim.key)} has the status {safe_repr(str(status))}, but is not held. "
            "Inspect it with store.find(error.key), or discard it with store.release(error.key).",
            key=claim.key,
        )
    if record.graph not in {claim.graph, claim.resumes}:
        return Verdict.OTHER_GRAPH
    return Verdict.TAKE_OVER if status == Status.RUNNING else Verdict.RESUME


def has_outcome(record: RunRecord) -> bool:
    """Whether a run that released its key did so by ending. Returns False if its claim was withdrawn, or if an operator
    gave it up. An erased run counts as ended."""
    return record.error is not None or record.fingerprint is None


def is_over(status: Status) -> bool:
    """Whether a run with this status has nothing left to resume."""
    return status not in LIVE and status not in RESUMABLE and status != Status.WAITING


def takeover_delay(takeovers: int, lease: float) -> float:
    """How many seconds recovery waits, after the lease has ended, before it takes over a run that was taken over
    `takeovers` times without progress."""
    return lease * min(_MOST_LEASES, 2 ** (min(takeovers, 60) - 1)) if takeovers > 0 else 0.0


def makes_progress(checkpoint: Checkpoint | None) -> bool:
    """Whether a checkpoint records the end of a step or of an undo. If so, takeovers and retries are counted from 0
    again. Neither the start nor the closing of a wait is progress."""
    if checkpoint is None:
        return False
    for step in checkpoint.steps.values():
        report = step.report
        what = report.status if report.undo is None else report.undo
        if what in _NOT_ENDED or (what is Status.TIMEOUT and report.until is not None):
            continue
        return True
    return False


class Order(Enum):
    """The effect of an operator's verb on a run."""

    NOTHING = "nothing"
    """the run is being undone already, so nothing changes"""
    NOTIFY_OWNER = "notify owner"
    """the decision is recorded for the owner, which learns of it"""
    STOP = "stop"
    """the run has no owner from now on, and the next owner carries out the decision"""


def unknown_key(key: str) -> RunNotFound:
    """Return the error for a key that no run has."""
    return RunNotFound(f"No run with key {hashed_key(key)} in this store.", key=key)


def unknown_run(run_id: str) -> RunNotFound:
    """Return the error for an id that no run has."""
    return RunNotFound(
        f"this store has no run {safe_repr(run_id)}: it is unknown, or was forgotten after its retention."
    )


def decide_order(record: RunRecord, live: bool, verb: str) -> Order:
    """Decide what `hold`, `resume`, `undo`, `cancel`, `release` or `erase` does to a run. `live`: the run has an owner
    whose lease has not ended. Raises StoreError if the verb is refused."""
    if live and verb in {"undo", "cancel"}:
        return Order.NOTHING if record.undoing else Order.NOTIFY_OWNER
    key = hashed_key(record.key)
    if live:
        way_out = f", or {verb} it with force=True" if verb in {"release", "erase"} else ""
        raise StoreError(
            f"key {key} belongs to run {record.run_id}, which is {record.status}: cancel it first{way_out}.",
            key=record.key,
        )
    if verb == "erase" and (record.held or not is_over(record.status)):
        raise StoreError(
            f"key {key} belongs to run {record.run_id}, which is {'held' if record.held else record.status} and could "
            "not continue without the data that would be erased: end it first, or erase it with force=True.",
            key=record.key,
        )
    # Nothing was undone, so all completed steps still count.
    again = verb == "resume" and record.status == Status.FAILURE
    if verb in {"resume", "undo", "cancel"} and is_over(record.status) and not record.held and not again:
        raise StoreError(
            f"key {key} belongs to run {record.run_id}, which has ended with {record.status}: there is nothing left to "
            f"{verb}.",
            key=record.key,
        )
    return Order.STOP


def decide_send(
    record: RunRecord,
    name: str,
    id: str | None,  # noqa: A002 - the word for it
    *,
    known: bool,
    known_id: str | None,
    step: Status | None,
) -> bool | None:
    """Decide on a value that is sent to the wait `name`. Returns None if the store is to keep the value, which then
    counts. If a value was sent before, returns whether this one is the same and so counts. Only the record's head is
    needed. `known`: whether a value was sent before; `known_id`: the id that its sender gave to it; `step`: the
    recorded status of the step.

    Raises SendRefused if the run does not wait for the value.
    """
    if known:
        return id is not None and known_id == id
    run = f"run {record.run_id} of {safe_repr(record.workflow)}"
    if not has_wait(record.graph, name):
        raise SendRefused(f"{run} has no wait {safe_repr(name)}.")
    if is_over(record.status):
        raise SendRefused(f"{run} has ended ({record.status}) and no longer waits for {safe_repr(name)}.")
    if record.undoing:
        raise SendRefused(f"{run} is being undone and no longer waits for {safe_repr(name)}.")
    if step is not None and step not in {Status.PENDING, Status.WAITING}:
        raise SendRefused(f"{run} no longer waits for {safe_repr(name)}: that wait ended with status {step}.")
    return None


def has_wait(graph: str, name: str) -> bool:
    """Whether a step of a recorded graph waits for a value."""
    try:
        steps: Any = json.loads(graph)
        return any(step[0] == name and step[4:] == ["wait"] for step in steps)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
