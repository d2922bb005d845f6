"""Schedules on real engines: threads and asyncio, every store; what a run sees of its fire, and what ends a schedule."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio

from flowcore import (
    AsyncEngine,
    AsyncStepInSyncEngine,
    Context,
    DefinitionError,
    Engine,
    FlowcoreError,
    MemoryStore,
    NotSerializable,
    Status,
    Workflow,
)
from flowcore.events import Event, MaintenanceStarted, ScheduleFired, ScheduleMissed, SchedulePlanned
from flowcore.fires import LOG, fire_key, fire_of
from flowcore.stores import AsyncRedisStore, RedisStore, SQLiteStore
from flowcore.stores.base import Claim, RunRecord
from tests.stores.redis_servers import redis_url, until

__all__ = ["redis_url"]  # a fixture

EVERY = timedelta(seconds=1)


@contextmanager
def store_of(kind: str, folder: Path, url: str, *, asynchronous: bool = False) -> Iterator[Any]:
    if kind == "memory":
        yield MemoryStore()
    elif kind == "sqlite":
        store = SQLiteStore(folder / "runs.db", durability="normal")
        yield store
        store.close()
    elif asynchronous:
        yield AsyncRedisStore(redis.asyncio.Redis.from_url(url), prefix=f"schedules-{uuid4().hex}")
    else:
        with redis.Redis.from_url(url) as client:
            yield RedisStore(client, prefix=f"schedules-{uuid4().hex}")


def noting() -> tuple[Workflow, list[datetime | None]]:
    """A workflow, and the planned times that its runs have seen."""
    seen: list[datetime | None] = []
    wf = Workflow("noting")
    wf.add_step("note", lambda ctx: seen.append(ctx.scheduled_at))
    return wf, seen


@contextmanager
def scheduling(driver: str, store: Any, add: Callable[[Any], Any], **options: Any) -> Iterator[Any]:
    """An engine of either kind with what `add` schedules, while the block runs."""
    if driver == "threads":
        with Engine(store=store, **options) as engine:
            add(engine)
            yield engine
        return
    ready, errors = threading.Event(), list[BaseException]()
    engines, ends = list[AsyncEngine](), list[Callable[[], Any]]()

    async def main() -> None:
        try:
            async with AsyncEngine(store=store, **options) as engine:
                add(engine)
                done = asyncio.Event()
                engines.append(engine)
                ends.append(partial(asyncio.get_running_loop().call_soon_threadsafe, done.set))
                ready.set()
                await done.wait()
        except BaseException as error:  # noqa: BLE001 - the test raises it
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(20)
    try:
        yield engines[0] if engines else None
    finally:
        for end in ends:
            end()
        thread.join(20)
    for error in errors:
        raise error


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_two_engines_begin_each_fire_once_and_the_run_knows_its_time(
    kind: str, driver: str, tmp_path: Path, redis_url: str
) -> None:
    wf, seen = noting()
    with (
        store_of(kind, tmp_path, redis_url, asynchronous=driver == "asyncio") as store,
        scheduling(driver, store, lambda engine: engine.schedule(wf, every=EVERY)),
        scheduling(driver, store, lambda engine: engine.schedule(wf, every=EVERY)),
    ):
        until(lambda: len(seen) >= 3, "three fires")
    assert len(set(seen)) == len(seen)
    assert all(at is not None and at.tzinfo is UTC and at.microsecond == 0 for at in seen)


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_what_an_engine_says_of_its_schedules(driver: str, tmp_path: Path) -> None:
    wf, seen = noting()
    events: list[Event] = []

    def add(engine: Any) -> None:
        made = engine.schedule(wf, every=EVERY, values=lambda planned: {"at": planned})
        assert (made.name, str(made)) == ("noting", "every 0:00:01")
        engine.schedule(wf, cron="0 3 * * *", timezone="Europe/Berlin", name="at night")

    with (
        closing(SQLiteStore(tmp_path / "runs.db")) as store,
        scheduling(driver, store, add, hooks=[events.append]) as engine,
    ):
        until(lambda: len(seen) >= 2, "two fires")
        if driver == "threads":
            often, night = engine.schedules()
        else:
            loop = next(iter(engine._schedules.tasks._tasks))
            often, night = asyncio.run_coroutine_threadsafe(engine.schedules(), loop).result(20)
        key = f"schedule/noting/{seen[0].replace(tzinfo=None).isoformat()}Z"
        assert store.find(key).values == {"at": seen[0]}
    assert often.name == "noting"
    assert often.last_fire in {seen[-1], seen[-1] - EVERY, seen[-1] + EVERY}
    assert often.last_outcome in {Status.SUCCESS, Status.RUNNING, Status.QUEUED}
    assert len(often.next_fires) == 3
    assert (night.last_fire, night.last_outcome, night.next_fires[0].hour in {1, 2}) == (None, None, True)
    fired = [event for event in events if isinstance(event, ScheduleFired)]
    assert [event.scheduled_at for event in fired][:2] == [at.timestamp() for at in seen[:2]]
    assert all(event.schedule == "noting" and event.lateness < 10 for event in fired)
    assert {event.schedule for event in events if isinstance(event, SchedulePlanned)} == {"noting", "at night"}
    assert "schedule" in {event.kind for event in events if isinstance(event, MaintenanceStarted)}


def test_an_engine_without_schedules_has_none() -> None:
    with Engine() as engine:
        assert engine.schedules() == []

    async def main() -> None:
        async with AsyncEngine() as engine:
            assert await engine.schedules() == []

    asyncio.run(main())


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_a_failing_run_goes_to_the_log_and_the_schedule_on(
    driver: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Any] = []

    def fail(ctx: Context) -> None:
        seen.append(ctx.scheduled_at)
        raise LookupError("no such table")

    wf = Workflow("failing")
    wf.add_step("fail", fail)
    with (
        caplog.at_level(logging.WARNING, "flowcore"),
        closing(SQLiteStore(tmp_path / "runs.db")) as store,
        scheduling(driver, store, lambda engine: engine.schedule(wf, every=EVERY)),
        scheduling(driver, store, lambda engine: engine.schedule(wf, every=EVERY)),
    ):
        until(lambda: len(seen) >= 3, "three fires")
    assert len(set(seen)) == len(seen)
    assert "of schedule 'failing' failed: LookupError: no such table" in caplog.text


def test_the_planned_time_survives_a_takeover(tmp_path: Path) -> None:
    wf, seen = noting()
    with closing(SQLiteStore(tmp_path / "runs.db")) as store:
        fire = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=3)
        key = fire_key("noting", fire)
        store.claim(
            Claim(key, "its owner died", "noting", "", wf.freeze().graph, {}, {}, 0.001, queued=True, once=True)
        )
        with Engine(store=store, lease=1) as engine:
            engine.schedule(wf, cron="0 0 1 1 *")
            until(lambda: seen, "the recovery that comes with a schedule")
    assert seen == [fire]


def test_a_manual_run_has_no_planned_time() -> None:
    wf, seen = noting()
    wf.run()
    with Engine() as engine:
        engine.run(wf, idempotency_key="schedule/noting")
    assert seen == [None, None]


def test_what_an_engine_cannot_run_is_refused_when_it_is_scheduled(tmp_path: Path) -> None:
    async def step(ctx: Context) -> None: ...

    wf, _ = noting()
    asynchronous = Workflow("asynchronous")
    asynchronous.add_step("step", step)
    with Engine() as engine:
        with pytest.raises(AsyncStepInSyncEngine):
            engine.schedule(asynchronous, every=60)
        with pytest.raises(DefinitionError, match="An engine runs workflows"):
            engine.schedule("noting", every=60)
        with pytest.raises(DefinitionError, match="takes either cron= or every="):
            engine.schedule(wf)
        with pytest.raises(DefinitionError, match="values= of schedule 'noting' must not be async"):
            engine.schedule(wf, every=60, values=step)
        with pytest.raises(DefinitionError, match="must take exactly one argument"):
            engine.schedule(wf, every=60, values=lambda: {"a": 1})  # type: ignore[misc]
        with pytest.raises(DefinitionError, match="initial values must be a mapping"):
            engine.schedule(wf, every=60, values=7)
        with pytest.raises(DefinitionError, match="is the name of step 'note'"):
            engine.schedule(wf, every=60, values={"note": 1})
        engine.schedule(wf, every=60)
        with pytest.raises(DefinitionError, match="already has a schedule 'noting'"):
            engine.schedule(wf, every=30)
        engine.schedule(wf, every=30, name="another")
    with pytest.raises(FlowcoreError, match="closed"):
        engine.schedule(wf, every=60, name="late")
    with Engine(store=MemoryStore(retention=10)) as engine, pytest.raises(DefinitionError, match="retention="):
        engine.schedule(wf, every=60)


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_a_schedule_none_of_whose_fires_could_begin_is_refused(
    kind: str, driver: str, tmp_path: Path, redis_url: str
) -> None:
    wf, _ = noting()
    with store_of(kind, tmp_path, redis_url, asynchronous=driver == "asyncio") as store:

        def refused(engine: Any) -> None:
            with pytest.raises(DefinitionError, match="name of a schedule has 1,100 characters, and the limit is 987"):
                engine.schedule(wf, every=60, name="x" * 1100)
            with pytest.raises(NotSerializable, match="'x'"):
                engine.schedule(wf, every=60, values={"x": object()})
            if kind != "memory":  # in memory, any key will do
                with pytest.raises(NotSerializable, match="the context key 1"):
                    engine.schedule(wf, every=60, values={1: 2})
            engine.schedule(wf, every=timedelta(days=36_500), name="x" * 987, values={"x": 1})

        with scheduling(driver, store, refused):
            pass


def test_a_strict_store_refuses_the_values_of_a_schedule_too() -> None:
    wf, _ = noting()
    values: Any = {1: 2}
    with Engine(store=MemoryStore(strict=True)) as engine, pytest.raises(NotSerializable, match="the context key 1"):
        engine.schedule(wf, every=60, values=values)


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_a_closed_engine_begins_no_more(driver: str) -> None:
    wf, seen = noting()
    with scheduling(driver, None, lambda engine: engine.schedule(wf, every=EVERY)):
        until(lambda: seen, "a fire")
    count = len(seen)
    time.sleep(1.2)
    assert len(seen) == count


class Slow(SQLiteStore):
    """Answers the claims of fires late."""

    claimed, may_answer = threading.Event(), threading.Event()

    def claim(self, claim: Claim, /) -> Any:
        answer = super().claim(claim)
        if claim.queued and fire_of(claim.key) is not None and not claim.key.endswith(LOG):
            self.claimed.set()
            self.may_answer.wait(20)
        return answer


def test_an_engine_that_is_closed_in_the_middle_of_a_claim_leaves_the_fire_to_others_at_once(tmp_path: Path) -> None:
    wf, seen = noting()
    store = Slow(tmp_path / "runs.db", durability="normal")

    async def main() -> None:
        async with AsyncEngine(store=store, lease=3600) as engine:
            engine.schedule(wf, every=EVERY)
            await asyncio.to_thread(store.claimed.wait, 20)
            asyncio.get_running_loop().call_later(0.05, store.may_answer.set)

    asyncio.run(main())
    assert store.claimed.is_set()
    (fire,) = [run for run in store.list_runs() if fire_of(run.key) is not None]
    assert (fire.status, seen) == ("queued", [])
    with Engine(store=SQLiteStore(tmp_path / "runs.db", durability="normal")) as engine:
        engine.schedule(wf, every=EVERY)
        until(lambda: fire_of(fire.key) in seen, "that fire")


def test_a_forgotten_engine_ends_its_thread() -> None:
    wf, _ = noting()
    engine = Engine()
    engine.schedule(wf, every=3600)
    thread = next(thread for thread in threading.enumerate() if thread.name == "flowcore-schedule")
    reference = weakref.ref(engine)
    schedules = engine._schedules
    assert schedules is not None
    ring = schedules._thread._wakeup
    del engine, schedules
    gc.collect()
    assert reference() is None
    ring.set()
    thread.join(20)
    assert not thread.is_alive()


def test_threads_that_all_hang_keep_no_fire_from_being_recorded(tmp_path: Path) -> None:
    end, wf = threading.Event(), Workflow("hanging")
    wf.add_step("hang", lambda ctx: end.wait(20))
    with closing(SQLiteStore(tmp_path / "runs.db")) as store, Engine(store=store, max_workers=1) as engine:
        engine.submit(wf)
        scheduled, seen = noting()
        engine.schedule(scheduled, every=EVERY)
        until(lambda: store.list_runs(workflow="noting"), "a recorded fire")
        end.set()
        until(lambda: seen, "its run")


def test_a_child_of_a_fork_has_schedules_of_its_own(tmp_path: Path) -> None:
    wf, seen = noting()
    with closing(SQLiteStore(tmp_path / "runs.db")) as store, Engine(store=store) as engine:
        engine.schedule(wf, every=EVERY)
        until(lambda: seen, "a fire in the parent")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                seen.clear()
                until(lambda: seen or len(store.list_runs(workflow="noting")) > 5, "fires in the child or the parent")
                thread = [one for one in threading.enumerate() if one.name == "flowcore-schedule"]
                code = 0 if thread else 2
                engine.close(0)
            finally:
                sys.stdout.flush()
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    keys = [record.key for record in store_records(tmp_path)]
    assert len(keys) == len(set(keys))


def store_records(folder: Path) -> list[RunRecord]:
    with closing(SQLiteStore(folder / "runs.db")) as store:
        return list(store.list_runs(workflow="noting", limit=None))


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_the_next_fire_cancels_the_run_in_progress(driver: str, tmp_path: Path) -> None:
    began: list[datetime | None] = []
    undone: list[datetime | None] = []
    end = threading.Event()

    def work(ctx: Context) -> None:
        began.append(ctx.scheduled_at)
        while not (ctx.cancelled or end.is_set()):
            time.sleep(0.01)

    wf = Workflow("long")
    wf.add_step("work", work, compensate=lambda ctx: undone.append(ctx.scheduled_at))
    with (
        closing(SQLiteStore(tmp_path / "runs.db")) as store,
        scheduling(driver, store, lambda engine: engine.schedule(wf, every=EVERY, overlap="cancel"), lease=3),
    ):
        until(lambda: len(began) >= 3, "the third run")
        end.set()
    assert undone[:2] == began[:2]


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_a_long_run_has_the_fires_of_its_time_left_out(driver: str, tmp_path: Path) -> None:
    events: list[Event] = []
    began: list[datetime | None] = []

    def work(ctx: Context) -> None:
        began.append(ctx.scheduled_at)
        time.sleep(2.5)

    wf = Workflow("long")
    wf.add_step("work", work)
    with (
        closing(SQLiteStore(tmp_path / "runs.db")) as store,
        scheduling(driver, store, lambda engine: engine.schedule(wf, every=EVERY), hooks=[events.append]),
    ):
        until(lambda: len(began) >= 2, "the second run")
    assert began[0] is not None
    assert began[1] is not None
    assert began[1] - began[0] >= 2 * EVERY
    assert {event.reason for event in events if isinstance(event, ScheduleMissed)} == {"overlap"}


def test_a_scheduled_run_may_wait_for_a_person_and_holds_no_thread(tmp_path: Path) -> None:
    wf, seen = Workflow("approval"), list[Any]()
    approved = wf.wait("approved")
    wf.add_step("book", lambda ctx: seen.append((ctx.scheduled_at, ctx["approved"])), depends_on=approved)
    with closing(SQLiteStore(tmp_path / "runs.db")) as store, Engine(store=store, lease=2) as engine:
        engine.schedule(wf, every=EVERY)
        until(lambda: store.list_runs(workflow=LOG, status="failure"), "a fire that is left out meanwhile")
        (waiting,) = store.list_runs(workflow="approval")
        assert waiting.status is Status.WAITING
        until(lambda: engine._pool.counts() == (0, 0), "no thread at work")
        engine.send(waiting.key, "approved", "by Ann")
        until(lambda: seen, "the end of the run")
        engine.close(0)
    assert seen == [(fire_of(waiting.key), "by Ann")]


def test_scheduled_runs_have_nothing_of_their_callers_context() -> None:
    import contextvars

    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="no caller")
    seen: list[str] = []
    wf = Workflow("noting")
    wf.add_step("note", lambda ctx: seen.append(who.get()))

    async def main() -> None:
        who.set("a request")
        async with AsyncEngine() as engine:
            engine.schedule(wf, every=EVERY)
            await asyncio.to_thread(until, lambda: seen, "a fire")

    who.set("a request")
    with Engine() as engine:
        engine.schedule(wf, every=EVERY)
        until(lambda: seen, "a fire")
    asyncio.run(main())
    assert set(seen) == {"no caller"}
