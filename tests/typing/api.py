"""What type checkers must accept, infer and refuse. Never run: `make types` is the test.

Each `type: ignore` marks a line that must be an error: both checkers complain about one that is not.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
# mypy: enable-error-code="arg-type, index, operator, union-attr, var-annotated"

import asyncio
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type
from zoneinfo import ZoneInfo

from flowcore import (
    NO_KEY,
    SKIP_RUN,
    AsyncEngine,
    AsyncRunFuture,
    Backoff,
    CompensationFailed,
    Context,
    ContextSnapshot,
    Engine,
    Event,
    Hook,
    IdempotencyInProgress,
    Logger,
    LoggingHook,
    PrintLogger,
    Retry,
    Run,
    RunFuture,
    Status,
    Step,
    StepReport,
    Workflow,
)
from flowcore.events import RunStarted, StepFinished, StepStarted
from flowcore.schedule import Schedule, ScheduleStatus
from flowcore.stores import MemoryStore, Store
from flowcore.stores.base import Page

wf = Workflow(
    "trip",
    idempotency_key=lambda values: str(values["id"]),
    fingerprint=lambda values: str(values["id"]),
    deadline=timedelta(seconds=5),
    on_failure="cancel",
    undo="attempted",
    parallel_undo=True,
    max_parallel=3,
)


# -- steps keep the type of their result -------------------------------------------------------------------------------


pool = ProcessPoolExecutor()


@wf.step(executor=pool, retry=2)
def crunch(ctx: ContextSnapshot) -> float:
    ctx["key"] = 1  # type: ignore[index]
    return float(ctx["n"])


assert_type(crunch, Step[float])


@wf.step(executor=pool)  # type: ignore[arg-type]
def crunch_live(ctx: Context) -> float:
    return 1.0


@wf.step
def book(ctx: Context) -> str:
    assert_type(ctx["anything"], Any)
    return "seat"


@book.compensate
def cancel(ctx: Context) -> None:
    assert_type(ctx[book], str)
    assert_type(ctx.get(book), str | None)
    assert_type(ctx.get(book, 0), str | int)
    assert_type(ctx.error, BaseException | None)


@wf.step(depends_on=book, retry=Retry(3, Backoff.exponential(0.05)), timeout=2.0)
def pay(ctx: Context) -> int:
    return len(ctx[book])


@pay.compensate(retry=2, timeout=timedelta(seconds=1))
def refund(ctx: Context) -> str:
    return f"refunded {ctx[pay] + 1}"


@wf.step(depends_on=[book, "pay"], when=lambda ctx: bool(ctx[pay]))
async def mail(ctx: Context) -> list[str]:
    await asyncio.sleep(0)
    return [ctx[book]]


@wf.step(name="other", pivot=True, undo="done", on_crash="hold", verify=lambda ctx: None, step_timeout=3)
async def awaited(ctx: Context) -> dict[str, int]:
    return {ctx[book]: ctx[pay]}


def plain(ctx: Context) -> bytes:
    return b""


added = wf.add_step("added", plain, depends_on=book, compensate=cancel)

assert_type(book, Step[str])
assert_type(pay, Step[int])
assert_type(mail, Step[list[str]])
assert_type(awaited, Step[dict[str, int]])
assert_type(added, Step[bytes])
assert_type(book.name, str)
assert_type(wf.layers(), list[list[Step[Any]]])
assert_type(wf.include(Workflow("inner"), prefix="in."), dict[str, Step[Any]])
assert_type(wf.to_mermaid() + wf.to_dot() + repr(wf), str)


# -- runs know the types of their results ------------------------------------------------------------------------------

run = wf.run({"id": 1}, idempotency_key="k", hooks=(), check=False)
assert_type(run, Run)
assert_type(run[book], str)
assert_type(run[mail], list[str])
assert_type(run["book"], Any)
assert_type(run.status, Status)
assert_type(run.steps, dict[str, StepReport])
assert_type(run.error, BaseException | None)
assert_type(run.to_dict(), dict[str, Any])
assert_type(run.explain(), str)

engine = Engine(store=MemoryStore(), hooks=[print, PrintLogger(), LoggingHook(json=True)], max_workers=4, grace=1)
assert_type(engine.run(wf, wait=1, deadline=timedelta(minutes=1)), Run)
future = engine.submit(wf)
assert_type(future, RunFuture)
as_future: Future[Run] = future
assert_type(future.result(), Run)
assert_type(future.cancel_run(), bool)
assert_type(engine.recover(), list[Run])
assert_type(engine.cancel("id"), bool)


async def main() -> None:
    async with AsyncEngine(workflows=[wf]) as aio:
        assert_type(await aio.run(wf), Run)
        assert_type(aio.submit(wf), AsyncRunFuture)
        assert_type(await aio.submit(wf), Run)
        assert_type(await aio.recover(), list[Run])
        await aio.aclose(timeout=1)


# -- errors carry what they say ----------------------------------------------------------------------------------------

try:
    engine.run(wf)
except IdempotencyInProgress as busy:
    assert_type(busy.retry_after, float)
    assert_type(busy.run_id, str)
except CompensationFailed as failed:
    assert_type(failed.run, Run | None)
    assert_type(failed.failures["book"], BaseException)

# -- hooks in every style ----------------------------------------------------------------------------------------------

events: list[Event] = []
collects: Hook = events.append
prints: Hook = print


def scope(event: Event) -> AbstractContextManager[None] | None:
    return nullcontext() if isinstance(event, StepStarted) else None


def skips(event: Event) -> object:
    return SKIP_RUN if isinstance(event, RunStarted) else None


class Mine(Logger):
    def step_failed(self, event: StepFinished) -> None:
        assert_type(event.error, BaseException | None)
        assert_type(event.duration, float)


hooks: list[Hook] = [collects, prints, scope, skips, Mine(), Logger(), PrintLogger(), LoggingHook()]

# -- stores ------------------------------------------------------------------------------------------------------------

store: Store = MemoryStore(retention=timedelta(days=1), max_runs=10)
assert_type(MemoryStore().list_runs(status="held"), Page)
assert_type(Backoff.fixed(1).delay(1, lambda: 0.5), float)


# -- typed input -------------------------------------------------------------------------------------------------------


@dataclass
class Order:
    sku: str


@dataclass
class Other:
    size: int


typed = Workflow("typed", input=Order, idempotency_key=lambda order: order.sku, errors=(ValueError,), undo="never")
assert_type(typed, Workflow[Order])


@typed.step
def charge_card(ctx: Context[Order]) -> int:
    assert_type(ctx.input, Order)
    return len(ctx.input.sku)


@typed.step
def bare(ctx: Context) -> int:
    assert_type(ctx.input, Any)
    return 1


@typed.step
async def later(ctx: Context[Order]) -> str:
    return ctx.input.sku


assert_type(charge_card, Step[int])
assert_type(later, Step[str])
assert_type(engine.run(typed, Order("a"))[charge_card], int)
engine.run(typed, {"sku": "a"})
engine.submit(typed, Order("a"))
typed.run(Order("a"))
engine.run(wf, {"id": 1}, idempotency_key=NO_KEY)
wf.include(typed, prefix="typed.", depends_on=book)


assert_type(engine.schedule(typed, every=60, values=Order("a")), Schedule)
engine.schedule(typed, every=timedelta(hours=1), values=lambda planned: Order(planned.isoformat()))
engine.schedule(
    wf, cron="* * * * *", timezone=ZoneInfo("UTC"), missed="all", overlap="cancel", jitter=timedelta(seconds=3)
)
assert_type(engine.schedules(), list[ScheduleStatus])


async def scheduled(aio: AsyncEngine) -> None:
    assert_type(aio.schedule(wf, every=60), Schedule)
    assert_type(await aio.schedules(), list[ScheduleStatus])


def planned(ctx: Context) -> None:
    assert_type(ctx.scheduled_at, datetime | None)


def wrong(ctx: Context[Other]) -> int:
    return ctx.input.size


# -- what must be refused ----------------------------------------------------------------------------------------------

number: int = run[book]  # type: ignore[assignment]
engine.schedule(wf, every=60, missed="some")  # type: ignore[arg-type]
engine.schedule(wf, every="60")  # type: ignore[arg-type]
engine.schedule(typed, every=60, values=lambda planned: 7)  # type: ignore[arg-type, return-value]
wf.step(timeout="soon")  # type: ignore[call-overload]
wf.step(retries=3)  # type: ignore[call-overload]
wf.step(undo="never")  # type: ignore[call-overload]
wf.step(on_crash="pray")  # type: ignore[call-overload]
wf.add_step("nothing", 7)  # type: ignore[call-overload]
Workflow("w", on_failure="explode")  # type: ignore[call-overload]
Workflow(7)  # type: ignore[call-overload]
Retry("3")  # type: ignore[arg-type]
Retry(3, 0.5)  # type: ignore[arg-type]
Backoff.fixed("1")  # type: ignore[arg-type]
engine.run("trip")  # type: ignore[arg-type]
engine.run(wf, idempotency_key=7)  # type: ignore[arg-type]
Engine(hooks=[7])  # type: ignore[list-item]
book.name.append("x")  # type: ignore[attr-defined]
engine.run(typed, Other(1))  # type: ignore[misc]
engine.run(typed, 7)  # type: ignore[misc]
typed.run(Other(1))  # type: ignore[arg-type]
typed.step(wrong)  # type: ignore[arg-type]
typed.add_step("wrong", wrong)  # type: ignore[arg-type]
Workflow("w", input=Order, idempotency_key=lambda order: order.size)  # type: ignore[attr-defined]
Workflow("w", errors=ValueError)  # type: ignore[call-overload]
