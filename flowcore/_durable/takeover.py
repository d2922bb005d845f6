"""The takeover of a run from an earlier owner, which crashed, parked the run, or left it incomplete past its pivot, and
of a run that an operator has released.

Steps that are recorded as done are not run again. A step that was in flight may have had its effect or not: `verify=`
is called first, then `on_crash=` decides. A run that was being undone is only undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from .._kernel import emit, stopping
from .._kernel.attempts import failed_before
from .._kernel.doubt import Answer, ask_verify
from .._kernel.effects import Program
from .._kernel.run_state import RunState
from ..errors import CompensationFailed, FlowcoreError, IdempotencyHeld, RunFailed, safe_repr, safe_str
from ..events import RunRecovered
from ..own_errors import own_error
from ..plan import Node
from ..run import StepReport
from ..status import Status
from ..step import Landed
from ..stores.base import RunRecord
from ..workflow import Workflow
from .checkpoints import cancelled, parked
from .ledger import ledger_of
from .restoring import OVER, restore, restore_queue, undo_of

__all__ = ["Takeover", "crash_of", "held_run", "left_to_callers", "take_over"]

_IN_DOUBT: Final = frozenset({Status.RUNNING, Status.UNKNOWN, Status.TIMEOUT, Status.CANCELLED})
"""statuses of steps that may or may not have had their effect"""
_IN_FLIGHT: Final = frozenset({Status.RUNNING, Status.UNKNOWN})
"""statuses of steps that were in flight when their owner died"""


class Takeover:
    """See flowcore._kernel.ledger.Takeover."""

    __slots__ = ("record",)

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def restore(self, run: RunState) -> None:
        restore(run, self.record)

    def holds(self, run: RunState) -> bool:
        refused = None if self.record.status is Status.QUEUED else _refused(run, self.record)
        if refused is not None:
            for node in _crashed(run, self.record):
                run.reports[node.name] = replace(self.record.steps[node.name], status=Status.UNKNOWN)
            stopping.hold(run, refused)
        return refused is not None

    def decide(self, run: RunState) -> Program[None]:
        return take_over(run, self.record)


def left_to_callers(workflow: Workflow[Any], record: RunRecord) -> bool:
    """Whether recovery does not resume the run. With undo="never", a step that failed is attempted again only by the
    next call with the key, or after an operator has resumed the run."""
    return workflow.undo == "never" and record.status == Status.INCOMPLETE and record.decision is None


def take_over(run: RunState, record: RunRecord) -> Program[None]:
    """Decide on the steps that were in flight, and whether the run goes forward, is undone, held or parked."""
    ledger = ledger_of(run)
    if record.status is Status.QUEUED:  # no step has begun
        return
    if run.held:
        emit.recovered(run, _recovered(run, record, "hold", held=_crashed(run, record)))
        return
    if record.status is Status.WAITING and record.decision in {None, "resume"}:  # no step was in flight
        return
    in_doubt = [
        node
        for node in run.plan.nodes
        if (report := record.steps.get(node.name)) is not None and report.status in _IN_DOUBT and report.undo is None
        if node.wait is None and report.attempts  # without an attempt, only its when= was cut short
    ]
    landed, not_landed, unclear = yield from _verify(run, record, in_doubt)
    if run.relinquished and record.decision is None and not record.undoing:
        # This process must stop, which may have interrupted `verify=`. The next owner calls it again, and decides.
        if ledger is not None:
            ledger.in_doubt = {node.name: record.steps[node.name] for node in in_doubt if node not in landed}
        return
    if landed:
        restore_queue(run, {node.name for node in run.plan.nodes if _is_over(run, node)})
    unknown = [node for node in in_doubt if node not in landed and node not in not_landed]
    # A run that was parked while it went forward has abandoned steps, whose outcome is as unknown as after a crash.
    crashed = [node for node in unknown if record.steps[node.name].status is Status.RUNNING or not record.undoing]
    decided = record.decision is not None
    held = [] if decided else [node for node in crashed if node.step.on_crash == "hold"]
    to_undo = [node for node in crashed if node.step.on_crash == "undo" and not decided and not run.past_pivot]
    ordered = record.decision == "undo" or (record.decision == "cancel" and not run.past_pivot)
    undoing = record.undoing or ordered or (bool(to_undo) and not held and unclear is None)
    run.was_in_doubt = (run.was_in_doubt | {node.name for node in unknown}) - {node.name for node in not_landed}
    if undoing:
        run.past_pivot = False  # undoing has begun, or an operator has decided on it
        _undo(run, record, unknown, not_landed, to_undo)
    if unclear is not None:
        stopping.park(run, parked(run, safe_str(unclear, 300), unclear))
    elif held:
        for node in crashed:
            run.reports[node.name] = replace(record.steps[node.name], status=Status.UNKNOWN)
        step = safe_repr(held[0].name)
        stopping.hold(
            run, held_run(run, f"it was interrupted while step {step} was in flight, which has on_crash='hold'")
        )
    elif not undoing and ledger is not None:
        ledger.in_doubt = {name: report for name, report in record.steps.items() if name in run.was_in_doubt}
        for node in not_landed:  # they had no effect, which must be recorded if the run stops before they start again
            ledger.withdraw_start(node.name)
    decision = "hold" if held and unclear is None else "undo" if undoing else "forward"
    retried = [] if held or undoing else [node for node in in_doubt if node not in landed]
    undone = list(reversed(run.to_undo)) if undoing and not held else []
    emit.recovered(run, _recovered(run, record, decision, retried=retried, landed=landed, undone=undone, held=held))
    if landed and ledger is not None and not run.stopped:
        yield from ledger.flush(run)
    if record.decision == "cancel" and not run.stopped:  # past its pivot
        stopping.interrupt(run, cancelled(run))


def _verify(
    run: RunState, record: RunRecord, in_doubt: list[Node]
) -> Program[tuple[list[Node], list[Node], BaseException | None]]:
    """Call `verify=` of the steps in doubt. Returns the steps that had their effect, which are marked as done, those
    that had none, and the first error of a `verify=`."""
    landed: list[Node] = []
    not_landed: list[Node] = []
    unclear: BaseException | None = None
    for node in in_doubt:
        answer: Answer = None
        error: BaseException | None = None
        if node.step.verify is not None:
            answer, error = yield from ask_verify(run, node)
        unclear = unclear or error
        if isinstance(answer, Landed):
            landed.append(node)
            _mark_done(run, node, answer.result, record.steps[node.name])
        elif answer is not None:
            not_landed.append(node)
    return landed, not_landed, unclear


def _recovered(
    run: RunState,
    record: RunRecord,
    decision: str,
    *,
    retried: Sequence[Node] = (),
    landed: Sequence[Node] = (),
    undone: Sequence[Node] = (),
    held: Sequence[Node] = (),
) -> RunRecovered:
    return RunRecovered(
        run.workflow.name,
        run.run_id,
        run.settings.clock(),
        run.state if run.observed else {},
        decision,
        _names([node for node in run.plan.nodes if _is_over(run, node) and node not in landed]),
        _names(retried),
        _names(landed),
        _names(undone),
        _names(held),
        record.carriers,
        left=record.status in {Status.PARKED, Status.INCOMPLETE},
    )


def _names(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _refused(run: RunState, record: RunRecord) -> IdempotencyHeld | None:
    """Return the error of a run that only an operator may resume, because its record has a hole or its owners crashed
    too often; else None."""
    if record.decision in {"undo", "cancel"}:
        return None
    over = {name for name, report in record.steps.items() if report.status in OVER} | record.results.keys()
    for node in run.plan.nodes:
        report = record.steps.get(node.name)
        if node.name not in over and (report is None or report.status is Status.PENDING):
            continue
        missing = next((name for name in node.dependencies if name not in over), None)
        if missing is not None:
            return held_run(
                run,
                f"step {safe_repr(node.name)} is recorded, but the end of step {safe_repr(missing)}, which it depends "
                "on, is missing: the store has lost part of the record",
            )
    if record.takeovers > run.settings.max_takeovers and record.decision is None:
        return held_run(
            run, f"its process crashed {record.takeovers} times without progress, {_last_seen(run, record)}"
        )
    return None


def _last_seen(run: RunState, record: RunRecord) -> str:
    """Describe the step or undo in which the last owner of a run crashed, and that owner."""
    steps = [node.name for node in _crashed(run, record)]
    where = f"in step {', '.join(map(safe_repr, steps))}" if steps else "between two steps"
    if record.undoing:
        left = [name for name in record.effects if undo_of(record, name) is None]
        where = f"in the undo of step {safe_repr(left[-1])}" if left else "while undoing"
    owner = record.owner
    return f"the last time {where}" + ("" if owner is None else f" (host {owner.host}, pid {owner.pid})")


def _crashed(run: RunState, record: RunRecord) -> list[Node]:
    return [node for node in run.plan.nodes if _was_running(record, node)]


def _was_running(record: RunRecord, node: Node) -> bool:
    report = record.steps.get(node.name)
    return report is not None and report.status is Status.RUNNING


def _is_over(run: RunState, node: Node) -> bool:
    report = run.reports.get(node.name)
    return report is not None and report.status in OVER


def _mark_done(run: RunState, node: Node, result: object, before: StepReport) -> None:
    """Note that `verify=` found the step done, with `result`. `before`: its recorded report."""
    report, ledger = run.report(node), ledger_of(run)
    report.status, report.attempts = Status.SUCCESS, before.attempts
    with run.lock:
        run.results[node.name] = result
        effect = node.compensation is not None
        if effect:
            run.to_undo.append(node)
        if ledger is not None:
            ledger.note_end(node.name, report, run.results, effect=effect)


def _undo(run: RunState, record: RunRecord, unknown: list[Node], not_landed: list[Node], crashed: list[Node]) -> None:
    """Begin or resume the undoing of the run, because of the error that failed it, an operator's decision, or a crash
    in the steps `crashed`. `unknown`: steps that may have had their effect. `not_landed`: steps that had none,
    according to `verify=`."""
    again, ledger = record.decision is not None, ledger_of(run)
    known = run.plan.by_name
    undone = [name for name in record.undone if name in known]
    undone += [name for name in record.steps if name not in undone and undo_of(record, name) is Status.SUCCESS]
    failed = {
        name: _as_exception(record.steps[name].undo_error, name)
        for name in record.steps
        if undo_of(record, name) in {Status.FAILURE, Status.TIMEOUT} and not again
    }
    for name, report in record.steps.items():
        if name in known and name not in run.reports:
            run.reports[name] = report
    for node in (*unknown, *not_landed):
        if ledger is not None and run.report(node).status is Status.RUNNING:
            status = Status.CANCELLED if node in not_landed else Status.UNKNOWN
            run.reports[node.name] = replace(record.steps[node.name], status=status)
            ledger.decided(run, node, effect=node in unknown)
    given_up = _give_up_retries(run)
    due = [known[name] for name in dict.fromkeys((*record.effects, *given_up)) if name in known]
    due = [
        node
        for node in due
        if node in unknown
        or _is_over(run, node)
        or run.report(node).status is Status.FAILURE
        or undo_of(record, node.name) is not None
    ]
    # Steps that were in flight are last in the list, because they are undone first.
    due.sort(key=lambda node: node in unknown and record.steps[node.name].status in _IN_FLIGHT)
    due += [node for node in run.to_undo if node not in due]
    error = _first_error(record)
    stopping.resume_undo(
        run,
        own_error(run.workflow, error) if error is not None else crash_of(run, crashed),
        record.failed_step if record.error is not None or not crashed else crashed[0].name,
        [node for node in due if node.compensation is not None and node.name not in undone and node.name not in failed],
        undone,
        failed,
    )


def _give_up_retries(run: RunState) -> list[str]:
    """Fail the steps that waited for their next attempt, because the run is undone. Returns the names of those that
    must be undone."""
    ledger, effects = ledger_of(run), list[str]()
    for name, report in run.tried.items():
        node = run.plan.by_name[name]
        if report.status is Status.PENDING:
            error = failed_before(run, node)
            run.reports[name] = replace(report, status=Status.FAILURE, error=error, retry_at=None)
            effect = node.undo_attempted or name in run.was_in_doubt
            if effect:
                effects.append(name)
            if ledger is not None:
                ledger.decided(run, node, effect=effect)
    return effects


def _first_error(record: RunRecord) -> BaseException | None:
    """Return the error that failed the run first. After a failed undo the record has a CompensationFailed, which would
    be wrapped again by each further attempt to undo: the error of the step is returned instead, if it is known."""
    error, step = record.error, record.steps.get(record.failed_step or "")
    names_an_undo = (
        isinstance(error, CompensationFailed) or getattr(error, "error_type", "") == CompensationFailed.__name__
    )
    return step.error if names_an_undo and step is not None and step.error is not None else error


def _as_exception(error: BaseException | None, step: str) -> Exception:
    return (
        error if isinstance(error, Exception) else FlowcoreError(f"the undo of step {safe_repr(step)} failed earlier.")
    )


def crash_of(run: RunState, crashed: list[Node]) -> RunFailed:
    """Return the error of a run that is undone because of an operator's decision or a crash in the steps `crashed`."""
    what = f"run {run.run_id} of {safe_repr(run.workflow.name)}"
    if not crashed:
        why = f"{what} is undone because an operator decided so."
        return RunFailed(why, run=run.run_id, error_type="operator", error_message=why)
    why = f"{what} was interrupted while step {safe_repr(crashed[0].name)} was in flight, which has on_crash='undo'."
    return RunFailed(why, run=run.run_id, step=crashed[0].name, error_type="crash", error_message=why)


def held_run(run: RunState, why: str) -> IdempotencyHeld:
    """Return the error of a run that only an operator may resume. `why`: the reason, which its record keeps."""
    run.reason = why
    return IdempotencyHeld(
        f"Run {run.run_id} of {safe_repr(run.workflow.name)} is held: {why}. Check its effects; then resume it with "
        "engine.store.resume(error.key), undo it with engine.store.undo(error.key), or discard it with "
        "engine.store.release(error.key).",
        key=run.stored_key,
    )
