"""A run from request to outcome: claim it, work its steps, undo them if one failed, tell the store."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import contextlib
from typing import Any, Final

from ..errors import (
    CompensationFailed,
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    NotSerializable,
    said,
    shown,
)
from ..plan import Node
from ..retry import Backoff
from ..run import Run
from ..status import Status
from ..stores.base import Busy, Claim, Claimed, Ending, Finished, Held, Mismatch, RunRecord
from . import tell
from .effects import RESUME, WAIT, Ask, Program, Sleep
from .execution import Execution
from .sprint import Begun
from .states import outcome
from .steps import work
from .tell import Told
from .undo import undo_all, undo_rest, wait_for_abandoned, work_undo

__all__ = ["helper", "rescue", "run"]

_TO_DECIDE: Final = frozenset({Status.COMPENSATION_FAILED, Status.INCOMPLETE, Status.PARKED})
"""outcomes worth a record even where nobody gave the run a key"""
_POLL: Final = Backoff.exponential(0.002, max_delay=0.25, jitter=False)
"""how often a caller with `wait=` asks after the run that has its key"""


def run(x: Execution, begun: Begun | None = None) -> Program[Run]:
    """The main program of a run, which goes on where a sprint has stopped, if it was `begun` by one.

    Answers the Run, failed or not; raises only where there is no run of its own.
    """
    told = None
    if x.observed:
        tell.requested(x)
    if x.key is not None or x.settings.store.durable:
        earlier = yield from _claim(x)
        if earlier is not None:
            return earlier
    if x.observed:
        told = tell.run_started(x)
    x.working = True
    yield from work(x, x.take() if begun is None else begun.node, main=True, begun=begun)
    if x.running and not x.idle(waits=True):
        yield WAIT
    if not x.succeed():
        return (yield from _fail(x, told))
    finished = x.as_run(Status.SUCCESS)
    failure = None
    if x.claimed:
        _, failure = yield Ask("finish", Ending(_record(x, finished)))
    if told is not None:
        tell.run_finished(x, told, Status.SUCCESS, None)
    if failure is not None:
        _annotate(failure, f"{_NOTE}run {x.run_id} succeeded, but the store could not be told: its key stays taken.")
        raise failure
    return finished


def rescue(x: Execution, error: BaseException) -> Program[Run]:
    """The main program of a run whose sprint an interrupt struck in the middle of its bookkeeping."""
    x.interrupt(error)
    x.repair()
    return (yield from _fail(x, None))


def _fail(x: Execution, told: Told | None) -> Program[Run]:
    """The end of a run that stopped: undo what it did, and say how it ended."""
    if x.undoes:
        yield from undo_all(x)
    elif x.past_pivot:
        yield from wait_for_abandoned(x)  # the next call attempts it again, and must not do so beside it
    while True:
        undone, undo_failed = bool(x.undone), bool(x.undo_errors)
        status = outcome(parked=x.parked, failed=True, past_pivot=x.past_pivot, undone=undone, undo_failed=undo_failed)
        if x.end(status):
            break
        yield from undo_rest(x)
    error = _final_error(x, status)
    finished = x.as_run(status, error, held=status is Status.COMPENSATION_FAILED)
    if isinstance(error, CompensationFailed):
        error.run = finished
    if x.claimed or x.key is not None or status in _TO_DECIDE:
        _, failure = yield Ask("finish", Ending(_record(x, finished)))
        if failure is not None:
            error.add_note(f"the store could not be told, so the key stays taken: {_brief(failure)}")
    if told is not None:
        tell.run_finished(x, told, status, error)
    return finished


def helper(x: Execution, node: Node | None = None) -> Program[None]:
    """A worker beside the main program: takes what is ready until nothing is; begins with `node` if handed one."""
    node = x.take() if node is None else node
    yield from work(x, node, main=False) if x.undoing is None else work_undo(x, node)
    if x.resumes_main():
        yield RESUME


# -- the claim ---------------------------------------------------------------------------------------------------------


def _claim(x: Execution) -> Program[Run | None]:
    """Claim the run's key. Answers None if the run is ours, else the earlier run whose outcome is ours too."""
    key = x.key if x.key is not None else x.run_id
    try:
        x.fingerprint = None if x.recovering else _fingerprint(x)
    except Exception as error:
        tell.refused(x, error)
        raise
    claim = Claim(key, x.run_id, x.workflow.name, x.fingerprint, x.plan.graph, x.carrier, waits=x.wait is not None)
    until = None if x.wait is None else x.settings.clock() + x.wait
    polls = 0
    while True:
        answer, failure = yield Ask("claim", claim)
        if failure is not None:
            tell.refused(x, failure)
            raise failure
        match answer:
            case Claimed():
                _own(x, answer)
                return None
            case Finished():
                record = answer.record
                adopted = claim.attached == record.run_id
                tell.hit(x, "adopted" if adopted else "replayed", record.run_id, record.carrier, answer.age)
                return _replay(x, record)
            case Busy() if until is not None and x.settings.clock() < until:
                claim.attached = answer.run_id
                polls += 1
                left = until - x.settings.clock()
                yield Sleep(max(0.0, min(_POLL.delay(polls), left)))
                if x.error is not None:  # cancelled while it waited for another run
                    tell.refused(x, x.error)
                    raise x.error
            case _:
                raise _refusal(x, key, answer)


def _own(x: Execution, claimed: Claimed) -> None:
    x.claimed = True
    x.generation, x.fence = claimed.generation, claimed.fence
    record = claimed.record
    if record is None:
        return
    x.fingerprint = record.fingerprint
    # Going on with what an earlier owner had done: those steps count as ended.
    x.run_id = record.run_id
    x.carrier = record.carrier
    x.values.update(record.values)
    over = {name for name, report in record.steps.items() if report.status in {Status.SUCCESS, Status.SKIPPED}}
    x.results.update(record.results)
    x.reports.update((name, report) for name, report in record.steps.items() if name in over)
    x.restore(over)


def _replay(x: Execution, record: RunRecord) -> Run:
    x.run_id = record.run_id
    replay = Run(x, record.workflow, record.status, dict(record.results), record.steps, x.plan)
    replay.replayed, replay.held, replay.carrier = True, record.held, record.carrier
    replay.error, replay.failed_step, replay.undone = record.error, record.failed_step, record.undone
    return replay


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
                f"{what} is held since run {answer.run_id}, which could not be undone: "
                f"put it right by hand, then engine.store.release({shown(key)}) frees the key."
            )
    tell.hit(x, word, answer.run_id, answer.carrier, answer.age)
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


def _canonical(values: dict[Any, Any], workflow: str) -> str:
    import json

    problem = next((f"the key {shown(key)} is not a string" for key in values if not isinstance(key, str)), None)
    if problem is None:
        try:
            return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
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


# -- the end -----------------------------------------------------------------------------------------------------------


def _final_error(x: Execution, status: Status) -> BaseException:
    """What the caller gets: the step's own error with a note, or CompensationFailed caused by it."""
    cause = x.error
    assert cause is not None  # noqa: S101 - a run stops only with an error
    note, undo_errors = _note(x, status), x.undo_errors
    if undo_errors and isinstance(cause, Exception):
        failed = CompensationFailed(
            f"run {x.run_id} of {shown(x.workflow.name)} failed, and undoing {', '.join(map(shown, undo_errors))} failed too",
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
    return RunRecord(
        x.key if x.key is not None else x.run_id,
        x.run_id,
        x.workflow.name,
        x.fingerprint,
        x.plan.graph,
        status=finished.status,
        held=finished.held,
        generation=x.generation,
        fence=x.fence if x.claimed else 0,  # 0: the claim's answer never came
        results=x.results,
        values=x.values,
        steps=finished.steps,
        undone=finished.undone,
        failed_step=x.failed_step,
        error=finished.error,
        carrier=x.carrier,
    )
