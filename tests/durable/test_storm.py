"""A short storm; `make storm` has a long one."""

from pathlib import Path

import pytest

from tests.durable.nursery import Nursery
from tests.durable.storm import Storm
from tests.stores.redis_servers import redis_binary

LEAST = {"kills": 6, "freezes": 3, "deploys": 3, "keyed runs": 100}


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_in_a_storm_every_promise_is_kept(kind: str, tmp_path: Path) -> None:
    least = LEAST
    if kind == "redis":
        redis_binary()
        least = {**LEAST, "restarts of redis": 2, "failovers": 1}
    with Nursery() as nursery:
        figures = Storm(kind, tmp_path, nursery, seed=1).rage(4.0, least)
    print(figures)
    assert not figures.wrong
    assert {what: figures.counts[what] for what in least if figures.counts[what] < least[what]} == {}
    assert figures.counts["values sent: counts"] >= 3
    assert figures.counts["owners"] > figures.counts["keyed runs"]  # some were taken over
