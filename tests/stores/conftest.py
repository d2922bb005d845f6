"""The fixture that all tests of stores share."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """Spare the garbage collector the objects of earlier tests, which it would go through for thousands of tests."""
    gc.freeze()
    yield
    gc.unfreeze()
