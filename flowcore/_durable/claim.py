"""The claim: whose run is it? And what becomes of a caller whose run it is not."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from .._kernel import emit
from .._kernel.effects import Program, Sleep
from .._kernel.run_state import Execution
from ..errors import (
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LeaseLost,
    NotSerializable,
    RunNotFound,
    StoreUnavailable,
    said,
    shown,
)
from ..retry import Backoff
from ..run import Run
from ..stores.base import TO_GO_ON, Busy, Claim, Claimed, Finished, Held, Mismatch, RunRecord
from . import checkpoints

__all__ = ["adopt", "claim"]

_POLL: Final = Backoff.exponential(0.002, max_delay=0.25, jitter=False)
"""how often a caller with `wait=` asks after the run that has its key"""
_RESENT: Final = 1 / 3
"""of a lease: for how long a claim is sent again to a store that does not answer"""


def claim(x: Execution) -> Program[Run | RunRecord | None]:
    """Claim the run's key. Answers None if the run is ours from its beginning, the record if it is ours to go on with,
    else the earlier run whose outcome is ours too."""
    try:
        x.fingerprint = None if x.recovering is not None else _fingerprint(x)
    except Exception as error:
        emit.refused(x, error)
        raise
    wanted = Claim(
        x.stored_key,
        x.run_id,
        x.workflow.name,
        x.fingerprint,
        x.plan.graph,
        x.carrier,
        attached=x.recovering,
        waits=x.wait is not None,
    )
    if x.changes is not None:
        wanted.values, wanted.lease = x.values, x.settings.lease
        first = x.plan.nodes[x.plan.ready[0]] if x.plan.ready else None
        if first is not None and first.when is None:
            wanted.begins = (first.name,)
    until = None if x.wait is None else x.settings.clock() + x.wait
    polls = 0
    while True:
        sent = x.settings.clock()
        answer, failure = yield from _asked(x, wanted, poll=polls > 0)
        if failure is not None:
            _refuse_if_cancelled(x)
            emit.refused(x, failure)
            raise failure
        match answer:
            case Claimed(record=None) if x.recovering is not None:  # it was forgotten meanwhile
                yield from checkpoints.ask(x, "withdraw", wanted)
                gone = RunNotFound(f"run {x.recovering} is not in the store any more.")
                emit.refused(x, gone)
                raise gone
            case Claimed(record=None, generation=later) if later and x.settings.clock() >= sent + x.settings.lease:
                # A copy of this claim, whose answer was lost, may have been granted long ago, and its run taken over and
                # ended by others: two runs must not have one id.
                yield from checkpoints.ask(x, "withdraw", wanted)
                late = StoreUnavailable(
                    f"key {shown(wanted.key)} was granted more than a lease after it was asked for, and has had other runs: "
                    "the same may be asked again."
                )
                emit.refused(x, late)
                raise late
            case Claimed():
                return _own(x, wanted, answer, sent)
            case _ if x.recovering is not None:  # somebody else was quicker; nobody has asked for an answer
                over = LeaseLost(
                    f"run {x.recovering} is over by now, or somebody else goes on with it.", run_id=x.recovering
                )
                emit.refused(x, over)
                raise over
            case Finished(record=record) if record.status in TO_GO_ON:  # held meanwhile
                raise _refusal(x, wanted.key, Held(record.run_id, record.carrier, answer.age))
            case Finished():
                record = answer.record
                adopted = wanted.attached == record.run_id
                emit.hit(x, "adopted" if adopted else "replayed", record.run_id, record.carrier, answer.age)
                return _replay(x, record)
            case Busy() if until is not None and x.settings.clock() < until:
                wanted.attached = answer.run_id
                polls += 1
                left = until - x.settings.clock()
                yield Sleep(max(0.0, min(_POLL.delay(polls), left)))
                _refuse_if_cancelled(x)
            case _:
                raise _refusal(x, wanted.key, answer)


def _asked(x: Execution, wanted: Claim, *, poll: bool) -> Program[checkpoints.Answer]:
    """Send the claim, again and again where a durable store does not answer; nothing has begun that could be lost."""
    told = emit.maintenance_started(x, "poll") if poll else None
    until = x.settings.clock() + (x.settings.lease * _RESENT if x.settings.durable else 0.0)
    tries = 0
    while True:
        answer, failure = yield from checkpoints.ask(x, "claim", wanted, None if told is None else told.context)
        left = until - x.settings.clock()
        if not isinstance(failure, StoreUnavailable) or left <= 0:
            break
        tries += 1
        yield Sleep(min(checkpoints.AGAIN.delay(tries), left))
        if x.error is not None:  # cancelled meanwhile
            break
    if isinstance(failure, StoreUnavailable) and x.settings.durable:
        yield from checkpoints.ask(x, "withdraw", wanted)  # should its answer alone have been lost
    if told is not None:
        emit.maintenance_finished(x, told, "poll", failure)
    return answer, failure


def _refuse_if_cancelled(x: Execution) -> None:
    if x.error is not None:
        emit.refused(x, x.error)
        raise x.error


def _own(x: Execution, wanted: Claim, claimed: Claimed, sent: float) -> RunRecord | None:
    """The run is ours."""
    x.claimed = True
    x.generation, x.fence = claimed.generation, claimed.fence
    if x.allowed is not None:
        x.deadline = x.settings.clock() + x.allowed - claimed.age
    if x.changes is not None:
        x.lease_until = sent + x.settings.lease
        if claimed.record is None:
            x.changes.begun.update(wanted.begins)
            x.changes.seq = len(wanted.begins)
    return claimed.record


def _replay(x: Execution, record: RunRecord) -> Run:
    x.run_id = record.run_id
    replay = Run(x, record.workflow, record.status, dict(record.results), record.steps, x.plan)
    replay.replayed, replay.held, replay.carrier = True, record.held, record.carrier
    replay.error, replay.failed_step, replay.undone = record.error, record.failed_step, record.undone
    return replay


def adopt(x: Execution) -> Program[Run | None]:
    """The run was taken over: if its new owner has ended it, or does so while its caller waits, that is its outcome."""
    until = x.settings.clock() + (x.wait or 0.0)
    polls = 0
    while True:
        record, failure = yield from checkpoints.ask(x, "find", x.stored_key)
        if failure is not None or record is None or record.run_id != x.run_id:
            return None
        if record.finished is not None and record.status not in TO_GO_ON:
            return _replay(x, record)
        left = until - x.settings.clock()
        if left <= 0:
            return None
        polls += 1
        yield Sleep(min(_POLL.delay(polls), left), shielded=True)


def _refusal(x: Execution, key: str, answer: Busy | Mismatch | Held) -> IdempotencyError:
    """The error for a key that cannot be had, told to the hooks."""
    what = f"idempotency key {shown(key)} of workflow {shown(x.workflow.name)}"
    word: str
    error: IdempotencyError
    match answer:
        case Busy():
            word = "in_progress"
            error = IdempotencyInProgress(
                f"{what} is in use by run {answer.run_id}, which is still going on: "
                f"ask again in {answer.retry_after:g} s, or pass wait= to get its outcome.",
                retry_after=answer.retry_after,
                run_id=answer.run_id,
            )
        case Mismatch():
            word = "mismatch"
            other = (
                "other initial values" if answer.workflow == x.workflow.name else f"workflow {shown(answer.workflow)}"
            )
            error = IdempotencyMismatch(f"{what} was used before with {other}: use a key of its own for each request.")
        case _:
            word = "held"
            error = IdempotencyHeld(
                f"{what} is held since run {answer.run_id}: see what it left with engine.store.find({shown(key)}), then "
                f"engine.store.resume({shown(key)}) lets it go on, and engine.store.release({shown(key)}) frees the key."
            )
    emit.hit(x, word, answer.run_id, answer.carrier, answer.age)
    return error


def _fingerprint(x: Execution) -> str:
    """What tells one use of a key from another: the workflow's name and its initial values, as canonical JSON."""
    import hashlib  # with a key only: imports that many a run never needs

    values: dict[Any, Any] = x.values
    if x.workflow.fingerprint is not None:
        said_by_user = x.workflow.fingerprint(values)
        if not isinstance(said_by_user, str):
            raise NotSerializable(f"fingerprint= of workflow {shown(x.workflow.name)} must answer with a string.")
        text = said_by_user
    elif x.key is None:
        return ""
    else:
        text = _canonical(values, x.workflow.name)
    return hashlib.sha256(f"{x.workflow.name}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _canonically() -> Callable[[object], str]:
    import json

    return json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def _canonical(values: dict[Any, Any], workflow: str) -> str:
    problem = next((f"the key {shown(key)} is not a string" for key in values if not isinstance(key, str)), None)
    if problem is None:
        try:
            return _canonically()(values)
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"{_culprit(values)} has none ({type(error).__name__}: {said(error, 100)})"
    raise NotSerializable(
        f"a run of workflow {shown(workflow)} with an idempotency key needs initial values with a JSON form, "
        f"but {problem}: pass Workflow(fingerprint=) to say what makes two requests the same."
    )


def _culprit(values: dict[Any, Any]) -> str:
    import json

    for key, value in values.items():
        try:
            json.dumps(value, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return f"the value of {shown(key)}"
    return "the whole"
