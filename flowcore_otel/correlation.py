"""`LogContext`: log records that say which run, step and attempt they come from."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from flowcore.events import AttemptStarted, Event, RunStarted

__all__ = ["LogContext"]


class _Place(NamedTuple):
    run_id: str | None = None
    workflow: str | None = None
    step: str | None = None
    attempt: int | None = None


_NOWHERE: Final = _Place()
_place: Final = ContextVar("flowcore_otel.place", default=_NOWHERE)


class LogContext(logging.Filter):
    """Adds to every log record the run, step and attempt in whose code it was written.

    Is a filter and a hook: add it to the handlers whose records shall have the ids, and to the hooks of the engines
    whose runs shall give them; any instances will do.

        log_context = LogContext()
        handler.addFilter(log_context)
        engine = Engine(hooks=[log_context])

    A record gets `flowcore_run_id`, `flowcore_workflow`, `flowcore_step`, `flowcore_attempt` and, of the current span of
    OpenTelemetry, `trace_id` and `span_id` in hex; each None where there is none, and as it was where `extra=` has set it.
    An attempt that lands late still has its ids. Lets every record pass. Thread-safe.
    """

    wants: frozenset[type[Event]] = frozenset({RunStarted, AttemptStarted})

    def __call__(self, event: Any, /) -> None:
        # A run and each attempt have a contextvars context of their own, so nothing has to be put back: it ends with
        # them. Whoever still runs in it has the ids still.
        if type(event) is AttemptStarted:
            _place.set(_Place(event.run_id, event.workflow, event.step, event.attempt))
        else:
            _place.set(_Place(event.run_id, event.workflow))

    def filter(self, record: logging.LogRecord) -> bool:
        place = _place.get()
        trace_id, span_id = _of_current_span()
        known = {
            "flowcore_run_id": place.run_id,
            "flowcore_workflow": place.workflow,
            "flowcore_step": place.step,
            "flowcore_attempt": place.attempt,
            "trace_id": trace_id,
            "span_id": span_id,
        }
        for name, value in known.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def _of_current_span() -> tuple[str | None, str | None]:
    """Who has a span has imported OpenTelemetry; nobody else has to."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None, None
    span = api.get_current_span().get_span_context()
    return (f"{span.trace_id:032x}", f"{span.span_id:016x}") if span.is_valid else (None, None)
