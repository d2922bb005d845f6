"""`engine.map`: a run for each item, lazily, bounded, in order or as they end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flowcore import (
    NO_KEY,
    AsyncEngine,
    Context,
    DefinitionError,
    Engine,
    FlowcoreError,
    IdempotencyError,
    Status,
    Workflow,
)
from flowcore.stores import MemoryStore, SQLiteStore

from .conftest import Gate, until


def squares() -> Workflow:
    wf = Workflow("square")

    @wf.step
    def square(ctx: Context) -> int:
        if ctx["n"] == 3:
            raise ValueError("three")
        return int(ctx["n"]) ** 2

    return wf


def numbers(count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(count)]


def of(statuses: list[Status]) -> dict[str, int]:
    return {str(status): statuses.count(status) for status in set(statuses)}


@pytest.mark.parametrize("ordered", [True, False])
def test_every_item_has_a_run_and_failed_ones_are_among_them(ordered: bool) -> None:
    with Engine() as engine:
        runs = list(engine.map(squares(), numbers(40), ordered=ordered))
    assert of([run.status for run in runs]) == {"success": 39, "failure": 1}
    found = [run.results.get("square") for run in runs]
    expected = [None if n == 3 else n**2 for n in range(40)]
    assert (found if ordered else sorted(found, key=str)) == (expected if ordered else sorted(expected, key=str))


@pytest.mark.parametrize("ordered", [True, False])
def test_the_same_on_asyncio(ordered: bool) -> None:
    async def main() -> list[Status]:
        async with AsyncEngine() as engine:
            return [run.status async for run in engine.map(squares(), numbers(40), ordered=ordered)]

    assert of(asyncio.run(main())) == {"success": 39, "failure": 1}


def test_with_check_the_first_failure_is_raised() -> None:
    with Engine() as engine, pytest.raises(ValueError, match="three"):
        list(engine.map(squares(), numbers(10), check=True))


def test_items_are_taken_as_there_is_room() -> None:
    taken: list[int] = []

    def items() -> Iterator[dict[str, int]]:
        for n in range(100, 1_000_000_000):
            taken.append(n)
            yield {"n": n}

    with Engine() as engine:
        runs = engine.map(squares(), items(), concurrency=3)
        for _ in range(5):
            next(runs)
        runs.close()
    assert len(taken) <= 5 + 3


def test_values_and_keys_are_made_of_the_item(tmp_path: Path) -> None:
    wf, items = squares(), [10, 11, 12]
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    with Engine(store=store) as engine:
        for replayed in (False, True):
            runs = list(engine.map(wf, items, values=lambda n: {"n": n}, key=lambda n: f"row-{n}", ordered=True))
            assert [(run["square"], run.replayed) for run in runs] == [(n**2, replayed) for n in items]
    store.close()


def test_a_key_function_that_returns_none_is_refused_and_no_key_is_not() -> None:
    with Engine() as engine:
        with pytest.raises(IdempotencyError, match="NO_KEY"):
            list(engine.map(squares(), numbers(1), key=lambda item: None))
        assert len(list(engine.map(squares(), numbers(2), key=lambda item: NO_KEY))) == 2


@pytest.mark.parametrize("concurrency", [0, -1, True, 1.5])
def test_a_concurrency_that_is_none_is_refused(concurrency: int) -> None:
    with Engine() as engine, pytest.raises(DefinitionError, match="concurrency="):
        engine.map(squares(), [], concurrency=concurrency)


async def async_key(item: Any) -> str:
    return str(item)


async def async_items() -> AsyncIterator[int]:
    yield 1


def numbers_of() -> dict[str, int]:
    return {}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"items": 5}, "map takes an iterable of items, not 5"),
    ({"items": list}, "map takes an iterable of items, not <class 'list'>"),
    ({"items": None}, "map takes an iterable of items, not None"),
    ({"items": async_items()}, r"map takes an iterable of items, not .*\. Collect them in a list first"),
    ({"key": "id"}, "key= of map must be a function of the item, not 'id'"),
    ({"key": async_key}, "key= of map must not be async"),
    ({"values": "x"}, "values= of map must be a function of the item, not 'x'"),
    ({"values": numbers_of}, "values= of map must take exactly one argument"),
    ({"ordered": "no"}, "ordered= must be True or False, not 'no'"),
    ({"check": None}, "check= must be True or False, not None"),
]


@pytest.mark.parametrize("engine_type", [Engine, AsyncEngine])
@pytest.mark.parametrize(
    ("wrong", "sentence"), WRONG, ids=lambda value: str(list(value)) if isinstance(value, dict) else ""
)
def test_what_map_cannot_use_is_refused_at_the_call(engine_type: Any, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DefinitionError, match=sentence):
        engine_type().map(squares(), **({"items": numbers(1)} | wrong))


def test_an_error_that_would_end_the_iterator_is_named() -> None:
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: next(iter(())))
    with Engine() as engine:
        with pytest.raises(FlowcoreError, match=r"failed with StopIteration, .* Pass check=False") as caught:
            list(engine.map(wf, numbers(2), check=True))
        assert isinstance(caught.value.__cause__, StopIteration)
        assert [run.status for run in engine.map(wf, numbers(2))] == ["failure"] * 2


def test_a_step_may_fan_out_on_its_own_engine_however_few_workers_that_has() -> None:
    engine, child, parent = Engine(max_workers=1), squares(), Workflow("parent")

    @parent.step
    def fan_out(ctx: Context) -> int:
        children = engine.map(child, numbers(3), key=lambda item: f"{ctx.step_key}:{item['n']}")
        return sum(run["square"] for run in children)

    with engine:
        assert engine.submit(parent, idempotency_key="p").result(30)[fan_out] == 5


def test_leaving_the_loop_drops_what_has_not_begun() -> None:
    wf, rest, begun = Workflow("slow"), threading.Event(), list[int]()

    @wf.step
    def wait(ctx: Context) -> None:
        begun.append(ctx["n"])
        assert ctx["n"] == 0 or rest.wait(30)

    with Engine(store=MemoryStore(), max_workers=2) as engine:
        runs = engine.map(wf, numbers(10), concurrency=10)
        next(runs)
        runs.close()
        rest.set()
    assert len(begun) <= 3, "the first, and what its two workers had begun"


def test_an_async_loop_that_is_left_cancels_what_is_in_flight() -> None:
    wf, ended = Workflow("slow"), list[str]()

    @wf.step
    async def wait(ctx: Context) -> None:
        try:
            await asyncio.sleep(0 if ctx["n"] == 0 else 60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def main() -> None:
        async with AsyncEngine(grace=1) as engine:
            runs = engine.map(wf, numbers(100), concurrency=4)
            assert (await anext(runs)).status is Status.SUCCESS
            await runs.aclose()

    asyncio.run(main())
    assert ended.count("cancelled") >= 1


def test_a_batch_waits_for_room_in_the_queue() -> None:
    with Engine(max_workers=2, max_queued=1) as engine:
        assert of([run.status for run in engine.map(squares(), numbers(20), concurrency=8)]) == {
            "success": 19,
            "failure": 1,
        }

    async def main() -> list[Status]:
        async with AsyncEngine(max_queued=1) as engine:
            return [run.status async for run in engine.map(squares(), numbers(20), concurrency=8)]

    assert of(asyncio.run(main())) == {"success": 19, "failure": 1}


def test_a_batch_waits_for_room_while_other_callers_fill_the_queue(gate: Gate) -> None:
    busy, began = Workflow("busy"), Gate()
    busy.add_step("a", began.then(gate))
    with Engine(max_workers=1, max_queued=1) as engine:
        engine.submit(busy)
        began.wait()
        engine.submit(busy)
        threading.Timer(0.05, gate.set).start()
        assert len(list(engine.map(squares(), numbers(3)))) == 3


@pytest.mark.parametrize("ordered", [True, False])
def test_the_cancellation_of_one_item_that_is_queued_ends_no_batch(gate: Gate, ordered: bool) -> None:
    wf, began = Workflow("w"), Gate()
    wf.add_step("a", lambda ctx: began.then(gate)(ctx) if ctx["n"] == 0 else None)
    with Engine(max_workers=1) as engine:

        def cancel() -> None:
            began.wait()
            until(lambda: engine._live.find(None, "2") is not None)
            engine.cancel(key="2")
            gate.set()

        canceller = threading.Thread(target=cancel)
        canceller.start()
        key = lambda item: str(item["n"])  # noqa: E731
        runs = list(engine.map(wf, numbers(5), key=key, concurrency=4, ordered=ordered))
        canceller.join()
    assert of([run.status for run in runs]) == {"success": 4, "failure": 1}
