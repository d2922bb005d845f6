"""The namespace of step keys: whose they are (semantics 17)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from flowcore import AsyncEngine, Context, DefinitionError, Engine, Workflow
from flowcore.stores import AsyncRedisStore, MemoryStore, RedisStore, SQLiteStore
from flowcore.testing import Fault, SimulatedStore, simulate


def payment(keys: list[str], *, fails: bool = False) -> Workflow:
    wf = Workflow("payment")
    wf.add_step("charge", lambda ctx: keys.append(ctx.step_key), compensate=lambda ctx: keys.append(ctx.step_key))
    if fails:
        wf.add_step("ship", lambda ctx: 1 / 0, depends_on="charge")
    return wf


def keys_on_threads(*, fails: bool = False, **options: Any) -> list[str]:
    keys: list[str] = []
    with Engine(**options) as engine:
        engine.run(payment(keys, fails=fails), idempotency_key="order-1", check=False)
    return keys


def keys_on_asyncio(*, fails: bool = False, **options: Any) -> list[str]:
    keys: list[str] = []

    async def main() -> None:
        async with AsyncEngine(**options) as engine:
            await engine.run(payment(keys, fails=fails), idempotency_key="order-1", check=False)

    asyncio.run(main())
    return keys


on_both = pytest.mark.parametrize("step_keys", [keys_on_threads, keys_on_asyncio])


@on_both
def test_tenants_with_namespaces_of_their_own_never_have_one_step_key(step_keys: Any, tmp_path: Path) -> None:
    found: list[str] = []
    for tenant in ("a", "b", ""):
        found += step_keys(namespace=tenant, store=SQLiteStore(tmp_path / f"{tenant or 'none'}.db"), fails=True)
        found += step_keys(namespace=f"{tenant}payment")  # which is no other way to write a workflow's name
    assert len(found) == 9
    assert len(set(found)) == 9


@on_both
def test_without_a_namespace_one_key_in_two_stores_has_one_step_key(step_keys: Any, tmp_path: Path) -> None:
    stores = [SQLiteStore(tmp_path / "a.db"), SQLiteStore(tmp_path / "b.db"), MemoryStore(), None]
    assert len({key for store in stores for key in step_keys(store=store)}) == 1


@on_both
def test_a_step_key_is_the_same_after_its_store_was_lost(step_keys: Any, tmp_path: Path) -> None:
    first = step_keys(store=SQLiteStore(tmp_path / "first.db"), namespace="shop")
    for left in tmp_path.iterdir():
        left.unlink(missing_ok=True)  # the connections of the first store may close meanwhile
    assert step_keys(store=SQLiteStore(tmp_path / "second.db"), namespace="shop") == first


@on_both
def test_after_its_retention_a_key_has_the_same_step_key_again(step_keys: Any) -> None:
    store = MemoryStore(retention=0)
    assert step_keys(store=store) == step_keys(store=store)  # the step ran twice: the second was no replay


def test_the_prefix_of_a_redis_store_is_its_namespace(redis_url: str) -> None:
    client, other = redis.Redis.from_url(redis_url), redis.asyncio.Redis.from_url(redis_url)
    ours = keys_on_threads(store=RedisStore(client, prefix="tenant-a"))
    theirs = keys_on_asyncio(store=AsyncRedisStore(other, prefix="tenant-b"))
    assert ours != theirs
    for key in client.scan_iter(match="{tenant-a:*"):  # the store is lost: the same order is not charged again
        client.delete(key)
    assert keys_on_asyncio(store=AsyncRedisStore(other, prefix="tenant-a")) == ours
    # The engine's own goes before it.
    moved = keys_on_threads(store=RedisStore(client, prefix="moved"), namespace="tenant-a")
    assert moved == ours
    assert keys_on_threads(store=MemoryStore(), namespace="tenant-a") == ours


def test_a_takeover_keeps_the_step_key_of_its_namespace() -> None:
    class Tenant(SimulatedStore):
        namespace = "tenant-a"

    found: dict[str, set[str]] = {}
    for name, store in (("tenant", Tenant()), ("none", SimulatedStore())):
        keys: list[str] = []
        simulate(payment(keys), store=store, faults={"charge": Fault.CRASH_AFTER}, idempotency_key="order-1")
        assert len(keys) == 2
        found[name] = set(keys)
    assert len(found["tenant"]) == len(found["none"]) == 1
    assert found["tenant"] != found["none"]


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
def test_a_namespace_must_be_a_string(engine: Any) -> None:
    with pytest.raises(DefinitionError, match="namespace= must be a string, not 7"):
        engine(namespace=7)


def test_a_store_without_a_namespace_has_the_empty_one() -> None:
    class Wrapped:
        durable, blocks, name = False, False, "wrapped"

        def __init__(self) -> None:
            self.inner = MemoryStore()
            self.claim, self.finish, self.withdraw = self.inner.claim, self.inner.finish, self.inner.withdraw

    def seen(ctx: Context) -> str:
        return ctx.step_key

    wf = Workflow("payment")
    wf.step(seen)
    store: Any = Wrapped()
    with Engine(store=store) as engine, Engine() as plain:
        ours = engine.run(wf, idempotency_key="order-1")["seen"]
        assert plain.run(wf, idempotency_key="order-1")["seen"] == ours
