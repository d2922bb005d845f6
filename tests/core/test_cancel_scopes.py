"""What a TaskGroup, asyncio.timeout or an anyio scope inside a step does to its task is the step's own business
(semantics 8)."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowcore import AsyncEngine, Context, Status, StepCancelled, Workflow
from flowcore.stores import SQLiteStore

from .conftest import Ledger, run_async

Block = Callable[[], Awaitable[object]]


async def fails() -> None:
    await asyncio.sleep(0)
    raise ConnectionError("503")


async def group_that_waits_for_its_children() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())


async def group_whose_body_is_interrupted() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())
        await asyncio.sleep(3600)


async def group_whose_body_raises_too() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fails())
        try:
            await asyncio.sleep(3600)
        finally:
            raise KeyError("body")


async def groups_in_each_other() -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(asyncio.sleep(3600))
        await group_that_waits_for_its_children()


async def group_in_a_timeout() -> None:
    async with asyncio.timeout(3600):
        await group_that_waits_for_its_children()


async def anyio_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(fails)
        await anyio.sleep(3600)


async def too_late() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.sleep(3600)


async def too_late_in_anyio() -> None:
    with anyio.fail_after(0.001):
        await anyio.sleep(3600)


async def awaits_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(3600))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task


RAISING = {
    group_that_waits_for_its_children: ExceptionGroup,
    group_whose_body_is_interrupted: ExceptionGroup,
    group_whose_body_raises_too: ExceptionGroup,
    groups_in_each_other: ExceptionGroup,
    group_in_a_timeout: ExceptionGroup,
    anyio_group: ExceptionGroup,
    too_late: TimeoutError,
    too_late_in_anyio: TimeoutError,
    awaits_a_cancelled_task: StepCancelled,
}
blocks = pytest.mark.parametrize(("block", "kind"), RAISING.items(), ids=[block.__name__ for block in RAISING])
places = pytest.mark.parametrize("place", ["alone", "observed", "timed", "beside another", "as an undo", "durable"])


def engine_and_workflow(
    place: str, step: Callable[[Context], Awaitable[object]], folder: Path
) -> tuple[AsyncEngine, Workflow]:
    """A step in the caller's own task, or, with a limit or beside another one, in a task of the engine's."""
    hooks = [lambda _: None] if place == "observed" else []
    wf = Workflow("w")
    if place == "as an undo":
        wf.add_step("done", lambda ctx: 1, compensate=step)
        wf.add_step("fails", lambda ctx: 1 / 0, depends_on="done")
    else:
        wf.add_step("step", step, retry=3, timeout=60 if place == "timed" else None)
    if place == "beside another":
        wf.add_step("other", lambda ctx: asyncio.sleep(0.01))
    return AsyncEngine(hooks=hooks, store=SQLiteStore(folder / "db") if place == "durable" else None), wf


@blocks
@places
def test_what_a_scope_inside_a_step_raises_is_a_failed_attempt(
    place: str, block: Block, kind: type, tmp_path: Path
) -> None:
    tries: list[int] = []

    async def step(ctx: Context) -> None:
        tries.append(ctx.attempt)
        await block()

    async def main() -> None:
        engine, wf = engine_and_workflow(place, step, tmp_path)
        run = await engine.run(wf, check=False)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        if place == "as an undo":
            assert run.status is Status.COMPENSATION_FAILED
            assert isinstance(run.steps["done"].undo_error, kind)
        else:
            assert run.status is Status.FAILURE
            assert isinstance(run.error, kind)
            assert tries == [1, 2, 3]
        await engine.aclose()

    run_async(main)


@blocks
@places
def test_a_step_that_catches_what_a_scope_inside_it_raises_succeeds(
    place: str, block: Block, kind: type, tmp_path: Path
) -> None:
    async def step(ctx: Context) -> str:
        caught = asyncio.CancelledError if kind is StepCancelled else kind
        with pytest.raises(caught):
            await block()
        await asyncio.sleep(0)
        return "default"

    async def main() -> None:
        engine, wf = engine_and_workflow(place, step, tmp_path)
        run = await engine.run(wf, check=False)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert run.status is (Status.COMPENSATED if place == "as an undo" else Status.SUCCESS)
        await engine.aclose()

    run_async(main)


@pytest.mark.parametrize("block", [group_that_waits_for_its_children, anyio_group], ids=["asyncio", "anyio"])
@pytest.mark.parametrize("swallows", [False, True], ids=["heeds", "swallows"])
def test_a_cancellation_from_outside_counts_after_a_group_inside_the_step_has_failed(
    block: Block, swallows: bool, ledger: Ledger
) -> None:
    async def step(ctx: Context) -> None:
        with pytest.raises(ExceptionGroup):
            await block()
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not swallows:
                raise

    async def main() -> None:
        engine, wf = AsyncEngine(), Workflow("w")
        ledger.add(wf, "done")
        wf.add_step("step", step, depends_on="done")
        task = asyncio.ensure_future(engine.run(wf))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ledger == ["done", "-done"]

    began = asyncio.Event()
    run_async(main)


def test_a_cancellation_from_outside_while_a_group_waits_cancels_the_run(ledger: Ledger) -> None:
    async def step(ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            began.set()

    async def main() -> None:
        engine, wf = AsyncEngine(), Workflow("w")
        ledger.add(wf, "done")
        wf.add_step("step", step, depends_on="done", retry=3)

        async def limited() -> None:
            async with asyncio.timeout(3600) as scope:
                task = asyncio.ensure_future(began.wait())
                task.add_done_callback(lambda _: scope.reschedule(0))
                await engine.run(wf)

        with pytest.raises(TimeoutError):
            await limited()
        assert ledger == ["done", "-done"]

    began = asyncio.Event()
    run_async(main)


def test_a_group_that_fails_in_a_nested_run_cancels_neither_run() -> None:
    async def main() -> None:
        engine, parent, child = AsyncEngine(), Workflow("parent"), Workflow("child")

        async def inner(ctx: Context) -> None:
            await group_that_waits_for_its_children()

        async def outer(ctx: Context) -> Any:
            with pytest.raises(ExceptionGroup):
                await engine.run(child)
            return "default"

        child.add_step("inner", inner)
        parent.add_step("outer", outer)
        assert (await engine.run(parent))["outer"] == "default"

    run_async(main)


def test_a_timeout_around_a_run_still_works_after_a_group_inside_it_has_failed() -> None:
    async def step(ctx: Context) -> None:
        with pytest.raises(ExceptionGroup):
            await group_that_waits_for_its_children()

    async def main() -> None:
        engine, wf = AsyncEngine(), Workflow("w")
        wf.add_step("step", step)

        async def limited() -> None:
            async with asyncio.timeout(0.01):
                await engine.run(wf)
                await asyncio.sleep(3600)

        with pytest.raises(TimeoutError):
            await limited()

    run_async(main)


def test_a_step_that_raises_cancellederror_after_a_group_has_failed_has_failed() -> None:
    async def step(ctx: Context) -> None:
        with pytest.raises(ExceptionGroup):
            await group_that_waits_for_its_children()
        raise asyncio.CancelledError

    async def main() -> None:
        engine, wf = AsyncEngine(), Workflow("w")
        wf.add_step("step", step)
        with pytest.raises(StepCancelled):
            await engine.run(wf)

    run_async(main)
