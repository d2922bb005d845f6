"""The record of a run keeps the reason that an operator gave, after the owner of the run has carried out the order."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from flowcore import Context, Engine, LeaseLost, MemoryStore, Workflow
from tests.core.conftest import PATIENCE
from tests.stores.redis_servers import until

from .towns import Town

REASON = "the customer called"
OUTCOMES = {
    ("cancel", False): "compensated",
    ("undo", False): "compensated",
    ("cancel", True): "incomplete",
    ("undo", True): "compensated",
}
"""by verb, and by whether the run is past its pivot"""
cases = pytest.mark.parametrize(
    ("verb", "pivot"), OUTCOMES, ids=lambda value: value if isinstance(value, str) else None
)


def order(*, pivot: bool) -> Workflow:
    wf = Workflow("order")
    wf.add_step("pay", lambda ctx: 1, pivot=pivot).compensate(lambda ctx: None)
    return wf


def ended(town: Town, verb: str, *, pivot: bool) -> None:
    until(lambda: town.status() == OUTCOMES[verb, pivot], "the outcome")
    assert town.store.find("k").reason == REASON


@cases
def test_the_reason_of_an_order_to_a_run_in_flight_stays_in_its_record(town: Town, verb: str, pivot: bool) -> None:
    gate, wf = threading.Event(), order(pivot=pivot)
    wf.add_step("ship", lambda ctx: gate.wait(PATIENCE), depends_on="pay")
    wf.add_step("mail", lambda ctx: None, depends_on="ship")
    town.start(town.engine(), wf, idempotency_key="k", check=False)
    until(lambda: town.status() == "running" and "pay" in town.store.find("k").results, "the shipment")
    getattr(town.store, verb)("k", reason=REASON)
    gate.set()
    ended(town, verb, pivot=pivot)


@cases
def test_the_reason_of_an_order_to_a_waiting_run_stays_in_its_record(town: Town, verb: str, pivot: bool) -> None:
    wf = order(pivot=pivot)
    wf.wait("ok", depends_on="pay")
    town.pause(town.engine(), wf)
    getattr(town.store, verb)("k", reason=REASON)
    town.call(town.engine(workflows=[wf]).recover())
    ended(town, verb, pivot=pivot)


def test_the_reason_of_an_order_to_a_run_in_memory_stays_in_its_record() -> None:
    def fail(ctx: Context) -> Any:
        raise ConnectionError("down")

    wf = order(pivot=True)
    wf.add_step("ship", fail, depends_on="pay")
    with Engine(store=(store := MemoryStore())) as engine:
        assert engine.run(wf, idempotency_key="k", check=False).status == "incomplete"
        store.undo("k", reason=REASON)
        assert engine.run(wf, idempotency_key="k", check=False).status == "compensated"
    record = store.find("k")
    assert record is not None
    assert record.reason == REASON


@pytest.mark.parametrize("through_store", [False, True])
def test_a_run_that_was_cancelled_past_its_pivot_does_not_say_that_its_process_stopped(
    town: Town, through_store: bool
) -> None:
    gate, wf = threading.Event(), order(pivot=True)
    wf.add_step("ship", lambda ctx: gate.wait(PATIENCE), depends_on="pay")
    wf.add_step("mail", lambda ctx: None, depends_on="ship")
    engine = town.engine()
    town.start(engine, wf, idempotency_key="k", check=False)
    until(lambda: town.status() == "running" and "pay" in town.store.find("k").results, "the shipment")
    if through_store:
        town.store.cancel("k")
    else:
        engine.cancel(key="k")
    gate.set()
    until(lambda: town.status() == "incomplete", "the outcome")
    assert "StepCancelled" in town.store.find("k").reason


def test_the_caller_of_a_run_that_an_operator_has_released_learns_of_it(town: Town) -> None:
    gate, wf = threading.Event(), order(pivot=False)
    wf.add_step("ship", lambda ctx: gate.wait(PATIENCE), depends_on="pay")
    future = town.start(town.engine(), wf, idempotency_key="k")
    until(lambda: town.status() == "running" and "pay" in town.store.find("k").results, "the shipment")
    town.store.release("k", force=True)
    gate.set()
    with pytest.raises(LeaseLost, match="or an operator has released it"):
        future.result(PATIENCE)
