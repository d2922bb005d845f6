"""Runs whose steps are made elsewhere, as on Temporal: one driver has the run, another one each step with all its attempts.
Here both are in this process, and nothing is between them."""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from typing import Any, cast

import pytest

from flowcore import AsyncEngine, Backoff, CompensationFailed, Retry, RunTimeout, Status, Workflow
from flowcore._durable.claim import StoreClaims
from flowcore._engines.aio_driver import AsyncDriver
from flowcore._engines.workers import Workers
from flowcore._kernel import emit
from flowcore._kernel.effects import (
    REQUEST_WORKER,
    RESUME,
    SHIELD,
    WAIT,
    Ask,
    Call,
    Delegate,
    Program,
    Stop,
    WholeStep,
)
from flowcore._kernel.outcome import StepEnd
from flowcore._kernel.request import Request
from flowcore._kernel.run import execute, work_beside_main
from flowcore._kernel.run_state import RunState
from flowcore._kernel.settings import Settings
from flowcore._kernel.steps import run_whole_step
from flowcore._kernel.undo import run_whole_undo
from flowcore.events import SKIP_RUN, Event, Hooks, RunFinished, RunJoined
from flowcore.run import Run
from flowcore.stores import MemoryStore

from .conftest import Ledger, kinds


def state(wf: Workflow, hooks: Any, *, whole: bool) -> RunState:
    settings = Settings(
        store=MemoryStore(),
        claims=StoreClaims(),
        hooks=Hooks(hooks),
        grace=1.0,
        parallel=1000,
        runs_async=True,
        caller_shares=whole,
        clock=time.monotonic,
        wall=time.time,
        random=random.Random(1).random,
        new_id=lambda: "r" * 32,
        whole_steps=whole,
    )
    return RunState(settings, Request(wf, wf.freeze(), {}, contextvars.copy_context()))


class Elsewhere:
    """Drives a run, and has each of its steps made by another driver, which knows what the run knew then."""

    def __init__(self, wf: Workflow, worker: Any = ()) -> None:
        self._wf, self._worker = wf, worker
        self.run = state(wf, (), whole=True)
        self._main = execute(self.run)
        self._main_waits = False
        self._due: list[tuple[Program[Any], Any]] = [(self._main, None)]
        self.finished: Run | None = None

    def drive(self) -> Run:
        """Drive the run to its end."""
        while self._due:
            self._advance(*self._due.pop(0))
        assert self.finished is not None
        return self.finished

    def _advance(self, program: Program[Any], answer: Any) -> None:
        while True:
            try:
                effect = program.send(answer)
            except StopIteration as stop:
                if program is self._main:
                    self.finished = stop.value
                return
            answer = None
            if isinstance(effect, WholeStep):
                answer = self._made(effect)
            elif isinstance(effect, Call):
                answer = effect.fn(effect.ctx), None
            elif isinstance(effect, Ask):
                answer = getattr(self.run.settings.store, effect.verb)(effect.argument), None
            elif effect is WAIT:
                self._main_waits = True
                return
            elif effect is RESUME:
                assert self._main_waits
                self._main_waits = False
                self._due.append((self._main, None))
            elif effect is REQUEST_WORKER:
                self._due.append((work_beside_main(self.run), None))
            elif isinstance(effect, Delegate):
                self._due.append((work_beside_main(self.run, effect.node), None))
            else:
                assert effect is SHIELD or isinstance(effect, Stop)

    def _made(self, effect: WholeStep) -> StepEnd:
        part = state(self._wf, self._worker, whole=False)
        part.results, part.values, part.reports = self.run.results, self.run.values, self.run.reports
        part.failed_step, part.error = self.run.failed_step, self.run.error
        node = part.plan.nodes[effect.node.index]
        order = len(self.run.undone) + len(self.run.undo_errors) + 1 if effect.undo else 0
        program = (
            run_whole_undo(part, node, order, part.failed_step or "") if effect.undo else run_whole_step(part, node)
        )

        async def main() -> Any:
            emit.joined(part, {})
            driver = AsyncDriver(part, 0, Workers(4, "elsewhere"), set(), program)
            await driver.run_here()
            return driver.result

        end: StepEnd = asyncio.run(main())
        end.scope = None  # it belongs to hooks that are elsewhere
        return end


def order(ledger: Ledger, *, fails: bool, undo_fails: bool = False) -> Workflow:
    wf = Workflow("order")
    tries: list[int] = []

    def flaky(ctx: Any) -> Any:
        tries.append(1)
        if len(tries) % 2:
            raise ConnectionError("reset")
        return ctx["book"]

    ledger.add(wf, "book")
    ledger.add(wf, "pay", first=flaky, depends_on="book", retry=Retry(3, Backoff.none()))
    ledger.add(wf, "gift", depends_on="pay", when=lambda ctx: False)
    ledger.add(wf, "hotel", depends_on="book", undo_raises=OSError("no line") if undo_fails else None)
    ledger.add(wf, "mail", depends_on=["gift", "hotel"], raises=ValueError("no address") if fails else None)
    return wf


OUTCOMES: dict[str, tuple[dict[str, bool], Status]] = {
    "success": ({"fails": False}, Status.SUCCESS),
    "compensated": ({"fails": True}, Status.COMPENSATED),
    "an undo fails": ({"fails": True, "undo_fails": True}, Status.COMPENSATION_FAILED),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_run_whose_steps_are_made_elsewhere_is_the_same_run(name: str) -> None:
    options, status = OUTCOMES[name]
    here, there = Ledger(), Ledger()
    reported: list[Event] = []
    at_home: list[Event] = []

    async def main() -> Run:
        async with AsyncEngine(hooks=[at_home.append], max_workers=1) as engine:
            return await engine.run(order(here, **options), check=False)

    expected = asyncio.run(main())
    run = Elsewhere(order(there, **options), [reported.append]).drive()
    assert run.status is expected.status is status
    assert there.standing == here.standing
    assert dict(run.results) == dict(expected.results)
    assert sorted(run.undone) == sorted(expected.undone)
    for step, report in expected.steps.items():
        seen = run.steps[step]
        assert (seen.status, seen.attempts, seen.undo) == (report.status, report.attempts, report.undo), step
    assert type(run.error) is type(expected.error)
    if isinstance(run.error, CompensationFailed):
        assert list(run.error.failures) == ["hotel"]
    made = ("Step", "Attempt", "Compensation", "Backoff")
    steps = [kind for kind in kinds(at_home) if kind.startswith(made) and kind not in {"StepReady", "StepSkipped"}]
    assert sorted(kind for kind in kinds(reported) if kind != "RunJoined") == sorted(
        steps
    )  # each is emitted once, where it is made


def test_a_hook_may_leave_a_run_whose_step_comes_to_its_process() -> None:
    seen: list[str] = []

    def leaves(event: Event) -> object:
        seen.append(type(event).__name__)
        return SKIP_RUN if isinstance(event, RunJoined) else None

    run = Elsewhere(order(Ledger(), fails=True), [leaves]).drive()
    assert run.status is Status.COMPENSATED
    assert set(seen) == {"RunJoined"}


@pytest.mark.parametrize(("expected", "fails"), [((ValueError,), True), ((OSError,), True), ((), False)])
def test_the_end_of_a_run_from_elsewhere_says_so(expected: Any, fails: bool) -> None:
    wf = Workflow("elsewhere")

    def step(ctx: Any) -> None:
        if fails:
            raise ValueError("no")

    wf.add_step("step", step, expected=expected)
    finished: list[RunFinished] = []

    def note(event: Event) -> None:
        if isinstance(event, RunFinished):
            finished.append(event)

    run = Elsewhere(wf).drive()
    watched = state(wf, [note], whole=True)
    scope = emit.run_started(watched)
    watched.stopped, watched.undone = run.status is not Status.SUCCESS, list(run.undone)
    emit.run_finished(watched, scope, run, elsewhere=True)
    (event,) = finished
    assert (event.outcome, event.elsewhere) == (run.status, fails)
    assert not event.elsewhere or event.expected is (expected == (ValueError,))


def test_a_step_that_another_process_gets_after_the_deadline_does_not_begin() -> None:
    wf, calls = Workflow("late"), list[int]()
    wf.add_step("step", lambda ctx: calls.append(1))
    part = state(wf, (), whole=False)
    part.deadline = part.settings.clock() - 1

    async def main() -> StepEnd:
        driver = AsyncDriver(part, 0, Workers(4, "late"), set(), run_whole_step(part, part.plan.nodes[0]))
        await driver.run_here()
        end: Any = driver.result
        return cast("StepEnd", end)

    end = asyncio.run(main())
    assert (end.status, end.attempts, type(end.error), calls) == (Status.FAILURE, 0, RunTimeout, [])
