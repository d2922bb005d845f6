"""Runs for the tests of the Redis stores: claims, checkpoints and endings as an engine sends them."""

import itertools
from collections.abc import Mapping
from typing import Any

from flowcore import StepReport
from flowcore.stores.base import Checkpoint, Claim, Claimed, Ending, Lease, RunRecord, StepRecord, Write
from flowcore.stores.redis.calls import unpacked
from flowcore.stores.redis.lua import DIGEST, MAGIC

__all__ = [
    "LONG",
    "a_checkpoint",
    "a_claim",
    "a_lease",
    "an_ending",
    "begin",
    "check_statuses",
    "everything",
    "fields_of",
    "pack",
    "records",
]

LONG = 600.0
"""seconds: a lease that outlasts every test"""
_numbers = itertools.count(1)


def a_claim(key: str = "k", **changes: Any) -> Claim:
    """A claim by a new run."""
    values: dict[str, Any] = {
        "run_id": f"{next(_numbers):032x}",
        "workflow": "trip",
        "fingerprint": "f",
        "graph": "g",
        "carrier": {"traceparent": "00-1-2-01"},
        "values": {"seat": "12A"},
        "lease": LONG,
        "begins": ("book",),
    }
    return Claim(key, **{**values, **changes})


def begin(store: Any, key: str = "k", **changes: Any) -> tuple[Claim, int]:
    """A claim that was granted, and its fence."""
    claim = a_claim(key, **changes)
    answer = store.claim(claim)
    assert isinstance(answer, Claimed), answer
    return claim, answer.fence


def a_checkpoint(claim: Claim, fence: int, seq: int = 2, lease: float = LONG, **changes: Any) -> Checkpoint:
    """`book` is done, `pay` has begun, and the context has a receipt."""
    steps = {
        "book": StepRecord(seq, StepReport("success", 1), True, {"seat": seq}, True, {"traceparent": "00"}),
        "pay": StepRecord(seq + 1, StepReport("running", 1)),
    }
    writes = {"receipt": Write(seq + 2, f"R-{seq}"), "draft": Write(seq + 3, deleted=True)}
    return Checkpoint(claim.key, claim.run_id, fence, lease, **{"steps": steps, "writes": writes, **changes})


def an_ending(claim: Claim, fence: int, status: str = "success", *, held: bool = False, changes: Any = None) -> Ending:
    """The end of a run."""
    record = RunRecord(
        claim.key, claim.run_id, claim.workflow, claim.fingerprint, claim.graph, status, held, fence=fence
    )
    return Ending(record, changes)


def a_lease(claim: Claim, fence: int) -> Lease:
    return Lease(claim.key, claim.run_id, fence)


def records(client: Any, prefix: str = "flowcore") -> list[bytes]:
    """The Redis keys of all records of a store."""
    return sorted(client.scan_iter(f"{{{prefix}:*}}:run:*", count=1000))


def pack(fields: Mapping[bytes, bytes]) -> bytes:
    """A record as the store keeps it once the run is over: its first line, then MessagePack of names and texts."""

    def text(one: bytes) -> bytes:
        return b"\xdb" + len(one).to_bytes(4, "big") + one

    flat = [part for pair in fields.items() for part in pair]
    return MAGIC.encode() + b"\xdd" + len(flat).to_bytes(4, "big") + b"".join(map(text, flat))


def fields_of(client: Any, run: bytes) -> dict[bytes, bytes]:
    """The fields of a record, packed or not."""
    if client.type(run) != b"string":
        found: dict[bytes, bytes] = client.hgetall(run)
        return found
    texts = unpacked([b"", b"", b"packed", client.get(run)])[2:]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def everything(client: Any) -> dict[bytes, tuple[bytes, int]]:
    """All that a server has: its keys, their contents, and whether they will be forgotten (1) or not (-1)."""
    return {key: (client.dump(key), min(client.pttl(key), 1)) for key in client.scan_iter(count=1000)}


def check_statuses(client: Any, prefix: str) -> None:
    """`statuses` of every shard has what follows from the rest of the index, and no more."""
    for key in set(client.scan_iter(f"{{{prefix}:*}}:open", count=1000)) | {
        key.replace(b":statuses", b":open") for key in client.scan_iter(f"{{{prefix}:*}}:statuses", count=1000)
    }:
        shard = key.removesuffix(b"open")
        entries, started = (
            client.hgetall(shard + b"index"),
            dict(client.zrange(shard + b"started", 0, -1, withscores=True)),
        )
        expected: set[bytes] = set()
        for run_id, due in client.zrange(key, 0, -1, withscores=True):
            status, _, workflow = entries[run_id][DIGEST:].partition(b":")
            name = b"%d:%b" % (len(workflow), workflow)
            expected.add(status[1:2] + status[:1] + name + b"%016.0f" % started[run_id] + run_id)
            if status[:2] == b"r-":
                expected.add(b"l" + name + b"%016.0f" % (due - int(status[2:])) + run_id)
        assert set(client.zrange(shard + b"statuses", 0, -1)) == expected
