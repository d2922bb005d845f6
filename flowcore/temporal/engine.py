"""`TemporalEngine` starts runs on Temporal, and waits for them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self, TypeVar

from temporalio.client import Client

from .._durable.checkpoints import STORE_BACKOFF
from .._durable.claim import claim
from .._engines.aio_handles import AsyncRunFuture
from .._engines.base import I, outcome
from .._engines.calls import LoopCalls
from .._engines.checks import caller_drives, check_named
from .._engines.driving import drive_on_loop
from .._engines.in_context import is_process_stopping
from .._engines.periodic import PeriodicEngine
from .._engines.sending import announce
from .._kernel import emit
from .._kernel.effects import Ask, Outcome, Program, Sleep
from .._kernel.run_state import RunState
from ..errors import CompensationFailed, DefinitionError, RunNotFound, StoreError, StoreUnavailable
from ..events import Hook
from ..keys import Key
from ..own_errors import own_error
from ..retry import Duration, seconds
from ..run import Run, names_of_sent
from ..status import Status
from ..stores.base import Claim, ClaimAnswer, Claimed, RunRecord
from ..stores.codec import Codec
from ..stores.decide import is_over
from ..workflow import Workflow
from .definitions import check_supported
from .store import Awaited, TemporalStore

if TYPE_CHECKING:
    from ..schedule import ScheduleStatus
    from ..step import Step
    from .schedules import TemporalSchedules

__all__ = ["TemporalEngine"]

T = TypeVar("T")
_NOT_OVER: Final = frozenset({Status.RUNNING, Status.WAITING})
_AT_ONCE: Final = 100
"""default for the number of runs of a `map` in flight"""


class _SentClaim(NamedTuple):
    """A claim that was sent for the run of this id. `reply`: done once the store has replied."""

    run_id: str
    reply: asyncio.Task[ClaimAnswer]


class TemporalEngine(LoopCalls, PeriodicEngine):
    """Runs workflows on a Temporal server; their steps run in the workers of `temporal_worker` with the same task
    queue.

    `run`, `submit` and the like are those of AsyncEngine, but for one event loop only: the client's. A run does not
    need this process: the engine only starts the run, waits for it, and reports it to its hooks; the workers report the
    steps to theirs. The id of a run's Temporal workflow is its key, with `prefix` in front. `lease`: seconds after
    which a step is given to another worker, if its worker has sent no heartbeat. `grace`, `max_takeovers`
    and `park_after` are those of the other engines, and apply in the workers. `codec`: as of a store.

    A workflow that cannot run on Temporal is refused when it is started.
    """

    store: TemporalStore  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        client: Client,
        *,
        task_queue: str,
        hooks: Iterable[Hook] = (),
        lease: Duration = 30.0,
        grace: Duration = 5.0,
        max_takeovers: int = 5,
        store_patience: Duration = 300.0,
        park_after: Duration = 60.0,
        prefix: str = "flowcore:",
        codec: Codec | None = None,
    ) -> None:
        store = TemporalStore(
            client,
            task_queue,
            prefix=prefix,
            codec=codec,
            lease=seconds(lease, "lease="),
            grace=seconds(grace, "grace="),
            max_takeovers=max_takeovers,
            park_after=seconds(park_after, "park_after="),
        )
        super().__init__(
            store, hooks, _AT_ONCE, lease, grace, (), None, store_patience, 10_000, max_takeovers, None, runs_async=True
        )
        self._waiting: dict[asyncio.Future[Run], AsyncRunFuture] = {}
        self._calls: set[asyncio.Task[Any]] = set()
        """claims, and cancellations of runs whose caller was cancelled: they outlive that caller"""
        self._schedules: TemporalSchedules | None = None

    async def run(
        self,
        workflow: Workflow[I],
        values: I | Mapping[str, Any] | None = None,
        *,
        idempotency_key: Key | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        once: bool = False,
        check: bool = True,
        until: Literal["end", "waiting"] = "end",
    ) -> Run:
        """Run a workflow to its end. Arguments and errors are those of `Engine.run`.

        Cancelling the task that awaits this cancels the run: its steps are undone, and then CancelledError is raised
        again. A second cancellation raises it without waiting for the undos. If the process stops, its runs continue in
        the workers.
        """
        until_waiting = not caller_drives(until, durable=False)
        run = self._requested(
            workflow, values, idempotency_key, wait, deadline, once=once, check=check, until_waiting=until_waiting
        )
        return await self._followed(run, None, check=check)

    def _unclaimed(self) -> Iterable[AsyncRunFuture]:
        return [future for future in self._waiting.values() if not future.is_decided]

    def _unbegun(self) -> int:
        return 0  # Temporal keeps the runs that have not begun

    def _begin(self, run: RunState, *, check: bool, records: bool) -> AsyncRunFuture:
        loop = asyncio.get_running_loop()
        futures: list[AsyncRunFuture] = []
        task = loop.create_task(self._begun(run, futures, check=check))
        futures.append(AsyncRunFuture(run, task, loop))
        self._waiting[task] = futures[0]
        task.add_done_callback(self._waiting.pop)
        task.add_done_callback(lambda _: emit.dequeued(run))  # unless it has begun
        return futures[0]

    async def _begun(self, run: RunState, futures: list[AsyncRunFuture], *, check: bool) -> Run:
        return await self._followed(run, futures[0], check=check)

    async def cancel(self, run_id: str | None = None, *, key: str | None = None) -> bool:
        """Cancel a run by its key, or by the id of a run without a key. Returns False if there is no such run, or it is
        over. Raises DefinitionError if neither is given, and StoreError."""
        check_named(run_id, key)
        key = run_id or "" if key is None else key
        claim = self._claim_of(key)
        head = await self.store.head(key)
        if head is None and claim is not None:
            await claim.decided()
            head = await self.store.head(key)
        if head is None or (is_over(head.status) and not head.held):
            return False
        try:
            await self.store.cancel(key)
        except RunNotFound:  # it has just ended
            return False
        return True

    async def send(self, key: str, name: Step[Any] | str, value: Any, *, id: str | None = None) -> bool:  # noqa: A002
        """Send a value to the wait `name` of the run with this key: see `AsyncEngine.send`. It needs a running
        worker."""
        name, id = names_of_sent(name, id)  # noqa: A001
        send = partial(self.store.send, key, name, value, id=id, carrier=announce(self._settings, key, name))
        claim = self._claim_of(key)
        try:
            return await send()
        except RunNotFound:
            if claim is None:
                raise
            await claim.decided()
            return await send()

    async def close(self) -> None:
        """Start no more runs, and wait for none: they continue in the workers. Tasks that await a run here get
        CancelledError."""
        self._closed = True
        looking = [] if self._schedules is None else self._schedules.tasks.close(asyncio.get_running_loop())
        for task in self._waiting:
            task.cancel("closed")
        await asyncio.gather(*self._waiting, *looking, return_exceptions=True)
        if self._calls:
            await asyncio.wait(self._calls, timeout=self._settings.grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _own_schedules(self) -> TemporalSchedules:
        from .schedules import TemporalSchedules

        if self._schedules is None:
            self._schedules = TemporalSchedules(self)
        return self._schedules

    def _recover_also(self, workflow: Workflow[Any]) -> None:
        """Do nothing: Temporal resumes runs by itself."""

    async def schedules(self) -> list[ScheduleStatus]:
        """The status of each schedule of this engine: see `Engine.schedules`."""
        return [] if self._schedules is None else await self._schedules.statuses()

    # -- one run -------------------------------------------------------------------------------------------------------

    async def _followed(self, run: RunState, future: AsyncRunFuture | None, *, check: bool) -> Run:
        check_supported(run.workflow)
        claims: list[_SentClaim] = []
        task = asyncio.create_task(drive_on_loop(self._follow(run, future), partial(self._perform, claims)))
        cancelled: asyncio.CancelledError | None = None
        awaited: set[asyncio.Task[Any]] = {task}
        while awaited := {one for one in awaited if not one.done()}:
            try:
                await asyncio.wait(awaited)
            except asyncio.CancelledError as error:
                if not claims or self._closed or cancelled is not None or is_process_stopping():
                    task.cancel()  # the run never begins, or it continues or is being undone without this caller
                    awaited = {task}
                else:
                    awaited.add(self._call(self._cancel(run, claims[-1], task)))
                cancelled = error
        self.store.forget(run.run_id)
        if cancelled is not None:
            raise cancelled
        finished = task.result()
        return outcome(finished, finished.error, check=check)

    async def _cancel(self, run: RunState, claim: _SentClaim, task: asyncio.Task[Run]) -> None:
        """Cancel a run because its caller was cancelled, once the reply to its claim has arrived. An unreachable server
        is called again. `task`: it waits for the outcome, and continues to wait if the run is the caller's own."""
        await asyncio.wait([claim.reply])
        run_id, patience = claim.run_id, run.settings.store_patience
        try:
            answer = claim.reply.result()
        except Exception as failure:  # noqa: BLE001 - the caller was cancelled and gets no other error
            task.cancel()
            if not isinstance(failure, StoreUnavailable):
                return
            patience = run.settings.lease  # perhaps the run began, and only the reply was lost
        else:
            if not isinstance(answer, Claimed):
                task.cancel()
                return
            run_id = run_id if answer.record is None else answer.record.run_id
        until = time.monotonic() + patience
        for attempt in itertools.count(1):
            try:
                await self.store.cancel_run(run.stored_key, run_id)
            except StoreUnavailable:
                if time.monotonic() > until:
                    return
                await asyncio.sleep(STORE_BACKOFF.delay(attempt))
            except (StoreError, DefinitionError):  # it is over, or not flowcore's
                return
            else:
                return

    def _call(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a call to Temporal that outlives the caller's cancellation."""
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(task)  # the loop holds tasks only weakly
        task.add_done_callback(self._calls.discard)
        return task

    async def _perform(self, claims: list[_SentClaim], effect: object) -> Outcome | None:
        """Call Temporal, or sleep. A claim that is sent is added to `claims`, and a cancellation does not reach it."""
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.seconds)
        if not isinstance(effect, Ask):
            return None
        call = getattr(self.store, effect.verb)(effect.argument)
        if isinstance(effect.argument, Claim) and effect.verb == "claim":
            claims.append(_SentClaim(effect.argument.run_id, self._call(call)))
            call = asyncio.shield(claims[-1].reply)
        try:
            return await call, None
        except Exception as error:  # noqa: BLE001 - the program decides what an error means
            return None, error

    def _follow(self, run: RunState, future: AsyncRunFuture | None) -> Program[Run]:
        """Claim the key, and wait for the run, which the workers drive. Return once it is over, or once it only waits,
        if its caller wants that."""
        emit.requested(run)
        found = yield from claim(run, None, None)
        if isinstance(found, Run):
            return found
        if future is not None:
            future.claimed()
        scope = emit.run_started(run)
        until_waiting, patience = run.request.until_waiting, run.settings.store_patience
        has_waits = run.waits is not None
        may_pause = has_waits or any(node.max_attempts > 1 for node in run.plan.nodes)
        until = Status.WAITING if may_pause and (until_waiting or future is not None) else None

        def is_watched() -> bool:
            paused = until is Status.RUNNING
            return has_waits or until_waiting or paused or (future is not None and future.is_watched)

        while True:
            awaited = Awaited(run.stored_key, run.run_id, run.plan.types, patience, until, is_watched)
            answer, failure = yield Ask("outcome", awaited)
            if failure is not None:
                failed = Run(run, run.workflow.name, Status.LOST, {}, {}, run.plan)
                failed.error = failure
                emit.run_finished(run, scope, failed)
                raise failure
            record, raised, counted = answer
            finished = _run_of(run, record, raised)
            waits = finished.status is Status.WAITING
            if finished.status not in _NOT_OVER or (waits and until_waiting):
                break
            if future is not None:
                future.pause(finished if waits else None)
            until = Status.RUNNING if waits else Status.WAITING
        emit.run_finished(run, scope, finished, elsewhere=True, counted=counted)
        return finished


def _run_of(run: RunState, record: RunRecord, raised: BaseException | None) -> Run:
    """Return the Run for the caller of a run that has ended or stands as `record` says. `raised`: the error of the
    run."""
    finished = Run(run, record.workflow, record.status, dict(record.results), record.steps, run.plan)
    finished.held, finished.carrier = record.held, record.carrier
    finished.error = own_error(run.workflow, raised)
    finished.failed_step, finished.undone = record.failed_step, record.undone
    if isinstance(finished.error, CompensationFailed):
        finished.error.run = finished
    run.reports = dict(record.steps)
    run.stopped, run.undone = record.status not in {Status.SUCCESS, *_NOT_OVER}, list(record.undone)
    return finished
