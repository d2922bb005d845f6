"""Keys stay out of messages, and what users send is bounded."""

import asyncio
import enum
import logging
import pickle
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from opentelemetry import trace
from opentelemetry.trace import SpanContext, TraceFlags, TraceState

from flowcore import (
    AsyncEngine,
    DefinitionError,
    Engine,
    FlowcoreError,
    IdempotencyError,
    IdempotencyHeld,
    IdempotencyInProgress,
    IdempotencyMismatch,
    LoggingHook,
    NotSerializable,
    RunNotFound,
    StoreError,
    Workflow,
)
from flowcore.errors import hashed_key
from flowcore.stores import MemoryStore, RedisStore, SQLiteStore
from flowcore_otel.spans import store as put_in
from flowcore_otel.testing import capture

KEY = "order-of-ada@example.com"


def stores(tmp_path: Path, redis_url: str) -> list[Any]:
    client = redis.Redis.from_url(redis_url)
    return [MemoryStore(), SQLiteStore(tmp_path / "runs.db"), RedisStore(client, prefix=f"keys-{uuid4().hex}")]


def refusals(store: Any) -> list[FlowcoreError]:
    """Errors of as many kinds as there are, about one key."""
    found: list[FlowcoreError] = []
    wf = Workflow("order")

    def refused(kind: type[FlowcoreError], ask: Callable[[], object]) -> None:
        with pytest.raises(kind) as caught:
            ask()
        found.append(caught.value)

    with Engine(store=store) as engine:

        @wf.step
        def again(ctx: Any) -> None:
            refused(IdempotencyInProgress, lambda: engine.run(wf, {"n": 1}, idempotency_key=KEY))
            refused(StoreError, lambda: store.release(KEY))

        engine.run(wf, {"n": 1}, idempotency_key=KEY)
        refused(IdempotencyMismatch, lambda: engine.run(wf, {"n": 2}, idempotency_key=KEY))
        refused(StoreError, lambda: store.resume(KEY))
        store.hold(KEY)
        refused(IdempotencyHeld, lambda: engine.run(wf, {"n": 1}, idempotency_key=KEY))
        refused(StoreError, lambda: store.erase(KEY))
        refused(RunNotFound, lambda: store.hold(f"no {KEY}"))
    store.close()
    return found


def test_no_message_of_an_error_has_the_key_in_it_and_the_error_itself_does(tmp_path: Path, redis_url: str) -> None:
    for store in stores(tmp_path, redis_url):
        found = refusals(store)
        assert len(found) == 7
        for error in found:
            assert KEY not in f"{error} {error!r}"
            assert error.key is not None
            assert KEY in error.key
            assert hashed_key(error.key) in str(error)
            assert pickle.loads(pickle.dumps(error)).key == error.key


def test_no_key_reaches_spans_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store, wf = MemoryStore(), Workflow("order")
    wf.add_step("a", lambda ctx: None)
    tracer = trace.get_tracer("test")
    with capture() as telemetry, Engine(store=store, hooks=[*telemetry.hooks, LoggingHook()]) as engine:
        engine.run(wf, {"n": 1}, idempotency_key=KEY)
        with pytest.raises(IdempotencyMismatch), tracer.start_as_current_span("POST /orders"):
            engine.run(wf, {"n": 2}, idempotency_key=KEY)
        said = repr([(span.name, dict(span.attributes or {}), span.events) for span in telemetry.spans])
    assert KEY not in said + caplog.text
    assert hashed_key(KEY) in said


@pytest.mark.parametrize("engine", [Engine, AsyncEngine])
def test_a_key_has_at_most_1024_characters(engine: Any) -> None:
    wf = Workflow("order")
    wf.add_step("a", lambda ctx: None)

    def run(key: Any) -> Any:
        if engine is Engine:
            with Engine() as threads:
                return threads.run(wf, idempotency_key=key)

        async def main() -> Any:
            async with AsyncEngine() as loop:
                return await loop.run(wf, idempotency_key=key)

        return asyncio.run(main())

    assert run("k" * 1024)
    with pytest.raises(IdempotencyError, match="has 1,025 characters; the limit is 1,024") as caught:
        run("k" * 1025)
    assert len(str(caught.value)) < 200
    with pytest.raises(IdempotencyError, match="must be a string, not of type int"):
        run(4111)


def test_initial_values_are_limited_in_number_where_they_are_recorded_or_compared() -> None:
    wf = Workflow("order")
    wf.add_step("a", len)
    many = {str(number): number for number in range(1001)}
    with Engine() as engine, Engine(store=MemoryStore(strict=True)) as strict:
        assert engine.run(wf, many)["a"] == 1001
        assert strict.run(wf, dict(list(many.items())[1:]))["a"] == 1000
        for refused in (lambda: engine.run(wf, many, idempotency_key="k"), lambda: strict.run(wf, many)):
            with pytest.raises(
                NotSerializable, match="has 1,001 initial values, and a recorded run may have at most 1,000"
            ):
                refused()


def test_initial_values_are_limited_in_size_together(tmp_path: Path, redis_url: str) -> None:
    wf = Workflow("order")
    wf.add_step("a", lambda ctx: None)
    client = redis.Redis.from_url(redis_url)
    for store in (
        SQLiteStore(tmp_path / "runs.db", max_value_bytes=1000),
        RedisStore(client, prefix=f"size-{uuid4().hex}", max_value_bytes=1000),
    ):
        with Engine(store=store) as engine:
            engine.run(wf, {str(number): "x" * 900 for number in range(16)}, idempotency_key="fits")
            with pytest.raises(NotSerializable, match="together, and this store keeps at most 16,000"):
                engine.run(wf, {str(number): "x" * 900 for number in range(20)}, idempotency_key="k")
            assert store.find("k") is None
        store.close()


def test_an_argument_of_a_wrong_type_is_refused_by_name(tmp_path: Path, redis_url: str) -> None:
    wf = Workflow("asks")
    wf.wait("answer")
    for store in stores(tmp_path, redis_url):
        engine = Engine(store=store)
        try:
            engine.run(wf, idempotency_key=KEY, until="waiting")
            for verb in ("hold", "resume", "undo", "cancel"):
                with pytest.raises(DefinitionError, match="reason= must be a string, not 5"):
                    getattr(store, verb)(KEY, reason=5)
            assert store.find(KEY).decision is None
            with pytest.raises(DefinitionError, match=r"list_runs\(text=\) must be None or a part of a key, not 5"):
                store.list_runs(text=5)
            with pytest.raises(DefinitionError, match=r"after=\)? must be the cursor of an? .*page, not b'x'"):
                store.list_runs(after=b"x")
            with pytest.raises(
                DefinitionError, match=r"list_runs\(workflow=\) must be None or the name of a workflow, not"
            ):
                store.list_runs(workflow=wf)
            for verb in ("release", "erase"):
                with pytest.raises(DefinitionError, match=rf"{verb}\(force=\) must be True or False, not 'no'"):
                    getattr(store, verb)(KEY, force="no")
            for names in ("asks", [wf], 5):
                with pytest.raises(
                    DefinitionError, match=r"list_resumable\(workflows\) must be the names of workflows"
                ):
                    store.list_resumable(names)
            with pytest.raises(
                DefinitionError, match="carrier= of a value that is sent must be a mapping or None, not 5"
            ):
                store.send(KEY, "answer", 5, carrier=5)
            assert len(store.list_resumable(["asks"], limit=10**30)) == 0
            assert not store.find(KEY).sent
        finally:
            engine.close(timeout=0)


def test_a_key_or_id_that_is_no_string_is_refused(tmp_path: Path, redis_url: str) -> None:
    """Keys are personal data, so the refusal names the type of the key only."""
    for store in stores(tmp_path, redis_url):
        with Engine(store=store) as engine:
            for key, kind in ((KEY.encode(), "bytes"), ([KEY], "list"), (None, "NoneType")):
                calls: list[Callable[[], object]] = [
                    partial(getattr(store, verb), key) for verb in ("find", "head", "release", "erase", "hold")
                ]
                calls += [partial(getattr(store, verb), key) for verb in ("resume", "undo", "cancel")]
                calls += [partial(store.send, key, "answer", 1), partial(engine.send, key, "answer", 1)]
                calls.append(partial(engine.find, key))
                if key is not None:
                    calls.append(partial(engine.cancel, key=key))
                for call in calls:
                    with pytest.raises(
                        DefinitionError, match=f"^The key of a run must be a string, not of type {kind}"
                    ):
                        call()
            by_id: list[Callable[[Any], object]] = [store.get_run, engine.get, engine.cancel]
            for ask in by_id:
                with pytest.raises(DefinitionError, match=r"^The id of a run must be a string, not \['x'\]"):
                    ask(["x"])
        store.close()


def test_a_clock_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    for make in (
        lambda: MemoryStore(clock=cast("Any", 5)),
        lambda: MemoryStore(wall=cast("Any", 5)),
        lambda: SQLiteStore(tmp_path / "runs.db", wall=cast("Any", 5)),
    ):
        with pytest.raises(DefinitionError, match=r"=\) must be a function that returns seconds, not 5"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_a_member_of_an_enum_names_a_workflow_and_a_status_in_a_listing(tmp_path: Path, redis_url: str) -> None:
    class Named(str, enum.Enum):  # noqa: UP042 - which is formatted as "Named.ORDER"
        ORDER = "order"
        DONE = "success"

    wf = Workflow("order")
    wf.add_step("a", lambda ctx: None)
    for store in stores(tmp_path, redis_url):
        with Engine(store=store) as engine:
            engine.run(wf, idempotency_key=KEY)
        assert len(store.list_runs(workflow=Named.ORDER, status=Named.DONE)) == 1
        store.hold(KEY)
        assert len(store.list_runs(workflow=Named.ORDER)) == 1
        store.close()


def test_a_value_that_contains_itself_is_sent_in_memory_and_refused_by_other_stores(
    tmp_path: Path, redis_url: str
) -> None:
    value: list[Any] = []
    value.append(value)
    wf = Workflow("asks")
    answer = wf.wait("answer")
    for store in stores(tmp_path, redis_url):
        engine = Engine(store=store)
        try:
            future = engine.submit(wf, idempotency_key=KEY)
            future.waiting()
            if store.durable:
                with pytest.raises(NotSerializable, match="contains itself, or is nested too deep"):
                    engine.send(KEY, answer, value)
            else:
                assert engine.send(KEY, answer, value)
                assert len(future.result(10)[answer]) == 1
        finally:
            engine.close(timeout=0)
            store.close()


def test_long_keys_are_not_kept_in_memory(redis_url: str) -> None:
    store = RedisStore(redis.Redis.from_url(redis_url), prefix=f"pins-{uuid4().hex}")
    store.find("warm")
    tracemalloc.start()
    try:
        for number in range(50):
            with suppress(StoreError):
                store.find(f"{number}" * 1_000_000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


def test_a_tracestate_is_kept_once_for_a_run_and_at_most_512_characters_of_it() -> None:
    entries = [(f"k{number}", "v" * 100) for number in range(10)]
    span = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState(entries))
    carrier: dict[str, str] = {}
    assert put_in(span, carrier)
    assert carrier["tracestate"] == ",".join(f"{key}={value}" for key, value in entries[:4])
    store, wf = MemoryStore(strict=True), Workflow("order")
    wf.add_step("a", lambda ctx: None)
    wf.add_step("b", lambda ctx: None, depends_on="a")
    parent = trace.set_span_in_context(trace.NonRecordingSpan(span))
    with capture() as telemetry, Engine(store=store, hooks=telemetry.hooks) as engine:
        from opentelemetry import context

        token = context.attach(parent)
        try:
            engine.run(wf, idempotency_key="k")
        finally:
            context.detach(token)
    record = store.find("k")
    assert record is not None
    assert len(record.carrier["tracestate"]) <= 512
    assert set(record.carriers) == {"a", "b"}
    assert all(set(of_step) == {"traceparent"} for of_step in record.carriers.values())


def test_messages_of_errors_are_kept_to_1024_characters(tmp_path: Path) -> None:
    wf = Workflow("order")
    wf.add_step("a", lambda ctx: (_ for _ in ()).throw(ValueError("x" * 100_000)))
    store = SQLiteStore(tmp_path / "runs.db")
    with Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k", check=False)
        record = store.find("k")
        assert record is not None
        error: Any = record.error
        assert len(error.message) <= 1025
        assert len(error.traceback_text) <= 16 * 1024 + 1
    store.close()
