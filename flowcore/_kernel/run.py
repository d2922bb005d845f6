"""The main program of a run: claim its key, run its steps, undo them if one failed, and record the end."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Final

from ..errors import CompensationFailed, LeaseLost, safe_repr
from ..plan import Node
from ..run import Run, StepReport, error_line
from ..status import Status
from . import emit, emit_steps, stopping
from .effects import RESUME, WAIT, Interrupts, Program, Sleep, Stop
from .inline import run_inline
from .ledger import Takeover
from .outcome import outcome
from .run_state import RunState
from .set_aside import end_retries, is_left
from .steps import work
from .undo import undo_all, undo_rest, wait_for_abandoned, work_undo
from .wait_steps import request_alarm, withdraw

__all__ = ["abort", "abort_inline", "execute", "never_began", "run_without_driver", "work_beside_main"]

_LOOK: Final = 0.01
"""seconds between two checks whether the workers of an aborted run have ended"""
_TO_DECIDE: Final = frozenset({Status.COMPENSATION_FAILED, Status.INCOMPLETE, Status.PARKED})
"""outcomes that are recorded even for a run without a key, because an operator or a later call has to act on them"""


def execute(run: RunState) -> Program[Run]:
    """Run the main program of a run, from the point at which the inline path stopped, if there was one.

    Returns the Run, failed or not. Raises if the claim is refused, or if the end of a successful run in memory cannot
    be recorded.
    """
    progress, run.progress = run.progress, None
    ended = yield from _begin(run)
    if ended is not None:
        return ended
    yield from work(run, None, main=True, progress=progress)
    if run.waits is None and run.running and not run.idle(waits=True):
        yield WAIT
    if run.waits is not None:
        waiting = yield from _rest(run)
        if waiting is not None:
            end_retries(run, run.waits, failed=False)
            _emit_end(run, waiting)
            return waiting
    if not run.succeed():
        return (yield from _report(run, (yield from _end_failed(run))))
    finished, failure = yield from _end_succeeded(run)
    if finished.status is not Status.SUCCESS:
        return (yield from _report(run, finished))
    _emit_end(run, finished)
    if failure is not None:
        _annotate(
            failure, f"{_NOTE}run {run.run_id} succeeded, but its end could not be recorded; its key is still in use."
        )
        raise failure
    return finished


def _begin(run: RunState) -> Program[Run | None]:
    """Claim the run's key, if it has one, and begin or resume the run. Returns its Run if nothing more is done here,
    because the key belongs to another run, or because the run is held."""
    starts = run.observed and run.scope is None  # otherwise run_without_driver has emitted the start
    if starts:
        emit.requested(run)
    earlier: Takeover | None = None
    claim_id: str | None = None
    try:
        if run.key is not None or run.settings.durable:
            claim_id = run.run_id
            found = yield from run.settings.claims.claim(run)
            if isinstance(found, Run):
                return found
            earlier = found
        elif run.request.deadline is not None:
            run.deadline = run.settings.clock() + run.request.deadline
        if earlier is not None:
            earlier.restore(run)
        if run.ledger is not None and run.settings.owns is not None:
            run.settings.owns(run)
        # That a run is held must be recorded before a hook is called, because a hook may be what crashed its owners.
        held = (yield from _end_failed(run)) if earlier is not None and earlier.holds(run) else None
        if starts:
            run.scope = emit.run_started(run)
        if earlier is not None:
            yield from earlier.decide(run)
        if held is None:
            if starts:
                emit_steps.first_ready(run)
            if run.on_pause is not None:
                run.on_pause(None)
            run.working = True
    except BaseException as error:
        if claim_id is not None and not isinstance(error, Exception | GeneratorExit):  # a signal handler exits
            yield from run.settings.claims.withdraw(run, claim_id)
        raise
    return None if held is None else (yield from _report(run, held))


def _rest(run: RunState) -> Program[Run | None]:
    """Wait, as the main program of a run with waits, until no step runs and none is set aside, or the run stops. Runs
    steps that become ready meanwhile. A durable run that only waits is left to its store, and its Run is returned."""
    while not run.idle(waits=True):
        node = run.take() if run.ledger is not None else None
        if node is not None:
            yield from work(run, node, main=True)
        elif run.ledger is not None and stopping.pause(run):
            waiting = _as_run(run, Status.WAITING)
            if (yield from run.settings.claims.suspend(run, waiting)):
                return waiting
        else:
            yield from request_alarm(run)
            if run.on_pause is not None and not run.running and run.ledger is None:
                run.on_pause(_so_far(run, Status.WAITING))
                yield WAIT
                run.on_pause(None)
            else:
                yield WAIT
    return None


def run_without_driver(run: RunState, *, is_async: bool, interrupts: Interrupts | None = None) -> Run | None:
    """Run inline, as far as possible. Returns the Run if it ended there, else None; then `execute` continues it."""
    if run.observed:
        emit.requested(run)
        if run.observed:  # hooks may have declined the run
            run.scope = emit.run_started(run)
        if run.observed:
            emit_steps.first_ready(run)
    if interrupts is None or run.observed:
        run.progress = run_inline(run, is_async=is_async, interrupts=interrupts)
    else:  # its hooks have declined the run, so an interrupt may come at any moment
        try:
            interrupts.in_step = True
            run.progress = run_inline(run, is_async=is_async)
        finally:
            interrupts.in_step = False
    if run.progress is not None or run.ready or not run.succeed():
        return None
    finished = _as_run(run, Status.SUCCESS)
    if run.scope is not None:
        _emit_end(run, finished)
    return finished


def abort_inline(run: RunState, error: BaseException) -> Program[Run]:
    """Run the main program of a run that `error` interrupted on the inline path, between two steps or while the state
    of the run was being changed."""
    stopping.interrupt(run, error)
    _repair(run)
    run.working = True
    finished = yield from _end_failed(run)
    _emit_end(run, finished)
    return finished


def abort(run: RunState, error: BaseException) -> Program[Run]:
    """Run the rest of the main program of a run, which `error` has ended outside of its steps, as the exit of a signal
    handler does. Other workers have the engine's grace to end. Raises `error` if the run was not begun or resumed."""
    if not run.working and (run.key is not None or run.ledger is not None):  # its claim was withdrawn
        if run.scope is not None:
            stopping.interrupt(run, error)
            _emit_end(run, _failed(run))
        raise error
    if run.finished is Status.WAITING:  # it may be left to its store already
        stopping.resume_waits(run, {})
    stopping.interrupt(run, error)
    run.main_waits = False
    yield Stop(cancel=True)
    until = run.settings.clock() + run.settings.grace
    while run.running > 0 and run.progress is None and run.settings.clock() < until:
        yield Sleep(_LOOK, shielded=True)
    if run.ledger is not None:
        run.ledger.save_again(run)
    if run.finished is not Status.SUCCESS:
        _repair(run)
        run.working = True
        finished = yield from _end_failed(run)
    else:
        finished, _ = yield from _end_succeeded(run)
    _emit_end(run, finished)
    return finished


def _repair(run: RunState) -> None:
    """Make the state of the run consistent after an interrupt in the middle of a change, when no other part of it runs.

    The steps that have ended are in `results` or in the reports. If the last node that the interrupted thread began is
    in neither, its outcome is unknown.
    """
    with run.lock:
        node = run.at
        ended = {name: run.plan.by_name[name] for name in run.results}
        known = [*ended.values(), *(other for other in run.to_undo if other.name not in ended)]
        if node is not None and node not in known and node.name not in run.reports:
            run.reports[node.name] = StepReport(Status.CANCELLED, 1, error=run.error)
            run.failed_step = run.failed_step or node.name
            known.append(node)
        undone = {name for name, report in run.reports.items() if report.undo is not None}
        run.to_undo = [other for other in known if other.compensation is not None and other.name not in undone]
        run.running = 0


def _end_succeeded(run: RunState) -> Program[tuple[Run, BaseException | None]]:
    """Record that a run has succeeded. Returns its Run and, in memory, the reason why the end could not be recorded. On a
    durable store, such a run has not succeeded."""
    finished = _as_run(run, Status.SUCCESS)
    if not run.claimed:
        return finished, None
    failure = yield from run.settings.claims.finish(run, finished)
    if failure is None or run.ledger is None:
        return finished, failure
    stopping.fail_after_all(run, run.ledger.unfinished(run, failure))
    return (yield from _end_failed(run)), None


def _end_failed(run: RunState) -> Program[Run]:
    """Undo the steps of a run that has stopped, record how it ended, and return its Run."""
    if run.waits is not None:
        end_retries(run, run.waits, failed=not is_left(run))
    if run.ledger is not None:
        run.ledger.stopped(run)
    if run.waits is not None and run.is_undone_here:
        withdraw(run)
    if run.is_undone_here:
        yield from undo_all(run)
    elif run.past_pivot:
        yield from wait_for_abandoned(run)  # the next call attempts the step again, and must not overlap with this one
    while not run.end(_outcome(run)):
        yield from undo_rest(run)
    finished, failure = _failed(run), None
    if finished.status is not Status.LOST and (run.claimed or run.key is not None or finished.status in _TO_DECIDE):
        failure = yield from run.settings.claims.finish(run, finished)
    if failure is not None and run.ledger is not None and (isinstance(failure, LeaseLost) or not run.relinquished):
        stopping.fail_after_all(run, run.ledger.unfinished(run, failure))
        run.end(_outcome(run))
        finished = _failed(run)
    elif failure is not None and finished.error is not None:
        finished.error.add_note(
            f"the end of the run could not be recorded ({error_line(failure, 200)}); its key is still in use"
        )
    return finished


def _report(run: RunState, finished: Run) -> Program[Run]:
    """Emit the end of a run that has failed. Returns the Run that its caller gets."""
    _emit_end(run, finished)
    if finished.status is Status.LOST and not run.parked:  # a process that stops does not wait for the other owner
        finished = (yield from run.settings.claims.adopt(run)) or finished
    return finished


def _emit_end(run: RunState, finished: Run) -> None:
    """Emit the end of the run, once: the exit of a signal handler may come after it."""
    scope, run.scope = run.scope, None
    if scope is not None:
        emit.run_finished(run, scope, finished)


def _outcome(run: RunState) -> Status:
    undone, undo_failed = bool(run.undone), bool(run.undo_errors)
    return outcome(
        lost=run.lost, parked=run.parked, failed=True, past_pivot=run.past_pivot, undone=undone, undo_failed=undo_failed
    )


def _failed(run: RunState) -> Run:
    """Return the Run of a run that has ended without success, with the error that its caller gets."""
    status = _outcome(run)
    held = run.held or status is Status.COMPENSATION_FAILED
    finished = _as_run(run, status, _final_error(run, status), held=held)
    if isinstance(finished.error, CompensationFailed):
        finished.error.run = finished
    return finished


def work_beside_main(run: RunState, node: Node | None = None) -> Program[None]:
    """Run a worker beside the main program: it runs or undoes ready steps until none is ready. It begins with `node` if
    that is given. Does nothing before the run begins: a value that is sent to a run wakes it, whether its key was
    granted already or not."""
    if node is None and not run.working:
        return
    node = run.take() if node is None else node
    yield from work(run, node, main=False) if run.undoing is None else work_undo(run, node)
    if run.waits is not None:
        yield from request_alarm(run)
    if run.resumes_main():
        yield RESUME


# -- the end -----------------------------------------------------------------------------------------------------------


def _so_far(run: RunState, status: Status) -> Run:
    """Return a Run with a copy of the present state."""
    reports = {name: replace(report) for name, report in list(run.reports.items())}
    return Run(run, run.workflow.name, status, dict(run.results), reports, run.plan)


def never_began(run: RunState, error: BaseException) -> Run:
    """Cancel a run that has not begun because of `error`. Returns its Run."""
    stopping.interrupt(run, error)
    return _as_run(run, Status.FAILURE, error)


def _as_run(run: RunState, status: Status, error: BaseException | None = None, *, held: bool = False) -> Run:
    """Return the Run that the caller gets."""
    ended = Run(run, run.workflow.name, status, run.results, run.reports, run.plan)
    if run.observed:
        ended._times = run.times  # pyright: ignore[reportPrivateUsage]
    if error is not None:
        ended.results = dict(run.results)  # results that complete late do not appear in the caller's Run
        ended.error, ended.held = error, held
        ended.failed_step, ended.undone = run.failed_step, tuple(run.undone)
    if run.carrier:
        ended.carrier = run.carrier
    return ended


def _final_error(run: RunState, status: Status) -> BaseException:
    """Return the error that the caller gets: that of the step with a note, CompensationFailed caused by it, or the
    reason why the run is left to another owner."""
    assert run.error is not None  # noqa: S101 - a run stops only with an error
    if run.leaving is not None and isinstance(run.error, Exception):
        return run.leaving
    if run.undo_errors and isinstance(run.error, Exception):
        failed = CompensationFailed(
            f"run {run.run_id} of {safe_repr(run.workflow.name)} failed ({error_line(run.error, 200)}), and undoing "
            f"{', '.join(map(safe_repr, run.undo_errors))} failed too",
            run.undo_errors,
        )
        failed.__cause__ = run.error
        failed.add_note(_note(run, status))
        return failed
    _annotate(run.error, _note(run, status))
    return run.error


def _annotate(error: BaseException, note: str) -> None:
    """Add our note to the error, in place of the note of an earlier run that raised the same exception object."""
    with contextlib.suppress(Exception):  # an exception may have any __notes__, or refuse attributes
        if notes := getattr(error, "__notes__", None):
            error.__notes__ = [old for old in notes if not str(old).startswith(_NOTE)]
        error.add_note(note)


_NOTE: Final = "flowcore: "


def _note(run: RunState, status: Status) -> str:
    """Return the note for a traceback: which run and step, how many attempts, which steps were undone."""
    where = "was stopped" if run.parked else "was cancelled"
    if run.failed_step is not None:
        node = run.plan.by_name[run.failed_step]
        tried = run.report(node).attempts
        attempts = "" if node.wait is not None else f" after {tried} attempt{'' if tried == 1 else 's'}"
        where = f"failed at step {safe_repr(run.failed_step)}{attempts}"
    lines = [f"{_NOTE}run {run.run_id} of workflow {safe_repr(run.workflow.name)} {where}; {_aftermath(run, status)}."]
    lines.extend(
        f"could not undo {safe_repr(name)}: {error_line(error, 200)}" for name, error in run.undo_errors.items()
    )
    lines.extend(f"step {safe_repr(step)} failed too: {error_line(error, 200)}" for step, error in run.other_errors)
    return "\n  ".join(lines)


def _aftermath(run: RunState, status: Status) -> str:
    if status is Status.PARKED:
        return "it is parked, and resumes on the next call with its key or on engine.recover()"
    if status is Status.INCOMPLETE:
        why = "" if run.workflow.undo == "never" else "it is past its pivot, so "
        return f"{why}nothing was undone: the next call with its key continues at the failed step"
    return f"undone: {', '.join(map(safe_repr, run.undone))}" if run.undone else "nothing was undone"
