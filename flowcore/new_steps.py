"""Construction of steps from the options in their definition. Invalid options are refused here."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Literal

from .context import Context
from .errors import DefinitionError, UnknownDependency, safe_repr
from .functions import no_function, take_one_argument
from .retry import Duration, Retry, flag, seconds
from .step import Step, Undo, Wait, usable_executor

if TYPE_CHECKING:
    from .workflow import Workflow

__all__ = ["checked_name", "copied_steps", "dependency_names", "new_step", "new_wait", "one_of"]


def new_step(
    workflow: Workflow[Any],
    name: str | None,
    fn: Callable[..., Any],
    executor: Executor | None,
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
    effect: bool = True,
    **unknown: object,
) -> Step[Any]:
    """Return a new step. Raises DefinitionError, or UnknownDependency if it depends on another workflow's step."""
    if isinstance(fn, Step):
        raise DefinitionError(f"{fn!r} is a step already: use wf.include(), or the plain function.")
    if not callable(fn):
        raise DefinitionError(f"a step must be a function of ctx, not {safe_repr(fn)}.")
    name = checked_name(getattr(fn, "__name__", None) if name is None else name, "a step")
    take_one_argument(fn, f"the function of step {safe_repr(name)}")
    about = f"of step {safe_repr(name)}"
    if unknown:
        names = ", ".join(map(safe_repr, unknown))
        raise DefinitionError(f"step {safe_repr(name)} has no option {names}. StepOptions lists the options of a step.")
    step: Step[Any] = Step(
        name,
        fn,
        dependency_names(workflow, depends_on, name),
        Retry.of(retry, f"retry {about}"),
        None if timeout is None else seconds(timeout, f"timeout {about}"),
        None if step_timeout is None else seconds(step_timeout, f"step_timeout {about}"),
        when,
        None if undo is None else one_of(undo, ("done", "attempted"), f"undo {about}"),
        flag(pivot, f"pivot {about}"),
        one_of(on_crash, ("retry", "undo", "hold"), f"on_crash {about}"),
        verify,
        workflow=workflow,
        expected=_error_types(expected, f"expected {about}"),
        effect=flag(effect, f"effect {about}"),
        executor=None if executor is None else usable_executor(executor, fn, about),
    )
    for option, function in (("when", when), ("verify", verify)):
        if function is not None:
            take_one_argument(function, f"{option} {about}")
    if compensate is not None:
        step._undo_by(compensate, None, None)
    return step


def new_wait(
    workflow: Workflow[Any],
    name: str,
    wait: Wait,
    depends_on: Step[Any] | str | Iterable[Step[Any] | str],
    when: Callable[[Context], Any] | None,
) -> Step[Any]:
    """Return a new step without a function, which waits or sleeps."""
    if when is not None:
        take_one_argument(when, f"when of step {safe_repr(name)}")
    fn, names = no_function(name), dependency_names(workflow, depends_on, name)
    return Step(name, fn, names, when=when, workflow=workflow, effect=False, wait=wait)


def copied_steps(
    other: Workflow[Any], workflow: Workflow[Any], prefix: str, before: tuple[str, ...]
) -> dict[str, Step[Any]]:
    """Return copies of the steps of `other` for `workflow`, by their old names. `before`: the dependencies of the
    copies whose originals have none."""
    copies: dict[str, Step[Any]] = {}
    aliases: dict[Step[Any], str] = {}
    for name, step in other._steps.items():
        copy: Step[Any] = Step(
            prefix + name,
            step.fn,
            tuple(prefix + dependency for dependency in step.depends_on) or before,
            step.retry,
            step.timeout,
            step.step_timeout,
            step.when,
            step.undo or (None if other.undo == "never" else other.undo),
            step.pivot,
            step.on_crash,
            step.verify,
            step.compensation,
            workflow,
            aliases,
            step.expected,
            step.effect,
            step.executor,
            step.wait,
        )
        copies[name] = copy
        aliases[step] = copy.name
        aliases.update({inner: prefix + outer for inner, outer in (step.aliases or {}).items()})
    return copies


def dependency_names(
    workflow: Workflow[Any], depends_on: Step[Any] | str | Iterable[Step[Any] | str], name: str
) -> tuple[str, ...]:
    """Return the names of the steps that step `name` of a workflow depends on."""
    several = (depends_on,) if isinstance(depends_on, Step | str) else depends_on
    if not isinstance(several, Iterable):
        raise DefinitionError(
            f"depends_on of step {safe_repr(name)} must be steps or names, not {safe_repr(depends_on)}."
        )
    names: list[str] = []
    for one in several:
        if isinstance(one, Step) and one.workflow is not workflow:
            raise UnknownDependency(
                f"step {safe_repr(name)} depends on {one!r} of another workflow: use wf.include() to bring it here."
            )
        if not isinstance(one, Step | str):
            raise DefinitionError(f"depends_on of step {safe_repr(name)} must be steps or names, not {safe_repr(one)}.")
        names.append(one.name if isinstance(one, Step) else str.__str__(one))
    return tuple(names)


def checked_name(name: object, what: str) -> str:
    """Return `name` as a plain str, because an f-string shows a member of an Enum otherwise. Raises DefinitionError,
    which names `what`, unless it is a string and not empty."""
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"{what} needs a name that is a non-empty string, not {safe_repr(name)}.")
    return str.__str__(name)


def _error_types(given: Any, what: str) -> tuple[type[BaseException], ...]:
    whole: object = given
    several = isinstance(whole, Iterable) and not isinstance(whole, type)
    types: tuple[Any, ...] = tuple(given) if several else (given,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
        raise DefinitionError(f"{what} must be exception classes, not {safe_repr(given)}.")
    return types


def one_of(value: Any, allowed: tuple[str, ...], what: str) -> Any:
    """Return `value`. Raises DefinitionError, which names `what`, unless it is one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise DefinitionError(f"{what} must be {' or '.join(map(repr, allowed))}, not {safe_repr(value)}.")
    return value
