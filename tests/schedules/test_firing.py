"""Which fires are begun, by which engine, and what is said of the others: in virtual time, on real stores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flowcore import DefinitionError, MemoryStore, Status, StoreUnavailable, Workflow
from flowcore.fires import LOG, fire_key, fire_of, schedule_of
from flowcore.schedule import window_of
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Claim, Claimed, Ending, Lease
from tests.schedules.virtual import START, Clockwork, World

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(None)
    made.store = SQLiteStore(tmp_path / "runs.db", wall=made.wall)
    yield made
    made.store.close()


def test_a_key_names_its_schedule_and_its_time() -> None:
    fire = datetime(2026, 3, 29, 1, tzinfo=UTC)
    key = fire_key("a/b nightly", fire)
    assert key == "schedule/a/b nightly/2026-03-29T01:00:00Z"
    assert (fire_of(key), schedule_of(key)) == (fire, "a/b nightly")
    for other in (None, "order-1", "schedule/x", "schedule/x/since/3.0", "schedule/x/Z", "schedule/x/nonsenseZ"):
        assert fire_of(other) is None
        assert schedule_of(other) is None


def test_each_fire_is_begun_once_by_many_engines_with_clocks_minutes_apart(world: World) -> None:
    for name, skew in (("fast", 4), ("right", 0), ("slow", -4), ("slower", -9)):
        Clockwork(world, name, skew=skew * MINUTE)
    world.run(2 * HOUR)
    # The fast clock's own 14:00 comes four minutes before the true one.
    assert world.minutes() == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120]
    assert all(name == "fast" for name, _, _ in world.began)


def test_a_failing_run_is_not_begun_again(world: World) -> None:
    world.outcome = Status.COMPENSATED
    for name in ("a", "b", "c", "d"):
        Clockwork(world, name)
    world.run(HOUR)
    assert world.minutes() == [10, 20, 30, 40, 50, 60]


def test_engines_that_start_and_stop_at_any_time_begin_each_fire_once(world: World) -> None:
    for number in range(30):
        engine = Clockwork(world, str(number), skew=timedelta(seconds=(number * 37) % 200 - 100))
        world.run(timedelta(minutes=7, seconds=13))
        engine.stop()
    minutes = world.minutes()
    assert sorted(set(minutes)) == minutes
    assert all(later - earlier == 10 for earlier, later in pairwise(minutes))


def test_a_new_schedule_makes_up_for_nothing_of_before(world: World) -> None:
    world.moment = START + 9 * MINUTE
    engine = Clockwork(world, missed="all")
    world.run(30 * MINUTE)
    assert world.minutes() == [10, 20, 30]
    assert not engine.missed


@pytest.mark.parametrize(
    ("missed", "begun", "reported"),
    [
        ("skip", [10, 70, 80], [(5, "down")]),
        ("latest", [10, 60, 70, 80], [(4, "down")]),
        ("all", [10, 20, 30, 40, 50, 60, 70, 80], []),
    ],
)
@pytest.mark.parametrize("engines", [1, 3])
def test_fires_that_no_engine_began_in_time(
    world: World, missed: Any, begun: list[int], reported: list[Any], engines: int
) -> None:
    first = [Clockwork(world, str(number), missed=missed) for number in range(engines)]
    world.run(15 * MINUTE)
    for engine in first:
        engine.stop()
    world.moment += 50 * MINUTE
    second = [Clockwork(world, f"again {number}", missed=missed) for number in range(engines)]
    world.run(MINUTE)
    world.run(14 * MINUTE)
    assert world.minutes() == begun
    assert [one for engine in second for one in engine.missed] == reported
    assert not [one for engine in first for one in engine.missed]


def test_missed_fires_are_reported_once_though_engines_restart_again_and_again(world: World) -> None:
    Clockwork(world, missed="skip")
    world.run(15 * MINUTE)
    world.engines.clear()
    world.moment += 50 * MINUTE
    reported: list[Any] = []
    for number in range(4):
        engine = Clockwork(world, str(number), missed="skip")
        world.run(timedelta(seconds=30))
        engine.stop()
        reported += engine.missed
    assert reported == [(5, "down")]


def test_a_changed_expression_begins_anew_and_so_does_the_old_one_when_it_comes_back(world: World) -> None:
    old = Clockwork(world, "old", cron="*/10 * * * *", missed="all")
    world.run(35 * MINUTE)
    old.stop()
    new = Clockwork(world, "new", cron="*/7 * * * *", missed="all")
    world.run(30 * MINUTE)
    new.stop()
    back = Clockwork(world, "back", cron="*/10 * * * *", missed="all")
    world.run(20 * MINUTE)
    assert [name for name, _, _ in world.began] == ["old"] * 3 + ["new"] * 4 + ["back"] * 2
    assert world.minutes() == [10, 20, 30, 42, 49, 56, 60, 70, 80]
    assert not back.missed


def test_during_a_rolling_deploy_old_and_new_share_the_fires_that_both_have(world: World) -> None:
    old = [Clockwork(world, f"old{number}", cron="0,10,20,30,40,50 * * * *") for number in range(3)]
    world.run(15 * MINUTE)
    for number, engine in enumerate(old):
        Clockwork(world, f"new{number}", cron="0,20,40 * * * *")
        world.run(10 * MINUTE)
        engine.stop()
    world.run(HOUR)
    assert sorted(world.minutes()) == sorted(set(world.minutes()))
    assert world.minutes()[-3:] == [60, 80, 100]


def test_other_options_of_the_same_fires_do_not_begin_anew(world: World) -> None:
    Clockwork(world, "a", missed="skip").stop()
    engine = Clockwork(world, "b", missed="all")
    world.run(timedelta(seconds=5))
    engine.stop()
    world.moment += 35 * MINUTE
    Clockwork(world, "c", missed="all", overlap="queue", jitter=3)
    world.run(2 * MINUTE)
    assert world.minutes() == [10, 20, 30]


def test_jitter_delays_each_fire_alike_on_every_engine(world: World) -> None:
    engines = [Clockwork(world, str(number), jitter=300) for number in range(3)]
    world.run(2 * HOUR)
    assert world.minutes() == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    delays = [(at - fire).total_seconds() for _, fire, at in world.began]
    assert len({int(delay) for delay in delays}) > 5
    assert all(0 <= delay <= 305 for delay in delays)
    assert all(late <= 5 for engine in engines for late in engine.lateness)


def test_the_log_outlives_the_stores_retention(world: World, tmp_path: Path) -> None:
    world.store = SQLiteStore(tmp_path / "short.db", wall=world.wall, retention=4 * HOUR)
    engine = Clockwork(world, cron="0 0 * * 1", missed="latest")  # Mondays: much rarer than the store forgets
    world.run(6 * DAY + 11 * HOUR + 30 * MINUTE, timedelta(minutes=10))
    engine.stop()
    world.moment += HOUR
    back = Clockwork(world, "back", cron="0 0 * * 1", missed="latest")
    world.run(MINUTE)
    assert [(name, str(fire)) for name, fire, _ in world.began] == [("back", "2026-03-09 00:00:00+00:00")]
    assert not back.missed
    assert len(world.store.list_runs(workflow=LOG)) <= 4


def test_nothing_older_than_half_of_the_retention_is_made_up_for(world: World, tmp_path: Path) -> None:
    world.store = SQLiteStore(tmp_path / "short.db", wall=world.wall, retention=4 * HOUR)
    engine = Clockwork(world, missed="all")
    world.run(15 * MINUTE)
    engine.stop()
    world.moment = START + 3 * HOUR + 55 * MINUTE
    Clockwork(world, "back", missed="all")
    world.run(6 * MINUTE)
    assert world.minutes() == [10, *range(120, 250, 10)]
    assert sorted(world.minutes()) == sorted(set(world.minutes()))


def test_at_most_a_thousand_fires_are_made_up_for(world: World) -> None:
    engine = Clockwork(world, cron="* * * * *", missed="all")
    world.run(2 * MINUTE)
    engine.stop()
    world.moment = START + 25 * HOUR
    back = Clockwork(world, "back", cron="* * * * *", missed="all")
    world.run(timedelta(seconds=10))
    assert world.minutes() == [1, 2, *range(501, 1501)]
    assert back.missed == [(498, "down")]


def test_a_store_with_too_short_a_retention_is_refused() -> None:
    with pytest.raises(DefinitionError, match="retention= of at least 3600 seconds"):
        window_of(MemoryStore(retention=60))
    assert window_of(MemoryStore(retention=7200)) == HOUR
    assert window_of(MemoryStore(retention=float("inf"))) == 365 * DAY
    assert window_of(object()) == timedelta(hours=12)


# -- overlap -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 3])
def test_a_fire_is_left_out_while_the_run_before_is_in_progress(world: World, engines: int) -> None:
    world.lasts = 25 * MINUTE
    all_engines = [Clockwork(world, str(number), skew=number * MINUTE) for number in range(engines)]
    world.run(2 * HOUR - 10 * MINUTE)
    assert world.minutes() == [10, 40, 70, 100]
    assert sum(count for engine in all_engines for count, _ in engine.missed) == 7
    assert {reason for engine in all_engines for _, reason in engine.missed} == {"overlap"}
    skipped = world.store.find(fire_key("nightly", START + 20 * MINUTE))
    assert skipped.workflow == LOG
    assert skipped.reason == "skipped: the previous run was still in progress."


def test_a_restarted_engine_knows_which_run_is_in_progress_from_the_skips(world: World) -> None:
    world.lasts = 45 * MINUTE
    Clockwork(world, "a")
    world.run(35 * MINUTE)
    world.engines.clear()
    Clockwork(world, "b")
    world.run(17 * MINUTE)
    assert world.minutes() == [10]
    world.run(15 * MINUTE)
    assert world.minutes() == [10, 60]


@pytest.mark.parametrize("engines", [1, 3])
def test_fires_wait_for_the_run_before(world: World, engines: int) -> None:
    world.lasts = 25 * MINUTE
    all_engines = [Clockwork(world, str(number), overlap="queue") for number in range(engines)]
    world.run(110 * MINUTE)
    assert world.minutes() == [10, 20, 30, 40, 50]
    for (_, _, before), (_, _, after) in pairwise(world.began):
        assert 25 * MINUTE <= after - before <= 26 * MINUTE
    assert not [one for engine in all_engines for one in engine.missed]


def test_a_fire_cancels_the_run_before_and_begins_when_that_is_over(world: World) -> None:
    world.lasts = None
    engine = Clockwork(world, overlap="cancel")
    world.run(15 * MINUTE)
    world.run(10 * MINUTE)
    assert world.minutes() == [10, 20]
    assert engine.cancelled == fire_key("nightly", START + 10 * MINUTE)
    assert timedelta(seconds=20) <= world.began[1][2] - world.began[1][1] <= timedelta(seconds=40)


def test_a_run_in_another_process_is_cancelled_through_the_store(world: World) -> None:
    world.lasts = None
    Clockwork(world, "owner", overlap="cancel", skew=timedelta(seconds=30))
    world.run(10 * MINUTE)
    owner = world.engines.pop()
    other = Clockwork(world, "other", overlap="cancel")
    other.scheduled._cancel = lambda key: False  # it is not in flight there
    world.run(timedelta(minutes=10, seconds=10))
    assert world.store.find(fire_key("nightly", START + 10 * MINUTE)).decision == "cancel"
    world.finish(fire_key("nightly", START + 10 * MINUTE), owner.claim, owner.fence, Status.COMPENSATED)
    world.run(MINUTE)
    assert world.minutes() == [10, 20]


def test_a_run_that_nothing_drives_keeps_no_fire_waiting_for_ever(world: World) -> None:
    world.lasts = None
    Clockwork(world)
    world.run(15 * MINUTE)
    claim, fence = world.engines[0].claim, world.engines[0].fence
    world.store.renew([Lease(claim.key, claim.run_id, fence)], 1)  # its process dies
    world.run(6 * MINUTE)
    assert world.minutes() == [10], "for a while it may be resumed"
    world.run(10 * MINUTE)
    assert world.minutes() == [10, 30]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_store_that_is_away_at_the_fire_time_delays_the_fire(world: World, missed: Any) -> None:
    engine = Clockwork(world, missed=missed)
    world.run(9 * MINUTE)
    world.down = True
    world.run(5 * MINUTE)
    world.down = False
    world.run(2 * MINUTE)
    assert world.minutes() == [10]
    assert 200 < engine.lateness[0] < 400
    world.run(5 * MINUTE)
    assert world.minutes() == [10, 20]


@pytest.mark.parametrize(("missed", "begun"), [("skip", [30, 40]), ("latest", [30, 40]), ("all", [10, 20, 30, 40])])
def test_a_store_that_is_away_for_several_fires(world: World, missed: Any, begun: list[int]) -> None:
    engine = Clockwork(world, missed=missed)
    world.run(9 * MINUTE)
    world.down = True
    world.run(22 * MINUTE)
    world.down = False
    world.run(12 * MINUTE)
    assert world.minutes() == begun
    assert engine.missed == ([] if missed == "all" else [(2, "down")])


def test_a_store_that_is_away_at_the_start_stops_nothing(world: World) -> None:
    world.down = True
    Clockwork(world)
    world.run(15 * MINUTE)
    world.down = False
    world.run(10 * MINUTE)
    assert world.minutes() == [20]


@pytest.mark.parametrize("engines", [1, 3])
@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_values_that_raise_are_tried_again_until_the_next_fire(world: World, missed: Any, engines: int) -> None:
    broken = [True]

    def values(planned: datetime) -> dict[str, Any]:
        if broken[0]:
            raise LookupError("no database")
        return {"day": planned.isoformat()}

    several = [Clockwork(world, str(name), missed=missed, values=values) for name in range(engines)]
    world.run(25 * MINUTE)
    assert world.minutes() == []
    assert [report for engine in several for report in engine.missed] == [(1, "error")]
    assert "LookupError: no database" in world.store.find(fire_key("nightly", START + 10 * MINUTE)).reason
    broken[0] = False
    world.run(10 * MINUTE)
    assert world.minutes() == [20, 30]
    assert world.store.find(fire_key("nightly", START + 30 * MINUTE)).values == {"day": "2026-03-02T12:30:00+00:00"}


def test_a_store_that_is_away_when_a_fire_is_given_up_loses_no_other(world: World) -> None:
    def values(planned: datetime) -> dict[str, Any]:
        if planned == START + 10 * MINUTE:
            raise LookupError("no database")
        return {}

    engine = Clockwork(world, values=values)
    world.run(19 * MINUTE)
    world.down = True
    world.run(2 * MINUTE)
    world.down = False
    world.run(2 * MINUTE)
    assert world.minutes() == [20]
    assert engine.missed == [(1, "error")]


def never(planned: datetime) -> dict[str, Any]:
    raise LookupError(f"no database at {planned}")


def test_a_skip_is_reported_by_the_engine_that_ends_the_record_of_a_dead_one(world: World) -> None:
    engine = Clockwork(world, values=never)
    world.run(15 * MINUTE)
    engine.stop()
    key = fire_key("nightly", START + 10 * MINUTE)
    assert isinstance(world.store.claim(Claim(key, "dead", LOG, "", LOG, {}, {}, 30.0, once=True)), Claimed)
    world.run(6 * MINUTE)
    world.engines.append(engine)
    world.run(MINUTE)
    assert engine.missed == [(1, "error")]
    assert world.store.find(key).status is Status.FAILURE


def refusing_once(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Ending]:
    """Have the store refuse the next ending. Returns a list that then has it."""
    finish, refused = world.store.finish, list[Ending]()

    def refuses_once(ending: Ending) -> Any:
        if not refused:
            refused.append(ending)
            raise StoreUnavailable("the store is away")
        return finish(ending)

    monkeypatch.setattr(world.store, "finish", refuses_once)
    return refused


def test_a_skip_is_reported_once_though_the_store_goes_away_while_it_is_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [Clockwork(world, name, values=never) for name in "ab"]
    world.run(19 * MINUTE)
    refused = refusing_once(world, monkeypatch)
    world.run(2 * MINUTE)
    assert refused
    assert sorted(engine.missed for engine in engines) == [[], [(1, "error")]]
    assert world.store.find(fire_key("nightly", START + 10 * MINUTE)).status is Status.FAILURE


def test_a_fire_is_begun_after_a_claim_that_was_withdrawn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Clockwork(world)
    begin, withdrawn = engine.begin, list[str]()

    def loses_a_reply(workflow: Workflow, values: Any, key: str) -> bool:
        if key in withdrawn:
            return begin(workflow, values, key)
        withdrawn.append(key)
        claim = Claim(key, f"lost {key}", workflow.name, "", "graph", {}, {}, 30.0, once=True)
        world.store.claim(claim)
        world.store.withdraw(claim)
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(engine.scheduled, "_begin", loses_a_reply)
    world.run(25 * MINUTE)
    assert world.minutes() == [10, 20]
    assert engine.missed == []


def test_an_overlap_is_reported_though_the_store_goes_away_while_it_is_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lasts = 25 * MINUTE
    engine = Clockwork(world, overlap="skip")
    world.run(15 * MINUTE)
    refused = refusing_once(world, monkeypatch)
    world.run(8 * MINUTE)
    assert refused
    assert engine.missed == [(1, "overlap")]


def test_a_fire_that_waits_survives_a_store_that_is_away(world: World) -> None:
    world.lasts = 25 * MINUTE
    Clockwork(world, overlap="queue")
    world.run(28 * MINUTE)
    world.down = True
    world.run(5 * MINUTE)
    world.down = False
    world.run(60 * MINUTE)
    assert world.minutes() == [10, 20, 30, 40]


def test_a_clock_that_was_set_back_or_forward_stops_nothing(world: World) -> None:
    engine = Clockwork(world, missed="latest")
    world.run(15 * MINUTE)
    engine.skew = 400 * DAY
    engine.scheduled._settings.wall = lambda: world.wall() + engine.skew.total_seconds()
    world.run(2 * MINUTE)
    engine.skew = timedelta(0)
    world.run(20 * MINUTE)
    real = [fire for fire in world.fires if fire < START + DAY]
    assert real == [START + 10 * MINUTE, START + 20 * MINUTE, START + 30 * MINUTE]


def test_an_engine_that_was_suspended_follows_missed(world: World) -> None:
    engine = Clockwork(world, missed="skip")
    world.run(15 * MINUTE)
    world.moment += 31 * MINUTE
    world.run(5 * MINUTE)
    assert world.minutes() == [10, 50]
    assert engine.missed == [(3, "down")]


def test_what_it_waits_for_is_reported_and_stays_in_the_past_while_a_fire_is_not_begun(world: World) -> None:
    engine = Clockwork(world)
    world.run(11 * MINUTE)
    assert engine.planned == [(START + minutes * MINUTE).timestamp() for minutes in (10, 20)]
    world.down = True
    world.run(18 * MINUTE)
    assert engine.planned[-1] == (START + 20 * MINUTE).timestamp()


def test_an_erased_log_begins_anew(world: World) -> None:
    engine = Clockwork(world, missed="all")
    world.run(15 * MINUTE)
    engine.stop()
    for record in world.store.list_runs(workflow=LOG):
        world.store.erase(record.key)
    world.moment += 30 * MINUTE
    Clockwork(world, "b", missed="all")
    world.run(10 * MINUTE)
    assert world.minutes() == [10, 50]
