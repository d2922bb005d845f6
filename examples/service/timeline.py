"""Reads the spans that the service wrote and draws a trace as a small timeline.

python examples/service/timeline.py spans.jsonl TRACE_ID
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

Paint = Callable[[str, str], str]
"""(text, style) -> the text in that style; styles: good, bad, undo, wait, dim"""


def plain(text: str, _style: str) -> str:
    return text


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


# -- drawing -----------------------------------------------------------------------------------------------------------


def draw(spans: list[Span], width: int = 100, paint: Paint = plain) -> list[str]:
    """Return one line for each span of a trace: its name, a bar, its duration and a note."""
    rows = list(_rows(spans, None, ""))
    drawn = {span.parent for _, span in rows}
    begin = min(span.start for span in spans)
    whole = max(span.end for span in spans) - begin or 1e-9
    labels = max(len(label) for label, _ in rows)
    notes = [_note(span, is_leaf=span.id not in drawn) for _, span in rows]
    cells = max(16, width - labels - 14 - max(map(len, notes)))
    lines = []
    for (label, span), note in zip(rows, notes, strict=True):
        first = min(int((span.start - begin) / whole * cells), cells - 1)
        last = max(first + 1, min(round((span.end - begin) / whole * cells), cells))
        stroke, style = _look(span, is_leaf=span.id not in drawn)
        bar = " " * first + paint(stroke * (last - first), style) + " " * (cells - last)
        line = f"{label:<{labels}} {bar} {_time(span.duration):>7}"
        lines.append(f"{line}  {paint(note, 'bad' if '✗' in note else 'undo')}" if note else line)
    return lines


def _rows(spans: list[Span], parent: str | None, indent: str) -> Iterator[tuple[str, Span]]:
    """Yield the tree, depth first. An attempt that is its parent's only child adds nothing and is left out."""
    known = {span.id for span in spans}
    children = [span for span in spans if span.parent == parent or (parent is None and span.parent not in known)]
    children.sort(key=lambda span: (span.start, span.end))
    if len(children) == 1 and children[0].name.startswith("attempt "):
        return
    for child in children:
        last = child is children[-1]
        branch = "" if parent is None else "└─ " if last else "├─ "
        yield indent + branch + _label(child), child
        yield from _rows(spans, child.id, "" if parent is None else indent + ("   " if last else "│  "))


def _label(span: Span) -> str:
    number = span.attributes.get("flowcore.step.attempt")
    return f"{span.name} {number}" if span.name.startswith("attempt ") and number else span.name


def _look(span: Span, *, is_leaf: bool) -> tuple[str, str]:
    """Return the stroke and style of a bar: blocks for spans that ran user code, lines for those around them."""
    kind = span.name.split()[0]
    if kind == "backoff":
        return "┄", "wait"
    if kind not in {"step", "attempt", "compensate"}:
        return "─", "dim"
    style = "bad" if span.error is not None else "undo" if kind == "compensate" else "good"
    if not is_leaf:
        return "━", style
    return {"good": "█", "bad": "▓", "undo": "▒"}[style], style


def _note(span: Span, *, is_leaf: bool) -> str:
    """Return the run's outcome, the undo's order, or an error; only the innermost span shows the error's text."""
    if span.error is not None:
        outcome = span.attributes.get("flowcore.run.outcome")
        return str(outcome) if outcome else f"✗ {_shortened(span.error)}" if is_leaf else "✗"
    order = span.attributes.get("flowcore.compensation.order")
    return f"undo {order}" if order else ""


def _shortened(text: str, limit: int = 32) -> str:
    text = text.partition("\n")[0]
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _time(seconds: float) -> str:
    return (
        f"{seconds * 1e3:.1f} ms"
        if seconds < 0.1
        else f"{seconds * 1e3:.0f} ms"
        if seconds < 10
        else f"{seconds:.0f} s"
    )


def main() -> None:
    path, trace = Path(sys.argv[1]), sys.argv[2]
    print(*draw([span for span in read_spans(path) if span.trace == trace]), sep="\n")


if __name__ == "__main__":
    main()
