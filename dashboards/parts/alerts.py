"""Alerts: four for burning the error budget, and one for each cause that is worth waking or telling somebody.

Each names a section of RUNBOOK.md. "page": somebody must act now; "ticket": somebody must act this week.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from flowcore_otel import names

from .common import OBJECTIVE
from .queries import Source
from .recording import Rule, ratio, runs

__all__ = ["AGE_LIMIT", "Links", "alerting"]

ENOUGH: Final = 20
"""runs, attempts or operations, below which a share says nothing"""

AGE_LIMIT: Final = "workflow:flowcore_run_age_limit:seconds"
"""a series that users may record for workflows whose runs may take longer, or less long, than an hour"""

# (long window, short window, times the speed that the budget allows, for, severity)
BURNS: Final = (
    ("1h", "5m", 14.4, "2m", "page"),
    ("6h", "30m", 6, "15m", "page"),
    ("1d", "2h", 3, "1h", "ticket"),
    ("3d", "6h", 1, "3h", "ticket"),
)


@dataclass(frozen=True)
class Links:
    """Where the people who are told can read on."""

    runbook: str
    """address of RUNBOOK.md"""
    grafana: str
    """address of Grafana"""


@dataclass(frozen=True)
class Alert:
    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    description: str
    board: str = "overview"
    labels: dict[str, str] = field(default_factory=dict[str, str])

    def rule(self, q: Source, links: Links) -> Rule:
        told = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{links.runbook}#{self.name.lower()}",
            "dashboard_url": f"{links.grafana}/d/flowcore-{self.board}{self._chosen()}",
        }
        workflow = q.label("workflow")
        return {
            "alert": self.name,
            "expr": self.expr,
            **({"for": self.lasting} if self.lasting else {}),
            "labels": {"severity": self.severity, **self.labels},
            "annotations": {k: v.replace("$labels.workflow", f"$labels.{workflow}") for k, v in told.items()},
        }

    def _chosen(self) -> str:
        """The dashboard's variables, as far as this alert has labels for them."""
        told = f"{self.summary} {self.description}"
        chosen = [name for name in ("job", "workflow") if f"$labels.{name} " in told]
        return "?" + "&".join(f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in chosen) if chosen else ""


def alerting(q: Source, links: Links) -> list[dict[str, object]]:
    """Groups of rules."""
    q = dataclasses.replace(q, templated=False)
    groups = {"flowcore-burn": _burning(), "flowcore-causes": [*_runs(q), *_workers(q), *_store(q), *_telemetry(q)]}
    return [{"name": name, "rules": [alert.rule(q, links) for alert in alerts]} for name, alerts in groups.items()]


OF: Final = "Workflow {{ $labels.workflow }} of {{ $labels.job }}"


def _burning() -> list[Alert]:
    budget = f"{1 - OBJECTIVE:g}"
    return [
        Alert(
            "FlowcoreErrorBudgetBurn",
            f"{ratio(long)} > {factor:g} * {budget}\nand {ratio(short)} > {factor:g} * {budget}\n"
            f"and {runs(long)} >= {ENOUGH}",
            lasting,
            severity,
            f"{OF} spends its error budget too fast",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the runs of the last {long} were bad (failed, failed to be "
            f"undone, were parked or lost), and it goes on. The objective is {OBJECTIVE:.1%} good ones.",
            "workflow",
            {"long": long, "short": short},
        )
        for long, short, factor, lasting, severity in BURNS
    ]


def _runs(q: Source) -> list[Alert]:
    run, by = names.RUN_DURATION, ("job", "workflow")
    ended = q.increase(run, "count", window="15m", by=by)
    succeeded = q.increase(run, "count", window="15m", by=by, outcome="success")
    in_an_hour = q.increase(run, "count", window="1h", by=by)
    undone = q.increase(run, "count", window="1h", by=by, outcome="compensated")
    age = f"time() - min {q.by(*by)} ({q.select(names.OLDEST_START)})"
    by_workflow = f"on ({q.label('workflow')})"
    limited = (
        AGE_LIMIT if q.scraped else f'label_replace({AGE_LIMIT}, "{q.label("workflow")}", "$1", "workflow", "(.*)")'
    )
    attempts = q.increase(names.ATTEMPT_DURATION, "count", window="10m", by=(*by, "step"))
    retries = q.increase(names.STEP_RETRIES, window="10m", by=(*by, "step"))
    step = f"{{{{ $labels.{q.label('step')} }}}}"
    return [
        Alert(
            "FlowcoreRunsHeld",
            f"{q.stored('held', by=('workflow',))} > 0",
            "",
            "ticket",
            f"{OF} has runs that wait for a person",
            f"{OF}: runs held: {{{{ $value }}}}. An undo failed, or a crash left a step in doubt; until somebody decides, their "
            "keys are refused.",
        ),
        Alert(
            "FlowcoreRunsExpired",
            f"{q.stored('expired', by=('workflow',))} > 0",
            "1m",
            "page",
            f"{OF} has runs that nobody takes over",
            f"{OF}: runs whose owner is gone, for more than two leases: {{{{ $value }}}}. Is a process with recover_every= "
            "running, and does it know the workflow?",
            "store",
        ),
        Alert(
            "FlowcoreNoSuccess",
            f"{ended} >= 5\nunless {succeeded} > 0",
            "5m",
            "page",
            f"{OF} does not succeed any more",
            f"{OF}: {{{{ $value | humanize }}}} runs ended in the last 15 minutes, and not one of them succeeded.",
            "workflow",
        ),
        Alert(
            "FlowcoreManyRunsUndone",
            f"{undone} / ({in_an_hour} > 0) > 0.25\nand {in_an_hour} >= {ENOUGH}",
            "15m",
            "ticket",
            f"{OF} is undone unusually often",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the runs of the last hour failed and were cleanly undone. "
            "Nothing is broken here, but something that the steps call says no a lot.",
            "workflow",
        ),
        Alert(
            "FlowcoreRunTooOld",
            f"{age} > {by_workflow} group_left () {limited}\nor\n({age} > 3600 unless {by_workflow} {limited})",
            "1m",
            "ticket",
            f"{OF} has a run that does not end",
            f"{OF}: its oldest run in flight started {{{{ $value | humanizeDuration }}}} ago.",
            "store",
        ),
        Alert(
            "FlowcoreRetryStorm",
            f"{retries} / ({attempts} > 0) > 0.5\nand {attempts} >= {ENOUGH}",
            "10m",
            "ticket",
            f"{OF} retries step {step} more often than not",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the attempts of step {step} in the last 10 minutes failed and "
            "were made again.",
            "workflow",
        ),
        Alert(
            "FlowcoreTakeoverSurge",
            f"{q.increase(names.RUN_RECOVERIES, window='15m', by=by)} > 10",
            "",
            "ticket",
            f"{OF} is taken over from dying processes",
            f"{OF}: {{{{ $value | humanize }}}} runs were taken over in the last 15 minutes.",
            "store",
        ),
        Alert(
            "FlowcoreLeasesLost",
            f"{q.increase(names.LEASE_LOST, window='15m', by=by)} > 3",
            "",
            "ticket",
            f"{OF} loses its leases",
            f"{OF}: {{{{ $value | humanize }}}} runs were taken over in the last 15 minutes while their process was still "
            "alive, but paused, or cut off from the store.",
            "store",
        ),
    ]


def _workers(q: Source) -> list[Alert]:
    busy, abandoned = (q.select(names.WORKERS, state=state) for state in ("busy", "abandoned"))
    of_process = q.by("job", "instance", "workflow")
    ready = f"sum {of_process} ({q.select(names.STEPS_READY)})"
    started = f"sum {of_process} (increase({q.select(names.WAIT_DURATION, 'count')}[5m]))"
    job = "{{ $labels.job }}"
    state = q.label("state")
    return [
        Alert(
            "FlowcoreWorkersAbandoned",
            f"count by (job) (({abandoned} >= ignoring ({state}) {busy}) >= 5) > 0",
            "5m",
            "ticket",
            f"Half of the workers of {job} are stuck",
            f"Processes of {job} in which at least as many threads are stuck in calls that were given up as do any work: "
            "{{ $value }}.",
            "store",
        ),
        Alert(
            "FlowcoreStepsNotStarting",
            f"count {q.by('job', 'workflow')} (({ready} > 0) unless ({started} > 0)) > 0",
            "5m",
            "page",
            f"{OF} has steps that are ready and do not start",
            f"{OF}: processes in which steps have been ready, but none has started, for more than 5 minutes: "
            "{{ $value }}.",
        ),
    ]


def _store(q: Source) -> list[Alert]:
    took, by = names.STORE_DURATION, ("job", "store")
    asked = q.increase(took, "count", window="5m", by=by)
    failed = q.increase(took, "count", window="5m", by=by, outcome="!=success")
    buckets = f"sum {q.by(*by, 'le')} (rate({q.select(took, 'bucket')}[5m]))"
    of = f"{{{{ $labels.{q.label('store')} }}}} store of {{{{ $labels.job }}}}"
    return [
        Alert(
            "FlowcoreStoreErrors",
            f"{failed} / ({asked} > 0) > 0.05\nand {asked} >= {ENOUGH}",
            "5m",
            "page",
            f"The {of} fails",
            f"The {of}: {{{{ $value | humanizePercentage }}}} of its operations in the last 5 minutes failed. Runs that it "
            "does not come back for are parked.",
            "store",
        ),
        Alert(
            "FlowcoreStoreSlow",
            f"histogram_quantile(0.99, {buckets}) > 0.5\nand {asked} >= {ENOUGH}",
            "10m",
            "ticket",
            f"The {of} is slow",
            f"The {of}: one in a hundred operations takes longer than {{{{ $value | humanizeDuration }}}}. A durable run waits "
            "for it at every transition.",
            "store",
        ),
    ]


def _telemetry(q: Source) -> list[Alert]:
    hook = f"{{{{ $labels.{q.label('hook')} }}}}"
    build = q.select(names.BUILD_INFO)
    scraped = [
        Alert(
            "FlowcoreTargetDown",
            f"count by (job) (up == 0)\nand on (job) count by (job) (last_over_time({build}[1d]))",
            "5m",
            "page",
            "Processes of {{ $labels.job }} cannot be scraped",
            "Processes of {{ $labels.job }} that have been down, or out of Prometheus' reach, for 5 minutes: {{ $value }}.",
        )
    ]
    return [
        Alert(
            "FlowcoreHookErrors",
            _came(q, names.HOOK_ERRORS, "15m"),
            "",
            "ticket",
            f"Hook {hook} of {{{{ $labels.job }}}} raises errors",
            f"{{{{ $value | humanize }}}} errors of {hook} in {{{{ $labels.job }}}} in the last 15 minutes. Runs are not touched "
            "by it, but what the hook should have told is missing.",
            "store",
        ),
        Alert(
            "FlowcoreSeriesCapped",
            _came(q, names.CAPPED, "1h"),
            "",
            "ticket",
            f"Hook {hook} of {{{{ $labels.job }}}} has too many series",
            "{{ $value | humanize }} measurements of {{ $labels.job }} went to the series _other in the last hour: there "
            "are more workflows, steps or kinds of errors than the hook keeps apart.",
            "store",
        ),
        *(scraped if q.scraped else ()),
        Alert(
            "FlowcoreAbsent",
            f"absent({build})",
            "5m",
            "page",
            "No process reports to be running flowcore",
            "Either all of them are down, or Prometheus does not get their metrics any more.",
        ),
    ]


def _came(q: Source, counter: names.Metric, window: str) -> str:
    """By how much a counter rose that begins with its first event: increase() does not see a series come into being."""
    by, series = q.by("job", "hook"), q.select(counter)
    return f"sum {by} (increase({series}[{window}])) > 0\nor\nsum {by} ({series} unless {series} offset {window}) > 0"
