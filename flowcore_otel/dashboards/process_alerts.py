"""Alerts about processes: their workers, their store, their recovery, their telemetry, and whether they are there."""

from __future__ import annotations

from flowcore_otel import names

from .alert import ENOUGH, OF, SERVICE, Alert
from .queries import Source, new_or_more
from .recording import OURS, RECOVERING

__all__ = ["of_store", "of_telemetry", "of_workers"]


def of_workers(q: Source) -> list[Alert]:
    """Return the alerts about threads: stuck, or idle although steps are ready."""
    # The maximum, because processes of two clusters may have one job and instance; they differ in a label of the cluster then.
    busy, abandoned, limit = (
        f"max by (job, instance) ({workers})"
        for workers in (
            q.select(names.WORKERS, state="busy"),
            q.select(names.WORKERS, state="abandoned"),
            q.select(names.WORKERS_LIMIT),
        )
    )
    of_process = q.by("job", "instance", "workflow")
    ready = f"sum {of_process} ({q.select(names.STEPS_READY)})"
    held_back = f"sum {of_process} ({q.select(names.STEPS_HELD_BACK)})"
    startable = f"({ready} - ({held_back} or {ready} * 0))"
    queued = f"sum {of_process} ({q.select(names.RUNS_QUEUED)})"
    started, begun = (
        q.increase(metric, "count", window="5m", by=("job", "instance", "workflow"))
        for metric in (names.WAIT_DURATION, names.QUEUE_DURATION)
    )
    job = "{{ $labels.job }}"
    return [
        Alert(
            "FlowcoreWorkersAbandoned",
            f"count by (job) ({abandoned} > 0 and {abandoned} >= {limit} / 2) > 0",
            "5m",
            "ticket",
            f"Half of the workers of {job} are stuck",
            f"Processes of {job} in which at least half as many threads are stuck in abandoned calls as may work at the "
            "same time: {{ $value }}.",
            "store",
        ),
        Alert(
            "FlowcoreStepsNotStarting",
            f"count {q.by('job', 'workflow')} (({startable} > 0 or {queued} > 0)\nunless ({started} > 0 or {begun} > 0)\n"
            f"and on (job, instance) ({busy} < {limit})) > 0",
            "5m",
            "page",
            f"{OF} has steps that are ready, or runs that are queued, and do not start",
            f"{OF}: processes in which steps have been ready, or runs queued, but none has started, for more than 5 minutes, "
            "although workers are free: {{ $value }}.",
        ),
    ]


def of_store(q: Source) -> list[Alert]:
    """Return the alerts about the store, and about recovery."""
    took, by = names.STORE_DURATION, ("job", "store")
    asked = q.increase(took, "count", window="5m", by=by)
    asked_lately = q.increase(took, "count", window="2m", by=by)
    failed = q.increase(took, "count", window="2m", by=by, outcome="!=success")
    errors = q.increase(took, "count", window="10m", by=by, outcome="!=success")
    answered = q.increase(took, "count", window="5m", by=by, outcome="success")
    p99 = q.quantile(0.99, took, by=by, over="5m")
    of = f"{{{{ $labels.{q.label('store')} }}}} store of {{{{ $labels.job }}}}"
    return [
        Alert(
            "FlowcoreStoreErrors",
            f"({failed} / ({asked_lately} > 0) > 0.05\nand {asked} >= {ENOUGH})\nor\n"
            # On a quiet service a few operations are all that there is. One of them may fail.
            f"(({errors} > 1.5) * 0 + 1\nunless {answered} > 0)",
            "5m",
            "page",
            f"The {of} fails",
            f"The {of}: {{{{ $value | humanizePercentage }}}} of its operations in the last minutes failed. Runs are "
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
        Alert(
            "FlowcoreRecoveryStale",
            f"min by (job) {q.age(names.LAST_RECOVERY)} > 900\nand on (job) {RECOVERING}",
            "1m",
            "ticket",
            "{{ $labels.job }} no longer recovers runs",
            "The last round of recovery of {{ $labels.job }} that succeeded was {{ $value | humanizeDuration }} ago. Before, there "
            "was one every few minutes. Runs whose process dies stay where they are.",
            "store",
        ),
    ]


def of_telemetry(q: Source) -> list[Alert]:
    """Return the alerts about hooks, and about processes that are gone."""
    hook = f"{{{{ $labels.{q.label('hook')} }}}}"
    build = q.select(names.BUILD_INFO)
    share = "count by (job) (up == 0) / count by (job) (up)"
    by_hook = q.by("job", "hook")
    targets = [
        Alert(
            "FlowcoreTargetDown",
            f"{share} > {floor}{ceiling}\nand on (job) {OURS}",
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
            new_or_more(q.select(names.HOOK_ERRORS), "15m", by_hook),
            "",
            "ticket",
            f"Hook {hook} of {{{{ $labels.job }}}} raises errors",
            f"{{{{ $value | humanize }}}} errors of {hook} in {{{{ $labels.job }}}} in the last 15 minutes. Runs are "
            "not affected, but what the hook should have reported is missing.",
            "store",
        ),
        Alert(
            "FlowcoreSeriesCapped",
            new_or_more(q.select(names.CAPPED), "1h", by_hook),
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
