"""Zero code: an unmodified program under `opentelemetry-instrument`."""

import importlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from flowcore import Engine, LoggingHook, Workflow
from flowcore_otel import TracingHook
from flowcore_otel.context import RecordIds

from .conftest import Spans
from .test_sinks import points

ROOT = Path(__file__).parents[2]
GROUP = "opentelemetry_instrumentor"


def installed(*modules: str) -> bool:
    try:
        return all(importlib.util.find_spec(module) is not None for module in modules)
    except ModuleNotFoundError:
        return False


def test_without_its_extra_one_sentence_says_so() -> None:
    code = "import sys; sys.modules['opentelemetry.instrumentation'] = None; import flowcore_otel.instrumentor"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: FlowcoreInstrumentor needs opentelemetry-instrumentation: pip install 'flowcore[instrumentation]'"
    )


needs_instrumentation = pytest.mark.skipif(
    not installed("opentelemetry.instrumentation", "opentelemetry.distro") and os.environ.get("CI") != "true",
    reason="opentelemetry-instrumentation and opentelemetry-distro are not installed",
)


@pytest.fixture
def wf() -> Workflow:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: None)
    return wf


@pytest.fixture
def instrumentor() -> Iterator[Any]:
    made = importlib.import_module("flowcore_otel.instrumentor").FlowcoreInstrumentor()
    yield made
    if made.is_instrumented_by_opentelemetry:
        made.uninstrument()


@needs_instrumentation
def test_engines_made_while_it_is_on_are_watched(instrumentor: Any, spans: Spans, wf: Workflow) -> None:
    reader = InMemoryMetricReader()
    Engine().run(wf)
    instrumentor.instrument(tracer_provider=spans.provider, meter_provider=MeterProvider([reader]))
    Engine().run(wf)
    assert spans.tree() == "run trip\n└── step book"
    counts = [point.count for metric, point in points(reader) if metric.name == "flowcore.run.duration"]
    assert sum(counts) == 1
    instrumentor.uninstrument()
    Engine().run(wf)
    assert len(spans.all()) == 2


@needs_instrumentation
def test_an_engine_with_hooks_of_its_own_is_not_watched_twice(instrumentor: Any, spans: Spans, wf: Workflow) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    Engine(hooks=[TracingHook(spans.provider)]).run(wf)
    assert spans.tree() == "run trip\n└── step book"


@needs_instrumentation
def test_a_second_call_warns_and_does_nothing(
    instrumentor: Any, spans: Spans, wf: Workflow, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument(tracer_provider=spans.provider)
    with caplog.at_level(logging.WARNING):
        instrumentor.instrument(tracer_provider=spans.provider)
    assert "already instrumented" in caplog.text
    Engine().run(wf)
    assert len(spans.named("run trip")) == 1


@needs_instrumentation
def test_the_users_own_records_get_the_ids_of_run_and_step(
    instrumentor: Any, wf: Workflow, caplog: pytest.LogCaptureFixture
) -> None:
    before, log = logging.Logger.makeRecord, logging.getLogger("shop")
    wf.add_step("pay", lambda ctx: log.warning("paying"))
    instrumentor.instrument()
    run = Engine().run(wf)
    log.warning("outside")
    inside, outside = (vars(record) for record in caplog.records if record.name == "shop")
    ids = {"flowcore_run_id": run.id, "flowcore_workflow": "trip", "flowcore_step": "pay", "flowcore_attempt": 1}
    assert ids.items() <= inside.items()
    assert not ids.keys() & outside.keys()
    instrumentor.uninstrument()
    assert logging.Logger.makeRecord is before


@needs_instrumentation
def test_what_extra_sets_on_a_record_is_kept_and_fails_no_step(
    instrumentor: Any, wf: Workflow, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("shop")
    wf.add_step("pay", lambda ctx: log.warning("paying", extra={"flowcore_run_id": "mine", "order": 7}))
    instrumentor.instrument()
    run = Engine().run(wf, check=False)
    assert run.error is None
    (record,) = (vars(record) for record in caplog.records if record.name == "shop")
    expected = {"flowcore_run_id": "mine", "order": 7, "flowcore_workflow": "trip", "flowcore_step": "pay"}
    assert expected.items() <= record.items()


@needs_instrumentation
def test_a_logging_hook_writes_its_lines_under_the_instrumentor(
    instrumentor: Any, wf: Workflow, caplog: pytest.LogCaptureFixture
) -> None:
    instrumentor.instrument()
    with caplog.at_level(logging.INFO):
        run = Engine(hooks=[LoggingHook()]).run(wf)
    lines = [record for record in caplog.records if record.name == "flowcore.run"]
    assert [vars(line)["flowcore_run_id"] for line in lines] == [run.id] * 4
    assert [vars(line)["flowcore_step"] for line in lines] == [None, "book", "book", None]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_method_of_logger_that_was_not_replaced_stays() -> None:
    before = logging.Logger.makeRecord
    records = RecordIds()
    records.uninstall()
    records.install()
    records.uninstall()
    records.uninstall()
    assert logging.Logger.makeRecord is before


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a Python finds flowcore's entry points: nowhere else than usual, unless it was installed without them."""
    if any(point.name == "flowcore" for point in importlib.metadata.entry_points(group=GROUP)):
        return ""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = tmp_path / "checkout-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: checkout\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"][GROUP].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    return str(tmp_path)


@needs_instrumentation
def test_an_unmodified_example_yields_spans_metrics_and_logs(path: str) -> None:
    run = "import sys; from opentelemetry.instrumentation.auto_instrumentation import run; sys.exit(run())"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT)))),
        **{f"OTEL_{signal}_EXPORTER": "console" for signal in ("TRACES", "METRICS", "LOGS")},
    }
    command = [sys.executable, "-c", run, sys.executable, "examples/saga.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "seat 12A: free" in done.stdout
    reported = list(objects(done.stdout))

    names = [thing["name"] for thing in reported if "parent_id" in thing]
    undo = ["attempt book", "compensate book"]
    steps = ["attempt pay", "attempt pay", "attempt pay", "backoff pay", "backoff pay", "step book", "step pay"]
    assert sorted(names) == sorted([*undo, *steps, "run trip"])
    (run_span,) = (thing for thing in reported if thing.get("name") == "run trip")
    assert run_span["attributes"]["flowcore.run.outcome"] == "compensated"

    events = {thing.get("event_name") for thing in reported}
    assert {"flowcore.run.started", "exception"} <= events
    (started,) = (thing for thing in reported if thing.get("event_name") == "flowcore.run.started")
    assert started["trace_id"] == run_span["context"]["trace_id"]

    (metrics,) = (thing for thing in reported if "resource_metrics" in thing)
    found = {
        metric["name"]
        for resource in metrics["resource_metrics"]
        for scope in resource["scope_metrics"]
        if scope["scope"]["name"] == "flowcore"
        for metric in scope["metrics"]
    }
    assert {"flowcore.run.duration", "flowcore.step.retries", "flowcore.compensations"} <= found


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in the output of a program that prints other things too."""
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, position = decoder.raw_decode(text, position)
            yield value
        except json.JSONDecodeError:
            position += 1
        position = text.find("{", position)
