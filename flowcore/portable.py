"""Errors that leave their process: in a pickled Run, or from the other process of a step with `executor=`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any, Final

from .errors import FlowcoreError, RunFailed, error_message, restored

__all__ = ["portable", "standing_for", "survives_pickling"]

_tried: Final = ContextVar[frozenset[int]]("flowcore_errors_being_pickled", default=frozenset())
"""ids of the errors that `standing_for` pickles at the moment"""


class _StandIn:
    """Is pickled in place of an error whose own pickle would change it, and unpickled as that error."""

    def __init__(self, error: BaseException) -> None:
        self._error: Any = error

    def __reduce__(self) -> tuple[Any, ...]:
        error, kind = self._error, self._error.__class__
        args: tuple[Any, ...] = error.args
        if issubclass(kind, BaseExceptionGroup):
            args = (error.message, [portable(one) for one in error.exceptions])
        return restored, (kind, args, dict(error.__dict__))


def portable(error: BaseException | None) -> Any:
    """Return what another process unpickles as the error, with its type, text, arguments and notes: the error itself,
    or what stands for it. If there is nothing like that, return a RunFailed with its type, message, traceback and
    notes."""
    if error is None or id(error) in _tried.get():  # the error refers to its run, whose pickle asks for it again
        return error
    known = standing_for(error)
    if known is not None:
        return known
    import traceback

    name, message = type(error).__name__, error_message(error)
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - an exception may be anything
        text = ""
    failed = RunFailed(f"{name}: {message}", error_type=name, error_message=message, traceback_text=text)
    for note in _notes(error):
        failed.add_note(str(note))
    return failed


def standing_for(error: BaseException) -> Any:
    """Return what pickle restores as the error: the error itself, or what stands for it. Returns None if there is
    neither."""
    import pickle

    # An __init__ that formats its argument is called by pickle with what it has formatted, and formats it once more. The
    # arguments of flowcore's own errors may be errors that are replaced.
    token = _tried.set(_tried.get() | {id(error)})
    try:
        for one, whole in ((error, not isinstance(error, FlowcoreError)), (_StandIn(error), False)):
            try:
                if _same(error, pickle.loads(pickle.dumps(one)), whole=whole):  # noqa: S301 - what was written a moment ago
                    return one
            except Exception:  # noqa: BLE001, S112 - user code runs here, and any error of it means that it does not
                continue
        return None
    finally:
        _tried.reset(token)


def survives_pickling(value: object) -> bool:
    """Whether pickle restores a value as the same type."""
    import pickle

    try:
        return type(pickle.loads(pickle.dumps(value))) is type(value)  # noqa: S301 - what was written a moment ago
    except Exception:  # noqa: BLE001 - user code runs here, and any error of it means that it does not
        return False


def _same(error: Any, back: Any, *, whole: bool) -> bool:
    """Whether an unpickled error says the same as the original. `whole`: its arguments are compared too."""
    if type(back) is not type(error) or error_message(back) != error_message(error) or _notes(back) != _notes(error):
        return False
    return not whole or _same_parts(error.args, back.args)


def _same_parts(parts: Any, back: Any) -> bool:
    return len(parts) == len(back) and all(map(_same_part, parts, back))


def _same_part(part: Any, back: Any) -> bool:
    if isinstance(part, BaseException):
        return _same(part, back, whole=True)
    if type(part) in (list, tuple) and type(back) is type(part):
        return _same_parts(part, back)
    # An object that only equals itself cannot be compared with its copy.
    kind = part.__class__
    return bool(part == back) or (back.__class__ is kind and kind.__eq__ is object.__eq__)


def _notes(error: BaseException) -> list[Any]:
    notes: Any = getattr(error, "__notes__", ())
    return list(notes) if type(notes) in (list, tuple) else []
