"""Tests of the simulation itself: each mutant breaks a promise, and a few hundred seeds must find it."""

from collections.abc import Iterable

import pytest

from .model import differs_alone, judged_twice
from .mutants import MUTANTS, Mutant, applied
from .specs import from_seed, tried

SEEDS = 600


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
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.filterwarnings("ignore:coroutine")  # A mutant may never await one.
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_is_caught(mutant: Mutant) -> None:
    with applied(mutant):
        seed = found_by(range(SEEDS))
    assert seed is not None, f"mutant not caught: {mutant.name}"
    assert found_by([seed]) is None, f"seed {seed} finds something without the mutant, too"
