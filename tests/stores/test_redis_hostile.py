"""Records that flowcore has not written: told as CorruptRecord, naming the key, and left as they are."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from flowcore import CorruptRecord, RunNotFound, StoreError
from flowcore.errors import hashed_key
from flowcore.stores import RedisStore
from flowcore.stores.base import DefinitionChanged, Renewal
from flowcore.stores.encoding import Encoding
from tests.stores.redis_runs import LONG, a_checkpoint, a_claim, a_lease, an_ending, begin, fields_of, pack, records
from tests.stores.redis_servers import redis_url

__all__ = ["redis_url"]  # a fixture

KEY = "the key"
GARBAGE = [
    *(b"", b" ", b"nonsense", b"null", b"{}", b"[]", b'""', b"[1]", b'{"a": 1}', b"true", b"NaN", b"1 {}", b"1 null"),
    *(b"1 [", b"-1", b"1.5", b"1e3", b"0x10", b"9" * 16, b"9007199254740992", b"9" * 400, b"Infinity", b"\xff\xfe"),
    *(b"running\x00", b"RUNNING", b"success", b"parked", b"[" * 2000, "٣".encode(), b"resume", b"2", b"x" * 100_000),
]


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


class Left:
    """A run that was left in some state, with everything in its record that can be."""

    def __init__(self, client: Any, state: str) -> None:
        self.client = client
        self.prefix = f"hostile-{uuid4().hex}"
        self.store = RedisStore(client, prefix=self.prefix, shards=1)
        self.claim, self.fence = begin(self.store, KEY)
        reported = a_checkpoint(
            self.claim, self.fence, undoing=True, failed_step="pay", error=ValueError("no"), lease=LONG
        )
        assert self.store.checkpoint(reported) is None
        if state != "running":
            assert self.store.finish(an_ending(self.claim, self.fence, "parked")) is None
            if state == "undo":
                self.store.undo(KEY)
            taken = self.store.claim(a_claim(KEY))
            first = a_checkpoint(self.claim, taken.fence, 5, undoing=state == "undo")
            assert self.store.checkpoint(first) is None
            self.fence = taken.fence
            if state in {"success", "failure", "parked"}:
                assert self.store.finish(an_ending(self.claim, self.fence, state)) is None
            if state == "undo":
                assert self.store.finish(an_ending(self.claim, self.fence, "incomplete")) is None
                self.store.undo(KEY)
            if state == "held":
                assert self.store.finish(an_ending(self.claim, self.fence, "compensation_failed", held=True)) is None
            if state == "expired":
                assert self.store.renew([a_lease(self.claim, self.fence)], 0) == [Renewal.OURS]
        (self.run,) = records(client, self.prefix)
        self.packed = client.type(self.run) == b"string"
        self.good = fields_of(client, self.run)
        self.good.pop(b"listed", None)

    def put(self, field: bytes, garbage: bytes | None) -> None:
        """The record as it was, but for one field."""
        fields = {name: text for name, text in self.good.items() if name != field}
        if garbage is not None:
            fields[field] = garbage
        self.client.delete(self.run)
        if self.packed:
            self.client.set(self.run, pack(fields))
        else:
            self.client.hset(self.run, mapping=fields)

    def readable(self) -> bool:
        """Whether flowcore could have written the record as it is."""
        try:
            fields = {name.decode(): text.decode() for name, text in fields_of(self.client, self.run).items()}
            Encoding().decode(KEY, fields)
        except (UnicodeDecodeError, CorruptRecord):
            return False
        return True

    def content(self) -> Any:
        return fields_of(self.client, self.run), self.client.pttl(self.run) == -1

    def refuses(self, verb: Callable[[], Any]) -> bool:
        """Whether a verb says that the record is corrupt; if so, nothing of it has changed."""
        before = self.content()
        try:
            verb()
        except StoreError as caught:
            error: StoreError = caught
        else:
            return False
        text = str(error)
        assert "\n" not in text
        if not isinstance(error, CorruptRecord):
            assert type(error) in {
                StoreError,
                DefinitionChanged,
                RunNotFound,
            }  # another sound reason, such as another graph
            assert "script" not in text
            return False
        assert hashed_key(KEY) in text or hashed_key(self.run.decode()) in text
        assert self.content() == before
        return True


@pytest.mark.parametrize("state", ["running", "expired", "parked", "undo", "held", "success", "failure"])
def test_a_claim_changes_no_record_that_cannot_be_read(client: Any, state: str, share: Any) -> None:
    left = Left(client, state)
    fresh = {b"status", b"generation", b"fence", b"started", b"held", b"expires", b"run_id", b"owner", b"workflow"}
    for field in sorted({*left.good, b"s:other", b"w:other", b"foreign"}):
        for garbage in share([*GARBAGE, None]):
            left.put(field, garbage)
            readable = left.readable()
            refused = left.refuses(lambda: left.store.claim(a_claim(KEY, fingerprint=None, values={})))
            if not readable and state not in {"running", "held"}:
                assert refused, (field, garbage)
            if not readable and field in fresh:
                assert refused, (field, garbage)
            if readable:
                # Some of it would have been written by flowcore in this place, but never with the rest.
                assert not refused or field in {b"status", b"held", b"fence", b"generation"}, (field, garbage)


@pytest.mark.parametrize("state", ["running", "expired", "parked", "held", "success", "failure"])
def test_an_owner_either_writes_or_learns_that_the_record_is_corrupt(client: Any, state: str, share: Any) -> None:
    left = Left(client, state)
    claim, fence = left.claim, left.fence
    verbs: list[Callable[[], Any]] = [
        lambda: left.store.checkpoint(a_checkpoint(claim, fence, 9)),
        lambda: left.store.finish(an_ending(claim, fence, changes=a_checkpoint(claim, fence, 9))),
        lambda: left.store.renew([a_lease(claim, fence)], LONG),
        lambda: left.store.withdraw(claim),
        lambda: left.store.hold(KEY),
        lambda: left.store.resume(KEY),
        lambda: left.store.release(KEY),
        lambda: left.store.find(KEY),
        lambda: left.store.get_run(claim.run_id),
    ]
    reading = len(verbs) - 2
    for field in sorted(left.good):
        for garbage in [b"", b"nonsense", b"\xff", b"9" * 16, b"-1", b"[", None]:
            for number, verb in share(enumerate(verbs)):
                left.put(field, garbage)
                readable = left.readable()
                refused = left.refuses(verb)
                if number == reading and not readable:
                    assert refused, (field, garbage)
                if readable:
                    assert not refused or field in {b"fence", b"held"}, (field, garbage, number)


@pytest.mark.parametrize(
    ("field", "garbage"),
    [
        *(
            (b"s:book", text)
            for text in (b"", b"{}", b"x {}", b"-1 {}", b"1e3 {}", b"99999999999999999 {}", b"\xff {}")
        ),
        *((b"w:receipt", text) for text in (b"", b"null", b" {}")),
        *((b"schema", text) for text in (b"3", b"", b"1.0", None)),
        *((name, b"nonsense") for name in (b"status", b"generation", b"started", b"expires", b"held", b"fence")),
        *((name, None) for name in (b"status", b"owner", b"workflow", b"graph", b"generation", b"started", b"run_id")),
        (b"fence", b"9007199254740991"),
    ],
)
def test_an_owner_writes_nothing_into_a_record_that_it_cannot_count_on(
    client: Any, field: bytes, garbage: bytes | None
) -> None:
    left = Left(client, "running")
    late, later = (a_checkpoint(left.claim, left.fence, number) for number in (2, 9))
    left.put(field, garbage)
    assert left.refuses(lambda: left.store.finish(an_ending(left.claim, left.fence, changes=later)))
    if field in {b"s:book", b"w:receipt", b"status", b"run_id"}:  # a checkpoint reads no more than it needs
        assert left.refuses(lambda: left.store.checkpoint(late))


def test_unfinished_leaves_out_what_cannot_be_read_and_logs_it(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    left = Left(client, "expired")
    other, fence = begin(left.store, "another")
    left.store.finish(an_ending(other, fence, "parked"))
    left.put(b"started", b"yesterday")
    assert [record.key for record in left.store.list_resumable(["trip"])] == ["another"]
    assert hashed_key("the key") in caplog.text


@pytest.mark.parametrize("kind", ["string", "list", "set", "zset", "stream"])
def test_a_key_of_another_type_is_corrupt_and_stays(client: Any, kind: str) -> None:
    left = Left(client, "parked")
    client.delete(left.run)
    {
        "string": lambda: client.set(left.run, "mine"),
        "list": lambda: client.rpush(left.run, "mine"),
        "set": lambda: client.sadd(left.run, "mine"),
        "zset": lambda: client.zadd(left.run, {"mine": 1}),
        "stream": lambda: client.xadd(left.run, {"mine": 1}),
    }[kind]()
    before = client.dump(left.run)
    claim, fence, store = left.claim, left.fence, left.store
    for verb in (
        lambda: store.claim(a_claim(KEY)),
        lambda: store.checkpoint(a_checkpoint(claim, fence)),
        lambda: store.finish(an_ending(claim, fence)),
        lambda: store.withdraw(claim),
        lambda: store.find(KEY),
        lambda: store.release(KEY),
        lambda: store.hold(KEY),
        lambda: store.undo(KEY),
    ):
        with pytest.raises(CorruptRecord, match=f"{hashed_key('the key')} .* it is a Redis {kind}, not a hash"):
            verb()
        assert client.dump(left.run) == before
    with pytest.raises(CorruptRecord):
        store.get_run(claim.run_id)
    (listed,) = store.list_runs()
    assert f"it is a Redis {kind}, not a hash" in listed.problem
    assert (listed.run_id, listed.workflow) == (claim.run_id, "trip")
    assert store.renew([a_lease(claim, fence)], LONG) == [Renewal.LOST]
    assert client.dump(left.run) == before


@pytest.mark.parametrize("garbage", [{"status": "nonsense"}, {"foreign": "1"}])
def test_a_corrupt_record_is_given_up_by_force_only(client: Any, garbage: dict[str, str]) -> None:
    left = Left(client, "parked")
    client.delete(left.run)
    client.hset(left.run, mapping=garbage)
    with pytest.raises(CorruptRecord, match="force=True"):
        left.store.release(KEY)
    left.store.release(KEY, force=True)
    assert left.store.find(KEY) is None
    assert left.store.list_runs() == []
    begin(left.store, KEY)


def test_a_failed_undo_that_is_not_held_means_nothing_to_a_claim(client: Any) -> None:
    left = Left(client, "success")
    left.put(b"status", b"compensation_failed")
    for attached in (None, "another run"):
        with pytest.raises(CorruptRecord, match="has the status 'compensation_failed', but is not held"):
            left.store.claim(a_claim(KEY, attached=attached))
    left.store.release(KEY)
    begin(left.store, KEY)


def test_a_record_of_a_later_flowcore_is_reported_as_such(client: Any) -> None:
    left = Left(client, "parked")
    left.put(b"schema", b"3")
    with pytest.raises(CorruptRecord, match="schema is 3, but this version of flowcore supports only 2"):
        left.store.claim(a_claim(KEY))


def test_a_record_that_was_copied_to_another_key_is_corrupt(client: Any) -> None:
    left = Left(client, "parked")
    begin(left.store, "another")
    (other,) = set(records(client, left.prefix)) - {left.run}
    client.copy(left.run, other, replace=True)
    with pytest.raises(CorruptRecord, match="its key differs from the key under which it is stored"):
        left.store.claim(a_claim("another", fingerprint=None))


@pytest.mark.parametrize("member", [b"", b"nonsense", b"\xff\xfe" * 40, b"a" * 64 + b"9:x", b"a" * 64 + b"99999999:"])
def test_foreign_members_of_the_index_do_no_harm_and_are_swept_away(client: Any, member: bytes) -> None:
    left = Left(client, "parked")
    prefix = f"{{{left.prefix}:0}}:"
    client.zadd(prefix + "open", {member: 1})
    client.zadd(prefix + "ended", {member: 1})
    assert [record.key for record in left.store.list_runs()] == [KEY]
    assert [record.key for record in left.store.list_resumable(["trip"])] == [KEY]
    assert left.store.gc() == 1
    assert client.zcard(prefix + "open") == 1
    assert client.exists(prefix + "ended") == 0
