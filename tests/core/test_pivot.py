"""The pivot (semantics 14): after it nothing is undone, and the next call goes on forward."""

import threading
from pathlib import Path
from typing import Any

import pytest

from flowcore import AsyncEngine, Context, Engine, IdempotencyMismatch, Landed, RunFailed, Status, StoreError, Workflow
from flowcore.events import StepFinished, StoreCalled
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import Drive, Gate, Ledger, MakeLive, notes, run_async, until


def pivoted(ledger: Ledger, failures: int = 1) -> Workflow:
    """book, pay (the pivot), ship, which fails so many times, and mail."""
    wf = Workflow("order")
    left = failures

    def ship(ctx: Context) -> str:
        nonlocal left
        ledger.append("ship")
        if left:
            left -= 1
            raise ValueError("no lorry")
        return f"{ctx['book']} {ctx['pay']} {ctx['address']}"

    ledger.add(wf, "book")
    ledger.add(wf, "pay", depends_on="book", pivot=True)
    wf.add_step("ship", ship, depends_on="pay")
    ledger.add(wf, "mail", depends_on="ship")
    return wf


def test_a_failure_before_the_pivot_undoes_everything(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("order")
    ledger.add(wf, "book")
    ledger.add(wf, "pay", depends_on="book", raises=ValueError("declined"), pivot=True)
    assert drive(wf, check=False).status is Status.COMPENSATED
    assert ledger == ["book", "pay", "-book"]


def test_a_failure_after_the_pivot_undoes_nothing_and_leaves_the_run_incomplete(drive: Drive, ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="no lorry") as caught:
        drive(pivoted(ledger), {"address": "x"}, idempotency_key="k")
    assert ledger == ["book", "pay", "ship"]
    assert "past its pivot, so nothing was undone: the next call with its key continues at the failed step" in notes(
        caught.value
    )


def test_the_next_call_with_the_key_continues_forward(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), pivoted(ledger)
    first = drive(wf, {"address": "x"}, store=store, idempotency_key="k", check=False)
    assert (first.status, first.held) == (Status.INCOMPLETE, False)
    assert "nothing was undone: the next call with its key continues at the failed step" in first.explain()
    second = drive(wf, {"address": "x"}, store=store, idempotency_key="k")
    assert ledger == ["book", "pay", "ship", "ship", "mail"]
    assert (second.status, second.id, second["ship"]) == (Status.SUCCESS, first.id, "book pay x")
    assert second.steps["book"].status is Status.SUCCESS
    assert drive(wf, {"address": "x"}, store=store, idempotency_key="k").replayed


def test_once_past_its_pivot_a_run_never_turns_back(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), pivoted(ledger, failures=3)
    for _ in range(3):
        run = drive(wf, {"address": "x"}, store=store, idempotency_key="k", check=False)
        assert run.status is Status.INCOMPLETE
    assert drive(wf, {"address": "x"}, store=store, idempotency_key="k").status is Status.SUCCESS
    assert ledger.standing.keys() == {"book", "pay", "ship", "mail"}


def test_resuming_keeps_values_skipped_steps_and_step_keys(drive: Drive, ledger: Ledger) -> None:
    wf, keys, fail = Workflow("keeps"), list[str](), [True]

    def last(ctx: Context) -> str:
        keys.append(ctx.step_key)
        if fail.pop() if fail else False:
            raise ValueError
        return str(ctx["written"])

    ledger.add(wf, "a", first=lambda ctx: ctx.update(written="by a"))
    ledger.add(wf, "skipped", when=lambda ctx: False)
    ledger.add(wf, "pivot", depends_on=["a", "skipped"], pivot=True)
    wf.add_step("last", last, depends_on="pivot")
    store = MemoryStore()
    drive(wf, store=store, idempotency_key="k", check=False)
    run = drive(wf, store=store, idempotency_key="k")
    assert run["last"] == "by a"
    assert (run.steps["skipped"].status, ledger) == (Status.SKIPPED, ["a", "pivot"])
    assert len(set(keys)) == 1


def test_only_an_operator_undoes_a_run_past_its_pivot(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), pivoted(ledger)
    drive(wf, {"address": "x"}, store=store, idempotency_key="k", check=False)
    store.undo("k")
    with pytest.raises(RunFailed, match="no lorry"):
        drive(wf, {"address": "x"}, store=store, idempotency_key="k")
    assert ledger == ["book", "pay", "ship", "-pay", "-book"]
    assert store.find("k").status is Status.COMPENSATED


def test_a_run_past_its_pivot_waits_for_what_it_gave_up_which_the_next_call_attempts_again(
    live: MakeLive, ledger: Ledger, gate: Gate
) -> None:
    def sees(event: Any) -> None:
        if type(event) is StepFinished and event.outcome is Status.TIMEOUT:
            gate.set()

    def lands(ctx: Context) -> None:
        gate.wait()
        threading.Event().wait(0.05)

    wf = Workflow("waits")
    ledger.add(wf, "pay", pivot=True)
    ledger.add(wf, "ship", depends_on="pay", first=lands, timeout=0.01)
    run = live(hooks=[sees]).run(wf, idempotency_key="k", check=False)
    assert (run.status, ledger) == (Status.INCOMPLETE, ["pay", "ship"])
    assert run.steps["ship"].completed_late is Status.SUCCESS


def test_resuming_asks_verify_about_a_step_that_timed_out(live: MakeLive, ledger: Ledger, gate: Gate) -> None:
    wf = Workflow("asks")
    ledger.add(wf, "pay", pivot=True)
    ledger.add(wf, "ship", depends_on="pay", first=gate, timeout=0.01, verify=lambda ctx: Landed("on its way"))
    one = live(store=MemoryStore(), grace=0.01)
    first = one.run(wf, idempotency_key="k", check=False)
    assert (first.status, first.steps["ship"].status) == (Status.INCOMPLETE, Status.TIMEOUT)
    second = one.run(wf, idempotency_key="k")
    assert (second.status, second["ship"], ledger) == (Status.SUCCESS, "on its way", ["pay"])


def test_resuming_with_other_values_is_refused(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), pivoted(ledger)
    drive(wf, {"address": "x"}, store=store, idempotency_key="k", check=False)
    with pytest.raises(IdempotencyMismatch):
        drive(wf, {"address": "y"}, store=store, idempotency_key="k")


def test_a_changed_definition_is_refused_loudly(drive: Drive, ledger: Ledger) -> None:
    store = MemoryStore()
    drive(pivoted(ledger), {"address": "x"}, store=store, idempotency_key="k", check=False)
    changed = Workflow(pivoted(ledger).name)
    changed.add_step("book", lambda ctx: 1)
    with pytest.raises(StoreError, match="was started with a different step graph"):
        drive(changed, {"address": "x"}, store=store, idempotency_key="k")


def test_a_store_that_refuses_a_changed_definition_has_not_failed(drive: Drive, ledger: Ledger) -> None:
    store, events = MemoryStore(), list[Any]()
    drive(pivoted(ledger), {"address": "x"}, store=store, idempotency_key="k", check=False)
    changed = Workflow(pivoted(ledger).name)
    changed.add_step("book", lambda ctx: 1)
    with pytest.raises(StoreError):
        drive(changed, {"address": "x"}, store=store, idempotency_key="k", hooks=[events.append])
    called = [event for event in events if isinstance(event, StoreCalled)]
    assert {(event.operation, event.outcome) for event in called} == {("claim", Status.SUCCESS)}


def test_an_incomplete_run_may_be_given_up_with_release(drive: Drive, ledger: Ledger) -> None:
    store, wf = MemoryStore(), pivoted(ledger)
    drive(wf, {"address": "x"}, store=store, idempotency_key="k", check=False)
    store.release("k")
    run = drive(wf, {"address": "y"}, store=store, idempotency_key="k")
    assert run.status is Status.SUCCESS
    assert ledger == ["book", "pay", "ship", "book", "pay", "ship", "mail"]


def test_an_incomplete_run_without_a_key_is_kept_for_recover_on_threads(ledger: Ledger) -> None:
    wf = pivoted(ledger)
    with Engine(workflows=[wf]) as engine:
        first = engine.run(wf, {"address": "x"}, check=False)
        assert first.status is Status.INCOMPLETE
        (run,) = engine.recover()
        assert (run.id, run.status, run["ship"]) == (first.id, Status.SUCCESS, "book pay x")
        assert engine.recover() == []


def test_an_incomplete_run_without_a_key_is_kept_for_recover_on_asyncio(ledger: Ledger) -> None:
    async def main() -> None:
        wf = pivoted(ledger)
        async with AsyncEngine(workflows=[wf]) as engine:
            first = await engine.run(wf, {"address": "x"}, check=False)
            (run,) = await engine.recover()
            assert (first.status, run.status, run.id) == (Status.INCOMPLETE, Status.SUCCESS, first.id)
            assert await engine.recover() == []

    run_async(main)


def test_a_run_that_stays_incomplete_is_recovered_later_each_time(ledger: Ledger) -> None:
    store, wf = MemoryStore(), pivoted(ledger, failures=3)
    with Engine(store=store, workflows=[wf]) as engine:
        engine.run(wf, {"address": "x"}, idempotency_key="k", check=False)
        first = store.find("k")
        (again,) = engine.recover()
        second = store.find("k")
        assert engine.recover() == []
    assert first is not None
    assert second is not None
    assert (first.retries, first.not_before) == (1, None)
    assert (again.status, second.retries) == (Status.INCOMPLETE, 2)
    assert second.not_before is not None
    assert second.reason == "step 'ship' failed (ValueError: no lorry)"


def test_recover_leaves_workflows_it_does_not_know_alone(ledger: Ledger) -> None:
    store = MemoryStore()
    Drive("threads")(pivoted(ledger), {"address": "x"}, store=store, check=False)
    other = Workflow("other")
    with Engine(store=store, workflows=[other]) as engine:
        assert engine.recover() == []
    assert len(store.list_resumable({pivoted(ledger).name})) == 1


def test_a_sibling_that_runs_while_the_pivot_completes_is_not_undone(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("sibling", max_parallel=1)
    ledger.add(wf, "a")
    ledger.add(wf, "pivot", pivot=True)
    ledger.add(wf, "b", raises=ValueError("b"), undo="attempted")
    assert drive(wf, check=False).status is Status.INCOMPLETE
    assert ledger == ["a", "pivot", "b"]


# -- Workflow(undo="never") --------------------------------------------------------------------------------------------


def etl(ledger: Ledger, failures: int = 1) -> Workflow:
    """extract, transform, load, which fails so many times; each has an undo."""
    wf = Workflow("etl", undo="never")
    left = failures

    def load(ctx: Context) -> None:
        nonlocal left
        ledger.append("load")
        left -= 1
        if left >= 0:
            raise OSError("the warehouse is down")

    ledger.add(wf, "extract")
    ledger.add(wf, "transform", depends_on="extract", undo="attempted")
    wf.add_step("load", load, depends_on="transform", compensate=lambda ctx: ledger.append("-load"))
    return wf


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "SQLite"])
def test_with_undo_never_a_failed_run_is_incomplete_and_the_next_call_continues_at_the_failed_step(
    drive: Drive, ledger: Ledger, durable: bool, tmp_path: Path
) -> None:
    store: Any = SQLiteStore(tmp_path / "runs.db") if durable else MemoryStore()
    wf = etl(ledger)
    with pytest.raises(OSError, match="warehouse") as caught:
        drive(wf, store=store, idempotency_key="monday")
    assert "nothing was undone: the next call with its key continues at the failed step" in notes(caught.value)
    assert store.find("monday").status is Status.INCOMPLETE
    again = drive(wf, store=store, idempotency_key="monday")
    assert (again.status, again["extract"]) == (Status.SUCCESS, "extract")
    assert ledger == ["extract", "transform", "load", "load"]


@pytest.mark.parametrize("cancels", [False, True], ids=["fails", "cancelled"])
def test_with_undo_never_recover_leaves_an_incomplete_run_alone_until_it_is_resumed(
    ledger: Ledger, cancels: bool, tmp_path: Path
) -> None:
    wf, store = etl(ledger), SQLiteStore(tmp_path / "runs.db")
    with Engine(store=store, workflows=[wf]) as engine:
        if cancels:
            wf = Workflow("stops", undo="never")
            ledger.add(wf, "extract", first=lambda ctx: engine.cancel(ctx.run_id))
            ledger.add(wf, "load", depends_on="extract")
        run = engine.run(wf, check=False)
        assert run.status is Status.INCOMPLETE
        before = list(ledger)
    with Engine(store=store, workflows=[wf]) as engine:
        assert engine.recover() == []
        assert ledger == before
        store.resume(run.id)
        engine.recover()
        until(lambda: store.find(run.id).status is Status.SUCCESS)
    assert ledger == [*before, "load"]


@pytest.mark.parametrize("durable", [False, True], ids=["memory", "durable"])
def test_a_run_that_failed_with_nothing_undone_continues_at_the_failed_step_once_it_is_resumed(
    drive: Drive, ledger: Ledger, durable: bool, tmp_path: Path
) -> None:
    wf, store = Workflow("etl"), SQLiteStore(tmp_path / "runs.db") if durable else MemoryStore()
    fails = [ValueError("once")]

    def load(ctx: Context) -> None:
        if fails:
            raise fails.pop()

    ledger.add(wf, "extract", undoable=False)
    ledger.add(wf, "load", depends_on="extract", first=load, undoable=False)
    assert drive(wf, store=store, idempotency_key="k", check=False).status is Status.FAILURE
    store.resume("k")
    assert drive(wf, store=store, idempotency_key="k").status is Status.SUCCESS
    assert ledger == ["extract", "load"]


def test_with_undo_never_siblings_of_a_failed_step_end_and_count(drive: Drive, ledger: Ledger) -> None:
    wf, store = Workflow("fan", undo="never"), MemoryStore()
    for name in "abc":
        ledger.add(wf, name)
    fails = [ValueError("once")]

    def join(ctx: Context) -> str:
        if fails:
            raise fails.pop()
        return "".join(ctx[name] for name in "abc")

    wf.add_step("join", join, depends_on=["a", "b", "c"])
    assert drive(wf, store=store, idempotency_key="k", check=False).status is Status.INCOMPLETE
    assert drive(wf, store=store, idempotency_key="k")["join"] == "abc"
    assert sorted(ledger) == ["a", "b", "c"]
