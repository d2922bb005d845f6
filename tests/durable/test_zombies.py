"""An owner stands still for longer than its lease, and awakes when another has taken its run over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from itertools import product
from typing import Any, Final

import pytest

from flowcore import Engine
from tests.durable.audit import audit
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES, recovering, run
from tests.durable.ledger import Journal, Ledger, effects_of, words_of
from tests.durable.mishaps import Part, awaken, heard, play
from tests.durable.nursery import Nursery
from tests.durable.sagas import World, saga
from tests.durable.watched import Watched
from tests.stores.redis_servers import until

LEASE: Final = 0.5


def stand_still(place: Place, store: Any, keys: Collection[str]) -> None:
    """Wait until the leases of all these runs are over."""

    def expired() -> set[str]:
        return {record.key for record in store.list_runs(status="expired")}

    try:
        until(lambda: expired() == set(keys), "the end of all leases")
    except AssertionError as error:
        found = {record.key: (record.status, len(record.steps)) for record in store.list_runs()}
        error.add_note(f"missing: {set(keys) - expired()}; heard: {heard(place)}; found: {found}")
        raise


def effects_by(place: Place, pid: int) -> int:
    """How many effects a process has had."""
    return sum(effect.pid == pid for effects in effects_of(place.ledger).values() for effect in effects)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("mishap", ["frozen", "gil"])
def test_a_zombie_does_nothing_more_and_its_caller_hears_what_the_owner_made_of_the_run(
    kind: str, mishap: str, place: Callable[[str], Place], nursery: Nursery
) -> None:
    here = place(kind)
    parts = [
        Part(here, driver, name, f"{driver} {name} {at}", LEASE, at, mishap)
        for driver in DRIVERS
        for name, at in (
            ("success", "after claim"),  # its first step has not begun
            ("success", "after checkpoint"),
            ("success", "after do b"),
            ("compensated", "after do b"),
            ("compensated", "after undo b"),
            ("compensated", "before finish"),
            ("past_pivot", "after do p"),
        )
    ]
    pids = {part.key: nursery.start(play, part) for part in parts}
    with here.store() as store:
        stand_still(here, store, pids)
        watched = Watched(store, Journal(here.journal))
        world = World(Ledger(here.ledger))
        for part in parts:
            run("threads", watched, saga(part.saga, world), part.key, 30.0)
        before = {key: effects_by(here, pid) for key, pid in pids.items()}
        for part in parts:
            awaken(part, pids[part.key])
            nursery.wait([pids[part.key]])
        effects, words = effects_of(here.ledger), words_of(here.journal)
        for part in parts:
            reported, record = heard(here)[part.key], store.find(part.key)
            assert reported.run_id == record.run_id
            assert (reported.said, reported.replayed) == (
                ("success", True) if record.status == "success" else ("RunFailed", False)
            )
            assert effects_by(here, pids[part.key]) == before[part.key]
            assert not audit(effects[part.key], words[part.key], record, saga(part.saga, world))


@pytest.mark.parametrize("kind", STORES)
def test_a_zombie_whose_owner_is_still_at_it_loses_the_run_or_waits_for_its_outcome(
    kind: str, place: Callable[[str], Place], nursery: Nursery
) -> None:
    here, go_on = place(kind), threading.Event()
    waits = {None: "LeaseLost", 15.0: "success"}
    parts = [
        Part(here, driver, "success", f"{driver}, wait={wait}", LEASE, "after do b", "frozen", wait)
        for driver, wait in product(DRIVERS, waits)
    ]
    pids = {part.key: nursery.start(play, part) for part in parts}

    def point(label: str) -> None:
        if label == "after do b":
            go_on.wait()

    wf = saga("success", World(Ledger(here.ledger), point))
    with here.store() as store, Engine(store=store) as engine:
        stand_still(here, store, pids)
        owners = {part.key: engine.submit(wf, {"key": part.key}, idempotency_key=part.key) for part in parts}
        until(lambda: all(effects[-1].fence > effects[0].fence for effects in effects_of(here.ledger).values()), "b")
        before = {key: effects_by(here, pid) for key, pid in pids.items()}
        for part in parts:
            awaken(part, pids[part.key])
        for part in parts:
            if part.wait is None:
                nursery.wait([pids[part.key]])
        go_on.set()
        for part in parts:
            if part.wait is not None:
                nursery.wait([pids[part.key]])
            owner, reported = owners[part.key].result(), heard(here)[part.key]
            assert (reported.said, reported.run_id, reported.replayed) == (
                waits[part.wait],
                owner.id,
                part.wait is not None,
            )
            assert (
                part.wait is not None
                or f"Another process has taken over run {owner.id} of 'success'" in reported.message
            )
            assert effects_by(here, pids[part.key]) == before[part.key] == 2
            assert [effect.step for effect in effects_of(here.ledger)[part.key]] == ["a", "b", "b", "c"]


@pytest.mark.parametrize("kind", STORES)
def test_a_blocked_event_loop_costs_no_run(kind: str, place: Callable[[str], Place]) -> None:
    """The heartbeat has a thread of its own."""
    here = place(kind)

    def point(label: str) -> None:
        if label == "after do b":
            time.sleep(LEASE * 2)  # on the loop: the steps are coroutines

    wf = saga("success", World(Ledger(here.ledger), point, asynchronous=True))
    others = saga("success", World(Ledger(here.ledger)))

    with here.store(asynchronous=True) as store, here.store() as near, recovering(near, others, LEASE / 20):
        ended = run("asyncio", store, wf, "k", LEASE)
    assert (ended.status, ended.replayed) == ("success", False)
    assert [effect.step for effect in effects_of(here.ledger)["k"]] == ["a", "b", "c"]
