"""What flowcore does not do, and what it leaves to its user."""

import asyncio
import inspect
import threading

import pytest

from flowcore import AsyncEngine, Context, Engine, Status, StepCancelled, Workflow
from tests.core.conftest import Drive, Gate, Ledger


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
def test_these_are_all_the_verbs_of_an_engine(engine: type) -> None:
    verbs = {name for name, _ in inspect.getmembers(engine, inspect.isfunction) if not name.startswith("_")}
    assert verbs == {
        "run",
        "submit",
        "map",
        "cancel",
        "send",
        "find",
        "get",
        "list",
        "recover",
        "schedule",
        "schedules",
        "close" if engine is Engine else "aclose",
    }


def test_these_are_all_the_verbs_of_a_workflow() -> None:
    verbs = {name for name, _ in inspect.getmembers(Workflow, inspect.isfunction) if not name.startswith("_")}
    looking = {"layers", "check", "to_mermaid", "to_dot", "to_svg", "plan", "freeze"}
    assert verbs == {"step", "add_step", "wait", "sleep", "include", "run"} | looking


def test_the_steps_of_a_run_are_those_of_its_definition(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("fixed")
    wf.add_step("a", lambda ctx: wf.add_step("b", lambda ctx: 1))
    assert "cannot add step 'b'" in str(drive(wf, check=False).error)


def test_an_attempt_that_failed_may_have_had_its_effect(drive: Drive) -> None:
    charges: list[str] = []

    def charge(ctx: Context) -> None:
        charges.append(ctx.step_key)
        if ctx.attempt == 1:
            raise ConnectionError("the answer was lost")

    wf = Workflow("charge")
    wf.add_step("charge", charge, retry=2)
    drive(wf)
    assert len(charges) == 2
    assert len(set(charges)) == 1  # a service that takes idempotency keys can tell


def test_a_step_on_the_callers_own_thread_cannot_be_given_up() -> None:
    wf, heard, ended = Workflow("own"), Gate(), list[str]()
    with Engine(grace=0) as engine:

        def deaf(ctx: Context) -> None:
            assert engine.cancel(ctx.run_id)
            threading.Timer(0.02, heard.set).start()  # long after its grace
            heard.wait()
            ended.append(ctx.step)

        wf.add_step("deaf", deaf)
        with pytest.raises(StepCancelled):
            engine.run(wf)
        assert ended == ["deaf"]


def test_a_step_in_the_callers_own_task_cannot_be_given_up() -> None:
    wf, ended = Workflow("own"), list[str]()

    async def main() -> None:
        async with AsyncEngine(grace=0) as engine:

            async def deaf(ctx: Context) -> None:
                assert engine.cancel(ctx.run_id)
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.sleep(60)
                await asyncio.sleep(0.02)  # long after its grace
                ended.append(ctx.step)

            wf.add_step("deaf", deaf)
            with pytest.raises(StepCancelled):
                await engine.run(wf)
            assert ended == ["deaf"]

    asyncio.run(main())


def test_no_undo_is_made_for_a_step_that_has_none(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("none")
    ledger.add(wf, "mail", undoable=False)
    ledger.add(wf, "fails", depends_on="mail", raises=ValueError("too late"))
    run = drive(wf, check=False)
    assert (run.status, ledger) == (Status.FAILURE, ["mail", "fails"])


def test_a_value_changed_in_place_is_the_same_object_for_all(drive: Drive) -> None:
    values = {"seats": ["7A"]}
    wf = Workflow("live")
    wf.add_step("a", lambda ctx: ctx["seats"].append("7B"))
    wf.add_step("b", lambda ctx: ctx["seats"], depends_on="a")
    assert drive(wf, values)["b"] is values["seats"]
    assert values == {"seats": ["7A", "7B"]}
