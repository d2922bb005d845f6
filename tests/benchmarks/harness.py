"""Measuring: subjects take turns, rounds repeat, and what counts is the median of the ratios within a round.

A machine's speed changes from one second to the next, and other processes want it too. Two subjects that were measured
right after one another can still be compared; two medians from different minutes cannot. So every ratio is taken
between two batches of one round, and the order in which subjects come changes from round to round.
"""

from __future__ import annotations

import asyncio
import fnmatch
import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .subjects import Run, Subject
from .work import ASYNC, SYNC, Flavour, Work

__all__ = ["Options", "Report", "Row", "Target", "compare", "interleaved", "median_ratio"]

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Options:
    """`rounds`: how often each subject has its turn; `batch`: seconds of one turn, at least; `only`: patterns of subjects'
    names, empty for all; `subjects`: all there are."""

    rounds: int
    batch: float
    quick: bool
    subjects: Sequence[Callable[[], Subject]]
    only: Sequence[str] = ()

    def wants(self, name: str) -> bool:
        return not self.only or any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in self.only)


class Target(NamedTuple):
    """`subject` takes at most `limit` × what `reference` takes."""

    subject: str
    limit: float
    reference: str


@dataclass
class Row:
    """One line of a report. `figure`: the median in the report's unit; `best`: the least; `ratio`: × `reference`."""

    subject: str
    figure: float
    best: float | None = None
    ratio: float | None = None
    target: Target | None = None
    against: float | None = None
    """the figure that the target limits"""
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.target is None or self.against is None else self.against <= self.target.limit


@dataclass
class Report:
    """What a workload has to say. `unit`: of the rows' figures; `relative`: what their ratio column is relative to."""

    name: str
    title: str
    unit: str
    relative: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# -- turns -------------------------------------------------------------------------------------------------------------


def interleaved(turns: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Give each subject a turn in each round, in changing order; a turn returns what it measured."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for number in range(rounds if names else 0):
        first = number % len(names)
        order = [*names[first:], *names[:first]]
        for name in order if number % 2 else reversed(order):
            gc.collect()
            samples[name].append(turns[name]())
    return samples


def median_ratio(samples: Samples, name: str, reference: str) -> float:
    """The median over the rounds of how many times as long `name` took as `reference`."""
    return statistics.median(a / b for a, b in zip(samples[name], samples[reference], strict=True))


class Turn:
    """One subject's turn: runs its work for a while and answers seconds per run."""

    def __init__(self, run: Run, work: Work, batch: float, runner: asyncio.Runner) -> None:
        self._run = run
        self._is_async = work.is_async
        self._runner = runner
        self._number = 1
        self()  # caches fill, threads start
        once = self()
        self._number = max(1, round(batch / once))

    def __call__(self) -> float:
        if self._is_async:
            return self._runner.run(self._timed_async())
        run, number = self._run, range(self._number)
        before = time.perf_counter()
        for _ in number:
            try:
                run()
            except Exception:  # noqa: BLE001 - work that fails; `check` has seen that it does what it should
                continue
        return (time.perf_counter() - before) / self._number

    async def _timed_async(self) -> float:
        run, number = self._run, range(self._number)
        before = time.perf_counter()
        for _ in number:
            try:
                await run()
            except Exception:  # noqa: BLE001 - as above
                continue
        return (time.perf_counter() - before) / self._number


def check(subject: Subject, work: Work, runner: asyncio.Runner) -> None:
    """See that the subject calls each step as often as it should: who does less is not faster."""
    calls: list[str] = []
    run = subject.prepare(work.counted(calls))

    async def wait() -> None:
        await run()

    try:
        if work.is_async:
            runner.run(wait())
        else:
            run()
    except Exception:
        if not work.fails:
            raise
    if len(calls) != work.calls:
        raise AssertionError(f"{subject.name} made {len(calls)} calls, not {work.calls}: {Counter(calls)}")


# -- comparing ---------------------------------------------------------------------------------------------------------


def compare(
    name: str,
    title: str,
    make: Callable[[Flavour], Work],
    targets: Iterable[Target],
    options: Options,
    *,
    per_step: bool = False,
    relative: Collection[str] = ("direct call", "direct await"),
    constants: Mapping[str, float] | None = None,
    without: Collection[str] = (),
    whole: Callable[[Subject, Run], Run] | None = None,
) -> Report:
    """Time all subjects at the work that `make` answers.

    `relative`: what the ratio column is relative to, one for sync subjects and one for async ones, or one for both.
    `constants`: seconds of references that are not measured. `without`: subjects for whom the work makes no sense.
    `whole`: makes what is timed out of one run, where that is not just one run.
    """
    works = {flavour.is_async: make(flavour) for flavour in (SYNC, ASYNC)}
    steps = len(works[False].steps)
    targets, constants = list(targets), constants or {}
    references = {*relative, *(target.reference for target in targets)}
    report = Report(name, title, "µs per step" if per_step else "µs per run", " / ".join(relative))

    with asyncio.Runner() as runner:
        turns: dict[str, Turn] = {}
        flavours: dict[str, bool] = {}
        for subject in (
            make_subject() for make_subject in options.subjects if _wanted(make_subject, options, references)
        ):
            work = works[subject.is_async]
            missing = work.needs & subject.cannot
            if subject.name in without or missing:
                continue
            check(subject, work, runner)
            run = subject.prepare(work)
            run = run if whole is None else whole(subject, run)
            turns[subject.name] = Turn(run, work, options.batch, runner)
            flavours[subject.name] = subject.is_async
        samples = {
            **interleaved(turns, options.rounds),
            **{constant: [seconds] * options.rounds for constant, seconds in constants.items()},
        }

    scale = 1e6 / (steps if per_step else 1)
    for subject_name in turns:
        base = _base(relative, flavours, is_async=flavours[subject_name])
        target = next((target for target in targets if target.subject == subject_name), None)
        report.rows.append(
            Row(
                subject_name,
                statistics.median(samples[subject_name]) * scale,
                min(samples[subject_name]) * scale,
                median_ratio(samples, subject_name, base) if base in samples else None,
                target,
                None if target is None else median_ratio(samples, subject_name, target.reference),
            )
        )
    return report


def _wanted(make_subject: Callable[[], Subject], options: Options, references: Collection[str]) -> bool:
    name = getattr(make_subject, "name", "")
    return options.wants(name) or name in references


def _base(relative: Collection[str], flavours: Mapping[str, bool], *, is_async: bool) -> str:
    """What a subject is compared with: of the two, the one of its own flavour."""
    return next((name for name in relative if flavours.get(name, is_async) == is_async), "")
