"""Alerts about runs: how they end, how long they take, and whether they happen at all."""

from __future__ import annotations

from typing import Final

from flowcore_otel import names

from .alert import AGE_LIMIT, ENOUGH, OBJECTIVE_OF_LATENCY, OF, SUCCESS_LIMIT, Alert
from .queries import LEFT, SERVED, UNDONE, Source, new_or_more
from .recording import (
    COUNTED,
    FAILING,
    FAILING_AGAIN,
    FAILING_SINCE,
    FIRST_SUCCESS,
    LAST_SUCCESS,
    PAUSE,
    USUAL_P95,
    USUAL_P99,
    USUALLY_UNDONE,
    runs,
)

__all__ = ["of_runs", "of_schedules"]

_HALF_A_DAY = 11 * 3600
"""seconds between two failures in a row that are enough for an alert; an hour less than half a day, because jobs are seldom on
time to the second"""
_ALMOST_A_DAY: Final = 23 * 3600
_FAILS_EACH_TIME = f"({FAILING} > {FAILING_AGAIN} or {FAILING} - {FAILING_SINCE} > {_HALF_A_DAY})"


def of_runs(q: Source) -> list[Alert]:
    """Return the alerts about the runs of workflows."""
    by = ("job", "workflow")
    ended = q.increase(names.RUNS, window="15m", by=by)
    succeeded = q.increase(names.RUNS, window="15m", by=by, outcome=SERVED)
    refused = q.increase(names.RUNS_REFUSED, window="15m", by=by)
    in_an_hour = q.increase(names.RUNS, window="1h", by=by)
    undone = q.increase(names.RUNS, window="1h", by=by, outcome=UNDONE)
    lately = q.increase(names.RUNS, window="10m", by=by)
    undone_lately = q.increase(names.RUNS, window="10m", by=by, outcome=UNDONE)
    age = f"max {q.by(*by)} {q.age(names.OLDEST_START)}"
    attempts = q.increase(names.STEP_ATTEMPTS, window="10m", by=(*by, "step"))
    failed = q.increase(names.STEP_ATTEMPTS, window="10m", by=(*by, "step"), outcome="!=success")
    retries = q.increase(names.STEP_RETRIES, window="10m", by=(*by, "step"))
    taken_over = q.increase(names.RUN_RECOVERIES, window="15m", by=by)
    offsets = ("", " offset 1h", " offset 2h")
    hourly = [q.increase(names.RUN_RECOVERIES, window="1h", offset=offset, by=by) for offset in offsets]
    step = f"{{{{ $labels.{q.label('step')} }}}}"
    p95 = q.quantile(0.95, names.RUN_DURATION, by=by, over="30m")
    in_half_an_hour = q.increase(names.RUNS, window="30m", by=by)
    counted = f"max {q.by('job', 'workflow', 'status')} ({q.select(names.STORE_RUNS, status=LEFT)})"
    # A process that does not know the workflow, because it was renamed or removed, counts its runs as unknown.
    unknown = q.select(names.STORE_RUNS, status=LEFT, workflow=names.UNKNOWN)
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
            "FlowcoreRunsExpired",
            f"{q.stored('parked', by=('workflow',))} > 0",
            "1h",
            "ticket",
            f"{OF} has parked runs that no process resumes",
            f"{OF}: runs that are parked, and have been for an hour: {{{{ $value }}}}. Is a process with recover_every= running, "
            "does it know the workflow, and can it reach the store?",
            "store",
        ),
        Alert(
            "FlowcoreRunsExpired",
            f"{q.stored('overdue', by=('workflow',))} > 0",
            "10m",
            "ticket",
            f"{OF} has runs that are due and that no process resumes",
            f"{OF}: runs that wait or are queued, and have been due for more than five minutes: {{{{ $value }}}}. Is a process "
            "with recover_every= running, does it know the workflow, and does it keep up?",
            "store",
            {"status": "overdue"},
        ),
        Alert(
            "FlowcoreSurveyMissing",
            f"{COUNTED} > 0\nunless {counted}\nunless on (job, {q.label('status')}) {unknown}",
            "10m",
            "ticket",
            f"{OF} had runs that were held, expired or overdue, and no process counts them now",
            f"{OF}: {{{{ $value }}}} runs were {{{{ $labels.{q.label('status')} }}}} when the store was last counted. The processes "
            "that counted them are gone.",
            "store",
        ),
        Alert(
            "FlowcoreNoSuccess",
            f"({ended} + ({refused} or {ended} * 0) or {refused}) >= 5\nunless {succeeded} > 0",
            "5m",
            "page",
            f"{OF} no longer succeeds",
            f"{OF}: {{{{ $value | humanize }}}} runs ended, or were refused, in the last 15 minutes, and not one "
            "succeeded.",
            "workflow",
        ),
        Alert(
            "FlowcoreRunsFailing",
            f"(time() - {FAILING_SINCE} and {_FAILS_EACH_TIME})\nunless {runs('1h')} >= {ENOUGH}",
            "",
            "ticket",
            f"{OF} fails each time",
            f"{OF}: all of its runs of the last {{{{ $value | humanizeDuration }}}} failed or were undone, at least two "
            "half a day apart, or three.",
            "workflow",
        ),
        Alert(
            "FlowcoreUndoneSurge",
            f"{undone_lately} / ({lately} > 0) > 0.05\n"
            # Without a record of an hour ago, because it is new or Prometheus had paused, the present day counts.
            f"and {undone_lately} / ({lately} > 0) > 3 * ({USUALLY_UNDONE} offset 1h or {USUALLY_UNDONE})\n"
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
        _latency(q, in_half_an_hour),
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
            f"{taken_over} > 10\nor\n({' and '.join(f'{each} > 3' for each in hourly)})",
            "",
            "ticket",
            f"{OF} is taken over from dying processes",
            f"{OF}: {{{{ $value | humanize }}}} runs were taken over because their processes died, in the last quarter of an hour, or "
            "in the last hour if that is the third such hour in a row.",
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
    usual = f"clamp_min(3 * {PAUSE}, 3600)"
    # The counter does not depend on the clock of the process, which may be an hour behind.
    counted = q.increase(names.RUNS, window="1h", by=("job", "workflow"), outcome=SERVED)
    # A workflow that has been known for less than two days has no usual pause yet, nor has one that has only succeeded on one
    # day, such as a batch that was run once.
    known = f"last_over_time({LAST_SUCCESS}[1d] offset 2d) and {LAST_SUCCESS} - {FIRST_SUCCESS} > {_ALMOST_A_DAY}"
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
            f"({since} > {usual} and {known} unless {by_workflow} {limit(SUCCESS_LIMIT)} unless {counted} > 0)\n"
            f"unless {by_both} {_FAILS_EACH_TIME}",
            "5m",
            "ticket",
            f"{OF} should have succeeded by now",
            f"{OF}: its last success was {{{{ $value | humanizeDuration }}}} ago, longer than its limit or than three times its "
            "longest usual pause. Does its schedule still start it?",
            "workflow",
        ),
    ]


def _latency(q: Source, enough: str) -> Alert:
    flow = q.label("workflow")
    objective = OBJECTIVE_OF_LATENCY
    if not q.scraped:
        objective = f'label_replace({objective}, "{flow}", "$1", "workflow", "(.*)")'
    # Clients and Prometheus write 5.0 where people write 5.
    objective = f"max by ({flow}, le) ({_whole(objective)})"
    return Alert(
        "FlowcoreLatencyObjective",
        f"{_within(q)}\n< on ({flow}, le) group_left () {objective}\nand on (job, {flow}) {enough} >= {ENOUGH}",
        "10m",
        "page",
        f"{OF} misses its objective of latency",
        f"{OF}: only {{{{ $value | humanizePercentage }}}} of the runs of the last half hour took at most "
        "{{ $labels.le }} s.",
        "workflow",
    )


def _within(q: Source) -> str:
    """Return a query for the share of runs that took at most `le` seconds, for each bound of the buckets."""
    flow = q.label("workflow")
    if not q.native:
        buckets = _whole(f"rate({q.select(names.RUN_DURATION, 'bucket')}[30m])")
        every = f"sum {q.by('job', 'workflow')} (rate({q.select(names.RUN_DURATION, 'count')}[30m]))"
        return f"sum {q.by('job', 'workflow', 'le')} ({buckets}) / on (job, {flow}) group_left () ({every} > 0)"
    runs_of = f"sum {q.by('job', 'workflow')} (rate({q.select(names.RUN_DURATION, 'bucket')}[30m]))"
    shares = [
        f'label_replace(histogram_fraction(0, {bound:g}, {runs_of}), "le", "{bound:g}", "", "")'
        for bound in names.BUCKETS
    ]
    return f"({' or '.join(shares)})"


def _whole(query: str) -> str:
    """Return the query with le="5" where the series have le="5.0"."""
    return f'label_replace({query}, "le", "$1", "le", "(.+)[.]0+")'


def of_schedules(q: Source) -> list[Alert]:
    """Return the alert about schedules that do not start their runs."""
    by = q.by("job", "workflow", "schedule")
    schedule = f"{{{{ $labels.{q.label('schedule')} }}}}"
    missed = q.select(names.SCHEDULE_MISSED, reason="down|error")
    return [
        Alert(
            "FlowcoreScheduleNotFiring",
            f"time() - max {by} ({q.select(names.SCHEDULE_NEXT)}) > 300\nor\n{new_or_more(missed, '1h', by)}",
            "1m",
            "ticket",
            f"{OF} does not run when schedule {schedule} says so",
            f"{OF}: a fire of schedule {schedule} that is more than five minutes late has not begun, or fires were "
            "missed in the last hour.",
            "workflow",
        ),
    ]
