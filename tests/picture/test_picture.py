"""One run as a picture: the same description from events, from the Run and from a store's record; and what the page holds."""

from __future__ import annotations

import html.parser
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from flowcore import Context, Engine, Retry, Status, StepReport, Workflow
from flowcore.events import Event, RunRecovered, RunStarted
from flowcore.picture import Bar, Kind, Row, Timeline, gantt, in_words, page
from flowcore.run import Run
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Owner, RunRecord
from flowcore.stores.story import moment

HOSTILE = '</title><script>alert("x")</script>\r\n\x1b[31m\u202e&amp;'


def saga() -> Workflow:
    """Two steps side by side, one that needs two attempts, one that fails, and undos."""
    wf = Workflow("checkout")
    tries: list[int] = []

    def charge(ctx: Context) -> str:
        tries.append(1)
        if len(tries) % 2:
            raise ConnectionError("gateway: 503")
        return "ch-1"

    def ship(ctx: Context) -> None:
        raise ValueError("no such street")

    wf.add_step("reserve", lambda ctx: "r-1", compensate=lambda ctx: None)
    wf.add_step("fraud", lambda ctx: None)
    wf.add_step("charge", charge, depends_on=["reserve", "fraud"], retry=Retry(2), compensate=lambda ctx: None)
    wf.add_step("ship", ship, depends_on="charge")
    return wf


@pytest.fixture
def reported(tmp_path: Path) -> Iterator[tuple[list[Event], Run, Any]]:
    events: list[Event] = []
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store, hooks=[events.append]) as engine:
        run = engine.run(saga(), idempotency_key="k", check=False)
        yield events, run, store.find("k")
    store.close()


def outline(timeline: Timeline) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    return {row.name: (row.status, row.attempts, tuple(sorted(row.depends_on))) for row in timeline.rows}


def test_events_run_and_record_give_one_description(reported: tuple[list[Event], Run, Any]) -> None:
    events, run, record = reported
    pictures = Timeline.of_events(events), Timeline.of_run(run), Timeline.of_record(record)
    expected = {
        "reserve": ("success", 1, ()),
        "fraud": ("success", 1, ()),
        "charge": ("success", 2, ("fraud", "reserve")),
        "ship": ("failure", 1, ("charge",)),
    }
    for picture in pictures:
        assert outline(picture) == expected
        assert (picture.workflow, picture.run_id, picture.status) == ("checkout", run.id, "compensated")
        assert [row.name for row in picture.rows if row.critical][-2:] == ["charge", "ship"]


def test_events_know_each_attempt_and_each_undo(reported: tuple[list[Event], Run, Any]) -> None:
    rows = {row.name: [bar.kind for bar in row.bars] for row in Timeline.of_events(reported[0]).rows}
    assert [kind for kind in rows["charge"] if kind is not Kind.WAIT] == [
        Kind.FAILED,
        Kind.BACKOFF,
        Kind.WORK,
        Kind.UNDO,
    ]
    assert rows["ship"][-1] is Kind.FAILED
    assert rows["reserve"][-1] is Kind.UNDO


def test_run_and_record_know_each_undo_as_events_do(reported: tuple[list[Event], Run, Any]) -> None:
    events, run, record = reported
    undos = [
        {row.name: bar for row in picture.rows for bar in row.bars if bar.kind is Kind.UNDO}
        for picture in (Timeline.of_events(events), Timeline.of_run(run), Timeline.of_record(record))
    ]
    for found in undos:
        assert found.keys() == {"charge", "reserve"}
        assert found["charge"].end <= found["reserve"].start
    assert 'class="undo"' in record.html()
    assert 'class="undo"' in run.html()


def test_an_undo_is_drawn_where_the_record_has_it() -> None:
    began = 1_700_000_000.0
    record = RunRecord("k", "1" * 32, "checkout", None, '[["reserve", []], ["charge", ["reserve"]]]', "compensated")
    record.started, record.finished = began, began + 9
    undone = {"undo": Status.SUCCESS, "undo_started": began + 6.5, "undo_finished": began + 8}
    failed = {
        "undo": Status.FAILURE,
        "undo_started": began + 5,
        "undo_finished": began + 6,
        "undo_error": OSError("no"),
    }
    record.steps = {
        "reserve": StepReport(Status.SUCCESS, 1, 0.5, 2.0, 0.0, started=began + 1, **undone),
        "charge": StepReport(Status.FAILURE, 1, 0.0, 1.0, 0.0, started=began + 3, **failed),
    }
    reserve, charge = Timeline.of_record(record).rows
    assert reserve.bars[-1] == Bar(Kind.UNDO, 6.5, 8.0)
    assert charge.bars[-1] == Bar(Kind.UNDO_FAILED, 5.0, 6.0, "OSError: no")
    assert (reserve.end, charge.end) == (3.0, 4.0)
    assert "undoing 2.5 s" in in_words(Timeline.of_record(record))
    for report in record.steps.values():  # as an earlier release has recorded them
        report.undo_started = report.undo_finished = None
    assert [row.bars[-1].kind for row in Timeline.of_record(record).rows] == [Kind.WORK, Kind.FAILED]


def test_events_of_no_run_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="do not begin with a RunStarted"):
        Timeline.of_events([])


def waterfall(steps: int) -> Timeline:
    rows = [
        Row(f"step {n}", "success", (f"step {n - 1}",) if n else (), [Bar(Kind.WORK, n, n + 1.0)], 1)
        for n in range(steps)
    ]
    return Timeline("long", "0" * 32, "success", 1_700_000_000.0, float(steps), rows)


class Page(html.parser.HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("steps", [0, 1, 10, 1000])
def test_the_page_needs_no_script_and_no_network(steps: int) -> None:
    found = Page(page(waterfall(steps), "the story"))
    assert "script" not in found.tags
    assert found.links == []
    assert found.tags.count("tr") == steps + 1
    assert "the story" in found.text


def test_hostile_names_cannot_inject_markup() -> None:
    row = Row(HOSTILE, "success", (HOSTILE,), [Bar(Kind.FAILED, 0, 1, HOSTILE)], 1, error=HOSTILE)
    timeline = Timeline(HOSTILE, "0" * 32, "success", None, 1.0, [row], [(0.5, HOSTILE)], owner=HOSTILE)
    text = page(timeline, HOSTILE, key_hash=HOSTILE, trace_url="javascript:alert(1)")
    found = Page(text)
    assert "script" not in found.tags
    assert "a" not in found.tags
    assert "\x1b" not in text
    assert "\u202e" not in text
    short = Row("\x1b[31m\r", "success", (), [Bar(Kind.WORK, 0, 1)])
    for one in (timeline, Timeline("w", "0" * 32, "success", None, 1.0, [short])):
        drawn = gantt(one)
        assert all(line.isprintable() for line in drawn.split("\n"))
        assert len(drawn.split("\n")) == 3


def test_the_terminals_ascii_has_no_other_characters_whatever_the_names() -> None:
    timeline = Timeline("w", "0" * 32, "success", None, 1.0, [Row("café", "success", (), [Bar(Kind.WORK, 0, 1)])])
    assert "caf\\xe9" in gantt(timeline, ascii=True)
    assert gantt(timeline, ascii=True).isascii()


def test_a_trace_link_is_made_of_the_template() -> None:
    timeline = waterfall(1)
    timeline.trace_id = "ab" * 16
    assert Page(page(timeline, "", trace_url="https://traces.example/{trace_id}")).links == [
        f"https://traces.example/{'ab' * 16}"
    ]


def test_the_sentence_says_where_the_time_went() -> None:
    slow = Row("charge", "success", (), [Bar(Kind.WORK, 0, 0.2), Bar(Kind.BACKOFF, 0.2, 0.5), Bar(Kind.WORK, 0.5, 0.6)])
    other = Row("quick", "success", (), [Bar(Kind.WORK, 0, 0.1)])
    timeline = Timeline("w", "0" * 32, "success", None, 0.6, [slow, other])
    assert in_words(timeline) == "It took 600 ms: charge 600 ms (of which 300 ms backing off)."


def test_the_terminal_shows_an_attempt_however_short_it_is() -> None:
    bars = [
        *(Bar(Kind.WAIT, 0.1, 0.1001), Bar(Kind.FAILED, 0.1001, 0.1002), Bar(Kind.BACKOFF, 0.1002, 0.5)),
        Bar(Kind.WORK, 0.5, 0.6),
    ]
    line = gantt(Timeline("w", "0" * 32, "success", None, 0.6, [Row("charge", "success", (), bars)])).splitlines()[1]
    assert re.sub(r"(.)\1+", r"\1", re.sub(r"[^█▓·]", "", line)) == "▓·█"


def test_the_terminal_shows_the_same_in_ascii() -> None:
    timeline = waterfall(3)
    drawn = gantt(timeline, width=60, ascii=True)
    assert drawn.isascii()
    assert [len(re.findall("#", line)) > 0 for line in drawn.splitlines()[1:4]] == [True] * 3
    assert all(len(line) <= 60 for line in drawn.splitlines()[1:4])


def test_a_takeover_is_a_line_with_both_owners(reported: tuple[list[Event], Run, Any]) -> None:
    record = replace(reported[2], previous_owner=Owner("old-host", 7))
    owner = record.owner
    assert f"<title>taken over from old-host (7) by {owner.host} ({owner.pid})</title>" in record.html()
    assert f"since {moment(owner.since)}, after process 7 on old-host" in record.explain()
    for before in (None, owner):  # the same process resumed the run, for example after a wait
        record = replace(reported[2], previous_owner=before)
        assert "taken over" not in record.html()
        assert ", after process" not in record.explain()
    assert f"<title>taken over by {owner.host} ({owner.pid})</title>" in replace(reported[2], takeovers=1).html()


@pytest.mark.parametrize(
    ("decision", "words"), [("forward", "and resumed"), ("undo", "to be undone"), ("hold", "and held")]
)
def test_a_takeover_among_events_is_a_line_with_its_decision(
    reported: tuple[list[Event], Run, Any], decision: str, words: str
) -> None:
    started = next(event for event in reported[0] if isinstance(event, RunStarted))
    shared = started.run_id, started.workflow, started.at, started.state
    recovered = RunRecovered(*shared, decision, (), (), (), (), (), {})
    text = page(Timeline.of_events([*reported[0], recovered]), "")
    assert f"<title>taken over {words}</title>" in text


def test_a_takeover_among_events_names_the_owner_before_it(reported: tuple[list[Event], Run, Any]) -> None:
    started = next(event for event in reported[0] if isinstance(event, RunStarted))
    resumed = RunStarted(*(getattr(started, field.name) for field in fields(started)))
    resumed.interrupted_by = {"host": "host-1", "pid": 12, "since": 1.0}
    recovered = RunRecovered(
        *(started.run_id, started.workflow, started.at, started.state), "undo", (), (), (), (), (), {}
    )
    text = page(Timeline.of_events([resumed, recovered, *reported[0][1:]]), "")
    assert "<title>taken over from host-1 (12) to be undone</title>" in text


def test_run_and_record_make_their_page_themselves(reported: tuple[list[Event], Run, Any]) -> None:
    _, run, record = reported
    for text in (run.html(), record.html(usual=0.5), run._repr_html_()):
        assert "checkout" in text
        assert "ship" in text
        assert "ch-1" not in text, "results may be secrets"
    assert "usually takes 500 ms" in record.html(usual=0.5)


def test_the_story_of_a_record_says_how_it_stands_and_what_each_step_did(
    reported: tuple[list[Event], Run, Any],
) -> None:
    record = reported[2]
    first, *lines = record.explain().splitlines()
    assert first.startswith(f"Run {record.run_id} of 'checkout', key 'k': failed at step 'ship': ValueError: ")
    assert first.endswith("undone: charge, reserve")
    assert any(line.startswith("  charge: success after 2 attempts") for line in lines)
    assert "r-1" not in record.explain()
