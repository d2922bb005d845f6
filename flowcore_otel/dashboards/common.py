"""What the dashboards share: variables, annotations, and panels that more than one of them has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flowcore_otel import names

from . import colours
from .boards import to_traces, to_workflow
from .fields import Json, Panel, steps, target
from .panels import lines, stat
from .queries import BAD, SERVED, UNDONE, Source
from .recording import LAST_SUCCESS

__all__ = [
    "OBJECTIVE",
    "failed_traces",
    "failures",
    "leases_lost",
    "numbers",
    "oldest_run",
    "retries",
    "share",
    "since_success",
    "takeovers",
    "undos",
    "variables",
    "versions",
    "workers",
]

OBJECTIVE: Final = 0.995
"""the share of runs that should not be bad; the rest, up to 1, is the error budget"""

Place = tuple[int, int, int, int]


def variables(q: Source) -> dict[str, tuple[str, str, bool]]:
    build, info = names.BUILD_INFO.prometheus, names.WORKFLOW_INFO.prometheus
    workflow = f'label_values({info}{{job=~"$job", instance=~"$instance"}}, {q.label("workflow")})'
    return {
        "job": ("Job", f"label_values({build}, job)", True),
        "instance": ("Instance", f'label_values({build}{{job=~"$job"}}, instance)', True),
        "workflow": ("Workflow", workflow, not q.one_workflow),
    }


def versions(q: Source) -> dict[str, tuple[str, str, str]]:
    """Return the annotation that marks where a new version of the service appears."""
    version = f"count {q.by('job', 'version')} ({q.select(names.APP_INFO)}"
    new = f"{version}) unless {version} offset 2m)"
    return {"New version": (new, q.legend("{{job}} {{version}}"), colours.REPLAYED)}


def failed_traces(q: Source) -> list[Json]:
    bad = f'span.{names.WORKFLOW_NAME} =~ "${{workflow:regex}}" && span.{names.RUN_OUTCOME} =~ "{BAD}|{UNDONE}"'
    return to_traces(q, "Traces of runs that failed", bad, {"error": "true"})


def share(q: Source, outcome: str, by: tuple[str, ...] = ()) -> str:
    """Return a query for the share of runs with `outcome` in the time shown. It has no data if no run ended."""
    return f"{q.increase(names.RUNS, by=by, outcome=outcome)} / ({q.increase(names.RUNS, by=by)} > 0)"


def since_success(q: Source, reported: str, by: tuple[str, ...] = ()) -> str:
    """Return a query for the seconds since the last success. `reported`: a query for what processes report of it; the
    recording rules remember it when the process is gone."""
    since = f"({reported} or time() - {q.recorded(LAST_SUCCESS)} >= 0)"
    return f"min {q.by(*by)} {since}" if by else f"min{since}"


def numbers(q: Source, width: int = 4) -> list[Panel]:
    """Return three panels: the shares of runs that succeeded, that were cleanly undone, and that failed.

    Incomplete runs are in none of the three: they lower the first, but use up no error budget.
    """
    budget = 1 - OBJECTIVE
    about = (
        (
            "Served",
            SERVED,
            "Runs that succeeded. Incomplete runs, which continue later, are in none of the three numbers.",
            steps(colours.FAILED, (0.9, colours.WAITING), (0.98, colours.SUCCESS)),
        ),
        (
            "Undone",
            UNDONE,
            "Runs that failed and were cleanly undone: no effect remains, but nothing was delivered.",
            steps(colours.NEUTRAL, (0.05, colours.UNDONE)),
        ),
        (
            "Failed",
            BAD,
            f"Runs that failed, could not be undone, were parked or lost: the error budget is {budget:.1%}.",
            steps(colours.SUCCESS, (budget, colours.FAILED)),
        ),
    )
    return [
        stat(
            (width * i, 0, width, 4),
            title,
            description,
            share(q, outcome),
            unit="percentunit",
            thresholds=thresholds,
            decimals=2,
            empty="No run ended.",
            links=failed_traces(q),
        )
        for i, (title, outcome, description, thresholds) in enumerate(about)
    ]


def failures(q: Source, at: Place) -> Panel:
    return lines(
        at,
        "Runs that failed or were undone",
        "By outcome. Purple runs were cleanly undone; red, pink, yellow and grey ones use up the error budget.",
        target(
            q.increase(names.RUNS, window="$__rate_interval", by=("outcome",), outcome=f"{BAD}|{UNDONE}|incomplete"),
            q.legend("{{outcome}}"),
            exemplar=q.traces != "none",
        ),
        unit="short",
        decimals=0,
        coloured=colours.OF_RUNS,
        events=True,
        empty="No process has reported a run.",
        links=failed_traces(q),
    )


def retries(q: Source, at: Place, by: tuple[str, ...]) -> Panel:
    return lines(
        at,
        "Retries",
        "Attempts that failed and were followed by another, by step.",
        target(
            f"{q.increase(names.STEP_RETRIES, window='$__rate_interval', by=by)} and {q.most(names.STEP_RETRIES, by=by)}",
            q.legend(" · ".join(f"{{{{{label}}}}}" for label in by)),
            exemplar=q.traces != "none",
        ),
        unit="short",
        decimals=0,
        events=True,
        empty="No process has reported a step.",
        links=[to_workflow(q)] if "workflow" in by else [],
    )


def undos(q: Source, at: Place) -> Panel:
    return lines(
        at,
        "Compensations",
        "Undos of steps. Purple ones succeeded; any other failed, and its run is held for a person.",
        target(
            q.increase(names.COMPENSATIONS, window="$__rate_interval", by=("outcome",)),
            q.legend("{{outcome}}"),
            exemplar=q.traces != "none",
        ),
        unit="short",
        decimals=0,
        coloured=colours.OF_UNDOS,
        events=True,
        empty="No process has reported a step.",
        links=failed_traces(q),
    )


def takeovers(q: Source, at: Place) -> Panel:
    return lines(
        at,
        "Takeovers",
        "Runs that were taken over because their process had died or hung: resumed, undone, or held for a person.",
        target(
            q.increase(names.RUN_RECOVERIES, window="$__rate_interval", by=("decision",)),
            q.legend("{{decision}}"),
            exemplar=q.traces != "none",
        ),
        unit="short",
        decimals=0,
        coloured=colours.OF_DECISIONS,
        events=True,
        empty="No process has reported a workflow.",
    )


def leases_lost(q: Source, at: Place) -> Panel:
    return lines(
        at,
        "Leases lost",
        "Runs that continued here after their lease had ended, until another owner took over: the process was paused, "
        "or could not reach its store.",
        target(
            f"{q.increase(names.LEASE_LOST, window='$__rate_interval', by=('instance',))} and "
            f"{q.most(names.LEASE_LOST, by=('instance',))}",
            "{{instance}}",
        ),
        unit="short",
        decimals=0,
        events=True,
        empty="No process has reported a workflow.",
    )


def oldest_run(q: Source, at: Place) -> Panel:
    oldest = f"max {q.by('workflow')} {q.age(names.OLDEST_START)}"
    return lines(
        at,
        "Age of the oldest run in flight",
        "How long the oldest run of a workflow has been in flight. A line that only rises is a stuck run, or a step "
        "without a timeout.",
        target(f"topk(6, {oldest} >= 0)", q.legend("{{workflow}}")),
        unit="s",
        empty="No run is in flight.",
        links=[to_workflow(q)],
    )


def workers(q: Source, at: Place) -> Panel:
    held_back = f"(sum({q.select(names.STEPS_HELD_BACK)}) or vector(0))"
    parts: Sequence[tuple[str, str, str]] = (
        ("workers busy", f"sum({q.select(names.WORKERS, state='busy')})", colours.WORKING),
        ("workers abandoned", f"sum({q.select(names.WORKERS, state='abandoned')})", colours.FAILED),
        ("workers at most", f"sum({q.select(names.WORKERS_LIMIT)})", colours.NEUTRAL),
        ("runs in flight", f"sum({q.select(names.RUNS_ACTIVE)})", colours.REPLAYED),
        ("runs queued", f"sum({q.select(names.RUNS_QUEUED)})", colours.HELD),
        ("steps ready, not started", f"sum({q.select(names.STEPS_READY)}) - {held_back}", colours.WAITING),
    )
    return lines(
        at,
        "Workers and what waits for them",
        "Load and capacity. Queued runs and ready steps with all workers busy: too few workers. With idle workers: "
        "no engine starts them. Steps that max_parallel= holds back are left out. Abandoned workers are stuck in calls that timed "
        "out.",
        *(target(expr, name) for name, expr, _ in parts),
        unit="short",
        coloured={name: colour for name, _, colour in parts},
        empty="No process reports workers.",
    )
