"""Workflow definitions: named steps, their dependencies, and how each is retried, limited and undone."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false, reportPrivateUsage=false

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypedDict, TypeVar, Unpack, overload

from . import describe
from .context import Context
from .errors import DefinitionError, DuplicateStep, FlowcoreError, IdempotencyError, safe_repr
from .forks import hold_across_forks
from .functions import take_one_argument
from .inputs import Input
from .keys import Key, NoKey, checked_key
from .lint import advice
from .new_steps import checked_name, copied_steps, dependency_names, new_step, new_wait, one_of
from .own_errors import distinct_errors
from .plan import Plan
from .retry import Duration, flag, seconds
from .snapshot import ContextSnapshot
from .step import NO_DEFAULT, ExecutorStepDecorator, Step, StepDecorator, StepOptions, Wait

if TYPE_CHECKING:
    # Type checkers know typing_extensions even where it is not installed, and only they need the default.
    from typing_extensions import TypeVar as InputTypeVar

    from .events import Hook
    from .run import Run
    from .stores.base import RunRecord
    from .stores.memory import MemoryStore

    I = InputTypeVar("I", default=Mapping[str, Any])  # noqa: E741 - the input, as R is the result
else:
    I = TypeVar("I")  # noqa: E741

__all__ = ["Workflow"]

R = TypeVar("R")
_PRINTED: Final[Any] = object()  # default of Workflow.run: a new PrintLogger, which uses the current sys.stdout


class WorkflowOptions(TypedDict, total=False):
    """The options of a workflow that do not depend on its input; see Workflow."""

    deadline: Duration | None
    on_failure: Literal["wait", "cancel"]
    undo: Literal["done", "attempted", "never"]
    errors: Iterable[type[Exception]]
    parallel_undo: bool
    max_parallel: int | None


class Workflow(Generic[I]):
    """A definition: named steps and their dependencies. Safe to run many times at once, from any thread.

    `input`: the type of the initial values, a dataclass or a pydantic model; `ctx.input` is an instance of it.

    `idempotency_key`: the key of every run, or NO_KEY, or a function of the input (without `input`: of the initial
    values) that returns either.

    `fingerprint`: a function of the same argument. It returns a string that distinguishes one use of a key from
    another; by default all initial values are compared. Values that it leaves out are not compared. A caller who sends
    the key of another caller then gets the results of that caller, so the caller's identity belongs in the
    fingerprint or the key.

    `deadline`: seconds for a whole run, counted from its first claim.

    `on_failure`: whether the run waits for the running siblings of a failed step ("wait") or cancels them ("cancel").

    `undo`: which steps a failure undoes: those that are done or may be ("done"), also those that raised ("attempted"),
    or none ("never"). With "never" the run is incomplete, and the next call with its key resumes it at the failed step.

    `errors`: exception types that other processes raise as these types too, rebuilt from their messages where that is
    possible, with RunFailed as the cause.

    `parallel_undo`: undo each step as soon as all that depend on it are undone, instead of one by one in reverse.

    `max_parallel`: the most steps of a run that run at once.

    The first run freezes a definition. Adding to it afterwards raises DefinitionError.
    """

    @overload
    def __init__(
        self: Workflow[Mapping[str, Any]],
        name: str,
        *,
        input: None = None,
        idempotency_key: Key | Callable[[Mapping[str, Any]], Key] | None = None,
        fingerprint: Callable[[Mapping[str, Any]], str] | None = None,
        **options: Unpack[WorkflowOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str,
        *,
        input: type[I],
        idempotency_key: Key | Callable[[I], Key] | None = None,
        fingerprint: Callable[[I], str] | None = None,
        **options: Unpack[WorkflowOptions],
    ) -> None: ...
    def __init__(
        self,
        name: str,
        *,
        input: type[I] | None = None,  # noqa: A002 - the word for it
        idempotency_key: Key | Callable[[Any], Key] | None = None,
        fingerprint: Callable[[Any], str] | None = None,
        deadline: Duration | None = None,
        on_failure: Literal["wait", "cancel"] = "wait",
        undo: Literal["done", "attempted", "never"] = "done",
        errors: Iterable[type[Exception]] = (),
        parallel_undo: bool = False,
        max_parallel: int | None = None,
    ) -> None:
        self.name = checked_name(name, "a workflow")
        self.input: Input[I] | None = None if input is None else Input(input, name)
        functions: dict[str, Any] = {"idempotency_key": idempotency_key, "fingerprint": fingerprint}
        for option, function in functions.items():
            if function is not None and (option == "fingerprint" or not isinstance(function, str | NoKey)):
                what = f"{option}= of workflow {safe_repr(name)}"
                take_one_argument(function, what, "the initial values", sync=True)
        if isinstance(idempotency_key, str):
            try:
                idempotency_key = checked_key(idempotency_key)
            except IdempotencyError as error:
                raise DefinitionError(f"idempotency_key= of workflow {safe_repr(name)}: {error}") from error
        self.idempotency_key = idempotency_key
        self.fingerprint = fingerprint
        self.deadline = None if deadline is None else seconds(deadline, f"deadline of workflow {safe_repr(name)}")
        self.on_failure = one_of(on_failure, ("wait", "cancel"), "on_failure=")
        self.undo = one_of(undo, ("done", "attempted", "never"), "undo=")
        self.errors = distinct_errors(errors, name)
        self.parallel_undo = flag(parallel_undo, "parallel_undo=")
        if max_parallel is not None and (type(max_parallel) is not int or max_parallel < 1):
            raise DefinitionError(f"max_parallel= must be a whole number from 1 up, not {safe_repr(max_parallel)}.")
        self.max_parallel = max_parallel
        self._steps: dict[str, Step[Any]] = {}
        self._plan: Plan | None = None
        self._frozen = False
        self._store: MemoryStore | None = None
        self._lock = threading.Lock()
        hold_across_forks(self._lock)

    @property
    def steps(self) -> tuple[Step[Any], ...]:
        """The steps in definition order."""
        return tuple(self._steps.values())

    # -- defining ------------------------------------------------------------------------------------------------------

    @overload
    def step(self, fn: Callable[[Context[I]], Coroutine[Any, Any, R]], /) -> Step[R]: ...
    @overload
    def step(self, fn: Callable[[Context[I]], R], /) -> Step[R]: ...
    @overload
    def step(self, /, *, name: str | None = None, **options: Unpack[StepOptions]) -> StepDecorator: ...
    @overload
    def step(
        self, /, *, executor: Executor, name: str | None = None, **options: Unpack[StepOptions]
    ) -> ExecutorStepDecorator: ...
    def step(
        self,
        fn: Any = None,
        /,
        *,
        name: str | None = None,
        executor: Executor | None = None,
        **options: Unpack[StepOptions],
    ) -> Any:
        """Register the decorated sync or async `fn(ctx)` as a step. Its name is `name=`, or else the function's.

        `executor`: any `concurrent.futures.Executor`, such as a process pool, in which the function runs. The function
        then takes a ContextSnapshot, a read-only copy of the run's values; its result is sent back. The step's undo,
        `when=` and `verify=` run in the engine's process. If a worker dies in the step, `verify=` decides whether the
        step had its effect, or else `on_crash=` decides what follows. Unless the effect is known to have happened, the
        attempt fails with ResultLost: `retry=` may allow another attempt, or the step is undone with its run.

        The other options are those of StepOptions. Raises DuplicateStep, or DefinitionError for an invalid option.
        """
        if fn is not None:
            return self._register(new_step(self, name, fn, executor, **options))

        def decorate(function: Callable[[Context], Any]) -> Step[Any]:
            return self._register(new_step(self, name, function, executor, **options))

        return decorate

    @overload
    def add_step(
        self, name: str | None, fn: Callable[[Context[I]], Coroutine[Any, Any, R]], **options: Unpack[StepOptions]
    ) -> Step[R]: ...
    @overload
    def add_step(self, name: str | None, fn: Callable[[Context[I]], R], **options: Unpack[StepOptions]) -> Step[R]: ...
    @overload
    def add_step(
        self,
        name: str | None,
        fn: Callable[[ContextSnapshot[I]], R],
        *,
        executor: Executor,
        **options: Unpack[StepOptions],
    ) -> Step[R]: ...
    def add_step(
        self, name: str | None, fn: Any, *, executor: Executor | None = None, **options: Unpack[StepOptions]
    ) -> Step[Any]:
        """Register `fn` as a step, without a decorator. If `name` is None, the step has the function's name."""
        return self._register(new_step(self, name, fn, executor, **options))

    def wait(
        self,
        name: str,
        *,
        timeout: Duration | None = None,
        default: Any = NO_DEFAULT,
        depends_on: Step[Any] | str | Iterable[Step[Any] | str] = (),
        when: Callable[[Context], Any] | None = None,
    ) -> Step[Any]:
        """Register a step without a function, which waits for a value. Its result is the value that is sent to it.

        `engine.send(key, name, value)` and `store.send(key, name, value)` send the value. A value that is sent before
        the run has reached the wait is kept. `timeout`: seconds, or a timedelta, after which the step fails with
        StepTimeout, or has the result `default` if that is given. A waiting run holds no thread, and on a durable store
        no process. Raises DuplicateStep, or DefinitionError for an invalid option.
        """
        name = checked_name(name, "a wait")
        limit = None if timeout is None else seconds(timeout, f"timeout of wait {safe_repr(name)}")
        limit = None if limit == math.inf else limit
        if default is not NO_DEFAULT and limit is None:
            raise DefinitionError(
                f"wait {safe_repr(name)} has a default=, but no timeout= after which it would be used."
            )
        return self._register(new_wait(self, name, Wait(limit, default), depends_on, when))

    def sleep(
        self,
        name: str,
        duration: Duration,
        *,
        depends_on: Step[Any] | str | Iterable[Step[Any] | str] = (),
        when: Callable[[Context], Any] | None = None,
    ) -> Step[None]:
        """Register a step without a function that ends `duration` (seconds, or a timedelta) after it began.

        Its result is None. A sleeping run holds no thread, and on a durable store no process. Raises as `wait` does.
        """
        name = checked_name(name, "a sleep")
        what = f"duration of sleep {safe_repr(name)}"
        limit = seconds(duration, what)
        if limit == math.inf:
            raise DefinitionError(f"{what} must be finite.")
        return self._register(new_wait(self, name, Wait(limit, None, sleeps=True), depends_on, when))

    def include(
        self,
        other: Workflow[Any],
        *,
        prefix: str = "",
        depends_on: Step[Any] | str | Iterable[Step[Any] | str] = (),
    ) -> dict[str, Step[Any]]:
        """Copy the steps of `other` into this workflow, with prefixed names. Returns the copies by their old names.

        In the copied functions, `ctx[step]` with a step of `other` means the copy of that step. `depends_on`: the
        dependencies of those copies whose originals have none. Raises DuplicateStep if a name is taken; choose another
        prefix then.
        """
        if not isinstance(other, Workflow):
            raise DefinitionError(f"include() takes a Workflow, not {safe_repr(other)}.")
        if not isinstance(prefix, str):
            raise DefinitionError(f"include(prefix=) must be a string, not {safe_repr(prefix)}.")
        before = dependency_names(self, depends_on, f"{prefix}…")
        copies = copied_steps(other, self, prefix, before)
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
                raise DuplicateStep(
                    f"workflow {safe_repr(self.name)} already has a step {safe_repr(step.name)}. Choose another name; in a "
                    "notebook, first run the cell that makes the workflow again."
                )
            self._steps[step.name] = step
            self._plan = None
        return step

    def _refuse_if_frozen(self, what: str) -> None:
        if self._frozen:
            raise DefinitionError(
                f"cannot {what}: workflow {safe_repr(self.name)} has run, so its definition is frozen. Make a new Workflow; in a "
                "notebook, run the cell that makes it again."
            )

    # -- looking -------------------------------------------------------------------------------------------------------

    def freeze(self) -> Plan:
        """Return the compiled definition for a run, and freeze it: nothing can be added from now on."""
        if self._frozen and self._plan is not None:
            return self._plan
        with self._lock:
            plan = self._plan = self._plan or self._compiled()
            self._frozen = True
            return plan

    def plan(self) -> Plan:
        """Return the compiled definition. Raises UnknownDependency, or DependencyCycle with the path of the cycle."""
        plan = self._plan
        if plan is None:
            with self._lock:
                plan = self._plan = self._compiled()
        return plan

    def _compiled(self) -> Plan:
        for field in () if self.input is None else self.input.fields:
            if field in self._steps:
                raise DefinitionError(
                    f"step {safe_repr(field)} of workflow {safe_repr(self.name)} has the name of a field of its input. "
                    "Rename one of them."
                )
        return Plan(self._steps, self.undo, {} if self.input is None else self.input.types)

    def layers(self) -> list[list[Step[Any]]]:
        """Return the parallel plan, for people: layer by layer, the steps that could run at once, in definition order.

        Runs do not wait for layers: a step starts as soon as its own dependencies are done.
        """
        return self.plan().layers()

    def check(self) -> list[str]:
        """Return advice on this definition: one sentence for each remedy, which names the steps that need it.

        The list is empty if nothing needs a remedy. Raises UnknownDependency or DependencyCycle if the definition
        cannot run at all.
        """
        return advice(self.plan(), self.deadline, self.undo)

    def to_mermaid(self) -> str:
        """Return the graph as a Mermaid flowchart."""
        return describe.mermaid(self.plan())

    def to_dot(self) -> str:
        """Return the graph in Graphviz's DOT language."""
        return describe.dot(self.plan(), self.name)

    def to_svg(self, run: Run | RunRecord | None = None) -> str:
        """Return the graph as SVG. A `run` of this workflow, or its record, colours each step by its status."""
        from .picture import graph_svg

        return graph_svg(self.plan(), self.name, None if run is None else run.steps)

    def _repr_html_(self) -> str | None:
        """Return the SVG that a notebook shows; None if the definition cannot run, since its repr says why."""
        try:
            return self.to_svg()
        except FlowcoreError:
            return None

    def __repr__(self) -> str:
        try:
            return describe.text(self.plan(), self.name)
        except FlowcoreError as error:
            return f"Workflow {safe_repr(self.name)} · {len(self._steps)} steps · cannot run: {error}"

    def __str__(self) -> str:
        """Return the repr in characters that standard output can show, even on a terminal that is set to ASCII."""
        return describe.plain(repr(self), sys.stdout)

    # -- running -------------------------------------------------------------------------------------------------------

    def run(
        self,
        values: I | Mapping[str, Any] | None = None,
        *,
        idempotency_key: Key | None = None,
        hooks: Iterable[Hook] = _PRINTED,
        check: bool = True,
    ) -> Run:
        """Run the workflow here and now: in memory, on threads, and print lifecycle lines.

        `hooks=()` prints nothing. All such runs of one workflow object share one in-memory store, so idempotency keys
        work between them. Raises what `Engine.run` raises; `check=False` returns a failed run instead of raising its
        error.
        """
        # This is the only place where a definition makes an engine, so that the README's first example needs none.
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
