"""End to end: through a batch processor and an OTLP exporter to a real receiver, as protobuf."""

import asyncio
import socket

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from flowcore_otel import TracingHook

from .conftest import Driver, MakeDriver, trip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def received(make_driver: MakeDriver, expected: int) -> list[Span]:
    """What a receiver gets of a failing saga, and of a run with its replay."""
    port = free_port()
    provider = TracerProvider()
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"http://127.0.0.1:{port}/v1/traces"), schedule_delay_millis=50)
    )
    driver = make_driver(TracingHook(provider))

    async def collect() -> list[Span]:
        spans: list[Span] = []
        async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(port)) as receiver:
            stream = receiver.stream_traces()
            work = asyncio.create_task(asyncio.to_thread(workload, driver))
            async with asyncio.timeout(30):
                while len(spans) < expected:
                    spans.append(await anext(stream))
            await work
        return spans

    try:
        return asyncio.run(collect())
    finally:
        provider.shutdown()


def workload(driver: Driver) -> None:
    wf = trip(fails=2, attempts=2).wf
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")
    driver.run(wf, idempotency_key="T-1")


def test_a_receiver_gets_spans_with_parents_links_and_errors(make_driver: MakeDriver) -> None:
    # run, book, pay, 2 attempts, backoff, compensate with its attempt; run, book, pay, attempt; hit
    spans = received(make_driver, expected=13)
    by_id = {span.span_id: span for span in spans}
    failed = next(span for span in spans if span.name == "run trip" and span.status.code == Status.STATUS_CODE_ERROR)
    (hit,) = (span for span in spans if span.name == "idempotency hit trip")
    (undo,) = (span for span in spans if span.name == "compensate book")

    assert sorted(span.name for span in spans if span.parent_span_id == failed.span_id) == [
        "compensate book",
        "step book",
        "step pay",
    ]
    assert failed.status.message == "declined"
    # An undo may be attempted several times unless its definition says otherwise.
    assert [span.name for span in spans if span.parent_span_id == undo.span_id] == ["attempt book"]
    assert by_id[undo.links[0].span_id].name == "step book"
    assert by_id[undo.links[0].span_id].parent_span_id == failed.span_id
    original = by_id[hit.links[0].span_id]
    assert (original.name, original.status.code) == ("run trip", Status.STATUS_CODE_UNSET)
    assert original.trace_id == hit.links[0].trace_id != hit.trace_id
    (link_type,) = hit.links[0].attributes
    assert (link_type.key, link_type.value.string_value) == ("flowcore.link.type", "original_run")
    recorded = [(span.name, event.name) for span in spans for event in span.events]
    assert recorded == [("attempt pay", "exception")] * 2
    assert all(span.start_time_unix_nano < span.end_time_unix_nano for span in spans)
