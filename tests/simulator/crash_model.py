"""An oracle for runs that crash, are taken over, cannot reach their store, or are claimed by several processes.

`judged_tale(tale)` returns the promises that were broken, in words. It trusts the requests that reached the store, the
simulator's own list of calls, and the effects that user code noted. It trusts the events and the runs only where they
agree with these.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flowcore import (
    CompensationFailed,
    IdempotencyHeld,
    IdempotencyInProgress,
    LeaseLost as LeaseLostError,
    Run,
    RunFailed,
    RunNotFound,
    RunParked,
    Status,
    StepCancelled,
    StoreError,
    StoreUnavailable,
)
from flowcore.events import (
    AttemptFinished,
    AttemptStarted,
    CompensationFinished,
    CompensationStarted,
    HookFailed,
    LeaseLost,
    MaintenanceFinished,
    MaintenanceStarted,
    RunFinished,
    RunRecovered,
    RunRequested,
    RunStarted,
    StepCompletedLate,
    StepFinished,
    StepStarted,
    StoreCalled,
)
from flowcore.run import StepReport
from flowcore.stores.base import Claimed, Lost
from flowcore.testing.acts import Act, Fault, SimulatedCall
from flowcore.testing.network import Weather

from .chronicle import OVER, Chronicle, Done, Grant, KeptRun, Known
from .crashes import Tale

IN_DOUBT = {Status.RUNNING, Status.UNKNOWN, Status.TIMEOUT, Status.CANCELLED}
RELEASED = {Status.FAILURE, Status.COMPENSATED}
PAIRS = (
    (RunStarted, RunFinished),
    (StepStarted, StepFinished),
    (AttemptStarted, AttemptFinished),
    (CompensationStarted, CompensationFinished),
    (MaintenanceStarted, MaintenanceFinished),
)


def judged_tale(tale: Tale) -> list[str]:
    """Return the promises that were broken in this tale."""
    chronicle = Chronicle(tale)
    return [promise for judge in JUDGES for promise in judge(chronicle)]


def ownership(c: Chronicle) -> Iterator[str]:
    """There is one owner at a time: the fence only rises, and the store accepts nothing from an earlier owner."""
    yield from c.broken
    for before, after in itertools.pairwise(c.runs):
        if after.generation != before.generation + 1:
            yield f"generation {after.generation} follows {before.generation}"


def starts(c: Chronicle) -> Iterator[str]:
    """The record in the store allows each call: the process owns the run, the dependencies are done, and the start of
    the step is recorded. No step begins once the run is being undone, and nothing is done or undone a second time."""
    for call in c.story.calls:
        run = c.run_of(call.fence)
        if run is None:
            yield f"{call} belongs to no run"
            continue
        known = run.before(call.requests_before)
        if call.what in {"do", "undo"}:
            if known.fence != call.fence:
                yield f"process {call.process} begins to {call.what} {call.step}, though fence {known.fence} has been granted"
            elif known.status is not Status.RUNNING and not _lands_late(c, call):
                yield f"process {call.process} begins to {call.what} {call.step}, though the run is {known.status}"
        if call.what in {"do", "when"}:
            for name in c.steps[call.step].depends_on:
                if known.status_of(name) not in OVER:
                    yield f"{call.what} {call.step} begins, though the store has {name} as {known.status_of(name)}"
        own = known.steps.get(call.step)
        in_doubt = known.fence == call.fence and own is not None and _is_open(own.report)
        if call.what == "when" and in_doubt and _said(c, call.step, call.fence) != "not landed":
            yield f"{call.step} gets its when= called again, though it was in flight and may have happened"
        if call.what == "do":
            yield from _may_do(call, known)
        elif call.what == "undo" and not _lands_late(c, call):
            yield from _may_undo(c, run, call, known)


def _is_open(report: StepReport) -> bool:
    """Whether a step is in doubt: it may have had its effect. One cancelled before its first attempt had no effect."""
    return report.status in IN_DOUBT and report.undo is None and report.attempts > 0


def _lands_late(c: Chronicle, call: SimulatedCall) -> bool:
    """Whether the call undoes a step that has completed late. It is undone again, even after the end of the run."""
    events = c.story.acts[call.process].events
    late = [event for event in events if isinstance(event, StepCompletedLate) and not event.undo]
    return call.what == "undo" and any(event.step == call.step for event in late)


def _may_do(call: SimulatedCall, known: Known) -> Iterator[str]:
    own = known.steps.get(call.step)
    if own is None or own.report.status is not Status.RUNNING or own.report.attempts != call.attempt:
        reported = "nothing" if own is None else f"{own.report.status}, attempt {own.report.attempts}"
        yield f"do {call.step} (attempt {call.attempt}) begins in process {call.process}, and the store has {reported} of it"
    if known.undoing:
        yield f"do {call.step} begins, though the run is being undone"


def _may_undo(c: Chronicle, run: KeptRun, call: SimulatedCall, known: Known) -> Iterator[str]:
    if not known.undoing:
        yield f"undo {call.step} begins, and the store does not know that the run is being undone"
    if known.status_of(call.step) in {Status.PENDING, Status.SKIPPED}:
        yield f"undo {call.step} begins, though the store has it as {known.status_of(call.step)}"
    decided = bool({"resume", "undo"} & set(run.decisions))  # Then failed undos are tried again.
    if known.undo_of(call.step) is not None and not (decided and known.undo_of(call.step) is not Status.SUCCESS):
        yield f"undo {call.step} begins in process {call.process}, though it is known to be undone: {known.undo_of(call.step)}"
    begun = next((state for state in run.states if state.undoing), known)  # From then on the run is only undone.
    past_pivot = any(step.pivot and begun.status_of(step.name) is Status.SUCCESS for step in c.spec.steps)
    if past_pivot and "undo" not in run.decisions:
        yield f"undo {call.step} begins past the pivot"
    ended = [e for e in c.story.acts[call.process].events[: call.events_before] if isinstance(e, CompensationFinished)]
    for event in ended if not c.spec.parallel_undo else ():
        if event.step != call.step and known.undo_of(event.step) is None:
            yield f"undo {call.step} begins, and the store does not know that {event.step} is undone"


def undo_order(c: Chronicle) -> Iterator[str]:
    """Steps in flight at a crash are undone first, then the done steps, the latest first, over all takeovers."""
    for run in c.runs:
        calls = [call for call in c.story.calls if call.fence in run.fences() and call.what == "undo"]
        firsts: dict[str, SimulatedCall] = {}
        for call in calls:
            if not _lands_late(c, call):
                firsts.setdefault(call.step, call)
        if c.spec.parallel_undo:
            yield from _parallel_order(c, run, firsts)
            continue
        if run.decisions:
            continue  # Failed undos are tried again, in the order in which they failed.
        places = {
            name: _place(c, run, call)
            for name, call in firsts.items()
            if not _was_pending(c, run, call) and not _was_verified(c, run, call)
        }
        for (one, first), (other, second) in itertools.pairwise(places.items()):
            if first < second:
                yield f"{one} is undone before {other}, which was done after it: {first}, {second}"


def _place(c: Chronicle, run: KeptRun, call: SimulatedCall) -> float:
    """Return the seq of the end of a step, or infinity if the step was in flight at a takeover."""
    known = run.before(call.requests_before)
    for grant in run.grants:
        if (
            grant.fence <= call.fence
            and _said(c, call.step, grant.fence) == "landed"
            and c.decision(grant.fence) == "undo"
        ):
            known = run.before(grant.position)  # the state that this owner found
            if call.step in known.steps and not known.steps[call.step].effect:
                return float("inf")
            break
    if known.status_of(call.step) in {Status.RUNNING, Status.UNKNOWN}:
        return float("inf")
    return known.steps[call.step].seq if call.step in known.steps else 0


def _was_pending(c: Chronicle, run: KeptRun, call: SimulatedCall) -> bool:
    """Whether the owner that undoes a step found it between two attempts, and made no other. No step that depends on it
    has begun, so its undo may come at any place."""
    own = next(grant for grant in run.grants if grant.fence == call.fence)
    found = run.before(own.position)
    tried = any((one.what, one.step, one.fence) == ("do", call.step, call.fence) for one in c.story.calls)
    return (
        not tried
        and own.record is not None
        and call.step in found.steps
        and found.status_of(call.step) is Status.PENDING
    )


def _was_verified(c: Chronicle, run: KeptRun, call: SimulatedCall) -> bool:
    """Whether an owner found that the effect of a step is missing, which may have come later, from a zombie, or an owner
    before the one that undoes it found the effect. Then its undo may come at any place."""
    said = {fence: _said(c, call.step, fence) for fence in run.fences()}
    return "not landed" in said.values() or any(said[fence] == "landed" for fence in said if fence < call.fence)


def _said(c: Chronicle, step: str, fence: int) -> str | None:
    """Return what the verify= of a step did when an owner called it, or None if that owner did not call it."""
    return next(
        (
            done.effect.did
            for done in c.done
            if (done.effect.what, done.effect.step, done.effect.fence) == ("verify", step, fence)
        ),
        None,
    )


def _parallel_order(c: Chronicle, run: KeptRun, firsts: dict[str, SimulatedCall]) -> Iterator[str]:
    for name, call in firsts.items():
        known = run.before(call.requests_before)
        for other in firsts:
            said = {_said(c, other, fence) for fence in run.fences() if fence <= call.fence}
            if name in _ancestors(c, other) and known.undo_of(other) is None and "not landed" not in said:
                yield f"{name} is undone before its dependant {other}"


def _ancestors(c: Chronicle, name: str) -> set[str]:
    found: set[str] = set()
    todo = list(c.steps[name].depends_on)
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo.extend(c.steps[one].depends_on)
    return found


def endings(c: Chronicle) -> Iterator[str]:
    """Each run ends, and its status is true: all is done, or all is undone, or the key is held."""
    for run in c.runs:
        end = run.now
        if (
            "hold" in run.decisions
            or "release" in run.decisions
            or run.withdrawn
            or not (run.grants[-1].delivered or _may_hear(c.story.acts[run.grants[-1].process], run.grants[-1]))
        ):
            continue  # An operator has decided, or the last claim was a late copy whose sender no longer waited for it.
        if run is not c.runs[-1] and end.status not in RELEASED:
            yield f"a new run has begun, though the last one is {end.status}"
        if end.status is Status.SUCCESS:
            for name in c.steps:
                if end.status_of(name) not in OVER:
                    yield f"the run is a success, though {name} is {end.status_of(name)}"
            if any(done.effect.what == "undo" for done in c.of(run)):
                yield "the run is a success, though something was undone"
        elif end.status in RELEASED:
            yield from _released(c, run)
        elif end.status is Status.COMPENSATION_FAILED:
            if not end.held:
                yield "an undo failed, and the key is not held"
            if all(end.undo_of(name) in {None, Status.SUCCESS} for name in c.steps):
                yield "the run is compensation_failed, though no undo failed"
        elif end.status is Status.INCOMPLETE:
            if not any(step.pivot and end.status_of(step.name) is Status.SUCCESS for step in c.spec.steps):
                yield "the run is incomplete, though it is not past its pivot"
            if any(done.effect.what == "undo" for done in c.of(run)) and "undo" not in run.decisions:
                yield "something was undone past the pivot"
        elif not (end.status is Status.PARKED and (end.held or _leaves_it_parked(c, run))):
            yield f"the run is stuck: {end.status}"


def _may_hear(act: Act, grant: Grant) -> bool:
    """Whether the process was at work when its claim was granted."""
    return act.ended is None and (act.halted is None or act.halted >= grant.at)


def _leaves_it_parked(c: Chronicle, run: KeptRun) -> bool:
    """Whether the last owner parked the run because its process had to stop, or a step ended it, or a `verify=`
    raised or timed out."""
    last = run.grants[-1]
    if c.story.acts[last.process].stopped is not None:
        return True
    got = c.story.acts[last.process].run
    exits = got is not None and got.error is not None and not isinstance(got.error, Exception)
    raised = any(_said(c, name, last.fence) == "raises" for name in c.steps)
    return exits or raised or bool(_verified_too_late(c, last))


def _verified_too_late(c: Chronicle, grant: Grant) -> set[str]:
    """Return the steps whose `verify=` an owner gave up, because it took longer than the timeout of the step."""
    calls = [call for call in c.story.calls if (call.what, call.fence) == ("verify", grant.fence)]
    return {call.step for call in calls if call.given_up is not None}


def _released(c: Chronicle, run: KeptRun) -> Iterator[str]:
    """No effect of a run stands once the run was undone."""
    end = run.now
    done = [one for one in c.of(run) if not one.stale]
    for name, step in c.steps.items():
        if step.undo is None:
            continue
        record = end.steps.get(name)
        asked = [one.effect.did for one in c.of(run) if one.effect.what == "verify" and one.effect.step == name]
        effect = record is not None and record.effect and asked[-1:] != ["not landed"]
        if record is not None and effect and record.report.undo is not Status.SUCCESS:
            yield f"the run is {end.status}, though {name} may have had its effect and is not undone"
        mine = [(index, one.effect) for index, one in enumerate(done) if one.effect.step == name]
        last = max((index for index, effect in mine if effect.what == "do" and effect.did == "ok"), default=-1)
        undone = max((index for index, effect in mine if effect.what == "undo" and effect.did == "ok"), default=-2)
        if (name, Fault.FAIL_AFTER) in c.spec.faults:
            continue  # The step raised, so it must be undone only if its record says so.
        if (
            last >= 0
            and undone < last
            and not _died_before_it_noticed(c, done[last])
            and not _known_not_to_have_landed(c, run, name, done, last)
        ):
            yield f"the run is {end.status}, though the effect of {name} is not undone"
    undone = any(end.undo_of(name) is Status.SUCCESS for name in c.steps)
    if (end.status is Status.COMPENSATED) is not undone:
        yield f"the run is {end.status}, and {'something' if undone else 'nothing'} was undone"


def _died_before_it_noticed(c: Chronicle, one: Done) -> bool:
    """Whether the effect came after its call had been given up, and its process died before it noticed the effect."""
    act = c.story.acts[one.call.process]
    noticed = any(isinstance(event, StepCompletedLate) and event.step == one.call.step for event in act.events)
    return one.call.given_up is not None and act.ended is None and not noticed


def _known_not_to_have_landed(c: Chronicle, run: KeptRun, name: str, done: list[Done], last: int) -> bool:
    """Whether `verify=` was called before that effect, which came late, from a process that had been stopped."""
    return any(one.effect.what == "verify" and one.effect.step == name for one in done[:last])


def callers(c: Chronicle) -> Iterator[str]:
    """Each caller gets the outcome of the run, or the reason why it cannot know it."""
    for number, act in enumerate(c.story.acts):
        who = f"process {number}"
        if act.refusal is not None:
            kinds: tuple[type[Exception], ...] = (
                IdempotencyHeld,
                IdempotencyInProgress,
                StoreUnavailable,
                StepCancelled,
                RunNotFound,
            )
            if act.caller.decides is not None:
                kinds = (StoreError,)
            elif act.caller.recovers:
                kinds = (*kinds, LeaseLostError)
            if act.caller.stops is not None:
                kinds = (*kinds, RunParked)
            if act.exited is not None and isinstance(act.refusal, SystemExit):
                continue
            if not isinstance(act.refusal, kinds):
                yield f"{who} is refused with {act.refusal!r}"
            continue
        if act.ended is None and act.halted is None:
            yield f"{who} never ends"
        if act.run is None:
            continue
        # A late copy of a claim may have begun a second run with the id of the first.
        fences = {event.fence for event in act.events if isinstance(event, RunStarted)}
        mine = [run for run in c.runs if run.run_id == act.run.id]
        run = next((run for run in mine if fences & run.fences()), mine[-1] if mine else None)
        if run is None:
            yield f"{who} got a run that the store does not know"
            continue
        yield from _answer(c, who, act, act.run, run)


def claims(c: Chronicle) -> Iterator[str]:
    """Recovery never begins a run, and a process that gives up on the reply to its claim withdraws the claim."""
    for number, act in enumerate(c.story.acts):
        fresh = [event for event in act.events if isinstance(event, RunStarted) and event.interrupted_run_id is None]
        if act.caller.recovers and fresh:
            yield f"process {number} recovers, and begins a run afresh"
        verbs = [call.verb for call in c.story.stored if call.process == number and not call.copy]
        if isinstance(act.refusal, StoreUnavailable) and "claim" in verbs and "withdraw" not in verbs:
            yield f"process {number} stops claiming the run, and does not withdraw its claim"


def patience(c: Chronicle) -> Iterator[str]:
    """Requests to an unreachable store are repeated until the lease is about to end; only then is the run parked."""
    for number, act in enumerate(c.story.acts):
        run = act.run
        if run is None or act.ended is None or run.status is not Status.PARKED or run.error is None:
            continue
        if not isinstance(run.error.__cause__, StoreUnavailable):
            continue
        mine = [call for call in c.story.stored if call.process == number and not call.copy]
        good = [call.sent for call in mine if call.delivered and call.verb in {"claim", "checkpoint", "finish"}]
        good = [sent for sent in good if sent + c.tale.plot.lease < act.ended]
        asked = [call for call in mine if call.verb == "claim"]  # The lease counts from the first one without a reply.
        good += [call.sent for call in asked if call.delivered and len(asked) == 1]
        if good and act.ended < max(good) + c.tale.plot.lease * 5 / 6 - 1e-6:
            yield f"process {number} parks at {act.ended}, its lease was renewed at {max(good)}"


def _answer(c: Chronicle, who: str, act: Act, got: Run, run: KeptRun) -> Iterator[str]:
    statuses = {known.status for known in run.states}
    if got.error is not None and not isinstance(got.error, Exception):
        pass  # A SystemExit is raised whatever the run's status.
    elif got.status is Status.LOST:
        if not isinstance(got.error, LeaseLostError) or got.error.run_id != run.run_id:
            yield f"{who} has lost the run, and gets {got.error!r}"
    elif got.status is Status.PARKED:
        if not isinstance(got.error, IdempotencyHeld if got.held else RunParked):
            yield f"{who} has parked the run, and gets {got.error!r}"
    elif got.status is Status.WAITING and _left_too_late(c, act):
        pass
    elif got.status not in statuses:
        yield f"{who} gets {got.status}, which the store never recorded: {statuses}"
    if got.status is Status.SUCCESS:
        results = {name: record.result for name, record in run.now.steps.items() if record.has_result}
        if got.results != results:
            yield f"{who} got the results {got.results}, the store has {results}"
    lost = sum(isinstance(event, LeaseLost) for event in act.events)
    if lost > 1 or (got.status is Status.LOST and not lost and act.exited is None):
        yield f"{who} gets {lost} reports that its lease is lost"
    mine = {grant.fence: grant for grant in run.grants if grant.delivered}
    started = [event for event in act.events if isinstance(event, RunStarted)]
    grant = mine.get(started[0].fence) if started else None
    if grant is not None and grant.record is not None and grant.record.undoing:
        cause = got.error.__cause__ if isinstance(got.error, CompensationFailed) else got.error
        if got.status in RELEASED | {Status.COMPENSATION_FAILED} and not isinstance(cause, RunFailed):
            yield f"{who} has finished the undo of a run that failed elsewhere, and gets {cause!r}"
        known, failed = grant.record.error, grant.record.steps.get(grant.record.failed_step or "")
        if isinstance(known, RunFailed) and known.error_type == "CompensationFailed" and failed and failed.error:
            known = failed.error  # An earlier undo of the run failed. The cause is still the step that failed first.
        kinds = {"CompensationFailed"} | ({known.error_type} if isinstance(known, RunFailed) else set())
        if isinstance(known, RunFailed) and isinstance(cause, RunFailed) and cause.error_type not in kinds:
            yield f"{who} reports that {cause.error_type} failed the run, it was {known.error_type}"
        if got.status in RELEASED and got.failed_step != grant.record.failed_step:
            yield f"{who} reports that {got.failed_step} failed the run, it was {grant.record.failed_step}"


def _left_too_late(c: Chronicle, act: Act) -> bool:
    """Whether a process ended its part of the run when the store had already given the run to another one."""
    mine = [call for call in c.story.stored if c.story.acts[call.process] is act and call.verb == "finish"]
    return any(isinstance(call.answer, Lost) for call in mine)


def takeovers(c: Chronicle) -> Iterator[str]:
    """A new owner decides as promised: by verify=, then by on_crash=. A run being undone never goes forward again."""
    for run in c.runs:
        for grant in run.grants:
            if grant.record is not None and grant.delivered:
                yield from _takeover(c, run, grant)


def _takeover(c: Chronicle, run: KeptRun, grant: Grant) -> Iterator[str]:
    record, act = grant.record, c.story.acts[grant.process]
    assert record is not None
    reported = [event for event in act.events if isinstance(event, RunRecovered)]
    mine = [done.effect for done in c.done if done.effect.fence == grant.fence]
    said = {effect.step: effect.did for effect in mine if effect.what == "verify"}
    if max(Counter(effect.step for effect in mine if effect.what == "verify").values(), default=0) > 1:
        yield f"process {grant.process} calls a verify= twice"
    in_doubt = [name for name in c.steps if name in record.steps and _is_open(record.steps[name])]
    if record.status is Status.WAITING and record.decision in {None, "resume"}:  # Its last owner left it in order.
        if reported:
            yield f"process {grant.process} recovers a run that needs no recovery"
        return
    if not reported:
        if any(effect.what in {"do", "undo", "when"} for effect in mine):
            yield f"process {grant.process} resumes a run without an event of it"
        return
    event = reported[0]
    if any(moment is not None and moment <= event.at for moment in (act.cancelled, act.stopped)):
        return
    if any(isinstance(other, LeaseLost) and other.at <= event.at for other in act.events):
        return  # It did not wait for the answers of verify=.
    late = _verified_too_late(c, grant)
    for name in in_doubt:
        if c.steps[name].verify is not None and name not in said and name not in late:
            yield f"verify= of {name} was not called"
    said = {name: did for name, did in said.items() if name not in late}
    landed = [name for name in in_doubt if said.get(name) == "landed"]
    not_landed = [name for name in in_doubt if said.get(name) == "not landed"]
    # A step that its owner gave up or cut short, before it parked the run, is as unclear as one in flight at a crash.
    unclear = [name for name in in_doubt if name not in landed + not_landed]
    crashed = [name for name in unclear if record.steps[name].status is Status.RUNNING or not record.undoing]
    over = {name for name, report in record.steps.items() if report.status in OVER} | set(landed)
    done = {name for name, report in record.steps.items() if report.status is Status.SUCCESS} | set(landed)
    past_pivot = any(step.pivot and step.name in done for step in c.spec.steps)
    ask = crashed if record.decision is None else []  # If an operator has decided, on_crash= does not count.
    held = [name for name in ask if c.steps[name].on_crash == "hold"]
    undo = [name for name in ask if c.steps[name].on_crash == "undo" and not past_pivot]
    undo_all = record.undoing or undo or record.decision == "undo" or (record.decision == "cancel" and not past_pivot)
    decision = "hold" if held else "undo" if undo_all else "forward"
    facts = {
        "decision": decision,
        "verified": landed,
        "held": held,
        "skipped": [name for name in c.steps if name in over and name not in landed],
        "retried": [name for name in in_doubt if name not in landed] if decision == "forward" else [],
    }
    # Nothing is decided if a verify= gave no answer.
    raised = [name for name in in_doubt if said.get(name) == "raises" or name in late]
    for name, expected in facts.items() if not raised else ():
        got = getattr(event, name)
        if (list(got) if isinstance(got, tuple) else got) != expected:
            yield f"process {grant.process} recovers with {name} {got}, it should be {expected}"
    went_on = [effect for effect in mine if effect.what in {"do", "undo"}]
    if (held or raised) and went_on:
        yield f"process {grant.process} continues with {went_on[0].step}, though an operator must decide on {held or raised}"
    if decision == "undo" and any(effect.what == "do" for effect in mine):
        yield f"process {grant.process} goes forward, though the run is being undone"
    for name in landed:
        if any(effect.what == "do" and effect.step == name for effect in mine):
            yield f"{name} has completed, and is done again"


def doubts(c: Chronicle) -> Iterator[str]:
    """A step that a crash cut off may have had its effect. It is undone with its run, whatever its later attempts did,
    unless `verify=` found that the effect is missing."""
    for run in c.runs:
        if run.now.status not in RELEASED | {Status.COMPENSATION_FAILED} or run.withdrawn or "release" in run.decisions:
            continue
        for name, position in _cut_off(c, run).items():
            if c.steps[name].undo is not None and run.now.undo_of(name) is None:
                yield f"the run is {run.now.status}, {name} may have happened before grant {position}, and is not undone"


def _cut_off(c: Chronicle, run: KeptRun) -> dict[str, int]:
    """Return the steps that an owner found in doubt, unless verify= has denied them, with the number of the grant."""
    found: dict[str, int] = {}
    for number, grant in enumerate(run.grants):
        reported = any(isinstance(event, RunRecovered) for event in c.story.acts[grant.process].events)
        if grant.record is None or not grant.delivered or not reported:
            continue
        for name, report in grant.record.steps.items():
            if _is_open(report):
                found.setdefault(name, number)
                if _said(c, name, grant.fence) == "not landed" and name not in _verified_too_late(c, grant):
                    del found[name]
    return found


def departures(c: Chronicle) -> Iterator[str]:
    """When an owner parks a run, a step that it has not begun is not in doubt, unless an exit came just then."""
    for run in c.runs:
        for position in run.parked:
            grant = [grant for grant in run.grants if grant.position < position][-1]
            before = {} if grant.record is None else grant.record.steps
            begun = {call.step for call in c.story.calls if call.what == "do" and call.fence == grant.fence}
            for name in run.before(position + 1).steps:
                found_open = name in before and _is_open(before[name])
                if c.story.acts[grant.process].exited is not None:
                    continue
                if run.before(position + 1).status_of(name) is Status.RUNNING and not found_open and name not in begun:
                    yield f"process {grant.process} parks the run, and leaves {name} as running, which it has not begun"


def leaving(c: Chronicle) -> Iterator[str]:
    """A process that must stop leaves its run at once: only calls in flight, which get a grace, and a store that does
    not reply may keep it."""
    for number, act in enumerate(c.story.acts):
        if act.stopped is None or act.ended is None or act.halted is not None:
            continue
        allowed = 2 * c.tale.spec.grace + 2 * c.tale.plot.lease  # two requests, each for a part of a lease
        if act.ended > act.stopped + allowed:
            yield f"process {number} had to stop at {act.stopped}, and left the run only at {act.ended}"


def exits(c: Chronicle) -> Iterator[str]:
    """A process that a signal handler ends leaves no run with its lease, and loses nothing that has ended, if it can reach
    the store."""
    if c.tale.plot.weather != Weather():
        return
    for run in c.runs:
        for grant, following in itertools.zip_longest(run.grants, run.grants[1:]):
            act = c.story.acts[grant.process]
            known = run.now if following is None else run.before(following.position)
            if act.exited is None or act.halted is not None or known.fence != grant.fence:
                continue
            if grant.at > act.exited or (following is not None and following.at <= act.exited):
                continue
            verbs = [call.verb for call in c.story.stored if call.process == grant.process and call.verb != "renew"]
            if "withdraw" in verbs:
                if verbs[-1] != "withdraw":
                    yield f"process {grant.process} withdraws its claim, and then sends {verbs[-1]}"
                continue
            if known.status is Status.RUNNING:
                yield f"process {grant.process} exits, and leaves the run as running"
            late = {event.step for event in act.events if isinstance(event, StepCompletedLate)}  # they are undone again
            for event in act.events:
                done = getattr(event, "outcome", None) is Status.SUCCESS
                if isinstance(event, StepFinished) and done and known.status_of(event.step) is not Status.SUCCESS:
                    yield f"process {grant.process} exits, and leaves {event.step} as {known.status_of(event.step)}"
                if not isinstance(event, CompensationFinished) or not done or event.step in late:
                    continue
                if known.undo_of(event.step) is not Status.SUCCESS:
                    yield f"process {grant.process} exits, and leaves the undo of {event.step} as {known.undo_of(event.step)}"


def decisions(c: Chronicle) -> Iterator[str]:
    """A process that must stop while verify= is asked leaves the decision about the run to the next owner."""
    for run in c.runs:
        for grant in run.grants:
            act = c.story.acts[grant.process]
            stopped, found = act.stopped, grant.record
            if stopped is None or found is None or found.undoing or found.decision is not None:
                continue
            asked = [call for call in c.story.calls if (call.what, call.fence) == ("verify", grant.fence)]
            given_up = [call.given_up for call in asked if call.given_up is not None]
            # One that times out in the moment of an exit was not cut short by it.
            cut = any(moment > stopped or (moment == stopped and act.exited is None) for moment in given_up)
            if cut and any(isinstance(event, RunRecovered) and event.at >= stopped for event in act.events):
                yield f"process {grant.process} decides about the run, though its verify= was cut short at {stopped}"


def reasons(c: Chronicle) -> Iterator[str]:
    """Each owner of a run that is being undone finds the step that failed the run, which earlier owners found."""
    for run in c.runs:
        known: str | None = None
        for grant in run.grants:
            if grant.record is not None and grant.record.undoing and not run.decisions:
                if known is not None and grant.record.failed_step != known:
                    yield f"process {grant.process} finds that {grant.record.failed_step} failed the run, it was {known}"
                known = grant.record.failed_step


def nothing_left_in_flight(c: Chronicle) -> Iterator[str]:
    """The record of a run that is over has no step as running."""
    for run in c.runs:
        if (
            run.ended_at is None
            or run.now.status in {Status.RUNNING, Status.PARKED, Status.INCOMPLETE}
            or run.decisions
        ):
            continue
        for name in run.now.steps:
            if run.now.status_of(name) is Status.RUNNING:
                yield f"the run has ended with {run.now.status}, and the store has {name} as running"


def results_and_keys(c: Chronicle) -> Iterator[str]:
    """A step has one step_key with all owners, and another one in a new run. Steps see the recorded results."""
    seen: dict[str, tuple[int, str, bool]] = {}
    for done in c.done:
        effect = done.effect
        run = c.run_of(effect.fence)
        assert run is not None
        mine = (run.generation, effect.step, effect.what == "undo")
        if seen.setdefault(effect.step_key, mine) != mine:
            yield f"{mine} and {seen[effect.step_key]} have the same step_key"
        known = run.before(done.call.requests_before)
        if effect.what in {"do", "when"}:
            for name, value in effect.seen.items():
                record = known.steps.get(name)
                if record is not None and value != (record.result if record.has_result else None):
                    yield f"{effect.step} sees {value!r} as the result of {name}, it is {record.result!r}"
    if len(seen) != len(set(seen.values())):
        yield "a step has two step_keys in one run"


def values(c: Chronicle) -> Iterator[str]:
    """The writes of finished steps survive a takeover: of each key, the latest write."""
    for run in c.runs:
        mine = [done for done in c.of(run) if done.effect.what == "do" and done.effect.wrote]
        for grant in run.grants:
            if grant.record is None:
                continue
            known = run.before(grant.position)
            made = [done for done in mine if (done.call.performed or 0.0) < grant.at]
            if any(done.stale for done in made):
                continue  # They were made by a former owner, whose writes are not recorded.
            for key in {key for done in made for key in done.effect.wrote}:
                writes = [done for done in made if key in done.effect.wrote]
                sure = [i for i, one in enumerate(writes) if _recorded(c, run, known, one)]
                allowed = [one.effect.wrote[key] for one in writes[sure[-1] if sure else 0 :]]
                allowed += [] if sure else [None]
                if grant.record.values.get(key) not in allowed:
                    yield f"process {grant.process} finds {grant.record.values.get(key)!r} under {key!r}, not {allowed}"


def context(c: Chronicle) -> Iterator[str]:
    """An owner begins with the context of the record that it got, and sees each of its own writes at once."""
    now: dict[int, dict[str, Any]] = {}
    for run in c.runs:
        for grant in run.grants:
            now[grant.fence] = dict(grant.record.values) if grant.record is not None else {}
    for done in c.done:
        effect, known = done.effect, now[done.effect.fence]
        if effect.values != known:
            yield f"{effect.what} {effect.step} sees {effect.values}, the context is {known}"
        known.update({key: value for key, value in effect.wrote.items() if value is not None})
        for key, value in effect.wrote.items():
            if value is None:
                known.pop(key, None)


def _recorded(c: Chronicle, run: KeptRun, known: Known, one: Done) -> bool:
    """Whether the end of the step that this effect belongs to was recorded by the owner that made the effect."""
    step, fence = one.effect.step, one.effect.fence
    first = next((state for state in run.states if state.status_of(step) is Status.SUCCESS), None)
    return (
        first is not None
        and first.position < known.position
        and first.fence == fence
        and _said(c, step, fence) != "landed"
    )


def reported(c: Chronicle) -> Iterator[str]:
    """Each start event has its end event, unless the process has died, and a process starts a step only once."""
    for number, act in enumerate(c.story.acts):
        kinds = Counter(type(event) for event in act.events)
        for start, finish in PAIRS:
            ends = act.ended is not None and act.exited is None
            if kinds[finish] > kinds[start] or (ends and kinds[finish] != kinds[start]):
                yield f"process {number}: {kinds[start]} {start.__name__}, {kinds[finish]} {finish.__name__}"
        if kinds[RunRequested] > 1 or kinds[RunStarted] > 1 or kinds[RunRecovered] > 1:
            yield f"process {number} begins more than once: {kinds}"
        begun = Counter(event.step for event in act.events if isinstance(event, StepStarted))
        if begun and max(begun.values()) > 1:
            yield f"process {number} starts a step twice: {begun}"
        # The event of an end is emitted after the request to the store about it, but with the time of the end. So is that
        # of a step or an undo whose backoff a lost or parked run cuts short: it ended with its latest attempt.
        left = act.stopped is not None or (act.run is not None and act.run.status in {Status.LOST, Status.PARKED})
        for before, after in itertools.pairwise(
            e for e in act.events if not isinstance(e, StoreCalled | LeaseLost | HookFailed)
        ):
            cut = left and isinstance(after, StepFinished | CompensationFinished)
            if after.at < before.at - 1e-6 and not cut:
                yield f"process {number}: time goes back from {before} to {after}"
        if (
            any(isinstance(call.answer, Claimed) and call.answer.record for call in c.story.stored)
            and kinds[RunStarted]
        ):
            started = next(event for event in act.events if isinstance(event, RunStarted))
            run = c.run_of(started.fence)
            grants = [] if run is None else [grant for grant in run.grants if grant.fence == started.fence]
            if grants and (grants[0].record is None) is not (started.interrupted_run_id is None):
                yield f"process {number} does not report whom it has taken the run from"


JUDGES = (
    ownership,
    starts,
    undo_order,
    endings,
    callers,
    claims,
    patience,
    takeovers,
    doubts,
    departures,
    leaving,
    exits,
    decisions,
    reasons,
    nothing_left_in_flight,
    results_and_keys,
    values,
    context,
    reported,
)
