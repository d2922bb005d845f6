"""The spans of a trace are drawn as the timeline of its run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import timeline
from flowcore.picture import Kind, gantt
from timeline import Span, read_spans, timeline_of


def span(name: str, start: float, end: float, parent: Span | None = None, **more: Any) -> Span:
    attributes = {"flowcore.step.name": name.partition(" ")[2]} | more.pop("attributes", {})
    values: dict[str, Any] = {"attributes": attributes, "links": [], "error": None} | more
    return Span(name, "t", f"{name} {start}", parent.id if parent else None, 1e9 + start, 1e9 + end, **values)


def failed_trip() -> list[Span]:
    """A run in which "pay" failed twice and "book" was undone, below the span of a request."""
    request = span("POST /trips", 0, 0.11)
    about = {"flowcore.workflow.name": "trip", "flowcore.run.id": "r1", "flowcore.run.outcome": "compensated"}
    run = span("run trip", 0.01, 0.11, request, error="no", attributes=about)
    book = span("step book", 0.01, 0.03, run, attributes={"flowcore.step.outcome": "success"})
    pay = span(
        "step pay",
        0.04,
        0.09,
        run,
        error="no",
        attributes={
            "flowcore.step.outcome": "failure",
            "flowcore.step.wait": 0.01,
            "flowcore.step.depends_on": ["book"],
        },
    )
    return [
        span("compensate book", 0.09, 0.11, run),
        span("attempt pay", 0.04, 0.05, pay, error="no"),
        span("backoff pay", 0.05, 0.07, pay),
        span("attempt pay", 0.07, 0.09, pay, error="no"),
        pay,
        span("attempt book", 0.01, 0.03, book),
        book,
        run,
        request,
    ]


def test_a_failed_run_is_drawn_as_the_command_line_draws_it() -> None:
    timeline = timeline_of(failed_trip())

    assert (timeline.workflow, timeline.run_id, timeline.status) == ("trip", "r1", "compensated")
    assert [(row.name, row.status, row.critical) for row in timeline.rows] == [
        ("book", "success", True),
        ("pay", "failure", True),
    ]
    assert gantt(timeline, width=56).splitlines() == [
        "It took 100 ms: pay 60 ms (of which 20 ms backing off and 10 ms waiting for a worker), book 20 ms, undoing 20 ms.",
        "* book                  ████            ◀◀◀◀ 40 ms",
        "* pay                      ╌╌▓▓·····▓▓▓▓     60 ms",
        "  ╌ wait  █ work  ▓ failed  · backoff  ◀ undo; * critical path",
    ]


def test_an_undo_that_failed_is_marked() -> None:
    run = span("run trip", 0, 1, attributes={"flowcore.workflow.name": "trip", "flowcore.run.id": "r1"})
    (row,) = timeline_of([run, span("compensate book", 0, 1, run, error="no")]).rows

    assert [bar.kind for bar in row.bars] == [Kind.UNDO_FAILED]


def test_colours_go_round_the_bars_and_their_names_only() -> None:
    drawn = gantt(timeline_of(failed_trip()), width=56, paint=lambda text, kind: f"<{kind}>{text}</>")

    assert "* pay                      <wait>╌╌</><failed>▓▓</><backoff>·····</><failed>▓▓▓▓</>     60 ms" in drawn
    assert "<undo>◀</> undo; * critical path" in drawn


def test_a_trace_without_a_run_has_no_timeline() -> None:
    with pytest.raises(ValueError, match="This trace has no run"):
        timeline_of([span("GET /metrics", 0, 1)])


RAW: dict[str, Any] = {
    "name": "run a",
    "context": {"trace_id": "0x0af7", "span_id": "0x00b7", "trace_state": "[]"},
    "parent_id": None,
    "start_time": "2026-11-22T15:00:00.250000Z",
    "end_time": "2026-11-22T15:00:00.750000Z",
    "status": {"status_code": "ERROR", "description": "boom"},
    "attributes": {"flowcore.workflow.name": "a", "flowcore.run.id": "r1"},
    "links": [],
}
STEP: dict[str, Any] = RAW | {
    "name": "step b",
    "context": RAW["context"] | {"span_id": "0x00b8"},
    "parent_id": "0x00b7",
    "attributes": {"flowcore.step.name": "b"},
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
    path.write_text(f"{json.dumps(STEP)}\n{json.dumps(RAW)}\n")

    result = subprocess.run(
        [sys.executable, timeline.__file__, str(path), "0af7"],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )

    assert result.stdout.startswith("It took 500 ms: b 500 ms.\n* b  ")
    assert "▓▓▓" in result.stdout
