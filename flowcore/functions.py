"""Inspection of the functions that users pass: whether they are async, what they take and return, and their names."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from types import CoroutineType, FunctionType, NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints

from .errors import DefinitionError, safe_repr

__all__ = [
    "PLAIN",
    "function_name",
    "is_async",
    "is_awaitable",
    "is_generator",
    "no_function",
    "result_of",
    "return_annotation",
    "take_one_argument",
]


def no_function(name: str) -> Callable[..., Any]:
    """Return a stand-in for the function of the step `name`, which only waits. It raises DefinitionError if called."""

    def wait(ctx: Any) -> Any:
        raise DefinitionError(f"step {safe_repr(name)} only waits: it has no function to call.")

    wait.__name__ = wait.__qualname__ = name
    return wait


def is_async(fn: Any) -> bool:
    """Whether calling `fn` returns a coroutine."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


def is_generator(fn: Any) -> bool:
    """Whether calling `fn` returns a generator, sync or async, without running its body."""
    return _any_form(fn, inspect.isgeneratorfunction) or _any_form(fn, inspect.isasyncgenfunction)


def function_name(fn: Any) -> str:
    """Return `module.qualname` of a function, for telemetry."""
    try:
        return f"{fn.__module__}.{fn.__qualname__}"
    except AttributeError:  # a callable instance
        return f"{type(fn).__module__}.{type(fn).__qualname__}"


def take_one_argument(fn: Callable[..., Any], what: str, argument: str = "ctx", *, sync: bool = False) -> None:
    """Raise DefinitionError unless `fn` can be called with one positional argument and then does its work.

    `what` names `fn` in the message. A generator function is refused, because calling it does not run its body. `sync`:
    also refuse a coroutine function, because the result is needed at once.
    """
    if not callable(fn):
        raise DefinitionError(f"{what} must be a function of {argument}, not {safe_repr(fn)}.")
    if is_generator(fn):
        raise DefinitionError(f"{what} is a generator function, whose body would never run. Remove its yield.")
    if sync and is_async(fn):
        raise DefinitionError(f"{what} must not be async: its result is needed at once. Use a plain function.")
    if not _takes_one(fn):
        raise DefinitionError(f"{what} must take exactly one argument, {argument}; it is {_signature(fn)}.")


def _any_form(fn: Any, test: Callable[[Any], bool]) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return test(fn) or (not isinstance(fn, type) and test(getattr(fn, "__call__", None)))  # noqa: B004


def _takes_one(fn: Any) -> bool:
    if type(fn) is FunctionType:  # several times faster than the code below, with the same result
        code = fn.__code__
        defaults, keywords = len(fn.__defaults__ or ()), len(fn.__kwdefaults__ or ())
        positional = code.co_argcount
        may = positional >= 1 or bool(code.co_flags & inspect.CO_VARARGS)
        return may and positional - defaults <= 1 and code.co_kwonlyargcount == keywords
    try:
        inspect.signature(fn, follow_wrapped=False).bind(None)
    except TypeError:
        return False
    except ValueError:  # a builtin whose parameters are unknown
        return True
    return True


def _signature(fn: Any) -> str:
    name = getattr(fn, "__name__", type(fn).__name__)
    return safe_repr(f"{name}{inspect.signature(fn, follow_wrapped=False)}")


PLAIN: Final = frozenset({NoneType, bool, int, float, str, bytes, list, dict, tuple, set})
"""the types of most results, none of them awaitable; hot paths look here first, to save a call"""


def is_awaitable(value: object) -> bool:
    """Whether a function has returned something to await, instead of a result."""
    kind = type(value)
    return kind is CoroutineType or (kind not in PLAIN and hasattr(kind, "__await__"))


async def result_of(awaitable: Awaitable[Any]) -> Any:
    """Await an awaitable that is not a coroutine."""
    return await awaitable


def return_annotation(fn: Any) -> Any:
    """Return the annotated return type of a function, or of the coroutine that it makes; Any if it is unknown."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    try:
        has_own = hasattr(fn, "__annotations__") and not isinstance(fn, type)
        function = inspect.unwrap(fn if has_own else type(fn).__call__)
        annotation = _evaluated(function, function.__annotations__["return"])
    except Exception:  # noqa: BLE001 - a mock has none, and an annotation may name what only type checkers import
        return Any
    if get_origin(annotation) in (Awaitable, Coroutine):
        return get_args(annotation)[-1]
    return annotation


def _evaluated(function: Any, annotation: Any) -> Any:
    # Only the return annotation is evaluated, because others may name types imported for type checkers alone.
    def stand_in() -> None: ...

    stand_in.__annotations__ = {"return": annotation}
    cells = (
        zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        if hasattr(function, "__code__")
        else ()
    )
    names = {name: cell.cell_contents for name, cell in cells}
    return get_type_hints(stand_in, getattr(function, "__globals__", {}), names, include_extras=True)["return"]
