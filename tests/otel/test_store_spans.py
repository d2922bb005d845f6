"""Calls of the store: no spans of the client by default, one of flowcore for each call on demand."""

import asyncio
import importlib
import inspect
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flowcore import Engine, Workflow
from flowcore.stores import SQLiteStore
from flowcore_otel import TracingHook

from .conftest import MakeDriver, Spans
from .test_instrumentor import installed

pytestmark = pytest.mark.skipif(
    not installed("opentelemetry.instrumentation.sqlite3") and os.environ.get("CI") != "true",
    reason="opentelemetry-instrumentation-sqlite3 is not installed",
)


@pytest.fixture
def sqlite(spans: Spans) -> Iterator[Any]:
    """The sqlite3 module, whose calls make spans."""
    instrumentor = importlib.import_module("opentelemetry.instrumentation.sqlite3").SQLite3Instrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield importlib.import_module("sqlite3")
    instrumentor.uninstrument()


@pytest.fixture
def store(tmp_path: Path, sqlite: Any) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(tmp_path / "runs.db")) as store:
        yield store


def chain(**options: Any) -> Workflow:
    wf = Workflow("order")
    before: Any = ()
    for number in range(4):
        before = wf.add_step(f"step-{number}", lambda ctx: 1, depends_on=before, **options)
    return wf


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_of_four_steps_has_five_spans(
    store: SQLiteStore, make_driver: MakeDriver, spans: Spans, fast: bool
) -> None:
    wf = chain(retry=None if fast else 2)
    driver = make_driver(TracingHook(spans.provider), store=store)
    driver.run(wf, idempotency_key="warm-up")
    spans.clear()
    driver.run(wf, idempotency_key="k")
    driver.submit(wf)
    assert {span.name.partition(" ")[0] for span in spans.all()} <= {"run", "step", "submit", "attempt"}
    runs = spans.named("run order")
    assert all((span.attributes or {})["flowcore.run.store_seconds"] > 0 for span in runs)


def test_what_a_caller_asks_of_the_store_makes_no_spans(
    store: SQLiteStore, make_driver: MakeDriver, spans: Spans, sqlite: Any
) -> None:
    driver = make_driver(TracingHook(spans.provider), store=store)
    run = driver.run(chain(), idempotency_key="k")
    spans.clear()

    async def ask() -> list[str]:
        asked = [driver.engine.find("k"), driver.engine.get(run.id)]
        return [(await record if inspect.isawaitable(record) else record).run_id for record in asked]

    assert asyncio.run(ask()) == [run.id, run.id]
    assert not driver.engine.cancel(run.id)
    assert spans.all() == ()


def test_a_queued_run_that_is_withdrawn_makes_no_spans_of_the_client(store: SQLiteStore, spans: Spans) -> None:
    wf, begun, enough = Workflow("order"), threading.Event(), threading.Event()

    @wf.step
    def wait(ctx: Any) -> None:
        begun.set()
        assert enough.wait(30)

    hook = TracingHook(spans.provider)
    with Engine(store=store, hooks=[hook], max_workers=1) as engine:
        engine.submit(wf, idempotency_key="first")
        assert begun.wait(30)
        queued = engine.submit(wf, idempotency_key="second")
        assert queued.cancel()
        assert not engine.cancel(key="third")
        enough.set()
    assert {span.name.partition(" ")[0] for span in spans.all()} == {"run", "step", "submit"}


def test_the_users_own_statements_keep_their_spans(
    store: SQLiteStore, make_driver: MakeDriver, spans: Spans, sqlite: Any
) -> None:
    wf = Workflow("order")

    @wf.step
    def query(ctx: Any) -> None:
        with closing(sqlite.connect(":memory:")) as connection:
            connection.cursor().execute("SELECT 1").fetchone()

    make_driver(TracingHook(spans.provider), store=store).run(wf)
    assert spans.tree() == "run order\n└── step query\n    └── SELECT CLIENT"


def test_on_demand_each_call_has_a_span(store: SQLiteStore, make_driver: MakeDriver, spans: Spans) -> None:
    hook = TracingHook(spans.provider, store_spans=True)
    run = make_driver(hook, store=store).run(chain(), idempotency_key="k")
    calls = [span for span in spans.all() if span.name.startswith("store ")]
    assert {span.name for span in calls} == {"store claim", "store checkpoint", "store finish"}
    assert all("sqlite" not in span.instrumentation_scope.name for span in spans.all() if span.instrumentation_scope)
    for span in calls:
        attributes = span.attributes or {}
        assert (attributes["flowcore.run.id"], attributes["flowcore.store.name"]) == (run.id, "sqlite")
        assert span.parent is not None
        assert span.parent.span_id == spans["run order"].context.span_id
