"""Checks of the arguments that an engine is given."""

# Arguments are also checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any, Final

from .._kernel.settings import namespace_of
from ..errors import DefinitionError, FlowcoreError, safe_repr
from ..events import Hook
from ..functions import is_generator
from ..retry import CENTURY, Duration, seconds
from ..stores.arguments import check_key, check_run_id, without_password
from ..stores.base import Store
from ..stores.memory import MemoryStore
from ..workflow import Workflow

__all__ = ["checked_hooks", "checked_namespace", "checked_store", "checked_workflows", "period", "positive_int"]

_UNTIL: Final = ("end", "waiting")
_VERBS: Final = ("claim", "finish")
"""methods that every store has"""


def checked_store(store: Any, *, runs_async: bool) -> Store:
    """Return `store=` if it is valid, or a new MemoryStore if it is None. Raises DefinitionError if it is not a store,
    and FlowcoreError for an async store of a sync engine."""
    if store is None:
        return MemoryStore()
    if isinstance(store, type):
        raise DefinitionError(
            f"store= must be a store, not the class {store.__name__}. Make one: {store.__name__}(...)."
        )
    if not all(callable(getattr(store, verb, None)) for verb in _VERBS):
        raise DefinitionError(f"store= must be a store such as SQLiteStore(path), not {without_password(store)}.")
    if not runs_async and inspect.iscoroutinefunction(store.claim):
        raise FlowcoreError(
            f"Engine needs a sync store, and {type(store).__name__} is async. Use its sync sibling, or AsyncEngine."
        )
    checked: Store = store
    return checked


def checked_workflows(workflows: Iterable[Workflow[Any]]) -> tuple[Workflow[Any], ...]:
    """Return `workflows=` as a tuple. Raises DefinitionError if it is not a list of workflows."""
    if isinstance(workflows, str | bytes) or not isinstance(workflows, Iterable):
        raise DefinitionError(f"workflows= must be a list of workflows, not {safe_repr(workflows)}.")
    checked = tuple(workflows)
    for workflow in checked:
        if not isinstance(workflow, Workflow):
            raise DefinitionError(f"workflows= contains {safe_repr(workflow)}, which is not a workflow.")
    return checked


def checked_hooks(hooks: Iterable[Hook]) -> tuple[Hook, ...]:
    """Return `hooks=` as a tuple. Raises DefinitionError for hooks that are not callable, are async, or
    are generator functions."""
    if isinstance(hooks, str | bytes) or not isinstance(hooks, Iterable):
        raise DefinitionError(f"hooks= must be a list of hooks, not {safe_repr(hooks)}.")
    checked = tuple(hooks)
    for hook in checked:
        if isinstance(hook, type) or not callable(hook):
            raise DefinitionError(f"A hook must be callable with an event, and {safe_repr(hook)} is not.")
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__):
            raise DefinitionError(f"Hooks are called and never awaited, and {safe_repr(hook)} is async.")
        if is_generator(hook):
            raise DefinitionError(
                f"hook {safe_repr(hook)} is a generator function, whose body would never run. Remove its yield."
            )
    return checked


def checked_namespace(namespace: str | None, store: Store) -> str:
    """Return `namespace=`, which is a part of all step keys, or the store's namespace if it is None. Raises
    DefinitionError."""
    if namespace is not None and not isinstance(namespace, str):
        raise DefinitionError(f"namespace= must be a string, not {safe_repr(namespace)}.")
    return namespace_of(store) if namespace is None else namespace


def positive_int(value: int, what: str) -> int:
    """Return `value` if it is a whole number from 1 up. Raises DefinitionError, which names `what`, if not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DefinitionError(f"{what} must be a whole number from 1 up, not {safe_repr(value)}.")
    return value


def period(value: Duration, what: str) -> float:
    """Return `value` in seconds, at most a century, because timers have a limit. Raises DefinitionError, which names
    `what`, if it is zero or infinite."""
    number = seconds(value, what)
    if not 0 < number < math.inf:
        raise DefinitionError(f"{what} must be more than 0 and finite, not {safe_repr(value)}.")
    return min(number, CENTURY)


def check_named(run_id: str | None, key: str | None) -> None:
    """Raise DefinitionError unless a call names its run by its id or by its key, each of them a string."""
    if run_id is None and key is None:
        raise DefinitionError("Name the run by its id, or by key=.")
    if run_id is not None:
        check_run_id(run_id)
    if key is not None:
        check_key(key)


def caller_drives(until: str, *, durable: bool) -> bool:
    """Whether a caller of `run` with this `until=` drives the run itself: to its end, or until it waits in a durable
    store. If not, the run is submitted. Raises DefinitionError."""
    if until not in _UNTIL:
        raise DefinitionError(f"until= must be 'end' or 'waiting', not {safe_repr(until)}.")
    return until == "end" or durable
