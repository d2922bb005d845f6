"""The claim of a run's key, and what a caller gets if another run has the key."""

# Arguments of callers without a type checker are checked at run time.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .._kernel import emit, stopping
from .._kernel.effects import Program, Sleep
from .._kernel.run_state import RunState
from ..errors import (
    LeaseLost,
    NotSerializable,
    RunNotFound,
    RunParked,
    StoreUnavailable,
    hashed_key,
    safe_repr,
    safe_str,
)
from ..run import Run
from ..status import Status
from ..stores.base import (
    RESUMABLE,
    STOPS,
    Arrived,
    Busy,
    Claim,
    ClaimAnswer,
    Claimed,
    DefinitionChanged,
    Finished,
    Held,
    OtherGraph,
    Owner,
    RunRecord,
)
from ..stores.canonical import canonical
from . import checkpoints
from .dormant import take_back
from .endings import ending
from .ledger import Ledger, ledger_of
from .outcomes import is_given_up, refusal, replay
from .takeover import Takeover
from .waiting import LocalRuns, adopt, refuse_if_cancelled, taken_here, wait_for_owner, wait_for_turn

__all__ = ["StoreClaims", "claim", "fingerprint_of", "record_of"]


class StoreClaims:
    """See flowcore._kernel.ledger.Claims. `local`: the engine's runs in flight. `owner`: returns the Owner to
    record."""

    def __init__(self, local: LocalRuns | None = None, owner: Callable[[], Owner] | None = None) -> None:
        self.local = local
        self._owner = owner

    def open(self) -> Ledger:
        return Ledger()

    def claim(self, run: RunState) -> Program[Run | Takeover | None]:
        resumes = None if run.request.recovering is None else self.local
        try:
            if resumes is not None:
                yield from wait_for_turn(run, resumes)
            found = yield from claim(run, self.local, self._owner)
            if run.claimed and self.local is not None:
                self.local.join(run)
        except (SystemExit, KeyboardInterrupt) as error:
            if error is not run.error:
                emit.refused(run, error)
            raise
        finally:
            if resumes is not None:
                resumes.end_resuming(run)
        return Takeover(found) if isinstance(found, RunRecord) else found

    def has_here(self, key: str) -> bool:
        """Whether a run of this engine has the key."""
        return self.local is not None and self.local.find(key) is not None

    def withdraw(self, run: RunState, claim_id: str) -> Program[None]:
        if run.claimed or not run.queued:  # what is only queued may begin elsewhere
            wanted = Claim(run.stored_key, claim_id, run.workflow.name, None, run.plan.graph, run.carrier)
            yield from checkpoints.ask(run, "withdraw", wanted)

    def adopt(self, run: RunState) -> Program[Run | None]:
        return adopt(run)

    def suspend(self, run: RunState, waiting: Run) -> Program[bool]:
        ledger, record = ledger_of(run), record_of(run, waiting)
        assert ledger is not None and run.waits is not None  # noqa: S101, PT018 - only a durable run is suspended
        record.waiting_for = tuple(run.waits.aside)
        failure = yield from checkpoints.finish(run, ledger, record)
        if failure is None or isinstance(failure, LeaseLost):  # LeaseLost: another owner has resumed it
            return True
        if isinstance(failure, Arrived):
            found, failure = yield from checkpoints.ask(run, "find", record.key)
            stopping.resume_waits(run, {} if found is None else found.sent)
            if found is not None and (order := STOPS.get(found.decision)) is not None:
                checkpoints.obey(run, order)
            return False
        stopping.resume_waits(run, {})
        stopping.park(run, checkpoints.parked(run, f"its wait could not be saved ({safe_str(failure, 200)})", failure))
        return False

    def finish(self, run: RunState, finished: Run) -> Program[BaseException | None]:
        ledger, record = ledger_of(run), record_of(run, finished)
        if ledger is not None:
            failure = yield from checkpoints.finish(run, ledger, record)
            return None if isinstance(failure, Arrived) else failure
        _, failure = yield from checkpoints.ask(run, "finish", ending(run, record, None))
        return failure


def claim(
    run: RunState, local: LocalRuns | None = None, owner: Callable[[], Owner] | None = None
) -> Program[Run | RunRecord | None]:
    """Claim the run's key. Returns None if the run begins here, its record if it is resumed here, or the Run of an
    earlier run with the key, whose outcome the caller gets. Raises if the claim is refused or the store fails."""
    request = run.request
    try:
        run.fingerprint = None if request.recovering is not None else fingerprint_of(run)
    except Exception as error:
        emit.refused(run, error)
        raise
    wanted = _claim_of(run, owner)
    until = None if request.wait is None else run.settings.clock() + request.wait
    polls = 0
    if run.error is not None and request.wait is not None and request.recovering is not None:
        if run.relinquished:
            refuse_if_cancelled(run)
        yield from take_back(run, wanted.key)
    known: ClaimAnswer | None = None
    failure: BaseException | None = None
    while True:
        sent = run.settings.clock()
        answer = known or (yield from taken_here(run, local, wanted))
        if answer is None:
            answer, failure = yield from _asked(run, wanted, poll=polls > 0)
        if failure is not None:
            refuse_if_cancelled(run)
            if run.queued and isinstance(failure, StoreUnavailable):
                failure = _unbegun(run, failure)
            raise _refused(run, failure)
        match answer:
            case Claimed():
                return (yield from _granted(run, wanted, answer, sent))
            case OtherGraph():
                why = run.plan.contains(answer.graph)
                if why is not None or wanted.resumes == answer.graph:
                    raise _refused(run, _definition_changed(run, wanted.key, answer, why or "it changed meanwhile"))
                wanted.resumes = answer.graph
            case _ if request.recovering is not None and request.wait is None:  # no caller waits for the outcome
                over = f"Run {request.recovering} has already finished or was taken over by another process."
                raise _refused(run, LeaseLost(over, run_id=request.recovering))
            case Finished(record=record) if record.status in RESUMABLE:  # it has been held meanwhile
                raise refusal(run, local, wanted.key, Held(record.run_id, record.carrier, answer.age))
            case Finished(record=record) if is_given_up(run, record, once=wanted.once):
                if wanted.attached is None or request.recovering is not None:
                    lost = (
                        f"Run {record.run_id} was released or erased before it ended. Call again to begin another run."
                    )
                    raise _refused(run, LeaseLost(lost, run_id=record.run_id))
                wanted.attached = known = None  # the run that this caller waited for frees its key: begin another one
            case Finished():
                record = answer.record
                adopted = wanted.attached == record.run_id
                emit.hit(run, "adopted" if adopted else "replayed", record.run_id, record.carrier, answer.age)
                return replay(run, record)
            case Busy() if until is not None and run.settings.clock() < until:
                polls, run.attached = polls + 1, request.recovering is None
                known = yield from wait_for_owner(run, local, wanted, answer, sent, until)
                run.attached = False
            case _:
                raise refusal(run, local, wanted.key, answer)


def _claim_of(run: RunState, owner: Callable[[], Owner] | None) -> Claim:
    request = run.request
    wanted = Claim(
        run.stored_key,
        run.run_id,
        run.workflow.name,
        run.fingerprint,
        run.plan.graph,
        run.carrier,
        attached=request.recovering,
        waits=request.wait is not None,
    )
    wanted.once, wanted.deadline, wanted.own_deadline = request.once, request.deadline, request.own_deadline
    if run.ledger is not None:
        wanted.owner = None if owner is None else owner()
        wanted.values, wanted.lease, wanted.types = run.values, run.settings.lease, run.plan.types
        first = run.plan.nodes[run.plan.ready[0]] if run.plan.ready else None
        if first is not None and first.when is None and first.wait is None:
            wanted.begins = (first.name,)
    return wanted


def _refused(run: RunState, error: BaseException) -> BaseException:
    """Emit that the claim is refused. Returns the error to raise."""
    emit.refused(run, error)
    return error


def _definition_changed(run: RunState, key: str, other: OtherGraph, why: str) -> DefinitionChanged:
    return DefinitionChanged(
        f"Run {other.run_id} of {safe_repr(run.workflow.name)} was started with a different step graph ({why}). Resume "
        "it with that version of the workflow, or discard it with store.release(error.key).",
        key=key,
    )


def _asked(run: RunState, wanted: Claim, *, poll: bool) -> Program[checkpoints.Answer]:
    """Send the claim, and retry for a part of a lease while a durable store is unreachable. The claim is withdrawn if
    that fails. `poll`: the caller waits for another run, and has sent the claim before."""
    polled = emit.maintenance_started(run, "poll") if poll else None
    until = run.settings.clock() + (run.settings.lease * checkpoints.CLAIM_PATIENCE if run.settings.durable else 0.0)
    tries = 0
    while True:
        answer, failure = yield from checkpoints.ask(run, "claim", wanted, None if polled is None else polled.context)
        left = until - run.settings.clock()
        if not isinstance(failure, StoreUnavailable) or left <= 0:
            break
        tries += 1
        yield Sleep(min(checkpoints.STORE_BACKOFF.delay(tries), left))
        if run.error is not None:  # cancelled meanwhile
            break
    kept = run.queued and (run.error is None or run.parked)  # other engines may run it
    if isinstance(failure, StoreUnavailable) and run.settings.durable and not kept:
        yield from checkpoints.ask(run, "withdraw", wanted)  # it may have been granted, and only the reply was lost
    if polled is not None:
        emit.maintenance_finished(run, polled, "poll", failure)
    return answer, failure


def _unbegun(run: RunState, failure: StoreUnavailable) -> RunParked:
    """Return the error of a submitted run that this process could not begin, because the store stayed unreachable."""
    parked = RunParked(
        f"run {run.run_id} of {safe_repr(run.workflow.name)} has not begun: {safe_str(failure, 200)} It is recorded as "
        "queued, and another engine may run it."
    )
    parked.__cause__ = failure
    return parked


def _granted(run: RunState, wanted: Claim, claimed: Claimed, sent: float) -> Program[RunRecord | None]:
    """Take the run, as `claim` returns it, unless the claim must be withdrawn."""
    if claimed.record is None and run.request.recovering is not None:  # its record was deleted meanwhile
        yield from checkpoints.ask(run, "withdraw", wanted)
        raise _refused(run, RunNotFound(f"Run {run.request.recovering} is no longer in the store."))
    if claimed.record is None and claimed.generation and run.settings.clock() >= sent + run.settings.lease:
        # A copy of this claim, whose reply was lost, may have been granted long ago, and other processes may
        # have taken over and ended its run. Two runs must not have one id.
        yield from checkpoints.ask(run, "withdraw", wanted)
        late = StoreUnavailable(
            f"The store replied to the claim for key {hashed_key(wanted.key)} too late (more than one lease), and other "
            "runs have used the key since. The claim was withdrawn; retry the call.",
            key=wanted.key,
        )
        raise _refused(run, late)
    return _own(run, wanted, claimed, sent)


def _own(run: RunState, wanted: Claim, claimed: Claimed, sent: float) -> RunRecord | None:
    """Note that the claim is granted. Returns the record of a run that is resumed, or None if the run begins here."""
    run.claimed = True
    run.generation, run.fence = claimed.generation, claimed.fence
    allowed = run.request.deadline
    if claimed.record is not None:
        run.run_id = claimed.record.run_id
        # The deadline of the call that began the run holds, unless this call sets one of its own.
        if claimed.record.deadline is not None and not run.request.own_deadline:
            allowed = claimed.record.deadline
    if allowed is not None:
        run.deadline = run.settings.clock() + allowed - claimed.age
    ledger = ledger_of(run)
    if ledger is not None:
        ledger.lease_until = sent + run.settings.lease
        ledger.note_clocks(run, sent, claimed.now)
        if claimed.record is None:
            ledger.started(wanted)
    if claimed.record is not None:
        run.began = _began(run, claimed.record, claimed.age)
    return claimed.record


def _began(run: RunState, record: RunRecord, age: float) -> float | None:
    """Return when a run that is resumed began under an earlier owner (monotonic), or None if it was only queued. `age`
    may include the time in the queue; the start of the first step then shows when that ended."""
    if record.status is Status.QUEUED:
        return None
    now, epoch = run.settings.clock(), 0.0 if run.ledger is None else run.ledger.epoch
    first = min((report.started for report in record.steps.values() if report.started is not None), default=-math.inf)
    return min(now, max(now - max(0.0, age), first - epoch))


def fingerprint_of(run: RunState) -> str:
    """Return the fingerprint of a request, a hash of the workflow's name and the canonical form of its initial values.
    Two calls with one key must have the same. Raises NotSerializable if the values cannot be compared."""
    import hashlib  # imported here, because only runs with a key need it

    values: dict[Any, Any] = run.values
    if run.workflow.fingerprint is not None:
        kind: Any = run.workflow.input
        custom = run.workflow.fingerprint(values if kind is None else kind.build(values))
        if not isinstance(custom, str):
            raise NotSerializable(f"fingerprint= of workflow {safe_repr(run.workflow.name)} must return a string.")
        text = str.__str__(custom)  # a member of an Enum is formatted as something else
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
        f"A run of workflow {safe_repr(workflow)} with an idempotency key compares its initial values, but {culprit} "
        f"cannot be compared: {safe_str(problem)} Or pass Workflow(fingerprint=) to define when two requests are equal."
    )


def record_of(run: RunState, finished: Run) -> RunRecord:
    """Return the record of a run that has ended or only waits. It has single steps only for a run in memory, because a
    durable store has them from checkpoints."""
    record = RunRecord(
        run.stored_key, run.run_id, run.workflow.name, run.fingerprint, run.plan.graph, finished.status, finished.held
    )
    record.undoing, record.undone, record.failed_step = run.failing, finished.undone, run.failed_step
    record.error = finished.error if run.leaving is None else None if run.error is run.leaving else run.error
    record.generation, record.carrier = run.generation, run.carrier
    record.fence = run.fence if run.claimed else 0  # 0: the key was not claimed
    if run.ledger is None:
        record.results, record.values, record.steps = run.results, run.values, finished.steps
        record.sent = {} if run.waits is None else dict(run.waits.sent)
        record.effects = (*(node.name for node in run.to_undo), *(run.undo_errors if run.stopped else ()))
    return record
