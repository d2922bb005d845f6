"""The third driver: virtual time, no threads, and every choice a scheduler may make taken by a seed.

The programs are the ones that `Engine` and `AsyncEngine` drive. Here a step's function runs in an instant, and the time
it is said to have taken is drawn; so are the order of what happens at one moment, and when helpers come. A thousand
schedules of a workflow take a second, and a seed replays the one that failed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
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
    Hand,
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

__all__ = ["Fault", "SimulatedCall", "Simulation", "simulate"]

_FOREVER = 1e9  # virtual seconds that no workflow is still running after
_ENDLESS = 1_000_000  # moments after which a run that has not ended never will


class Fault(StrEnum):
    """What goes wrong with every attempt of a step."""

    FAIL_BEFORE = "fails before its effect"
    FAIL_AFTER = "fails after its effect"
    TIMEOUT = "times out"
    """its effect happens, but too late: right after its limit, or after any limit its run may have"""
    STUCK = "times out and never comes back"
    CANCEL = "run cancelled in it"
    UNDO_FAILS = "undo fails"


class Injected(Exception):
    """The failure that a fault injected."""


@dataclass(slots=True)
class SimulatedCall:
    """One call of user code, as the driver made it, whatever was told of it. Moments are those of the events' `at`."""

    step: str
    what: str
    """do, undo, when, or await: the rest of a plain function that answered with a coroutine"""
    attempt: int
    began: float
    told_before: int
    """events told before it began"""
    ended: float | None = None
    """when it came back; None: never"""
    given_up: float | None = None
    """when everybody stopped waiting for it; None: it was waited for"""
    failed: bool = False
    """whether it came back with an error"""


@dataclass(slots=True)
class Simulation:
    """What came of a simulated run."""

    run: Run
    events: list[Event] = field(repr=False)
    journal: Journal
    seed: int
    fired: list[tuple[str, Fault]] = field(default_factory=list[tuple[str, Fault]])
    """the injected faults, by step, as they struck"""
    began: float = 0.0
    """the moment of the simulation's clock, to which the events' `at` belong, at which it began"""
    took: float = 0.0
    """virtual seconds until the run was over; a call that was given up may have landed later"""
    cancelled: float | None = None
    """the moment at which the run was cancelled, if it was"""
    calls: list[SimulatedCall] = field(default_factory=list[SimulatedCall], repr=False)
    """every call of user code, in order"""


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
    observed: bool = True,
) -> Simulation:
    """Run a workflow in virtual time; the same arguments give the same run.

    `faults`: what goes wrong, by step name. `cancel_at`: virtual seconds after which the run is cancelled. The step
    functions are really called; async ones run to their end at once, in a loop of the simulation's own, so their waits
    are real ones and should be short. Each call is said to take up to a virtual second. A failed run is answered, never
    raised; refused claims are raised as by an engine. `observed=False` runs without any hook, as an engine without hooks
    would: no events and no journal, all else the same.

    Raises DefinitionError for a fault at a step that the workflow does not have.
    """
    known = workflow.freeze().by_name
    for name in faults or ():
        if name not in known:
            raise DefinitionError(f"faults= names {shown(name)}, which is not a step of {shown(workflow.name)}.")
    driver = _Simulator(seed, dict(faults or {}), max_workers, grace, store or MemoryStore(), observed)
    try:
        return driver.simulate(workflow, values, idempotency_key, deadline, cancel_at)
    finally:
        driver.close()


class _Simulator:
    def __init__(
        self,
        seed: int,
        faults: dict[str, Fault],
        max_workers: int,
        grace: float,
        store: MemoryStore,
        observed: bool,
    ) -> None:
        self.now = 1_000.0  # an engine's clock does not begin at zero either
        self.seed = seed
        self.faults = faults
        self.fired: list[tuple[str, Fault]] = []
        self.events: list[Event] = []
        self.journal = Journal()
        self.calls: list[SimulatedCall] = []
        self._traces: dict[Call, SimulatedCall] = {}
        self.x: Execution
        self._runner: asyncio.Runner | None = None  # made when an async step wants it: a loop costs more than a run
        self._random = random.Random(seed)  # noqa: S311 - a seed that replays is the point
        # Its own, so that asking for an id changes nothing else; a store would take the id of an earlier owner for its own.
        known = [(record.run_id, record.fence) for record in store.list_runs()]
        ids = random.Random(f"{seed} {known}")  # noqa: S311 - see above
        self._agenda: list[tuple[float, float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._settings = Settings(
            store=store,
            hooks=Hooks([self.events.append, self.journal] if observed else []),
            grace=grace,
            parallel=max_workers,
            runs_async=True,
            caller_shares=self._random.random() < 0.5,  # threads do, asyncio does not
            clock=lambda: self.now,
            wall=lambda: self.now,
            random=self._random.random,
            new_id=lambda: f"{ids.getrandbits(128):032x}",
        )
        self._running: dict[Call, Program[Any]] = {}
        self._sleeping: dict[Sleep, Program[Any]] = {}
        self._landings: dict[Call, Program[Any]] = {}
        self._main: Program[Run]
        self._main_parked = False
        self._result: Run | None = None
        self._refusal: BaseException | None = None
        self._ended = 0.0
        self._cancelled: float | None = None

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
        self.x.allowed = limit
        self._main = run(self.x)
        began = self.now
        if cancel_at is not None:
            self._after(cancel_at, self._cancel)
        self._after(0.0, partial(self._advance, self._main, None))
        for _ in range(_ENDLESS):
            if not self._agenda:
                break
            self.now, _, _, act = heapq.heappop(self._agenda)
            act()
        if self._refusal is not None:
            raise self._refusal
        if self._result is None or self._agenda:
            raise AssertionError(f"the run of {shown(workflow.name)} never ended; replay with seed={self.seed}")
        took = self._ended - began
        return Simulation(
            self._result, self.events, self.journal, self.seed, self.fired, began, took, self._cancelled, self.calls
        )

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

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
                    self._result, self._ended = stop.value, self.now
                return None
            except BaseException as error:  # noqa: BLE001 - a refused claim
                self._refusal = error
                return None
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
            elif type(effect) is Hand:
                self._soon(helper(self.x, effect.node), None)
            elif type(effect) is Stop:
                self._stop(effect)

    # -- user code -----------------------------------------------------------------------------------------------------

    def _call(self, program: Program[Any], call: Call) -> None:
        """Begin a call: its effect and its end come at moments that the seed draws, or that its fault wants."""
        if self.x.interrupted and not call.shielded:
            self._advance(program, (None, GivenUp(call, timed_out=False, over=True)))  # it never began
            return
        self._running[call] = program
        trace = SimulatedCall(call.node.name, _what(call), call.ctx.attempt, self.now, len(self.events))
        self._traces[call] = trace
        self.calls.append(trace)
        fault = self._fault(call)
        takes = self._random.random()
        if fault is Fault.TIMEOUT or fault is Fault.STUCK:
            limit = call.timeout if call.timeout is not None else 0.0
            takes = limit + self._random.random() * self._settings.grace * 0.9 if fault is Fault.TIMEOUT else _FOREVER
            self._after(limit, partial(self._strike_out, call, fault))
        elif call.timeout is not None:
            self._after(call.timeout, partial(self._give_up, call, timed_out=True))
        if fault is Fault.CANCEL:
            self._after(takes * self._random.random(), partial(self._strike_run, call, fault))
        if fault is Fault.STUCK:
            return
        if self._random.random() < 0.5 and fault is not Fault.TIMEOUT:
            outcome = self._performed(call, fault)
            self._after(takes, lambda: self._over(call, outcome))
        else:
            self._after(takes, lambda: self._over(call, self._performed(call, fault)))

    def _fault(self, call: Call) -> Fault | None:
        fault = self.faults.get(call.node.name)
        if fault is None or call.shielded is not (fault is Fault.UNDO_FAILS) or call.fn is call.node.when:
            return None
        return fault

    def _performed(self, call: Call, fault: Fault | None) -> Outcome:
        if fault is Fault.FAIL_BEFORE or fault is Fault.UNDO_FAILS:
            self.fired.append((call.node.name, fault))
            return None, Injected(f"{call.node.name} {fault}")
        try:
            if call.is_async:
                self._runner = self._runner or asyncio.Runner()
                value = self._runner.run(call.context.run(call.fn, call.ctx), context=call.context)
            else:
                value = call.context.run(call.fn, call.ctx)
        except BaseException as error:  # noqa: BLE001 - the program judges it
            return None, error
        if fault is Fault.FAIL_AFTER:
            if inspect.iscoroutine(value):
                value.close()  # of a plain function that answered with one
            self.fired.append((call.node.name, fault))
            return None, Injected(f"{call.node.name} {fault}")
        return value, None

    def _strike_out(self, call: Call, fault: Fault) -> None:
        if call in self._running:
            self.fired.append((call.node.name, fault))
            self._give_up(call, timed_out=True)

    def _strike_run(self, call: Call, fault: Fault) -> None:
        if call in self._running:
            self.fired.append((call.node.name, fault))
            self._cancel()

    def _over(self, call: Call, outcome: Outcome) -> None:
        program = self._running.pop(call, None)
        trace = self._traces[call]
        trace.ended, trace.failed = self.now, outcome[1] is not None
        if program is not None:
            self._advance(program, outcome)
        elif self.x.landed(call, outcome) and call not in self._landings:
            self._advance(late(self.x, call), None)
        else:
            self._landing_over(call, outcome)

    def _give_up(self, call: Call, *, timed_out: bool) -> None:
        program = self._running.pop(call, None)
        if program is not None:
            self._traces[call].given_up = self.now
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
            self._cancelled = self.now
            self._stop(Stop(cancel=True))

    def _stop(self, stop: Stop) -> None:
        for sleep in list(self._sleeping):
            if not sleep.shielded:
                self._wake(sleep)
        for call in list(self._running) if stop.cancel else ():
            if not call.shielded:
                # A coroutine stops when it is told to; a thread has its grace, and may end in time.
                heeds = self._random.random() < 0.5
                wait = 0.0 if heeds else self._settings.grace
                self._after(wait, partial(self._give_up, call, timed_out=False))


def _what(call: Call) -> str:
    if call.fn is call.node.fn:
        return "do"
    if call.fn is call.node.when:
        return "when"
    return "undo" if call.node.compensation is not None and call.fn is call.node.compensation.fn else "await"
