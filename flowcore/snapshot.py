"""What a step with `executor=` sees of its run: a copy, which can be sent to another process."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Never, TypeVar, cast, overload

from .context import I
from .errors import DefinitionError, NoResult, SnapshotIsReadOnly, safe_repr

if TYPE_CHECKING:
    from datetime import datetime

    from .step import Step

__all__ = ["ContextSnapshot", "StepInputs"]

R = TypeVar("R")
D = TypeVar("D")
_MISSING: Final = object()


class StepInputs:
    """All that one attempt of a step gets from its run, as plain data, which can be pickled if its values can.

    `values`: the run's values. `results`: the results of the steps that it depends on, by name. `names`: the names that
    steps of included workflows have here, by (workflow, step). `deadline`: seconds since the epoch, because another
    machine has another monotonic clock; None means no limit.
    """

    __slots__ = (
        *("attempt", "deadline", "fence", "input", "names", "results", "run_id", "scheduled_at", "step", "step_key"),
        *("values", "workflow"),
    )

    def __init__(
        self,
        *,
        workflow: str,
        step: str,
        run_id: str,
        attempt: int,
        step_key: str,
        fence: int,
        scheduled_at: datetime | None,
        deadline: float | None,
        values: dict[Any, Any],
        results: dict[str, Any],
        names: dict[tuple[str, str], str],
        input: Any,  # noqa: A002 - the word for it
    ) -> None:
        self.workflow = workflow
        self.step = step
        self.run_id = run_id
        self.attempt = attempt
        self.step_key = step_key
        self.fence = fence
        self.scheduled_at = scheduled_at
        self.deadline = deadline
        self.values = values
        self.results = results
        self.names = names
        self.input = input


class ContextSnapshot(Mapping[Any, Any], Generic[I]):
    """The run as it was when the attempt started: its values, and `ctx[step]` of the steps that this one depends on.

    It is read like a Context, but a write raises SnapshotIsReadOnly: the step returns its result instead. It shows
    neither changes that other steps make meanwhile nor that the run is cancelled.
    """

    error = None
    """None, because an undo never gets a copy: see Context.error"""

    def __init__(self, inputs: StepInputs) -> None:
        self._inputs = inputs
        self.step = inputs.step
        """the name of the step"""
        self.run_id = inputs.run_id
        """the run's id"""
        self.attempt = inputs.attempt
        """the number of this attempt, counted from 1"""
        self.step_key = inputs.step_key
        """the idempotency key of this step's effect: see Context.step_key"""
        self.fence = inputs.fence
        """the fence: a number that rises with each new owner of the run"""
        self.scheduled_at = inputs.scheduled_at
        """the planned time, in UTC, of the schedule's fire that began this run; None for a run without a schedule"""
        left = None if inputs.deadline is None else inputs.deadline - time.time()
        self.deadline = None if left is None else time.monotonic() + left
        """when the attempt should have ended, in `time.monotonic()` seconds of this process; None means no limit"""

    @property
    def cancelled(self) -> bool:
        """Whether the time limit of this attempt is over. A copy cannot see that the run is cancelled or taken over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def input(self) -> I:
        """The run's input, of the type of `Workflow(input=)`. Raises DefinitionError for a workflow without one."""
        if self._inputs.input is None:
            name = safe_repr(self._inputs.workflow)
            raise DefinitionError(f"workflow {name} has no input=. Use ctx[key] for its initial values.")
        return cast("I", self._inputs.input)

    @overload
    def __getitem__(self, key: Step[R]) -> R: ...
    @overload
    def __getitem__(self, key: Hashable) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        value = self._found(key)
        if value is not _MISSING:
            return value
        if self._name(key) is None:
            raise KeyError(key)
        raise NoResult(
            f"step {safe_repr(self.step)} has no result of {key!r}: it was skipped, or is not in depends_on=."
        )

    @overload
    def get(self, key: Step[R]) -> R | None: ...
    @overload
    def get(self, key: Step[R], default: D) -> R | D: ...
    @overload
    def get(self, key: Hashable, default: Any = None) -> Any: ...
    def get(self, key: Any, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] # Step[R]
        """Return the value of a key or the result of a step, or `default` where `ctx[key]` raises KeyError or NoResult."""
        value = self._found(key)
        return default if value is _MISSING else value

    def __contains__(self, key: object) -> bool:
        return self._found(key) is not _MISSING

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inputs.values)

    def __len__(self) -> int:
        return len(self._inputs.values)

    def _refuse_write(self, *_: Any, **__: Any) -> Never:
        """Raise SnapshotIsReadOnly."""
        raise SnapshotIsReadOnly(
            f"step {safe_repr(self.step)} has executor=, so its ctx is a copy and cannot be written. Return the value, "
            "and let a later step write it."
        )

    def _found(self, key: Any) -> Any:
        if key in self._inputs.values:
            return self._inputs.values[key]
        name = self._name(key)
        return _MISSING if name is None else self._inputs.results.get(name, _MISSING)

    def _name(self, key: Any) -> str | None:
        """Return the name of the step that `key`, a Step or a name, means here; None if it means none."""
        if isinstance(key, str):
            return key if key in self._inputs.results else None
        owner, name = getattr(key, "workflow", None), getattr(key, "name", None)
        if owner is None or not isinstance(name, str):
            return None
        return name if owner.name == self._inputs.workflow else self._inputs.names.get((owner.name, name))

    if not TYPE_CHECKING:  # a type checker refuses the write itself
        __setitem__ = __delitem__ = _refuse_write
        pop = popitem = clear = setdefault = update = _refuse_write

    def __repr__(self) -> str:
        # Values may be secrets, and a repr ends up in logs.
        return f"<ContextSnapshot of step {safe_repr(self.step)}, attempt {self.attempt}, {len(self)} values>"
