"""A Redis throws away the record of a run that is under way: the run stops with an error that says so, and what comes
after it has a higher fence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flowcore import LeaseLost
from tests.durable.crash import Place
from tests.durable.engines import DRIVERS, run
from tests.durable.ledger import Ledger, effects_of
from tests.durable.sagas import World, saga
from tests.stores.redis_runs import records
from tests.stores.redis_servers import StartRedis, start_redis

__all__ = ["start_redis"]  # a fixture


def flush(client: Any, prefix: str) -> None:
    client.flushall()


def evict(client: Any, prefix: str) -> None:
    """Be too full to keep anything, as allkeys-* policies allow."""
    (record,) = records(client, prefix)
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 1_000_000)
    for number in range(10_000):
        if not client.exists(record):
            break
        client.set(f"junk{number}", "x" * 10_000)
    assert not client.exists(record)
    client.config_set("maxmemory", 0)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("lose", [flush, evict])
@pytest.mark.parametrize(
    ("name", "at", "begun"),
    [
        ("success", "after do b", ["do a", "do b"]),
        ("success", "after do c", ["do a", "do b", "do c"]),
        ("compensated", "after undo b", ["do a", "do b", "do c", "undo c", "undo b"]),
    ],
)
def test_a_run_whose_record_is_gone_stops_and_the_next_has_a_higher_fence(
    start_redis: StartRedis,
    place: Callable[[str], Place],
    driver: str,
    lose: Callable[[Any, str], None],
    name: str,
    at: str,
    begun: list[str],
) -> None:
    server = start_redis()
    here = replace(place("redis"), address=server.url)
    lost: list[str] = []
    with server.client() as client, here.store(asynchronous=driver == "asyncio") as store:

        def point(label: str) -> None:
            if label == at and not lost:
                lost.append(label)
                lose(client, here.prefix)

        wf = saga(name, World(Ledger(here.ledger), point))
        with pytest.raises(
            LeaseLost, match=r"The store no longer has a record of run .* check its effects before running it"
        ) as error:
            run(driver, store, wf, "k", 30.0, check=True)
        first = effects_of(here.ledger)["k"]
        assert [f"{effect.what} {effect.step}" for effect in first] == begun
        assert error.value.run_id == first[0].run_id
        again = run(driver, store, wf, "k", 30.0)
        assert again.status in {"success", "compensated"}
        assert not again.replayed
        second = effects_of(here.ledger)["k"][len(first) :]
        assert {effect.run_id for effect in second} == {again.id}
        assert min(effect.fence for effect in second) > max(effect.fence for effect in first)
