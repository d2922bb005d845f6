"""A workflow's own error types, `Workflow(errors=)`. A store keeps their names; callers get these types back."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, overload

from .errors import DefinitionError, FlowcoreError, RunFailed, safe_repr

if TYPE_CHECKING:
    from .workflow import Workflow

__all__ = ["distinct_errors", "own_error"]


@overload
def own_error(workflow: Workflow[Any], error: BaseException) -> BaseException: ...
@overload
def own_error(workflow: Workflow[Any], error: None) -> None: ...
def own_error(workflow: Workflow[Any], error: BaseException | None) -> BaseException | None:
    """Return a RunFailed as the type in `errors=` that it was first raised as, or any other error unchanged."""
    if not workflow.errors or not isinstance(error, RunFailed):
        return error
    kind = workflow.errors.get(error.error_type) or _subclass(workflow.errors.values(), error.error_type)
    if kind is None:
        return error
    rebuilt = _rebuilt(kind, error.message)
    rebuilt.__cause__ = error
    return rebuilt


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


def _rebuilt(kind: type[Exception], message: str) -> Exception:
    """Return an error of a type with a message, even if the type's __init__ takes other arguments."""
    try:
        error = kind(message)
        if str(error) == message:
            return error
    except Exception:  # noqa: BLE001 - user code
        error = None
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error
