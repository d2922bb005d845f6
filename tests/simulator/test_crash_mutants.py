"""That the stories of crashes can find something: protocols that break a promise each, every one of which they must find."""

from collections.abc import Iterable

import pytest

from .crash_model import judged_tale
from .crash_mutants import MUTANTS
from .crashes import differs_alone, from_seed, played
from .mutants import Mutant, applied

SEEDS = 1700


def found_by(seeds: Iterable[int]) -> int | None:
    """The first of these seeds whose story breaks a promise."""
    for seed in seeds:
        try:
            tale = played(from_seed(seed))
            if judged_tale(tale) or differs_alone(tale):
                return seed
        except Exception:  # noqa: BLE001 - a mutant may break anything
            return seed
    return None


def test_there_are_enough_mutants_of_durable_runs() -> None:
    assert len(MUTANTS) >= 25
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.filterwarnings("ignore:coroutine")  # a mutant may forget one
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_of_durable_runs_is_caught(mutant: Mutant) -> None:
    with applied(mutant):
        seed = found_by(range(SEEDS))
    assert seed is not None, f"nobody notices: {mutant.name}"
    assert found_by([seed]) is None, f"seed {seed} finds something without the mutant, too"
