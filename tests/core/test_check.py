"""`wf.check()`: what a careful colleague would say of a definition."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from types import GenericAlias
from typing import Any, NamedTuple
from unittest.mock import AsyncMock

import pytest

from flowcore import Backoff, Context, DependencyCycle, Retry, Workflow

from .conftest import Drive


def nothing(ctx: Context) -> None: ...


async def waits(ctx: Context) -> None: ...


def test_a_definition_with_nothing_to_say_about_is_silent() -> None:
    wf = Workflow("quiet")
    wf.add_step("book", nothing, compensate=nothing)
    wf.add_step("pay", waits, depends_on="book", retry=Retry(2, Backoff.fixed(1)), timeout=2, step_timeout=10)
    assert wf.check() == []


def test_an_effect_that_a_later_failure_leaves_standing_is_reported() -> None:
    wf = Workflow("trip")
    wf.add_step("book", nothing)
    wf.add_step("pay", nothing, depends_on="book")
    (said,) = wf.check()
    assert said.startswith("step 'book' has no undo, and 'pay' after it can fail")
    assert "@book.compensate" in said


def test_a_sync_step_with_a_timeout_learns_that_its_thread_continues() -> None:
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


def test_retries_that_cannot_fit_into_their_limits_are_reported_with_the_sum() -> None:
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


class Connection:
    """What no store keeps."""


class Ticket(NamedTuple):
    seat: str


def test_steps_with_the_same_remedy_share_one_sentence() -> None:
    wf = Workflow("etl")
    for number in range(30):
        wf.add_step(f"s{number}", nothing, depends_on=f"s{number - 1}" if number else (), timeout=1)
    undo, timeouts = wf.check()
    assert undo.startswith("steps 's0', 's1', 's2', 's3', 's4' and 24 more have no undo")
    assert timeouts.startswith("steps 's0', 's1', 's2', 's3', 's4' and 25 more are sync and have timeouts")


def test_a_step_without_effect_needs_no_undo() -> None:
    wf = Workflow("etl")
    wf.add_step("read", nothing, effect=False)
    wf.add_step("load", nothing, depends_on="read")
    assert wf.check() == []
    whole = Workflow("whole")
    whole.include(wf)
    assert whole.check() == []


def test_a_workflow_that_undoes_nothing_needs_no_undo() -> None:
    wf = Workflow("etl", undo="never")
    wf.add_step("read", nothing)
    wf.add_step("load", nothing, depends_on="read")
    assert wf.check() == []


def test_a_result_that_no_durable_store_keeps_is_reported_from_its_annotation() -> None:
    def connects(ctx: Context) -> list[Connection] | None:
        return None

    async def tickets(ctx: Context) -> dict[str, tuple[Ticket, ...]]:
        return {}

    wf = Workflow("w")
    wf.add_step("connect", connects)
    wf.add_step("tickets", tickets)
    wf.add_step("nothing", nothing)
    (said,) = wf.check()
    assert said.startswith("step 'connect' returns tests.core.test_check.Connection, which durable stores cannot keep.")


@pytest.mark.parametrize("kind", [Generator, Iterator, Callable, AsyncIterator, AsyncGenerator])
def test_a_result_that_lives_in_its_process_is_reported_from_its_annotation(kind: Any) -> None:
    def streams(ctx: Context) -> Any: ...

    for annotation in (kind, GenericAlias(list, (kind,))):
        streams.__annotations__["return"] = annotation
        wf = Workflow("w")
        wf.add_step("stream", streams)
        (said,) = wf.check()
        assert said.startswith(
            f"step 'stream' returns collections.abc.{kind.__name__}, which durable stores cannot keep."
        )


@pytest.mark.parametrize("kind", ["a mock", "a function that wraps itself"])
def test_a_function_without_annotations_that_can_be_read_is_checked_and_run(kind: str) -> None:
    def itself(ctx: Context) -> int:
        return 1

    itself.__wrapped__ = itself  # type: ignore[attr-defined]
    wf = Workflow("w")
    wf.add_step("a", AsyncMock(return_value=1) if kind == "a mock" else itself)
    assert wf.check() == []
    assert Drive("asyncio")(wf)["a"] == 1
