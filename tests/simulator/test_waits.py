"""Waits in virtual time: values are sent at any moment, twice, early and late, to runs whose processes die."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from flowcore import RetryAfter, SendRefused, Status, StepTimeout, StoreError, Workflow
from flowcore.stores import MemoryStore
from flowcore.testing import Sending, SimulatedStore, simulate
from flowcore.testing.acts import Caller, Halt
from flowcore.testing.network import Weather
from flowcore.testing.story import Story, play

LEASE = 5.0
WAITS = ("approved", "paid", "free")


def order(effects: Counter[str]) -> Workflow:
    """Return a workflow: quote, then approved beside paid, then ship. Beside all of this there are a wait with a
    default (free), a nap, and then a step that raises RetryAfter twice (charge). All of it ends in end."""
    wf = Workflow("order")

    def step(name: str, *after: str) -> None:
        def do(ctx: Any) -> str:
            effects[name] += 1
            return name

        def undo(ctx: Any) -> None:
            effects[f"-{name}"] += 1

        wf.add_step(name, do, depends_on=after, compensate=undo)

    step("quote")
    wf.wait("approved", depends_on="quote", timeout=20)
    wf.wait("paid", depends_on="quote")
    step("ship", "approved", "paid")
    wf.wait("free", timeout=8, default="nothing")
    wf.sleep("nap", 3)

    def charge(ctx: Any) -> int:
        if ctx.attempt < 3:
            raise RetryAfter(4)
        return int(ctx.attempt)

    wf.add_step("charge", charge, retry=4, depends_on="nap")
    step("end", "ship", "free", "charge")
    return wf


def drawn(seed: int) -> tuple[list[Sending], dict[str, Any], bool]:
    """Return the values to send, the options of the story, and whether the run is durable."""
    draw = random.Random(seed)
    second = draw.random() * 5  # the moment in which a second caller comes, if it comes beside the first one
    sends = [
        Sending(
            name,
            number,
            # At the start, early, late, or while a claim is under way.
            draw.choice([0.0, draw.random() * 3, draw.random() * 30, draw.choice([0.0, second]) + draw.random() * 0.1]),
            draw.choice([None, "one", "two"]),
        )
        for name in WAITS
        for number in range(draw.randrange(4))
    ]
    sends.append(Sending("paid", "last", 40.0))  # Without it, the run could wait for ever.
    durable = draw.random() < 0.7
    callers: list[Caller] = [Caller()]
    if durable and draw.random() < 0.7:
        halt = Halt(draw.choice(["store", "store", "call"]), draw.randrange(1, 12), done=draw.random() < 0.5)
        callers = [Caller(halt=halt), Caller(after=LEASE * 1.2), Caller(after=draw.random() * 20, recovers=True)]
    if durable and draw.random() < 0.3:
        callers.append(Caller(after=second, beside=True, wait=5.0))
    if durable and draw.random() < 0.3:  # a deploy
        stopped = draw.randrange(len(callers))
        callers[stopped] = replace(callers[stopped], stops=draw.random() * 12)
        callers.append(Caller(after=draw.random() * LEASE, recovers=draw.random() < 0.5))
    options: dict[str, Any] = {"callers": callers, "key": "k" if durable or draw.random() < 0.5 else None}
    if draw.random() < 0.2:
        options["cancel_at"] = draw.random() * 10
    if draw.random() < 0.2:
        options["deadline"] = 5 + draw.random() * 20
    options["park_after"] = draw.choice([1.0, 1.0, math.inf])
    if durable and draw.random() < 0.6:
        options["weather"] = Weather(latency=0.05, lost=draw.choice([0.05, 0.2]), doubled=draw.choice([0.0, 0.1]))
    return sends, options, durable


def reported(seed: int) -> tuple[Story, Any, Counter[str]]:
    effects: Counter[str] = Counter()
    sends, options, durable = drawn(seed)
    store: MemoryStore = SimulatedStore() if durable else MemoryStore()
    story = play(order(effects), seed=seed, store=store, lease=LEASE, sends=sends, **options)
    return story, store.find(story.key), effects


def judged(seed: int) -> list[str]:
    """Return what is wrong with the story of a seed, in words."""
    story, record, effects = reported(seed)
    if record is not None and record.generation:  # A caller began a new run after one that was undone.
        return []
    wrong: list[str] = []
    accepted: dict[str, Sending] = {}
    for sending, outcome in story.sent:
        first = accepted.get(sending.step)
        again = first is not None and sending.id is not None and first.id == sending.id
        if outcome is True and first is None:
            accepted[sending.step] = sending
        elif outcome is True and not again:
            wrong.append(f"two values for {sending.step} count")
        elif outcome is False and first is None:
            wrong.append(f"{sending.step} has a value that was never sent")
        elif isinstance(outcome, SendRefused) and first is not None:
            wrong.append(f"a second value for {sending.step} was refused with {outcome}")
    ended = [act.run for act in story.acts if act.run is not None and act.run.status is not Status.WAITING]
    run = ended[-1] if ended else None
    status = record.status if record is not None else None if run is None else run.status
    if record is not None and status not in {"success", "failure", "compensated"}:
        wrong.append(f"the run is left {status}")
    if all(act.halted is None for act in story.acts):
        whole = all(act.stopped is None for act in story.acts)  # no process has left a call in flight
        wrong += [f"{name} ran {times} times" for name, times in effects.items() if times > 1 and whole]
        # A process that must stop may not hear that it has parked the run, which another one then resumes.
        lost = [act for act in story.acts if act.run is not None and act.run.status is Status.LOST]
        wrong += ["a run was lost" for act in lost if act.stopped is None]
    results = record.results if record is not None else {} if run is None else run.results
    if status == "success":
        for name in WAITS:
            expected = accepted[name].value if name in accepted else "nothing"
            if results[name] != expected:
                wrong.append(f"{name} has {results[name]}, and {expected} was sent")
        wrong += [f"{name} was undone" for name in effects if name.startswith("-")]
        charge = record.steps["charge"] if record is not None else None if run is None else run.steps["charge"]
        if results["charge"] != 3 or charge is None or (charge.attempts, charge.failed) != (3, 2):
            wrong.append(f"charge ended as {charge}")
    elif status is not None:
        wrong += [f"{name} was not undone" for name in ("quote", "ship") if effects[name] and not effects[f"-{name}"]]
    return wrong


@pytest.mark.proof(quick=500, full=5_000, each=500)
def test_every_promise_of_waits_holds_whenever_values_come(seeds: range) -> None:
    for seed in seeds:
        assert judged(seed) == [], f"seed {seed}"


def test_the_stories_meet_what_can_go_wrong() -> None:
    seen: Counter[str] = Counter()
    for seed in range(300):
        story, record, _ = reported(seed)
        seen["durable"] += drawn(seed)[2]
        seen["over " + str(None if record is None else record.status)] += 1
        seen["waited in its store"] += sum(
            act.run is not None and act.run.status is Status.WAITING for act in story.acts
        )
        seen["waited for an attempt"] += any(
            act.run is not None and act.run.status is Status.WAITING and act.run.steps["charge"].failed
            for act in story.acts
        )
        seen["crashed"] += any(act.halted is not None for act in story.acts)
        for call in story.stored:
            if call.verb == "find":
                seen[f"read what was sent{'' if call.delivered else ', and the reply was lost'}"] += 1
        for _, outcome in story.sent:
            seen[f"sent: {outcome}" if isinstance(outcome, bool) else f"refused: {type(outcome).__name__}"] += 1
    wanted = (
        "durable",
        "over success",
        "over compensated",
        "waited in its store",
        "waited for an attempt",
        "crashed",
        "read what was sent",
        "read what was sent, and the reply was lost",
        "sent: True",
        "sent: False",
    )
    assert all(seen[name] > 10 for name in (*wanted, "refused: SendRefused")), seen


def test_a_simulation_takes_values_to_send() -> None:
    wf = order(Counter())
    simulation = simulate(
        wf, seed=1, sends=[Sending("approved", 1, 2.0), Sending("paid", 2, 1.0), Sending("paid", 3, 4.0)]
    )
    assert simulation.run["approved"] == 1
    assert [outcome for _, outcome in simulation.sent] == [True, True, False]
    failed = simulate(wf, seed=1, sends=[Sending("paid", 2, 1.0), Sending("approved", 1, 30.0)])
    assert isinstance(failed.run.error, StepTimeout)
    assert isinstance(failed.sent[-1][1], SendRefused | StoreError)
