"""Threads, asyncio and the simulator agree on a corpus of 200 random workflows.

Each step has the same events in the same order, the same result and the same undo. The runs have the same partial
order, and the same total order if they are chains or run one step at a time. In a workflow whose steps run beside each
other, only the last step fails, after all others are over; otherwise, chance would decide which steps had run by then.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from flowcore import AsyncEngine, Context, Engine, Run, Workflow
from flowcore.events import (
    EngineStarted,
    Event,
    MaintenanceFinished,
    MaintenanceStarted,
    RunSubmitted,
    StoreCalled,
    StoreSurveyed,
    WorkflowRegistered,
)
from flowcore.testing import Fault, no_waiting, simulate

from .specs import Draw, Effect, Policy, Seeded, Spec, StepSpec, UndoSpec, built

CORPUS = 200
TIMEOUT = 0.02
KINDS = ("chain", "one at a time", "all goes well", "the last one fails")
DRIVERS = ("threads", "asyncio", "coroutines")
TOTAL = {"chain", "one at a time"}


# -- the corpus --------------------------------------------------------------------------------------------------------


def _script(draw: Draw, *, fails: bool | None) -> tuple[tuple[str, ...], Policy]:
    """Draw a script and its policy. The step fails for good if `fails`; None: perhaps. Else it succeeds in the end."""
    words = ("value", "other", "later")
    attempts = draw.integer(1, 3)
    backoff, delay = draw.choice((("none", 0.0), ("fixed", 0.5), ("growing", 0.25)))
    policy = Policy(attempts, backoff, delay, "any")
    if draw.chance(20) if fails is None else fails:
        last = draw.choice(("value", "other", "fatal", "cancel", "exit"))
        bad = tuple(draw.choice(words) for _ in range(draw.integer(0, attempts - 1)))
        return (*bad, last), policy
    return (*(draw.choice(words) for _ in range(draw.integer(0, attempts - 1))), "ok"), policy


def corpus(number: int) -> tuple[str, Spec]:
    """Return the kind and the spec of one workflow of the corpus."""
    kind = KINDS[number % len(KINDS)]
    draw = Seeded(number)
    steps: list[StepSpec] = []
    count = draw.integer(2, 7)
    for index in range(count):
        names = [step.name for step in steps]
        last = index == count - 1 and kind == "the last one fails"
        depends = names[-1:] if kind == "chain" else names if last else [name for name in names if draw.chance(35)]
        script, policy = _script(draw, fails=last if kind not in TOTAL else None)
        when = draw.choice(("yes", "no", "raises")) if draw.chance(15) and not last else None
        undo = None
        if draw.chance(80):
            undone = draw.choice((("ok",), ("ok",), ("value", "ok"), ("value",)))
            undo = UndoSpec(undone, Policy(draw.integer(1, 2)))
        steps.append(
            StepSpec(
                chr(ord("a") + index),
                tuple(depends),
                script,
                policy,
                60.0 if draw.chance(20) else None,
                60.0 if draw.chance(10) else None,
                "no" if when == "raises" and kind not in TOTAL else when,
                undo,
                draw.choice((True, False)) if draw.chance(20) else None,
                draw.chance(5) and kind in TOTAL,
            )
        )
    faults: tuple[tuple[str, Fault], ...] = ()
    hangs = [step for step in steps if step.when is None and step.undo is not None]
    if kind in TOTAL and hangs and draw.chance(20):
        chosen = draw.choice(hangs)
        steps[steps.index(chosen)] = replace(chosen, timeout=TIMEOUT, script=("ok",))
        faults = ((chosen.name, Fault.TIMEOUT),)
    return kind, Spec(
        number,
        tuple(steps),
        600.0 if draw.chance(20) else None,
        "wait" if kind not in TOTAL else draw.choice(("wait", "cancel")),
        draw.choice(("done", "attempted")),
        draw.chance(30),
        1 if kind == "one at a time" else None,
        faults=faults,
    )


# -- the drivers -------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    events: list[Event] = field(default_factory=list[Event])
    effects: list[Effect] = field(default_factory=list[Effect])
    run: Run | None = None
    """None if a BaseException was raised instead"""


def made_real(spec: Spec, effects: list[Effect], *, coroutines: bool) -> Workflow:
    """Return the workflow of a spec. Its late steps really are late. `coroutines`: all functions are async."""
    wf = built(spec, effects)
    late = {name for name, _ in spec.faults}
    for step in wf.steps:
        if step.name in late:
            step.fn = _late(step.fn)
        elif coroutines:
            step.fn = _suspending(step.fn)
        if coroutines and step.compensation is not None:
            step.compensation = replace(step.compensation, fn=_suspending(step.compensation.fn))
        if coroutines and step.when is not None:
            step.when = _suspending(step.when)
    return wf


def _late(fn: Any) -> Any:
    @functools.wraps(fn)
    def late(ctx: Context) -> Any:
        while not ctx.cancelled:
            time.sleep(0.001)
        return fn(ctx)

    return late


def _suspending(fn: Any) -> Any:
    @functools.wraps(fn)
    async def suspending(ctx: Context) -> Any:
        await asyncio.sleep(0)
        return fn(ctx)

    return suspending


def driven(driver: str, spec: Spec, *, watched: bool = True) -> Told:
    reported = Told()
    hooks = [reported.events.append] if watched else []
    wf = made_real(spec, reported.effects, coroutines=driver == "coroutines")
    try:
        if driver == "threads":
            with Engine(hooks=hooks) as engine:
                reported.run = engine.run(wf, check=False)
        else:

            async def main() -> Run:
                async with AsyncEngine(hooks=hooks) as engine:
                    return await engine.run(wf, check=False)

            reported.run = asyncio.run(main())
    except SystemExit:
        assert any("exit" in step.script for step in spec.steps)
    return reported


def simulated(spec: Spec) -> Told:
    reported = Told()
    simulation = simulate(built(spec, reported.effects), seed=spec.seed, faults=dict(spec.faults))
    reported.events, reported.run = simulation.events, simulation.run
    return reported


# -- the comparison ----------------------------------------------------------------------------------------------------

FACTS = ("step", "attempt", "max_attempts", "attempts", "undo", "outcome", "reason", "depends_on", "trigger")


def fact(event: Any) -> tuple[Any, ...]:
    """Return the contents of an event, apart from times and ids."""
    error = getattr(event, "error", None)
    said = [str(getattr(event, name)) for name in FACTS if hasattr(event, name)]
    skipped = sorted(getattr(event, "skipped", ()))  # Steps that ran beside each other are skipped in any order.
    return type(event).__name__, *said, *skipped, type(error).__name__, getattr(event, "delay", None)


def facts(events: Sequence[Event], step: str | None = None) -> list[tuple[Any, ...]]:
    """Return the contents of the events of a step, in order, or of all events of the run if `step` is None."""
    foreign = (EngineStarted, WorkflowRegistered, RunSubmitted, MaintenanceStarted, MaintenanceFinished, StoreSurveyed)
    return [
        fact(event)
        for event in events
        if not isinstance(event, foreign) and (step is None or getattr(event, "step", None) == step)
    ]


def reports(run: Run) -> dict[str, Any]:
    return {name: (r.status, r.attempts, r.undo, r.completed_late) for name, r in run.steps.items()}


def order_broken(spec: Spec, events: Sequence[Event]) -> Iterator[str]:
    """Yield where the order is broken: a step must start after its dependencies, and be undone before them."""
    index: dict[tuple[str, str], int] = {}
    for number, event in enumerate(events):
        index.setdefault((type(event).__name__, getattr(event, "step", "")), number)
    for step in spec.steps:
        for other in step.depends_on:
            over = index.get(("StepFinished", other), index.get(("StepSkipped", other)))
            if ("StepReady", step.name) in index and (over is None or over > index["StepReady", step.name]):
                yield f"{step.name} before {other}"
            first, then = index.get(("CompensationFinished", step.name)), index.get(("CompensationStarted", other))
            if first is not None and then is not None and first > then:
                yield f"{other} is undone before {step.name}"
    last = max((number for (kind, _), number in index.items() if kind == "StepFinished"), default=0)
    if any(kind == "CompensationStarted" and number < last for (kind, _), number in index.items()):
        yield "undone before all was over"


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_drivers_agree(driver: str, kind: str) -> None:
    numbers = [number for number in range(CORPUS) if KINDS[number % len(KINDS)] == kind]
    with no_waiting():
        for number in numbers:
            _, spec = corpus(number)
            here = f"workflow {number} of the corpus ({kind}), {driver}"
            expected, reported = simulated(spec), driven(driver, spec)
            alone = driven(driver, spec, watched=False)
            assert expected.run is not None
            for step in spec.steps:
                assert facts(reported.events, step.name) == facts(expected.events, step.name), (
                    f"{here}: step {step.name}"
                )
            for one in (expected, reported):
                assert not list(order_broken(spec, one.events)), here
            if kind in TOTAL:
                assert facts(reported.events) == facts(expected.events), here
            else:
                assert sorted(map(str, facts(reported.events))) == sorted(map(str, facts(expected.events))), here
            for one in (reported, alone):
                effects = [(e.what, e.step, e.attempt, e.did) for e in one.effects]
                wanted = [(e.what, e.step, e.attempt, e.did) for e in expected.effects]
                assert effects == wanted if kind in TOTAL else sorted(effects) == sorted(wanted), here
                if one.run is None:
                    continue
                assert (one.run.status, one.run.failed_step) == (expected.run.status, expected.run.failed_step), here
                assert type(one.run.error) is type(expected.run.error), here
                assert (one.run.results, one.run.held) == (expected.run.results, expected.run.held), here
                assert set(one.run.undone) == set(expected.run.undone), here
                assert reports(one.run) == reports(expected.run), here
                if kind in TOTAL:
                    assert one.run.undone == expected.run.undone, here


# -- with and without the inline path ----------------------------------------------------------------------------------

_open: ContextVar[tuple[str, ...]] = ContextVar("open", default=())
"""the open scopes, from the outermost to the innermost"""


OF_THE_ENGINE = (
    EngineStarted,
    WorkflowRegistered,
    StoreCalled,
    MaintenanceStarted,
    MaintenanceFinished,
    StoreSurveyed,
)
"""events that belong to no run; an engine on threads surveys its store at times of its own"""


class Scribe:
    """A hook that notes events and calls of user code, with the scopes open around them. Each start opens a scope."""

    def __init__(self) -> None:
        self.notes: list[tuple[str | None, tuple[Any, ...], tuple[str, ...]]] = []
        """the step, the contents, and the open scopes of each note"""

    def __call__(self, event: Any) -> Any:
        if isinstance(event, OF_THE_ENGINE):
            return None
        step = getattr(event, "step", None)
        self.notes.append((step, fact(event), _open.get()))
        return self.scope(f"{type(event).__name__} {step}") if type(event).__name__.endswith("Started") else None

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        token = _open.set((*_open.get(), name))
        try:
            yield
        finally:
            self.notes.append((name.split()[1], ("left", name), _open.get()))
            _open.reset(token)

    def noting(self, fn: Any) -> Any:
        """Return `fn`, with each call of it noted."""

        @functools.wraps(fn)
        def noted(ctx: Context) -> Any:
            self.notes.append((ctx.step, ("called", ctx.attempt), _open.get()))
            return fn(ctx)

        return noted

    def of(self, step: str | None) -> list[Any]:
        return [what for of, *what in self.notes if of == step]


def scribed(driver: str, spec: Spec, key: str | None) -> Scribe:
    scribe, effects = Scribe(), list[Effect]()
    wf = made_real(spec, effects, coroutines=driver == "coroutines")
    for step in wf.steps:
        step.fn = scribe.noting(step.fn) if driver != "at once" else _at_once(scribe.noting(step.fn))
    with suppress(SystemExit):
        if driver == "threads":
            with Engine(hooks=[scribe]) as engine:
                engine.run(wf, check=False, idempotency_key=key)
        else:
            asyncio.run(AsyncEngine(hooks=[scribe]).run(wf, check=False, idempotency_key=key))
    return scribe


def _at_once(fn: Any) -> Any:
    @functools.wraps(fn)
    async def at_once(ctx: Context) -> Any:
        return fn(ctx)

    return at_once


@pytest.mark.parametrize("driver", [*DRIVERS, "at once"])
def test_runs_that_need_no_driver_are_reported_like_those_that_do(
    driver: str, share: Callable[[Iterable[int]], Iterator[int]]
) -> None:
    """Only a run with a key or a deadline needs a driver. All runs have the same events, scopes and order."""
    with no_waiting():
        for number in share(range(CORPUS)):
            kind, spec = corpus(number)
            if driver == "at once" and spec.faults:
                continue  # A coroutine that never waits is never late.
            alone = scribed(driver, replace(spec, deadline=None), None)
            with_key = scribed(driver, replace(spec, deadline=None), "k")
            with_deadline = scribed(driver, replace(spec, deadline=600.0), None)
            for other in (with_key, with_deadline):
                if kind in TOTAL:
                    assert alone.notes == other.notes, f"workflow {number} of the corpus ({kind}), {driver}"
                for step in (None, *(step.name for step in spec.steps)):
                    assert alone.of(step) == other.of(step), (
                        f"workflow {number} of the corpus ({kind}), {driver}: {step}"
                    )


def test_the_corpus_meets_what_can_go_wrong() -> None:
    statuses = [simulated(corpus(number)[1]).run for number in range(CORPUS)]
    seen = {str(run.status) for run in statuses if run is not None}
    assert seen == {"success", "failure", "compensated", "compensation_failed", "incomplete"}
    assert sum(bool(corpus(number)[1].faults) for number in range(CORPUS)) > 8
