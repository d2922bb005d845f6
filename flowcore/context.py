"""What a step sees of its run: a mapping shared by all steps, the results of other steps, and who it is."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from .errors import DefinitionError, safe_repr

if TYPE_CHECKING:
    from .errors import NoResult
    from .plan import Node
    from .workflow import Step

__all__ = ["AttemptContext", "Context"]

R = TypeVar("R")
D = TypeVar("D")
_MISSING: Final = object()


class Writes(Protocol):
    """Who is told of writes, where a durable store is to know of them."""

    def wrote(self, step: str, key: Any, value: Any) -> None: ...
    def deleted(self, step: str, key: Any) -> None: ...


class RunView(Protocol):
    """What a Context needs of the run behind it."""

    @property
    def run_id(self) -> str: ...
    @property
    def fence(self) -> int: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def interrupted(self) -> bool: ...
    @property
    def values(self) -> dict[Any, Any]: ...
    @property
    def lock(self) -> threading.Lock: ...
    @property
    def results(self) -> dict[str, Any]: ...
    @property
    def ledger(self) -> Writes | None: ...
    def step_meant(self, key: object, by: str) -> str | None: ...
    def no_result(self, step: str) -> NoResult: ...
    def unknown(self, key: object) -> KeyError: ...
    def step_key(self, step: str, *, undo: bool) -> str: ...


class Context(MutableMapping[Any, Any]):
    """The run's values (initial ones and what steps write), plus `ctx[step]`, the result of an earlier step.

    One per attempt; all attempts of a run share the values. Thread-safe: a write is visible to every step at once, and
    `setdefault`, `pop`, `update` and their like are atomic. Changing a value in place is not seen as a write. `ctx[step]`
    raises NoResult, saying why, where a step has no result; `ctx.get(step, default)` never raises. `ctx["name"]` is the
    value of that key, else the result of the step of that name.
    """

    __slots__ = ("_run", "node")

    attempt: int = 1
    """number of this attempt, from 1"""
    deadline: float | None = None
    """the moment, in `time.monotonic()` seconds, by which this attempt should be over; None: no limit"""
    _undo = False

    def __init__(self, run: RunView, node: Node) -> None:
        self._run = run
        self.node = node  # for engines

    @property
    def step(self) -> str:
        """Name of the step."""
        return self.node.name

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._run.run_id

    @property
    def step_key(self) -> str:
        """A key for this step's effect: the same for every attempt and after every takeover, another for its undo.

        Hand it to whatever accepts idempotency keys. 64 hex digits.
        """
        return self._run.step_key(self.step, undo=self._undo)

    @property
    def fence(self) -> int:
        """A number that only rises from one owner of the run to the next; a store of yours can refuse lower ones."""
        return self._run.fence

    @property
    def error(self) -> BaseException | None:
        """In an undo: what failed the run. In a step: None."""
        return self._run.error if self._undo else None

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for this attempt any more: it timed out, or its run was cancelled. Look now and then
        in a long sync step, and return early. An undo is never cancelled, but may time out."""
        return self._run.interrupted

    @overload
    def __getitem__(self, key: Step[R]) -> R: ...
    @overload
    def __getitem__(self, key: Hashable) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        value = self._run.values.get(key, _MISSING)
        if value is not _MISSING:
            return value
        name = self._run.step_meant(key, self.step)
        if name is None:
            raise self._run.unknown(key)
        value = self._run.results.get(name, _MISSING)
        if value is _MISSING:
            raise self._run.no_result(name)
        return value

    @overload
    def get(self, key: Step[R]) -> R | None: ...
    @overload
    def get(self, key: Step[R], default: D) -> R | D: ...
    @overload
    def get(self, key: Hashable, default: Any = None) -> Any: ...
    def get(self, key: Any, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] # Step[R]
        """The value of a key or the result of a step, or `default`; never raises."""
        value = self._run.values.get(key, _MISSING)
        if value is not _MISSING:
            return value
        name = self._run.step_meant(key, self.step)
        return default if name is None else self._run.results.get(name, default)

    def __contains__(self, key: object) -> bool:
        if key in self._run.values:
            return True
        return not isinstance(key, str) and self._run.step_meant(key, self.step) in self._run.results

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._run.values))

    def __len__(self) -> int:
        return len(self._run.values)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str) and self._run.step_meant(key, self.step) is not None:
            raise DefinitionError(
                f"ctx[step] is read-only: step {safe_repr(str(key.name))} gives its result by returning it."
            )
        with self._run.lock:
            self._set(key, value)

    def __delitem__(self, key: Any) -> None:
        with self._run.lock:
            self._remove(key)

    def _set(self, key: Any, value: Any) -> None:
        self._run.values[key] = value
        if self._run.ledger is not None:
            self._run.ledger.wrote(self.step, key, value)

    def _remove(self, key: Any) -> Any:
        value = self._run.values.pop(key)
        if self._run.ledger is not None:
            self._run.ledger.deleted(self.step, key)
        return value

    # MutableMapping builds these from several calls; under the lock each is one.
    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove a key and answer its value, or `default`; atomic."""
        with self._run.lock:
            return default if default is not _MISSING and key not in self._run.values else self._remove(key)

    def popitem(self) -> tuple[Any, Any]:
        """Remove and answer some (key, value); atomic."""
        with self._run.lock:
            key = next(reversed(self._run.values), _MISSING)
            if key is _MISSING:
                raise KeyError("popitem(): the context is empty")
            return key, self._remove(key)

    def clear(self) -> None:
        """Remove every key; atomic."""
        with self._run.lock:
            for key in list(self._run.values):
                self._remove(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, set to `default` first where it is missing; atomic."""
        with self._run.lock:
            if key not in self._run.values:
                self._set(key, default)
            return self._run.values[key]

    def update(self, other: Any = (), /, **kwargs: Any) -> None:
        """Set several keys; atomic."""
        new = dict(other, **kwargs)
        with self._run.lock:
            for key, value in new.items():
                self._set(key, value)

    # Two attempts are never the same; a Mapping would compare all values.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        # Values may be secrets, and a repr ends up in logs.
        return f"<Context of step {safe_repr(self.step)}, attempt {self.attempt}, {len(self)} values>"


class AttemptContext(Context):
    """The context of an attempt that is not the plain first one of a step: a later one, one with a limit, an undo's."""

    __slots__ = ("_abandoned", "_undo", "attempt", "deadline")

    def __init__(self, run: RunView, node: Node, attempt: int, deadline: float | None, *, undo: bool) -> None:
        self._run = run
        self.node = node
        self._undo = undo
        self._abandoned = False
        self.attempt = attempt
        self.deadline = deadline

    @property
    def cancelled(self) -> bool:
        """See Context."""
        return self._abandoned or (self._run.interrupted and not self._undo)

    def abandon(self) -> None:
        """For engines: nobody waits for this attempt any more, so `cancelled` is true from now on."""
        self._abandoned = True


def initial(values: Mapping[Any, Any] | None) -> dict[Any, Any]:
    """The run's own copy of its initial values."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise DefinitionError(f"a run's initial values must be a mapping such as a dict, not {type(values).__name__}.")
    return dict(values)
