"""The loop that drives a program which only calls a store, in a thread and in a task."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Generator
from typing import Any

import pytest

from flowcore._engines.driving import drive, drive_on_loop


class Away(Exception):
    """The error of a call."""


def fails() -> object:
    raise Away


def in_a_task(program: Generator[Any, Any, Any], perform: Callable[[Any], Any]) -> Any:
    async def perform_on_loop(effect: Any) -> Any:
        return perform(effect)

    coroutine = drive_on_loop(program, perform_on_loop)
    try:
        coroutine.send(None)  # it never suspends; a loop would keep the error a little longer
    except StopIteration as stop:
        return stop.value
    raise AssertionError


@pytest.mark.parametrize("driven", [drive, in_a_task])
def test_a_program_is_sent_what_a_call_returns_and_raises(driven: Callable[..., Any]) -> None:
    def program() -> Generator[Callable[[], object], Any, list[object]]:
        seen: list[object] = [(yield lambda: 1)]
        try:
            yield fails
        except Away as error:
            seen.append(type(error))
        return [*seen, (yield lambda: 2)]

    assert driven(program(), lambda call: call()) == [1, Away, 2]


@pytest.mark.parametrize("driven", [drive, in_a_task])
def test_an_error_that_leaves_a_program_is_part_of_no_reference_cycle(driven: Callable[..., Any]) -> None:
    def program() -> Generator[Callable[[], object]]:
        yield fails

    gc.collect()
    gc.disable()
    try:
        left: weakref.ref[Away] | None = None
        try:
            driven(program(), lambda call: call())
        except Away as error:
            left = weakref.ref(error)
        assert left is not None
        assert left() is None
    finally:
        gc.enable()
