"""A record as the commands show it: its state, its plain data, and the commands that are possible for it."""

from __future__ import annotations

import re
import shlex
from typing import Any, Final

import click

from ..status import Status
from ..stores.base import RESUMABLE, Owner, RunRecord
from ..stores.story import waits_to_retry

__all__ = ["age", "as_data", "duration", "next_commands", "state_of"]

_UNITS: Final = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def age(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Parse an age, such as 90, 90s, 10m, 1.5h or 2d, into seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d|)", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not a valid age. Give seconds, or a unit as in 90s, 10m, 1h or 2d.")
    return float(found[1]) * _UNITS[found[2]]


def state_of(record: RunRecord, now: float) -> str:
    """Return the state of the run: "unreadable", "held", "expired" if its owner's lease is over, or else its status."""
    if record.problem is not None:
        return "unreadable"
    if record.held:
        return "held"
    lives = record.status in {Status.RUNNING, Status.QUEUED}
    if lives and record.expires is not None and record.expires <= now:
        return "expired"
    return str(record.status)


def duration(seconds: float) -> str:
    """Format seconds for a reader: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def next_commands(record: RunRecord, now: float) -> list[str]:
    """Return the command for each possible decision about the run, with its effect as a comment."""
    key = _quoted(record.key)
    stands = state_of(record, now)
    if stands == "held":
        ways = {"resume": "the next owner resumes it", "undo": "the next owner undoes it"}
    elif stands == "expired" or record.status in RESUMABLE:
        ways = {
            "resume": "recovery resumes it at once",
            "undo": "the next owner undoes it",
            "hold": "its key is refused until you decide",
        }
    elif record.status == Status.WAITING:
        again = [name for name in record.waiting_for if waits_to_retry(record, name)]
        ways = {f"resume {key}": "it attempts the step at once" for _ in again[:1]}
        ways |= {_send(record.key, name): "what it waits for" for name in record.waiting_for if name not in again}
        return [
            *(f"flowcore {command}    # {meaning}" for command, meaning in ways.items()),
            f"flowcore undo {key}    # the next owner undoes it",
        ]
    elif record.status in {Status.RUNNING, Status.QUEUED}:
        return [f"flowcore cancel {key}    # its owner stops it and undoes what it did"]
    elif record.status == Status.FAILURE:
        return [f"flowcore resume {key}    # it continues at the failed step"]
    else:
        return []
    ways["release"] = "the run is given up; the next call with the key starts afresh"
    return [f"flowcore {verb} {key}    # {meaning}" for verb, meaning in ways.items()]


def _quoted(*words: str) -> str:
    """Return arguments for a shell, and for click, which takes a word that begins with - for an option."""
    quoted = " ".join(map(shlex.quote, words))
    return f"-- {quoted}" if any(word.startswith("-") for word in words) else quoted


def _send(key: str, name: str) -> str:
    arguments = _quoted(key, name)
    return f"send --json VALUE {arguments}" if arguments.startswith("-- ") else f"send {arguments} --json VALUE"


def as_data(record: RunRecord, *, values: bool = False) -> dict[str, Any]:
    """Return the record as plain data. Results and values, which may be secrets, are included only if `values`."""
    error = record.error
    data: dict[str, Any] = {
        "key": record.key,
        "run_id": record.run_id,
        "workflow": record.workflow,
        "status": str(record.status),
        "held": record.held,
        "reason": record.reason,
        "decision": record.decision,
        "started": record.started,
        "finished": record.finished,
        "expires": record.expires,
        "not_before": record.not_before,
        "waiting_for": list(record.waiting_for),
        "sent": {
            name: {"at": sent.at, "host": sent.host, "pid": sent.pid, "id": sent.id}
            for name, sent in record.sent.items()
        },
        "takeovers": record.takeovers,
        "retries": record.retries,
        "owner": _owner(record.owner),
        "previous_owner": _owner(record.previous_owner),
        "failed_step": record.failed_step,
        "undone": list(record.undone),
        "error": None if error is None else {"type": _type(error), "message": str(error)},
        "traceparent": record.carrier.get("traceparent"),
        "problem": record.problem,
        "steps": {
            name: {
                "status": str(report.status),
                "attempts": report.attempts,
                "failed": report.failed,
                "started": report.started,
                "ran": report.ran,
                "completed_late": None if report.completed_late is None else str(report.completed_late),
                "completed_late_at": report.completed_late_at,
                "attempt_times": [list(times) for times in report.attempt_times],
                "undo": None if report.undo is None else str(report.undo),
                "undo_started": report.undo_started,
                "undo_finished": report.undo_finished,
            }
            for name, report in record.steps.items()
        },
    }
    if values:
        data["values"], data["results"] = dict(record.values), dict(record.results)
    return data


def _owner(owner: Owner | None) -> dict[str, Any] | None:
    return None if owner is None else {"host": owner.host, "pid": owner.pid, "since": owner.since}


def _type(error: BaseException) -> str:
    kind: str = getattr(error, "error_type", "") or type(error).__name__
    return kind
