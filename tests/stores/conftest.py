"""What the tests of stores share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """What earlier tests have left in memory is nothing that the garbage collector need go through for thousands of tests."""
    gc.freeze()
    yield
    gc.unfreeze()
