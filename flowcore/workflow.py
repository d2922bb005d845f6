"""Workflow definitions: named steps, what depends on what, and how each is retried, limited and undone."""

# What callers without a type checker hand in is checked when it arrives.
# pyright: reportUnnecessaryIsInstance=false, reportPrivateUsage=false

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Protocol, TypedDict, TypeVar, Unpack, overload

from . import describe
from .context import Context
from .errors import DefinitionError, DuplicateStep, FlowcoreError, UnknownDependency, safe_repr
from .lint import advice
from .plan import Plan
from .retry import Backoff, Duration, Retry, seconds

if TYPE_CHECKING:
    from .events import Hook
    from .run import Run
    from .stores.memory import MemoryStore

__all__ = ["Compensation", "Step", "Workflow"]

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
Undo = Callable[[Context], Any]
_PRINTED: Final[Any] = object()  # wf.run's default: a PrintLogger made at the call, so that it prints to today's stdout


_UNDO_RETRY: Final = Retry(3, Backoff.exponential(0.2))
"""what an undo gets that names no policy: a short failure must not leave a key held"""


@dataclass(frozen=True, slots=True)
class Compensation:
    """How a step is undone: `fn(ctx)`, with its own retry policy and its own timeout (seconds, for each attempt)."""

    fn: Undo
    retry: Retry | None = None
    timeout: float | None = None


class StepOptions(TypedDict, total=False):
    """What can be said of a step."""

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
    """asked once after the dependencies; False skips the step, its dependants still run"""
    undo: Literal["done", "attempted"] | None
    """overrides the workflow's"""
    pivot: bool
    """once this step is done nothing is undone any more: a failure leaves the run incomplete, to go on forward"""
    on_crash: Literal["retry", "undo", "hold"]
    """what to do with the step if its process died in it"""
    verify: Callable[[Context], Any] | None
    """asked first in that case"""
    expected: type[BaseException] | Iterable[type[BaseException]]
    """errors that are no fault of the service, such as a declined card: telemetry does not show the step as an error"""


@dataclass(eq=False, slots=True, weakref_slot=True)
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
    workflow: Workflow | None = field(default=None, repr=False)
    aliases: dict[Step[Any], str] | None = None
    """of an included step: what the steps of its old workflow are called here"""
    expected: tuple[type[BaseException], ...] = ()

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
        if not callable(fn):
            raise DefinitionError(
                f"the undo of step {safe_repr(self.name)} must be a function of ctx, not {safe_repr(fn)}."
            )
        limit = None if timeout is None else seconds(timeout, f"timeout of the undo of step {safe_repr(self.name)}")
        self.compensation = Compensation(fn, _UNDO_RETRY if retry is None else Retry.of(retry), limit)
        return fn

    def __repr__(self) -> str:
        return f"<Step {safe_repr(self.name)}>"


class Workflow:
    """A definition: named steps and what depends on what. Safe to run many times at once, from any thread.

    `idempotency_key`: the key of every run, or a function of the initial values that answers it (None: no key).
    `fingerprint`: a function of the initial values that answers what tells one use of a key from another; by default
    their canonical JSON. `deadline`: seconds for a whole run, counted from its first claim. `on_failure`: whether
    running siblings of a failed step are waited for ("wait") or cancelled ("cancel"). `undo`: which steps are undone:
    those that are done or may be ("done"), or also those that raised ("attempted"). `parallel_undo`: undo each step as
    soon as all that depended on it are undone, instead of one by one in reverse order. `max_parallel`: at most so many
    steps of a run at once.

    A definition is frozen by its first run; adding to it afterwards is a DefinitionError.
    """

    def __init__(
        self,
        name: str,
        *,
        idempotency_key: str | Callable[[Mapping[str, Any]], str | None] | None = None,
        fingerprint: Callable[[Mapping[str, Any]], str] | None = None,
        deadline: Duration | None = None,
        on_failure: Literal["wait", "cancel"] = "wait",
        undo: Literal["done", "attempted"] = "done",
        parallel_undo: bool = False,
        max_parallel: int | None = None,
    ) -> None:
        self.name = _named(name, "a workflow")
        self.idempotency_key = idempotency_key
        self.fingerprint = fingerprint
        self.deadline = None if deadline is None else seconds(deadline, f"deadline of workflow {safe_repr(name)}")
        self.on_failure = _one_of(on_failure, ("wait", "cancel"), "on_failure=")
        self.undo = _one_of(undo, ("done", "attempted"), "undo=")
        self.parallel_undo = parallel_undo
        if max_parallel is not None and (type(max_parallel) is not int or max_parallel < 1):
            raise DefinitionError(f"max_parallel= must be a whole number from 1 up, not {safe_repr(max_parallel)}.")
        self.max_parallel = max_parallel
        self._steps: dict[str, Step[Any]] = {}
        self._plan: Plan | None = None
        self._frozen = False
        self._store: MemoryStore | None = None
        self._lock = threading.Lock()

    @property
    def steps(self) -> tuple[Step[Any], ...]:
        """The steps in definition order."""
        return tuple(self._steps.values())

    # -- defining ------------------------------------------------------------------------------------------------------

    @overload
    def step(self, fn: Callable[[Context], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def step(self, fn: Callable[[Context], R], /) -> Step[R]: ...
    @overload
    def step(self, /, *, name: str | None = None, **options: Unpack[StepOptions]) -> _StepDecorator: ...
    def step(self, fn: Any = None, /, *, name: str | None = None, **options: Unpack[StepOptions]) -> Any:
        """Register the decorated sync or async `fn(ctx)` as a step; its name is the function's unless `name=` says so.

        The options are those of StepOptions. Raises DuplicateStep, or DefinitionError for an option that makes no sense.
        """
        if fn is not None:
            return self.add_step(name, fn, **options)

        def decorate(function: Callable[[Context], Any]) -> Step[Any]:
            return self.add_step(name, function, **options)

        return decorate

    @overload
    def add_step(
        self, name: str | None, fn: Callable[[Context], Coroutine[Any, Any, R]], **options: Unpack[StepOptions]
    ) -> Step[R]: ...
    @overload
    def add_step(self, name: str | None, fn: Callable[[Context], R], **options: Unpack[StepOptions]) -> Step[R]: ...
    def add_step(
        self,
        name: str | None,
        fn: Callable[[Context], Any],
        *,
        depends_on: Step[Any] | str | Iterable[Step[Any] | str] = (),
        retry: int | Retry | None = None,
        timeout: Duration | None = None,
        step_timeout: Duration | None = None,
        compensate: Undo | None = None,
        when: Callable[[Context], Any] | None = None,
        undo: Literal["done", "attempted"] | None = None,
        pivot: bool = False,
        on_crash: Literal["retry", "undo", "hold"] = "retry",
        verify: Callable[[Context], Any] | None = None,
        expected: type[BaseException] | Iterable[type[BaseException]] = (),
    ) -> Step[Any]:
        """Register `fn` as a step, without a decorator; `name` None means the function's name."""
        if isinstance(fn, Step):
            raise DefinitionError(f"{fn!r} is a step already: use wf.include(), or the plain function.")
        if not callable(fn):
            raise DefinitionError(f"a step must be a function of ctx, not {safe_repr(fn)}.")
        name = _named(getattr(fn, "__name__", None) if name is None else name, "a step")
        about = f"of step {safe_repr(name)}"
        step: Step[Any] = Step(
            name,
            fn,
            self._names(depends_on, name),
            Retry.of(retry),
            None if timeout is None else seconds(timeout, f"timeout {about}"),
            None if step_timeout is None else seconds(step_timeout, f"step_timeout {about}"),
            when,
            None if undo is None else _one_of(undo, ("done", "attempted"), f"undo {about}"),
            pivot,
            _one_of(on_crash, ("retry", "undo", "hold"), f"on_crash {about}"),
            verify,
            workflow=self,
            expected=_error_types(expected, f"expected {about}"),
        )
        for option, function in (("when", when), ("verify", verify)):
            if function is not None and not callable(function):
                raise DefinitionError(f"{option} {about} must be a function of ctx, not {safe_repr(function)}.")
        if compensate is not None:
            step._undo_by(compensate, None, None)
        return self._register(step)

    def include(self, other: Workflow, *, prefix: str = "") -> dict[str, Step[Any]]:
        """Copy the steps of `other` into this workflow, their names prefixed; answers them by their old names.

        The functions may go on using the steps of `other` in `ctx[step]`: they mean the copies. Steps of `other` without
        dependencies have none here either. Raises DuplicateStep where two names meet: choose another prefix.
        """
        copies: dict[str, Step[Any]] = {}
        aliases: dict[Step[Any], str] = {}
        for name, step in other._steps.items():
            copy: Step[Any] = Step(
                prefix + name,
                step.fn,
                tuple(prefix + dependency for dependency in step.depends_on),
                step.retry,
                step.timeout,
                step.step_timeout,
                step.when,
                step.undo or other.undo,
                step.pivot,
                step.on_crash,
                step.verify,
                step.compensation,
                self,
                aliases,
                step.expected,
            )
            copies[name] = copy
            aliases[step] = copy.name
            aliases.update({inner: prefix + outer for inner, outer in (step.aliases or {}).items()})
        for copy in copies.values():
            if copy.name in self._steps:
                raise DuplicateStep(f"workflow {safe_repr(self.name)} already has a step {safe_repr(copy.name)}.")
        for copy in copies.values():
            self._register(copy)
        return copies

    def _register(self, step: Step[Any]) -> Step[Any]:
        with self._lock:
            self._refuse_if_frozen(f"add step {safe_repr(step.name)}")
            if step.name in self._steps:
                raise DuplicateStep(f"workflow {safe_repr(self.name)} already has a step {safe_repr(step.name)}.")
            self._steps[step.name] = step
            self._plan = None
        return step

    def _refuse_if_frozen(self, what: str) -> None:
        if self._frozen:
            raise DefinitionError(f"cannot {what}: workflow {safe_repr(self.name)} has run, its definition is frozen.")

    def _names(self, depends_on: Step[Any] | str | Iterable[Step[Any] | str], name: str) -> tuple[str, ...]:
        several = (depends_on,) if isinstance(depends_on, Step | str) else depends_on
        if not isinstance(several, Iterable):
            raise DefinitionError(
                f"depends_on of step {safe_repr(name)} must be steps or names, not {safe_repr(depends_on)}."
            )
        names: list[str] = []
        for one in several:
            if isinstance(one, Step) and one.workflow is not self:
                raise UnknownDependency(
                    f"step {safe_repr(name)} depends on {one!r} of another workflow: use wf.include() to bring it here."
                )
            if not isinstance(one, Step | str):
                raise DefinitionError(
                    f"depends_on of step {safe_repr(name)} must be steps or names, not {safe_repr(one)}."
                )
            names.append(one.name if isinstance(one, Step) else one)
        return tuple(names)

    # -- looking -------------------------------------------------------------------------------------------------------

    def freeze(self) -> Plan:
        """The compiled definition, for a run: from now on nothing can be added."""
        if self._frozen and self._plan is not None:
            return self._plan
        with self._lock:
            plan = self._plan = self._plan or Plan(self._steps, self.undo)
            self._frozen = True
            return plan

    def plan(self) -> Plan:
        """The compiled definition. Raises UnknownDependency, or DependencyCycle with the path of the cycle."""
        plan = self._plan
        if plan is None:
            with self._lock:
                plan = self._plan = Plan(self._steps, self.undo)
        return plan

    def layers(self) -> list[list[Step[Any]]]:
        """The parallel plan, for people: steps that could run at once, layer after layer, in definition order.

        Runs do not wait for layers: a step starts as soon as its own dependencies are done.
        """
        return self.plan().layers()

    def check(self) -> list[str]:
        """What a careful colleague would say of this definition: sentences that name a step and a remedy, or none.

        Raises UnknownDependency or DependencyCycle where it cannot run at all.
        """
        return advice(self.plan(), self.deadline)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart."""
        return describe.mermaid(self.plan())

    def to_dot(self) -> str:
        """The graph in Graphviz's DOT language."""
        return describe.dot(self.plan(), self.name)

    def __repr__(self) -> str:
        try:
            return describe.text(self.plan(), self.name)
        except FlowcoreError as error:
            return f"Workflow {safe_repr(self.name)} · {len(self._steps)} steps · cannot run: {error}"

    # -- running -------------------------------------------------------------------------------------------------------

    def run(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        hooks: Iterable[Hook] = _PRINTED,
        check: bool = True,
    ) -> Run:
        """Run here and now: in memory, on threads, printing lifecycle lines (`hooks=()`: silently).

        All such runs of one workflow object share one in-memory store, so idempotency keys work between them. Raises
        what `Engine.run` raises.
        """
        # The one place where a definition reaches for an engine: the embedded default of the README's first lines.
        from ._engines.threads import Engine
        from .events import PrintLogger

        chosen = (PrintLogger(),) if hooks is _PRINTED else hooks
        with Engine(store=self._memory(), hooks=chosen) as engine:
            return engine.run(self, values, idempotency_key=idempotency_key, check=check)

    def _memory(self) -> MemoryStore:
        from .stores.memory import MemoryStore

        with self._lock:
            if self._store is None:
                self._store = MemoryStore()
            return self._store


class _StepDecorator(Protocol):
    """What `@wf.step(...)` with options answers."""

    @overload
    def __call__(self, fn: Callable[[Context], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def __call__(self, fn: Callable[[Context], R], /) -> Step[R]: ...


def _named(name: object, what: str) -> str:
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"{what} needs a name that is a non-empty string, not {safe_repr(name)}.")
    return name


def _error_types(given: Any, what: str) -> tuple[type[BaseException], ...]:
    types = tuple(given) if isinstance(given, Iterable) and not isinstance(given, type) else (given,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
        raise DefinitionError(f"{what} must be exception classes, not {safe_repr(given)}.")
    return types


def _one_of(value: Any, allowed: tuple[str, ...], what: str) -> Any:
    if value not in allowed:
        raise DefinitionError(f"{what} must be {' or '.join(map(repr, allowed))}, not {safe_repr(value)}.")
    return value
