"""Text from users in logs, on terminals, in HTML, Mermaid, DOT, Prometheus labels and Grafana links stays text."""

import io
import json
import logging
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flowcore import Context, Engine, LoggingHook, PrintLogger, Workflow
from flowcore.errors import one_line, safe_repr, safe_str
from flowcore.picture.timeline import Timeline
from flowcore.stores import MemoryStore
from flowcore_otel import PrometheusHook

DRAWN = {("line", ("class", "x1", "x2", "y1", "y2")), ("text", ("class", "x", "y")), ("g", ())}
"""of the axis of time, which has as many marks as the run was long"""
ROOT = Path(__file__).parents[2]
texts = st.text(st.characters(codec=None, exclude_categories=()), min_size=1, max_size=60) | st.sampled_from(
    [
        "a\r\nERROR forged",
        "\x1b[2J\x1b]0;title\x07",
        "\u202etxt.exe",
        "\u2028line",
        "</script><script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "`<b>`",
        '"]; click s0 "javascript:alert(1)"',
        '\\"; x [label="',
        "&lt;#quot;",
        'a"} 1\nforged{x="',
        "\ud800",
        "%0a&var-datasource=evil",
    ]
)
hostile = settings(max_examples=150, deadline=None)


def failing(name: str, message: str) -> Workflow:
    wf = Workflow(name)

    def step(ctx: Context) -> None:
        raise ValueError(message)

    wf.add_step(name, step)
    return wf


def plain(text: str) -> bool:
    """Whether a text neither begins a line nor steers a terminal."""
    return all(char.isprintable() or char in "\u00a0\u202f\u2007\u3000" for char in text)


@hostile
@given(text=texts)
def test_no_text_makes_a_line_of_a_log_or_steers_a_terminal(text: str) -> None:
    said, handler = io.StringIO(), logging.Handler()
    lines: list[str] = []
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign] # instead of a stream
    log = logging.getLogger("escaping")
    log.propagate, log.handlers = False, [handler]
    log.setLevel(logging.DEBUG)
    hooks: list[Any] = [PrintLogger(said), LoggingHook(log)]
    with Engine(hooks=hooks) as engine:
        run = engine.run(failing(text, text), check=False)
    assert lines
    assert all(map(plain, lines))
    assert all(map(plain, said.getvalue().splitlines()))
    assert len(said.getvalue().splitlines()) == 4
    assert len(run.explain().splitlines()) == 2
    assert plain(one_line(text))
    assert plain(safe_repr(text))
    assert plain(safe_str(ValueError(text)))


@hostile
@given(text=texts)
def test_no_name_and_no_reason_makes_a_line_of_what_a_record_says(text: str) -> None:
    def fails(ctx: Context) -> None:
        raise ValueError(text)

    store, wf = MemoryStore(), Workflow(text)
    undone = wf.add_step(text, lambda ctx: None, compensate=lambda ctx: None)
    wf.add_step("then", fails, depends_on=undone)
    with Engine(store=store) as engine:
        run = engine.run(wf, idempotency_key=text, check=False)
    said = [run.explain().splitlines()]
    for decide in (lambda: None, lambda: store.hold(text, text), lambda: store.undo(text, reason=text)):
        decide()
        record = store.find(text)
        assert record is not None
        said.append(record.explain().splitlines())
    assert [len(lines) for lines in said] == [3, 3, 4, 5]
    assert all(plain(line) for lines in said for line in lines)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))


def tags(page: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Tags()
    parser.feed(page)
    return parser.tags


@hostile
@given(text=texts)
def test_no_text_makes_markup(text: str) -> None:
    pages = []
    for name in ("plain", text):
        store = MemoryStore()
        with Engine(store=store) as engine:
            run = engine.run(failing(name, name), idempotency_key=name, check=False)
        record = store.find(name)
        assert record is not None
        pages.append([run.html(), record.html(trace_url="https://t.example/{trace_id}")])
    for page, expected in zip(pages[1], pages[0], strict=True):
        known, found = Counter(tags(expected)), Counter(tags(page))
        assert found.keys() <= known.keys() | DRAWN
        assert [(tag, number) for tag, number in found.items() if tag[0] in {"script", "style", "a"}] == [
            (tag, number) for tag, number in known.items() if tag[0] in {"script", "style", "a"}
        ]
        page.encode()


@pytest.mark.parametrize("traceparent", ["00-" + "../" * 10 + "xx-1-1", "00-" + "A" * 32 + "-b-01", "00--1-1", "x"])
def test_a_trace_link_leads_to_a_trace_id_only(traceparent: str) -> None:
    wf = failing("w", "no")
    store = MemoryStore()
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k", check=False)
    record = store.find("k")
    assert record is not None
    record.carrier = {"traceparent": traceparent}
    assert Timeline.of_record(record).trace_id is None
    assert "t.example" not in record.html(trace_url="https://t.example/{trace_id}")


@hostile
@given(text=texts)
@example(text='"`<a href=x>`')
def test_no_text_leaves_its_quotes_in_a_diagram(text: str) -> None:
    wf = Workflow(text)
    wf.add_step(text, lambda ctx: None)
    first, node = wf.to_mermaid().splitlines()
    assert first == "flowchart TD"
    label = re.fullmatch(r'    s0\["([^"<>`]*)"\]', node)
    assert label is not None
    assert not re.search(r"&|#(?!quot;|\d+;)", label[1])
    quoted = r'"(?:[^"\\]|\\["\\])*"'
    title, *_, shape, _ = wf.to_dot().splitlines()
    assert re.fullmatch(rf"digraph {quoted} {{", title)
    assert re.fullmatch(rf"    s0 \[label={quoted}\];", shape)


@settings(max_examples=50, deadline=None)
@given(text=texts)
def test_no_text_breaks_a_scrape(text: str) -> None:
    registry = CollectorRegistry()
    with Engine(hooks=[PrometheusHook(registry)]) as engine:
        engine.run(failing(text, text), check=False)
    page = generate_latest(registry).decode()
    families = {family.name for family in text_string_to_metric_families(page)}
    assert families
    assert all(re.fullmatch(r"(flowcore|python|process)_\w+", name) for name in families)


def urls(board: Any) -> list[str]:
    if isinstance(board, dict):
        return [value for key, value in board.items() if key == "url" and value] + urls(list(board.values()))
    return [url for part in board for url in urls(part)] if isinstance(board, list) else []


@pytest.mark.parametrize("name", ["overview", "workflow", "store"])
def test_links_of_dashboards_encode_what_they_are_given(name: str) -> None:
    found = urls(json.loads((ROOT / "dashboards" / f"{name}.json").read_text(encoding="utf-8")))
    assert found
    for url in found:
        query = url.partition("#")[0]
        for variable in re.findall(r"\$\{([^}]*)\}", query):
            ours = {"datasource", "traces", "__from", "__to", "__url_time_range"}  # which no user's text is in
            assert variable in ours or variable.endswith((":percentencode", ":regex")), url
