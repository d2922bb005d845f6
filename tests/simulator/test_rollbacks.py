"""Stores that lose their last writes, as when a replica is promoted too early: no step runs out of order, no step runs
twice for one owner, and no run is a success without all of its results."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from flowcore import Status
from flowcore.events import StepStarted
from flowcore.stores.base import Checkpoint, CheckpointAnswer, Claim, ClaimAnswer, Ending, Renewal
from flowcore.testing import SimulatedStore
from flowcore.testing.network import GOES_BACK

from .crashes import Plot, Tale, from_seed, played
from .model import judged_twice
from .mutants import Mutant, applied
from .specs import from_seed as plain_from_seed, tried, without_exits


class GoesBack(SimulatedStore):
    """A store that, before one request in three, loses some or all writes since the claim, until the run has ended."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(f"goes back {seed}")
        self._past: list[object] = []
        self.times = 0

    def _perhaps(self) -> None:
        if not self._past:
            return
        if self._random.random() < 1 / 3:
            kept = self._random.randrange(len(self._past))
            self.restore(self._past[kept])
            del self._past[kept + 1 :]
            self.times += 1
        self._past.append(self.snapshot())

    def claim(self, claim: Claim, /) -> ClaimAnswer:
        answer = super().claim(claim)
        if not self._past:
            self._past.append(self.snapshot())
        return answer

    def checkpoint(self, checkpoint: Checkpoint, /) -> CheckpointAnswer:
        self._perhaps()
        return super().checkpoint(checkpoint)

    def renew(self, leases: Any, lease: float, /) -> list[Renewal]:
        self._perhaps()
        return super().renew(leases, lease)

    def finish(self, ending: Ending, /) -> Any:
        self._perhaps()
        answer = super().finish(ending)
        if answer is None:
            self._perhaps = lambda: None  # type: ignore[method-assign] # The run is over.
        return answer


def with_rollbacks(seed: int) -> tuple[Any, GoesBack]:
    """Run a random workflow once on a store that loses writes."""
    store = GoesBack(seed)
    trial = tried(replace(without_exits(plain_from_seed(seed)), key="the-key"), store=store)
    trial.store = store
    return trial, store


@pytest.mark.proof(quick=300, full=10_000, each=100)
def test_a_store_that_goes_back_under_a_live_owner_changes_nothing(seeds: range) -> None:
    times = 0
    for seed in seeds:
        trial, store = with_rollbacks(seed)
        times += store.times
        broken = judged_twice(trial)
        assert not broken, f"seed {seed}: {'; '.join(broken)}"
    assert times > len(seeds)


def crashed(seed: int) -> Plot:
    """Return a random plot of crashes in which the store also loses its last writes, once or twice."""
    draw, plot = random.Random(f"goes back {seed}"), from_seed(seed)
    moments = tuple((draw.random() * 5 * plot.lease ** draw.choice((0, 1)), draw.randint(1, 6)) for _ in range(2))
    return replace(plot, weather=replace(plot.weather, goes_back=moments[: draw.randint(1, 2)]))


def broken(tale: Tale) -> Iterator[str]:
    """Yield the broken promises among those that hold even if the store loses writes and owners die."""
    steps = {step.name: step for step in tale.spec.steps}
    calls = [call for call in tale.story.calls if call.performed is not None]
    done: set[str] = set()
    made: set[tuple[int, str, int]] = set()
    for call in sorted(calls, key=lambda call: call.performed or 0.0):
        if call.what == "do":
            mine = (call.process, call.step, call.attempt)
            if mine in made:
                yield f"process {call.process} makes attempt {call.attempt} of {call.step} twice"
            made.add(mine)
            early = [name for name in steps[call.step].depends_on if name not in done and steps[name].when is None]
            if early:
                yield f"{call.step} runs before {early}"
            done.add(call.step)
    for number, act in enumerate(tale.story.acts):
        starts = Counter(event.step for event in act.events if isinstance(event, StepStarted))
        if any(count > 1 for count in starts.values()):
            yield f"process {number} starts a step twice: {starts}"
        if act.run is not None and act.run.status is Status.SUCCESS:
            reports = act.run.steps
            lacking = [
                name
                for name in steps
                if name not in reports or reports[name].status not in {Status.SUCCESS, Status.SKIPPED}
            ]
            if lacking:
                yield f"a success lacks {lacking}"
            results = {name for name, report in reports.items() if report.status is Status.SUCCESS}
            if results != set(act.run.results):
                yield f"a success has the results of {sorted(act.run.results)}, done are {sorted(results)}"
            if results - done:
                yield f"a success of {results - done}, which never ran"


@pytest.mark.proof(quick=300, full=10_000, each=100)
def test_a_store_that_goes_back_amid_crashes_runs_nothing_out_of_order_and_gives_no_false_success(seeds: range) -> None:
    went_back = 0
    for seed in seeds:
        tale = played(crashed(seed))
        went_back += any(call.verb == GOES_BACK for call in tale.story.stored)
        found = list(broken(tale))
        assert not found, f"seed {seed}: {'; '.join(found)}"
    assert went_back > len(seeds) / 3


MUTANTS = (
    Mutant(
        "a record that went back is not noticed",
        "flowcore.stores.memory",
        "if record.seq < checkpoint.base and not checkpoint.heals:",
        "if False:",
    ),
    Mutant(
        "the base of a checkpoint is not sent",
        "flowcore._durable.checkpoints",
        "checkpoint.base = ledger.base",
        "checkpoint.base = 0",
    ),
    Mutant(
        "a record is healed with the last change alone",
        "flowcore._durable.checkpoints",
        "healing = replace(checkpoint, steps=steps, writes=writes, heals=True, renews=True)",
        "healing = replace(checkpoint, heals=True, renews=True)",
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_store_that_goes_back_unnoticed_is_caught(mutant: Mutant) -> None:
    with applied(mutant), pytest.raises(AssertionError, match=r"seed \d+: "):
        test_a_store_that_goes_back_under_a_live_owner_changes_nothing(range(300))
