"""A signal handler that exits, as that of SIGTERM in a service does, at every moment (semantics 8): it parks durable runs,
undoes runs in memory, and is never lost."""

import asyncio
import functools
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from flowcore import AsyncEngine, Backoff, CompensationFailed, Context, Engine, Retry, Run, Status, Workflow
from flowcore._engines.workers import Workers
from flowcore.events import (
    CompensationStarted,
    Event,
    HookFailed,
    RunFinished,
    RunRequested,
    RunStarted,
    StepFinished,
    StepReady,
    StepStarted,
    WorkflowRegistered,
)
from flowcore.exits import deferred, is_exit_of_handler
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import PATIENCE, Ledger, make_async, of_type
from .test_ctrl_c import Strike, untraced

__all__ = ["untraced"]  # a fixture

Share = Callable[[Iterable[int]], Iterable[int]]
"""the moments that a test takes: see tests/conftest.py"""
Drives = Callable[..., Run]


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """The handler of a service. An exit may come right after a run has taken SIGINT over, and its process ends with it; here it
    does not, so SIGINT is restored."""

    def leaves(number: int, frame: FrameType | None) -> None:
        sys.exit(3)

    before, interrupts = signal.signal(signal.SIGTERM, leaves), signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupts)
    assert not deferred


@pytest.fixture(params=[False, True], ids=["memory", "durable"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MemoryStore | SQLiteStore:
    return SQLiteStore(tmp_path / "db", durability="normal") if request.param else MemoryStore()


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def once() -> Callable[..., bool]:
    """A function that sends SIGTERM when it is called first."""
    left = [terminate]

    def strikes(*_: object) -> bool:
        if left:
            left.pop()()
        return True

    return strikes


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    """The engine that drives the run in the main thread."""
    return str(request.param)


def drive(kind: str, wf: Workflow, store: Any, strike: Strike | None = None, **options: Any) -> Run:
    """Run a workflow with the key "k" in the main thread; on asyncio, with async steps."""
    key, check = options.pop("idempotency_key", "k"), options.pop("check", True)
    prepare: Callable[[Any], None] = options.pop("prepare", lambda engine: None)
    options = {"grace": 1, **options}
    if kind == "threads":
        engine = Engine(store=store, **options)
        prepare(engine)
        try:
            with strike or nullcontext():
                return engine.run(wf, idempotency_key=key, check=check)
        finally:
            assert not engine._live, "the engine cannot be closed"
            no_thread_for_leases(engine)
    make_async(wf)
    engines: list[AsyncEngine] = []

    async def main() -> Run:
        engine = AsyncEngine(store=store, **options)
        engines.append(engine)
        prepare(engine)
        with strike or nullcontext():
            return await engine.run(wf, idempotency_key=key, check=check)

    try:
        return asyncio.run(main())
    finally:
        for engine_of_loop in engines:
            no_thread_for_leases(engine_of_loop)


def no_thread_for_leases(engine: Engine | AsyncEngine) -> None:
    """End the thread that renews leases now. Without runs, it would end by itself, but only after a lease."""
    if engine._runs.leases is not None:
        engine._runs.leases.close()


def saga(ledger: Ledger, *, fails: bool) -> Workflow:
    return with_retries(ledger.chain("a", "b", "c!" if fails else "c", workflow="saga"))


def with_retries(wf: Workflow) -> Workflow:
    """Let each undo be attempted twice."""
    for step in wf.steps:
        if step.compensation is not None:
            step.compensation = replace(step.compensation, retry=Retry(2, Backoff.fixed(0)))
    return wf


def exits(kind: str, wf: Workflow, store: Any, **options: Any) -> SystemExit:
    with pytest.raises(SystemExit) as caught:
        drive(kind, wf, store, **options)
    assert caught.value.code == 3
    return caught.value


def status(store: Any, key: str = "k") -> Status | None:
    record = store.find(key)
    assert record is None or not record.held
    return None if record is None else record.status


# -- every moment ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fails", [False, True], ids=["a run that succeeds", "a run that fails"])
def test_an_exit_at_any_moment_leaves_the_run_parked_undone_or_done(
    kind: str, store: Any, fails: bool, share: Share, full: bool
) -> None:
    problems: list[str] = []
    moment = 0
    for moment in share(itertools.count(1, 1 if full else 5 if store.durable else 2)):
        ledger, raised, key = Ledger(), None, f"k{moment}"
        wf = saga(ledger, fails=fails)
        strike = Strike(moment, terminate)
        try:
            drive(kind, wf, store, strike, idempotency_key=key)
        except BaseException as error:  # noqa: BLE001 - judged below
            raised = error
        if not strike.struck:
            break
        found = [] if isinstance(raised, SystemExit) else [f"raised {raised!r}"]
        found += aftermath(kind, wf, store, key, ledger)
        problems.extend(f"{strike.struck}: {problem}" for problem in found)
    assert moment > 100
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


class Clock:
    """An engine's clock, in whose n-th reading by the main thread SIGTERM comes."""

    def __init__(self, moment: int) -> None:
        self.struck = False
        self._left = moment

    def __call__(self) -> float:
        if threading.current_thread() is threading.main_thread():
            self._left -= 1
            if self._left == 0:
                self.struck = True
                signal.raise_signal(signal.SIGTERM)
        return time.monotonic()

    def use(self, engine: Any) -> None:
        engine._settings.clock = self


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["silent", "watched"])
@pytest.mark.parametrize("parallel", [False, True], ids=["chain", "fan"])
def test_an_exit_whenever_the_engine_reads_its_clock_leaves_the_run_parked_undone_or_done(
    kind: str, store: Any, hooks: Any, parallel: bool
) -> None:
    """Fewer moments than those above, but seen by a tool that measures coverage, and in more kinds of steps."""
    problems: list[str] = []
    moment = 0
    for moment in itertools.count(1):
        ledger, key, clock, raised = Ledger(), f"k{moment}", Clock(moment), None
        wf = fan(ledger) if parallel else saga(ledger, fails=True)
        try:
            drive(kind, wf, store, idempotency_key=key, prepare=clock.use, hooks=hooks)
        except BaseException as error:  # noqa: BLE001 - judged below
            raised = error
        if not clock.struck:
            break
        found = [] if isinstance(raised, SystemExit) else [f"raised {raised!r}"]
        found += aftermath(kind, wf, store, key, ledger, beside=parallel)
        problems.extend(f"reading {moment}: {problem}" for problem in found)
    assert moment > 3
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


def fan(ledger: Ledger) -> Workflow:
    """Steps beside each other, one with a predicate and one with a timeout, then one that fails."""
    wf = Workflow("fan", parallel_undo=True)
    ledger.add(wf, "a", when=lambda ctx: True)
    ledger.add(wf, "b", timeout=PATIENCE)
    ledger.add(wf, "c", depends_on=["a", "b"], raises=ValueError("c"), undoable=False)
    return with_retries(wf)


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("parallel", [False, True])
def test_an_exit_at_any_moment_of_steps_beside_each_other_ends_their_run(
    kind: str, parallel: bool, share: Share, full: bool
) -> None:
    problems: list[str] = []
    moment = 0
    for moment in share(itertools.count(1, 3 if full else 7)):
        ledger, store, wf = Ledger(), MemoryStore(), Workflow("fan", parallel_undo=parallel)
        for name in "abc":
            ledger.add(wf, name)
        ledger.add(wf, "d", depends_on=["a", "b", "c"], raises=ValueError("d"), undoable=False)
        strike = Strike(moment, terminate)
        with_retries(wf)
        raised: BaseException | None = None
        try:
            drive(kind, wf, store, strike, grace=0.05)
        except BaseException as error:  # noqa: BLE001 - judged below
            raised = error
        if not strike.struck:
            break
        if not isinstance(raised, SystemExit):
            problems.append(f"{strike.struck}: raised {raised!r}")
        # An exit in the first instruction of a task ends the loop, which cancels the undos in other tasks.
        if strike.struck.endswith(" _drive"):
            continue
        if status(store) is Status.RUNNING or (+ledger.standing).keys() - {"d"}:
            problems.append(f"{strike.struck}: {status(store)}, {ledger}")
    assert moment > 100
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:40])


def aftermath(kind: str, wf: Workflow, store: Any, key: str, ledger: Ledger, *, beside: bool = False) -> Iterator[str]:
    """What is not as it should be after an exit. `beside`: whether steps ran beside each other."""
    record, again = store.find(key), list[str]()
    over = {Status.SUCCESS, Status.COMPENSATED, Status.FAILURE}
    if record is not None and (record.held or record.status not in over | {Status.PARKED}):
        yield f"the record is {record.status}, held: {record.held}"
    elif record is not None and record.status is Status.PARKED and store.durable:
        done = list(ledger)
        with Engine(store=store) if kind == "threads" else Resumer(store) as other:
            other.run(wf, idempotency_key=key, check=False)
        again = [name for name in "abc" if ledger.count(name) > 1]
        last = [name for name in done if "-" not in name][-1:]
        if len(again) > 1 or (again and not beside and again != last):
            yield f"steps that had ended ran again: {done}, then {ledger}"
    standing = ledger.standing
    standing.subtract(again)  # the step that was in flight is one whose effect may have been there before
    del standing["c"]
    undone = any(entry.startswith("-") for entry in ledger)
    if +standing and (undone or not set(ledger) >= {"a", "b", "c"}):
        yield f"effects are left standing: {ledger}"
    if any(number < -1 for number in standing.values()):
        yield f"undone twice: {ledger}"


class Resumer:
    """An AsyncEngine as a plain one."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, wf: Workflow, **request: Any) -> Run:
        async def main() -> Run:
            async with AsyncEngine(store=self._store) as engine:
                return await engine.run(wf, **request)

        return asyncio.run(main())


# -- in user code ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["step", "when", "on"])
def test_an_exit_in_a_step_or_a_predicate_parks_a_durable_run_and_undoes_one_in_memory(
    kind: str, store: Any, ledger: Ledger, where: str
) -> None:
    strikes, failures, wf = once(), [ValueError("b")], Workflow("w")

    def flaky(ctx: Context) -> None:
        if failures:
            raise failures.pop()

    options: dict[str, dict[str, Any]] = {
        "step": {"first": strikes},
        "when": {"when": strikes},
        "on": {"first": flaky, "retry": Retry(3, Backoff.fixed(0), on=strikes)},
    }
    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", **options[where])
    exits(kind, wf, store)
    if store.durable:
        assert status(store) is Status.PARKED
        assert "-a" not in ledger
        assert drive(kind, wf, store).status is Status.SUCCESS
        assert (ledger.count("a"), ledger.count("-a")) == (1, 0)
    else:
        assert status(store) is not Status.RUNNING
        assert not +ledger.standing


@pytest.mark.parametrize("parallel", [False, True])
def test_an_exit_in_an_undo_parks_a_durable_run_and_the_next_owner_makes_the_undo_again(
    kind: str, tmp_path: Path, ledger: Ledger, parallel: bool
) -> None:
    store, wf = SQLiteStore(tmp_path / "db"), Workflow("w", parallel_undo=parallel)
    undo_once(wf, ledger, retry=1)
    exits(kind, wf, store)
    assert status(store) is Status.PARKED
    assert ledger == ["a", "b", "c"]
    assert drive(kind, wf, store, check=False).status is Status.COMPENSATED
    assert ledger == ["a", "b", "c", "-b", "-a"]


@pytest.mark.parametrize("parallel", [False, True])
def test_in_memory_an_undo_that_an_exit_cuts_short_is_made_again_before_the_exit_is_raised(
    kind: str, ledger: Ledger, parallel: bool
) -> None:
    store, wf = MemoryStore(), Workflow("w", parallel_undo=parallel)
    undo_once(wf, ledger, retry=Retry(2, Backoff.fixed(0)))
    error = exits(kind, wf, store)
    assert isinstance(error.__cause__, ValueError)
    assert ledger == ["a", "b", "c", "-b", "-a"]
    assert status(store) is not Status.RUNNING


def test_in_memory_an_undo_without_retries_that_an_exit_cuts_short_has_failed_and_the_others_are_made(
    kind: str, ledger: Ledger
) -> None:
    store, wf = MemoryStore(), Workflow("w")
    undo_once(wf, ledger, retry=1)
    error = exits(kind, wf, store)
    assert isinstance(error.__cause__, CompensationFailed)
    assert list(error.__cause__.failures) == ["b"]
    assert ledger == ["a", "b", "c", "-a"]
    assert [record.held for record in store.list_runs()] == [True]


def undo_once(wf: Workflow, ledger: Ledger, retry: Any) -> None:
    """Add a saga that fails, with an undo that is interrupted when it is called first."""
    strikes = once()

    def undo(ctx: Context) -> None:
        strikes()
        ledger.append("-b")

    ledger.add(wf, "a")
    ledger.add(wf, "b", depends_on="a", undoable=False).compensate(retry=retry)(undo)
    ledger.add(wf, "c", depends_on="b", raises=ValueError("c"), undoable=False)


def test_an_exit_in_a_step_is_raised_although_another_step_had_failed_before(ledger: Ledger) -> None:
    failed, wf = threading.Event(), Workflow("w")

    def struck(ctx: Context) -> None:
        failed.wait()
        terminate()

    def fails(event: Event) -> None:
        if type(event) is StepFinished and event.step == "fails":
            failed.set()

    ledger.add(wf, "here", first=struck)
    ledger.add(wf, "fails", raises=ValueError("first"), timeout=60)
    error = exits("threads", wf, MemoryStore(), hooks=[fails])
    assert isinstance(error.__cause__, ValueError)
    assert ledger == ["fails", "-here"]


def test_an_exit_while_a_thread_starts_takes_no_place_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    strikes, start, came, pool = once(), threading.Thread.start, threading.Event(), Workers(1, "test")

    def struck(thread: threading.Thread) -> None:
        strikes()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", struck)
    with pytest.raises(SystemExit):
        pool.put(came.clear)
    pool.put(came.set)
    assert came.wait(PATIENCE)
    pool.close(PATIENCE)


# -- in hooks ----------------------------------------------------------------------------------------------------------

KINDS: tuple[type[Event], ...] = (
    *(WorkflowRegistered, RunRequested, RunStarted, StepReady, StepStarted, StepFinished, CompensationStarted),
    RunFinished,
)


@pytest.mark.parametrize("event_type", KINDS, ids=lambda event_type: event_type.__name__)
def test_an_exit_in_a_hook_ends_the_process_once_the_other_hooks_have_run(
    kind: str, store: Any, ledger: Ledger, event_type: type[Event]
) -> None:
    strikes, events, wf = once(), list[Any](), saga(ledger, fails=event_type is CompensationStarted)

    def struck(event: Event) -> None:
        if type(event) is event_type:
            strikes()

    exits(kind, wf, store, hooks=[struck, events.append])
    assert of_type(events, event_type)
    (failure,) = of_type(events, HookFailed)
    assert isinstance(failure.error, SystemExit)
    if event_type in {WorkflowRegistered, RunFinished}:
        assert status(store) is (None if event_type is WorkflowRegistered else Status.SUCCESS)
    elif store.durable:
        assert status(store) is Status.PARKED or (kind, event_type) == ("asyncio", RunRequested)
        assert "-a" not in ledger
        drive(kind, wf, store, check=False)
        assert ledger.count("a") == ledger.count("b") == 1
    elif kind == "threads":  # the end of a loop also cancels the undos of runs in memory
        assert (+ledger.standing).keys() <= {"c"}


def test_an_exit_in_a_scope_of_a_hook_ends_the_process(kind: str, store: Any, ledger: Ledger) -> None:
    strikes = once()

    class Scope:
        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            strikes()

    exits(kind, saga(ledger, fails=False), store, hooks=[lambda event: Scope() if type(event) is StepStarted else None])
    assert status(store) is not Status.RUNNING


def test_an_exit_in_a_hook_during_inline_steps_undoes_them(ledger: Ledger) -> None:
    strikes = once()
    wf = saga(ledger, fails=False)
    hook = lambda event: strikes() if type(event) is StepFinished else None  # noqa: E731 - short
    with Engine(hooks=[hook]) as engine, pytest.raises(SystemExit):
        engine.run(wf)
    assert ledger == ["a", "-a"]


def test_an_exit_of_a_hooks_own_is_no_exit_of_a_handler(kind: str, store: Any, ledger: Ledger) -> None:
    def leaves(event: Event) -> None:
        sys.exit(3)

    assert drive(kind, saga(ledger, fails=False), store, hooks=[leaves]).status is Status.SUCCESS


# -- in calls of an async store ----------------------------------------------------------------------------------------


class OnTheLoop:
    """An async store that works on the loop's own thread, where signals arrive, as a Redis client does."""

    def __init__(self, store: SQLiteStore, verb: str | None = None, *, nested: bool = False) -> None:
        self._store, self._verb, self._nested, self._strikes = store, verb, nested, once()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in {"claim", "checkpoint", "finish", "renew", "withdraw", "find", "head"}:
            return value

        async def struck() -> None:
            self._strikes()

        async def verb(*arguments: Any) -> Any:
            if name == self._verb:
                await (asyncio.wait_for(struck(), PATIENCE) if self._nested else struck())
            await asyncio.sleep(0.01)
            return value(*arguments)

        return verb


@pytest.mark.parametrize("nested", [False, True], ids=["call", "wait_for"])
@pytest.mark.parametrize("verb", ["claim", "checkpoint", "finish"])
def test_an_exit_in_a_call_of_an_async_store_ends_the_loop_and_parks_all_runs(
    tmp_path: Path, ledger: Ledger, verb: str, nested: bool
) -> None:
    store, wf = SQLiteStore(tmp_path / "db"), saga(ledger, fails=False)
    several(wf, OnTheLoop(store, verb, nested=nested))
    for key in "kl":
        assert status(store, key) in {"claim": [None], "checkpoint": [Status.PARKED], "finish": OVER}[verb]
        assert drive("asyncio", wf, store, idempotency_key=key).status is Status.SUCCESS
    assert sorted(ledger) == ["a", "a", "b", "b", "c", "c"]


OVER = (Status.SUCCESS, Status.PARKED)


def several(wf: Workflow, store: Any, *, engines: int = 1) -> None:
    """Begin runs with the keys "k" and "l", which an exit ends."""
    make_async(wf)

    async def main() -> None:
        shared = [AsyncEngine(store=store, grace=1) for _ in range(engines)]
        await asyncio.gather(*(shared[n % engines].run(wf, idempotency_key=key) for n, key in enumerate("kl")))

    with pytest.raises(SystemExit):
        asyncio.run(main())


@pytest.mark.parametrize("engines", [1, 2], ids=["one engine", "two engines"])
@pytest.mark.parametrize("nested", [False, True], ids=["step", "wait_for"])
def test_an_exit_in_a_step_parks_all_runs_of_the_loop(
    tmp_path: Path, ledger: Ledger, nested: bool, engines: int
) -> None:
    store, wf, strikes = SQLiteStore(tmp_path / "db"), Workflow("w"), once()

    async def struck() -> None:
        strikes()

    async def awaits(ctx: Context) -> None:
        await asyncio.sleep(0)
        # On Python 3.11, wait_for makes a task of it, and raises its error again.
        await (asyncio.wait_for(struck(), PATIENCE) if nested else struck())

    ledger.add(wf, "a")
    wf.add_step("b", awaits, depends_on="a")
    ledger.add(wf, "c", depends_on="b")  # The second run may have completed its step b in the moment of the exit.
    several(wf, OnTheLoop(store), engines=engines)
    assert (status(store, "k"), status(store, "l")) == (Status.PARKED, Status.PARKED)
    assert list(ledger) == ["a", "a"]


def test_an_exit_in_a_run_that_a_step_makes_is_raised_by_the_outer_run_too(tmp_path: Path) -> None:
    store, inner, outer, strikes = SQLiteStore(tmp_path / "db"), Workflow("inner"), Workflow("outer"), once()

    async def struck(ctx: Context) -> None:
        await asyncio.sleep(0)
        strikes()

    async def main() -> None:
        engine = AsyncEngine(store=OnTheLoop(store), grace=PATIENCE)

        async def makes_a_run(ctx: Context) -> None:
            await engine.run(inner, idempotency_key="k")

        async def beside(ctx: Context) -> None:
            await asyncio.sleep(PATIENCE)

        inner.add_step("a", struck)
        outer.add_step("a", makes_a_run)
        outer.add_step("b", beside)
        await engine.run(outer, idempotency_key="l")

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert (status(store, "k"), status(store, "l")) == (Status.PARKED, Status.PARKED)


def test_an_exit_is_raised_although_the_main_task_awaits_another_run(tmp_path: Path) -> None:
    store, wf, strikes = SQLiteStore(tmp_path / "db"), Workflow("w"), once()

    async def struck(ctx: Context) -> None:
        await asyncio.sleep(0.05)  # all three runs have begun
        if ctx["struck"]:
            strikes()
        await asyncio.sleep(PATIENCE)

    wf.add_step("a", struck)

    async def main() -> None:
        engine = AsyncEngine(store=OnTheLoop(store), grace=PATIENCE)
        others = [asyncio.create_task(engine.run(wf, {"struck": key == "k"}, idempotency_key=key)) for key in "km"]
        await engine.run(wf, {"struck": False}, idempotency_key="l")
        assert others  # a loop holds tasks only weakly

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert {status(store, key) for key in "klm"} == {Status.PARKED}


def test_an_exit_is_raised_although_an_engine_of_another_thread_begins_a_run_meanwhile() -> None:
    wf, other, strikes = Workflow("w"), AsyncEngine(), once()
    others: dict[Any, Any] = other._runs.live

    class Elsewhere:
        """The driver of a run on another loop, whose thread begins another run while this one is looked at."""

        @property
        def loop(self) -> None:
            others["another run"] = None

    async def struck(ctx: Context) -> None:
        await asyncio.sleep(0)
        strikes()

    wf.add_step("a", struck)
    others["a run"] = Elsewhere()
    others["a third run"] = None
    with pytest.raises(SystemExit):
        asyncio.run(AsyncEngine().run(wf))
    assert "another run" in others
    others.clear()


# -- telling them apart ------------------------------------------------------------------------------------------------


def test_an_exit_of_a_handler_is_told_from_those_of_the_code_that_it_interrupts() -> None:
    def caught(code: Callable[[], object]) -> BaseException:
        with pytest.raises((SystemExit, KeyboardInterrupt)) as error:
            code()
        return error.value

    def own(frame: object = None) -> None:
        sys.exit()

    assert is_exit_of_handler(caught(terminate))
    assert not is_exit_of_handler(caught(own))
    assert not is_exit_of_handler(caught(lambda: own(sys._getframe().f_back)))
    assert not is_exit_of_handler(ValueError())
    assert not is_exit_of_handler(None)
    signal.signal(signal.SIGTERM, lambda *_: own())
    assert is_exit_of_handler(caught(terminate))


def deletes_its_arguments(number: int, frame: FrameType | None) -> None:
    del number, frame  # as linters ask for
    sys.exit(3)


def restores_the_default(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(3)


class Service:
    def __call__(self, number: int, *rest: object) -> None:
        del number, rest
        sys.exit(3)

    def stop(self, *rest: object) -> None:
        del rest
        sys.exit(3)


HANDLERS: dict[str, Any] = {
    "deletes its arguments": deletes_its_arguments,
    "restores the default": restores_the_default,
    "partial": functools.partial(Service.stop, None),
    "method": Service().stop,
    "object": Service(),
    "Ctrl-C": signal.default_int_handler,
}


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_exit_of_any_kind_of_handler_in_an_undo_leaves_the_undo_to_the_next_owner(
    kind: str, tmp_path: Path, ledger: Ledger, handler: str
) -> None:
    store, wf = SQLiteStore(tmp_path / "db"), Workflow("w")
    undo_once(wf, ledger, retry=1)
    signal.signal(signal.SIGTERM, HANDLERS[handler])
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        drive(kind, wf, store)
    assert status(store) is Status.PARKED
    assert drive(kind, wf, store, check=False).status is Status.COMPENSATED
    assert ledger == ["a", "b", "c", "-b", "-a"]


def test_a_ctrl_c_that_code_raises_itself_is_no_exit_of_a_handler() -> None:
    def raises() -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as caught:
        raises()
    assert not is_exit_of_handler(caught.value)
