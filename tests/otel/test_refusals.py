"""Refusals are no errors of the service: `expected=` leaves the statuses of spans Unset."""

from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from flowcore import Backoff, Context, Retry, Workflow

from .conftest import Driver, Spans


class Declined(Exception):
    pass


class DeclinedForGood(Declined):
    pass


def order(*, attempts: int = 1, error: type[Exception] = DeclinedForGood, undo_fails: bool = False) -> Workflow:
    wf = Workflow("order")

    def release(ctx: Context) -> None:
        if undo_fails:
            raise OSError("gone")

    reserved = wf.add_step("reserve", lambda ctx: 1)
    reserved.compensate(retry=1)(release)

    def charge(ctx: Context) -> None:
        raise error("no")

    retry: Any = Retry(attempts, Backoff.fixed(0.001))
    wf.add_step("charge", charge, depends_on=reserved, retry=retry, expected=(Declined,))
    return wf


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_expected_error_leaves_every_status_unset(driver: Driver, spans: Spans, attempts: int) -> None:
    run = driver.run(order(attempts=attempts), check=False)
    assert run.status == "compensated"
    assert [span.name for span in spans.all() if span.status.status_code is not StatusCode.UNSET] == []
    assert [span.name for span in spans.all() if span.events] == []
    for name, outcome in (("step charge", "flowcore.step.outcome"), ("run order", "flowcore.run.outcome")):
        attributes = spans[name].attributes or {}
        assert attributes["error.type"] == f"{__name__}.DeclinedForGood"
        assert attributes[outcome] in {"failure", "compensated"}


def test_any_other_error_is_one(driver: Driver, spans: Spans) -> None:
    driver.run(order(error=ValueError), check=False)
    failed = {span.name for span in spans.all() if span.status.status_code is StatusCode.ERROR}
    assert failed == {"step charge", "run order"}


def test_a_failed_undo_is_an_error_of_the_run(driver: Driver, spans: Spans) -> None:
    run = driver.run(order(undo_fails=True), check=False, idempotency_key="k")
    assert run.status == "compensation_failed"
    failed = {span.name for span in spans.all() if span.status.status_code is StatusCode.ERROR}
    assert failed == {"compensate reserve", "run order"}


@pytest.mark.parametrize("propagation", ["link", "child"])
def test_a_submitted_run_has_a_trace_of_its_own_or_the_callers(driver: Driver, spans: Spans, propagation: str) -> None:
    wf = Workflow("order")
    wf.add_step("charge", lambda ctx: 1)
    with spans.span("POST /orders"):
        driver.submit(wf, propagation=propagation)
    if propagation == "link":
        expected = [
            "POST /orders",
            "└── submit order PRODUCER",
            "run order CONSUMER → request submit order",
            "└── step charge",
        ]
    else:
        expected = [
            "POST /orders",
            "└── submit order PRODUCER",
            "    └── run order CONSUMER",
            "        └── step charge",
        ]
    assert spans.tree().splitlines() == expected
