"""What is run: graphs of steps that know no engine, so that every subject runs the same ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

__all__ = ["ASYNC", "SYNC", "Boom", "Flavour", "Fn", "Step", "Work", "chain", "fan", "parallel_chains"]

Fn = Callable[[Any], Any]


class Boom(Exception):
    """What steps that are meant to fail raise."""


class Step(NamedTuple):
    """`fn(ctx)`, to be called once all of `after` are over, at most `attempts` times; `undo(ctx)` takes it back."""

    name: str
    fn: Fn
    after: tuple[str, ...] = ()
    undo: Fn | None = None
    attempts: int = 1


class Work(NamedTuple):
    """One run's steps, each after those it depends on; `calls`: how often a run calls a step or an undo; `fails`: a run
    raises Boom; `parallel`: it makes no sense for who runs one step at a time."""

    steps: tuple[Step, ...]
    calls: int
    is_async: bool
    fails: bool = False
    parallel: bool = False

    @property
    def needs(self) -> set[str]:
        """What a subject must be able to do to run this."""
        needs: set[str] = set()
        if self.fails:
            needs.add("undo")
        if any(step.attempts > 1 for step in self.steps):
            needs.add("retry")
        if self.parallel:
            needs.add("parallel")
        if any(len(step.after) > 1 for step in self.steps):
            needs.add("joins")
        return needs

    def counted(self, calls: list[str]) -> Work:
        """The same work, which also notes each call."""

        def noting(name: str, fn: Fn) -> Fn:
            if self.is_async:

                async def noted_async(ctx: Any) -> Any:
                    calls.append(name)
                    return await fn(ctx)

                return noted_async

            def noted(ctx: Any) -> Any:
                calls.append(name)
                return fn(ctx)

            return noted

        steps = (
            step._replace(fn=noting(step.name, step.fn), undo=step.undo and noting(f"undo {step.name}", step.undo))
            for step in self.steps
        )
        return self._replace(steps=tuple(steps))


class Flavour(Protocol):
    """The same step functions, sync or async."""

    is_async: bool

    def noop(self, ctx: Any) -> Any: ...
    def boom(self, ctx: Any) -> Any: ...
    def pause(self, seconds: float) -> Fn: ...
    def third_time_lucky(self) -> Fn: ...


class _Sync:
    is_async = False

    @staticmethod
    def noop(ctx: Any) -> None:
        pass

    @staticmethod
    def boom(ctx: Any) -> None:
        raise Boom

    @staticmethod
    def pause(seconds: float) -> Fn:
        def pause(ctx: Any) -> None:
            time.sleep(seconds)

        return pause

    @staticmethod
    def third_time_lucky() -> Fn:
        calls = 0

        def flaky(ctx: Any) -> None:
            nonlocal calls
            calls += 1
            if calls % 3:
                raise Boom

        return flaky


class _Async:
    is_async = True

    @staticmethod
    async def noop(ctx: Any) -> None:
        pass

    @staticmethod
    async def boom(ctx: Any) -> None:
        raise Boom

    @staticmethod
    def pause(seconds: float) -> Fn:
        async def pause(ctx: Any) -> None:
            await asyncio.sleep(seconds)

        return pause

    @staticmethod
    def third_time_lucky() -> Fn:
        calls = 0

        async def flaky(ctx: Any) -> None:
            nonlocal calls
            calls += 1
            if calls % 3:
                raise Boom

        return flaky


SYNC: Flavour = _Sync()
ASYNC: Flavour = _Async()


def _links(fns: Iterable[Fn], prefix: str) -> list[Step]:
    steps: list[Step] = []
    for number, fn in enumerate(fns):
        steps.append(Step(f"{prefix}{number}", fn, (steps[-1].name,) if steps else ()))
    return steps


def chain(fns: Iterable[Fn], *, is_async: bool) -> Work:
    """One after the other."""
    steps = tuple(_links(fns, "s"))
    return Work(steps, len(steps), is_async)


def parallel_chains(chains: Iterable[Iterable[Fn]], *, is_async: bool) -> Work:
    """Several chains that have nothing to do with each other."""
    steps = tuple(step for letter, fns in zip("abcdefghij", chains, strict=False) for step in _links(fns, letter))
    return Work(steps, len(steps), is_async, parallel=True)


def fan(width: int, fn: Fn, *, is_async: bool) -> Work:
    """One, then `width` that depend on it, then one that depends on all of them."""
    middle = tuple(Step(f"m{number}", fn, ("first",)) for number in range(width))
    steps = (Step("first", fn), *middle, Step("last", fn, tuple(step.name for step in middle)))
    return Work(steps, len(steps), is_async)
