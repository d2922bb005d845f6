"""Waits: steps without a function, in memory, on every driver."""

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowcore import (
    Context,
    DefinitionError,
    DuplicateStep,
    Engine,
    MemoryStore,
    NoResult,
    Run,
    RunNotFound,
    RunTimeout,
    SendRefused,
    Status,
    StepCancelled,
    StepTimeout,
    Workflow,
)
from flowcore.events import Event, RunFinished, StepReady, StepStarted, ValueSent, WaitFinished, WaitStarted

from .conftest import PATIENCE, Drive, Ledger, Live, MakeLive

Send = Callable[..., bool]


def sender(driver: Live) -> Send:
    """`engine.send`, waited for, whichever engine it is."""

    def send(*args: Any, **kwargs: Any) -> bool:
        sent = driver.engine.send(*args, **kwargs)
        if driver._loop is not None:
            sent = asyncio.run_coroutine_threadsafe(sent, driver._loop).result(PATIENCE)
        answer: bool = sent
        return answer

    return send


class Watch:
    """A hook that says when a wait begins."""

    wants = frozenset({WaitStarted, WaitFinished, ValueSent, StepStarted, StepReady, RunFinished})

    def __init__(self) -> None:
        self.waiting = threading.Semaphore(0)
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, ValueSent):
            event.carrier["traceparent"] = "of the sender"
        if isinstance(event, WaitStarted):
            self.waiting.release()

    def until_waiting(self) -> None:
        assert self.waiting.acquire(timeout=PATIENCE)


def approval(ledger: Ledger, **options: Any) -> Workflow:
    """quote, then approved, then ship."""
    wf = Workflow("approval")
    ledger.add(wf, "quote")
    wf.wait("approved", depends_on="quote", **options)
    wf.add_step("ship", lambda ctx: ctx["approved"], depends_on="approved")
    return wf


def test_the_value_that_is_sent_is_the_result_of_the_wait(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver = live(hooks=[watch])
    future = driver.start(approval(ledger), idempotency_key="k")
    watch.until_waiting()
    assert sender(driver)("k", "approved", {"by": "Ann"})
    run = future.result(PATIENCE)
    assert run["ship"] == run["approved"] == {"by": "Ann"}
    assert run.steps["approved"].status == "success"
    assert "approved: success" in run.explain()


def test_a_value_that_is_sent_before_the_wait_is_kept(live: MakeLive) -> None:
    wf, in_step, go = Workflow("w"), threading.Event(), threading.Event()

    @wf.step
    def quote(ctx: Context) -> None:
        in_step.set()
        assert go.wait(PATIENCE)

    wf.wait("approved", depends_on=quote, timeout=0)
    driver = live()
    future = driver.start(wf, idempotency_key="k")
    assert in_step.wait(PATIENCE)
    assert sender(driver)("k", "approved", 1)
    go.set()
    assert future.result(PATIENCE)["approved"] == 1


def test_a_value_is_kept_for_a_queued_run_that_may_wait_for_its_key() -> None:
    wf, busy, go = Workflow("w"), Workflow("busy"), threading.Event()
    wf.wait("approved")
    busy.add_step("work", lambda ctx: go.wait(PATIENCE))
    with Engine(max_workers=1) as engine:
        engine.submit(busy)
        future = engine.submit(wf, idempotency_key="k", wait=PATIENCE)
        assert engine.send("k", "approved", 1)
        go.set()
        assert future.result(PATIENCE)["approved"] == 1


def test_an_awaitable_is_not_sent_and_the_run_still_waits(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver = live(hooks=[watch])
    future = driver.start(approval(ledger), idempotency_key="k")
    watch.until_waiting()
    coroutine = asyncio.sleep(0)
    with pytest.raises(DefinitionError, match="cannot be sent to wait 'approved'"):
        sender(driver)("k", "approved", coroutine)
    coroutine.close()
    assert sender(driver)("k", "approved", "yes")
    assert future.result(PATIENCE)["ship"] == "yes"


def test_the_first_value_counts_and_the_second_sender_learns_that(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver, go = live(hooks=[watch]), threading.Event()
    send = sender(driver)
    wf = Workflow("w")
    wf.wait("a")
    wf.wait("b")
    wf.add_step("end", lambda ctx: go.wait(PATIENCE), depends_on="a")
    future = driver.start(wf, idempotency_key="k")
    watch.until_waiting()
    assert send("k", "a", 1, id="one") is True
    assert send("k", "a", 2) is False
    assert send("k", "a", 3, id="three") is False
    assert send("k", "a", 1, id="one") is True  # the same again
    assert send("k", "b", "b") is True
    go.set()
    assert future.result(PATIENCE)["a"] == 1
    assert send("k", "a", 1, id="one") is True  # also when the run is over
    assert send("k", "a", 2) is False


def test_a_value_for_a_run_that_does_not_wait_for_it_is_refused(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver, go = live(hooks=[watch]), threading.Event()
    send = sender(driver)
    wf = Workflow("w")
    wf.wait("late", timeout=0, default=0)
    wf.sleep("nap", 0)
    wf.add_step("end", lambda ctx: go.wait(PATIENCE), depends_on=("late", "nap"))
    with pytest.raises(RunNotFound):
        send("k", "late", 1)
    future = driver.start(wf, idempotency_key="k")
    watch.until_waiting()
    watch.until_waiting()
    while not any(isinstance(event, StepStarted) for event in watch.events):
        time.sleep(0.001)
    with pytest.raises(SendRefused, match="no longer waits for 'late'"):
        send("k", "late", 1)
    for name in ("end", "nap", "missing"):
        with pytest.raises(SendRefused, match=f"no wait '{name}'"):
            send("k", name, 1)
    go.set()
    future.result(PATIENCE)
    with pytest.raises(SendRefused, match=r"has ended \(success\)"):
        send("k", "late", 1)


def test_a_run_without_a_key_gets_its_value_by_its_id(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver = live(hooks=[watch])
    future = driver.start(approval(ledger))
    watch.until_waiting()
    run_id = watch.events[-1].run_id
    assert sender(driver)(run_id, "approved", 1)
    assert future.result(PATIENCE)["ship"] == 1
    with pytest.raises(RunNotFound):
        sender(driver)(run_id, "approved", 1)


def test_a_value_reaches_a_run_of_another_engine_with_the_same_store(live: MakeLive, ledger: Ledger) -> None:
    store, watch = MemoryStore(), Watch()
    driver = live(hooks=[watch], store=store)
    future = driver.start(approval(ledger), idempotency_key="k")
    watch.until_waiting()
    with Engine(store=store) as other:
        assert other.send("k", "approved", 1, id="x")
        assert not store.send("k", "approved", 2)
    assert future.result(PATIENCE)["approved"] == 1
    record = store.find("k")
    assert record is not None
    assert record.sent["approved"].id == "x"
    assert record.sent["approved"].at > 0
    assert record.sent["approved"].pid


def test_a_wait_whose_time_is_over_fails_and_the_run_is_undone(drive: Drive, ledger: Ledger) -> None:
    with pytest.raises(StepTimeout, match=r"'approved' within its timeout of 0\.01 s") as caught:
        drive(approval(ledger, timeout=timedelta(milliseconds=10)))
    assert ledger == ["quote", "-quote"]
    assert "failed at step 'approved'; undone: 'quote'" in caught.value.__notes__[0]


def test_a_wait_with_a_default_yields_that_when_its_time_is_over(drive: Drive, ledger: Ledger) -> None:
    assert drive(approval(ledger, timeout=0.01, default=None))["ship"] is None


def test_each_run_has_a_default_of_its_own(drive: Drive) -> None:
    wf = Workflow("w")
    names = wf.wait("names", timeout=0.001, default=[])
    wf.add_step("add", lambda ctx: ctx[names].append("x") or len(ctx[names]), depends_on=names)
    assert [drive(wf)["add"] for _ in range(3)] == [1, 1, 1]


def test_a_sleep_ends_when_its_time_is_over(drive: Drive) -> None:
    wf = Workflow("w")
    nap = wf.sleep("nap", timedelta(seconds=0.05))
    wf.add_step("end", lambda ctx: ctx[nap], depends_on=nap)
    began = time.monotonic()
    run = drive(wf)
    assert run["end"] is None
    assert time.monotonic() - began >= 0.05


def test_waits_take_no_place_among_the_steps_that_run_at_a_time(live: MakeLive) -> None:
    watch = Watch()
    driver, wf = live(hooks=[watch], max_workers=1), Workflow("w", max_parallel=1)
    for number in range(50):
        wf.wait(f"wait {number}")
    wf.add_step("step", lambda ctx: 1)
    wf.add_step("end", lambda ctx: 2, depends_on=[step.name for step in wf.steps])
    future = driver.start(wf, idempotency_key="k")
    for _ in range(50):
        watch.until_waiting()
    for number in range(50):
        assert sender(driver)("k", f"wait {number}", number)
    assert future.result(PATIENCE)["end"] == 2


def test_other_steps_continue_beside_a_wait_and_after_its_end(live: MakeLive) -> None:
    watch = Watch()
    driver, wf, go, after = live(hooks=[watch]), Workflow("w"), threading.Event(), threading.Event()
    wf.add_step("long", lambda ctx: go.wait(PATIENCE))
    wf.wait("value")
    wf.wait("late", timeout=0.01, default=0)
    wf.add_step("after value", lambda ctx: after.set(), depends_on=["value", "late"])
    future = driver.start(wf, idempotency_key="k")
    watch.until_waiting()
    watch.until_waiting()
    assert sender(driver)("k", "value", 1)
    assert after.wait(PATIENCE)  # while the other one runs
    go.set()
    assert future.result(PATIENCE).status == "success"


def test_when_of_a_wait_is_asked_once(live: MakeLive) -> None:
    watch, asked = Watch(), list[str]()
    driver, wf = live(hooks=[watch]), Workflow("w")

    def wanted(ctx: Context) -> bool:
        asked.append(ctx.step)
        return ctx.step == "yes"

    wf.wait("yes", when=wanted)
    wf.wait("no", when=wanted)
    wf.add_step("end", lambda ctx: ctx.get("no", "none"), depends_on=["yes", "no"])
    future = driver.start(wf, idempotency_key="k")
    watch.until_waiting()
    assert sender(driver)("k", "yes", 1)
    run = future.result(PATIENCE)
    assert sorted(asked) == ["no", "yes"]
    assert run.steps["no"].status == "skipped"


def test_a_deadline_ends_a_wait(drive: Drive, ledger: Ledger) -> None:
    with pytest.raises(RunTimeout):
        drive(approval(ledger, timeout=60), deadline=0.2)
    assert ledger == ["quote", "-quote"]


def test_a_run_that_waits_can_be_cancelled(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver = live(hooks=[watch])
    future = driver.start(approval(ledger), idempotency_key="k", check=False)
    watch.until_waiting()
    assert driver.engine.cancel(key="k")
    run = future.result(PATIENCE)
    assert run.status == "compensated"
    assert isinstance(run.error, StepCancelled)
    assert ledger == ["quote", "-quote"]
    assert run.steps["approved"].status == "pending"
    with pytest.raises(NoResult, match="has not run"):
        run["approved"]
    with pytest.raises(SendRefused):
        sender(driver)("k", "approved", 1)


def test_a_wait_beside_a_step_that_fails_does_not_keep_the_run_from_failing(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    wf.wait("approved")
    ledger.add(wf, "bad", raises=ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        drive(wf)


def test_closing_an_engine_cancels_what_waits_in_memory(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver = live(hooks=[watch])
    future = driver.start(approval(ledger), check=False)
    watch.until_waiting()
    driver.close(timeout=0.1)
    assert future.result(PATIENCE).status == "compensated"


def test_hooks_learn_of_waits(live: MakeLive, ledger: Ledger) -> None:
    watch = Watch()
    driver = live(hooks=[watch])
    future = driver.start(approval(ledger, timeout=60), idempotency_key="k")
    watch.until_waiting()
    sender(driver)("k", "approved", 1)
    future.result(PATIENCE)
    began, ended = (
        next(event for event in watch.events if isinstance(event, kind)) for kind in (WaitStarted, WaitFinished)
    )
    assert isinstance(began, WaitStarted)
    assert isinstance(ended, WaitFinished)
    assert (began.step, began.timeout, began.sleeps) == ("approved", 60, False)
    assert (ended.outcome, ended.error, ended.depends_on) == (Status.SUCCESS, None, ("quote",))
    assert ended.sender == {"traceparent": "of the sender"}
    assert ended.waited >= 0
    assert not [e for e in watch.events if isinstance(e, StepStarted | StepReady) and e.step == "approved"]


# -- definitions -------------------------------------------------------------------------------------------------------


def test_a_wait_is_a_step_of_its_workflow() -> None:
    wf = Workflow("w")
    quote = wf.add_step("quote", lambda ctx: 1, effect=False)
    approved = wf.wait("approved", depends_on=quote, timeout=5)
    nap = wf.sleep("nap", 7, depends_on="approved")
    assert [step.name for step in wf.steps] == ["quote", "approved", "nap"]
    assert approved.depends_on == ("quote",)
    assert "⏳ 5 s" in repr(wf)
    assert '(["approved"])' in wf.to_mermaid()
    assert "dashed" in wf.to_dot()
    assert wf.check() == []
    outer = Workflow("outer")
    copies = outer.include(wf, prefix="in ")
    assert copies["approved"].wait == approved.wait
    assert copies["nap"].wait == nap.wait
    with pytest.raises(DefinitionError, match="only waits"):
        approved(None)


def test_advice_for_waits() -> None:
    wf = Workflow("w", deadline=10)
    wf.wait("slow", timeout=60)
    assert "may take 60 s" in wf.check()[0]
    wf = Workflow("w")
    wf.wait("open")
    assert "wait 'open' has no timeout" in wf.check()[0]


@pytest.mark.parametrize(
    "define",
    [
        lambda wf: wf.wait(""),
        lambda wf: wf.wait("a", timeout=-1),
        lambda wf: wf.wait("a", default=1),
        lambda wf: wf.wait("a", when=lambda: True),
        lambda wf: wf.wait("a", when=3),
        lambda wf: wf.sleep("a", float("inf")),
        lambda wf: wf.sleep("a", "1"),
        lambda wf: wf.wait("a").compensate(lambda ctx: None),
    ],
)
def test_a_wait_that_makes_no_sense_is_refused(define: Callable[[Workflow], Any]) -> None:
    with pytest.raises(DefinitionError):
        define(Workflow("w"))


def test_two_waits_of_one_name_are_refused() -> None:
    wf = Workflow("w")
    wf.wait("a")
    with pytest.raises(DuplicateStep):
        wf.sleep("a", 1)


def test_a_wait_is_part_of_the_recorded_graph() -> None:
    before, after = Workflow("w"), Workflow("w")
    before.wait("a")
    after.add_step("a", lambda ctx: 1)
    assert after.plan().contains(before.plan().graph) == "step 'a' was recorded as a wait"
    assert before.plan().contains(after.plan().graph) == "step 'a' was recorded as a function"
    assert before.plan().contains(before.plan().graph) is None


def test_a_run_with_nothing_but_waits_needs_no_thread() -> None:
    watch, wf = Watch(), Workflow("w")
    wf.wait("a")
    before = threading.active_count()
    with Engine(hooks=[watch], max_workers=4) as engine:
        futures = [engine.submit(wf) for _ in range(200)]
        for _ in futures:
            watch.until_waiting()
        assert threading.active_count() < before + 50
        for future in futures:
            assert engine.send(future.run_id, "a", future.run_id)
        runs: list[Run] = [future.result(PATIENCE) for future in futures]
        assert all(run["a"] == run.id for run in runs)
