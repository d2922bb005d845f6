"""Hosts whose clocks differ: what an owner records of waits and backoffs has the time of the store's clock."""

import time
from pathlib import Path
from typing import Any

import pytest

from flowcore import Backoff, Context, Engine, Retry, Workflow
from flowcore.events import BackoffStarted, Event, RunFinished
from flowcore.stores import SQLiteStore
from flowcore.stores.base import RunRecord
from tests.durable.towns import Town
from tests.stores.redis_servers import until

HOUR = 3600.0
LENGTH = 1800.0
"""of the waits and the backoff, in seconds"""


def order(effects: list[str], wait: float = LENGTH, backoff: float = LENGTH) -> Workflow:
    """After a charge, which can be refunded, two waits and a step in a long backoff."""
    wf = Workflow("order")
    charge = wf.add_step("charge", lambda ctx: effects.append("charge"))
    charge.compensate(lambda ctx: effects.append("refund"))

    def fail(ctx: Context) -> None:
        effects.append("call")
        raise ConnectionError("down")

    wf.wait("one", timeout=wait, depends_on=charge)
    wf.wait("two", timeout=wait, depends_on=charge)
    wf.add_step("call", fail, retry=Retry(3, Backoff.fixed(backoff)), depends_on=charge)
    return wf


def skewed(engine: Any, seconds: float) -> Any:
    """Set the clock of the engine's host ahead."""
    engine._settings.wall = lambda: time.time() + seconds
    return engine


def resumed(store: Any) -> RunRecord:
    def waits_again() -> bool:
        record = store.find("k")
        return bool(record.status == "waiting" and "one" in record.results)

    until(waits_again, "the value to be received")
    record: RunRecord = store.find("k")
    return record


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_a_wait_and_a_backoff_last_as_long_on_a_host_whose_clock_differs(town: Town, ahead: float) -> None:
    effects = list[str]()
    wf = order(effects)
    town.pause(skewed(town.engine(), ahead), wf)
    town.store.send("k", "one", 1)
    began = time.time()
    town.engine(workflows=[wf], recover_every=0.01)
    record = resumed(town.store)
    assert effects == ["charge", "call"]
    assert set(record.waiting_for) == {"two", "call"}
    due = [record.steps["two"].until, record.steps["call"].retry_at, record.not_before]
    assert all(moment is not None and began < moment <= time.time() + LENGTH for moment in due)


def test_the_time_of_retries_counts_from_the_first_attempt_on_a_host_whose_clock_differs(tmp_path: Path) -> None:
    def fail(ctx: Context) -> None:
        raise ConnectionError("down")

    def left(ahead: float) -> RunRecord:
        """The record once an attempt has failed and its process is about to stop."""
        events = list[Event]()
        engine = skewed(Engine(store=store, hooks=[events.append], grace=0), ahead)
        engine.submit(wf, idempotency_key="k")
        until(lambda: any(isinstance(event, BackoffStarted | RunFinished) for event in events), "a failed attempt")
        engine.close(timeout=0)
        record = store.find("k")
        assert record is not None
        return record

    store, wf = SQLiteStore(tmp_path / "runs.db", durability="normal"), Workflow("order")
    wf.add_step("call", fail, retry=Retry(3, Backoff.fixed(30), max_elapsed=LENGTH))
    assert left(-HOUR).steps["call"].failed == 1
    store.resume("k")  # makes the next attempt at once
    record = left(HOUR)
    assert (record.status, record.steps["call"].failed) == ("parked", 2)


@pytest.mark.parametrize(("wait", "backoff"), [(LENGTH, 9 * HOUR), (9 * HOUR, LENGTH)], ids=["wait", "backoff"])
def test_a_clock_that_is_set_back_makes_no_wait_or_backoff_longer_than_it_was_to_be(
    tmp_path: Path, wait: float, backoff: float
) -> None:
    ahead, effects = HOUR, list[str]()

    def wall() -> float:
        return time.time() + ahead

    store, wf = SQLiteStore(tmp_path / "runs.db", durability="normal", wall=wall), order(effects, wait, backoff)

    def engine(**options: Any) -> Engine:
        made = Engine(store=store, **options)
        made._settings.wall = wall
        return made

    with engine() as first:
        assert first.run(wf, idempotency_key="k", until="waiting").status == "waiting"
    ahead = 0.0
    store.send("k", "one", 1)
    with engine(workflows=[wf], recover_every=0.01):
        record = resumed(store)
    assert effects == ["charge", "call"]
    assert record.not_before is not None
    assert record.not_before <= time.time() + LENGTH
