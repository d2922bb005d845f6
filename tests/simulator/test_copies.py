"""Simulated steps see values as after a takeover: they went through the codec, and no result is changed in place."""

from __future__ import annotations

from typing import Any

import pytest

from flowcore import Context, NotSerializable, Status, Workflow
from flowcore.testing import Fault, SimulatedStore, rehearse, simulate


def spoiling(change: Any = lambda seats: seats.append(2)) -> Workflow:
    wf = Workflow("spoils")
    wf.add_step("book", lambda ctx: [1])
    wf.add_step("spoil", lambda ctx: change(ctx["book"]), depends_on="book")
    return wf


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
def test_a_result_that_a_later_step_changes_fails_that_step(durable: bool, seed: int) -> None:
    run = simulate(spoiling(), seed=seed, store=SimulatedStore() if durable else None, idempotency_key="k").run
    assert run.status is Status.FAILURE
    assert isinstance(run.error, NotSerializable)
    assert "step 'spoil' changed the result of step 'book' in place" in str(run.error)
    assert run["book"] == [1]


def test_a_rehearsal_says_which_step_changes_a_result_in_place() -> None:
    with pytest.raises(NotSerializable, match="'spoil' changed the result of step 'book' in place"):
        rehearse(spoiling(), world=lambda: True)


@pytest.mark.parametrize("fault", [None, Fault.CRASH_AFTER])
def test_a_step_that_keeps_its_result_and_changes_it_later_changes_nothing(fault: Fault | None) -> None:
    kept: list[list[int]] = []
    wf = Workflow("keeps")

    @wf.step
    def book(ctx: Context) -> list[int]:
        kept.append([1])
        return kept[-1]

    wf.add_step("cheat", lambda ctx: kept[-1].append(2), depends_on="book")
    wf.add_step("read", lambda ctx: ctx["book"], depends_on="cheat")
    assert simulate(wf, faults={} if fault is None else {"read": fault}).run["read"] == [1]


@pytest.mark.parametrize("crash", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_values_after_a_crash_are_the_recorded_ones(crash: Fault) -> None:
    seen: list[Any] = []
    wf = Workflow("takes over")

    def reserve(ctx: Context) -> tuple[int, set[str]]:
        ctx["reserved"].append("r-1")
        return 7, {"a"}

    wf.add_step("reserve", reserve)
    wf.add_step("use", lambda ctx: seen.append((ctx["reserved"], ctx["reserve"])), depends_on="reserve")
    values = {"reserved": list[str]()}
    simulate(wf, values, faults={"use": crash})
    assert seen[-1] == (["r-1"], (7, {"a"}))
    assert values == {"reserved": []}


def test_a_value_that_was_changed_in_place_does_not_reach_the_store_behind_its_back() -> None:
    """An attempt in a process that then dies changes the value. The next owner gets the value that was recorded."""
    seen: list[Any] = []
    wf = Workflow("crashes")

    def reserve(ctx: Context) -> None:
        seen.append(list(ctx["reserved"]))
        ctx["reserved"].append("r-1")

    wf.add_step("reserve", reserve)
    simulate(wf, {"reserved": []}, faults={"reserve": Fault.CRASH_AFTER})
    assert seen == [[], []]


def test_what_no_codec_keeps_stays_as_it_is() -> None:
    lock, wf = object(), Workflow("live")
    wf.add_step("lock", lambda ctx: lock)
    wf.add_step("use", lambda ctx: ctx["lock"] is lock, depends_on="lock")
    assert simulate(wf).run["use"] is True
    assert simulate(wf, faults={"use": Fault.CRASH_BEFORE}).run["use"] is True
