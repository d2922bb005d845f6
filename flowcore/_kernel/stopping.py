"""Ways for a run to stop before its end: it fails, is cancelled, parked, held or lost to another owner, or is left to
its store while it waits. The first reason counts. Each function takes the run's lock."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import LeaseLost, RunParked, StepCancelled, StoreUnavailable, UndoInterrupted, safe_repr
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
    "free_places",
    "hand_over",
    "hold",
    "interrupt",
    "leave_to_parent",
    "lose",
    "park",
    "pause",
    "release",
    "resume_undo",
    "resume_waits",
    "store_interrupted",
    "undo_interrupted",
]


def fail_step(run: RunState, node: Node, end: StepEnd, *, effect: bool) -> bool:
    """Fail the run because `node` has failed. `effect`: `node` must be undone. Returns whether this is the first
    failure. The place of `node` is freed later, because the run must not end before the failure is saved."""
    with run.lock:
        effect = effect and node.compensation is not None
        if effect:
            run.to_undo.append(node)
        if run.ledger is not None:
            run.ledger.failed(run, node, effect=effect)
        return _stop(run, end.error or StepCancelled(), node.name)


def fail(run: RunState, error: BaseException, step: str) -> bool:
    """Fail the run because of `step`, which has succeeded. Returns whether this is the first failure."""
    with run.lock:
        return _stop(run, error, step)


def interrupt(run: RunState, error: BaseException, step: str | None = None) -> bool:
    """Cancel the run because of `error`, which `step` raised if that is given. SystemExit and KeyboardInterrupt park a
    durable run instead.

    Returns whether the run was still in progress and was not cancelled before. The running calls must then be
    interrupted: a program yields a Stop, and other callers use the driver.
    """
    if run.finished is Status.WAITING or is_adopting(run):
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
    """Let the run be undone even past its pivot, because an operator wants that. Does nothing if the run has
    stopped."""
    with run.lock:
        if not run.stopped:
            run.past_pivot, run.undo_ordered = False, True


def hand_over(run: RunState, error: BaseException) -> bool:
    """Park the run for another process, even while it is being undone, because this process stops with `error`. Its
    calls are to end early. A run in memory is cancelled instead, because no other process can resume it. Returns
    whether the running calls must be interrupted, as `interrupt` does."""
    if not run.settings.durable or is_adopting(run):
        return interrupt(run, error)
    with run.lock:
        if run.finished is not None:
            run.interrupted = True  # if its end cannot be recorded, that is tried until its lease ends, and no longer
            return False
        if run.lost or (run.parked and run.interrupted):
            return False
        run.interrupted = True
        if not run.parked:
            run.parked = run.released = True
            _leave(run, error)
        return True


def release(run: RunState, error: Exception) -> None:
    """Leave the run to its next owner, who may resume it at once. `error` tells its caller why: this engine stops, or no
    thread is free for the run. The running calls may end; no further step or undo starts here."""
    _park(run, error, released=True)


def park(run: RunState, error: Exception) -> None:
    """Leave the run to its next owner because of `error`, even while it is being undone. No further step or undo starts
    here."""
    _park(run, error, released=False)


def hold(run: RunState, error: BaseException) -> None:
    """Leave the run to an operator because of `error`. No further step or undo starts here."""
    with run.lock:
        if not run.lost:
            run.parked, run.held, run.released = True, True, False
            _leave(run, error)


def lose(run: RunState, error: BaseException) -> bool:
    """Stop the run here because another process owns it. Returns False if it was known to be lost, or has ended."""
    with run.lock:
        if run.lost or run.finished is not None:
            return False
        run.lost = run.interrupted = True
        _leave(run, error)
        return True


def leave_to_parent(run: RunState, process: int) -> None:
    """Stop the run in this process, a child that was forked in the middle of it: the run belongs to the parent. The
    thread that forked, in a step, may return from that step into the run."""
    run.after_fork()
    what = f"Process {process} was forked in the middle of run {run.run_id} of {safe_repr(run.workflow.name)}"
    why = f"{what}. The run belongs to the parent process; this process starts and undoes nothing more of it."
    lose(run, LeaseLost(why, run_id=run.run_id))
    run.running = min(run.running, 1)  # the threads that run other steps exist only in the parent


def fail_after_all(run: RunState, error: BaseException) -> None:
    """Stop a run whose end could not be recorded. It becomes parked, lost or failed, depending on the type of
    `error`."""
    with run.lock:
        run.finished = None
        run.parked, run.lost = run.parked or isinstance(error, RunParked), isinstance(error, LeaseLost)
        run.released = False
        if run.relinquished:
            _leave(run, error)
        else:
            _stop(run, error, next(reversed(run.results), None))


def free_places(run: RunState) -> bool:
    """Free the places of all steps, because a worker that was cut short may have kept one. Returns whether the main
    program waits for that; the caller then resumes it."""
    with run.lock:
        waits, run.main_waits = run.main_waits, False
        run.running = 0
        return waits


def resume_undo(
    run: RunState,
    error: BaseException,
    step: str | None,
    to_undo: list[Node],
    undone: list[str],
    undo_errors: dict[str, Exception],
) -> None:
    """Begin or resume the undoing of a run that was taken over. `error` and `step`: the failure that stopped the run.
    `undone` and `undo_errors`: the undos that ended under earlier owners."""
    with run.lock:
        if run.leaving is None:
            _stop(run, error, step)
        else:  # its process stops, or another one owns the run: the record still says why the run failed
            run.error, run.failed_step = error, step
        run.to_undo = to_undo
        run.undone, run.undo_errors = undone, undo_errors
        run.undo_begun.update(undone, undo_errors)
        run.undo_order = len(run.undo_begun)


def _park(run: RunState, error: Exception, *, released: bool) -> None:
    with run.lock:
        if run.finished is None and not run.relinquished:
            run.parked, run.released = True, released
            _leave(run, error)


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
    if first:  # on a later call, the queue may hold the steps of a parallel undo
        run.ready.clear()
    run.stopped = True
    return first


# -- a run that only waits, and is left to its store -------------------------------------------------------------------


def pause(run: RunState) -> bool:
    """Mark the run as WAITING if it only waits, so that it can be left to its store, and not be cancelled here
    meanwhile. Returns False if it has stopped, or has steps that run or are ready."""
    with run.lock:
        if run.stopped or run.running or run.ready or run.waits is None or not run.waits.aside:
            return False
        run.finished, run.main_waits = Status.WAITING, False
        return True


def is_adopting(run: RunState) -> bool:
    """Whether the caller of a run that was lost waits for the outcome that another owner gives it."""
    return run.finished is Status.LOST and run.request.wait is not None


def _cancel_late(run: RunState, error: BaseException) -> bool:
    """Cancel a run that is being, or was, left to its store or to another owner. Returns False if no caller waits for it,
    or if the RunState that resumes it has ended or was cancelled before."""
    with run.lock:
        if run.given or run.request.unattended:
            return False
        run.cancelled_late, continued = run.cancelled_late or error, run.continued
    return continued is None or interrupt(continued, error)


def continue_as(run: RunState, again: RunState | None) -> bool:
    """Note that `again` resumes a run that was left to its store or, if that is None, that nothing here does. Returns
    False if it is None but the run was cancelled meanwhile, so that it must be resumed."""
    with run.lock:
        if again is None and run.cancelled_late is not None:
            return False
        run.continued, run.given = again, again is None
        error = run.cancelled_late
    if again is not None and error is not None:
        interrupt(again, error)
    return True


def resume_waits(run: RunState, sent: Mapping[str, Sent]) -> None:
    """Resume a run that is not left to its store after all. `sent`: the values that have come for its waits."""
    with run.lock:
        run.finished, error = None, run.cancelled_late
        if run.waits is not None:
            run.waits.sent.update(sent)
    if error is not None:
        interrupt(run, error)


# -- calls that the exit of a signal handler cuts short ----------------------------------------------------------------


def store_interrupted(error: BaseException) -> StoreUnavailable:
    """The error of a call of the store that `error`, an exit, has interrupted."""
    return StoreUnavailable(f"{type(error).__name__} was raised while the store was called.")


def undo_interrupted(error: BaseException) -> UndoInterrupted:
    """The error of an attempt of an undo that `error`, the exit of a signal handler, has cut short. It is not an exit
    itself, so that the undo is attempted again if its `retry=` allows that."""
    interrupted = UndoInterrupted(f"the undo was interrupted by {type(error).__name__}.")
    interrupted.__cause__ = error
    return interrupted
