"""Exits that the signal handlers of a process raise, such as the `sys.exit()` of a handler of SIGTERM.

Python calls a handler in the main thread, between any two instructions, so its exception may appear in code that must
be completed, such as a hook or an undo. Such an exit is kept until the engine can act on it, because the process is
meant to end.
"""

from __future__ import annotations

import asyncio
import dis
import functools
import inspect
import signal
import threading
from types import CodeType, FrameType, TracebackType
from typing import Any, Final

__all__ = ["defer", "deferred", "is_exit_of_handler", "raise_deferred", "take_deferred"]

_RAISES: Final = frozenset({dis.opmap["RAISE_VARARGS"], dis.opmap["RERAISE"]})
deferred: Final[list[BaseException]] = []
"""the first exit in a hook that no engine has acted on yet; only the main thread changes it"""


def is_exit_of_handler(error: BaseException | None) -> bool:
    """Whether `error` is a SystemExit or KeyboardInterrupt that a signal handler has raised, and not the code that it
    interrupted."""
    trace = error.__traceback__ if isinstance(error, SystemExit | KeyboardInterrupt) else None
    if trace is None:
        return False
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {_code(handler) for handler in handlers if callable(handler)}
    while trace.tb_next is not None:
        interrupted, trace = trace.tb_frame, trace.tb_next
        # A handler may have deleted its argument, or have been replaced since.
        if trace.tb_frame.f_code in codes or _was_given(trace.tb_frame, interrupted):
            return True
    # Python's own handler of Ctrl-C, which a service may have for SIGTERM too, is written in C and has no frame.
    return type(error) is KeyboardInterrupt and signal.default_int_handler in handlers and not _has_raised(trace)


def _code(handler: Any) -> CodeType | None:
    """Return the code of a signal handler, or None if it is not written in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not inspect.isroutine(handler):
        handler = type(handler).__call__
    code: CodeType | None = getattr(handler, "__code__", None)
    return code


def _has_raised(trace: TracebackType) -> bool:
    """Whether a statement of the frame raised the error, and not a function in C that it called."""
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] in _RAISES


def _was_given(frame: FrameType, interrupted: FrameType) -> bool:
    """Whether the function of `frame` was called with its caller's frame, as only signal handlers are."""
    code: CodeType = frame.f_code
    if not code.co_flags & inspect.CO_NEWLOCALS:  # the body of a module
        return False
    given = list(frame.f_locals.values())
    return any(one is interrupted or (type(one) is tuple and any(part is interrupted for part in one)) for one in given)


def defer(error: BaseException) -> None:
    """Keep an exit of a handler that a hook has raised, for the engine that called the hook. A loop that runs in this
    thread is ended by it, as if the handler had interrupted the loop itself."""
    if not deferred:
        deferred.append(error)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        loop.call_soon(raise_deferred)


def take_deferred() -> BaseException | None:
    """Take the exit that is kept. Returns None if there is none, or if this is not the main thread."""
    return deferred.pop() if deferred and threading.current_thread() is threading.main_thread() else None


def raise_deferred() -> None:
    """Raise the exit that is kept, if there is one and this is the main thread."""
    error = take_deferred()
    if error is not None:
        raise error
