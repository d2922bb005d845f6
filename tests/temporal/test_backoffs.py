"""Backoffs that are longer than `park_after=`, on Temporal: they are timers of the workflow, and take no place of a worker."""

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from flowcore import AsyncEngine, Backoff, Context, DefinitionError, Retry, RetryAfter, RunTimeout, Status, Workflow
from flowcore.events import AttemptStarted, BackoffStarted, Event, StepFinished, StepStarted
from flowcore.stores import SQLiteStore
from flowcore.temporal import temporal_worker
from flowcore.temporal.flow import FlowcoreWorkflow

from .conftest import LEASE, PATIENCE, Temporal, eventually, is_over, until

DAY = 86_400.0
SHORT = 0.3
"""seconds of a backoff that a test waits for, and that leaves its activity where park_after=0.1"""


def payment(effects: list[str], wait: float = DAY, *, works_at: int = 3, **options: Any) -> Workflow:
    """quote, then charge, which raises RetryAfter until its attempt number `works_at`."""
    wf = Workflow("payment")
    quote = wf.add_step("quote", lambda ctx: effects.append("quote"))
    quote.compensate(lambda ctx: effects.append("-quote"))

    def charge(ctx: Any) -> Any:
        effects.append(f"charge {ctx.attempt} {ctx.step_key}")
        ctx["tried"] = ctx.attempt
        if ctx.attempt < works_at:
            raise RetryAfter(wait)
        return ctx.attempt

    step = wf.add_step("charge", charge, depends_on=quote, retry=4, **options)
    step.compensate(lambda ctx: effects.append("-charge"))
    return wf


def of_charge(events: list[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind) and getattr(event, "step", "") == "charge"]


def reported(events: list[Event]) -> list[Any]:
    """What hooks get of the step that waits, without times."""
    return [
        [event.attempt for event in of_charge(events, AttemptStarted)],
        [(event.attempt, event.delay, event.reason) for event in of_charge(events, BackoffStarted)],
        [(event.outcome, event.attempts, type(event.error)) for event in of_charge(events, StepFinished)],
        len(of_charge(events, StepStarted)),
    ]


def test_attempts_continue_after_long_backoffs_as_on_the_other_stores(temporal: Temporal, tmp_path: Path) -> None:
    found = list[Any]()

    async def here(wf: Workflow, events: list[Event]) -> Any:
        store = SQLiteStore(tmp_path / "runs.db")
        async with AsyncEngine(
            store=store, hooks=[events.append], park_after=0.1, workflows=[wf], recover_every=0.05
        ) as engine:
            return await engine.submit(wf, idempotency_key="k")

    async def there(wf: Workflow, events: list[Event]) -> Any:
        async with temporal.open(wf, worker_hooks=[events.append], park_after=0.1) as engine:
            run = await engine.submit(wf, idempotency_key="k")
            handle = engine.store._client.get_workflow_handle(engine.store.workflow_id("k"))
            replayer = Replayer(workflows=[FlowcoreWorkflow], workflow_runner=UnsandboxedWorkflowRunner())
            await replayer.replay_workflow(await handle.fetch_history())
            return run

    for drive in (here, there):
        effects, events = list[str](), list[Event]()
        wf = payment(effects, SHORT)
        run = asyncio.run(here(wf, events)) if drive is here else temporal.run(lambda w=wf, e=events: there(w, e))  # type: ignore[misc]
        report = run.steps["charge"]
        assert [effect.rpartition(" ")[0] for effect in effects[1:]] == ["charge 1", "charge 2", "charge 3"]
        assert len({effect.rpartition(" ")[2] for effect in effects[1:]}) == 1  # the step key is the same
        moments = [moment for times in report.attempt_times for moment in times]
        assert moments == sorted(moments)
        known = len(moments), report.errors, report.retry_at, reported(events)
        found.append((run["charge"], report.attempts, report.failed, *known))
    assert found[1] == found[0]
    assert found[1][1:4] == (3, 2, 6)


@asynccontextmanager
async def narrow(temporal: Temporal, *workflows: Workflow, **options: Any) -> AsyncIterator[Any]:
    """An engine, and a worker that has room for one step."""
    engine = await temporal.engine(**options)
    client = engine.store._client
    async with temporal_worker(client, task_queue=temporal.queue, workflows=workflows, lease=LEASE, max_workers=1):
        yield engine


def test_a_long_backoff_takes_no_place_of_a_worker_and_its_run_waits(temporal: Temporal) -> None:
    effects = list[str]()
    wf, other = payment(effects), Workflow("other")
    other.add_step("step", lambda ctx: "done")

    async def main() -> None:
        async with narrow(temporal, wf, other, park_after=0.1) as engine:
            future = engine.submit(wf, idempotency_key="k", check=False)
            waiting = await future.waiting()
            assert (waiting.status, waiting.steps["charge"].status) == (Status.WAITING, Status.PENDING)
            assert (await engine.run(other))["step"] == "done"
            record = await engine.find("k")
            assert (record.status, record.waiting_for) == (Status.WAITING, ("charge",))
            report = record.steps["charge"]
            assert (report.attempts, report.failed, report.errors[0][0]) == (1, 1, "RetryAfter")
            assert report.retry_at == pytest.approx(record.started + DAY, abs=120)
            await engine.cancel(key="k")
            run = await future
            assert (run.status, run.undone) == (Status.COMPENSATED, ("quote",))
            report = run.steps["charge"]
            assert (report.status, report.failed) == (Status.FAILURE, 1)
        assert [effect.split()[0] for effect in effects] == ["quote", "charge", "-quote"]

    temporal.run(main)


def test_a_step_fails_after_its_last_attempt_whichever_owner_made_the_others(temporal: Temporal) -> None:
    wf = Workflow("failing")

    @wf.step(retry=Retry(3, Backoff.fixed(SHORT)), when=lambda ctx: not ctx.get("asked"))
    async def charge(ctx: Any) -> None:
        ctx["asked"] = True
        raise ConnectionError(str(ctx.attempt))

    async def main() -> None:
        async with temporal.open(wf, park_after=0.1) as engine:
            run = await engine.run(wf, idempotency_key="k", check=False)
        assert (run.status, run.steps["charge"].attempts) == (Status.FAILURE, 3)
        assert [message for _, message in run.steps["charge"].errors] == ["1", "2", "3"]
        assert isinstance(run.error, ConnectionError)

    temporal.run(main)


def test_a_worker_that_dies_in_an_attempt_after_a_long_backoff_is_taken_over_in_that_attempt(
    temporal: Temporal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    killed: Any = importlib.import_module("killed")
    log = tmp_path / "after.log"
    events = list[Event]()

    async def main() -> None:
        await asyncio.to_thread(temporal.worker_process, Path(killed.__file__))
        engine = await temporal.engine(park_after=0.1)
        future = engine.submit(killed.after_backoff(), {"folder": str(tmp_path), "name": "after"}, idempotency_key="k")
        await asyncio.to_thread(eventually, lambda: log.exists() and "stuck" in log.read_text())
        temporal.kill_workers()
        (tmp_path / "go").touch()
        async with temporal.open(killed.after_backoff(), worker_hooks=[events.append]):
            report = (await future).steps["step"]
        assert (report.attempts, report.failed, report.errors) == (2, 1, (("ValueError", "attempt 1"),))

    temporal.run(main)
    entries = [line.split() for line in log.read_text().splitlines()]
    assert [entry[0] for entry in entries] == ["fails", "stuck", "stuck"]
    assert len({entry[3] for entry in entries}) == 1  # the step key is the same
    assert int(entries[1][2]) < int(entries[2][2])  # the fence has risen
    assert [event.attempt for event in events if isinstance(event, AttemptStarted)] == [2]


def test_another_worker_makes_the_next_attempt(temporal: Temporal) -> None:
    effects = list[str]()
    wf = payment(effects, 2.0, works_at=2)

    async def main() -> None:
        async with temporal.open(wf, park_after=0.1) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await future.waiting()
        async with temporal.open(wf):
            assert (await future).steps["charge"].attempts == 2

    temporal.run(main)


def test_a_step_that_waits_for_its_next_attempt_has_failed_when_another_fails(temporal: Temporal) -> None:
    effects, fails = list[str](), threading.Event()
    wf = payment(effects)

    @wf.step
    def pack(ctx: Any) -> None:
        assert fails.wait(PATIENCE)
        raise ValueError("no boxes")

    async def main() -> None:
        async with temporal.open(wf, park_after=0.1) as engine:
            future = engine.submit(wf, idempotency_key="k", check=False)

            async def is_aside() -> bool:
                record = await engine.find("k")
                return record is not None and "charge" in record.steps and record.steps["charge"].failed == 1

            await until(is_aside)
            fails.set()
            run = await future
        assert (run.status, run.failed_step, run.undone) == (Status.COMPENSATED, "pack", ("quote",))
        assert (run.steps["charge"].status, run.steps["charge"].attempts) == (Status.FAILURE, 1)
        assert isinstance(run.error, ValueError)
        assert any("'charge' failed too: RetryAfter" in note for note in run.error.__notes__)

    temporal.run(main)


def test_long_backoffs_beside_each_other_and_a_wait_end_each_at_its_own_time(temporal: Temporal) -> None:
    wf = Workflow("beside", max_parallel=1)
    order = list[str]()

    def flaky(ctx: Any) -> int:
        order.append(f"{ctx.step} {ctx.attempt}")
        if ctx.attempt == 1:
            raise RetryAfter({"slow": 1.5, "quick": 0.3}[ctx.step])
        return int(ctx.attempt)

    for name in ("slow", "quick"):
        wf.add_step(name, flaky, retry=2)
    wf.wait("approved")
    wf.add_step("after", lambda ctx: (ctx["slow"], ctx["approved"]), depends_on=["slow", "approved"])

    async def main() -> None:
        async with temporal.open(wf, park_after=0.1) as engine:
            future = engine.submit(wf, idempotency_key="k")
            paused = await future.waiting()
            assert paused.status is Status.WAITING
            assert await engine.send("k", "approved", "yes")
            assert (await future)["after"] == (2, "yes")

    temporal.run(main)
    assert order == ["slow 1", "quick 1", "quick 2", "slow 2"]


def test_a_deadline_ends_a_run_whose_next_attempt_would_come_too_late(temporal: Temporal) -> None:
    """Other steps take the time that the backoff had when it began."""
    wf = Workflow("late", deadline=1.5, max_parallel=1)

    @wf.step(retry=3, undo="attempted")
    def charge(ctx: Any) -> None:
        raise RetryAfter(1.0)

    undone = list[str]()
    charge.compensate(lambda ctx: undone.append(ctx.step))
    wf.add_step("slow", lambda ctx: asyncio.sleep(PATIENCE))

    async def main() -> None:
        async with temporal.open(wf, park_after=0.1) as engine:
            run = await engine.run(wf, check=False)
            assert (run.status, type(run.error)) == (Status.COMPENSATED, RunTimeout)
            assert (run.steps["charge"].status, run.steps["charge"].attempts) == (Status.FAILURE, 1)

    temporal.run(main)
    assert undone == ["charge"]


def test_a_run_in_a_long_backoff_outlives_its_engine(temporal: Temporal) -> None:
    effects = list[str]()
    wf = payment(effects, SHORT, works_at=3)

    async def main() -> None:
        async with temporal.open(wf, park_after=0.1) as engine:
            future = engine.submit(wf, idempotency_key="k", check=False)
            await future.waiting()
            await engine.close()
            other = await temporal.engine()
            await until(lambda: is_over(other, "k"))
            run = await other.run(wf, idempotency_key="k")
            assert (run["charge"], run.steps["charge"].failed, run.replayed) == (3, 2, True)

    temporal.run(main)


def test_a_backoff_stays_in_its_activity_if_the_engine_wants_that(temporal: Temporal) -> None:
    events = list[Event]()
    wf = payment([], SHORT, works_at=2)

    async def main() -> None:
        async with temporal.open(wf, worker_hooks=[events.append], park_after=float("inf")) as engine:
            assert (await engine.run(wf))["charge"] == 2

    temporal.run(main)
    assert [event.outcome for event in of_charge(events, StepFinished)] == ["success"]


def test_park_after_is_a_number_of_seconds(temporal: Temporal) -> None:
    async def main() -> None:
        with pytest.raises(DefinitionError, match="park_after="):
            await temporal.engine(park_after=-1)

    temporal.run(main)


def test_a_worker_that_stops_while_an_undo_waits_for_its_next_attempt_leaves_the_undo_to_another(
    temporal: Temporal,
) -> None:
    failed, undone = threading.Event(), list[int]()
    wf = Workflow("stubborn")

    def undo(ctx: Context) -> None:
        undone.append(ctx.attempt)
        if not failed.is_set():
            failed.set()
            raise ConnectionError("away")

    def fails(ctx: Context) -> None:
        raise ValueError("no")

    wf.add_step("book", lambda ctx: "seat").compensate(retry=Retry(2, Backoff.fixed(PATIENCE)))(undo)
    wf.add_step("pay", fails, depends_on="book")

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k", check=False)
            assert await asyncio.to_thread(failed.wait, PATIENCE)
        async with temporal.open(wf):
            assert (await future).status == "compensated"

    temporal.run(main)
    assert undone == [1, 1]
