"""Other processes resume a run unasked: soon enough, whatever their clocks say, and as it was begun."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from itertools import product
from typing import Final

import pytest

from flowcore import StoreError, Workflow
from tests.durable.audit import audit
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES, recovering, run
from tests.durable.ledger import Effect, Ledger, effects_of, words_of
from tests.durable.mishaps import Part, awaken, heard, play, take_over
from tests.durable.nursery import Nursery
from tests.durable.sagas import World, saga
from tests.stores.redis_servers import until

LEASE: Final = 1.5
HOUR: Final = 3600.0


def effects(part: Part) -> list[Effect]:
    return effects_of(part.place.ledger).get(part.key, [])


def steps(part: Part) -> list[str]:
    return [f"{effect.what} {effect.step}" for effect in effects(part)]


def began(*parts: Part) -> None:
    """Wait until all have come to where something happens to them."""
    until(lambda: all(steps(part)[-1:] == [part.at.removeprefix("after ")] for part in parts), "all of them")


def taken_over(part: Part) -> float:
    """Seconds from the last effect of the first owner to the first one of the next."""
    first = effects(part)[0].fence
    died = max(effect.at for effect in effects(part) if effect.fence == first)
    return min(effect.at for effect in effects(part) if effect.fence > first) - died


def test_a_run_is_taken_over_within_one_and_a_half_leases_of_kill_9_with_no_caller(
    place: Callable[[str], Place], nursery: Nursery
) -> None:
    """At the first try, if the machine has nothing else to do; the best of three counts."""
    took: dict[str, float] = {}
    for turn in range(3):
        parts = [
            Part(place(kind), driver, name, f"{driver} {name} {turn}", LEASE, at, "killed")
            for kind, driver in product(STORES, DRIVERS)
            for name, at in (("success", "after do b"), ("compensated", "after undo b"))
        ]
        pids = [nursery.start(take_over, part) for part in parts]
        assert nursery.call(play, [(part,) for part in parts], at_once=len(parts)) == [-signal.SIGKILL] * len(parts)
        for pid in pids:
            nursery.wait([pid])
        took = {f"{part.place.kind}, {part.key}": round(taken_over(part), 2) for part in parts}
        for part in parts:
            with part.place.store() as store:
                record = store.find(part.key)
            said = words_of(part.place.journal)[part.key]
            assert not audit(effects(part), said, record, saga(part.saga, World(Ledger(part.place.ledger))))
        if max(took.values()) <= 1.5 * LEASE:
            break
    assert max(took.values()) <= 1.5 * LEASE, took


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_on_redis_no_clock_of_a_client_matters(place: Callable[[str], Place], nursery: Nursery) -> None:
    """Its own clock decides: neither an owner nor who looks for its run is believed when it is an hour off."""
    pairs = [
        (
            Part(here, driver, "success", f"{driver} {skew}", LEASE, "after do b", "waits", skew=skew),
            Part(here, driver, "success", f"{driver} {skew}", LEASE, skew=-skew),
        )
        for here, driver, skew in ((place("redis"), driver, skew) for driver in DRIVERS for skew in (-HOUR, HOUR))
    ]
    owners = [nursery.start(play, owner) for owner, _ in pairs]
    others = [nursery.start(take_over, other) for _, other in pairs]
    began(*(owner for owner, _ in pairs))
    time.sleep(1.2 * LEASE)
    for (owner, _), pid in zip(pairs, owners, strict=True):
        assert steps(owner) == ["do a", "do b"]  # it was not taken over
        os.kill(pid, signal.SIGKILL)
    died = time.monotonic()
    for pid in (*owners, *others):
        nursery.wait([pid])
    for owner, other in pairs:
        assert steps(owner) == ["do a", "do b", "do b", "do c"]
        assert effects(owner)[2].at - died <= 1.5 * LEASE
        with other.place.store() as store:
            record = store.find(owner.key)
        assert abs(record.started - time.time()) < HOUR / 2
        assert abs(record.fence / 1e6 - time.time()) < HOUR / 2


def test_on_sqlite_a_clock_set_forward_ends_leases_early_and_harms_no_run(
    place: Callable[[str], Place], nursery: Nursery
) -> None:
    """The processes of a machine share a clock, and survive that it is set."""
    pairs = [
        (
            Part(here, driver, "success", "k", LEASE, "after do b", "waits"),
            Part(here, driver, "success", "k", LEASE, skew=HOUR),
        )
        for here, driver in ((place("sqlite"), driver) for driver in DRIVERS)
    ]
    owners = [nursery.start(play, owner) for owner, _ in pairs]
    began(*(owner for owner, _ in pairs))
    for _, other in pairs:
        nursery.wait([nursery.start(take_over, other)])
    for (owner, _), pid in zip(pairs, owners, strict=True):
        awaken(owner, pid)
        nursery.wait([pid])
        reported = heard(owner.place)["k"]
        assert (reported.said, reported.replayed) == ("success", True)
        assert steps(owner) == ["do a", "do b", "do b", "do c"]


def test_on_sqlite_a_clock_set_back_costs_a_lease_more(place: Callable[[str], Place], nursery: Nursery) -> None:
    pairs = [
        (
            Part(here, driver, "success", "k", LEASE, "after do b", "killed"),
            Part(here, driver, "success", "k", LEASE, skew=-HOUR),
        )
        for here, driver in ((place("sqlite"), driver) for driver in DRIVERS)
    ]
    nursery.call(play, [(owner,) for owner, _ in pairs])
    for pid in [nursery.start(take_over, other) for _, other in pairs]:
        nursery.wait([pid])
    for owner, _ in pairs:
        assert steps(owner) == ["do a", "do b", "do b", "do c"]
        assert LEASE / 2 < taken_over(owner) <= 2.5 * LEASE


# -- another definition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_another_definition_is_refused_loudly_and_the_old_one_continues(
    kind: str, driver: str, place: Callable[[str], Place], nursery: Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    part = Part(place(kind), driver, "success", "k", LEASE / 5, "after do b", "killed")
    nursery.call(play, [(part,)])
    old, new = saga("success", World(Ledger(part.place.ledger))), Workflow("success")
    new.add_step("a", lambda ctx: None)
    with part.place.store() as near, part.place.store(asynchronous=driver == "asyncio") as store:
        until(lambda: near.list_runs(status="expired"), "the end of its lease")
        before = near.find("k")
        with pytest.raises(
            StoreError, match=f"Run {before.run_id} of 'success' was started with a different step graph"
        ):
            run(driver, store, new, "k", LEASE)
        with caplog.at_level(logging.WARNING, "flowcore"), recovering(near, new, LEASE / 50):
            until(
                lambda: "cannot be recovered: it was started with a different step graph" in caplog.text, "the warning"
            )
        assert near.find("k") == before
        near.undo("k")  # or leave it, and it goes forward: the README's ways out have tests of their own
        assert run(driver, store, old, "k", LEASE).status == "compensated"
    assert steps(part) == ["do a", "do b", "undo b", "undo a"]
