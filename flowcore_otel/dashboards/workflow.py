"""The dashboard of one workflow: how its runs end, which step takes the time, which one fails, and what is undone."""

from __future__ import annotations

import dataclasses

from flowcore_otel import names

from . import colours, common
from .boards import Section, dashboard, to_traces
from .fields import Json, Panel, steps, target
from .panels import bar_gauge, bars, heatmap, lines, stat, table
from .queries import Source
from .recording import PAUSE

__all__ = ["workflow"]


def workflow(q: Source) -> Json:
    q = dataclasses.replace(q, one_workflow=True)
    return dashboard(
        q,
        "flowcore-workflow",
        "flowcore: one workflow",
        "A workflow's runs and steps: which one is slow, which one fails, and what is undone.",
        [_working(q), _steps(q), _retrying(q), _undoing(q), _waiting(q), _firing(q)],
        common.variables(q),
        common.versions(q),
    )


def _working(q: Source) -> Section:
    run = names.RUN_DURATION
    return Section(
        "Is it working?",
        [
            *common.numbers(q),
            common.failures(q, (0, 4, 12, 6)),
            lines(
                (12, 0, 6, 10),
                "Runs per minute",
                "Runs that ended, against the day before.",
                target(f"60 * {q.rate(names.RUNS)}", "now"),
                target(f"60 * {q.rate(names.RUNS, offset=' offset 1d')}", "the day before"),
                unit="short",
                coloured={"now": colours.WORKING, "the day before": colours.NEUTRAL},
                empty="No process has reported a run.",
            ),
            stat(
                (18, 0, 3, 5),
                "Runs",
                "Runs that ended in the time shown.",
                f"round({q.increase(names.RUNS)})",
                unit="short",
                thresholds=steps(colours.WORKING),
            ),
            stat(
                (21, 0, 3, 5),
                "In flight",
                "Runs that are in flight now.",
                f"sum({q.select(names.RUNS_ACTIVE)})",
                unit="short",
                thresholds=steps(colours.WORKING),
            ),
            stat(
                (18, 5, 3, 5),
                "p95 of runs",
                "One run in twenty takes longer than this.",
                q.quantile(0.95, run, over="$__range"),
                unit="s",
                thresholds=steps(colours.WORKING),
                empty="No run ended.",
            ),
            _last_success(q),
        ],
    )


def _last_success(q: Source) -> Panel:
    """The seconds since the last success: one query has data while that is as usual, and the other when it is not."""
    since = common.since_success(q, q.age(names.LAST_SUCCESS))
    overdue = f"{since} > clamp_min(3 * max({q.recorded(PAUSE)}), 3600)"
    return stat(
        (21, 5, 3, 5),
        "Last success",
        "How long ago a run last succeeded. Red: more than an hour, and more than three times the workflow's longest usual pause.",
        f"{since} unless {overdue}",
        unit="s",
        thresholds=steps(colours.SUCCESS),
        coloured={"overdue": (overdue, colours.FAILED)},
        empty="No success is known.",
    )


def _steps(q: Source) -> Section:
    run, step, wait = names.RUN_DURATION, names.STEP_DURATION, names.WAIT_DURATION
    by = ("step",)
    ended = f"({q.increase(step, 'count', by=by)} > 0)"
    waited = q.increase(wait, "sum", by=by)
    backed_off = q.increase(names.BACKOFF_SECONDS, by=by)
    whole = q.increase(step, "sum", by=by)
    share = f"{whole} / on () group_left () ({q.increase(run, 'sum')} > 0)"
    slow = f'name =~ "{names.STEP} .*" && span.{names.WORKFLOW_NAME} =~ "${{workflow:regex}}" && duration > 1s'
    return Section(
        "Which step takes the time?",
        [
            bars(
                (0, 0, 12, 7),
                "Where a step's time goes, on average",
                "For each step: the seconds it was ready and waited for a worker, worked, and backed off between "
                "attempts. Long waits: add workers. Long backoffs: see which attempts fail.",
                q.label("step"),
                {
                    "working": (f"clamp_min({whole} - {backed_off}, 0) / {ended}", colours.WORKING),
                    "waiting for a worker": (f"{waited} / {ended}", colours.WAITING),
                    "backing off": (f"{backed_off} / {ended}", colours.NEUTRAL),
                },
                unit="s",
                empty="No step ended in this time.",
            ),
            bar_gauge(
                (12, 0, 12, 7),
                "Critical steps: share of the runs' time",
                "The seconds spent in each step for each second of a run, backoffs included. A step near 100 % is on "
                "the critical path of nearly every run; shares of parallel steps add up to more. The exact path of one "
                f"run is on its span, as {names.RUN_CRITICAL_PATH}.",
                target(f"sort_desc({share})", q.legend("{{step}}"), kind="instant"),
                unit="percentunit",
                colour=colours.WORKING,
                max=1,
                empty="No run ended in this time.",
                links=to_traces(q, "Traces of runs with slow steps", slow),
            ),
            lines(
                (0, 7, 12, 8),
                "p95 of steps",
                "One in twenty takes longer, attempts and backoffs included. The six steps with the most attempts. The dots are single steps: each leads to its "
                "trace.",
                target(
                    f"{q.quantile(0.95, step, by=by)} and {q.most(names.STEP_ATTEMPTS, by=by)}",
                    q.legend("{{step}}"),
                    exemplar=q.traces != "none",
                ),
                unit="s",
                log=True,
                empty="No step ended in this time.",
                links=to_traces(q, "Traces of runs with slow steps", slow),
            ),
            heatmap(
                (12, 7, 12, 8),
                "How long runs take",
                "Bright: many runs took that long. Two bands are two kinds of runs.",
                q.increase(run, "bucket", window="$__rate_interval", by=("le",)),
                exemplar=q.traces != "none",
                empty="No run ended in this time.",
            ),
            lines(
                (0, 15, 24, 7),
                "p50, p95 and p99 of runs",
                "Half of the runs are quicker than p50, one in twenty is slower than p95, one in a hundred than p99.",
                *(
                    target(q.quantile(of, run), f"p{of * 100:.0f}", exemplar=q.traces != "none")
                    for of in (0.95, 0.5, 0.99)
                ),
                target(q.quantile(0.95, run, offset=" offset 1d"), "p95 the day before"),
                unit="s",
                quantiles=True,
                log=True,
                coloured={"p95 the day before": colours.NEUTRAL},
                empty="No run ended in this time.",
                links=common.failed_traces(q),
            ),
        ],
    )


def _retrying(q: Source) -> Section:
    by = ("step",)
    attempts = q.increase(names.STEP_ATTEMPTS, by=by)
    failed = q.increase(names.STEP_ATTEMPTS, by=by, outcome="!=success")
    late = names.LATE_COMPLETIONS
    return Section(
        "Is it retrying?",
        [
            common.retries(q, (0, 0, 9, 8), by),
            bar_gauge(
                (9, 0, 6, 8),
                "Attempts that failed",
                "Of all attempts of a step. If half of them fail for ten minutes and are retried, an alert fires.",
                target(f"sort_desc({failed} / ({attempts} > 0))", q.legend("{{step}}"), kind="instant"),
                unit="percentunit",
                thresholds=steps(colours.SUCCESS, (0.2, colours.WAITING), (0.5, colours.FAILED)),
                max=1,
                empty="No attempt was made in this time.",
            ),
            table(
                (15, 0, 9, 8),
                "Errors of attempts",
                "What was raised, and where, in the time shown.",
                {q.label("step"): "Step", q.label("error_type"): "Error"},
                {"Count": (f"topk(10, {q.occurred(names.STEP_ERRORS, by=('step', 'error_type'))})", "short")},
                sort="Count",
                empty="No attempt failed.",
            ),
            lines(
                (0, 8, 12, 6),
                "Late completions",
                "Attempts that ended after they had timed out. A step with further attempts waits for them and takes their "
                "result; any other has failed by then: is the timeout too short?",
                target(
                    f"{q.increase(late, window='$__rate_interval', by=by)} and {q.most(late, by=by)}",
                    q.legend("{{step}}"),
                    exemplar=q.traces != "none",
                ),
                unit="short",
                decimals=0,
                events=True,
                empty="No process has reported a step.",
            ),
            lines(
                (12, 8, 12, 6),
                "p95 of single attempts",
                "Of steps that may have several attempts: the six with the most.",
                target(
                    f"{q.quantile(0.95, names.ATTEMPT_DURATION, by=by)} and {q.most(names.STEP_ATTEMPTS, by=by)}",
                    q.legend("{{step}}"),
                    exemplar=q.traces != "none",
                ),
                unit="s",
                log=True,
                empty="No step of this workflow may have several attempts.",
            ),
        ],
    )


def _undoing(q: Source) -> Section:
    by = ("step", "outcome")
    return Section(
        "Is it undoing?",
        [
            common.undos(q, (0, 0, 9, 8)),
            table(
                (9, 0, 7, 8),
                "Undos of steps",
                "In the time shown.",
                {q.label("step"): "Step", q.label("outcome"): "Outcome"},
                {"Undos": (f"topk(10, round({q.increase(names.COMPENSATIONS, by=by)}))", "short")},
                sort="Undos",
                coloured={"Outcome": colours.OF_UNDOS},
                empty="No process has reported a step.",
            ),
            lines(
                (16, 0, 8, 8),
                "p95 of undos",
                "How long undoing a step takes, attempts and backoffs included. The caller waits for it.",
                target(f"topk(6, {q.quantile(0.95, names.COMPENSATION_DURATION, by=('step',))})", q.legend("{{step}}")),
                unit="s",
                empty="Nothing had to be undone.",
            ),
        ],
    )


def _waiting(q: Source) -> Section:
    by = ("step",)
    return Section(
        "What does it wait for?",
        [
            lines(
                (0, 0, 12, 7),
                "Runs that wait, by step",
                "Runs in the store that wait for a value, a time, or a step's next attempt. They need no process.",
                target(f"topk(6, max {q.by('step')} ({q.select(names.STORE_WAITING)}))", q.legend("{{step}}")),
                unit="short",
                decimals=0,
                empty="No process has counted a run that waits.",
            ),
            lines(
                (12, 0, 12, 7),
                "p95 of waits",
                "One wait in twenty took longer than this, from its beginning, whichever processes had the run.",
                target(f"topk(6, {q.quantile(0.95, names.WAITED, by=by)})", q.legend("{{step}}")),
                unit="s",
                empty="No wait has ended.",
            ),
        ],
    )


def _firing(q: Source) -> Section:
    by = ("schedule",)
    empty = "No process has a schedule of this workflow."
    return Section(
        "Does its schedule fire?",
        [
            stat(
                (0, 0, 4, 7),
                "Until the next fire",
                "Of its schedules' next fires, the earliest. Negative while one is late.",
                f"min(max {q.by('schedule')} ({q.select(names.SCHEDULE_NEXT)})) - time()",
                unit="s",
                thresholds=steps(colours.FAILED, (-300, colours.WAITING), (0, colours.SUCCESS)),
                empty=empty,
            ),
            stat(
                (4, 0, 4, 7),
                "Last scheduled success",
                "Of its schedules, the one whose last success is the longest ago.",
                f"time() - min(max {q.by('schedule')} ({q.select(names.SCHEDULE_LAST_SUCCESS)}))",
                unit="s",
                thresholds=steps(colours.WORKING),
                empty="No success of a schedule is known.",
            ),
            lines(
                (8, 0, 8, 7),
                "How late fires begin",
                "After the planned time and its jitter, by schedule: one fire in twenty begins later than this.",
                target(f"topk(6, {q.quantile(0.95, names.SCHEDULE_LATENESS, by=by)})", q.legend("{{schedule}}")),
                unit="s",
                empty=empty,
            ),
            lines(
                (16, 0, 8, 7),
                "Fires that were not begun",
                "down: no engine began them in time; overlap: the previous run was still in progress; error: they "
                "could not be begun.",
                target(
                    f"topk(6, {q.increase(names.SCHEDULE_MISSED, window='$__rate_interval', by=('schedule', 'reason'))})",
                    q.legend("{{schedule}}: {{reason}}"),
                ),
                unit="short",
                decimals=0,
                events=True,
                empty=empty,
            ),
        ],
    )
