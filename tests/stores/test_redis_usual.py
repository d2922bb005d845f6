"""The scripts of claims and endings have a short way for the usual case: it leaves what the long way leaves."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from flowcore.stores import RedisStore
from flowcore.stores.base import Claim, Claimed, Owner
from tests.stores.redis_runs import a_checkpoint, a_claim, an_ending, begin, check_statuses, fields_of, records
from tests.stores.redis_servers import StartRedis, start_redis

__all__ = ["start_redis"]  # a fixture

OWN = {
    *(b"key", b"run_id", b"owner", b"fence", b"started", b"since", b"before_since", b"finished", b"expires", b"listed"),
    b"m:approved",
}
"""fields that no two runs have in common"""


@pytest.fixture
def client(start_redis: StartRedis) -> Iterator[Any]:
    with start_redis().client() as client:
        yield client


def begun(store: Any, **changes: Any) -> tuple[Claim, int]:
    return begin(store, "k", owner=Owner("host", 7), deadline=60.0, **changes)


def ordered(store: Any) -> tuple[Claim, int]:
    claim, fence = begun(store)
    store.cancel("k", reason="a whim")
    return claim, fence


def troubled(store: Any) -> tuple[Claim, int]:
    begun(store, lease=0.0)
    claim = a_claim("k", fingerprint=None, owner=Owner("host", 8))
    answer = store.claim(claim)
    assert isinstance(answer, Claimed)
    assert answer.record is not None
    return replace(claim, run_id=answer.record.run_id), answer.fence


def undone(store: Any) -> tuple[Claim, int]:
    claim, fence = begun(store)
    failing = replace(a_checkpoint(claim, fence, 2), undoing=True, failed_step="pay", error=ValueError("no"))
    store.checkpoint(failing)
    return claim, fence


def with_a_value(store: Any) -> tuple[Claim, int]:
    claim, fence = begun(store, graph='[["approved",[],0,0,"wait"]]')
    assert store.send("k", "approved", {"by": "Ann"}, id="1")
    return claim, fence


@pytest.mark.parametrize("status", ["success", "failure", "compensated"])
@pytest.mark.parametrize("before", [begun, ordered, troubled, undone, with_a_value])
def test_a_run_ends_the_same_either_way(client: Any, before: Callable[[Any], tuple[Claim, int]], status: str) -> None:
    seen = list[Any]()
    for usual in (True, False):
        client.flushall()
        store = RedisStore(client, shards=1, retention=3600)
        claim, fence = before(store)
        record = store.find("k")
        changes = a_checkpoint(claim, fence, 20, base=record.seq if usual else 0)
        ending = an_ending(claim, fence, status, changes=changes)
        if status != "success":
            ending.record.failed_step, ending.record.error = "pay", ValueError("no")
            ending.record.undone, ending.record.undoing = ("book",), True
        client.config_resetstat()
        assert store.finish(ending) is None
        assert ("cmdstat_zscore" in client.info("commandstats")) is not usual
        (key,) = records(client)
        fields = {name: text for name, text in fields_of(client, key).items() if name not in OWN}
        (entry,) = client.hvals("{flowcore:0}:index")
        lives = {
            name: round(client.pttl(f"{{flowcore:0}}:{name}") / 3_600_000) for name in ("ended", "started", "index")
        }
        assert client.exists("{flowcore:0}:open", "{flowcore:0}:statuses") == 0
        forgotten = client.zscore("{flowcore:0}:ended", claim.run_id)
        assert forgotten == float(fields_of(client, key)[b"finished"]) + 3_600e6
        seen.append((fields, fields_of(client, key).keys(), entry, lives, round(client.pttl(key) / 3_600_000)))
        check_statuses(client, "flowcore")
    assert seen[0] == seen[1]


@pytest.mark.parametrize("queued", [False, True])
def test_a_run_begins_the_same_either_way(client: Any, queued: bool) -> None:
    seen = list[Any]()
    for usual in (True, False):
        client.flushall()
        store = RedisStore(client, shards=1)
        begin(store, "first")
        claim = a_claim(queued=queued, owner=Owner("host", 7))
        if not usual:  # the index still has this run, though its record is gone
            store.claim(claim)
            client.delete(*(key for key in records(client) if client.hget(key, "run_id") == claim.run_id.encode()))
        client.config_resetstat()
        answer = store.claim(claim)
        assert isinstance(answer, Claimed)
        assert ("cmdstat_zscore" in client.info("commandstats")) is not usual
        (key,) = (key for key in records(client) if client.hget(key, "run_id") == claim.run_id.encode())
        fields = fields_of(client, key)
        assert int(fields[b"fence"]) == answer.fence
        assert client.zscore("{flowcore:0}:open", claim.run_id) == float(fields[b"expires"])
        assert client.zscore("{flowcore:0}:started", claim.run_id) == float(fields[b"started"])
        entry = client.hget("{flowcore:0}:index", claim.run_id)
        seen.append(({name: text for name, text in fields.items() if name not in OWN}, fields.keys(), entry))
        check_statuses(client, "flowcore")
    assert seen[0] == seen[1]
