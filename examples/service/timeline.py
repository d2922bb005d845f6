"""Reads the spans that the service wrote, and draws a run as `flowcore timeline` draws it from a store.

python examples/service/timeline.py spans.jsonl TRACE_ID
"""

import json
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flowcore.picture import Bar, Kind, Row, Timeline, gantt


@dataclass(frozen=True)
class Span:
    """A span as the file has it; times are seconds since the epoch."""

    name: str
    trace: str
    id: str
    parent: str | None
    start: float
    end: float
    attributes: dict[str, Any]
    links: list[dict[str, Any]]
    error: str | None
    """the description of an ERROR status"""

    @property
    def duration(self) -> float:
        return self.end - self.start


def read_spans(path: Path) -> list[Span]:
    """Return the spans in the file so far, without a line that is still being written."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [_span(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _span(raw: dict[str, Any]) -> Span:
    failed = raw["status"]["status_code"] == "ERROR"
    return Span(
        raw["name"],
        bare(raw["context"]["trace_id"]),
        bare(raw["context"]["span_id"]),
        bare(raw["parent_id"]) if raw["parent_id"] else None,
        datetime.fromisoformat(raw["start_time"]).timestamp(),
        datetime.fromisoformat(raw["end_time"]).timestamp(),
        raw["attributes"],
        raw["links"],
        raw["status"].get("description", "") if failed else None,
    )


def bare(number: str) -> str:
    """Return an id without the prefix 0x that it has in the SDK's JSON."""
    return number.removeprefix("0x")


def timeline_of(trace: list[Span]) -> Timeline:
    """Return the timeline of the first run in a trace. Raises ValueError if there is none."""
    run = min((span for span in trace if _action(span) == "run"), key=lambda span: span.start, default=None)
    if run is None:
        raise ValueError("This trace has no run. Look for its id in the file of spans.")
    rows: dict[str, Row] = {}
    for span in sorted(trace, key=lambda span: span.start):
        if span.parent != run.id or _action(span) not in {"step", "compensate"}:
            continue
        about = span.attributes
        name = about["flowcore.step.name"]
        if name not in rows:
            outcome = str(about.get("flowcore.step.outcome", ""))
            rows[name] = Row(name, outcome, tuple(about.get("flowcore.step.depends_on", ())))
        if wait := about.get("flowcore.step.wait"):
            rows[name].bars.append(Bar(Kind.WAIT, span.start - run.start - wait, span.start - run.start))
        parts = [part for part in trace if part.parent == span.id and _action(part) in {"attempt", "backoff"}] or [span]
        rows[name].bars += [
            Bar(_kind(part, undo=_action(span) == "compensate"), part.start - run.start, part.end - run.start)
            for part in parts
        ]
    about = run.attributes
    outcome = str(about.get("flowcore.run.outcome", ""))
    return Timeline(
        about["flowcore.workflow.name"], about["flowcore.run.id"], outcome, run.start, run.duration, [*rows.values()]
    )


def _action(span: Span) -> str:
    return span.name.partition(" ")[0]


def _kind(span: Span, *, undo: bool) -> Kind:
    if _action(span) == "backoff":
        return Kind.BACKOFF
    if undo:
        return Kind.UNDO if span.error is None else Kind.UNDO_FAILED
    return Kind.WORK if span.error is None else Kind.FAILED


def main() -> None:
    path, trace = Path(sys.argv[1]), sys.argv[2]
    print(gantt(timeline_of([span for span in read_spans(path) if span.trace == trace])))


if __name__ == "__main__":
    main()
