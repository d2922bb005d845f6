"""What a step sees of its run: the values shared by all steps, the results of other steps, and its own identity."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import threading
from collections import deque
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
    # Type checkers know typing_extensions even where it is not installed, and only they need the default.
    from typing_extensions import TypeVar as InputTypeVar

    I = InputTypeVar("I", default=Any)  # noqa: E741 - the input, as R is the result
else:
    I = TypeVar("I")  # noqa: E741

R = TypeVar("R")
D = TypeVar("D")
_MISSING: Final = object()
_ATOMS: Final = frozenset({str, int, float, bool, bytes, type(None)})
_CONTAINERS: Final = frozenset({list, set, tuple})


class Watch(Protocol):
    """Detects values that a step changes in place."""

    def note(self, step: str, key: Any, value: Any, *, result: bool) -> None: ...
    def note_input(self, step: str) -> None: ...


class Writes(Protocol):
    """Collects the writes of steps for a durable store."""

    @property
    def handed_out(self) -> Watch: ...
    def wrote(self, step: str, key: Any, value: Any) -> None: ...
    def deleted(self, step: str, key: Any) -> None: ...


class RunView(Protocol):
    """What a Context needs from its run."""

    input: Any
    """the run's input, of the type of `Workflow(input=)`; None until a step first reads it"""

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
    """The run's values (initial ones and those that steps write), plus `ctx[step]`, the result of an earlier step.

    Each attempt has its own Context; all of a run share its values. Thread-safe: a write is visible to every step at
    once, and `setdefault`, `pop`, `update` and the like are atomic. `ctx[step]` raises NoResult, with the reason, if
    that step has no result or this step does not depend on it; `ctx.get(step, default)` returns the default instead.
    `ctx["name"]` is the value of that key or, if there is none, the result of the step with that name, and `in` says
    whether there is either. Iteration, `len`, `keys` and the like see the values only. Writing to a key that is the name
    of a step raises DefinitionError.
    """

    __slots__ = ("_run", "node")

    attempt: int = 1
    """the number of this attempt, counted from 1"""
    deadline: float | None = None
    """the moment, in `time.monotonic()` seconds, by which this attempt should have ended; None means no limit"""
    _undo = False

    def __init__(self, run: RunView, node: Node) -> None:
        self._run = run
        self.node = node  # for engines

    @property
    def step(self) -> str:
        """The name of the step."""
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
                run.input = kind.build(run.values) if run.input is None else run.input
        if run.ledger is not None and run.workflow.input is not None:
            for name in run.workflow.input.fields:
                run.ledger.handed_out.note(self.step, name, run.values.get(name), result=False)
            if not run.workflow.input.is_frozen:
                run.ledger.handed_out.note_input(self.step)
        return cast("I", run.input)

    @property
    def step_key(self) -> str:
        """The idempotency key of this step's effect, the same for every attempt and after every takeover.

        Pass it to services that accept idempotency keys. The undo of the step has a key of its own. The key has 64 hex
        digits: a hash of the namespace (the engine's, or else the store's), the workflow, the run's key, how often
        failed runs have released that key, and the step. Tenants who share a service need separate namespaces.
        """
        return self._run.step_key(self.step, undo=self._undo)

    @property
    def scheduled_at(self) -> datetime | None:
        """The planned time, in UTC, of the schedule's fire that began this run; None for a run without a schedule."""
        return fire_of(self._run.key)

    @property
    def fence(self) -> int:
        """The fence: a number that rises with each new owner of the run. Your own storage can refuse lower ones."""
        return self._run.fence

    @property
    def error(self) -> BaseException | None:
        """The error that failed the run, in an undo; None in a step."""
        return self._run.error if self._undo else None

    @property
    def cancelled(self) -> bool:
        """Whether this attempt has been given up.

        An attempt is given up when it times out, when its run is cancelled or taken over, and when its process stops. A
        long sync step should check it regularly and return early. An undo is never cancelled, but may time out.
        """
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
        """Return the value of a key or the result of a step, or `default` where `ctx[key]` raises KeyError or NoResult."""
        try:
            return self[key]
        except KeyError:  # NoResult is one
            return default

    def _sees(self, name: str) -> bool:
        """Whether this step may read the result of step `name`, because it depends on it or is an undo."""
        return name in self.node.direct or self._undo or self._run.plan.precedes(name, self.node)

    def __contains__(self, key: object) -> bool:
        if key in self._run.values:
            return True
        name = self._run.step_meant(key, self.step)
        return name is not None and self._sees(name) and name in self._run.results

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._run.values))

    def __len__(self) -> int:
        return len(self._run.values)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str):
            self._refuse_step(key)
        with self._run.lock:
            self._set(key, value)

    def _refuse_step(self, key: Any) -> None:
        if self._run.step_meant(key, self.step) is not None:
            raise DefinitionError(
                f"ctx[step] is read-only: step {safe_repr(str(key.name))} gives its result by returning it."
            )

    def __delitem__(self, key: Any) -> None:
        with self._run.lock:
            self._remove(key)

    def _set(self, key: Any, value: Any) -> None:
        if key in self._run.plan.by_name or self._run.workflow.input is not None:
            self._refuse_taken(key)
        self._run.values[key] = value
        if self._run.ledger is not None:
            self._run.ledger.wrote(self.step, key, value)

    def _refuse_taken(self, key: Any) -> None:
        if key in self._run.plan.by_name:
            raise step_name_taken(key, f"step {safe_repr(self.step)} writes to it")
        if self._run.workflow.input is not None:
            self._refuse_field(key)

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

    # MutableMapping builds these methods from several calls; the lock makes each of them atomic.
    def pop(self, key: Any, default: Any = _MISSING) -> Any:
        """Remove a key and return its value. If it is missing, return `default` or raise KeyError. Atomic."""
        with self._run.lock:
            return default if default is not _MISSING and key not in self._run.values else self._remove(key)

    def popitem(self) -> tuple[Any, Any]:
        """Remove the newest key and return (key, value); atomic. Raises KeyError if there is none."""
        with self._run.lock:
            key = next(reversed(self._run.values), _MISSING)
            if key is _MISSING:
                raise KeyError("popitem(): the context is empty")
            return key, self._remove(key)

    def clear(self) -> None:
        """Remove every key; atomic."""
        with self._run.lock:
            keys = list(self._run.values)
            if self._run.workflow.input is not None:
                for key in keys:  # all are checked before the first is removed
                    self._refuse_field(key)
            for key in keys:
                self._remove(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, which is set to `default` first if it is missing; atomic."""
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
        for key in new:
            if not isinstance(key, str):
                self._refuse_step(key)
        with self._run.lock:
            for key in new:  # all are checked before the first is set
                self._refuse_taken(key)
            for key, value in new.items():
                self._set(key, value)

    # A Context equals only itself; the __eq__ of Mapping would compare all values.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        # Values may be secrets, and a repr ends up in logs.
        return f"<Context of step {safe_repr(self.step)}, attempt {self.attempt}, {len(self)} values>"


class AttemptContext(Context[Any]):
    """The context of a later attempt, of an attempt with a time limit, or of an undo."""

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
        """Mark the attempt as given up, so that `cancelled` is true from now on. For engines."""
        self._abandoned = True
        if self._when_abandoned is not None:
            self._when_abandoned()

    def when_abandoned(self, act: Callable[[], object]) -> None:
        """Have `act` called when the attempt is given up, or now if it already was. For engines."""
        self._when_abandoned = act
        if self._abandoned:
            act()


def initial(values: Mapping[Any, Any] | None) -> dict[Any, Any]:
    """Return a new dict of the initial values. Raises DefinitionError unless they are a mapping or None."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise DefinitionError(f"a run's initial values must be a mapping such as a dict, not {type(values).__name__}.")
    return dict(values)


def step_name_taken(key: object, how: str) -> DefinitionError:
    """Return the error for a value whose key is the name of a step, where ctx[key] would be ambiguous."""
    return DefinitionError(f"key {safe_repr(key)} is the name of step {safe_repr(key)}, and {how}. Rename one of them.")


def own_copy(value: Any) -> Any:
    """Return a copy of a value, so that changing it in place does not change the caller's.

    Containers, dataclasses and models are copied, also if they contain what cannot be copied. Any other object, such as
    a connection, is shared, and so is a value that contains itself or is nested too deep.
    """
    try:
        return _copied(value)
    except RecursionError:
        return value


def _copied(value: Any) -> Any:
    kind: Any = value.__class__
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {key: _copied(part) for key, part in value.items()}
    if kind in _CONTAINERS:
        return kind(map(_copied, value))
    has_fields = hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__")
    try:
        return _deep_copy(value, kind) if has_fields else _copy_of_container(value, kind)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - copying runs user code
        return value


def _copy_of_container(value: Any, kind: Any) -> Any:
    """Return a copy of a container of any other type, such as an OrderedDict or a deque, and anything else unchanged."""
    if issubclass(kind, tuple):
        new = cast("Any", tuple).__new__  # a NamedTuple takes its fields as arguments
        made = new(kind, map(_copied, value))
        if hasattr(value, "__dict__"):
            made.__dict__.update(value.__dict__)
        return made
    if not issubclass(kind, dict | list | set | deque | bytearray):
        return value
    from copy import copy

    copied: Any = copy(value)  # with its default_factory, its maxlen and its attributes
    if not issubclass(kind, set | bytearray):
        places: Any = list(copied) if issubclass(kind, dict) else range(len(copied))
        for place in places:
            copied[place] = _copied(copied[place])
    return copied


def _deep_copy(value: Any, kind: Any) -> Any:
    """Return a deep copy of a dataclass or a model. If a part cannot be copied, such as a lock, the parts are copied
    one by one, and that part is shared."""
    from copy import copy, deepcopy

    try:
        return deepcopy(value)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - copying runs user code
        copied = copy(value)
        for name in getattr(kind, "__dataclass_fields__", None) or kind.__pydantic_fields__:
            if hasattr(value, name):
                object.__setattr__(copied, name, _copied(getattr(value, name)))
        return copied
