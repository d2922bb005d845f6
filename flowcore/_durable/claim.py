"""The claim: whose run is it? And what becomes of a caller whose run it is not."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from typing import Any, Final

from .._kernel import emit
from .._kernel.effects import Program, Sleep
from .._kernel.run_state import RunState
from ..errors import (
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LeaseLost,
    NotSerializable,
    RunNotFound,
    StoreUnavailable,
    safe_repr,
    safe_str,
)
from ..retry import Backoff
from ..run import Run
from ..stores.base import (
    RESUMABLE,
    Busy,
    Claim,
    Claimed,
    DefinitionChanged,
    Ending,
    Finished,
    Held,
    Mismatch,
    OtherGraph,
    RunRecord,
)
from ..stores.codec import canonical
from ..workflow import own_error
from . import checkpoints
from .ledger import Ledger, ledger_of
from .takeover import Takeover

__all__ = ["StoreClaims", "adopt", "claim"]

_SHORTLY: Final = 0.05
"""seconds: the least that a caller is asked to wait"""
_POLL: Final = Backoff.exponential(0.002, max_delay=0.25, jitter=False)
"""how often a caller with `wait=` asks after the run that has its key"""
_RESENT: Final = 1 / 3
"""of a lease: for how long a claim is sent again to a store that does not answer"""


class StoreClaims:
    """See flowcore._kernel.ledger.Claims."""

    def open(self) -> Ledger:
        return Ledger()

    def claim(self, run: RunState) -> Program[Run | Takeover | None]:
        found = yield from claim(run)
        return Takeover(found) if isinstance(found, RunRecord) else found

    def adopt(self, run: RunState) -> Program[Run | None]:
        return adopt(run)

    def finish(self, run: RunState, finished: Run) -> Program[BaseException | None]:
        ledger, record = ledger_of(run), _record(run, finished)
        if ledger is not None:
            return (yield from checkpoints.finish(run, ledger, record))
        _, failure = yield from checkpoints.ask(run, "finish", Ending(record))
        return failure


def claim(run: RunState) -> Program[Run | RunRecord | None]:
    """Claim the run's key. Answers None if the run is ours from its beginning, the record if it is ours to go on with,
    else the earlier run whose outcome is ours too."""
    try:
        run.fingerprint = None if run.recovering is not None else _fingerprint(run)
    except Exception as error:
        emit.refused(run, error)
        raise
    wanted = Claim(
        run.stored_key,
        run.run_id,
        run.workflow.name,
        run.fingerprint,
        run.plan.graph,
        run.carrier,
        attached=run.recovering,
        waits=run.wait is not None,
    )
    if run.ledger is not None:
        wanted.values, wanted.lease, wanted.types = run.values, run.settings.lease, run.plan.types
        first = run.plan.nodes[run.plan.ready[0]] if run.plan.ready else None
        if first is not None and first.when is None:
            wanted.begins = (first.name,)
    until = None if run.wait is None else run.settings.clock() + run.wait
    polls = 0
    while True:
        sent = run.settings.clock()
        answer, failure = yield from _asked(run, wanted, poll=polls > 0)
        if failure is not None:
            _refuse_if_cancelled(run)
            emit.refused(run, failure)
            raise failure
        match answer:
            case Claimed(record=None) if run.recovering is not None:  # it was forgotten meanwhile
                yield from checkpoints.ask(run, "withdraw", wanted)
                gone = RunNotFound(f"run {run.recovering} is not in the store any more.")
                emit.refused(run, gone)
                raise gone
            case Claimed(record=None, generation=later) if later and run.settings.clock() >= sent + run.settings.lease:
                # A copy of this claim, whose answer was lost, may have been granted long ago, and its run taken over and
                # ended by others: two runs must not have one id.
                yield from checkpoints.ask(run, "withdraw", wanted)
                late = StoreUnavailable(
                    f"key {safe_repr(wanted.key)} was granted more than a lease after it was asked for, and has had other runs: "
                    "the same may be asked again."
                )
                emit.refused(run, late)
                raise late
            case Claimed():
                return _own(run, wanted, answer, sent)
            case OtherGraph():
                why = run.plan.contains(answer.graph)
                if why is None and wanted.resumes != answer.graph:
                    wanted.resumes = answer.graph
                    continue
                changed = DefinitionChanged(
                    f"Run {answer.run_id} of {safe_repr(run.workflow.name)} was started with a different step graph "
                    f"({why or 'it changed meanwhile'}). Resume it with that version of the workflow, or discard it "
                    f"with store.release({safe_repr(wanted.key)})."
                )
                emit.refused(run, changed)
                raise changed
            case _ if run.recovering is not None:  # somebody else was quicker; nobody has asked for an answer
                over = LeaseLost(
                    f"run {run.recovering} is over by now, or somebody else goes on with it.", run_id=run.recovering
                )
                emit.refused(run, over)
                raise over
            case Finished(record=record) if record.status in RESUMABLE:  # held meanwhile
                raise _refusal(run, wanted.key, Held(record.run_id, record.carrier, answer.age))
            case Finished():
                record = answer.record
                adopted = wanted.attached == record.run_id
                emit.hit(run, "adopted" if adopted else "replayed", record.run_id, record.carrier, answer.age)
                return _replay(run, record)
            case Busy() if until is not None and run.settings.clock() < until:
                wanted.attached = answer.run_id
                polls += 1
                left = until - run.settings.clock()
                yield Sleep(max(0.0, min(_POLL.delay(polls), left)))
                _refuse_if_cancelled(run)
            case _:
                raise _refusal(run, wanted.key, answer)


def _asked(run: RunState, wanted: Claim, *, poll: bool) -> Program[checkpoints.Answer]:
    """Send the claim, again and again where a durable store does not answer; nothing has begun that could be lost."""
    told = emit.maintenance_started(run, "poll") if poll else None
    until = run.settings.clock() + (run.settings.lease * _RESENT if run.settings.durable else 0.0)
    tries = 0
    while True:
        answer, failure = yield from checkpoints.ask(run, "claim", wanted, None if told is None else told.context)
        left = until - run.settings.clock()
        if not isinstance(failure, StoreUnavailable) or left <= 0:
            break
        tries += 1
        yield Sleep(min(checkpoints.STORE_BACKOFF.delay(tries), left))
        if run.error is not None:  # cancelled meanwhile
            break
    if isinstance(failure, StoreUnavailable) and run.settings.durable:
        yield from checkpoints.ask(run, "withdraw", wanted)  # should its answer alone have been lost
    if told is not None:
        emit.maintenance_finished(run, told, "poll", failure)
    return answer, failure


def _refuse_if_cancelled(run: RunState) -> None:
    if run.error is not None:
        emit.refused(run, run.error)
        raise run.error


def _own(run: RunState, wanted: Claim, claimed: Claimed, sent: float) -> RunRecord | None:
    """The run is ours."""
    run.claimed = True
    run.generation, run.fence = claimed.generation, claimed.fence
    if run.allowed is not None:
        run.deadline = run.settings.clock() + run.allowed - claimed.age
    ledger = ledger_of(run)
    if ledger is not None:
        ledger.lease_until, ledger.epoch = sent + run.settings.lease, run.settings.wall() - run.settings.clock()
        if claimed.record is None:
            ledger.started(wanted)
    return claimed.record


def _replay(run: RunState, record: RunRecord) -> Run:
    run.run_id = record.run_id
    replay = Run(run, record.workflow, record.status, dict(record.results), record.steps, run.plan)
    replay.replayed, replay.held, replay.carrier = True, record.held, record.carrier
    replay.error = own_error(run.workflow, record.error)
    replay.failed_step, replay.undone = record.failed_step, record.undone
    return replay


def adopt(run: RunState) -> Program[Run | None]:
    """The run was taken over: if its new owner has ended it, or does so while its caller waits, that is its outcome."""
    until = run.settings.clock() + (run.wait or 0.0)
    polls = 0
    while True:
        record, failure = yield from checkpoints.ask(run, "find", run.stored_key)
        if failure is not None or record is None or record.run_id != run.run_id:
            return None
        if record.finished is not None and record.status not in RESUMABLE:
            return _replay(run, record)
        left = until - run.settings.clock()
        if left <= 0:
            return None
        polls += 1
        yield Sleep(min(_POLL.delay(polls), left), shielded=True)


def _refusal(run: RunState, key: str, answer: Busy | Mismatch | Held) -> IdempotencyError:
    """The error for a key that cannot be had, told to the hooks."""
    what = f"idempotency key {safe_repr(key)} of workflow {safe_repr(run.workflow.name)}"
    word: str
    error: IdempotencyError
    match answer:
        case Busy():
            word = "in_progress"
            hint = _SHORTLY if answer.lease_left == math.inf else max(_SHORTLY, answer.lease_left)
            error = IdempotencyInProgress(
                f"{what} is in use by run {answer.run_id}, which is still going on: "
                f"ask again in {hint:g} s, or pass wait= to get its outcome.",
                retry_after=hint,
                run_id=answer.run_id,
            )
        case Mismatch():
            word = "mismatch"
            other = (
                "other initial values"
                if answer.workflow == run.workflow.name
                else f"workflow {safe_repr(answer.workflow)}"
            )
            error = IdempotencyMismatch(f"{what} was used before with {other}: use a key of its own for each request.")
        case _:
            word = "held"
            error = IdempotencyHeld(
                f"{what} is held since run {answer.run_id}: see what it left with engine.store.find({safe_repr(key)}), then "
                f"engine.store.resume({safe_repr(key)}) lets it go on, and engine.store.release({safe_repr(key)}) frees the key."
            )
    emit.hit(run, word, answer.run_id, answer.carrier, answer.age)
    return error


def _fingerprint(run: RunState) -> str:
    """What tells one use of a key from another: the workflow's name and its initial values, in the codec's canonical form."""
    import hashlib  # with a key only: imports that many a run never needs

    values: dict[Any, Any] = run.values
    if run.workflow.fingerprint is not None:
        kind: Any = run.workflow.input
        said_by_user = run.workflow.fingerprint(values if kind is None else kind.build(values))
        if not isinstance(said_by_user, str):
            raise NotSerializable(f"fingerprint= of workflow {safe_repr(run.workflow.name)} must return a string.")
        text = said_by_user
    elif run.key is None:
        return ""
    else:
        text = _canonical(values, run.workflow.name)
    return hashlib.sha256(f"{run.workflow.name}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(values: dict[Any, Any], workflow: str) -> str:
    try:
        return canonical(values)
    except NotSerializable as error:
        problem, culprit = error, "the initial values together"
    for key, value in values.items():
        try:
            canonical({key: value})
        except NotSerializable as error:
            problem, culprit = error, f"the initial value of {safe_repr(key)}"
            break
    raise NotSerializable(
        f"a run of workflow {safe_repr(workflow)} with an idempotency key compares its initial values, but {culprit} cannot be "
        f"compared: {safe_str(problem)} Or pass Workflow(fingerprint=) to say what makes two requests the same."
    )


def _record(run: RunState, finished: Run) -> RunRecord:
    """The run as its store is to keep it; a durable one knows of single steps from its checkpoints."""
    record = RunRecord(
        run.stored_key, run.run_id, run.workflow.name, run.fingerprint, run.plan.graph, finished.status, finished.held
    )
    record.undoing, record.undone, record.failed_step = run.failing, finished.undone, run.failed_step
    record.error = finished.error if run.leaving is None else None if run.error is run.leaving else run.error
    record.generation, record.carrier = run.generation, run.carrier
    record.fence = run.fence if run.claimed else 0  # 0: the claim's answer never came
    if run.ledger is None:
        record.results, record.values, record.steps = run.results, run.values, finished.steps
        record.effects = (*(node.name for node in run.to_undo), *(run.undo_errors if run.stopped else ()))
    return record
