"""Tests of the simulation itself: each mutant breaks a promise, and a few hundred seeds must find it."""

from collections.abc import Iterable

import pytest

from .model import differs_alone, judged_twice
from .mutants import MUTANTS, Mutant, applied
from .specs import from_seed, tried

SEEDS = 600
RARE = {
    "undo before abandoned calls have completed": 53,
    "parallel undo does not wait for dependants": 144,
    "an undo has a deadline": 126,
    "inline, the undo of every second step is forgotten": 40,
    "inline, a cancelled run continues": 115,
    "inline, a step starts before its last dependency": 56,
    "inline, a result that is to be awaited is kept as it is": 153,
    "success is reported of a run that stopped inline": 115,
    "when= outlasts the deadline": 175,
    "on_failure=cancel is ignored": 44,
    "max_elapsed is ignored": 177,
    "max_delay is ignored": 61,
    "on= is ignored": 116,
    "the backoff does not grow": 439,
    "elapsed time is forgotten": 177,
    "two attempts at once": 60,
    "a result that came in time is thrown away": 60,
    "an attempt that completes late, and is awaited before the next one, is not reported": 60,
    "done steps are done again past the pivot": 63,
}
"""For each mutant that few seeds find, the first one that does. It is tried first, because to try all seeds before it
would take most of this file's time."""


def found_by(seeds: Iterable[int]) -> int | None:
    """Return the first of these seeds whose run breaks a promise, or None."""
    for seed in seeds:
        try:
            trial = tried(from_seed(seed))
            if judged_twice(trial) or differs_alone(trial):
                return seed
        except Exception:  # noqa: BLE001 - a mutant may break anything
            return seed
    return None


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 25
    assert {mutant.name for mutant in MUTANTS} >= RARE.keys()
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.filterwarnings("ignore:coroutine")  # A mutant may never await one.
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught(mutant: Mutant) -> None:
    with applied(mutant):
        seed = found_by([RARE.get(mutant.name, 0), *range(SEEDS)])
    assert seed is not None, f"mutant not caught: {mutant.name}"
    assert found_by([seed]) is None, f"seed {seed} finds something without the mutant, too"
