"""Limits of time (semantics 7): timeout=, step_timeout=, deadline=, attempts that are given up and land late."""

import asyncio
import contextlib
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    NoResult,
    Retry,
    RunTimeout,
    Status,
    StepTimeout,
    Workflow,
)
from flowcore.events import AttemptFinished, BackoffStarted, StepCompletedLate, StepFinished

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, notes, of_type, run_async, until, until_async

SOON = 0.02
"""seconds: the limit in a test where something is too late"""


def test_a_step_within_its_limits_is_none_the_wiser(drive: Drive) -> None:
    wf = Workflow("quick", deadline=60)
    wf.add_step("a", lambda ctx: ctx.attempt, timeout=60, step_timeout=timedelta(seconds=60))
    assert drive(wf, deadline=timedelta(minutes=1))["a"] == 1


def test_a_sync_step_times_out_on_time_and_is_reported(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("slow")
    reported = Gate()

    def slow(ctx: Context) -> None:
        until(lambda: ctx.cancelled)
        reported.set()
        gate.wait()

    wf.add_step("slow", slow, timeout=SOON)
    with pytest.raises(StepTimeout, match=r"step 'slow' did not finish within its timeout of 0\.02 s") as caught:
        live().run(wf)
    assert isinstance(caught.value, TimeoutError)
    assert "failed at step 'slow' after 1 attempt" in notes(caught.value)
    reported.wait()


def test_a_run_with_nothing_to_undo_does_not_wait_for_what_it_gave_up(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("slow")
    wf.add_step("slow", gate, timeout=SOON)
    run = live(grace=3600).run(wf, check=False)  # grace is not waited for
    assert (run.status, run.steps["slow"].status) == (Status.FAILURE, Status.TIMEOUT)
    with pytest.raises(NoResult, match="its outcome is unknown"):
        run["slow"]


def test_a_step_that_timed_out_is_undone(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    wf = Workflow("slow")
    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=gate, timeout=SOON)
    run = live(grace=SOON).run(wf, check=False)
    assert (run.status, run.undone) == (Status.COMPENSATED, ("slow", "a"))
    assert ledger == ["a", "-slow", "-a"]


def test_an_undo_never_comes_before_the_effect_it_undoes_if_that_completes_within_grace(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    wf = Workflow("charge")
    timed_out = Gate()
    ledger.add(wf, "charge", first=lambda ctx: [timed_out.wait(), "landed"][1], timeout=SOON)

    def sees(event: Any) -> None:
        if type(event) is StepFinished:
            timed_out.set()

    events: list[Any] = []
    run = live(hooks=[events.append, sees], grace=PATIENCE).run(wf, check=False)
    assert ledger == ["charge", "-charge"]
    assert run.steps["charge"].completed_late is Status.SUCCESS
    assert [(event.outcome, event.undo) for event in of_type(events, StepCompletedLate)] == [(Status.SUCCESS, False)]
    assert "an abandoned attempt completed late: success" in run.explain()


def test_the_undo_of_a_step_that_landed_meanwhile_sees_its_result(live: MakeLive) -> None:
    wf = Workflow("charge")
    timed_out, seen = Gate(), []

    def charge(ctx: Context) -> str:
        timed_out.wait()
        return "receipt"

    def sees(event: Any) -> None:
        if type(event) is StepFinished:
            timed_out.set()

    wf.add_step("charge", charge, timeout=SOON, compensate=lambda ctx: seen.append(ctx["charge"]))
    live(hooks=[sees]).run(wf, check=False)
    assert seen == ["receipt"]


def test_a_step_that_completes_after_it_was_undone_is_undone_again(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    events: list[Any] = []
    wf = Workflow("late")
    ledger.add(wf, "charge", first=gate, timeout=SOON)
    run = live(hooks=[events.append], grace=SOON).run(wf, check=False)
    assert ledger == ["-charge"]
    gate.set()
    until(lambda: ledger == ["-charge", "charge", "-charge"])
    until(lambda: of_type(events, StepCompletedLate))
    assert run.steps["charge"].completed_late is Status.SUCCESS


def test_a_step_that_fails_late_is_recorded_and_not_undone_again(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    events: list[Any] = []
    wf = Workflow("late")
    ledger.add(wf, "charge", first=gate, timeout=SOON, raises=ValueError("late"))
    run = live(hooks=[events.append], grace=SOON).run(wf, check=False)
    gate.set()
    (late,) = until(lambda: of_type(events, StepCompletedLate))
    assert (late.step, late.attempt, late.outcome, str(late.error), late.late > 0) == (
        "charge",
        1,
        Status.FAILURE,
        "late",
        True,
    )
    assert ledger == ["-charge", "charge"]
    assert run.steps["charge"].completed_late is Status.FAILURE


def test_a_late_completion_of_a_run_that_undid_nothing_is_only_recorded(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("late")
    wf.add_step("slow", gate, timeout=SOON)
    run = live(grace=SOON).run(wf, check=False)
    assert run.steps["slow"].completed_late is None
    gate.set()
    until(lambda: run.steps["slow"].completed_late is Status.SUCCESS)


def test_the_next_attempt_starts_only_after_the_one_that_timed_out_has_landed(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    wf = Workflow("retry")
    running = threading.Lock()

    def attempt(ctx: Context) -> int:
        assert running.acquire(blocking=False), "two attempts at once"
        try:
            if ctx.attempt == 1:
                until(lambda: ctx.cancelled)
                raise ValueError("gave way")
            return ctx.attempt
        finally:
            running.release()

    wf.add_step("a", attempt, timeout=SOON, retry=2)
    run = live().run(wf)
    assert (run["a"], run.steps["a"].attempts) == (2, 2)


def test_an_attempt_that_completes_with_a_result_before_the_next_one_is_the_steps_result(live: MakeLive) -> None:
    wf = Workflow("retry")
    tries: list[int] = []

    def attempt(ctx: Context) -> str:
        tries.append(ctx.attempt)
        until(lambda: ctx.cancelled)
        return "landed"

    wf.add_step("a", attempt, timeout=SOON, retry=Retry(3, Backoff.fixed(0.001)))
    run = live().run(wf)
    assert (run["a"], tries) == ("landed", [1])
    assert run.status is Status.SUCCESS


def test_an_attempt_that_does_not_complete_within_grace_is_the_last(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("retry")
    tries: list[int] = []

    def attempt(ctx: Context) -> None:
        tries.append(ctx.attempt)
        gate.wait()

    wf.add_step("a", attempt, timeout=SOON, retry=5)
    with pytest.raises(StepTimeout):
        live(grace=SOON).run(wf)
    assert tries == [1]


def test_waiting_for_a_late_completion_counts_for_max_elapsed(live: MakeLive) -> None:
    tries: list[int] = []

    def slow(ctx: Context) -> None:
        tries.append(ctx.attempt)
        time.sleep(0.08)
        raise ValueError("late")

    wf = Workflow("elapsed")
    wf.add_step("a", slow, timeout=SOON, retry=Retry(3, max_elapsed=0.05))
    with pytest.raises(StepTimeout):
        live().run(wf)
    assert tries == [1]


def test_a_pause_for_which_the_late_completion_has_left_no_time_is_not_begun(live: MakeLive) -> None:
    tries: list[int] = []

    def slow(ctx: Context) -> None:
        tries.append(ctx.attempt)
        time.sleep(0.3)
        raise ValueError("late")

    wf = Workflow("elapsed")
    wf.add_step("a", slow, timeout=SOON, retry=Retry(2, Backoff.fixed(0.3), max_elapsed=0.5))
    with pytest.raises(StepTimeout):
        live().run(wf)
    assert tries == [1]


def test_an_attempt_that_completes_after_the_run_has_failed_is_the_last(live: MakeLive) -> None:
    given_up, failed, wf, tries = Gate(), Gate(), Workflow("sibling"), list[int]()

    def slow(ctx: Context) -> None:
        tries.append(ctx.attempt)
        until(lambda: ctx.cancelled)
        given_up.set()
        failed.wait()
        time.sleep(SOON)  # StepFinished is told a moment before the failure is known to all
        raise ValueError("late")

    def sees(event: Any) -> None:
        if type(event) is StepFinished and event.step == "fails":
            failed.set()

    wf.add_step("slow", slow, timeout=SOON, retry=3)
    wf.add_step("fails", lambda ctx: [given_up.wait(), 1 / 0])
    run = live(hooks=[sees]).run(wf, check=False)
    assert (tries, run.failed_step, run.steps["slow"].status) == ([1], "fails", Status.TIMEOUT)


def test_attempts_share_the_step_timeout_and_inner_limits_are_the_smaller(live: MakeLive, gate: Gate) -> None:
    events: list[Any] = []
    wf = Workflow("whole")
    wf.add_step("a", gate, timeout=3600, step_timeout=SOON, retry=5)
    with pytest.raises(StepTimeout, match=r"did not finish within its step_timeout of 0\.02 s"):
        live(hooks=[events.append], grace=SOON).run(wf)
    assert len(of_type(events, AttemptFinished)) == 1


def test_a_backoff_that_would_outlast_the_step_timeout_is_not_begun(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("whole")
    ledger.add(wf, "a", raises=ValueError("mine"), step_timeout=30, retry=Retry(5, Backoff.fixed(60)))
    with pytest.raises(ValueError, match="mine"):
        drive(wf)
    assert ledger == ["a"]


def test_a_step_that_raises_within_its_step_timeout_is_retried(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("whole")
    ledger.add(wf, "a", raises=ValueError("mine"), step_timeout=30, retry=3)
    assert drive(wf, check=False).steps["a"].attempts == 3


def test_the_deadline_ends_the_running_step_and_the_run(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    wf = Workflow("deadline", deadline=0.4)  # "slow" has begun by then
    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=gate, retry=5)
    run = live(grace=SOON).run(wf, check=False)
    assert isinstance(run.error, RunTimeout)
    assert isinstance(run.error, TimeoutError)
    assert str(run.error) == f"step 'slow' was still running at the deadline of run {run.id}."
    assert ledger == ["a", "-slow", "-a"]


def test_no_step_starts_after_the_deadline(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("deadline")
    ledger.add(wf, "a", first=lambda ctx: time.sleep(SOON))
    ledger.add(wf, "b", depends_on="a")
    run = drive(wf, deadline=SOON / 2, check=False)
    assert run.status is Status.COMPENSATED
    assert isinstance(run.error, RunTimeout)
    assert "-a" in ledger
    assert "b" not in ledger


def test_the_calls_deadline_goes_before_the_workflows(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("deadline", deadline=0)
    ledger.add(wf, "a")
    assert drive(wf, deadline=60).status is Status.SUCCESS
    run = drive(wf, check=False)
    assert (run.failed_step, run.steps["a"].attempts) == ("a", 0)
    assert f"run {run.id} of 'deadline' did not finish before its deadline" in str(run.error)


def test_undo_is_shielded_from_the_deadline(live: MakeLive, ledger: Ledger) -> None:
    wf = Workflow("deadline", deadline=SOON)
    seen: list[object] = []

    def undo(ctx: Context) -> None:
        seen.append((ctx.deadline, ctx.cancelled))
        time.sleep(SOON * 2)
        ledger.append("-a")

    wf.add_step("a", lambda ctx: 1, compensate=undo)
    ledger.add(wf, "b", depends_on="a", first=lambda ctx: until(lambda: ctx.cancelled), undoable=False)
    run = live().run(wf, check=False)
    assert (run.status, seen) == (Status.COMPENSATED, [(None, False)])
    assert "-a" in ledger


def test_a_timeout_without_backoff_keeps_its_thread_counted(gate: Gate) -> None:
    with Engine(max_workers=2, grace=SOON) as engine:
        wf = Workflow("abandon")
        wf.add_step("slow", gate, timeout=SOON)
        for _ in range(2):
            engine.run(wf, check=False)
        assert engine._pool.busy == 2
        gate.set()
        until(lambda: engine._pool.busy == 0)


def test_one_worker_an_abandoned_thread_and_an_undo_do_not_deadlock(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    wf = Workflow("one worker")
    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=gate, timeout=SOON)
    run = live(max_workers=1, grace=SOON).start(wf, check=False).result(PATIENCE)
    assert run.undone == ("slow", "a")


def test_an_undo_with_a_timeout_of_its_own_needs_no_free_worker(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("one worker")
    undone: list[str] = []
    a = wf.add_step("a", lambda ctx: 1)
    a.compensate(timeout=60)(lambda ctx: undone.append(ctx.step))
    wf.add_step("slow", gate, depends_on=a, timeout=SOON)
    assert live(max_workers=1, grace=SOON).run(wf, check=False).status is Status.COMPENSATED
    assert undone == ["a"]


def test_an_undo_that_times_out_has_failed_and_the_key_is_held(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("undo")
    a = wf.add_step("a", lambda ctx: 1)
    a.compensate(timeout=SOON)(gate)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on=a)
    run = live(grace=SOON).run(wf, check=False)
    assert (run.status, run.steps["a"].undo, run.held) == (Status.COMPENSATION_FAILED, Status.TIMEOUT, True)
    assert "the undo of step 'a' did not finish within its timeout of 0.02 s" in str(run.steps["a"].undo_error)


def test_an_undo_that_completes_late_is_recorded(live: MakeLive, gate: Gate) -> None:
    events: list[Any] = []
    wf = Workflow("undo")
    a = wf.add_step("a", lambda ctx: "result")
    a.compensate(timeout=SOON)(gate)
    wf.add_step("b", lambda ctx: 1 / 0, depends_on=a)
    run = live(grace=SOON, hooks=[events.append]).run(wf, check=False)
    gate.set()
    (late,) = until(lambda: of_type(events, StepCompletedLate))
    assert (late.undo, late.outcome) == (True, Status.SUCCESS)
    assert run["a"] == "result"


def test_the_undo_waits_at_most_grace_in_all_for_several_abandoned_steps(live: MakeLive, gate: Gate) -> None:
    wf = Workflow("several", deadline=1.0)  # all four have begun by then
    for number in range(4):
        wf.add_step(str(number), gate, compensate=lambda ctx: None)
    began = time.monotonic()
    run = live(grace=2.0).run(wf, check=False)
    assert len(run.undone) == 4
    assert time.monotonic() - began < 1.0 + 4 * 2.0  # and not grace for each of them


@pytest.mark.parametrize(
    ("raises", "retry", "expected"),
    [
        (False, Retry(2), ["attempt 1 timeout", "late 1 success", "step success"]),
        (True, Retry(2), ["attempt 1 timeout", "late 1 failure", "backoff", "attempt 2 success", "step success"]),
        # The call takes longer than max_elapsed allows, so its end is the end of the step.
        (True, Retry(2, max_elapsed=0.3), ["attempt 1 timeout", "late 1 failure", "step timeout"]),
    ],
)
def test_an_attempt_that_ends_late_before_the_next_one_is_reported_once(
    live: MakeLive, raises: bool, retry: Retry, expected: list[str]
) -> None:
    events: list[Any] = []

    def charge(ctx: Context) -> str:
        if ctx.attempt == 1:
            until(lambda: ctx.cancelled)
            time.sleep(retry.max_elapsed or SOON)
            if raises:
                raise ValueError("late")
        return "receipt"

    wf = Workflow("late")
    wf.add_step("charge", charge, timeout=SOON, retry=retry)
    run = live(hooks=[events.append]).run(wf, check=False)
    assert run.steps["charge"].completed_late == ("failure" if expected[-1] == "step timeout" else None)

    def told(event: Any) -> str:
        if isinstance(event, BackoffStarted):
            return "backoff"
        words = {AttemptFinished: "attempt", StepCompletedLate: "late", StepFinished: "step"}
        number = "" if isinstance(event, StepFinished) else f"{event.attempt} "
        return f"{words[type(event)]} {number}{event.outcome}"

    assert [
        told(event) for event in of_type(events, AttemptFinished, StepCompletedLate, BackoffStarted, StepFinished)
    ] == expected
    (late,) = of_type(events, StepCompletedLate)
    assert late.late >= SOON / 2
    assert isinstance(late.error, ValueError) is raises


# -- asyncio only ------------------------------------------------------------------------------------------------------


def test_an_async_step_is_cancelled_at_its_timeout() -> None:
    cancelled: list[bool] = []

    async def slow(ctx: Context) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(ctx.cancelled)
            raise

    async def main() -> None:
        wf = Workflow("slow")
        wf.add_step("slow", slow, timeout=SOON)
        with pytest.raises(StepTimeout):
            await AsyncEngine().run(wf)
        assert cancelled == [True]
        assert asyncio.current_task().cancelling() == 0

    run_async(main)


def test_an_async_step_that_makes_its_timeout_an_error_of_its_own_timed_out_and_is_undone(ledger: Ledger) -> None:
    async def slow(ctx: Context) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ConnectionError("half sent") from None

    async def main() -> None:
        wf = Workflow("slow")
        wf.add_step("slow", slow, timeout=SOON, compensate=lambda ctx: ledger.append("-slow"))
        with pytest.raises(StepTimeout, match="did not finish within its timeout") as caught:
            await AsyncEngine().run(wf)
        assert repr(caught.value.__cause__) == "ConnectionError('half sent')"
        assert ledger == ["-slow"]

    run_async(main)


def test_an_async_step_that_ignores_its_cancellation_is_left_behind_and_completes_late() -> None:
    async def main() -> None:
        release = asyncio.Event()
        events: list[Any] = []

        async def stubborn(ctx: Context) -> str:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            return "late"

        undone: list[object] = []
        wf = Workflow("stubborn")
        wf.add_step("stubborn", stubborn, timeout=SOON, compensate=lambda ctx: undone.append(ctx.get("stubborn")))
        run = await AsyncEngine(hooks=[events.append], grace=SOON).run(wf, check=False)
        assert (run.status, undone) == (Status.COMPENSATED, [None])
        release.set()
        await until_async(lambda: len(undone) == 2)
        assert undone == [None, "late"]
        assert of_type(events, StepCompletedLate)[0].outcome is Status.SUCCESS

    run_async(main)


def test_an_async_step_that_answers_although_it_was_cancelled_has_its_result() -> None:
    async def keeps_cool(ctx: Context) -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "finished anyway"
        return "never"

    async def main() -> None:
        wf = Workflow("cool")
        wf.add_step("a", keeps_cool, timeout=SOON)
        assert (await AsyncEngine().run(wf))["a"] == "finished anyway"

    run_async(main)


def test_asyncio_timeout_inside_a_step_is_the_steps_own_business() -> None:
    async def own(ctx: Context) -> str:
        try:
            async with asyncio.timeout(SOON):
                await asyncio.sleep(3600)
        except TimeoutError:
            return "mine"
        return "never"

    async def main() -> None:
        wf = Workflow("own")
        wf.add_step("a", own)
        wf.add_step("b", own, timeout=60, depends_on="a")
        wf.add_step("c", own, retry=2, depends_on="b")
        run = await AsyncEngine().run(wf)
        assert set(run.results.values()) == {"mine"}

    run_async(main)


def test_a_task_group_inside_a_step_works_in_company_and_alone() -> None:
    async def grouped(ctx: Context) -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
        return sum(task.result() for task in tasks)

    async def main() -> None:
        wf = Workflow("groups")
        for number in range(3):
            wf.add_step(str(number), grouped, timeout=60 if number else None)
        wf.add_step("alone", grouped, depends_on=["0", "1", "2"])
        assert set((await AsyncEngine().run(wf)).results.values()) == {3}

    run_async(main)


def test_an_outer_asyncio_timeout_cancels_the_run_and_raises_timeouterror(ledger: Ledger) -> None:
    async def main() -> None:
        async def slow(ctx: Context) -> None:
            limit.reschedule(asyncio.get_running_loop().time())
            await asyncio.sleep(3600)

        wf = Workflow("outer")
        ledger.add(wf, "a")
        wf.add_step("slow", slow, depends_on="a", compensate=lambda ctx: ledger.append("-slow"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:
                await AsyncEngine().run(wf)
        assert ledger == ["a", "-slow", "-a"]

    run_async(main)
