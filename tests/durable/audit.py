"""What must be true of every run after crashes, whatever else happened: the ledger, the journal and the record agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from flowcore import Workflow
from flowcore.status import Status
from flowcore.stores.base import RELEASED, RunRecord
from tests.durable.ledger import Effect, Word

__all__ = ["audit", "audit_after_loss"]

_UNDONE: Final = frozenset({Status.FAILURE, Status.COMPENSATED})


def never(effect: Effect, since: float) -> bool:
    """No process was ever frozen."""
    return False


def audit(
    effects: Sequence[Effect],
    words: Sequence[Word],
    record: RunRecord | None,
    workflow: Workflow,
    was_frozen: Callable[[Effect, float], bool] = never,
) -> list[str]:
    """What is wrong with all that one key has seen; empty if all is well.

    `record`: of the key's last run. `was_frozen(effect, since)`: whether the process of this effect was stopped between
    that time and the effect, so that it may have had it after its lease.
    """
    wrong: list[str] = []
    effects = _in_time(effects)
    runs = list(dict.fromkeys([word.run_id for word in words] + [effect.run_id for effect in effects]))
    keys: dict[str, str] = {}
    for run_id in runs:
        did = [effect for effect in effects if effect.run_id == run_id]
        said = [word for word in words if word.run_id == run_id]
        late = {effect for effect in did if _is_late(effect, said)}
        wrong += (
            f"{_name(effect)} came after its owner's lease" for effect in late if not _excused(effect, said, was_frozen)
        )
        did = [effect for effect in did if effect not in late]  # a service that looks at the fence has refused these
        wrong += _owners(said)
        wrong += _once(did, said)
        wrong += _order(did, workflow)
        for effect in did:
            meant = f"{run_id} {effect.step} {effect.what.removeprefix('failed ')}"
            if keys.setdefault(effect.step_key, meant) != meant:
                wrong.append(f"{_name(effect)} has the step_key of {keys[effect.step_key]}")
        if record is not None and record.run_id == run_id:
            wrong += _end(did, record, workflow)
        else:  # it released the key, or no other run could have begun
            wrong += (f"{step} of released run {run_id} still stands" for step in _standing(did))
    return wrong


def audit_after_loss(effects: Sequence[Effect], record: RunRecord | None, workflow: Workflow) -> list[str]:
    """The same where the store has forgotten some of what it was told: steps may then be done again, under this run or
    another one, but none before what it depends on, and no run is a success without all of its steps."""
    wrong: list[str] = []
    for run_id in dict.fromkeys(effect.run_id for effect in effects):
        first: dict[str, int] = {}
        for place, effect in enumerate(effects):
            if effect.run_id == run_id and effect.what == "do":
                first.setdefault(effect.step, place)
        for step in workflow.steps:
            early = [name for name in step.depends_on if first.get(name, len(effects)) > first.get(step.name, -1)]
            if step.name in first and any(name not in _skippable(workflow) for name in early):
                wrong.append(f"{step.name} was done before {early} (run {run_id})")
        if record is not None and record.run_id == run_id and record.status == Status.SUCCESS:
            ended = {name for name, report in record.steps.items() if report.status == "success"} - _waits(workflow)
            missing = [step.name for step in workflow.steps if step.name not in record.steps]
            if missing or ended - first.keys() or ended - record.results.keys():
                wrong.append(f"run {run_id} succeeded with {sorted(ended)}, done were {sorted(first)}")
    return wrong


def _skippable(workflow: Workflow) -> set[str]:
    return {step.name for step in workflow.steps if step.when is not None} | _waits(workflow)


def _waits(workflow: Workflow) -> set[str]:
    """The steps without a function, which leave no line."""
    return {step.name for step in workflow.steps if step.wait is not None}


def _in_time(effects: Iterable[Effect]) -> list[Effect]:
    """The same, none earlier than those that were written before it: a process may stand still between looking at the
    clock and writing."""
    latest, found = 0.0, list[Effect]()
    for effect in effects:
        latest = max(latest, effect.at)
        found.append(effect._replace(at=latest))
    return found


def _name(effect: Effect) -> str:
    return f"{effect.what} {effect.step} (run {effect.run_id}, fence {effect.fence}, pid {effect.pid})"


def _is_late(effect: Effect, words: Iterable[Word]) -> bool:
    """Whether a later owner had been told that the run was its own."""
    return any(word.verb == "claim" and word.fence > effect.fence and word.heard < effect.at for word in words)


def _excused(effect: Effect, words: Iterable[Word], was_frozen: Callable[[Effect, float], bool]) -> bool:
    """Whether its process had already looked at its lease and was about to call the step, or in it, which
    cannot be prevented."""
    where = (effect.fence, effect.pid, effect.thread)
    heard = [
        word.heard for word in words if (word.fence, word.pid, word.thread) == where and word.heard <= effect.called
    ]
    return was_frozen(effect, max(heard, default=0.0))


def _owners(words: Sequence[Word]) -> Iterable[str]:
    """Each owner begins after the one before, and the store accepts nothing from an owner after the next one has begun."""
    claims: dict[int, float] = {}
    for word in words:
        if word.verb == "claim":
            claims[word.fence] = min(claims.get(word.fence, word.heard), word.heard)
    for word in words:
        for fence, heard in claims.items():
            if fence > word.fence and word.sent > heard:
                yield f"{word.verb} with fence {word.fence} was accepted after fence {fence} (run {word.run_id})"


def _once(effects: Sequence[Effect], words: Sequence[Word]) -> Iterable[str]:
    """One effect for each step and each undo, but for what was in flight when an owner died."""
    known: dict[tuple[str, str], int] = {}
    for word in words:
        for what, steps in (("do", word.done), ("undo", word.undone)):
            for step in steps:
                known[step, what] = min(known.get((step, what), word.fence), word.fence)
    seen: set[tuple[str, str, int]] = set()
    for effect in effects:
        this = (effect.step, effect.what, effect.fence)
        if this in seen and effect.what != "failed undo":  # An undo is retried.
            yield f"{_name(effect)} happened twice under one owner"
        seen.add(this)
        if known.get((effect.step, effect.what), effect.fence) < effect.fence:
            yield f"{_name(effect)} happened again, though the store knew of it"


def _order(effects: Sequence[Effect], workflow: Workflow) -> Iterable[str]:
    """A step comes after all that it depends on, an undo before theirs, and nothing is done once undoing has begun."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, effect in enumerate(effects):
        places.setdefault((effect.step, effect.what), []).append(place)
    for step in workflow.steps:
        for before in _all_before(workflow, step.name):
            done, after = places.get((before, "do")), places.get((step.name, "do"))
            if after and done and done[-1] > after[0]:
                yield f"{step.name} was done before {before} was"
            undone, first = places.get((step.name, "undo")), places.get((before, "undo"))
            tried = places.get((step.name, "failed undo"), undone)
            if first and tried and undone and min(tried[0], undone[-1]) > first[0]:
                yield f"{before} was undone before {step.name} was"
    undoing = [place for place, effect in enumerate(effects) if effect.what == "undo"]
    if undoing and any(effect.what == "do" for effect in effects[undoing[0] :]):
        yield "a step was done after undoing had begun"


def _all_before(workflow: Workflow, step: str) -> set[str]:
    by_name = {one.name: one for one in workflow.steps}
    found: set[str] = set()
    more = [step]
    while more:
        new = set(by_name[more.pop()].depends_on) - found
        found |= new
        more += new
    return found


def _standing(effects: Iterable[Effect]) -> list[str]:
    """The steps whose net effect is 1: done, once or more, and not undone."""
    effects = list(effects)
    undone = {effect.step for effect in effects if effect.what == "undo"}
    return sorted({effect.step for effect in effects if effect.what == "do"} - undone)


def _end(effects: Sequence[Effect], record: RunRecord, workflow: Workflow) -> Iterable[str]:
    """What stands is what the final state says."""
    standing = _standing(effects)
    if record.held:
        return
    if record.status not in {Status.SUCCESS, *RELEASED}:
        yield f"the run did not end: {record.status}"
    if record.status == Status.SUCCESS:
        ended = {name for name, report in record.steps.items() if report.status == "success"}
        expected = sorted(ended - _waits(workflow))
        missing = [step.name for step in workflow.steps if step.name not in record.steps]
        if standing != expected or missing:
            yield f"the run succeeded, and {standing} stand, not {expected}; never ended: {missing}"
        if any(effect.what == "undo" for effect in effects):
            yield "the run succeeded, and something was undone"
        for name in expected:  # the context that it ended with is that of the steps as they were done
            owners = {effect.fence for effect in effects if effect.step == name}
            if record.values.get(f"by {name}") not in owners or record.results.get(name) != f"{name} is done":
                yield f"{name} left {record.values.get(f'by {name}')!r} and {record.results.get(name)!r}"
    elif standing:
        yield f"the run ended with {record.status}, and {standing} still stand"
