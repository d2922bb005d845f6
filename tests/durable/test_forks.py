"""A process forks in the middle of a run: the run is its own, and no child's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, STORES, run
from tests.durable.ledger import Ledger, effects_of
from tests.durable.mishaps import Part, awaken, fork, heard, play
from tests.durable.nursery import Nursery
from tests.durable.sagas import World, saga
from tests.stores.redis_servers import until

LEASE: Final = 0.4


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("child", ["returns", "exits", "fails"])
@pytest.mark.parametrize(
    ("name", "at", "done"),
    [
        ("success", "after do b", ["do a", "do b", "do c"]),
        ("fan_out", "after do x", ["do join", "do root", "do x", "do y", "do z"]),
        ("compensated", "after undo b", ["do a", "do b", "do c", "undo a", "undo b", "undo c"]),
    ],
)
def test_a_child_that_comes_back_into_its_parents_run_does_nothing_of_it(
    kind: str, child: str, name: str, at: str, done: list[str], place: Callable[[str], Place], nursery: Nursery
) -> None:
    part = Part(place(kind), "threads", name, "k", LEASE, at, f"child {child}")
    nursery.wait([nursery.start(play, part)])
    effects = effects_of(part.place.ledger)["k"]
    assert sorted(f"{effect.what} {effect.step}" for effect in effects) == done
    assert len({effect.pid for effect in effects}) == 1
    assert heard(part.place)["k"].said == "Boom" if name == "compensated" else "success"


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_child_that_lives_on_keeps_no_lease_of_its_parent(
    kind: str, driver: str, place: Callable[[str], Place], nursery: Nursery
) -> None:
    """And is an engine of its own, whose heartbeat keeps its own runs."""
    part = Part(place(kind), driver, "success", "k", LEASE, "after do b", "waits")
    pid = nursery.start(fork, part)
    with part.place.store() as store:
        until(lambda: len(effects_of(part.place.ledger).get("the child's", [])) == 2, "the child's second step")
        time.sleep(LEASE * 1.5)
        before = store.list_runs(status="expired")
        os.kill(pid, signal.SIGKILL)
        nursery.wait([pid])
        until(lambda: [record.key for record in store.list_runs(status="expired")] == ["k"], "the end of its lease")
        taken_over = run("threads", store, saga("success", World(Ledger(part.place.ledger))), "k", LEASE)
        after = store.list_runs(status="expired")
        awaken(part, pid)
        assert (before, taken_over.status, after) == ([], "success", [])  # each has a heartbeat of its own
        until(lambda: store.find("the child's").status == "success", "the end of the child's run")
    effects = effects_of(part.place.ledger)
    assert [effect.step for effect in effects["k"]] == ["a", "b", "b", "c"]
    assert [effect.step for effect in effects["the child's"]] == ["a", "b", "c"]
    assert pid not in {effect.pid for effect in effects["the child's"]}
