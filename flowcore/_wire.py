"""How a step, its inputs and its outcome cross the boundary between two processes.

Steps with `executor=` are pickled, like everything that goes to a process pool. Errors also have a form of plain data,
for transports that carry JSON. It names the error's class, which is looked up only in modules that are already loaded.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, cast

from .errors import (
    CompensationFailed,
    FlowcoreError,
    NotSerializable,
    RunFailed,
    error_message,
    safe_repr,
    safe_str,
)
from .events.hooks import Crossing
from .portable import standing_for, survives_pickling
from .snapshot import ContextSnapshot, StepInputs

__all__ = ["RemoteTraceback", "StepReply", "pack_error", "pack_step", "run_packed_step", "unpack_error"]

_TRACE: Final = 8_000
"""how many characters of a traceback are sent, counted from its end"""
_CAUSES: Final = 3
"""how many causes of an error are sent with it"""
_MESSAGE: Final = 1024
"""how many characters of an error's message are sent, and of each text among its arguments if they are too long"""
_NOTES: Final = 16
"""how many notes of an error are sent if they are too long together"""
_DATA: Final = 32 * 1024
"""how many characters of JSON the arguments and attributes of an error may take, and as many its notes"""


class RemoteTraceback(Exception):
    """The `__cause__` of an error that a step raised in another process. Its text is the traceback there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""


class StepReply(NamedTuple):
    """The outcome of a step in the other process.

    `value`: the pickled result; None after an error. `error`: the pickled error, or, where pickle cannot restore it,
    its plain data, pickled too. `trace`: the traceback of the error, as text. `done`: whether the function returned,
    even if its result cannot be pickled.
    """

    value: bytes | None
    error: bytes | None = None
    trace: str = ""
    done: bool = True


class _ByName(NamedTuple):
    """A reference to a function by module and name. Pickle would find the Step that has taken this name."""

    module: str
    name: str

    def find(self) -> Callable[..., Any]:
        import pkgutil

        found: Any = pkgutil.resolve_name(f"{self.module}:{self.name}")
        fn: Callable[..., Any] = found.fn if hasattr(found, "fn") and hasattr(found, "workflow") else found
        return fn


def _reference(fn: Callable[..., Any]) -> Callable[..., Any] | _ByName:
    """Return a reference by name if the name leads to the function, else the function itself."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", "<locals>")
    if module is None or "<" in name:
        return fn
    reference = _ByName(module, name)
    try:
        return reference if reference.find() is fn else fn
    except (ImportError, AttributeError):
        return fn


def pack_step(
    fn: Callable[..., Any], inputs: StepInputs, crossings: Iterable[Crossing]
) -> tuple[Callable[..., Any] | _ByName, bytes]:
    """Return the two arguments of `run_packed_step`. Raises NotSerializable for a value that pickle refuses."""
    import pickle

    try:
        return _reference(fn), pickle.dumps((inputs, tuple(crossings)))
    except Exception as error:
        what = f"step {safe_repr(inputs.step)} has executor=, and {_culprit(inputs)} cannot be pickled"
        raise NotSerializable(f"{what}: {safe_str(error, 200)}") from error


def _culprit(inputs: StepInputs) -> str:
    for kind, found in (("the value of", inputs.values), ("the result of step", inputs.results)):
        for name, value in found.items():
            if not survives_pickling(value):
                return f"{kind} {safe_repr(name)}"
    return "its input"


def run_packed_step(fn: Callable[..., Any] | _ByName, packed: bytes) -> StepReply:
    """Run the step in the other process and return its outcome. An error of the step is returned too, so whatever is
    raised is an error of the executor."""
    import pickle

    inputs, crossings = pickle.loads(packed)  # noqa: S301 - our own engine sent it
    done = False
    try:
        function = fn.find() if isinstance(fn, _ByName) else fn
        with contextlib.ExitStack() as scopes:
            for crossing in crossings:
                scopes.enter_context(crossing())
            value = function(ContextSnapshot(inputs))
        done = True
        return StepReply(_pickled_result(value, inputs.step))
    except BaseException as error:  # noqa: BLE001 - the kernel decides what follows
        import traceback

        text = "".join(traceback.format_exception(error))[-_TRACE:]
        crossing = standing_for(error)
        return StepReply(None, pickle.dumps(pack_error(error) if crossing is None else crossing), text, done)


def _pickled_result(value: object, step: str) -> bytes:
    import pickle

    try:
        return pickle.dumps(value)
    except Exception as error:
        what = f"step {safe_repr(step)} has executor=, and its result of type {type(value).__name__} cannot be pickled"
        raise NotSerializable(f"{what}: {safe_str(error, 200)}") from error


# -- errors as plain data ----------------------------------------------------------------------------------------------


def pack_error(error: BaseException, causes: int = _CAUSES) -> dict[str, Any]:
    """Return an error as data that JSON can carry, with at most `causes` of its causes. Lone surrogates are escaped.
    Long texts among its arguments, attributes and notes are clipped if they are too long together."""
    packed: dict[str, Any] = {
        "module": _encodable(type(error).__module__),
        "type": _encodable(type(error).__qualname__),
        "message": _encodable(error_message(error, sys.maxsize), _MESSAGE),
        "trace": _encodable(_trace_of(error)),
    }
    with contextlib.suppress(Exception):  # any attribute of an exception may be missing, or raise
        notes = [str(note) for note in getattr(error, "__notes__", ())]
        packed["notes"] = _fitting(notes) or [_encodable(note, _MESSAGE) for note in notes[-_NOTES:]]
    with contextlib.suppress(Exception):
        args = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args  # with the name of its file
        attributes = {name: value for name, value in vars(error).items() if name != "__notes__"}
        fitting = _fitting([args, attributes])
        if fitting is not None:
            packed["args"], packed["vars"] = fitting
    if isinstance(error, CompensationFailed):
        packed["message"] = _encodable(error.message)
        packed["failures"] = {step: pack_error(failure) for step, failure in error.failures.items()}
    if isinstance(error.__cause__, RemoteTraceback):  # the traceback from the process that raised the error
        packed["trace"] = _encodable(str(error.__cause__).lstrip())
    elif error.__cause__ is not None and causes:
        packed["cause"] = pack_error(error.__cause__, causes - 1)
    return packed


def _trace_of(error: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception(error))[-_TRACE:]
    except Exception as failure:  # noqa: BLE001 - formatting a user's exception may raise anything
        return f"(its traceback could not be formatted: {type(failure).__name__})"


def _fitting(data: object) -> Any:
    """Return a copy of data as JSON carries it, with its texts clipped if it is too long, or None if it still is. Raises
    for data that JSON cannot carry."""
    import json

    for limit in (sys.maxsize, _MESSAGE):
        plain = _encodable(json.loads(json.dumps(data, allow_nan=False)), limit)
        if len(json.dumps(plain)) <= _DATA:
            return plain
    return None


def _encodable(data: Any, limit: int = sys.maxsize) -> Any:
    """Return data as JSON carries it with lone surrogates escaped, and each text clipped to `limit` characters."""
    if isinstance(data, str):
        text = data.encode("utf-8", "backslashreplace").decode()
        return text if len(text) <= limit else text[:limit] + "…"
    if isinstance(data, list):
        return [_encodable(one, limit) for one in cast("Any", data)]
    if isinstance(data, dict):
        return {_encodable(name): _encodable(one, limit) for name, one in cast("Any", data).items()}
    return data


def unpack_error(packed: Mapping[str, Any], run_id: str = "", step: str | None = None) -> BaseException:
    """Return the error: as its own class if this process has loaded that class, and the packed arguments lead to the
    same text; else as a RunFailed with that text. Imports nothing, and does not call the `__init__` of the error's
    class."""
    error: BaseException | None
    if "failures" in packed:
        failures = {step: unpack_error(failure, run_id, step) for step, failure in packed["failures"].items()}
        error = CompensationFailed(
            packed["message"], {step: failure for step, failure in failures.items() if isinstance(failure, Exception)}
        )
    else:
        error = _of_own_class(packed)
    if error is None:
        name, message = packed["type"].rpartition(".")[2], packed["message"]
        error = RunFailed(
            f"{name}: {message}",
            run=run_id,
            step=step,
            error_type=name,
            error_message=message,
            traceback_text=packed["trace"],
        )
    if packed.get("cause") is not None:
        error.__cause__ = unpack_error(packed["cause"], run_id, step)
    elif packed["trace"]:
        error.__cause__ = RemoteTraceback(packed["trace"])
    with contextlib.suppress(Exception):  # a class may refuse attributes
        for note in packed.get("notes", ()):
            BaseException.add_note(error, note)  # its own add_note may raise
    return error


def _of_own_class(packed: Mapping[str, Any]) -> BaseException | None:
    """Return the error as its own class, or None if that is not possible."""
    kind: Any = sys.modules.get(packed["module"])
    for part in packed["type"].split("."):
        kind = getattr(kind, part, None)
    if "args" not in packed or not (isinstance(kind, type) and issubclass(kind, BaseException) and _is_plain(kind)):
        return None
    try:
        error = kind.__new__(kind, *packed["args"])
        if not isinstance(error, OSError) or error.errno is None:  # else it keeps the name of its file elsewhere
            error.args = tuple(packed["args"])
        error.__dict__.update(packed.get("vars", {}))
    except Exception:  # noqa: BLE001 - user code
        return None
    return error if error_message(error) == packed["message"] else None


def _is_plain(kind: type[BaseException]) -> bool:
    """Whether an error of this class consists of its arguments and attributes alone."""
    return issubclass(kind, FlowcoreError) or not issubclass(kind, BaseExceptionGroup)
