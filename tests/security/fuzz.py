"""Records that hold anything in any field, on both durable stores, for as long as one likes.

    python -m tests.security.fuzz --minutes 5

A verb returns, or raises a StoreError: never another exception, never a hang, never memory beyond a bound.
"""

import argparse
import contextlib
import json
import logging
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import redis
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from flowcore import Engine, FlowcoreError, Status, StoreError, Workflow
from flowcore.run import StepReport
from flowcore.stores import RedisStore, SQLiteStore
from flowcore.stores.base import Checkpoint, Claim, Claimed, Ending, Lease, RunRecord, StepRecord, Write
from flowcore.stores.redis.calls import unpacked
from tests.stores.redis_runs import pack

KEY: Final = "order-1"
STATES: Final = ("running", "expired", "queued", "parked", "held", "success", "failure")
PATIENCE: Final = 20.0  # seconds for all verbs on one record
MEMORY: Final = 64 * 1024 * 1024  # bytes that they may take together

_texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    _texts,
    st.sampled_from(["running", "success", "parked", "held", 10**400, -1, 2**53, 2**63, 1e308, "9" * 400]),
)
_json = st.recursive(
    _leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=8
)
_SHAPES: Final = (
    "",
    " ",
    "null",
    "{}",
    "[]",
    "1 {}",
    "1 null",
    '1 {"status":"success","attempts":1,"result":7}',
    '1 {"status":"success","attempts":1,"ran":' + "9" * 400 + "}",
    '1 {"status":"success","attempts":1,"result":"{\\"$\\":\\"Decimal\\",\\"v\\":\\"1e999999999\\"}"}',
    '1 {"status":"success","attempts":1,"result":"{\\"$\\":\\"int\\",\\"v\\":\\"0xff\\"}"}',
    "9" * 16 + " {}",
    "9" * 5000,
    "[" * 5000,
    '{"a":' * 2000,
    "1" * 100_000,
    "\0",
    "running\0",
)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "?"


garbage: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(_SHAPES),
    _texts,
    st.binary(max_size=30),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    _json.map(_dumped),
    st.builds(lambda seq, value: f"{seq} {_dumped(value)}", st.integers(), _json),
    st.integers().map(str),
    st.none(),
)
"""what may stand in a field"""


def workflow() -> Workflow:
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: 1, compensate=lambda ctx: None)
    wf.add_step("b", lambda ctx: 2, depends_on="a")
    return wf


def recorded(store: Any, state: str) -> Claim:
    """A run in this state, with something in each field of its record."""
    graph = workflow().freeze().graph
    claim = Claim(KEY, uuid4().hex, "w", "f", graph, {"traceparent": "00-1-2-01"}, {"x": 1}, 600.0, ("a",))
    claim.queued, claim.deadline = state == "queued", 1000.0
    answer = store.claim(claim)
    assert isinstance(answer, Claimed)
    if state == "queued":
        return claim
    owner = claim.key, claim.run_id, answer.fence
    report = StepReport(Status.SUCCESS, 2, error=None, waited=0.5, ran=0.25)
    report.errors, report.failed = (("ValueError", "no"),), 1
    steps = {
        "a": StepRecord(2, report, True, 1, True, {"traceparent": "00"}),
        "b": StepRecord(3, StepReport("running", 1)),
    }
    reported = Checkpoint(*owner, 600.0, steps, {"w": Write(4, 1)}, failed_step="b", error=ValueError("no"))
    if state == "failure":
        reported.undoing = True
    assert store.checkpoint(reported) is None
    if state == "expired":
        store.renew([Lease(*owner)], 0.0)
    elif state != "running":
        status = "success" if state == "success" else "failure" if state == "failure" else "parked"
        record = RunRecord(*owner[:2], "w", "f", graph, Status(status), failed_step="b", error=ValueError("no"))
        record.fence, record.reason = answer.fence, "it was so"
        store.finish(Ending(record))
        if state == "held":
            store.hold(KEY, "look at it")
    return claim


def verbs(store: Any, claim: Claim) -> Iterator[Callable[[], object]]:
    """All that can be asked of a store, about a run."""
    other = Claim(KEY, uuid4().hex, "w", "f", claim.graph, {}, {"x": 1}, 600.0)
    lease = Lease(KEY, claim.run_id, 1)
    yield lambda: store.find(KEY)
    yield lambda: store.head(KEY)
    yield lambda: store.get_run(claim.run_id)
    yield lambda: [(record.explain(), record.html(), repr(record)) for record in store.list_runs()]
    yield lambda: store.list_runs(status="parked", workflow="w", older_than=0, text="o")
    yield lambda: store.list_resumable(["w"])
    yield store.counts
    yield store.doctor
    yield lambda: store.claim(claim)
    yield lambda: store.claim(other)
    yield lambda: store.checkpoint(Checkpoint(*_ids(lease), 600.0, {"b": StepRecord(9, StepReport("success", 1))}))
    yield lambda: store.renew([lease], 600.0)
    yield lambda: store.finish(Ending(RunRecord(KEY, claim.run_id, "w", "f", claim.graph, Status.PARKED, fence=1)))
    yield lambda: store.withdraw(other)
    yield lambda: _recovered(store)
    yield from (partial(verb, KEY) for verb in (store.hold, store.resume, store.undo, store.cancel))
    yield store.gc
    yield lambda: store.release(KEY)
    yield lambda: store.erase(KEY)
    yield lambda: store.erase(KEY, force=True)
    yield lambda: store.release(KEY, force=True)


def _ids(lease: Lease) -> tuple[str, str, int]:
    return lease.key, lease.run_id, lease.fence


def _recovered(store: Any) -> None:
    wf = workflow()
    with Engine(store=store, workflows=[wf], lease=600) as engine:
        engine.recover()
        with contextlib.suppress(FlowcoreError):
            engine.run(wf, {"x": 1}, idempotency_key=KEY, check=False)
        assert engine.run(wf, idempotency_key=uuid4().hex, check=False).status is Status.SUCCESS


def asks_everything(store: Any, claim: Claim) -> list[str]:
    """What was wrong with what the verbs did."""
    wrong: list[str] = []
    began, stuck = time.monotonic(), threading.Timer(PATIENCE * 3, _dump_and_die)
    stuck.start()
    tracemalloc.start()
    try:
        for number, verb in enumerate(verbs(store, claim)):
            try:
                verb()
            except StoreError as error:
                if "\n" in str(error) or len(str(error)) > 4000:
                    wrong.append(f"verb {number}: a message of many lines or of {len(str(error))} characters")
            except FlowcoreError as error:
                wrong.append(f"verb {number}: {error!r}"[:500])
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not be
                wrong.append(f"verb {number}: {error!r}"[:500])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        stuck.cancel()
    if peak > MEMORY:
        wrong.append(f"{peak:,} bytes of memory")
    if time.monotonic() - began > PATIENCE:
        wrong.append(f"{time.monotonic() - began:.1f} s")
    return wrong


def _dump_and_die() -> None:
    import faulthandler
    import os

    faulthandler.dump_traceback(all_threads=True)
    os._exit(3)


# -- SQLite ------------------------------------------------------------------------------------------------------------


class OfSQLite:
    """A file for each state, copied for each attempt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._claims: dict[str, Claim] = {}
        for state in STATES:
            with contextlib.closing(SQLiteStore(folder / f"{state}.db", durability="normal")) as store:
                self._claims[state] = recorded(store, state)

    def places(self, state: str) -> list[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self._folder / f"{state}.db")) as file:
            columns = [("runs", row[1]) for row in file.execute("PRAGMA table_info(runs)")]
            return columns + [("fields", row[0]) for row in file.execute("SELECT name FROM fields WHERE run = 1")]

    def attempt(self, state: str, place: tuple[str, str], value: Any) -> list[str]:
        path = self._folder / "attempt.db"
        for end in ("", "-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        shutil.copy(self._folder / f"{state}.db", path)
        table, name = place
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
            file.execute("PRAGMA ignore_check_constraints = ON")
            if isinstance(value, str):  # text of any bytes, which SQLite does not check
                raw, value_sql = value.encode("utf-8", "surrogatepass"), "CAST(? AS TEXT)"
            else:
                raw, value_sql = value, "?"
            try:
                if table == "runs":
                    file.execute(f"UPDATE runs SET {name} = {value_sql}", (raw,))
                else:
                    file.execute(f"UPDATE fields SET text = {value_sql} WHERE run = 1 AND name = ?", (raw, name))
            except sqlite3.Error:
                return []  # not even SQLite keeps it
        with contextlib.closing(SQLiteStore(path, durability="normal")) as store:
            return asks_everything(store, self._claims[state])


# -- Redis -------------------------------------------------------------------------------------------------------------


class OfRedis:
    """A record for each state, put back with one field changed for each attempt."""

    def __init__(self, url: str) -> None:
        self._client: Any = redis.Redis.from_url(url)
        self._saved: dict[str, tuple[Claim, str, dict[bytes, bytes]]] = {}
        self._dumps: dict[str, dict[bytes, bytes]] = {}
        for state in STATES:
            prefix = f"fuzz-{state}-{uuid4().hex}"
            claim = recorded(RedisStore(self._client, prefix=prefix, shards=1), state)
            keys = list(self._client.scan_iter(f"{{{prefix}:*"))
            (run,) = (key for key in keys if b":run:" in key)
            fields: Any = self._client.hgetall(run) if self._client.type(run) == b"hash" else self._packed(run)
            self._saved[state] = claim, prefix, {**fields}
            self._dumps[state] = {key: self._client.dump(key) or b"" for key in keys}

    def _packed(self, run: bytes) -> dict[bytes, bytes]:
        texts = unpacked([b"", b"", b"packed", self._client.get(run) or b""])[2:]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def places(self, state: str) -> list[bytes]:
        return [*self._saved[state][2], b"surprise", b"s:", b"w:"]

    def attempt(self, state: str, place: bytes, value: Any) -> list[str]:
        claim, prefix, fields = self._saved[state]
        for key in self._client.scan_iter(f"{{{prefix}:*"):
            self._client.delete(key)
        for key, dump in self._dumps[state].items():
            self._client.restore(key, 0, dump)
        (run,) = (key for key in self._dumps[state] if b":run:" in key)
        raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        changed = {name: text for name, text in fields.items() if name != place}
        if value is not None:
            changed[place] = raw
        packed = self._client.type(run) == b"string"
        self._client.delete(run)
        if packed:
            self._client.set(run, pack(changed), px=600_000)
        elif changed:
            self._client.hset(run, mapping=changed)
        return asks_everything(RedisStore(self._client, prefix=prefix, shards=1), claim)


def fuzz(place: OfSQLite | OfRedis, examples: int, *, seconds: float = float("inf")) -> int:
    """Try so many records, or for so long; returns how many were tried. Raises AssertionError with the smallest that is wrong."""
    until, tried = time.monotonic() + seconds, 0
    places: dict[str, list[Any]] = {state: [*place.places(state)] for state in STATES}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(state=st.sampled_from(STATES), data=st.data(), value=garbage)
    def attempt(state: str, data: Any, value: Any) -> None:
        nonlocal tried
        where: Any = data.draw(st.sampled_from(places[state]))
        if time.monotonic() > until:
            return
        tried += 1
        wrong = place.attempt(state, where, value)
        assert not wrong, f"{state}, {where}: {wrong}"

    logging.getLogger("flowcore").setLevel(logging.CRITICAL)
    try:
        attempt()
    finally:
        logging.getLogger("flowcore").setLevel(logging.NOTSET)
    return tried


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    from tests.stores.redis_servers import RedisServer

    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        for kind, place in (("sqlite", OfSQLite(Path(folder))), ("redis", OfRedis(server.url))):
            until, tried = time.monotonic() + arguments.minutes * 30, 0
            while time.monotonic() < until:
                tried += fuzz(place, 500, seconds=until - time.monotonic())
            print(f"{kind}: {tried:,} records", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
