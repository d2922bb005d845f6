"""`wf.check()`: what a careful colleague would say of a definition."""

from __future__ import annotations

import pytest

from flowcore import Backoff, Context, DependencyCycle, Retry, Workflow


def nothing(ctx: Context) -> None: ...


async def waits(ctx: Context) -> None: ...


def test_a_definition_with_nothing_to_say_about_is_silent() -> None:
    wf = Workflow("quiet")
    wf.add_step("book", nothing, compensate=nothing)
    wf.add_step("pay", waits, depends_on="book", retry=Retry(2, Backoff.fixed(1)), timeout=2, step_timeout=10)
    assert wf.check() == []


def test_an_effect_that_a_later_failure_leaves_standing_is_told() -> None:
    wf = Workflow("trip")
    wf.add_step("book", nothing)
    wf.add_step("pay", nothing, depends_on="book")
    (said,) = wf.check()
    assert said.startswith("step 'book' has no undo, and 'pay' after it can fail")
    assert "@book.compensate" in said


def test_a_sync_step_with_a_timeout_is_told_that_its_thread_goes_on() -> None:
    wf = Workflow("slow")
    wf.add_step("wait", nothing, timeout=2)
    (said,) = wf.check()
    assert said.startswith("step 'wait' is sync and has a timeout of 2 s")
    assert "ctx.cancelled" in said


def test_a_step_past_the_pivot_needs_retries_and_no_undo() -> None:
    wf = Workflow("order")
    wf.add_step("charge", nothing, pivot=True)
    wf.add_step("ship", nothing, depends_on="charge")
    wf.add_step("mail", nothing, depends_on="ship", retry=5)
    (said,) = wf.check()
    assert said.startswith("step 'ship' comes after the pivot and is not retried")


def test_retries_that_cannot_fit_into_their_limits_are_told_with_the_sum() -> None:
    wf = Workflow("late", deadline=20)
    retry = Retry(4, Backoff.exponential(2, jitter=False))
    wf.add_step("ask", waits, retry=retry, timeout=3, step_timeout=10)
    first, second = wf.check()
    assert "may take 26 s at worst (4 attempts and the waits between them), more than its step_timeout of 10 s" in first
    assert "more than the workflow's deadline of 20 s" in second


def test_a_definition_that_cannot_run_is_refused() -> None:
    wf = Workflow("circle")
    wf.add_step("a", nothing, depends_on="b")
    wf.add_step("b", nothing, depends_on="a")
    with pytest.raises(DependencyCycle):
        wf.check()
