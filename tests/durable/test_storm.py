"""A short storm; `make storm` has a long one."""

from pathlib import Path

import pytest

from tests.durable.nursery import Nursery
from tests.durable.storm import Storm
from tests.stores.redis_servers import redis_binary


@pytest.mark.parametrize(("kind", "seconds"), [("redis", 6.0), ("sqlite", 4.0)])
def test_in_a_storm_every_promise_is_kept(kind: str, seconds: float, tmp_path: Path) -> None:
    if kind == "redis":
        redis_binary()
    with Nursery() as nursery:
        figures = Storm(kind, tmp_path, nursery, seed=1).rage(seconds)
    print(figures)
    assert not figures.wrong
    assert figures.counts["kills"] > 5
    assert figures.counts["freezes"] > 2
    assert figures.counts["keyed runs"] > 100
    assert figures.counts["owners"] > figures.counts["keyed runs"]  # some were taken over
    assert (figures.counts["restarts of redis"] > 0) == (kind == "redis")
