"""Thousands of random stories of crashes, zombies and network faults, judged by a model of the promises."""

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from flowcore import Context, IdempotencyHeld, LeaseLost, RunParked, Status, Workflow
from flowcore.events import RunRecovered
from flowcore.stores.base import Finished, Lost
from flowcore.testing import SimulatedStore
from flowcore.testing.acts import Caller, Exit, Halt
from flowcore.testing.network import Weather
from flowcore.testing.process import PATIENCE
from flowcore.testing.story import play

from .crash_model import judged_tale
from .crash_mutants import MUTANTS
from .crashes import Plot, Tale, differs_alone, exiting, from_seed, played, plotted
from .model import judged_twice
from .mutants import applied
from .specs import Drawn, Spec, StepSpec, UndoSpec, from_seed as plain_from_seed, tried, without_exits

MET: dict[int, list[str]] = {}
"""the situations that each story met, for the seeds proved so far"""


def replay(seed: int) -> str:
    """Return the command that runs a seed again and prints its story."""
    return f"python -m tests.simulator.crashes {seed}"


def prove(seed: int) -> Tale:
    """Play a seed. Raises AssertionError, with the command that replays it, if a promise is broken."""
    try:
        tale = played(from_seed(seed))
        broken = judged_tale(tale)
    except Exception as error:
        raise AssertionError(f"{error!r}; replay: {replay(seed)}") from error
    assert not broken, f"{'; '.join(broken)}; replay: {replay(seed)}"
    MET[seed] = list(met(tale))
    return tale


@pytest.mark.proof(quick=500, full=10_000, each=500)
def test_every_promise_holds_through_crashes_and_takeovers(seeds: range) -> None:
    for seed in seeds:
        prove(seed)


@pytest.mark.proof(quick=500, full=10_000, each=500)
def test_every_promise_holds_through_the_exits_of_signal_handlers(seeds: range) -> None:
    struck = Counter[str]()
    for seed in seeds:
        tale = played(exiting(seed))
        broken = judged_tale(tale)
        assert not broken, f"{'; '.join(broken)}; seed {seed}"
        struck.update(act.caller.exits.at for act in tale.story.acts if act.exited is not None and act.caller.exits)
    assert min(struck[at] for at in ("driver", "clock", "call", "hook", "store")) > len(seeds) * 0.03


@pytest.mark.parametrize(
    ("exits", "cancel_at"),
    [(Exit("call", 1), None), (Exit("store", 3), None), (None, 40.0)],
    ids=["an exit before it learns that", "an exit", "a cancellation"],
)
def test_a_process_that_has_lost_its_run_does_not_wait_for_the_outcome_after(
    exits: Exit | None, cancel_at: float | None
) -> None:
    zombie = Caller(wait=600.0, halt=Halt("call", 1, done=True, seconds=34.0), exits=exits)
    callers = (zombie, Caller(33.0))
    story = play(chain(100), seed=1, store=SimulatedStore(), key="k", callers=callers, cancel_at=cancel_at)
    first, second = story.acts
    assert first.ended - (first.exited or first.cancelled) < 2.0
    assert second.run.status is Status.SUCCESS
    assert second.ended - first.ended > 10.0


def test_stories_that_once_broke_a_promise_keep_it() -> None:
    for seed in (3723, 4005, 4304, 7367, 7455, 15155, 15678, 18917, 19235):
        prove(seed)


@pytest.mark.proof(quick=500, full=10_000, each=100)
def test_a_story_is_the_same_without_hooks_in_every_request_to_the_store(seeds: range) -> None:
    for seed in seeds:
        assert not differs_alone(played(from_seed(seed))), replay(seed)


@st.composite
def plots(draw: Any) -> Plot:
    return plotted(Drawn(draw), draw(st.integers(0, 2**16)))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plot=plots())
def test_hypothesis_finds_no_broken_promise_in_a_crash_and_would_shrink_one(plot: Plot) -> None:
    broken = judged_tale(played(plot))
    assert not broken, "; ".join(broken)


@pytest.mark.proof(quick=300, full=3000, each=100)
def test_a_durable_store_changes_nothing_where_nothing_crashes(seeds: range) -> None:
    for seed in seeds:
        store = SimulatedStore()
        trial = tried(replace(without_exits(plain_from_seed(seed)), key="the-key"), store=store)
        trial.store = store
        assert not judged_twice(trial), f"seed {seed}"


# -- crashes at every point --------------------------------------------------------------------------------------------

SAGA = Spec(
    0,
    (
        StepSpec("a", undo=UndoSpec()),
        StepSpec("b", ("a",), undo=UndoSpec()),
        StepSpec("c", ("a",)),
        StepSpec("d", ("b", "c"), ("value",), undo=UndoSpec(), attempted=True),
    ),
    key="the-key",
)
"""a saga whose last step fails"""
POINTS = [Halt(at, number, done) for at in ("store", "call") for number in range(1, 13) for done in (False, True)]
EACH = 5
"""A quick proof takes every fifth pair of points. There are 49 second points, so each occurs, with other first ones."""


def crashed(spec: Spec, first: Halt, second: Halt | None, seed: int) -> Tale:
    callers = (Caller(halt=first), Caller(after=33.0, halt=second), Caller(after=33.0))
    return played(Plot(replace(spec, seed=seed), 30.0, callers, Weather()))


@pytest.mark.parametrize("fails", [False, True])
def test_a_crash_at_every_point_and_another_at_every_point_of_the_takeover(fails: bool, full: bool) -> None:
    spec = SAGA if fails else replace(SAGA, steps=(*SAGA.steps[:3], StepSpec("d", ("b", "c"))))
    struck: set[Halt | None] = set()
    pairs = list(itertools.product(POINTS, [None, *POINTS]))
    for number, (first, second) in list(enumerate(pairs))[:: 1 if full else EACH]:
        tale = crashed(spec, first, second, number)
        here = f"{first}, then {second}, seed {number}"
        assert not judged_tale(tale), here
        struck |= {halt for halt, act in zip((first, second), tale.story.acts, strict=False) if act.halted is not None}
        end = [done for done in tale.effects if done.step == "a"]
        assert end[-1].what == ("undo" if fails else "do"), here
    assert len(struck) >= 20


def chain(count: int) -> Workflow:
    wf = Workflow("chain")
    for index in range(count):
        wf.add_step(f"s{index}", lambda ctx: ctx.step, depends_on=[f"s{index - 1}"] if index else [])
    return wf


def test_a_chain_of_ten_steps_costs_eleven_requests() -> None:
    story = play(chain(10), seed=0, store=SimulatedStore(), key="k")
    verbs = Counter(call.verb for call in story.stored)
    assert verbs == {"claim": 1, "checkpoint": 9, "finish": 1}


def test_a_hundred_steps_beside_each_other_cost_two_requests_each() -> None:
    wf = Workflow("fan")
    for index in range(100):
        wf.add_step(f"s{index}", lambda ctx: ctx.step)
    story = play(wf, seed=0, store=SimulatedStore(), key="k", max_workers=200)
    assert len(story.stored) <= 201


# -- single stories ----------------------------------------------------------------------------------------------------


def test_a_zombie_starts_and_undoes_nothing_more() -> None:
    done: list[tuple[str, int]] = []
    wf = Workflow("zombie")
    for name, before in (("a", ""), ("b", "a"), ("c", "b")):
        wf.add_step(name, lambda ctx: done.append((ctx.step, ctx.fence)), depends_on=[before] if before else [])
    callers = (Caller(halt=Halt("call", 2, done=False, seconds=60.0)), Caller(after=33.0))
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    assert done == [("a", 1), ("b", 2), ("c", 2), ("b", 1)]  # b was in flight, and nothing comes after it
    zombie, owner = (act.run for act in story.acts)
    assert owner.status is Status.SUCCESS
    assert (zombie.status, zombie.id, zombie.replayed) == (Status.SUCCESS, owner.id, True)  # it adopts the outcome


def test_a_zombie_whose_run_continues_elsewhere_learns_that() -> None:
    wf = Workflow("zombie")
    wf.add_step("a", lambda ctx: None)
    wf.add_step("b", lambda ctx: 1 / 0 if ctx.fence > 1 else None, depends_on="a", pivot=True)
    wf.add_step("c", lambda ctx: None, depends_on="b")
    callers = (
        Caller(halt=Halt("call", 1, done=True, seconds=34.0)),
        Caller(after=33.0, halt=Halt("call", 1, done=True)),
    )
    story = play(wf, seed=1, store=SimulatedStore(), key="k", callers=callers)
    zombie = story.acts[0].run
    assert (zombie.status, type(zombie.error)) == (Status.LOST, LeaseLost)
    assert zombie.error.run_id == zombie.id


def test_an_outage_that_ends_while_the_store_is_waited_for_costs_nothing_and_a_longer_one_parks() -> None:
    for ends, status in ((20.0, Status.SUCCESS), (70.0, Status.SUCCESS), (120.0, Status.PARKED)):
        weather = Weather(latency=0.001, outages=((0.5, ends),))
        story = play(
            chain(5), seed=3, store=SimulatedStore(), key="k", weather=weather, callers=(Caller(), Caller(200.0))
        )
        first = story.acts[0]
        assert first.run.status is status
        if status is Status.PARKED:
            assert isinstance(first.run.error, RunParked)
            asked = [call.sent for call in story.stored if call.process == 0 and call.verb != "renew"]
            assert 30 * (PATIENCE - 0.1) < asked[-1] - story.began < 30 * PATIENCE + 1.5
            begun = [call.began for call in story.calls if call.process == 0]
            assert max(begun) - story.began < 1.5
        assert story.acts[-1].run.status is Status.SUCCESS


def test_what_is_held_stays_held_until_an_operator_has_decided() -> None:
    undone: list[str] = []

    def back(ctx: Context) -> None:
        undone.append(ctx.step)

    wf = Workflow("to decide")
    wf.add_step("a", lambda ctx: None, compensate=back)
    wf.add_step("b", lambda ctx: None, depends_on="a", on_crash="hold", compensate=back)
    for decision, status in (("resume", Status.SUCCESS), ("undo", Status.COMPENSATED)):
        undone.clear()
        decided = (Caller(1.0, decides=decision), Caller(1.0, recovers=True))
        callers = (Caller(halt=Halt("call", 2, done=True)), Caller(33.0), Caller(40.0), *decided)
        story = play(wf, seed=5, store=SimulatedStore(), key="k", callers=callers)
        _, holder, refused, _, last = story.acts
        assert holder.run.held
        assert isinstance(holder.run.error, IdempotencyHeld)
        assert isinstance(refused.refusal, IdempotencyHeld)
        assert last.run.status is status
        assert undone == ([] if decision == "resume" else ["b", "a"])


# -- the stories are not trivial ---------------------------------------------------------------------------------------

EXPECTED = {
    "taken over": 0.3,
    "taken over twice": 0.08,
    "a zombie is refused": 0.04,
    "adopted": 0.02,
    "parked": 0.05,
    "held": 0.02,
    "an operator decides": 0.02,
    "undone after a takeover": 0.05,
    "undone by two processes": 0.02,
    "verified as completed": 0.01,
    "verified as not completed": 0.01,
    "forward past the pivot": 0.01,
    "a reply is lost": 0.1,
    "a late copy": 0.03,
    "a claim is withdrawn": 0.02,
    "success after a crash": 0.05,
    "released after a crash": 0.05,
}
"""situations, and the share of the stories that must meet them"""


def met(tale: Tale) -> Iterator[str]:
    story, effects = tale.story, tale.effects
    takeovers = [event for act in story.acts for event in act.events if isinstance(event, RunRecovered)]
    if takeovers:
        yield "taken over"
    if len(takeovers) > 1:
        yield "taken over twice"
    if any(isinstance(call.answer, Lost) for call in story.stored):
        yield "a zombie is refused"
    runs = [act.run for act in story.acts if act.run is not None]
    if any(run.replayed and act.halted is not None for act in story.acts if (run := act.run) is not None):
        yield "adopted"
    yield from {str(run.status) for run in runs if run.status is Status.PARKED}
    if any(run.held and run.status is Status.PARKED for run in runs):
        yield "held"
    if any(call.verb in {"resume", "undo"} and call.answer is None for call in story.stored):
        yield "an operator decides"
    if any(event.decision == "undo" for event in takeovers):
        yield "undone after a takeover"
    if len({effect.fence for effect in effects if effect.what == "undo"}) > 1:
        yield "undone by two processes"
    if any(event.verified for event in takeovers):
        yield "verified as completed"
    if any(effect.did == "not landed" for effect in effects):
        yield "verified as not completed"
    pivots = {step.name for step in tale.spec.steps if step.pivot}
    if any(event.decision == "forward" and pivots & set(event.skipped) for event in takeovers):
        yield "forward past the pivot"
    if any(call.applied is not None and not call.delivered and not call.copy for call in story.stored):
        yield "a reply is lost"
    if any(call.copy for call in story.stored):
        yield "a late copy"
    if any(call.verb == "withdraw" for call in story.stored):
        yield "a claim is withdrawn"
    last = next((run for run in reversed(runs)), None)
    if takeovers and last is not None and last.status is Status.SUCCESS:
        yield "success after a crash"
    if takeovers and last is not None and last.status in {Status.FAILURE, Status.COMPENSATED}:
        yield "released after a crash"


def test_the_stories_meet_what_can_go_wrong() -> None:
    seeds = 1000  # those of the first test, which need not be played again
    for seed in range(seeds):
        if seed not in MET:
            prove(seed)
    seen = Counter(what for seed in range(seeds) for what in MET[seed])
    rare = {what: seen[what] for what, share in EXPECTED.items() if seen[what] < share * seeds}
    assert not rare, f"too rare to prove anything: {rare} of {seeds}"


def reported(tale: Tale) -> list[Any]:
    story = tale.story
    requests = [(call.process, call.verb, call.sent, call.applied, call.delivered, call.copy) for call in story.stored]
    events = [(type(event).__name__, event.at, event.run_id) for act in story.acts for event in act.events]
    return [requests, events, story.calls, list(story.journal), [effect.step_key for effect in tale.effects]]


def test_a_story_replays_identically() -> None:
    for seed in range(150):
        plot = from_seed(seed)
        assert from_seed(seed) == plot
        assert reported(played(plot)) == reported(played(plot)), replay(seed)


def test_a_broken_promise_prints_the_line_that_replays_its_story() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "a step that is done is done again")
    with applied(mutant), pytest.raises(AssertionError, match="replay: python -m tests") as caught:
        test_every_promise_holds_through_crashes_and_takeovers(range(1000))
    line = str(caught.value).split("replay: ")[1].splitlines()[0].split()
    assert line[:3] == ["python", "-m", "tests.simulator.crashes"]
    replayed = subprocess.run([sys.executable, *line[1:]], capture_output=True, text=True, timeout=60, check=True)
    last = replayed.stdout.splitlines()[-1]
    assert last == f"seed {line[3]}:  all promises kept"  # The mutant that broke one is gone.
    assert "RunRecovered" in replayed.stdout


def test_a_late_copy_of_a_claim_whose_run_is_over_begins_nothing() -> None:
    weather = Weather(latency=0.01, doubled=1.0)
    for seed in range(30):
        done: list[str] = []
        wf = Workflow("once")
        wf.add_step("a", lambda ctx: done.append(ctx.step))  # noqa: B023 - called in this turn of the loop
        story = play(wf, seed=seed, store=SimulatedStore(), key="k", weather=weather)
        copies = [call for call in story.stored if call.copy and call.verb == "claim"]
        assert done == ["a"]
        assert copies
        assert all(isinstance(call.answer, Finished) for call in copies if call.applied > story.acts[0].ended)
