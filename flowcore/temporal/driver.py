"""The driver that performs the effects of the kernel's programs in a Temporal workflow. Each step and each undo is one
activity.

Temporal replays this code to rebuild a run, so each of its awaits and commands depends on the run's history alone: the
clock is that of the workflow, and ready steps start in the kernel's order. A change in the order of commands breaks
runs in flight. The tests replay recorded histories to find such changes.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

from .._durable.claim import record_of
from .._durable.endings import ending
from .._durable.takeover import Takeover, crash_of, held_run
from .._kernel import stopping
from .._kernel.effects import (
    REQUEST_WORKER,
    RESUME,
    SHIELD,
    WAIT,
    Abandoned,
    Alarm,
    Ask,
    AwaitAbandoned,
    Call,
    Delegate,
    Outcome,
    Program,
    Sleep,
    Stop,
    WholeStep,
)
from .._kernel.outcome import StepEnd
from .._kernel.request import Request as RunRequest
from .._kernel.run import execute, work_beside_main
from .._kernel.run_state import RunState
from .._kernel.set_aside import set_aside
from .._kernel.settings import Settings
from .._kernel.wait_steps import receive
from .._wire import unpack_error
from ..errors import FlowcoreError, SendRefused, StepCancelled, safe_repr
from ..events import Hooks
from ..plan import Node
from ..run import Run, Sent, StepReport
from ..status import Status
from ..step import Landed, NotLanded
from ..stores.base import RunRecord
from .definitions import Definition, activity_name
from .granted import Granted, NoStore
from .inputs import Inputs
from .outputs import end_of, never_began, output_of, refused
from .sizes import Carried
from .wire import Request, SentValue, StepOutput, pack_sent

__all__ = ["WorkflowDriver", "generation_of"]

_NO_LIMIT: Final = timedelta(days=3650)
"""an activity needs no limit in Temporal: a step is limited by its own timeout, and a dead worker is noticed by its
missing heartbeat"""
_AFTER_A_CRASH: Final = 0.1
"""part of a lease that passes between a worker's death and the next attempt of its step"""
_SHOWS_WAITING: Final = "memo-waiting"
"""the patch since which the memo shows that a run waits; runs that began before it have other commands"""
_LIMITED: Final = "size-limit"
"""the patch since which a step fails whose result is too large for its run"""
_ANY_RETRY: Final = "any-retry"
"""the patch since which the commands do not depend on the number of attempts of a step, so that a deploy may change it"""
_CANCELS_WHEN: Final = "cancel-when"
"""the patch since which a cancellation reaches a `when=`"""
_AT_LEAST: Final = 0.001
"""seconds that a step has at least to begin before the deadline of its run"""


def generation_of(first_run_id: str) -> int:
    """The generation in the step keys of a run, from the id of its first execution. After a failed run, the next run of
    its key has another one."""
    return int(first_run_id.replace("-", "")[:13], 16)


class WorkflowDriver:
    """Drives the programs of one run. `record`: the record with which the execution began and, once the run has ended,
    the record of its end. `deadline`: the deadline that the call which resumes the run has set, in seconds from the
    first claim; it holds for this execution only, and then the recorded one holds again."""

    def __init__(
        self, definition: Definition, request: Request, record: RunRecord, deadline: float | None = None
    ) -> None:
        self._request = request
        self._earlier = record if request["resumed"] else None
        self.record = record
        self._deadline = record.deadline
        self.reason = record.reason
        """the reason that an operator gave for the latest decision"""
        self.retry_in: float | None = None
        """seconds until a parked or incomplete run is resumed; None: only a decision resumes it"""
        settings = Settings(
            store=NoStore(),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            claims=Granted(self),
            hooks=Hooks(),
            grace=request["grace"],
            parallel=request["parallel"],
            runs_async=True,
            caller_shares=True,
            clock=workflow.time,
            wall=workflow.time,
            random=workflow.random().random,
            new_id=lambda: record.run_id,
            lease=request["lease"],
            max_takeovers=request["max_takeovers"],
            whole_steps=True,
            namespace="",
        )
        requested = RunRequest(
            *(definition.workflow, definition.plan_for(record.run_id), dict(record.values)),
            *(contextvars.copy_context(), record.key),
            deadline=record.deadline if deadline is None else deadline,
        )
        run = self.run = RunState(settings, requested)
        run.run_id, run.fence = record.run_id, request["fence"]
        run.fingerprint, run.carrier = record.fingerprint, record.carrier
        run.on_pause = self._paused
        self.waiting_for: tuple[str, ...] = ()
        """the waits for which the run waits, if it does nothing else"""
        if run.waits is not None:
            run.waits.sent.update((name, Sent(**sent)) for name, sent in request["sent"].items())
        self._carriers = {name: dict(carrier) for name, carrier in record.carriers.items()}
        self._generation = generation_of(workflow.info().first_execution_run_id)
        self._inputs = Inputs(run, request, self._generation, self._carriers)
        self._carried = Carried(run, record, request["sent"])
        self._main = execute(run)
        self._main_waits = self._main_due = False
        self._over = asyncio.Event()
        self.raised: BaseException | None = None
        """the error that the caller of the run gets"""
        self._failure: BaseException | None = None
        self._calls: dict[workflow.ActivityHandle[StepOutput], tuple[Node, str]] = {}
        """steps, and calls of `when=`, that are in flight, and the kind of each; undos are not among them"""
        self._tasks, self._cancelled = set[asyncio.Task[None]](), False

    async def drive(self) -> None:
        """Drive the run to its end. A cancellation of the execution cancels the run, but not its undos."""
        self._inputs.any_retry = workflow.patched(_ANY_RETRY)
        self._advance(self._main, None)
        while not self._over.is_set():
            try:
                await self._over.wait()
            except asyncio.CancelledError:
                if self._cancelled or workflow.cancellation_reason() is None:
                    raise  # Temporal evicts the run from this worker's memory
                self._cancelled = True
                self.cancel()
        if self._failure is not None:
            raise self._failure

    def cancel(self) -> None:
        """Cancel the run."""
        self.reason = workflow.cancellation_reason() or self.reason
        what = f"run {self.run.run_id} of {safe_repr(self.run.workflow.name)} was cancelled."
        if stopping.interrupt(self.run, StepCancelled(what)):
            self._stop(Stop(cancel=True))

    @property
    def sent(self) -> dict[str, SentValue]:
        """The values that were sent to the run's waits, as plain data."""
        waits = self.run.waits
        return {} if waits is None else {name: pack_sent(sent) for name, sent in waits.sent.items()}

    @property
    def stopping(self) -> str:
        """How the steps in flight must end: "cancel" (they are cancelled), "stop" (they make no further attempt), or
        empty (as they do by themselves)."""
        return "cancel" if self.run.interrupted else "stop" if self.run.stopped else ""

    # -- the claim and the end -----------------------------------------------------------------------------------------

    def begin(self) -> Takeover | None:
        """Begin the run. Returns the takeover of the record that an earlier execution of the run left, or None if this
        is the first."""
        run = self.run
        if run.request.deadline is not None:
            run.deadline = self._request["wall"] + run.request.deadline
        return None if self._earlier is None else Takeover(self._earlier)

    def finish(self, finished: Run) -> None:
        """Keep the record of how the run ended, and decide when a parked or incomplete run is resumed."""
        run = self.run
        record = record_of(run, finished)
        record.carriers, record.deadline = self._carriers, self._deadline
        record.started, record.finished, record.fence = self._request["wall"], workflow.time(), run.fence
        ended = ending(run, record, None)
        if not record.held and record.status in {Status.PARKED, Status.INCOMPLETE} and ended.retry_in < float("inf"):
            self.retry_in = ended.retry_in
        record.reason = record.reason or self.reason
        self.record = record

    def snapshot(self) -> RunRecord:
        """The record of the run as it is now."""
        run = self.run
        if self._over.is_set():
            return self.record
        record = RunRecord(run.stored_key, run.run_id, run.workflow.name, run.fingerprint, run.plan.graph)
        record.results, record.values, record.steps = dict(run.results), dict(run.values), dict(run.reports)
        for node, kind in self._calls.values():
            if kind == "when":
                continue
            before = run.tried.get(node.name, StepReport())
            running = replace(before, status=Status.RUNNING, attempts=before.failed + 1, retry_at=None)
            record.steps = {**record.steps, node.name: running}
        record.undoing, record.failed_step, record.error = run.failing, run.failed_step, run.error
        record.carrier, record.carriers, record.deadline = run.carrier, self._carriers, self._deadline
        record.started, record.fence, record.reason = self._request["wall"], run.fence, self.reason
        if self.waiting_for:
            record.status, record.waiting_for = Status.WAITING, self.waiting_for
        return record

    def _paused(self, waiting: Run | None) -> None:
        """Record that the run only waits from now on (`waiting`), or no longer does (None). The memo of its workflow
        shows it to callers and operators."""
        waits = self.run.waits
        names = () if waiting is None or waits is None else tuple(waits.aside)
        if names == self.waiting_for:
            return
        self.waiting_for = names
        if workflow.patched(_SHOWS_WAITING):
            state = Status.WAITING if names else Status.RUNNING
            workflow.upsert_memo({"state": str(state), "waiting_for": list(names)})

    # -- performing effects --------------------------------------------------------------------------------------------

    def _advance(self, program: Program[Any], answer: Any) -> None:
        """Resume `program` and perform its effects until it waits or ends."""
        while True:
            try:
                effect = program.send(answer)
            except StopIteration as stop:
                if program is self._main:
                    self.raised = stop.value.error
                    self._over.set()
                return
            except BaseException as error:  # noqa: BLE001 - a defect: the workflow task fails, and Temporal retries it
                self._failure = error
                self._over.set()
                return
            answer = None
            if type(effect) is WholeStep:
                self._spawn(self._whole_step(program, effect))
                return
            if type(effect) is Call:
                self._spawn(self._question(program, effect))
                return
            if type(effect) is Sleep:
                self._spawn(self._sleep(program, effect))
                return
            if type(effect) is Alarm:
                self._spawn(self._check_waits_after(effect.seconds))
            elif type(effect) is Ask:
                answer = None, FlowcoreError(f"a run on Temporal has no store to {effect.verb}.")
            elif effect is WAIT:
                if not self._main_due:
                    self._main_waits = True
                    return
                self._main_due = False
            elif effect is RESUME:
                self._resume_main()
            elif effect is REQUEST_WORKER:
                self._spawn(self._later(work_beside_main(self.run)))
            elif type(effect) is Delegate:
                self._spawn(self._later(work_beside_main(self.run, effect.node)))
            elif type(effect) is Stop:
                self._stop(effect)
            # Cancellations and late calls are handled elsewhere.
            elif effect is not SHIELD and type(effect) is not AwaitAbandoned:
                raise FlowcoreError(f"a run on Temporal cannot do {effect!r}.")

    def _resume_main(self) -> None:
        self._main_due = not self._main_waits
        if self._main_waits:
            self._main_waits = False
            self._spawn(self._later(self._main))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(coroutine))
        self._tasks.add(task)  # the loop holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001 - a defect: see `_advance`
            self._failure = error
            self._over.set()

    async def _later(self, program: Program[Any]) -> None:
        self._advance(program, None)

    async def _sleep(self, program: Program[Any], sleep: Sleep) -> None:
        await workflow.sleep(sleep.seconds)
        self._advance(program, None)

    async def _check_waits_after(self, seconds: float) -> None:
        """Look at the run's waits in so many seconds, when the time of one of them is over."""
        await workflow.sleep(seconds)
        if not self._over.is_set():
            self._advance(work_beside_main(self.run), None)

    def receive(self, name: str, sent: Sent) -> bool:
        """Take a value that was sent to the wait `name` of the run. Returns whether it counts. Raises SendRefused."""
        why = self._carried.refusal_of_sent(sent.value)
        if why is not None and workflow.patched(_LIMITED):
            raise SendRefused(why)
        first = receive(self.run, name, sent)
        if first is sent:
            self._carried.receive(sent.value)
            self._advance(work_beside_main(self.run), None)
        return first is sent or (sent.id is not None and first.id == sent.id)

    def _stop(self, stop: Stop) -> None:
        """Cancel the activities of steps in flight. Each of them then asks this workflow whether its step is cancelled
        or only makes no further attempt."""
        if self.run.waits is not None and self.run.resumes_main():  # nothing is in flight, and nothing is waited for
            self._resume_main()
        for handle, (node, kind) in self._calls.items():
            if kind == "when":
                if stop.cancel and workflow.patched(_CANCELS_WHEN):
                    handle.cancel()
            elif stop.cancel or self._inputs.any_retry or node.max_attempts > 1:
                handle.cancel()

    # -- activities ----------------------------------------------------------------------------------------------------

    async def _whole_step(self, program: Program[Any], effect: WholeStep) -> None:
        run, node, undo = self.run, effect.node, effect.undo
        if run.interrupted and not undo:
            self._advance(program, StepEnd(Status.PENDING))
            return
        output = await self._activity(node, "undo" if undo else "do")
        end = self._end(node, output, undo=undo)
        if "retry_at" in output:
            aside = set_aside(run, node, end, output["retry_at"] - workflow.time())
            if aside is not None:
                end.scope = None  # the next activity measures its own times
                end = aside
        self._advance(program, end)

    async def _activity(self, node: Node, kind: str, limit: float | None = None) -> StepOutput:
        run = self.run
        lease = timedelta(seconds=self._request["lease"])
        begins = None
        if run.deadline is not None and kind in {"do", "when"}:
            begins = timedelta(seconds=max(_AT_LEAST, run.deadline - workflow.time()))
        handle: workflow.ActivityHandle[StepOutput] = workflow.start_activity(
            activity_name(run.workflow.name, node, kind),
            self._inputs.input_of(node, kind, limit),
            start_to_close_timeout=_NO_LIMIT,
            schedule_to_start_timeout=begins,
            heartbeat_timeout=lease,
            retry_policy=RetryPolicy(
                initial_interval=lease * _AFTER_A_CRASH, backoff_coefficient=1
            ),  # for crashes only
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        if kind in {"do", "when"}:
            self._calls[handle] = node, kind
        try:
            output = await handle
        except ActivityError as error:
            output = output_of(error, run, node)
        except asyncio.CancelledError:
            if not handle.cancelled():  # Temporal evicts the run from this worker's memory
                raise
            output = never_began(node)  # it was cancelled at the moment when it was to be scheduled
        finally:
            self._calls.pop(handle, None)
        why = self._carried.refusal(node.name, output) if kind == "do" and output["status"] == Status.SUCCESS else None
        if why is not None and workflow.patched(_LIMITED):
            output = refused(output, why)
        self._carried.take(output)
        run.fence = max(run.fence, output.get("fence", 0))
        for key, text in output.get("writes", {}).items():
            if text is None:
                run.values.pop(key, None)
            else:
                run.values[key] = text
        return output

    def _end(self, node: Node, output: StepOutput, *, undo: bool) -> StepEnd:
        """Return the end of a step or undo from the output of its activity, and note in the run what else the output
        says."""
        run, end = self.run, end_of(output, self.run, node)
        if not undo and "carrier" in output:
            self._carriers[node.name] = output["carrier"]
        if output.get("in_doubt") and not undo:
            run.was_in_doubt |= {node.name}
        if (late := output.get("late")) is not None:
            report = run.report(node)
            report.completed_late, report.completed_late_at = Status(late), output.get("late_at")
            if late == Status.SUCCESS and "value" in output:
                run.results.setdefault(node.name, output["value"])
        decision = output.get("decision")
        if decision == "undo":
            end.error = crash_of(run, [node])
        elif decision == "hold":
            stopping.hold(run, held_run(run, output.get("reason", "")))
            end.error = end.error or StepCancelled(f"step {safe_repr(node.name)} was interrupted: its run is held.")
        return end

    async def _question(self, program: Program[Any], call: Call) -> None:
        """Call a step's `when=` or `verify=` in an activity."""
        verifies = call.fn is call.node.step.verify
        output = await self._activity(call.node, "verify" if verifies else "when", call.timeout)
        answer: Outcome
        error = output.get("error")
        if output["status"] == Status.CANCELLED and self.run.interrupted:
            answer = None, Abandoned(call, timed_out=False, over=True)
        elif error is not None:
            answer = None, unpack_error(error, self.run.run_id, call.node.name)
        elif not verifies:
            answer = bool(output.get("answer")), None
        elif output.get("answer") == "landed":
            answer = Landed(output.get("value")), None
        else:
            answer = (None if output.get("answer") is None else NotLanded), None
        self._advance(program, answer)
