"""One process of a simulation. It is the third driver, and it can stop at any point, for a while or for ever."""

from __future__ import annotations

import contextvars
import math
import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from .._durable.checkpoints import lose, obey, parked
from .._durable.claim import StoreClaims
from .._durable.sending import accepted, counts_as
from .._engines.driving import drive
from .._kernel import stopping
from .._kernel.effects import (
    REQUEST_WORKER,
    RESUME,
    WAIT,
    Alarm,
    Ask,
    AwaitAbandoned,
    Call,
    Delegate,
    Outcome,
    Program,
    Sleep,
    Stop,
    Suspended,
    as_call,
)
from .._kernel.inline import can_run_inline
from .._kernel.request import Request
from .._kernel.run import abort_inline, execute, run_without_driver, work_beside_main
from .._kernel.run_state import RunState
from .._kernel.settings import Settings, namespace_of
from .._kernel.wait_steps import keep, receive
from ..context import Context, initial, own_copy
from ..errors import StepCancelled
from ..events import Hooks
from ..run import Run, Sent
from ..stores.base import Lease, Renewal
from ..workflow import Workflow
from .acts import Act, Caller, Fault, Sending, SimulatedCall
from .exits import ExitingProcess
from .inline import instrumented
from .journal import Journal
from .network import Network
from .user_code import SimulatedCode
from .world import World

__all__ = ["PATIENCE", "Process"]

PATIENCE = 2.5  # how many leases a run waits for an unreachable store
_INLINE = 0.75  # the share of runs that run inline, among those that can
_BEATS = 3  # renewals per lease, as in an engine
_SENT_HERE = 0.5  # the share of values that are sent through the engine that has the run


class Process(ExitingProcess, SimulatedCode):
    """Drives the programs of one run in virtual time."""

    def __init__(
        self,
        world: World,
        network: Network,
        number: int,
        caller: Caller,
        faults: Mapping[str, Fault],
        fired: list[tuple[str, Fault]],
        calls: list[SimulatedCall],
        journal: Journal | None,
        *,
        max_workers: int,
        grace: float,
        lease: float,
        park_after: float,
        ids: random.Random,
        on_idle: Callable[[], None],
    ) -> None:
        SimulatedCode.__init__(self)
        ExitingProcess.__init__(self, caller.exits)
        self.world = world
        self.act = Act(caller, world.now)
        self._network = network
        self._number = number
        self._halt = caller.halt
        self._faults = faults
        self._fired = fired
        self._calls = calls
        self._on_idle = on_idle
        self._sleeping: dict[Sleep, Program[Any]] = {}
        self._main: Program[Run]
        self._main_parked = False
        self._asks = 0
        self._inline = False  # whether the inline path is running
        self._begun = False  # whether the main program exists
        self._due = 0  # scheduled actions and awaited replies, without those of its heartbeat
        self._stopped_until = 0.0
        hooks = [self._hook] if caller.exits is not None and caller.exits.at == "hook" else []
        self._settings = Settings(
            store=network.store,
            claims=StoreClaims(),
            hooks=Hooks([] if journal is None else [*hooks, self.act.events.append, journal]),
            grace=grace,
            parallel=max_workers,
            runs_async=True,
            caller_shares=world.random.random() < 0.5,  # It is true in Engine and false in AsyncEngine.
            clock=world.clock if caller.exits is None else self._clock,
            wall=world.clock,
            random=world.random.random,
            new_id=lambda: f"{ids.getrandbits(128):032x}",
            lease=lease,
            owns=self._owns,
            store_patience=lease * PATIENCE,
            park_after=park_after,
            namespace=namespace_of(network.store),
        )

    def begin(
        self, workflow: Workflow, values: Mapping[str, Any] | None, key: str | None, deadline: float | None
    ) -> None:
        """Schedule the work of this process: the run, or first the search for one to recover."""
        own = initial(values)
        if key is not None or self._settings.durable:
            own = own_copy(own)
        request = Request(
            *(workflow, workflow.freeze(), own, contextvars.copy_context(), key),
            wait=self.act.caller.wait,
            deadline=workflow.deadline if deadline is None else deadline,
            own_deadline=deadline is not None,
        )
        run = self.run = RunState(self._settings, request)
        if not self._settings.durable and run.waits is not None:
            self._network.store.listen(self._received)
        if can_run_inline(run) and self._random() < _INLINE:
            elsewhere = [name for name, fault in self._faults.items() if fault in {Fault.TIMEOUT, Fault.STUCK}]
            run.plan = instrumented(
                run.plan, elsewhere, lambda: self._inline, self._call_inline, lambda: self._random() < 0.5
            )
            self._after(0.0, self._run_inline)
            return
        self._main, self._begun = execute(run), True
        if self.act.caller.recovers:
            self._after(0.0, self._look_for_work)
        else:
            self._after(0.0, partial(self._advance, self._main, None))

    def _run_inline(self) -> None:
        """Run the steps that can run inline, on a thread or in a task as an engine does, and then the main program."""
        self._inline = self._drives = True
        is_async = self.run.plan.has_async is not None and self._random() < 0.7
        try:
            finished = run_without_driver(self.run, is_async=is_async)
        except SystemExit as error:
            if self.run.finished is not None:
                return self.over(None, error)
            self._main = abort_inline(self.run, error)
        else:
            if finished is not None:
                return self.over(finished, None)
            self._main = execute(self.run)
        finally:
            self._inline = self._drives = False
            self._act_on_deferred()
        self._begun = True
        return self._advance(self._main, None)

    def _look_for_work(self) -> None:
        """Ask the store for runs to resume, as an engine's recover() does, and resume the first one."""

        def found(outcome: Outcome) -> None:
            records, failure = outcome
            if failure is not None or not records:
                self.over(None, failure if isinstance(failure, BaseException) else None)
                return
            self.run.key = records[0].key
            wanted = self.run.request
            self.run.request = Request(
                *(wanted.workflow, wanted.plan, wanted.values, wanted.context, records[0].key),
                wait=wanted.wait,
                deadline=wanted.deadline,
                own_deadline=wanted.own_deadline,
                recovering=records[0].run_id,
            )
            self._advance(self._main, None)

        self._send("list_resumable", [self.run.workflow.name], found)

    def close(self) -> None:
        for coroutine in self._coroutines:
            coroutine.close()

    # -- time --------------------------------------------------------------------------------------------------------

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self._due += 1
        self.world.after(seconds, partial(self._unless_halted, act))

    def _unless_halted(self, act: Callable[[], None]) -> None:
        self._due -= 1
        if self._stopped_until <= self.world.now:
            act()
        elif self._stopped_until < math.inf:
            self._after(self._stopped_until - self.world.now, act)

    @property
    def hangs(self) -> bool:
        """Whether the process is neither done nor dead, but has nothing left to do or to wait for."""
        return self.act.ended is None and self._stopped_until < math.inf and not self._due

    def _soon(self, program: Program[Any], answer: Any) -> None:
        self._after(0.0, partial(self._advance, program, answer))

    def _halt_for(self, seconds: float) -> None:
        """Stop this process for so many seconds of virtual time."""
        if self.act.halted is None and self.act.ended is None:
            self.act.halted = self.world.now
            self._stopped_until = self.world.now + seconds
            self._on_idle()

    def over(self, result: Run | None, refusal: BaseException | None) -> None:
        """End the process with the run that it got, or with the error that refused it."""
        act = self.act
        act.run, act.refusal, act.ended = result, refusal, self.world.now
        self._on_idle()

    # -- the programs --------------------------------------------------------------------------------------------------

    def _advance(self, program: Program[Any], answer: Any) -> None:
        throws = False
        while True:
            exits = None if throws else self._struck("driver")
            if exits is not None:  # the answer is lost
                self._handler_raised(exits)
                answer, throws = exits, True
            try:
                self._drives = True
                effect = program.throw(answer) if throws else program.send(answer)
            except StopIteration as stop:
                if program is self._main:
                    self.over(stop.value, None)
                return None
            except Exception as error:
                if program is not self._main:
                    raise
                self.over(None, error)  # a refused claim
                return None
            except BaseException as error:  # noqa: BLE001 - the caller gets it once the run has ended
                aborted = self._aborted(program, error)
                if aborted is None:
                    return None
                program, answer, throws = aborted, None, False
                continue
            finally:
                self._drives = False
                self._act_on_deferred()
            throws = False
            exits = self._struck("driver")
            if exits is not None:  # the effect is not performed
                self._handler_raised(exits)
                answer, throws = exits, True
                continue
            answer = None
            if type(effect) is Suspended:  # The inline path has only begun this step: call it as any other one.
                effect.coroutine.close()
                return self._call(program, as_call(effect.ctx, effect.context))
            if type(effect) is Context:
                return self._call(program, as_call(effect, self.run.context.copy()))
            if type(effect) is Call:
                return self._call(program, effect)
            if type(effect) is Ask:
                if not self._network.is_faultless or self._halts("store", self._asks + 1):
                    return self._ask(program, effect)
                self._asks += 1
                answer = self._interrupted_ask(self._network.ask(self._number, effect.verb, effect.argument))
            elif type(effect) is Sleep:
                if not effect.is_over_at_once(self.run):
                    self._sleeping[effect] = program
                    self._after(effect.seconds, partial(self._wake, effect))
                    return None
            elif type(effect) is AwaitAbandoned:
                if effect.call.late_outcome is None:
                    self._awaited_late[effect.call] = program
                    self._after(effect.seconds, partial(self._late_call_ended, effect.call, None))
                    return None
                answer = effect.call.late_outcome
            elif effect is WAIT:
                self._main_parked = True
                return None
            elif effect is RESUME:
                self._resume_main()
            elif type(effect) is Alarm:
                self._after(effect.seconds, self.look)
            elif effect is REQUEST_WORKER:
                self._after(self.world.random.random() * 0.1, partial(self._advance, work_beside_main(self.run), None))
            elif type(effect) is Delegate:
                self._soon(work_beside_main(self.run, effect.node), None)
            elif type(effect) is Stop:
                self._stop(effect)

    # -- the store -----------------------------------------------------------------------------------------------------

    def _ask(self, program: Program[Any], ask: Ask) -> None:
        """Send a request to the store, and resume the program with the reply. The process stops before or after the
        store applies the request, if its halt is due."""
        self._asks += 1
        halt = self._halt if self._halts("store", self._asks) else None

        def on_reply(outcome: Outcome) -> None:
            self._advance(program, self._interrupted_ask(outcome))

        if halt is None:
            self._send(ask.verb, ask.argument, on_reply)
        elif halt.done:
            self._send(ask.verb, ask.argument, on_reply, partial(self._halt_for, halt.seconds))
        else:
            self._after(0.0, partial(self._send, ask.verb, ask.argument, on_reply))
            self._halt_for(halt.seconds)

    def _send(
        self, verb: str, argument: Any, on_reply: Callable[[Outcome], None], applied: Callable[[], None] | None = None
    ) -> None:
        def answered(seconds: float, outcome: Outcome) -> None:
            self._due -= 1
            self._after(seconds, partial(on_reply, outcome))

        self._due += 1
        self._network.send(self._number, verb, argument, answered, applied)

    def _owns(self, run: RunState) -> None:
        """Keep the lease of the claimed run renewed from now on, as an engine's heartbeat does."""
        if self.act.caller.beats and self._settings.lease < math.inf:
            self._beat_later(Lease(run.stored_key, run.run_id, run.fence))

    def _beat_later(self, lease: Lease) -> None:
        self._after(self._settings.lease / _BEATS, partial(self._beat, lease))
        self._due -= 1

    def _beat(self, lease: Lease) -> None:
        self._due += 1
        if self.act.ended is not None or self.hangs:
            return
        sent, seconds = self.world.now, self._settings.lease

        def on_reply(outcome: Outcome) -> None:
            answer, failure = outcome
            if failure is not None:
                return
            if answer[0] is not Renewal.LOST:
                if self.run.ledger is not None:
                    self.run.ledger.extend_lease(sent + seconds)
                if answer[0] is Renewal.SENT:
                    self._send("find", lease.key, found)
                if answer[0] in {Renewal.CANCEL, Renewal.UNDO} and obey(self.run, answer[0]):
                    self._stop(Stop(cancel=True))
            elif self.act.ended is None:
                lose(self.run)
                self._stop(Stop(cancel=True))

        def found(outcome: Outcome) -> None:
            record = outcome[0]  # None if the reply was lost: the next renewal has the values read again
            if record is not None and record.run_id == lease.run_id and self.act.ended is None:
                for name, value in record.sent.items():
                    keep(self.run, name, value)
                self.look()

        received = 0 if self.run.waits is None else len(self.run.waits.sent)
        self._send("renew", ([replace(lease, received=received)], seconds), on_reply)
        self._beat_later(lease)

    # -- the other effects ---------------------------------------------------------------------------------------------

    def _wake(self, sleep: Sleep) -> None:
        program = self._sleeping.pop(sleep, None)
        if program is not None:
            self._soon(program, None)

    def send(self, sending: Sending) -> bool:
        """Send a value to the run, by way of its store if that knows the run. Returns whether the value counts."""
        key, sent = self.run.stored_key, Sent(sending.value, self.world.now, id=sending.id)
        if self._settings.durable or self.run.claimed or self.act.ended is not None:
            counts, first = drive(accepted(self._settings.store, key, sending.step, sent), operator.call)
            if first is not None and self._settings.durable and self._random() < _SENT_HERE:
                self._received(key, sending.step, first)
            return counts
        return counts_as(self._received(key, sending.step, sent), sent)

    def _received(self, key: str, name: str, sent: Sent) -> Sent | None:
        """Take a value that was sent to a run. Returns the value that counts, or None if the run is not its own."""
        if (
            self.act.ended is not None
            or self._stopped_until > self.world.now
            or key != self.run.stored_key
            or self.run.lost
        ):
            return None
        first = keep(self.run, name, sent) if self._settings.durable else receive(self.run, name, sent)
        self.look()
        return first

    def look(self) -> None:
        """Have a worker check for the values and moments that the run waits for."""
        self._after(0.0, self._run_helper)

    def _run_helper(self) -> None:
        if self.act.ended is None and self._begun:  # The inline path checks its waits by itself.
            self._advance(work_beside_main(self.run), None)

    def cancel_after(self, seconds: float) -> None:
        """Cancel the run so many seconds from now."""
        self._after(seconds, self.cancel)

    def cancel(self) -> None:
        if stopping.interrupt(self.run, StepCancelled("the run was cancelled by the simulation.")):
            self.act.cancelled = self.world.now
            self._stop(Stop(cancel=True))

    def stop_after(self, seconds: float) -> None:
        """Park the run so many seconds from now, because the process must stop."""
        self._after(seconds, self.hand_over)

    def hand_over(self) -> None:
        if self.act.ended is None and stopping.hand_over(self.run, parked(self.run, "its process stops")):
            self.act.stopped = self.world.now
            self._stop(Stop(cancel=True))

    def _resume_main(self) -> None:
        if self._main_parked:
            self._main_parked = False
            self._soon(self._main, None)

    def _stop(self, stop: Stop) -> None:
        if self.run.resumes_main():
            self._resume_main()
        for call in list(self._waiting):
            self._ends_wait(call, timed_out=False)
        for sleep in list(self._sleeping):
            if sleep.is_cut_short(self.run):
                self._wake(sleep)
        for call in list(self._running) if stop.cancel else ():
            if not call.shielded:
                # A coroutine stops when it is cancelled. A thread is given up after the grace, but may end before.
                heeds = self._random() < 0.5
                wait = 0.0 if heeds else self._settings.grace
                self._after(wait, partial(self._abandon, call, timed_out=False))
