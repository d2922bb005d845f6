"""The critical path, against trying out every chain."""

from itertools import pairwise

from hypothesis import given, strategies as st

from flowcore_otel.timing import CriticalPath

SECONDS = st.floats(0, 10, allow_nan=False)


@st.composite
def workflows(draw: st.DrawFn) -> list[tuple[str, float, list[str]]]:
    """Finished steps, dependencies first."""
    steps: list[tuple[str, float, list[str]]] = []
    for number in range(draw(st.integers(0, 7))):
        depends_on = draw(st.lists(st.sampled_from([step[0] for step in steps]), unique=True)) if steps else []
        steps.append((f"s{number}", draw(SECONDS), depends_on))
    return steps


def longest(steps: list[tuple[str, float, list[str]]]) -> float:
    by_name = {name: (seconds, depends_on) for name, seconds, depends_on in steps}

    def chains(name: str) -> list[float]:
        seconds, depends_on = by_name[name]
        return [seconds] + [seconds + before for other in depends_on for before in chains(other)]

    return max((seconds for name in by_name for seconds in chains(name)), default=0.0)


@given(workflows())
def test_it_is_the_longest_of_all_chains(steps: list[tuple[str, float, list[str]]]) -> None:
    path = CriticalPath()
    for step in steps:
        path.add(*step)
    by_name = {name: (seconds, depends_on) for name, seconds, depends_on in steps}
    chain = path.steps()
    assert abs(path.seconds - longest(steps)) < 1e-9
    assert abs(path.seconds - sum(by_name[name][0] for name in chain)) < 1e-9
    assert all(before in by_name[after][1] for before, after in pairwise(chain))
    assert abs(path.total - sum(step[1] for step in steps)) < 1e-9


def test_of_a_long_chain_the_longest_steps_are_shown_in_order() -> None:
    path = CriticalPath()
    for number in range(100):
        path.add(f"s{number}", 1.0 + (number in {3, 50}), [f"s{number - 1}"] if number else [])
    assert path.longest_of(path.steps(), 2) == ["s3", "s50"]
    assert len(path.steps()) == 100


def test_a_run_without_steps_has_an_empty_path() -> None:
    path = CriticalPath()
    assert (path.steps(), path.seconds, path.total) == ([], 0.0, 0.0)
