"""For tests: telemetry captured in memory, and traces as text that can be compared with a golden file.

`capture()` needs opentelemetry-sdk and prometheus-client. As a pytest fixture:

    @pytest.fixture
    def telemetry():
        with flowcore_otel.testing.capture() as captured:
            yield captured

    def test_a_declined_card_gives_the_seat_back(telemetry):
        Engine(hooks=telemetry.hooks).run(trip, check=False)
        assert telemetry.tree() == golden
        assert telemetry.metric("flowcore_compensations_total", workflow="trip", step="book", outcome="success") == 1
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanKind, StatusCode

from flowcore.events import Hook

from . import names

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from prometheus_client import CollectorRegistry

__all__ = ["Captured", "capture", "span_tree"]


class Captured:
    """The telemetry of engines that have `hooks`: spans, log events and metrics, in memory. See `capture`."""

    def __init__(self, tracer_provider: TracerProvider, logs: Any, spans: Any, records: Any) -> None:
        from prometheus_client import CollectorRegistry

        from .prometheus import PrometheusHook
        from .tracing import TracingHook

        self.tracer_provider = tracer_provider
        """for the test's own spans, or those of instrumented clients"""
        self.registry: CollectorRegistry = CollectorRegistry()
        self.hooks: tuple[Hook, ...] = (
            TracingHook(tracer_provider, logger_provider=logs),
            PrometheusHook(self.registry),
        )
        """for `Engine(hooks=...)`"""
        self._spans = spans
        self._records = records

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended so far, in order of ending."""
        return list(self._spans.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        """The only span with this name. Raises LookupError if there is none, or more than one."""
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            raise LookupError(f"{len(found)} spans have the name {name!r}; there are:\n{self.tree() or 'none'}")
        return found[0]

    def tree(self) -> str:
        """The spans as text: see `span_tree`."""
        return span_tree(self.spans)

    @property
    def log_events(self) -> list[ReadableLogRecord]:
        """The log events that TracingHook has emitted through the OpenTelemetry logs API."""
        return list(self._records.get_finished_logs())

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of one sample, by its name in Prometheus and all its labels, or None if there is no such sample."""
        return self.registry.get_sample_value(name, labels)

    def clear(self) -> None:
        """Drop the captured spans and log events. Metrics keep their values."""
        self._spans.clear()
        self._records.clear()


@contextmanager
def capture() -> Generator[Captured, None, None]:
    """Capture telemetry during a `with` block. Changes no global state."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    in_memory: Any = InMemoryLogRecordExporter  # the SDK has no types for it
    spans, records = InMemorySpanExporter(), in_memory()
    tracer_provider, logger_provider = TracerProvider(), LoggerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    logger_provider.add_log_record_processor(SimpleLogRecordProcessor(records))
    try:
        yield Captured(tracer_provider, logger_provider, spans, records)
    finally:
        tracer_provider.shutdown()
        logger_provider.shutdown()


def span_tree(spans: Iterable[ReadableSpan]) -> str:
    """Return finished spans as an indented tree, one per line in the order of their starts, without ids and times.

    A line has the span's name, its kind unless that is INTERNAL, ERROR and the error's type, `!` and the type of each
    recorded exception (or the name of another event), and `→` with the type of each link and the name of its target. A
    span whose parent is not among `spans` is a root.

        run trip ERROR shop.Declined
        ├── step book
        ├── step pay ERROR shop.Declined ! shop.Declined → depends_on step book
        └── compensate book → compensates step book
            └── attempt book
    """
    ordered = sorted(spans, key=lambda span: span.start_time or 0)
    by_id = {span.context.span_id: span for span in ordered if span.context is not None}
    children: dict[int | None, list[ReadableSpan]] = {}
    for span in ordered:
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in by_id else None
        children.setdefault(parent, []).append(span)

    def lines(span: ReadableSpan, first: str, rest: str) -> Iterator[str]:
        yield first + _line(span, by_id)
        below = children.get(span.context.span_id, []) if span.context is not None else []
        for child in below[:-1]:
            yield from lines(child, rest + "├── ", rest + "│   ")
        for child in below[-1:]:
            yield from lines(child, rest + "└── ", rest + "    ")

    return "\n".join(line for root in children.get(None, []) for line in lines(root, "", ""))


def _line(span: ReadableSpan, by_id: dict[int, ReadableSpan]) -> str:
    parts = [span.name]
    if span.kind is not SpanKind.INTERNAL:
        parts.append(span.kind.name)
    if span.status.status_code is StatusCode.ERROR:
        parts.append(f"ERROR {(span.attributes or {}).get(names.ERROR_TYPE, '')}".rstrip())
    for event in span.events:
        error_type = (event.attributes or {}).get(names.EXCEPTION_TYPE, "")
        parts.append(f"! {error_type if event.name == names.EXCEPTION else event.name}")
    for link in span.links:
        target = by_id.get(link.context.span_id)
        kind = (link.attributes or {}).get(names.LINK_TYPE, "")
        parts.append(f"→ {kind} {target.name if target is not None else '(elsewhere)'}")
    return " ".join(parts)
