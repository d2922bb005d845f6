"""The dashboard of the store (latency, errors), of leases and takeovers, and of the cost of telemetry."""

from __future__ import annotations

from flowcore_otel import names

from . import colours, common
from .boards import Section, dashboard
from .fields import Json, Panel, steps, target
from .panels import heatmap, lines, stat
from .queries import WAITING, Source

__all__ = ["store"]


def store(q: Source) -> Json:
    return dashboard(
        q,
        "flowcore-store",
        "flowcore: store and survival",
        "Whether the store is reachable and fast, whether runs survive their processes, and what telemetry costs.",
        [_answering(q), _surviving(q), _telemetry(q)],
        common.variables(q),
        common.versions(q),
    )


def _answering(q: Source) -> Section:
    took = names.STORE_DURATION
    failed = q.increase(took, "count", outcome="!=success")
    return Section(
        "Is the store reachable and fast?",
        [
            stat(
                (0, 0, 7, 8),
                "Successful operations",
                "Of the operations on the store in the time shown.",
                f"1 - ({failed} or vector(0)) / ({q.increase(took, 'count')} > 0)",
                unit="percentunit",
                thresholds=steps(colours.FAILED, (0.99, colours.WAITING), (0.999, colours.SUCCESS)),
                decimals=2,
                empty="No store was used in this time.",
            ),
            lines(
                (7, 0, 17, 8),
                "How long operations take (p99)",
                "One in a hundred takes longer. A claim is made once a run, a checkpoint at every transition of a durable one.",
                target(
                    f"topk(6, {q.quantile(0.99, took, by=('store', 'operation'))})", q.legend("{{store}} {{operation}}")
                ),
                unit="s",
                log=True,
                calcs=["mean", "max"],
                right=True,
                empty="No store was used in this time.",
            ),
            lines(
                (0, 8, 6, 7),
                "Operations per minute",
                "Calls of the store.",
                target(
                    f"topk(6, 60 * {q.rate(took, 'count', by=('store', 'operation'))})",
                    q.legend("{{store}} {{operation}}"),
                ),
                unit="short",
                stacked=True,
                empty="No store was used in this time.",
            ),
            lines(
                (6, 8, 6, 7),
                "Operations that failed",
                "The store could not be reached, or returned an error. Runs are parked while it is unreachable.",
                target(
                    q.increase(took, "count", window="$__rate_interval", by=("store",), outcome="!=success"),
                    q.legend("{{store}}"),
                ),
                unit="short",
                decimals=0,
                color={"mode": "fixed", "fixedColor": colours.FAILED},
                events=True,
                empty="No call of the store has failed.",
            ),
            lines(
                (12, 8, 6, 7),
                "Runs refused",
                "Runs that did not begin because the store failed, or refused their claim. Their callers got an error.",
                target(
                    f"topk(6, {q.increase(names.RUNS_REFUSED, window='$__rate_interval', by=('error_type',))})",
                    q.legend("{{error_type}}"),
                    exemplar=q.traces != "none",
                ),
                unit="short",
                decimals=0,
                events=True,
                empty="No process has reported a workflow.",
            ),
            heatmap(
                (18, 8, 6, 7),
                "All operations, by how long they took",
                "Bright: many took that long.",
                q.increase(took, "bucket", window="$__rate_interval", by=("le",)),
                exemplar=False,
                empty="No store was used in this time.",
            ),
        ],
    )


def _surviving(q: Source) -> Section:
    return Section(
        "Do runs survive?",
        [
            common.takeovers(q, (0, 0, 8, 7)),
            common.leases_lost(q, (8, 0, 8, 7)),
            common.oldest_run(q, (16, 0, 8, 7)),
            lines(
                (0, 7, 10, 7),
                "Runs that wait",
                "As counted in the store. Held ones need a person; expired and overdue ones a process that recovers. The "
                "workflow _unknown stands for those that no engine lists.",
                target(f"sum {q.by('status')} ({q.stored(WAITING)})", q.legend("{{status}}")),
                unit="none",
                coloured=colours.OF_STATUSES,
                empty="No process counts the runs in its store.",
            ),
            stat(
                (10, 7, 4, 7),
                "Last round of recovery",
                "How long ago a process last looked for runs to take over.",
                f"min({q.age(names.LAST_RECOVERY)})",
                unit="s",
                thresholds=steps(colours.SUCCESS, (300, colours.WAITING), (3600, colours.FAILED)),
                empty="No process recovers: give one engine recover_every=.",
            ),
            common.workers(q, (14, 7, 10, 7)),
        ],
    )


def _telemetry(q: Source) -> Section:
    return Section(
        "What does telemetry cost?",
        [
            *_costs(q),
            lines(
                (15, 0, 9, 7),
                "Errors and capped measurements of hooks",
                "Errors that hooks raised (they change nothing for a run), and measurements that went to the series _other "
                "because there were too many.",
                target(
                    f"topk(3, {q.increase(names.HOOK_ERRORS, window='$__rate_interval', by=('hook',))})",
                    q.legend("{{hook}}: errors"),
                ),
                target(
                    f"topk(3, {q.increase(names.CAPPED, window='$__rate_interval', by=('hook',))})",
                    q.legend("{{hook}}: capped"),
                ),
                unit="short",
                decimals=0,
                events=True,
                empty="No process has hooks that are measured.",
            ),
            *(_scrapes(q) if q.scraped else ()),
        ],
    )


def _costs(q: Source) -> list[Panel]:
    return [
        stat(
            (0, 0, 6, 7),
            "Hooks, for each attempt",
            "The time that all hooks took together, divided by the attempts that ended.",
            f"{q.increase(names.HOOK_DURATION)} / ({q.increase(names.STEP_ATTEMPTS)} > 0)",
            unit="s",
            thresholds=steps(colours.SUCCESS, (0.001, colours.WAITING), (0.01, colours.FAILED)),
            empty="No attempt ended in this time.",
        ),
        lines(
            (6, 0, 9, 7),
            "Time spent in hooks",
            "Seconds per second; 1 is a whole core.",
            target(f"topk(6, {q.rate(names.HOOK_DURATION, by=('hook',))})", q.legend("{{hook}}")),
            unit="percentunit",
            empty="No hook took any time.",
        ),
    ]


def _scrapes(q: Source) -> list[Panel]:
    return [
        lines(
            (0, 7, 12, 6),
            "Samples in a scrape",
            "How many series each process exposes.",
            target(f"topk(6, {q.of_target('scrape_samples_scraped')})", "{{instance}}"),
            unit="short",
            empty="Nothing was scraped.",
        ),
        lines(
            (12, 7, 12, 6),
            "How long a scrape takes",
            "Scraping does not stop runs, but a slow one says that there are too many series.",
            target(f"topk(6, {q.of_target('scrape_duration_seconds')})", "{{instance}}"),
            unit="s",
            empty="Nothing was scraped.",
        ),
    ]
