"""Alerts: four for burning the error budget, and one for each cause that is worth a page or a ticket.

Each has a section in RUNBOOK.md. Severity "page" means that a person must act now, "ticket" that a person must act this
week. Users set their own limits by recording the series AGE_LIMIT, SUCCESS_LIMIT, OBJECTIVE_OF_LATENCY and SERVICE.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Final

from flowcore_otel import names

from .common import OBJECTIVE
from .queries import SERVED, UNDONE, Source
from .recording import FAILING, GAP, LAST_SUCCESS, USUAL_P95, USUAL_P99, USUALLY_UNDONE, Rule, ratio, runs

__all__ = ["AGE_LIMIT", "OBJECTIVE_OF_LATENCY", "SERVICE", "SUCCESS_LIMIT", "Links", "alerting"]

ENOUGH: Final = 20
"""the number of runs, attempts or operations below which a share is not reliable"""

AGE_LIMIT: Final = "workflow:flowcore_run_age_limit:seconds"
"""a series that users may record: how long runs of a workflow may take. Default: an hour, or three times its p99"""
SUCCESS_LIMIT: Final = "workflow:flowcore_success_limit:seconds"
"""a series that users may record: how long a workflow may be without a success. Default: three times its longest gap"""
OBJECTIVE_OF_LATENCY: Final = "workflow:flowcore_latency_objective:ratio"
"""a series that users may record, by workflow and le: the share of runs that must not take longer than le seconds"""
SERVICE: Final = "job:flowcore_service:info"
"""a series that users may record: the jobs that must always have a process"""

# (long window, short window, burn rate as a multiple of what the budget allows, for, severity)
BURNS: Final = (
    ("1h", "5m", 14.4, "2m", "page"),
    ("6h", "30m", 6, "15m", "page"),
    ("1d", "2h", 3, "1h", "ticket"),
    ("3d", "6h", 1, "3h", "ticket"),
)


@dataclass(frozen=True)
class Links:
    """The addresses that alerts link to."""

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
        annotations = {
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
            "annotations": {k: v.replace("$labels.workflow", f"$labels.{workflow}") for k, v in annotations.items()},
        }

    def _chosen(self) -> str:
        """Return the part of the address that sets the dashboard's variables to the labels of this alert."""
        texts = f"{self.summary} {self.description}"
        chosen = [name for name in ("job", "workflow") if f"$labels.{name} " in texts]
        return "?" + "&".join(f"var-{name}={{{{ $labels.{name} | urlquery }}}}" for name in chosen) if chosen else ""


def alerting(q: Source, links: Links) -> list[dict[str, object]]:
    """Return the groups of alerting rules."""
    q = dataclasses.replace(q, templated=False)
    groups = {
        "flowcore-burn": _burning(),
        "flowcore-causes": [*_runs(q), *_schedules(q), *_workers(q), *_store(q), *_telemetry(q)],
    }
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
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the runs of the last {long} were bad (failed, failed to "
            f"be undone, were parked or lost), and this continues. The objective is {OBJECTIVE:.1%} good ones.",
            "workflow",
            {"long": long, "short": short},
        )
        for long, short, factor, lasting, severity in BURNS
    ]


def _runs(q: Source) -> list[Alert]:
    by = ("job", "workflow")
    ended = q.increase(names.RUNS, window="15m", by=by)
    succeeded = q.increase(names.RUNS, window="15m", by=by, outcome=SERVED)
    in_an_hour = q.increase(names.RUNS, window="1h", by=by)
    undone = q.increase(names.RUNS, window="1h", by=by, outcome=UNDONE)
    lately = q.increase(names.RUNS, window="10m", by=by)
    undone_lately = q.increase(names.RUNS, window="10m", by=by, outcome=UNDONE)
    age = f"time() - min {q.by(*by)} ({q.select(names.OLDEST_START)})"
    attempts = q.increase(names.STEP_ATTEMPTS, window="10m", by=(*by, "step"))
    failed = q.increase(names.STEP_ATTEMPTS, window="10m", by=(*by, "step"), outcome="!=success")
    retries = q.increase(names.STEP_RETRIES, window="10m", by=(*by, "step"))
    step = f"{{{{ $labels.{q.label('step')} }}}}"
    unsuccessful = f"({LAST_SUCCESS} or {FAILING} * 0)"
    p95 = q.quantile(0.95, names.RUN_DURATION, by=by, over="30m")
    in_half_an_hour = q.increase(names.RUNS, window="30m", by=by)
    waiting = {"status": "held|expired"}
    counted = q.by("job", "workflow", "status")
    return [
        *_limits(q, age),
        Alert(
            "FlowcoreRunsHeld",
            f"{q.stored('held', by=('workflow',))} > 0",
            "",
            "ticket",
            f"{OF} has runs that wait for a person",
            f"{OF}: runs held: {{{{ $value }}}}. An undo failed, or a crash left a step in doubt; their keys are refused until a "
            "person decides.",
        ),
        Alert(
            "FlowcoreRunsExpired",
            f"{q.stored('expired', by=('workflow',))} > 0",
            "1m",
            "page",
            f"{OF} has runs that no process takes over",
            f"{OF}: runs whose owner is gone, for more than two leases: {{{{ $value }}}}. Is a process with recover_every= "
            "running, and does it know the workflow?",
            "store",
        ),
        Alert(
            "FlowcoreSurveyMissing",
            f"max {counted} (last_over_time({q.select(names.STORE_RUNS, **waiting)}[1d])) > 0\n"
            f"unless max {counted} ({q.select(names.STORE_RUNS, **waiting)})",
            "10m",
            "ticket",
            f"{OF} had runs that were held or expired, and no process counts them now",
            f"{OF}: {{{{ $value }}}} runs were {{{{ $labels.{q.label('status')} }}}} when the store was last counted. The processes "
            "that counted them are gone.",
            "store",
        ),
        Alert(
            "FlowcoreNoSuccess",
            f"{ended} >= 5\nunless {succeeded} > 0",
            "5m",
            "page",
            f"{OF} no longer succeeds",
            f"{OF}: {{{{ $value | humanize }}}} runs ended in the last 15 minutes, and not one of them succeeded.",
            "workflow",
        ),
        Alert(
            "FlowcoreRunsFailing",
            f"({FAILING} * 0 + changes({FAILING}[4h]) + 1 >= 3 and min_over_time({FAILING}[4h]) > {unsuccessful}\n"
            f"or {FAILING} * 0 + changes({FAILING}[3d]) + 1 >= 2 and min_over_time({FAILING}[3d]) > {unsuccessful}\n"
            f"and {FAILING} - min_over_time({FAILING}[3d]) > 12 * 3600)\n"
            f"unless {runs('1h')} >= {ENOUGH}",
            "",
            "ticket",
            f"{OF} fails each time",
            f"{OF}: the last {{{{ $value }}}} runs failed or were undone, and none succeeded between them.",
            "workflow",
        ),
        Alert(
            "FlowcoreUndoneSurge",
            f"{undone_lately} / ({lately} > 0) > 0.05\n"
            f"and {undone_lately} / ({lately} > 0) > 3 * ({USUALLY_UNDONE} offset 1h or {lately} * 0)\n"
            f"and {lately} >= {ENOUGH}",
            "3m",
            "page",
            f"{OF} is undone far more often than usual",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the runs of the last 10 minutes failed and were cleanly "
            "undone, more than three times as many as usual. A partner may be unavailable; its customers get nothing.",
            "workflow",
        ),
        Alert(
            "FlowcoreRunsSlow",
            f"{p95} > 3 * {USUAL_P95} offset 1h\nand {p95} > 1\nand {in_half_an_hour} >= {ENOUGH}",
            "5m",
            "ticket",
            f"{OF} is slower than usual",
            f"{OF}: one run in twenty of the last half hour took longer than {{{{ $value | humanizeDuration }}}}, more than three "
            "times as long as the day before.",
            "workflow",
        ),
        *_latency(q, in_half_an_hour),
        Alert(
            "FlowcoreManyRunsUndone",
            f"{undone} / ({in_an_hour} > 0) > 0.25\nand {in_an_hour} >= {ENOUGH}",
            "15m",
            "ticket",
            f"{OF} is undone unusually often",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the runs of the last hour failed and were cleanly undone. "
            "Nothing is broken here, but a service that the steps call refuses often.",
            "workflow",
        ),
        Alert(
            "FlowcoreRetryStorm",
            f"{failed} / ({attempts} > 0) > 0.5\nand {retries} / ({attempts} > 0) > 0.2\nand {attempts} >= {ENOUGH}",
            "10m",
            "ticket",
            f"{OF} retries step {step} more often than not",
            f"{OF}: {{{{ $value | humanizePercentage }}}} of the attempts of step {step} in the last 10 minutes failed.",
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


def _limits(q: Source, age: str) -> list[Alert]:
    """The alerts on old runs and overdue successes, by the user's limits or else by what is usual for the workflow."""
    flow = q.label("workflow")
    by_workflow, by_both = f"on ({flow})", f"on (job, {flow})"

    def limit(series: str) -> str:
        return series if q.scraped else f'label_replace({series}, "{flow}", "$1", "workflow", "(.*)")'

    since = f"time() - {LAST_SUCCESS}"
    usual_gap = f"clamp_min(3 * max_over_time({GAP}[8d]), 3600)"
    return [
        Alert(
            "FlowcoreRunTooOld",
            f"{age} > {by_workflow} group_left () {limit(AGE_LIMIT)}\nor\n"
            f"(({age} > 3600) unless {by_both} ({age} <= {by_both} 3 * {USUAL_P99}) unless {by_workflow} {limit(AGE_LIMIT)})",
            "1m",
            "ticket",
            f"{OF} has a run that does not end",
            f"{OF}: its oldest run in flight started {{{{ $value | humanizeDuration }}}} ago.",
            "store",
        ),
        Alert(
            "FlowcoreSuccessOverdue",
            f"{since} > {by_workflow} group_left () {limit(SUCCESS_LIMIT)}\nor\n"
            f"({since} > {usual_gap} and {LAST_SUCCESS} offset 2d unless {by_workflow} {limit(SUCCESS_LIMIT)})\n"
            f"unless {by_both} {FAILING}",
            "5m",
            "ticket",
            f"{OF} should have succeeded by now",
            f"{OF}: its last success was {{{{ $value | humanizeDuration }}}} ago, longer than its limit or than three times its "
            "longest usual pause. Does its schedule still start it?",
            "workflow",
        ),
    ]


def _latency(q: Source, enough: str) -> list[Alert]:
    """The alert on latency. It needs the label `le`, which native histograms do not have."""
    if q.native:
        return []
    flow = q.label("workflow")
    buckets = f"sum {q.by('job', 'workflow', 'le')} (rate({q.select(names.RUN_DURATION, 'bucket')}[30m]))"
    every = f"sum {q.by('job', 'workflow')} (rate({q.select(names.RUN_DURATION, 'count')}[30m]))"
    objective = OBJECTIVE_OF_LATENCY
    if not q.scraped:
        objective = f'label_replace({objective}, "{flow}", "$1", "workflow", "(.*)")'
    return [
        Alert(
            "FlowcoreLatencyObjective",
            f"{buckets} / on (job, {flow}) group_left () ({every} > 0)\n"
            f"< on ({flow}, le) group_left () {objective}\nand on (job, {flow}) {enough} >= {ENOUGH}",
            "10m",
            "page",
            f"{OF} misses its objective of latency",
            f"{OF}: only {{{{ $value | humanizePercentage }}}} of the runs of the last half hour took at most "
            "{{ $labels.le }} s.",
            "workflow",
        )
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
            f"Processes of {job} in which at least as many threads are stuck in abandoned calls as are working: "
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


def _schedules(q: Source) -> list[Alert]:
    by = q.by("job", "workflow", "schedule")
    schedule = f"{{{{ $labels.{q.label('schedule')} }}}}"
    missed = q.select(names.SCHEDULE_MISSED, reason="down|error")
    return [
        Alert(
            "FlowcoreScheduleNotFiring",
            f"time() - max {by} ({q.select(names.SCHEDULE_NEXT)}) > 300\nor\n"
            f"sum {by} (increase({missed}[1h])) > 0\nor\nsum {by} ({missed} unless {missed} offset 1h) > 0",
            "1m",
            "ticket",
            f"{OF} does not run when schedule {schedule} says so",
            f"{OF}: a fire of schedule {schedule} that is more than five minutes late has not begun, or fires were "
            "missed in the last hour.",
            "workflow",
        ),
    ]


def _store(q: Source) -> list[Alert]:
    took, by = names.STORE_DURATION, ("job", "store")
    asked = q.increase(took, "count", window="5m", by=by)
    asked_lately = q.increase(took, "count", window="2m", by=by)
    failed = q.increase(took, "count", window="2m", by=by, outcome="!=success")
    p99 = q.quantile(0.99, took, by=by, over="5m")
    of = f"{{{{ $labels.{q.label('store')} }}}} store of {{{{ $labels.job }}}}"
    return [
        Alert(
            "FlowcoreStoreErrors",
            f"{failed} / ({asked_lately} > 0) > 0.05\nand {asked} >= {ENOUGH}",
            "5m",
            "page",
            f"The {of} fails",
            f"The {of}: {{{{ $value | humanizePercentage }}}} of its operations in the last 2 minutes failed. Runs are "
            "parked while it is unreachable.",
            "store",
        ),
        Alert(
            "FlowcoreStoreSlow",
            f"{p99} > 0.5\nand {asked} >= {ENOUGH}",
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
    share = "count by (job) (up == 0) / count by (job) (up)"
    ours = f"and on (job) count by (job) (last_over_time({build}[1d]))"
    targets = [
        Alert(
            "FlowcoreTargetDown",
            f"{share} > {floor}{ceiling}\n{ours}",
            lasting,
            severity,
            "Processes of {{ $labels.job }} cannot be scraped",
            "{{ $value | humanizePercentage }} of the processes of {{ $labels.job }} are down, or unreachable for "
            "Prometheus.",
        )
        for floor, ceiling, lasting, severity in ((0.5, "", "5m", "page"), (0.2, " <= 0.5", "15m", "ticket"))
    ]
    return [
        Alert(
            "FlowcoreHookErrors",
            _increase_with_first(q, names.HOOK_ERRORS, "15m"),
            "",
            "ticket",
            f"Hook {hook} of {{{{ $labels.job }}}} raises errors",
            f"{{{{ $value | humanize }}}} errors of {hook} in {{{{ $labels.job }}}} in the last 15 minutes. Runs are "
            "not affected, but what the hook should have reported is missing.",
            "store",
        ),
        Alert(
            "FlowcoreSeriesCapped",
            _increase_with_first(q, names.CAPPED, "1h"),
            "",
            "ticket",
            f"Hook {hook} of {{{{ $labels.job }}}} has too many series",
            "{{ $value | humanize }} measurements of {{ $labels.job }} went to the series _other in the last hour: there "
            "are more workflows, steps or kinds of errors than the hook keeps apart.",
            "store",
        ),
        *(targets if q.scraped else ()),
        Alert(
            "FlowcoreAbsent",
            f"{SERVICE}\nunless on (job) count by (job) ({build})",
            "5m",
            "page",
            "No process of {{ $labels.job }} reports flowcore metrics",
            "{{ $labels.job }} is declared as a service. Either all of its processes are down, or Prometheus no longer "
            "gets their metrics.",
        ),
    ]


def _increase_with_first(q: Source, counter: names.Metric, window: str) -> str:
    """Return a query for the increase of a counter. Unlike increase(), it includes series that have just appeared."""
    by, series = q.by("job", "hook"), q.select(counter)
    return f"sum {by} (increase({series}[{window}])) > 0\nor\nsum {by} ({series} unless {series} offset {window}) > 0"
