"""A fleet for a few seconds; `python -m tests.durable.fleet` has it for longer, and prints what it was like."""

from pathlib import Path

from tests.durable.fleet import Fleet
from tests.durable.nursery import Nursery
from tests.stores.redis_servers import redis_binary


def test_a_fleet_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    redis_binary()
    with Nursery() as nursery:
        fleet = Fleet(tmp_path, nursery, rate=60.0, seed=1)
        with fleet.servers():
            with fleet.steady():
                fleet.killed(1.0)
                fleet.stopped(1.0)
                fleet.added(1.0)
                fleet.failed_over(3.0)
            fleet.look()
    print(*fleet.phases, sep="\n")
    assert not fleet.wrong
    assert all(phase.latencies for phase in fleet.phases)
    assert (fleet.counts["SIGKILL"], fleet.counts["SIGTERM"]) == (1, 7)
    assert fleet.phases[-1].failovers
    assert fleet.counts["runs taken over"]
