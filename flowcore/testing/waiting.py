"""Backoff without waiting, in real engines."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ..retry import waits

__all__ = ["no_waiting"]


@contextmanager
def no_waiting() -> Generator[None]:
    """Runs begun inside retry at once, whatever their backoff says; all else, events included, is as ever.

    Works by a context variable: other threads and tasks are not affected, except those begun from here.
    """
    token = waits.set(False)
    try:
        yield
    finally:
        waits.reset(token)
