"""Telemetry for flowcore: hooks that turn its events into OpenTelemetry spans and metrics, and Prometheus metrics.

`TracingHook` and `MetricsHook` need the extra `otel`, `PrometheusHook` needs `prometheus`. `LogContext` puts the ids of run,
step and attempt on log records, `current()` gives them to any other logging library; `trace_id` and `original_trace_id` lead
from a Run to its trace. No hook sets up a provider, an exporter or a logger: that is the application's. Dashboards and alert
rules are written by `python -m flowcore_otel.dashboards`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .context import LogContext, current, original_trace_id, trace_id
    from .metrics import MetricsHook
    from .prometheus import PrometheusHook
    from .tracing import TracingHook

__all__ = ["LogContext", "MetricsHook", "PrometheusHook", "TracingHook", "current", "original_trace_id", "trace_id"]

# public name -> (module, what it needs, the extra that brings it)
_OTEL = ("opentelemetry-api", "otel")
_HOMES = {
    "LogContext": ("context", "", ""),
    "MetricsHook": ("metrics", *_OTEL),
    "PrometheusHook": ("prometheus", "prometheus-client", "prometheus"),
    "TracingHook": ("tracing", *_OTEL),
    "current": ("context", "", ""),
    "original_trace_id": ("context", "", ""),
    "trace_id": ("context", "", ""),
}


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for, so that each works without the others' extras."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needed, extra = _HOMES[name]
    try:
        found = getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in {"opentelemetry", "prometheus_client"}:
            raise
        raise ImportError(f"{name} needs {needed}: pip install 'flowcore[{extra}]'") from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
