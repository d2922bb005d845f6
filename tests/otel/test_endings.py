"""Runs that end in other ways than well or badly: interrupted, refused, adopted, cut short."""

import asyncio
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    Engine,
    LoggingHook,
    Retry,
    RunParked,
    StepCancelled,
    StoreUnavailable,
    Workflow,
)
from flowcore.events import Event, StepCompletedLate
from flowcore.stores import MemoryStore, SQLiteStore
from flowcore_otel import PrometheusHook, TracingHook

from .conftest import Driver, MakeDriver, Spans, trip
from .test_trees import golden


def test_a_step_that_is_interrupted_by_its_user(spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None: ...

    @book.compensate
    def cancel(ctx: Context) -> None: ...

    @wf.step(depends_on=book)
    def pay(ctx: Context) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Engine(hooks=[TracingHook(spans.provider)]).run(wf)
    assert spans.tree() == golden("""
        run trip ERROR KeyboardInterrupt
        ├── step book
        ├── step pay ERROR cancelled ! KeyboardInterrupt → depends_on step book
        └── compensate book → compensates step book
            └── attempt book
    """)


def test_a_cancelled_task(spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    async def book(ctx: Context) -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.create_task(AsyncEngine(hooks=[TracingHook(spans.provider)]).run(wf))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [(span.name, (span.attributes or {})["error.type"]) for span in spans.all()] == [
        ("step book", "cancelled"),
        ("run trip", "cancelled"),
    ]


def test_a_run_that_is_cancelled_by_its_engine(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")

    @wf.step
    def book(ctx: Context) -> None:
        driver.engine.cancel(ctx.run_id)
        while not ctx.cancelled:
            time.sleep(0.001)

    with pytest.raises(StepCancelled):
        driver.run(wf)
    assert spans.tree() == golden("""
        run trip ERROR cancelled ! cancelled
        └── step book
    """)


def test_a_backoff_that_is_cut_short_by_a_siblings_failure_ends_with_its_step(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    waiting = threading.Event()

    @wf.step(retry=Retry(2, Backoff.fixed(30)))
    def flaky(ctx: Context) -> None:
        waiting.set()
        raise OSError("busy")

    @wf.step
    def fails(ctx: Context) -> None:
        assert waiting.wait(10)
        time.sleep(0.02)
        raise ValueError("declined")

    started = time.monotonic()
    with pytest.raises(ValueError, match="declined"):
        driver.run(wf)
    assert time.monotonic() - started < 10
    backoff, step = spans["backoff flaky"], spans["step flaky"]
    assert backoff.attributes["flowcore.backoff.delay"] == 30
    assert backoff.end_time == step.end_time
    assert step.attributes["error.type"] == "OSError"
    seconds = (backoff.end_time - backoff.start_time) / 1e9
    assert step.attributes["flowcore.step.backoff"] == pytest.approx(seconds, abs=1e-3)


def test_an_adopted_outcome_leads_to_the_run_that_was_waited_for(driver: Driver, spans: Spans) -> None:
    wf = Workflow("trip")
    started, go_on = threading.Event(), threading.Event()

    @wf.step
    def book(ctx: Context) -> str:
        started.set()
        assert go_on.wait(10)
        return "seat 7"

    first = threading.Thread(target=driver.run, args=(wf,), kwargs={"idempotency_key": "T-1"})
    first.start()
    assert started.wait(10)
    threading.Timer(0.05, go_on.set).start()
    assert driver.run(wf, idempotency_key="T-1", wait=10)["book"] == "seat 7"
    first.join(10)
    assert spans.tree() == golden("""
        run trip
        └── step book
        idempotency hit trip → original_run run trip
    """)
    assert spans["idempotency hit trip"].attributes["flowcore.idempotency.outcome"] == "adopted"


class Down(MemoryStore):
    def claim(self, claim: Any) -> Any:
        raise StoreUnavailable


def test_a_store_that_is_down_fails_the_request(make_driver: MakeDriver, spans: Spans) -> None:
    registry = CollectorRegistry()
    driver = make_driver(TracingHook(spans.provider), PrometheusHook(registry), store=Down())
    with pytest.raises(StoreUnavailable):
        driver.run(trip().wf, idempotency_key="T-1")
    assert spans.tree() == ("run trip ERROR flowcore.errors.StoreUnavailable ! flowcore.errors.StoreUnavailable")
    assert (spans["run trip"].attributes or {})["flowcore.run.id"]
    assert registry.get_sample_value("flowcore_runs_active", {"workflow": "trip"}) == 0
    refused = {"workflow": "trip", "error_type": "flowcore.errors.StoreUnavailable"}
    assert registry.get_sample_value("flowcore_runs_refused_total", refused) == 1


class Unlisted(MemoryStore):
    """A store that can neither count nor list its runs at first."""

    down = True

    def counts(self) -> Any:
        self._fail()
        return super().counts()

    def list_resumable(self, *arguments: Any, **options: Any) -> Any:
        self._fail()
        return super().list_resumable(*arguments, **options)

    def _fail(self) -> None:
        if self.down:
            raise StoreUnavailable("down")


def test_surveys_and_rounds_of_recovery_are_operations_of_the_store(
    make_driver: MakeDriver, registry: CollectorRegistry
) -> None:
    store = Unlisted()
    driver = make_driver(PrometheusHook(registry), store=store, workflows=[trip().wf])

    def recover() -> None:
        runs = driver.engine.recover()
        assert (runs if driver.kind == "threads" else asyncio.run(runs)) == []

    def calls(outcome: str) -> list[float | None]:
        labels = {"store": "memory", "outcome": outcome}
        name = "flowcore_store_operation_duration_seconds_count"
        return [registry.get_sample_value(name, {**labels, "operation": verb}) for verb in ("counts", "list_resumable")]

    with pytest.raises(StoreUnavailable):
        recover()
    last = "flowcore_recovery_last_round_timestamp_seconds"
    assert calls("failure") == [1, 1]
    assert registry.get_sample_value(last) is None  # that the runs could not be counted is no success either
    store.down = False
    recover()
    assert calls("failure") == calls("success") == [1, 1]
    assert (registry.get_sample_value(last) or 0) > 0


@pytest.mark.parametrize("name", ["threads", "asyncio"])
def test_a_recovery_that_another_process_overtakes_leaves_no_error(
    name: str, spans: Spans, registry: CollectorRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wf, hooks = trip().wf, [TracingHook(spans.provider), PrometheusHook(registry), LoggingHook()]
    wf.sleep("nap", 0.01, depends_on="pay")
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    waiting = Engine(store=store).run(wf, idempotency_key="T-1", until="waiting")
    driver = Driver(name, store=store, hooks=hooks)
    late = driver.engine._resumed(wf, "T-1", waiting.id)  # found, and then overtaken
    assert Engine(store=store).run(wf, idempotency_key="T-1", wait=10).status == "success"
    with caplog.at_level(logging.INFO):
        if driver.kind == "threads":
            driver.engine._recovered_driver(late).run_here(None)
        else:
            asyncio.run(driver.engine._drive_recovered(late))
    span = spans["run trip"]
    assert span.status.status_code is StatusCode.UNSET
    assert not span.events
    attributes = span.attributes or {}
    assert (attributes["flowcore.run.id"], attributes["error.type"]) == (waiting.id, "flowcore.errors.LeaseLost")
    refused = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    assert not refused.get("flowcore_runs_refused_total")
    (line,) = [record for record in caplog.records if record.name == "flowcore.run"]
    assert line.levelno == logging.INFO
    assert "not resumed" in line.getMessage()


def test_a_submitted_run_that_cannot_be_recorded_is_counted_as_refused(
    make_driver: MakeDriver, spans: Spans, registry: CollectorRegistry, tmp_path: Path
) -> None:
    class Down(SQLiteStore):
        def claim(self, claim: Any) -> Any:
            raise StoreUnavailable("down")

    hooks = TracingHook(spans.provider), PrometheusHook(registry)
    driver = make_driver(*hooks, store=Down(tmp_path / "runs.db"), lease=0.05)
    with pytest.raises(StoreUnavailable):
        driver.submit(trip().wf, idempotency_key="T-1")
    refused = {"workflow": "trip", "error_type": "flowcore.errors.StoreUnavailable"}
    assert registry.get_sample_value("flowcore_runs_refused_total", refused) == 1
    assert registry.get_sample_value("flowcore_runs_queued", {"workflow": "trip"}) == 0
    assert registry.get_sample_value("flowcore_hook_errors_total", {"hook": "TracingHook"}) == 0
    assert spans.tree() == "submit trip PRODUCER"


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_a_deploy_counts_no_run_as_bad_or_refused_or_taken_over(
    kind: str, registry: CollectorRegistry, tmp_path: Path
) -> None:
    trip, approval, begun = Workflow("trip"), Workflow("approval"), threading.Event()

    @trip.step
    def book(ctx: Context) -> None:
        begun.set()
        while not ctx.cancelled:
            time.sleep(0.001)

    trip.add_step("pay", lambda ctx: None, depends_on=book)
    approval.wait("yes")
    store, hook = SQLiteStore(tmp_path / "runs.db", durability="normal"), PrometheusHook(registry)
    old = Driver(kind, store=store, hooks=[hook], workflows=[trip, approval])

    async def stop() -> list[object]:
        waiting = asyncio.create_task(old.engine.run(approval, idempotency_key="A-1"))
        running = asyncio.create_task(old.engine.run(trip, idempotency_key="T-1"))
        await asyncio.to_thread(begun.wait, 10)
        while store.find("A-1").status != "waiting":  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.001)
        await old.engine.aclose(timeout=0)
        return list(await asyncio.gather(waiting, running, return_exceptions=True))

    if kind == "asyncio":
        ended = asyncio.run(stop())
    else:
        futures = [old.engine.submit(wf, idempotency_key=key) for wf, key in ((approval, "A-1"), (trip, "T-1"))]
        begun.wait(10)
        assert futures[0].waiting(10) is not None
        old.engine.close(timeout=0)
        ended = [future.exception() for future in futures]
    assert [type(error) for error in ended] == [RunParked, RunParked]

    def counted(*metrics: str) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name in metrics and sample.value
        }

    metrics = ("flowcore_runs_total", "flowcore_runs_refused_total", "flowcore_run_recoveries_total")
    assert counted(*metrics, "flowcore_run_last_end_timestamp_seconds") == {}
    new = Driver(kind, store=store, hooks=[hook], workflows=[trip])
    assert new.run(trip, idempotency_key="T-1").status == "success"
    new.close()
    assert counted(*metrics) == {("flowcore_runs_total", "trip", "success"): 1}


def test_a_late_completion_in_an_async_engine_is_counted(registry: CollectorRegistry, spans: Spans) -> None:
    wf = Workflow("trip")
    go_on, reported = threading.Event(), threading.Event()
    wf.add_step("book", lambda ctx: go_on.wait(10), timeout=0.02)

    def tell(event: Event) -> None:
        if isinstance(event, StepCompletedLate):
            reported.set()

    async def main() -> None:
        engine = AsyncEngine(hooks=[TracingHook(spans.provider), PrometheusHook(registry), tell])
        with pytest.raises(TimeoutError):
            await engine.run(wf)
        go_on.set()
        assert await asyncio.to_thread(reported.wait, 10)

    asyncio.run(main())
    labels = {"workflow": "trip", "step": "book"}
    assert registry.get_sample_value("flowcore_step_late_completions_total", labels) == 1
