"""Hooks for every engine of this process: the one thing here that is global, for programs instrumented from outside.

Nothing in flowcore adds any; `opentelemetry-instrument` does, by way of flowcore_otel.
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
    """Have every engine that is made from now on call `hook`, unless it has a hook of the same class. Thread-safe."""
    with _lock:
        if not any(other is hook for other in _hooks):
            _hooks.append(hook)


def remove_process_hook(hook: Hook) -> None:
    """Let engines made from now on do without `hook`; those made before keep it. Unknown ones are ignored."""
    with _lock:
        _hooks[:] = [other for other in _hooks if other is not hook]


def with_process_hooks(own: Iterable[Hook]) -> tuple[Hook, ...]:
    """An engine's own hooks, and those of the process whose like it has not."""
    hooks = tuple(own)
    with _lock:
        return (*hooks, *(hook for hook in _hooks if not any(_alike(hook, other) for other in hooks)))


def _alike(hook: Hook, other: Hook) -> bool:
    """Whether both would report the same: one object, or two of one class. Functions of one class differ."""
    plain = isinstance(hook, FunctionType | BuiltinFunctionType | MethodType)
    return hook == other if plain else isinstance(other, type(hook))
