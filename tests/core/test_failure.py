"""What happens when a step fails (semantics 3): who still runs, what is raised, and what the note says."""

import asyncio
import threading

import pytest

from flowcore import (
    Backoff,
    Context,
    Engine,
    NoResult,
    Retry,
    Status,
    StepCancelled,
    Workflow,
)

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, notes, until


def test_the_steps_own_exception_is_raised(drive: Drive) -> None:
    mine = ValueError("mine")

    def fail(ctx: Context) -> None:
        raise mine

    wf = Workflow("fails")
    wf.add_step("fail", fail)
    with pytest.raises(ValueError, match="mine") as caught:
        drive(wf)
    assert caught.value is mine
    assert any(frame.name == "fail" for frame in caught.traceback)


def test_the_note_names_run_step_attempts_and_what_was_undone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("trip")
    ledger.add(wf, "book")
    ledger.add(wf, "hotel", depends_on="book")
    ledger.add(wf, "pay", depends_on="hotel", raises=ValueError("declined"), retry=3)
    with pytest.raises(ValueError, match="declined") as caught:
        drive(wf, idempotency_key="k")
    run = drive(wf, check=False)
    assert run.error is caught.value
    text = notes(caught.value)
    assert f"run {run.id} of workflow 'trip' failed at step 'pay' after 3 attempts; undone: 'hotel', 'book'." in text
    assert text.count("flowcore:") == 1  # a reused exception keeps only its latest note


def test_nothing_new_starts_after_a_failure(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("stops", max_parallel=1)
    ledger.add(wf, "a", raises=ValueError("a"), undoable=False)
    ledger.add(wf, "b")
    ledger.add(wf, "c", depends_on="b")
    run = drive(wf, check=False)
    assert ledger == ["a"]
    assert (run.status, run.failed_step) == (Status.FAILURE, "a")
    assert {name: step.status for name, step in run.steps.items()} == {
        "a": Status.FAILURE,
        "b": Status.PENDING,
        "c": Status.PENDING,
    }


def test_running_siblings_finish_and_are_undone_too(live: MakeLive, ledger: Ledger) -> None:
    failed, wf = Gate(), Workflow("siblings")
    began = Gate()

    def slow(ctx: Context) -> str:
        began.set()
        failed.wait()
        return "slow"

    def fails(ctx: Context) -> None:
        began.wait()
        raise ValueError("quick")

    def sees(event: object) -> None:
        if type(event).__name__ == "StepFinished" and event.step == "fails":  # type: ignore[attr-defined]
            failed.set()

    ledger.add(wf, "slow", first=slow)
    ledger.add(wf, "never", depends_on="slow")
    wf.add_step("fails", fails)
    run = live(hooks=[sees]).run(wf, check=False)
    assert ledger == ["slow", "-slow"]
    assert (run.status, run.undone) == (Status.COMPENSATED, ("slow",))
    assert (run.steps["slow"].status, run.steps["never"].status) == (Status.SUCCESS, Status.PENDING)


def test_a_sibling_in_backoff_makes_no_further_attempt_and_has_failed(live: MakeLive, ledger: Ledger) -> None:
    waits, wf = Gate(), Workflow("backoff")

    def sees(event: object) -> None:
        if type(event).__name__ == "BackoffStarted":
            waits.set()

    ledger.add(wf, "flaky", raises=ValueError("flaky"), retry=Retry(5, Backoff.fixed(3600)))
    wf.add_step("fails", lambda ctx: [waits.wait(), 1 / 0])
    run = live(hooks=[sees]).run(wf, check=False)
    assert ledger == ["flaky"]
    assert (run.steps["flaky"].status, run.steps["flaky"].attempts) == (Status.FAILURE, 1)
    assert isinstance(run.error, ZeroDivisionError)


def test_the_first_error_is_raised_and_the_others_are_in_the_note(live: MakeLive) -> None:
    first, wf = Gate(), Workflow("two")
    barrier = threading.Barrier(2)

    def fails_first(ctx: Context) -> None:
        barrier.wait(20)
        raise ValueError("first")

    def fails_second(ctx: Context) -> None:
        barrier.wait(20)
        first.wait()
        raise LookupError("second")

    def sees(event: object) -> None:
        if type(event).__name__ == "StepFinished":
            first.set()

    wf.add_step("one", fails_first)
    wf.add_step("two", fails_second)
    # The hook opens the gate just before the failure is recorded, so let the second step fail a moment later.
    with pytest.raises(ValueError, match="first") as caught:
        live(hooks=[sees]).run(wf)
    assert "step 'two' failed too: LookupError: second" in notes(caught.value)


def test_check_false_answers_the_failed_run(drive: Drive, ledger: Ledger) -> None:
    run = drive(ledger.chain("a", "b!"), check=False)
    assert (run.status, run.failed_step, str(run.error)) == (Status.COMPENSATED, "b", "b failed")
    with pytest.raises(NoResult, match="step 'b' has no result: it failed with ValueError"):
        run["b"]
    assert run["a"] == "a"


def test_a_failure_with_nothing_to_undo_is_a_failure(drive: Drive, ledger: Ledger) -> None:
    run = drive(ledger.chain("a!", "b"), check=False)
    assert (run.status, run.undone) == (Status.FAILURE, ())


def test_on_failure_cancel_cancels_running_siblings_whose_outcome_is_unknown(live: MakeLive, ledger: Ledger) -> None:
    wf, began = Workflow("cancel", on_failure="cancel"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)
        raise InterruptedError("gave way")

    ledger.add(wf, "slow", first=slow)
    wf.add_step("fails", lambda ctx: [began.wait(), 1 / 0])
    run = live().run(wf, check=False)
    assert isinstance(run.error, ZeroDivisionError)
    assert run.steps["slow"].status in {Status.FAILURE, Status.CANCELLED}


def test_on_failure_cancel_gives_up_a_sibling_after_grace_and_undoes_it(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    wf, began = Workflow("cancel", on_failure="cancel"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        gate.wait()

    ledger.add(wf, "slow", first=slow)
    wf.add_step("fails", lambda ctx: [began.wait(), 1 / 0])
    one = live(grace=0.02)
    run = one.start(wf, check=False).result(PATIENCE)  # the caller's own thread could not be given up
    assert isinstance(run.error, ZeroDivisionError)
    assert (run.steps["slow"].status, run.steps["slow"].undo) == (Status.CANCELLED, Status.SUCCESS)
    assert ledger == ["-slow"]
    gate.set()
    until(lambda: ledger == ["-slow", "slow", "-slow"])  # it landed after its undo, so it was undone again


def test_a_sibling_that_raises_after_it_was_cancelled_counts_as_cancelled_and_is_undone(
    live: MakeLive, ledger: Ledger
) -> None:
    wf, began = Workflow("gives way", on_failure="cancel"), Gate()

    def half(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)
        raise InterruptedError

    wf.add_step("half", half, compensate=lambda ctx: ledger.append("-half"))
    wf.add_step("fails", lambda ctx: [began.wait(), 1 / 0])
    run = live().run(wf, check=False)
    assert (run.failed_step, run.steps["half"].status, ledger) == ("fails", Status.CANCELLED, ["-half"])
    assert isinstance(run.steps["half"].error, InterruptedError)


def test_on_failure_wait_does_not_cancel(live: MakeLive) -> None:
    wf, began, finished = Workflow("wait"), Gate(), Gate()
    seen: list[bool] = []

    def slow(ctx: Context) -> None:
        began.set()
        finished.wait()
        seen.append(ctx.cancelled)

    def sees(event: object) -> None:
        if type(event).__name__ == "StepFinished":
            finished.set()

    wf.add_step("slow", slow)
    wf.add_step("fails", lambda ctx: [began.wait(), 1 / 0])
    live(hooks=[sees]).run(wf, check=False)
    assert seen == [False]


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_a_base_exception_undoes_everything_and_is_raised_itself(
    drive: Drive, ledger: Ledger, error: BaseException
) -> None:
    wf = Workflow("base")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=error, retry=3)
    with pytest.raises(type(error)) as caught:
        drive(wf, check=False)  # check=False or not
    assert caught.value is error
    assert ledger == ["a", "b", "-b", "-a"]  # what a step did before a BaseException is unknown: undone too
    assert "failed at step 'b' after 1 attempt; undone: 'b', 'a'" in notes(error)


def test_a_base_exception_cancels_the_siblings_that_run(ledger: Ledger) -> None:
    wf, began, seen = Workflow("base"), Gate(), list[bool]()

    def sibling(ctx: Context) -> None:
        began.set()
        seen.append(until(lambda: ctx.cancelled))

    def exits(ctx: Context) -> None:
        began.wait()
        raise SystemExit

    ledger.add(wf, "sibling", first=sibling)
    wf.add_step("exits", exits)
    with Engine() as engine, pytest.raises(SystemExit):
        engine.run(wf)
    assert (seen, ledger) == ([True], ["sibling", "-sibling"])


def test_a_step_that_raises_cancellederror_itself_has_failed(drive: Drive, ledger: Ledger) -> None:
    mine = asyncio.CancelledError("mine")
    wf = Workflow("bare")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=mine)
    with pytest.raises(StepCancelled, match="step 'b' raised CancelledError, but the run was not cancelled") as caught:
        drive(wf)
    assert caught.value.__cause__ is mine
    assert ledger == ["a", "b", "-a"]


def test_a_step_may_raise_stopiteration(drive: Drive) -> None:
    def step(ctx: Context) -> None:
        next(iter(()))

    wf = Workflow("stop")
    wf.add_step("a", step)
    assert drive(wf, check=False).failed_step == "a"
    if drive.kind != "threads":  # Python itself does not let StopIteration out of a coroutine
        with pytest.raises(RuntimeError, match="StopIteration"):
            drive(wf)
    else:
        with pytest.raises(StopIteration):
            drive(wf)


def test_help_that_comes_after_the_failure_starts_nothing(ledger: Ledger, gate: Gate) -> None:
    with Engine(max_workers=2) as engine:
        blocker, wf = Workflow("blocker"), Workflow("w")
        began = [Gate(), Gate()]
        for number in range(2):
            blocker.add_step(str(number), began[number].then(gate))
        busy = engine.submit(blocker)  # all threads of the pool, so that help has to wait
        for one in began:
            one.wait()
        ledger.add(wf, "fails", raises=ValueError("first"), undoable=False)
        ledger.add(wf, "sibling")
        with pytest.raises(ValueError, match="first"):
            engine.run(wf)
        gate.set()
        busy.result(PATIENCE)
    assert ledger == ["fails"]


def test_explain_makes_one_sentence_of_an_error_that_ends_with_a_period(drive: Drive) -> None:
    wf = Workflow("shop")

    @wf.step
    def charge(_: Context) -> None:
        raise ValueError("Card declined.")

    first, second = drive(wf, check=False).explain().splitlines()
    assert first.endswith("failed at step 'charge': ValueError: Card declined; nothing had to be undone")
    assert "with ValueError: Card declined" in second
    assert "declined." not in second
