"""Which value a wait gets, if several are sent to it."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any

from ..errors import StoreError
from ..run import Sent
from .recovery import StoreCall

__all__ = ["accepted", "counts_as"]


def accepted(store: Any, key: str, name: str, sent: Sent) -> Generator[StoreCall, Any, tuple[bool, Sent | None]]:
    """Send a value to a run by way of its store. Returns whether it counts, and the value that the wait gets, which may
    be an earlier one with the same id. The second is None if `sent` does not count, or if the record could not be read;
    the owner of the run then fetches it with its next renewal."""
    counts = yield partial(store.send, key, name, sent.value, id=sent.id, carrier=sent.carrier)
    if not counts:
        return False, None
    if sent.id is None:
        return True, sent
    try:
        record = yield partial(store.find, key)
    except StoreError:
        return True, None
    return True, None if record is None else record.sent.get(name)


def counts_as(first: Sent | None, sent: Sent) -> bool:
    """Whether `sent` counts: `first`, the value that counts, is that very value or has the same id."""
    return first is sent or (first is not None and sent.id is not None and first.id == sent.id)
