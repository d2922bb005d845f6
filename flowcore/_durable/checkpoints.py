"""The checkpoints of a durable run: each start, end and undo of a step is saved before anything that follows from it.

The next owner of a run knows only what was recorded here. So a step's end is recorded in one round trip with the start
of the step that its worker runs next. Only then may other steps that depend on it begin.

Calls to an unreachable store are retried for `store_patience` seconds, then the run parks. Meanwhile nothing new starts
once the lease has expired. If the store returns Lost, another owner has the run, and this one starts and undoes nothing
more. If it returns Behind, its record has gone back in time, and this owner writes all that it knows.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from .._kernel import emit, stopping
from .._kernel.effects import Ask, Program, Sleep, Stop
from .._kernel.run_state import RunState
from ..errors import (
    LeaseLost,
    NotSerializable,
    RunParked,
    StepCancelled,
    StoreError,
    StoreUnavailable,
    safe_repr,
    safe_str,
)
from ..retry import Backoff
from ..stores.base import Arrived, Behind, Checkpoint, DefinitionChanged, Lost, Renewal, RunRecord
from .endings import ending

if TYPE_CHECKING:
    from .ledger import Ledger

__all__ = [
    "CLAIM_PATIENCE",
    "STORE_BACKOFF",
    "Answer",
    "ask",
    "cancelled",
    "finish",
    "lose",
    "parked",
    "retry_store_call",
    "save",
    "settle",
]

Answer = tuple[Any, BaseException | None]
"""(the store's reply, None) or (None, its error)"""
CLAIM_PATIENCE: Final = 1 / 3
"""the part of a lease for which a claim is sent again to an unreachable store"""
STORE_BACKOFF: Final = Backoff.exponential(0.02, max_delay=1.0, jitter=False)
"""the delays between retries of a call to an unreachable store"""
_HEALS: Final = 10
"""how often an owner writes all that it knows before it concludes that its store keeps none of it"""
_MARGIN: Final = 1 / 6
"""the last part of a lease; a run that is cancelled or left retries no call of the store in it"""
_REFUSALS: Final = (NotSerializable, DefinitionChanged)
"""errors with which a healthy store refuses a call"""
_CURABLE: Final = (StoreUnavailable, OSError)
"""errors of a store that a retry may cure"""


def ask(run: RunState, verb: str, argument: object, context: contextvars.Context | None = None) -> Program[Answer]:
    """Call the store once, in `context` or in the run's own, and emit how it went. Returns its reply, or its error."""
    began = run.settings.clock()
    outcome: Answer = yield Ask(verb, argument, context)
    _emit_call(run, verb, began, outcome[1])
    return outcome


def _emit_call(run: RunState, verb: str, began: float, error: BaseException | None) -> None:
    emit.store_called(run, verb, began, error, healthy=error is None or isinstance(error, _REFUSALS))


def finish(run: RunState, ledger: Ledger, record: RunRecord) -> Program[BaseException | Arrived | None]:
    """Record how the run ended, and all changes that are not saved yet. Returns None, or the error if that failed, or
    Arrived if a run that was to wait must resume here."""
    if ledger.ordered:
        yield from _learn_reason(run, ledger)
    with run.lock:
        steps, writes = ledger.take()
        base = ledger.base
    changes = Checkpoint(
        record.key, record.run_id, record.fence, run.settings.lease, steps, writes, record.undoing, base=base
    )
    changes.types = run.plan.types
    end = ending(run, record, changes, ledger.reason)
    answer, failure = yield from retry_store_call(run, ledger, "finish", end)
    for _ in range(_HEALS):
        if failure is not None or not isinstance(answer, Behind):
            break
        answer, failure = yield from _healed(run, ledger, changes, answer, None)
        if failure is None and not isinstance(answer, Lost):
            changes.base = ledger.base
            answer, failure = yield from retry_store_call(run, ledger, "finish", end)
    if failure is None and isinstance(answer, Behind):
        failure = _stays_behind(run)
    if failure is not None or isinstance(answer, Arrived):
        _put_back(run, ledger, changes, failure)
    if isinstance(answer, Arrived):
        return answer
    return lose(run, gone=answer.gone) if isinstance(answer, Lost) else failure


def _learn_reason(run: RunState, ledger: Ledger) -> Program[None]:
    """Learn the reason that an operator gave for cancelling or undoing the run. The store forgets it once the run is
    being undone."""
    head, failure = yield from ask(run, "head", run.stored_key)
    if failure is None:
        ledger.ordered = False
        ledger.reason = head.reason if head is not None and head.run_id == run.run_id else None


def save(run: RunState, ledger: Ledger, steps: Collection[str] | None) -> Program[BaseException | None]:
    """Save the changes of `steps`, or of all steps if that is None. Returns None, or the error if that failed. Any
    error but NotSerializable has stopped the run."""
    if ledger.ordered:
        yield from _learn_reason(run, ledger)
    with run.lock:
        if steps is None and run.running > 1:  # the writes of running steps are saved with their own ends
            steps = (*ledger.steps, "")
        records, writes = ledger.take(steps)
        # A pivot that is still running may succeed, and then nothing is undone.
        undoing = run.failing and not (run.plan.pivoted and run.running)
        checkpoint = Checkpoint(run.stored_key, run.run_id, run.fence, run.settings.lease, records, writes, undoing)
        checkpoint.base = ledger.base
        checkpoint.types = run.plan.types
        checkpoint.renews = ledger.must_renew(run.settings.clock(), run.settings.lease)
        if undoing:
            checkpoint.failed_step, checkpoint.error = run.failed_step, run.error
    answer, failure = yield from retry_store_call(run, ledger, "checkpoint", checkpoint)
    return (yield from settle(run, ledger, checkpoint, answer, failure))


def settle(
    run: RunState, ledger: Ledger, checkpoint: Checkpoint, answer: object, failure: BaseException | None
) -> Program[BaseException | None]:
    """Process the reply of the store to a checkpoint, or the failure to save it. Returns None, or the error as `save`
    does."""
    answer, failure = yield from _healed(run, ledger, checkpoint, answer, failure)
    while failure is None and not isinstance(answer, Lost) and run.settings.clock() >= ledger.lease_until:
        # The checkpoint was written in time, but its reply came too late: another owner may have the run by now.
        empty = Checkpoint(run.stored_key, run.run_id, run.fence, run.settings.lease)
        answer, failure = yield from retry_store_call(run, ledger, "checkpoint", empty)
        answer, failure = yield from _healed(run, ledger, empty, answer, failure)
    if failure is not None:
        _put_back(run, ledger, checkpoint, failure)
    elif isinstance(answer, Renewal) and obey(run, answer):
        yield Stop(cancel=True)
    if isinstance(answer, Lost):
        failure = lose(run, gone=answer.gone)
    elif failure is not None and not isinstance(failure, NotSerializable):
        stopping.park(run, parked(run, f"its progress could not be saved ({safe_str(failure, 200)})", failure))
    if run.relinquished:
        yield Stop(cancel=run.lost)
    return failure


def _healed(
    run: RunState, ledger: Ledger, checkpoint: Checkpoint, answer: object, failure: BaseException | None
) -> Program[Answer]:
    """Write all that this owner knows of the run if its record has gone back in time. Returns the final reply or
    error."""
    for _ in range(_HEALS):
        if failure is not None or not isinstance(answer, Behind):
            break
        with run.lock:
            steps, writes = ledger.all_known()
        healing = replace(checkpoint, steps=steps, writes=writes, heals=True, renews=True)
        answer, failure = yield from retry_store_call(run, ledger, "checkpoint", healing)
    if failure is None and isinstance(answer, Behind):
        failure = _stays_behind(run)
    if failure is None and not isinstance(answer, Lost):
        with run.lock:
            ledger.acknowledged(checkpoint)
    return answer, failure


def _stays_behind(run: RunState) -> StoreError:
    return StoreError(
        f"the record of run {run.run_id} of {safe_repr(run.workflow.name)} still lacks what its owner has written, although "
        f"the owner wrote all of it {_HEALS} more times. Check the store with doctor().",
        key=run.stored_key,
    )


def retry_store_call(
    run: RunState, ledger: Ledger, verb: str, argument: object, failed: tuple[float, BaseException] | None = None
) -> Program[Answer]:
    """Call the store, and retry while it is unreachable, for `store_patience` at most, or until the run's deadline. The
    changes of steps that have ended are kept meanwhile: the store refuses them if another owner has taken the run over.

    `failed`: when the first call was made, and its error, if it was made already. A run that is cancelled or left
    retries until shortly before its lease ends.
    """
    clock, lease = run.settings.clock, run.settings.lease
    began, failure = (clock(), None) if failed is None else failed
    tries = 0
    while True:
        if failure is not None:
            until = began + run.settings.store_patience
            if run.deadline is not None and not run.stopped:
                until = min(until, max(run.deadline, ledger.lease_until - lease * _MARGIN))
            if run.interrupted or run.relinquished:
                until = min(until, began + lease - lease * _MARGIN, ledger.lease_until - lease * _MARGIN)
            left = until - clock()
            if not isinstance(failure, _CURABLE) or left <= 0 or run.lost:
                return None, failure
            tries += 1
            yield Sleep(min(STORE_BACKOFF.delay(tries), left), shielded=True)
        sent = clock()
        answer, failure = yield Ask(verb, argument)
        if run.wanted:
            _emit_call(run, verb, sent, failure)
        if failure is None:
            renewed = isinstance(argument, Checkpoint) and argument.renews
            if renewed and not isinstance(answer, Lost | Behind):
                ledger.extend_lease(sent + lease)
            return answer, None


def _put_back(run: RunState, ledger: Ledger, checkpoint: Checkpoint, failure: BaseException | None) -> None:
    """Put changes that could not be saved back among the unsaved ones. Later changes win, and values that the store
    cannot keep are dropped."""
    with run.lock:
        for name, record in checkpoint.steps.items():
            ledger.steps.setdefault(name, record)
            if isinstance(failure, NotSerializable):
                ledger.cannot_keep(name)
        if not isinstance(failure, NotSerializable):
            pending = ledger.writes.setdefault("", {})
            pending.update({k: w for k, w in checkpoint.writes.items() if k not in pending or pending[k].seq < w.seq})


def lose(run: RunState, *, gone: bool = False) -> LeaseLost:
    """Stop the run because the store reports that it is not ours any more. `gone`: the store has no record of it.
    Returns the error of the run."""
    what = f"run {run.run_id} of {safe_repr(run.workflow.name)}"
    why = (
        f"The store no longer has a record of {what}. No further step or compensation was started; check its effects "
        "before running it again."
        if gone
        else f"Another process has taken over {what}, or an operator has released it. No further step or compensation "
        "was started here."
    )
    error = LeaseLost(why, run_id=run.run_id)
    if stopping.lose(run, error):
        emit.lease_lost(run)
    return error


def parked(run: RunState, why: str, cause: BaseException | None = None) -> RunParked:
    """Return the error of a parked run, which another caller or recovery resumes. `why`: the reason, which its record
    keeps."""
    run.reason = why
    error = RunParked(
        f"Run {run.run_id} of {safe_repr(run.workflow.name)} was parked: {why}. It resumes on the next call with its key "
        "or on engine.recover()."
    )
    error.__cause__ = cause
    return error


def obey(run: RunState, order: Renewal) -> bool:
    """Cancel the run, as an operator has decided; with UNDO it is undone even past its pivot. Returns whether its calls
    must be interrupted. Does nothing if such a decision was in the record already when the run was taken over."""
    if run.earlier is not None and run.earlier.decided:
        return False
    if order is Renewal.UNDO:
        stopping.forget_pivot(run)
    if not stopping.interrupt(run, cancelled(run)):
        return False
    if run.ledger is not None:
        cast("Ledger", run.ledger).ordered = True
    return True


def cancelled(run: RunState) -> StepCancelled:
    """Return the error of a run that an operator has cancelled through the store."""
    return StepCancelled(f"Run {run.run_id} of {safe_repr(run.workflow.name)} was cancelled through its store.")
