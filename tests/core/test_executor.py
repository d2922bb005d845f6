"""Steps with `executor=`: their functions run in another process, on a copy of the run's values."""

import asyncio
import copyreg
import importlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    AsyncEngine,
    Backoff,
    Context,
    ContextSnapshot,
    DefinitionError,
    Engine,
    IdempotencyHeld,
    NotSerializable,
    ResultLost,
    Retry,
    Run,
    SnapshotIsReadOnly,
    Status,
    StepCancelled,
    StepTimeout,
    Workflow,
)
from flowcore.fires import fire_key
from flowcore.stores import MemoryStore, SQLiteStore
from flowcore.testing import Fault, simulate

from .conftest import PATIENCE, until

Go = Callable[..., Run]


@dataclass(frozen=True)
class Row:
    """The input of a workflow."""

    n: int


@pytest.fixture(scope="module")
def there() -> Iterator[Any]:
    """The module of the functions, under a name that other processes can import too."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield importlib.import_module("crunching")
    sys.path.pop(0)


def new_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


@pytest.fixture(scope="module")
def pool(there: Any) -> Iterator[Executor]:
    with new_pool() as pool:
        yield pool


@pytest.fixture
def mortal(there: Any) -> Iterator[Executor]:
    """A pool for a test that kills its worker."""
    with new_pool() as pool:
        yield pool


@pytest.fixture(params=["threads", "asyncio"])
def go(request: pytest.FixtureRequest) -> Go:
    def on_threads(
        wf: Workflow, values: Any = None, *, store: Any = None, grace: float = 5.0, hooks: Any = (), **more: Any
    ) -> Run:
        with Engine(store=store, grace=grace, hooks=hooks) as engine:
            return engine.run(wf, values, **more)

    def on_asyncio(
        wf: Workflow, values: Any = None, *, store: Any = None, grace: float = 5.0, hooks: Any = (), **more: Any
    ) -> Run:
        async def main() -> Run:
            async with AsyncEngine(store=store, grace=grace, hooks=hooks) as engine:
                return await engine.run(wf, values, **more)

        return asyncio.run(main())

    return on_threads if request.param == "threads" else on_asyncio


def alone(fn: Any, executor: Executor, undone: list[Any] | None = None, **options: Any) -> Workflow:
    """A workflow of one step in an executor, with an undo."""
    wf = Workflow("alone")
    step = wf.add_step("step", fn, executor=executor, **options)
    if undone is not None:
        step.compensate(lambda ctx: undone.append((os.getpid(), ctx.get(step))))
    return wf


def test_values_and_results_cross_and_the_result_comes_back(go: Go, pool: Executor, there: Any) -> None:
    wf = Workflow("crossing")
    one = wf.add_step("one", lambda ctx: {"a": (1, 2)})
    wf.add_step("aside", lambda ctx: ctx.__setitem__("more", 3))
    crunch = wf.add_step("crunch", there.crunch, depends_on=[one, "aside"], executor=pool, timeout=PATIENCE)
    after = wf.add_step("after", lambda ctx: ctx[crunch]["n"] + 1, depends_on=crunch)
    run = go(wf, {"n": 1})
    seen = run[crunch]
    assert run[after] == 2
    assert seen.pop("pid") != os.getpid()
    assert len(seen.pop("step_key")) == 64
    assert seen == {
        "n": 1, "one": {"a": (1, 2)}, "keys": ["more", "n"], "attempt": 1, "run": run.id, "step": "crunch", "limited": True,
    }  # fmt: skip


def test_a_decorated_function_is_found_behind_its_step(go: Go, pool: Executor, there: Any) -> None:
    importlib.reload(there)
    wf = there.decorated(pool)
    assert go(wf, {"n": 21})["doubled"] == 42


def test_the_snapshot_cannot_be_written(go: Go, pool: Executor, there: Any) -> None:
    with pytest.raises(SnapshotIsReadOnly, match="'step' has executor=, so its ctx is a copy"):
        go(alone(there.write, pool))


def test_the_snapshot_has_every_public_attribute_of_a_context(go: Go) -> None:
    seen: list[dict[str, Any]] = []

    def look(ctx: Any) -> None:
        names = [name for name in dir(Context) if not name.startswith("_") and name != "node"]  # for engines
        found = {name: getattr(ctx, name) for name in names}
        seen.append({name: value for name, value in found.items() if not callable(value)})
        for write in (
            ctx.clear,
            ctx.popitem,
            partial(ctx.pop, "n"),
            partial(ctx.update, n=2),
            partial(ctx.setdefault, "m"),
        ):
            with pytest.raises(SnapshotIsReadOnly):
                write()

    fire = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    with ThreadPoolExecutor(1) as threads:
        wf = Workflow("all", input=Row)
        wf.add_step("look", look, executor=threads, timeout=PATIENCE)
        run = go(wf, Row(1), store=MemoryStore(), idempotency_key=fire_key("nightly", fire))
    assert {name: value for name, value in seen[0].items() if name not in {"deadline", "step_key", "fence"}} == {
        "attempt": 1, "cancelled": False, "error": None, "input": Row(1), "run_id": run.id, "scheduled_at": fire, "step": "look",
    }  # fmt: skip


def test_a_snapshot_sees_that_its_time_is_over(go: Go) -> None:
    seen: list[bool] = []

    def work(ctx: Any) -> None:
        seen.append(ctx.cancelled)
        until(lambda: ctx.cancelled)
        seen.append(ctx.cancelled)

    with ThreadPoolExecutor(1) as threads:  # its end waits for the step
        go(alone(work, threads, timeout=0.2), check=False)  # it may have timed out, or have ended just in time
    assert seen == [False, True]


def test_a_result_that_the_step_does_not_depend_on_does_not_cross(go: Go, pool: Executor) -> None:
    wf = Workflow("apart")
    wf.add_step("other", lambda ctx: 1)
    with ThreadPoolExecutor(1) as threads:
        wf.add_step("step", lambda ctx: ctx.get("other"), depends_on=(), executor=threads)
        assert go(wf)["step"] is None


def test_the_error_of_a_step_is_its_own_with_the_traceback_of_the_other_process(
    go: Go, pool: Executor, there: Any
) -> None:
    undone: list[Any] = []
    with pytest.raises(there.Rejected, match="no such row") as caught:
        go(alone(there.reject, pool, undone))
    assert caught.value.code == 7
    assert "in reject" in str(caught.value.__cause__)
    assert undone == []  # it has raised: nothing to undo


def test_an_error_that_formats_its_argument_comes_back_as_it_was(go: Go, pool: Executor, there: Any) -> None:
    with pytest.raises(there.Priced) as caught:
        go(alone(there.price, pool))
    assert (str(caught.value), caught.value.price) == ("too dear: 5", 5)


def test_retry_attempts_it_again(go: Go, pool: Executor, there: Any) -> None:
    wf = alone(there.fail_first, pool, retry=Retry(3, Backoff.fixed(0)))
    assert go(wf)["step"] == 2


def test_any_executor_will_do_and_values_cross_all_the_same(go: Go) -> None:
    mine = {"list": [1]}
    wf = Workflow("threads")
    with ThreadPoolExecutor(1) as threads:
        wf.add_step("step", lambda ctx: ctx["list"].append(2) or ctx["list"], executor=threads)
        run = go(wf, mine)
    assert run["step"] == [1, 2]
    assert mine == {"list": [1]}


def test_what_cannot_be_pickled_is_named(go: Go, pool: Executor, there: Any) -> None:
    with pytest.raises(NotSerializable, match="'step' has executor=, and the value of 'lock' cannot be pickled"):
        go(alone(there.crunch, pool), {"lock": threading.Lock()})
    with pytest.raises(NotSerializable, match="cannot send its function to another process"):
        go(alone(lambda ctx: 1, pool))


def test_a_result_that_cannot_come_back_fails_the_step_and_undoes_it(go: Go, pool: Executor, there: Any) -> None:
    undone: list[Any] = []
    with pytest.raises(ResultLost, match="result of type lock cannot be pickled") as caught:
        go(alone(there.give_a_lock, pool, undone, retry=3))
    assert caught.value.done
    assert undone == [(os.getpid(), None)]


def test_an_executor_that_is_shut_down_fails_the_step_before_it_starts(go: Go, there: Any) -> None:
    undone: list[Any] = []
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures") as caught:
        go(alone(there.crunch, closed, undone))
    assert "refused the call" in caught.value.__notes__[0]
    assert undone == []


# -- a worker dies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_step_whose_worker_is_killed_has_failed_and_is_undone(
    go: Go, mortal: Executor, there: Any, store: str, tmp_path: Path
) -> None:
    undone: list[Any] = []
    kept = MemoryStore() if store == "memory" else SQLiteStore(tmp_path / "runs.db")
    run = go(alone(there.die, mortal, undone), {"began": str(tmp_path / "began")}, store=kept, check=False)
    assert run.status is Status.COMPENSATED
    assert isinstance(run.error, ResultLost)
    assert "lost its worker" in str(run.error)
    assert not run.error.done
    assert undone == [(os.getpid(), None)]


def test_verify_is_asked_when_a_worker_was_killed(go: Go, mortal: Executor, there: Any, tmp_path: Path) -> None:
    undone: list[Any] = []
    values = {"began": str(tmp_path / "began")}
    assert go(alone(there.die, mortal, undone, verify=there.landed), values)["step"] == "verified"
    run = go(alone(there.die, mortal, undone, verify=there.not_landed), values, check=False)
    assert run.status is Status.FAILURE
    assert undone == []


def test_verify_that_cannot_tell_ends_the_attempts(go: Go, mortal: Executor, there: Any, tmp_path: Path) -> None:
    undone: list[Any] = []
    wf = alone(there.die, mortal, undone, retry=3, verify=lambda ctx: 1 / 0)
    run = go(wf, {"began": str(tmp_path / "began")}, check=False)
    assert run.steps["step"].attempts == 1
    assert any("verify= of step 'step' raised ZeroDivisionError" in note for note in run.error.__notes__)
    assert len(undone) == 1


@pytest.mark.parametrize(("on_crash", "attempts"), [("retry", 2), ("undo", 1)])
def test_on_crash_decides_whether_retry_may_attempt_it_again(
    go: Go, mortal: Executor, there: Any, tmp_path: Path, on_crash: Any, attempts: int
) -> None:
    undone: list[Any] = []
    wf = alone(there.die, mortal, undone, retry=Retry(2, Backoff.fixed(0)), on_crash=on_crash)
    run = go(wf, {"began": str(tmp_path / "began")}, check=False)
    assert run.steps["step"].attempts == attempts
    assert len(undone) == 1


def test_on_crash_hold_holds_a_durable_run(go: Go, mortal: Executor, there: Any, tmp_path: Path) -> None:
    undone: list[Any] = []
    store = SQLiteStore(tmp_path / "runs.db")
    wf = alone(there.die, mortal, undone, on_crash="hold", verify=lambda ctx: None)
    with pytest.raises(IdempotencyHeld, match="its executor lost the worker of step 'step'"):
        go(wf, {"began": str(tmp_path / "began")}, store=store, idempotency_key="k")
    assert undone == []
    assert "lost the worker" in (store.find("k").reason or "")
    store.undo("k")
    run = go(wf, {"began": str(tmp_path / "began")}, store=store, idempotency_key="k", check=False)
    assert run.status is Status.COMPENSATED
    assert len(undone) == 1


@pytest.fixture
def _pickle_as_it_was() -> Iterator[None]:
    """Dask has pickle treat exceptions in another way, in the whole process."""
    before = dict(copyreg.dispatch_table)
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.mark.usefixtures("_pickle_as_it_was")
@pytest.mark.filterwarnings("ignore")  # of Dask's own
def test_a_worker_of_dask_that_is_killed_is_distinguished_from_an_error_of_the_step(there: Any, tmp_path: Path) -> None:
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    undone: list[Any] = []
    go = Engine().run
    values = {"began": str(tmp_path / "began"), "n": 1, "one": 2}
    dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with (
        distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        assert go(alone(there.crunch, executor), values)["step"]["n"] == 1
        assert go(alone(lambda ctx: ctx["n"] + 1, executor), values)["step"] == 2  # it can send any function
        with pytest.raises(there.Rejected):
            go(alone(there.reject, executor, undone), values)
        assert undone == []
        with pytest.raises(ResultLost, match="KilledWorker"):
            go(alone(there.die, executor, undone), values)
        assert len(undone) == 1
        assert go(alone(there.crunch, executor), values)["step"]["n"] == 1  # it has a new worker


# -- limits and cancellation -------------------------------------------------------------------------------------------


def test_a_step_that_is_late_completes_late_and_is_undone(go: Go, pool: Executor, there: Any, tmp_path: Path) -> None:
    undone: list[Any] = []
    end = tmp_path / "end"
    wf = alone(there.wait_for, pool, undone, timeout=0.05)
    wf.add_step("fails", lambda ctx: end.touch(), depends_on="step")
    values = {"began": str(tmp_path / "began"), "end": str(end)}
    threading.Timer(0.5, end.touch).start()
    run = go(wf, values, grace=PATIENCE, check=False)
    assert isinstance(run.error, StepTimeout)
    assert run.steps["step"].completed_late is Status.SUCCESS
    assert undone == [(os.getpid(), "ended late")]


def test_a_cancelled_run_takes_back_what_its_executor_has_not_begun(there: Any) -> None:
    class Full(Executor):
        """Takes calls, and never begins one."""

        def __init__(self) -> None:
            self.futures: list[Future[Any]] = []
            self.asked = threading.Event()

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            self.futures.append(Future())
            self.asked.set()
            return self.futures[-1]

    full = Full()
    with Engine(grace=0.05) as engine:
        future = engine.submit(alone(there.crunch, full), {"n": 1})
        assert full.asked.wait(PATIENCE)
        future.cancel_run()
        with pytest.raises(StepCancelled):
            future.result(PATIENCE)
    assert full.futures[0].cancelled()


# -- telemetry, simulation, definitions --------------------------------------------------------------------------------


def test_spans_of_the_other_process_are_children_of_the_attempt(go: Go, pool: Executor, there: Any) -> None:
    otel, trace = pytest.importorskip("flowcore_otel"), pytest.importorskip("opentelemetry.sdk.trace")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(pytest.importorskip("opentelemetry.sdk.trace.export").SimpleSpanProcessor(memory))
    run = go(alone(there.make_a_span, pool, retry=2), hooks=[otel.TracingHook(provider)])
    _, trace_id, _, parent = run["step"]
    (attempt,) = [span for span in memory.get_finished_spans() if span.name == "attempt step"]
    assert (trace_id, parent) == (attempt.context.trace_id, attempt.context.span_id)


def test_log_lines_of_the_other_process_have_the_ids_of_the_run(go: Go, pool: Executor, there: Any) -> None:
    otel = pytest.importorskip("flowcore_otel")
    run = go(alone(there.log_ids, pool), hooks=[otel.LogContext()])
    assert run["step"] == (run.id, "step", 1)


def test_a_hook_that_cannot_cross_breaks_nothing(go: Go, pool: Executor, there: Any) -> None:
    class Hook:
        def __call__(self, event: Any) -> None: ...
        def across_processes(self) -> None:
            raise ValueError("no")

    assert go(alone(there.fail_first, pool, retry=2), hooks=[Hook()])["step"] == 2


def test_a_simulation_packs_what_crosses_and_needs_no_pool(there: Any) -> None:
    class Unused(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise AssertionError

    undone: list[Any] = []
    for seed in range(20):
        assert simulate(alone(there.fail_first, Unused(), retry=3), seed=seed).run["step"] == 2
        simulation = simulate(alone(there.write, Unused(), undone), seed=seed)
        assert isinstance(simulation.run.error, SnapshotIsReadOnly)
        simulation = simulate(
            alone(there.crunch, Unused(), undone), {"n": 1, "one": 1}, seed=seed, faults={"step": Fault.CANCEL}
        )
        assert simulation.run.status in {Status.COMPENSATED, Status.SUCCESS}
    assert undone


def test_what_makes_no_sense_is_refused(pool: Executor) -> None:
    async def fn(ctx: Any) -> None: ...

    with pytest.raises(DefinitionError, match="executor of step 'a' runs no async function"):
        Workflow("w").add_step("a", fn, executor=pool)
    with pytest.raises(
        DefinitionError, match=r"executor of step 'step' must be a concurrent\.futures\.Executor, not 3"
    ):
        alone(lambda ctx: 1, 3)


def test_an_included_step_keeps_its_executor_and_its_names(go: Go) -> None:
    inner = Workflow("inner")
    first = inner.add_step("first", lambda ctx: 20)
    with ThreadPoolExecutor(1) as threads:
        inner.add_step(
            "second", lambda ctx: (ctx[first] + 1, type(ctx) is ContextSnapshot), depends_on=first, executor=threads
        )
        outer = Workflow("outer")
        outer.include(inner, prefix="in_")
        assert go(outer)["in_second"] == (21, True)


def test_a_snapshot_shows_no_values(there: Any) -> None:
    with ThreadPoolExecutor(1) as threads:
        text = Engine().run(alone(repr, threads), {"name": "hunter2"})["step"]
    assert text == "<ContextSnapshot of step 'step', attempt 1, 1 values>"
    assert pickle.dumps(text)
