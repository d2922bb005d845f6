"""Hooks for every engine of the process, for programs that are instrumented from outside."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from flowcore import AsyncEngine, Engine, Workflow
from flowcore.events import Event, RunStarted, add_process_hook, remove_process_hook

from .conftest import MakeDriver


class Counting:
    """Counts runs."""

    wants = frozenset[type[Event]]({RunStarted})

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, event: Any) -> None:
        self.runs += 1


class CountingToo(Counting):
    """Another class, which is one of the same."""


@pytest.fixture
def everywhere() -> Iterator[Counting]:
    hook = Counting()
    add_process_hook(hook)
    yield hook
    remove_process_hook(hook)


@pytest.fixture
def wf() -> Workflow:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: None)
    return wf


def test_every_engine_emits_it(everywhere: Counting, make_driver: MakeDriver, wf: Workflow) -> None:
    make_driver().run(wf)
    make_driver(lambda event: None).run(wf)
    wf.run(hooks=())
    assert everywhere.runs == 3


@pytest.mark.parametrize("own", [Counting, CountingToo])
def test_an_engine_with_one_of_the_same_class_does_without(
    own: type[Counting], everywhere: Counting, make_driver: MakeDriver, wf: Workflow
) -> None:
    hook = own()
    make_driver(hook).run(wf)
    assert (hook.runs, everywhere.runs) == (1, 0)


def test_of_functions_each_is_a_hook_of_its_own(make_driver: MakeDriver, wf: Workflow) -> None:
    seen: list[str] = []

    def one(event: Any) -> None:
        seen.append(f"one {type(event).__name__}")

    def other(event: Any) -> None:
        seen.append(f"other {type(event).__name__}")

    add_process_hook(one)
    add_process_hook(one)
    try:
        make_driver(other).run(wf)
        make_driver(one).run(wf)
    finally:
        remove_process_hook(one)
    assert (seen.count("one RunStarted"), seen.count("other RunStarted")) == (2, 1)


def test_one_that_is_removed_hears_nothing_of_later_engines(everywhere: Counting, wf: Workflow) -> None:
    early = Engine()
    remove_process_hook(everywhere)
    remove_process_hook(everywhere)
    Engine().run(wf)
    asyncio.run(run_async(wf))
    assert everywhere.runs == 0
    early.run(wf)
    assert everywhere.runs == 1


async def run_async(wf: Workflow) -> None:
    async with AsyncEngine() as engine:
        await engine.run(wf)
