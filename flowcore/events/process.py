"""Hooks for every engine of this process, for programs that are instrumented from outside. They are global state.

flowcore itself adds none. `opentelemetry-instrument` adds one through flowcore_otel.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, MethodType

from .hooks import Hook

__all__ = ["add_process_hook", "remove_process_hook", "with_process_hooks"]

_lock = threading.Lock()
_hooks: list[Hook] = []


def add_process_hook(hook: Hook) -> None:
    """Add a hook for all engines made from now on, except those with a hook of the same class. Thread-safe."""
    with _lock:
        if not any(other is hook for other in _hooks):
            _hooks.append(hook)


def remove_process_hook(hook: Hook) -> None:
    """Remove a hook for all engines made from now on, if it was added. Older engines keep it. Thread-safe."""
    with _lock:
        _hooks[:] = [other for other in _hooks if other is not hook]


def with_process_hooks(own: Iterable[Hook]) -> tuple[Hook, ...]:
    """Return the hooks of an engine: its `own` ones, and each of the process that does not duplicate one of these."""
    hooks = tuple(own)
    with _lock:
        return (*hooks, *(hook for hook in _hooks if not any(_alike(hook, other) for other in hooks)))


def _alike(hook: Hook, other: Hook) -> bool:
    """Whether two hooks would report the same: they have the same class or, if they are functions, are equal."""
    plain = isinstance(hook, FunctionType | BuiltinFunctionType | MethodType)
    return hook == other if plain else isinstance(other, type(hook))
