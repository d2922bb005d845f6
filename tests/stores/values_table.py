"""The table of examples/guide/values.md: what each kind of value is to each owner of a run, on each store.

python -m tests.stores.values_table writes it anew; tests/stores/test_values_table.py compares it.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import redis
import redis.asyncio

from flowcore import AsyncEngine, Context, Engine, MemoryStore, NotSerializable, Run, Status, Workflow
from flowcore.events import MaintenanceStarted
from flowcore.stores import AsyncRedisStore, PydanticCodec, RedisStore, SQLiteStore
from tests.stores.test_codec import KEPT, same
from tests.stores.test_values import TYPED, Colour

__all__ = ["PAGE", "STORES", "filled", "table"]

PAGE: Final = Path(__file__).parents[2] / "examples" / "guide" / "values.md"
STORES: Final = ("MemoryStore(strict=True)", "SQLiteStore", "RedisStore", "AsyncRedisStore")
PLAIN: Final = {kind: value for kind, value in KEPT.items() if "interpreter" not in kind}
REFUSED: Final = {
    "OrderedDict": OrderedDict(a=1),
    "StrEnum": Colour.RED,
    "dataclass": TYPED["dataclass"][0],
    "object": object(),
}
WAIT: Final = 60.0
ROLES: Final = ("first owner", "takeover", "replay", "waiting caller")


@contextmanager
def opener(name: str, redis_url: str, codec: Any) -> Iterator[Callable[[], Any]]:
    """A function that opens a store of a kind, as another process would."""
    with tempfile.TemporaryDirectory() as folder, redis.Redis.from_url(redis_url) as client:
        memory, prefix = MemoryStore(strict=True, codec=codec), f"table-{uuid4().hex}"
        yield {
            "MemoryStore(strict=True)": lambda: memory,
            "SQLiteStore": lambda: SQLiteStore(Path(folder) / "runs.db", codec=codec, durability="normal"),
            "RedisStore": lambda: RedisStore(client, prefix=prefix, codec=codec),
            "AsyncRedisStore": lambda: AsyncRedisStore(
                redis.asyncio.Redis.from_url(redis_url), prefix=prefix, codec=codec
            ),
        }[name]


def run_on(store: Any, wf: Workflow, hook: Callable[[Any], object] = lambda event: None) -> Run:
    async def on_a_loop() -> Run:
        async with AsyncEngine(store=store, hooks=[hook]) as engine:
            return await engine.run(wf, idempotency_key="k", wait=WAIT, check=False)

    if isinstance(store, AsyncRedisStore):
        return asyncio.run(on_a_loop())
    with Engine(store=store, hooks=[hook]) as engine:
        return engine.run(wf, idempotency_key="k", wait=WAIT, check=False)


def seen_by(make_store: Callable[[], Any], kinds: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    """What each role has of the values: as results of steps, one for each kind."""
    wf, seen = Workflow("values"), list[dict[str, Any]]()
    polls, waited = threading.Event(), list[Run]()
    waiter = threading.Thread(target=lambda: waited.append(run_on(make_store(), wf, heard)))

    def heard(event: Any) -> None:
        if isinstance(event, MaintenanceStarted) and event.kind == "poll":
            polls.set()

    def use(ctx: Context) -> None:
        seen.append({kind: ctx[kind] for kind in kinds})
        if len(seen) == 1:
            raise ConnectionError("the first owner ends here")
        waiter.start()
        assert polls.wait(WAIT)

    for kind, (value, annotation) in kinds.items():
        wf.add_step(kind, returning(value, annotation), pivot=True)
    wf.add_step("use", use, depends_on=list(kinds))
    assert run_on(make_store(), wf).status is Status.INCOMPLETE
    assert run_on(make_store(), wf).status is Status.SUCCESS
    waiter.join(WAIT)
    replay = run_on(make_store(), wf)
    assert replay.replayed
    results = (*seen, replay.results, waited[0].results)
    return dict(zip(ROLES, results, strict=True))


def returning(value: Any, annotation: Any) -> Callable[[Any], Any]:
    def make(ctx: Any) -> Any:
        return value

    make.__annotations__["return"] = annotation
    return make


def refused(make_store: Callable[[], Any], value: Any) -> bool:
    wf = Workflow("refused")
    wf.add_step("make", lambda ctx: value)
    return isinstance(run_on(make_store(), wf).error, NotSerializable)


def cells(name: str, redis_url: str) -> dict[str, str]:
    """By kind, what becomes of it on this store."""
    found: dict[str, str] = {}
    plain = {kind: (value, Any) for kind, value in PLAIN.items()}
    typed = {f"{kind}, with PydanticCodec": pair for kind, pair in TYPED.items() if kind not in {"none", "plain"}}
    for kinds, codec, equal in (
        (plain, None, same),
        (typed, PydanticCodec(), lambda a, b: type(a) is type(b) and a == b),
    ):
        with opener(name, redis_url, codec) as make_store:
            for role, values in seen_by(make_store, kinds).items():
                for kind, (value, _) in kinds.items():
                    if not equal(values[kind], value):
                        found[kind] = f"{found.get(kind, 'differs for')} {role}"
        found |= {kind: "same" for kind in kinds if kind not in found}
    for kind, value in REFUSED.items():
        with opener(name, redis_url, None) as make_store:
            found[kind] = "refused" if refused(make_store, value) else "kept"
    return found


def table(redis_url: str) -> str:
    """The table, in Markdown."""
    columns = [cells(name, redis_url) for name in STORES]
    lines = [f"| kind | {' | '.join(f'`{name}`' for name in STORES)} |", f"|---|{'---|' * len(STORES)}"]
    lines += [f"| {kind} | {' | '.join(column[kind] for column in columns)} |" for kind in columns[0]]
    return "\n".join(lines)


def filled(page: str, new: str) -> str:
    """The page with its table replaced."""
    return re.sub(r"^\| kind \|.*?(?=\n\n|\Z)", lambda _: new, page, count=1, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    from tests.stores.redis_servers import RedisServer

    with tempfile.TemporaryDirectory() as scratch, RedisServer(Path(scratch)) as server:
        PAGE.write_text(filled(PAGE.read_text("utf-8"), table(server.url)), "utf-8")
