"""The end of a run, as it is sent to its store: the reason, the retries, and when recovery may resume the run."""

from __future__ import annotations

import math
from typing import Final

from .._kernel.run_state import RunState
from ..errors import safe_repr
from ..run import error_line
from ..status import Status
from ..stores.base import Checkpoint, Ending, RunRecord

__all__ = ["ending", "has_progressed", "retry_in"]

_LEASES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""leases to wait before the first retry, the second, and so on; all later ones wait as long as the last one here"""
_UNIT: Final = 1.0
"""seconds used in place of a lease if the store has no leases"""


def retry_in(lease: float, retries: int) -> float:
    """Return the seconds until recovery may resume a run that has ended parked or incomplete `retries` times since its
    last progress."""
    unit = lease if lease < math.inf else _UNIT
    return _LEASES[min(max(retries - 1, 0), len(_LEASES) - 1)] * unit


def ending(run: RunState, record: RunRecord, changes: Checkpoint | None, ordered: str | None = None) -> Ending:
    """Return the Ending of a run for its store, and set the reason and the retries of `record`. `ordered`: the reason
    that an operator gave for cancelling or undoing the run while it was in flight here.

    A run that is parked because its process stops may be resumed at once. A run that is incomplete, or was parked
    because of an error, waits longer each time.
    """
    if record.status is Status.WAITING and run.waits is not None:
        left = run.waits.next_limit(run.deadline) - run.settings.clock()
        run.waits.known = len(run.waits.sent)
        return Ending(record, changes, max(0.0, left), run.waits.known)
    parked = record.status is Status.PARKED and not record.held
    kept = record.status is Status.INCOMPLETE or (parked and not run.released)
    if run.earlier is not None and run.earlier.decided:
        ordered = run.earlier.reason
    if record.status is not Status.SUCCESS:
        record.reason = ordered
    if record.held or record.status in {Status.PARKED, Status.INCOMPLETE}:
        if run.leaving is not None:
            record.reason = run.reason or _reason(run, record)
        elif record.status is Status.COMPENSATION_FAILED or not ordered:
            record.reason = _reason(run, record)
        before = 0 if run.earlier is None or has_progressed(run) else run.earlier.retries
        record.retries = before + kept
    if record.status is Status.INCOMPLETE and run.workflow.undo == "never":  # only the next call resumes it
        return Ending(record, changes, math.inf)
    return Ending(record, changes, retry_in(run.settings.lease, record.retries) if kept else 0.0)


def has_progressed(run: RunState) -> bool:
    """Whether a step or an undo of the run has ended here."""
    before = 0 if run.earlier is None else run.earlier.ended
    return len(run.results) + (len(run.undone) if run.stopped else 0) > before


def _reason(run: RunState, record: RunRecord) -> str:
    """Return the reason for the record of a run that is held, parked or incomplete and has no reason of its own."""
    if record.status is Status.COMPENSATION_FAILED:
        failed = ", ".join(f"{safe_repr(step)} ({error_line(error, 200)})" for step, error in run.undo_errors.items())
        return f"the undo of step {failed} failed"
    if run.leaving is not None or run.error is None:
        return "its process stopped"
    if run.failed_step is None:
        return f"it was stopped ({error_line(run.error, 200)})"
    return f"step {safe_repr(run.failed_step)} failed ({error_line(run.error, 200)})"
