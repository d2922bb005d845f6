"""What only a durable store makes happen. Until one does, the events are made by hand and go through the real Hooks."""

from contextvars import Context, copy_context
from typing import Any

import pytest
from opentelemetry import context as otel, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

from flowcore.events import (
    CompensationFinished,
    CompensationStarted,
    Event,
    Hooks,
    LeaseLost,
    MaintenanceStarted,
    RunFinished,
    RunRecovered,
    RunRequested,
    RunStarted,
    StepFinished,
    StepStarted,
)
from flowcore.status import Status
from flowcore_otel import PrometheusHook, TracingHook
from flowcore_otel.testing import span_tree

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

    def begin(self, at: float, interrupted: Any = None, *, recovering: bool = False) -> dict[str, str]:
        """Returns the carrier, for the process that resumes the run. `interrupted`: the carrier of the run to resume."""
        carrier: dict[str, str] = {}
        run_id = None if interrupted is None else "r1"
        self.tell(RunRequested, at, "T-1", 1e9 + at, carrier, False, recovering)
        self.tell(RunStarted, at, "T-1", 1e9 + at, carrier, 1, run_id, interrupted or {}, int)
        return carrier

    def step(self, name: str, at: float, *depends_on: str, ends: bool = True) -> dict[str, str]:
        """Answers its carrier."""
        carrier: dict[str, str] = {}
        self.tell(StepStarted, at, name, 0.0, depends_on, 1, "f", carrier)
        if ends:
            self.tell(StepFinished, at + 1, name, Status.SUCCESS, 1.0, 1, 0.0, 0.0, None, depends_on, 1)
        return carrier

    def undo(self, name: str, at: float, order: int) -> None:
        self.tell(CompensationStarted, at, name, order, "ship", 1, "f")
        self.tell(CompensationFinished, at + 1, name, order, "ship", Status.SUCCESS, 1.0, 1, 0.0, None)


def test_a_takeover_leads_to_the_run_that_died(spans: Spans, registry: CollectorRegistry) -> None:
    hooks = Hooks([TracingHook(spans.provider), PrometheusHook(registry)])
    dead = Run(hooks, "r1")
    carrier = dead.begin(1.0)
    book = dead.step("book", 1.0)
    dead.tell(LeaseLost, 40.0)
    dead.tell(RunFinished, 41.0, Status.LOST, 40.0, None, (), ())

    with spans.span("POST /trips"):
        alive = Run(hooks, "r2")
    alive.begin(40.0, carrier)
    alive.tell(RunRecovered, 40.5, "forward", ("book",), ("pay",), (), (), (), {"book": book})
    alive.step("pay", 41.0, "book")
    alive.step("ship", 42.0, "pay", "book")
    alive.tell(RunFinished, 43.0, Status.SUCCESS, 3.0, None, (), ())

    assert spans.tree() == golden("""
        run trip ERROR _OTHER
        └── step book
        POST /trips
        └── run trip → interrupted_run run trip
            ├── recover trip → interrupted_run run trip
            ├── step pay → depends_on step book
            └── step ship → depends_on step pay → depends_on step book
    """)
    second = spans.named("run trip")[1].attributes or {}
    assert second["flowcore.interrupted_run.id"] == "r1"
    assert second["flowcore.interrupted_run.sampled"] is True
    assert second["flowcore.run.critical_path"] == ("pay", "ship")
    recovery = dict(spans["recover trip"].attributes or {})
    assert recovery["flowcore.run.id"] == second["flowcore.run.id"]
    assert (recovery["flowcore.recovery.skipped"], recovery["flowcore.recovery.retried"]) == (("book",), ("pay",))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"workflow": "trip", **labels})

    assert value("flowcore_run_recoveries_total", decision="forward") == 1
    assert value("flowcore_lease_lost_total") == 1
    assert value("flowcore_run_duration_seconds_count", outcome="lost") == 1
    assert value("flowcore_runs_active") == 0


def test_an_undo_after_a_takeover_leads_to_its_step_in_the_run_that_died(spans: Spans) -> None:
    hooks = Hooks([TracingHook(spans.provider)])
    dead, alive = Run(hooks, "r1"), Run(hooks, "r2")
    carrier = dead.begin(1.0)
    carriers = {"book": dead.step("book", 1.0), "pay": dead.step("pay", 2.0, "book")}
    dead.step("ship", 3.0, "pay", ends=False)

    with spans.span("recovery loop"):
        alive.context = copy_context()
    alive.begin(40.0, carrier, recovering=True)
    alive.tell(RunRecovered, 40.5, "undo", (), (), ("ship",), ("ship", "pay", "book"), (), carriers)
    for number, step in enumerate(("ship", "pay", "book")):
        alive.undo(step, 41.0 + number, number + 1)
    alive.tell(RunFinished, 45.0, Status.COMPENSATED, 5.0, ValueError("lost"), (), ("ship", "pay", "book"))

    # The dead run's own span, and that of the step in flight, died with their process. No caller asked for the second run.
    (whole,) = spans.named("run trip")
    assert whole.parent is None
    taken_over = span_tree(span for span in spans.all() if span.context.trace_id == whole.context.trace_id)
    assert taken_over.splitlines() == [
        "run trip ERROR ValueError ! ValueError → interrupted_run (elsewhere)",
        "├── recover trip → interrupted_run (elsewhere)",
        "├── compensate ship",
        "├── compensate pay → compensates (elsewhere)",
        "└── compensate book → compensates (elsewhere)",
    ]
    linked = {spans[f"compensate {name}"].links[0].context.span_id for name in carriers}
    assert linked == {spans[f"step {name}"].context.span_id for name in carriers}
    recovery = dict(spans["recover trip"].attributes or {})
    assert recovery["flowcore.recovery.verified"] == ("ship",)
    assert recovery["flowcore.recovery.undone"] == ("ship", "pay", "book")


def test_only_what_was_stored_and_makes_sense_is_linked(spans: Spans) -> None:
    hooks = Hooks([TracingHook(spans.provider)])
    alive = Run(hooks, "r2")
    alive.begin(1.0, {})
    unsampled = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    alive.tell(
        *(RunRecovered, 1.5, "forward", ("a", "b", "c"), (), (), (), ()),
        {"a": {"traceparent": "nonsense"}, "b": {}, "c": unsampled},
    )
    alive.step("d", 2.0, "a", "b", "c", "never heard of")
    alive.step("e", 3.0, "a")
    alive.undo("b", 4.0, 1)
    assert [span.links for span in spans.all()] == [()] * 4


def test_a_step_past_max_step_spans_stores_no_context(spans: Spans) -> None:
    run = Run(Hooks([TracingHook(spans.provider, max_step_spans=1)]), "r1")
    run.begin(1.0)
    assert list(run.step("a", 1.0)) == ["traceparent"]
    assert run.step("b", 2.0) == {}


def test_the_carrier_of_a_step_names_its_span(spans: Spans) -> None:
    run = Run(Hooks([TracingHook(spans.provider)]), "r1")
    run.begin(1.0)
    carrier = run.step("a", 1.0)
    context = trace.get_current_span(TraceContextTextMapPropagator().extract(carrier)).get_span_context()
    reported = spans["step a"].context
    assert (context.trace_id, context.span_id, context.trace_flags) == (
        reported.trace_id,
        reported.span_id,
        reported.trace_flags,
    )


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
    run.begin(1.0, interrupted)
    run.tell(RunFinished, 2.0, Status.SUCCESS, 1.0, None, (), ())
    assert spans["run trip"].links == ()
    assert spans["run trip"].attributes["flowcore.interrupted_run.sampled"] is False
