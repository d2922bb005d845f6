"""The timeline of one run, from which its HTML page and its waterfall in a terminal are drawn.

It is made from a store's record, from the Run that a caller has, or from the events that a hook has collected. For a
durable run, all of them show when each attempt and backoff began. A Run in memory shows how long each step waited, worked
and backed off in all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, Final

from ..events import (
    AttemptFinished,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    Event,
    RunFinished,
    RunRecovered,
    RunStarted,
    StepCompletedLate,
    StepFinished,
    StepStarted,
)
from ..run import ATTEMPTS_KEPT, Run, StepReport, error_line
from ..status import Status

if TYPE_CHECKING:
    from ..stores.base import Owner, RunRecord

__all__ = ["Bar", "Kind", "Row", "Timeline", "in_words", "milliseconds"]

_TRACE_ID: Final = re.compile("[0-9a-f]{32}")
_SPLIT: Final = 3
"""the most steps that the sentence about the time names"""


class Kind(StrEnum):
    """What a stretch of time was spent on."""

    WAIT = "wait"
    """ready, and waiting for a worker"""
    WORK = "work"
    FAILED = "failed"
    """work that failed"""
    BACKOFF = "backoff"
    UNDO = "undo"
    UNDO_FAILED = "undo failed"
    LATE = "late"
    """work that completed after it had been abandoned"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time. `start` and `end` are seconds since the run began."""

    kind: Kind
    start: float
    end: float
    label: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(slots=True)
class Row:
    """A step, and where its time went."""

    name: str
    status: str
    depends_on: tuple[str, ...] = ()
    bars: list[Bar] = field(default_factory=list[Bar])
    attempts: int = 0
    error: str = ""
    critical: bool = field(default=False, init=False)
    """whether it is on the critical path of its timeline"""

    @property
    def label(self) -> str:
        """Its name, with an escape for each character that a terminal would obey instead of showing it."""
        return self.name if self.name.isprintable() else ascii(self.name)[1:-1]

    @property
    def end(self) -> float | None:
        """When the step itself ended, without its undo; None if it never ran."""
        ends = [bar.end for bar in self.bars if bar.kind not in {Kind.UNDO, Kind.UNDO_FAILED}]
        return max(ends) if ends else None

    def seconds(self, *kinds: Kind) -> float:
        """How long its bars of these kinds took together."""
        return sum(bar.seconds for bar in self.bars if bar.kind in kinds)


@dataclass(slots=True)
class Timeline:
    """Everything that a picture of a run shows. It contains no values, no results and no key."""

    workflow: str
    run_id: str
    status: str
    started: float | None
    """seconds since the epoch"""
    seconds: float
    """from the beginning to the end, or to the last thing known"""
    rows: list[Row]
    takeovers: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    """when an owner took the run over, and a label: the owner before it and the new owner (of_record: only the latest
    takeover), or the owner before it and what was decided (of_events)"""
    trace_id: str | None = None
    owner: str | None = None

    def __post_init__(self) -> None:
        """Mark the critical path: from the step that ended last, back through the dependency of each that ended last."""
        known = {row.name: row for row in self.rows}
        ended = [row for row in self.rows if row.end is not None]
        row = max(ended, key=lambda one: one.end or 0.0, default=None)
        while row is not None and not row.critical:
            row.critical = True
            before = [known[name] for name in row.depends_on if name in known and known[name].end is not None]
            row = max(before, key=lambda one: one.end or 0.0, default=None)

    @classmethod
    def of_events(cls, events: Iterable[Event]) -> Timeline:
        """Return the timeline of the run that these events belong to. They must be in the order in which a hook
        received them. Raises ValueError if none of them is a RunStarted."""
        drawing = _Drawing()
        for event in events:
            drawing.add(event)
        return drawing.timeline()

    @classmethod
    def of_record(cls, record: RunRecord) -> Timeline:
        """Return the timeline of a run from its record in a store."""
        depends_on = _dependencies(record.graph)
        names = [*depends_on, *(name for name in record.steps if name not in depends_on)]
        results = set(record.results)
        reports = {name: record.steps.get(name) or _result_alone(name in results) for name in names}
        owner = _name_of(record.owner)
        timeline = cls._of_reports(
            record.workflow, record.run_id, str(record.status), record.started or None, reports, depends_on
        )
        if record.finished is not None and record.started:
            timeline.seconds = max(timeline.seconds, record.finished - record.started)
        timeline.owner = owner
        before = _name_of(record.previous_owner)
        if (record.takeovers or before not in {None, owner}) and record.owner is not None and record.started:
            what = f"taken over by {owner}" if before is None else f"taken over from {before} by {owner}"
            timeline.takeovers.append((max(0.0, record.owner.since - record.started), what))
        timeline.trace_id = _trace_id(record.carrier)
        return timeline

    @classmethod
    def of_run(cls, run: Run) -> Timeline:
        """Return the timeline of a run that a caller has. Times were measured only with hooks or a durable store."""
        depends_on = run.dependencies
        timeline = cls._of_reports(run.workflow, run.id, str(run.status), None, run.steps, depends_on)
        timeline.trace_id = _trace_id(run.carrier)
        return timeline

    @classmethod
    def _of_reports(
        cls,
        workflow: str,
        run_id: str,
        status: str,
        started: float | None,
        reports: Mapping[str, StepReport],
        depends_on: Mapping[str, tuple[str, ...]],
    ) -> Timeline:
        rows = [_row_of_report(name, report, depends_on.get(name, ())) for name, report in reports.items()]
        known = {row.name: row for row in rows}
        starts = [report.started - (report.waited or 0.0) for report in reports.values() if report.started is not None]
        zero = started if started is not None else min(starts, default=None)
        for row in rows:
            report = reports[row.name]
            if report.started is not None and zero is not None:
                ready = max(0.0, report.started - (report.waited or 0.0) - zero)
            else:  # its start is not known: it follows all steps that it depends on
                ready = max((known[name].end or 0.0 for name in row.depends_on if name in known), default=0.0)
            row.bars = _bars_of_report(report, ready) if zero is None else _bars_of_attempts(report, ready, zero)
            if report.completed_late_at is not None and zero is not None:
                begun, ended = row.end or ready, max(0.0, report.completed_late_at - zero)
                row.bars.append(Bar(Kind.LATE, begun, max(begun, ended), str(report.completed_late)))
            if report.undo_started is not None and report.undo_finished is not None and zero is not None:
                kind = Kind.UNDO if report.undo == Status.SUCCESS else Kind.UNDO_FAILED
                begun, ended = (max(0.0, moment - zero) for moment in (report.undo_started, report.undo_finished))
                row.bars.append(Bar(kind, begun, max(begun, ended), _with("", report.undo_error)))
        seconds = max((bar.end for row in rows for bar in row.bars), default=0.0)
        return cls(workflow, run_id, status, started, seconds, rows)


_DECISIONS: Final = {"forward": "and resumed", "undo": "to be undone", "hold": "and held"}
"""the words for RunRecovered.decision"""


class _Drawing:
    """Builds a timeline from events."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._begin: RunStarted | None = None
        self._end: RunFinished | None = None
        self._started: dict[tuple[str, bool], float] = {}
        self._latest = 0.0
        self._takeovers: list[tuple[float, str]] = []
        self._from = ""  # the owner before this one, where known

    def add(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin = self._begin or event
            before = event.interrupted_by
            self._from = f" from {before['host']} ({before['pid']})" if "host" in before and "pid" in before else ""
        if self._begin is None:
            return
        at = event.at - self._begin.at
        self._latest = max(self._latest, at)
        match event:
            case RunFinished():
                self._end = event
            case RunRecovered():
                decided = _DECISIONS.get(event.decision, event.decision)
                self._takeovers.append((at, f"taken over{self._from} {decided}"))
            case StepStarted():
                row = self._row(event.step)
                row.depends_on = event.depends_on
                if event.waited:
                    row.bars.append(Bar(Kind.WAIT, at - event.waited, at))
                self._started[event.step, False] = at
            case AttemptFinished():
                ok = event.outcome == Status.SUCCESS
                kind = (Kind.UNDO if ok else Kind.UNDO_FAILED) if event.undo else (Kind.WORK if ok else Kind.FAILED)
                label = f"attempt {event.attempt}" if event.max_attempts > 1 else ""
                self._row(event.step).bars.append(Bar(kind, at - event.duration, at, _with(label, event.error)))
            case BackoffStarted():
                self._row(event.step).bars.append(Bar(Kind.BACKOFF, at, at + event.delay, event.reason))
            case StepFinished():
                row = self._row(event.step)
                row.status, row.attempts, row.error = str(event.outcome), event.attempts, _with("", event.error)
                if not any(bar.kind in {Kind.WORK, Kind.FAILED} for bar in row.bars):  # its attempts were not reported
                    kind = Kind.WORK if event.outcome == Status.SUCCESS else Kind.FAILED
                    row.bars.append(Bar(kind, at - event.duration + event.earlier, at, row.error))
            case CompensationStarted():
                self._started[event.step, True] = at
            case CompensationFinished():
                row = self._row(event.step)
                begun = self._started.pop((event.step, True), at - event.duration)
                if not any(bar.kind in {Kind.UNDO, Kind.UNDO_FAILED} and bar.start >= begun for bar in row.bars):
                    kind = Kind.UNDO if event.outcome == Status.SUCCESS else Kind.UNDO_FAILED
                    row.bars.append(Bar(kind, begun, at, _with("", event.error)))
            case StepCompletedLate():
                self._row(event.step).bars.append(Bar(Kind.LATE, max(0.0, at - event.late), at, str(event.outcome)))
            case _:
                pass

    def _row(self, name: str) -> Row:
        return self._rows.setdefault(name, Row(name, str(Status.RUNNING)))

    def timeline(self) -> Timeline:
        if self._begin is None:
            raise ValueError("These events do not begin with a RunStarted. Collect all events of the run.")
        begin, end = self._begin, self._end
        seconds = self._latest if end is None else end.at - begin.at
        status = str(Status.RUNNING if end is None else end.outcome)
        rows = list(self._rows.values())
        timeline = Timeline(begin.workflow, begin.run_id, status, begin.wall, seconds, rows, self._takeovers)
        timeline.trace_id = _trace_id(begin.carrier)
        return timeline


def _row_of_report(name: str, report: StepReport, depends_on: tuple[str, ...]) -> Row:
    error = "" if report.error is None else _with("", report.error)
    return Row(name, str(report.status), depends_on, attempts=report.attempts, error=error)


def _bars_of_report(report: StepReport, ready: float) -> list[Bar]:
    """Return a bar each for waiting, working and backing off. A report has only the total times, not their order."""
    if report.ran is None:
        return []
    start = ready + (report.waited or 0.0)
    bars = [Bar(Kind.WAIT, ready, start)] if report.waited else []
    worked = start + report.ran
    kind = Kind.WORK if report.status == Status.SUCCESS else Kind.FAILED
    bars.append(Bar(kind, start, worked, f"{report.attempts} attempts" if report.attempts > 1 else ""))
    if report.backed_off:
        bars.append(Bar(Kind.BACKOFF, worked, worked + report.backed_off))
    return bars


def _bars_of_attempts(report: StepReport, ready: float, zero: float) -> list[Bar]:
    """Return a bar for each attempt and each backoff, if they are known. `zero`: when the run began, in seconds since the
    epoch."""
    if not report.attempt_times:
        return _bars_of_report(report, ready)
    times = [(max(0.0, began - zero), max(0.0, ended - zero)) for began, ended in report.attempt_times]
    bars = [Bar(Kind.WAIT, ready, times[0][0])] if times[0][0] > ready else []
    missing = max(0, report.attempts - len(times)) if len(times) == 2 * ATTEMPTS_KEPT else 0
    for place, (began, ended) in enumerate(times):
        left_out = missing if place == ATTEMPTS_KEPT else 0
        if place > 0 and began > bars[-1].end:
            bars.append(Bar(Kind.BACKOFF, bars[-1].end, began, f"{left_out} more attempts" if left_out else ""))
        number = place + 1 + (missing if place >= ATTEMPTS_KEPT else 0)
        failed = number <= max(report.failed, len(report.errors))
        label = ": ".join((f"attempt {number}", *(_error_of(report, number) if failed else ())))
        kind = Kind.FAILED if failed or report.status != Status.SUCCESS else Kind.WORK
        bars.append(Bar(kind, began, max(began, ended), label))
    return bars


def _error_of(report: StepReport, number: int) -> tuple[str, ...]:
    """Return the type and the message of the error of a failed attempt, or nothing if it was left out."""
    place = number - 1
    if place >= ATTEMPTS_KEPT:
        place -= max(0, report.failed - len(report.errors))
        if place < ATTEMPTS_KEPT and report.failed > len(report.errors):
            return ()
    return report.errors[place] if place < len(report.errors) else ()


def _result_alone(done: bool) -> StepReport:
    return StepReport(Status.SUCCESS if done else Status.PENDING, int(done))


def _with(label: str, error: BaseException | None) -> str:
    reason = "" if error is None else error_line(error, 200)
    return ": ".join(part for part in (label, reason) if part)


def _name_of(owner: Owner | None) -> str | None:
    return None if owner is None else f"{owner.host} ({owner.pid})"


def _trace_id(carrier: Mapping[str, Any]) -> str | None:
    parts = str(carrier.get("traceparent", "")).split("-")
    return parts[1] if len(parts) == 4 and _TRACE_ID.fullmatch(parts[1]) else None


def in_words(timeline: Timeline) -> str:
    """Return one sentence that says what the run spent its time on."""
    critical = [row for row in timeline.rows if row.critical]
    if not critical:
        return "No times were recorded."
    critical.sort(key=lambda row: row.seconds(*Kind), reverse=True)
    parts = [f"{row.label} {milliseconds(row.seconds(*_FORWARD))}{_of_which(row)}" for row in critical[:_SPLIT]]
    rest = critical[_SPLIT:]
    if rest:
        parts.append(f"{len(rest)} more {milliseconds(sum(row.seconds(*_FORWARD) for row in rest))}")
    undone = sum(row.seconds(Kind.UNDO, Kind.UNDO_FAILED) for row in timeline.rows)
    if undone:
        parts.append(f"undoing {milliseconds(undone)}")
    return f"It took {milliseconds(timeline.seconds)}: {', '.join(parts)}."


_FORWARD: Final = (Kind.WAIT, Kind.WORK, Kind.FAILED, Kind.BACKOFF, Kind.LATE)


def _of_which(row: Row) -> str:
    shares = [
        f"{milliseconds(seconds)} {what}"
        for kind, what in ((Kind.BACKOFF, "backing off"), (Kind.WAIT, "waiting for a worker"))
        if (seconds := row.seconds(kind)) > 0.05 * max(row.seconds(*_FORWARD), 1e-9)
    ]
    return f" (of which {' and '.join(shares)})" if shares else ""


def milliseconds(seconds: float) -> str:
    """Format seconds for a reader: 0.4 ms, 629 ms, 12.5 s, 3 min 5 s."""
    if seconds < 0.001:
        return f"{seconds * 1e3:.2g} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s"


def _dependencies(graph: str) -> dict[str, tuple[str, ...]]:
    """Return the steps of a recorded graph, each with the steps that it depends on. Empty if the text is not a
    graph."""
    try:
        steps: list[Any] = json.loads(graph or "[]")
        found = {str(name): tuple(map(str, before)) for name, before, *_ in steps}
        TopologicalSorter(found).prepare()
    except (TypeError, ValueError, RecursionError):  # a CycleError is a ValueError
        return {}
    return {name: tuple(one for one in before if one in found) for name, before in found.items()}
