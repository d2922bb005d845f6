"""What a step sees of its run: a mapping shared by all steps, the results of other steps, and who it is."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast, overload

from .errors import DefinitionError, NoResult, safe_repr
from .fires import fire_of

if TYPE_CHECKING:
    from datetime import datetime

    from .plan import Node, Plan
    from .step import Step
    from .workflow import Workflow

__all__ = ["AttemptContext", "Context"]

if TYPE_CHECKING:
    # Type checkers know typing_extensions without its being installed; the default is for them alone.
    from typing_extensions import TypeVar as InputTypeVar

    I = InputTypeVar("I", default=Any)  # noqa: E741 - the input, as R is the result
else:
    I = TypeVar("I")  # noqa: E741

R = TypeVar("R")
D = TypeVar("D")
_MISSING: Final = object()
_CONTAINERS: Final = frozenset({list, set, tuple})


class Watch(Protocol):
    """What finds values that a step changes in place."""

    def note(self, step: str, key: Any, value: Any, *, result: bool) -> None: ...


class Writes(Protocol):
    """What collects the writes of steps for a durable store."""

    @property
    def handed_out(self) -> Watch: ...
    def wrote(self, step: str, key: Any, value: Any) -> None: ...
    def deleted(self, step: str, key: Any) -> None: ...


class RunView(Protocol):
    """What a Context needs of the run behind it."""

    input: Any
    """of Workflow(input=); None until it is asked for"""

    @property
    def workflow(self) -> Workflow[Any]: ...
    @property
    def plan(self) -> Plan: ...

    @property
    def run_id(self) -> str: ...
    @property
    def key(self) -> str | None: ...
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
    def crossings(self) -> Iterable[Callable[[], AbstractContextManager[object]]]: ...


class Context(MutableMapping[Any, Any], Generic[I]):
    """The run's values (initial ones and what steps write), plus `ctx[step]`, the result of an earlier step.

    One per attempt; all attempts of a run share the values. Thread-safe: a write is visible to every step at once, and
    `setdefault`, `pop`, `update` and their like are atomic. `ctx[step]` raises NoResult, saying why, where a step has no
    result or this step does not depend on it; `ctx.get(step, default)` never raises. `ctx["name"]` is the value of that
    key, else the result of the step of that name; a write to the name of a step is refused.
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
    def input(self) -> I:
        """The run's input, of the type of `Workflow(input=)`. Raises DefinitionError for a workflow without one."""
        run = self._run
        if run.input is None:
            kind = run.workflow.input
            if kind is None:
                raise DefinitionError(
                    f"workflow {safe_repr(run.workflow.name)} has no input=. Use ctx[key] for its initial values."
                )
            with run.lock:
                run.input = run.input or kind.build(run.values)
        if run.ledger is not None and run.workflow.input is not None:
            for name in run.workflow.input.fields:
                run.ledger.handed_out.note(self.step, name, run.values.get(name), result=False)
        return cast("I", run.input)

    @property
    def step_key(self) -> str:
        """A key for this step's effect: the same for every attempt and after every takeover, another for its undo.

        Hand it to whatever accepts idempotency keys. 64 hex digits: a hash of the namespace (of the engine, else of its
        store), the workflow, the run's key and how often failed runs have released it, and the step. Tenants who share a
        service need namespaces of their own.
        """
        return self._run.step_key(self.step, undo=self._undo)

    @property
    def scheduled_at(self) -> datetime | None:
        """The planned time, in UTC, of the fire of a schedule that this run belongs to; None for any other run."""
        return fire_of(self._run.key)

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
        """True once this attempt was given up: it timed out, or its run was cancelled. A long sync step should check it
        regularly and return early. An undo is never cancelled, but may time out."""
        return self._run.interrupted

    @overload
    def __getitem__(self, key: Step[R]) -> R: ...
    @overload
    def __getitem__(self, key: Hashable) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        value = self._run.values.get(key, _MISSING)
        if value is not _MISSING:
            if self._run.ledger is not None:
                self._run.ledger.handed_out.note(self.step, key, value, result=False)
            return value
        name = self._run.step_meant(key, self.step)
        if name is None:
            raise self._run.unknown(key)
        if not self._sees(name):
            raise NoResult(
                f"step {safe_repr(self.step)} has no result of step {safe_repr(name)}: {safe_repr(self.step)} does not "
                f"depend on {safe_repr(name)}. Add it to depends_on=."
            )
        value = self._run.results.get(name, _MISSING)
        if value is _MISSING:
            raise self._run.no_result(name)
        if self._run.ledger is not None:
            self._run.ledger.handed_out.note(self.step, name, value, result=True)
        return value

    @overload
    def get(self, key: Step[R]) -> R | None: ...
    @overload
    def get(self, key: Step[R], default: D) -> R | D: ...
    @overload
    def get(self, key: Hashable, default: Any = None) -> Any: ...
    def get(self, key: Any, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] # Step[R]
        """The value of a key or the result of a step, or `default`; never raises."""
        if key in self._run.values:
            return self[key]
        name = self._run.step_meant(key, self.step)
        return self[key] if name is not None and self._sees(name) and name in self._run.results else default

    def _sees(self, name: str) -> bool:
        """Whether a step's result is for this one: whether it depends on it. An undo sees every recorded result."""
        return name in self.node.direct or self._undo or self._run.plan.precedes(name, self.node)

    def __contains__(self, key: object) -> bool:
        if key in self._run.values:
            return True
        name = None if isinstance(key, str) else self._run.step_meant(key, self.step)
        return name is not None and self._sees(name) and name in self._run.results

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
        if key in self._run.plan.by_name:
            raise step_name_taken(key, f"step {safe_repr(self.step)} writes to it")
        if self._run.workflow.input is not None:
            self._refuse_field(key)
        self._run.values[key] = value
        if self._run.ledger is not None:
            self._run.ledger.wrote(self.step, key, value)

    def _refuse_field(self, key: Any) -> None:
        kind = self._run.workflow.input
        if kind is not None and key in kind.fields:
            raise DefinitionError(
                f"step {safe_repr(self.step)} cannot change {safe_repr(key)}, a field of the run's input. Write to another key."
            )

    def _remove(self, key: Any) -> Any:
        if self._run.workflow.input is not None:
            self._refuse_field(key)
        value = self._run.values.pop(key)
        if self._run.ledger is not None:
            self._run.ledger.deleted(self.step, key)
        return value

    # MutableMapping builds these from several calls; under the lock each is one.
    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove a key and return its value, or `default`; atomic."""
        with self._run.lock:
            return default if default is not _MISSING and key not in self._run.values else self._remove(key)

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return some (key, value); atomic."""
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
            value = self._run.values[key]
        if self._run.ledger is not None:
            self._run.ledger.handed_out.note(self.step, key, value, result=False)
        return value

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


class AttemptContext(Context[Any]):
    """The context of an attempt that is not the plain first one of a step: a later one, one with a limit, an undo's."""

    __slots__ = ("_abandoned", "_undo", "_when_abandoned", "attempt", "deadline")

    def __init__(self, run: RunView, node: Node, attempt: int, deadline: float | None, *, undo: bool) -> None:
        self._run = run
        self.node = node
        self._undo = undo
        self._abandoned = False
        self._when_abandoned: Callable[[], object] | None = None
        self.attempt = attempt
        self.deadline = deadline

    @property
    def cancelled(self) -> bool:
        """See Context."""
        return self._abandoned or (self._run.interrupted and not self._undo)

    def abandon(self) -> None:
        """For engines: the attempt was given up, so `cancelled` is true from now on."""
        self._abandoned = True
        if self._when_abandoned is not None:
            self._when_abandoned()

    def when_abandoned(self, act: Callable[[], object]) -> None:
        """For engines: what to do once the attempt is given up; at once if it was."""
        self._when_abandoned = act
        if self._abandoned:
            act()


def initial(values: Mapping[Any, Any] | None) -> dict[Any, Any]:
    """The run's own dict of its initial values."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise DefinitionError(f"a run's initial values must be a mapping such as a dict, not {type(values).__name__}.")
    return dict(values)


def step_name_taken(key: object, how: str) -> DefinitionError:
    """The error for a value whose key is the name of a step: ctx[key] would mean two things."""
    return DefinitionError(f"key {safe_repr(key)} is the name of step {safe_repr(key)}, and {how}. Rename one of them.")


def own_copy(value: Any) -> Any:
    """A value whose containers, dataclasses and models are copies, so that changing it in place does not reach the caller.

    What is none of these, such as a connection, stays the object that it is.
    """
    kind: Any = value.__class__
    if kind is dict:
        return {key: own_copy(part) for key, part in value.items()}
    if kind in _CONTAINERS:
        return kind(map(own_copy, value))
    if hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__"):
        from copy import deepcopy

        return deepcopy(value)
    return value
