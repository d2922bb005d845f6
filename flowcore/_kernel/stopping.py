"""How a run stops before its end, and what that means for it: it fails, is cancelled, parked, held or lost to another
owner, or is left to its store while it waits. The first reason counts; each function takes the run's lock."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import LeaseLost, RunParked, StepCancelled, safe_repr
from ..plan import Node
from ..run import Sent
from ..status import Status
from .outcome import StepEnd
from .run_state import RunState

__all__ = [
    "continue_as",
    "fail",
    "fail_after_all",
    "fail_step",
    "forget_pivot",
    "hand_over",
    "hold",
    "interrupt",
    "leave_to_parent",
    "lose",
    "park",
    "pause",
    "resume_undo",
    "resume_waits",
]


def fail_step(run: RunState, node: Node, end: StepEnd, *, effect: bool) -> bool:
    """`node` has failed, and with it the run; `effect`: it must be undone. Returns whether this was the first. Its
    place is given up later: the run must not end before its store knows."""
    with run.lock:
        effect = effect and node.compensation is not None
        if effect:
            run.to_undo.append(node)
        if run.ledger is not None:
            run.ledger.failed(run, node, effect=effect)
        return _stop(run, end.error or StepCancelled(), node.name)


def fail(run: RunState, error: BaseException, step: str) -> bool:
    """The run fails because of `step`, which is done. Returns whether this was the first failure."""
    with run.lock:
        return _stop(run, error, step)


def interrupt(run: RunState, error: BaseException, step: str | None = None) -> bool:
    """Cancel the run because of `error` (out of `step`, if one raised it).

    Returns whether it was still going on; then the running calls are to be interrupted, by yielding a Stop or, from
    outside of a program, by the driver.
    """
    if run.finished is Status.WAITING:
        return _cancel_late(run, error)
    if isinstance(error, SystemExit | KeyboardInterrupt) and run.settings.durable:
        return hand_over(run, error)
    with run.lock:
        if run.finished is not None or run.interrupted:
            return False
        run.interrupted = True
        _stop(run, error, step)
        return True


def forget_pivot(run: RunState) -> None:
    """An operator wants the run undone, which no pivot keeps from, unless it has stopped already."""
    with run.lock:
        if not run.stopped:
            run.past_pivot, run.undo_ordered = False, True


def hand_over(run: RunState, error: BaseException) -> bool:
    """This process stops because of `error`: park the run for another one, also while it is being undone, and end its
    calls early. A run in memory, which no other process can resume, is cancelled instead. Returns what `interrupt`
    does."""
    if not run.settings.durable:
        return interrupt(run, error)
    with run.lock:
        if run.finished is not None or run.lost or (run.parked and run.interrupted):
            return False
        run.interrupted = True
        if not run.parked:
            run.parked = True
            _leave(run, error)
        return True


def park(run: RunState, error: Exception) -> None:
    """Leave the run to its next owner because of `error`, also while it is being undone: start no further step, undo
    nothing."""
    with run.lock:
        if run.finished is None and not run.relinquished:
            run.parked = True
            _leave(run, error)


def hold(run: RunState, error: BaseException) -> None:
    """Leave the run to an operator: start nothing, undo nothing."""
    with run.lock:
        if not run.lost:
            run.parked = run.held = True
            _leave(run, error)


def lose(run: RunState, error: BaseException) -> bool:
    """Another process owns the run. Returns whether that is news."""
    with run.lock:
        if run.lost or run.finished is not None:
            return False
        run.lost = run.interrupted = True
        _leave(run, error)
        return True


def leave_to_parent(run: RunState, process: int) -> None:
    """This process, a child, was forked in the middle of the run, which is its parent's. The thread that has forked, in
    a step, may come back into it."""
    run.after_fork()
    what = f"process {process} was forked in the middle of run {run.run_id} of {safe_repr(run.workflow.name)}"
    why = f"{what}, which is its parent's: here nothing more of it is started or undone."
    lose(run, LeaseLost(why, run_id=run.run_id))
    run.running = min(run.running, 1)  # no thread is here that runs any other step


def fail_after_all(run: RunState, error: BaseException) -> None:
    """The end of a run that has done all its steps cannot be recorded: it has not succeeded."""
    with run.lock:
        run.finished = None
        run.parked, run.lost = isinstance(error, RunParked), isinstance(error, LeaseLost)
        if run.relinquished:
            _leave(run, error)
        else:
            _stop(run, error, next(reversed(run.results), None))


def resume_undo(
    run: RunState,
    error: BaseException,
    step: str | None,
    to_undo: list[Node],
    undone: list[str],
    undo_errors: dict[str, Exception],
) -> None:
    """Resume undoing a run that an earlier owner undid in part, or that is to be undone, because of `error`."""
    with run.lock:
        _stop(run, error, step)
        run.to_undo = to_undo
        run.undone, run.undo_errors = undone, undo_errors
        run.undo_begun.update(undone, undo_errors)
        run.undo_order = len(run.undo_begun)


def _leave(run: RunState, error: BaseException) -> None:
    run.leaving = error
    _stop(run, error, None)


def _stop(run: RunState, error: BaseException, step: str | None) -> bool:
    first = not run.stopped
    if first:
        run.undone, run.undo_errors, run.undo_begun = [], {}, set()
        run.error, run.failed_step = error, step
    elif step is not None and error is not run.error and not isinstance(error, StepCancelled):
        run.other_errors += ((step, error),)
    if first:  # later there may be a parallel undo in the queue
        run.ready.clear()
    run.stopped = True
    return first


# -- a run that only waits, and is left to its store -------------------------------------------------------------------


def pause(run: RunState) -> bool:
    """Whether nothing of it can go on but its waits: it may be left to its store, and cannot be cancelled here
    meanwhile."""
    with run.lock:
        if run.stopped or run.running or run.ready or run.waits is None or not run.waits.aside:
            return False
        run.finished, run.main_waits = Status.WAITING, False
        return True


def _cancel_late(run: RunState, error: BaseException) -> bool:
    """Cancel a run that is being left to its store, or was a moment ago. False: its caller has it already, or it has
    none."""
    with run.lock:
        if run.given or run.request.unattended:
            return False
        run.cancelled_late, continued = run.cancelled_late or error, run.continued
    return continued is None or interrupt(continued, error)


def continue_as(run: RunState, again: RunState | None) -> bool:
    """`again`, or with None nothing here, continues a run that was left to its store. False: it was cancelled
    meanwhile, so that something must."""
    with run.lock:
        if again is None and run.cancelled_late is not None:
            return False
        run.continued, run.given = again, again is None
        error = run.cancelled_late
    if again is not None and error is not None:
        interrupt(again, error)
    return True


def resume_waits(run: RunState, sent: Mapping[str, Sent]) -> None:
    """It is not left to its store after all: `sent` has come."""
    with run.lock:
        run.finished, error = None, run.cancelled_late
        if run.waits is not None:
            run.waits.sent.update(sent)
    if error is not None:
        interrupt(run, error)
