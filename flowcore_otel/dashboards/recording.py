"""Recording rules: the series that alerts use over long windows.

Their names are level:metric:operations. They have no label `instance`: they describe a workflow on all its machines.
"""

from __future__ import annotations

from typing import Final

from flowcore_otel import names

from .queries import BAD, UNDONE, Source

__all__ = [
    "FAILING",
    "GAP",
    "LAST_SUCCESS",
    "LONG",
    "USUALLY_UNDONE",
    "USUAL_P95",
    "USUAL_P99",
    "WINDOWS",
    "Rule",
    "ratio",
    "recording",
    "runs",
]

Rule = dict[str, object]

WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
LONG: Final = ("1h", "6h", "1d", "3d")
"""windows in which an alert needs a minimum number of runs"""

_OFTEN: Final = ("5m", "30m", "1h")
_MEMORY: Final = "8d"
"""how long the last run of a short-lived job is remembered: a week and a day, for weekly jobs"""
_LOOK_BACK: Final = "5m"

LAST_SUCCESS: Final = "job_workflow:flowcore_last_success:timestamp"
"""when a run last succeeded, even if its process has ended since"""
FAILING: Final = "job_workflow:flowcore_failing:timestamp"
"""when the last run ended without success; no data if the last run succeeded"""
GAP: Final = "job_workflow:flowcore_success_gap:seconds"
"""the time between two successive successes, recorded at the later one"""
USUALLY_UNDONE: Final = "job_workflow:flowcore_runs_undone:ratio_rate1d"
USUAL_P95: Final = "job_workflow:flowcore_run_duration:p95_1d"
USUAL_P99: Final = "job_workflow:flowcore_run_duration:p99_7d"


def ratio(window: str) -> str:
    """Return the name of the series with the share of bad runs in `window`. It has no data if no run ended."""
    return f"job_workflow:flowcore_run_errors:ratio_rate{window}"


def runs(window: str) -> str:
    return f"job_workflow:flowcore_runs:increase{window}"


def recording(q: Source) -> list[dict[str, object]]:
    """Return the groups of rules. Rules over long windows are evaluated less often."""
    often = [rule for window in WINDOWS if window in _OFTEN for rule in _rules(q, window)]
    seldom = [rule for window in WINDOWS if window not in _OFTEN for rule in _rules(q, window)]
    return [
        {"name": "flowcore-recording", "rules": [*often, *_ends(q)]},
        {"name": "flowcore-recording-of-long-windows", "interval": "2m", "rules": [*seldom, *_usual(q)]},
    ]


def _rules(q: Source, window: str) -> list[Rule]:
    by = q.by("job", "workflow")
    bad, every = (q.select(names.RUNS, **which) for which in ({"outcome": BAD}, {}))
    share = f"sum {by} (rate({bad}[{window}]))\n/\n(sum {by} (rate({every}[{window}])) > 0)"
    found: list[Rule] = [{"record": ratio(window), "expr": share}]
    if window in LONG:
        found.append({"record": runs(window), "expr": f"sum {by} (increase({every}[{window}]))"})
    return found


def _ends(q: Source) -> list[Rule]:
    by = q.by("job", "workflow")

    def last(outcome: str, offset: str = "") -> str:
        return f"max {by} (last_over_time({q.select(names.LAST_END, outcome=outcome)}[{_MEMORY}]{offset}))"

    succeeded, failed = last("success"), last("!=success")
    return [
        {"record": LAST_SUCCESS, "expr": succeeded},
        {"record": FAILING, "expr": f"{failed}\n> ({succeeded} or {failed} * 0)"},
        {"record": GAP, "expr": f"{succeeded}\n- {last('success', f' offset {_LOOK_BACK}')}\n> 0"},
    ]


def _usual(q: Source) -> list[Rule]:
    by, every = q.by("job", "workflow"), q.select(names.RUNS)
    undone = q.select(names.RUNS, outcome=UNDONE)
    return [
        {"record": USUALLY_UNDONE, "expr": f"sum {by} (rate({undone}[1d]))\n/\n(sum {by} (rate({every}[1d])) > 0)"},
        {"record": USUAL_P95, "expr": q.quantile(0.95, names.RUN_DURATION, by=("job", "workflow"), over="1d")},
        {"record": USUAL_P99, "expr": q.quantile(0.99, names.RUN_DURATION, by=("job", "workflow"), over="7d")},
    ]
