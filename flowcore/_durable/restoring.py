"""The state of a run that is resumed, restored from its record: results, the ready queue, waits, and failed attempts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from .._kernel.ledger import Earlier, now_of
from .._kernel.run_state import RunState
from .._kernel.waits import Waits
from ..status import Status
from ..stores.base import STOPS, RunRecord
from .ledger import ledger_of

__all__ = ["OVER", "restore", "restore_queue", "undo_of"]

OVER: Final = frozenset({Status.SUCCESS, Status.SKIPPED})
"""statuses of steps that are not run again"""
_UNFINISHED: Final = frozenset({Status.PENDING, Status.RUNNING, Status.UNKNOWN, Status.CANCELLED})
"""statuses of steps that have not ended, or were cut short when their owner ended: the attempts that failed count
against `retry=`"""


def restore(run: RunState, record: RunRecord) -> None:
    """Restore the state of the run from its record."""
    run.run_id, run.fingerprint = record.run_id, record.fingerprint
    ended = len(record.results) + len(record.undone)
    waited, decided = record.status is Status.WAITING, record.decision in STOPS
    reason = record.reason if decided else None
    run.earlier = Earlier(record.carrier, _before(record), waited, record.retries, ended, decided, reason)
    run.carrier = run.carrier or record.carrier
    run.values.clear()
    run.values.update(record.values)
    known = run.plan.by_name
    over = {name for name, report in record.steps.items() if report.status in OVER and name in known}
    run.results.update((name, result) for name, result in record.results.items() if name in over)
    run.reports.update((name, report) for name, report in record.steps.items() if name in over)
    # A newer definition may have an undo for a step that had none when it ran.
    effects = list(dict.fromkeys((*record.results, *record.effects)))
    run.to_undo.extend(known[name] for name in effects if name in over and known[name].compensation is not None)
    at_once = record.decision == "resume"  # an operator wants the next attempts now
    run.tried = {
        name: replace(report, retry_at=None if at_once else report.retry_at)
        for name, report in record.steps.items()
        if report.failed and report.status in _UNFINISHED and name in known
    }
    run.reports.update((name, report) for name, report in run.tried.items() if report.status is Status.PENDING)
    # An attempt of these steps may have had its effect, even if later attempts failed.
    run.was_in_doubt = frozenset(
        name for name in record.effects if name in known and name not in over and undo_of(record, name) is None
    )
    if run.waits is not None:
        _restore_waits(run, run.waits, record)
    ledger = ledger_of(run)
    if ledger is not None:
        ledger.found(record)
        ledger.carriers.update((name, dict(carrier)) for name, carrier in record.carriers.items())
    restore_queue(run, over)


def restore_queue(run: RunState, over: set[str]) -> None:
    """Set up the ready queue of a run whose steps in `over` (names) have succeeded or were skipped under an earlier
    owner."""
    nodes = run.plan.nodes
    with run.lock:
        run.left = len(nodes) - len(over)
        run.past_pivot = run.workflow.undo == "never" or any(
            node.step.pivot and node.name in over and run.report(node).status is Status.SUCCESS for node in nodes
        )
        run.counts = [sum(nodes[i].name not in over for i in node.predecessors) for node in nodes]
        if not run.stopped:
            run.ready = deque(n.index for n in nodes if n.name not in over and not run.counts[n.index])


def _restore_waits(run: RunState, waits: Waits, record: RunRecord) -> None:
    """Restore which steps wait, since when and until when, and the values that were sent."""
    clock, now = run.settings.clock(), now_of(run)
    waits.sent.update(record.sent)
    for node in run.plan.nodes:
        report = record.steps.get(node.name)
        if node.wait is None or report is None:
            continue
        # A closed wait whose owner died before its end was recorded has the status TIMEOUT and an `until`.
        if report.status is Status.WAITING or (report.status is Status.TIMEOUT and report.until is not None):
            began = now if report.started is None else report.started
            # If the clock was set back meanwhile, the wait still lasts no longer than planned.
            rest = math.inf if report.until is None else report.until - max(now, began)
            waits.begin(node, clock - max(0.0, now - began), clock + rest)


def _before(record: RunRecord) -> Mapping[str, str | int | float]:
    """Return, for telemetry, what is known of the earlier owner: host, pid, since when it owned the run, and the step
    that it ran last."""
    known: dict[str, str | int | float] = {}
    if record.owner is not None:
        known |= {"host": record.owner.host, "pid": record.owner.pid, "since": record.owner.since}
    in_flight = [name for name, report in record.steps.items() if report.status is Status.RUNNING]
    return known | {"step": in_flight[-1]} if in_flight else known


def undo_of(record: RunRecord, name: str) -> Status | None:
    report = record.steps.get(name)
    return None if report is None else report.undo
