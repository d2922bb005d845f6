"""The test kit for users."""

import pytest
from opentelemetry import trace

from flowcore import Engine
from flowcore_otel.testing import capture

from .conftest import trip


def test_a_captured_run_can_be_asked_for_everything() -> None:
    with capture() as telemetry:
        Engine(hooks=telemetry.hooks).run(trip(fails=1).wf, check=False)
        assert telemetry.tree() == (
            "run trip ERROR ValueError\n"
            "├── step book\n"
            "├── step pay ERROR ValueError ! ValueError → depends_on step book\n"
            "└── compensate book → compensates step book\n"
            "    └── attempt book"
        )
        assert telemetry.span("step book").attributes["flowcore.step.outcome"] == "success"
        undos = {"workflow": "trip", "step": "book", "outcome": "success"}
        assert telemetry.metric("flowcore_compensations_total", **undos) == 1
        assert telemetry.metric("flowcore_nonsense_total") is None
        events = [record.log_record.event_name for record in telemetry.log_events]
        assert events == ["flowcore.run.started", "exception"]


def test_two_captures_know_nothing_of_each_other_and_nothing_global_changes() -> None:
    before = trace.get_tracer_provider()
    with capture() as one, capture() as other:
        Engine(hooks=one.hooks).run(trip().wf)
        assert (len(one.spans), other.spans) == (3, [])
    assert trace.get_tracer_provider() is before


def test_what_is_cleared_is_gone() -> None:
    with capture() as telemetry:
        engine, wf = Engine(hooks=telemetry.hooks), trip().wf
        engine.run(wf)
        telemetry.clear()
        assert (telemetry.spans, telemetry.log_events) == ([], [])
        engine.run(wf)
        assert len(telemetry.spans) == 3
        assert telemetry.metric("flowcore_run_duration_seconds_count", workflow="trip", outcome="success") == 2


def test_a_span_that_is_not_there_is_reported_with_those_that_are() -> None:
    with capture() as telemetry:
        with pytest.raises(LookupError, match=r"0 spans have the name 'step book'; there are:\nnone"):
            telemetry.span("step book")
        engine, wf = Engine(hooks=telemetry.hooks), trip().wf
        engine.run(wf)
        engine.run(wf)
        with pytest.raises(LookupError, match=r"2 spans have the name 'step book'; there are:\nrun trip"):
            telemetry.span("step book")
