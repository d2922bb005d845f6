"""A record says when each undo began and ended, so that a picture of the run has it at its time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flowcore import AsyncEngine, Context, Engine, Event, Run, Workflow
from flowcore.events import AttemptStarted, CompensationFinished, CompensationStarted, StepStarted
from flowcore.picture import Kind, Timeline
from flowcore.stores import MemoryStore
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES, run

LEASE = 60.0


def trip(*, stuck: Callable[[], bool]) -> Workflow:
    """Two steps to be undone, the first of which cannot be for as long as it is stuck."""
    wf = Workflow("trip")

    @wf.step
    def hotel(ctx: Context) -> str:
        return "h"

    @hotel.compensate
    def cancel_hotel(ctx: Context) -> None:
        if stuck():
            raise ConnectionError("the hotel is down")

    wf.add_step("flight", lambda ctx: "f", depends_on=hotel, compensate=lambda ctx: None)

    @wf.step(depends_on="flight")
    def pay(ctx: Context) -> None:
        raise PermissionError("card declined")

    return wf


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", STORES)
def test_the_record_has_the_times_of_undos_also_after_a_takeover(
    place: Callable[[str], Place], kind: str, driver: str
) -> None:
    is_stuck = [True]
    wf = trip(stuck=lambda: is_stuck[0])
    where, asynchronous = place(kind), driver == "asyncio"
    with where.store() as store, where.store(asynchronous=asynchronous) as used:
        assert run(driver, used, wf, "k", LEASE).held
        before = store.find("k").steps
        flight, hotel = before["flight"], before["hotel"]
        assert (
            flight.started <= flight.undo_started <= flight.undo_finished <= hotel.undo_started <= hotel.undo_finished
        )
        assert (hotel.undo, flight.undo) == ("failure", "success")
        assert before["pay"].undo_started is before["pay"].undo_finished is None
        bars = {row.name: row.bars[-1].kind for row in Timeline.of_record(store.find("k")).rows}
        assert bars == {"hotel": Kind.UNDO_FAILED, "flight": Kind.UNDO, "pay": Kind.FAILED}
        is_stuck[0] = False
        store.undo("k")
        assert run(driver, used, wf, "k", LEASE).status == "compensated"
        record = store.find("k")
        after = record.steps
        times = flight.undo_started, flight.undo_finished
        assert (after["flight"].undo_started, after["flight"].undo_finished) == times
        assert after["hotel"].undo == "success"
        assert hotel.undo_finished <= after["hotel"].undo_started <= after["hotel"].undo_finished
        rows = {row.name: row.bars[-1] for row in Timeline.of_record(record).rows}
        assert rows["hotel"].kind is rows["flight"].kind is Kind.UNDO
        assert rows["flight"].end <= rows["hotel"].start


def watched(driver: str, store: Any, events: list[Event]) -> Run:
    """A run that is undone, by an engine with a hook."""
    wf = trip(stuck=lambda: False)
    if driver == "threads":
        with Engine(store=store, hooks=[events.append]) as engine:
            return engine.run(wf, check=False)

    async def main() -> Run:
        async with AsyncEngine(store=store, hooks=[events.append]) as engine:
            return await engine.run(wf, check=False)

    return asyncio.run(main())


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", STORES)
def test_the_times_are_those_of_the_events(place: Callable[[str], Place], kind: str, driver: str) -> None:
    events: list[Event] = []
    with place(kind).store(asynchronous=driver == "asyncio") as store:
        found = watched(driver, store, events)
    for name in ("hotel", "flight"):
        report = found.steps[name]
        moments = {(type(event), getattr(event, "undo", None)): event.at for event in events if step_of(event) == name}
        epoch = report.started - moments[StepStarted, None]
        slack = 1e-3  # seconds since the epoch have fewer digits
        assert moments[CompensationStarted, None] + epoch - slack <= report.undo_started
        assert report.undo_started <= moments[AttemptStarted, True] + epoch + slack
        assert moments[CompensationFinished, None] + epoch - slack <= report.undo_finished
    drawn = {row.name: row.bars[-1] for row in Timeline.of_run(found).rows}
    assert drawn["hotel"].kind is drawn["flight"].kind is Kind.UNDO
    assert drawn["flight"].end <= drawn["hotel"].start
    assert Timeline.of_run(found).seconds >= drawn["hotel"].end


def step_of(event: Event) -> str:
    return getattr(event, "step", "")


@pytest.mark.parametrize("driver", DRIVERS)
def test_in_memory_nothing_reads_a_clock_for_them(driver: str) -> None:
    found = watched(driver, MemoryStore(), [])
    assert [(one.started, one.undo_started, one.undo_finished) for one in found.steps.values()] == [(None,) * 3] * 3
