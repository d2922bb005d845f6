"""Renewal of objects in a forked child, which lacks their threads but has inherited the locks that these held."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["after_fork_in_child", "hold_across_forks"]

T = TypeVar("T")

_LONGEST_WAIT: Final = 1.0
"""the most seconds that a fork waits for a lock: only a thread that forks while it has the lock waits that long"""

_known: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], None]]] = weakref.WeakKeyDictionary()
_locks: Final[weakref.WeakSet[threading.Lock]] = weakref.WeakSet()
_forking: Final = threading.local()
_registered: Final[list[bool]] = []


def after_fork_in_child(one: T, renew: Callable[[T], None]) -> None:
    """Have `renew(one)` called at the start of each child that forks from this process.

    `one` is held weakly, so `renew` must not be a method bound to it.
    """
    _watch_forks()
    _known[one] = renew


def hold_across_forks(lock: threading.Lock) -> None:
    """Have each fork take this lock first, so that in the child it is free and what it guards is whole. The lock is held
    weakly. A thread that has it must not wait for another such lock."""
    _watch_forks()
    _locks.add(lock)


def _watch_forks() -> None:
    if not _registered and hasattr(os, "register_at_fork"):
        _registered.append(True)
        os.register_at_fork(before=_take_locks, after_in_parent=_release_locks, after_in_child=_renew)


def _take_locks() -> None:
    _forking.taken = [lock for lock in _in_one_order() if lock.acquire(timeout=_LONGEST_WAIT)]


def _in_one_order() -> list[threading.Lock]:
    """The locks, in the order in which all threads that fork take them."""
    while True:
        try:
            return sorted(_locks, key=id)
        except RuntimeError:  # another thread has added a lock meanwhile
            continue


def _release_locks() -> None:
    for lock in _forking.__dict__.pop("taken", ()):
        lock.release()


def _renew() -> None:
    _release_locks()
    for one, renew in list(_known.items()):
        renew(one)
