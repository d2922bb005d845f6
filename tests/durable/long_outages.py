"""Thirty seconds without a store, which runs with a lease of a minute survive. `make storm` runs it: it takes ninety."""

from collections.abc import Callable
from functools import partial
from typing import Final

from tests.durable.engines import all_at_once
from tests.durable.test_outages import CASES, Away, away, goes_on_after_half_a_lease

__all__ = ["away"]  # a fixture

LEASE: Final = 60.0


def test_an_outage_of_thirty_seconds_costs_no_owner_its_run(away: Callable[[str], Away]) -> None:
    all_at_once(partial(goes_on_after_half_a_lease, away, LEASE), CASES)
