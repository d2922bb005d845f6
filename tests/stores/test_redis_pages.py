"""Listings of a Redis store: pages over all shards, in one order, and of a cost that does not depend on what has ended."""

import itertools
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from flowcore import DefinitionError
from flowcore.stores import RedisStore
from flowcore.stores.base import Claimed
from tests.stores.redis_runs import a_claim, an_ending, begin, records
from tests.stores.redis_servers import redis_url

__all__ = ["redis_url"]  # a fixture


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def prefix() -> str:
    return uuid4().hex


def ended(store: RedisStore, number: int, status: str = "success", **changes: Any) -> list[str]:
    """So many runs that have ended; their keys, the newest first."""
    keys = [f"{status} {one}" for one in range(number)]
    for key in keys:
        claim, fence = begin(store, key, **changes)
        assert store.finish(an_ending(claim, fence, status)) is None
    return keys[::-1]


def in_pages(verb: Any, *arguments: Any, limit: int, **filters: Any) -> list[list[str]]:
    """The keys of all pages."""
    pages, cursor = list[list[str]](), None
    while True:
        page = verb(*arguments, limit=limit, after=cursor, **filters)
        pages.append([record.key for record in page])
        cursor = page.cursor
        if cursor is None:
            return pages


@pytest.mark.parametrize("shards", [1, 3, 256])
@pytest.mark.parametrize("limit", [1, 7, 10, 50])
def test_pages_have_every_run_once_the_newest_first(client: Any, prefix: str, shards: int, limit: int) -> None:
    store = RedisStore(client, prefix=prefix, shards=shards)
    keys = ended(store, 50)
    pages = in_pages(store.list_runs, limit=limit)
    assert list(itertools.chain(*pages)) == keys
    assert {len(page) for page in pages[:-1]} <= {limit}
    assert pages[-1]
    assert [record.key for record in store.list_runs()] == keys


def test_filters_go_with_pages(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    good, bad = ended(store, 30), ended(store, 30, "failure", workflow="other")
    assert list(itertools.chain(*in_pages(store.list_runs, limit=8, status="failure"))) == bad
    assert list(itertools.chain(*in_pages(store.list_runs, limit=8, workflow="trip"))) == good
    assert list(itertools.chain(*in_pages(store.list_runs, limit=2, text="s 1"))) == [
        key for key in good if "s 1" in key
    ]
    assert store.list_runs(status="failure", workflow="trip") == []
    assert store.list_runs(older_than=3600) == []


def test_what_is_not_over_is_listed_without_a_look_at_what_is(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    parked = ended(store, 20, "parked")
    ended(store, 60)
    claim, _ = begin(store, "running")
    begin(store, "expired", lease=0)
    assert list(itertools.chain(*in_pages(store.list_runs, limit=6, status="parked"))) == parked
    assert [record.key for record in store.list_runs(status="expired")] == ["expired"]
    assert {record.key for record in store.list_runs(status="running")} == {"running", "expired"}
    store.hold(parked[0], "looked at by a person")
    (held,) = store.list_runs(status="held")
    assert (held.key, held.reason) == (parked[0], "looked at by a person")
    assert store.counts() == {
        ("trip", "parked"): 19,
        ("trip", "held"): 1,
        ("trip", "running"): 1,
        ("trip", "expired"): 1,
    }
    assert store.head("running").run_id == claim.run_id


def test_resumable_runs_come_in_pages_the_longest_due_first(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    keys = ended(store, 25, "parked")[::-1]
    later, fence = begin(store, "later")
    ending = an_ending(later, fence, "incomplete")
    ending.retry_in = 3600
    assert store.finish(ending) is None
    never, fence = begin(store, "never")
    ending = an_ending(never, fence, "incomplete")
    ending.retry_in = float("inf")
    assert store.finish(ending) is None
    assert list(itertools.chain(*in_pages(store.list_resumable, ["trip"], limit=4))) == keys
    assert store.head("never").not_before == float("inf")
    assert isinstance(store.claim(a_claim("never")), Claimed)


def test_an_unreadable_record_hides_no_other(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix)
    keys = ended(store, 10, "parked")
    run = records(client, prefix)[3]
    bad = client.hget(run, "key").decode()
    client.hset(run, "fence", "mine")
    pages = in_pages(store.list_runs, limit=3)
    assert list(itertools.chain(*pages)) == keys
    (listed,) = (record for record in store.list_runs() if record.problem is not None)
    assert listed.key == bad
    assert "its fence is 'mine'" in listed.problem
    assert sorted(itertools.chain(*in_pages(store.list_resumable, ["trip"], limit=3))) == sorted({*keys} - {bad})


@pytest.mark.parametrize("verb", ["list_runs", "list_resumable"])
@pytest.mark.parametrize("after", ["", "nonsense", "1", 5, "\n 1"])
def test_what_is_no_cursor_is_refused(client: Any, prefix: str, verb: str, after: Any) -> None:
    arguments = [["trip"]] if verb == "list_resumable" else []
    with pytest.raises(DefinitionError, match="must be the cursor of"):
        getattr(RedisStore(client, prefix=prefix), verb)(*arguments, after=after)


def commands_of(client: Any, verb: Any) -> int:
    """How many commands the server performs for a call, those of scripts included."""
    client.config_resetstat()
    verb()
    return sum(one["calls"] for one in client.info("commandstats").values())


def test_listings_cost_the_same_whatever_has_ended(client: Any, prefix: str) -> None:
    store = RedisStore(client, prefix=prefix, shards=4)
    ended(store, 30)
    begin(store, "running")
    verbs = [
        lambda: store.list_runs(limit=10),
        lambda: store.list_runs(status="running"),
        lambda: store.list_resumable(["trip"]),
        store.counts,
        lambda: store.find("running"),
        lambda: store.head("running"),
    ]
    for verb in verbs:
        verb()
    before = [commands_of(client, verb) for verb in verbs]
    ended(store, 300, "compensated")
    after = [commands_of(client, verb) for verb in verbs]
    assert all(new <= 2 * old for old, new in zip(before, after, strict=True)), (before, after)
