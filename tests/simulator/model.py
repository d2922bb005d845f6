"""An oracle that judges simulated runs. It was written from the promises, not from the code.

`judged(trial)` returns the promises that were broken, in words; there must be none. It trusts the events, the run, the
effects and the simulator's own list of calls only where they agree with each other and with the spec.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flowcore import (
    CompensationFailed,
    Fatal,
    IdempotencyHeld,
    RetryAfter,
    RunTimeout,
    Status,
    StepCancelled,
    StepTimeout,
)
from flowcore._kernel import outcome
from flowcore.events import (
    AttemptFinished,
    AttemptStarted,
    BackoffStarted,
    CompensationFinished,
    CompensationStarted,
    RunFinished,
    RunRequested,
    RunStarted,
    StepCompletedLate,
    StepFinished,
    StepReady,
    StepSkipped,
    StepStarted,
    StoreCalled,
)
from flowcore.events.base import StepEvent
from flowcore.testing import Fault

from .specs import (
    ASKED_DELAY,
    MAX_DELAY,
    PREDICATE_DELAY,
    Policy,
    StepSpec,
    Trial,
    UndoSpec,
    second_act,
    tried,
)

EPS = 1e-6
HELP_COMES_WITHIN = 0.1
"""the most virtual seconds until a simulated helper starts"""
UNKNOWN = {Status.TIMEOUT, Status.CANCELLED}


@dataclass
class Attempt:
    started: Any
    finished: Any = None
    backoff: Any = None


@dataclass
class Part:
    """One execution of a step or of an undo, from its start event to its finish event."""

    index: int
    started: Any
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    finished: Any = None
    end: int = -1


@dataclass
class History:
    ready: Any = None
    skipped: int | None = None
    done: Part | None = None
    undos: list[Part] = field(default_factory=list[Part])
    late: list[tuple[int, Any]] = field(default_factory=list[tuple[int, Any]])


def judged(trial: Trial) -> list[str]:
    """Return the promises that this run broke."""
    return [promise for judge in JUDGES for promise in judge(Story(trial))]


def judged_twice(trial: Trial) -> list[str]:
    """Return the promises that this run or the next run with its key broke."""
    before = len(trial.effects)
    broken = judged(trial)
    if trial.store is None:
        return broken
    run = trial.simulation.run
    done = {name for name, report in run.steps.items() if report.status is Status.SUCCESS}
    keys = {effect.step_key for effect in trial.effects}
    second, refusal = second_act(trial)
    del trial.effects[before:]
    if run.status is Status.COMPENSATION_FAILED:
        if not isinstance(refusal, IdempotencyHeld):
            broken.append(f"the key is held, but the next call is not refused but {refusal!r}")
        return broken
    if refusal is not None:
        return [*broken, f"after {run.status} the next call is refused: {refusal!r}"]
    again = second.simulation.run
    if run.status is Status.SUCCESS:
        if not again.replayed or again.results != run.results or second.effects or again.id != run.id:
            broken.append("a success is replayed, and nothing is done again")
    elif run.status is Status.INCOMPLETE:
        repeated = {effect.step for effect in second.effects if effect.what == "do"} & done
        undone = [effect.step for effect in second.effects if effect.what == "undo"]
        if repeated or undone or again.id != run.id or again.status not in {Status.SUCCESS, Status.INCOMPLETE}:
            broken.append(f"past its pivot a run is resumed: repeated {repeated}, undone {undone}, {again!r}")
        if again.status is Status.SUCCESS and any(
            report.status not in {Status.SUCCESS, Status.SKIPPED} for report in again.steps.values()
        ):
            broken.append("a resumed run is a success with steps that never ran")
    else:
        if again.replayed or again.id == run.id:
            broken.append(f"after {run.status} the next call starts afresh")
        if keys & {effect.step_key for effect in second.effects}:
            broken.append("a run afresh has step_keys of its own")
        broken += [f"second act: {promise}" for promise in judged(second)]
    return broken


def differs_alone(trial: Trial) -> list[str]:
    """Return the differences of the same run without hooks. There must be none."""
    alone = tried(trial.spec, observed=False)
    broken: list[str] = []
    if alone.simulation.events or list(alone.simulation.journal):
        broken.append("there are events, though no hook observes")
    pairs = itertools.zip_longest(trial.simulation.calls, alone.simulation.calls)
    for one, other in pairs:
        if one is None or other is None or replace(one, events_before=0) != replace(other, events_before=0):
            return [*broken, f"{other} without observers, else {one}"]
    if _summary(trial) != _summary(alone):
        broken.append(f"{_summary(alone)} without observers, else {_summary(trial)}")
    return broken


def _summary(trial: Trial) -> list[Any]:
    run = trial.simulation.run
    steps = {name: (r.status, r.attempts, r.undo, r.completed_late) for name, r in run.steps.items()}
    effects = [(e.what, e.step, e.attempt, e.did, e.seen, repr(e.error)) for e in trial.effects]
    error = type(run.error), str(run.error)
    return [run.id, run.status, run.undone, run.held, run.failed_step, error, steps, run.results, effects]


class Story:
    """A trial, with its events sorted by step."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.spec = trial.spec
        self.run = trial.simulation.run
        self.events: Sequence[Any] = trial.simulation.events
        self.calls = trial.simulation.calls
        self.faults = dict(trial.spec.faults)
        self.steps = {step.name: step for step in trial.spec.steps}
        self.histories = {name: History() for name in self.steps}
        self.malformed: list[str] = []
        self.ended_at = len(self.events)
        for index, event in enumerate(self.events):
            if isinstance(event, RunFinished):
                self.ended_at = index
            if isinstance(event, StepEvent):
                self._add(index, event, self.histories[event.step])
        self.began = trial.simulation.began
        self.deadline = None if self.spec.deadline is None else self.began + self.spec.deadline

    def _add(self, index: int, event: Any, history: History) -> None:
        name = event.step
        undo = getattr(event, "undo", False)
        part = (history.undos[-1] if history.undos else None) if undo else history.done
        attempt = part.attempts[-1] if part is not None and part.attempts else None
        match event:
            case StepReady():
                self._expect(history.ready is None and history.done is None, f"{name} is ready twice, or too late")
                history.ready = event
            case StepSkipped():
                self._expect(history.ready is not None, f"{name} is skipped before it is ready")
                self._expect(history.skipped is None and history.done is None, f"{name} is skipped and started")
                history.skipped = index
            case StepStarted():
                self._expect(history.ready is not None, f"{name} starts before it is ready")
                self._expect(history.done is None and history.skipped is None, f"{name} starts twice")
                history.done = Part(index, event)
            case CompensationStarted():
                open_one = bool(history.undos) and history.undos[-1].finished is None
                self._expect(not open_one, f"the undo of {name} starts beside itself")
                history.undos.append(Part(index, event))
            case AttemptStarted():
                if part is None or part.finished is not None:
                    self.malformed.append(f"an attempt of {name} starts outside of it")
                    return
                self._expect(event.attempt == len(part.attempts) + 1, f"attempt {event.attempt} of {name} out of turn")
                if attempt is not None:
                    self._expect(attempt.finished is not None, f"an attempt of {name} starts inside another")
                    self._expect(attempt.backoff is not None, f"an attempt of {name} starts without a backoff")
                part.attempts.append(Attempt(event))
            case AttemptFinished():
                good = attempt is not None and attempt.finished is None and attempt.started.attempt == event.attempt
                self._expect(good, f"an attempt of {name} ends that never started")
                if attempt is not None:
                    attempt.finished = event
            case BackoffStarted():
                good = attempt is not None and attempt.finished is not None and attempt.backoff is None
                self._expect(good and event.attempt == attempt.started.attempt, f"a backoff of {name} out of place")
                if attempt is not None:
                    attempt.backoff = event
            case StepFinished() | CompensationFinished():
                if isinstance(event, CompensationFinished):
                    part = history.undos[-1] if history.undos else None
                if part is None or part.finished is not None:
                    self.malformed.append(f"{name} ends that never started, or twice")
                    return
                last = part.attempts[-1] if part.attempts else None
                self._expect(last is not None and last.finished is not None, f"{name} ends before its attempt")
                part.finished, part.end = event, index
            case StepCompletedLate():
                history.late.append((index, event))
            case _:
                self.malformed.append(f"{event!r} is no event of a run in memory")

    def _expect(self, good: bool, promise: str) -> None:
        if not good:
            self.malformed.append(promise)

    # -- facts for several judges --------------------------------------------------------------------------------------

    def done(self) -> list[tuple[str, Part]]:
        """The steps with a finish event, in the order of these events."""
        parts = [(name, h.done) for name, h in self.histories.items() if h.done is not None and h.done.end >= 0]
        return sorted(parts, key=lambda pair: pair[1].end)

    def failures(self) -> list[tuple[str, Part]]:
        return [(name, part) for name, part in self.done() if part.finished.outcome is not Status.SUCCESS]

    def failed_whens(self) -> list[Any]:
        return [call for call in self.calls if call.what == "when" and call.failed and call.given_up is None]

    def stopped_at(self, without: str | None = None) -> float | None:
        """The moment from which nothing new may start, or None. `without`: a step whose own failure does not count."""
        moments = [part.finished.at for name, part in self.failures() if name != without]
        moments += [call.ended for call in self.failed_whens() if call.ended is not None]
        if self.trial.simulation.cancelled is not None:
            moments.append(self.trial.simulation.cancelled)
        if self.run.failed_step not in {None, without} and isinstance(_cause(self.run.error), RunTimeout):
            assert self.deadline is not None
            moments.append(max(self.deadline, self.began))
        return min(moments, default=None)

    @property
    def failed(self) -> bool:
        return self.run.status is not Status.SUCCESS

    def past_pivot(self) -> bool:
        return any(self.steps[name].pivot for name, part in self.done() if part.finished.outcome is Status.SUCCESS)

    def to_undo(self) -> list[str]:
        """The steps that a failed run has to undo, in order of completion."""
        if not self.failed or self.past_pivot():
            return []
        names: list[str] = []
        for name, part in self.done():
            step, outcome = self.steps[name], part.finished.outcome
            attempted = step.attempted if step.attempted is not None else self.spec.undo == "attempted"
            if part.finished.attempts == 0:  # It waited for a thread until the run stopped.
                continue
            if step.undo is not None and (outcome is Status.SUCCESS or outcome in UNKNOWN or attempted):
                names.append(name)
        return names

    def begun(self, step: str, what: str, part: Part) -> int:
        """The number of attempts that called user code. The last one may have waited for a thread in vain."""
        last = part.attempts[-1].finished if part.attempts else None
        if last is None or last.outcome is not Status.CANCELLED:
            return len(part.attempts)
        called = any(c.step == step and c.what == what and c.attempt == last.attempt for c in self.calls)
        return len(part.attempts) - (not called)

    def undos_by_the_end(self) -> list[Part]:
        """The undo of each undone step that counts: the last one that ended before the run ended."""
        ended = [[part for part in h.undos if 0 <= part.end < self.ended_at] for h in self.histories.values()]
        return [parts[-1] for parts in ended if parts]

    def landings(self, name: str) -> list[Any]:
        """The calls of a step that completed late with a result, so that their effect stands."""
        what = "await" if self.steps[name].form == "answers" else "do"  # Its function only returns a coroutine.
        mine = [c for c in self.calls if c.step == name and c.what == what and not c.failed]
        return [c for c in mine if c.given_up is not None and c.ended is not None]

    def ancestors(self, name: str) -> set[str]:
        found: set[str] = set()
        todo = list(self.steps[name].depends_on)
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo.extend(self.steps[one].depends_on)
        return found


def _cause(error: BaseException | None) -> BaseException | None:
    return error.__cause__ if isinstance(error, CompensationFailed) else error


# -- the judges --------------------------------------------------------------------------------------------------------


def well_formed(s: Story) -> Iterator[str]:
    """Each start event has exactly one end event, the events are nested, and time never goes back."""
    yield from s.malformed
    kinds = [type(event) for event in s.events if not isinstance(event, StoreCalled)]
    if kinds[:2] != [RunRequested, RunStarted] or kinds.count(RunRequested) + kinds.count(RunStarted) != 2:
        yield "a run begins with RunRequested and RunStarted"
    if kinds.count(RunFinished) != 1:
        yield "a run ends once"
    for name, history in s.histories.items():
        for part in (history.done, *history.undos):
            if part is not None and part.finished is None:
                yield f"{name} starts and never ends"
        if history.done is not None and not history.done.index < history.done.end < s.ended_at:
            yield f"{name} is reported outside of its run"
        if any(part.index < s.ended_at < part.end for part in history.undos):
            yield f"the run ends while {name} is being undone"
    for event in s.events[s.ended_at + 1 :]:
        if not isinstance(event, StepCompletedLate | CompensationStarted | CompensationFinished | StoreCalled) and not (
            isinstance(event, AttemptStarted | AttemptFinished | BackoffStarted) and event.undo
        ):
            yield f"{type(event).__name__} after the end of the run"
    for before, after in itertools.pairwise(s.events):
        if after.at < before.at - EPS:
            yield f"time goes back from {type(before).__name__} to {type(after).__name__}"
        if after.run_id != before.run_id or after.state is not before.state:
            yield "one run, one id, one state"


def dependencies_first(s: Story) -> Iterator[str]:
    for name, history in s.histories.items():
        begins = [c.events_before for c in s.calls if c.step == name and c.what in {"do", "when"}]
        if history.done is not None:
            begins.append(history.done.index)
        for dependency in s.steps[name].depends_on:
            other = s.histories[dependency]
            if other.skipped is not None:
                over = other.skipped
            elif other.done is not None and other.done.finished is not None:
                over = other.done.end if other.done.finished.outcome is Status.SUCCESS else len(s.events)
            else:
                over = len(s.events)
            if any(begin <= over for begin in begins):
                yield f"{name} begins before its dependency {dependency} is done"
    for name, step in s.steps.items():
        asked = [call for call in s.calls if call.step == name and call.what == "when"]
        did = [call for call in s.calls if call.step == name and call.what == "do"]
        if len(asked) > (step.when is not None) or (did and step.when is not None and not asked):
            yield f"{name} has its when= called {len(asked)} times"
        if step.when in {"no", "raises"} and did:
            yield f"{name} runs, though its when= said {step.when}"
        if s.histories[name].skipped is not None and step.when != "no":
            yield f"{name} is skipped, though its when= said {step.when}"
        for call in asked:
            latest = math.inf if s.deadline is None else max(s.deadline, call.began) + EPS
            if call.given_up is None and s.deadline is not None and (call.ended or math.inf) > latest:
                yield f"{name} has a when= that the deadline does not end"
    for effect in s.trial.effects:
        if effect.what in {"do", "when"}:
            for name, value in effect.seen.items():
                if s.histories[name].skipped is None and not str(value or "").startswith(name):
                    yield f"{effect.step} does not see the result of {name}"
                if s.histories[name].skipped is not None and value is not None:
                    yield f"{effect.step} sees a result of {name}, which was skipped"


def nothing_new_after_a_failure(s: Story) -> Iterator[str]:
    stopped = s.stopped_at()
    if stopped is None:
        return
    first = min((part.end for _, part in s.failures()), default=len(s.events))
    for call in s.calls:
        if call.what in {"do", "when"} and (call.began > stopped + EPS or call.events_before > first):
            yield f"{call.what} {call.step} (attempt {call.attempt}) begins after the run has failed"
    for event in s.events[first + 1 :]:
        if isinstance(event, StepStarted) or (isinstance(event, AttemptStarted | BackoffStarted) and not event.undo):
            yield f"{type(event).__name__} of {event.step} after {s.events[first].step} has failed"
    if s.trial.simulation.cancelled is not None or (s.spec.on_failure == "cancel" and s.failures()):
        cancelled = s.trial.simulation.cancelled
        limit = (cancelled if cancelled is not None else s.failures()[0][1].finished.at) + s.spec.grace
        for name, history in s.histories.items():
            for attempt in history.done.attempts if history.done is not None else ():
                if attempt.finished is not None and attempt.finished.at > limit + EPS:
                    yield f"{name} is still waited for after the grace"


def _allowed(policy: Policy, number: int, error: BaseException, elapsed: float) -> tuple[bool, bool, float, float, str]:
    """Return whether another attempt may follow, and must; the shortest and the longest backoff; and its reason."""
    never = (False, False, 0.0, 0.0, "")
    if number >= policy.attempts or isinstance(error, Fatal) or not isinstance(error, Exception):
        return never
    if isinstance(error, RetryAfter):
        low = high = ASKED_DELAY
        reason = "retry_after"
    elif policy.on == "broken" or (policy.on != "any" and not isinstance(error, ValueError)):
        return never
    elif policy.on == "seconds":
        low, high, reason = PREDICATE_DELAY, PREDICATE_DELAY, "predicate"
    else:
        bound = {
            "none": 0.0,
            "fixed": policy.delay,
            "growing": min(policy.delay * 2 ** (number - 1), MAX_DELAY),
            "jittery": min(policy.delay * 2 ** (number - 1), MAX_DELAY),
        }[policy.backoff]
        low, high, reason = (0.0 if policy.backoff == "jittery" else bound), bound, "policy"
    if policy.max_elapsed is None:
        return True, True, low, high, reason
    left = policy.max_elapsed - elapsed
    return low <= left + EPS, high < left - EPS, low, min(high, left), reason


def attempts_in_bounds(s: Story) -> Iterator[str]:
    """The policy allows each attempt at its time, and no attempt that the policy promises is missing."""
    for name, history in s.histories.items():
        step = s.steps[name]
        if history.done is not None:
            yield from _attempts(s, step, history.done, undo=None)
        for part in history.undos:
            if step.undo is None:
                yield f"{name} has no undo, but is undone"
            else:
                yield from _attempts(s, step, part, undo=step.undo)


def _attempts(s: Story, step: StepSpec, part: Part, undo: UndoSpec | None) -> Iterator[str]:
    name = step.name if undo is None else f"the undo of {step.name}"
    policy = step.policy if undo is None else undo.policy
    what = "do" if undo is None else "undo"
    timeout = step.timeout if undo is None else undo.timeout
    stopped = s.stopped_at() if undo is None else None
    start, finish = part.started, part.finished
    if finish is None:
        return
    if start.max_attempts != policy.attempts or len(part.attempts) > policy.attempts:
        yield f"{name} is attempted {len(part.attempts)} times, its policy says {policy.attempts}"
    begun = s.begun(step.name, what, part)
    if finish.attempts != begun:
        yield f"{name} claims {finish.attempts} attempts, there were {begun}"
    until = start.at + step.step_timeout if undo is None and step.step_timeout is not None else None
    backed_off = 0.0
    if not part.attempts:
        return
    for attempt, following in zip(part.attempts, [*part.attempts[1:], None], strict=True):
        began, ended = attempt.started, attempt.finished
        if ended is None:
            return
        number, error = began.attempt, ended.error
        limits = [began.at + timeout] if timeout is not None else []
        limits += [until] if until is not None else []
        limits += [s.deadline] if s.deadline is not None and undo is None else []
        limit = min(limits, default=None)
        took = ended.at - began.at
        if abs(ended.duration - took) > EPS or took < -EPS:
            yield f"{name}: an attempt took {took}, reported as {ended.duration}"
        if began.max_attempts != policy.attempts or ended.max_attempts != policy.attempts:
            yield f"{name}: {policy.attempts} attempts are allowed, reported as {began.max_attempts}"
        # the outcome of the attempt
        if ended.outcome is Status.TIMEOUT:
            if not isinstance(error, StepTimeout | RunTimeout):
                yield f"{name}: timed out with {error!r}"
            struck = s.faults.get(step.name) in {Fault.TIMEOUT, Fault.STUCK}
            if limit is None and not struck:
                yield f"{name}: timed out without a limit"
            elif limit is not None and abs(ended.at - max(limit, began.at)) > EPS:
                yield f"{name}: timed out at {ended.at}, its limit was {limit}"
        elif ended.outcome is Status.CANCELLED:
            told_to = s.trial.simulation.cancelled is not None or s.spec.on_failure == "cancel"
            left = any(isinstance(part.finished.error, SystemExit) for _, part in s.done())
            if number > begun:
                if s.stopped_at() is None:
                    yield f"{name}: did not begin, though nothing stopped the run"
            elif undo is not None or not (told_to or left or isinstance(error, SystemExit)):
                yield f"{name}: cancelled without a cause"
        elif limit is not None and ended.at > limit + EPS:
            yield f"{name}: over at {ended.at}, after its limit {limit}"
        if ended.outcome in {Status.SUCCESS, Status.FAILURE}:
            yield from _as_scripted(s, step, undo, number, ended)
        # what follows
        pause = attempt.backoff
        may, must, low, high, reason = _allowed(policy, number, error, ended.at - start.at)
        if ended.outcome is Status.SUCCESS:
            may = must = False
        if ended.outcome is Status.CANCELLED:
            may = must = False
        resumed = ended.at
        if ended.outcome is Status.TIMEOUT:
            final = [moment for moment in (until, s.deadline if undo is None else None) if moment is not None]
            if final and ended.at >= min(final) - EPS:
                may = must = False
            call = _given_up(s, step, what, number, ended.at)
            # A function that only returns a coroutine has done nothing yet when it completes.
            result = call is not None and not call.failed and not (call.what == "do" and step.form == "answers")
            landed = None if call is None else call.ended
            patience = min([ended.at + s.spec.grace, *final])
            waited = landed is not None and landed <= patience + EPS
            resumed = landed if waited and landed is not None else patience
            later, surely, _, high, _ = _allowed(policy, number, error, resumed - start.at)  # The wait counts too.
            may, must = may and later, must and surely
            due = must
            if waited and landed is not None and landed > patience - EPS:
                must = False  # The call completed at the very moment at which the patience ended.
            if may and waited and result:
                may = must = False
                others = s.stopped_at(without=step.name) if undo is None else None
                in_time = landed < patience - EPS and (others is None or others > landed + EPS)
                if finish.outcome is not Status.SUCCESS and in_time and due:
                    yield f"{name}: completed with a result while it was waited for, but ended as {finish.outcome}"
            elif not waited:
                may = must = False
        others = s.stopped_at(without=step.name) if undo is None else None
        if others is not None and resumed >= others - EPS:
            must = False
        for moment in (until, s.deadline if undo is None else None):
            if moment is not None and resumed + high >= moment - EPS:
                must = False
                may = may and resumed + low < moment
        if pause is None:
            if following is None and must and finish.outcome is not Status.SUCCESS:
                yield f"{name}: attempt {number} failed with {error!r}, and another should have followed"
            continue
        if not may:
            yield f"{name}: attempt {number} ended as {ended.outcome} ({error!r}), and another was to follow"
        if not low - EPS <= pause.delay <= high + EPS or (may and pause.reason != reason):
            yield f"{name}: waits {pause.delay} ({pause.reason}) before another attempt, not {low} to {high} ({reason})"
        if following is not None:
            wait = following.started.at - pause.at
            if abs(wait - pause.delay) > EPS:
                yield f"{name}: waited {wait} before another attempt, not {pause.delay}"
            backed_off += wait
        elif stopped is None:
            yield f"{name}: nothing followed its backoff"
        else:
            backed_off += max(0.0, finish.at - pause.at)
    for moment in (until, s.deadline if undo is None else None):
        if moment is not None and finish.at > max(moment, start.at) + EPS:
            yield f"{name}: over at {finish.at}, its step_timeout or deadline was {moment}"
    if abs(finish.backoff - backed_off) > EPS:
        yield f"{name}: backed off for {backed_off}, reported as {finish.backoff}"
    if abs(finish.duration - (finish.at - start.at)) > EPS:
        yield f"{name}: took {finish.at - start.at}, reported as {finish.duration}"


def _given_up(s: Story, step: StepSpec, what: str, attempt: int, moment: float) -> Any:
    """Return the call of an attempt that was given up at this moment, or None."""
    kinds = {what, "await"} if what == "do" else {what}
    mine = [c for c in s.calls if (c.step, c.attempt) == (step.name, attempt) and c.what in kinds]
    return next((c for c in mine if c.given_up is not None and abs(c.given_up - moment) < EPS), None)


def _as_scripted(s: Story, step: StepSpec, undo: UndoSpec | None, number: int, ended: Any) -> Iterator[str]:
    """Check that a success or a failure is the one in the script of the spec."""
    name = step.name if undo is None else f"the undo of {step.name}"
    script = step.script if undo is None else undo.script
    did = script[min(number, len(script)) - 1]
    fault = s.faults.get(step.name)
    kinds: dict[str, Any] = {
        "value": ValueError,
        "other": LookupError,
        "fatal": Fatal,
        "later": RetryAfter,
        "cancel": StepCancelled,
        "exit": SystemExit,
    }
    injected = fault is Fault.UNDO_FAILS if undo is not None else fault in {Fault.FAIL_BEFORE, Fault.FAIL_AFTER}
    if injected:
        if ended.outcome is not Status.FAILURE:
            yield f"{name}: {ended.outcome} in spite of {fault}"
    elif did == "ok":
        if ended.outcome is not Status.SUCCESS:
            yield f"{name}: attempt {number} should have succeeded, but {ended.error!r}"
    elif did == "exit" and undo is None:
        yield f"{name}: SystemExit cancels, it is no {ended.outcome}"
    elif ended.outcome is not Status.FAILURE or not isinstance(ended.error, kinds[did]):
        yield f"{name}: attempt {number} was to end with {did}, and ended as {ended.outcome} with {ended.error!r}"


def calls_in_bounds(s: Story) -> Iterator[str]:
    """No attempt runs beside an earlier one of the same step. No undo begins while a call of its step may still have an
    effect, unless the grace is over."""
    for name in s.steps:
        mine = [call for call in s.calls if call.step == name]
        for what in ("do", "undo"):
            parts = [call for call in mine if call.what == what]
            for before, after in itertools.pairwise(parts):
                if what == "undo" and after.attempt == 1:
                    continue  # The step completed late and is undone again.
                if before.ended is None or before.ended > after.began + EPS:
                    yield f"{what} {name}: attempt {after.attempt} begins beside attempt {before.attempt}"
        undos = [call for call in mine if call.what == "undo"]
        for call in mine:
            if call.what != "do" or not undos:
                continue
            first = undos[0].began
            if call.given_up is None and (call.ended is None or call.ended > first + EPS):
                yield f"{name} is undone while it runs"
            if call.given_up is not None and (call.ended is None or call.ended > first + EPS):
                undoing = min((c.began for c in s.calls if c.what == "undo"), default=first)
                if undoing < call.given_up - EPS:
                    yield f"{name} is abandoned while its run is being undone"
                landing = call.ended if call.ended is not None else float("inf")
                stop = max((part.finished.at for _, part in s.done()), default=s.began)
                if landing > undoing + EPS and undoing < min(stop, call.given_up) + s.spec.grace - EPS:
                    yield f"undoing begins at {undoing}, though {name} could still complete"
        for effect in s.trial.effects:
            if effect.step == name and effect.what == "do":
                made = next((c for c in mine if c.what == "do" and c.attempt == effect.attempt), None)
                if made is None:
                    continue
                step = s.steps[name]
                limits = [made.began + step.timeout] if step.timeout is not None else []
                part = s.histories[name].done
                if step.step_timeout is not None and part is not None:
                    limits.append(part.started.at + step.step_timeout)
                limits += [s.deadline] if s.deadline is not None else []
                expected = min(limits, default=None)
                if (expected is None) != (effect.deadline is None) or (
                    expected is not None and abs(expected - effect.deadline) > EPS
                ):
                    yield f"{name} sees the deadline {effect.deadline}, it is {expected}"


def statuses(s: Story) -> Iterator[str]:
    """The report of each step agrees with its events and with the transition tables."""
    for name, history in s.histories.items():
        report = s.run.steps[name]
        path = [Status.PENDING]
        attempts = 0
        if history.skipped is not None:
            path.append(Status.SKIPPED)
        elif history.done is not None and history.done.finished is not None:
            attempts = history.done.finished.attempts
            if attempts:
                path += [Status.RUNNING, history.done.finished.outcome]
            elif history.done.finished.outcome is Status.FAILURE:  # No thread was free before the deadline.
                path.append(Status.FAILURE)
        elif (
            any(call.step == name for call in s.failed_whens())
            or (name == s.run.failed_step and isinstance(_cause(s.run.error), RunTimeout))
            or (report.status is Status.FAILURE and isinstance(report.error, RunTimeout))
        ):
            path.append(Status.FAILURE)
        elif report.status is Status.CANCELLED and report.attempts == 0:
            path += [Status.RUNNING, Status.CANCELLED]  # Its when= was cut off.
        if report.status is not path[-1] or report.attempts != attempts:
            yield f"{name}: {path[-1]} after {attempts} attempts, reported as {report.status} after {report.attempts}"
        for one, other in itertools.pairwise(path):
            if other not in outcome.STEP[one]:
                yield f"{name}: no step goes from {one} to {other}"
        if history.done is not None and history.done.finished is not None and report.status is not Status.PENDING:
            over = history.done.finished
            for reported, expected_seconds in (
                (report.waited, history.done.started.waited),
                (report.ran, over.duration - over.backoff),
                (report.backed_off, over.backoff),
            ):
                if reported is None or abs(reported - expected_seconds) > EPS or reported < -EPS:
                    yield f"{name}: the report has {reported} s, it was {expected_seconds}"
        has_result = name in s.run.results
        in_time = [event for index, event in history.late if index < s.ended_at]
        landed = any(not event.undo and event.outcome is Status.SUCCESS for event in in_time)
        if has_result is not (path[-1] is Status.SUCCESS) and not (has_result and landed):
            yield f"{name}: a result is of a step that is done, but it is {path[-1]}"
        if has_result and not str(s.run.results[name]).startswith(name):
            yield f"{name}: its result is {s.run.results[name]!r}"
        undo_path = [Status.PENDING]
        for part in history.undos:
            if part.finished is not None:
                undo_path += [Status.RUNNING, part.finished.outcome]
        for one, other in itertools.pairwise(undo_path):
            if other not in outcome.UNDO.get(one, frozenset()):
                yield f"{name}: no undo goes from {one} to {other}"
        expected = undo_path[-1] if len(undo_path) > 1 else None
        if report.undo is not expected:
            yield f"{name}: its undo is {expected}, reported as {report.undo}"
        if (report.undo_error is None) is (expected not in {None, Status.SUCCESS}):
            yield f"{name}: its undo is {expected}, with error {report.undo_error!r}"


def ending(s: Story) -> Iterator[str]:
    """The status of the run, its error, and whether its key is held, are right."""
    run = s.run
    ended = s.events[s.ended_at] if s.ended_at < len(s.events) else None
    stopped = s.stopped_at()
    undos = s.undos_by_the_end()
    good = [part for part in undos if part.finished.outcome is Status.SUCCESS]
    if stopped is None:
        expected = Status.SUCCESS
    elif s.past_pivot():
        expected = Status.INCOMPLETE
    elif len(good) < len(undos):
        expected = Status.COMPENSATION_FAILED
    else:
        expected = Status.COMPENSATED if undos else Status.FAILURE
    if run.status is not expected or run.status not in outcome.RUN[Status.RUNNING]:
        yield f"the run should be {expected}, it is {run.status}"
    if ended is None or ended.outcome is not run.status or ended.error is not run.error:
        yield "RunFinished reports what the run reports"
    elif ended.undone != run.undone:
        yield f"RunFinished says {ended.undone} were undone, the run {run.undone}"
    if run.held is not (expected is Status.COMPENSATION_FAILED):
        yield f"the key is {'' if run.held else 'not '}held, though the run is {expected}"
    if (run.error is None) is not (expected is Status.SUCCESS):
        yield f"the run is {expected} with {run.error!r}"
    names = [part.finished.step for part in sorted(good, key=lambda part: part.end)]
    if list(run.undone) != names:
        yield f"undone says {run.undone}, it was {names}"
    if expected is Status.SUCCESS:
        for name, history in s.histories.items():
            over = history.done is not None and history.done.finished is not None
            if history.skipped is None and not (over and history.done.finished.outcome is Status.SUCCESS):
                yield f"the run is a success, though {name} is not done"
        return
    yield from _error(s)


def _error(s: Story) -> Iterator[str]:
    run = s.run
    cause = _cause(run.error)
    base = not isinstance(cause, Exception)
    if (run.status is Status.COMPENSATION_FAILED and not base) is not isinstance(run.error, CompensationFailed):
        yield f"the run is {run.status} with {run.error!r}"
    if isinstance(run.error, CompensationFailed):
        bad = {part.finished.step for part in s.undos_by_the_end() if part.finished.outcome is not Status.SUCCESS}
        if set(run.error.failures) != bad or run.error.run is not run:
            yield f"CompensationFailed names {set(run.error.failures)}, it was {bad}"
    failures = s.failures()
    whens = s.failed_whens()
    cancelled = s.trial.simulation.cancelled
    moments = [(part.finished.at, name, part.finished.error) for name, part in failures]
    moments += [(call.ended, call.step, None) for call in whens]
    if run.failed_step is None:
        if cancelled is None or not isinstance(cause, StepCancelled):
            yield f"no step failed the run, nor was it cancelled: {run.error!r}"
        elif moments and min(moments)[0] < cancelled - EPS:
            yield "a step failed before the run was cancelled"
    elif moments and isinstance(cause, RunTimeout) and run.failed_step not in {name for _, name, _ in moments}:
        pass  # The deadline had passed before this step could start.
    elif moments:
        first = min(moment for moment, _, _ in moments)
        candidates = [(name, error) for moment, name, error in moments if moment <= first + EPS]
        if run.failed_step not in {name for name, _ in candidates}:
            yield f"{candidates} failed first, the run says {run.failed_step}"
        elif not any(error is None or error is cause for name, error in candidates if name == run.failed_step):
            yield f"the run was failed by {candidates}, it says {cause!r}"
    for effect in s.trial.effects:
        if effect.what == "undo" and effect.error is not cause:
            yield f"the undo of {effect.step} sees {effect.error!r} as what failed the run, not {cause!r}"
        if effect.what != "undo" and effect.error is not None:
            yield f"{effect.step} sees an error before anything failed"


def undoing(s: Story) -> Iterator[str]:
    """The right steps are undone, in the right order."""
    expected = s.to_undo()
    parts = sorted((part.index, name, part) for name, h in s.histories.items() for part in h.undos)
    firsts: list[tuple[str, Part]] = []
    for _, name, part in parts:
        if name not in (other for other, _ in firsts):
            firsts.append((name, part))
    late_only = {
        name
        for name, history in s.histories.items()
        if name not in expected and any(e.outcome is Status.SUCCESS and not e.undo for _, e in history.late)
    }
    undone = [name for name, _ in firsts if name not in late_only]
    if sorted(undone) != sorted(expected):
        yield f"{sorted(expected)} had to be undone, {sorted(undone)} were"
    for name, history in s.histories.items():
        landings = s.landings(name)
        begins = [c.began for c in s.calls if c.step == name and c.what == "undo" and c.attempt == 1]
        again = sum(begins[0] <= c.ended + EPS for c in landings) if begins else 0
        if len(history.undos) > 1 + again:
            yield f"{name} is undone {len(history.undos)} times, and completed {again} times after it was undone"
        for call in landings:
            if s.failed and not s.past_pivot() and s.steps[name].undo is not None and not s.malformed:
                report = s.run.steps[name]
                if report.status is not Status.SUCCESS and not any(begin >= call.ended - EPS for begin in begins):
                    yield f"{name} completed at {call.ended} and was not undone after that"
    for number, (_, _, part) in enumerate(parts, 1):
        if part.started.order != number or (part.finished is not None and part.finished.order != number):
            yield f"undo number {number} counts as {part.started.order}"
        trigger = s.run.failed_step or "cancelled"
        if part.started.trigger != trigger or (part.finished is not None and part.finished.trigger != trigger):
            yield f"the trigger of an undo is {part.started.trigger}, not {trigger}"
    for name, _ in firsts:
        effect = next((e for e in s.trial.effects if e.what == "undo" and e.step == name), None)
        done = s.run.steps[name].status is Status.SUCCESS
        if effect is not None and done and effect.seen[name] != s.run.results.get(name):
            yield f"the undo of {name} does not see its result"
    if s.spec.parallel_undo:
        yield from _parallel_order(s, firsts)
    else:
        if [name for name in undone if name in expected] != [name for name in reversed(expected) if name in undone]:
            yield f"undone in the order {undone}, completed in the order {expected}"
        for (_, before), (name, after) in itertools.pairwise(firsts):
            if after.index < before.end and name not in late_only:
                yield f"the undo of {name} begins before the last one is over"


def _parallel_order(s: Story, firsts: list[tuple[str, Part]]) -> Iterator[str]:
    ends = {name: part.end for name, part in firsts}
    for name, part in firsts:
        for other, end in ends.items():
            if name in s.ancestors(other) and end > part.index:
                yield f"{name} is undone before its dependant {other}"


def late_completions(s: Story) -> Iterator[str]:
    """Each call that completes late is reported, once."""
    for name, history in s.histories.items():
        for what in ("do", "undo"):
            kinds = {what, "await"} if what == "do" else {what}
            given_up = [c for c in s.calls if c.step == name and c.what in kinds and c.given_up is not None]
            reported = [event for _, event in history.late if event.undo is (what == "undo")]
            numbers = [event.attempt for event in reported]
            for number in set(numbers):
                if numbers.count(number) > sum(call.attempt == number for call in given_up):
                    yield f"{what} {name}: attempt {number} completed late, reported again: {numbers}"
            for event in reported:
                fits = [c for c in given_up if c.attempt == event.attempt and c.ended is not None]
                if not fits:
                    yield f"{name}: reported as completed late, but it was not"
                    continue
                if not any(abs(event.late - (c.ended - c.given_up)) < EPS for c in fits):
                    yield f"{name}: completed {fits[0].ended - fits[0].given_up} s late, reported as {event.late}"
                if s.steps[name].form != "answers" and not any(
                    (event.outcome is Status.SUCCESS) is not c.failed for c in fits
                ):
                    yield f"{name}: reported as completed late with {event.outcome}"
            for call in given_up:
                if call.ended is not None and call.attempt not in numbers and s.spec.grace > 0:
                    yield f"{what} {name}: attempt {call.attempt} completed late without an event"


def scheduling(s: Story) -> Iterator[str]:
    """Ready steps start in the order in which they became ready, as soon as the limit of parallel steps allows."""
    running: set[str] = set()
    ready: list[str] = []
    simple = all(step.when is None for step in s.steps.values())
    since = s.began
    for event in s.events[: s.ended_at]:
        idle = simple and s.stopped_at() is None and ready and len(running) < s.spec.limit
        if idle and event.at - since > HELP_COMES_WITHIN + EPS:
            yield f"{ready} are ready, and no thread starts them from {since} to {event.at}"
        match event:
            case StepReady():
                ready.append(event.step)
            case StepSkipped():
                ready.remove(event.step)
            case StepStarted():
                if simple and event.step != ready[0]:
                    yield f"{event.step} starts before {ready[0]}, which was ready first"
                if event.step in ready:
                    ready.remove(event.step)
                running.add(event.step)
                history = s.histories[event.step]
                if history.ready is not None and abs(event.waited - (event.at - history.ready.at)) > EPS:
                    yield f"{event.step} waited {event.at - history.ready.at}, reported as {event.waited}"
                if event.depends_on != s.steps[event.step].depends_on:
                    yield f"{event.step} depends on {event.depends_on}"
                if len(running) > s.spec.limit:
                    yield f"{sorted(running)} run at once, at most {s.spec.limit} may"
            case StepFinished():
                running.discard(event.step)
            case _:
                pass
        since = event.at
    # Steps that become ready at the same moment are reported in definition order.
    order = [step.name for step in s.spec.steps]
    batch: list[int] = []
    for event in s.events[: s.ended_at]:
        if isinstance(event, StepReady):
            batch.append(order.index(event.step))
            if batch != sorted(batch):
                yield f"steps become ready in the order {batch} of their definition"
        else:
            batch = []


def keys(s: Story) -> Iterator[str]:
    """A step has one step_key for all its attempts and another one for its undo; no two steps share one."""
    seen: dict[str, tuple[str, bool]] = {}
    for effect in s.trial.effects:
        mine = (effect.step, effect.what == "undo")
        if seen.setdefault(effect.step_key, mine) != mine:
            yield f"{mine} and {seen[effect.step_key]} have the same step_key"
    if len(seen) != len({(effect.step, effect.what == "undo") for effect in s.trial.effects}):
        yield "a step has two step_keys"


JUDGES = (
    well_formed,
    dependencies_first,
    nothing_new_after_a_failure,
    attempts_in_bounds,
    calls_in_bounds,
    statuses,
    ending,
    undoing,
    late_completions,
    scheduling,
    keys,
)
