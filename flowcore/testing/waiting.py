"""Skip the backoff between attempts in tests with real engines."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ..retry import waits

__all__ = ["no_waiting"]


@contextmanager
def no_waiting() -> Generator[None]:
    """Make the runs that begin inside this block retry at once, whatever their backoff. Nothing else changes: the
    events are the same.

    It sets a context variable, so other threads and tasks are not affected, except those started inside the block.
    """
    token = waits.set(False)
    try:
        yield
    finally:
        waits.reset(token)
