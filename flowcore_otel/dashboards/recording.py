"""Recording rules: the series that alerts use over long windows, and what they remember.

Their names are level:metric:operations. They have no label `instance`: they describe a workflow on all its machines.

Some of them remember: without new data they keep the value that they had before. So the last success of a weekly job is
known for three more weeks, even though its process is gone and Prometheus keeps samples for a fortnight only. The
result of such a rule depends neither on how often it is evaluated nor on pauses of Prometheus.
"""

from __future__ import annotations

from typing import Final

from flowcore_otel import names

from .queries import BAD, LEFT, UNDONE, Source

__all__ = [
    "COUNTED",
    "FAILING",
    "FAILING_AGAIN",
    "FAILING_SINCE",
    "FIRST_SUCCESS",
    "LAST_SUCCESS",
    "LONG",
    "OURS",
    "PAUSE",
    "RECOVERING",
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
_LOOK_BACK: Final = "[1h] offset 5m"
_AGO: Final = "8d"
"""how far back a rule looks for what it has recorded itself: Prometheus may pause for a week and nothing is forgotten"""
_FORGOTTEN: Final = 100 * 86400
"""the seconds after which the end of a run is forgotten: a monthly job has then missed three times"""

LAST_SUCCESS: Final = "job_workflow:flowcore_last_success:timestamp"
"""when a run last succeeded, even if its process has ended since"""
FIRST_SUCCESS: Final = "job_workflow:flowcore_first_success:timestamp"
"""when a run first succeeded, as far as that is remembered"""
LAST_FAILURE: Final = "job_workflow:flowcore_last_failure:timestamp"
"""when a run last ended without success, even if its process has ended since"""
FAILING: Final = "job_workflow:flowcore_failing:timestamp"
"""when the last run ended without success; no data if the last run succeeded"""
FAILING_SINCE: Final = "job_workflow:flowcore_failing_since:timestamp"
"""when the first run after the last success ended without success; no data if the last run succeeded"""
FAILING_AGAIN: Final = "job_workflow:flowcore_failing_again:timestamp"
"""the same for the second run after the last success; runs that end within the same minute are one"""
GAP: Final = "job_workflow:flowcore_success_gap:seconds"
"""the time between two successive successes, recorded at the later one"""
PAUSE: Final = "job_workflow:flowcore_success_pause:seconds"
"""the longest gap of the eight days before the last success"""
USUALLY_UNDONE: Final = "job_workflow:flowcore_runs_undone:ratio_rate1d"
USUAL_P95: Final = "job_workflow:flowcore_run_duration:p95_1d"
USUAL_P99: Final = "job_workflow:flowcore_run_duration:p99_7d"
"""the p99, or the mean if that is longer"""
COUNTED: Final = "job_workflow_status:flowcore_store_runs:last"
"""held, expired and overdue runs when the store was last counted, even if the processes that counted it are gone"""
RECOVERING: Final = "job:flowcore_recovery_rounds:changes1h"
"""the jobs that have recovered runs every five minutes or more often, even if they have stopped; a single round when an
engine starts does not count"""
OURS: Final = "job:flowcore_scraped:info"
"""the jobs whose processes have flowcore, even if all of them are down"""


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
        {"name": "flowcore-recording", "rules": [*often, *_ends(q), *_known(q)]},
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

    def last(record: str, outcome: str) -> Rule:
        # The end of a run whose clock was far ahead would hide all later ones.
        ended = f"{q.select(names.LAST_END, outcome=outcome)} < time() + 3600\nor max_over_time({record}[{_AGO}])"
        return {"record": record, "expr": f"max {by} ({ended})\n> time() - {_FORGOTTEN}"}

    def first(record: str, after: str) -> Rule:
        """Return the rule for when the first failure after the time `after` was. Once it is recorded, later failures do
        not change it."""
        new = f"({FAILING} > {after})\nunless max_over_time({FAILING}[{_AGO}] offset 1m) > {after}"
        return {"record": record, "expr": f"{new}\nor\nmax_over_time({record}[{_AGO}]) > {after}"}

    return [
        last(LAST_SUCCESS, "success"),
        {
            "record": FIRST_SUCCESS,
            "expr": f"(min_over_time({FIRST_SUCCESS}[{_AGO}]) or {LAST_SUCCESS})\nand {LAST_SUCCESS}",
        },
        last(LAST_FAILURE, "!=success"),
        {"record": FAILING, "expr": f"{LAST_FAILURE} > ({LAST_SUCCESS} or {LAST_FAILURE} * 0)"},
        first(FAILING_SINCE, f"({LAST_SUCCESS} or {FAILING} * 0)"),
        first(FAILING_AGAIN, FAILING_SINCE),
        {"record": GAP, "expr": f"{LAST_SUCCESS} - last_over_time({LAST_SUCCESS}{_LOOK_BACK}) > 0"},
        {
            "record": PAUSE,
            "expr": f"(max_over_time({GAP}[8d]) and {GAP})\nor\n(last_over_time({PAUSE}[{_AGO}]) and {LAST_SUCCESS})",
        },
    ]


def _known(q: Source) -> list[Rule]:
    """Return the rules that remember what there was, for the alerts that report its absence."""
    waiting = f"max {q.by('job', 'workflow', 'status')} ({q.select(names.STORE_RUNS, status=LEFT)})"
    rounds = q.select(names.LAST_RECOVERY)
    regular = f"max by (job) (changes({rounds}[1h])) >= 12"
    before = f"(last_over_time({RECOVERING}[{_AGO}]) and on (job) count by (job) ({rounds}))"
    found: list[Rule] = [
        {"record": COUNTED, "expr": f"{waiting}\nor\nlast_over_time({COUNTED}[{_AGO}])"},
        {"record": RECOVERING, "expr": f"{regular}\nor\n{before}"},
    ]
    if q.scraped:
        down = "count by (job) (up == 0)"
        reporting = f"group by (job) ({q.select(names.BUILD_INFO)})"
        found.append({"record": OURS, "expr": f"{reporting}\nor\n(last_over_time({OURS}[{_AGO}]) and on (job) {down})"})
    return found


def _usual(q: Source) -> list[Rule]:
    by, every = q.by("job", "workflow"), q.select(names.RUNS)
    undone = q.select(names.RUNS, outcome=UNDONE)
    p99 = q.quantile(0.99, names.RUN_DURATION, by=("job", "workflow"), over="7d")
    total, number = (
        q.increase(names.RUN_DURATION, part, window="7d", by=("job", "workflow")) for part in ("sum", "count")
    )
    # No quantile is above the highest bucket, an hour. The mean is, if the runs of a workflow take longer.
    usual_p99 = f"{total} / {number} > {p99}\nor\n{p99}"
    return [
        {"record": USUALLY_UNDONE, "expr": f"sum {by} (rate({undone}[1d]))\n/\n(sum {by} (rate({every}[1d])) > 0)"},
        {"record": USUAL_P95, "expr": q.quantile(0.95, names.RUN_DURATION, by=("job", "workflow"), over="1d")},
        {"record": USUAL_P99, "expr": usual_p99},
    ]
