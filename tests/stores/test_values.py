"""Every kind of value on every store, as its first owner, the owner after it and a replay see it: equal, in type too."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio

from flowcore import AsyncEngine, Engine, Status, Workflow
from flowcore.stores import AsyncRedisStore, RedisStore, SQLiteStore
from tests.stores.redis_servers import redis_url
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


def owners(kind: str, make_store: MakeStore, wf: Workflow, values: dict[str, Any], key: str) -> list[Any]:
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
