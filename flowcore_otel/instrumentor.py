"""`FlowcoreInstrumentor`: lets `opentelemetry-instrument` observe the workflows of an unmodified program."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from flowcore.events import Hook, add_process_hook, remove_process_hook

from .context import LogContext, RecordIds
from .metrics import MetricsHook
from .tracing import TracingHook

if TYPE_CHECKING:

    class BaseInstrumentor:
        """The methods that are used here, so that type checkers need no extra."""

        def instrument(self, **kwargs: Any) -> Any: ...
        def uninstrument(self, **kwargs: Any) -> Any: ...

else:
    try:
        from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
    except ModuleNotFoundError:
        raise ImportError(
            "FlowcoreInstrumentor needs opentelemetry-instrumentation: pip install 'flowcore[instrumentation]'"
        ) from None

__all__ = ["FlowcoreInstrumentor"]


class FlowcoreInstrumentor(BaseInstrumentor):
    """Gives every engine of the process a TracingHook, a MetricsHook and a LogContext, unless it has its own.

    Log records that are written during a run get the ids of run, step and attempt.

    `instrument(tracer_provider=, meter_provider=, logger_provider=)` uses the global providers unless others are given.
    Call it before the engines are made; a second call warns and does nothing. `uninstrument()` does not change engines
    that exist already. Needs the extra `instrumentation`.
    """

    _hooks: tuple[Hook, ...] = ()
    _records = RecordIds()

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()  # the instrumented package is flowcore itself, which is always installed

    def _instrument(self, **kwargs: Any) -> None:
        tracing = TracingHook(kwargs.get("tracer_provider"), logger_provider=kwargs.get("logger_provider"))
        self._hooks = (tracing, MetricsHook(kwargs.get("meter_provider")), LogContext())
        for hook in self._hooks:
            add_process_hook(hook)
        self._records.install()

    def _uninstrument(self, **kwargs: Any) -> None:
        for hook in self._hooks:
            remove_process_hook(hook)
        self._hooks = ()
        self._records.uninstall()
