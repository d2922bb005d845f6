"""Tests of the stories of crashes themselves: each mutant breaks a promise, and the stories must find it."""

from collections.abc import Iterable

import pytest

from .crash_model import judged_tale
from .crash_mutants import EXITS, MUTANTS
from .crashes import differs_alone, exiting, from_seed, played
from .mutants import Mutant, applied

SEEDS = 1700
RARE = {
    "a zombie does not look at its clock": 360,
    "with fast checkpoints, a zombie does not look at its clock": 549,
    "the when= of a step that may have happened is called": 103,
    "a failed attempt hides from the next owner that a crash cut off an earlier one": 1276,
    "an owner before the last one may have done nothing": 1116,
    "a step that is in doubt and was not attempted again is not undone": 363,
    "a step whose when= was cut short may have happened": 252,
    "a step that completes while it is undone counts as undone": 1309,
    "a process that must stop waits for the next attempt of a step": 301,
    "a process that must stop while it takes a run over forgets why the run failed": 820,
    "a verify= that the stop of its process cut short decides": 394,
    "after an exit, a run counts as a success although its end was refused": 325,
    "after an exit, an undo that was made is not saved": 1008,
    "an exit ends a run that it keeps from beginning": 86,
    "the end of a run is reported again after an exit": 784,
    "a verify= that an exit cuts short decides": 11136,
    "an owner that stops leaves a step in flight that it has not begun": 550,
    "with fast checkpoints, a run does not notice that it was taken over": 69,
    "a first step starts though the lease is over": 461,
    "a lease is never over": 114,
    "an owner that has lost the run takes a resumable one for ended": 43,
    "on_crash=undo is ignored": 54,
    "an operator's undo is ignored": 46,
    "an operator's decision is forgotten": 46,
    "a step that is undone is undone again": 50,
    "the list of steps to undo is lost": 64,
    "a verify= that raises is taken for no": 40,
    "undone in the order of completion": 142,
    "after an exit, what the interrupted program had to save is not saved": 105,
}
"""For each mutant that few seeds find, the first one that does. It is tried first, because to try all seeds before it
would take most of this file's time."""


def found_by(seeds: Iterable[int]) -> int | None:
    """Return the first of these seeds whose story breaks a promise, or None."""
    for seed in seeds:
        try:
            tale = played(from_seed(seed))
            if judged_tale(tale) or differs_alone(tale):
                return seed
        except Exception:  # noqa: BLE001 - a mutant may break anything
            return seed
    return None


def exits_found_by(seeds: Iterable[int]) -> int | None:
    """Return the first of these seeds whose story of exits breaks a promise, or None."""
    for seed in seeds:
        try:
            if judged_tale(played(exiting(seed))):
                return seed
        except Exception:  # noqa: BLE001 - a mutant may break anything
            return seed
    return None


def test_there_are_enough_mutants_of_durable_runs() -> None:
    assert len(MUTANTS) >= 25
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.name for mutant in (*MUTANTS, *EXITS)} >= RARE.keys()


@pytest.mark.filterwarnings("ignore:coroutine")  # A mutant may never await one.
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_of_durable_runs_is_caught(mutant: Mutant) -> None:
    first = RARE.get(mutant.name, 0)
    with applied(mutant):
        seed = found_by([first, *range(SEEDS)])
    assert seed is not None, f"mutant not caught: {mutant.name}"
    assert found_by([seed]) is None, f"seed {seed} finds something without the mutant, too"


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("mutant", EXITS, ids=lambda mutant: mutant.name)
def test_every_mutant_of_what_happens_after_an_exit_is_caught(mutant: Mutant) -> None:
    with applied(mutant):
        seed = exits_found_by([RARE.get(mutant.name, 0), *range(SEEDS)])
    assert seed is not None, f"mutant not caught: {mutant.name}"
    assert exits_found_by([seed]) is None, f"seed {seed} finds something without the mutant, too"
