"""Runs on durable stores that wait: their store has them, and no process; any engine that recovers the workflow resumes them."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    DefinitionError,
    Engine,
    IdempotencyInProgress,
    LeaseLost,
    NotSerializable,
    RunParked,
    RunTimeout,
    SendRefused,
    Status,
    StepCancelled,
    StepTimeout,
    StoreUnavailable,
    Workflow,
)
from flowcore._durable import dormant, waiting
from flowcore._durable.ledger import Ledger
from flowcore.events import Event, RunFinished, RunRecovered, RunStarted
from flowcore.retry import CENTURY
from flowcore.run import StepReport
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Checkpoint, Claim, RunRecord, StepRecord
from flowcore.stores.codec import JsonCodec
from tests.core.conftest import PATIENCE
from tests.stores.redis_servers import until

from .towns import Town

Effects = list[str]
ENDLESS = 600.0
POLL = 4.0


def order(effects: Effects, **options: Any) -> Workflow:
    """quote, then approved, then ship."""
    wf = Workflow("order")

    @wf.step
    def quote(ctx: Context) -> int:
        effects.append("quote")
        return 41

    @quote.compensate
    def unquote(ctx: Context) -> None:
        effects.append("-quote")

    approved = wf.wait("approved", depends_on=quote, **options)

    @wf.step(depends_on=approved)
    def ship(ctx: Context) -> Any:
        effects.append("ship")
        return [ctx[quote], ctx[approved]]

    return wf


# -- waiting in the store ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind_of_wait", ["wait", "sleep"])
def test_a_wait_without_end_is_one_of_a_century_and_its_record_can_be_read(town: Town, kind_of_wait: str) -> None:
    wf, length = Workflow("long"), sys.maxsize
    if kind_of_wait == "wait":
        wf.wait("rest", timeout=length)
    else:
        wf.sleep("rest", length)
    town.pause(town.engine(), wf)
    record = town.store.find("k")
    assert record.not_before == pytest.approx(time.time() + CENTURY, abs=60)
    assert record.steps["rest"].until == pytest.approx(time.time() + CENTURY, abs=60)
    assert "rest" in record.explain()


def test_a_run_that_only_waits_is_left_to_its_store(town: Town) -> None:
    effects = Effects()
    engine = town.engine()
    run = town.pause(engine, order(effects, timeout=timedelta(days=3)))
    record = town.store.find("k")
    assert (record.status, record.waiting_for, record.expires) == ("waiting", ("approved",), None)
    assert record.not_before == pytest.approx(time.time() + 3 * 86400, abs=60)
    assert record.run_id == run.id
    assert "waits for 'approved'" in record.explain()
    assert town.store.counts() == {("order", "waiting"): 1}
    assert effects == ["quote"]
    assert not town.store.list_resumable(["order"])


def test_an_engine_that_recovers_resumes_it_when_the_value_is_there(town: Town) -> None:
    effects, events = Effects(), list[Event]()
    wf = order(effects)
    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    town.engine(workflows=[wf], recover_every=0.05, hooks=[events.append])
    assert town.store.send("k", "approved", "yes", id="1")
    until(lambda: town.status() == "success", "the run's end")
    record = town.store.find("k")
    assert record.results["ship"] == [41, "yes"]
    assert record.takeovers == 0
    assert record.sent["approved"].value == "yes"
    assert effects == ["quote", "ship"]
    assert not [event for event in events if isinstance(event, RunRecovered)]  # nothing has crashed
    ends = until(lambda: [event.outcome for event in events if isinstance(event, RunFinished)], "hooks to hear of it")
    assert ends == ["success"]
    assert town.store.send("k", "approved", "yes", id="1")
    assert not town.store.send("k", "approved", "no")


@pytest.mark.parametrize("wrong", [7, True, 1.5, ["a"], {"a": 1}, b"a", UUID(int=1), Decimal(1)])
def test_an_id_that_is_no_text_is_refused_and_the_run_still_waits(town: Town, wrong: Any) -> None:
    engine = town.engine()
    town.pause(engine, order([]))
    for send in (engine.send, town.store.send):
        with pytest.raises(DefinitionError, match="The id= of a value that is sent must be a string or None, not"):
            town.call(send("k", "approved", 1, id=wrong))
        with pytest.raises(DefinitionError, match="A value is sent to the name of a wait, or to its Step, not to"):
            town.call(send("k", wrong, 1))
    assert town.store.find("k").sent == {}


def test_a_value_is_sent_to_the_step_of_a_wait_too(town: Town) -> None:
    wf = Workflow("two")
    first, second = wf.wait("first"), wf.wait("second")
    engine = town.engine()
    town.pause(engine, wf)
    assert town.call(engine.send("k", first, 1))
    assert town.store.send("k", second, 2, id="one")
    assert town.call(engine.run(wf, idempotency_key="k", wait=PATIENCE)).results == {"first": 1, "second": 2}


def test_the_engine_that_sends_the_value_resumes_the_run_at_once(town: Town) -> None:
    effects = Effects()
    wf = order(effects)
    town.pause(town.engine(), wf)
    other = town.engine(workflows=[wf])  # which looks for runs when it is told to
    assert town.call(other.send("k", "approved", 1))
    until(lambda: town.status() == "success", "the run's end")


def test_a_caller_waits_in_its_process_for_the_end(town: Town) -> None:
    effects = Effects()
    wf = order(effects)
    engine = town.engine()
    future = town.start(engine, wf, idempotency_key="k")
    until(lambda: town.status() == "waiting", "the run to wait")
    assert town.store.send("k", "approved", "from elsewhere")
    assert future.result(PATIENCE)["ship"] == [41, "from elsewhere"]
    assert effects == ["quote", "ship"]


def test_its_own_engine_wakes_the_caller_at_once(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dormant, "_POLL", Backoff.fixed(POLL))
    wf, engine, took = order(Effects()), town.engine(), list[float]()
    for number in range(3):
        future = town.start(engine, wf)
        until(lambda: town.store.counts().get(("order", "waiting")), "the run to wait")
        (head,) = town.store.list_runs(status="waiting")
        time.sleep(0.02)  # until its caller sleeps
        began = time.monotonic()
        assert town.call(engine.send(head.run_id, "approved", number))
        run = future.result(PATIENCE)
        took.append(time.monotonic() - began)
        assert run.id == head.run_id
        assert not run.replayed
        assert run["ship"] == [41, number]
    assert min(took) < POLL / 2, took  # a value that comes just before its caller sleeps is found by the next poll


def until_set(go: threading.Event) -> Callable[[Context], bool]:
    return lambda ctx: go.wait(PATIENCE)


def test_a_run_that_ends_wakes_the_callers_that_wait_for_it_at_once(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_WOKEN", Backoff.fixed(POLL))
    monkeypatch.setattr(waiting, "_POLL", Backoff.fixed(POLL))
    engine, took = town.engine(), list[float]()
    for number in range(3):
        wf, go = Workflow(f"w{number}"), threading.Event()
        wf.add_step("work", until_set(go))
        first = town.start(engine, wf, idempotency_key=wf.name)
        until(partial(engine._runs.local.find, wf.name), "the run")
        others = [town.start(engine, wf, idempotency_key=wf.name, wait=ENDLESS) for _ in range(3)]
        until(lambda: sum(map(len, list(engine._runs.local._waiters.values()))) == 3, "the callers to wait")
        time.sleep(0.02)  # until they sleep
        began = time.monotonic()
        go.set()
        assert {future.result(PATIENCE).id for future in (first, *others)} == {first.result().id}
        took.append(time.monotonic() - began)
    assert min(took) < POLL / 2, took


def test_a_caller_gets_the_outcome_of_another_process_that_has_resumed_its_run(town: Town) -> None:
    wf = order(Effects())
    future = town.start(town.engine(), wf, idempotency_key="k")
    until(lambda: town.status() == "waiting", "the run to wait")
    other = town.engine(workflows=[wf])
    assert town.call(other.send("k", "approved", 1))
    assert future.result(PATIENCE)["ship"] == [41, 1]


def test_a_caller_with_the_key_learns_what_the_run_waits_for_or_waits_too(town: Town) -> None:
    effects = Effects()
    wf = order(effects)
    town.pause(town.engine(), wf)
    other = town.engine()
    with pytest.raises(IdempotencyInProgress, match="waits for a value for 'approved'") as caught:
        town.call(other.run(wf, idempotency_key="k"))
    assert caught.value.waiting_for == ("approved",)
    with pytest.raises(IdempotencyInProgress):
        town.call(other.run(wf, idempotency_key="k", wait=0.05))
    future = town.start(other, wf, idempotency_key="k", wait=PATIENCE)
    town.store.send("k", "approved", 1)
    assert future.result(PATIENCE)["ship"] == [41, 1]
    assert effects == ["quote", "ship"]


def test_a_run_in_memory_answers_its_key_with_what_it_waits_for() -> None:
    wf = order(Effects())
    with Engine() as engine:
        future = engine.submit(wf, idempotency_key="k")
        assert future.waiting(PATIENCE).status == "waiting"
        with pytest.raises(IdempotencyInProgress) as caught:
            engine.run(wf, idempotency_key="k")
        assert caught.value.waiting_for == ("approved",)
        engine.send("k", "approved", 1)
        assert future.waiting(PATIENCE).status == "success"


def test_a_future_gives_the_run_as_it_waits_and_its_end(town: Town) -> None:
    wf = order(Effects())
    wf.wait("again", depends_on="ship")
    engine = town.engine()

    async def waits() -> None:
        future = engine.submit(wf, idempotency_key="k")
        for name in ("approved", "again"):
            run = await future.waiting()
            assert run.status == "waiting"
            assert run.steps[name].status == "waiting"
            assert await engine.send("k", name, 1)
            while (await future.waiting()).steps[name].status == "waiting":  # noqa: ASYNC110 - until the engine has heard
                await asyncio.sleep(0.001)
        assert (await future).status == (await future.waiting()).status == "success"

    if town.driver == "asyncio":
        town.call(waits())
        return
    future = engine.submit(wf, idempotency_key="k")
    for name in ("approved", "again"):
        run = future.waiting(PATIENCE)
        assert run.steps[name].status == "waiting"
        assert engine.send("k", name, 1)
        while future.waiting(PATIENCE).steps[name].status == "waiting":
            time.sleep(0.001)
    assert future.result(PATIENCE).status == future.waiting().status == "success"


@pytest.mark.parametrize("driver", ["threads", "asyncio"])
def test_until_waiting_in_memory_leaves_the_run_to_its_engine(driver: str) -> None:
    wf = order(Effects())

    async def main() -> None:
        async with AsyncEngine() as engine:
            run = await engine.run(wf, idempotency_key="k", until="waiting")
            assert (run.status, run["quote"]) == ("waiting", 41)
            assert await engine.send("k", "approved", 1)
            assert (await engine.run(wf, idempotency_key="k", wait=PATIENCE)).status == "success"

    if driver == "asyncio":
        asyncio.run(main())
        return
    with Engine() as engine:
        run = engine.run(wf, idempotency_key="k", until="waiting")
        assert (run.status, run["quote"]) == ("waiting", 41)
        assert engine.send("k", "approved", 1)
        assert engine.run(wf, idempotency_key="k", wait=PATIENCE).status == "success"


def test_a_value_that_comes_before_its_wait_is_kept(town: Town) -> None:
    wf = Workflow("webhook")

    @wf.step
    def charge(ctx: Context) -> None:
        assert town.store.send("k", "paid", "webhook")  # before the call has returned

    wf.wait("paid", depends_on=charge, timeout=60)
    run = town.call(town.engine().run(wf, idempotency_key="k"))
    assert run["paid"] == "webhook"


def test_a_value_reaches_an_owner_that_is_busy_with_its_next_renewal(town: Town) -> None:
    wf, go, after = Workflow("busy"), threading.Event(), threading.Event()
    wf.add_step("long", lambda ctx: go.wait(PATIENCE))
    wf.wait("value")
    wf.add_step("after", lambda ctx: after.set(), depends_on="value")
    future = town.start(town.engine(lease=0.5), wf, idempotency_key="k")
    until(lambda: (record := town.store.find("k")) and "value" in record.steps, "the wait")
    assert town.store.send("k", "value", 1)
    assert after.wait(PATIENCE)
    go.set()
    assert future.result(PATIENCE).status == "success"


def test_a_run_gets_the_value_that_counts_if_another_one_is_sent_with_the_same_id(town: Town) -> None:
    wf, go = Workflow("busy"), threading.Event()
    wf.add_step("long", lambda ctx: go.wait(PATIENCE))
    wf.wait("value")
    engine = town.engine()  # its next renewal, which would fetch the value, is ten seconds away
    future = town.start(engine, wf, idempotency_key="k")
    until(lambda: (record := town.store.find("k")) and "value" in record.steps, "the wait")
    assert town.store.send("k", "value", "first", id="one")
    assert town.call(engine.send("k", "value", "second", id="one"))
    until(lambda: town.store.find("k").steps["value"].status == Status.SUCCESS, "the end of the wait")
    go.set()
    assert future.result(PATIENCE)["value"] == "first"
    assert town.store.find("k").results["value"] == "first"


def test_a_value_that_cannot_be_stored_is_refused_and_a_large_one_too(town: Town) -> None:
    from flowcore import NotSerializable

    wf = order(Effects())
    engine = town.engine()
    town.pause(engine, wf)
    for value in (object(), "x" * 2_000_000):
        with pytest.raises(NotSerializable, match="'approved'"):
            town.call(engine.send("k", "approved", value))
    assert town.call(engine.send("k", "approved", (1, {"at": timedelta(1)})))
    assert town.call(engine.run(wf, idempotency_key="k", wait=PATIENCE))["ship"] == [41, (1, {"at": timedelta(1)})]


class Hiding:
    """A codec that hides what it is given, and knows where that is kept."""

    def dumps(self, value: Any, annotation: Any, place: Any) -> str:
        return JsonCodec().dumps([place.field, value], Any)[::-1]

    def loads(self, text: str, annotation: Any, place: Any) -> Any:
        field, value = JsonCodec().loads(text[::-1], Any)
        assert field == place.field
        return value


def test_a_codec_that_hides_hides_what_was_sent(tmp_path: Path) -> None:
    wf, path = order(Effects()), tmp_path / "runs.db"
    store = SQLiteStore(path, durability="normal", codec=Hiding())
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k", until="waiting")
        assert store.send("k", "approved", "secret-value", id="secret-id", carrier={"traceparent": "secret-trace"})
        assert store.send("k", "approved", "secret-value", id="secret-id")
        assert not store.send("k", "approved", "other", id="other-id")
        record = store.find("k")
        assert record is not None
        sent = record.sent["approved"]
        assert (sent.value, sent.id, sent.carrier) == ("secret-value", "secret-id", {"traceparent": "secret-trace"})
        kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert not [text for text in (b"secret-value", b"secret-id", b"secret-trace") if text in kept]
        assert engine.run(wf, idempotency_key="k")["ship"] == [41, "secret-value"]
        store.erase("k")
        erased = store.find("k")
        assert erased is not None
        assert not erased.sent
    store.close()


# -- the end of the time -----------------------------------------------------------------------------------------------


def test_a_wait_whose_time_is_over_fails_the_run_in_whichever_process_resumes_it(town: Town) -> None:
    effects = Effects()
    wf = order(effects, timeout=0.1)
    town.pause(town.engine(), wf)
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "compensated", "the undo")
    assert effects == ["quote", "-quote"]
    with pytest.raises(SendRefused, match="has ended"):
        town.store.send("k", "approved", 1)


def test_a_caller_gets_the_timeout_of_its_wait(town: Town) -> None:
    effects = Effects()
    with pytest.raises(StepTimeout, match="'approved'"):
        town.call(town.engine().run(order(effects, timeout=0.1), idempotency_key="k"))
    assert effects == ["quote", "-quote"]


def test_a_default_and_a_sleep_hold_over_processes(town: Town) -> None:
    wf = order(Effects(), timeout=0.1, default="nobody")
    wf.sleep("nap", 0.1, depends_on="ship")
    wf.add_step("end", lambda ctx: ctx["nap"], depends_on="nap")
    town.pause(town.engine(), wf)
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "success", "the end")
    assert town.store.find("k").results["ship"] == [41, "nobody"]


def test_the_duration_of_a_run_counts_from_its_begin_whichever_process_resumes_it(town: Town) -> None:
    events, wf = list[Event](), order(Effects(), timeout=0.2, default="nobody")
    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    town.engine(workflows=[wf], recover_every=0.05, hooks=[events.append])
    finished = until(lambda: [event for event in events if isinstance(event, RunFinished)], "the end")[0]
    assert finished.outcome == "success"
    assert 0.2 <= finished.duration < PATIENCE


def test_the_duration_of_a_run_does_not_count_how_long_it_was_queued(tmp_path: Path) -> None:
    events, goes_on, wf = list[Event](), threading.Event(), Workflow("long")
    wf.add_step("first", lambda ctx: None)
    wf.sleep("nap", 0.05, depends_on="first")
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store, max_workers=1, hooks=[events.append]) as engine:
        blocking = Workflow("blocking")
        blocking.add_step("block", lambda ctx: goes_on.wait(PATIENCE))
        ahead = engine.submit(blocking)
        future = engine.submit(wf, idempotency_key="k")
        submitted = time.monotonic()
        until(lambda: time.monotonic() > submitted + 0.1, "a time in the queue")
        goes_on.set()
        assert ahead.result(PATIENCE).status == future.result(PATIENCE).status == "success"
    mine = [event for event in events if event.run_id == future.run_id]
    started, resumed = [event for event in mine if isinstance(event, RunStarted)]
    waits, ended = [event for event in mine if isinstance(event, RunFinished)]
    assert resumed.after_wait
    assert waits.duration == pytest.approx(waits.at - started.at)
    began = ended.at - ended.duration
    assert started.at - 0.02 < began < waits.at


def test_the_time_of_a_wait_counts_from_its_begin_whichever_process_resumes_the_run(town: Town) -> None:
    wf = order(Effects(), timeout=1000)
    wf.wait("other", depends_on="quote")
    town.pause(town.engine(), wf)
    before = town.store.find("k").steps["approved"].until
    town.engine(workflows=[wf], recover_every=0.05)
    town.store.send("k", "other", 1)
    until(lambda: town.store.head("k").waiting_for == ("approved",), "the other wait's end")
    record = town.store.find("k")
    assert record.steps["approved"].until == before
    assert record.not_before == pytest.approx(before, abs=30)


def test_a_deadline_ends_a_run_that_waits_in_its_store(town: Town) -> None:
    effects = Effects()
    wf = order(effects)
    town.pause(town.engine(), wf, deadline=0.5)
    recovering = town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "compensated", "the deadline")
    assert town.store.find("k").error.error_type == "RunTimeout"
    town.close(recovering)  # which would be the one to end the next run too
    with pytest.raises(RunTimeout):
        town.call(town.engine().run(wf, idempotency_key="k2", deadline=0.3))


# -- cancelling, undoing, stopping -------------------------------------------------------------------------------------


def test_cancelling_a_run_that_waits_undoes_it_in_the_process_of_its_caller(town: Town) -> None:
    effects = Effects()
    engine = town.engine()
    future = town.start(engine, order(effects), idempotency_key="k")
    until(lambda: town.status() == "waiting", "the run to wait")
    until(lambda: any(run.dormant for run in list(engine._live)), "its caller to wait")
    assert engine.cancel(key="k")
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert town.status() == "compensated"
    assert effects == ["quote", "-quote"]


def test_cancelling_the_task_that_awaits_a_run_that_waits_undoes_it(tmp_path: Path) -> None:
    effects, store = Effects(), SQLiteStore(tmp_path / "runs.db", durability="normal")

    async def main() -> None:
        async with AsyncEngine(store=store) as engine:
            task = asyncio.create_task(engine.run(order(effects), idempotency_key="k"))
            while (record := store.head("k")) is None or record.status != "waiting":  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert effects == ["quote", "-quote"]
    record = store.find("k")
    assert record is not None
    assert record.status == "compensated"


@pytest.mark.parametrize("verb", ["cancel", "undo"])
def test_an_operator_cancels_a_run_that_waits(town: Town, verb: str) -> None:
    effects = Effects()
    wf = order(effects)
    town.pause(town.engine(), wf)
    town.engine(workflows=[wf], recover_every=0.05)
    getattr(town.store, verb)("k")
    until(lambda: town.status() == "compensated", "the undo")
    assert effects == ["quote", "-quote"]


def test_a_run_past_its_pivot_that_is_cancelled_while_it_waits_is_incomplete(town: Town) -> None:
    effects, wf = Effects(), Workflow("pivot")
    wf.add_step("a", lambda ctx: effects.append("a"), compensate=lambda ctx: effects.append("-a"))
    wf.add_step("pay", lambda ctx: effects.append("pay"), depends_on="a", pivot=True)
    wf.wait("delivered", depends_on="pay")
    engine = town.engine()
    future = town.start(engine, wf, idempotency_key="k")
    until(lambda: town.status() == "waiting", "the run to wait")
    until(lambda: any(run.dormant for run in list(engine._live)), "its caller to wait")
    assert engine.cancel(key="k")
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    assert town.status() == "incomplete"
    assert effects == ["a", "pay"]
    assert town.store.send("k", "delivered", 1)  # it may still be resumed
    town.store.resume("k")
    assert town.call(town.engine().run(wf, idempotency_key="k"))["delivered"] == 1


def test_an_engine_that_is_closed_leaves_what_waits_to_others(town: Town) -> None:
    effects = Effects()
    wf = order(effects)
    engine = town.engine()
    future = town.start(engine, wf, idempotency_key="k")
    until(lambda: town.status() == "waiting", "the run to wait")
    town.close(engine)
    with pytest.raises(RunParked, match="closed while it waited"):
        future.result(PATIENCE)
    assert town.status() == "waiting"
    town.store.send("k", "approved", 1)
    assert town.call(town.engine().run(wf, idempotency_key="k"))["ship"] == [41, 1]
    assert effects == ["quote", "ship"]


def test_a_ctrl_c_leaves_a_run_that_waits_in_its_store(tmp_path: Path) -> None:
    effects, store = Effects(), SQLiteStore(tmp_path / "runs.db", durability="normal")

    def strike() -> None:
        until(lambda: (head := store.head("k")) and head.status == "waiting", "the run to wait")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    with Engine(store=store) as engine:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            engine.run(order(effects), idempotency_key="k")
    thread.join()
    record = store.find("k")
    assert record is not None
    assert record.status == "waiting"
    assert effects == ["quote"]


# -- changed definitions -----------------------------------------------------------------------------------------------


def test_a_definition_that_has_grown_resumes_a_run_that_waits_and_another_one_does_not(town: Town) -> None:
    effects = Effects()
    town.pause(town.engine(), order(effects))
    town.store.send("k", "approved", 1)
    changed = Workflow("order")
    changed.add_step("quote", lambda ctx: 1, compensate=lambda ctx: None)
    changed.add_step("approved", lambda ctx: 1, depends_on="quote")
    changed.add_step("ship", lambda ctx: 1, depends_on="approved")
    with pytest.raises(Exception, match="'approved' was recorded as a wait"):
        town.call(town.engine().run(changed, idempotency_key="k"))
    grown = order(effects)
    grown.wait("invoiced", depends_on="ship", timeout=0, default="later")
    assert town.call(town.engine().run(grown, idempotency_key="k"))["invoiced"] == "later"


def test_the_numbers_of_a_run_do_not_fall_where_a_value_came_before_its_claim_was_answered() -> None:
    ledger = Ledger()
    ledger.note_start("answer", 1, 0.0)
    first = ledger.steps["answer"].seq
    ledger.started(Claim("k", "r", "w", None, "[]", {}))
    ledger.note_start("note", 1, 0.0)
    assert ledger.steps["note"].seq > first


# -- the moment at which its time is over ------------------------------------------------------------------------------


def test_a_value_that_was_accepted_counts_though_the_time_is_over_a_moment_later(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent when the owner knows that the time is over, and the store does not."""
    wf = order(Effects(), timeout=0.2, default="no one")
    wf.add_step("beside", lambda ctx: time.sleep(0.5))  # so that the run keeps its process
    accepted, close = list[bool](), Ledger.close_wait

    def send_first(self: Ledger, run: Any, node: Any) -> Any:
        accepted.append(town.store.send("k", "approved", "in the last moment"))
        return close(self, run, node)

    monkeypatch.setattr(Ledger, "close_wait", send_first)
    run = town.call(town.engine().run(wf, idempotency_key="k"))
    assert accepted == [True]
    assert run["approved"] == "in the last moment"
    assert town.store.find("k").results["ship"] == [41, "in the last moment"]


def test_a_value_that_comes_when_the_store_knows_that_the_time_is_over_is_refused(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    wf = order(Effects(), timeout=0.2, default="no one")
    wf.add_step("beside", lambda ctx: time.sleep(0.5))
    refused, close = list[str](), Ledger.close_wait

    def send_then(self: Ledger, run: Any, node: Any) -> Any:
        answer = yield from close(self, run, node)
        try:
            town.store.send("k", "approved", "too late")
        except SendRefused as error:
            refused.append(str(error))
        return answer

    monkeypatch.setattr(Ledger, "close_wait", send_then)
    run = town.call(town.engine().run(wf, idempotency_key="k"))
    assert len(refused) == 1
    assert "no longer waits for 'approved'" in refused[0]
    assert run["approved"] == "no one"


def test_an_owner_that_dies_when_the_time_is_over_leaves_that_to_the_next_one(tmp_path: Path) -> None:
    wf = order(Effects(), timeout=3600, default="no one")
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    fingerprint = hashlib.sha256(b"order\0{}").hexdigest()
    wanted = Claim("k", "1" * 32, "order", None, wf.freeze().graph, {}, lease=0.05)
    wanted.fingerprint = fingerprint
    claimed: Any = store.claim(wanted)
    over = StepReport(Status.TIMEOUT, started=time.time() - 3600, until=time.time())
    steps = {
        "quote": StepRecord(1, StepReport(Status.SUCCESS, 1), True, 41, True),
        "approved": StepRecord(2, over),
    }
    store.checkpoint(Checkpoint("k", "1" * 32, claimed.fence, 0.05, steps, {}))
    until(lambda: store.list_runs(status="expired"), "the end of the lease")
    with Engine(store=store, workflows=[wf]) as engine:
        engine.recover()
    record = store.find("k")
    assert (str(record.status), record.results["approved"]) == ("success", "no one")


# -- callers and owners in different engines ---------------------------------------------------------------------------


def shipping(shipped: threading.Event, may_end: threading.Event) -> Workflow:
    """quote, then approved, then ship, which takes as long as it may."""
    wf = Workflow("shipping")
    wf.add_step("quote", lambda ctx: 41, compensate=lambda ctx: None)
    wf.wait("approved", depends_on="quote")

    def ship(ctx: Context) -> str:
        shipped.set()
        while not may_end.wait(0.01):
            if ctx.cancelled:
                raise RuntimeError("cut short")
        return "parcel"

    wf.add_step("ship", ship, depends_on="approved")
    return wf


def test_a_caller_that_is_cancelled_has_its_run_cancelled_where_it_was_resumed(town: Town) -> None:
    shipped, never = threading.Event(), threading.Event()
    wf = shipping(shipped, never)
    first = town.engine(lease=1)
    future = town.start(first, wf, idempotency_key="k")
    until(lambda: town.status() == "waiting", "the run to wait")
    second = town.engine(lease=1, workflows=[wf])
    assert town.call(second.send("k", "approved", 1))
    assert shipped.wait(PATIENCE)
    time.sleep(1.2)  # its caller has noticed by now, and waits for the other engine
    assert town.call(first.cancel(key="k"))
    with pytest.raises(StepCancelled):
        future.result(PATIENCE)
    until(lambda: town.status() == "compensated", "the undo")


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_caller_whose_run_makes_room_for_another_one_waits_for_that(town: Town) -> None:
    shipped, may_end = threading.Event(), threading.Event()
    wf = Workflow("work")

    def work(ctx: Context) -> int:
        shipped.set()
        assert may_end.wait(PATIENCE)
        return 1

    wf.add_step("work", work)
    first = town.start(town.engine(), wf, idempotency_key="k", check=False)
    assert shipped.wait(PATIENCE)
    waiter = town.start(town.engine(), wf, idempotency_key="k", wait=PATIENCE)
    before = town.store.head("k").run_id
    time.sleep(0.2)
    town.store.release("k", force=True)
    second = town.start(town.engine(), wf, idempotency_key="k", wait=PATIENCE)
    until(lambda: (head := town.store.head("k")) is not None and head.run_id != before, "another run")
    may_end.set()
    assert second.result(PATIENCE)["work"] == 1
    assert waiter.result(PATIENCE)["work"] == 1
    assert first.result(PATIENCE).status == "lost" or first.result(PATIENCE)["work"] == 1


@pytest.mark.parametrize("verb", ["release", "erase"])
def test_a_caller_that_waits_for_a_run_which_an_operator_gives_up_begins_another_one(town: Town, verb: str) -> None:
    begun: list[str] = []
    may_end = threading.Event()
    wf = Workflow("work")

    def work(ctx: Context) -> int:
        begun.append(ctx.run_id)
        assert may_end.wait(PATIENCE)
        return 1

    wf.add_step("work", work)
    first = town.start(town.engine(), wf, idempotency_key="k", check=False)
    until(lambda: bool(begun), "the run")
    waiter = town.start(town.engine(), wf, idempotency_key="k", wait=PATIENCE)
    time.sleep(0.2)  # it waits by now
    town.call(getattr(town.store, verb)("k", force=True))
    until(lambda: len(begun) == 2, "another run")
    may_end.set()
    run = waiter.result(PATIENCE)
    assert (run["work"], run.replayed, run.id) == (1, False, begun[1])
    assert first.result(PATIENCE).status == "lost"


@pytest.mark.parametrize("verb", ["release", "erase"])
def test_the_caller_of_a_waiting_run_that_an_operator_gives_up_learns_that(town: Town, verb: str) -> None:
    wf = Workflow("order")
    wf.wait("approved", timeout=3600)
    caller = town.start(town.engine(), wf, idempotency_key="k")
    until(lambda: town.status() == "waiting", "the wait")
    town.call(getattr(town.store, verb)("k", force=True))
    with pytest.raises(LeaseLost, match="was released or erased before it ended"):
        caller.result(PATIENCE)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_caller_that_waits_for_a_run_that_is_held_in_the_end_learns_that(town: Town) -> None:
    begun, may_end = threading.Event(), threading.Event()
    wf = Workflow("stuck")

    def fail(ctx: Context) -> None:
        raise ValueError("no")

    step = wf.add_step("pay", lambda ctx: 1)
    step.compensate(retry=1)(fail)

    def work(ctx: Context) -> None:
        begun.set()
        assert may_end.wait(PATIENCE)
        raise ValueError("no")

    wf.add_step("work", work, depends_on="pay")
    first = town.start(town.engine(), wf, idempotency_key="k", check=False)
    assert begun.wait(PATIENCE)
    waiter = town.start(town.engine(), wf, idempotency_key="k", wait=PATIENCE, check=False)
    time.sleep(0.2)
    may_end.set()
    assert first.result(PATIENCE).status == "compensation_failed"
    assert waiter.result(PATIENCE).held


class Forgetful(SQLiteStore):
    """Gives up the record of a run that is over as soon as a caller has seen its head."""

    def head(self, key: str, /) -> RunRecord | None:
        found = super().head(key)
        if found is not None and found.finished is not None:
            self.release(key)
        return found


def test_a_caller_whose_run_gives_its_key_up_before_it_has_read_the_outcome_gets_that(tmp_path: Path) -> None:
    begun, may_end, times = threading.Event(), threading.Event(), list[int]()
    wf = Workflow("work")

    def work(ctx: Context) -> int:
        begun.set()
        assert may_end.wait(PATIENCE)
        times.append(1)
        return len(times)

    wf.add_step("work", work)
    path = tmp_path / "runs.db"
    with Engine(store=SQLiteStore(path)) as one, Engine(store=Forgetful(path)) as other:
        first = one.submit(wf, idempotency_key="k")
        assert begun.wait(PATIENCE)
        waiter = other.submit(wf, idempotency_key="k", wait=PATIENCE)
        time.sleep(0.2)
        may_end.set()
        assert first.result(PATIENCE)["work"] == 1
        run = waiter.result(PATIENCE)
        assert (run["work"], run.status, run.replayed) == (1, "success", True)


# -- waits that do not begin -------------------------------------------------------------------------------------------


def test_what_the_when_of_a_wait_writes_must_be_storable(town: Town) -> None:
    def wanted(ctx: Context) -> bool:
        ctx["thing"] = object()
        return True

    effects = Effects()
    run = town.call(town.engine().run(order(effects, when=wanted), idempotency_key="k", check=False))
    assert (run.failed_step, type(run.error)) == ("approved", NotSerializable)
    assert effects == ["quote", "-quote"]


def test_a_wait_does_not_begin_where_the_run_is_cancelled_as_that_is_recorded(town: Town) -> None:
    def wanted(ctx: Context) -> bool:
        town.store.cancel("k")
        return True

    effects = Effects()
    run = town.call(town.engine().run(order(effects, when=wanted), idempotency_key="k", check=False))
    assert (run.status, run.steps["approved"].status) == ("compensated", "pending")
    assert effects == ["quote", "-quote"]


def test_a_run_in_memory_without_a_key_refuses_a_value_for_what_is_no_wait() -> None:
    wf = order(Effects())
    wf.sleep("nap", 3600)
    with Engine() as engine:
        future = engine.submit(wf)
        future.waiting(PATIENCE)
        for name in ("quote", "nap", "nothing"):
            with pytest.raises(SendRefused, match="has no wait"):
                engine.send(future.run_id, name, 1)
        engine.cancel(run_id=future.run_id)
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)


def test_a_cancellation_that_is_heard_as_the_time_is_over_goes_before_the_default(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    effects, close = Effects(), Ledger.close_wait

    def cancel_first(self: Ledger, run: Any, node: Any) -> Any:
        town.store.cancel("k")
        return close(self, run, node)

    monkeypatch.setattr(Ledger, "close_wait", cancel_first)
    wf = order(effects, timeout=0.1, default="no one")
    wf.add_step("beside", lambda ctx: time.sleep(0.3))
    run = town.call(town.engine().run(wf, idempotency_key="k", check=False))
    assert run.status == "compensated"
    assert "ship" not in effects


class Unreachable(SQLiteStore):
    """Cannot be read for a while."""

    fails = 2

    def find(self, key: str, /) -> RunRecord | None:
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("it is being moved")
        return super().find(key)


def test_a_store_that_cannot_be_read_as_the_time_is_over_is_asked_again(tmp_path: Path) -> None:
    store = Unreachable(tmp_path / "runs.db", durability="normal")
    wf = order(Effects(), timeout=0.1, default="no one")
    wf.add_step("beside", lambda ctx: time.sleep(0.3))
    with Engine(store=store) as engine:
        run = engine.run(wf, idempotency_key="k")
    assert (run["approved"], store.fails) == ("no one", 0)


def test_a_store_that_cannot_be_read_for_too_long_parks_the_run(tmp_path: Path) -> None:
    store = Unreachable(tmp_path / "runs.db", durability="normal")
    store.fails = 1000
    wf = order(Effects(), timeout=0.1, default="no one")
    wf.add_step("beside", lambda ctx: time.sleep(0.3))
    with Engine(store=store, store_patience=0.1) as engine, pytest.raises(RunParked, match="could not be read"):
        engine.run(wf, idempotency_key="k")
    store.fails = 0
    store.resume("k")
    with Engine(store=store) as engine:
        assert engine.run(wf, idempotency_key="k")["approved"] == "no one"
