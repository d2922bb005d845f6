"""With a codec that encrypts, nothing that a user has put into a run is in the store in clear."""

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio
from cryptography.fernet import Fernet

from flowcore import (
    AsyncEngine,
    CorruptRecord,
    DefinitionError,
    Engine,
    IdempotencyMismatch,
    RunFailed,
    Status,
    StoreError,
    Workflow,
)
from flowcore.events import RunRequested
from flowcore.stores import AsyncRedisStore, MemoryStore, PydanticCodec, RedisStore, SQLiteStore
from flowcore.stores.codec import JsonCodec
from tests.security.codecs import Encrypted, Mirrored

SECRET = "4111-1111-1111-1111"
KEY = "order-of-ada@example.com"
Opened = tuple[Callable[..., Any], Callable[[], bytes]]
"""opens the store, with a codec; and all bytes that it keeps"""


def carries(event: Any) -> None:
    """A hook that stores something of the user's with each run, as baggage would."""
    if isinstance(event, RunRequested):
        event.carrier["baggage"] = f"card={SECRET}"


def payment(*, fails: bool = False, undo_fails: bool = False) -> Workflow:
    wf = Workflow("payment")

    def refund(ctx: Any) -> None:
        if undo_fails:
            raise RuntimeError(f"cannot refund {ctx['card']}")

    def charge(ctx: Any) -> str:
        ctx["note"] = f"card {ctx['card']}"
        if ctx.attempt == 1:
            raise ConnectionError(f"the line broke while {ctx['card']} was charged")
        return f"charged {ctx['card']}"

    def ship(ctx: Any) -> str:
        if fails:
            raise ValueError(f"card {ctx['card']} was declined")
        return "shipped"

    wf.add_step("charge", charge, retry=2).compensate(retry=1)(refund)
    wf.add_step("ship", ship, depends_on="charge")
    return wf


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Opened]:
    if request.param == "sqlite":
        folder = tmp_path / "runs"
        folder.mkdir()
        yield (
            lambda codec, **more: SQLiteStore(folder / "runs.db", codec=codec, **more),
            lambda: b"".join(file.read_bytes() for file in sorted(folder.iterdir())),
        )
        return
    client: Any = redis.Redis.from_url(redis_url)
    prefix = f"rest-{uuid4().hex}"

    def content() -> bytes:
        found = b""
        for key in client.scan_iter(match=f"{{{prefix}:*"):
            found += key
            for read in (client.hgetall, client.get, lambda key: client.zrange(key, 0, -1)):
                with suppress(redis.ResponseError):  # of another type, which it may have become just now
                    found += repr(read(key)).encode()
        return found

    yield lambda codec, **more: RedisStore(client, prefix=prefix, codec=codec, **more), content
    client.close()


CODECS = pytest.mark.parametrize("codec", [Encrypted(), Mirrored()], ids=["encrypts", "of two arguments"])


@CODECS
@pytest.mark.parametrize("how", ["success", "failed", "undone badly", "decided on"])
def test_nothing_of_the_users_is_in_the_store_in_clear(opened: Opened, codec: Any, how: str) -> None:
    make, content = opened
    with closing(make(codec)) as store, Engine(store=store, hooks=[carries]) as engine:
        wf = payment(fails=how != "success", undo_fails=how in {"undone badly", "decided on"})
        engine.run(wf, {"card": SECRET}, idempotency_key=KEY, check=False)
        if how == "decided on":
            store.hold(KEY, f"{KEY} called, card {SECRET}")
        kept = content()
        for clear in (
            SECRET,
            "4111-",
            KEY,
            "ada@",
            "declined",
            "cannot refund",
            "the line broke",
            "called",
            "Traceback",
        ):
            assert clear.encode() not in kept, clear
        for clear in ("payment", "charge", "note"):  # names of the definition stay readable
            assert clear.encode() in kept
        # All of it is there for who has the codec.
        for one in (store, make(codec)):
            record = one.find(KEY)
            assert (record.key, record.values["card"], record.values["note"]) == (KEY, SECRET, f"card {SECRET}")
            assert record.carrier["baggage"] == f"card={SECRET}"
            assert record.results["charge"] == f"charged {SECRET}"
            assert record.steps["charge"].errors == (("ConnectionError", f"the line broke while {SECRET} was charged"),)
            if how != "success":
                assert SECRET in str(record.error)
                assert "Traceback" in record.error.traceback_text
            if how == "undone badly":
                assert record.held
                assert SECRET in str(record.steps["charge"].undo_error)
                assert SECRET in record.reason
            if how == "decided on":
                assert record.reason == f"{KEY} called, card {SECRET}"
            assert [head.key for head in one.list_runs(text="ada@")] == [KEY]
            assert one.list_runs(text="bob@") == []
            assert one.get_run(record.run_id).key == one.head(KEY).key == KEY


@CODECS
def test_runs_are_replayed_taken_over_and_compared_as_ever(opened: Opened, codec: Any) -> None:
    make, _ = opened
    wf = Workflow("etl", undo="never")
    wf.add_step("extract", lambda ctx: [ctx["card"]])
    outage = iter([ConnectionError("down"), None])

    @wf.step(depends_on="extract")
    def load(ctx: Any) -> str:
        if error := next(outage):
            raise error
        return str(ctx["extract"][0])

    with closing(make(codec)) as first, Engine(store=first) as engine:
        assert engine.run(wf, {"card": SECRET}, idempotency_key=KEY, check=False).status is Status.INCOMPLETE
    with closing(make(codec)) as second, Engine(store=second, workflows=[wf]) as engine:
        assert engine.run(wf, {"card": SECRET}, idempotency_key=KEY)[load] == SECRET
        assert engine.run(wf, {"card": SECRET}, idempotency_key=KEY).replayed
        with pytest.raises(IdempotencyMismatch):
            engine.run(wf, {"card": "another"}, idempotency_key=KEY)
        second.release(KEY)
        second.erase(KEY)
        assert not engine.run(payment(), {"card": "another"}, idempotency_key=KEY).replayed


def test_a_fingerprint_is_an_hmac_under_a_secret_of_the_store(tmp_path: Path) -> None:
    codec, kept = Encrypted(), list[str]()
    for name in ("a", "b", "c"):
        with closing(SQLiteStore(tmp_path / name, codec=None if name == "c" else codec)) as store:
            with Engine(store=store) as engine:
                engine.run(payment(), {"card": SECRET}, idempotency_key=KEY)
            with closing(sqlite3.connect(tmp_path / name)) as file:
                kept += file.execute("SELECT fingerprint FROM runs").fetchone()
    assert len(set(kept)) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in kept)


def test_ciphertexts_cannot_be_swapped(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with closing(SQLiteStore(path, codec=Encrypted())) as store:
        wf = Workflow("two")

        @wf.step
        def a(ctx: Any) -> str:
            ctx["w"] = ctx["x"]
            return "of a"

        wf.add_step("b", lambda ctx: "of b", depends_on=a)
        with Engine(store=store) as engine:
            first, _ = (engine.run(wf, {"x": n, "y": n}, idempotency_key=f"k{n}") for n in (1, 2))

        def swapped(mine: tuple[int, str], theirs: tuple[int, str]) -> None:
            with closing(sqlite3.connect(path, isolation_level=None)) as file:
                ask = "SELECT text FROM fields WHERE run = ? AND name = ?"
                texts = [file.execute(ask, place).fetchone()[0] for place in (mine, theirs)]
                for text, place in zip(texts, (theirs, mine), strict=True):
                    file.execute("UPDATE fields SET text = ? WHERE run = ? AND name = ?", (text, *place))

        moves = [
            ((1, "s:a"), (2, "s:a")),  # of another run
            ((1, "s:a"), (1, "s:b")),  # of another step
            ((1, "w:w"), (2, "w:w")),
            ((1, "values"), (2, "values")),
            ((1, "key_text"), (2, "key_text")),
        ]
        for mine, theirs in moves:
            swapped(mine, theirs)
            with pytest.raises(CorruptRecord):
                store.find("k1")
            swapped(mine, theirs)
            assert store.get_run(first.id).results == {"a": "of a", "b": "of b"}
        with closing(sqlite3.connect(path, isolation_level=None)) as file:  # nor does plain text pass for a ciphertext
            file.execute(
                'UPDATE fields SET text = \'1 {"status":"success","attempts":1,"result":"7"}\' WHERE name = \'s:a\''
            )
        with pytest.raises(CorruptRecord):
            store.find("k1")


def test_keys_are_rotated_by_a_restart(opened: Opened) -> None:
    make, _ = opened
    old, new = Fernet.generate_key(), Fernet.generate_key()
    wf = payment()
    for keys, replayed in (((old,), False), ((old, new), True), ((new, old), True)):
        with closing(make(Encrypted(*keys))) as store, Engine(store=store) as engine:
            assert engine.run(wf, {"card": SECRET}, idempotency_key=KEY).replayed is replayed
            engine.run(wf, {"card": SECRET}, idempotency_key=f"{KEY}-{len(keys)}")
            store.erase(f"{KEY}-{len(keys)}")
            store.release(f"{KEY}-{len(keys)}")
    with closing(make(Encrypted(new))) as store:  # the secret follows the keys; an old record does not
        with pytest.raises(CorruptRecord, match="cannot read its field 'key'"):
            store.find(KEY)
        with Engine(store=store) as engine:
            assert not engine.run(wf, {"card": SECRET}, idempotency_key="another").replayed


def test_another_codec_is_refused_before_it_finds_no_keys(opened: Opened) -> None:
    make, _ = opened
    wf = payment()

    def runs(codec: Any) -> None:
        with closing(make(codec)) as store, Engine(store=store) as engine:
            engine.run(wf, {"card": SECRET}, idempotency_key=KEY)

    runs(Encrypted())
    with pytest.raises(StoreError, match="cannot read the secret of"):
        runs(Encrypted())
    for plain in (None, JsonCodec(), PydanticCodec()):
        with pytest.raises(StoreError, match="set up with a codec= that hides keys"):
            runs(plain)


def test_a_store_in_clear_is_not_taken_for_a_sealed_one(opened: Opened) -> None:
    make, _ = opened
    with closing(make(None)) as store, Engine(store=store) as engine:
        engine.run(payment(), {"card": SECRET}, idempotency_key=KEY)
    with pytest.raises(StoreError, match="was set up without this codec="), closing(make(Encrypted())) as store:
        store.find(KEY)


def test_a_codec_that_says_plain_is_given_values_alone(opened: Opened) -> None:
    class Plain(Mirrored):
        plain = True

    make, content = opened
    with closing(make(Plain())) as store, Engine(store=store) as engine:
        engine.run(payment(fails=True), {"card": SECRET}, idempotency_key=KEY, check=False)
        assert KEY.encode() in content()
        assert b"was declined" in content()
        assert store.find(KEY).values["card"] == SECRET
    # A class that derives from a plain one must say so itself: it may well encrypt.
    assert "plain" not in vars(type("Derived", (JsonCodec,), {}))


@pytest.mark.parametrize("which", ["keep", "line"])
def test_of_a_traceback_only_class_and_line_are_kept_if_asked_for(opened: Opened, which: str) -> None:
    make, content = opened
    with closing(make(None, traceback=which)) as store, Engine(store=store) as engine:
        run = engine.run(payment(fails=True), {"card": SECRET}, idempotency_key=KEY, check=False)
        assert run.error is not None
        error = store.find(KEY).error
    assert isinstance(error, RunFailed)
    assert error.message == f"card {SECRET} was declined"
    if which == "line":
        assert re.fullmatch(rf"ValueError at {re.escape(__file__)}:\d+", error.traceback_text)
        assert b"Traceback" not in content()
    else:
        assert error.traceback_text.startswith("Traceback")


def test_another_word_for_traceback_is_refused(tmp_path: Path) -> None:
    word: Any = "none"
    with pytest.raises(DefinitionError, match='traceback= must be "keep" or "line"'):
        SQLiteStore(tmp_path / "runs.db", traceback=word)


def test_on_asyncio_the_same_holds(redis_url: str) -> None:
    prefix = f"rest-{uuid4().hex}"

    async def main() -> None:
        store = AsyncRedisStore(redis.asyncio.Redis.from_url(redis_url), prefix=prefix, codec=Encrypted())
        async with AsyncEngine(store=store) as engine:
            await engine.run(payment(), {"card": SECRET}, idempotency_key=KEY)
            assert (await engine.run(payment(), {"card": SECRET}, idempotency_key=KEY)).replayed
            record = await store.find(KEY)
            assert record is not None
            assert record.key == KEY
        await store.close()

    asyncio.run(main())
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter(match=f"{{{prefix}:*"):
            kept: Any = client.dump(key)
            assert SECRET.encode() not in kept
            assert KEY.encode() not in kept


def test_a_strict_store_in_memory_gives_the_codec_its_values(tmp_path: Path) -> None:
    with Engine(store=MemoryStore(strict=True, codec=Encrypted())) as engine:
        assert engine.run(payment(), {"card": SECRET}, idempotency_key=KEY)["charge"] == f"charged {SECRET}"


@CODECS
def test_what_is_sent_to_a_wait_is_not_in_clear_and_is_erased(opened: Opened, codec: Any) -> None:
    make, content = opened
    wf = Workflow("approval")
    answer = wf.wait("answer")
    wf.add_step("note", lambda ctx: str(ctx["answer"]), depends_on=answer)
    with closing(make(codec)) as store, Engine(store=store, workflows=[wf]) as engine:
        engine.submit(wf, {"card": SECRET}, idempotency_key=KEY)
        engine.send(KEY, "answer", f"yes, says {SECRET}", id=f"from {KEY}")
        for clear in (SECRET, KEY, "yes, says"):
            assert clear.encode() not in content(), clear
        assert store.find(KEY).sent["answer"].value == f"yes, says {SECRET}"
        assert engine.run(wf, {"card": SECRET}, idempotency_key=KEY, wait=30)["note"] == f"yes, says {SECRET}"
        store.erase(KEY)
        record = store.find(KEY)
        assert (dict(record.sent), dict(record.values), dict(record.results)) == ({}, {}, {})


def test_a_run_that_waits_is_erased_by_force_only(opened: Opened) -> None:
    make, content = opened
    wf = Workflow("approval")
    wf.wait("answer")
    with closing(make(None)) as store, Engine(store=store) as engine:
        future = engine.submit(wf, {"card": SECRET}, idempotency_key=KEY)
        until = time.monotonic() + 30
        while store.find(KEY).status is not Status.WAITING and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(StoreError):
            store.erase(KEY)
        store.erase(KEY, force=True)
        assert SECRET.encode() not in content()
        assert store.find(KEY).status is Status.FAILURE
        future.cancel_run()
