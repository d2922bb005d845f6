"""Thousands of random workflows, each run in a simulation and judged by an independent model of the promises."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from flowcore import Status
from flowcore.events import BackoffStarted, CompensationStarted, StepCompletedLate
from flowcore.testing import Simulation

from .model import differs_alone, judged_twice
from .mutants import MUTANTS, applied
from .specs import Drawn, Spec, Trial, drawn, from_seed, tried

MET: dict[int, list[str]] = {}
"""the situations that each seed met, for the seeds proved so far"""


def replay(seed: int) -> str:
    """Return the command that runs a seed again and prints its story."""
    return f"python -m tests.simulator {seed}"


def prove(seed: int) -> Trial:
    """Run a seed. Raises AssertionError, with the command that replays it, if a promise is broken."""
    try:
        trial = tried(from_seed(seed))
        broken = judged_twice(trial)
    except Exception as error:
        raise AssertionError(f"{error!r}; replay: {replay(seed)}") from error
    assert not broken, f"{'; '.join(broken)}; replay: {replay(seed)}"
    MET[seed] = list(met(trial))
    return trial


@pytest.mark.proof(quick=1000, full=10_000, each=500)
def test_every_promise_holds_for_thousands_of_seeds(seeds: range) -> None:
    for seed in seeds:
        prove(seed)


@st.composite
def specs(draw: Any) -> Spec:
    return drawn(Drawn(draw), draw(st.integers(0, 2**16)))


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(spec=specs())
def test_hypothesis_finds_no_broken_promise_and_would_shrink_one(spec: Spec) -> None:
    broken = judged_twice(tried(spec))
    assert not broken, "; ".join(broken)


# -- the seeds are not trivial -----------------------------------------------------------------------------------------

EXPECTED = {
    "success": 0.2,
    "failure": 0.05,
    "compensated": 0.15,
    "compensation_failed": 0.05,
    "incomplete": 0.01,
    "cancelled": 0.05,
    "late": 0.03,
    "undone again after a late landing": 0.005,
    "parallel undo overlaps": 0.01,
    "undo retried": 0.02,
    "retried": 0.1,
    "skipped": 0.02,
    "timeout": 0.1,
    "siblings fail": 0.02,
    "undone though it raised": 0.05,
}
"""situations, and the share of the seeds that must meet them"""


def met(trial: Trial) -> Iterator[str]:
    run, events = trial.simulation.run, trial.simulation.events
    statuses = [report.status for report in run.steps.values()]
    yield run.status
    if trial.simulation.cancelled is not None:
        yield "cancelled"
    if any(isinstance(event, StepCompletedLate) for event in events):
        yield "late"
    if Status.SKIPPED in statuses:
        yield "skipped"
    if Status.TIMEOUT in statuses:
        yield "timeout"
    if sum(status in {Status.FAILURE, Status.TIMEOUT} for status in statuses) > 1:
        yield "siblings fail"
    undos = [event.step for event in events if isinstance(event, CompensationStarted)]
    if len(undos) > len(set(undos)):
        yield "undone again after a late landing"
    pauses = [event for event in events if isinstance(event, BackoffStarted)]
    if any(event.undo for event in pauses):
        yield "undo retried"
    if any(not event.undo for event in pauses):
        yield "retried"
    if any(report.status is Status.FAILURE and report.undo is not None for report in run.steps.values()):
        yield "undone though it raised"
    calls = [call for call in trial.simulation.calls if call.what == "undo"]
    if any(a.ended is not None and b.began < a.ended for a, b in itertools.pairwise(calls)):
        yield "parallel undo overlaps"


def test_the_seeds_meet_what_can_go_wrong() -> None:
    seeds = 2000
    for seed in range(seeds):
        if seed not in MET:
            prove(seed)
    seen = Counter(what for seed in range(seeds) for what in MET[seed])
    rare = {what: seen[what] for what, share in EXPECTED.items() if seen[what] < share * seeds}
    assert not rare, f"too rare to prove anything: {rare} of {seeds}"


def reported(simulation: Simulation) -> list[Any]:
    plain = [
        (type(event).__name__, event.at, event.run_id, getattr(event, "step", ""), repr(getattr(event, "error", "")))
        for event in simulation.events
    ]
    return [*plain, simulation.calls, simulation.took, simulation.fired, list(simulation.journal)]


def test_a_seed_replays_identically() -> None:
    for seed in range(300):
        spec = from_seed(seed)
        assert from_seed(seed) == spec
        assert reported(tried(spec).simulation) == reported(tried(spec).simulation), replay(seed)


@pytest.mark.proof(quick=1000, full=10_000, each=1000)
def test_hooks_change_nothing(seeds: range) -> None:
    for seed in seeds:
        trial = tried(from_seed(seed))
        assert not differs_alone(trial), replay(seed)


def test_a_failing_seed_prints_the_line_that_replays_it() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "undo in forward order")
    with applied(mutant), pytest.raises(AssertionError, match="replay: python -m tests") as caught:
        test_every_promise_holds_for_thousands_of_seeds(range(1000))
    line = str(caught.value).split("replay: ")[1].splitlines()[0].split()
    assert line[:3] == ["python", "-m", "tests.simulator"]
    replayed = subprocess.run([sys.executable, *line[1:]], capture_output=True, text=True, timeout=60, check=True)
    last = replayed.stdout.splitlines()[-1]
    assert last == f"seed {line[3]}:  all promises kept"  # The mutant that broke one is gone.
    assert "CompensationStarted" in replayed.stdout
