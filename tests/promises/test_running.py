"""What the tests of tests/core leave to be said about running, failing and keys."""

from typing import Any

import pytest

from flowcore import Context, Engine, IdempotencyError, IdempotencyHeld, PrintLogger, Status, Workflow
from flowcore.stores import MemoryStore
from tests.core.conftest import PATIENCE, Drive, Gate, Ledger, until


def test_what_a_failed_attempt_wrote_stays(drive: Drive) -> None:
    def step(ctx: Context) -> object:
        ctx[f"attempt {ctx.attempt}"] = True
        if ctx.attempt == 1:
            raise ValueError
        return dict(ctx)

    wf = Workflow("writes")
    wf.add_step("a", step, retry=2)
    assert drive(wf)["a"] == {"attempt 1": True, "attempt 2": True}


def test_values_and_results_are_never_in_what_a_run_says_of_itself(
    drive: Drive, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    wf = Workflow("secret")
    ledger.add(wf, "a", first=lambda ctx: ctx.setdefault("written", "s3cret"))
    ledger.add(wf, "b", depends_on="a", raises=ValueError("no"))
    run = drive(wf, {"card": "s3cret"}, check=False, hooks=[PrintLogger()])
    said = [repr(run), run.explain(), str(run.to_dict()), *run.error.__notes__, capsys.readouterr().out]
    assert run["a"] == "s3cret"
    assert [text for text in said if "s3cret" in text or not text] == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_base_exception_from_a_step_cancels_its_running_siblings(ledger: Ledger, error: BaseException) -> None:
    wf, began = Workflow("exits"), Gate()

    def slow(ctx: Context) -> None:
        began.set()
        until(lambda: ctx.cancelled)

    def exits(ctx: Context) -> None:
        began.wait()
        raise error

    ledger.add(wf, "slow", first=slow, timeout=PATIENCE)
    wf.add_step("exits", exits)
    with Engine() as engine, pytest.raises(type(error)) as caught:
        engine.run(wf)
    assert caught.value is error
    assert ledger == ["slow", "-slow"]


def test_check_false_raises_refusals_all_the_same(drive: Drive, ledger: Ledger) -> None:
    store: Any = MemoryStore()
    drive(ledger.chain("a"), store=store, idempotency_key="k")
    with pytest.raises(IdempotencyError):
        drive(ledger.chain("a"), {"other": "values"}, store=store, idempotency_key="k", check=False)


def test_an_incomplete_run_is_never_forgotten(drive: Drive, ledger: Ledger) -> None:
    now = [0.0]
    store, wf = MemoryStore(retention=1, max_runs=1, clock=lambda: now[0]), Workflow("half")
    ledger.add(wf, "a", pivot=True)
    ledger.add(wf, "b", depends_on="a", raises=ValueError("b"))
    first = drive(wf, store=store, idempotency_key="half", check=False)
    now[0] = 1e6
    for key in "xyz":
        drive(Workflow("nothing"), store=store, idempotency_key=key)
    again = drive(wf, store=store, idempotency_key="half", check=False)
    assert (again.status, again.id, ledger) == (Status.INCOMPLETE, first.id, ["a", "b", "b"])


def test_an_attached_caller_gets_the_failed_undo_and_the_next_one_is_refused(ledger: Ledger) -> None:
    store, began, go = MemoryStore(), Gate(), Gate()
    wf = Workflow("stuck")
    ledger.add(wf, "a", undo_raises=LookupError("stays"))
    ledger.add(wf, "b", depends_on="a", first=began.then(go), raises=ValueError("b"))
    with Engine(store=store) as engine:
        running = engine.submit(wf, idempotency_key="k", check=False)
        began.wait()
        attached = engine.submit(wf, idempotency_key="k", wait=PATIENCE, check=False)
        until(lambda: store._watched)
        go.set()
        assert attached.result(PATIENCE).error is running.result(PATIENCE).error
        with pytest.raises(IdempotencyHeld):
            engine.run(wf, idempotency_key="k", wait=PATIENCE)
    assert ledger == ["a", "b", "-a"]
