"""The Temporal activity of one step or undo, or of one call of `when=` or `verify=`. In a worker, the asyncio driver
runs the kernel's programs for it.

The death of a worker is not the failure of a step: Temporal gives the activity to another worker, and this second
attempt finds the step in doubt. `verify=` and `on_crash=` then decide here, as they decide in a takeover on other
engines.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, cast

from temporalio import activity
from temporalio.client import Client
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from .._durable.claim import StoreClaims
from .._durable.ledger import Ledger
from .._engines.aio_driver import AsyncDriver
from .._engines.workers import Workers
from .._kernel import emit, stopping
from .._kernel.doubt import ask_verify
from .._kernel.effects import Program, Stop
from .._kernel.ledger import Errors
from .._kernel.outcome import StepEnd
from .._kernel.request import Request
from .._kernel.run_state import RunState
from .._kernel.settings import Settings
from .._kernel.steps import ask_when, run_whole_step
from .._kernel.undo import run_whole_undo
from .._wire import pack_error, unpack_error
from ..errors import DefinitionError, NotSerializable, StepCancelled, safe_repr, safe_str
from ..events import Hooks
from ..plan import Node, Plan
from ..retry import some_random
from ..run import StepReport, error_line
from ..status import Status
from ..step import Landed
from ..stores.decoding import INITIAL, STEP, WRITE
from ..stores.encoding import Encoding
from .beats import Beats
from .definitions import definition_of
from .flow import FlowcoreWorkflow
from .outputs import refused
from .pulse import Pulse
from .sizes import check_output
from .wire import StepInput, StepOutput

__all__ = ["Steps"]

_BEATS: Final = 3
"""heartbeats per lease"""
_FETCH: Final = 30.0
"""seconds until a result that was not sent with the activity must be fetched"""


class _Unclear(Exception):
    """`verify=` could not decide. Temporal attempts the activity again, which calls it once more."""


class _Decided(Exception):
    """`on_crash=` has decided that the step is undone, or that its run is held."""


class _Worker:
    """Stands for the store in the process that runs a step. Temporal keeps the record."""

    name = "temporal"
    durable = True
    blocks = False


class _StepLedger(Ledger):
    """Collects what the run must know about a step that runs in this process: its writes, the values that it changes in
    place, and its carrier. Failed attempts are reported with the heartbeat, so that they count even if this worker
    dies."""

    def __init__(self, failed: Callable[[StepEnd, float], None]) -> None:
        super().__init__()
        self._failed = failed

    def began(self, run: RunState, node: Node, attempt: int, errors: Errors) -> Program[bool]:
        yield from ()
        return not run.stopped

    def attempt_failed(self, run: RunState, node: Node, end: StepEnd, delay: float) -> Program[None]:
        yield from ()
        self._failed(end, run.settings.wall() + delay)

    def may_continue(self, run: RunState) -> Program[bool]:
        yield from ()
        return not run.relinquished

    def take_writes(self, run: RunState, node: Node) -> Mapping[Any, Any]:
        """Remove and return what the step has written, and the values that it has changed in place."""
        with run.lock:
            self._note_changes(run, node)
            return self.writes.pop(node.name, {})


class _StepClaims(StoreClaims):
    def __init__(self, failed: Callable[[StepEnd, float], None]) -> None:
        super().__init__()
        self._failed = failed

    def open(self) -> Ledger:
        return _StepLedger(self._failed)


def _node_of(plan: Plan, sent: StepInput) -> Node:
    """The step of an activity. Raises DefinitionError if this worker's version of the workflow lacks it, or lacks the
    function that is to be called."""
    name, kind = safe_repr(sent["step"]), sent["kind"]
    node = plan.by_name.get(sent["step"])
    missing: str | None = None
    if node is None or (kind == "do" and node.wait is not None):
        missing = f"step {name} with a function"
    elif kind == "undo" and node.compensation is None:
        missing = f"undo of step {name}"
    elif (kind == "when" and node.when is None) or (kind == "verify" and node.step.verify is None):
        missing = f"{kind}= for step {name}"
    if node is None or missing is not None:
        raise DefinitionError(f"its version of workflow {safe_repr(sent['workflow'])} has no {missing}.")
    return node


class _Results(dict[str, Any]):
    """The results of other steps. A result that was not sent with the activity is fetched, once, when a sync step asks
    for it."""

    def __init__(self, known: Mapping[str, Any], more: Iterable[str], fetch: Callable[[str], Any]) -> None:
        super().__init__(known)
        self._more = set(more)
        self._fetch = fetch

    def get(self, key: str, default: Any = None) -> Any:
        if key in self._more:
            self[key] = self._fetch(key)
            self._more.discard(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._more or super().__contains__(key)


class Steps:
    """The activities of one worker. `pool`: threads for sync steps."""

    def __init__(self, client: Client, hooks: Hooks, encoding: Encoding, pool: Workers) -> None:
        self._client = client
        self._hooks = hooks
        self._encoding = encoding
        self._pool = pool
        self._tasks: set[asyncio.Future[Any]] = set()  # calls that complete late outlive their activity
        self.pulse = Pulse(client)

    async def perform(self, args: Sequence[RawValue]) -> StepOutput:
        """Perform one activity. If its step fails, the output is raised as an error, so that Temporal shows the
        failure."""
        sent = cast("StepInput", activity.payload_converter().from_payload(args[0].payload, dict))
        beats = Beats(activity.info(), sent.get("tried"))
        try:
            await self._fetch(sent)
            call = _Activity(sent, beats, self._client, self._hooks, self._encoding)
        except Exception as unfit:  # noqa: BLE001 - another version of the workflow, values that this worker cannot read
            why = (
                f"this worker gives step {safe_repr(sent['step'])} back to Temporal, which offers it to the workers again: "
                f"{error_line(unfit, 500)}"
            )
            raise beats.give_back(why, in_doubt=beats.in_doubt) from None  # its message may be one that cannot be sent
        await self.pulse.encode(beats)
        self.pulse.add(beats)
        try:
            output = await call.perform(self._pool, self._tasks, self.pulse)
        finally:
            self.pulse.remove(beats)
        if sent["kind"] in {"when", "verify"} or output["status"] == Status.SUCCESS or "retry_at" in output:
            return output
        error = output.get("error") or {"type": output["status"], "message": output.get("reason", "")}
        raise ApplicationError(error["message"], output, type=error["type"], non_retryable=True)

    async def _fetch(self, sent: StepInput) -> None:
        """Fetch what the activity needs and what had no room in its input."""
        info = activity.info()
        handle = self._client.get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
        if sent.get("fetch_values"):
            sent["values"] = await handle.query(FlowcoreWorkflow.values)
        names = sent.get("fetch")
        if names:
            sent["results"] |= await handle.query(FlowcoreWorkflow.results, names)


class _Activity:
    """One activity: the part of a run that this process performs."""

    def __init__(self, sent: StepInput, beats: Beats, client: Client, hooks: Hooks, encoding: Encoding) -> None:
        self._sent, self._beats, self._client, self._encoding = sent, beats, client, encoding
        info = self._info = activity.info()
        self._lease = (info.heartbeat_timeout or timedelta(seconds=30)).total_seconds()
        self._loop = asyncio.get_running_loop()
        definition = definition_of(info.task_queue, sent["workflow"]).workflow
        plan = definition.freeze()
        settings = Settings(
            store=_Worker(),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            claims=_StepClaims(beats.attempt_failed),
            hooks=hooks,
            grace=sent["grace"],
            parallel=1,
            runs_async=True,
            caller_shares=False,
            clock=time.monotonic,
            wall=time.time,
            random=some_random,
            new_id=lambda: sent["run_id"],
            lease=self._lease,
            namespace=sent["namespace"],
            park_after=sent.get("park_after", math.inf),
        )
        self._types = plan.types
        values = {key: self._loaded(WRITE + key, text, INITIAL + key) for key, text in sent["values"].items()}
        request = Request(definition, plan, values, contextvars.copy_context(), sent["key"])
        run = self._run = RunState(settings, request)
        self._node = _node_of(plan, sent)
        run.run_id, run.generation = sent["run_id"], sent["generation"]
        run.fence = sent["fence"] + info.attempt - 1
        run.carrier = sent["carrier"]
        known_results = {name: self._loaded(STEP + name, text) for name, text in sent["results"].items()}
        run.results = _Results(known_results, sent["more"], self._fetch)
        run.reports = {name: StepReport(Status(status)) for name, status in sent["reports"].items()}
        run.failed_step = sent["failed_step"]
        run.error = None if sent["error"] is None else unpack_error(sent["error"], run.run_id, run.failed_step)
        now, wall = time.monotonic(), time.time()
        if run.ledger is not None:
            run.ledger.epoch = wall - now
        if sent["deadline"] is not None:
            run.deadline = now + sent["deadline"] - wall
        run.ready_at[self._node.index] = now - max(0.0, wall - sent["ready_at"])
        emit.joined(run, sent["carriers"])
        failed, tried = beats.failed, sent.get("tried")
        if failed.get("failed"):
            errors = tuple((kind, message) for kind, message in failed["errors"])
            report = StepReport(Status.PENDING, failed=failed["failed"], errors=errors, retry_at=failed["retry_at"])
            report.started = None if tried is None else tried["started"]
            report.attempt_times = tuple((began, ended) for began, ended in failed.get("times", ()))
            run.tried = {self._node.name: report}

    def _loaded(self, field: str, text: str, place: str | None = None) -> Any:
        annotation = self._types.get(field, Any)
        return self._encoding.sealing.loads(text, annotation, self._sent["run_id"], place or field)

    def _fetch(self, name: str) -> Any:
        """Fetch a result that was not sent with the activity. This blocks a thread, so it is for sync steps only: an
        async step gets all results with its activity."""
        info = self._info
        handle = self._client.get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
        asked = handle.query(FlowcoreWorkflow.results, [name])
        found = asyncio.run_coroutine_threadsafe(asked, self._loop).result(_FETCH)
        return self._loaded(STEP + name, found[name])

    # -- performing it -------------------------------------------------------------------------------------------------

    async def perform(self, pool: Workers, tasks: set[asyncio.Future[Any]], pulse: Pulse) -> StepOutput:
        sent, run, node, beats = self._sent, self._run, self._node, self._beats
        if beats.crashes > sent["max_takeovers"] and beats.in_doubt:
            what = "the undo of step" if sent["kind"] == "undo" else "step"
            return self._held(f"its worker crashed {beats.crashes} times in {what} {safe_repr(node.name)}")
        driver = AsyncDriver(run, 0, pool, tasks, self._program())
        driving = asyncio.create_task(driver.run_here())
        heart = asyncio.create_task(self._beat_often(pulse))
        try:
            while not driving.done():
                try:
                    await asyncio.wait([driving])
                except asyncio.CancelledError:
                    await self._cancelled(driver)
        finally:
            heart.cancel()
        driving.result()
        if isinstance(driver.error, _Decided):
            decision = str(driver.error)
            if decision == "hold":
                return self._held(
                    f"it was interrupted while step {safe_repr(node.name)} was in flight, which has on_crash='hold'"
                )
            return {"status": str(Status.FAILURE), "attempts": 1, "decision": decision, "in_doubt": True}
        if driver.result is None and driver.error is not None:
            if isinstance(driver.error, _Unclear):
                unclear = beats.give_back(str(driver.error), in_doubt=True, kind="Unclear", later=True)
                raise unclear from driver.error.__cause__
            raise driver.error
        end = cast("StepEnd", cast("object", driver.result))
        undone_elsewhere = sent["kind"] == "undo" and end.error is not None
        if run.parked and (undone_elsewhere or end.status in {Status.PENDING, Status.CANCELLED}):
            # A pending step has not begun here, so its next attempt is its first, unless an earlier worker began it.
            in_doubt = end.status is not Status.PENDING or node.name in run.was_in_doubt
            why = safe_str(run.leaving or run.error or Exception())
            raise beats.give_back(f"step {safe_repr(node.name)} was given back to Temporal: {why}", in_doubt=in_doubt)
        return self._output(end)

    def _held(self, reason: str) -> StepOutput:
        return {
            "status": str(Status.CANCELLED),
            "attempts": 1,
            "decision": "hold",
            "reason": reason,
            "in_doubt": True,
            "error": pack_error(StepCancelled(f"{reason}.")),
        }

    def _program(self) -> Program[Any]:
        """The program that performs the activity."""
        sent, run, node = self._sent, self._run, self._node
        if sent["kind"] == "undo":
            return (yield from run_whole_undo(run, node, sent["order"], sent["failed_step"] or "cancelled"))
        if sent["kind"] == "when":
            return (yield from ask_when(run, node)) or StepEnd(Status.SUCCESS)
        if sent["kind"] == "verify":
            answer, unclear = yield from ask_verify(run, node)
            end = StepEnd(Status.SUCCESS if unclear is None else Status.FAILURE, answer, unclear)
            return end
        if self._beats.in_doubt:
            answer, unclear = (None, None) if node.step.verify is None else (yield from ask_verify(run, node))
            if unclear is not None:
                raise _Unclear(str(unclear)) from unclear
            if isinstance(answer, Landed):
                return StepEnd(Status.SUCCESS, answer.result, None, self._beats.failed.get("failed", 0) + 1)
            if answer is None:
                if node.step.on_crash != "retry":
                    raise _Decided(node.step.on_crash)
                run.was_in_doubt = frozenset({node.name})
        return (yield from run_whole_step(run, node))

    async def _beat_often(self, pulse: Pulse) -> None:
        while True:
            self._beats.beat()
            await pulse.encode(self._beats)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease / _BEATS):
                    await self._beats.changed.wait()

    async def _cancelled(self, driver: AsyncDriver) -> None:
        """Handle a cancellation of the activity, by its run or because this worker stops. A run does not cancel its
        undos."""
        details = activity.cancellation_details()
        what = f"step {safe_repr(self._node.name)}"
        if details is not None and details.worker_shutdown:
            driver.hand_over(StepCancelled(f"{what} continues on another worker, because this one is stopping."))
        elif self._sent["kind"] in {"do", "when"}:
            info = self._info
            handle = self._client.get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
            try:
                stops = await handle.query(FlowcoreWorkflow.stopping) == "stop"
            except Exception:  # noqa: BLE001 - the server is unreachable, but it has requested the cancellation
                stops = False
            if stops:
                stopping.fail(self._run, StepCancelled(f"{what} makes no further attempt."), self._node.name)
                driver.stop(Stop(cancel=False))
            else:
                driver.cancel(StepCancelled(f"{what} was cancelled."))

    # -- its output ----------------------------------------------------------------------------------------------------

    def _output(self, end: StepEnd) -> StepOutput:
        run, node, kind = self._run, self._node, self._sent["kind"]
        run.finished = end.status  # calls that complete later than this are only reported
        output: StepOutput = {
            "status": str(end.status),
            "attempts": end.attempts,
            "errors": list(end.errors),
            "failed": end.failed,
            "fence": run.fence,
            "in_doubt": node.name in run.was_in_doubt,
        }
        if end.error is not None:
            output["error"] = pack_error(end.error)
        if end.scope is not None:
            scope, epoch = end.scope, time.time() - time.monotonic()
            output["times"] = (scope.at + epoch, scope.waited, max(0.0, scope.ran), scope.backoff)
            output["attempt_times"] = list(scope.attempt_times)
        ledger = run.ledger
        if isinstance(ledger, _StepLedger) and node.name in ledger.carriers:
            output["carrier"] = ledger.carriers[node.name]
        if kind == "when":
            output["answer"] = end.status is Status.SUCCESS
        value: Any = end.value
        has_value = end.status is Status.SUCCESS and kind == "do"
        if kind == "verify" and end.error is None:
            output["answer"] = None if value is None else "not landed"
            if isinstance(value, Landed):
                output["answer"], value, has_value = "landed", cast("Any", value).result, True
        report = run.reports.get(node.name)
        if report is not None and report.completed_late is not None:
            output["late"] = str(report.completed_late)
            if report.completed_late_at is not None:
                output["late_at"] = report.completed_late_at
            value, has_value = run.results.get(node.name), report.completed_late is Status.SUCCESS
        if report is not None and report.retry_at is not None:
            output["retry_at"] = report.retry_at
        try:
            if isinstance(ledger, _StepLedger):
                output["writes"] = {
                    key: None if write.deleted else self._written(key, write.value)
                    for key, write in ledger.take_writes(run, node).items()
                }
            if has_value:
                output["value"] = self._text(STEP + node.name, value, "the result of step", node.name)
            check_output(node.name, output)
        except NotSerializable as error:
            output = refused(output, error)
        return output

    def _text(self, field: str, value: object, what: str, name: str) -> str:
        return self._encoding.dumped(value, self._types.get(field, Any), what, name, self._run.run_id, field)

    def _written(self, key: str, value: object) -> str:
        """The text of a value that the step wrote. A run on Temporal has one mapping of values, and each of them has
        the place of an initial value."""
        annotation = self._types.get(WRITE + key, Any)
        return self._encoding.dumped(value, annotation, "the value of", key, self._run.run_id, INITIAL + key)
