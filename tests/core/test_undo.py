"""Undoing (semantics 10 to 13): what is undone, in which order, with what, and what a failed undo means."""

import asyncio
import contextvars
import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, strategies as st

from flowcore import (
    Backoff,
    CompensationFailed,
    Context,
    Fatal,
    FlowcoreError,
    Retry,
    Status,
    UndoInterrupted,
    Workflow,
)
from flowcore.events import AttemptFinished, BackoffStarted, CompensationFinished, CompensationStarted
from flowcore.retry import waits
from flowcore.stores import MemoryStore

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, notes, of_type

# -- what --------------------------------------------------------------------------------------------------------------


def test_every_step_that_is_done_is_undone(drive: Drive, ledger: Ledger) -> None:
    run = drive(ledger.chain("a", "b", "c!"), check=False)
    assert (run.status, run.undone) == (Status.COMPENSATED, ("b", "a"))
    assert ledger == ["a", "b", "c", "-b", "-a"]


def test_a_step_that_raised_is_not_undone_unless_asked_for(drive: Drive, ledger: Ledger) -> None:
    assert drive(ledger.chain("a!"), check=False).status is Status.FAILURE
    assert ledger == ["a"]


def test_undo_attempted_on_the_workflow_undoes_the_step_that_raised_too(drive: Drive, ledger: Ledger) -> None:
    drive(ledger.chain("a", "b!", undo="attempted"), check=False)
    assert ledger == ["a", "b", "-b", "-a"]


def test_undo_on_the_step_goes_before_the_workflows(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w", undo="attempted")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"), undo="done")
    drive(wf, check=False)
    assert ledger == ["a", "b", "-a"]
    other = Workflow("w")
    ledger.clear()
    ledger.add(other, "b", raises=ValueError("b"), undo="attempted")
    drive(other, check=False)
    assert ledger == ["b", "-b"]


def test_steps_without_an_undo_are_left_alone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", undoable=False)
    ledger.add(wf, "c", depends_on="b", raises=ValueError("c"))
    run = drive(wf, check=False)
    assert ledger == ["a", "b", "c", "-a"]
    assert run.steps["b"].undo is None


def test_a_run_that_succeeds_undoes_nothing(drive: Drive, ledger: Ledger) -> None:
    assert drive(ledger.chain("a", "b")).undone == ()
    assert ledger == ["a", "b"]


# -- order -------------------------------------------------------------------------------------------------------------


def test_undo_goes_in_reverse_order_of_completion_not_of_definition(live: MakeLive, ledger: Ledger) -> None:
    wf, b_done = Workflow("order"), Gate()
    ledger.add(wf, "a", first=lambda ctx: b_done.wait())
    b = ledger.add(wf, "b")
    wf.add_step("opens", lambda ctx: b_done.set(), depends_on=b)
    ledger.add(wf, "c", depends_on=["a", "b"], raises=ValueError("c"))
    assert live().run(wf, check=False).undone == ("a", "b")
    assert ledger == ["b", "a", "c", "-a", "-b"]


def test_sequential_undos_never_overlap(live: MakeLive) -> None:
    wf, lock = Workflow("sequential"), threading.Lock()

    def undo(ctx: Context) -> None:
        assert lock.acquire(blocking=False)
        threading.Event().wait(0.001)
        lock.release()

    for number in range(6):
        wf.add_step(str(number), lambda ctx: 1, compensate=undo)
    wf.add_step("fails", lambda ctx: 1 / 0, depends_on=[str(number) for number in range(6)])
    assert len(live().run(wf, check=False).undone) == 6


def test_parallel_undo_undoes_a_step_once_all_its_dependants_are_undone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("parallel", parallel_undo=True)
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a")
    ledger.add(wf, "c", depends_on="a")
    ledger.add(wf, "d", depends_on=["b", "c"])
    ledger.add(wf, "e", depends_on="d", raises=ValueError("e"))
    run = drive(wf, check=False)
    assert set(run.undone) == {"a", "b", "c", "d"}
    assert (run.undone[0], run.undone[-1]) == ("d", "a")


def test_parallel_undos_run_at_once(live: MakeLive) -> None:
    wf, barrier = Workflow("parallel", parallel_undo=True), threading.Barrier(3)
    for name in "abc":
        wf.add_step(name, lambda ctx: 1, compensate=lambda ctx: barrier.wait(PATIENCE))
    wf.add_step("fails", lambda ctx: 1 / 0, depends_on=["a", "b", "c"])
    assert live().run(wf, check=False).status is Status.COMPENSATED


def test_parallel_undo_keeps_to_max_parallel(live: MakeLive) -> None:
    wf, lock = Workflow("parallel", parallel_undo=True, max_parallel=1), threading.Lock()

    def undo(ctx: Context) -> None:
        assert lock.acquire(blocking=False)
        threading.Event().wait(0.001)
        lock.release()

    for number in range(5):
        wf.add_step(str(number), lambda ctx: 1, compensate=undo)
    wf.add_step("fails", lambda ctx: 1 / 0, depends_on=[str(number) for number in range(5)])
    assert live().run(wf, check=False).status is Status.COMPENSATED


def test_parallel_undo_passes_through_steps_without_an_undo(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("gap", parallel_undo=True)
    ledger.add(wf, "a")
    ledger.add(wf, "gap", depends_on="a", undoable=False)
    ledger.add(wf, "b", depends_on="gap")
    ledger.add(wf, "skipped", depends_on="b", when=lambda ctx: False)
    ledger.add(wf, "c", depends_on="skipped", raises=ValueError("c"))
    ledger.add(wf, "never", depends_on="c")
    assert drive(wf, check=False).undone == ("b", "a")


def test_a_parallel_undo_that_fails_does_not_keep_the_others_from_running(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("parallel", parallel_undo=True)
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", undo_raises=ValueError("b stays"))
    ledger.add(wf, "c", depends_on="a")
    ledger.add(wf, "d", depends_on=["b", "c"], raises=LookupError("d"))
    run = drive(wf, check=False)
    assert (run.status, set(run.undone)) == (Status.COMPENSATION_FAILED, {"a", "c"})
    assert run.steps["b"].undo is Status.FAILURE


@st.composite
def failing_graphs(draw: st.DrawFn) -> tuple[list[set[int]], set[int], bool]:
    size = draw(st.integers(1, 8))
    graph = [draw(st.sets(st.integers(0, number - 1))) if number else set[int]() for number in range(size)]
    return graph, draw(st.sets(st.integers(0, size - 1))), draw(st.booleans())


@given(plan=failing_graphs(), parallel_undo=st.booleans(), kind=st.sampled_from(["threads", "coroutines"]))
def test_whatever_fails_everything_done_is_undone_after_its_dependants(
    plan: tuple[list[set[int]], set[int], bool], parallel_undo: bool, kind: str
) -> None:
    graph, failing, attempted = plan
    wf = Workflow("generated", parallel_undo=parallel_undo, undo="attempted" if attempted else "done")
    ledger = Ledger()
    for number, dependencies in enumerate(graph):
        raises = ValueError(str(number)) if number in failing else None
        ledger.add(wf, str(number), depends_on=map(str, dependencies), raises=raises)
    run = Drive(kind)(wf, check=False)
    done = [name for name in ledger if not name.startswith("-")]
    undone = [name[1:] for name in ledger if name.startswith("-")]
    if run.status is Status.SUCCESS:
        assert (sorted(map(int, done)), undone) == (list(range(len(graph))), [])
        return
    to_undo = [name for name in done if attempted or int(name) not in failing]
    assert Counter(undone) == Counter(to_undo)
    assert run.undone == tuple(undone)
    for name in undone:
        for before in graph[int(name)]:
            assert str(before) not in undone or undone.index(str(before)) > undone.index(name)


# -- how ---------------------------------------------------------------------------------------------------------------


def test_the_undo_sees_result_error_values_and_a_key_of_its_own(drive: Drive) -> None:
    keys: dict[str, str] = {}
    wf = Workflow("sees")

    def book(ctx: Context) -> dict[str, int]:
        keys["do"] = ctx.step_key
        ctx["extra"] = 1
        return {"seat": 7}

    def cancel(ctx: Context) -> None:
        keys["undo"] = ctx.step_key
        assert (ctx["book"], ctx["extra"], ctx.step, ctx.attempt) == ({"seat": 7}, 1, "book", 1)
        assert (str(ctx.error), ctx.cancelled, ctx.deadline) == ("declined", False, None)

    def pay(ctx: Context) -> None:
        raise ValueError("declined")

    wf.add_step("book", book, compensate=cancel)
    wf.add_step("pay", pay, depends_on="book")
    assert drive(wf, check=False).status is Status.COMPENSATED
    assert keys["do"] != keys["undo"]


def test_the_undo_registered_by_decorator_keeps_its_function_and_its_options(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("decorated")

    @wf.step
    def book(ctx: Context) -> str:
        return "seat"

    @book.compensate(retry=2, timeout=60)
    def cancel(ctx: Context) -> str:
        ledger.append(f"{ctx.attempt} {ctx.deadline is not None}")
        if ctx.attempt == 1:
            raise ValueError
        return "plain"

    @wf.step(depends_on=book)
    def pay(ctx: Context) -> None:
        raise ValueError

    assert (book(None), cancel.__name__) == ("seat", "cancel")
    assert drive(wf, check=False).status is Status.COMPENSATED
    assert ledger == ["1 True", "2 True"]


def test_the_undo_has_its_own_retries_and_waits_which_nothing_cuts_short(drive: Drive, ledger: Ledger) -> None:
    wf, events = Workflow("retries"), list[Any]()
    a = wf.add_step("a", lambda ctx: 1)

    def undo(ctx: Context) -> None:
        ledger.append(f"undo {ctx.attempt}")
        if ctx.attempt < 3:
            raise ValueError("not yet")

    a.compensate(retry=Retry(3, Backoff.fixed(0.005)))(undo)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on=a)
    run = drive(wf, check=False, hooks=[events.append])
    assert (run.status, ledger) == (Status.COMPENSATED, ["undo 1", "undo 2", "undo 3"])
    (finished,) = of_type(events, CompensationFinished)
    assert (finished.attempts, finished.backoff >= 0.01, finished.outcome) == (3, True, Status.SUCCESS)
    assert [event.undo for event in of_type(events, BackoffStarted)] == [True, True]
    undone = [event for event in of_type(events, AttemptFinished) if event.undo]
    assert [event.outcome for event in undone] == [Status.FAILURE, Status.FAILURE, Status.SUCCESS]


def test_fatal_from_an_undo_stops_its_retries(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("fatal")
    a = wf.add_step("a", lambda ctx: 1)

    def undo(ctx: Context) -> None:
        ledger.append("undo")
        raise Fatal("never")

    a.compensate(retry=5)(undo)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on=a)
    assert drive(wf, check=False).status is Status.COMPENSATION_FAILED
    assert ledger == ["undo"]


def test_order_and_trigger_are_reported(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    drive(ledger.chain("a", "b", "c!"), check=False, hooks=[events.append])
    started = [
        (event.step, event.order, event.trigger, event.max_attempts) for event in of_type(events, CompensationStarted)
    ]
    assert started == [("b", 1, "c", 1), ("a", 2, "c", 1)]
    assert "undo" in of_type(events, CompensationStarted)[0].function


# -- a failed undo -----------------------------------------------------------------------------------------------------


def stuck(ledger: Ledger) -> Workflow:
    """Steps a, b, c of which c fails and the undo of b fails."""
    wf = Workflow("stuck")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", undo_raises=LookupError("no such booking"))
    ledger.add(wf, "c", depends_on="b", raises=ValueError("declined"))
    return wf


def test_a_failed_undo_does_not_keep_the_others_from_running(drive: Drive, ledger: Ledger) -> None:
    run = drive(stuck(ledger), check=False)
    assert ledger == ["a", "b", "c", "-b", "-a"]
    assert (run.status, run.undone, run.held) == (Status.COMPENSATION_FAILED, ("a",), True)
    assert (run.steps["b"].undo, run.steps["a"].undo) == (Status.FAILURE, Status.SUCCESS)
    assert "could NOT be undone: b" in run.explain()


def test_compensationfailed_is_a_group_of_the_undo_errors_caused_by_the_original(drive: Drive, ledger: Ledger) -> None:
    with pytest.raises(CompensationFailed) as caught:
        drive(stuck(ledger))
    error = caught.value
    assert isinstance(error, FlowcoreError)
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error.__cause__, ValueError)
    assert [str(one) for one in error.exceptions] == ["no such booking"]
    assert {name: str(one) for name, one in error.failures.items()} == {"b": "no such booking"}
    assert (error.run.status, error.run.error) == (Status.COMPENSATION_FAILED, error)
    cause = f"ValueError: {error.__cause__}"
    assert f"of 'stuck' failed ({cause}), and undoing 'b' failed too" in str(error)
    assert "could not undo 'b': LookupError: no such booking" in notes(error)
    assert "failed at step 'c' after 1 attempt; undone: 'a'" in notes(error)


def test_splitting_compensationfailed_keeps_run_and_failures(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("two stuck")
    ledger.add(wf, "a", undo_raises=ValueError("a"))
    ledger.add(wf, "b", depends_on="a", undo_raises=LookupError("b"))
    ledger.add(wf, "c", depends_on="b", raises=RuntimeError("c"))
    caught: dict[str, Any] = {}
    try:
        drive(wf)
    except* ValueError as group:
        caught["values"] = group
    except* LookupError as group:
        caught["lookups"] = group
    for name, step in (("values", "a"), ("lookups", "b")):
        part = caught[name]
        assert isinstance(part, CompensationFailed)
        assert list(part.failures) == [step]
        assert part.run.workflow == "two stuck"


def test_compensationfailed_can_be_made_from_a_plain_list_of_errors() -> None:
    error = CompensationFailed("text", [ValueError("x")])
    assert (error.message, error.run, error.failures) == ("text", None, {})
    assert error.subgroup(ValueError) is not None


def test_a_base_exception_from_an_undo_counts_as_failed_and_the_others_still_run(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("exits")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", undo_raises=SystemExit(3))
    ledger.add(wf, "c", depends_on="b", raises=ValueError("c"))
    with pytest.raises(CompensationFailed) as caught:
        drive(wf)
    (error,) = caught.value.exceptions
    assert isinstance(error, UndoInterrupted)
    assert isinstance(error.__cause__, SystemExit)
    assert str(error) == "the undo of step 'b' was stopped by SystemExit."
    assert ledger == ["a", "b", "c", "-b", "-a"]


def test_if_the_original_is_a_baseexception_it_is_raised_with_the_report_as_its_note(
    drive: Drive, ledger: Ledger
) -> None:
    wf = Workflow("both")
    ledger.add(wf, "a", undo_raises=LookupError("a stays"))
    ledger.add(wf, "b", depends_on="a", raises=SystemExit(3))
    store = MemoryStore()
    with pytest.raises(SystemExit) as caught:
        drive(wf, store=store, idempotency_key="k")
    assert "could not undo 'a': LookupError: a stays" in notes(caught.value)
    assert [record.held for record in store.list_runs(status="held")] == [True]


@pytest.mark.parametrize("how", ["option", "decorator", "decorator with options"])
def test_an_undo_is_retried_by_default(drive: Drive, ledger: Ledger, how: str) -> None:
    events: list[Any] = []
    wf = Workflow("w")

    def refund(ctx: Context) -> None:
        ledger.append(f"-a{ctx.attempt}")
        if ctx.attempt < 3:
            raise ConnectionError("blip")

    step = wf.add_step("a", lambda ctx: 1, compensate=refund if how == "option" else None)
    if how == "decorator":
        step.compensate(refund)
    elif how == "decorator with options":
        step.compensate(timeout=PATIENCE)(refund)
    ledger.add(wf, "b", depends_on="a", raises=ValueError())
    context = contextvars.copy_context()
    context.run(waits.set, False)
    run = context.run(drive, wf, hooks=[events.append], check=False)
    assert (ledger, run.status) == (["b", "-a1", "-a2", "-a3"], Status.COMPENSATED)
    pauses = of_type(events, BackoffStarted)
    assert [0 <= pause.delay <= limit for pause, limit in zip(pauses, (0.2, 0.4), strict=True)] == [True, True]


def test_an_undo_with_retry_1_is_tried_once(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")

    def refund(ctx: Context) -> None:
        ledger.append("-a")
        raise ConnectionError("blip")

    wf.add_step("a", lambda ctx: 1).compensate(retry=1)(refund)
    ledger.add(wf, "b", depends_on="a", raises=ValueError())
    run = drive(wf, check=False)
    assert (ledger, run.status) == (["b", "-a"], Status.COMPENSATION_FAILED)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()], ids=repr)
def test_a_baseexception_of_an_undos_own_is_a_failed_undo_and_the_others_still_run(
    drive: Drive, ledger: Ledger, error: BaseException, parallel: bool
) -> None:
    wf = Workflow("w", parallel_undo=parallel)
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", undo_raises=error)
    ledger.add(wf, "c", depends_on="b", raises=ValueError("c"))
    run = drive(wf, check=False)
    assert ledger == ["a", "b", "c", "-b", "-a"]
    assert (run.status, run.held, run.undone) == (Status.COMPENSATION_FAILED, True, ("a",))
    assert str(run.steps["b"].undo_error) == f"the undo of step 'b' was stopped by {type(error).__name__}."


def test_an_undo_that_raises_cancellederror_has_failed(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("bare")
    ledger.add(wf, "a", undo_raises=asyncio.CancelledError())
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    run = drive(wf, check=False)
    assert run.status is Status.COMPENSATION_FAILED
    assert "the undo of step 'a' raised CancelledError" in str(run.steps["a"].undo_error)


def test_many_undo_errors_are_all_in_the_group(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("many")
    for number in range(5):
        ledger.add(wf, str(number), undo_raises=ValueError(str(number)))
    ledger.add(wf, "fails", depends_on=[str(number) for number in range(5)], raises=RuntimeError())
    with pytest.raises(CompensationFailed) as caught:
        drive(wf)
    assert set(caught.value.failures) == {"0", "1", "2", "3", "4"}
