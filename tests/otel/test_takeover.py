"""What only a durable store makes happen. Until one does, the events are made by hand and go through the real Hooks."""

from contextvars import Context, copy_context
from typing import Any

import pytest
from opentelemetry import context as otel, trace
from prometheus_client import CollectorRegistry

from flowcore.events import (
    Event,
    Hooks,
    LeaseLost,
    MaintenanceStarted,
    RunFinished,
    RunRecovered,
    RunRequested,
    RunStarted,
)
from flowcore.status import Status
from flowcore_otel import PrometheusHook, TracingHook

from .conftest import Spans
from .test_trees import golden


class Run:
    """One run's events, told in its context."""

    def __init__(self, hooks: Hooks, run_id: str) -> None:
        self.hooks = hooks
        self.about: tuple[str, str] = ("trip", run_id)
        self.state: dict[Any, Any] = {}
        self.context: Context = copy_context()

    def tell(self, kind: type[Event], at: float, *fields: Any) -> None:
        self.hooks.emit(kind(*self.about, at, self.state, *fields), self.context)


def test_a_takeover_leads_to_the_run_that_died(spans: Spans, registry: CollectorRegistry) -> None:
    hooks = Hooks([TracingHook(spans.provider), PrometheusHook(registry)])
    dead, alive = Run(hooks, "r1"), Run(hooks, "r2")
    carrier: dict[str, str] = {}
    dead.tell(RunRequested, 1.0, "T-1", 1e9, carrier, False)
    dead.tell(RunStarted, 1.0, "T-1", 1e9, carrier, 1, None, {})
    dead.tell(LeaseLost, 40.0)
    dead.tell(RunFinished, 41.0, Status.LOST, 40.0, None, (), ())

    alive.tell(RunRequested, 40.0, "T-1", 1e9 + 39, {}, False)
    alive.tell(RunStarted, 40.0, "T-1", 1e9 + 39, {}, 2, "r1", carrier)
    alive.tell(RunRecovered, 40.5, "forward", ("book",), ("pay",), (), (), ())
    alive.tell(RunFinished, 41.0, Status.SUCCESS, 1.0, None, (), ())

    assert spans.tree() == golden("""
        run trip ERROR _OTHER
        run trip → interrupted_run run trip
        └── recover trip
    """)
    second = spans.named("run trip")[1].attributes or {}
    assert second["flowcore.interrupted_run.id"] == "r1"
    assert second["flowcore.interrupted_run.sampled"] is True
    recovery = dict(spans["recover trip"].attributes or {})
    assert recovery == {"flowcore.recovery.skipped": ("book",), "flowcore.recovery.retried": ("pay",)}

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"workflow": "trip", **labels})

    assert value("flowcore_run_recoveries_total", decision="forward") == 1
    assert value("flowcore_lease_lost_total") == 1
    assert value("flowcore_run_duration_seconds_count", outcome="lost") == 1
    assert value("flowcore_runs_active") == 0


def test_the_engines_own_work_is_kept_out_of_traces(spans: Spans) -> None:
    hooks = Hooks([TracingHook(spans.provider)])
    context = copy_context()
    event = MaintenanceStarted("", "", 1.0, {}, "heartbeat")

    def suppressed() -> bool:
        plain = otel.get_value("suppress_instrumentation")
        return bool(plain) and bool(otel.get_value(otel._SUPPRESS_INSTRUMENTATION_KEY))

    scopes = hooks.enter(event, context)
    assert context.run(suppressed)
    hooks.exit(scopes, context, event, None)
    assert not context.run(suppressed)
    assert not context.run(lambda: trace.get_current_span().get_span_context().is_valid)


@pytest.mark.parametrize("interrupted", [{}, {"traceparent": "nonsense"}])
def test_a_takeover_of_a_run_without_a_trace_has_no_link(spans: Spans, interrupted: dict[str, str]) -> None:
    run = Run(Hooks([TracingHook(spans.provider)]), "r2")
    run.tell(RunRequested, 1.0, "T-1", 1e9, {}, False)
    run.tell(RunStarted, 1.0, "T-1", 1e9, {}, 2, "r1", interrupted)
    run.tell(RunFinished, 2.0, Status.SUCCESS, 1.0, None, (), ())
    assert spans["run trip"].links == ()
    assert spans["run trip"].attributes["flowcore.interrupted_run.sampled"] is False
