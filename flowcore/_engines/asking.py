"""The store calls of both engines outside of a run's program: for recovery, operators' verbs and queueing."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeAlias, TypeVar

from .._durable.recovery import Ask as StoreCall
from .._kernel.effects import Ask, Program, Sleep
from ..errors import RunNotFound
from ..stores.base import RunRecord, Store
from ..stores.decide import is_over

__all__ = ["Asking", "asked_on_loop", "cancel_in_store", "perform", "performed", "performed_on_loop"]

T = TypeVar("T")

Asking: TypeAlias = Generator[StoreCall | contextvars.Context, Any, T]
"""A program that yields store calls and is sent what they return or raise. It may also yield a contextvars context, in
which all later calls are made."""


def performed(program: Asking[T], context: contextvars.Context | None = None) -> T:
    """Make, in this thread, the store calls that a program outside of any run yields. Returns the program's result."""
    context = context or contextvars.copy_context()
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            call = program.send(answer) if failure is None else program.throw(failure)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = failure = None
        if isinstance(call, contextvars.Context):
            context = call
            continue
        try:
            answer = context.run(call)
        except BaseException as error:  # noqa: BLE001 - the program handles it
            failure = error


async def performed_on_loop(program: Asking[T], context: contextvars.Context | None = None) -> T:
    """Like `performed`, but in a task: a sync store is called on a thread, an async one is awaited."""
    context = context or contextvars.copy_context()
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            call = program.send(answer) if failure is None else program.throw(failure)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = failure = None
        if isinstance(call, contextvars.Context):
            context = call
            continue
        try:
            answer = await asked_on_loop(call, context)
        except BaseException as error:  # noqa: BLE001 - the program handles it
            failure = error


async def asked_on_loop(call: StoreCall, context: contextvars.Context) -> Any:
    """Call the store outside of any run, without blocking the loop."""
    if inspect.iscoroutinefunction(getattr(call, "func", call)):
        return await asyncio.get_running_loop().create_task(call(), context=context)
    return await asyncio.to_thread(context.run, call)


def perform(program: Program[T], ask: Callable[[str, object], Any]) -> T:
    """Perform, in this thread, a program that only calls the store (through `ask`) and sleeps between the calls.
    Returns the program's result."""
    answer: Any = None
    while True:
        try:
            effect = program.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result
        answer = None
        if isinstance(effect, Ask):
            answer = ask(effect.verb, effect.argument)
        elif isinstance(effect, Sleep):
            time.sleep(effect.seconds)


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
