"""Every kind of value on every store, as its first owner, the owner after it and a replay see it: equal, in type too."""

import asyncio
import dataclasses
import datetime as dt
import enum
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pydantic
import pytest
import redis
import redis.asyncio

from flowcore import (
    AsyncEngine,
    Context,
    CorruptRecord,
    Engine,
    MemoryStore,
    NotSerializable,
    Status,
    StoreUnavailable,
    Workflow,
)
from flowcore.stores import AsyncRedisStore, PydanticCodec, RedisStore, SQLiteStore
from flowcore.stores.codec import JsonCodec
from tests.stores.redis_servers import redis_url, until
from tests.stores.test_codec import KEPT, same

__all__ = ["redis_url"]  # a fixture

KEPT_SMALL = {kind: value for kind, value in KEPT.items() if "interpreter" not in kind}
MakeStore = Callable[[], Any]


@pytest.fixture(params=["sqlite", "redis", "async redis", "sqlite on asyncio"])
def fresh_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, MakeStore]]:
    """The name of a driver and a function that opens the same runs anew, as another process would."""
    prefix = f"values-{uuid4().hex}"
    match request.param:
        case "sqlite" | "sqlite on asyncio":
            yield request.param, lambda: SQLiteStore(tmp_path / "runs.db")
        case "redis":
            url = request.getfixturevalue("redis_url")
            with redis.Redis.from_url(url) as client:
                yield request.param, lambda: RedisStore(client, prefix=prefix)
        case _:
            url = request.getfixturevalue("redis_url")
            yield request.param, lambda: AsyncRedisStore(redis.asyncio.Redis.from_url(url), prefix=prefix)


def owners(kind: str, make_store: MakeStore, wf: Workflow[Any], values: Any, key: str) -> list[Any]:
    """The run of a first owner that ends incomplete, that of the owner that resumes it, and a replay."""
    if "async" not in kind:
        runs = []
        for _ in range(3):
            with Engine(store=make_store()) as engine:
                runs.append(engine.run(wf, values, idempotency_key=key, check=False))
        return runs

    async def each() -> list[Any]:
        runs = []
        for _ in range(3):
            async with AsyncEngine(store=make_store()) as engine:
                runs.append(await engine.run(wf, values, idempotency_key=key, check=False))
        return runs

    return asyncio.run(each())


def test_a_value_is_the_same_for_each_owner_and_on_replay(fresh_store: tuple[str, MakeStore]) -> None:
    kind, make_store = fresh_store
    wrong: list[str] = []
    for what, value in KEPT_SMALL.items():
        seen: list[tuple[Any, Any, Any]] = []
        wf = Workflow(f"keeps {what}")

        def make(ctx: Any, value: Any = value) -> Any:
            ctx["written"] = value
            return value

        def use(ctx: Any, seen: list[Any] = seen) -> None:
            seen.append((ctx["made"], ctx["written"], ctx["given"]))
            if len(seen) == 1:
                raise ConnectionError("the first owner ends here")

        wf.add_step("made", make, pivot=True)
        wf.add_step("use", use, depends_on="made")
        first, second, replay = owners(kind, make_store, wf, {"given": value}, what)
        assert (first.status, second.status, replay.replayed) == (Status.INCOMPLETE, Status.SUCCESS, True), what
        for who, got in (
            ("the first owner", seen[0]),
            ("the next owner", seen[1]),
            ("its result", (second["made"],)),
            ("the replay", (replay["made"],)),
        ):
            wrong.extend(f"{what}: {who} has {one!r:.80}, not {value!r:.80}" for one in got if not same(one, value))
    assert wrong == []


# -- PydanticCodec -----------------------------------------------------------------------------------------------------


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    colour: Colour


@dataclasses.dataclass
class Order:
    sku: str
    price: Decimal
    when: dt.datetime
    tags: set[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    pair: tuple[int, ...]
    data: bytes


class Basket(pydantic.BaseModel):
    order: Order
    point: Point
    parts: dict[int, Frozen]
    more: Any = None


ORDER = Order("a", Decimal("1.10"), dt.datetime(2026, 1, 2, tzinfo=dt.UTC), {"x"})
FROZEN = Frozen((1, 2), b"\xff")
BASKET = Basket(order=ORDER, point=Point(1, Colour.RED), parts={1: FROZEN}, more=(1,))
TYPED: dict[str, tuple[Any, Any]] = {
    "StrEnum": (Colour.RED, Colour),
    "IntEnum": (Level.LOW, Level),
    "NamedTuple": (Point(1, Colour.RED), Point),
    "dataclass": (ORDER, Order),
    "frozen dataclass": (FROZEN, Frozen),
    "pydantic model": (BASKET, Basket),
    "list of dataclasses": ([ORDER, ORDER], list[Order]),
    "dict with Enum keys": ({Colour.RED: 1}, dict[Colour, int]),
    "optional": (ORDER, Order | None),
    "none": (None, Order | None),
    "plain": ((1, {2}), tuple[int, set[int]]),
}


@pytest.fixture(params=["sqlite", "redis", "strict"])
def typed_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    codec = PydanticCodec()
    if request.param == "sqlite":
        yield lambda: SQLiteStore(tmp_path / "runs.db", codec=codec)
    elif request.param == "strict":
        store = MemoryStore(strict=True, codec=codec)
        yield lambda: store
    else:
        with redis.Redis.from_url(request.getfixturevalue("redis_url")) as client:
            yield lambda: RedisStore(client, prefix=f"typed-{tmp_path.name}", codec=codec)


@pytest.mark.parametrize("what", TYPED)
def test_pydantic_rebuilds_a_value_from_the_steps_annotation(typed_store: MakeStore, what: str) -> None:
    value, annotation = TYPED[what]
    seen: list[Any] = []
    wf = Workflow("typed")

    def make(ctx: Any) -> Any:
        return value

    make.__annotations__["return"] = annotation

    def use(ctx: Any) -> None:
        seen.append(ctx["make"])
        if len(seen) == 1:
            raise ConnectionError

    wf.add_step("make", make, pivot=True)
    wf.add_step("use", use, depends_on="make")
    first, second, replay = owners("", typed_store, wf, {}, f"typed {what}")
    assert (first.status, second.status, replay.replayed) == (Status.INCOMPLETE, Status.SUCCESS, True)
    for got in (*seen, replay["make"]):
        assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    ("value", "annotation", "why"),
    [
        (ORDER, Any, "rebuilt from an annotation, and there is none here"),
        (ORDER, dict, "does not come back unchanged"),
        (Colour.RED, str, "does not come back unchanged"),
        (BASKET.model_copy(update={"more": FROZEN}), Basket, "does not come back unchanged"),
        (object(), Order, "does not come back unchanged|cannot be taken apart|cannot be stored"),
    ],
)
def test_pydantic_refuses_what_would_come_back_changed(value: Any, annotation: Any, why: str) -> None:
    with pytest.raises(NotSerializable, match=why):
        PydanticCodec().dumps(value, annotation)


class Count(pydantic.BaseModel):
    number: int
    by_name: dict[str, int] = {}


class Text(pydantic.BaseModel):
    number: str
    by_name: dict[str, str] = {}


def test_what_pydantic_refuses_is_in_no_message() -> None:
    codec, value = PydanticCodec(), Text(number="hidden", by_name={"hidden": "hidden"})
    with pytest.raises(NotSerializable, match="number: Input should be a valid integer") as refused:
        codec.dumps(value, Count)
    with pytest.raises(ValueError, match="number: Input should be a valid integer") as unread:
        codec.loads(codec.dumps(value, Text), Count)
    for caught in (refused, unread):
        assert "hidden" not in f"{caught.value} {caught.value.__cause__}"
        assert caught.value.__suppress_context__


def test_what_pydantic_took_apart_is_plain_data_to_a_listing_and_refused_by_another_codec() -> None:
    text = PydanticCodec().dumps(ORDER, Order)
    assert PydanticCodec().loads(text, Any)["sku"] == "a"
    with pytest.raises(CorruptRecord, match="unknown tag 'typed'"):
        JsonCodec().loads(text)


@dataclasses.dataclass
class Trip:
    city: str
    order: Order


def test_a_typed_input_is_the_same_for_each_owner(typed_store: MakeStore) -> None:
    seen: list[Trip] = []
    wf = Workflow("trip", input=Trip)

    def use(ctx: Context[Trip]) -> None:
        seen.append(ctx.input)
        if len(seen) == 1:
            raise ConnectionError

    wf.add_step("start", lambda ctx: 1, pivot=True)
    wf.add_step("use", use, depends_on="start")
    trip = Trip("Oslo", ORDER)
    statuses = [run.status for run in owners("", typed_store, wf, trip, "trip")]
    assert statuses == [Status.INCOMPLETE, Status.SUCCESS, Status.SUCCESS]
    assert seen == [trip, trip]


def test_an_owner_that_was_taken_over_gets_the_outcome_rebuilt_from_annotations(tmp_path: Path) -> None:
    """Its heartbeat failed; the next owner has ended the run by the time its step comes back."""

    class Mute(SQLiteStore):
        def renew(self, leases: Any, lease: float, /) -> Any:
            raise StoreUnavailable("away")

    calls: list[int] = []
    ended, wf = threading.Event(), Workflow("typed")

    def make(ctx: Any) -> Order:
        return ORDER

    def slow(ctx: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            assert ended.wait(60)

    wf.add_step("make", make)
    wf.add_step("slow", slow, depends_on="make")
    with (
        Engine(store=Mute(tmp_path / "db", codec=PydanticCodec()), lease=0.3) as first,
        Engine(store=SQLiteStore(tmp_path / "db", codec=PydanticCodec()), lease=0.3) as second,
    ):
        lost = first.submit(wf, idempotency_key="k")
        until(lambda: calls, "the first owner's step")
        taken_over = second.run(wf, idempotency_key="k", wait=60)
        ended.set()
        outcome = lost.result(60)
    assert taken_over["make"] == ORDER
    assert (type(outcome["make"]), outcome["make"]) == (Order, ORDER)
    assert outcome.replayed


@pytest.mark.parametrize("kind", ["plain", "tagged"])
def test_a_nested_value_comes_back_however_deep_its_reader_is_called(tmp_path: Path, kind: str) -> None:
    value: Any = ()
    for _ in range(200):
        value = [value] if kind == "plain" else (value,)
    wf = Workflow("deep")
    made = wf.add_step("made", lambda ctx: value)

    def called_deep(frames: int) -> Any:
        if frames:
            return called_deep(frames - 1)
        with Engine(store=SQLiteStore(tmp_path / "db")) as engine:
            record = engine.find("k")
            assert record is not None
            return engine.run(wf, idempotency_key="k")[made], record.results["made"]

    with Engine(store=SQLiteStore(tmp_path / "db")) as engine:
        engine.run(wf, idempotency_key="k")
    depth = len(traceback.extract_stack())
    replayed, recorded = called_deep(sys.getrecursionlimit() - depth - 150)
    assert same(replayed, value)
    assert same(recorded, value)
