"""Awaiting user code in a contextvars context of its own, and finding out what cancelled the task that it runs in."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

from .._kernel.effects import Outcome

__all__ = ["InContext", "is_process_stopping"]


class InContext:
    """Awaits a coroutine that has begun, in the current task but in a contextvars context of its own.

    Awaiting this returns an Outcome: an error of the coroutine is part of it and is not raised. An exception that is
    thrown in from outside, such as a cancellation, is thrown into the coroutine.
    """

    __slots__ = ("_context", "_coroutine", "_waiting", "leaked")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, waiting: Any) -> None:
        self._coroutine = coroutine
        self._context = context
        self._waiting = waiting
        self.leaked = 0
        """cancellations that TaskGroups in the coroutine requested for themselves and may not have taken back"""

    def __await__(self) -> Generator[Any, Any, Outcome]:
        coroutine, enter, waiting = self._coroutine, self._context.run, self._waiting
        while True:
            try:
                yield waiting
            except GeneratorExit:
                enter(coroutine.close)
                raise
            except BaseException as thrown:  # noqa: BLE001 - the coroutine handles it
                resume: Callable[..., Any] = coroutine.throw
                value: Any = thrown
            else:
                resume, value = coroutine.send, None
            try:
                waiting = enter(resume, value)
            except StopIteration as stop:
                return stop.value, None
            except BaseException as error:  # noqa: BLE001 - the program judges it
                return None, error
            finally:
                if value is not None and _is_own_cancellation_of_a_group(value):
                    self.leaked += 1


def _is_own_cancellation_of_a_group(thrown: BaseException) -> bool:
    """Whether a TaskGroup has just caught `thrown`, after it had itself cancelled its task because a child failed.

    Before Python 3.13, a group that is waiting for its children at that moment does not take its cancellation back with
    Task.uncancel(). Task.cancelling() then reports a cancellation that nothing outside of the step requested.
    """
    if sys.version_info >= (3, 13) or thrown.__traceback__ is None:
        return False
    frame = thrown.__traceback__.tb_frame  # the frame that caught it: a traceback begins there
    if frame.f_code is not asyncio.TaskGroup.__aexit__.__code__:
        return False
    return bool(frame.f_locals["self"]._parent_cancel_requested)


def is_process_stopping() -> bool:
    """Whether the cancellation that has just arrived means that the process stops: `asyncio.run` cancels all tasks when
    its main task is over, and turns a Ctrl-C into a cancellation of its main task."""
    handler = signal.getsignal(signal.SIGINT)
    runner = getattr(getattr(handler, "func", None), "__self__", None)
    if isinstance(runner, asyncio.Runner) and vars(runner).get("_interrupt_count", 0):
        return True
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_cancel_all_tasks":
            return True
        frame = frame.f_back
    return False
