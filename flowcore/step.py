"""Steps: their functions, options and undos, and what `verify=` may return for a step whose process died in it."""

# Arguments are checked at run time, for callers without a type checker.
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
"""the policy of an undo that names none, so that a short outage does not leave a key held"""


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
"""the default of a wait without one: the step fails after its timeout"""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a step without a function waits for: a value, or, if it `sleeps`, only for `timeout` seconds to pass.

    A wait for a value lasts `timeout` seconds at most (None: no limit). Then its result is `default`, or it fails if
    that is NO_DEFAULT.
    """

    timeout: float | None = None
    default: Any = NO_DEFAULT
    sleeps: bool = False


class StepOptions(TypedDict, total=False):
    """The options of a step."""

    depends_on: Step[Any] | str | Iterable[Step[Any] | str]
    """a step, a name (also of a step that is defined later), or several of these"""
    retry: int | Retry | None
    """the total number of attempts, or a policy"""
    timeout: Duration | None
    """the limit for each attempt"""
    step_timeout: Duration | None
    """the limit for all attempts and the backoff between them"""
    compensate: Undo | None
    """the undo, `fn(ctx)`"""
    when: Callable[[Context], bool | Awaitable[bool]] | None
    """evaluated once, after the dependencies; False skips the step, but its dependants still run"""
    undo: Literal["done", "attempted"] | None
    """overrides the `undo=` of the workflow"""
    pivot: bool
    """if True, nothing is undone once this step is done: a failure then leaves the run incomplete, to be resumed"""
    on_crash: Literal["retry", "undo", "hold"]
    """what happens to the step if its process died in it"""
    verify: Callable[[Context], Any] | None
    """called first in that case; returns Landed(result), NotLanded, or None to let `on_crash` decide"""
    expected: type[BaseException] | Iterable[type[BaseException]]
    """errors that are not a fault of the service, such as a declined card: telemetry does not mark the step as an
    error"""
    effect: bool
    """False if the step changes nothing outside of the run, so that `Workflow.check()` asks for no undo"""


@dataclass(eq=False)
class Step(Generic[R]):
    """A step of a workflow, made by `Workflow.step` or `add_step`. It can be called like the plain function."""

    name: str
    fn: Callable[[Context], Any]
    depends_on: tuple[str, ...] = ()
    retry: Retry | None = None
    timeout: float | None = None
    """seconds for each attempt"""
    step_timeout: float | None = None
    """seconds for all attempts and the backoff between them"""
    when: Callable[[Context], Any] | None = None
    undo: Literal["done", "attempted"] | None = None
    pivot: bool = False
    on_crash: Literal["retry", "undo", "hold"] = "retry"
    verify: Callable[[Context], Any] | None = None
    compensation: Compensation | None = None
    workflow: Workflow[Any] | None = field(default=None, repr=False)
    aliases: dict[Step[Any], str] | None = None
    """for an included step: the names here of the steps of its original workflow"""
    expected: tuple[type[BaseException], ...] = ()
    effect: bool = True
    executor: Executor | None = None
    wait: Wait | None = None
    """set for a step that `Workflow.wait` or `Workflow.sleep` made"""

    def __post_init__(self) -> None:
        # The step takes the function's name, docstring and signature, for help(), Sphinx and editors.
        functools.update_wrapper(self, self.fn, updated=())

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Return the step itself. Because this method exists, pydoc documents a step like a function."""
        return self

    def __call__(self, ctx: Context) -> Any:
        """Call the function directly: no retries, no timeout, no run."""
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
        """Register the undo of this step. It is called with a ctx where `ctx[step]` is the result to undo.

        `retry`: the total number of attempts, or a policy; by default `Retry(3, Backoff.exponential(0.2))`; 1 turns
        retries off. `timeout`: seconds for each attempt.

        Raises DefinitionError for a second undo, for a step that only waits, and once the workflow has run.
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
        about = f"of the undo of step {safe_repr(self.name)}"
        limit = None if timeout is None else seconds(timeout, f"timeout {about}")
        self.compensation = Compensation(fn, _UNDO_RETRY if retry is None else Retry.of(retry, f"retry {about}"), limit)
        return fn

    def __repr__(self) -> str:
        return f"<Step {safe_repr(self.name)}>"


def usable_executor(executor: Executor, fn: Callable[..., Any], about: str) -> Executor:
    """Return `executor`. Raises DefinitionError if it is not an Executor, or if `fn` is async."""
    if not isinstance(executor, Executor):
        raise DefinitionError(f"executor {about} must be a concurrent.futures.Executor, not {safe_repr(executor)}.")
    if is_async(fn):
        raise DefinitionError(f"executor {about} runs no async function. Use a plain function.")
    return executor


class StepDecorator(Protocol):
    """The decorator that `@wf.step(...)` with options returns."""

    @overload
    def __call__(self, fn: Callable[[Context], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def __call__(self, fn: Callable[[Context], R], /) -> Step[R]: ...


class ExecutorStepDecorator(Protocol):
    """The decorator that `@wf.step(executor=...)` returns. Its function takes a ContextSnapshot and is not async."""

    def __call__(self, fn: Callable[[ContextSnapshot], R], /) -> Step[R]: ...


@dataclass(frozen=True, slots=True)
class Landed(Generic[R]):
    """The effect happened: the step is done, and `result` is what it would have returned."""

    result: R


class NotLanded:
    """The effect did not happen and will not: the step is attempted again, or needs no undo.

    The class itself means the same as an instance.
    """

    __slots__ = ()
