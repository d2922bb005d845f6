"""The run, step and attempt that code runs in: ids for log records, exemplars for metrics, and the trace of a Run.

This module needs flowcore only. It uses OpenTelemetry if the program has imported it.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from flowcore import Run
from flowcore.events import AttemptStarted, Event, RunStarted

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

__all__ = [
    "CALLER",
    "TRACE",
    "Exemplar",
    "LogContext",
    "RecordIds",
    "Traced",
    "current",
    "exemplar",
    "exemplar_of_caller",
    "original_trace_id",
    "trace_id",
]

# -- the run, step and attempt that code belongs to --------------------------------------------------------------------


class _Location(NamedTuple):
    run_id: str | None = None
    workflow: str | None = None
    step: str | None = None
    attempt: int | None = None


_OUTSIDE: Final = _Location()
_location: Final = ContextVar("flowcore_otel.place", default=_OUTSIDE)


def current() -> dict[str, str | int]:
    """Return the ids of the run that calls this: `run_id`, `workflow`, and within a step `step` and `attempt`.

    Returns an empty dict outside a run, and if the engine lacks the hook `LogContext`. Thread-safe.
    """
    return {name: value for name, value in _location.get()._asdict().items() if value is not None}


class LogContext(logging.Filter):
    """Adds to every log record the ids of the run, step and attempt that wrote it.

    It is a filter and a hook: add it to the handlers whose records are to get the ids, and to the hooks of the engines
    whose runs write them. The filter and the hook may be different instances.

        log_context = LogContext()
        handler.addFilter(log_context)
        engine = Engine(hooks=[log_context])

    A record gets `flowcore_run_id`, `flowcore_workflow`, `flowcore_step`, `flowcore_attempt`, and the `trace_id` and
    `span_id` (in hex) of the current OpenTelemetry span. An attribute without a value is None, and one that `extra=`
    has set is not changed. Records of an attempt that completes late still get its ids. Every record passes the filter.
    Thread-safe. `current()` returns the ids of run, step and attempt for any other logging library.
    """

    wants: frozenset[type[Event]] = frozenset({RunStarted, AttemptStarted})

    def __call__(self, event: Any, /) -> None:
        # A run and each attempt have a contextvars context of their own, which ends with them. So nothing has to be
        # reset, and code that still runs in an abandoned attempt keeps its ids.
        if type(event) is AttemptStarted:
            _location.set(_Location(event.run_id, event.workflow, event.step, event.attempt))
        else:
            _location.set(_Location(event.run_id, event.workflow))

    def across_processes(self) -> Callable[[], AbstractContextManager[None]]:
        """Return a function that sets the ids in the process of a step with `executor=`, for a filter there."""
        return partial(_at_location, _location.get())

    def filter(self, record: logging.LogRecord) -> bool:
        trace_id, span_id = _ids_of_current_span()
        known = {**_as_fields(_location.get()), "trace_id": trace_id, "span_id": span_id}
        for name, value in known.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


@contextmanager
def _at_location(location: _Location) -> Generator[None]:
    token = _location.set(location)
    try:
        yield
    finally:
        _location.reset(token)


def _as_fields(location: _Location) -> dict[str, str | int | None]:
    return {f"flowcore_{name}": value for name, value in location._asdict().items()}


class RecordIds:
    """Adds the ids of run, step and attempt to every log record that a run writes, from `install()` to `uninstall()`.

    It wraps `logging.Logger.makeRecord`. It is for zero-code mode, where LogContext cannot be added to handlers. As with
    LogContext, an attribute that `extra=` has set is not changed.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._make: Any = None

    def install(self) -> None:
        before = self._before = logging.Logger.makeRecord

        # Not a record factory: `makeRecord` applies `extra=` after the factory, and refuses names that it has set.
        @functools.wraps(before)
        def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record: logging.LogRecord = before(*args, **kwargs)
            location = _location.get()
            if location is not _OUTSIDE:
                for name, value in _as_fields(location).items():
                    if value is not None:
                        record.__dict__.setdefault(name, value)
            return record

        self._make = make
        logging.Logger.makeRecord = make  # type: ignore[method-assign]

    def uninstall(self) -> None:
        """Restore the method that `install` replaced, unless another one has been set since."""
        if logging.Logger.makeRecord is self._make:
            logging.Logger.makeRecord = self._before  # type: ignore[method-assign]


def _api() -> Any:
    """Return `opentelemetry.trace`, or None if the program has not imported it and so has no spans."""
    return sys.modules.get("opentelemetry.trace")


def _ids_of_current_span() -> tuple[str | None, str | None]:
    api = _api()
    if api is None:
        return None, None
    span = api.get_current_span().get_span_context()
    return (f"{span.trace_id:032x}", f"{span.span_id:016x}") if span.is_valid else (None, None)


# -- exemplars: how a measurement finds its span, whichever hook gets an event first -----------------------------------

TRACE: Final = "flowcore_otel.trace"
"""key in a run's state: the run's spans (a Traced), which TracingHook puts there"""
CALLER: Final = "flowcore_otel.caller"
"""key in a run's state: the exemplar of the caller's span, or None; used without a TracingHook"""

Exemplar = dict[str, str]


class Traced(Protocol):
    """The spans of a run."""

    @property
    def sampled(self) -> bool:
        """Whether the trace of the run is sampled."""
        ...

    def exemplar(self, step: str | None, *, undo: bool = False, attempt: bool = False) -> Exemplar | None:
        """Return the exemplar of the run, of a step, of its undo, or of their latest attempt; None if not sampled."""
        ...


def exemplar(span: SpanContext) -> Exemplar | None:
    if not span.trace_flags.sampled or not span.is_valid:
        return None
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def exemplar_of_caller() -> Exemplar | None:
    """Return the exemplar of the current span, or None if it is not sampled."""
    api = _api()
    if api is None:
        return None
    span = api.get_current_span()
    return None if span is api.INVALID_SPAN else exemplar(span.get_span_context())


# -- from a Run to its trace -------------------------------------------------------------------------------------------

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id(run: Run) -> str | None:
    """Return the id of the trace of a run, as 32 hex digits; for a replay, that of the original run's trace.

    Returns None if no TracingHook observed the run. A trace that was not sampled has an id too, but no spans.
    """
    return _of(run.carrier)


def original_trace_id(run: Run) -> str | None:
    """Return the trace id of the original run if `run` is a replay; else, or if that had no trace, None."""
    return _of(run.carrier) if run.replayed else None


def _of(carrier: Mapping[str, str]) -> str | None:
    found = _TRACEPARENT.fullmatch(carrier.get("traceparent", ""))
    return found[1] if found is not None and found[1].strip("0") else None
