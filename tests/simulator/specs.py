"""Random workflows: their specs, how these are drawn, and how they become real workflows."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st

from flowcore import Backoff, Context, Fatal, IdempotencyError, Landed, NotLanded, Retry, RetryAfter, Workflow
from flowcore.stores import MemoryStore
from flowcore.testing import Fault, Simulation, simulate

T = TypeVar("T")

ASKED_DELAY = 0.75
"""the seconds in RetryAfter"""
PREDICATE_DELAY = 0.25
"""the seconds that a predicate returns"""
MAX_DELAY = 1.5


class Draw(Protocol):
    """The source of choices: a seed, or Hypothesis, which can shrink them. The first option is the simplest."""

    def integer(self, low: int, high: int) -> int: ...
    def choice(self, options: Sequence[T]) -> T: ...
    def chance(self, percent: int) -> bool: ...


class Seeded:
    """Choices that a seed decides."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return low + int(self._random.random() * (high - low + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def chance(self, percent: int) -> bool:
        return self._random.random() * 100 < percent


class Drawn:
    """Choices that Hypothesis decides. Pass it the `draw` of a composite strategy."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        number: int = self._draw(st.integers(low, high))
        return number

    def choice(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        return self.integer(0, 99) >= 100 - percent  # Hypothesis shrinks it to False.


@dataclass(frozen=True)
class Policy:
    """A Retry, in words. `backoff` is none, fixed, growing (no jitter) or jittery. `on` is any, value (ValueError
    only), asked (a predicate that is true for ValueError), seconds (a predicate that returns seconds) or broken (a
    predicate that raises)."""

    attempts: int = 1
    backoff: str = "none"
    delay: float = 0.0
    on: str = "any"
    max_elapsed: float | None = None

    def retry(self) -> Retry | None:
        if self.attempts == 1:
            return None
        backoff = {
            "none": lambda: None,
            "fixed": lambda: Backoff.fixed(self.delay),
            "growing": lambda: Backoff.exponential(self.delay, max_delay=MAX_DELAY, jitter=False),
            "jittery": lambda: Backoff.exponential(self.delay, max_delay=MAX_DELAY),
        }[self.backoff]()
        return Retry(self.attempts, backoff, on=_ON[self.on], max_elapsed=self.max_elapsed)


def _broken(error: BaseException) -> bool:
    raise RuntimeError("the predicate is broken")


_ON: dict[str, Any] = {
    "any": Exception,
    "value": (ValueError, ArithmeticError),
    "asked": lambda error: isinstance(error, ValueError),
    "seconds": lambda error: PREDICATE_DELAY if isinstance(error, ValueError) else False,
    "broken": _broken,
}


@dataclass(frozen=True)
class UndoSpec:
    """An undo. `script` has a word for each attempt, the last one for all further attempts: ok, value (ValueError),
    other (LookupError) or exit (SystemExit)."""

    script: tuple[str, ...] = ("ok",)
    policy: Policy = Policy()
    timeout: float | None = None


@dataclass(frozen=True)
class StepSpec:
    """A step. `script` has a word for each attempt, the last one for all further attempts: ok, value (ValueError),
    other (LookupError), fatal, later (RetryAfter), cancel (it raises CancelledError itself) or exit (SystemExit).
    `form` is plain, async, or answers (a plain function that returns a coroutine)."""

    name: str
    depends_on: tuple[str, ...] = ()
    script: tuple[str, ...] = ("ok",)
    policy: Policy = Policy()
    timeout: float | None = None
    step_timeout: float | None = None
    when: str | None = None
    """yes, no or raises"""
    undo: UndoSpec | None = None
    attempted: bool | None = None
    pivot: bool = False
    form: str = "plain"
    on_crash: Any = "retry"
    verify: str | None = None
    """truth, none (it never knows) or raises (it raises the first time, and then says the truth)"""

    def does(self, attempt: int) -> str:
        return self.script[min(attempt, len(self.script)) - 1]


@dataclass(frozen=True)
class Spec:
    """A workflow, the faults in it, and the options of its run."""

    seed: int
    steps: tuple[StepSpec, ...]
    deadline: float | None = None
    on_failure: Any = "wait"
    undo: Any = "done"
    parallel_undo: bool = False
    max_parallel: int | None = None
    max_workers: int = 32
    grace: float = 5.0
    cancel_at: float | None = None
    faults: tuple[tuple[str, Fault], ...] = ()
    key: str | None = None
    writes: bool = False
    """whether steps write into the context"""

    def step(self, name: str) -> StepSpec:
        return next(step for step in self.steps if step.name == name)

    @property
    def limit(self) -> int:
        return self.max_workers if self.max_parallel is None else min(self.max_workers, self.max_parallel)


# -- drawing -----------------------------------------------------------------------------------------------------------


def _policy(draw: Draw, percent: int) -> Policy:
    if not draw.chance(percent):
        return Policy()
    return Policy(
        draw.integer(2, 4),
        draw.choice(("none", "fixed", "growing", "jittery")),
        draw.choice((0.25, 0.5, 2.0)),
        draw.choice(("any", "any", "any", "value", "asked", "seconds", "broken")),
        draw.choice((0.5, 1.5, 3.0)) if draw.chance(15) else None,
    )


def _script(draw: Draw, percent: int) -> tuple[str, ...]:
    if not draw.chance(percent):
        return ("ok",)
    bad = ("value", "value", "value", "other", "fatal", "later", "cancel", "exit")
    fails = tuple(draw.choice(bad) for _ in range(draw.integer(1, 3)))
    return (*fails, "ok") if draw.chance(70) else fails


def _undo(draw: Draw) -> UndoSpec:
    script: tuple[str, ...] = ("ok",)
    if draw.chance(20):
        fails = tuple(draw.choice(("value", "value", "other", "exit")) for _ in range(draw.integer(1, 2)))
        script = (*fails, "ok") if draw.chance(50) else fails
    return UndoSpec(script, _policy(draw, 40), draw.choice((0.3, 0.7)) if draw.chance(10) else None)


def drawn(draw: Draw, seed: int) -> Spec:
    """Draw a workflow of one to seven steps."""
    count = draw.integer(1, 7)
    trouble = draw.choice((5, 20, 35, 60))
    plain = draw.chance(25)  # a chain without timeouts, when= and pivot, which can run inline
    density = 100 if plain else draw.choice((15, 35, 70, 100))
    pivot = draw.integer(0, count - 1) if draw.chance(20) and not plain else None
    all_async = draw.chance(8)
    steps: list[StepSpec] = []
    for index in range(count):
        names = [step.name for step in steps]
        chain = density == 100
        depends = tuple(names[-1:]) if chain else tuple(name for name in names if draw.chance(density))
        steps.append(
            StepSpec(
                chr(ord("a") + index),
                depends,
                _script(draw, trouble),
                _policy(draw, 60),
                draw.choice((0.2, 0.6, 0.9)) if draw.chance(12) and not plain else None,
                draw.choice((0.5, 1.5, 3.0)) if draw.chance(8) and not plain else None,
                draw.choice(("yes", "yes", "no", "raises")) if draw.chance(15) and not plain else None,
                _undo(draw) if draw.chance(75) else None,
                draw.choice((True, False)) if draw.chance(20) else None,
                index == pivot,
                "async" if all_async else draw.choice(("async", "answers")) if draw.chance(4) else "plain",
            )
        )
    faults: tuple[tuple[str, Fault], ...] = ()
    if draw.chance(20):
        kinds = tuple(fault for fault in Fault if fault not in {Fault.CRASH_BEFORE, Fault.CRASH_AFTER})
        faults = ((draw.choice(steps).name, draw.choice(kinds)),)
    spec = Spec(
        seed,
        tuple(steps),
        draw.choice((1.0, 2.0, 4.0)) if draw.chance(8) and not plain else None,
        "cancel" if draw.chance(20) else "wait",
        "attempted" if draw.chance(20) else "done",
        draw.chance(30),
        draw.integer(1, 3) if draw.chance(25) else None,
        draw.integer(1, 3) if draw.chance(20) else 32,
        draw.choice((0.0, 0.5, 5.0)),
        draw.integer(0, 40) / 10 if draw.chance(15) else None,
        faults,
        "the-key" if draw.chance(25) else None,
    )
    # A step may be defined before the steps that it depends on.
    return replace(spec, steps=spec.steps[::-1]) if draw.chance(15) else spec


def from_seed(seed: int) -> Spec:
    return drawn(Seeded(seed), seed)


# -- building and running ----------------------------------------------------------------------------------------------


@dataclass
class Effect:
    """One call of user code. `what` is do, undo, when or verify; `did` is a word for what the user code did."""

    what: str
    step: str
    attempt: int
    did: str
    step_key: str
    deadline: float | None
    error: BaseException | None
    """the ctx.error that it saw"""
    seen: dict[str, Any]
    """the results that it saw: those of its dependencies or, in an undo, of its own step"""
    fence: int
    run_id: str
    values: dict[str, Any]
    """the context's values that it saw"""
    wrote: dict[str, Any] = field(default_factory=dict[str, Any])
    """the values that it set; None: deleted"""


@dataclass
class Trial:
    """A spec, with the simulation of its run."""

    spec: Spec
    simulation: Simulation
    effects: list[Effect] = field(repr=False)
    workflow: Workflow = field(repr=False)
    store: MemoryStore | None = field(default=None, repr=False)


def trouble(did: str, name: str) -> BaseException | None:
    match did:
        case "value":
            return ValueError(f"{name}: value")
        case "other":
            return LookupError(f"{name}: other")
        case "fatal":
            return Fatal(f"{name}: fatal")
        case "later":
            return RetryAfter(ASKED_DELAY)
        case "cancel":
            return asyncio.CancelledError(f"{name}: cancel")
        case "exit":
            return SystemExit(f"{name}: exit")
        case _:
            return None


def built(spec: Spec, effects: list[Effect]) -> Workflow:
    """Return the workflow of a spec. Its user code notes each call in `effects`."""
    wf = Workflow(
        f"seed {spec.seed}",
        deadline=spec.deadline,
        on_failure=spec.on_failure,
        undo=spec.undo,
        parallel_undo=spec.parallel_undo,
        max_parallel=spec.max_parallel,
    )
    for step in spec.steps:
        made = wf.add_step(
            step.name,
            _do(spec, step, effects),
            depends_on=step.depends_on,
            retry=step.policy.retry(),
            timeout=step.timeout,
            step_timeout=step.step_timeout,
            when=None if step.when is None else _when(step, effects),
            undo=None if step.attempted is None else "attempted" if step.attempted else "done",
            pivot=step.pivot,
            on_crash=step.on_crash,
            verify=None if step.verify is None else _verify(step, effects),
        )
        if step.undo is not None:
            made.compensate(retry=step.undo.policy.retry() or 1, timeout=step.undo.timeout)(_undoing(step, effects))
    return wf


def _noted(effects: list[Effect], what: str, ctx: Context, did: str, names: Sequence[str]) -> Effect:
    seen = {name: ctx.get(name) for name in names}
    effect = Effect(
        what, ctx.step, ctx.attempt, did, ctx.step_key, ctx.deadline, ctx.error, seen, ctx.fence, ctx.run_id, dict(ctx)
    )
    effects.append(effect)
    return effect


def _do(spec: Spec, step: StepSpec, effects: list[Effect]) -> Callable[[Context], Any]:
    def do(ctx: Context) -> Any:
        did = step.does(ctx.attempt)
        effect = _noted(effects, "do", ctx, did, step.depends_on)
        if spec.writes:
            _write(spec, ctx, effect)
        error = trouble(did, step.name)
        if error is not None:
            raise error
        return f"{step.name}{ctx.attempt}"

    async def async_do(ctx: Context) -> Any:
        return do(ctx)

    def answers(ctx: Context) -> Any:
        return async_do(ctx)

    return {"plain": do, "async": async_do, "answers": answers}[step.form]


def _write(spec: Spec, ctx: Context, effect: Effect) -> None:
    """Set a key that only this step has and one that all steps share, and set or delete a third."""
    said = f"{ctx.step}{ctx.attempt}@{ctx.fence}"
    ctx[f"of {ctx.step}"] = ctx["shared"] = said
    effect.wrote = {f"of {ctx.step}": said, "shared": said}
    if ord(ctx.step) % 2:
        ctx["flag"] = said
        effect.wrote["flag"] = said
    elif "flag" in ctx:
        del ctx["flag"]
        effect.wrote["flag"] = None


def _verify(step: StepSpec, effects: list[Effect]) -> Callable[[Context], Any]:
    """Return a verify= function. It says the truth, or that it does not know, or it raises at its first call."""

    def verify(ctx: Context) -> Any:
        asked = any(effect.what == "verify" and effect.step == step.name for effect in effects)
        done = [e for e in effects if e.what == "do" and e.did == "ok" and e.step_key == ctx.step_key]
        did = "none" if step.verify == "none" else "raises" if step.verify == "raises" and not asked else "truth"
        did = "landed" if did == "truth" and done else "not landed" if did == "truth" else did
        _noted(effects, "verify", ctx, did, ())
        if did == "raises":
            raise ValueError(f"{step.name}: verify")
        if did == "none":
            return None
        return Landed(f"{step.name}{done[0].attempt}") if did == "landed" else NotLanded

    return verify


def _when(step: StepSpec, effects: list[Effect]) -> Callable[[Context], bool]:
    def when(ctx: Context) -> bool:
        assert step.when is not None
        _noted(effects, "when", ctx, step.when, step.depends_on)
        if step.when == "raises":
            raise ValueError(f"{step.name}: when")
        return step.when == "yes"

    return when


def _undoing(step: StepSpec, effects: list[Effect]) -> Callable[[Context], None]:
    undo = step.undo
    assert undo is not None

    def undoing(ctx: Context) -> None:
        did = undo.script[min(ctx.attempt, len(undo.script)) - 1]
        _noted(effects, "undo", ctx, did, (step.name,))
        error = trouble(did, step.name)
        if error is not None:
            raise error

    return undoing


def without_exits(spec: Spec) -> Spec:
    """Return the spec without steps that end their process, because on a durable store their runs would be parked."""
    steps = (replace(s, script=tuple("other" if did == "exit" else did for did in s.script)) for s in spec.steps)
    return replace(spec, steps=tuple(steps))


def tried(spec: Spec, **options: Any) -> Trial:
    """Run a spec in a simulation. `options` override those of the spec."""
    effects: list[Effect] = []
    workflow = built(spec, effects)
    store = MemoryStore() if spec.key is not None else None
    chosen: dict[str, Any] = {
        "seed": spec.seed,
        "faults": dict(spec.faults),
        "cancel_at": spec.cancel_at,
        "max_workers": spec.max_workers,
        "grace": spec.grace,
        "store": store,
        "idempotency_key": spec.key,
    }
    simulation = simulate(workflow, **(chosen | options))
    return Trial(spec, simulation, effects, workflow, store)


def second_act(trial: Trial) -> tuple[Trial, BaseException | None]:
    """Run the same workflow with the same key once more, without faults and cancellation. Returns the new trial and the
    error that refused it, or None."""
    effects: list[Effect] = trial.effects
    before = len(effects)
    spec = replace(trial.spec, seed=trial.spec.seed + 1, faults=(), cancel_at=None)
    try:
        simulation = simulate(
            trial.workflow,
            seed=spec.seed,
            max_workers=spec.max_workers,
            grace=spec.grace,
            store=trial.store,
            idempotency_key=spec.key,
        )
    except IdempotencyError as refusal:
        return replace(trial, effects=effects[before:]), refusal
    return Trial(spec, simulation, effects[before:], trial.workflow, trial.store), None
