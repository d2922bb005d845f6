"""A store is away for a while: Redis killed and started again, or frozen; SQLite's file locked by another process."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff

from flowcore import AsyncEngine, Context, Engine, Run, RunParked, StoreUnavailable, Workflow
from flowcore._engines import aio_queueing
from flowcore.stores import SQLiteStore
from flowcore.stores.sqlite import database
from tests.durable.audit import audit
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, all_at_once, recovering, run
from tests.durable.ledger import Journal, Ledger, effects_of, words_of
from tests.durable.sagas import World, saga
from tests.durable.watched import Fuse, Watched
from tests.stores.redis_servers import RedisServer, redis_binary, until

OUTAGES: Final = ("sqlite locked", "redis killed", "redis frozen")
CASES: Final = tuple(product(OUTAGES, DRIVERS))
LEASE: Final = 1.8
SHORT: Final = 0.9
ENDLESS: Final = 600.0


class Away:
    """A place whose store goes away, and comes back as it was."""

    def __init__(self, outage: str, place: Place, stack: ExitStack) -> None:
        self.leave: Callable[[], Any]
        self.come_back: Callable[[], Any]
        if outage == "sqlite locked":
            self.place = place
            with self.store():
                file = sqlite3.connect(place.address, check_same_thread=False, isolation_level=None)
            stack.callback(file.close)
            self.leave = partial(file.execute, "BEGIN IMMEDIATE")
            self.come_back = partial(file.execute, "ROLLBACK")
            return
        server = stack.enter_context(RedisServer(Path(place.ledger).parent / "redis", appendonly="always"))
        self.place = replace(place, address=server.url)
        self.leave = server.pause if outage == "redis frozen" else server.kill
        self.come_back = server.resume if outage == "redis frozen" else server.start

    @contextmanager
    def store(self, driver: str = "threads") -> Iterator[Any]:
        options: dict[str, Any] = {}
        if self.place.kind == "redis":
            kind = redis.asyncio.retry.Retry if driver == "asyncio" else redis.retry.Retry
            options = {"socket_timeout": 0.6, "retry": kind(NoBackoff(), 0)}
        with self.place.store(asynchronous=driver == "asyncio", **options) as store:
            yield store

    def saga(self, name: str, point: Callable[[str], None] = lambda label: None) -> Workflow:
        return saga(name, World(Ledger(self.place.ledger), point))

    def effects(self) -> list[str]:
        """What was done and undone."""
        return [f"{effect.what} {effect.step}" for effect in effects_of(self.place.ledger).get("k", [])]


@pytest.fixture
def away(place: Callable[[str], Place], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Away]]:
    """Makes places whose stores go away."""
    redis_binary()
    # SQLite waits for another connection's lock for a moment only, instead of five seconds.
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    with ExitStack() as stack:
        yield lambda outage: Away(outage, place(outage.split()[0]), stack)


def test_while_its_store_is_away_no_run_begins(away: Callable[[str], Away]) -> None:
    def one(outage: str, driver: str) -> None:
        there = away(outage)
        wf = there.saga("success")
        with there.store(driver) as store:
            there.leave()
            with pytest.raises(StoreUnavailable):
                run(driver, store, wf, "k", LEASE / 3)
            assert there.effects() == []
            there.come_back()
            assert run(driver, store, wf, "k", LEASE, wait=LEASE).status == "success"
        assert there.effects() == ["do a", "do b", "do c"]

    all_at_once(one, CASES)


def test_a_run_whose_store_stays_away_parks_and_is_resumed_once_it_is_back(away: Callable[[str], Away]) -> None:
    def one(outage: str, driver: str, name: str, at: str, once: list[str]) -> None:
        there = away(outage)
        left: list[str] = []

        def point(label: str) -> None:
            if label == at and not left:
                left.append(label)
                there.leave()

        wf, journal = there.saga(name, point), Journal(there.place.journal)
        with there.store(driver) as store, there.store() as near, recovering(Watched(near, journal), wf, LEASE / 15):
            with pytest.raises(RunParked, match=r"It resumes on the next call with its key or on engine.recover\(\)"):
                run(driver, Watched(store, journal), wf, "k", SHORT, check=True, patience=SHORT * 0.8)
            there.come_back()
            until(lambda: near.find("k").status in {"success", "compensated"}, "its end")
            record = near.find("k")
        # What was in flight comes twice, unless a frozen Redis does what it was told once it awakes.
        effects = there.effects()
        assert list(dict.fromkeys(effects)) == once
        assert len(effects) == len(once) + 1 or outage == "redis frozen"
        found = effects_of(there.place.ledger)["k"], words_of(there.place.journal)["k"]
        assert not audit(*found, record, wf)

    cases = (
        ("success", "after do b", ["do a", "do b", "do c"]),
        ("compensated", "after undo b", ["do a", "do b", "do c", "undo c", "undo b", "undo a"]),
    )
    all_at_once(one, [(*case, *more) for case in CASES for more in cases])


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_store_that_is_away_does_not_keep_submit_from_returning_on_a_loop(
    away: Callable[[str], Away], outage: str
) -> None:
    there = away(outage)
    wf = there.saga("success")

    async def main() -> None:
        with there.store("asyncio") as store, there.store() as near:
            async with AsyncEngine(store=store, lease=ENDLESS) as engine:
                there.leave()
                first, cancelled, last = (engine.submit(wf, {"key": key}, idempotency_key=key) for key in "kcl")
                assert not any(future.is_decided for future in (first, cancelled, last))
                await asyncio.sleep(0)
                assert cancelled.cancel_run()
                there.come_back()
                for future in (first, last):
                    await future.recorded()
                    assert (await future).status == "success"
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
                await asyncio.to_thread(until, lambda: is_free(near, "c"), "the withdrawal")

    asyncio.run(main())
    assert there.effects() == ["do a", "do b", "do c"]
    assert "c" not in effects_of(there.place.ledger)


def test_a_run_whose_recording_is_overdue_ends_if_its_engine_is_closed_on_another_loop(
    away: Callable[[str], Away],
) -> None:
    there = away("sqlite locked")
    wf = there.saga("success")

    async def main(engine: AsyncEngine) -> None:
        there.leave()
        cancelled, waits = (engine.submit(wf, {"key": key}, idempotency_key=key) for key in "ck")
        await asyncio.sleep(0)
        await asyncio.to_thread(asyncio.run, engine.aclose(timeout=0))
        assert cancelled.cancel_run()
        there.come_back()
        await asyncio.wait([cancelled, waits])
        assert cancelled.cancelled()
        assert waits.cancelled() or waits.exception() is None or isinstance(waits.exception(), RunParked)

    with there.store("asyncio") as store:
        asyncio.run(main(AsyncEngine(store=store, lease=SHORT)))


def test_a_submitted_run_that_cannot_reach_its_store_when_it_begins_is_left_to_others(
    away: Callable[[str], Away], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The store leaves when the run is recorded, also on a machine that needs long for that.
    monkeypatch.setattr(aio_queueing, "_BLOCKS", ENDLESS)

    async def on_a_loop(there: Away, store: Any, wf: Workflow) -> Any:
        engine = AsyncEngine(store=store, lease=SHORT)
        future = engine.submit(wf, {"key": "k"}, idempotency_key="k")
        there.leave()
        await asyncio.wait([future])
        return future.exception()

    def on_a_thread(there: Away, store: Any, wf: Workflow) -> Any:
        occupies, busy = threading.Event(), Workflow("busy")
        busy.add_step("wait", lambda ctx: occupies.wait())
        with Engine(store=store, lease=SHORT, store_patience=0, max_workers=1) as engine:
            engine.submit(busy)
            future = engine.submit(wf, {"key": "k"}, idempotency_key="k")
            there.leave()
            occupies.set()
            return future.exception()

    def one(outage: str, driver: str) -> None:
        there = away(outage)
        wf, journal = there.saga("success"), Journal(there.place.journal)
        with there.store(driver) as store, there.store() as near:
            ended = asyncio.run(on_a_loop(there, store, wf)) if driver == "asyncio" else on_a_thread(there, store, wf)
            assert isinstance(ended, RunParked), repr(ended)
            assert "It is recorded as queued, and another engine may run it." in str(ended)
            there.come_back()
            with recovering(Watched(near, journal), wf, LEASE / 15):
                until(lambda: near.find("k").status == "success", "the recovery")
        assert there.effects() == ["do a", "do b", "do c"]

    all_at_once(one, CASES)


def is_free(store: Any, key: str) -> bool:
    """Whether no run has the key, or only one that was withdrawn."""
    record = store.find(key)
    return record is None or (record.status == "failure" and not record.effects)


def goes_on_after_half_a_lease(away: Callable[[str], Away], lease: float, outage: str, driver: str) -> None:
    """A run whose store is away for half a lease. It leaves when it hurts most: just before the lease is renewed; and others
    look for runs to take over all the time."""
    there = away(outage)
    beats = threading.Semaphore(0)

    def watch(label: str) -> None:
        if label == "after renew":
            beats.release()

    def point(label: str) -> None:
        if label == "after do b":
            assert beats.acquire(timeout=lease)
            time.sleep(lease * 0.3)
            there.leave()
            time.sleep(lease / 2)
            there.come_back()
            assert all(
                beats.acquire(timeout=lease) for _ in range(2)
            )  # long enough for others to find it, were it lost

    wf, journal = there.saga("success", point), Journal(there.place.journal)
    with there.store(driver) as store, there.store() as near, recovering(Watched(near, journal), wf, lease / 60):
        ended = run(driver, Watched(store, journal, watch), wf, "k", lease)
        record = near.find("k")
    assert (ended.status, ended.replayed) == ("success", False)
    assert there.effects() == ["do a", "do b", "do c"]
    assert {effect.fence for effect in effects_of(there.place.ledger)["k"]} == {record.fence}
    assert [word.verb for word in words_of(there.place.journal)["k"]].count("claim") == 1


def test_an_outage_of_half_a_lease_costs_no_owner_its_run(away: Callable[[str], Away]) -> None:
    """long_outages.py has one of thirty seconds."""
    all_at_once(partial(goes_on_after_half_a_lease, away, LEASE), CASES)


@pytest.mark.parametrize("first", ["heartbeat", "checkpoint"])
def test_a_run_that_no_process_took_over_continues_after_an_outage_of_any_length(
    first: str, away: Callable[[str], Away]
) -> None:
    """Whichever its store hears first then: the heartbeat, or what has been done."""

    def one(outage: str, driver: str) -> None:
        there = away(outage)
        fuse, reported = Fuse("", 0, lambda: None), threading.Event()

        def watch(label: str) -> None:
            fuse(label)
            if label == "before renew" and first == "checkpoint":
                reported.wait(LEASE * 3)
            elif label == "after checkpoint" and fuse.seen["back"]:
                reported.set()

        def point(label: str) -> None:
            if label == "after do b":
                there.leave()
                time.sleep(SHORT * 1.5)
                there.come_back()
                watch("back")
                if first == "heartbeat":
                    before = fuse.seen["after renew"]
                    until(lambda: fuse.seen["after renew"] > before, "the next heartbeat")

        with there.store(driver) as store:
            watched = Watched(store, Journal(there.place.journal), watch)
            assert run(driver, watched, there.saga("compensated", point), "k", SHORT).status == "compensated"
        assert there.effects() == ["do a", "do b", "do c", "undo c", "undo b", "undo a"]

    all_at_once(one, CASES)


class Claiming:
    """A store whose claims take a while. `most`: the most claims that were in flight at a time."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store, self._lock, self._now, self.most = store, threading.Lock(), 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def claim(self, claim: Any) -> Any:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(SHORT / 3)
        with self._lock:
            self._now -= 1
        return self._store.claim(claim)


@pytest.mark.parametrize("submits", [False, True], ids=["run", "submit"])
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_claim_that_an_outage_delays_takes_no_run_over_from_its_own_engine(
    driver: str, submits: bool, tmp_path: Path
) -> None:
    began, ends, wf = list[str](), threading.Event(), Workflow("w")

    def long(ctx: Context) -> None:
        began.append("long")
        ends.wait()

    async def long_on_a_loop(ctx: Context) -> None:
        began.append("long")
        await asyncio.to_thread(ends.wait)

    wf.add_step("long", long_on_a_loop if driver == "asyncio" else long)

    def outage() -> None:
        until(lambda: bool(began), "the step")
        file = sqlite3.connect(tmp_path / "db", isolation_level=None)
        file.execute("BEGIN IMMEDIATE")
        is_away.set()
        time.sleep(SHORT * 2)
        file.execute("ROLLBACK")
        file.close()
        time.sleep(SHORT / 2)
        ends.set()

    def on_threads() -> list[str]:
        with Engine(store=SQLiteStore(tmp_path / "db"), lease=SHORT) as engine:
            first = engine.submit(wf, idempotency_key="k")
            is_away.wait()
            second = (
                engine.submit(wf, idempotency_key="k", wait=ENDLESS).result()
                if submits
                else engine.run(wf, idempotency_key="k", wait=ENDLESS)
            )
            return [str(first.result().status), str(second.status)]

    async def on_a_loop() -> list[str]:
        async with AsyncEngine(store=SQLiteStore(tmp_path / "db"), lease=SHORT) as engine:
            first = engine.submit(wf, idempotency_key="k")
            await asyncio.to_thread(is_away.wait)
            second = await (engine.submit if submits else engine.run)(wf, idempotency_key="k", wait=ENDLESS)
            return [str((await first).status), str(second.status)]

    is_away, locks = threading.Event(), threading.Thread(target=outage)
    locks.start()
    assert (asyncio.run(on_a_loop()) if driver == "asyncio" else on_threads()) == ["success", "success"]
    locks.join()
    assert began == ["long"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_run_is_resumed_by_one_claim_of_an_engine_at_a_time(driver: str, tmp_path: Path) -> None:
    """Of two that come late, the second would take the run over from the first."""
    store, wf = Claiming(SQLiteStore(tmp_path / "db")), Workflow("w")
    wf.sleep("pause", 0.1)
    options: dict[str, Any] = {"store": store, "workflows": [wf], "recover_every": 0.01}

    async def main() -> Run:
        async with AsyncEngine(**options) as engine:
            return await engine.run(wf, idempotency_key="k")

    if driver == "asyncio":
        assert asyncio.run(main()).status == "success"
    else:
        with Engine(**options) as engine:
            assert engine.run(wf, idempotency_key="k").status == "success"
    assert store.most == 1
