"""The time that the processor of a Redis server takes for a durable chain of ten, and how much of it is round trips.

The same run is sent by hand in four forms, each of which does less: the store's scripts; scripts that only check the owner's
fence and write, without an index, a clock and a small record in the end; scripts that do nothing, with the same keys and
arguments; and PING. The server counts the time (INFO: used_cpu_user + used_cpu_sys). The client waits for each reply.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from flowcore.stores.redis import scripts
from flowcore.stores.redis.lua import Script

from .durable_redis_by_hand import RedisByHand
from .durable_work import a_redis, work
from .harness import Options, Report, Row, interleaved, median_ratio
from .work import SYNC

__all__ = ["measure"]

RUNS: Final = 200
BEGUN: Final = "return {'begun', '1', 'generation', '0', 'fence', '1', 'started', '1'}"
CHECKED: Final = "local got = redis.call('HMGET', KEYS[1], 'run_id', 'fence') if got[1] ~= ARGV[1] or got[2] ~= ARGV[2] then return 0 end "
STORE, FENCE, EMPTY, PING = "the store's scripts", "a fence and the writes alone", "empty scripts", "11 × PING"
LESS: Final = {
    STORE: {},
    FENCE: {
        scripts.CLAIM.sha: Script(
            "redis.call('HSET', KEYS[1], 'run_id', ARGV[1], 'fence', '1', unpack(ARGV, 10)) " + BEGUN
        ),
        scripts.CHECKPOINT.sha: Script(CHECKED + "redis.call('HSET', KEYS[1], unpack(ARGV, 6)) return 1"),
        scripts.FINISH.sha: Script(
            CHECKED + "redis.call('HSET', KEYS[1], unpack(ARGV, 7)) redis.call('PEXPIRE', KEYS[1], ARGV[6]) return 1"
        ),
    },
    EMPTY: {
        scripts.CLAIM.sha: Script(BEGUN),
        scripts.CHECKPOINT.sha: Script("return 1"),
        scripts.FINISH.sha: Script("return 1"),
    },
}


class Less:
    """A client that sends less than it is given."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._instead = {sha: script.sha for sha, script in LESS.get(name, {}).items()}
        self._pings = name == PING
        for script in LESS.get(name, {}).values():
            client.script_load(script.text)
        self.script_load = client.script_load

    def evalsha(self, sha: str, number: int, *rest: Any) -> Any:
        if self._pings:
            self._client.ping()
            return [b"begun", b"1", b"fence", b"1"] if sha == scripts.CLAIM.sha else 1
        return self._client.evalsha(self._instead.get(sha, sha), number, *rest)


def measure(options: Options) -> Report:
    report = Report("redis-server", "a durable chain of 10 in its Redis", "µs of the server's processor per run", STORE)
    with ExitStack() as stack:
        url = a_redis(report, stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        if url is None:
            return report
        import redis

        turns: dict[str, Callable[[], float]] = {}
        for name in (STORE, FENCE, EMPTY, PING):
            client = stack.enter_context(redis.Redis.from_url(url))
            run = RedisByHand(Less(client, name), f"by-hand-{len(turns)}").prepare(work(SYNC))
            turns[name] = partial(_turn, client, run)
            turns[name]()
        samples = interleaved(turns, max(5, options.rounds))
        report.rows += [
            Row(name, min(taken) * 1e6, None, median_ratio(samples, name, STORE)) for name, taken in samples.items()
        ]
    return report


def _turn(client: Any, run: Callable[[], Any]) -> float:
    before = _processor_time(client)
    for _ in range(RUNS):
        run()
    return (_processor_time(client) - before) / RUNS


def _processor_time(client: Any) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])
