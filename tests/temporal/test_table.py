"""The guide's table of behaviours: each row is a workflow that is run on every back end, and says what came of it."""

import ast
import asyncio
import contextlib
import itertools
import os
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from flowcore import (
    AsyncEngine,
    Backoff,
    Engine,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    NotSerializable,
    Retry,
    RunTimeout,
    Status,
    StepTimeout,
    Workflow,
)
from flowcore.stores import AsyncRedisStore, SQLiteStore
from tests.core.on_temporal import DIFFERENT
from tests.stores.redis_servers import redis_url

from .conftest import PATIENCE, Temporal

__all__ = ["redis_url"]  # a fixture

PAGE = Path(__file__).parents[2] / "examples" / "guide" / "temporal.md"
CORE = Path(__file__).parents[1] / "core"
BEGIN, CORE_BEGIN, END = "<!-- table -->\n", "<!-- core -->\n", "<!-- end -->\n"

Row = Callable[["Backend"], Awaitable[object]]
ROWS: dict[str, Row] = {}


class Backend:
    """One engine. `run` is its `run`, awaited; `submit` returns what can be awaited."""

    def __init__(self, engine: Any, others: Any = None) -> None:
        self.engine = engine
        self.durable = engine.store.durable
        self._open = others

    async def run(self, wf: Workflow, values: Any = None, **options: Any) -> Any:
        async with self.worker(wf):
            return await self._run(wf, values, **options)

    async def _run(self, wf: Workflow, values: Any, **options: Any) -> Any:
        if isinstance(self.engine, Engine):
            return await asyncio.to_thread(self.engine.run, wf, values, **options)
        return await self.engine.run(wf, values, **options)

    @contextlib.asynccontextmanager
    async def worker(self, wf: Workflow) -> AsyncIterator[None]:
        """On Temporal: a worker for the workflow."""
        if self._open is None:
            yield
        else:
            async with self._open(wf):
                yield


def row(text: str) -> Callable[[Row], Row]:
    def add(fn: Row) -> Row:
        ROWS[text] = fn
        return fn

    return add


@row("a run survives its process")
async def _(on: Backend) -> object:
    return on.durable


@row("steps that are ready run at the same time")
async def _(on: Backend) -> object:
    wf, met = Workflow("at once"), threading.Barrier(3)
    for n in range(3):
        wf.add_step(f"s{n}", lambda ctx: met.wait(PATIENCE) >= 0)
    return (await on.run(wf)).status is Status.SUCCESS


@row("`when=` skips a step, and its dependants run")
async def _(on: Backend) -> object:
    wf = Workflow("when")
    wf.add_step("skipped", lambda ctx: 1, when=lambda ctx: False)
    wf.add_step("after", lambda ctx: 2, depends_on="skipped")
    run = await on.run(wf)
    return run.steps["skipped"].status is Status.SKIPPED and run["after"] == 2


@row("values and results come back in value and type")
async def _(on: Backend) -> object:
    wf = Workflow("types")
    first = wf.add_step("first", lambda ctx: {"a": (1, {2})})
    wf.add_step("second", lambda ctx: (ctx[first], ctx["n"]), depends_on=first)
    return (await on.run(wf, {"n": (1,)}))["second"] == ({"a": (1, {2})}, (1,))


@row("a result that no codec can store is refused, and its step undone")
async def _(on: Backend) -> object:
    wf, undone = Workflow("unstorable"), list[int]()
    wf.add_step("step", lambda ctx: threading.Lock()).compensate(lambda ctx: undone.append(1))
    run = await on.run(wf, check=False)
    return isinstance(run.error, NotSerializable) and bool(undone)


@row("a write is seen by the steps after it")
async def _(on: Backend) -> object:
    wf = Workflow("writes")
    wf.add_step("write", lambda ctx: ctx.__setitem__("k", 1))
    wf.add_step("read", lambda ctx: ctx["k"], depends_on="write")
    return (await on.run(wf))["read"] == 1


@row("a write is seen at once by a sibling that runs")
async def _(on: Backend) -> object:
    wf, written, looked = Workflow("siblings"), threading.Event(), threading.Event()

    @wf.step
    def write(ctx: Any) -> None:
        ctx["k"] = 1
        written.set()
        assert looked.wait(PATIENCE)

    @wf.step
    def look(ctx: Any) -> bool:
        assert written.wait(PATIENCE)
        found = "k" in ctx
        looked.set()
        return found

    return (await on.run(wf))["look"]


@row("attempts follow `retry=`, with its predicates and delays")
async def _(on: Backend) -> object:
    wf, made = Workflow("retry"), list[int]()

    @wf.step(retry=Retry(5, Backoff.fixed(0), on=lambda error: "again" in str(error)))
    def step(ctx: Any) -> None:
        made.append(1)
        raise ValueError("again" if len(made) < 3 else "enough")

    await on.run(wf, check=False)
    return len(made) == 3


@row("a step that is late times out")
async def _(on: Backend) -> object:
    wf = Workflow("late")
    wf.add_step("step", lambda ctx: threading.Event().wait(0.3), timeout=0.05)
    return isinstance((await on.run(wf, check=False)).error, StepTimeout)


@row("a step that completes within `grace` after its timeout is known to have done so")
async def _(on: Backend) -> object:
    wf = Workflow("completed late")
    wf.add_step("step", lambda ctx: threading.Event().wait(0.3), timeout=0.05).compensate(lambda ctx: None)
    return (await on.run(wf, check=False)).steps["step"].completed_late is Status.SUCCESS


@row("a deadline ends the run")
async def _(on: Backend) -> object:
    wf = Workflow("deadline", deadline=0.2)
    wf.add_step("step", lambda ctx: threading.Event().wait(1))
    return isinstance((await on.run(wf, check=False)).error, RunTimeout)


@row("a failed run is undone, latest first")
async def _(on: Backend) -> object:
    wf, undone = Workflow("undone"), list[str]()
    for n, name in enumerate(("a", "b")):
        wf.add_step(name, lambda ctx: 1, depends_on=["a"][:n]).compensate(lambda ctx: undone.append(ctx.step))
    wf.add_step("fails", lambda ctx: 1 / 0, depends_on="b")
    return (await on.run(wf, check=False)).status is Status.COMPENSATED and undone == ["b", "a"]


@row("the caller gets the step's own exception class")
async def _(on: Backend) -> object:
    wf = Workflow("class")
    wf.add_step("fails", lambda ctx: 1 / 0)
    return type((await on.run(wf, check=False)).error) is ZeroDivisionError


@row("the caller gets the very exception object")
async def _(on: Backend) -> object:
    wf, error = Workflow("object"), ValueError("one")

    @wf.step
    def fails(ctx: Any) -> None:
        raise error

    return (await on.run(wf, check=False)).error is error


@row("a used key is replayed, and refused for other values")
async def _(on: Backend) -> object:
    wf = Workflow("keys")
    wf.add_step("step", lambda ctx: ctx["n"])
    first = await on.run(wf, {"n": 1}, idempotency_key="keys")
    again = await on.run(wf, {"n": 1}, idempotency_key="keys")
    try:
        await on.run(wf, {"n": 2}, idempotency_key="keys")
    except IdempotencyMismatch:
        return (again.id, again.replayed) == (first.id, True)
    return False


@row("a key in use is refused, or waited for with `wait=`")
async def _(on: Backend) -> object:
    wf, begun, gate = Workflow("in use"), threading.Event(), threading.Event()

    @wf.step
    def step(ctx: Any) -> None:
        begun.set()
        assert gate.wait(PATIENCE)

    async with on.worker(wf):
        first = asyncio.ensure_future(on._run(wf, None, idempotency_key="in use"))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        with pytest.raises(IdempotencyInProgress):
            await on._run(wf, None, idempotency_key="in use")
        waits = asyncio.ensure_future(on._run(wf, None, idempotency_key="in use", wait=PATIENCE))
        await asyncio.sleep(0.05)
        gate.set()
        return (await first).id == (await waits).id


@row("a failed undo holds the key for an operator")
async def _(on: Backend) -> object:
    wf = Workflow("held")
    wf.add_step("step", lambda ctx: 1).compensate(retry=1)(lambda ctx: 1 / 0)
    wf.add_step("fails", lambda ctx: 1 / 0, depends_on="step")
    run = await on.run(wf, idempotency_key="held", check=False)
    with pytest.raises(IdempotencyHeld):
        await on.run(wf, idempotency_key="held")
    return run.status is Status.COMPENSATION_FAILED


@row('with `undo="never"`, the next call continues at the failed step')
async def _(on: Backend) -> object:
    wf, made = Workflow("etl", undo="never"), list[str]()
    wf.add_step("extract", lambda ctx: made.append("extract"))

    @wf.step(depends_on="extract")
    def load(ctx: Any) -> None:
        made.append("load")
        if made.count("load") == 1:
            raise ValueError("once")

    await on.run(wf, idempotency_key="etl", check=False)
    await on.run(wf, idempotency_key="etl")
    return made == ["extract", "load", "load"]


async def column(on: Backend) -> list[str]:
    return ["yes" if await check(on) else "no" for check in ROWS.values()]


def test_the_guides_table_is_what_the_back_ends_do(temporal: Temporal, tmp_path: Path, redis_url: str) -> None:
    columns: dict[str, list[str]] = {}

    async def here() -> None:
        with Engine(grace=2) as engine:
            columns["threads"] = await column(Backend(engine))
        async with AsyncEngine(grace=2) as engine:
            columns["asyncio"] = await column(Backend(engine))
        async with AsyncEngine(store=SQLiteStore(tmp_path / "runs.db"), grace=2) as engine:
            columns["SQLite"] = await column(Backend(engine))
        client = redis.asyncio.Redis.from_url(redis_url)
        async with AsyncEngine(store=AsyncRedisStore(client, prefix=uuid.uuid4().hex), grace=2) as engine:
            columns["Redis"] = await column(Backend(engine))
        await client.aclose()

    async def there() -> None:
        engine = await temporal.engine(grace=2.0)
        columns["Temporal"] = await column(Backend(engine, temporal.open))

    asyncio.run(here())
    temporal.run(there)
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {text} | {' | '.join(cells)} |" for text, *cells in zip(ROWS, *columns.values(), strict=True)]
    table = "\n" + "\n".join(lines) + "\n\n"
    on_page(BEGIN, table)


def test_the_guide_names_the_tests_of_the_core_that_do_not_hold() -> None:
    names = {test.partition("::")[2] for tests in DIFFERENT.values() for test in tests}
    assert len(names) == sum(map(len, DIFFERENT.values()))
    for test in itertools.chain.from_iterable(DIFFERENT.values()):
        module, _, name = test.partition("::")
        assert f"def {name}(" in (CORE / f"{module}.py").read_text(encoding="utf-8"), test
    lines = ["| reason | tests of the core |", "|---|---|"]
    lines += [
        f"| {reason} | {', '.join(test.partition('::')[2].removeprefix('test_').replace('_', ' ') for test in tests)} |"
        for reason, tests in DIFFERENT.items()
    ]
    on_page(CORE_BEGIN, "\n" + "\n".join(lines) + "\n\n")


def on_page(begin: str, table: str) -> None:
    """The page has the table; with FLOWCORE_WRITE_TABLE=1 it gets it."""
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(END, 1)
    wanted = f"{before}{begin}{table}{END}{after}"
    if os.environ.get("FLOWCORE_WRITE_TABLE"):
        PAGE.write_text(wanted, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == wanted, "run with FLOWCORE_WRITE_TABLE=1"


def test_the_guides_code_can_be_read(temporal: Temporal) -> None:
    blocks = PAGE.read_text(encoding="utf-8").split("```py\n")[1:]
    assert len(blocks) == 3
    for block in blocks:
        compile(block.split("```")[0], PAGE.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
