"""`when=` (semantics 4): a predicate that skips a step."""

import asyncio
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    AsyncStepInSyncEngine,
    Context,
    Engine,
    NoResult,
    RunTimeout,
    Status,
    StepCancelled,
    Workflow,
)

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, run_async


def test_a_skipped_step_does_not_run_and_its_dependants_do(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("skip")
    a = ledger.add(wf, "a", when=lambda ctx: False)
    b = ledger.add(wf, "b", depends_on=a)
    run = drive(wf)
    assert ledger == ["b"]
    assert (run.status, run.steps["a"].status, run.steps["a"].attempts) == (Status.SUCCESS, Status.SKIPPED, 0)
    assert run[b] == "b"
    with pytest.raises(NoResult, match="skipped by its when="):
        run[a]


def test_when_says_yes(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("go")
    ledger.add(wf, "a", when=lambda ctx: ctx["go"])
    assert drive(wf, {"go": True}).steps["a"].status is Status.SUCCESS


@pytest.mark.parametrize("key", [None, "k"])
def test_an_answer_without_a_truth_value_fails_the_step(drive: Drive, ledger: Ledger, key: str | None) -> None:
    """As the comparison of an array does, or an expression of a query."""

    class Several:
        def __bool__(self) -> bool:
            raise ValueError("the truth value of several is ambiguous")

    wf = Workflow("several")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", when=lambda ctx: Several())
    run = drive(wf, idempotency_key=key, check=False)
    assert (run.status, run.failed_step, str(run.error)) == (
        Status.COMPENSATED,
        "b",
        "the truth value of several is ambiguous",
    )
    assert ledger == ["a", "-a"]


def test_when_is_asked_once_after_the_dependencies_with_a_context(drive: Drive, ledger: Ledger) -> None:
    asked: list[tuple[str, object]] = []

    def when(ctx: Context) -> bool:
        asked.append((ctx.step, ctx["a"]))
        return True

    wf = Workflow("once")
    ledger.add(wf, "a")
    tries = iter([ValueError("first"), None])

    def flaky(ctx: Context) -> None:
        error = next(tries)
        if error is not None:
            raise error

    wf.add_step("b", flaky, depends_on="a", when=when, retry=2)
    drive(wf)
    assert asked == [("b", "a")]


def test_a_predicate_that_raises_fails_the_step_and_is_never_retried(drive: Drive, ledger: Ledger) -> None:
    asked: list[str] = []

    def when(ctx: Context) -> bool:
        asked.append("b")
        raise LookupError("no idea")

    wf = Workflow("raises")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", when=when, retry=3)
    with pytest.raises(LookupError, match="no idea"):
        drive(wf)
    assert asked == ["b"]
    assert ledger == ["a", "-a"]


def test_a_step_whose_predicate_raised_was_never_attempted_so_it_is_not_undone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("raises", undo="attempted")
    ledger.add(wf, "a", when=lambda ctx: 1 / 0)
    run = drive(wf, check=False)
    assert (run.status, run.steps["a"].status, ledger) == (Status.FAILURE, Status.FAILURE, [])


def test_a_skipped_step_is_never_undone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("skip", undo="attempted")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", when=lambda ctx: False)
    ledger.add(wf, "c!", depends_on="b", raises=ValueError("c"), undoable=False)
    run = drive(wf, check=False)
    assert run.status is Status.COMPENSATED
    assert ledger == ["a", "c!", "-a"]


def test_a_base_exception_from_the_predicate_cancels_the_run(drive: Drive, ledger: Ledger) -> None:
    def when(ctx: Context) -> bool:
        raise SystemExit(3)

    wf = Workflow("exit")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", when=when)
    with pytest.raises(SystemExit):
        drive(wf)
    assert ledger.standing == {}


def test_a_cancellederror_from_the_predicate_fails_the_step(drive: Drive) -> None:
    def when(ctx: Context) -> bool:
        raise asyncio.CancelledError

    wf = Workflow("cancelled")
    wf.add_step("a", lambda ctx: 1, when=when)
    with pytest.raises(StepCancelled, match="step 'a' raised CancelledError"):
        drive(wf)


def test_a_plain_function_that_answers_with_a_coroutine_is_awaited_by_asyncengine() -> None:
    async def never(ctx: Context) -> bool:
        return False

    async def main() -> None:
        wf = Workflow("lambda")
        wf.add_step("a", lambda ctx: 1, when=lambda ctx: never(ctx))  # noqa: PLW0108 - the point
        assert (await AsyncEngine().run(wf)).steps["a"].status is Status.SKIPPED

    run_async(main)


def test_a_coroutine_that_a_predicate_answers_with_is_cancelled_with_its_run(ledger: Ledger) -> None:
    async def main() -> None:
        began = asyncio.Event()

        async def waits() -> bool:
            began.set()
            await asyncio.sleep(PATIENCE)
            return True

        wf = Workflow("lambda")
        ledger.add(wf, "a", when=lambda ctx: waits())
        task = asyncio.create_task(AsyncEngine().run(wf))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), PATIENCE / 2)
        assert ledger == []

    run_async(main)


def test_an_async_predicate_makes_the_workflow_async() -> None:
    async def never(ctx: Context) -> bool:
        return False

    wf = Workflow("async when")
    wf.add_step("a", lambda ctx: 1, when=never)
    with pytest.raises(AsyncStepInSyncEngine, match="step 'a'"):
        Engine().run(wf)


@pytest.mark.parametrize("predicate", ["sync", "async", "coroutine"])
def test_the_deadline_ends_a_when_that_does_not_return(
    live: MakeLive, ledger: Ledger, gate: Gate, predicate: str
) -> None:
    engine = live()

    async def never(_: Context) -> bool:
        await asyncio.sleep(PATIENCE)
        return True

    def hangs(_: Context) -> bool:
        gate.wait()
        return True

    def returns_a_coroutine(ctx: Context) -> Any:
        return never(ctx)

    if predicate != "sync" and engine.kind == "threads":
        pytest.skip("threads run no async predicates")
    wf = ledger.chain("a")
    when: Any = {"sync": hangs, "async": never, "coroutine": returns_a_coroutine}[predicate]
    ledger.add(wf, "b", depends_on="a", when=when)
    run = engine.run(wf, deadline=0.1, check=False)
    assert isinstance(run.error, RunTimeout)
    assert str(run.error) == f"the when= of step 'b' was still running at the deadline of run {run.id}."
    assert (run.status, run.steps["b"].status, run.steps["b"].attempts) == (Status.COMPENSATED, Status.FAILURE, 0)
    assert ledger == ["a", "-a"]
