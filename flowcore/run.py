"""What a caller gets: `Run`, the outcome of a run, and `StepReport`, how one step went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

from .errors import (
    DefinitionError,
    NoResult,
    RunFailed,
    error_message,
    safe_repr,
    safe_str,
)
from .portable import portable, survives_pickling
from .status import Status

if TYPE_CHECKING:
    from .plan import Plan
    from .step import Step

__all__ = ["STARTING_REPORT", "Run", "Sent", "StepReport", "error_line", "in_words", "names_of_sent"]

R = TypeVar("R")
_LISTED = 200  # steps that explain() describes one by one
ATTEMPTS_KEPT: Final = 50
"""how many of a step's first attempts, and as many of its last ones, keep their errors and times"""
_TRIES = 10  # failed attempts that it lists for each step


@dataclass(slots=True)
class StepReport:
    """How one step of a run went. Durations are monotonic seconds, and None if no hook or durable store needed them."""

    status: Status = Status.PENDING
    attempts: int = 0
    waited: float | None = None
    """seconds between being ready and starting"""
    ran: float | None = None
    """seconds from the start of the first attempt to the end of the last one, without the backoff between them"""
    backed_off: float | None = None
    """seconds of backoff between attempts"""
    error: BaseException | None = None
    undo: Status | None = None
    """the outcome of its undo: success, failure or timeout; None if it was not undone"""
    undo_error: BaseException | None = None
    failed: int = 0
    """the number of failed attempts, under all owners; an attempt that a crash cut off does not count"""
    errors: tuple[tuple[str, str], ...] = ()
    """the type and message of the error of each failed attempt, oldest first; of more than 100, the first and the last
    50"""
    started: float | None = None
    """when the first attempt started, in seconds since the epoch by the store's clock; None in memory"""
    retry_at: float | None = None
    """when the next attempt is due, in seconds since the epoch; set only between two attempts"""
    until: float | None = None
    """when a wait times out or a sleep ends, in seconds since the epoch; None for no limit"""
    completed_late: Status | None = None
    """how an abandoned attempt completed after all: success or failure; None if none did"""
    completed_late_at: float | None = None
    """when that attempt completed, in seconds since the epoch by the store's clock; None in memory"""
    undo_started: float | None = None
    """when its undo started, in seconds since the epoch by the store's clock; None in memory"""
    undo_finished: float | None = None
    """when its undo ended, after all attempts and the backoff between them; None in memory"""
    attempt_times: tuple[tuple[float, float], ...] = ()
    """start and end of each attempt, oldest first, in seconds since the epoch by the store's clock; empty in memory and
    for a step that ended with its first attempt; without attempts that a crash cut off; of more than 100, the first and
    the last 50"""

    def __setstate__(self, state: tuple[None, dict[str, Any]]) -> None:
        """Restore a pickled report. A field that an older release did not pickle gets its default."""
        for known in fields(self):
            setattr(self, known.name, state[1].get(known.name, known.default))


def shortened(items: tuple[R, ...]) -> tuple[R, ...]:
    """Return the items of a step's attempts that are kept: all, or the first and the last of many. So the cost of an
    attempt does not grow with the number of those before it."""
    return items if len(items) <= 2 * ATTEMPTS_KEPT else (*items[:ATTEMPTS_KEPT], *items[-ATTEMPTS_KEPT:])


@dataclass(frozen=True, slots=True)
class Sent:
    """A value that was sent to a wait, with its sender and the time of sending."""

    value: Any
    at: float = 0.0
    """when it was sent, in seconds since the epoch by the store's clock, or in memory by that of this process"""
    host: str = ""
    pid: int = 0
    id: str | None = None
    """the sender's name for the value, if any; a send that repeats the name sends no second value"""
    carrier: Mapping[str, str] = field(default_factory=dict[str, str])
    """trace context of the sender"""


def names_of_sent(wait: object, id: object, carrier: object = None) -> tuple[str, str | None]:  # noqa: A002 - as in `send`
    """Return the name of the wait that a value is sent to, and the `id` of the value, both as plain texts. `wait`: the
    Step of the wait, or its name. Raises DefinitionError for anything else, which no record could hold, and for a
    carrier that is not a mapping."""
    name = getattr(wait, "name", None) if hasattr(wait, "workflow") else wait  # only a Step has both
    if not isinstance(name, str):
        raise DefinitionError(f"A value is sent to the name of a wait, or to its Step, not to {safe_repr(wait)}.")
    if id is not None and not isinstance(id, str):
        raise DefinitionError(f"The id= of a value that is sent must be a string or None, not {safe_repr(id)}.")
    if carrier is not None and not isinstance(carrier, Mapping):
        raise DefinitionError(
            f"The carrier= of a value that is sent must be a mapping or None, not {safe_repr(carrier)}."
        )
    # A member of an Enum is formatted as something else.
    return str.__str__(name), None if id is None else str.__str__(id)


STARTING_REPORT: Final = StepReport(Status.RUNNING, 1)
"""the report of every step whose first attempt is about to start. It is shared, so it must not be changed."""


class HasRunId(Protocol):
    """An object that has the id of a run, or makes it when it is first read."""

    @property
    def run_id(self) -> str: ...


class Run:
    """The outcome of a run. `run[step]` is the result of a step.

    Do not change its contents. Safe to read from any thread.
    """

    replayed: bool = False
    """whether the results are the stored ones of an earlier run with the same idempotency key"""
    held: bool = False
    """whether the key is held until an operator decides"""
    error: BaseException | None = None
    """the error that `Engine.run` raises for this run; None if it raises none"""
    carrier: Mapping[str, str] = MappingProxyType({})
    """what hooks stored with the run, such as its trace context; after a replay, that of the original run"""
    failed_step: str | None = None
    """the step whose failure failed the run"""
    undone: tuple[str, ...] = ()
    """the steps whose undo succeeded, in order of undoing"""
    _times: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """(waited, ran) of steps without a report, in seconds"""
    _left_out: Mapping[str, str] = MappingProxyType({})
    """the type of each result that could not be pickled with the run, by step name"""

    def __init__(
        self,
        source: HasRunId,
        workflow: str,
        status: Status,
        results: dict[str, Any],
        reports: Mapping[str, StepReport],
        plan: Plan | _Names,
    ) -> None:
        self._source = source
        self.workflow = workflow
        self.status = status
        self.results = results
        """results by step name, in order of completion"""
        self._reports = reports
        self._plan = plan

    @property
    def id(self) -> str:
        """The run's id: 32 hex digits. For a run in memory without a key it is made when it is first read."""
        return self._source.run_id

    @property
    def steps(self) -> dict[str, StepReport]:
        """The report of each step, by name, in definition order."""
        return {node.name: self._report(node.name) for node in self._plan.nodes}

    @property
    def dependencies(self) -> dict[str, tuple[str, ...]]:
        """The names of the steps that each step depends on, by name, in definition order."""
        return {node.name: node.dependencies for node in self._plan.nodes}

    def _report(self, name: str) -> StepReport:
        report = self._reports.get(name)
        if report is not None:
            return report
        if name not in self.results:
            return StepReport()
        # A step that succeeded at its first attempt left only its result, and its times if they were measured.
        waited, ran = self._times.get(name, (None, None))
        return StepReport(Status.SUCCESS, 1, waited, ran, None if ran is None else 0.0)

    @overload
    def __getitem__(self, step: Step[R]) -> R: ...
    @overload
    def __getitem__(self, step: str) -> Any: ...
    def __getitem__(self, step: Any) -> Any:
        """Return the result of a step (a Step or a name). Raises NoResult, with the reason, if there is none."""
        name = step if isinstance(step, str) else self._name_of(step)
        try:
            return self.results[name]
        except KeyError:
            if name in self._left_out:
                raise NoResult(
                    f"step {safe_repr(name)} has no result here: it succeeded, but its result of type "
                    f"{self._left_out[name]} could not be pickled."
                ) from None
            known = name in self._plan.by_name
            raise no_result(name, self._report(name) if known else None, self.workflow) from None

    def __contains__(self, step: object) -> bool:
        """Whether `run[step]` returns a result, as for `step in ctx`."""
        try:
            return (step if isinstance(step, str) else self._name_of(step)) in self.results
        except NoResult:
            return False

    __iter__ = None
    """A run cannot be iterated: without this, Python would ask for `run[0]`."""

    def _name_of(self, step: Any) -> str:
        node = self._plan.by_name.get(getattr(step, "name", ""))
        if node is not None and (node.step is step or node.step is None):
            return node.name
        # A step of an included workflow means its copy, if there is exactly one.
        steps = [node.step for node in self._plan.nodes if node.step is not None]
        copies = {(known.aliases or {}).get(step) for known in steps} - {None}
        name = copies.pop() if len(copies) == 1 else None
        if name is None:
            raise NoResult(f"{safe_repr(step)} is not a step of workflow {safe_repr(self.workflow)}.")
        return name

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle can send of the run: its id, texts and reports, and the results that can be pickled.

        An error that cannot be pickled becomes a RunFailed with its type, message, traceback and notes.
        """
        errors: dict[int, Any] = {}  # an error that is here twice is one error there too

        def sent(error: BaseException | None) -> Any:
            return errors[id(error)] if id(error) in errors else errors.setdefault(id(error), portable(error))

        results = {name: result for name, result in self.results.items() if survives_pickling(result)}
        left_out = {name: type(self.results[name]).__name__ for name in self.results.keys() - results.keys()}
        return {
            **{name: value for name, value in self.__dict__.items() if not name.startswith("_")},
            "error": sent(self.error),
            "carrier": dict(self.carrier),
            "results": results,
            "_left_out": {**self._left_out, **left_out},
            "_source": _Id(self.id),
            "_plan": _Names(self._plan),
            "_times": {},
            "_reports": {
                name: replace(report, error=sent(report.error), undo_error=sent(report.undo_error))
                for name, report in self.steps.items()
            },
        }

    def __copy__(self) -> Run:
        # What __getstate__ returns is for pickle: it may have stand-ins for errors.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __repr__(self) -> str:
        return f"<Run {self.id} of {safe_repr(self.workflow)}: {self.status}>"

    def explain(self) -> str:
        """Return the story of the run in plain words, with one line for each step."""
        lines = [f"Run {self.id} of {safe_repr(self.workflow)}: {self._ending()}"]
        steps = self.steps
        for name, report in list(steps.items())[:_LISTED]:
            lines.append(f"  {_clipped(name)}: {in_words(report)}")
        if len(steps) > _LISTED:
            lines.append(f"  … and {len(steps) - _LISTED} more steps")
        if self.held:
            lines.append(
                "  The key is held. Retry the compensations with engine.store.undo(key), or clean up by hand and call "
                "engine.store.release(key)."
            )
        return "\n".join(lines)

    def html(self, *, trace_url: str | None = None) -> str:
        """Return the run as a self-contained HTML page. `trace_url`: the URL of a trace, with `{trace_id}` in it."""
        from .picture import Timeline, page

        return page(Timeline.of_run(self), self.explain(), trace_url=trace_url)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows: the waterfall, and the story of `explain`."""
        from .picture import Timeline, fragment

        return fragment(Timeline.of_run(self), self.explain())

    def _ending(self) -> str:
        cause = f" at step {safe_repr(self.failed_step)}" if self.failed_step else ""
        why = f"{cause}: {error_line(self.error)}" if self.error is not None else ""
        match self.status:
            case Status.SUCCESS:
                return "success" + (", replayed from an earlier run with the same key" if self.replayed else "")
            case Status.COMPENSATED:
                return f"failed{why}; undone: {', '.join(map(_clipped, self.undone))}"
            case Status.COMPENSATION_FAILED:
                failed = ", ".join(_clipped(name) for name, step in self.steps.items() if step.undo_error is not None)
                return f"failed{why}; could NOT be undone: {failed}"
            case Status.FAILURE:
                return f"failed{why}; nothing had to be undone"
            case Status.INCOMPLETE:
                return f"incomplete{why}; nothing was undone: the next call with its key continues at the failed step"
            case _:
                return f"{self.status}{why}"

    def to_dict(self) -> dict[str, Any]:
        """Return the run as plain data, without results and values, because those may be secrets."""
        return {
            "id": self.id,
            "workflow": self.workflow,
            "status": str(self.status),
            "replayed": self.replayed,
            "held": self.held,
            "error": _error_dict(self.error),
            "failed_step": self.failed_step,
            "undone": list(self.undone),
            "steps": {
                name: {
                    "status": str(report.status),
                    "attempts": report.attempts,
                    "waited": report.waited,
                    "ran": report.ran,
                    "backed_off": report.backed_off,
                    "error": _error_dict(report.error),
                    "errors": [{"type": kind, "message": message} for kind, message in report.errors],
                    "undo": None if report.undo is None else str(report.undo),
                }
                for name, report in self.steps.items()
            },
        }


@dataclass(frozen=True, slots=True)
class _Id:
    """The id of a run that came from another process."""

    run_id: str


@dataclass(frozen=True, slots=True)
class _Name:
    """A step of a run that came from another process, without its definition."""

    name: str
    dependencies: tuple[str, ...]
    step: Step[Any] | None = None


class _Names:
    """The steps of a run that came from another process, in place of its Plan."""

    def __init__(self, plan: Plan | _Names) -> None:
        self.nodes: tuple[_Name, ...] = tuple(_Name(node.name, node.dependencies) for node in plan.nodes)
        self.by_name = {node.name: node for node in self.nodes}


def no_result(name: str, report: StepReport | None, workflow: str) -> NoResult:
    """Return the error for reading a result that does not exist."""
    if report is None:
        return NoResult(f"workflow {safe_repr(workflow)} has no step {safe_repr(name)}.")
    match report.status:
        case Status.PENDING:
            why = "has not run"
        case Status.RUNNING:
            why = "is still running"
        case Status.WAITING:
            why = "is still waiting"
        case Status.SKIPPED:
            why = "was skipped by its when="
        case Status.FAILURE:
            why = "failed"
        case _:
            why = f"ended as {report.status}: its outcome is unknown"
    error = f" with {type(report.error).__name__}" if report.error is not None else ""
    return NoResult(f"step {safe_repr(name)} has no result: it {why}{error}.")


def _error_dict(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    if isinstance(error, RunFailed) and error.error_type:
        return {"type": error.error_type, "message": error.message}
    return {"type": type(error).__name__, "message": error_message(error)}


def error_line(error: BaseException, limit: int = 1024) -> str:
    """Return the type and message of an error on one line, to be part of a sentence; for a RunFailed, those of the
    original error."""
    if isinstance(error, RunFailed) and error.error_type:
        return _line(error.error_type, Exception(error.message), limit)
    return _line(type(error).__name__, error, limit)


def _line(name: str, error: BaseException, limit: int) -> str:
    text = safe_str(error, limit)
    return f"{_clipped(name)}: {text if text.endswith('..') else text.removesuffix('.')}"


def _clipped(name: str) -> str:
    return name if name.isprintable() and len(name) <= 80 else safe_repr(name)


def in_words(report: StepReport) -> str:
    """Describe on one line how a step went."""
    parts = [str(report.status)]
    if report.attempts > 1:
        parts.append(f"after {report.attempts} attempts")
    if report.error is not None and report.status is not Status.SUCCESS:
        parts.append(f"with {error_line(report.error, 200)}")
    if report.ran is not None:
        parts.append(f"in {report.ran * 1e3:.1f} ms")
    if report.backed_off:
        parts.append(f"and {report.backed_off * 1e3:.1f} ms between attempts")
    text = " ".join(parts)
    last = "" if report.status is Status.SUCCESS or report.error is None else error_line(report.error, 200)
    failures = [_line(kind, Exception(message), 200) for kind, message in report.errors]
    if any(failure != last for failure in failures):
        first = max(0, len(failures) - _TRIES)
        number = first + 1 + max(0, report.failed - len(failures))  # some errors in the middle may be left out
        text += f"; failed attempts: {'; '.join(f'{n}. {why}' for n, why in enumerate(failures[first:], number))}"
    if report.completed_late is not None:
        text += f"; an abandoned attempt completed late: {report.completed_late}"
    if report.undo == Status.SUCCESS:
        text += "; undone"
    elif report.undo is not None:
        text += f"; its undo FAILED with {error_line(report.undo_error or Exception())}"
    return text
