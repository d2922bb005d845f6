"""flowcore.testing for users: rehearse, simulate, Journal and no_waiting."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    DefinitionError,
    Engine,
    IdempotencyHeld,
    Landed,
    NotLanded,
    Retry,
    RunFailed,
    Status,
    StepCancelled,
    StepTimeout,
    Workflow,
)
from flowcore.events import BackoffStarted, RunStarted
from flowcore.stores import MemoryStore
from flowcore.testing import Fault, Journal, SimulatedStore, no_waiting, rehearse, simulate
from flowcore.testing.acts import CRASHES


class Books(Counter[str]):
    """A small world: the bookings that were not given back. Each key takes effect only once, as with good services."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    def book(self, what: str, key: str) -> None:
        if key not in self.used:
            self.used.add(key)
            self[what] += 1

    def give_back(self, what: str) -> None:
        self[what] = 0

    def reset(self) -> None:
        self.clear()
        self.used.clear()

    def all_or_nothing(self) -> bool:
        return set(self.values()) <= {0} or (len(self) == 3 and set(self.values()) == {1})


def trip(books: Books, *, undo: Literal["done", "attempted"] = "attempted", without: str = "") -> Workflow:
    """Return a workflow of three bookings in a row. Its arguments plant bugs: `without` leaves the undo of a step out,
    and `undo="done"` undoes no step that raised."""
    wf = Workflow("trip", undo=undo)
    before: list[str] = []
    for name in ("flight", "hotel", "car"):

        def book(ctx: Context) -> str:
            books.book(ctx.step, ctx.step_key)
            return ctx.step

        def cancel(ctx: Context) -> None:
            books.give_back(ctx.step)

        wf.add_step(name, book, depends_on=before, compensate=None if name == without else cancel, retry=2)
        before = [name]
    return wf


# -- rehearse ----------------------------------------------------------------------------------------------------------


def test_a_workflow_that_cleans_up_after_itself_is_clean() -> None:
    books = Books()
    rehearsal = rehearse(trip(books), world=books.all_or_nothing, reset=books.reset)
    rehearsal.assert_clean()
    assert rehearsal.clean
    tried = set(Fault) - {Fault.NO_THREAD}  # the run has no deadline
    assert len(rehearsal.scenes) == 3 * len(tried) + 1 - 1  # and the car's own undo, after which nothing can fail
    assert {scene.fault for scene in rehearsal.scenes} == {*tried, "run twice"}


def test_an_effect_without_undo_is_found_wherever_something_after_it_fails() -> None:
    books = Books()
    rehearsal = rehearse(trip(books, without="hotel"), world=books.all_or_nothing, reset=books.reset)
    assert not rehearsal.clean
    found = {(scene.step, scene.fault) for scene in rehearsal.dirty}
    assert ("car", Fault.FAIL_BEFORE) in found
    assert ("hotel", Fault.FAIL_AFTER) in found
    assert ("flight", Fault.FAIL_BEFORE) not in found
    assert ("hotel", Fault.FAIL_BEFORE) not in found


def test_a_failure_after_the_effect_that_no_undo_covers_is_found() -> None:
    books = Books()
    rehearsal = rehearse(trip(books, undo="done"), world=books.all_or_nothing, reset=books.reset)
    assert {(scene.step, scene.fault) for scene in rehearsal.dirty} == {
        (step, Fault.FAIL_AFTER) for step in ("flight", "hotel", "car")
    }
    with pytest.raises(
        AssertionError, match=r"(?s)did not leave the world clean.*DIRTY.*hotel fails after its effect: "
    ):
        rehearsal.assert_clean()


def test_an_effect_that_retries_repeat_is_found() -> None:
    books = Books()
    wf = Workflow("careless", undo="attempted")

    def book(ctx: Context) -> None:
        books["flight"] += 1  # without ctx.step_key: once for each attempt

    def cancel(ctx: Context) -> None:
        books["flight"] = max(0, books["flight"] - 1)

    wf.add_step("flight", book, retry=3, compensate=cancel)
    rehearsal = rehearse(wf, world=lambda: books["flight"] in {0, 1}, reset=books.reset)
    assert {scene.fault for scene in rehearsal.dirty} == {Fault.FAIL_AFTER, Fault.CRASH_AFTER}


def test_the_table_has_a_row_for_each_step_and_a_column_for_each_fault() -> None:
    books = Books()
    table = str(rehearse(trip(books, undo="done"), world=books.all_or_nothing, reset=books.reset)).splitlines()
    widths = [8, 25, 24, 11, 32, 21, 12, 27, 26, 9]
    rows = [
        ["", *(str(fault) for fault in Fault if fault is not Fault.NO_THREAD), "run twice"],
        ["flight", "ok", "DIRTY", "ok", "ok", "ok", "ok", "ok", "ok", "-"],
        ["hotel", "ok", "DIRTY", "ok", "ok", "ok", "ok", "ok", "ok", "-"],
        ["car", "ok", "DIRTY", "ok", "ok", "ok", "-", "ok", "ok", "-"],
        ["(all)", "-", "-", "-", "-", "-", "-", "-", "-", "ok"],
    ]
    assert table == ["".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def test_a_world_may_assert_and_its_words_are_the_trouble() -> None:
    books = Books()

    def world() -> None:
        if books["flight"]:
            raise AssertionError(f"{books['flight']} flights are booked")

    wf = trip(books)
    rehearsal = rehearse(wf, world=world, reset=books.reset)
    assert {scene.trouble for scene in rehearsal.dirty} == {"1 flights are booked"}
    with pytest.raises(AssertionError, match="run twice: 1 flights are booked"):
        rehearsal.assert_clean()


def test_a_fault_that_never_strikes_at_its_step_is_an_error() -> None:
    wf = Workflow("broken")
    wf.add_step("a", lambda ctx: 1 / 0)
    wf.add_step("b", lambda ctx: None, depends_on="a")
    with pytest.raises(AssertionError, match="the fault 'fails after its effect' never struck at step 'a'"):
        rehearse(wf, world=lambda: True)


def test_every_fault_strikes_at_its_step_and_says_so() -> None:
    for fault in (Fault.FAIL_BEFORE, Fault.FAIL_AFTER, Fault.TIMEOUT, Fault.STUCK, Fault.CANCEL):
        simulation = simulate(trip(Books()), faults={"hotel": fault}, seed=7)
        assert set(simulation.fired) == {("hotel", fault)}
        run = simulation.run
        assert run.steps["flight"].status is Status.SUCCESS
        if fault is Fault.CANCEL:
            assert isinstance(run.error, StepCancelled)
        elif fault is Fault.TIMEOUT:
            assert run["hotel"] == "hotel"  # it came back while its next attempt waited for it
        else:
            assert run.failed_step == "hotel"
    assert isinstance(simulate(trip(Books()), faults={"car": Fault.STUCK}).run.error, StepTimeout)


def test_a_skipped_step_has_nothing_to_rehearse() -> None:
    wf = Workflow("optional")
    wf.add_step("a", lambda ctx: None, when=lambda ctx: False)
    rehearsal = rehearse(wf, world=lambda: True)
    assert [scene.step for scene in rehearsal.scenes] == ["(all)"]


def payment(books: Books, **options: Any) -> Workflow:
    """Return a workflow that pays without ctx.step_key, so that a second attempt pays a second time."""
    wf = Workflow("payment")

    def pay(ctx: Context) -> str:
        books["paid"] += 1
        return "paid"

    wf.add_step("pay", pay, **options)
    wf.add_step("ship", lambda ctx: ctx["pay"], depends_on="pay")
    return wf


def test_an_effect_that_a_takeover_repeats_is_found() -> None:
    books = Books()
    rehearsal = rehearse(payment(books), world=lambda: books["paid"] <= 1, reset=books.reset)
    assert {(scene.step, scene.fault) for scene in rehearsal.dirty} == {("pay", Fault.CRASH_AFTER)}
    scenes = {(scene.step, scene.fault): scene for scene in rehearsal.scenes}
    assert all(scenes[step, fault].run.status is Status.SUCCESS for step in ("pay", "ship") for fault in CRASHES)


def test_a_verify_that_looks_mends_that() -> None:
    books = Books()

    def verify(ctx: Context) -> Any:
        return Landed("paid") if books["paid"] else NotLanded

    rehearsal = rehearse(payment(books, verify=verify), world=lambda: books["paid"] <= 1, reset=books.reset)
    rehearsal.assert_clean()


def test_a_crash_in_a_step_that_asks_an_operator_must_hold_the_run() -> None:
    books = Books()
    wf = payment(books, on_crash="hold")
    rehearsal = rehearse(wf, world=lambda: books["paid"] <= 1, reset=books.reset)
    held = {(scene.step, scene.fault) for scene in rehearsal.scenes if scene.run.held}
    assert held == {("pay", Fault.CRASH_BEFORE), ("pay", Fault.CRASH_AFTER)}
    rehearsal.assert_clean()


def test_a_crash_in_a_step_to_be_undone_leaves_the_world_as_it_was() -> None:
    books = Books()

    def back(ctx: Context) -> None:
        books["paid"] = 0

    wf = payment(books, on_crash="undo", compensate=back)
    rehearsal = rehearse(wf, world=lambda: books["paid"] <= 1, reset=books.reset)
    scene = next(s for s in rehearsal.scenes if (s.step, s.fault) == ("pay", Fault.CRASH_AFTER))
    assert (scene.clean, scene.run.status, scene.run.undone) == (True, Status.COMPENSATED, ("pay",))
    assert isinstance(scene.run.error, RunFailed)


def test_a_failed_undo_must_hold_the_key() -> None:
    books = Books()
    rehearsal = rehearse(trip(books), world=books.all_or_nothing, reset=books.reset)
    scenes = [scene for scene in rehearsal.scenes if scene.fault == Fault.UNDO_FAILS]
    assert [scene.step for scene in scenes] == ["flight", "hotel"]
    assert all(scene.run.held and scene.run.status is Status.COMPENSATION_FAILED for scene in scenes)


def test_run_twice_must_replay() -> None:
    calls: list[str] = []
    wf = Workflow("once")
    wf.add_step("a", lambda ctx: calls.append(ctx.step_key))
    scene = rehearse(wf, world=lambda: True).scenes[-1]
    assert (scene.step, scene.fault, scene.clean, scene.run.replayed) == ("(all)", "run twice", True, True)


# -- simulate ----------------------------------------------------------------------------------------------------------


def two_branches() -> Workflow:
    wf = Workflow("branches")
    for name in ("a", "b", "c", "d"):
        wf.add_step(name, lambda ctx: ctx.step, retry=2)
    wf.add_step("end", lambda ctx: None, depends_on=["a", "b", "c", "d"])
    return wf


def test_a_seed_is_a_schedule() -> None:
    wf = two_branches()
    orders = {tuple(simulate(wf, seed=seed).journal) for seed in range(200)}
    assert len(orders) == 24  # Four steps can end in 24 orders.
    for seed in range(20):
        first, second = simulate(wf, seed=seed), simulate(wf, seed=seed)
        assert first.journal == second.journal
        assert [event.at for event in first.events] == [event.at for event in second.events]
        assert (first.run.id, first.took, first.calls) == (second.run.id, second.took, second.calls)


def test_virtual_hours_take_no_time() -> None:
    def fails_twice(ctx: Context) -> str:
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return "at last"

    wf = Workflow("patient")
    wf.add_step("a", fails_twice, retry=Retry(3, Backoff.fixed(3600)))
    began = time.monotonic()
    simulation = simulate(wf)
    assert time.monotonic() - began < 5
    assert simulation.run["a"] == "at last"
    assert 7200 <= simulation.took <= 7203


def test_a_simulation_can_be_cancelled_at_a_moment() -> None:
    wf = Workflow("long")
    wf.add_step("a", lambda ctx: 1 / 0, retry=Retry(5, Backoff.fixed(60)))
    simulation = simulate(wf, cancel_at=100.0)
    assert isinstance(simulation.run.error, StepCancelled)
    assert simulation.cancelled == simulation.began + 100.0
    assert simulation.took == pytest.approx(100.0)
    assert simulation.run.steps["a"].attempts == 2


def test_a_simulation_runs_async_steps_and_undos() -> None:
    done: list[str] = []

    async def book(ctx: Context) -> str:
        await asyncio.sleep(0)
        done.append("book")
        return "seat"

    async def cancel(ctx: Context) -> None:
        await asyncio.sleep(0)
        done.append(f"cancel {ctx['book']}")

    wf = Workflow("async")
    wf.add_step("book", book, compensate=cancel)
    wf.add_step("pay", lambda ctx: 1 / 0, depends_on="book")
    assert simulate(wf).run.status is Status.COMPENSATED
    assert done == ["book", "cancel seat"]


def test_a_store_and_a_key_make_simulations_one_run() -> None:
    store = MemoryStore()
    wf = two_branches()
    first = simulate(wf, store=store, idempotency_key="k")
    assert simulate(wf, store=store, idempotency_key="k").run.id == first.run.id
    wf = trip(Books())
    faults = {"hotel": Fault.FAIL_BEFORE, "flight": Fault.UNDO_FAILS}
    assert simulate(wf, store=store, idempotency_key="trip", faults=faults).run.held
    with pytest.raises(IdempotencyHeld):
        simulate(wf, store=store, idempotency_key="trip")


def test_a_fault_at_an_unknown_step_is_refused() -> None:
    with pytest.raises(DefinitionError, match="faults= names 'x', which is not a step of 'branches'"):
        simulate(two_branches(), faults={"x": Fault.FAIL_BEFORE})


def test_a_simulated_crash_is_followed_by_a_takeover() -> None:
    books = Books()
    simulation = simulate(payment(books), faults={"pay": Fault.CRASH_BEFORE}, lease=20.0)
    assert simulation.fired == [("pay", Fault.CRASH_BEFORE)]
    assert (simulation.run.status, books["paid"]) == (Status.SUCCESS, 1)
    assert simulation.journal == ["do pay", "do ship", "run success"]
    starts = [event for event in simulation.events if isinstance(event, RunStarted)]
    assert [(event.fence, event.interrupted_run_id) for event in starts] == [(1, None), (2, simulation.run.id)]
    assert 20 < simulation.took < 30  # the dead process's lease had to end
    assert [(call.process, call.step, call.performed is not None) for call in simulation.calls] == [
        (0, "pay", False),
        (1, "pay", True),
        (1, "ship", True),
    ]


def test_a_simulated_crash_in_async_code_is_one_too() -> None:
    done: list[str] = []

    async def pay(ctx: Context) -> None:
        await asyncio.sleep(0)
        done.append(ctx.step)

    for fn in (pay, lambda ctx: pay(ctx)):  # noqa: PLW0108 - a plain function that returns a coroutine
        wf = Workflow("async payment")
        wf.add_step("pay", fn)
        for fault, times in ((Fault.CRASH_BEFORE, 1), (Fault.CRASH_AFTER, 2)):
            done.clear()
            assert simulate(wf, faults={"pay": fault}).run.status is Status.SUCCESS
            assert done == ["pay"] * times


def test_a_crash_wants_a_durable_store() -> None:
    faults = {"a": Fault.CRASH_BEFORE}
    with pytest.raises(DefinitionError, match=r"A crash needs a durable store.*Pass SimulatedStore\(\)"):
        simulate(two_branches(), faults=faults, store=MemoryStore())
    store = SimulatedStore()
    run = simulate(two_branches(), faults=faults, store=store, idempotency_key="k").run
    assert store.find("k").status is Status.SUCCESS
    assert simulate(two_branches(), store=store, idempotency_key="k").run.id == run.id


def test_a_simulation_without_hooks_has_neither_events_nor_journal() -> None:
    simulation = simulate(two_branches(), observed=False)
    assert (simulation.events, list(simulation.journal)) == ([], [])
    assert simulation.run.status is Status.SUCCESS
    assert [call.what for call in simulation.calls] == ["do"] * 5


# -- Journal -----------------------------------------------------------------------------------------------------------


def story(name: str) -> Workflow:
    """Return a workflow with one step of each outcome."""
    wf = Workflow("story", max_parallel=1)
    wf.add_step("book", lambda ctx: None, compensate=lambda ctx: None)
    wf.add_step("gift", lambda ctx: None, depends_on="book", when=lambda ctx: False)
    wf.add_step("seat", lambda ctx: None, depends_on="gift", compensate=lambda ctx: 1 / 0)
    wf.add_step(name, lambda ctx: 1 / 0, depends_on="seat")
    return wf


LINES = ["do book", "skip gift", "do seat", "fail pay", "undo-failed seat", "undo book", "run compensation_failed"]


def test_a_journals_record_is_the_assertion() -> None:
    journal = Journal()
    with Engine(hooks=[journal]) as engine:
        engine.run(story("pay"), check=False)
    assert journal == LINES
    assert journal != LINES[1:]
    assert (journal[0], journal[-1], journal[:2], len(journal)) == (LINES[0], LINES[-1], LINES[:2], 7)
    assert "skip gift" in journal
    assert repr(journal) == f"Journal({LINES!r})"
    with pytest.raises(TypeError, match="unhashable"):
        hash(journal)


def test_two_journals_are_equal_where_they_say_the_same() -> None:
    assert simulate(story("pay")).journal == simulate(story("pay"), seed=1).journal == LINES
    assert simulate(story("pay")).journal != simulate(story("ship")).journal
    assert Journal() == []


def test_a_journal_reports_timeouts_cancellations_late_completions_and_replays() -> None:
    wf = Workflow("slow")
    wf.add_step("pay", lambda ctx: None, timeout=1.0, compensate=lambda ctx: None)
    assert simulate(wf, faults={"pay": Fault.TIMEOUT}).journal == [
        "timeout pay",
        "late pay",
        "undo pay",
        "run compensated",
    ]
    assert simulate(wf, cancel_at=0.0, seed=3).journal[-1].startswith("run ")
    cancelled = [simulate(wf, faults={"pay": Fault.CANCEL}, grace=0.0, seed=seed).journal for seed in range(9)]
    assert any("cancel pay" in journal for journal in cancelled)
    journal, keyed = Journal(), Workflow("keyed")
    keyed.add_step("a", lambda ctx: None)
    with Engine(hooks=[journal]) as engine:
        for _ in range(2):
            engine.run(keyed, idempotency_key="k")
    assert journal == ["do a", "run success", "key replayed"]


# -- no_waiting --------------------------------------------------------------------------------------------------------


def slow_to_succeed() -> Workflow:
    def fails_once(ctx: Context) -> str:
        if ctx.attempt == 1:
            raise ValueError("once")
        return "then"

    wf = Workflow("slow to succeed")
    wf.add_step("a", fails_once, retry=Retry(2, Backoff.fixed(3600)))
    return wf


def on_threads(hooks: list[Any]) -> Any:
    with Engine(hooks=hooks) as engine:
        return engine.run(slow_to_succeed())["a"]


def submitted(hooks: list[Any]) -> Any:
    with Engine(hooks=hooks) as engine:
        return engine.submit(slow_to_succeed()).result(20)["a"]


def on_asyncio(hooks: list[Any]) -> Any:
    async def main() -> Any:
        async with AsyncEngine(hooks=hooks) as engine:
            return (await engine.run(slow_to_succeed()))["a"]

    return asyncio.run(main())


@pytest.mark.parametrize("engine", [on_threads, submitted, on_asyncio])
def test_no_waiting_waits_for_nothing_in_real_engines_and_emits_all_the_same(
    engine: Callable[[list[Any]], Any],
) -> None:
    events: list[Any] = []
    began = time.monotonic()
    with no_waiting():
        assert engine([events.append]) == "then"
    assert time.monotonic() - began < 20
    assert [event.delay for event in events if isinstance(event, BackoffStarted)] == [3600.0]


def test_no_waiting_ends_with_its_block() -> None:
    wf = Workflow("waits again")
    wf.add_step("a", lambda ctx: 1 / 0 if ctx.attempt == 1 else None, retry=Retry(2, Backoff.fixed(0.05)))
    with no_waiting(), no_waiting():
        pass
    began = time.monotonic()
    with Engine() as engine:
        engine.run(wf)
    assert time.monotonic() - began >= 0.05
