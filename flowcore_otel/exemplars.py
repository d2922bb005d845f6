"""Exemplars: how a measurement finds the span it belongs to, whichever hook hears of an event first.

TracingHook leaves the run's spans in `event.state`; without it, the caller's span at the start stands in for them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

__all__ = ["CALLER", "TRACE", "Exemplar", "Traced", "exemplar", "of_caller"]

TRACE: Final = "flowcore_otel.trace"
"""in a run's state: a Traced"""
CALLER: Final = "flowcore_otel.caller"
"""in a run's state: the caller's exemplar, or None"""

Exemplar = dict[str, str]


class Traced(Protocol):
    """The spans of a run."""

    @property
    def sampled(self) -> bool:
        """Whether there will be a trace to look at."""
        ...

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """Of the run, of a step or of its undo, or of the latest attempt of these; None if it is not sampled."""
        ...


def exemplar(span: SpanContext) -> Exemplar | None:
    if not span.trace_flags.sampled or not span.is_valid:
        return None
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def of_caller() -> Exemplar | None:
    """Of the current span. Who has one has imported OpenTelemetry; nobody else has to."""
    api: Any = sys.modules.get("opentelemetry.trace")
    return exemplar(api.get_current_span().get_span_context()) if api is not None else None
