"""Beside opentelemetry-instrumentation-redis: what a run asks of Redis is in its trace, what the engine does for itself is not."""

import importlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from flowcore import Context, Engine, Workflow
from flowcore.events import Event, MaintenanceFinished
from flowcore.stores import RedisStore
from flowcore_otel import TracingHook

from ..stores.redis_servers import start_redis
from .conftest import Spans
from .test_instrumentor import installed

__all__ = ["start_redis"]

pytestmark = pytest.mark.skipif(
    not installed("opentelemetry.instrumentation.redis") and os.environ.get("CI") != "true",
    reason="opentelemetry-instrumentation-redis is not installed",
)


@pytest.fixture
def url(spans: Spans, start_redis: Any) -> Iterator[str]:
    """Of a server; its clients' calls make spans."""
    started = start_redis(appendonly="no").url
    instrumentor = importlib.import_module("opentelemetry.instrumentation.redis").RedisInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield started
    instrumentor.uninstrument()


class Rounds:
    """Counts what the engine does for itself."""

    wants = frozenset({MaintenanceFinished})

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.enough = threading.Event()

    def __call__(self, event: Event) -> None:
        assert isinstance(event, MaintenanceFinished)
        self.kinds.append(event.kind)
        if min(map(self.kinds.count, ("heartbeat", "recover", "poll"))) >= 3:
            self.enough.set()


def test_the_stores_calls_make_no_spans_and_business_operations_do(spans: Spans, url: str) -> None:
    wf, rounds, begun = Workflow("trip"), Rounds(), threading.Event()
    with redis.Redis.from_url(url) as client:

        @wf.step
        def book(ctx: Context) -> None:
            client.set("seat", "7")
            begun.set()
            assert rounds.enough.wait(30)

        hooks = [TracingHook(spans.provider), rounds]
        with Engine(store=RedisStore(client), hooks=hooks, lease=0.3, workflows=[wf], recover_every=0.05) as engine:
            with spans.span("POST /trips"):
                future = engine.submit(wf, idempotency_key="T-1")
            assert begun.wait(30)
            with Engine(store=RedisStore(client), hooks=hooks) as other:  # it does not own the run: it polls
                adopted = other.run(wf, idempotency_key="T-1", wait=30)
            assert future.result().id == adopted.id
    by_id = {span.context.span_id: span for span in spans.all() if span.context is not None}
    calls = [span for span in spans.all() if span.kind is SpanKind.CLIENT]
    under: dict[str, list[ReadableSpan]] = {}
    for call in calls:
        assert call.parent is not None, f"{call.name} is no part of a run"
        under.setdefault(by_id[call.parent.span_id].name, []).append(call)
    assert [call.name for call in under.pop("step book")] == ["SET"]
    assert under == {}
