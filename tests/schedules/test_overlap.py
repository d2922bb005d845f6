"""No two runs of a schedule are in progress: engines that were suspended, fires that are about to begin, changed times."""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from flowcore import MemoryStore, Workflow
from flowcore.fires import fire_key
from tests.core.test_fork import in_a_child
from tests.schedules.test_firing import HOUR, MINUTE, world
from tests.schedules.virtual import START, Clockwork, World

__all__ = ["world"]  # a fixture


def gaps(world: World) -> list[timedelta]:
    """The time from the begin of each run to the begin of the next one."""
    began = sorted(at for _, _, at in world.began)
    return [later - earlier for earlier, later in pairwise(began)]


@pytest.mark.parametrize("overlap", ["skip", "queue"])
@pytest.mark.parametrize("last", [29.5, 33], ids=["two fires are due", "the last fire was left out"])
def test_an_engine_that_was_suspended_learns_which_run_is_in_progress(world: World, overlap: Any, last: float) -> None:
    runs_on, stale = (Clockwork(world, name, overlap=overlap) for name in ("runs on", "stale"))
    world.run(15 * MINUTE)
    stale.stop()
    world.lasts = HOUR
    world.run((last - 15) * MINUTE)
    runs_on.stop()
    world.moment += MINUTE
    world.engines.append(stale)
    world.run(45 * MINUTE)
    assert world.minutes() == [10, 20]
    world.run(30 * MINUTE)
    assert world.minutes()[:2] == [10, 20]
    assert len(world.minutes()) == 3
    assert min(gaps(world)[1:]) >= HOUR


@pytest.mark.parametrize("missed", ["latest", "skip"])
@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
def test_a_fire_that_was_about_to_begin_does_not_begin_beside_a_later_one(
    world: World, overlap: Any, missed: Any
) -> None:
    slow, other = (Clockwork(world, name, overlap=overlap, missed=missed) for name in ("slow", "other"))
    world.run(15 * MINUTE)
    other.stop()
    world.lasts = 25 * MINUTE
    begin = slow.begin

    def begins_late(workflow: Workflow, values: Any, key: str) -> bool:
        if key == fire_key("nightly", START + 20 * MINUTE):
            world.engines[:] = [other]
            world.moment += 10 * MINUTE
            world.run(MINUTE)
        return begin(workflow, values, key)

    slow.scheduled._begin = begins_late
    world.run(6 * MINUTE)
    assert world.minutes() == [10, 30]
    assert other.missed == [(1, "down")]
    assert not slow.missed


def test_an_engine_learns_of_a_run_that_began_while_it_was_leaving_the_fire_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lasts = 12 * MINUTE
    late, other = Clockwork(world, "late"), Clockwork(world, "other")
    other.stop()
    world.run(15 * MINUTE)
    assert late.scheduled._log is not None
    skip = late.scheduled._log.skip

    def skips_late(key: str, *arguments: Any) -> Generator[Any, Any, bool]:
        if key == fire_key("nightly", START + 20 * MINUTE):
            world.moment += 3 * MINUTE
            world.end_runs()
            other.look()
        return (yield from skip(key, *arguments))

    monkeypatch.setattr(late.scheduled._log, "skip", skips_late)
    world.run(6 * MINUTE)
    assert [(name, fire.minute) for name, fire, _ in world.began] == [("late", 10), ("other", 20)]
    world.run(8 * MINUTE)
    assert world.minutes() == [10, 20], "the run of :20 is in progress until :35"


def test_fires_that_wait_keep_their_order_and_their_turns_though_an_engine_was_suspended(world: World) -> None:
    world.lasts = timedelta(seconds=25)
    engines = [Clockwork(world, name, cron=None, every=20, overlap="queue") for name in "ab"]
    world.run(MINUTE)
    for number in range(4):
        stale = engines[number % 2]
        stale.stop()
        world.run(timedelta(seconds=45))
        world.engines.append(stale)
        world.run(timedelta(seconds=30))
    assert world.fires == [START + timedelta(seconds=20) * number for number in range(1, len(world.fires) + 1)]
    assert len(world.fires) > 8
    assert min(gaps(world)) >= world.lasts
    assert {name for name, _, _ in world.began} == {"a", "b"}
    assert not [report for engine in engines for report in engine.missed]


@pytest.mark.parametrize("missed", ["latest", "skip", "all"])
def test_fires_that_wait_are_not_lost_with_their_engine(world: World, missed: Any) -> None:
    world.lasts = 35 * MINUTE
    first = Clockwork(world, "first", overlap="queue", missed=missed)
    world.run(32 * MINUTE)
    first.stop()
    world.moment += 10 * MINUTE
    second = Clockwork(world, "second", overlap="queue", missed=missed)
    world.run(2 * HOUR, timedelta(seconds=15))
    assert world.minutes()[:4] == [10, 20, 30, 40]
    assert min(gaps(world)) >= world.lasts
    assert not second.missed


@pytest.mark.parametrize("overlap", ["skip", "queue"])
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_changed_expression_does_not_begin_beside_the_run_of_the_old_one(
    world: World, overlap: Any, restarts: int
) -> None:
    world.lasts = 25 * MINUTE
    Clockwork(world, "old", cron="*/10 * * * *", overlap=overlap)
    world.run(12 * MINUTE)
    for number in range(restarts + 1):
        world.engines.clear()
        Clockwork(world, f"new {number}", cron="*/7 * * * *", overlap=overlap)
        world.run(MINUTE)
    world.run(20 * MINUTE)
    assert world.minutes() == [10]
    world.run(10 * MINUTE)
    assert len(world.minutes()) == 2
    assert min(gaps(world)) >= world.lasts


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_during_a_deploy_old_and_new_times_do_not_overlap_either(world: World, overlap: Any) -> None:
    world.lasts = 4 * MINUTE
    Clockwork(world, "old", cron="*/10 * * * *", overlap=overlap)
    world.run(11 * MINUTE)
    Clockwork(world, "new", cron="*/7 * * * *", overlap=overlap)
    world.run(90 * MINUTE, timedelta(seconds=15))
    assert {name for name, _, _ in world.began} == {"old", "new"}
    assert min(gaps(world)) >= world.lasts


def test_of_many_fires_that_are_left_out_a_few_are_recorded_and_all_are_reported_once(world: World) -> None:
    engines = [Clockwork(world, str(number), cron="* * * * *", missed="skip") for number in range(2)]
    world.run(2 * MINUTE)
    world.moment += 10 * HOUR
    world.run(timedelta(seconds=10))
    for engine in engines:
        engine.stop()
    again = Clockwork(world, "again", cron="* * * * *", missed="skip")
    world.run(2 * MINUTE)
    assert [report for engine in (*engines, again) for report in engine.missed] == [(599, "down")]
    assert len(world.store.list_runs(workflow="flowcore.schedule", limit=None)) <= 101


@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
def test_a_run_of_the_parent_in_memory_does_not_keep_the_fires_of_a_child_waiting(overlap: Any) -> None:
    world = World(None)
    world.store = MemoryStore(wall=world.wall, clock=world.wall)
    Clockwork(world, overlap=overlap)
    world.lasts = HOUR
    world.run(15 * MINUTE)
    assert world.minutes() == [10]

    def child() -> None:
        world.run(10 * MINUTE)
        assert world.minutes() == [10, 20]

    assert in_a_child(child) == 0
