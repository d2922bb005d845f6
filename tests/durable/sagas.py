"""Sagas whose steps write each effect into a ledger, and the world that they do it in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from flowcore import Backoff, Landed, NotLanded, Retry, Status, Workflow
from tests.durable.ledger import CALLED, Ledger, effects_of

__all__ = ["SAGAS", "Boom", "World", "saga"]


class Boom(Exception):
    """What steps that are meant to fail raise."""


class World:
    """What steps act on: each effect is a line in the ledger, and `point` is told just before and just after it.

    `beaten`: whether the heartbeat has been, for which a slow step waits. `broken`: whether something is out of order
    that will be repaired one day. `asynchronous`: steps are coroutines.
    """

    def __init__(
        self,
        ledger: Ledger,
        point: Callable[[str], None] = lambda label: None,
        *,
        beaten: Callable[[], bool] = lambda: True,
        broken: Callable[[], bool] = lambda: False,
        asynchronous: bool = False,
    ) -> None:
        self._ledger = ledger
        self._point = point
        self._beaten = beaten
        self.broken = broken
        self.asynchronous = asynchronous

    def do(self, ctx: Any) -> str:
        self._point(f"before do {ctx.step}")
        ctx[f"by {ctx.step}"] = ctx.fence
        self._ledger.did(ctx, "do")
        self._point(f"after do {ctx.step}")
        return f"{ctx.step} is done"

    def undo(self, ctx: Any) -> None:
        self._point(f"before undo {ctx.step}")
        self._ledger.did(ctx, "undo")
        self._point(f"after undo {ctx.step}")

    def fail(self, ctx: Any) -> None:
        self._point(f"before do {ctx.step}")
        raise Boom(ctx.step)

    def flaky(self, ctx: Any) -> str:
        """The third attempt goes well."""
        if ctx.attempt < 3:
            self.fail(ctx)
        return self.do(ctx)

    def flaky_undo(self, ctx: Any) -> None:
        """The second attempt goes well."""
        if ctx.attempt < 2:
            self._point(f"before undo {ctx.step}")
            raise Boom(ctx.step)
        self.undo(ctx)

    def while_broken(self, ctx: Any) -> str:
        if self.broken():
            self.fail(ctx)
        return self.do(ctx)

    def slow(self, ctx: Any) -> str:
        result = self.do(ctx)
        while not self._beaten():
            time.sleep(0.002)
        return result

    def undo_while_broken(self, ctx: Any) -> None:
        if self.broken():
            self._point(f"before undo {ctx.step}")
            self._ledger.did(ctx, "failed undo")
            raise Boom(ctx.step)
        self.undo(ctx)

    def look(self, ctx: Any) -> Any:
        """Whether this very step has left its line: what a provider that is asked by step_key would say."""
        lines = effects_of(self._ledger.path).get(ctx["key"], [])
        landed = any(line.step_key == ctx.step_key and line.what == "do" for line in lines)
        return Landed(f"{ctx.step} is done") if landed else NotLanded

    def as_step(self, fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if not self.asynchronous:
            return fn

        async def step(ctx: Any) -> Any:
            CALLED.set(time.monotonic())
            await asyncio.sleep(0)
            return fn(ctx)

        return step


def _chain(world: World, wf: Workflow, **steps: dict[str, Any]) -> None:
    """Steps one after the other, each with an undo, and these options."""
    before: list[str] = []
    for name, options in steps.items():
        step = world.as_step(options.pop("fn", world.do))
        wf.add_step(name, step, depends_on=before, compensate=world.as_step(world.undo), **options)
        before = [name]


def success(world: World) -> Workflow:
    wf = Workflow("success")
    _chain(world, wf, a={}, b={}, c={})
    return wf


def compensated(world: World) -> Workflow:
    wf = Workflow("compensated")
    _chain(world, wf, a={}, b={}, c={}, d={"fn": world.fail})
    return wf


def retried(world: World) -> Workflow:
    """Retries of steps, of one that fails for good, and of an undo."""
    wf = Workflow("retried")
    again, undo = Retry(3, Backoff.fixed(0.001)), world.as_step(world.flaky_undo)
    wf.add_step("a", world.as_step(world.do), compensate=world.as_step(world.undo))
    b = wf.add_step("b", world.as_step(world.flaky), depends_on="a", retry=again)
    b.compensate(retry=2)(undo)
    wf.add_step("c", world.as_step(world.fail), depends_on="b", retry=2)
    return wf


def fan_out(world: World) -> Workflow:
    wf = Workflow("fan_out")
    _fan(world, wf)
    wf.add_step("join", world.as_step(world.do), depends_on=list("xyz"), compensate=world.as_step(world.undo))
    return wf


def parallel_undo(world: World) -> Workflow:
    wf = Workflow("parallel_undo", parallel_undo=True)
    _fan(world, wf)
    wf.add_step("join", world.as_step(world.fail), depends_on=list("xyz"))
    return wf


def failed_branch(world: World) -> Workflow:
    """One of three branches fails while the others go on."""
    wf = Workflow("failed_branch")
    _fan(world, wf)
    wf.add_step("late", world.as_step(world.do), depends_on="x", compensate=world.as_step(world.undo))
    wf.add_step("bad", world.as_step(world.fail), depends_on="root")
    return wf


def _fan(world: World, wf: Workflow) -> None:
    do, undo = world.as_step(world.do), world.as_step(world.undo)
    wf.add_step("root", do, compensate=undo)
    for name in "xyz":
        wf.add_step(name, do, depends_on="root", compensate=undo)


def past_pivot(world: World) -> Workflow:
    wf = Workflow("past_pivot")
    _chain(world, wf, a={}, p={"pivot": True}, c={"fn": world.while_broken}, d={})
    return wf


def undo_on_crash(world: World) -> Workflow:
    wf = Workflow("undo_on_crash")
    _chain(world, wf, a={}, b={"on_crash": "undo"}, c={})
    return wf


def hold_on_crash(world: World) -> Workflow:
    wf = Workflow("hold_on_crash")
    _chain(world, wf, a={}, b={"on_crash": "hold"}, c={})
    return wf


def verified(world: World) -> Workflow:
    wf = Workflow("verified")
    verify = world.as_step(world.look)
    _chain(world, wf, a={"verify": verify}, b={"verify": verify}, c={"verify": verify}, d={"fn": world.fail})
    return wf


def held(world: World) -> Workflow:
    """Its undo fails until it is repaired."""
    wf = Workflow("held")
    wf.add_step("a", world.as_step(world.do), compensate=world.as_step(world.undo))
    wf.add_step("b", world.as_step(world.do), depends_on="a", compensate=world.as_step(world.undo_while_broken))
    wf.add_step("c", world.as_step(world.fail), depends_on="b")
    return wf


def skipping(world: World) -> Workflow:
    wf = Workflow("skipping")
    _chain(world, wf, a={}, b={"when": lambda ctx: False}, c={})
    return wf


def slow(world: World) -> Workflow:
    """Long enough for a heartbeat."""
    wf = Workflow("slow")
    _chain(world, wf, a={}, b={"fn": world.slow}, c={"fn": world.fail})
    return wf


def waits(world: World) -> Workflow:
    """A value, which may be sent to it, and a while, each of which ends by itself soon; and an attempt that is due later."""
    wf = Workflow("waits")
    do, undo = world.as_step(world.do), world.as_step(world.undo)
    wf.add_step("a", do, compensate=undo)
    wf.wait("approved", depends_on="a", timeout=0.15, default="no one")
    wf.sleep("nap", 0.02, depends_on="approved")
    wf.add_step("b", world.as_step(world.flaky), depends_on="nap", compensate=undo, retry=Retry(3, Backoff.fixed(0.02)))
    wf.add_step("c", do, depends_on="b", compensate=undo)
    return wf


SAGAS: dict[str, tuple[Callable[[World], Workflow], frozenset[Status]]] = {
    build.__name__: (build, frozenset(ends))
    for build, *ends in (
        (success, Status.SUCCESS),
        (compensated, Status.COMPENSATED),
        (retried, Status.COMPENSATED),
        (fan_out, Status.SUCCESS),
        (parallel_undo, Status.COMPENSATED),
        (failed_branch, Status.COMPENSATED),
        (past_pivot, Status.SUCCESS),
        (undo_on_crash, Status.SUCCESS, Status.COMPENSATED),
        (hold_on_crash, Status.SUCCESS, Status.COMPENSATED),
        (verified, Status.COMPENSATED),
        (held, Status.COMPENSATED),
        (skipping, Status.SUCCESS),
        (slow, Status.COMPENSATED),
        (waits, Status.SUCCESS),
    )
}
"""by name: what builds it, and how its runs may end"""


def saga(name: str, world: World) -> Workflow:
    return SAGAS[name][0](world)
