"""A workflow's own error types, `Workflow(errors=)`. A store keeps their names; callers get these types back."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, overload

from .errors import DefinitionError, FlowcoreError, RunFailed, error_message, safe_repr

if TYPE_CHECKING:
    from .workflow import Workflow

__all__ = ["distinct_errors", "own_error"]


@overload
def own_error(workflow: Workflow[Any], error: BaseException) -> BaseException: ...
@overload
def own_error(workflow: Workflow[Any], error: None) -> None: ...
def own_error(workflow: Workflow[Any], error: BaseException | None) -> BaseException | None:
    """Return a RunFailed as the type in `errors=` that it was first raised as, if an error of that type can be made that
    has its message. Return any other error unchanged."""
    if not workflow.errors or not isinstance(error, RunFailed):
        return error
    kind = workflow.errors.get(error.error_type) or _subclass(workflow.errors.values(), error.error_type)
    if kind is None:
        return error
    return _rebuilt(kind, error) or error


def distinct_errors(errors: Any, workflow: str) -> dict[str, type[Exception]]:
    """Return the error types by name, which is all that a store keeps of a type. Raises DefinitionError."""
    what = f"errors= of workflow {safe_repr(workflow)}"
    whole: object = errors
    if isinstance(whole, type) or not isinstance(whole, Iterable):
        raise DefinitionError(f"{what} must be a tuple of exception types, not {safe_repr(errors)}.")
    known: dict[str, type[Exception]] = {}
    for one in errors:
        kind: Any = one
        if not isinstance(one, type) or not issubclass(one, Exception) or issubclass(one, FlowcoreError):
            raise DefinitionError(f"{what} must be exception types of your own, not {safe_repr(kind)}.")
        if known.setdefault(kind.__name__, kind) is not kind:
            raise DefinitionError(f"{what} has two types with the name {kind.__name__}. Rename one of them.")
    return known


def _subclass(kinds: Iterable[type[Exception]], name: str) -> type[Exception] | None:
    """Return a subclass, at any depth, that has this name in this process, or None."""
    for kind in kinds:
        for inner in kind.__subclasses__():
            found = inner if inner.__name__ == name else _subclass((inner,), name)
            if found is not None:
                return found
    return None


def _rebuilt(kind: type[Exception], failed: RunFailed) -> Exception | None:
    """Return an error of a type with the message of a RunFailed, which is its cause, even if the type's __init__ takes
    other arguments. Returns None if no error of this type can be made that has this message."""
    message = failed.message
    arguments: list[object] = [message]
    if kind.__str__ is KeyError.__str__:  # whose text is the repr of its argument
        import ast

        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            arguments.append(ast.literal_eval(message))
    for argument in arguments:
        for make in (kind, functools.partial(kind.__new__, kind)):
            with contextlib.suppress(Exception):  # user code runs here
                error: Exception = make(argument)
                if make is not kind:
                    error.args = (argument,)
                if type(error) is kind and error_message(error) == message:
                    error.__cause__ = failed
                    return error
    return None
