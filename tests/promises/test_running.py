"""What the tests of tests/core leave to be said about running, failing and keys."""

import asyncio
import threading
import time
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    IdempotencyError,
    IdempotencyHeld,
    NoResult,
    PrintLogger,
    Retry,
    RunTimeout,
    Status,
    Workflow,
)
from flowcore.stores import MemoryStore
from flowcore.testing import SimulatedStore
from tests.core.conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, run_async, until


def test_async_steps_that_become_ready_together_begin_in_definition_order() -> None:
    async def main() -> None:
        wf, begun = Workflow("ties"), list[str]()

        async def step(ctx: Context) -> None:
            begun.append(ctx.step)
            await asyncio.sleep(0)

        wf.add_step("first", step)
        for name in "cabd":
            wf.add_step(name, step, depends_on="first")
        await AsyncEngine().run(wf)
        assert begun == ["first", "c", "a", "b", "d"]

    run_async(main)


def test_the_thread_that_waits_in_run_works_on_what_is_ready() -> None:
    # Other runs occupy all workers, so that only the caller can run `beside` while `flaky` waits.
    blocked, taken, release = Workflow("blocked"), Gate(), Gate()
    blocked.add_step("a", taken.then(release))
    wf, done = Workflow("w"), list[str]()

    def flaky(ctx: Context) -> None:
        done.append(f"flaky {ctx.attempt}")
        if ctx.attempt == 1:
            raise ValueError

    wf.add_step("flaky", flaky, retry=Retry(2, Backoff.fixed(0.05)))
    wf.add_step("beside", lambda ctx: done.append("beside"))
    with Engine(max_workers=2) as engine:
        others = [engine.submit(blocked) for _ in range(2)]
        taken.wait()
        try:
            engine.run(wf)
        finally:
            release.set()
        assert all(other.result(PATIENCE).status is Status.SUCCESS for other in others)
    assert done == ["flaky 1", "beside", "flaky 2"]


def test_run_has_no_result_of_a_step_of_another_workflow(drive: Drive, ledger: Ledger) -> None:
    foreign = Workflow("other").add_step("a", lambda ctx: "theirs")
    run = drive(ledger.chain("a"))
    with pytest.raises(NoResult, match="<Step 'a'> is not a step of workflow 'chain'"):
        run[foreign]


def test_a_wait_for_a_late_attempt_counts_towards_max_elapsed(live: MakeLive) -> None:
    wf, begun = Workflow("elapsed"), list[int]()

    def slow(ctx: Context) -> None:
        begun.append(ctx.attempt)
        until(lambda: ctx.cancelled)
        threading.Event().wait(0.05)  # longer than max_elapsed
        raise ValueError

    wf.add_step("slow", slow, timeout=0.005, retry=Retry(5, max_elapsed=0.03))
    assert live().run(wf, check=False).steps["slow"].status is Status.TIMEOUT
    assert begun == [1]


def test_past_the_pivot_no_call_attempts_a_step_beside_its_late_attempt(live: MakeLive) -> None:
    wf, one = Workflow("late"), live()
    alone = threading.Lock()

    def slow(ctx: Context) -> None:
        assert alone.acquire(blocking=False), "two attempts at once"
        until(lambda: ctx.cancelled)
        threading.Event().wait(0.02)
        alone.release()

    wf.add_step("pivot", lambda ctx: None, pivot=True)
    wf.add_step("slow", slow, depends_on="pivot", timeout=0.005)
    for _ in range(3):
        run = one.run(wf, idempotency_key="k", check=False)
        assert (run.status, run.steps["slow"].status) == (Status.INCOMPLETE, Status.TIMEOUT)


def test_what_a_failed_attempt_wrote_stays(drive: Drive) -> None:
    def step(ctx: Context) -> object:
        ctx[f"attempt {ctx.attempt}"] = True
        if ctx.attempt == 1:
            raise ValueError
        return dict(ctx)

    wf = Workflow("writes")
    wf.add_step("a", step, retry=2)
    assert drive(wf)["a"] == {"attempt 1": True, "attempt 2": True}


def test_values_and_results_are_never_in_what_a_run_says_of_itself(
    drive: Drive, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    wf = Workflow("secret")
    ledger.add(wf, "a", first=lambda ctx: ctx.setdefault("written", "s3cret"))
    ledger.add(wf, "b", depends_on="a", raises=ValueError("no"))
    run = drive(wf, {"card": "s3cret"}, check=False, hooks=[PrintLogger()])
    said = [repr(run), run.explain(), str(run.to_dict()), *run.error.__notes__, capsys.readouterr().out]
    assert run["a"] == "s3cret"
    assert [text for text in said if "s3cret" in text or not text] == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_base_exception_from_a_step_cancels_its_running_siblings(ledger: Ledger, error: BaseException) -> None:
    wf, began = Workflow("exits"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    def exits(ctx: Context) -> None:
        began.wait()
        raise error

    ledger.add(wf, "slow", first=slow, timeout=PATIENCE)
    wf.add_step("exits", exits)
    with Engine() as engine, pytest.raises(type(error)) as caught:
        engine.run(wf)
    assert caught.value is error
    assert ledger == ["slow", "-slow"]


def test_check_false_raises_refusals_all_the_same(drive: Drive, ledger: Ledger) -> None:
    store: Any = MemoryStore()
    drive(ledger.chain("a"), store=store, idempotency_key="k")
    with pytest.raises(IdempotencyError):
        drive(ledger.chain("a"), {"other": "values"}, store=store, idempotency_key="k", check=False)


def test_an_incomplete_run_is_never_forgotten(drive: Drive, ledger: Ledger) -> None:
    now = [0.0]
    store, wf = MemoryStore(retention=1, max_runs=1, clock=lambda: now[0]), Workflow("half")
    ledger.add(wf, "a", pivot=True)
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    first = drive(wf, store=store, idempotency_key="half", check=False)
    now[0] = 1e6
    for key in "xyz":
        drive(Workflow("nothing"), store=store, idempotency_key=key)
    again = drive(wf, store=store, idempotency_key="half", check=False)
    assert (again.status, again.id, ledger) == (Status.INCOMPLETE, first.id, ["a", "b", "b"])


def test_an_attached_caller_gets_the_failed_undo_and_the_next_one_is_refused(ledger: Ledger) -> None:
    store, began, go = MemoryStore(), Gate(), Gate()
    wf = Workflow("stuck")
    ledger.add(wf, "a", undo_raises=LookupError("stays"))
    ledger.add(wf, "b", depends_on="a", first=began.then(go), raises=ValueError("b"))
    with Engine(store=store) as engine:
        running = engine.submit(wf, idempotency_key="k", check=False)
        began.wait()
        attached = engine.submit(wf, idempotency_key="k", wait=PATIENCE, check=False)
        until(lambda: store._watched)
        go.set()
        assert attached.result(PATIENCE).error is running.result(PATIENCE).error
        with pytest.raises(IdempotencyHeld):
            engine.run(wf, idempotency_key="k", wait=PATIENCE)
    assert ledger == ["a", "b", "-a"]


def test_a_deadline_counts_from_the_claim_not_from_the_submit(ledger: Ledger) -> None:
    blocked, taken, release = Workflow("blocked"), Gate(), Gate()
    blocked.add_step("a", taken.then(release))
    with Engine(max_workers=1) as engine:
        first = engine.submit(blocked)
        taken.wait()
        queued = engine.submit(ledger.chain("a"), deadline=0.5)
        threading.Event().wait(0.55)
        release.set()
        assert queued.result(PATIENCE).status is Status.SUCCESS
        assert first.result(PATIENCE).status is Status.SUCCESS
    assert ledger == ["a"]


def test_on_a_durable_store_the_time_in_the_queue_counts_too(ledger: Ledger) -> None:
    blocked, taken, release = Workflow("blocked"), Gate(), Gate()
    blocked.add_step("a", taken.then(release))
    with Engine(store=SimulatedStore(clock=time.monotonic), max_workers=1) as engine:
        first = engine.submit(blocked)
        taken.wait()
        queued = engine.submit(ledger.chain("a"), deadline=0.05)
        threading.Event().wait(0.1)
        release.set()
        with pytest.raises(RunTimeout):
            queued.result(PATIENCE)
        assert first.result(PATIENCE).status is Status.SUCCESS
    assert ledger == []


def test_a_call_that_continues_past_the_pivot_has_what_is_left_of_the_deadline(drive: Drive, ledger: Ledger) -> None:
    store, wf, tries = MemoryStore(), Workflow("half", deadline=0.2), list[int]()

    def ship(ctx: Context) -> None:
        tries.append(ctx.attempt)
        if len(tries) == 1:
            raise ValueError("no lorry")

    ledger.add(wf, "pay", pivot=True)
    wf.add_step("ship", ship, depends_on="pay")
    assert drive(wf, store=store, idempotency_key="k", check=False).status is Status.INCOMPLETE
    threading.Event().wait(0.25)
    late = drive(wf, store=store, idempotency_key="k", check=False)
    assert (late.status, type(late.error)) == (Status.INCOMPLETE, RunTimeout)
    assert drive(wf, store=store, idempotency_key="k", deadline=60.0).status is Status.SUCCESS


def test_a_caller_that_waits_for_a_run_resumes_it_where_it_ends_incomplete(live: MakeLive, gate: Gate) -> None:
    one, wf, began, tries = live(), Workflow("half"), Gate(), list[str]()

    def ship(ctx: Context) -> str:
        tries.append(ctx.run_id)
        began.set()
        gate.wait()
        if len(tries) == 1:
            raise ValueError("no lorry")
        return "shipped"

    wf.add_step("pay", lambda ctx: None, pivot=True)
    wf.add_step("ship", ship, depends_on="pay")
    first = one.start(wf, idempotency_key="k", check=False)
    began.wait()
    second = one.start(wf, idempotency_key="k", wait=PATIENCE)
    until(lambda: one.engine.store._watched)
    gate.set()
    assert (first.result(PATIENCE).status, second.result(PATIENCE)["ship"]) == (Status.INCOMPLETE, "shipped")
    assert tries == [first.result().id] * 2
