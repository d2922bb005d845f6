"""One workflow: how its runs end, which step takes the time, which one fails, and what is undone."""

from __future__ import annotations

from flowcore_otel import names

from . import colours, common
from .boards import Section, dashboard, to_traces
from .fields import Json, steps, target
from .panels import bar_gauge, bars, heatmap, lines, stat, table
from .queries import Source

__all__ = ["workflow"]


def workflow(q: Source) -> Json:
    return dashboard(
        "flowcore-workflow",
        "flowcore: one workflow",
        "A workflow's runs and steps: which one is slow, which one fails, and what is undone.",
        [_working(q), _steps(q), _retrying(q), _undoing(q)],
        common.variables(q, one_workflow=True),
        common.versions(q),
    )


def _working(q: Source) -> Section:
    run = names.RUN_DURATION
    return Section(
        "Is it working?",
        [
            stat(
                (0, 0, 7, 9),
                "Runs that went well",
                f"Of the runs that ended in the time shown, the share that succeeded or was cleanly undone. The "
                f"objective is {common.OBJECTIVE:.1%}.",
                common.ratio_of_good(q),
                unit="percentunit",
                thresholds=steps(colours.FAILED, (0.99, colours.WAITING), (common.OBJECTIVE, colours.SUCCESS)),
                filled=True,
                decimals=2,
                empty="No run ended in this time.",
                links=[common.failed_traces()],
            ),
            common.runs_by_outcome(q, (7, 0, 11, 9)),
            stat(
                (18, 0, 3, 3),
                "Runs",
                "Runs that ended in the time shown.",
                f"round({q.increase(run, 'count')})",
                unit="short",
                thresholds=steps(colours.WORKING),
            ),
            stat(
                (21, 0, 3, 3),
                "In flight",
                "Runs that are going on now.",
                f"sum({q.select(names.RUNS_ACTIVE)})",
                unit="short",
                thresholds=steps(colours.WORKING),
            ),
            stat(
                (18, 3, 6, 3),
                "p95 of runs",
                "One run in twenty takes longer than this.",
                q.quantile(0.95, run, over="range"),
                unit="s",
                thresholds=steps(colours.WORKING),
                empty="No run ended.",
            ),
            stat(
                (18, 6, 6, 3),
                "Since the last success",
                "How long ago a run succeeded for the last time.",
                f"time() - max({q.select(names.LAST_SUCCESS)})",
                unit="s",
                thresholds=steps(colours.SUCCESS, (900, colours.WAITING), (3600, colours.FAILED)),
                empty="None has succeeded yet.",
            ),
        ],
    )


def _steps(q: Source) -> Section:
    run, step, attempt, wait = names.RUN_DURATION, names.STEP_DURATION, names.ATTEMPT_DURATION, names.WAIT_DURATION
    by = ("step",)
    ended = f"({q.increase(step, 'count', by=by)} > 0)"
    waited = q.increase(wait, "sum", by=by)
    worked = q.increase(attempt, "sum", by=by)
    whole = q.increase(step, "sum", by=by)
    share = f"{whole} / on () group_left () ({q.increase(run, 'sum')} > 0)"
    slow = f'{{ name =~ "{names.STEP} .*" && span.{names.WORKFLOW_NAME} =~ "${{workflow:regex}}" && duration > 1s }}'
    return Section(
        "Which step takes the time?",
        [
            bars(
                (0, 0, 12, 7),
                "Where a step's time goes, on average",
                "For each step: the seconds it was ready and waited for a worker, worked, and backed off between attempts. "
                "Long waits want more workers; long backoffs want a look at what fails.",
                q.label("step"),
                {
                    "working": (f"{worked} / {ended}", colours.WORKING),
                    "waiting for a worker": (f"{waited} / {ended}", colours.WAITING),
                    "backing off": (f"clamp_min({whole} - {worked}, 0) / {ended}", colours.NEUTRAL),
                },
                unit="s",
                empty="No step ended in this time.",
            ),
            bar_gauge(
                (12, 0, 12, 7),
                "Critical steps: share of the runs' time",
                "The seconds spent in each step for each second of a run, backoffs included. A step near 100 % is on the "
                "critical path of nearly every run; shares of parallel steps add up to more. The exact path of one run "
                f"stands on its span, as {names.RUN_CRITICAL_PATH}.",
                target(f"sort_desc({share})", q.legend("{{step}}"), kind="instant"),
                unit="percentunit",
                colour=colours.WORKING,
                max=1,
                empty="No run ended in this time.",
                links=[to_traces("Traces of runs with slow steps", slow)],
            ),
            lines(
                (0, 7, 12, 8),
                "p95 of steps",
                "One in twenty takes longer, attempts and backoffs included. The dots are single steps: each leads to its "
                "trace.",
                target(q.quantile(0.95, step, by=by), q.legend("{{step}}"), exemplar=True),
                unit="s",
                log=True,
                empty="No step ended in this time.",
                links=[to_traces("Traces of runs with slow steps", slow)],
            ),
            heatmap(
                (12, 7, 12, 8),
                "How long runs take",
                "Bright: many runs took that long. Two bands are two kinds of runs.",
                q.increase(run, "bucket", window="$__rate_interval", by=("le",)),
                empty="No run ended in this time.",
            ),
        ],
    )


def _retrying(q: Source) -> Section:
    by = ("step",)
    attempts = q.increase(names.ATTEMPT_DURATION, "count", by=by)
    retried = q.increase(names.STEP_RETRIES, by=by)
    return Section(
        "Is it retrying?",
        [
            lines(
                (0, 0, 9, 8),
                "Retries per second",
                "Failed attempts that were followed by another.",
                target(f"{q.rate(names.STEP_RETRIES, by=by)} > 0", q.legend("{{step}}"), exemplar=True),
                unit="ops",
                empty="No retries: every attempt was the last one needed.",
            ),
            bar_gauge(
                (9, 0, 6, 8),
                "Attempts that were retried",
                "Of all attempts of a step, the share that failed and was followed by another. Half of them for ten "
                "minutes is an alert.",
                target(f"sort_desc({retried} / ({attempts} > 0))", q.legend("{{step}}"), kind="instant"),
                unit="percentunit",
                thresholds=steps(colours.SUCCESS, (0.2, colours.WAITING), (0.5, colours.FAILED)),
                max=1,
                empty="No attempt was made in this time.",
            ),
            table(
                (15, 0, 9, 8),
                "Errors of attempts",
                "What was raised, and where, in the time shown. The first of a kind since the process started is not among "
                "them: Prometheus does not see a series come into being.",
                {q.label("step"): "Step", q.label("error_type"): "Error"},
                {"Count": (f"round({q.increase(names.STEP_ERRORS, by=('step', 'error_type'))}) > 0", "none")},
                sort="Count",
                empty="No attempt failed.",
            ),
            lines(
                (0, 8, 24, 4),
                "Late landings",
                "Attempts that came back after they had been given up. Each one did something that nobody waited for: is its "
                "timeout too short?",
                target(f"{q.rate(names.LATE_COMPLETIONS, by=by)} > 0", q.legend("{{step}}"), exemplar=True),
                unit="ops",
                empty="Nothing landed late.",
            ),
        ],
    )


def _undoing(q: Source) -> Section:
    by = ("step", "outcome")
    return Section(
        "Is it undoing?",
        [
            lines(
                (0, 0, 9, 8),
                "Undos per second",
                "What is not purple could not be undone: its run is held for a person.",
                target(f"{q.rate(names.COMPENSATIONS, by=('outcome',))} > 0", q.legend("{{outcome}}"), exemplar=True),
                unit="ops",
                coloured=colours.OF_UNDOS,
                stacked=True,
                empty="Nothing had to be undone.",
                links=[common.failed_traces()],
            ),
            table(
                (9, 0, 7, 8),
                "Undos of steps",
                "In the time shown.",
                {q.label("step"): "Step", q.label("outcome"): "Outcome"},
                {"Undos": (f"round({q.increase(names.COMPENSATIONS, by=by)}) > 0", "none")},
                sort="Undos",
                coloured={"Outcome": colours.OF_UNDOS},
                empty="Nothing had to be undone.",
            ),
            lines(
                (16, 0, 8, 8),
                "p95 of undos",
                "How long undoing a step takes, attempts and backoffs included. The caller waits for it.",
                target(q.quantile(0.95, names.COMPENSATION_DURATION, by=("step",)), q.legend("{{step}}")),
                unit="s",
                empty="Nothing had to be undone.",
            ),
        ],
    )
