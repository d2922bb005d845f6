"""A process that may not start another thread, as in a container at its limit: errors at once, and nothing is lost or hangs."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowcore import Backoff, Context, Engine, MemoryStore, NoThread, Retry, Status, Workflow
from flowcore._engines.workers import Timers, Workers
from flowcore.stores import SQLiteStore, Store

from .conftest import PATIENCE, Gate, Ledger, Live, notes, until


class Limit:
    """What says whether flowcore's threads may start. A real limit of the system does not bind a superuser."""

    reached = False


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Limit]:
    limit, start = Limit(), threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if limit.reached and thread.name.startswith("flowcore"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    yield limit
    limit.reached = False


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "db")


def wide(ledger: Ledger) -> Workflow:
    wf = Workflow("wide")
    ledger.add(wf, "a")
    for name in "bcd":
        ledger.add(wf, name, depends_on="a")
    return wf


def all_at_once(count: int) -> Workflow:
    """A workflow whose steps end only once `count` of them run at the same time."""
    wf, meeting = Workflow("meeting"), threading.Barrier(count)
    for number in range(count):
        wf.add_step(f"step {number}", lambda _: meeting.wait(PATIENCE))
    return wf


def test_the_callers_thread_does_all_steps(store: Store, limit: Limit, ledger: Ledger) -> None:
    with Engine(store=store, max_workers=4) as engine:
        limit.reached = True
        assert engine.run(wide(ledger), idempotency_key="k").status is Status.SUCCESS
        limit.reached = False
        assert engine.run(all_at_once(4), idempotency_key="l").status is Status.SUCCESS  # no place in the pool is lost


def test_submit_raises_and_records_nothing(store: Store, limit: Limit, ledger: Ledger) -> None:
    with Engine(store=store) as engine:
        limit.reached = True
        with pytest.raises(NoThread, match=r"cannot start another thread \(can't start new thread\)\. Raise the limit"):
            engine.submit(wide(ledger), idempotency_key="k")
        assert store.find("k") is None
        limit.reached = False
        assert engine.submit(wide(ledger), idempotency_key="k").result(PATIENCE).status is Status.SUCCESS


def test_a_pool_with_some_threads_continues_with_those(
    store: Store, limit: Limit, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(store=store, max_workers=4) as engine:
        engine.submit(wide(ledger), idempotency_key="first").result(PATIENCE)
        limit.reached = True
        with caplog.at_level(logging.WARNING, "flowcore"):
            futures = [engine.submit(wide(ledger), idempotency_key=f"k{number}") for number in range(20)]
            assert {future.result(PATIENCE).status for future in futures} == {Status.SUCCESS}
        assert len([text for text in caplog.messages if "of max_workers=4 threads run" in text]) <= 1
        limit.reached = False
        assert engine.run(all_at_once(4), idempotency_key="l").status is Status.SUCCESS


def test_a_step_that_needs_a_timer_or_a_thread_fails_and_the_run_is_undone(
    store: Store, limit: Limit, ledger: Ledger
) -> None:
    wf = ledger.chain("a")
    ledger.add(wf, "b", depends_on="a", timeout=5)
    with Engine(store=store) as engine:
        limit.reached = True
        run = engine.run(wf, idempotency_key="k", check=False)
        assert (run.status, run.failed_step) == (Status.COMPENSATED, "b")
        assert isinstance(run.error, NoThread)
        assert not ledger.standing


def fails(_: Context) -> None:
    raise OSError("the gateway is away")


def test_without_a_timer_for_its_backoff_a_step_fails_with_its_own_error(
    store: Store, limit: Limit, ledger: Ledger
) -> None:
    wf = ledger.chain("a")
    wf.add_step("b", fails, depends_on="a", retry=Retry(attempts=3, backoff=Backoff.fixed(1)))
    with Engine(store=store) as engine:
        limit.reached = True
        run = engine.run(wf, idempotency_key="k", check=False)
        assert isinstance(run.error, OSError)
        assert "flowcore made no further attempt: This process cannot start another thread" in notes(run.error)
        assert not ledger.standing


def test_a_step_on_a_thread_of_an_async_engine_fails(live: Callable[..., Live], limit: Limit, ledger: Ledger) -> None:
    engine = live()
    wf = ledger.chain("a")
    limit.reached = True
    if engine.kind == "asyncio":
        run = engine.run(wf, check=False)
        assert isinstance(run.error, NoThread)
    else:
        with pytest.raises(NoThread):
            engine.start(wf)
    limit.reached = False
    assert engine.run(wf).status is Status.SUCCESS


def test_recovery_resumes_runs_once_threads_can_be_started(tmp_path: Path, limit: Limit, gate: Gate) -> None:
    store = SQLiteStore(tmp_path / "db")
    wf, ends = Workflow("long"), []
    wf.add_step("wait", gate)
    wf.add_step("end", lambda _: ends.append(1), depends_on="wait")
    first = Engine(store=store, lease=0.5)
    futures = [first.submit(wf, idempotency_key=f"k{number}") for number in range(3)]
    until(lambda: store.counts() == {("long", "running"): 3})
    first.close(timeout=0)
    limit.reached = True
    gate.set()
    second = Engine(store=store, lease=0.5, workflows=[wf])
    with pytest.raises(NoThread):
        second.recover()
    limit.reached = False
    with second:
        assert {run.status for run in second.recover()} == {Status.SUCCESS}
        until(lambda: not store.counts())
    assert len(ends) == len(futures)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pool_replaces_a_thread_that_an_error_has_ended() -> None:
    pool, done = Workers(1, "flowcore-lost"), Gate()

    def dies() -> None:
        raise SystemError("out of luck")

    pool.put(dies)
    pool.put(done.set)  # it may wait for the thread that dies
    done.wait()
    pool.close(PATIENCE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_timers_go_off_after_an_error_in_one_of_them() -> None:
    timers, done = Timers("flowcore-lost"), Gate()

    def dies() -> None:
        raise SystemError("out of luck")

    timers.after(0, dies)
    thread = timers._thread
    assert thread is not None
    until(lambda: not thread.is_alive())
    timers.after(0, done.set)
    done.wait()
    timers.close()
