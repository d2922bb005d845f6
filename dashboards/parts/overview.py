"""All workflows at a glance: is it working, does it need a person, is it slow, retrying, undoing, surviving?"""

from __future__ import annotations

from flowcore_otel import names

from . import colours, common
from .boards import Section, dashboard, to_traces, to_workflow
from .fields import Json, Panel, steps, target
from .panels import bar_gauge, gauge, lines, stat, table, text
from .queries import BAD, WAITING, Source

__all__ = ["overview"]

WHAT_TO_TYPE = """\
In a shell that can reach the store (`store` is what you gave your engine):

```python
for run in store.list_runs(status="held"):
    print(run.key, run.workflow, run.failed_step, run.error)

store.resume(key)   # I have repaired it: go on
store.undo(key)     # undo what is left
store.release(key)  # I have settled it by hand: forget it
```

**held**: an undo failed, or a crash left a step in doubt. **parked**: the store was away; the next call goes on.
**expired**: its process is gone and nobody has taken it over: is a process with `recover_every=` running?
"""


def overview(q: Source) -> Json:
    return dashboard(
        "flowcore-overview",
        "flowcore: all workflows",
        "Whether the workflows do what they should, and whom to call if not.",
        [_working(q), _waiting(q), _slow(q), _failing(q), _idempotent(q), _surviving(q)],
        common.variables(q),
        common.versions(q),
    )


def _working(q: Source) -> Section:
    budget = 1 - common.OBJECTIVE
    burn = (
        f"{q.increase(names.RUN_DURATION, 'count', window='1h', outcome=BAD)} / "
        f"({q.increase(names.RUN_DURATION, 'count', window='1h')} > 0) / {budget:g}"
    )
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
            gauge(
                (18, 0, 6, 5),
                "Error budget burn, last hour",
                "1: just as fast as the budget allows. 14.4 for an hour pages somebody: a month's budget in two days.",
                burn,
                unit="none",
                thresholds=steps(colours.SUCCESS, (1, colours.WAITING), (14.4, colours.FAILED)),
                largest=20,
                decimals=1,
                empty="No run in the last hour.",
            ),
            stat(
                (18, 5, 3, 4),
                "Need a person",
                "Runs that are held, parked or expired: the table below names them and says what to type.",
                common.needing_a_person(q),
                unit="none",
                thresholds=steps(colours.SUCCESS, (1, colours.HELD)),
                words={"0": ("none", colours.SUCCESS)},
            ),
            _down(q, (21, 5, 3, 4)),
        ],
    )


def _down(q: Source, at: tuple[int, int, int, int]) -> Panel:
    if q.scraped:
        return stat(
            at,
            "Targets down",
            "Processes that Prometheus cannot scrape.",
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


def _waiting(q: Source) -> Section:
    return Section(
        "What needs a person now?",
        [
            table(
                (0, 0, 12, 7),
                "Runs that are not going on by themselves",
                "As counted in the store by the recovery loop. Incomplete runs go on with the next call for their key.",
                {q.label("workflow"): "Workflow", q.label("status"): "Status"},
                {
                    "Runs": (
                        f"max {q.by('workflow', 'status')} ({q.select(names.STORE_RUNS, status=WAITING)}) > 0",
                        "none",
                    )
                },
                sort="Runs",
                coloured={"Status": colours.OF_STATUSES},
                empty="Nothing is held, parked, incomplete or expired: no run waits for anybody.",
            ),
            text(
                (12, 0, 12, 7),
                "What to type",
                "The verbs for operators; the runbook has a section for each alert.",
                WHAT_TO_TYPE,
            ),
        ],
    )


def _slow(q: Source) -> Section:
    run, step = names.RUN_DURATION, names.STEP_DURATION
    slow = f'{{ name =~ "{names.RUN} .*" && span.{names.WORKFLOW_NAME} =~ "${{workflow:regex}}" && duration > 1s }}'
    attempts, whole = q.rate(names.ATTEMPT_DURATION, "sum"), q.rate(step, "sum")
    return Section(
        "Is it slow?",
        [
            lines(
                (0, 0, 12, 8),
                "How long runs take",
                "Half of the runs are quicker than p50, one in twenty is slower than p95, one in a hundred than p99. "
                "The dots are single runs: each leads to its trace.",
                *(
                    target(
                        q.quantile(of, run, by=("workflow",)),
                        q.legend(f"{{{{workflow}}}} p{of * 100:.0f}"),
                        exemplar=True,
                    )
                    for of in (0.95, 0.5, 0.99)
                ),
                unit="s",
                quantiles=True,
                log=True,
                empty="No run ended in this time.",
                links=[to_workflow(q), to_traces("Traces of runs over a second", slow)],
            ),
            bar_gauge(
                (12, 0, 12, 8),
                "Slowest steps (p95)",
                "The ten steps with the longest p95 over the time shown, attempts and backoffs included.",
                target(
                    f"topk(10, {q.quantile(0.95, step, by=('workflow', 'step'), over='range')})",
                    q.legend("{{workflow}} · {{step}}"),
                    kind="instant",
                ),
                unit="s",
                colour=colours.WORKING,
                empty="No step ended in this time.",
                links=[to_workflow(q)],
            ),
            lines(
                (0, 8, 8, 7),
                "Where the time goes",
                "Seconds per second over all steps: working, waiting for a worker, and backing off between attempts.",
                target(attempts, "working"),
                target(q.rate(names.WAIT_DURATION, "sum"), "waiting for a worker"),
                target(f"clamp_min({whole} - {attempts}, 0)", "backing off"),
                unit="none",
                coloured={
                    "working": colours.WORKING,
                    "waiting for a worker": colours.WAITING,
                    "backing off": colours.NEUTRAL,
                },
                stacked=True,
                empty="No step ran in this time.",
            ),
            lines(
                (8, 8, 8, 7),
                "Steps that wait against workers that work",
                "Ready steps with no busy worker: nothing drives them. Ready steps with all workers busy: too few of them. "
                "Abandoned workers are stuck in calls that were given up.",
                target(f"sum({q.select(names.STEPS_READY)})", "steps ready"),
                target(f"sum({q.select(names.WORKERS, state='busy')})", "workers busy"),
                target(f"sum({q.select(names.WORKERS, state='abandoned')})", "workers abandoned"),
                unit="none",
                coloured={
                    "steps ready": colours.WAITING,
                    "workers busy": colours.WORKING,
                    "workers abandoned": colours.FAILED,
                },
                empty="No process reports steps or workers.",
            ),
            lines(
                (16, 8, 8, 7),
                "One instance, or all?",
                "p95 of runs by instance. One line above the others: look at that machine. All of them: at what they share.",
                target(q.quantile(0.95, run, by=("instance",)), "{{instance}}", exemplar=True),
                unit="s",
                log=True,
                empty="No run ended in this time.",
            ),
        ],
    )


def _failing(q: Source) -> Section:
    undone = q.increase(names.RUN_DURATION, "count", by=("workflow",), outcome="compensated")
    runs = q.increase(names.RUN_DURATION, "count", by=("workflow",))
    return Section(
        "Is it failing, retrying, undoing?",
        [
            lines(
                (0, 0, 12, 8),
                "The last failures",
                "How long the runs took that did not succeed. Each dot is a run: click it for its trace.",
                target(
                    q.quantile(0.95, names.RUN_DURATION, by=("outcome",), outcome=f"{BAD}|compensated|incomplete"),
                    q.legend("{{outcome}}"),
                    exemplar=True,
                ),
                unit="s",
                log=True,
                coloured=colours.OF_RUNS,
                empty="No run failed in this time.",
                links=[common.failed_traces()],
            ),
            bar_gauge(
                (12, 0, 6, 8),
                "Runs that were undone",
                "The share of each workflow's runs that failed and was cleanly undone: declined cards, sold-out goods. It "
                "does not use up the error budget.",
                target(f"sort_desc({undone} / ({runs} > 0) > 0)", q.legend("{{workflow}}"), kind="instant"),
                unit="percentunit",
                colour=colours.UNDONE,
                max=1,
                empty="No run had to be undone.",
                links=[to_workflow(q)],
            ),
            table(
                (18, 0, 6, 8),
                "Errors",
                "Failed attempts in the time shown, by what was raised; many of them were retried. The first of a kind since the "
                "process started is not among them: Prometheus does not see a series come into being.",
                {q.label("error_type"): "Error"},
                {"Count": (f"topk(10, round({q.increase(names.STEP_ERRORS, by=('error_type',))})) > 0", "none")},
                sort="Count",
                empty="No attempt failed.",
            ),
            lines(
                (0, 8, 12, 7),
                "Retries per second",
                "Failed attempts that were followed by another, by step.",
                target(
                    f"{q.rate(names.STEP_RETRIES, by=('workflow', 'step'))} > 0",
                    q.legend("{{workflow}} · {{step}}"),
                    exemplar=True,
                ),
                unit="ops",
                empty="No retries: every attempt was the last one needed.",
                links=[to_workflow(q)],
            ),
            lines(
                (12, 8, 12, 7),
                "Undos per second",
                "Steps that were undone. What is not purple could not be undone: its run is held for a person.",
                target(f"{q.rate(names.COMPENSATIONS, by=('outcome',))} > 0", q.legend("{{outcome}}"), exemplar=True),
                unit="ops",
                coloured=colours.OF_UNDOS,
                stacked=True,
                empty="Nothing had to be undone.",
                links=[common.failed_traces()],
            ),
        ],
    )


def _idempotent(q: Source) -> Section:
    hits = names.IDEMPOTENCY_HITS
    answered = q.increase(hits, outcome="replayed|adopted")
    asked = f"({answered} + {q.increase(names.RUN_DURATION, 'count')} > 0)"
    return Section(
        "Is idempotency working?",
        [
            stat(
                (0, 0, 6, 6),
                "Answered without running again",
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
                "Replayed and adopted ones got its result. In progress: told to come back. Mismatch: the key came with "
                "other values, a bug of the caller. Held: a person must decide first.",
                target(f"{q.rate(hits, by=('outcome',))} > 0", q.legend("{{outcome}}"), exemplar=True),
                unit="reqps",
                coloured=colours.OF_HITS,
                stacked=True,
                empty="No key came twice.",
            ),
        ],
    )


def _surviving(q: Source) -> Section:
    store = names.STORE_DURATION
    failed = q.increase(store, "count", window="$__rate_interval", outcome="!=success")
    return Section(
        "Is it surviving?",
        [
            common.takeovers(q, (0, 0, 6, 7)),
            common.leases_lost(q, (6, 0, 6, 7)),
            common.oldest_run(q, (12, 0, 6, 7)),
            lines(
                (18, 0, 6, 7),
                "The store",
                "p99 of all its operations, and the share of them that failed. The dashboard about the store has more.",
                target(q.quantile(0.99, store), "p99"),
                target(
                    f"({failed} or vector(0)) / ({q.increase(store, 'count', window='$__rate_interval')} > 0)", "failed"
                ),
                unit="s",
                coloured={"p99": colours.WORKING, "failed": colours.FAILED},
                overrides=[
                    {
                        "matcher": {"id": "byName", "options": "failed"},
                        "properties": [
                            {"id": "unit", "value": "percentunit"},
                            {"id": "custom.axisPlacement", "value": "right"},
                            {"id": "max", "value": 1},
                        ],
                    }
                ],
                empty="No store was used in this time.",
            ),
        ],
    )
