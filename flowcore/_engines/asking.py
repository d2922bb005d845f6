"""Drivers for programs that only call the store: recovery, schedules and what operators do."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from .._durable.recovery import StoreCall
from ..errors import RunNotFound
from ..stores.base import RunRecord, Store
from ..stores.decide import is_over
from .driving import drive, drive_on_loop

__all__ = [
    "Asking",
    "CallScope",
    "StoreCall",
    "call_on_loop",
    "cancel_in_store",
    "make_calls",
    "make_calls_on_loop",
]

T = TypeVar("T")


class CallScope(NamedTuple):
    """How store calls are made: in this contextvars context, each within `observe(call)`."""

    context: contextvars.Context
    observe: Callable[[StoreCall], AbstractContextManager[object]] = nullcontext


Asking: TypeAlias = Generator[StoreCall | CallScope, Any, T]
"""A program that yields store calls and is sent what they return or raise. A CallScope that it yields applies to all
later calls."""


def make_calls(program: Asking[T], context: contextvars.Context | None = None) -> T:
    """Make, in this thread, the store calls that a program outside of any run yields. Returns the program's result."""
    scope = CallScope(context or contextvars.copy_context())

    def make(call: StoreCall | CallScope) -> Any:
        nonlocal scope
        if isinstance(call, CallScope):
            scope = call
            return None
        with scope.observe(call):
            return scope.context.run(call)

    return drive(program, make)


async def make_calls_on_loop(program: Asking[T], context: contextvars.Context | None = None) -> T:
    """Like `make_calls`, but in a task: a sync store is called on a thread, an async one is awaited."""
    scope = CallScope(context or contextvars.copy_context())

    async def make(call: StoreCall | CallScope) -> Any:
        nonlocal scope
        if isinstance(call, CallScope):
            scope = call
            return None
        with scope.observe(call):
            return await call_on_loop(call, scope.context)

    return await drive_on_loop(program, make)


async def call_on_loop(call: StoreCall, context: contextvars.Context) -> Any:
    """Call the store outside of any run, without blocking the loop."""
    if inspect.iscoroutinefunction(getattr(call, "func", call)):
        return await asyncio.get_running_loop().create_task(call(), context=context)
    answer, failure = await asyncio.to_thread(context.run, _called, call)
    try:
        if failure is not None:
            raise failure
        return answer
    finally:
        del failure  # its traceback refers to this frame, which would be a reference cycle


def _called(call: StoreCall) -> tuple[Any, BaseException | None]:
    """Make a call on a thread. Its error is part of the reply, because a future cannot raise StopIteration."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - it is raised on the loop
        return None, error


def cancel_in_store(store: Store, run_id: str | None, key: str | None) -> Asking[bool]:
    """Have the owner of a run on a durable store cancel it. Returns False if there is no such run or it is over."""
    try:
        wanted: str = key if key is not None else (yield partial(store.get_run, run_id or "")).key
        record: RunRecord | None = yield partial(store.find, wanted)
        if record is None or (is_over(record.status) and not record.held):
            return False
        yield partial(store.cancel, wanted)
    except RunNotFound:
        return False
    return True
