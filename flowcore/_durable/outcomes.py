"""The outcome of another run with the key, for a caller whose claim was not granted, or the error that refuses it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from .._kernel import emit
from .._kernel.run_state import RunState
from ..errors import (
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    RunFailed,
    StepCancelled,
    hashed_key,
    safe_repr,
    safe_str,
)
from ..own_errors import own_error
from ..run import Run
from ..status import Status
from ..stores.base import RELEASED, Busy, Held, Mismatch, RunRecord

if TYPE_CHECKING:
    from .waiting import LocalRuns

__all__ = ["UNKNOWN", "is_given_up", "refusal", "replay"]

UNKNOWN: Final = 1.0
"""seconds until a retry is useful, if no run of the workflow has ended in this engine yet"""
_DONE: Final = frozenset({Status.SUCCESS, Status.SKIPPED})
"""the statuses of the steps of a run that has succeeded"""


def is_given_up(run: RunState, record: RunRecord, *, once: bool = False) -> bool:
    """Whether the run of `record`, which is over, has no outcome for the caller of `run`, because an operator released
    or erased it before it had ended. For a claim with `once`, an erased run counts as ended."""
    if record.status not in RELEASED or record.error is not None:
        return False
    if record.fingerprint is None:
        return not once
    reports = (record.steps.get(node.name) for node in run.plan.nodes)
    return not all(report is not None and report.status in _DONE for report in reports)


def replay(run: RunState, record: RunRecord) -> Run:
    """Return the Run that `record` describes, for the caller of `run`."""
    run.run_id = record.run_id
    released = record.status == Status.FAILURE and record.error is None and record.fingerprint is not None
    status = Status.SUCCESS if released else record.status  # it had succeeded before an operator released its key
    ended = Run(run, record.workflow, status, dict(record.results), record.steps, run.plan)
    ended.replayed, ended.held, ended.carrier = True, record.held, record.carrier
    ended.error = own_error(run.workflow, _outcome_of(record))
    ended.failed_step, ended.undone = record.failed_step, record.undone
    return ended


def _outcome_of(record: RunRecord) -> BaseException | None:
    """Return the error that failed the run, or None. A cancellation of its owner becomes a RunFailed, because this
    caller was not cancelled."""
    error = record.error
    if error is None or (isinstance(error, Exception) and not isinstance(error, StepCancelled)):
        return error
    failed = RunFailed(
        f"Run {record.run_id} of {safe_repr(record.workflow)} was cancelled by its owner.",
        run=record.run_id,
        step=record.failed_step,
        error_type="cancelled",
        error_message=safe_str(error),
    )
    failed.__cause__ = error if isinstance(error, Exception) else None
    return failed


def refusal(run: RunState, local: LocalRuns | None, key: str, answer: Busy | Mismatch | Held) -> IdempotencyError:
    """Return the error for a key that could not be claimed, and emit the refusal."""
    what = f"Key {hashed_key(key)} of workflow {safe_repr(run.workflow.name)}"
    word: str
    error: IdempotencyError
    match answer:
        case Busy():
            word = "in_progress"
            hint = UNKNOWN if local is None else local.usual_rest(run.workflow.name, answer.age)
            awaited = answer.waiting_for or (() if local is None else local.awaited(key))
            values = [name for name in awaited if _takes_a_value(run, name)]
            if answer.waiting_for and not values and answer.lease_left < math.inf:  # it is not due before that
                hint = answer.lease_left
            stands = f"is still in progress. Retry in about {hint:.2g} s"
            if values:
                stands = f"waits for a value for {', '.join(map(safe_repr, values))}. Send it"
            elif awaited:
                stands = f"waits for {', '.join(map(safe_repr, awaited))}, which is due in {hint:.2g} s. Retry then"
            error = IdempotencyInProgress(
                f"{what} belongs to run {answer.run_id}, which {stands}, or pass wait= to get its outcome.",
                retry_after=hint,
                lease_left=answer.lease_left,
                run_id=answer.run_id,
                key=key,
                waiting_for=awaited,
            )
        case Mismatch(erased=True):
            word = "mismatch"
            error = IdempotencyMismatch(
                f"{what} belongs to run {answer.run_id}, whose values and results were erased. Use another key, or free this "
                "one with engine.store.release(error.key).",
                key=key,
            )
        case Mismatch():
            word = "mismatch"
            other = (
                "different initial values"
                if answer.workflow == run.workflow.name
                else f"workflow {safe_repr(answer.workflow)}"
            )
            error = IdempotencyMismatch(f"{what} was already used with {other}. Use a unique key per request.", key=key)
        case _:
            word = "held"
            error = IdempotencyHeld(
                f"{what} is held by run {answer.run_id}. See why with engine.store.find(error.key); then resume it with "
                "engine.store.resume(error.key), undo it with engine.store.undo(error.key), or discard it with "
                "engine.store.release(error.key).",
                key=key,
            )
    emit.hit(run, word, answer.run_id, answer.carrier, answer.age)
    return error


def _takes_a_value(run: RunState, name: str) -> bool:
    """Whether a value can be sent to the step `name`, for which a run of this workflow waits."""
    node = run.plan.by_name.get(name)
    return node is None or (node.wait is not None and not node.wait.sleeps)
