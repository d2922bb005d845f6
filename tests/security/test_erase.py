"""store.erase(key): what users put into a run is gone at once, from the bytes of the store too."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio

from flowcore import AsyncEngine, Engine, IdempotencyMismatch, Status, StoreError, Workflow
from flowcore.stores import AsyncRedisStore, MemoryStore, RedisStore, SQLiteStore
from flowcore.stores.base import Checkpoint, Claim, StepRecord, Write

SECRET = "4111-1111-1111-1111"


def payment(*, fails: bool = False) -> Workflow:
    wf = Workflow("payment")

    @wf.step
    def charge(ctx: Any) -> str:
        ctx["note"] = f"card {ctx['card']}"
        if fails:
            raise ValueError(f"card {ctx['card']} was declined")
        return f"charged {ctx['card']}"

    return wf


def of_sqlite(tmp_path: Path, redis_url: str) -> tuple[Any, Callable[[], bytes]]:
    path = tmp_path / "runs.db"
    return SQLiteStore(path), lambda: b"".join(file.read_bytes() for file in sorted(tmp_path.iterdir()))


def of_redis(tmp_path: Path, redis_url: str) -> tuple[Any, Callable[[], bytes]]:
    client: Any = redis.Redis.from_url(redis_url)
    prefix = f"erase-{uuid4().hex}"

    def content() -> bytes:
        found = b""
        for key in client.scan_iter(match=f"{{{prefix}:*"):
            if client.type(key) == b"hash":
                found += key + repr(client.hgetall(key)).encode()
            elif client.type(key) == b"string":
                found += key + client.get(key)
            else:
                found += key + repr(client.zrange(key, 0, -1)).encode()
        return found

    return RedisStore(client, prefix=prefix), content


@pytest.fixture(params=[of_sqlite, of_redis], ids=["sqlite", "redis"])
def durable(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str
) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    store, content = request.param(tmp_path, redis_url)
    yield store, content
    store.close()


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_an_erased_run_is_left_in_the_store(
    durable: tuple[Any, Callable[[], bytes]], *, fails: bool
) -> None:
    store, content = durable
    with Engine(store=store) as engine:
        for _ in range(2):  # a failed run is followed by another generation of its key
            engine.run(payment(fails=fails), {"card": SECRET}, idempotency_key="order-1", check=False)
        engine.run(payment(), {"card": "another"}, idempotency_key="order-2")
        assert SECRET.encode() in content()
        store.erase("order-1")
        assert SECRET.encode() not in content()
        assert b"order-1" in content()  # the key stays until its retention is over
        assert engine.run(payment(), {"card": "another"}, idempotency_key="order-2").replayed


def test_a_released_run_keeps_what_it_holds_until_it_is_erased(durable: tuple[Any, Callable[[], bytes]]) -> None:
    store, content = durable
    with Engine(store=store) as engine:
        engine.run(payment(), {"card": SECRET}, idempotency_key="order-1")
    store.release("order-1")
    assert SECRET.encode() in content()
    assert store.find("order-1").values["card"] == SECRET
    store.erase("order-1")
    assert SECRET.encode() not in content()


def test_what_retention_has_forgotten_is_not_in_the_file(tmp_path: Path) -> None:
    now = [1e9]
    store = SQLiteStore(tmp_path / "runs.db", retention=10, wall=lambda: now[0])
    with Engine(store=store) as engine:
        engine.run(payment(), {"card": SECRET}, idempotency_key="order-1")
    now[0] += 11
    assert store.gc() == 0
    store.close()  # which moves the log into the file
    assert SECRET.encode() not in (tmp_path / "runs.db").read_bytes()


@pytest.mark.parametrize("kind", ["memory", "strict", "sqlite", "redis"])
def test_an_erased_key_stays_used_up_until_it_is_released(kind: str, tmp_path: Path, redis_url: str) -> None:
    store: Any = MemoryStore(strict=kind == "strict")
    if kind in {"sqlite", "redis"}:
        store, _ = (of_sqlite if kind == "sqlite" else of_redis)(tmp_path, redis_url)
    with Engine(store=store) as engine:
        first = engine.run(payment(), {"card": SECRET}, idempotency_key="order-1")
        store.erase("order-1")
        record = store.find("order-1")
        assert (record.run_id, record.status, dict(record.values)) == (first.id, Status.SUCCESS, {})
        for card in (SECRET, "another"):
            with pytest.raises(IdempotencyMismatch, match="were erased"):
                engine.run(payment(), {"card": card}, idempotency_key="order-1")
        store.release("order-1")
        assert not engine.run(payment(), {"card": "another"}, idempotency_key="order-1").replayed
    store.close()


@pytest.mark.parametrize("store", [MemoryStore, lambda: MemoryStore(strict=True)])
def test_in_memory_an_erased_run_keeps_no_value_and_no_error(store: Any) -> None:
    kept = store()
    with Engine(store=kept) as engine:
        run = engine.run(payment(fails=True), {"card": "x"}, idempotency_key="order-1", check=False)
        assert run.error is not None
        kept.erase("order-1")
        record = kept.find("order-1")
        assert (record.error, record.values, record.steps) == (None, {}, {})


def test_an_engine_on_asyncio_erases_too(redis_url: str) -> None:
    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.Redis.from_url(redis_url), prefix=f"erase-{uuid4().hex}")
        async with AsyncEngine(store=store) as engine:
            await engine.run(payment(), {"card": SECRET}, idempotency_key="order-1")
            await store.erase("order-1")
            record = await store.find("order-1")
            assert record is not None
            assert (record.values, record.results) == ({}, {})
            with pytest.raises(IdempotencyMismatch, match="were erased"):
                await engine.run(payment(), {"card": SECRET}, idempotency_key="order-1")
        await store.close()

    asyncio.run(main())


def test_a_run_at_work_is_erased_by_force_only_and_stops(durable: tuple[Any, Callable[[], bytes]]) -> None:
    store, content = durable
    wf = Workflow("payment")

    @wf.step
    def charge(ctx: Any) -> str:
        with pytest.raises(StoreError, match="is running"):
            store.erase("order-1")
        store.erase("order-1", force=True)
        return str(ctx["card"])

    wf.add_step("ship", lambda ctx: pytest.fail("the run went on"), depends_on="charge")
    with Engine(store=store) as engine:
        assert engine.run(wf, {"card": SECRET}, idempotency_key="order-1", check=False).status is not Status.SUCCESS
    assert SECRET.encode() not in content()


def test_no_value_is_in_the_repr_of_a_record_or_a_request(durable: tuple[Any, Callable[[], bytes]]) -> None:
    store, _ = durable
    with Engine(store=store) as engine:
        engine.run(payment(), {"card": SECRET}, idempotency_key="order-1")
    record = store.find("order-1")
    assert record.values["card"] == SECRET
    claim = Claim("k", "r", "w", f"print of {SECRET}", "graph", {"baggage": SECRET}, {"card": SECRET})
    steps = {"a": StepRecord(1, record.steps["charge"], True, SECRET, carrier={"baggage": SECRET})}
    checkpoint = Checkpoint("k", "r", 1, 30.0, steps, {"b": Write(2, SECRET)})
    for shown in (record, store.list_runs(), claim, checkpoint):
        assert SECRET not in repr(shown)
        assert SECRET not in str(shown)
    assert SECRET not in record.explain()
