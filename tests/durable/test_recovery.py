"""Recovery: which runs are resumed, how many at once, and which end as held keys."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Context,
    Engine,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    RunFailed,
    RunParked,
    StoreUnavailable,
    Workflow,
)
from flowcore.events import Event, RunFinished, RunRecovered, RunStarted, StoreSurveyed
from flowcore.run import StepReport
from flowcore.status import Status
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Busy, Checkpoint, Claim, Claimed, Finished, Owner, StepRecord
from flowcore.stores.canonical import canonical
from tests.durable.test_programs import Moody, fine, until


def one_step(fn: Any = fine, name: str = "order") -> Workflow:
    wf = Workflow(name)
    wf.add_step("a", fn)
    return wf


def fingerprint(wf: Workflow) -> str:
    """Of a call without initial values."""
    return hashlib.sha256(f"{wf.name}\0{canonical({})}".encode()).hexdigest()


def crashed(store: Any, wf: Workflow, key: str, times: int = 1, *, queued: bool = False) -> None:
    """A run whose owners died so often in its first step; their leases are over."""
    for number in range(times):
        claim = Claim(key, f"{key}{number}".rjust(32, "0"), wf.name, fingerprint(wf), wf.freeze().graph, {}, lease=0.0)
        claim.begins, claim.owner, claim.queued = () if queued else ("a",), Owner("worker-7", 4711), queued
        assert isinstance(store.claim(claim), Claimed)


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "runs.db", durability="normal")


def test_a_run_that_crashed_its_owners_too_often_is_held_with_the_reason_the_owner_and_the_step(
    store: SQLiteStore,
) -> None:
    wf, done = Workflow("order"), list[str]()
    wf.add_step("a", lambda ctx: done.append("a"))
    crashed(store, wf, "k", times=3)
    with Engine(store=store, workflows=[wf], max_takeovers=2) as engine:
        with pytest.raises(
            IdempotencyHeld, match=r"its process crashed 3 times without progress, the last time in step 'a'"
        ):
            engine.run(wf, idempotency_key="k")
        record = store.find("k")
        assert record is not None
        assert record.held
        assert record.reason is not None
        assert "worker-7" in record.reason
        assert "4711" in record.reason
        store.resume("k")
        assert engine.run(wf, idempotency_key="k").status == "success"
    assert done == ["a"]


@pytest.mark.parametrize("engines", ["threads", "asyncio"])
def test_that_a_run_is_held_is_recorded_before_a_hook_learns_of_it(store: SQLiteStore, engines: str) -> None:
    seen = list[tuple[str, bool]]()

    def hook(event: Event) -> None:
        if isinstance(event, RunStarted | RunRecovered | RunFinished):
            record = store.head("k")
            seen.append((type(event).__name__, record is not None and record.held))

    async def on_asyncio() -> None:
        async with AsyncEngine(**options) as engine:
            await engine.run(wf, idempotency_key="k", check=False)

    wf = one_step()
    crashed(store, wf, "k", times=3)
    options: dict[str, Any] = {"store": store, "max_takeovers": 2, "hooks": [hook]}
    if engines == "asyncio":
        asyncio.run(on_asyncio())
    else:
        with Engine(**options) as engine:
            engine.run(wf, idempotency_key="k", check=False)
    assert seen == [("RunStarted", True), ("RunRecovered", True), ("RunFinished", True)]


def test_a_record_with_a_hole_is_held_and_not_run(store: SQLiteStore) -> None:
    wf, done = Workflow("order"), list[str]()
    wf.add_step("a", lambda ctx: done.append("a"))
    wf.add_step("b", lambda ctx: done.append("b"), depends_on="a")
    wf.add_step("c", lambda ctx: done.append("c"), depends_on="b")
    claim = Claim("k", "1" * 32, wf.name, fingerprint(wf), wf.freeze().graph, {}, lease=0.0)
    claimed = store.claim(claim)
    assert isinstance(claimed, Claimed)
    steps = {name: StepRecord(seq, StepReport(Status.SUCCESS, 1), True, name) for seq, name in ((1, "a"), (3, "c"))}
    store.checkpoint(Checkpoint("k", "1" * 32, claimed.fence, 0.0, steps))
    with Engine(store=store, workflows=[wf]) as engine:
        with pytest.raises(IdempotencyHeld, match="step 'c' is recorded, but the end of step 'b'"):
            engine.run(wf, idempotency_key="k")
        assert engine.recover() == []
    record = store.find("k")
    assert record is not None
    assert (record.held, done) == (True, [])


def test_recovered_runs_in_flight_are_limited_and_a_live_call_goes_first(store: SQLiteStore) -> None:
    gate, lock, running, most = threading.Event(), threading.Lock(), [0], [0]

    def waits(ctx: Context) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait(20)
        with lock:
            running[0] -= 1

    wf, live = one_step(waits), one_step(name="live")
    for number in range(10):
        crashed(store, wf, str(number))
    with Engine(store=store, workflows=[wf], max_workers=4, recover_every=0.01) as engine:
        until(lambda: running[0] == 2)
        assert engine.submit(live, idempotency_key="live").result(20).status == "success"
        gate.set()
        until(lambda: not store.list_runs(status="expired") and not store.list_runs(status="running"))
    assert most[0] == 2


def test_recovered_runs_that_hang_and_leave_no_room_for_others_are_logged_once(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    gate, wf = threading.Event(), one_step(lambda ctx: gate.wait(20))
    for number in range(2):
        crashed(store, wf, str(number))
    with (
        caplog.at_level(logging.WARNING, "flowcore"),
        Engine(store=store, workflows=[wf], lease=0.05, recover_at_once=1, recover_every=0.01) as engine,
    ):
        try:
            until(lambda: "recover_at_once=1" in caplog.text)
            assert caplog.text.count("They are runs of 'order'") == 1
        finally:
            gate.set()
        until(lambda: [record.status for record in engine.list()] == ["success"] * 2)


def test_one_suspect_at_a_time_is_resumed(store: SQLiteStore) -> None:
    gate, began = threading.Event(), list[str]()

    def waits(ctx: Context) -> None:
        began.append(ctx.run_id)
        gate.wait(20)

    wf = one_step(waits)
    with Engine(store=store, workflows=[wf]) as engine:
        for key in ("x", "y"):
            crashed(store, wf, key, times=3)
        crashed(store, wf, "innocent")
        recovering = threading.Thread(target=engine.recover)
        recovering.start()
        until(lambda: len(began) == 2)
        gate.set()
        recovering.join(20)
    assert len(began) == 3


def test_a_suspect_of_which_a_step_has_ended_delays_no_other_suspect(store: SQLiteStore) -> None:
    gate, began, wf = threading.Event(), list[str](), Workflow("order")

    def waits(ctx: Context) -> None:
        began.append(ctx.run_id)
        assert gate.wait(20)

    wf.add_step("a", fine)
    wf.add_step("b", waits, depends_on="a")
    for key in ("x", "y"):
        crashed(store, wf, key, times=3)
    with Engine(store=store, workflows=[wf], recover_every=0.01, max_workers=8):
        try:
            until(lambda: len(began) == 2)
        finally:
            gate.set()
    assert [record.status for record in store.list_runs()] == ["success"] * 2


def test_runs_of_workflows_that_no_engine_lists_are_counted_and_logged_once(
    store: SQLiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Any] = []
    crashed(store, one_step(name="removed"), "k")
    known = one_step()
    with (
        caplog.at_level(logging.WARNING, "flowcore"),
        Engine(store=store, workflows=[known], hooks=[events.append]) as engine,
    ):
        engine.recover()
        engine.recover()
        store.release("k")
        engine.recover()
    counts = [event.counts for event in events if isinstance(event, StoreSurveyed)]
    assert [count["_unknown", "expired"] for count in counts] == [1, 1, 0]
    assert sum("'removed'" in record.message for record in caplog.records) == 1


def test_several_definitions_of_one_name_resume_each_its_own_runs(store: SQLiteStore) -> None:
    first, second = one_step(), Workflow("order")
    second.add_step("b", fine)
    crashed(store, first, "k")
    with Engine(store=store, workflows=[second, first]) as engine:
        (run,) = engine.recover()
    assert dict(run.results) == {"a": "a"}


def test_a_verify_that_hangs_leaves_the_run_to_the_next_round(store: SQLiteStore) -> None:
    gate, wf = threading.Event(), Workflow("order")
    wf.add_step("a", fine, verify=lambda ctx: gate.wait(20) and None, timeout=0.05)
    crashed(store, wf, "k")
    with (
        Engine(store=store) as engine,
        pytest.raises(RunParked, match=r"verify= of step 'a' did not return within 0.05 s"),
    ):
        engine.run(wf, idempotency_key="k")
    gate.set()


def test_a_waiting_caller_sends_its_initial_values_once() -> None:
    store, gate, began = Moody(), threading.Event(), threading.Event()
    sent: list[Any] = []

    def note(verb: str, argument: Any) -> None:
        if verb == "claim" and argument.values:
            sent.append(argument)

    def waits(ctx: Context) -> str:
        began.set()
        gate.wait(20)
        return "done"

    wf = one_step(waits)
    with Engine(store=store) as owner, Engine(store=store) as other:
        owner.submit(wf, {"n": 1}, idempotency_key="k")
        began.wait(20)
        futures = [engine.submit(wf, {"n": 1}, idempotency_key="k", wait=20) for engine in (owner, other)]
        # Each run is claimed twice: when it is recorded as queued, and when it begins or begins to wait. The owner sends
        # no claim for its own run.
        until(lambda: store.asked.count("claim") == 4 and store.asked.count("head") > 3)
        store.moods = note
        gate.set()
        assert [future.result(20)["a"] for future in futures] == ["done", "done"]
    assert sent == []


def test_a_waiting_caller_gets_run_failed_where_the_owner_was_cancelled() -> None:
    async def main() -> BaseException | None:
        began = asyncio.Event()

        async def waits(ctx: Context) -> None:
            began.set()
            await asyncio.sleep(20)

        wf = one_step(waits)
        async with AsyncEngine() as engine:
            owner = asyncio.create_task(engine.run(wf, idempotency_key="k"))
            await began.wait()
            waiter = asyncio.create_task(engine.run(wf, idempotency_key="k", wait=20))
            await asyncio.sleep(0.02)
            owner.cancel()
            await asyncio.wait([owner, waiter])
            return waiter.exception()

    assert isinstance(asyncio.run(main()), RunFailed)


def test_a_second_call_does_not_take_over_a_run_of_its_own_engine_whose_lease_is_in_doubt() -> None:
    store, gate, began = Moody(), threading.Event(), threading.Event()

    def mood(verb: str, argument: Any) -> None:
        if verb == "renew":
            raise StoreUnavailable("away")

    def cannot_say(verb: str, argument: Any) -> Any:
        if verb in {"head", "renew"}:
            raise StoreUnavailable("away")
        return Busy("1" * 32, {}, 0.0, 1.0) if verb == "claim" else None

    def waits(ctx: Context) -> str:
        began.set()
        gate.wait(20)
        return "done"

    store.moods = mood
    wf = one_step(waits)
    with Engine(store=store, lease=0.1) as engine:
        first = engine.submit(wf, {"n": 1}, idempotency_key="k")
        began.wait(20)
        over = time.monotonic() + 0.1
        until(lambda: time.monotonic() >= over)
        claims = store.asked.count("claim")
        with pytest.raises(IdempotencyInProgress):
            engine.run(wf, {"n": 1}, idempotency_key="k")
        with pytest.raises(IdempotencyMismatch):
            engine.run(wf, {"n": 2}, idempotency_key="k")
        assert store.asked.count("claim") == claims
        store.moods = cannot_say
        with pytest.raises(IdempotencyInProgress):  # the claim says so
            engine.run(wf, {"n": 1}, idempotency_key="k")
        store.moods = mood
        gate.set()
        assert first.result(20)["a"] == "done"


def test_a_call_with_a_definition_that_contains_the_recorded_steps_resumes_the_run(store: SQLiteStore) -> None:
    grown = one_step()
    grown.add_step("b", fine, depends_on="a")
    crashed(store, one_step(), "k")
    with Engine(store=store) as engine:
        run = engine.run(grown, idempotency_key="k")
    assert (run.id, run["b"]) == ("k0".rjust(32, "0"), "b")


def test_a_waiting_caller_hears_what_its_store_raises() -> None:
    store, gate, began = Moody(), threading.Event(), threading.Event()

    def mood(verb: str, argument: Any) -> None:
        if verb == "head":
            raise ValueError("broken")

    def waits(ctx: Context) -> str:
        began.set()
        gate.wait(20)
        return "done"

    store.moods = mood
    wf = one_step(waits)
    with Engine(store=store) as owner, Engine(store=store) as other:
        first = owner.submit(wf, idempotency_key="k")
        began.wait(20)
        with pytest.raises(ValueError, match="broken"):
            other.run(wf, idempotency_key="k", wait=20)
        gate.set()
        assert first.result(20)["a"] == "done"


def test_a_run_that_crashed_its_owners_too_often_while_undoing_is_held_with_the_step_that_it_undid(
    store: SQLiteStore,
) -> None:
    wf = Workflow("order")
    wf.add_step("a", fine, compensate=lambda ctx: None)
    wf.add_step("b", fine, depends_on="a")
    crashed(store, wf, "k")
    record = store.find("k")
    assert record is not None
    steps = {
        "a": StepRecord(5, StepReport(Status.SUCCESS, 1), True, "a", True),
        "b": StepRecord(6, StepReport(Status.FAILURE, 1)),
    }
    undoing = Checkpoint("k", record.run_id, record.fence, 0.0, steps, {}, True)
    undoing.failed_step, undoing.error = "b", ValueError("b")
    store.checkpoint(undoing)
    crashed(store, wf, "k", times=3)
    with (
        Engine(store=store, max_takeovers=2) as engine,
        pytest.raises(IdempotencyHeld, match="in the undo of step 'a'"),
    ):
        engine.run(wf, idempotency_key="k")


def test_a_call_whose_claim_finds_the_run_held_meanwhile_is_refused() -> None:
    store, wf = Moody(), one_step()
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k")
        record = store.find("k")
        assert record is not None
        record.status, record.held = Status.PARKED, True
        store.moods = lambda verb, argument: Finished(record, 0.0) if verb == "claim" else None
        with pytest.raises(IdempotencyHeld, match=f"held by run {record.run_id}"):
            engine.run(wf, idempotency_key="k", wait=20)
