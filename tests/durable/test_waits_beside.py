"""Waits and long backoffs beside all else that can happen to a run: the rows of the table in PROMISES.md."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flowcore import Context, Engine, RetryAfter, SendRefused, Status, StepTimeout, Workflow
from flowcore.events import BackoffStarted, Event, RunRecovered
from flowcore.run import StepReport
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Checkpoint, Claim, StepRecord
from tests.core.conftest import PATIENCE
from tests.stores.redis_servers import until

from .towns import Town

DAY = 86_400.0
Effects = list[str]


def paid(effects: Effects, *, pivot: bool = False, **wait: Any) -> Workflow:
    """pay, then delivered, then thank."""
    wf = Workflow("paid")
    wf.add_step(
        "pay",
        lambda ctx: effects.append("pay"),
        pivot=pivot,
        compensate=None if pivot else lambda ctx: effects.append("-pay"),
    )
    wf.wait("delivered", depends_on="pay", **wait)
    wf.add_step("thank", lambda ctx: effects.append(f"thank {ctx['delivered']}"), depends_on="delivered")
    return wf


def busy(effects: Effects, wait: float = DAY, *, pivot: bool = False) -> Workflow:
    """pay, then call, which raises RetryAfter."""
    wf = Workflow("busy")
    wf.add_step(
        "pay",
        lambda ctx: effects.append("pay"),
        pivot=pivot,
        compensate=None if pivot else lambda ctx: effects.append("-pay"),
    )

    def call(ctx: Context) -> int:
        effects.append(f"call {ctx.attempt}")
        if ctx.attempt < 2:
            raise RetryAfter(wait)
        return ctx.attempt

    wf.add_step("call", call, depends_on="pay", retry=3)
    return wf


# -- waits -------------------------------------------------------------------------------------------------------------


def test_a_wait_whose_time_is_over_past_the_pivot_leaves_the_run_incomplete_and_the_next_call_waits_anew(
    town: Town,
) -> None:
    effects = Effects()
    wf = paid(effects, pivot=True, timeout=0.3)
    run = town.call(town.engine().run(wf, idempotency_key="k", check=False))
    assert (run.status, type(run.error)) == ("incomplete", StepTimeout)
    with pytest.raises(SendRefused, match="that wait ended with status timeout"):
        town.store.send("k", "delivered", "yesterday")
    patient = paid(effects, pivot=True, timeout=DAY)
    town.pause(town.engine(), patient)
    assert town.store.send("k", "delivered", "today")
    town.call(town.engine().run(patient, idempotency_key="k"))
    assert effects == ["pay", "thank today"]


def test_a_failure_after_a_wait_undoes_what_was_done_before_it_in_whichever_process(town: Town) -> None:
    effects = Effects()
    wf = paid(effects)

    def fail(ctx: Context) -> None:
        raise ValueError("no stamps")

    wf.add_step("post", fail, depends_on="thank")
    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    assert town.store.send("k", "delivered", "today")
    town.engine(workflows=[wf], recover_every=0.05)
    until(lambda: town.status() == "compensated", "the undo")
    assert effects == ["pay", "thank today", "-pay"]
    assert not town.store.send("k", "delivered", "tomorrow")


def test_a_takeover_of_a_run_that_also_worked_keeps_its_wait(tmp_path: Path) -> None:
    """Its owner died while a step was in flight beside the wait."""
    effects, events = Effects(), list[Event]()
    wf = paid(effects, timeout=DAY)
    wf.add_step("pack", lambda ctx: effects.append("pack"), depends_on="pay")
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    claimed: Any = store.claim(Claim("k", "1" * 32, "paid", "", wf.freeze().graph, {}, lease=0.05))
    began = time.time() - 60
    steps = {
        "pay": StepRecord(1, StepReport(Status.SUCCESS, 1), True, None, True),
        "delivered": StepRecord(2, StepReport(Status.WAITING, started=began, until=began + DAY)),
        "pack": StepRecord(3, StepReport(Status.RUNNING, 1, started=began)),
    }
    store.checkpoint(Checkpoint("k", "1" * 32, claimed.fence, 0.05, steps, {}))
    assert store.send("k", "delivered", "early")
    until(lambda: store.list_runs(status="expired"), "the end of the lease")
    with Engine(store=store, workflows=[wf], hooks=[events.append]) as engine:
        engine.recover()
    record = store.find("k")
    assert record is not None
    assert (record.status, record.results["delivered"]) == ("success", "early")
    assert sorted(effects) == ["pack", "thank early"]
    assert [event.retried for event in events if isinstance(event, RunRecovered)] == [("pack",)]


def test_a_ctrl_c_undoes_a_run_that_waits_in_memory() -> None:
    effects = Effects()

    def strike() -> None:
        until(lambda: effects == ["pay"], "the run to wait")
        time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    with Engine() as engine:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            engine.run(paid(effects))
    thread.join()
    assert effects == ["pay", "-pay"]


# -- long backoffs -----------------------------------------------------------------------------------------------------


def test_a_backoff_that_would_outlive_the_deadline_is_not_begun(town: Town) -> None:
    effects = Effects()
    run = town.call(town.engine().run(busy(effects), idempotency_key="k", deadline=60, check=False))
    assert (run.status, type(run.error)) == ("compensated", RetryAfter)
    assert effects == ["pay", "call 1", "-pay"]


def test_a_run_past_its_pivot_goes_forward_after_a_long_backoff(town: Town) -> None:
    effects = Effects()
    wf = busy(effects, pivot=True)
    first = town.engine()
    town.pause(first, wf)
    town.close(first)
    town.store.resume("k")
    run = town.call(town.engine().run(wf, idempotency_key="k"))
    assert run["call"] == 2
    assert effects == ["pay", "call 1", "call 2"]


def test_a_definition_that_has_grown_resumes_a_run_in_a_long_backoff(town: Town) -> None:
    effects = Effects()
    first = town.engine(park_after=0.1)
    town.pause(first, busy(effects, 0.3))
    town.close(first)
    grown = busy(effects, 0.3)
    grown.add_step("more", lambda ctx: effects.append("more"), depends_on="call")
    town.engine(workflows=[grown], recover_every=0.05)
    until(lambda: town.status() == "success", "the run's end")
    assert effects == ["pay", "call 1", "call 2", "more"]


def test_a_ctrl_c_leaves_a_run_in_a_long_backoff_in_its_store(tmp_path: Path) -> None:
    effects, store = Effects(), SQLiteStore(tmp_path / "runs.db", durability="normal")

    def strike() -> None:
        until(lambda: (head := store.head("k")) and head.status == "waiting", "the run to wait")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=strike)
    with Engine(store=store) as engine:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            engine.run(busy(effects), idempotency_key="k")
    thread.join()
    record = store.find("k")
    assert record is not None
    assert (record.status, record.steps["call"].failed) == ("waiting", 1)
    assert effects == ["pay", "call 1"]


def test_a_caller_that_cancels_a_run_in_a_long_backoff_has_it_undone(town: Town) -> None:
    effects, events = Effects(), list[Event]()
    engine = town.engine(hooks=[events.append])
    future = town.start(engine, busy(effects), idempotency_key="k", check=False)
    until(lambda: any(isinstance(event, BackoffStarted) for event in events), "the backoff")
    until(lambda: town.status() == "waiting", "the run to wait")
    until(lambda: town.call(engine.cancel(key="k")), "its caller to wait")
    until(lambda: town.status() == "compensated", "the undo")
    assert future.result(PATIENCE).status == "compensated"
    assert effects == ["pay", "call 1", "-pay"]
