"""The dashboard of all workflows: what is wrong, for whom, since when, and links to more detail."""

from __future__ import annotations

from flowcore_otel import names

from . import colours, common
from .boards import Section, dashboard, to_runbook, to_traces, to_workflow
from .fields import Json, Panel, override, steps, target
from .panels import bar_gauge, lines, stat, table, text
from .queries import BAD, SERVED, UNDONE, WAITING, Source

__all__ = ["overview"]

WHAT_TO_TYPE = """\
In a shell that can reach the store (`export FLOWCORE_STORE=...`):

```sh
flowcore ls --status held
flowcore show KEY      # why, and what to do

flowcore resume KEY    # repaired: continue
flowcore undo KEY      # undo what is left
flowcore release KEY   # settled by hand
```

**held**: an undo failed, or a crash left a step in doubt.
**parked**: its process stopped, or the store was unreachable; recovery resumes it.
**expired**: its process is gone, and no other took it over.
"""

BEFORE = "the day before"


def overview(q: Source) -> Json:
    return dashboard(
        q,
        "flowcore-overview",
        "flowcore: all workflows",
        "What is wrong, for whom, since when, and where to read on.",
        [_working(q), _waiting(q), _slow(q), _failing(q), _idempotent(q), _surviving(q)],
        common.variables(q),
        common.versions(q),
    )


def _working(q: Source) -> Section:
    return Section(
        "Is it working?",
        [
            *common.numbers(q),
            table(
                (12, 0, 12, 10),
                "Firing alerts",
                "A click on the name opens its section of the runbook.",
                {"alertname": "Alert", "severity": "Severity", "job": "Job", q.label("workflow"): "Workflow"},
                {"Since": (f"max by (alertname, severity, job, {q.label('workflow')}) ({q.firing_for()})", "s")},
                sort="Severity",
                ascending=True,
                coloured={"Severity": {"page": colours.FAILED, "ticket": colours.WAITING}},
                linked={"Alert": [to_runbook(q)]},
                empty="No alert fires.",
            ),
            common.failures(q, (0, 4, 12, 6)),
            _workflows(q, (0, 10, 24, 7)),
            lines(
                (0, 17, 12, 7),
                "Runs per minute",
                "Runs that ended, over all workflows that are chosen, against the day before.",
                target(f"60 * {q.rate(names.RUNS)}", "now"),
                target(f"60 * {q.rate(names.RUNS, offset=' offset 1d')}", BEFORE),
                unit="short",
                coloured={"now": colours.WORKING, BEFORE: colours.NEUTRAL},
                empty="No process has reported a run.",
            ),
            lines(
                (12, 17, 12, 7),
                "p95 of runs against the day before",
                "1: as fast as at this time of the day before. 10: ten times as slow. The six workflows with the most "
                "runs.",
                target(
                    f"{q.quantile(0.95, names.RUN_DURATION, by=('workflow',))} / "
                    f"{q.quantile(0.95, names.RUN_DURATION, by=('workflow',), offset=' offset 1d')} and "
                    f"{q.most(names.RUNS, by=('workflow',))}",
                    q.legend("{{workflow}}"),
                ),
                unit="none",
                log=True,
                min=0.5,
                decimals=1,
                thresholds=steps("transparent", (3, colours.WAITING)),
                empty="No run ended now and the day before.",
                links=[to_workflow(q)],
            ),
        ],
    )


def _workflows(q: Source, at: tuple[int, int, int, int]) -> Panel:
    by = ("workflow",)
    bad = q.increase(names.RUNS, window="1h", by=("job", "workflow"), outcome=BAD)
    every = q.increase(names.RUNS, window="1h", by=("job", "workflow"))
    burn = f"max {q.by('workflow')} ({bad} / ({every} > 0)) / {1 - common.OBJECTIVE:g}"
    p95 = q.quantile(0.95, names.RUN_DURATION, by=by, over="$__range")
    p95_before = q.quantile(0.95, names.RUN_DURATION, by=by, over="$__range", offset=" offset 1d")
    succeeded = common.since_success(q, q.age(names.LAST_END, outcome=SERVED), by)
    oldest = f"max {q.by('workflow')} {q.age(names.OLDEST_START)} >= 0"
    # Unknown workflows, which are always counted, only have a row if runs of theirs are held.
    counted = f"max {q.by('workflow')} ({q.stored('held', by=by)})"
    held = f"{counted} > 0 or {counted} and on ({q.label('workflow')}) {q.select(names.WORKFLOW_INFO)}"
    return table(
        at,
        "Workflows, worst first",
        "Over the time shown; burn over the last hour, 1 being just as fast as the budget allows. Incomplete runs are among the "
        "runs, but neither served, undone nor failed. A click on a row leads to the workflow.",
        {q.label("workflow"): "Workflow"},
        {
            "Served": (common.share(q, SERVED, by), "percentunit"),
            "Undone": (common.share(q, UNDONE, by), "percentunit"),
            "Failed": (common.share(q, BAD, by), "percentunit"),
            "Burn": (burn, "none"),
            "Runs": (f"round({q.increase(names.RUNS, by=by)})", "short"),
            "p95": (p95, "s"),
            "Day before": (p95_before, "s"),
            "Retries": (f"round({q.increase(names.STEP_RETRIES, by=by)})", "short"),
            "Oldest": (oldest, "s"),
            "Last success": (succeeded, "s"),
            "Held": (held, "none"),
        },
        sort="Served",
        ascending=True,
        graded={
            "Served": steps(colours.FAILED, (0.9, colours.WAITING), (0.98, colours.SUCCESS)),
            "Undone": steps(colours.NEUTRAL, (0.05, colours.UNDONE)),
            "Failed": steps(colours.NEUTRAL, (1 - common.OBJECTIVE, colours.FAILED)),
            "Burn": steps(colours.NEUTRAL, (1, colours.WAITING), (14.4, colours.FAILED)),
            "Held": steps(colours.NEUTRAL, (1, colours.HELD)),
        },
        linked={"Workflow": [to_workflow(q, "${__value.text:percentencode}")]},
        decimals=2,
        empty="No process has reported a workflow.",
    )


def _waiting(q: Source) -> Section:
    return Section(
        "What needs a person now?",
        [
            table(
                (0, 0, 12, 7),
                "Runs that wait",
                "As counted in the store. Held ones wait for a person, expired and overdue ones for a process that recovers; "
                "incomplete and parked ones continue with the next call for their key, or with recovery.",
                {q.label("workflow"): "Workflow", q.label("status"): "Status"},
                {
                    "Runs": (
                        f"max {q.by('workflow', 'status')} ({q.select(names.STORE_RUNS, status=WAITING)}) > 0",
                        "none",
                    )
                },
                sort="Runs",
                coloured={"Status": colours.OF_STATUSES},
                empty="Nothing is held, parked, incomplete, expired or overdue.",
            ),
            text((12, 0, 12, 7), "What to type", "The runbook has a section for each alert.", WHAT_TO_TYPE),
        ],
    )


def _slow(q: Source) -> Section:
    run, step = names.RUN_DURATION, names.STEP_DURATION
    slow = f'name =~ "{names.RUN} .*" && span.{names.WORKFLOW_NAME} =~ "${{workflow:regex}}" && duration > 1s'
    backoff, whole = q.rate(names.BACKOFF_SECONDS), q.rate(step, "sum")
    busiest = q.most(names.RUNS, by=("instance",))
    return Section(
        "Is it slow?",
        [
            bar_gauge(
                (0, 0, 8, 8),
                "Slowest steps (p95)",
                "The ten steps with the longest p95 over the time shown, attempts and backoffs included.",
                target(
                    f"topk(10, {q.quantile(0.95, step, by=('workflow', 'step'), over='$__range')})",
                    q.legend("{{workflow}} · {{step}}"),
                    kind="instant",
                ),
                unit="s",
                colour=colours.WORKING,
                empty="No step ended in this time.",
                links=[to_workflow(q), *to_traces(q, "Traces of runs over a second", slow)],
            ),
            lines(
                (8, 0, 8, 8),
                "Where the time goes",
                "Seconds per second over all steps: working, waiting for a worker, and backing off between attempts.",
                target(f"clamp_min({whole} - {backoff}, 0)", "working"),
                target(q.rate(names.WAIT_DURATION, "sum"), "waiting for a worker"),
                target(backoff, "backing off"),
                unit="short",
                coloured={
                    "working": colours.WORKING,
                    "waiting for a worker": colours.WAITING,
                    "backing off": colours.NEUTRAL,
                },
                stacked=True,
                empty="No step ran in this time.",
            ),
            common.workers(q, (16, 0, 8, 8)),
            lines(
                (0, 8, 8, 7),
                "One instance, or all?",
                "p95 of runs on the six busiest instances. One line above the others: look at that machine. All of them: at what "
                "they share. The dots are single runs: each leads to its trace.",
                target(
                    f"{q.quantile(0.95, run, by=('instance',))} and {busiest}",
                    "{{instance}}",
                    exemplar=q.traces != "none",
                ),
                unit="s",
                log=True,
                empty="No run ended in this time.",
            ),
            lines(
                (8, 8, 8, 7),
                "p95 of the queue",
                "How long submitted runs wait before they begin: one in twenty waits longer. Long waits: add workers.",
                target(
                    f"topk(6, {q.quantile(0.95, names.QUEUE_DURATION, by=('workflow',))})", q.legend("{{workflow}}")
                ),
                unit="s",
                log=True,
                empty="No submitted run began in this time.",
                links=[to_workflow(q)],
            ),
            common.oldest_run(q, (16, 8, 8, 7)),
        ],
    )


def _failing(q: Source) -> Section:
    return Section(
        "Is it failing, retrying, undoing?",
        [
            table(
                (0, 0, 8, 8),
                "Errors",
                "Failed attempts in the time shown, by what was raised; many of them were retried.",
                {q.label("error_type"): "Error"},
                {"Count": (f"topk(10, {q.occurred(names.STEP_ERRORS, by=('error_type',))})", "short")},
                sort="Count",
                empty="No attempt failed.",
            ),
            common.retries(q, (8, 0, 8, 8), ("workflow", "step")),
            common.undos(q, (16, 0, 8, 8)),
        ],
    )


def _idempotent(q: Source) -> Section:
    hits = names.IDEMPOTENCY_HITS
    answered = q.increase(hits, outcome="replayed|adopted")
    asked = f"({answered} + {q.increase(names.RUNS)} > 0)"
    return Section(
        "Is idempotency working?",
        [
            stat(
                (0, 0, 6, 6),
                "Requests served by an earlier run",
                "Of all requests that got a result, the share that got it from an earlier run with their key.",
                f"{answered} / {asked}",
                unit="percentunit",
                thresholds=steps(colours.REPLAYED),
                decimals=1,
                empty="No request came in this time.",
            ),
            lines(
                (6, 0, 18, 6),
                "Requests that met an earlier run with their key",
                "Replayed and adopted ones got its result. In progress: retry later. Mismatch: the key was used with "
                "other values, a bug of the caller. Held: a person must decide first.",
                target(
                    q.increase(hits, window="$__rate_interval", by=("outcome",)),
                    q.legend("{{outcome}}"),
                    exemplar=q.traces != "none",
                ),
                unit="short",
                decimals=0,
                coloured=colours.OF_HITS,
                events=True,
                empty="No process has reported a workflow.",
            ),
        ],
    )


def _surviving(q: Source) -> Section:
    store = names.STORE_DURATION
    failed = q.increase(store, "count", window="$__rate_interval", outcome="!=success")
    asked = q.increase(store, "count", window="$__rate_interval")
    right: Json = {"unit": "percentunit", "custom__axisPlacement": "right", "min": 0, "max": 1}
    return Section(
        "Is it surviving?",
        [
            common.takeovers(q, (0, 0, 7, 7)),
            common.leases_lost(q, (7, 0, 7, 7)),
            lines(
                (14, 0, 7, 7),
                "The store",
                "p99 of all its operations, and the share of them that failed. The dashboard of the store shows more.",
                target(q.quantile(0.99, store), "p99"),
                target(f"({failed} or vector(0)) / ({asked} > 0)", "failed"),
                unit="s",
                coloured={"p99": colours.WORKING, "failed": colours.FAILED},
                overrides=[override("byName", "failed", **right)],
                empty="No store was used in this time.",
            ),
            _down(q, (21, 0, 3, 7)),
        ],
    )


def _down(q: Source, at: tuple[int, int, int, int]) -> Panel:
    if q.scraped:
        return stat(
            at,
            "Targets down",
            "Processes that Prometheus cannot scrape, of jobs that have had flowcore within a day.",
            f"count({q.of_target('up')} == 0) or vector(0)",
            unit="none",
            thresholds=steps(colours.SUCCESS, (1, colours.FAILED)),
            words={"0": ("none", colours.SUCCESS)},
        )
    return stat(
        at,
        "Processes",
        "Processes that have sent metrics in the last minutes.",
        f"count({q.select(names.BUILD_INFO)}) or vector(0)",
        unit="none",
        thresholds=steps(colours.FAILED, (1, colours.SUCCESS)),
    )
