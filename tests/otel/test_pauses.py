"""A step's length is the sum of its attempts, waits and backoffs: nothing in a trace is unexplained."""

import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from flowcore import Backoff, Context, Retry, Workflow

from .conftest import Driver, Spans, trip


def unexplained(spans: Spans, name: str) -> float:
    """Seconds of the span that none of its children covers; negative where they overlap."""
    whole = spans[name]
    return length(whole) - sum(
        length(span) for span in spans.all() if span.parent is not None and span.parent.span_id == whole.context.span_id
    )


def length(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def slow(*, succeeds: bool = True, attempts: int = 2, **options: Any) -> Workflow:
    """A workflow whose first attempt outlives its timeout."""
    wf = Workflow("order")

    def work(ctx: Context) -> int:
        if ctx.attempt == 1:
            while not ctx.cancelled:
                time.sleep(0.005)
            time.sleep(0.05)
            if not succeeds:
                raise ValueError("late")
        return 1

    wf.add_step("work", work, timeout=0.05, retry=Retry(attempts, Backoff.fixed(0.01)), **options)
    return wf


def test_a_result_that_came_late_is_waited_for_and_marked(driver: Driver, spans: Spans) -> None:
    wf = slow()
    run = driver.run(wf)
    assert run["work"] == 1
    assert spans.tree().splitlines() == [
        "run order",
        "└── step work",
        "    ├── attempt work ERROR timeout ! timeout",
        "    └── await work",
    ]
    assert abs(unexplained(spans, "step work")) < 1e-6
    assert (spans["step work"].attributes or {})["flowcore.step.late"] == pytest.approx(
        length(spans["await work"]), abs=0.01
    )


def test_the_wait_for_a_late_failure_comes_before_the_backoff(driver: Driver, spans: Spans) -> None:
    wf = slow(succeeds=False)
    driver.run(wf)
    names = [span.name for span in sorted(spans.all(), key=lambda span: (span.start_time or 0, -length(span)))]
    assert names == ["run order", "step work", "attempt work", "await work", "backoff work", "attempt work"]
    assert abs(unexplained(spans, "step work")) < 1e-6
    assert "flowcore.step.late" not in (spans["step work"].attributes or {})


def test_retries_and_undos_leave_no_gap(driver: Driver, spans: Spans) -> None:
    wf = Workflow("order")
    tries = iter(range(3))

    def undo(ctx: Context) -> None:
        if next(tries) < 2:
            raise OSError

    booked = wf.add_step("book", lambda ctx: 1)
    booked.compensate(retry=Retry(3, Backoff.fixed(0.003)))(undo)

    def pay(ctx: Context) -> None:
        raise ValueError

    wf.add_step("pay", pay, depends_on=booked, retry=Retry(3, Backoff.fixed(0.003)))
    driver.run(wf, check=False)
    for name in ("step pay", "compensate book"):
        assert abs(unexplained(spans, name)) < 1e-6


def test_a_lone_attempt_has_no_children_to_explain(driver: Driver, spans: Spans) -> None:
    driver.run(trip().wf)
    assert spans.tree() == "run trip\n├── step book\n└── step pay → depends_on step book"


def test_every_span_has_the_run_and_the_workflow(driver: Driver, spans: Spans) -> None:
    wf = slow(succeeds=False)
    submitted = driver.submit(wf)
    for span in spans.all():
        attributes = span.attributes or {}
        assert (attributes["flowcore.run.id"], attributes["flowcore.workflow.name"]) == (submitted.id, "order")
