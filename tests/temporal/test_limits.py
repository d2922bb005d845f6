"""What a run on Temporal can carry, and what happens at its limits: of size, of time, and of a worker's event loop."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowcore import CompensationFailed, DefinitionError, NotSerializable, RunTimeout, SendRefused, Status, Workflow
from flowcore.run import StepReport
from flowcore.stores.base import RunRecord

from .conftest import PATIENCE, Temporal, connect, until


class NoNotes(Exception):
    """Its notes cannot be added again."""

    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


def raised(kind: str) -> Exception:
    if kind == "surrogate":
        return ValueError("bad \ud800 text")
    if kind == "message":
        return ValueError("y" * 5_000_000)
    if kind == "attribute":
        error = ValueError("long")
        error.__dict__["body"] = ["z" * 1_000_000] * 5
        return error
    noted = NoNotes("odd") if kind == "refused note" else ValueError("long")
    BaseException.add_note(noted, "n" if kind == "refused note" else "n" * 3_000_000)
    return noted


def test_any_error_can_be_sent(temporal: Temporal) -> None:
    wf = Workflow("fails")
    first = wf.add_step("first", lambda ctx: 1)
    first.compensate(lambda ctx: None)

    @wf.step(depends_on=first)
    def fails(ctx: Any) -> None:
        raise raised(ctx["kind"])

    async def main() -> None:
        async with temporal.open(wf) as engine:
            kinds = ["surrogate", "message", "attribute", "note", "refused note"]
            runs = await asyncio.gather(*(engine.run(wf, {"kind": kind}, check=False) for kind in kinds))
        assert {run.status for run in runs} == {Status.COMPENSATED}
        assert [run.steps["fails"].attempts for run in runs] == [1] * 5
        errors = [run.error for run in runs]
        assert [type(error) for error in errors] == [ValueError] * 4 + [NoNotes]
        assert str(errors[0]) == "bad \\ud800 text"
        assert str(errors[1]) == "y" * 1024 + "…"
        assert vars(errors[2])["body"] == ["z" * 1024 + "…"] * 5
        assert errors[3].__notes__[0] == "n" * 1024 + "…"
        assert errors[4].__notes__[0] == "n"

    temporal.run(main)


def test_the_outcome_of_hundreds_of_failed_undos_can_be_sent() -> None:
    from flowcore._wire import unpack_error
    from flowcore.temporal.wire import TEXTS, decode_outcome, encode_outcome

    failures: dict[str, Exception] = {f"s{n}": ValueError("é" * 900) for n in range(400)}
    record = RunRecord("k", "run", "order", None, "graph", status=Status.COMPENSATION_FAILED, held=True)
    record.steps = {name: StepReport(Status.SUCCESS, 1, undo_error=error) for name, error in failures.items()}
    outcome = encode_outcome(record, CompensationFailed("not undone", failures))
    assert len(json.dumps(outcome)) < 2 * 1024 * 1024
    assert outcome["raised"] is not None
    raised = unpack_error(outcome["raised"])
    assert isinstance(raised, CompensationFailed)
    assert raised.failures.keys() == failures.keys()
    decoded = decode_outcome(outcome["fields"], outcome["errors"], TEXTS)
    assert str(decoded.steps["s399"].undo_error) == "ValueError: " + "é" * 100


def test_results_that_are_too_large_together_fail_their_step_and_the_run_is_undone(temporal: Temporal) -> None:
    chain, fan, undone = Workflow("chain"), Workflow("fan"), list[str]()
    for n in range(6):
        step = chain.add_step(f"s{n}", lambda ctx: "x" * 500_000, depends_on=f"s{n - 1}" if n else ())
        step.compensate(lambda ctx: undone.append(ctx.step))
    sources = [fan.add_step(f"s{n}", lambda ctx: "x" * 500_000) for n in range(5)]
    for source in sources:
        source.compensate(lambda ctx: undone.append("fan"))
    fan.add_step("join", lambda ctx: 1, depends_on=sources)

    async def main() -> None:
        async with temporal.open(chain, fan) as engine:
            with pytest.raises(NotSerializable, match=r"'s3' .* take 500,\d+ bytes, .* can carry 1,900,000") as caught:
                await engine.run(chain)
            assert "Store the result elsewhere, and return a reference." in str(caught.value)
            assert undone == ["s3", "s2", "s1", "s0"]
            run = await engine.run(fan, check=False)
            assert isinstance(run.error, NotSerializable)
            assert undone.count("fan") == 5
            values = {f"v{n}": "x" * 900_000 for n in range(3)}
            with pytest.raises(NotSerializable, match=r"its initial values take 2,70\d,\d+ bytes"):
                await engine.run(chain, values)

    temporal.run(main)


def test_a_value_that_a_run_cannot_carry_is_refused_when_it_is_sent(temporal: Temporal) -> None:
    wf = Workflow("waits")
    waits = [wf.wait("one"), wf.wait("two")]
    wf.add_step("after", lambda ctx: ctx["two"], depends_on=waits)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await future.waiting()
            assert await engine.send("k", "one", "x" * 700_000)
            with pytest.raises(SendRefused, match=r"^the value takes 700,"):
                await engine.send("k", "two", "x" * 700_000)
            assert await engine.send("k", "two", "small")
            assert (await future)["after"] == "small"

    temporal.run(main)


def test_large_results_and_values_reach_every_step_that_reads_them(temporal: Temporal) -> None:
    """The inputs of steps that begin together have no room for them all."""
    wf = Workflow("wide")
    large = wf.add_step("large", lambda ctx: "x" * 700_000)
    small = wf.add_step("small", lambda ctx: 1, depends_on=large)
    pool = ThreadPoolExecutor(1)

    def lengths(ctx: Any) -> list[int]:
        return [len(ctx["large"]), len(ctx["value"]), ctx["small"]]

    async def lengths_too(ctx: Any) -> list[int]:
        return lengths(ctx)

    for n in range(3):
        wf.add_step(f"sync {n}", lengths, depends_on=small)
        wf.add_step(f"async {n}", lengths_too, depends_on=small)
    wf.add_step("elsewhere", lengths, depends_on=small, executor=pool)
    wf.add_step("asked", lengths, depends_on=small, when=lambda ctx: lengths(ctx) != [])

    async def main() -> None:
        async with temporal.open(wf) as engine:
            run = await engine.run(wf, {"value": "x" * 700_000})
        found = {name: run[name] for name in run.steps if name not in {"large", "small"}}
        assert list(found.values()) == [[700_000, 700_000, 1]] * 8

    temporal.run(main)
    pool.shutdown()


def test_a_step_in_an_executor_reads_the_results_of_all_its_ancestors(temporal: Temporal) -> None:
    wf, pool = Workflow("far"), ThreadPoolExecutor(1)
    first = wf.add_step("first", lambda ctx: "a")
    second = wf.add_step("second", lambda ctx: "b", depends_on=first)
    wf.add_step("third", lambda ctx: ctx["first"] + ctx["second"], depends_on=second, executor=pool)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            assert (await engine.run(wf))["third"] == "ab"

    temporal.run(main)
    pool.shutdown()


@pytest.mark.parametrize(("workflow", "step"), [("w" * 1001, "s"), ("w", "s" * 999), ("w", "é" * 498)])
def test_names_that_are_too_long_for_temporal_are_refused(temporal: Temporal, workflow: str, step: str) -> None:
    wf = Workflow(workflow)
    wf.add_step(step, lambda ctx: 1).compensate(lambda ctx: None)

    async def main() -> None:
        engine = await temporal.engine()
        with pytest.raises(DefinitionError, match="too long for Temporal, which allows 1,000 bytes"):
            await engine.run(wf)

    temporal.run(main)


def test_a_caller_that_is_cancelled_early_leaves_no_run_behind(temporal: Temporal) -> None:
    """Its claim may be on the wire."""
    wf, gate = Workflow("early"), threading.Event()
    first = wf.add_step("first", lambda ctx: gate.wait(PATIENCE))
    first.compensate(lambda ctx: None)
    wf.add_step("second", lambda ctx: 1, depends_on=first)

    async def main() -> None:
        statuses = set[Status]()
        async with temporal.open(wf) as engine:
            gate.set()
            for turns in range(1, 8):
                task = asyncio.create_task(engine.run(wf, idempotency_key=f"k{turns}"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                record = await engine.find(f"k{turns}")
                statuses |= set[Status]() if record is None else {record.status}
        assert statuses
        assert statuses <= {Status.COMPENSATED, Status.FAILURE}  # a failure: nothing had begun

    temporal.run(main)


def test_no_step_begins_after_the_deadline_while_all_workers_are_busy(temporal: Temporal) -> None:
    from flowcore.temporal import temporal_worker

    busy, late, gate, done = Workflow("busy"), Workflow("late"), asyncio.Event(), list[str]()

    @busy.step
    async def hold(ctx: Any) -> None:
        done.append("busy")
        await gate.wait()

    late.add_step("step", lambda ctx: done.append("late")).compensate(lambda ctx: done.append("undo"))

    async def main() -> None:
        engine = await temporal.engine()
        client = await connect(temporal.server.address)
        about = {"task_queue": temporal.queue, "workflows": [busy, late], "lease": 2, "max_workers": 1}
        async with temporal_worker(client, **about):
            holding = engine.submit(busy)
            await until(lambda: _is(done == ["busy"]))
            run = await engine.run(late, deadline=0.3, check=False)
            assert isinstance(run.error, RunTimeout)
            assert run.steps["step"].attempts == 0
            gate.set()
            await holding
        assert done == ["busy"]

    temporal.run(main)


def test_a_cancellation_reaches_a_slow_when(temporal: Temporal) -> None:
    wf, asked = Workflow("slow"), asyncio.Event()
    first = wf.add_step("first", lambda ctx: 1)
    first.compensate(lambda ctx: None)

    async def when(ctx: Any) -> bool:
        asked.set()
        await asyncio.sleep(PATIENCE)
        return True

    wf.add_step("step", lambda ctx: 1, depends_on=first, when=when)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k", check=False)
            await asked.wait()
            assert await engine.cancel(key="k")
            assert (await future).status is Status.COMPENSATED
            handle = engine.store._client.get_workflow_handle(f"{temporal.queue}:k")
            limits = [
                event.activity_task_scheduled_event_attributes.start_to_close_timeout.ToTimedelta().days
                async for event in handle.fetch_history_events()
                if event.HasField("activity_task_scheduled_event_attributes")
            ]
        assert min(limits) > 1000  # a when= has no limit but the deadline of its run

    temporal.run(main)


def test_a_blocked_event_loop_costs_no_step_its_lease(temporal: Temporal) -> None:
    wf, done, begun = Workflow("blocked"), list[str](), asyncio.Event()

    @wf.step
    async def waits(ctx: Any) -> None:
        done.append("waits")
        await asyncio.sleep(0.1)
        begun.set()
        await asyncio.sleep(0.1)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf)
            await begun.wait()
            time.sleep(3.5)  # noqa: ASYNC251 - nearly two leases
            run = await future
            assert (run.steps["waits"].attempts, done) == (1, ["waits"])

    temporal.run(main)


def test_a_deploy_may_change_the_number_of_attempts_while_runs_are_in_flight(temporal: Temporal) -> None:
    from flowcore.temporal import temporal_worker

    def version(retry: int, other: int) -> Workflow:
        wf = Workflow("order")
        one = wf.add_step("one", lambda ctx: 1, retry=retry)
        two = wf.add_step("two", lambda ctx: 1, retry=other)
        wf.wait("paid", depends_on=[one, two])
        return wf

    async def main() -> None:
        old, new = version(3, 1), version(1, 3)
        async with temporal.open(old) as engine:
            future = engine.submit(old, idempotency_key="k")
            await future.waiting()
        client = await connect(temporal.server.address)
        async with temporal_worker(client, task_queue=temporal.queue, workflows=[new], lease=2):
            assert await engine.send("k", "paid", 7)
            assert (await future)["paid"] == 7

    temporal.run(main)


async def _is(holds: bool) -> bool:
    return holds
