"""What a Redis store leaves in the server: every key ends some day or is bounded, and the index agrees with the records."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from flowcore import RunNotFound
from flowcore.stores import RedisStore
from flowcore.stores.base import Claimed, Finished, Lost, Renewal
from tests.stores.redis_runs import LONG, a_checkpoint, a_claim, a_lease, an_ending, begin, records
from tests.stores.redis_servers import redis_url, until

__all__ = ["redis_url"]  # a fixture


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def prefix() -> str:
    return uuid4().hex


def keys(client: Any, prefix: str) -> dict[str, int]:
    """What is there under a prefix: the part after the shard, without the sha256, and milliseconds until it ends."""
    found = client.scan_iter(f"{{{prefix}:*", count=1000)
    return {key.decode().partition("}:")[2].partition(":")[0]: client.pttl(key) for key in found}


def test_a_run_in_progress_is_never_forgotten(client: Any, prefix: str) -> None:
    begin(RedisStore(client, prefix=prefix, shards=1))
    assert keys(client, prefix) == {"run": -1, "open": -1, "started": -1, "index": -1, "statuses": -1, "shards": -1}


def test_all_but_the_number_of_shards_ends_with_the_retention(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1, retention=100)
    for number in range(3):
        claim, fence = begin(store, f"key {number}")
        assert store.finish(an_ending(claim, fence, ["success", "failure", "compensated"][number])) is None
    left = keys(client, prefix)
    assert left.keys() == {"run", "ended", "started", "index", "shards"}
    assert 99_000 < left["run"] <= 100_000
    for name in ("ended", "started", "index"):
        assert 86_500_000 < left[name] <= 172_900_000  # a day or two more
    assert left["shards"] == -1


def test_a_run_that_begins_in_an_index_about_to_end_keeps_it(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1, retention=100)
    claim, fence = begin(store, "ended")
    assert store.finish(an_ending(claim, fence)) is None
    for name in ("started", "index"):
        client.pexpire(f"{{{prefix}:0}}:{name}", 60_000)
    begin(store)
    left = keys(client, prefix)
    assert left["started"] == left["index"] == -1


def test_a_run_that_is_renewed_keeps_its_index(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1, retention=100)
    claim, fence = begin(store, "ended")
    assert store.finish(an_ending(claim, fence)) is None
    claim, fence = begin(store)
    assert keys(client, prefix)["index"] > 0
    assert store.renew([a_lease(claim, fence)], LONG) == [Renewal.OURS]
    left = keys(client, prefix)
    assert left["open"] == left["started"] == left["index"] == -1


@pytest.mark.parametrize("status", ["parked", "incomplete", "held"])
def test_what_is_to_be_resumed_never_ends(client: Any, prefix: str, status: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1, retention=100)
    claim, fence = begin(store, "ended")
    assert store.finish(an_ending(claim, fence)) is None
    claim, fence = begin(store)
    held = status == "held"
    assert store.finish(an_ending(claim, fence, "compensation_failed" if held else status, held=held)) is None
    left = keys(client, prefix)
    assert left["open"] == left["started"] == left["index"] == -1
    (mine,) = (run for run in records(client, prefix) if client.type(run) == b"hash")
    assert client.pttl(mine) == -1
    store.release("k")
    assert client.pttl(mine) > 0
    store.hold("k")
    assert client.pttl(mine) == -1


def test_what_an_operator_holds_is_no_longer_counted_among_the_ended(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    claim, fence = begin(store)
    assert store.finish(an_ending(claim, fence)) is None
    store.hold("k")
    assert keys(client, prefix) == {"run": -1, "open": -1, "started": -1, "index": -1, "statuses": -1, "shards": -1}
    assert store.get_run(claim.run_id).held


def test_keys_that_are_used_again_and_again_leave_nothing_behind(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    for _ in range(20):
        claim, fence = begin(store)
        assert store.finish(an_ending(claim, fence, "failure")) is None
    claim, fence = begin(store)
    assert len(records(client, prefix)) == 1
    assert client.zcard(f"{{{prefix}:0}}:open") == 1
    assert client.exists(f"{{{prefix}:0}}:ended") == 0
    assert client.hlen(f"{{{prefix}:0}}:index") == 1
    assert store.find("k").generation == 20


def test_runs_sweep_up_behind_those_that_redis_has_forgotten(client: Any, prefix: str) -> None:
    soon = RedisStore(client, prefix=prefix, shards=1, retention=0.001)
    for number in range(30):
        claim, fence = begin(soon, f"key {number}")
        assert soon.finish(an_ending(claim, fence)) is None
    until(lambda: not records(client, prefix), "Redis forgetting them")
    store = RedisStore(client, prefix=prefix, shards=1)
    for number in range(8):
        begin(store, f"new {number}")
    assert client.zcard(f"{{{prefix}:0}}:ended") == 0
    assert client.zcard(f"{{{prefix}:0}}:started") == 8
    assert client.hlen(f"{{{prefix}:0}}:index") == 8


def test_gc_takes_what_redis_has_forgotten_or_thrown_away_out_of_the_index(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=2)
    for number in range(50):
        claim, fence = begin(store, f"key {number}")
        if number % 2:
            assert store.finish(an_ending(claim, fence)) is None
    for run in records(client, prefix)[:20]:
        client.delete(run)
    assert store.gc() == 30
    assert sum(client.zcard(f"{{{prefix}:{shard}}}:{name}") for shard in (0, 1) for name in ("open", "ended")) == 30
    assert sum(client.hlen(f"{{{prefix}:{shard}}}:index") for shard in (0, 1)) == 30
    assert store.gc() == 30


@pytest.mark.parametrize("look", ["gc", "list_runs", "list_resumable"])
def test_the_entries_of_a_run_that_another_has_replaced_are_taken_out_of_the_index(
    client: Any, prefix: str, look: str
) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    begin(store, lease=0)
    client.delete(*records(client, prefix))
    claim, _ = begin(store, lease=0)
    assert client.zcard(f"{{{prefix}:0}}:open") == 2
    seen = getattr(store, look)(*([["trip"]] if look == "list_resumable" else []))
    assert seen == 1 or [record.run_id for record in seen] == [claim.run_id]
    assert client.zcard(f"{{{prefix}:0}}:open") == client.hlen(f"{{{prefix}:0}}:index") == 1
    assert store.get_run(claim.run_id).key == "k"


def test_a_retention_of_a_moment_still_answers_the_ending_that_is_sent_twice(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, retention=0)
    claim, fence = begin(store)
    assert store.finish(an_ending(claim, fence)) is None
    until(lambda: store.find("k") is None, "the run being forgotten")
    with pytest.raises(RunNotFound):
        store.get_run(claim.run_id)
    assert isinstance(store.claim(a_claim()), Claimed)


def park(store: RedisStore, number: int, workflow: str) -> None:
    """Leave so many runs of a workflow to be recovered."""
    for one in range(number):
        claim, fence = begin(store, f"{workflow} {one}", workflow=workflow)
        assert store.finish(an_ending(claim, fence, "parked")) is None


def test_more_runs_than_a_page_are_all_found(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    park(store, 1100, "trip")
    claim, fence = begin(store)
    assert store.finish(an_ending(claim, fence)) is None
    assert len(store.list_runs(limit=None)) == 1101
    assert len(store.list_runs(status="parked", limit=None)) == 1100
    assert [record.key for record in store.list_runs(status="success")] == ["k"]
    assert [record.key for record in store.list_resumable(["trip"], limit=None)] == [f"trip {n}" for n in range(1100)]
    assert store.gc() == 1101


def test_gc_counts_each_run_once_where_the_index_has_lost_a_part(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    park(store, 50, "gone")
    client.delete(*records(client, prefix), f"{{{prefix}:0}}:started")
    park(store, 250, "trip")
    assert store.gc() == store.gc() == 250
    assert client.zcard(f"{{{prefix}:0}}:open") == 250


def test_runs_of_other_workflows_do_not_hide_those_that_are_asked_for(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    park(store, 1050, "other")
    park(store, 3, "mine")
    assert [record.key for record in store.list_resumable(["mine", "none"])] == ["mine 0", "mine 1", "mine 2"]
    assert store.list_resumable([]) == []


def test_runs_that_are_not_left_are_not_looked_at(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    claim, fence = begin(store, "held")
    assert store.finish(an_ending(claim, fence, "compensation_failed", held=True)) is None
    claim, fence = begin(store, "running")
    assert store.list_resumable(["trip"]) == []
    assert store.renew([a_lease(claim, fence)], 0) == [Renewal.OURS]
    assert [record.key for record in store.list_resumable(["trip"])] == ["running"]
    assert store.renew([a_lease(claim, fence)], LONG) == [Renewal.OURS]
    assert store.list_resumable(["trip"]) == []
    assert store.checkpoint(a_checkpoint(claim, fence, lease=0)) is None
    assert [record.key for record in store.list_resumable(["trip"])] == ["running"]


def test_an_entry_without_its_record_is_taken_out_by_the_next_reader(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    park(store, 3, "trip")
    client.delete(records(client, prefix)[0])
    assert len(store.list_resumable(["trip"])) == 2
    assert client.zcard(f"{{{prefix}:0}}:open") == 2
    assert client.hlen(f"{{{prefix}:0}}:index") == 2


@pytest.mark.parametrize("key", ["", "k", " ", "k ", "K", "\x00", "\n", "é", "e\u0301", "x" * 1_000_000, "{a}", "🙂"])
def test_keys_are_taken_literally(client: Any, prefix: str, key: str) -> None:
    store = RedisStore(client, prefix=prefix)
    others = [other for other in ("k", "k ", " ", "é", "e\u0301", "\x00\x00") if other != key]
    for other in others:
        begin(store, other)
    claim, fence = begin(store, key)
    assert store.find(key).key == key
    assert store.finish(an_ending(claim, fence)) is None
    assert isinstance(store.claim(a_claim(key)), Finished)
    assert len(store.list_runs()) == len(others) + 1


def test_a_name_that_is_no_text_is_simply_not_there(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    assert store.find("\ud800") is None
    assert store.list_resumable(["\ud800"]) == []
    with pytest.raises(RunNotFound):
        store.get_run("\ud800")
    with pytest.raises(RunNotFound):
        store.release("\ud800")


def test_numbers_stay_whole_up_to_the_largest_that_lua_can_tell_apart(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    claim, _ = begin(store)
    (run,) = records(client, prefix)
    largest = 2**53 - 3
    client.hset(run, "fence", largest)
    assert store.checkpoint(a_checkpoint(claim, largest, 2**53 - 10)) is None
    assert store.finish(an_ending(claim, largest, "parked")) is None
    taken = store.claim(a_claim())
    assert isinstance(taken, Claimed)
    assert taken.fence == largest + 1
    assert taken.record.seq == 2**53 - 7
    assert client.hget(run, "fence") == str(largest + 1).encode()


def test_a_run_with_ten_thousand_steps_fits(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    claim, fence = begin(store, begins=[f"step {number}" for number in range(10_000)])
    step = a_checkpoint(claim, fence, 20_000).steps["book"]
    steps = {f"step {number}": step for number in range(10_000)}
    assert store.checkpoint(a_checkpoint(claim, fence, steps=steps, writes={})) is None
    assert len(store.find("k").results) == 10_000
    assert store.finish(an_ending(claim, fence, "parked", changes=a_checkpoint(claim, fence, 9))) is None
    taken = store.claim(a_claim())
    assert isinstance(taken, Claimed)
    assert len(taken.record.results) == 10_001


def test_a_run_that_seems_to_have_begun_in_the_future_is_of_no_age(client: Any, prefix: str) -> None:
    # The server's clock was set back.
    store = RedisStore(client, prefix=prefix)
    claim, _ = begin(store)
    client.hset(records(client, prefix)[0], "started", 2**52)
    assert store.claim(claim).age == store.claim(a_claim()).age == 0.0


def test_an_ending_without_a_fence_is_taken_only_from_the_owner_that_began_the_run(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    claim, _ = begin(store)
    assert store.finish(an_ending(a_claim(), 0)) == Lost()
    assert store.finish(an_ending(claim, 0, "parked")) is None
    assert isinstance(store.claim(a_claim()), Claimed)
    assert store.finish(an_ending(claim, 0)) == Lost()
    assert store.finish(an_ending(a_claim("another"), 0)) == Lost(gone=True)


@pytest.mark.parametrize("listing", ["list_runs", "list_resumable"])
def test_a_page_reads_about_as_many_entries_as_it_has(client: Any, prefix: str, listing: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=1)
    for number in range(200):
        begin(store, f"key {number}", lease=0.001)
    read: list[int] = []
    with client.monitor() as monitor:
        page = store.list_runs(limit=10) if listing == "list_runs" else store.list_resumable(["trip"], limit=10)
        client.echo(prefix)
        for command in monitor.listen():
            words = command["command"].split()
            if words[0].upper() == "ECHO" and words[1] == prefix:
                break
            if f"{{{prefix}:0}}" in command["command"] and "LIMIT" in words:
                read.append(int(words[words.index("LIMIT") + 2]))
    assert len(page) == 10
    assert page.cursor is not None
    assert read
    assert sum(read) < 60
