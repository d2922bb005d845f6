"""Steps that wait for a value or for time, on Temporal: no worker holds anything for them."""

import asyncio
import threading
from typing import Any, cast

import pytest

from flowcore import (
    DefinitionError,
    NotSerializable,
    RunNotFound,
    SendRefused,
    Status,
    StepCancelled,
    StepTimeout,
    Workflow,
)

from .conftest import PATIENCE, Temporal


def approval(goes_on: threading.Event | None = None, **options: Any) -> Workflow:
    wf = Workflow("approval", **options)

    def act(ctx: Any) -> Any:
        assert goes_on is None or goes_on.wait(PATIENCE)
        return ctx[ask], ctx[approved]

    ask = wf.add_step("ask", lambda ctx: "asked")
    ask.compensate(lambda ctx: None)
    approved = wf.wait("approved", depends_on=ask)
    wf.add_step("act", act, depends_on=["ask", approved])
    return wf


def test_a_value_that_is_sent_is_the_result_of_its_wait(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await future.recorded()
            for send in (engine.send, engine.store.send):
                with pytest.raises(DefinitionError, match="The id= of a value that is sent must be a string or None"):
                    await send("k", "approved", 1, id=cast("Any", 7))
            assert await engine.send("k", "approved", ("yes", 3), id="first")
            assert await engine.send(
                "k", next(step for step in wf.steps if step.name == "approved"), ("yes", 3), id="first"
            )
            run = await future
            assert run["act"] == ("asked", ("yes", 3))
            with pytest.raises(SendRefused, match="has ended"):
                await engine.send("k", "approved", "late")
            with pytest.raises(RunNotFound):
                await engine.send("unknown", "approved", 1)

    temporal.run(main)


def test_a_run_that_was_submitted_a_moment_ago_can_be_sent_to_found_and_cancelled(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            sent, found, cancelled = (engine.submit(wf, idempotency_key=key) for key in ("sent", "found", "cancelled"))
            assert await engine.send("sent", "approved", "yes")
            record = await engine.find("found")
            assert record is not None
            assert record.run_id == found.run_id
            assert await engine.cancel(key="cancelled")
            assert await engine.cancel(key="found")
            assert (await sent)["act"] == ("asked", "yes")
            for future in (found, cancelled):
                with pytest.raises(StepCancelled):
                    await future

    temporal.run(main)


def test_a_run_waits_without_any_worker_and_takes_only_what_it_waits_for(temporal: Temporal) -> None:
    goes_on = threading.Event()
    wf = approval(goes_on)

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k")
            await future.recorded()
            with pytest.raises(SendRefused, match="has no wait 'other'"):
                await engine.send("k", "other", 1)
            with pytest.raises(NotSerializable):
                await engine.send("k", "approved", object())
        async with temporal.open(wf):
            assert await engine.send("k", "approved", "yes")
            assert not await engine.send("k", "approved", "no")
            goes_on.set()
            assert (await future)["act"] == ("asked", "yes")

    temporal.run(main)


def test_a_wait_ends_with_its_time_and_a_sleep_with_its_own(temporal: Temporal) -> None:
    wf = Workflow("times")
    wf.sleep("nap", 0.2)
    wf.wait("never", timeout=0.2, default={"by": ("default",)})
    wf.add_step("after", lambda ctx: (ctx["nap"], ctx["never"]), depends_on=["nap", "never"])
    strict = Workflow("strict")
    strict.wait("never", timeout=0.1)

    async def main() -> None:
        async with temporal.open(wf, strict) as engine:
            assert (await engine.run(wf))["after"] == (None, {"by": ("default",)})
            with pytest.raises(StepTimeout, match="no value was sent to step 'never'"):
                await engine.run(strict)

    temporal.run(main)


def test_a_run_that_waits_can_be_cancelled(temporal: Temporal) -> None:
    wf = approval()

    async def main() -> None:
        async with temporal.open(wf) as engine:
            future = engine.submit(wf, idempotency_key="k", check=False)
            await future.recorded()
            await asyncio.sleep(0.3)
            assert await engine.cancel(key="k")
            assert (await future).status is Status.COMPENSATED

    temporal.run(main)


def test_what_was_sent_early_is_kept_when_the_run_is_resumed(temporal: Temporal) -> None:
    wf = Workflow("early", undo="never")
    tries: list[int] = []

    @wf.step
    def first(ctx: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")

    wf.wait("value", depends_on=first)

    async def main() -> None:
        engine = await temporal.engine()
        future = engine.submit(wf, idempotency_key="k", check=False)
        await future.recorded()
        sending = asyncio.create_task(engine.send("k", "value", 7))
        await asyncio.sleep(0.2)
        async with temporal.open(wf):
            await sending
            assert (await future).status is Status.INCOMPLETE
            with pytest.raises(SendRefused, match=r"^Run \w+ waits for a decision"):
                await engine.send("k", "value", 8)
            assert (await engine.run(wf, idempotency_key="k"))["value"] == 7

    temporal.run(main)
