"""An exporter that hangs or raises, behind the processors that applications use, is no concern of a run."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from flowcore_otel import MetricsHook, PrometheusHook, TracingHook

from .conftest import MakeDriver, trip

EXPORT_EVERY = 0.01
"""seconds between two exports: while a test's runs go on there are many"""
RUNS = 200


class Trouble:
    """What an exporter does instead of exporting."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.go_on = threading.Event()
        self.asked = threading.Event()

    def __call__(self) -> None:
        self.asked.set()
        if self.what == "raises":
            raise OSError("the collector is down")
        self.go_on.wait(60)


class Spans(SpanExporter):
    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def export(self, spans: Any) -> SpanExportResult:
        self.trouble()
        return SpanExportResult.FAILURE


class Metrics(MetricExporter):
    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble = trouble

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        self.trouble()
        return MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None: ...


@pytest.fixture(params=["hangs", "raises"])
def trouble(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Trouble]:
    made = Trouble(request.param)
    with caplog.at_level(logging.CRITICAL, "opentelemetry"):
        yield made


@pytest.fixture
def hooks(trouble: Trouble) -> Iterator[list[Any]]:
    """As an application sets them up. A queue of 64 spans is full after some runs: the SDK then drops spans."""
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(
        BatchSpanProcessor(
            Spans(trouble), max_queue_size=64, max_export_batch_size=16, schedule_delay_millis=EXPORT_EVERY * 1e3
        )
    )
    reader = PeriodicExportingMetricReader(Metrics(trouble), export_interval_millis=EXPORT_EVERY * 1e3)
    meter_provider = MeterProvider([reader])
    yield [TracingHook(tracer_provider), MetricsHook(meter_provider)]
    trouble.go_on.set()
    tracer_provider.shutdown()
    meter_provider.shutdown()


def took(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def test_runs_neither_wait_for_it_nor_fail(
    make_driver: MakeDriver, trouble: Trouble, hooks: list[Any], registry: CollectorRegistry
) -> None:
    driver = make_driver(*hooks, PrometheusHook(registry))
    wf = trip().wf
    slowest = 0.0
    for number in range(RUNS):
        slowest = max(slowest, took(lambda: driver.run(wf)))
        if number == RUNS // 2:
            assert trouble.asked.wait(10)  # from here on the exporter is in trouble for certain
    # Had a single run waited for the exporter that hangs, it would have been for a minute.
    assert slowest < 5
    assert registry.get_sample_value("flowcore_run_duration_seconds_count", {"workflow": "trip", "outcome": "success"})
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    errors = [sample.value for sample in samples if "hook_errors_total" in sample.name]
    assert errors == [0] * len(errors)


def test_behind_a_simplespanprocessor_every_span_waits_for_it(make_driver: MakeDriver) -> None:
    """Why it is for tests: it exports in the thread of the step."""
    exporting: list[int] = []

    class Slow(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            time.sleep(0.02)
            exporting.append(threading.get_ident())
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Slow()))
    driver = make_driver(TracingHook(provider))
    assert took(lambda: driver.run(trip().wf)) > 0.06
    assert set(exporting) == {threading.get_ident()}
