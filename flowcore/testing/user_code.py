"""The user code of a simulated process: calls take virtual time, may be given up, and may suffer an injected fault."""

from __future__ import annotations

import contextvars
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .._durable.handed_out import complaint
from .._in_executor import InExecutor
from .._kernel.effects import (
    Abandoned,
    Call,
    Outcome,
    Program,
)
from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from .._kernel.undo import late
from ..context import Context
from ..errors import NotSerializable
from ..plan import Node
from .acts import CRASHES, Act, Fault, Halt, Injected, SimulatedCall
from .copies import ResultsWatch, through_codec
from .network import Network
from .world import World

__all__ = ["SimulatedCode"]

_FOREVER = 1e9  # virtual seconds, after which no workflow is still running


class SimulatedCode(ABC):
    """The part of a `Process` that runs user code."""

    world: World
    act: Act
    run: RunState
    _network: Network
    _number: int
    _halt: Halt | None
    _faults: Mapping[str, Fault]
    _fired: list[tuple[str, Fault]]
    _calls: list[SimulatedCall]
    _settings: Settings

    def __init__(self) -> None:
        self._called = 0
        self._traces: dict[Call, SimulatedCall] = {}
        self._running: dict[Call, Program[Any]] = {}
        self._waiting: dict[Call, Program[Any]] = {}  # calls that wait for a thread
        self._awaited_late: dict[Call, Program[Any]] = {}
        self._coroutines: list[Any] = []  # returned by plain functions; some of them are never awaited

    @abstractmethod
    def _advance(self, program: Program[Any], answer: Any) -> None:
        """Resume a program with the result of its last effect, and perform its next ones."""

    @abstractmethod
    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        """Perform `act` after so many seconds of virtual time."""

    @abstractmethod
    def _halt_for(self, seconds: float) -> None:
        """Stop this process for so many seconds of virtual time."""

    @abstractmethod
    def _interrupted_call(self, call: Call) -> Outcome | None:
        """The outcome of a call that a signal handler interrupts now, or None."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the run."""

    def _call_inline(self, node: Node, fn: Callable[..., Any], ctx: Context) -> Any:
        """Perform a call of the inline path. Other actions take place before it returns, as they do while a thread
        runs user code. The call cannot be given up, so it ends early if its run is interrupted."""

        def interrupted() -> bool:
            return self.run.interrupted

        call = Call(node, fn, ctx, contextvars.copy_context(), None, node.is_async)
        trace = self._traced(call, "do")
        fault, takes = self._fault(call), self._random()
        performed = self._performed(call, fault) if self._random() < 0.5 else None
        if fault is Fault.CANCEL:
            self.world.let_pass(takes / 2, interrupted)
            self._fired.append((node.name, fault))
            self.cancel()
        self.world.let_pass(takes, interrupted)
        value, error = performed or self._performed(call, fault)
        trace.ended, trace.failed = self.world.now, error is not None
        if isinstance(error, BaseException):
            raise error
        return value

    def _traced(self, call: Call, what: str) -> SimulatedCall:
        trace = self._traces[call] = SimulatedCall(
            call.node.name,
            what,
            call.ctx.attempt,
            self.world.now,
            len(self.act.events),
            process=self._number,
            fence=self.run.fence,
            requests_before=len(self._network.log),
        )
        self._calls.append(trace)
        self._called += 1
        return trace

    def _call(self, program: Program[Any], call: Call) -> None:
        """Begin a call. The seed draws when its effect happens and when it ends, unless its fault decides that."""
        if self.run.interrupted and not call.shielded:
            self._advance(program, (None, Abandoned(call, timed_out=False, over=True, began=False)))
            return
        fault = self._fault(call)
        if fault is Fault.NO_THREAD and self.run.deadline is not None:
            self._fired.append((call.node.name, fault))
            self._waiting[call] = program
            self._after(max(0.0, self.run.deadline - self.world.now), partial(self._ends_wait, call, timed_out=True))
            return
        self._running[call] = program
        self._traced(call, _what(call))
        halt = self._halt if self._halts("call", self._called) else None
        takes = self.world.random.random()
        if fault is Fault.CRASH_BEFORE or fault is Fault.CRASH_AFTER:
            if fault is Fault.CRASH_AFTER:
                self._performed(call, fault)
            self._fired.append((call.node.name, fault))
            self._halt_for(math.inf)
            return
        if fault is Fault.TIMEOUT or fault is Fault.STUCK:
            limit = call.timeout if call.timeout is not None else 0.0
            takes = limit + self._random() * self._settings.grace * 0.9 if fault is Fault.TIMEOUT else _FOREVER
            self._after(limit, partial(self._strike_out, call, fault))
        elif call.timeout is not None:
            self._after(call.timeout, partial(self._abandon, call, timed_out=True))
        if fault is Fault.CANCEL:
            self._after(takes * self._random(), partial(self._strike_run, call, fault))
        if halt is not None:
            self._after(takes * self._random(), partial(self._halt_for, halt.seconds))
        if fault is Fault.STUCK:
            return
        early = self._random() < 0.5 and fault is not Fault.TIMEOUT if halt is None else halt.done
        if early and self.act.caller.exits is None:  # an exit comes in user code only while its run waits for it
            outcome = self._performed(call, fault)
            self._after(takes, lambda: self._ends(call, outcome))
        else:
            self._after(takes, lambda: self._ends(call, self._performed(call, fault)))

    def _random(self) -> float:
        return self.world.random.random()

    def _halts(self, at: str, number: int) -> bool:
        halt = self._halt
        return halt is not None and halt.at == at and halt.number == number

    def _fault(self, call: Call) -> Fault | None:
        fault = self._faults.get(call.node.name)
        if fault is None or call.asks or call.shielded is not (fault is Fault.UNDO_FAILS):
            return None
        if fault is Fault.NO_THREAD and call.node.step_timeout is not None:
            return None
        if fault in CRASHES and (call.node.name, fault) in self._fired:
            return None
        return fault

    def _performed(self, call: Call, fault: Fault | None) -> Outcome:
        if fault is Fault.FAIL_BEFORE or fault is Fault.UNDO_FAILS:
            self._fired.append((call.node.name, fault))
            return None, Injected(f"{call.node.name} {fault}")
        given_up = self._traces[call].given_up is not None
        interrupted = None if given_up else self._interrupted_call(call)
        if interrupted is not None:
            return interrupted
        self._traces[call].performed = self.world.now
        does, results = self._traces[call].what == "do", self.run.results
        watch = ResultsWatch(results) if does and not self._settings.durable else None
        try:
            if call.is_async:
                value = self.world.runner.run(call.context.run(call.fn, call.ctx), context=call.context)
            else:
                fn = call.fn.here if isinstance(call.fn, InExecutor) else call.fn
                value = call.context.run(fn, call.ctx)
        except BaseException as error:  # noqa: BLE001 - the program judges it
            return None, error
        if inspect.iscoroutine(value):  # A plain function has returned it.
            self._coroutines.append(value)
            if fault is Fault.CRASH_AFTER:
                self.world.runner.run(value, context=call.context)
        interrupted = None if given_up else self._interrupted_call(call)
        if interrupted is not None:
            return interrupted
        if fault is Fault.FAIL_AFTER:
            self._fired.append((call.node.name, fault))
            return None, Injected(f"{call.node.name} {fault}")
        # On a durable store there is no watch here, because the ledger of the run detects such changes itself.
        for name, recorded in ({} if watch is None else watch.changed(results)).items():
            results[name] = recorded
            return None, NotSerializable(complaint(call.node.name, name))
        return through_codec(value) if does else value, None

    def _strike_out(self, call: Call, fault: Fault) -> None:
        if call in self._running:
            self._fired.append((call.node.name, fault))
            self._abandon(call, timed_out=True)

    def _strike_run(self, call: Call, fault: Fault) -> None:
        if call in self._running:
            self._fired.append((call.node.name, fault))
            self.cancel()

    def _ends(self, call: Call, outcome: Outcome) -> None:
        program = self._running.pop(call, None)
        trace = self._traces[call]
        trace.ended, trace.failed = self.world.now, outcome[1] is not None
        if program is not None:
            self._advance(program, outcome)
        elif self.run.complete_late(call, outcome) and call not in self._awaited_late:
            self._advance(late(self.run, call), None)
        else:
            self._late_call_ended(call, outcome)

    def _abandon(self, call: Call, *, timed_out: bool) -> None:
        program = self._running.pop(call, None)
        if program is not None:
            self._traces[call].given_up = self.world.now
            call.abandon()
            self.run.abandon(call)
            self._advance(program, (None, Abandoned(call, timed_out=timed_out)))

    def _late_call_ended(self, call: Call, outcome: Outcome | None) -> None:
        program = self._awaited_late.pop(call, None)
        if program is not None:
            self._advance(program, outcome)

    def _ends_wait(self, call: Call, *, timed_out: bool) -> None:
        program = self._waiting.pop(call, None)
        if program is not None:
            self._after(
                0.0,
                partial(self._advance, program, (None, Abandoned(call, timed_out=timed_out, over=True, began=False))),
            )


def _what(call: Call) -> str:
    node = call.node
    if call.fn is node.fn:
        return "do"
    if call.fn is node.when:
        return "when"
    if call.fn is node.step.verify:
        return "verify"
    return "undo" if node.compensation is not None and call.fn is node.compensation.fn else "await"
