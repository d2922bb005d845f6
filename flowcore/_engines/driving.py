"""The loop of a driver that performs the effects of one program, one after another, in a thread or in a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

__all__ = ["drive", "drive_on_loop", "resumed"]

E = TypeVar("E")
T = TypeVar("T")


def drive(program: Generator[E, Any, T], perform: Callable[[E], Any]) -> T:
    """Drive a program in this thread: `perform` each effect that it yields, and send or throw the outcome into it.
    Returns the program's result."""
    answer: Any = None
    failure: BaseException | None = None
    try:
        while True:
            effect = program.send(answer) if failure is None else program.throw(failure)
            answer = failure = None
            try:
                answer = perform(effect)
            except BaseException as error:  # noqa: BLE001 - the program handles it
                failure = error
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        failure = None  # its traceback refers to this frame, which would be a reference cycle


async def drive_on_loop(program: Generator[E, Any, T], perform: Callable[[E], Awaitable[Any]]) -> T:
    """Like `drive`, but in a task, which awaits what `perform` returns."""
    answer: Any = None
    failure: BaseException | None = None
    try:
        while True:
            effect = program.send(answer) if failure is None else program.throw(failure)
            answer = failure = None
            try:
                answer = await perform(effect)
            except BaseException as error:  # noqa: BLE001 - the program handles it
                failure = error
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        failure = None  # as in `drive`


def resumed(program: Generator[E, Any, None], effect: E) -> Generator[E, Any, None]:
    """Continue `program`, which has been resumed once already and has yielded `effect`."""
    try:
        while True:
            effect = program.send((yield effect))
    except StopIteration:
        return
