"""Four processes with one schedule: wrong clocks, kills in the middle of runs, failing runs. Each fire is run once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.durable.conftest import nursery, place
from tests.durable.crash import Place
from tests.durable.nursery import Nursery
from tests.schedules.processes import DEADLY, FAILING, lines, schedule_until
from tests.stores.redis_servers import RedisServer, redis_url, start_redis, until

__all__ = ["nursery", "place", "redis_url", "start_redis"]  # fixtures

SKEWS: Final = (0.0, 0.4, -0.7, -150.0)
"""seconds by which each process's clock is ahead"""


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_four_processes_run_each_fire_once(
    kind: str, asynchronous: bool, full: bool, nursery: Nursery, place: Callable[[str], Place]
) -> None:
    where = place(kind)
    end = time.time() + (60 if full else 9)
    running = {nursery.start(schedule_until, where, asynchronous, skew, where.ledger, end): skew for skew in SKEWS}
    killed = 0
    while running:
        pid, code = nursery.wait(running)
        skew = running.pop(pid)
        assert code in {0, -9}
        if code and time.time() < end:
            killed += 1
            running[nursery.start(schedule_until, where, asynchronous, skew, where.ledger, end)] = skew

    def began() -> set[int]:
        return {int(at) for what, at, _ in lines(where.ledger) if what == "began"}

    def over() -> Counter[int]:
        return Counter(int(at) for what, at, _ in lines(where.ledger) if what != "began")

    if began() != set(over()):  # the last process was killed when no other was there to resume its run
        last = nursery.start(schedule_until, where, asynchronous, -150.0, where.ledger, time.time() + 6)
        until(lambda: began() == set(over()), "the last run")
        nursery.wait([last])
    fires = over()
    assert killed >= 1
    assert set(fires.values()) == {1}, "a fire was run twice"
    assert sorted(fires) == list(range(min(fires), max(fires) + 1)), "a fire was left out"
    assert len(fires) > 4
    assert {at for what, at, _ in lines(where.ledger) if what == "failed"} == {
        str(at) for at in fires if at % FAILING == 0
    }
    assert Counter(int(at) for what, at, _ in lines(where.ledger) if what == "began") == {
        at: 2 if at % DEADLY == 0 else 1 for at in fires
    }


@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_a_redis_that_is_killed_at_the_time_of_a_fire_has_each_fire_run_once(
    asynchronous: bool, nursery: Nursery, tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    server = start_redis(appendonly="always")
    where = Place("redis", server.url, "fires", str(tmp_path / "ledger"), str(tmp_path / "journal"))
    end = time.time() + 8
    running = {nursery.start(schedule_until, where, asynchronous, skew, where.ledger, end): skew for skew in (0.0, 0.3)}
    for fire in range(int(time.time()) + 2, int(end) - 2, 2):
        time.sleep(max(0.0, fire - 0.01 - time.time()))
        server.kill()  # just before engines claim what is due, or in the middle of that
        time.sleep(0.2)
        server.start()
    while running:
        pid, code = nursery.wait(running)
        skew = running.pop(pid)
        if code == -9 and time.time() < end:
            running[nursery.start(schedule_until, where, asynchronous, skew, where.ledger, end)] = skew
    last = nursery.start(schedule_until, where, asynchronous, -150.0, where.ledger, time.time() + 5)

    def over() -> Counter[int]:
        return Counter(int(at) for what, at, _ in lines(where.ledger) if what != "began")

    until(lambda: {int(at) for what, at, _ in lines(where.ledger) if what == "began"} == set(over()), "the last run")
    nursery.wait([last])
    fires = over()
    assert set(fires.values()) == {1}, f"a fire was run twice: {fires}"
    assert sorted(fires) == list(range(min(fires), max(fires) + 1)), f"a fire was left out: {fires}"
    assert len(fires) >= 3
