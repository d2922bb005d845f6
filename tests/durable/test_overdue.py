"""Runs that are due and that no process resumes are counted as overdue by surveys of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore import Context, Engine, RetryAfter, Workflow
from flowcore._durable import recovery
from flowcore.events import StoreSurveyed
from flowcore.stores import SQLiteStore
from tests.durable.test_programs import until
from tests.durable.test_recovery import crashed

Surveyed = Callable[..., int]


@pytest.fixture
def store(tmp_path: Path) -> SQLiteStore:
    return SQLiteStore(tmp_path / "runs.db", durability="normal")


@pytest.fixture
def overdue(store: SQLiteStore) -> Surveyed:
    """Return how many runs of a workflow are overdue, as a new engine with these options counts them once."""

    def count(name: str, **options: Any) -> int:
        surveys: list[StoreSurveyed] = []
        with Engine(store=store, hooks=[lambda event: note(event, surveys)], **options):
            until(lambda: surveys)
        return surveys[0].counts.get((name, "overdue"), 0)

    return count


def note(event: object, surveys: list[StoreSurveyed]) -> None:
    if isinstance(event, StoreSurveyed):
        surveys.append(event)


def waits(timeout: float) -> Workflow:
    wf = Workflow("order")
    wf.wait("paid", timeout=timeout)
    return wf


def backs_off() -> Workflow:
    def charge(ctx: Context) -> None:
        raise RetryAfter(0.5)

    wf = Workflow("order")
    wf.add_step("charge", charge, retry=2)
    return wf


@pytest.mark.parametrize("wf", [waits(0.5), backs_off()], ids=["a wait past its timeout", "a backoff"])
def test_a_run_that_is_due_is_overdue_until_a_process_resumes_it(
    wf: Workflow, store: SQLiteStore, overdue: Surveyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_OVERDUE", 0.0)
    with Engine(store=store, park_after=0.01) as engine:
        engine.run(wf, idempotency_key="k", until="waiting")
    until(lambda: overdue("order", workflows=[wf]) == 1)
    assert overdue("_unknown") == 1
    with Engine(store=store, workflows=[wf]) as engine:
        engine.recover()
    assert overdue("order", workflows=[wf]) == 0


def test_a_queued_run_whose_owner_is_gone_is_overdue_and_one_that_crashed_is_expired(
    store: SQLiteStore, overdue: Surveyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_OVERDUE", 0.0)
    wf = Workflow("order")
    wf.add_step("a", lambda ctx: None)
    crashed(store, wf, "crashed")
    assert overdue("order", workflows=[wf]) == 0
    crashed(store, wf, "queued", queued=True)
    assert overdue("order", workflows=[wf]) == 1


def test_a_run_is_overdue_five_minutes_after_a_survey_has_found_it_or_two_rounds_of_recovery(
    store: SQLiteStore, overdue: Surveyed
) -> None:
    wf, now = waits(0.5), [1000.0]
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k", until="waiting")
    until(lambda: store.list_resumable(["order"]))

    engine = Engine(store=store, workflows=[wf], hooks=[lambda event: None])
    engine.close()
    engine._settings.clock = lambda: now[0]

    def after(seconds: float, every: float | None = None) -> int:
        now[0] = 1000.0 + seconds
        program = engine._recovery.survey((), every)
        try:
            call = next(program)
            while True:
                call = program.send(call())
        except StopIteration as end:
            counts: dict[tuple[str, str], int] = end.value.counts
            return counts["order", "overdue"]

    assert [after(seconds) for seconds in (0, 299, 300)] == [0, 0, 1]
    assert [after(seconds, 600) for seconds in (1199, 1200)] == [0, 1]
    engine.store.hold("k")
    assert after(2000) == 0


def test_a_run_that_waits_for_what_has_not_come_is_not_overdue(
    store: SQLiteStore, overdue: Surveyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_OVERDUE", 0.0)
    wf = waits(3600)
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k", until="waiting")
    assert overdue("order", workflows=[wf]) == 0
    store.send("k", "paid", 1)
    assert overdue("order", workflows=[wf]) == 1
