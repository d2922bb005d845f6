"""From a Run to its trace."""

from typing import Any

import pytest

from flowcore_otel import original_trace_id, trace_id

from .conftest import Driver, MakeDriver, Spans, trip


def test_a_run_leads_to_its_trace(driver: Driver, spans: Spans) -> None:
    run = driver.run(trip().wf)
    assert trace_id(run) == f"{spans['run trip'].context.trace_id:032x}"
    assert original_trace_id(run) is None


def test_a_failed_run_does_too(driver: Driver, spans: Spans) -> None:
    run = driver.run(trip(fails=1).wf, check=False)
    assert trace_id(run) == f"{spans['run trip'].context.trace_id:032x}"


def test_a_replay_leads_to_the_original(driver: Driver, spans: Spans) -> None:
    wf = trip().wf
    first = driver.run(wf, idempotency_key="T-1")
    with spans.span("caller") as caller:
        again = driver.run(wf, idempotency_key="T-1")
    assert again.replayed
    assert original_trace_id(again) == trace_id(again) == trace_id(first)
    assert trace_id(first) != f"{caller.get_span_context().trace_id:032x}"


def test_without_a_tracing_hook_there_is_none(make_driver: MakeDriver) -> None:
    driver, wf = make_driver(), trip().wf
    assert trace_id(driver.run(wf, idempotency_key="T-1")) is None
    assert original_trace_id(driver.run(wf, idempotency_key="T-1")) is None


@pytest.mark.parametrize("stored", ["", "nonsense", f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'A' * 32}-{'1' * 16}-01"])
def test_a_carrier_that_makes_no_sense_is_none(driver: Driver, stored: str) -> None:
    run: Any = driver.run(trip().wf)
    run.carrier = {"traceparent": stored}
    assert trace_id(run) is None
