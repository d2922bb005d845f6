"""A run is killed with kill -9 at every call of its store and at every step, before and after; then
another call resumes it, and the ledger of effects is right."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial, reduce
from operator import and_
from pathlib import Path
from typing import Any, Final

import pytest

from flowcore import AsyncEngine, Engine, IdempotencyHeld, Workflow
from tests.durable.audit import audit
from tests.durable.crash import Job, Place, run_jobs, run_torn
from tests.durable.ledger import Journal, Ledger, effects_of, lines_of, words_of
from tests.durable.nursery import Nursery
from tests.durable.sagas import SAGAS, World, saga
from tests.durable.watched import Watched
from tests.stores.redis_servers import until

LEASE: Final = 0.5
CONCURRENT: Final = frozenset({"fan_out", "parallel_undo", "failed_branch", "waits"})
"""sagas whose steps run at the same time, or whose waits may be over before the run is left to its store: not every run comes to
the same points, and each dies alone"""
ASYNC: Final = ("success", "compensated", "parallel_undo", "past_pivot", "slow", "waits")
TOGETHER: Final = 16
"""runs that die in one process"""
QUICK: Final = {("sqlite", "call"), ("sqlite", "async call"), ("redis", "recover"), ("redis", "call twice")}
"""what a quick proof takes: each store, and each way to go on, in other words all that two matrices do not both prove"""
UNINJURED: Final = 3
"""runs of each saga that show its points: on a busy machine, one may save more often than the others"""
SECOND: Final = 14
"""where there is a second crash, it comes at one of so many points of the takeover"""


class Matrix:
    """All crashes of all sagas on one store, and what became of them. `how`: what resumes them: a call with the same
    key, one of AsyncEngine, recover(), or a call that is killed in its turn, and another one."""

    def __init__(self, place: Place, how: str, nursery: Nursery) -> None:
        self.nursery = nursery
        self.place = place
        self.how = how
        self.asynchronous = how == "async call"
        self.sagas = ASYNC if self.asynchronous else tuple(SAGAS)
        self.outcomes = f"{place.ledger}.outcomes"
        self.jobs: dict[str, Job] = {}
        self.survived: set[str] = set()
        self.wrong: dict[str, list[str]] = {name: [] for name in self.sagas}

    def run(self) -> None:
        self.crash([Job(name, f"{name}, uninjured {number}") for name in self.sagas for number in range(UNINJURED)])
        self.enumerate()
        self.kill()
        with self.place.store() as store:
            until(partial(_all_expired, store), "the end of all leases")
            if self.how == "call twice":
                jobs = enumerate(self.jobs.values())
                self.crash([Job(job.saga, job.key, "", 1 + number % SECOND) for number, job in jobs])
                until(partial(_all_expired, store), "the end of all leases")
            world = World(Ledger(self.place.ledger), asynchronous=self.asynchronous)
            workflows = {name: saga(name, world) for name in self.sagas}
            watched = Watched(store, Journal(self.place.journal))
            if self.how == "recover":
                self.recover(watched, workflows)
            elif self.asynchronous:
                asyncio.run(self.call_async(watched, workflows))
            else:
                self.call(watched, workflows)
            self.audit(store, workflows)

    # -- crashing ------------------------------------------------------------------------------------------------------

    def enumerate(self) -> None:
        """Come to know the points where a run can be killed, by those that were not."""
        runs: dict[str, list[Counter[str]]] = {}
        for uninjured, points in self.over():
            runs.setdefault(uninjured.partition(",")[0], []).append(Counter(points))
        for name, points_of_each in runs.items():
            for label, number in reduce(and_, points_of_each).items():
                if ("renew" in label and name != "slow") or "head" in label:
                    continue  # on a machine with much to do others come to a heartbeat too, and look more often
                for occurrence in range(1, number + 1):
                    key = f"{name}, {label}, {occurrence}"
                    self.jobs[key] = Job(name, key, label, occurrence)

    def kill(self) -> None:
        """Kill each run at its point. A run that ends without coming there is repeated once, with another key."""
        self.crash(list(self.jobs.values()))
        self.survived = {key for key, _ in self.over()}
        missed = [self.jobs[key] for key in self.survived if self.jobs[key].saga not in CONCURRENT]
        if missed:
            again = {f"{job.key}, again": replace(job, key=f"{job.key}, again") for job in missed}
            self.jobs |= again
            self.crash(list(again.values()))
            self.survived -= {job.key for job in missed}
            self.survived |= {key for key, _ in self.over()}

    def over(self) -> list[tuple[str, dict[str, int]]]:
        """Take note of the runs that came to their end, and where they came through."""
        ended = [(name, points) for name, points in lines_of(self.outcomes)]
        Path(self.outcomes).unlink(missing_ok=True)
        return ended

    def crash(self, jobs: list[Job]) -> None:
        alone = [job for job in jobs if self.asynchronous or job.saga in CONCURRENT or "renew" in job.label]
        others = [job for job in jobs if job not in alone]
        batches = [[job] for job in alone]
        batches += [others[first : first + TOGETHER] for first in range(0, len(others), TOGETHER)]
        calls = [(self.place, batch, LEASE, self.asynchronous, self.outcomes) for batch in batches]
        assert set(self.nursery.call(run_jobs, calls)) == {-9}

    # -- going on ------------------------------------------------------------------------------------------------------

    def call(self, store: Any, workflows: dict[str, Workflow]) -> None:
        with Engine(store=store) as engine:
            for key, job in self.jobs.items():
                call = partial(engine.run, workflows[job.saga], {"key": key}, idempotency_key=key, check=False)
                try:
                    held = call().held
                except IdempotencyHeld:
                    held = True
                if held:
                    store.resume(key)
                    call()

    async def call_async(self, store: Any, workflows: dict[str, Workflow]) -> None:
        async with AsyncEngine(store=store) as engine:
            for key, job in self.jobs.items():
                await engine.run(workflows[job.saga], {"key": key}, idempotency_key=key, check=False)

    def recover(self, store: Any, workflows: dict[str, Workflow]) -> None:
        with Engine(store=store, workflows=workflows.values()) as engine:
            engine.recover()
            for record in store.list_runs(status="held"):
                store.undo(record.key)
            engine.recover()
            while store.list_runs(status="waiting"):
                engine.recover()

    # -- looking back --------------------------------------------------------------------------------------------------

    def audit(self, store: Any, workflows: dict[str, Workflow]) -> None:
        effects, words = effects_of(self.place.ledger), words_of(self.place.journal)
        for key, job in self.jobs.items():
            record = store.find(key)
            found = audit(effects.get(key, []), words.get(key, []), record, workflows[job.saga])
            if key in self.survived and job.saga not in CONCURRENT:
                found.append("it was not killed")
            if record is None and (self.how != "recover" or job.label != "before claim"):
                found.append("it has no record")
            if record is not None and record.status not in SAGAS[job.saga][1]:
                found.append(f"it ended with {record.status}")
            done = [effect.step_key for effect in effects.get(key, []) if effect.what == "do"]
            if job.saga == "verified" and len(set(done)) < len(done):
                found.append("a step that is asked first was done twice")
            self.wrong[job.saga] += (f"{key}: {one}" for one in found)
        for name in CONCURRENT.intersection(self.sagas):
            points = [key for key, job in self.jobs.items() if job.saga == name]
            if len(self.survived.intersection(points)) > len(points) / 2:
                self.wrong[name].append("most of its runs were not killed")


@pytest.fixture(scope="module")
def matrix(place: Callable[[str], Place], nursery: Nursery) -> Callable[[str, str], Matrix]:
    """Crashes, once, all that there is."""

    @cache
    def crashed(kind: str, how: str) -> Matrix:
        one = Matrix(place(kind), how, nursery)
        one.run()
        return one

    return crashed


@pytest.mark.parametrize(
    ("kind", "how", "name"),
    [
        pytest.param(
            kind, how, name, id=f"{kind}, {how}, {name}", marks=() if (kind, how) in QUICK else pytest.mark.full
        )
        for kind in ("sqlite", "redis")
        for how in ("call", "recover", "call twice", "async call")
        for name in (ASYNC if how == "async call" else SAGAS)
    ],
)
def test_after_every_crash_the_ledger_is_right(
    matrix: Callable[[str, str], Matrix], kind: str, how: str, name: str
) -> None:
    assert not matrix(kind, how).wrong[name]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_crash_inside_of_a_call_of_the_store_leaves_all_of_it_or_nothing(
    kind: str, place: Callable[[str], Place], nursery: Nursery
) -> None:
    here = place(kind)
    seen = f"{here.ledger}.outcomes"
    nursery.call(run_torn, [(here, Job("compensated", "uninjured"), LEASE, seen)])
    ((points,),) = (line[1].values() for line in lines_of(seen))
    assert points > 20
    first = [Job("compensated", f"run {n}", "", n) for n in range(1, points + 1)]
    second = [Job("compensated", job.key, "", 1 + job.occurrence * 7 % points) for job in first]
    for jobs in (first, second):  # the next owner is killed in the same way, at another place
        nursery.call(run_torn, [(here, job, LEASE, seen) for job in jobs])
        with here.store() as store:
            until(partial(_all_expired, store), "the end of all leases")
    with here.store() as store, Engine(store=store) as engine:
        wf = saga("compensated", World(Ledger(here.ledger)))
        for job in first:
            engine.run(wf, {"key": job.key}, idempotency_key=job.key, check=False)
        effects, words = effects_of(here.ledger), words_of(here.journal)
        for job in first:
            record = store.find(job.key)
            assert record.status == "compensated"
            assert not audit(effects[job.key], words.get(job.key, []), record, wf)


def _all_expired(store: Any) -> bool:
    expired = {record.key for record in store.list_runs(status="expired")}
    return expired == {record.key for record in store.list_runs(status="running")}
