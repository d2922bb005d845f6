"""Emits log records through the OpenTelemetry logs API. Without a logs SDK they are dropped, at next to no cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from opentelemetry import _logs as logs, trace
from opentelemetry.util.types import AttributeValue

from . import names
from .text import error_type, message, stacktrace

__all__ = ["LogEvents"]

_SIGNAL = "OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN"


class LogEvents:
    """Emits log events, and records exceptions both as log records and as span events, which more back ends show.

    `OTEL_SEMCONV_EXCEPTION_SIGNAL_OPT_IN=logs` leaves the span events out.
    """

    __slots__ = ("_logger", "_on_spans", "enabled")

    def __init__(self, provider: logs.LoggerProvider | None = None) -> None:
        self._logger = logs.get_logger(names.SCOPE, names.SCOPE_VERSION, provider, names.SCHEMA_URL)
        # Some versions of the API lack `enabled`. It is called for each event, because a provider may be set later.
        self.enabled: Callable[[], bool] = getattr(self._logger, "enabled", lambda: True)
        """whether a logs SDK records what is emitted"""
        opted = {word.strip().lower() for word in os.environ.get(_SIGNAL, "").split(",")}
        self._on_spans = "logs" not in opted or "logs/dup" in opted

    def emit(
        self,
        name: str,
        body: str,
        span: trace.Span,
        at: int,
        attributes: Mapping[str, AttributeValue],
        severity: logs.SeverityNumber = logs.SeverityNumber.INFO,
    ) -> None:
        """Emit one event in the context of `span`. `at`: nanoseconds since the epoch. `body`: a text for people."""
        if not self.enabled():
            return
        self._logger.emit(
            timestamp=at,
            context=trace.set_span_in_context(span),
            severity_number=severity,
            severity_text=severity.name,
            body=body,
            attributes=dict(attributes),
            event_name=name,
        )

    def exception(self, error: BaseException, span: trace.Span, at: int) -> None:
        attributes = {
            names.EXCEPTION_TYPE: error_type(error),
            names.EXCEPTION_MESSAGE: message(error),
            names.EXCEPTION_STACKTRACE: stacktrace(error),
        }
        body = f"{attributes[names.EXCEPTION_TYPE]}: {attributes[names.EXCEPTION_MESSAGE]}"
        self.emit(names.EXCEPTION, body, span, at, attributes, logs.SeverityNumber.ERROR)
        if self._on_spans:
            span.add_event(names.EXCEPTION, attributes, at)
