"""TracingHook against the same spans made by hand, and against plain ones, on the chain of ten: sampled, and not sampled."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from flowcore_otel import TracingHook

from .harness import Options, Report, Row, Target, compare
from .subjects import FlowcoreAsync, FlowcoreThreads
from .telemetry_by_hand import Plain, PlainAsync, Spans, SpansAsync, Unsampled, UnsampledAsync
from .w1_chain_of_10 import work

__all__ = ["measure"]


class Traced(FlowcoreThreads):
    name = "TracingHook"
    sampler: Sampler = ALWAYS_ON

    def __init__(self) -> None:
        super().__init__([TracingHook(TracerProvider(sampler=self.sampler))])


class TracedAsync(FlowcoreAsync):
    name = "TracingHook, async"
    sampler: Sampler = ALWAYS_ON

    def __init__(self) -> None:
        super().__init__([TracingHook(TracerProvider(sampler=self.sampler))])


class TracedUnsampled(Traced):
    name = "TracingHook, unsampled"
    sampler = ALWAYS_OFF


class TracedUnsampledAsync(TracedAsync):
    name = "TracingHook, unsampled, async"
    sampler = ALWAYS_OFF


SUBJECTS = (
    *(FlowcoreThreads, Plain, Spans, Traced, Unsampled, TracedUnsampled),
    *(FlowcoreAsync, PlainAsync, SpansAsync, TracedAsync, UnsampledAsync, TracedUnsampledAsync),
)
TARGETS = (
    Target(Traced.name, 1.15, Spans.name),
    Target(TracedAsync.name, 1.15, SpansAsync.name),
    Target(TracedUnsampled.name, 1.2, Unsampled.name),
    Target(TracedUnsampledAsync.name, 1.2, UnsampledAsync.name),
)
OVER_PLAIN = ((Traced.name, Plain.name), (TracedAsync.name, PlainAsync.name))
OVER_SILENT = ((TracedUnsampled.name, FlowcoreThreads.name), (TracedUnsampledAsync.name, FlowcoreAsync.name))


def measure(options: Options) -> Report:
    options = replace(options, subjects=tuple(map(partial, SUBJECTS)), only=())
    title = "spans of a chain of 10 no-op steps; not exported"
    report = compare("tracing", title, work, TARGETS, options, per_step=True, relative=("Engine", "AsyncEngine"))
    figures = {row.subject: row.figure for row in report.rows}
    for subject, plain in OVER_PLAIN:
        times = figures[subject] / figures[plain]
        report.rows.append(Row(f"{subject}, × {plain}", times, target=Target(subject, 2.0, plain), against=times))
    for subject, silent in OVER_SILENT:
        over = figures[subject] - figures[silent]
        target = Target(subject, 2.0, "1 µs")
        report.rows.append(Row(f"{subject}, less {silent}", over, target=target, against=over))
    return report
