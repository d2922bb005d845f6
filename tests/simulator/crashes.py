"""Random stories of crashes: when each process starts, where it dies or pauses, and which faults the network has.

`python -m tests.simulator.crashes 4711` prints what happens in one of them; `0-1000` looks for broken promises in many.
"""

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from flowcore import Workflow
from flowcore.testing.acts import Caller, Exit, Halt
from flowcore.testing.network import SimulatedStore, StoreCall, Weather
from flowcore.testing.story import Story, play

from .specs import Draw, Effect, Policy, Seeded, Spec, StepSpec, built, drawn

_LONG = 100.0
"""seconds of backoff, which no process that must stop may wait for"""


@dataclass(frozen=True)
class Plot:
    """A workflow, the callers of its run, and the faults that strike them."""

    spec: Spec
    lease: float
    callers: tuple[Caller, ...]
    weather: Weather
    park_after: float = math.inf


@dataclass
class Tale:
    """A plot, with the story that came of it."""

    plot: Plot
    story: Story
    effects: list[Effect] = field(repr=False)
    workflow: Workflow = field(repr=False)
    store: SimulatedStore = field(repr=False)

    @property
    def spec(self) -> Spec:
        return self.plot.spec


# -- drawing -----------------------------------------------------------------------------------------------------------


def _step(draw: Draw, step: StepSpec) -> StepSpec:
    return replace(
        step,
        on_crash=draw.choice(("retry", "retry", "retry", "retry", "undo", "hold")),
        verify=draw.choice(("truth", "truth", "none", "raises")) if draw.chance(30) else None,
    )


def _patient(step: StepSpec) -> StepSpec:
    undo = step.undo
    if undo is not None:
        undo = replace(undo, script=("value", "ok"), policy=Policy(3, "fixed", _LONG))
    policy = step.policy if step.policy.attempts == 1 else replace(step.policy, backoff="fixed", delay=_LONG)
    return replace(step, policy=policy, undo=undo)


def _halt(draw: Draw, lease: float) -> Halt | None:
    if not draw.chance(75):
        return None
    at = draw.choice(("store", "call"))
    seconds = lease * draw.choice((0.3, 1.2, 1.6, 3.0)) if draw.chance(35) else float("inf")
    return Halt(at, draw.integer(1, draw.choice((4, 8, 16))), draw.chance(50), seconds)


def _exit(draw: Draw) -> Exit:
    at = draw.choice(("driver", "driver", "clock", "clock", "call", "hook", "store"))
    return Exit(at, draw.integer(1, draw.choice((5, 10, 30))))


def _caller(draw: Draw, lease: float, key: str | None, number: int) -> Caller:
    return Caller(
        after=lease * draw.choice((0.1, 1.1, 1.1, 1.5, 2.5)) if number else 0.0,
        beside=number > 0 and draw.chance(15),
        recovers=number > 0 and (key is None or draw.chance(30)),
        wait=lease * 3 if draw.chance(20) else None,
        decides=draw.choice(("resume", "undo", "hold", "release")) if number and draw.chance(10) else None,
        halt=_halt(draw, lease),
        beats=draw.chance(90),
    )


def _weather(draw: Draw, lease: float) -> Weather:
    if draw.chance(40):
        return Weather()
    outages: tuple[tuple[float, float], ...] = ()
    if draw.chance(30):
        begins = draw.integer(0, 40) / 10
        outages = ((begins, begins + lease * draw.choice((0.1, 0.5, 1.3, 3.0))),)
    return Weather(
        draw.choice((0.01, 0.1, 0.4)),
        draw.choice((0.0, 0.0, 0.05, 0.2)),
        draw.choice((0.0, 0.0, 0.1)),
        draw.choice((0.05, 0.5)),
        outages,
    )


def plotted(draw: Draw, seed: int) -> Plot:
    """Draw a workflow of one to seven steps, and one to four processes that start in turn or at the same time."""
    spec = drawn(draw, seed)
    key = "the-key" if draw.chance(80) else None
    spec = replace(
        spec,
        steps=tuple(_step(draw, step) for step in spec.steps),
        key=key,
        writes=draw.chance(50),
        cancel_at=spec.cancel_at if draw.chance(30) else None,
        faults=spec.faults if draw.chance(30) else (),
        grace=draw.choice((0.5, 5.0)),
    )
    lease = draw.choice((2.0, 6.0, 30.0))
    callers = tuple(_caller(draw, lease, key, number) for number in range(draw.integer(1, 4)))
    weather = _weather(draw, lease)
    park_after = draw.choice((math.inf, math.inf, 1.0, 0.2))
    if draw.chance(25):  # a deploy
        which = draw.integer(0, len(callers) - 1)
        stops = draw.choice((0.5, 1.0, 2.0, 4.0)) * draw.integer(0, 20) / 20
        callers = tuple(replace(one, stops=stops) if number == which else one for number, one in enumerate(callers))
        if draw.chance(50):  # its next attempts are so far away that it must not wait for them
            spec = replace(spec, steps=tuple(map(_patient, spec.steps)))
    return Plot(spec, lease, callers, weather, park_after)


def from_seed(seed: int) -> Plot:
    return plotted(Seeded(seed), seed)


def exiting(seed: int) -> Plot:
    """Return the plot of a seed in which a signal handler of every process exits, and few of them crash."""
    draw = Seeded(seed)
    plot = plotted(draw, seed)
    callers = (replace(one, exits=_exit(draw), halt=one.halt if draw.chance(30) else None) for one in plot.callers)
    return replace(plot, callers=tuple(callers))


# -- playing -----------------------------------------------------------------------------------------------------------


def played(plot: Plot, *, observed: bool = True) -> Tale:
    """Play a plot, and return its tale. `observed`: whether the engines have hooks."""
    effects: list[Effect] = []
    spec = plot.spec
    workflow, store = built(spec, effects), SimulatedStore()
    story = play(
        workflow,
        seed=spec.seed,
        store=store,
        callers=plot.callers,
        weather=plot.weather,
        faults=dict(spec.faults),
        key=spec.key,
        cancel_at=spec.cancel_at,
        max_workers=spec.max_workers,
        grace=spec.grace,
        lease=plot.lease,
        park_after=plot.park_after,
        observed=observed,
    )
    return Tale(plot, story, effects, workflow, store)


def differs_alone(tale: Tale) -> list[str]:
    """Return the first difference in calls and requests if the engines have no hooks. There must be none."""
    alone = played(tale.plot, observed=False)
    for one, other in itertools.zip_longest(_everything(tale), _everything(alone)):
        if one != other:
            return [f"{other} without observers, else {one}"]
    return []


def _everything(tale: Tale) -> Iterator[str]:
    yield from (repr(replace(call, events_before=0)) for call in tale.story.calls)
    for asked in tale.story.stored:
        yield f"{asked!r} {asked.argument!r}"


# -- printing ----------------------------------------------------------------------------------------------------------


def _unlike(one: Any, plain: Any, less: tuple[str, ...] = ()) -> str:
    said = {name: getattr(one, name) for name in type(one).__dataclass_fields__ if name not in less}
    return ", ".join(f"{k}={v!r}" for k, v in said.items() if v != getattr(plain, k))


def _stored(call: StoreCall) -> str:
    argument: Any = call.argument
    changes = getattr(argument, "changes", argument)
    steps = getattr(changes, "steps", None) or {}
    reported = ", ".join(
        f"{name} {step.report.status}{step.report.attempts}{'/' + step.report.undo if step.report.undo else ''} ({step.seq})"
        for name, step in steps.items()
    )
    words = [reported, "undoing" if getattr(changes, "undoing", False) else ""]
    if call.verb == "finish":
        words.append(f"{argument.record.status}{' held' if argument.record.held else ''}")
    answer: Any = call.answer
    said = "lost" if call.applied is None else f"{answer!r:.110}" + ("" if call.delivered else " (not delivered)")
    return f"{call.verb} [{'; '.join(filter(None, words))}] -> {said}{' COPY' if call.copy else ''}"


def reported(tale: Tale) -> Iterator[str]:
    """Yield the lines of the story, in order of time."""
    plot, story = tale.plot, tale.story
    for step in plot.spec.steps:
        yield f"step {step.name}: " + _unlike(step, StepSpec(step.name))
    yield _unlike(plot.spec, Spec(-1, ()), ("steps",))
    yield f"lease={plot.lease} park_after={plot.park_after} {plot.weather}"
    lines: list[tuple[float, int, str]] = []
    for number, act in enumerate(story.acts):
        yield f"process {number}: {_unlike(act.caller, Caller())}"
        lines.append((act.began, number, "comes"))
        for event in act.events:
            names = ("step", "attempt", "undo", "outcome", "operation", "decision", "error")
            words = " ".join(f"{name}={getattr(event, name)!s:.90}" for name in names if hasattr(event, name))
            lines.append((event.at, number, f"{type(event).__name__} {words}"))
        if act.halted is not None:
            lines.append((act.halted, number, "STOPS"))
        if act.exited is not None:
            lines.append((act.exited, number, "EXITS"))
        if act.ended is not None:
            lines.append((act.ended, number, f"is over: {act.run!r} {act.refusal!r:.200}"))
    for position, stored in enumerate(story.stored):
        at = stored.sent if stored.applied is None else stored.applied
        lines.append((at, stored.process, f"  store {position}: {_stored(stored)}"))
    for call in story.calls:
        end = "never" if call.ended is None else f"{call.ended - story.began:.3f}"
        words = f"{call.what} {call.step} {call.attempt} -> {end}{', failed' if call.failed else ''}"
        words += "" if call.performed is None else f", performed {call.performed - story.began:.3f}"
        lines.append(
            (call.began, call.process, f"    call {words}; fence {call.fence}, after store {call.requests_before}")
        )
    for at, number, line in sorted(lines, key=lambda line: line[0]):
        yield f"{at - story.began:8.3f} {number} {line}"
    record = tale.store.find(story.key)
    yield f"in the end: {record}"


def main() -> None:
    from .crash_model import judged_tale

    for word in sys.argv[1:]:
        first, _, last = word.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            tale = played(from_seed(seed))
            broken = judged_tale(tale)
            if not last:
                print(*reported(tale), sep="\n")
            if broken or not last:
                print(f"seed {seed}: ", "; ".join(broken) or "all promises kept")


if __name__ == "__main__":
    main()
