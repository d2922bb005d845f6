"""A durable chain on Redis by hand: the scripts of a RedisStore, each with the same keys and arguments, through the same
client, and nothing around them.

No errors are handled, no run of another process is ever taken over, and no lease is renewed while a step runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from flowcore.stores.redis import scripts
from flowcore.stores.redis.calls import digest_of

from .durable_work import VALUES, keys
from .subjects import Run, Subject
from .work import Work

__all__ = ["AsyncRedisByHand", "RedisByHand"]

LEASE: Final = 30_000_000  # microseconds
WEEK: Final = 7 * 24 * 3600 * 1000  # milliseconds
SHARDS: Final = 256
dumps = json.JSONEncoder(separators=(",", ":")).encode

Script = tuple[str, int, Sequence[Any]]
"""name, number of keys, keys and arguments"""


class Told:
    """The scripts of one run, in the order in which they are sent."""

    def __init__(self, prefix: str, key: str, graph: str) -> None:
        digest = digest_of(key.encode())
        self._key, self._graph = key, graph
        shard = f"{{{prefix}:{int.from_bytes(base64.urlsafe_b64decode(digest[:8])) % SHARDS}}}:"
        self._keys = (
            f"{shard}run:{digest.decode()}",
            *(shard + name for name in ("open", "ended", "started", "index", "statuses")),
        )
        self._run_id = os.urandom(16).hex()
        self._fence = ""
        self._seq = 1

    def claim(self, first: str) -> Script:
        fingerprint = hashlib.sha256(f"benchmark\0{json.dumps(VALUES, sort_keys=True)}".encode()).hexdigest()
        fields = {
            "schema": "2",
            "key": self._key,
            "fingerprint": fingerprint,
            "values": dumps({name: dumps(value) for name, value in VALUES.items()}),
            f"s:{first}": '1 {"status":"running","attempts":1}',
            "seq": "1",
        }
        head = (self._run_id, f"={fingerprint}", self._graph, "", "", LEASE, "", "", "benchmark")
        return scripts.CLAIM.sha, 6, (*self._keys, *head, *flat(fields))

    def claimed(self, reply: list[Any]) -> None:
        word, _, *fields = (text.decode() for text in reply)
        if word != "begun":
            raise AssertionError(f"{self._key} is in use")
        self._fence = dict(zip(fields[::2], fields[1::2], strict=True))["fence"]

    def checkpoint(self, name: str, result: Any, ran: float, then: str) -> Script:
        base = self._seq
        fields = {f"s:{name}": self._ended(result, ran), f"s:{then}": self._begun(), "seq": str(self._seq)}
        head = (self._run_id, self._fence, base, "", "p")
        return scripts.CHECKPOINT.sha, 1, (self._keys[0], *head, *flat(fields))

    def finish(self, name: str, result: Any, ran: float) -> Script:
        base = self._seq
        fields = {f"s:{name}": self._ended(result, ran), "seq": str(self._seq)}
        head = (self._run_id, self._fence, base, "p", "success", WEEK)
        return scripts.FINISH.sha, 6, (*self._keys, *head, *flat(fields))

    def _ended(self, result: Any, ran: float) -> str:
        self._seq += 1
        step = {"status": "success", "attempts": 1, "result": dumps(result)}
        return f"{self._seq} {dumps(step | {'waited': 0.0, 'ran': ran, 'backed_off': 0.0})}"

    def _begun(self) -> str:
        self._seq += 1
        return f'{self._seq} {{"status":"running","attempts":1}}'


def flat(fields: dict[str, str]) -> list[str]:
    return [text for field in fields.items() for text in field]


def done(reply: Any) -> None:
    if reply != 1:
        raise AssertionError("another owner has the run")


def graph_of(work: Work) -> str:
    return hashlib.sha256(dumps([step.name for step in work.steps]).encode()).hexdigest()


class RedisByHand(Subject):
    name = "Redis by hand"
    is_async = False

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._key = keys()

    def prepare(self, work: Work) -> Run:
        steps, graph = [(step.name, step.fn) for step in work.steps], graph_of(work)
        for script in (scripts.CLAIM, scripts.CHECKPOINT, scripts.FINISH):
            self._client.script_load(script.text)
        return lambda: self._run(steps, graph)

    def _run(self, steps: list[tuple[str, Any]], graph: str) -> dict[str, Any]:
        reported, results, evalsha = Told(self._prefix, self._key(), graph), dict[str, Any](), self._client.evalsha
        sha, number, rest = reported.claim(steps[0][0])
        reported.claimed(evalsha(sha, number, *rest))
        for place, (name, fn) in enumerate(steps, 1):
            began = time.monotonic()
            results[name] = fn(results)
            ran = time.monotonic() - began
            last = place == len(steps)
            sha, number, rest = (
                reported.finish(name, results[name], ran)
                if last
                else reported.checkpoint(name, results[name], ran, steps[place][0])
            )
            done(evalsha(sha, number, *rest))
        return results


class AsyncRedisByHand(Subject):
    name = "Redis by hand, async"
    is_async = True

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix
        self._key = keys()

    def prepare(self, work: Work) -> Run:
        steps, graph = [(step.name, step.fn) for step in work.steps], graph_of(work)
        return lambda: self._run(steps, graph)

    async def _run(self, steps: list[tuple[str, Any]], graph: str) -> dict[str, Any]:
        reported, results, evalsha = Told(self._prefix, self._key(), graph), dict[str, Any](), self._client.evalsha
        sha, number, rest = reported.claim(steps[0][0])
        reported.claimed(await evalsha(sha, number, *rest))
        for place, (name, fn) in enumerate(steps, 1):
            began = time.monotonic()
            results[name] = await fn(results)
            ran = time.monotonic() - began
            last = place == len(steps)
            sha, number, rest = (
                reported.finish(name, results[name], ran)
                if last
                else reported.checkpoint(name, results[name], ran, steps[place][0])
            )
            done(await evalsha(sha, number, *rest))
        return results
