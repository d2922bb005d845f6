"""A run whose store is away for longer than its lease keeps what has ended and waits, within `store_patience=`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from flowcore import Context, Engine, FlowcoreError, LeaseLost, RunParked, StepCancelled, StoreUnavailable, Workflow
from flowcore.stores.base import Behind, Checkpoint, Lost, Renewal
from tests.durable.test_programs import PATIENCE, Moody, done, fine, run, saga, silent, until

__all__ = ["done", "run"]  # fixtures

LEASE = 0.2


def away_for(store: Moody, seconds: float, error: type[Exception] = StoreUnavailable) -> Callable[[Context], str]:
    """A step at the end of which the store is away for so long."""

    def step(ctx: Context) -> str:
        comes_back = time.monotonic() + seconds

        def mood(verb: str, argument: Any) -> None:
            if time.monotonic() < comes_back and verb in {"checkpoint", "renew", "finish"}:
                raise error("away")

        store.moods = mood
        return ctx.step

    return step


@pytest.mark.parametrize("error", [StoreUnavailable, OSError])
@pytest.mark.parametrize("last", [False, True])
def test_a_step_that_ended_during_an_outage_longer_than_the_lease_is_not_done_again(
    run: Callable[..., Any], done: list[str], last: bool, error: type[Exception]
) -> None:
    store = Moody()
    steps = {"a": fine, "b": away_for(store, 2.5 * LEASE, error), **({} if last else {"c": fine})}
    ended = run(saga(done, **steps), options={"store": store, "lease": LEASE}, idempotency_key="k")
    assert (ended.status, done) == ("success", list(steps))
    assert store.asked.count("claim") == 1


def test_a_caller_hears_of_its_run_if_its_engine_is_closed_during_an_outage(done: list[str]) -> None:
    """On threads. The store is away for longer than the engine waits at its end: for three times its grace."""
    store, away = Moody(), threading.Event()

    def mood(verb: str, argument: Any) -> None:
        if verb in {"checkpoint", "renew", "finish"}:
            away.set()
            raise StoreUnavailable("away")

    def last(ctx: Context) -> str:
        store.moods = mood
        return ctx.step

    engine = Engine(store=store, grace=0.01, lease=3.0)
    future = engine.submit(saga(done, a=fine, b=last, c=fine), idempotency_key="k")
    assert away.wait(PATIENCE)
    engine.close(timeout=0)
    with pytest.raises(RunParked):
        future.result(PATIENCE)
    assert done == ["a", "b"]


def test_an_undo_that_ended_during_such_an_outage_is_not_done_again(run: Callable[..., Any], done: list[str]) -> None:
    store, wf = Moody(), Workflow("undone")
    wf.add_step("a", fine, compensate=lambda ctx: done.append("-a"))
    wf.add_step("b", fine, depends_on="a")
    step = wf.steps[1]
    leave = away_for(store, 2.5 * LEASE)

    def undo(ctx: Context) -> None:
        done.append("-b")
        leave(ctx)

    step.compensate(undo)
    wf.add_step("c", lambda ctx: 1 / 0, depends_on="b")
    ended = run(wf, options={"store": store, "lease": LEASE}, idempotency_key="k", check=False)
    assert (ended.status, done) == ("compensated", ["-b", "-a"])


def test_nothing_new_starts_past_the_lease(run: Callable[..., Any], done: list[str]) -> None:
    store, began = Moody(), list[float]()
    leave = away_for(store, 2.5 * LEASE)

    def note(ctx: Context) -> None:
        began.append(time.monotonic())

    def leaves(ctx: Context) -> None:
        leave(ctx)
        note(ctx)

    run(saga(done, a=leaves, b=note), options={"store": store, "lease": LEASE}, idempotency_key="k")
    assert began[1] - began[0] >= 2.4 * LEASE


def test_the_deadline_ends_the_wait(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()
    wf = saga(done, a=away_for(store, 60.0), b=fine)
    with pytest.raises(RunParked):
        run(wf, options={"store": store, "lease": LEASE}, idempotency_key="k", deadline=3 * LEASE)
    assert done == ["a"]


def test_a_run_that_another_owner_took_meanwhile_is_left_to_it(run: Callable[..., Any], done: list[str]) -> None:
    store = Moody()
    leave = away_for(store, 2.5 * LEASE)

    def taken(ctx: Context) -> None:
        leave(ctx)
        store._runs["k"].record.fence += 1

    wf = saga(done, a=taken, b=fine)
    with pytest.raises(LeaseLost):
        run(wf, options={"store": store, "lease": LEASE}, idempotency_key="k")
    assert done == ["a"]


def test_an_owner_whose_record_went_back_writes_all_that_it_knows(run: Callable[..., Any], done: list[str]) -> None:
    store, healed = Moody(), list[Checkpoint]()

    def mood(verb: str, argument: Any) -> Any:
        if verb == "checkpoint" and "c" in argument.steps and argument.heals:
            healed.append(argument)
        elif verb == "checkpoint" and "c" in argument.steps:
            return Behind(argument.base - 1)
        return None

    store.moods = mood

    def writes(ctx: Context) -> str:
        ctx["note"] = "kept"
        return "A"

    ended = run(saga(done, a=writes, b=fine, c=fine), options={"store": store}, idempotency_key="k")
    assert (ended.status, done) == ("success", ["a", "b", "c"])
    assert healed[0].steps["a"].result == "A"
    assert healed[0].writes["note"].value == "kept"
    assert healed[0].base > 0


def test_an_owner_that_hears_of_its_end_that_the_record_went_back_heals_it_first(
    run: Callable[..., Any], done: list[str]
) -> None:
    store, reported = Moody(), list[str]()

    def mood(verb: str, argument: Any) -> Any:
        if verb == "checkpoint" and argument.heals:
            reported.append("healed")
        elif verb == "finish" and not reported:
            return Behind(0)
        return None

    store.moods = mood
    assert run(saga(done, a=fine, b=fine), options={"store": store}, idempotency_key="k").status == "success"
    assert reported == ["healed"]
    assert list(store.find("k").results) == ["a", "b"]


@pytest.mark.parametrize("verb", ["checkpoint", "finish"])
def test_an_owner_writes_a_record_that_stays_behind_so_often_and_no_more(
    run: Callable[..., Any], done: list[str], verb: str
) -> None:
    store = Moody()
    store.moods = lambda asked, argument: Behind(0) if asked == verb else None
    with pytest.raises(FlowcoreError) as raised:
        run(saga(done, a=fine, b=fine), options={"store": store}, idempotency_key="k")
    error: BaseException | None = raised.value
    assert error is not None
    assert "still lacks what its owner has written" in f"{error} {error.__cause__} {getattr(error, '__notes__', '')}"
    assert store.asked.count(verb) < 60
    assert store.find("k").status in {"running", "parked"}


def test_a_cancellation_through_the_store_is_heard_at_the_next_checkpoint(
    run: Callable[..., Any], done: list[str]
) -> None:
    store = Moody()

    def mood(verb: str, argument: Any) -> Any:
        if verb == "checkpoint" and "b" in argument.steps:
            super(Moody, store).checkpoint(argument)
            return Renewal.CANCEL
        return None

    store.moods = mood
    with pytest.raises(StepCancelled, match="was cancelled through its store"):
        run(saga(done, a=fine, b=fine, c=fine), options={"store": store}, idempotency_key="k")
    assert "c" not in done
    assert done[-1] == "-a"
    until(lambda: store.find("k").status == "compensated")


def test_a_store_that_is_away_for_good_parks_the_run_when_patience_ends(run: Callable[..., Any]) -> None:
    store, log = Moody(), list[str]()
    store.moods = silent("checkpoint", "renew", after=1)
    began = time.monotonic()
    options = {"store": store, "lease": LEASE, "store_patience": 3 * LEASE}
    with pytest.raises(RunParked, match="its progress could not be saved"):
        run(saga(log, a=fine, b=fine, c=fine), options=options, idempotency_key="k")
    assert time.monotonic() - began >= 2.5 * LEASE


def test_an_owner_that_is_taken_over_while_it_heals_its_record_has_lost_the_run(
    run: Callable[..., Any], done: list[str]
) -> None:
    store = Moody()

    def mood(verb: str, argument: Any) -> Any:
        if verb == "checkpoint" and argument.heals:
            return Lost()
        return Behind(0) if verb == "finish" else None

    store.moods = mood
    with pytest.raises(LeaseLost):
        run(saga(done, a=fine, b=fine), options={"store": store}, idempotency_key="k")
    assert store.asked.count("finish") == 1
    assert done == ["a", "b"]
