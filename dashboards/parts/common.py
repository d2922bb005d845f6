"""What the dashboards have in common: variables, annotations, and panels that stand on more than one."""

from __future__ import annotations

from typing import Final

from flowcore_otel import names

from . import colours
from .boards import to_traces, to_workflow
from .fields import Panel, target
from .panels import lines
from .queries import BAD, NEEDS_A_PERSON, Source

__all__ = [
    "OBJECTIVE",
    "failed_traces",
    "leases_lost",
    "needing_a_person",
    "oldest_run",
    "ratio_of_good",
    "runs_by_outcome",
    "takeovers",
    "variables",
    "versions",
]

OBJECTIVE: Final = 0.995
"""the share of runs that should not be bad: what is missing to 1 is the error budget"""

Place = tuple[int, int, int, int]


def variables(q: Source, *, one_workflow: bool = False, workflows: bool = True) -> dict[str, tuple[str, str, bool]]:
    build, info = names.BUILD_INFO.prometheus, names.WORKFLOW_INFO.prometheus
    workflow = f'label_values({info}{{job=~"$job", instance=~"$instance"}}, {q.label("workflow")})'
    found = {
        "job": ("Job", f"label_values({build}, job)", True),
        "instance": ("Instance", f'label_values({build}{{job=~"$job"}}, instance)', True),
    }
    return found | ({"workflow": ("Workflow", workflow, not one_workflow)} if workflows else {})


def versions(q: Source) -> dict[str, tuple[str, str, str]]:
    version = f"count {q.by('version')} ({q.select(names.BUILD_INFO)}"
    new = f"{version}) unless {version} offset 1m)"
    return {"New version": (new, q.legend("flowcore {{version}}"), colours.REPLAYED)}


def failed_traces() -> dict[str, object]:
    bad = (
        f'{{ span.{names.WORKFLOW_NAME} =~ "${{workflow:regex}}" && span.{names.RUN_OUTCOME} =~ "{BAD}|compensated" }}'
    )
    return to_traces("Traces of runs that failed", bad)


def ratio_of_good(q: Source) -> str:
    """The share of runs that were not bad; no data where there were no runs."""
    bad = q.increase(names.RUN_DURATION, "count", outcome=BAD)
    return f"1 - {bad} / ({q.increase(names.RUN_DURATION, 'count')} > 0)"


def needing_a_person(q: Source) -> str:
    return f"sum({q.stored(NEEDS_A_PERSON)}) or vector(0)"


def runs_by_outcome(q: Source, at: Place) -> Panel:
    return lines(
        at,
        "Runs per second, by outcome",
        "Every run that ended. Green went well; purple failed and was cleanly undone; what is red or yellow uses up the "
        "error budget.",
        *(
            target(
                f"{q.rate(names.RUN_DURATION, 'count', by=('outcome',), outcome=outcome)} > 0", q.legend("{{outcome}}")
            )
            for outcome in ("success", "!=success")  # what went well comes first, and lies below
        ),
        unit="ops",
        coloured=colours.OF_RUNS,
        stacked=True,
        empty="No run ended in this time.",
        links=[failed_traces()],
    )


def takeovers(q: Source, at: Place, by: tuple[str, ...] = ("decision",)) -> Panel:
    return lines(
        at,
        "Takeovers",
        "Runs that were taken over because their process had died or hung: gone on with, undone, or held for a person.",
        target(
            f"{q.rate(names.RUN_RECOVERIES, by=by)} > 0",
            q.legend(": ".join(f"{{{{{label}}}}}" for label in by)),
            exemplar=True,
        ),
        unit="ops",
        coloured=colours.OF_DECISIONS,
        empty="No takeovers: no process died with a run in its hands.",
        links=[to_workflow(q)] if "workflow" in by else [],
    )


def leases_lost(q: Source, at: Place) -> Panel:
    return lines(
        at,
        "Leases lost",
        "Runs that went on here after their lease had ended, until another owner turned up: the process was paused, or "
        "could not reach its store.",
        target(
            f"{q.rate(names.LEASE_LOST, by=('workflow', 'instance'))} > 0", q.legend("{{workflow}} on {{instance}}")
        ),
        unit="ops",
        empty="No lease was lost.",
        links=[to_workflow(q)],
    )


def oldest_run(q: Source, at: Place) -> Panel:
    oldest = f"time() - min {q.by('workflow')} ({q.select(names.OLDEST_START)})"
    return lines(
        at,
        "Age of the oldest run in flight",
        "How long the oldest run has been going on. What only rises is stuck, or belongs to a step without a timeout.",
        target(f"{oldest} >= 0", q.legend("{{workflow}}")),
        unit="s",
        empty="No run is in flight.",
        links=[to_workflow(q)],
    )
