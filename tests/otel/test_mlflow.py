"""The deeper look, where MLflow is installed (`pip install --group mlflow`; a server of 850 MB): spans that went to it over
OTLP are read back through its own API, links and all."""

import importlib.util
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from flowcore_otel import TracingHook

from .conftest import MakeDriver
from .test_otlp import free_port, workload

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's own
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options], cwd=folder, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 110
            while not answers(f"{url}/health"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "MLflow does not start"
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def test_mlflow_shows_each_run_as_a_trace_with_its_links(server: str, make_driver: MakeDriver) -> None:
    mlflow: Any = importlib.import_module("mlflow")
    client = mlflow.MlflowClient(server)
    experiment = client.create_experiment(uuid4().hex)
    exporter = OTLPSpanExporter(f"{server}/v1/traces", headers={"x-mlflow-experiment-id": experiment})
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    workload(make_driver(TracingHook(provider)))
    provider.shutdown()

    deadline = time.monotonic() + 30
    while len(traces := client.search_traces([experiment])) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    names = {trace.info.trace_id: sorted(span.name for span in trace.data.spans) for trace in traces}
    failed = [names[trace.info.trace_id] for trace in traces if trace.info.state == "ERROR"]
    spans = {span.span_id: span for trace in traces for span in trace.data.spans}
    links = {
        (span.name, link.attributes["flowcore.link.type"], spans[link.span_id].name, names[link.trace_id][-1])
        for span in spans.values()
        for link in span.links
    }
    assert sorted(names.values()) == [
        ["attempt pay", "attempt pay", "backoff pay", "compensate book", "run trip", "step book", "step pay"],
        ["attempt pay", "run trip", "step book", "step pay"],
        ["idempotency hit trip"],
    ]
    assert [("compensate book" in each) for each in failed] == [True]
    assert links == {
        ("step pay", "depends_on", "step book", "step pay"),
        ("compensate book", "compensates", "step book", "step pay"),
        ("idempotency hit trip", "original_run", "run trip", "step pay"),
    }
