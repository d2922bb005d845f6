"""Steps whose backoff is too long for a process to stay for it (Settings.park_after).

Such a step holds no worker and no place among the steps that run at a time: it is set aside like a wait. If no other
step of its run can continue, the run is left to its store, and the engine that resumes it makes the next attempt when
that is due.
"""

from __future__ import annotations

from ..plan import Node
from ..run import StepReport
from ..status import Status
from . import emit_steps, stopping
from .ledger import now_of
from .outcome import StepEnd
from .run_state import RunState
from .scopes import StepScope
from .waits import Waits

__all__ = ["backed_off", "end_left_to_next_owner", "end_retries", "has_effect", "is_left", "set_aside", "take_retry"]


def set_aside(run: RunState, node: Node, end: StepEnd, delay: float) -> StepEnd | None:
    """Set `node` aside until its next attempt, which is due in `delay` seconds, and free its place. `end`: the end of
    its latest attempt. Returns a WAITING end, or None if the run has stopped."""
    before = run.tried.get(node.name)
    started = end.scope.at + end.scope.epoch if end.scope is not None and end.scope.epoch is not None else None
    with run.lock:
        if run.stopped:
            return None
        run.waits = run.waits or Waits()
        run.waits.set_aside(node, run.settings.clock() + delay, end)
        report = StepReport(Status.PENDING, end.attempts, failed=end.failed, errors=end.errors)
        report.retry_at = now_of(run) + delay
        report.started = started if before is None or before.started is None else before.started
        report.attempt_times = () if end.scope is None else end.scope.attempt_times
        run.tried = {**run.tried, node.name: report}
        run.reports[node.name] = report
        run.running -= 1
    return StepEnd(Status.WAITING, attempts=end.attempts)


def take_retry(run: RunState, waits: Waits, node: Node) -> StepEnd | None:
    """Resume `node` if it was set aside. Returns how it ends if its next attempt is not made, or None if it was not set
    aside."""
    with run.lock:
        return waits.take_retry(node.name)


def backed_off(run: RunState, scope: StepScope) -> None:
    """Add the time since the latest attempt to the backoff of the step, because the backoff is over."""
    now = run.settings.clock()
    scope.backoff += now - scope.ended
    scope.ended = now


def is_left(run: RunState) -> bool:
    """Whether the run has stopped only because it is left to another owner, which makes the next attempts."""
    return run.leaving is not None and run.error is run.leaving


def end_left_to_next_owner(end: StepEnd) -> StepEnd:
    """Return the end that a step has here if another owner makes its next attempt."""
    return StepEnd(Status.PENDING, attempts=end.attempts)


def has_effect(run: RunState, node: Node, end: StepEnd) -> bool:
    """Whether a step that has failed may have had its effect, so that it must be undone."""
    raised = end.status is Status.FAILURE and not node.undo_attempted
    return node.name in run.was_in_doubt or (end.attempts > 0 and not raised)


def end_retries(run: RunState, waits: Waits, *, failed: bool) -> None:
    """End the steps that are set aside until their next attempt, because the run ends here. They fail if the run has
    `failed`; otherwise the next owner makes those attempts."""
    with run.lock:
        retries = dict(waits.retries)
        for name in retries if failed else ():
            waits.take_retry(name)
        waits.retries = {}  # its errors refer back to the run, which would be a cycle; waits.until is still needed
    for name, end in retries.items():
        node = run.plan.by_name[name]
        if end.scope is not None:
            backed_off(run, end.scope)
        if failed:
            end.report_to(run.report(node))
            stopping.fail_step(run, node, end, effect=has_effect(run, node, end))
        if end.scope is not None:
            emit_steps.step_finished(run, node, end.scope, end if failed else end_left_to_next_owner(end))
