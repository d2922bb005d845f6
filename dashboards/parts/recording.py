"""Recording rules: what the burn-rate alerts look at. Named level:metric:operations, without instance: they are about a
workflow, wherever it runs."""

from __future__ import annotations

from typing import Final

from flowcore_otel import names

from .queries import BAD, Source

__all__ = ["LONG", "WINDOWS", "Rule", "ratio", "recording", "runs"]

Rule = dict[str, object]

WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
LONG: Final = ("1h", "6h", "1d", "3d")
"""windows that an alert only believes where there were enough runs in them"""

_OFTEN: Final = ("5m", "30m", "1h")


def ratio(window: str) -> str:
    """The share of runs that were bad; no data where there were no runs."""
    return f"job_workflow:flowcore_run_errors:ratio_rate{window}"


def runs(window: str) -> str:
    return f"job_workflow:flowcore_runs:increase{window}"


def recording(q: Source) -> list[dict[str, object]]:
    """Groups of rules; what changes slowly is not worked out as often."""
    often = [rule for window in WINDOWS if window in _OFTEN for rule in _rules(q, window)]
    seldom = [rule for window in WINDOWS if window not in _OFTEN for rule in _rules(q, window)]
    return [
        {"name": "flowcore-recording", "rules": often},
        {"name": "flowcore-recording-of-long-windows", "interval": "2m", "rules": seldom},
    ]


def _rules(q: Source, window: str) -> list[Rule]:
    by = q.by("job", "workflow")
    bad, every = (q.select(names.RUN_DURATION, "count", **which) for which in ({"outcome": BAD}, {}))
    share = f"sum {by} (rate({bad}[{window}]))\n/\n(sum {by} (rate({every}[{window}])) > 0)"
    found: list[Rule] = [{"record": ratio(window), "expr": share}]
    if window in LONG:
        found.append({"record": runs(window), "expr": f"sum {by} (increase({every}[{window}]))"})
    return found
