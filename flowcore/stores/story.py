"""Describe a run in plain words, from its record."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Final

from ..errors import one_line, safe_repr
from ..run import StepReport, error_line, in_words
from ..status import Status

if TYPE_CHECKING:
    from .base import Owner, RunRecord

__all__ = ["story", "waits_to_retry"]

_LISTED: Final = 200
"""how many steps are listed one by one"""


def story(record: RunRecord) -> str:
    """Describe a run: its status and the reason, its owner, and a line for each step that has begun, without results
    and values."""
    if record.problem is not None:
        return f"Record {safe_repr(record.key)} cannot be read: {record.problem}"
    lines = [f"Run {record.run_id} of {safe_repr(record.workflow)}, key {safe_repr(record.key)}: {_standing(record)}"]
    lines.extend(f"  {line}" for line in _circumstances(record))
    steps = _steps(record)
    lines.extend(f"  {safe_repr(name)[1:-1]}: {in_words(report)}" for name, report in list(steps.items())[:_LISTED])
    if len(steps) > _LISTED:
        lines.append(f"  … and {len(steps) - _LISTED} more steps")
    return "\n".join(lines)


def _steps(record: RunRecord) -> dict[str, StepReport]:
    """The steps that have begun, in definition order if the record's graph can be read."""
    known = dict.fromkeys(record.results, StepReport(Status.SUCCESS, 1)) | dict(record.steps)
    try:
        order = [str(step[0]) for step in json.loads(record.graph)]
    except (ValueError, LookupError, TypeError, RecursionError):
        order = []
    return {name: known[name] for name in [*(n for n in order if n in known), *(n for n in known if n not in order)]}


def _standing(record: RunRecord) -> str:
    failed = f" at step {safe_repr(record.failed_step)}" if record.failed_step else ""
    error = record.error
    why = "" if error is None else f": {error_line(error, 200)}"
    if record.held:
        return f"held{failed}{why}"
    if record.status is Status.WAITING and record.waiting_for:
        return _awaits(record, record.not_before)
    if record.status is Status.COMPENSATED:
        return f"failed{failed}{why}; undone: {', '.join(map(one_line, record.undone))}"
    if (
        record.status in {Status.RUNNING, Status.QUEUED}
        and record.expires is not None
        and record.expires <= time.time()
    ):
        return f"{record.status}, but its owner's lease has expired"
    return f"{record.status}{failed}{why}"


def _awaits(record: RunRecord, limit: float | None) -> str:
    """What a waiting run waits for, and until when."""
    again = [name for name in record.waiting_for if waits_to_retry(record, name)]
    awaited = [name for name in record.waiting_for if name not in again]
    until = "" if limit is None or limit == math.inf else f" until {moment(limit)}"
    retried = f"to attempt {', '.join(map(safe_repr, again))} again"
    if not awaited:
        return f"waits{until} {retried}"
    names = ", ".join(map(safe_repr, awaited))
    return f"waits for {names}{until and until + ' at most'}{', and ' + retried if again else ''}"


def waits_to_retry(record: RunRecord, name: str) -> bool:
    """Whether a step of a waiting run waits for its next attempt, not for a value. False for a head, which has no
    steps."""
    report = record.steps.get(name)
    return report is not None and report.retry_at is not None


def _process(owner: Owner) -> str:
    return f"process {owner.pid} on {safe_repr(owner.host)[1:-1]}"


def _circumstances(record: RunRecord) -> list[str]:
    """Why the run is parked or held, who owns it, what was sent to it, and what an operator has decided."""
    lines: list[str] = []
    if record.reason is not None:
        lines.append(f"reason: {one_line(record.reason)}")
    if record.owner is not None:
        since = f" since {moment(record.owner.since)}" if record.owner.since else ""
        owner, before = _process(record.owner), record.previous_owner
        after = "" if before is None or _process(before) == owner else f", after {_process(before)}"
        lines.append(f"owner: {owner}{since}{after}")
    if record.takeovers:
        lines.append(f"taken over {record.takeovers} time{'s' * (record.takeovers > 1)} since the last step that ended")
    if record.not_before is not None and record.status is not Status.WAITING:
        lines.append(f"recovery resumes it after {moment(record.not_before)}")
    for name, sent in record.sent.items():
        by = f"process {sent.pid} on {safe_repr(sent.host)[1:-1]}"
        lines.append(f"sent to {safe_repr(name)}: a value, by {by} at {moment(sent.at)}")
    if record.decision is not None:
        lines.append(f"decided: {record.decision}; not carried out yet")
    return lines


def moment(seconds: float) -> str:
    """A moment in UTC, for people. `seconds`: since the epoch."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "never"
