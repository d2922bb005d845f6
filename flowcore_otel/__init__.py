"""Telemetry for flowcore: hooks that turn its events into OpenTelemetry spans and metrics, and Prometheus metrics.

`TracingHook` and `MetricsHook` need the extra `otel`, `PrometheusHook` needs `prometheus`. `LogContext` adds the ids of
run, step and attempt to log records; `current()` returns these ids for any other logging library. `trace_id` and
`original_trace_id` return the id of a Run's trace. No hook sets up a provider, an exporter or a logger: the application
does that. `python -m flowcore_otel.dashboards` writes dashboards and alert rules.
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

# Public name -> (module, distribution that it needs, extra that installs the distribution).
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
    """Import a public name at its first use, so that each name works without the extras of the others."""
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
