"""The critical path, against trying out every chain."""

import pytest
from hypothesis import given, strategies as st

from flowcore_otel.spans import CriticalPath, Ended

SECONDS = st.floats(0, 10, allow_nan=False)


@st.composite
def workflows(draw: st.DrawFn) -> list[Ended]:
    """Steps in order of ending; seconds None: skipped."""
    steps: list[Ended] = []
    for number in range(draw(st.integers(0, 7))):
        depends_on = draw(st.lists(st.sampled_from([step[0] for step in steps]), unique=True)) if steps else []
        steps.append((f"s{number}", draw(st.none() | SECONDS), depends_on))
    return steps


def all_chains(steps: list[Ended]) -> dict[tuple[str, ...], float]:
    """Every chain of dependent steps that ran, and how long it took."""
    by_name = {name: (seconds, depends_on) for name, seconds, depends_on in steps}

    def ending_with(name: str) -> list[tuple[str, ...]]:
        seconds, depends_on = by_name[name]
        own = () if seconds is None else (name,)
        return [own, *((*before, *own) for other in depends_on for before in ending_with(other))]

    chains = {chain for name in by_name for chain in ending_with(name)}
    return {chain: sum(by_name[name][0] or 0.0 for name in chain) for chain in chains}


@given(workflows())
def test_it_is_the_longest_of_all_chains(steps: list[Ended]) -> None:
    path = CriticalPath(steps)
    chains = all_chains(steps)
    chain = tuple(path.steps)
    assert chain in chains or not chain
    assert path.seconds == pytest.approx(max(chains.values(), default=0.0))
    assert chains.get(chain, 0.0) == pytest.approx(path.seconds)
    assert path.total == pytest.approx(sum(seconds or 0.0 for _, seconds, _ in steps))


def test_of_a_long_chain_the_longest_steps_are_shown_in_order() -> None:
    path = CriticalPath(
        (f"s{number}", 1.0 + (number in {3, 50}), [f"s{number - 1}"] if number else []) for number in range(100)
    )
    assert path.longest(2) == ["s3", "s50"]
    assert len(path.steps) == 100


def test_a_run_without_steps_has_an_empty_path() -> None:
    path = CriticalPath([])
    assert (path.steps, path.seconds, path.total) == ([], 0.0, 0.0)
