"""PrometheusHook against the same counters, gauges, histograms and exemplars written by hand, on the chain of ten."""

from __future__ import annotations

from contextvars import Token
from dataclasses import replace
from functools import partial
from typing import Any

from opentelemetry import context as otel, trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from flowcore_otel import PrometheusHook

from .harness import Options, Report, Target, compare
from .subjects import FlowcoreAsync, FlowcoreThreads, Run, Subject
from .telemetry_by_hand import measured
from .w1_chain_of_10 import work

__all__ = ["measure"]


class Metered(FlowcoreThreads):
    name = "PrometheusHook"

    def __init__(self) -> None:
        super().__init__([PrometheusHook(CollectorRegistry())])


class MeteredAsync(FlowcoreAsync):
    name = "PrometheusHook, async"

    def __init__(self) -> None:
        super().__init__([PrometheusHook(CollectorRegistry())])


class WithExemplars(Metered):
    name = "PrometheusHook, exemplars"


class WithExemplarsAsync(MeteredAsync):
    name = "PrometheusHook, exemplars, async"


PAIRS = (
    (Metered, measured(is_async=False, exemplars=False)),
    (WithExemplars, measured(is_async=False, exemplars=True)),
    (MeteredAsync, measured(is_async=True, exemplars=False)),
    (WithExemplarsAsync, measured(is_async=True, exemplars=True)),
)
TARGETS = tuple(Target(ours.name, 1.2, by_hand.name) for ours, by_hand in PAIRS)
SUBJECTS = (FlowcoreThreads, FlowcoreAsync, *(subject for pair in PAIRS for subject in pair))

_span = TracerProvider().get_tracer("the.caller").start_span("caller")


def in_callers_span(subject: Subject, run: Run) -> Run:
    """Exemplars need a span: the caller's own is current around the runs of those subjects that give exemplars."""
    if "exemplars" not in subject.name:
        return run
    context = trace.set_span_in_context(_span)

    async def within_async() -> None:
        token = otel.attach(context)
        await run()
        otel.detach(token)

    def within() -> None:
        token: Token[Any] = otel.attach(context)
        run()
        otel.detach(token)

    return within_async if subject.is_async else within


def measure(options: Options) -> Report:
    options = replace(options, subjects=tuple(map(partial, SUBJECTS)), only=())
    title = "metrics of a chain of 10 no-op steps"
    return compare(
        "prometheus",
        title,
        work,
        TARGETS,
        options,
        per_step=True,
        relative=("Engine", "AsyncEngine"),
        whole=in_callers_span,
    )
