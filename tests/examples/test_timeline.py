"""A trace is drawn as a tree with bars that stand where the spans were."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import timeline
from timeline import Span, draw, read_spans


def span(name: str, start: float, end: float, parent: Span | None = None, **more: Any) -> Span:
    values: dict[str, Any] = {"attributes": {}, "links": [], "error": None} | more
    return Span(name, "t", f"{name} {start}", parent.id if parent else None, 1e9 + start, 1e9 + end, **values)


def test_timeline_of_a_failed_run() -> None:
    run = span("run trip", 0, 0.1, error="no", attributes={"flowcore.run.outcome": "compensated"})
    book = span("step book", 0, 0.02, run)
    pay = span("step pay", 0.02, 0.08, run, error="no")
    spans = [
        span("compensate book", 0.08, 0.1, run, attributes={"flowcore.compensation.order": 1}),
        span("attempt pay", 0.02, 0.04, pay, error="no", attributes={"flowcore.step.attempt": 1}),
        span("backoff pay", 0.04, 0.06, pay),
        span("attempt pay", 0.06, 0.08, pay, error="no\nat all", attributes={"flowcore.step.attempt": 2}),
        pay,
        span("attempt book", 0, 0.02, book),
        book,
        run,
    ]

    assert draw(spans, width=65) == [
        "run trip            ─────────────────────  100 ms  compensated",
        "├─ step book        ████                  20.0 ms",
        "├─ step pay             ━━━━━━━━━━━━━     60.0 ms  ✗",
        "│  ├─ attempt pay 1     ▓▓▓▓              20.0 ms  ✗ no",
        "│  ├─ backoff pay           ┄┄┄┄┄         20.0 ms",
        "│  └─ attempt pay 2             ▓▓▓▓▓     20.0 ms  ✗ no",
        "└─ compensate book                  ▒▒▒▒▒ 20.0 ms  undo 1",
    ]


def test_colours_go_round_the_bar_and_the_note_only() -> None:
    step = span("step pay", 0, 1, error="no")

    (line,) = draw([step], 40, lambda text, style: f"<{style}>{text}</>")

    assert line == "step pay <bad>▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓</> 1000 ms  <bad>✗ no</>"


def test_spans_outside_the_file_may_be_parents() -> None:
    """A caller's traceparent: the root of what we have is drawn as the root."""
    lone = Span("POST /orders", "t", "1", "elsewhere", 5.0, 6.0, {}, [], None)

    assert draw([lone], width=40) == ["POST /orders ──────────────── 1000 ms"]


RAW: dict[str, Any] = {
    "name": "step a",
    "context": {"trace_id": "0x0af7", "span_id": "0x00b7", "trace_state": "[]"},
    "parent_id": None,
    "start_time": "2026-11-22T15:00:00.250000Z",
    "end_time": "2026-11-22T15:00:00.750000Z",
    "status": {"status_code": "ERROR", "description": "boom"},
    "attributes": {},
    "links": [],
}


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(json.dumps(RAW) + "\n" + json.dumps(RAW)[:50])

    (only,) = read_spans(path)

    assert (only.trace, only.id, only.error) == ("0af7", "00b7", "boom")
    assert only.duration == 0.5


def test_no_file_no_spans(tmp_path: Path) -> None:
    assert read_spans(tmp_path / "none.jsonl") == []


def test_script_draws_one_trace_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(json.dumps(RAW) + "\n")

    result = subprocess.run(
        [sys.executable, timeline.__file__, str(path), "0af7"],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )

    assert result.stdout.startswith("step a ▓▓▓")
    assert result.stdout.endswith("▓  500 ms  ✗ boom\n")
