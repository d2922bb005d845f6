"""Runs in memory whose process gets the exit of a signal handler at any moment: they end, and are undone or have succeeded.

The stories of durable runs, in `test_crashes.py`, have such exits too.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from flowcore import Status
from flowcore.events import RunFinished
from flowcore.stores import MemoryStore
from flowcore.testing.acts import Caller, Exit, Fault
from flowcore.testing.story import Story, play

from .mutants import Mutant, applied, m
from .specs import Effect, Seeded, Spec, built, from_seed

SEED_OF_A_LATE_CALL = 1615
MOMENTS = ("driver", "clock", "call", "hook", "store")


def drawn(seed: int) -> Exit:
    draw = Seeded(seed)
    return Exit(draw.choice(MOMENTS), draw.integer(1, draw.choice((5, 10, 30))))


def played(seed: int, exits: Exit) -> tuple[Spec, Story, list[Effect]]:
    """Play the workflow of a seed in one process, which an exit strikes."""
    spec, effects = from_seed(seed), list[Effect]()
    story = play(
        built(spec, effects),
        seed=seed,
        store=MemoryStore(),
        callers=(Caller(exits=exits),),
        faults=dict(spec.faults),
        key=spec.key,
        cancel_at=spec.cancel_at,
        max_workers=spec.max_workers,
        grace=spec.grace,
    )
    return spec, story, effects


def judged(spec: Spec, story: Story, effects: list[Effect]) -> Iterator[str]:
    """Yield the promises that were broken after an exit."""
    (act,) = story.acts
    if act.ended is None:
        yield "the run never ends"
    if act.ended is None or act.exited is None or act.exited > act.ended:
        return
    ends = sum(isinstance(event, RunFinished) for event in act.events)
    if ends > 1:
        yield f"the end of the run is reported {ends} times"
    undone = any(effect.what == "undo" for effect in effects)
    if act.run is None or act.run.status is Status.SUCCESS:  # an exit after the end of a run is raised instead of it
        if undone:
            yield f"something is undone, and the caller gets {act.run or act.refusal!r}"
        return
    if act.run.status is Status.INCOMPLETE:
        return
    for step in spec.steps:
        if step.undo is None or (step.name, Fault.FAIL_AFTER) in spec.faults:  # undone only if its report says so
            continue
        mine = [(index, effect) for index, effect in enumerate(effects) if effect.step == step.name]
        done = max((index for index, effect in mine if (effect.what, effect.did) == ("do", "ok")), default=-1)
        back = max((index for index, effect in mine if (effect.what, effect.did) == ("undo", "ok")), default=-1)
        report = act.run.steps[step.name]
        if done > back and report.undo in {None, Status.SUCCESS}:
            yield f"the run is {act.run.status}, and {step.name} is not undone: {report}"
    yield from order_broken(spec, story, effects)


def order_broken(spec: Spec, story: Story, effects: list[Effect]) -> Iterator[str]:
    """Yield where the undo of a step begins before the undo of a step that depends on it."""
    late = {call.step for call in story.calls if call.given_up is not None}
    undos: dict[str, list[int]] = {}
    for index, effect in enumerate(effects):
        if effect.what == "undo":
            undos.setdefault(effect.step, []).append(index)
    for step in spec.steps:
        for other in step.depends_on:
            if {step.name, other} <= undos.keys() - late and undos[step.name][-1] > undos[other][0]:
                yield f"{other} is undone before its dependant {step.name}"


@pytest.mark.proof(quick=500, full=10_000, each=500)
def test_a_run_in_memory_is_undone_or_has_succeeded_after_an_exit_at_any_moment(seeds: range) -> None:
    struck = Counter[str]()
    for seed in seeds:
        spec, story, effects = played(seed, drawn(seed))
        broken = list(judged(spec, story, effects))
        assert not broken, f"seed {seed}: {'; '.join(broken)}"
        struck.update(act.caller.exits.at for act in story.acts if act.exited is not None and act.caller.exits)
    assert min(struck[at] for at in MOMENTS[:4]) > len(seeds) * 0.05


@pytest.mark.parametrize("seed", [240, 384, 904, 1310])
def test_an_exit_at_each_moment_of_a_run_whose_steps_are_undone_beside_each_other(seed: int) -> None:
    assert from_seed(seed).parallel_undo
    undone = 0
    for at in MOMENTS[:4]:
        for number in itertools.count(1):
            spec, story, effects = played(seed, Exit(at, number))
            broken = list(judged(spec, story, effects))
            assert not broken, f"an exit at {at} {number}: {'; '.join(broken)}"
            if story.acts[0].exited is None:
                break
            undone += sum(effect.what == "undo" for effect in effects) > 1
    assert undone > 10


def test_a_call_that_is_given_up_in_the_moment_of_an_exit_is_undone_when_it_completes_late() -> None:
    spec, story, effects = played(SEED_OF_A_LATE_CALL, drawn(SEED_OF_A_LATE_CALL))
    (act,) = story.acts
    late = [call for call in story.calls if call.given_up is not None and call.given_up == act.exited]
    assert [(call.step, call.what, call.failed) for call in late] == [("c", "do", False)]
    assert [effect.what for effect in effects if effect.step == "c"][-1] == "undo"
    assert not list(judged(spec, story, effects))


MUTANTS = {
    m(
        "after an exit, the state of the run is not made consistent",
        "run",
        "        _repair(run)\n        run.working",
        "        run.working",
    ): (347, drawn(347)),
    m(
        "after an exit on the inline path, the state of the run is not made consistent",
        "run",
        "    _repair(run)\n    run.working = True\n    finished",
        "    run.working = True\n    finished",
    ): (1299, drawn(1299)),
    m(
        "after an exit, a step that may have had its effect is not undone",
        "steps",
        "                run.to_undo.append(node)\n",
        "                pass\n",
    ): (87, drawn(87)),
    m(
        "after an exit, a step keeps its place",
        "steps",
        "        run.running = max(0, run.running - 1)",
        "        pass",
    ): (7, drawn(7)),
    m(
        "after an exit in a parallel undo, the steps before it are undone first",
        "undo",
        "                continue\n",
        "                pass\n",
    ): (240, Exit("driver", 30)),
    m(
        "after an exit, a parallel undo that was to begin is not made",
        "undo",
        "        run.to_undo.extend(node for node in due if",
        "        run.to_undo.extend(node for node in due if False and",
    ): (1310, Exit("driver", 60)),
}
"""with the seed and the exit that find each of them"""


def found_by(moments: Iterable[tuple[int, Exit]]) -> tuple[int, Exit] | None:
    for seed, exits in moments:
        try:
            if list(judged(*played(seed, exits))):
                return seed, exits
        except Exception:  # noqa: BLE001 - a mutant may break anything
            return seed, exits
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_of_what_an_exit_does_to_a_run_in_memory_is_caught(mutant: Mutant) -> None:
    with applied(mutant):
        moment = found_by([MUTANTS[mutant], *((seed, drawn(seed)) for seed in range(1500))])
    assert moment is not None, f"mutant not caught: {mutant.name}"
    assert found_by([moment]) is None, f"{moment} finds something without the mutant, too"
