"""Failed attempts count across owners (semantics 6): the record says how many failed, with which errors, and when the next is due."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest

from flowcore import AsyncEngine, Backoff, Context, Engine, NotLanded, Retry, Run, Status, Workflow
from flowcore.run import StepReport
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Checkpoint, Claim, StepRecord

from .conftest import Ledger, until

LEASE = 0.05


def left_behind(store: SQLiteStore, wf: Workflow, *steps: tuple[str, StepReport]) -> None:
    """A run under the key "k" whose owner died after it had recorded these steps."""
    fingerprint = hashlib.sha256(f"{wf.name}\0".encode()).hexdigest()
    claimed: Any = store.claim(Claim("k", "1" * 32, wf.name, fingerprint, wf.freeze().graph, {}, lease=LEASE))
    records = {name: StepRecord(seq, report) for seq, (name, report) in enumerate(steps, 1)}
    store.checkpoint(Checkpoint("k", "1" * 32, claimed.fence, LEASE, records, {}))
    until(lambda: store.list_runs(status="expired"))


def resume(engine_type: type[Any], store: SQLiteStore, wf: Workflow) -> Run:
    if engine_type is Engine:
        with Engine(store=store, lease=LEASE * 20) as engine:
            return engine.run(wf, idempotency_key="k", wait=20, check=False)

    async def main() -> Run:
        async with AsyncEngine(store=store, lease=LEASE * 20) as engine:
            return await engine.run(wf, idempotency_key="k", wait=20, check=False)

    return asyncio.run(main())


def in_backoff(due: float, errors: tuple[tuple[str, str], ...] = (("ConnectionError", "1"),)) -> StepReport:
    failed = len(errors)
    return StepReport(Status.PENDING, failed, failed=failed, errors=errors, started=due - 60, retry_at=due)


def flaky(ledger: Ledger, succeeds_at: int = 99, **options: Any) -> Workflow:
    wf = Workflow("w", fingerprint=lambda values: "")

    def call(ctx: Context) -> int:
        ledger.append(f"{ctx.attempt}")
        if ctx.attempt < succeeds_at:
            raise ConnectionError(str(ctx.attempt))
        return ctx.attempt

    wf.add_step("call", call, **options)
    return wf


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
@pytest.mark.parametrize("options", [{}, {"timeout": 20}, {"when": lambda ctx: True}], ids=["plain", "timeout", "when"])
def test_failed_attempts_of_an_earlier_owner_count_and_the_rest_of_the_backoff_is_waited_for(
    engine: type[Any], options: dict[str, Any], ledger: Ledger, tmp_path: Path
) -> None:
    wf, store = flaky(ledger, retry=Retry(3, Backoff.fixed(0.01)), **options), SQLiteStore(tmp_path / "runs.db")
    due = time.time() + 0.4
    left_behind(store, wf, ("call", in_backoff(due)))
    run = resume(engine, store, wf)
    assert time.time() >= due
    assert (ledger, run.status) == (["2", "3"], Status.FAILURE)
    report = store.find("k").steps["call"]
    assert (report.attempts, report.failed, report.retry_at) == (3, 3, None)
    assert report.errors == (("ConnectionError", "1"), ("ConnectionError", "2"), ("ConnectionError", "3"))
    assert run.steps["call"].errors == report.errors


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
def test_an_attempt_that_a_crash_cut_off_is_made_again(engine: type[Any], ledger: Ledger, tmp_path: Path) -> None:
    wf, store = flaky(ledger, succeeds_at=3, retry=3), SQLiteStore(tmp_path / "runs.db")
    report = StepReport(Status.RUNNING, 2, failed=1, errors=(("ConnectionError", "1"),))
    left_behind(store, wf, ("call", report))
    run = resume(engine, store, wf)
    assert (ledger, run.status, run["call"]) == (["2", "3"], Status.SUCCESS, 3)
    assert run.steps["call"].errors == (("ConnectionError", "1"), ("ConnectionError", "2"))


def test_max_elapsed_counts_from_the_first_attempt_of_the_first_owner(ledger: Ledger, tmp_path: Path) -> None:
    wf, store = flaky(ledger, retry=Retry(9, max_elapsed=30)), SQLiteStore(tmp_path / "runs.db")
    left_behind(store, wf, ("call", in_backoff(time.time())))
    assert resume(Engine, store, wf).status is Status.FAILURE
    assert ledger == ["2"]


def test_a_run_that_stops_in_the_rest_of_a_backoff_fails_with_what_the_attempt_had_raised(
    ledger: Ledger, tmp_path: Path
) -> None:
    wf, store = flaky(ledger, retry=3), SQLiteStore(tmp_path / "runs.db")
    ledger.add(wf, "other", raises=ValueError("other"))
    left_behind(store, wf, ("call", in_backoff(time.time() + 60)))
    run = resume(Engine, store, wf)
    assert (ledger, run.status) == (["other"], Status.FAILURE)
    assert "ConnectionError: 1" in str(run.steps["call"].error)


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
def test_each_failed_attempt_is_recorded_before_its_backoff(engine: type[Any], ledger: Ledger, tmp_path: Path) -> None:
    store, seen = SQLiteStore(tmp_path / "runs.db"), list[StepReport]()
    wf = flaky(ledger, succeeds_at=2, retry=Retry(2, Backoff.fixed(0.3)))

    def looks(ctx: Context) -> None:
        def failed() -> bool:
            seen.append(store.find("k").steps["call"])
            return seen[-1].failed > 0

        until(failed)

    wf.add_step("looks", looks)
    before = time.time()
    run = resume(engine, store, wf)
    assert (run.status, seen[-1].status, seen[-1].attempts) == (Status.SUCCESS, Status.PENDING, 1)
    assert seen[-1].errors == (("ConnectionError", "1"),)
    assert seen[-1].retry_at is not None
    assert seen[-1].retry_at >= before + 0.3
    assert seen[-1].started is not None
    assert before <= seen[-1].started <= seen[-1].retry_at


def doubtful(ledger: Ledger, store: SQLiteStore, **options: Any) -> Workflow:
    """call: a crash cut its attempt off, so that it may have had its effect. The next owner's attempt failed, and the run is left
    to its store until another one is due."""
    wf = Workflow("w", fingerprint=lambda values: "")

    def call(ctx: Context) -> None:
        ledger.append(f"{ctx.attempt}")
        raise ConnectionError(str(ctx.attempt))

    retry = Retry(3, Backoff.fixed(0.2))
    wf.add_step("call", call, compensate=lambda ctx: ledger.append("-call"), retry=retry, **options)
    left_behind(store, wf, ("call", StepReport(Status.RUNNING, 1)))
    with Engine(store=store, lease=LEASE * 20, park_after=0.05) as engine:
        assert engine.run(wf, idempotency_key="k", until="waiting").status is Status.WAITING
    assert ledger == ["1"]
    return wf


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
def test_what_an_owner_before_the_last_may_have_done_is_undone(
    engine: type[Any], ledger: Ledger, tmp_path: Path
) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    run = resume(engine, store, doubtful(ledger, store))
    assert (ledger, run.status) == (["1", "2", "3", "-call"], Status.COMPENSATED)


def test_it_is_undone_too_where_an_operator_wants_the_run_undone(ledger: Ledger, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    wf = doubtful(ledger, store)
    store.undo("k")
    assert (resume(Engine, store, wf).status, ledger) == (Status.COMPENSATED, ["1", "-call"])


def test_what_verify_has_found_missing_is_not_undone(ledger: Ledger, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    wf = doubtful(ledger, store, verify=lambda ctx: NotLanded)
    assert (resume(Engine, store, wf).status, ledger) == (Status.FAILURE, ["1", "2", "3"])


def test_what_a_crash_cut_off_is_undone_where_the_deadline_allows_no_further_attempt(
    ledger: Ledger, tmp_path: Path
) -> None:
    store = SQLiteStore(tmp_path / "runs.db")
    wf = doubtful(ledger, store)
    with Engine(store=store, lease=LEASE * 20) as engine:
        run = engine.run(wf, idempotency_key="k", wait=20, deadline=0.001, check=False)
    assert (ledger, run.status) == (["1", "-call"], Status.COMPENSATED)


class Watched(SQLiteStore):
    """A store that remembers what it was sent."""

    def checkpoint(self, checkpoint: Checkpoint) -> Any:
        self.__dict__.setdefault("seen", []).append(checkpoint)
        return super().checkpoint(checkpoint)


def test_a_step_that_has_failed_attempts_is_not_recorded_as_started_before_its_next_one(
    ledger: Ledger, tmp_path: Path
) -> None:
    store, wf = Watched(tmp_path / "runs.db"), Workflow("w", fingerprint=lambda values: "", max_parallel=1)
    ledger.add(wf, "before")
    ledger.add(wf, "call", retry=3)
    left_behind(store, wf, ("before", StepReport(Status.RUNNING, 1)), ("call", in_backoff(time.time())))
    assert resume(Engine, store, wf).status is Status.SUCCESS
    reports = [sent.steps["call"].report for sent in store.__dict__["seen"] if "call" in sent.steps]
    started = [report for report in reports if report.status is Status.RUNNING]
    assert [(report.attempts, report.failed) for report in started] == [(2, 1)]
