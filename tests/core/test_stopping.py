"""Stopping a process is not cancelling its runs (semantics 8): durable runs are parked for another process."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    DefinitionError,
    Engine,
    IdempotencyMismatch,
    NotSerializable,
    QueueFull,
    Retry,
    RunFailed,
    RunFuture,
    RunParked,
    Status,
    StepCancelled,
    Workflow,
)
from flowcore.events import RunFinished, StepReady
from flowcore.stores import SQLiteStore

from .conftest import PATIENCE, Gate, Ledger, of_type, until


def saga(ledger: Ledger, began: Gate, goes: Gate) -> Workflow:
    """Three steps with undos; the second one waits."""
    wf = Workflow("saga")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=began.then(goes))
    ledger.add(wf, "c", depends_on="b")
    return wf


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "db")


def status(store: Any, key: str = "k") -> Status | None:
    record = store.find(key)
    return None if record is None else record.status


def test_close_with_a_timeout_parks_a_durable_run_as_soon_as_its_call_has_ended(
    store: SQLiteStore, ledger: Ledger
) -> None:
    began, goes = Gate(), Gate()
    wf, engine = saga(ledger, began, goes), Engine(store=store)
    future = engine.submit(wf, idempotency_key="k")
    began.wait()
    threading.Timer(0.1, goes.set).start()
    engine.close(timeout=PATIENCE)
    with pytest.raises(RunParked, match="its engine was closed"):
        future.result(0)
    assert (status(store), ledger) == (Status.PARKED, ["a", "b"])
    with Engine(store=store) as other:  # at once: the lease is released
        assert other.run(wf, idempotency_key="k").status is Status.SUCCESS
    assert ledger == ["a", "b", "c"]


@pytest.mark.parametrize("colour", ["threads", "asyncio"])
def test_a_step_that_a_stopping_engine_has_not_begun_is_not_in_doubt(
    store: SQLiteStore, colour: str, ledger: Ledger
) -> None:
    """Its start is recorded together with the end of the step before it."""
    wf = Workflow("saga")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", on_crash="hold")
    ledger.add(wf, "c", depends_on="a")
    stop: list[Callable[[], object]] = []

    def stops(event: Any) -> None:
        if isinstance(event, StepReady) and event.step == "b":
            stop.pop()()

    def on_threads() -> None:
        engine = Engine(store=store, hooks=[stops])
        closes = threading.Thread(target=engine.close, args=(PATIENCE,))

        def close() -> None:
            closes.start()
            until(lambda: all(run.parked for run in engine._live))

        stop.append(close)
        with pytest.raises(RunParked):
            engine.run(wf, idempotency_key="k")
        closes.join(PATIENCE)

    async def on_asyncio() -> None:
        engine = AsyncEngine(store=store, hooks=[stops])
        stop.append(lambda: engine._runs.live.hand_over("its engine was closed"))
        with pytest.raises(RunParked):
            await engine.run(wf, idempotency_key="k")
        await engine.aclose(PATIENCE)

    on_threads() if colour == "threads" else asyncio.run(on_asyncio())
    assert ledger == ["a"]
    record = store.find("k")
    assert record is not None
    assert record.steps["b"].status is Status.PENDING
    with Engine(store=store) as other:
        assert other.run(wf, idempotency_key="k").status is Status.SUCCESS
    assert sorted(ledger) == ["a", "b", "c"]


def test_close_with_a_timeout_cancels_calls_in_flight_and_attempts_them_again_elsewhere(
    store: SQLiteStore, ledger: Ledger
) -> None:
    wf, began = Workflow("w"), Gate()

    def heeds(ctx: Context) -> None:
        if not began.is_set():
            began.set()
            until(lambda: ctx.cancelled)
            raise ConnectionError("cut short")

    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=heeds)
    engine = Engine(store=store)
    future = engine.submit(wf, idempotency_key="k")
    began.wait()
    engine.close(timeout=0.01)
    with pytest.raises(RunParked):
        future.result(0)
    assert (status(store), ledger) == (Status.PARKED, ["a"])
    with Engine(store=store) as other:
        assert other.run(wf, idempotency_key="k").status is Status.SUCCESS
    assert ledger == ["a", "b"]


@pytest.mark.parametrize("on_crash", ["hold", "undo"])
def test_a_call_that_was_cut_short_is_as_unclear_as_after_a_crash(
    store: SQLiteStore, ledger: Ledger, on_crash: Any
) -> None:
    wf, began, never = Workflow("w"), Gate(), Gate()
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", first=began.then(never), on_crash=on_crash)
    engine = Engine(store=store, grace=0.01)
    engine.submit(wf, idempotency_key="k")
    began.wait()
    engine.close(timeout=0)
    with Engine(store=store) as other:
        run = other.run(wf, idempotency_key="k", check=False)
    never.set()
    assert run.held is (on_crash == "hold")
    assert ("-a" in ledger) is (on_crash == "undo")


def test_close_parks_a_run_that_is_being_undone_and_the_next_owner_undoes_the_rest(
    store: SQLiteStore, ledger: Ledger
) -> None:
    wf, began, goes = Workflow("w"), Gate(), Gate()

    def undo(ctx: Context) -> None:
        began.set()
        goes.wait(PATIENCE)
        ledger.append("-b")

    ledger.add(wf, "a")
    wf.add_step("b", lambda ctx: ledger.append("b"), depends_on="a", compensate=undo)
    ledger.add(wf, "c", depends_on="b", raises=ValueError("c"))
    engine = Engine(store=store)
    engine.submit(wf, idempotency_key="k")
    began.wait()
    threading.Timer(0.05, goes.set).start()
    engine.close(timeout=0)
    assert status(store) is Status.PARKED
    with Engine(store=store) as other:
        assert other.run(wf, idempotency_key="k", check=False).status is Status.COMPENSATED
    assert ledger == ["a", "b", "c", "-b", "-a"]


def stubborn(ledger: Ledger, failed: threading.Event, delay: float, attempts: int = 2) -> Workflow:
    """Its second step fails. The undo of the first one fails `attempts` times; its attempts are `delay` seconds apart."""
    wf = Workflow("stubborn")

    def fails(ctx: Context) -> None:
        raise ValueError("no")

    def undo(ctx: Context) -> None:
        ledger.append(f"-a {ctx.attempt}")
        if ledger.count("-a 1") == 1 and ctx.attempt <= attempts:
            failed.set()
            raise ConnectionError("away")

    wf.add_step("a", lambda ctx: "a").compensate(retry=Retry(3, Backoff.fixed(delay)))(undo)
    wf.add_step("b", fails, depends_on="a")
    return wf


@pytest.mark.parametrize("colour", ["threads", "asyncio"])
def test_closing_parks_a_run_at_once_that_waits_for_the_next_attempt_of_an_undo(
    store: SQLiteStore, ledger: Ledger, colour: str
) -> None:
    failed = threading.Event()
    wf = stubborn(ledger, failed, 2 * PATIENCE)

    def on_threads() -> None:
        engine = Engine(store=store)
        future = engine.submit(wf, idempotency_key="k")
        assert failed.wait(PATIENCE)
        engine.close(timeout=PATIENCE)
        with pytest.raises(RunParked, match="its engine was closed"):
            future.result(0)

    async def on_asyncio() -> None:
        engine = AsyncEngine(store=store)
        future = engine.submit(wf, idempotency_key="k")
        assert await asyncio.to_thread(failed.wait, PATIENCE)
        await engine.aclose(timeout=PATIENCE)
        with pytest.raises(RunParked, match="its engine was closed"):
            await asyncio.wait_for(future, 0.1)

    began = time.monotonic()
    on_threads() if colour == "threads" else asyncio.run(on_asyncio())
    assert time.monotonic() - began < PATIENCE
    assert (status(store), ledger) == (Status.PARKED, ["-a 1"])
    with Engine(store=store) as other:
        assert other.run(wf, idempotency_key="k", check=False).status is Status.COMPENSATED
    assert ledger == ["-a 1", "-a 1"]


def test_a_run_in_memory_whose_undo_lasts_longer_than_its_engine_ends_for_its_caller(ledger: Ledger) -> None:
    failed = threading.Event()
    engine = Engine(grace=0.01)
    future = engine.submit(stubborn(ledger, failed, 1.0, attempts=1), check=False)
    assert failed.wait(PATIENCE)
    engine.close(timeout=0)
    assert not future.done()  # the undo's next attempt is due in a moment
    assert future.result(PATIENCE).status is Status.COMPENSATED
    assert ledger == ["-a 1", "-a 2"]


def test_close_with_a_timeout_returns_in_time_whatever_hangs(ledger: Ledger) -> None:
    wf, never, began = Workflow("w"), Gate(), Gate()
    wf.add_step("hangs", began.then(never))
    engine = Engine(max_workers=1, grace=0.05)
    hung, queued = engine.submit(wf), engine.submit(ledger.chain("a"))
    began.wait()
    at = time.monotonic()
    engine.close(timeout=0.05)
    assert time.monotonic() - at < PATIENCE
    with pytest.raises(StepCancelled):
        hung.result(PATIENCE)
    with pytest.raises(CancelledError):
        queued.result(0)
    assert not ledger
    never.set()


@pytest.mark.parametrize("limit", [None, math.inf], ids=["no limit", "infinite"])
def test_close_without_a_limit_works_off_what_was_accepted(limit: float | None, ledger: Ledger) -> None:
    engine = Engine(max_workers=1)
    futures = [engine.submit(ledger.chain("a")) for _ in range(5)]
    engine.close(timeout=limit)
    assert [future.result(0).status for future in futures] == [Status.SUCCESS] * 5


@pytest.mark.parametrize("wait", [RunFuture.result, RunFuture.exception, RunFuture.waiting])
def test_a_future_can_be_waited_for_without_a_limit(wait: Callable[[RunFuture, float], Any]) -> None:
    began, goes, wf = Gate(), Gate(), Workflow("w")
    wf.add_step("a", began.then(goes))
    with Engine() as engine:
        future = engine.submit(wf)
        began.wait()
        threading.Timer(0.01, goes.set).start()
        wait(future, math.inf)
        assert future.done()


@pytest.mark.parametrize("wait", [RunFuture.result, RunFuture.exception, RunFuture.waiting])
def test_a_future_takes_its_timeout_as_any_duration_and_refuses_others(wait: Callable[[RunFuture, Any], Any]) -> None:
    goes, wf = Gate(), Workflow("w")
    wf.add_step("a", goes)
    with Engine() as engine:
        future = engine.submit(wf)
        for short in (0, -1, 0.01, timedelta(milliseconds=1), timedelta(seconds=-1)):
            with pytest.raises(TimeoutError):
                wait(future, short)
        goes.set()
        wait(future, timedelta(seconds=PATIENCE))
        for wrong in (math.nan, "5", True):
            with pytest.raises(DefinitionError, match="timeout of a RunFuture must be seconds"):
                wait(future, wrong)


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError])
def test_leaving_the_with_block_by_an_exception_drops_what_has_not_begun(
    store: SQLiteStore, ledger: Ledger, kind: type[BaseException], durable: bool
) -> None:
    began, goes, wf = Gate(), Gate(), Workflow("w")
    ledger.add(wf, "a", first=began.then(goes))
    futures: list[Any] = []

    def leave() -> None:
        with Engine(store=store if durable else None, max_workers=1, grace=PATIENCE) as engine:
            futures.extend(engine.submit(wf, idempotency_key=str(number)) for number in range(5))
            began.wait()
            threading.Timer(0.05, goes.set).start()
            raise kind

    with pytest.raises(kind):
        leave()
    assert all(future.done() for future in futures)
    assert ledger.count("a") == 1
    stops = kind is not ValueError
    assert ledger.count("-a") == (stops and not durable)
    for future in futures[1:]:
        with pytest.raises(RunParked if durable else CancelledError):
            future.result(0)
    if durable:
        assert status(store, "0") is (Status.PARKED if stops else Status.SUCCESS)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
def test_a_step_that_exits_parks_a_durable_run_and_cancels_one_in_memory(
    store: SQLiteStore, ledger: Ledger, kind: type[BaseException], durable: bool
) -> None:
    wf = Workflow("w")
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", raises=kind())
    engine = Engine(store=store if durable else None)
    with pytest.raises(kind):
        engine.run(wf, idempotency_key="k")
    assert ledger == (["a", "b"] if durable else ["a", "b", "-b", "-a"])
    if durable:
        assert status(store) is Status.PARKED


def test_a_run_whose_process_exits_because_of_an_error_is_left_and_resumes_at_once(store: SQLiteStore) -> None:
    """A run that is parked because of an error counts as such, and waits longer each time; this one does neither."""
    wf, events = Workflow("w"), list[object]()

    def exits(_: Context) -> None:
        try:
            raise ConnectionError("the broker has closed the connection")
        except ConnectionError as error:
            raise SystemExit(1) from error

    wf.add_step("a", exits, on_crash="retry")
    with Engine(store=store, hooks=[events.append]) as engine:
        with pytest.raises(SystemExit):
            engine.run(wf, idempotency_key="k")
        record = store.find("k")
    assert [(end.outcome, end.left) for end in of_type(events, RunFinished)] == [(Status.PARKED, True)]
    assert record is not None
    assert (record.status, record.retries, record.not_before) == (Status.PARKED, 0, None)


@pytest.mark.parametrize("how", ["close", "the with block"])
def test_close_does_not_wait_for_a_store_that_does_not_release_queued_runs(
    store: SQLiteStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    began, goes, stuck, wf = Gate(), Gate(), Gate(), Workflow("w")
    wf.add_step("a", began.then(goes))

    def leave() -> None:
        engine = Engine(store=store, max_workers=1, grace=0.05)
        engine.submit(wf, idempotency_key="first")
        queued.append(engine.submit(ledger.chain("b"), idempotency_key="second"))
        began.wait()
        monkeypatch.setattr(store, "renew", lambda leases, lease: stuck.wait())
        if how == "close":
            engine.close(timeout=0)
        else:
            with engine:
                raise SystemExit

    queued: list[Any] = []
    with suppress(SystemExit):
        leave()
    assert not stuck.is_set()
    stuck.set()
    goes.set()
    with pytest.raises(RunParked, match="has not begun"):
        queued[0].result(0)
    assert not ledger


# -- handles -----------------------------------------------------------------------------------------------------------


def test_a_run_future_knows_its_run_and_key_and_cancels_it(ledger: Ledger) -> None:
    began, wf = Gate(), Workflow("w")

    def heeds(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=heeds)
    with Engine(max_workers=1) as engine:
        first = engine.submit(wf, idempotency_key="k")
        second = engine.submit(wf)
        began.wait()
        assert (first.key, second.key) == ("k", None)
        assert second.cancel_run()  # it has not begun
        assert second.cancelled()
        assert first.cancel_run()
        with pytest.raises(StepCancelled, match=f"run {first.run_id} was cancelled by cancel_run"):
            first.result(PATIENCE)
        assert not first.cancel_run()
    assert ledger == ["a", "slow", "-slow", "-a"]


def test_a_run_that_ends_before_its_owner_learns_that_an_operator_cancels_it_is_not_cancelled(
    store: SQLiteStore, ledger: Ledger
) -> None:
    began, goes = Gate(), Gate()
    wf = Workflow("w")
    ledger.add(wf, "a", first=began.then(goes))
    with Engine(store=store, lease=PATIENCE * 3) as engine:
        future = engine.submit(wf, idempotency_key="k")
        began.wait()
        store.cancel("k")
        goes.set()
        assert future.result(PATIENCE).status == status(store) == "success"
    assert ledger == ["a"]


def test_cancelling_by_key_cancels_the_run_and_not_a_caller_that_waits_for_it(
    store: SQLiteStore, ledger: Ledger
) -> None:
    began, wf, errors = Gate(), Workflow("w"), list[RunFailed]()

    def heeds(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    def waits(engine: Engine) -> None:
        try:
            engine.run(wf, idempotency_key="k", wait=PATIENCE)
        except RunFailed as error:
            errors.append(error)

    ledger.add(wf, "slow", first=heeds)
    with Engine(store=store, lease=0.5) as owner, Engine(store=store) as other:
        future = owner.submit(wf, idempotency_key="k")
        began.wait()
        waiting = threading.Thread(target=waits, args=(other,))
        waiting.start()
        until(lambda: any(run.attached for run in list(other._live)))
        assert other.cancel(key="k")
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
        waiting.join(PATIENCE)
    assert len(errors) == 1
    assert ledger == ["slow", "-slow"]


def test_a_step_may_wait_for_runs_that_it_has_submitted_on_any_number_of_threads(ledger: Ledger) -> None:
    child, parent, grandparent = Workflow("child"), Workflow("parent"), Workflow("grandparent")
    child.add_step("work", lambda ctx: ctx["n"], timeout=60, retry=2)
    engine = Engine(max_workers=2)

    def fan_out(ctx: Context) -> int:
        futures = [engine.submit(child, {"n": number}) for number in range(4)]
        return sum(future.result()["work"] for future in reversed(futures))

    parent.add_step("fan_out", fan_out)
    grandparent.add_step("both", lambda ctx: [f.result()["fan_out"] for f in [engine.submit(parent)] * 2])
    futures = [engine.submit(wf) for wf in (parent, grandparent, parent, grandparent)]
    assert [future.result(PATIENCE).status for future in futures] == [Status.SUCCESS] * 4
    assert futures[1].result()["both"] == [6, 6]
    engine.close()


def test_a_step_may_wait_for_a_run_that_backs_off_while_all_threads_wait(ledger: Ledger) -> None:
    child, parent = Workflow("child"), Workflow("parent")

    def flaky(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ConnectionError
        return 1

    child.add_step("flaky", flaky, retry=2)
    with Engine(max_workers=2) as engine:
        parent.add_step("wait", lambda ctx: engine.submit(child).exception())
        futures = [engine.submit(parent) for _ in range(6)]
        assert [future.result(PATIENCE)["wait"] for future in futures] == [None] * 6


def test_submitting_more_than_max_queued_is_refused() -> None:
    began, goes, wf = Gate(), Gate(), Workflow("w")
    wf.add_step("a", began.then(goes))
    with Engine(max_workers=1, max_queued=2) as engine:
        first = engine.submit(wf)
        began.wait()
        others = [engine.submit(wf) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 submitted runs have not begun"):
            engine.submit(wf)
        goes.set()
        assert [future.result(PATIENCE).status for future in (first, *others)] == [Status.SUCCESS] * 3
        assert engine.submit(wf).result(PATIENCE).status is Status.SUCCESS
    with pytest.raises(DefinitionError, match="max_queued="):
        Engine(max_queued=0)


# -- durable queues ----------------------------------------------------------------------------------------------------


def test_a_submitted_run_is_recorded_before_submit_returns_and_left_to_others_when_the_engine_is_closed(
    store: SQLiteStore, ledger: Ledger
) -> None:
    began, goes, wf = Gate(), Gate(), Workflow("w")
    wf.add_step("a", began.then(goes))
    later = ledger.chain("b")
    engine = Engine(store=store, max_workers=1, lease=60)
    engine.submit(wf, idempotency_key="first")
    queued = engine.submit(later, {"n": 1}, idempotency_key="second")
    unkeyed = engine.submit(later)
    assert status(store, "second") is Status.QUEUED
    assert status(store, unkeyed.run_id) is Status.QUEUED
    began.wait()
    threading.Timer(0.05, goes.set).start()
    engine.close(timeout=PATIENCE)
    with pytest.raises(RunParked, match="has not begun: its engine was closed"):
        queued.result(0)
    with Engine(store=store, workflows=[wf, later], lease=60) as other:  # it does not wait for the lease
        until(lambda: len(other.recover()) >= 0 and status(store, unkeyed.run_id) is Status.SUCCESS)
        assert other.run(later, {"n": 1}, idempotency_key="second").replayed
    assert ledger == ["b", "b"]


def test_a_queued_run_that_is_cancelled_releases_its_key(store: SQLiteStore, ledger: Ledger) -> None:
    began, goes, wf = Gate(), Gate(), Workflow("w")
    wf.add_step("a", began.then(goes))
    with Engine(store=store, max_workers=1) as engine:
        engine.submit(wf)
        began.wait()
        future = engine.submit(ledger.chain("b"), idempotency_key="k")
        assert future.cancel()
        assert status(store) in {None, Status.FAILURE}
        assert not store.list_resumable(["chain"])
        goes.set()
    assert not ledger


def test_submit_raises_where_the_run_cannot_be_recorded(store: SQLiteStore, ledger: Ledger) -> None:
    with Engine(store=store) as engine:
        with pytest.raises(NotSerializable):
            engine.submit(ledger.chain("a"), {"value": object()})
        assert not engine._live


def test_submitting_a_key_that_is_taken_resolves_as_run_does(store: SQLiteStore, ledger: Ledger) -> None:
    wf = ledger.chain("a")
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k")
        assert engine.submit(wf, idempotency_key="k").result(PATIENCE).replayed
        with pytest.raises(IdempotencyMismatch):
            engine.submit(wf, {"other": 1}, idempotency_key="k").result(PATIENCE)
    assert ledger == ["a"]


def test_an_engine_finds_records_and_cancels_runs_of_other_engines(store: SQLiteStore, ledger: Ledger) -> None:
    began, wf = Gate(), Workflow("w")

    def heeds(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    ledger.add(wf, "a")
    ledger.add(wf, "slow", depends_on="a", first=heeds)
    with Engine(store=store, lease=0.5) as owner, Engine(store=store) as other:
        future = owner.submit(wf, idempotency_key="k")
        began.wait()
        record = other.find("k")
        assert record is not None
        assert other.get(record.run_id).key == "k"
        assert [one.key for one in other.list(status="running", workflow="w")] == ["k"]
        assert other.list(status="running", workflow="another") == []
        assert not other.cancel(key="unknown")
        assert not other.cancel("unknown")
        assert other.cancel(key="k")
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
        assert not other.cancel(key="k")
    assert ledger == ["a", "slow", "-slow", "-a"]
