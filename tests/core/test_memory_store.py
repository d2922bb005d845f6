"""MemoryStore: bounded by time and by count, thread-safe, with an operator's verbs."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast

import pytest

from flowcore import DefinitionError, Engine, IdempotencyHeld, RunFailed, RunNotFound, Status, StoreError, Workflow
from flowcore.stores import MemoryStore
from flowcore.stores.base import Busy, Checkpoint, Claim, Claimed, Ending, Finished, Lost, RunRecord

from .conftest import PATIENCE, Drive, Gate, Ledger


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(ledger: Ledger) -> Callable[..., Any]:
    """Runs a workflow of one step with a key against a store."""
    wf, fails = ledger.chain("a"), ledger.chain("a!")

    def go(store: MemoryStore, key: str, *, fail: bool = False) -> Any:
        with Engine(store=store) as engine:
            return engine.run(fails if fail else wf, idempotency_key=key, check=False)

    return go


def test_a_finished_run_is_forgotten_after_its_retention(clock: Clock, run: Any) -> None:
    store = MemoryStore(retention=timedelta(minutes=1), clock=clock)
    first = run(store, "k")
    clock.now += 59
    assert run(store, "k").replayed
    clock.now += 2
    again = run(store, "k")
    assert not again.replayed
    assert again.id != first.id


def test_replaying_does_not_lengthen_the_retention(clock: Clock, run: Any) -> None:
    store = MemoryStore(retention=60, clock=clock)
    run(store, "k")
    replayed: list[bool] = []
    for _ in range(3):
        clock.now += 25
        replayed.append(run(store, "k").replayed)
    assert replayed == [True, True, False]


def test_at_most_so_many_finished_runs_are_kept_the_latest(run: Any) -> None:
    store = MemoryStore(max_runs=3)
    for number in range(10):
        run(store, str(number))
    assert [record.key for record in store.list_runs()] == ["9", "8", "7"]
    assert run(store, "9").replayed
    assert not run(store, "0").replayed


def test_ten_thousand_runs_are_kept_for_seven_days_by_default() -> None:
    store = MemoryStore()
    assert (store.retention, store.max_runs) == (7 * 24 * 3600, 10_000)


def test_gc_forgets_what_is_old_and_says_what_is_left(clock: Clock, run: Any) -> None:
    store = MemoryStore(retention=60, clock=clock)
    run(store, "old")
    clock.now += 50
    run(store, "new")
    clock.now += 20
    assert store.gc() == 1
    assert [record.key for record in store.list_runs()] == ["new"]


def test_runs_in_progress_and_held_ones_are_never_forgotten(clock: Clock, run: Any, gate: Gate) -> None:
    store, began = MemoryStore(retention=60, max_runs=1, clock=clock), Gate()
    run(store, "held")
    store.hold("held")
    wf = Workflow("slow")
    wf.add_step("slow", began.then(gate))
    with Engine(store=store) as engine:
        future = engine.submit(wf, idempotency_key="running")
        began.wait()
        clock.now += 3600
        for number in range(3):
            run(store, str(number))
        assert {record.key for record in store.list_runs()} >= {"held", "running"}
        gate.set()
        future.result(PATIENCE)


def test_a_failed_run_that_was_undone_is_remembered_for_its_generation(run: Any) -> None:
    store = MemoryStore()
    run(store, "k", fail=True)
    run(store, "k", fail=True)
    (record,) = store.list_runs()
    assert (record.generation, record.status) == (1, Status.FAILURE)


def test_a_record_says_what_an_operator_wants_to_know(clock: Clock, run: Any) -> None:
    store = MemoryStore(clock=clock, wall=lambda: 1_700_000_000.0)
    done = run(store, "k")
    record = store.get_run(done.id)
    assert (record.key, record.workflow, record.status, record.held) == ("k", "chain", Status.SUCCESS, False)
    assert (record.results, record.started, record.finished) == ({"a": "a"}, 1_700_000_000.0, 1_700_000_000.0)
    failed = store.get_run(run(store, "f", fail=True).id)
    assert (failed.status, failed.failed_step) == (Status.FAILURE, "a")


def test_what_failed_a_run_is_kept_as_text_for_the_exception_would_keep_every_frame_alive(run: Any) -> None:
    store = MemoryStore()
    done = run(store, "f", fail=True)
    record = store.get_run(done.id)
    for error in (record.error, record.steps["a"].error):
        assert isinstance(error, RunFailed)
        assert (error.run, error.step, error.error_type, error.message) == (done.id, "a", "ValueError", "a failed")
        assert str(error) == f"run {done.id} failed at step 'a': ValueError: a failed"
        assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
    assert isinstance(done.steps["a"].error, ValueError)  # the caller's own are as they were


def test_what_failed_a_run_is_kept_as_it_is_for_those_who_wait(clock: Clock) -> None:
    store = MemoryStore(clock=clock)
    error = ValueError("no")
    waits = Claim("k", "other", "w", "f", "g", {}, waits=True)
    mine = store.claim(Claim("k", "mine", "w", "f", "g", {}))
    assert isinstance(mine, Claimed)
    assert isinstance(store.claim(waits), Busy)
    failed = RunRecord("k", "mine", "w", "f", "g", Status.FAILURE, fence=mine.fence, failed_step="a", error=error)
    store.finish(Ending(failed))
    waits.attached = "mine"
    answer = store.claim(waits)
    assert isinstance(answer, Finished)
    assert answer.record.error is error


def test_results_and_values_stay_the_live_objects_that_they_are(ledger: Ledger) -> None:
    store, alive = MemoryStore(), object()
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: ctx.setdefault("here", alive))
    with Engine(store=store) as engine:
        run = engine.run(wf, idempotency_key="k")
    record = store.get_run(run.id)
    assert record.results["a"] is record.values["here"] is alive


def test_a_lease_is_over_when_the_stores_clock_says_so_and_an_engines_own_never(clock: Clock) -> None:
    store = MemoryStore(clock=clock, wall=lambda: 1_700_000_000.0)
    store.claim(Claim("engine", "1", "w", "f", "g", {}))
    store.claim(Claim("leased", "2", "w", "f", "g", {}, lease=30.0))
    assert store.find("leased").expires == 1_700_000_030.0
    assert store.find("engine").expires == float("inf")
    clock.now += 29.0
    busy = store.claim(Claim("leased", "3", "w", "f", "g", {}))
    assert isinstance(busy, Busy)
    assert busy.lease_left == 1.0
    clock.now += 1.0
    assert isinstance(store.claim(Claim("leased", "3", "w", "f", "g", {})), Claimed)
    clock.now += 1e9
    busy = store.claim(Claim("engine", "3", "w", "f", "g", {}))
    assert isinstance(busy, Busy)
    assert busy.lease_left == float("inf")


def test_an_owner_that_never_heard_of_its_claim_may_still_end_its_run() -> None:
    store = MemoryStore()
    claimed = store.claim(Claim("k", "1", "w", "f", "g", {}))
    assert isinstance(claimed, Claimed)
    assert store.finish(Ending(RunRecord("k", "1", "w", "f", "g", Status.INCOMPLETE, fence=0))) is None
    assert store.find("k").status == Status.INCOMPLETE
    again = store.claim(Claim("k", "2", "w", "f", "g", {}))
    assert isinstance(again, Claimed)
    assert again.fence > claimed.fence
    # But not once another owner has resumed it.
    assert store.finish(Ending(RunRecord("k", "1", "w", "f", "g", Status.FAILURE, fence=0))) == Lost()
    assert store.find("k").status == Status.RUNNING


def test_a_run_that_was_never_claimed_may_be_recorded_at_its_end_and_resumed() -> None:
    store = MemoryStore()
    ended = RunRecord("1", "1", "w", None, "g", Status.INCOMPLETE, results={"a": 1}, effects=("a",))
    assert store.finish(Ending(ended)) is None
    answer = store.claim(Claim("1", "2", "w", None, "g", {}))
    assert isinstance(answer, Claimed)
    assert (answer.fence, answer.record.run_id, answer.record.results) == (1, "1", {"a": 1})


def test_an_ending_with_changes_reports_those_and_no_more() -> None:
    store = MemoryStore()
    claimed = store.claim(Claim("k", "1", "w", "f", "g", {}, {"x": 1}, begins=("a",)))
    assert isinstance(claimed, Claimed)
    ended = RunRecord("k", "1", "w", "f", "g", Status.PARKED, fence=claimed.fence)
    store.finish(Ending(ended, Checkpoint("k", "1", claimed.fence, 1.0)))
    record = store.find("k")
    assert (record.status, record.values, record.effects) == (Status.PARKED, {"x": 1}, ("a",))
    assert record.steps["a"].status == Status.RUNNING


def test_get_run_says_that_there_is_no_such_run() -> None:
    with pytest.raises(RunNotFound, match="this store has no run 'nope': it is unknown, or was forgotten"):
        MemoryStore().get_run("nope")


def test_runs_are_listed_by_status_workflow_and_age(clock: Clock, run: Any, ledger: Ledger) -> None:
    store = MemoryStore(clock=clock)
    run(store, "old")
    clock.now += 100
    run(store, "failed", fail=True)
    with Engine(store=store) as engine:
        engine.run(ledger.chain("x", workflow="other"), idempotency_key="other")
    store.hold("other")

    def keys(**query: Any) -> set[str]:
        return {record.key for record in store.list_runs(**query)}

    assert keys() == {"old", "failed", "other"}
    assert keys(status="failure") == {"failed"}
    assert keys(status="held") == {"other"}
    assert keys(workflow="other") == {"other"}
    assert keys(older_than=timedelta(seconds=50)) == {"old"}
    assert keys(status="success", workflow="chain", older_than=0) == {"old"}
    with pytest.raises(DefinitionError, match="older_than="):
        store.list_runs(older_than=-1)


def test_hold_refuses_a_key_until_release_forgets_its_run(run: Any) -> None:
    store = MemoryStore()
    first = run(store, "k")
    store.hold("k")
    with pytest.raises(IdempotencyHeld):
        run(store, "k")
    store.release("k")
    assert run(store, "k").id != first.id


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_hold_and_release_want_a_known_key_that_is_not_running(verb: str, gate: Gate) -> None:
    store, began = MemoryStore(), Gate()
    with pytest.raises(RunNotFound, match=r"No run with key [0-9a-f]{16} in this store"):
        getattr(store, verb)("nope")
    wf = Workflow("slow")
    wf.add_step("slow", began.then(gate))
    with Engine(store=store) as engine:
        future = engine.submit(wf, idempotency_key="k")
        began.wait()
        with pytest.raises(
            StoreError, match=r"key [0-9a-f]{16} belongs to run [0-9a-f]{32}, which is running: cancel it first"
        ):
            getattr(store, verb)("k")
        gate.set()
        future.result(PATIENCE)


def test_releasing_a_key_twice_is_harmless(run: Any) -> None:
    store = MemoryStore()
    run(store, "k")
    store.release("k")
    store.release("k")
    assert not run(store, "k").replayed


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "10"])
def test_max_runs_must_be_a_whole_number_from_one_up(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"MemoryStore\(max_runs=\) must be a whole number from 1 up"):
        MemoryStore(max_runs=wrong)


def test_strict_must_be_true_or_false_and_a_codec_a_codec_even_if_it_is_not_used() -> None:
    with pytest.raises(DefinitionError, match=r"MemoryStore\(strict=\) must be True or False, not 'no'"):
        MemoryStore(strict=cast("Any", "no"))
    with pytest.raises(DefinitionError, match="codec= must have the methods"):
        MemoryStore(codec=cast("Any", "x"))


def test_a_retention_must_be_seconds() -> None:
    with pytest.raises(DefinitionError, match=r"MemoryStore\(retention=\) must be seconds"):
        MemoryStore(retention=-1)


def test_the_doctor_says_that_memory_forgets() -> None:
    reported = MemoryStore().doctor()
    assert (reported["store"], reported["durability"]) == ("memory", "none: runs are forgotten with their process")
    assert (reported["runs"], reported["running"], reported["held"]) == (0, 0, 0)
    MemoryStore().close()


def test_one_store_may_serve_several_engines(run: Any) -> None:
    store = MemoryStore()
    run(store, "k")
    assert run(store, "k").replayed  # each call has an engine of its own


def test_runs_of_one_workflow_object_share_a_store(ledger: Ledger) -> None:
    wf = ledger.chain("a")
    first = wf.run(idempotency_key="k", hooks=())
    assert wf.run(idempotency_key="k", hooks=()).id == first.id
    assert not ledger.chain("a").run(idempotency_key="k", hooks=()).replayed


def test_many_threads_and_few_keys_each_key_has_one_owner_at_a_time(ledger: Ledger) -> None:
    store, lock = MemoryStore(max_runs=5), threading.Lock()
    inside: dict[str, int] = {}

    def step(ctx: Any) -> None:
        with lock:
            inside[ctx["key"]] = inside.get(ctx["key"], 0) + 1
            assert inside[ctx["key"]] == 1
        threading.Event().wait(0.0002)
        with lock:
            inside[ctx["key"]] -= 1
        raise ValueError  # so that the key is free again

    wf = Workflow("busy")
    wf.add_step("a", step)
    with Engine(store=store) as engine, ThreadPoolExecutor(16) as pool:

        def go(number: int) -> str:
            key = str(number % 4)
            try:
                return str(engine.run(wf, {"key": key}, idempotency_key=key, check=False).status)
            except Exception as error:  # noqa: BLE001 - counted below
                return type(error).__name__

        ends = list(pool.map(go, range(400)))
    assert set(ends) <= {"failure", "IdempotencyInProgress"}
    assert ends.count("failure") >= 4
    assert len(store.list_runs()) <= 5


def test_a_run_in_memory_has_no_lease_and_needs_no_heartbeat(drive: Drive, ledger: Ledger) -> None:
    before, during, wf = threading.enumerate(), list[threading.Thread](), Workflow("w")
    ledger.add(wf, "a", first=lambda ctx: during.extend(threading.enumerate()))
    drive(wf, idempotency_key="k")
    assert "flowcore-leases" not in {thread.name for thread in during if thread not in before}
