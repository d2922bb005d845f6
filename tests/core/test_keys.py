"""Idempotency keys (semantics 15 to 18): one owner, replay, waiting, held keys, step keys."""

import asyncio
import datetime as dt
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    NO_KEY,
    AsyncEngine,
    Context,
    Engine,
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    NotSerializable,
    Run,
    RunFailed,
    Status,
    StepCancelled,
    Workflow,
)
from flowcore.events import IdempotencyHit, RunRefused
from flowcore.stores import MemoryStore, SQLiteStore
from flowcore.stores.base import Busy, Claim, Claimed, Ending, Finished, RunRecord, Store

from ..security.codecs import Encrypted
from .conftest import PATIENCE, Drive, Gate, Ledger, MakeLive, kinds, of_type, until

# -- one owner ---------------------------------------------------------------------------------------------------------


def test_a_second_call_with_the_same_key_answers_the_stored_results(drive: Drive, ledger: Ledger) -> None:
    store, wf, events = MemoryStore(), ledger.chain("a", "b"), list[Any]()
    first = drive(wf, {"x": 1}, store=store, idempotency_key="k")
    second = drive(wf, {"x": 1}, store=store, idempotency_key="k", hooks=[events.append])
    assert ledger == ["a", "b"]
    assert (first.replayed, second.replayed) == (False, True)
    assert (second.id, second.results, second.status) == (first.id, {"a": "a", "b": "b"}, Status.SUCCESS)
    assert second.steps["a"].status is Status.SUCCESS
    assert second[wf.steps[1]] == "b"
    (hit,) = of_type(events, IdempotencyHit)
    assert (hit.outcome, hit.original_run_id, hit.key, hit.age >= 0) == ("replayed", first.id, "k", True)
    # On Temporal, the worker registers the workflow too.
    assert list(dict.fromkeys(kinds(events))) == ["WorkflowRegistered", "RunRequested", "IdempotencyHit"]
    assert "replayed from an earlier run with the same key" in second.explain()


def test_a_replayed_run_cannot_be_changed_through_the_first_ones_results(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), ledger.chain("a")
    drive(wf, store=store, idempotency_key="k")
    drive(wf, store=store, idempotency_key="k").results.clear()
    assert drive(wf, store=store, idempotency_key="k").results == {"a": "a"}


def test_once_makes_a_failure_the_outcome_of_every_later_call(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), Workflow("w")
    ledger.add(wf, "a", raises=ValueError("no"))
    first = drive(wf, store=store, idempotency_key="k", once=True, check=False)
    again = drive(wf, store=store, idempotency_key="k", once=True, check=False)
    assert (again.id, again.status, again.replayed, ledger) == (first.id, Status.FAILURE, True, ["a"])
    with pytest.raises(RunFailed, match="no"):
        drive(wf, store=store, idempotency_key="k", once=True)
    assert drive(wf, store=store, idempotency_key="k", check=False).id != first.id  # without once=, it is a new try
    assert ledger == ["a", "a"]


class Text(str, Enum):  # noqa: UP042 - a StrEnum would be formatted as its text
    WORKFLOW = "wname"
    STEP = "step"
    WAIT = "approved"
    KEY = "key"
    VALUE = "n"


@pytest.mark.parametrize("engine_type", [Engine, AsyncEngine])
@pytest.mark.parametrize("kind", ["memory", "sqlite", "encrypted"])
def test_a_member_of_an_enum_of_texts_means_the_same_as_its_text(kind: str, engine_type: Any, tmp_path: Path) -> None:
    def workflow(of: Callable[[Text], str]) -> Workflow:
        own = (lambda values: of(Text.VALUE)) if kind == "sqlite" else None
        wf = Workflow(of(Text.WORKFLOW), fingerprint=own)
        wf.add_step(of(Text.STEP), lambda ctx: ctx["n"] + len(ctx.step_key))
        wf.wait(of(Text.WAIT), depends_on=[of(Text.STEP)])
        return wf

    async def main(store: Any) -> None:
        engine = engine_type(store=store)

        async def done(asked: Any) -> Any:
            return asked if engine_type is Engine else await asked

        members, texts = workflow(lambda text: text), workflow(lambda text: text.value)
        waiting = await done(engine.run(members, {Text.VALUE: 1}, idempotency_key=Text.KEY, until="waiting"))
        assert [type(name) for name in waiting.steps] == [str, str]
        assert await done(engine.send(Text.KEY, Text.WAIT, 5, id="first"))
        run = await done(engine.run(texts, {"n": 1}, idempotency_key="key", wait=PATIENCE))
        assert (run.id, run["step"], run["approved"]) == (waiting.id, 65, 5)
        again = await done(engine.run(members, {Text.VALUE: 1}, idempotency_key=Text.KEY))
        assert (again.id, again.replayed) == (run.id, True)
        assert store.find(Text.KEY).run_id == run.id
        await done(engine.close() if engine_type is Engine else engine.aclose())

    store: Any = MemoryStore()
    if kind != "memory":
        store = SQLiteStore(tmp_path / "runs.db", codec=Encrypted() if kind == "encrypted" else None)
    asyncio.run(main(store))


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
def test_once_refuses_other_initial_values_whatever_came_of_the_first_run(
    drive: Drive, ledger: Ledger, durable: bool, tmp_path: Path
) -> None:
    wf, store = ledger.chain("a!"), SQLiteStore(tmp_path / "runs.db") if durable else MemoryStore()
    drive(wf, {"amount": 1}, store=store, idempotency_key="k", once=True, check=False)
    with pytest.raises(IdempotencyMismatch):
        drive(wf, {"amount": 2}, store=store, idempotency_key="k", once=True)
    assert drive(wf, {"amount": 1}, store=store, idempotency_key="k", once=True, check=False).replayed
    assert ledger == ["a"]


def test_once_without_a_key_is_refused(drive: Drive, ledger: Ledger) -> None:
    with pytest.raises(IdempotencyError, match="needs an idempotency_key="):
        drive(ledger.chain("a"), once=True)
    assert ledger == []


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_once_holds_for_submitted_runs_on_every_store(tmp_path: Path, ledger: Ledger, kind: str) -> None:
    store: Store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "db")
    wf = Workflow("w")
    ledger.add(wf, "a", raises=ValueError("no"))

    async def on_a_loop() -> Run:
        async with AsyncEngine(store=store) as engine:
            return await engine.submit(wf, idempotency_key="k", once=True, check=False)

    with Engine(store=store) as engine:
        first = engine.submit(wf, idempotency_key="k", once=True, check=False).result(PATIENCE)
        again = engine.submit(wf, idempotency_key="k", once=True, check=False).result(PATIENCE)
    assert (first.status, again.id, ledger) == (Status.FAILURE, first.id, ["a"])
    assert asyncio.run(on_a_loop()).id == first.id
    assert ledger == ["a"]


def test_a_call_once_after_one_that_was_dropped_before_it_began_has_its_try(tmp_path: Path, ledger: Ledger) -> None:
    released, busy = threading.Event(), Workflow("busy")
    busy.add_step("b", lambda ctx: released.wait(PATIENCE))
    with Engine(store=SQLiteStore(tmp_path / "db"), max_workers=1) as engine:
        first = engine.submit(busy)
        dropped = engine.submit(ledger.chain("a"), idempotency_key="k", once=True)
        assert dropped.cancel()
        released.set()
        first.result(PATIENCE)
        again = engine.submit(ledger.chain("a"), idempotency_key="k", once=True).result(PATIENCE)
    assert (again.status, ledger) == (Status.SUCCESS, ["a"])


def test_runs_without_a_key_never_replay(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), ledger.chain("a")
    assert drive(wf, store=store).id != drive(wf, store=store).id
    assert ledger == ["a", "a"]


def test_other_values_are_a_mismatch_reported_before_the_state(drive: Drive, ledger: Ledger) -> None:
    store, wf, events = MemoryStore(), ledger.chain("a"), list[Any]()
    drive(wf, {"x": 1}, store=store, idempotency_key="k")
    with pytest.raises(
        IdempotencyMismatch,
        match=r"Key [0-9a-f]{16} of workflow 'chain' was already used with different initial values",
    ):
        drive(wf, {"x": 2}, store=store, idempotency_key="k", hooks=[events.append])
    assert of_type(events, IdempotencyHit)[0].outcome == "mismatch"


def test_another_workflow_is_a_mismatch(drive: Drive, ledger: Ledger) -> None:
    store = MemoryStore()
    drive(ledger.chain("a"), store=store, idempotency_key="k")
    with pytest.raises(IdempotencyMismatch, match="was already used with workflow 'chain'"):
        drive(Workflow("other"), store=store, idempotency_key="k")


def test_a_mismatch_is_reported_even_while_the_first_run_continues_and_when_it_is_held(
    live: MakeLive, gate: Gate
) -> None:
    one, wf = live(), Workflow("w")
    wf.add_step("a", gate)
    running = one.start(wf, {"x": 1}, idempotency_key="k")
    until(one.engine.store.list_runs)
    with pytest.raises(IdempotencyMismatch):
        one.run(wf, {"x": 2}, idempotency_key="k")
    gate.set()
    running.result(PATIENCE)
    one.engine.store.hold("k")
    with pytest.raises(IdempotencyMismatch):
        one.run(wf, {"x": 2}, idempotency_key="k")


def test_values_are_compared_as_canonical_json(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), ledger.chain("a")
    drive(wf, {"x": 1, "y": (1, 2)}, store=store, idempotency_key="k")
    assert drive(wf, {"y": [1, 2], "x": 1}, store=store, idempotency_key="k").replayed


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Decimal("9.90"), Decimal("9.9")),
        (1, 1.0),
        (1.0, Decimal("1.00")),
        ("caf\u00e9", "cafe\u0301"),
        ({"caf\u00e9": [1]}, {"cafe\u0301": [1.0]}),
        ({2: "a", 1: "b"}, {1: "b", 2: "a"}),
        (dt.date(2026, 1, 2), dt.date(2026, 1, 2)),
    ],
    ids=str,
)
def test_values_that_are_equal_are_the_same_request(drive: Drive, ledger: Ledger, first: Any, second: Any) -> None:
    store, wf = MemoryStore(), ledger.chain("a")
    drive(wf, {"x": first}, store=store, idempotency_key="k")
    assert drive(wf, {"x": second}, store=store, idempotency_key="k").replayed
    with pytest.raises(IdempotencyMismatch):
        drive(wf, {"x": "another"}, store=store, idempotency_key="k")


def test_fingerprint_says_what_makes_two_requests_the_same(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), ledger.chain("a", fingerprint=lambda values: str(values["order"]))
    drive(wf, {"order": 1, "when": object()}, store=store, idempotency_key="k")
    assert drive(wf, {"order": 1, "when": object()}, store=store, idempotency_key="k").replayed
    with pytest.raises(IdempotencyMismatch):
        drive(wf, {"order": 2}, store=store, idempotency_key="k")


def test_a_fingerprint_that_is_no_string_is_refused_by_name(drive: Drive, ledger: Ledger) -> None:
    wf = ledger.chain("a", fingerprint=lambda values: 7)
    with pytest.raises(NotSerializable, match="fingerprint= of workflow 'chain' must return a string"):
        drive(wf, idempotency_key="k")


def test_a_fingerprint_that_raises_refuses_the_run_and_is_reported(drive: Drive, ledger: Ledger) -> None:
    events: list[Any] = []
    wf = ledger.chain("a", fingerprint=lambda values: values["missing"])
    with pytest.raises(KeyError, match="missing"):
        drive(wf, idempotency_key="k", hooks=[events.append])
    assert kinds(events)[-1] == "RunRefused"
    assert ledger == []


class Odd:
    """A value without a JSON form."""


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        (
            {"fine": 1, "odd": Odd()},
            "the initial value of 'odd' cannot be compared: tests.core.test_keys.Odd is not a type",
        ),
        ({"lock": [threading.Lock()]}, "the initial value of 'lock' cannot be compared: _thread.lock is not a type"),
        ({"loop": LOOP}, "the initial value of 'loop' cannot be compared: it contains itself"),
        ({1: Odd()}, "the initial value of 1 cannot be compared"),
    ],
)
def test_values_without_canonical_json_are_refused_only_with_a_key(
    drive: Drive, ledger: Ledger, values: dict[Any, Any], culprit: str
) -> None:
    wf, events = ledger.chain("a"), list[Any]()
    with pytest.raises(NotSerializable, match=culprit):
        drive(wf, values, idempotency_key="k", hooks=[events.append])
    assert isinstance(of_type(events, RunRefused)[0].error, NotSerializable)
    assert ledger == []
    assert drive(wf, values).status is Status.SUCCESS


def test_values_nested_too_deep_for_json_are_refused(drive: Drive, ledger: Ledger) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(
        NotSerializable,
        match="the initial value of 'deep' cannot be compared: it contains itself, or is nested too deep",
    ):
        drive(ledger.chain("a"), {"deep": deep}, idempotency_key="k")


@pytest.mark.parametrize("key", [7, b"k", ["k"], True])
def test_a_key_must_be_a_string(drive: Drive, key: Any) -> None:
    with pytest.raises(IdempotencyError, match="an idempotency key must be a string, not"):
        drive(Workflow("w"), idempotency_key=key)


def test_the_empty_key_is_refused(drive: Drive) -> None:
    with pytest.raises(IdempotencyError, match=r"must not be empty\. Pass flowcore\.NO_KEY"):
        drive(Workflow("w"), idempotency_key="")


@pytest.mark.parametrize("key", ["a ", " a", "A", "a\0", "a\n", "\u00e1", "a\u0301", "\ud800", "k" * 1024])
def test_keys_are_taken_literally(drive: Drive, ledger: Ledger, key: str) -> None:
    store, wf = MemoryStore(), ledger.chain("a")
    drive(wf, store=store, idempotency_key="a")
    assert not drive(wf, store=store, idempotency_key=key).replayed
    assert drive(wf, store=store, idempotency_key=key).replayed


def test_the_workflow_may_name_its_key_or_derive_it_from_the_values(drive: Drive, ledger: Ledger) -> None:
    store = MemoryStore()
    fixed = ledger.chain("a", workflow="fixed", idempotency_key="always")
    drive(fixed, store=store)
    assert drive(fixed, store=store).replayed
    derived = ledger.chain("a", workflow="derived", idempotency_key=lambda values: values.get("id"))
    drive(derived, {"id": "1"}, store=store)
    assert drive(derived, {"id": "1"}, store=store).replayed
    assert not drive(derived, {"id": "2"}, store=store).replayed
    with pytest.raises(
        IdempotencyError, match=r"key function of workflow 'derived' returned None.* Return flowcore\.NO_KEY"
    ):
        drive(derived, {}, store=store)
    assert not drive(derived, {"id": NO_KEY}, store=store).replayed
    assert not drive(derived, {"id": NO_KEY}, store=store).replayed
    assert not drive(fixed, store=store, idempotency_key=NO_KEY).replayed
    assert not drive(derived, {"id": "1"}, store=store, idempotency_key="the call's own").replayed


def test_a_key_function_that_answers_nonsense_is_refused(drive: Drive) -> None:
    with pytest.raises(IdempotencyError, match="must be a string"):
        drive(Workflow("w", idempotency_key=lambda values: 7))  # type: ignore[return-value]  # the point


def test_a_key_function_that_raises_starts_nothing(drive: Drive) -> None:
    with pytest.raises(KeyError):
        drive(Workflow("w", idempotency_key=lambda values: values["missing"]))


# -- replay and release ------------------------------------------------------------------------------------------------


def test_a_failure_that_was_undone_releases_the_key_and_forgets_the_fingerprint(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), ledger.chain("a", "b!")
    first = drive(wf, {"x": 1}, store=store, idempotency_key="k", check=False)
    second = drive(wf, {"x": 2}, store=store, idempotency_key="k", check=False)
    assert (first.status, second.status, second.replayed) == (Status.COMPENSATED, Status.COMPENSATED, False)
    assert first.id != second.id
    assert ledger == ["a", "b", "-a"] * 2


def test_overlap_is_refused_with_the_run_and_when_to_ask_again(live: MakeLive, gate: Gate) -> None:
    events: list[Any] = []
    one, wf = live(hooks=[events.append]), Workflow("w")
    wf.add_step("a", gate)
    running = one.start(wf, idempotency_key="k")
    (record,) = until(one.engine.store.list_runs)
    with pytest.raises(IdempotencyInProgress, match=r"Retry in about .* s, or pass wait= to get its outcome") as caught:
        one.run(wf, idempotency_key="k")
    assert caught.value.run_id == record.run_id
    assert 0 < caught.value.retry_after < 60
    gate.set()
    assert running.result(PATIENCE).id == record.run_id
    assert of_type(events, IdempotencyHit)[0].outcome == "in_progress"


def test_of_many_threads_with_one_key_exactly_one_runs(ledger: Ledger) -> None:
    barrier, wf = threading.Barrier(32), ledger.chain("a")
    with Engine() as engine, ThreadPoolExecutor(32) as pool:

        def go(_: int) -> bool:
            barrier.wait(PATIENCE)
            return engine.run(wf, idempotency_key="k", wait=PATIENCE).replayed

        replayed = list(pool.map(go, range(32)))
    assert ledger == ["a"]
    assert replayed.count(False) == 1


def test_wait_attaches_to_the_running_one_and_answers_its_outcome(live: MakeLive, gate: Gate) -> None:
    events: list[Any] = []
    one, wf = live(hooks=[events.append]), Workflow("w")
    wf.add_step("a", lambda ctx: [gate.wait(), 7][1])
    running = one.start(wf, idempotency_key="k")
    until(one.engine.store.list_runs)
    attached = one.start(wf, idempotency_key="k", wait=PATIENCE)
    until(lambda: one.engine.store._watched)
    gate.set()
    run = attached.result(PATIENCE)
    assert (run.id, run["a"], run.replayed) == (running.result(PATIENCE).id, 7, True)
    assert [event.outcome for event in of_type(events, IdempotencyHit)] == ["adopted"]


def test_wait_adopts_a_failure_too_and_never_starts_a_new_run(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    one, wf = live(), Workflow("w")
    ledger.add(wf, "a", first=gate, raises=ValueError("declined"))
    running = one.start(wf, idempotency_key="k")
    until(one.engine.store.list_runs)
    attached = one.start(wf, idempotency_key="k", wait=PATIENCE)
    until(lambda: one.engine.store._watched)
    gate.set()
    for future in (running, attached):
        with pytest.raises(ValueError, match="declined"):
            future.result(PATIENCE)
    assert ledger == ["a"]


def test_a_waiter_that_looks_away_while_another_run_comes_and_goes_adopts_the_latest_outcome() -> None:
    store = MemoryStore()

    def claim(run_id: str, attached: str | None = None) -> Any:
        return store.claim(Claim("k", run_id, "w", "f", "g", {}, attached=attached, waits=attached is not None))

    def end(run_id: str) -> None:
        (record,) = store.list_runs()
        store.finish(Ending(replace(record, run_id=run_id, status=Status.COMPENSATED)))

    assert isinstance(claim("first"), Claimed)
    assert isinstance(claim("waiter", attached="first"), Busy)
    end("first")
    assert isinstance(claim("second"), Claimed)
    end("second")
    answer = claim("waiter", attached="first")
    assert isinstance(answer, Finished)
    assert answer.record.run_id == "second"


def test_wait_that_runs_out_is_refused(live: MakeLive, gate: Gate) -> None:
    one, wf = live(), Workflow("w")
    wf.add_step("a", gate)
    running = one.start(wf, idempotency_key="k")
    until(one.engine.store.list_runs)
    with pytest.raises(IdempotencyInProgress):
        one.run(wf, idempotency_key="k", wait=0.01)
    with pytest.raises(IdempotencyInProgress):
        one.run(wf, idempotency_key="k", wait=0)
    gate.set()
    running.result(PATIENCE)


def test_a_caller_that_waits_for_a_run_can_be_cancelled(live: MakeLive, gate: Gate) -> None:
    events: list[Any] = []
    one, wf = live(hooks=[events.append]), Workflow("w")
    wf.add_step("a", gate)
    running = one.start(wf, idempotency_key="k")
    until(one.engine.store.list_runs)
    attached = one.start(wf, idempotency_key="k", wait=3600)
    until(lambda: one.engine.store._watched)
    mine = [event.run_id for event in events if type(event).__name__ == "RunRequested"][1]
    assert one.engine.cancel(mine)
    with pytest.raises(StepCancelled):
        attached.result(PATIENCE)
    assert not running.done()
    gate.set()
    running.result(PATIENCE)


def test_wait_without_another_run_just_runs(drive: Drive, ledger: Ledger) -> None:
    assert drive(ledger.chain("a"), idempotency_key="k", wait=5).replayed is False


def test_an_adopted_failure_of_which_only_text_is_left_is_runfailed(drive: Drive, ledger: Ledger) -> None:
    # What a store in another process would answer: no exception object.
    class Elsewhere(MemoryStore):
        def claim(self, claim: Any, /) -> Any:
            record = RunRecord("k", "1" * 32, "chain", claim.fingerprint, claim.graph, status=Status.COMPENSATED)
            record.failed_step = "a"
            record.error = RunFailed(
                "of 'chain' failed", run="1" * 32, step="a", error_type="ValueError", error_message="declined"
            )
            return Finished(record, 1.0)

    with pytest.raises(RunFailed, match="of 'chain' failed") as caught:
        drive(ledger.chain("a"), store=Elsewhere(), idempotency_key="k")
    error = caught.value
    assert (error.run, error.step, error.error_type, error.message) == ("1" * 32, "a", "ValueError", "declined")


def test_a_held_key_is_refused_naming_the_way_out_until_it_is_released(drive: Drive, ledger: Ledger) -> None:
    store, events, wf = MemoryStore(), list[Any](), Workflow("stuck")
    ledger.add(wf, "a", undo_raises=LookupError("gone"))
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    first = drive(wf, store=store, idempotency_key="k", check=False)
    assert first.held
    with pytest.raises(IdempotencyHeld, match=r"engine\.store\.release\(error\.key\)") as caught:
        drive(wf, store=store, idempotency_key="k", hooks=[events.append])
    assert f"is held by run {first.id}" in str(caught.value)
    assert caught.value.key == "k"
    assert of_type(events, IdempotencyHit)[0].outcome == "held"
    store.release("k")
    again = drive(wf, {"other": "values"}, store=store, idempotency_key="k", check=False)
    assert (again.status, again.id == first.id) == (Status.COMPENSATION_FAILED, False)


def test_a_run_without_a_key_whose_undo_failed_is_on_record(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), Workflow("stuck")
    ledger.add(wf, "a", undo_raises=LookupError("gone"))
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    run = drive(wf, store=store, check=False)
    (record,) = store.list_runs(status="held")
    assert (record.run_id, record.key, record.failed_step) == (run.id, run.id, "b")


def test_runs_in_memory_without_a_key_need_no_record(drive: Drive, ledger: Ledger) -> None:
    store = MemoryStore()
    drive(ledger.chain("a"), store=store)
    drive(ledger.chain("a!"), store=store, check=False)
    assert store.list_runs() == []


# -- step keys ---------------------------------------------------------------------------------------------------------


def keyed(keys: list[str], *, fails: bool = False, name: str = "w") -> Workflow:
    wf = Workflow(name)

    def step(ctx: Context) -> None:
        keys.append(ctx.step_key)
        if ctx.attempt < 3:
            raise ValueError("again")

    wf.add_step("a", step, retry=3, compensate=lambda ctx: keys.append(ctx.step_key))
    if fails:
        wf.add_step("b", lambda ctx: 1 / 0, depends_on="a")
    return wf


def test_a_step_key_is_the_same_for_every_attempt(drive: Drive) -> None:
    keys: list[str] = []
    drive(keyed(keys), idempotency_key="k")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(keys[0]) == 64
    assert int(keys[0], 16)


def test_a_step_key_is_another_after_a_failed_run_has_released_the_key(drive: Drive) -> None:
    store, first, second = MemoryStore(), list[str](), list[str]()
    drive(keyed(first, fails=True), store=store, idempotency_key="k", check=False)
    drive(keyed(second, fails=True), store=store, idempotency_key="k", check=False)
    assert len({*first, *second}) == 4  # do and undo, of two generations


def test_a_step_key_differs_by_step_workflow_and_run_key(drive: Drive) -> None:
    keys: list[str] = []
    for name, key in (("w", "k"), ("w", "l"), ("v", "m")):
        wf = Workflow(name)
        for step in "ab":
            wf.add_step(step, lambda ctx: keys.append(ctx.step_key))
        drive(wf, idempotency_key=key)
    assert len(set(keys)) == 6


def test_a_step_key_without_a_run_key_belongs_to_the_run(drive: Drive) -> None:
    keys: list[str] = []
    drive(keyed(keys))
    drive(keyed(keys))
    assert len(set(keys)) == 2
