"""Drivers to run workflows with, and a ledger of effects that tells what was done and undone."""

import asyncio
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from flowcore import AsyncEngine, Context, Engine, Run, Step, Workflow
from flowcore.events import EngineStarted, Event, StoreCalled
from tests.core import on_temporal
from tests.temporal.conftest import server

__all__ = ["server"]  # a fixture

PATIENCE = 20.0
"""seconds after which a test that waits gives up: never reached unless something is broken"""


# -- drivers -----------------------------------------------------------------------------------------------------------


class Drive:
    """Runs a workflow to its end under one of the drivers: `drive(wf, values, hooks=..., idempotency_key=...)`.

    Takes the arguments of an engine and of its `run`, answers and raises what `run` does. Steps must not wait for
    each other: tests whose steps do, use `live`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(
        self,
        workflow: Workflow,
        values: Mapping[Any, Any] | None = None,
        *,
        store: Any = None,
        hooks: Iterable[Any] = (),
        max_workers: int | None = None,
        grace: float = 5.0,
        **request: Any,
    ) -> Run:
        options: dict[str, Any] = {"store": store, "hooks": hooks, "max_workers": max_workers, "grace": grace}
        if self.kind == "threads":
            with Engine(**options) as engine:
                return engine.run(workflow, values, **request)
        if self.kind == "coroutines":
            make_async(workflow)

        runs, errors = list[Run](), list[BaseException]()

        async def main() -> None:
            try:
                async with AsyncEngine(**options) as engine:
                    runs.append(await engine.run(workflow, values, **request))
            except BaseException as error:  # noqa: BLE001 - asyncio.run cannot raise an exception without a repr
                errors.append(error)

        asyncio.run(main())
        if errors:
            raise errors[0]
        return runs[0]


def make_async(workflow: Workflow) -> None:
    """Make coroutine functions of a workflow's plain ones, each of which really suspends."""
    if not isinstance(workflow, Workflow) or workflow._frozen:
        return
    for step in workflow.steps:
        step.fn = _suspending(step.fn)
        if step.when is not None:
            step.when = _suspending(step.when)
        if step.compensation is not None:
            step.compensation = replace(step.compensation, fn=_suspending(step.compensation.fn))
    workflow._plan = None


def _suspending(fn: Callable[[Context], Any]) -> Callable[[Context], Any]:
    if inspect.iscoroutinefunction(fn):
        return fn

    @functools.wraps(fn)
    async def suspends(ctx: Context) -> Any:
        await asyncio.sleep(0)
        return fn(ctx)

    return suspends


DRIVERS = ("threads", "asyncio", "coroutines")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every driver in turn: threads, asyncio with sync steps, asyncio with async steps, and a Temporal server."""
    if "drive" in metafunc.fixturenames:
        kinds = [*DRIVERS, *on_temporal.params(metafunc.definition)]
        metafunc.parametrize("drive", kinds, indirect=True)


@pytest.fixture
def drive(request: pytest.FixtureRequest) -> Any:
    """A driver: see pytest_generate_tests."""
    if request.param == "temporal":
        return on_temporal.TemporalDrive(request.getfixturevalue("server"))
    return Drive(request.param)


class Live:
    """An engine that runs several things at once: for steps that wait for each other, and for those who watch."""

    def __init__(self, kind: str, options: Mapping[str, Any]) -> None:
        self.kind = kind
        self.engine: Any = Engine(**options) if kind == "threads" else AsyncEngine(**options)
        self._loop = asyncio.new_event_loop() if kind == "asyncio" else None
        self._thread: threading.Thread | None = None
        if self._loop is not None:
            self._thread = threading.Thread(target=self._loop.run_forever, name="the test's loop")
            self._thread.start()

    def start(self, workflow: Workflow, values: Any = None, **request: Any) -> "Future[Run]":
        """Begin a run beside the calling thread."""
        if self._loop is None:
            future: Future[Run] = self.engine.submit(workflow, values, **request)
            return future
        return asyncio.run_coroutine_threadsafe(self.engine.run(workflow, values, **request), self._loop)

    def run(self, workflow: Workflow, values: Any = None, **request: Any) -> Run:
        """Run to the end; on threads, in the calling one."""
        if self._loop is None:
            run: Run = self.engine.run(workflow, values, **request)
            return run
        return self.start(workflow, values, **request).result(PATIENCE)

    def close(self, timeout: float | None = None) -> None:
        if self._loop is None:
            self.engine.close(timeout)
        elif not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self.engine.aclose(timeout), self._loop).result(PATIENCE)
            self._loop.call_soon_threadsafe(self._loop.stop)
            assert self._thread is not None
            self._thread.join()
            self._loop.close()


MakeLive = Callable[..., Live]


@pytest.fixture(params=["threads", "asyncio"])
def live(request: pytest.FixtureRequest) -> Iterator[MakeLive]:
    """Makes live engines, with an engine's options; they are closed after the test."""
    made: list[Live] = []

    def make(**options: Any) -> Live:
        made.append(Live(request.param, options))
        return made[-1]

    yield make
    for one in made:
        one.close()


# -- effects -----------------------------------------------------------------------------------------------------------


class Ledger(list[str]):
    """What steps did, in order: "pay" for the effect of the step of that name, "-pay" for its undo."""

    def add(
        self,
        workflow: Workflow,
        name: str,
        *,
        raises: BaseException | None = None,
        undo_raises: BaseException | None = None,
        first: Callable[[Context], Any] | None = None,
        undoable: bool = True,
        **options: Any,
    ) -> Step[Any]:
        """Add a step that calls `first`, writes its name down, and then raises or answers with its name."""

        def do(ctx: Context) -> Any:
            value = first(ctx) if first is not None else name
            self.append(name)
            if raises is not None:
                raise raises
            return value

        def undo(ctx: Context) -> None:
            self.append(f"-{name}")
            if undo_raises is not None:
                raise undo_raises

        step = workflow.add_step(name, do, **options)
        if undoable:
            step.compensate(retry=1)(undo)
        return step

    def chain(self, *names: str, workflow: str = "chain", **options: Any) -> Workflow:
        """A workflow of steps one after the other; a name that ends in "!" belongs to a step that raises ValueError."""
        wf = Workflow(workflow, **options)
        before: list[Step[Any]] = []
        for name in names:
            plain = name.rstrip("!")
            raises = ValueError(f"{plain} failed") if plain != name else None
            before = [self.add(wf, plain, depends_on=before, raises=raises)]
        return wf

    @property
    def standing(self) -> "Counter[str]":
        """The effects that were not undone; a negative number means undone more often than done."""
        balance: Counter[str] = Counter()
        for entry in self:
            balance[entry.removeprefix("-")] += -1 if entry.startswith("-") else 1
        return Counter({name: number for name, number in balance.items() if number})


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


class Gate(threading.Event):
    """An Event that is not waited for in vain: what never happens fails the test."""

    def wait(self, timeout: float | None = None) -> bool:
        assert super().wait(PATIENCE if timeout is None else timeout), "waited in vain"
        return True

    def __call__(self, ctx: object = None) -> None:
        """As a step: wait until it is opened."""
        self.wait()

    def then(self, other: "Gate") -> Callable[[Context], None]:
        """A step that opens this gate, then waits at the other one."""

        def step(ctx: Context) -> None:
            self.set()
            other.wait()

        return step


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open after the test, so that nothing waits at it for ever."""
    made = Gate()
    yield made
    made.set()


def until(condition: Callable[[], Any]) -> Any:
    """Wait, looking every millisecond, until the condition holds; answers what it said."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        said = condition()
        if said:
            return said
        pause.wait(0.001)
    raise AssertionError("waited in vain")


async def until_async(condition: Callable[[], Any]) -> Any:
    """Like `until`, letting the loop go on."""
    for _ in range(int(PATIENCE * 1000)):
        said = condition()
        if said:
            return said
        await asyncio.sleep(0.001)
    raise AssertionError("waited in vain")


def notes(error: BaseException) -> str:
    """The notes on an exception, as one text."""
    return "\n".join(getattr(error, "__notes__", ()))


# -- events ------------------------------------------------------------------------------------------------------------


def kinds(events: Iterable[Event]) -> list[str]:
    """The names of the events' types, in order, less those of engines and stores, which are no part of a run's story."""
    return [type(event).__name__ for event in events if not isinstance(event, (EngineStarted, StoreCalled))]


def of_type(events: Iterable[Any], *types: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, types)]


def run_async(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function on a loop of its own that complains about everything."""

    async def whole() -> Any:
        return await main()

    return asyncio.run(whole(), debug=True)
