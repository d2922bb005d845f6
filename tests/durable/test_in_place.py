"""Values that steps change in place are recorded; results keep what was recorded (semantics 5)."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pydantic
import pytest
import redis

from flowcore import Engine, MemoryStore, NotSerializable, Status, Workflow
from flowcore.stores import RedisStore, SQLiteStore
from flowcore.testing import SimulatedStore
from tests.stores.redis_servers import redis_url

__all__ = ["redis_url"]  # a fixture


@pytest.fixture(params=["sqlite", "redis", "strict"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    if request.param == "sqlite":
        yield lambda: SQLiteStore(tmp_path / "runs.db")
    elif request.param == "strict":
        store = MemoryStore(strict=True)
        yield lambda: store
    else:
        prefix = f"in-place-{uuid4().hex}"
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            yield lambda: RedisStore(client, prefix=prefix)


def resumed(make_store: Callable[[], Any], wf: Workflow, values: Any) -> list[Status]:
    """Run it twice, by two owners: the first one ends incomplete."""
    statuses = []
    for _ in range(2):
        with Engine(store=make_store()) as engine:
            statuses.append(engine.run(wf, values, idempotency_key="k", check=False).status)
    return statuses


CHANGES: dict[str, Callable[[Any], Any]] = {
    "append": lambda ctx: ctx["reserved"].append("r-1"),
    "through get": lambda ctx: ctx.get("reserved").append("r-1"),
    "through setdefault": lambda ctx: ctx.setdefault("reserved", []).append("r-1"),
    "nested": lambda ctx: ctx["body"]["inner"].append("r-1"),
    "a set": lambda ctx: ctx["seen"].add("r-1"),
    "twice": lambda ctx: (ctx["reserved"].append("r-0"), ctx["reserved"].append("r-1")),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("chained", [True, False])
def test_a_value_that_was_changed_in_place_is_there_after_a_takeover(
    make_store: Callable[[], Any], how: str, chained: bool
) -> None:
    seen: list[str] = []
    values: dict[str, Any] = {"reserved": [], "body": {"inner": []}, "seen": {"x"}}
    wf = Workflow("reserves")
    wf.add_step("first", lambda ctx: 1, pivot=not chained)
    wf.add_step("reserve", lambda ctx: CHANGES[how](ctx) and None, depends_on="first", pivot=chained)

    def use(ctx: Any) -> None:
        seen.append(repr([ctx["reserved"], ctx["body"], "r-1" in ctx["seen"]]))
        if len(seen) == 1:
            raise ConnectionError("the first owner ends here")

    wf.add_step("use", use, depends_on="reserve")
    assert resumed(make_store, wf, values) == [Status.INCOMPLETE, Status.SUCCESS]
    assert seen[0] == seen[1]
    assert "r-1" in seen[0] or "True" in seen[0]
    assert values == {"reserved": [], "body": {"inner": []}, "seen": {"x"}}


def test_a_failed_attempt_and_its_retry_both_count(make_store: Callable[[], Any]) -> None:
    seen: list[Any] = []
    wf = Workflow("retries")
    wf.add_step("start", lambda ctx: 1, pivot=True)

    def reserve(ctx: Any) -> None:
        ctx["reserved"].append(ctx.attempt)
        if ctx.attempt == 1:
            raise ConnectionError

    wf.add_step("reserve", reserve, depends_on="start", retry=2)

    def use(ctx: Any) -> None:
        seen.append(list(ctx["reserved"]))
        if len(seen) == 1:
            raise ConnectionError

    wf.add_step("use", use, depends_on="reserve")
    assert resumed(make_store, wf, {"reserved": []}) == [Status.INCOMPLETE, Status.SUCCESS]
    assert seen == [[1, 2], [1, 2]]


def test_a_result_that_a_later_step_changes_keeps_its_recorded_value(
    make_store: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "flowcore")
    wf = Workflow("changes")
    wf.add_step("book", lambda ctx: {"seats": [1]})

    def spoil(ctx: Any) -> None:
        ctx["book"]["seats"].append(2)

    wf.add_step("spoil", spoil, depends_on="book")
    wf.add_step("read", lambda ctx: ctx["book"]["seats"], depends_on="spoil")
    store = make_store()
    with Engine(store=store) as engine:
        if isinstance(store, MemoryStore):
            with pytest.raises(NotSerializable, match="step 'spoil' changed the result of step 'book' in place"):
                engine.run(wf, idempotency_key="k")
            return
        run = engine.run(wf, idempotency_key="k")
        again = engine.run(wf, idempotency_key="k")
    assert run.results == again.results == {"book": {"seats": [1]}, "spoil": None, "read": [1]}
    warnings = [record.getMessage() for record in caplog.records if "in place" in record.getMessage()]
    assert len(warnings) == 1
    assert "step 'spoil' changed the result of step 'book' in place" in warnings[0]


def _writes(ctx: Any) -> Any:
    ctx["v"] = [1]
    return ctx["v"]


def _writes_a_part(ctx: Any) -> Any:
    ctx["v"] = [1]
    return {"part": ctx["v"]}


SHARED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "the result is written": (_writes, lambda ctx: 0),
    "a part of the result is written": (_writes_a_part, lambda ctx: 0),
    "the result is a value": (lambda ctx: ctx["v"], lambda ctx: 0),
    "a later step writes the result": (lambda ctx: [1], lambda ctx: ctx.update(v=ctx["make"])),
}


@pytest.mark.parametrize("how", SHARED)
def test_a_change_of_a_value_changes_no_result_that_is_the_same_object(make_store: Callable[[], Any], how: str) -> None:
    make, between = SHARED[how]
    wf = Workflow("shares")
    wf.add_step("make", make)
    wf.add_step("between", lambda ctx: between(ctx) and None, depends_on="make")
    wf.add_step("change", lambda ctx: ctx["v"].append(2), depends_on="between")
    wf.add_step("read", lambda ctx: ctx["v"], depends_on="change")
    with Engine(store=make_store()) as engine:
        run, again = (engine.run(wf, {"v": [1]}, idempotency_key="k") for _ in range(2))
    assert run.results == again.results
    assert (run["make"], run["read"]) in [([1], [1, 2]), ({"part": [1]}, [1, 2])]


def test_a_result_that_is_too_deep_to_copy_is_refused_as_any_other(make_store: Callable[[], Any]) -> None:
    def nest(ctx: Any) -> Any:
        ctx["v"], deep = 1, list[Any]()
        for _ in range(100_000):
            deep = [deep]
        return deep

    wf = Workflow("deep")
    wf.add_step("nest", nest)
    with Engine(store=make_store()) as engine, pytest.raises(NotSerializable, match="nested too deep"):
        engine.run(wf, idempotency_key="k")


@dataclass
class Order:
    amount: int
    tags: list[str]
    total: int = field(init=False, default=0)


class Trip(pydantic.BaseModel):
    amount: int
    tags: list[str]
    total: int = 0


@pytest.mark.parametrize("kind", [Order, Trip])
def test_a_field_of_the_input_that_a_step_sets_is_recorded(make_store: Callable[[], Any], kind: Any) -> None:
    seen: list[Any] = []

    def change(ctx: Any) -> None:
        ctx.input.amount += 1
        ctx.input.tags = ["b"]
        ctx.input.tags.append("c")
        ctx.input.total = 7

    def use(ctx: Any) -> None:
        seen.append((ctx.input.amount, ctx.input.tags, ctx.input.total, ctx["amount"], ctx["tags"]))
        if len(seen) == 1:
            raise ConnectionError("the first owner ends here")

    wf = Workflow("sets", input=kind)
    wf.add_step("look", lambda ctx: ctx.input.amount, pivot=True)
    wf.add_step("change", change, depends_on="look", pivot=True)
    wf.add_step("use", use, depends_on="change")
    given = kind(amount=1, tags=["a"])
    assert resumed(make_store, wf, given) == [Status.INCOMPLETE, Status.SUCCESS]
    assert seen == [(2, ["b", "c"], 7, 2, ["b", "c"])] * 2
    assert (given.amount, given.tags, given.total) == (1, ["a"], 0)


# -- MemoryStore(strict=True) ------------------------------------------------------------------------------------------


def test_a_strict_store_refuses_what_a_durable_one_would() -> None:
    wf = Workflow("strict")
    wf.add_step("lock", lambda ctx: object())
    with Engine(store=MemoryStore(strict=True)) as engine:
        with pytest.raises(NotSerializable, match="the result of step 'lock' in run"):
            engine.run(wf)
        with pytest.raises(NotSerializable, match="the initial value of 'x' in run"):
            engine.run(Workflow("w"), {"x": object()})


def test_a_strict_store_replays_copies() -> None:
    wf = Workflow("strict")
    wf.add_step("list", lambda ctx: [1, (2,)])
    with Engine(store=MemoryStore(strict=True)) as engine:
        first = engine.run(wf, idempotency_key="k")["list"]
        again = engine.run(wf, idempotency_key="k")["list"]
    assert first == again == [1, (2,)]
    assert first is not again


# -- results that no JSON codec knows, in a store that keeps them --------------------------------------------------------


class Basket:
    def __init__(self) -> None:
        self.items: list[str] = []


def keeping() -> SimulatedStore:
    """A store that warns of such changes, as those do that outlive a process."""
    store = SimulatedStore()
    store.strict = False
    return store


def changing(make: Callable[[], Any], change: Callable[[Any], Any]) -> Workflow:
    wf = Workflow("baskets")
    wf.add_step("make", lambda ctx: make())
    wf.add_step("change", lambda ctx: change(ctx["make"]) and None, depends_on="make")
    return wf


def test_a_result_of_any_class_stays_as_it_was_recorded(caplog: pytest.LogCaptureFixture) -> None:
    wf = changing(Basket, lambda basket: basket.items.append("pear"))
    with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=keeping()) as engine:
        run = engine.run(wf, idempotency_key="k")
    assert run["make"].items == []
    assert ["step 'change' changed the result of step 'make' in place" in line.message for line in caplog.records] == [
        True
    ]


def test_a_result_that_cannot_be_compared_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        basket = Basket()
        basket.lock = threading.Lock()  # type: ignore[attr-defined] # no pickle has it
        return basket

    wf = changing(make, lambda basket: basket.items.append("pear"))
    with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=keeping()) as engine:
        run = engine.run(wf, idempotency_key="k")
    assert run["make"].items == ["pear"]
    assert caplog.records == []


def test_a_step_that_changes_a_result_again_in_its_undo_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    def change(ctx: Any) -> None:
        ctx["make"].append("pear")

    wf = Workflow("twice")
    wf.add_step("make", lambda ctx: [])
    wf.add_step("change", change, depends_on="make", compensate=change)
    wf.add_step("fail", lambda ctx: 1 / 0, depends_on="change")
    with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=keeping()) as engine:
        run = engine.run(wf, idempotency_key="k", check=False)
    assert run.status == "compensated"
    assert sum("changed the result of step 'make'" in line.message for line in caplog.records) == 1


def test_a_value_that_was_changed_and_then_replaced_is_recorded_as_it_was_replaced(
    make_store: Callable[[], Any],
) -> None:
    seen: list[Any] = []

    def replace(ctx: Any) -> None:
        ctx["reserved"].append("r-1")
        ctx["reserved"] = ["r-2"]

    def use(ctx: Any) -> None:
        seen.append(ctx["reserved"])
        if len(seen) == 1:
            raise ConnectionError("the first owner ends here")

    wf = Workflow("replaces")
    wf.add_step("replace", replace, pivot=True)
    wf.add_step("use", use, depends_on="replace")
    assert resumed(make_store, wf, {"reserved": []}) == [Status.INCOMPLETE, Status.SUCCESS]
    assert seen == [["r-2"], ["r-2"]]
