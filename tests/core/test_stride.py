"""Chains on a durable store without hooks, which take a shorter way: the same promises hold there."""

import signal
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from flowcore import Context, Engine, Status, StepCancelled, Workflow
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Checkpoint, CheckpointAnswer
from flowcore.testing import SimulatedStore
from flowcore.testing.acts import Caller
from flowcore.testing.story import play

from .conftest import Ledger


class Telling(SQLiteStore):
    """Calls `on_checkpoint` while it is told of something."""

    on_checkpoint: Any = None

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        if self.on_checkpoint is not None:
            self.on_checkpoint(checkpoint)
        return super().checkpoint(checkpoint)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Telling]:
    store = Telling(tmp_path / "runs.db", durability="normal")
    yield store
    store.close()


def chain(ledger: Ledger, *names: str) -> Workflow:
    wf, before = Workflow("chain"), ""
    for name in names:
        ledger.add(wf, name, depends_on=before or ())
        before = name
    return wf


def test_a_run_that_is_cancelled_while_its_store_is_called_begins_no_further_step(
    store: Telling, ledger: Ledger
) -> None:
    with Engine(store=store) as engine:

        def cancel(checkpoint: Checkpoint) -> None:
            store.on_checkpoint = None
            assert engine.cancel(checkpoint.run_id)

        store.on_checkpoint = cancel
        with pytest.raises(StepCancelled):
            engine.run(chain(ledger, "a", "b", "c"), idempotency_key="k")
    assert ledger == ["a", "-a"]
    record = store.find("k")
    assert record is not None
    assert record.status == Status.COMPENSATED
    assert record.steps["b"].status == Status.PENDING


def test_each_step_is_recorded_with_the_start_of_the_next_and_with_its_times(store: Telling, ledger: Ledger) -> None:
    reported: list[Checkpoint] = []
    store.on_checkpoint = reported.append
    with Engine(store=store) as engine:
        run = engine.run(chain(ledger, "a", "b", "c"), idempotency_key="k")
    assert [
        {name: (step.seq, step.report.status, step.has_result, step.effect) for name, step in one.steps.items()}
        for one in reported
    ] == [
        {"a": (2, Status.SUCCESS, True, True), "b": (3, Status.RUNNING, False, False)},
        {"b": (4, Status.SUCCESS, True, True), "c": (5, Status.RUNNING, False, False)},
    ]
    record = store.find("k")
    assert record is not None
    assert list(record.results) == list(run.results) == ["a", "b", "c"]
    for step in record.steps.values():
        assert (step.attempts, step.backed_off) == (1, 0.0)
        assert step.waited is not None
        assert step.ran is not None
        assert 0 <= step.waited < 10
        assert 0 <= step.ran < 10


def test_a_step_that_fails_on_the_way_is_tried_again_and_what_came_before_is_undone(
    store: Telling, ledger: Ledger
) -> None:
    wf, attempts = chain(ledger, "a", "b"), list[int]()

    def fails(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("no seat")

    wf.add_step("c", fails, depends_on="b", retry=3)
    with Engine(store=store) as engine:
        run = engine.run(wf, check=False)
    assert (attempts, ledger) == ([1, 2, 3], ["a", "b", "-b", "-a"])
    assert (run.status, run.steps["c"].attempts) == (Status.COMPENSATED, 3)
    assert run.steps["c"].waited is not None


def test_what_a_step_writes_goes_with_its_end_and_the_chain_continues(store: Telling, ledger: Ledger) -> None:
    wf = chain(ledger, "a", "b")

    def writes(ctx: Context) -> str:
        ctx["seat"] = "12A"
        return "c"

    wf.add_step("c", writes, depends_on="b")
    wf.add_step("d", lambda ctx: ctx["seat"], depends_on="c")
    wf.add_step("e", lambda ctx: ctx["d"], depends_on="d")
    reported: list[Checkpoint] = []
    store.on_checkpoint = reported.append
    with Engine(store=store) as engine:
        assert engine.run(wf)["e"] == "12A"
    assert [list(one.writes) for one in reported] == [[], [], ["seat"], []]


def test_a_chain_longer_than_its_lease_asks_no_more_often_where_no_step_is(ledger: Ledger) -> None:
    """Its checkpoints renew the lease, also of an owner without a heartbeat."""
    wf = chain(ledger, *"abcdefghij")
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=[Caller(beats=False)], lease=1.0, observed=False)
    assert story.calls[-1].began - story.began > 4.0
    assert all(call.ended is not None and call.ended - call.began < 1.0 for call in story.calls)
    assert [call.verb for call in story.stored] == ["claim", *["checkpoint"] * 9, "finish"]


def test_a_ctrl_c_in_a_step_on_the_way_parks_the_run(store: Telling, ledger: Ledger) -> None:
    wf = chain(ledger, "a", "b")

    def interrupted(ctx: Context) -> None:
        signal.raise_signal(signal.SIGINT)

    wf.add_step("c", interrupted, depends_on="b", compensate=lambda ctx: ledger.append("-c"))
    ledger.add(wf, "d", depends_on="c")
    with Engine(store=store) as engine, pytest.raises(KeyboardInterrupt):
        engine.run(wf, idempotency_key="k")
    assert ledger == ["a", "b"]
    record = store.find("k")
    assert record is not None
    assert (record.status, record.steps["c"].status) == (Status.PARKED, Status.CANCELLED)


def test_what_a_step_sets_in_its_context_variables_reaches_no_later_step_on_the_way(store: Telling) -> None:
    user = ContextVar("user", default="nobody")
    wf = Workflow("chain")

    @wf.step
    def a(ctx: Context) -> str:
        user.set("a")
        return user.get()

    @wf.step(depends_on=a)
    def b(ctx: Context) -> str:
        return user.get()

    user.set("caller")
    with Engine(store=store) as engine:
        assert engine.run(wf).results == {"a": "a", "b": "caller"}
