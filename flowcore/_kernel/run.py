"""A run from request to outcome: claim it, work its steps, undo them if one failed, tell the store."""

from __future__ import annotations

import contextlib
from typing import Final

from .._durable.checkpoints import finish, parked
from .._durable.claim import adopt, claim
from .._durable.takeover import restore, take_over
from ..errors import CompensationFailed, LeaseLost, NotSerializable, said, shown
from ..plan import Node
from ..run import Run
from ..status import Status
from ..stores.base import RunRecord
from . import emit
from .effects import RESUME, WAIT, Interrupts, Program
from .emit import Told
from .inline import Begun, sprint
from .outcome import outcome
from .run_state import Execution
from .steps import work
from .undo import undo_all, undo_rest, wait_for_abandoned, work_undo
from .watched import sprint_watched

__all__ = ["at_once", "helper", "rescue", "run"]

_TO_DECIDE: Final = frozenset({Status.COMPENSATION_FAILED, Status.INCOMPLETE, Status.PARKED})
"""outcomes worth a record even where nobody gave the run a key"""


def run(x: Execution, begun: Begun | None = None) -> Program[Run]:
    """The main program of a run, which goes on where a sprint has stopped, if it was `begun` by one.

    Answers the Run, failed or not; raises only where there is no run of its own.
    """
    earlier: RunRecord | None = None
    told = x.told
    starts = x.observed and told is None  # else `at_once` has told of it
    if starts:
        emit.requested(x)
    if x.key is not None or x.settings.durable:
        found = yield from claim(x)
        if isinstance(found, Run):
            return found
        earlier = found
    elif x.allowed is not None:
        x.deadline = x.settings.clock() + x.allowed
    if earlier is not None:
        restore(x, earlier)
    if x.changes is not None and x.settings.owns is not None:
        x.settings.owns(x)
    if starts:
        told = emit.run_started(x)
    if earlier is not None:
        yield from take_over(x, earlier)
    if starts:
        emit.first_ready(x)
    x.working = True
    yield from work(x, x.take() if begun is None else begun.node, main=True, begun=begun)
    if x.running and not x.idle(waits=True):
        yield WAIT
    if not x.succeed():
        return (yield from _fail(x, told))
    finished = x.as_run(Status.SUCCESS)
    failure = None
    if x.claimed:
        failure = yield from finish(x, _record(x, finished))
        if failure is not None and x.changes is not None:
            _reopen(x, failure)
            return (yield from _fail(x, told))
    if told is not None:
        emit.run_finished(x, told, Status.SUCCESS, None)
    if failure is not None:
        _annotate(failure, f"{_NOTE}run {x.run_id} succeeded, but the store could not be told: its key stays taken.")
        raise failure
    return finished


def at_once(x: Execution, interrupts: Interrupts | None = None) -> tuple[Run | None, Begun | None]:
    """A run that somebody watches and that may sprint, without a program and a driver: all of it, or how far it came."""
    emit.requested(x)
    if x.observed:  # still
        x.told = emit.run_started(x)
    if x.observed:
        emit.first_ready(x)
        begun = sprint_watched(x, interrupts)
    else:
        begun = sprint(x, interrupts)
    if begun is not None or x.ready or not x.succeed():
        x.write_reports()
        return None, begun
    finished = x.as_run(Status.SUCCESS)
    if x.told is not None:
        emit.run_finished(x, x.told, Status.SUCCESS, None)
    return finished, None


def rescue(x: Execution, error: BaseException) -> Program[Run]:
    """The main program of a run whose sprint an interrupt struck in the middle of its bookkeeping."""
    x.interrupt(error)
    x.write_reports()
    x.repair()
    return (yield from _fail(x, x.told))


def _fail(x: Execution, told: Told | None) -> Program[Run]:
    """The end of a run that stopped: undo what it did, and say how it ended."""
    x.settle_doubts()
    if x.undoes:
        yield from undo_all(x)
    elif x.past_pivot:
        yield from wait_for_abandoned(x)  # the next call attempts it again, and must not do so beside it
    while not x.end(_outcome(x)):
        yield from undo_rest(x)
    finished, failure = _failed(x), None
    if finished.status is not Status.LOST and (x.claimed or x.key is not None or finished.status in _TO_DECIDE):
        failure = yield from finish(x, _record(x, finished))
    if failure is not None and x.changes is not None and (isinstance(failure, LeaseLost) or not x.left_to_others):
        _reopen(x, failure)
        x.end(_outcome(x))
        finished = _failed(x)
    elif failure is not None and finished.error is not None:
        finished.error.add_note(f"the store could not be told, so the key stays taken: {_brief(failure)}")
    if told is not None:
        emit.run_finished(x, told, finished.status, finished.error)
    if finished.status is Status.LOST:
        finished = (yield from adopt(x)) or finished
    return finished


def _outcome(x: Execution) -> Status:
    undone, undo_failed = bool(x.undone), bool(x.undo_errors)
    return outcome(
        lost=x.lost, parked=x.parked, failed=True, past_pivot=x.past_pivot, undone=undone, undo_failed=undo_failed
    )


def _failed(x: Execution) -> Run:
    """The Run of one that has ended, with what its caller gets to see raised."""
    status = _outcome(x)
    error = _final_error(x, status)
    finished = x.as_run(status, error, held=x.held or status is Status.COMPENSATION_FAILED)
    if isinstance(error, CompensationFailed):
        error.run = finished
    return finished


def _reopen(x: Execution, failure: BaseException) -> None:
    """A durable store could not be told of the end, so it has not come."""
    if isinstance(failure, LeaseLost):
        emit.lease_lost(x)
    elif not isinstance(failure, NotSerializable):
        failure = parked(x, f"its store could not be told how it ended: {_brief(failure)}", failure)
    x.fail_after_all(failure)


def helper(x: Execution, node: Node | None = None) -> Program[None]:
    """A worker beside the main program: takes what is ready until nothing is; begins with `node` if handed one."""
    node = x.take() if node is None else node
    yield from work(x, node, main=False) if x.undoing is None else work_undo(x, node)
    if x.resumes_main():
        yield RESUME


# -- the end -----------------------------------------------------------------------------------------------------------


def _final_error(x: Execution, status: Status) -> BaseException:
    """What the caller gets: the step's own error with a note, or CompensationFailed caused by it."""
    cause = x.error
    assert cause is not None  # noqa: S101 - a run stops only with an error
    if x.leaving is not None and isinstance(cause, Exception):
        return x.leaving
    note, undo_errors = _note(x, status), x.undo_errors
    if undo_errors and isinstance(cause, Exception):
        failed = CompensationFailed(
            f"run {x.run_id} of {shown(x.workflow.name)} failed ({_brief(cause)}), and undoing "
            f"{', '.join(map(shown, undo_errors))} failed too",
            undo_errors,
        )
        failed.__cause__ = cause
        failed.add_note(note)
        return failed
    _annotate(cause, note)
    return cause


def _annotate(error: BaseException, note: str) -> None:
    """Add our note; of an exception object that is raised by run after run, only the latest is kept."""
    with contextlib.suppress(Exception):  # an exception may have any __notes__, or refuse attributes
        if notes := getattr(error, "__notes__", None):
            error.__notes__ = [old for old in notes if not str(old).startswith(_NOTE)]
        error.add_note(note)


_NOTE: Final = "flowcore: "


def _note(x: Execution, status: Status) -> str:
    """What whoever reads the traceback wants to know: which run and step, how often tried, what was undone."""
    where = "was cancelled"
    if x.failed_step is not None:
        tried = x.report(x.plan.by_name[x.failed_step]).attempts
        where = f"failed at step {shown(x.failed_step)} after {tried} attempt{'' if tried == 1 else 's'}"
    lines = [f"{_NOTE}run {x.run_id} of workflow {shown(x.workflow.name)} {where}; {_aftermath(x, status)}."]
    lines.extend(f"could not undo {shown(name)}: {_brief(error)}" for name, error in x.undo_errors.items())
    lines.extend(f"step {shown(step)} failed too: {_brief(error)}" for step, error in x.other_errors)
    return "\n  ".join(lines)


def _aftermath(x: Execution, status: Status) -> str:
    if status is Status.INCOMPLETE:
        return "it is past its pivot, so nothing was undone: call it again with the same key to go on"
    return f"undone: {', '.join(map(shown, x.undone))}" if x.undone else "nothing was undone"


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {said(error, 200)}"


def _record(x: Execution, finished: Run) -> RunRecord:
    """The run as its store is to keep it; a durable one knows of single steps from its checkpoints."""
    record = RunRecord(
        x.stored_key, x.run_id, x.workflow.name, x.fingerprint, x.plan.graph, finished.status, finished.held
    )
    record.undoing, record.undone, record.failed_step = x.failing, finished.undone, x.failed_step
    record.error = finished.error if x.leaving is None else None if x.error is x.leaving else x.error
    record.generation, record.carrier = x.generation, x.carrier
    record.fence = x.fence if x.claimed else 0  # 0: the claim's answer never came
    if x.changes is None:
        record.results, record.values, record.steps = x.results, x.values, finished.steps
        record.effects = (*(node.name for node in x.to_undo), *(x.undo_errors if x.stopped else ()))
    return record
