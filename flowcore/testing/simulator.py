"""The third driver: virtual time, no threads, and every choice a scheduler may make taken by a seed.

The programs are the ones that `Engine` and `AsyncEngine` drive. Here a step's function runs in an instant, and the time
it is said to have taken is drawn; so are the order of what happens at one moment, and when helpers come. A thousand
schedules of a workflow take a second, and a seed replays the one that failed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from .._protocol.effects import (
    HELP,
    RESUME,
    WAIT,
    Ask,
    Call,
    GivenUp,
    Landing,
    Outcome,
    Program,
    Sleep,
    Stop,
    as_call,
)
from .._protocol.execution import Execution, Settings
from .._protocol.run import helper, run
from .._protocol.undo import late
from ..context import Context
from ..errors import DefinitionError, StepCancelled, shown
from ..events import Event, Hooks
from ..run import Run
from ..stores.memory import MemoryStore
from ..workflow import Workflow
from .journal import Journal

__all__ = ["Fault", "Simulation", "simulate"]

_FOREVER = 1e9  # virtual seconds that no workflow is still running after


class Fault(StrEnum):
    """What goes wrong with every attempt of a step."""

    FAIL_BEFORE = "fails before its effect"
    FAIL_AFTER = "fails after its effect"
    TIMEOUT = "times out"
    """its effect happens, but too late: right after its limit, or after any limit its run may have"""
    STUCK = "times out and never comes back"
    CANCEL = "run cancelled in it"
    UNDO_FAILS = "undo fails"


class Injected(Exception):  # noqa: N818 - named for what it is in a traceback
    """The failure that a fault injected."""


@dataclass(slots=True)
class Simulation:
    """What came of a simulated run."""

    run: Run
    events: list[Event] = field(repr=False)
    journal: Journal
    seed: int
    fired: list[tuple[str, Fault]] = field(default_factory=list[tuple[str, Fault]])
    """the injected faults, by step, as they struck"""
    took: float = 0.0
    """virtual seconds"""


def simulate(
    workflow: Workflow,
    values: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    faults: Mapping[str, Fault] | None = None,
    cancel_at: float | None = None,
    max_workers: int = 32,
    grace: float = 5.0,
    store: MemoryStore | None = None,
    idempotency_key: str | None = None,
    deadline: float | None = None,
) -> Simulation:
    """Run a workflow in virtual time; the same arguments give the same run.

    `faults`: what goes wrong, by step name. `cancel_at`: virtual seconds after which the run is cancelled. The step
    functions are really called; async ones run to their end at once, in a loop of the simulation's own, so their waits
    are real ones and should be short. Each call is said to take up to a virtual second. A failed run is answered, never
    raised; refused claims are raised as by an engine.

    Raises DefinitionError for a fault at a step that the workflow does not have.
    """
    known = workflow.freeze().by_name
    for name in faults or ():
        if name not in known:
            raise DefinitionError(f"faults= names {shown(name)}, which is not a step of {shown(workflow.name)}.")
    with asyncio.Runner() as runner:
        driver = _Simulator(runner, seed, dict(faults or {}), max_workers, grace, store or MemoryStore())
        return driver.simulate(workflow, values, idempotency_key, deadline, cancel_at)


class _Simulator:
    def __init__(
        self,
        runner: asyncio.Runner,
        seed: int,
        faults: dict[str, Fault],
        max_workers: int,
        grace: float,
        store: MemoryStore,
    ) -> None:
        self.now = 1_000.0  # an engine's clock does not begin at zero either
        self.seed = seed
        self.faults = faults
        self.fired: list[tuple[str, Fault]] = []
        self.events: list[Event] = []
        self.journal = Journal()
        self.x: Execution
        self._runner = runner
        self._random = random.Random(seed)  # noqa: S311 - a seed that replays is the point
        self._agenda: list[tuple[float, float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._settings = Settings(
            store=store,
            hooks=Hooks([self.events.append, self.journal]),
            grace=grace,
            parallel=max_workers,
            runs_async=True,
            caller_shares=True,
            clock=lambda: self.now,
            wall=lambda: self.now,
            random=self._random.random,
            new_id=lambda: f"{self._random.getrandbits(128):032x}",
        )
        self._running: dict[Call, Program[Any]] = {}
        self._sleeping: dict[Sleep, Program[Any]] = {}
        self._landings: dict[Call, Program[Any]] = {}
        self._main: Program[Run]
        self._main_parked = False
        self._result: Run | None = None
        self._refusal: BaseException | None = None

    def simulate(
        self,
        workflow: Workflow,
        values: Mapping[str, Any] | None,
        key: str | None,
        deadline: float | None,
        cancel_at: float | None,
    ) -> Simulation:
        self.x = Execution(self._settings, workflow, workflow.freeze(), values, contextvars.copy_context())
        self.x.key = key
        limit = workflow.deadline if deadline is None else deadline
        self.x.deadline = None if limit is None else self.now + limit
        self._main = run(self.x)
        began = self.now
        if cancel_at is not None:
            self._after(cancel_at, self._cancel)
        self._after(0.0, partial(self._advance, self._main, None))
        while self._agenda:
            self.now, _, _, act = heapq.heappop(self._agenda)
            act()
        if self._refusal is not None:
            raise self._refusal
        assert self._result is not None, f"the run never ended; replay with seed={self.seed}"  # noqa: S101
        return Simulation(self._result, self.events, self.journal, self.seed, self.fired, self.now - began)

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        # What happens at one moment happens in an order that the seed draws.
        heapq.heappush(self._agenda, (self.now + seconds, self._random.random(), next(self._numbers), act))

    def _soon(self, program: Program[Any], answer: Any) -> None:
        self._after(0.0, partial(self._advance, program, answer))

    def _advance(self, program: Program[Any], answer: Any) -> None:
        while True:
            try:
                effect = program.send(answer)
            except StopIteration as stop:
                if program is self._main:
                    self._result = stop.value
                return
            except BaseException as error:  # noqa: BLE001 - a refused claim
                self._refusal = error
                return
            answer = None
            if type(effect) is Context:
                return self._call(program, as_call(effect, self.x.context.copy()))
            if type(effect) is Call:
                return self._call(program, effect)
            if type(effect) is Ask:
                answer = self._ask(effect)
            elif type(effect) is Sleep:
                if not self.x.stopped or effect.shielded:
                    self._sleeping[effect] = program
                    self._after(effect.seconds, partial(self._wake, effect))
                    return None
            elif type(effect) is Landing:
                if effect.call.landed is None:
                    self._landings[effect.call] = program
                    self._after(effect.seconds, partial(self._landing_over, effect.call, None))
                    return None
                answer = effect.call.landed
            elif effect is WAIT:
                self._main_parked = True
                return None
            elif effect is RESUME:
                if self._main_parked:
                    self._main_parked = False
                    self._soon(self._main, None)
            elif effect is HELP:
                self._after(self._random.random() * 0.1, partial(self._advance, helper(self.x), None))
            elif type(effect) is Stop:
                self._stop(effect)

    # -- user code -----------------------------------------------------------------------------------------------------

    def _call(self, program: Program[Any], call: Call) -> None:
        """Begin a call: its effect and its end come at moments that the seed draws, or that its fault wants."""
        self._running[call] = program
        fault = self._fault(call)
        takes = self._random.random()
        if fault in {Fault.TIMEOUT, Fault.STUCK}:
            limit = call.timeout if call.timeout is not None else 0.0
            takes = limit + self._random.random() * self._settings.grace * 0.9 if fault is Fault.TIMEOUT else _FOREVER
            self._after(limit, partial(self._give_up, call, timed_out=True))
        elif call.timeout is not None:
            self._after(call.timeout, partial(self._give_up, call, timed_out=True))
        if fault is Fault.CANCEL:
            self._after(takes * self._random.random(), self._cancel)
        if fault is Fault.STUCK:
            return
        if self._random.random() < 0.5 and fault is not Fault.TIMEOUT:  # noqa: PLR2004 - even odds
            outcome = self._performed(call, fault)
            self._after(takes, lambda: self._over(call, outcome))
        else:
            self._after(takes, lambda: self._over(call, self._performed(call, fault)))

    def _fault(self, call: Call) -> Fault | None:
        fault = self.faults.get(call.node.name)
        if fault is None or call.shielded is not (fault is Fault.UNDO_FAILS) or call.fn is call.node.when:
            return None
        self.fired.append((call.node.name, fault))
        return fault

    def _performed(self, call: Call, fault: Fault | None) -> Outcome:
        if fault in {Fault.FAIL_BEFORE, Fault.UNDO_FAILS}:
            return None, Injected(f"{call.node.name} {fault}")
        try:
            if call.is_async:
                value = self._runner.run(call.context.run(call.fn, call.ctx), context=call.context)
            else:
                value = call.context.run(call.fn, call.ctx)
        except BaseException as error:  # noqa: BLE001 - the program judges it
            return None, error
        return (None, Injected(f"{call.node.name} {fault}")) if fault is Fault.FAIL_AFTER else (value, None)

    def _over(self, call: Call, outcome: Outcome) -> None:
        program = self._running.pop(call, None)
        if program is not None:
            self._advance(program, outcome)
        elif self.x.landed(call, outcome):
            self._advance(late(self.x, call, outcome), None)
        else:
            self._landing_over(call, outcome)

    def _give_up(self, call: Call, *, timed_out: bool) -> None:
        program = self._running.pop(call, None)
        if program is not None:
            call.abandon()
            self._advance(program, (None, GivenUp(call, timed_out=timed_out)))

    def _landing_over(self, call: Call, outcome: Outcome | None) -> None:
        program = self._landings.pop(call, None)
        if program is not None:
            self._advance(program, outcome)

    # -- the other effects ---------------------------------------------------------------------------------------------

    def _ask(self, ask: Ask) -> Outcome:
        try:
            return getattr(self._settings.store, ask.verb)(ask.argument), None
        except Exception as error:  # noqa: BLE001 - the program decides what a store's error means
            return None, error

    def _wake(self, sleep: Sleep) -> None:
        program = self._sleeping.pop(sleep, None)
        if program is not None:
            self._soon(program, None)

    def _cancel(self) -> None:
        if self.x.interrupt(StepCancelled("the run was cancelled by the simulation.")):
            self._stop(Stop(cancel=True))

    def _stop(self, stop: Stop) -> None:
        for sleep in list(self._sleeping):
            if not sleep.shielded:
                self._wake(sleep)
        for call in list(self._running) if stop.cancel else ():
            if not call.shielded:
                # A coroutine stops when it is told to; a thread has its grace, and may end in time.
                heeds = self._random.random() < 0.5  # noqa: PLR2004 - even odds
                wait = 0.0 if heeds else self._settings.grace
                self._after(wait, partial(self._give_up, call, timed_out=False))
