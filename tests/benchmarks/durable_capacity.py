"""What a fleet on Redis is planned from: the processor time, memory and bytes that a run of three steps takes in the engine and
in its server, and what recovery and new runs cost where a shard holds as many runs as it would of a billion.

The server is one of its own, which appends to a file each second. What its file grows by is also what it sends a replica.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from flowcore import Engine
from flowcore.stores import RedisStore

from ..stores.redis_runs import LONG, a_claim, an_ending
from .durable_growth import FLAT
from .durable_work import VALUES, a_redis, work
from .harness import Options, Report, Row, interleaved, median_ratio
from .subjects import workflow
from .work import SYNC

__all__ = ["measure"]

STEPS: Final = 3
RUNS: Final = 20_000
SHARDS: Final = (256, 1_024, 4_096, 16_384)
BILLION: Final = 1_000_000_000 // 4_096
"""runs in a shard where 4,096 of them hold a billion"""
CALLS: Final = 100


def measure(options: Options) -> Report:
    report = Report(
        "durable capacity", f"what a fleet on Redis is planned from, runs of {STEPS} steps", "see each line", ""
    )
    with ExitStack() as stack:
        url = a_redis(report, stack, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        if url is None:
            return report
        import redis

        client = stack.enter_context(redis.Redis.from_url(url))
        client.config_set("auto-aof-rewrite-percentage", 0)  # which would make the file shorter meanwhile
        report.rows += _runs(client, 2_000 if options.quick else RUNS)
        report.rows += _recovery(client, 3 if options.quick else 20)
        report.rows += _full_shard(client, 10_000 if options.quick else BILLION, 3 if options.quick else 7)
    return report


def _runs(client: Any, number: int) -> list[Row]:
    """What runs take while they go on one after the other, and what is left of them."""
    wf = workflow(work(SYNC, STEPS))
    with Engine(store=RedisStore(client, prefix="runs")) as engine:

        def run(first: int, last: int) -> None:
            for one in range(first, last):
                engine.run(wf, VALUES, idempotency_key=f"order-{one}")

        run(0, number)  # each shard has its indexes
        before, own = client.info("everything"), time.process_time()
        run(number, 2 * number)
        after, own = client.info("everything"), time.process_time() - own

    def grown(*names: str) -> float:
        return float(sum(after[name] - before[name] for name in names)) / number

    return [
        Row("engine: µs of a processor, a run", own / number * 1e6),
        Row("server: µs of a processor, a run", grown("used_cpu_user", "used_cpu_sys") * 1e6),
        Row("server: commands, a run", grown("total_commands_processed")),
        Row("server: bytes of memory, a run that is over", grown("used_memory")),
        Row("server: bytes appended to its file, a run", grown("aof_current_size")),
    ]


def _recovery(client: Any, rounds: int) -> list[Row]:
    """A round of recovery that finds nothing to do."""
    rows: list[Row] = []
    for shards in SHARDS:
        store = RedisStore(client, prefix=f"shards-{shards}", shards=shards)
        with Engine(store=store, workflows=[workflow(work(SYNC, STEPS))]) as engine:
            engine.recover()
            before, took = _server_time(client), list[float]()
            for _ in range(rounds):
                began = time.perf_counter()
                engine.recover()
                took.append(time.perf_counter() - began)
            server = (_server_time(client) - before) / rounds
        rows.append(Row(f"recovery round over {shards:,} shards: ms until it is over", statistics.median(took) * 1_000))
        rows.append(Row(f"recovery round over {shards:,} shards: ms of the server's processor", server * 1_000))
    return rows


def _server_time(client: Any) -> float:
    info = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def _full_shard(client: Any, runs: int, rounds: int) -> list[Row]:
    """What a shard costs that holds so many runs that are over, beside one that holds a few."""
    turns: dict[str, dict[str, Callable[[], float]]] = {
        "claim and finish": {},
        "recovery round": {},
        "list one page": {},
    }
    for size in (1_000, runs):
        store = RedisStore(client, prefix=f"full-{size}", shards=1)
        for _ in range(size):
            _claim_and_finish(store)
        engine = Engine(store=store, workflows=[workflow(work(SYNC, STEPS))])
        turns["claim and finish"][str(size)] = _turn(partial(_claim_and_finish, store))
        turns["recovery round"][str(size)] = _turn(engine.recover)
        turns["list one page"][str(size)] = _turn(store.list_runs)
    rows: list[Row] = []
    for what, of in turns.items():
        samples = interleaved(of, rounds)
        few, many = of
        for name in of:
            ratio = median_ratio(samples, name, few)
            target = FLAT if name == many else None
            figure = statistics.median(samples[name]) * 1e6
            against = ratio if target else None
            rows.append(Row(f"{what}, {int(name):,} runs in one shard: µs", figure, None, ratio, target, against))
    return rows


def _claim_and_finish(store: Any) -> None:
    claim = a_claim(f"key {time.monotonic_ns()}", lease=LONG)
    store.finish(an_ending(claim, store.claim(claim).fence))


def _turn(call: Callable[[], object]) -> Callable[[], float]:
    def turn() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - began) / CALLS

    return turn
