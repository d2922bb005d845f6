"""`map` of both engines: one run for each item, submitted lazily, with a limit on the runs in flight."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

from ..errors import DefinitionError, FlowcoreError, IdempotencyError, QueueFull, safe_repr
from ..functions import take_one_argument
from ..keys import Key
from ..retry import flag
from ..run import Run
from .aio_handles import AsyncRunFuture
from .handles import RunFuture

__all__ = ["check_batch", "checked_concurrency", "completed", "completed_on_loop", "key_of"]

F = TypeVar("F")
T = TypeVar("T")
_LOOK: Final = 0.01
"""seconds between two attempts to submit a run while the runs of other callers fill the queue"""


def checked_concurrency(given: int | None, default: int) -> int:
    """Return `concurrency=` if it is valid, or `default` if it is None. Raises DefinitionError."""
    if given is None:
        return default
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"concurrency= must be a whole number from 1 up, not {safe_repr(given)}.")
    return given


def check_batch(items: object, values: Any, key: Any, *, ordered: bool, check: bool) -> None:
    """Raise DefinitionError for arguments with which `map` could run nothing."""
    kind = type(items)  # a class has __iter__, but cannot be iterated
    if not hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
        way_out = " Collect them in a list first." if hasattr(items, "__aiter__") else ""
        raise DefinitionError(f"map takes an iterable of items, not {safe_repr(items)}.{way_out}")
    for option, function in (("values", values), ("key", key)):
        if function is not None:
            take_one_argument(function, f"{option}= of map", "the item", sync=True)
    flag(ordered, "ordered=")
    flag(check, "check=")


def key_of(key: Callable[[T], Key | None] | None, item: T) -> Key | None:
    """The idempotency key of an item's run, or None to use the workflow's own (no `key` function was given). Raises
    IdempotencyError if `key` returns None."""
    if key is None:
        return None
    found = key(item)
    if found is None:
        raise IdempotencyError("key= returned None. Return flowcore.NO_KEY for an item whose run has no key.")
    return found


def completed(
    items: Iterable[T], submit: Callable[[T], RunFuture], most: int, *, ordered: bool, works: Callable[[], bool]
) -> Generator[Run, None, None]:
    """Submit a run for each item and yield the Runs. At most `most` runs are in flight or not yet yielded. While the
    engine's queue is full, no further run is submitted.

    `works`: whether this thread is one of the engine's. Such a thread works on the oldest run instead of waiting for
    any. If the generator is closed early, it takes no further item and drops the runs that have not begun.
    """
    done: SimpleQueue[RunFuture] = SimpleQueue()

    def begin(item: T) -> RunFuture:
        future = submit(item)
        if not ordered:
            future.add_done_callback(partial(_put, done, future))
        return future

    batch = _Batch(items, begin, most)
    waiting = batch.waiting
    try:
        while True:
            try:
                batch.fill()
            except QueueFull:
                if works():  # the runs that fill the queue may need this thread
                    raise
                time.sleep(_LOOK)
                continue
            if not waiting:
                return
            if ordered:
                future = waiting[0]
            else:
                if works() and done.empty():
                    waiting[0].exception()
                future = done.get()
            try:
                run = future.result()
            except StopIteration as error:
                raise _unraisable(future.run_id, error) from error
            waiting.remove(future)
            yield run
    finally:
        for future in waiting:
            future.cancel()


class _Batch(Generic[T, F]):
    """The items of a batch, which are taken lazily, and the futures of its runs that were not yielded yet."""

    def __init__(self, items: Iterable[T], submit: Callable[[T], F], most: int) -> None:
        self._items = iter(items)
        self._taken: list[T] = []  # the item that is submitted next, once it was taken
        self._submit = submit
        self._most = most
        self.waiting: deque[F] = deque()

    def fill(self) -> None:
        """Submit runs until `most` are waiting, the queue of the engine is full, or no item is left. Raises QueueFull if
        none is waiting."""
        while len(self.waiting) < self._most:
            self._taken = self._taken or list(itertools.islice(self._items, 1))
            if not self._taken:
                return
            try:
                self.waiting.append(self._submit(self._taken[0]))
            except QueueFull:
                if not self.waiting:
                    raise
                return
            self._taken = []


def _unraisable(run_id: str, error: Exception) -> FlowcoreError:
    """Return the error to raise for a run that failed with an error that would end an iterator."""
    return FlowcoreError(
        f"run {run_id} failed with {type(error).__name__}, which would end the iterator. Pass check=False to get its Run."
    )


def _put(done: SimpleQueue[RunFuture], future: RunFuture, _: Future[Run]) -> None:
    done.put(future)


async def completed_on_loop(
    items: Iterable[T], submit: Callable[[T], AsyncRunFuture], most: int, *, ordered: bool
) -> AsyncGenerator[Run, None]:
    """Like `completed`, but on an event loop. If the generator is closed early, it cancels the runs in flight."""
    batch = _Batch(items, submit, most)
    waiting = batch.waiting
    try:
        while True:
            try:
                batch.fill()
            except QueueFull:
                await asyncio.sleep(_LOOK)
                continue
            if not waiting:
                return
            if not ordered:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            future = waiting[0] if ordered else next(one for one in waiting if one.done())
            try:
                run = await future
            except (StopIteration, StopAsyncIteration) as error:
                raise _unraisable(future.run_id, error) from error
            waiting.remove(future)
            yield run
    finally:
        for future in waiting:
            future.cancel()
        if waiting:
            await asyncio.wait(waiting)
