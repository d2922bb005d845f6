"""A step: its function, its options and its undo; and what `verify=` may return of a step whose process died in it."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportPrivateUsage=false, reportUnnecessaryIsInstance=false

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, Self, TypedDict, TypeVar, overload

from .context import Context
from .errors import DefinitionError, safe_repr
from .functions import is_async, take_one_argument
from .retry import Backoff, Duration, Retry, seconds
from .snapshot import ContextSnapshot

if TYPE_CHECKING:
    from .workflow import Workflow

__all__ = [
    "NO_DEFAULT",
    "Compensation",
    "ExecutorStepDecorator",
    "Landed",
    "NotLanded",
    "Step",
    "StepDecorator",
    "StepOptions",
    "Undo",
    "Wait",
    "usable_executor",
]

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
Undo = Callable[[Context], Any]
_UNDO_RETRY: Final = Retry(3, Backoff.exponential(0.2))
"""what an undo gets that names no policy: a short failure must not leave a key held"""


@dataclass(frozen=True, slots=True)
class Compensation:
    """How a step is undone: `fn(ctx)`, with its own retry policy and its own timeout (seconds, for each attempt)."""

    fn: Undo
    retry: Retry | None = None
    timeout: float | None = None


class NoDefault(Enum):
    """The type of NO_DEFAULT."""

    NO_DEFAULT = "no default"


NO_DEFAULT: Final = NoDefault.NO_DEFAULT
"""of a wait: its step fails when its time is over"""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a step without a function waits for: a value, for `timeout` seconds at most (None: without a limit), after which
    its result is `default`; or, if it `sleeps`, only for its time to be over."""

    timeout: float | None = None
    default: Any = NO_DEFAULT
    sleeps: bool = False


class StepOptions(TypedDict, total=False):
    """The options of a step."""

    depends_on: Step[Any] | str | Iterable[Step[Any] | str]
    """a step, a name (also of a step defined later), or several"""
    retry: int | Retry | None
    """total attempts, or a policy"""
    timeout: Duration | None
    """for each attempt"""
    step_timeout: Duration | None
    """for all attempts and the waits between them"""
    compensate: Undo | None
    """the undo, `fn(ctx)`"""
    when: Callable[[Context], bool | Awaitable[bool]] | None
    """evaluated once, after the dependencies; False skips the step, its dependants still run"""
    undo: Literal["done", "attempted"] | None
    """overrides the workflow's"""
    pivot: bool
    """once this step is done nothing is undone any more: a failure leaves the run incomplete, to be resumed"""
    on_crash: Literal["retry", "undo", "hold"]
    """what to do with the step if its process died in it"""
    verify: Callable[[Context], Any] | None
    """called first in that case; returns Landed(result), NotLanded, or None for what `on_crash` says"""
    expected: type[BaseException] | Iterable[type[BaseException]]
    """errors that are no fault of the service, such as a declined card: telemetry does not show the step as an error"""
    effect: bool
    """False: the step changes nothing outside of the run, so `Workflow.check()` asks for no undo"""


@dataclass(eq=False)
class Step(Generic[R]):
    """A step of a workflow, made by `Workflow.step` or `add_step`. Still callable as the plain function."""

    name: str
    fn: Callable[[Context], Any]
    depends_on: tuple[str, ...] = ()
    retry: Retry | None = None
    timeout: float | None = None
    """seconds for each attempt"""
    step_timeout: float | None = None
    """seconds for all attempts and the waits between them"""
    when: Callable[[Context], Any] | None = None
    undo: Literal["done", "attempted"] | None = None
    pivot: bool = False
    on_crash: Literal["retry", "undo", "hold"] = "retry"
    verify: Callable[[Context], Any] | None = None
    compensation: Compensation | None = None
    workflow: Workflow[Any] | None = field(default=None, repr=False)
    aliases: dict[Step[Any], str] | None = None
    """of an included step: what the steps of its old workflow are called here"""
    expected: tuple[type[BaseException], ...] = ()
    effect: bool = True
    executor: Executor | None = None
    wait: Wait | None = None
    """of a step that `Workflow.wait` or `Workflow.sleep` made"""

    def __post_init__(self) -> None:
        # Its own name, docstring and signature: for help(), Sphinx and editors.
        functools.update_wrapper(self, self.fn, updated=())

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """The step itself, also as an attribute of a class. Makes pydoc document a step as the function that it is."""
        return self

    def __call__(self, ctx: Context) -> Any:
        """Call the function itself: no retries, no timeout, no run."""
        return self.fn(ctx)

    @overload
    def compensate(self, fn: F, /) -> F: ...
    @overload
    def compensate(
        self, /, *, retry: int | Retry | None = None, timeout: Duration | None = None
    ) -> Callable[[F], F]: ...
    def compensate(
        self, fn: F | None = None, /, *, retry: int | Retry | None = None, timeout: Duration | None = None
    ) -> F | Callable[[F], F]:
        """Register the undo of this step: called with a ctx where `ctx[step]` is the result to undo.

        `retry`: total attempts, or a policy; by default `Retry(3, Backoff.exponential(0.2))`, 1 turns retries off.
        `timeout`: seconds for each attempt.

        Raises DefinitionError for a second undo, or once the workflow has run.
        """
        if fn is None:
            return lambda fn: self.compensate(fn) if retry is timeout is None else self._undo_by(fn, retry, timeout)
        return self._undo_by(fn, retry, timeout)

    def _undo_by(self, fn: F, retry: int | Retry | None, timeout: Duration | None) -> F:
        if self.workflow is not None:
            self.workflow._refuse_if_frozen(f"give step {safe_repr(self.name)} an undo")
        if self.compensation is not None:
            raise DefinitionError(f"step {safe_repr(self.name)} already has an undo.")
        if self.wait is not None:
            raise DefinitionError(f"step {safe_repr(self.name)} only waits, so there is nothing to undo.")
        take_one_argument(fn, f"the undo of step {safe_repr(self.name)}")
        limit = None if timeout is None else seconds(timeout, f"timeout of the undo of step {safe_repr(self.name)}")
        self.compensation = Compensation(fn, _UNDO_RETRY if retry is None else Retry.of(retry), limit)
        return fn

    def __repr__(self) -> str:
        return f"<Step {safe_repr(self.name)}>"


def usable_executor(executor: Executor, fn: Callable[..., Any], about: str) -> Executor:
    """`executor` itself. Raises DefinitionError if it is none, or cannot run `fn`."""
    if not isinstance(executor, Executor):
        raise DefinitionError(f"executor {about} must be a concurrent.futures.Executor, not {safe_repr(executor)}.")
    if is_async(fn):
        raise DefinitionError(f"executor {about} runs no async function. Use a plain function.")
    return executor


class StepDecorator(Protocol):
    """What `@wf.step(...)` with options returns."""

    @overload
    def __call__(self, fn: Callable[[Context], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def __call__(self, fn: Callable[[Context], R], /) -> Step[R]: ...


class ExecutorStepDecorator(Protocol):
    """What `@wf.step(executor=...)` returns: its function takes a ContextSnapshot, and is not async."""

    def __call__(self, fn: Callable[[ContextSnapshot], R], /) -> Step[R]: ...


@dataclass(frozen=True, slots=True)
class Landed(Generic[R]):
    """The effect happened: the step is done, and `result` is what it would have returned."""

    result: R


class NotLanded:
    """The effect did not happen and will not: the step is attempted again, or needs no undo. The class itself means the same."""

    __slots__ = ()
