"""Renewal of objects in a forked child, which lacks their threads but has inherited the locks that these held."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["after_fork_in_child"]

T = TypeVar("T")

_known: Final[weakref.WeakKeyDictionary[Any, Callable[[Any], None]]] = weakref.WeakKeyDictionary()
_registered: Final[list[bool]] = []


def after_fork_in_child(one: T, renew: Callable[[T], None]) -> None:
    """Have `renew(one)` called at the start of each child that forks from this process.

    `one` is held weakly, so `renew` must not be a method bound to it.
    """
    if not _registered and hasattr(os, "register_at_fork"):
        _registered.append(True)
        os.register_at_fork(after_in_child=_renew)
    _known[one] = renew


def _renew() -> None:
    for one, renew in list(_known.items()):
        renew(one)
