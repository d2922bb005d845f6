"""The schedules of an engine: a thread or a task looks at them, and the engine begins the runs of their fires."""

# This module is a part of the engines and uses their private members. It is imported with the first schedule only.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextvars
import threading
import weakref
from abc import ABC, abstractmethod
from asyncio import CancelledError, ensure_future, get_running_loop, shield
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from .._durable.claim import fingerprint_of
from .._durable.queueing import enqueue
from .._kernel.run_state import RunState
from ..errors import DefinitionError, RunParked, StoreError, safe_repr, safe_str
from ..fires import fire_key, schedule_of
from ..keys import LONGEST_KEY
from ..schedule import Schedule, ScheduleStatus, check_values
from ..stores.base import Lease
from ..stores.encoding import Encoding
from ..workflow import Workflow
from .aio_driver import AsyncDriver
from .asking import call_on_loop, make_calls, make_calls_on_loop
from .base import EngineBase, log, this_process
from .live_runs import RELEASED
from .periodic import PeriodicEngine
from .recovering import RecoveryTasks, RecoveryThread
from .scheduler import LONGEST_WAIT, Begin, Scheduled

if TYPE_CHECKING:
    from .aio import AsyncEngine
    from .threads import Engine

__all__ = ["AsyncSchedules", "LoopSchedules", "Schedules", "ThreadSchedules", "report"]

E = TypeVar("E", bound=PeriodicEngine)
_AFTER_A_FAULT = 1.0  # seconds
_LONGEST_NAME: Final = LONGEST_KEY - len(fire_key("", datetime.max.replace(tzinfo=UTC)))
"""the most characters that the name of a schedule may have, so that the key of each fire is a valid key"""


class Schedules(ABC, Generic[E]):
    """The schedules of an engine: the part that all engines share. Thread-safe. Does not keep the engine alive."""

    def __init__(self, engine: E) -> None:
        self._reference = weakref.ref(engine)
        self._scheduled: dict[str, Scheduled] = {}
        self._adding = threading.Lock()
        self._looking_now = threading.Lock()  # an async engine may have several loops that look

    begin: Begin

    @abstractmethod
    def cancel(self, key: str) -> bool:
        """Cancel the run with this key, if it is in flight in this engine. Returns whether it is cancelled."""

    def add(self, workflow: Workflow[Any], name: str | None, values: Any, **options: Any) -> Schedule:
        """Add a schedule. Raises DefinitionError, NotSerializable for values that the store cannot record, and what the
        engine raises for a workflow that it cannot run."""
        engine = self._engine
        later = callable(values)
        # This refuses a workflow that the engine cannot run, and initial values that the workflow does not accept.
        run = engine._requested(workflow, None if later else values, "-", recovering="-" if later else None)
        schedule = Schedule.of(workflow.name if name is None else name, workflow.name, **options)
        if len(schedule.name) > _LONGEST_NAME:
            raise DefinitionError(
                f"The name of a schedule has {len(schedule.name):,} characters, and the limit is {_LONGEST_NAME:,}. "
                "Pass a shorter name=."
            )
        check_values(values, schedule.name)
        self._refuse_unsupported(workflow)
        if not later:
            _check_recordable(run)
        with self._adding:
            if schedule.name in self._scheduled:
                raise DefinitionError(
                    f"This engine already has a schedule {safe_repr(schedule.name)}. Pass a different name=."
                )
            self._scheduled[schedule.name] = Scheduled(
                *(engine._settings, workflow, schedule, values),
                begin=self.begin,
                call=self._call,
                cancel=self.cancel,
                emit=partial(_emit, self._reference),
                is_open=engine._is_open,
            )
        return schedule

    def _refuse_unsupported(self, workflow: Workflow[Any]) -> None:
        """Raise DefinitionError for a workflow that this kind of engine cannot carry."""

    @abstractmethod
    def begin_looking(self) -> None:
        """Look at the schedules now. Thread-safe."""

    def _call(self, values: Callable[[], Any]) -> Future[Any]:
        """Call a `values=` in a separate thread, so that a slow one delays no other schedule."""
        call: Future[Any] = Future()
        run = partial(contextvars.copy_context().run, partial(self._answer, values, call))
        try:
            threading.Thread(target=run, name="flowcore-values", daemon=True).start()
        except RuntimeError:  # the process cannot start a thread
            run()
        return call

    def _answer(self, values: Callable[[], Any], call: Future[Any]) -> None:
        try:
            call.set_result(values())
        except BaseException as error:  # noqa: BLE001 - the schedule that waits for it raises it
            call.set_exception(error)
        self.begin_looking()

    @property
    def _engine(self) -> E:
        engine = self._reference()
        assert engine is not None  # noqa: S101 - the engine holds this object, and nothing else does
        return engine

    def _due(self) -> list[Scheduled]:
        engine = self._reference()
        if engine is None or engine._closed:
            return []
        return [one for one in list(self._scheduled.values()) if one.due()]

    def _wait(self) -> float:
        return min((one.wait() for one in list(self._scheduled.values())), default=LONGEST_WAIT)

    def _after_fork(self) -> None:
        self._adding = threading.Lock()
        self._looking_now = threading.Lock()
        for one in list(self._scheduled.values()):
            one.after_fork()


class ThreadSchedules(Schedules["Engine"]):
    """The schedules of an `Engine`, which are looked at on a thread of their own."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._thread = RecoveryThread(self._look, _AFTER_A_FAULT, "schedule")

    def begin_looking(self) -> None:
        """Look at the schedules now."""
        self._thread.wake()

    def after_fork(self) -> None:
        """In a forked child, start a new thread."""
        self._after_fork()
        self._thread.after_fork()

    def close(self) -> None:
        """Begin no more fires."""
        self._thread.close()

    def _look(self) -> float:
        if self._reference() is None:
            self.close()
        for one in self._due():
            with self._engine._round("schedule") as context:
                make_calls(one.look(), context)
        return self._wait()

    def begin(self, workflow: Workflow[Any], values: Any, key: str) -> bool:
        """Begin the run of a fire. Returns False if another engine has begun it."""
        return contextvars.Context().run(self._begin, workflow, values, key)

    def _begin(self, workflow: Workflow[Any], values: Any, key: str) -> bool:
        engine = self._engine
        run = engine._requested(workflow, values, key, once=True)
        engine._refuse_if_full(len(engine._runs.queued))
        future = engine._runs.queue(run, check=True, only_new=True)
        future.add_done_callback(report)
        return not future.cancelled()

    def cancel(self, key: str) -> bool:
        """Cancel the run with this key, if it is in flight in this engine. Returns whether it is cancelled."""
        engine = self._engine
        why = "was cancelled: the next fire of its schedule is due."
        return any(engine._runs.cancel(run, f"run {run.run_id} {why}") for run in list(engine._live) if run.key == key)

    def statuses(self) -> list[ScheduleStatus]:
        """The status of each schedule."""
        context = self._engine._callers_context()
        return [make_calls(one.status(), context) for one in list(self._scheduled.values())]


class LoopSchedules(Schedules[E]):
    """The schedules of an engine on event loops. A task on each of its loops looks at them, one task at a time."""

    def __init__(self, engine: E) -> None:
        super().__init__(engine)
        self.tasks = RecoveryTasks(self._look, _AFTER_A_FAULT, "schedule")

    def begin_looking(self) -> None:
        """Look at the schedules now, on all loops that have a task for it and on the running loop, if there is one."""
        self.tasks.wake()
        try:
            get_running_loop()
        except RuntimeError:  # the engine's first use on a loop starts a task there
            return
        self.ensure()

    def ensure(self) -> None:
        """Ensure that one task looks on the running loop, in an empty contextvars context, not in the caller's."""
        contextvars.Context().run(self.tasks.ensure)

    def after_fork(self) -> None:
        """In a forked child, forget the loops and their tasks: they belong to the parent."""
        self._after_fork()
        self.tasks.after_fork()

    async def _look(self) -> float:
        if not self._looking_now.acquire(blocking=False):
            return _AFTER_A_FAULT
        try:
            for one in self._due():
                with self._engine._round("schedule") as context:
                    await make_calls_on_loop(one.look(), context)
            return self._wait()
        finally:
            self._looking_now.release()

    async def statuses(self) -> list[ScheduleStatus]:
        """The status of each schedule."""
        context = self._engine._callers_context()
        return [await make_calls_on_loop(one.status(), context) for one in list(self._scheduled.values())]


class AsyncSchedules(LoopSchedules["AsyncEngine"]):
    """The schedules of an `AsyncEngine`."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)

    async def begin(self, workflow: Workflow[Any], values: Any, key: str) -> bool:
        """Begin the run of a fire. Returns False if another engine has begun it."""
        engine, context = self._engine, contextvars.Context()
        run = context.run(partial(engine._requested, workflow, values, key, once=True))
        engine._refuse_if_full(len(engine._runs.queued))
        if engine.store.durable and not await self._claimed(run):
            return False
        future = context.run(partial(engine._runs.queue, run, check=True))
        future.add_done_callback(report)
        return True

    async def _claimed(self, run: RunState) -> bool:
        """Record the run of a fire as queued. Returns False if another engine has recorded it. If this engine is closed
        meanwhile, the run's lease is released, so that another engine can begin the run at once."""
        engine = self._engine
        driver = AsyncDriver(run, 0, engine._pool, engine._runs.tasks)
        claiming = ensure_future(driver.perform(enqueue(run, this_process(), lambda: False)))
        try:
            return await shield(claiming) is not None
        except CancelledError:
            with suppress(StoreError):
                if await claiming is not None:
                    lease = Lease(run.stored_key, run.run_id, run.fence)
                    release = partial(engine.store.renew, [lease], RELEASED)
                    await call_on_loop(release, engine._callers_context())
            raise

    def cancel(self, key: str) -> bool:
        """Cancel the run with this key, if it is in flight in this engine. Returns whether it is cancelled."""
        engine = self._engine
        return any(engine._runs.cancel(run) for run in list(engine._live) if run.key == key)


def _emit(reference: Callable[[], EngineBase | None], event: Any) -> None:
    engine = reference()
    if engine is not None and type(event) in engine._settings.hooks.wanted:
        engine._emit(event)


def _check_recordable(run: RunState) -> None:
    """Raise NotSerializable if the run of a fire with these initial values could not be recorded."""
    fingerprint_of(run)
    encoding = getattr(run.settings.store, "_encoding", None)
    if isinstance(encoding, Encoding):  # the store is one of flowcore's that encode values
        encoding.encode_values(run.values, run.run_id, run.plan.types)


def report(future: Any) -> None:
    """Log the error of a scheduled run, because no caller waits for the run."""
    error = None if future.cancelled() else future.exception()
    if error is not None and not isinstance(error, RunParked):
        log.warning(
            "run %s of schedule %s failed: %s: %s",
            *(future.run_id, safe_repr(schedule_of(future.key)), type(error).__name__, safe_str(error, 200)),
        )
