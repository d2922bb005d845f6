"""What a released version wrote, kept so that later ones can be held to reading it.

`python -m tests.stores.released VERSION`, run with that version, writes `released/VERSION/`: `runs.sql`, a dump of an SQLite file;
`redis.json`, the keys of a Redis store; `errors.json`, pickled errors and a pickled Run; `expected.json`, what is in all of them.
"""

from __future__ import annotations

import base64
import json
import pickle
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import redis

import flowcore
from flowcore import Context, Engine, RunFailed, Workflow, errors
from flowcore.stores import RedisStore, SQLiteStore

FOLDER: Final = Path(__file__).parent / "released"
PREFIX: Final = "released"
_SHARDS: Final = 4
_FOREVER: Final = 10 * 365 * 86_400.0
"""seconds of retention: a fixture must not be forgotten"""


def order() -> Workflow:
    """A saga whose values say what becomes of it."""
    wf = Workflow("order")

    @wf.step
    def reserve(ctx: Context) -> dict[str, Any]:
        ctx["seen"] = {"caf\u00e9", "tea"}
        return {"seat": "12A", "price": Decimal("9.90"), "at": datetime(2026, 11, 29, tzinfo=UTC), "pair": (1, 2)}

    @reserve.compensate(retry=1)
    def release(ctx: Context) -> None:
        if ctx["card"] == "stuck":
            raise ConnectionError("warehouse is down")

    @wf.step(depends_on=reserve, retry=2)
    def charge(ctx: Context) -> str:
        if ctx["card"] != "good":
            raise PermissionError("card declined")
        return "paid"

    return wf


def etl() -> Workflow:
    """A workflow that is resumed where it failed."""
    wf = Workflow("etl", undo="never")
    wf.add_step("extract", lambda ctx: [1, 2, 3])

    @wf.step(depends_on="extract")
    def load(ctx: Context) -> int:
        if ctx["fails"]:
            raise OSError("the disk is full")
        return sum(ctx["extract"])

    return wf


def fill(store: Any) -> None:
    """One run for each way in which a run can stand."""
    with Engine(store=store) as engine:
        for card in ("good", "stolen", "stuck"):
            engine.run(order(), {"card": card}, idempotency_key=card, check=False)
        engine.run(etl(), {"fails": True}, idempotency_key="nightly", check=False)


def story(store: Any) -> dict[str, Any]:
    """What a store says of these runs, without what each run has of its own."""
    found = {}
    for key in ("good", "stolen", "stuck", "nightly"):
        record = store.find(key)
        found[key] = {
            "workflow": record.workflow,
            "status": str(record.status),
            "held": record.held,
            "failed_step": record.failed_step,
            "undone": list(record.undone),
            "error": None if record.error is None else str(record.error).replace(record.run_id, "RUN"),
            "values": repr(sorted(record.values.items(), key=str)).replace(
                "{'tea', 'caf\u00e9'}", "{'caf\u00e9', 'tea'}"
            ),
            "results": repr(record.results),
            "steps": {
                name: [str(step.status), step.attempts, str(step.undo)] for name, step in sorted(record.steps.items())
            },
        }
    return found


def restored_sqlite(folder: Path, path: Path) -> SQLiteStore:
    """The SQLite store of a release."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript((folder / "runs.sql").read_text(encoding="utf-8"))
    path.chmod(0o600)
    return SQLiteStore(path, retention=_FOREVER)


def restored_redis(folder: Path, client: Any) -> RedisStore:
    """The Redis store of a release, in an empty server."""
    for kind, name, value in json.loads((folder / "redis.json").read_text(encoding="utf-8")):
        key = name.encode()
        if kind == "hash":
            client.hset(key, mapping={_bytes(field): _bytes(text) for field, text in value})
        elif kind == "zset":
            client.zadd(key, {_bytes(member): score for member, score in value})
        else:
            client.set(key, _bytes(value))
    return RedisStore(client, prefix=PREFIX, shards=_SHARDS, retention=_FOREVER)


def thrown() -> dict[str, Any]:
    """An error of each public type, and a Run."""
    made: dict[str, Callable[[], BaseException]] = {
        "RunFailed": lambda: RunFailed(
            "it failed", run="1" * 32, step="a", error_type="ValueError", error_message="no"
        ),
        "RetryAfter": lambda: errors.RetryAfter(3, "later"),
        "Fatal": lambda: errors.Fatal("final"),
    }
    plain = [
        *(
            "DefinitionError",
            "DuplicateStep",
            "NoResult",
            "IdempotencyMismatch",
            "IdempotencyHeld",
            "StepTimeout",
            "RunTimeout",
        ),
        *("StepCancelled", "LeaseLost", "RunParked", "QueueFull", "StoreError", "RunNotFound", "StoreUnavailable"),
        *("CorruptRecord", "NotSerializable"),
    ]
    found: dict[str, Any] = {name: getattr(flowcore, name)(f"a {name}") for name in plain}
    found |= {name: make() for name, make in made.items()}
    with Engine() as engine:
        run = engine.run(order(), {"card": "stuck"}, check=False)
    return {**found, "CompensationFailed": run.error, "Run": run}


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _dumped(client: Any) -> list[Any]:
    found: list[Any] = []
    for key in sorted(client.scan_iter("*")):
        kind = client.type(key).decode()
        if kind == "hash":
            value: Any = [[_text(field), _text(text)] for field, text in sorted(client.hgetall(key).items())]
        elif kind == "zset":
            value = [[_text(member), score] for member, score in client.zrange(key, 0, -1, withscores=True)]
        else:
            value = _text(client.get(key))
        found.append([kind, key.decode(), value])
    return found


def main(version: str) -> None:
    """Write the fixtures of this version."""
    from .redis_servers import RedisServer

    assert flowcore.__version__ == version, "run this with the version whose fixtures it writes"
    folder = FOLDER / version
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "runs.db"
        with closing(SQLiteStore(path, retention=_FOREVER)) as store:
            fill(store)
            expected = story(store)
        with closing(sqlite3.connect(path)) as database:
            pragmas = [
                f"PRAGMA {name} = {database.execute(f'PRAGMA {name}').fetchone()[0]};"
                for name in ("application_id", "user_version", "page_size")
            ]
            dump = "\n".join([*pragmas[2:], *database.iterdump(), *pragmas[:2]])
        (folder / "runs.sql").write_text(dump + "\n", encoding="utf-8")
        with (
            RedisServer(Path(temporary) / "redis", port=0) as server,
            redis.Redis.from_url(server.url) as client,
        ):
            fill(RedisStore(client, prefix=PREFIX, shards=_SHARDS, retention=_FOREVER))
            (folder / "redis.json").write_text(json.dumps(_dumped(client), indent=0) + "\n", encoding="utf-8")
    objects = thrown()
    pickled = {name: _text(pickle.dumps(value, 4)) for name, value in objects.items()}
    (folder / "errors.json").write_text(json.dumps(pickled, indent=1) + "\n", encoding="utf-8")
    said = {name: str(value) for name, value in objects.items() if name != "Run"}
    (folder / "expected.json").write_text(
        json.dumps({"runs": expected, "errors": said, "explain": objects["Run"].explain()}, indent=1) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(sys.argv[1])
