"""What the Go original of this engine got wrong: each of its defects that concerns runs in memory, by name."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    IdempotencyHeld,
    Retry,
    Status,
    StepCancelled,
    StepTimeout,
    StoreError,
    Workflow,
)
from flowcore.stores import MemoryStore
from flowcore.stores.base import Ending

from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, notes, run_async, until


def test_no_barrier_per_layer(live: MakeLive, gate: Gate) -> None:
    """A step whose own dependencies are done does not wait for the rest of its layer."""
    wf = Workflow("w")
    wf.add_step("slow sibling", gate)
    wf.add_step("quick", lambda ctx: None)
    wf.add_step("next", lambda ctx: gate.set(), depends_on="quick")
    assert live().run(wf).status is Status.SUCCESS


def test_cancelling_between_steps_never_reports_success_with_steps_unrun(live: MakeLive, ledger: Ledger) -> None:
    """Go: cancelling between layers returned nil and marked the key completed."""
    one, wf = live(), Workflow("w")

    def cancels(ctx: Context) -> None:
        one.engine.cancel(ctx.run_id)
        until(lambda: ctx.cancelled)

    ledger.add(wf, "a", first=cancels)
    ledger.add(wf, "b", depends_on="a")
    with pytest.raises(StepCancelled):
        one.run(wf, idempotency_key="k")
    assert "b" not in ledger
    (record,) = one.engine.store.list_runs()
    assert record.status is Status.COMPENSATED


def test_compensations_do_not_get_the_callers_cancelled_context() -> None:
    """Go: an undo that awaited anything failed at once, because the context it was given was cancelled already."""

    async def main() -> None:
        undone: list[str] = []
        began = asyncio.Event()

        async def undo(ctx: Context) -> None:
            await asyncio.sleep(0.001)
            undone.append("a")

        async def slow(ctx: Context) -> None:
            began.set()
            await asyncio.sleep(3600)

        wf = Workflow("w")
        wf.add_step("a", lambda ctx: 1, compensate=undo)
        wf.add_step("slow", slow, depends_on="a")
        task = asyncio.ensure_future(AsyncEngine().run(wf))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert undone == ["a"]

    run_async(main)


def test_a_stale_run_cannot_flip_anothers_claim(ledger: Ledger, gate: Gate) -> None:
    """Go: FinishIdempotency did not check who owned the key."""
    store, began, wf = MemoryStore(), Gate(), Workflow("w")
    wf.add_step("slow", began.then(gate))
    with Engine(store=store) as engine:
        future = engine.submit(wf, idempotency_key="k")
        began.wait()
        (mine,) = store.list_runs()
        store.finish(Ending(replace(mine, run_id="0" * 32, status=Status.SUCCESS)))  # a stranger says that it is done
        store.finish(Ending(replace(mine, fence=mine.fence - 2, status=Status.SUCCESS)))  # so does an earlier owner
        assert [record.status for record in store.list_runs()] == [Status.RUNNING]
        gate.set()
        future.result(PATIENCE)


def test_an_error_of_the_store_at_the_end_is_not_dropped(drive: Drive, ledger: Ledger) -> None:
    """Go: the errors of SetStep and Finish were thrown away."""

    class Broken(MemoryStore):
        def finish(self, record: Any, /) -> None:
            raise StoreError("the disk is full")

    wf = ledger.chain("a")
    with pytest.raises(StoreError, match="the disk is full") as caught:
        drive(wf, store=Broken(), idempotency_key="k")
    assert "succeeded, but its end could not be recorded; its key is still in use" in notes(caught.value)


def test_an_error_of_the_store_after_a_failure_is_a_note_on_it(drive: Drive, ledger: Ledger) -> None:
    """Go: the errors of SetStep and Finish were thrown away."""

    class Broken(MemoryStore):
        def finish(self, record: Any, /) -> None:
            raise StoreError("the disk is full")

    wf = ledger.chain("a", "b!")
    with pytest.raises(ValueError, match="b") as caught:
        drive(wf, store=Broken(), idempotency_key="k")
    assert (
        "the end of the run could not be recorded (StoreError: the disk is full); its key is still in use"
        in caught.value.__notes__
    )


def test_a_failed_undo_does_not_release_the_key(drive: Drive, ledger: Ledger) -> None:
    """Go: the next call with the key ran on top of what the failed undo had left."""
    store, wf = MemoryStore(), Workflow("w")
    ledger.add(wf, "a", undo_raises=ValueError("stuck"))
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    drive(wf, store=store, idempotency_key="k", check=False)
    with pytest.raises(IdempotencyHeld):
        drive(wf, store=store, idempotency_key="k")
    assert ledger == ["a", "b", "-a"]


def test_nothing_is_kept_for_ever(drive: Drive, ledger: Ledger) -> None:
    """Go: no record had a time to live."""
    store = MemoryStore(max_runs=10)
    for number in range(30):
        drive(ledger.chain("a"), store=store, idempotency_key=str(number))
    assert len(store.list_runs()) == 10


def test_a_timeout_holds_for_a_step_that_does_not_look_at_its_context(live: MakeLive, gate: Gate) -> None:
    """Go: a timeout was a wish that the step could ignore."""
    wf = Workflow("w")
    wf.add_step("deaf", gate, timeout=0.02)
    with pytest.raises(StepTimeout):
        live(grace=0.01).run(wf)


def test_a_step_that_blows_up_does_not_end_the_process_nor_skip_the_undo(drive: Drive, ledger: Ledger) -> None:
    """Go: a panic in a step ended the process; even SystemExit out of a pool's thread is the caller's here."""
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=SystemExit("boom"))
    with pytest.raises(SystemExit):
        drive(wf)
    assert ledger == ["a", "b", "-b", "-a"]


def test_a_sibling_cancelled_in_the_middle_of_its_effect_is_compensated(live: MakeLive, ledger: Ledger) -> None:
    """Go: a cancelled sibling counted as not run, whatever it had done."""
    wf, halfway = Workflow("w", on_failure="cancel"), threading.Event()

    def half(ctx: Context) -> None:
        ledger.append("half")
        halfway.set()
        until(lambda: ctx.cancelled)
        raise SystemExit  # it gives up in the middle

    wf.add_step("half", half, compensate=lambda ctx: ledger.append("-half"))
    wf.add_step("fails", lambda ctx: [halfway.wait(PATIENCE), 1 / 0])
    with pytest.raises((ZeroDivisionError, SystemExit)):
        live().run(wf)
    assert ledger == ["half", "-half"]


def test_an_unknown_state_of_a_record_does_not_mean_busy_for_ever(drive: Drive, ledger: Ledger) -> None:
    """Go: a record whose state it did not know answered BUSY for ever."""
    store, wf = MemoryStore(), ledger.chain("a")
    drive(wf, store=store, idempotency_key="k")
    store._runs["k"].record.status = "no such status"  # type: ignore[assignment]  # pyright: ignore[reportPrivateUsage]  # the point
    with pytest.raises(StoreError):
        drive(wf, store=store, idempotency_key="k")


def test_a_completed_key_returns_its_results(drive: Drive, ledger: Ledger) -> None:
    """Go: the second caller learned that it was done, but not what came of it."""
    store, wf = MemoryStore(), ledger.chain("a")
    drive(wf, store=store, idempotency_key="k")
    assert drive(wf, store=store, idempotency_key="k")["a"] == "a"


def test_keys_that_differ_in_a_blank_are_two_keys(drive: Drive, ledger: Ledger) -> None:
    """Go: trimming merged "a" and "a "."""
    store = MemoryStore()
    for key in ("a", "a ", " a", "a\t"):
        assert not drive(ledger.chain("a"), store=store, idempotency_key=key).replayed


def test_exponential_backoff_does_not_overflow() -> None:
    """Go: after 63 attempts the wait was negative."""
    backoff = Backoff.exponential(1, max_delay=30, jitter=False)
    assert [backoff.delay(n) for n in (1, 6, 64, 10_000, 10**9)] == [1, 30, 30, 30, 30]


# -- what was right there, and is kept ---------------------------------------------------------------------------------


def test_kept_total_attempts_reverse_completion_first_error_wins(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a")
    ledger.add(wf, "c", depends_on="b", raises=ValueError("first"), retry=Retry(2))
    with pytest.raises(ValueError, match="first"):
        drive(wf)
    assert ledger == ["a", "b", "c", "c", "-b", "-a"]
