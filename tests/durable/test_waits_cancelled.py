"""Cancelling a run, or sending to it, in the moment in which it is left to its store, and one that waits there, past its pivot
or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from flowcore import Context, Status, StepCancelled, Workflow
from flowcore._durable import checkpoints
from flowcore._durable.dormant import continuation
from flowcore._engines import aio_runs, thread_runs
from flowcore.events import RunFinished
from tests.core.conftest import PATIENCE
from tests.stores.redis_servers import until

from .towns import Town

Effects = list[str]


def paid(effects: Effects, *, pivot: bool = True) -> Workflow:
    """a, then pay, past which nothing may be undone, then a wait."""
    wf = Workflow("paid")
    wf.add_step("a", lambda ctx: effects.append("a"), compensate=lambda ctx: effects.append("-a"))
    wf.add_step("pay", lambda ctx: effects.append("pay"), depends_on="a", pivot=pivot)
    wf.wait("delivered", depends_on="pay")
    return wf


def in_the_gap(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have another thread do this once a run was left to its store, before anything continues it for its caller."""
    done: list[threading.Thread] = []

    def acted(*arguments: Any) -> Any:
        if not done:
            done.append(threading.Thread(target=act))
            done[0].start()
            done[0].join(PATIENCE)
        return continuation(*arguments)

    for engines in (aio_runs, thread_runs):
        monkeypatch.setattr(engines, "continuation", acted)


@pytest.mark.parametrize("way", ["key", "id"])
@pytest.mark.parametrize("pivot", [False, True])
def test_a_run_that_is_cancelled_as_it_is_left_to_its_store_is_cancelled_here(
    town: Town, monkeypatch: pytest.MonkeyPatch, pivot: bool, way: str
) -> None:
    effects, engine, found = Effects(), town.engine(), list[bool]()

    def cancel() -> None:
        head: Any = town.store.find("k")
        found.append(bool(engine.cancel(key="k") if way == "key" else engine.cancel(head.run_id)))

    in_the_gap(monkeypatch, cancel)
    future = town.start(engine, paid(effects, pivot=pivot), idempotency_key="k")
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert found == [True]
    assert town.status() == ("incomplete" if pivot else "compensated")
    assert effects == (["a", "pay"] if pivot else ["a", "pay", "-a"])
    assert not engine._live.left


def test_a_value_that_comes_as_a_run_is_left_to_its_store_is_not_waited_for_again(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has written that the run waits, its owner does not know that yet, and `engine.send` does what it does."""
    engine, finish, counted = town.engine(), checkpoints.finish, list[object]()

    def finished(run: Any, ledger: Any, record: Any) -> Any:
        failure = yield from finish(run, ledger, record)
        if not counted:
            assert town.store.send("k", "delivered", 7)
            counted.append(engine._live.deliver("k", "delivered", town.store.find("k").sent["delivered"]))
        return failure

    monkeypatch.setattr(checkpoints, "finish", finished)
    run = town.start(engine, paid(Effects()), idempotency_key="k").result(PATIENCE)
    assert run["delivered"] == 7
    assert counted != [None]


def test_a_value_that_comes_before_a_run_has_its_key_begins_no_step(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wakes the run, which has sent its claim and has no reply yet."""
    effects, ask, woken = Effects(), checkpoints.ask, list[object]()
    wf = paid(effects)
    town.pause(town.engine(), wf)
    engine = town.engine()
    assert town.store.send("k", "delivered", 7)

    def asked(run: Any, verb: str, *arguments: Any) -> Any:
        if verb == "claim" and not woken:
            woken.append(engine._live.deliver("k", "delivered", town.store.find("k").sent["delivered"]))
            time.sleep(0.1)  # a thread of the pool could begin a step now
        return (yield from ask(run, verb, *arguments))

    monkeypatch.setattr(checkpoints, "ask", asked)
    run = town.call(engine.run(wf, idempotency_key="k"))
    assert (run["delivered"], effects) == (7, ["a", "pay"])
    assert woken != [None]


def test_a_caller_that_wants_a_run_as_soon_as_it_waits_may_be_cancelled_in_that_moment(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects, engine = Effects(), town.engine()
    in_the_gap(monkeypatch, lambda: engine.cancel(key="k"))
    with pytest.raises(StepCancelled):
        town.call(engine.run(paid(effects), idempotency_key="k", until="waiting"))
    assert town.status() == "incomplete"
    assert not engine._live.left


def test_nothing_is_kept_of_runs_that_are_left_to_their_store(town: Town) -> None:
    effects, wf = Effects(), paid(Effects())
    engine = town.engine()
    assert town.pause(engine, wf).status is Status.WAITING
    other = town.engine(workflows=[wf])
    town.store.resume("k")
    until(lambda: (town.call(other.recover()), town.status())[1] == "waiting", "it to be left once more")
    assert not engine._live.left
    assert not other._live.left
    assert not effects


@pytest.mark.parametrize("verb", ["cancel", "undo"])
def test_an_operator_who_cancels_a_run_past_its_pivot_leaves_it_incomplete_and_one_who_undoes_it_has_it_undone(
    town: Town, verb: str
) -> None:
    effects, ends = Effects(), list[Status]()

    def note(event: object) -> None:  # an incomplete run is soon resumed, so its record may not show that for long
        if isinstance(event, RunFinished):
            ends.append(event.outcome)

    wf = paid(effects)
    town.pause(town.engine(), wf)
    town.engine(workflows=[wf], recover_every=0.05, hooks=[note])
    getattr(town.store, verb)("k")
    wanted = Status.INCOMPLETE if verb == "cancel" else Status.COMPENSATED
    until(lambda: wanted in ends, "the decision to be carried out")
    assert effects == (["a", "pay"] if verb == "cancel" else ["a", "pay", "-a"])


def test_a_pivot_that_ends_while_its_run_is_undone_by_an_operator_does_not_keep_it_from_that(town: Town) -> None:
    effects, wf = Effects(), Workflow("paying")
    wf.add_step("a", lambda ctx: effects.append("a"), compensate=lambda ctx: effects.append("-a"))

    def pay(ctx: Context) -> None:
        effects.append("pay")
        while not ctx.cancelled:
            time.sleep(0.01)

    wf.add_step("pay", pay, depends_on="a", pivot=True)
    future = town.start(town.engine(grace=PATIENCE, lease=2), wf, idempotency_key="k")
    until(lambda: "pay" in effects, "the pivot to start")
    town.store.undo("k")
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert (town.status(), effects) == ("compensated", ["a", "pay", "-a"])


@pytest.mark.parametrize("verb", ["cancel", "undo"])
def test_the_same_goes_for_a_run_past_its_pivot_that_is_running(town: Town, verb: str) -> None:
    effects, wf, released = Effects(), Workflow("running"), threading.Event()
    wf.add_step("a", lambda ctx: effects.append("a"), compensate=lambda ctx: effects.append("-a"))
    wf.add_step("pay", lambda ctx: effects.append("pay"), depends_on="a", pivot=True)

    def ship(ctx: Context) -> None:
        effects.append("ship")
        while not ctx.cancelled and not released.wait(0.01):
            pass

    wf.add_step("ship", ship, depends_on="pay", compensate=lambda ctx: effects.append("-ship"))
    future = town.start(town.engine(grace=PATIENCE, lease=2), wf, idempotency_key="k")
    until(lambda: "ship" in effects, "the last step to start")
    try:
        getattr(town.store, verb)("k")
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
    finally:
        released.set()
    assert town.status() == ("incomplete" if verb == "cancel" else "compensated")
    assert effects == (["a", "pay", "ship"] if verb == "cancel" else ["a", "pay", "ship", "-ship", "-a"])
